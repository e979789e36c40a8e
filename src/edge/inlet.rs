//! Lets in the bytes of one HTTP/1.1 message at a time, so that each head is looked at from its first byte.
//!
//! hyper reads ahead: the next request's head would come to it together with the end of the one before, at a place that
//! only hyper knows. Here the bytes behind a message are kept until that message is answered, and then begin a new head.
//!
//! ```text
//! Head ──its end──▶ Shut ──hyper says what follows──▶ Length, Chunks ──their end──▶ Shut ──answered──▶ Head
//! ```

use http_body::Body;

use super::chunk_scan::ChunkScan;
use super::head_scan::HeadScan;

/// What follows a head, as hyper has read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Follows {
    Nothing,
    Length(u64),
    Chunks,
}

impl Follows {
    /// hyper announces exactly the lengths that were declared.
    pub(super) fn of(body: &impl Body) -> Self {
        match body.size_hint().exact() {
            _ if body.is_end_stream() => Self::Nothing,
            Some(length) => Self::Length(length),
            None => Self::Chunks,
        }
    }
}

/// Which bytes may come in.
#[derive(Debug)]
pub(super) struct Inlet {
    part: Part,
    head: HeadScan,
}

#[derive(Debug)]
enum Part {
    Head,
    /// A body of which so much is to come.
    Length(u64),
    Chunks(ChunkScan),
    /// What comes belongs to the next message.
    Shut,
    /// Nothing of the client's comes in any more.
    Spoilt,
}

impl Inlet {
    pub(super) fn new() -> Self {
        Self { part: Part::Head, head: HeadScan::default() }
    }

    /// The newest head.
    pub(super) fn head(&self) -> &HeadScan {
        &self.head
    }

    /// Whether hyper is to be shown the end of an invalid head instead of anything else.
    pub(super) fn is_spoilt(&self) -> bool {
        matches!(self.part, Part::Spoilt)
    }

    pub(super) fn is_shut(&self) -> bool {
        matches!(self.part, Part::Shut)
    }

    /// The message has been answered: what comes is a head.
    pub(super) fn begin_head(&mut self) {
        *self = Self::new();
    }

    /// hyper has read the head.
    pub(super) fn begin_body(&mut self, follows: Follows) {
        self.part = match follows {
            Follows::Nothing | Follows::Length(0) => Part::Shut,
            Follows::Length(length) => Part::Length(length),
            Follows::Chunks => Part::Chunks(ChunkScan::new()),
        };
    }

    /// Looks at bytes that have come, and says how many of them are of this message; the others are of the next.
    pub(super) fn admit(&mut self, piece: &mut [u8]) -> usize {
        let all = piece.len();
        let end = match &mut self.part {
            Part::Head => self.head.scan(piece),
            Part::Chunks(scan) => scan.scan(piece),
            Part::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(all);
                *left -= u64::try_from(taken).unwrap_or(0);
                (*left == 0).then_some(taken)
            }
            Part::Shut => Some(0),
            Part::Spoilt => None,
        };
        let Some(end) = end else { return all };
        self.part = if self.head.is_spoilt() { Part::Spoilt } else { Part::Shut };
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_let_in_by_itself() {
        let mut inlet = Inlet::new();
        let mut bytes = *b"POST / HTTP/1.1\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n";
        assert_eq!(inlet.admit(&mut bytes), 19);
        assert!(inlet.is_shut());
        assert_eq!(inlet.admit(&mut bytes[19..]), 0, "until hyper has read the head");
        inlet.begin_body(Follows::Length(5));
        assert_eq!(inlet.admit(&mut bytes[19..22]), 3);
        assert!(!inlet.is_shut());
        assert_eq!(inlet.admit(&mut bytes[22..]), 2);
        assert_eq!(inlet.admit(&mut bytes[24..]), 0, "until it is answered");
        inlet.begin_head();
        assert_eq!(inlet.admit(&mut bytes[24..]), 18);
        inlet.begin_body(Follows::Nothing);
        assert!(inlet.is_shut());
        inlet.begin_body(Follows::Chunks);
        assert_eq!(inlet.admit(&mut b"0\r\n\r\nGET".to_owned()), 5);
    }
}

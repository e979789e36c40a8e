//! Follows the chunks of a body through the raw bytes (RFC 9112 section 7.1), to know where the next request begins.
//!
//! hyper reads the same bytes and decides; this scan is at least as strict, so that the two never disagree about the end.
//! What hyper forgives and others read differently (white space around a size, control bytes in an extension, a bare LF in
//! a trailer) is overwritten before hyper sees it, with a byte on which hyper gives the body up.
//!
//! ```text
//! Size ─;─▶ Extension ─\r─▶ SizeEnd ─\n─▶ Data ─▶ DataCr ─▶ DataLf ─▶ Size
//!   └────────\r─────────────▲   └─(size 0)─▶ TrailerStart ⇄ Trailer, TrailerLf
//!                                               └─\r─▶ End ─\n─▶ over
//! ```

/// Digits of a chunk's size: as many as a 64-bit number has.
const SIZE_DIGITS_MAX: u8 = 16;
/// hyper takes neither for part of a chunk's size, nor LF for part of an extension.
const SPOILS_SIZE: u8 = b'\n';
/// No field line may hold it.
const SPOILS_TRAILER: u8 = 0;

/// Follows one chunked body.
#[derive(Debug)]
pub(super) struct ChunkScan {
    place: Place,
    size: u64,
    digits: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    End,
    /// The body is invalid, and hyper has seen or will see why: nothing behind this point is a request.
    Lost,
}

/// What becomes of a byte.
enum Step {
    To(Place),
    Spoilt(u8),
    Over,
}

impl ChunkScan {
    pub(super) fn new() -> Self {
        Self { place: Place::Size, size: 0, digits: 0 }
    }

    /// Looks at the next piece of the body; `Some` with the number of the piece's bytes that belong to the body when it
    /// ends here.
    pub(super) fn scan(&mut self, piece: &mut [u8]) -> Option<usize> {
        let mut done = 0;
        while self.place != Place::Lost {
            if self.place == Place::Data {
                let left = piece.len().saturating_sub(done);
                let data = usize::try_from(self.size).unwrap_or(usize::MAX).min(left);
                done += data;
                self.size -= u64::try_from(data).unwrap_or(0);
                if self.size > 0 {
                    return None;
                }
                self.place = Place::DataCr;
            }
            let byte = piece.get_mut(done)?;
            done += 1;
            match self.step(*byte) {
                Step::To(place) => self.place = place,
                Step::Over => return Some(done),
                Step::Spoilt(spoil) => {
                    *byte = spoil;
                    self.place = Place::Lost;
                }
            }
        }
        None
    }

    fn step(&mut self, byte: u8) -> Step {
        match (self.place, byte) {
            (Place::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.digits < SIZE_DIGITS_MAX => {
                self.size = self.size << 4 | char::from(byte).to_digit(16).map_or(0, u64::from);
                self.digits += 1;
                Step::To(Place::Size)
            }
            (Place::Size, b'\r') if self.digits > 0 => Step::To(Place::SizeEnd),
            (Place::Size, b';') if self.digits > 0 => Step::To(Place::Extension),
            (Place::Extension, b'\r') => Step::To(Place::SizeEnd),
            (Place::Extension, b'\t' | b' '..=b'~' | 0x80..) => Step::To(Place::Extension),
            (Place::Size | Place::Extension, _) => Step::Spoilt(SPOILS_SIZE),
            (Place::SizeEnd, b'\n') => {
                self.digits = 0;
                Step::To(if self.size == 0 { Place::TrailerStart } else { Place::Data })
            }
            (Place::DataCr, b'\r') => Step::To(Place::DataLf),
            (Place::DataLf, b'\n') => Step::To(Place::Size),
            (Place::TrailerStart, b'\r') => Step::To(Place::End),
            (Place::TrailerStart | Place::Trailer, b'\n') => Step::Spoilt(SPOILS_TRAILER),
            (Place::Trailer, b'\r') => Step::To(Place::TrailerLf),
            (Place::TrailerStart | Place::Trailer, _) => Step::To(Place::Trailer),
            (Place::TrailerLf, b'\n') => Step::To(Place::TrailerStart),
            (Place::End, b'\n') => Step::Over,
            // Everywhere else exactly one byte is right, and hyper knows it.
            _ => Step::To(Place::Lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever way the bytes come in pieces, they are changed to `expected`, and the body ends before `rest`.
    fn check(text: &str, expected: &str, rest: Option<&str>) {
        for cut in 0..=text.len() {
            let (mut first, mut second) = (text.as_bytes()[..cut].to_vec(), text.as_bytes()[cut..].to_vec());
            let mut scan = ChunkScan::new();
            let end = scan.scan(&mut first).or_else(|| scan.scan(&mut second).map(|end| cut + end));
            first.extend(second);
            assert_eq!(String::from_utf8_lossy(&first), expected, "cut at {cut}");
            assert_eq!(end.map(|end| &text[end..]), rest, "cut at {cut}");
        }
    }

    #[test]
    fn a_body_that_is_right_is_followed_to_its_end() {
        for text in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "A;x=\"y\"\r\n\r\n\0\r\n67890\r\n000\r\nX: 1\r\nY: 2\r\n\r\n"] {
            let text = &format!("{text}GET /");
            check(text, text, Some("GET /"));
        }
        check("5\r\nhel", "5\r\nhel", None);
    }

    #[test]
    fn what_others_read_differently_is_spoilt_and_has_no_end() {
        check("5 \r\nhello\r\n0\r\n\r\n", "5\n\r\nhello\r\n0\r\n\r\n", None);
        check("\r\n5\r\nhello\r\n0\r\n\r\n", "\n\n5\r\nhello\r\n0\r\n\r\n", None);
        check("5;a\0\r\nhello\r\n0\r\n\r\n", "5;a\n\r\nhello\r\n0\r\n\r\n", None);
        check("0x5\r\nhello\r\n0\r\n\r\n", "0\n5\r\nhello\r\n0\r\n\r\n", None);
        check("00000000000000001\r\nh\r\n0\r\n\r\n", "0000000000000000\n\r\nh\r\n0\r\n\r\n", None);
        check("0\r\nX: a\nY: b\r\n\r\n", "0\r\nX: a\0Y: b\r\n\r\n", None);
        check("0\r\n\nGET / HTTP/1.1\r\n\r\n", "0\r\n\0GET / HTTP/1.1\r\n\r\n", None);
        check("5\r\nhelloX\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", None);
    }
}

//! Looks at the raw bytes of a request's head for what hyper forgives or forgets, and others do not.
//!
//! hyper takes a bare LF for the end of a line (RFC 9112 section 2.2 allows it, request smuggling lives on it), and the
//! `http` crate cuts a fragment off a target before anyone can refuse it (section 3.2 has none). Such a byte is
//! overwritten with NUL before hyper reads it, which makes the head invalid: it is refused like any other invalid
//! head, by the same code. Only heads whose beginning is certain are looked at: what is pipelined behind another request,
//! or follows one with a body, is hyper's alone.

/// Follows one head.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    place: Place,
    last: u8,
}

/// Whether bytes behind the head were seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rest {
    /// None yet.
    None,
    /// A body, or the next request.
    Begun,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// Blank lines before the request line (RFC 9112 section 2.2).
    #[default]
    Before,
    RequestLine,
    /// At the start of a field line, or of the blank line that ends the head.
    LineStart,
    Line,
    After,
}

impl HeadScan {
    /// Overwrites what must not be forgiven in the next piece of the head, and says whether more than the head has come.
    pub(super) fn scan(&mut self, piece: &mut [u8]) -> Rest {
        let mut piece = piece;
        while let Some((byte, rest)) = self.next_of_interest(piece) {
            piece = rest;
            if self.place == Place::After {
                return Rest::Begun;
            }
            let is_forgiven = (*byte == b'\n' && self.last != b'\r') || (*byte == b'#' && self.place == Place::RequestLine);
            self.place = match (self.place, *byte) {
                (Place::Before, b'\r' | b'\n') => Place::Before,
                (Place::Before, _) => Place::RequestLine,
                (Place::RequestLine | Place::Line, b'\n') => Place::LineStart,
                (Place::LineStart, b'\n') => Place::After,
                (Place::LineStart, b'\r') => Place::LineStart,
                (Place::LineStart, _) => Place::Line,
                (place, _) => place,
            };
            self.last = *byte;
            if is_forgiven {
                *byte = 0;
            }
        }
        Rest::None
    }

    /// Nothing matters in the middle of a field line, so all up to its end is passed over at once.
    fn next_of_interest<'a>(&mut self, piece: &'a mut [u8]) -> Option<(&'a mut u8, &'a mut [u8])> {
        let passed = if self.place == Place::Line { memchr::memchr(b'\n', piece).unwrap_or(piece.len()) } else { 0 };
        if let Some(last) = passed.checked_sub(1).and_then(|last| piece.get(last)) {
            self.last = *last;
        }
        piece.get_mut(passed..)?.split_first_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_line_feeds_and_fragments_of_the_head_are_overwritten() {
        let check = |text: &str, expected: &str| {
            for cut in 0..=text.len() {
                let (mut first, mut second) = (text.as_bytes()[..cut].to_vec(), text.as_bytes()[cut..].to_vec());
                let mut scan = HeadScan::default();
                scan.scan(&mut first);
                scan.scan(&mut second);
                first.extend(second);
                assert_eq!(String::from_utf8(first).expect("text"), expected, "cut at {cut}");
            }
        };
        let plain = "\r\nGET /a HTTP/1.1\r\nX: #1\r\n\r\nbody\n#";
        check(plain, plain);
        check("GET /a#b HTTP/1.1\r\n\r\n", "GET /a\0b HTTP/1.1\r\n\r\n");
        check("GET / HTTP/1.1\r\nX: a\nY: b\r\n\r\n", "GET / HTTP/1.1\r\nX: a\0Y: b\r\n\r\n");
        check("GET / HTTP/1.1\nX: a\r\n\r\n", "GET / HTTP/1.1\0X: a\r\n\r\n");
        check("\nGET / HTTP/1.1\r\n\r\n", "\0GET / HTTP/1.1\r\n\r\n");
    }
}

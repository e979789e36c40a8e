//! Looks at the raw bytes of a request's head for what hyper forgives or forgets, and others do not.
//!
//! hyper takes a bare LF for the end of a line (RFC 9112 section 2.2 allows it, request smuggling lives on it), drops a
//! Content-Length that stands beside a Transfer-Encoding (section 6.3), takes two that are equal for one, and the `http` crate cuts a fragment off a target
//! before anyone can refuse it (section 3.2 has none). A tab around the value of a framing field is white space to hyper, as in RFC 9110
//! section 5.5, and to Node's lenient parser it is not. Such a byte is overwritten with NUL before hyper reads it, and the head ends there ([`SPOILT_END`]), which makes it invalid: it is refused like any other invalid head, by the same code.
//! Says too where a good head ends, so that no byte of another is read as part of this one.

/// What is read behind a byte that was overwritten: hyper looks for it before it parses what comes in pieces.
pub(super) const SPOILT_END: &[u8] = b"\r\n\r\n";

/// Follows one head.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    place: Place,
    last: u8,
    /// The framing field that came.
    framed_by: Option<FramingField>,
    /// Words of the request line that are behind us, and what the last of them begins with.
    words: u8,
    last_word: Word,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Word {
    /// Nothing yet.
    #[default]
    Empty,
    /// What a version begins with.
    Version,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// Blank lines before the request line (RFC 9112 section 2.2).
    #[default]
    Before,
    RequestLine,
    /// Within the request line, behind a space and so many bytes of what may be a version.
    NextWord(usize),
    /// At the start of a field line, or of the blank line that ends the head.
    LineStart,
    /// Within that blank line.
    Blank,
    /// In a name that may be that of a framing field, so many bytes of which have come.
    Name(FramingField, usize),
    /// In the value of a framing field.
    FramingValue,
    Line,
    After,
    Spoilt,
}

const VERSION: &[u8] = b"HTTP/";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FramingField {
    ContentLength,
    TransferEncoding,
}

impl FramingField {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::ContentLength => b"content-length:",
            Self::TransferEncoding => b"transfer-encoding:",
        }
    }
}

impl HeadScan {
    /// Overwrites what must not be forgiven in the next piece of the head; `Some` with the number of the piece's bytes
    /// that belong to the head when it ends here.
    pub(super) fn scan(&mut self, piece: &mut [u8]) -> Option<usize> {
        let mut done = 0;
        loop {
            let passed = self.uninteresting(piece.get(done..)?);
            if let Some(last) = passed.checked_sub(1).and_then(|last| piece.get(done + last)) {
                self.last = *last;
            }
            done += passed;
            let byte = piece.get_mut(done)?;
            done += 1;
            self.step(*byte);
            self.last = *byte;
            match self.place {
                Place::After => return Some(done),
                Place::Spoilt => {
                    *byte = 0;
                    return Some(done);
                }
                _ => {}
            }
        }
    }

    /// Whether the request line has begun and not ended.
    pub(super) fn is_in_request_line(&self) -> bool {
        matches!(self.place, Place::RequestLine | Place::NextWord(_))
    }

    /// Whether the head holds what must not be forgiven.
    pub(super) fn is_spoilt(&self) -> bool {
        self.place == Place::Spoilt
    }

    /// Whether the request line has three words of which the last names no version of HTTP: whoever sent it would not
    /// understand an answer in HTTP/1.
    pub(super) fn is_foreign(&self) -> bool {
        self.words == 2 && self.last_word == Word::Other
    }

    fn step(&mut self, byte: u8) {
        self.place = match (self.place, byte) {
            (_, b'\n') if self.last != b'\r' => Place::Spoilt,
            (Place::RequestLine | Place::NextWord(_), b'#') => Place::Spoilt,
            (Place::Before, b'\r' | b'\n') => Place::Before,
            (Place::Before, _) => Place::RequestLine,
            (Place::RequestLine | Place::NextWord(_), b' ') => {
                self.words = self.words.saturating_add(1);
                self.last_word = Word::Empty;
                Place::NextWord(0)
            }
            (Place::RequestLine | Place::NextWord(_) | Place::Line | Place::Name(..) | Place::FramingValue, b'\n') => Place::LineStart,
            (Place::FramingValue, b'\t') => Place::Spoilt,
            (Place::NextWord(_), b'\r') => Place::RequestLine,
            (Place::NextWord(matched), _) => {
                match VERSION.get(matched..).and_then(<[u8]>::split_first).filter(|(expected, _)| **expected == byte) {
                    // Undecided.
                    Some((_, [_, ..])) => Place::NextWord(matched + 1),
                    Some(_) => self.end_word(Word::Version),
                    None => self.end_word(Word::Other),
                }
            }
            (Place::LineStart, b'\r') => Place::Blank,
            (Place::Blank, b'\n') => Place::After,
            (Place::Blank, _) => Place::Spoilt,
            (Place::LineStart, b'c' | b'C') => Place::Name(FramingField::ContentLength, 1),
            (Place::LineStart, b't' | b'T') => Place::Name(FramingField::TransferEncoding, 1),
            (Place::LineStart, _) => Place::Line,
            (Place::Name(field, matched), _) => match field.name().get(matched..) {
                Some([expected, rest @ ..]) if *expected == byte.to_ascii_lowercase() => {
                    if rest.is_empty() {
                        self.note(field)
                    } else {
                        Place::Name(field, matched + 1)
                    }
                }
                _ => Place::Line,
            },
            (place, _) => place,
        };
    }

    fn end_word(&mut self, word: Word) -> Place {
        self.last_word = word;
        Place::RequestLine
    }

    /// A framing field's name is complete: a second one spoils the head, be it the same or the other.
    fn note(&mut self, field: FramingField) -> Place {
        if self.framed_by.replace(field).is_some() { Place::Spoilt } else { Place::FramingValue }
    }

    /// How many bytes can be passed over at once: nothing matters in the middle of a field line, and in the request line
    /// only its end, a fragment and the next word.
    fn uninteresting(&self, rest: &[u8]) -> usize {
        match self.place {
            Place::Line => memchr::memchr(b'\n', rest).unwrap_or(rest.len()),
            Place::RequestLine => memchr::memchr3(b'\n', b'#', b' ', rest).unwrap_or(rest.len()),
            Place::LineStart => ordinary_lines(rest),
            _ => 0,
        }
    }
}

/// Bytes of whole field lines at the front that end as they should and are not of a framing field.
fn ordinary_lines(lines: &[u8]) -> usize {
    let mut rest = lines;
    while let Some(first) = rest.first()
        && !matches!(first, b'c' | b'C' | b't' | b'T' | b'\r' | b'\n')
        && let Some((line, behind)) = memchr::memchr(b'\n', rest).and_then(|end| rest.split_at_checked(end))
        && line.ends_with(b"\r")
    {
        rest = behind.get(1..).unwrap_or_default();
    }
    lines.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever way the bytes come in pieces, they are changed to `expected`, and the head ends before `rest`.
    fn check(text: &str, expected: &str, rest: Option<&str>) {
        for cut in 0..=text.len() {
            let (mut first, mut second) = (text.as_bytes()[..cut].to_vec(), text.as_bytes()[cut..].to_vec());
            let mut scan = HeadScan::default();
            let end = scan.scan(&mut first).or_else(|| scan.scan(&mut second).map(|end| cut + end));
            first.extend(second);
            assert_eq!(String::from_utf8_lossy(&first), expected, "cut at {cut}");
            assert_eq!(end.map(|end| &text[end..]), rest, "cut at {cut}");
            assert_eq!(scan.is_spoilt(), text != expected, "cut at {cut}");
        }
    }

    #[test]
    fn only_what_others_read_differently_is_overwritten() {
        let plain = "\r\nGET /a HTTP/1.1\r\nX: #1\r\nContent-Length: 5\r\nCookie: c\r\nTE: trailers\r\n\r\nbody\n#";
        check(plain, plain, Some("body\n#"));
        check("GET /a#b HTTP/1.1\r\n\r\n", "GET /a\0b HTTP/1.1\r\n\r\n", Some("b HTTP/1.1\r\n\r\n"));
        check("GET #b HTTP/1.1\r\n", "GET \0b HTTP/1.1\r\n", Some("b HTTP/1.1\r\n"));
        check("GET / HTTP/1.1\r\nX: a\nY: b\r\n\r\n", "GET / HTTP/1.1\r\nX: a\0Y: b\r\n\r\n", Some("Y: b\r\n\r\n"));
        check("GET / HTTP/1.1\nX: a\r\n\r\n", "GET / HTTP/1.1\0X: a\r\n\r\n", Some("X: a\r\n\r\n"));
        check("\nGET / HTTP/1.1\r\n\r\n", "\0GET / HTTP/1.1\r\n\r\n", Some("GET / HTTP/1.1\r\n\r\n"));
        check("GET / HTTP/1.1\r\nC\n\nGET", "GET / HTTP/1.1\r\nC\0\nGET", Some("\nGET"));
        check("GET / HTTP/1.1\r\nX: a\r\n\r\r\n", "GET / HTTP/1.1\r\nX: a\r\n\r\0\n", Some("\n"));
        check("GET / HTTP/1.1\r\nX: a\r\n", "GET / HTTP/1.1\r\nX: a\r\n", None);
    }

    #[test]
    fn a_second_framing_field_makes_the_head_invalid() {
        let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
        for (before, after) in [
            ("Content-Length: 5\r\nTransfer-Encoding", " chunked"),
            ("transfer-encoding: x\r\nX: y\r\nCONTENT-LENGTH", ""),
            ("Content-Length: 5\r\ncontent-length", " 5"),
            ("Transfer-Encoding: a\r\nX: y\r\nTransfer-Encoding", " a"),
        ] {
            let rest = format!("{after}\r\n\r\n");
            check(&head(&format!("{before}:{after}")), &head(&format!("{before}\0{after}")), Some(&rest));
        }
        for lines in [
            "X-Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nTransfer-Encodings: chunked",
            "Content-Type: transfer-encoding:\r\nContent-Length: 5",
        ] {
            check(&head(lines), &head(lines), Some(""));
        }
    }

    #[test]
    fn a_line_of_three_words_without_a_version_of_http_is_foreign() {
        let is_foreign = |line: &str, cut: usize| {
            let mut scan = HeadScan::default();
            scan.scan(&mut line.as_bytes()[..cut].to_vec());
            scan.scan(&mut line.as_bytes()[cut..].to_vec());
            scan.is_foreign()
        };
        let strange = "INVALID CONNECTION PREFACE\r\n\r\n";
        assert!((0..strange.len()).all(|cut| is_foreign(strange, cut)));
        for line in [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/9.9\r\n",
            "GET / HTTP/1.1 \r\n",
            "hello\r\n",
            "GET /\r\n",
            "GET  HTTP/1.1\r\n",
            "a b c d\r\n",
        ] {
            assert!((0..line.len()).all(|cut| !is_foreign(line, cut)), "{line:?}");
        }
    }
}

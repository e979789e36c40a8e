//! Where an answer's body ends: after its length, after its last chunk (RFC 9112 section 7.1), or with the connection.
//!
//! Promises that a body is the same however the network cuts it, that what is not framed as the RFC has it is an error and
//! never an end, and that nothing behind the end is taken. Reading belongs to the connection, trailers' fields to `head`.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::SizeHint;

use super::AnswerError;
use super::head;

/// Most bytes of a chunk's first line: sixteen digits, and extensions that nobody uses.
const CHUNK_LINE_BYTES_MAX: usize = 4 * 1024;
/// As many hexadecimal digits as a length of 64 bits has.
const CHUNK_DIGITS_MAX: usize = 16;
/// The end of a body whose last chunk has no trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the head says that the body is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    /// By its length.
    Length(u64),
    /// In chunks.
    Chunked,
    /// It ends with the connection.
    UntilClose,
}

/// What was found in the bytes read so far.
#[derive(Debug)]
pub(super) enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    NeedsMore,
}

/// Takes a body apart.
pub(super) struct Decoder(State);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// So many bytes are left of the body.
    Length(u64),
    /// A chunk's first line comes next.
    ChunkLine,
    /// So many bytes are left of the chunk, and then its line end.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailers, or an empty line.
    Trailers,
    UntilClose,
}

impl Decoder {
    /// A body that is over.
    pub(super) fn nothing() -> Self {
        Self(State::Length(0))
    }

    pub(super) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilClose => State::UntilClose,
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.0 == State::Length(0)
    }

    pub(super) fn ends_with_the_connection(&self) -> bool {
        self.0 == State::UntilClose
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.0 {
            State::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// Takes the next piece off the front of what was read.
    pub(super) fn decode(&mut self, read: &mut BytesMut) -> Result<Decoded, AnswerError> {
        loop {
            match self.0 {
                State::Length(0) => return Ok(Decoded::End),
                State::Length(_) | State::Chunk(_) | State::UntilClose if read.is_empty() => return Ok(Decoded::NeedsMore),
                State::UntilClose => return Ok(Decoded::Data(read.split().freeze())),
                State::Length(left) => {
                    let data = up_to(read, left);
                    self.0 = State::Length(left - bytes(&data));
                    return Ok(Decoded::Data(data));
                }
                State::Chunk(left) => {
                    let data = up_to(read, left);
                    self.0 = match left - bytes(&data) {
                        0 => State::ChunkEnd,
                        left => State::Chunk(left),
                    };
                    self.skip_end(read);
                    return Ok(Decoded::Data(data));
                }
                State::ChunkLine => match chunk_line(read)? {
                    None => return Ok(Decoded::NeedsMore),
                    Some(0) => self.0 = State::Trailers,
                    Some(length) => self.0 = State::Chunk(length),
                },
                State::ChunkEnd => match read.get(..2) {
                    None => return Ok(Decoded::NeedsMore),
                    Some(b"\r\n") => {
                        read.advance(2);
                        self.0 = State::ChunkLine;
                    }
                    Some(_) => return Err(AnswerError::Malformed("a chunk is longer than it says")),
                },
                State::Trailers => match head::parse_trailers(read)? {
                    None => return Ok(Decoded::NeedsMore),
                    Some(trailers) => {
                        self.0 = State::Length(0);
                        return Ok(if trailers.is_empty() { Decoded::End } else { Decoded::Trailers(trailers) });
                    }
                },
            }
        }
    }

    /// Where the last chunk is here already, the piece before it is known to be the last: nobody has to ask again.
    fn skip_end(&mut self, read: &mut BytesMut) {
        if self.0 == State::ChunkEnd && read.get(2..) == Some(LAST_CHUNK) && read.starts_with(b"\r\n") {
            read.clear();
            self.0 = State::Length(0);
        }
    }
}

/// Takes at most `most` bytes off the front.
fn up_to(read: &mut BytesMut, most: u64) -> Bytes {
    let length = usize::try_from(most).unwrap_or(usize::MAX).min(read.len());
    read.split_to(length).freeze()
}

fn bytes(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

/// A chunk's length; its extensions mean nothing to us (RFC 9112 section 7.1.1).
fn chunk_line(read: &mut BytesMut) -> Result<Option<u64>, AnswerError> {
    let wrong = AnswerError::Malformed("a chunk's length is not a length");
    let Some(end) = memchr::memchr(b'\n', read) else {
        return if read.len() < CHUNK_LINE_BYTES_MAX { Ok(None) } else { Err(wrong) };
    };
    let line = read.split_to(end + 1);
    let Some(line) = line.strip_suffix(b"\r\n").filter(|line| line.len() < CHUNK_LINE_BYTES_MAX) else { return Err(wrong) };
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, extensions) = line.split_at(digits);
    let is_ended = matches!(extensions.first(), None | Some(b';' | b' ' | b'\t')) && !extensions.contains(&b'\r');
    let number = str::from_utf8(number).ok().filter(|_| is_ended && digits <= CHUNK_DIGITS_MAX);
    number.and_then(|number| u64::from_str_radix(number, 16).ok()).map(Some).ok_or(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of what was read in two pieces, and what is left over; an error, or a body that has not ended, is `None`.
    fn body(framing: Framing, pieces: [&str; 2]) -> Option<(String, String)> {
        let (mut decoder, mut read, mut body) = (Decoder::new(framing), BytesMut::new(), Vec::new());
        for piece in pieces {
            read.extend_from_slice(piece.as_bytes());
            loop {
                match decoder.decode(&mut read).ok()? {
                    Decoded::Data(data) => body.extend_from_slice(&data),
                    Decoded::Trailers(trailers) => trailers.values().for_each(|value| body.extend_from_slice(value.as_bytes())),
                    Decoded::End | Decoded::NeedsMore => break,
                }
            }
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.is_over().then(|| (text(&body), text(&read)))
    }

    #[test]
    fn a_body_ends_where_it_says_however_it_is_cut() {
        for (framing, text, expected) in [
            (Framing::Length(3), "abcHTTP", Some(("abc", "HTTP"))),
            (Framing::Length(3), "ab", None),
            (Framing::Chunked, "3\r\nabc\r\n0\r\n\r\nHTTP", Some(("abc", "HTTP"))),
            (Framing::Chunked, "3\r\nabc\r\n0\r\n\r\n", Some(("abc", ""))),
            (Framing::Chunked, "1;x=\"y\"\r\na\r\nB \t\r\n0123456789A\r\n000\r\nT: u\r\n\r\n", Some(("a0123456789Au", ""))),
            (Framing::Chunked, "3\r\nabc\r\n", None),
            (Framing::Chunked, "3\r\nabcd\r\n0\r\n\r\n", None),
            (Framing::Chunked, "3\nabc\r\n0\r\n\r\n", None),
            (Framing::Chunked, "\r\n\r\n", None),
            (Framing::Chunked, "+3\r\nabc\r\n0\r\n\r\n", None),
            (Framing::Chunked, "0x3\r\nabc\r\n0\r\n\r\n", None),
            (Framing::Chunked, "3;a\rb\r\nabc\r\n0\r\n\r\n", None),
            (Framing::Chunked, "00000000000000003\r\nabc\r\n0\r\n\r\n", None),
            (Framing::Chunked, "0\r\nbroken\r\n\r\n", None),
            (Framing::UntilClose, "abc", None),
        ] {
            for cut in 0..=text.len() {
                let found = body(framing, [&text[..cut], &text[cut..]]);
                let found = found.as_ref().map(|(body, rest)| (body.as_str(), rest.as_str()));
                assert_eq!(found, expected, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_chunks_line_ends_within_bounds() {
        assert!(body(Framing::Chunked, [&format!("1;{}", "x".repeat(CHUNK_LINE_BYTES_MAX)), "\r\na\r\n0\r\n\r\n"]).is_none());
    }
}

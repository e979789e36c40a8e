//! The head of an answer: one reading, or none (RFC 9112 sections 2.2, 4 and 6.3).
//!
//! httparse finds the fields; here stands what they mean for the framing, and what two readers could take for two things is
//! refused. Names and values share the memory they were read into. Which fields cross to the client is `headers`' choice.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode, Version};

use super::AnswerError;
use super::decoder::Framing;
use crate::gateway::forward::headers;
use crate::gateway::target::parse_length;

/// Most bytes of an answer's head, and of its trailers; answers carry larger cookies than requests.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most fields of an answer's head, and of its trailers.
const FIELDS_MAX: usize = 100;
/// The last status that means anything (RFC 9110 section 15).
pub(in crate::gateway::forward) const STATUS_MAX: u16 = 599;

/// What the head says.
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// Whether the connection outlives the answer.
    pub(super) is_kept: bool,
}

/// Takes a head off the front of what was read; `None` while it is incomplete.
pub(super) fn parse(read: &mut BytesMut, method: &Method) -> Result<Option<Head>, AnswerError> {
    if read.is_empty() {
        return Ok(None);
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let length = match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, read, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if read.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) => return Err(AnswerError::Malformed("its head is too long")),
        Err(_) => return Err(AnswerError::Malformed("its head cannot be parsed")),
    };
    let status = answer.code.filter(|code| *code <= STATUS_MAX).and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(AnswerError::Malformed("there is no such status"))?;
    let version = if answer.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let places = Places::of(read, answer.headers);
    let fields = places.fields(&read.split_to(length).freeze())?;
    let (framing, is_certain) = framing(method, status, version, &fields)?;
    let is_kept = is_certain && keeps_alive(version, &fields);
    let mut response = Response::new(());
    (*response.status_mut(), *response.version_mut(), *response.headers_mut()) = (status, version, fields);
    Ok(Some(Head { response, framing, is_kept }))
}

/// Takes the trailers and the empty line behind them off the front; `None` while they are incomplete.
pub(super) fn parse_trailers(read: &mut BytesMut) -> Result<Option<HeaderMap>, AnswerError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let (length, places) = match httparse::parse_headers(read, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length <= HEAD_BYTES_MAX => (length, Places::of(read, fields)),
        Ok(httparse::Status::Partial) if read.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) => return Err(AnswerError::Malformed("its trailers are too long")),
        Err(_) => return Err(AnswerError::Malformed("its trailers cannot be parsed")),
    };
    Ok(Some(places.fields(&read.split_to(length).freeze())?))
}

/// Where names and values begin and how long they are, so that they can share the memory they were read into.
struct Places(Vec<[usize; 4]>);

impl Places {
    fn of(read: &[u8], fields: &[httparse::Header<'_>]) -> Self {
        let start = read.as_ptr().addr();
        let place = |part: &[u8]| [part.as_ptr().addr() - start, part.len()];
        let places = fields.iter().map(|field| (place(field.name.as_bytes()), place(field.value)));
        Self(places.map(|([name_at, name_bytes], [value_at, value_bytes])| [name_at, name_bytes, value_at, value_bytes]).collect())
    }

    fn fields(&self, head: &Bytes) -> Result<HeaderMap, AnswerError> {
        // Room for what the gateway adds, too.
        let mut fields = HeaderMap::with_capacity(self.0.len() + 5);
        for [name_at, name_bytes, value_at, value_bytes] in &self.0 {
            let name = HeaderName::from_bytes(head.get(*name_at..name_at + name_bytes).unwrap_or_default());
            let value = HeaderValue::from_maybe_shared(head.slice(*value_at..value_at + value_bytes));
            let (Ok(name), Ok(value)) = (name, value) else { return Err(AnswerError::Malformed("a field is not a field")) };
            fields.append(name, value);
        }
        Ok(fields)
    }
}

/// How the body is framed, and whether that is beyond doubt: what is in doubt is read, and the connection is not used again.
fn framing(method: &Method, status: StatusCode, version: Version, fields: &HeaderMap) -> Result<(Framing, bool), AnswerError> {
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let stated = match (lengths.next(), codings.next()) {
        (None, None) => None,
        (Some(length), None) if lengths.next().is_none() => Some(parse_length(length).map(Framing::Length)),
        (None, Some(coding)) if codings.next().is_none() && version != Version::HTTP_10 => {
            Some(is_chunked(coding).then_some(Framing::Chunked))
        }
        _ => Some(None),
    };
    let stated = stated.map(|framing| framing.ok_or(AnswerError::Malformed("its framing can be read in two ways"))).transpose()?;
    let is_bare = status.is_informational() || status == StatusCode::NO_CONTENT;
    Ok(match stated {
        _ if is_bare => (Framing::Length(0), matches!(stated, None | Some(Framing::Length(0)))),
        _ if *method == Method::HEAD || status == StatusCode::NOT_MODIFIED => (Framing::Length(0), true),
        Some(framing) => (framing, true),
        None => (Framing::UntilClose, false),
    })
}

fn is_chunked(coding: &HeaderValue) -> bool {
    coding.as_bytes().eq_ignore_ascii_case(b"chunked")
}

/// RFC 9112 section 9.3.
fn keeps_alive(version: Version, fields: &HeaderMap) -> bool {
    match version {
        Version::HTTP_10 => headers::has_connection_option(fields, "keep-alive") && !headers::has_connection_option(fields, "close"),
        _ => !fields.contains_key(CONNECTION) || !headers::has_connection_option(fields, "close"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, method: Method) -> Result<Option<Head>, AnswerError> {
        parse(&mut BytesMut::from(text), &method)
    }

    #[test]
    fn an_answer_is_framed_in_one_way_or_not_at_all() {
        let framing = |fields: &str| {
            let head = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), Method::GET);
            head.ok().map(|head| (head.as_ref().unwrap().framing, head.unwrap().is_kept))
        };
        for (fields, expected) in [
            ("", Some((Framing::UntilClose, false))),
            ("Content-Length: 5\r\n", Some((Framing::Length(5), true))),
            ("Content-Length: 5\r\nConnection: x, Close\r\n", Some((Framing::Length(5), false))),
            ("Transfer-Encoding: Chunked\r\n", Some((Framing::Chunked, true))),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", None),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", None),
            ("Content-Length: 5, 5\r\n", None),
            ("Content-Length: +5\r\n", None),
            ("Transfer-Encoding: gzip, chunked\r\n", None),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", None),
        ] {
            assert_eq!(framing(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn what_has_no_body_by_its_kind_has_none_whatever_its_fields_say() {
        let framing = |status: &str, method| {
            let head = read(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n"), method).unwrap().unwrap();
            (head.framing, head.is_kept)
        };
        assert_eq!(framing("200 OK", Method::HEAD), (Framing::Length(0), true));
        assert_eq!(framing("304 Not Modified", Method::GET), (Framing::Length(0), true));
        assert_eq!(framing("204 No Content", Method::GET), (Framing::Length(0), false), "five bytes may follow");
    }

    #[test]
    fn http_1_0_ends_with_its_connection_unless_it_says_otherwise_and_has_no_chunks() {
        let kept = |fields: &str| read(&format!("HTTP/1.0 200 OK\r\n{fields}\r\n"), Method::GET).map(|head| head.unwrap().is_kept).ok();
        assert_eq!(kept("Content-Length: 0\r\n"), Some(false));
        assert_eq!(kept("Content-Length: 0\r\nConnection: Keep-Alive\r\n"), Some(true));
        assert_eq!(kept("Transfer-Encoding: chunked\r\n"), None);
    }

    #[test]
    fn a_head_may_come_byte_by_byte_and_only_so_long() {
        let text = "HTTP/1.1 200 OK\r\nA: b\r\nA: c\r\n\r\nrest";
        for cut in 0..text.len() - "rest".len() {
            assert!(read(&text[..cut], Method::GET).unwrap().is_none(), "{cut}");
        }
        let mut whole = BytesMut::from(text);
        let head = parse(&mut whole, &Method::GET).unwrap().unwrap();
        assert_eq!((head.response.headers().get_all("a").iter().count(), &whole[..]), (2, &b"rest"[..]));
        assert!(read(&format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(HEAD_BYTES_MAX)), Method::GET).is_err());
        assert!(read("HTTP/1.1 600 No\r\n\r\n", Method::GET).is_err());
        assert!(read("SSH-2.0\r\n\r\n", Method::GET).is_err());
    }
}

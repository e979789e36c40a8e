//! The answers that hyper gives by itself to a malformed head, recognised in what it writes, and what goes out instead.
//!
//! hyper 1.12 answers 400, 414 and 431 on its own, with an empty body, and has no hook for it. Where it is used,
//! `http1` knows already that no answer of the service is on its way; the exact form is demanded all the same.

use std::io::Write;

use bytes::Bytes;
use http::Response;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE};

/// Recognises the head that hyper 1.12 writes for 400, 414 and 431, exactly: a status line, and no fields but
/// `connection: close`, `content-length: 0` and `date`. Returns the status and the date line.
pub(super) fn read_own_answer(bytes: &[u8]) -> Option<(u16, Option<&str>)> {
    let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next()?;
    let (status, _reason) = status_line.strip_prefix("HTTP/1.1 ").or_else(|| status_line.strip_prefix("HTTP/1.0 "))?.split_once(' ')?;
    let status = status.parse().ok().filter(|status| matches!(status, 400 | 414 | 431))?;
    let mut date = None;
    for line in lines {
        match line {
            "connection: close" | "content-length: 0" => {}
            _ if line.starts_with("date: ") => date = Some(line),
            _ => return None,
        }
    }
    Some((status, date))
}

/// A complete HTTP/1.1 message that closes the connection.
pub(super) fn write_answer(answer: &Response<Bytes>, date: Option<&str>) -> Bytes {
    let status = answer.status();
    let mut message = Vec::with_capacity(512 + answer.body().len());
    let mut write = |arguments: std::fmt::Arguments<'_>| message.write_fmt(arguments).expect("writing to memory does not fail");
    write(format_args!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()));
    write(format_args!("connection: close\r\ncontent-length: {}\r\n", answer.body().len()));
    if let Some(date) = date {
        write(format_args!("{date}\r\n"));
    }
    for (name, value) in answer.headers() {
        if ![CONNECTION, CONTENT_LENGTH, DATE].contains(name) {
            message.extend_from_slice(name.as_str().as_bytes());
            message.extend_from_slice(b": ");
            message.extend_from_slice(value.as_bytes());
            message.extend_from_slice(b"\r\n");
        }
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(answer.body());
    message.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_answers_are_recognised() {
        let own = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: Mon, 23 Nov 2026 10:00:00 GMT\r\n\r\n";
        assert_eq!(read_own_answer(own.as_bytes()), Some((400, Some("date: Mon, 23 Nov 2026 10:00:00 GMT"))));
        for other in [
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\nx-request-id: 1\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n\r\nx",
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n",
        ] {
            assert_eq!(read_own_answer(other.as_bytes()), None, "{other:?}");
        }
    }
}

//! Requests: RFC 9113 section 8, in the numbering of RFC 7540.

use super::Verdict::{ConnectionError, StreamError};
use super::{Case, Words, case, data, headers};
use crate::support::frames::{END_HEADERS, END_STREAM, PROTOCOL_ERROR, PUSH_PROMISE, block, frame};

pub(super) fn cases(words: &Words) -> Vec<Case> {
    let scheme = words.scheme;
    let (method, path, authority) = ((":method", "GET"), (":path", "/"), (":authority", "localhost"));
    let bad = |id, what, block: Vec<u8>| case(id, what, vec![headers(1, END_STREAM, &block)], StreamError(&[PROTOCOL_ERROR]));
    let post = words.post();
    let with_trailers = |id, what, trailers: &[(&str, &str)]| {
        let sent = vec![headers(1, 0, &post), data(1, 0, b"test"), headers(1, 0, &block(trailers))];
        case(id, what, sent, StreamError(&[PROTOCOL_ERROR]))
    };
    let too_short = words.with("POST", &[("content-length", "1")]);
    let contradicted = |id, what, pieces: Vec<Vec<u8>>| {
        let sent = [vec![headers(1, 0, &too_short)], pieces].concat();
        case(id, what, sent, StreamError(&[PROTOCOL_ERROR]))
    };
    let late = block(&[("x-test", "ok")]);
    let promise = [&3_u32.to_be_bytes()[..], &words.get()].concat();
    vec![
        with_trailers("http2/8.1/1", "trailers that do not end the stream", &[("x-test", "ok")]),
        bad("http2/8.1.2/1", "a name in upper case", words.with("GET", &[("X-TEST", "ok")])),
        bad("http2/8.1.2.1/1", "an unknown pseudo field", words.only(&[method, (":scheme", scheme), path, authority, (":test", "ok")])),
        bad("http2/8.1.2.1/2", "an answer's pseudo field", words.only(&[method, (":scheme", scheme), path, authority, (":status", "200")])),
        with_trailers("http2/8.1.2.1/3", "a pseudo field in trailers", &[(":method", "POST")]),
        bad("http2/8.1.2.1/4", "pseudo fields behind others", [late, words.get()].concat()),
        bad("http2/8.1.2.2/1", "a field of the connection", words.with("GET", &[("connection", "keep-alive")])),
        bad("http2/8.1.2.2/2", "TE that is not trailers", words.with("GET", &[("trailers", "test"), ("te", "trailers, deflate")])),
        bad("http2/8.1.2.3/1", "an empty path", words.only(&[method, (":scheme", scheme), (":path", ""), authority])),
        bad("http2/8.1.2.3/2", "no method", words.only(&[(":scheme", scheme), path, authority])),
        bad("http2/8.1.2.3/2b", "neither method nor scheme", words.only(&[path, authority])),
        bad("http2/8.1.2.3/3", "no scheme", words.only(&[method, path, authority])),
        bad("http2/8.1.2.3/4", "no path", words.only(&[method, (":scheme", scheme), authority])),
        bad("http2/8.1.2.3/5", "two methods", words.only(&[method, (":scheme", scheme), path, authority, method])),
        bad("http2/8.1.2.3/6", "two schemes", words.only(&[method, (":scheme", scheme), path, authority, (":scheme", scheme)])),
        bad(
            "http2/8.1.2.3/7b",
            "a second method that is a path",
            words.only(&[method, (":scheme", scheme), path, authority, (":method", "/")]),
        ),
        bad("http2/8.1.2.3/7", "two paths", words.only(&[method, (":scheme", scheme), path, authority, path])),
        contradicted("http2/8.1.2.6/1", "more DATA than announced", vec![data(1, END_STREAM, b"test")]),
        contradicted("http2/8.1.2.6/2", "more DATA than announced in pieces", vec![data(1, 0, b"test"), data(1, END_STREAM, b"test")]),
        case("http2/8.2/1", "PUSH_PROMISE", vec![frame(PUSH_PROMISE, END_HEADERS, 1, &promise)], ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

//! D02, D04, D06, D07, D09: HTTP/2 that lies, contradicts itself or floods, written frame by frame.
//!
//! Whether single frames are right is `conformance`'s question. A bad stream ends by 400, RST_STREAM or GOAWAY, and the upstream sees no
//! complete request of it.

use crate::support::eventually::{eventually, found};
use crate::support::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, REFUSED_STREAM, RST_STREAM, block,
    reset,
};
use crate::support::{Gateway, Http2, Key, Request, SOON};

/// What became of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// An answer whose status is the one byte of the static table for 200.
    Ok,
    /// Another answer, RST_STREAM, GOAWAY or the end of the connection.
    Refused,
}

/// What becomes of `stream`.
fn fate_of(frames: &mut Frames, stream: u32) -> Fate {
    while let Ok(frame) = frames.frame() {
        match frame.kind {
            HEADERS if frame.stream == stream => return if frame.payload.first() == Some(&0x88) { Fate::Ok } else { Fate::Refused },
            RST_STREAM if frame.stream == stream => return Fate::Refused,
            GOAWAY => return Fate::Refused,
            _ => {}
        }
    }
    Fate::Refused
}

/// The fields of a good request, with `changed` put in the place of those of the same name, and `more` behind.
fn fields<'a>(secret: &'a str, changed: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let good = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "localhost"), ("x-api-key", secret)];
    let mut fields: Vec<(&str, &str)> =
        good.map(|(name, value)| changed.iter().find(|(other, _)| *other == name).copied().unwrap_or((name, value))).to_vec();
    fields.retain(|(_, value)| *value != "(none)");
    fields.extend_from_slice(more);
    fields
}

#[test]
fn a_request_with_connection_fields_or_twisted_pseudo_fields_is_refused() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let secret = key.secret.as_str();
    let rows: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("transfer-encoding", fields(secret, &[], &[("transfer-encoding", "chunked")])),
        ("connection", fields(secret, &[], &[("connection", "close")])),
        ("keep-alive", fields(secret, &[], &[("keep-alive", "timeout=5")])),
        ("te: gzip", fields(secret, &[], &[("te", "gzip")])),
        ("an upper-case name", fields(secret, &[], &[("X-Upper", "1")])),
        ("a pseudo field behind others", fields(secret, &[(":path", "(none)")], &[(":path", "/x")])),
        ("two paths", fields(secret, &[], &[(":path", "/y")])),
        ("an empty path", fields(secret, &[(":path", "")], &[])),
        ("no path", fields(secret, &[(":path", "(none)")], &[])),
        ("no scheme", fields(secret, &[(":scheme", "(none)")], &[])),
        ("no method", fields(secret, &[(":method", "(none)")], &[])),
        ("a scheme that is an address", fields(secret, &[(":scheme", "http://evil/")], &[])),
        ("an unknown pseudo field", {
            let mut all = vec![(":x", "1")];
            all.extend(fields(secret, &[], &[]));
            all
        }),
        ("authority against host", fields(secret, &[], &[("host", "other")])),
        ("a line break in a value", fields(secret, &[], &[("x", "a\r\nb: c")])),
        ("a NUL in a value", fields(secret, &[], &[("x", "a\0b")])),
        ("a line break in the path", fields(secret, &[(":path", "/x\r\nHost: evil")], &[])),
        ("a space in the path", fields(secret, &[(":path", "/x HTTP/1.1")], &[])),
        ("a space in the method", fields(secret, &[(":method", "GET /y HTTP/1.1")], &[])),
        ("dot segments", fields(secret, &[(":path", "/a/../x")], &[])),
    ];
    let mut wrong = Vec::new();
    for (what, fields) in rows {
        let mut frames = Frames::connect(gateway.edge());
        frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        if fate_of(&mut frames, 1) != Fate::Refused || !gateway.upstream.targets().is_empty() {
            wrong.push((what, gateway.upstream.targets()));
            gateway.upstream.forget();
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    let mut frames = Frames::connect(gateway.edge());
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields(secret, &[], &[])));
    assert_eq!(fate_of(&mut frames, 1), Fate::Ok, "the good one is served");
}

#[test]
fn data_that_contradicts_content_length_is_never_a_complete_request() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for data in [&b"sixsix"[..], b"four"] {
        let mut frames = Frames::connect(gateway.edge());
        frames.send(HEADERS, END_HEADERS, 1, &block(&fields(&key.secret, &[], &[("content-length", "5")])));
        frames.send(DATA, END_STREAM, 1, data);
        assert_eq!(fate_of(&mut frames, 1), Fate::Refused);
    }
    assert_served(&gateway, &key);
    assert!(gateway.upstream.seen().iter().all(|seen| !seen.complete || seen.target == "/good"));
}

/// A good client is served on a connection of its own.
#[track_caller]
fn assert_served(gateway: &Gateway, key: &Key) {
    let http2 = Http2::connect(gateway.edge());
    assert_eq!(http2.exchange(&Request::get("/good").bearer(&key.secret)).map(|answer| answer.status), Ok(200));
}

#[test]
fn a_flood_of_resets_is_stopped_and_holds_up_nobody() {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = serde_json::json!(1_000_000));
    let key = gateway.key();
    let head = block(&fields(&key.secret, &[], &[]));
    let mut frames = Frames::connect(gateway.edge());
    let mut sent = 0;
    for turn in 0..10_000_u32 {
        let stream = turn * 2 + 1;
        if !(frames.send(HEADERS, END_HEADERS, stream, &head) && frames.send(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())) {
            break;
        }
        sent += 1;
    }
    assert_served(&gateway, &key);
    let is_stopped =
        std::iter::from_fn(|| frames.frame().ok()).any(|frame| frame.kind == GOAWAY && frame.code() == Some(ENHANCE_YOUR_CALM));
    assert!(is_stopped || sent < 10_000, "GOAWAY ENHANCE_YOUR_CALM, or cut");
    assert!(gateway.upstream.seen().len() < 1_000, "the upstream is spared: {}", gateway.upstream.seen().len());
}

#[test]
fn an_endless_header_block_is_stopped() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut frames = Frames::connect(gateway.edge());
    frames.send(HEADERS, END_STREAM, 1, &block(&fields(&key.secret, &[], &[])));
    let more = block(&[("x-more", "y".repeat(100).as_str()); 100]);
    let sent = (0..10_000).take_while(|_| frames.send(CONTINUATION, 0, 1, &more)).count();
    assert!(sent < 10_000, "the gateway stops reading what has no end");
    assert_served(&gateway, &key);
    assert_eq!(gateway.upstream.targets(), ["/good"]);
}

#[test]
fn a_refused_upload_leaves_the_other_streams_of_its_connection_alone() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let http2 = Http2::connect(gateway.edge());
    let (feed, running) = http2.start_fed(&Request::new("POST", "/running").bearer(&key.secret));
    feed.blocking_send(b"first".to_vec()).expect("the stream runs");
    let large = Request::post("/large", vec![b'x'; crate::support::BODY_BYTES_MAX + 1]).bearer(&key.secret);
    for request in [large.clone(), large.streamed()] {
        assert_eq!(http2.exchange(&request).map(|answer| answer.status), Ok(413));
    }
    feed.blocking_send(b" second".to_vec()).expect("the stream still runs");
    drop(feed);
    assert_eq!(running.answer().map(|answer| answer.status), Ok(200));
    let seen = gateway.upstream.last("/running");
    assert!(seen.complete && seen.body_bytes == 12);
}

#[test]
fn a_stream_that_is_reset_in_mid_body_by_whatever_code_is_never_complete_at_the_upstream() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    for code in [0, 1, 2, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, 0xdead] {
        let path = format!("/reset/{code}");
        let mut frames = Frames::connect(gateway.edge());
        let fields = fields(&key.secret, &[(":path", &path)], &[]);
        assert!(frames.send(HEADERS, END_HEADERS, 1, &block(&fields)) && frames.send(DATA, 0, 1, b"half"));
        let arrived = || gateway.upstream.seen().into_iter().find(|seen| seen.target == path && seen.body_bytes == 4);
        eventually!(SOON, arrived().is_some(), "the first half arrives");
        frames.raw(&reset(1, code)).expect("sent");
        eventually!(SOON, gateway.upstream.last(&path).gone_at.is_some(), "{code}: the upstream sees it break off");
        assert!(!gateway.upstream.last(&path).complete, "{code}: half a body is never taken for a whole one");
        let record = found(SOON, "a record", || gateway.activity(&editor).into_iter().find(|record| record["path"] == path.as_str()));
        assert_eq!(record["reason"], "client_abort", "{code}: {record}");
    }
}

//! Upstreams that speak HTTP/2 badly: what the client is told, what the record says, and whether the connection is used
//! again. Frames are written by hand (RFC 9113); each row is asked for by HTTP/1.1 and by HTTP/2, and after each the next
//! request must get its own answer.
//!
//! A fault of one stream ends that stream; a fault of the connection ends it, and the next request has another.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually::eventually;
use crate::support::faults::Gets::{Aborted, Broken, Timeout, Whole};
use crate::support::faults::Then::{Dropped, Either, Kept};
use crate::support::faults::{Bench, Fault, Gets, Then};
use crate::support::frames::{self, block, frame, reset, settings, window_update};
use crate::support::http2_upstream::{After, Http2Upstream, Written};
use crate::support::{Client, Gateway, Request, SOON};

type Row = (&'static str, Written, Gets, Then);

impl Bench<Http2Upstream> {
    fn start() -> Self {
        let upstream = Http2Upstream::start();
        let gateway = Gateway::with(|config| {
            config["upstreams"]["ledger"] = json!({
                "endpoints": [format!("h2c://{}", upstream.address())],
                "timeout": { "response_header": "700ms", "idle": "700ms" },
            });
        });
        Self::new(gateway, upstream)
    }

    fn check_all(&mut self, after: After, rows: &[Row]) {
        // One run tells all that fail.
        let failed: Vec<&str> = rows
            .iter()
            .filter(|row| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.check("GET", after, row))).is_err())
            .map(|row| row.0)
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    fn check(&mut self, method: &str, after: After, row: &Row) {
        let (what, written, gets, then) = *row;
        self.judge(
            Fault { what, method, gets, then },
            |bench, _| bench.upstream.answer_next(written, after),
            |bench, _| (bench.upstream.requests(), bench.upstream.connections()),
        );
    }
}

/// A whole head of these fields.
fn head(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(frames::HEADERS, frames::END_HEADERS, stream, &block(fields))
}

/// A head that is the whole answer.
fn only(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, stream, &block(fields))
}

fn ok(stream: u32) -> Vec<u8> {
    head(stream, &[(":status", "200")])
}

fn data(stream: u32, body: &[u8]) -> Vec<u8> {
    frame(frames::DATA, 0, stream, body)
}

fn last(stream: u32, body: &[u8]) -> Vec<u8> {
    frame(frames::DATA, frames::END_STREAM, stream, body)
}

fn go_away(last_stream: u32) -> Vec<u8> {
    frame(frames::GOAWAY, 0, 0, &[last_stream.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

fn with(stream: u32, name: &str, value: &str) -> Vec<u8> {
    [head(stream, &[(":status", "200"), (name, value)]), last(stream, b"ok")].concat()
}

#[test]
fn a_head_over_http_2_that_is_malformed_is_502_and_the_next_request_is_served() {
    let mut bench = Bench::start();
    let rows: &[Row] = &[
        ("no status", |stream| only(stream, &[("x", "y")]), Broken, Either),
        ("status abc", |stream| only(stream, &[(":status", "abc")]), Broken, Either),
        ("status 20", |stream| only(stream, &[(":status", "20")]), Broken, Either),
        ("status 2000", |stream| only(stream, &[(":status", "2000")]), Broken, Either),
        ("status 999", |stream| only(stream, &[(":status", "999")]), Broken, Either),
        ("two statuses", |stream| only(stream, &[(":status", "200"), (":status", "204")]), Broken, Either),
        ("a late status", |stream| only(stream, &[("x", "y"), (":status", "200")]), Broken, Either),
        ("an unknown pseudo-field", |stream| only(stream, &[(":status", "200"), (":x", "y")]), Broken, Either),
        ("a 101", |stream| only(stream, &[(":status", "101")]), Broken, Either),
        ("a name in capitals", |stream| with(stream, "X-Y", "z"), Broken, Either),
        ("a space in a name", |stream| with(stream, "x y", "z"), Broken, Either),
        ("a NUL in a value", |stream| with(stream, "x", "a\0b"), Broken, Either),
        ("a line's end in a value", |stream| with(stream, "x", "a\r\nb: c"), Broken, Either),
        ("chunks", |stream| with(stream, "transfer-encoding", "chunked"), Broken, Either),
        ("a connection field", |stream| with(stream, "connection", "close"), Broken, Either),
        ("keep-alive", |stream| with(stream, "keep-alive", "timeout=5"), Broken, Either),
        ("an upgrade", |stream| with(stream, "upgrade", "x"), Broken, Either),
        (
            "two lengths",
            |stream| [head(stream, &[(":status", "200"), ("content-length", "2"), ("content-length", "3")]), last(stream, b"ok")].concat(),
            Broken,
            Either,
        ),
        ("a list of lengths", |stream| with(stream, "content-length", "2, 2"), Broken, Either),
        ("a signed length", |stream| with(stream, "content-length", "+2"), Broken, Either),
        ("a negative length", |stream| with(stream, "content-length", "-2"), Broken, Either),
        ("a length that is none", |stream| with(stream, "content-length", "x"), Broken, Either),
        ("a reset", |stream| reset(stream, 2), Broken, Kept),
        ("a refusal", |stream| reset(stream, frames::REFUSED_STREAM), Broken, Kept),
        ("a cancellation", |stream| reset(stream, frames::CANCEL), Broken, Kept),
    ];
    bench.check_all(After::Kept, rows);
    assert_eq!(bench.rows, 2 * rows.len());
    bench.rest();
}

#[test]
fn a_pseudo_field_where_none_belongs_is_dropped_and_changes_nothing() {
    let mut bench = Bench::start();
    let rows: &[Row] = &[
        (
            "a target in an answer",
            |stream| only(stream, &[(":status", "200"), (":path", "/other"), (":method", "PUT")]),
            Whole(200, ""),
            Kept,
        ),
        (
            "a status among trailers",
            |stream| [ok(stream), data(stream, b"ok"), only(stream, &[(":status", "500"), ("x-checked", "yes")])].concat(),
            Whole(200, "ok"),
            Kept,
        ),
    ];
    bench.check_all(After::Kept, rows);
    assert_eq!(bench.rows, 2 * rows.len());
    bench.rest();
}

#[test]
fn a_fault_of_the_connection_is_502_and_the_next_request_has_another() {
    let mut bench = Bench::start();
    let rows: &[Row] = &[
        ("HTTP/1.1", |_| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno".to_vec(), Broken, Dropped),
        ("a body without a head", |stream| last(stream, b"ok"), Broken, Dropped),
        ("an answer on stream 0", |_| only(0, &[(":status", "200")]), Broken, Dropped),
        ("an answer that nobody asked for", |stream| only(stream + 2, &[(":status", "200")]), Broken, Dropped),
        ("an answer on a stream of its own", |_| only(2, &[(":status", "200")]), Broken, Dropped),
        (
            "a promise",
            |stream| {
                frame(
                    frames::PUSH_PROMISE,
                    frames::END_HEADERS,
                    stream,
                    &[&2_u32.to_be_bytes()[..], &block(&[(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a")])]
                        .concat(),
                )
            },
            Broken,
            Dropped,
        ),
        (
            "a block that cannot be decoded",
            |stream| frame(frames::HEADERS, frames::END_HEADERS, stream, &[0xff, 0xff, 0xff, 0xff, 0xff]),
            Broken,
            Dropped,
        ),
        (
            "a frame in the middle of a head",
            |stream| [frame(frames::HEADERS, 0, stream, &block(&[(":status", "200")])), data(stream, b"ok")].concat(),
            Broken,
            Dropped,
        ),
        (
            "a continuation of nothing",
            |stream| frame(frames::CONTINUATION, frames::END_HEADERS, stream, &block(&[(":status", "200")])),
            Broken,
            Dropped,
        ),
        ("a frame that is too long", |stream| data(stream, &[0; 17_000]), Broken, Dropped),
        ("a setting that is none", |_| settings(&[(frames::INITIAL_WINDOW_SIZE, u32::MAX)]), Broken, Dropped),
        ("settings of five bytes", |_| frame(frames::SETTINGS, 0, 0, &[0; 5]), Broken, Dropped),
        ("a PING of seven bytes", |_| frame(frames::PING, 0, 0, &[0; 7]), Broken, Dropped),
        ("a window that overflows", |_| window_update(0, 0x7fff_ffff), Broken, Dropped),
        ("a window of nothing", |_| window_update(0, 0), Broken, Dropped),
        ("padding that is longer than its frame", |stream| frame(frames::DATA, frames::PADDED, stream, &[200, 1]), Broken, Dropped),
        ("a GOAWAY that disowns it", |_| go_away(0), Broken, Dropped),
        (
            "a head without an end",
            |stream| {
                [
                    frame(frames::HEADERS, 0, stream, &block(&[(":status", "200")])),
                    frame(frames::CONTINUATION, 0, stream, &block(&[("x", &"y".repeat(100))])).repeat(20_000),
                ]
                .concat()
            },
            Broken,
            Dropped,
        ),
    ];
    bench.check_all(After::Kept, rows);
    let ended: &[Row] = &[
        ("nothing, and the end", |_| Vec::new(), Broken, Dropped),
        ("half a frame, and the end", |stream| ok(stream)[..7].to_vec(), Broken, Dropped),
        ("half a head, and the end", |stream| frame(frames::HEADERS, 0, stream, &block(&[(":status", "200")])), Broken, Dropped),
        ("a 1xx alone, and the end", |stream| head(stream, &[(":status", "103")]), Broken, Dropped),
        ("a GOAWAY, and the end", go_away, Broken, Dropped),
    ];
    bench.check_all(After::Closed, ended);
    assert_eq!(bench.rows, 2 * (rows.len() + ended.len()));
    bench.rest();
}

#[test]
fn a_body_over_http_2_that_breaks_off_or_goes_wrong_never_looks_complete() {
    let mut bench = Bench::start();
    let rows: &[Row] = &[
        ("a reset", |stream| [ok(stream), data(stream, b"half"), reset(stream, 2)].concat(), Aborted(200), Kept),
        ("a reset without an error", |stream| [ok(stream), data(stream, b"half"), reset(stream, 0)].concat(), Aborted(200), Kept),
        ("a cancellation", |stream| [ok(stream), data(stream, b"half"), reset(stream, frames::CANCEL)].concat(), Aborted(200), Kept),
        ("a head, and a reset without an error", |stream| [ok(stream), reset(stream, 0)].concat(), Aborted(200), Kept),
        (
            "less than its length",
            |stream| [head(stream, &[(":status", "200"), ("content-length", "100")]), last(stream, b"half")].concat(),
            Aborted(200),
            Either,
        ),
        (
            "more than its length",
            |stream| [head(stream, &[(":status", "200"), ("content-length", "2")]), last(stream, b"okay")].concat(),
            Aborted(200),
            Either,
        ),
        (
            "no body for a length",
            |stream| [head(stream, &[(":status", "200"), ("content-length", "100")]), last(stream, b"")].concat(),
            Aborted(200),
            Either,
        ),
        ("a second head", |stream| [ok(stream), data(stream, b"half"), ok(stream)].concat(), Aborted(200), Either),
        (
            "a frame that nobody knows in a head's place",
            |stream| [ok(stream), data(stream, b"half"), frame(frames::CONTINUATION, 0, stream, b"x")].concat(),
            Aborted(200),
            Dropped,
        ),
    ];
    bench.check_all(After::Kept, rows);
    let ended: &[Row] = &[
        ("half a body", |stream| [ok(stream), data(stream, b"half")].concat(), Aborted(200), Dropped),
        ("half a frame", |stream| [ok(stream), data(stream, b"half")[..11].to_vec()].concat(), Aborted(200), Dropped),
        ("a GOAWAY and half a body", |stream| [go_away(stream), ok(stream), data(stream, b"half")].concat(), Aborted(200), Dropped),
    ];
    bench.check_all(After::Closed, ended);
    assert_eq!(bench.rows, 2 * (rows.len() + ended.len()));
    bench.rest();
}

#[test]
fn an_answer_over_http_2_that_says_the_truth_oddly_is_passed_on() {
    let mut bench = Bench::start();
    let rows: &[Row] = &[
        (
            "1xx before it",
            |stream| [head(stream, &[(":status", "103")]).repeat(3), ok(stream), last(stream, b"ok")].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        (
            "PINGs and settings before it",
            |stream| [frame(frames::PING, 0, 0, &[0; 8]), settings(&[]), ok(stream), last(stream, b"ok")].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        (
            "a frame of an unknown kind",
            |stream| [frame(0xee, 0xff, stream, b"?"), ok(stream), last(stream, b"ok")].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        (
            "a reset without an error behind it",
            |stream| [ok(stream), last(stream, b"ok"), reset(stream, 0)].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        ("a GOAWAY before it", |stream| [go_away(stream), ok(stream), last(stream, b"ok")].concat(), Whole(200, "ok"), Dropped),
        ("a GOAWAY behind it", |stream| [ok(stream), last(stream, b"ok"), go_away(stream)].concat(), Whole(200, "ok"), Dropped),
        ("trailers", |stream| [ok(stream), data(stream, b"ok"), only(stream, &[("t", "u")])].concat(), Whole(200, "ok"), Kept),
        ("empty frames", |stream| [ok(stream), data(stream, b"").repeat(10), last(stream, b"ok")].concat(), Whole(200, "ok"), Kept),
        (
            "padding",
            |stream| [ok(stream), frame(frames::DATA, frames::PADDED | frames::END_STREAM, stream, b"\x02ok\0\0")].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        // Only `:status` means anything in an answer; the library drops the others, so nobody sees two answers.
        (
            "a path in an answer",
            |stream| [head(stream, &[(":status", "200"), (":path", "/")]), last(stream, b"ok")].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        (
            "a status among the trailers",
            |stream| [ok(stream), data(stream, b"ok"), only(stream, &[(":status", "204")])].concat(),
            Whole(200, "ok"),
            Kept,
        ),
        ("a 204", |stream| only(stream, &[(":status", "204")]), Whole(204, ""), Kept),
        ("a length for 304", |stream| only(stream, &[(":status", "304"), ("content-length", "5")]), Whole(304, ""), Kept),
    ];
    bench.check_all(After::Kept, rows);
    let for_head: Row = ("a length for HEAD", |stream| only(stream, &[(":status", "200"), ("content-length", "5")]), Whole(200, ""), Kept);
    bench.check("HEAD", After::Kept, &for_head);
    let trickled: Row = ("byte by byte", |stream| [ok(stream), last(stream, b"ok")].concat(), Whole(200, "ok"), Kept);
    bench.check("GET", After::Trickled, &trickled);
    assert_eq!(bench.rows, 2 * (rows.len() + 2));
    bench.rest();
}

#[test]
fn a_body_over_http_2_where_none_may_be_reaches_no_client() {
    let bench = Bench::start();
    let rows: [(&str, &str, Written); 3] = [
        ("HEAD", "200", |stream| [head(stream, &[(":status", "200")]), last(stream, b"hello")].concat()),
        ("GET", "204", |stream| [head(stream, &[(":status", "204")]), last(stream, b"hello")].concat()),
        ("GET", "304", |stream| [head(stream, &[(":status", "304")]), last(stream, b"hello")].concat()),
    ];
    for (method, status, written) in rows {
        bench.upstream.answer_next(written, After::Kept);
        let mut client = Client::connect(bench.gateway.edge());
        let request = Request::new(method, "/bodiless").bearer(&bench.key.secret);
        let answer = client.exchange(&request).expect("an answer");
        assert!(answer.status.to_string() == status || answer.status == 502, "{method} {status}: {}", answer.status);
        // Whatever was made of it, no byte of that body is taken for the next answer's.
        if let Ok(next) = client.exchange(&Request::get("/next").bearer(&bench.key.secret)) {
            assert_eq!((next.status, next.text().as_str()), (200, "ok"), "{method} {status}");
        }
        assert!(!client.recorded().windows(5).any(|window| window == b"hello"), "{method} {status}");
    }
    bench.rest();
}

#[test]
fn an_upstream_that_falls_silent_over_http_2_is_504_or_a_visible_break_and_its_other_streams_live() {
    let mut bench = Bench::start();
    let rows: &[Row] = &[
        ("silence", |_| Vec::new(), Timeout, Kept),
        ("silence behind a 1xx", |stream| head(stream, &[(":status", "103")]), Timeout, Kept),
        ("silence in a body", |stream| [ok(stream), data(stream, b"half")].concat(), Aborted(200), Kept),
    ];
    bench.check_all(After::Kept, rows);
    assert!(bench.upstream.resets() >= 6, "a request that nobody waits for is given back: {}", bench.upstream.resets());
    bench.rest();
}

#[test]
fn floods_by_an_http_2_upstream_end_its_connection_and_cost_others_nothing() {
    let bench = Bench::start();
    let floods: &[(&str, Written)] = &[
        ("PING", |_| frame(frames::PING, 0, 0, &[0; 8]).repeat(100_000)),
        ("SETTINGS", |_| settings(&[]).repeat(100_000)),
        ("empty DATA", |stream| [ok(stream), data(stream, b"").repeat(100_000)].concat()),
        ("1xx", |stream| head(stream, &[(":status", "103"), ("x", "y")]).repeat(20_000)),
        ("resets of nothing", |stream| reset(stream, 8).repeat(100_000)),
        ("unknown frames", |_| frame(0xee, 0, 0, &[0; 8]).repeat(100_000)),
    ];
    for (what, written) in floods {
        bench.upstream.answer_next(*written, After::Kept);
        let request = Request::get(&format!("/flood/{}", what.replace(' ', "-"))).bearer(&bench.key.secret);
        let mut client = Client::connect(bench.gateway.edge());
        client.wait_at_most(Duration::from_secs(20));
        match client.exchange(&request) {
            Ok(answer) if answer.status == 200 => assert!(!answer.complete, "{what}: it does not look complete"),
            Ok(answer) => assert!([502, 504].contains(&answer.status), "{what}: {}", answer.status),
            Err(broken) => panic!("{what}: {broken:?}"),
        }
        let next = bench.gateway.get(&bench.key, "/next");
        assert_eq!((next.status, next.text().as_str()), (200, "ok"), "after {what}");
    }
    let records = |record: &Value| record["path"].as_str().is_some_and(|path| path.starts_with("/flood/"));
    eventually!(SOON, bench.gateway.activity(&bench.editor).into_iter().filter(records).count() == floods.len(), "each is recorded once");
    bench.rest();
}

//! Upstreams that misbehave: what the client is told, what the record says, and whether the connection is used again.
//!
//! Each row is asked for by HTTP/1.1 and by HTTP/2, and after each the next request must get its own answer. Nothing that
//! can be read in two ways is passed on (RFC 9112 section 6.3), an answer that breaks off never looks complete, and a
//! connection that is in doubt carries no other request.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::faults::Gets::{Aborted, Broken, Timeout, Whole};
use crate::support::faults::Then::{Dropped, Kept};
use crate::support::faults::{Bench, Fault, Gets, Then};
use crate::support::{Client, End, Gateway, Reply, Request};

impl Bench<()> {
    fn start() -> Self {
        let slow = |config: &mut Value| config["upstreams"]["ledger"]["timeout"] = json!({ "response_header": "700ms", "idle": "700ms" });
        Self::new(Gateway::with(slow), ())
    }

    fn check(&mut self, method: &str, reply: impl Fn() -> Reply, gets: Gets, then: Then, what: &str) {
        self.judge(
            Fault { what, method, gets, then },
            |bench, target| bench.gateway.upstream.answer_once(target, reply()),
            |bench, target| (bench.gateway.upstream.count(target), bench.gateway.upstream.connections()),
        );
    }
}

fn head(fields: &str, rest: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{rest}").into_bytes()
}

#[test]
fn a_head_that_is_none_or_that_can_be_read_in_two_ways_is_502_and_ends_the_connection() {
    let mut bench = Bench::start();
    let many: String = (0..101).map(|number| format!("X-{number}: x\r\n")).collect();
    let length = "Content-Length: 2\r\n";
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"garbage\r\n\r\n".to_vec()),
        ("TLS for clear text", b"\x15\x03\x01\x00\x02\x02\x46".to_vec()),
        ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        ("HTTP/2 for HTTP/1.1", b"\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("HTTP/3", b"HTTP/3.0 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("HTTP/0.9", b"<html>hello</html>\r\n\r\n".to_vec()),
        ("status abc", b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status 20", b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status 2000", b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status 000", b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status 999", b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status -20", b"HTTP/1.1 -20 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("an unasked 101", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec()),
        ("both framings", head("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("both framings, the other way round", head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        ("two lengths", head("Content-Length: 2\r\nContent-Length: 3\r\n", "okk")),
        ("one length twice", head("Content-Length: 2\r\nContent-Length: 2\r\n", "ok")),
        ("a list of lengths", head("Content-Length: 2, 2\r\n", "ok")),
        ("a signed length", head("Content-Length: +2\r\n", "ok")),
        ("a negative length", head("Content-Length: -2\r\n", "ok")),
        ("a hexadecimal length", head("Content-Length: 0x2\r\n", "ok")),
        ("an empty length", head("Content-Length:\r\n", "ok")),
        ("more than any memory holds", head("Content-Length: 18446744073709551615\r\n", "ok")),
        ("a length over 64 bits", head("Content-Length: 18446744073709551618\r\n", "ok")),
        ("a coding besides chunked", head("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
        ("chunked twice", head("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
        ("two lines of codings", head("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n")),
        ("an unknown coding", head("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("chunks in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        ("a NUL in a value", head(&format!("X: a\0b\r\n{length}"), "ok")),
        ("a bare CR in a value", head(&format!("X: a\rb\r\n{length}"), "ok")),
        ("a space before a colon", head("Content-Length : 2\r\n", "ok")),
        ("a space in a name", head(&format!("X Y: a\r\n{length}"), "ok")),
        ("an empty name", head(&format!(": a\r\n{length}"), "ok")),
        ("no colon", head(&format!("nonsense\r\n{length}"), "ok")),
        ("a folded line", head(&format!("X: a\r\n b\r\n{length}"), "ok")),
        ("101 fields", head(&format!("{many}{length}"), "ok")),
        ("a head of a mebibyte", head(&format!("X: {}\r\n{length}", "a".repeat(1024 * 1024)), "ok")),
        ("a storm of 1xx", [b"HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000), head(length, "ok")].concat()),
        ("garbage behind a 1xx", b"HTTP/1.1 103 Early Hints\r\n\r\nnonsense\r\n\r\n".to_vec()),
        ("a body behind a 1xx", b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in &rows {
        bench.check("GET", || Reply::RawKept(bytes.clone()), Broken, Dropped, what);
    }
    for (what, bytes) in
        [("nothing", &b""[..]), ("half a head", b"HTTP/1.1 200 OK\r\nContent-Le"), ("a 1xx alone", b"HTTP/1.1 100 Continue\r\n\r\n")]
    {
        bench.check("GET", || Reply::Raw(bytes.to_vec()), Broken, Dropped, &format!("{what}, and the end"));
    }
    assert_eq!(bench.rows, 2 * (rows.len() + 3));
}

#[test]
fn an_answer_that_says_the_truth_oddly_is_passed_on_and_what_follows_it_never() {
    let mut bench = Bench::start();
    let early_hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(3);
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let rows: Vec<(&str, &str, Vec<u8>, Gets, Then)> = vec![
        ("GET", "no reason phrase", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok".to_vec(), Whole(200, "ok"), Kept),
        ("GET", "bytes above ASCII", head("X: \u{e9}\r\nContent-Length: 2\r\n", "ok"), Whole(200, "ok"), Kept),
        ("GET", "a status that nobody knows", b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok".to_vec(), Whole(299, "ok"), Kept),
        ("GET", "1xx before it", [early_hints, head("Content-Length: 2\r\n", "ok")].concat(), Whole(200, "ok"), Kept),
        ("GET", "chunks with an extension", head("Transfer-Encoding: chunked\r\n", "2;a=b\r\nok\r\n0\r\n\r\n"), Whole(200, "ok"), Kept),
        ("GET", "a close", head("Content-Length: 2\r\nConnection: close\r\n", "ok"), Whole(200, "ok"), Dropped),
        ("GET", "HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), Whole(200, "ok"), Dropped),
        ("GET", "more than its length", head("Content-Length: 2\r\n", "okay"), Whole(200, "ok"), Dropped),
        ("GET", "a second answer", head("Content-Length: 2\r\n", &format!("ok{poison}")), Whole(200, "ok"), Dropped),
        (
            "GET",
            "a second answer behind chunks",
            head("Transfer-Encoding: chunked\r\n", &format!("2\r\nok\r\n0\r\n\r\n{poison}")),
            Whole(200, "ok"),
            Dropped,
        ),
        ("GET", "a body for 204", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello".to_vec(), Whole(204, ""), Dropped),
        (
            "GET",
            "chunks for 204",
            b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
            Whole(204, ""),
            Dropped,
        ),
        ("GET", "bytes behind a 204", b"HTTP/1.1 204 No Content\r\n\r\nhello".to_vec(), Whole(204, ""), Dropped),
        ("GET", "a length for 304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_vec(), Whole(304, ""), Kept),
        ("GET", "a body for 304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello".to_vec(), Whole(304, ""), Dropped),
        (
            "GET",
            "chunks for 304",
            b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
            Whole(304, ""),
            Dropped,
        ),
        ("HEAD", "a length for HEAD", head("Content-Length: 5\r\n", ""), Whole(200, ""), Kept),
        ("HEAD", "a body for HEAD", head("Content-Length: 5\r\n", "hello"), Whole(200, ""), Dropped),
        ("HEAD", "an answer for HEAD's body", head("Content-Length: 5\r\n", poison), Whole(200, ""), Dropped),
    ];
    for (method, what, bytes, gets, then) in &rows {
        bench.check(method, || Reply::RawKept(bytes.clone()), *gets, *then, what);
    }
    bench.check(
        "GET",
        || Reply::Raw(head("", "until the end")),
        Whole(200, "until the end"),
        Dropped,
        "a body that ends with the connection",
    );
    let trickled = head("Content-Length: 2\r\nX: y\r\n", "ok");
    bench.check("GET", || Reply::Trickle(trickled.clone()), Whole(200, "ok"), Kept, "byte by byte");
    let trickled = head("Transfer-Encoding: chunked\r\n", "2\r\nok\r\n1;x\r\n!\r\n0\r\nT: t\r\n\r\n");
    bench.check("GET", || Reply::Trickle(trickled.clone()), Whole(200, "ok!"), Kept, "chunks byte by byte");
    assert_eq!(bench.rows, 2 * (rows.len() + 3));
}

#[test]
fn a_body_that_breaks_off_or_goes_wrong_never_looks_complete() {
    let mut bench = Bench::start();
    let chunked = |rest: &str| head("Transfer-Encoding: chunked\r\n", rest);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("less than its length", head("Content-Length: 100\r\n", "half")),
        ("no last chunk", chunked("4\r\nhalf\r\n")),
        ("half a chunk", chunked("8\r\nhalf")),
        ("half a chunk's line", chunked("4\r\nhalf\r\n0")),
        ("no end of the trailers", chunked("4\r\nhalf\r\n0\r\nT: t\r\n")),
    ];
    for (what, bytes) in &rows {
        bench.check("GET", || Reply::Raw(bytes.clone()), Aborted(200), Dropped, &format!("{what}, and the end"));
    }
    let wrong: Vec<(&str, Vec<u8>)> = vec![
        ("a chunk's length that is none", chunked("4\r\nhalf\r\nxyz\r\n")),
        ("a negative chunk", chunked("4\r\nhalf\r\n-1\r\n")),
        ("a signed chunk", chunked("4\r\nhalf\r\n+1\r\nx\r\n0\r\n\r\n")),
        ("a chunk with 0x", chunked("4\r\nhalf\r\n0x1\r\nx\r\n0\r\n\r\n")),
        ("a chunk over 64 bits", chunked("4\r\nhalf\r\n10000000000000000\r\nx")),
        ("a chunk that is longer than it says", chunked("4\r\nhalfway\r\n0\r\n\r\n")),
        ("a chunk that is shorter than it says", chunked("6\r\nhalf\r\n0\r\n\r\n")),
        ("lines that end with LF alone", chunked("4\nhalf\n0\n\n")),
        ("an extension without an end", chunked(&format!("4\r\nhalf\r\n1;{}", "a".repeat(64 * 1024)))),
        ("a trailer that is none", chunked("4\r\nhalf\r\n0\r\nnonsense\r\n\r\n")),
        ("trailers without an end", chunked(&format!("4\r\nhalf\r\n0\r\nT: {}", "a".repeat(1024 * 1024)))),
    ];
    for (what, bytes) in &wrong {
        bench.check("GET", || Reply::RawKept(bytes.clone()), Aborted(200), Dropped, what);
    }
    assert_eq!(bench.rows, 2 * (rows.len() + wrong.len()));
}

#[test]
fn an_upstream_that_falls_silent_is_504_or_a_visible_break_within_its_deadline() {
    let mut bench = Bench::start();
    for (what, reply, gets) in [
        ("silence", (|| Reply::Never) as fn() -> Reply, Timeout),
        ("silence in the head", || Reply::RawKept(b"HTTP/1.1 200 OK\r\nContent-Len".to_vec()), Timeout),
        ("silence behind a 1xx", || Reply::RawKept(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), Timeout),
        ("silence in the body", || Reply::RawKept(head("Content-Length: 100\r\n", "half")), Aborted(200)),
        ("silence in a chunk", || Reply::RawKept(head("Transfer-Encoding: chunked\r\n", "8\r\nhalf")), Aborted(200)),
        ("silence before the last chunk", || Reply::RawKept(head("Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n")), Aborted(200)),
    ] {
        bench.check("GET", reply, gets, Dropped, what);
    }
    let metric = bench.gateway.metric("assure_gateway_requests_in_flight");
    assert!(metric.abs() < f64::EPSILON, "nothing is left in flight: {metric}");
    assert!(bench.gateway.log().len() < 1024 * 1024, "an upstream's faults do not flood the log");
}

#[test]
fn an_upstream_that_answers_before_the_body_was_sent_is_heard_and_its_connection_is_not_used_again() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let refusal = b"HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\nearly";
    for bytes in [&refusal[..], b"HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n"] {
        gateway.upstream.answer(|head| if head.start.contains("/early") { Reply::Early(bytes.to_vec()) } else { Reply::ok() });
        let mut client = Client::connect(gateway.edge());
        client.wait_at_most(Duration::from_secs(20));
        let head = Request::new("POST", "/early").bearer(&key.secret).with("Content-Length", "1000000").head();
        client.send([&head[..], &[b'x'; 1_000]].concat()).expect("sent");
        let answer = client.answer().expect("an answer while the body is still to come");
        assert_eq!((answer.status, answer.text().as_str()), (409, "early"));
        assert_ne!(client.end(), End::Open, "what is left of the body is never taken for a request");
        assert_eq!(gateway.get(&key, "/next").expect(200).text(), "ok");
    }
    assert!(gateway.upstream.violations().is_empty());
}

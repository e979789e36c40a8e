//! One message, one reading: what could be framed, targeted or addressed in two ways is refused with 400 and a
//! closed connection, and the upstream never hears of it.
//!
//! The rows stand for classes of input, not for bytes. All rows of a table are tried before any is blamed.

use crate::support::rows::replace;
use crate::support::{Broken, Client, End, Gateway, Key, Request};

/// What must come of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// This status and a closed connection.
    Refused(&'static [u16]),
    /// This status, or the connection ends without one.
    RefusedOrCut(&'static [u16]),
    /// Refused, or forwarded once without the doubtful part.
    RefusedOrClean,
    /// Forwarded once.
    Served,
}

const BAD: Fate = Fate::Refused(&[400]);

/// A gateway, and what has gone wrong so far: every row is tried before any is blamed.
struct Bench {
    gateway: Gateway,
    key: Key,
    wrong: Vec<String>,
}

impl Bench {
    fn start() -> Self {
        let gateway = Gateway::start();
        let key = gateway.key();
        Self { gateway, key, wrong: Vec::new() }
    }

    /// Fills `{A}` with the credential and `{H}` with Host.
    fn fill(&self, row: &[u8]) -> Vec<u8> {
        let credential = format!("Authorization: Bearer {}\r\n", self.key.secret);
        replace(&replace(row, b"{A}", credential.as_bytes()), b"{H}", b"Host: localhost\r\n")
    }

    /// Sends a row on a connection of its own and notes whether what becomes of it is right.
    fn check(&mut self, row: &[u8], fate: Fate) {
        self.gateway.upstream.forget();
        let mut client = Client::connect(self.gateway.edge());
        // The gateway may close while we still send; what it answered counts.
        client.send(self.fill(row)).ok();
        let answer = client.answer();
        let status = answer.as_ref().map(|answer| answer.status);
        // A connection on which the next message might begin anywhere must not carry one.
        let is_closed = status != Ok(400) || client.end() != End::Open;
        let is_right = match (fate, &status) {
            (Fate::Refused(statuses) | Fate::RefusedOrCut(statuses), Ok(status)) => statuses.contains(status),
            (Fate::RefusedOrCut(_), Err(Broken::Ended | Broken::Reset)) => true,
            (Fate::RefusedOrClean, Ok(status)) => [200, 400, 501].contains(status),
            (Fate::Served, Ok(status)) => *status == 200,
            _ => false,
        };
        let forwarded = self.gateway.upstream.seen().iter().filter(|seen| seen.complete).count();
        let is_contained = forwarded == usize::from(status == Ok(200)) && self.gateway.upstream.violations().is_empty();
        if !(is_right && is_closed && is_contained) {
            let shown = row.escape_ascii().to_string();
            let shown = shown.get(..160).unwrap_or(&shown);
            self.wrong.push(format!("{shown}\n    {status:?} instead of {fate:?}, closed: {is_closed}, forwarded: {forwarded}"));
        }
    }

    /// Blames what was wrong, and shows that the gateway is unharmed.
    #[track_caller]
    fn finish(mut self) {
        assert!(self.wrong.is_empty(), "{} rows went wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
        assert_eq!(self.gateway.upstream.violations(), Vec::<String>::new());
        self.gateway.assert_alive(&self.key);
    }
}

#[test]
fn a_body_that_is_framed_twice_or_oddly_is_refused() {
    let mut bench = Bench::start();
    let rows: &[(&[u8], Fate)] = &[
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Fate::Refused(&[400, 501])),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", Fate::Refused(&[400, 501])),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", Fate::Refused(&[400, 501])),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding:\r\n\r\n0\r\n\r\n", Fate::Refused(&[400, 501])),
        (b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", BAD),
        (b"POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\n{H}{A}\r\n0\r\n\r\n", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Content-Length: 5, 6\r\n\r\nhello!", BAD),
        (b"GET / HTTP/1.0\r\n{H}{A}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", BAD),
        (b"POST / HTTP/1.1\r\n{H}{A}Content-Length: 5, 5\r\n\r\nhello", BAD),
    ];
    for (row, fate) in rows {
        bench.check(row, *fate);
    }
    bench.finish();
}

#[test]
fn a_length_together_with_a_coding_never_smuggles_a_request() {
    let mut bench = Bench::start();
    let smuggled = b"GET /smuggled HTTP/1.1\r\n{H}{A}\r\n";
    for row in [
        &b"POST / HTTP/1.1\r\n{H}{A}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\n{H}{A}Transfer-Encoding: chunked\r\nContent-Length: 200\r\n\r\n0\r\n\r\n",
    ] {
        bench.check(&[row, smuggled].concat(), BAD);
        assert_eq!(bench.gateway.upstream.count("/smuggled"), 0);
    }
    bench.finish();
}

#[test]
fn a_length_that_is_no_plain_number_is_refused() {
    let mut bench = Bench::start();
    let digits = "05".repeat(30);
    for length in ["+5", "-1", "0x5", "5 5", digits.as_str(), "", "18446744073709551616", "5;", "\u{b2}"] {
        bench.check(format!("POST / HTTP/1.1\r\n{{H}}{{A}}Content-Length: {length}\r\n\r\nhello").as_bytes(), BAD);
    }
    bench.check(b"POST / HTTP/1.1\r\n{H}{A}Content-Length: 9007199254740993\r\n\r\nhello", Fate::Refused(&[413]));
    bench.finish();
}

#[test]
fn a_field_line_that_could_be_read_in_two_ways_is_refused() {
    let mut bench = Bench::start();
    let rows: &[&[u8]] = &[
        b"X: a\r\n Transfer-Encoding: chunked\r\n",
        b"X: a\r\n\tb\r\n",
        b"X: a\rb\r\n",
        b"X: a\nY: b\r\n",
        b"X: a\0b\r\n",
        b"X\0Y: a\r\n",
        b"X: \x01\r\n",
        b"X: \x7f\r\n",
        b"Header\x85: v\r\n",
        b"He@der\x7f: v\r\n",
        b": v\r\n",
        b"abc\r\n",
        b"X : v\r\n",
        b"X Y: v\r\n",
    ];
    for line in rows {
        bench.check(&[b"GET / HTTP/1.1\r\n{H}{A}", *line, b"\r\n"].concat(), BAD);
    }
    bench.finish();
}

#[test]
fn a_lookalike_of_a_framing_field_never_reaches_the_upstream() {
    let mut bench = Bench::start();
    for name in [
        "Transfer_Encoding: chunked",
        "Content_Length: 5",
        "Transfer---Encoding: chunked",
        "Content--Length: 5",
        "Transfer.Encoding: chunked",
    ] {
        bench.gateway.upstream.forget();
        bench.check(format!("GET /x HTTP/1.1\r\n{{H}}{{A}}{name}\r\n\r\n").as_bytes(), Fate::RefusedOrClean);
        for seen in bench.gateway.upstream.seen() {
            for (name, _) in &seen.fields.0 {
                let plain = squeezed(name);
                assert!(
                    !(["transfer-encoding", "content-length"].contains(&plain.as_str()) && name.to_ascii_lowercase() != plain),
                    "{name} arrived"
                );
            }
        }
    }
    bench.finish();
}

/// The name as a careless upstream may read it: other characters become hyphens, runs of them one.
fn squeezed(name: &str) -> String {
    let mapped: String =
        name.to_ascii_lowercase().chars().map(|character| if character.is_ascii_alphanumeric() { character } else { '-' }).collect();
    mapped.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

#[test]
fn a_chunk_that_is_not_plain_hex_is_refused_and_never_complete_at_the_upstream() {
    let mut bench = Bench::start();
    let long_extension = "a".repeat(64 * 1024);
    let extended = format!("1;{long_extension}\r\nx\r\n0\r\n\r\n");
    let many: String = (0..100).map(|_| format!("1;{}\r\nx\r\n", "b".repeat(200))).collect::<String>() + "0\r\n\r\n";
    let sizes = ["0x5", "5_", "-5", "+5", " 5", "FFFFFFFFFFFFFFFFF", "", "g"];
    let bodies = sizes.map(|size| format!("{size}\r\nhello\r\n0\r\n\r\n")).into_iter().chain([
        extended,
        many,
        "5\r\nhelloX\r\n0\r\n\r\n".into(),
        "5\nhello\r\n0\r\n\r\n".into(),
    ]);
    for body in bodies {
        bench.check(
            format!("POST / HTTP/1.1\r\n{{H}}{{A}}Transfer-Encoding: chunked\r\n\r\n{body}").as_bytes(),
            Fate::RefusedOrCut(&[400, 408, 413, 502]),
        );
    }
    bench.finish();
}

#[test]
fn a_first_line_that_could_be_read_in_two_ways_is_refused() {
    let mut bench = Bench::start();
    let rows: &[(&[u8], Fate)] = &[
        (b"GET  / HTTP/1.1\r\n{H}{A}\r\n", BAD),
        (b"GET /  HTTP/1.1\r\n{H}{A}\r\n", BAD),
        (b"GET\t/ HTTP/1.1\r\n{H}{A}\r\n", BAD),
        (b"GET / HTTP/1.1 \r\n{H}{A}\r\n", BAD),
        (b"GET / HTTP/1.2\r\n{H}{A}\r\n", Fate::RefusedOrCut(&[400, 505])),
        (b"GET / HTTP/9.9\r\n{H}{A}\r\n", Fate::RefusedOrCut(&[400, 505])),
        (b"GET / http/1.1\r\n{H}{A}\r\n", Fate::RefusedOrCut(&[400, 505])),
        (b"GET /\r\n", Fate::RefusedOrCut(&[400, 505])),
        (b"G\0T / HTTP/1.1\r\n{H}{A}\r\n", BAD),
        (b"\r\nGET /ok HTTP/1.1\r\n{H}{A}\r\n", Fate::Served),
    ];
    for (row, fate) in rows {
        bench.check(row, *fate);
    }
    bench.finish();
}

#[test]
fn a_target_that_could_be_read_in_two_ways_is_refused() {
    let mut bench = Bench::start();
    let targets = [
        "ok",
        "//ok",
        "/a//b",
        "/\\ok",
        "/ok#f",
        "/a/../b",
        "/a/./b",
        "/..",
        "/%2e%2e/b",
        "/a/.%2E/b",
        "/a/%2e/b",
        "/a/..;/b",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a%00b",
        "/a%0ab",
        "/%",
        "/%zz",
        "/a%1",
        "/a%c0%afb",
        "/a\u{0}b",
        "/a\u{1}b",
        "http://other/ok",
        "http://user@localhost/ok",
        "ftp://localhost/ok",
        "*",
    ];
    for target in targets {
        bench.check(format!("GET {target} HTTP/1.1\r\n{{H}}{{A}}\r\n").as_bytes(), BAD);
    }
    bench.finish();
}

#[test]
fn an_absolute_target_with_the_same_host_is_forwarded_in_origin_form() {
    let mut bench = Bench::start();
    bench.check(b"GET http://localhost/ok?x HTTP/1.1\r\n{H}{A}\r\n", Fate::Served);
    let targets = bench.gateway.upstream.targets();
    assert_eq!(targets.first().map(String::as_str), Some("/ok?x"), "{targets:?}");
    bench.finish();
}

#[test]
fn a_host_that_is_missing_repeated_or_no_host_is_refused() {
    let mut bench = Bench::start();
    let with_hosts = |lines: &str| format!("GET / HTTP/1.1\r\n{lines}{{A}}\r\n").into_bytes();
    bench.check(&with_hosts(""), BAD);
    bench.check(&with_hosts("Host: localhost\r\nHost: localhost\r\n"), BAD);
    bench.check(&with_hosts("Host: localhost\r\nHost: other\r\n"), BAD);
    for host in
        ["a,b", "a b", "user@localhost", "localhost/x", "", "localhost\u{0}.evil", "[::1", "localhost:99999", "localhost:x", "a?b", "a#b"]
    {
        bench.check(&with_hosts(&format!("Host: {host}\r\n")), BAD);
    }
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:80", "[::1]:443", "reports.example.com"] {
        bench.check(&with_hosts(&format!("Host: {host}\r\n")), Fate::Served);
    }
    bench.finish();
}

#[test]
fn trace_track_and_connect_are_405_and_options_star_harms_nothing() {
    let mut bench = Bench::start();
    bench.check(b"TRACE / HTTP/1.1\r\n{H}{A}\r\n", Fate::Refused(&[405]));
    bench.check(b"TRACK / HTTP/1.1\r\n{H}{A}\r\n", Fate::Refused(&[405]));
    bench.check(b"CONNECT localhost:22 HTTP/1.1\r\n{H}{A}\r\n", Fate::Refused(&[405, 400]));
    bench.check(b"CONNECT / HTTP/1.1\r\n{H}{A}\r\n", Fate::RefusedOrCut(&[405, 400]));
    let mut client = Client::connect(bench.gateway.edge());
    client.send(bench.fill(b"OPTIONS * HTTP/1.1\r\n{H}{A}\r\n")).expect("sent");
    let status = client.answer().expect("an answer").status;
    assert!([200, 204, 400, 404].contains(&status), "{status}");
    bench.finish();
}

#[test]
fn a_target_or_a_head_that_is_too_long_is_refused_before_it_fills_memory() {
    let mut bench = Bench::start();
    let long = |count: usize| format!("GET /{} HTTP/1.1\r\n{{H}}{{A}}\r\n", "a".repeat(count)).into_bytes();
    bench.check(&long(8_192), Fate::Refused(&[414, 431]));
    bench.check(&long(60_000), Fate::RefusedOrCut(&[414, 431]));
    bench.check(&format!("GET /{}", "a".repeat(1_000_000)).into_bytes(), Fate::RefusedOrCut(&[414, 431, 400]));
    let many: String = (0..101).map(|place| format!("X-{place}: v\r\n")).collect();
    bench.check(format!("GET / HTTP/1.1\r\n{{H}}{{A}}{many}\r\n").as_bytes(), Fate::Refused(&[431]));
    let wide: String = (0..100).map(|place| format!("X-{place}: {}\r\n", "v".repeat(8_000))).collect();
    bench.check(format!("GET / HTTP/1.1\r\n{{H}}{{A}}{wide}\r\n").as_bytes(), Fate::RefusedOrCut(&[431]));
    bench.check(format!("GET / HTTP/1.1\r\n{{H}}{{A}}X: {}\r\n\r\n", "v".repeat(70_000)).as_bytes(), Fate::RefusedOrCut(&[431]));
    bench.check(format!("GET /{} HTTP/1.1\r\n{{H}}{{A}}\r\n", "a".repeat(4_000)).as_bytes(), Fate::Served);
    bench.finish();
}

#[test]
fn pipelined_requests_are_answered_in_order_and_none_after_a_close() {
    let bench = Bench::start();
    let mut client = Client::connect(bench.gateway.edge());
    client.send(bench.fill(b"GET /1 HTTP/1.1\r\n{H}{A}\r\nGET /2 HTTP/1.1\r\n{H}{A}\r\nGET /3 HTTP/1.1\r\n{H}{A}Connection: close\r\n\r\nGET /4 HTTP/1.1\r\n{H}{A}\r\n")).expect("sent");
    for _ in 0..3 {
        client.answer().expect("an answer").expect(200);
    }
    assert_ne!(client.end(), End::Open);
    assert_eq!(bench.gateway.upstream.targets(), ["/1", "/2", "/3"]);
}

#[test]
fn a_slow_or_silent_client_is_cut_and_holds_up_nobody() {
    let mut bench = Bench::start();
    let mut silent = Client::connect(bench.gateway.edge());
    let mut slow = Client::connect(bench.gateway.edge());
    slow.send(b"GET / HTTP/1.1\r\nHost: local").expect("sent");
    bench.gateway.assert_alive(&bench.key.clone());
    for client in [&mut silent, &mut slow] {
        assert_ne!(client.end_within(std::time::Duration::from_secs(40)), End::Open, "headers have a deadline");
    }
}

#[test]
fn what_is_refused_before_there_is_a_key_has_its_own_code() {
    let gateway = Gateway::start();
    let fields = |count: usize| (0..count).map(|number| format!("x-{number}: v\r\n")).collect::<String>();
    let rows = [
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405, "method_not_allowed"),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(8_192)), 414, "target_too_long"),
        (format!("GET /{}", "a".repeat(100_000)), 414, "target_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(101)), 431, "headers_too_large"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(40_000)), 431, "headers_too_large"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("hello\r\n\r\n".to_owned(), 400, "malformed_request"),
    ];
    for (bytes, status, code) in rows {
        let mut client = Client::connect(gateway.edge());
        client.send(&bytes).expect("sent");
        client.answer().expect("an answer").expect_problem(status, code);
        assert_ne!(client.end(), End::Open, "{code}");
    }
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn pipelined_requests_are_all_served_wherever_the_pieces_are_cut() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let note = "abc#".repeat(40);
    let requests: Vec<u8> =
        (0..200).flat_map(|turn| Request::get(&format!("/p/{turn}")).bearer(&key.secret).with("X-Note", &note).head()).collect();
    let mut client = Client::connect(gateway.edge());
    client.send(&requests).expect("sent");
    for turn in 0..200 {
        let answer = client.answer().unwrap_or_else(|broken| panic!("request {turn}: {broken:?}"));
        answer.expect(200);
    }
    // A head whose first half came with the request before it.
    let [first, second] = ["/one", "/two"].map(|target| Request::get(target).bearer(&key.secret).head());
    let cut = second.len() / 2;
    client.send([first, second[..cut].to_vec()].concat()).expect("sent");
    client.answer().expect("an answer").expect(200);
    client.send(&second[cut..]).expect("sent");
    client.answer().expect("an answer").expect(200);
}

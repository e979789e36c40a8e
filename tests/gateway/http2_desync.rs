//! Request smuggling over HTTP/2, and other requests that HTTP/1 could not carry or would read otherwise.
//!
//! `H2.CL` and `H2.TE`: framing fields that contradict the frames. The rest puts into names, values and pseudo fields what
//! would end a line, a word or a field once written as HTTP/1. Each row is one request on a connection of its own.

use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PROTOCOL_ERROR, RST_STREAM, block, status};
use crate::support::{Gateway, Key};

/// What must come of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// The upstream has seen no head.
    Status(u16),
    /// RST_STREAM or GOAWAY, and PROTOCOL_ERROR; the upstream has seen nothing complete.
    Broken,
    /// 400 or as `Broken`: the gateway finds the head wrong, and the library that the data contradict it. Either may be first.
    Refused,
    Forwarded,
}

const MALFORMED: Outcome = Outcome::Status(400);
const BROKEN: Outcome = Outcome::Broken;

type Fields<'a> = &'a [(&'a str, &'a str)];

struct Bench {
    gateway: Gateway,
    key: Key,
    wrong: Vec<String>,
    rows: usize,
}

impl Bench {
    fn start() -> Self {
        let gateway = Gateway::start();
        let key = gateway.key();
        Self { gateway, key, wrong: Vec::new(), rows: 0 }
    }

    /// A good request in which `changed` stands in the place of fields of the same name, and `more` behind; then `data`.
    fn check(&mut self, class: &str, changed: Fields<'_>, more: Fields<'_>, data: Option<&[u8]>, outcome: Outcome) {
        let good =
            [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "localhost"), ("x-api-key", &self.key.secret)];
        let kept = good.map(|(name, value)| changed.iter().find(|(other, _)| *other == name).copied().unwrap_or((name, value)));
        let fields: Vec<(&str, &str)> = kept.into_iter().filter(|(_, value)| *value != NONE).chain(more.iter().copied()).collect();
        self.send(class, &block(&fields), data, outcome);
        self.rows += 1;
    }

    fn send(&mut self, class: &str, block: &[u8], data: Option<&[u8]>, outcome: Outcome) {
        self.gateway.upstream.forget();
        let mut frames = Frames::connect(self.gateway.edge());
        let end = if data.is_none() { END_STREAM } else { 0 };
        frames.send(HEADERS, END_HEADERS | end, 1, block);
        if let Some(data) = data {
            frames.send(DATA, END_STREAM, 1, data);
        }
        let told = loop {
            match frames.frame() {
                Ok(frame) if frame.kind == HEADERS && frame.stream == 1 => {
                    break status(&frame.payload).map_or(format!("{:02x?}", frame.payload), |status| status.to_string());
                }
                Ok(frame) if frame.kind == RST_STREAM || frame.kind == GOAWAY => {
                    break format!("error {:?}", frame.code());
                }
                Ok(_) => {}
                Err(broken) => break format!("{broken:?}"),
            }
        };
        let expected = match outcome {
            Outcome::Status(status) => status.to_string(),
            Outcome::Refused if told == "400" => told.clone(),
            Outcome::Broken | Outcome::Refused => format!("error {:?}", Some(PROTOCOL_ERROR)),
            Outcome::Forwarded => "200".into(),
        };
        // What was cut off before may arrive late.
        let name = format!("/row-{}", self.rows);
        let seen = self.gateway.upstream.seen();
        let seen: Vec<_> = seen.iter().filter(|seen| !seen.target.starts_with("/row-") || seen.target == name).collect();
        let (heads, whole) = (seen.len(), seen.iter().filter(|seen| seen.complete).count());
        let is_contained = match outcome {
            Outcome::Status(_) => heads == 0,
            Outcome::Broken | Outcome::Refused => whole == 0,
            Outcome::Forwarded => (heads, whole) == (1, 1),
        };
        let violations = self.gateway.upstream.violations();
        if told != expected || !is_contained || !violations.is_empty() {
            self.wrong
                .push(format!("[{class}] {}\n    {outcome:?}, but {told}; {whole} of {heads} whole, {violations:?}", block.escape_ascii()));
        }
    }

    #[track_caller]
    fn finish(mut self) {
        assert!(self.wrong.is_empty(), "{} of {} rows went wrong:\n{}", self.wrong.len(), self.rows, self.wrong.join("\n"));
        self.gateway.assert_alive(&self.key);
        println!("{} rows", self.rows);
    }
}

const NONE: &str = "(none)";

#[test]
fn a_length_or_a_coding_that_contradicts_the_frames_is_refused() {
    let mut bench = Bench::start();
    for (length, data) in [("5", Some(&b"six..."[..])), ("5", Some(b"four")), ("0", Some(b"x")), ("5", Some(b"")), ("5", None), ("1", None)]
    {
        bench.check("H2.CL, RFC 9113 8.1.1", &[], &[("content-length", length)], data, BROKEN);
    }
    for length in ["+5", "-5", "5,5", "5, 5", "0x5", "5 5", "five", "18446744073709551621", "5\u{0}", "5;"] {
        bench.check("H2.CL, RFC 9110 8.6", &[], &[("content-length", length)], Some(b"hello"), BROKEN);
    }
    bench.check("H2.CL, RFC 9110 8.6", &[], &[("content-length", "")], Some(b"hello"), Outcome::Refused);
    bench.check("H2.CL", &[], &[("content-length", "5"), ("content-length", "5")], Some(b"hello"), MALFORMED);
    bench.check("H2.CL", &[], &[("content-length", "5"), ("content-length", "0")], Some(b"hello"), BROKEN);
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", ""),
        ("connection", "close"),
        ("connection", "transfer-encoding"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, chunked"),
    ] {
        bench.check("H2.TE, RFC 9113 8.2.2", &[], &[(name, value)], Some(b"0\r\n\r\n"), BROKEN);
    }
    for name in ["transfer_encoding", "content_length", "transfer.encoding", "transfer--encoding", "content~length"] {
        bench.check("look-alikes", &[], &[(name, "chunked")], Some(b"0\r\n\r\n"), MALFORMED);
    }
    for (more, data) in [
        (&[("content-length", "5")][..], Some(&b"hello"[..])),
        (&[], Some(b"hello")),
        (&[], None),
        (&[("content-length", "0")], None),
        (&[("te", "trailers")], None),
    ] {
        bench.check("RFC 9113 8.1", &[], more, data, Outcome::Forwarded);
    }
    bench.finish();
}

#[test]
fn what_would_break_a_line_of_http_1_is_refused_in_names_values_and_pseudo_fields() {
    let mut bench = Bench::start();
    let injected = ["a\r\nx: y", "a\nx: y", "a\rx: y", "a\0b", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", "\x01", "\x7f"];
    for text in injected {
        bench.check("H2 CRLF in a value", &[], &[("x", text)], None, BROKEN);
        let path = format!("/x{text}");
        bench.check("H2 CRLF in :path", &[(":path", &path)], &[], None, BROKEN);
        let authority = format!("localhost{text}");
        bench.check("H2 CRLF in :authority", &[(":authority", &authority)], &[], None, BROKEN);
        let method = format!("GET{text}");
        bench.check("H2 CRLF in :method", &[(":method", &method)], &[], None, BROKEN);
        let scheme = format!("http{text}");
        bench.check("H2 CRLF in :scheme", &[(":scheme", &scheme)], &[], None, BROKEN);
        bench.check("H2 CRLF in a name", &[], &[(text, "v")], None, BROKEN);
    }
    for name in ["X-Upper", "x y", "x:", "x: y", "x\ty", "", "x\u{e9}", "x/y", ":x", "x(y)"] {
        bench.check("H2 name, RFC 9113 8.2.1", &[], &[(name, "v")], None, BROKEN);
    }
    for value in [" v", "v ", "\tv", "v\t", " ", "\t"] {
        bench.check("H2 white space around a value, RFC 9113 8.2.1", &[], &[("x", value)], None, MALFORMED);
        bench.check(
            "H2 white space around a value, RFC 9113 8.2.1",
            &[(":authority", NONE)],
            &[("host", "localhost"), ("cookie", value)],
            None,
            MALFORMED,
        );
    }
    for name in ["x\"y", "\"", "\"content-length"] {
        bench.check("H2 name that is no token of HTTP/1", &[], &[(name, "v")], None, MALFORMED);
    }
    for method in ["GET /smuggled HTTP/1.1", "GE T", "", "GET\t", "\"GET\"", "GET:", "G(T"] {
        bench.check("H2 request line by :method", &[(":method", method)], &[], None, BROKEN);
    }
    for (method, status) in [("get", 405), ("TRACE", 405), ("TRACK", 405), ("CONNECT", 405)] {
        let changed: Fields<'_> =
            if method == "CONNECT" { &[(":method", "CONNECT"), (":scheme", NONE), (":path", NONE)] } else { &[(":method", method)] };
        bench.check("method, RFC 9110 9", changed, &[], None, Outcome::Status(status));
    }
    bench.finish();
}

#[test]
fn a_target_or_a_host_that_http_1_would_read_otherwise_is_refused() {
    let mut bench = Bench::start();
    for path in ["/x HTTP/1.1", "/x y", "/x\ty", "x", "x/y", "http:x"] {
        bench.check("H2 request line by :path", &[(":path", path)], &[], None, BROKEN);
    }
    for path in ["//x", "/a//b", "/a/../b", "/%2e%2e/b", "/a%2fb", "/a%5cb", "/a\\b", "/a%00b", "/%zz", "/a%c0%afb", "*", "?x"] {
        bench.check("target, RFC 3986 5.2.4 and 6.2.2", &[(":path", path)], &[], None, MALFORMED);
    }
    for path in ["", NONE] {
        bench.check("target, RFC 9113 8.3.1", &[(":path", path)], &[], None, BROKEN);
    }
    for authority in ["user@localhost", "a,b", "localhost:x", "localhost:99999", ".localhost", "local..host"] {
        bench.check("authority", &[(":authority", authority)], &[], None, MALFORMED);
    }
    for authority in ["a b", "localhost\\x", "localhost/x", "[::1", ""] {
        bench.check("authority, RFC 9113 8.3.1", &[(":authority", authority)], &[], None, BROKEN);
    }
    bench.check("authority against Host, RFC 9113 8.3.1", &[], &[("host", "other")], None, MALFORMED);
    bench.check("two Hosts", &[], &[("host", "localhost"), ("host", "localhost")], None, MALFORMED);
    bench.check("no authority and no Host", &[(":authority", NONE)], &[], None, MALFORMED);
    bench.check("Host that is no name", &[(":authority", NONE)], &[("host", "a,b")], None, MALFORMED);
    for scheme in ["http://evil/", "ftp", "", "https://localhost/x?", "x"] {
        bench.check("scheme", &[(":scheme", scheme)], &[], None, if ["ftp", "x", ""].contains(&scheme) { MALFORMED } else { BROKEN });
    }
    bench.check("two paths, RFC 9113 8.3", &[], &[(":path", "/y")], None, BROKEN);
    bench.check("an unknown pseudo field, RFC 9113 8.3", &[(":scheme", "http")], &[(":x", "y")], None, BROKEN);
    for (changed, more) in [
        (&[(":authority", "LOCALHOST:80")][..], &[][..]),
        (&[], &[("host", "localhost")]),
        (&[(":authority", NONE)], &[("host", "localhost")]),
        (&[(":path", "/x?a=b&c")], &[]),
    ] {
        bench.check("RFC 9113 8.3.1", changed, more, None, Outcome::Forwarded);
    }
    bench.finish();
}

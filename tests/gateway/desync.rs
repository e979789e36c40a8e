//! Request smuggling over HTTP/1.1: the classes that public scanners and guards know, each as rows with an exact outcome.
//!
//! Where two programs could disagree about where a request ends, the gateway refuses and closes, and the upstream has not
//! seen a head (see `rows` for how each row is tried). Names in the first column: CL is Content-Length, TE is
//! Transfer-Encoding; `CL.TE` is read by the first as the former and by the second as the latter.

use crate::support::rows::{Bench, MALFORMED, Outcome};

const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\n{H}{A}\r\n";

/// A POST with these field lines, a body, and another request behind.
fn post(lines: &[u8], body: &[u8]) -> Vec<u8> {
    [b"POST /x HTTP/1.1\r\n{H}{A}", lines, b"\r\n", body].concat()
}

fn line(name: &[u8], value: &[u8]) -> Vec<u8> {
    [name, b": ", value, b"\r\n"].concat()
}

#[test]
fn a_coding_that_is_spelt_or_placed_oddly_is_refused() {
    let mut bench = Bench::start();
    let body = [b"0\r\n\r\n", SMUGGLED].concat();
    for value in [
        &b"xchunked"[..],
        b"chunkedx",
        b"chunk",
        b"chun ked",
        b"chunked\x0b",
        b"\x0bchunked",
        b"\x0cchunked",
        b"chunked\0",
        b"\0chunked",
        b"chunked\x11",
        b"\x01chunked",
        b"\xa0chunked",
        b"chunked\xa0",
        b"\x85chunked",
        b"\xffchunked",
        b"\"chunked\"",
        b"'chunked'",
        b"[chunked]",
        b"chunked;q=1",
        b"chunked;",
        b"chunked,",
        b",chunked",
        b", chunked",
        b"chunked,chunked",
        b"chunked, chunked",
        b"chunked, identity",
        b"identity, chunked",
        b"identity",
        b"gzip, chunked",
        b"chunked, gzip",
        b"gzip",
        b"cow",
        b"",
        b"\tchun\tked",
        // White space by RFC 9110 section 5.5, and another coding to Node's lenient parser.
        b"chunked\t",
        b"\tchunked",
        b"chunked\r chunked",
        b"chunked:",
        b"c\xc4\xb1hunked",
    ] {
        bench.check("TE.TE, RFC 9112 6.1", &post(&line(b"Transfer-Encoding", value), &body), MALFORMED);
    }
    for lines in [
        &b"Transfer-Encoding : chunked\r\n"[..],
        b"Transfer-Encoding\t: chunked\r\n",
        b"Transfer-Encoding\x0b: chunked\r\n",
        b"Transfer-Encoding\0: chunked\r\n",
        b"\0Transfer-Encoding: chunked\r\n",
        b" Transfer-Encoding: chunked\r\n",
        b"X: y\r\n Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer-Encoding: chunked\r\n \r\n",
        b"Transfer-\r\nEncoding: chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n",
        b"X: y\nTransfer-Encoding: chunked\r\n",
        b"X: y\n\rTransfer-Encoding: chunked\r\n",
        b"X: y\r\rTransfer-Encoding: chunked\r\n",
        b"X: y\x0bTransfer-Encoding: chunked\r\n",
        b"X: y\x00\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\ntransfer-encoding: cow\r\n",
        b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Transfer.Encoding: chunked\r\n",
        b"Transfer--Encoding: chunked\r\n",
        b"Transfer~Encoding: chunked\r\n",
        b"Transfer Encoding: chunked\r\n",
        b"Transfer-Encoding chunked\r\n",
        b"Transfer-Encoding= chunked\r\n",
        b"Transfer\xe2\x80\x90Encoding: chunked\r\n",
    ] {
        bench.check("TE obfuscated", &post(lines, &body), MALFORMED);
    }
    // What is right stays right.
    for value in [&b"chunked"[..], b"CHUNKED", b"chunKed", b" chunked "] {
        bench.check("RFC 9112 7", &post(&line(b"Transfer-encoding", value), b"5\r\nhello\r\n0\r\n\r\n"), Outcome::Forwarded);
    }
    bench.finish();
}

#[test]
fn a_length_that_is_odd_or_comes_twice_is_refused() {
    let mut bench = Bench::start();
    let body = [&b"hello"[..], SMUGGLED].concat();
    for value in [
        &b"+5"[..],
        b"-5",
        b"-0",
        b"0x5",
        b"5x",
        b"5 5",
        b"5,5",
        b"5, 5",
        b"5,6",
        b"5.0",
        b"1000.1000",
        b"5e0",
        b"5;",
        b"\"5\"",
        b"'5'",
        b"5\x11",
        b"5\0",
        b"\x0b5",
        b"5\x0c",
        b"\xa05",
        b"5\xa0",
        b"\xd9\xa5",
        b"5_0",
        b"",
        b"five",
        b"NaN",
        b"18446744073709551616",
        b"18446744073709551621",
        b"99999999999999999999999999",
        b"(5)",
        b"5\t5",
        b"000000000000000000005",
    ] {
        bench.check("CL, RFC 9110 8.6", &post(&line(b"Content-Length", value), &body), MALFORMED);
    }
    for lines in [
        &b"Content-Length: 5\r\nContent-Length: 5\r\n"[..],
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 1000\r\nContent-Length: 100\r\n",
        b"Content-Length: 5\r\ncontent-length: 0\r\n",
        b"Content-Length: 5\r\nContent-Length:\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length : 5\r\nContent-Length: 0\r\n",
        b" Content-Length: 5\r\nContent-Length: 0\r\n",
        b"Content-Length\t: 5\r\n",
        b"Content-Length\r: 5\r\n",
        b"Content-Length\x00: 5\r\n",
        b"Content_Length: 5\r\n",
        b"Content--Length: 5\r\n",
        b"Content.Length: 5\r\nContent-Length: 0\r\n",
        b"Content Length: 5\r\n",
        b"Content-Length\r\n",
        b"Content-Length 5\r\n",
        b"X: y\rContent-Length: 5\r\n",
        b"X: y\nContent-Length: 5\r\n",
        b"Content-Length:\r\n 5\r\n",
        b"Content-Length: 5\r\n \r\n",
    ] {
        bench.check("CL.CL", &post(lines, &body), MALFORMED);
    }
    bench.check("CL, too large", &post(b"Content-Length: 9007199254740993\r\n", b"hello"), Outcome::Refused(413, "request_too_large"));
    for value in [&b"5"[..], b"05", b" 5 "] {
        bench.check("RFC 9110 8.6", &post(&line(b"content-length", value), b"hello"), Outcome::Forwarded);
    }
    bench.finish();
}

#[test]
fn a_length_beside_a_coding_is_refused_in_every_order_and_spelling() {
    let mut bench = Bench::start();
    for lines in [
        &b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"[..],
        b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        b"content-length: 6\r\nX: y\r\ntransfer-encoding: chunked\r\n",
        b"CONTENT-LENGTH:6\r\nTRANSFER-ENCODING:chunked\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding:\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 200\r\n",
        b"Transfer-Encoding : chunked\r\nContent-Length: 6\r\n",
        b"Transfer_Encoding: chunked\r\nContent-Length: 6\r\n",
        b"Content_Length: 6\r\nTransfer-Encoding: chunked\r\n",
        b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        b"Connection: Content-Length\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        b"Content-Length: 6\r\nX: y\rTransfer-Encoding: chunked\r\n",
        b"Content-Length: 6\r\nX: y\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 6\r\nTransfer-Encoding:\n chunked\r\n",
    ] {
        bench.check("CL.TE and TE.CL, RFC 9112 6.3", &post(lines, &[b"0\r\n\r\nG", SMUGGLED].concat()), MALFORMED);
    }
    bench.finish();
}

#[test]
fn a_first_line_or_a_line_end_that_is_odd_is_refused() {
    let mut bench = Bench::start();
    let rest = [&b"{H}{A}\r\n"[..], SMUGGLED].concat();
    let rows: &[(&str, &[u8], Outcome)] = &[
        ("HTTP/0.9", b"GET /x\r\n", MALFORMED),
        ("HTTP/0.9", b"GET /x HTTP/0.9\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.2\r\n", MALFORMED),
        ("version", b"GET /x HTTP/2.0\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.10\r\n", MALFORMED),
        ("version", b"GET /x HTTP/01.1\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.\r\n", MALFORMED),
        ("version", b"GET /x HTTP/11\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1,1\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.1\0\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.1 \r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.1\t\r\n", MALFORMED),
        ("version", b"GET /x HTTP/1.1 HTTP/1.1\r\n", MALFORMED),
        ("version, a stranger's", b"GET /x http/1.1\r\n", Outcome::Cut),
        ("version, a stranger's", b"GET /x ICY/1.1\r\n", Outcome::Cut),
        ("version, a stranger's", b"INVALID CONNECTION PREFACE\r\n", Outcome::Cut),
        ("RFC 9112 3", b"GET  /x HTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b"GET /x  HTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b"GET\t/x HTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b"GET /x\tHTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b"GET /x\x0bHTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b" GET /x HTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b"GET /a /b HTTP/1.1\r\n", MALFORMED),
        ("RFC 9112 3", b"GET HTTP/1.1\r\n", MALFORMED),
        ("method", b"G\0ET /x HTTP/1.1\r\n", MALFORMED),
        ("method", b"GET\x01 /x HTTP/1.1\r\n", MALFORMED),
        ("method", b"bad_method\x01 /x HTTP/1.1\r\n", MALFORMED),
        ("method", b"GE(T /x HTTP/1.1\r\n", MALFORMED),
        ("method", b"GET: /x HTTP/1.1\r\n", MALFORMED),
        ("method", b"\"GET\" /x HTTP/1.1\r\n", MALFORMED),
        ("method", b"\xffGET /x HTTP/1.1\r\n", MALFORMED),
        ("method, disguised", b"get /x HTTP/1.1\r\n", Outcome::Refused(405, "method_not_allowed")),
        ("method, disguised", b"Post /x HTTP/1.1\r\n", Outcome::Refused(405, "method_not_allowed")),
        ("bare LF, RFC 9112 2.2", b"GET /x HTTP/1.1\n", MALFORMED),
        ("bare LF, RFC 9112 2.2", b"\nGET /x HTTP/1.1\r\n", MALFORMED),
        ("bare LF, RFC 9112 2.2", b"\r\n\nGET /x HTTP/1.1\r\n", MALFORMED),
        ("bare LF, RFC 9112 2.2", b"GET /x HTTP/1.1\r\nX: y\n", MALFORMED),
        ("bare LF, RFC 9112 2.2", b"GET /x HTTP/1.1\r\nX: y\n\r\n", MALFORMED),
        ("bare LF, RFC 9112 2.2", b"GET /x HTTP/1.1\r\nX: y\n\nGET /smuggled HTTP/1.1\n", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"GET /x HTTP/1.1\r", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"GET /x HTTP/1.1\rX: y\r\n", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"\rGET /x HTTP/1.1\r\n", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"GET /x HTTP/1.1\r\r\n", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"GET /x HTTP/1.1\r\nX: a\rb\r\n", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"GET /x HTTP/1.1\r\nX: a\r\r\n", MALFORMED),
        ("bare CR, RFC 9112 2.2", b"GET /x HTTP/1.1\r\nX: a\r\n\r\r\n", MALFORMED),
        ("obs-fold, RFC 9112 5.2", b"GET /x HTTP/1.1\r\nX: a\r\n b\r\n", MALFORMED),
        ("obs-fold, RFC 9112 5.2", b"GET /x HTTP/1.1\r\nX: a\r\n\tb\r\n", MALFORMED),
        ("obs-fold, RFC 9112 2.2", b"GET /x HTTP/1.1\r\n X: a\r\n", MALFORMED),
        ("junk before", b"\0GET /x HTTP/1.1\r\n", MALFORMED),
        ("junk before", b"\xef\xbb\xbfGET /x HTTP/1.1\r\n", MALFORMED),
        ("junk before", b"\t\r\nGET /x HTTP/1.1\r\n", MALFORMED),
        ("blank lines, RFC 9112 2.2", b"\r\nGET /x HTTP/1.1\r\nConnection: close\r\n", Outcome::Forwarded),
        ("blank lines, RFC 9112 2.2", b"\r\n\r\nGET /x HTTP/1.1\r\nConnection: close\r\n", Outcome::Forwarded),
    ];
    for (class, first, outcome) in rows {
        bench.check(class, &[first, &rest[..]].concat(), *outcome);
    }
    bench.finish();
}

#[test]
fn a_field_name_or_value_with_bytes_that_others_read_differently_is_refused() {
    let mut bench = Bench::start();
    for name in [
        &b"X\0"[..],
        b"\0X",
        b"X\x01",
        b"X\x0b",
        b"X\x0c",
        b"X\x7f",
        b"X\x80",
        b"X\xa0",
        b"X\xff",
        b"X ",
        b"X\t",
        b" X",
        b"X Y",
        b"",
        b"X(",
        b"X/Y",
        b"X\"Y",
        b"X@Y",
        b"X[0]",
        b"X{0}",
        b"X,Y",
        b"X;Y",
        b"X=Y",
        b"X\\Y",
        b"X?Y",
        b"<X>",
    ] {
        bench.check("field name, RFC 9110 5.1", &[b"GET /x HTTP/1.1\r\n{H}{A}", name, b": v\r\n\r\n"].concat(), MALFORMED);
    }
    for value in [&b"\0"[..], b"a\0b", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"a\rb", b"a\nb", b"a\0", b"\0a", b"\x1b[31m"]
    {
        bench.check("field value, RFC 9110 5.5", &[b"GET /x HTTP/1.1\r\n{H}{A}X: ", value, b"\r\n\r\n"].concat(), MALFORMED);
    }
    for value in [&b"\xff"[..], b"a\tb", b"", b"\"", b"\xc3\xa9"] {
        bench.check("field value, RFC 9110 5.5", &[b"GET /x HTTP/1.1\r\n{H}{A}X: ", value, b"\r\n\r\n"].concat(), Outcome::Forwarded);
    }
    bench.check("no colon, RFC 9112 5", b"GET /x HTTP/1.1\r\n{H}{A}abc\r\n\r\n", MALFORMED);
    bench.finish();
}

#[test]
fn chunks_and_trailers_that_are_odd_are_never_a_complete_request() {
    let mut bench = Bench::start();
    let broken = Outcome::Broken(400, "malformed_request");
    let chunked = |body: &[u8]| post(b"Transfer-Encoding: chunked\r\n", &[body, SMUGGLED].concat());
    for size in [
        &b"0x5"[..],
        b"+5",
        b"-5",
        b" 5",
        b"5 ",
        b"5\t",
        b"5 ;x",
        b"5\0",
        b"5\x0b",
        b"5,5",
        b"5_",
        b"5.0",
        b"g",
        b"",
        b"\r\n5",
        b"5\n",
        b"5\r",
        b"FFFFFFFFFFFFFFFFF",
        b"00000000000000000000005",
        b"\xd9\xa5",
        b"5;a\0",
        b"5;a\nb",
        b"5;a\rb",
        b"5;a\x01",
        b"5;\x7f",
    ] {
        bench.check("chunk size, RFC 9112 7.1", &chunked(&[size, b"\r\nhello\r\n0\r\n\r\n"].concat()), broken);
    }
    for body in [
        &b"5\nhello\r\n0\r\n\r\n"[..],
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"6\r\nhello\r\n0\r\n\r\n",
        b"5\r\n\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\n\r\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\r\n\r\r\n",
        b"5\r\nhello\r\n-0\r\n\r\n",
    ] {
        bench.check("chunk ends, RFC 9112 7.1", &chunked(body), broken);
    }
    for trailer in [
        &b"X\r\n"[..],
        b"X: a\nY: b\r\n",
        b"X: a\rY: b\r\n",
        b"X\0: a\r\n",
        b"X: \0\r\n",
        b" X: a\r\n",
        b"X : a\r\n",
        b"X: a\r\n b\r\n",
        b": a\r\n",
    ] {
        bench.check("trailer, RFC 9112 7.1.2", &chunked(&[b"5\r\nhello\r\n0\r\n", trailer, b"\r\n"].concat()), broken);
    }
    for body in [&b"5\r\nhello\r\n0\r\n\r\n"[..], b"5;x=y\r\nhello\r\n0;z\r\n\r\n", b"A\r\n0123456789\r\n000\r\nX: y\r\n\r\n", b"0\r\n\r\n"]
    {
        bench.check("RFC 9112 7.1", &post(b"Transfer-Encoding: chunked\r\n", body), Outcome::Forwarded);
    }
    bench.finish();
}

#[test]
fn an_old_version_a_body_where_none_is_usual_and_hop_fields_smuggle_nothing() {
    let mut bench = Bench::start();
    let request = |[first, lines, body]: [&[u8]; 3]| [first, b"\r\n{H}{A}", lines, b"\r\n", body].concat();
    let rows: &[(&str, [&[u8]; 3], Outcome)] = &[
        ("HTTP/1.0 with TE, RFC 9112 6.1", [b"POST /x HTTP/1.0", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"], MALFORMED),
        (
            "HTTP/1.0 with TE, RFC 9112 6.1",
            [b"GET /x HTTP/1.0", b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"],
            MALFORMED,
        ),
        ("HTTP/1.0", [b"GET /x HTTP/1.0", b"", b""], Outcome::Forwarded),
        ("HTTP/1.0 with CL", [b"POST /x HTTP/1.0", b"Content-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        ("CL.0, GET with a body", [b"GET /x HTTP/1.1", b"Content-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        ("CL.0, GET with a body", [b"GET /x HTTP/1.1", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"], Outcome::Forwarded),
        ("CL.0, HEAD with a body", [b"HEAD /x HTTP/1.1", b"Content-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        ("CL.0, DELETE with a body", [b"DELETE /x HTTP/1.1", b"Content-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        ("CL.0, OPTIONS with a body", [b"OPTIONS /x HTTP/1.1", b"Content-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        ("0.CL, Expect", [b"POST /x HTTP/1.1", b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        ("0.CL, Expect", [b"GET /x HTTP/1.1", b"Expect: y 100-continue\r\nContent-Length: 5\r\n", b"hello"], Outcome::Forwarded),
        (
            "Connection, RFC 9110 7.6.1",
            [b"POST /x HTTP/1.1", b"Connection: Content-Length\r\nContent-Length: 5\r\n", b"hello"],
            Outcome::Forwarded,
        ),
        (
            "Connection, RFC 9110 7.6.1",
            [b"POST /x HTTP/1.1", b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"],
            Outcome::Forwarded,
        ),
        (
            "Connection, RFC 9110 7.6.1",
            [b"GET /x HTTP/1.1", b"Connection: Host, Authorization, X-Request-Id, X-Forwarded-For\r\n", b""],
            Outcome::Forwarded,
        ),
        (
            "Upgrade: h2c, RFC 9113 3.1",
            [b"GET /x HTTP/1.1", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", b""],
            Outcome::Forwarded,
        ),
        (
            "Upgrade with TE",
            [
                b"POST /x HTTP/1.1",
                b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
                b"0\r\n\r\n",
            ],
            MALFORMED,
        ),
        ("TRACE, RFC 9110 9.3.8", [b"TRACE /x HTTP/1.1", b"", b""], Outcome::Refused(405, "method_not_allowed")),
        ("TRACK", [b"TRACK /x HTTP/1.1", b"", b""], Outcome::Refused(405, "method_not_allowed")),
        ("CONNECT, RFC 9110 9.3.6", [b"CONNECT localhost:22 HTTP/1.1", b"", b""], Outcome::Refused(405, "method_not_allowed")),
        ("PRI, RFC 9113 3.4", [b"PRI /x HTTP/1.1", b"", b""], Outcome::Forwarded),
    ];
    for (class, pieces, outcome) in rows {
        bench.check(class, &request(*pieces), *outcome);
    }
    bench.finish();
}

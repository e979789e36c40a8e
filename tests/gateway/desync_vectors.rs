//! Published lists of smuggling requests, each request a row with an exact outcome (see `rows`).
//!
//! The lists are facts of others: the test vectors of aws/http-desync-guardian (`tests/*.yaml`: its tiers Severe and
//! Ambiguous, in its order and under its names), the mutations of defparam/smuggler (`configs/*.py`), the permutations and
//! chunk scans of PortSwigger/http-request-smuggler. They send what each list sends behind a Host and a good key, with a
//! request behind it that nobody may take for one. What such a list calls ambiguous is refused here too, but for GET
//! and HEAD with a body that is framed in one way: RFC 9110 section 9.3.1 allows those, and they are forwarded framed.

use crate::support::rows::{Bench, MALFORMED, Outcome};

const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\n{H}{A}\r\n";
/// What a reader of chunks takes for an empty body.
const NO_CHUNKS: &[u8] = b"0\r\n\r\n";

/// Name, request line and field lines.
type Vector = (&'static str, &'static [u8], &'static [u8]);

const POST: &[u8] = b"POST /x HTTP/1.1";

/// The fields that the guard's requests from life carry, of which none matters.
const FROM_LIFE: &[u8] = b"User-Agent:  Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:68.0) Gecko/20100101 Firefox/68.0\r\n\
    Accept:  text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language:  en-US,en;q=0.5\r\n\
    Content-Type:  application/x-www-form-urlencoded\r\nUpgrade-Insecure-Requests:  1\r\n";

/// `severe.yaml`, `bad-header-characters.yaml`, `edge-cases.yaml`, `uri-specific-test-cases.yaml`.
const SEVERE: [Vector; 45] = [
    ("several Content-Length", POST, b"Content-Length: 1000\r\nContent-Length: 100\r\n"),
    ("Content-Length: 1000,1000", POST, b"Content-Length: 1000,1000\r\n"),
    ("Content-Length: 1000 1000", POST, b"Content-Length: 1000 1000\r\n"),
    ("Content-Length: 1000.1000", POST, b"Content-Length: 1000.1000\r\n"),
    ("Content-Length beyond 64 bits", POST, b"Content-Length: 18446744073709551616\r\n"),
    ("xchunked", POST, b"Transfer-Encoding: xchunked\r\n"),
    ("chunked\\x11", POST, b"Transfer-Encoding: chunked\x11\r\n"),
    ("1000\\x11", POST, b"Content-Length: 1000\x11\r\n"),
    ("two Transfer-Encoding: chunked", POST, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    ("chunked,chunked", POST, b"Transfer-Encoding: chunked,chunked\r\n"),
    (
        "a value of several lines",
        POST,
        b"Content-Length: 1000\r\nSome-Custom-Header: Multi-line values\r\n are \n deprecated. E.g. it may contain \n Transfer-Encoding: chunked\r\n\r\n",
    ),
    (
        "a value of several lines, LF only",
        POST,
        b"Content-Length: 1000\r\nSome-Custom-Header: Multi-line values\n are \n deprecated. E.g. it may contain \n Transfer-Encoding: chunked\r\n",
    ),
    ("a missed CR", POST, b"Content-Length: 1000\r\nSome-Custom-Header: Parser error\r must not contain\r symbols.\r\n"),
    ("a missed LF", POST, b"Content-Length: 1000\r\nSome-Custom-Header: Parser error\n must not contain\n symbols.\r\n"),
    ("CR in a name", POST, b"Some-Bad-Header\r: 1000\r\n"),
    ("LF in a name", POST, b"Some-Bad-Header\n: Content-Length:1000\r\n Transfer-Encoding: chunked\r\nContent-Length: 100\r\n"),
    ("NUL in a name", POST, b"Some-Bad-Header\0: 1000\r\n"),
    ("CR in a value", POST, b"Some-Bad-Header: value\rcontent-length: 1000\r\nContent-Length: 100\r\n"),
    ("LF in a value", POST, b"Some-Bad-Header: value\n content-length: 1000\r\nContent-Length: 100\r\n"),
    ("NUL in a value", POST, b"Some-Bad-Header: value\0content-length: 1000\r\nContent-Length: 100\r\n"),
    ("NUL before a name", POST, b"\0Some-Bad-Header: value\r\nContent-Length: 100\r\n"),
    ("NUL before a value", POST, b"Some-Bad-Header: \0value\r\nContent-Length: 100\r\n"),
    ("NUL behind a value", POST, b"Some-Bad-Header: value\0\r\nContent-Length: 100\r\n"),
    ("Content-Length[white-space] and Content-Length", POST, b"Content-Length : 100\r\nContent-Length: 1000\r\n"),
    ("[white-space]Content-Length and Content-Length", POST, b" Content-Length: 100\r\nContent-Length: 1000\r\n"),
    ("Transfer-Encoding[white-space] and Transfer-Encoding", POST, b"Transfer-Encoding : chunked\r\nTransfer-Encoding: chunked\r\n"),
    ("a bad method", b"bad_method\x01 /x HTTP/1.1", b""),
    ("\\x01chunked", POST, b"Transfer-Encoding: \x01chunked\r\n"),
    ("chunked\\x01", POST, b"Transfer-Encoding: chunked\x01\r\n"),
    ("\\xa0chunked", POST, b"Transfer-Encoding: \xa0chunked\r\n"),
    ("chunked\\xa0", POST, b"Transfer-Encoding: chunked\xa0\r\n"),
    ("\\x011000", POST, b"Content-Length: \x011000\r\n"),
    ("1000\\x01", POST, b"Content-Length: 1000\x01\r\n"),
    ("1000\\xa0", POST, b"Content-Length: 1000\xa0\r\n"),
    ("another field does not hide a bad Content-Length", POST, b"Some-Custom-Header: Non-Rfc Compliant\x12\r\nContent-Length: 1000\x11\r\n"),
    ("another field does not hide a bad Transfer-Encoding", POST, b"Some-Custom-Header: Non-Rfc Compliant\x11\r\nTransfer-Encoding: chunked\x7f\r\n"),
    (
        "an odd byte does not hide a bad one",
        b"PUT /x HTTP/1.1",
        b"Some-Custom-Header\t: \x11\x12 But then \0 which is bad\r\nTransfer-Encoding\t: chunked\r\n",
    ),
    (
        "a bad field does not hide other bad fields",
        POST,
        b"Some-Custom-Header: \x11Rfc Compliant\r\nTransfer-Encoding: chunked\x80\r\nContent-Length: $9000\r\n",
    ),
    (
        "a bad target does not hide bad fields",
        b"POST /x\t/baz HTTP/1.1",
        b"Some-Custom-Header: \x11Rfc Compliant\r\nTransfer-Encoding: chunked\x80\r\nContent-Length: $9000\r\n",
    ),
    ("a space in the target makes a bad version", b"GET /x HTTP/1.1 HTTP/1.1", b""),
    ("CR in the target", b"GET /x\rHTTP/1.1 HTTP/1.1", b""),
    ("LF in the target", b"GET /x\nHTTP/1.1 HTTP/1.1", b""),
    ("a request in the target", b"GET /x\tHTTP/1.1\r\nHost:localhost\r\n\r\nGET\t/endpoint_b\t HTTP/1.1", b""),
    ("NUL in the target", b"GET /x\0HTTP/1.1 HTTP/1.1", b""),
    ("NUL before the target", b"GET \0/x HTTP/1.1", b""),
];

/// `real-life-test-cases.yaml`: what stands behind [`FROM_LIFE`].
const SEVERE_FROM_LIFE: [Vector; 13] = [
    ("two identical fields", POST, b"Transfer-Encoding:  chunked\r\nTransfer-Encoding:  chunked\r\nContent-Length:  4\r\n"),
    ("NUL in fields", POST, b"Bad-Accept-Encoding:  gzip, \0deflate\r\nTransfer-Encoding:  chunked\r\nContent-Length:  4\r\n"),
    ("CRLF", POST, b"Content-Length:  4\r\n\0Transfer-Encoding:  chunked\r\n"),
    ("size issue", POST, b"Content-Length:  4\r\nX-test:  x\rTransfer-Encoding: chunked\r\n"),
    ("\\rTransfer-Encoding", POST, b"\rTransfer-Encoding:  chunked\r\nContent-Length:  4\r\n"),
    ("\\rTransfer-Encoding without Content-Length", POST, b"\rTransfer-Encoding:  chunked\r\n"),
    ("\\rContent-Length without Transfer-Encoding", POST, b"\rContent-Length:  1000\r\nContent-Length:  100\r\n"),
    ("chunk", POST, b"Transfer-Encoding:  chunk\r\nContent-Length:  4\r\n"),
    ("xchunked and a length", POST, b"Transfer-Encoding:  xchunked\r\nContent-Length:  4\r\n"),
    ("chunked,chunked and a length", POST, b"Transfer-Encoding:  chunked,chunked\r\nContent-Length:  4\r\n"),
    ("chunks and a cow", POST, b"Transfer-Encoding:  chunked\r\nTransfer-Encoding:  cow\r\nContent-Length:  6\r\n"),
    ("\\0Transfer-Encoding", POST, b"Content-Length:  6\r\n\0Transfer-Encoding:  chunked\r\n"),
    ("Transfer-Encoding: \\0chunked", POST, b"Transfer-Encoding:  \0chunked\r\nContent-Length:  6\r\n"),
];

/// All that the guard's files call ambiguous, but for GET and HEAD with a body.
const AMBIGUOUS: [Vector; 54] = [
    ("Transfer-Encoding and a space", POST, b"Transfer-Encoding : chunked\r\n"),
    ("Transfer-Encoding and a tab", POST, b"Transfer-Encoding\t: chunked\r\n"),
    ("\\x01Transfer-Encoding", POST, b"\x01Transfer-Encoding: chunked\r\n"),
    ("\\x01\\x01Transfer-Encoding", POST, b"\x01\x01Transfer-Encoding: chunked\r\n"),
    ("\\x01\\x01Content-Length", POST, b"\x01\x01Content-Length: 1\r\n"),
    ("\\x01Content-Length", POST, b"\x01Content-Length: 1\r\n"),
    ("a space in the middle", POST, b"Transfer- Encoding: chunked\r\n"),
    ("Transfer_Encoding", POST, b"Transfer_Encoding: chunked\r\n"),
    ("Content_Length", POST, b"Content_Length: 1000\r\n"),
    ("the same Content-Length twice", b"PUT /x HTTP/1.1", b"Content-Length: 1000\r\nContent-Length: 1000\r\n"),
    ("chunked and a length", POST, b"Transfer-Encoding: chunked\r\nContent-Length: 100\r\n"),
    ("gzip and a length", POST, b"Transfer-Encoding: gzip\r\nContent-Length: 100\r\n"),
    ("Transfer-Encoding[white-space] and Content-Length", POST, b"Transfer-Encoding : chunked\r\nContent-Length: 1000\r\n"),
    ("[white-space]Transfer-Encoding and Content-Length", POST, b" Transfer-Encoding: chunked\r\nContent-Length: 1000\r\n"),
    ("white space before both", POST, b" Transfer-Encoding: chunked\r\n Content-Length: 1000\r\n"),
    ("white space behind both", POST, b"Transfer-Encoding : chunked\r\nContent-Length : 1000\r\n"),
    ("Transfer-Encoding and a character", POST, b"Transfer-Encoding x: chunked\r\n"),
    ("transfer-encoding and characters", POST, b"transfer-encoding XY: chunked\r\n"),
    ("Transfer-Encoding and a control byte", POST, b"Transfer-Encoding \x01: chunked\r\n"),
    ("no name", POST, b": chunked\r\nContent-Length: 1000\r\n"),
    ("a name that begins with a colon", POST, b":SomeHeader:Transfer-Encoding:: chunked\r\nContent-Length: 1000\r\n"),
    ("a name of white space", POST, b"   \t\t  : chunked\r\nContent-Length: 1000\r\n"),
    ("Transfer-Encoding by HTTP/1.0", b"POST /x HTTP/1.0", b"Transfer-Encoding: chunked\r\n"),
    ("Transfer-Encoding by HTTP/0.9", b"POST /x HTTP/0.9", b"Transfer-Encoding: chunked\r\n"),
    ("Content-Length by HTTP/0.9", b"POST /x HTTP/0.9", b"Content-Length: 100\r\n"),
    ("Transfer-Encoding without a version", b"POST /x", b"Transfer-Encoding: chunked\r\n"),
    ("Content-Length without a version", b"POST /x ", b"Content-Length: 100\r\n"),
    ("long s", POST, "Tran\u{17f}fer-Encoding: chunked\r\n".as_bytes()),
    ("dotless i", POST, "Transfer-Encod\u{131}ng: chunked\r\n".as_bytes()),
    ("several hyphens", POST, b"Transfer---Encoding: chunked\r\n"),
    ("several underscores", POST, b"Transfer___Encoding: chunked\r\n"),
    ("spaces beyond ASCII before", POST, "\u{2003}\u{a0}\u{3000}Transfer-Encoding: chunked\r\n".as_bytes()),
    ("spaces beyond ASCII behind", POST, "Content-Length\u{2003}\u{a0}\u{3000}: 1000\r\n".as_bytes()),
    ("a dash beyond ASCII", POST, "Transfer\u{2015}Encoding: chunked\r\n".as_bytes()),
    ("Transfer-Encoding\\x88", POST, b"Transfer-Encoding\x88: chunked\r\n"),
    ("\\xa0Content-Length", POST, b"\xa0Content-Length: 100\r\n"),
    ("\\x01Transfer-Encoding behind another", POST, b"Some-Custom-Header: Non-Rfc Compliant\r\n\x01Transfer-Encoding: chunked\r\n"),
    ("Transfer-Encoding\\x01 behind another", POST, b"Some-Custom-Header: Non-Rfc Compliant\r\nTransfer-Encoding\x01: chunked\r\n"),
    ("\\x01Content-Length behind another", POST, b"Some-Custom-Header: Non-Rfc Compliant\r\n\x01Content-Length: 1000\r\n"),
    ("Content-Length\\x01 behind another", POST, b"Some-Custom-Header: Non-Rfc Compliant\r\nContent-Length\x01: 1000\r\n"),
    ("GET with chunks and an odd byte", b"GET /x HTTP/1.1", b"Some-Custom-Header: Non Rfc -Compliant\x01\r\nTransfer-Encoding: chunked\r\n"),
    ("HEAD with a length and an odd byte", b"HEAD /x HTTP/1.1", b"Some-Custom-Header: Non Rfc Compliant\x01\r\nContent-Length: 9000\r\n"),
    ("GET with a length and a bad target", b"GET /x\t/baz HTTP/1.1", b"Some-Custom-Header: Non Rfc -Compliant\x01\r\nContent-Length: 9000\r\n"),
    ("a tab in the target", b"GET /x\tHTTP/1.1 HTTP/1.1", b""),
    ("\\x01 in the target", b"GET /x\x01HTTP/1.1 HTTP/1.1", b""),
    ("from life: chunks by HTTP/1.0", b"POST /x HTTP/1.0", b"Connection:  keep-alive\r\nTransfer-Encoding:  chunked\r\n"),
    ("from life: the same length twice", POST, b"Content-Length:  5\r\nContent-Length:  5\r\n"),
    ("from life: a length before chunks", POST, b"Content-Length:  4\r\nTransfer-Encoding:  chunked\r\n"),
    ("from life: a tab and a length", POST, b"Transfer-Encoding\t:  chunked\r\nContent-Length:  4\r\n"),
    ("from life: deflate and a length", POST, b"Transfer-Encoding:  deflate\r\nContent-Length:  4\r\n"),
    (
        "from life: a coding on every line, and a length",
        POST,
        b"Transfer-Encoding:  gzip\r\nTransfer-Encoding:  deflate\r\nTransfer-Encoding:  identity\r\nTransfer-Encoding:  compress\r\nTransfer-Encoding:  chunked\r\nContent-Length:  4\r\n",
    ),
    ("from life: parameters and a length", POST, b"Transfer-Encoding:  \t\t\t\tchunked;custom_param;\t\t\t\t\r\nContent-Length:  4\r\n"),
    ("from life: mixed case and a length", POST, b"TrAnSfEr-EnCoDiNg:  ChUnKeD\r\nContent-Length:  4\r\n"),
    ("from life: mixed case and another length", POST, b"TrAnSfEr-EnCoDiNg:  ChUnKeD\r\nContent-Length:  6\r\n"),
];

fn request(first: &[u8], fields: &[u8], body: &[u8]) -> Vec<u8> {
    [first, b"\r\n{H}{A}", fields, b"\r\n", body].concat()
}

/// Tries a vector whose request line or fields are bad.
fn refuse(bench: &mut Bench, list: &str, (name, first, fields): &Vector, before: &[u8]) {
    let body = [NO_CHUNKS, SMUGGLED].concat();
    // An answer to HEAD has no body to tell its code in.
    let outcome = if first.starts_with(b"HEAD") { Outcome::Refused(400, "") } else { MALFORMED };
    bench.check(&format!("{list}: {name}"), &request(first, &[before, fields].concat(), &body), outcome);
}

#[test]
fn none_of_the_58_severe_requests_of_a_known_guard_reaches_an_upstream() {
    let mut bench = Bench::start();
    assert_eq!(SEVERE.len() + SEVERE_FROM_LIFE.len(), 58, "the list is complete");
    SEVERE.iter().for_each(|vector| refuse(&mut bench, "severe", vector, b""));
    SEVERE_FROM_LIFE.iter().for_each(|vector| refuse(&mut bench, "severe, from life", vector, FROM_LIFE));
    bench.finish();
}

#[test]
fn what_a_known_guard_calls_ambiguous_is_refused_or_framed_in_one_way() {
    let mut bench = Bench::start();
    for vector in &AMBIGUOUS {
        let before = if vector.0.starts_with("from life") { FROM_LIFE } else { b"" };
        refuse(&mut bench, "ambiguous", vector, before);
    }
    let thousand = [b'x'; 1000];
    let rows: [(Vector, &[u8]); 6] = [
        (("GET with a length", b"GET /x HTTP/1.1", b"Content-Length: 1000\r\n"), &thousand),
        (("GET with chunks", b"GET /x HTTP/1.1", b"Transfer-Encoding: chunked\r\n"), NO_CHUNKS),
        (("HEAD with a length", b"HEAD /x HTTP/1.1", b"Content-Length: 1000\r\n"), &thousand),
        (("HEAD with chunks", b"HEAD /x HTTP/1.1", b"Transfer-Encoding: chunked\r\n"), NO_CHUNKS),
        (("from life: GET with a length", b"GET /x HTTP/1.1", b"Content-Length:  22\r\n"), b"0123456789012345678901"),
        (("from life: GET with chunks", b"GET /x HTTP/1.1", b"Transfer-Encoding:  chunked\r\n"), NO_CHUNKS),
    ];
    for ((name, first, fields), body) in rows {
        let before = if name.starts_with("from life") { FROM_LIFE } else { b"" };
        bench.check(&format!("ambiguous: {name}"), &request(first, &[before, fields].concat(), body), Outcome::Forwarded);
    }
    bench.finish();
}

/// A POST whose Content-Length is right and beside which a coding hides: one reading ends behind the body, the other
/// before the request in it.
fn beside_a_length(hidden: &[u8]) -> Vec<u8> {
    let body = [NO_CHUNKS, b"GET /smuggled HTTP/1.1\r\nX: y"].concat();
    let length = format!("Content-Length: {}\r\n", body.len());
    [b"POST /x HTTP/1.1\r\n", hidden, b"\r\n{H}{A}", length.as_bytes(), b"\r\n", &body].concat()
}

#[test]
fn a_coding_hidden_by_any_byte_in_any_place_beside_a_length_is_refused() {
    let mut bench = Bench::start();
    let hidden: [&[u8]; 30] = [
        b" Transfer-Encoding: chunked",
        b"Transfer-Encoding:\tchunked",
        b"Transfer-Encoding\t:\tchunked",
        b"Transfer Encoding: chunked",
        b"Transfer_Encoding: chunked",
        b"Transfer Encoding:chunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:  chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding: chunked, cow",
        b"Transfer-Encoding: cow, chunked",
        b"Transfer-Encoding:\n chunked",
        b"Transfer-Encoding: \"chunked\"",
        b"Transfer-Encoding: 'chunked'",
        b"Transfer-Encoding: chunk",
        b"TrAnSFer-EnCODinG: cHuNkeD",
        b"TRANSFER-ENCODING: CHUNKED",
        b"Transfer-Encoding: chunked\r",
        b"Transfer-Encoding: chunked\t",
        b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
        b"Transfer\r-Encoding: chunked",
        b"Transfer-Encoding: cow chunked bar",
        b"Transfer-Encoding:\xffchunked",
        b"Transfer-Encoding: ch\x96nked",
        b"Transf\x82r-Encoding: chunked",
        b"X:X\rTransfer-Encoding: chunked",
        b"X:X\nTransfer-Encoding: chunked",
        b"X: X\r\n\rTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\n x",
    ];
    for line in hidden {
        bench.check("smuggler", &beside_a_length(line), MALFORMED);
    }
    // A coding of the content is nobody's framing.
    bench.check("smuggler", &beside_a_length(b"Content-Encoding: chunked"), Outcome::Forwarded);
    for byte in (0..=0x20).chain(0x7f..=0xff) {
        // The four places between and around name and value, and each two of them.
        for places in [0b1000, 0b0100, 0b0010, 0b0001, 0b1100, 0b1010, 0b1001, 0b0110, 0b0101, 0b0011_u8] {
            let piece = |place: u8, usual: &'static [u8]| if places & place == 0 { usual.to_vec() } else { vec![byte] };
            let line = [
                piece(0b1000, b""),
                b"Transfer-Encoding".to_vec(),
                piece(0b0100, b""),
                b":".to_vec(),
                piece(0b0010, b" "),
                b"chunked".to_vec(),
                piece(0b0001, b""),
            ];
            bench.check("smuggler, exhaustive and doubles", &beside_a_length(&line.concat()), MALFORMED);
        }
    }
    bench.finish();
}

#[test]
fn every_known_permutation_of_a_framing_field_beside_the_other_is_refused() {
    let mut bench = Bench::start();
    let permutations = |name: &str, value: &str| {
        let mixed = format!("{}{}", name[..1].to_ascii_lowercase(), name[1..].to_ascii_uppercase());
        let mut lines: Vec<Vec<u8>> = [
            format!("{name}: {value}"),
            format!("{name} : {value}"),
            format!("Foo: bar\r\n {name}: {value}"),
            format!("{name}:  {value}"),
            format!("{name}:{value}"),
            format!("{name}:\n {value}"),
            format!("{name}\n : {value}"),
            format!("Foo: bar\r{name}: {value}"),
            format!("Foo: bar\n{name}: {value}"),
            format!("{name}: \n\x0b{value}"),
            format!("{name}: \n\t{value}"),
            format!("{mixed}: {value}"),
            format!("{}: {value}", name.to_ascii_uppercase()),
            format!("Foo: bar\r\n\r{name}: {value}"),
            format!("{}\r{}: {value}", &name[..3], &name[3..]),
            format!("Connection: {name}\r\n{name}: {value}"),
            format!("{name} x: {value}"),
            format!("{}: {value}", name.replace('-', "\\")),
            format!("{}: {value}", name.replace('-', "_")),
            format!("{}: {value}", name.replace('-', " ")),
            format!("Foo: barn\n\n{name}: {value}"),
        ]
        .map(String::into_bytes)
        .into();
        for byte in [0, b'\t', 0x0b, 0x0c, b'\r', 0x7f, 0xa0, 0xff] {
            lines.push([name.as_bytes(), b":", &[byte], value.as_bytes()].concat());
            lines.push([name.as_bytes(), b": ", &[byte], value.as_bytes()].concat());
            lines.push([name.as_bytes(), b": ", value.as_bytes(), &[byte]].concat());
        }
        lines
    };
    let body = [NO_CHUNKS, SMUGGLED].concat();
    for (name, value, other) in
        [("Transfer-Encoding", "chunked", &b"Content-Length: 5\r\n"[..]), ("Content-Length", "5", b"Transfer-Encoding: chunked\r\n")]
    {
        for line in permutations(name, value) {
            bench.check("permutation, before", &request(POST, &[&line, &b"\r\n"[..], other].concat(), &body), MALFORMED);
            bench.check("permutation, behind", &request(POST, &[other, &line, b"\r\n"].concat(), &body), MALFORMED);
        }
        // The first field line of all, which some take for a continuation of the request line.
        let folded = format!("POST /x HTTP/1.1\r\n {name}: {value}\r\n{{H}}{{A}}");
        bench.check("permutation, badwrap", &[folded.as_bytes(), other, b"\r\n", &body].concat(), MALFORMED);
    }
    for value in ["identity, chunked, identity", "chunked, identity", "identity, chunked"] {
        let fields = format!("Transfer-Encoding: {value}\r\nContent-Length: 5\r\n");
        bench.check("permutation, nested", &request(POST, fields.as_bytes(), &body), MALFORMED);
    }
    bench.finish();
}

#[test]
fn a_chunk_whose_line_or_data_ends_in_another_way_is_never_a_complete_request() {
    let mut bench = Bench::start();
    let broken = Outcome::Broken(400, "malformed_request");
    let mut check = |class: &str, chunks: &[u8]| {
        let body = [chunks, SMUGGLED].concat();
        bench.check(class, &request(POST, b"Transfer-Encoding: chunked\r\n", &body), broken);
    };
    for end in [&b"\n"[..], b"\r", b"\rX", b"\r\r"] {
        check("TERM.EXT", &[b"2;", end, b"xx\r\nxy\r\n0\r\n\r\n"].concat());
        check("EXT.TERM", &[b"2;xx", end, b"xy\r\n0\r\n\r\n"].concat());
        check("TERM.EXT, last", &[b"2\r\nxy\r\n0;", end, b"47\r\n\r\n"].concat());
    }
    for end in [&b"\n"[..], b"\r", b"", b"XX", b"\rX", b"\r\r"] {
        check("TERM.SPILL and SPILL.TERM", &[b"5\r\nAAAAA", end, b"2\r\nXX\r\n0\r\n\r\n"].concat());
        check("TERM.SPILL, last", &[b"5\r\nAAAAA", end, b"0\r\n\r\n"].concat());
    }
    // One line end is as long as two of the other: lengths fit one reading each.
    for end in [&b"\n"[..], b"\r"] {
        check("ONE.TWO", &[b"2\r\nXX", end, b"12\r\nXX\r\n19\r\nXX", end, b"0\r\n\r\n"].concat());
        check("TWO.ONE", &[b"1\r\nX", end, b"1\r\nX\r\n0\r\n\r\n"].concat());
    }
    check("ZERO.TWO and TWO.ZERO", b"1\r\nX12\r\nXX\r\n19\r\nXX0\r\n\r\n");
    bench.finish();
}

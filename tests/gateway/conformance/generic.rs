//! The list's first part: that what is right is taken.

use super::{Case, Opening, Step, Verdict, Words, case, data, headers, ping, priority};
use crate::support::frames::{
    CANCEL, CONTINUATION, ENABLE_PUSH, END_HEADERS, END_STREAM, GOAWAY, HEADER_TABLE_SIZE, HEADERS, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, PADDED, PREFACE, PRIORITY, WITH_PRIORITY, block, frame, reset, settings,
    window_update,
};

use super::Sign;
use super::Verdict::{Answer, Closed, Pong, PongOrClosed};

pub(super) fn cases(words: &Words) -> Vec<Case> {
    let get = words.get();
    let post = words.post();
    let mut cases = vec![Case {
        id: "generic/1/1",
        what: "the server's preface comes first",
        opening: Opening::Nothing,
        steps: vec![Step::Send([PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 65_535)])].concat())],
        verdict: Verdict::SettingsFirst,
    }];
    cases.extend(streams(&get));
    cases.extend(frames(&get, &post));
    cases.extend(messages(words));
    cases.extend(compression(&get));
    cases
}

fn streams(get: &[u8]) -> Vec<Case> {
    let no_window = || settings(&[(INITIAL_WINDOW_SIZE, 0)]);
    let request = || headers(1, END_STREAM, get);
    let weight = |stream| frame(PRIORITY, 0, stream, &priority(0));
    let mut on_closed = case("generic/2/5", "PRIORITY on a closed stream", vec![request()], Pong);
    on_closed.steps.extend([Step::Until(Sign::StreamEnd), Step::Send(weight(1)), Step::Send(ping())]);
    vec![
        case("generic/2/1", "PRIORITY on an idle stream", vec![weight(1), ping()], Pong),
        case("generic/2/2", "WINDOW_UPDATE on a half-closed stream", vec![no_window(), request(), window_update(1, 1)], Verdict::DataOf(1)),
        case(
            "generic/2/3",
            "PRIORITY on a half-closed stream",
            vec![no_window(), request(), weight(1), window_update(1, 1)],
            Verdict::DataOf(1),
        ),
        case("generic/2/4", "RST_STREAM on a half-closed stream", vec![request(), reset(1, CANCEL), ping()], Pong),
        on_closed,
    ]
}

fn frames(get: &[u8], post: &[u8]) -> Vec<Case> {
    let request = || headers(1, END_STREAM, get);
    let upload = || headers(1, 0, post);
    let padded = |bytes: &[u8]| [&[6], bytes, &b"padded"[..]].concat();
    let weighted = |stream, depends_on| frame(PRIORITY, 0, stream, &priority(depends_on));
    let (begin, rest) = get.split_at(5);
    let (middle, end) = rest.split_at(5);
    let all_settings = settings(&[
        (HEADER_TABLE_SIZE, 4_096),
        (ENABLE_PUSH, 1),
        (MAX_CONCURRENT_STREAMS, 100),
        (INITIAL_WINDOW_SIZE, 65_535),
        (MAX_FRAME_SIZE, 16_384),
        (MAX_HEADER_LIST_SIZE, 100),
    ]);
    vec![
        case("generic/3.1/1", "a DATA frame", vec![upload(), data(1, END_STREAM, b"test")], Answer),
        case("generic/3.1/2", "several DATA frames", vec![upload(), data(1, 0, b"test"), data(1, END_STREAM, b"test")], Answer),
        case("generic/3.1/3", "a padded DATA frame", vec![upload(), frame(0, END_STREAM | PADDED, 1, &padded(b"test"))], Answer),
        case("generic/3.2/1", "a HEADERS frame", vec![request()], Answer),
        case("generic/3.2/2", "padded HEADERS", vec![frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &padded(get))], Answer),
        case(
            "generic/3.2/3",
            "HEADERS with a priority",
            vec![frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &[&priority(0), get].concat())],
            Answer,
        ),
        case("generic/3.3/1", "PRIORITY with weight 1", vec![frame(PRIORITY, 0, 1, &[0; 5]), request()], Answer),
        case("generic/3.3/2", "PRIORITY with weight 256", vec![weighted(1, 0), request()], Answer),
        case("generic/3.3/3", "PRIORITY with a dependency", vec![weighted(3, 1), request()], Answer),
        case("generic/3.3/4", "PRIORITY with the exclusive bit", vec![weighted(1, 1 << 31), request()], Answer),
        case("generic/3.3/5", "PRIORITY on an idle stream, then a lower one", vec![weighted(3, 0), request()], Answer),
        case("generic/3.4/1", "a RST_STREAM frame", vec![headers(1, 0, get), reset(1, CANCEL), ping()], PongOrClosed),
        case("generic/3.5/1", "a SETTINGS frame", vec![all_settings], Verdict::SettingsTaken),
        case("generic/3.7/1", "a PING frame", vec![ping()], Pong),
        case("generic/3.8/1", "a GOAWAY frame", vec![frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0words"), ping()], Closed),
        case("generic/3.9/1", "WINDOW_UPDATE on the connection", vec![window_update(0, 1), ping()], Pong),
        case("generic/3.9/2", "WINDOW_UPDATE on a stream", vec![request(), window_update(1, 1)], Answer),
        case(
            "generic/3.10/1",
            "a CONTINUATION frame",
            vec![frame(HEADERS, END_STREAM, 1, begin), frame(CONTINUATION, END_HEADERS, 1, rest)],
            Answer,
        ),
        case(
            "generic/3.10/2",
            "several CONTINUATION frames",
            vec![frame(HEADERS, END_STREAM, 1, begin), frame(CONTINUATION, 0, 1, middle), frame(CONTINUATION, END_HEADERS, 1, end)],
            Answer,
        ),
    ]
}

fn messages(words: &Words) -> Vec<Case> {
    let announced = words.with("POST", &[("trailer", "x-test")]);
    vec![
        case("generic/4/1", "GET", vec![headers(1, END_STREAM, &words.get())], Answer),
        case("generic/4/2", "HEAD", vec![headers(1, END_STREAM, &words.with("HEAD", &[]))], Answer),
        case("generic/4/3", "POST", vec![headers(1, 0, &words.post()), data(1, END_STREAM, b"test")], Answer),
        case(
            "generic/4/4",
            "POST with trailers",
            vec![headers(1, 0, &announced), data(1, 0, b"test"), headers(1, END_STREAM, &block(&[("x-test", "ok")]))],
            Answer,
        ),
    ]
}

/// RFC 7541 section 6: each representation of a field. Names and values are spelt out in the list's own bytes.
fn compression(get: &[u8]) -> Vec<Case> {
    let plain_agent = b"\x0auser-agent\x06h2spec";
    let coded_agent = b"\x87\xb5\x05\xb1\x61\xcc\x5a\x93\x84\x9c\x48\xac\xa4";
    let plain_test = b"\x06x-test\x06h2spec";
    let coded_test = b"\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4";
    let literal = |first: u8, rest: &[u8]| [get, &[first], rest].concat();
    let indexed_name = |first: &[u8]| [get, first, b"\x06h2spec"].concat();
    let rows: [(&'static str, &'static str, Vec<u8>); 15] = [
        ("generic/5/1", "an indexed field", literal(0xba, b"")),
        ("generic/5/2", "incremental indexing, indexed name", indexed_name(b"\x7a")),
        ("generic/5/3", "incremental indexing, coded name of the table", literal(0x40, coded_agent)),
        ("generic/5/4", "incremental indexing, new name", literal(0x40, plain_test)),
        ("generic/5/5", "incremental indexing, new name, coded", literal(0x40, coded_test)),
        ("generic/5/6", "without indexing, indexed name", indexed_name(b"\x0f\x2b")),
        ("generic/5/7", "without indexing, coded name of the table", literal(0x00, coded_agent)),
        ("generic/5/8", "without indexing, new name", literal(0x00, plain_test)),
        ("generic/5/9", "without indexing, new name, coded", literal(0x00, coded_test)),
        ("generic/5/10", "never indexed, indexed name", indexed_name(b"\x1f\x2b")),
        ("generic/5/11", "never indexed, plain name of the table", literal(0x10, plain_agent)),
        ("generic/5/12", "never indexed, new name", literal(0x10, plain_test)),
        ("generic/5/13", "never indexed, new name, coded", literal(0x10, coded_test)),
        ("generic/5/14", "a size update of the table", [b"\x20", get].concat()),
        ("generic/5/15", "two size updates", [b"\x20\x3f\xe1\x1f", get].concat()),
    ];
    rows.into_iter().map(|(id, what, block)| case(id, what, vec![headers(1, END_STREAM, &block)], Answer)).collect()
}

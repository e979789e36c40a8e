//! Each type of frame, and the error codes: RFC 9113 sections 6 and 7.
//!
//! Where a stream's window matters the answer is at least as long as it: an answer of our own is, and the upstream's is
//! made so.

use super::Verdict::{ConnectionError, Pong, StreamError};
use super::{Case, Sign, Step, Verdict, Words, bulky, case, data, headers, ping, priority};
use crate::support::frames::{
    ACK, CANCEL, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY, HEADERS,
    INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, PADDED, PING, PRIORITY, PROTOCOL_ERROR, RST_STREAM, SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, frame,
    reset, settings, window_update,
};

/// The largest window (RFC 9113 section 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

pub(super) fn cases(words: &Words) -> Vec<Case> {
    let (get, post) = (words.get(), words.post());
    [content(words, &get, &post), resets(&get), of_settings(&get), of_connection(&get, &post), windows(&get), continuations(&get, &post)]
        .into_iter()
        .flatten()
        .collect()
}

fn content(words: &Words, get: &[u8], post: &[u8]) -> Vec<Case> {
    let sized = words.with("POST", &[("content-length", "4")]);
    let begun = || frame(HEADERS, 0, 1, get);
    let continued = || frame(CONTINUATION, END_HEADERS, 1, &bulky(1));
    let too_padded = u8::try_from(get.len() + 2).expect("a short block");
    vec![
        case("http2/6.1/1", "DATA on stream 0", vec![data(0, END_STREAM, b"test")], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.1/2",
            "DATA on a stream that is not open",
            vec![headers(1, END_STREAM, post), data(1, END_STREAM, b"test")],
            StreamError(&[STREAM_CLOSED]),
        ),
        case(
            "http2/6.1/3",
            "DATA with more padding than payload",
            vec![headers(1, 0, &sized), frame(DATA, END_STREAM | PADDED, 1, b"\x06Test")],
            ConnectionError(&[PROTOCOL_ERROR]),
        ),
        case(
            "http2/6.2/1",
            "HEADERS without their end, then PRIORITY",
            vec![begun(), frame(PRIORITY, 0, 1, &priority(0)), continued()],
            ConnectionError(&[PROTOCOL_ERROR]),
        ),
        case(
            "http2/6.2/2",
            "HEADERS without their end, then another stream's",
            vec![begun(), headers(3, END_STREAM, get), continued()],
            ConnectionError(&[PROTOCOL_ERROR]),
        ),
        case("http2/6.2/3", "HEADERS on stream 0", vec![headers(0, END_STREAM, get)], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.2/4",
            "HEADERS with more padding than payload",
            vec![frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[&[too_padded], get].concat())],
            StreamError(&[PROTOCOL_ERROR]),
        ),
    ]
}

fn resets(get: &[u8]) -> Vec<Case> {
    let request = || headers(1, END_STREAM, get);
    vec![
        case("http2/6.3/1", "PRIORITY on stream 0", vec![frame(PRIORITY, 0, 0, &priority(0))], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.3/2",
            "PRIORITY of 4 bytes",
            vec![request(), frame(PRIORITY, 0, 1, b"\x80\0\0\x01")],
            StreamError(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "http2/6.3/3",
            "PRIORITY on an idle stream, then a lower one",
            vec![frame(PRIORITY, 0, 3, &priority(0)), request()],
            Verdict::Answer,
        ),
        case("http2/6.4/1", "RST_STREAM on stream 0", vec![reset(0, CANCEL)], ConnectionError(&[PROTOCOL_ERROR])),
        case("http2/6.4/2", "RST_STREAM on an idle stream", vec![reset(1, CANCEL)], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.4/3",
            "RST_STREAM of 3 bytes",
            vec![request(), frame(RST_STREAM, 0, 1, &[0; 3])],
            ConnectionError(&[FRAME_SIZE_ERROR]),
        ),
    ]
}

fn of_settings(get: &[u8]) -> Vec<Case> {
    let bad = |id, what, setting, code| case(id, what, vec![settings(&[setting])], ConnectionError(code));
    let mut in_order = case(
        "http2/6.5.3/1",
        "the last of several windows holds",
        vec![settings(&[(INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)])],
        Verdict::DataOf(1),
    );
    in_order.steps.extend([Step::Until(Sign::SettingsTaken), Step::Send(headers(1, END_STREAM, get))]);
    vec![
        case("http2/6.5/1", "an acknowledgement with a payload", vec![frame(SETTINGS, ACK, 0, &[0])], ConnectionError(&[FRAME_SIZE_ERROR])),
        case("http2/6.5/2", "SETTINGS on a stream", vec![frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100])], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.5/3",
            "SETTINGS of a length that is no multiple of 6",
            vec![frame(SETTINGS, 0, 0, &[0, 3, 0])],
            ConnectionError(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "http2/6.5/3b",
            "SETTINGS of 9 bytes",
            vec![frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 2, 0])],
            ConnectionError(&[FRAME_SIZE_ERROR]),
        ),
        bad("http2/6.5.2/1", "push neither on nor off", (ENABLE_PUSH, 2), &[PROTOCOL_ERROR]),
        bad("http2/6.5.2/2", "a window over the maximum", (INITIAL_WINDOW_SIZE, WINDOW_MAX + 1), &[FLOW_CONTROL_ERROR]),
        bad("http2/6.5.2/3", "a frame size under the minimum", (MAX_FRAME_SIZE, 16_383), &[PROTOCOL_ERROR]),
        bad("http2/6.5.2/4", "a frame size over the maximum", (MAX_FRAME_SIZE, 1 << 24), &[PROTOCOL_ERROR]),
        case("http2/6.5.2/5", "an unknown setting", vec![settings(&[(0xff, 1)]), ping()], Pong),
        in_order,
        case("http2/6.5.3/2", "SETTINGS are acknowledged", vec![settings(&[(ENABLE_PUSH, 0)])], Verdict::SettingsTaken),
    ]
}

fn of_connection(get: &[u8], post: &[u8]) -> Vec<Case> {
    let goaway = |stream, code: u32| frame(GOAWAY, 0, stream, &[&[0; 4], &code.to_be_bytes()[..]].concat());
    vec![
        case("http2/6.7/1", "PING", vec![ping()], Pong),
        case("http2/6.7/2", "PING that is an answer", vec![frame(PING, ACK, 0, b"invalid\0"), ping()], Pong),
        case("http2/6.7/3", "PING on a stream", vec![frame(PING, 0, 1, &[0; 8])], ConnectionError(&[PROTOCOL_ERROR])),
        case("http2/6.7/4", "PING of 6 bytes", vec![frame(PING, 0, 0, &[0; 6])], ConnectionError(&[FRAME_SIZE_ERROR])),
        case("http2/6.7/4b", "PING of 6 bytes on a stream", vec![frame(PING, 0, 1, &[0; 6])], ConnectionError(&[FRAME_SIZE_ERROR])),
        case("http2/6.8/1", "GOAWAY on a stream", vec![goaway(1, 0)], ConnectionError(&[PROTOCOL_ERROR])),
        case("http2/7/1", "GOAWAY with an unknown code", vec![goaway(0, 0xff), ping()], Verdict::PongOrClosed),
        case("http2/7/2", "RST_STREAM with an unknown code", vec![headers(1, 0, post), reset(1, 0xff), ping()], Pong),
        case("http2/6.9/1", "WINDOW_UPDATE of 0", vec![window_update(0, 0)], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.9/2",
            "WINDOW_UPDATE of 0 on a stream",
            vec![headers(1, 0, get), window_update(1, 0)],
            StreamError(&[PROTOCOL_ERROR]),
        ),
        case("http2/6.9/3", "WINDOW_UPDATE of 3 bytes", vec![frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])], ConnectionError(&[FRAME_SIZE_ERROR])),
    ]
}

fn windows(get: &[u8]) -> Vec<Case> {
    let request = || headers(1, END_STREAM, get);
    let window = |bytes| settings(&[(INITIAL_WINDOW_SIZE, bytes)]);
    let stepwise = |id, what, steps, verdict| Case { steps, ..case(id, what, Vec::new(), verdict) };
    vec![
        stepwise(
            "http2/6.9.1/1",
            "a window of 1",
            vec![Step::Send(window(1)), Step::Until(Sign::SettingsTaken), Step::Send(request())],
            Verdict::DataOf(1),
        ),
        case(
            "http2/6.9.1/2",
            "a window over the maximum",
            vec![window_update(0, WINDOW_MAX), window_update(0, WINDOW_MAX)],
            Verdict::Goaway(FLOW_CONTROL_ERROR),
        ),
        case(
            "http2/6.9.1/3",
            "a stream's window over the maximum",
            vec![headers(1, 0, get), window_update(1, WINDOW_MAX), window_update(1, WINDOW_MAX)],
            Verdict::Reset(FLOW_CONTROL_ERROR),
        ),
        stepwise(
            "http2/6.9.2/1",
            "a window that opens after the request",
            vec![
                Step::Send(window(0)),
                Step::Until(Sign::SettingsTaken),
                Step::Send(request()),
                Step::Send(window(1)),
                Step::Until(Sign::SettingsTaken),
            ],
            Verdict::DataOf(1),
        ),
        stepwise(
            "http2/6.9.2/2",
            "a window that becomes negative",
            vec![
                Step::Send(window(3)),
                Step::Until(Sign::SettingsTaken),
                Step::Send(request()),
                Step::Until(Sign::Data),
                Step::Send(window(2)),
                Step::Until(Sign::SettingsTaken),
                Step::Send(window_update(1, 2)),
            ],
            Verdict::DataOf(1),
        ),
        case("http2/6.9.2/3", "an initial window over the maximum", vec![window(1 << 31)], ConnectionError(&[FLOW_CONTROL_ERROR])),
    ]
}

fn continuations(get: &[u8], post: &[u8]) -> Vec<Case> {
    let begun = |block: &[u8], end| frame(HEADERS, end, 1, block);
    let more = |stream, end| frame(CONTINUATION, end, stream, &bulky(1));
    let bad = |id, what, sent| case(id, what, sent, ConnectionError(&[PROTOCOL_ERROR]));
    vec![
        case(
            "http2/6.10/1",
            "several CONTINUATION frames",
            vec![begun(get, END_STREAM), more(1, 0), more(1, END_HEADERS)],
            Verdict::Answer,
        ),
        bad("http2/6.10/2", "CONTINUATION, then DATA", vec![begun(post, 0), more(1, 0), data(1, END_STREAM, b"test")]),
        bad("http2/6.10/3", "CONTINUATION on stream 0", vec![begun(get, END_STREAM), more(0, END_HEADERS)]),
        bad("http2/6.10/4", "CONTINUATION behind whole HEADERS", vec![headers(1, END_STREAM, get), more(1, END_HEADERS)]),
        bad("http2/6.10/5", "CONTINUATION behind the last one", vec![begun(get, END_STREAM), more(1, END_HEADERS), more(1, END_HEADERS)]),
        bad(
            "http2/6.10/6",
            "CONTINUATION behind DATA",
            vec![headers(1, 0, post), data(1, END_STREAM, b"test"), more(1, 0), more(0, END_HEADERS)],
        ),
        bad(
            "http2/6.10/6b",
            "DATA within a header block, then CONTINUATION",
            vec![begun(post, 0), data(1, END_STREAM, b"test"), more(1, 0), more(0, END_HEADERS)],
        ),
    ]
}

//! Prefaces, frames and streams: RFC 9113 sections 3.4 to 5.5, in the numbering of RFC 7540.

use super::Verdict::{Closed, ConnectionError, Pong, StreamError};
use super::{Case, Opening, Sign, Step, Verdict, Words, bulky, case, data, headers, ping, priority};
use crate::support::frames::{
    CANCEL, COMPRESSION_ERROR, CONTINUATION, END_HEADERS, END_STREAM, FRAME_SIZE_ERROR, HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE,
    PRIORITY, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED, WITH_PRIORITY, frame, reset, settings, window_update,
};

pub(super) fn cases(words: &Words) -> Vec<Case> {
    let (get, post) = (words.get(), words.post());
    [starting(), format(&get, &post), states(&get), identifiers(&get), errors(&get)].into_iter().flatten().collect()
}

fn starting() -> Vec<Case> {
    let bare = |id, what, bytes: Vec<u8>, verdict| Case { id, what, opening: Opening::Nothing, steps: vec![Step::Send(bytes)], verdict };
    vec![
        bare(
            "http2/3.5/1",
            "the server's preface",
            [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 65_535)])].concat(),
            Verdict::SettingsFirst,
        ),
        // Not one byte may come before the end, because no frame can be read from it.
        bare("http2/3.5/2", "an invalid preface", b"INVALID CONNECTION PREFACE\r\n\r\n".to_vec(), Verdict::ClosedSilently),
    ]
}

fn format(get: &[u8], post: &[u8]) -> Vec<Case> {
    let unknown = || frame(0x16, 0, 0, &[0; 8]);
    let begun = |end| frame(HEADERS, end, 1, get);
    let continued = || frame(CONTINUATION, END_HEADERS, 1, &bulky(1));
    let interrupted = |id, what, by: Vec<u8>| case(id, what, vec![begun(0), by, continued()], ConnectionError(&[PROTOCOL_ERROR]));
    let marked = |first_of_stream: u8| [&[0, 0, 8, PING, 0x16, first_of_stream, 0, 0, 0], &super::PING_WORDS[..]].concat();
    vec![
        case("http2/4.1/1", "a frame of unknown type", vec![unknown(), ping()], Pong),
        case("http2/4.1/2", "undefined flags", vec![marked(0)], Pong),
        case("http2/4.1/3", "the reserved bit", vec![marked(0x80)], Pong),
        case("http2/4.2/1", "DATA of 2^14 bytes", vec![headers(1, 0, post), data(1, END_STREAM, &[b'x'; 16_384])], Verdict::Answer),
        case(
            "http2/4.2/2",
            "DATA over the frame size",
            vec![headers(1, 0, post), data(1, END_STREAM, &[b'x'; 16_385])],
            StreamError(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "http2/4.2/3",
            "HEADERS over the frame size",
            vec![headers(1, END_STREAM, &[get, &bulky(5)].concat())],
            ConnectionError(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "http2/4.3/1",
            "half a field",
            vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x40")],
            ConnectionError(&[COMPRESSION_ERROR]),
        ),
        interrupted("http2/4.3/2", "PRIORITY within a header block", frame(PRIORITY, 0, 1, &priority(0))),
        interrupted("http2/4.3/3", "HEADERS of another stream within a header block", headers(3, END_STREAM, get)),
        case("http2/5.5/1", "an extension's frame", vec![unknown(), ping()], Pong),
        case(
            "http2/5.5/2",
            "an extension's frame within a header block",
            vec![begun(END_STREAM), unknown()],
            ConnectionError(&[PROTOCOL_ERROR]),
        ),
    ]
}

fn states(get: &[u8]) -> Vec<Case> {
    let request = || headers(1, END_STREAM, get);
    let idle = |id, what, sent| case(id, what, vec![sent], ConnectionError(&[PROTOCOL_ERROR]));
    let half_closed = |id, what, sent, codes| case(id, what, vec![request(), sent], StreamError(codes));
    let after_reset = |id, what, sent, codes| case(id, what, vec![headers(1, 0, get), reset(1, CANCEL), sent], StreamError(codes));
    let closed = |id, what, sent, verdict| {
        let mut case = case(id, what, vec![request()], verdict);
        case.steps.extend([Step::Until(Sign::StreamEnd), Step::Send(sent)]);
        case
    };
    let test = || data(1, END_STREAM, b"test");
    let more = || frame(CONTINUATION, END_HEADERS, 1, &bulky(1));
    let either: &[u32] = &[STREAM_CLOSED, PROTOCOL_ERROR];
    vec![
        idle("http2/5.1/1", "idle: DATA", test()),
        idle("http2/5.1/2", "idle: RST_STREAM", reset(1, CANCEL)),
        idle("http2/5.1/3", "idle: WINDOW_UPDATE", window_update(1, 100)),
        idle("http2/5.1/4", "idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, get)),
        half_closed("http2/5.1/5", "half-closed: DATA", test(), &[STREAM_CLOSED]),
        half_closed("http2/5.1/6", "half-closed: HEADERS", request(), &[STREAM_CLOSED]),
        half_closed("http2/5.1/7", "half-closed: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, get), either),
        after_reset("http2/5.1/8", "closed by RST_STREAM: DATA", test(), &[STREAM_CLOSED]),
        after_reset("http2/5.1/9", "closed by RST_STREAM: HEADERS", request(), &[STREAM_CLOSED]),
        after_reset("http2/5.1/10", "closed by RST_STREAM: CONTINUATION", more(), either),
        closed("http2/5.1/11", "closed: DATA", test(), StreamError(&[STREAM_CLOSED])),
        closed("http2/5.1/12", "closed: HEADERS", request(), ConnectionError(&[STREAM_CLOSED])),
        closed("http2/5.1/13", "closed: CONTINUATION", more(), ConnectionError(either)),
    ]
}

fn identifiers(get: &[u8]) -> Vec<Case> {
    let mut too_many = case(
        "http2/5.1.2/1",
        "more streams than allowed",
        vec![settings(&[(INITIAL_WINDOW_SIZE, 0)])],
        StreamError(&[PROTOCOL_ERROR, REFUSED_STREAM]),
    );
    too_many.steps.push(Step::OneStreamTooMany(get.to_vec()));
    let ownself = frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &[&priority(1), get].concat());
    vec![
        case("http2/5.1.1/1", "an even stream", vec![headers(2, END_STREAM, get)], ConnectionError(&[PROTOCOL_ERROR])),
        case(
            "http2/5.1.1/2",
            "a stream lower than the last",
            vec![headers(5, END_STREAM, get), headers(3, END_STREAM, get)],
            ConnectionError(&[PROTOCOL_ERROR]),
        ),
        case(
            "http2/5.1.1/3",
            "HEADERS on a stream that its client has ended",
            vec![headers(5, END_STREAM, get), headers(5, END_STREAM, get)],
            StreamError(&[STREAM_CLOSED]),
        ),
        too_many,
        case("http2/5.3.1/1", "HEADERS that depend on themselves", vec![ownself], StreamError(&[PROTOCOL_ERROR])),
        case("http2/5.3.1/2", "PRIORITY that depends on itself", vec![frame(PRIORITY, 0, 1, &priority(1))], StreamError(&[PROTOCOL_ERROR])),
    ]
}

fn errors(_: &[u8]) -> Vec<Case> {
    let on_a_stream = || frame(PING, 0, 3, &[0; 8]);
    vec![
        case("http2/5.4.1/1", "a connection error ends the connection", vec![on_a_stream()], Closed),
        case("http2/5.4.1/2", "GOAWAY comes before the end", vec![on_a_stream()], ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

//! Conformance to RFC 9113 and RFC 7541, case by case: what is sent, frame by frame, and what must come of it.
//!
//! The tables follow the list of cases of the public tool h2spec 2.6 (146, two that it keeps for its strict mode, one that
//! came later) by section and number, so that a finding of one can be looked up in the other; a letter behind the number is the
//! same case with other bytes. Its sources were read beside them: each case sends what it sends, and passes for what it takes,
//! or for less. Three passes: without a key, as a tool that knows none does it; with a key, so that the answer is an
//! upstream's; and over TLS, where the end of a connection is told within TLS. A connection error must show as GOAWAY
//! and an orderly end of the connection, a stream error as RST_STREAM or as the former (section 5.4.1 allows it).
//! One liberty: h2 says PROTOCOL_ERROR where the RFC has a narrower code for a connection error; that passes where h2spec
//! takes the end of the connection alone.

mod compression;
mod definitions;
mod generic;
mod messages;
mod streams;

use std::time::{Duration, Instant};

use crate::support::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, Frames, GOAWAY, HEADERS, MAX_CONCURRENT_STREAMS, PING, PROTOCOL_ERROR, RST_STREAM, SETTINGS,
    block, frame,
};
use crate::support::wire::Broken;
use crate::support::{Gateway, Http2, Reply, Request};
use crate::tls;

/// How long the gateway may be silent before a case has failed. h2spec waits 2 s, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(5);
/// The cases of h2spec 2.6, its strict ones, a later one, and those that are tried with other bytes, too.
const CASES: usize = 146 + 2 + 1 + 5;
const PING_WORDS: [u8; 8] = *b"whatever";

/// A case of the list.
struct Case {
    /// The list's section and number: `http2/5.1.2/1`.
    id: &'static str,
    what: &'static str,
    /// Whether preface and settings are exchanged before the first step.
    opening: Opening,
    steps: Vec<Step>,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    Handshake,
    Nothing,
}

/// One thing that a case does.
enum Step {
    Send(Vec<u8>),
    /// So many times HEADERS on a stream of its own, with the given block.
    OneStreamTooMany(Vec<u8>),
    Until(Sign),
}

/// What a case waits for on its way.
#[derive(Clone, Copy, Debug)]
enum Sign {
    SettingsTaken,
    Data,
    StreamEnd,
}

/// What must come in the end; other frames before it do not matter.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    ConnectionError(&'static [u32]),
    /// GOAWAY of this code and no other.
    Goaway(u32),
    /// RST_STREAM or GOAWAY.
    StreamError(&'static [u32]),
    /// RST_STREAM on stream 1 and nothing else.
    Reset(u32),
    Closed,
    /// The end of the connection, and no byte before it.
    ClosedSilently,
    Answer,
    DataOf(usize),
    Pong,
    PongOrClosed,
    SettingsFirst,
    SettingsTaken,
}

/// A case that begins with the handshake.
fn case(id: &'static str, what: &'static str, sent: Vec<Vec<u8>>, verdict: Verdict) -> Case {
    Case { id, what, opening: Opening::Handshake, steps: sent.into_iter().map(Step::Send).collect(), verdict }
}

/// A PING whose answer shows that the connection is well.
fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &PING_WORDS)
}

/// HEADERS with END_HEADERS; `end` is END_STREAM or nothing.
fn headers(stream: u32, end: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | end, stream, block)
}

fn data(stream: u32, end: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, end, stream, bytes)
}

/// The payload of PRIORITY: a dependency and a weight.
fn priority(depends_on: u32) -> Vec<u8> {
    [&depends_on.to_be_bytes()[..], &[255]].concat()
}

/// What the requests of a pass say.
struct Words {
    scheme: &'static str,
    secret: Option<String>,
}

impl Words {
    /// A request's fields; `path` and `method` may be anything.
    fn fields<'a>(&'a self, method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
        let key = self.secret.as_deref().map(|secret| ("x-api-key", secret));
        [(":method", method), (":scheme", self.scheme), (":path", path), (":authority", "localhost")].into_iter().chain(key).collect()
    }

    fn get(&self) -> Vec<u8> {
        block(&self.fields("GET", "/"))
    }

    fn post(&self) -> Vec<u8> {
        block(&self.fields("POST", "/"))
    }

    /// A request with more fields behind the usual ones.
    fn with(&self, method: &str, more: &[(&str, &str)]) -> Vec<u8> {
        block(&[self.fields(method, "/"), more.to_vec()].concat())
    }

    /// A request whose pseudo fields come as given; the key behind them.
    fn only(&self, fields: &[(&str, &str)]) -> Vec<u8> {
        let key = self.secret.as_deref().map(|secret| ("x-api-key", secret));
        block(&fields.iter().copied().chain(key).collect::<Vec<_>>())
    }
}

/// `count` fields of 4,000 bytes each.
fn bulky(count: usize) -> Vec<u8> {
    let value = "x".repeat(4_000);
    (0..count).flat_map(|place| block(&[(format!("x-dummy{place}").as_str(), value.as_str())])).collect()
}

fn all(words: &Words) -> Vec<Case> {
    [generic::cases(words), streams::cases(words), definitions::cases(words), messages::cases(words), compression::cases(words)]
        .into_iter()
        .flatten()
        .collect()
}

/// Why a case failed.
fn run(case: &Case, mut frames: Frames) -> Result<(), String> {
    frames.wait_at_most(PATIENCE);
    let mut streams_max = None;
    if case.opening == Opening::Handshake {
        let theirs = frames.handshake().map_err(|broken| format!("no handshake: {broken:?}"))?;
        streams_max = theirs.iter().find(|(name, _)| *name == MAX_CONCURRENT_STREAMS).map(|(_, value)| *value);
    }
    for step in &case.steps {
        match step {
            // The gateway may have closed already; what it said before counts.
            Step::Send(bytes) => drop(frames.raw(bytes)),
            Step::OneStreamTooMany(block) => {
                let limit = streams_max.ok_or("no limit of streams is announced")?;
                (0..=limit).for_each(|place| drop(frames.raw(&headers(place * 2 + 1, END_STREAM, block))));
            }
            Step::Until(sign) => read_until(&mut frames, |frame| sign.is_shown_by(frame)).map_err(|seen| format!("{sign:?}: {seen}"))?,
        }
    }
    judge(case.verdict, &mut frames)
}

impl Sign {
    fn is_shown_by(self, frame: &Frame) -> bool {
        match self {
            Self::SettingsTaken => frame.kind == SETTINGS && frame.has(ACK),
            Self::Data => frame.kind == DATA,
            Self::StreamEnd => matches!(frame.kind, HEADERS | DATA) && frame.has(END_STREAM),
        }
    }
}

fn judge(verdict: Verdict, frames: &mut Frames) -> Result<(), String> {
    let has_code = |frame: &Frame, codes: &[u32]| frame.code().is_some_and(|code| codes.contains(&code));
    let is_end = |frame: &Frame, codes: &[u32]| frame.kind == GOAWAY && (has_code(frame, codes) || has_code(frame, &[PROTOCOL_ERROR]));
    match verdict {
        Verdict::ConnectionError(codes) => {
            read_until(frames, |frame| is_end(frame, codes))?;
            until_closed(frames)
        }
        Verdict::Goaway(code) => match first(frames, |frame| frame.kind == GOAWAY)? {
            frame if has_code(&frame, &[code]) => until_closed(frames),
            frame => Err(format!("GOAWAY {:?}", frame.code())),
        },
        Verdict::StreamError(codes) => match first(frames, |frame| has_code(frame, codes) || is_end(frame, codes))? {
            frame if frame.kind == GOAWAY => until_closed(frames),
            _ => Ok(()),
        },
        Verdict::Reset(code) => read_until(frames, |frame| frame.kind == RST_STREAM && frame.stream == 1 && has_code(frame, &[code])),
        Verdict::Closed => until_closed(frames),
        Verdict::ClosedSilently => match frames.any() {
            Err(Broken::Ended) => Ok(()),
            other => Err(format!("{other:?}")),
        },
        Verdict::Answer => read_until(frames, |frame| frame.kind == HEADERS && frame.stream == 1),
        Verdict::DataOf(length) => match first(frames, |frame| frame.kind == DATA)? {
            frame if frame.payload.len() == length => Ok(()),
            frame => Err(format!("DATA of {} bytes", frame.payload.len())),
        },
        // The gateway's own questions would be taken for a wrong answer.
        Verdict::Pong => match first(frames, |frame| frame.kind == PING)? {
            frame if is_pong(&frame) => Ok(()),
            frame => Err(format!("PING {:02x} {:?}", frame.flags, frame.payload)),
        },
        Verdict::PongOrClosed => read_until(frames, is_pong).or_else(|seen| if seen.contains("Ended") { Ok(()) } else { Err(seen) }),
        Verdict::SettingsFirst => match frames.frame() {
            Ok(frame) if frame.kind == SETTINGS && !frame.has(ACK) => Ok(()),
            other => Err(format!("{other:?}")),
        },
        Verdict::SettingsTaken => read_until(frames, |frame| Sign::SettingsTaken.is_shown_by(frame)),
    }
}

fn is_pong(frame: &Frame) -> bool {
    frame.kind == PING && frame.has(ACK) && frame.payload == PING_WORDS
}

fn read_until(frames: &mut Frames, is_it: impl Fn(&Frame) -> bool) -> Result<(), String> {
    first(frames, is_it).map(drop)
}

/// The first frame of which `is_it` is true; else what was seen.
fn first(frames: &mut Frames, is_it: impl Fn(&Frame) -> bool) -> Result<Frame, String> {
    let mut seen = Vec::new();
    loop {
        match frames.frame() {
            Ok(frame) if is_it(&frame) => return Ok(frame),
            Ok(frame) => seen.push(format!("{}/{:02x} on {} {:?}", frame.kind, frame.flags, frame.stream, frame.code())),
            Err(broken) => return Err(format!("{} then {broken:?}", seen.join(", "))),
        }
    }
}

fn until_closed(frames: &mut Frames) -> Result<(), String> {
    loop {
        match frames.frame() {
            Ok(_) => {}
            Err(Broken::Ended) => return Ok(()),
            Err(broken) => return Err(format!("not closed but {broken:?}")),
        }
    }
}

/// Runs every case on a connection of its own and blames all that failed.
#[track_caller]
fn run_all(words: &Words, connect: impl Fn() -> Frames) {
    let cases = all(words);
    assert_eq!(cases.len(), CASES, "the list is complete");
    let mut slowest = (Duration::ZERO, "");
    let mut failed = Vec::new();
    for case in &cases {
        let began = Instant::now();
        if let Err(why) = run(case, connect()) {
            failed.push(format!("{} {}: {:?}: {why}", case.id, case.what, case.verdict));
        }
        slowest = slowest.max((began.elapsed(), case.id));
    }
    println!("{} cases, the slowest took {} ms: {}", cases.len(), slowest.0.as_millis(), slowest.1);
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn every_case_of_http_2_and_hpack_conformance_holds_without_a_key() {
    let gateway = Gateway::start();
    run_all(&Words { scheme: "http", secret: None }, || Frames::silent(gateway.edge()));
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn every_case_of_http_2_and_hpack_conformance_holds_in_front_of_an_upstream() {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = serde_json::json!(1_000_000));
    let key = gateway.key();
    gateway.upstream.answer(|_| Reply::text(200, "longer than any window of the list"));
    run_all(&Words { scheme: "http", secret: Some(key.secret.clone()) }, || Frames::silent(gateway.edge()));
    assert_eq!(gateway.upstream.violations(), Vec::<String>::new());
    let good = Http2::connect(gateway.edge()).exchange(&Request::get("/good").bearer(&key.secret));
    assert_eq!(good.map(|answer| answer.status), Ok(200));
}

#[test]
fn every_case_of_http_2_and_hpack_conformance_holds_over_tls() {
    let bench = tls::start();
    run_all(&Words { scheme: "https", secret: None }, || Frames::silent_tls(bench.gateway.edge(), bench.client(&["h2"])));
}

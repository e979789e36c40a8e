//! Clients in Python (h2, hyperframe, hpack) and Node (http, http2, fetch, bare sockets) that misbehave: frames in no order,
//! header blocks and bodies without end, abused windows, games with SETTINGS, connections half closed, resets in the middle.
//!
//! `tests/clients/misbehave.py` and `misbehave.mjs` do it, all cases at once; here stands what must come of each, and what
//! must hold beside them: good clients are answered throughout, the upstream finds no fault, and each use is in the
//! activity log exactly once, also where the client was gone before its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::found;
use crate::support::{Client, Gateway, Http2, Key, Reply, Request, SOON, program};

/// A good client that waits longer has noticed. Debug builds on shared machines are slow; what hangs takes far longer.
const NOTICED: Duration = Duration::from_secs(5);
/// Between two rounds of the good client's questions, so that it is no attack itself.
const PACE: Duration = Duration::from_millis(20);
const LARGE_ANSWER_BYTES: usize = 1024 * 1024;

/// What must come of a case.
struct Row {
    name: &'static str,
    /// What its client saw.
    fate: &'static str,
    /// How many uses of it there are: of what is reset in the same moment in which it came, maybe none.
    uses: RangeInclusive<usize>,
    /// How each is recorded: outcome, and reason if there is one.
    record: (&'static str, Option<&'static str>),
}

const fn row(name: &'static str, fate: &'static str, uses: RangeInclusive<usize>, record: (&'static str, Option<&'static str>)) -> Row {
    Row { name, fate, uses, record }
}

const WHOLE: (&str, Option<&str>) = ("allowed", None);
const LEFT: (&str, Option<&str>) = ("allowed", Some("client_abort"));
const SLOW: (&str, Option<&str>) = ("request_timeout", Some("body_too_slow"));

const PYTHON: [Row; 22] = [
    row("data-before-headers", "GOAWAY 1", 0..=0, WHOLE),
    row("data-behind-the-end", "GOAWAY 1", 1..=1, LEFT),
    row("ping-within-a-header-block", "GOAWAY 1", 0..=0, WHOLE),
    row("trailers-that-do-not-end-the-stream", "RST_STREAM 1", 0..=1, LEFT),
    row("streams-that-go-backwards", "GOAWAY 1", 1..=1, LEFT),
    row("a-block-that-names-what-no-table-holds", "GOAWAY 1", 0..=0, WHOLE),
    row("a-header-block-without-end-and-then-silence", "silent", 0..=0, WHOLE),
    row("half-a-frame-and-the-end", "closed", 0..=0, WHOLE),
    row("a-window-that-opens-by-single-bytes", "200 ok", 1..=1, WHOLE),
    row("a-window-beyond-its-maximum", "RST_STREAM 3 200", 1..=1, LEFT),
    row("a-window-that-grows-by-nothing", "GOAWAY 1", 1..=1, LEFT),
    row("more-than-the-window-holds", "3", 0..=1, LEFT),
    row("an-answer-of-which-little-is-taken", "200", 1..=1, LEFT),
    row("settings-that-change-in-the-middle", "200 1048576", 1..=1, WHOLE),
    row("settings-that-are-none", "GOAWAY 1", 1..=1, LEFT),
    row("settings-that-are-never-acknowledged", "200 200", 50..=50, WHOLE),
    row("reset-in-the-middle-of-an-upload", "200", 0..=1, LEFT),
    row("reset-in-the-middle-of-an-answer", "200", 1..=1, LEFT),
    row("goaway-in-the-middle-of-an-answer", "whole 1048576", 1..=1, WHOLE),
    row("gone-in-the-middle-of-an-answer", "gone", 1..=1, LEFT),
    row("a-connection-half-closed-behind-a-request", "closed", 1..=1, LEFT),
    row("an-upload-that-stops", "408 200", 1..=1, SLOW),
];

const NODE: [Row; 16] = [
    row("pipelined-and-gone-behind-the-first-answer", "200", 1..=20, WHOLE),
    row("half-closed-in-the-middle-of-an-answer", "closed 200", 1..=1, LEFT),
    row("half-closed-in-the-middle-of-a-length", "closed 400", 0..=1, LEFT),
    row("half-closed-in-the-middle-of-a-chunk", "closed 400", 0..=1, LEFT),
    row("a-body-that-stops", "closed 408", 1..=1, SLOW),
    row("expects-to-be-told-and-then-sends-nothing", "closed 100,408", 1..=1, SLOW),
    row("a-head-that-stops", "closed ", 0..=0, WHOLE),
    row("one-request-in-single-bytes", "closed 200", 1..=1, WHOLE),
    row("an-answer-read-slowly-and-left", "gone", 1..=1, LEFT),
    row("fetch-aborted-in-the-middle-of-an-upload", "AbortError", 1..=1, LEFT),
    row("http-destroyed-in-the-middle-of-an-answer", "broken", 1..=1, LEFT),
    row("http2-cancelled-in-the-middle-of-an-upload", "no answer RST_STREAM 8, 200", 1..=1, LEFT),
    row("http2-destroyed-while-it-waits", "gone", 10..=10, LEFT),
    row("http2-with-a-shut-window-and-gone", "gone", 1..=1, LEFT),
    row("http2-settings-and-pings-in-the-middle", "200, 200", 1..=1, WHOLE),
    row("http2-says-goodbye-and-asks-again", "200", 1..=1, WHOLE),
];

/// Answers by the first segment of the path: never, at length, without end, or at once.
fn gateway() -> Gateway {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(1_000_000));
    let feeds = Mutex::new(Vec::new());
    gateway.upstream.answer(move |head| match head.start.split('/').nth(1) {
        Some("held") => Reply::Never,
        Some("large") => Reply::Whole { status: 200, fields: Vec::new(), body: vec![b'x'; LARGE_ANSWER_BYTES] },
        Some("begun") => {
            let (feed, answer) = Reply::events();
            feed.send(b"begun".to_vec()).expect("the answer is ours");
            feeds.lock().expect("no holder panics").push(feed);
            answer
        }
        _ => Reply::ok(),
    });
    gateway
}

/// Runs a script; answers what its client saw of each case.
fn run(mut script: Command, gateway: &Gateway, key: &Key) -> BTreeMap<String, String> {
    let edge = gateway.edge();
    let output = program::output_of(script.arg(edge.ip().to_string()).arg(edge.port().to_string()).arg(&key.secret));
    let lines = output.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    lines.map(|line| (text(&line["case"]), text(&line["fate"]))).collect()
}

/// Asks in turn on a kept connection, on a new one and by HTTP/2, as long as anyone holds the other end; answers how often.
fn be_good(gateway: &Gateway, key: &Key, others: &Receiver<()>) -> usize {
    let (mut kept, http2) = (Client::connect(gateway.edge()), Http2::connect(gateway.edge()));
    let request = Request::get("/ok/beside").bearer(&key.secret);
    let mut asked = 0;
    while others.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
        let began = Instant::now();
        kept.exchange(&request).expect("an answer").expect(200);
        Client::connect(gateway.edge()).exchange(&request).expect("an answer").expect(200);
        http2.exchange(&request).expect("an answer").expect(200);
        assert!(began.elapsed() < 3 * NOTICED, "the good client waits for {:?}", began.elapsed());
        asked += 3;
    }
    asked
}

/// The records of uses by the last segment of their path.
fn by_case(records: &[Value]) -> BTreeMap<String, Vec<&Value>> {
    let mut cases: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for record in records.iter().filter(|record| record["action"] == "key.use") {
        let path = record["path"].as_str().expect("a use has a path");
        cases.entry(path.rsplit('/').next().unwrap_or_default().to_owned()).or_default().push(record);
    }
    cases
}

/// What is wrong with the records of a case, of which the upstream saw so many requests.
fn fault(row: &Row, records: &[&Value], seen: usize) -> Option<String> {
    let (outcome, reason) = row.record;
    let is_right = |record: &&Value| record["outcome"] == outcome && record["reason"].as_str() == reason && record["count"].is_null();
    // A client may be gone between what is written down and what is sent.
    let are_right = row.uses.contains(&records.len()) && seen <= records.len() && records.iter().all(is_right);
    (!are_right).then(|| format!("{}: {:?} uses, the upstream saw {seen}, recorded are {records:?}", row.name, row.uses))
}

#[test]
fn clients_that_misbehave_get_what_they_deserve_harm_nobody_and_are_recorded_once_for_each_use() {
    let gateway = gateway();
    let (editor, key) = (gateway.editor(), gateway.key());
    let (fates, beside) = thread::scope(|scope| {
        let (running, others) = mpsc::channel();
        let scripts = [program::python("misbehave.py"), program::node("misbehave.mjs")].map(|script| {
            let (running, gateway, key) = (running.clone(), &gateway, &key);
            scope.spawn(move || (run(script, gateway, key), running).0)
        });
        drop(running);
        let beside = be_good(&gateway, &key, &others);
        let fates = scripts.map(|script| script.join().expect("the script ends well"));
        (fates, beside)
    });
    let rows: Vec<&Row> = PYTHON.iter().chain(&NODE).collect();
    let seen_fates: Vec<(&str, &str)> = fates.iter().flatten().map(|(name, fate)| (name.as_str(), fate.as_str())).collect();
    let wrong: Vec<_> = rows.iter().filter(|row| !seen_fates.contains(&(row.name, row.fate))).map(|row| (row.name, row.fate)).collect();
    assert!(wrong.is_empty() && seen_fates.len() == rows.len(), "{wrong:?} were expected of {seen_fates:?}");

    assert_eq!(gateway.upstream.violations(), Vec::<String>::new());
    let seen = |name: &str| gateway.upstream.seen().iter().filter(|seen| seen.target.ends_with(&format!("/{name}"))).count();
    let goods: Vec<String> = rows.iter().map(|row| format!("{}-good", row.name)).filter(|name| seen(name) > 0).collect();
    let records = found(SOON, "every use is recorded", || {
        let records = gateway.activity(&editor);
        let cases = by_case(&records);
        let count = |name: &str| cases.get(name).map_or(0, Vec::len);
        let is_there = |row: &&Row| count(row.name) >= seen(row.name).max(*row.uses.start());
        let are_there = rows.iter().all(is_there) && goods.iter().all(|name| count(name) >= 1);
        (are_there && count("beside") == beside).then_some(records)
    });
    let mut cases = by_case(&records);
    let faults: Vec<String> =
        rows.iter().filter_map(|row| fault(row, &cases.remove(row.name).unwrap_or_default(), seen(row.name))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for name in &goods {
        let good = cases.remove(name).unwrap_or_default();
        let is_whole = good.len() == 1 && good.iter().all(|record| record["status"] == "200" && record["reason"].is_null());
        assert!(is_whole, "{name}: {good:?}");
    }
    assert_eq!(cases.into_keys().collect::<Vec<_>>(), ["beside"], "nothing else is recorded");
    for id in ["event_id", "request_id"] {
        let ids: BTreeSet<String> = records.iter().map(|record| record[id].to_string()).collect();
        assert_eq!(ids.len(), records.len(), "each {id} is there once");
    }
    println!("{} cases; {beside} good requests beside them", rows.len());
}

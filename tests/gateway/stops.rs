//! A process that does not run for a while: it was stopped (SIGSTOP), or its machine was paused or moved. When it goes on, all
//! its deadlines have passed at once, and nobody's time is held against him who did his part meanwhile.
//!
//! With libfaketime the stop is long by the clock of timers and short for the test.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::clocked::{Clocked, Clocks};
use crate::support::eventually::eventually;
use crate::support::{Client, Http2, Reply, Request, SOON};
use crate::upgrades;

/// Longer than any deadline that an idle or waiting connection has: the longest is 75 s.
const ASLEEP_SECONDS: i64 = 100;
/// How many of each kind there are: a single one could be lucky.
const EACH: usize = 4;

/// Stops the process, lets `meanwhile` happen, and lets it go on, long after by its own clock.
fn sleep_through(clocked: &Clocked, meanwhile: impl FnOnce()) {
    clocked.gateway.signal(Signal::STOP);
    clocked.step(ASLEEP_SECONDS);
    meanwhile();
    clocked.gateway.signal(Signal::CONT);
}

fn each(make: impl FnMut() -> Client) -> Vec<Client> {
    std::iter::repeat_with(make).take(EACH).collect()
}

#[test]
fn a_client_that_did_its_part_while_the_process_slept_is_served_however_far_it_was() {
    let clocked = Clocked::start(Clocks::All, upgrades::allow);
    let gateway = &clocked.gateway;
    let key = gateway.create_key(&clocked.editor(), "MCP server");
    let (events, running) = Reply::events();
    let running = Mutex::new(Some(running));
    gateway.upstream.answer(move |head| match head.start.split(' ').nth(1) {
        Some("/socket") => upgrades::switch(),
        Some("/events") => running.lock().expect("no holder panics").take().expect("asked once"),
        _ => Reply::ok(),
    });
    let head = Request::get("/ok").bearer(&key.secret).head();
    let upload = Request::new("POST", "/upload").bearer(&key.secret).with("Content-Length", "10").head();
    let connected = || Client::connect(gateway.edge());
    let begun = |bytes: &[u8]| {
        let mut client = connected();
        client.send(bytes).expect("sent");
        client
    };
    let mut silent = each(connected);
    let mut in_head = each(|| begun(&head[..30]));
    let mut in_body = each(|| begun(&[&upload[..], b"12345"].concat()));
    let mut idle = each(|| {
        let mut client = connected();
        client.exchange(&Request::get("/ok").bearer(&key.secret)).expect("an answer").expect(200);
        client
    });
    let mut sockets = each(|| {
        let mut client = begun(&upgrades::handshake("/socket", &key.secret));
        assert_eq!(client.answer_head("GET").expect("an answer").0.status, 101);
        client
    });
    let mut listening = begun(&Request::get("/events").bearer(&key.secret).head());
    events.send(b"before".to_vec()).expect("the upstream answers");
    listening.read_until("before").expect("the answer has begun");
    let streams = Http2::connect(gateway.edge());
    let (feed, started) = streams.start_fed(&Request::new("POST", "/stream").bearer(&key.secret));
    feed.blocking_send(b"12345".to_vec()).expect("the stream is open");
    eventually!(SOON, gateway.upstream.count("/upload") == EACH && gateway.upstream.count("/stream") == 1, "uploads have begun");
    // By now the idle ones rest, and the silent ones have been waited for.
    let until = Instant::now() + Duration::from_secs(1);
    eventually!(SOON, Instant::now() > until);

    let mut fresh = Vec::new();
    sleep_through(&clocked, || {
        silent.iter_mut().chain(&mut idle).for_each(|client| client.send(&head).expect("the kernel takes it"));
        in_head.iter_mut().for_each(|client| client.send(&head[30..]).expect("the kernel takes it"));
        in_body.iter_mut().for_each(|client| client.send(b"67890").expect("the kernel takes it"));
        sockets.iter_mut().for_each(|client| client.send("said meanwhile").expect("the kernel takes it"));
        events.send(b"meanwhile".to_vec()).expect("the upstream answers");
        drop(events);
        feed.blocking_send(b"67890".to_vec()).expect("the stream is open");
        drop(feed);
        fresh = each(|| begun(&head));
    });
    let all = [("silent", silent), ("in head", in_head), ("in body", in_body), ("idle", idle), ("fresh", fresh)];
    let mut blamed = Vec::new();
    for (what, clients) in all {
        for mut client in clients {
            let status = client.answer().map(|answer| answer.status);
            blamed.extend((status != Ok(200)).then(|| format!("{what}: {status:?}")));
        }
    }
    for mut client in sockets {
        let echo = client.read_until("said meanwhile");
        blamed.extend(echo.err().map(|broken| format!("WebSocket: {broken:?}")));
    }
    let answered = listening.answer().map(|answer| (answer.text(), answer.complete));
    let whole = Ok(("beforemeanwhile".to_owned(), true));
    blamed.extend((answered != whole).then(|| format!("answer: {answered:?}")));
    for (what, answer) in [("stream", started.answer()), ("next stream", streams.exchange(&Request::get("/ok").bearer(&key.secret)))] {
        let status = answer.map(|answer| answer.status);
        blamed.extend((status != Ok(200)).then(|| format!("{what}: {status:?}")));
    }
    assert!(blamed.is_empty(), "nobody's time is held against him: {blamed:#?}");
}

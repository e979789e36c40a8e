//! K7: revoke stops the key immediately. Once revoke has answered 200, no request that begins is accepted, and what
//! was running with the key ends within a second.
//!
//! On one replica; several come with the shared store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::{eventually, found};
use crate::support::{Client, End, Gateway, Http2, Reply, Request, SOON};

/// "Within a second", and a little for a busy machine.
const CUT: Duration = Duration::from_millis(1500);

#[test]
fn connections_opened_before_the_revocation_accept_nothing_after_it() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "tool");
    let request = Request::get("/ok").bearer(&key.secret);
    let mut http1 = Client::connect(gateway.edge());
    let http2 = Http2::connect(gateway.edge());
    http1.exchange(&request).expect("an answer").expect(200);
    assert_eq!(http2.exchange(&request).map(|answer| answer.status), Ok(200));

    gateway.revoke(&editor, &key);
    gateway.upstream.forget();
    assert_eq!(http2.exchange(&request).map(|answer| answer.code()), Ok("invalid_key".into()));
    // The gateway may also have closed the connection of a revoked key; what it may not do is accept.
    if let Ok(answer) = http1.exchange(&request) {
        answer.expect_problem(401, "invalid_key");
    }
    request.send_to(gateway.edge()).expect_problem(401, "invalid_key");
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn a_revocation_is_confirmed_by_every_replica_before_it_is_answered() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "tool");
    let answer = gateway.revoke(&editor, &key);
    assert_eq!(answer["revocation"]["complete"], true, "{answer}");
    let replicas = answer["revocation"]["replicas"].as_array().expect("a list");
    assert!(replicas.iter().all(|replica| replica["id"].is_string() && replica["confirmed_in_ms"].is_number()), "{answer}");
    assert_eq!(answer["status"], "revoked");
}

#[test]
fn no_request_that_begins_after_the_answer_is_accepted_and_a_refusal_is_final() {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(100_000));
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "busy");
    let log: Arc<Mutex<Vec<(Instant, Instant, u16)>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let hammers: Vec<_> = (0..4)
        .map(|_| {
            let (log, stop, edge) = (Arc::clone(&log), Arc::clone(&stop), gateway.edge());
            let request = Request::get("/ok").bearer(&key.secret);
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let mut client = Client::connect(edge);
                    // Until the connection ends, so that both kept and fresh connections are in play.
                    for _ in 0..20 {
                        let sent = Instant::now();
                        let Ok(answer) = client.exchange(&request) else { break };
                        log.lock().expect("no holder panics").push((sent, Instant::now(), answer.status));
                    }
                }
            })
        })
        .collect();
    let count = |status: u16| log.lock().expect("no holder panics").iter().filter(|entry| entry.2 == status).count();
    eventually!(SOON, count(200) > 100, "the key is in full use");
    gateway.revoke(&editor, &key);
    let revoked = Instant::now();
    eventually!(SOON, count(401) > 100, "the key is refused in full use");
    stop.store(true, Ordering::SeqCst);
    hammers.into_iter().for_each(|hammer| hammer.join().expect("a hammer does not panic"));

    let log = log.lock().expect("no holder panics");
    let first_refusal = log.iter().filter(|entry| entry.2 == 401).map(|entry| entry.1).min().expect("there are refusals");
    for (sent, _, status) in log.iter() {
        assert!([200, 401].contains(status), "{status}");
        assert!(*status == 401 || *sent < revoked, "accepted {:?} after the revocation", *sent - revoked);
        assert!(*status == 401 || *sent < first_refusal, "accepted after a refusal");
    }
}

#[test]
fn a_running_stream_ends_within_a_second_of_the_revocation() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "stream");
    let request = Request::get("/events").bearer(&key.secret);

    let (feed, reply) = Reply::events();
    gateway.upstream.answer_once("/events", reply);
    let mut http1 = Client::connect(gateway.edge());
    http1.send(request.head()).expect("sent");
    feed.send(b"data: one\n\n".to_vec()).expect("the stream runs");
    http1.read_until("data: one").expect("the event arrives");

    let (feed2, reply) = Reply::events();
    gateway.upstream.answer_once("/events", reply);
    let http2 = Http2::connect(gateway.edge());
    let started = http2.start(&request);
    feed2.send(b"data: two\n\n".to_vec()).expect("the stream runs");
    eventually!(SOON, !started.so_far().1.is_empty(), "the event arrives");

    gateway.revoke(&editor, &key);
    assert_ne!(http1.end_within(CUT), End::Open, "the HTTP/1.1 stream is cut");
    assert!(!http1.recorded().ends_with(b"0\r\n\r\n"), "and does not look complete");
    let cut = started.answer_within(CUT).expect("the HTTP/2 stream is cut");
    assert!(!cut.complete, "and does not look complete");
    eventually!(SOON, gateway.upstream.seen().iter().all(|seen| seen.gone_at.is_some()), "the upstream learns of it");
}

#[test]
fn an_upload_in_flight_ends_within_a_second_of_the_revocation() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "upload");
    let mut client = Client::connect(gateway.edge());
    let head = Request::new("POST", "/upload").bearer(&key.secret).with("Content-Length", "1000000").head();
    client.send([head, vec![b'x'; 1000]].concat()).expect("sent");
    eventually!(SOON, gateway.upstream.seen().iter().any(|seen| seen.body_bytes > 0), "the upload has begun");

    gateway.revoke(&editor, &key);
    let began = Instant::now();
    let seen = found(CUT, "the upstream's request is aborted", || gateway.upstream.seen().into_iter().find(|seen| seen.gone_at.is_some()));
    assert!(!seen.complete);
    // The client may be told why before the connection ends.
    client.wait_at_most(CUT);
    client.answer().ok().map(|answer| answer.expect(401));
    assert_ne!(client.end_within(CUT), End::Open);
    assert!(began.elapsed() < 2 * CUT);
}

#[test]
fn revoking_twice_is_200_and_changes_nothing() {
    let gateway = Gateway::start();
    let (editor, other) = (gateway.editor(), gateway.token("firm-1", "user-2", &["View firm settings", "Edit firm settings"]));
    let key = gateway.create_key(&editor, "tool");
    let first = gateway.revoke(&editor, &key);
    let second = gateway.revoke(&other, &key);
    assert_eq!(first["revoked_at"], second["revoked_at"]);
    assert_eq!(second["revoked_by"], first["revoked_by"]);
    let revokes = |records: Vec<serde_json::Value>| records.iter().filter(|record| record["action"] == "key.revoke").count();
    assert_eq!(revokes(gateway.activity(&editor)), 1, "one effective action, one record");
}

#[test]
fn a_revoked_key_stays_revoked_after_kill_9() {
    let mut gateway = Gateway::start();
    let editor = gateway.editor();
    let (key, kept) = (gateway.create_key(&editor, "old"), gateway.create_key(&editor, "kept"));
    gateway.get(&key, "/ok").expect(200);
    gateway.revoke(&editor, &key);
    gateway.kill9();
    gateway.restart();
    gateway.get(&key, "/ok").expect_problem(401, "invalid_key");
    gateway.get(&kept, "/ok").expect(200);
}

//! F10: SIGTERM ends the gateway in order. Readiness turns red first, what runs may finish, nothing new begins, the log
//! is complete. A second signal ends it at once.
//! What outlasts the deadline is cut, told so where it still can be, and recorded as what it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::eventually::eventually;
use crate::support::{Client, End, Gate, Gateway, Http2, Reply, Request, SOON};

/// A gateway whose upstream holds `/held` back until the gate opens.
fn holding() -> (Gateway, Arc<Gate>) {
    let gateway = Gateway::start();
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    gateway.upstream.answer(move |head| if head.start.contains("/held") { Reply::Held(Arc::clone(&held)) } else { Reply::ok() });
    (gateway, gate)
}

#[test]
fn requests_in_flight_finish_and_the_process_ends_with_0() {
    let (mut gateway, gate) = holding();
    let (editor, key) = (gateway.editor(), gateway.key());
    let request = Request::get("/held").bearer(&key.secret);
    let mut http1 = Client::connect(gateway.edge());
    http1.send(request.head()).expect("sent");
    let http2 = Http2::connect(gateway.edge());
    let started = http2.start(&request);
    eventually!(SOON, gateway.upstream.count("/held") == 2);

    gateway.terminate();
    eventually!(SOON, !gateway.is_ready(), "readiness turns red");
    assert!(gateway.is_running(), "while requests are in flight");
    gate.open();
    let answer = http1.answer().expect("the HTTP/1.1 request finishes").expect(200);
    assert!(answer.complete);
    assert_eq!(started.answer().map(|answer| (answer.status, answer.complete)), Ok((200, true)));
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)).code(), Some(0));

    gateway.restart();
    let held = gateway.uses(&editor, 2);
    assert!(held.iter().all(|record| record["outcome"] == "allowed" && record["status"] == "200"), "the log is complete: {held:?}");
}

#[test]
fn readiness_turns_red_while_the_ops_listener_still_answers() {
    let (mut gateway, gate) = holding();
    let key = gateway.key();
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/held").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/held") == 1);
    gateway.terminate();
    eventually!(SOON, gateway.try_ops("/readyz").is_some_and(|answer| answer.status == 503), "a load balancer can read it");
    gate.open();
    client.answer().expect("an answer").expect(200);
    gateway.wait_exit(Duration::from_secs(20));
}

#[test]
fn nothing_new_begins_while_it_drains() {
    let (mut gateway, gate) = holding();
    let key = gateway.key();
    let mut kept = Client::connect(gateway.edge());
    kept.exchange(&Request::get("/ok").bearer(&key.secret)).expect("an answer").expect(200);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/held").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/held") == 1);
    gateway.terminate();
    eventually!(SOON, Client::try_connect(gateway.edge()).is_err() || refuses(&gateway, &key.secret), "new connections are refused");
    // An idle kept connection is closed, or told to go elsewhere.
    if let Ok(answer) = kept.exchange(&Request::get("/late").bearer(&key.secret)) {
        answer.expect_problem(503, "draining");
    }
    assert_eq!(gateway.upstream.count("/late"), 0);
    gate.open();
    client.answer().expect("an answer").expect(200);
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn a_request_that_outlasts_the_drain_is_503_and_recorded_as_such() {
    let mut gateway = Gateway::with(|config| config["edge"]["drain"] = "500ms".into());
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.upstream.answer(|_| Reply::Never);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/held").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/held") == 1);
    gateway.terminate();
    let answer = client.answer().expect("an answer").expect_problem(503, "draining");
    assert_eq!(answer.fields.one("retry-after"), Some("1"));
    assert_ne!(client.end(), End::Open);
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)).code(), Some(0));
    gateway.restart();
    let uses = gateway.uses(&editor, 1);
    assert_eq!(uses.iter().map(|record| record["outcome"].as_str()).collect::<Vec<_>>(), [Some("draining")]);
}

#[test]
fn a_stream_that_outlasts_the_drain_is_cut_at_its_deadline_and_recorded_as_such() {
    let mut gateway = Gateway::with(|config| config["edge"]["drain"] = "500ms".into());
    let (editor, key) = (gateway.editor(), gateway.key());
    let (feed, reply) = Reply::events();
    gateway.upstream.answer_once("/stream", reply);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/stream").bearer(&key.secret).head()).expect("sent");
    feed.send(b"tick!".to_vec()).expect("the stream runs");
    client.read_until("tick!").expect("the event arrives");
    gateway.terminate();
    assert_ne!(client.end_within(Duration::from_secs(20)), End::Open);
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)).code(), Some(0));
    gateway.restart();
    let uses = gateway.uses(&editor, 1);
    assert_eq!(uses.iter().map(|record| record["reason"].as_str()).collect::<Vec<_>>(), [Some("draining")]);
}

/// Whether a request on a fresh connection gets no service.
fn refuses(gateway: &Gateway, secret: &str) -> bool {
    let Ok(mut client) = Client::try_connect(gateway.edge()) else { return true };
    client.wait_at_most(Duration::from_millis(500));
    !client.exchange(&Request::get("/new").bearer(secret)).is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (mut gateway, _gate) = holding();
    let (editor, key) = (gateway.editor(), gateway.key());
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/held").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/held") == 1);
    gateway.terminate();
    eventually!(SOON, !gateway.is_ready());
    assert!(gateway.is_running());
    let began = Instant::now();
    gateway.terminate();
    gateway.wait_exit(Duration::from_secs(5));
    assert!(began.elapsed() < Duration::from_secs(3), "at once");
    gateway.restart();
    assert_eq!(gateway.uses(&editor, 1).len(), 1, "what it cut off is in the log, once");
}

#[test]
fn an_idle_gateway_ends_quickly_and_leaves_nothing_unshipped() {
    let mut gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    for turn in 0..50 {
        gateway.get(&key, &format!("/{turn}")).expect(200);
    }
    let began = Instant::now();
    gateway.signal(rustix::process::Signal::INT);
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8));
    gateway.restart();
    assert_eq!(gateway.uses(&editor, 50).len(), 50);
}

#[test]
fn requests_that_outlast_the_deadline_are_cut_and_recorded() {
    let mut gateway = Gateway::with(|config| config["edge"]["drain"] = serde_json::json!("1s"));
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.upstream.answer(|_| Reply::Never);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/never").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/never") == 1);
    gateway.terminate();
    gateway.wait_exit(Duration::from_secs(15));
    gateway.restart();
    assert_eq!(gateway.uses(&editor, 1).len(), 1);
}

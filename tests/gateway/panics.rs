//! A defect of ours in one request: that request is answered with 500 or visibly breaks off, is recorded once, and nobody
//! else notices, also on the same connection.
//!
//! Only in a program that panics on purpose (`cargo test --features mutants`, a step of `.ci/run`); see `src/mutants.rs`.

use std::fs;
use std::sync::Arc;

use serde_json::Value;

use crate::support::eventually::eventually;
use crate::support::{Client, End, Gate, Gateway, Http2, Reply, Request, SOON};

const TURNS: usize = 20;

/// Requests panic at `point` while `trouble` goes on, and no longer.
fn while_it_panics_at(gateway: &Gateway, point: &str, trouble: impl FnOnce()) {
    let file = gateway.folder().join(format!("panic-{point}"));
    fs::write(&file, "").expect("our folder");
    trouble();
    fs::remove_file(file).expect("our file");
}

fn records(gateway: &Gateway, editor: &str, path: &str) -> Vec<Value> {
    gateway.activity(editor).into_iter().filter(|record| record["path"] == path).collect()
}

#[test]
fn a_panic_before_a_request_is_forwarded_is_500_recorded_and_harms_no_other() {
    for point in ["known", "begun"] {
        let mut gateway = Gateway::start();
        let (editor, key) = (gateway.editor(), gateway.key());
        let gate = Gate::new();
        let held = Arc::clone(&gate);
        gateway.upstream.answer(move |head| if head.start.contains("/held") { Reply::Held(Arc::clone(&held)) } else { Reply::ok() });
        let (http2, mut client) = (Http2::connect(gateway.edge()), Client::connect(gateway.edge()));
        let beside = http2.start(&Request::get("/held").bearer(&key.secret));
        eventually!(SOON, gateway.upstream.count("/held") == 1);
        while_it_panics_at(&gateway, point, || {
            let request = Request::get("/panics").bearer(&key.secret);
            for _ in 0..TURNS {
                let answer = client.exchange(&request).expect("an answer on a connection that stays").expect_problem(500, "internal_error");
                assert!(answer.fields.one("x-request-id").is_some(), "it is found in the log by its id");
                http2.exchange(&request).expect("a stream of its own").expect_problem(500, "internal_error");
            }
            let upload = Request::post("/panics", vec![b'x'; 100_000]).bearer(&key.secret);
            upload.send_to(gateway.edge()).expect_problem(500, "internal_error");
            gateway.create_key(&editor, "made meanwhile");
        });
        assert_eq!(gateway.upstream.count("/panics"), 0, "nothing was forwarded");
        gate.open();
        assert_eq!(beside.answer().expect("who was under way").status, 200);
        client.exchange(&Request::get("/after").bearer(&key.secret)).expect("the same connection").expect(200);
        assert_eq!(http2.exchange(&Request::get("/after").bearer(&key.secret)).map(|answer| answer.status), Ok(200));
        let told = || -> usize {
            let all = records(&gateway, &editor, "/panics");
            assert!(all.iter().all(|record| record["outcome"] == "internal_error" && record["status"] == "500"), "{all:?}");
            all.iter().map(|record| record["count"].as_str().map_or(1, |count| count.parse().expect("a number"))).sum()
        };
        eventually!(SOON, told() == 2 * TURNS + 1, "each is recorded once");
        eventually!(SOON, gateway.metric("assure_gateway_requests_in_flight") == 0.0, "nothing is left in flight");
        assert!(gateway.log().contains(&format!("on purpose, at {point}")), "the operator can read where");
        gateway.assert_alive(&key);
    }
}

#[test]
fn a_panic_in_an_answers_body_breaks_that_answer_off_and_harms_no_other() {
    let mut gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let (feed, reply) = Reply::events();
    gateway.upstream.answer_once("/panics", reply);
    feed.send(b"data: 1\n\n".to_vec()).expect("it listens");
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/panics").bearer(&key.secret).head()).expect("sent");
    client.read_until("data: 1").expect("the first event");
    while_it_panics_at(&gateway, "answer", || {
        feed.send(b"data: 2\n\n".to_vec()).expect("it listens");
        assert_ne!(client.end(), End::Open, "it is cut");
    });
    assert!(!client.recorded().ends_with(b"0\r\n\r\n"), "it does not look complete");
    let told = || records(&gateway, &editor, "/panics");
    eventually!(SOON, told().len() == 1 && told()[0]["status"] == "200", "it is recorded once");
    assert_eq!((told()[0]["outcome"].as_str(), told()[0]["reason"].as_str()), (Some("internal_error"), Some("internal")), "{:?}", told());
    eventually!(SOON, gateway.metric("assure_gateway_requests_in_flight") == 0.0, "nothing is left in flight");
    gateway.assert_alive(&key);
}

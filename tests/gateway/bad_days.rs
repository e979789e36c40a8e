//! Dependencies that fail: the store's file and the spool. Whatever fails, a caller is told to come back, never that the
//! key is wrong, and nothing is forwarded that cannot be recorded.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::support::eventually::{eventually, found};
use crate::support::{Gate, Gateway, Http2, Reply, Request, SOON};

#[test]
fn a_use_that_cannot_be_recorded_is_503_and_never_forwarded_while_create_and_revoke_go_on() {
    let gateway = Gateway::with(|config| {
        config["audit"]["spool"]["size_max"] = json!("1MiB");
        config["limits"]["requests_per_minute"] = json!(100_000);
        config["upstreams"]["ledger"]["connections_max"] = json!(1_000);
    });
    let (editor, key) = (gateway.editor(), gateway.key());
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    gateway.upstream.answer(move |head| if head.start.contains("/held") { Reply::Held(Arc::clone(&held)) } else { Reply::ok() });
    // Each open use keeps room for its end; long targets make each of them large, until the smallest spool is full.
    let target = |turn: usize| format!("/held/{turn}/{}", "x".repeat(1_000));
    let connections: Vec<Http2> = (0..4).map(|_| Http2::connect(gateway.edge())).collect();
    let started: Vec<_> = (0..400).map(|turn| connections[turn % 4].start(&Request::get(&target(turn)).bearer(&key.secret))).collect();
    let refused = found(Duration::from_secs(60), "a use without room", || {
        started.iter().position(|started| {
            let (status, body) = started.so_far();
            status == 503 && String::from_utf8_lossy(&body).contains("audit_unavailable")
        })
    });
    assert_eq!(gateway.upstream.count(&target(refused)), 0);
    let second = gateway.create_key(&editor, "made on a bad day");
    gateway.revoke(&editor, &second);
    assert_eq!(gateway.metric("assure_gateway_audit_dropped_total"), 0.0);

    gate.open();
    let answer = started.into_iter().nth(refused).expect("it is there").answer().expect("an answer");
    assert_eq!(answer.expect_problem(503, "audit_unavailable").fields.one("retry-after"), Some("1"));
    eventually!(SOON, gateway.get(&key, "/after").status == 200, "room comes back by itself");
    let changes = gateway.activity(&editor).into_iter().filter(|record| record["key_name"] == "made on a bad day");
    assert_eq!(changes.map(|record| record["action"].clone()).collect::<Vec<_>>(), ["key.create", "key.revoke"]);
}

#[test]
fn a_store_that_cannot_be_read_is_503_and_never_401() {
    let mut gateway = Gateway::start();
    let key = gateway.create_key(&gateway.editor(), "Zapier integration");
    gateway.terminate();
    gateway.wait_exit(Duration::from_secs(20));
    damage(&gateway.folder().join("store/store.redb"), b"Zapier integration");
    gateway.restart();
    for _ in 0..3 {
        let answer = gateway.get(&key, "/after").expect_problem(503, "store_unavailable");
        assert_eq!(answer.fields.one("retry-after"), Some("1"));
    }
    assert!(gateway.upstream.targets().is_empty());
    eventually!(SOON, gateway.log().contains("the store failed a request"), "the operator can read why");
}

/// Breaks every place of a file that holds `text`: a control byte makes the record around it unreadable.
fn damage(file: &Path, text: &[u8]) {
    let mut bytes = fs::read(file).expect("the file");
    let places: Vec<usize> = (0..bytes.len().saturating_sub(text.len())).filter(|place| bytes[*place..].starts_with(text)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|place| bytes[place] = 0);
    fs::write(file, bytes).expect("written");
}

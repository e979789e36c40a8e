//! Dependencies that fail: the store's file, the spool, a key's file, and time.
//!
//! Whatever fails, a caller is told to come back, never that the key is wrong, and nothing is forwarded that cannot be
//! recorded. Full and damaged disks are in `bad_disks`, clocks in `bad_times`, upstreams in `bad_upstreams`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::crowd::Crowd;
use crate::support::eventually::eventually;
use crate::support::identity::header_of;
use crate::support::{Client, Gate, Gateway, Reply, Request, SOON};

#[test]
fn a_use_that_cannot_be_recorded_is_503_and_never_forwarded_while_create_and_revoke_go_on() {
    let gateway = Gateway::with(Crowd::configure);
    let (editor, key) = (gateway.editor(), gateway.key());
    let crowd = Crowd::fill(&gateway, &key);
    let second = gateway.create_key(&editor, "made on a bad day");
    gateway.revoke(&editor, &second);
    assert_eq!(gateway.metric("assure_gateway_audit_dropped_total"), 0.0);

    let (answer, _) = crowd.end();
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

/// A file that the gateway reads, and what damages it.
const DAMAGES: [(&str, &[u8]); 4] = [
    ("emptied", b""),
    ("garbage", b"\0garbage\xff"),
    ("cut in the middle", b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2"),
    ("another kind of file", b"{\"keys\": {}}"),
];

#[test]
fn a_signing_key_that_is_damaged_changes_nothing_is_named_and_is_taken_again_once_mended() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("signing.pem");
    let made = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    fs::write(&file, &made).expect("our folder");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our file");
    let gateway = Gateway::with(|config| config["assertion"] = json!({ "signing_keys": [{ "file": file }] }));
    let key = gateway.key();
    let signed_by = |target: &str| {
        gateway.get(&key, target).expect(200);
        let seen = gateway.upstream.last(target);
        header_of(seen.fields.one("x-assure-jwt-assertion").expect("an assertion"))["kid"].clone()
    };
    let before = (signed_by("/before"), gateway.ops_get("/.well-known/jwks.json").json());
    let reloads = |result: &str| gateway.metric(&format!("assure_gateway_config_reloads_total{{result=\"{result}\"}}"));
    for (what, bytes) in DAMAGES {
        let (failures, log) = (reloads("failure"), gateway.log().len());
        fs::write(&file, bytes).expect("our folder");
        gateway.signal(Signal::HUP);
        eventually!(SOON, reloads("failure") > failures, "{what}: the failure is counted");
        let told = || gateway.log()[log..].to_owned();
        eventually!(SOON, told().contains("was not reloaded") && told().contains("signing.pem"), "{what}: the operator can read which");
        let after = (signed_by("/after"), gateway.ops_get("/.well-known/jwks.json").json());
        assert_eq!(after, before, "{what}: what worked goes on working");
        assert!(gateway.is_ready(), "{what}");
    }
    fs::write(&file, &made).expect("our folder");
    let successes = reloads("success");
    gateway.signal(Signal::HUP);
    eventually!(SOON, reloads("success") > successes, "once mended it is taken again");
    assert_eq!(signed_by("/mended"), before.0);
}

#[test]
fn a_process_that_was_stopped_goes_on_where_it_was_and_blames_nobody_for_the_time() {
    const STOPPED: Duration = Duration::from_secs(3);
    let gateway = Gateway::with(|config| {
        config["limits"]["requests_per_minute"] = json!(10);
        config["upstreams"]["ledger"]["timeout"] = json!({ "response_header": "1s", "idle": "1s" });
    });
    let (editor, key) = (gateway.editor(), gateway.key());
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    gateway.upstream.answer(move |head| if head.start.contains("/held") { Reply::Held(Arc::clone(&held)) } else { Reply::ok() });
    let mut connected = Client::connect(gateway.edge());
    connected.exchange(&Request::get("/connected").bearer(&key.secret)).expect("an answer").expect(200);
    let mut waiting = Client::connect(gateway.edge());
    waiting.send(Request::get("/held").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/held") == 1);

    gateway.signal(Signal::STOP);
    let until = Instant::now() + STOPPED;
    // The upstream answers meanwhile, well within its deadline; the process cannot know.
    gate.open();
    connected.send(Request::get("/connected").bearer(&key.secret).head()).expect("the kernel takes it");
    let mut fresh = Client::connect(gateway.edge());
    fresh.send(Request::get("/fresh").bearer(&key.secret).head()).expect("the kernel takes it");
    eventually!(SOON, Instant::now() > until);
    gateway.signal(Signal::CONT);
    for (what, client) in [("held", &mut waiting), ("connected", &mut connected), ("fresh", &mut fresh)] {
        assert_eq!(client.answer().map(|answer| answer.status), Ok(200), "{what}: its time is not held against it");
    }
    // Four of ten; a stop neither gives uses back nor takes any.
    let statuses: Vec<u16> = (0..7).map(|_| gateway.get(&key, "/rest").status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 429]);
    let allowed = |record: &serde_json::Value| record["action"] == "key.use" && record["outcome"] == "allowed";
    eventually!(SOON, gateway.activity(&editor).into_iter().filter(allowed).count() == 10, "each use is recorded once");
    assert_eq!(gateway.upstream.targets().len(), 10);
    assert!(gateway.is_ready());
}

/// Breaks every place of a file that holds `text`: a control byte makes the record around it unreadable.
fn damage(file: &Path, text: &[u8]) {
    let mut bytes = fs::read(file).expect("the file");
    let places: Vec<usize> = (0..bytes.len().saturating_sub(text.len())).filter(|place| bytes[*place..].starts_with(text)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|place| bytes[place] = 0);
    fs::write(file, bytes).expect("written");
}

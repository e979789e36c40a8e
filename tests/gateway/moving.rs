//! Moving in and growing: `assure-gateway store export | import` between the embedded store and Redis, on the real binary.
//!
//! The two long tests wait a minute each, because the program does: a key that was used just before a move must not have
//! its window twice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::redis::Redis;
use crate::support::{Gateway, Key, SOON, program};

const WINDOW: Duration = Duration::from_secs(60);

/// What runs a `store` command on this gateway's configuration.
fn store(gateway: &Gateway, what: &str) -> Command {
    let mut command = gateway.command(&["store", what, "--config"]);
    command.arg(gateway.config_file());
    command
}

fn stop(gateway: &mut Gateway) {
    gateway.terminate();
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
}

fn export(gateway: &Gateway) -> PathBuf {
    let file = gateway.folder().join("moved.jsonl");
    program::output_of(store(gateway, "export").arg("--output").arg(&file));
    file
}

/// What a command that must fail says.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = program::run(command);
    assert_eq!(output.status.code(), Some(1), "{}", program::text(&output.stderr));
    program::text(&output.stderr)
}

fn embedded(gateway: &Gateway) -> Value {
    json!({ "embedded": { "path": gateway.folder().join("another") } })
}

/// Keys, uses and a revocation, then everything to another store: there nothing is lost, doubled or revived.
fn moves(from: impl FnOnce(&mut Value), to: impl FnOnce(&Gateway) -> Value) -> Gateway {
    let mut gateway = Gateway::with(|config| {
        from(config);
        config["limits"] = json!({ "requests_per_minute": 40 });
    });
    let editor = gateway.editor();
    let [live, dead]: [Key; 2] = ["live", "dead"].map(|name| gateway.create_key(&editor, name));
    for turn in 0..3 {
        gateway.get(&dead, &format!("/dead/{turn}")).expect(200);
    }
    gateway.revoke(&editor, &dead);
    gateway.get(&dead, "/dead").expect_problem(401, "invalid_key");
    for turn in 0..40 {
        gateway.get(&live, &format!("/live/{turn}")).expect(200);
    }
    gateway.get(&live, "/live").expect_problem(429, "rate_limited");
    let used = Instant::now();
    let before = crate::support::eventually::found(SOON, "all records", || {
        Some(gateway.activity(&editor)).filter(|records| records.len() == 2 + 3 + 1 + 1 + 40 + 1)
    });
    stop(&mut gateway);
    let file = export(&gateway);
    let text = fs::read_to_string(&file).expect("an export is text");
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
    for key in [&live, &dead] {
        assert!(text.contains(&key.id) && !text.contains(&key.secret) && !text.contains(&key.secret[16..]), "no secret");
    }
    assert!(refused(store(&gateway, "export").arg("--output").arg(&file)).contains("moved.jsonl"), "nothing is written over");

    let store_of_the_end = to(&gateway);
    gateway.rewrite_config(|config| config["store"] = store_of_the_end);
    let cut = gateway.folder().join("cut.jsonl");
    fs::write(&cut, &text[..text.len() / 2]).expect("our folder");
    assert!(refused(store(&gateway, "import").arg("--input").arg(&cut)).contains("line "), "it names the line");
    let said = program::run(store(&gateway, "import").arg("--input").arg(&file));
    assert!(said.status.success(), "{}", program::text(&said.stderr));
    assert!(program::text(&said.stderr).contains("waiting"), "{}", program::text(&said.stderr));
    assert!(used.elapsed() >= WINDOW, "the window was full when the store was left: {:?}", used.elapsed());
    assert!(refused(store(&gateway, "import").arg("--input").arg(&file)).contains("not empty"));

    gateway.restart();
    let editor = gateway.editor();
    assert_eq!(gateway.activity(&editor), before);
    for turn in 0..5 {
        gateway.get(&live, &format!("/after/{turn}")).expect(200);
    }
    gateway.get(&dead, "/after").expect_problem(401, "invalid_key");
    let keys = gateway.admin_get(&editor, "/v1/keys?status=all").expect(200).json();
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(2));
    let after = crate::support::eventually::found(SOON, "the new records", || {
        Some(gateway.activity(&editor)).filter(|records| records.len() == before.len() + 6)
    });
    assert_eq!(after[..before.len()], before, "what was there stays as it was");
    let mut sequences: Vec<u64> = after.iter().filter_map(|record| record["sequence"].as_str()?.parse().ok()).collect();
    sequences.sort_unstable();
    assert!(sequences.iter().copied().eq(1..=sequences.len() as u64), "one spool, shipped once: {sequences:?}");
    gateway
}

#[test]
fn everything_moves_from_the_embedded_store_to_redis() {
    let redis = Redis::start();
    let gateway = moves(|_| {}, |_| redis.store("1s"));
    assert_eq!(redis.streamed("event_id").len(), 6, "consumers get what is new, and nothing twice");
    drop(gateway);
}

#[test]
fn everything_moves_from_redis_to_the_embedded_store() {
    let redis = Redis::start();
    moves(|config| config["store"] = redis.store("1s"), embedded);
}

#[test]
fn a_store_moves_through_a_pipe_without_a_wait_when_no_key_was_used() {
    let (first, second) = (Redis::start(), Redis::start());
    let mut gateway = Gateway::with(|config| config["store"] = first.store("500ms"));
    let key = gateway.key();
    stop(&mut gateway);
    let mut exporting = store(&gateway, "export").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let pipe = exporting.stdout.take().expect("piped");
    let elsewhere = gateway.folder().join("elsewhere.yaml");
    let mut config = gateway.config();
    config["store"] = second.store("500ms");
    fs::write(&elsewhere, config.to_string()).expect("our folder");
    let mut importing = gateway.command(&["store", "import", "--config"]);
    let began = Instant::now();
    program::output_of(importing.arg(&elsewhere).stdin(pipe));
    assert!(exporting.wait().expect("our child").success() && began.elapsed() < Duration::from_secs(20));
    gateway.rewrite_config(|config| config["store"] = second.store("500ms"));
    gateway.restart();
    gateway.get(&key, "/ok").expect(200);
}

#[test]
fn a_store_that_a_gateway_works_on_is_refused_by_name() {
    let mut gateway = Gateway::with(|config| config["audit"]["spool"]["size_max"] = "64MiB".into());
    assert!(refused(&mut store(&gateway, "export")).contains("another process"), "the file is locked");
    stop(&mut gateway);
    let empty = export(&gateway);
    let redis = Redis::start();
    gateway.rewrite_config(|config| {
        config["store"] = redis.store("500ms");
        config["replica"] = "replica-of-the-test".into();
    });
    gateway.restart();
    for command in [&mut store(&gateway, "export"), store(&gateway, "import").arg("--input").arg(&empty)] {
        let said = refused(command);
        assert!(said.contains("replica-of-the-test"), "{said}");
    }
    gateway.get(&gateway.key(), "/ok").expect(200);
    stop(&mut gateway);
    program::output_of(&mut store(&gateway, "export"));
}

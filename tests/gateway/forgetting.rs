//! When Redis forgets, is emptied, is another one, or is changed by another version: what it lost is told to it again, and
//! what cannot be believed is nobody's key becoming invalid. K7 and K13 hold through it; the strict mode needs no lease.
//!
//! Redis forgets here by being killed and started on an earlier copy of its files, or by FLUSHALL.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::eventually::{eventually, found};
use crate::support::redis::Redis;
use crate::support::{Client, Gateway, Key, Request, SOON};

const LEASE: &str = "500ms";
/// How long after Redis was changed behind its back a gateway may take to notice: a quarter of the lease, and slack.
const NOTICED: Duration = Duration::from_secs(5);

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.get(key, "/ok").status
}

fn gateway_with(redis: &Redis, change: impl FnOnce(&mut Value)) -> Gateway {
    Gateway::with(|config| {
        config["store"] = redis.store(LEASE);
        change(config);
    })
}

/// Waits until a gateway has met so many incarnations of Redis in its life, and trusts the last.
fn has_met(gateway: &Gateway, incarnations: usize) -> bool {
    gateway.log().matches("met a new incarnation").count() >= incarnations && gateway.is_ready()
}

/// Revokes; the first call after a restart of Redis may meet a connection that broke with it, and then says 503.
fn revoke(gateway: &Gateway, editor: &str, key: &Key) {
    let request = Request::json("POST", &format!("/v1/keys/{}/revoke", key.id), &json!({}));
    eventually!(SOON, gateway.ask_admin(&request.clone().bearer(editor)).status == 200);
}

/// Runs the gateway on its folder until it ends by itself; answers what it said.
fn run_to_its_end(gateway: &Gateway) -> String {
    let mut command: Command = gateway.command(&["run", "--config"]);
    let mut process = command.arg(gateway.config_file()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    found(SOON, "the end of a start that is refused", || process.try_wait().expect("it is our child").filter(|status| !status.success()));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut process.stderr.take().expect("piped"), &mut said).expect("text");
    said
}

/// Asks until every answer is the wanted one; any status but these is a broken promise.
fn eventually_all(gateway: &Gateway, keys: &[&Key], wanted: u16, allowed: &[u16]) {
    eventually!(SOON, {
        let seen: Vec<u16> = keys.iter().map(|key| status(gateway, key)).collect();
        assert!(seen.iter().all(|status| allowed.contains(status)), "{seen:?}");
        seen.iter().all(|status| *status == wanted)
    });
}

#[test]
fn a_revocation_that_redis_lost_is_made_again_though_every_gateway_was_killed() {
    let redis = Redis::start();
    let mut gateway = gateway_with(&redis, |_| {});
    let editor = gateway.editor();
    let (key, other) = (gateway.create_key(&editor, "one"), gateway.create_key(&editor, "two"));
    let before = redis.down_and_copied();
    redis.up();
    eventually!(SOON, has_met(&gateway, 2) && status(&gateway, &key) == 200);
    revoke(&gateway, &editor, &key);
    gateway.kill9();
    redis.down();
    redis.restore(&before);
    redis.up();
    gateway.restart();
    gateway.get(&key, "/ok").expect_problem(401, "invalid_key");
    assert_eq!(status(&gateway, &other), 200);
    assert!(gateway.upstream.targets().iter().filter(|target| *target == "/ok").count() <= 2, "the revoked key was never forwarded again");
    let shown = gateway.admin_get(&editor, &format!("/v1/keys/{}", key.id)).expect(200).json();
    assert_eq!(shown["status"], "revoked", "{shown}");
    let made_again = gateway.activity(&editor).into_iter().filter(|record| record["action"] == "key.revoke").collect::<Vec<_>>();
    assert_eq!(made_again.len(), 1, "{made_again:?}");
    assert_eq!((made_again[0]["actor"].as_str(), made_again[0]["key_id"].as_str()), (Some("assure-gateway"), Some(key.id.as_str())));
}

#[test]
fn a_replica_that_lives_makes_a_lost_revocation_again() {
    let redis = Redis::start();
    let (a, b) = (gateway_with(&redis, |_| {}), gateway_with(&redis, |_| {}));
    let editor = a.editor();
    let key = a.create_key(&editor, "tool");
    let before = redis.down_and_copied();
    redis.up();
    eventually!(SOON, has_met(&a, 2) && has_met(&b, 2));
    revoke(&a, &editor, &key);
    drop(a);
    redis.down();
    redis.restore(&before);
    redis.up();
    eventually_all(&b, &[&key], 401, &[401, 503]);
    eventually!(SOON, b.is_ready());
    eventually_all(&b, &[&key], 401, &[401]);
    let fresh = gateway_with(&redis, |_| {});
    fresh.get(&key, "/ok").expect_problem(401, "invalid_key");
}

/// The same process, the same data set, and a past that another server has kept.
#[test]
fn a_redis_that_took_back_anothers_past_without_a_restart_is_met_anew() {
    let (redis, other) = (Redis::start(), Redis::start());
    let follow = |one: &Redis, leader: &Redis| {
        let address = leader.address();
        one.tell(&["REPLICAOF", &address.ip().to_string(), &address.port().to_string()]);
        eventually!(SOON, one.ask(&["INFO", "replication"]).is_some_and(|told| told.contains("master_link_status:up")));
        one.tell(&["REPLICAOF", "NO", "ONE"]);
    };
    let gateway = gateway_with(&redis, |_| {});
    let editor = gateway.editor();
    let (key, kept) = (gateway.create_key(&editor, "one"), gateway.create_key(&editor, "two"));
    follow(&other, &redis);
    revoke(&gateway, &editor, &key);
    let met = gateway.log().matches("met a new incarnation").count();
    follow(&redis, &other);
    eventually!(SOON, has_met(&gateway, met + 1));
    eventually_all(&gateway, &[&kept], 200, &[200, 503]);
    gateway.get(&key, "/ok").expect_problem(401, "invalid_key");
    let fresh = gateway_with(&redis, |_| {});
    fresh.get(&key, "/ok").expect_problem(401, "invalid_key");
}

#[test]
fn an_emptied_redis_is_never_the_callers_fault_and_is_refused_until_the_operator_decides() {
    let redis = Redis::start();
    let mut gateway = gateway_with(&redis, |_| {});
    let editor = gateway.editor();
    let (known, unknown) = (gateway.create_key(&editor, "cached"), gateway.create_key(&editor, "not cached"));
    assert_eq!(status(&gateway, &known), 200);
    let full = redis.down_and_copied();
    redis.up();
    eventually!(SOON, has_met(&gateway, 2) && status(&gateway, &known) == 200);
    redis.ask(&["FLUSHALL"]).expect("Redis answers");
    let emptied = Instant::now();
    for round in 0.. {
        let seen = [status(&gateway, &known), status(&gateway, &unknown)];
        assert!([200, 503].contains(&seen[0]) && seen[1] == 503, "{seen:?}: a good key is never called invalid");
        if emptied.elapsed() > NOTICED || (seen[0] == 503 && round > 50) {
            break;
        }
    }
    gateway.get(&known, "/ok").expect_problem(503, "store_unavailable");
    let ready = gateway.ops_get("/readyz").expect(503).text();
    assert!(ready.contains("this Redis is empty"), "{ready}");
    gateway.try_create(&editor, &json!({ "name": "x" })).expect(503);
    gateway.admin_get(&editor, "/v1/keys").expect(503);
    let revocation = Request::json("POST", &format!("/v1/keys/{}/revoke", known.id), &json!({}));
    gateway.ask_admin(&revocation.bearer(&editor)).expect(503);
    assert_eq!(gateway.log().matches("the store cannot be believed").count(), 1, "said once");
    assert!(redis.ask(&["DBSIZE"]).expect("Redis answers").starts_with(":0"), "nothing was written into it");
    gateway.terminate();
    gateway.wait_exit(SOON);
    let said = run_to_its_end(&gateway);
    assert!(said.contains("/spool/known-store") && said.contains("allow_unsafe: true") && said.contains("this Redis is empty"), "{said}");
    redis.down();
    redis.restore(&full);
    redis.up();
    gateway.restart();
    eventually_all(&gateway, &[&known, &unknown], 200, &[200]);
    redis.ask(&["FLUSHALL"]).expect("Redis answers");
    gateway.rewrite_config(|config| config["store"]["redis"]["allow_unsafe"] = json!(true));
    gateway.restart();
    gateway.get(&known, "/ok").expect_problem(401, "invalid_key");
    let fresh = gateway.create_key(&editor, "new");
    assert_eq!(status(&gateway, &fresh), 200);
    gateway.rewrite_config(|config| config["store"]["redis"]["allow_unsafe"] = json!(false));
    gateway.restart();
    assert_eq!(status(&gateway, &fresh), 200, "the new one is now the known one");
}

#[test]
fn a_gateway_goes_on_by_itself_when_the_known_redis_is_back() {
    let redis = Redis::start();
    let gateway = gateway_with(&redis, |_| {});
    let (key, empty) = (gateway.key(), tempfile::tempdir().expect("a temporary folder"));
    assert_eq!(status(&gateway, &key), 200);
    let full = redis.down_and_copied();
    redis.restore(&empty);
    redis.up();
    eventually!(SOON, gateway.ops_get("/readyz").text().contains("this Redis is empty"));
    eventually_all(&gateway, &[&key], 503, &[503]);
    redis.down();
    redis.restore(&full);
    redis.up();
    eventually_all(&gateway, &[&key], 200, &[200, 503]);
    eventually!(SOON, gateway.is_ready());
}

#[test]
fn a_layout_that_another_version_changed_is_never_written_on() {
    let redis = Redis::start();
    let gateway = gateway_with(&redis, |_| {});
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "tool");
    assert_eq!(status(&gateway, &key), 200);
    let layout = redis.ask(&["GET", "assure:{assure:audit}:schema"]).expect("Redis answers").lines().nth(1).expect("a value").to_owned();
    redis.ask(&["SET", "assure:{assure:audit}:schema", "999"]).expect("Redis answers");
    let stream = || redis.ask(&["XLEN", "assure:audit"]).expect("Redis answers");
    gateway.try_create(&editor, &json!({ "name": "x" })).expect(503);
    eventually_all(&gateway, &[&key], 503, &[200, 503]);
    let (before, ready) = (stream(), gateway.ops_get("/readyz").expect(503).text());
    assert!(ready.contains("now holds layout") && ready.contains("999"), "{ready}");
    eventually!(SOON, gateway.log().contains("the store cannot be believed"));
    gateway.get(&key, "/ok").expect_problem(503, "store_unavailable");
    assert_eq!(stream(), before, "nothing is shipped into it");
    redis.ask(&["SET", "assure:{assure:audit}:schema", &layout]).expect("Redis answers");
    eventually_all(&gateway, &[&key], 200, &[200, 503]);
}

#[test]
fn uses_that_redis_forgot_are_told_again_and_none_is_counted_twice() {
    let redis = Redis::start();
    let limited = |config: &mut Value| config["limits"]["requests_per_minute"] = json!(40);
    let (a, b) = (gateway_with(&redis, limited), gateway_with(&redis, limited));
    let editor = a.editor();
    let (lost, kept) = (a.create_key(&editor, "lost"), a.create_key(&editor, "kept"));
    let spend = |gateway: &Gateway, key: &Key, count: usize| (0..count).filter(|_| status(gateway, key) == 200).count();
    assert_eq!(spend(&a, &kept, 15), 15);
    let before = redis.down_and_copied();
    redis.up();
    eventually!(SOON, has_met(&a, 2) && has_met(&b, 2));
    let began = Instant::now();
    assert_eq!((spend(&a, &lost, 20), spend(&b, &lost, 13)), (20, 13));
    redis.down();
    redis.restore(&before);
    redis.up();
    // Neither is asked before it has refused for a term: a permit in that time would be one of a store that forgot.
    let mut later = 0;
    eventually!(SOON, {
        let seen = status(&b, &lost);
        assert!([200, 503].contains(&seen), "{seen}");
        later += usize::from(seen == 200);
        seen == 200
    });
    eventually!(SOON, has_met(&a, 3) && has_met(&b, 3));
    later += spend(&a, &lost, 20) + spend(&b, &lost, 20);
    assert!(began.elapsed() < Duration::from_secs(55), "too slow a machine to say anything");
    assert!((1..=7).contains(&later), "40 in any minute, of which 33 were forgotten: {later}");
    assert!(later >= 5, "what both told was counted once: {later}");
    let rest = spend(&a, &kept, 40);
    assert!((23..=25).contains(&rest), "what was kept was not counted twice: {rest}");
}

#[test]
fn records_that_redis_forgot_are_in_its_log_again_though_nobody_uses_a_key_meanwhile() {
    let redis = Redis::start();
    let gateway = gateway_with(&redis, |_| {});
    let key = gateway.key();
    assert_eq!(status(&gateway, &key), 200);
    eventually!(SOON, redis.streamed("outcome").len() == 2);
    let before = redis.down_and_copied();
    redis.up();
    eventually!(SOON, has_met(&gateway, 2));
    assert_eq!([(); 5].map(|()| status(&gateway, &key)), [200; 5]);
    eventually!(SOON, redis.streamed("outcome").len() == 7);
    let all = redis.streamed("event_id");
    redis.down();
    redis.restore(&before);
    redis.up();
    eventually!(SOON, redis.streamed("event_id").len() >= 7);
    assert_eq!(redis.streamed("event_id"), all, "each once, and in its order");
    assert_eq!(gateway.metric("assure_gateway_audit_dropped_total"), 0.0);
}

#[test]
fn records_that_redis_and_the_spool_have_both_forgotten_are_counted_and_hold_nothing_up() {
    let redis = Redis::start();
    let mut gateway = gateway_with(&redis, |config| {
        config["audit"]["spool"]["size_max"] = json!("1MiB");
        config["limits"]["requests_per_minute"] = json!(100_000);
    });
    let key = gateway.key();
    assert_eq!(status(&gateway, &key), 200);
    let streamed = || -> usize {
        let length = redis.ask(&["XLEN", "assure:audit"]).expect("Redis answers");
        length.trim().trim_start_matches(':').parse().expect("a number")
    };
    eventually!(SOON, streamed() == 2);
    let before = redis.down_and_copied();
    redis.up();
    eventually!(SOON, has_met(&gateway, 2));
    // Several times what a spool of this size keeps of what was shipped.
    let (mut client, request) = (Client::connect(gateway.edge()), Request::get("/ok").bearer(&key.secret));
    let many = 2_000;
    for sent in 1..=many {
        client.exchange(&request).expect("an answer").expect(200);
        // The spool holds some 700 of them; where shipping is slow, more at once are refused, and rightly.
        if sent % 200 == 0 {
            eventually!(SOON, streamed() == 2 + sent);
        }
    }
    let lost = |gateway: &Gateway| gateway.metric("assure_gateway_audit_dropped_total");
    assert_eq!(lost(&gateway), 0.0);
    let set_back = || {
        redis.down();
        redis.restore(&before);
        redis.up();
    };
    set_back();
    eventually!(SOON, lost(&gateway) > 0.0 && gateway.metric("assure_gateway_audit_spool_bytes") == 0.0);
    assert_eq!(streamed() + lost(&gateway) as usize, 2 + many, "what is still held is told again");
    assert_eq!(gateway.log().matches("audit records are lost").count(), 1, "said once");
    eventually_all(&gateway, &[&key], 200, &[200, 503]);
    // The same while no gateway runs.
    gateway.kill9();
    set_back();
    gateway.restart();
    assert!(lost(&gateway) > 0.0);
    let shipped = streamed();
    eventually_all(&gateway, &[&key], 200, &[200]);
    eventually!(SOON, streamed() > shipped);
}

#[test]
fn a_frozen_redis_is_503_for_a_cached_key_with_the_true_reason_when_the_lease_ends() {
    let redis = Redis::start();
    let gateway = gateway_with(&redis, |_| {});
    let key = gateway.key();
    assert_eq!(status(&gateway, &key), 200);
    redis.signal(Signal::STOP);
    let refused = r#"rejections_total{reason="replica_incoherent"}"#;
    let refusals = || gateway.metric(&format!("assure_gateway_{refused}"));
    eventually_all(&gateway, &[&key], 503, &[200, 503]);
    gateway.get(&key, "/ok").expect_problem(503, "store_unavailable");
    eventually!(SOON, refusals() > 0.0);
    redis.signal(Signal::CONT);
    eventually_all(&gateway, &[&key], 200, &[200, 503]);
}

#[test]
fn in_strict_mode_a_revocation_waits_for_nobody_and_a_thawed_replica_accepts_nothing() {
    let redis = Redis::start();
    // Long enough that whoever waited for it would be seen to.
    let strict = |config: &mut Value| {
        config["store"]["redis"]["coherence_lease"] = json!("4s");
        config["store"]["redis"]["revocation"] = json!("strict");
    };
    let (a, b) = (gateway_with(&redis, strict), gateway_with(&redis, strict));
    let editor = a.editor();
    let (key, other) = (a.create_key(&editor, "tool"), a.create_key(&editor, "other"));
    assert_eq!([status(&a, &key), status(&b, &key), status(&b, &other)], [200; 3]);
    let mut waiting: Vec<Client> = (0..8).map(|_| Client::connect(b.edge())).collect();
    for client in &mut waiting {
        client.exchange(&Request::get("/ok").bearer(&key.secret)).expect("an answer").expect(200);
    }
    b.signal(Signal::STOP);
    waiting.extend((0..8).map(|_| Client::connect(b.edge())));
    let began = Instant::now();
    let answer = a.revoke(&editor, &key);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?} {answer}", began.elapsed());
    b.upstream.forget();
    for client in &mut waiting {
        client.send(Request::get("/ok").bearer(&key.secret).head()).expect("the kernel takes it");
    }
    b.signal(Signal::CONT);
    for client in &mut waiting {
        let answer = client.answer().expect("an answer");
        assert!([401, 503].contains(&answer.status), "{}", answer.status);
    }
    assert!(b.upstream.targets().is_empty(), "nothing was forwarded");
    eventually_all(&b, &[&key], 401, &[401, 503]);
    eventually!(SOON, status(&b, &other) == 200);
    let late = a.create_key(&editor, "late");
    assert_eq!(status(&b, &late), 200, "a new key works everywhere at once");
}

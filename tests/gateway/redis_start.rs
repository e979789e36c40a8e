//! What a gateway makes of the Redis that it finds at its start, and of its settings later: what time may mend is waited
//! for, red and with the reason; what it does not mend ends the start with a sentence that names setting and value.
//!
//! While it waits only ops listens, so that no balancer sends anybody, and nobody takes the process for dead.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::eventually;
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON};

const LEASE: &str = "1s";
/// How long a fault may take to mend, or a setting to be noticed: the longest pause between looks, and slack.
const MENDED: Duration = Duration::from_secs(20);

#[test]
fn a_gateway_waits_for_a_redis_that_is_away_and_is_neither_ready_nor_dead() {
    let redis = Redis::stopped();
    let mut gateway = waits(&redis, "nothing listens at the address");
    gateway.terminate();
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0), "it can be told to end while it waits");
    let mut gateway = waits(&redis, "nothing listens at the address");
    redis.up();
    starts(&mut gateway);
}

#[test]
fn a_gateway_waits_for_a_redis_that_will_take_writes() {
    let redis = Redis::start();
    redis.tell(&["REPLICAOF", "127.0.0.1", "1"]);
    let mut gateway = waits(&redis, "takes no writes");
    redis.tell(&["REPLICAOF", "NO", "ONE"]);
    starts(&mut gateway);
    redis.tell(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut gateway = waits(&redis, "maxmemory");
    redis.tell(&["CONFIG", "SET", "maxmemory", "0"]);
    starts(&mut gateway);
}

#[test]
fn a_gateway_waits_for_a_redis_that_will_know_its_password() {
    let redis = Redis::start();
    redis.tell(&["CONFIG", "SET", "requirepass", "another"]);
    let mut gateway = waits(&redis, "wants a password");
    redis.ask_as("another", &["CONFIG", "SET", "requirepass", ""]);
    starts(&mut gateway);

    redis.tell(&["CONFIG", "SET", "requirepass", "another"]);
    let file = redis.folder().join("password");
    std::fs::write(&file, "wrong\n").expect("our folder");
    let mut gateway = Gateway::waiting(|config| {
        config["store"] = redis.store(LEASE);
        config["store"]["redis"]["password_file"] = json!(file);
    });
    eventually!(SOON, gateway.readiness("store").1.contains("user or password is wrong"), "{}", gateway.ops_get("/readyz").text());
    std::fs::write(&file, "another\n").expect("our folder");
    starts(&mut gateway);
    assert!(!gateway.log().contains("another"), "a password is in no log");
}

/// A gateway that waits, and says for what.
#[track_caller]
fn waits(redis: &Redis, reason: &str) -> Gateway {
    let gateway = Gateway::waiting(|config| config["store"] = redis.store(LEASE));
    eventually!(SOON, gateway.readiness("store").1.contains(reason), "{reason}, not {}", gateway.ops_get("/readyz").text());
    gateway.ops_get("/readyz").expect(503);
    gateway.ops_get("/healthz").expect(200);
    gateway.ops_get("/.well-known/jwks.json").expect(200);
    eventually!(SOON, gateway.log().contains("waiting for Redis") && gateway.log().contains(reason));
    assert!(!gateway.log().contains("\"edge\"") && !gateway.log().contains("\"admin\""), "they do not listen yet");
    gateway
}

#[track_caller]
fn starts(gateway: &mut Gateway) {
    gateway.become_ready();
    let key = gateway.key();
    eventually!(SOON, gateway.get(&key, "/ok").status == 200);
    assert!(gateway.log().matches("waiting for Redis").count() <= 3, "no flood:\n{}", gateway.log());
}

#[test]
fn a_gateway_waits_a_term_at_its_start_only_where_redis_has_started_since_another_was_trusted() {
    const TERM: Duration = Duration::from_millis(6_160);
    let redis = Redis::start();
    let begun = Instant::now();
    let [mut first] = redis.gateways("6s");
    assert!(begun.elapsed() < TERM, "in an empty Redis nothing can have been forgotten");
    let key = first.key();
    first.get(&key, "/ok").expect(200);
    let begun = Instant::now();
    let [second] = redis.gateways("6s");
    assert!(begun.elapsed() < TERM, "beside one that is trusted");
    second.get(&key, "/ok").expect(200);
    drop(second);
    first.kill9();
    let begun = Instant::now();
    first.restart();
    assert!(begun.elapsed() < TERM, "after one that was trusted");
    first.get(&key, "/ok").expect(200);
    first.kill9();
    redis.down();
    redis.up();
    let begun = Instant::now();
    first.restart();
    assert!(begun.elapsed() >= TERM, "another start of Redis may have forgotten what others remember");
    first.get(&key, "/ok").expect(200);
}

#[test]
fn a_redis_that_may_evict_or_forget_ends_the_start_with_the_setting_and_allow_unsafe_begins_all_the_same() {
    for (settings, sentence, value) in [
        (["--maxmemory-policy", "allkeys-lru"], "maxmemory-policy noeviction", "setting=\"maxmemory-policy\",value=\"allkeys-lru\"} 0"),
        (["--appendonly", "no"], "appendonly yes", "setting=\"appendonly\",value=\"no\"} 0"),
    ] {
        let redis = Redis::stopped();
        redis.spawn(&settings);
        eventually!(SOON, redis.ask(&["PING"]).is_some_and(|answer| answer.starts_with("+PONG")));
        let (code, said) = Gateway::refused(|config| config["store"] = redis.store(LEASE));
        assert!(code == Some(1) && said.contains(sentence) && said.contains(settings[1]), "{code:?} {said}");
        let gateway = Gateway::with(|config| {
            config["store"] = redis.store(LEASE);
            config["store"]["redis"]["allow_unsafe"] = json!(true);
        });
        eventually!(SOON, gateway.log().contains("allow_unsafe is set") && gateway.log().contains(sentence));
        eventually!(SOON, shows_setting(&gateway, value));
    }
}

#[test]
fn a_redis_of_another_layout_or_without_config_ends_the_start() {
    let redis = Redis::start();
    redis.tell(&["HSET", "assure:stores", "assure:audit", "99 1"]);
    let (code, said) = Gateway::refused(|config| config["store"] = redis.store(LEASE));
    assert!(code == Some(1) && said.contains("layout \"99\""), "{code:?} {said}");
    let redis = Redis::start();
    redis.tell(&["ACL", "SETUSER", "default", "-config"]);
    let (code, said) = Gateway::refused(|config| config["store"] = redis.store(LEASE));
    assert!(code == Some(1) && said.contains("+config|get") && said.contains("allow_unsafe: true"), "{code:?} {said}");
}

#[test]
fn settings_that_change_under_a_running_gateway_are_noticed_and_told() {
    let redis = Redis::start();
    let [gateway]: [Gateway; 1] = redis.gateways(LEASE);
    eventually!(SOON, shows_setting(&gateway, "setting=\"appendfsync\",value=\"always\"} 1"));
    for (name, value, sign) in [("maxmemory-policy", "allkeys-lru", "may evict"), ("appendfsync", "everysec", "may lose the last second")] {
        redis.tell(&["CONFIG", "SET", name, value]);
        eventually!(MENDED, shows_setting(&gateway, &format!("setting=\"{name}\",value=\"{value}\"}} 0")));
        eventually!(SOON, gateway.log().contains(sign) && gateway.readiness("settings").1.contains(sign));
    }
    // A risk is told; only an outage turns readiness red.
    gateway.ops_get("/readyz").expect(200);
    redis.tell(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.tell(&["CONFIG", "SET", "appendfsync", "always"]);
    eventually!(MENDED, shows_setting(&gateway, "setting=\"maxmemory-policy\",value=\"noeviction\"} 1"));
    eventually!(SOON, gateway.log().contains("keep what it acknowledges again"));
    assert_eq!(gateway.log().matches("may evict").count(), 1, "said once");
    // Another incarnation of the store is looked at as soon as it is met.
    redis.down();
    redis.spawn(&["--appendfsync", "no"]);
    eventually!(MENDED, shows_setting(&gateway, "setting=\"appendfsync\",value=\"no\"} 0"));
}

fn shows_setting(gateway: &Gateway, series: &str) -> bool {
    gateway.ops_get("/metrics").text().contains(&format!("assure_gateway_store_setting_safe{{{series}\n"))
}

//! Clocks that are set while the gateway runs, by hours in either direction: windows, leases, keys and records stay right,
//! because what decides counts on a clock that nobody can set. Tokens and assertions carry the wall's time, as they must.
//!
//! The wall clock of one process is set with libfaketime; the clock that counts since the machine's start stays true.

use serde_json::{Value, json};

use crate::support::clocked::{Clocked, Clocks};
use crate::support::eventually::eventually;
use crate::support::identity::{claims_of, now};
use crate::support::redis::Redis;
use crate::support::{Gateway, Key, SOON};

const HOUR: i64 = 3_600;

/// How old an assertion of the gateway's is by the true time.
fn assertion_age(gateway: &Gateway, target: &str) -> i64 {
    let seen = gateway.upstream.last(target);
    let claims = claims_of(seen.fields.one("x-assure-jwt-assertion").expect("an assertion"));
    claims["iat"].as_i64().expect("a time") - i64::try_from(now()).expect("small")
}

#[test]
fn a_wall_clock_that_is_set_by_hours_gives_no_window_back_and_kills_no_key() {
    let redis = Redis::start();
    for store in [None, Some(redis.store("1s"))] {
        let clocked = Clocked::start(Clocks::Wall, |config| {
            config["limits"]["requests_per_minute"] = json!(6);
            if let Some(store) = &store {
                config["store"] = store.clone();
            }
        });
        let gateway = &clocked.gateway;
        let editor = clocked.editor();
        let key = gateway.create_key(&editor, "MCP server");
        let mut accepted = 0;
        for (step, offset) in [0, 5 * HOUR, -5 * HOUR, 26 * HOUR, 0].into_iter().enumerate() {
            clocked.step(offset);
            let target = format!("/step/{step}");
            gateway.get(&key, &target).expect(200);
            accepted += 1;
            assert!((assertion_age(gateway, &target) - offset).abs() <= 40, "an assertion carries the wall's time");
            // A moment for renewals of the lease, which may not notice.
            eventually!(SOON, gateway.is_ready(), "the lease holds");
        }
        gateway.get(&key, "/last").expect(200);
        accepted += 1;
        for offset in [0, 7 * HOUR, -7 * HOUR] {
            clocked.step(offset);
            let answer = gateway.get(&key, "/over").expect_problem(429, "rate_limited");
            let wait: u64 = answer.fields.one("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
            assert!((1..=60).contains(&wait), "{wait}");
        }
        clocked.step(0);
        assert_records(gateway, &editor, accepted);
        revoked_under_a_step(&clocked, &key);
    }
}

/// Each use once, in a sequence without gaps, whatever the clock said meanwhile; pages neither repeat nor leave out.
fn assert_records(gateway: &Gateway, editor: &str, accepted: usize) {
    let allowed = || -> Vec<Value> {
        gateway.activity(editor).into_iter().filter(|record| record["action"] == "key.use" && record["outcome"] == "allowed").collect()
    };
    eventually!(SOON, allowed().len() == accepted, "each use is recorded once");
    let mut sequences: Vec<u64> = gateway
        .activity(editor)
        .iter()
        .filter(|record| record["action"] == "key.use")
        .map(|record| record["sequence"].as_str().expect("a sequence").parse().expect("a number"))
        .collect();
    sequences.sort_unstable();
    assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "no gap: {sequences:?}");
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = gateway.admin_get(editor, &format!("/v1/activity?action=key.use&limit=2{cursor}")).expect(200).json();
        let records = page["records"].as_array().expect("a page").clone();
        ids.extend(records.iter().map(|record| record["event_id"].as_str().expect("an id").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), all), (sequences.len(), sequences.len()), "pages neither repeat nor leave out");
}

fn revoked_under_a_step(clocked: &Clocked, key: &Key) {
    let old = clocked.editor();
    clocked.step(30 * 24 * HOUR);
    clocked.gateway.admin_get(&old, "/v1/keys").expect_problem(401, "unauthorized");
    let editor = clocked.editor();
    clocked.gateway.revoke(&editor, key);
    for offset in [30 * 24 * HOUR, 0, -30 * 24 * HOUR] {
        clocked.step(offset);
        clocked.gateway.get(key, "/revoked").expect_problem(401, "invalid_key");
    }
}

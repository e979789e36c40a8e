//! The promises between replicas: real gateways on one real Redis. K7, K12, K13 and K16 hold over all of them together,
//! when replicas freeze, die and come back, and when Redis does.
//!
//! Every gateway here has an upstream of its own, so what was forwarded by whom can be told apart.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::eventually::{eventually, found};
use crate::support::redis::Redis;
use crate::support::{Client, EDIT, FIRM, Gateway, Key, Request, SOON, VIEW};

/// The lease of the tests that wait for it, and what a revoker waits at most: the lease, 1 % and 100 ms.
const LEASE: &str = "1s";
const TERM: Duration = Duration::from_millis(1_110);
/// For a busy machine, on top of what is promised.
const SLACK: Duration = Duration::from_millis(1_500);

fn confirmations(answer: &serde_json::Value) -> Vec<u64> {
    let replicas = answer["revocation"]["replicas"].as_array().expect("a list");
    replicas.iter().map(|replica| replica["confirmed_in_ms"].as_u64().expect("a number")).collect()
}

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.get(key, "/ok").status
}

#[test]
fn a_key_created_at_one_replica_works_at_all_and_revoked_at_one_works_at_none() {
    let redis = Redis::start();
    let gateways: [Gateway; 3] = redis.gateways("3s");
    let editor = gateways[0].editor();
    for round in 0..3 {
        let key = gateways[0].create_key(&editor, &format!("key {round}"));
        for gateway in &gateways {
            assert_eq!(status(gateway, &key), 200, "round {round}");
        }
        let began = Instant::now();
        let answer = gateways[0].revoke(&editor, &key);
        let took = began.elapsed();
        for gateway in &gateways {
            gateway.get(&key, "/ok").expect_problem(401, "invalid_key");
        }
        let confirmed = confirmations(&answer);
        assert_eq!(confirmed.len(), 3, "{answer}");
        // Far below a renewal's pause (750 ms), so it was the hint that made them renew.
        assert!(took < Duration::from_millis(500) && confirmed.iter().all(|ms| *ms < 500), "{took:?} {answer}");
        assert!(gateways.iter().all(|gateway| gateway.upstream.violations().is_empty()));
    }
}

#[test]
fn a_frozen_replica_costs_a_revocation_one_term_and_accepts_nothing_when_it_thaws() {
    let redis = Redis::start();
    let [a, b]: [Gateway; 2] = redis.gateways(LEASE);
    let editor = a.editor();
    let key = a.create_key(&editor, "tool");
    assert_eq!((status(&a, &key), status(&b, &key)), (200, 200));
    // What the thawed process finds at once: half a head that came before the freeze, connections that were used before,
    // and connections that only the kernel has accepted.
    let head = Request::get("/ok").bearer(&key.secret).head();
    let (early, late) = head.split_at(head.len() / 2);
    let mut begun: Vec<Client> = (0..8).map(|_| Client::connect(b.edge())).collect();
    begun.iter_mut().for_each(|client| client.send(early).expect("sent"));
    let mut waiting: Vec<Client> = (0..8).map(|_| Client::connect(b.edge())).collect();
    for client in &mut waiting {
        client.exchange(&Request::get("/ok").bearer(&key.secret)).expect("an answer");
    }
    b.signal(Signal::STOP);
    waiting.extend((0..8).map(|_| Client::connect(b.edge())));
    let began = Instant::now();
    let answer = a.revoke(&editor, &key);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(700), "the frozen replica may still have trusted its cache: {took:?} {answer}");
    assert!(took <= TERM + SLACK, "{took:?}");
    assert_eq!(confirmations(&answer).len(), 1, "only this one has confirmed: {answer}");
    b.upstream.forget();
    waiting.iter_mut().for_each(|client| client.send(&head).expect("the kernel takes it"));
    begun.iter_mut().for_each(|client| client.send(late).expect("the kernel takes it"));
    b.signal(Signal::CONT);
    for client in waiting.iter_mut().chain(&mut begun) {
        let answer = client.answer().expect("an answer");
        assert!([401, 503].contains(&answer.status), "{}", answer.status);
    }
    eventually!(SOON, status(&b, &key) == 401, "it learns of the revocation");
    assert!(b.upstream.targets().is_empty(), "nothing was forwarded");
}

#[test]
fn a_replica_that_ended_in_order_delays_no_revocation() {
    let redis = Redis::start();
    // Long enough that whoever waited for it would be seen to.
    let [a, mut b]: [Gateway; 2] = redis.gateways("5s");
    let editor = a.editor();
    let (one, two) = (a.create_key(&editor, "one"), a.create_key(&editor, "two"));
    assert_eq!(status(&b, &one), 200);
    assert_eq!(confirmations(&a.revoke(&editor, &one)).len(), 2);
    let sessions = || redis.ask(&["HLEN", "assure:{assure:audit}:sessions"]).expect("Redis answers").trim().to_owned();
    assert_eq!(sessions(), ":2");
    b.terminate();
    b.wait_exit(SOON);
    assert_eq!(sessions(), ":1");
    let began = Instant::now();
    let answer = a.revoke(&editor, &two);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(confirmations(&answer).len(), 1, "{answer}");
}

#[test]
fn a_killed_replica_delays_revocations_for_one_term_only() {
    let redis = Redis::start();
    let [a, mut b]: [Gateway; 2] = redis.gateways(LEASE);
    let editor = a.editor();
    let (first, second) = (a.create_key(&editor, "one"), a.create_key(&editor, "two"));
    b.kill9();
    let began = Instant::now();
    a.revoke(&editor, &first);
    assert!(began.elapsed() <= TERM + SLACK);
    let silent = Instant::now() + TERM;
    eventually!(SOON, Instant::now() > silent);
    let began = Instant::now();
    a.revoke(&editor, &second);
    assert!(began.elapsed() < Duration::from_millis(500), "its lease is known to be over: {:?}", began.elapsed());
}

#[test]
fn four_replicas_accept_exactly_a_thousand_of_one_key() {
    let redis = Redis::start();
    let gateways: [Gateway; 4] = redis.gateways("3s");
    let key = gateways[0].key();
    let began = Instant::now();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let clients: Vec<_> = gateways
            .iter()
            .flat_map(|gateway| std::iter::repeat_n(gateway.edge(), 5))
            .map(|edge| {
                let request = Request::get("/ok").bearer(&key.secret);
                scope.spawn(move || {
                    let mut client = Client::connect(edge);
                    (0..250).map(|_| client.exchange(&request).expect("an answer").status).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("no client panics")).collect()
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(58), "too slow a machine to say anything: {took:?}");
    let count = |status: u16| statuses.iter().filter(|known| **known == status).count();
    assert_eq!((count(200), count(429), statuses.len()), (1_000, 4_000, 5_000));
    assert_eq!(gateways.iter().map(|gateway| gateway.upstream.count("/ok")).sum::<usize>(), 1_000);
}

#[test]
fn fifty_creates_at_once_over_three_replicas_make_five_keys() {
    let redis = Redis::start();
    let gateways: [Gateway; 3] = redis.gateways("3s");
    let editors = gateways.each_ref().map(Gateway::editor);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let calls: Vec<_> = (0..50)
            .map(|number| {
                let (gateway, editor) = (&gateways[number % 3], &editors[number % 3]);
                scope.spawn(move || gateway.try_create(editor, &json!({ "name": format!("key {number}") })).status)
            })
            .collect();
        calls.into_iter().map(|call| call.join().expect("no call panics")).collect()
    });
    let count = |status: u16| statuses.iter().filter(|known| **known == status).count();
    assert_eq!((count(201), count(409)), (5, 45), "{statuses:?}");
    let listed = gateways[1].admin_get(&editors[1], "/v1/keys").expect(200).json();
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(5));
}

#[test]
fn every_use_is_in_the_stream_exactly_once_though_gateways_and_redis_are_killed() {
    let redis = Redis::start();
    let [a, mut b]: [Gateway; 2] = redis.gateways("500ms");
    let key = a.key();
    let mut accepted = HashSet::new();
    let mut send = |gateway: &Gateway, count: usize| {
        for _ in 0..count {
            let answer = found(SOON, "accepted again", || {
                let answer = gateway.get(&key, "/ok");
                assert!([200, 503].contains(&answer.status), "{}", answer.status);
                (answer.status == 200).then_some(answer)
            });
            accepted.insert(answer.fields.one("x-request-id").expect("a request id").to_owned());
        }
    };
    send(&a, 40);
    send(&b, 40);
    redis.down();
    b.kill9();
    redis.up();
    send(&a, 40);
    b.restart();
    send(&b, 40);
    redis.down();
    redis.up();
    send(&a, 20);
    send(&b, 20);
    eventually!(SOON, {
        let streamed = redis.streamed("request_id");
        let outcomes = redis.streamed("outcome");
        streamed.iter().filter(|id| accepted.contains(*id)).count() >= accepted.len() && outcomes.len() > accepted.len()
    });
    let streamed = redis.streamed("request_id");
    let unique: HashSet<&String> = streamed.iter().collect();
    assert_eq!(unique.len(), streamed.len(), "no request twice");
    assert!(accepted.iter().all(|id| unique.contains(id)), "none lost");
    let editor = a.editor();
    let mut listed = Vec::new();
    // The last refusals of the outage may still be on their way.
    eventually!(SOON, {
        listed = a.activity(&editor);
        listed.len() == redis.streamed("event_id").len()
    });
    let mut sequences: HashMap<&str, Vec<u64>> = HashMap::new();
    for record in listed.iter().filter(|record| record["action"] == "key.use") {
        let sequence = record["sequence"].as_str().and_then(|text| text.parse().ok()).expect("a number");
        sequences.entry(record["replica"].as_str().expect("a name")).or_default().push(sequence);
    }
    assert_eq!(sequences.len(), 2);
    for (replica, mut all) in sequences {
        all.sort_unstable();
        assert!(all.iter().copied().eq(1..=all.len() as u64), "{replica} has a gap or a repeat: {all:?}");
    }
}

#[test]
fn ten_thousand_uses_of_ten_cached_keys_ask_redis_for_leases_permits_and_the_log_only() {
    const REQUESTS: usize = 10_000;
    const KEYS: usize = 10;
    let redis = Redis::start();
    let gateway = Gateway::with(|config| {
        config["store"] = redis.store("3s");
        config["limits"]["requests_per_minute"] = json!(100_000);
    });
    let keys: Vec<Key> = (0..KEYS)
        .map(|number| gateway.create_key(&gateway.token(FIRM, &format!("user-{}", number % 2), &[VIEW, EDIT]), &format!("key {number}")))
        .collect();
    keys.iter().for_each(|key| drop(gateway.get(key, "/ok").expect(200)));
    eventually!(SOON, gateway.metric("assure_gateway_audit_spool_bytes") == 0.0);
    let misses = gateway.metric("assure_gateway_key_cache_misses_total");
    let (reserved, shipped) = (gateway.metric("assure_gateway_rate_limit_reservations_total"), ships(&gateway));
    redis.tell(&["CONFIG", "RESETSTAT"]);
    let began = Instant::now();
    thread::scope(|scope| {
        for key in &keys {
            let (request, edge) = (Request::get("/ok").bearer(&key.secret), gateway.edge());
            scope.spawn(move || {
                let mut client = Client::connect(edge);
                for _ in 0..REQUESTS / KEYS {
                    client.exchange(&request).expect("an answer").expect(200);
                }
            });
        }
    });
    eventually!(SOON, gateway.metric("assure_gateway_audit_spool_bytes") == 0.0);
    let calls = redis.calls();
    let reserved = gateway.metric("assure_gateway_rate_limit_reservations_total") - reserved;
    let shipped = ships(&gateway) - shipped;
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(gateway.metric("assure_gateway_key_cache_misses_total"), misses, "every look-up was a hit");
    let count = |command: &str| calls.get(command).copied().unwrap_or(0) as f64;
    // A renewal every quarter of 3 s, the settings' four questions every 10 s; one of each more at either end.
    let (renewals, looks) = (seconds / 0.75 + 2.0, seconds / 10.0 + 2.0);
    // A key's grants double from 1 to 64 (7 calls), then each is used up (1,000 / 64) or is over after a second, and the
    // next one begins with what that one used.
    assert!(reserved <= KEYS as f64 * (7.0 + 16.0 + 2.0 * seconds), "{reserved} reservations in {seconds} s");
    // Batches are collected for 20 ms, or full.
    assert!(shipped <= seconds / 0.02 + REQUESTS as f64 / 100.0, "{shipped} shipments in {seconds} s");
    // A large batch is shipped in several calls; each has a block or more for the firm's log.
    let shipments = shipped + REQUESTS as f64 / 512.0;
    let bounds = [
        // Every script: renewals, each with a look at the other sessions, permits and shipments; nothing else has one.
        ("evalsha", 2.0 * renewals + reserved + shipments),
        // One in each look at the sessions and in each permits script; a look-up would add one for each request.
        ("hgetall", renewals + reserved),
        // Three in each renewal (epoch, token, trimmed epoch), one in each shipment (mark), and the mark's own.
        ("get", 3.0 * renewals + shipped + shipments),
        ("config|get", 4.0 * looks),
        // One per record for the consumers, one per block for the firm's log.
        ("xadd", REQUESTS as f64 * 1.02 + shipments),
    ];
    for (command, most) in bounds {
        assert!(count(command) <= most, "{command}: {} and not at most {most}: {calls:?}", count(command));
    }
    assert!(count("evalsha") < REQUESTS as f64 / 10.0, "{calls:?}");
    let streamed = redis.ask(&["XLEN", "assure:audit"]).expect("Redis answers");
    assert_eq!(streamed.trim(), format!(":{}", REQUESTS + 2 * KEYS), "each use is told to consumers");
}

/// Batches that were sent to the store's log.
fn ships(gateway: &Gateway) -> f64 {
    gateway.metric("assure_gateway_store_duration_seconds_count{operation=\"ship\"}")
}

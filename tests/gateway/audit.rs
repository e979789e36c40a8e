//! K16: every action on a key is in the firm's activity log, exactly once: across refusals, clients that go away at
//! any moment, and kill -9 under load.
//!
//! The oracle: what the upstream saw is a subset of what the log holds, and so is what clients were told. Of creates and revokes the
//! list of keys is one, too: what it shows is what the log holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::chunk;
use crate::support::eventually::{eventually, found};
use crate::support::{Client, EDIT, FIRM, Gateway, Http2, Key, Reply, Request, SOON, USER, VIEW};

fn text<'a>(record: &'a Value, member: &str) -> &'a str {
    record[member].as_str().unwrap_or_else(|| panic!("{member} is missing in {record}"))
}

#[test]
fn create_use_and_revoke_leave_one_complete_record_each() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "MCP server");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request =
        Request::post("/v1/things?secret=1", "hello").bearer(&key.secret).with("User-Agent", "tool/1.0").with("traceparent", trace);
    let answer = request.send_to(gateway.edge()).expect(200);
    gateway.uses(&editor, 1);
    gateway.revoke(&editor, &key);

    let records = gateway.activity(&editor);
    let actions: Vec<&str> = records.iter().map(|record| text(record, "action")).collect();
    assert_eq!(actions, ["key.create", "key.use", "key.revoke"]);
    for record in &records {
        assert!(record.as_object().is_some_and(|members| members.values().all(Value::is_string)), "one flat set of strings: {record}");
        assert_eq!((text(record, "firm_id"), text(record, "key_id"), text(record, "key_name")), (FIRM, key.id.as_str(), "MCP server"));
        assert_eq!(text(record, "key_prefix"), key.prefix);
        let time = text(record, "time");
        assert!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "RFC 3339 with microseconds: {time}");
    }
    let ids: BTreeSet<&str> = records.iter().map(|record| text(record, "event_id")).collect();
    assert_eq!(ids.len(), 3);
    let (create, used, revoke) = (&records[0], &records[1], &records[2]);
    assert_eq!((text(create, "actor"), text(revoke, "actor"), text(used, "actor")), (USER, USER, key.id.as_str()));
    assert_eq!(text(revoke, "reason"), "rotated");
    let expected = [
        ("outcome", "allowed"),
        ("method", "POST"),
        ("path", "/v1/things"),
        ("host", "localhost"),
        ("route", "everything"),
        ("upstream", "ledger"),
        ("status", "200"),
        ("request_bytes", "5"),
        ("response_bytes", "2"),
        ("client_ip", "127.0.0.1"),
        ("user_agent", "tool/1.0"),
        ("traceparent", trace),
        ("sequence", "1"),
    ];
    for (member, value) in expected {
        assert_eq!(text(used, member), value, "{member}");
    }
    assert_eq!(Some(text(used, "request_id")), answer.fields.one("x-request-id"));
    assert!(text(used, "duration_us").parse::<u64>().is_ok_and(|micros| micros > 0));
    assert!(!text(used, "replica").is_empty());
}

#[test]
fn alike_refusals_become_few_records_with_a_count() {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(1));
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.get(&key, "/ok").expect(200);
    let mut client = Client::connect(gateway.edge());
    for _ in 0..200 {
        client.exchange(&Request::get("/ok").bearer(&key.secret)).expect("an answer").expect(429);
    }
    let refusals = found(SOON, "200 refusals are accounted for", || {
        let records: Vec<Value> = gateway.activity(&editor).into_iter().filter(|record| record["outcome"] == "rate_limited").collect();
        let sum: u64 = records.iter().map(|record| record["count"].as_str().map_or(1, |count| count.parse().expect("a number"))).sum();
        assert!(sum <= 200, "none is counted twice");
        (sum == 200).then_some(records)
    });
    assert!(refusals.len() < 100, "{} records for 200 alike refusals", refusals.len());
    assert_eq!(text(&refusals[0], "reason"), "window_exhausted");
}

#[test]
fn a_refused_use_of_a_revoked_key_is_recorded_with_its_true_reason() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "old");
    gateway.revoke(&editor, &key);
    gateway.get(&key, "/ok").expect(401);
    let record = gateway.uses(&editor, 1).remove(0);
    assert_eq!((text(&record, "outcome"), text(&record, "reason"), text(&record, "status")), ("invalid_key", "key_revoked", "401"));
    Request::get("/x").bearer("nonsense").send_to(gateway.edge()).expect(401);
    gateway.get(&key, "/again").expect(401);
    let uses = found(SOON, "the second refusal", || {
        Some(gateway.uses(&editor, 1)).filter(|uses| uses.iter().any(|record| record["path"] == "/again" || record["count"] == "2"))
    });
    assert!(uses.iter().all(|record| record["key_id"] == key.id), "a stranger's flood fills nobody's log");
}

#[test]
fn every_failure_of_the_upstream_is_recorded_with_its_code() {
    let gateway = Gateway::with(|config| config["upstreams"]["ledger"]["timeout"] = json!({ "response_header": "300ms" }));
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.upstream.answer(|head| if head.start.contains("/never") { Reply::Never } else { Reply::Raw(b"garbage\r\n\r\n".to_vec()) });
    gateway.get(&key, "/never").expect(504);
    gateway.get(&key, "/garbage").expect(502);
    let uses = gateway.uses(&editor, 2);
    let outcome =
        |path: &str| uses.iter().find(|record| record["path"] == path).map(|record| (text(record, "outcome"), text(record, "status")));
    assert_eq!(outcome("/never"), Some(("upstream_timeout", "504")));
    assert_eq!(outcome("/garbage"), Some(("upstream_broken", "502")));
}

#[test]
fn a_client_that_goes_away_at_any_moment_leaves_exactly_one_record() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let (feed, reply) = Reply::events();
    let streams = std::sync::Mutex::new(Some(reply));
    gateway.upstream.answer(move |head| match head.start.split(' ').nth(1) {
        Some("/waiting") => Reply::Never,
        Some("/streaming") => streams.lock().expect("no holder panics").take().unwrap_or_else(Reply::ok),
        _ => Reply::ok(),
    });
    let open = |request: &Request| {
        let mut client = Client::connect(gateway.edge());
        client.send(request.head()).expect("sent");
        client
    };
    // While it sends its body, while it waits for the head, in the middle of the answer, right after its request.
    let mut sending = open(&Request::new("POST", "/sending").bearer(&key.secret).with("Transfer-Encoding", "chunked"));
    sending.send(chunk(b"half")).expect("sent");
    eventually!(SOON, gateway.upstream.seen().iter().any(|seen| seen.target == "/sending" && seen.body_bytes == 4));
    let waiting = open(&Request::get("/waiting").bearer(&key.secret));
    eventually!(SOON, gateway.upstream.count("/waiting") == 1);
    let mut streaming = open(&Request::get("/streaming").bearer(&key.secret));
    feed.send(b"tick!".to_vec()).expect("the stream runs");
    streaming.read_until("tick!").expect("the event arrives");
    drop((sending, waiting, streaming));
    drop(open(&Request::get("/at-once").bearer(&key.secret)));
    let http2 = Http2::connect(gateway.edge());
    let started = http2.start(&Request::get("/waiting").bearer(&key.secret));
    eventually!(SOON, gateway.upstream.count("/waiting") == 2);
    drop((started, http2));

    gateway.get(&key, "/last").expect(200);
    let expected: BTreeMap<String, usize> = gateway.upstream.targets().into_iter().fold(BTreeMap::new(), |mut counts, target| {
        *counts.entry(target).or_default() += 1;
        counts
    });
    let uses = found(SOON, "a record of each request", || {
        let uses = gateway.uses(&editor, 1);
        let count = |target: &str| uses.iter().filter(|record| record["path"] == target).count();
        expected.iter().all(|(target, seen)| count(target) == *seen).then_some(uses)
    });
    for target in ["/sending", "/waiting", "/streaming"] {
        let records: Vec<&Value> = uses.iter().filter(|record| record["path"] == target).collect();
        assert!(records.iter().all(|record| record["reason"] == "client_abort"), "{records:?}");
    }
    let streamed = uses.iter().find(|record| record["path"] == "/streaming").expect("recorded");
    assert_eq!(text(streamed, "response_bytes"), "5");
    assert_dense(&uses);
}

/// `replica` and `sequence` have no gap and no repeat.
#[track_caller]
fn assert_dense(uses: &[Value]) {
    let mut places: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for record in uses {
        places.entry(text(record, "replica")).or_default().push(text(record, "sequence").parse().expect("a number"));
    }
    for (replica, mut sequences) in places {
        sequences.sort_unstable();
        let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
        assert_eq!(sequences, expected, "{replica} has a gap or a repeat");
    }
}

/// Sends requests with targets of their own until told to stop; answers those that were answered with 200.
fn load(gateway: &Gateway, key: &Key, next: &Arc<AtomicUsize>, stop: &Arc<AtomicBool>) -> thread::JoinHandle<Vec<String>> {
    let (edge, secret, next, stop) = (gateway.edge(), key.secret.clone(), Arc::clone(next), Arc::clone(stop));
    thread::spawn(move || {
        let mut answered = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let Ok(mut client) = Client::try_connect(edge) else { return answered };
            loop {
                let target = format!("/load/{}", next.fetch_add(1, Ordering::SeqCst));
                match client.exchange(&Request::get(&target).bearer(&secret)) {
                    Ok(answer) if answer.status == 200 && answer.complete => answered.push(target),
                    _ => break,
                }
                if stop.load(Ordering::SeqCst) {
                    return answered;
                }
            }
        }
        answered
    })
}

#[test]
fn after_kill_9_under_load_every_request_the_upstream_saw_is_in_the_log_exactly_once() {
    let mut gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(1_000_000));
    let (editor, key) = (gateway.editor(), gateway.key());
    let next = Arc::new(AtomicUsize::new(0));
    let mut answered = Vec::new();
    for round in 1..=5 {
        // Some answers never come, so that each crash finds requests in flight.
        gateway.upstream.answer(|head| if head.start.contains("/hung/") { Reply::Never } else { Reply::ok() });
        let stop = Arc::new(AtomicBool::new(false));
        let loads: Vec<_> = (0..4).map(|_| load(&gateway, &key, &next, &stop)).collect();
        let before = gateway.upstream.seen().len();
        let hung: Vec<Client> = (0..3)
            .map(|place| {
                let mut client = Client::connect(gateway.edge());
                client.send(Request::get(&format!("/hung/{round}/{place}")).bearer(&key.secret).head()).expect("sent");
                client
            })
            .collect();
        eventually!(SOON, gateway.upstream.seen().len() > before + 40, "round {round} is under load");
        gateway.kill9();
        stop.store(true, Ordering::SeqCst);
        answered.extend(loads.into_iter().flat_map(|load| load.join().expect("no client panics")));
        drop(hung);
        gateway.restart();
    }
    gateway.get(&key, "/last").expect(200);

    let seen: BTreeSet<String> = gateway.upstream.targets().into_iter().collect();
    let uses = found(Duration::from_secs(30), "every request is in the log", || {
        let uses = gateway.uses(&editor, 1);
        let logged: BTreeSet<&str> = uses.iter().map(|record| text(record, "path")).collect();
        seen.iter().all(|target| logged.contains(target.as_str())).then_some(uses)
    });
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    uses.iter().for_each(|record| *counts.entry(text(record, "path")).or_default() += 1);
    let repeated: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(repeated.is_empty(), "recorded more than once: {repeated:?}");
    assert!(answered.iter().all(|target| counts.contains_key(target.as_str())), "what a client was told is in the log");
    let outcome = |target: &str| uses.iter().find(|record| record["path"] == target).map(|record| text(record, "outcome").to_owned());
    for round in 1..=5 {
        let hung = (0..3).map(|place| format!("/hung/{round}/{place}")).filter(|target| seen.contains(target));
        hung.for_each(|target| assert_eq!(outcome(&target).as_deref(), Some("unknown"), "{target} was in flight at the crash"));
    }
    assert_dense(&uses);
    assert!(gateway.metric("assure_gateway_audit_dropped_total").abs() < f64::EPSILON);
}

/// Creates a key and revokes it, again and again until nobody answers; answers the ids of keys whose creation and whose revocation
/// was confirmed.
fn come_and_go(admin: SocketAddr, editor: &str) -> [Vec<String>; 2] {
    let (mut created, mut revoked) = (Vec::new(), Vec::new());
    let mut client = Client::connect(admin);
    let mut ask = |target: &str, body: &Value| {
        let request = Request { host: admin.to_string(), ..Request::json("POST", target, body).bearer(editor) };
        client.exchange(&request).ok().filter(|answer| answer.complete).map(|answer| (answer.status, answer.json()))
    };
    while let Some((status, key)) = ask("/v1/keys", &json!({ "name": "comes and goes" })) {
        assert_eq!(status, 201, "{key}");
        let id = text(&key, "id").to_owned();
        created.push(id.clone());
        let Some((status, answer)) = ask(&format!("/v1/keys/{id}/revoke"), &json!({})) else { break };
        assert_eq!(status, 200, "{answer}");
        revoked.push(id);
    }
    [created, revoked]
}

#[test]
fn creates_and_revokes_under_kill_9_leave_one_record_for_each_that_happened() {
    let mut gateway = Gateway::start();
    let editors: Vec<String> = (0..4).map(|number| gateway.token(&format!("firm-{number}"), USER, &[VIEW, EDIT])).collect();
    let mut confirmed: Vec<[Vec<String>; 2]> = vec![Default::default(); editors.len()];
    // What a crash leaves live counts against a creator's five keys.
    for _ in 0..4 {
        let admin = gateway.admin();
        let records = |gateway: &Gateway| editors.iter().map(|editor| gateway.activity(editor).len()).sum::<usize>();
        let before = records(&gateway);
        let told: Vec<[Vec<String>; 2]> = thread::scope(|scope| {
            let loads: Vec<_> = editors.iter().map(|editor| scope.spawn(move || come_and_go(admin, editor))).collect();
            eventually!(SOON, records(&gateway) > before + 20, "keys come and go");
            gateway.kill9();
            loads.into_iter().map(|load| load.join().expect("no client panics")).collect()
        });
        for (known, told) in confirmed.iter_mut().zip(told) {
            known.iter_mut().zip(told).for_each(|(known, told)| known.extend(told));
        }
        gateway.restart();
    }
    for (editor, [created, revoked]) in editors.iter().zip(&confirmed) {
        let records = gateway.activity(editor);
        let recorded = |action: &str| -> Vec<&str> {
            records.iter().filter(|record| record["action"] == action).map(|record| text(record, "key_id")).collect()
        };
        let listed = |status: &str| -> BTreeSet<String> {
            let page = gateway.admin_get(editor, &format!("/v1/keys?status={status}")).expect(200).json();
            page["keys"].as_array().expect("a list").iter().map(|key| text(key, "id").to_owned()).collect()
        };
        for (action, happened, told) in [("key.create", listed("all"), created), ("key.revoke", listed("revoked"), revoked)] {
            let recorded = recorded(action);
            let once: BTreeSet<&str> = recorded.iter().copied().collect();
            assert_eq!(once.len(), recorded.len(), "no {action} is recorded twice");
            assert_eq!(once, happened.iter().map(String::as_str).collect(), "{action}: what happened is recorded and nothing else");
            assert!(told.iter().all(|id| once.contains(id.as_str())), "{action}: what a client was told happened");
        }
        assert!(created.len() > 4 && revoked.len() > 4, "{} and {}", created.len(), revoked.len());
    }
}

#[test]
fn a_second_gateway_on_the_same_folder_is_refused() {
    let gateway = Gateway::start();
    let output = gateway.command(&["run", "--config", "gateway.yaml"]).output().expect("it runs and ends");
    assert!(!output.status.success(), "two processes never share a spool or a store");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("store") || said.contains("spool"), "it says what is in use: {said}");
}

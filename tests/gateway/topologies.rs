//! The promises where Redis is more than one server: gateways on a Cluster, under Sentinel, and behind TLS with a user.
//! K7, K12, K13 and K16 hold there too, while a master dies and another takes its place.
//!
//! Servers take seconds to start, so each test starts one set and asks it everything.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::servers::guarded::Guarded;
use crate::servers::{Cluster, Server, Trio, ask};
use crate::support::eventually::{eventually, found};
use crate::support::redis::{Redis, values};
use crate::support::{Answer, Client, EDIT, Gateway, Key, Request, SOON, VIEW, program};

const LEASE: &str = "1s";
/// In which a failover must be over for everybody: servers see it after 1 s or 2 s, vote, and gateways pause a second between
/// attempts; the rest is for a busy machine.
const MENDED: Duration = Duration::from_secs(60);
/// How long one request may take meanwhile: two look-ups of a second each, and slack.
const ANSWERED_WITHIN: Duration = Duration::from_millis(3_500);
/// Between two rounds of requests, so that a failover's worth of them stays below a key's limit.
const ROUND: Duration = Duration::from_millis(150);
/// The stream for consumers of each partition.
const STREAMS: [&str; 3] = ["assure:audit", "assure:audit:1", "assure:audit:2"];

/// Gateways that share this store.
fn gateways<const N: usize>(store: &Value) -> [Gateway; N] {
    std::array::from_fn(|_| Gateway::with(|config| config["store"] = store.clone()))
}

/// Request ids of what was accepted, and how often something was refused.
#[derive(Default)]
struct Seen {
    accepted: HashSet<String>,
    refused: usize,
}

impl Seen {
    /// 200, or 503 that is nobody's fault of the caller.
    #[track_caller]
    fn note(&mut self, answer: &Answer) -> bool {
        if answer.status == 200 {
            assert!(self.accepted.insert(answer.fields.one("x-request-id").expect("a request id").to_owned()));
            return true;
        }
        refused(answer);
        self.refused += 1;
        false
    }
}

#[track_caller]
fn refused(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(["store_unavailable", "revocation_unconfirmed"].contains(&answer.code().as_str()), "{}", answer.text());
    assert!(answer.fields.one("retry-after").is_some_and(|value| value.parse::<u64>().is_ok()), "{:?}", answer.fields);
}

/// Asks once for a revocation: it is answered, or nobody can be sure of it yet.
#[track_caller]
fn is_revoked(gateway: &Gateway, editor: &str, key: &Key) -> bool {
    let revoke = Request::json("POST", &format!("/v1/keys/{}/revoke", key.id), &json!({}));
    let answer = gateway.ask_admin(&revoke.bearer(editor));
    if answer.status != 200 {
        refused(&answer);
    }
    answer.status == 200
}

/// Until every gateway has nothing left to ship.
fn until_shipped(gateways: &[&Gateway]) {
    for gateway in gateways {
        eventually!(MENDED, gateway.metric("assure_gateway_audit_spool_bytes") == 0.0, "everything is shipped");
        assert_eq!(gateway.metric("assure_gateway_audit_dropped_total"), 0.0);
    }
}

/// One field of a stream's records, in order; a Cluster's node leads to the one that has it.
fn streamed(asked: &Server, stream: &str, field: &str) -> Vec<String> {
    values(ask(asked.port, &["-c", "XRANGE", stream, "-", "+"]).lines(), field)
}

/// A firm with two keys, as its editor sees it.
struct Firm {
    editor: String,
    live: Key,
    dead: Key,
}

impl Firm {
    fn new(gateway: &Gateway, name: &str) -> Self {
        let editor = gateway.token(name, "ann", &[VIEW, EDIT]);
        let [live, dead] = ["live", "dead"].map(|name| gateway.create_key(&editor, name));
        Self { editor, live, dead }
    }
}

/// Firms on one Redis with one partition, moved to a Cluster with three; two gateways go on there.
fn moved_to(cluster: &Cluster, names: &[String]) -> ([Gateway; 2], HashMap<String, Firm>) {
    let redis = Redis::start();
    let [mut gateway]: [Gateway; 1] = redis.gateways(LEASE);
    let firms: HashMap<String, Firm> = names.iter().map(|name| (name.clone(), Firm::new(&gateway, name))).collect();
    gateway.terminate();
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
    let file = gateway.folder().join("moved.jsonl");
    let store = |what: &str, option: &str| {
        let mut command = gateway.command(&["store", what, "--config"]);
        command.arg(gateway.config_file()).arg(option).arg(&file);
        program::output_of(&mut command)
    };
    store("export", "--output");
    let shared = json!({ "redis": { "cluster": { "nodes": cluster.addresses() }, "partitions": 3, "coherence_lease": LEASE } });
    gateway.rewrite_config(|config| config["store"] = shared.clone());
    store("import", "--input");
    gateway.restart();
    let [other] = gateways(&shared);
    ([gateway, other], firms)
}

#[test]
fn a_cluster_keeps_every_promise_and_outlives_one_of_its_masters() {
    let cluster = Cluster::start(2_000);
    let names: Vec<String> = (0..9).map(|number| format!("firm-{number}")).collect();
    let ([a, b], firms) = moved_to(&cluster, &names);
    let both = [&a, &b];
    let mut seen = Seen::default();
    for firm in firms.values() {
        both.iter().for_each(|gateway| assert!(seen.note(&gateway.get(&firm.live, "/ok").expect(200))));
        b.get(&firm.dead, "/ok").expect(200);
        let answer = a.revoke(&firm.editor, &firm.dead);
        assert_eq!(answer["revocation"]["replicas"].as_array().map(Vec::len), Some(2), "both confirm: {answer}");
        both.iter().for_each(|gateway| drop(gateway.get(&firm.dead, "/ok").expect_problem(401, "invalid_key")));
    }
    limits_are_shared(&both, &firms[&names[0]].editor);

    until_shipped(&both);
    let asked = &cluster.nodes[5];
    let homes: HashMap<String, &str> =
        STREAMS.iter().flat_map(|stream| streamed(asked, stream, "firm_id").into_iter().map(move |firm| (firm, *stream))).collect();
    assert_eq!(homes.len(), names.len());
    assert!(STREAMS.iter().all(|stream| homes.values().any(|home| home == stream)), "each partition has a firm: {homes:?}");
    let lost = cluster.master_of(STREAMS[0], asked);
    let (hit, spared): (Vec<&Firm>, Vec<&Firm>) = {
        let is_hit = |name: &String| cluster.master_of(homes[name], asked).port == lost.port;
        let (hit, spared): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| is_hit(name));
        (hit.into_iter().map(|name| &firms[name]).collect(), spared.into_iter().map(|name| &firms[name]).collect())
    };
    assert!(!spared.is_empty(), "another master has a partition");
    let others = goes_on_without(lost, &both, &hit, &spared, &mut seen);
    assert!(others.accepted.len() > 3 * others.refused, "{} answered, {} refused", others.accepted.len(), others.refused);
    seen.accepted.extend(others.accepted);

    for (name, firm) in &firms {
        both.iter().for_each(|gateway| drop(gateway.get(&firm.dead, "/ok").expect_problem(401, "invalid_key")));
        let editor = b.token(name, "bob", &[VIEW, EDIT]);
        eventually!(MENDED, is_revoked(&b, &editor, &firm.live));
        both.iter().for_each(|gateway| drop(gateway.get(&firm.live, "/ok").expect_problem(401, "invalid_key")));
    }
    lost.restart();
    until_shipped(&both);
    everything_is_told_once(asked, &a, &firms, &seen.accepted);
}

/// A thousand of one key over both together, whoever is asked.
fn limits_are_shared(gateways: &[&Gateway], editor: &str) {
    let key = gateways[0].create_key(editor, "busy");
    let statuses: Vec<u16> = thread::scope(|scope| {
        let send = |gateway: &&Gateway| {
            let (edge, request) = (gateway.edge(), Request::get("/busy").bearer(&key.secret));
            scope.spawn(move || {
                let mut client = Client::connect(edge);
                (0..600).map(|_| client.exchange(&request).expect("an answer").status).collect::<Vec<_>>()
            })
        };
        let clients: Vec<_> = gateways.iter().map(send).collect();
        clients.into_iter().flat_map(|client| client.join().expect("no client panics")).collect()
    });
    let count = |status: u16| statuses.iter().filter(|known| **known == status).count();
    assert_eq!((count(200), count(429)), (1_000, 200));
}

/// Kills a master: its firms are refused, then served again at both gateways; what became of the others is answered.
fn goes_on_without(lost: &Server, gateways: &[&Gateway], hit: &[&Firm], spared: &[&Firm], seen: &mut Seen) -> Seen {
    let mut others = Seen::default();
    lost.kill();
    let began = Instant::now();
    let (mut mended, mut is_told) = (None, false);
    while mended.is_none() {
        assert!(began.elapsed() < MENDED, "{} accepted and {} refused", seen.accepted.len(), seen.refused);
        let round = Instant::now();
        let ask = |firm: &Firm, seen: &mut Seen| {
            let served = gateways.iter().filter(|gateway| {
                let asked = Instant::now();
                let is_served = seen.note(&gateway.get(&firm.live, "/ok"));
                assert!(asked.elapsed() < ANSWERED_WITHIN, "{:?}", asked.elapsed());
                is_served
            });
            served.count() == gateways.len()
        };
        let all_served = hit.iter().filter(|firm| ask(firm, seen)).count() == hit.len();
        for firm in spared {
            ask(firm, &mut others);
        }
        let (is_green, why) = gateways[0].readiness("coherence");
        is_told |= is_green && why.contains(" partitions: ");
        mended = (all_served && seen.refused > 0).then(|| began.elapsed());
        eventually!(SOON, round.elapsed() >= ROUND);
    }
    assert!(is_told, "an operator reads which part is away");
    println!(
        "its firms waited {mended:?} ({} refused); others: {} served, {} refused",
        seen.refused,
        others.accepted.len(),
        others.refused
    );
    others
}

/// Each record is in one stream, once, and in its firm's activity; nothing that was accepted is missing.
fn everything_is_told_once(asked: &Server, gateway: &Gateway, firms: &HashMap<String, Firm>, accepted: &HashSet<String>) {
    let all = |field: &str| -> Vec<String> { STREAMS.iter().flat_map(|stream| streamed(asked, stream, field)).collect() };
    // Repeats of a refusal become a record when their second is over, so some may come between two looks.
    let (told, listed) = found(MENDED, "activity and streams agree", || {
        let told: HashMap<String, String> = all("event_id").into_iter().zip(all("firm_id")).collect();
        let listed: Vec<Value> = firms.values().flat_map(|firm| gateway.activity(&firm.editor)).collect();
        // What was there before the move was told to consumers of the former store: two creations of each firm.
        (listed.len() == told.len() + 2 * firms.len()).then_some((told, listed))
    });
    let mut owners: HashMap<&str, &str> = HashMap::new();
    for record in &listed {
        let text = |member: &str| record[member].as_str().expect("a text");
        assert!(owners.insert(text("event_id"), text("firm_id")).is_none(), "nothing is listed twice: {record}");
    }
    assert!(told.iter().all(|(event, firm)| owners.get(event.as_str()) == Some(&firm.as_str())), "what consumers got is listed");
    let events = all("event_id");
    assert_eq!(events.iter().collect::<HashSet<_>>().len(), events.len(), "no record twice");
    assert_are_there_once(&all("request_id"), accepted);
}

#[track_caller]
fn assert_are_there_once(requests: &[String], accepted: &HashSet<String>) {
    let uses: HashMap<&String, usize> = requests.iter().fold(HashMap::new(), |mut uses, id| {
        *uses.entry(id).or_default() += 1;
        uses
    });
    let wrong: Vec<_> = accepted.iter().filter(|id| uses.get(id) != Some(&1)).map(|id| (id, uses.get(id))).collect();
    assert!(wrong.is_empty(), "of {} accepted uses these are not there once: {wrong:?}", accepted.len());
}

#[test]
fn under_sentinel_gateways_follow_the_master_and_lose_nothing() {
    let trio = Trio::start();
    let store = json!({ "redis": {
        "sentinel": { "nodes": trio.addresses(), "master": "assure" }, "replicas_ack_min": 1, "coherence_lease": LEASE,
    } });
    let both: [Gateway; 2] = gateways(&store);
    let [a, b] = &both;
    let (editor, revoker) = (a.editor(), b.editor());
    let [live, dead, doomed] = ["live", "dead", "doomed"].map(|name| a.create_key(&editor, name));
    a.revoke(&editor, &dead);
    let (is_over, began) = (AtomicBool::new(false), Instant::now());
    let accepted: HashSet<String> = thread::scope(|scope| {
        let load = |gateway: &Gateway| {
            let (edge, request) = (gateway.edge(), Request::get("/ok").bearer(&live.secret));
            let is_over = &is_over;
            scope.spawn(move || {
                let (mut client, mut seen) = (Client::connect(edge), Seen::default());
                // Ends also when what it waits for never comes.
                while !is_over.load(Ordering::SeqCst) && began.elapsed() < 2 * MENDED {
                    let sent = Instant::now();
                    seen.note(&client.exchange(&request).expect("an answer"));
                    assert!(sent.elapsed() < ANSWERED_WITHIN, "{:?}", sent.elapsed());
                    eventually!(SOON, sent.elapsed() >= ROUND);
                }
                seen
            })
        };
        let loads = both.each_ref().map(load);
        eventually!(SOON, both.iter().all(|gateway| gateway.upstream.count("/ok") > 10), "both serve");
        trio.master().kill();
        let killed = Instant::now();
        eventually!(MENDED, is_revoked(b, &revoker, &doomed));
        let revoked = killed.elapsed();
        both.iter().for_each(|gateway| holds(gateway, &doomed));
        eventually!(MENDED, both.iter().all(|gateway| gateway.is_ready() && gateway.get(&live, "/live").status == 200), "they go on");
        println!("revoked after {revoked:?}, served again after {:?}", killed.elapsed());
        is_over.store(true, Ordering::SeqCst);
        loads.into_iter().flat_map(|load| load.join().expect("no client panics").accepted).collect()
    });
    both.iter().for_each(|gateway| drop(gateway.get(&dead, "/ok").expect_problem(401, "invalid_key")));
    both.iter().for_each(|gateway| drop(gateway.get(&doomed, "/ok").expect_problem(401, "invalid_key")));
    let fresh =
        found(MENDED, "a new key", || Some(a.try_create(&editor, &json!({ "name": "fresh" }))).filter(|answer| answer.status == 201));
    let secret = fresh.json()["key"].as_str().expect("a secret").to_owned();
    eventually!(SOON, Request::get("/ok").bearer(&secret).send_to(b.edge()).status == 200);

    until_shipped(&[a, b]);
    assert_are_there_once(&streamed(trio.master(), STREAMS[0], "request_id"), &accepted);
    eventually!(SOON, {
        let events = streamed(trio.master(), STREAMS[0], "event_id");
        assert_eq!(events.iter().collect::<HashSet<_>>().len(), events.len(), "no record twice");
        a.activity(&editor).len() == events.len()
    });
}

/// A key whose revocation was answered is refused at once: as unknown, or because nobody can be sure of anything.
#[track_caller]
fn holds(gateway: &Gateway, key: &Key) {
    let answer = gateway.get(key, "/ok");
    if answer.status != 401 {
        refused(&answer);
    }
}

#[test]
fn a_redis_behind_tls_and_acl_serves_and_a_wrong_authority_is_told_without_secrets() {
    let guarded = Guarded::start();
    let store = |ca: &std::path::Path| {
        json!({ "redis": {
            "url": format!("rediss://gateway@127.0.0.1:{}/0", guarded.port),
            "password_file": guarded.file("password"),
            "ca": ca,
            "client_certificate": { "certificate": guarded.file("client.pem"), "private_key": guarded.file("client.key") },
            "coherence_lease": LEASE,
        } })
    };
    let [gateway]: [Gateway; 1] = gateways(&store(&guarded.file("ca.pem")));
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.get(&key, "/ok").expect(200);
    gateway.revoke(&editor, &key);
    gateway.get(&key, "/ok").expect_problem(401, "invalid_key");
    until_shipped(&[&gateway]);
    assert_eq!(guarded.admin(&["ACL", "LOG"]), "", "the user may do all that the gateway does, and tried nothing else");

    let ca = guarded.file("ca-of-the-gateway.pem");
    fs::copy(guarded.file("stranger.pem"), &ca).expect("our folder");
    let mut waiting = Gateway::waiting(|config| config["store"] = store(&ca));
    let why = found(SOON, "a reason", || {
        let (is_well, why) = waiting.readiness("store");
        (!is_well && why.contains("certificate")).then_some(why)
    });
    assert!(why.contains("UnknownIssuer") || why.contains("BadSignature"), "{why}");
    waiting.ops_get("/readyz").expect(503);
    let told = [why, waiting.ops_get("/readyz").text(), waiting.log(), gateway.log()].concat();
    let private = fs::read_to_string(guarded.file("client.key")).expect("our file");
    let secrets = private.lines().filter(|line| !line.starts_with("-----")).chain(["old-secret"]);
    secrets.for_each(|secret| assert!(!told.contains(secret), "a secret is told"));
    fs::copy(guarded.file("ca.pem"), &ca).expect("our folder");
    waiting.become_ready();
    waiting.get(&key, "/ok").expect_problem(401, "invalid_key");
}

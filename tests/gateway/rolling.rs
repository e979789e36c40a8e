//! A rolling restart loses nothing: while three replicas are ended and started again one after the other, a plain load
//! balancer that looks at `/readyz` each second sends every request to somebody who answers it.
//!
//! The balancer here is the least that there is: it opens connections to replicas that were ready at its last look, keeps
//! them until it is told `Connection: close`, and never tries a request twice.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::{eventually, found};
use crate::support::redis::Redis;
use crate::support::{Client, Gateway, Http2, Request, SOON};

/// Clients that hold a connection each: busy ones send on it without a pause, the others think between two requests, so
/// that a door that closes without a word closes on an idle connection that somebody is about to use.
const CLIENTS: [Duration; 8] = [BUSY, BUSY, BUSY, THINKING, THINKING, THINKING, THINKING, THINKING];
const BUSY: Duration = Duration::ZERO;
const THINKING: Duration = Duration::from_millis(50);
/// How often the balancer looks.
const LOOK: Duration = Duration::from_secs(1);
/// Requests after which a client that was not sent away goes elsewhere, so that every replica gets some.
const REQUESTS_PER_CONNECTION: usize = 200;

/// A replica as the balancer knows it: where it serves, where it says whether it is ready, what it said last.
#[derive(Clone)]
struct Backend {
    edge: SocketAddr,
    ops: SocketAddr,
    is_ready: bool,
}

#[derive(Default)]
struct Balancer {
    backends: Mutex<Vec<Backend>>,
    turn: AtomicUsize,
    is_over: AtomicBool,
}

impl Balancer {
    fn set(&self, place: usize, gateway: &Gateway) {
        let backend = Backend { edge: gateway.edge(), ops: gateway.ops(), is_ready: false };
        let mut backends = self.backends.lock().expect("no holder panics");
        if place < backends.len() { backends[place] = backend } else { backends.push(backend) }
    }

    /// Looks at all replicas again and again.
    fn watch(&self) {
        while !self.is_over.load(Ordering::SeqCst) {
            let known = self.backends.lock().expect("no holder panics").clone();
            for (place, backend) in known.iter().enumerate() {
                let is_ready = Request::get("/readyz").send_if_up(backend.ops) == Some(200);
                let mut backends = self.backends.lock().expect("no holder panics");
                if backends[place].ops == backend.ops {
                    backends[place].is_ready = is_ready;
                }
            }
            let next = Instant::now() + LOOK;
            eventually!(LOOK * 10, Instant::now() >= next || self.is_over.load(Ordering::SeqCst));
        }
    }

    /// The next replica in turn of those that were ready at the last look.
    fn choose(&self) -> Option<SocketAddr> {
        let ready: Vec<SocketAddr> =
            self.backends.lock().expect("no holder panics").iter().filter(|known| known.is_ready).map(|known| known.edge).collect();
        (!ready.is_empty()).then(|| ready[self.turn.fetch_add(1, Ordering::SeqCst) % ready.len()])
    }

    fn is_ready(&self, place: usize) -> bool {
        self.backends.lock().expect("no holder panics")[place].is_ready
    }

    /// Sends until it is over; answers the ids of all requests.
    ///
    /// # Panics
    /// When a connection is refused or breaks, or a request is answered with anything but 200.
    fn send(&self, request: &Request, pause: Duration) -> Vec<String> {
        let mut ids = Vec::new();
        while !self.is_over.load(Ordering::SeqCst) {
            let edge = found(SOON, "a replica that is ready", || self.choose());
            let mut client = Client::try_connect(edge).unwrap_or_else(|error| panic!("request {}: {edge} refuses: {error}", ids.len()));
            for _ in 0..REQUESTS_PER_CONNECTION {
                let answer = client.exchange(request).unwrap_or_else(|broken| panic!("request {}: {edge}: {broken:?}", ids.len()));
                assert!(answer.status == 200 && answer.complete, "request {}: {} {}", ids.len(), answer.status, answer.text());
                ids.push(answer.fields.one("x-request-id").expect("an id").to_owned());
                if answer.fields.lists("connection", "close") || self.is_over.load(Ordering::SeqCst) {
                    break;
                }
                let next = Instant::now() + pause;
                eventually!(SOON, Instant::now() >= next);
            }
        }
        ids
    }
}

#[test]
fn a_rolling_restart_under_load_fails_no_request_loses_no_record_and_revives_no_key() {
    let redis = Redis::start();
    let mut gateways: [Gateway; 3] = std::array::from_fn(|_| {
        Gateway::with(|config| {
            config["store"] = redis.store("1s");
            config["edge"]["drain_notice"] = "2s".into();
            config["limits"] = json!({ "requests_per_minute": 100_000 });
        })
    });
    let key = gateways[0].key();
    let request = Request::get("/ok").bearer(&key.secret);
    let balancer = Balancer::default();
    gateways.iter().enumerate().for_each(|(place, gateway)| balancer.set(place, gateway));
    let ids: Vec<String> = thread::scope(|scope| {
        let (sender, wanted) = (&balancer, &request);
        scope.spawn(|| balancer.watch());
        let clients: Vec<_> = CLIENTS.map(|pause| scope.spawn(move || sender.send(wanted, pause))).into();
        // Whatever fails below, the threads must end, or the scope would wait for them for ever.
        let over = Over(&balancer.is_over);
        eventually!(SOON, (0..3).all(|place| balancer.is_ready(place)));
        for place in 0..3 {
            restart_and_revoke(&mut gateways, place);
            balancer.set(place, &gateways[place]);
            eventually!(SOON, balancer.is_ready(place), "the balancer sees replica {place} again");
            let served = gateways[place].upstream.count("/ok");
            eventually!(SOON, gateways[place].upstream.count("/ok") > served, "replica {place} serves again");
        }
        drop(over);
        clients.into_iter().flat_map(|client| client.join().expect("no request fails")).collect()
    });
    assert!(ids.len() >= 1_000, "{} requests are no load", ids.len());
    let forwarded: usize = gateways.iter().map(|gateway| gateway.upstream.count("/ok")).sum();
    assert_eq!(forwarded, ids.len(), "each was forwarded once");
    every_use_is_recorded_once(&redis, &gateways[0], &ids);
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Restarts one replica; while it is away, another revokes a key, and no replica accepts it afterwards.
fn restart_and_revoke(gateways: &mut [Gateway; 3], place: usize) {
    let [_, other, third] = [0, 1, 2].map(|step| (place + step) % 3);
    let editor = gateways[other].editor();
    let doomed = gateways[other].create_key(&editor, &format!("doomed {place}"));
    for gateway in gateways.iter() {
        gateway.get(&doomed, "/doomed").expect(200);
    }
    gateways[place].terminate();
    eventually!(SOON, !gateways[place].is_ready(), "readiness turns red");
    gateways[other].revoke(&editor, &doomed);
    for at in [other, third] {
        gateways[at].get(&doomed, "/doomed").expect_problem(401, "invalid_key");
    }
    // It serves to the end, and it too has heard of the revocation.
    if let Some(status) = Request::get("/doomed").bearer(&doomed.secret).send_if_up(gateways[place].edge()) {
        assert_eq!(status, 401);
    }
    let doomed_later = gateways[other].create_key(&editor, &format!("doomed later {place}"));
    assert_eq!(gateways[place].wait_exit(SOON * 3).code(), Some(0));
    gateways[other].revoke(&editor, &doomed_later);
    gateways[place].restart();
    for key in [&doomed, &doomed_later] {
        gateways[place].get(key, "/doomed").expect_problem(401, "invalid_key");
    }
}

fn every_use_is_recorded_once(redis: &Redis, gateway: &Gateway, ids: &[String]) {
    let accepted: HashSet<&String> = ids.iter().collect();
    assert_eq!(accepted.len(), ids.len());
    let mut streamed = Vec::new();
    eventually!(SOON * 2, {
        streamed = redis.streamed("request_id");
        streamed.iter().filter(|id| accepted.contains(*id)).count() >= ids.len()
    });
    let unique: HashSet<&String> = streamed.iter().collect();
    assert_eq!(unique.len(), streamed.len(), "no request twice");
    let mut sequences: HashMap<String, Vec<u64>> = HashMap::new();
    for record in gateway.activity(&gateway.editor()).iter().filter(|record| record["action"] == "key.use") {
        let sequence = record["sequence"].as_str().and_then(|text| text.parse().ok()).expect("a number");
        sequences.entry(record["replica"].as_str().expect("a name").to_owned()).or_default().push(sequence);
    }
    assert_eq!(sequences.len(), 3, "a replica keeps its name over a restart");
    for (replica, mut all) in sequences {
        all.sort_unstable();
        assert!(all.iter().copied().eq(1..=all.len() as u64), "{replica} has a gap or a repeat");
    }
}

/// A gateway that takes long enough between red and closed to look at it.
fn announcing() -> Gateway {
    Gateway::with(|config| config["edge"]["drain_notice"] = "3s".into())
}

#[test]
fn while_the_end_is_announced_everything_is_served_and_kept_connections_are_sent_away() {
    let mut gateway = announcing();
    let key = gateway.key();
    let request = Request::get("/ok").bearer(&key.secret);
    let mut kept = Client::connect(gateway.edge());
    let answer = kept.exchange(&request).expect("an answer").expect(200);
    assert!(!answer.fields.lists("connection", "close"));
    let told = Http2::connect(gateway.edge());
    told.exchange(&request).expect("an answer").expect(200);

    gateway.terminate();
    eventually!(SOON, !gateway.is_ready());
    let answer = kept.exchange(&request).expect("a kept connection is served").expect(200);
    assert!(answer.fields.lists("connection", "close"), "{:?}", answer.fields);
    eventually!(SOON, told.exchange(&request).is_err(), "GOAWAY");
    let answer = request.send_to(gateway.edge()).expect(200);
    assert!(answer.fields.lists("connection", "close"), "a new connection is served too");
    let new = Http2::connect(gateway.edge());
    new.exchange(&request).expect("and a new one of HTTP/2").expect(200);
    new.exchange(&request).expect("for more than one request").expect(200);
    gateway.ask_admin(&Request::get("/v1/whoami")).expect(401);
    assert!(!gateway.is_ready());
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
}

#[test]
fn followers_of_the_log_do_not_hold_up_the_end() {
    let mut gateway = Gateway::start();
    let mut follower = Client::connect(gateway.admin());
    let follow = Request::get("/v1/activity").bearer(&gateway.editor()).with("Accept", "text/event-stream");
    let follow = Request { host: gateway.admin().to_string(), ..follow };
    follower.send(follow.head()).expect("sent");
    follower.read_until("following").expect("it follows");
    let began = Instant::now();
    gateway.terminate();
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    follower.end();
}

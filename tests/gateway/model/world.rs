//! The system under test: gateways as real processes, each with a link of its own to one of two Redis servers, and one
//! upstream that writes down what arrives.
//!
//! Also what is done to it, and how it is brought to rest at the end, so that everything that was to be recorded is.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::journal::{Arrival, Journal, Kill, Record, Story, marker_in, replica_name};
use super::schedule::{Act, REPLICAS, Step};
use super::stream;
use crate::support::Gate;
use crate::support::eventually::{POLL, eventually, found};
use crate::support::identity::{AUDIENCE, ISSUER, IdentityProvider, claims_of};
use crate::support::link::{Flow, Link, Way};
use crate::support::redis::Redis;
use crate::support::wire::Head;
use crate::support::{EDIT, Gateway, Reply, Request, SOON, Upstream, VIEW};

/// How long everything may take to be well again after the last fault, on a busy machine.
const MENDED: Duration = Duration::from_secs(60);
/// Live keys of a firm and of a creator: the product's (K12).
const KEYS_MAX: [usize; 2] = [10, 5];
/// How often the upstream's own notes are thrown away; the journal has what is needed.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// How the system is set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) lease: &'static str,
    /// Accepted requests of a key in any 60 seconds.
    pub(super) limit: u32,
    pub(super) redis: Servers,
    pub(super) partitions: u16,
    /// `store.redis.revocation`.
    pub(super) revocation: &'static str,
}

/// How many Redis servers there are, and what is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Servers {
    One,
    /// A second follows the first, and must have each change before it is answered.
    Followed,
    /// A second follows the first by this much, and nobody waits for it.
    Trailed(Duration),
}

/// A key as its owner knows it.
#[derive(Clone, Debug)]
pub(super) struct OwnKey {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) firm: String,
    pub(super) creator: String,
    /// Somebody has asked for its revocation.
    pub(super) is_doomed: bool,
}

/// Where the process of a replica listens that was started last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) life: u32,
    pub(super) edge: SocketAddr,
    pub(super) admin: SocketAddr,
}

struct Replica {
    gateway: Mutex<Gateway>,
    life: AtomicUsize,
    /// Nothing while it is down or starting.
    place: Mutex<Option<Place>>,
}

pub(super) struct World {
    pub(super) journal: &'static Journal,
    pub(super) links: Vec<Link>,
    pub(super) keys: Mutex<Vec<OwnKey>>,
    replicas: Vec<Replica>,
    redis: Vec<Redis>,
    primary: AtomicUsize,
    partitions: u16,
    /// Between the two Redis servers.
    trail: Link,
    pub(super) upstream: Upstream,
    provider: IdentityProvider,
    next_marker: AtomicU64,
    is_over: Mutex<bool>,
    over: Condvar,
    _folder: TempDir,
}

impl World {
    /// Starts everything and waits until it is well.
    #[track_caller]
    pub(super) fn start(setup: &Setup) -> Self {
        let [firm, creator] = KEYS_MAX;
        // Leaked, because the upstream's threads outlive every scope; one a run.
        let journal: &'static Journal = Box::leak(Box::new(Journal::new([setup.limit as usize, firm, creator])));
        let redis: Vec<Redis> = (0..1 + usize::from(setup.redis != Servers::One)).map(|_| Redis::start()).collect();
        for one in &redis {
            // Otherwise a replica's first copy waits five seconds for others to come.
            one.ask(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        }
        let upstream = Upstream::answering(move |head| {
            journal.story().arrivals.extend(arrival(head, journal));
            Reply::ok()
        });
        let provider = IdentityProvider::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let jwks = folder.path().join("idp.jwks.json");
        std::fs::write(&jwks, provider.jwks().to_string()).expect("our folder");
        let issuer = json!({ "issuer": ISSUER, "audience": AUDIENCE, "jwks": { "file": jwks } });
        let links: Vec<Link> = (0..REPLICAS).map(|_| Link::to(redis[0].address())).collect();
        let trail = Link::to(redis[0].address());
        if let Servers::Trailed(behind) = setup.redis {
            trail.flow(Way::Down, Flow::Late(behind));
        }
        if let [_, second] = redis.as_slice() {
            follow(second, &trail);
            eventually!(MENDED, is_in_sync(second), "the second Redis follows the first");
        }
        let start = |replica: usize| {
            let gateway = Gateway::with(|config| {
                config["replica"] = json!(replica_name(replica));
                config["store"] = json!({ "redis": {
                    "url": format!("redis://{}/0", links[replica].address()),
                    "coherence_lease": setup.lease,
                    "partitions": setup.partitions,
                    "revocation": setup.revocation,
                    "replicas_ack_min": usize::from(setup.redis == Servers::Followed),
                } });
                config["limits"] = json!({ "requests_per_minute": setup.limit });
                config["upstreams"]["ledger"]["endpoints"] = json!([upstream.url()]);
                config["admin"]["auth"] = json!({ "local_issuer": false, "issuers": [issuer] });
            });
            let place = Place { life: 0, edge: gateway.edge(), admin: gateway.admin() };
            Replica { gateway: Mutex::new(gateway), life: AtomicUsize::new(0), place: Mutex::new(Some(place)) }
        };
        let replicas = thread::scope(|scope| {
            let start = &start;
            let starting: Vec<_> = (0..REPLICAS).map(|replica| scope.spawn(move || start(replica))).collect();
            starting.into_iter().map(|replica| replica.join().expect("it starts")).collect()
        });
        Self {
            journal,
            replicas,
            links,
            keys: Mutex::default(),
            redis,
            primary: AtomicUsize::new(0),
            partitions: setup.partitions,
            trail,
            upstream,
            provider,
            next_marker: AtomicU64::new(1),
            is_over: Mutex::new(false),
            over: Condvar::new(),
            _folder: folder,
        }
    }

    pub(super) fn keys(&self) -> MutexGuard<'_, Vec<OwnKey>> {
        self.keys.lock().expect("no holder panics")
    }

    pub(super) fn place(&self, replica: usize) -> Option<Place> {
        *self.replicas[replica].place.lock().expect("no holder panics")
    }

    pub(super) fn gateway(&self, replica: usize) -> MutexGuard<'_, Gateway> {
        self.replicas[replica].gateway.lock().expect("no holder panics")
    }

    pub(super) fn redis(&self) -> &Redis {
        &self.redis[self.primary.load(Ordering::SeqCst)]
    }

    pub(super) fn fresh_marker(&self) -> u64 {
        self.next_marker.fetch_add(1, Ordering::SeqCst)
    }

    /// An editor's token, from an issuer that every replica believes.
    pub(super) fn token(&self, firm: &str, user: &str) -> String {
        let mut claims = IdentityProvider::claims();
        claims["firm_id"] = json!(firm);
        claims["sub"] = json!(user);
        claims["permissions"] = json!([VIEW, EDIT]);
        self.provider.token(&claims)
    }

    /// Does one thing to the system.
    pub(super) fn act(&self, act: Act) {
        match act {
            Act::Freeze(replica) => self.gateway(replica).signal(Signal::STOP),
            Act::Thaw(replica) => self.gateway(replica).signal(Signal::CONT),
            Act::Kill(replica) => self.kill(replica),
            Act::Start(replica) => self.gateway(replica).spawn_again(),
            Act::Flow(replica, way, flow) => self.links[replica].flow(way, flow),
            Act::Cut(replica, ending) => self.links[replica].cut(ending),
            Act::Refuse(replica) => self.links[replica].refuse(),
            Act::HoldPresent(replica) => self.links[replica].hold_present(),
            Act::Heal(replica) => self.links[replica].heal(),
            Act::RedisDown => self.redis().down(),
            Act::RedisUp => self.redis_up(),
            Act::Failover => self.fail_over(),
        }
    }

    fn kill(&self, replica: usize) {
        let known = &self.replicas[replica];
        *known.place.lock().expect("no holder panics") = None;
        self.gateway(replica).kill9();
        let life = known.life.fetch_add(1, Ordering::SeqCst);
        let life = u32::try_from(life).expect("few lives");
        self.journal.story().kills.push(Kill { replica, life });
    }

    pub(super) fn redis_up(&self) {
        self.redis().up();
        self.redis().ask(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    }

    /// Nobody promotes a replica that has not caught up: then the primary only dies and comes back.
    fn fail_over(&self) {
        let old = self.primary.load(Ordering::SeqCst);
        let new = (old + 1) % self.redis.len();
        let may_promote = new != old && is_in_sync(&self.redis[new]);
        self.redis[old].down();
        if !may_promote {
            return self.redis_up();
        }
        self.redis[new].ask(&["REPLICAOF", "NO", "ONE"]);
        self.primary.store(new, Ordering::SeqCst);
        for link in &self.links {
            link.retarget(self.redis[new].address());
        }
        self.redis[old].up();
        self.redis[old].ask(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        self.trail.retarget(self.redis[new].address());
        follow(&self.redis[old], &self.trail);
    }

    /// Notices gateways that are ready since.
    pub(super) fn greet(&self) {
        (0..REPLICAS).for_each(|replica| self.greet_if(replica, Gateway::is_ready));
    }

    /// Takes a gateway that was started for up once it listens and `is_well`.
    pub(super) fn greet_if(&self, replica: usize, is_well: impl FnOnce(&Gateway) -> bool) {
        let known = &self.replicas[replica];
        let mut gateway = self.gateway(replica);
        let is_down = self.place(replica).is_none();
        if is_down && gateway.is_running() && gateway.has_come_up() && is_well(&gateway) {
            let life = u32::try_from(known.life.load(Ordering::SeqCst)).expect("few lives");
            *known.place.lock().expect("no holder panics") = Some(Place { life, edge: gateway.edge(), admin: gateway.admin() });
        }
    }

    /// Lets faults happen when they are due, until `length` is over; then clients are told to end.
    pub(super) fn suffer(&self, steps: &[Step], length: Duration) {
        let began = Instant::now();
        let mut forgot = Instant::now();
        let mut steps = steps.iter().peekable();
        while began.elapsed() < length {
            while let Some(step) = steps.next_if(|step| step.at <= began.elapsed()) {
                self.act(step.act);
            }
            self.greet();
            if forgot.elapsed() > FORGET_EVERY {
                self.upstream.forget();
                forgot = Instant::now();
            }
            self.pause(POLL);
        }
        *self.is_over.lock().expect("no holder panics") = true;
        self.over.notify_all();
        steps.for_each(|step| self.act(step.act));
    }

    /// The pace of clients and faults; ends early with the run. Says whether the run goes on.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let is_over = self.is_over.lock().expect("no holder panics");
        !*self.over.wait_timeout_while(is_over, pause, |is_over| !*is_over).expect("no holder panics").0
    }

    /// Waits until every replica is up and ready after the last fault.
    #[track_caller]
    pub(super) fn mend(&self) {
        eventually!(
            MENDED,
            {
                self.greet();
                (0..REPLICAS).all(|replica| self.place(replica).is_some() && self.gateway(replica).is_ready())
            },
            "every replica is ready after the last fault"
        );
    }

    /// Ends every gateway in order, so that all records are in the stream; answers the whole story. The last one tells
    /// before what the activity API lists: the same. After that only refusals may come, which are counted for a second
    /// before they are written.
    #[track_caller]
    pub(super) fn finish(self, firms: &[&str]) -> Story {
        (1..REPLICAS).for_each(|replica| self.gateway(replica).terminate());
        for replica in 1..REPLICAS {
            self.gateway(replica).wait_exit(MENDED);
        }
        let listed = found(MENDED, "the activity API lists what the stream holds", || {
            let listed: HashSet<String> = firms.iter().flat_map(|firm| self.listed(firm)).collect();
            Some(listed).filter(|listed| *listed == self.streamed())
        });
        self.gateway(0).terminate();
        self.gateway(0).wait_exit(MENDED);
        let mut story = self.journal.story().clone();
        story.records = stream::records(self.redis().address(), self.partitions);
        let kept_back = |record: &&Record| !listed.contains(&record.event_id) && ["allowed", "unknown"].contains(&record.outcome.as_str());
        assert_eq!(story.records.iter().find(kept_back), None, "kept back until the end");
        let streamed = self.streamed();
        assert!(listed.is_subset(&streamed), "the activity API listed what the stream does not hold");
        let violations = self.upstream.violations();
        assert!(violations.is_empty(), "the upstream found fault with {violations:?}");
        story
    }

    /// The story so far, with what the stream holds by now.
    pub(super) fn tell(&self) -> Story {
        let records = stream::records(self.redis().address(), self.partitions);
        Story { records, ..self.journal.story().clone() }
    }

    /// From now on the upstream answers when the gate is opened.
    pub(super) fn hold_answers(&self) -> std::sync::Arc<Gate> {
        let (journal, gate) = (self.journal, Gate::new());
        let held = std::sync::Arc::clone(&gate);
        self.upstream.answer(move |head| {
            journal.story().arrivals.extend(arrival(head, journal));
            Reply::Held(std::sync::Arc::clone(&held))
        });
        gate
    }

    fn streamed(&self) -> HashSet<String> {
        stream::records(self.redis().address(), self.partitions).into_iter().map(|record| record.event_id).collect()
    }

    fn listed(&self, firm: &str) -> Vec<String> {
        let records = self.gateway(0).activity(&self.token(firm, "user-0"));
        let ids: Vec<String> = records.iter().map(|record| record["event_id"].as_str().expect("an id").to_owned()).collect();
        let unique: HashSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "the activity API lists a record of {firm} twice");
        ids
    }

    /// Asks the admin API of a replica; nothing if there is no whole answer in time.
    pub(super) fn ask_admin(&self, replica: usize, request: Request, wait: Duration) -> Option<(u16, Value)> {
        let address = self.place(replica)?.admin;
        let mut client = crate::support::Client::try_connect(address).ok()?;
        client.wait_at_most(wait);
        let answer = client.exchange(&Request { host: address.to_string(), ..request }).ok().filter(|answer| answer.complete)?;
        Some((answer.status, serde_json::from_slice(&answer.body).unwrap_or_default()))
    }
}

/// A request as the upstream sees it; nothing for one without an assertion, which no gateway sends.
fn arrival(head: &Head, journal: &Journal) -> Option<Arrival> {
    let assertion = claims_of(head.fields.one("x-assure-jwt-assertion")?);
    Some(Arrival {
        at: journal.now(),
        marker: marker_in(head.start.split(' ').nth(1)?)?,
        request_id: head.fields.one("x-request-id")?.to_owned(),
        key: assertion["sub"].as_str()?.to_owned(),
    })
}

fn follow(replica: &Redis, trail: &Link) {
    let address = trail.address();
    replica.ask(&["REPLICAOF", &address.ip().to_string(), &address.port().to_string()]);
}

fn is_in_sync(replica: &Redis) -> bool {
    replica.ask(&["INFO", "replication"]).is_some_and(|text| text.contains("master_link_status:up"))
}

/// For what a test awaits beside the model.
pub(super) const AWAITED: Duration = SOON;

//! F01 to F05, D07, D09: a crowd that wants to exhaust the gateway, and a good client beside it who must not notice.
//!
//! `http1` and `http2` are the attacks, `beside` is the good client, who also watches the process's memory and descriptors,
//! `table` runs every attack for longer and writes down what it saw. Here stands what must hold of each attack: every
//! connection ends as it should, the good client is answered throughout, memory and descriptors stay within bounds
//! and are given back.

mod beside;
mod http1;
mod http2;
mod table;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use self::beside::{Beside, Resources, Service};
use crate::support::eventually::eventually;
use crate::support::{Client, Gateway, Key, Reply, Request};

/// What one connection of an attack may cost while it lasts: buffers of both directions, windows, a task.
const CONNECTION_BYTES_MAX: u64 = 384 * 1024;
/// What the process may keep beside that: the allocator's pages, caches, records that wait to be shipped.
const KEPT_BYTES_MAX: u64 = 48 * 1024 * 1024;
/// Descriptors that may stay: connections to the upstream and of the good client.
const KEPT_DESCRIPTORS_MAX: usize = 16;
/// A good client that waits longer has noticed. Debug builds on shared machines are slow; what hangs takes far longer.
const NOTICED: Duration = Duration::from_secs(5);
/// Until memory and descriptors are given back: lingering closes take 2 s, the allocator and the pool their time.
const GIVEN_BACK: Duration = Duration::from_secs(60);
/// Most connections from one client address, in the row about that.
const PER_ADDRESS_MAX: usize = 100;
/// Most connections in all, in the test about that.
const CONNECTIONS_MAX: usize = 100;
/// An answer that no socket's buffers hold.
const LARGE_ANSWER_BYTES: usize = 1024 * 1024;

/// An attack: its name, how it is done, and the only ways in which its connections may end.
struct Attack {
    name: &'static str,
    run: fn(&Target, Scale) -> Endings,
    endings: &'static [&'static str],
}

impl Attack {
    #[track_caller]
    fn assert_ended(&self, endings: &Endings) {
        let wrong: Vec<_> = endings.ways.keys().filter(|way| !self.endings.contains(&way.as_str())).collect();
        let name = self.name;
        assert!(wrong.is_empty() && endings.count() > 0, "{name}: every connection ends by {:?}: {:?}", self.endings, endings.ways);
    }
}

/// So many connections of an attack have not cost more than they may.
#[track_caller]
fn assert_bounded(attack: &str, before: Resources, peak: Resources, connections: usize) {
    let allowed = before.memory_bytes + KEPT_BYTES_MAX + connections as u64 * CONNECTION_BYTES_MAX;
    assert!(peak.memory_bytes < allowed, "{attack}: {peak:?} after {before:?}");
}

#[track_caller]
fn assert_served(attack: &str, service: &Service) {
    assert!(service.answered > 0 && service.slowest < NOTICED, "{attack}: the good client notices: {service:?}");
}

/// Whom it goes to, and with which key.
struct Target {
    edge: SocketAddr,
    key: Key,
}

/// How much of it.
#[derive(Clone, Copy)]
struct Scale {
    /// Connections at once where they are slow; one after the other, a tenth of them, where they are fast.
    connections: usize,
    /// Frames on each of the fast ones, if the gateway lets so many come.
    frames: usize,
}

/// How the connections of an attack ended, and what was sent on them.
#[derive(Default)]
struct Endings {
    ways: BTreeMap<String, usize>,
    sent: usize,
}

impl Endings {
    fn add(&mut self, way: impl Into<String>) {
        *self.ways.entry(way.into()).or_default() += 1;
    }

    fn count(&self) -> usize {
        self.ways.values().sum()
    }
}

/// What was seen of an attack.
struct Outcome {
    name: &'static str,
    endings: Endings,
    before: Resources,
    peak: Resources,
    after: Resources,
    service: Service,
}

/// A gateway whose limits leave the attacks to what is tested here.
fn gateway() -> Gateway {
    let gateway = Gateway::with(|config| {
        config["limits"]["requests_per_minute"] = json!(1_000_000);
        config["upstreams"]["ledger"]["connections_max"] = json!(2_000);
    });
    gateway.upstream.answer(|head| match head.start.split(' ').nth(1) {
        Some("/large") => Reply::Whole { status: 200, fields: Vec::new(), body: vec![b'x'; LARGE_ANSWER_BYTES] },
        Some("/held") => Reply::Never,
        _ => Reply::ok(),
    });
    gateway
}

/// Runs an attack with a good client beside it, and checks all but how long it took.
#[track_caller]
fn withstand(gateway: &Gateway, key: &Key, attack: &Attack, scale: Scale) -> Outcome {
    let target = Target { edge: gateway.edge(), key: key.clone() };
    let beside = Beside::start(gateway, &target.key);
    let before = beside.calm();
    let endings = (attack.run)(&target, scale);
    let name = attack.name;
    attack.assert_ended(&endings);
    let after = beside.given_back(before, name);
    let (peak, service) = beside.stop();
    assert_bounded(name, before, peak, endings.count());
    assert_served(name, &service);
    Outcome { name, endings, before, peak, after, service }
}

/// All of `attacks`, one after the other, in the short form.
fn withstand_all(attacks: &[Attack], scale: Scale) {
    let mut gateway = gateway();
    let key = gateway.key();
    for attack in attacks {
        withstand(&gateway, &key, attack, scale);
    }
    assert!(gateway.is_running());
}

/// All of `attacks` at once: they wait more than they work, and what each holds adds up.
fn withstand_together(attacks: &[&Attack], scale: Scale) {
    let mut gateway = gateway();
    let target = Target { edge: gateway.edge(), key: gateway.key() };
    let beside = Beside::start(&gateway, &target.key);
    let before = beside.calm();
    let endings: Vec<Endings> = thread::scope(|scope| {
        let target = &target;
        let running: Vec<_> = attacks.iter().map(|attack| scope.spawn(move || (attack.run)(target, scale))).collect();
        running.into_iter().map(|attack| attack.join().expect("an attack only attacks")).collect()
    });
    attacks.iter().zip(&endings).for_each(|(attack, endings)| attack.assert_ended(endings));
    beside.given_back(before, "all together");
    let (peak, service) = beside.stop();
    assert_bounded("all together", before, peak, endings.iter().map(Endings::count).sum());
    assert_served("all together", &service);
    assert!(gateway.is_running());
}

/// A connection from an address of this machine: all of 127/8 is.
fn connect_from(from: Ipv4Addr, edge: SocketAddr, receive_bytes: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&edge.into(), NOTICED)?;
    Ok(socket.into())
}

const SHORT: Scale = Scale { connections: 60, frames: 12_000 };

#[test]
fn all_that_is_slow_or_takes_nothing_is_cut_and_nobody_else_notices() {
    let slow = [&http1::SLOW_HEADS[..], &http1::SLOW_BODIES, &http1::SLOW_READERS, &http2::STALLS, &http2::UNTAKEN];
    withstand_together(&slow.into_iter().flatten().collect::<Vec<_>>(), SHORT);
}

#[test]
fn heads_that_are_bombs_are_refused_and_nobody_else_notices() {
    withstand_all(&http1::BOMBS, SHORT);
}

#[test]
fn frames_that_only_make_work_are_stopped_and_nobody_else_notices() {
    withstand_all(&http2::FLOODS, SHORT);
}

/// That the attacks above can succeed: where frames that carry nothing are not counted, h2 minds none of these.
#[cfg(feature = "mutants")]
#[test]
fn without_their_budget_frames_that_only_make_work_are_minded_by_nobody() {
    let gateway = Gateway::under(&["env", "ASSURE_MUTANTS=NoFrameBudget"], |config| {
        config["limits"]["requests_per_minute"] = json!(1_000_000);
    });
    let target = Target { edge: gateway.edge(), key: gateway.key() };
    for attack in http2::FLOODS.iter().filter(|attack| http2::ONLY_BUDGETED.contains(&attack.name)) {
        let ways = (attack.run)(&target, SHORT).ways;
        assert_eq!(ways.keys().map(String::as_str).collect::<Vec<_>>(), ["not minded"], "{}", attack.name);
    }
}

#[test]
fn one_address_has_its_number_of_connections_and_leaves_room_for_others() {
    let gateway = Gateway::with(|config| config["edge"]["connections_per_address_max"] = json!(PER_ADDRESS_MAX));
    let outcome = withstand(&gateway, &gateway.key(), &http1::ONE_ADDRESS, Scale { connections: 4 * PER_ADDRESS_MAX, ..SHORT });
    let turned_away = outcome.endings.ways.get("closed at once").copied().unwrap_or_default();
    assert!(turned_away >= 2 * PER_ADDRESS_MAX, "{:?}", outcome.endings.ways);
    assert!(outcome.peak.descriptors <= outcome.before.descriptors + PER_ADDRESS_MAX + KEPT_DESCRIPTORS_MAX, "{:?}", outcome.peak);
    eventually!(GIVEN_BACK, gateway.metric("assure_gateway_connections{listener=\"edge\"}") < 3.0, "places are given back");
}

#[test]
fn a_full_listener_serves_who_is_inside_lets_admins_work_and_comes_back() {
    let gateway = Gateway::with(|config| config["edge"]["connections_max"] = json!(CONNECTIONS_MAX));
    let (editor, key) = (gateway.editor(), gateway.key());
    let connect = |from: Ipv4Addr| connect_from(from, gateway.edge(), None).expect("the kernel accepts");
    let mut inside = Client::over(connect(Ipv4Addr::LOCALHOST)).expect("a socket");
    let request = Request::get("/x").bearer(&key.secret);
    inside.exchange(&request).expect("an answer").expect(200);
    let before = Resources::of(gateway.process_id());

    let crowd: Vec<TcpStream> = (1..=250).map(|host| connect(Ipv4Addr::new(127, 0, 1, host))).collect();
    eventually!(NOTICED, gateway.metric("assure_gateway_connections{listener=\"edge\"}") >= CONNECTIONS_MAX as f64, "it is full");
    for _ in 0..10 {
        inside.exchange(&request).expect("an answer").expect(200);
    }
    let second = gateway.create_key(&editor, "made in a crowd");
    gateway.revoke(&editor, &second);
    let full = Resources::of(gateway.process_id());
    assert!(full.descriptors <= before.descriptors + CONNECTIONS_MAX + KEPT_DESCRIPTORS_MAX, "{full:?} after {before:?}");

    drop(crowd);
    let newcomer = Client::over(connect(Ipv4Addr::LOCALHOST)).map(|mut client| client.exchange(&request));
    newcomer.expect("a socket").expect("an answer").expect(200);
}

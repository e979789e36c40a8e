//! The good client beside an attack, and the watch over the process's memory and descriptors.
//!
//! The client comes from an address of its own and asks in turn on a kept connection, on a new one and by HTTP/2: an
//! attack that leaves one of them alone may still starve another. It ends the test as soon as one is not answered 200.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{GIVEN_BACK, KEPT_BYTES_MAX, KEPT_DESCRIPTORS_MAX, NOTICED, connect_from};
use crate::support::eventually::{eventually, found};
use crate::support::{Client, Gateway, Http2, Key, Request};

/// Where the good client comes from.
const GOOD_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Between two rounds of questions, so that the client is no attack itself.
const PACE: Duration = Duration::from_millis(20);

/// What a process has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Resources {
    pub(super) memory_bytes: u64,
    pub(super) descriptors: usize,
}

impl Resources {
    pub(super) fn of(process: u32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("it is our child");
        let resident = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).and_then(|rest| rest.split_whitespace().next());
        let kilobytes: u64 = resident.and_then(|number| number.parse().ok()).expect("a number of kilobytes");
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("it is our child").count();
        Self { memory_bytes: kilobytes * 1024, descriptors }
    }

    fn most(self, other: Self) -> Self {
        Self { memory_bytes: self.memory_bytes.max(other.memory_bytes), descriptors: self.descriptors.max(other.descriptors) }
    }
}

/// What the good client got.
#[derive(Clone, Debug, Default)]
pub(super) struct Service {
    pub(super) answered: usize,
    pub(super) slowest: Duration,
}

/// A good client and a watch, until they are stopped.
pub(super) struct Beside {
    process: u32,
    stop: mpsc::Sender<()>,
    seen: Arc<Mutex<(Resources, Service)>>,
    client: JoinHandle<()>,
}

impl Beside {
    pub(super) fn start(gateway: &Gateway, key: &Key) -> Self {
        let (stop, stopped) = mpsc::channel();
        let seen = Arc::new(Mutex::new((Resources::default(), Service::default())));
        let (process, edge, key, noting) = (gateway.process_id(), gateway.edge(), key.clone(), Arc::clone(&seen));
        let client = thread::spawn(move || {
            let (mut kept, http2) = (client(edge), Http2::connect(edge));
            let request = Request::get("/good").bearer(&key.secret);
            while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                for way in 0..3 {
                    let asked = Instant::now();
                    let answer = match way {
                        0 => kept.exchange(&request).map_err(|broken| format!("{broken:?}")),
                        1 => client(edge).exchange(&request).map_err(|broken| format!("{broken:?}")),
                        _ => http2.exchange(&request),
                    };
                    let status = answer.map(|answer| answer.status);
                    assert_eq!(status, Ok(200), "the good client is answered, way {way}");
                    let mut seen = noting.lock().expect("no holder panics");
                    seen.1.answered += 1;
                    seen.1.slowest = seen.1.slowest.max(asked.elapsed());
                }
                let now = Resources::of(process);
                let mut seen = noting.lock().expect("no holder panics");
                seen.0 = seen.0.most(now);
            }
        });
        Self { process, stop, seen, client }
    }

    /// What the process has once the good client is served and nothing else happens.
    pub(super) fn calm(&self) -> Resources {
        eventually!(NOTICED, self.seen.lock().expect("the good client is answered").1.answered >= 30, "the good client is served");
        Resources::of(self.process)
    }

    /// Waits until the process has no more than `before`, but for what it may keep.
    #[track_caller]
    pub(super) fn given_back(&self, before: Resources, attack: &str) -> Resources {
        found(GIVEN_BACK, &format!("{attack}: memory and descriptors are given back"), || {
            let now = Resources::of(self.process);
            let is_given_back =
                now.memory_bytes <= before.memory_bytes + KEPT_BYTES_MAX && now.descriptors <= before.descriptors + KEPT_DESCRIPTORS_MAX;
            is_given_back.then_some(now)
        })
    }

    /// The most that the process had, and how the good client was served.
    pub(super) fn stop(self) -> (Resources, Service) {
        drop(self.stop);
        self.client.join().expect("the good client is answered");
        let seen = self.seen.lock().expect("no holder panics");
        (seen.0, seen.1.clone())
    }
}

fn client(edge: SocketAddr) -> Client {
    connect_from(GOOD_ADDRESS, edge, None).and_then(Client::over).expect("the good client is let in")
}

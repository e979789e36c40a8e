//! Listening sockets, the accept loop, and who may have a connection.
//!
//! Accepting never ends by an error: what concerns one connection is skipped, and what concerns the machine (no
//! descriptors, no memory) makes the loop wait without spinning. Every connection holds a [`Place`] until its socket
//! is closed; places in all and per address are limited.

use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::drain::{Phase, Watch};
use crate::metrics::Metrics;

/// Connections that the kernel completes while the loop is busy or paused; Linux caps it at `net.core.somaxconn` (4096).
const BACKLOG: i32 = 4096;
/// First and longest pause when the machine has no descriptor or no memory left. At the longest, ten tries a second.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A peer whose machine has vanished is noticed after 60 s of silence plus 3 probes of 15 s.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
/// Bytes that the kernel holds for a peer beyond what is in flight. Without it a fast connection that turns slow leaves
/// megabytes in the kernel, and a write that "makes no progress" could not be told from one that drains a full buffer.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// A socket that listens.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// The address it listens on: the true port where 0 was asked for.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Listens on an address; `[::]` also takes IPv4 where the machine is set so. Must be called within a tokio runtime.
///
/// # Errors
/// What the operating system says: the port is taken, or not ours to take.
pub fn bind(address: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the process before it to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Set once, here: on Linux what is accepted has the options of what listens.
    prepare(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Listener(TcpListener::from_std(socket.into())?))
}

/// Accepts until the listener drains, and hands each connection on with its reservation.
pub(super) async fn accept_loop(
    listener: Listener,
    places: Arc<Places>,
    mut phase: Watch,
    connect: impl Fn(TcpStream, SocketAddr, Reservation),
) {
    let mut pause = PAUSE_MIN;
    loop {
        let reservation = tokio::select! {
            reservation = places.reserve() => reservation,
            () = phase.reached(Phase::Leaving) => return,
        };
        let accepted = tokio::select! {
            accepted = listener.0.accept() => accepted,
            () = phase.reached(Phase::Leaving) => return,
        };
        match accepted {
            Ok((tcp, address)) => {
                pause = PAUSE_MIN;
                #[cfg(not(target_os = "linux"))]
                let _ = prepare(&SockRef::from(&tcp));
                connect(tcp, canonical(address), reservation);
            }
            Err(error) if concerns_one_connection(&error) => {
                tracing::debug!(listener = places.name, %error, "a connection ended before it was accepted")
            }
            Err(error) => {
                if pause == PAUSE_MIN {
                    tracing::warn!(listener = places.name, %error, "accepting pauses until there is room again");
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                    () = phase.reached(Phase::Leaving) => return,
                }
            }
        }
    }
}

fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(3))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    Ok(())
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// An IPv4 client on an IPv6 socket is the IPv4 client.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// How many connections a listener has, and from whom.
#[derive(Debug)]
pub(super) struct Places {
    name: &'static str,
    max: u32,
    per_address_max: usize,
    free: Arc<Semaphore>,
    /// Bounded by the number of places: an address without a connection has no entry.
    by_address: Mutex<HashMap<IpAddr, usize>>,
    metrics: Metrics,
}

impl Places {
    pub(super) fn new(name: &'static str, max: usize, per_address_max: usize, metrics: Metrics) -> Arc<Self> {
        let max = u32::try_from(max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX).max(1);
        let free = Arc::new(Semaphore::new(usize::try_from(max).unwrap_or(Semaphore::MAX_PERMITS)));
        Arc::new(Self { name, max, per_address_max, free, by_address: Mutex::default(), metrics })
    }

    /// Waits until there is room for one more connection, from wherever it comes.
    async fn reserve(self: &Arc<Self>) -> Reservation {
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        Reservation { _permit: permit, places: self.clone() }
    }

    /// Waits until the last connection's socket is closed. Nothing may be accepted meanwhile.
    pub(super) async fn emptied(&self) {
        let _ = self.free.acquire_many(self.max).await;
    }
}

/// Room for a connection whose client is not known yet.
#[derive(Debug)]
pub(super) struct Reservation {
    _permit: OwnedSemaphorePermit,
    places: Arc<Places>,
}

/// Whether the limit per address applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Counted {
    /// To clients.
    ByAddress,
    /// Not to proxies, whose connections are many people's.
    InAllOnly,
}

impl Reservation {
    /// Takes the place for a client, or gives the room back when that client has enough.
    pub(super) fn occupy(self, address: IpAddr, counted: Counted) -> Option<Place> {
        let address = match counted {
            Counted::ByAddress => Some(neighbourhood(address)),
            Counted::InAllOnly => None,
        };
        if let Some(address) = address {
            let mut by_address = self.places.by_address.lock();
            let connections = by_address.entry(address).or_insert(0);
            if *connections >= self.places.per_address_max {
                if *connections == 0 {
                    by_address.remove(&address);
                }
                return None;
            }
            *connections += 1;
        }
        self.places.metrics.connections.with_label_values(&[self.places.name]).inc();
        Some(Place { address, reservation: self })
    }
}

/// IPv6 clients are given whole networks: the /64 is the client.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    address: Option<IpAddr>,
    reservation: Reservation,
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.reservation.places;
        places.metrics.connections.with_label_values(&[places.name]).dec();
        let Some(address) = self.address else { return };
        if let Entry::Occupied(mut entry) = places.by_address.lock().entry(address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_limited_in_all_and_per_address_and_given_back() {
        let places = Places::new("edge", 3, 2, Metrics::new());
        let here: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let first = places.reserve().await.occupy(here, Counted::ByAddress).unwrap();
        let _second = places.reserve().await.occupy(neighbour, Counted::ByAddress).unwrap();
        assert!(places.reserve().await.occupy(here, Counted::ByAddress).is_none(), "one /64 took three places");
        let _proxy = places.reserve().await.occupy(here, Counted::InAllOnly).unwrap();
        assert_eq!(places.free.available_permits(), 0);
        assert_eq!(places.metrics.connections.with_label_values(&["edge"]).get(), 3);
        drop(first);
        assert_eq!(places.metrics.connections.with_label_values(&["edge"]).get(), 2);
        let _third = places.reserve().await.occupy(here, Counted::ByAddress).unwrap();
    }

    #[tokio::test]
    async fn no_address_is_remembered_without_a_connection() {
        let places = Places::new("edge", 10, 1, Metrics::new());
        let place = places.reserve().await.occupy("192.0.2.1".parse().unwrap(), Counted::ByAddress);
        drop(place);
        assert!(places.by_address.lock().is_empty());
        tokio::time::timeout(Duration::from_secs(5), places.emptied()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_accepted_is_prepared() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.address().unwrap()).await.unwrap();
        let (accepted, _) = listener.0.accept().await.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!((socket.tcp_keepalive_time().unwrap(), socket.tcp_notsent_lowat().unwrap()), (KEEPALIVE_AFTER, UNSENT_BYTES_MAX));
    }

    #[test]
    fn only_a_connections_own_errors_are_skipped() {
        assert!(concerns_one_connection(&io::ErrorKind::ConnectionAborted.into()));
        let no_descriptors = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert!(!concerns_one_connection(&no_descriptors));
    }
}

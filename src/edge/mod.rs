//! From a socket to an HTTP request: the same for all three listeners, and ignorant of keys.
//!
//! accept (caps) → PROXY protocol → TLS → version → HTTP/1.1 or HTTP/2 → the service that `app` passes in.
//! Promises that nothing here waits without a deadline or grows without a limit ([`Limits`] and the constants beside
//! their use), that an early answer reaches its client, and that a request too malformed to reach the service is
//! answered with the caller's own words ([`OwnRefusal`]), not with hyper's empty page.
//! Deadlines within a request (body progress, upstream) belong to the service.

mod accept;
mod body;
mod chunk_scan;
mod drain;
mod frame_budget;
mod head_scan;
mod http;
mod http1;
mod http2;
mod inlet;
mod own_answer;
mod proxy_protocol;
mod rest;
mod stream;
mod tls;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(test)]
mod trials;

pub use self::accept::{Listener, bind};
pub use self::drain::Drain;
pub use self::http::Server;
pub use self::tls::{Renewed, Tls, TlsError};

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

/// Who is at the other end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The client's address, after the PROXY protocol where it is spoken; IPv4 in its own form, never mapped into IPv6.
    pub address: SocketAddr,
    /// Whether the connection is TLS.
    pub secure: bool,
}

/// What is refused before there is a request that a service could be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnRefusal {
    /// Not HTTP, or framed so that it could be read in two ways: 400.
    Malformed,
    /// The request line does not end: 414.
    TargetTooLong,
    /// Too many header fields, or too many bytes of them: 431.
    HeadersTooLarge,
}

/// Answers a request that never reaches the service. Called on the connection's task: it must not block.
pub type Refuse = dyn Fn(OwnRefusal, &Peer) -> ::http::Response<Bytes> + Send + Sync;

/// Whether connections begin with a PROXY protocol header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyProtocol {
    /// They do not, and a header is a malformed request.
    Off,
    /// Every connection does, and comes from a trusted proxy; any other is closed.
    Demanded,
}

/// How a listener is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The listener's name: the label of `connections` and of log lines.
    pub name: &'static str,
    /// Most connections at once; at the limit, accepting pauses and the kernel's backlog fills.
    pub connections_max: usize,
    /// Most connections at once from one IPv4 address or one IPv6 /64; more are closed at once.
    pub connections_per_address_max: usize,
    /// Proxies in front of this listener: they alone may speak the PROXY protocol, and the limit per address does not
    /// apply to their own addresses, because everybody comes from there.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: ProxyProtocol,
    /// How long connections may go on after [`Drain::begin`].
    pub drain: Duration,
    /// Deadlines of a connection.
    pub limits: Limits,
}

impl Options {
    /// Nothing trusted, nothing in front; the limits that the configuration has as its defaults.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            connections_max: 20_000,
            connections_per_address_max: 2_000,
            trusted_proxies: Vec::new(),
            proxy_protocol: ProxyProtocol::Off,
            drain: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }

    fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}

/// Deadlines of a connection. The defaults are meant for production; tests shorten them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// PROXY protocol header and TLS handshake together. Two round trips to the far side of the world take 1 s.
    pub handshake: Duration,
    /// From the handshake to the first byte of a request, or to the whole HTTP/2 preface.
    pub first_byte: Duration,
    /// From the first byte of a request's head to its end, HTTP/1.1.
    pub head: Duration,
    /// Without any request: longer than the 60 s after which most clients and load balancers give up a connection
    /// themselves, so that they, who can do it without a race, are the ones that close.
    pub idle: Duration,
    /// Without any request, until a connection of HTTP/1.1 rests and holds little more than its socket: longer than a busy
    /// client's pause, since waking up costs a few microseconds.
    pub rest: Duration,
    /// How long a peer may take no byte while there is an answer to send: on the socket, and per HTTP/2 stream.
    pub write_stall: Duration,
    /// After this, give or take a tenth, a connection is asked to leave once it has finished what it is doing, so that
    /// load spreads over replicas that came later.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            rest: Duration::from_millis(200),
            write_stall: Duration::from_secs(30),
            age: Duration::from_secs(3600),
        }
    }
}

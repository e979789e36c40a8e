//! The last step: the granted request goes to its upstream, and the answer comes back.
//!
//! `headers` decides what crosses, `body` counts and cuts, `balance` picks an endpoint, `pool` finds a `connection` to
//! it, `outgoing` is what goes there, `http1` speaks over it, `send` waits for the answer, `upgrade` passes WebSockets on, `health` says which endpoints to avoid.
//! Promises: what was decided on is what is sent; no byte of the client's framing, credential or claimed identity
//! survives; an incomplete message never looks complete, in either direction; a request that an upstream may have seen
//! is never sent twice; every wait ends. Retries of answered requests and caching are not for a gateway that audits.

mod balance;
mod body;
mod connection;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod headers;
mod health;
mod http1;
mod outgoing;
mod pool;
mod send;
mod share;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use hyper::body::Incoming;

use self::balance::Balance;
#[cfg(test)]
use self::body::Fate;
pub use self::body::{DeclaredLength, Meter, UpstreamBody, check_declared_length};
use self::pool::{Dialers, Limits, Pool};
pub use self::share::Share;
use self::share::Shares;
pub use self::upgrade::{Tunnel, TunnelEnd, TunnelOutcome};
use crate::config;
use crate::dial::{Dialer, Endpoint, Scheme};
use crate::domain::{BootInstant, FirmId, Rejection};
use crate::gateway::client_address::ClientAddress;
use crate::gateway::exchange::Begun;
use crate::gateway::policy::Grant;
use crate::gateway::sign::Assertion;
use crate::gateway::target::Target;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// All upstreams of one configuration.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: BTreeMap<String, Arc<Upstream>>,
}

/// One service behind the gateway, with its connections.
pub struct Upstream {
    config: config::Upstream,
    limits: Limits,
    balance: Balance,
    shares: Arc<Shares>,
    can_upgrade: bool,
    observe: Box<dyn Fn(f64) + Send + Sync>,
}

/// Whether a route passes WebSockets on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Websocket {
    /// An `Upgrade` is dropped and the request served as it is.
    Refused,
    /// `Upgrade: websocket`, and CONNECT with `:protocol` websocket, become tunnels.
    Allowed,
}

/// Where a request goes, and what the gateway says about it. Made of evidence alone, so that nothing is forwarded that
/// was not admitted, counted, granted, signed and written down.
#[derive(Debug)]
pub struct Forwarding<'a> {
    upstream: &'a Upstream,
    /// What it is asked for: `Target::path_and_query`, or `Target::without_prefix`.
    path_and_query: PathAndQuery,
    /// `Target::authority`: upstreams see the host that the client named.
    host: &'a HeaderValue,
    request_id: &'a HeaderValue,
    assertion: (HeaderName, HeaderValue),
    client: &'a ClientAddress,
    websocket: Websocket,
    declared_length: DeclaredLength,
    /// Where a body of undeclared length is cut.
    body_bytes_max: u64,
    /// Counts the body.
    meter: Arc<Meter>,
    /// From when on the upstream is waited for.
    begun_at: BootInstant,
}

impl<'a> Forwarding<'a> {
    /// What is granted, of which the body is as long as it was `declared` to be and is cut at `body_bytes_max`.
    pub fn new(
        grant: &'a Grant,
        target: &'a Target,
        assertion: Assertion,
        begun: Begun<'a>,
        declared: DeclaredLength,
        body_bytes_max: u64,
    ) -> Self {
        let exchange = begun.exchange();
        Self {
            upstream: grant.upstream(),
            path_and_query: grant.target_as_forwarded().clone(),
            host: target.authority(),
            request_id: exchange.request_header(),
            assertion: assertion.into_header(),
            client: exchange.client(),
            websocket: grant.websocket(),
            declared_length: declared,
            body_bytes_max,
            meter: exchange.meter().clone(),
            begun_at: begun.at(),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Forwarded {
    /// The upstream's answer, with its body still to come.
    Answer(Response<UpstreamBody>),
    /// The head to answer with, and the tunnel to run once it has been returned.
    Tunnel(Response<()>, Tunnel),
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// To be answered like any other refusal.
    Rejected(Rejection),
    /// The client broke off its body: nobody is left to answer.
    ClientGone,
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Why an upstream cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// An endpoint is not an address.
    #[error("upstream {upstream}: endpoint {endpoint:?}: {problem}")]
    Endpoint {
        /// Name of the upstream.
        upstream: String,
        /// What was written.
        endpoint: String,
        /// A sentence.
        problem: String,
    },
    /// There is no endpoint.
    #[error("upstream {upstream}: there is no endpoint")]
    NoEndpoint {
        /// Name of the upstream.
        upstream: String,
    },
    /// The certificate authorities cannot be read.
    #[error("upstream {upstream}: ca: {problem}")]
    Authorities {
        /// Name of the upstream.
        upstream: String,
        /// The reason.
        #[source]
        problem: std::io::Error,
    },
}

impl Forwarder {
    /// Makes the upstreams. Those of `previous` whose configuration is the same are taken over with their connections;
    /// the certificate authorities of such a one are not read again. Connections are made when they are needed.
    ///
    /// # Errors
    /// When an upstream cannot be used as configured; nothing has changed then.
    pub fn new(
        upstreams: &BTreeMap<String, config::Upstream>,
        tasks: &Tasks,
        metrics: &Metrics,
        previous: Option<&Self>,
    ) -> Result<Self, ForwardError> {
        let make = |(name, config): (&String, &config::Upstream)| {
            let kept = previous.and_then(|previous| previous.upstream(name)).filter(|kept| kept.config == *config);
            let upstream = kept.map_or_else(|| Upstream::new(name, config, tasks, metrics).map(Arc::new), Ok)?;
            Ok((name.clone(), upstream))
        };
        Ok(Self { upstreams: upstreams.iter().map(make).collect::<Result<_, ForwardError>>()? })
    }

    /// The upstream of this name.
    pub fn upstream(&self, name: &str) -> Option<Arc<Upstream>> {
        self.upstreams.get(name).cloned()
    }

    /// Sends a request and waits for the head of the answer. Dropping the future aborts the request.
    ///
    /// # Errors
    /// `ClientGone`, or one of `UpstreamUnreachable`, `UpstreamTimeout`, `UpstreamBroken`, `UpstreamOverloaded`,
    /// `BodyGrewTooLarge`, `BodyTooSlow`; `MethodRefused` for a WebSocket over HTTP/2 where the route has none.
    pub fn send(&self, head: &Parts, body: Incoming, to: &Forwarding<'_>) -> impl Future<Output = Result<Forwarded, Failure>> + Send {
        send::send(head, body, to)
    }
}

impl Upstream {
    fn new(name: &str, config: &config::Upstream, tasks: &Tasks, metrics: &Metrics) -> Result<Self, ForwardError> {
        let authorities = |problem| ForwardError::Authorities { upstream: name.to_owned(), problem };
        let dialers = Dialers {
            any: Dialer::new(config.ca.as_deref(), &[b"h2", b"http/1.1"]).map_err(authorities)?,
            http1: Dialer::new(config.ca.as_deref(), &[b"http/1.1"]).map_err(authorities)?,
        };
        let limits = Limits {
            connections_max: config.connections_max.max(1),
            connect: config.timeout.connect,
            response_header: config.timeout.response_header,
            idle: config.timeout.idle,
        };
        let parse = |text: &String| {
            Endpoint::parse(text).map_err(|problem| ForwardError::Endpoint { upstream: name.to_owned(), endpoint: text.clone(), problem })
        };
        let endpoints = config.endpoints.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(ForwardError::NoEndpoint { upstream: name.to_owned() });
        }
        let can_upgrade = endpoints.iter().all(|endpoint| endpoint.scheme != Scheme::H2c);
        let slots =
            endpoints.len().saturating_mul(limits.connections_max).saturating_mul(if can_upgrade { 1 } else { connection::STREAMS_MAX });
        let pools: Vec<_> = endpoints.into_iter().map(|endpoint| Pool::new(endpoint, dialers.clone(), limits, tasks.clone())).collect();
        if let Some(health) = &config.health {
            for pool in &pools {
                tasks.spawn("upstream health", health::check_forever(Arc::downgrade(pool), health.clone(), tasks.clone()));
            }
        }
        let duration = metrics.upstream_duration.with_label_values(&[name]);
        let observe = Box::new(move |seconds| duration.observe(seconds));
        Ok(Self { config: config.clone(), limits, balance: Balance::new(pools), shares: Shares::new(slots), can_upgrade, observe })
    }

    /// The firm's share of this upstream, for one more request.
    ///
    /// # Errors
    /// [`Rejection::UpstreamOverloaded`] when the firm holds all that one firm may.
    pub fn share(&self, firm: &FirmId) -> Result<Share, Rejection> {
        self.shares.take(firm).ok_or_else(send::overloaded)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn balance(&self) -> &Balance {
        &self.balance
    }

    /// WebSockets need an HTTP/1.1 connection; h2c endpoints have none.
    fn can_upgrade(&self) -> bool {
        self.can_upgrade
    }

    fn observe(&self, until_answered: Duration) {
        (self.observe)(until_answered.as_secs_f64());
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Upstream").field("config", &self.config).finish_non_exhaustive()
    }
}

//! The three listeners, each with its service, its certificate and its own end.
//!
//! Here `edge` meets `gateway`, `admin` and `ops`, none of which knows the others: each service is a function from a request
//! and its peer. Addresses are all bound before the first is served, so that a taken port stops the start.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::config::{self, Config};
use crate::demo::{self, DemoUpstream};
use crate::domain::Rejection;
use crate::edge::{self, Drain, Listener, Options, OwnRefusal, Peer, ProxyProtocol, Renewed, Server, Tls};
use crate::gateway::{self, Caller, Gateway, Transport};
use crate::metrics::Metrics;
use crate::ops;
use crate::store::Health;
use crate::tasks::Tasks;

use super::{StartError, descriptors, readiness};

/// Connections at once on the admin and on the ops listener: people, dashboards and scrapers.
const INNER_CONNECTIONS_MAX: usize = 1_000;
/// After the drain deadline, how long cut requests may take to hand out their 503.
pub(super) const CLOSING_MAX: Duration = Duration::from_secs(5);

/// Asks, from memory, what must work before requests are sent here.
pub(super) type Checks = Arc<dyn Fn() -> Vec<ops::Check> + Send + Sync>;

/// What listens.
pub struct Listeners {
    /// Tools.
    pub edge: Running,
    /// People.
    pub admin: Running,
    /// Machines.
    pub ops: Running,
    /// What a reload may replace.
    pub certificates: Certificates,
    draining: Arc<AtomicBool>,
}

/// One listener at work.
pub struct Running {
    /// Its addresses, with true ports.
    pub addresses: Vec<SocketAddr>,
    drain: Drain,
    ended: CancellationToken,
}

/// The certificates in use.
#[derive(Clone)]
pub struct Certificates {
    edge: Option<Tls>,
    admin: Option<Tls>,
}

impl Listeners {
    /// Turns `/readyz` red, and asks clients to go elsewhere while they are still served.
    pub(super) fn announce_end(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.edge.drain.announce();
        self.admin.drain.announce();
    }
}

impl Running {
    /// Closes the doors and lets connections finish; says whether all have gone within `deadline`.
    pub(super) async fn finish(&self, deadline: Duration) -> bool {
        self.drain.begin();
        tokio::time::timeout(deadline, self.ended.cancelled()).await.is_ok()
    }

    /// Ends every connection.
    pub(super) async fn cut(&self) {
        self.drain.cut();
        self.ended.cancelled().await;
    }
}

impl Certificates {
    fn load(config: &Config) -> Result<Self, StartError> {
        let load = |tls: &Option<config::Tls>| tls.as_ref().map(|tls| Tls::load(&tls.certificate, &tls.private_key)).transpose();
        Ok(Self { edge: load(&config.edge.tls)?, admin: load(&config.admin.tls)? })
    }

    /// Reads the certificates that the configuration names now. Turning TLS on or off needs a restart.
    pub(super) fn prepare(&self, config: &Config) -> Result<Vec<Renewed>, StartError> {
        let pairs = [(&self.edge, &config.edge.tls), (&self.admin, &config.admin.tls)];
        let both = pairs.into_iter().filter_map(|(current, wanted)| Some((current.as_ref()?, wanted.as_ref()?)));
        both.map(|(current, wanted)| Ok(current.prepare(Path::new(&wanted.certificate), Path::new(&wanted.private_key))?)).collect()
    }
}

/// The ops listener while the store is not there yet.
pub(super) struct EarlyOps {
    running: Running,
    draining: Arc<AtomicBool>,
    behind: Arc<OnceLock<(Arc<Gateway>, Checks)>>,
}

/// Serves ops before anything else, so that orchestrators and Prometheus see why a gateway is not ready.
pub(super) fn open_ops(config: &Config, jwks: &serde_json::Value, health: &Arc<Health>, metrics: &Metrics) -> Result<EarlyOps, StartError> {
    let draining = Arc::new(AtomicBool::new(false));
    let behind = Arc::new(OnceLock::new());
    let bound = bind("ops", config.ops.listen.addresses())?;
    let running = serve_ops(bound, behind.clone(), readiness::waiting(health), Bytes::from(jwks.to_string()), draining.clone(), metrics);
    Ok(EarlyOps { running, draining, behind })
}

/// Binds every address first, so that a taken port stops the start, and then serves them all.
pub(super) fn open(
    config: &Config,
    ops: EarlyOps,
    gateway: &Arc<Gateway>,
    state: AdminState,
    checks: Checks,
    metrics: &Metrics,
) -> Result<Listeners, StartError> {
    let certificates = Certificates::load(config)?;
    let edge = bind("edge", config.edge.listen.addresses())?;
    let admin = bind("admin", config.admin.listen.addresses())?;
    let EarlyOps { running, draining, behind } = ops;
    // Set once, here, so there is nobody to have set it before.
    let _ = behind.set((gateway.clone(), checks));
    Ok(Listeners {
        ops: running,
        admin: serve_admin(admin, state, certificates.admin.clone(), metrics),
        edge: serve_edge(edge, config, gateway, certificates.edge.clone(), metrics),
        certificates,
        draining,
    })
}

fn bind(listener: &'static str, addresses: &[SocketAddr]) -> Result<Vec<(Listener, SocketAddr)>, StartError> {
    let bind = |address: &SocketAddr| {
        let opened = edge::bind(*address).and_then(|opened| opened.address().map(|true_address| (opened, true_address)));
        let opened = opened.map_err(|error| StartError::Listen(*address, error))?;
        tracing::info!(listener, address = %opened.1, "listening");
        Ok(opened)
    };
    addresses.iter().map(bind).collect()
}

fn serve_edge(bound: Vec<(Listener, SocketAddr)>, config: &Config, gateway: &Arc<Gateway>, tls: Option<Tls>, metrics: &Metrics) -> Running {
    let options = Options {
        connections_max: descriptors::connections_max(config.edge.connections_max),
        connections_per_address_max: config.edge.connections_per_address_max,
        trusted_proxies: config.edge.trusted_proxies.clone(),
        proxy_protocol: if config.edge.proxy_protocol { ProxyProtocol::Demanded } else { ProxyProtocol::Off },
        drain: config.edge.drain + CLOSING_MAX,
        ..Options::new("edge")
    };
    let gateway = gateway.clone();
    serve(bound, options, tls, metrics, move |request, peer| {
        let transport = if peer.secure { Transport::Tls } else { Transport::Clear };
        // Boxed, so that a connection that waits for a request does not hold the room for one, and nothing large is moved.
        Box::pin(gateway.clone().handle(request, Caller { address: peer.address, transport }))
    })
}

fn serve_admin(bound: Vec<(Listener, SocketAddr)>, state: AdminState, tls: Option<Tls>, metrics: &Metrics) -> Running {
    let handler = admin::handler::<Incoming>(state);
    serve(bound, inner_options("admin"), tls, metrics, move |request, peer| handler(request, peer.address))
}

fn serve_ops(
    bound: Vec<(Listener, SocketAddr)>,
    behind: Arc<OnceLock<(Arc<Gateway>, Checks)>>,
    waiting: Checks,
    first_jwks: Bytes,
    draining: Arc<AtomicBool>,
    metrics: &Metrics,
) -> Running {
    let known = behind.clone();
    let jwks = Arc::new(move || match known.get() {
        Some((gateway, _)) => Bytes::from(gateway.settings.load().jwks().to_string()),
        None => first_jwks.clone(),
    });
    let checks: Checks = Arc::new(move || behind.get().map_or_else(|| waiting(), |(_, checks)| checks()));
    let handler = ops::handler(ops::OpsState { metrics: metrics.clone(), checks, draining, jwks });
    serve(bound, inner_options("ops"), None, metrics, handler)
}

fn inner_options(name: &'static str) -> Options {
    Options {
        connections_max: INNER_CONNECTIONS_MAX,
        connections_per_address_max: INNER_CONNECTIONS_MAX,
        drain: CLOSING_MAX,
        ..Options::new(name)
    }
}

/// The demo's upstream, on a listener of its own that ends with the background tasks.
pub(super) fn serve_demo(listener: Listener, address: SocketAddr, upstream: Arc<DemoUpstream>, metrics: &Metrics, tasks: &Tasks) {
    let running =
        serve(vec![(listener, address)], inner_options("demo"), None, metrics, move |request, _| demo::answer(upstream.clone(), request));
    let stop = tasks.stopping();
    tasks.spawn("demo", async move {
        stop.cancelled().await;
        running.cut().await;
    });
}

fn serve<S, F, B>(bound: Vec<(Listener, SocketAddr)>, options: Options, tls: Option<Tls>, metrics: &Metrics, service: S) -> Running
where
    S: Fn(Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (listeners, addresses) = bound.into_iter().unzip();
    let (tasks, drain, ended) = (Tasks::new(), Drain::new(), CancellationToken::new());
    let refusals = {
        let metrics = metrics.clone();
        Arc::new(move |refusal, peer: &Peer| gateway::refuse_unparsed(&rejection(refusal), peer.address.ip(), &metrics))
    };
    let server = Server { options, tls, tasks: tasks.clone(), metrics: metrics.clone(), refusals, drain: drain.clone() };
    let guard = ended.clone().drop_guard();
    tasks.spawn("listener", async move {
        server.serve(listeners, service).await;
        drop(guard);
    });
    Running { addresses, drain, ended }
}

/// What the edge could not make a request of, in the words of the line.
fn rejection(refusal: OwnRefusal) -> Rejection {
    match refusal {
        OwnRefusal::Malformed => gateway::unparsable(),
        OwnRefusal::TargetTooLong => gateway::target_too_long(),
        OwnRefusal::HeadersTooLarge => gateway::headers_too_large(),
    }
}

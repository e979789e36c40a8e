//! From a configuration to a running gateway, and from a signal to its end.
//!
//! The order matters: what an earlier life left in the spool is shipped before windows are rebuilt from the log, the epoch
//! is learnt before a key may be cached, and nothing but ops, not ready, listens before all of that is done.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::audit::{self, Spool};
use crate::clock;
use crate::coherence::Coherence;
use crate::config::reload::{LOOK_INTERVAL, Watch};
use crate::config::{self, Config, Source};
use crate::demo;
use crate::domain::{BootInstant, KeyNamespace};
use crate::edge;
use crate::fetch;
use crate::gateway::{Books, Gateway, Keyring, Limiter, Settings};
use crate::metrics::Metrics;
use crate::ops::Check;
use crate::signing::{KeyRing, SigningKey};
use crate::store::embedded::EmbeddedStore;
use crate::store::{MeteredStore, RedisStore, Store, StoreError};
use crate::tasks::Tasks;

use super::listeners::{self, Checks, Listeners};
use super::{StartError, banner, drain, reload};

/// File of the signing key that is made where none is configured, in the store's folder.
const SIGNING_KEY_FILE: &str = "signing.pem";
/// Between attempts to reach a Redis that is away at the start, and between two lines that say so.
const STORE_RETRY: Duration = Duration::from_millis(250);
const WAITING_NOTICE: Duration = Duration::from_secs(5);
/// How long background tasks may take to end.
const TASKS_STOP_MAX: Duration = Duration::from_secs(10);

/// A running gateway.
pub struct Started {
    /// Handles requests.
    pub gateway: Arc<Gateway>,
    /// Reloadable settings of the admin API.
    pub admin: Arc<ArcSwap<admin::Settings>>,
    /// The signing keys that were made, where none are configured.
    pub own_keys: Arc<KeyRing>,
    /// Every background task but the connections.
    pub tasks: Tasks,
    /// The spool.
    pub spool: Arc<Spool>,
    /// The shared state.
    pub store: Arc<dyn Store>,
    /// What listens.
    pub listeners: Listeners,
    /// The metrics.
    pub metrics: Metrics,
    /// Ends the shipping, after everything else has ended.
    pub shipping: (Tasks, CancellationToken),
}

/// Runs until a signal has been obeyed. `program` is what people type to call this program again.
///
/// # Errors
/// See [`StartError`]; nothing listens then.
pub async fn run(source: Source, program: &str) -> Result<(), StartError> {
    let mut watch = match &source {
        Source::File(file) => Some(Watch::new(file, LOOK_INTERVAL)),
        Source::Demo => None,
    };
    let written = match &mut watch {
        Some(watch) => watch.load()?,
        None => config::load_source(&source)?,
    };
    for warning in config::warnings(&written) {
        tracing::warn!("{warning}");
    }
    let demo = Demo::listen(&written)?;
    let address = demo.as_ref().map(|demo| demo.address);
    let config = demo::resolve(written, address);
    let started = start(&config).await?;
    if let Some(demo) = demo {
        demo.serve(&started, &config)?;
        banner::show(&started, &config, program).await;
    }
    started.metrics.config_last_reload.set(reload::now_seconds());
    if let Some(watch) = watch {
        reload::watch(&started, watch, config.clone(), address);
    }
    drain::until_signalled(started, config.edge.drain).await;
    Ok(())
}

/// The demo's upstream, listening where the configuration names `demo://`.
struct Demo {
    listener: edge::Listener,
    address: SocketAddr,
    audiences: Vec<String>,
}

impl Demo {
    fn listen(config: &Config) -> Result<Option<Self>, StartError> {
        let audiences = demo::upstreams(config);
        if audiences.is_empty() {
            return Ok(None);
        }
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = edge::bind(any).and_then(|listener| listener.address().map(|address| (listener, address)));
        let (listener, address) = bound.map_err(|error| StartError::Listen(any, error))?;
        Ok(Some(Self { listener, address, audiences }))
    }

    fn serve(self, started: &Started, config: &Config) -> Result<(), StartError> {
        let ops = started.listeners.ops.addresses.first().copied().unwrap_or(self.address);
        let jwks = fetch::Url::parse(&format!("http://{ops}/.well-known/jwks.json")).expect("an address makes a URL");
        let upstream =
            demo::DemoUpstream::new(jwks, &config.assertion, self.audiences).map_err(|error| StartError::Listen(self.address, error))?;
        listeners::serve_demo(self.listener, self.address, upstream, &started.metrics, &started.tasks);
        Ok(())
    }
}

async fn start(config: &Config) -> Result<Started, StartError> {
    let metrics = Metrics::new();
    let tasks = Tasks::new();
    let spool = open_spool(config, &metrics).await?;
    let own_keys = Arc::new(KeyRing::new(vec![SigningKey::load_or_create(&config.own_folder().join(SIGNING_KEY_FILE))?])?);
    let jwks = signing_keys(config, &own_keys)?.jwks();
    let ops = listeners::open_ops(config, &jwks, &metrics)?;
    let store: Arc<dyn Store> = MeteredStore::new(open_store(config, &tasks).await?, &metrics);
    until_answered(config, || audit::catch_up(&spool, store.as_ref())).await?;
    let coherence = Coherence::new(store.clone(), spool.replica().clone(), clock::fresh_uuid(), &metrics);
    until_answered(config, || coherence.join()).await?;
    let settings = Settings::build(config, signing_keys(config, &own_keys)?, &tasks, &metrics, None)?;
    let namespace = KeyNamespace::parse(&config.keys.prefix).expect("config checks keys.prefix");
    let gateway = Arc::new(Gateway {
        namespace: namespace.clone(),
        keyring: Keyring::new(store.clone(), coherence.clone(), &metrics),
        coherence: coherence.clone(),
        limiter: Limiter::new(store.clone(), &metrics),
        settings: ArcSwap::from_pointee(settings),
        books: Arc::new(Books { spool: spool.clone(), metrics: metrics.clone() }),
        tasks: tasks.clone(),
        cut: CancellationToken::new(),
    });
    let admin = Arc::new(ArcSwap::from_pointee(admin::Settings::new(config, spool.replica().clone(), &tasks, None)?));
    let state = AdminState {
        store: store.clone(),
        coherence: coherence.clone(),
        namespace,
        settings: admin.clone(),
        metrics: metrics.clone(),
        tasks: tasks.clone(),
    };
    let listeners = listeners::open(config, ops, &gateway, state, checks(&coherence, &spool), &metrics)?;
    let (shipping, end_shipping) = (Tasks::new(), CancellationToken::new());
    shipping.spawn("ship", audit::ship(spool.clone(), store.clone(), config.audit.stream_max_age, metrics.clone(), end_shipping.clone()));
    tasks.spawn("coherence", coherence.keep(tasks.stopping()));
    Ok(Started { gateway, admin, own_keys, tasks, spool, store, listeners, metrics, shipping: (shipping, end_shipping) })
}

async fn open_store(config: &Config, tasks: &Tasks) -> Result<Arc<dyn Store>, StartError> {
    if let Some(redis) = &config.store.redis {
        let opened = until_answered(config, || RedisStore::open(redis, &config.audit.stream, tasks)).await?;
        return Ok(opened);
    }
    let folder = config.own_folder();
    Ok(crate::tasks::blocking(move || EmbeddedStore::open(&folder)).await?)
}

/// A Redis that does not answer may be on its way up, so it is waited for; what waiting does not mend ends the start.
async fn until_answered<T, F>(config: &Config, mut ask: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut said_at: Option<BootInstant> = None;
    loop {
        match ask().await {
            Err(StoreError::Unavailable(why)) if config.store.redis.is_some() => {
                let now = clock::boot_now();
                if said_at.is_none_or(|said| now.since(said) >= WAITING_NOTICE) {
                    tracing::warn!(%why, "waiting for Redis; only the ops listener answers, and it is not ready");
                    said_at = Some(now);
                }
                tokio::time::sleep(STORE_RETRY).await;
            }
            result => return result,
        }
    }
}

/// What must work before requests are sent here.
fn checks(coherence: &Arc<Coherence>, spool: &Arc<Spool>) -> Checks {
    let (coherence, spool) = (coherence.clone(), spool.clone());
    Arc::new(move || {
        let (is_coherent, has_room) = (coherence.is_coherent(), spool.has_room());
        let detail = |ok: bool, good: &str, bad: &str| if ok { good.to_owned() } else { bad.to_owned() };
        vec![
            Check {
                name: "coherence",
                ok: is_coherent,
                detail: detail(is_coherent, "every change to keys is known here", "this replica cannot prove that its keys are current"),
            },
            Check {
                name: "audit",
                ok: has_room,
                detail: detail(has_room, "uses can be recorded", "the spool is full or cannot be written"),
            },
        ]
    })
}

async fn open_spool(config: &Config, metrics: &Metrics) -> Result<Arc<Spool>, StartError> {
    let (spool, replica, metrics) = (config.audit.spool.clone(), config.replica.clone(), metrics.clone());
    Ok(crate::tasks::blocking(move || Spool::open(&spool, replica.as_deref(), &metrics)).await?)
}

/// The configured signing keys, or the one that this gateway made for itself.
pub(super) fn signing_keys(config: &Config, own: &Arc<KeyRing>) -> Result<Arc<KeyRing>, StartError> {
    if config.assertion.signing_keys.is_empty() {
        return Ok(own.clone());
    }
    let keys = config.assertion.signing_keys.iter().map(|key| SigningKey::load(Path::new(&key.file))).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(KeyRing::new(keys)?))
}

impl Started {
    /// Ends what runs in the background, once no request runs any more.
    pub(super) async fn stop_background(&self) {
        self.tasks.stop(TASKS_STOP_MAX).await;
        let (tasks, end) = &self.shipping;
        end.cancel();
        tasks.stop(TASKS_STOP_MAX).await;
    }
}

//! From a configuration to a running gateway, and from a signal to its end.
//!
//! The order matters: the store must be the known one before anything is sent to it, what an earlier life left in the spool
//! is shipped before windows are rebuilt from the log, the epoch is learnt before a key may be cached, and nothing but
//! ops, not ready, listens before all of that is done.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::admin::auth::SignInLinks;
use crate::admin::{self, AdminState};
use crate::audit::{self, Spool};
use crate::clock;
use crate::coherence::{Coherence, Memory, Strangers};
use crate::config::reload::{LOOK_INTERVAL, Watch};
use crate::config::{self, Config, Source};
use crate::demo;
use crate::domain::KeyNamespace;
use crate::edge;
use crate::fetch;
use crate::gateway::{Books, Cuts, Gateway, Keyring, Limiter, Settings};
use crate::metrics::Metrics;
use crate::signing::{KeyRing, SigningKey};
use crate::store::embedded::EmbeddedStore;
use crate::store::{Health, MeteredStore, Partition, RedisStore, Store, StoreError};
use crate::tasks::Tasks;

use super::listeners::{self, Listeners};
use super::{StartError, banner, drain, readiness, reload};

/// File of the signing key that is made where none is configured, in the store's folder.
const SIGNING_KEY_FILE: &str = "signing.pem";
/// Between attempts to reach a Redis that is away at the start.
const STORE_RETRY: Duration = Duration::from_millis(250);
/// How long background tasks may take to end.
const TASKS_STOP_MAX: Duration = Duration::from_secs(10);

/// A running gateway.
pub struct Started {
    coherence: Arc<Coherence>,
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
    /// Links that sign somebody in to the page.
    pub links: Arc<SignInLinks>,
    /// Lets followers of the log go, so that the admin listener need not wait for them.
    pub followers_end: CancellationToken,
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
    let mut signals = drain::Signals::new();
    let started = tokio::select! {
        started = start(&config) => started?,
        () = signals.next() => {
            tracing::info!("told to end before it had started; nothing was accepted");
            return Ok(());
        }
    };
    if let Some(demo) = demo {
        demo.serve(&started, &config)?;
        banner::show(&started, &config, program).await;
    }
    started.metrics.config_last_reload.set(reload::now_seconds());
    if let Some(watch) = watch {
        reload::watch(&started, watch, config.clone(), address);
    }
    drain::until_signalled(started, signals, &config.edge).await;
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
    let health = Health::new(&metrics);
    let spool = open_spool(config, &metrics).await?;
    let own_keys = Arc::new(KeyRing::new(vec![SigningKey::load_or_create(&config.own_folder().join(SIGNING_KEY_FILE))?])?);
    let jwks = signing_keys(config, &own_keys)?.jwks();
    let ops = listeners::open_ops(config, &jwks, &health, &metrics)?;
    let store: Arc<dyn Store> = MeteredStore::new(open_store(config, &health, &tasks).await?, &metrics, &health);
    let memory = open_memory(config).await?;
    let coherence = Coherence::remembering(store.clone(), spool.replica().clone(), clock::fresh_uuid(), &metrics, memory);
    until_answered(config, &health, || coherence.join()).await?;
    tasks.spawn("coherence", coherence.clone().keep(tasks.stopping()));
    until_answered(config, &health, || audit::catch_up(&spool, store.as_ref())).await?;
    let settings = Settings::build(config, signing_keys(config, &own_keys)?, &tasks, &metrics, None)?;
    let limiter = Arc::new(Limiter::new(store.clone(), coherence.clone(), &metrics));
    let uses = Arc::downgrade(&limiter);
    coherence.recall_from(Box::new(move |partition| uses.upgrade().map(|limiter| limiter.recall(partition)).unwrap_or_default()));
    let namespace = KeyNamespace::parse(&config.keys.prefix).expect("config checks keys.prefix");
    let keyring = Arc::new(Keyring::new(store.clone(), coherence.clone(), &metrics));
    tasks.spawn("key cache", keyring.clone().keep(tasks.stopping()));
    let gateway = Arc::new(Gateway {
        namespace: namespace.clone(),
        cuts: Cuts::new(keyring.clone()),
        keyring,
        limiter,
        settings: ArcSwap::from_pointee(settings),
        books: Arc::new(Books::new(spool.clone(), metrics.clone(), namespace.clone())),
        tasks: tasks.clone(),
    });
    let admin = Arc::new(ArcSwap::from_pointee(admin::Settings::new(config, spool.replica().clone(), &tasks, None)?));
    let links = Arc::new(SignInLinks::default());
    let state = AdminState {
        store: store.clone(),
        coherence: coherence.clone(),
        namespace,
        settings: admin.clone(),
        metrics: metrics.clone(),
        tasks: tasks.clone(),
        links: links.clone(),
        draining: CancellationToken::new(),
    };
    let followers_end = state.draining.clone();
    let listeners = listeners::open(config, ops, &gateway, state, readiness::checks(&health, &coherence, &spool), &metrics)?;
    let (shipping, end_shipping) = (Tasks::new(), CancellationToken::new());
    let age_max = config.audit.stream_max_age;
    let shipper = audit::ship(spool.clone(), store.clone(), age_max, metrics.clone(), coherence.meetings(), end_shipping.clone());
    shipping.spawn("ship", shipper);
    tasks.spawn("store settings", health.watch_settings(store.clone(), tasks.stopping()));
    Ok(Started {
        gateway,
        coherence,
        admin,
        own_keys,
        tasks,
        spool,
        store,
        listeners,
        metrics,
        links,
        followers_end,
        shipping: (shipping, end_shipping),
    })
}

async fn open_store(config: &Config, health: &Health, tasks: &Tasks) -> Result<Arc<dyn Store>, StartError> {
    if let Some(redis) = &config.store.redis {
        let opened = until_answered(config, health, || RedisStore::open(redis, &config.audit.stream, tasks)).await?;
        return Ok(opened);
    }
    let folder = config.own_folder();
    Ok(crate::tasks::blocking(move || EmbeddedStore::open(&folder)).await?)
}

/// What this gateway wrote down of a store elsewhere; one in its own folder needs none of it.
async fn open_memory(config: &Config) -> Result<Memory, StoreError> {
    let Some(redis) = &config.store.redis else { return Ok(Memory::default()) };
    let strangers = if redis.allow_unsafe { Strangers::Accepted } else { Strangers::Refused };
    // The spool's own folder is locked, so no other gateway on this machine shares these files.
    let folder = config.audit.spool.path.clone();
    let opened = crate::tasks::blocking(move || Memory::open(&folder, strangers).map_err(|error| (error, folder))).await;
    opened.map_err(|(error, folder)| StoreError::Unsafe(format!("cannot use the files about the store in {folder:?}: {error}")))
}

/// A Redis that does not answer, or not yet as it should, is waited for: it may be on its way up, a replica about to be
/// promoted, or without the password that somebody is about to set. What waiting does not mend ends the start: its
/// version, its layout, its settings, and another data set than the known one. That one is for a person to decide, who
/// is told of the file and of the way out; whatever starts the gateway again has then waited for them as well.
async fn until_answered<T, F>(config: &Config, health: &Health, mut ask: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match ask().await {
            Err(error @ StoreError::Unavailable(_)) if config.store.redis.is_some() => {
                health.failed(Partition(0), &error);
                tokio::time::sleep(STORE_RETRY).await;
            }
            result => return result,
        }
    }
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
    /// Ends what runs in the background, once no request runs any more, and leaves the other replicas.
    pub(super) async fn stop_background(&self) {
        let have_ended = self.tasks.stop(TASKS_STOP_MAX).await;
        let (tasks, end) = &self.shipping;
        end.cancel();
        tasks.stop(TASKS_STOP_MAX).await;
        self.coherence.leave(|| have_ended && self.metrics.requests_in_flight.get() == 0).await;
    }
}

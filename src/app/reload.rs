//! A changed configuration is validated as a whole and swapped in as a whole; a bad one changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin;
use crate::clock;
use crate::config::reload::Watch;
use crate::config::{self, Config, ConfigError};
use crate::demo;
use crate::edge::Renewed;
use crate::gateway::{Gateway, Settings};
use crate::metrics::Metrics;
use crate::signing::KeyRing;
use crate::tasks::Tasks;

use super::StartError;
use super::listeners::Certificates;
use super::start::{Started, signing_keys};

/// What a reload replaces.
struct Replaceable {
    gateway: Arc<Gateway>,
    admin: Arc<ArcSwap<admin::Settings>>,
    own_keys: Arc<KeyRing>,
    certificates: Certificates,
    tasks: Tasks,
    metrics: Metrics,
    current: Config,
    demo: Option<SocketAddr>,
}

/// Watches the configuration's files, and SIGHUP, for as long as the gateway runs.
pub(super) fn watch(started: &Started, mut watch: Watch, current: Config, demo: Option<SocketAddr>) {
    let mut replaceable = Replaceable {
        gateway: started.gateway.clone(),
        admin: started.admin.clone(),
        own_keys: started.own_keys.clone(),
        certificates: started.listeners.certificates.clone(),
        tasks: started.tasks.clone(),
        metrics: started.metrics.clone(),
        current,
        demo,
    };
    let (hangup, mut hangups) = mpsc::channel(1);
    let stop = started.tasks.stopping();
    let mut signals = signal(SignalKind::hangup()).expect("the runtime has signals enabled");
    started.tasks.spawn("reload", async move {
        loop {
            tokio::select! {
                loaded = watch.change(&mut hangups) => replaceable.apply(loaded).await,
                // A hangup that is already waiting to be obeyed says the same.
                _ = signals.recv() => drop(hangup.try_send(())),
                () = stop.cancelled() => return,
            }
        }
    });
}

impl Replaceable {
    async fn apply(&mut self, loaded: Result<Config, ConfigError>) {
        let result = match loaded {
            Ok(config) => self.replace(demo::resolve(config, self.demo)).await,
            Err(error) => Err(error.into()),
        };
        let word = if result.is_ok() { "success" } else { "failure" };
        self.metrics.config_reloads.with_label_values(&[word]).inc();
        match result {
            Ok(()) => {
                self.metrics.config_last_reload.set(now_seconds());
                tracing::info!("the configuration was reloaded");
            }
            Err(error) => tracing::error!(%error, "the configuration was not reloaded; the one in force stays"),
        }
    }

    /// Builds everything first and swaps last, so that a mistake anywhere leaves everything as it was.
    async fn replace(&mut self, config: Config) -> Result<(), StartError> {
        for warning in config::warnings(&config) {
            tracing::warn!("{warning}");
        }
        let keys = signing_keys(&config, &self.own_keys)?;
        let previous = self.gateway.settings.load_full();
        let settings = Settings::build(&config, keys, &self.tasks, &self.metrics, Some(&previous))?;
        let before = self.admin.load_full();
        let admin = admin::Settings::new(&config, before.replica.clone(), &self.tasks, Some(&before))?;
        let certificates = self.certificates.prepare(&config)?;
        self.gateway.settings.store(Arc::new(settings));
        self.admin.store(Arc::new(admin));
        certificates.into_iter().for_each(Renewed::install);
        for field in config::reload::restart_needed(&self.current, &config) {
            tracing::warn!(field, "this field changed but needs a restart to take effect");
        }
        self.current = config;
        Ok(())
    }
}

pub(super) fn now_seconds() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "whole seconds since 1970 are exact in a double for millions of years")]
    let seconds = clock::wall_now().seconds() as f64;
    seconds
}

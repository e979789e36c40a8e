//! What the configuration says about requests, built as a whole and swapped in as a whole.

use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::signing::KeyRing;
use crate::tasks::Tasks;

use super::forward::{ForwardError, Forwarder};
use super::policy::{Policy, RouteError};
use super::sign::Signer;

/// One configuration's settings.
#[derive(Debug)]
pub struct Settings {
    /// Routes.
    pub(super) policy: Policy,
    /// Upstreams and their connections.
    pub(super) forwarder: Forwarder,
    /// Assertions.
    pub(super) signer: Signer,
    /// Accepted requests of one key in any 60 seconds.
    pub(super) requests_per_minute: u32,
    /// Largest request body, in bytes.
    pub(super) request_body_max: u64,
    /// Whose forwarding header fields are believed.
    pub(super) trusted_proxies: Vec<IpNet>,
}

/// Why a configuration cannot be used although each of its fields is right.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An upstream.
    #[error(transparent)]
    Upstream(#[from] ForwardError),
    /// A route.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The assertion's header name.
    #[error("assertion.header: {0:?} is not a header name")]
    Header(String),
}

impl Settings {
    /// Builds everything that a configuration describes; connections to unchanged upstreams are taken over from `previous`.
    ///
    /// # Errors
    /// See [`SettingsError`]; nothing is changed then.
    pub fn build(
        config: &Config,
        keys: Arc<KeyRing>,
        tasks: &Tasks,
        metrics: &Metrics,
        previous: Option<&Self>,
    ) -> Result<Self, SettingsError> {
        let forwarder = Forwarder::new(&config.upstreams, tasks, metrics, previous.map(|settings| &settings.forwarder))?;
        let policy = Policy::new(&config.routes, &config.assertion, &forwarder, metrics)?;
        let header = HeaderName::try_from(&config.assertion.header).map_err(|_| SettingsError::Header(config.assertion.header.clone()))?;
        let signer = Signer::new(keys, header, config.assertion.issuer.clone(), config.assertion.lifetime);
        Ok(Self {
            policy,
            forwarder,
            signer,
            requests_per_minute: config.limits.requests_per_minute,
            request_body_max: config.limits.request_body_max.0,
            trusted_proxies: config.edge.trusted_proxies.clone(),
        })
    }

    /// The public keys that verify this configuration's assertions.
    pub fn jwks(&self) -> serde_json::Value {
        self.signer.keys().jwks()
    }
}

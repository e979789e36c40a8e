//! The section `store`: which of the two stores a gateway uses, and how it reaches it.
//!
//! Exactly one of `embedded` and `redis`; that both are written is told by `check`. Types of what a later version will
//! read stand here too, so that whoever writes it is told so and not that it does not exist.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, units};

/// The store: exactly one of the two; without either, `embedded` in `data`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(from = "WrittenStore")]
#[schemars(with = "WrittenStore")]
pub struct Store {
    /// One file on this machine, for one gateway.
    pub embedded: Option<Embedded>,
    /// A Redis that any number of gateways share.
    pub redis: Option<Redis>,
}

impl Default for Store {
    fn default() -> Self {
        Self { embedded: Some(Embedded::default()), redis: None }
    }
}

/// The store as it is written.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Store", description = "The store: exactly one of the two; without either, `embedded` in `data`.")]
struct WrittenStore {
    /// One file on this machine, for one gateway.
    embedded: Option<Embedded>,
    /// A Redis that any number of gateways share.
    redis: Option<Redis>,
}

impl From<WrittenStore> for Store {
    fn from(written: WrittenStore) -> Self {
        match written {
            WrittenStore { embedded: None, redis: None } => Self::default(),
            WrittenStore { embedded, redis } => Self { embedded, redis },
        }
    }
}

/// The embedded store.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Embedded {
    /// The folder that holds it; made with mode 0700 if it is missing.
    pub path: PathBuf,
}

impl Default for Embedded {
    fn default() -> Self {
        Self { path: "data".into() }
    }
}

/// The Redis store. Keys that a gateway makes for itself lie beside its spool.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, or `rediss://` for TLS.
    pub url: RedisUrl,
    /// PEM file of the certificate authorities that may vouch for a `rediss://` server; absent: the machine's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// File with the password, in the place of the URL's.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// How many hash-tag partitions firms are spread over; this version has 1, which gives exactly one audit stream.
    #[serde(default = "Redis::default_partitions")]
    pub partitions: u16,
    /// How long a replica may trust its cache without hearing from Redis; 500ms to 10s, the same for all.
    #[serde(default = "Redis::default_lease", with = "units::span")]
    #[schemars(with = "units::Span")]
    pub coherence_lease: Duration,
    /// How many Redis replicas must have a creation or revocation before it is answered.
    #[serde(default)]
    pub replicas_ack_min: u32,
    /// Whether to start even where Redis may evict (maxmemory-policy) or forget (no persistence).
    #[serde(default)]
    pub allow_unsafe: bool,
    /// Not in this version.
    #[serde(default)]
    pub sentinel: Option<Later>,
    /// Not in this version.
    #[serde(default)]
    pub cluster: Option<Later>,
}

impl Redis {
    fn default_partitions() -> u16 {
        1
    }

    fn default_lease() -> Duration {
        Duration::from_secs(3)
    }
}

/// Where Redis is; may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// For whoever connects.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for RedisUrl {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RedisUrl(hidden)")
    }
}

/// A section that a later version will read: whatever stands there is refused by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Later {}

impl<'de> Deserialize<'de> for Later {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(input).map(|_| Self {})
    }
}

impl Config {
    /// Where this gateway keeps what it makes for itself (its signing key, the local issuer's key): the embedded store's
    /// folder, or with Redis the folder that holds the spool.
    pub fn own_folder(&self) -> PathBuf {
        match &self.store.embedded {
            Some(embedded) => embedded.path.clone(),
            None => self
                .audit
                .spool
                .path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .map_or_else(|| PathBuf::from("."), Into::into),
        }
    }
}

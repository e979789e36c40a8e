//! The section `store`: which of the two stores a gateway uses, and how it reaches it.
//!
//! Exactly one of `embedded` and `redis`; Redis alone, with Sentinel, or as a Cluster. What is written beside what it
//! excludes is told by `check`.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::{Config, Tls, units};

/// Longest coherence lease: a revocation waits for no longer.
pub const COHERENCE_LEASE_MAX: Duration = Duration::from_secs(10);

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

/// The Redis store, in one of three shapes: one Redis (`url` with a host), Redis with Sentinel (`sentinel`), or Redis Cluster
/// (`cluster`). Keys that a gateway makes for itself lie beside its spool. Needs a restart; files named here are read
/// again at each connect, so passwords and certificates may change under a running gateway.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, or `rediss://` for TLS. With `sentinel` or `cluster`, which name the
    /// hosts, it says the rest and has no host: `rediss://USER@/0`; absent, it is `redis://`.
    pub url: Option<RedisUrl>,
    /// Redis with Sentinel: the master is asked for, and left when the sentinels name another.
    pub sentinel: Option<Sentinel>,
    /// Redis Cluster: firms are spread over its masters by `partitions`.
    pub cluster: Option<Cluster>,
    /// PEM file of the certificate authorities that may vouch for `rediss://` servers and sentinels; absent: the machine's.
    pub ca: Option<PathBuf>,
    /// What this gateway shows to `rediss://` servers and sentinels that ask for a certificate.
    pub client_certificate: Option<Tls>,
    /// File with the password, in the place of the URL's.
    pub password_file: Option<PathBuf>,
    /// How many partitions firms are spread over, each with its own audit stream: `audit.stream`, then `audit.stream` with
    /// `:1`, `:2` and so on; 1 to 64. Redis remembers it; only `store export` and `store import` change it later.
    pub partitions: u16,
    /// How long a replica may trust its cache without hearing from Redis; 500ms to 10s, the same for all.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub coherence_lease: Duration,
    /// What a cached key needs to be accepted: that the replica's lease runs, or that Redis was asked since the request
    /// arrived. Replicas may differ while it is changed.
    pub revocation: Revocations,
    /// How many Redis replicas must have a creation or revocation before it is answered.
    pub replicas_ack_min: u32,
    /// Whether to start even where Redis may evict (maxmemory-policy) or forget (no persistence), or holds another data set
    /// than the one that this gateway knows.
    pub allow_unsafe: bool,
}

/// Redis with Sentinel. A master is believed only while a majority of these sentinels name it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sentinel {
    /// All sentinels, `HOST:PORT` each; with a `rediss://` url they are spoken to with TLS too.
    #[schemars(with = "Vec<String>")]
    pub nodes: Vec<ServerAddress>,
    /// The name under which they watch the master.
    pub master: String,
    /// Who signs in at the sentinels; absent: their default user.
    #[serde(default)]
    pub user: Option<String>,
    /// File with the sentinels' own password; absent: they want none.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Redis Cluster.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Some of its nodes, `HOST:PORT` each, by which the others are found.
    #[schemars(with = "Vec<String>")]
    pub nodes: Vec<ServerAddress>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            sentinel: None,
            cluster: None,
            ca: None,
            client_certificate: None,
            password_file: None,
            partitions: 1,
            coherence_lease: Duration::from_secs(3),
            revocation: Revocations::default(),
            replicas_ack_min: 0,
            allow_unsafe: false,
        }
    }
}

impl Redis {
    /// Whether servers are spoken to with TLS.
    pub fn is_tls(&self) -> bool {
        self.url.as_ref().is_some_and(|url| url.reveal().starts_with("rediss:"))
    }
}

/// How a replica makes sure that a key it knows is not revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Revocations {
    /// It renews a lease and needs no call for a request; a revocation waits for replicas that do not answer.
    #[default]
    Lease,
    /// It asks Redis after each request arrived, once for all that wait; a revocation waits for nobody.
    Strict,
}

/// Where a server listens: `HOST:PORT`, an IPv6 address in brackets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServerAddress(String);

impl ServerAddress {
    /// Nothing but a host and a port.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bare {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
        };
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
        (is_host && is_port).then(|| Self(text.to_owned()))
    }

    /// `HOST:PORT`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for ServerAddress {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_str(AddressVisitor)
    }
}

struct AddressVisitor;

impl Visitor<'_> for AddressVisitor {
    type Value = ServerAddress;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("HOST:PORT, like 10.0.0.7:6379 or redis-1.example.com:6379")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ServerAddress, E> {
        ServerAddress::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl Serialize for ServerAddress {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.0)
    }
}

/// How Redis is spoken to, and where it is; may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// For whoever connects.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What stands before the host, the host and port if there are any, and what follows.
    pub fn parts(&self) -> (&str, &str, &str) {
        let start = self.0.find("://").map_or(0, |at| at + 3);
        let (head, rest) = self.0.split_at(start);
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = authority.rfind('@').map_or(0, |at| at + 1);
        let (_, server) = authority.split_at(host);
        (self.0.get(..head.len() + host).unwrap_or_default(), server, tail)
    }

    /// The same for another server.
    pub fn at(&self, server: &ServerAddress) -> Self {
        let (head, _, tail) = self.parts();
        Self(format!("{head}{}{tail}", server.as_str()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_the_same_for_another_server() {
        let at = |text: &str| RedisUrl::from(text).at(&ServerAddress::parse("h:7").unwrap()).0;
        assert_eq!(at("redis://"), "redis://h:7");
        assert_eq!(at("rediss://ann:s%40@/3"), "rediss://ann:s%40@h:7/3");
        assert_eq!(at("redis://:p@ss@old:6379/3?protocol=resp3"), "redis://:p@ss@h:7/3?protocol=resp3");
        assert_eq!(RedisUrl::from("redis://ann@[::1]:6379/3").parts(), ("redis://ann@", "[::1]:6379", "/3"));
        assert_eq!(RedisUrl::from("nonsense").parts(), ("", "nonsense", ""));
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["10.0.0.7:26379", "redis-1.example.com:6379", "[::1]:1", "a_b:65535"] {
            assert!(ServerAddress::parse(good).is_some(), "{good}");
        }
        for bad in ["", "h", ":1", "h:", "h:0", "h:+1", "h:65536", "::1:7", "[::1]", "[h]:1", "u@h:1", "h/:1", "redis://h:1", "h 2:1"] {
            assert!(ServerAddress::parse(bad).is_none(), "{bad}");
        }
    }
}

//! What the operator writes, parsed into what the code uses.
//!
//! `load` tells the steps: `document` (text to tree), `substitute` (`${...}`), `decode` (tree to the types below), `check`
//! (what types cannot say). `mistakes` words what is wrong, all of it at once; `position` finds file and line. `units`
//! reads sizes and spans; `reload` watches the file. The types are the contract's configuration: unknown fields are
//! errors, each default stands here once, and the field documentation becomes the JSON Schema.

mod check;
mod decode;
mod document;
mod load;
mod mistakes;
mod position;
pub mod reload;
mod store;
mod substitute;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::warnings;
pub use load::{ConfigError, DEMO_ENDPOINT, Mistake, Mistakes, Source, find, load, load_source, parse, schema};
pub use store::{COHERENCE_LEASE_MAX, Cluster, Embedded, Redis, RedisUrl, Revocations, Sentinel, ServerAddress, Store};
pub use units::{ByteCount, UnitError};

/// The whole configuration.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The listener that tools use.
    pub edge: Edge,
    /// The listener of the dashboard, the page and the command line.
    pub admin: Admin,
    /// The listener of Prometheus, orchestrators and upstreams.
    pub ops: Ops,
    /// Where keys, windows and the activity log live. Needs a restart.
    pub store: Store,
    /// Form and number of keys.
    pub keys: Keys,
    /// What one key may send.
    pub limits: Limits,
    /// The signed header that tells an upstream who is asking.
    pub assertion: Assertion,
    /// The activity log and its spool.
    pub audit: Audit,
    /// The services behind the gateway, by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// First match wins; no match is 404.
    pub routes: Vec<Route>,
    /// What the process writes to standard error.
    pub log: Log,
    /// How this gateway names itself in records and sessions; the default is made once and kept in the spool. Needs a restart.
    pub replica: Option<String>,
}

/// One address or several.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected an address like 127.0.0.1:8080, or a list of them")]
pub enum Listen {
    /// One address, `127.0.0.1:8080` or `[::1]:8080`; port 0 takes a free one.
    One(#[schemars(with = "String")] SocketAddr),
    /// Several addresses.
    Many(#[schemars(with = "Vec<String>")] Vec<SocketAddr>),
}

impl Listen {
    /// The addresses, in order.
    pub fn addresses(&self) -> &[SocketAddr] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Many(addresses) => addresses,
        }
    }
}

/// The edge listener.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Edge {
    /// Where tools connect. Needs a restart.
    pub listen: Listen,
    /// Certificate and key; absent means clear text. The files are read again on reload; turning TLS
    /// on or off needs a restart.
    pub tls: Option<Tls>,
    /// Networks whose `X-Forwarded-For`, `Forwarded` and PROXY protocol are believed; none by default. Needs a
    /// restart where `proxy_protocol` is on.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Whether every connection from a trusted proxy begins with a PROXY protocol header (version 1 or 2). Needs a restart.
    pub proxy_protocol: bool,
    /// Most connections at once. Needs a restart.
    pub connections_max: usize,
    /// Most connections at once from one client address. Needs a restart.
    pub connections_per_address_max: usize,
    /// How long everything is still served after SIGTERM while `/readyz` is red; longer than a load balancer takes to notice. Needs a restart.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub drain_notice: Duration,
    /// How long requests may then go on before they are cut. Needs a restart.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub drain: Duration,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            listen: Listen::One(SocketAddr::from(([127, 0, 0, 1], 8080))),
            tls: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            connections_max: 20_000,
            connections_per_address_max: 2_000,
            drain_notice: Duration::from_secs(2),
            drain: Duration::from_secs(30),
        }
    }
}

/// A certificate chain and its private key, both PEM.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, leaf first.
    pub certificate: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub private_key: PathBuf,
}

/// The admin listener.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where admins connect. Needs a restart.
    pub listen: Listen,
    /// Certificate and key; absent means clear text.
    pub tls: Option<Tls>,
    /// The address under which people reach the admin listener; its host is the only one, beside loopback names, that requests may name.
    pub public_url: Option<String>,
    /// Origins of dashboards, like `https://app.example.com`; they may show the API keys page in a frame and sign people in to it.
    pub frame_ancestors: Vec<String>,
    /// Whose tokens are believed.
    pub auth: Auth,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Listen::One(SocketAddr::from(([127, 0, 0, 1], 8081))),
            tls: None,
            public_url: None,
            frame_ancestors: Vec::new(),
            auth: Auth::default(),
        }
    }
}

/// Whose user tokens the admin API believes, and what their claims are called.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Whether tokens signed by this gateway's own key (`assure-gateway token`) are believed; on only in the demo by default.
    pub local_issuer: bool,
    /// The identity providers.
    pub issuers: Vec<Issuer>,
    /// Names of the claims.
    pub claims: Claims,
    /// Names of the two permissions that manage keys.
    pub permissions: ManagePermissions,
}

/// An identity provider.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Must equal the token's `iss`, byte for byte.
    pub issuer: String,
    /// Must be among the token's `aud`.
    pub audience: String,
    /// Where its public keys are.
    pub jwks: Jwks,
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Jwks {
    /// A file, read again when it changes.
    File(PathBuf),
    /// An https address (http only on loopback), fetched without following redirects.
    Url(String),
}

/// What the claims of user tokens are called.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Claims {
    /// The firm's id.
    pub firm: String,
    /// The user's id.
    pub user: String,
    /// The user's name, for lists.
    pub name: String,
    /// The user's permissions: an array of strings.
    pub permissions: String,
}

impl Default for Claims {
    fn default() -> Self {
        Self { firm: "firm_id".into(), user: "sub".into(), name: "name".into(), permissions: "permissions".into() }
    }
}

/// The two permissions that manage keys (K15).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ManagePermissions {
    /// Lists keys and reads the log.
    pub view: String,
    /// Creates and revokes.
    pub edit: String,
}

impl Default for ManagePermissions {
    fn default() -> Self {
        Self { view: "View firm settings".into(), edit: "Edit firm settings".into() }
    }
}

/// The ops listener.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ops {
    /// Where Prometheus and orchestrators connect; always clear text, so keep it inside. Needs a restart.
    pub listen: Listen,
}

impl Default for Ops {
    fn default() -> Self {
        Self { listen: Listen::One(SocketAddr::from(([127, 0, 0, 1], 9090))) }
    }
}

/// Form and number of keys.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// What stands before the underscore: lower-case letters and digits, at most 16. Needs a restart.
    pub prefix: String,
    /// Most live keys of one firm (K12).
    pub per_firm_max: u32,
    /// Most live keys of one creator (K12).
    pub per_creator_max: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { prefix: "assure".into(), per_firm_max: 10, per_creator_max: 5 }
    }
}

/// What one key may send.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most accepted requests in any 60 seconds (K13).
    pub requests_per_minute: u32,
    /// Largest request body (K14).
    pub request_body_max: ByteCount,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_per_minute: 1000, request_body_max: ByteCount(10 * 1024 * 1024) }
    }
}

/// The signed header that tells an upstream who is asking.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Assertion {
    /// Name of the header; must begin with `X-Assure-`, so that clients cannot send it.
    pub header: String,
    /// The `iss` claim.
    pub issuer: String,
    /// From `iat` to `exp`; 2 s to 60 s.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub lifetime: Duration,
    /// One signature per request, with `jti` = request id, `htm` and `htu`.
    pub per_request: bool,
    /// The first signs, all are published; absent: one is made and kept beside the store.
    pub signing_keys: Vec<SigningKey>,
}

impl Default for Assertion {
    fn default() -> Self {
        Self {
            header: "X-Assure-Jwt-Assertion".into(),
            issuer: "https://gateway.assureone.ai".into(),
            lifetime: Duration::from_secs(30),
            per_request: false,
            signing_keys: Vec::new(),
        }
    }
}

/// A private key for assertions.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningKey {
    /// PEM with a PKCS#8 private key, Ed25519 or P-256.
    pub file: PathBuf,
}

/// The activity log and its spool.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// Name of the Redis stream; the embedded store keeps a table instead.
    pub stream: String,
    /// Records older than this are trimmed; null keeps all. Needs a restart.
    #[serde(with = "units::optional_span")]
    #[schemars(with = "Option<units::Span>")]
    pub stream_max_age: Option<Duration>,
    /// Where uses are written down before they are forwarded.
    pub spool: Spool,
}

impl Default for Audit {
    fn default() -> Self {
        Self { stream: "assure:audit".into(), stream_max_age: Some(Duration::from_secs(400 * 86_400)), spool: Spool::default() }
    }
}

/// The write-ahead spool.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// The folder that holds its segments; made with mode 0700 if it is missing. Needs a restart.
    pub path: PathBuf,
    /// Most bytes on disk; when they are used up, uses are refused with 503. Needs a restart.
    pub size_max: ByteCount,
    /// How often it is forced to disk, or `always`: before each request is forwarded. Needs a restart.
    pub sync: units::Sync,
}

impl Default for Spool {
    fn default() -> Self {
        Self { path: "data/spool".into(), size_max: ByteCount(1024 * 1024 * 1024), sync: units::Sync::Every(Duration::from_secs(1)) }
    }
}

pub use units::Sync as SpoolSync;

/// A service behind the gateway.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// `http://`, `https://` or `h2c://` addresses without a path; several are balanced.
    pub endpoints: Vec<String>,
    /// How long to wait.
    #[serde(default)]
    pub timeout: UpstreamTimeout,
    /// How to find out whether an endpoint works; absent: by its answers alone.
    #[serde(default)]
    pub health: Option<Health>,
    /// Most connections to one endpoint.
    #[serde(default = "Upstream::default_connections_max")]
    pub connections_max: usize,
    /// PEM file of the certificate authorities that may vouch for https endpoints; absent: the machine's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

impl Upstream {
    fn default_connections_max() -> usize {
        256
    }
}

/// How long to wait for an upstream.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTimeout {
    /// For a connection, TLS included.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub connect: Duration,
    /// From the end of the request to the head of the answer.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub response_header: Duration,
    /// Between two pieces of a body, and of an unused connection.
    #[serde(with = "units::span")]
    #[schemars(with = "units::Span")]
    pub idle: Duration,
}

impl Default for UpstreamTimeout {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), response_header: Duration::from_secs(30), idle: Duration::from_secs(60) }
    }
}

/// A health check.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked for; any 2xx is healthy.
    pub path: String,
    /// How often.
    #[serde(with = "units::span", default = "Health::default_interval")]
    #[schemars(with = "units::Span")]
    pub interval: Duration,
}

impl Health {
    fn default_interval() -> Duration {
        Duration::from_secs(5)
    }
}

/// A rule: what is asked for, and what becomes of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// How metrics and records name the route; the path by default.
    pub name: Option<String>,
    /// Only requests for this host (without port; case does not matter).
    pub host: Option<String>,
    /// Segments: literal, `*` for one, `{firm}` for one that must be the key's firm, `**` at the end for any number.
    pub path: String,
    /// Only these methods.
    pub methods: Option<Vec<String>>,
    /// Refuse with 403 and this sentence. Also covers the path with a trailing slash, `;parameters` or an extension.
    pub deny: Option<String>,
    /// The permission that the key must hold.
    pub require: Option<String>,
    /// Name of a query parameter that, when present, must be the key's firm.
    pub firm_query: Option<String>,
    /// Where matching requests go.
    pub upstream: Option<String>,
    /// Removed from the front of the path before it is forwarded.
    pub strip_prefix: Option<String>,
    /// Whether WebSocket upgrades are passed on.
    pub websocket: bool,
    /// Overrides `assertion.per_request`.
    pub per_request: Option<bool>,
}

/// What the process writes to standard error. Needs a restart.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// For people or for programs.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter like `info,assure_gateway::gateway=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// Form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

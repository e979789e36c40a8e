//! Opens connections as `store.redis` says: to one Redis, to the master that the sentinels name, or to a Cluster.
//!
//! Passwords and certificates are read at each connect, so they may change under a running gateway. A connection under
//! Sentinel is good only while a majority names its server. Where a Cluster moved a slot to is the library's business.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError, RedisFuture,
    RedisResult, TlsCertificates, Value,
};

use super::outage::explained;
use super::sentinels::Sentinels;
use crate::config::{Redis, RedisUrl, ServerAddress};
use crate::store::StoreError;
use crate::tasks;

/// Calls under way on one connection; more wait outside, so that a stalled Redis does not queue without bound.
const CALLS_MAX: usize = 512;
/// How long connecting to a server may take, TLS and sign-in included.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long connecting to a Cluster may take: its nodes are reached at once, then those that they tell of.
const CLUSTER_CONNECT_MAX: Duration = Duration::from_secs(4);
/// Attempts of the library at one call in a Cluster that is changing; the call's own deadline ends them sooner.
const CLUSTER_RETRIES: u32 = 16;
/// Shortest and longest pause between them, in milliseconds.
const CLUSTER_RETRY_PAUSE_MS: (u64, u64) = (10, 200);
/// When a connection on which nothing comes is probed, and how often.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// How long sent bytes may stay unconfirmed before the connection is given up as half open.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(3);

/// What opens connections.
pub(super) struct Connector {
    config: Redis,
    sentinels: Option<Sentinels>,
}

/// An open connection.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// The server that the sentinels named.
    master: Option<ServerAddress>,
}

/// A connection to one server, or to all masters of a Cluster.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connector {
    /// Reads what the configuration names; connects only when asked to.
    pub(super) fn new(config: &Redis) -> Result<Arc<Self>, StoreError> {
        let access = Access::read(config)?;
        access.server(&any_address()).map_err(|error| StoreError::Unsafe(format!("store.redis: {}", explained(&error))))?;
        let sentinels = config.sentinel.as_ref().map(Sentinels::new);
        Ok(Arc::new(Self { config: config.clone(), sentinels }))
    }

    /// Whether nodes come and go under a connection, which lasts.
    pub(super) fn is_cluster(&self) -> bool {
        self.config.cluster.is_some()
    }

    /// Whether a master must be asked for again and again.
    pub(super) fn has_sentinels(&self) -> bool {
        self.sentinels.is_some()
    }

    /// Whether a connection leads to where it should, as far as is known.
    pub(super) fn is_current(&self, opened: &Opened) -> bool {
        match (&self.sentinels, &opened.master) {
            (Some(sentinels), Some(master)) => sentinels.name(master),
            _ => true,
        }
    }

    /// Asks where connections should lead, and says whether this one does.
    pub(super) async fn confirm(&self, opened: &Opened) -> Result<bool, StoreError> {
        Ok(self.master(&self.access().await?).await? == opened.master)
    }

    /// Asks the sentinels for the master.
    pub(super) async fn ask(&self) -> Result<(), StoreError> {
        self.master(&self.access().await?).await.map(drop)
    }

    async fn access(&self) -> Result<Access, StoreError> {
        let config = self.config.clone();
        tasks::blocking(move || Access::read(&config)).await.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    async fn master(&self, access: &Access) -> Result<Option<ServerAddress>, StoreError> {
        match &self.sentinels {
            Some(sentinels) => sentinels.ask(access).await.map(Some),
            None => Ok(None),
        }
    }

    /// Opens another connection, whose calls may take so long.
    pub(super) async fn open(&self, answer_max: Duration) -> Result<Opened, StoreError> {
        let access = self.access().await?;
        if self.is_cluster() {
            let opening = in_time(CLUSTER_CONNECT_MAX, self.open_cluster(&access, answer_max));
            return Ok(Opened { connection: Connection::Cluster(opening.await?), master: None });
        }
        let master = self.master(&access).await?;
        let client = self.client(&access, master.as_ref()).map_err(told)?;
        let mut connection = in_time(CONNECT_MAX, open_one(&client, answer_max)).await?;
        if master.is_some() {
            check_role(&mut connection).await?;
        }
        Ok(Opened { connection: Connection::One(connection), master })
    }

    /// A way to one server, for a subscription, which needs a connection to itself; in a Cluster to any node that answers.
    pub(super) async fn subscribable(&self) -> Result<Client, StoreError> {
        let access = self.access().await?;
        let Some(cluster) = &self.config.cluster else {
            let master = self.master(&access).await?;
            return self.client(&access, master.as_ref()).map_err(told);
        };
        let mut last = StoreError::Unavailable("no node of the Cluster is named".to_owned());
        for node in &cluster.nodes {
            let client = access.server(node).map_err(told)?;
            match in_time(CONNECT_MAX, open_one(&client, CONNECT_MAX)).await {
                Ok(_) => return Ok(client),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn client(&self, access: &Access, master: Option<&ServerAddress>) -> RedisResult<Client> {
        match (master, &self.config.url) {
            (Some(master), _) => access.server(master),
            (None, url) => access.client(access.signed_in(url.clone().unwrap_or_else(plain))?),
        }
    }

    async fn open_cluster(&self, access: &Access, answer_max: Duration) -> RedisResult<ClusterConnection> {
        let nodes = self.config.cluster.iter().flat_map(|cluster| &cluster.nodes);
        let nodes = nodes.map(|node| access.signed_in(access.url.at(node))).collect::<RedisResult<Vec<_>>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .connection_timeout(CONNECT_MAX / 2)
            .response_timeout(answer_max)
            .overall_response_timeout(Some(answer_max))
            .connection_concurrency_limit(CALLS_MAX)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(CLUSTER_RETRY_PAUSE_MS.0)
            .max_retry_wait(CLUSTER_RETRY_PAUSE_MS.1)
            .tcp_settings(tcp());
        if let Some(certificates) = &access.certificates {
            builder = builder.certs(certificates.clone());
        }
        builder.build()?.get_async_connection().await
    }

    /// The configuration of each server that holds data, as one Redis of its own; for looking at their settings.
    pub(super) async fn servers(&self) -> Result<Vec<Redis>, StoreError> {
        let url = self.config.url.clone().unwrap_or_else(plain);
        let alone = |server: &ServerAddress| Redis { url: Some(url.at(server)), sentinel: None, cluster: None, ..self.config.clone() };
        if self.is_cluster() {
            let mut connection = self.open(CONNECT_MAX).await?.connection;
            let nodes: String = redis::cmd("CLUSTER").arg("NODES").query_async(&mut connection).await.map_err(told)?;
            let found: Vec<Redis> = nodes.lines().filter_map(node_of).map(|node| alone(&node)).collect();
            return if found.is_empty() { Err(StoreError::Unavailable("the Cluster has no nodes".to_owned())) } else { Ok(found) };
        }
        match self.master(&self.access().await?).await? {
            Some(master) => Ok(vec![alone(&master)]),
            None => Ok(vec![self.config.clone()]),
        }
    }
}

/// A line of `CLUSTER NODES`, `id host:port@bus[,name] flags ...`, of a node that is there.
fn node_of(line: &str) -> Option<ServerAddress> {
    let mut fields = line.split(' ').skip(1);
    let (address, flags) = (fields.next()?, fields.next()?);
    if ["fail", "noaddr", "handshake"].iter().any(|flag| flags.split(',').any(|found| found.trim_end_matches('?') == *flag)) {
        return None;
    }
    let (host, port) = address.split('@').next()?.rsplit_once(':')?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    ServerAddress::parse(&format!("{host}:{port}"))
}

/// With what servers are spoken to, as it stands in the files now.
pub(super) struct Access {
    url: RedisUrl,
    password: Option<String>,
    certificates: Option<TlsCertificates>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
}

impl Access {
    fn read(config: &Redis) -> Result<Self, StoreError> {
        let unusable = |what: String| StoreError::Unsafe(format!("store.redis.{what}"));
        let bytes = |field: &str, path: &Path| {
            std::fs::read(path).map_err(|error| unusable(format!("{field}: {} cannot be read: {error}", path.display())))
        };
        let password = |field: &str, path: &Path| {
            let text = String::from_utf8(bytes(field, path)?).map_err(|_| unusable(format!("{field} is not text")))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        let root_cert = config.ca.as_deref().map(|path| bytes("ca", path)).transpose()?;
        let client_tls = config.client_certificate.as_ref().map(|files| {
            let client_cert = bytes("client_certificate.certificate", &files.certificate)?;
            Ok::<_, StoreError>(ClientTlsConfig { client_cert, client_key: bytes("client_certificate.private_key", &files.private_key)? })
        });
        let client_tls = client_tls.transpose()?;
        let has_certificates = config.is_tls() && (root_cert.is_some() || client_tls.is_some());
        let sentinel = config.sentinel.as_ref();
        Ok(Self {
            url: config.url.clone().unwrap_or_else(plain),
            password: config.password_file.as_deref().map(|path| password("password_file", path)).transpose()?,
            certificates: has_certificates.then_some(TlsCertificates { client_tls, root_cert }),
            sentinel_user: sentinel.and_then(|sentinel| sentinel.user.clone()),
            sentinel_password: sentinel
                .and_then(|sentinel| sentinel.password_file.as_deref())
                .map(|path| password("sentinel.password_file", path))
                .transpose()?,
        })
    }

    /// A way to a sentinel.
    pub(super) fn sentinel(&self, node: &ServerAddress) -> RedisResult<Client> {
        let info = self.url.at(node).reveal().into_connection_info()?;
        let mut settings = redis::RedisConnectionInfo::default();
        if let Some(user) = &self.sentinel_user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            settings = settings.set_password(password);
        }
        self.client(info.set_redis_settings(settings).set_tcp_settings(tcp()))
    }

    fn server(&self, node: &ServerAddress) -> RedisResult<Client> {
        self.client(self.signed_in(self.url.at(node))?)
    }

    fn signed_in(&self, url: RedisUrl) -> RedisResult<ConnectionInfo> {
        let info = url.reveal().into_connection_info()?;
        let mut settings = info.redis_settings().clone();
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        Ok(info.set_redis_settings(settings).set_tcp_settings(tcp()))
    }

    fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        }
    }
}

/// The library's default leaves Nagle's algorithm on, which delays small calls behind others.
fn tcp() -> TcpSettings {
    let probes = socket2::TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1);
    TcpSettings::default().set_nodelay(true).set_keepalive(probes).set_user_timeout(UNCONFIRMED_MAX)
}

fn plain() -> RedisUrl {
    RedisUrl::from("redis://")
}

fn any_address() -> ServerAddress {
    ServerAddress::parse("localhost:6379").expect("a good address")
}

async fn open_one(client: &Client, answer_max: Duration) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(answer_max))
        .set_concurrency_limit(CALLS_MAX)
        .set_pipeline_buffer_size(CALLS_MAX);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    // One that wants a password or is still loading says so here, and not in the midst of a call of many words, which
    // it would break off without a reason. A user who may not say PING may still do all that is needed.
    match redis::cmd("PING").query_async::<String>(&mut connection).await {
        Err(error) if error.code() != Some("NOPERM") => Err(error),
        _ => Ok(connection),
    }
}

/// Sentinels may name a server before it knows, or after another was told.
async fn check_role(connection: &mut MultiplexedConnection) -> Result<(), StoreError> {
    let role: Vec<Value> = in_time(CONNECT_MAX, redis::cmd("ROLE").query_async(connection)).await?;
    match role.into_iter().next().map(redis::from_redis_value::<String>) {
        Some(Ok(role)) if role == "master" => Ok(()),
        _ => Err(StoreError::Unavailable("the server that the sentinels name does not call itself a master".to_owned())),
    }
}

async fn in_time<T>(limit: Duration, opening: impl Future<Output = RedisResult<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, opening).await {
        Ok(opened) => opened.map_err(told),
        Err(_) => Err(StoreError::Unavailable("no connection in time".to_owned())),
    }
}

fn told(error: RedisError) -> StoreError {
    StoreError::Unavailable(explained(&error))
}

impl Connection {
    /// Sends commands one after the other to the server that holds `key`, with nothing of anybody else between them.
    pub(super) async fn send_together(&mut self, pipeline: &Pipeline, key: &str) -> RedisResult<Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, 0, pipeline.len()).await,
            Self::Cluster(connection) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                connection.route_pipeline(pipeline.clone(), 0, pipeline.len(), route).await
            }
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_are_there_are_told_from_those_that_are_not() {
        let node = |line: &str| node_of(line).map(|node| node.as_str().to_owned());
        assert_eq!(node("07c3 127.0.0.1:30004@31004 slave e7d1 0 1426238317239 4 connected").as_deref(), Some("127.0.0.1:30004"));
        assert_eq!(node("67ed ::1:30002@31002,name myself,master - 0 0 2 connected 5461-10922").as_deref(), Some("[::1]:30002"));
        assert_eq!(node("67ed 127.0.0.1:30002@31002 master,fail - 0 0 2 disconnected"), None);
        assert_eq!(node("67ed :0@0 slave,noaddr - 0 0 2 disconnected"), None);
        assert_eq!(node(""), None);
    }
}

//! The store that many gateways share: one Redis, the four protocols as scripts.
//!
//! Each change is one script, so it happens wholly or not at all, and is answered when Redis has acknowledged it; with
//! `appendfsync always` that means on disk, with `replicas_ack_min` also on so many Redis replicas. Whatever casts doubt
//! on an answer is `Unavailable`: the change may or may not have been made, and saying it again is safe.
//!
//! `schema` is all that Redis holds: every name and every script. `connection` keeps the connections, `settings` refuses
//! a Redis that may forget, `keys`, `coherence`, `window` and `audit` are the protocols, `hints` hears of changes early.

mod audit;
mod coherence;
mod connection;
mod hints;
mod keys;
mod schema;
mod settings;
#[cfg(test)]
pub(super) mod testing;
mod window;

use std::sync::Arc;
use std::time::Duration;

use ::redis::Script;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::connection::Connections;
use super::{
    ActivityPage, ActivityQuery, AuditBatch, Creation, Found, KeyView, NewKey, Partition, PermitRequest, Permits, Renewal, RenewalRequest,
    Revocation, RevokeRequest, SessionState, Store, StoreError,
};
use crate::config::Redis;
use crate::domain::{FirmId, FirmTag, KeyDigest, KeyId, Sequence};
use crate::tasks::Tasks;

/// How long a change may take to reach the Redis replicas that it must reach.
const REPLICAS_WAIT: Duration = Duration::from_secs(2);

/// A Redis that this and other gateways share.
pub struct RedisStore {
    connections: Connections,
    stream: String,
    lease: Duration,
    replicas_ack_min: u32,
    hints: watch::Receiver<u64>,
    _until_dropped: DropGuard,
}

impl RedisStore {
    /// Connects, looks whether this Redis keeps what it acknowledges, and begins to listen for changes.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer, which waiting may mend; `Unsafe` when a setting, a version or a file stands
    /// in the way, which it may not; `Corrupt` when it holds another layout.
    pub async fn open(config: &Redis, stream: &str, tasks: &Tasks) -> Result<Arc<Self>, StoreError> {
        let connections = Connections::new(config)?;
        settings::check(&connections, config).await?;
        let ended = CancellationToken::new();
        let hints = hints::listen(&connections, tasks, ended.clone());
        Ok(Arc::new(Self {
            connections,
            stream: stream.to_owned(),
            lease: config.coherence_lease,
            replicas_ack_min: config.replicas_ack_min,
            hints,
            _until_dropped: ended.drop_guard(),
        }))
    }

    /// A script that creates or revokes; answers when as many Redis replicas as configured have it too.
    async fn change(&self, script: &Script, keys: &[String], arguments: &[String]) -> Result<Vec<String>, StoreError> {
        let line = self.connections.bulk();
        let answer = line.call(script, keys, arguments).await?;
        if self.replicas_ack_min > 0 {
            let wait =
                ::redis::cmd("WAIT").arg(self.replicas_ack_min).arg(u64::try_from(REPLICAS_WAIT.as_millis()).unwrap_or(0)).to_owned();
            let reached: u32 = line.send(&wait).await?;
            if reached < self.replicas_ack_min {
                let wanted = self.replicas_ack_min;
                return Err(StoreError::Unavailable(format!(
                    "the change reached {reached} Redis replicas; replicas_ack_min wants {wanted}"
                )));
            }
        }
        Ok(answer)
    }
}

/// A sentence about something that cannot be read.
fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

impl Store for RedisStore {
    fn partitions(&self) -> u16 {
        1
    }

    fn find(&self, _tag: FirmTag, digest: KeyDigest) -> BoxFuture<'_, Result<Found, StoreError>> {
        keys::find(self, digest).boxed()
    }

    fn renew(&self, request: RenewalRequest) -> BoxFuture<'_, Result<Renewal, StoreError>> {
        coherence::renew(self, request).boxed()
    }

    fn sessions(&self, _partition: Partition) -> BoxFuture<'_, Result<Vec<SessionState>, StoreError>> {
        coherence::sessions(self).boxed()
    }

    fn forget(&self, _partition: Partition, sessions: Vec<SessionState>) -> BoxFuture<'_, Result<(), StoreError>> {
        coherence::forget(self, sessions).boxed()
    }

    fn reassert(&self, _partition: Partition, revoked: Vec<KeyDigest>) -> BoxFuture<'_, Result<(), StoreError>> {
        coherence::reassert(self, revoked).boxed()
    }

    fn hints(&self) -> watch::Receiver<u64> {
        self.hints.clone()
    }

    fn permits(&self, request: PermitRequest) -> BoxFuture<'_, Result<Permits, StoreError>> {
        window::permits(self, request).boxed()
    }

    fn create(&self, key: NewKey) -> BoxFuture<'_, Result<Creation, StoreError>> {
        keys::create(self, key).boxed()
    }

    fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revocation, StoreError>> {
        keys::revoke(self, request).boxed()
    }

    fn key(&self, firm: FirmId, key: KeyId) -> BoxFuture<'_, Result<Option<KeyView>, StoreError>> {
        async move { keys::view(self, &firm, key).await }.boxed()
    }

    fn keys(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KeyView>, StoreError>> {
        async move { keys::views(self, &firm).await }.boxed()
    }

    fn ship(&self, batch: AuditBatch) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        audit::ship(self, batch).boxed()
    }

    fn shipped(&self, spool: Uuid) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        audit::shipped(self, spool).boxed()
    }

    fn activity(&self, query: ActivityQuery) -> BoxFuture<'_, Result<ActivityPage, StoreError>> {
        audit::activity(self, query).boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { self.connections.hot().send::<String>(&::redis::cmd("PING")).await.map(drop) }.boxed()
    }
}

//! The store that many gateways share: one Redis, the four protocols as scripts.
//!
//! Each change is one script, so it happens wholly or not at all, and is answered when Redis has acknowledged it; with
//! `appendfsync always` that means on disk, with `replicas_ack_min` also on so many Redis replicas. Whatever casts doubt
//! on an answer is `Unavailable`: the change may or may not have been made, and saying it again is safe.
//!
//! `schema` is all that Redis holds: every name and every script. `connector` opens connections to one Redis, to the
//! master that `sentinels` name, or to a Cluster; `connection` keeps them. `settings` refuses a Redis that may forget,
//! `layout` one that was begun otherwise, `identity` one that is not the one that is known. `outage` says what errors
//! mean. `keys`, `coherence`, `window` and `audit` are the protocols; `audit` spells a `shipment`, keeps firms' logs in
//! `blocks` and what was told of keys in `uses`. `log_scripts` and `window_scripts` are those that `schema` has no room for.
//! `look_ups` gathers those of a flood. `hints` hears of changes early.

mod audit;
mod blocks;
mod coherence;
mod connection;
mod connector;
mod hints;
mod identity;
mod keys;
mod layout;
mod log_scripts;
mod look_ups;
pub(in crate::store) mod moving;
mod outage;
mod schema;
mod script;
mod sentinels;
mod settings;
mod shipment;
#[cfg(test)]
pub(super) mod testing;
mod users;
mod uses;
mod window;
mod window_scripts;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::ToRedisArgs;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::connection::Connections;
use self::look_ups::LookUps;
use self::schema::Names;
use self::script::Script;
use self::settings::Tolerance;
use super::{
    ActivityPage, ActivityQuery, AuditBatch, Creation, Epoch, Found, KeyView, KnownUser, NewKey, Partition, PermitRequest, Permits,
    RecalledKey, Renewal, RenewalRequest, Revocation, RevokeRequest, Safeguard, SessionState, Sessions, Store, StoreError,
    StoreIncarnation,
};
use crate::config::{Redis, Revocations};
use crate::domain::{FirmId, FirmTag, KeyDigest, KeyId, Sequence};
use crate::tasks::Tasks;

/// A Redis that this and other gateways share.
pub struct RedisStore {
    connections: Connections,
    partitions: Box<[Names]>,
    look_ups: Box<[LookUps<Found>]>,
    lease: Duration,
    revocations: Revocations,
    replicas_ack_min: u32,
    tolerance: Tolerance,
    hints: watch::Receiver<u64>,
    /// Whether the log was told of a session that cannot be read.
    has_said_unreadable: AtomicBool,
    _until_dropped: DropGuard,
}

impl RedisStore {
    /// Connects, looks whether this Redis keeps what it acknowledges, and begins to listen for changes.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer, which waiting may mend; `Unsafe` when a setting, a version, a file or the
    /// number of partitions stands in the way, which it may not; `Corrupt` when it holds what cannot be read.
    pub async fn open(config: &Redis, stream: &str, tasks: &Tasks) -> Result<Arc<Self>, StoreError> {
        let store = Self::open_to_import(config, stream, tasks).await?;
        moving::refuse_unfinished(&store).await?;
        Ok(store)
    }

    /// The same for whoever may complete an import.
    ///
    /// # Errors
    /// As above.
    pub(in crate::store) async fn open_to_import(config: &Redis, stream: &str, tasks: &Tasks) -> Result<Arc<Self>, StoreError> {
        let connections = Connections::new(config, tasks)?;
        let tolerance = Tolerance::of(config);
        settings::check(&connections, tolerance).await?;
        layout::check(&connections, stream, config.partitions).await?;
        let partitions = Names::of_all(stream, config.partitions);
        let ended = CancellationToken::new();
        connections.follow_master(tasks, ended.clone());
        let news = partitions.first().map_or_else(String::new, |names| names.news.clone());
        hints::try_publishing(connections.bulk(), &news).await;
        let hints = hints::listen(connections.connector(), news, tasks, ended.clone());
        Ok(Arc::new(Self {
            connections,
            look_ups: partitions.iter().map(|_| LookUps::default()).collect(),
            partitions,
            lease: config.coherence_lease,
            revocations: config.revocation,
            replicas_ack_min: config.replicas_ack_min,
            tolerance,
            hints,
            has_said_unreadable: AtomicBool::new(false),
            _until_dropped: ended.drop_guard(),
        }))
    }

    fn names(&self, partition: Partition) -> &Names {
        self.partitions.get(usize::from(partition.0)).expect("partitions are named by the store itself")
    }

    /// Where the firms of a tag live.
    fn names_of(&self, tag: FirmTag) -> &Names {
        let number = partition_of(tag, self.partitions.len());
        self.partitions.get(number).expect("a remainder of the number of partitions is a partition")
    }

    /// A script that creates or revokes; answers when as many Redis replicas as configured have it too.
    async fn change(
        &self,
        names: &Names,
        script: &Script,
        keys: &[String],
        arguments: &[impl ToRedisArgs],
    ) -> Result<Vec<String>, StoreError> {
        self.connections.change(script, keys, arguments, self.replicas_ack_min, &names.named("barrier")).await
    }
}

/// In which of so many partitions the firms of a tag live. Part of the layout: it never changes.
fn partition_of(tag: FirmTag, partitions: usize) -> usize {
    usize::try_from(crc32fast::hash(tag.as_str().as_bytes())).unwrap_or(0) % partitions.max(1)
}

/// A sentence about something that cannot be read.
fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

impl Store for RedisStore {
    fn partitions(&self) -> u16 {
        u16::try_from(self.partitions.len()).expect("as many as a u16 said")
    }

    fn find(&self, tag: FirmTag, digest: KeyDigest) -> BoxFuture<'_, Result<Found, StoreError>> {
        keys::find(self, tag, digest).boxed()
    }

    fn renew(&self, request: RenewalRequest) -> BoxFuture<'_, Result<Renewal, StoreError>> {
        coherence::renew(self, request).boxed()
    }

    fn epoch(&self, partition: Partition) -> BoxFuture<'_, Result<(Epoch, StoreIncarnation), StoreError>> {
        coherence::epoch(self, partition).boxed()
    }

    fn recall(&self, partition: Partition, keys: Vec<RecalledKey>) -> BoxFuture<'_, Result<(), StoreError>> {
        window::recall(self, partition, keys).boxed()
    }

    fn sessions(&self, partition: Partition) -> BoxFuture<'_, Result<Sessions, StoreError>> {
        coherence::sessions(self, partition).boxed()
    }

    fn forget(&self, partition: Partition, sessions: Vec<SessionState>) -> BoxFuture<'_, Result<(), StoreError>> {
        coherence::forget(self, partition, sessions).boxed()
    }

    fn reassert(&self, partition: Partition, revoked: Vec<KeyDigest>) -> BoxFuture<'_, Result<(), StoreError>> {
        coherence::reassert(self, partition, revoked).boxed()
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

    fn note_user(&self, firm: FirmId, user: KnownUser) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { users::note(self, &firm, &user).await }.boxed()
    }

    fn users(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KnownUser>, StoreError>> {
        async move { users::all(self, &firm).await }.boxed()
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

    fn safeguards(&self) -> BoxFuture<'_, Result<Vec<Safeguard>, StoreError>> {
        settings::safeguards(&self.connections, self.tolerance).boxed()
    }
}

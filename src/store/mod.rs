//! Shared state behind one trait: keys, epochs, windows, activity.
//!
//! The contract, in words; `conformance.rs` holds every store to it:
//!
//! - What was answered is kept: `create` and `revoke` answer after the change is durable.
//! - Each call is atomic. A change to a key, its place in the firm's and the creator's sets, its audit record, the
//!   epoch and the invalidation happen together or not at all.
//! - Records are never deleted and key ids never reused; a revoked key stays revoked.
//! - `create` and `revoke` raise the partition's epoch by one; a revocation also leaves the key's digest for `renew`.
//! - `ship` takes each sequence of a spool exactly once, in order, however often it is sent; it leaves none out unless it
//!   is told that the spool has lost it.
//! - The store's own clock (`TIME` in Redis, this machine's in the embedded store) stamps what it records.
//!
//! A firm lives wholly in one partition, chosen by its tag; the embedded store has one.

pub mod embedded;
mod health;
mod known_users;
mod metered;
pub mod moving;
mod redis;
mod uses;
mod written;

#[cfg(test)]
pub(crate) mod conformance;

pub use health::Health;
pub use known_users::{KnownUser, Standing};
pub use metered::MeteredStore;
pub use redis::RedisStore;
use redis::moving as redis_moving;
pub use uses::HourOfUse;
pub(crate) use uses::{HOURS_KEPT, hour_of};

pub use crate::domain::window::Permits;

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::window::{GrantReport, RecalledUse, Wanted};
use crate::domain::{
    Action, AuditRecord, FirmId, FirmTag, KeyDigest, KeyId, KeyRecord, ReplicaId, Sequence, Timestamp, UserId, WrittenRecord,
};

/// Counts the changes of a partition. A cache that has applied epoch E knows of every change up to E.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// One part of the store that changes atomically: a Redis hash tag, or the whole embedded store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Partition(pub u16);

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer, or not in time; the change may or may not have been made.
    #[error("the store did not answer: {0}")]
    Unavailable(String),
    /// The store holds something that this version cannot read.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
    /// The store is set up so that a promise could be broken, or not as this version needs it; waiting mends nothing.
    #[error("the store cannot be used as it is set up: {0}")]
    Unsafe(String),
    /// Another data set answers than the one that is known: the store was emptied, or is another one.
    #[error("{0}")]
    Foreign(String),
}

/// What a look-up found, and the epoch it was true at.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record, revoked ones included; `None` if no such key was ever created.
    pub record: Option<KeyRecord>,
    /// Where it was looked for.
    pub partition: Partition,
    /// The partition's epoch, read together with the record or before it: nothing up to it is missing from the record.
    pub epoch: Epoch,
}

/// A replica's report to a partition: "I live, and have applied everything up to `applied`".
#[derive(Clone, Debug)]
pub struct RenewalRequest {
    /// Who reports.
    pub replica: ReplicaId,
    /// This start of it; a restarted replica is another session.
    pub incarnation: Uuid,
    /// Which partition it reports to.
    pub partition: Partition,
    /// What it has applied, not merely received.
    pub applied: Epoch,
    /// The data set that must answer; `None` takes any, before one is known.
    pub data_set: Option<String>,
    /// The incarnation that this replica trusts, a term after it told it all that it remembers.
    pub settled: Option<StoreIncarnation>,
}

/// The partition's answer.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// The current epoch.
    pub epoch: Epoch,
    /// What changed since `applied`.
    pub news: Invalidations,
    /// How long the answer may be trusted.
    pub trust: Trust,
    /// Which life of the store answered.
    pub store: StoreIncarnation,
    /// Whether a replica has settled in that incarnation: all that lived then have told it what they remember.
    pub is_settled: bool,
    /// What the store's own clock says, where it is not this machine's.
    pub time: Option<Timestamp>,
}

/// One life of the store. Another one may have forgotten what this one acknowledged: sessions, revocations, grants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreIncarnation {
    /// What it holds: made once, and kept as long as its keys are.
    pub data_set: String,
    /// This start of the server that holds it, and the history that it continues: another one after a restart, a failover,
    /// or a return to what another server had.
    pub run: String,
}

/// What changed between an applied epoch and the current one.
#[derive(Clone, Debug)]
pub enum Invalidations {
    /// The digests of the keys that were revoked. A creation only raises the epoch, because a key that is unknown
    /// here is remembered as unknown only together with the epoch it was looked up at.
    Revoked(Vec<KeyDigest>),
    /// Too much, or unknown: forget the whole cache.
    Flush,
}

/// How long a replica may believe that its cache is current.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Until told otherwise: the store is in this process and tells before it answers.
    UntilTold,
    /// For this long, counted from the moment before the renewal was sent.
    Lease(Duration),
    /// Only by whoever asks again for each request; renewals are due as if this were a lease.
    Asking(Duration),
}

impl Trust {
    /// How long without a renewal is too long; nothing where none is needed.
    pub fn span(self) -> Option<Duration> {
        match self {
            Self::UntilTold => None,
            Self::Lease(span) | Self::Asking(span) => Some(span),
        }
    }
}

/// The sessions of a partition, and who says so.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    /// Another incarnation than the one that was asked before may have forgotten some.
    pub store: StoreIncarnation,
    /// Every session.
    pub all: Vec<SessionState>,
}

/// A replica that a revocation must wait for.
#[derive(Clone, Debug)]
pub struct SessionState {
    /// Which replica.
    pub replica: ReplicaId,
    /// Which start of it.
    pub incarnation: Uuid,
    /// What it has applied.
    pub applied: Epoch,
    /// How often it has renewed: while this stands still, the replica is silent.
    pub renewals: u64,
    /// How long one of its renewals lets it trust its cache, at most; zero if it asks for each request.
    pub lease: Duration,
}

/// Asks for permits of a key's window (protocol 2).
#[derive(Clone, Debug)]
pub struct PermitRequest {
    /// Where the key's firm lives.
    pub tag: FirmTag,
    /// Whose window.
    pub key: KeyId,
    /// Permits in any 60 seconds.
    pub limit: u32,
    /// How many the replica can use.
    pub want: Wanted,
    /// Grants that are over, with the times at which their permits were used.
    pub reports: Vec<GrantReport>,
    /// The incarnation that is trusted: another one may have forgotten grants, and is not asked.
    pub store: StoreIncarnation,
}

/// What a replica remembers of a key's uses, for a store that may have forgotten them.
#[derive(Clone, Debug)]
pub struct RecalledKey {
    /// Whose window.
    pub key: KeyId,
    /// Its uses by this replica within the last window and a grant's life.
    pub uses: Vec<RecalledUse>,
}

/// A key to be created, complete but for the time, which is the store's.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The record; its `created_at` is replaced by the store's time.
    pub record: KeyRecord,
    /// Most live keys of the firm.
    pub firm_max: u32,
    /// Most live keys of the creator.
    pub creator_max: u32,
    /// The caller's Idempotency-Key, scoped to firm and creator, kept for 24 hours.
    pub idempotency_key: Option<String>,
    /// The record of the creation; its time is replaced by the store's.
    pub audit: AuditRecord,
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum Creation {
    /// The key exists from this epoch on.
    Created(KeyRecord, Partition, Epoch),
    /// The same call (key id or Idempotency-Key) was made before; this is what it created.
    Replayed(KeyRecord),
    /// The firm has as many live keys as it may.
    FirmFull,
    /// The creator has as many live keys as they may.
    CreatorFull,
}

/// A key to be revoked.
#[derive(Clone, Debug)]
pub struct RevokeRequest {
    /// The caller's firm; another firm's key is not found.
    pub firm: FirmId,
    /// Which key.
    pub key: KeyId,
    /// Who revokes.
    pub by: UserId,
    /// What they say; may be empty.
    pub reason: String,
    /// The record of the revocation; its time and its key fields are replaced by the store's.
    pub audit: AuditRecord,
}

/// What became of it.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one value lives for one admin call; a box would only hide the record")]
pub enum Revocation {
    /// The key is revoked: now, or (`first` false) since earlier, and then nothing changed.
    Revoked {
        /// The record as it now is.
        record: KeyRecord,
        /// Whether this call did it.
        first: bool,
        /// Where.
        partition: Partition,
        /// The epoch that every replica must have applied.
        epoch: Epoch,
    },
    /// This firm has no such key.
    NotFound,
}

/// The last use of a key, as the shipped records tell.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct LastUse {
    /// When.
    pub at: Timestamp,
    /// The tool, by its User-Agent.
    pub user_agent: Option<String>,
    /// From where.
    pub client_ip: Option<String>,
}

/// A key as lists show it.
#[derive(Clone, Debug)]
pub struct KeyView {
    /// The record.
    pub record: KeyRecord,
    /// Its last allowed use.
    pub last_use: Option<LastUse>,
    /// Distinct tools (`tool:` and a User-Agent's product name) and networks (`network:` and a prefix) seen in the last
    /// 30 days, at most 8 of each kept.
    pub seen_with: Vec<String>,
    /// How often it was used in each hour of its last day of use, oldest first; hours without uses are absent.
    pub hours: Vec<HourOfUse>,
}

/// Closed records of one spool, in sequence order without gaps.
#[derive(Clone, Debug)]
pub struct AuditBatch {
    /// Which spool; made when the spool is, and kept in it.
    pub spool: Uuid,
    /// The records; each has a `sequence`.
    pub records: Vec<WrittenRecord>,
    /// What comes up to here and is not in the log is not in the spool any more either: the log may go on behind it.
    /// Without this statement a batch that leaves a gap is refused.
    pub lost_up_to: Option<Sequence>,
    /// Records older than this are trimmed from the log; `None` keeps all.
    pub age_max: Option<Duration>,
}

/// Which part of a firm's log is asked for.
#[derive(Clone, Debug)]
pub struct ActivityQuery {
    /// Whose log.
    pub firm: FirmId,
    /// Only this key.
    pub key: Option<KeyId>,
    /// Only this action.
    pub action: Option<Action>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// At most so many; at least 1.
    pub limit: usize,
    /// Which way, and from where.
    pub order: ActivityOrder,
}

/// A place in a firm's log: records are ordered by time, then by event id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ActivityPlace {
    /// The record's time.
    pub time: Timestamp,
    /// The record's event id.
    pub event: Uuid,
}

/// The order of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActivityOrder {
    /// Newest first, going on after (that is, older than) a place.
    NewestFirst {
        /// Where the last page ended.
        after: Option<ActivityPlace>,
    },
    /// In the order in which the store took them, for whoever follows the log. A late record is not missed.
    Arrival {
        /// The last arrival seen; `None` begins at the end of the log as it is now.
        after: Option<u64>,
    },
}

/// A page of a firm's log.
#[derive(Clone, Debug)]
pub struct ActivityPage {
    /// The records in the asked order.
    pub records: Vec<AuditRecord>,
    /// Whether more follow.
    pub more: bool,
    /// For [`ActivityOrder::Arrival`]: the last arrival that was looked at.
    pub arrival: u64,
}

/// A setting of the store on which promises rest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Safeguard {
    /// Its name, as the store spells it.
    pub setting: &'static str,
    /// Its value, as a metric's label shows it: one of a few words.
    pub value: &'static str,
    /// What it may cost.
    pub risk: Risk,
}

/// What a setting may cost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Risk {
    /// Nothing.
    None,
    /// A crash of the store may lose what it acknowledged; the sentence says what, and which setting would not.
    Loss(String),
    /// A promise can be broken without any crash or by any restart; the start is refused with this sentence.
    Unsafe(String),
}

/// The state that replicas share. See the module's text for what every call promises.
pub trait Store: Send + Sync + 'static {
    /// How many partitions there are; they are numbered from 0.
    fn partitions(&self) -> u16;

    /// Looks a key up by its digest, with the epoch at which the answer is true.
    fn find(&self, tag: FirmTag, digest: KeyDigest) -> BoxFuture<'_, Result<Found, StoreError>>;

    /// Registers or renews a session and hands out what changed (protocol 1).
    fn renew(&self, request: RenewalRequest) -> BoxFuture<'_, Result<Renewal, StoreError>>;

    /// The current epoch and who says so, for a replica that asks for each request; changes nothing.
    fn epoch(&self, partition: Partition) -> BoxFuture<'_, Result<(Epoch, StoreIncarnation), StoreError>>;

    /// The sessions whose replicas may still trust a cache older than now.
    fn sessions(&self, partition: Partition) -> BoxFuture<'_, Result<Sessions, StoreError>>;

    /// Forgets sessions that have not renewed since they were in this state. The caller has watched them for long, or they
    /// are its own and it will trust nothing any more.
    fn forget(&self, partition: Partition, sessions: Vec<SessionState>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Says again that keys were revoked, to a store that may have lost it. What it does know stays as it is.
    fn reassert(&self, partition: Partition, revoked: Vec<KeyDigest>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Says again which permits were used, to a store that may have lost it. What it does know is not counted twice.
    fn recall(&self, partition: Partition, keys: Vec<RecalledKey>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Moves whenever there may be something to renew for; a hint that may be late, lost or wrong.
    fn hints(&self) -> watch::Receiver<u64>;

    /// Closes reported grants and grants permits (protocol 2).
    fn permits(&self, request: PermitRequest) -> BoxFuture<'_, Result<Permits, StoreError>>;

    /// Creates a key, or says why not (protocol 4).
    fn create(&self, key: NewKey) -> BoxFuture<'_, Result<Creation, StoreError>>;

    /// Revokes a key. Idempotent: twice frees one place and leaves one record.
    fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revocation, StoreError>>;

    /// One key of a firm.
    fn key(&self, firm: FirmId, key: KeyId) -> BoxFuture<'_, Result<Option<KeyView>, StoreError>>;

    /// All keys of a firm, revoked ones included, oldest first.
    fn keys(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KeyView>, StoreError>>;

    /// Keeps what is now known of a user. What is older than what is known already changes nothing.
    fn note_user(&self, firm: FirmId, user: KnownUser) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The users of a firm of whom something is known, in no order.
    fn users(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KnownUser>, StoreError>>;

    /// Takes a batch of a spool's records into the log; answers the last sequence it now holds (protocol 3).
    fn ship(&self, batch: AuditBatch) -> BoxFuture<'_, Result<Sequence, StoreError>>;

    /// The last sequence of a spool that the log holds.
    fn shipped(&self, spool: Uuid) -> BoxFuture<'_, Result<Sequence, StoreError>>;

    /// Reads a firm's log.
    fn activity(&self, query: ActivityQuery) -> BoxFuture<'_, Result<ActivityPage, StoreError>>;

    /// The settings on which promises rest, as they stand now; none where nobody but the gateway could change them.
    fn safeguards(&self) -> BoxFuture<'_, Result<Vec<Safeguard>, StoreError>>;
}

//! The store in one local file (redb): the founding version's, for everything on one machine.
//!
//! Reads take a snapshot and never wait. Changes go through one writer thread that commits them in groups and
//! answers when the disk has them. Windows are kept in memory and remembered from the log after a restart. The only
//! replica is this process: it applies a change before it answers it, so there are no sessions and no leases.
//!
//! `schema` says what the file holds, `disk` opens it, `writer` changes it, `keys` and `activity` are the changes, `keys`
//! and `pages` the questions, `block` and `noted` are what many records are kept as, `windows` and `news` are in memory.

mod activity;
mod block;
mod disk;
mod keys;
pub(in crate::store) mod moving;
mod news;
mod noted;
mod pages;
mod schema;
#[cfg(test)]
mod trials;
mod users;
mod windows;
mod writer;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redb::ReadTransaction;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use self::disk::{Disk, failed};
use self::news::News;
use self::pages::Start;
use self::windows::Windows;
use self::writer::{Mender, Operation, Writer, current_epoch};
use super::{
    ActivityPage, ActivityQuery, AuditBatch, Creation, Epoch, Found, KeyView, KnownUser, NewKey, Partition, PermitRequest, Permits,
    RecalledKey, Renewal, RenewalRequest, Revocation, RevokeRequest, Safeguard, SessionState, Sessions, Store, StoreError,
    StoreIncarnation, Trust,
};
use crate::domain::window::WINDOW;
use crate::domain::{FirmId, FirmTag, KeyDigest, KeyId, Sequence};
use crate::{clock, tasks};

/// Long looks at once: each has a thread, and a thread has memory of its own.
const LONG_LOOKS_AT_ONCE: usize = 4;

/// The embedded store. One process at a time may have its folder open.
pub struct EmbeddedStore {
    writer: Writer,
    reader: Reader,
    news: Arc<Mutex<News>>,
    windows: Windows,
    start: Start,
    /// Looks into the log for the windows of keys that were used shortly before the start.
    long_looks: Semaphore,
    /// Firms of which the log had, when the first window was made from it, records that are not sorted by key yet. All that was
    /// used before the start is in the log by then.
    had_new_blocks: OnceLock<HashSet<Vec<u8>>>,
}

impl EmbeddedStore {
    /// Opens the store in `folder`, which is made if it is missing, readable by nobody else.
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be opened, above all because another process has it open; `Corrupt` when it
    /// was written by a version that this one does not know.
    pub fn open(folder: &Path) -> Result<Arc<Self>, StoreError> {
        let start = Start { wall: clock::wall_now(), boot: clock::boot_now() };
        let disk = Arc::new(Disk::open(folder)?);
        let news = Arc::new(Mutex::new(News::since(current_epoch(&disk)?)));
        let writer = Writer::start(Arc::clone(&disk), Arc::clone(&news), folder)?;
        let reader = Reader { disk, mender: writer.mender() };
        let (long_looks, had_new_blocks) = (Semaphore::new(LONG_LOOKS_AT_ONCE), OnceLock::new());
        Ok(Arc::new(Self { writer, reader, news, windows: Windows::since(start), start, long_looks, had_new_blocks }))
    }

    /// What spares nearly every key that is used for the first time the way to another thread.
    fn has_surely_rested(&self, snapshot: &ReadTransaction, key: KeyId) -> Result<bool, StoreError> {
        let had_new_blocks = match self.had_new_blocks.get() {
            Some(known) => known,
            None => {
                let read = pages::firms_with_new_blocks(snapshot)?;
                self.had_new_blocks.get_or_init(|| read)
            }
        };
        pages::has_surely_rested(snapshot, key, self.start.wall.minus(WINDOW), had_new_blocks)
    }
}

/// Reads snapshots, and has the file mended that fails.
#[derive(Clone)]
struct Reader {
    disk: Arc<Disk>,
    mender: Mender,
}

impl Reader {
    fn read<T>(&self, question: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let generation = self.disk.generation();
        let answer = self.disk.read().and_then(|snapshot| question(&snapshot));
        if let Err(StoreError::Unavailable(_)) = &answer {
            self.mender.report(generation);
        }
        answer
    }

    /// The same for questions that read more than a few rows.
    async fn read_much<T, Q>(&self, question: Q) -> Result<T, StoreError>
    where
        T: Send + 'static,
        Q: FnOnce(&ReadTransaction) -> Result<T, StoreError> + Send + 'static,
    {
        let reader = self.clone();
        tasks::blocking(move || reader.read(question)).await
    }
}

impl Store for EmbeddedStore {
    fn partitions(&self) -> u16 {
        1
    }

    fn find(&self, _tag: FirmTag, digest: KeyDigest) -> BoxFuture<'_, Result<Found, StoreError>> {
        async move {
            // Asked first: of a change in between the record knows and the epoch does not, and whatever was read at an older
            // epoch is looked at once more. The other way round a key could be called unknown after it was made.
            let epoch = self.news.lock().epoch();
            let record = self.reader.read(|snapshot| keys::find(snapshot, digest))?;
            Ok(Found { record, partition: keys::PARTITION, epoch })
        }
        .boxed()
    }

    fn renew(&self, request: RenewalRequest) -> BoxFuture<'_, Result<Renewal, StoreError>> {
        if !self.writer.is_running() {
            return std::future::ready(Err(StoreError::Unavailable("the store's writer has ended".into()))).boxed();
        }
        let (epoch, news) = self.news.lock().after(request.applied);
        std::future::ready(Ok(Renewal {
            epoch,
            news,
            trust: Trust::UntilTold,
            store: StoreIncarnation::default(),
            is_settled: false,
            time: None,
        }))
        .boxed()
    }

    fn epoch(&self, _partition: Partition) -> BoxFuture<'_, Result<(Epoch, StoreIncarnation), StoreError>> {
        let epoch = self.news.lock().epoch();
        std::future::ready(Ok((epoch, StoreIncarnation::default()))).boxed()
    }

    fn sessions(&self, _partition: Partition) -> BoxFuture<'_, Result<Sessions, StoreError>> {
        std::future::ready(Ok(Sessions::default())).boxed()
    }

    fn forget(&self, _partition: Partition, _sessions: Vec<SessionState>) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    /// The file keeps what it acknowledged, so there is nothing to say again.
    fn reassert(&self, _partition: Partition, _revoked: Vec<KeyDigest>) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    /// Windows live and die with the only replica, and are made from the log again.
    fn recall(&self, _partition: Partition, _keys: Vec<RecalledKey>) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn hints(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }

    fn permits(&self, request: PermitRequest) -> BoxFuture<'_, Result<Permits, StoreError>> {
        async move {
            if let Some(permits) = self.windows.decide(&request) {
                return Ok(permits);
            }
            let (key, start) = (request.key, self.start);
            if self.reader.read(|snapshot| self.has_surely_rested(snapshot, key))? {
                return Ok(self.windows.decide_remembering(&request, Vec::new()));
            }
            let _turn = self.long_looks.acquire().await.expect("the semaphore is never closed");
            let uses = self.reader.read_much(move |snapshot| pages::uses_before(snapshot, key, start, WINDOW)).await?;
            Ok(self.windows.decide_remembering(&request, uses))
        }
        .boxed()
    }

    fn create(&self, key: NewKey) -> BoxFuture<'_, Result<Creation, StoreError>> {
        self.writer.ask(|reply| Operation::Create(Box::new(key), reply)).boxed()
    }

    fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revocation, StoreError>> {
        self.writer.ask(|reply| Operation::Revoke(Box::new(request), reply)).boxed()
    }

    fn key(&self, firm: FirmId, key: KeyId) -> BoxFuture<'_, Result<Option<KeyView>, StoreError>> {
        async move { self.reader.read(|snapshot| keys::view(snapshot, &firm, key)) }.boxed()
    }

    fn keys(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KeyView>, StoreError>> {
        self.reader.read_much(move |snapshot| keys::views(snapshot, &firm)).boxed()
    }

    fn note_user(&self, firm: FirmId, user: KnownUser) -> BoxFuture<'_, Result<(), StoreError>> {
        self.writer.ask(|reply| Operation::NoteUser(Box::new((firm, user)), reply)).boxed()
    }

    fn users(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KnownUser>, StoreError>> {
        self.reader.read_much(move |snapshot| users::all(snapshot, &firm)).boxed()
    }

    fn ship(&self, batch: AuditBatch) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        self.writer.ask(|reply| Operation::Ship(batch, reply)).boxed()
    }

    fn shipped(&self, spool: Uuid) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        let question = move |snapshot: &ReadTransaction| {
            let spools = snapshot.open_table(schema::SPOOLS).map_err(failed)?;
            schema::number_in(&spools, spool.as_bytes()).map(Sequence)
        };
        async move { self.reader.read(question) }.boxed()
    }

    fn activity(&self, query: ActivityQuery) -> BoxFuture<'_, Result<ActivityPage, StoreError>> {
        self.reader.read_much(move |snapshot| pages::read(snapshot, &query)).boxed()
    }

    /// Nobody but the gateway could change how the file is written.
    fn safeguards(&self) -> BoxFuture<'_, Result<Vec<Safeguard>, StoreError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use redb::ReadableTableMetadata;

    use super::*;
    use crate::domain::{
        Action, AuditRecord, FirmId, FrozenPermissions, KeyName, KeyNamespace, KeyRecord, KeySecret, KeyState, Outcome, UserId,
    };

    fn new_key(firm: &str) -> NewKey {
        let firm_id = FirmId::parse(firm).unwrap();
        let secret = KeySecret::generate(&KeyNamespace::parse("assure").unwrap(), &firm_id);
        let record = KeyRecord {
            id: KeyId::new(clock::fresh_uuid()),
            digest: secret.digest(),
            name: KeyName::parse("a key").unwrap(),
            prefix: secret.display_prefix().into(),
            firm_id: firm_id.clone(),
            creator: UserId::parse("ann").unwrap(),
            creator_name: None,
            permissions: FrozenPermissions::default(),
            created_at: clock::wall_now(),
            state: KeyState::Live,
        };
        let audit =
            AuditRecord { action: Action::Create, firm_id, key_id: record.id, ..AuditRecord::example(clock::fresh_uuid().as_u128()) };
        NewKey { record, firm_max: 10, creator_max: 5, idempotency_key: None, audit }
    }

    #[tokio::test]
    async fn folder_and_file_are_private_and_belong_to_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let _store = EmbeddedStore::open(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("store.redb"))), (0o700, 0o600));
        let second = EmbeddedStore::open(&path).err().unwrap().to_string();
        assert!(second.contains("another process uses"), "{second}");
    }

    #[tokio::test]
    async fn an_unknown_layout_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(EmbeddedStore::open(folder.path()).unwrap());
        let file = folder.path().join("store.redb");
        let database = redb::Database::open(&file).unwrap();
        let change = database.begin_write().unwrap();
        change.open_table(schema::META).unwrap().insert(schema::META_SCHEMA, 9_u64.to_be_bytes().as_slice()).unwrap();
        change.commit().unwrap();
        drop(database);
        assert!(matches!(EmbeddedStore::open(folder.path()), Err(StoreError::Corrupt(text)) if text.contains("layout is 9")));
    }

    #[tokio::test]
    async fn garbage_in_the_file_is_told_and_harms_no_neighbour() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let key = new_key("firm-1");
        store.create(key.clone()).await.unwrap();
        let change = store.reader.disk.write().unwrap();
        change.open_table(schema::KEYS).unwrap().insert(key.record.id.uuid().as_bytes().as_slice(), b"\x01garbage".as_slice()).unwrap();
        change.commit().unwrap();
        let tag = FirmTag::of(&key.record.firm_id);
        assert!(matches!(store.find(tag, key.record.digest).await, Err(StoreError::Corrupt(_))));
        let (again, other) = tokio::join!(store.create(key), store.create(new_key("firm-1")));
        assert!(matches!(again, Err(StoreError::Corrupt(_))));
        assert!(matches!(other, Ok(Creation::Created(..))));
    }

    #[tokio::test]
    async fn a_file_that_failed_is_opened_again_and_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let key = new_key("firm-1");
        store.create(key.clone()).await.unwrap();
        store.reader.mender.report(store.reader.disk.generation());
        assert!(matches!(store.create(new_key("firm-1")).await, Ok(Creation::Created(..))));
        assert_eq!(store.reader.disk.generation(), 1);
        store.reader.mender.report(0);
        assert!(matches!(store.create(new_key("firm-1")).await, Ok(Creation::Created(..))));
        assert_eq!(store.reader.disk.generation(), 1, "a failure of the earlier opening does not count");
        let tag = FirmTag::of(&key.record.firm_id);
        assert!(store.find(tag, key.record.digest).await.unwrap().record.is_some());
    }

    /// What is left of a window of 100 after `spent` was shipped by an earlier start, and one permit was taken.
    async fn remaining_after_restart(spent: &[(i64, Outcome, Option<&str>, u32)]) -> u32 {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let key = new_key("firm-1");
        store.create(key.clone()).await.unwrap();
        let now = clock::wall_now();
        let record = |(age, outcome, reason, count): &(i64, Outcome, Option<&str>, u32), sequence: u64| AuditRecord {
            key_id: key.record.id,
            time: crate::domain::Timestamp::from_micros(now.micros() - age * 1_000_000),
            outcome: *outcome,
            reason: reason.map(str::to_owned),
            count: NonZeroU32::new(*count),
            // What the window refuses never comes to a route.
            route: (*outcome != Outcome::Refused("rate_limited")).then(|| "/**".to_owned()),
            sequence: NonZeroU64::new(sequence),
            ..AuditRecord::example(u128::from(sequence))
        };
        let records = spent.iter().zip(1..).map(|(spent, sequence)| record(spent, sequence).into()).collect();
        store.ship(AuditBatch { spool: Uuid::from_u128(1), records, lost_up_to: None, age_max: None }).await.unwrap();
        drop(store);
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let tag = FirmTag::of(&key.record.firm_id);
        match store
            .permits(PermitRequest {
                tag,
                key: key.record.id,
                limit: 100,
                want: crate::domain::window::Wanted { soon: 1, long: 0 },
                reports: vec![],
                store: StoreIncarnation::default(),
            })
            .await
            .unwrap()
        {
            Permits::Granted { remaining, .. } => remaining,
            Permits::Full { retry_after } => panic!("full for {retry_after:?}"),
        }
    }

    #[tokio::test]
    async fn a_window_remembers_what_was_spent_before_a_restart() {
        assert_eq!(remaining_after_restart(&[]).await, 99);
        assert_eq!(remaining_after_restart(&[(1, Outcome::Allowed, None, 1), (40, Outcome::Unknown, None, 1)]).await, 97);
        assert_eq!(remaining_after_restart(&[(61, Outcome::Allowed, None, 1)]).await, 99, "over a minute ago");
        let mut many = vec![(100, Outcome::Allowed, None, 1); 300];
        many.push((1, Outcome::Allowed, None, 1));
        assert_eq!(remaining_after_restart(&many).await, 98, "in a batch so large that its ways are written later");
        assert_eq!(remaining_after_restart(&[(-30, Outcome::Allowed, None, 1)]).await, 98, "a wall clock that was set back");
        let denied = Outcome::Refused("route_denied");
        assert_eq!(remaining_after_restart(&[(1, denied, Some("route_denied"), 20)]).await, 79, "twenty alike");
        let limited = Outcome::Refused("rate_limited");
        assert_eq!(remaining_after_restart(&[(1, limited, Some("window_exhausted"), 20)]).await, 99, "refusals by the window spend none");
    }

    #[tokio::test]
    async fn trimming_leaves_no_way_to_what_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        store.create(new_key("firm-1")).await.unwrap();
        let record = |sequence: u64| AuditRecord {
            key_id: KeyId::new(Uuid::from_u128(u128::from(sequence % 5))),
            firm_id: FirmId::parse(&format!("firm-{}", sequence % 3)).unwrap(),
            time: clock::wall_now().minus(Duration::from_millis(100 * sequence)),
            action: if sequence.is_multiple_of(7) { Action::Revoke } else { Action::Use },
            sequence: NonZeroU64::new(sequence),
            ..AuditRecord::example(u128::from(sequence))
        };
        let ship = async |records, age_max| store.ship(AuditBatch { spool: Uuid::nil(), records, lost_up_to: None, age_max }).await;
        ship((1..=100).map(|sequence| record(sequence).into()).collect(), None).await.unwrap();
        let tables = [schema::ACTIVITY, schema::ACTIVITY_BY_TIME, schema::ACTIVITY_BY_KEY, schema::ACTIVITY_BY_CHANGE];
        let sizes = || {
            let size = |table| store.reader.disk.read()?.open_table(table).map_err(failed)?.len().map_err(failed);
            tables.map(|table| size(table).unwrap())
        };
        assert!(sizes().iter().all(|size| *size > 0));
        ship(Vec::new(), Some(Duration::ZERO)).await.unwrap();
        assert_eq!(sizes(), [0; 4]);
    }

    #[tokio::test]
    async fn new_blocks_are_found_before_and_after_their_ways_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let (keys, begun) = ([KeyId::new(Uuid::from_u128(5)), KeyId::new(Uuid::from_u128(6))], clock::wall_now());
        let record = |sequence: u64| AuditRecord {
            key_id: keys[sequence as usize % 2],
            time: begun.minus(Duration::from_millis(sequence * 37 % 1_000)),
            sequence: NonZeroU64::new(sequence),
            ..AuditRecord::example(u128::from(sequence))
        };
        let ship = async |numbers: std::ops::RangeInclusive<u64>| {
            let records = numbers.map(|number| record(number).into()).collect();
            store.ship(AuditBatch { spool: Uuid::nil(), records, lost_up_to: None, age_max: None }).await.unwrap()
        };
        let found = async |key: Option<KeyId>| {
            let order = super::super::ActivityOrder::NewestFirst { after: None };
            let firm = FirmId::parse("firm-1").unwrap();
            let query = ActivityQuery { firm, key, action: None, since: None, until: None, limit: 1_000, order };
            let records = store.activity(query).await.unwrap().records;
            assert!(records.is_sorted_by_key(|record| std::cmp::Reverse((record.time, record.event_id))));
            records.len()
        };
        let new = || {
            let table = store.reader.disk.read().unwrap().open_table(schema::ACTIVITY_NEW).unwrap();
            table.len().unwrap()
        };
        ship(1..=10).await;
        assert_eq!(new(), 0, "there was no hurry");
        ship(11..=310).await;
        assert!(new() > 0);
        assert_eq!((found(None).await, found(Some(keys[0])).await), (310, 155));
        ship(311..=320).await;
        assert_eq!(new(), 0);
        assert_eq!((found(None).await, found(Some(keys[1])).await), (320, 160));
    }

    #[tokio::test]
    async fn idle_windows_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let tag = FirmTag::of(&FirmId::parse("firm-1").unwrap());
        store
            .permits(PermitRequest {
                tag,
                key: KeyId::new(Uuid::from_u128(1)),
                limit: 100,
                want: crate::domain::window::Wanted { soon: 1, long: 0 },
                reports: vec![],
                store: StoreIncarnation::default(),
            })
            .await
            .unwrap();
        assert_eq!(store.windows.held(), 1);
        store.windows.sweep_at(clock::boot_now().plus(Duration::from_secs(62)));
        assert_eq!(store.windows.held(), 0);
    }
}

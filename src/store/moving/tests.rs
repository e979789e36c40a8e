//! What a move promises, between all pairs of stores and numbers of partitions.
//!
//! Everything reads the same on the other side, and whoever shipped or followed goes on where they were. A file that was
//! cut off or changed leaves nothing, and an import that was cut off is completed or refused, never used.

use std::io::Cursor;
use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::config::{Embedded, Redis};
use crate::domain::{FirmTag, KeyRecord, KeyState, Sequence, Timestamp};
use crate::store::conformance::{all, created, find, firm, log, new_key, revoked, ship, uses};
use crate::store::embedded::EmbeddedStore;
use crate::store::redis::testing::Server;
use crate::store::{ActivityOrder, ActivityQuery, Creation, Epoch, Partition, RenewalRequest, Store};

const SPOOL: Uuid = Uuid::from_u128(7);

/// A store that is moved, and what it lies on.
enum Place {
    File(TempDir),
    /// With its number of partitions.
    Redis(Arc<Server>, u16),
}

impl Place {
    fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    fn redis() -> Self {
        Self::partitioned(1)
    }

    fn partitioned(partitions: u16) -> Self {
        Self::Redis(Server::start(), partitions)
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        match self {
            Self::File(folder) => config.store.embedded = Some(Embedded { path: folder.path().to_owned() }),
            Self::Redis(server, partitions) => {
                config.store.embedded = None;
                config.store.redis = Some(Redis { partitions: *partitions, ..server.config() });
            }
        }
        config
    }

    async fn try_open(&self) -> Result<Arc<dyn Store>, StoreError> {
        match self {
            Self::File(folder) => EmbeddedStore::open(folder.path()).map(|store| store as Arc<dyn Store>),
            Self::Redis(..) => {
                let redis = self.config().store.redis.unwrap();
                RedisStore::open(&redis, "assure:audit", &Tasks::new()).await.map(|store| store as Arc<dyn Store>)
            }
        }
    }

    async fn open(&self) -> Arc<dyn Store> {
        self.try_open().await.unwrap()
    }

    async fn export(&self) -> Result<Vec<u8>, MoveError> {
        let mut file = Vec::new();
        export(&self.config(), &mut file, Progress::new(&mut |_| {})).await?;
        Ok(file)
    }

    async fn import(&self, file: &[u8]) -> Result<Counts, MoveError> {
        import(&self.config(), &mut Cursor::new(file), Progress::new(&mut |_| {})).await
    }
}

/// Uses of a key, an hour ago, so that no window holds them.
fn old_uses(key: &KeyRecord, sequences: std::ops::RangeInclusive<u64>) -> Vec<crate::domain::AuditRecord> {
    let mut records = uses(sequences);
    let begin = clock::wall_now().minus(Duration::from_secs(3_600));
    for (place, record) in records.iter_mut().enumerate() {
        record.time = begin.plus(Duration::from_millis(u64::try_from(place).unwrap()));
        record.key_id = key.id;
    }
    records
}

/// Two firms: one with a revoked key among five and a log, one with a name that begins alike and a single key.
async fn fill(store: &Arc<dyn Store>) -> Vec<KeyRecord> {
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(created(store, new_key("firm-1", "ann")).await.0);
    }
    keys.push(created(store, new_key("firm-1:0", "ann")).await.0);
    keys[0] = revoked(store, &keys[0]).await.0;
    ship(store, SPOOL, old_uses(&keys[1], 1..=1_234)).await.unwrap();
    keys
}

/// Everything that can be asked about these keys.
async fn answers(store: &Arc<dyn Store>, keys: &[KeyRecord]) -> Vec<String> {
    let mut answers = Vec::new();
    for key in keys {
        let found = store.find(FirmTag::of(&key.firm_id), key.digest).await.unwrap();
        assert_eq!(found.record.as_ref(), Some(key));
        answers.push(format!("{:?}", store.key(key.firm_id.clone(), key.id).await.unwrap()));
    }
    for name in ["firm-1", "firm-1:0"] {
        answers.push(format!("{:?}", store.keys(firm(name)).await.unwrap()));
        answers.push(format!("{:?}", log(store, all(name)).await));
        answers.push(format!("{:?}", arrived(store, name, 0).await));
    }
    answers.push(format!("{:?}", store.shipped(SPOOL).await.unwrap()));
    answers
}

/// What came after an arrival, page after page.
async fn arrived(store: &Arc<dyn Store>, name: &str, mut after: u64) -> Vec<crate::domain::AuditRecord> {
    let mut records = Vec::new();
    loop {
        let order = ActivityOrder::Arrival { after: Some(after) };
        let page = store.activity(ActivityQuery { order, ..all(name) }).await.unwrap();
        records.extend(page.records);
        after = page.arrival;
        if !page.more {
            return records;
        }
    }
}

async fn last_arrival(store: &Arc<dyn Store>, name: &str) -> u64 {
    store.activity(ActivityQuery { order: ActivityOrder::Arrival { after: None }, ..all(name) }).await.unwrap().arrival
}

/// What is promised of a store that was moved, whatever lay on either side.
async fn moves(from: Place, to: Place) {
    let store = from.open().await;
    let keys = fill(&store).await;
    let before = answers(&store, &keys).await;
    let last = last_arrival(&store, "firm-1").await;
    drop(store);
    let file = from.export().await.unwrap();
    assert_eq!(to.import(&file).await.unwrap(), Counts { firms: 2, keys: 6, records: 1_241, spools: 1 });

    let store = to.open().await;
    assert_eq!(answers(&store, &keys).await, before);
    assert!(matches!(find(&store, &keys[0]).await.record.unwrap().state, KeyState::Revoked { .. }));
    assert!(!revoked(&store, &keys[0]).await.1, "revoked already");
    // Four of ann's keys live, so there is room for one.
    created(&store, new_key("firm-1", "ann")).await;
    assert!(matches!(store.create(new_key("firm-1", "ann")).await, Ok(Creation::CreatorFull)));
    for name in ["bob", "cid"] {
        for _ in 0..5 {
            let _ = store.create(new_key("firm-1", name)).await.unwrap();
        }
    }
    assert!(matches!(store.create(new_key("firm-1", "dan")).await, Ok(Creation::FirmFull)));
    // What the spool had shipped is not taken twice, and what comes next is.
    assert_eq!(ship(&store, SPOOL, old_uses(&keys[1], 1..=1_234)).await.unwrap(), Sequence(1_234));
    let mut next = old_uses(&keys[1], 1_235..=1_235);
    next[0].time = clock::wall_now();
    assert_eq!(ship(&store, SPOOL, next.clone()).await.unwrap(), Sequence(1_235));
    // A follower goes on where it was.
    let came = arrived(&store, "firm-1", last).await;
    assert_eq!((came.len(), came.last()), (7, next.last()), "six creations and a use: {came:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reads_the_same_in_another_file() {
    moves(Place::file(), Place::file()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reads_the_same_on_redis() {
    moves(Place::file(), Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reads_the_same_in_a_file_again() {
    moves(Place::redis(), Place::file()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reads_the_same_on_another_redis() {
    moves(Place::redis(), Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reads_the_same_over_more_partitions() {
    moves(Place::redis(), Place::partitioned(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reads_the_same_over_fewer_partitions() {
    moves(Place::partitioned(5), Place::partitioned(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_there_and_back_is_the_same_file_again() {
    let (first, second, third) = (Place::file(), Place::partitioned(3), Place::file());
    fill(&first.open().await).await;
    let file = first.export().await.unwrap();
    second.import(&file).await.unwrap();
    let there = second.export().await.unwrap();
    third.import(&there).await.unwrap();
    let back = third.export().await.unwrap();
    assert!(matches!(second.import(&file).await, Err(MoveError::NotEmpty)));
    let sections = |file: &[u8]| {
        let text = String::from_utf8(file.to_vec()).unwrap();
        let mut lines: Vec<String> = text.lines().skip(1).filter(|line| !line.contains("trailer")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sections(&file), sections(&there));
    assert_eq!(sections(&file), sections(&back));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_with_its_line_and_leaves_nothing() {
    let (from, to) = (Place::file(), Place::redis());
    fill(&from.open().await).await;
    let good = from.export().await.unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = |line: usize| lines[..line].concat();
    let total = lines.len();
    let damaged = [
        (String::new(), 1, "empty"),
        ("{\"kind\":\"spool\"}\n".to_owned(), 1, "not a line of an export"),
        (text.replacen("\"version\":1", "\"version\":2", 1), 1, "version 2"),
        (text.replacen("assure-gateway-store", "something", 1), 1, "not an export"),
        (at(total - 1), total, "cut off"),
        (at(total / 2), total / 2 + 1, "cut off"),
        (text[..text.len() / 2].to_owned(), at(total).get(..text.len() / 2).unwrap().lines().count(), "cut off"),
        (text.trim_end().to_owned(), total, "cut off"),
        (text.replacen("leaked", "leakeD", 1), total, "checksum"),
        ([&at(5), &lines[6..].concat()].map(String::as_str).concat(), total - 1, "counts"),
        (text.clone() + lines[1], total + 1, "follows the trailer"),
        ([&at(1), &lines[2..].concat()].map(String::as_str).concat(), 2, "another firm"),
        ([&at(9), lines[10], lines[9], &lines[11..].concat()].concat(), 11, "order of their arrival"),
    ];
    for (text, line, why) in damaged {
        match to.import(text.as_bytes()).await {
            Err(MoveError::Line(found, what)) => {
                assert!(found == line as u64 && what.contains(why), "{why}: line {found} of {line}: {what}")
            }
            other => panic!("{why}: {other:?}"),
        }
    }
    to.import(&good).await.expect("it is empty still");
    assert!(matches!(to.import(&good).await, Err(MoveError::NotEmpty)));
    assert!(matches!(from.import(&good).await, Err(MoveError::NotEmpty)));
}

/// Begins an import and drops it in the middle, as a crash would.
async fn cut_off(target: &mut dyn Target, file: &[u8]) {
    let mut incoming = Incoming::open(file).unwrap();
    let mut checked = Incoming::open(file).unwrap();
    while checked.next().unwrap().is_some() {}
    target.begin(&checked.checked().unwrap().checksum).await.unwrap();
    for _ in 0..700 {
        target.put(incoming.next().unwrap().unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_cut_off_is_completed_by_the_same_file_and_by_no_other() {
    let from = Place::file();
    let store = from.open().await;
    let keys = fill(&store).await;
    let before = answers(&store, &keys).await;
    drop(store);
    let file = from.export().await.unwrap();

    let on_redis = Place::redis();
    let Place::Redis(server, _) = &on_redis else { unreachable!() };
    let tasks = Tasks::new();
    let store = RedisStore::open_to_import(&server.config(), "assure:audit", &tasks).await.unwrap();
    cut_off(&mut shared::Import::new(store), &file).await;
    assert!(matches!(on_redis.try_open().await.map(drop), Err(StoreError::Unsafe(why)) if why.contains("not completed")));
    let other = Place::file();
    drop(other.open().await);
    assert!(matches!(on_redis.import(&other.export().await.unwrap()).await, Err(MoveError::OtherFile)));
    on_redis.import(&file).await.unwrap();
    assert_eq!(answers(&on_redis.open().await, &keys).await, before);

    let in_file = Place::file();
    cut_off(&mut embedded::Import::open(&in_file.config().own_folder()).unwrap(), &file).await;
    assert!(in_file.open().await.keys(firm("firm-1")).await.unwrap().is_empty(), "as it was");
    in_file.import(&file).await.unwrap();
    assert_eq!(answers(&in_file.open().await, &keys).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_a_gateway_works_on_is_not_moved() {
    let (file, redis) = (Place::file(), Place::redis());
    let locked = file.open().await;
    for refused in [file.export().await.map(drop), file.import(b"").await.map(drop)] {
        assert!(refused.is_err(), "{refused:?}");
    }
    drop(locked);
    let empty = file.export().await.unwrap();

    let store = redis.open().await;
    let renewing = store.clone();
    let tasks = Tasks::new();
    let stop = tasks.stopping();
    let replica = ReplicaId::new("replica-7");
    let renewal = RenewalRequest {
        settled: None,
        replica: replica.clone(),
        incarnation: Uuid::from_u128(1),
        partition: Partition(0),
        applied: Epoch(0),
        data_set: None,
    };
    renewing.renew(renewal.clone()).await.unwrap();
    tasks.spawn("replica", async move {
        while stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(200))).await.is_some() {
            renewing.renew(renewal.clone()).await.unwrap();
        }
    });
    let names_it = |error: MoveError| matches!(&error, MoveError::InUse(alive) if *alive == [replica.clone()]);
    assert!(redis.export().await.is_err_and(names_it));
    assert!(redis.import(&empty).await.is_err_and(names_it));
    tasks.stop(Duration::from_secs(5)).await;
    // Its session stands still in the store, and hinders nobody.
    redis.import(&empty).await.unwrap();
}

/// Who has written down which data set it works on must know the store again, in another Redis and after a detour.
#[tokio::test(flavor = "multi_thread")]
async fn a_moved_redis_is_the_same_data_set_to_who_knows_it() {
    let (first, between, last) = (Place::partitioned(3), Place::file(), Place::partitioned(2));
    let store = first.open().await;
    let renewal = |number| RenewalRequest {
        settled: None,
        replica: ReplicaId::new("replica-7"),
        incarnation: Uuid::from_u128(1),
        partition: Partition(number),
        applied: Epoch(0),
        data_set: None,
    };
    for number in 0..3 {
        store.renew(renewal(number)).await.unwrap();
    }
    drop(store);
    let tokens = |file: &[u8]| {
        let text = String::from_utf8(file.to_vec()).unwrap();
        text.lines().filter(|line| line.contains("data_set")).map(str::to_owned).collect::<Vec<_>>()
    };
    let file = first.export().await.unwrap();
    assert_eq!(tokens(&file).len(), 3);
    between.import(&file).await.unwrap();
    let file = between.export().await.unwrap();
    last.import(&file).await.unwrap();
    let file = last.export().await.unwrap();
    let kept = tokens(&file);
    last.open().await.renew(renewal(0)).await.unwrap();
    assert_eq!(tokens(&last.export().await.unwrap()), kept);
    assert_eq!((kept.len(), &kept[..]), (2, &tokens(&between.export().await.unwrap())[..2]));
}

#[test]
fn a_store_is_handed_over_when_no_window_holds_a_use_from_before() {
    let now = clock::wall_now();
    let ago = |seconds: u64| until_windows_are_free(now.minus(Duration::from_secs(seconds)));
    assert!(ago(0).is_some_and(|wait| wait > Duration::from_secs(79) && wait <= Duration::from_secs(80)));
    assert!(ago(50).is_some_and(|wait| wait > Duration::from_secs(29) && wait <= Duration::from_secs(30)));
    assert_eq!(ago(81), None);
    assert!(until_windows_are_free(now.plus(Duration::from_secs(9_999))).is_some_and(|wait| wait <= Duration::from_secs(80)));
    assert_eq!(until_windows_are_free(Timestamp::from_micros(0)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_only_redis_remembers_counts_as_a_use() {
    let redis = Place::redis();
    let store = redis.open().await;
    let (key, _) = created(&store, new_key("firm-1", "ann")).await;
    let newest = |file: Vec<u8>| {
        let mut incoming = Incoming::open(file.as_slice()).unwrap();
        while incoming.next().unwrap().is_some() {}
        incoming.checked().unwrap().newest_use
    };
    assert_eq!(newest(redis.export().await.unwrap()), None, "a creation is no use");
    let began = clock::wall_now();
    let request = crate::store::PermitRequest {
        tag: FirmTag::of(&key.firm_id),
        key: key.id,
        limit: 1_000,
        want: crate::domain::window::Wanted { soon: 1, long: 0 },
        reports: Vec::new(),
        store: Default::default(),
    };
    store.permits(request).await.unwrap();
    assert!(newest(redis.export().await.unwrap()).is_some_and(|at| at >= began));
}

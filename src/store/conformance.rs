//! What every store promises, as tests: one function per promise, run against each store there is.
//!
//! A [`Subject`] opens the store; opening it again after the last handle is gone must find everything that was
//! answered. Times are left to the store's own clock, so nothing here waits for one.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use uuid::Uuid;

use super::*;
use crate::clock;
use crate::domain::window::{GRANT_LIFE, GRANT_LIFE_LONG};
use crate::domain::{FrozenPermissions, KeyName, KeyNamespace, KeySecret, KeyState, Outcome};

/// A store under test.
pub(crate) struct Subject {
    open: Box<dyn Fn() -> Arc<dyn Store>>,
}

impl Subject {
    fn open(&self) -> Arc<dyn Store> {
        (self.open)()
    }
}

/// Runs every promise below against each store: the embedded one in a folder of its own; Redis on a server of its own,
/// which is killed without warning whenever the store is opened again; a Cluster with three partitions; and Redis with
/// Sentinel. The servers of the last two are shared by all promises, each of which has a store of its own there.
macro_rules! promises {
    ($($promise:ident)*) => {
        mod embedded_store {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    let folder = tempfile::tempdir().unwrap();
                    let path = folder.path().join("data");
                    let open = Box::new(move || super::embedded::EmbeddedStore::open(&path).unwrap() as std::sync::Arc<dyn super::Store>);
                    super::$promise(&super::Subject { open }).await;
                }
            )*
        }

        mod redis_store {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    super::$promise(&super::on_redis()).await;
                }
            )*
        }

        mod redis_cluster {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    super::$promise(&super::on_cluster()).await;
                }
            )*
        }

        mod redis_sentinel {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    super::$promise(&super::on_sentinel()).await;
                }
            )*
        }
    };
}

fn on_redis() -> Subject {
    let (server, opened) = (super::redis::testing::Server::start(), std::cell::Cell::new(false));
    let open = move || {
        if opened.replace(true) {
            server.crash();
        }
        let store = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(server.open()));
        store.unwrap() as Arc<dyn Store>
    };
    Subject { open: Box::new(open) }
}

fn on_cluster() -> Subject {
    let (cluster, name) = super::redis::testing::shared_cluster();
    shared(cluster.config(), name)
}

fn on_sentinel() -> Subject {
    let (trio, name) = super::redis::testing::shared_trio();
    shared(trio.config(), name)
}

fn shared(config: crate::config::Redis, name: String) -> Subject {
    let tasks = crate::tasks::Tasks::new();
    let open = move || {
        let opening = RedisStore::open(&config, &name, &tasks);
        let store = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(opening));
        store.unwrap() as Arc<dyn Store>
    };
    Subject { open: Box::new(open) }
}

promises! {
    fifty_creates_at_once_make_five_keys_of_one_creator
    sixty_creates_at_once_make_ten_keys_of_one_firm
    the_same_call_creates_one_key
    a_revoked_key_frees_one_place_once
    another_firms_key_is_not_found
    each_change_raises_the_epoch_by_one_and_is_told
    what_was_answered_survives
    records_are_taken_exactly_once_and_in_order
    a_hole_is_passed_over_only_where_the_spool_says_that_it_lost_the_records
    records_of_many_firms_are_taken_as_one_sequence
    every_partition_has_its_own_epoch_and_firms_stay_in_theirs
    pages_have_no_gap_and_no_repeat_while_the_log_grows
    filters_select_exactly
    records_whose_times_are_mixed_are_told_newest_first_and_once
    followers_miss_no_late_record
    old_records_are_trimmed
    uses_are_told_of_keys
    uses_are_counted_by_the_hour_of_a_day
    the_newest_word_on_a_user_is_kept
    a_window_grants_exactly_its_limit
    a_late_report_gives_back_what_was_not_used
    a_grant_lives_long_only_where_it_leaves_half_of_the_limit_free
    firms_whose_names_begin_alike_are_kept_apart
    sessions_are_told_and_forgotten_only_as_they_were_seen
    a_lost_revocation_is_made_again
}

pub(super) fn firm(name: &str) -> FirmId {
    FirmId::parse(name).unwrap()
}

pub(crate) fn new_key(firm_id: &str, creator: &str) -> NewKey {
    let (firm_id, creator) = (firm(firm_id), UserId::parse(creator).unwrap());
    let secret = KeySecret::generate(&KeyNamespace::parse("assure").unwrap(), &firm_id);
    let id = KeyId::new(clock::fresh_uuid());
    let record = KeyRecord {
        id,
        digest: secret.digest(),
        name: KeyName::parse("Né \"quoted\" \\ name").unwrap(),
        prefix: secret.display_prefix().into(),
        firm_id: firm_id.clone(),
        creator: creator.clone(),
        creator_name: Some("Ann".into()),
        permissions: FrozenPermissions::freeze(["View clients", "Edit clients"]),
        created_at: Timestamp::from_micros(0),
        state: KeyState::Live,
    };
    let mut audit = AuditRecord::example(clock::fresh_uuid().as_u128());
    audit.action = Action::Create;
    audit.firm_id = firm_id;
    audit.key_id = id;
    audit.actor = creator.as_str().to_owned();
    NewKey { record, firm_max: 10, creator_max: 5, idempotency_key: None, audit }
}

pub(super) async fn created(store: &Arc<dyn Store>, key: NewKey) -> (KeyRecord, Epoch) {
    match store.create(key).await.unwrap() {
        Creation::Created(record, _, epoch) => (record, epoch),
        other => panic!("not created: {other:?}"),
    }
}

pub(super) fn revocation(of: &KeyRecord) -> RevokeRequest {
    let mut audit = AuditRecord::example(clock::fresh_uuid().as_u128());
    audit.action = Action::Revoke;
    audit.key_name = "what the caller said".into();
    RevokeRequest { firm: of.firm_id.clone(), key: of.id, by: UserId::parse("boss").unwrap(), reason: "leaked".into(), audit }
}

pub(super) async fn revoked(store: &Arc<dyn Store>, key: &KeyRecord) -> (KeyRecord, bool, Epoch) {
    match store.revoke(revocation(key)).await.unwrap() {
        Revocation::Revoked { record, first, epoch, .. } => (record, first, epoch),
        Revocation::NotFound => panic!("not found"),
    }
}

pub(super) async fn find(store: &Arc<dyn Store>, key: &KeyRecord) -> Found {
    store.find(FirmTag::of(&key.firm_id), key.digest).await.unwrap()
}

/// Renews where `firm-1` lives.
async fn renew(store: &Arc<dyn Store>, applied: Epoch) -> Renewal {
    let partition = home(store, "firm-1").await;
    let (replica, incarnation) = (ReplicaId::new("replica-1"), Uuid::from_u128(1));
    let request = RenewalRequest { replica, incarnation, partition, applied, data_set: None, settled: None };
    store.renew(request).await.unwrap()
}

async fn home(store: &Arc<dyn Store>, firm_id: &str) -> Partition {
    store.find(FirmTag::of(&firm(firm_id)), unknown_digest()).await.unwrap().partition
}

/// Another firm that lives where `firm-1` does.
async fn neighbour(store: &Arc<dyn Store>) -> String {
    let wanted = home(store, "firm-1").await;
    for number in 2.. {
        let name = format!("firm-{number}");
        if home(store, &name).await == wanted {
            return name;
        }
    }
    unreachable!("every partition has many firms")
}

fn unknown_digest() -> KeyDigest {
    KeySecret::generate(&KeyNamespace::parse("assure").unwrap(), &firm("firm-1")).digest()
}

fn count(outcomes: &[Creation], is_wanted: fn(&Creation) -> bool) -> usize {
    outcomes.iter().filter(|outcome| is_wanted(outcome)).count()
}

async fn fifty_creates_at_once_make_five_keys_of_one_creator(subject: &Subject) {
    let store = subject.open();
    let outcomes: Vec<Creation> =
        join_all((0..50).map(|_| store.create(new_key("firm-1", "ann")))).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(count(&outcomes, |outcome| matches!(outcome, Creation::Created(..))), 5);
    assert_eq!(count(&outcomes, |outcome| matches!(outcome, Creation::CreatorFull)), 45);
    assert_eq!(store.keys(firm("firm-1")).await.unwrap().len(), 5);
    assert!(matches!(store.create(new_key("firm-2", "ann")).await, Ok(Creation::Created(..))), "a creator is one of a firm");
}

async fn sixty_creates_at_once_make_ten_keys_of_one_firm(subject: &Subject) {
    let store = subject.open();
    let creators = ["ann", "bob", "cid"];
    let outcomes: Vec<Creation> = join_all((0..60).map(|number| store.create(new_key("firm-1", creators[number % 3]))))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(count(&outcomes, |outcome| matches!(outcome, Creation::Created(..))), 10);
    let views = store.keys(firm("firm-1")).await.unwrap();
    for creator in creators {
        assert!(views.iter().filter(|view| view.record.creator.as_str() == creator).count() <= 5);
    }
    assert!(views.is_sorted_by_key(|view| (view.record.created_at, view.record.id)), "oldest first");
    let creates = log(&store, ActivityQuery { action: Some(Action::Create), ..all("firm-1") }).await;
    assert_eq!(creates.len(), 10, "one record for each key and none for a refusal");
}

async fn the_same_call_creates_one_key(subject: &Subject) {
    let store = subject.open();
    let mut first = new_key("firm-1", "ann");
    first.idempotency_key = Some("call-1".into());
    let (record, epoch) = created(&store, first.clone()).await;
    let replayed = |outcome: Creation| matches!(outcome, Creation::Replayed(earlier) if earlier == record);
    assert!(replayed(store.create(first.clone()).await.unwrap()), "the same key id");
    let mut again = new_key("firm-1", "ann");
    again.idempotency_key = Some("call-1".into());
    assert!(replayed(store.create(again).await.unwrap()), "the same Idempotency-Key");
    let mut others = new_key("firm-1", "bob");
    others.idempotency_key = Some("call-1".into());
    assert_eq!(created(&store, others).await.1, Epoch(epoch.0 + 1), "another creator's Idempotency-Key is another");
    drop(store);
    let store = subject.open();
    assert!(replayed(store.create(first).await.unwrap()), "after a restart too");
    assert_eq!(store.keys(firm("firm-1")).await.unwrap().len(), 2);
}

async fn a_revoked_key_frees_one_place_once(subject: &Subject) {
    let store = subject.open();
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(created(&store, new_key("firm-1", "ann")).await.0);
    }
    assert!(matches!(store.create(new_key("firm-1", "ann")).await, Ok(Creation::CreatorFull)));
    let revocations = join_all((0..10).map(|_| revoked(&store, &keys[0]))).await;
    assert_eq!(revocations.iter().filter(|(_, first, _)| *first).count(), 1);
    let (record, _, epoch) = revocations[0].clone();
    assert!(revocations.iter().all(|other| other.0 == record && other.2 == epoch), "all say the same");
    assert!(matches!(&record.state, KeyState::Revoked { by, reason, .. } if by.as_str() == "boss" && &**reason == "leaked"));
    assert_eq!(find(&store, &keys[0]).await.record, Some(record));
    assert!(matches!(store.create(new_key("firm-1", "ann")).await, Ok(Creation::Created(..))));
    assert!(matches!(store.create(new_key("firm-1", "ann")).await, Ok(Creation::CreatorFull)), "one place, not two");
    let records = log(&store, ActivityQuery { action: Some(Action::Revoke), ..all("firm-1") }).await;
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].key_id, &*records[0].key_name, &*records[0].key_prefix), (keys[0].id, keys[0].name.as_str(), &*keys[0].prefix));
}

async fn another_firms_key_is_not_found(subject: &Subject) {
    let store = subject.open();
    let (key, epoch) = created(&store, new_key("firm-1", "ann")).await;
    assert!(store.key(firm("firm-1"), key.id).await.unwrap().is_some());
    assert!(store.key(firm("firm-2"), key.id).await.unwrap().is_none());
    assert!(store.keys(firm("firm-2")).await.unwrap().is_empty());
    let foreign = RevokeRequest { firm: firm("firm-2"), ..revocation(&key) };
    assert!(matches!(store.revoke(foreign).await, Ok(Revocation::NotFound)));
    let unknown = RevokeRequest { key: KeyId::new(Uuid::from_u128(9)), ..revocation(&key) };
    assert!(matches!(store.revoke(unknown).await, Ok(Revocation::NotFound)));
    let found = find(&store, &key).await;
    assert_eq!((found.record.map(|record| record.state), found.epoch), (Some(KeyState::Live), epoch));
}

async fn each_change_raises_the_epoch_by_one_and_is_told(subject: &Subject) {
    let store = subject.open();
    let start = renew(&store, Epoch(u64::MAX)).await.epoch;
    let (first, after_first) = created(&store, new_key("firm-1", "ann")).await;
    let (_, after_second) = created(&store, new_key(&neighbour(&store).await, "ann")).await;
    let (_, _, after_revoke) = revoked(&store, &first).await;
    let (_, _, after_again) = revoked(&store, &first).await;
    let steps = [after_first, after_second, after_revoke, after_again].map(|epoch| epoch.0 - start.0);
    assert_eq!(steps, [1, 2, 3, 3]);
    let told = |renewal: Renewal| match renewal.news {
        Invalidations::Revoked(digests) => (renewal.epoch, digests),
        Invalidations::Flush => panic!("three changes are not too many"),
    };
    assert_eq!(told(renew(&store, start).await), (after_revoke, vec![first.digest]));
    assert_eq!(told(renew(&store, after_second).await), (after_revoke, vec![first.digest]));
    assert_eq!(told(renew(&store, after_revoke).await), (after_revoke, vec![]));
    let (_, after_third) = created(&store, new_key("firm-1", "ann")).await;
    assert_eq!(told(renew(&store, after_revoke).await), (after_third, vec![]), "a creation is not told, only counted");
    let found = store.find(FirmTag::of(&firm("firm-1")), unknown_digest()).await.unwrap();
    assert_eq!((found.record, found.epoch), (None, after_third), "not found is true at an epoch too");
}

async fn what_was_answered_survives(subject: &Subject) {
    let store = subject.open();
    let (live, _) = created(&store, new_key("firm-1", "ann")).await;
    let (dead, _) = created(&store, new_key("firm-1", "ann")).await;
    let (dead, _, epoch) = revoked(&store, &dead).await;
    let spool = Uuid::from_u128(77);
    ship(&store, spool, uses(1..=5)).await.unwrap();
    let before = log(&store, all("firm-1")).await;
    drop(store);
    let store = subject.open();
    assert_eq!(find(&store, &live).await.record, Some(live.clone()));
    let found = find(&store, &dead).await;
    assert_eq!((found.record, found.epoch), (Some(dead), epoch));
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(5));
    assert_eq!(log(&store, all("firm-1")).await, before);
    assert_eq!(before.len(), 3 + 5);
    assert_eq!(created(&store, new_key("firm-1", "ann")).await.1, Epoch(epoch.0 + 1));
}

/// Uses of one key, a millisecond apart, in the order of their sequence.
pub(super) fn uses(sequences: RangeInclusive<u64>) -> Vec<AuditRecord> {
    sequences
        .map(|sequence| {
            let mut record = AuditRecord::example(u128::from(sequence) + 1_000);
            record.time = record.time.plus(Duration::from_millis(sequence));
            record.sequence = NonZeroU64::new(sequence);
            record
        })
        .collect()
}

/// The same of nine firms in turn, so that several partitions have some.
pub(super) fn uses_of_nine_firms(sequences: RangeInclusive<u64>) -> Vec<AuditRecord> {
    let mut records = uses(sequences);
    for record in &mut records {
        record.firm_id = firm(&format!("firm-{}", record.sequence.unwrap().get() % 9));
    }
    records
}

pub(super) fn written(records: Vec<AuditRecord>) -> Vec<WrittenRecord> {
    records.into_iter().map(WrittenRecord::from).collect()
}

pub(super) async fn ship(store: &Arc<dyn Store>, spool: Uuid, records: Vec<AuditRecord>) -> Result<Sequence, StoreError> {
    store.ship(AuditBatch { spool, records: written(records), lost_up_to: None, age_max: None }).await
}

pub(super) fn all(firm_id: &str) -> ActivityQuery {
    let order = ActivityOrder::NewestFirst { after: None };
    ActivityQuery { firm: firm(firm_id), key: None, action: None, since: None, until: None, limit: 10_000, order }
}

pub(super) async fn log(store: &Arc<dyn Store>, query: ActivityQuery) -> Vec<AuditRecord> {
    store.activity(query).await.unwrap().records
}

async fn records_are_taken_exactly_once_and_in_order(subject: &Subject) {
    let store = subject.open();
    let spool = Uuid::from_u128(7);
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(0));
    assert_eq!(ship(&store, spool, uses(1..=10)).await.unwrap(), Sequence(10));
    assert_eq!(ship(&store, spool, uses(1..=10)).await.unwrap(), Sequence(10), "a repeat");
    assert_eq!(ship(&store, spool, uses(8..=15)).await.unwrap(), Sequence(15), "an overlap");
    let mut disguised = uses(1..=15);
    disguised.iter_mut().for_each(|record| record.event_id = clock::fresh_uuid());
    assert_eq!(ship(&store, spool, disguised).await.unwrap(), Sequence(15), "a sequence is taken once, whatever it says");
    assert!(matches!(ship(&store, spool, uses(17..=20)).await, Err(StoreError::Corrupt(_))), "a gap before");
    let mut torn = uses(16..=20);
    torn.remove(2);
    assert!(matches!(ship(&store, spool, torn).await, Err(StoreError::Corrupt(_))), "a gap within");
    let mut unnumbered = uses(16..=16);
    unnumbered[0].sequence = None;
    assert!(matches!(ship(&store, spool, unnumbered).await, Err(StoreError::Corrupt(_))));
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(15), "a refused batch leaves nothing");
    let mut expected = uses(1..=15);
    expected.reverse();
    assert_eq!(log(&store, all("firm-1")).await, expected);
    drop(store);
    let store = subject.open();
    assert_eq!(ship(&store, spool, uses(1..=16)).await.unwrap(), Sequence(16));
    assert_eq!(log(&store, all("firm-1")).await.len(), 16);
}

async fn a_hole_is_passed_over_only_where_the_spool_says_that_it_lost_the_records(subject: &Subject) {
    let store = subject.open();
    let spool = Uuid::from_u128(7);
    let ship_behind = async |lost: u64, records| {
        let batch = AuditBatch { spool, records: written(records), lost_up_to: Some(Sequence(lost)), age_max: None };
        store.ship(batch).await
    };
    assert_eq!(ship(&store, spool, uses_of_nine_firms(1..=10)).await.unwrap(), Sequence(10));
    assert!(matches!(ship(&store, spool, uses_of_nine_firms(31..=40)).await, Err(StoreError::Corrupt(_))), "nothing is said of 11 to 30");
    assert!(matches!(ship_behind(29, uses_of_nine_firms(31..=40)).await, Err(StoreError::Corrupt(_))), "nothing is said of 30");
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(10), "a refused batch leaves nothing");
    for _ in 0..2 {
        assert_eq!(ship_behind(30, uses_of_nine_firms(31..=40)).await.unwrap(), Sequence(40));
    }
    assert_eq!(ship_behind(30, uses_of_nine_firms(41..=42)).await.unwrap(), Sequence(42), "nothing is lost that the log holds");
    assert_eq!(ship_behind(50, vec![]).await.unwrap(), Sequence(50), "the spool may hold nothing at all");
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(50));
    assert_eq!(ship(&store, spool, uses_of_nine_firms(51..=54)).await.unwrap(), Sequence(54));
    assert!(matches!(ship(&store, spool, uses_of_nine_firms(56..=56)).await, Err(StoreError::Corrupt(_))), "said once, for that hole");
    let mut taken = Vec::new();
    for number in 0..9 {
        taken.extend(log(&store, all(&format!("firm-{number}"))).await.iter().map(|record| record.sequence.unwrap().get()));
    }
    taken.sort_unstable();
    assert_eq!(taken, (1..=10).chain(31..=42).chain(51..=54).collect::<Vec<_>>());
}

async fn records_of_many_firms_are_taken_as_one_sequence(subject: &Subject) {
    let store = subject.open();
    let spool = Uuid::from_u128(7);
    assert_eq!(ship(&store, spool, uses_of_nine_firms(1..=40)).await.unwrap(), Sequence(40));
    assert_eq!(ship(&store, spool, uses_of_nine_firms(30..=41)).await.unwrap(), Sequence(41), "an overlap");
    assert!(
        matches!(ship(&store, spool, uses_of_nine_firms(43..=60)).await, Err(StoreError::Corrupt(_))),
        "a gap before, whoever has records"
    );
    assert!(matches!(ship(&store, spool, uses_of_nine_firms(43..=43)).await, Err(StoreError::Corrupt(_))));
    assert_eq!(ship(&store, spool, uses_of_nine_firms(42..=90)).await.unwrap(), Sequence(90));
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(90));
    for number in 0..9 {
        let found = log(&store, all(&format!("firm-{number}"))).await;
        assert!(found.iter().all(|record| record.sequence.unwrap().get() % 9 == number), "a firm's log has its own records only");
        assert_eq!(found.len(), 10);
    }
}

async fn every_partition_has_its_own_epoch_and_firms_stay_in_theirs(subject: &Subject) {
    let store = subject.open();
    let mut changes = vec![0; usize::from(store.partitions())];
    for number in 0..24 {
        let (firm_id, key) = (format!("firm-{number}"), new_key(&format!("firm-{number}"), "ann"));
        let Creation::Created(record, partition, epoch) = store.create(key).await.unwrap() else { panic!("not created") };
        changes[usize::from(partition.0)] += 1;
        assert_eq!(epoch, Epoch(changes[usize::from(partition.0)]), "only its own partition's changes count");
        assert_eq!((find(&store, &record).await.partition, home(&store, &firm_id).await), (partition, partition));
        assert_eq!(store.keys(firm(&firm_id)).await.unwrap().len(), 1);
    }
    assert!(changes.iter().all(|changes| *changes > 0), "every partition has firms: {changes:?}");
}

async fn pages_have_no_gap_and_no_repeat_while_the_log_grows(subject: &Subject) {
    let store = subject.open();
    ship(&store, Uuid::from_u128(1), uses(1..=100)).await.unwrap();
    let (mut seen, mut after, mut shipped) = (Vec::new(), None, 100);
    loop {
        let query = ActivityQuery { limit: 7, order: ActivityOrder::NewestFirst { after }, ..all("firm-1") };
        let page = store.activity(query).await.unwrap();
        assert_eq!(page.more, seen.len() + page.records.len() < 100);
        after = page.records.last().map(|last| ActivityPlace { time: last.time, event: last.event_id });
        seen.extend(page.records);
        shipped += 1;
        ship(&store, Uuid::from_u128(1), uses(shipped..=shipped)).await.unwrap();
        if !page.more {
            break;
        }
    }
    let mut expected = uses(1..=100);
    expected.reverse();
    assert_eq!(seen, expected);
}

async fn filters_select_exactly(subject: &Subject) {
    let store = subject.open();
    let (key, _) = created(&store, new_key("firm-1", "ann")).await;
    created(&store, new_key("firm-1", "ann")).await;
    let mut records = uses(1..=20);
    records.iter_mut().skip(10).for_each(|record| record.key_id = key.id);
    ship(&store, Uuid::from_u128(1), records.clone()).await.unwrap();
    let number = async |query: ActivityQuery| log(&store, query).await.len();
    assert_eq!(number(all("firm-1")).await, 22);
    assert_eq!(number(all("firm-2")).await, 0);
    assert_eq!(number(ActivityQuery { key: Some(key.id), ..all("firm-1") }).await, 11);
    assert_eq!(number(ActivityQuery { key: Some(key.id), ..all("firm-2") }).await, 0, "another firm's key has no log");
    assert_eq!(number(ActivityQuery { key: Some(key.id), action: Some(Action::Use), ..all("firm-1") }).await, 10);
    assert_eq!(number(ActivityQuery { key: Some(key.id), action: Some(Action::Create), ..all("firm-1") }).await, 1);
    assert_eq!(number(ActivityQuery { action: Some(Action::Create), ..all("firm-1") }).await, 2);
    assert_eq!(number(ActivityQuery { action: Some(Action::Revoke), ..all("firm-1") }).await, 0);
    let (since, until) = (Some(records[4].time), Some(records[14].time));
    let between = ActivityQuery { since, until, ..all("firm-1") };
    assert_eq!(number(between.clone()).await, 10, "from since on, but before until");
    assert_eq!(number(ActivityQuery { key: Some(key.id), ..between.clone() }).await, 4);
    assert_eq!(number(ActivityQuery { since: until, until: since, ..all("firm-1") }).await, 0);
    let order = ActivityOrder::NewestFirst { after: Some(ActivityPlace { time: records[9].time, event: records[9].event_id }) };
    assert_eq!(number(ActivityQuery { order, ..between }).await, 5, "the cursor and the filters together");
}

/// Times that go back and forth within seconds and often meet, as those of slow and quick requests do.
async fn records_whose_times_are_mixed_are_told_newest_first_and_once(subject: &Subject) {
    let store = subject.open();
    let mut records = uses(1..=300);
    for (number, record) in (1_u64..).zip(&mut records) {
        record.time = record.time.plus(Duration::from_millis(number * 7_919 % 2_003 / 40 * 40));
        record.key_id = KeyId::new(Uuid::from_u128(u128::from(number % 3)));
    }
    for batch in records.chunks(17) {
        ship(&store, Uuid::from_u128(1), batch.to_vec()).await.unwrap();
    }
    let place = |record: &AuditRecord| ActivityPlace { time: record.time, event: record.event_id };
    let paged = async |query: ActivityQuery| {
        let (mut seen, mut after): (Vec<AuditRecord>, _) = (Vec::new(), None);
        loop {
            let page = store.activity(ActivityQuery { order: ActivityOrder::NewestFirst { after }, ..query.clone() }).await.unwrap();
            after = page.records.last().map(place);
            seen.extend(page.records);
            if !page.more {
                return seen;
            }
        }
    };
    let mut expected = records.clone();
    expected.sort_by_key(|record| std::cmp::Reverse(place(record)));
    assert_eq!(paged(ActivityQuery { limit: 7, ..all("firm-1") }).await, expected);
    let (key, since, until) = (records[0].key_id, expected[250].time, expected[50].time);
    expected.retain(|record| record.key_id == key && record.time >= since && record.time < until);
    assert!(expected.len() > 50);
    let query = ActivityQuery { key: Some(key), since: Some(since), until: Some(until), limit: 11, ..all("firm-1") };
    assert_eq!(paged(query).await, expected);
    let (mut arrived, mut arrival) = (Vec::new(), 0);
    loop {
        let order = ActivityOrder::Arrival { after: Some(arrival) };
        let page = store.activity(ActivityQuery { order, ..all("firm-1") }).await.unwrap();
        arrived.extend(page.records);
        arrival = page.arrival;
        if !page.more {
            break;
        }
    }
    assert!(arrived.chunks(17).zip(records.chunks(17)).all(|(told, shipped)| {
        told.iter().map(place).collect::<std::collections::BTreeSet<_>>() == shipped.iter().map(place).collect()
    }));
    arrived.sort_by_key(place);
    records.sort_by_key(place);
    assert_eq!(arrived, records);
}

async fn followers_miss_no_late_record(subject: &Subject) {
    let store = subject.open();
    ship(&store, Uuid::from_u128(1), uses(1..=3)).await.unwrap();
    let follow = async |after, limit| {
        let page = store.activity(ActivityQuery { limit, order: ActivityOrder::Arrival { after }, ..all("firm-1") }).await.unwrap();
        (page.records.iter().map(|record| record.event_id.as_u128()).collect::<Vec<_>>(), page.more, page.arrival)
    };
    let (none, more, mut arrival) = follow(None, 10).await;
    assert_eq!((none, more), (vec![], false), "begins at the end");
    let mut late = uses(1..=4);
    for (record, event) in late.iter_mut().zip(1..) {
        record.event_id = Uuid::from_u128(event);
        record.time = record.time.minus(Duration::from_secs(3600));
    }
    ship(&store, Uuid::from_u128(2), late).await.unwrap();
    created(&store, new_key("firm-2", "ann")).await;
    let mut seen = Vec::new();
    loop {
        let (events, more, next) = follow(Some(arrival), 3).await;
        seen.extend(events);
        arrival = next;
        if !more {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4]);
    assert_eq!(follow(Some(arrival), 3).await, (vec![], false, arrival));
}

async fn old_records_are_trimmed(subject: &Subject) {
    let store = subject.open();
    let mut records = uses(1..=100);
    let now = clock::wall_now();
    for (place, record) in records.iter_mut().enumerate() {
        record.firm_id = firm(if place % 2 == 0 { "firm-1" } else { "firm-2" });
        record.time = if place < 50 { now.minus(Duration::from_secs(1_000)) } else { now };
    }
    ship(&store, Uuid::from_u128(1), records).await.unwrap();
    assert_eq!(log(&store, all("firm-1")).await.len(), 50);
    let trimming = AuditBatch { spool: Uuid::from_u128(1), records: vec![], lost_up_to: None, age_max: Some(Duration::from_secs(500)) };
    assert_eq!(store.ship(trimming).await.unwrap(), Sequence(100));
    for firm_id in ["firm-1", "firm-2"] {
        let left = log(&store, all(firm_id)).await;
        assert_eq!(left.len(), 25);
        assert!(left.iter().all(|record| record.time == now));
        let of_key = ActivityQuery { key: Some(left[0].key_id), ..all(firm_id) };
        assert_eq!(log(&store, of_key).await.len(), 25);
        let arrivals = ActivityQuery { order: ActivityOrder::Arrival { after: Some(0) }, ..all(firm_id) };
        assert_eq!(log(&store, arrivals).await.len(), 25);
    }
}

async fn uses_are_told_of_keys(subject: &Subject) {
    let store = subject.open();
    let (key, _) = created(&store, new_key("firm-1", "ann")).await;
    let view = async || store.key(firm("firm-1"), key.id).await.unwrap().unwrap();
    assert_eq!((view().await.last_use, view().await.seen_with), (None, vec![]));
    let now = clock::wall_now();
    let mut records = uses(1..=4);
    for (record, age) in records.iter_mut().zip([2, 1, 0, 40 * 86_400]) {
        record.key_id = key.id;
        record.time = now.minus(Duration::from_secs(age));
    }
    records[0].user_agent = Some("zapier/2 (x)".into());
    records[0].client_ip = Some("203.0.113.9".into());
    records[2].outcome = Outcome::Refused("route_denied");
    records[3].user_agent = Some("ancient/1".into());
    ship(&store, Uuid::from_u128(1), records.clone()).await.unwrap();
    let last_use = LastUse { at: records[1].time, user_agent: Some("curl/8".into()), client_ip: Some("127.0.0.1".into()) };
    assert_eq!(view().await.last_use, Some(last_use.clone()), "the newest that was allowed");
    assert_eq!(view().await.seen_with, ["tool:curl", "tool:zapier", "network:127.0.0.0/24", "network:203.0.113.0/24"]);
    assert_eq!(store.keys(firm("firm-1")).await.unwrap()[0].last_use, Some(last_use));
}

async fn uses_are_counted_by_the_hour_of_a_day(subject: &Subject) {
    let store = subject.open();
    let (key, _) = created(&store, new_key("firm-1", "ann")).await;
    let now = hour_of(clock::wall_now());
    let used = async |sequences: RangeInclusive<u64>, hour: u64| {
        let mut records = uses(sequences);
        for record in &mut records {
            record.key_id = key.id;
            record.time = Timestamp::from_micros(i64::try_from(hour * 3_600_000_000).unwrap() + 5);
        }
        records[0].outcome = Outcome::Refused("rate_limited");
        ship(&store, Uuid::from_u128(1), records).await.unwrap();
        store.key(firm("firm-1"), key.id).await.unwrap().unwrap().hours.iter().map(|hour| (hour.hour, hour.count)).collect::<Vec<_>>()
    };
    assert_eq!(used(1..=4, now - 23).await, [(now - 23, 3)], "what was refused is no use");
    assert_eq!(used(5..=7, now).await, [(now - 23, 3), (now, 2)]);
    assert_eq!(used(8..=9, now - 23).await, [(now - 23, 4), (now, 2)], "records may come late");
    assert_eq!(used(10..=12, now + 1).await, [(now, 2), (now + 1, 2)], "the oldest hour has left the day");
    assert_eq!(used(13..=14, now - 23).await, [(now, 2), (now + 1, 2)], "and what comes too late does not bring it back");
}

async fn the_newest_word_on_a_user_is_kept(subject: &Subject) {
    let store = subject.open();
    let known = |user: &str, seconds: i64, standing: Standing| KnownUser {
        user: UserId::parse(user).unwrap(),
        name: Some("Né \"Ann\"".into()),
        standing,
        permissions: FrozenPermissions::freeze(["View clients"]),
        as_of: Timestamp::from_micros(seconds * 1_000_000),
    };
    let users = async |firm_id: &str| {
        let mut users = store.users(firm(firm_id)).await.unwrap();
        users.sort_by_key(|known| known.user.to_string());
        users
    };
    assert!(users("firm-1").await.is_empty());
    for user in [known("ann", 10, Standing::Active), known("ann", 20, Standing::Left), known("ann", 15, Standing::Active)] {
        store.note_user(firm("firm-1"), user).await.unwrap();
    }
    store.note_user(firm("firm-1"), known("bob", 1, Standing::Active)).await.unwrap();
    assert_eq!(users("firm-1").await, [known("ann", 20, Standing::Left), known("bob", 1, Standing::Active)]);
    assert!(users("firm-2").await.is_empty());
    store.note_user(firm("firm-1"), known("ann", 20, Standing::Active)).await.unwrap();
    assert_eq!(users("firm-1").await[0].standing, Standing::Active, "the later of two of one second");
}

/// Takes permits and uses them all until the window is full; answers how many there were and when there will be more.
async fn exhaust(store: &Arc<dyn Store>, key: KeyId, limit: u32, want: u32) -> (u32, Duration) {
    let (mut taken, mut reports) = (0, Vec::new());
    loop {
        match permits(store, key, limit, want, std::mem::take(&mut reports)).await {
            Permits::Granted { id, count, .. } => {
                taken += count;
                reports.push(GrantReport { id, uses: vec![Duration::ZERO; count as usize] });
            }
            Permits::Full { retry_after } => return (taken, retry_after),
        }
    }
}

async fn permits(store: &Arc<dyn Store>, key: KeyId, limit: u32, want: u32, reports: Vec<GrantReport>) -> Permits {
    permits_as(store, key, limit, Wanted { soon: want, long: 0 }, reports).await
}

async fn permits_as(store: &Arc<dyn Store>, key: KeyId, limit: u32, want: Wanted, reports: Vec<GrantReport>) -> Permits {
    let tag = FirmTag::of(&firm("firm-1"));
    store.permits(PermitRequest { tag, key, limit, want, reports, store: StoreIncarnation::default() }).await.unwrap()
}

async fn a_window_grants_exactly_its_limit(subject: &Subject) {
    let store = subject.open();
    let (alone, shared) = (KeyId::new(Uuid::from_u128(1)), KeyId::new(Uuid::from_u128(2)));
    let (taken, retry_after) = exhaust(&store, alone, 1_000, 64).await;
    assert_eq!(taken, 1_000);
    assert!(retry_after > Duration::from_secs(50) && retry_after <= Duration::from_secs(60), "{retry_after:?}");
    let all_at_once = join_all((0..8).map(|_| exhaust(&store, shared, 1_000, 20))).await;
    assert_eq!(all_at_once.iter().map(|(taken, _)| taken).sum::<u32>(), 1_000, "keys do not share, askers do");
}

async fn a_late_report_gives_back_what_was_not_used(subject: &Subject) {
    let store = subject.open();
    let key = KeyId::new(Uuid::from_u128(1));
    let Permits::Granted { id, count: 4, remaining: 60, reset, .. } = permits(&store, key, 64, 9, vec![]).await else {
        panic!("a sixteenth of 64 is 4");
    };
    assert!(reset <= Duration::from_secs(60));
    let report = GrantReport { id, uses: vec![Duration::ZERO] };
    let Permits::Granted { count: 1, remaining: 62, .. } = permits(&store, key, 64, 1, vec![report.clone()]).await else {
        panic!("three of four came back");
    };
    let Permits::Granted { remaining: 61, .. } = permits(&store, key, 64, 1, vec![report]).await else {
        panic!("a repeated report changes nothing");
    };
}

async fn a_grant_lives_long_only_where_it_leaves_half_of_the_limit_free(subject: &Subject) {
    let store = subject.open();
    let (key, want) = (KeyId::new(Uuid::from_u128(1)), Wanted { soon: 2, long: 40 });
    let (mut taken, mut reports, mut lives) = (0, Vec::new(), Vec::new());
    loop {
        match permits_as(&store, key, 640, want, std::mem::take(&mut reports)).await {
            Permits::Granted { id, count, life, remaining, .. } => {
                taken += count;
                let is_far = life == GRANT_LIFE_LONG;
                assert!(
                    is_far && remaining >= 320 && count > 2 || life == GRANT_LIFE && count <= 2,
                    "{count} for {life:?}, {remaining} left"
                );
                lives.push(is_far);
                reports.push(GrantReport { id, uses: vec![Duration::from_millis(1); count as usize] });
            }
            Permits::Full { retry_after } => {
                assert!(retry_after <= Duration::from_secs(61), "what is reported does not wait for the end of a life: {retry_after:?}");
                break;
            }
        }
    }
    assert_eq!(taken, 640);
    let far = lives.iter().filter(|is_far| **is_far).count();
    assert!((8..20).contains(&far) && lives.iter().is_sorted_by(|one, other| one >= other), "first the long ones: {far}");
    let open = KeyId::new(Uuid::from_u128(2));
    permits_as(&store, open, 32, Wanted { soon: 1, long: 2 }, vec![]).await;
    let (_, retry_after) = exhaust(&store, open, 32, 1).await;
    assert!(retry_after <= Duration::from_secs(61), "those that are reported are free first");
    let lowered = permits_as(&store, open, 1, Wanted { soon: 1, long: 2 }, vec![]).await;
    let Permits::Full { retry_after } = lowered else { panic!("a lower limit is over") };
    assert!(retry_after > Duration::from_secs(70), "the long one counts until its end and a window: {retry_after:?}");
}

async fn firms_whose_names_begin_alike_are_kept_apart(subject: &Subject) {
    let store = subject.open();
    let names = ["f", "ff", "f~", "f\"", "F"];
    for name in names {
        created(&store, new_key(name, "ann")).await;
    }
    for name in names {
        let views = store.keys(firm(name)).await.unwrap();
        assert_eq!(views.iter().map(|view| view.record.firm_id.as_str()).collect::<Vec<_>>(), [name]);
        assert_eq!(log(&store, all(name)).await.len(), 1);
    }
}

/// Where the store is in this process there are no sessions, and then nothing to forget.
async fn sessions_are_told_and_forgotten_only_as_they_were_seen(subject: &Subject) {
    let store = subject.open();
    let (_, epoch) = created(&store, new_key("firm-1", "ann")).await;
    assert_eq!(renew(&store, Epoch(epoch.0 + 7)).await.store, renew(&store, epoch).await.store);
    let here = home(&store, "firm-1").await;
    let sessions = store.sessions(here).await.unwrap().all;
    let Some(seen) = sessions.first().cloned() else { return };
    assert_eq!((sessions.len(), seen.replica.as_str(), seen.incarnation, seen.applied), (1, "replica-1", Uuid::from_u128(1), epoch));
    renew(&store, Epoch(epoch.0 + 7)).await;
    store.forget(here, vec![seen.clone()]).await.unwrap();
    let renewed = store.sessions(here).await.unwrap().all;
    assert_eq!(renewed.len(), 1, "it has renewed since");
    assert_eq!((renewed[0].renewals, renewed[0].applied), (seen.renewals + 1, Epoch(0)), "an epoch that was never is no confirmation");
    store.forget(here, renewed).await.unwrap();
    assert!(store.sessions(here).await.unwrap().all.is_empty());
}

async fn a_lost_revocation_is_made_again(subject: &Subject) {
    let store = subject.open();
    let (key, _) = created(&store, new_key("firm-1", "ann")).await;
    let (_, _, epoch) = revoked(&store, &key).await;
    store.reassert(home(&store, "firm-1").await, vec![key.digest, unknown_digest()]).await.unwrap();
    let found = find(&store, &key).await;
    assert_eq!(found.epoch, epoch, "what is known is not said twice");
    assert!(matches!(found.record.unwrap().state, KeyState::Revoked { by, .. } if by.as_str() == "boss"));
}

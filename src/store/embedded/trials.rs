//! What the log costs, measured by hand: a million records shipped, and pages of a log of ten million.
//!
//! ```text
//! cargo test --release --lib store::embedded::trials -- --ignored --nocapture --test-threads 1
//! ```
//!
//! The CPU time is that of the writer's thread alone, as the kernel counts it, so neither the making of the records nor
//! other work on the machine is in it. The second trial needs 12 GB of disk and a few minutes; `TMPDIR` says where.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::EmbeddedStore;
use crate::clock;
use crate::domain::{Action, AuditRecord, FirmId, KeyId, Outcome, Sequence, Timestamp, WrittenRecord};
use crate::store::{ActivityOrder, ActivityPlace, ActivityQuery, AuditBatch, Store};

const KEYS: u64 = 64;
/// 60,000 records a second.
const PAUSE: Duration = Duration::from_micros(16);
/// The longest that a page may take.
const PAGE_WAIT_MAX: Duration = Duration::from_millis(50);
/// Most CPU time of the writer for each record at the largest batches that the shipper makes.
const RECORD_COST_MAX: Duration = Duration::from_micros(4);

/// A log that grows by batches of uses, each key's in turn.
struct Traffic {
    store: Arc<EmbeddedStore>,
    begun: Timestamp,
    firms: u64,
    batch: u64,
    last: u64,
}

impl Traffic {
    fn new(folder: &Path, firms: u64, batch: u64) -> Self {
        Self { store: EmbeddedStore::open(folder).unwrap(), begun: clock::wall_now(), firms, batch, last: 0 }
    }

    fn firm(&self, number: u64) -> FirmId {
        FirmId::parse(&format!("firm-{}", number % self.firms)).unwrap()
    }

    fn key(number: u64) -> KeyId {
        KeyId::new(Uuid::from_u128(u128::from(number % KEYS + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
    }

    fn time(&self, number: u64) -> Timestamp {
        self.begun.plus(PAUSE * u32::try_from(number).unwrap())
    }

    fn record(&self, number: u64) -> WrittenRecord {
        let mut record = AuditRecord::example(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        record.time = self.time(number);
        record.firm_id = self.firm(number);
        record.key_id = Self::key(number);
        record.actor = record.key_id.to_string();
        record.traceparent = Some(format!("00-{}-00f067aa0ba902b7-01", record.event_id.simple()));
        record.user_agent = Some("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126.0.0.0".into());
        record.sequence = NonZeroU64::new(number);
        record.outcome = if number.is_multiple_of(10) { Outcome::Refused("route_denied") } else { Outcome::Allowed };
        record.into()
    }

    async fn grow_to(&mut self, records: u64) {
        while self.last < records {
            let numbers = self.last + 1..=(self.last + self.batch).min(records);
            let batch = AuditBatch {
                spool: Uuid::from_u128(1),
                records: numbers.clone().map(|number| self.record(number)).collect(),
                lost_up_to: None,
                age_max: Some(Duration::from_secs(86_400)),
            };
            assert_eq!(self.store.ship(batch).await.unwrap(), Sequence(*numbers.end()));
            self.last = *numbers.end();
        }
    }

    /// Asks for a page twice, so that a page of the file that nobody has read yet is in the times too; answers the worse.
    async fn page(&self, query: ActivityQuery) -> (usize, Duration) {
        let mut worst = (0, Duration::ZERO);
        for _ in 0..2 {
            let begun = clock::boot_now();
            let page = self.store.activity(query.clone()).await.unwrap();
            worst = worst.max((page.records.len(), clock::boot_now().since(begun)));
        }
        worst
    }
}

/// CPU time of the thread that writes, from the kernel's count in nanoseconds.
fn writer_cpu() -> Duration {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let writer = threads.into_iter().find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "store-writer"));
    let counts = fs::read_to_string(writer.unwrap().join("schedstat")).unwrap();
    Duration::from_nanos(counts.split(' ').next().unwrap().parse().unwrap())
}

fn all(firm: FirmId) -> ActivityQuery {
    let order = ActivityOrder::NewestFirst { after: None };
    ActivityQuery { firm, key: None, action: None, since: None, until: None, limit: 100, order }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and tells something in a release build only"]
async fn a_record_costs_little() {
    const RECORDS: u64 = 1_000_000;
    for (firms, batch) in [(1, 4096), (64, 4096), (1, 512), (64, 512)] {
        let folder = tempfile::tempdir().unwrap();
        let mut traffic = Traffic::new(folder.path(), firms, batch);
        let begun = clock::boot_now();
        traffic.grow_to(RECORDS).await;
        let (cpu, took) = (writer_cpu() / u32::try_from(RECORDS).unwrap(), clock::boot_now().since(begun));
        let bytes = fs::metadata(folder.path().join("store.redb")).unwrap().len() / RECORDS;
        println!("{firms:3} firms, batches of {batch:4}: {cpu:?} and {bytes} bytes of file for each record; all took {took:?}");
        assert!(cpu <= RECORD_COST_MAX || batch < 4096);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and 12 GB of disk, and tells something in a release build only"]
async fn a_page_of_ten_million_records_is_read_at_once() {
    const RECORDS: u64 = 10_000_000;
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(folder.path(), 2, 1024);
    traffic.grow_to(RECORDS).await;
    println!("made: {:?} of CPU for each record", writer_cpu() / u32::try_from(RECORDS).unwrap());
    let whole = all(traffic.firm(0));
    let middle = traffic.time(RECORDS / 2);
    let after = Some(ActivityPlace { time: middle, event: Uuid::nil() });
    let queries = [
        ("newest", 100, whole.clone()),
        ("after a cursor", 100, ActivityQuery { order: ActivityOrder::NewestFirst { after }, ..whole.clone() }),
        ("of a key", 100, ActivityQuery { key: Some(Traffic::key(2)), ..whole.clone() }),
        ("of a key, until then", 100, ActivityQuery { key: Some(Traffic::key(2)), until: Some(middle), ..whole.clone() }),
        ("of another firm's key", 0, ActivityQuery { key: Some(Traffic::key(1)), limit: 1, ..all(traffic.firm(2)) }),
        ("uses", 100, ActivityQuery { action: Some(Action::Use), until: Some(middle), ..whole.clone() }),
        ("creates", 0, ActivityQuery { action: Some(Action::Create), ..whole.clone() }),
        ("since and until", 100, ActivityQuery { since: Some(middle.minus(Duration::from_secs(1))), until: Some(middle), ..whole.clone() }),
        ("followed", 100, ActivityQuery { order: ActivityOrder::Arrival { after: Some(RECORDS / 2) }, ..whole.clone() }),
    ];
    for (what, number, query) in queries {
        let (found, took) = traffic.page(query).await;
        println!("{what}: {found} records in {took:?}");
        assert!(found == number && took <= PAGE_WAIT_MAX);
    }
}

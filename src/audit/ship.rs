//! Closed records go from the spool into the store's log: in order, in batches, each exactly once.
//!
//! The store keeps the mark: the last sequence of this spool that its log holds. After a start and after every error the
//! mark is asked again and shipping goes on behind it, so that a lost answer neither loses nor repeats a record. Only
//! what has been forced to disk is shipped; see the module above.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::closed::Cursor;
use super::spool::Spool;
use crate::domain::Sequence;
use crate::metrics::Metrics;
use crate::store::{AuditBatch, Store, StoreError};
use crate::tasks;

/// After the first record of a batch, how long others are waited for; a sync and a transaction are paid per batch.
const COLLECT: Duration = Duration::from_millis(20);
/// First and longest pause after a store's error.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long one call of the store may take before it counts as failed.
const CALL_MAX: Duration = Duration::from_secs(10);
/// How long shipping goes on after it was asked to stop; what is left then is shipped at the next start.
const LAST_SHIPMENT_MAX: Duration = Duration::from_secs(5);

/// Ships everything that is closed, once, before the gateway serves.
///
/// # Errors
/// As the store's; nothing is lost, and [`ship`] goes on where this stopped.
pub async fn catch_up(spool: &Arc<Spool>, store: &dyn Store) -> Result<(), StoreError> {
    let mut shipper = Shipper::new(Arc::clone(spool), Destination::store(store), None, spool.core.metrics.clone());
    shipper.ship_all().await.map_err(|error| match error {
        ShipError::Store(error) => error,
        ShipError::Spool(error) => StoreError::Unavailable(error.to_string()),
    })
}

/// Ships the spool into the store until asked to stop, then what is left, for at most 5 s.
pub async fn ship(spool: Arc<Spool>, store: Arc<dyn Store>, age_max: Option<Duration>, metrics: Metrics, stop: CancellationToken) {
    Shipper::new(spool, Destination::store(&*store), age_max, metrics).run(&stop).await;
}

/// The two calls of a store that shipping needs.
struct Destination<'a> {
    mark: Box<dyn Fn(Uuid) -> BoxFuture<'a, Result<Sequence, StoreError>> + Send + Sync + 'a>,
    take: Box<dyn Fn(AuditBatch) -> BoxFuture<'a, Result<Sequence, StoreError>> + Send + Sync + 'a>,
}

impl<'a> Destination<'a> {
    fn store(store: &'a dyn Store) -> Self {
        Self { mark: Box::new(|spool| store.shipped(spool)), take: Box::new(|batch| store.ship(batch)) }
    }
}

#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the audit spool cannot be read: {0}")]
    Spool(#[from] io::Error),
}

/// How much there was to ship.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shipment {
    Nothing,
    Some,
    Full,
}

struct Shipper<'a> {
    spool: Arc<Spool>,
    destination: Destination<'a>,
    age_max: Option<Duration>,
    metrics: Metrics,
    /// `None` when the mark has to be asked.
    cursor: Option<Cursor>,
}

impl<'a> Shipper<'a> {
    fn new(spool: Arc<Spool>, destination: Destination<'a>, age_max: Option<Duration>, metrics: Metrics) -> Self {
        Self { spool, destination, age_max, metrics, cursor: None }
    }

    async fn run(&mut self, stop: &CancellationToken) {
        let mut pause = Pause::default();
        while !stop.is_cancelled() {
            match self.ship_full_batches().await {
                Ok(()) => {
                    pause.succeeded();
                    stop.run_until_cancelled(self.spool.core.ended.notified()).await;
                    stop.run_until_cancelled(tokio::time::sleep(COLLECT)).await;
                }
                Err(error) => drop(stop.run_until_cancelled(tokio::time::sleep(pause.failed(&error))).await),
            }
        }
        if tokio::time::timeout(LAST_SHIPMENT_MAX, self.ship_the_rest()).await.is_err() {
            tracing::warn!("not all audit records could be shipped before the end; they wait in the spool for the next start");
        }
    }

    /// Ships until the last batch was not full: what comes now is worth collecting.
    async fn ship_full_batches(&mut self) -> Result<(), ShipError> {
        while self.ship_batch().await? == Shipment::Full {}
        Ok(())
    }

    /// Ships until nothing is left.
    async fn ship_all(&mut self) -> Result<(), ShipError> {
        while self.ship_batch().await? != Shipment::Nothing {}
        Ok(())
    }

    /// Ships what is left, refusals in their second included, however often the store fails.
    async fn ship_the_rest(&mut self) {
        loop {
            let core = Arc::clone(&self.spool.core);
            let flushed = tasks::blocking(move || core.flush()).await;
            if flushed.is_ok() && self.ship_all().await.is_ok() {
                return;
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
    }

    async fn ship_batch(&mut self) -> Result<Shipment, ShipError> {
        // Taken out, so that after an error, or when this future is dropped, the mark is asked again.
        let from = match self.cursor.take() {
            Some(cursor) => cursor,
            None => self.ask_mark().await?,
        };
        let core = Arc::clone(&self.spool.core);
        let batch = tasks::blocking(move || core.closed_after(from)).await?;
        let Some(last) = batch.records.last() else {
            self.spool.core.note_shipped(batch.next, &self.metrics);
            self.cursor = Some(batch.next);
            return Ok(Shipment::Nothing);
        };
        self.spool.core.log.lock().oldest = batch.records.first().map(|first| first.time);
        let last_sequence = last.sequence.map_or(0, NonZeroU64::get);
        let shipment = if batch.is_full() { Shipment::Full } else { Shipment::Some };
        let records = AuditBatch { spool: self.spool.id(), records: batch.records, age_max: self.age_max };
        let Sequence(mark) = in_time((self.destination.take)(records)).await?;
        if mark < last_sequence {
            let what = format!("it holds the records up to {mark} and was sent those up to {last_sequence}");
            return Err(StoreError::Unavailable(what).into());
        }
        let next = Cursor { sequence: mark, ..batch.next };
        self.spool.core.note_shipped(next, &self.metrics);
        self.cursor = Some(next);
        Ok(shipment)
    }

    /// Asks the store what it holds, and where to go on from there.
    async fn ask_mark(&self) -> Result<Cursor, ShipError> {
        let Sequence(mark) = in_time((self.destination.mark)(self.spool.id())).await?;
        let core = Arc::clone(&self.spool.core);
        let cursor = tasks::blocking(move || core.resume_after(mark)).await?;
        self.spool.core.note_shipped(cursor, &self.metrics);
        Ok(cursor)
    }
}

/// Grows while the store fails. Says so once when it begins and once when it is over.
#[derive(Default)]
struct Pause {
    last: Option<Duration>,
}

impl Pause {
    fn succeeded(&mut self) {
        if self.last.take().is_some() {
            tracing::info!("audit records are shipped again");
        }
    }

    fn failed(&mut self, error: &ShipError) -> Duration {
        if self.last.is_none() {
            tracing::error!(%error, "audit records cannot be shipped; they wait in the spool");
        }
        let pause = self.last.map_or(PAUSE_MIN, |last| (last * 2).min(PAUSE_MAX));
        self.last = Some(pause);
        pause
    }
}

async fn in_time(call: BoxFuture<'_, Result<Sequence, StoreError>>) -> Result<Sequence, StoreError> {
    let late = || StoreError::Unavailable(format!("no answer within {CALL_MAX:?}"));
    tokio::time::timeout(CALL_MAX, call).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::FutureExt;
    use parking_lot::Mutex;

    use super::super::testing::*;
    use super::*;
    use crate::domain::AuditRecord;

    /// How a call ends for the one who made it.
    #[derive(Clone, Copy, Debug)]
    enum Answer {
        Given,
        /// The call never arrived.
        Refused,
        /// The batch was taken, and nobody was told.
        Lost,
    }

    /// A log with the store's rule: what is not behind the mark is skipped.
    #[derive(Default)]
    struct Taken {
        mark: u64,
        records: Vec<AuditRecord>,
        answers: VecDeque<Answer>,
    }

    type Log = Arc<Mutex<Taken>>;

    fn destination(log: &Log) -> Destination<'static> {
        let (asked, told) = (Arc::clone(log), Arc::clone(log));
        let away = || StoreError::Unavailable("away".into());
        let mark = move |_| {
            let mut log = asked.lock();
            let answer = log.answers.pop_front().unwrap_or(Answer::Given);
            let mark = if matches!(answer, Answer::Given) { Ok(Sequence(log.mark)) } else { Err(away()) };
            async move { mark }.boxed()
        };
        let take = move |batch: AuditBatch| {
            let mut log = told.lock();
            let answer = log.answers.pop_front().unwrap_or(Answer::Given);
            if !matches!(answer, Answer::Refused) {
                log.take(batch);
            }
            let mark = if matches!(answer, Answer::Given) { Ok(Sequence(log.mark)) } else { Err(away()) };
            async move { mark }.boxed()
        };
        Destination { mark: Box::new(mark), take: Box::new(take) }
    }

    impl Taken {
        fn take(&mut self, batch: AuditBatch) {
            for record in batch.records {
                let sequence = record.sequence.unwrap().get();
                if sequence > self.mark {
                    self.mark = sequence;
                    self.records.push(record);
                }
            }
        }
    }

    fn shipper(spool: &Arc<Spool>, log: &Log) -> Shipper<'static> {
        Shipper::new(Arc::clone(spool), destination(log), None, Metrics::new())
    }

    fn use_it(spool: &Arc<Spool>, events: std::ops::RangeInclusive<u128>) {
        for event in events {
            spool.begin(&AuditRecord::example(event)).unwrap().finish(AuditRecord::example(event));
        }
    }

    #[tokio::test]
    async fn each_record_is_taken_once_and_in_order_whatever_becomes_of_the_answers() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let log = Log::default();
        use Answer::{Given, Lost, Refused};
        log.lock().answers.extend([Refused, Given, Lost, Lost, Given, Refused, Given, Given, Given, Lost, Refused, Refused, Given, Lost]);
        let mut shipper = shipper(&spool, &log);
        use_it(&spool, 1..=1300);
        let mut failures = 0;
        while shipper.ship_all().await.is_err() {
            failures += 1;
        }
        assert!(failures >= 4, "{failures}");
        assert_eq!(events(&log.lock().records), (1..=1300).collect::<Vec<_>>());
        assert_eq!(sequences(&log.lock().records), (1..=1300).collect::<Vec<_>>());
        assert_eq!(shipper.metrics.audit_shipped.get(), 1300);
        spool.shipped_everything().await;
        assert_eq!(spool.core.log.lock().unshipped_bytes(), 0);
    }

    #[tokio::test]
    async fn shipping_runs_by_itself_and_ships_the_rest_when_it_is_stopped() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let log = Log::default();
        log.lock().answers.extend([Answer::Refused, Answer::Given, Answer::Lost]);
        let stop = CancellationToken::new();
        let mut shipper = shipper(&spool, &log);
        let work = async {
            use_it(&spool, 1..=10);
            spool.shipped_everything().await;
            assert_eq!(log.lock().records.len(), 10);
            use_it(&spool, 11..=20);
            spool.refuse(refusal(21)).unwrap();
            spool.refuse(refusal(21)).unwrap();
            stop.cancel();
        };
        let both = async { tokio::join!(shipper.run(&stop), work) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
        let records = std::mem::take(&mut log.lock().records);
        assert_eq!(events(&records), (1..=20).chain([21, 21]).collect::<Vec<_>>());
        assert_eq!(spool.core.metrics.audit_dropped.get(), 0);
    }

    #[tokio::test]
    async fn a_store_that_forgot_gets_again_what_is_still_held() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let log = Log::default();
        use_it(&spool, 1..=50);
        shipper(&spool, &log).ship_all().await.unwrap();
        log.lock().mark = 20;
        log.lock().records.truncate(20);
        shipper(&spool, &log).ship_all().await.unwrap();
        assert_eq!(events(&log.lock().records), (1..=50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_spool_behind_its_store_numbers_on_where_the_store_is() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let log = Log::default();
        use_it(&spool, 1..=5);
        log.lock().mark = 100;
        shipper(&spool, &log).ship_all().await.unwrap();
        use_it(&spool, 6..=7);
        shipper(&spool, &log).ship_all().await.unwrap();
        assert_eq!(sequences(&log.lock().records), [101, 102]);
        drop(spool);
        use_it(&open(home.path(), 4 * MIB), 8..=8);
        assert_eq!(sequences(&closed(&open(home.path(), 4 * MIB))).last(), Some(&103));
    }

    #[tokio::test]
    async fn a_full_spool_takes_uses_again_when_it_was_shipped_and_one_long_use_does_not_hold_it_back() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let log = Log::default();
        let long = spool.begin(&AuditRecord::example(1_000_000)).unwrap();
        let mut event = 0;
        for _ in 0..6 {
            while let Ok(ticket) = spool.begin(&AuditRecord::example(event)) {
                ticket.finish(AuditRecord::example(event));
                event += 1;
                assert!(event < 100_000, "never full");
            }
            shipper(&spool, &log).ship_all().await.unwrap();
            eventually("there is room again", || spool.begin(&AuditRecord::example(event)).is_ok());
            event += 1;
        }
        assert!(spool.core.log.lock().disk_bytes() <= MIB);
        assert!(!home.path().join("00000000000000000001.seg").exists(), "the long use's first segment is gone");

        for image in [killed(home.path()), unplugged(&spool, home.path())] {
            let at_restart = closed(&open(image.path(), MIB));
            assert_eq!(events(&at_restart).iter().filter(|event| **event == 1_000_000).count(), 1);
        }

        long.finish(AuditRecord::example(1_000_000));
        shipper(&spool, &log).ship_all().await.unwrap();
        let records = &log.lock().records;
        assert_eq!(sequences(records), (1..=records.len() as u64).collect::<Vec<_>>());
        let told: std::collections::HashSet<u128> = events(records).into_iter().collect();
        assert_eq!((told.len(), records.len()), (event as usize + 1, event as usize + 1));
    }

    #[tokio::test]
    async fn a_power_cut_neither_loses_nor_repeats_what_was_synced() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let log = Log::default();
        use_it(&spool, 1..=30);
        let open_then = spool.begin(&AuditRecord::example(31)).unwrap();
        shipper(&spool, &log).ship_all().await.unwrap();
        open_then.finish(AuditRecord::example(31));
        use_it(&spool, 32..=40);
        let image = unplugged(&spool, home.path());

        let again = open(image.path(), 4 * MIB);
        use_it(&again, 41..=45);
        shipper(&again, &log).ship_all().await.unwrap();
        let records = &log.lock().records;
        assert_eq!(events(records), (1..=31).chain(41..=45).collect::<Vec<_>>());
        assert_eq!(sequences(records), (1..=36).collect::<Vec<_>>());
    }

    #[test]
    fn shipping_can_run_as_a_task() {
        fn is_a_task<F: Future<Output = ()> + Send + 'static>(_: impl FnOnce(Arc<Spool>, Arc<dyn Store>) -> F) {}
        is_a_task(|spool, store| ship(spool, store, None, Metrics::new(), CancellationToken::new()));
    }
}

//! Closed records go from the spool into the store's log: in order, in batches, each exactly once.
//!
//! The store keeps the mark: the last sequence of this spool that its log holds. After a start, after every
//! error and whenever the store may have forgotten something, the mark is asked again and shipping goes on behind it, so
//! that neither a lost answer nor a store that was set back loses or repeats a record. Only what has been forced to disk is
//! shipped; see the module above.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::closed::Cursor;
use super::spool::Spool;
use crate::domain::{Sequence, WrittenRecord};
use crate::metrics::Metrics;
use crate::store::{AuditBatch, Store, StoreError};
use crate::tasks;

/// After the first record of a batch, how long others are waited for; two syncs and a transaction are paid per batch, and
/// nobody notices a record so much later. A quarter of it costs 4 % of all time under load.
const COLLECT: Duration = Duration::from_millis(200);
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

/// Ships the spool into the store until asked to stop, then what is left, for at most 5 s. `meetings` moves whenever the
/// store may have forgotten what it took: without that, an idle gateway would not tell it again.
pub async fn ship(
    spool: Arc<Spool>,
    store: Arc<dyn Store>,
    age_max: Option<Duration>,
    metrics: Metrics,
    meetings: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    Shipper::new(spool, Destination::store(&*store), age_max, metrics).run(meetings, &stop).await;
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

    async fn run(&mut self, mut meetings: watch::Receiver<u64>, stop: &CancellationToken) {
        let mut pause = Pause::default();
        while !stop.is_cancelled() {
            match self.ship_full_batches().await {
                Ok(()) => {
                    pause.succeeded();
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.spool.core.ended.notified() => drop(stop.run_until_cancelled(tokio::time::sleep(COLLECT)).await),
                        Ok(()) = meetings.changed() => self.cursor = None,
                    }
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
        if batch.is_empty() {
            self.spool.core.note_shipped(batch.next, &self.metrics);
            self.cursor = Some(batch.next);
            return Ok(Shipment::Nothing);
        }
        if let Some(Sequence(up_to)) = batch.lost_up_to {
            self.spool.core.note_lost(from.sequence, up_to);
        }
        self.spool.core.log.lock().oldest = batch.records.first().and_then(WrittenRecord::time);
        let shipment = if batch.is_full() { Shipment::Full } else { Shipment::Some };
        let (records, lost_up_to, last) = (batch.records, batch.lost_up_to, batch.next.sequence);
        let sent = AuditBatch { spool: self.spool.id(), records, lost_up_to, age_max: self.age_max };
        let Sequence(mark) = in_time((self.destination.take)(sent)).await?;
        if mark < last {
            let what = format!("it holds the records up to {mark} and was sent those up to {last}");
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

    /// A log with the store's rules: what is not behind the mark is skipped, and a gap is refused unless it is said to be lost.
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
            if !matches!(answer, Answer::Refused) && !log.take(batch) {
                return async { Err(StoreError::Corrupt("a gap".into())) }.boxed();
            }
            let mark = if matches!(answer, Answer::Given) { Ok(Sequence(log.mark)) } else { Err(away()) };
            async move { mark }.boxed()
        };
        Destination { mark: Box::new(mark), take: Box::new(take) }
    }

    impl Taken {
        fn take(&mut self, batch: AuditBatch) -> bool {
            self.mark = self.mark.max(batch.lost_up_to.map_or(0, |Sequence(lost)| lost));
            for record in batch.records {
                let record = record.read().unwrap();
                let sequence = record.sequence.unwrap().get();
                if sequence > self.mark + 1 {
                    return false;
                }
                if sequence > self.mark {
                    self.mark = sequence;
                    self.records.push(record);
                }
            }
            true
        }

        /// Forgets what came after a sequence.
        fn forget_after(&mut self, mark: u64) {
            self.mark = mark;
            self.records.retain(|record| record.sequence.unwrap().get() <= mark);
        }
    }

    fn shipper(spool: &Arc<Spool>, log: &Log) -> Shipper<'static> {
        Shipper::new(Arc::clone(spool), destination(log), None, Metrics::new())
    }

    fn no_meetings() -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }

    fn use_it(spool: &Arc<Spool>, events: std::ops::RangeInclusive<u128>) {
        for event in events {
            begin(spool, &AuditRecord::example(event)).unwrap().finish_as(AuditRecord::example(event));
        }
    }

    #[tokio::test]
    async fn each_record_is_taken_once_and_in_order_whatever_becomes_of_the_answers() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 32 * MIB);
        let log = Log::default();
        use Answer::{Given, Lost, Refused};
        log.lock().answers.extend([Refused, Given, Lost, Lost, Given, Refused, Given, Given, Given, Lost, Refused, Refused, Given, Lost]);
        let mut shipper = shipper(&spool, &log);
        use_it(&spool, 1..=10_000);
        let mut failures = 0;
        while shipper.ship_all().await.is_err() {
            failures += 1;
        }
        assert!(failures >= 4, "{failures}");
        assert_eq!(events(&log.lock().records), (1..=10_000).collect::<Vec<_>>());
        assert_eq!(sequences(&log.lock().records), (1..=10_000).collect::<Vec<_>>());
        assert_eq!(shipper.metrics.audit_shipped.get(), 10_000);
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
        let both = async { tokio::join!(shipper.run(no_meetings(), &stop), work) };
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
        log.lock().forget_after(20);
        shipper(&spool, &log).ship_all().await.unwrap();
        assert_eq!(events(&log.lock().records), (1..=50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_neither_the_store_nor_the_spool_holds_any_more_is_counted_and_passed_over() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let log = Log::default();
        let last = 3_000;
        for event in 1..=last {
            use_it(&spool, event..=event);
            if event % 100 == 0 {
                shipper(&spool, &log).ship_all().await.unwrap();
            }
        }
        eventually("the first segments are gone", || spool.core.log.lock().segment(1).is_none());
        use Answer::{Given, Lost, Refused};
        log.lock().forget_after(20);
        log.lock().answers.extend([Given, Refused, Given, Refused]);
        let mut shipper = shipper(&spool, &log);
        while shipper.ship_all().await.is_err() {}
        let kept = sequences(&log.lock().records);
        let first = kept[20];
        assert!(first > 21, "something is lost");
        assert_eq!(kept, (1..=20).chain(first..=last as u64).collect::<Vec<_>>(), "what is still held is told");
        let lost = || spool.core.metrics.audit_dropped.get();
        assert_eq!(lost(), first - 21, "counted once, however often it was told");
        assert_eq!(spool.core.log.lock().unshipped_bytes(), 0);

        log.lock().forget_after(10);
        log.lock().answers.extend([Given, Lost]);
        shipper.cursor = None;
        while shipper.ship_all().await.is_err() {}
        assert_eq!(sequences(&log.lock().records)[9..11], [10, first]);
        assert_eq!(lost(), first - 21 + first - 11, "another loss");
        use_it(&spool, 1..=1);
        shipper.ship_all().await.unwrap();
        assert_eq!(log.lock().mark, last as u64 + 1);
    }

    #[tokio::test]
    async fn a_store_set_back_to_before_an_old_copy_of_the_folder_gets_all_that_the_copy_holds() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let log = Log::default();
        use_it(&spool, 1..=5);
        log.lock().mark = 100;
        shipper(&spool, &log).ship_all().await.unwrap();
        use_it(&spool, 6..=7);
        shipper(&spool, &log).ship_all().await.unwrap();
        log.lock().forget_after(3);
        shipper(&spool, &log).ship_all().await.unwrap();
        assert_eq!(sequences(&log.lock().records), [4, 5, 101, 102]);
        assert_eq!(spool.core.metrics.audit_dropped.get(), 95);
    }

    #[tokio::test]
    async fn a_new_incarnation_of_the_store_is_told_at_once_what_it_forgot() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        let (log, stop, meetings) = (Log::default(), CancellationToken::new(), watch::Sender::new(0));
        use_it(&spool, 1..=50);
        let mut shipper = shipper(&spool, &log);
        let work = async {
            spool.shipped_everything().await;
            log.lock().forget_after(20);
            meetings.send_replace(1);
            while log.lock().records.len() < 50 {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let both = async { tokio::join!(shipper.run(meetings.subscribe(), &stop), work) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
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
        let long = begin(&spool, &AuditRecord::example(1_000_000)).unwrap();
        let mut event = 0;
        for _ in 0..6 {
            while let Ok(ticket) = begin(&spool, &AuditRecord::example(event)) {
                ticket.finish_as(AuditRecord::example(event));
                event += 1;
                assert!(event < 100_000, "never full");
            }
            shipper(&spool, &log).ship_all().await.unwrap();
            eventually("there is room again", || begin(&spool, &AuditRecord::example(event)).is_ok());
            event += 1;
        }
        assert!(spool.core.log.lock().disk_bytes() <= MIB);
        assert!(!home.path().join("00000000000000000001.seg").exists(), "the long use's first segment is gone");

        for image in [killed(home.path()), unplugged(&spool, home.path())] {
            let at_restart = closed(&open(image.path(), MIB));
            assert_eq!(events(&at_restart).iter().filter(|event| **event == 1_000_000).count(), 1);
        }

        long.finish_as(AuditRecord::example(1_000_000));
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
        let open_then = begin(&spool, &AuditRecord::example(31)).unwrap();
        shipper(&spool, &log).ship_all().await.unwrap();
        open_then.finish_as(AuditRecord::example(31));
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
        is_a_task(|spool, store| ship(spool, store, None, Metrics::new(), no_meetings(), CancellationToken::new()));
    }
}

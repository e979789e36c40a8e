//! The spool as requests see it: begin before forwarding, finish at the last byte, refuse without either.
//!
//! `begin` is the only step that may say no. What it returns must be finished; a dropped [`Ticket`] finishes itself
//! with the outcome `unknown`, and a dead process's tickets are finished so at the next start.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use uuid::Uuid;

use super::core::Core;
use super::folder::SpoolError;
use super::keeper::{self, Wake};
use super::log::Begin;
use crate::config;
use crate::domain::{Action, AuditRecord, Outcome, ReplicaId, Sequence, WrittenRecord};
use crate::metrics::Metrics;
use crate::tasks;

/// With `sync: always` BEGINs are synced by those who write them; this bounds how long an END stays in memory.
const ALWAYS_INTERVAL: Duration = Duration::from_secs(1);

/// Why a use cannot be recorded now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit spool is full or cannot be written")]
pub struct SpoolFull;

/// An open spool. Dropping it ends its threads, forces everything to disk and unlocks the folder; that may take as
/// long as the disk does.
#[derive(Debug)]
pub struct Spool {
    pub(super) core: Arc<Core>,
    syncer: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
}

impl Spool {
    /// Opens the folder, making it if need be, locks it, and closes what a former process left open.
    ///
    /// # Errors
    /// When another process uses the folder, when it cannot be read or written, when `size_max` is under 1 MiB, or
    /// when entries that had reached the disk have changed. A full disk is none: then `begin` says no.
    pub fn open(config: &config::Spool, replica: Option<&str>, metrics: &Metrics) -> Result<Arc<Self>, SpoolError> {
        let core = Arc::new(Core::open(config, replica, metrics)?);
        let interval = match config.sync {
            config::SpoolSync::Always => ALWAYS_INTERVAL,
            config::SpoolSync::Every(interval) => interval,
        };
        let mut spool = Self { core: Arc::clone(&core), syncer: Arc::default(), threads: Vec::new() };
        let syncer = Arc::clone(&spool.syncer);
        let unusable = |error| SpoolError::Unusable { path: config.path.clone(), error };
        let kept = Arc::clone(&core);
        spool.threads.push(tasks::thread("audit-keeper", move || keeper::keep(&kept)).map_err(unusable)?);
        spool.threads.push(tasks::thread("audit-syncer", move || keeper::sync(&core, &syncer, interval)).map_err(unusable)?);
        Ok(Arc::new(spool))
    }

    /// The spool's own name, made when the spool was and kept in it.
    pub fn id(&self) -> Uuid {
        self.core.id()
    }

    /// This replica's name: configured, or made with the spool.
    pub fn replica(&self) -> &ReplicaId {
        self.core.replica()
    }

    /// Writes BEGIN and promises room for its END. `known` is what becomes of the use after a crash: a record without an
    /// outcome, of this event alone. When this returns, the entry outlives the process, and with `sync: always` the
    /// machine. Where it has to wait for the disk, the thread's other tasks do not wait with it. Dropped before that, it
    /// leaves no record.
    ///
    /// All tasks that are about to begin at this moment are let do so first, so that one write serves them all.
    ///
    /// # Errors
    /// When there is no room or the disk fails; then nothing is recorded, and the use must not happen.
    pub async fn begin(self: &Arc<Self>, event: Uuid, known: WrittenRecord) -> Result<Ticket, SpoolFull> {
        let opening = self.open_use(event, known)?;
        tokio::task::yield_now().await;
        opening.secure()
    }

    pub(super) fn open_use(self: &Arc<Self>, event: Uuid, known: WrittenRecord) -> Result<Opening, SpoolFull> {
        let begin = self.core.begin(event, &known)?;
        let ticket = Ticket { spool: Arc::clone(self), event, record: known, end_bytes_max: begin.end_bytes_max, state: State::Opening };
        Ok(Opening { ticket, begin })
    }

    /// Records a refusal of a known key; alike ones (key, outcome, reason) within a second become one record with a
    /// count. Without room for it, it is kept in memory and written when there is room.
    ///
    /// # Errors
    /// When there is no room in memory either, for more than 8,192 kinds of refusals; then `audit_dropped` counts it.
    pub fn refuse(&self, record: AuditRecord) -> Result<(), SpoolFull> {
        self.core.refuse(record)
    }

    /// Whether another use could be recorded now; for readiness.
    pub fn has_room(&self) -> bool {
        let log = self.core.log.lock();
        !log.failing && log.has_room(super::entry::BEGIN_BYTES_MAX.saturating_add(super::entry::ENTRY_BYTES_MAX))
    }

    /// Writes all refusals that are still being counted and forces everything to disk. Blocks as long as the disk does.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&self) -> io::Result<()> {
        self.core.flush()
    }

    /// Waits until the store's log holds every record that is closed by now or meanwhile. Has no deadline of its own,
    /// because the store may be away; call [`Spool::flush`] before, or refusals in their second are not waited for.
    pub async fn shipped_everything(&self) {
        let mut shipped = self.core.shipped.subscribe();
        let all = |shipped: &u64| {
            let log = self.core.log.lock();
            *shipped >= log.last_sequence() && !log.has_unwritten()
        };
        // The sender lives as long as the spool, so this ends when the condition is met.
        let _ = shipped.wait_for(all).await;
    }

    /// The last sequence that was given out.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.core.log.lock().last_sequence())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.core.keeper.end();
        self.syncer.end();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the audit spool had panicked");
            }
        }
        if let Err(error) = self.core.flush() {
            tracing::error!(%error, "the audit spool could not be forced to disk at the end");
        }
    }
}

/// An open BEGIN; finishing writes its END. Dropped unfinished, it writes END(unknown).
#[must_use = "dropping a ticket records its use as unknown"]
#[derive(Debug)]
pub struct Ticket {
    spool: Arc<Spool>,
    event: Uuid,
    record: WrittenRecord,
    end_bytes_max: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing happens before the BEGIN is written.
    Opening,
    Open,
    Finished,
}

/// A BEGIN that may not be written yet; dropped, it is withdrawn.
#[derive(Debug)]
pub(super) struct Opening {
    ticket: Ticket,
    begin: Begin,
}

impl Opening {
    /// Sees to it that the BEGIN is written.
    pub(super) fn secure(mut self) -> Result<Ticket, SpoolFull> {
        self.ticket.spool.core.secure(self.ticket.event, self.begin)?;
        self.ticket.state = State::Open;
        Ok(self.ticket)
    }
}

impl Ticket {
    /// Writes END, to which `tell` adds what was not known before: the outcome above all, whose word is `outcome`. Waits
    /// for nothing but the page cache and never fails: its room was promised. Texts that outgrow the promise (1 KiB more
    /// than BEGIN) are cut.
    pub fn finish(mut self, outcome: Outcome, tell: impl FnOnce(&mut WrittenRecord)) {
        tell(&mut self.record);
        self.spool.core.finish(self.event, self.end_bytes_max, &self.record);
        self.spool.core.announce(Action::Use, outcome);
        self.state = State::Finished;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        match self.state {
            State::Opening => self.spool.core.withdraw(self.event),
            State::Open => self.spool.core.abandon(self.event, &self.record),
            State::Finished => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::config::SpoolSync;
    use crate::domain::Outcome;

    fn use_of(event: u128) -> AuditRecord {
        AuditRecord { outcome: Outcome::Unknown, status: None, ..AuditRecord::example(event) }
    }

    #[test]
    fn each_use_leaves_one_record_in_the_order_of_the_ends() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let first = begin(&spool, &use_of(1)).unwrap();
        let second = begin(&spool, &use_of(2)).unwrap();
        second.finish_as(AuditRecord::example(2));
        spool.refuse(refusal(3)).unwrap();
        drop(first);
        let records = closed(&spool);
        assert_eq!(events(&records), [2, 3, 1]);
        assert_eq!(sequences(&records), [1, 2, 3]);
        assert_eq!(records[0], AuditRecord { sequence: records[0].sequence, ..AuditRecord::example(2) });
        assert_eq!(records[2].outcome, Outcome::Unknown);
        assert_eq!(spool.last_sequence(), Sequence(3));
    }

    #[test]
    fn a_killed_process_leaves_its_open_uses_unknown_exactly_once() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let open_uses: Vec<_> = (1..=4).map(|event| begin(&spool, &use_of(event)).unwrap()).collect();
        begin(&spool, &use_of(5)).unwrap().finish_as(AuditRecord::example(5));
        let image = killed(home.path());
        let id = open(image.path(), MIB).id();
        for _ in 0..3 {
            let again = open(image.path(), MIB);
            let records = closed(&again);
            assert_eq!((again.id(), id), (spool.id(), spool.id()));
            assert_eq!(events(&records), [5, 1, 2, 3, 4]);
            assert_eq!(sequences(&records), [1, 2, 3, 4, 5]);
            assert!(records[1..].iter().all(|record| record.outcome == Outcome::Unknown));
        }
        drop(open_uses);
    }

    #[test]
    fn uses_of_many_segments_survive_a_kill() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        for event in 1..=1500 {
            begin(&spool, &use_of(event)).unwrap().finish_as(AuditRecord::example(event));
        }
        let image = killed(home.path());
        let records = closed(&open(image.path(), 4 * MIB));
        assert_eq!(events(&records), (1..=1500).collect::<Vec<_>>());
        assert_eq!(sequences(&records), (1..=1500).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_spool_refuses_to_begin_and_finishes_all_that_has_begun() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let mut begun = Vec::new();
        while let Ok(ticket) = begin(&spool, &use_of(begun.len() as u128)) {
            begun.push(ticket);
        }
        assert!(begun.len() > 100, "{}", begun.len());
        let uses = begun.len();
        for (event, ticket) in begun.into_iter().enumerate() {
            let reason = Some("r".repeat(2000));
            ticket.finish_as(AuditRecord { reason, ..AuditRecord::example(event as u128) });
        }
        assert!(!spool.core.log.lock().has_unwritten(), "every END had its room");
        assert!(spool.core.log.lock().disk_bytes() <= MIB);
        assert_eq!(closed(&spool).len(), uses);
    }

    #[test]
    fn a_refusal_that_finds_the_spool_full_is_written_when_there_is_room() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let mut begun = Vec::new();
        while let Ok(ticket) = begin(&spool, &use_of(begun.len() as u128)) {
            begun.push(ticket);
        }
        for event in 10_000..10_050 {
            spool.refuse(AuditRecord { reason: None, ..refusal(event) }).unwrap();
        }
        begun.into_iter().for_each(|ticket| ticket.finish_as(AuditRecord::example(1)));
        spool.flush().unwrap();
        let refused = |record: &AuditRecord| matches!(record.outcome, Outcome::Refused(_));
        let count = |record: &AuditRecord| record.count.map_or(1, std::num::NonZeroU32::get);
        let records = closed(&spool);
        assert_eq!(records.iter().filter(|record| refused(record)).map(count).sum::<u32>(), 50);
        assert_eq!(spool.core.metrics.audit_dropped.get(), 0);
    }

    #[test]
    fn refusals_that_are_still_counted_are_written_at_the_end() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        for event in 1..=10 {
            spool.refuse(AuditRecord { reason: None, ..refusal(event) }).unwrap();
        }
        drop(spool);
        let records = closed(&open(home.path(), MIB));
        assert_eq!(events(&records), [1, 2]);
        assert_eq!(records[1].count.map(std::num::NonZeroU32::get), Some(9));
    }

    #[test]
    fn the_keeper_writes_counted_refusals_when_their_second_is_over() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        for event in 1..=3 {
            spool.refuse(AuditRecord { reason: None, ..refusal(event) }).unwrap();
        }
        eventually("a second record with the count 2", || spool.last_sequence() == Sequence(2));
    }

    #[test]
    fn with_sync_always_nothing_begins_before_it_is_on_disk() {
        let home = tempfile::tempdir().unwrap();
        let spool = open_with(home.path(), 8 * MIB, SpoolSync::Always);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let spool = &spool;
                scope.spawn(move || {
                    for event in 0..20 {
                        let ticket = begin(spool, &use_of(thread * 100 + event)).unwrap();
                        let (_, begin) = spool.core.log.lock().begin_of(ticket.event).unwrap();
                        assert!(spool.core.log.lock().segment(begin.place.segment).unwrap().synced > begin.place.offset);
                        ticket.finish_as(AuditRecord::example(0));
                    }
                });
            }
        });
        assert_eq!(closed(&spool).len(), 80);
    }

    #[test]
    fn who_waits_for_the_disk_holds_up_no_other_task() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let home = tempfile::tempdir().unwrap();
        let spool = open_with(home.path(), MIB, SpoolSync::Always);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let _inside = runtime.enter();
        let (tasks, (tell, told)) = (tasks::Tasks::new(), std::sync::mpsc::channel());
        let busy_disk = spool.core.syncing.lock();
        let (waiting, saying) = (Arc::clone(&spool), tell.clone());
        tasks.spawn("a use", async move {
            saying.send("begins").unwrap();
            drop(begin(&waiting, &use_of(1)).unwrap());
            saying.send("has begun").unwrap();
        });
        assert_eq!(told.recv_timeout(PATIENCE), Ok("begins"));
        tasks.spawn("another", async move { tell.send("another task runs").unwrap() });
        assert_eq!(told.recv_timeout(PATIENCE), Ok("another task runs"));
        drop(busy_disk);
        assert_eq!(told.recv_timeout(PATIENCE), Ok("has begun"));
    }

    #[test]
    fn a_segment_that_cannot_be_synced_is_replaced_by_a_new_file_with_the_same_entries() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let before = begin(&spool, &use_of(1)).unwrap();
        let number = spool.core.log.lock().unsynced()[0].number;
        let inode = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let path = home.path().join(format!("{number:020}.seg"));
        let old = inode(&path);
        spool.core.log.lock().segment_mut(number).unwrap().suspect = true;
        spool.flush().unwrap();
        assert_ne!(inode(&path), old);
        assert!(spool.core.log.lock().unsynced().is_empty());
        before.finish_as(AuditRecord::example(1));
        begin(&spool, &use_of(2)).unwrap().finish_as(AuditRecord::example(2));
        let image = killed(home.path());
        assert_eq!(events(&closed(&open(image.path(), MIB))), [1, 2]);
    }

    #[test]
    fn while_the_disk_cannot_sync_nothing_begins_and_what_has_begun_ends() {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        let ticket = begin(&spool, &use_of(1)).unwrap();
        let number = spool.core.log.lock().unsynced()[0].number;
        spool.core.log.lock().segment_mut(number).unwrap().suspect = true;
        // A folder in the replacement's place makes every replacement fail.
        let obstacle = home.path().join(format!("{number:020}.new"));
        std::fs::create_dir(&obstacle).unwrap();
        assert!(spool.flush().is_err());
        assert_eq!(begin(&spool, &use_of(2)).unwrap_err(), SpoolFull);
        ticket.finish_as(AuditRecord::example(1));
        std::fs::remove_dir(&obstacle).unwrap();
        spool.flush().unwrap();
        drop(begin(&spool, &use_of(3)).unwrap());
        assert_eq!(events(&closed(&spool)), [1, 3]);
    }

    #[test]
    fn a_use_that_could_not_be_synced_leaves_no_record() {
        let home = tempfile::tempdir().unwrap();
        let spool = open_with(home.path(), MIB, SpoolSync::Always);
        drop(begin(&spool, &use_of(1)).unwrap());
        let number = spool.core.log.lock().unsynced()[0].number;
        spool.core.log.lock().segment_mut(number).unwrap().suspect = true;
        std::fs::create_dir(home.path().join(format!("{number:020}.new"))).unwrap();
        assert_eq!(begin(&spool, &use_of(2)).unwrap_err(), SpoolFull);
        std::fs::remove_dir(home.path().join(format!("{number:020}.new"))).unwrap();
        let image = killed(home.path());
        assert_eq!(events(&closed(&open(image.path(), MIB))), [1]);
    }

    #[test]
    fn a_spool_that_could_not_work_is_refused_with_its_reason() {
        let home = tempfile::tempdir().unwrap();
        let every_second = SpoolSync::Every(Duration::from_secs(1));
        let small = Spool::open(&settings(home.path(), MIB - 1, every_second), None, &Metrics::new());
        assert!(matches!(small, Err(SpoolError::TooSmall(..))));
        let spool = Spool::open(&settings(home.path(), MIB, every_second), Some("north-1"), &Metrics::new()).unwrap();
        assert_eq!(spool.replica().as_str(), "north-1");
        let second = Spool::open(&settings(home.path(), MIB, every_second), None, &Metrics::new());
        assert!(matches!(second, Err(SpoolError::InUse(_))));
        drop(spool);
        assert_eq!(open(home.path(), MIB).replica().as_str(), "north-1");
    }
}

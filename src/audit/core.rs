//! The spool itself: what requests, the keeper and the shipper share, and the order in which they use the disk.
//!
//! One lock guards the log and is held for one write to the page cache, never while the disk is waited for. Syncing has
//! a lock of its own, taken first, so that all who wait for the disk together are served by one sync.

use std::io;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::entry::{self, BEGIN_BYTES_MAX, ENTRY_BYTES_MAX};
use super::folder::{Folder, Identity, SpoolError};
use super::keeper::Wake;
use super::log::{Begin, Log, View};
use super::recover;
use super::refusals::Refusals;
use super::segment::{self, Segment};
use super::spool::SpoolFull;
use crate::clock;
use crate::config;
use crate::domain::{Action, AuditRecord, Field, Outcome, ReplicaId, WrittenRecord};
use crate::metrics::{IntCounter, Metrics};
use crate::mutants::{self, Mutant};
use crate::tasks;

/// Bytes of a segment: some ten thousand uses, and a few milliseconds to preallocate.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// A small spool has at least so many segments, because room comes back by whole segments.
const SEGMENTS_MIN: u64 = 8;
/// Smallest segment, in bytes; below it the room lost at its end would weigh too much.
const SEGMENT_BYTES_MIN: u64 = 256 * 1024;
/// Smallest spool, in bytes: one segment being written, a spare, one being shipped, one kept.
const SPOOL_BYTES_MIN: u64 = 4 * SEGMENT_BYTES_MIN;
/// Most bytes of shipped segments that are kept, so that a store that forgot its newest records gets them again.
const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// In a small spool, shipped segments may take this part of it.
const KEPT_PART: u64 = 4;
/// How long a request may wait for the keeper to make room: many times what it takes when the disk is well, and no
/// longer than a caller would notice when it is not.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(50);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Core {
    folder: Folder,
    identity: Identity,
    replica: ReplicaId,
    size_max: u64,
    always: bool,
    pub(super) log: Mutex<Log>,
    room: Condvar,
    pub(super) syncing: Mutex<()>,
    refusals: Mutex<Refusals>,
    pub(super) keeper: Wake,
    pub(super) ended: Notify,
    pub(super) shipped: watch::Sender<u64>,
    pub(super) metrics: Metrics,
    /// The metric of the ordinary record: resolved once, because it is counted with each request.
    allowed_uses: IntCounter,
}

impl Core {
    /// Opens the folder and closes what a former process left open.
    pub(super) fn open(config: &config::Spool, replica: Option<&str>, metrics: &Metrics) -> Result<Self, SpoolError> {
        let size_max = config.size_max.0;
        if size_max < SPOOL_BYTES_MIN {
            return Err(SpoolError::TooSmall(size_max, SPOOL_BYTES_MIN));
        }
        let folder = Folder::open(&config.path)?;
        let identity = folder.identity(replica)?;
        let recovered = recover::recover(&folder, identity.spool)?;
        let mut log = Log::new(identity.spool, recovered.held, recovered.last_sequence);
        recovered.open.into_iter().for_each(|(id, begin)| log.adopt(id, begin));
        let core = Self {
            replica: replica.map_or_else(|| identity.replica.clone(), ReplicaId::new),
            folder,
            identity,
            size_max,
            always: config.sync == config::SpoolSync::Always,
            log: Mutex::new(log),
            room: Condvar::new(),
            syncing: Mutex::new(()),
            refusals: Mutex::default(),
            keeper: Wake::default(),
            ended: Notify::new(),
            shipped: watch::Sender::new(0),
            metrics: metrics.clone(),
            allowed_uses: metrics.audit_records.with_label_values(&[Action::Use.word(), Outcome::Allowed.word()]),
        };
        core.close_abandoned()?;
        Ok(core)
    }

    pub(super) fn id(&self) -> Uuid {
        self.identity.spool
    }

    pub(super) fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// Writes END(unknown) for every BEGIN that the former process left open.
    fn close_abandoned(&self) -> Result<(), SpoolError> {
        let begun = self.log.lock().begun();
        if !begun.is_empty() {
            tracing::warn!(
                uses = begun.len(),
                "the audit spool was left with uses in progress; they are recorded with the outcome unknown"
            );
        }
        self.keep_room();
        for id in begun.into_iter().filter(|_| !mutants::active(Mutant::NoUnknownEnd)) {
            self.close_unknown(id).map_err(|error| self.folder.unusable(self.folder.path(), error))?;
            self.keep_room();
        }
        Ok(())
    }

    /// Closes an open use of which only its BEGIN is known.
    fn close_unknown(&self, id: Uuid) -> io::Result<()> {
        let Some((file, begin)) = self.log.lock().begin_of(id) else { return Ok(()) };
        let mut record = WrittenRecord::from_bytes(&segment::read_payload(&file, begin.place, begin.bytes)?);
        record.push(Field::Outcome, Outcome::Unknown.word());
        self.finish(id, ENTRY_BYTES_MAX, &record);
        self.announce(Action::Use, Outcome::Unknown);
        Ok(())
    }
}

/// What requests do.
impl Core {
    /// Appends a BEGIN and promises room for its END. It is to be [secured](Core::secure), or withdrawn.
    pub(super) fn begin(&self, event: Uuid, known: &WrittenRecord) -> Result<Begin, SpoolFull> {
        if mutants::active(Mutant::NoBegin) {
            return Ok(Begin { end_bytes_max: ENTRY_BYTES_MAX, entry: 0 });
        }
        entry::with_record(known, BEGIN_BYTES_MAX, |frame| {
            let mut log = self.log.lock();
            self.wait_for_room(&mut log, Log::price(frame))?;
            let begin = log.begin(event, frame).map_err(|_| SpoolFull);
            self.ask_for_spare(&log);
            begin
        })
    }

    /// Returns once a BEGIN outlives the process, and with `sync: always` the machine.
    pub(super) fn secure(&self, event: Uuid, begin: Begin) -> Result<(), SpoolFull> {
        {
            let mut log = self.log.lock();
            if !log.is_written(begin.entry) {
                log.write().map_err(|_| SpoolFull)?;
            }
        }
        if self.always && !tasks::blocking_here(|| self.sync_begin(event)) {
            return Err(SpoolFull);
        }
        Ok(())
    }

    /// Closes a use that will not happen.
    pub(super) fn withdraw(&self, event: Uuid) {
        self.log.lock().withdraw(event);
    }

    /// Writes an END of at most `bytes_max`.
    pub(super) fn finish(&self, id: Uuid, bytes_max: u32, record: &WrittenRecord) {
        entry::with_record(record, bytes_max, |frame| {
            let mut log = self.log.lock();
            log.end(id, frame);
            self.ask_for_spare(&log);
        });
    }

    /// Closes a use that was dropped before it was finished.
    pub(super) fn abandon(&self, id: Uuid, known: &WrittenRecord) {
        let mut record = known.clone();
        record.push(Field::Outcome, Outcome::Unknown.word());
        self.finish(id, ENTRY_BYTES_MAX, &record);
        self.announce(Action::Use, Outcome::Unknown);
    }

    /// Writes or counts a refusal.
    pub(super) fn refuse(&self, record: AuditRecord) -> Result<(), SpoolFull> {
        let now = self.refusals.lock().count(record, clock::boot_now());
        now.map_or(Ok(()), |record| self.write_refusal(record))
    }

    /// Writes a refusal, or keeps it for later if there is no room.
    fn write_refusal(&self, record: AuditRecord) -> Result<(), SpoolFull> {
        let written = entry::with_record(&WrittenRecord::from(&record), ENTRY_BYTES_MAX, |frame| {
            let mut log = self.log.lock();
            let written = log.end_unbegun(record.event_id, frame);
            self.ask_for_spare(&log);
            written
        });
        if written {
            self.announce(record.action, record.outcome);
            return Ok(());
        }
        self.refusals.lock().postpone(record, clock::boot_now()).map_err(|_| {
            self.metrics.audit_dropped.inc();
            SpoolFull
        })
    }

    /// Counts a record that was written, and has it shipped.
    pub(super) fn announce(&self, action: Action, outcome: Outcome) {
        match (action, outcome) {
            (Action::Use, Outcome::Allowed) => self.allowed_uses.inc(),
            _ => self.metrics.audit_records.with_label_values(&[action.word(), outcome.word()]).inc(),
        }
        self.ended.notify_one();
    }

    /// Waits while the keeper makes room; says no at once when it has said that it cannot.
    fn wait_for_room(&self, log: &mut MutexGuard<'_, Log>, bytes: u32) -> Result<(), SpoolFull> {
        if log.has_room(bytes) && !log.failing {
            return Ok(());
        }
        let deadline = clock::boot_now().plus(ROOM_WAIT_MAX);
        while !log.has_room(bytes) && !log.starved && !log.failing {
            let left = deadline.since(clock::boot_now());
            if left.is_zero() {
                return Err(SpoolFull);
            }
            log.wanted = true;
            self.keeper.wake();
            tasks::blocking_here(|| self.room.wait_for(log, left));
        }
        if log.has_room(bytes) && !log.failing { Ok(()) } else { Err(SpoolFull) }
    }

    /// The keeper looks by itself while there is no room to be had.
    fn ask_for_spare(&self, log: &Log) {
        if log.wants_spare() && !log.starved {
            self.keeper.wake();
        }
    }
}

/// What the keeper does.
impl Core {
    /// Writes what waits in memory: refusals whose second is over, ENDs that the disk did not take.
    pub(super) fn write_waiting(&self) {
        self.log.lock().write_unwritten();
        let due = self.refusals.lock().due(clock::boot_now());
        for record in due {
            // What finds no place is counted where that happens.
            let _ = self.write_refusal(record);
        }
    }

    /// Writes everything that waits in memory and forces the spool to disk.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.log.lock().write_unwritten();
        let waiting = self.refusals.lock().waiting();
        for record in waiting {
            let _ = self.write_refusal(record);
        }
        self.sync()
    }

    /// Whether the keeper should look again soon.
    pub(super) fn is_restless(&self) -> bool {
        let log = self.log.lock();
        log.starved || log.failing || log.has_unwritten() || !self.refusals.lock().is_empty()
    }

    /// Sees to it that a spare lies ready.
    pub(super) fn keep_room(&self) {
        while self.log.lock().wants_spare() && self.grow_or_starve() {}
    }

    /// Deletes shipped segments beyond those that are kept.
    pub(super) fn retire_shipped(&self) {
        self.retire(KEPT_BYTES_MAX.min(self.size_max / KEPT_PART));
    }

    /// Makes a spare, giving up kept segments for it if need be; says whether there is one.
    fn grow_or_starve(&self) -> bool {
        let grown = self.grow().or_else(|_| {
            self.retire(0);
            self.grow()
        });
        let mut log = self.log.lock();
        let was_starved = std::mem::replace(&mut log.starved, grown.is_err());
        match &grown {
            Err(error) if !was_starved => {
                tracing::error!(%error, "the audit spool is full: uses will be refused when its last segment is used up")
            }
            Ok(()) if was_starved => tracing::info!("the audit spool has room again"),
            _ => {}
        }
        self.room.notify_all();
        grown.is_ok()
    }

    /// Makes a spare: a whole segment, or what is left where less is.
    fn grow(&self) -> io::Result<()> {
        let (number, taken) = {
            let log = self.log.lock();
            (log.next_number(), log.disk_bytes())
        };
        let usual = SEGMENT_BYTES.min(self.size_max / SEGMENTS_MIN).max(SEGMENT_BYTES_MIN);
        let mut bytes = usual.min(self.size_max.saturating_sub(taken));
        loop {
            if bytes < SEGMENT_BYTES_MIN {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let size = u32::try_from(bytes).map_err(io::Error::other)?;
            match self.folder.make_segment(number, size) {
                Ok(file) => {
                    self.log.lock().add_spare(Segment::empty(number, file, size));
                    return Ok(());
                }
                Err(error) if bytes / 2 < SEGMENT_BYTES_MIN => return Err(error),
                Err(_) => bytes /= 2,
            }
        }
    }

    /// Deletes shipped segments, oldest first, until the rest is within `kept_bytes`.
    fn retire(&self, kept_bytes: u64) {
        loop {
            let Some(number) = self.log.lock().overdue(kept_bytes) else { return };
            match self.retire_oldest(number) {
                Ok(()) => {}
                // There is no room to copy what is still open in it; it goes when its uses end.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return,
                Err(error) => return tracing::warn!(segment = number, %error, "a shipped segment of the audit spool cannot be deleted"),
            }
        }
    }

    fn retire_oldest(&self, number: u64) -> io::Result<()> {
        while !self.log.lock().copy_begins(number)? {}
        // The ENDs and copies that replace what is in this segment must not be lost by a power cut after it is gone.
        self.sync()?;
        self.folder.remove_segment(number)?;
        self.log.lock().forget(number);
        Ok(())
    }

    /// Brings the gauges up to date.
    pub(super) fn observe(&self) {
        let (bytes, oldest) = {
            let log = self.log.lock();
            (log.unshipped_bytes(), log.oldest)
        };
        let age = oldest.map_or(0, |oldest| clock::wall_now().micros().saturating_sub(oldest.micros()).max(0));
        self.metrics.audit_spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.metrics.audit_spool_oldest.set(Duration::from_micros(age.unsigned_abs()).as_secs_f64());
    }
}

/// What reaches the disk.
impl Core {
    /// Forces everything that is written to disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _turn = self.syncing.lock();
        self.sync_written()
    }

    /// Waits until a BEGIN is on disk; one sync serves all who wait.
    fn sync_begin(&self, event: Uuid) -> bool {
        let _turn = self.syncing.lock();
        let is_synced = self.log.lock().is_begin_synced(event);
        is_synced || self.sync_written().is_ok()
    }

    fn sync_written(&self) -> io::Result<()> {
        let unsynced = {
            let mut log = self.log.lock();
            log.write()?;
            log.unsynced()
        };
        let synced = unsynced.into_iter().try_for_each(|view| self.sync_segment(&view));
        self.log.lock().failing = synced.is_err();
        synced
    }

    fn sync_segment(&self, view: &View) -> io::Result<()> {
        let synced = if view.suspect { Err(io::Error::other("a sync of this file has failed before")) } else { view.file.sync_data() };
        if let Err(error) = synced {
            tracing::error!(segment = view.number, %error, "a segment of the audit spool cannot be forced to disk; it is copied into a new file");
            return self.replace(view.number);
        }
        self.log.lock().set_synced(view.number, view.bytes);
        Ok(())
    }

    /// Puts a new file with the same entries in a segment's place. Places in it stay what they are.
    fn replace(&self, number: u64) -> io::Result<()> {
        // Under the lock, because nothing may be written to the old file meanwhile.
        let mut log = self.log.lock();
        let Some(segment) = log.segment_mut(number) else { return Ok(()) };
        segment.suspect = true;
        let copy = self.folder.make_replacement(number, segment.size)?;
        segment::copy_entries(segment, &copy)?;
        self.folder.replace_segment(number)?;
        segment.file = std::sync::Arc::new(copy);
        segment.synced = segment.written();
        segment.suspect = false;
        Ok(())
    }
}

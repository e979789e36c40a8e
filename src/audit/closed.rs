//! Reads closed records in the order of their sequences, for whoever ships them.
//!
//! Reading needs the lock only to ask how far a segment may be read; what was written lately is still in the page cache.
//! Everything is synced before it is read, so that nothing is shipped that a power cut could take back.
//!
//! Records that a store forgot and whose segments are gone are lost, and so are those that only another copy of this folder
//! ever held. The first entry of a segment and a SKIP say which sequences came before them: where that is more than was
//! read, there is such a hole. It is told to the store, or shipping would never get past it.

use std::io;
use std::os::unix::fs::FileExt;

use super::core::Core;
use super::entry::{self, ENTRY_BYTES_MAX, Entry, Kind, Read};
use super::log::View;
use super::segment::{Place, damaged};
use crate::domain::{Field, Sequence, WrittenRecord};
use crate::metrics::Metrics;
use crate::tasks;

/// Most records that are read at a time: a transaction of the embedded store of some ten milliseconds. What a batch costs
/// beside its records, above all the disk's wait, is then little for each.
const RECORDS_MAX: usize = 4096;
/// Reading ends with the record that brings it to this many bytes.
const BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Bytes that are read from a file at once: many times what one entry can have, so that little is read twice.
const READ_BYTES: u32 = 16 * ENTRY_BYTES_MAX;

/// Records between two moments at which [requests may go first](tasks::give_way).
const RECORDS_AT_ONCE: usize = 256;

/// How far reading has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    /// Everything before it was looked at.
    pub(super) place: Place,
    /// The last sequence that was read.
    pub(super) sequence: u64,
}

/// Records in sequence order, and where to go on after them.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) records: Vec<WrittenRecord>,
    /// Of what comes up to here and before the records, the spool holds nothing any more.
    pub(super) lost_up_to: Option<Sequence>,
    pub(super) next: Cursor,
    bytes: u32,
    /// A hole comes next, which the next batch begins with.
    is_cut: bool,
}

impl Core {
    /// Reads the records behind a cursor, as many as make a batch.
    pub(super) fn closed_after(&self, from: Cursor) -> io::Result<Closed> {
        self.sync()?;
        let mut buffer = Vec::new();
        let mut closed = Closed { records: Vec::new(), lost_up_to: None, next: from, bytes: 0, is_cut: false };
        while !closed.is_full() {
            let place = closed.next.place;
            let shippable = self.log.lock().shippable(place.segment);
            closed.next.place = match shippable {
                Some((view, _)) if place.offset < view.bytes => closed.read(&view, &mut buffer)?,
                Some((_, true)) => Place { segment: place.segment + 1, offset: 0 },
                Some((_, false)) => break,
                // The segment was deleted behind the cursor.
                None => self.log.lock().place_after(closed.next.sequence),
            };
            if closed.next.place == place {
                break;
            }
        }
        Ok(closed)
    }

    /// Where to read on for a store that holds everything up to `mark`.
    pub(super) fn resume_after(&self, mark: u64) -> io::Result<Cursor> {
        let mut log = self.log.lock();
        let last = log.last_sequence();
        if mark > last {
            tracing::error!(
                mark,
                last,
                "the store holds later records of this spool than the spool itself, as if the folder were an old copy"
            );
            log.skip_to(mark)?;
        }
        Ok(Cursor { place: log.place_after(mark), sequence: mark })
    }

    /// What comes after `mark` up to a sequence is neither in the store nor here. Says and counts it once, however often
    /// the store has to be told.
    pub(super) fn note_lost(&self, mark: u64, up_to: u64) {
        let count = self.log.lock().set_lost(mark, up_to);
        if count > 0 {
            self.metrics.audit_dropped.inc_by(count);
            tracing::error!(
                count,
                first = mark + 1,
                last = up_to,
                "audit records are lost: the store was set back to before them, and the spool holds them no more"
            );
        }
    }

    /// The store holds everything before a cursor.
    pub(super) fn note_shipped(&self, to: Cursor, metrics: &Metrics) {
        let more = self.log.lock().set_shipped(to.sequence, to.place);
        metrics.audit_shipped.inc_by(more);
        self.shipped.send_replace(to.sequence);
        self.observe();
    }
}

impl Closed {
    /// Whether it is as much as one batch may be.
    pub(super) fn is_full(&self) -> bool {
        self.is_cut || self.records.len() >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.lost_up_to.is_none()
    }

    /// Reads on in a segment; answers where it stopped.
    fn read(&mut self, view: &View, buffer: &mut Vec<u8>) -> io::Result<Place> {
        let mut place = self.next.place;
        let bytes = view.bytes.saturating_sub(place.offset).min(READ_BYTES);
        buffer.resize(bytes as usize, 0);
        view.file.read_exact_at(buffer, u64::from(place.offset))?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() && !self.is_full() {
            if self.records.len().is_multiple_of(RECORDS_AT_ONCE) {
                tasks::give_way();
            }
            let Read::Entry(entry) = entry::read(rest) else { break };
            if self.is_behind_hole(&entry) && !self.records.is_empty() {
                self.is_cut = true;
                break;
            }
            self.take(&entry)?;
            place.offset += entry.bytes;
            rest = rest.get(entry.bytes as usize..).unwrap_or_default();
        }
        // What was read ends in the middle of an entry, but not in its first one.
        if place == self.next.place && !self.is_cut { Err(damaged(place)) } else { Ok(place) }
    }

    /// Whether an entry says that more came before it than was read.
    fn is_behind_hole(&self, entry: &Entry<'_>) -> bool {
        matches!(entry.head.kind, Kind::Open | Kind::Skip) && entry.head.sequence > self.next.sequence
    }

    fn take(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        if self.is_behind_hole(entry) {
            self.lost_up_to = Some(Sequence(entry.head.sequence));
            self.next.sequence = entry.head.sequence;
        }
        if entry.head.kind != Kind::End || entry.head.sequence <= self.next.sequence {
            return Ok(());
        }
        let mut record = WrittenRecord::from_bytes(entry.payload);
        record.push_number(Field::Sequence, entry.head.sequence);
        self.records.push(record);
        self.next.sequence = entry.head.sequence;
        self.bytes += entry.bytes;
        Ok(())
    }
}

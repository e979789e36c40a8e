//! What the tests of this module share: small spools, records, and images of a folder as a crash leaves it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::closed::Cursor;
use super::segment::Place;
use super::spool::{Spool, SpoolFull, Ticket};
use crate::clock;
use crate::config::{self, ByteCount, SpoolSync};
use crate::domain::{AuditRecord, Field, Outcome, WrittenRecord};
use crate::metrics::Metrics;

pub(super) const MIB: u64 = 1024 * 1024;

/// A spool that syncs only when it is told to.
pub(super) fn open(path: &Path, size_max: u64) -> Arc<Spool> {
    open_with(path, size_max, SpoolSync::Every(Duration::from_secs(3600)))
}

pub(super) fn open_with(path: &Path, size_max: u64, sync: SpoolSync) -> Arc<Spool> {
    Spool::open(&settings(path, size_max, sync), None, &Metrics::new()).expect("opens")
}

pub(super) fn settings(path: &Path, size_max: u64, sync: SpoolSync) -> config::Spool {
    config::Spool { path: path.to_owned(), size_max: ByteCount(size_max), sync }
}

/// Begins the use that a record tells of.
pub(super) fn begin(spool: &Arc<Spool>, record: &AuditRecord) -> Result<Ticket, SpoolFull> {
    spool.open_use(record.event_id, up_to_outcome(record))?.secure()
}

/// What is known of a use before its end.
fn up_to_outcome(record: &AuditRecord) -> WrittenRecord {
    let mut known = WrittenRecord::new();
    for (field, text) in WrittenRecord::from(record).fields().take_while(|(field, _)| *field != Field::Outcome) {
        known.push(field, text);
    }
    known
}

impl Ticket {
    /// Ends the use as a record tells it.
    pub(super) fn finish_as(self, record: AuditRecord) {
        self.finish(record.outcome, |known| {
            let event = known.event_id();
            *known = AuditRecord { event_id: event.expect("every record has one"), ..record }.into();
        });
    }
}

/// A refusal unlike every other, so that it is written at once.
pub(super) fn refusal(event: u128) -> AuditRecord {
    AuditRecord { outcome: Outcome::Refused("route_denied"), reason: Some(format!("reason {event}")), ..AuditRecord::example(event) }
}

/// What a kill -9 leaves: everything that was written.
pub(super) fn killed(folder: &Path) -> TempDir {
    let image = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(folder).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), image.path().join(file.file_name())).expect("copied");
    }
    image
}

/// What a power cut leaves at the worst: nothing but what was synced.
pub(super) fn unplugged(spool: &Spool, folder: &Path) -> TempDir {
    let log = spool.core.log.lock();
    let image = killed(folder);
    for number in 1.. {
        let path = image.path().join(format!("{number:020}.seg"));
        if path.exists() {
            let kept = log.segment(number).map_or(0, |segment| segment.synced as usize);
            let mut bytes = std::fs::read(&path).expect("read");
            bytes[kept..].fill(0);
            std::fs::write(&path, bytes).expect("written");
        } else if number > log.next_number() {
            return image;
        }
    }
    image
}

/// Every record that the folder holds.
pub(super) fn closed(spool: &Spool) -> Vec<AuditRecord> {
    let mut records = Vec::new();
    let mut cursor = Cursor { place: Place { segment: 0, offset: 0 }, sequence: 0 };
    loop {
        let read = spool.core.closed_after(cursor).expect("readable");
        if read.records.is_empty() {
            return records;
        }
        records.extend(read.records.iter().map(|record| record.read().expect("a record")));
        cursor = read.next;
    }
}

pub(super) fn sequences(records: &[AuditRecord]) -> Vec<u64> {
    records.iter().map(|record| record.sequence.expect("shipped records have one").get()).collect()
}

pub(super) fn events(records: &[AuditRecord]) -> Vec<u128> {
    records.iter().map(|record| record.event_id.as_u128()).collect()
}

/// Looks until it is so, for at most ten seconds.
pub(super) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = clock::boot_now();
    while !is_so() {
        assert!(clock::boot_now().since(begun) < Duration::from_secs(10), "{what}");
        std::thread::yield_now();
    }
}

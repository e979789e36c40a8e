//! The keys that are known here to be revoked: in memory, and on this replica's own disk.
//!
//! They only grow, so whoever knows them can tell a store that forgot (protocol 1, failover). The disk is a second
//! memory for the day on which every gateway was restarted before the store lost what it had acknowledged. A disk that
//! fails takes nothing back: the revocation is durable in the store, so it is logged, counted and tried again, with the next
//! revocation and after a while.
//!
//! Bounded: of more than a million the oldest half is let go, which no store forgets any more.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::HashSet;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::ledger::Ledger;
use crate::domain::KeyDigest;
use crate::metrics::IntCounter;
use crate::mutants::{self, Mutant};
use crate::tasks;

/// Half of what is kept: 18 MB on disk (36 bytes each) and, at worst, 40 MB of memory.
const HALF_MAX: usize = 500_000;

/// How long after a failed write another is tried where no revocation comes: disks that are full or read-only are so for
/// minutes, and each attempt writes the whole file.
const SAVE_RETRY: Duration = Duration::from_secs(60);

/// The set, and where it is kept.
#[derive(Default)]
pub(super) struct Tombstones {
    shelf: Arc<Shelf>,
    /// One write at a time.
    saving: tokio::sync::Mutex<()>,
    grown: watch::Sender<u64>,
}

#[derive(Default)]
struct Shelf {
    known: RwLock<Known>,
    unsaved: Mutex<Unsaved>,
    ledger: Option<Mutex<Ledger>>,
}

#[derive(Default)]
struct Unsaved {
    fresh: Vec<KeyDigest>,
    /// The whole file must be written anew: the last write failed, or half of it was let go.
    is_stale: bool,
}

#[derive(Default)]
struct Known {
    old: HashSet<KeyDigest>,
    young: HashSet<KeyDigest>,
    /// All of them, while anybody has use for the list: 32 MB are not to be had once for each partition.
    listed: Option<Weak<[KeyDigest]>>,
}

impl Known {
    fn contains(&self, digest: &KeyDigest) -> bool {
        self.young.contains(digest) || self.old.contains(digest)
    }

    fn all(&mut self) -> Arc<[KeyDigest]> {
        self.listed.as_ref().and_then(Weak::upgrade).unwrap_or_else(|| {
            let list: Arc<[KeyDigest]> = self.old.iter().chain(&self.young).copied().collect();
            self.listed = Some(Arc::downgrade(&list));
            list
        })
    }
}

/// What became of the digests that were buried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Buried {
    /// All are remembered.
    Kept,
    /// All are remembered, and the oldest are not any more: whatever was cached before them must be read again.
    OldestForgotten,
}

impl Tombstones {
    /// Reads the file, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub(super) fn open(file: &Path) -> std::io::Result<Self> {
        let (ledger, digests) = Ledger::open(file)?;
        let known = Known { young: digests.into_iter().filter(|_| !mutants::active(Mutant::NoLedger)).collect(), ..Known::default() };
        let shelf = Shelf { known: RwLock::new(known), ledger: Some(Mutex::new(ledger)), ..Shelf::default() };
        Ok(Self { shelf: Arc::new(shelf), ..Self::default() })
    }

    pub(super) fn contains(&self, digest: &KeyDigest) -> bool {
        self.shelf.known.read().contains(digest)
    }

    /// One list for all who ask before more is buried.
    pub(super) fn all(&self) -> Arc<[KeyDigest]> {
        self.shelf.known.write().all()
    }

    /// Moves after digests were buried, and when whoever waits for that is roused.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Wakes whoever waits for news, to look at what else there is.
    pub(super) fn rouse(&self) {
        self.grown.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Remembers digests, in memory at once.
    pub(super) fn bury<I: IntoIterator<Item = KeyDigest>>(&self, digests: I) -> Buried {
        self.bury_at_most(digests, HALF_MAX)
    }

    fn bury_at_most<I: IntoIterator<Item = KeyDigest>>(&self, digests: I, half_max: usize) -> Buried {
        let mut known = self.shelf.known.write();
        let fresh: Vec<KeyDigest> = digests.into_iter().filter(|digest| !known.contains(digest)).collect();
        if fresh.is_empty() {
            return Buried::Kept;
        }
        known.listed = None;
        known.young.extend(&fresh);
        let mut buried = Buried::Kept;
        if known.young.len() >= half_max {
            buried = if known.old.is_empty() { Buried::Kept } else { Buried::OldestForgotten };
            known.old = std::mem::take(&mut known.young);
        }
        drop(known);
        if self.shelf.ledger.is_some() {
            let mut unsaved = self.shelf.unsaved.lock();
            unsaved.fresh.extend(fresh);
            unsaved.is_stale |= buried == Buried::OldestForgotten;
        }
        self.rouse();
        buried
    }

    /// Writes down what others revoked, as it comes, and what could not be written a while later.
    pub(super) async fn keep_saved(&self, failures: &IntCounter) {
        self.keep_saved_every(SAVE_RETRY, failures).await;
    }

    async fn keep_saved_every(&self, retry: Duration, failures: &IntCounter) {
        let mut news = self.news();
        loop {
            self.save(failures).await;
            let is_behind = self.shelf.unsaved.lock().is_stale;
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return std::future::pending().await },
                () = tokio::time::sleep(retry), if is_behind => {}
            }
        }
    }

    /// Returns when all that was buried before is on disk, or could not be written, which `failures` counts.
    pub(super) async fn save(&self, failures: &IntCounter) {
        let _one_at_a_time = self.saving.lock().await;
        let shelf = Arc::clone(&self.shelf);
        // Runs to its end even if nobody waits for it any more, so a failure is never overlooked.
        let saved = tasks::blocking(move || shelf.save()).await;
        if let Err(error) = saved {
            failures.inc();
            tracing::error!(%error, "cannot write down revocations on this gateway's own disk; the store has them, and this is tried again within a minute");
        }
    }
}

impl Shelf {
    fn save(&self) -> std::io::Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let mut ledger = ledger.lock();
        let unsaved = std::mem::take(&mut *self.unsaved.lock());
        let saved = match unsaved {
            // Read after `unsaved` was taken: what is buried from here on is in the set or in the next batch, or in both.
            Unsaved { is_stale: true, .. } => ledger.rewrite(&self.known.write().all()),
            Unsaved { fresh, .. } if fresh.is_empty() => Ok(()),
            Unsaved { fresh, .. } => ledger.append(&fresh),
        };
        if saved.is_err() {
            self.unsaved.lock().is_stale = true;
        }
        saved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn digest(number: u8) -> KeyDigest {
        KeyDigest::from_bytes([number; 32])
    }

    #[tokio::test]
    async fn what_was_buried_is_found_again_by_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let (file, metrics) = (folder.path().join("revoked"), Metrics::new());
        let tombstones = Tombstones::open(&file).unwrap();
        tombstones.bury([digest(1), digest(2)]);
        tombstones.bury([digest(2), digest(3)]);
        tombstones.save(&metrics.tombstone_write_errors).await;
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 3 * 36, "each once");
        let found = Tombstones::open(&file).unwrap();
        assert!([1, 2, 3].iter().all(|number| found.contains(&digest(*number))) && !found.contains(&digest(4)));
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_counted_and_caught_up_with() {
        let folder = tempfile::tempdir().unwrap();
        let (home, metrics) = (folder.path().join("home"), Metrics::new());
        std::fs::create_dir(&home).unwrap();
        let file = home.join("revoked");
        let tombstones = Tombstones::open(&file).unwrap();
        tombstones.shelf.ledger.as_ref().unwrap().lock().break_file();
        tombstones.bury([digest(1)]);
        tombstones.save(&metrics.tombstone_write_errors).await;
        assert_eq!(metrics.tombstone_write_errors.get(), 1);
        assert!(tombstones.contains(&digest(1)), "it is known all the same");
        tombstones.save(&metrics.tombstone_write_errors).await;
        assert_eq!(metrics.tombstone_write_errors.get(), 1);
        assert!(Tombstones::open(&file).unwrap().contains(&digest(1)));
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later_without_another_revocation() {
        let folder = tempfile::tempdir().unwrap();
        let (file, metrics) = (folder.path().join("revoked"), Metrics::new());
        let tombstones = Tombstones::open(&file).unwrap();
        tombstones.shelf.ledger.as_ref().unwrap().lock().break_file();
        tombstones.bury([digest(1)]);
        let is_written = async {
            while !Tombstones::open(&file).unwrap().contains(&digest(1)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = tombstones.keep_saved_every(Duration::from_millis(20), &metrics.tombstone_write_errors) => unreachable!("it goes on"),
            written = tokio::time::timeout(Duration::from_secs(10), is_written) => written.expect("it is written"),
        }
        assert_eq!(metrics.tombstone_write_errors.get(), 1, "the first attempt failed");
    }

    #[test]
    fn all_partitions_are_told_from_one_list() {
        let tombstones = Tombstones::default();
        tombstones.bury([digest(1)]);
        let one = tombstones.all();
        assert!(Arc::ptr_eq(&one, &tombstones.all()));
        tombstones.bury([digest(2)]);
        assert_eq!((one.len(), tombstones.all().len()), (1, 2));
    }

    #[tokio::test]
    async fn the_oldest_half_is_let_go_from_memory_and_disk_and_that_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (file, metrics) = (folder.path().join("revoked"), Metrics::new());
        let tombstones = Tombstones::open(&file).unwrap();
        let buried: Vec<Buried> = (1..=6).map(|number| tombstones.bury_at_most([digest(number)], 2)).collect();
        use Buried::{Kept, OldestForgotten};
        assert_eq!(buried, [Kept, Kept, Kept, OldestForgotten, Kept, OldestForgotten]);
        tombstones.save(&metrics.tombstone_write_errors).await;
        assert_eq!(tombstones.all().len(), 2);
        assert_eq!(Tombstones::open(&file).unwrap().all().len(), 2);
    }
}

//! What the segments on disk say, read in order after a start.
//!
//! The spool is one long row of entries. The first place without a whole entry is where writing stopped, and whatever
//! lies behind it never reached the disk whole: it is cut off. Behind such a hole there may be whole entries, because
//! a power cut keeps later pages and loses earlier ones. But if one of them says that the place of the hole had been
//! synced when it was written, then the disk has changed what it was given, and the spool is not opened.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};

use uuid::Uuid;

use super::entry::{self, Entry, Kind, NUMBER_MAX, Read};
use super::folder::{Folder, SpoolError};
use super::segment::{Place, Segment};

/// A BEGIN without an END.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpenBegin {
    pub(super) place: Place,
    pub(super) bytes: u32,
}

/// The spool as it was left, ready to be written on in a new segment.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) held: VecDeque<Segment>,
    pub(super) open: HashMap<Uuid, OpenBegin>,
    pub(super) last_sequence: u64,
}

/// Reads the whole folder, cuts off what is not whole, and forces the rest to disk.
pub(super) fn recover(folder: &Folder, spool: Uuid) -> Result<Recovered, SpoolError> {
    let numbers = folder.numbers()?;
    let mut scan = Scan::of(spool);
    let mut bytes = Vec::new();
    for &number in &numbers {
        bytes.clear();
        let unusable = |error| folder.unusable(&folder.file(number), error);
        folder.segment(number).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(unusable)?;
        let damaged = |damage: Damage| SpoolError::Damaged {
            path: folder.file(damage.place.segment),
            offset: u64::from(damage.place.offset),
            what: damage.what,
        };
        scan.read(number, &bytes).map_err(damaged)?;
    }
    // A preallocation's zeros behind the last entry are what every end leaves; anything else is worth a line.
    if let (Some(hole), true) = (scan.hole, scan.is_torn) {
        tracing::info!(
            segment = hole.segment,
            offset = hole.offset,
            "the audit spool ends here; what follows never reached the disk whole"
        );
    }
    remove_unused(folder, &numbers, scan.segments.len())?;
    let held = scan.segments.iter().map(|found| hold(folder, found).map_err(|error| folder.unusable(&folder.file(found.number), error)));
    let held = held.collect::<Result<_, _>>()?;
    Ok(Recovered { held, open: scan.open, last_sequence: scan.last_sequence })
}

/// Removes spares and whatever lies behind a hole, last first, so that a crash in between leaves no gap.
fn remove_unused(folder: &Folder, numbers: &[u64], used: usize) -> Result<(), SpoolError> {
    for &number in numbers.get(used..).unwrap_or_default().iter().rev() {
        folder.remove_segment(number).map_err(|error| folder.unusable(&folder.file(number), error))?;
    }
    Ok(())
}

/// Opens a segment that takes no more entries. What lies behind them goes, so that it can never be taken for entries.
fn hold(folder: &Folder, found: &Found) -> io::Result<Segment> {
    folder.tidy(found.number);
    let file: File = folder.segment(found.number)?;
    file.set_len(u64::from(found.written))?;
    file.sync_all()?;
    let Found { number, written, before, last_sequence } = *found;
    let mut segment = Segment::found(number, file, written);
    (segment.before, segment.last_sequence) = (before, last_sequence);
    Ok(segment)
}

/// What was found in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) number: u64,
    /// Where its entries end.
    pub(super) written: u32,
    pub(super) before: u64,
    pub(super) last_sequence: u64,
}

/// Why the row cannot be read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Damage {
    pub(super) place: Place,
    pub(super) what: &'static str,
}

/// Reads segments in ascending order; see the module's text.
#[derive(Debug)]
pub(super) struct Scan {
    spool: Uuid,
    pub(super) segments: Vec<Found>,
    pub(super) open: HashMap<Uuid, OpenBegin>,
    pub(super) last_sequence: u64,
    /// Where the row of whole entries ended although something follows.
    pub(super) hole: Option<Place>,
    /// Whether something other than a preallocation's zeros follows there.
    is_torn: bool,
}

impl Scan {
    /// Nothing read yet of the spool with this id.
    pub(super) fn of(spool: Uuid) -> Self {
        Self { spool, segments: Vec::new(), open: HashMap::new(), last_sequence: 0, hole: None, is_torn: false }
    }

    /// Reads the next segment.
    pub(super) fn read(&mut self, number: u64, bytes: &[u8]) -> Result<(), Damage> {
        if let Some(hole) = self.hole {
            return self.look_behind(hole, number, bytes);
        }
        let Some((before, written)) = self.follow(number, bytes)? else {
            return self.look_behind(Place { segment: number, offset: 0 }, number, bytes);
        };
        self.segments.push(Found { number, written, before, last_sequence: self.last_sequence });
        match bytes.get(written as usize..) {
            Some(rest) if zeros(rest) < rest.len() => self.look_behind(Place { segment: number, offset: written }, number, rest),
            _ => Ok(()),
        }
    }

    /// Takes the entries from the segment's beginning to the first place without one; answers the last sequence before
    /// them and where they end, or `None` if there is no OPEN that continues the row.
    fn follow(&mut self, number: u64, bytes: &[u8]) -> Result<Option<(u64, u32)>, Damage> {
        let mut before = self.last_sequence;
        let mut offset = 0;
        let mut rest = bytes;
        while let Read::Entry(entry) = entry::read(rest) {
            let place = Place { segment: number, offset };
            if offset == 0 && !self.opens(number, &entry).map_err(|what| Damage { place, what })? {
                return Ok(None);
            }
            if offset == 0 {
                before = self.last_sequence;
            }
            self.take(place, &entry).map_err(|what| Damage { place, what })?;
            offset += entry.bytes;
            rest = rest.get(entry.bytes as usize..).unwrap_or_default();
        }
        Ok((offset > 0).then_some((before, offset)))
    }

    /// Whether a first entry continues the row. If it does not, entries before it are missing.
    fn opens(&mut self, number: u64, entry: &Entry<'_>) -> Result<bool, &'static str> {
        if number > NUMBER_MAX {
            return Err("the segment has a number that no segment can have");
        }
        if entry.head.kind != Kind::Open {
            return Err("the segment does not begin with its opening entry");
        }
        if entry.head.id != self.spool {
            return Err("the segment belongs to another spool");
        }
        match self.segments.last() {
            None => self.last_sequence = entry.head.sequence,
            Some(last) if last.number + 1 != number => return Err("the segment before this one is missing"),
            Some(_) => {}
        }
        Ok(entry.head.sequence == self.last_sequence)
    }

    /// Looks for an entry behind a hole that proves that the hole was once whole.
    fn look_behind(&mut self, hole: Place, number: u64, bytes: &[u8]) -> Result<(), Damage> {
        self.hole = Some(hole);
        // In the hole's own segment an entry proves it by having seen more than the hole's offset on disk; in a later
        // segment by having seen anything there on disk, because segments are synced in order.
        let harmless = if number == hole.segment { hole.offset } else { 0 };
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = match entry::read(rest) {
                Read::Entry(entry) if entry.head.synced > harmless => {
                    return Err(Damage { place: hole, what: "it had been whole on disk" });
                }
                Read::Entry(entry) => entry.bytes as usize,
                // A length's lowest byte may itself be zero, so the last zero is looked at again.
                Read::Nothing => zeros(rest).saturating_sub(1).max(1),
                Read::Broken => 1,
            };
            self.is_torn |= zeros(rest) < step.min(rest.len());
            rest = rest.get(step..).unwrap_or_default();
        }
        Ok(())
    }

    fn take(&mut self, place: Place, entry: &Entry<'_>) -> Result<(), &'static str> {
        match entry.head.kind {
            // With it all that count on from there.
            _ if entry.head.sequence > NUMBER_MAX => return Err("a sequence is greater than any that can be given out"),
            Kind::Open if place.offset > 0 => return Err("an opening entry stands in the middle of the segment"),
            Kind::Open => {}
            Kind::Begin => {
                self.open.insert(entry.head.id, OpenBegin { place, bytes: entry.bytes });
            }
            Kind::End if entry.head.sequence != self.last_sequence + 1 => return Err("a sequence is missing or repeated"),
            Kind::End => {
                self.last_sequence = entry.head.sequence;
                self.open.remove(&entry.head.id);
            }
            Kind::Withdrawn => {
                self.open.remove(&entry.head.id);
            }
            Kind::Skip => self.last_sequence = entry.head.sequence,
        }
        Ok(())
    }
}

/// How many zeros these bytes begin with. By blocks, because a segment's preallocation is millions of them.
fn zeros(bytes: &[u8]) -> usize {
    const BLOCK: [u8; 4096] = [0; 4096];
    let whole = bytes.chunks_exact(BLOCK.len()).take_while(|block| **block == BLOCK).count() * BLOCK.len();
    whole + bytes.iter().skip(whole).take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::entry::{Frame, Head};
    use super::super::testing::*;
    use super::*;
    use crate::domain::{AuditRecord, Outcome};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begin,
        Finish(usize),
        Drop(usize),
        Refuse,
        Sync,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Begin),
            3 => any::<usize>().prop_map(Step::Finish),
            1 => any::<usize>().prop_map(Step::Drop),
            1 => Just(Step::Refuse),
            1 => Just(Step::Sync),
        ];
        proptest::collection::vec(step, 1..40)
    }

    /// Takes the steps in a new spool and gives the image that a kill after the last one leaves.
    fn image_after(steps: &[Step]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        spool.refuse(refusal(0)).unwrap();
        let mut begun = Vec::new();
        for (step, event) in steps.iter().zip(1u128..) {
            match *step {
                Step::Begin => begun.push((event, begin(&spool, &AuditRecord::example(event)).unwrap())),
                Step::Finish(_) | Step::Drop(_) if begun.is_empty() => {}
                Step::Finish(which) => {
                    let (event, ticket) = begun.swap_remove(which % begun.len());
                    ticket.finish_as(AuditRecord::example(event));
                }
                Step::Drop(which) => drop(begun.swap_remove(which % begun.len())),
                Step::Refuse => spool.refuse(refusal(event)).unwrap(),
                Step::Sync => spool.flush().unwrap(),
            }
        }
        killed(home.path())
    }

    /// The entries of the image's first segment with their offsets, read without the code under test but for the frame.
    fn entries(bytes: &[u8]) -> Vec<(usize, Head, usize)> {
        let mut entries = Vec::new();
        let mut offset = 0;
        while let Read::Entry(entry) = entry::read(&bytes[offset..]) {
            entries.push((offset, entry.head, entry.bytes as usize));
            offset += entry.bytes as usize;
        }
        entries
    }

    /// What should be closed and what open if exactly these entries are whole.
    fn outcome(entries: &[(usize, Head, usize)]) -> (Vec<Uuid>, Vec<Uuid>) {
        let ended: Vec<Uuid> = entries.iter().filter(|(_, head, _)| head.kind == Kind::End).map(|(_, head, _)| head.id).collect();
        let begun = entries.iter().filter(|(_, head, _)| head.kind == Kind::Begin).map(|(_, head, _)| head.id);
        let mut open: Vec<Uuid> = begun.filter(|id| !ended.contains(id)).collect();
        open.sort_unstable();
        (ended, open)
    }

    fn first_segment(image: &Path) -> (std::path::PathBuf, Vec<u8>) {
        let path = image.join("00000000000000000001.seg");
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    }

    fn scan(bytes: &[u8]) -> Result<Scan, Damage> {
        let Read::Entry(first) = entry::read(bytes) else { return Ok(Scan::of(Uuid::nil())) };
        let mut scan = Scan::of(first.head.id);
        scan.read(1, bytes).map(|()| scan)
    }

    fn check(scan: &Scan, whole: &[(usize, Head, usize)]) {
        let (ended, open) = outcome(whole);
        let mut found: Vec<Uuid> = scan.open.keys().copied().collect();
        found.sort_unstable();
        assert_eq!((scan.last_sequence, found), (ended.len() as u64, open));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_row_torn_at_any_byte_keeps_every_whole_entry(steps in steps()) {
            let image = image_after(&steps);
            let (_, bytes) = first_segment(image.path());
            let entries = entries(&bytes);
            let end = entries.last().map_or(0, |(offset, _, bytes)| offset + bytes);
            let tail = entries[entries.len().saturating_sub(4).max(1)..].first().map_or(end, |(offset, ..)| *offset);
            for torn in tail..=end {
                let whole = entries.iter().take_while(|(offset, _, bytes)| offset + bytes <= torn).count();
                check(&scan(&bytes[..torn]).unwrap(), &entries[..whole]);
            }
        }

        #[test]
        fn a_hole_is_cut_off_unless_it_had_been_synced(steps in steps(), which: prop::sample::Index, bit: prop::sample::Index) {
            let image = image_after(&steps);
            let (_, mut bytes) = first_segment(image.path());
            let entries = entries(&bytes);
            let which = which.index(entries.len());
            let (offset, _, length) = entries[which];
            let bit = bit.index(length * 8);
            bytes[offset + bit / 8] ^= 1 << (bit % 8);
            let proven = entries[which + 1..].iter().any(|(_, head, _)| head.synced as usize > offset);
            if which > 0 {
                match scan(&bytes) {
                    Ok(scan) => {
                        prop_assert!(!proven);
                        check(&scan, &entries[..which]);
                    }
                    Err(damage) => prop_assert!(proven && damage.place.offset as usize == offset),
                }
            }
        }

        #[test]
        fn an_opened_image_tells_every_use_once_and_densely(steps in steps(), torn: prop::sample::Index) {
            let image = image_after(&steps);
            let (path, mut bytes) = first_segment(image.path());
            let entries = entries(&bytes);
            let end = entries.last().map_or(0, |(offset, _, bytes)| offset + bytes);
            let torn = entries[0].2 + torn.index(end - entries[0].2 + 1);
            bytes[torn..].fill(0);
            std::fs::write(&path, &bytes).unwrap();
            let whole = entries.iter().take_while(|(offset, _, bytes)| offset + bytes <= torn).count();
            let (ended, open_uses) = outcome(&entries[..whole]);

            let spool = open(image.path(), MIB);
            begin(&spool, &AuditRecord::example(999)).unwrap().finish_as(AuditRecord::example(999));
            drop(spool);
            let records = closed(&open(image.path(), MIB));
            let told: Vec<Uuid> = records.iter().map(|record| record.event_id).collect();
            prop_assert_eq!(&told[..ended.len()], &ended[..]);
            let mut unknown = told[ended.len()..told.len() - 1].to_vec();
            unknown.sort_unstable();
            prop_assert_eq!(unknown, open_uses);
            prop_assert!(records[ended.len()..told.len() - 1].iter().all(|record| record.outcome == Outcome::Unknown));
            prop_assert_eq!(sequences(&records), (1..=records.len() as u64).collect::<Vec<_>>());
        }
    }

    /// A spool of several segments, killed.
    fn large_image(synced: bool) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), 4 * MIB);
        for event in 1..=2000 {
            begin(&spool, &AuditRecord::example(event)).unwrap().finish_as(AuditRecord::example(event));
            if synced && event % 50 == 0 {
                spool.flush().unwrap();
            }
        }
        killed(home.path())
    }

    fn opened(image: &Path) -> Result<std::sync::Arc<super::super::Spool>, SpoolError> {
        let every_second = crate::config::SpoolSync::Every(std::time::Duration::from_secs(1));
        super::super::Spool::open(&settings(image, 4 * MIB, every_second), None, &crate::metrics::Metrics::new())
    }

    #[test]
    fn damage_in_an_older_segment_that_had_been_synced_is_refused_by_name() {
        let image = large_image(true);
        let (path, mut bytes) = first_segment(image.path());
        bytes[100_000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = opened(image.path()).unwrap_err();
        assert!(matches!(&error, SpoolError::Damaged { path: named, offset, .. } if *named == path && *offset < 100_000), "{error}");
    }

    #[test]
    fn a_hole_that_never_reached_the_disk_ends_the_row_and_later_segments_go() {
        let image = large_image(false);
        let (path, mut bytes) = first_segment(image.path());
        let whole = entries(&bytes).iter().filter(|(offset, head, bytes)| head.kind == Kind::End && offset + bytes <= 100_000).count();
        bytes[100_000..110_000].fill(0);
        std::fs::write(&path, bytes).unwrap();
        let records = closed(&opened(image.path()).unwrap());
        assert!((whole..=whole + 1).contains(&records.len()), "{whole} {}", records.len());
        assert_eq!(sequences(&records), (1..=records.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_missing_segment_and_a_segment_of_another_spool_are_refused() {
        let image = large_image(true);
        let second = image.path().join("00000000000000000002.seg");
        let other = large_image(true);
        std::fs::copy(other.path().join("00000000000000000002.seg"), &second).unwrap();
        assert!(matches!(opened(image.path()), Err(SpoolError::Damaged { what: "the segment belongs to another spool", .. })));
        std::fs::remove_file(second).unwrap();
        assert!(matches!(opened(image.path()), Err(SpoolError::Damaged { what: "the segment before this one is missing", .. })));
    }

    #[test]
    fn numbers_that_nobody_can_have_given_out_are_damage_and_are_never_counted_on() {
        let spool = Uuid::from_u128(7);
        let segment = |entries: &[(Kind, u64)]| -> Vec<u8> {
            let seal = |(kind, sequence): &(Kind, u64)| {
                Frame::bare().seal(Head { kind: *kind, synced: 0, sequence: *sequence, id: spool }).to_vec()
            };
            entries.iter().flat_map(seal).collect()
        };
        let read = |number, entries: &[(Kind, u64)]| {
            let mut scan = Scan::of(spool);
            scan.read(number, &segment(entries)).map(|()| scan.last_sequence)
        };
        for sequence in [NUMBER_MAX + 1, u64::MAX - 1, u64::MAX] {
            for entries in [
                &[(Kind::Open, sequence)][..],
                &[(Kind::Open, sequence), (Kind::End, sequence.wrapping_add(1))],
                &[(Kind::Open, 0), (Kind::Skip, sequence)],
                &[(Kind::Open, 0), (Kind::Skip, sequence), (Kind::End, sequence.wrapping_add(1))],
                &[(Kind::Open, 0), (Kind::Begin, sequence)],
            ] {
                assert!(read(1, entries).is_err(), "{entries:?}");
            }
        }
        assert!(read(u64::MAX, &[(Kind::Open, 0)]).is_err());
        assert_eq!(read(NUMBER_MAX, &[(Kind::Open, 0), (Kind::Skip, NUMBER_MAX)]), Ok(NUMBER_MAX));
        assert_eq!(read(1, &[(Kind::Open, 0), (Kind::Skip, 7), (Kind::End, 8)]), Ok(8));
        // A store that names such a number is not followed.
        let home = tempfile::tempdir().unwrap();
        let spool = open(home.path(), MIB);
        assert!(spool.core.resume_after(u64::MAX).is_err());
        assert!(spool.core.resume_after(9).is_ok());
    }
}

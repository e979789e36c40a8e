//! What the spool's lock guards: which segments are held, which BEGINs are open, how much room is promised.
//!
//! The rule of room: what is preallocated and still free is never less than what has been promised to the ENDs of open
//! BEGINs. So `begin` may be refused, and `end` is not. Whoever needs more room asks the keeper for another spare.
//!
//! BEGINs are gathered, and whoever of them comes first to [`Log::write`] writes for all: under load one write serves
//! many. An END waits for nobody: it goes with the BEGINs that are gathered, or is written at once where there are none.
//! Writes happen under the lock, in order: sequences are dense in the file too, and a torn entry is always the last.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use foldhash::HashMap;
use uuid::Uuid;

use super::entry::{self, END_GROWTH_BYTES, ENTRY_BYTES_MAX, Frame, HEAD_BYTES, Head, Kind, NUMBER_MAX, Read};
use super::recover::OpenBegin;
use super::segment::{self, Place, Segment};
use crate::domain::Timestamp;

/// How many BEGINs are copied under one hold of the lock: a few hundred microseconds.
const COPIES_AT_ONCE: usize = 64;

/// A BEGIN whose END is awaited.
#[derive(Clone, Copy, Debug)]
struct Begun {
    begin: OpenBegin,
    /// Bytes promised to its END.
    promised: u32,
}

/// A BEGIN that was appended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    /// Most bytes of its END.
    pub(super) end_bytes_max: u32,
    /// Its number, for [`Log::is_written`].
    pub(super) entry: u64,
}

/// An END that the disk did not take; the keeper tries again.
#[derive(Debug)]
struct Unwritten {
    id: Uuid,
    frame: Frame,
}

/// The guarded state.
#[derive(Debug)]
pub(super) struct Log {
    spool: Uuid,
    held: VecDeque<Segment>,
    spares: VecDeque<Segment>,
    begun: HashMap<Uuid, Begun>,
    unwritten: VecDeque<Unwritten>,
    /// Entries of a segment whose write failed, while there is no other segment for them.
    stranded: Vec<u8>,
    /// Somebody waits for a BEGIN to be written, and will see to it.
    is_awaited: bool,
    /// Entries ever appended, and how many of them are written.
    appended: u64,
    written: u64,
    last_sequence: u64,
    /// What the store said it holds; `None` until it was asked.
    shipped: Option<u64>,
    /// What was lost last: what comes after the first sequence, up to the second.
    lost: Option<(u64, u64)>,
    /// Everything before this place is shipped.
    shipped_to: Place,
    promised: u64,
    /// No further spare can be made for now.
    pub(super) starved: bool,
    /// Someone waits for room.
    pub(super) wanted: bool,
    /// The disk refused to sync: nothing new is begun until it has.
    pub(super) failing: bool,
    /// When the oldest record was written that the shipper has taken up and not shipped.
    pub(super) oldest: Option<Timestamp>,
}

/// What can be read of a segment without the lock.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) number: u64,
    pub(super) file: Arc<File>,
    pub(super) bytes: u32,
    /// A sync of this file has failed once.
    pub(super) suspect: bool,
}

impl View {
    fn of(segment: &Segment, bytes: u32) -> Self {
        Self { number: segment.number, file: Arc::clone(&segment.file), bytes, suspect: segment.suspect }
    }
}

impl Log {
    /// The state after a start, from the segments that were found. Their BEGINs are [`Log::adopt`]ed next.
    pub(super) fn new(spool: Uuid, held: VecDeque<Segment>, last_sequence: u64) -> Self {
        let first = held.front().map_or(0, |segment| segment.number);
        Self {
            spool,
            held,
            spares: VecDeque::new(),
            begun: HashMap::default(),
            unwritten: VecDeque::new(),
            stranded: Vec::new(),
            is_awaited: false,
            appended: 0,
            written: 0,
            last_sequence,
            shipped: None,
            lost: None,
            shipped_to: Place { segment: first, offset: 0 },
            promised: 0,
            starved: false,
            wanted: false,
            failing: false,
            oldest: None,
        }
    }

    /// Takes a BEGIN that a former process left open. Nothing was promised to its END here.
    pub(super) fn adopt(&mut self, id: Uuid, begin: OpenBegin) {
        self.count_open(begin.place.segment, 1);
        self.begun.insert(id, Begun { begin, promised: 0 });
    }

    /// Bytes that can certainly be written, however badly the entries fill the segments.
    fn room(&self) -> u64 {
        let sure = |room: u32| u64::from(room.saturating_sub(ENTRY_BYTES_MAX));
        let spares: u64 = self.spares.iter().map(|spare| sure(spare.room().saturating_sub(HEAD_BYTES))).sum();
        self.held.back().map_or(0, |segment| sure(segment.room())) + spares
    }

    /// Whether so many bytes can be written beside everything that is promised.
    pub(super) fn has_room(&self, bytes: u32) -> bool {
        self.room() >= self.promised + u64::from(bytes)
    }

    /// What a BEGIN takes: itself and its END.
    pub(super) fn price(frame: &Frame) -> u32 {
        frame.bytes() * 2 + END_GROWTH_BYTES
    }

    /// Appends a BEGIN, for which there [has to be room](Log::has_room). It is to be [written](Log::write).
    pub(super) fn begin(&mut self, id: Uuid, frame: &mut Frame) -> io::Result<Begin> {
        let bytes = frame.bytes();
        let promised = bytes + END_GROWTH_BYTES;
        let place = self.append(Head { kind: Kind::Begin, synced: 0, sequence: 0, id }, frame)?;
        self.count_open(place.segment, 1);
        self.promised += u64::from(promised);
        self.begun.insert(id, Begun { begin: OpenBegin { place, bytes }, promised });
        self.is_awaited = true;
        Ok(Begin { end_bytes_max: promised, entry: self.appended })
    }

    /// Writes everything that was appended.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.is_awaited = false;
        self.append_stranded()?;
        while let Some(last) = self.held.back_mut() {
            let Err(error) = last.write() else { break };
            tracing::error!(segment = last.number, %error, "a write to the audit spool failed; going on in another segment");
            self.stranded = last.close();
            self.append_stranded()?;
        }
        self.written = self.appended;
        Ok(())
    }

    /// Whether an entry is written.
    pub(super) fn is_written(&self, entry: u64) -> bool {
        self.written >= entry
    }

    /// Writes an END and gives it the next sequence; never fails for good, and keeps the order.
    pub(super) fn end(&mut self, id: Uuid, frame: &mut Frame) {
        let written = if self.unwritten.is_empty() { self.try_end(id, frame) } else { Err(io::ErrorKind::StorageFull.into()) };
        self.write_unawaited();
        if let Err(error) = written {
            if self.unwritten.is_empty() {
                tracing::error!(%error, "the audit spool cannot be written; records wait in memory");
            }
            self.unwritten.push_back(Unwritten { id, frame: frame.clone() });
        }
    }

    /// Writes an END without a BEGIN, if there is room.
    pub(super) fn end_unbegun(&mut self, id: Uuid, frame: &mut Frame) -> bool {
        let is_taken = self.unwritten.is_empty() && self.has_room(frame.bytes()) && self.try_end(id, frame).is_ok();
        self.write_unawaited();
        is_taken
    }

    /// Writes, unless somebody is about to. What the disk does not take now is tried again by the keeper.
    fn write_unawaited(&mut self) {
        if !self.is_awaited {
            let _ = self.write();
        }
    }

    /// Closes a BEGIN whose use did not happen. Should this fail, a crash would turn it into an `unknown` record.
    pub(super) fn withdraw(&mut self, id: Uuid) {
        if let Err(error) = self.append(Head { kind: Kind::Withdrawn, synced: 0, sequence: 0, id }, &mut Frame::bare()) {
            tracing::error!(%error, "a withdrawn use could not be marked in the audit spool");
        }
        self.settle(id);
        let _ = self.write();
    }

    /// Tries again what the disk did not take.
    pub(super) fn write_unwritten(&mut self) {
        while let Some(mut next) = self.unwritten.pop_front() {
            if self.try_end(next.id, &mut next.frame).is_err() {
                return self.unwritten.push_front(next);
            }
        }
        let _ = self.write();
    }

    /// Whether records wait in memory for the disk.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty() || !self.stranded.is_empty()
    }

    /// Numbers on after a sequence that the store holds and this spool never gave out.
    pub(super) fn skip_to(&mut self, sequence: u64) -> io::Result<()> {
        if sequence > NUMBER_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the store names a sequence greater than any that can be given out"));
        }
        if sequence > self.last_sequence {
            self.append(Head { kind: Kind::Skip, synced: 0, sequence, id: self.spool }, &mut Frame::bare())?;
            self.last_sequence = sequence;
            self.write()?;
        }
        Ok(())
    }

    /// Where the BEGIN of an open use lies.
    pub(super) fn begin_of(&self, id: Uuid) -> Option<(Arc<File>, OpenBegin)> {
        let begin = self.begun.get(&id)?.begin;
        Some((Arc::clone(&self.segment(begin.place.segment)?.file), begin))
    }

    /// The BEGINs that were adopted, in the order in which they were written.
    pub(super) fn begun(&self) -> Vec<Uuid> {
        let mut begun: Vec<_> = self.begun.iter().map(|(id, begun)| (begun.begin.place, *id)).collect();
        begun.sort_unstable();
        begun.into_iter().map(|(_, id)| id).collect()
    }

    fn try_end(&mut self, id: Uuid, frame: &mut Frame) -> io::Result<()> {
        let sequence = self.last_sequence + 1;
        self.append(Head { kind: Kind::End, synced: 0, sequence, id }, frame)?;
        self.last_sequence = sequence;
        self.settle(id);
        Ok(())
    }

    fn settle(&mut self, id: Uuid) {
        if let Some(begun) = self.begun.remove(&id) {
            self.promised = self.promised.saturating_sub(u64::from(begun.promised));
            self.count_open(begun.begin.place.segment, -1);
        }
    }

    fn count_open(&mut self, number: u64, change: i32) {
        if let Some(segment) = self.segment_mut(number) {
            segment.open = segment.open.saturating_add_signed(change);
        }
    }

    /// Appends to the last segment, or to a spare if it does not fit.
    fn append(&mut self, head: Head, frame: &mut Frame) -> io::Result<Place> {
        self.append_stranded()?;
        if self.held.back().is_none_or(|segment| segment.room() < frame.bytes()) {
            // Only the last segment gathers.
            self.write()?;
            self.roll(self.last_sequence)?;
        }
        let last = self.held.back_mut().ok_or(io::ErrorKind::StorageFull)?;
        self.appended += 1;
        Ok(last.append(head, frame))
    }

    /// Makes the next spare the last segment; its first entry says which sequence was the last before it.
    fn roll(&mut self, before: u64) -> io::Result<()> {
        let mut next = self.spares.pop_front().ok_or(io::ErrorKind::StorageFull)?;
        next.append(Head { kind: Kind::Open, synced: 0, sequence: before, id: self.spool }, &mut Frame::bare());
        if let Err(error) = next.write() {
            next.forget_gathered();
            self.spares.push_front(next);
            return Err(error);
        }
        self.held.push_back(next);
        Ok(())
    }

    /// Moves the entries of a segment whose write failed into a new one, where they get their places anew.
    fn append_stranded(&mut self) -> io::Result<()> {
        let mut rest = self.stranded.as_slice();
        let mut entries = Vec::new();
        while let Read::Entry(entry) = entry::read(rest) {
            // A BEGIN that was withdrawn meanwhile is not needed any more.
            if entry.head.kind != Kind::Begin || self.begun.contains_key(&entry.head.id) {
                entries.push((entry.head, Frame::with_payload(entry.payload)));
            }
            rest = rest.get(entry.bytes as usize..).unwrap_or_default();
        }
        if entries.is_empty() {
            self.stranded.clear();
            return Ok(());
        }
        let first = entries.iter().find(|(head, _)| matches!(head.kind, Kind::End | Kind::Skip));
        let before = first.map_or(self.last_sequence, |(head, _)| head.sequence.saturating_sub(1));
        if let Some(closed) = self.held.back_mut() {
            closed.last_sequence = closed.last_sequence.min(before);
        }
        self.roll(before)?;
        self.stranded.clear();
        for (head, mut frame) in entries {
            let Some(last) = self.held.back_mut() else { break };
            let place = last.append(head, &mut frame);
            if let Some(begun) = self.begun.get_mut(&head.id).filter(|_| head.kind == Kind::Begin) {
                let old = std::mem::replace(&mut begun.begin.place, place);
                self.count_open(old.segment, -1);
                self.count_open(place.segment, 1);
            }
        }
        Ok(())
    }
}

/// Making and deleting segments: the keeper's part.
impl Log {
    /// Whether the keeper should make another spare.
    pub(super) fn wants_spare(&self) -> bool {
        self.wanted || self.spares.is_empty()
    }

    /// The number of the next spare.
    pub(super) fn next_number(&self) -> u64 {
        self.spares.back().or(self.held.back()).map_or(1, |segment| segment.number + 1)
    }

    /// Takes a new spare.
    pub(super) fn add_spare(&mut self, spare: Segment) {
        self.spares.push_back(spare);
        self.wanted = false;
    }

    /// Bytes taken from the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.held.iter().chain(&self.spares).map(|segment| u64::from(segment.size)).sum()
    }

    /// The oldest segment, if all its ENDs are shipped and the shipped segments together exceed `kept_bytes`.
    pub(super) fn overdue(&self, kept_bytes: u64) -> Option<u64> {
        let shipped = self.shipped?;
        let before_last = self.held.len().saturating_sub(1);
        let done = self.held.iter().take(before_last).take_while(|segment| segment.last_sequence <= shipped);
        let bytes: u64 = done.map(|segment| u64::from(segment.size)).sum();
        (bytes > kept_bytes).then(|| self.held.front().map(|segment| segment.number)).flatten()
    }

    /// Copies some of a segment's open BEGINs to the end, so that one long stream does not keep everything behind it.
    /// Says whether none is left.
    pub(super) fn copy_begins(&mut self, number: u64) -> io::Result<bool> {
        if self.segment(number).is_none_or(|segment| segment.open == 0) {
            return Ok(true);
        }
        let here = |begun: &Begun| begun.begin.place.segment == number;
        let some: Vec<Uuid> = self.begun.iter().filter(|(_, begun)| here(begun)).map(|(id, _)| *id).take(COPIES_AT_ONCE).collect();
        for id in some {
            self.copy_begin(id)?;
        }
        Ok(self.segment(number).is_none_or(|segment| segment.open == 0))
    }

    fn copy_begin(&mut self, id: Uuid) -> io::Result<()> {
        let Some((file, old)) = self.begin_of(id) else { return Ok(()) };
        if !self.has_room(old.bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut frame = Frame::with_payload(&segment::read_payload(&file, old.place, old.bytes)?);
        let place = self.append(Head { kind: Kind::Begin, synced: 0, sequence: 0, id }, &mut frame)?;
        self.count_open(old.place.segment, -1);
        self.count_open(place.segment, 1);
        if let Some(begun) = self.begun.get_mut(&id) {
            begun.begin = OpenBegin { place, ..old };
        }
        Ok(())
    }

    /// Lets go of the oldest segment, whose file is gone.
    pub(super) fn forget(&mut self, number: u64) {
        if self.held.front().is_some_and(|segment| segment.number == number) {
            self.held.pop_front();
        }
    }
}

/// Syncing and shipping.
impl Log {
    /// The segments with entries that may not have reached the disk, in order.
    pub(super) fn unsynced(&self) -> Vec<View> {
        let unsynced = self.held.iter().filter(|segment| segment.synced < segment.written());
        unsynced.map(|segment| View::of(segment, segment.written())).collect()
    }

    /// So much of a segment has reached the disk.
    pub(super) fn set_synced(&mut self, number: u64, bytes: u32) {
        if let Some(segment) = self.segment_mut(number) {
            segment.synced = segment.synced.max(bytes);
        }
    }

    /// Whether the BEGIN of an open use has reached the disk.
    pub(super) fn is_begin_synced(&self, id: Uuid) -> bool {
        let Some(OpenBegin { place, bytes }) = self.begun.get(&id).map(|begun| begun.begin) else { return true };
        self.segment(place.segment).is_none_or(|segment| segment.synced >= place.offset + bytes)
    }

    /// A segment by its number.
    pub(super) fn segment(&self, number: u64) -> Option<&Segment> {
        self.held.get(self.index(number)?)
    }

    /// The same, to change it.
    pub(super) fn segment_mut(&mut self, number: u64) -> Option<&mut Segment> {
        let index = self.index(number)?;
        self.held.get_mut(index)
    }

    /// What of a segment may be shipped, and whether entries go on in a later one.
    pub(super) fn shippable(&self, number: u64) -> Option<(View, bool)> {
        let segment = self.segment(number)?;
        let is_last = self.held.back().is_some_and(|last| last.number == number);
        Some((View::of(segment, segment.synced), !is_last && segment.synced == segment.appended))
    }

    /// Where the first END after a sequence is to be looked for.
    pub(super) fn place_after(&self, sequence: u64) -> Place {
        let segment = self.held.iter().find(|segment| segment.last_sequence > sequence).or(self.held.back());
        Place { segment: segment.map_or(0, |segment| segment.number), offset: 0 }
    }

    /// The last sequence that was given out.
    pub(super) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The store holds everything up to a sequence; answers how much that is more than was known.
    pub(super) fn set_shipped(&mut self, sequence: u64, to: Place) -> u64 {
        self.shipped_to = to;
        self.oldest = None;
        self.shipped.replace(sequence).map_or(0, |before| sequence.saturating_sub(before))
    }

    /// What comes after `mark` up to a sequence is lost; answers how much that is more than was known.
    pub(super) fn set_lost(&mut self, mark: u64, up_to: u64) -> u64 {
        let known = self.lost.replace((mark, up_to)).filter(|(from, _)| *from == mark);
        up_to.saturating_sub(known.map_or(mark, |(_, known)| known))
    }

    /// Bytes behind the shipped ones.
    pub(super) fn unshipped_bytes(&self) -> u64 {
        let behind = self.held.iter().filter(|segment| segment.number >= self.shipped_to.segment);
        let written: u64 = behind.map(|segment| u64::from(segment.appended)).sum();
        written.saturating_sub(u64::from(self.shipped_to.offset))
    }

    /// Numbers are without gaps, so a number is a distance from the first.
    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.held.front()?.number)?).ok()
    }
}

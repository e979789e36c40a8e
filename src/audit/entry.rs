//! One entry of a segment: how it is framed, written and read.
//!
//! ```text
//!  0        4        8    9        13         21       37
//!  ┌────────┬────────┬────┬────────┬──────────┬────────┬─────────────┐
//!  │ length │ CRC-32C│kind│ synced │ sequence │ id     │ payload …   │  integers little-endian
//!  └────────┴────────┴────┴────────┴──────────┴────────┴─────────────┘
//!  length    bytes from `kind` to the end of the payload
//!  CRC-32C   of `length` and of everything from `kind` on
//!  synced    how much of this segment was known to be on disk when the entry was written
//!  sequence  END: its own; OPEN and SKIP: the last one given out; else 0
//!  id        BEGIN, END, WITHDRAWN: the record's event id; OPEN: the spool's id
//!  payload   BEGIN and END: the record as [`WrittenRecord`], without `sequence`
//! ```
//!
//! After the last entry come the preallocation's zeros. Records hold no zero byte, so no payload can look like an entry.

use std::cell::RefCell;

use uuid::Uuid;

use crate::domain::{AuditRecord, WrittenRecord};

/// Bytes of a frame before its payload.
pub(super) const HEAD_BYTES: u32 = 37;
/// Most bytes of one entry. Twice the longest request target and the other fields at their limits fit in it; it bounds
/// the room that is lost at the end of a segment.
pub(super) const ENTRY_BYTES_MAX: u32 = 32 * 1024;
/// How much longer an END may be than its BEGIN: route, upstream, status, counters and reason are known only then.
pub(super) const END_GROWTH_BYTES: u32 = 1024;
/// Most bytes of a BEGIN, so that its END is within the entry's limit too.
pub(super) const BEGIN_BYTES_MAX: u32 = ENTRY_BYTES_MAX - END_GROWTH_BYTES;

/// Greatest sequence, and greatest number of a segment. Nobody comes near it: a hundred thousand records a second take 2,800
/// years; and the stores' scripts count in floating point, which is exact up to here. What is read as more was never written.
pub(super) const NUMBER_MAX: u64 = 1 << 53;

const LENGTH_BYTES: usize = 4;
const CHECKED_FROM: usize = 8;
const HEAD: usize = HEAD_BYTES as usize;

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// First of its segment: whose it is, and which sequence was the last before it.
    Open,
    /// A use is about to be forwarded.
    Begin,
    /// A record is closed.
    End,
    /// The use of this BEGIN was not forwarded after all and leaves no record.
    Withdrawn,
    /// The store holds sequences that this spool never gave out; numbering goes on after them.
    Skip,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Begin => 2,
            Self::End => 3,
            Self::Withdrawn => 4,
            Self::Skip => 5,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Open, Self::Begin, Self::End, Self::Withdrawn, Self::Skip].into_iter().find(|kind| kind.byte() == byte)
    }
}

/// What stands in a frame before the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) synced: u32,
    pub(super) sequence: u64,
    pub(super) id: Uuid,
}

/// An entry as bytes, its head left open until its place is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame(Vec<u8>);

impl Frame {
    /// An entry without a payload.
    pub(super) fn bare() -> Self {
        Self(vec![0; HEAD])
    }

    /// An entry with the same payload as one that was read.
    pub(super) fn with_payload(payload: &[u8]) -> Self {
        let mut frame = Self::bare();
        frame.0.extend_from_slice(payload);
        frame
    }

    /// The whole entry's length in bytes.
    pub(super) fn bytes(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Fills the head in; what is returned may be written.
    pub(super) fn seal(&mut self, head: Head) -> &[u8] {
        let length = self.bytes().saturating_sub(CHECKED_FROM as u32).to_le_bytes();
        if let Some(place) = self.0.first_chunk_mut::<HEAD>() {
            place[..4].copy_from_slice(&length);
            place[8] = head.kind.byte();
            place[9..13].copy_from_slice(&head.synced.to_le_bytes());
            place[13..21].copy_from_slice(&head.sequence.to_le_bytes());
            place[21..37].copy_from_slice(head.id.as_bytes());
        }
        let checksum = checksum(length, self.0.get(CHECKED_FROM..).unwrap_or_default()).to_le_bytes();
        if let Some(place) = self.0.first_chunk_mut::<HEAD>() {
            place[4..8].copy_from_slice(&checksum);
        }
        &self.0
    }

    fn set_payload(&mut self, record: &WrittenRecord) {
        self.0.clear();
        self.0.resize(HEAD, 0);
        self.0.extend_from_slice(record.bytes());
    }

    /// Cuts the long texts, least needed first, until the entry has at most `bytes_max`.
    fn cut_to(&mut self, bytes_max: u32, mut record: AuditRecord) {
        for text in TEXTS_TO_CUT {
            let excess = self.bytes().saturating_sub(bytes_max);
            if excess == 0 {
                return;
            }
            cut(text(&mut record), excess as usize);
            self.set_payload(&WrittenRecord::from(&record));
        }
    }
}

type TextOf = fn(&mut AuditRecord) -> &mut Option<String>;
const TEXTS_TO_CUT: [TextOf; 8] = [
    |record| &mut record.reason,
    |record| &mut record.user_agent,
    |record| &mut record.traceparent,
    |record| &mut record.path,
    |record| &mut record.host,
    |record| &mut record.upstream,
    |record| &mut record.route,
    |record| &mut record.method,
];

/// Takes at least `excess` bytes off the end of a text, or all of it, and marks the place.
fn cut(text: &mut Option<String>, excess: usize) {
    const MARK: &str = "…";
    let Some(whole) = text else { return };
    match whole.len().checked_sub(excess + MARK.len()) {
        Some(kept) => {
            whole.truncate(whole.floor_char_boundary(kept));
            whole.push_str(MARK);
        }
        None => *text = None,
    }
}

thread_local! {
    /// One buffer per thread, at most [`ENTRY_BYTES_MAX`] long, so that an entry costs no allocation.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encodes a record, cut to `bytes_max` where its texts are too long, and hands the frame to `work`.
pub(super) fn with_record<T>(record: &WrittenRecord, bytes_max: u32, work: impl FnOnce(&mut Frame) -> T) -> T {
    let mut frame = Frame(BUFFER.take());
    frame.set_payload(record);
    if frame.bytes() > bytes_max
        && let Ok(whole) = record.read()
    {
        frame.cut_to(bytes_max, whole);
    }
    let result = work(&mut frame);
    BUFFER.replace(frame.0);
    result
}

/// An entry that was read and whose checksum is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry<'a> {
    pub(super) head: Head,
    pub(super) payload: &'a [u8],
    /// The whole entry's length in bytes.
    pub(super) bytes: u32,
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Read<'a> {
    /// An entry.
    Entry(Entry<'a>),
    /// Nothing was written here.
    Nothing,
    /// Something that is no whole entry: torn, damaged, or going on beyond these bytes.
    Broken,
}

/// Reads the entry at the beginning of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Read<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return if bytes.iter().all(|byte| *byte == 0) { Read::Nothing } else { Read::Broken };
    };
    match u32::from_le_bytes(*length) {
        0 => Read::Nothing,
        _ => read_checked(*length, rest).map_or(Read::Broken, Read::Entry),
    }
}

fn read_checked(length: [u8; LENGTH_BYTES], rest: &[u8]) -> Option<Entry<'_>> {
    let bytes = u32::from_le_bytes(length).checked_add(CHECKED_FROM as u32)?;
    if !(HEAD_BYTES..=ENTRY_BYTES_MAX).contains(&bytes) {
        return None;
    }
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    let checked = rest.get(..bytes as usize - CHECKED_FROM)?;
    if checksum(length, checked) != u32::from_le_bytes(*expected) {
        return None;
    }
    let (kind, rest) = checked.split_first()?;
    let (synced, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (id, payload) = rest.split_first_chunk::<16>()?;
    let head = Head {
        kind: Kind::of(*kind)?,
        synced: u32::from_le_bytes(*synced),
        sequence: u64::from_le_bytes(*sequence),
        id: Uuid::from_bytes(*id),
    };
    Some(Entry { head, payload, bytes })
}

fn checksum(length: [u8; LENGTH_BYTES], checked: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), checked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD_OF_TEST: Head = Head { kind: Kind::End, synced: 7, sequence: 9, id: Uuid::from_u128(11) };

    #[test]
    fn an_entry_reads_back_and_every_flipped_bit_is_noticed() {
        let bytes = with_record(&AuditRecord::example(5).into(), ENTRY_BYTES_MAX, |frame| frame.seal(HEAD_OF_TEST).to_vec());
        let Read::Entry(entry) = read(&bytes) else { panic!("unreadable") };
        assert_eq!((entry.head, entry.bytes as usize), (HEAD_OF_TEST, bytes.len()));
        assert_eq!(WrittenRecord::from_bytes(entry.payload).read().unwrap(), AuditRecord::example(5));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&damaged), Read::Broken, "bit {bit}");
        }
        for length in 4..bytes.len() {
            assert_eq!(read(&bytes[..length]), Read::Broken, "cut at {length}");
        }
    }

    #[test]
    fn zeros_are_nothing_whatever_their_number() {
        for length in [0, 1, 3, 4, 100] {
            assert_eq!(read(&vec![0; length]), Read::Nothing);
        }
    }

    #[test]
    fn a_record_with_long_texts_is_cut_and_keeps_what_identifies_it() {
        let mut record = AuditRecord::example(5);
        record.path = Some("/ü".repeat(60_000));
        record.reason = Some("r".repeat(100_000));
        let bytes = with_record(&WrittenRecord::from(&record), BEGIN_BYTES_MAX, |frame| frame.seal(HEAD_OF_TEST).to_vec());
        assert!(bytes.len() <= BEGIN_BYTES_MAX as usize, "{}", bytes.len());
        let Read::Entry(entry) = read(&bytes) else { panic!("unreadable") };
        let read_back = WrittenRecord::from_bytes(entry.payload).read().unwrap();
        assert_eq!((read_back.event_id, read_back.host), (record.event_id, record.host));
        assert!(read_back.path.unwrap().ends_with('…'));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}

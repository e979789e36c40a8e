//! One segment: a file that entries are appended to and read from, and what the spool knows about it.
//!
//! Entries are gathered in memory and written together, by one call; what is written is in the page cache, where it
//! outlives this process; `synced` says how much has reached the disk. A segment whose write failed is closed at its last
//! good entry: nobody can say what a second try would find.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::entry::{self, Frame, Head, Kind, Read};

/// What gathering keeps of its memory once it is written: what many connections bring at a time.
const GATHERED_KEPT_BYTES: usize = 256 * 1024;

/// A place in the spool. Later entries have greater places.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
}

/// A segment that is held.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Arc<File>,
    /// Bytes taken from the disk; entries end here at the latest.
    pub(super) size: u32,
    /// Bytes of entries, those that are gathered included.
    pub(super) appended: u32,
    /// Entries that are not written yet: the last of those that were appended.
    gathered: Vec<u8>,
    /// Bytes of entries that have reached the disk.
    pub(super) synced: u32,
    /// The last sequence given out before this segment.
    pub(super) before: u64,
    /// The last sequence given out when the last entry was written here.
    pub(super) last_sequence: u64,
    /// BEGINs in here that have no END yet.
    pub(super) open: u32,
    /// A sync of this file has failed. The kernel then forgets what it could not write, so a second sync that succeeds
    /// would prove nothing: the file has to be replaced.
    pub(super) suspect: bool,
}

impl Segment {
    /// A segment without entries.
    pub(super) fn empty(number: u64, file: File, size: u32) -> Self {
        Self {
            number,
            file: Arc::new(file),
            size,
            appended: 0,
            gathered: Vec::new(),
            synced: 0,
            before: 0,
            last_sequence: 0,
            open: 0,
            suspect: false,
        }
    }

    /// A segment of which `appended` bytes are entries, all on disk, and which takes no more.
    pub(super) fn found(number: u64, file: File, appended: u32) -> Self {
        Self { appended, synced: appended, ..Self::empty(number, file, appended) }
    }

    /// Bytes that can still be written.
    pub(super) fn room(&self) -> u32 {
        self.size.saturating_sub(self.appended)
    }

    /// Appends an entry that fits.
    pub(super) fn append(&mut self, head: Head, frame: &mut Frame) -> Place {
        let place = Place { segment: self.number, offset: self.appended };
        self.appended += frame.bytes();
        self.gathered.extend_from_slice(frame.seal(Head { synced: self.synced, ..head }));
        if head.kind == Kind::Open {
            self.before = head.sequence;
        }
        if matches!(head.kind, Kind::Open | Kind::End | Kind::Skip) {
            self.last_sequence = head.sequence;
        }
        place
    }

    /// Bytes of entries that are written.
    pub(super) fn written(&self) -> u32 {
        self.appended.saturating_sub(u32::try_from(self.gathered.len()).unwrap_or(u32::MAX))
    }

    /// Writes what is gathered. After an error the segment is to be [closed](Segment::close).
    pub(super) fn write(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.file.write_all_at(&self.gathered, u64::from(self.written()))?;
            self.gathered.clear();
            self.gathered.shrink_to(GATHERED_KEPT_BYTES);
        }
        Ok(())
    }

    /// As if nothing had been appended since the last write.
    pub(super) fn forget_gathered(&mut self) {
        self.appended = self.written();
        self.gathered.clear();
    }

    /// Takes no more entries, and gives back the room behind the last one that is written, with those that are not.
    pub(super) fn close(&mut self) -> Vec<u8> {
        self.appended = self.written();
        self.size = self.appended;
        if let Err(error) = self.file.set_len(u64::from(self.appended)) {
            tracing::error!(segment = self.number, %error, "cannot cut off what a failed write may have left in the audit spool");
        }
        std::mem::take(&mut self.gathered)
    }
}

/// Copies all entries into another file and forces it to disk. What is copied is checked entry by entry.
pub(super) fn copy_entries(segment: &Segment, to: &File) -> io::Result<()> {
    let mut entries = vec![0; segment.written() as usize];
    segment.file.read_exact_at(&mut entries, 0)?;
    let mut rest = entries.as_slice();
    let mut offset = 0;
    while !rest.is_empty() {
        let Read::Entry(entry) = entry::read(rest) else { return Err(damaged(Place { segment: segment.number, offset })) };
        offset += entry.bytes;
        rest = rest.get(entry.bytes as usize..).unwrap_or_default();
    }
    to.write_all_at(&entries, 0)?;
    to.sync_all()
}

/// Reads the entry at a place; what it holds is checked.
pub(super) fn read_payload(file: &File, place: Place, bytes: u32) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes as usize];
    file.read_exact_at(&mut buffer, u64::from(place.offset))?;
    match entry::read(&buffer) {
        Read::Entry(entry) => Ok(entry.payload.to_vec()),
        Read::Nothing | Read::Broken => Err(damaged(place)),
    }
}

/// The error for bytes that are not what was written.
pub(super) fn damaged(place: Place) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("segment {} of the audit spool is damaged at byte {}", place.segment, place.offset))
}

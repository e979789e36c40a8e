//! Fuzzing of the spool's reader.

use uuid::Uuid;

use super::entry::{self, Read};
use super::recover::Scan;
use crate::domain::WrittenRecord;

const SPOOL: Uuid = Uuid::from_u128(7);
const MARK: u8 = 0xee;

/// Reads two segments, cut at the first [`MARK`]. Entries are framed with a right checksum first, where the input says how,
/// because no fuzzer finds one. What was taken for written is taken again, alone, for the same; every record can be asked.
pub fn spool(data: &[u8]) {
    let cut = data.iter().position(|byte| *byte == MARK).unwrap_or(data.len());
    let (first, second) = (data.get(..cut).unwrap_or_default(), data.get(cut + 1..).unwrap_or_default());
    let segments = [with_checksums(first), with_checksums(second)];
    [first, second].into_iter().chain(segments.iter().map(Vec::as_slice)).for_each(read_entries);
    let mut scan = Scan::of(SPOOL);
    let damaged = segments.iter().zip(1..).any(|(bytes, number)| scan.read(number, bytes).is_err());
    if damaged {
        return;
    }
    let mut again = Scan::of(SPOOL);
    for found in &scan.segments {
        let bytes = segments.get(found.number as usize - 1).expect("two segments were read");
        let written = bytes.get(..found.written as usize).expect("entries end within the file");
        again.read(found.number, written).expect("what was whole is whole");
    }
    assert_eq!((&again.segments, &again.open, again.last_sequence), (&scan.segments, &scan.open, scan.last_sequence));
    assert_eq!(again.hole, None);
}

fn read_entries(mut bytes: &[u8]) {
    while let Read::Entry(entry) = entry::read(bytes) {
        let record = WrittenRecord::from_bytes(entry.payload);
        if let Ok(read) = record.read() {
            let rewritten = WrittenRecord::from(&read).read().expect("what was written can be read");
            assert_eq!(rewritten, read);
        }
        bytes = bytes.get(entry.bytes as usize..).expect("an entry lies within the bytes");
    }
}

/// The same bytes, where every frame whose length fits has its checksum made right.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut all = bytes.to_vec();
    let mut place = 0;
    while let Some(head) = all.get(place..).and_then(|rest| rest.first_chunk::<4>()).copied() {
        let checked = place + 8..place.saturating_add(8).saturating_add(u32::from_le_bytes(head) as usize);
        let Some(content) = all.get(checked.clone()) else { break };
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), content).to_le_bytes();
        if let Some(field) = all.get_mut(place + 4..place + 8) {
            field.copy_from_slice(&checksum);
        }
        place = checked.end;
    }
    all
}

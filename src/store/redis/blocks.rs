//! Blocks of a firm's log: records of one shipment that lie close together in time, as one entry of the firm's stream.
//!
//! A record costs Redis microseconds in commands and next to nothing in bytes, so what nobody but us reads goes in blocks.
//! In a block each record is `number:length:bytes` (see `WrittenRecord`). The last one's arrival is the entry's id `ms-n` as
//! one number, `ms << 22 | n` (milliseconds until 2039), and those before it are as far below as their numbers are. A block
//! that is shipped has the end of a millisecond as its id, so that all of it lies behind the block before.
//!
//! The order by time is a sorted set of the blocks' ids by their newest record. No block spans more than [`SPAN`], so
//! whoever looks for a moment begins that much later. Behind each id stands what the block is about, so that whoever looks
//! for a key passes over others without reading them: `!` where it holds a creation or a revocation, and the ends of its
//! keys' ids (`,3f0c,91ab`), or `*` where they are too many.

use std::time::Duration;

use super::corrupt;
use crate::domain::WrittenRecord;
use crate::store::StoreError;

/// Most time between the oldest and the newest record of a block: what is read in vain at the end of a page.
pub(super) const SPAN: Duration = Duration::from_millis(250);
/// A record that brings a block to this many bytes is its last: Redis answers blocks whole.
const BYTES_MAX: usize = 32 * 1024;
/// Keys that are told of a block at most.
const KEYS_TOLD_MAX: usize = 16;
/// So much of a key's id is told: two keys of a firm rarely share it, and then a block is read in vain.
const KEY_END: usize = 4;
/// Bits of an arrival that number the records of one millisecond.
pub(super) const NUMBER_BITS: u32 = 22;
/// The last number of a millisecond.
pub(super) const NUMBER_MAX: u64 = (1 << NUMBER_BITS) - 1;

/// Records that are to become one entry.
#[derive(Default)]
pub(super) struct Block {
    bytes: Vec<u8>,
    records: u64,
    /// The oldest and the newest moment, in microseconds.
    times: Option<(i64, i64)>,
    /// The ends of the ids of its keys, and one more where they are too many.
    keys: Vec<String>,
    has_change: bool,
}

impl Block {
    /// Whether a record of that moment may be added.
    pub(super) fn admits(&self, micros: i64) -> bool {
        self.times.is_none_or(|(oldest, newest)| {
            let (oldest, newest) = (oldest.min(micros), newest.max(micros));
            self.bytes.len() < BYTES_MAX
                && newest.checked_sub(oldest).is_some_and(|span| u128::try_from(span).is_ok_and(|span| span <= SPAN.as_micros()))
        })
    }

    /// Adds the record of that moment with the next number.
    pub(super) fn push(&mut self, micros: i64, record: &[u8]) {
        self.push_as(self.records, micros, record);
    }

    /// Adds it with a number of its own, larger than those before.
    pub(super) fn push_as(&mut self, number: u64, micros: i64, record: &[u8]) {
        self.bytes.extend_from_slice(format!("{number}:{}:", record.len()).as_bytes());
        self.bytes.extend_from_slice(record);
        self.records += 1;
        self.times = Some(self.times.map_or((micros, micros), |(oldest, newest)| (oldest.min(micros), newest.max(micros))));
    }

    /// Notes of which key a record is that was added, and whether it tells of a use or of a change.
    pub(super) fn note(&mut self, key: &str, is_change: bool) {
        self.has_change |= is_change;
        let end = key_end(key);
        if self.keys.len() <= KEYS_TOLD_MAX && !self.keys.iter().any(|known| known == end) {
            self.keys.push(end.to_owned());
        }
    }

    /// What the index tells of it.
    pub(super) fn about(&self) -> String {
        let keys = if self.keys.len() > KEYS_TOLD_MAX { "*".to_owned() } else { self.keys.iter().map(|end| format!(",{end}")).collect() };
        if self.has_change { format!("!{keys}") } else { keys }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The newest record's moment, by which it is found.
    pub(super) fn newest(&self) -> i64 {
        self.times.map_or(0, |(_, newest)| newest)
    }
}

/// The end of a key's id by which blocks are told apart.
pub(super) fn key_end(key: &str) -> &str {
    key.len().checked_sub(KEY_END).and_then(|from| key.get(from..)).unwrap_or(key)
}

/// The numbers and records of a block.
pub(super) fn read(block: &[u8]) -> Result<Vec<(u64, WrittenRecord)>, StoreError> {
    let (mut rest, mut records) = (block, Vec::new());
    while !rest.is_empty() {
        let (number, behind) = leading_number(rest)?;
        let (length, behind) = leading_number(behind)?;
        let length = usize::try_from(length).map_err(|_| broken())?;
        let (record, behind) = behind.split_at_checked(length).ok_or_else(broken)?;
        records.push((number, WrittenRecord::from_bytes(record)));
        rest = behind;
    }
    Ok(records)
}

fn leading_number(bytes: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let colon = bytes.iter().position(|byte| *byte == b':').ok_or_else(broken)?;
    let (digits, rest) = bytes.split_at(colon);
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or_else(broken)?;
    Ok((number, rest.get(1..).unwrap_or_default()))
}

fn broken() -> StoreError {
    corrupt("a block of a firm's log is none")
}

/// The id that an arrival is spelt as.
pub(super) fn place(arrival: u64) -> String {
    format!("{}-{}", arrival >> NUMBER_BITS, arrival & NUMBER_MAX)
}

/// The arrival that an id spells.
pub(super) fn arrival(id: &str) -> Result<u64, StoreError> {
    let (ms, number) = id.split_once('-').ok_or_else(|| corrupt("a stream's id is none"))?;
    let (ms, number) = (super::keys::number(ms)?, super::keys::number(number)?);
    if ms >> (u64::BITS - NUMBER_BITS) == 0 && number <= NUMBER_MAX {
        Ok(ms << NUMBER_BITS | number)
    } else {
        Err(corrupt("a stream's id is too large"))
    }
}

/// The arrivals and records of an entry.
pub(super) fn arrived(id: &str, block: &[u8]) -> Result<Vec<(u64, WrittenRecord)>, StoreError> {
    let (end, records) = (arrival(id)?, read(block)?);
    let last = records.last().map_or(0, |(number, _)| *number);
    let arrival = |number| last.checked_sub(number).and_then(|before| end.checked_sub(before)).ok_or_else(broken);
    records.into_iter().map(|(number, record)| Ok((arrival(number)?, record))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AuditRecord;

    #[test]
    fn a_block_reads_back_and_takes_no_record_of_another_time_or_too_many() {
        let mut block = Block::default();
        let record = WrittenRecord::from(AuditRecord::example(5));
        assert!(block.is_empty() && block.admits(i64::MIN));
        block.push(1_000_000, record.bytes());
        block.push_as(7, 900_000, record.bytes());
        assert!(
            block.admits(1_150_000)
                && block.admits(750_000)
                && !block.admits(1_150_001)
                && !block.admits(749_999)
                && !block.admits(i64::MIN)
        );
        assert_eq!((read(block.bytes()).unwrap(), block.newest()), (vec![(0, record.clone()), (7, record.clone())], 1_000_000));
        assert!((1..block.bytes().len()).all(|length| read(&block.bytes()[..length]).map_or(true, |read| read.len() == 1)));
        while block.admits(1_000_000) {
            block.push(1_000_000, record.bytes());
        }
        assert!((BYTES_MAX..BYTES_MAX + 1_000).contains(&block.bytes().len()));
    }

    #[test]
    fn a_block_tells_its_keys_unless_they_are_too_many() {
        let mut block = Block::default();
        for key in ["01a2-3f0c", "77aa-3f0c", "91ab"] {
            block.note(key, false);
        }
        assert_eq!(block.about(), ",3f0c,91ab");
        block.note("x", true);
        assert_eq!(block.about(), "!,3f0c,91ab,x");
        (0..13).for_each(|number| block.note(&format!("{number:04}"), false));
        assert_eq!(block.about().split(',').count(), 17);
        block.note("ffff", false);
        assert_eq!(block.about(), "!*");
    }

    #[test]
    fn arrivals_are_ordered_as_ids_are() {
        assert!(arrival("1795458600000-1").unwrap() < arrival("1795458600000-2").unwrap());
        assert!(arrival("1795458600000-2").unwrap() < arrival("1795458600001-0").unwrap());
        assert!(arrival("1795458600000").is_err() && arrival("1-99999999").is_err());
        assert_eq!(place(arrival("1795458600000-4194303").unwrap()), "1795458600000-4194303");
        let (mut block, record) = (Block::default(), WrittenRecord::from(AuditRecord::example(5)));
        for number in [3, 4, 9] {
            block.push_as(number, 0, record.bytes());
        }
        let arrivals = |id: &str| arrived(id, block.bytes()).map(|all| all.iter().map(|(arrival, _)| place(*arrival)).collect::<Vec<_>>());
        assert_eq!(arrivals("7-4194303").unwrap(), ["7-4194297", "7-4194298", "7-4194303"]);
        assert_eq!(arrivals("0-9").unwrap(), ["0-3", "0-4", "0-9"]);
        assert!(arrivals("0-5").is_err());
    }
}

//! A block: some records of one firm as one row of the log, because a row costs more than what is in it.
//!
//! ```text
//!   version 1 │ records 4 │ a head for each record │ the records as they were shipped, one after another
//!   head      time 8 │ event 16 │ arrival 8 │ key 16 │ action 1 │ permits 4 │ end 4        integers big-endian
//!   permits   of the key's window that the record spent, so that a window can be made again without reading records
//!   end       where the record ends, counted from the first record's beginning
//! ```
//!
//! Records are in the order of their arrival, and no two of a block are more than [`SPAN`] apart: so whoever walks the log
//! by time knows how far back a block may reach before reading it. Heads tell all that filters ask, so a record is
//! parsed only when it is to be shown.

use std::time::Duration;

use super::schema::{Reading, Spelling, VALUE_VERSION, corrupt};
use crate::domain::{Action, KeyId, Timestamp};
use crate::store::{ActivityPlace, StoreError};

/// How far apart the times of a block may be. Part of the layout: a file whose blocks are longer would be read wrongly.
/// Shorter blocks are more rows; longer ones overlap more where a page begins in their midst.
pub(super) const SPAN: Duration = Duration::from_millis(100);
/// A block with its row's head just fits in a page of the file that is a power of two; larger ones would make a page of
/// one key's records, scattered over many blocks, slow to read.
pub(super) const BYTES_MAX: usize = 256 * 1024 - 512;

const HEAD_BYTES: usize = 8 + 16 + 8 + 16 + 1 + 4 + 4;

/// A record in a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry<'a> {
    pub(super) place: ActivityPlace,
    pub(super) arrival: u64,
    pub(super) key: KeyId,
    pub(super) action: Action,
    /// Permits of its key's window that it spent.
    pub(super) permits: u32,
    /// The record itself.
    pub(super) bytes: &'a [u8],
}

impl Entry<'_> {
    /// Bytes that it takes in a block.
    pub(super) fn size(&self) -> usize {
        HEAD_BYTES + self.bytes.len()
    }
}

/// Spells a block out.
pub(super) fn write<'a>(entries: impl ExactSizeIterator<Item = Entry<'a>> + Clone) -> Vec<u8> {
    let bytes: usize = entries.clone().map(|entry| entry.size()).sum();
    let count = u32::try_from(entries.len()).expect("a batch has fewer records than there are numbers");
    let mut value = Spelling::with_room(1 + 4 + bytes).raw(&[VALUE_VERSION]).raw(&count.to_be_bytes());
    let mut end = 0_usize;
    for entry in entries.clone() {
        end += entry.bytes.len();
        let end = u32::try_from(end).expect("a batch is shorter than 4 GiB");
        value = value.time(entry.place.time).uuid(entry.place.event).number(entry.arrival).uuid(entry.key.uuid());
        value = value.raw(&[byte_of(entry.action)]).raw(&entry.permits.to_be_bytes()).raw(&end.to_be_bytes());
    }
    entries.fold(value, |value, entry| value.raw(entry.bytes)).into_bytes()
}

/// A block as it lies in the file.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    heads: &'a [u8],
    texts: &'a [u8],
}

impl<'a> Block<'a> {
    pub(super) fn of(value: &'a [u8]) -> Result<Self, StoreError> {
        let mut reading = Reading::of(value);
        reading.version()?;
        let heads_bytes = (u32::from_be_bytes(reading.take()?) as usize).saturating_mul(HEAD_BYTES);
        let (heads, texts) = reading.rest().split_at_checked(heads_bytes).ok_or_else(|| corrupt("a block ends within its heads"))?;
        Ok(Self { heads, texts })
    }

    pub(super) fn len(self) -> usize {
        self.heads.len() / HEAD_BYTES
    }

    /// All records, in the order of their arrival.
    pub(super) fn entries(self) -> impl DoubleEndedIterator<Item = Result<Entry<'a>, StoreError>> {
        (0..self.len()).map(move |number| self.entry(number))
    }

    /// One record by its number in the order of arrival.
    pub(super) fn entry(self, number: usize) -> Result<Entry<'a>, StoreError> {
        let begin = match number.checked_sub(1) {
            Some(before) => self.head(before)?.1,
            None => 0,
        };
        let (entry, end) = self.head(number)?;
        let bytes = self.texts.get(begin..end).ok_or_else(|| corrupt("a block ends within a record"))?;
        Ok(Entry { bytes, ..entry })
    }

    /// A record without its bytes, and where they end.
    fn head(self, number: usize) -> Result<(Entry<'a>, usize), StoreError> {
        let head = number.checked_mul(HEAD_BYTES).and_then(|begin| self.heads.get(begin..)?.first_chunk::<HEAD_BYTES>());
        let mut reading = Reading::of(head.ok_or_else(|| corrupt("a block has no such record"))?);
        let place = ActivityPlace { time: reading.time()?, event: reading.uuid()? };
        let (arrival, key) = (reading.number()?, KeyId::new(reading.uuid()?));
        let [action] = reading.take()?;
        let permits = u32::from_be_bytes(reading.take()?);
        let entry = Entry { place, arrival, key, action: action_of(action)?, permits, bytes: &[] };
        Ok((entry, u32::from_be_bytes(reading.take()?) as usize))
    }
}

fn byte_of(action: Action) -> u8 {
    match action {
        Action::Use => 0,
        Action::Create => 1,
        Action::Revoke => 2,
    }
}

fn action_of(byte: u8) -> Result<Action, StoreError> {
    let found = [Action::Use, Action::Create, Action::Revoke].into_iter().find(|action| byte_of(*action) == byte);
    found.ok_or_else(|| corrupt("a record's action is none"))
}

/// How many of the first entries make a block, and the newest time among them.
pub(super) fn first_of<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> (usize, Timestamp) {
    let (mut count, mut bytes) = (0, 0);
    let (mut oldest, mut newest) = (Timestamp::from_micros(i64::MAX), Timestamp::from_micros(i64::MIN));
    for entry in entries {
        bytes += entry.size();
        let (older, newer) = (oldest.min(entry.place.time), newest.max(entry.place.time));
        if count > 0 && (bytes > BYTES_MAX || older.plus(SPAN) < newer) {
            break;
        }
        (count, oldest, newest) = (count + 1, older, newer);
    }
    (count, newest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn entry(number: u64, time: i64, bytes: &[u8]) -> Entry<'_> {
        let place = ActivityPlace { time: Timestamp::from_micros(time), event: Uuid::from_u128(u128::from(number)) };
        let action = [Action::Use, Action::Create, Action::Revoke][number as usize % 3];
        Entry { place, arrival: u64::MAX - number, key: KeyId::new(Uuid::from_u128(u128::MAX)), action, permits: 7, bytes }
    }

    #[test]
    fn a_block_ends_before_a_record_that_is_too_far_from_any_of_its_others() {
        let span = i64::try_from(SPAN.as_micros()).unwrap();
        let first = |times: &[i64]| first_of(times.iter().map(|time| entry(1, *time, b"")));
        assert_eq!(first(&[7]), (1, Timestamp::from_micros(7)));
        assert_eq!(first(&[7, 7 + span, 8, 6]), (3, Timestamp::from_micros(7 + span)));
        assert_eq!(first(&[7 + span, 7, 8 + span]), (2, Timestamp::from_micros(7 + span)));
        let long = vec![b'x'; BYTES_MAX];
        assert_eq!(first_of([entry(1, 7, &long), entry(2, 7, b"")]).0, 1, "a record that is too long is a block of its own");
        assert_eq!(first_of([entry(1, 7, b""), entry(2, 7, &long), entry(3, 7, b"")]).0, 1);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(records in proptest::collection::vec((any::<i64>(), proptest::collection::vec(any::<u8>(), 0..9)), 0..9)) {
            let entries: Vec<_> = records.iter().zip(0..).map(|((time, bytes), number)| entry(number, *time, bytes)).collect();
            let value = write(entries.iter().copied());
            let block = Block::of(&value).unwrap();
            prop_assert_eq!(block.entries().collect::<Result<Vec<_>, _>>().unwrap(), entries);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0_u8..4) {
            let mut value = vec![VALUE_VERSION, 0, 0, 0, count];
            value.extend(&bytes);
            for value in [bytes, value] {
                if let Ok(block) = Block::of(&value) {
                    let _ = block.entries().collect::<Result<Vec<_>, _>>();
                    prop_assert!(block.entry(block.len()).is_err());
                }
            }
        }
    }
}

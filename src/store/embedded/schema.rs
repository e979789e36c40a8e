//! What the file holds: every table, how its keys are spelt and how its values are written.
//!
//! ```text
//!   keys                id                        → version, digest, JSON
//!   keys_by_digest      digest                    → id
//!   keys_by_firm        firm | created | id       → nothing
//!   live_by_firm        firm | id                 → nothing        live keys, as a set and never a counter
//!   live_by_creator     firm | user | id          → nothing
//!   idempotency         firm | user | text        → id, time
//!   idempotency_by_time time | key of the above   → nothing
//!   key_uses            id                        → version, last use, what it was seen with, how often in each hour
//!   users               firm | user               → version, JSON: what is known of them
//!   activity            firm | first arrival         → version, the records of a block
//!   activity_new        first arrival                → firm, newest, first arrival      blocks not yet in the next two
//!   activity_by_time    firm | newest | first arrival → how many records
//!   activity_by_key     firm | key | newest | first arrival → permits that the key spent in the block
//!   activity_by_change  firm | newest | first arrival → nothing      blocks with creates or revokes only
//!   spools              spool                     → last sequence
//!   meta                name                      → number         schema, epoch, arrival; data_set: a text
//! ```
//!
//! A block holds records of one firm that were taken together and are of nearly one time; `block` has its format. Its
//! newest time and its first arrival lead to it. Texts are led by their length and numbers are big-endian, so no two keys are spelt alike and keys sort as their
//! parts do. No value ever holds a secret.

use std::time::Duration;

use redb::{ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::domain::{FirmId, KeyDigest, KeyId, KeyRecord, Timestamp, UserId};
use crate::store::uses::{HourOfUse, KeyUses, Seen};
use crate::store::written::WrittenKey;
use crate::store::{LastUse, StoreError};

/// A table's keys and values are bytes that only this file understands.
pub(super) type Raw = &'static [u8];
pub(super) type Definition = TableDefinition<'static, Raw, Raw>;

pub(super) const KEYS: Definition = TableDefinition::new("keys");
pub(super) const KEYS_BY_DIGEST: Definition = TableDefinition::new("keys_by_digest");
pub(super) const KEYS_BY_FIRM: Definition = TableDefinition::new("keys_by_firm");
pub(super) const LIVE_BY_FIRM: Definition = TableDefinition::new("live_by_firm");
pub(super) const LIVE_BY_CREATOR: Definition = TableDefinition::new("live_by_creator");
pub(super) const IDEMPOTENCY: Definition = TableDefinition::new("idempotency");
pub(super) const IDEMPOTENCY_BY_TIME: Definition = TableDefinition::new("idempotency_by_time");
pub(super) const KEY_USES: Definition = TableDefinition::new("key_uses");
pub(super) const USERS: Definition = TableDefinition::new("users");
pub(super) const ACTIVITY: Definition = TableDefinition::new("activity");
pub(super) const ACTIVITY_NEW: Definition = TableDefinition::new("activity_new");
pub(super) const ACTIVITY_BY_TIME: Definition = TableDefinition::new("activity_by_time");
pub(super) const ACTIVITY_BY_KEY: Definition = TableDefinition::new("activity_by_key");
pub(super) const ACTIVITY_BY_CHANGE: Definition = TableDefinition::new("activity_by_change");
pub(super) const SPOOLS: Definition = TableDefinition::new("spools");
pub(super) const META: Definition = TableDefinition::new("meta");

/// Which layout of tables this version reads and writes.
pub(super) const SCHEMA: u64 = 2;
/// First byte of every value that is more than an index.
pub(super) const VALUE_VERSION: u8 = 1;

/// Names in `meta`.
pub(super) const META_SCHEMA: &[u8] = b"schema";
pub(super) const META_EPOCH: &[u8] = b"epoch";
pub(super) const META_ARRIVAL: &[u8] = b"arrival";
/// With a partition's number: the token of the Redis data set that was moved here.
pub(super) const META_DATA_SET: &[u8] = b"data_set ";

/// A table's key, part by part.
#[derive(Clone, Default)]
pub(super) struct Spelling(Vec<u8>);

impl Spelling {
    /// Nothing yet, and room for so many bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A text, led by its length in four bytes, so that what follows cannot be taken for a part of it.
    pub(super) fn text(mut self, text: &str) -> Self {
        let length = u32::try_from(text.len()).expect("a text from a request's head is shorter than 4 GiB");
        self.0.extend(length.to_be_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    /// A number; greater ones sort later.
    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// A moment; later ones sort later, those before 1970 included.
    pub(super) fn time(self, time: Timestamp) -> Self {
        self.number((time.micros() ^ i64::MIN).cast_unsigned())
    }

    pub(super) fn uuid(mut self, uuid: Uuid) -> Self {
        self.0.extend(uuid.as_bytes());
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Whether there is a part, and then the part.
    fn optional<T>(self, part: Option<T>, write: impl FnOnce(Self, T) -> Self) -> Self {
        match part {
            Some(part) => write(self.raw(&[1]), part),
            None => self.raw(&[0]),
        }
    }

    /// After every key that begins like this one and goes on with at most a number and a UUID.
    pub(super) fn end(&self) -> Self {
        self.clone().raw(&[0xff; 32])
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The key of a firm's rows, or what they begin with.
pub(super) fn of_firm(firm: &FirmId) -> Spelling {
    Spelling::default().text(firm.as_str())
}

/// What the rows of a firm's creator begin with.
pub(super) fn of_creator(firm: &FirmId, creator: &UserId) -> Spelling {
    of_firm(firm).text(creator.as_str())
}

/// The key of a key's rows, or what they begin with.
pub(super) fn of_key(key: KeyId) -> Spelling {
    Spelling::default().uuid(key.uuid())
}

/// A value whose parts are read front to back.
pub(super) struct Reading<'a>(&'a [u8]);

impl<'a> Reading<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| corrupt("a value ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn version(&mut self) -> Result<(), StoreError> {
        match self.take()? {
            [VALUE_VERSION] => Ok(()),
            [other] => Err(StoreError::Corrupt(format!("a value has version {other}; this program knows {VALUE_VERSION} only"))),
        }
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn time(&mut self) -> Result<Timestamp, StoreError> {
        self.number().map(|number| Timestamp::from_micros(number.cast_signed() ^ i64::MIN))
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, StoreError> {
        self.take().map(Uuid::from_bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, StoreError> {
        let length = u32::from_be_bytes(self.take()?) as usize;
        let (text, rest) = self.0.split_at_checked(length).ok_or_else(|| corrupt("a text ends too early"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| corrupt("a text is none"))
    }

    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        let [count] = self.take()?;
        if count == 0 { Ok(None) } else { read(self).map(Some) }
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn json<T: DeserializeOwned>(self) -> Result<T, StoreError> {
        serde_json::from_slice(self.0).map_err(|error| StoreError::Corrupt(format!("a value is not what it should be: {error}")))
    }
}

/// What the keys of a firm's rows begin with, from one of them.
pub(super) fn firm_at_start(key: &[u8]) -> Result<FirmId, StoreError> {
    let text = Reading::of(key).text()?;
    FirmId::parse(text).map_err(|_| corrupt("a firm's rows do not begin with its id"))
}

/// The id that a key ends with.
pub(super) fn id_at_end(key: &[u8]) -> Result<Uuid, StoreError> {
    key.last_chunk().map(|id| Uuid::from_bytes(*id)).ok_or_else(|| corrupt("a row's key is too short"))
}

/// The newest time and the first arrival that lead to a block.
pub(super) fn way_at_end(key: &[u8]) -> Result<(Timestamp, u64), StoreError> {
    let tail = key.last_chunk::<16>().ok_or_else(|| corrupt("the way to a block is too short"))?;
    let mut reading = Reading::of(tail);
    Ok((reading.time()?, reading.number()?))
}

/// What the way to a new block says: the beginning of its firm's rows, its newest time and its first arrival.
pub(super) fn firm_of_way(way: &[u8]) -> Result<(Spelling, Timestamp, u64), StoreError> {
    let (newest, first) = way_at_end(way)?;
    Ok((of_firm(&firm_at_start(way)?), newest, first))
}

/// A sentence about something that cannot be read.
pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

pub(super) fn write_record(record: &KeyRecord) -> Vec<u8> {
    let mut value = vec![VALUE_VERSION];
    value.extend(record.digest.as_bytes());
    append_json(value, &WrittenKey::of(record))
}

pub(super) fn read_record(bytes: &[u8]) -> Result<KeyRecord, StoreError> {
    let mut reading = Reading::of(bytes);
    reading.version()?;
    let digest = KeyDigest::from_bytes(reading.take()?);
    reading.json::<WrittenKey>().map(|written| written.with(digest))
}

pub(super) fn write_uses(uses: &KeyUses) -> Vec<u8> {
    let last = |spelling: Spelling, last: &LastUse| {
        let spelling = spelling.time(last.at).optional(last.user_agent.as_deref(), Spelling::text);
        spelling.optional(last.client_ip.as_deref(), Spelling::text)
    };
    let spelling = Spelling::default().raw(&[VALUE_VERSION]).optional(uses.last.as_ref(), last);
    let spelling = write_seen(write_seen(spelling, &uses.tools), &uses.networks);
    uses.hours.iter().fold(spelling, |spelling, hour| spelling.number(hour.hour).number(hour.count)).0
}

fn write_seen(spelling: Spelling, seen: &[Seen]) -> Spelling {
    let spelling = spelling.raw(&[u8::try_from(seen.len()).unwrap_or(u8::MAX)]);
    seen.iter().take(u8::MAX.into()).fold(spelling, |spelling, seen| spelling.time(seen.at).text(&seen.what))
}

pub(super) fn read_uses(bytes: &[u8]) -> Result<KeyUses, StoreError> {
    let mut reading = Reading::of(bytes);
    reading.version()?;
    let text = |reading: &mut Reading<'_>| reading.text().map(str::to_owned);
    let last = reading
        .optional(|reading| Ok(LastUse { at: reading.time()?, user_agent: reading.optional(text)?, client_ip: reading.optional(text)? }))?;
    let (tools, networks) = (read_seen(&mut reading)?, read_seen(&mut reading)?);
    // Earlier versions wrote no hours.
    let mut hours = Vec::new();
    while !reading.rest().is_empty() {
        hours.push(HourOfUse { hour: reading.number()?, count: reading.number()? });
    }
    Ok(KeyUses { last, tools, networks, hours })
}

fn read_seen(reading: &mut Reading<'_>) -> Result<Vec<Seen>, StoreError> {
    let [count] = reading.take()?;
    (0..count).map(|_| Ok(Seen { at: reading.time()?, what: reading.text()?.to_owned() })).collect()
}

/// What a key spent in a block: for each record that spent any, how long before the block's newest time in microseconds,
/// and how many permits; four bytes each. So a window is made again without reading the records.
pub(super) fn write_spent(newest: Timestamp, spent: impl Iterator<Item = (Timestamp, u32)>) -> Vec<u8> {
    let spent = spent.filter(|(_, permits)| *permits > 0).flat_map(|(time, permits)| {
        let before = u32::try_from(newest.micros().saturating_sub(time.micros())).unwrap_or(0);
        [before.to_be_bytes(), permits.to_be_bytes()]
    });
    spent.collect::<Vec<_>>().concat()
}

/// When it spent how many permits.
pub(super) fn read_spent(newest: Timestamp, bytes: &[u8]) -> impl Iterator<Item = (Timestamp, u32)> {
    let (spent, _) = bytes.as_chunks::<8>();
    spent.iter().map(move |[a, b, c, d, permits @ ..]| {
        let before = u32::from_be_bytes([*a, *b, *c, *d]);
        (newest.minus(Duration::from_micros(before.into())), u32::from_be_bytes(*permits))
    })
}

fn append_json<T: Serialize>(mut value: Vec<u8>, content: &T) -> Vec<u8> {
    serde_json::to_writer(&mut value, content).expect("texts and numbers are always written, and memory does not fail");
    value
}

/// A number of `meta` or `spools`; zero before it is first written.
pub(super) fn number_in(table: &impl ReadableTable<Raw, Raw>, name: &[u8]) -> Result<u64, StoreError> {
    match table.get(name).map_err(super::disk::failed)? {
        Some(value) => Reading::of(value.value()).number(),
        None => Ok(0),
    }
}

/// A key's record.
pub(super) fn record_in(keys: &impl ReadableTable<Raw, Raw>, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
    let value = keys.get(of_key(id).bytes()).map_err(super::disk::failed)?;
    value.map(|value| read_record(value.value())).transpose()
}

/// What a key's uses have told; empty before the first.
pub(super) fn uses_in(key_uses: &impl ReadableTable<Raw, Raw>, id: KeyId) -> Result<KeyUses, StoreError> {
    let value = key_uses.get(of_key(id).bytes()).map_err(super::disk::failed)?;
    value.map(|value| read_uses(value.value())).transpose().map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_of_two_texts_are_never_spelt_alike(a in "[!-~]{1,9}", b in "[!-~]{1,9}", c in "[!-~]{1,9}", d in "[!-~]{1,9}") {
            let spell = |first: &str, second: &str| Spelling::default().text(first).text(second).bytes().to_vec();
            prop_assert_eq!(spell(&a, &b) == spell(&c, &d), (a, b) == (c, d));
        }

        #[test]
        fn times_sort_as_moments_do_and_read_back(a in any::<i64>(), b in any::<i64>()) {
            let spell = |micros| Spelling::default().time(Timestamp::from_micros(micros));
            prop_assert_eq!(spell(a).bytes().cmp(spell(b).bytes()), a.cmp(&b));
            prop_assert_eq!(Reading::of(spell(a).bytes()).time().ok(), Some(Timestamp::from_micros(a)));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
            let mut versioned = vec![VALUE_VERSION];
            versioned.extend(&bytes);
            for bytes in [bytes, versioned] {
                prop_assert!(matches!(read_record(&bytes), Err(StoreError::Corrupt(_))));
                // Some bytes do tell of uses, if of strange ones.
                prop_assert!(matches!(read_uses(&bytes), Ok(_) | Err(StoreError::Corrupt(_))));
            }
        }

        #[test]
        fn uses_read_back_as_they_were_written(at in any::<i64>(), texts in proptest::collection::vec(proptest::option::of(".{0,9}"), 10)) {
            let seen = |texts: &[Option<String>]| -> Vec<Seen> {
                texts.iter().flatten().map(|what| Seen { what: what.clone(), at: Timestamp::from_micros(at) }).collect()
            };
            let last = |user_agent: &Option<String>| LastUse {
                at: Timestamp::from_micros(at),
                user_agent: user_agent.clone(),
                client_ip: texts[9].clone(),
            };
            let uses = KeyUses { last: texts[8].as_ref().map(|_| last(&texts[7])), tools: seen(&texts[..3]), networks: seen(&texts[3..7]), hours: vec![HourOfUse { hour: 7, count: 9 }] };
            prop_assert_eq!(read_uses(&write_uses(&uses)).ok(), Some(uses));
        }
    }
}

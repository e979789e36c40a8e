//! The activity log: taking spooled records exactly once (protocol 3), and trimming it by age.
//!
//! Records are kept in blocks, each under its firm and its first arrival. The other tables are ways to a block: by time,
//! once for each key in it, and, since creates and revokes are a handful among millions of uses, by change. A way may
//! outlive its block only if the block was unreadable when it was trimmed; readers pass over such a way.
//!
//! Ways lie scattered over the file, so while much is shipped those of many batches are written together; until then a
//! block stands in a list of new ones, which readers look through.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redb::ReadableTable;

use super::block::{self, Block, Entry, SPAN};
use super::disk::failed;
use super::noted::{Noted, Use};
use super::schema::{self, Raw, Reading, Spelling, corrupt};
use super::writer::Change;
use crate::domain::{Action, AuditRecord, Field, FirmId, KeyId, Outcome, Sequence, Timestamp, Unreadable, WrittenRecord};
use crate::store::{ActivityPlace, AuditBatch, StoreError};
use crate::{clock, tasks};

/// Records removed by one batch at most, but for the rest of a block: more than a batch brings, so that trimming keeps up.
const TRIMMED_PER_BATCH: u64 = 8_192;
/// Firms whose oldest record one batch looks at, so that those without traffic are trimmed too.
const FIRMS_PER_BATCH: usize = 16;
/// A smaller batch has the ways to its blocks, and to all new ones, written at once: there is no hurry.
const HURRY_RECORDS: usize = 256;
/// Ways are written at the latest when so many records have come since: what a reader has to look through meanwhile.
const NEW_RECORDS_MAX: u64 = 16_384;
/// Records read, and rows written, between two moments at which [requests may go first](tasks::give_way).
const RECORDS_AT_ONCE: usize = 128;
const ROWS_AT_ONCE: usize = 32;

/// Where trimming goes on: it walks from firm to firm, a few with each batch.
#[derive(Default)]
pub(super) struct Trimmer {
    next: Vec<u8>,
}

/// A record that is to be taken.
struct Taken<'a> {
    firm: &'a str,
    /// Its arrival is found only when its block is.
    entry: Entry<'a>,
    /// What it tells of its key, if it was a use that was allowed.
    told: Option<Use<'a>>,
}

/// Takes the records of a spool that the log does not hold yet; answers the last sequence it holds.
pub(super) fn ship(change: &mut Change<'_>, batch: AuditBatch, trimmer: &mut Trimmer) -> Result<Sequence, StoreError> {
    let mark = schema::number_in(&change.spools.table, batch.spool.as_bytes())?;
    let lost = batch.lost_up_to.map_or(0, |Sequence(lost)| lost);
    let (fresh, last) = without_known(&batch.records, mark.max(lost))?;
    let is_hurried = fresh.len() >= HURRY_RECORDS;
    note_uses(change, &fresh)?;
    let mut by_firm: BTreeMap<&str, Vec<Taken<'_>>> = BTreeMap::new();
    for taken in fresh {
        by_firm.entry(taken.firm).or_default().push(taken);
    }
    for (firm, taken) in by_firm {
        append_all(change, firm, taken)?;
    }
    if !is_hurried || is_overdue(change)? {
        write_ways(change)?;
    }
    if last > mark {
        change.spools.put(batch.spool.as_bytes(), &last.to_be_bytes())?;
    }
    if let Some(age_max) = batch.age_max {
        trimmer.trim(change, clock::wall_now().minus(age_max))?;
    }
    Ok(Sequence(last))
}

/// Adds a record to the log.
pub(super) fn append(change: &mut Change<'_>, record: &AuditRecord) -> Result<(), StoreError> {
    let written = WrittenRecord::from(record);
    let (_, taken) = Taken::of(&written).map_err(unreadable)?;
    append_all(change, record.firm_id.as_str(), vec![taken])
}

/// Adds records of one firm to the log, each as of an arrival; these grow.
pub(super) fn append_as_of(change: &mut Change<'_>, firm: &FirmId, records: &[(u64, WrittenRecord)]) -> Result<(), StoreError> {
    let taken = records.iter().map(|(arrival, record)| {
        let (_, mut taken) = Taken::of(record)?;
        taken.entry.arrival = *arrival;
        Ok(taken)
    });
    put_blocks(change, &schema::of_firm(firm), &taken.collect::<Result<Vec<_>, _>>().map_err(unreadable)?)
}

impl<'a> Taken<'a> {
    /// What is needed of a record, and its sequence.
    fn of(record: &'a WrittenRecord) -> Result<(Option<u64>, Self), Unreadable> {
        let texts = record.texts()?;
        let place = ActivityPlace { time: Timestamp::from_micros(texts.needed(Field::Time)?), event: texts.needed(Field::EventId)? };
        let (action, outcome) = (texts.needed(Field::Action)?, texts.outcome()?);
        let (key, permits) = (KeyId::new(texts.needed(Field::KeyId)?), texts.permits_spent(action, outcome)?);
        let entry = Entry { place, arrival: 0, key, action, permits, bytes: record.bytes() };
        let one = Use { at: place.time, user_agent: texts.get(Field::UserAgent), client_ip: texts.get(Field::ClientIp) };
        let told = (action == Action::Use && outcome == Outcome::Allowed).then_some(one);
        let firm = texts.get(Field::FirmId).unwrap_or_default();
        Ok((texts.parsed(Field::Sequence)?, Self { firm, entry, told }))
    }
}

/// The records after `mark`, and the last sequence there will then be. They must go on where the log ends.
fn without_known(records: &[WrittenRecord], mark: u64) -> Result<(Vec<Taken<'_>>, u64), StoreError> {
    let mut last = mark;
    let mut fresh = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        if index.is_multiple_of(RECORDS_AT_ONCE) {
            tasks::give_way();
        }
        let (sequence, taken) = Taken::of(record).map_err(unreadable)?;
        let sequence = sequence.ok_or_else(|| corrupt("a spooled record has no sequence"))?;
        if sequence > last + 1 {
            return Err(StoreError::Corrupt(format!("a spool goes on at {sequence}, but the log holds it up to {last} only")));
        }
        if sequence == last + 1 {
            last = sequence;
            fresh.push(taken);
        }
    }
    let firms: BTreeSet<&str> = fresh.iter().map(|taken| taken.firm).collect();
    match firms.iter().find_map(|firm| FirmId::parse(firm).err()) {
        Some(error) => Err(corrupt(&format!("not an audit record: firm_id: {error}"))),
        None => Ok((fresh, last)),
    }
}

fn unreadable(error: Unreadable) -> StoreError {
    corrupt(&error.to_string())
}

/// Adds what these records tell of their keys to what was known of them.
fn note_uses(change: &mut Change<'_>, records: &[Taken<'_>]) -> Result<(), StoreError> {
    let mut noted: HashMap<KeyId, Noted<'_>> = HashMap::new();
    for taken in records {
        if let Some(told) = taken.told {
            noted.entry(taken.entry.key).or_default().note(told);
        }
    }
    let known = noted.iter().map(|(key, noted)| {
        let mut uses = schema::uses_in(&change.key_uses.table, *key)?;
        noted.add_to(&mut uses);
        Ok((*key, schema::write_uses(&uses)))
    });
    // All are read before the first is written: one that is unreadable must leave nothing of the batch.
    let known = known.collect::<Result<BTreeMap<KeyId, Vec<u8>>, StoreError>>()?;
    known.into_iter().try_for_each(|(key, value)| change.key_uses.put(schema::of_key(key).bytes(), &value))
}

/// Adds a firm's records behind all others. What is not of one time is put in order first, or the late ones among the
/// others would cut it into many blocks.
fn append_all(change: &mut Change<'_>, firm: &str, mut taken: Vec<Taken<'_>>) -> Result<(), StoreError> {
    let times = || taken.iter().map(|taken| taken.entry.place.time);
    if let (Some(oldest), Some(newest)) = (times().min(), times().max())
        && oldest.plus(SPAN) < newest
    {
        taken.sort_by_key(|taken| taken.entry.place.time);
    }
    for taken in &mut taken {
        change.arrival += 1;
        taken.entry.arrival = change.arrival;
    }
    put_blocks(change, &Spelling::default().text(firm), &taken)
}

fn put_blocks(change: &mut Change<'_>, firm: &Spelling, mut taken: &[Taken<'_>]) -> Result<(), StoreError> {
    while !taken.is_empty() {
        let (count, newest) = block::first_of(taken.iter().map(|taken| taken.entry));
        let (block, rest) = taken.split_at(count);
        put_block(change, firm, block, newest)?;
        taken = rest;
    }
    Ok(())
}

fn put_block(change: &mut Change<'_>, firm: &Spelling, taken: &[Taken<'_>], newest: Timestamp) -> Result<(), StoreError> {
    let Some(first) = taken.first().map(|taken| taken.entry.arrival) else { return Ok(()) };
    let ways = Ways { firm, newest, first };
    tasks::give_way();
    change.activity.put(ways.block().bytes(), &block::write(taken.iter().map(|taken| taken.entry)))?;
    change.activity_new.put(&first.to_be_bytes(), ways.by_time().bytes())?;
    if taken.iter().any(|taken| taken.entry.action != Action::Use) {
        change.activity_by_change.put(ways.by_time().bytes(), &[])?;
    }
    Ok(())
}

/// Whether readers have to look through too many new records.
fn is_overdue(change: &Change<'_>) -> Result<bool, StoreError> {
    let Some((first, _)) = change.activity_new.table.first().map_err(failed)? else { return Ok(false) };
    Ok(change.arrival.saturating_sub(Reading::of(first.value()).number()?) >= NEW_RECORDS_MAX)
}

/// Writes the ways to all new blocks. In order, because then rows of one page of the file come one after another.
pub(super) fn write_ways(change: &mut Change<'_>) -> Result<(), StoreError> {
    let (mut by_time, mut by_key, mut written) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for row in change.activity_new.table.iter().map_err(failed)? {
        let (number, way) = row.map_err(failed)?;
        tasks::give_way();
        written.push(number.value().to_vec());
        let (firm, newest, first) = schema::firm_of_way(way.value())?;
        let ways = Ways { firm: &firm, newest, first };
        let Some(value) = change.activity.find(ways.block().bytes())? else { continue };
        let block = Block::of(value.value())?;
        let mut entries = block.entries().collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| entry.key);
        for of_key in entries.chunk_by(|one, other| one.key == other.key) {
            let Some(key) = of_key.first().map(|entry| entry.key) else { continue };
            let spent = of_key.iter().map(|entry| (entry.place.time, entry.permits));
            by_key.insert(ways.by_key(key).into_bytes(), schema::write_spent(newest, spent));
        }
        by_time.insert(ways.by_time().into_bytes(), (block.len() as u64).to_be_bytes());
    }
    by_time.iter().try_for_each(|(way, count)| change.activity_by_time.put(way, count))?;
    for (index, (way, spent)) in by_key.iter().enumerate() {
        if index.is_multiple_of(ROWS_AT_ONCE) {
            tasks::give_way();
        }
        change.activity_by_key.put(way, spent)?;
    }
    written.iter().try_for_each(|number| change.activity_new.remove(number))
}

/// The keys of a block's rows.
struct Ways<'a> {
    firm: &'a Spelling,
    newest: Timestamp,
    first: u64,
}

impl Ways<'_> {
    fn block(&self) -> Spelling {
        self.firm.clone().number(self.first)
    }

    fn by_time(&self) -> Spelling {
        self.firm.clone().time(self.newest).number(self.first)
    }

    fn by_key(&self, key: KeyId) -> Spelling {
        self.firm.clone().uuid(key.uuid()).time(self.newest).number(self.first)
    }
}

impl Trimmer {
    /// Removes blocks of which every record is from before `until`, a bounded number of them.
    fn trim(&mut self, change: &mut Change<'_>, until: Timestamp) -> Result<(), StoreError> {
        let mut left = TRIMMED_PER_BATCH;
        for _ in 0..FIRMS_PER_BATCH {
            let Some(firm) = next_firm(&change.activity_by_time.table, &self.next)? else {
                self.next.clear();
                return Ok(());
            };
            let firm = schema::of_firm(&firm);
            for (newest, first, count) in oldest(change, &firm, until, left)? {
                remove(change, &Ways { firm: &firm, newest, first })?;
                left = left.saturating_sub(count);
            }
            if left == 0 {
                self.next = firm.bytes().to_vec();
                return Ok(());
            }
            self.next = firm.end().bytes().to_vec();
        }
        Ok(())
    }
}

/// Whose the first row from `start` on is, in a table whose keys begin with a firm.
pub(super) fn next_firm(table: &impl ReadableTable<Raw, Raw>, start: &[u8]) -> Result<Option<FirmId>, StoreError> {
    let first = table.range::<&[u8]>(start..).map_err(failed)?.next();
    first.map(|row| schema::firm_at_start(row.map_err(failed)?.0.value())).transpose()
}

/// Newest time, first arrival and number of records of a firm's oldest blocks, up to some number of records.
fn oldest(change: &Change<'_>, firm: &Spelling, until: Timestamp, most: u64) -> Result<Vec<(Timestamp, u64, u64)>, StoreError> {
    let rows = change.activity_by_time.table.range::<&[u8]>(firm.bytes()..firm.clone().time(until).bytes()).map_err(failed)?;
    let (mut found, mut total) = (Vec::new(), 0);
    for row in rows {
        let (way, count) = row.map_err(failed)?;
        let ((newest, first), count) = (schema::way_at_end(way.value())?, Reading::of(count.value()).number()?);
        found.push((newest, first, count));
        total += count;
        if total >= most {
            break;
        }
    }
    Ok(found)
}

fn remove(change: &mut Change<'_>, ways: &Ways<'_>) -> Result<(), StoreError> {
    let keys = change.activity.find(ways.block().bytes())?.map(|value| -> Result<BTreeSet<KeyId>, StoreError> {
        Block::of(value.value())?.entries().map(|entry| entry.map(|entry| entry.key)).collect()
    });
    if let Some(Ok(keys)) = keys {
        keys.into_iter().try_for_each(|key| change.activity_by_key.remove(ways.by_key(key).bytes()))?;
    }
    change.activity_by_change.remove(ways.by_time().bytes())?;
    change.activity_by_time.remove(ways.by_time().bytes())?;
    change.activity.remove(ways.block().bytes())
}

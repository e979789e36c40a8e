//! Reading the activity log: pages of a firm, newest first or in the order of arrival, and what a key spent lately.
//!
//! Blocks overlap in time, by a bounded span. So a walk from the newest record on opens every block that may hold a newer
//! record than those that are open, and takes the newest of them all: a page costs the few blocks it lies in.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

use redb::{AccessGuard, ReadTransaction, ReadableTable, TableHandle};

use super::block::{Block, Entry, SPAN};
use super::disk::failed;
use super::schema::{self, Raw, Spelling, corrupt};
use crate::domain::{Action, AuditRecord, BootInstant, KeyId, Texts, Timestamp};
use crate::store::{ActivityOrder, ActivityPage, ActivityPlace, ActivityQuery, StoreError};

/// Records of one page at most, whoever asks.
const PAGE_MAX: usize = 10_000;
/// Arrivals that one call looks at: a filter that fits nothing must not read the whole log at once.
const ARRIVALS_PER_CALL: usize = 10_000;
/// Uses that a window remembers from before a restart: far above any limit, so that a damaged count costs no memory.
const REMEMBERED_USES_MAX: usize = 1_000_000;

/// Reads a page of a firm's log.
pub(super) fn read(snapshot: &ReadTransaction, query: &ActivityQuery) -> Result<ActivityPage, StoreError> {
    match query.order {
        ActivityOrder::NewestFirst { after } => newest_first(snapshot, query, after),
        ActivityOrder::Arrival { after: Some(after) } => in_arrival(snapshot, query, after),
        ActivityOrder::Arrival { after: None } => {
            let meta = snapshot.open_table(schema::META).map_err(failed)?;
            let arrival = schema::number_in(&meta, schema::META_ARRIVAL)?;
            Ok(ActivityPage { records: Vec::new(), more: false, arrival })
        }
    }
}

/// A block of which some records are still to be told.
struct Opened<'a> {
    value: AccessGuard<'a, Raw>,
    /// Places and numbers of those that fit, the newest last; never empty.
    left: Vec<(ActivityPlace, usize)>,
}

impl<'a> Opened<'a> {
    /// A block as far as its records fit; nothing if none does.
    fn of(value: AccessGuard<'a, Raw>, fits: impl Fn(&Entry<'_>) -> bool) -> Result<Option<Self>, StoreError> {
        let mut left = Vec::new();
        for (entry, number) in Block::of(value.value())?.entries().zip(0..) {
            let entry = entry?;
            if fits(&entry) {
                left.push((entry.place, number));
            }
        }
        left.sort_unstable();
        Ok((!left.is_empty()).then_some(Self { value, left }))
    }

    fn newest(&self) -> Option<ActivityPlace> {
        self.left.last().map(|(place, _)| *place)
    }

    /// Takes the newest record.
    fn take(&mut self) -> Result<Option<AuditRecord>, StoreError> {
        let Some((_, number)) = self.left.pop() else { return Ok(None) };
        record_of(&Block::of(self.value.value())?.entry(number)?).map(Some)
    }
}

impl Ord for Opened<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.newest().cmp(&other.newest())
    }
}

impl PartialOrd for Opened<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Opened<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.newest() == other.newest()
    }
}

impl Eq for Opened<'_> {}

/// Walks the shortest way that leads to all that is asked for.
fn newest_first(snapshot: &ReadTransaction, query: &ActivityQuery, after: Option<ActivityPlace>) -> Result<ActivityPage, StoreError> {
    let firm = schema::of_firm(&query.firm);
    let (way, prefix) = match (query.action, query.key) {
        (Some(Action::Create | Action::Revoke), _) => (schema::ACTIVITY_BY_CHANGE, firm.clone()),
        (_, Some(key)) => (schema::ACTIVITY_BY_KEY, firm.clone().uuid(key.uuid())),
        (_, None) => (schema::ACTIVITY_BY_TIME, firm.clone()),
    };
    let Some((start, end)) = blocks_between(&prefix, query.since, query.until, after) else { return Ok(nothing(0)) };
    let fits = |entry: &Entry<'_>| fits(query, entry) && after.is_none_or(|after| entry.place < after);

    // The ways to new blocks are still in no table but their own; those to changes always are.
    let mut new = Vec::new();
    if way.name() != schema::ACTIVITY_BY_CHANGE.name() {
        new = new_blocks(snapshot, &firm)?;
        new.retain(|(newest, first)| {
            let place = prefix.clone().time(*newest).number(*first);
            start.bytes() <= place.bytes() && place.bytes() < end.bytes()
        });
    }
    let way = snapshot.open_table(way).map_err(failed)?;
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    let mut page = nothing(0);
    let mut open = BinaryHeap::new();
    let rows = way.range::<&[u8]>(start.bytes()..end.bytes()).map_err(failed)?.rev();
    let mut rows = rows.map(|row| schema::way_at_end(row.map_err(failed)?.0.value())).peekable();
    let mut next_row = || match rows.peek() {
        Some(Ok(row)) if new.last().is_none_or(|new| new < row) => rows.next().transpose(),
        Some(Err(_)) => rows.next().transpose(),
        _ => Ok(new.pop()),
    };
    let mut next = next_row()?;
    loop {
        let newest = open.peek().and_then(Opened::newest);
        if let Some((_, first)) = next.filter(|(reaches, _)| newest.is_none_or(|newest| newest.time <= *reaches)) {
            if let Some(value) = log.get(firm.clone().number(first).bytes()).map_err(failed)? {
                open.extend(Opened::of(value, fits)?);
            }
            next = next_row()?;
            continue;
        }
        let Some(mut newest) = open.pop() else { return Ok(page) };
        if page.records.len() == page_size(query) {
            page.more = true;
            return Ok(page);
        }
        page.records.extend(newest.take()?);
        if !newest.left.is_empty() {
            open.push(newest);
        }
    }
}

/// The newest times and first arrivals of a firm's blocks to which no other way leads yet, in order.
fn new_blocks(snapshot: &ReadTransaction, firm: &Spelling) -> Result<Vec<(Timestamp, u64)>, StoreError> {
    let new = snapshot.open_table(schema::ACTIVITY_NEW).map_err(failed)?;
    let mut found = Vec::new();
    for row in new.iter().map_err(failed)? {
        let (_, way) = row.map_err(failed)?;
        if way.value().starts_with(firm.bytes()) {
            found.push(schema::way_at_end(way.value())?);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Where the rows begin and end that lead to blocks with records between two moments and before a place.
fn blocks_between(
    prefix: &Spelling,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    after: Option<ActivityPlace>,
) -> Option<(Spelling, Spelling)> {
    let start = since.map_or_else(|| prefix.clone(), |since| prefix.clone().time(since));
    let latest = until.into_iter().chain(after.map(|place| place.time)).min();
    let end = latest.map_or_else(|| prefix.end(), |latest| prefix.clone().time(latest.plus(SPAN)).end());
    (start.bytes() < end.bytes() && until.is_none_or(|until| since.is_none_or(|since| since < until))).then_some((start, end))
}

fn in_arrival(snapshot: &ReadTransaction, query: &ActivityQuery, after: u64) -> Result<ActivityPage, StoreError> {
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    let firm = schema::of_firm(&query.firm);
    let mut page = nothing(after);
    let mut looked_at = 0;
    let start = first_behind(&log, &firm, after)?;
    for row in log.range::<&[u8]>(start.bytes()..firm.end().bytes()).map_err(failed)? {
        let (_, value) = row.map_err(failed)?;
        for entry in Block::of(value.value())?.entries() {
            let entry = entry?;
            if entry.arrival <= after {
                continue;
            }
            let is_wanted = fits(query, &entry);
            if looked_at == ARRIVALS_PER_CALL || (is_wanted && page.records.len() == page_size(query)) {
                page.more = true;
                return Ok(page);
            }
            looked_at += 1;
            page.arrival = entry.arrival;
            if is_wanted {
                page.records.push(record_of(&entry)?);
            }
        }
    }
    Ok(page)
}

/// The key of the block in which arrivals behind `after` may begin.
fn first_behind(log: &impl ReadableTable<Raw, Raw>, firm: &Spelling, after: u64) -> Result<Spelling, StoreError> {
    let next = firm.clone().number(after.saturating_add(1));
    let before = log.range::<&[u8]>(firm.bytes()..next.bytes()).map_err(failed)?.next_back();
    let Some((key, value)) = before.transpose().map_err(failed)? else { return Ok(next) };
    let block = Block::of(value.value())?;
    let last = block.entries().next_back().transpose()?.map_or(0, |entry| entry.arrival);
    Ok(if last > after { Spelling::default().raw(key.value()) } else { next })
}

fn nothing(arrival: u64) -> ActivityPage {
    ActivityPage { records: Vec::new(), more: false, arrival }
}

fn page_size(query: &ActivityQuery) -> usize {
    query.limit.clamp(1, PAGE_MAX)
}

fn fits(query: &ActivityQuery, entry: &Entry<'_>) -> bool {
    query.key.is_none_or(|key| key == entry.key)
        && query.action.is_none_or(|action| action == entry.action)
        && query.since.is_none_or(|since| entry.place.time >= since)
        && query.until.is_none_or(|until| entry.place.time < until)
}

/// A record as a value.
pub(super) fn record_of(entry: &Entry<'_>) -> Result<AuditRecord, StoreError> {
    Texts::of(entry.bytes).and_then(|texts| texts.record()).map_err(|error| corrupt(&error.to_string()))
}

/// When the process was started, by both clocks: what turns a recorded time into a moment of this uptime.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) wall: Timestamp,
    pub(super) boot: BootInstant,
}

/// Firms that have blocks to which no way by key leads yet, as their rows begin.
pub(super) fn firms_with_new_blocks(snapshot: &ReadTransaction) -> Result<HashSet<Vec<u8>>, StoreError> {
    let new = snapshot.open_table(schema::ACTIVITY_NEW).map_err(failed)?;
    let firm = |way: &[u8]| schema::firm_of_way(way).map(|(firm, ..)| firm.bytes().to_vec());
    new.iter().map_err(failed)?.map(|row| firm(row.map_err(failed)?.1.value())).collect()
}

/// Whether two short looks show that `key` has spent nothing since a moment: its firm is none of those that had new blocks, and no
/// way by key leads to a block of so late.
pub(super) fn has_surely_rested(
    snapshot: &ReadTransaction,
    key: KeyId,
    since: Timestamp,
    had_new_blocks: &HashSet<Vec<u8>>,
) -> Result<bool, StoreError> {
    let keys = snapshot.open_table(schema::KEYS).map_err(failed)?;
    let Some(record) = schema::record_in(&keys, key)? else { return Ok(true) };
    let firm = schema::of_firm(&record.firm_id);
    if had_new_blocks.contains(firm.bytes()) {
        return Ok(false);
    }
    let by_key = snapshot.open_table(schema::ACTIVITY_BY_KEY).map_err(failed)?;
    let of_key = firm.uuid(key.uuid());
    let (first, end) = (of_key.clone().time(since), of_key.end());
    Ok(by_key.range::<&[u8]>(first.bytes()..end.bytes()).map_err(failed)?.next().is_none())
}

/// The permits that `key` spent in the `span` before this start, as moments of this uptime. A record of the
/// future, after a step of the wall clock, counts as of the start: too late, never too early.
pub(super) fn uses_before(snapshot: &ReadTransaction, key: KeyId, start: Start, span: Duration) -> Result<Vec<BootInstant>, StoreError> {
    let keys = snapshot.open_table(schema::KEYS).map_err(failed)?;
    let Some(record) = schema::record_in(&keys, key)? else { return Ok(Vec::new()) };
    let by_key = snapshot.open_table(schema::ACTIVITY_BY_KEY).map_err(failed)?;
    let (since, firm) = (start.wall.minus(span), schema::of_firm(&record.firm_id));
    let of_key = firm.clone().uuid(key.uuid());
    let (first, end) = (of_key.clone().time(since), of_key.end());
    let mut spent = Vec::new();
    for row in by_key.range::<&[u8]>(first.bytes()..end.bytes()).map_err(failed)? {
        let (way, of_block) = row.map_err(failed)?;
        let (newest, _) = schema::way_at_end(way.value())?;
        spent.extend(schema::read_spent(newest, of_block.value()));
    }
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    for (_, first) in new_blocks(snapshot, &firm)?.into_iter().filter(|(newest, _)| *newest >= since) {
        let Some(value) = log.get(firm.clone().number(first).bytes()).map_err(failed)? else { continue };
        for entry in Block::of(value.value())?.entries() {
            spent.extend(entry.map(|entry| (entry.key == key).then_some((entry.place.time, entry.permits)))?);
        }
    }
    let mut uses = Vec::new();
    for (time, permits) in spent.into_iter().filter(|(time, _)| *time >= since).rev() {
        let age_us = u64::try_from(start.wall.micros().saturating_sub(time.micros())).unwrap_or(0);
        let at = start.boot.minus(Duration::from_micros(age_us));
        let permits = usize::try_from(permits).unwrap_or(usize::MAX);
        uses.extend(std::iter::repeat_n(at, permits.min(REMEMBERED_USES_MAX - uses.len())));
    }
    Ok(uses)
}

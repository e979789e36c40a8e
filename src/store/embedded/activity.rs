//! The activity log: taking spooled records exactly once (protocol 3), reading a firm's log, trimming it by age.
//!
//! A record stands once, under firm, time and event. The other tables are ways to it: by key, by arrival, and, since
//! creates and revokes are a handful among millions of uses, by change. A way may outlive its record only if the
//! record's value was unreadable when it was trimmed; readers pass over such a way.

use std::collections::HashMap;
use std::time::Duration;

use redb::{ReadTransaction, ReadableTable};

use super::disk::failed;
use super::schema::{self, Raw, Reading, Spelling, corrupt};
use super::writer::Change;
use crate::clock;
use crate::domain::{Action, AuditRecord, BootInstant, FirmId, KeyId, Outcome, Sequence, Timestamp};
use crate::store::uses::{KeyUses, SEEN_KEPT, SEEN_MAX, Seen, network, seen_with, tool};
use crate::store::{ActivityOrder, ActivityPage, ActivityPlace, ActivityQuery, AuditBatch, LastUse, StoreError};

/// Records removed by one batch at most: more than a batch brings, so that trimming keeps up.
const TRIMMED_PER_BATCH: usize = 2_000;
/// Firms whose oldest record one batch looks at, so that those without traffic are trimmed too.
const FIRMS_PER_BATCH: usize = 16;
/// Records of one page at most, whoever asks.
const PAGE_MAX: usize = 10_000;
/// Arrivals that one call looks at: a filter that fits nothing must not read the whole log at once.
const ARRIVALS_PER_CALL: usize = 10_000;
/// Uses that a window remembers from before a restart: far above any limit, so that a damaged count costs no memory.
const REMEMBERED_USES_MAX: usize = 1_000_000;

/// Where trimming goes on: it walks from firm to firm, a few with each batch.
#[derive(Default)]
pub(super) struct Trimmer {
    next: Vec<u8>,
}

/// Takes the records of a spool that the log does not hold yet; answers the last sequence it holds.
pub(super) fn ship(change: &mut Change<'_>, batch: AuditBatch, trimmer: &mut Trimmer) -> Result<Sequence, StoreError> {
    let mark = schema::number_in(&change.spools.table, batch.spool.as_bytes())?;
    let lost = batch.lost_up_to.map_or(0, |Sequence(lost)| lost);
    let (fresh, last) = without_known(batch.records, mark.max(lost))?;
    let uses = uses_after(change, &fresh)?;
    for record in &fresh {
        append(change, record)?;
    }
    for (key, uses) in uses {
        change.key_uses.put(schema::of_key(key).bytes(), &schema::write_uses(&uses))?;
    }
    if last > mark {
        change.spools.put(batch.spool.as_bytes(), &last.to_be_bytes())?;
    }
    if let Some(age_max) = batch.age_max {
        trimmer.trim(change, clock::wall_now().minus(age_max))?;
    }
    Ok(Sequence(last))
}

/// Adds a record to the log, unless it is there already.
pub(super) fn append(change: &mut Change<'_>, record: &AuditRecord) -> Result<(), StoreError> {
    let next = change.arrival + 1;
    if append_at(change, record, next)? {
        change.arrival = next;
    }
    Ok(())
}

/// Adds a record to the log as of an arrival; says whether it was not there already.
pub(super) fn append_at(change: &mut Change<'_>, record: &AuditRecord, arrival: u64) -> Result<bool, StoreError> {
    let place = |spelling: Spelling| spelling.time(record.time).uuid(record.event_id);
    let firm = schema::of_firm(&record.firm_id);
    let in_firm = place(firm.clone());
    if change.activity.find(in_firm.bytes())?.is_some() {
        return Ok(false);
    }
    change.activity.put(in_firm.bytes(), &schema::write_activity(record, arrival))?;
    change.activity_by_key.put(place(schema::of_key(record.key_id)).bytes(), &[])?;
    if record.action != Action::Use {
        change.activity_by_change.put(in_firm.bytes(), &[])?;
    }
    change.activity_by_arrival.put(firm.number(arrival).bytes(), place(Spelling::default()).bytes())?;
    Ok(true)
}

/// The records after `mark`, and the last sequence there will then be. They must go on where the log ends.
fn without_known(records: Vec<AuditRecord>, mark: u64) -> Result<(Vec<AuditRecord>, u64), StoreError> {
    let mut last = mark;
    let mut fresh = Vec::with_capacity(records.len());
    for record in records {
        let sequence = record.sequence.ok_or_else(|| corrupt("a spooled record has no sequence"))?.get();
        if sequence > last + 1 {
            return Err(StoreError::Corrupt(format!("a spool goes on at {sequence}, but the log holds it up to {last} only")));
        }
        if sequence == last + 1 {
            last = sequence;
            fresh.push(record);
        }
    }
    Ok((fresh, last))
}

/// What the keys' uses tell after these records.
fn uses_after(change: &Change<'_>, records: &[AuditRecord]) -> Result<HashMap<KeyId, KeyUses>, StoreError> {
    let mut all: HashMap<KeyId, KeyUses> = HashMap::new();
    for record in records.iter().filter(|record| record.action == Action::Use && record.outcome == Outcome::Allowed) {
        let uses = match all.entry(record.key_id) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(schema::uses_in(&change.key_uses.table, record.key_id)?),
        };
        note_use(uses, record);
    }
    Ok(all)
}

fn note_use(uses: &mut KeyUses, record: &AuditRecord) {
    if uses.last.as_ref().is_none_or(|last| last.at <= record.time) {
        uses.last = Some(LastUse { at: record.time, user_agent: record.user_agent.clone(), client_ip: record.client_ip.clone() });
    }
    note_seen(&mut uses.tools, record.user_agent.as_deref().and_then(tool), record.time);
    note_seen(&mut uses.networks, record.client_ip.as_deref().and_then(network), record.time);
}

/// Keeps the newest few, newest first.
fn note_seen(seen: &mut Vec<Seen>, what: Option<String>, at: Timestamp) {
    let Some(what) = what else { return };
    match seen.iter_mut().find(|known| known.what == what) {
        Some(known) => known.at = known.at.max(at),
        None => seen.push(Seen { what, at }),
    }
    seen.sort_by_key(|known| std::cmp::Reverse(known.at));
    seen.truncate(SEEN_MAX);
}

/// Tools, then networks, that the key was seen with in the last 30 days.
pub(super) fn seen_lately(uses: &KeyUses, now: Timestamp) -> Vec<String> {
    let since = now.minus(SEEN_KEPT);
    let lately = |seen: &&Seen| seen.at >= since;
    let what = |seen: &'_ Seen| -> String { seen.what.clone() };
    seen_with(uses.tools.iter().filter(lately).map(what), uses.networks.iter().filter(lately).map(what))
}

impl Trimmer {
    /// Removes records from before `until`, a bounded number of them.
    fn trim(&mut self, change: &mut Change<'_>, until: Timestamp) -> Result<(), StoreError> {
        let mut left = TRIMMED_PER_BATCH;
        for _ in 0..FIRMS_PER_BATCH {
            let Some(firm) = next_firm(&change.activity.table, &self.next)? else {
                self.next.clear();
                return Ok(());
            };
            let old = oldest(change, &firm, until, left)?;
            for place in &old {
                remove(change, &firm, place)?;
            }
            left -= old.len();
            if left == 0 {
                self.next = firm.bytes().to_vec();
                return Ok(());
            }
            self.next = firm.end().bytes().to_vec();
        }
        Ok(())
    }
}

/// What the first row from `start` on begins with, in a table whose keys are a firm, a time and an id.
pub(super) fn next_firm(table: &impl ReadableTable<Raw, Raw>, start: &[u8]) -> Result<Option<Spelling>, StoreError> {
    let mut rows = table.range::<&[u8]>(start..).map_err(failed)?;
    let Some(row) = rows.next() else { return Ok(None) };
    let (key, _) = row.map_err(failed)?;
    let (firm, _) = key.value().split_last_chunk::<24>().ok_or_else(|| corrupt("a firm's key is too short"))?;
    Ok(Some(Spelling::default().raw(firm)))
}

fn oldest(change: &Change<'_>, firm: &Spelling, until: Timestamp, most: usize) -> Result<Vec<ActivityPlace>, StoreError> {
    let rows = change.activity.table.range::<&[u8]>(firm.bytes()..firm.clone().time(until).bytes()).map_err(failed)?;
    rows.take(most).map(|row| schema::place_at_end(row.map_err(failed)?.0.value())).collect()
}

fn remove(change: &mut Change<'_>, firm: &Spelling, place: &ActivityPlace) -> Result<(), StoreError> {
    let in_firm = firm.clone().time(place.time).uuid(place.event);
    let head = change.activity.find(in_firm.bytes())?.map(|value| schema::read_activity_head(value.value()));
    if let Some(Ok((arrival, key))) = head {
        change.activity_by_key.remove(schema::of_key(key).time(place.time).uuid(place.event).bytes())?;
        change.activity_by_arrival.remove(firm.clone().number(arrival).bytes())?;
    }
    change.activity_by_change.remove(in_firm.bytes())?;
    change.activity.remove(in_firm.bytes())
}

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

/// Walks the shortest way that holds all that is asked for.
fn newest_first(snapshot: &ReadTransaction, query: &ActivityQuery, after: Option<ActivityPlace>) -> Result<ActivityPage, StoreError> {
    let (way, prefix) = match (query.action, query.key) {
        (Some(Action::Create | Action::Revoke), _) => (schema::ACTIVITY_BY_CHANGE, schema::of_firm(&query.firm)),
        (_, Some(key)) => (schema::ACTIVITY_BY_KEY, schema::of_key(key)),
        (_, None) => (schema::ACTIVITY, schema::of_firm(&query.firm)),
    };
    let start = query.since.map_or_else(|| prefix.clone(), |since| prefix.clone().time(since));
    let ends = [query.until.map(|until| prefix.clone().time(until)), after.map(|place| prefix.clone().time(place.time).uuid(place.event))];
    let end = ends.into_iter().flatten().min_by(|a, b| a.bytes().cmp(b.bytes())).unwrap_or_else(|| prefix.end());
    let mut page = ActivityPage { records: Vec::new(), more: false, arrival: 0 };
    if start.bytes() >= end.bytes() {
        return Ok(page);
    }
    let way = snapshot.open_table(way).map_err(failed)?;
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    for row in way.range::<&[u8]>(start.bytes()..end.bytes()).map_err(failed)?.rev() {
        let (key, _) = row.map_err(failed)?;
        let Some(record) = record_at(&log, &query.firm, schema::place_at_end(key.value())?)? else { continue };
        if !fits(query, &record) {
            continue;
        }
        if page.records.len() == page_size(query) {
            page.more = true;
            break;
        }
        page.records.push(record);
    }
    Ok(page)
}

fn in_arrival(snapshot: &ReadTransaction, query: &ActivityQuery, after: u64) -> Result<ActivityPage, StoreError> {
    let by_arrival = snapshot.open_table(schema::ACTIVITY_BY_ARRIVAL).map_err(failed)?;
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    let firm = schema::of_firm(&query.firm);
    let mut page = ActivityPage { records: Vec::new(), more: false, arrival: after };
    let start = firm.clone().number(after.saturating_add(1));
    for (looked_at, row) in by_arrival.range::<&[u8]>(start.bytes()..firm.end().bytes()).map_err(failed)?.enumerate() {
        let (key, place) = row.map_err(failed)?;
        let record = record_at(&log, &query.firm, Reading::of(place.value()).place()?)?.filter(|record| fits(query, record));
        if looked_at == ARRIVALS_PER_CALL || (record.is_some() && page.records.len() == page_size(query)) {
            page.more = true;
            break;
        }
        let number = key.value().last_chunk::<8>().ok_or_else(|| corrupt("an arrival key is too short"))?;
        page.arrival = u64::from_be_bytes(*number);
        page.records.extend(record);
    }
    Ok(page)
}

fn page_size(query: &ActivityQuery) -> usize {
    query.limit.clamp(1, PAGE_MAX)
}

fn fits(query: &ActivityQuery, record: &AuditRecord) -> bool {
    query.key.is_none_or(|key| key == record.key_id)
        && query.action.is_none_or(|action| action == record.action)
        && query.since.is_none_or(|since| record.time >= since)
        && query.until.is_none_or(|until| record.time < until)
}

fn record_at(log: &impl ReadableTable<Raw, Raw>, firm: &FirmId, place: ActivityPlace) -> Result<Option<AuditRecord>, StoreError> {
    let key = schema::of_firm(firm).time(place.time).uuid(place.event);
    let value = log.get(key.bytes()).map_err(failed)?;
    value.map(|value| schema::read_activity(value.value())).transpose()
}

/// When the process was started, by both clocks: what turns a recorded time into a moment of this uptime.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) wall: Timestamp,
    pub(super) boot: BootInstant,
}

/// The permits that `key` spent in the `span` before this start, as moments of this uptime. A record of the
/// future, after a step of the wall clock, counts as of the start: too late, never too early.
pub(super) fn uses_before(snapshot: &ReadTransaction, key: KeyId, opened: Opened, span: Duration) -> Result<Vec<BootInstant>, StoreError> {
    let keys = snapshot.open_table(schema::KEYS).map_err(failed)?;
    let Some(record) = schema::record_in(&keys, key)? else { return Ok(Vec::new()) };
    let by_key = snapshot.open_table(schema::ACTIVITY_BY_KEY).map_err(failed)?;
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    let (start, end) = (schema::of_key(key).time(opened.wall.minus(span)), schema::of_key(key).end());
    let mut uses = Vec::new();
    for row in by_key.range::<&[u8]>(start.bytes()..end.bytes()).map_err(failed)?.rev() {
        let place = schema::place_at_end(row.map_err(failed)?.0.value())?;
        let Some(used) = record_at(&log, &record.firm_id, place)? else { continue };
        let age_us = u64::try_from(opened.wall.micros().saturating_sub(used.time.micros())).unwrap_or(0);
        let at = opened.boot.minus(Duration::from_micros(age_us));
        let permits = usize::try_from(used.permits_spent()).unwrap_or(usize::MAX);
        uses.extend(std::iter::repeat_n(at, permits.min(REMEMBERED_USES_MAX - uses.len())));
    }
    Ok(uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_the_product_and_a_network_more_than_a_machine() {
        assert_eq!(tool("claude-mcp/1.2 (linux)").as_deref(), Some("claude-mcp"));
        assert_eq!(tool("My Tool").as_deref(), Some("My"));
        assert_eq!(tool("/1.0"), None);
        assert_eq!(network("203.0.113.9").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(network("::ffff:203.0.113.9").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(network("2001:db8:1:2::3").as_deref(), Some("2001:db8:1::/48"));
        assert_eq!(network("localhost"), None);
    }

    #[test]
    fn the_newest_eight_are_kept_for_thirty_days() {
        let mut uses = KeyUses::default();
        let day = |days: i64| Timestamp::from_micros(days * 86_400_000_000);
        for number in 0..20 {
            note_seen(&mut uses.tools, Some(format!("tool-{number}")), day(number));
        }
        assert_eq!(uses.tools.len(), SEEN_MAX);
        assert_eq!(uses.tools[0].what, "tool-19");
        assert_eq!(seen_lately(&uses, day(19 + 28)).len(), 3, "19, 18 and 17 are within 30 days");
        assert_eq!(seen_lately(&uses, day(19 + 31)).len(), 0);
    }
}

//! The activity log (protocol 3): one stream for consumers, and for each firm its own, which the admin API reads.
//!
//! A spool's records are of firms of all partitions, so each batch goes to every partition with that partition's records
//! only, and each keeps its own mark: what all of them hold is what the log holds. A batch that failed somewhere is sent
//! again to all; those who had it skip it.
//!
//! A firm's stream is in the order of arrival, and a place in it is the stream's id `ms-n` as one number, `ms << 22 | n`:
//! 41 bits of milliseconds until 2039 and 4 million records within one of them. The order by time is a sorted set beside it.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;

use futures_util::future::try_join_all;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::keys::{number, words};
use super::schema::{self, Names};
use super::{RedisStore, corrupt};
use crate::domain::{Action, AuditRecord, FirmId, FirmTag, KeyId, Outcome, Sequence, Timestamp};
use crate::store::uses::{network, tool};
use crate::store::{ActivityOrder, ActivityPage, ActivityPlace, ActivityQuery, AuditBatch, StoreError};

/// Records of one page at most, whoever asks.
const PAGE_MAX: usize = 10_000;
/// Records that one call of the script answers, and looks at: Redis serves nobody else meanwhile.
const CHUNK: usize = 500;
/// Arrivals that one call looks at: a filter that fits nothing must not read the whole log at once.
const ARRIVALS_PER_CALL: usize = 1_000;
/// Bits of a place that number the records of one millisecond.
const NUMBER_BITS: u32 = 22;

/// A stream's entry: its id, and fields and values in turn.
pub(super) type Entry = (String, Vec<String>);

/// A record as fields and values in turn, absent ones left out.
pub(super) fn write(record: &AuditRecord) -> Vec<String> {
    let json = serde_json::to_value(record).expect("texts are always written");
    let Value::Object(members) = json else { return Vec::new() };
    members
        .into_iter()
        .filter_map(|(name, value)| if let Value::String(text) = value { Some([name, text]) } else { None })
        .flatten()
        .collect()
}

pub(super) fn read(fields: &[String]) -> Result<AuditRecord, StoreError> {
    let pairs = fields.chunks_exact(2).filter_map(|pair| Some((pair.first()?.clone(), Value::String(pair.last()?.clone()))));
    let members: Map<String, Value> = pairs.collect();
    serde_json::from_value(Value::Object(members))
        .map_err(|error| StoreError::Corrupt(format!("an audit record is not what it should be: {error}")))
}

pub(super) async fn ship(store: &RedisStore, batch: AuditBatch) -> Result<Sequence, StoreError> {
    let sequences = range_of(&batch.records)?;
    let mut parts: Vec<Vec<&AuditRecord>> = store.partitions.iter().map(|_| Vec::new()).collect();
    for record in &batch.records {
        let home = usize::from(store.names_of(FirmTag::of(&record.firm_id)).partition.0);
        parts.get_mut(home).ok_or_else(|| corrupt("a firm has no partition"))?.push(record);
    }
    let shipments = store.partitions.iter().zip(&parts).map(|(names, records)| ship_to(store, names, &batch, sequences, records));
    Ok(try_join_all(shipments).await?.into_iter().min().unwrap_or_default())
}

/// The first and last sequence; 1 and 0 when there are no records. The batch itself has no gap.
fn range_of(records: &[AuditRecord]) -> Result<(u64, u64), StoreError> {
    let mut range: Option<(u64, u64)> = None;
    for record in records {
        let sequence = record.sequence.ok_or_else(|| corrupt("a spooled record has no sequence"))?.get();
        range = match range {
            None => Some((sequence, sequence)),
            Some((first, last)) if last.checked_add(1) == Some(sequence) => Some((first, sequence)),
            Some((_, last)) => return Err(StoreError::Corrupt(format!("a batch goes on at {sequence} after {last}"))),
        };
    }
    Ok(range.unwrap_or((1, 0)))
}

async fn ship_to(
    store: &RedisStore,
    names: &Names,
    batch: &AuditBatch,
    (first, last): (u64, u64),
    records: &[&AuditRecord],
) -> Result<Sequence, StoreError> {
    let age = batch.age_max.map_or_else(String::new, |age| age.as_micros().to_string());
    let Sequence(lost) = batch.lost_up_to.unwrap_or_default();
    let mut arguments = vec![names.prefix.clone(), age];
    arguments.extend([lost, first, last].map(|number| number.to_string()));
    arguments.push(records.len().to_string());
    for record in records {
        let fields = write(record);
        arguments.extend([
            record.sequence.map_or(0, NonZeroU64::get).to_string(),
            record.firm_id.to_string(),
            record.time.micros().to_string(),
            record.event_id.simple().to_string(),
            fields.len().to_string(),
        ]);
        arguments.extend(fields);
    }
    let mut keys = vec![names.mark(batch.spool), names.stream.clone(), names.named("firms"), names.named("spools")];
    let firms: HashSet<&FirmId> = records.iter().map(|record| &record.firm_id).collect();
    keys.extend(firms.into_iter().flat_map(|firm| ["log", "times"].map(|what| names.of_firm(firm, what))));
    let uses = uses(records);
    arguments.push(uses.len().to_string());
    for (key, uses) in uses {
        keys.extend(["uses", "tools", "networks"].map(|what| names.of_key(what, key)));
        uses.spell(key, &mut arguments);
    }
    let answer: Vec<String> = store.connections.bulk().call(&schema::SHIP, &keys, &arguments).await?;
    match &*words(&answer) {
        ["taken", mark] => Ok(Sequence(number(mark)?)),
        ["gap", mark] => Err(StoreError::Corrupt(format!("a spool goes on at {first}, but the log holds it up to {mark} only"))),
        _ => Err(corrupt("a shipment has an unknown answer")),
    }
}

/// What every partition holds.
pub(super) async fn shipped(store: &RedisStore, spool: Uuid) -> Result<Sequence, StoreError> {
    let marks = store.partitions.iter().map(async |names| {
        let mark: String = store.connections.bulk().call(&schema::MARK, &[names.mark(spool)], &[]).await?;
        number(&mark)
    });
    Ok(Sequence(try_join_all(marks).await?.into_iter().min().unwrap_or(0)))
}

/// What a batch tells of one key: the newest use, and each tool and network with its newest time.
#[derive(Default)]
struct Uses<'a> {
    last: Option<&'a AuditRecord>,
    tools: HashMap<String, Timestamp>,
    networks: HashMap<String, Timestamp>,
}

fn uses<'a>(records: &[&'a AuditRecord]) -> HashMap<KeyId, Uses<'a>> {
    let mut all: HashMap<KeyId, Uses<'_>> = HashMap::new();
    for record in records.iter().copied().filter(|record| record.action == Action::Use && record.outcome == Outcome::Allowed) {
        let uses = all.entry(record.key_id).or_default();
        if uses.last.is_none_or(|last| last.time <= record.time) {
            uses.last = Some(record);
        }
        let seen = [
            (&mut uses.tools, record.user_agent.as_deref().and_then(tool)),
            (&mut uses.networks, record.client_ip.as_deref().and_then(network)),
        ];
        for (known, what) in seen {
            if let Some(what) = what {
                let at = known.entry(what).or_insert(record.time);
                *at = (*at).max(record.time);
            }
        }
    }
    all
}

impl Uses<'_> {
    fn spell(self, key: KeyId, arguments: &mut Vec<String>) {
        let Some(last) = self.last else { return };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        arguments.extend([key.to_string(), last.time.micros().to_string(), text(&last.user_agent), text(&last.client_ip)]);
        for seen in [self.tools, self.networks] {
            arguments.push(seen.len().to_string());
            arguments.extend(seen.into_iter().flat_map(|(what, at)| [what, at.micros().to_string()]));
        }
    }
}

pub(super) async fn activity(store: &RedisStore, query: ActivityQuery) -> Result<ActivityPage, StoreError> {
    match query.order {
        ActivityOrder::NewestFirst { after } => newest_first(store, &query, after).await,
        ActivityOrder::Arrival { after: Some(after) } => in_arrival(store, &query, after).await,
        ActivityOrder::Arrival { after: None } => {
            let log = store.names_of(FirmTag::of(&query.firm)).of_firm(&query.firm, "log");
            let last: Vec<Entry> =
                store.connections.bulk().send(redis::cmd("XREVRANGE").arg(log).arg("+").arg("-").arg("COUNT").arg(1)).await?;
            let arrival = last.first().map(|(id, _)| arrival(id)).transpose()?.unwrap_or(0);
            Ok(ActivityPage { records: Vec::new(), more: false, arrival })
        }
    }
}

async fn newest_first(store: &RedisStore, query: &ActivityQuery, after: Option<ActivityPlace>) -> Result<ActivityPage, StoreError> {
    let names = store.names_of(FirmTag::of(&query.firm));
    let keys = [names.of_firm(&query.firm, "times"), names.of_firm(&query.firm, "log")];
    let wanted = query.limit.clamp(1, PAGE_MAX);
    let after = after.filter(|place| query.until.is_none_or(|until| place.time < until));
    let (mut latest, mut before) = match (after, query.until) {
        (Some(place), _) => (place.time.micros().to_string(), place.event.simple().to_string()),
        (None, Some(until)) => (format!("({}", until.micros()), String::new()),
        (None, None) => ("+inf".to_owned(), String::new()),
    };
    let earliest = query.since.map_or_else(|| "-inf".to_owned(), |since| since.micros().to_string());
    let key = query.key.map_or_else(String::new, |key| key.to_string());
    let action = query.action.map_or_else(String::new, |action| action.to_string());
    let mut records = Vec::new();
    // One more than is wanted tells whether more follow.
    while records.len() <= wanted {
        let most = (wanted + 1 - records.len()).min(CHUNK);
        let arguments = [&latest, &before, &earliest, &key, &action, &most.to_string(), &CHUNK.to_string()].map(ToString::to_string);
        let (place, found) = split(store.connections.bulk().call(&schema::NEWEST, &keys, &arguments).await?)?;
        for fields in &found {
            records.push(read(fields)?);
        }
        let Some(place) = place else { break };
        (latest, before) = place;
    }
    let more = records.len() > wanted;
    records.truncate(wanted);
    Ok(ActivityPage { records, more, arrival: 0 })
}

/// Where the script stopped looking, unless at the end, and what it found.
type Newest = (Option<(String, String)>, Vec<Vec<String>>);

fn split(answer: Vec<redis::Value>) -> Result<Newest, StoreError> {
    let text = |value: redis::Value| redis::from_redis_value::<String>(value).map_err(|_| corrupt("a place in the log is none"));
    let mut answer = answer.into_iter();
    let (Some(score), Some(event)) = (answer.next(), answer.next()) else { return Err(corrupt("a page has no place")) };
    let place = Some((text(score)?, text(event)?)).filter(|(score, _)| !score.is_empty());
    let found = answer.map(|fields| redis::from_redis_value(fields).map_err(|_| corrupt("a record is not made of texts")));
    Ok((place, found.collect::<Result<_, _>>()?))
}

async fn in_arrival(store: &RedisStore, query: &ActivityQuery, after: u64) -> Result<ActivityPage, StoreError> {
    let log = store.names_of(FirmTag::of(&query.firm)).of_firm(&query.firm, "log");
    let start = format!("({}", place(after));
    let entries: Vec<Entry> =
        store.connections.bulk().send(redis::cmd("XRANGE").arg(log).arg(start).arg("+").arg("COUNT").arg(ARRIVALS_PER_CALL)).await?;
    let mut page = ActivityPage { records: Vec::new(), more: entries.len() == ARRIVALS_PER_CALL, arrival: after };
    for (id, fields) in &entries {
        let record = Some(read(fields)?).filter(|record| fits(query, record));
        if record.is_some() && page.records.len() == query.limit.clamp(1, PAGE_MAX) {
            page.more = true;
            break;
        }
        page.arrival = arrival(id)?;
        page.records.extend(record);
    }
    Ok(page)
}

fn fits(query: &ActivityQuery, record: &AuditRecord) -> bool {
    query.key.is_none_or(|key| key == record.key_id)
        && query.action.is_none_or(|action| action == record.action)
        && query.since.is_none_or(|since| record.time >= since)
        && query.until.is_none_or(|until| record.time < until)
}

/// The id that an arrival was made of.
pub(super) fn place(arrival: u64) -> String {
    format!("{}-{}", arrival >> NUMBER_BITS, arrival & ((1 << NUMBER_BITS) - 1))
}

pub(super) fn arrival(id: &str) -> Result<u64, StoreError> {
    let (ms, count) = id.split_once('-').ok_or_else(|| corrupt("a stream's id is none"))?;
    let (ms, count) = (number(ms)?, number(count)?);
    if ms >> (u64::BITS - NUMBER_BITS) == 0 && count >> NUMBER_BITS == 0 {
        Ok(ms << NUMBER_BITS | count)
    } else {
        Err(corrupt("a stream's id is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Epoch, RenewalRequest, Store};

    #[test]
    fn a_record_reads_back_from_its_fields() {
        let mut record = AuditRecord::example(5);
        record.sequence = std::num::NonZeroU64::new(9);
        assert_eq!(read(&write(&record)).ok(), Some(record));
    }

    #[tokio::test]
    async fn an_emptied_redis_is_not_taken_for_one_that_forgot_all_records() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let (replica, spool) = (crate::domain::ReplicaId::new("replica-1"), Uuid::from_u128(7));
        let partition = crate::store::Partition(0);
        let renewal = RenewalRequest { replica, incarnation: Uuid::nil(), partition, applied: Epoch(0), data_set: None };
        store.renew(renewal).await.unwrap();
        assert_eq!(store.shipped(spool).await.unwrap(), Sequence(0));
        store.connections.bulk().send::<String>(&redis::cmd("FLUSHALL")).await.unwrap();
        assert!(store.shipped(spool).await.is_err());
    }

    #[test]
    fn arrivals_are_ordered_as_ids_are() {
        assert!(arrival("1795458600000-1").unwrap() < arrival("1795458600000-2").unwrap());
        assert!(arrival("1795458600000-2").unwrap() < arrival("1795458600001-0").unwrap());
        assert!(arrival("1795458600000").is_err() && arrival("1-99999999").is_err());
    }
}

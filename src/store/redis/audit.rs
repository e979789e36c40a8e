//! The activity log (protocol 3): one stream for consumers, and for each firm its own, which the admin API reads.
//!
//! A spool's records are of firms of all partitions, so each batch goes to every partition with that partition's records
//! only, and each keeps its own mark: what all of them hold is what the log holds. A batch that failed somewhere is sent
//! again to all; those who had it skip it.
//!
//! A firm's stream is in the order of arrival and holds blocks of records; a sorted set beside it has them by time. Filters
//! choose blocks in Redis and records here. See `blocks`.

use std::cmp::Reverse;

use futures_util::future::try_join_all;
use serde_json::Value;
use uuid::Uuid;

use super::keys::{number, time, words};
use super::schema::Names;
use super::script::NONE;
use super::shipment::{Argument, Part, Prepared};
use super::{RedisStore, blocks, corrupt, log_scripts};
use crate::domain::{Action, AuditRecord, Field, FirmTag, Sequence, Timestamp, WrittenRecord};
use crate::store::{ActivityOrder, ActivityPage, ActivityPlace, ActivityQuery, AuditBatch, StoreError};

/// Records that one call ships at most: Redis serves nobody else meanwhile, for some five milliseconds.
const SHIPPED_PER_CALL: usize = 512;
/// Records of one page at most, whoever asks.
const PAGE_MAX: usize = 10_000;
/// Bytes of blocks after which one call of the script answers, and how many more an ordinary record takes.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
const RECORD_BYTES: usize = 400;
/// Blocks that one call reads: a filter that fits nothing must not read the whole log at once.
const BLOCKS_PER_CALL: usize = 200;
/// Blocks that one call passes over because they are about other keys, in some milliseconds.
const PASSED_PER_CALL: usize = 10_000;
/// Blocks that one call reads in the order of arrival, at most a megabyte or so.
pub(super) const ARRIVALS_PER_CALL: usize = 32;

/// A stream's entry: its id, and fields and values in turn.
pub(super) type Entry = (String, Vec<Vec<u8>>);

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

pub(super) fn read(record: &WrittenRecord) -> Result<AuditRecord, StoreError> {
    record.read().map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// The arrivals and records of an entry of a firm's log.
pub(super) fn read_entry((id, fields): &Entry) -> Result<Vec<(u64, WrittenRecord)>, StoreError> {
    let [_, block] = fields.as_slice() else { return Err(corrupt("an entry of a firm's log is no block")) };
    blocks::arrived(id, block)
}

pub(super) async fn ship(store: &RedisStore, batch: AuditBatch) -> Result<Sequence, StoreError> {
    let prepared = Prepared::of(&batch.records)?;
    let (first, last) = prepared.range()?;
    let homes = prepared.homes(|tag| usize::from(store.names_of(tag).partition.0));
    let shipments = store.partitions.iter().map(async |names| {
        let is_here = |firm: usize| homes.get(firm) == Some(&usize::from(names.partition.0));
        let mut begin = 0;
        loop {
            let places = begin..batch.records.len().min(begin + SHIPPED_PER_CALL);
            let range = (first + begin as u64, last.min(first + places.end as u64 - 1));
            let mark = ship_to(store, names, &batch, range, |mark| prepared.part(&places, mark, is_here)).await?;
            begin = places.end;
            if begin == batch.records.len() {
                return Ok::<_, StoreError>(mark);
            }
        }
    });
    Ok(try_join_all(shipments).await?.into_iter().min().map_or(Sequence::default(), Sequence))
}

/// Ships the records of a range of sequences into one partition, those that it does not hold already.
async fn ship_to<'a>(
    store: &RedisStore,
    names: &Names,
    batch: &AuditBatch,
    (first, last): (u64, u64),
    part: impl Fn(u64) -> Part<'a>,
) -> Result<u64, StoreError> {
    let mut mark = 0;
    loop {
        let part = part(mark);
        let (more_keys, more_arguments) = part.spelt(names)?;
        let mut keys = vec![names.mark(batch.spool), names.stream.clone(), names.named("firms"), names.named("spools")];
        keys.extend(more_keys);
        let age = batch.age_max.map_or_else(String::new, |age| age.as_micros().to_string());
        let Sequence(lost) = batch.lost_up_to.unwrap_or_default();
        let mut arguments = vec![Argument::Text(names.prefix.clone()), Argument::Text(age)];
        arguments.extend([lost, first.max(mark + 1), last].map(Argument::Number));
        arguments.extend(more_arguments);
        let answer: Vec<String> = store.connections.bulk().call(&log_scripts::SHIP, &keys, &arguments).await?;
        match &*words(&answer) {
            ["taken", mark] => return number(mark),
            ["partly", taken] if number(taken)? > mark => mark = number(taken)?,
            ["gap", mark] => {
                return Err(StoreError::Corrupt(format!("a spool goes on at {first}, but the log holds it up to {mark} only")));
            }
            _ => return Err(corrupt("a shipment has an unknown answer")),
        }
    }
}

/// What every partition holds.
pub(super) async fn shipped(store: &RedisStore, spool: Uuid) -> Result<Sequence, StoreError> {
    let marks = store.partitions.iter().map(async |names| {
        let mark: String = store.connections.bulk().call(&log_scripts::MARK, &[names.mark(spool)], NONE).await?;
        number(&mark)
    });
    Ok(Sequence(try_join_all(marks).await?.into_iter().min().unwrap_or(0)))
}

pub(super) async fn activity(store: &RedisStore, query: ActivityQuery) -> Result<ActivityPage, StoreError> {
    match query.order {
        ActivityOrder::NewestFirst { after } => newest_first(store, &query, after).await,
        ActivityOrder::Arrival { after: Some(after) } => in_arrival(store, &query, after).await,
        ActivityOrder::Arrival { after: None } => {
            let log = store.names_of(FirmTag::of(&query.firm)).of_firm(&query.firm, "log");
            let last: Vec<Entry> =
                store.connections.bulk().send(redis::cmd("XREVRANGE").arg(log).arg("+").arg("-").arg("COUNT").arg(1)).await?;
            let arrival = last.first().map(|(id, _)| blocks::arrival(id)).transpose()?.unwrap_or(0);
            Ok(ActivityPage { records: Vec::new(), more: false, arrival })
        }
    }
}

async fn newest_first(store: &RedisStore, query: &ActivityQuery, after: Option<ActivityPlace>) -> Result<ActivityPage, StoreError> {
    let names = store.names_of(FirmTag::of(&query.firm));
    // Creations and revocations are rare among uses, and have a way of their own.
    let way = if query.action.is_some_and(|action| action != Action::Use) { "changes" } else { "times" };
    let keys = [names.of_firm(&query.firm, way), names.of_firm(&query.firm, "log")];
    let wanted = query.limit.clamp(1, PAGE_MAX);
    let after = after.filter(|place| query.until.is_none_or(|until| place.time < until));
    let newest = after.map(|place| place.time).or(query.until).map(|newest| newest.plus(blocks::SPAN));
    let mut from = (newest.map_or_else(|| "+inf".to_owned(), |newest| newest.micros().to_string()), String::new());
    let earliest = query.since.map_or_else(|| "-inf".to_owned(), |since| since.micros().to_string());
    let key = query.key.map_or_else(String::new, |key| within(Field::KeyId, &key.to_string()));
    let action = query.action.map_or_else(String::new, |action| within(Field::Action, action.word()));
    let key_end = query.key.map_or_else(String::new, |key| format!(",{}", blocks::key_end(&key.to_string())));
    let (mut records, mut waiting) = (Vec::new(), Vec::new());
    // One more than is wanted tells whether more follow.
    while records.len() <= wanted {
        let missing = wanted + 1 - records.len();
        let bytes = (missing * RECORD_BYTES).min(CHUNK_BYTES_MAX).to_string();
        let most = [BLOCKS_PER_CALL, PASSED_PER_CALL].map(|most| most.to_string());
        let arguments = [&from.0, &from.1, &earliest, &key, &action, &key_end, &bytes, &most[0], &most[1]].map(ToString::to_string);
        let (place, found) = split(store.connections.bulk().call(&log_scripts::NEWEST, &keys, &arguments).await?)?;
        for block in &found {
            for (_, record) in blocks::read(block)? {
                let place = place_of(&record)?;
                if fits(query, place.time, &record) && after.is_none_or(|after| place < after) {
                    waiting.push((place, record));
                }
            }
        }
        waiting.sort_by_key(|(place, _)| Reverse(*place));
        // What was not looked at may be as new as the last block that was.
        let ready = match &place {
            Some((newest, _)) => {
                let newest = time(newest)?;
                waiting.partition_point(|(place, _)| place.time > newest)
            }
            None => waiting.len(),
        };
        for (_, record) in waiting.drain(..ready).take(missing) {
            records.push(read(&record)?);
        }
        let Some(place) = place else { break };
        from = place;
    }
    let more = records.len() > wanted;
    records.truncate(wanted);
    Ok(ActivityPage { records, more, arrival: 0 })
}

/// What a block holds that has a record with this field.
fn within(field: Field, text: &str) -> String {
    format!("{}{}:{text}", char::from(field.letter()), text.len())
}

fn place_of(record: &WrittenRecord) -> Result<ActivityPlace, StoreError> {
    match (record.time(), record.event_id()) {
        (Some(time), Some(event)) => Ok(ActivityPlace { time, event }),
        _ => Err(corrupt("an audit record has no time or no event")),
    }
}

/// Where the script stopped looking, unless at the end, and the blocks it found.
type Newest = (Option<(String, String)>, Vec<Vec<u8>>);

fn split(answer: Vec<redis::Value>) -> Result<Newest, StoreError> {
    let text = |value: redis::Value| redis::from_redis_value::<String>(value).map_err(|_| corrupt("a place in the log is none"));
    let mut answer = answer.into_iter();
    let (Some(newest), Some(id)) = (answer.next(), answer.next()) else { return Err(corrupt("a page has no place")) };
    let place = Some((text(newest)?, text(id)?)).filter(|(newest, _)| !newest.is_empty());
    let found = answer.map(|block| redis::from_redis_value(block).map_err(|_| corrupt("a block is not made of bytes")));
    Ok((place, found.collect::<Result<_, _>>()?))
}

async fn in_arrival(store: &RedisStore, query: &ActivityQuery, after: u64) -> Result<ActivityPage, StoreError> {
    let log = store.names_of(FirmTag::of(&query.firm)).of_firm(&query.firm, "log");
    let start = format!("({}", blocks::place(after));
    let entries: Vec<Entry> =
        store.connections.bulk().send(redis::cmd("XRANGE").arg(log).arg(start).arg("+").arg("COUNT").arg(ARRIVALS_PER_CALL)).await?;
    let mut page = ActivityPage { records: Vec::new(), more: entries.len() == ARRIVALS_PER_CALL, arrival: after };
    for entry in &entries {
        for (arrival, record) in read_entry(entry)?.into_iter().filter(|(arrival, _)| *arrival > after) {
            if fits(query, place_of(&record)?.time, &record) {
                if page.records.len() == query.limit.clamp(1, PAGE_MAX) {
                    page.more = true;
                    return Ok(page);
                }
                page.records.push(read(&record)?);
            }
            page.arrival = arrival;
        }
    }
    Ok(page)
}

fn fits(query: &ActivityQuery, time: Timestamp, record: &WrittenRecord) -> bool {
    query.key.is_none_or(|key| record.field(Field::KeyId).is_some_and(|text| text.parse() == Ok(key)))
        && query.action.is_none_or(|action| record.field(Field::Action) == Some(action.word()))
        && query.since.is_none_or(|since| time >= since)
        && query.until.is_none_or(|until| time < until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Epoch, RenewalRequest, Store};

    #[tokio::test]
    async fn an_emptied_redis_is_not_taken_for_one_that_forgot_all_records() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let (replica, spool) = (crate::domain::ReplicaId::new("replica-1"), Uuid::from_u128(7));
        let partition = crate::store::Partition(0);
        let renewal = RenewalRequest { replica, incarnation: Uuid::nil(), partition, applied: Epoch(0), data_set: None, settled: None };
        store.renew(renewal).await.unwrap();
        assert_eq!(store.shipped(spool).await.unwrap(), Sequence(0));
        store.connections.bulk().send::<String>(&redis::cmd("FLUSHALL")).await.unwrap();
        assert!(store.shipped(spool).await.is_err());
    }
    /// Ships these records as a spool of their own.
    async fn ship_all(store: &RedisStore, spool: u128, mut records: Vec<AuditRecord>) {
        for (record, sequence) in records.iter_mut().zip(1..) {
            record.sequence = std::num::NonZeroU64::new(sequence);
        }
        let records = records.into_iter().map(WrittenRecord::from).collect();
        let batch = AuditBatch { spool: Uuid::from_u128(spool), records, lost_up_to: None, age_max: None };
        store.ship(batch).await.unwrap();
    }

    fn asked(order: ActivityOrder, limit: usize) -> ActivityQuery {
        let firm = AuditRecord::example(0).firm_id;
        ActivityQuery { firm, key: None, action: None, since: None, until: None, limit, order }
    }

    #[tokio::test]
    async fn blocks_that_lie_across_each_other_in_time_are_read_in_order_and_whole() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let mut all = Vec::new();
        for spool in 1..=3_u128 {
            // Three replicas at once; some requests took seconds, and many end in the same microsecond.
            let records: Vec<AuditRecord> = (0..700_u128)
                .map(|number| {
                    let mut record = AuditRecord::example(spool * 1_000 + (number * 379) % 700);
                    let late = if number % 13 == 0 { 3_000_000 } else { 0 };
                    let micros = i64::try_from(number / 3 * 3_000 + (number * 7_919) % 90_000 / 1_000 * 1_000).unwrap();
                    record.time = Timestamp::from_micros(record.time.micros() + micros - late);
                    record.key_id = crate::domain::KeyId::new(Uuid::from_u128(number % 5));
                    record
                })
                .collect();
            ship_all(&store, spool, records.clone()).await;
            all.extend(records);
        }
        all.sort_by_key(|record| Reverse((record.time, record.event_id)));
        let (since, until) = (all[1_500].time, all[200].time);
        for key in [None, Some(all[0].key_id)] {
            let fits = |record: &&AuditRecord| record.time >= since && record.time < until && key.is_none_or(|key| key == record.key_id);
            let expected: Vec<_> = all.iter().filter(fits).map(|record| record.event_id).collect();
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let query = asked(ActivityOrder::NewestFirst { after }, 97);
                let page = store.activity(ActivityQuery { key, since: Some(since), until: Some(until), ..query }).await.unwrap();
                after = page.records.last().map(|last| ActivityPlace { time: last.time, event: last.event_id });
                seen.extend(page.records.iter().map(|record| record.event_id));
                if !page.more {
                    break;
                }
            }
            assert_eq!(seen, expected);
        }
        let (mut arrived, mut after) = (Vec::new(), 0);
        loop {
            let page = store.activity(asked(ActivityOrder::Arrival { after: Some(after) }, 50)).await.unwrap();
            after = page.arrival;
            arrived.extend(page.records.iter().map(|record| record.event_id));
            if !page.more {
                break;
            }
        }
        arrived.sort_unstable();
        let mut expected: Vec<_> = all.iter().map(|record| record.event_id).collect();
        expected.sort_unstable();
        assert_eq!(arrived, expected, "each once");
    }

    /// How often blocks were read by what `asking` does.
    async fn reads_of(server: &super::super::testing::Server, asking: impl Future<Output = ActivityPage>) -> (Vec<u128>, u64) {
        let store = server.open().await.unwrap();
        let line = store.connections.bulk();
        let count = async || {
            let told: String = line.send(redis::cmd("INFO").arg("commandstats")).await.unwrap();
            let calls = told.lines().find_map(|line| line.strip_prefix("cmdstat_xrange:calls=")).unwrap_or("0,");
            calls.split_once(',').unwrap().0.parse::<u64>().unwrap()
        };
        let before = count().await;
        let page = asking.await;
        (page.records.iter().map(|record| record.event_id.as_u128()).collect(), count().await - before)
    }

    #[tokio::test]
    async fn what_is_rare_in_a_long_log_is_found_without_reading_the_rest_and_trimmed_with_it() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let names = store.names(crate::store::Partition(0));
        let (firm, rare) = (AuditRecord::example(0).firm_id, crate::domain::KeyId::new(Uuid::from_u128(77)));
        // 600 blocks of one record each: a minute passes between any two.
        let begin = crate::clock::wall_now().minus(std::time::Duration::from_secs(36_000)).micros();
        let mut records: Vec<AuditRecord> = (0..600_u128)
            .map(|number| {
                let time = Timestamp::from_micros(begin + i64::try_from(number).unwrap() * 60_000_000);
                let key_id = crate::domain::KeyId::new(Uuid::from_u128(number % 7));
                AuditRecord { time, key_id, ..AuditRecord::example(number) }
            })
            .collect();
        (records[3].action, records[300].action) = (Action::Create, Action::Revoke);
        (records[5].key_id, records[310].key_id) = (rare, rare);
        ship_all(&store, 1, records).await;
        let query = || asked(ActivityOrder::NewestFirst { after: None }, 50);
        let ask = async |action, key| {
            let query = ActivityQuery { action, key, ..query() };
            reads_of(&server, async { store.activity(query).await.unwrap() }).await
        };
        assert_eq!(ask(Some(Action::Create), None).await, (vec![3], 2));
        assert_eq!(ask(Some(Action::Revoke), None).await, (vec![300], 2));
        assert_eq!(ask(None, Some(rare)).await, (vec![310, 5], 2));
        assert_eq!(ask(Some(Action::Create), Some(rare)).await, (vec![], 0));
        assert_eq!(ask(Some(Action::Use), Some(rare)).await, (vec![310, 5], 2));
        let mut newest = AuditRecord::example(1_000);
        newest.time = crate::clock::wall_now();
        newest.sequence = std::num::NonZeroU64::new(1);
        let age_max = Some(std::time::Duration::from_secs(21_000));
        store.ship(AuditBatch { spool: Uuid::from_u128(2), records: vec![newest.into()], lost_up_to: None, age_max }).await.unwrap();
        assert_eq!(ask(Some(Action::Create), None).await, (vec![], 1), "the revocation alone is left");
        assert_eq!(ask(None, Some(rare)).await.0, [310]);
        let line = store.connections.bulk();
        let left: u64 = line.send(redis::cmd("ZCARD").arg(names.of_firm(&firm, "changes"))).await.unwrap();
        let kept: u64 = line.send(redis::cmd("XLEN").arg(names.of_firm(&firm, "log"))).await.unwrap();
        assert_eq!((left, kept), (1, line.send(redis::cmd("ZCARD").arg(names.of_firm(&firm, "times"))).await.unwrap()));
    }

    #[tokio::test]
    async fn a_log_that_is_ahead_of_the_clock_goes_on_behind_its_end_though_that_was_trimmed() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let log = store.names(crate::store::Partition(0)).of_firm(&AuditRecord::example(0).firm_id, "log");
        let line = store.connections.bulk();
        let ahead = "4000000000000-5";
        line.send::<String>(redis::cmd("XADD").arg(&log).arg(ahead).arg("records").arg("")).await.unwrap();
        line.send::<u64>(redis::cmd("XDEL").arg(&log).arg(ahead)).await.unwrap();
        let after = Some(blocks::arrival(ahead).unwrap());
        for spool in 1..=2 {
            // Blocks of one record each.
            let records = [0, 1_000_000, 2_000_000]
                .map(|micros| AuditRecord { time: Timestamp::from_micros(1_795_458_600_000_000 + micros), ..AuditRecord::example(spool) });
            ship_all(&store, spool, records.to_vec()).await;
        }
        let page = store.activity(asked(ActivityOrder::Arrival { after }, 100)).await.unwrap();
        assert_eq!(page.records.iter().map(|record| record.event_id.as_u128()).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2]);
        assert_eq!(blocks::place(page.arrival), format!("4000000000006-{}", blocks::NUMBER_MAX));
    }
}

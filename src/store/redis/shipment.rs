//! A shipment as the script wants it: each record for the consumers' stream, blocks for the firms' logs, and what it tells
//! of keys.
//!
//! Tens of thousands of records a second go through here, so a record is read once, field by field, and nothing of it is
//! copied but into the contract's fields. Their values are packed into one argument of the script (MessagePack, which
//! Redis's Lua unpacks in one call), because each argument of its own costs Redis a quarter of a microsecond; their names,
//! which nearly all records share, are told once for a run of records.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

use redis::{RedisWrite, ToRedisArgs};
use uuid::Uuid;

use super::blocks::Block;
use super::corrupt;
use super::schema::Names;
use super::uses::{self, put};
use crate::domain::{Action, Field, FirmId, FirmTag, KeyId, Outcome, Timestamp, WrittenRecord};
use crate::store::StoreError;
use crate::store::uses::{HourOfUse, hour_of, network, tool};

/// An argument of a script.
pub(super) enum Argument<'a> {
    Bytes(&'a [u8]),
    Packed(Vec<u8>),
    Text(String),
    Number(u64),
    Time(i64),
}

impl ToRedisArgs for Argument<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match self {
            Self::Bytes(bytes) => out.write_arg(bytes),
            Self::Packed(bytes) => out.write_arg(bytes),
            Self::Text(text) => out.write_arg(text.as_bytes()),
            Self::Number(number) => number.write_redis_args(out),
            Self::Time(micros) => micros.write_redis_args(out),
        }
    }
}

impl<'a> From<&'a str> for Argument<'a> {
    fn from(text: &'a str) -> Self {
        Self::Bytes(text.as_bytes())
    }
}

impl From<usize> for Argument<'_> {
    fn from(count: usize) -> Self {
        Self::Number(count as u64)
    }
}

/// Records that were read and packed.
pub(super) struct Prepared<'a> {
    records: Vec<Told<'a>>,
    packed: Vec<u8>,
    shapes: Vec<Vec<Field>>,
    firms: Vec<FirmId>,
}

/// What shipping has to know of a record.
struct Told<'a> {
    record: &'a WrittenRecord,
    /// Where its packed values are, and which of the shapes names them.
    packed: Range<usize>,
    shape: usize,
    sequence: u64,
    micros: i64,
    /// Which of the firms.
    firm: usize,
    key: &'a str,
    user_agent: Option<&'a str>,
    client_ip: Option<&'a str>,
    /// Whether it is of a use that was allowed.
    is_use: bool,
    /// Whether it is of a creation or a revocation.
    is_change: bool,
}

impl<'a> Prepared<'a> {
    /// Reads the records.
    ///
    /// # Errors
    /// `Corrupt` when one is not what a record must be.
    pub(super) fn of(records: &'a [WrittenRecord]) -> Result<Self, StoreError> {
        let mut prepared = Self {
            records: Vec::with_capacity(records.len()),
            packed: Vec::with_capacity(records.len() * 512),
            shapes: Vec::new(),
            firms: Vec::new(),
        };
        let (mut firms, mut calendar, mut shape) = (HashMap::new(), Calendar::default(), Vec::new());
        for record in records {
            let from = prepared.packed.len();
            let (told, firm) = pack(record, &mut prepared.packed, &mut shape, &mut calendar)?;
            let firm = match firms.get(firm) {
                Some(place) => *place,
                None => {
                    prepared.firms.push(FirmId::parse(firm).map_err(|_| corrupt("a record's firm is none"))?);
                    firms.insert(firm, prepared.firms.len() - 1);
                    prepared.firms.len() - 1
                }
            };
            let shape = prepared.shape_of(&shape);
            prepared.records.push(Told { packed: from..prepared.packed.len(), shape, firm, ..told });
        }
        Ok(prepared)
    }

    fn shape_of(&mut self, shape: &[Field]) -> usize {
        self.shapes.iter().rposition(|known| known == shape).unwrap_or_else(|| {
            self.shapes.push(shape.to_vec());
            self.shapes.len() - 1
        })
    }

    /// The first and last sequence; 1 and 0 when there are no records. The batch itself has no gap.
    pub(super) fn range(&self) -> Result<(u64, u64), StoreError> {
        let mut range: Option<(u64, u64)> = None;
        for Told { sequence, .. } in &self.records {
            range = match range {
                None => Some((*sequence, *sequence)),
                Some((first, last)) if last.checked_add(1) == Some(*sequence) => Some((first, *sequence)),
                Some((_, last)) => return Err(StoreError::Corrupt(format!("a batch goes on at {sequence} after {last}"))),
            };
        }
        Ok(range.unwrap_or((1, 0)))
    }

    /// Where the firms of the records live.
    pub(super) fn homes(&self, home: impl Fn(FirmTag) -> usize) -> Vec<usize> {
        self.firms.iter().map(|firm| home(FirmTag::of(firm))).collect()
    }

    /// What one partition has to be told of these places in the batch, but for those up to `mark`.
    pub(super) fn part(&'a self, places: &Range<usize>, mark: u64, is_here: impl Fn(usize) -> bool) -> Part<'a> {
        let mut part = Part { runs: Vec::new(), firms: Vec::new(), known: HashMap::new() };
        let records = self.records.get(places.clone()).unwrap_or_default();
        for told in records.iter().filter(|told| told.sequence > mark && is_here(told.firm)) {
            if part.runs.last().is_none_or(|run| run.shape != told.shape) {
                let names = self.shapes.get(told.shape).map_or(&[][..], Vec::as_slice);
                part.runs.push(Run { shape: told.shape, names, packed: Vec::new() });
            }
            if let Some(run) = part.runs.last_mut() {
                run.packed.push(self.packed.get(told.packed.clone()).unwrap_or_default());
            }
            part.take(&self.firms, told);
        }
        part
    }
}

/// The records of one partition.
pub(super) struct Part<'a> {
    runs: Vec<Run<'a>>,
    firms: Vec<FirmPart<'a>>,
    /// Where each firm of the batch is among these.
    known: HashMap<usize, usize>,
}

/// Records that follow each other and have the same fields.
struct Run<'a> {
    shape: usize,
    names: &'a [Field],
    packed: Vec<&'a [u8]>,
}

struct FirmPart<'a> {
    firm: &'a FirmId,
    blocks: Vec<Block>,
    keys: HashMap<&'a str, Uses<'a>>,
}

/// What a batch tells of one key: the newest use, and what it was used with.
#[derive(Default)]
struct Uses<'a> {
    last: Option<&'a Told<'a>>,
    user_agents: HashMap<&'a str, i64>,
    client_ips: HashMap<&'a str, i64>,
    hours: Vec<HourOfUse>,
}

impl<'a> Part<'a> {
    fn take(&mut self, firms: &'a [FirmId], told: &'a Told<'a>) {
        let place = *self.known.entry(told.firm).or_insert(self.firms.len());
        if place == self.firms.len() {
            self.firms.extend(firms.get(told.firm).map(|firm| FirmPart { firm, blocks: Vec::new(), keys: HashMap::new() }));
        }
        let Some(part) = self.firms.get_mut(place) else { return };
        if part.blocks.last().is_none_or(|block| !block.admits(told.micros)) {
            part.blocks.push(Block::default());
        }
        if let Some(block) = part.blocks.last_mut() {
            block.push(told.micros, told.record.bytes());
            block.note(told.key, told.is_change);
        }
        if told.is_use {
            part.keys.entry(told.key).or_default().note(told);
        }
    }

    /// The names that the script writes beside those of every shipment, and the arguments that tell of these records.
    ///
    /// # Errors
    /// `Corrupt` when a key's id is none.
    pub(super) fn spelt(&self, names: &Names) -> Result<(Vec<String>, Vec<Argument<'_>>), StoreError> {
        let mut keys = Vec::with_capacity(4 * self.firms.len());
        let mut arguments = vec![self.runs.len().into()];
        for run in &self.runs {
            let names: Vec<&str> = run.names.iter().map(|field| field.name()).collect();
            arguments.extend([Argument::Text(names.join(" ")), run.packed.len().into()]);
            arguments.extend(run.packed.iter().map(|packed| Argument::Bytes(packed)));
        }
        arguments.push(self.firms.len().into());
        for FirmPart { firm, blocks, keys: used } in &self.firms {
            keys.extend(["log", "times", "changes", "uses"].map(|what| names.of_firm(firm, what)));
            arguments.extend([firm.as_str().into(), blocks.len().into()]);
            arguments.extend(
                blocks
                    .iter()
                    .flat_map(|block| [Argument::Time(block.newest()), Argument::Text(block.about()), Argument::Bytes(block.bytes())]),
            );
            let (mut ids, mut notes) = (Vec::with_capacity(40 * used.len()), Vec::with_capacity(160 * used.len()));
            for (key, uses) in used {
                key.parse::<KeyId>().map_err(|_| corrupt("a record's key is none"))?;
                put(&mut ids, key.as_bytes());
                put(&mut notes, &uses.packed());
            }
            arguments.extend([Argument::Packed(ids), Argument::Packed(notes)]);
        }
        Ok((keys, arguments))
    }
}

impl<'a> Uses<'a> {
    fn note(&mut self, told: &'a Told<'a>) {
        if self.last.is_none_or(|last| last.micros <= told.micros) {
            self.last = Some(told);
        }
        let hour = hour_of(Timestamp::from_micros(told.micros));
        match self.hours.iter_mut().rev().find(|known| known.hour == hour) {
            Some(known) => known.count += 1,
            None => self.hours.push(HourOfUse { hour, count: 1 }),
        }
        newer(&mut self.user_agents, told.user_agent, told.micros);
        newer(&mut self.client_ips, told.client_ip, told.micros);
    }

    fn packed(&self) -> Vec<u8> {
        let words = |seen: &HashMap<&str, i64>, word: fn(&str) -> Option<String>| {
            let mut words = HashMap::new();
            for (text, micros) in seen {
                newer(&mut words, word(text), *micros);
            }
            words.into_iter().map(|(word, micros)| (micros, word)).collect()
        };
        let last = self.last.map(|last| (Some(last.micros), last.user_agent.unwrap_or(""), last.client_ip.unwrap_or("")));
        uses::pack(last.unwrap_or_default(), &self.hours, words(&self.user_agents, tool), words(&self.client_ips, network))
    }
}

fn newer<T: Eq + Hash>(seen: &mut HashMap<T, i64>, what: Option<T>, micros: i64) {
    if let Some(what) = what {
        let at = seen.entry(what).or_insert(micros);
        *at = (*at).max(micros);
    }
}

/// Appends the values of a record's fields as the contract tells them, and answers what shipping has to know of it, and its
/// firm; `shape` becomes the fields.
fn pack<'a>(
    record: &'a WrittenRecord,
    packed: &mut Vec<u8>,
    shape: &mut Vec<Field>,
    calendar: &mut Calendar,
) -> Result<(Told<'a>, &'a str), StoreError> {
    shape.clear();
    let mut told = Told {
        record,
        packed: 0..0,
        shape: 0,
        sequence: 0,
        micros: 0,
        firm: 0,
        key: "",
        user_agent: None,
        client_ip: None,
        is_use: true,
        is_change: false,
    };
    let (mut firm, mut seen, mut fields) = ("", 0, record.fields());
    for (field, text) in fields.by_ref() {
        seen |= bit(field);
        shape.push(field);
        match field {
            Field::EventId => {
                put_event(packed, text)?;
                continue;
            }
            Field::Time => {
                told.micros = text.parse().map_err(|_| corrupt("an audit record's time is none"))?;
                put(packed, calendar.text(told.micros).as_bytes());
                continue;
            }
            Field::Sequence => told.sequence = text.parse().map_err(|_| corrupt("a spooled record has no sequence"))?,
            Field::FirmId => firm = text,
            Field::KeyId => told.key = text,
            Field::UserAgent => told.user_agent = Some(text),
            Field::ClientIp => told.client_ip = Some(text),
            Field::Action => {
                told.is_change = text != Action::Use.word();
                told.is_use &= !told.is_change;
            }
            Field::Outcome => told.is_use &= text == Outcome::Allowed.word(),
            _ => {}
        }
        put(packed, text.as_bytes());
    }
    if !fields.rest().is_empty() {
        return Err(corrupt("an audit record's end is damaged"));
    }
    if seen & bit(Field::Outcome) == 0 {
        told.is_use = false;
        shape.push(Field::Outcome);
        put(packed, Outcome::Unknown.word().as_bytes());
    }
    if let Some(missing) = NEEDED.into_iter().find(|field| seen & bit(*field) == 0) {
        return Err(StoreError::Corrupt(format!("an audit record has no {}", missing.name())));
    }
    Ok((told, firm))
}

/// What every record has that comes from a spool.
const NEEDED: [Field; 10] = [
    Field::EventId,
    Field::Time,
    Field::Action,
    Field::FirmId,
    Field::KeyId,
    Field::KeyName,
    Field::KeyPrefix,
    Field::Actor,
    Field::Replica,
    Field::Sequence,
];

const fn bit(field: Field) -> u32 {
    1 << field as u32
}

/// A UUID as people are told it.
fn put_event(packed: &mut Vec<u8>, text: &str) -> Result<(), StoreError> {
    let id = Uuid::try_parse(text).map_err(|_| corrupt("an audit record's event is none"))?;
    put(packed, id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    Ok(())
}

/// Moments in RFC 3339. Records come by the thousand of one second, whose text is made once.
#[derive(Default)]
struct Calendar {
    second: i64,
    text: String,
}

impl Calendar {
    fn text(&mut self, micros: i64) -> &str {
        let (second, mut fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        if self.text.is_empty() || self.second != second {
            (self.second, self.text) = (second, Timestamp::from_micros(micros).to_string());
            return &self.text;
        }
        let Some(dot) = self.text.find('.') else {
            // A moment beyond all calendars.
            self.text = Timestamp::from_micros(micros).to_string();
            return &self.text;
        };
        let mut digits = *b"000000Z";
        for digit in digits.iter_mut().rev().skip(1) {
            *digit = b'0' + u8::try_from(fraction % 10).unwrap_or(0);
            fraction /= 10;
        }
        self.text.truncate(dot + 1);
        self.text.push_str(std::str::from_utf8(&digits).unwrap_or_default());
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AuditRecord;

    /// What Redis's Lua makes of it.
    fn unpacked(mut packed: &[u8]) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some((head, rest)) = packed.split_first() {
            let (length, rest) = match head {
                0xda => (u16::from_be_bytes(*rest.first_chunk().unwrap()) as usize, &rest[2..]),
                0xdb => (u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize, &rest[4..]),
                short => ((short & 0x1f) as usize, rest),
            };
            texts.push(String::from_utf8(rest[..length].to_vec()).unwrap());
            packed = &rest[length..];
        }
        texts
    }

    /// Names and values, as consumers read them.
    fn told(record: &WrittenRecord) -> Result<Vec<(&'static str, String)>, StoreError> {
        let (mut packed, mut shape) = (Vec::new(), Vec::new());
        pack(record, &mut packed, &mut shape, &mut Calendar::default())?;
        let values = unpacked(&packed);
        assert_eq!(values.len(), shape.len());
        Ok(shape.into_iter().map(Field::name).zip(values).collect())
    }

    #[test]
    fn consumers_are_told_what_the_activity_api_tells() {
        let mut record = AuditRecord::example(5);
        record.sequence = std::num::NonZeroU64::new(9);
        record.reason = Some("\0".repeat(70_000));
        let mut open = record.clone();
        open.outcome = Outcome::Unknown;
        (open.status, open.reason) = (None, Some("x".repeat(31)));
        for record in [record, open] {
            let written = WrittenRecord::from(&record);
            let told = told(&written).unwrap().into_iter().map(|(name, value)| (name.to_owned(), serde_json::Value::String(value)));
            let told: serde_json::Map<_, _> = told.collect();
            assert_eq!(serde_json::Value::Object(told), serde_json::to_value(&record).unwrap());
        }
    }

    #[test]
    fn a_record_whose_end_nobody_saw_is_told_so_and_one_that_lacks_anything_is_refused() {
        let full = WrittenRecord::from(AuditRecord { sequence: std::num::NonZeroU64::new(9), ..AuditRecord::example(5) });
        let without = |missing: Field| {
            let mut written = WrittenRecord::new();
            full.fields().filter(|(field, _)| *field != missing).for_each(|(field, text)| written.push(field, text));
            told(&written).map_err(|error| error.to_string())
        };
        assert!(without(Field::Outcome).unwrap().ends_with(&[("outcome", "unknown".into())]));
        assert!(without(Field::Status).is_ok());
        for field in NEEDED {
            assert!(without(field).unwrap_err().contains(field.name()));
        }
        let torn = WrittenRecord::from_bytes(&full.bytes()[..full.bytes().len() - 1]);
        assert!(told(&torn).is_err());
    }

    #[test]
    fn names_are_told_once_for_records_that_have_the_same_fields() {
        let record = |sequence: u64, traceparent: Option<&str>| {
            let traceparent = traceparent.map(str::to_owned);
            let sequence = std::num::NonZeroU64::new(sequence);
            WrittenRecord::from(AuditRecord { sequence, traceparent, ..AuditRecord::example(u128::from(sequence.unwrap().get())) })
        };
        let records = [record(1, None), record(2, None), record(3, Some("00-1-2-01")), record(4, None)];
        let prepared = Prepared::of(&records).unwrap();
        let runs = |mark| -> Vec<(usize, bool)> {
            let part = prepared.part(&(0..4), mark, |_| true);
            part.runs.iter().map(|run| (run.packed.len(), run.names.contains(&Field::Traceparent))).collect()
        };
        assert_eq!(
            (prepared.shapes.len(), runs(0), runs(1)),
            (2, vec![(2, false), (1, true), (1, false)], vec![(1, false), (1, true), (1, false)])
        );
    }

    #[test]
    fn moments_are_told_as_everywhere() {
        let mut calendar = Calendar::default();
        for micros in [
            1_795_458_600_000_000,
            1_795_458_600_000_001,
            1_795_458_600_999_999,
            1_795_458_601_120_000,
            0,
            7,
            -1,
            -2,
            i64::MAX,
            i64::MAX - 1,
            i64::MIN,
        ] {
            assert_eq!(calendar.text(micros), Timestamp::from_micros(micros).to_string());
        }
    }
}

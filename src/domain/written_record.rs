//! An audit record as bytes: what lies in the spool and in the embedded store, and what is shipped to Redis.
//!
//! Each field is a letter and a netstring (D. J. Bernstein, 1997) without its comma: `o7:allowed`. So writing a record is
//! appending, a BEGIN is the beginning of its END, and a reader takes what it needs without parsing the rest. All texts
//! are those of the contract's fields, but for `time`, which is microseconds since 1970, and UUIDs, which are without dashes
//! where only machines read them. No field of a well-formed record holds a zero byte.

use std::fmt::Display;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use uuid::Uuid;

use super::audit_record::{Action, AuditRecord, Outcome, ReplicaId, permits_spent};
use super::{FirmId, KeyId, KeyRecord, Timestamp};

/// A record that can be appended to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WrittenRecord(Vec<u8>);

/// Bytes that are not a record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an audit record: {0}")]
pub struct Unreadable(String);

macro_rules! fields {
    ($($(#[$help:meta])* $field:ident = $letter:literal $name:literal;)*) => {
        /// The fields of a record, in the order in which they are written.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Field {
            $(#[doc = concat!("`", $name, "`")] $field,)*
        }

        /// How many fields there are.
        const FIELDS: usize = [$(Field::$field),*].len();

        impl Field {
            /// All of them.
            pub const ALL: [Self; FIELDS] = [$(Self::$field),*];

            /// The contract's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$field => $name,)* }
            }

            /// What stands for it in a written record.
            pub const fn letter(self) -> u8 {
                match self { $(Self::$field => $letter,)* }
            }

            const fn of(letter: u8) -> Option<Self> {
                match letter { $($letter => Some(Self::$field),)* _ => None }
            }
        }
    };
}

fields! {
    EventId = b'e' "event_id";
    Time = b't' "time";
    Action = b'a' "action";
    FirmId = b'f' "firm_id";
    KeyId = b'k' "key_id";
    KeyName = b'n' "key_name";
    KeyPrefix = b'p' "key_prefix";
    Actor = b'A' "actor";
    ClientIp = b'i' "client_ip";
    UserAgent = b'g' "user_agent";
    RequestId = b'r' "request_id";
    Traceparent = b'T' "traceparent";
    Method = b'm' "method";
    Host = b'h' "host";
    Path = b'P' "path";
    Route = b'R' "route";
    Upstream = b'u' "upstream";
    Replica = b'c' "replica";
    Outcome = b'o' "outcome";
    Status = b's' "status";
    RequestBytes = b'q' "request_bytes";
    ResponseBytes = b'b' "response_bytes";
    DurationUs = b'd' "duration_us";
    Reason = b'w' "reason";
    Sequence = b'S' "sequence";
    Count = b'C' "count";
}

impl WrittenRecord {
    /// A record without fields yet, and room for an ordinary one.
    pub fn new() -> Self {
        Self(Vec::with_capacity(640))
    }

    /// Takes over bytes that were written before, with room for a sequence; whether they are a record shows when it is read.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut written = Vec::with_capacity(bytes.len() + SEQUENCE_BYTES_MAX);
        written.extend_from_slice(bytes);
        Self(written)
    }

    /// What every record of a key's uses says of the key.
    pub fn of_key(key: &KeyRecord) -> Self {
        let mut part = Self::new();
        part.push(Field::FirmId, key.firm_id.as_str());
        part.push_uuid(Field::KeyId, key.id.uuid());
        part.push(Field::KeyName, key.name.as_str());
        part.push(Field::KeyPrefix, &key.prefix);
        part.push_uuid(Field::Actor, key.id.uuid());
        part.0.shrink_to_fit();
        part
    }

    /// Appends the fields of another.
    pub fn append(&mut self, part: &Self) {
        self.0.extend_from_slice(&part.0);
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends a field.
    pub fn push(&mut self, field: Field, text: &str) {
        self.push_bytes(field, text.as_bytes());
    }

    /// Appends a number.
    pub fn push_number(&mut self, field: Field, number: u64) {
        self.push(field, itoa::Buffer::new().format(number));
    }

    /// Appends a UUID as it is told to people, or without dashes where only machines read it.
    pub fn push_uuid(&mut self, field: Field, id: Uuid) {
        let mut buffer = Uuid::encode_buffer();
        let text = if field == Field::EventId { id.simple().encode_lower(&mut buffer) } else { id.hyphenated().encode_lower(&mut buffer) };
        self.push_bytes(field, text.as_bytes());
    }

    /// Appends the moment.
    pub fn push_time(&mut self, time: Timestamp) {
        match u64::try_from(time.micros()) {
            Ok(micros) => self.push_number(Field::Time, micros),
            Err(_) => self.push(Field::Time, &time.micros().to_string()),
        }
    }

    fn push_bytes(&mut self, field: Field, text: &[u8]) {
        let letter = field.letter();
        self.0.reserve(text.len() + FIELD_HEAD_BYTES_MAX);
        // Nearly every length has one digit or two.
        match u8::try_from(text.len()) {
            Ok(length @ ..10) => self.0.extend_from_slice(&[letter, b'0' + length, b':']),
            Ok(length @ ..100) => self.0.extend_from_slice(&[letter, b'0' + length / 10, b'0' + length % 10, b':']),
            _ => {
                self.0.push(letter);
                self.0.extend_from_slice(itoa::Buffer::new().format(text.len()).as_bytes());
                self.0.push(b':');
            }
        }
        self.0.extend_from_slice(text);
    }

    /// The fields, as far as they can be read.
    pub fn fields(&self) -> Fields<'_> {
        Fields { text: readable(&self.0), bytes: &self.0 }
    }

    /// One field's text.
    pub fn field(&self, wanted: Field) -> Option<&str> {
        self.fields().find_map(|(field, text)| (field == wanted).then_some(text))
    }

    /// Its place in its spool, if it has one.
    pub fn sequence(&self) -> Option<NonZeroU64> {
        self.field(Field::Sequence)?.parse().ok()
    }

    /// Its moment.
    pub fn time(&self) -> Option<Timestamp> {
        self.field(Field::Time)?.parse().ok().map(Timestamp::from_micros)
    }

    /// Its own name.
    pub fn event_id(&self) -> Option<Uuid> {
        self.field(Field::EventId)?.parse().ok()
    }

    /// All of its fields' texts, so that several are found in one walk.
    ///
    /// # Errors
    /// When the bytes are not fields from the first to the last.
    pub fn texts(&self) -> Result<Texts<'_>, Unreadable> {
        Texts::of(&self.0)
    }

    /// The whole record as a value.
    ///
    /// # Errors
    /// As [`Texts::record`].
    pub fn read(&self) -> Result<AuditRecord, Unreadable> {
        self.texts()?.record()
    }
}

impl From<&AuditRecord> for WrittenRecord {
    fn from(record: &AuditRecord) -> Self {
        let mut written = Self::new();
        written.push_uuid(Field::EventId, record.event_id);
        written.push_time(record.time);
        written.push(Field::Action, record.action.word());
        written.push(Field::FirmId, record.firm_id.as_str());
        written.push_uuid(Field::KeyId, record.key_id.uuid());
        written.push(Field::KeyName, &record.key_name);
        written.push(Field::KeyPrefix, &record.key_prefix);
        written.push(Field::Actor, &record.actor);
        let texts = [
            (Field::ClientIp, &record.client_ip),
            (Field::UserAgent, &record.user_agent),
            (Field::RequestId, &record.request_id),
            (Field::Traceparent, &record.traceparent),
            (Field::Method, &record.method),
            (Field::Host, &record.host),
            (Field::Path, &record.path),
            (Field::Route, &record.route),
            (Field::Upstream, &record.upstream),
        ];
        for (field, text) in texts {
            if let Some(text) = text {
                written.push(field, text);
            }
        }
        written.push(Field::Replica, record.replica.as_str());
        written.push(Field::Outcome, record.outcome.word());
        let numbers = [
            (Field::Status, record.status.map(u64::from)),
            (Field::RequestBytes, record.request_bytes),
            (Field::ResponseBytes, record.response_bytes),
            (Field::DurationUs, record.duration_us),
        ];
        for (field, number) in numbers {
            if let Some(number) = number {
                written.push_number(field, number);
            }
        }
        if let Some(reason) = &record.reason {
            written.push(Field::Reason, reason);
        }
        if let Some(sequence) = record.sequence {
            written.push_number(Field::Sequence, sequence.get());
        }
        if let Some(count) = record.count {
            written.push_number(Field::Count, u64::from(count.get()));
        }
        written
    }
}

impl From<AuditRecord> for WrittenRecord {
    fn from(record: AuditRecord) -> Self {
        Self::from(&record)
    }
}

/// Fields and their texts, in order; ends at the first byte that belongs to none.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    /// What is left.
    bytes: &'a [u8],
    /// Its beginning, as far as that is text.
    text: &'a str,
}

impl<'a> Iterator for Fields<'a> {
    type Item = (Field, &'a str);

    fn next(&mut self) -> Option<(Field, &'a str)> {
        let (field, text, rest) = split_field(self.text)?;
        self.bytes = self.bytes.get(self.text.len() - rest.len()..)?;
        self.text = rest;
        Some((field, text))
    }
}

/// The beginning that is text. Looked at as a whole, which takes a tenth of looking at each field.
fn readable(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes)
        .or_else(|error| std::str::from_utf8(bytes.get(..error.valid_up_to()).unwrap_or_default()))
        .unwrap_or_default()
}

/// The field at the beginning, its text, and what follows it.
fn split_field(fields: &str) -> Option<(Field, &str, &str)> {
    let (letter, mut rest) = fields.as_bytes().split_first()?;
    let field = Field::of(*letter)?;
    let mut length = 0_usize;
    loop {
        let (byte, behind) = rest.split_first()?;
        rest = behind;
        match byte {
            b'0'..=b'9' => length = length.checked_mul(10)?.checked_add(usize::from(byte - b'0'))?,
            b':' => break,
            _ => return None,
        }
    }
    let (text, rest) = fields.get(fields.len() - rest.len()..)?.split_at_checked(length)?;
    Some((field, text, rest))
}

/// Bytes before a field's text: its letter, the length in at most 20 digits, a colon.
const FIELD_HEAD_BYTES_MAX: usize = 22;
/// Bytes that a sequence takes: its letter, its length, a colon, and at most 20 digits.
const SEQUENCE_BYTES_MAX: usize = 24;

impl<'a> Fields<'a> {
    /// What was not read, or could not be.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The texts of a record by their fields, where they lie.
#[derive(Clone, Debug)]
pub struct Texts<'a>([Option<&'a str>; FIELDS]);

impl<'a> Texts<'a> {
    /// Finds the fields of a written record.
    ///
    /// # Errors
    /// When the bytes are not fields from the first to the last.
    pub fn of(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (mut texts, mut rest) = ([None; FIELDS], std::str::from_utf8(bytes).map_err(|_| damaged())?);
        while !rest.is_empty() {
            let (field, text, behind) = split_field(rest).ok_or_else(damaged)?;
            if let Some(place) = texts.get_mut(field as usize) {
                *place = Some(text);
            }
            rest = behind;
        }
        Ok(Self(texts))
    }

    /// One field's text.
    pub fn get(&self, field: Field) -> Option<&'a str> {
        self.0.get(field as usize).copied().flatten()
    }

    /// One field's value, if the record has it.
    ///
    /// # Errors
    /// When the text does not say one.
    pub fn parsed<T: FromStr<Err: Display>>(&self, field: Field) -> Result<Option<T>, Unreadable> {
        self.get(field).map(|text| text.parse().map_err(|error| unreadable(field, &error))).transpose()
    }

    /// One field's value.
    ///
    /// # Errors
    /// When the record does not have it, or its text does not say one.
    pub fn needed<T: FromStr<Err: Display>>(&self, field: Field) -> Result<T, Unreadable> {
        self.parsed(field)?.ok_or_else(|| missing(field))
    }

    /// How it ended. A record without an outcome is of a use whose end nobody saw.
    ///
    /// # Errors
    /// When the text is none of the contract's words.
    pub fn outcome(&self) -> Result<Outcome, Unreadable> {
        self.parsed(Field::Outcome).map(|outcome| outcome.unwrap_or(Outcome::Unknown))
    }

    /// As [`AuditRecord::permits_spent`].
    ///
    /// # Errors
    /// When a field that tells it is not what it should be.
    pub fn permits_spent(&self, action: Action, outcome: Outcome) -> Result<u32, Unreadable> {
        Ok(permits_spent(action, outcome, self.get(Field::Route), self.get(Field::Reason), self.parsed(Field::Count)?))
    }

    /// The whole record as a value.
    ///
    /// # Errors
    /// When a field is missing or is not what it should be.
    pub fn record(&self) -> Result<AuditRecord, Unreadable> {
        let micros = self.needed(Field::Time)?;
        Ok(AuditRecord {
            event_id: self.needed(Field::EventId)?,
            time: Timestamp::from_micros(micros),
            action: self.needed(Field::Action)?,
            outcome: self.outcome()?,
            firm_id: FirmId::parse(&self.needed::<String>(Field::FirmId)?).map_err(|error| unreadable(Field::FirmId, &error))?,
            key_id: KeyId::new(self.needed(Field::KeyId)?),
            key_name: self.needed(Field::KeyName)?,
            key_prefix: self.needed(Field::KeyPrefix)?,
            actor: self.needed(Field::Actor)?,
            client_ip: self.text(Field::ClientIp),
            user_agent: self.text(Field::UserAgent),
            request_id: self.text(Field::RequestId),
            traceparent: self.text(Field::Traceparent),
            method: self.text(Field::Method),
            host: self.text(Field::Host),
            path: self.text(Field::Path),
            route: self.text(Field::Route),
            upstream: self.text(Field::Upstream),
            status: self.parsed(Field::Status)?,
            request_bytes: self.parsed(Field::RequestBytes)?,
            response_bytes: self.parsed(Field::ResponseBytes)?,
            duration_us: self.parsed(Field::DurationUs)?,
            reason: self.text(Field::Reason),
            replica: ReplicaId::new(self.get(Field::Replica).ok_or_else(|| missing(Field::Replica))?),
            sequence: self.parsed::<NonZeroU64>(Field::Sequence)?,
            count: self.parsed::<NonZeroU32>(Field::Count)?,
        })
    }

    fn text(&self, field: Field) -> Option<String> {
        self.get(field).map(str::to_owned)
    }
}

fn damaged() -> Unreadable {
    Unreadable("its end is damaged".into())
}

fn missing(field: Field) -> Unreadable {
    Unreadable(format!("there is no {}", field.name()))
}

fn unreadable(field: Field, error: &dyn Display) -> Unreadable {
    Unreadable(format!("{}: {error}", field.name()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{FrozenPermissions, KeyDigest, KeyName, KeyState, UserId};
    use super::*;

    #[test]
    fn a_record_reads_back_the_same_with_all_its_fields_and_with_few() {
        let mut full = AuditRecord::example(5);
        full.traceparent = Some("00-…:7\0x".into());
        full.reason = Some(String::new());
        full.sequence = NonZeroU64::new(u64::MAX);
        full.count = NonZeroU32::new(10);
        full.outcome = Outcome::Refused("rate_limited");
        let mut bare = AuditRecord::example(6);
        (bare.path, bare.status, bare.client_ip) = (None, None, None);
        bare.time = Timestamp::from_micros(-1);
        for record in [full, bare] {
            assert_eq!(WrittenRecord::from(&record).read(), Ok(record));
        }
    }

    #[test]
    fn the_beginning_of_a_record_is_one_of_a_use_whose_end_nobody_saw() {
        let mut known = WrittenRecord::new();
        for (field, text) in WrittenRecord::from(AuditRecord::example(5)).fields().take_while(|(field, _)| *field != Field::Outcome) {
            known.push(field, text);
        }
        assert_eq!(known.read().unwrap().outcome, Outcome::Unknown);
        known.push(Field::Outcome, "allowed");
        known.push_number(Field::Status, 204);
        let record = known.read().unwrap();
        assert_eq!((record.outcome, record.status), (Outcome::Allowed, Some(204)));
    }

    #[test]
    fn a_text_of_any_length_is_written_as_a_netstring() {
        for length in [0, 1, 9, 10, 42, 99, 100, 101, 1000, 100_000] {
            let (mut written, text) = (WrittenRecord::default(), "é".repeat(length / 2) + &"x".repeat(length % 2));
            written.push(Field::Path, &text);
            assert_eq!(written.bytes(), format!("P{length}:{text}").as_bytes());
            assert_eq!(written.field(Field::Path), Some(text.as_str()));
        }
    }

    #[test]
    fn what_a_key_is_said_to_be_is_what_every_record_of_it_says() {
        let record = AuditRecord::example(5);
        let key = KeyRecord {
            id: record.key_id,
            digest: KeyDigest::from_bytes([7; 32]),
            name: KeyName::parse("Zapier – Umsätze").unwrap(),
            prefix: "assure_sk_abcde".into(),
            firm_id: record.firm_id,
            creator: UserId::parse("ann").unwrap(),
            creator_name: None,
            permissions: FrozenPermissions::default(),
            created_at: record.time,
            state: KeyState::Live,
        };
        let whole = WrittenRecord::from(AuditRecord::of_key(Action::Use, &key, &key.id.to_string(), record.event_id, record.replica));
        let part = WrittenRecord::of_key(&key);
        assert!(whole.bytes().windows(part.bytes().len()).any(|window| window == part.bytes()));
    }

    #[test]
    fn fields_end_where_they_are_no_text_any_more() {
        let mut bytes = b"a3:use".to_vec();
        bytes.extend(b"P2:\xff\xff");
        let written = WrittenRecord::from_bytes(&bytes);
        let mut fields = written.fields();
        assert_eq!(fields.next(), Some((Field::Action, "use")));
        assert_eq!((fields.next(), fields.rest()), (None, &bytes[6..]));
        assert!(written.texts().is_err());
    }

    #[test]
    fn what_is_damaged_is_told() {
        let written = WrittenRecord::from(AuditRecord::example(5));
        for length in 0..written.bytes().len() {
            // A record may end behind any field that is not needed.
            if let Ok(record) = WrittenRecord::from_bytes(&written.bytes()[..length]).read() {
                assert_eq!(record.event_id, AuditRecord::example(5).event_id);
            }
        }
        let mut again = WrittenRecord::from_bytes(&written.bytes()[..40]);
        assert_eq!(again.read().unwrap_err().to_string(), "not an audit record: its end is damaged");
        again = WrittenRecord::default();
        assert_eq!(again.read().unwrap_err().to_string(), "not an audit record: there is no time");
        again.push(Field::Time, "soon");
        assert!(again.read().unwrap_err().to_string().starts_with("not an audit record: time: "));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = WrittenRecord::from_bytes(&bytes).read();
        }
    }
}

//! The record of one action on a key: who, what, when, with what outcome (K16).
//!
//! On every wire it is one flat set of string fields, absent ones left out: the fields of a Redis stream entry,
//! the members of a JSON object in the activity API. Field names are the contract's.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FirmId, KeyId, KeyRecord, Timestamp};

/// One gateway process, as records and sessions name it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(Arc<str>);

impl ReplicaId {
    /// Names a replica; the text is the operator's or made by us.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Place of a record in its spool: dense from 1, so that a gap proves a loss.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The place after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What was done with a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// The key came into being.
    Create,
    /// A request was made with it, allowed or refused.
    Use,
    /// It was switched off.
    Revoke,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// The action took place; `status` says what the upstream answered.
    Allowed,
    /// The gateway refused it; the public code of the rejection.
    Refused(super::Code),
    /// The gateway died in mid-request, so nobody knows.
    Unknown,
}

/// A word that is not one of the contract's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown word {0:?}")]
pub struct UnknownWord(pub String);

/// The public codes an outcome may carry, so that reading a record back gives the same static word.
const CODES: &[super::Code] = &[
    "malformed_request",
    "missing_key",
    "invalid_key",
    "route_denied",
    "permission_missing",
    "wrong_firm",
    "no_route",
    "method_not_allowed",
    "request_timeout",
    "request_too_large",
    "target_too_long",
    "rate_limited",
    "headers_too_large",
    "upstream_unreachable",
    "upstream_broken",
    "store_unavailable",
    "audit_unavailable",
    "upstream_overloaded",
    "draining",
    "upstream_timeout",
    "internal_error",
];

impl Action {
    /// The contract's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Create => "key.create",
            Self::Use => "key.use",
            Self::Revoke => "key.revoke",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

impl FromStr for Action {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "key.create" => Ok(Self::Create),
            "key.use" => Ok(Self::Use),
            "key.revoke" => Ok(Self::Revoke),
            other => Err(UnknownWord(other.to_owned())),
        }
    }
}

impl Outcome {
    /// The contract's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused(code) => code,
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

impl FromStr for Outcome {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "allowed" => Ok(Self::Allowed),
            "unknown" => Ok(Self::Unknown),
            code => {
                CODES.iter().find(|known| **known == code).map(|known| Self::Refused(known)).ok_or_else(|| UnknownWord(code.to_owned()))
            }
        }
    }
}

/// One record, as in the contract's section "The audit record".
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditRecord {
    /// UUIDv7; whoever reads a stream twice removes repeats by it.
    pub event_id: Uuid,
    /// When the gateway decided, by its wall clock; for create and revoke by the store's.
    pub time: Timestamp,
    /// What was done.
    #[serde(with = "text")]
    pub action: Action,
    /// How it ended.
    #[serde(with = "text")]
    pub outcome: Outcome,
    /// The key's firm.
    pub firm_id: FirmId,
    /// The key.
    pub key_id: KeyId,
    /// What people call the key.
    pub key_name: String,
    /// Its first 15 characters.
    pub key_prefix: String,
    /// The user for create and revoke, the key id for use.
    pub actor: String,
    /// Address of the caller, after trusted proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<String>,
    /// The caller's User-Agent, cut to 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// The request that did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// W3C trace context, where the caller sent a valid one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Host asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Path as forwarded, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The route that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The upstream it was forwarded to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Status of the answer, where one was given.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Body bytes that came from the caller.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Body bytes that went to the caller.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    /// From the request's head to the answer's last byte, in microseconds.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Why it was refused, revoked or cut short: the rejection's variant, the revoker's words, `client_abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The replica that wrote the record.
    pub replica: ReplicaId,
    /// Place in that replica's spool; absent for create and revoke, which the store records itself.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub sequence: Option<NonZeroU64>,
    /// How many alike refusals this record stands for; absent means one.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub count: Option<NonZeroU32>,
}

impl AuditRecord {
    /// How many permits of the key's window the recorded requests spent. An unknown end counts, because the
    /// request had been forwarded.
    pub fn permits_spent(&self) -> u32 {
        permits_spent(self.action, self.outcome, self.route.as_deref(), self.reason.as_deref(), self.count)
    }

    /// The record of something that succeeded with `key` at its creation time; the caller fills in what else it knows.
    pub fn of_key(action: Action, key: &KeyRecord, actor: &str, event_id: Uuid, replica: ReplicaId) -> Self {
        Self {
            key_name: key.name.as_str().to_owned(),
            key_prefix: key.prefix.to_string(),
            ..Self::bare(action, key.firm_id.clone(), key.id, actor, key.created_at, event_id, replica)
        }
    }

    /// The record of something that succeeded with a key of which only the id is known; the store adds name and prefix.
    pub fn bare(action: Action, firm_id: FirmId, key_id: KeyId, actor: &str, time: Timestamp, event_id: Uuid, replica: ReplicaId) -> Self {
        Self {
            event_id,
            time,
            action,
            outcome: Outcome::Allowed,
            firm_id,
            key_id,
            key_name: String::new(),
            key_prefix: String::new(),
            actor: actor.to_owned(),
            client_ip: None,
            user_agent: None,
            request_id: None,
            traceparent: None,
            method: None,
            host: None,
            path: None,
            route: None,
            upstream: None,
            status: None,
            request_bytes: None,
            response_bytes: None,
            duration_us: None,
            reason: None,
            replica,
            sequence: None,
            count: None,
        }
    }
}

/// What [`AuditRecord::permits_spent`] says of a record with these fields.
pub(super) fn permits_spent(action: Action, outcome: Outcome, route: Option<&str>, reason: Option<&str>, count: Option<NonZeroU32>) -> u32 {
    let spends = action == Action::Use
        && match outcome {
            Outcome::Allowed | Outcome::Unknown => true,
            // A route is looked for only once the request was counted; before that the reason tells.
            Outcome::Refused(_) => route.is_some() || reason.is_none_or(super::reason_spends_permit),
        };
    if spends { count.map_or(1, NonZeroU32::get) } else { 0 }
}

/// A value as the text that `Display` writes and `FromStr` reads.
mod text {
    use std::borrow::Cow;
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
        <Cow<'de, str>>::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same for a value that may be absent.
mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, out: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => out.collect_str(value),
            None => out.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(input: D) -> Result<Option<T>, D::Error> {
        super::text::deserialize(input).map(Some)
    }
}

#[cfg(test)]
impl AuditRecord {
    /// A record of a use, for tests.
    pub(crate) fn example(event: u128) -> Self {
        Self {
            event_id: Uuid::from_u128(event),
            time: Timestamp::from_micros(1_795_458_600_000_000),
            action: Action::Use,
            outcome: Outcome::Allowed,
            firm_id: FirmId::parse("firm-1").expect("a good id"),
            key_id: KeyId::new(Uuid::from_u128(1)),
            key_name: "MCP server".into(),
            key_prefix: "assure_0000abcd".into(),
            actor: Uuid::from_u128(1).to_string(),
            client_ip: Some("127.0.0.1".into()),
            user_agent: Some("curl/8".into()),
            request_id: Some(Uuid::from_u128(event).to_string()),
            traceparent: None,
            method: Some("GET".into()),
            host: Some("localhost".into()),
            path: Some("/v1/clients".into()),
            route: Some("/v1/clients/**".into()),
            upstream: Some("ledger".into()),
            status: Some(200),
            request_bytes: Some(0),
            response_bytes: Some(2),
            duration_us: Some(300),
            reason: None,
            replica: ReplicaId::new("replica-1"),
            sequence: None,
            count: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_the_json_is_a_string_and_reads_back_the_same() {
        let mut record = AuditRecord::example(5);
        record.outcome = Outcome::Refused("rate_limited");
        record.sequence = NonZeroU64::new(9);
        let json = serde_json::to_value(&record).expect("serialises");
        assert!(json.as_object().is_some_and(|object| object.values().all(serde_json::Value::is_string)));
        assert_eq!(json.get("sequence").and_then(|value| value.as_str()), Some("9"));
        assert_eq!(serde_json::from_value::<AuditRecord>(json).ok(), Some(record));
    }

    #[test]
    fn permits_are_spent_by_all_that_passed_the_window_step() {
        let spent = |change: fn(&mut AuditRecord)| {
            let mut record = AuditRecord::example(1);
            change(&mut record);
            record.permits_spent()
        };
        assert_eq!(spent(|_| {}), 1);
        assert_eq!(spent(|record| record.outcome = Outcome::Unknown), 1);
        assert_eq!(spent(|record| record.action = Action::Create), 0);
        let refused = |record: &mut AuditRecord, reason: &str| {
            record.outcome = Outcome::Refused("route_denied");
            record.reason = Some(reason.to_owned());
            record.count = NonZeroU32::new(7);
            record.permits_spent()
        };
        assert_eq!(refused(&mut AuditRecord::example(1), "route_denied"), 7);
        assert_eq!(refused(&mut AuditRecord::example(1), "framing_ambiguous"), 7, "counted, because a route was found");
        let mut early = AuditRecord::example(1);
        early.route = None;
        assert_eq!(refused(&mut early, "window_exhausted"), 0);
    }

    #[test]
    fn every_code_of_a_rejection_reads_back() {
        for rejection in crate::domain::rejection::one_of_each() {
            let outcome = Outcome::Refused(rejection.consequence().code);
            assert_eq!(outcome.to_string().parse(), Ok(outcome), "{rejection:?}");
        }
    }
}

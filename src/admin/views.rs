//! Keys as the admin API shows them: never the secret, only the first characters (K2, K3).
//!
//! Lists add what the store has seen of a key, its last use, how often and what it is used by, and the warnings that follow
//! from it and from what is known of its creator (K19).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::coherence::Confirmation;
use crate::domain::{KeyRecord, KeyState, Timestamp};
use crate::store::{HOURS_KEPT, KeyView, KnownUser, Standing, hour_of};

const DAY: Duration = Duration::from_secs(86_400);
/// Age from which a key should be rotated (K19).
const ROTATE_AFTER: Duration = Duration::from_secs(365 * 86_400);
/// Age from which a key that was never used is worth a word.
const UNUSED_AFTER: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Whether a key can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// It can.
    Active,
    /// It never will again.
    Revoked,
}

/// What the firm's admins may want to look into (K19).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Warning {
    /// Created over a year ago: rotate it.
    OverAYearOld,
    /// Several tools use it: one key per integration is better.
    UsedBySeveralTools,
    /// It is used from several networks.
    UsedFromSeveralNetworks,
    /// Created over 30 days ago and never used: revoke it?
    NeverUsed,
    /// Its creator has left, and it goes on working.
    CreatorLeft,
    /// It may do what its creator may not do any more.
    CreatorLostPermissions,
}

/// Whether a key's creator is still with the firm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum CreatorStatus {
    /// They are.
    Active,
    /// They have left, or were deactivated.
    Left,
}

impl From<Standing> for CreatorStatus {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Active => Self::Active,
            Standing::Left => Self::Left,
        }
    }
}

impl From<CreatorStatus> for Standing {
    fn from(status: CreatorStatus) -> Self {
        match status {
            CreatorStatus::Active => Self::Active,
            CreatorStatus::Left => Self::Left,
        }
    }
}

/// What a key was seen with in the last 30 days, at most 8 of each.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct SeenWith {
    /// Tools, by the product names in their User-Agents.
    tools: Vec<String>,
    /// Networks: a /24 of IPv4 or a /48 of IPv6.
    networks: Vec<String>,
}

/// A key without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Key {
    /// Its id.
    #[schema(format = Uuid)]
    id: String,
    /// What people call it.
    name: String,
    /// Its first 15 characters.
    prefix: String,
    /// The firm it acts for.
    firm_id: String,
    /// The id of the user who created it.
    creator: String,
    /// Their name then, where their token gave one.
    creator_name: Option<String>,
    /// Whether they are still with the firm; null where nothing is known.
    creator_status: Option<CreatorStatus>,
    /// What it may do though its creator may not any more.
    creator_lacks: Vec<String>,
    /// What it may do: what its creator could do then.
    permissions: Vec<String>,
    /// When it was created.
    #[schema(format = DateTime)]
    created_at: String,
    /// When it was last used with success.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    /// The User-Agent of that use.
    last_used_by: Option<String>,
    /// The address of that use.
    last_used_from: Option<String>,
    /// Uses in the last 24 hours, by the hour: the running one and the 23 before.
    uses_24h: u64,
    /// Uses in each of those hours, oldest first.
    uses_by_hour: Vec<u64>,
    /// What it was used with.
    seen_with: SeenWith,
    /// Whether it can be used.
    status: Status,
    /// When it was revoked.
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
    /// The id of the user who revoked it.
    revoked_by: Option<String>,
    /// What they gave as the reason.
    revoke_reason: Option<String>,
    /// What to look into.
    warnings: Vec<Warning>,
}

/// A key that was just created; the only answer that ever holds the key itself.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedKey<'a> {
    /// Its id.
    #[schema(format = Uuid)]
    id: String,
    /// What people call it.
    name: &'a str,
    /// The whole key. Absent when an Idempotency-Key was sent again: it cannot be shown twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    /// Its first 15 characters.
    prefix: &'a str,
    /// The firm it acts for.
    firm_id: &'a str,
    /// The id of the user who created it.
    creator: &'a str,
    /// What it may do, from now on and for ever.
    permissions: Vec<&'a str>,
    /// When it was created.
    #[schema(format = DateTime)]
    created_at: String,
}

/// The keys of a firm.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyList {
    /// Oldest first.
    pub(super) keys: Vec<Key>,
    /// How many there may be.
    pub(super) limits: KeyLimits,
}

/// How many live keys there may be, and are (K12).
#[derive(Serialize, ToSchema)]
pub(super) struct KeyLimits {
    /// Most live keys of the firm.
    pub(super) per_firm_max: u32,
    /// Most live keys of one creator.
    pub(super) per_creator_max: u32,
    /// Live keys of the firm.
    pub(super) firm_active: usize,
    /// Live keys that the caller created.
    pub(super) creator_active: usize,
}

/// A revoked key and the proof that it is dead.
#[derive(Serialize, ToSchema)]
pub(super) struct RevokedKey {
    /// The key.
    #[serde(flatten)]
    pub(super) key: Key,
    /// That no replica accepts it.
    pub(super) revocation: RevocationProof,
}

/// That no replica accepts a key any more (K7).
#[derive(Serialize, ToSchema)]
pub(super) struct RevocationProof {
    /// Always true: anything less is answered with 503.
    complete: bool,
    /// The replicas that confirmed; others have lost their leave to accept keys.
    replicas: Vec<ReplicaConfirmation>,
}

/// A replica that refuses the key.
#[derive(Serialize, ToSchema)]
pub(super) struct ReplicaConfirmation {
    /// Which replica.
    id: String,
    /// Milliseconds from the change to its confirmation.
    confirmed_in_ms: u64,
}

impl Key {
    /// Shows a key as it is at the moment `now`, with what is known of the firm's users.
    pub(super) fn show(view: &KeyView, users: &[KnownUser], now: Timestamp) -> Self {
        let record = &view.record;
        let creator = users.iter().find(|known| known.user == record.creator);
        let uses_by_hour = uses_by_hour(view, now);
        let revoked = match &record.state {
            KeyState::Live => None,
            KeyState::Revoked { at, by, reason } => Some((at, by, reason)),
        };
        Self {
            id: record.id.to_string(),
            name: record.name.as_str().to_owned(),
            prefix: record.prefix.to_string(),
            firm_id: record.firm_id.to_string(),
            creator: record.creator.to_string(),
            creator_name: record.creator_name.as_deref().map(str::to_owned).or_else(|| creator?.name.clone()),
            creator_status: creator.map(|known| known.standing.into()),
            creator_lacks: lacking(view, creator),
            permissions: record.permissions.names().map(str::to_owned).collect(),
            created_at: record.created_at.to_string(),
            last_used_at: view.last_use.as_ref().map(|last| last.at.to_string()),
            last_used_by: view.last_use.as_ref().and_then(|last| last.user_agent.clone()),
            last_used_from: view.last_use.as_ref().and_then(|last| last.client_ip.clone()),
            uses_24h: uses_by_hour.iter().fold(0, |sum: u64, count| sum.saturating_add(*count)),
            uses_by_hour,
            seen_with: SeenWith { tools: seen(view, "tool:"), networks: seen(view, "network:") },
            status: status(record),
            revoked_at: revoked.map(|(at, ..)| at.to_string()),
            revoked_by: revoked.map(|(_, by, _)| by.to_string()),
            revoke_reason: revoked.map(|(.., reason)| reason.to_string()).filter(|reason| !reason.is_empty()),
            warnings: warnings(view, creator, now),
        }
    }
}

impl<'a> CreatedKey<'a> {
    /// Shows a new key, with the key itself where this is the answer that may.
    pub(super) fn show(record: &'a KeyRecord, key: Option<&'a str>) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.as_str(),
            key,
            prefix: &record.prefix,
            firm_id: record.firm_id.as_str(),
            creator: record.creator.as_str(),
            permissions: record.permissions.names().collect(),
            created_at: record.created_at.to_string(),
        }
    }
}

impl RevocationProof {
    /// The proof, from the replicas' confirmations.
    pub(super) fn of(confirmations: &[Confirmation]) -> Self {
        let milliseconds = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let show = |one: &Confirmation| ReplicaConfirmation {
            id: one.replica.as_str().to_owned(),
            confirmed_in_ms: milliseconds(one.confirmed_in),
        };
        Self { complete: true, replicas: confirmations.iter().map(show).collect() }
    }
}

/// Whether a record's key can be used.
pub(super) fn status(record: &KeyRecord) -> Status {
    match record.state {
        KeyState::Live => Status::Active,
        KeyState::Revoked { .. } => Status::Revoked,
    }
}

/// Uses in each hour of the last day, oldest first.
fn uses_by_hour(view: &KeyView, now: Timestamp) -> Vec<u64> {
    let count = |hour: u64| view.hours.iter().find(|known| known.hour == hour).map_or(0, |known| known.count);
    let running = hour_of(now);
    (0..HOURS_KEPT as u64).rev().map(|ago| running.checked_sub(ago).map_or(0, count)).collect()
}

/// What it was seen with, of one kind.
fn seen(view: &KeyView, kind: &str) -> Vec<String> {
    view.seen_with.iter().filter_map(|what| what.strip_prefix(kind)).map(str::to_owned).collect()
}

/// What a key may do though its creator, who is still there, may not any more.
fn lacking(view: &KeyView, creator: Option<&KnownUser>) -> Vec<String> {
    let Some(known) = creator.filter(|known| known.standing == Standing::Active) else { return Vec::new() };
    view.record.permissions.names().filter(|name| !known.permissions.allows(name)).map(str::to_owned).collect()
}

fn warnings(view: &KeyView, creator: Option<&KnownUser>, now: Timestamp) -> Vec<Warning> {
    if status(&view.record) == Status::Revoked {
        return Vec::new();
    }
    let created_before = |age: Duration| view.record.created_at < now.minus(age);
    let seen = |kind: &str| seen(view, kind).len();
    let rows = [
        (created_before(ROTATE_AFTER), Warning::OverAYearOld),
        (seen("tool:") > 1, Warning::UsedBySeveralTools),
        (seen("network:") > 1, Warning::UsedFromSeveralNetworks),
        (created_before(UNUSED_AFTER) && view.last_use.is_none(), Warning::NeverUsed),
        (creator.is_some_and(|known| known.standing == Standing::Left), Warning::CreatorLeft),
        (!lacking(view, creator).is_empty(), Warning::CreatorLostPermissions),
    ];
    rows.into_iter().filter_map(|(holds, warning)| holds.then_some(warning)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{FirmId, FrozenPermissions, KeyDigest, KeyId, KeyName, UserId};
    use crate::store::{HourOfUse, LastUse};

    const NOW: Timestamp = Timestamp::from_micros(1_795_458_600_000_000);

    fn view(age_days: u32, used: bool, seen_with: &[&str]) -> KeyView {
        let record = KeyRecord {
            id: KeyId::new(uuid::Uuid::from_u128(1)),
            digest: KeyDigest::from_bytes([0; 32]),
            name: KeyName::parse("MCP server").expect("a good name"),
            prefix: "assure_0000abcd".into(),
            firm_id: FirmId::parse("firm-1").expect("a good id"),
            creator: UserId::parse("user-1").expect("a good id"),
            creator_name: None,
            permissions: FrozenPermissions::freeze(["b", "a"]),
            created_at: NOW.minus(DAY * age_days),
            state: KeyState::Live,
        };
        let last_use = used.then(|| LastUse { at: NOW, user_agent: Some("curl/8".into()), client_ip: None });
        KeyView { record, last_use, seen_with: seen_with.iter().map(|what| (*what).to_owned()).collect(), hours: Vec::new() }
    }

    #[test]
    fn warnings_say_what_to_look_into() {
        let rows: [(KeyView, &[Warning]); 6] = [
            (view(29, false, &[]), &[]),
            (view(31, false, &[]), &[Warning::NeverUsed]),
            (view(365, true, &["tool:curl", "network:203.0.113.0/24"]), &[]),
            (view(366, true, &[]), &[Warning::OverAYearOld]),
            (view(1, true, &["tool:curl", "tool:python-requests"]), &[Warning::UsedBySeveralTools]),
            (view(1, true, &["network:203.0.113.0/24", "network:198.51.100.0/24"]), &[Warning::UsedFromSeveralNetworks]),
        ];
        for (view, expected) in rows {
            assert_eq!(warnings(&view, None, NOW), expected);
        }
        let mut revoked = view(366, false, &[]);
        revoked.record.state = KeyState::Revoked { at: NOW, by: UserId::parse("user-2").expect("a good id"), reason: "".into() };
        assert!(warnings(&revoked, None, NOW).is_empty());
        let shown = serde_json::to_value(Key::show(&revoked, &[], NOW)).expect("plain data");
        assert_eq!(
            (shown["status"].as_str(), shown["revoked_by"].as_str(), shown["revoke_reason"].is_null()),
            (Some("revoked"), Some("user-2"), true)
        );
    }

    #[test]
    fn a_creator_who_left_or_may_less_is_warned_of() {
        let known = |standing, permissions: &[&str]| KnownUser {
            user: UserId::parse("user-1").expect("a good id"),
            name: Some("Ann".into()),
            standing,
            permissions: FrozenPermissions::freeze(permissions.iter().copied()),
            as_of: NOW,
        };
        let rows: [(KnownUser, &[Warning], &[&str]); 3] = [
            (known(Standing::Active, &["a", "b", "c"]), &[], &[]),
            (known(Standing::Active, &["a"]), &[Warning::CreatorLostPermissions], &["b"]),
            (known(Standing::Left, &[]), &[Warning::CreatorLeft], &[]),
        ];
        for (user, expected, lacks) in rows {
            let shown = Key::show(&view(1, true, &[]), std::slice::from_ref(&user), NOW);
            assert_eq!(
                (shown.warnings.as_slice(), shown.creator_lacks.as_slice()),
                (expected, &*lacks.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            );
            assert_eq!((shown.creator_name.as_deref(), shown.creator_status), (Some("Ann"), Some(user.standing.into())));
        }
    }

    #[test]
    fn a_day_of_uses_ends_with_the_running_hour() {
        let mut view = view(1, true, &[]);
        let now = hour_of(NOW);
        view.hours = [(now - 24, 1), (now - 23, 2), (now, 3)].map(|(hour, count)| HourOfUse { hour, count }).to_vec();
        let shown = Key::show(&view, &[], NOW);
        assert_eq!((shown.uses_by_hour.len(), shown.uses_by_hour[0], shown.uses_by_hour[23], shown.uses_24h), (24, 2, 3, 5));
    }

    #[test]
    fn only_a_new_key_shows_the_key() {
        let view = view(0, false, &[]);
        let created = serde_json::to_value(CreatedKey::show(&view.record, Some("assure_whole"))).expect("plain data");
        assert_eq!(created["key"], "assure_whole");
        let replayed = serde_json::to_value(CreatedKey::show(&view.record, None)).expect("plain data");
        assert!(replayed.get("key").is_none());
    }
}

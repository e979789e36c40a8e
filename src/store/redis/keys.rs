//! Creating, revoking and finding keys (protocols 1 and 4), and how a record is spelt in a hash.
//!
//! What must happen together is one script of `schema`; here are its arguments and what its answer means. A record is
//! immutable but for its revocation, and the store's time stamps both.

use std::collections::HashMap;

use futures_util::FutureExt;
use serde_json::Value;

use super::look_ups::Answers;
use super::schema::{self, Names};
use super::script::NONE;
use super::{RedisStore, audit, corrupt, uses};
use crate::clock;
use crate::domain::{
    Action, AuditRecord, FirmId, FirmTag, FrozenPermissions, KeyDigest, KeyId, KeyName, KeyRecord, KeyState, ReplicaId, Timestamp, UserId,
};
use crate::store::uses::{SEEN_KEPT, seen_with};
use crate::store::{Creation, Epoch, Found, KeyView, NewKey, Revocation, RevokeRequest, StoreError};

/// Fields and values as Redis answers them.
pub(super) type Fields = HashMap<String, String>;
/// A key's record and what its uses have told, as the script answers them.
type RawView = (Fields, Vec<String>);
/// Who is said to have revoked a key whose revocation the store forgot and a gateway remembered.
const REASSERTED_BY: &str = "assure-gateway";

pub(super) async fn find(store: &RedisStore, tag: FirmTag, digest: KeyDigest) -> Result<Found, StoreError> {
    let names = store.names_of(tag);
    let look_ups = store.look_ups.get(usize::from(names.partition.0)).expect("each partition has its own");
    look_ups.find(digest, |digests| find_all(store, names, digests).boxed()).await
}

async fn find_all(store: &RedisStore, names: &Names, digests: Vec<KeyDigest>) -> Result<Answers<Found>, StoreError> {
    let keys: Vec<String> = [names.named("epoch")].into_iter().chain(digests.iter().map(|digest| names.record(digest))).collect();
    let (epoch, records): (String, Vec<Vec<Vec<u8>>>) = store.connections.hot().call(&schema::FIND, &keys, NONE).await?;
    let epoch = Epoch(number(&epoch)?);
    if records.len() != digests.len() {
        return Err(corrupt("look-ups have too few answers"));
    }
    let found = |fields: Vec<Vec<u8>>| {
        let fields: Result<Vec<String>, _> = fields.into_iter().map(String::from_utf8).collect();
        let fields = fields.map_err(|_| corrupt("a key's record is not made of texts"))?;
        let record = if fields.is_empty() { None } else { Some(read_record(&paired(&fields))?) };
        Ok(Found { record, partition: names.partition, epoch })
    };
    Ok(records.into_iter().map(found).collect())
}

pub(super) async fn create(store: &RedisStore, new: NewKey) -> Result<Creation, StoreError> {
    let mut record = new.record;
    let (firm, creator) = (&record.firm_id, &record.creator);
    let names = store.names_of(FirmTag::of(firm));
    let id = names.id(record.id);
    let call = new.idempotency_key.as_deref().map(|text| names.call(firm, creator, text));
    let mark = if call.is_some() { "call" } else { "" };
    let keys = [
        names.named("epoch"),
        names.record(&record.digest),
        id.clone(),
        names.of_firm(firm, "live"),
        names.of_creator(firm, creator),
        names.of_firm(firm, "keys"),
        call.unwrap_or(id),
        names.stream.clone(),
        names.of_firm(firm, "log"),
        names.of_firm(firm, "times"),
        names.named("firms"),
        names.of_firm(firm, "changes"),
    ];
    let fields = write_record(&record);
    let mut arguments = vec![
        names.prefix.clone(),
        record.digest.hex(),
        record.id.to_string(),
        firm.to_string(),
        new.firm_max.to_string(),
        new.creator_max.to_string(),
        names.news.clone(),
        mark.to_owned(),
        fields.len().to_string(),
    ];
    arguments.extend(fields);
    arguments.extend(audit::write(&new.audit));
    let answer: Vec<String> = store.change(names, &schema::CREATE, &keys, &arguments).await?;
    match &*words(&answer) {
        ["created", epoch, now] => {
            record.created_at = time(now)?;
            Ok(Creation::Created(record, names.partition, Epoch(number(epoch)?)))
        }
        ["replayed", fields @ ..] => {
            let earlier = read_record(&paired(fields))?;
            let is_same_call = earlier.firm_id == record.firm_id && earlier.creator == record.creator;
            if is_same_call { Ok(Creation::Replayed(earlier)) } else { Err(corrupt("two callers chose the same key id")) }
        }
        ["firm_full"] => Ok(Creation::FirmFull),
        ["creator_full"] => Ok(Creation::CreatorFull),
        ["taken"] => Err(corrupt("two keys have the same digest")),
        _ => Err(corrupt("a creation has an unknown answer")),
    }
}

pub(super) async fn revoke(store: &RedisStore, request: RevokeRequest) -> Result<Revocation, StoreError> {
    let names = store.names_of(FirmTag::of(&request.firm));
    let keys = revocation_keys(names);
    let mut arguments = vec![names.prefix.clone(), request.key.to_string(), request.firm.to_string(), request.by.to_string()];
    arguments.extend([request.reason, names.news.clone()]);
    arguments.extend(audit::write(&request.audit));
    let answer = store.change(names, &schema::REVOKE, &keys, &arguments).await?;
    match &*words(&answer) {
        [word @ ("first" | "again"), epoch, fields @ ..] => Ok(Revocation::Revoked {
            record: read_record(&paired(fields))?,
            first: *word == "first",
            partition: names.partition,
            epoch: Epoch(number(epoch)?),
        }),
        ["none"] => Ok(Revocation::NotFound),
        _ => Err(corrupt("a revocation has an unknown answer")),
    }
}

/// One call for all. The script fills in whose keys they were; a key that the store does not know needs no revocation.
pub(super) async fn reassert(store: &RedisStore, names: &Names, digests: &[KeyDigest]) -> Result<(), StoreError> {
    let by = UserId::parse(REASSERTED_BY).expect("a good id");
    let nobody = FirmId::parse("-").expect("a good id");
    let (key, event) = (KeyId::new(uuid::Uuid::nil()), clock::fresh_uuid());
    let mut audit = AuditRecord::bare(Action::Revoke, nobody, key, by.as_str(), clock::wall_now(), event, ReplicaId::new(REASSERTED_BY));
    let reason = "the store had forgotten this revocation; a gateway remembered it";
    audit.reason = Some(reason.to_owned());
    let mut arguments = vec![names.prefix.clone(), by.to_string(), reason.to_owned(), names.news.clone(), digests.len().to_string()];
    arguments.extend(digests.iter().flat_map(|digest| [digest.hex(), clock::fresh_uuid().to_string()]));
    arguments.extend(audit::write(&audit));
    let forgotten: u64 = store.connections.bulk().call(&schema::REASSERT, &revocation_keys(names), &arguments).await?;
    if forgotten > 0 {
        tracing::error!(forgotten, "the store had forgotten revocations; they are made again");
    }
    Ok(())
}

fn revocation_keys(names: &Names) -> [String; 4] {
    [names.named("epoch"), names.named("revoked"), names.named("untold"), names.stream.clone()]
}

pub(super) async fn view(store: &RedisStore, firm: &FirmId, key: KeyId) -> Result<Option<KeyView>, StoreError> {
    let views = views_of(store, firm, ["key".to_owned(), key.to_string()]).await?;
    Ok(views.into_iter().find(|view| view.record.firm_id == *firm))
}

pub(super) async fn views(store: &RedisStore, firm: &FirmId) -> Result<Vec<KeyView>, StoreError> {
    views_of(store, firm, ["firm".to_owned(), String::new()]).await
}

async fn views_of(store: &RedisStore, firm: &FirmId, which: [String; 2]) -> Result<Vec<KeyView>, StoreError> {
    let since = clock::wall_now().minus(SEEN_KEPT);
    let names = store.names_of(FirmTag::of(firm));
    let (keys, arguments) = (names_of_keys(names, firm), [vec![names.prefix.clone()], which.to_vec()].concat());
    let raw: Vec<RawView> = store.connections.bulk().call(&schema::VIEWS, &keys, &arguments).await?;
    raw.into_iter()
        .map(|(record, told)| {
            let told = uses::read(&told)?;
            Ok(KeyView {
                record: read_record(&record)?,
                last_use: told.last,
                seen_with: seen_with(uses::since(told.tools, since), uses::since(told.networks, since)),
                hours: told.hours,
            })
        })
        .collect()
}

/// The names under which a firm has its keys, and what their uses have told.
pub(super) fn names_of_keys(names: &Names, firm: &FirmId) -> [String; 2] {
    ["keys", "uses"].map(|what| names.of_firm(firm, what))
}

/// Fields and values but for the creation's time, which is the store's.
pub(super) fn write_record(record: &KeyRecord) -> Vec<String> {
    let permissions = serde_json::to_string(&record.permissions).expect("texts are always written");
    let mut fields = vec![
        ("id", record.id.to_string()),
        ("digest", record.digest.hex()),
        ("name", record.name.as_str().to_owned()),
        ("prefix", record.prefix.to_string()),
        ("firm_id", record.firm_id.to_string()),
        ("creator", record.creator.to_string()),
        ("permissions", permissions),
    ];
    if let Some(name) = &record.creator_name {
        fields.push(("creator_name", name.to_string()));
    }
    fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

pub(super) fn read_record(fields: &Fields) -> Result<KeyRecord, StoreError> {
    let text = |name: &'static str| {
        fields.get(name).map(String::as_str).ok_or_else(|| StoreError::Corrupt(format!("a key's record has no {name}")))
    };
    let state = match fields.get("revoked_at") {
        None => KeyState::Live,
        Some(at) => {
            let by = UserId::parse(text("revoked_by")?).map_err(|_| corrupt("a revoker is no user id"))?;
            KeyState::Revoked { at: time(at)?, by, reason: text("revoked_reason")?.into() }
        }
    };
    let permissions: FrozenPermissions = serde_json::from_str::<Value>(text("permissions")?)
        .and_then(serde_json::from_value)
        .map_err(|_| corrupt("a key's permissions are not a list of texts"))?;
    Ok(KeyRecord {
        id: text("id")?.parse().map_err(|_| corrupt("a key's id is no UUID"))?,
        digest: KeyDigest::from_hex(text("digest")?).ok_or_else(|| corrupt("a key's digest is none"))?,
        name: KeyName::parse(text("name")?).map_err(|_| corrupt("a key's name is none"))?,
        prefix: text("prefix")?.into(),
        firm_id: FirmId::parse(text("firm_id")?).map_err(|_| corrupt("a key's firm is no id"))?,
        creator: UserId::parse(text("creator")?).map_err(|_| corrupt("a key's creator is no id"))?,
        creator_name: fields.get("creator_name").map(|name| name.as_str().into()),
        permissions,
        created_at: time(text("created_at")?)?,
        state,
    })
}

pub(super) fn words(answer: &[String]) -> Vec<&str> {
    answer.iter().map(String::as_str).collect()
}

pub(super) fn number(text: &str) -> Result<u64, StoreError> {
    text.parse().map_err(|_| corrupt("a number is none"))
}

pub(super) fn time(text: &str) -> Result<Timestamp, StoreError> {
    text.parse().map(Timestamp::from_micros).map_err(|_| corrupt("a time is none"))
}

pub(super) fn paired<T: AsRef<str>>(flat: &[T]) -> Fields {
    flat.chunks_exact(2).filter_map(|pair| Some((pair.first()?.as_ref().to_owned(), pair.last()?.as_ref().to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::super::testing::Server;
    use super::*;
    use crate::store::Store;
    use crate::store::conformance::{created, new_key};

    #[tokio::test]
    async fn look_ups_that_go_together_are_answered_each_by_its_own_record() {
        let server = Server::start();
        let store = server.open().await.unwrap();
        let shared: std::sync::Arc<dyn Store> = store.clone();
        let (known, _) = created(&shared, new_key("firm-1", "ann")).await;
        let (other, _) = created(&shared, new_key("firm-2", "ann")).await;
        let names = store.names(crate::store::Partition(0));
        let unknown = |number: u8| KeyDigest::from_bytes([number; 32]);
        let line = store.connections.bulk();
        line.send::<String>(redis::cmd("SET").arg(names.record(&unknown(1))).arg("no hash")).await.unwrap();
        line.send::<u64>(redis::cmd("HSET").arg(names.record(&unknown(2))).arg("id").arg(&b"\xff"[..])).await.unwrap();
        let mut digests = vec![unknown(1), known.digest, unknown(2), other.digest];
        digests.extend((3..200).map(unknown));
        let tag = FirmTag::of(&known.firm_id);
        let found = join_all(digests.iter().map(|digest| find(&store, tag, *digest))).await;
        let ids = found.iter().map(|found| found.as_ref().map(|found| found.record.as_ref().map(|record| record.id)));
        let ids: Vec<_> = ids.map(|id| id.map_err(|error| matches!(error, StoreError::Corrupt(_)))).collect();
        assert_eq!(ids[..4], [Err(true), Ok(Some(known.id)), Err(true), Ok(Some(other.id))]);
        assert!(ids[4..].iter().all(|id| *id == Ok(None)) && found[1].as_ref().unwrap().epoch == Epoch(2));
        let told: String = line.send(redis::cmd("INFO").arg("commandstats")).await.unwrap();
        let calls =
            told.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap().split_once(',').unwrap().0.to_owned();
        assert!(calls.parse::<u64>().unwrap() < 60, "{calls} calls for 201 look-ups");
    }
}

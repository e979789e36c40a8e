//! Creating, revoking and finding keys (protocol 4).
//!
//! Live keys are sets of rows, per firm and per creator, and a limit is the size of a set: a count that is kept
//! beside can drift, a set cannot, and revoking twice removes a row once.

use std::time::Duration;

use redb::{ReadTransaction, ReadableTable};

use super::disk::failed;
use super::schema::{self, Raw, Reading, Spelling, corrupt};
use super::writer::Change;
use super::{activity, noted};
use crate::clock;
use crate::domain::{FirmId, KeyDigest, KeyId, KeyRecord, KeyState, Timestamp};
use crate::store::{Creation, Epoch, KeyView, NewKey, Partition, Revocation, RevokeRequest, StoreError};

/// The embedded store is one partition.
pub(super) const PARTITION: Partition = Partition(0);
/// How long a repeated Idempotency-Key is answered with what it created.
const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Expired Idempotency-Keys removed with each create: more than one, so that they never pile up.
const PURGED_PER_CREATE: usize = 32;

/// Creates a key, or says why not.
pub(super) fn create(change: &mut Change<'_>, mut new: NewKey) -> Result<Creation, StoreError> {
    let now = clock::wall_now();
    if let Some(earlier) = repeated(change, &new, now)? {
        return Ok(Creation::Replayed(earlier));
    }
    if change.keys_by_digest.find(new.record.digest.as_bytes())?.is_some() {
        return Err(corrupt("two keys have the same digest"));
    }
    let (firm, creator) = (schema::of_firm(&new.record.firm_id), schema::of_creator(&new.record.firm_id, &new.record.creator));
    if size(&change.live_by_firm.table, &firm)? >= u64::from(new.firm_max) {
        return Ok(Creation::FirmFull);
    }
    if size(&change.live_by_creator.table, &creator)? >= u64::from(new.creator_max) {
        return Ok(Creation::CreatorFull);
    }
    new.record.created_at = now;
    new.audit.time = now;
    insert(change, &new.record)?;
    remember_call(change, &new, now)?;
    activity::append(change, &new.audit)?;
    let epoch = change.raise_epoch(None);
    Ok(Creation::Created(new.record, PARTITION, Epoch(epoch)))
}

/// Revokes a key; a second time changes nothing.
pub(super) fn revoke(change: &mut Change<'_>, request: RevokeRequest) -> Result<Revocation, StoreError> {
    let found = schema::record_in(&change.keys.table, request.key)?;
    let Some(mut record) = found.filter(|record| record.firm_id == request.firm) else { return Ok(Revocation::NotFound) };
    if record.state != KeyState::Live {
        return Ok(Revocation::Revoked { record, first: false, partition: PARTITION, epoch: Epoch(change.epoch) });
    }
    let now = clock::wall_now();
    record.state = KeyState::Revoked { at: now, by: request.by, reason: request.reason.into() };
    let id = record.id.uuid();
    change.keys.put(id.as_bytes(), &schema::write_record(&record))?;
    change.live_by_firm.remove(schema::of_firm(&record.firm_id).uuid(id).bytes())?;
    change.live_by_creator.remove(schema::of_creator(&record.firm_id, &record.creator).uuid(id).bytes())?;
    let mut audit = request.audit;
    audit.time = now;
    audit.firm_id = record.firm_id.clone();
    audit.key_id = record.id;
    audit.key_name = record.name.as_str().to_owned();
    audit.key_prefix = record.prefix.to_string();
    activity::append(change, &audit)?;
    let epoch = change.raise_epoch(Some(record.digest));
    Ok(Revocation::Revoked { record, first: true, partition: PARTITION, epoch: Epoch(epoch) })
}

/// Looks a key up by its digest.
pub(super) fn find(snapshot: &ReadTransaction, digest: KeyDigest) -> Result<Option<KeyRecord>, StoreError> {
    let by_digest = snapshot.open_table(schema::KEYS_BY_DIGEST).map_err(failed)?;
    let Some(id) = by_digest.get(digest.as_bytes().as_slice()).map_err(failed)? else { return Ok(None) };
    let id = KeyId::new(Reading::of(id.value()).uuid()?);
    let keys = snapshot.open_table(schema::KEYS).map_err(failed)?;
    schema::record_in(&keys, id)?.ok_or_else(|| corrupt("a digest leads to a key that is not there")).map(Some)
}

/// One key of a firm; another firm's is not found.
pub(super) fn view(snapshot: &ReadTransaction, firm: &FirmId, key: KeyId) -> Result<Option<KeyView>, StoreError> {
    let keys = snapshot.open_table(schema::KEYS).map_err(failed)?;
    let key_uses = snapshot.open_table(schema::KEY_USES).map_err(failed)?;
    let record = schema::record_in(&keys, key)?.filter(|record| record.firm_id == *firm);
    record.map(|record| view_of(record, &key_uses)).transpose()
}

/// All keys of a firm, oldest first.
pub(super) fn views(snapshot: &ReadTransaction, firm: &FirmId) -> Result<Vec<KeyView>, StoreError> {
    let keys = snapshot.open_table(schema::KEYS).map_err(failed)?;
    let key_uses = snapshot.open_table(schema::KEY_USES).map_err(failed)?;
    let by_firm = snapshot.open_table(schema::KEYS_BY_FIRM).map_err(failed)?;
    let prefix = schema::of_firm(firm);
    let rows = by_firm.range::<&[u8]>(prefix.bytes()..prefix.end().bytes()).map_err(failed)?;
    rows.map(|row| {
        let (place, _) = row.map_err(failed)?;
        let id = KeyId::new(schema::id_at_end(place.value())?);
        let record = schema::record_in(&keys, id)?.ok_or_else(|| corrupt("a firm's list names a key that is not there"))?;
        view_of(record, &key_uses)
    })
    .collect()
}

fn view_of(record: KeyRecord, key_uses: &impl ReadableTable<Raw, Raw>) -> Result<KeyView, StoreError> {
    let uses = schema::uses_in(key_uses, record.id)?;
    let seen_with = noted::seen_lately(&uses, clock::wall_now());
    Ok(KeyView { record, last_use: uses.last, seen_with, hours: uses.hours })
}

/// What an earlier call with the same key id or Idempotency-Key created.
fn repeated(change: &Change<'_>, new: &NewKey, now: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
    if let Some(earlier) = schema::record_in(&change.keys.table, new.record.id)? {
        let is_same_call = earlier.firm_id == new.record.firm_id && earlier.creator == new.record.creator;
        return if is_same_call { Ok(Some(earlier)) } else { Err(corrupt("two callers chose the same key id")) };
    }
    let Some(call) = call_of(new) else { return Ok(None) };
    let Some((id, at)) = remembered(change, &call)? else { return Ok(None) };
    if at.plus(IDEMPOTENCY_KEPT) <= now {
        return Ok(None);
    }
    let earlier = schema::record_in(&change.keys.table, id)?;
    earlier.map(Some).ok_or_else(|| corrupt("an Idempotency-Key leads to a key that is not there"))
}

fn remembered(change: &Change<'_>, call: &Spelling) -> Result<Option<(KeyId, Timestamp)>, StoreError> {
    let Some(value) = change.idempotency.find(call.bytes())? else { return Ok(None) };
    let mut reading = Reading::of(value.value());
    Ok(Some((KeyId::new(reading.uuid()?), reading.time()?)))
}

fn call_of(new: &NewKey) -> Option<Spelling> {
    let text = new.idempotency_key.as_deref()?;
    Some(schema::of_creator(&new.record.firm_id, &new.record.creator).text(text))
}

fn size(set: &impl ReadableTable<Raw, Raw>, prefix: &Spelling) -> Result<u64, StoreError> {
    let mut size = 0;
    for row in set.range::<&[u8]>(prefix.bytes()..prefix.end().bytes()).map_err(failed)? {
        row.map_err(failed)?;
        size += 1;
    }
    Ok(size)
}

/// Adds a key; a live one takes its place in the sets.
pub(super) fn insert(change: &mut Change<'_>, record: &KeyRecord) -> Result<(), StoreError> {
    let id = record.id.uuid();
    let (firm, creator) = (schema::of_firm(&record.firm_id), schema::of_creator(&record.firm_id, &record.creator));
    change.keys.put(id.as_bytes(), &schema::write_record(record))?;
    change.keys_by_digest.put(record.digest.as_bytes(), id.as_bytes())?;
    change.keys_by_firm.put(firm.clone().time(record.created_at).uuid(id).bytes(), &[])?;
    if record.state != KeyState::Live {
        return Ok(());
    }
    change.live_by_firm.put(firm.uuid(id).bytes(), &[])?;
    change.live_by_creator.put(creator.uuid(id).bytes(), &[])
}

/// Keeps the Idempotency-Key of a call that created a key, and forgets some that have expired.
fn remember_call(change: &mut Change<'_>, new: &NewKey, now: Timestamp) -> Result<(), StoreError> {
    forget_calls(change, now.minus(IDEMPOTENCY_KEPT))?;
    let Some(call) = call_of(new) else { return Ok(()) };
    let value = Spelling::default().uuid(new.record.id.uuid()).time(now);
    change.idempotency.put(call.bytes(), value.bytes())?;
    change.idempotency_by_time.put(Spelling::default().time(now).raw(call.bytes()).bytes(), &[])
}

/// Removes what is older than `until`. A call that was remembered again since keeps its newer entry.
fn forget_calls(change: &mut Change<'_>, until: Timestamp) -> Result<(), StoreError> {
    let end = Spelling::default().time(until);
    let expired: Vec<Vec<u8>> = {
        let rows = change.idempotency_by_time.table.range::<&[u8]>(..=end.bytes()).map_err(failed)?;
        rows.take(PURGED_PER_CREATE).map(|row| row.map(|(key, _)| key.value().to_vec())).collect::<Result<_, _>>().map_err(failed)?
    };
    for row in expired {
        change.idempotency_by_time.remove(&row)?;
        let Some((time, call)) = row.split_first_chunk::<8>() else { continue };
        let is_newer = change.idempotency.find(call)?.is_some_and(|value| !value.value().ends_with(time));
        if !is_newer {
            change.idempotency.remove(call)?;
        }
    }
    Ok(())
}

//! What is known of a firm's users; the newest word counts.

use super::script::NONE;
use super::{RedisStore, corrupt, schema};
use crate::domain::{FirmId, FirmTag};
use crate::store::{KnownUser, StoreError};

pub(super) async fn note(store: &RedisStore, firm: &FirmId, user: &KnownUser) -> Result<(), StoreError> {
    let keys = [store.names_of(FirmTag::of(firm)).of_firm(firm, "users")];
    let arguments = [user.user.to_string(), user.as_of.micros().max(0).to_string(), user.written()];
    store.connections.bulk().call::<u64>(&schema::NOTE_USER, &keys, &arguments).await.map(drop)
}

pub(super) async fn all(store: &RedisStore, firm: &FirmId) -> Result<Vec<KnownUser>, StoreError> {
    let keys = [store.names_of(FirmTag::of(firm)).of_firm(firm, "users")];
    let noted: Vec<String> = store.connections.bulk().call(&schema::USERS, &keys, NONE).await?;
    noted
        .iter()
        .map(|text| {
            let (_, json) = text.split_once(' ').ok_or_else(|| corrupt("what is known of a user has no time"))?;
            KnownUser::read(json.as_bytes())
        })
        .collect()
}

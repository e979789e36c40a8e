//! What is known of a firm's users; the newest word counts.

use redb::ReadTransaction;

use super::disk::failed;
use super::schema::{self, Reading};
use super::writer::Change;
use crate::domain::FirmId;
use crate::store::{KnownUser, StoreError};

/// Keeps what is told, unless something newer is known.
pub(super) fn note(change: &mut Change<'_>, firm: &FirmId, user: &KnownUser) -> Result<(), StoreError> {
    let place = schema::of_creator(firm, &user.user);
    let known = change.users.find(place.bytes())?.map(|value| read(value.value())).transpose()?;
    if known.is_some_and(|known| known.as_of > user.as_of) {
        return Ok(());
    }
    let mut value = vec![schema::VALUE_VERSION];
    value.extend(user.written().into_bytes());
    change.users.put(place.bytes(), &value)
}

/// All of a firm.
pub(super) fn all(snapshot: &ReadTransaction, firm: &FirmId) -> Result<Vec<KnownUser>, StoreError> {
    let users = snapshot.open_table(schema::USERS).map_err(failed)?;
    let prefix = schema::of_firm(firm);
    let rows = users.range::<&[u8]>(prefix.bytes()..prefix.end().bytes()).map_err(failed)?;
    rows.map(|row| read(row.map_err(failed)?.1.value())).collect()
}

fn read(bytes: &[u8]) -> Result<KnownUser, StoreError> {
    let mut reading = Reading::of(bytes);
    reading.version()?;
    KnownUser::read(reading.rest())
}

//! Sessions, epochs and what was revoked (protocol 1).

use std::time::Duration;

use super::keys::{PARTITION, number};
use super::schema::{self, digest};
use super::{RedisStore, corrupt, keys};
use crate::clock;
use crate::domain::{KeyDigest, ReplicaId};
use crate::store::{Epoch, Invalidations, Renewal, RenewalRequest, SessionState, StoreError, StoreIncarnation, Trust};

pub(super) async fn renew(store: &RedisStore, request: RenewalRequest) -> Result<Renewal, StoreError> {
    let names = ["epoch", "sessions", "revoked", "untold", "store"].map(schema::named);
    let arguments = [
        request.replica.as_str().to_owned(),
        request.incarnation.to_string(),
        request.applied.0.to_string(),
        store.lease.as_millis().to_string(),
        clock::fresh_uuid().to_string(),
    ];
    let answer: Vec<String> = store.connections.hot().call(&schema::RENEW, &names, &arguments).await?;
    let [epoch, incarnation, word, digests @ ..] = answer.as_slice() else { return Err(corrupt("a renewal's answer is too short")) };
    let news = match word.as_str() {
        "flush" => Invalidations::Flush,
        _ => Invalidations::Revoked(
            digests.iter().map(|text| digest(text).ok_or_else(|| corrupt("what was revoked is no digest"))).collect::<Result<_, _>>()?,
        ),
    };
    Ok(Renewal { epoch: Epoch(number(epoch)?), news, trust: Trust::Lease(store.lease), store: StoreIncarnation(incarnation.clone()) })
}

pub(super) async fn sessions(store: &RedisStore) -> Result<Vec<SessionState>, StoreError> {
    let answer: Vec<(String, String)> = store.connections.hot().send(redis::cmd("HGETALL").arg(schema::named("sessions"))).await?;
    answer.iter().map(|(name, state)| read_session(name, state).ok_or_else(|| corrupt("a session cannot be read"))).collect()
}

/// A session is forgotten only if it has said nothing since the caller saw it so, whatever the store's clock says.
pub(super) async fn forget(store: &RedisStore, sessions: Vec<SessionState>) -> Result<(), StoreError> {
    let arguments: Vec<String> = sessions.iter().flat_map(write_session).collect();
    store.connections.hot().call::<u64>(&schema::FORGET, &[schema::named("sessions")], &arguments).await.map(drop)
}

pub(super) async fn reassert(store: &RedisStore, revoked: Vec<KeyDigest>) -> Result<(), StoreError> {
    debug_assert_eq!(PARTITION.0, 0, "one partition holds every key");
    for digest in &revoked {
        keys::reassert(store, digest).await?;
    }
    Ok(())
}

/// `replica incarnation` and `applied renewals lease`.
fn write_session(session: &SessionState) -> [String; 2] {
    let name = format!("{} {}", session.replica.as_str(), session.incarnation);
    [name, format!("{} {} {}", session.applied.0, session.renewals, session.lease.as_millis())]
}

fn read_session(name: &str, state: &str) -> Option<SessionState> {
    let (replica, incarnation) = name.rsplit_once(' ')?;
    let mut numbers = state.split(' ').map(|number| number.parse::<u64>().ok());
    Some(SessionState {
        replica: ReplicaId::new(replica),
        incarnation: incarnation.parse().ok()?,
        applied: Epoch(numbers.next()??),
        renewals: numbers.next()??,
        lease: Duration::from_millis(numbers.next()??),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_reads_back_as_it_was_written() {
        let session = SessionState {
            replica: ReplicaId::new("replica-1"),
            incarnation: uuid::Uuid::from_u128(7),
            applied: Epoch(3),
            renewals: 4,
            lease: Duration::from_secs(3),
        };
        let [name, state] = write_session(&session);
        assert_eq!(read_session(&name, &state).map(|read| write_session(&read)), Some([name, state]));
        assert!(read_session("replica-1", "1 2 3").is_none() && read_session("a b", "1 2").is_none());
    }
}

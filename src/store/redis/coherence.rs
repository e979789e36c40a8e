//! Sessions, epochs and what was revoked (protocol 1).
//!
//! A renewal is the one call that any data set answers: it tells a stranger and another version's layout apart from the
//! known store, and from then on every other script is held to the data set that it found.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::keys::number;
use super::schema;
use super::script::NONE;
use super::{RedisStore, corrupt, keys};
use crate::clock;
use crate::config::{COHERENCE_LEASE_MAX, Revocations};
use crate::domain::{KeyDigest, ReplicaId, Timestamp};
use crate::store::{Epoch, Invalidations, Partition, Renewal, RenewalRequest, SessionState, Sessions, StoreError, StoreIncarnation, Trust};

pub(super) async fn renew(store: &RedisStore, request: RenewalRequest) -> Result<Renewal, StoreError> {
    let names = store.names(request.partition);
    let keys = ["epoch", "sessions", "revoked", "untold", "store", "schema", "settled"].map(|name| names.named(name));
    let (lease, trust) = match store.revocations {
        Revocations::Lease => (store.lease, Trust::Lease(store.lease)),
        // Nobody has to wait for a replica that asks for each request.
        Revocations::Strict => (Duration::ZERO, Trust::Asking(store.lease)),
    };
    let known = request.data_set.unwrap_or_default();
    let arguments = [
        request.replica.as_str().to_owned(),
        request.incarnation.to_string(),
        request.applied.0.to_string(),
        lease.as_millis().to_string(),
        clock::fresh_uuid().to_string(),
        known.clone(),
        request.settled.map_or_else(String::new, |settled| settled.run),
    ];
    let answer: Vec<String> = store.connections.hot().call(&schema::RENEW, &keys, &arguments).await?;
    let (word, epoch, data_set, run, time, settled, digests) = match answer.as_slice() {
        [word, found] if word == "other" => return Err(foreign(&known, found)),
        [word, found] if word == "layout" => return Err(another_layout(found)),
        [word, epoch, data_set, run, time, settled, digests @ ..] => (word, epoch, data_set, run, time, settled, digests),
        _ => return Err(corrupt("a renewal's answer is too short")),
    };
    let news = match word.as_str() {
        "flush" => Invalidations::Flush,
        _ => Invalidations::Revoked(
            digests
                .iter()
                .map(|text| KeyDigest::from_hex(text).ok_or_else(|| corrupt("what was revoked is no digest")))
                .collect::<Result<_, _>>()?,
        ),
    };
    store.connections.identity().learn(&names.named("store"), data_set);
    let time = i64::try_from(number(time)?).map(Timestamp::from_micros).map_err(|_| corrupt("the store's time is none"))?;
    let incarnation = StoreIncarnation { data_set: data_set.clone(), run: run.clone() };
    let is_settled = settled == "settled";
    Ok(Renewal { epoch: Epoch(number(epoch)?), news, trust, store: incarnation, is_settled, time: Some(time) })
}

fn foreign(known: &str, found: &str) -> StoreError {
    let what = if found.is_empty() { "this Redis is empty" } else { "this Redis holds another data set" };
    StoreError::Foreign(format!("{what} (found {found:?}, known {known:?}): it was emptied, or another one answers at its address"))
}

fn another_layout(found: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "this Redis now holds layout {found:?}, and this version reads and writes layout {:?} only; start a version that knows it",
        schema::SCHEMA
    ))
}

pub(super) async fn epoch(store: &RedisStore, partition: Partition) -> Result<(Epoch, StoreIncarnation), StoreError> {
    let keys = ["epoch", "store"].map(|name| store.names(partition).named(name));
    let (epoch, data_set, run): (String, String, String) = store.connections.hot().call(&schema::EPOCH, &keys, NONE).await?;
    Ok((Epoch(number(&epoch)?), StoreIncarnation { data_set, run }))
}

pub(super) async fn sessions(store: &RedisStore, partition: Partition) -> Result<Sessions, StoreError> {
    let keys = ["sessions", "store"].map(|name| store.names(partition).named(name));
    let raw: Vec<Vec<u8>> = store.connections.hot().call(&schema::SESSIONS, &keys, NONE).await?;
    let answer: Vec<_> = raw.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
    let [data_set, run, pairs @ ..] = answer.as_slice() else { return Err(corrupt("an answer about sessions is too short")) };
    let mut unreadable = None;
    let mut read = |name: &str, state: &str| {
        read_session(name, state).unwrap_or_else(|| {
            unreadable = Some(name.to_owned());
            unreadable_session(name, state)
        })
    };
    let all = pairs.chunks_exact(2).filter_map(|pair| Some(read(pair.first()?, pair.last()?))).collect();
    match unreadable {
        None => store.has_said_unreadable.store(false, Ordering::SeqCst),
        Some(field) if !store.has_said_unreadable.swap(true, Ordering::SeqCst) => {
            tracing::error!(
                hash = keys.first(),
                ?field,
                "a session cannot be read, so revocations may wait for it; remove this field of the hash if no gateway wrote it"
            );
        }
        Some(_) => {}
    }
    Ok(Sessions { store: StoreIncarnation { data_set: data_set.to_string(), run: run.to_string() }, all })
}

/// A session is forgotten only if it has said nothing since the caller saw it so, whatever the store's clock says.
pub(super) async fn forget(store: &RedisStore, partition: Partition, sessions: Vec<SessionState>) -> Result<(), StoreError> {
    // Nobody knows whose the unreadable ones are, and they stay.
    let arguments: Vec<String> = sessions.iter().filter(|session| !session.incarnation.is_nil()).flat_map(write_session).collect();
    if arguments.is_empty() {
        return Ok(());
    }
    store.connections.hot().call::<u64>(&schema::FORGET, &[store.names(partition).named("sessions")], &arguments).await.map(drop)
}

pub(super) async fn reassert(store: &RedisStore, partition: Partition, revoked: Vec<KeyDigest>) -> Result<(), StoreError> {
    keys::reassert(store, store.names(partition), &revoked).await
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

/// Nobody knows whose it is: as if it had applied nothing, for the longest lease that anybody may have. Whoever renews
/// changes it, and so it counts as another renewal when it has changed.
fn unreadable_session(name: &str, state: &str) -> SessionState {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    SessionState {
        replica: ReplicaId::new(name),
        incarnation: uuid::Uuid::nil(),
        applied: Epoch(0),
        renewals: hasher.finish(),
        lease: COHERENCE_LEASE_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thousand_digests_are_told_in_one_call_and_only_what_was_lost_is_made_again() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let digests: Vec<KeyDigest> =
            (0..1_000_u16).map(|number| KeyDigest::from_bytes([number.to_be_bytes(); 16].concat().try_into().unwrap())).collect();
        let (line, names) = (store.connections.bulk(), store.names(Partition(0)));
        for (number, digest) in digests.iter().enumerate() {
            let mut record = redis::cmd("HSET");
            record.arg(names.record(digest)).arg("firm_id").arg("firm-1").arg("creator").arg("ann").arg("id").arg(format!("key-{number}"));
            record.arg("name").arg("a key").arg("prefix").arg("assure_");
            // Every hundredth is one whose revocation was lost.
            if number % 100 != 0 {
                record.arg("revoked_at").arg("1");
            }
            line.send::<u64>(&record).await.unwrap();
        }
        for _ in 0..2 {
            reassert(&store, Partition(0), digests.clone()).await.unwrap();
            let (after, _) = epoch(&store, Partition(0)).await.unwrap();
            assert_eq!(after, Epoch(10), "what is known is only looked at");
        }
        let logged: u64 = line.send(redis::cmd("XLEN").arg("assure:audit")).await.unwrap();
        assert_eq!(logged, 10, "each with its record");
    }

    #[tokio::test]
    async fn a_session_that_cannot_be_read_is_one_that_has_applied_nothing() {
        let server = super::super::testing::Server::start();
        let store = server.open().await.unwrap();
        let hash = store.names(Partition(0)).named("sessions");
        let mut last = None;
        for (field, state) in [(&b"\x1b[2J name"[..], &b"x y z"[..]), (b"\xff\xfe", b"1 2 3"), (b"\xff\xfe", b"1 3 3")] {
            store.connections.bulk().send::<u64>(redis::cmd("HSET").arg(&hash).arg(field).arg(state)).await.unwrap();
            let all = sessions(&store, Partition(0)).await.unwrap().all;
            assert!(all.iter().all(|session| session.applied == Epoch(0) && session.lease == Duration::from_secs(10)));
            let now = (all.len(), all.iter().map(|session| session.renewals).fold(0, u64::wrapping_add));
            assert_ne!(last.replace(now), Some(now), "a change is seen");
            forget(&store, Partition(0), all).await.unwrap();
        }
        assert_eq!(last.unwrap().0, 2);
    }

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

//! Permits (protocol 2): the arithmetic is the script's, here are its arguments and its answer.
//!
//! Each key has a clock of its own in Redis, which goes on as Redis's does and stands still where that is set back: no
//! use leaves its window early for it, and no window is held up for as long as the clock was set back.

use std::time::Duration;

use super::keys::{number, words};
use super::{RedisStore, corrupt, window_scripts};
use crate::domain::window::{GRANT_LIFE, GRANT_LIFE_LONG, GRANT_SHARE, GrantId, WINDOW};
use crate::mutants::{self, Mutant};
use crate::store::{Partition, PermitRequest, Permits, RecalledKey, StoreError};

/// In so many groups a grant's uses are kept at most, each as of its last use: a member of a set for each use would cost
/// Redis more than all else that it does for a request. Where few permits are left, grants are small and groups are single.
const GROUPS_MAX: usize = 8;

pub(super) async fn permits(store: &RedisStore, request: PermitRequest) -> Result<Permits, StoreError> {
    let keys = ["window", "grants"].map(|what| store.names_of(request.tag).of_key(what, request.key));
    let answer: Vec<String> = store.connections.hot().call(&window_scripts::PERMITS, &keys, &arguments(&request)).await?;
    match &*words(&answer) {
        ["granted", id, count, life, remaining, reset] => Ok(Permits::Granted {
            id: GrantId(number(id)?),
            count: small(count)?,
            life: Duration::from_micros(number(life)?),
            remaining: small(remaining)?,
            reset: Duration::from_micros(number(reset)?),
        }),
        ["full", retry_after] => Ok(Permits::Full { retry_after: Duration::from_micros(number(retry_after)?) }),
        ["other"] => Err(StoreError::Unavailable("Redis was started again and may have forgotten uses".to_owned())),
        _ => Err(corrupt("permits have an unknown answer")),
    }
}

fn arguments(request: &PermitRequest) -> Vec<String> {
    let mut arguments = vec![
        request.limit.to_string(),
        request.want.soon.to_string(),
        request.want.long.to_string(),
        GRANT_SHARE.to_string(),
        WINDOW.as_micros().to_string(),
        micros_of(GRANT_LIFE),
        micros_of(GRANT_LIFE_LONG),
        request.store.run.clone(),
    ];
    for report in &request.reports {
        // Rounded up: a use may count for longer, never for less.
        let mut uses: Vec<u128> = report.uses.iter().map(|offset| offset.as_nanos().div_ceil(1_000)).collect();
        uses.sort_unstable();
        let groups = uses.chunks(uses.len().div_ceil(GROUPS_MAX).max(1));
        arguments.extend([report.id.0.to_string(), groups.len().to_string()]);
        arguments.extend(groups.filter_map(|group| Some([group.len().to_string(), group.last()?.to_string()])).flatten());
    }
    arguments
}

/// Tells of uses that this Redis may have forgotten.
pub(super) async fn recall(store: &RedisStore, partition: Partition, keys: Vec<RecalledKey>) -> Result<(), StoreError> {
    if keys.is_empty() {
        return Ok(());
    }
    let home = store.names(partition);
    let names: Vec<String> = keys.iter().flat_map(|key| ["window", "grants"].map(|what| home.of_key(what, key.key))).collect();
    let mut arguments = vec![(WINDOW + GRANT_LIFE).as_micros().to_string()];
    for key in &keys {
        arguments.push(key.uses.len().to_string());
        for used in &key.uses {
            // Rounded down: a use may count for longer, never for less.
            arguments.extend([used.grant.0.to_string(), used.number.to_string(), used.age.as_micros().to_string()]);
        }
    }
    store.connections.bulk().call::<u64>(&window_scripts::RECALL, &names, &arguments).await.map(drop)
}

/// How long an open grant's permits may be spent, as the script counts it.
fn micros_of(life: Duration) -> String {
    if mutants::active(Mutant::CountAtGrantStart) {
        return "0".to_owned();
    }
    if mutants::active(Mutant::ForgetOpenGrants) {
        return format!("-{}", WINDOW.as_micros());
    }
    life.as_micros().to_string()
}

fn small(text: &str) -> Result<u32, StoreError> {
    text.parse().map_err(|_| corrupt("a count is none"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::testing::Server;
    use super::*;
    use crate::domain::window::{GrantReport, RecalledUse, Wanted};
    use crate::domain::{FirmId, FirmTag, KeyId};
    use crate::store::{Partition, Store, StoreIncarnation};

    const KEY: KeyId = KeyId::new(Uuid::from_u128(1));

    fn soon(soon: u32) -> Wanted {
        Wanted { soon, long: 0 }
    }

    fn request(reports: Vec<GrantReport>, run: &str) -> PermitRequest {
        let tag = FirmTag::of(&FirmId::parse("firm-1").unwrap());
        let store = StoreIncarnation { run: run.to_owned(), ..StoreIncarnation::default() };
        PermitRequest { tag, key: KEY, limit: 100, want: soon(3), reports, store }
    }

    fn remaining(permits: Permits) -> (GrantId, u32) {
        match permits {
            Permits::Granted { id, remaining, .. } => (id, remaining),
            Permits::Full { .. } => panic!("it is not full"),
        }
    }

    async fn recall(store: &RedisStore, grants: &[(GrantId, u32)]) {
        let uses = grants.iter().map(|(grant, number)| RecalledUse { grant: *grant, number: *number, age: Duration::from_secs(1) });
        Store::recall(store, Partition(0), vec![RecalledKey { key: KEY, uses: uses.collect() }]).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_told_again_counts_once_whether_it_was_reported_open_or_forgotten() {
        let server = Server::start();
        let store = server.open().await.unwrap();
        let (reported, left) = remaining(store.permits(request(vec![], "")).await.unwrap());
        assert_eq!(left, 97);
        let report = GrantReport { id: reported, uses: vec![Duration::ZERO; 3] };
        let (open, left) = remaining(store.permits(request(vec![report], "")).await.unwrap());
        assert_eq!(left, 94);
        // Of the open grant one permit was used; the third grant is one that this Redis has lost.
        let lost = GrantId(open.0 + 1_000_000_000);
        let told = [(reported, 1), (reported, 2), (reported, 3), (open, 1), (lost, 1), (lost, 2)];
        recall(&store, &told).await;
        recall(&store, &told).await;
        let (next, left) = remaining(store.permits(request(vec![], "")).await.unwrap());
        assert_eq!(left, 100 - 6 - 3, "three, one and two uses, and three permits that are open now");
        assert!(next > lost, "no grant is named again");
    }

    #[tokio::test]
    async fn uses_are_kept_in_groups_that_count_wholly_and_are_known_when_told_again() {
        let server = Server::start();
        let store = server.open().await.unwrap();
        let ask = async |want, reports| {
            let limited = PermitRequest { limit: 1_000, want: soon(want), ..request(reports, "") };
            remaining(store.permits(limited).await.unwrap())
        };
        let (grant, left) = ask(50, vec![]).await;
        assert_eq!(left, 950);
        let uses = (0..49).rev().map(Duration::from_millis).collect();
        let (mut open, mut left) = ask(1, vec![GrantReport { id: grant, uses }]).await;
        assert_eq!(left, 950, "one of fifty came back and is open again");
        let key = store.names(Partition(0)).of_key("window", KEY);
        assert_eq!(store.connections.hot().send::<usize>(redis::cmd("ZCARD").arg(&key)).await.unwrap(), 7);
        let told: Vec<_> = (1..=50).map(|number| (grant, number)).collect();
        for _ in 0..2 {
            recall(&store, &told).await;
            (open, left) = ask(1, vec![GrantReport { id: open, uses: vec![] }]).await;
            assert_eq!(left, 949, "only the fiftieth was not known");
        }
    }

    #[tokio::test]
    async fn a_redis_that_was_started_again_grants_nothing_to_who_trusts_the_earlier_run() {
        let server = Server::start();
        let store = server.open().await.unwrap();
        let run = super::super::coherence::epoch(&store, Partition(0)).await.unwrap().1.run;
        assert!(store.permits(request(vec![], &run)).await.is_ok());
        server.crash();
        let again = server.open().await.unwrap();
        assert!(matches!(again.permits(request(vec![], &run)).await, Err(StoreError::Unavailable(why)) if why.contains("started again")));
    }

    #[tokio::test]
    async fn a_clock_that_goes_back_holds_up_no_window() {
        let server = Server::start();
        let store = server.open().await.unwrap();
        store.permits(request(vec![], "")).await.unwrap();
        let (line, grants) = (store.connections.hot(), store.names(Partition(0)).of_key("grants", KEY));
        let latest = async || line.send::<u64>(redis::cmd("HGET").arg(&grants).arg("latest")).await.unwrap();
        // As if the clock had then been an hour ahead.
        let ahead = latest().await + 3_600_000_000;
        for field in ["latest", "wall"] {
            line.send::<u8>(redis::cmd("HSET").arg(&grants).arg(field).arg(ahead)).await.unwrap();
        }
        store.permits(request(vec![], "")).await.unwrap();
        let stood = latest().await;
        assert_eq!(stood, ahead, "it does not go back");
        store.permits(request(vec![], "")).await.unwrap();
        assert!(latest().await > stood, "and goes on from there");
        recall(&store, &[(GrantId(ahead), 1)]).await;
        assert!(latest().await > stood);
    }
}

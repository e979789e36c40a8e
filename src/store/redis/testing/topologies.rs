//! What Sentinel and Cluster must not break: failover, moved slots, forgotten scripts, partitions that fail alone.
//!
//! Each test that kills or freezes servers has its own, and waits, with a deadline, until what it broke is mended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use uuid::Uuid;

use super::{Cluster, Server, Trio, ask, until};
use crate::domain::{FirmTag, KeyState, Sequence};
use crate::store::conformance::{new_key, revocation, uses_of_nine_firms};
use crate::store::redis::RedisStore;
use crate::store::{AuditBatch, Creation, NewKey, Revocation, Store, StoreError};
use crate::tasks::Tasks;

/// In which a failover must be over for the store: servers are given up after a second, and an election follows.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

/// How long a call to another server of a Cluster may take meanwhile: its own limit of a second, on a busy machine.
const OTHERS_WAIT_MAX: Duration = Duration::from_secs(3);

async fn open(config: &crate::config::Redis, stream: &str) -> Arc<RedisStore> {
    RedisStore::open(config, stream, &Tasks::new()).await.unwrap()
}

/// Creates this key, the same call again and again, until it is answered.
async fn create(store: &RedisStore, key: &NewKey) -> Duration {
    let began = Instant::now();
    loop {
        match store.create(key.clone()).await {
            Ok(Creation::Created(..) | Creation::Replayed(_)) => return began.elapsed(),
            Ok(other) => panic!("{other:?}"),
            Err(StoreError::Unavailable(why)) => assert!(began.elapsed() < FAILOVER_MAX, "not available again: {why}"),
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn revoke(store: &RedisStore, key: &NewKey) {
    let began = Instant::now();
    loop {
        match store.revoke(revocation(&key.record)).await {
            Ok(Revocation::Revoked { .. }) => return,
            Err(StoreError::Unavailable(why)) => assert!(began.elapsed() < FAILOVER_MAX, "not available again: {why}"),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_live(store: &RedisStore, key: &NewKey) -> Result<bool, StoreError> {
    let found = store.find(FirmTag::of(&key.record.firm_id), key.record.digest).await?;
    Ok(found.record.is_some_and(|record| record.state == KeyState::Live))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_dies_is_replaced() {
    let trio = Trio::start();
    let config = crate::config::Redis { replicas_ack_min: 2, ..trio.config() };
    let store = open(&config, "assure:audit").await;
    let (before, after) = (new_key("firm-1", "ann"), new_key("firm-1", "ann"));
    create(&store, &before).await;
    let dead = trio.master();
    dead.kill();
    // One replica is left to have it: on a busy machine the sentinels may replace the new master as well.
    let config = crate::config::Redis { replicas_ack_min: 1, ..trio.config() };
    drop(store);
    // A gateway that starts meanwhile waits for the new master too.
    let began = Instant::now();
    let store = loop {
        match RedisStore::open(&config, "assure:audit", &Tasks::new()).await {
            Ok(store) => break store,
            Err(why) => assert!(began.elapsed() < FAILOVER_MAX, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    create(&store, &after).await;
    assert!(is_live(&store, &before).await.unwrap(), "what two replicas had is there");
    dead.restart();
    until("the old master to follow", || ask(dead.port, &["INFO", "replication"]).contains("role:slave"));
    revoke(&store, &before).await;
    assert!(!is_live(&store, &before).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_was_frozen_and_replaced_is_left_for_good() {
    let trio = Trio::start();
    let store = open(&trio.config(), "assure:audit").await;
    let (key, other) = (new_key("firm-1", "ann"), new_key("firm-1", "ann"));
    create(&store, &key).await;
    until("the replicas to have it", || {
        trio.servers
            .iter()
            .all(|server| ask(server.port, &["EXISTS", &format!("assure:{{assure:audit}}:id:{}", key.record.id)]).trim() == "1")
    });
    let frozen = trio.master();
    frozen.signal(Signal::STOP);
    create(&store, &other).await;
    assert_ne!(trio.master().port, frozen.port);
    revoke(&store, &key).await;
    frozen.signal(Signal::CONT);
    // It answers again, and does not know yet that it was replaced.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert!(!matches!(is_live(&store, &key).await, Ok(true)), "the old master was believed");
    }
    until("the old master to follow", || ask(frozen.port, &["INFO", "replication"]).contains("role:slave"));
    assert!(!is_live(&store, &key).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_of_sentinels_no_master_is_believed() {
    let trio = Trio::start();
    let store = open(&trio.config(), "assure:audit").await;
    let key = new_key("firm-1", "ann");
    create(&store, &key).await;
    trio.sentinels[1..].iter().for_each(|sentinel| sentinel.signal(Signal::STOP));
    let began = Instant::now();
    let why = loop {
        match is_live(&store, &key).await {
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(3), "a minority is believed for a moment only"),
            Err(why) => break why.to_string(),
        }
    };
    assert!(why.contains("1 of 3 sentinels agree"), "{why}");
    trio.sentinels[1..].iter().for_each(|sentinel| sentinel.signal(Signal::CONT));
    create(&store, &new_key("firm-1", "ann")).await;
}

/// Keys of firms in different partitions, by partition.
async fn one_of_each(store: &RedisStore) -> Vec<NewKey> {
    let mut keys: Vec<Option<NewKey>> = vec![None; usize::from(store.partitions())];
    for number in 0.. {
        let key = new_key(&format!("firm-{number}"), "ann");
        let partition = store.names_of(FirmTag::of(&key.record.firm_id)).partition;
        keys[usize::from(partition.0)].get_or_insert(key);
        if keys.iter().all(Option::is_some) {
            break;
        }
    }
    keys.into_iter().flatten().collect()
}

/// What a replica has of a master's commands is all of them.
fn until_replicated(cluster: &Cluster, master: &Server) {
    let offset = |port: u16, name: &str| {
        let replication = ask(port, &["INFO", "replication"]);
        replication.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    until("the replica to have it all", || {
        let mut followers = cluster.nodes.iter().filter(|node| offset(node.port, "master_port:") == master.port.to_string());
        followers.any(|node| offset(node.port, "slave_repl_offset:") == offset(master.port, "master_repl_offset:"))
    });
}

async fn loses_a_master(is_frozen: bool) {
    let cluster = Cluster::start(1_000);
    let store = open(&cluster.config(), "assure:audit").await;
    let keys = one_of_each(&store).await;
    for key in &keys {
        create(&store, key).await;
    }
    let streams: Vec<String> = store.partitions.iter().map(|names| names.stream.clone()).collect();
    let asked = cluster.nodes.last().unwrap();
    let masters: Vec<u16> = streams.iter().map(|stream| cluster.master_of(stream, asked).port).collect();
    let lost = cluster.master_of(&streams[0], asked);
    until_replicated(&cluster, lost);
    if is_frozen {
        lost.signal(Signal::STOP)
    } else {
        lost.kill()
    }
    let fresh = new_key(keys[0].record.firm_id.as_str(), "bob");
    let others = async {
        let (end, mut slowest, mut answered, mut refused) = (Instant::now() + Duration::from_secs(3), Duration::ZERO, 0, 0);
        while Instant::now() < end {
            for (key, _) in keys.iter().zip(&masters).filter(|(_, master)| **master != lost.port) {
                let began = Instant::now();
                match is_live(&store, key).await {
                    Ok(true) => answered += 1,
                    Err(StoreError::Unavailable(_)) => refused += 1,
                    other => panic!("{other:?}"),
                }
                slowest = slowest.max(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (slowest, answered, refused)
    };
    let (waited, (slowest, answered, refused)) = tokio::join!(create(&store, &fresh), others);
    println!("frozen {is_frozen}: its partition waited {waited:?}, others at most {slowest:?}; {answered} answered, {refused} refused");
    // The library looks for the new master over the same connection, so the others' calls are late, and some too late.
    assert!(slowest < OTHERS_WAIT_MAX && answered > refused, "{slowest:?}, {answered} answered, {refused} refused");
    for key in &keys {
        revoke(&store, key).await;
        assert!(!is_live(&store, key).await.unwrap());
    }
    if is_frozen {
        lost.signal(Signal::CONT);
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            assert!(!matches!(is_live(&store, &keys[0]).await, Ok(true)), "the old master was believed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_master_goes_on() {
    loses_a_master(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_master_freezes_goes_on_and_forgets_it() {
    loses_a_master(true).await;
}

/// While a slot moves, a change is made wholly or not at all; afterwards it is found where it went.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_slot_moves_loses_and_halves_nothing() {
    let cluster = Cluster::start(15_000);
    let store = open(&cluster.config(), "assure:audit").await;
    let keys = one_of_each(&store).await;
    let firm_id = keys[0].record.firm_id.as_str();
    let (key, earlier, late) = (&keys[0], new_key(firm_id, "ann"), new_key(firm_id, "bob"));
    create(&store, key).await;
    create(&store, &earlier).await;
    revoke(&store, &earlier).await;
    let names = &store.partitions[0];
    let from = cluster.master_of(&names.stream, &cluster.nodes[0]);
    assert_eq!(ask(from.port, &["SET", &names.named("untold"), "0"]).trim(), "OK");
    let slot = cluster.slot_of(&names.stream, from).to_string();
    let to = store.partitions.iter().map(|names| cluster.master_of(&names.stream, from)).find(|node| node.port != from.port).unwrap();
    let id = |node: &Server| ask(node.port, &["CLUSTER", "MYID"]).trim().to_owned();
    let (from_id, to_id) = (id(from), id(to));
    ask(to.port, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    ask(from.port, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    let held = || -> Vec<String> {
        ask(from.port, &["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    // What a revocation writes last goes first, so that it would find out too late.
    let (first, then): (Vec<String>, Vec<String>) = held().into_iter().partition(|name| name.ends_with(":live"));
    assert_eq!(first.len(), 2, "the firm's set and the creator's");
    for name in first.iter().chain(&then) {
        let moved = ask(from.port, &["MIGRATE", "127.0.0.1", &to.port.to_string(), name, "0", "5000"]);
        assert_eq!(moved.trim(), "OK");
        if then.iter().take(3).any(|checked| checked == name) || first.contains(name) {
            let refused = store.revoke(revocation(&key.record)).await;
            assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        }
    }
    for name in held() {
        ask(from.port, &["MIGRATE", "127.0.0.1", &to.port.to_string(), &name, "0", "5000"]);
    }
    for node in [to, from] {
        ask(node.port, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    let find = async || store.find(FirmTag::of(&key.record.firm_id), key.record.digest).await.unwrap();
    let found = find().await;
    assert_eq!((found.epoch.0, found.record.unwrap().state), (3, KeyState::Live), "what was refused left nothing");
    create(&store, &late).await;
    revoke(&store, key).await;
    let found = find().await;
    assert_eq!(found.epoch.0, 5, "three creations and two revocations");
    assert_ne!(found.record.unwrap().state, KeyState::Live);
}

async fn survives_script_flush(store: &RedisStore, servers: &[&Server]) {
    let key = new_key("firm-1", "ann");
    create(store, &key).await;
    for _ in 0..2 {
        servers.iter().for_each(|server| assert_eq!(ask(server.port, &["SCRIPT", "FLUSH"]).trim(), "OK"));
        assert!(is_live(store, &key).await.unwrap());
        servers.iter().for_each(|server| assert_eq!(ask(server.port, &["SCRIPT", "FLUSH"]).trim(), "OK"));
        assert!(matches!(store.create(new_key("firm-1", "bob")).await, Ok(Creation::Created(..))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_the_scripts_is_told_them_again() {
    let server = Server::start();
    survives_script_flush(server.open().await.unwrap().as_ref(), &[&server]).await;
    let (cluster, name) = super::shared_cluster();
    let nodes: Vec<&Server> = cluster.nodes.iter().collect();
    survives_script_flush(open(&cluster.config(), &name).await.as_ref(), &nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_one_partition_refused_is_taken_once_by_all() {
    let server = Server::start();
    let store = open(&crate::config::Redis { partitions: 3, ..server.config() }, "assure:audit").await;
    let spool = Uuid::from_u128(7);
    let records = uses_of_nine_firms(1..=30);
    let broken = store.partitions[1].mark(spool);
    ask(server.port, &["LPUSH", &broken, "no number"]);
    let records = records.into_iter().map(Into::into).collect();
    let batch = AuditBatch { spool, records, lost_up_to: None, age_max: None };
    let lengths = || -> Vec<u64> {
        store.partitions.iter().map(|names| ask(server.port, &["XLEN", &names.stream]).trim().parse().unwrap()).collect()
    };
    // The refusal may be told before the others have taken theirs; who ships sends the batch again.
    let mut before = Vec::new();
    for _ in 0..100 {
        assert!(store.ship(batch.clone()).await.is_err());
        before = lengths();
        if before[0] > 0 && before[2] > 0 {
            break;
        }
    }
    assert!(before[0] > 0 && before[1] == 0 && before[2] > 0, "{before:?}");
    ask(server.port, &["DEL", &broken]);
    assert_eq!(store.shipped(spool).await.unwrap(), Sequence(0), "what every partition holds");
    assert_eq!(store.ship(batch.clone()).await.unwrap(), Sequence(30));
    assert_eq!(store.ship(batch).await.unwrap(), Sequence(30));
    assert_eq!(lengths().iter().sum::<u64>(), 30);
    assert_eq!((lengths()[0], lengths()[2]), (before[0], before[2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_partitions_is_refused_with_both_numbers() {
    let server = Server::start();
    drop(server.open().await.unwrap());
    let config = crate::config::Redis { partitions: 4, ..server.config() };
    let refused = RedisStore::open(&config, "assure:audit", &Tasks::new()).await.map(drop);
    assert!(
        matches!(&refused, Err(StoreError::Unsafe(why)) if why.contains("is 4") && why.contains("\"1\"") && why.contains("store export")),
        "{refused:?}"
    );
    assert!(RedisStore::open(&config, "another", &Tasks::new()).await.is_ok(), "another store in the same Redis");
}

/// Names of streams of one server: what one partition gives, and what three give.
#[tokio::test(flavor = "multi_thread")]
async fn one_partition_has_exactly_one_stream_named_as_configured() {
    let server = Server::start();
    let store = open(&server.config(), "our:audit").await;
    for number in 0..20 {
        create(&store, &new_key(&format!("firm-{number}"), "ann")).await;
    }
    assert_eq!(ask(server.port, &["XLEN", "our:audit"]).trim(), "20");
    let streams = ask(server.port, &["--scan", "--pattern", "our:audit*"]);
    assert_eq!(streams.lines().collect::<Vec<_>>(), ["our:audit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_waits_for_the_redis_replicas_that_it_must_reach() {
    let (cluster, name) = super::shared_cluster();
    let store = open(&crate::config::Redis { replicas_ack_min: 1, ..cluster.config() }, &name).await;
    for key in one_of_each(&store).await {
        assert!(matches!(store.create(key).await, Ok(Creation::Created(..))));
    }
    let greedy = open(&crate::config::Redis { replicas_ack_min: 2, ..cluster.config() }, &name).await;
    let key = new_key("firm-9", "ann");
    let began = Instant::now();
    // The hot path goes on while changes wait.
    let (refused, looked) = tokio::join!(greedy.create(key.clone()), is_live(&greedy, &key));
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("reached 1 Redis replicas")), "{refused:?}");
    assert!(looked.is_ok() && began.elapsed() >= Duration::from_secs(2));
    let again = greedy.create(key.clone()).await;
    assert!(matches!(again, Err(StoreError::Unavailable(_))), "a repeat waits for what was made before: {again:?}");
    assert!(matches!(store.create(key).await, Ok(Creation::Replayed(_))), "it was made, and one replica is enough here");
}

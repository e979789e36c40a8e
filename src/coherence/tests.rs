//! The rules of protocol 1 that look optional, each against a store that does what the test says.
//!
//! Each test names a rule that was taken away in the model of the protocol, where the promise then broke. What several
//! real gateways make of them is tested in `tests/gateway/replicas.rs` and `forgetting.rs`.

use super::puppet::{LEASE, Puppet};
use super::*;
use crate::domain::KeyId;
use crate::store::SessionState;

const ZERO: Partition = Partition(0);

struct Bench {
    store: Arc<Puppet>,
    coherence: Arc<Coherence>,
}

impl Bench {
    fn new() -> Self {
        let store = Arc::new(Puppet::default());
        store.state.lock().run = "first";
        let coherence = Coherence::new(store.clone(), ReplicaId::new("replica-1"), Uuid::nil(), &Metrics::new());
        Self { store, coherence }
    }

    /// One that has joined, has told the store what it knows, and has waited for a term.
    async fn settled() -> Self {
        let bench = Self::new();
        bench.settle().await;
        bench
    }

    async fn settle(&self) {
        self.coherence.join().await.unwrap();
        assert_eq!(self.tell().await, Told::All);
        self.term_passes().await;
        self.coherence.join().await.unwrap();
        assert!(self.coherence.is_coherent());
    }

    async fn tell(&self) -> Told {
        self.coherence.tell(ZERO, &mut None, BootInstant::NEVER).await
    }

    async fn term_passes(&self) {
        let until = clock::boot_now().plus(term_of(LEASE));
        while clock::boot_now() < until {
            tokio::time::sleep(CONFIRMATION_POLL).await;
        }
    }

    fn change(&self, epoch: u64) -> Change {
        Change { partition: ZERO, epoch: Epoch(epoch), committed: clock::boot_now(), asked: self.coherence.moment() }
    }
}

fn digest(number: u8) -> KeyDigest {
    KeyDigest::from_bytes([number; 32])
}

fn other(applied: u64, lease: Duration) -> SessionState {
    SessionState { replica: ReplicaId::new("replica-2"), incarnation: Uuid::max(), applied: Epoch(applied), renewals: 7, lease }
}

#[tokio::test]
async fn a_lease_counts_from_the_send_and_a_renewal_that_comes_too_late_brings_none() {
    let bench = Bench::settled().await;
    let lease_of = |sent: BootInstant| sent.plus(LEASE.mul_f64(0.99).saturating_sub(LEASE_MARGIN));
    bench.store.holds.store(true, Ordering::SeqCst);
    let sent = clock::boot_now();
    let answer_later = async {
        tokio::time::sleep(LEASE / 10).await;
        bench.store.release.notify_one();
    };
    let (renewed, ()) = tokio::join!(bench.coherence.renew(ZERO), answer_later);
    renewed.unwrap();
    let valid_until = bench.coherence.valid_until(ZERO);
    assert!(valid_until < lease_of(sent.plus(LEASE / 10)), "from the send, not from the answer");
    assert!(bench.coherence.renew(ZERO).await.is_err(), "a fifth of the lease is over");
    bench.store.release.notify_one();
    tokio::task::yield_now().await;
    assert_eq!(bench.coherence.valid_until(ZERO), valid_until);
}

#[tokio::test]
async fn what_is_acknowledged_was_applied_and_what_was_applied_is_known() {
    let bench = Bench::new();
    {
        let mut state = bench.store.state.lock();
        (state.epoch, state.revoked) = (5, [digest(1)].into());
    }
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(bench.coherence.is_revoked(&digest(1)) && bench.coherence.applied(ZERO) == Epoch(5));
    bench.store.state.lock().epoch = 6;
    bench.coherence.renew(ZERO).await.unwrap();
    bench.coherence.renew(ZERO).await.unwrap();
    assert_eq!(bench.store.state.lock().acknowledged, [0, 5, 6], "an answer is acknowledged by the renewal after it");
}

#[tokio::test]
async fn a_revocation_waits_for_one_that_has_not_applied_it_for_a_term_and_not_for_one_that_has() {
    let bench = Bench::settled().await;
    for (renewals, applied, lease, is_waited_for) in [(1, 1, LEASE, false), (2, 0, LEASE, true), (3, 0, Duration::ZERO, false)] {
        // It has just renewed, or its silence would count from the last time.
        bench.store.state.lock().others = vec![SessionState { renewals, ..other(applied, lease) }];
        bench.store.state.lock().epoch = 1;
        let change = bench.change(1);
        let confirmed = bench.coherence.settle_revocation(change, digest(1)).await.unwrap();
        let took = clock::boot_now().since(change.committed);
        assert_eq!(took >= term_of(LEASE), is_waited_for, "{applied} {lease:?}: {took:?}");
        assert_eq!(confirmed.len(), usize::from(applied == 1) + 1);
    }
    bench.store.state.lock().others = vec![other(0, LEASE)];
    bench.coherence.sessions(ZERO).await.unwrap();
    let change = bench.change(1);
    bench.coherence.settle_revocation(change, digest(1)).await.unwrap();
    let took = clock::boot_now().since(change.committed);
    assert!(took >= term_of(LEASE) || bench.coherence.watched.is_silent(ZERO, &other(0, LEASE), clock::boot_now()));
    let change = bench.change(1);
    bench.coherence.settle_revocation(change, digest(1)).await.unwrap();
    assert!(clock::boot_now().since(change.committed) < LEASE, "its silence was watched for a term");
}

#[tokio::test]
async fn who_leaves_trusts_nothing_and_is_forgotten_alone_and_only_when_idle() {
    let bench = Bench::settled().await;
    let own = SessionState { replica: ReplicaId::new("replica-1"), incarnation: Uuid::nil(), ..other(0, LEASE) };
    let earlier = SessionState { incarnation: Uuid::max(), ..own.clone() };
    bench.store.state.lock().others = vec![other(0, LEASE), own, earlier];
    bench.coherence.leave(|| false).await;
    assert!(bench.store.state.lock().forgotten.is_empty() && !bench.coherence.is_coherent());
    bench.coherence.leave(|| !bench.coherence.is_coherent()).await;
    assert_eq!(bench.store.state.lock().forgotten, [ReplicaId::new("replica-1")], "neither another nor another start of this one");
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(!bench.coherence.is_coherent(), "a late renewal brings no trust");
    assert!(bench.coherence.asked_since(ZERO, clock::boot_now()).await <= clock::boot_now());
}

#[tokio::test]
async fn a_store_that_was_started_again_in_mid_revocation_confirms_nothing_and_is_told() {
    let bench = Bench::settled().await;
    let change = bench.change(1);
    bench.store.state.lock().run = "second";
    // Met before the revocation is buried here: what it was told then did not hold this one.
    bench.coherence.renew(ZERO).await.unwrap();
    bench.tell().await;
    bench.store.state.lock().epoch = 1;
    assert_eq!(bench.coherence.settle_revocation(change, digest(1)).await.unwrap_err(), NotConfirmed);
    assert_eq!(bench.store.state.lock().reasserted.last(), Some(&1));
    let again = bench.change(1);
    bench.coherence.settle_revocation(again, digest(1)).await.unwrap();
    assert!(clock::boot_now().since(again.committed) >= term_of(LEASE), "sessions may be missing, so the whole term is waited");
}

#[tokio::test]
async fn sessions_are_believed_of_the_incarnation_that_was_met_only() {
    let bench = Bench::settled().await;
    bench.store.state.lock().sessions_of = Some("second");
    assert!(bench.coherence.settle_creation(bench.change(0)).await.is_err());
    bench.store.state.lock().sessions_of = None;
    assert!(bench.coherence.settle_creation(bench.change(0)).await.is_ok());
}

#[tokio::test]
async fn a_new_incarnation_is_trusted_a_term_after_it_was_told_and_nothing_cached_outlives_it() {
    let bench = Bench::settled().await;
    let generation = bench.coherence.generation();
    bench.coherence.recall_from(Box::new(|_| vec![RecalledKey { key: KeyId::new(Uuid::nil()), uses: vec![] }]));
    bench.coherence.bury((0..=255).map(digest));
    bench
        .coherence
        .bury((0..=255).flat_map(|one| (0..5).map(move |two| KeyDigest::from_bytes([[one, two]; 16].concat().try_into().unwrap()))));
    let tombstones = bench.coherence.memory.tombstones.all().len();
    bench.store.state.lock().run = "second";
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(bench.coherence.generation() > generation && bench.coherence.trusted(ZERO).is_none());
    bench.term_passes().await;
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(!bench.coherence.is_coherent(), "it has not been told yet");
    bench.store.state.lock().reasserted.clear();
    let mut telling = None;
    assert_eq!(bench.coherence.tell(ZERO, &mut telling, BootInstant::default()).await, Told::Some, "a renewal is due in between");
    assert_eq!(bench.coherence.tell(ZERO, &mut telling, BootInstant::NEVER).await, Told::All);
    {
        let state = bench.store.state.lock();
        assert_eq!((state.recalled, state.reasserted.iter().sum()), (1, tombstones));
        assert!(state.reasserted.iter().all(|chunk| *chunk <= 500) && state.reasserted.len() <= tombstones / 500 + 1);
    }
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(!bench.coherence.is_coherent(), "others may not have told it yet");
    bench.term_passes().await;
    bench.coherence.renew(ZERO).await.unwrap();
    assert_eq!(bench.coherence.trusted(ZERO), Some(Puppet::incarnation("second")));
}

#[tokio::test]
async fn who_starts_where_others_have_settled_tells_what_it_remembers_and_trusts_at_once() {
    let bench = Bench::new();
    bench.store.state.lock().is_settled = true;
    bench.coherence.bury([digest(1)]);
    bench.coherence.join().await.unwrap();
    assert!(!bench.coherence.is_coherent() && bench.store.state.lock().trusted.is_none(), "not before it has told");
    assert_eq!(bench.tell().await, Told::All);
    bench.coherence.join().await.unwrap();
    assert!(bench.coherence.is_coherent() && bench.store.state.lock().reasserted.iter().sum::<usize>() == 1);
    bench.coherence.join().await.unwrap();
    assert_eq!(bench.store.state.lock().trusted, Some(Puppet::incarnation("first")), "and says so to those who come");
    // What it met later may have forgotten what it told the first.
    bench.store.state.lock().run = "second";
    bench.coherence.join().await.unwrap();
    assert_eq!(bench.tell().await, Told::All);
    bench.coherence.join().await.unwrap();
    assert!(!bench.coherence.is_coherent(), "one that runs waits for its term");
}

#[tokio::test]
async fn who_has_told_an_earlier_incarnation_does_not_begin_the_term_of_the_next() {
    let bench = Bench::new();
    bench.coherence.renew(ZERO).await.unwrap();
    let mut telling = None;
    bench.coherence.bury([digest(1)]);
    bench.coherence.tell(ZERO, &mut telling, BootInstant::default()).await;
    bench.store.state.lock().run = "second";
    bench.coherence.renew(ZERO).await.unwrap();
    let told = bench.store.state.lock().reasserted.len();
    assert_eq!(bench.coherence.tell(ZERO, &mut telling, BootInstant::NEVER).await, Told::All);
    assert!(bench.store.state.lock().reasserted.len() > told, "it is told all, not only what was left");
}

#[tokio::test]
async fn a_stranger_ends_the_lease_at_once_and_the_known_store_brings_it_back() {
    let bench = Bench::settled().await;
    bench.store.state.lock().is_foreign = true;
    assert!(bench.coherence.renew(ZERO).await.is_err());
    assert!(!bench.coherence.is_coherent() && bench.coherence.trouble().is_some_and(|why| why.contains("another")));
    bench.store.state.lock().is_foreign = false;
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(bench.coherence.is_coherent() && bench.coherence.trouble().is_none());
}

#[tokio::test]
async fn a_question_of_strict_mode_is_sent_after_the_arrival_and_serves_all_that_wait() {
    let bench = Bench::new();
    bench.store.state.lock().is_asking = true;
    bench.settle().await;
    bench.store.holds.store(true, Ordering::SeqCst);
    let ask = || bench.coherence.asked_since(ZERO, clock::boot_now());
    let early = ask();
    let late = async {
        // They arrive while the first question is under way, which cannot answer for them.
        let proofs = join_all((0..50).map(|_| ask()));
        let answers = async {
            tokio::task::yield_now().await;
            bench.store.state.lock().epoch = 9;
            bench.store.release.notify_one();
            bench.store.holds.store(false, Ordering::SeqCst);
        };
        tokio::join!(proofs, answers).0
    };
    let (first, rest) = tokio::join!(early, late);
    assert!(rest.iter().all(|proof| *proof > clock::boot_now()) && first > clock::boot_now());
    assert_eq!(bench.store.state.lock().questions, 2);
    assert_eq!(bench.coherence.applied(ZERO), Epoch(9), "news is applied before anybody goes on");
    bench.store.state.lock().is_foreign = true;
    bench.store.state.lock().epoch = 10;
    assert!(ask().await < clock::boot_now(), "no proof without an answer");
}

#[tokio::test]
async fn what_runs_ends_a_moment_after_the_last_lease_and_goes_on_while_a_new_incarnation_settles() {
    let bench = Bench::settled().await;
    let tasks = crate::tasks::Tasks::new();
    let watching = bench.coherence.clone();
    tasks.spawn("silence", async move { watching.watch_silence(ZERO).await });
    let generation = bench.coherence.generation();
    bench.store.state.lock().run = "second";
    bench.coherence.renew(ZERO).await.unwrap();
    let forgotten = bench.coherence.doubt(ZERO, digest(1), generation).await;
    assert_eq!((forgotten, bench.coherence.is_coherent()), (Doubt::Forgotten(generation + 1), false));
    let sent = clock::boot_now();
    bench.coherence.renew(ZERO).await.unwrap();
    assert!(!bench.coherence.is_coherent(), "it settles");
    let doubt = tokio::time::timeout(LEASE * 4, bench.coherence.doubt(ZERO, digest(1), generation + 1)).await;
    let ran = clock::boot_now().since(sent);
    assert_eq!(doubt, Ok(Doubt::Unheard), "it is told without any news");
    assert!(ran >= LEASE && ran < LEASE * 3, "a lease and a moment, which settling does not end: {ran:?}");
    bench.coherence.bury([digest(1)]);
    assert_eq!(bench.coherence.doubt(ZERO, digest(1), generation + 1).await, Doubt::Revoked, "the better reason");
    tasks.stop(LEASE).await;
}

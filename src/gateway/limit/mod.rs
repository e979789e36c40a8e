//! The step "limit": one permit of the key's window for each request that comes this far (K13, protocol 2).
//!
//! The store decides in any 60 seconds; this side holds small grants of it. A permit is spent within its grant's life, a
//! second where few are left and twenty where many are, from the moment *before* it was asked for, by our own clock, so the
//! store may count a grant that it hears no more of as used up. Requests for a key share the call in flight; a full window is remembered until its end. A permit
//! that was taken is spent, whatever becomes of the request.
//!
//! `held` is the state of one key, without locks and clocks; here are the shards, the calls and the evidence.

mod held;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use http::HeaderValue;
use parking_lot::Mutex;

use self::held::{Grant, Held, Local, Seen, Turn};
use crate::clock;
use crate::coherence::Coherence;
use crate::domain::window::{GRANT_LIFE, GrantReport, WINDOW};
use crate::domain::{BootInstant, FirmTag, KeyId, Rejection};
use crate::metrics::{IntCounter, Metrics};
use crate::store::{Partition, PermitRequest, Permits, RecalledKey, Store, StoreError};

/// Locks, so that keys do not wait for each other; well above the number of cores.
const SHARDS: usize = 64;
/// A key's state is forgotten after this long without a request: its grants and its window are over by then.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
/// How often a shard looks for what can be forgotten.
const SWEEP_PAUSE: Duration = Duration::from_secs(30);
/// Calls made for one request: an answer that comes after its grant is over is worthless, and a second one is luck.
const CALLS_MAX: usize = 3;

/// Hands out permits.
pub struct Limiter {
    store: Arc<dyn Store>,
    coherence: Arc<Coherence>,
    shards: Box<[Mutex<Shard>]>,
    allowed: IntCounter,
    limited: IntCounter,
    reservations: IntCounter,
}

/// Evidence: one request counted against the window. Not `Clone`: it pays for one.
#[derive(PartialEq, Eq, Debug)]
pub struct Allowance {
    standing: Standing,
    taken_at: BootInstant,
}

/// Why a request got no permit.
#[derive(Clone, Debug)]
pub enum LimitError {
    /// The key's window is full.
    Full {
        /// After how long a permit is free; never too early.
        retry_after: Duration,
    },
    /// The store did not say.
    Store(StoreError),
}

/// How full a key's window is, as its owner may know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    limit: u32,
    remaining: u32,
    reset: Duration,
}

impl Limiter {
    /// A limiter that holds nothing yet.
    pub fn new(store: Arc<dyn Store>, coherence: Arc<Coherence>, metrics: &Metrics) -> Self {
        let decisions = |outcome| metrics.rate_limit_decisions.with_label_values(&[outcome]);
        Self {
            store,
            coherence,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            allowed: decisions("allowed"),
            limited: decisions("limited"),
            reservations: metrics.rate_limit_reservations.clone(),
        }
    }

    /// Takes one permit of `key`, of which there are `limit` in any 60 seconds. The key's firm is the tag's, and lives in
    /// the partition.
    ///
    /// # Errors
    /// `LimitError::Full` when there is none, `LimitError::Store` when the store was needed and did not answer.
    pub async fn take(&self, key: KeyId, (tag, partition): (FirmTag, Partition), limit: u32) -> Result<Allowance, LimitError> {
        let taken = match self.take_held(key, limit) {
            // Boxed, so that the requests that find a permit are spared the room for the call.
            (_, Local::Ask(turn)) => Box::pin(self.take_in_turn(key, (tag, partition), limit, turn)).await,
            (taken_at, Local::Taken(standing)) => Ok(Allowance { standing, taken_at }),
            (_, Local::Full(retry_after)) => Err(LimitError::Full { retry_after }),
        };
        match &taken {
            Ok(_) => self.allowed.inc(),
            Err(LimitError::Full { .. }) => self.limited.inc(),
            Err(LimitError::Store(_)) => {}
        }
        taken
    }

    /// What is known of a key's window without asking, for answers that take no permit. A key that nobody used here
    /// for a minute has a full one, as far as this replica knows.
    pub fn standing(&self, key: KeyId, limit: u32) -> Standing {
        let known = self.shard(key).lock().keys.get(&key).and_then(|held| held.standing(clock::boot_now()));
        known.unwrap_or(Standing { limit, remaining: limit, reset: WINDOW })
    }

    /// The fast path: one lock, no call, no allocation. Answers with its moment.
    fn take_held(&self, key: KeyId, limit: u32) -> (BootInstant, Local) {
        let mut shard = self.shard(key).lock();
        // Read under the lock, or one that waited for it would spend a permit in the past.
        let now = clock::boot_now();
        shard.sweep(now);
        (now, shard.keys.entry(key).or_default().take(now, limit))
    }

    /// Waits for its turn to call; whoever had it before may have brought enough for all, or a failure for all.
    async fn take_in_turn(&self, key: KeyId, place: (FirmTag, Partition), limit: u32, turn: Turn) -> Result<Allowance, LimitError> {
        let waiting_since = clock::boot_now();
        let _mine = turn.lock().await;
        let mut calls = 0;
        loop {
            match self.take_held(key, limit) {
                (taken_at, Local::Taken(standing)) => return Ok(Allowance { standing, taken_at }),
                (_, Local::Full(retry_after)) => return Err(LimitError::Full { retry_after }),
                (_, Local::Ask(_)) if calls == CALLS_MAX => {
                    return Err(LimitError::Store(StoreError::Unavailable("permits came too late".into())));
                }
                (_, Local::Ask(_)) => calls += 1,
            }
            if let Some(error) = self.with_held(key, |held| held.failure_since(waiting_since)) {
                return Err(LimitError::Store(error));
            }
            self.call(key, place, limit).await.map_err(LimitError::Store)?;
        }
    }

    /// Asks the store and puts its answer where every request of the key finds it.
    async fn call(&self, key: KeyId, (tag, partition): (FirmTag, Partition), limit: u32) -> Result<(), StoreError> {
        let asked_at = clock::boot_now();
        let (want, reports, recalls) = self.with_held(key, |held| {
            held.lives_in(partition);
            let (want, reports) = held.begin_call(asked_at);
            (want, reports, held.recalls())
        });
        let mut call = Call { limiter: self, key, reports };
        // Looked at after `recalls`, so that a store which forgets in between is noticed here or there.
        let Some(store) = self.coherence.trusted(partition) else { return Err(untrusted()) };
        let request = PermitRequest { tag, key, limit, want, reports: call.reports.clone(), store };
        self.reservations.inc();
        let answer = match tokio::time::timeout(GRANT_LIFE, self.store.permits(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unavailable("permits took longer than they live".into())),
        };
        // Counted from the answer, which is later than the store's decision: never too early.
        let now = clock::boot_now();
        self.with_held(key, |held| match answer {
            Ok(permits) => {
                call.reports.clear();
                match permits {
                    _ if held.recalls() != recalls => return Err(untrusted()),
                    Permits::Granted { id, count, life, remaining, reset } => {
                        held.granted(Grant::new(id, (count, life), limit, asked_at), Seen { limit, remaining, reset_at: now.plus(reset) });
                    }
                    Permits::Full { retry_after } => held.denied(now.plus(retry_after), limit),
                }
                Ok(())
            }
            Err(error) => {
                held.failed(now, error.clone());
                Err(error)
            }
        })
    }

    /// What the store of a partition must be told again, since it may have forgotten it. From here on no permit is spent
    /// that was granted before.
    pub fn recall(&self, partition: Partition) -> Vec<RecalledKey> {
        let mut recalled = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let now = clock::boot_now();
            let told = shard.keys.iter_mut().map(|(key, held)| RecalledKey { key: *key, uses: held.recall(now, partition) });
            recalled.extend(told.filter(|key| !key.uses.is_empty()));
        }
        recalled
    }

    fn with_held<T>(&self, key: KeyId, act: impl FnOnce(&mut Held) -> T) -> T {
        act(self.shard(key).lock().keys.entry(key).or_default())
    }

    fn shard(&self, key: KeyId) -> &Mutex<Shard> {
        let [.., last] = *key.uuid().as_bytes();
        self.shards.get(usize::from(last) % SHARDS).expect("a remainder of the number of shards is a shard")
    }
}

/// A call under way. If it fails or its caller goes away, the reports are told again with the next one: the store
/// ignores what it has heard before, and what it has not heard would count against the key for a minute.
struct Call<'a> {
    limiter: &'a Limiter,
    key: KeyId,
    reports: Vec<GrantReport>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.reports.is_empty() {
            let reports = std::mem::take(&mut self.reports);
            self.limiter.with_held(self.key, |held| held.put_back(reports));
        }
    }
}

#[derive(Default)]
struct Shard {
    keys: HashMap<KeyId, Held>,
    swept_at: BootInstant,
}

impl Shard {
    fn sweep(&mut self, now: BootInstant) {
        if now.since(self.swept_at) >= SWEEP_PAUSE {
            self.keys.retain(|_, held| now.since(held.touched_at()) < FORGOTTEN_AFTER);
            self.swept_at = now;
        }
    }
}

impl Allowance {
    /// How full the window is with this request counted.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// When the request was counted.
    pub fn taken_at(&self) -> BootInstant {
        self.taken_at
    }
}

impl LimitError {
    /// The refusal for the client; `store_away` says what a store that did not answer means to it.
    pub fn into_rejection(self, store_away: impl FnOnce(StoreError) -> Rejection) -> Rejection {
        match self {
            Self::Full { retry_after } => Rejection::WindowExhausted { retry_after },
            Self::Store(error) => store_away(error),
        }
    }
}

impl Standing {
    /// Permits in any 60 seconds.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Permits left at the moment.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Whole seconds, rounded up, until more permits will be free; at most 60.
    pub fn reset_seconds(&self) -> u64 {
        self.reset.as_secs() + u64::from(self.reset.subsec_nanos() > 0)
    }

    /// The value of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11 section 3).
    pub fn policy_header(&self) -> HeaderValue {
        header(["\"key\";q=", ";w="], [self.limit.into(), WINDOW.as_secs()])
    }

    /// The value of `RateLimit` (the same draft, section 4).
    pub fn limit_header(&self) -> HeaderValue {
        header(["\"key\";r=", ";t="], [self.remaining.into(), self.reset_seconds()])
    }
}

fn untrusted() -> StoreError {
    StoreError::Unavailable("it may have forgotten uses, and is being told of them".into())
}

/// Each word with its number behind it; two of these are in every answer.
fn header(words: [&str; 2], numbers: [u64; 2]) -> HeaderValue {
    let mut text = Vec::with_capacity(48);
    for (word, number) in words.into_iter().zip(numbers) {
        text.extend_from_slice(word.as_bytes());
        text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("digits, quotes and letters are a header value")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use uuid::Uuid;

    use super::*;
    use crate::domain::window::GrantId;
    use crate::domain::{FirmId, ReplicaId};
    use crate::store::conformance::new_key;
    use crate::store::embedded::EmbeddedStore;

    struct Bench {
        _folder: tempfile::TempDir,
        metrics: Metrics,
        limiter: Limiter,
        tag: FirmTag,
    }

    impl Bench {
        fn new() -> Self {
            Self::at(tempfile::tempdir().unwrap())
        }

        /// On what the folder holds already.
        fn at(folder: tempfile::TempDir) -> Self {
            let metrics = Metrics::new();
            let store = EmbeddedStore::open(folder.path()).unwrap();
            let coherence = Coherence::new(store.clone(), ReplicaId::new("replica-1"), Uuid::nil(), &metrics);
            coherence.join().now_or_never().expect("a store in this process").unwrap();
            let limiter = Limiter::new(store, coherence, &metrics);
            Self { _folder: folder, metrics, limiter, tag: FirmTag::of(&FirmId::parse("firm-1").unwrap()) }
        }

        async fn take(&self, key: u128, limit: u32) -> Result<Allowance, LimitError> {
            self.limiter.take(KeyId::new(Uuid::from_u128(key)), (self.tag, Partition(0)), limit).await
        }
    }

    fn wait_of(taken: Result<Allowance, LimitError>) -> Duration {
        match taken {
            Err(LimitError::Full { retry_after }) => retry_after,
            other => panic!("not full: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_thousand_in_a_row_pass_and_each_is_told_exactly_what_is_left() {
        let bench = Bench::new();
        let began = clock::boot_now();
        for number in 1..=1_000 {
            let standing = bench.take(1, 1_000).await.unwrap().standing();
            assert_eq!(standing.remaining(), 1_000 - number);
            assert!((1..=60).contains(&standing.reset_seconds()));
        }
        let took = clock::boot_now().since(began);
        assert!(took < Duration::from_secs(30), "too slow a machine to say anything: {took:?}");
        for _ in 0..100 {
            let retry_after = wait_of(bench.take(1, 1_000).await);
            let first_use_leaves = began.plus(WINDOW).since(clock::boot_now());
            assert!(retry_after >= first_use_leaves && retry_after <= WINDOW, "{retry_after:?}");
        }
        assert!(bench.take(2, 1_000).await.is_ok(), "another key's window is another");
        assert_eq!((bench.limiter.allowed.get(), bench.limiter.limited.get()), (1_001, 100));
        let calls = bench.metrics.rate_limit_reservations.get();
        assert!(calls < 150, "{calls} calls for 1,101 requests");
        let standing = bench.limiter.standing(KeyId::new(Uuid::from_u128(1)), 1_000);
        assert_eq!(standing.limit_header(), format!("\"key\";r=0;t={}", standing.reset_seconds()));
        assert_eq!(standing.policy_header(), "\"key\";q=1000;w=60");
        assert_eq!(bench.limiter.standing(KeyId::new(Uuid::from_u128(3)), 1_000).remaining(), 1_000, "nothing is known of it");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crowd_gets_exactly_the_limit_and_shares_its_calls() {
        let bench = Bench::new();
        let taken = join_all((0..1_500).map(|_| bench.take(1, 1_000))).await;
        assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 1_000);
        let calls = bench.metrics.rate_limit_reservations.get();
        assert!(calls < 150, "{calls} calls for 1,500 requests");
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_in_mid_call_costs_at_most_the_grant() {
        let folder = tempfile::tempdir().unwrap();
        let new = new_key("firm-1", "ann");
        let key = new.record.id.uuid().as_u128();
        EmbeddedStore::open(folder.path()).unwrap().create(new).await.unwrap();
        let bench = Bench::at(folder);
        // What was in the log lately is read on another thread when its key is first used after a start, so it is not ready at once.
        assert!(bench.take(key, 100).now_or_never().is_none());
        let mut passed = 0;
        while bench.take(key, 100).await.is_ok() {
            passed += 1;
        }
        assert!((99..=100).contains(&passed), "{passed}");
    }

    #[tokio::test]
    async fn reports_of_a_call_that_was_given_up_are_told_with_the_next() {
        let (bench, key) = (Bench::new(), KeyId::new(Uuid::from_u128(1)));
        let reports = vec![GrantReport { id: GrantId(1), uses: vec![Duration::ZERO] }];
        drop(Call { limiter: &bench.limiter, key, reports: reports.clone() });
        assert_eq!(bench.limiter.with_held(key, |held| held.begin_call(clock::boot_now()).1), reports);
    }

    #[tokio::test]
    async fn a_raised_limit_is_felt_at_once() {
        let bench = Bench::new();
        for _ in 0..5 {
            bench.take(1, 5).await.unwrap();
        }
        wait_of(bench.take(1, 5).await);
        assert!(bench.take(1, 6).await.is_ok());
        wait_of(bench.take(1, 6).await);
    }

    #[tokio::test]
    async fn what_nobody_uses_is_forgotten() {
        let bench = Bench::new();
        bench.take(1, 5).await.unwrap();
        let shard = bench.limiter.shard(KeyId::new(Uuid::from_u128(1)));
        let later = |seconds| clock::boot_now().plus(Duration::from_secs(seconds));
        shard.lock().sweep(later(110));
        assert_eq!(shard.lock().keys.len(), 1);
        shard.lock().sweep(later(150));
        assert_eq!(shard.lock().keys.len(), 0);
    }
}

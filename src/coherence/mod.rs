//! What this replica knows about changes to keys, and whether it may believe it (protocol 1).
//!
//! A cached key may be used only while this replica has applied every change that the store could have answered
//! for: `applied` is the epoch up to which every change is known here, `valid_until` says how long the store's last
//! answer may be trusted, and what was cached under an earlier `generation` is forgotten. Tombstones only grow.
//!
//! The order is the proof: a tombstone is added before `applied` moves, `applied` moves before `valid_until`; a reader
//! looks a key up between two readings of `applied`, and reads `valid_until` before the second. Changes are taken from
//! the store in epoch order, by `renew` alone. Another incarnation of the store may have forgotten sessions, revocations and uses: whoever meets one tells it what it
//! remembers, trusts nothing for a term (a lease and its margin) after that, and lets revocations of that time wait for
//! the whole term. Another data set is a stranger, and is not believed at all. Here are reading and renewing. `settling` waits for the others, `sessions` watches them, `telling` tells a store what
//! it forgot, `running` says when streams must end, `tombstones` (on disk: `ledger`) and `memory` remember, `pace` watches
//! its clock.

mod ledger;
mod memory;
mod pace;
#[cfg(test)]
pub(crate) mod puppet;
mod running;
mod sessions;
mod settling;
mod telling;
#[cfg(test)]
mod tests;
mod tombstones;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::domain::{BootInstant, KeyDigest, ReplicaId};
use crate::metrics::Metrics;
use crate::mutants::{self, Mutant};
use crate::store::{Epoch, Invalidations, Partition, RecalledKey, RenewalRequest, Store, StoreError, StoreIncarnation, Trust};

pub use self::memory::{Memory, Strangers};
use self::pace::Pace;
pub use self::running::Doubt;
use self::running::lease_end;
use self::sessions::Watched;
pub use self::settling::{Change, Confirmation, NotConfirmed};
use self::telling::{Telling, Told};
use self::tombstones::Buried;

/// A change whose answer was lost (a stalled disk, an error after the commit) was told to nobody; it is found within
/// this time. A renewal of a store in this process is one lock.
const UNTOLD_LOOK: Duration = Duration::from_millis(250);
/// How long a renewal may take before a lease is known.
const FIRST_RENEWAL_MAX: Duration = Duration::from_secs(1);
/// How often a waiting revocation looks for the other replicas' confirmations.
const CONFIRMATION_POLL: Duration = Duration::from_millis(5);
/// Clocks of gateway hosts may run at rates that differ by 1 %; a lease is shortened by that and by this much.
const LEASE_MARGIN: Duration = Duration::from_millis(20);
/// What a revoker waits beyond a lease, beside 1 % of it.
const TERM_MARGIN: Duration = Duration::from_millis(100);
/// How often a replica that asks for each request renews at least, so that running streams end within a second.
const ASKING_RENEWAL_MAX: Duration = Duration::from_millis(500);

/// This replica's knowledge of the store's changes.
pub struct Coherence {
    store: Arc<dyn Store>,
    replica: ReplicaId,
    incarnation: Uuid,
    partitions: Box<[Knowledge]>,
    memory: Memory,
    generation: AtomicU64,
    meetings: watch::Sender<u64>,
    is_asking: AtomicBool,
    watched: Watched,
    uses: OnceLock<RememberedUses>,
    metrics: Metrics,
}

/// What this replica remembers of the uses of a partition's keys. From the call on it spends no permit granted before.
pub type RememberedUses = Box<dyn Fn(Partition) -> Vec<RecalledKey> + Send + Sync>;

#[derive(Default)]
struct Knowledge {
    applied: AtomicU64,
    valid_until: AtomicU64,
    /// Until when running exchanges may go on without another word of the store.
    runs_until: AtomicU64,
    /// The longest lease that the store gave here, in nanoseconds; 0 where it tells by itself.
    lease: AtomicU64,
    /// Until when the store's incarnation is too new to be trusted: `NEVER` until it was told what it may have forgotten.
    settling_until: AtomicU64,
    /// Whether this start met first an incarnation in which others have settled.
    joins_settled: AtomicBool,
    /// Whether the log was told that the store cannot be told what it forgot.
    is_told_of_failure: AtomicBool,
    /// The incarnation that was met last.
    met: RwLock<Option<StoreIncarnation>>,
    /// Why the store that answers cannot be believed at all.
    trouble: RwLock<Option<String>>,
    /// Lets one renewal run at a time.
    renewing: tokio::sync::Mutex<()>,
    /// When the last question for requests was sent, and whether it was answered; lets one run at a time.
    asking: tokio::sync::Mutex<(BootInstant, bool)>,
    pace: Mutex<Pace>,
}

/// The moment before a change was asked for. If an incarnation of the store is met after it, the change may be lost.
#[derive(Clone, Copy, Debug)]
pub struct Moment(u64);

impl Coherence {
    /// Knows nothing yet, and says so, until [`Coherence::join`] has succeeded. Keeps nothing on disk.
    pub fn new(store: Arc<dyn Store>, replica: ReplicaId, incarnation: Uuid, metrics: &Metrics) -> Arc<Self> {
        Self::remembering(store, replica, incarnation, metrics, Memory::default())
    }

    /// The same for a store elsewhere, with what an earlier start wrote down about it.
    pub fn remembering(store: Arc<dyn Store>, replica: ReplicaId, incarnation: Uuid, metrics: &Metrics, memory: Memory) -> Arc<Self> {
        let partitions = (0..store.partitions()).map(|_| Knowledge::default()).collect();
        Arc::new(Self {
            store,
            replica,
            incarnation,
            partitions,
            memory,
            generation: AtomicU64::new(0),
            meetings: watch::Sender::new(0),
            is_asking: AtomicBool::new(false),
            watched: Watched::default(),
            uses: OnceLock::new(),
            metrics: metrics.clone(),
        })
    }

    /// Names who remembers the uses that a new incarnation of the store must be told of.
    pub fn recall_from(&self, uses: RememberedUses) {
        // Named once, at the start.
        let _ = self.uses.set(uses);
    }

    /// Learns the current epoch of every partition.
    ///
    /// # Errors
    /// When the store does not answer; `Unsafe` when it is not the one that is known, with the way out.
    pub async fn join(&self) -> Result<(), StoreError> {
        let joined = try_join_all(self.all_partitions().map(|partition| self.renew(partition))).await;
        // All begin to be trusted at the same time, or a replica that starts would be ready for some firms and not for others.
        if !self.partitions.iter().all(|knowledge| knowledge.joins_settled.load(Ordering::SeqCst)) {
            self.partitions.iter().for_each(|knowledge| knowledge.joins_settled.store(false, Ordering::SeqCst));
        }
        joined.map(drop).map_err(|error| match (error, self.memory.file()) {
            (StoreError::Foreign(why), Some(file)) => StoreError::Unsafe(format!(
                "{why}; the known one is written down in {file:?}: bring it back, or, if its keys are meant to be lost, start once with allow_unsafe: true or remove that file"
            )),
            (error, _) => error,
        })
    }

    /// Renews until asked to stop, each partition by itself, and writes down what was revoked.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = join_all(self.all_partitions().map(|partition| self.keep_renewed(partition))) => {}
            _ = join_all(self.all_partitions().map(|partition| self.watch_silence(partition))) => {}
            () = self.memory.tombstones.keep_saved(&self.metrics.tombstone_write_errors) => {}
        }
        // What the last requests revoked.
        self.memory.tombstones.save(&self.metrics.tombstone_write_errors).await;
    }

    /// Renews four times within each lease, sooner when the store hints at a change, and once more after each change,
    /// since only the next renewal tells that it was applied. At short intervals where the store tells by itself.
    async fn keep_renewed(&self, partition: Partition) {
        let mut hints = self.store.hints();
        let mut is_well = true;
        let mut telling: Option<Telling> = None;
        loop {
            let (began, before) = (clock::boot_now(), self.applied(partition));
            let renewed = self.renew(partition).await;
            self.show_lease();
            let pause = match renewed.map(|trust| (trust, trust.span())) {
                Ok((_, None)) => UNTOLD_LOOK,
                Ok((trust, Some(lease))) => {
                    if !is_well {
                        tracing::info!(partition = partition.0, "the coherence lease is renewed again");
                    }
                    is_well = true;
                    let told = self.tell(partition, &mut telling, began.plus(lease / 4)).await;
                    let usual = if matches!(trust, Trust::Asking(_)) { (lease / 4).min(ASKING_RENEWAL_MAX) } else { lease / 4 };
                    match told {
                        Told::All if self.applied(partition) == before => {
                            self.watch_sessions(partition).await;
                            self.settles_in(partition).unwrap_or(usual).min(usual.saturating_sub(clock::boot_now().since(began)))
                        }
                        Told::All | Told::Some => Duration::ZERO,
                        Told::Failed => usual.min(self.renewal_max()),
                    }
                }
                Err(error) => {
                    if is_well && matches!(error, StoreError::Unavailable(_)) {
                        tracing::warn!(partition = partition.0, %error, "cannot renew the coherence lease; requests are refused when it ends");
                    }
                    is_well = false;
                    self.renewal_max() / 2
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = hints.changed() => {}
            }
        }
    }

    fn all_partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.store.partitions()).map(Partition)
    }

    /// How long one renewal may take: less than a quarter of the lease, so that one that hangs does not cost the next.
    fn renewal_max(&self) -> Duration {
        let lease = Duration::from_nanos(self.partitions.iter().map(|knowledge| knowledge.lease.load(Ordering::SeqCst)).max().unwrap_or(0));
        if lease.is_zero() { FIRST_RENEWAL_MAX } else { lease / 5 }
    }

    /// The epoch up to which every change of a partition is known here.
    pub fn applied(&self, partition: Partition) -> Epoch {
        Epoch(self.knowledge(partition).applied.load(Ordering::SeqCst))
    }

    /// Until when what is known may be trusted.
    pub fn valid_until(&self, partition: Partition) -> BootInstant {
        BootInstant::from_nanos(self.knowledge(partition).valid_until.load(Ordering::SeqCst))
    }

    /// What was read from the store under an earlier generation must be read again.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The incarnation of the store that may be asked for permits now: one that was told of every use it may have lost.
    pub fn trusted(&self, partition: Partition) -> Option<StoreIncarnation> {
        let knowledge = self.knowledge(partition);
        // Read before it is asked whether it may be trusted: it never becomes an older one.
        let met = knowledge.met.read().clone().unwrap_or_default();
        let is_trusted = if self.is_asking() { self.is_settled(partition) } else { clock::boot_now() < self.valid_until(partition) };
        is_trusted.then_some(met)
    }

    fn is_settled(&self, partition: Partition) -> bool {
        let knowledge = self.knowledge(partition);
        clock::boot_now().nanos() >= knowledge.settling_until.load(Ordering::SeqCst) && knowledge.trouble.read().is_none()
    }

    /// How long until a renewal brings trust to a partition that has none yet, and has been told all.
    fn settles_in(&self, partition: Partition) -> Option<Duration> {
        let knowledge = self.knowledge(partition);
        let until = BootInstant::from_nanos(knowledge.settling_until.load(Ordering::SeqCst));
        let is_settling = knowledge.valid_until.load(Ordering::SeqCst) == 0 && until != BootInstant::NEVER;
        is_settling.then(|| until.since(clock::boot_now()))
    }

    /// Whether each request needs an answer of the store that was asked for after the request arrived.
    pub fn is_asking(&self) -> bool {
        self.is_asking.load(Ordering::SeqCst)
    }

    /// Asks the store whether everything it has changed is applied here; one question serves all that wait for it. Answers
    /// until when the proof is good; a moment that is past if there is none.
    pub async fn asked_since(&self, partition: Partition, arrived: BootInstant) -> BootInstant {
        let knowledge = self.knowledge(partition);
        let mut last = knowledge.asking.lock().await;
        if last.0 < arrived && !(last.1 && mutants::active(Mutant::AskEarlier)) {
            let sent = clock::boot_now();
            // Noted when it is answered: whoever asks may go away in between, and the next one then asks.
            *last = (sent, self.ask(partition).await.is_ok());
        }
        let (sent, is_answered) = *last;
        drop(last);
        if !is_answered || !self.is_settled(partition) {
            return BootInstant::default();
        }
        sent.plus(Duration::from_nanos(knowledge.lease.load(Ordering::SeqCst)))
    }

    /// A look that changes nothing, and a renewal only where there is news.
    async fn ask(&self, partition: Partition) -> Result<(), StoreError> {
        let sent = clock::boot_now();
        let (epoch, store) = in_time(self.renewal_max(), self.store.epoch(partition)).await?;
        let is_known = self.applied(partition) == epoch && self.knowledge(partition).met.read().as_ref() == Some(&store);
        if is_known {
            self.hear(partition, sent, Trust::Asking(Duration::ZERO));
            return Ok(());
        }
        self.renew(partition).await.map(drop)
    }

    /// Why the store that answers cannot be believed, if that is so; for readiness.
    pub fn trouble(&self) -> Option<String> {
        self.partitions.iter().find_map(|knowledge| knowledge.trouble.read().clone())
    }

    /// The moment before a change is asked for.
    pub fn moment(&self) -> Moment {
        Moment(*self.meetings.borrow())
    }

    /// Moves whenever another incarnation of the store was met, which may have forgotten anything.
    pub fn meetings(&self) -> watch::Receiver<u64> {
        self.meetings.subscribe()
    }

    /// How many partitions cannot be trusted now, and how many there are; for readiness.
    pub fn unproven_of(&self) -> (usize, usize) {
        let now = clock::boot_now().nanos();
        let is_proven = |knowledge: &&Knowledge| now < knowledge.valid_until.load(Ordering::SeqCst);
        (self.partitions.len() - self.partitions.iter().filter(is_proven).count(), self.partitions.len())
    }

    /// Whether every partition may be trusted now.
    #[cfg(test)]
    pub(crate) fn is_coherent(&self) -> bool {
        self.unproven_of().0 == 0
    }

    /// Whether a key is known here to have been revoked.
    pub fn is_revoked(&self, digest: &KeyDigest) -> bool {
        self.memory.tombstones.contains(digest)
    }

    /// Asks the store what changed and applies it. One at a time for each partition, so that changes keep their order.
    async fn renew(&self, partition: Partition) -> Result<Trust, StoreError> {
        let knowledge = self.knowledge(partition);
        let _one_at_a_time = knowledge.renewing.lock().await;
        let sent = clock::boot_now();
        let applied = self.applied(partition);
        let data_set = self.memory.data_set(partition);
        let request = RenewalRequest {
            replica: self.replica.clone(),
            incarnation: self.incarnation,
            partition,
            applied,
            data_set,
            settled: self.trusted(partition),
        };
        let answered = in_time(self.renewal_max(), self.store.renew(request.clone())).await;
        let renewal = answered.inspect_err(|error| self.disbelieve(partition, error))?;
        if mutants::active(Mutant::AckUnapplied) {
            self.store.renew(RenewalRequest { applied: renewal.epoch, ..request }).await?;
        }
        mutants::stall("renewal").await;
        if let Some(leap) = renewal.time.and_then(|time| knowledge.pace.lock().leap(sent, clock::boot_now(), time)) {
            self.metrics.store_clock_leaps.inc();
            tracing::error!(?leap, "the store's clock leapt forward; keys may have been used more often than their limit in this minute");
        }
        if let Some(lease) = renewal.trust.span() {
            knowledge.lease.fetch_max(u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
            self.is_asking.store(matches!(renewal.trust, Trust::Asking(_)), Ordering::SeqCst);
            // An epoch that went back is another past, whoever tells it.
            let is_known = renewal.epoch >= applied && knowledge.met.read().as_ref() == Some(&renewal.store);
            if !is_known {
                self.meet(partition, renewal.store, renewal.is_settled);
            }
        }
        self.believe(partition);
        match renewal.news {
            Invalidations::Revoked(digests) => self.bury(digests),
            Invalidations::Flush => self.forget_cache(),
        }
        knowledge.applied.store(renewal.epoch.0, Ordering::SeqCst);
        let valid_until = match renewal.trust.span() {
            None => BootInstant::NEVER,
            Some(_) if sent.nanos() < knowledge.settling_until.load(Ordering::SeqCst) => BootInstant::default(),
            Some(span) if mutants::active(Mutant::LeaseFromAnswer) => clock::boot_now().plus(span.mul_f64(0.99)),
            Some(span) => lease_end(sent, span),
        };
        knowledge.valid_until.fetch_max(valid_until.nanos(), Ordering::SeqCst);
        self.hear(partition, sent, renewal.trust);
        self.show_lease();
        Ok(renewal.trust)
    }

    /// Another incarnation of the store: nothing cached is believed any more, and nothing at all until it was told what it
    /// may have forgotten, and for a term after that, when every other replica that lives has done the same. Whoever starts
    /// beside one who has waited for that term need not wait again: it would learn nothing in it.
    fn meet(&self, partition: Partition, store: StoreIncarnation, is_settled: bool) {
        let knowledge = self.knowledge(partition);
        if let Err(error) = self.memory.learn(partition, &store.data_set) {
            tracing::error!(%error, "cannot write down which data set the store holds; the next start will take any");
        }
        // Held to the end, so that one who has told the earlier incarnation does not begin the term of this one.
        let mut met = knowledge.met.write();
        knowledge.settling_until.store(BootInstant::NEVER.nanos(), Ordering::SeqCst);
        knowledge.valid_until.store(0, Ordering::SeqCst);
        self.meetings.send_modify(|meetings| *meetings += 1);
        self.forget_cache();
        knowledge.joins_settled.store(is_settled && met.is_none(), Ordering::SeqCst);
        *met = Some(store);
        tracing::info!(
            partition = partition.0,
            is_settled,
            "met a new incarnation of the store; unless others have settled in it, requests are refused for a term"
        );
    }

    /// A store that is a stranger, or of another version, is not believed from now on, whatever lease was left.
    fn disbelieve(&self, partition: Partition, error: &StoreError) {
        if matches!(error, StoreError::Unavailable(_)) {
            return;
        }
        let knowledge = self.knowledge(partition);
        knowledge.valid_until.store(0, Ordering::SeqCst);
        let why = error.to_string();
        let is_new = knowledge.trouble.write().replace(why.clone()).is_none_or(|earlier| earlier != why);
        if is_new {
            tracing::error!(
                partition = partition.0, %error,
                "the store cannot be believed, so every request is refused with 503; bring the right one back, or restart this gateway, which then says what it needs"
            );
        }
    }

    fn believe(&self, partition: Partition) {
        let trouble = &self.knowledge(partition).trouble;
        if trouble.read().is_some() {
            *trouble.write() = None;
            tracing::info!(partition = partition.0, "the store is the known one again");
        }
    }

    fn forget_cache(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.memory.tombstones.rouse();
    }

    fn bury<I: IntoIterator<Item = KeyDigest>>(&self, digests: I) {
        if self.memory.tombstones.bury(digests) == Buried::OldestForgotten {
            self.forget_cache();
        }
    }

    fn show_lease(&self) {
        let soonest = self.partitions.iter().map(|knowledge| knowledge.valid_until.load(Ordering::SeqCst)).min().unwrap_or(0);
        let remaining = if soonest == BootInstant::NEVER.nanos() {
            f64::INFINITY
        } else {
            BootInstant::from_nanos(soonest).since(clock::boot_now()).as_secs_f64()
        };
        self.metrics.coherence_lease_remaining.set(remaining);
    }

    fn knowledge(&self, partition: Partition) -> &Knowledge {
        self.partitions.get(usize::from(partition.0)).expect("a store names only partitions that it has")
    }
}

/// How long after a change the lease of a replica that did not hear of it is over for sure.
fn term_of(lease: Duration) -> Duration {
    lease + TERM_MARGIN + lease / 100
}

async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = || StoreError::Unavailable(format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Coherence({})", self.replica.as_str())
    }
}

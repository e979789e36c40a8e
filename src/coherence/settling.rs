//! Making sure of a change: nobody is answered before every replica knows of it, or cannot act without learning of it.
//!
//! The wait ends when every session has applied the change, or a term after the commit, when the lease of whoever has not
//! is over. Any doubt is [`NotConfirmed`]: an error of the store, a time-out, another incarnation of it. To ask for the
//! change again makes sure again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;

use super::{CONFIRMATION_POLL, Coherence, FIRST_RENEWAL_MAX, Moment, in_time, term_of};
use crate::clock;
use crate::domain::{BootInstant, KeyDigest, ReplicaId};
use crate::store::{Epoch, Partition, SessionState, StoreError};

/// How long making sure of one change may take: longer than the longest term, shorter than its caller waits.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// A replica that has applied a change.
#[derive(Clone, Debug)]
pub struct Confirmation {
    /// Which replica.
    pub replica: ReplicaId,
    /// How long after the commit it was known to have applied it.
    pub confirmed_in: Duration,
}

/// A change that the store has committed.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Where.
    pub partition: Partition,
    /// The epoch that every replica must have applied.
    pub epoch: Epoch,
    /// When its answer was here: no earlier than the commit.
    pub committed: BootInstant,
    /// [`Coherence::moment`] before the store was asked.
    pub asked: Moment,
}

/// The change is committed, but it could not be made sure that every replica knows of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the change is made, but not every replica has confirmed it")]
pub struct NotConfirmed;

impl Coherence {
    /// Applies a committed creation here and waits until every replica has, so that the key works everywhere.
    ///
    /// # Errors
    /// [`NotConfirmed`] when the store did not let us make sure.
    pub async fn settle_creation(&self, change: Change) -> Result<Vec<Confirmation>, NotConfirmed> {
        tokio::time::timeout(SETTLE_MAX, self.settle(change)).await.map_err(|_| NotConfirmed)?
    }

    /// Applies a committed revocation here and waits until no replica can accept the key any more (K7), and until this
    /// replica's disk knows it too.
    ///
    /// # Errors
    /// [`NotConfirmed`] on any doubt: the caller must not answer 200. To revoke again makes sure again.
    pub async fn settle_revocation(&self, change: Change, revoked: KeyDigest) -> Result<Vec<Confirmation>, NotConfirmed> {
        self.bury([revoked]);
        let saved = self.memory.tombstones.save(&self.metrics.tombstone_write_errors);
        let settled = async { tokio::join!(self.settle(change), saved).0 };
        let settled = tokio::time::timeout(SETTLE_MAX, settled).await.map_err(|_| NotConfirmed).flatten();
        if settled.is_err() && self.moment().0 != change.asked.0 {
            // The incarnation that was met in between was told what was buried until then, which was not this yet.
            in_time(FIRST_RENEWAL_MAX, self.store.reassert(change.partition, vec![revoked])).await.map_err(|_| NotConfirmed)?;
        }
        let confirmations = settled?;
        self.metrics.revocation_propagation.observe(clock::boot_now().since(change.committed).as_secs_f64());
        Ok(confirmations)
    }

    async fn settle(&self, change: Change) -> Result<Vec<Confirmation>, NotConfirmed> {
        let Change { partition, epoch, committed, asked } = change;
        // At least once, also where the epoch is known: who answers may be another incarnation of the store, which has
        // forgotten the sessions that would have to be waited for.
        loop {
            self.renew(partition).await.map_err(|_| NotConfirmed)?;
            if self.moment().0 != asked.0 {
                // The store may have forgotten the change that is being settled.
                return Err(NotConfirmed);
            }
            if self.applied(partition) >= epoch {
                break;
            }
            tokio::time::sleep(CONFIRMATION_POLL).await;
        }
        let mut confirmations = vec![Confirmation { replica: self.replica.clone(), confirmed_in: clock::boot_now().since(committed) }];
        loop {
            let sessions = self.sessions(partition).await.map_err(|_| NotConfirmed)?;
            for session in sessions.iter().filter(|session| session.applied >= epoch) {
                if confirmations.iter().all(|known| known.replica != session.replica) {
                    let confirmed_in = clock::boot_now().since(committed);
                    confirmations.push(Confirmation { replica: session.replica.clone(), confirmed_in });
                }
            }
            if self.moment().0 != asked.0 {
                return Err(NotConfirmed);
            }
            let now = clock::boot_now();
            let is_done = |session: &SessionState| {
                session.applied >= epoch
                    || session.lease.is_zero()
                    || self.is_own(session)
                    || self.watched.is_silent(partition, session, now)
            };
            let everyone = sessions.iter().all(is_done) && !self.is_settling(partition, committed);
            if everyone || now >= committed.plus(self.term(partition, &sessions)) {
                return Ok(confirmations);
            }
            self.show_lease();
            tokio::time::sleep(CONFIRMATION_POLL).await;
        }
    }

    /// The sessions of a partition; notes when each was first seen as it is. An incarnation that was not met may have
    /// forgotten some, so its word is worth nothing.
    pub(super) async fn sessions(&self, partition: Partition) -> Result<Vec<SessionState>, StoreError> {
        let sessions = in_time(FIRST_RENEWAL_MAX, self.store.sessions(partition)).await?;
        if self.knowledge(partition).met.read().as_ref().is_some_and(|met| *met != sessions.store) {
            return Err(StoreError::Unavailable("another incarnation of it tells of sessions".into()));
        }
        self.watched.note(partition, &sessions.all, clock::boot_now());
        Ok(sessions.all)
    }

    /// Trusts nothing any more, and takes this replica's sessions out of the store, so that no revocation waits for a replica
    /// that is gone. `is_idle` says whether no request is under way; it is asked when none can be accepted any more, and
    /// otherwise the sessions stay. Best effort: where the store does not answer, a revocation waits for a term.
    pub async fn leave(&self, is_idle: impl Fn() -> bool) {
        let left = join_all(self.all_partitions().map(|partition| self.leave_one(partition, &is_idle))).await;
        if let Some(error) = left.into_iter().find_map(Result::err) {
            tracing::warn!(%error, "this replica's session stays in the store for a while; a revocation may wait a term for it");
        }
    }

    async fn leave_one(&self, partition: Partition, is_idle: impl Fn() -> bool) -> Result<(), StoreError> {
        let knowledge = self.knowledge(partition);
        // Held to the end: a renewal that is still under way would bring the session and the trust back.
        let _no_renewal = in_time(FIRST_RENEWAL_MAX, async { Ok(knowledge.renewing.lock().await) }).await?;
        knowledge.settling_until.store(BootInstant::NEVER.nanos(), Ordering::SeqCst);
        knowledge.valid_until.store(0, Ordering::SeqCst);
        if !is_idle() {
            return Err(StoreError::Unavailable("requests are still under way".into()));
        }
        let own: Vec<SessionState> = self.sessions(partition).await?.into_iter().filter(|session| self.is_own(session)).collect();
        in_time(FIRST_RENEWAL_MAX, self.store.forget(partition, own)).await
    }

    fn is_own(&self, session: &SessionState) -> bool {
        session.replica == self.replica && session.incarnation == self.incarnation
    }

    /// Whether the store's incarnation was still new when the change was committed: then sessions may be missing.
    fn is_settling(&self, partition: Partition, committed: BootInstant) -> bool {
        let knowledge = self.knowledge(partition);
        knowledge.lease.load(Ordering::SeqCst) > 0 && committed.nanos() < knowledge.settling_until.load(Ordering::SeqCst)
    }

    /// How long a revoker waits for those who do not answer: the longest lease of all, and the margin.
    fn term(&self, partition: Partition, sessions: &[SessionState]) -> Duration {
        let own = Duration::from_nanos(self.knowledge(partition).lease.load(Ordering::SeqCst));
        sessions.iter().map(|session| term_of(session.lease)).fold(term_of(own), Duration::max)
    }

    /// Looks at the other sessions, so that their silence is known when a revocation needs it, and has those forgotten
    /// that have been silent for long.
    pub(super) async fn watch_sessions(&self, partition: Partition) {
        let Ok(sessions) = self.sessions(partition).await else { return };
        let (now, lease) = (clock::boot_now(), Duration::from_nanos(self.knowledge(partition).lease.load(Ordering::SeqCst)));
        let is_gone = |session: &SessionState| !self.is_own(session) && self.watched.is_gone(partition, session, lease, now);
        let gone: Vec<SessionState> = sessions.into_iter().filter(is_gone).collect();
        if !gone.is_empty() && in_time(FIRST_RENEWAL_MAX, self.store.forget(partition, gone)).await.is_err() {
            tracing::debug!("silent sessions stay for now");
        }
    }
}

//! A store that is, says and holds back what a test wants, and remembers what it was asked.
//!
//! Answers are decided when a call is made, as a real store's are, and may be held on their way, so that a late one tells
//! of a time that is past. Only what the rules of coherence need is there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::domain::{FirmId, FirmTag, KeyDigest, KeyId, KeyRecord, ReplicaId, Sequence};
use crate::store::{
    ActivityPage, ActivityQuery, AuditBatch, Creation, Epoch, Found, Invalidations, KeyView, KnownUser, NewKey, Partition, PermitRequest,
    Permits, RecalledKey, Renewal, RenewalRequest, Revocation, RevokeRequest, Safeguard, SessionState, Sessions, Store, StoreError,
    StoreIncarnation, Trust,
};

pub(crate) const LEASE: Duration = Duration::from_millis(500);

/// What the store is, and what it was asked.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    pub(crate) run: &'static str,
    /// What the next renewals tell beside the epoch.
    pub(crate) revoked: VecDeque<KeyDigest>,
    pub(crate) others: Vec<SessionState>,
    pub(crate) forgotten: Vec<ReplicaId>,
    /// The run that tells of sessions, if it is another one.
    pub(crate) sessions_of: Option<&'static str>,
    pub(crate) acknowledged: Vec<u64>,
    pub(crate) questions: usize,
    pub(crate) reasserted: Vec<usize>,
    pub(crate) recalled: usize,
    pub(crate) is_asking: bool,
    pub(crate) is_foreign: bool,
    pub(crate) is_settled: bool,
    /// What the last renewal said to be trusted.
    pub(crate) trusted: Option<StoreIncarnation>,
    /// What every look-up finds, and how many there were.
    pub(crate) record: Option<KeyRecord>,
    pub(crate) finds: usize,
}

#[derive(Default)]
pub(crate) struct Puppet {
    pub(crate) state: Mutex<State>,
    /// While set, answers to renewals, questions and look-ups wait for the notice, having been decided before.
    pub(crate) holds: AtomicBool,
    pub(crate) release: Notify,
}

impl Puppet {
    pub(crate) fn incarnation(run: &str) -> StoreIncarnation {
        StoreIncarnation { data_set: "keys".into(), run: run.into() }
    }

    async fn held<T>(&self, answer: T) -> T {
        if self.holds.load(Ordering::SeqCst) {
            self.release.notified().await;
        }
        answer
    }
}

fn unasked<T>() -> BoxFuture<'static, Result<T, StoreError>> {
    async { panic!("nothing here asks this") }.boxed()
}

impl Store for Puppet {
    fn partitions(&self) -> u16 {
        1
    }

    fn renew(&self, request: RenewalRequest) -> BoxFuture<'_, Result<Renewal, StoreError>> {
        let mut state = self.state.lock();
        state.acknowledged.push(request.applied.0);
        state.trusted = request.settled;
        if state.is_foreign {
            return async { Err(StoreError::Foreign("another".into())) }.boxed();
        }
        let renewal = Renewal {
            epoch: Epoch(state.epoch),
            news: Invalidations::Revoked(state.revoked.drain(..).collect()),
            trust: if state.is_asking { Trust::Asking(LEASE) } else { Trust::Lease(LEASE) },
            store: Self::incarnation(state.run),
            is_settled: state.is_settled,
            time: None,
        };
        drop(state);
        self.held(Ok(renewal)).boxed()
    }

    fn epoch(&self, _partition: Partition) -> BoxFuture<'_, Result<(Epoch, StoreIncarnation), StoreError>> {
        let mut state = self.state.lock();
        state.questions += 1;
        let answer = (Epoch(state.epoch), Self::incarnation(state.run));
        drop(state);
        self.held(Ok(answer)).boxed()
    }

    fn sessions(&self, _partition: Partition) -> BoxFuture<'_, Result<Sessions, StoreError>> {
        let state = self.state.lock();
        let store = Self::incarnation(state.sessions_of.unwrap_or(state.run));
        let all = state.others.clone();
        async { Ok(Sessions { store, all }) }.boxed()
    }

    fn forget(&self, _partition: Partition, sessions: Vec<SessionState>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.state.lock().forgotten.extend(sessions.into_iter().map(|session| session.replica));
        async { Ok(()) }.boxed()
    }

    fn reassert(&self, _partition: Partition, revoked: Vec<KeyDigest>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.state.lock().reasserted.push(revoked.len());
        async { Ok(()) }.boxed()
    }

    fn recall(&self, _partition: Partition, keys: Vec<RecalledKey>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.state.lock().recalled += keys.len();
        async { Ok(()) }.boxed()
    }

    fn hints(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }

    fn find(&self, _tag: FirmTag, _digest: KeyDigest) -> BoxFuture<'_, Result<Found, StoreError>> {
        let mut state = self.state.lock();
        state.finds += 1;
        let found = Found { record: state.record.clone(), partition: Partition(0), epoch: Epoch(state.epoch) };
        drop(state);
        self.held(Ok(found)).boxed()
    }

    fn permits(&self, _request: PermitRequest) -> BoxFuture<'_, Result<Permits, StoreError>> {
        unasked()
    }

    fn note_user(&self, _firm: FirmId, _user: KnownUser) -> BoxFuture<'_, Result<(), StoreError>> {
        unasked()
    }

    fn users(&self, _firm: FirmId) -> BoxFuture<'_, Result<Vec<KnownUser>, StoreError>> {
        unasked()
    }

    fn create(&self, _key: NewKey) -> BoxFuture<'_, Result<Creation, StoreError>> {
        unasked()
    }

    fn revoke(&self, _request: RevokeRequest) -> BoxFuture<'_, Result<Revocation, StoreError>> {
        unasked()
    }

    fn key(&self, _firm: FirmId, _key: KeyId) -> BoxFuture<'_, Result<Option<KeyView>, StoreError>> {
        unasked()
    }

    fn keys(&self, _firm: FirmId) -> BoxFuture<'_, Result<Vec<KeyView>, StoreError>> {
        unasked()
    }

    fn ship(&self, _batch: AuditBatch) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        unasked()
    }

    fn shipped(&self, _spool: Uuid) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        unasked()
    }

    fn activity(&self, _query: ActivityQuery) -> BoxFuture<'_, Result<ActivityPage, StoreError>> {
        unasked()
    }

    fn safeguards(&self) -> BoxFuture<'_, Result<Vec<Safeguard>, StoreError>> {
        unasked()
    }
}

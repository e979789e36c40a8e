//! Any store, with the time and the errors of each call in the metrics, and the renewals' in its health.
//!
//! It changes no answer. A renewal that its caller gave up counts as failed, because a store that is frozen says nothing.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use crate::clock;
use crate::domain::{FirmId, FirmTag, KeyDigest, KeyId, Sequence};
use crate::metrics::Metrics;

use super::{
    ActivityPage, ActivityQuery, AuditBatch, Creation, Epoch, Found, Health, KeyView, KnownUser, NewKey, Partition, PermitRequest, Permits,
    RecalledKey, Renewal, RenewalRequest, Revocation, RevokeRequest, Safeguard, SessionState, Sessions, Store, StoreError,
    StoreIncarnation,
};

/// A store that is watched.
pub struct MeteredStore {
    inner: Arc<dyn Store>,
    metrics: Metrics,
    health: Arc<Health>,
}

impl MeteredStore {
    /// Watches `inner`.
    pub fn new(inner: Arc<dyn Store>, metrics: &Metrics, health: &Arc<Health>) -> Arc<Self> {
        Arc::new(Self { inner, metrics: metrics.clone(), health: health.clone() })
    }

    fn timed<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(async move {
            let began = clock::boot_now();
            let result = call.await;
            let took = clock::boot_now().since(began).as_secs_f64();
            self.metrics.store_duration.with_label_values(&[operation]).observe(took);
            if let Err(error) = &result {
                self.metrics.store_errors.with_label_values(&[operation]).inc();
                self.health.call_failed(operation, error);
            }
            result
        })
    }
}

impl Store for MeteredStore {
    fn partitions(&self) -> u16 {
        self.inner.partitions()
    }

    fn find(&self, tag: FirmTag, digest: KeyDigest) -> BoxFuture<'_, Result<Found, StoreError>> {
        self.timed("find", self.inner.find(tag, digest))
    }

    fn renew(&self, request: RenewalRequest) -> BoxFuture<'_, Result<Renewal, StoreError>> {
        let partition = request.partition;
        let call = self.timed("renew", self.inner.renew(request));
        Box::pin(async move {
            let mut abandoned = Abandoned { store: self, partition, is_over: false };
            let result = call.await;
            abandoned.is_over = true;
            self.health.renewed(partition, &result);
            result
        })
    }

    fn epoch(&self, partition: Partition) -> BoxFuture<'_, Result<(Epoch, StoreIncarnation), StoreError>> {
        self.timed("epoch", self.inner.epoch(partition))
    }

    fn recall(&self, partition: Partition, keys: Vec<RecalledKey>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed("recall", self.inner.recall(partition, keys))
    }

    fn sessions(&self, partition: Partition) -> BoxFuture<'_, Result<Sessions, StoreError>> {
        self.timed("sessions", self.inner.sessions(partition))
    }

    fn forget(&self, partition: Partition, sessions: Vec<SessionState>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed("forget", self.inner.forget(partition, sessions))
    }

    fn reassert(&self, partition: Partition, revoked: Vec<KeyDigest>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed("reassert", self.inner.reassert(partition, revoked))
    }

    fn hints(&self) -> watch::Receiver<u64> {
        self.inner.hints()
    }

    fn permits(&self, request: PermitRequest) -> BoxFuture<'_, Result<Permits, StoreError>> {
        self.timed("permits", self.inner.permits(request))
    }

    fn create(&self, key: NewKey) -> BoxFuture<'_, Result<Creation, StoreError>> {
        self.timed("create", self.inner.create(key))
    }

    fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revocation, StoreError>> {
        self.timed("revoke", self.inner.revoke(request))
    }

    fn key(&self, firm: FirmId, key: KeyId) -> BoxFuture<'_, Result<Option<KeyView>, StoreError>> {
        self.timed("key", self.inner.key(firm, key))
    }

    fn keys(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KeyView>, StoreError>> {
        self.timed("keys", self.inner.keys(firm))
    }

    fn note_user(&self, firm: FirmId, user: KnownUser) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed("note_user", self.inner.note_user(firm, user))
    }

    fn users(&self, firm: FirmId) -> BoxFuture<'_, Result<Vec<KnownUser>, StoreError>> {
        self.timed("users", self.inner.users(firm))
    }

    fn ship(&self, batch: AuditBatch) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        self.timed("ship", self.inner.ship(batch))
    }

    fn shipped(&self, spool: Uuid) -> BoxFuture<'_, Result<Sequence, StoreError>> {
        self.timed("shipped", self.inner.shipped(spool))
    }

    fn activity(&self, query: ActivityQuery) -> BoxFuture<'_, Result<ActivityPage, StoreError>> {
        self.timed("activity", self.inner.activity(query))
    }

    fn safeguards(&self) -> BoxFuture<'_, Result<Vec<Safeguard>, StoreError>> {
        self.timed("safeguards", self.inner.safeguards())
    }
}

/// A renewal whose caller waits no more has failed too: a store that is frozen answers nothing, not even an error.
struct Abandoned<'a> {
    store: &'a MeteredStore,
    partition: Partition,
    is_over: bool,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.store.metrics.store_errors.with_label_values(&["renew"]).inc();
            self.store.health.failed(self.partition, &StoreError::Unavailable("no answer in time".into()));
        }
    }
}

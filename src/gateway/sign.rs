//! Step 6: the signed header that tells an upstream who is asking (contract, "The assertion").
//!
//! A shared assertion is signed once for a key and an upstream and reused for half its lifetime, so that at least the
//! other half is left when it arrives. A per-request one is bound to its request: `jti` is the request id, `htm` and
//! `htu` name method and target. Either way `exp` never reaches further than 5 s past the moment until which this
//! replica could prove that the key is live, so that a frozen process hands out tokens that have expired.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

use crate::clock;
use crate::domain::{BootInstant, RequestId, Timestamp};
use crate::signing::KeyRing;

use super::policy::Grant;

/// How far past the proof of a live key an assertion may be valid (contract).
const BEYOND_PROOF_MAX: Duration = Duration::from_secs(5);

static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// Evidence: a header that an upstream can verify.
#[derive(Debug)]
pub struct Assertion {
    header: HeaderName,
    value: HeaderValue,
}

impl Assertion {
    /// The header's name, and the compact JWS.
    pub fn into_header(self) -> (HeaderName, HeaderValue) {
        (self.header, self.value)
    }
}

/// Signs assertions with one set of keys and one configuration.
#[derive(Debug)]
pub struct Signer {
    keys: Arc<KeyRing>,
    header: HeaderName,
    issuer: String,
    lifetime: Duration,
    /// Tells assertions of this signer from those that an earlier configuration left in the cache.
    generation: u64,
}

/// The shared assertions of one key.
#[derive(Debug, Default)]
pub struct AssertionCache(Mutex<Vec<Shared>>);

impl AssertionCache {
    /// Gives up what will not be shown any more: of a key that rests, they are most of what it takes.
    pub(super) fn forget_stale(&self, now: Timestamp) {
        let mut cache = self.0.lock();
        cache.retain(|shared| shared.fresh_from <= now && now < shared.fresh_until);
        cache.shrink_to_fit();
    }
}

#[derive(Debug)]
struct Shared {
    generation: u64,
    upstream: Arc<str>,
    value: HeaderValue,
    fresh_from: Timestamp,
    fresh_until: Timestamp,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: Uuid,
    firm_id: &'a str,
    permissions: &'a crate::domain::FrozenPermissions,
    creator: &'a str,
    iat: i64,
    exp: i64,
    jti: Uuid,
    ver: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    htm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    htu: Option<&'a str>,
}

/// What binds an assertion to one request.
struct Binding<'a> {
    request: RequestId,
    method: &'a Method,
    target: &'a str,
}

impl Signer {
    /// Signs with `keys`; `lifetime` is from `iat` to `exp`.
    pub fn new(keys: Arc<KeyRing>, header: HeaderName, issuer: String, lifetime: Duration) -> Self {
        Self { keys, header, issuer, lifetime, generation: GENERATIONS.fetch_add(1, Ordering::Relaxed) }
    }

    /// The public keys, as upstreams fetch them.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// The assertion for a granted request, as of `now`.
    pub fn assert(&self, grant: &Grant, request: RequestId, method: &Method, now: Timestamp) -> Assertion {
        Assertion { header: self.header.clone(), value: self.value(grant, request, method, now) }
    }

    fn value(&self, grant: &Grant, request: RequestId, method: &Method, now: Timestamp) -> HeaderValue {
        if grant.asserts_each_request() {
            let target = grant.target_as_forwarded().as_str();
            let binding = Binding { request, method, target };
            return self.sign(grant, now, Some(binding)).0;
        }
        let mut cache = grant.principal().cached().assertions.0.lock();
        let known = cache.iter().find(|shared| shared.generation == self.generation && *shared.upstream == **grant.upstream_name());
        if let Some(shared) = known.filter(|shared| shared.fresh_from <= now && now < shared.fresh_until) {
            return shared.value.clone();
        }
        let (value, valid_for) = self.sign(grant, now, None);
        cache.retain(|shared| shared.generation == self.generation && *shared.upstream != **grant.upstream_name());
        // A list grows by four at first, and most keys are used for one upstream.
        cache.reserve_exact(1);
        cache.push(Shared {
            generation: self.generation,
            upstream: grant.upstream_name().clone(),
            value: value.clone(),
            fresh_from: now,
            fresh_until: now.plus(valid_for / 2),
        });
        value
    }

    fn sign(&self, grant: &Grant, now: Timestamp, binding: Option<Binding<'_>>) -> (HeaderValue, Duration) {
        let record = grant.principal().record();
        let valid_for = self.valid_for(grant.principal().proven_until());
        let claims = Claims {
            iss: &self.issuer,
            aud: grant.upstream_name(),
            sub: record.id.uuid(),
            firm_id: record.firm_id.as_str(),
            permissions: &record.permissions,
            creator: record.creator.as_str(),
            iat: now.seconds(),
            exp: now.plus(valid_for).seconds(),
            jti: binding.as_ref().map_or_else(clock::fresh_uuid, |binding| binding.request.uuid()),
            ver: 1,
            htm: binding.as_ref().map(|binding| binding.method.as_str()),
            htu: binding.as_ref().map(|binding| binding.target),
        };
        let token = self.keys.sign(&claims);
        let mut value = HeaderValue::try_from(token).expect("a compact JWS is base64url and dots");
        value.set_sensitive(true);
        (value, valid_for)
    }

    fn valid_for(&self, proven_until: BootInstant) -> Duration {
        self.lifetime.min(proven_until.plus(BEYOND_PROOF_MAX).since(clock::boot_now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resting_key_gives_up_its_assertions_and_a_busy_one_keeps_them() {
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let shared = |from, until| Shared {
            generation: 1,
            upstream: "ledger".into(),
            value: HeaderValue::from_static("signed"),
            fresh_from: at(from),
            fresh_until: at(until),
        };
        let cache = AssertionCache::default();
        cache.0.lock().extend([shared(0, 15), shared(10, 25)]);
        cache.forget_stale(at(14));
        assert_eq!(cache.0.lock().len(), 2);
        cache.forget_stale(at(20));
        assert_eq!(cache.0.lock().iter().map(|kept| kept.fresh_from).collect::<Vec<_>>(), [at(10)]);
        cache.forget_stale(at(9));
        assert_eq!(cache.0.lock().capacity(), 0, "signed in what is the future since the clock was set back");
    }
}

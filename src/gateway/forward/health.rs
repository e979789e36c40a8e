//! Whether an endpoint is worth trying: what its connections say, and what it answers when asked.
//!
//! An endpoint to which no connection can be made is left alone for a while that doubles with every failure; when the
//! while is over, one request is let through to find out. Where a health check is configured, its word counts as well.
//! An endpoint that answers, with whatever status, is not left alone for that.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Method;
use http::header::{HeaderMap, HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;

use super::body::RequestBody;
use super::connection::{self, Connection, Opened};
use super::outgoing::{Errand, Outgoing};
use super::pool::Pool;
use super::send::Trouble;
use crate::clock;
use crate::config;
use crate::deadline::within;
use crate::domain::BootInstant;
use crate::tasks::Tasks;

/// How long an endpoint is left alone after its first failure.
const REST_MIN: Duration = Duration::from_secs(1);
/// How long at most, so that a repaired endpoint is back within half a minute.
const REST_MAX: Duration = Duration::from_secs(30);
/// Failed checks in a row before an endpoint counts as ill: one may be bad luck.
const FAILED_CHECKS_MAX: u32 = 2;

/// What is thought of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Standing {
    failures: AtomicU32,
    /// When it may be tried again, in nanoseconds since boot.
    rests_until: AtomicU64,
    failed_checks: AtomicU32,
    is_ill: AtomicBool,
}

impl Standing {
    /// Whether requests go there as a matter of course.
    pub(super) fn is_good(&self) -> bool {
        self.failures.load(Ordering::Relaxed) == 0 && !self.is_ill.load(Ordering::Relaxed)
    }

    /// Whether this caller is the one to find out if it works again; true for one caller in each rest.
    pub(super) fn claims_trial(&self) -> bool {
        let failures = self.failures.load(Ordering::Relaxed);
        let until = self.rests_until.load(Ordering::Acquire);
        let now = clock::boot_now();
        if failures == 0 || self.is_ill.load(Ordering::Relaxed) || now.nanos() < until {
            return false;
        }
        self.rests_until.compare_exchange(until, now.plus(rest(failures)).nanos(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// A connection was made.
    pub(super) fn connected(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// No connection could be made.
    pub(super) fn not_connected(&self) {
        self.rest_from(clock::boot_now());
    }

    fn rest_from(&self, now: BootInstant) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.rests_until.store(now.plus(rest(failures)).nanos(), Ordering::Release);
    }

    fn check_passed(&self) {
        self.failed_checks.store(0, Ordering::Relaxed);
        self.is_ill.store(false, Ordering::Relaxed);
        self.connected();
    }

    fn check_failed(&self) {
        if self.failed_checks.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= FAILED_CHECKS_MAX {
            self.is_ill.store(true, Ordering::Relaxed);
        }
    }
}

fn rest(failures: u32) -> Duration {
    REST_MIN.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(REST_MAX)
}

/// Asks an endpoint at every interval, until the pool is gone or the process drains.
pub(super) async fn check_forever(pool: Weak<Pool>, health: config::Health, tasks: Tasks) {
    let stopping = tasks.stopping();
    loop {
        let Some(pool) = pool.upgrade() else { return };
        let was_good = pool.standing().is_good();
        match check(&pool, &health, &tasks).await {
            Ok(()) => pool.standing().check_passed(),
            Err(trouble) => {
                pool.standing().check_failed();
                tracing::debug!(endpoint = %pool.endpoint(), ?trouble, "a health check failed");
            }
        }
        let is_good = pool.standing().is_good();
        if was_good != is_good {
            tracing::warn!(endpoint = %pool.endpoint(), is_good, "an upstream endpoint changed its health");
        }
        drop(pool);
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(health.interval) => {}
        }
    }
}

/// One question over a connection of its own, which so proves that connections can be made; any 2xx is health.
async fn check(pool: &Arc<Pool>, health: &config::Health, tasks: &Tasks) -> Result<(), Trouble> {
    let endpoint = pool.endpoint();
    let limits = pool.limits();
    let host = HeaderValue::try_from(endpoint.authority()).map_err(|_| Trouble::Broken)?;
    let path: PathAndQuery = health.path.parse().map_err(|_| Trouble::Broken)?;
    let mut connection = match connection::open(pool.dialer(), endpoint, limits.connect, tasks).await? {
        Opened::Http1(connection) => Connection::Http1(connection),
        Opened::Http2(shared) => Connection::Http2(shared.stream().ok_or(Trouble::Broken)?),
    };
    let fields = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(concat!("assure-gateway/", env!("CARGO_PKG_VERSION"))))]);
    let request = Outgoing { method: &Method::GET, target: &path, host: &host, fields: &fields, errand: Errand::Own };
    connection.begin(&request, RequestBody::nothing(), endpoint)?;
    let answered = poll_fn(|context| connection.poll_answer(context));
    let answer = within(limits.response_header, answered).await.ok_or(Trouble::Timeout)?;
    let status = answer.map_err(|_| Trouble::Broken)?.status();
    if let Connection::Http1(connection) = connection {
        connection.close();
    }
    if status.is_success() { Ok(()) } else { Err(Trouble::Broken) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_endpoint_is_tried_again_by_one_caller_after_its_rest() {
        let standing = Standing::default();
        assert!(standing.is_good());
        standing.not_connected();
        assert!(!standing.is_good() && !standing.claims_trial());
        standing.connected();
        standing.rest_from(clock::boot_now().minus(Duration::from_secs(60)));
        assert!(standing.claims_trial());
        assert!(!standing.claims_trial());
        standing.connected();
        assert!(standing.is_good());
    }

    #[test]
    fn rests_double_up_to_a_bound() {
        let rests: Vec<_> = (1..8).map(|failures| rest(failures).as_secs()).collect();
        assert_eq!(rests, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn one_failed_check_is_forgiven_two_are_not() {
        let standing = Standing::default();
        standing.check_failed();
        assert!(standing.is_good());
        standing.check_failed();
        assert!(!standing.is_good());
        standing.check_passed();
        assert!(standing.is_good());
    }
}

//! One request, sent and answered: find a connection, send, wait no longer than allowed, look at the answer's head.
//!
//! A request of which nothing was written is sent again over a fresh connection, whatever its method; a request that may
//! have been read is never sent twice. Waiting for the answer counts from the end of the request. Who is to blame for a
//! failure is decided here: the client's body, the client's leaving, or the upstream.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Response, StatusCode, Version};
use hyper::body::Incoming;

use super::body::{self, DeclaredLength, Fate, Meter, RequestBody, UpstreamBody};
use super::connection::SendFailure;
use super::headers::{self, Ours};
use super::outgoing::{Errand, Outgoing};
use super::pool::{Lease, Limits, Origin, Pool, Wanted};
use super::upgrade;
use super::{Failure, Forwarded, Forwarding, Upstream};
use crate::clock;
use crate::deadline::within;
use crate::domain::Rejection;
use crate::gateway::target::unparsable;

/// How often a request that came back unsent is sent again. A second one meets a connection that was closed as soon as
/// it was made; a third would be a third reason to believe that the upstream is broken.
const REPLAYS_MAX: usize = 2;
/// How many endpoints are tried for one request, so that a client does not wait for a whole fleet to time out.
const ENDPOINTS_TRIED_MAX: usize = 3;
/// More than a client can be silent for before it is cut, so that a longer silence is the upstream's.
const STALL_MARGIN: Duration = Duration::from_secs(5);

/// What went wrong with an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// No connection.
    Unreachable,
    /// Too late.
    Timeout,
    /// What came is not an answer.
    Broken,
    /// No slot.
    Overloaded,
}

/// The refusal of what an upstream cannot carry, or what is beyond the firm's share of it.
pub(super) fn overloaded() -> Rejection {
    Rejection::UpstreamOverloaded
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Rejected(match trouble {
            Trouble::Unreachable => Rejection::UpstreamUnreachable,
            Trouble::Timeout => Rejection::UpstreamTimeout,
            Trouble::Broken => Rejection::UpstreamBroken,
            Trouble::Overloaded => overloaded(),
        })
    }
}

/// See [`super::Forwarder::send`].
pub(super) async fn send(parts: &Parts, incoming: Incoming, to: &Forwarding<'_>) -> Result<Forwarded, Failure> {
    let wish = upgrade::wish(parts, to)?;
    let ours = Ours {
        host: to.host,
        request_id: to.request_id,
        assertion: &to.assertion,
        client: to.client,
        received_as: parts.version,
        length: if wish.is_some() { DeclaredLength::Unstated } else { to.declared_length },
    };
    let request = Outgoing {
        method: wish.as_ref().map_or(&parts.method, |wish| wish.method()),
        target: &to.path_and_query,
        host: to.host,
        fields: &parts.headers,
        errand: Errand::Forwarded(ours, wish.as_ref()),
    };
    let body = RequestBody::new(incoming, parts.version, to.meter.clone(), to.body_bytes_max);
    let wanted = if wish.is_some() { Wanted::Http1 } else { Wanted::Any };
    let (response, lease) = exchange(to.upstream, &request, body, wanted, &to.meter).await?;
    to.upstream.observe(clock::boot_now().since(to.begun_at));
    match wish {
        Some(wish) => wish.answer(response, lease, to),
        None if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(Trouble::Broken.into()),
        None => Ok(Forwarded::Answer(answer(response, lease, to))),
    }
}

/// An upstream's answer as the client gets it.
pub(super) fn answer(response: Response<()>, lease: Lease, to: &Forwarding<'_>) -> Response<UpstreamBody> {
    let (mut parts, ()) = response.into_parts();
    headers::for_client(&mut parts.headers, parts.version);
    if parts.status == StatusCode::NO_CONTENT {
        // RFC 9110 section 8.6.
        parts.headers.remove(CONTENT_LENGTH);
    }
    parts.version = Version::default();
    parts.extensions.clear();
    Response::from_parts(parts, UpstreamBody::new(lease, to.meter.clone(), to.upstream.limits().idle))
}

/// Sends until an answer's head is here.
pub(super) async fn exchange(
    upstream: &Upstream,
    request: &Outgoing<'_>,
    mut body: RequestBody,
    wanted: Wanted,
    meter: &Meter,
) -> Result<(Response<()>, Lease), Failure> {
    let mut origin = Origin::Any;
    for _ in 0..=REPLAYS_MAX {
        let mut lease = lease(upstream, wanted, origin).await?;
        lease.begin(request, body)?;
        match await_answer(&mut lease, meter, upstream.limits()).await.map_err(|trouble| blame(meter, trouble))? {
            Ok(response) => return Ok((response, lease)),
            Err(SendFailure::Unsent(returned)) => body = *returned,
            Err(SendFailure::Broken(error)) => {
                tracing::debug!(endpoint = %lease.endpoint(), %error, "an exchange with an upstream broke");
                return Err(blame(meter, Trouble::Broken));
            }
        }
        origin = Origin::Fresh;
    }
    Err(Trouble::Broken.into())
}

/// A connection to any endpoint: nothing is sent yet, so that the next may be tried when one cannot be reached.
async fn lease(upstream: &Upstream, wanted: Wanted, origin: Origin) -> Result<Lease, Trouble> {
    let mut tried: Vec<Arc<Pool>> = Vec::new();
    let mut last = Trouble::Unreachable;
    while tried.len() < ENDPOINTS_TRIED_MAX
        && let Some(pool) = upstream.balance().pick(&tried)
    {
        match pool.lease(wanted, origin).await {
            Ok(lease) => return Ok(lease),
            Err(Trouble::Overloaded) => return Err(Trouble::Overloaded),
            Err(trouble) => last = trouble,
        }
        tried.push(pool);
    }
    Err(last)
}

/// Waits for the head of the answer. While the request is being sent, only its standing still is limited: longer than a
/// client may be silent, it is the upstream that takes no more.
async fn await_answer(lease: &mut Lease, meter: &Meter, limits: Limits) -> Result<Result<Response<()>, SendFailure>, Trouble> {
    let mut sending = poll_fn(|context| lease.connection().poll_answer(context));
    let stall_max = limits.idle.max(body::PAUSE_MAX + STALL_MARGIN);
    while meter.fate() == Fate::Open {
        let sent = meter.request_bytes();
        let ended = pin!(meter.ended());
        tokio::select! {
            biased;
            outcome = &mut sending => return Ok(outcome),
            ended = within(stall_max, ended) => match ended {
                Some(()) => break,
                None if meter.request_bytes() == sent => return Err(Trouble::Timeout),
                None => {}
            }
        }
    }
    within(limits.response_header, sending).await.ok_or(Trouble::Timeout)
}

/// Whose fault it is that there is no answer.
fn blame(meter: &Meter, trouble: Trouble) -> Failure {
    match meter.fate() {
        Fate::TooLarge => Failure::Rejected(Rejection::BodyGrewTooLarge),
        Fate::TooSlow => Failure::Rejected(Rejection::BodyTooSlow),
        Fate::Malformed => Failure::Rejected(unparsable()),
        Fate::ClientAborted => Failure::ClientGone,
        Fate::Open | Fate::Complete | Fate::Unwanted => trouble.into(),
    }
}

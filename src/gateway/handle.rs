//! THE LINE: the life of one request, top to bottom. Only this file knows the order of the steps.
//!
//! `decide_and_forward` is the order of the product: each step hands evidence to the next, and the first refusal ends it.
//! `handle` around it opens the exchange, catches what must not happen, and ties the exchange to the answer, so that the
//! record closes with the last byte or with the client's departure.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;

use crate::clock;
use crate::domain::{KeyNamespace, Rejection, RequestId};
use crate::metrics::Metrics;
use crate::mutants::{self, Mutant};
use crate::tasks::Tasks;

use super::answer::AnswerBody;
use super::client_address::ClientAddress;
use super::cuts::Cuts;
use super::exchange::{Books, Exchange};
use super::forward::{self, Failure, Forwarded, Forwarding, Tunnel};
use super::limit::Limiter;
use super::linger::Rest;
use super::resolve::{self, Keyring};
use super::respond::{self, Leftover};
use super::settings::Settings;
use super::{Caller, admit, credential, target};

/// Everything a request needs. One for the process; `settings` changes with the configuration.
pub struct Gateway {
    /// What keys look like.
    pub namespace: KeyNamespace,
    /// Knows keys by their digests.
    pub keyring: Arc<Keyring>,
    /// Counts.
    pub limiter: Arc<Limiter>,
    /// Routes, upstreams, signer, limits.
    pub settings: ArcSwap<Settings>,
    /// Spool and metrics.
    pub books: Arc<Books>,
    /// Runs tunnels.
    pub tasks: Tasks,
    /// What ends an answer in the middle.
    pub cuts: Arc<Cuts>,
}

impl Gateway {
    async fn decide_and_forward(
        &self,
        settings: &Settings,
        parts: &Parts,
        body: &mut Option<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Forwarded, Failure> {
        let target = target::check(parts)?; // 400, 405, 414, 431
        exchange.aim(&target);
        let presented = credential::parse(&parts.headers, &self.namespace)?; // 400 two keys, 401 missing, malformed
        let resolved = self.keyring.resolve(&presented, exchange.began()).await?; // 401 unknown, 503 store away
        exchange.identify(&resolved.key);
        mutants::trip("known");
        let principal = admit::admit(resolved)?; // 401 revoked, 503 replica out of coherence
        let standing = || self.limiter.standing(principal.key_id(), settings.requests_per_minute); // what a refusal shows
        let declared = forward::check_declared_length(&parts.headers, settings.request_body_max) // 413, audited, costs no permit
            .inspect_err(|_| exchange.allow(standing()))?;
        let taken = self.limiter.take(principal.key_id(), principal.place(), settings.requests_per_minute).await;
        let allowance = taken // 429, 503
            .inspect_err(|_| exchange.allow(standing()))
            .map_err(|error| error.into_rejection(|error| resolve::store_failed(&error)))?;
        exchange.count(&allowance);
        let route = settings.policy.route(&target, &parts.method)?; // 404 no route
        exchange.follow(route);
        let grant = route.grant(&principal, allowance, &target)?; // 403
        let assertion = settings.signer.assert(&grant, exchange.request(), &parts.method, exchange.decided());
        exchange.hold(grant.share()?); // 503 when the firm has its share of the upstream
        let begun = exchange.begin(&grant).await?; // 503 when it cannot be audited
        mutants::trip("begun");
        let forwarding = Forwarding::new(&grant, &target, assertion, begun, declared, settings.request_body_max);
        let body = body.take().expect("a request is sent once");
        tokio::select! {
            biased;
            end = self.keyring.end_of(principal.cached()), if !mutants::active(Mutant::NoLastLook) => Err(admit::ended(end).into()), // 401, 503, also in mid-flight
            sent = settings.forwarder.send(parts, body, &forwarding) => sent, // 413, 408, 502, 503, 504
        }
    }

    /// Answers one request, whatever happens.
    pub fn handle(self: Arc<Self>, request: Request<Incoming>, caller: Caller) -> impl Future<Output = Response<AnswerBody>> {
        let settings = self.settings.load_full();
        let leftover = leftover(&request);
        let client = ClientAddress::find(caller.address.ip(), caller.transport, &settings.trusted_proxies, request.headers());
        let (parts, body) = request.into_parts();
        let mut exchange = Exchange::open(&parts, client, &self.books);
        let mut unread = Some(body);
        // Made by hand: what an `async fn` takes has two places in its future, and this one is moved.
        async move {
            let decided = tokio::select! {
                biased;
                // Made in its place: a future that is moved takes its size twice, for as long as the request lasts.
                decided = AssertUnwindSafe(self.decide_and_forward(&settings, &parts, &mut unread, &mut exchange)).catch_unwind() => {
                    decided.unwrap_or_else(|_| Err(panicked().into()))
                }
                () = self.cuts.drained() => Err(Rejection::Draining.into()),
            };
            self.conclude(decided, exchange, unread, leftover)
        }
    }

    fn conclude(
        &self,
        decided: Result<Forwarded, Failure>,
        exchange: Box<Exchange>,
        unread: Option<Incoming>,
        leftover: Leftover,
    ) -> Response<AnswerBody> {
        match decided {
            Ok(Forwarded::Answer(answer)) => self.pass_on(answer, exchange),
            Ok(Forwarded::Tunnel(answer, tunnel)) => self.open_tunnel(answer, tunnel, exchange),
            Err(Failure::Rejected(rejection)) => {
                let unread = unread.or_else(|| exchange.meter().take_unread()).filter(|_| leftover == Leftover::Stream);
                refused(&rejection, leftover, exchange, unread.and_then(|body| Rest::discard(body, &self.tasks)))
            }
            // Nobody is left to read an answer; the exchange closes as a client's abort.
            Err(Failure::ClientGone) => {
                respond::refuse(&target::unparsable(), exchange.request_header(), leftover).map(AnswerBody::for_nobody)
            }
        }
    }

    fn pass_on(&self, answer: Response<forward::UpstreamBody>, mut exchange: Box<Exchange>) -> Response<AnswerBody> {
        exchange.answer(answer.status());
        let (mut parts, body) = answer.into_parts();
        decorate(&mut parts.headers, &exchange);
        Response::from_parts(parts, AnswerBody::upstream(body, exchange, self.cuts.clone()))
    }

    fn open_tunnel(&self, answer: Response<()>, tunnel: Tunnel, mut exchange: Box<Exchange>) -> Response<AnswerBody> {
        exchange.answer(answer.status());
        let (mut parts, ()) = answer.into_parts();
        decorate(&mut parts.headers, &exchange);
        let mut cut = self.cuts.of(&exchange);
        self.tasks.spawn("tunnel", async move {
            let mut reason = None;
            let end = tunnel.run(async { reason = Some(cut.as_mut().await) }).await;
            exchange.tunnelled(end, reason);
        });
        Response::from_parts(parts, AnswerBody::elsewhere())
    }
}

fn refused(rejection: &Rejection, leftover: Leftover, mut exchange: Box<Exchange>, rest: Option<Rest>) -> Response<AnswerBody> {
    exchange.refuse(rejection);
    let mut response = respond::refuse(rejection, exchange.request_header(), leftover);
    exchange.answer(response.status());
    decorate(response.headers_mut(), &exchange);
    response.map(|body| match rest {
        Some(rest) => AnswerBody::early(body, exchange, rest),
        None => AnswerBody::own(body, exchange),
    })
}

/// The header fields that every answer carries.
fn decorate(headers: &mut http::HeaderMap, exchange: &Exchange) {
    headers.insert(respond::X_REQUEST_ID, exchange.request_header().clone());
    if let Some(standing) = exchange.allowance() {
        respond::show_allowance(headers, standing);
    }
}

/// Whether unread bytes of an HTTP/1 body may follow.
fn leftover(request: &Request<Incoming>) -> Leftover {
    match request.version() {
        http::Version::HTTP_2 => Leftover::Stream,
        _ if request.body().is_end_stream() => Leftover::Nothing,
        _ => Leftover::Body,
    }
}

/// A defect of ours, caught at the top of the line.
pub(super) fn panicked() -> Rejection {
    Rejection::Internal
}

/// The answer to bytes that never became a request; nobody is known, so it is counted and not recorded.
pub fn refuse_unparsed(rejection: &Rejection, client: IpAddr, metrics: &Metrics) -> Response<Bytes> {
    let (request, reason) = (RequestId::new(clock::fresh_uuid()), rejection.consequence().reason);
    metrics.rejections.with_label_values(&[reason]).inc();
    tracing::debug!(request_id = %request, %client, reason, "refused before it was a request");
    respond::refuse(rejection, &respond::request_id(request), Leftover::Body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<F>(_: impl FnOnce(Arc<Gateway>, Request<Incoming>, Caller) -> F) -> usize {
        size_of::<F>()
    }

    /// It is moved more than once on its way, and it is the memory of a request in flight.
    #[test]
    fn the_future_of_a_request_is_small() {
        let bytes = future_bytes(|gateway, request, caller| gateway.handle(request, caller));
        assert!(bytes <= 4 * 1024, "{bytes} bytes");
    }
}

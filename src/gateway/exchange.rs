//! The open account of one request, from its head to the last byte of its answer.
//!
//! An exchange ends exactly once: when the answer's last byte was handed over, or when the future or the body that
//! holds it is dropped because the client went away. `Drop` cannot wait, so everything that ends an exchange is
//! synchronous and bounded: one entry in the spool, whose room was reserved, and a few counters. Requests without a
//! known key leave metrics and a log line; those with one also leave a record (K16).

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use crate::audit::{Spool, Ticket};
use crate::clock::{self, Moment};
use crate::domain::{
    Action, AuditRecord, BootInstant, Field, KeyNamespace, KeyRecord, Outcome, Rejection, RequestId, Timestamp, WrittenRecord,
    is_traceparent,
};
use crate::metrics::{Metrics, RouteMetrics};

use super::client_address::ClientAddress;
use super::forward::{Meter, Share, TunnelEnd, TunnelOutcome};
use super::limit::{Allowance, Standing};
use super::policy::{Grant, Route};
use super::resolve::CachedKey;
use super::respond;
use super::target::Target;

/// A caller's texts in a record are cut to this many bytes.
const RECORDED_TEXT_BYTES_MAX: usize = 256;
/// A path in a record is cut to this many bytes.
const RECORDED_PATH_BYTES_MAX: usize = 1024;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What metrics call a request that no route matched.
const NO_ROUTE: &str = "none";

/// The account of one request.
#[derive(Debug)]
pub struct Exchange {
    request: RequestId,
    /// The same, as upstream and client are told.
    request_header: HeaderValue,
    began: Moment,
    decided: Timestamp,
    method: Method,
    host: Option<Box<str>>,
    path: Option<Box<str>>,
    user_agent: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    client: ClientAddress,
    meter: Arc<Meter>,
    /// Whom the record is about; absent until the key is known.
    key: Option<Arc<CachedKey>>,
    route: Option<Arc<Route>>,
    share: Option<Share>,
    ticket: Option<Ticket>,
    allowance: Option<Standing>,
    status: Option<StatusCode>,
    refusal: Option<(Outcome, &'static str)>,
    response_bytes: u64,
    tunnelled_up: u64,
    is_complete: bool,
    books: Arc<Books>,
}

/// Evidence: the use is in the spool, so that it will be recorded whatever happens now (K16).
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a>(&'a Exchange, BootInstant);

impl<'a> Begun<'a> {
    /// The exchange that has begun.
    pub fn exchange(self) -> &'a Exchange {
        self.0
    }

    /// When it was: what comes now is the upstream's time.
    pub fn at(self) -> BootInstant {
        self.1
    }
}

/// Where an exchange is written down.
#[derive(Debug)]
pub struct Books {
    /// The spool.
    pub spool: Arc<Spool>,
    /// The counters.
    pub metrics: Metrics,
    /// By which a key is known where a caller wrote one that is not its place.
    namespace: KeyNamespace,
    /// Where requests are counted that no route matched.
    no_route: RouteMetrics,
}

impl Books {
    /// The books of one process.
    pub fn new(spool: Arc<Spool>, metrics: Metrics, namespace: KeyNamespace) -> Self {
        Self { no_route: metrics.of_route(NO_ROUTE), spool, metrics, namespace }
    }
}

impl Exchange {
    /// Opens the account of a request whose head has arrived. Boxed, because it is handed on a dozen times until the answer's end.
    pub fn open(parts: &Parts, client: ClientAddress, books: &Arc<Books>) -> Box<Self> {
        books.metrics.requests_in_flight.inc();
        let began = Moment::now();
        let request = RequestId::new(began.fresh_uuid());
        Box::new(Self {
            request,
            request_header: respond::request_id(request),
            began,
            decided: began.wall(),
            method: parts.method.clone(),
            host: None,
            path: None,
            user_agent: parts.headers.get(header::USER_AGENT).cloned(),
            traceparent: parts.headers.get(&TRACEPARENT).filter(|value| value.to_str().is_ok_and(is_traceparent)).cloned(),
            client,
            meter: Arc::default(),
            key: None,
            route: None,
            share: None,
            ticket: None,
            allowance: None,
            status: None,
            refusal: None,
            response_bytes: 0,
            tunnelled_up: 0,
            is_complete: false,
            books: books.clone(),
        })
    }

    /// The request's name.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The request's name, as `X-Request-Id` says it.
    pub fn request_header(&self) -> &HeaderValue {
        &self.request_header
    }

    /// Where the request came from.
    pub fn client(&self) -> &ClientAddress {
        &self.client
    }

    /// Counts the request's body bytes.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The key, once it is known.
    pub fn key(&self) -> Option<&Arc<CachedKey>> {
        self.key.as_ref()
    }

    /// What is left of the key's window, for the answer's header fields.
    pub fn allowance(&self) -> Option<Standing> {
        self.allowance
    }

    /// Notes what is asked for, once it has been found unambiguous.
    pub fn aim(&mut self, target: &Target) {
        let hidden = |text, bytes_max| cut(&self.books.namespace.hide_keys(text), bytes_max).into();
        self.host = Some(hidden(target.host(), RECORDED_TEXT_BYTES_MAX));
        self.path = Some(hidden(target.path_and_query().path(), RECORDED_PATH_BYTES_MAX));
    }

    /// Notes whose request it is: from here on it leaves a record.
    pub fn identify(&mut self, key: &Arc<CachedKey>) {
        self.key = Some(key.clone());
    }

    /// Notes that the key is live, and what is left of its window before this request is counted.
    pub fn allow(&mut self, standing: Standing) {
        self.allowance = Some(standing);
    }

    /// Notes that the request was counted, and when; that moment is the record's time.
    pub fn count(&mut self, allowance: &Allowance) {
        self.decided = self.began.wall_at(allowance.taken_at());
        self.allowance = Some(allowance.standing());
    }

    /// When its head had arrived.
    pub fn began(&self) -> BootInstant {
        self.began.boot()
    }

    /// When it was counted; before that, when it began.
    pub fn decided(&self) -> Timestamp {
        self.decided
    }

    /// Notes which route decides, for records and metrics of refusals too.
    pub fn follow(&mut self, route: &Arc<Route>) {
        self.route = Some(route.clone());
    }

    /// Keeps the firm's share of the upstream for as long as the request lasts.
    pub fn hold(&mut self, share: Share) {
        self.share = Some(share);
    }

    /// Writes down that the request is about to be forwarded.
    ///
    /// # Errors
    /// [`Rejection::AuditUnavailable`]: what cannot be recorded must not happen.
    pub async fn begin(&mut self, grant: &Grant) -> Result<Begun<'_>, Rejection> {
        let known = self.known(grant.principal().cached());
        self.ticket = Some(self.books.spool.begin(self.request.uuid(), known).await.map_err(|_| Rejection::AuditUnavailable)?);
        let now = clock::boot_now();
        self.books.metrics.added_duration.observe(now.since(self.began()).as_secs_f64());
        Ok(Begun(self, now))
    }

    /// Notes that the request is refused, for the record and the log.
    pub fn refuse(&mut self, rejection: &Rejection) {
        let consequence = rejection.consequence();
        self.refusal = Some((Outcome::Refused(consequence.code), consequence.reason));
        self.books.metrics.rejections.with_label_values(&[consequence.reason]).inc();
        if self.ticket.is_none() {
            self.books.metrics.added_duration.observe(clock::boot_now().since(self.began()).as_secs_f64());
        }
        tracing::debug!(request_id = %self.request, client = %self.client.ip, reason = consequence.reason, "refused");
    }

    /// Notes the status of the answer.
    pub fn answer(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Counts bytes of the answer's body that were handed over.
    pub fn sent(&mut self, bytes: usize) {
        self.response_bytes = self.response_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Notes that the whole answer was handed over; dropped without this, the client went away.
    pub fn complete(&mut self) {
        self.is_complete = true;
    }

    /// Notes why the answer was cut short.
    pub fn cut_short(&mut self, reason: &'static str) {
        self.refusal.get_or_insert((Outcome::Allowed, reason));
    }

    /// Notes how a tunnel ended, and what went through it.
    pub fn tunnelled(&mut self, end: TunnelEnd, cut: Option<&'static str>) {
        self.tunnelled_up = end.bytes_up;
        self.response_bytes = self.response_bytes.saturating_add(end.bytes_down);
        match end.outcome {
            TunnelOutcome::Closed => self.complete(),
            TunnelOutcome::Cut => self.cut_short(cut.unwrap_or("cut")),
            TunnelOutcome::Idle => self.cut_short("tunnel_idle"),
            TunnelOutcome::Broken => self.cut_short("tunnel_broken"),
        }
    }

    fn outcome(&self) -> (Outcome, Option<&'static str>) {
        match self.refusal {
            Some((outcome, reason)) => (outcome, Some(reason)),
            None if std::thread::panicking() => {
                let consequence = Rejection::consequence(&super::handle::panicked());
                (Outcome::Refused(consequence.code), Some(consequence.reason))
            }
            None if self.is_complete => (Outcome::Allowed, None),
            None => (Outcome::Allowed, Some("client_abort")),
        }
    }

    fn record(&self, key: &KeyRecord, outcome: Outcome) -> AuditRecord {
        let actor = key.id.to_string();
        AuditRecord {
            time: self.decided,
            outcome,
            client_ip: Some(self.client.text().to_owned()),
            user_agent: self.user_agent.as_ref().map(|value| self.printable(value).into_owned()),
            request_id: Some(self.request.to_string()),
            traceparent: self.traceparent.as_ref().map(|value| self.printable(value).into_owned()),
            method: Some(self.method().into_owned()),
            host: self.host.as_deref().map(str::to_owned),
            path: self.path.as_deref().map(str::to_owned),
            route: self.route.as_ref().map(|route| route.id().as_str().to_owned()),
            upstream: self.route.as_ref().and_then(|route| route.upstream_name()).map(|name| name.as_ref().to_owned()),
            status: self.status.map(|status| status.as_u16()),
            ..AuditRecord::of_key(Action::Use, key, &actor, self.request.uuid(), self.books.spool.replica().clone())
        }
    }

    /// The record as far as it is known before the request is forwarded: all but its end.
    fn known(&self, key: &CachedKey) -> WrittenRecord {
        let mut known = WrittenRecord::new();
        known.push_uuid(Field::EventId, self.request.uuid());
        known.push_time(self.decided);
        known.push(Field::Action, Action::Use.word());
        known.append(&key.recorded);
        known.push(Field::ClientIp, self.client.text());
        if let Some(user_agent) = &self.user_agent {
            known.push(Field::UserAgent, &self.printable(user_agent));
        }
        known.push_uuid(Field::RequestId, self.request.uuid());
        if let Some(traceparent) = &self.traceparent {
            known.push(Field::Traceparent, &self.printable(traceparent));
        }
        known.push(Field::Method, &self.method());
        if let Some(host) = &self.host {
            known.push(Field::Host, host);
        }
        if let Some(path) = &self.path {
            known.push(Field::Path, path);
        }
        if let Some(route) = &self.route {
            known.push(Field::Route, route.id().as_str());
            if let Some(upstream) = route.upstream_name() {
                known.push(Field::Upstream, upstream);
            }
        }
        known.push(Field::Replica, self.books.spool.replica().as_str());
        known
    }

    /// A header value as printable text without keys: what is not ASCII is escaped, and it is cut.
    fn printable<'v>(&self, value: &'v HeaderValue) -> Cow<'v, str> {
        if let Ok(text) = value.to_str()
            && text.len() <= RECORDED_TEXT_BYTES_MAX
            && !text.contains(['\\', '\t'])
        {
            return self.books.namespace.hide_keys(text);
        }
        let text: String = value.as_bytes().iter().flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
        // Cut last, lest half a key be left that is known as none.
        let text: String = self.books.namespace.hide_keys(&text).chars().take(RECORDED_TEXT_BYTES_MAX).collect();
        Cow::Owned(text.replace("\\\"", "\"").replace("\\'", "'"))
    }

    /// The method, which a caller may invent.
    fn method(&self) -> Cow<'_, str> {
        match self.books.namespace.hide_keys(self.method.as_str()) {
            Cow::Borrowed(text) => Cow::Borrowed(cut(text, RECORDED_TEXT_BYTES_MAX)),
            Cow::Owned(text) => Cow::Owned(cut(&text, RECORDED_TEXT_BYTES_MAX).to_owned()),
        }
    }

    fn close(&mut self) {
        let took = clock::boot_now().since(self.began());
        let (outcome, reason) = self.outcome();
        self.show(outcome, took.as_secs_f64());
        let Some(key) = self.key.take() else { return };
        let request_bytes = self.meter.request_bytes().saturating_add(self.tunnelled_up);
        let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match self.ticket.take() {
            Some(ticket) => ticket.finish(outcome, |record| {
                record.push(Field::Outcome, outcome.word());
                if let Some(status) = self.status {
                    record.push_number(Field::Status, u64::from(status.as_u16()));
                }
                record.push_number(Field::RequestBytes, request_bytes);
                record.push_number(Field::ResponseBytes, self.response_bytes);
                record.push_number(Field::DurationUs, duration_us);
                if let Some(reason) = reason {
                    record.push(Field::Reason, reason);
                }
            }),
            // Refused before it was begun: room was not reserved, but the spool keeps counting what it cannot write.
            None if matches!(outcome, Outcome::Refused(_)) => {
                let record = AuditRecord {
                    request_bytes: Some(request_bytes),
                    response_bytes: Some(self.response_bytes),
                    duration_us: Some(duration_us),
                    reason: reason.map(str::to_owned),
                    ..self.record(&key.record, outcome)
                };
                // What finds no room is counted where that happens.
                let _ = self.books.spool.refuse(record);
            }
            // The client went away before anything was decided: nothing happened that a record could tell.
            None => {}
        }
    }

    fn show(&self, outcome: Outcome, seconds: f64) {
        let metrics = &self.books.metrics;
        metrics.requests_in_flight.dec();
        let counted = self.route.as_ref().map_or(&self.books.no_route, |route| route.metrics());
        counted.count(outcome.word(), self.status.map(|status| status.as_u16()), seconds);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.close();
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

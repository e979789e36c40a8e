//! Bodies on their way through, in both directions: counted, cut at their limits, never held in memory.
//!
//! `RequestBody` cuts a client's body that grows over the limit or comes too slowly, and one that nobody wants any more;
//! a cut body ends in an error, so that the upstream's request is aborted and never looks complete. `UpstreamBody` gives
//! the connection back when the answer is complete, and passes every failure on, so that the client sees an aborted
//! message and never a clean end. `Meter` is what both, the sender and the audit record know of one request.
//! Framing belongs to hyper, slow readers to the edge.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::headers;
use super::pool::Lease;
use crate::clock;
use crate::deadline::Deadline;
use crate::domain::{BootInstant, Rejection};
use crate::gateway::target::parse_length;

/// How long a client may leave us waiting before its first bytes count.
const PAUSE_GRACE: Duration = Duration::from_secs(10);
/// The most waiting time that fast bytes can earn; without it, 10 MB at once would buy hours of silence.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A wait that went on for so much longer than was allowed was not cut because this process did not run: it begins anew.
const ASLEEP_MIN: Duration = Duration::from_secs(1);
/// The slowest body that is taken; each byte earns its share of a second.
const PACE_BYTES_PER_SECOND: u64 = 240;

/// What a request's head says about the length of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeclaredLength {
    /// Content-Length.
    Exact(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// Nothing: no body in HTTP/1, any in HTTP/2.
    Unstated,
}

/// Reads the declared length, before a byte of the body is read. Needs headers that `target::check` has passed.
///
/// # Errors
/// `BodyDeclaredTooLarge` when it is over `bytes_max`.
pub fn check_declared_length(headers: &HeaderMap, bytes_max: u64) -> Result<DeclaredLength, Rejection> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Ok(DeclaredLength::Chunked);
    }
    match headers.get(CONTENT_LENGTH).map(parse_length) {
        None => Ok(DeclaredLength::Unstated),
        Some(Some(length)) if length <= bytes_max => Ok(DeclaredLength::Exact(length)),
        Some(_) => Err(Rejection::BodyDeclaredTooLarge),
    }
}

/// How a request's body ended, or that it has not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fate {
    /// More is expected.
    Open = 0,
    /// All of it was handed to the upstream's connection.
    Complete = 1,
    /// It grew over the limit.
    TooLarge = 2,
    /// It came too slowly.
    TooSlow = 3,
    /// The client broke it off.
    ClientAborted = 4,
    /// The exchange was over before all of it was read.
    Unwanted = 5,
    /// Its framing is invalid.
    Malformed = 6,
}

/// What is known of one request's body while it flows; shared with the audit record, which outlives the bodies.
#[derive(Debug, Default)]
pub struct Meter {
    request_bytes: AtomicU64,
    fate: AtomicU8,
    is_unwanted: AtomicBool,
    /// The task that sends the body, to be told that nobody wants it.
    sender: AtomicWaker,
    /// Told once the body has ended, in whatever way.
    ended: Notify,
    /// The rest of a body that was cut, for whoever wants to see its client out.
    unread: Mutex<Option<Incoming>>,
}

impl Meter {
    /// The meter of a request of which nothing was read yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Bytes of the request body that were handed to the upstream's connection.
    pub fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    /// The rest of a body that was cut because it is too large; what is not taken is dropped with the meter.
    pub fn take_unread(&self) -> Option<Incoming> {
        self.unread.lock().take()
    }

    /// How the request body ended, if it has.
    pub fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            0 => Fate::Open,
            1 => Fate::Complete,
            2 => Fate::TooLarge,
            3 => Fate::TooSlow,
            4 => Fate::ClientAborted,
            6 => Fate::Malformed,
            _ => Fate::Unwanted,
        }
    }

    /// Completes when the request body has ended, or was dropped.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Ends the body with an error unless it has ended. Without this an HTTP/1 connection whose upstream has answered
    /// before reading the whole request would wait for the client forever, neither pooled nor closed (hyper 4176).
    fn unwant(&self) {
        self.is_unwanted.store(true, Ordering::Release);
        self.sender.wake();
    }

    /// The first word stands.
    fn close(&self, fate: Fate) {
        let _ = self.fate.compare_exchange(Fate::Open as u8, fate as u8, Ordering::AcqRel, Ordering::Acquire);
        self.ended.notify_one();
    }
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The request body grew over the limit.
    #[error("the request body is larger than allowed")]
    TooLarge,
    /// The request body came too slowly.
    #[error("the request body came too slowly")]
    TooSlow,
    /// The client broke off.
    #[error("the client broke off the request body: {0}")]
    Client(#[source] hyper::Error),
    /// An HTTP/2 stream was reset without an error and without its end.
    #[error("the stream was reset before its end")]
    Reset,
    /// The upstream had answered before it read all.
    #[error("the upstream answered without waiting for the request body")]
    Unwanted,
    /// The upstream broke off.
    #[error("the upstream broke off its answer: {0}")]
    Upstream(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The upstream was silent for too long.
    #[error("the upstream fell silent in the middle of its answer")]
    Idle,
}

/// A client's body on its way to an upstream.
pub(super) struct RequestBody {
    source: Source,
    /// What the client sends it by.
    version: Version,
    meter: Arc<Meter>,
    bytes_max: u64,
    pace: Pace,
}

enum Source {
    /// There is nothing to send.
    Nothing,
    /// There may be more.
    Client(Incoming),
    /// It was broken off; asking again is an error again.
    Cut,
}

impl RequestBody {
    /// The body of a request that the client sent.
    pub(super) fn new(incoming: Incoming, version: Version, meter: Arc<Meter>, bytes_max: u64) -> Self {
        let source = if incoming.is_end_stream() { Source::Nothing } else { Source::Client(incoming) };
        if matches!(source, Source::Nothing) {
            meter.close(Fate::Complete);
        }
        Self { source, version, meter, bytes_max, pace: Pace::new() }
    }

    /// No body, for a request of our own.
    pub(super) fn nothing() -> Self {
        let meter = Meter::new();
        meter.close(Fate::Complete);
        Self { source: Source::Nothing, version: Version::HTTP_11, meter, bytes_max: 0, pace: Pace::new() }
    }

    fn cut(&mut self, fate: Fate, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let (Source::Client(rest), Fate::TooLarge) = (std::mem::replace(&mut self.source, Source::Cut), fate) {
            *self.meter.unread.lock() = Some(rest);
        }
        self.meter.close(fate);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.meter.sender.register(context.waker());
        loop {
            let incoming = match &mut this.source {
                Source::Nothing => return Poll::Ready(None),
                Source::Cut => return Poll::Ready(Some(Err(BodyError::Unwanted))),
                Source::Client(incoming) => incoming,
            };
            if this.meter.is_unwanted.load(Ordering::Acquire) {
                return this.cut(Fate::Unwanted, BodyError::Unwanted);
            }
            let Poll::Ready(item) = Pin::new(&mut *incoming).poll_frame(context) else {
                ready!(this.pace.poll_exhausted(context));
                return this.cut(Fate::TooSlow, BodyError::TooSlow);
            };
            let is_last = incoming.is_end_stream();
            let mut frame = match item {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return this.cut(blame(&error), BodyError::Client(error)),
                // hyper takes a stream that was reset with NO_ERROR for one that ended, END_STREAM or not.
                None if this.version == Version::HTTP_2 && !is_last => return this.cut(Fate::ClientAborted, BodyError::Reset),
                None => {
                    this.source = Source::Nothing;
                    this.meter.close(Fate::Complete);
                    return Poll::Ready(None);
                }
            };
            let bytes = frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
            this.pace.earn(bytes);
            if this.meter.request_bytes.load(Ordering::Relaxed).saturating_add(bytes) > this.bytes_max {
                return this.cut(Fate::TooLarge, BodyError::TooLarge);
            }
            this.meter.request_bytes.fetch_add(bytes, Ordering::Relaxed);
            if is_last {
                this.source = Source::Nothing;
                this.meter.close(Fate::Complete);
            }
            if let Some(trailers) = frame.trailers_mut() {
                headers::retain_request_trailers(trailers);
                if trailers.is_empty() {
                    continue;
                }
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Nothing)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Client(incoming) => incoming.size_hint(),
            Source::Cut => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    /// Whoever waits for the end of the body must not wait for one that is gone.
    fn drop(&mut self) {
        self.meter.close(Fate::Unwanted);
    }
}

/// How much longer a client may leave us waiting. Only time spent waiting for the client counts: a stalled upstream is
/// not its fault.
struct Pace {
    allowance: Duration,
    waiting_since: Option<BootInstant>,
    timer: Option<Deadline>,
}

impl Pace {
    fn new() -> Self {
        Self { allowance: PAUSE_GRACE, waiting_since: None, timer: None }
    }

    fn earn(&mut self, bytes: u64) {
        if let Some(since) = self.waiting_since.take() {
            let waited = clock::boot_now().since(since);
            let is_ours = waited > self.allowance.saturating_add(ASLEEP_MIN);
            self.allowance = if is_ours { PAUSE_GRACE } else { self.allowance.saturating_sub(waited) };
        }
        let earned = Duration::from_micros(bytes.saturating_mul(1_000_000) / PACE_BYTES_PER_SECOND);
        self.allowance = self.allowance.saturating_add(earned).min(PAUSE_MAX);
    }

    fn poll_exhausted(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiting_since.is_none() {
            self.waiting_since = Some(clock::boot_now());
            arm(&mut self.timer, self.allowance);
        }
        poll_timer(&mut self.timer, context)
    }
}

/// Sets a timer, making it only when the first one is needed.
fn arm(timer: &mut Option<Deadline>, span: Duration) {
    match timer {
        Some(timer) => timer.move_after(span),
        None => *timer = Some(Deadline::after(span)),
    }
}

fn poll_timer(timer: &mut Option<Deadline>, context: &mut Context<'_>) -> Poll<()> {
    timer.as_mut().map_or(Poll::Pending, |timer| Pin::new(timer).poll(context))
}

/// An upstream's answer on its way to the client. Holds the upstream's connection until it is complete.
pub struct UpstreamBody {
    state: Reading,
    meter: Arc<Meter>,
    idle_max: Duration,
    /// Set while we wait for the upstream, with the request's bytes at that time: an answer may wait for an upload.
    waiting: Option<u64>,
    timer: Option<Deadline>,
}

enum Reading {
    /// More is expected over this connection.
    Open(Lease),
    /// Complete, the connection is settled.
    Complete,
    /// Broken off.
    Failed,
}

impl std::fmt::Debug for UpstreamBody {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}

impl UpstreamBody {
    /// What comes over a connection whose answer has begun.
    pub(super) fn new(lease: Lease, meter: Arc<Meter>, idle_max: Duration) -> Self {
        let is_over = lease.state().is_end_stream();
        let mut body = Self { state: Reading::Open(lease), meter, idle_max, waiting: None, timer: None };
        if is_over {
            body.settle();
        }
        body
    }

    /// The answer is complete: the connection goes back, unless the request is not.
    fn settle(&mut self) {
        if let Reading::Open(lease) = std::mem::replace(&mut self.state, Reading::Complete) {
            if self.meter.fate() == Fate::Complete { lease.give_back() } else { self.meter.unwant() }
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.state = Reading::Failed;
        self.meter.unwant();
        Poll::Ready(Some(Err(error)))
    }

    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let sent = self.meter.request_bytes();
            if self.waiting.is_none() {
                self.waiting = Some(sent);
                arm(&mut self.timer, self.idle_max);
            }
            ready!(poll_timer(&mut self.timer, context));
            if self.waiting == Some(sent) {
                return Poll::Ready(());
            }
            self.waiting = None;
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let connection = match &mut this.state {
            Reading::Open(lease) => lease.connection(),
            Reading::Complete => return Poll::Ready(None),
            Reading::Failed => return Poll::Ready(Some(Err(BodyError::Idle))),
        };
        let polled = connection.poll_frame(context);
        let is_over = connection.is_end_stream();
        let Poll::Ready(item) = polled else {
            ready!(this.poll_idle(context));
            return this.fail(BodyError::Idle);
        };
        this.waiting = None;
        match item {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::retain_response_trailers(trailers);
                }
                if is_over {
                    this.settle();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => this.fail(error),
            None => {
                this.settle();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, Reading::Complete)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            Reading::Complete => SizeHint::with_exact(0),
            Reading::Open(lease) => lease.state().size_hint(),
            Reading::Failed => SizeHint::default(),
        }
    }
}

impl Drop for UpstreamBody {
    /// The client went away in the middle: the connection is closed with the lease, and nobody wants the rest of the request.
    fn drop(&mut self) {
        if matches!(self.state, Reading::Open(_)) {
            self.meter.unwant();
        }
    }
}

/// hyper says with an `io::Error` of these kinds that chunks are not framed as RFC 9112 section 7.1 has them.
fn blame(error: &hyper::Error) -> Fate {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData)) {
            return Fate::Malformed;
        }
        source = cause.source();
    }
    Fate::ClientAborted
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_declared_length_is_refused_above_the_limit_only() {
        let declared = |name: http::HeaderName, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            check_declared_length(&headers, 10)
        };
        assert_eq!(declared(CONTENT_LENGTH, "10"), Ok(DeclaredLength::Exact(10)));
        assert_eq!(declared(CONTENT_LENGTH, "11"), Err(Rejection::BodyDeclaredTooLarge));
        assert_eq!(declared(CONTENT_LENGTH, "9007199254740993"), Err(Rejection::BodyDeclaredTooLarge));
        assert_eq!(declared(TRANSFER_ENCODING, "chunked"), Ok(DeclaredLength::Chunked));
        assert_eq!(check_declared_length(&HeaderMap::new(), 10), Ok(DeclaredLength::Unstated));
    }

    #[test]
    fn waiting_time_is_earned_by_bytes_and_never_hoarded() {
        let mut pace = Pace::new();
        pace.earn(PACE_BYTES_PER_SECOND);
        assert_eq!(pace.allowance, PAUSE_GRACE + Duration::from_secs(1));
        pace.earn(10 * 1024 * 1024);
        assert_eq!(pace.allowance, PAUSE_MAX);
        pace.waiting_since = Some(clock::boot_now().minus(Duration::from_secs(29)));
        pace.earn(1);
        assert!(pace.allowance < Duration::from_millis(1_100), "{:?}", pace.allowance);
        pace.waiting_since = Some(clock::boot_now().minus(Duration::from_millis(1_500)));
        pace.earn(0);
        assert_eq!(pace.allowance, Duration::ZERO);
        pace.waiting_since = Some(clock::boot_now().minus(Duration::from_secs(60)));
        pace.earn(0);
        assert_eq!(pace.allowance, PAUSE_GRACE, "nobody could have cut it, so nobody was there to read it");
    }

    #[test]
    fn the_first_word_about_a_body_stands() {
        let meter = Meter::new();
        assert_eq!(meter.fate(), Fate::Open);
        meter.close(Fate::TooLarge);
        meter.close(Fate::ClientAborted);
        assert_eq!(meter.fate(), Fate::TooLarge);
    }
}

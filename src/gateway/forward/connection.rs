//! One connection to an endpoint: made, and used for one request after another (HTTP/1.1, by `http1`) or for many at
//! once (HTTP/2, by hyper in a task of its own).
//!
//! The answer's body is read from the connection itself. What is set here are the limits of what an HTTP/2 upstream may
//! send. A request that was given to a connection and not one byte of which was written comes back, so that it can be
//! sent over another.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::TokioIo;

use super::body::{BodyError, RequestBody};
use super::http1::{AnswerError, Http1, STATUS_MAX, Upgraded};
use super::outgoing::Outgoing;
use super::send::Trouble;
use crate::deadline;
use crate::dial::{DialError, Dialer, Endpoint, Version};
use crate::gateway::target::parse_length;
use crate::tasks::Tasks;

/// Most bytes of an answer's fields, and of its trailers; answers carry larger cookies than requests.
const ANSWER_HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Requests that share one HTTP/2 connection, unless the upstream allows fewer: what most servers announce.
pub(super) const STREAMS_MAX: usize = 100;
/// Bytes an upstream may send ahead on one HTTP/2 stream.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes an upstream may send ahead on all streams; h2 counts small frames against half of it, so never less than 1 MiB.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Bytes of a request that wait for an upstream's window, per stream.
const SEND_BUFFER_BYTES_MAX: usize = 128 * 1024;
/// How often a quiet HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that can take a request now or soon.
pub(super) enum Connection {
    /// One request at a time.
    Http1(Box<Http1>),
    /// Shared; this is one of its streams.
    Http2(Stream),
}

/// Why a request has no answer.
pub(super) enum SendFailure {
    /// Nothing of it was written; here is its body.
    Unsent(Box<RequestBody>),
    /// Something may have been written.
    Broken(SendError),
}

/// What broke an exchange before its answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// On an HTTP/1.1 connection.
    #[error(transparent)]
    Http1(#[from] AnswerError),
    /// On an HTTP/2 connection.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
    /// An answer over HTTP/2 that another reader would read in another way.
    #[error("the answer has an invalid status or Content-Length")]
    Unsound,
}

impl Connection {
    /// Takes a request, which [`Connection::poll_answer`] sends. Dropping the connection aborts it: HTTP/1.1 closes, HTTP/2
    /// resets the stream.
    ///
    /// # Errors
    /// As [`Outgoing::to_http2`].
    pub(super) fn begin(&mut self, request: &Outgoing<'_>, body: RequestBody, endpoint: &Endpoint) -> Result<(), Trouble> {
        match self {
            Self::Http1(connection) => connection.begin(request, body),
            Self::Http2(stream) => {
                let sending = stream.sender.try_send_request(request.to_http2(body, endpoint)?);
                stream.state = Streaming::Asking(Box::pin(sending));
            }
        }
        Ok(())
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<()>, SendFailure>> {
        match self {
            Self::Http1(connection) => connection.poll_answer(context).map_err(|error| SendFailure::Broken(error.into())),
            Self::Http2(stream) => stream.poll_answer(context),
        }
    }

    /// The next piece of the answer's body.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(connection) => connection.poll_frame(context).map_err(|error| BodyError::Upstream(error.into())),
            Self::Http2(stream) => stream.poll_frame(context),
        }
    }

    /// Whether the answer's body has ended.
    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_end_stream(),
            Self::Http2(stream) => stream.answer().is_none_or(Body::is_end_stream),
        }
    }

    /// What is known of the length of the answer's body.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(connection) => connection.size_hint(),
            Self::Http2(stream) => stream.answer().map_or_else(|| SizeHint::with_exact(0), Body::size_hint),
        }
    }

    /// The raw connection after a `101`, which only HTTP/1.1 has.
    pub(super) fn into_upgraded(self) -> Option<Upgraded> {
        match self {
            Self::Http1(connection) => Some(connection.into_upgraded()),
            Self::Http2(_) => None,
        }
    }
}

/// Whether status and length can be read in one way only (RFC 9110 sections 8.6 and 15). `http1` sees to that by itself, and
/// h2 refuses what HTTP/2 forbids, `Transfer-Encoding` above all.
fn is_sound(answer: &Parts) -> bool {
    let mut lengths = answer.headers.get_all(CONTENT_LENGTH).iter();
    let has_one_length = lengths.next().is_none_or(|length| parse_length(length).is_some()) && lengths.next().is_none();
    answer.status.as_u16() <= STATUS_MAX && has_one_length
}

fn unsent(mut failed: TrySendError<Request<RequestBody>>) -> SendFailure {
    match failed.take_message() {
        Some(request) => SendFailure::Unsent(Box::new(request.into_body())),
        None => SendFailure::Broken(failed.into_error().into()),
    }
}

/// An HTTP/2 connection that several requests share.
#[derive(Clone)]
pub(super) struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
    /// What the upstream allowed when a request was last sent (RFC 9113 section 6.5.2).
    streams_allowed: Arc<AtomicUsize>,
}

/// One place on a shared connection; free again when dropped.
pub(super) struct Stream {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
    state: Streaming,
}

/// How far a request is that has a stream.
enum Streaming {
    /// There is none yet.
    Free,
    /// It is being sent, and its answer awaited.
    Asking(Asking),
    /// The answer has begun.
    Answered(Incoming),
}

type Asking = Pin<Box<dyn Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + Send>>;

impl Stream {
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<()>, SendFailure>> {
        // Asked before a request was given, or again after its answer.
        let Streaming::Asking(asking) = &mut self.state else { return Poll::Pending };
        let answered = ready!(asking.as_mut().poll(context));
        self.state = Streaming::Free;
        let (parts, body) = answered.map_err(unsent)?.into_parts();
        if !is_sound(&parts) {
            return Poll::Ready(Err(SendFailure::Broken(SendError::Unsound)));
        }
        self.state = Streaming::Answered(body);
        Poll::Ready(Ok(Response::from_parts(parts, ())))
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Streaming::Answered(body) = &mut self.state else { return Poll::Ready(None) };
        match Pin::new(&mut *body).poll_frame(context) {
            // hyper takes a stream that was reset with NO_ERROR for one that ended, END_STREAM or not.
            Poll::Ready(None) if !body.is_end_stream() => Poll::Ready(Some(Err(BodyError::Reset))),
            polled => polled.map_err(|error| BodyError::Upstream(error.into())),
        }
    }

    fn answer(&self) -> Option<&Incoming> {
        if let Streaming::Answered(body) = &self.state { Some(body) } else { None }
    }
}

impl Shared {
    /// Takes a place, if the connection lives and has one.
    pub(super) fn stream(&self) -> Option<Stream> {
        if !self.is_open() {
            return None;
        }
        let streams_max = STREAMS_MAX.min(self.streams_allowed.load(Ordering::Relaxed));
        let taken = self.streams.try_update(Ordering::AcqRel, Ordering::Acquire, |streams| (streams < streams_max).then_some(streams + 1));
        taken.ok().map(|_| Stream { sender: self.sender.clone(), streams: self.streams.clone(), state: Streaming::Free })
    }

    /// Whether the other side has not closed it.
    pub(super) fn is_open(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether no request uses it.
    pub(super) fn is_unused(&self) -> bool {
        self.streams.load(Ordering::Acquire) == 0
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection that was just made.
pub(super) enum Opened {
    /// For one.
    Http1(Box<Http1>),
    /// For many.
    Http2(Shared),
}

/// Connects within `deadline`. An HTTP/2 connection is driven by a task, which ends when the connection is closed or nobody
/// holds it any more.
pub(super) async fn open(dialer: &Dialer, endpoint: &Endpoint, deadline: Duration, tasks: &Tasks) -> Result<Opened, Trouble> {
    let dialed = dialer.dial(endpoint, deadline).await;
    let (stream, version) = dialed.map_err(|error| {
        tracing::warn!(%endpoint, %error, "no connection to an upstream");
        match error {
            DialError::Timeout => Trouble::Timeout,
            DialError::Refused(_) | DialError::Tls(_) => Trouble::Unreachable,
        }
    })?;
    let opened = match version {
        Version::Http1 => Opened::Http1(Box::new(Http1::new(stream))),
        Version::Http2 => {
            let mut builder = http2::Builder::new(tasks.clone());
            builder
                .timer(deadline::Timer)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
                .max_header_list_size(ANSWER_HEAD_BYTES_MAX)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT);
            let (sender, mut connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Trouble::Broken)?;
            let streams_allowed = Arc::new(AtomicUsize::new(STREAMS_MAX));
            let allowed = streams_allowed.clone();
            let driven = poll_fn(move |context| {
                let polled = Pin::new(&mut connection).poll(context);
                allowed.store(connection.current_max_send_streams(), Ordering::Relaxed);
                polled
            });
            drive(tasks, endpoint, driven);
            Opened::Http2(Shared { sender, streams: Arc::default(), streams_allowed })
        }
    };
    Ok(opened)
}

fn drive(tasks: &Tasks, endpoint: &Endpoint, connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    let endpoint = endpoint.clone();
    tasks.spawn("upstream connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%endpoint, %error, "an upstream connection broke");
        }
    });
}

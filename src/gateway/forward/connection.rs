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
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::{BodyError, RequestBody};
use super::http1::{AnswerError, Http1, Upgraded};
use super::send::Trouble;
use crate::dial::{DialError, Dialer, Endpoint, Scheme, Version};
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
    /// Shared; this is one of its streams, and the body that comes over it.
    Http2(Stream, Option<Incoming>),
}

/// Why a request has no answer.
pub(super) enum SendFailure {
    /// Nothing of it was written; here it is.
    Unsent(Box<Request<RequestBody>>),
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
}

impl Connection {
    /// Which protocol it speaks.
    pub(super) fn version(&self) -> Version {
        match self {
            Self::Http1(_) => Version::Http1,
            Self::Http2(..) => Version::Http2,
        }
    }

    /// Writes target, host and framing as this connection's protocol wants them; may be done again for another connection.
    ///
    /// # Errors
    /// `Broken` when host and path do not make a URI, which checked ones do.
    pub(super) fn address(
        &self,
        request: &mut Request<RequestBody>,
        endpoint: &Endpoint,
        path: &PathAndQuery,
        host: &HeaderValue,
    ) -> Result<(), Trouble> {
        match self.version() {
            Version::Http1 => {
                *request.version_mut() = http::Version::HTTP_11;
                *request.uri_mut() = Uri::from(path.clone());
                request.headers_mut().insert(HOST, host.clone());
                if !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
                    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
            }
            Version::Http2 => {
                *request.version_mut() = http::Version::HTTP_2;
                let scheme = if endpoint.scheme == Scheme::Https { "https" } else { "http" };
                let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path.clone()).build();
                *request.uri_mut() = uri.map_err(|_| Trouble::Broken)?;
                request.headers_mut().remove(HOST);
                request.headers_mut().remove(TRANSFER_ENCODING);
            }
        }
        Ok(())
    }

    /// Sends a request. Dropping the future aborts it: HTTP/1.1 closes the connection, HTTP/2 resets the stream.
    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<()>, SendFailure> {
        match self {
            Self::Http1(connection) => {
                connection.begin(request);
                poll_fn(|context| connection.poll_answer(context)).await.map_err(|error| SendFailure::Broken(error.into()))
            }
            Self::Http2(stream, answer) => {
                let response = stream.sender.try_send_request(request).await.map_err(unsent)?;
                let (parts, body) = response.into_parts();
                *answer = Some(body);
                Ok(Response::from_parts(parts, ()))
            }
        }
    }

    /// The next piece of the answer's body.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(connection) => connection.poll_frame(context).map_err(|error| BodyError::Upstream(error.into())),
            Self::Http2(_, Some(body)) => match Pin::new(&mut *body).poll_frame(context) {
                // hyper takes a stream that was reset with NO_ERROR for one that ended, END_STREAM or not.
                Poll::Ready(None) if !body.is_end_stream() => Poll::Ready(Some(Err(BodyError::Reset))),
                polled => polled.map_err(|error| BodyError::Upstream(error.into())),
            },
            Self::Http2(_, None) => Poll::Ready(None),
        }
    }

    /// Whether the answer's body has ended.
    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_end_stream(),
            Self::Http2(_, body) => body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    /// What is known of the length of the answer's body.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(connection) => connection.size_hint(),
            Self::Http2(_, body) => body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint),
        }
    }

    /// The raw connection after a `101`, which only HTTP/1.1 has.
    pub(super) fn into_upgraded(self) -> Option<Upgraded> {
        match self {
            Self::Http1(connection) => Some(connection.into_upgraded()),
            Self::Http2(..) => None,
        }
    }
}

fn unsent(mut failed: TrySendError<Request<RequestBody>>) -> SendFailure {
    match failed.take_message() {
        Some(request) => SendFailure::Unsent(Box::new(request)),
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
}

impl Shared {
    /// Takes a place, if the connection lives and has one.
    pub(super) fn stream(&self) -> Option<Stream> {
        if !self.is_open() {
            return None;
        }
        let streams_max = STREAMS_MAX.min(self.streams_allowed.load(Ordering::Relaxed));
        let taken = self.streams.try_update(Ordering::AcqRel, Ordering::Acquire, |streams| (streams < streams_max).then_some(streams + 1));
        taken.ok().map(|_| Stream { sender: self.sender.clone(), streams: self.streams.clone() })
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
                .timer(TokioTimer::new())
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

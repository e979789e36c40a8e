//! HTTP/2 on one connection.
//!
//! hyper and h2 frame, and keep their own limits on reset streams, CONTINUATION and small DATA. Added here: a budget for
//! other frames that carry nothing (`frame_budget`), an end for connections without streams and for old ones (GOAWAY, then
//! a hard end), an end for single streams whose client opens no window for the answer, and the same limits on header
//! fields as HTTP/1.1 has, answered in the product's own words. Only beyond twice the limit h2 itself answers, with an
//! empty 431.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::{Observed, Observer};
use super::drain::{Phase, Watch};
use super::frame_budget::Budgeted;
use super::http::{Replay, Server, spread};
use super::{OwnRefusal, Peer};
use crate::deadline::{self, Deadline};
use crate::tasks::Tasks;

/// Requests at once on a connection: what browsers and proxies expect (RFC 9113 section 6.5.2 asks for 100 at least).
const STREAMS_MAX: u32 = 128;
/// Body bytes that a client may send ahead on a stream, and on all streams together. h2 lets small frames fill half of
/// the latter before it calls them abuse, so it must not be small.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Answer bytes buffered for a stream.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Header fields of a request, counted as RFC 9113 section 6.5.2 counts them, and their number; as for HTTP/1.1.
const HEADER_LIST_BYTES_MAX: usize = 32 * 1024;
const HEADER_FIELDS_MAX: usize = 100;
const HEADER_FIELD_OVERHEAD_BYTES: usize = 32;
/// What h2 decodes at most: twice the limit, so that we, and not h2, answer what is somewhat too large.
const HEADER_LIST_BYTES_DECODED_MAX: u32 = 64 * 1024;
/// A client that is silent so long is asked for a sign of life, and has so long to give it.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection without streams may stay after GOAWAY.
const LEAVING_IDLE: Duration = Duration::from_secs(10);

/// Serves a connection until it ends.
pub(super) async fn serve<S, F, B>(stream: Replay, service: S, peer: Peer, server: &Server, mut phase: Watch)
where
    S: Fn(Request<Incoming>, Arc<Peer>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let limits = &server.options.limits;
    let peer = Arc::new(peer);
    let streams = Streams { tasks: server.tasks.clone(), open: Arc::default(), write_stall: limits.write_stall };
    let calls = service_fn(|request: Request<Incoming>| {
        let answer = if is_oversized(request.headers()) {
            Err((server.refusals)(OwnRefusal::HeadersTooLarge, &peer))
        } else {
            Ok(service(request, peer.clone()))
        };
        async move {
            let answer = match answer {
                Ok(answer) => answer.await.map(Either::Left),
                Err(refusal) => refusal.map(|body| Either::Right(Full::new(body))),
            };
            let delivery = DELIVERY.try_with(Arc::clone).unwrap_or_default();
            Ok::<_, Infallible>(answer.map(|body| Observed::new(body, delivery)))
        }
    });
    let connection = http2::Builder::new(streams.clone())
        .timer(deadline::Timer)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_DECODED_MAX)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(Budgeted::new(stream)), calls);
    let mut connection = pin!(connection);
    let mut age = pin!(tokio::time::sleep(spread(limits.age)));
    let mut idle = Idle::new(streams.open, limits.idle);
    // Who comes after the announcement is let stay until the end of it: told to go before its first request, it could
    // only come again.
    let mut next = if phase.is_at(Phase::Announced) { Phase::Leaving } else { Phase::Announced };
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(listener = server.options.name, %error, "an HTTP/2 connection ended early");
                }
                return;
            }
            () = phase.reached(next) => if next == Phase::Cut { return },
            () = idle.passed() => if next == Phase::Cut { return },
            () = &mut age, if next != Phase::Cut => {}
        }
        next = Phase::Cut;
        idle.shorten(LEAVING_IDLE);
        connection.as_mut().graceful_shutdown();
    }
}

fn is_oversized(headers: &HeaderMap) -> bool {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_FIELD_OVERHEAD_BYTES).sum();
    headers.len() > HEADER_FIELDS_MAX || bytes > HEADER_LIST_BYTES_MAX
}

/// How many streams, tunnels included, a connection has, and since when none.
struct Open(Mutex<Count>);

struct Count {
    streams: usize,
    /// When the last one ended.
    idle_since: Instant,
}

impl Default for Open {
    fn default() -> Self {
        Self(Mutex::new(Count { streams: 0, idle_since: Instant::now() }))
    }
}

/// One open stream.
struct Ticket(Arc<Open>);

impl Ticket {
    fn new(open: Arc<Open>) -> Self {
        open.0.lock().streams += 1;
        Self(open)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut count = self.0.0.lock();
        count.streams -= 1;
        if count.streams == 0 {
            count.idle_since = Instant::now();
        }
    }
}

/// Waits for a connection to have had no stream for some time.
struct Idle {
    open: Arc<Open>,
    limit: Duration,
    timer: Deadline,
}

impl Idle {
    fn new(open: Arc<Open>, limit: Duration) -> Self {
        Self { open, limit, timer: Deadline::after(limit) }
    }

    /// From now on, this is the time.
    fn shorten(&mut self, limit: Duration) {
        self.limit = limit;
        self.timer.move_after(limit);
    }

    async fn passed(&mut self) {
        loop {
            (&mut self.timer).await;
            let now = Instant::now();
            let due = {
                let count = self.open.0.lock();
                let since = if count.streams == 0 { count.idle_since } else { now };
                since + self.limit
            };
            // A stream that is open now, or ended since, moves the earliest possible end, never brings it forward.
            self.timer.move_to(due.max(now));
            if due <= now {
                return;
            }
        }
    }
}

/// Runs a connection's streams in the listener's tasks, counts them, and ends those whose client takes nothing.
#[derive(Clone)]
struct Streams {
    tasks: Tasks,
    open: Arc<Open>,
    write_stall: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let ticket = Ticket::new(self.open.clone());
        let write_stall = self.write_stall;
        self.tasks.execute(async move {
            deliver(stream, write_stall).await;
            drop(ticket);
        });
    }
}

tokio::task_local! {
    /// hyper hands streams to the executor as opaque futures; this is how the body inside one finds its task's account.
    static DELIVERY: Arc<Delivery>;
}

/// Runs a stream, and drops it, which resets it, when its client has opened no window for `write_stall`.
async fn deliver(stream: impl Future<Output = ()>, write_stall: Duration) {
    let delivery = Arc::<Delivery>::default();
    let mut stream = pin!(DELIVERY.scope(delivery.clone(), stream));
    let mut waiting: Option<(u64, Deadline)> = None;
    poll_fn(|context: &mut Context<'_>| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(frame) = delivery.frame_in_hand() else {
            waiting = None;
            return Poll::Pending;
        };
        if waiting.as_ref().is_none_or(|(awaited, _)| *awaited != frame) {
            waiting = Some((frame, Deadline::after(write_stall)));
        }
        match &mut waiting {
            Some((_, timer)) => Pin::new(timer).poll(context),
            None => Poll::Pending,
        }
    })
    .await;
}

/// Whether hyper waits for the body or for the client: it asks for the next frame only when the last one is on its way.
/// The count of moments so far: odd while hyper has a frame in hand.
#[derive(Default)]
struct Delivery(AtomicU64);

impl Delivery {
    /// Which frame hyper has been given and could not yet send.
    fn frame_in_hand(&self) -> Option<u64> {
        let moments = self.0.load(Ordering::Relaxed);
        (moments % 2 == 1).then_some(moments)
    }
}

impl Observer for Arc<Delivery> {
    fn asked(&self) {
        let moments = self.0.load(Ordering::Relaxed);
        self.0.store(moments + moments % 2, Ordering::Relaxed);
    }

    fn handed(&self) {
        let moments = self.0.load(Ordering::Relaxed);
        self.0.store(moments | 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_limited_in_number_and_bytes() {
        let fields = |number: usize, length: usize| {
            let mut headers = HeaderMap::new();
            for place in 0..number {
                let name = http::HeaderName::try_from(format!("x-{place:03}")).unwrap();
                headers.insert(name, "v".repeat(length).try_into().unwrap());
            }
            headers
        };
        assert!(!is_oversized(&fields(100, 200)));
        assert!(is_oversized(&fields(101, 1)));
        assert!(is_oversized(&fields(100, 300)));
        assert!(is_oversized(&fields(1, 32 * 1024)));
    }

    #[test]
    fn a_delivery_tells_frames_apart() {
        let delivery = Arc::new(Delivery::default());
        assert_eq!(delivery.frame_in_hand(), None);
        delivery.asked();
        delivery.handed();
        let first = delivery.frame_in_hand();
        assert!(first.is_some());
        delivery.asked();
        assert_eq!(delivery.frame_in_hand(), None);
        delivery.handed();
        assert_ne!(delivery.frame_in_hand(), first);
    }
}

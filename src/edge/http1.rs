//! HTTP/1.1 on one connection.
//!
//! hyper frames; this file adds what hyper leaves open. One deadline for an idle connection and a shorter one for a
//! head that has begun, where hyper has a single timer for both. Bytes are let in one message at a time (`inlet`), so that
//! each head is looked at before hyper reads it. And where hyper answers a malformed head by itself, with an empty body,
//! the answer is replaced by one in the product's own words before it leaves.
//!
//! All this needs to know whose turn it is, and hyper does not say. But service calls, the end of an answer's body and the
//! flush behind it are visible from outside, and all happen in the connection's one task:
//!
//! ```text
//! Idle ──first byte──▶ Head ──service called──▶ Serving ──body dropped──▶ Answered ──flushed──▶ Idle ──a while──▶ Resting
//! ```
//!
//! So what hyper writes while it is nobody's turn, in Idle or Head, is its own. (One is missed, and goes out as hyper
//! wrote it: garbage behind a body that ended after its own answer, while that answer is still stuck in the socket.)

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::body::{Observed, Observer};
use super::drain::{Phase, Watch};
use super::head_scan::SPOILT_END;
use super::http::{Replay, Server, spread};
use super::inlet::{Follows, Inlet};
use super::own_answer::{read_own_answer, write_answer};
use super::rest::Resting;
use super::stream::Farewell;
use super::tls::socket_mut;
use super::{Limits, OwnRefusal, Peer, Refuse};
use crate::deadline::Deadline;

/// Bytes of a request line and its header fields together; also of chunked trailers. More is 431. Header fields number
/// at most 100, which is hyper's default, left alone because any other number moves its array from stack to heap.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Bytes of what came early that are looked at together: what is not of the next message is looked at again.
const HELD_BYTES_AT_ONCE: usize = 4 * 1024;
/// Bytes that hyper buffers per connection and direction: the most memory of a slow client. A connection has so much only while
/// bytes come or go that fast. With a quarter of it an upload of 10 MiB cost 1.7 times as much (loadtest/README.md).
const BUFFER_BYTES_MAX: usize = 256 * 1024;

/// Serves a connection until it ends.
pub(super) async fn serve<S, F, B>(mut stream: Replay, service: S, peer: Peer, server: &Server, mut phase: Watch)
where
    S: Fn(Request<Incoming>, Arc<Peer>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let peer = Arc::new(peer);
    let leaves_at = Instant::now() + spread(server.options.limits.age);
    loop {
        // Boxed, so that a connection that rests holds nothing of it.
        let conversation = Box::pin(converse(stream, &service, &peer, server, phase.clone(), leaves_at));
        let Some(resting) = conversation.await else { return };
        let resting = Resting { until: resting.until.min(leaves_at), ..resting };
        let Some(woken) = resting.woken(&mut phase).await else { return };
        stream = woken;
    }
}

/// Serves until the connection ends, or rests.
async fn converse<S, F, B>(
    stream: Replay,
    service: &S,
    peer: &Arc<Peer>,
    server: &Server,
    mut phase: Watch,
    leaves_at: Instant,
) -> Option<Resting>
where
    S: Fn(Request<Incoming>, Arc<Peer>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let turn = Arc::new(Turn::new());
    let wire = Wire::new(stream, turn.clone(), peer.clone(), server, phase.clone());
    let phase_of_calls = phase.clone();
    let calls = service_fn(|request: Request<Incoming>| {
        turn.serve(Follows::of(request.body()));
        let turn = turn.clone();
        let method = request.method().clone();
        let answer = service(request, peer.clone());
        let phase = phase_of_calls.clone();
        async move {
            let mut answer = answer.await;
            if becomes_tunnel(&method, answer.status()) {
                turn.enter(Stage::Tunnel);
            } else if phase.is_at(Phase::Announced) {
                // hyper closes the connection behind an answer that says so.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer.map(|body| Observed::new(body, turn)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // `Wire` has the deadlines.
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), calls)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut age = pin!(tokio::time::sleep_until(leaves_at));
    let mut next = Phase::Leaving;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(listener = server.options.name, %error, "an HTTP/1.1 connection ended early");
                }
                return turn.take_resting();
            }
            () = phase.reached(next) => if next == Phase::Cut { return None },
            () = &mut age, if next == Phase::Leaving => {}
        }
        next = Phase::Cut;
        turn.leave_if_idle();
        connection.as_mut().graceful_shutdown();
    }
}

fn becomes_tunnel(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
}

/// Whose turn it is on the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Between requests.
    Idle,
    /// A request's head is coming in.
    Head,
    /// The service has the request, or hyper is sending its answer.
    Serving,
    /// hyper has all of the answer and is flushing it.
    Answered,
    /// The connection was idle and is asked to go.
    Leaving,
    /// It was idle for a while: hyper is done with it, and it goes on.
    Resting,
    /// No longer HTTP.
    Tunnel,
}

/// The stage, shared by the three who see it change. All are in one task, so the lock is never waited for.
struct Turn(Mutex<Progress>);

struct Progress {
    stage: Stage,
    /// What follows the head that hyper has just read, until it is asked for.
    follows: Option<Follows>,
    /// What is left when hyper is done.
    resting: Option<Resting>,
}

impl Turn {
    fn new() -> Self {
        Self(Mutex::new(Progress { stage: Stage::Head, follows: None, resting: None }))
    }

    fn stage(&self) -> Stage {
        self.0.lock().stage
    }

    /// The stage, and once what follows the newest head.
    fn look(&self) -> (Stage, Option<Follows>) {
        let mut progress = self.0.lock();
        (progress.stage, progress.follows.take())
    }

    fn enter(&self, stage: Stage) {
        self.0.lock().stage = stage;
    }

    fn serve(&self, follows: Follows) {
        *self.0.lock() = Progress { stage: Stage::Serving, follows: Some(follows), resting: None };
    }

    fn rest(&self, resting: Resting) {
        *self.0.lock() = Progress { stage: Stage::Resting, follows: None, resting: Some(resting) };
    }

    fn take_resting(&self) -> Option<Resting> {
        self.0.lock().resting.take()
    }

    fn leave_if_idle(&self) {
        let mut progress = self.0.lock();
        if progress.stage == Stage::Idle {
            progress.stage = Stage::Leaving;
        }
    }
}

impl Observer for Arc<Turn> {
    fn ended(&self) {
        let mut progress = self.0.lock();
        if progress.stage == Stage::Serving {
            progress.stage = Stage::Answered;
        }
    }
}

/// The connection as hyper sees it.
struct Wire {
    /// Until the connection rests.
    stream: Option<Replay>,
    turn: Arc<Turn>,
    peer: Arc<Peer>,
    head: Duration,
    idle: Duration,
    rest: Duration,
    /// Until when the next byte, or the end of the head, must have come; holds in `Idle` and `Head`.
    deadline: Instant,
    /// When an idle connection begins to rest.
    rest_at: Instant,
    /// Made when first needed, and moved as seldom as possible: it may fire early, never late.
    timer: Option<Deadline>,
    inlet: Inlet,
    /// What goes out instead of what hyper wrote.
    instead: Bytes,
    refusals: Arc<Refuse>,
    phase: Watch,
    /// In a tunnel: fires when the drain's deadline has passed.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Wire {
    fn new(stream: Replay, turn: Arc<Turn>, peer: Arc<Peer>, server: &Server, phase: Watch) -> Self {
        let Limits { head, idle, rest, .. } = server.options.limits;
        let now = Instant::now();
        Self {
            stream: Some(stream),
            turn,
            peer,
            head,
            idle,
            rest,
            deadline: now + head,
            rest_at: now,
            timer: None,
            inlet: Inlet::new(),
            instead: Bytes::new(),
            refusals: server.refusals.clone(),
            phase,
            cut: None,
        }
    }

    fn stream(&mut self) -> &mut Replay {
        self.stream.as_mut().expect("hyper, told that the client has gone, neither reads nor writes any more")
    }

    /// Whether this moment has passed; if not, the task is woken when it does.
    fn has_passed(&mut self, moment: Instant, context: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Deadline::at(moment));
        loop {
            if timer.has_passed() || timer.is_after(moment) {
                timer.move_to(moment);
            }
            if Pin::new(&mut *timer).poll(context).is_pending() {
                return false;
            }
            if Instant::now() >= moment {
                return true;
            }
        }
    }

    /// Nothing came: ends what has taken too long, and lets rest what has been idle for a while. To hyper either looks as
    /// if the client had gone, and hyper is done with the connection.
    fn ends_waiting(&mut self, stage: Stage, context: &mut Context<'_>) -> bool {
        match stage {
            Stage::Head if self.has_passed(self.deadline, context) => self.turn.enter(Stage::Leaving),
            Stage::Idle if self.has_passed(self.rest_at, context) => {
                let Some(stream) = self.stream.take() else { return true };
                self.turn.rest(Resting { stream, until: self.deadline });
            }
            _ => return false,
        }
        true
    }

    /// Reads what is of this message; what is of the next is kept for later.
    fn poll_message(&mut self, stage: Stage, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining().min(HELD_BYTES_AT_ONCE);
        let held = self.stream().held();
        let (held, is_held) = (held.get(..room).unwrap_or(held), !held.is_empty());
        if is_held {
            buffer.put_slice(held);
        } else {
            ready!(Pin::new(self.stream()).poll_read(context, buffer))?;
        }
        let came = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        if came.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if stage == Stage::Idle {
            self.turn.enter(Stage::Head);
            self.deadline = Instant::now() + self.head;
        }
        let was_spoilt = self.inlet.is_spoilt();
        let admitted = self.inlet.admit(came);
        if self.inlet.is_spoilt() && !was_spoilt {
            // What is dropped here would not have been read: hyper answers an invalid head and closes.
            self.stream().sniffed = Bytes::from_static(SPOILT_END);
        } else if is_held {
            self.stream().release(admitted);
        } else if let Some(early @ [_, ..]) = came.get(admitted..) {
            self.stream().put_back(early);
        }
        buffer.set_filled(before + admitted);
        Poll::Ready(Ok(()))
    }

    /// Waits for the connection's end while nothing else may come in. If something comes, that wait is over, and whoever
    /// lets it in later wakes the task.
    fn poll_end(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.stream().holds_bytes() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(self.stream()).poll_read(context, buffer))?;
        match buffer.filled().get(before..) {
            Some(early @ [_, ..]) => self.stream().put_back(early),
            _ => return Poll::Ready(Ok(())),
        }
        buffer.set_filled(before);
        Poll::Pending
    }

    fn poll_tunnel(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut phase = self.phase.clone();
        let cut = self.cut.get_or_insert_with(|| Box::pin(async move { phase.reached(Phase::Cut).await }));
        if cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the gateway is shutting down")));
        }
        Pin::new(self.stream()).poll_read(context, buffer)
    }

    /// Takes an answer of hyper's own out of what it writes.
    fn intercepts(&mut self, bytes: &[u8]) -> bool {
        if !matches!(self.turn.stage(), Stage::Idle | Stage::Head) {
            return false;
        }
        let Some((status, date)) = read_own_answer(bytes) else { return false };
        let refusal = match status {
            414 => OwnRefusal::TargetTooLong,
            431 if self.inlet.head().is_in_request_line() => OwnRefusal::TargetTooLong,
            431 => OwnRefusal::HeadersTooLarge,
            _ => OwnRefusal::Malformed,
        };
        if !self.inlet.head().is_foreign() {
            self.instead = write_answer(&(self.refusals)(refusal, &self.peer), date);
        }
        true
    }

    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream.as_mut().filter(|_| self.instead.has_remaining()) else { return Poll::Ready(Ok(())) };
        while self.instead.has_remaining() {
            let written = ready!(Pin::new(&mut *stream).poll_write(context, &self.instead))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (stage, follows) = this.turn.look();
        match stage {
            Stage::Tunnel => return this.poll_tunnel(context, buffer),
            Stage::Leaving | Stage::Resting => return Poll::Ready(Ok(())),
            Stage::Idle | Stage::Head | Stage::Serving | Stage::Answered => {}
        }
        if let Some(follows) = follows {
            this.inlet.begin_body(follows);
        }
        if stage == Stage::Idle && this.inlet.is_shut() {
            this.inlet.begin_head();
        }
        let polled = if this.inlet.is_shut() { this.poll_end(context, buffer) } else { this.poll_message(stage, context, buffer) };
        if polled.is_pending() && this.ends_waiting(stage, context) { Poll::Ready(Ok(())) } else { polled }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.intercepts(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(this.poll_instead(context))?;
        Pin::new(this.stream()).poll_write(context, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(head), None) = (filled.next(), filled.next())
            && this.intercepts(head)
        {
            return Poll::Ready(Ok(head.len()));
        }
        ready!(this.poll_instead(context))?;
        Pin::new(this.stream()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_instead(context))?;
        let Some(stream) = &mut this.stream else { return Poll::Ready(Ok(())) };
        ready!(Pin::new(stream).poll_flush(context))?;
        if this.turn.stage() == Stage::Answered {
            this.turn.enter(Stage::Idle);
            let now = Instant::now();
            this.deadline = now + this.idle;
            this.rest_at = now + this.idle.min(this.rest);
            // hyper may already wait for bytes and not ask again until some come: the task is to be woken all the same,
            // by the timer, and at once for a request that is here already.
            this.has_passed(this.rest_at, context);
            if this.stream().holds_bytes() {
                context.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_instead(context))?;
        let is_leaving = this.turn.stage() == Stage::Leaving;
        let Some(stream) = &mut this.stream else { return Poll::Ready(Ok(())) };
        if is_leaving {
            socket_mut(&mut stream.stream).part_with(Farewell::Leave);
        }
        Pin::new(stream).poll_shutdown(context)
    }
}

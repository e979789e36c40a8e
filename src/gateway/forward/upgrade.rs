//! WebSockets: the one upgrade that is passed on, from HTTP/1.1 (RFC 6455) and from HTTP/2 (RFC 8441).
//!
//! Upstream it is always an HTTP/1.1 upgrade over a connection of its own. What comes of it is a `Tunnel`, which the
//! caller runs in a task and may cut at any moment; it ends by itself when nothing flows for the upstream's idle time.
//! Every other `Upgrade` is dropped with the other fields of its hop, and the request served as it is.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Cursor};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, copy_bidirectional, join, split};

use super::body::DeclaredLength;
use super::headers::{self, Fields};
use super::http1::Upgraded as Raw;
use super::pool::{Lease, Slot};
use super::send::{self, Trouble};
use super::{Failure, Forwarded, Forwarding, Websocket};
use crate::deadline::{Deadline, within};
use crate::gateway::target::method_refused;

/// How long the edge may take to hand over the client's connection once the answer is decided; in practice one write.
const HANDOVER_MAX: Duration = Duration::from_secs(10);
/// The only version there is (RFC 6455 section 4.1).
const WEBSOCKET_VERSION: &str = "13";

/// A client's request for a WebSocket on a route that allows it.
pub(super) struct Wish {
    form: Form,
    client: OnUpgrade,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// GET with `Upgrade`.
    Upgrade,
    /// Extended CONNECT.
    Connect,
}

/// Finds out whether the request asks for a WebSocket and may.
///
/// # Errors
/// `MethodRefused` for an extended CONNECT that may not: it cannot be served as anything else.
pub(super) fn wish(parts: &Parts, to: &Forwarding<'_>) -> Result<Option<Wish>, Failure> {
    let is_allowed = to.websocket == Websocket::Allowed && to.upstream.can_upgrade();
    let form = match parts.method {
        Method::CONNECT if is_allowed => Form::Connect,
        Method::CONNECT => return Err(Failure::Rejected(method_refused())),
        Method::GET
            if is_allowed
                && asks_for_websocket(parts)
                && matches!(to.declared_length, DeclaredLength::Unstated | DeclaredLength::Exact(0)) =>
        {
            Form::Upgrade
        }
        _ => return Ok(None),
    };
    match (parts.extensions.get::<OnUpgrade>(), form) {
        (Some(client), _) => Ok(Some(Wish { form, client: client.clone() })),
        // The connection cannot be handed over.
        (None, Form::Upgrade) => Ok(None),
        (None, Form::Connect) => Err(Failure::Rejected(method_refused())),
    }
}

fn asks_for_websocket(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11 && parts.headers.contains_key(SEC_WEBSOCKET_KEY) && names_websocket(&parts.headers)
}

fn names_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let is_websocket =
        protocols.next().is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket")) && protocols.next().is_none();
    is_websocket && headers::has_connection_option(headers, "upgrade")
}

impl Wish {
    /// What the upstream is asked with.
    pub(super) fn method(&self) -> &'static Method {
        &Method::GET
    }

    /// Puts what makes an HTTP/1.1 upgrade of a request whose other fields are put.
    pub(super) fn put_fields(&self, received: &HeaderMap, out: &mut impl Fields) {
        out.compose(&CONNECTION, &["upgrade"]);
        out.compose(&UPGRADE, &["websocket"]);
        if self.form == Form::Connect {
            if !received.contains_key(SEC_WEBSOCKET_KEY) {
                out.copy(&SEC_WEBSOCKET_KEY, &nonce());
            }
            if !received.contains_key(SEC_WEBSOCKET_VERSION) {
                out.compose(&SEC_WEBSOCKET_VERSION, &[WEBSOCKET_VERSION]);
            }
        }
    }

    /// Turns the upstream's answer into the client's: a tunnel when both agree, the plain answer when the upstream declines.
    pub(super) fn answer(self, mut response: Response<()>, lease: Lease, to: &Forwarding<'_>) -> Result<Forwarded, Failure> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // To one who asked by CONNECT, any 2xx would mean that the tunnel stands (RFC 9110 section 9.3.6).
            if self.form == Form::Connect && response.status().is_success() {
                return Err(Trouble::Broken.into());
            }
            return Ok(Forwarded::Answer(send::answer(response, lease, to)));
        }
        if !names_websocket(response.headers()) {
            return Err(Trouble::Broken.into());
        }
        let Some((upstream, slot)) = lease.into_upgraded() else { return Err(Trouble::Broken.into()) };
        let mut answer = Response::new(());
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        headers::for_client(answer.headers_mut(), response.version());
        answer.headers_mut().remove(CONTENT_LENGTH);
        match self.form {
            Form::Upgrade => {
                *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
                answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            }
            Form::Connect => {
                answer.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
                answer.headers_mut().remove(HeaderName::from_static("sec-websocket-key"));
            }
        }
        Ok(Forwarded::Tunnel(answer, Tunnel { client: self.client, upstream, idle_max: to.upstream.limits().idle, _slot: slot }))
    }
}

/// Sixteen bytes that no earlier handshake used (RFC 6455 section 4.1); they guard nothing.
fn nonce() -> HeaderValue {
    let random = || RandomState::new().hash_one(0_u8).to_be_bytes();
    let encoded = STANDARD.encode([random(), random()].concat());
    HeaderValue::try_from(encoded).expect("base64 is printable ASCII")
}

/// An agreed WebSocket, ready to be run once the answer has been returned to hyper.
pub struct Tunnel {
    client: OnUpgrade,
    upstream: Raw,
    idle_max: Duration,
    /// Keeps the upstream's slot taken.
    _slot: Slot,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

/// Why a tunnel ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelOutcome {
    /// Both sides had finished.
    Closed,
    /// Nothing flowed for the upstream's idle time.
    Idle,
    /// The caller cut it.
    Cut,
    /// A side broke off, or never handed its connection over.
    Broken,
}

/// What became of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelEnd {
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes from the upstream.
    pub bytes_down: u64,
    /// Why it ended.
    pub outcome: TunnelOutcome,
}

impl Tunnel {
    /// Copies both ways until both sides have finished, nothing flows, or `cut` completes. Both connections are closed then.
    pub async fn run(self, cut: impl Future<Output = ()>) -> TunnelEnd {
        let mut cut = pin!(cut);
        let (up, down) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let end = |outcome| TunnelEnd { bytes_up: up.load(Ordering::Relaxed), bytes_down: down.load(Ordering::Relaxed), outcome };
        let client = tokio::select! {
            () = &mut cut => return end(TunnelOutcome::Cut),
            client = within(HANDOVER_MAX, self.client) => match client {
                Some(Ok(client)) => client,
                Some(Err(_)) | None => return end(TunnelOutcome::Broken),
            }
        };
        let (reading, writing) = split(self.upstream.0);
        // What came right behind the 101 comes first.
        let upstream = join(Cursor::new(self.upstream.1).chain(reading), writing);
        let mut client = Counted { stream: TokioIo::new(client), bytes: up.clone() };
        let mut upstream = Counted { stream: upstream, bytes: down.clone() };
        let mut copying = pin!(copy_bidirectional(&mut client, &mut upstream));
        loop {
            let before = end(TunnelOutcome::Idle);
            tokio::select! {
                copied = &mut copying => return end(if copied.is_ok() { TunnelOutcome::Closed } else { TunnelOutcome::Broken }),
                () = &mut cut => return end(TunnelOutcome::Cut),
                () = Deadline::after(self.idle_max) => if before == end(TunnelOutcome::Idle) {
                    return before;
                }
            }
        }
    }
}

/// A stream that counts what is read from it.
struct Counted<S> {
    stream: S,
    bytes: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len().saturating_sub(before);
        self.bytes.fetch_add(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

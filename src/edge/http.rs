//! A listener at work: each connection from its first byte to the HTTP version that it speaks.
//!
//! The version is what ALPN settled, or what the first 24 bytes say (RFC 9113 section 3.4); either way the first bytes
//! are awaited here, under a deadline of ours, because hyper has none. The two versions live in `http1` and `http2`.

use std::error::Error;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::accept::{Counted, Listener, Places, Reservation, accept_loop, canonical};
use super::drain::{Drain, Phase, Watch};
use super::proxy_protocol::{Announced, read_header};
use super::stream::Socket;
use super::tls::{Stream, Tls, agreed};
use super::{Options, Peer, ProxyProtocol, Refuse, http1, http2};
use crate::deadline::within;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// What a client with HTTP/2 sends first (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read of a connection: the preface, or the whole head of a usual request. It lasts until that is read.
const FIRST_READ_BYTES: usize = 1024;
/// How long sockets may take to close after everything was cut; tunnels notice at their next read.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Everything that a listener needs beside its sockets and its service.
#[derive(Clone)]
pub struct Server {
    /// Limits and deadlines.
    pub options: Options,
    /// The certificate; `None` is clear text.
    pub tls: Option<Tls>,
    /// Where connections and streams are spawned.
    pub tasks: Tasks,
    /// For `connections`.
    pub metrics: Metrics,
    /// Makes the answer to a request that never reaches the service. `Connection`, `Content-Length` and `Date` are added here.
    pub refusals: Arc<Refuse>,
    /// Ends the listener.
    pub drain: Drain,
}

impl Server {
    /// Serves connections until the drain is over: returns when the last socket is closed, at the latest
    /// `Options::drain` (and a second for closing) after [`Drain::begin`].
    ///
    /// The service's future is dropped when its client goes away, and its body when the client does so later.
    pub async fn serve<S, F, B>(self, listeners: Vec<Listener>, service: S)
    where
        S: Fn(Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let options = &self.options;
        let places = Places::new(options.name, options.connections_max, options.connections_per_address_max, self.metrics.clone());
        // Its own handle, so that this listener's deadline cuts only this listener's connections.
        let ours = Drain::new();
        let server = Arc::new(self);
        let connect = |tcp, address, reservation| {
            let connection = connection(tcp, address, reservation, server.clone(), service.clone(), ours.watch());
            // Boxed, because what is spawned is moved six times.
            server.tasks.spawn("connection", Box::pin(connection));
        };
        let accepting = futures_util::future::join_all(
            listeners.into_iter().map(|listener| accept_loop(listener, places.clone(), server.drain.watch(), connect)),
        );
        let stopping = server.tasks.stopping();
        let mut asked = server.drain.watch();
        let announcing = async {
            asked.reached(Phase::Announced).await;
            ours.announce();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = accepting => {}
            () = announcing => {}
            () = stopping.cancelled() => ours.cut(),
        }
        ours.begin();
        tokio::select! {
            () = places.emptied() => return,
            () = tokio::time::sleep(server.options.drain) => {}
            () = asked.reached(Phase::Cut) => {}
            () = stopping.cancelled() => {}
        }
        ours.cut();
        if within(CUT_GRACE, pin!(places.emptied())).await.is_none() {
            tracing::warn!(listener = server.options.name, "some connections are still open after the drain");
        }
    }
}

async fn connection<S, F, B>(tcp: TcpStream, address: SocketAddr, room: Reservation, server: Arc<Server>, service: S, mut phase: Watch)
where
    S: Fn(Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let name = server.options.name;
    let begun = tokio::select! {
        // Boxed, as is what comes of it: most connections are idle, and hold no room for what they do not do then.
        begun = Box::pin(begin(tcp, address, room, &server)) => begun,
        // Whoever has not sent a request yet is idle.
        () = phase.reached(Phase::Leaving) => return,
    };
    match begun {
        Ok((Version::Http1, stream, peer)) => http1::serve(stream, service, peer, &server, phase).await,
        Ok((Version::Http2, stream, peer)) => Box::pin(http2::serve(stream, service, peer, &server, phase)).await,
        Err(error) => tracing::debug!(listener = name, %address, %error, "a connection ended before its first request"),
    }
}

/// From the accepted socket to the first bytes of HTTP.
async fn begin(tcp: TcpStream, address: SocketAddr, room: Reservation, server: &Server) -> io::Result<(Version, Replay, Peer)> {
    let limits = &server.options.limits;
    let (stream, address) = within(limits.handshake, pin!(arrive(tcp, address, room, server))).await.ok_or(io::ErrorKind::TimedOut)??;
    let peer = Peer { address, secure: server.tls.is_some() };
    let (version, stream) = within(limits.first_byte, pin!(sniff(stream))).await.ok_or(io::ErrorKind::TimedOut)??;
    Ok((version, stream, peer))
}

/// PROXY protocol, place, TLS.
async fn arrive(mut tcp: TcpStream, address: SocketAddr, room: Reservation, server: &Server) -> io::Result<(Stream, SocketAddr)> {
    let options = &server.options;
    let client = match options.proxy_protocol {
        ProxyProtocol::Off => address,
        ProxyProtocol::Demanded if !options.trusts(address.ip()) => return Err(refused("not from a trusted proxy")),
        ProxyProtocol::Demanded => match read_header(&mut tcp).await? {
            Announced::Proxy => address,
            Announced::Client(client) => canonical(client),
        },
    };
    let counted = if options.trusts(client.ip()) { Counted::InAllOnly } else { Counted::ByAddress };
    let place = room.occupy(client.ip(), counted).ok_or_else(|| refused("too many connections from this address"))?;
    let socket = Socket::new(tcp, options.limits.write_stall, place);
    match &server.tls {
        Some(tls) => Ok((tls.accept(socket).await?, client)),
        None => Ok((Stream::Left(socket), client)),
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Reads until the preface is complete or cannot come any more.
async fn sniff(mut stream: Stream) -> io::Result<(Version, Replay)> {
    let mut bytes = Vec::with_capacity(FIRST_READ_BYTES);
    let spoken = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.starts_with(PREFACE) {
            break Version::Http2;
        }
        if !PREFACE.starts_with(&bytes) {
            break Version::Http1;
        }
    };
    match agreed(&stream) {
        Some(agreed) if agreed != spoken => {
            // Said within TLS, so that the end is not taken for a cut wire (RFC 8446 section 6.1). A failure is that of a client
            // who has gone.
            let _ = stream.shutdown().await;
            Err(refused("another version than ALPN settled"))
        }
        _ => Ok((spoken, Replay { sniffed: bytes.into(), stream })),
    }
}

/// A tenth more or less, so that connections that began together do not end together.
pub(super) fn spread(age: Duration) -> Duration {
    // The standard library's hash keys are the cheapest random number there is, and nothing here needs to be secret.
    let dice = RandomState::new().hash_one(0_u8) % 201;
    age.mul_f64(0.9 + f64::from(u8::try_from(dice).unwrap_or(100)) / 1000.0)
}

/// A connection of which some bytes were read already and are read again.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) sniffed: Bytes,
    pub(super) stream: Stream,
}

impl Replay {
    /// Whether there are bytes to read again.
    pub(super) fn holds_bytes(&self) -> bool {
        self.sniffed.has_remaining()
    }

    /// The bytes to be read again.
    pub(super) fn held(&self) -> &[u8] {
        &self.sniffed
    }

    /// So many bytes of them need not be read again.
    pub(super) fn release(&mut self, count: usize) {
        self.sniffed.advance(count.min(self.sniffed.len()));
        if self.sniffed.is_empty() {
            // An empty rest holds the whole of what it is the rest of, as long as the connection lasts.
            self.sniffed = Bytes::new();
        }
    }

    /// Has the bytes that were read last read again.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.sniffed = if self.holds_bytes() { [bytes, &self.sniffed].concat().into() } else { Bytes::copy_from_slice(bytes) };
    }
}

impl AsyncRead for Replay {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.sniffed.has_remaining() {
            let length = self.sniffed.len().min(buffer.remaining());
            buffer.put_slice(&self.sniffed.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

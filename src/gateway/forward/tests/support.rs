//! The front that calls the forwarder, raw peers, and scripted upstreams.
//!
//! A raw client, upstreams that follow a script, and a gateway of only the forwarding step, all on loopback sockets.
//! Waiting is polling with a deadline.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::domain::Rejection;
use crate::gateway::client_address::{ClientAddress, Transport};
use crate::gateway::forward::body::{BodyError, RequestBody};
use crate::gateway::forward::outgoing::{Errand, Outgoing};
use crate::gateway::forward::pool::Wanted;
use crate::gateway::forward::send::exchange;
use crate::gateway::forward::{
    Failure, Fate, Forwarded, Forwarder, Forwarding, Meter, TunnelEnd, Upstream, UpstreamBody, Websocket, check_declared_length,
};
use crate::gateway::target;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// No step of a test takes longer, unless something is broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const BODY_BYTES_MAX: u64 = 1_000;

pub(in crate::gateway::forward) fn upstream_config(endpoints: &[String]) -> config::Upstream {
    config::Upstream {
        endpoints: endpoints.to_vec(),
        timeout: config::UpstreamTimeout::default(),
        health: None,
        connections_max: 8,
        ca: None,
    }
}

/// Polls until `is_so`; a test that waits for something never sleeps blindly.
pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never: {what}"));
}

/// Gateway without keys: checks the target, forwards, answers refusals with their status.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) address: SocketAddr,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) tasks: Tasks,
    pub(super) meters: Arc<Mutex<Vec<Arc<Meter>>>>,
    pub(super) tunnels: Arc<Mutex<Vec<TunnelEnd>>>,
    pub(super) cut: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
}

impl Front {
    pub(super) async fn start(config: config::Upstream) -> Self {
        Self::start_with(config, Websocket::Refused, Speaks::Http1).await
    }

    pub(super) async fn start_with(config: config::Upstream, websocket: Websocket, speaks: Speaks) -> Self {
        let tasks = Tasks::new();
        let upstreams = [("ledger".to_owned(), config)].into();
        let forwarder = Arc::new(Forwarder::new(&upstreams, &tasks, &Metrics::new(), None).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let front = Self { address, forwarder, tasks, meters: Arc::default(), tunnels: Arc::default(), cut: CancellationToken::new() };
        let accepting = front.clone();
        front.tasks.spawn("front", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let front = accepting.clone();
                accepting.tasks.spawn("front connection", async move {
                    let executor = front.tasks.clone();
                    let service = service_fn(move |request| {
                        let front = front.clone();
                        async move { front.serve(request, websocket).await }
                    });
                    let stream = TokioIo::new(stream);
                    let _ = match speaks {
                        Speaks::Http1 => hyper::server::conn::http1::Builder::new().serve_connection(stream, service).with_upgrades().await,
                        Speaks::Http2 => {
                            hyper::server::conn::http2::Builder::new(executor)
                                .enable_connect_protocol()
                                .serve_connection(stream, service)
                                .await
                        }
                    };
                });
            }
        });
        front
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        websocket: Websocket,
    ) -> Result<Response<Either<Unhurried, Full<Bytes>>>, Infallible> {
        let meter = Meter::new();
        self.meters.lock().push(meter.clone());
        Ok(match self.forward(request, websocket, meter).await {
            Ok(Forwarded::Answer(answer)) => answer.map(|body| Either::Left(Unhurried { body, fault: None })),
            Ok(Forwarded::Tunnel(head, tunnel)) => {
                let (ends, cut) = (self.tunnels.clone(), self.cut.clone());
                self.tasks.spawn("tunnel", async move {
                    let end = tunnel.run(async { cut.cancelled().await }).await;
                    ends.lock().push(end);
                });
                head.map(|()| Either::Right(Full::default()))
            }
            Err(failure) => {
                let (status, reason) = match &failure {
                    Failure::Rejected(rejection) => (rejection.consequence().status, rejection.consequence().reason),
                    Failure::ClientGone => (499, "client_gone"),
                };
                Response::builder().status(status).body(Either::Right(Full::from(reason))).unwrap()
            }
        })
    }

    async fn forward(&self, request: Request<Incoming>, websocket: Websocket, meter: Arc<Meter>) -> Result<Forwarded, Failure> {
        let (parts, body) = request.into_parts();
        let target = target::check(&parts)?;
        let declared_length = check_declared_length(&parts.headers, BODY_BYTES_MAX)?;
        let client = ClientAddress::find([192, 0, 2, 7].into(), Transport::Clear, &[], &parts.headers);
        let to = Forwarding {
            upstream: &*self.forwarder.upstream("ledger").ok_or(Failure::Rejected(Rejection::RouteUnknown))?,
            path_and_query: target.path_and_query().clone(),
            host: target.authority(),
            request_id: &HeaderValue::from_static("our-id"),
            assertion: (HeaderName::from_static("x-assure-jwt-assertion"), HeaderValue::from_static("our-word")),
            client: &client,
            websocket,
            declared_length,
            body_bytes_max: BODY_BYTES_MAX,
            meter,
            begun_at: crate::clock::boot_now(),
        };
        self.forwarder.send(&parts, body, &to).await
    }

    pub(super) async fn client(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request over a connection of its own; the status and the body.
    pub(super) async fn ask(&self, request: &str) -> (u16, String) {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer().await
    }

    pub(super) async fn get(&self) -> (u16, String) {
        self.ask(GET).await
    }

    pub(super) fn fate(&self, index: usize) -> Option<Fate> {
        self.meters.lock().get(index).map(|meter| meter.fate())
    }
}

/// Holds a failure back for one turn, as `gateway::answer` does and for its reason.
pub(super) struct Unhurried {
    body: UpstreamBody,
    fault: Option<BodyError>,
}

impl Body for Unhurried {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Err(fault)) => {
                self.fault = Some(fault);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            other => Poll::Ready(other),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

pub(super) const GET: &str = "GET /v1/x?q HTTP/1.1\r\nHost: localhost\r\n\r\n";
pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A socket that is read and written by hand.
pub(super) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(super) async fn send(&mut self, text: &str) {
        // A peer that has closed already is what some tests are about.
        let _ = self.stream.write_all(text.as_bytes()).await;
    }

    /// Up to and with `end`; panics when the connection ends before.
    pub(super) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end.as_bytes()) {
                let rest = self.buffer.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
            }
            assert!(self.fill().await, "the connection ended before {end:?}; there was {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    pub(super) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    pub(super) async fn exactly(&mut self, bytes: usize) -> String {
        while self.buffer.len() < bytes {
            assert!(self.fill().await, "the connection ended after {} of {bytes} bytes", self.buffer.len());
        }
        let rest = self.buffer.split_off(bytes);
        String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap()
    }

    /// Everything until the other side closes.
    pub(super) async fn rest(&mut self) -> String {
        while self.fill().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// A final answer with Content-Length, or chunked in one go.
    pub(super) async fn answer(&mut self) -> (u16, String) {
        loop {
            let head = self.head().await.to_ascii_lowercase();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            if status < 200 && status != 101 {
                continue;
            }
            let length = head.split("content-length: ").nth(1).map(|rest| rest.split("\r\n").next().unwrap().parse().unwrap());
            let body = match length {
                Some(length) => self.exactly(length).await,
                None if head.contains("chunked") => self.until("0\r\n\r\n").await,
                None => String::new(),
            };
            return (status, body);
        }
    }

    async fn fill(&mut self) -> bool {
        let mut piece = [0; 8_192];
        match timeout(PATIENCE, self.stream.read(&mut piece)).await.expect("the other side does nothing") {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&piece[..read]);
                true
            }
        }
    }
}

/// A listener that follows a script on each connection; the script gets the connection's number.
pub(in crate::gateway::forward) struct Script {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: Tasks,
}

impl Script {
    pub(super) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(usize, Peer) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let tasks = Tasks::new();
        let (count, spawner) = (connections.clone(), tasks.clone());
        tasks.spawn("upstream", async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawner.spawn("upstream connection", script(count.fetch_add(1, Ordering::SeqCst), Peer::new(stream)));
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    /// Reads one head and writes `bytes`, then keeps the connection open until the gateway closes it.
    pub(super) async fn saying(bytes: &'static str) -> Self {
        Self::start(move |_, mut peer| async move {
            peer.head().await;
            peer.send(bytes).await;
            peer.rest().await;
        })
        .await
    }

    /// Answers 200 to every request without a body.
    pub(in crate::gateway::forward) async fn ok() -> Self {
        Self::start(|_, mut peer| async move {
            while peer.has_head().await {
                peer.head().await;
                peer.send(OK).await;
            }
        })
        .await
    }

    pub(in crate::gateway::forward) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(in crate::gateway::forward) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(in crate::gateway::forward) fn config(&self) -> config::Upstream {
        upstream_config(&[self.endpoint()])
    }
}

impl Peer {
    /// Waits for a head; false when the other side closes instead.
    pub(super) async fn has_head(&mut self) -> bool {
        loop {
            if self.buffer.windows(4).any(|window| window == b"\r\n\r\n") {
                return true;
            }
            if !self.fill().await {
                return false;
            }
        }
    }
}

/// One POST without a body, sent and answered.
pub(in crate::gateway::forward) async fn exchange_once(upstream: &Upstream) {
    let (fields, path, host) = (http::HeaderMap::new(), "/".parse().unwrap(), HeaderValue::from_static("a"));
    let request = Outgoing { method: &http::Method::POST, target: &path, host: &host, fields: &fields, errand: Errand::Own };
    let meter = Meter::new();
    let sending = exchange(upstream, &request, RequestBody::nothing(), Wanted::Any, &meter);
    let (_, mut lease) = timeout(PATIENCE, sending).await.unwrap().unwrap();
    while let Some(frame) = poll_fn(|context| lease.connection().poll_frame(context)).await {
        frame.unwrap();
    }
    lease.give_back();
}

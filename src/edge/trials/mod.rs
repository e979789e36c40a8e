//! The edge on real sockets of 127.0.0.1: raw clients where bytes matter, hyper's client for HTTP/2, `dial` for TLS.
//!
//! Answers and their edges are in `answers`, beginnings and ends in `connections`, certificates in `tls`. Each test has
//! a listener of its own.

mod answers;
mod connections;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::{Drain, Limits, Options, OwnRefusal, Peer, ProxyProtocol, Server, Tls, bind};
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// Longer than anything here takes, and short enough to notice what hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// A deadline shortened so that a test can wait for it.
const SOON: Duration = Duration::from_millis(150);

/// A listener and its service, running.
struct Edge {
    address: SocketAddr,
    drain: Drain,
    tasks: Tasks,
    metrics: Metrics,
    /// `/slow` takes one to answer.
    answers: Arc<Semaphore>,
    /// Calls and bodies that the service has and has not seen the end of.
    open: Arc<AtomicUsize>,
    served: oneshot::Receiver<()>,
}

impl Edge {
    fn start(options: Options, tls: Option<Tls>) -> Self {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let (drain, tasks, metrics) = (Drain::new(), Tasks::new(), Metrics::new());
        let (answers, open) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let server =
            Server { options, tls, tasks: tasks.clone(), metrics: metrics.clone(), refusals: Arc::new(refuse), drain: drain.clone() };
        let service = {
            let (answers, open, tasks) = (answers.clone(), open.clone(), tasks.clone());
            move |request, peer| serve(request, peer, answers.clone(), Account::open(&open), tasks.clone())
        };
        let (done, served) = oneshot::channel();
        tasks.spawn("edge", async move {
            server.serve(vec![listener], service).await;
            let _ = done.send(());
        });
        Self { address, drain, tasks, metrics, answers, open, served }
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new("edge");
        change(&mut options);
        Self::start(options, None)
    }

    fn with_limits(change: impl FnOnce(&mut Limits)) -> Self {
        Self::with(|options| change(&mut options.limits))
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a new connection and reads until it ends.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        read_to_end(&mut stream).await
    }

    async fn http2<B>(&self) -> SendRequest<B>
    where
        B: Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static,
    {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(self.connect().await)).await.unwrap();
        self.tasks.spawn("client", async move { drop(connection.await) });
        sender
    }

    async fn calls_are(&self, number: usize) {
        eventually("the number of open calls", || self.open.load(Ordering::SeqCst) == number).await;
    }

    fn connections(&self) -> i64 {
        self.metrics.connections.with_label_values(&["edge"]).get()
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come true");
}

async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection stays open");
    if let Err(error) = read {
        bytes.extend_from_slice(format!("<{}>", error.kind()).as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}

async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("an answer comes").unwrap();
        text.push(char::from(byte));
    }
    text
}

/// Counts a call from its beginning to the end of its body.
struct Account(Arc<AtomicUsize>);

impl Account {
    fn open(number: &Arc<AtomicUsize>) -> Self {
        number.fetch_add(1, Ordering::SeqCst);
        Self(number.clone())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Zeros without end.
struct Endless(#[expect(dead_code, reason = "held until the body is dropped")] Account);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS)))))
    }
}

async fn serve(
    mut request: Request<Incoming>,
    peer: Arc<Peer>,
    answers: Arc<Semaphore>,
    account: Account,
    tasks: Tasks,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let text = |status, text: String| Response::builder().status(status).body(Full::new(Bytes::from(text)).boxed_unsync()).unwrap();
    match request.uri().path() {
        "/early" => {
            let mut answer = text(StatusCode::PAYLOAD_TOO_LARGE, "too large".into());
            answer.headers_mut().insert("connection", "close".parse().unwrap());
            answer
        }
        "/slow" => {
            answers.acquire().await.unwrap().forget();
            text(StatusCode::OK, "slow".into())
        }
        "/endless" => Response::new(Endless(account).boxed_unsync()),
        "/echo" => {
            let mut answer = text(StatusCode::OK, String::new());
            if request.method() != Method::CONNECT {
                *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                answer.headers_mut().insert("connection", "upgrade".parse().unwrap());
                answer.headers_mut().insert("upgrade", "websocket".parse().unwrap());
            }
            let upgrade = hyper::upgrade::on(&mut request);
            tasks.spawn("tunnel", async move {
                let _account = account;
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            answer
        }
        _ => text(StatusCode::OK, format!("{} {} {:?}", peer.address.ip(), peer.secure, request.version())),
    }
}

fn refuse(refusal: OwnRefusal, _: &Peer) -> Response<Bytes> {
    let status = match refusal {
        OwnRefusal::Malformed => 400,
        OwnRefusal::TargetTooLong => 414,
        OwnRefusal::HeadersTooLarge => 431,
    };
    let answer = Response::builder().status(status).header("x-request-id", "7").header("content-type", "application/problem+json");
    answer.body(Bytes::from(format!("{{\"code\":\"{refusal:?}\"}}"))).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://localhost{path}")).body(Empty::new()).unwrap()
}

async fn text_of(answer: Response<Incoming>) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Sends 50 MB without looking for an answer, as simple clients do, and then must find the whole answer.
async fn upload(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let zeros = vec![0; 1_000_000];
    stream.write_all(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n").await.unwrap();
    for _ in 0..50 {
        stream.write_all(&zeros).await.expect("the upload goes on");
    }
    let answer = read_to_end(stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\ntoo large"), "{answer}");
}

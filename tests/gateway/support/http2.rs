//! A real HTTP/2 client (hyper's), behind calls that block, so that tests read from top to bottom.
//!
//! It owns a small runtime; each started request runs there and hands its answer over when it has ended.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc as channel;

use super::client::{Body, Request};
use super::wire::{Answer, Fields, READ_TIMEOUT};

type Payload = BoxBody<Bytes, Infallible>;

/// One HTTP/2 connection.
pub(crate) struct Http2 {
    runtime: Runtime,
    sender: SendRequest<Payload>,
}

/// A request whose answer is awaited.
pub(crate) struct Started {
    done: mpsc::Receiver<Result<Answer, String>>,
    /// Status and body bytes that have come so far.
    progress: Arc<Mutex<(u16, Vec<u8>)>>,
}

impl Started {
    /// The whole answer; an error when the stream was reset before its head came.
    pub(crate) fn answer(self) -> Result<Answer, String> {
        self.answer_within(READ_TIMEOUT)
    }

    pub(crate) fn answer_within(&self, wait: Duration) -> Result<Answer, String> {
        self.done.recv_timeout(wait).map_err(|_| "no answer in time".to_owned())?
    }

    /// What has come of the answer until now.
    pub(crate) fn so_far(&self) -> (u16, Vec<u8>) {
        self.progress.lock().expect("no holder panics").clone()
    }
}

impl Http2 {
    /// Prior knowledge over clear text (RFC 9113 section 3.3).
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let runtime = runtime();
        let socket = runtime.block_on(TcpStream::connect(address)).expect("the edge accepts");
        Self::over(runtime, socket).expect("an HTTP/2 connection")
    }

    /// TLS with ALPN `h2`.
    pub(crate) fn connect_tls(address: SocketAddr, config: Arc<rustls::ClientConfig>) -> Result<Self, String> {
        let runtime = runtime();
        let stream = runtime.block_on(async {
            let socket = TcpStream::connect(address).await?;
            let name = "localhost".try_into().expect("localhost is a name");
            tokio_rustls::TlsConnector::from(config).connect(name, socket).await
        });
        let stream = stream.map_err(|error| error.to_string())?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "ALPN chose h2");
        Self::over(runtime, stream)
    }

    fn over(runtime: Runtime, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, String> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_stream_window_size(1024 * 1024);
        let (sender, connection) = runtime.block_on(builder.handshake(TokioIo::new(io))).map_err(|error| error.to_string())?;
        // How the connection ends shows in its requests.
        runtime.spawn(async move { drop(connection.await) });
        Ok(Self { runtime, sender })
    }

    /// Sends a request and waits for its whole answer.
    pub(crate) fn exchange(&self, request: &Request) -> Result<Answer, String> {
        self.start(request).answer()
    }

    /// Sends a request and does not wait.
    pub(crate) fn start(&self, request: &Request) -> Started {
        let payload = match &request.body {
            Body::None => Empty::new().boxed(),
            Body::Sized(bytes) => Full::new(Bytes::from(bytes.clone())).boxed(),
            Body::Unsized(bytes) => {
                let pieces: Vec<_> = bytes.chunks(48 * 1024).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
                BodyExt::boxed(StreamBody::new(stream::iter(pieces)))
            }
        };
        self.launch(request, payload)
    }

    /// Sends a request whose body is handed in piece by piece; it ends when the feed is dropped.
    pub(crate) fn start_fed(&self, request: &Request) -> (channel::Sender<Vec<u8>>, Started) {
        let (feed, pieces) = channel::channel::<Vec<u8>>(4);
        let frames = stream::unfold(pieces, |mut pieces| async move {
            let piece = pieces.recv().await?;
            Some((Ok(Frame::data(Bytes::from(piece))), pieces))
        });
        (feed, self.launch(request, BodyExt::boxed(StreamBody::new(Box::pin(frames)))))
    }

    fn launch(&self, request: &Request, payload: Payload) -> Started {
        let mut message =
            http::Request::builder().method(request.method.as_str()).uri(format!("http://{}{}", request.host, request.target));
        for (name, value) in &request.fields {
            message = message.header(name, value);
        }
        let message = message.body(payload).expect("a request that HTTP/2 can carry");
        let (hand_over, done) = mpsc::channel();
        let progress = Arc::new(Mutex::new((0, Vec::new())));
        let (noting, mut sender) = (Arc::clone(&progress), self.sender.clone());
        self.runtime.spawn(async move {
            let answer = match sender.send_request(message).await {
                Ok(response) => Ok(collect(response, &noting).await),
                Err(error) => Err(format!("{error:?}")),
            };
            // A test that has stopped waiting is not an error.
            hand_over.send(answer).ok();
        });
        Started { done, progress }
    }
}

async fn collect(response: http::Response<Incoming>, progress: &Mutex<(u16, Vec<u8>)>) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut answer = Answer { status: head.status.as_u16(), fields: fields(&head.headers), ..Answer::default() };
    progress.lock().expect("no holder panics").0 = answer.status;
    loop {
        match body.frame().await {
            None => {
                answer.complete = true;
                return answer;
            }
            Some(Err(_)) => return answer,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    progress.lock().expect("no holder panics").1.extend_from_slice(&data);
                    answer.body.extend_from_slice(&data);
                }
                Err(frame) => answer.trailers = frame.trailers_ref().map(fields).unwrap_or_default(),
            },
        }
    }
}

fn fields(headers: &http::HeaderMap) -> Fields {
    Fields(headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

//! Tools in front of the gateway that speak HTTP/1.1 byte by byte.
//!
//! `Request` builds a well-formed request; `Client` is a connection on which exactly the bytes that a test wants are
//! sent and one answer after the other is read.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::wire::{Answer, Broken, End, Framing, Wire, declared_framing};

/// A request in words, for HTTP/1.1 and HTTP/2 alike.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Body,
}

/// What follows a request's head.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    /// Announced by Content-Length.
    Sized(Vec<u8>),
    /// Chunked in HTTP/1.1, of undeclared length in HTTP/2.
    Unsized(Vec<u8>),
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), host: "localhost".into(), fields: Vec::new(), body: Body::None }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: Body::Sized(body.into()), ..Self::new("POST", target) }
    }

    /// The same with the body's length left undeclared.
    pub(crate) fn streamed(mut self) -> Self {
        if let Body::Sized(bytes) = self.body {
            self.body = Body::Unsized(bytes);
        }
        self
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Presents a key, or a user's token, as a bearer.
    pub(crate) fn bearer(self, secret: &str) -> Self {
        let value = format!("Bearer {secret}");
        self.with("Authorization", &value)
    }

    pub(crate) fn json(method: &str, target: &str, body: &serde_json::Value) -> Self {
        Self { body: Body::Sized(body.to_string().into_bytes()), ..Self::new(method, target) }.with("Content-Type", "application/json")
    }

    /// The request's head in HTTP/1.1, its blank line included.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.target, self.host);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.body {
            Body::None => {}
            Body::Sized(bytes) => head.push_str(&format!("Content-Length: {}\r\n", bytes.len())),
            Body::Unsized(_) => head.push_str("Transfer-Encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    fn body_on_the_wire(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Sized(bytes) => bytes.clone(),
            Body::Unsized(bytes) => {
                let mut wire: Vec<u8> = bytes.chunks(48 * 1024).flat_map(chunk).collect();
                wire.extend_from_slice(b"0\r\n\r\n");
                wire
            }
        }
    }

    /// Sends it on a connection of its own and reads the answer.
    ///
    /// # Panics
    /// When no answer comes.
    #[track_caller]
    pub(crate) fn send_to(&self, address: SocketAddr) -> Answer {
        let mut client = Client::connect(address);
        client.exchange(self).unwrap_or_else(|broken| panic!("{} {}: {broken:?}", self.method, self.target))
    }

    /// The status of an answer, if anybody answers yet.
    pub(crate) fn send_if_up(&self, address: SocketAddr) -> Option<u16> {
        Client::try_connect(address).ok()?.exchange(self).ok().map(|answer| answer.status)
    }
}

/// One chunk of a chunked body.
pub(crate) fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// One connection to the gateway.
pub(crate) struct Client {
    wire: Wire,
}

impl Client {
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        Ok(Self { wire: Wire::new(socket)? })
    }

    /// A connection that was made in a way of its own.
    pub(crate) fn over(socket: TcpStream) -> io::Result<Self> {
        Ok(Self { wire: Wire::new(socket)? })
    }

    /// The same through TLS; the handshake takes place with the first bytes.
    pub(crate) fn connect_tls(address: SocketAddr, config: Arc<rustls::ClientConfig>) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        let name = "localhost".try_into().expect("localhost is a name");
        let session = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
        let stream = rustls::StreamOwned::new(session, socket.try_clone()?);
        Ok(Self { wire: Wire::over(socket, stream)? })
    }

    pub(crate) fn wait_at_most(&self, wait: Duration) {
        self.wire.wait_at_most(wait);
    }

    /// A second handle of the socket, to cut it from another thread.
    pub(crate) fn socket(&self) -> TcpStream {
        self.wire.socket()
    }

    /// Sends bytes as they are. An error means that the gateway has gone; an answer may still be readable.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.send(bytes.as_ref())
    }

    /// The answer to a request that was not HEAD.
    pub(crate) fn answer(&mut self) -> Result<Answer, Broken> {
        self.answer_to("GET")
    }

    /// The next final answer; a body that breaks off is answered with `complete: false`.
    pub(crate) fn answer_to(&mut self, method: &str) -> Result<Answer, Broken> {
        let mut interim = Vec::new();
        loop {
            let answer = self.answer_head(method)?;
            if !(100..200).contains(&answer.0.status) || answer.0.status == 101 {
                let (answer, framing) = answer;
                return Ok(self.read_body(Answer { interim, ..answer }, framing));
            }
            interim.push(answer.0.status);
        }
    }

    /// The head of the next answer, 1xx included, and how its body is framed.
    pub(crate) fn answer_head(&mut self, method: &str) -> Result<(Answer, Framing), Broken> {
        let head = self.wire.head()?;
        // A client of HTTP/1.0 is answered in its own version.
        let rest = head.start.strip_prefix("HTTP/1.1 ").or_else(|| head.start.strip_prefix("HTTP/1.0 "));
        let status = rest.and_then(|rest| rest.get(..3)).and_then(|digits| digits.parse().ok());
        let status: u16 = status.ok_or_else(|| Broken::Malformed(format!("not a status line: {:?}", head.start)))?;
        let declared = declared_framing(&head.fields)?;
        let is_bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        let framing = if is_bodiless { Framing::Length(0) } else { declared.unwrap_or(Framing::UntilClose) };
        Ok((Answer { status, fields: head.fields, ..Answer::default() }, framing))
    }

    fn read_body(&mut self, mut answer: Answer, framing: Framing) -> Answer {
        let mut body = Vec::new();
        if let Ok(trailers) = self.wire.body(framing, |piece| body.extend_from_slice(piece)) {
            answer.trailers = trailers;
            answer.complete = true;
        }
        answer.body = body;
        answer
    }

    /// Reads a running answer until `needle` has come; what came is in [`Client::recorded`].
    pub(crate) fn read_until(&mut self, needle: &str) -> Result<(), Broken> {
        while !self.wire.recorded.windows(needle.len()).any(|window| window == needle.as_bytes()) {
            self.wire.read_on()?;
        }
        Ok(())
    }

    /// Sends a request and reads its answer; keeps the connection.
    pub(crate) fn exchange(&mut self, request: &Request) -> Result<Answer, Broken> {
        // A gateway that refuses early may close while we still send; what it said is what counts.
        let sent = self.send([request.head(), request.body_on_the_wire()].concat());
        self.answer_to(&request.method).map_err(|broken| if sent.is_err() { Broken::Reset } else { broken })
    }

    /// Whether the gateway has closed the connection, waiting a moment for it.
    pub(crate) fn end(&mut self) -> End {
        self.wire.end(Duration::from_secs(5))
    }

    pub(crate) fn end_within(&mut self, wait: Duration) -> End {
        self.wire.end(wait)
    }

    pub(crate) fn finish_sending(&self) {
        self.wire.finish_sending();
    }

    /// All bytes that came, up to a bound.
    pub(crate) fn recorded(&self) -> &[u8] {
        &self.wire.recorded
    }
}

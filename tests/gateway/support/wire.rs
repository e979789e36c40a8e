//! A strict reader of HTTP/1.1, used on both sides of the gateway.
//!
//! It accepts exactly what RFC 9112 allows a sender to write and nothing that is merely tolerated, because what the
//! gateway forwards and answers must leave no room for two readings: lines end in CRLF, names are tokens, values
//! hold no control bytes, a message is framed once. It leaves meaning to `client` and `upstream`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Longest wait for a byte before a test is told that nothing comes.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest head that is read: more than anything the gateway lets pass.
const HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Why no further message could be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// The peer closed in order.
    Ended,
    /// The peer closed, but did not say so within TLS (RFC 8446 section 6.1): anyone may have cut it.
    Truncated,
    /// The peer reset the connection.
    Reset,
    /// Nothing came for [`READ_TIMEOUT`], or for the wait that was set.
    Silent,
    /// What came is not HTTP/1.1.
    Malformed(String),
    /// Anything else that the socket says, which is no doing of the peer.
    Other(io::ErrorKind),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => Self::Reset,
            other => Self::Other(other),
        }
    }
}

/// How a connection is after the last message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The peer sent FIN.
    Closed,
    /// The peer sent RST.
    Reset,
    /// Neither, within the wait.
    Open,
}

/// Header fields in the order in which they came.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(pub(crate) Vec<(String, String)>);

impl Fields {
    /// The only value of `name`; `None` if there is none.
    ///
    /// # Panics
    /// If there are several: a test that wants them asks for [`Fields::all`].
    #[track_caller]
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} stands {} times in {self:?}", all.len());
        all.first().copied()
    }

    /// Every value of `name`.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a list field names `member`, whatever its case.
    pub(crate) fn lists(&self, name: &str, member: &str) -> bool {
        self.all(name).iter().flat_map(|value| value.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(member))
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(out, "{name}: {value}"))
    }
}

/// A message's first line and fields, with the bytes they came in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) start: String,
    pub(crate) fields: Fields,
    pub(crate) raw: Vec<u8>,
}

/// How a body is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// An answer that ends with the connection.
    UntilClose,
}

/// An answer as a client saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Statuses of the 1xx answers before it.
    pub(crate) interim: Vec<u16>,
    pub(crate) status: u16,
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    /// Whether the body ended as its framing said it would.
    pub(crate) complete: bool,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {} {:?}", self.status, self.text()))
    }

    /// The `code` of a problem+json body (RFC 9457), or nothing.
    pub(crate) fn code(&self) -> String {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .ok()
            .and_then(|body| body.get("code")?.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// The answer itself, after checking its status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}\n{}", self.fields, self.text());
        self
    }

    /// The answer itself, after checking that it is a complete problem of this status and code.
    #[track_caller]
    pub(crate) fn expect_problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.code(), code, "{}", answer.text());
        assert_eq!(answer.fields.one("content-type"), Some("application/problem+json"));
        let problem = answer.json();
        assert_eq!(problem["status"], status, "the body repeats the status");
        for member in ["type", "title", "detail", "request_id"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} is missing in {problem}");
        }
        assert_eq!(answer.fields.one("x-request-id"), problem["request_id"].as_str(), "one request, one id");
        answer
    }
}

trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// One connection and what has been read ahead on it.
pub(crate) struct Wire {
    stream: Box<dyn Duplex>,
    socket: TcpStream,
    ahead: Vec<u8>,
    /// Every byte that was read from the peer, up to [`Wire::RECORDED_BYTES_MAX`].
    pub(crate) recorded: Vec<u8>,
}

impl Wire {
    /// What is kept for assertions on raw bytes; bodies beyond it are only counted and hashed.
    pub(crate) const RECORDED_BYTES_MAX: usize = 256 * 1024;

    pub(crate) fn new(socket: TcpStream) -> io::Result<Self> {
        let stream = socket.try_clone()?;
        Self::over(socket, stream)
    }

    /// A connection whose bytes pass through `stream` (TLS) on their way to `socket`.
    pub(crate) fn over(socket: TcpStream, stream: impl Read + Write + Send + 'static) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        socket.set_write_timeout(Some(READ_TIMEOUT))?;
        Ok(Self { stream: Box::new(stream), socket, ahead: Vec::new(), recorded: Vec::new() })
    }

    /// A second handle of the same socket, to watch it or to cut it.
    pub(crate) fn socket(&self) -> TcpStream {
        self.socket.try_clone().expect("a socket can be cloned")
    }

    pub(crate) fn wait_at_most(&self, wait: Duration) {
        self.socket.set_read_timeout(Some(wait)).expect("a wait is not zero");
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Ends our half of the connection.
    pub(crate) fn finish_sending(&self) {
        // A peer that has reset the connection already has made this unnecessary.
        self.socket.shutdown(Shutdown::Write).ok();
    }

    /// Waits for the end of the connection and throws away what still comes.
    pub(crate) fn end(&mut self, wait: Duration) -> End {
        self.wait_at_most(wait);
        self.ahead.clear();
        loop {
            match self.fill() {
                Ok(()) => self.ahead.clear(),
                Err(Broken::Ended) => return End::Closed,
                Err(Broken::Silent) => return End::Open,
                Err(_) => return End::Reset,
            }
        }
    }

    /// Sends back what comes until the connection ends.
    pub(crate) fn echo(&mut self) -> io::Result<()> {
        loop {
            let piece = std::mem::take(&mut self.ahead);
            self.send(&piece)?;
            if self.fill().is_err() {
                return Ok(());
            }
        }
    }

    /// Reads more bytes, whatever they are, into `recorded`.
    pub(crate) fn read_on(&mut self) -> Result<(), Broken> {
        self.fill()
    }

    /// Exactly so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        while self.ahead.len() < count {
            self.fill()?;
        }
        Ok(self.ahead.drain(..count).collect())
    }

    fn fill(&mut self) -> Result<(), Broken> {
        let mut piece = vec![0; 64 * 1024];
        let count = loop {
            match self.stream.read(&mut piece) {
                // With a receive timeout the kernel does not restart a read that anything interrupted (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if count == 0 {
            return Err(Broken::Ended);
        }
        let read = &piece[..count];
        let room = Self::RECORDED_BYTES_MAX.saturating_sub(self.recorded.len());
        self.recorded.extend_from_slice(&read[..count.min(room)]);
        self.ahead.extend_from_slice(read);
        Ok(())
    }

    fn line(&mut self, length_max: usize) -> Result<Vec<u8>, Broken> {
        let mut searched = 0;
        loop {
            if let Some(place) = self.ahead[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.ahead.drain(..=searched + place).collect();
                line.pop();
                return if line.pop() == Some(b'\r') { Ok(line) } else { Err(malformed("a line ends in a bare LF", &line)) };
            }
            // The line end is not part of the line, and may be here by half.
            if self.ahead.len() > length_max + 1 {
                return Err(malformed("a line is too long", &self.ahead[..self.ahead.len().min(80)]));
            }
            searched = self.ahead.len();
            self.fill()?;
        }
    }

    /// The next message's head.
    pub(crate) fn head(&mut self) -> Result<Head, Broken> {
        let start = self.line(HEAD_BYTES_MAX)?;
        let mut raw = [start.as_slice(), b"\r\n"].concat();
        let fields = self.fields(&mut raw)?;
        let start = String::from_utf8(start).map_err(|error| malformed("a first line is not ASCII", error.as_bytes()))?;
        Ok(Head { start, fields, raw })
    }

    fn fields(&mut self, raw: &mut Vec<u8>) -> Result<Fields, Broken> {
        let mut fields = Fields::default();
        loop {
            let line = self.line(HEAD_BYTES_MAX)?;
            raw.extend_from_slice(&line);
            raw.extend_from_slice(b"\r\n");
            if line.is_empty() {
                return Ok(fields);
            }
            fields.0.push(field(&line)?);
        }
    }

    /// The body that `framing` announces, piece by piece; answers the trailers.
    pub(crate) fn body(&mut self, framing: Framing, mut take: impl FnMut(&[u8])) -> Result<Fields, Broken> {
        match framing {
            Framing::Length(length) => self.take(length, &mut take).map(|()| Fields::default()),
            Framing::Chunked => self.chunks(&mut take),
            Framing::UntilClose => loop {
                let piece = std::mem::take(&mut self.ahead);
                take(&piece);
                match self.fill() {
                    Ok(()) => {}
                    Err(Broken::Ended) => return Ok(Fields::default()),
                    Err(broken) => return Err(broken),
                }
            },
        }
    }

    fn take(&mut self, mut length: u64, take: &mut impl FnMut(&[u8])) -> Result<(), Broken> {
        while length > 0 {
            if self.ahead.is_empty() {
                self.fill()?;
            }
            let count = self.ahead.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let piece: Vec<u8> = self.ahead.drain(..count).collect();
            take(&piece);
            length -= count as u64;
        }
        Ok(())
    }

    fn chunks(&mut self, take: &mut impl FnMut(&[u8])) -> Result<Fields, Broken> {
        loop {
            let line = self.line(HEAD_BYTES_MAX)?;
            let text = std::str::from_utf8(&line).unwrap_or_default();
            let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let length =
                is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten().ok_or_else(|| malformed("a chunk size is not hex", &line))?;
            if length == 0 {
                return self.fields(&mut Vec::new());
            }
            self.take(length, take)?;
            if !self.line(0).is_ok_and(|rest| rest.is_empty()) {
                return Err(malformed("a chunk is longer than its size", &[]));
            }
        }
    }
}

fn malformed(what: &str, bytes: &[u8]) -> Broken {
    Broken::Malformed(format!("{what}: {:?}", bytes.escape_ascii().to_string()))
}

/// One field line (RFC 9112 section 5): a token, a colon, a value without control bytes.
fn field(line: &[u8]) -> Result<(String, String), Broken> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| malformed("a field has no colon", line))?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(is_token) {
        return Err(malformed("a field name is not a token", line));
    }
    if value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
        return Err(malformed("a field value has a control byte", line));
    }
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
    Ok((text(name), text(value)))
}

/// How the body of a message with these fields is framed (RFC 9112 section 6.3); `None` when neither field says.
pub(crate) fn declared_framing(fields: &Fields) -> Result<Option<Framing>, Broken> {
    let codings = fields.all("transfer-encoding");
    let lengths = fields.all("content-length");
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Ok(None),
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(Framing::Chunked)),
        ([], [length]) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(|length| Some(Framing::Length(length))).map_err(|_| malformed("a length is too large", length.as_bytes()))
        }
        _ => Err(Broken::Malformed(format!("a body is framed by {codings:?} and {lengths:?}"))),
    }
}

//! What a server made of the bytes that it was sent, read off its answers.
//!
//! Read leniently, unlike everything else here: the answers of four foreign servers to broken requests follow no grammar.
//! What is compared is what `X-Saw` says, in a form in which spellings that mean the same are the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A request as a server understood it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Saw {
    pub(super) server: String,
    pub(super) method: String,
    pub(super) target: String,
    host: String,
    /// `None` where a server does not say.
    length: Option<u64>,
    /// What the gateway called it.
    pub(super) request_id: String,
}

impl Saw {
    /// `NAME METHOD TARGET [HOST] LENGTH`, the last of which may be missing; a target may hold what nobody should send, spaces included.
    fn read(text: &str, request_id: &str) -> Option<Self> {
        let (server, rest) = text.split_once(' ')?;
        let (method, rest) = rest.split_once(' ')?;
        let (rest, length) = rest.rsplit_once(']')?;
        let length = length.trim();
        let (target, host) = rest.split_once(" [")?;
        let length = if length.is_empty() || length == "-" { None } else { Some(length.parse().ok()?) };
        let owned = str::to_owned;
        Some(Self {
            server: owned(server),
            method: owned(method),
            target: owned(target),
            host: owned(host),
            length,
            request_id: owned(request_id),
        })
    }

    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let lengths_agree = match (self.length, other.length) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => true,
        };
        let (mine, theirs) = (split_host(&self.host), split_host(&other.host));
        self.method == other.method && plain(&self.target) == plain(&other.target) && mine == theirs && lengths_agree
    }

    /// Whether it was asked of this host, at whatever port.
    pub(super) fn is_for_host(&self, host: &str) -> bool {
        split_host(&self.host).0 == split_host(host).0
    }
}

/// Host and port, whatever the case, with or without the root's dot; the usual port need not be named.
fn split_host(text: &str) -> (String, String) {
    let text = text.trim().to_ascii_lowercase();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text.as_str(), "80"),
    };
    (host.strip_suffix('.').unwrap_or(host).to_owned(), port.to_owned())
}

/// The target in origin form, with escapes of letters and digits undone (RFC 3986 section 6.2.2).
fn plain(target: &str) -> String {
    let origin = target
        .strip_prefix("http://")
        .or_else(|| target.strip_prefix("https://"))
        .map_or(target, |rest| rest.find('/').map_or("/", |slash| &rest[slash..]));
    let (path, query) = origin.split_once('?').map_or((origin, ""), |(path, query)| (path, query));
    let mut pieces = path.split('%');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let byte = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                plain.push(char::from(byte));
                plain.push_str(&piece[2..]);
            }
            Some(_) => plain.push_str(&format!("%{}{}", piece[..2].to_ascii_uppercase(), &piece[2..])),
            None => plain.push_str(&format!("%{piece}")),
        }
    }
    format!("{plain}?{query}")
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// With this status, which is no answer to what was understood.
    Refused(u16),
    Closed,
    /// Nothing more came: the server waits for bytes.
    Silent,
}

/// What a server understood of all that it was sent.
#[derive(Clone, Debug)]
pub(super) struct Understanding {
    pub(super) saw: Vec<Saw>,
    pub(super) ended: Ended,
}

impl Understanding {
    fn read(bytes: &[u8], is_closed: bool) -> Self {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let (mut saw, mut refused) = (Vec::new(), None);
        for answer in text.split("HTTP/1.").skip(1) {
            let status: Option<u16> = answer.get(2..5).and_then(|status| status.parse().ok());
            let field = |name: &str| {
                let mut lines = answer.split("\r\n").take_while(|line| !line.is_empty());
                lines.find_map(|line| line.split_once(": ").filter(|(known, _)| known.eq_ignore_ascii_case(name))).map(|(_, value)| value)
            };
            match (status, field("x-saw")) {
                // nginx says so on its own errors too.
                (Some(200..400), Some(text)) => saw.extend(Saw::read(text, field("x-request-id").unwrap_or_default())),
                // What comes behind a refusal is not of the same place any more.
                (Some(status @ 400..), _) => {
                    refused = Some(status);
                    break;
                }
                _ => {}
            }
        }
        let ended = match refused {
            Some(status) => Ended::Refused(status),
            None if is_closed => Ended::Closed,
            None => Ended::Silent,
        };
        Self { saw, ended }
    }
}

/// Sends bytes on a connection of their own and listens until the server closes or falls silent.
pub(super) async fn listen(address: SocketAddr, bytes: Arc<[u8]>, quiet: Duration) -> Understanding {
    let mut received = Vec::new();
    let is_closed = async {
        let mut socket = TcpStream::connect(address).await.ok()?;
        // A server that closes early is one that refuses; what it said counts.
        drop(socket.write_all(&bytes).await);
        loop {
            match timeout(quiet, socket.read_buf(&mut received)).await {
                Ok(Ok(0) | Err(_)) => return None,
                Ok(Ok(_)) => {}
                Err(_) => return Some(()),
            }
        }
    };
    let is_closed = is_closed.await.is_none();
    Understanding::read(&received, is_closed)
}

//! The client's half of HTTP/2 (RFC 9113) by hand, because a real client refuses to send what the tests want to send.
//!
//! Functions build frames and header blocks (plain literals, RFC 7541 section 6.2.3), `Frames` is a connection that sends
//! any bytes and reads one frame after the other.

use std::io;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::wire::{Broken, Wire};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// SETTINGS and PING: an answer.
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// Error codes (RFC 9113 section 7).
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const COMPRESSION_ERROR: u32 = 9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// Settings (RFC 9113 section 6.5.2).
pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const ENABLE_PUSH: u16 = 2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What a client sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Whether a flag is set.
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> Option<u32> {
        let place = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        self.payload.get(place..place + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
    }
}

/// A frame of any kind.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A header block of plain literals. What is indexed here is never.
pub(crate) fn block<T: AsRef<[u8]>>(fields: &[(T, T)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [vec![0x10], text(name.as_ref()), text(value.as_ref())].concat()).collect()
}

/// A string literal without Huffman coding (RFC 7541 section 5.2).
fn text(text: &[u8]) -> Vec<u8> {
    const PREFIX_MAX: usize = 127;
    let mut bytes = Vec::new();
    match text.len().checked_sub(PREFIX_MAX) {
        None => bytes.push(u8::try_from(text.len()).expect("less than the prefix holds")),
        Some(mut rest) => {
            bytes.push(127);
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).expect("seven bits"));
        }
    }
    bytes.extend_from_slice(text);
    bytes
}

/// A connection that sends any frame.
pub(crate) struct Frames {
    wire: Wire,
}

impl Frames {
    /// Clear text, and nothing sent yet.
    #[track_caller]
    pub(crate) fn silent(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("the edge accepts");
        Self { wire: Wire::new(socket).expect("a socket") }
    }

    /// TLS, and nothing sent within it yet.
    #[track_caller]
    pub(crate) fn silent_tls(address: SocketAddr, config: Arc<rustls::ClientConfig>) -> Self {
        let socket = TcpStream::connect(address).expect("the edge accepts");
        let name = "localhost".try_into().expect("localhost is a name");
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        let stream = rustls::StreamOwned::new(session, socket.try_clone().expect("a socket can be cloned"));
        Self { wire: Wire::over(socket, stream).expect("a socket") }
    }

    /// The other half: a connection that the gateway made, once its preface has come.
    pub(crate) fn accepted(socket: TcpStream) -> Result<Self, Broken> {
        let mut frames = Self { wire: Wire::new(socket).map_err(|_| Broken::Reset)? };
        let preface = frames.wire.bytes(PREFACE.len())?;
        if preface == PREFACE { Ok(frames) } else { Err(Broken::Malformed("not the preface of HTTP/2".into())) }
    }

    /// Clear text, with preface and empty settings sent and nothing read.
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut frames = Self::silent(address);
        frames.raw(&[PREFACE, &settings(&[])].concat()).expect("sent");
        frames
    }

    /// Exchanges prefaces and waits until the gateway has taken our settings; answers its own.
    pub(crate) fn handshake(&mut self) -> Result<Vec<(u16, u32)>, Broken> {
        self.raw(&[PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 65_535)])].concat())?;
        let (mut theirs, mut is_taken) = (None, false);
        loop {
            if let (Some(theirs), true) = (&theirs, is_taken) {
                return Ok(Vec::clone(theirs));
            }
            let came = self.frame()?;
            match (came.kind, came.has(ACK)) {
                (SETTINGS, true) => is_taken = true,
                (SETTINGS, false) => {
                    self.raw(&frame(SETTINGS, ACK, 0, &[]))?;
                    let pairs = came.payload.chunks_exact(6);
                    theirs = Some(pairs.map(|pair| (number(&pair[..2]) as u16, number(&pair[2..]))).collect());
                }
                _ => {}
            }
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.send(bytes)
    }

    /// Sends a frame; says whether the gateway still takes any.
    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.raw(&frame(kind, flags, stream, payload)).is_ok()
    }

    /// The next frame.
    pub(crate) fn frame(&mut self) -> Result<Frame, Broken> {
        let head = self.wire.bytes(9)?;
        let payload = self.wire.bytes(number(&head[..3]) as usize)?;
        Ok(Frame { kind: head[3], flags: head[4], stream: number(&head[5..]), payload })
    }

    /// The next byte, whatever it is.
    pub(crate) fn any(&mut self) -> Result<u8, Broken> {
        self.wire.bytes(1).map(|bytes| bytes[0])
    }

    pub(crate) fn wait_at_most(&self, wait: Duration) {
        self.wire.wait_at_most(wait);
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The status of an answer: the first field of its block (RFC 7541 appendix A), as h2 writes it.
pub(crate) fn status(block: &[u8]) -> Option<u16> {
    let usual = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [first @ 0x88..=0x8e, ..] => usual.get(usize::from(first - 0x88)).copied(),
        // A literal with the indexed name `:status`, plain or in Huffman's code.
        [0x08 | 0x18 | 0x48, 3, digits @ ..] => std::str::from_utf8(digits.get(..3)?).ok()?.parse().ok(),
        [0x08 | 0x18 | 0x48, length @ 0x80..=0xff, rest @ ..] => digits(rest.get(..usize::from(length & 0x7f))?),
        _ => None,
    }
}

/// Three digits in the code of RFC 7541 appendix B: 0 to 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u16> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |place| u16::from(byte >> place & 1))).collect();
    let value = |from: usize, count: usize| bits.get(from..from + count).map(|bits| bits.iter().fold(0, |value, bit| value << 1 | bit));
    let (mut place, mut number) = (0, 0);
    for _ in 0..3 {
        let (digit, length) = match value(place, 5)? {
            short @ 0..=2 => (short, 5),
            _ => (value(place, 6)?.checked_sub(0b01_1001 - 3)?, 6),
        };
        number = number * 10 + digit;
        place += length;
    }
    Some(number)
}

//! One connection of a load: sends a request, reads its answer, says how long that took.

use std::io::{self, Read, Write};
use std::time::Instant;

use mio::{Interest, Registry, Token};

use crate::plan::Plan;
use crate::server::{content_length, head_end, header};
use crate::transport::Transport;

/// Zeros for bodies, and the most that is written at once.
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// A complete answer.
pub struct Answered {
    /// Its status code.
    pub status: u16,
    /// When its request should have been sent.
    pub due: Instant,
    /// Whether the server closes the connection behind it.
    pub closes: bool,
}

/// A connection and the one request that it may have under way.
pub struct Client {
    transport: Transport,
    head: Vec<u8>,
    written: usize,
    body_unsent: u64,
    due: Option<Instant>,
    input: Vec<u8>,
    /// Status and closing of the answer whose body is being read, and how much of it is missing.
    reading: Option<(u16, bool, u64)>,
    /// How many answers it has had.
    pub answers: u64,
}

impl Client {
    /// Begins to connect.
    pub fn connect(plan: &Plan, registry: &Registry, token: Token, number: usize) -> io::Result<Self> {
        let mut transport = Transport::connect(plan.target, plan.tls.as_ref(), number)?;
        registry.register(transport.socket(), token, Interest::READABLE | Interest::WRITABLE)?;
        let (head, input) = (Vec::new(), Vec::new());
        Ok(Self { transport, head, written: 0, body_unsent: 0, due: None, input, reading: None, answers: 0 })
    }

    /// Whether it has a request under way.
    pub fn is_busy(&self) -> bool {
        self.due.is_some()
    }

    /// When the request under way should have been sent.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins a request. What the socket does not take now follows when it is writable.
    pub fn begin(&mut self, plan: &Plan, number: u64, due: Instant) -> io::Result<()> {
        self.head.clear();
        self.written = 0;
        plan.write_head(number, &mut self.head);
        self.body_unsent = plan.body_bytes;
        self.due = Some(due);
        self.write()
    }

    /// Writes what is left and reads what has come; an answer that became complete is returned.
    pub fn progress(&mut self, scratch: &mut [u8]) -> io::Result<Option<Answered>> {
        self.write()?;
        loop {
            match self.transport.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let answered = self.take(&scratch[..count])?;
                    // Events are edges, but only one answer is under way: behind it there is nothing to read.
                    if answered.is_some() {
                        return Ok(answered);
                    }
                }
                Err(error) if is_for_later(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        match self.write_all() {
            Err(error) if is_for_later(&error) => Ok(()),
            result => result,
        }
    }

    fn write_all(&mut self) -> io::Result<()> {
        while self.written < self.head.len() {
            self.written += self.transport.write(&self.head[self.written..])?;
        }
        while self.body_unsent > 0 {
            let most = usize::try_from(self.body_unsent).unwrap_or(ZEROS.len()).min(ZEROS.len());
            self.body_unsent -= self.transport.write(&ZEROS[..most])? as u64;
        }
        self.transport.flush()
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<Option<Answered>> {
        if let Some((status, closes, missing)) = self.reading {
            return self.take_body(status, closes, missing, bytes.len());
        }
        self.input.extend_from_slice(bytes);
        let Some(end) = head_end(&self.input) else { return Ok(None) };
        let head = &self.input[..end];
        // Lengths only: nothing that is measured here answers in chunks, and a wrong reading must not look fast.
        if header(head, "transfer-encoding").is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer in chunks"));
        }
        let status = status(head).ok_or(io::ErrorKind::InvalidData)?;
        let closes = header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        let (missing, come) = (content_length(head), self.input.len() - end);
        self.input.clear();
        self.take_body(status, closes, missing, come)
    }

    fn take_body(&mut self, status: u16, closes: bool, missing: u64, come: usize) -> io::Result<Option<Answered>> {
        let left = missing.checked_sub(come as u64).ok_or(io::ErrorKind::InvalidData)?;
        self.reading = (left > 0).then_some((status, closes, left));
        if left > 0 {
            return Ok(None);
        }
        let due = self.due.take().ok_or(io::ErrorKind::InvalidData)?;
        self.answers += 1;
        // A refusal may come before the body was sent whole; then the connection is of no more use.
        Ok(Some(Answered { status, due, closes: closes || self.body_unsent > 0 }))
    }
}

fn is_for_later(error: &io::Error) -> bool {
    // A socket that is still connecting says NotConnected.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

//! The TCP socket of one connection, under TLS and HTTP.
//!
//! Promises two things that neither the operating system nor hyper does: a peer that takes nothing for a while is cut,
//! and an early answer (413, 401, …) reaches a client that is still sending. For the second, closing *lingers*: FIN
//! goes out behind the answer, and what still comes in is read and thrown away, because closing a socket with unread
//! bytes makes the kernel send RST, and RST makes the client's kernel throw the answer away (RFC 9112 section 9.6).
//! Holds the connection's place in the limits until the socket is closed, tunnels included.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::accept::Place;
use crate::deadline::Deadline;

/// How long a lingering close waits for the next byte: a client that has read the answer closes long before.
const LINGER_QUIET: Duration = Duration::from_secs(2);
/// How long a lingering close takes in all.
const LINGER_TOTAL: Duration = Duration::from_secs(30);
/// How many bytes a lingering close throws away: several times the largest body that the gateway lets through.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// So few bytes in several pieces are copied into one: the kernel's way of a vectored write takes 0.2 µs longer, the copy 0.03.
const COPIED_BYTES_MAX: usize = 4 * 1024;
/// Bytes thrown away at a time.
const DISCARD_BYTES: usize = 16 * 1024;

/// What closing has to expect of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Farewell {
    /// The peer may still be sending: closing lingers.
    Linger,
    /// The connection was idle: there is nothing to wait for.
    Leave,
}

/// A TCP connection with its place in the limits.
#[derive(Debug)]
pub(super) struct Socket {
    tcp: TcpStream,
    write_stall: Duration,
    /// Made when a write first has to wait, and kept for the next time.
    stall: Option<Deadline>,
    stalled: Stalled,
    farewell: Farewell,
    lingering: Option<Lingering>,
    /// Given back after the descriptor is closed: fields are dropped in order.
    _place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stalled {
    No,
    Yes,
}

impl Socket {
    /// `write_stall`: how long the peer may take no byte at all while there is something to send.
    pub(super) fn new(tcp: TcpStream, write_stall: Duration, place: Place) -> Self {
        Self { tcp, write_stall, stall: None, stalled: Stalled::No, farewell: Farewell::Linger, lingering: None, _place: place }
    }

    /// Says how to close.
    pub(super) fn part_with(&mut self, farewell: Farewell) {
        self.farewell = farewell;
    }

    /// Looks at the result of a write, and makes an error of one that has waited too long.
    fn progress<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = Stalled::No;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Deadline::after(self.write_stall));
        if self.stalled == Stalled::No {
            self.stalled = Stalled::Yes;
            stall.move_after(self.write_stall);
        }
        ready!(Pin::new(stall).poll(context));
        // Without this the kernel would go on offering the unsent bytes to the peer for minutes after the close.
        let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}

/// A close that waits for the peer to stop sending.
#[derive(Debug)]
struct Lingering {
    until: Instant,
    discarded: usize,
    timer: Deadline,
}

impl Lingering {
    fn new() -> Self {
        let now = Instant::now();
        Self { until: now + LINGER_TOTAL, discarded: 0, timer: Deadline::after(LINGER_QUIET) }
    }

    fn poll_discard(&mut self, tcp: &mut TcpStream, context: &mut Context<'_>) -> Poll<()> {
        let before = self.discarded;
        let mut space = [MaybeUninit::uninit(); DISCARD_BYTES];
        while self.discarded < LINGER_BYTES_MAX {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *tcp).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    if self.discarded > before {
                        self.timer.move_to(self.until.min(Instant::now() + LINGER_QUIET));
                    }
                    return Pin::new(&mut self.timer).poll(context);
                }
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.progress(context, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if slices.iter().map(|slice| slice.len()).sum::<usize>() <= COPIED_BYTES_MAX {
            let mut space = [MaybeUninit::uninit(); COPIED_BYTES_MAX];
            let mut whole = ReadBuf::uninit(&mut space);
            slices.iter().for_each(|slice| whole.put_slice(slice));
            return self.poll_write(context, whole.filled());
        }
        let written = Pin::new(&mut self.tcp).poll_write_vectored(context, slices);
        self.progress(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(context))?;
            if this.farewell == Farewell::Leave {
                return Poll::Ready(Ok(()));
            }
        }
        let lingering = this.lingering.get_or_insert_with(Lingering::new);
        ready!(lingering.poll_discard(&mut this.tcp, context));
        Poll::Ready(Ok(()))
    }
}

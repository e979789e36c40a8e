//! A budget for frames of HTTP/2 that make work and carry nothing.
//!
//! h2 stops floods of resets, of CONTINUATION and of small DATA by itself. PING and SETTINGS it answers for ever, PRIORITY and
//! unknown kinds it reads for ever. Here they are counted as they come in, and a connection that sends more of them
//! than any client has use for ends. WINDOW_UPDATE is not counted: some clients send two for each small piece of an answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::mutants::{self, Mutant};

/// A thousand a second: gRPC pings once in a round trip while it measures bandwidth, nothing else comes near it.
const IDLE_FRAMES_MAX: u32 = 10_000;
const SPAN: Duration = Duration::from_secs(10);

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;

/// Kinds and a flag (RFC 9113 section 6).
const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// Follows the frames of a connection from head to head.
#[derive(Debug)]
struct Budget {
    /// Bytes until the next head.
    skip: usize,
    /// As much of a head as has come.
    head: Vec<u8>,
    left: u32,
    since: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { skip: PREFACE_BYTES, head: Vec::with_capacity(HEAD_BYTES), left: IDLE_FRAMES_MAX, since: Instant::now() }
    }

    /// Whether there is still patience after these bytes.
    fn spend(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let taken = (HEAD_BYTES - self.head.len()).min(bytes.len());
            if taken == 0 {
                return true;
            }
            let (head, rest) = bytes.split_at(taken);
            self.head.extend_from_slice(head);
            bytes = rest;
            let [high, middle, low, kind, flags, ..] = *self.head.as_slice() else { return true };
            if self.head.len() < HEAD_BYTES {
                return true;
            }
            self.head.clear();
            self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let is_idle = match kind {
                PRIORITY | SETTINGS | PING => true,
                DATA => self.skip == 0 && flags & END_STREAM == 0,
                _ => kind > CONTINUATION,
            };
            if is_idle && !mutants::active(Mutant::NoFrameBudget) && !self.take_one() {
                return false;
            }
        }
    }

    fn take_one(&mut self) -> bool {
        if self.left == 0 && self.since.elapsed() >= SPAN {
            (self.left, self.since) = (IDLE_FRAMES_MAX, Instant::now());
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// A connection whose frames are counted.
#[derive(Debug)]
pub(super) struct Budgeted<S> {
    stream: S,
    budget: Budget,
}

impl<S> Budgeted<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, budget: Budget::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Budgeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let came = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(if self.budget.spend(came) { Ok(()) } else { Err(io::Error::other("a flood of frames that carry nothing")) })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Budgeted<S> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// How many of `frames` fit into what is spent at once.
    fn left_after(frames: &[Vec<u8>], piece: usize) -> u32 {
        let mut budget = Budget::new();
        let bytes = [&[b'p'; PREFACE_BYTES][..], &frames.concat()].concat();
        assert!(bytes.chunks(piece).all(|piece| budget.spend(piece)));
        budget.left
    }

    #[test]
    fn only_frames_that_carry_nothing_are_counted_however_they_are_cut() {
        // Payloads that look like heads of what is counted.
        let trap = frame(PING, 0, &[0; 8]).repeat(3);
        let carrying =
            [frame(1, 4, &trap), frame(DATA, 0, &trap), frame(DATA, END_STREAM, &[]), frame(3, 0, &[0; 4]), frame(8, 0, &[0; 4])];
        let idle =
            [frame(PING, 0, &[0; 8]), frame(SETTINGS, 1, &[]), frame(PRIORITY, 0, &[0; 5]), frame(DATA, 0, &[]), frame(99, 0, &trap)];
        for piece in [1, 2, 8, 9, 10, 31, 4096] {
            assert_eq!(left_after(&carrying, piece), IDLE_FRAMES_MAX);
            assert_eq!(left_after(&[&carrying[..], &idle].concat(), piece), IDLE_FRAMES_MAX - 5);
        }
    }

    #[test]
    fn a_flood_ends_and_the_same_number_over_a_longer_time_does_not() {
        let ping = frame(PING, 0, &[0; 8]);
        let mut budget = Budget { skip: 0, ..Budget::new() };
        for _ in 0..3 {
            assert!((0..IDLE_FRAMES_MAX).all(|_| budget.spend(&ping)));
            budget.since -= SPAN;
        }
        assert!((0..IDLE_FRAMES_MAX).all(|_| budget.spend(&ping)));
        assert!(!budget.spend(&ping));
    }
}

//! A request on its way out: its head, and its body as it comes, framed anew (RFC 9112 section 7.1).
//!
//! What is ready goes out in one write. A body that ends before its declared length, or goes on after it, stops the
//! request: an incomplete message never looks complete.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::HeaderMap;
use http_body::Body;
use tokio::io::AsyncWrite;

use crate::dial::Stream;
use crate::gateway::forward::body::{DeclaredLength, RequestBody};
use crate::gateway::forward::headers::Fields;
use crate::gateway::forward::outgoing::{Lines, Outgoing};

/// Room for a head of ours: an assertion, some addresses, what clients usually send.
const HEAD_BYTES_USUAL: usize = 2 * 1024;
/// Room that a connection keeps for its next head; a larger one is given back.
const HEAD_BYTES_KEPT: usize = 4 * 1024;
/// The last chunk, with no trailers behind it.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Why a request will not be completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// Its body broke off; the meter knows why.
    ByBody,
    /// The connection takes no more.
    ByUpstream,
}

/// A request that is being written.
pub(super) struct Writing {
    /// The head, or a chunk's size, or the end of a body. Its room outlives the request.
    front: Vec<u8>,
    /// How much of it was written.
    front_written: usize,
    /// A piece of the body behind it.
    data: Bytes,
    /// What ends a chunk, behind the piece.
    tail: &'static [u8],
    rest: Rest,
}

enum Rest {
    /// More of the body may come.
    Body(RequestBody, Framing),
    /// Everything is in the buffers, or written.
    Nothing,
    /// The request will never be complete.
    Stopped(Stopped),
}

#[derive(Clone, Copy)]
enum Framing {
    /// So many bytes are still due.
    Length(u64),
    Chunked,
}

impl Writing {
    /// No request: nothing to write.
    pub(super) fn nothing() -> Self {
        Self { front: Vec::new(), front_written: 0, data: Bytes::new(), tail: b"", rest: Rest::Nothing }
    }

    /// The next request, after one that is complete.
    pub(super) fn begin(&mut self, request: &Outgoing<'_>, body: RequestBody) {
        self.front.reserve(HEAD_BYTES_USUAL);
        request.write_http1(&body, &mut self.front);
        self.rest = match request.length() {
            _ if body.is_end_stream() => Rest::Nothing,
            DeclaredLength::Exact(length) => Rest::Body(body, Framing::Length(length)),
            DeclaredLength::Chunked | DeclaredLength::Unstated => Rest::Body(body, Framing::Chunked),
        };
    }

    /// Whether all of the request was written.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.rest, Rest::Nothing) && !self.has_bytes()
    }

    /// Writes what there is; ready when the request is complete, or never will be.
    pub(super) fn poll(&mut self, stream: &mut Stream, context: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if let Rest::Stopped(why) = self.rest {
                return Poll::Ready(Err(why));
            }
            let filled = self.poll_fill(context);
            if !self.has_bytes() {
                ready!(filled);
                if let Rest::Nothing = self.rest {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match ready!(self.poll_write(stream, context)) {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "an upstream takes no more of a request");
                    self.stop(Stopped::ByUpstream);
                }
            }
        }
    }

    fn has_bytes(&self) -> bool {
        !(self.front.is_empty() && self.data.is_empty() && self.tail.is_empty())
    }

    /// What is not written yet of the front.
    fn front(&self) -> &[u8] {
        self.front.get(self.front_written..).unwrap_or_default()
    }

    /// The body is dropped with it, which tells its meter.
    fn stop(&mut self, why: Stopped) {
        *self = Self { rest: Rest::Stopped(why), ..Self::nothing() };
    }

    /// Takes the next piece of the body if there is room for it; pending while the client has none.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !(self.data.is_empty() && self.tail.is_empty()) {
            return Poll::Ready(());
        }
        let Rest::Body(body, framing) = &mut self.rest else { return Poll::Ready(()) };
        match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => {
                let (is_last, framing) = (body.is_end_stream(), *framing);
                match frame.into_data() {
                    Ok(data) => self.put_data(data, framing, is_last),
                    Err(frame) => self.put_trailers(frame.into_trailers().unwrap_or_default(), framing),
                }
            }
            Some(Err(_)) => self.stop(Stopped::ByBody),
            None => {
                let framing = *framing;
                self.end(framing);
            }
        }
        Poll::Ready(())
    }

    fn put_data(&mut self, data: Bytes, framing: Framing, is_last: bool) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        match framing {
            Framing::Length(left) if length > left => return self.stop(Stopped::ByBody),
            Framing::Length(left) => {
                if let Rest::Body(_, framing) = &mut self.rest {
                    *framing = Framing::Length(left - length);
                }
            }
            // A chunk of no bytes would be the last.
            Framing::Chunked if data.is_empty() => {}
            Framing::Chunked => {
                write!(self.front, "{length:X}\r\n").expect("writing to memory does not fail");
                self.tail = if is_last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
            }
        }
        self.data = data;
        match framing {
            Framing::Length(left) if is_last => self.end(Framing::Length(left - length)),
            Framing::Chunked if is_last && !self.tail.is_empty() => self.rest = Rest::Nothing,
            Framing::Chunked if is_last => self.end(framing),
            Framing::Length(_) | Framing::Chunked => {}
        }
    }

    fn put_trailers(&mut self, trailers: HeaderMap, framing: Framing) {
        match framing {
            Framing::Length(_) => self.end(framing),
            Framing::Chunked => {
                self.front.extend_from_slice(b"0\r\n");
                let mut lines = Lines(&mut self.front);
                trailers.iter().for_each(|(name, value)| lines.copy(name, value));
                self.front.extend_from_slice(b"\r\n");
                self.rest = Rest::Nothing;
            }
        }
    }

    fn end(&mut self, framing: Framing) {
        match framing {
            Framing::Length(0) => self.rest = Rest::Nothing,
            Framing::Length(_) => self.stop(Stopped::ByBody),
            Framing::Chunked => {
                self.front.extend_from_slice(LAST_CHUNK);
                self.rest = Rest::Nothing;
            }
        }
    }

    /// Writes all that is in the buffers.
    fn poll_write(&mut self, stream: &mut Stream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.has_bytes() {
            let mut stream = Pin::new(&mut *stream);
            let written = ready!(if self.data.is_empty() && self.tail.is_empty() {
                stream.as_mut().poll_write(context, self.front())
            } else {
                stream
                    .as_mut()
                    .poll_write_vectored(context, &[IoSlice::new(self.front()), IoSlice::new(&self.data), IoSlice::new(self.tail)])
            })?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Pin::new(stream).poll_flush(context)
    }

    fn advance(&mut self, written: usize) {
        let front = written.min(self.front().len());
        self.front_written += front;
        if self.front_written == self.front.len() {
            self.front.clear();
            self.front.shrink_to(HEAD_BYTES_KEPT);
            self.front_written = 0;
        }
        let data = (written - front).min(self.data.len());
        self.data.advance(data);
        self.tail = self.tail.get(written - front - data..).unwrap_or_default();
    }
}

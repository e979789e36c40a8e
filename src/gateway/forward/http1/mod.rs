//! HTTP/1.1 to an endpoint (RFC 9112): one connection, one exchange after another, without a task of its own.
//!
//! Whoever waits for the answer drives the connection, so an exchange costs no switch between tasks and no message between
//! them; measured, that is a third of what forwarding cost with hyper's client. `request` writes, `head` and `decoder`
//! read. An answer may flow while its request still does. What was read in doubt is never used again: a connection
//! is reusable only when both messages ended where they said, and nothing came after them.

mod decoder;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod head;
mod request;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use self::decoder::{Decoded, Decoder};
use self::head::Head;
pub(super) use self::head::STATUS_MAX;
use self::request::{Stopped, Writing};
use super::body::RequestBody;
use super::outgoing::Outgoing;
use crate::dial::Stream;

/// Room for the first read: a head and a small answer.
const ROOM_BYTES_MIN: usize = 8 * 1024;
/// Room for a read of an answer that comes fast, and so the most that is buffered of one.
const ROOM_BYTES_MAX: usize = 128 * 1024;
/// Answers before the answer (RFC 9110 section 15.2) that are passed over; more is a storm.
const INFORMATIONAL_MAX: usize = 16;

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection ended in the middle.
    #[error("the connection ended before the answer did")]
    Ended,
    /// What came is not an answer.
    #[error("not an HTTP/1.1 answer: {0}")]
    Malformed(&'static str),
    /// The request could not be completed, so its answer cannot be trusted.
    #[error("the request's body broke off")]
    RequestBroken,
}

/// One connection.
pub(super) struct Http1 {
    stream: Stream,
    /// What was read and is not used yet.
    read: BytesMut,
    /// How much room the next read gets.
    room: usize,
    writing: Writing,
    method: Method,
    informational: usize,
    decoder: Decoder,
    /// Whether the other side will keep the connection after this answer.
    is_kept: bool,
}

/// The raw connection behind a `101`, and what came with it.
pub(super) type Upgraded = (Stream, Bytes);

impl Http1 {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            room: ROOM_BYTES_MIN,
            writing: Writing::nothing(),
            method: Method::GET,
            informational: 0,
            decoder: Decoder::nothing(),
            is_kept: true,
        }
    }

    /// Whether the other side has neither closed the connection nor spoken unasked; asks the kernel only if something came.
    pub(super) fn is_idle(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut context = Context::from_waker(Waker::noop());
        self.read.is_empty() && Pin::new(&mut self.stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Whether both messages ended well and nothing is left over.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_kept && self.decoder.is_over() && self.read.is_empty() && self.writing.is_complete()
    }

    /// Takes a request to be written by [`Http1::poll_answer`].
    pub(super) fn begin(&mut self, request: &Outgoing<'_>, body: RequestBody) {
        self.method = request.method.clone();
        self.informational = 0;
        self.is_kept = false;
        self.writing.begin(request, body);
    }

    /// Writes the request and waits for the head of its answer.
    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<()>, AnswerError>> {
        // An upstream that takes no more may have said why, so a failed write does not end the reading.
        self.poll_request(context)?;
        loop {
            let Some(head) = head::parse(&mut self.read, &self.method)? else {
                ready!(self.poll_fill(context))?;
                continue;
            };
            let Head { response, framing, is_kept } = head;
            if response.status().is_informational() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                self.informational += 1;
                if self.informational > INFORMATIONAL_MAX {
                    return Poll::Ready(Err(AnswerError::Malformed("too many informational answers")));
                }
                continue;
            }
            self.is_kept = is_kept;
            self.decoder = Decoder::new(framing);
            return Poll::Ready(Ok(response));
        }
    }

    /// The next piece of the answer's body; goes on writing the request as well.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        self.poll_request(context)?;
        loop {
            match self.decoder.decode(&mut self.read)? {
                Decoded::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Decoded::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Decoded::End => return Poll::Ready(None),
                Decoded::NeedsMore => match ready!(self.poll_fill(context)) {
                    Err(AnswerError::Ended) if self.decoder.ends_with_the_connection() => self.decoder = Decoder::nothing(),
                    filled => filled?,
                },
            }
        }
    }

    /// Whether the body has ended.
    pub(super) fn is_end_stream(&self) -> bool {
        self.decoder.is_over()
    }

    /// What is known of the body's length.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }

    /// The connection itself, once the other side has agreed to another protocol.
    pub(super) fn into_upgraded(self: Box<Self>) -> Upgraded {
        let Self { stream, read, .. } = *self;
        (stream, read.freeze())
    }

    /// Closes it. Over TLS the other side is told first (RFC 8446 section 6.1), unless the request was cut, which is not to
    /// look like an end, or that cannot be written at once.
    pub(super) fn close(mut self: Box<Self>) {
        if let Stream::Right(tls) = &mut self.stream
            && self.writing.is_complete()
        {
            // What fails is a farewell to one who has gone.
            let _ = Pin::new(tls).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    fn poll_request(&mut self, context: &mut Context<'_>) -> Result<(), AnswerError> {
        match self.writing.poll(&mut self.stream, context) {
            Poll::Ready(Err(Stopped::ByBody)) => Err(AnswerError::RequestBroken),
            Poll::Ready(Err(Stopped::ByUpstream) | Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Reads at least a byte.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnswerError>> {
        self.read.reserve(self.room);
        let room = self.read.capacity() - self.read.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), context, &mut self.read))?;
        self.room = match read {
            0 => return Poll::Ready(Err(AnswerError::Ended)),
            all if all == room => (self.room * 2).min(ROOM_BYTES_MAX),
            little if little < self.room / 4 => (self.room / 2).max(ROOM_BYTES_MIN),
            _ => self.room,
        };
        Poll::Ready(Ok(()))
    }
}

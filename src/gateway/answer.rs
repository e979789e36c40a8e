//! The body of every answer, tied to the exchange that it ends.
//!
//! An upstream's body passes through frame by frame. It is cut within moments when its key is revoked (protocol 1),
//! and then the caller sees a broken message, never one that ends as if it were whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::exchange::Exchange;
use super::forward::UpstreamBody;

/// Why a body broke off; hyper closes the connection or resets the stream.
pub type BodyFault = Box<dyn std::error::Error + Send + Sync>;

/// Ends when the key of the answer was revoked.
pub type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the gateway hands to the edge.
pub enum AnswerBody {
    /// An answer of our own.
    Own(Full<Bytes>, Option<Exchange>),
    /// An upstream's.
    Upstream(UpstreamBody, Option<Exchange>, Cut),
}

impl AnswerBody {
    /// An answer of our own, which ends the exchange as soon as it is handed over.
    pub fn own(body: Bytes, mut exchange: Exchange) -> Self {
        exchange.sent(body.len());
        exchange.complete();
        Self::Own(Full::new(body), Some(exchange))
    }

    /// An answer without a body whose exchange goes on elsewhere: a tunnel's `101`.
    pub fn elsewhere() -> Self {
        Self::Own(Full::default(), None)
    }

    /// An answer that hyper wants although its client has gone; the exchange closes as the client's abort.
    pub fn for_nobody(body: Bytes) -> Self {
        Self::Own(Full::new(body), None)
    }

    /// An upstream's answer.
    pub fn upstream(body: UpstreamBody, mut exchange: Exchange, cut: Cut) -> Self {
        if body.is_end_stream() {
            exchange.complete();
        }
        Self::Upstream(body, Some(exchange), cut)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            Self::Own(body, _) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Upstream(body, exchange, cut) => {
                if let Some(open) = exchange
                    && cut.as_mut().poll(context).is_ready()
                {
                    open.cut_short("key_revoked");
                    return Poll::Ready(Some(Err("the key was revoked".into())));
                }
                let polled = Pin::new(&mut *body).poll_frame(context);
                if let (Poll::Ready(frame), Some(open)) = (&polled, exchange) {
                    note(open, frame.as_ref(), body.is_end_stream());
                }
                polled.map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body, _) => body.is_end_stream(),
            Self::Upstream(body, ..) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body, _) => body.size_hint(),
            Self::Upstream(body, ..) => body.size_hint(),
        }
    }
}

/// Keeps the exchange's account: bytes that went out, the end, or a break.
fn note<E>(exchange: &mut Exchange, frame: Option<&Result<Frame<Bytes>, E>>, is_end: bool) {
    match frame {
        Some(Ok(frame)) => {
            exchange.sent(frame.data_ref().map_or(0, Bytes::len));
            if is_end {
                exchange.complete();
            }
        }
        Some(Err(_)) => exchange.cut_short("upstream_broken"),
        None => exchange.complete(),
    }
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("AnswerBody")
    }
}

//! The body of every answer, tied to the exchange that it ends.
//!
//! An upstream's body passes through frame by frame. It is cut within moments when its key is revoked (protocol 1),
//! and then the caller sees a broken message, never one that ends as if it were whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::mutants;

use super::cuts::{Cut, Cuts};
use super::exchange::Exchange;
use super::forward::UpstreamBody;
use super::linger::Rest;

/// Why a body broke off; hyper closes the connection or resets the stream.
pub type BodyFault = Box<dyn std::error::Error + Send + Sync>;

/// What the gateway hands to the edge.
pub enum AnswerBody {
    /// An answer of our own.
    Own(Full<Bytes>, Option<Box<Exchange>>),
    /// An answer of our own to a request that is still coming in over HTTP/2.
    Early(Full<Bytes>, Box<Exchange>, Option<Rest>),
    /// An upstream's.
    Upstream(PassedOn),
}

/// An upstream's body on its way to the client.
pub struct PassedOn {
    body: UpstreamBody,
    exchange: Box<Exchange>,
    cuts: Arc<Cuts>,
    /// Made when the answer does not come at once, which small ones do.
    cut: Option<Cut>,
    /// Why the body broke off, held back for one turn.
    fault: Option<BodyFault>,
}

impl AnswerBody {
    /// An answer of our own, which ends the exchange as soon as it is handed over.
    pub fn own(body: Bytes, mut exchange: Box<Exchange>) -> Self {
        exchange.sent(body.len());
        exchange.complete();
        Self::Own(Full::new(body), Some(exchange))
    }

    /// The same to a request of which `rest` is still to come: the answer ends with it, or a moment later.
    pub(super) fn early(body: Bytes, mut exchange: Box<Exchange>, rest: Rest) -> Self {
        exchange.sent(body.len());
        exchange.complete();
        Self::Early(Full::new(body), exchange, Some(rest))
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
    pub fn upstream(body: UpstreamBody, mut exchange: Box<Exchange>, cuts: Arc<Cuts>) -> Self {
        if body.is_end_stream() {
            exchange.complete();
        }
        Self::Upstream(PassedOn { body, exchange, cuts, cut: None, fault: None })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            Self::Own(body, _) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Early(body, _, rest) => {
                if let Some(frame) = ready!(Pin::new(body).poll_frame(context)) {
                    return Poll::Ready(Some(frame.map_err(|never| match never {})));
                }
                if let Some(rest) = rest {
                    ready!(Pin::new(rest).poll(context));
                }
                *rest = None;
                Poll::Ready(None)
            }
            Self::Upstream(passed_on) => passed_on.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body, _) => body.is_end_stream(),
            Self::Early(body, _, rest) => body.is_end_stream() && rest.is_none(),
            Self::Upstream(passed_on) => passed_on.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body, _) | Self::Early(body, _, _) => body.size_hint(),
            Self::Upstream(passed_on) => passed_on.body.size_hint(),
        }
    }
}

impl PassedOn {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        if let Poll::Ready(reason) = self.poll_cut(context) {
            self.exchange.cut_short(reason);
            return self.break_off(reason.into(), context);
        }
        mutants::trip("answer");
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if self.cut.is_none() && !self.body.is_end_stream() {
            self.cut = Some(self.cuts.of(&self.exchange));
            // What is here already goes first; the next turn asks whether anything may follow.
            if polled.is_pending() {
                context.waker().wake_by_ref();
            }
        }
        match ready!(polled) {
            Some(Ok(frame)) => {
                self.exchange.sent(frame.data_ref().map_or(0, Bytes::len));
                if self.body.is_end_stream() {
                    self.exchange.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.exchange.cut_short("upstream_broken");
                self.break_off(error.into(), context)
            }
            None => {
                self.exchange.complete();
                Poll::Ready(None)
            }
        }
    }

    fn poll_cut(&mut self, context: &mut Context<'_>) -> Poll<&'static str> {
        self.cut.as_mut().map_or(Poll::Pending, |cut| cut.as_mut().poll(context))
    }

    /// hyper throws away what it has buffered when a body fails, and flushes when a body has nothing at the moment. So
    /// it is told "nothing at the moment" once, and the failure right after: what had come before it reaches the client.
    fn break_off(&mut self, fault: BodyFault, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        self.fault = Some(fault);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("AnswerBody")
    }
}

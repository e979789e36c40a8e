//! An answer's body, watched on its way to hyper.
//!
//! hyper tells nobody when it has finished an answer, or that it waits for a client rather than for the body; asking
//! for the next frame, getting one, and dropping the body are the three moments at which it shows.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Who is told of the three moments.
pub(super) trait Observer {
    /// hyper asks for a frame: what it got before is on its way.
    fn asked(&self) {}
    /// hyper was given a frame.
    fn handed(&self) {}
    /// hyper is done with the body, or has given it up.
    fn ended(&self) {}
}

/// A body and its observer.
pub(super) struct Observed<B, O: Observer> {
    body: B,
    observer: O,
}

impl<B, O: Observer> Observed<B, O> {
    pub(super) fn new(body: B, observer: O) -> Self {
        Self { body, observer }
    }
}

impl<B, O> Body for Observed<B, O>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    O: Observer + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        this.observer.asked();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        this.observer.handed();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, O: Observer> Drop for Observed<B, O> {
    fn drop(&mut self) {
        self.observer.ended();
    }
}

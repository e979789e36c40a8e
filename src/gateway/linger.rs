//! After an early refusal over HTTP/2, takes what the client is still sending and throws it away.
//!
//! A stream that is reset while its client uploads loses the answer in many clients (curl, httpx), although RFC 9113
//! section 8.1 asks them to keep it. So the rest is read for a while; what comes after that is reset. On HTTP/1 the edge
//! does the same for the whole connection.
//!
//! The answer's own end is held back for a moment, because h2 does not look at a window any more for a stream that we have
//! ended, and would take one beyond all bounds (RFC 9113 section 6.9.1) for a good one.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use crate::deadline::{Deadline, within};
use crate::tasks::Tasks;

/// Longest time that is spent on the rest of one body.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longest pause between two pieces of it.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most bytes of it: several times the largest body that is ever accepted, and no more.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long the answer's end waits for the request's: a client that knows the length does not wait for it.
const END_WAIT_MAX: Duration = Duration::from_millis(100);

/// The end of a request, or the time after which the answer's end waits for it no longer.
pub struct Rest {
    discarded: oneshot::Receiver<()>,
    timer: Deadline,
}

impl Rest {
    /// Discards what is left of a body in a task; `None` if nothing is.
    pub(super) fn discard(body: Incoming, tasks: &Tasks) -> Option<Self> {
        if body.is_end_stream() {
            return None;
        }
        let (done, discarded) = oneshot::channel();
        tasks.spawn("linger", async move {
            discard(body).await;
            // Whoever waited may have stopped waiting.
            let _ = done.send(());
        });
        Some(Self { discarded, timer: Deadline::after(END_WAIT_MAX) })
    }
}

impl Future for Rest {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.discarded).poll(context).is_ready() {
            return Poll::Ready(());
        }
        Pin::new(&mut self.timer).poll(context)
    }
}

/// Reads and forgets, within bounds.
async fn discard(mut body: Incoming) {
    let mut left = BYTES_MAX;
    let reading = async {
        while let Some(Some(Ok(frame))) = within(PAUSE_MAX, body.frame()).await {
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // Whether it ended by itself makes no difference: the body is dropped, and with it the stream.
    let _ = within(TIME_MAX, pin!(reading)).await;
}

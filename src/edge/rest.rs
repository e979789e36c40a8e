//! A connection between requests, when the last one is a while ago: only its socket is kept.
//!
//! hyper keeps 16 KiB of buffers for a connection as long as it serves it, and most connections of most tools are idle. So
//! hyper is told that the client has gone, its buffers go with it, and what rests is a task that waits for one byte.
//! With that byte hyper gets the connection again, as if it had just been opened.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::drain::{Phase, Watch};
use super::http::Replay;
use super::stream::Farewell;
use super::tls::socket_mut;
use crate::deadline::Deadline;

/// A connection whose last answer has gone out, and of whose next request nothing has come.
pub(super) struct Resting {
    pub(super) stream: Replay,
    /// When it has been idle for too long.
    pub(super) until: Instant,
}

impl Resting {
    /// Waits for the first byte of a request; `None` when the connection is over.
    pub(super) async fn woken(self, phase: &mut Watch) -> Option<Replay> {
        let Self { mut stream, until } = self;
        let mut first = [0; 1];
        let has_come = tokio::select! {
            biased;
            read = stream.read(&mut first) => matches!(read, Ok(1)),
            () = phase.reached(Phase::Leaving) => false,
            () = Deadline::at(until) => false,
        };
        if has_come {
            stream.put_back(&first);
            return Some(stream);
        }
        socket_mut(&mut stream.stream).part_with(Farewell::Leave);
        // A failure here is that of a client who has gone.
        let _ = stream.shutdown().await;
        None
    }
}

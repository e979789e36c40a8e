//! How a listener ends: it stops accepting, asks each connection to leave after what it is doing, and cuts the rest.
//!
//! HTTP/1.1 connections finish the request at hand and close, idle ones close at once; HTTP/2 connections say GOAWAY
//! and finish their streams. The deadline after which the rest is cut belongs to [`super::Options::drain`].

use std::sync::Arc;

use tokio::sync::watch;

/// The order is the order of life: a listener never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Phase {
    /// Connections come and stay.
    Open,
    /// No new connections; those that are here finish and go.
    Leaving,
    /// What is still here ends now.
    Cut,
}

/// The handle with which listeners are brought to an end; clones are the same handle.
#[derive(Clone, Debug)]
pub struct Drain(Arc<watch::Sender<Phase>>);

impl Drain {
    /// A handle for listeners that are open.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Open)))
    }

    /// Stops accepting and lets every connection finish; `Server::serve` then returns after `Options::drain` at the latest.
    pub fn begin(&self) {
        self.advance(Phase::Leaving);
    }

    /// Ends every connection now.
    pub fn cut(&self) {
        self.advance(Phase::Cut);
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }

    fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = *now < phase;
            *now = phase.max(*now);
            later
        });
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

/// One connection's view of the phase.
#[derive(Clone, Debug)]
pub(super) struct Watch(watch::Receiver<Phase>);

impl Watch {
    /// Waits until this phase or a later one has come. A handle that was dropped counts as cut: nobody is left to ask politely.
    pub(super) async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_move_forward() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drain.cut();
        drain.begin();
        watch.reached(Phase::Leaving).await;
        watch.reached(Phase::Cut).await;
        assert_eq!(*drain.0.borrow(), Phase::Cut);
    }

    #[tokio::test]
    async fn a_dropped_handle_counts_as_cut() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drop(drain);
        watch.reached(Phase::Cut).await;
    }
}

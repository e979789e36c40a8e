//! How a listener ends: it asks connections to leave after what they are doing, stops accepting, and cuts the rest.
//!
//! Whoever balances load must be able to look once more before a door closes. So first everything is served as before,
//! but HTTP/1.1 answers say `Connection: close` and HTTP/2 connections say GOAWAY: clients that are busy have gone when the
//! listener stops accepting, and nobody sends into a connection that is just being closed. Then HTTP/1.1 connections
//! finish the request at hand and close, idle ones close at once; HTTP/2 connections finish their streams. The deadline after which the rest is cut belongs to [`super::Options::drain`].

use std::sync::Arc;

use tokio::sync::watch;

/// The order is the order of life: a listener never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Phase {
    /// Connections come and stay.
    Open,
    /// Connections may still come, and each is asked to go after its next request.
    Announced,
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

    /// Goes on serving, and asks every connection to go elsewhere after its next request.
    pub fn announce(&self) {
        self.advance(Phase::Announced);
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

    /// Whether this phase or a later one has come.
    pub(super) fn is_at(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
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
        drain.announce();
        assert!(watch.is_at(Phase::Announced));
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

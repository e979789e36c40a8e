//! How a listener ends: it asks connections to leave after what they are doing, stops accepting, and cuts the rest.
//!
//! Whoever balances load must be able to look once more before a door closes. So first everything is served as before,
//! but HTTP/1.1 answers say `Connection: close` and HTTP/2 connections say GOAWAY: clients that are busy have gone when the
//! listener stops accepting, and nobody sends into a connection that is just being closed. Then HTTP/1.1 connections
//! finish the request at hand and close, idle ones close at once; HTTP/2 connections finish their streams. The deadline after which the rest is cut belongs to [`super::Options::drain`].

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tokio::sync::watch;
use tokio::task::unconstrained;

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
        let news = self.0.clone();
        // Without tokio's budget, because with it a poll may say nothing about the phase.
        let mut waiting = pin!(unconstrained(self.0.wait_for(|now| *now >= phase)));
        let mut told: Option<Waker> = None;
        poll_fn(|context| {
            // A connection is woken thousands of times for its own sake. While nothing is new, who was told to wake it still is.
            if matches!(news.has_changed(), Ok(false)) && told.as_ref().is_some_and(|told| told.will_wake(context.waker())) {
                return Poll::Pending;
            }
            told = Some(context.waker().clone());
            waiting.as_mut().poll(context).map(drop)
        })
        .await;
    }

    /// Whether this phase or a later one has come.
    pub(super) fn is_at(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

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
    async fn whoever_waits_is_woken_for_its_phase_however_often_it_was_woken_for_something_else() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut reached = pin!(watch.reached(Phase::Leaving));
        for phase in [None, None, Some(Phase::Announced), None] {
            phase.into_iter().for_each(|phase| drain.advance(phase));
            assert!(reached.as_mut().poll(&mut context).is_pending());
        }
        woken.0.store(false, Ordering::SeqCst);
        drain.begin();
        assert!(woken.0.load(Ordering::SeqCst), "it is woken");
        assert!(reached.as_mut().poll(&mut context).is_ready());
    }

    #[tokio::test]
    async fn a_dropped_handle_counts_as_cut() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drop(drain);
        watch.reached(Phase::Cut).await;
    }
}

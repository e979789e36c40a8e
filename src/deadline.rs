//! Deadlines for what comes from outside: a peer is held to its time only while this process could see what it did.
//!
//! A process that was stopped (SIGSTOP), or whose machine was paused, finds its timers past due before it has looked at its
//! sockets: the kernel breaks off the wait for them without saying which are ready. So a deadline is past only after a second
//! look. That takes a moment where the timer fired in time, and as long as it was late, but no more than the whole
//! span again, where it did not: a handshake wants more than what lies in the socket already.
//!
//! Whatever waits for a peer's bytes, or for room to send it some, waits by these. What a peer has no part in (a pause
//! between two tries) and what decides about leases, windows and keys does not.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

/// Time for one look at the sockets, and for what was found to reach whoever waits.
const LOOK: Duration = Duration::from_millis(20);

/// A moment by which something is expected; it may be moved. Small, because requests carry it.
#[derive(Debug)]
pub struct Deadline {
    timer: Pin<Box<Sleep>>,
    /// How long before it the waiting began.
    span_ms: u32,
    look: Look,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    First,
    Second,
    /// Nothing came.
    Over,
}

impl Deadline {
    /// So long from now.
    pub fn after(span: Duration) -> Self {
        Self::new(Instant::now() + span, span)
    }

    /// At that moment.
    pub fn at(moment: Instant) -> Self {
        Self::new(moment, moment.saturating_duration_since(Instant::now()))
    }

    fn new(moment: Instant, span: Duration) -> Self {
        Self { timer: Box::pin(sleep_until(moment)), span_ms: milliseconds(span), look: Look::First }
    }

    /// Whether it has passed, as the last poll saw it.
    pub fn has_passed(&self) -> bool {
        self.look == Look::Over
    }

    /// Whether it comes after that moment; one that is due already does not.
    pub fn is_after(&self, moment: Instant) -> bool {
        self.look == Look::First && self.timer.deadline() > moment
    }

    /// So long from now instead.
    pub fn move_after(&mut self, span: Duration) {
        self.set(Instant::now() + span, span);
    }

    /// At that moment instead.
    pub fn move_to(&mut self, moment: Instant) {
        self.set(moment, moment.saturating_duration_since(Instant::now()));
    }

    fn set(&mut self, moment: Instant, span: Duration) {
        self.timer.as_mut().reset(moment);
        (self.span_ms, self.look) = (milliseconds(span), Look::First);
    }
}

impl Future for Deadline {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.timer.as_mut().poll(context));
        if self.look == Look::First {
            self.look = Look::Second;
            let again = Instant::now() + second_look(self.timer.deadline(), Duration::from_millis(self.span_ms.into()));
            self.timer.as_mut().reset(again);
            ready!(self.timer.as_mut().poll(context));
        }
        self.look = Look::Over;
        Poll::Ready(())
    }
}

/// As many as there is room for: 49 days are long enough for anybody.
fn milliseconds(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// How long the second look takes after a deadline that is found past now.
fn second_look(moment: Instant, span: Duration) -> Duration {
    Instant::now().saturating_duration_since(moment).min(span).max(LOOK)
}

/// What comes of `future` within `span`; `None` only after the second look. It is pinned by the caller, where it is made, since
/// some are large and would be copied.
pub async fn within<F: Future + Unpin>(span: Duration, mut future: F) -> Option<F::Output> {
    let moment = Instant::now() + span;
    if let Ok(output) = timeout_at(moment, &mut future).await {
        return Some(output);
    }
    timeout(second_look(moment, span), future).await.ok()
}

/// hyper's deadlines, which are those of an HTTP/2 peer's signs of life.
#[derive(Clone, Copy, Debug)]
pub struct Timer;

impl hyper::rt::Timer for Timer {
    fn sleep(&self, span: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Deadline::after(span))
    }

    fn sleep_until(&self, moment: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Deadline::at(moment.into()))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, moment: std::time::Instant) {
        match sleep.as_mut().downcast_mut_pin::<Deadline>() {
            Some(mut deadline) => deadline.move_to(moment.into()),
            None => *sleep = self.sleep_until(moment),
        }
    }
}

impl hyper::rt::Sleep for Deadline {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    const SPAN: Duration = Duration::from_millis(100);

    /// As if the process had been stopped: nothing else of this thread's runtime runs meanwhile.
    fn stop(span: Duration) {
        std::thread::sleep(span);
    }

    #[tokio::test]
    async fn what_does_not_come_is_waited_for_no_longer_than_a_look_more() {
        let began = Instant::now();
        assert_eq!(within(SPAN, std::future::pending::<()>()).await, None);
        let took = began.elapsed();
        assert!(took >= SPAN + LOOK && took < SPAN * 5, "{took:?}");
        let mut deadline = Deadline::after(SPAN);
        (&mut deadline).await;
        assert!(deadline.has_passed() && began.elapsed() >= took + SPAN + LOOK);
    }

    #[tokio::test]
    async fn a_deadline_that_was_slept_through_leaves_its_span_again_and_no_more() {
        for (pause, comes) in [(SPAN / 2, true), (SPAN * 4, false)] {
            let late = async {
                stop(SPAN * 3);
                tokio::time::sleep(pause).await;
            };
            assert_eq!(within(SPAN, pin!(late)).await.is_some(), comes, "{pause:?} after a stop");
            let mut deadline = Deadline::after(SPAN);
            stop(SPAN * 3);
            tokio::select! {
                () = &mut deadline => assert!(!comes, "{pause:?} after a stop"),
                () = tokio::time::sleep(pause) => assert!(comes, "{pause:?} after a stop"),
            }
        }
    }

    #[tokio::test]
    async fn a_deadline_that_is_moved_has_not_passed() {
        let mut deadline = Deadline::after(Duration::ZERO);
        (&mut deadline).await;
        assert!(deadline.has_passed());
        deadline.move_after(SPAN);
        assert!(!deadline.has_passed() && deadline.is_after(Instant::now()));
        let began = Instant::now();
        (&mut deadline).await;
        assert!(deadline.has_passed() && began.elapsed() >= SPAN);
    }
}

//! Work for a key that runs once, however many ask for it at the same time.

use std::future::Future;
use std::sync::Arc;

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::domain::KeyDigest;

/// What runs now.
#[derive(Debug)]
pub(super) struct SingleFlight<T> {
    running: Mutex<HashMap<KeyDigest, Flight<T>>>,
}

#[derive(Debug)]
struct Flight<T> {
    result: Arc<OnceCell<T>>,
    waiting: usize,
}

/// One who waits for a result. The first who has it takes it off the map, or the last who gives up.
struct Waiter<'a, T> {
    flights: &'a SingleFlight<T>,
    digest: KeyDigest,
    result: Arc<OnceCell<T>>,
}

impl<T: Clone> SingleFlight<T> {
    pub(super) fn new() -> Self {
        Self { running: Mutex::default() }
    }

    /// The result of `work`, or of another's that was begun before and runs still. If the one who does the work is dropped, the next
    /// who waits does its own.
    pub(super) async fn run(&self, digest: KeyDigest, work: impl Future<Output = T>) -> T {
        let waiter = self.join(digest);
        waiter.result.get_or_init(|| work).await.clone()
    }

    fn join(&self, digest: KeyDigest) -> Waiter<'_, T> {
        let mut running = self.running.lock();
        let flight = running.entry(digest).or_insert_with(|| Flight { result: Arc::default(), waiting: 0 });
        flight.waiting += 1;
        Waiter { flights: self, digest, result: flight.result.clone() }
    }
}

impl<T> Drop for Waiter<'_, T> {
    fn drop(&mut self) {
        let mut running = self.flights.running.lock();
        // Not there, or a later one: somebody had the result already.
        let Some(flight) = running.get_mut(&self.digest).filter(|flight| Arc::ptr_eq(&flight.result, &self.result)) else { return };
        flight.waiting -= 1;
        if flight.waiting == 0 || flight.result.initialized() {
            running.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    const DIGEST: KeyDigest = KeyDigest::from_bytes([7; 32]);

    fn is_idle(flights: &SingleFlight<u32>) -> bool {
        flights.running.lock().is_empty()
    }

    #[tokio::test]
    async fn all_who_ask_meanwhile_get_one_result_and_whoever_asks_later_another() {
        let (flights, runs) = (SingleFlight::new(), Cell::new(0));
        let work = || async {
            runs.set(runs.get() + 1);
            tokio::task::yield_now().await;
            runs.get()
        };
        let all = join_all((0..10).map(|_| flights.run(DIGEST, work()))).await;
        assert_eq!(all, [1; 10]);
        assert!(is_idle(&flights));
        assert_eq!(flights.run(DIGEST, work()).await, 2);
        assert!(is_idle(&flights));
    }

    #[tokio::test]
    async fn another_goes_on_where_the_one_who_worked_is_gone_and_nothing_is_left_behind() {
        let flights = SingleFlight::new();
        let mut worker = Box::pin(flights.run(DIGEST, pending()));
        assert!(worker.as_mut().now_or_never().is_none());
        let mut other = Box::pin(flights.run(DIGEST, ready(5)));
        assert!(other.as_mut().now_or_never().is_none(), "it waits for the first");
        drop(worker);
        assert!(!is_idle(&flights));
        assert_eq!(other.await, 5);
        assert!(is_idle(&flights));
        assert_eq!(flights.run(DIGEST, pending()).now_or_never(), None);
        assert!(is_idle(&flights), "a work that nobody waits for any more");
    }

    #[test]
    fn many_who_give_up_at_once_leave_nothing_behind() {
        let flights = SingleFlight::<u32>::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20_000).for_each(|_| assert_eq!(flights.run(DIGEST, pending()).now_or_never(), None)));
            }
        });
        assert!(is_idle(&flights));
    }
}

//! Look-ups of keys, gathered: while as many calls as are useful are under way, those that come wait for the next one, which
//! serves them all.
//!
//! A key that is not in the cache costs one round trip, and a flood of unknown keys a call for some dozens of them. Whoever
//! gets a turn asks for all that wait and gives each its answer; if it goes away meanwhile, the others ask again.

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::domain::KeyDigest;
use crate::store::StoreError;

/// Calls under way at once, for each partition: enough that a lone look-up never waits for another.
const CALLS_MAX: usize = 4;
/// Look-ups of one call at most: a tenth of a millisecond of Redis's time.
const GATHERED_MAX: usize = 64;

/// What each was answered: a record that cannot be read is one caller's trouble.
pub(super) type Answers<T> = Vec<Result<T, StoreError>>;

/// Asks for many, and answers them in their order.
pub(super) trait Asks<'a, T>: Fn(Vec<KeyDigest>) -> BoxFuture<'a, Result<Answers<T>, StoreError>> + Send + Sync {}

impl<'a, T, F: Fn(Vec<KeyDigest>) -> BoxFuture<'a, Result<Answers<T>, StoreError>> + Send + Sync> Asks<'a, T> for F {}

/// Those of one partition.
pub(super) struct LookUps<T> {
    waiting: Mutex<Vec<Waiting<T>>>,
    turns: Semaphore,
}

struct Waiting<T> {
    digest: KeyDigest,
    tell: oneshot::Sender<Result<T, StoreError>>,
}

impl<T> Default for LookUps<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(CALLS_MAX) }
    }
}

impl<T> LookUps<T> {
    /// Answers for one digest; `all` asks for many, and answers them in their order.
    pub(super) async fn find<'a>(&self, digest: KeyDigest, all: impl Asks<'a, T>) -> Result<T, StoreError> {
        loop {
            let (tell, mut told) = oneshot::channel();
            self.waiting.lock().push(Waiting { digest, tell });
            loop {
                tokio::select! {
                    biased;
                    answer = &mut told => match answer {
                        Ok(answer) => return answer,
                        // Whoever asked for it went away.
                        Err(_) => break,
                    },
                    turn = self.turns.acquire() => {
                        let _turn = turn.expect("turns are never closed");
                        self.ask(&all).await;
                    }
                }
            }
        }
    }

    /// Asks for those that wait, the longest first.
    async fn ask<'a>(&self, all: &impl Asks<'a, T>) {
        let gathered = self.gather();
        if gathered.is_empty() {
            return;
        }
        match all(gathered.iter().map(|waiting| waiting.digest).collect()).await {
            Ok(answers) => gathered.into_iter().zip(answers).for_each(|(waiting, answer)| waiting.answer(answer)),
            Err(error) => gathered.into_iter().for_each(|waiting| waiting.answer(Err(error.clone()))),
        }
    }

    fn gather(&self) -> Vec<Waiting<T>> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|waiting| !waiting.tell.is_closed());
        let count = waiting.len().min(GATHERED_MAX);
        waiting.drain(..count).collect()
    }
}

impl<T> Waiting<T> {
    fn answer(self, answer: Result<T, StoreError>) {
        // Whoever asked may have gone away.
        let _ = self.tell.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    fn digest(number: u8) -> KeyDigest {
        KeyDigest::from_bytes([number; 32])
    }

    #[tokio::test]
    async fn a_lone_look_up_is_asked_at_once_and_a_crowd_shares_its_calls() {
        let (look_ups, calls) = (LookUps::<KeyDigest>::default(), AtomicUsize::new(0));
        let ask = |digests: Vec<KeyDigest>| {
            calls.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::task::yield_now().await;
                Ok(digests.into_iter().map(Ok).collect())
            }
            .boxed()
        };
        assert_eq!(look_ups.find(digest(7), &ask).await.unwrap(), digest(7));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let found = join_all((0..=255).map(|number| look_ups.find(digest(number), &ask))).await;
        assert!(found.into_iter().zip(0..=255).all(|(found, number)| found.unwrap() == digest(number)), "each its own answer");
        let calls = calls.load(Ordering::SeqCst) - 1;
        assert!((4..=16).contains(&calls), "{calls} calls for 256 look-ups");
    }

    #[tokio::test]
    async fn an_error_is_everybodys_and_who_goes_away_in_mid_call_leaves_nobody_behind() {
        let look_ups = LookUps::<KeyDigest>::default();
        let fails = |_: Vec<KeyDigest>| async { Err(StoreError::Unavailable("away".into())) }.boxed();
        let failed = join_all((0..9).map(|number| look_ups.find(digest(number), &fails))).await;
        assert!(failed.iter().all(Result::is_err));
        let release = Notify::new();
        let held = |digests: Vec<KeyDigest>| {
            async {
                release.notified().await;
                Ok(digests.into_iter().map(Ok).collect())
            }
            .boxed()
        };
        let mut leaders: Vec<_> = (0..4).map(|number| Box::pin(look_ups.find(digest(number), &held))).collect();
        assert!(leaders.iter_mut().all(|leader| leader.now_or_never().is_none()));
        let mut follower = Box::pin(look_ups.find(digest(9), &held));
        assert!((&mut follower).now_or_never().is_none());
        drop(leaders);
        release.notify_waiters();
        assert!((&mut follower).now_or_never().is_none(), "it asks by itself now");
        release.notify_waiters();
        assert_eq!(follower.await.unwrap(), digest(9));
    }
}

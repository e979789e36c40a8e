//! Keys of requests that go on: when they end, and reading them again when revocations may have been missed.
//!
//! A replica that missed more news than the store keeps, or met another incarnation of it, is told of no digest. So it
//! reads the key of everything that runs: once for each key, a few at a time, and what cannot be read in time ends.

use std::sync::Arc;
use std::time::Duration;

use crate::coherence::Doubt;
use crate::store::StoreError;

use super::cache::CachedKey;
use super::keyring::{Keyring, Miss};
use super::refused::Refused;

/// Keys read again at once: enough for thousands within the time, and few of the store's connections.
pub(super) const LOOKS_AT_ONCE: usize = 16;
/// How long reading a key again may take, its turn included; with the grace beyond a lease (0.3 s) no more than a second.
const LOOK_MAX: Duration = Duration::from_millis(700);
/// Pause after a look that the store did not answer: connections that broke with its restart are made anew.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// Why a request may not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Its key was revoked.
    Revoked,
    /// This replica cannot tell any more whether it was.
    Unproven,
}

impl Keyring {
    /// Waits for the end of a key that is in use.
    pub async fn end_of(&self, key: &Arc<CachedKey>) -> Ended {
        let (partition, digest, mut generation) = (key.partition, key.record.digest, key.generation);
        loop {
            match self.coherence.doubt(partition, digest, generation).await {
                Doubt::Revoked => return Ended::Revoked,
                Doubt::Unheard => return Ended::Unproven,
                Doubt::Forgotten(present) => {
                    // Boxed, because it is rare and every request has room for this future.
                    let look = tokio::time::timeout(LOOK_MAX, Box::pin(self.look_again(key, present))).await;
                    match look.unwrap_or(Err(Ended::Unproven)) {
                        Ok(read_under) => generation = read_under,
                        Err(end) => return end,
                    }
                }
            }
        }
    }

    /// Reads a key as it is under `generation` or a later one, which is answered if it lives.
    async fn look_again(&self, key: &CachedKey, generation: u64) -> Result<u64, Ended> {
        let _turn = self.looks.acquire().await.map_err(|_| Ended::Unproven)?;
        let (tag, digest) = (key.tag, key.record.digest);
        loop {
            match self.look_up(tag, digest).await {
                Ok(read) if read.generation >= generation => return Ok(read.generation),
                Ok(_) => self.cache.live.invalidate(&digest).await,
                Err(Miss::Refused(Refused::Revoked(_))) => return Err(Ended::Revoked),
                // A store that forgot the key cannot say that it was revoked.
                Err(Miss::Refused(Refused::Unknown(..)) | Miss::Store(StoreError::Foreign(_))) => return Err(Ended::Unproven),
                Err(Miss::Store(_)) => tokio::time::sleep(LOOK_PAUSE).await,
            }
        }
    }
}

//! Moving everything from one store to another: out into a file, and in again.
//!
//! - Only a store that nobody works on is moved: the embedded one is locked, a Redis on which a gateway renews is refused.
//! - Only an empty store is moved into, and it can be used only once all is there: until then gateways refuse it. After a
//!   crash the same file is imported again and completes it.
//! - A key keeps its window: the store is handed over only when the newest use is older than a window.
//! - Not moved: the stream for consumers, who would see everything twice; Idempotency-Keys, which live for 24 hours;
//!   epochs and sessions, because the new store is another life.
//!
//! `file` is what lies between; each store has the two halves in its own folder, and places a firm as it always does.

mod file;
#[cfg(test)]
mod tests;

use std::io::{BufRead, Seek, Write};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub use file::Counts;
pub(crate) use file::{Incoming, MovedKey, MovedRecord, Outgoing, Piece};

use super::embedded::moving as embedded;
use super::{RedisStore, StoreError, redis_moving as shared};
use crate::clock;
use crate::config::Config;
use crate::domain::window::{GRANT_LIFE_LONG, WINDOW};
use crate::domain::{BootInstant, ReplicaId};
use crate::tasks::Tasks;

/// Between two remarks about how far a move has come.
const REMARK_PAUSE: Duration = Duration::from_secs(2);

/// Why a store was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading or writing the file.
    #[error("cannot read or write the file: {0}")]
    File(#[from] std::io::Error),
    /// A line of the file.
    #[error("line {0}: {1}")]
    Line(u64, String),
    /// Gateways work on it.
    #[error("gateways are running on this store ({}); end them first, so that nothing changes while it is moved", names(.0))]
    InUse(Vec<ReplicaId>),
    /// There is something in the store already.
    #[error("this store is not empty; a store can only be moved into an empty one")]
    NotEmpty,
    /// A replica's last batch reached some partitions only.
    #[error("a batch of the spool {0} has reached a part of the partitions only; run its gateway once more and end it with SIGTERM")]
    PartlyShipped(uuid::Uuid),
    /// There is no store.
    #[error("there is no store in {0}")]
    Missing(String),
    /// An import of another file was begun.
    #[error("the import of another file was begun in this store; complete it with that file, or empty the store")]
    OtherFile,
    /// The file was another one at the second reading.
    #[error("the file changed while it was read; import it again")]
    Changed,
}

fn names(replicas: &[ReplicaId]) -> String {
    replicas.iter().map(ReplicaId::as_str).collect::<Vec<_>>().join(", ")
}

/// Tells now and then how far a move has come.
pub struct Progress<'a> {
    tell: &'a mut (dyn FnMut(&str) + Send),
    doing: &'static str,
    told_at: BootInstant,
}

impl<'a> Progress<'a> {
    /// Tells through a function that takes a sentence.
    pub fn new(tell: &'a mut (dyn FnMut(&str) + Send)) -> Self {
        Self { tell, doing: "", told_at: clock::boot_now() }
    }

    fn begin(&mut self, doing: &'static str) {
        self.doing = doing;
    }

    fn show(&mut self, counts: Counts) {
        let now = clock::boot_now();
        if now.since(self.told_at) >= REMARK_PAUSE {
            self.told_at = now;
            (self.tell)(&format!("{}: {counts}", self.doing));
        }
    }
}

/// A store that is moved out of. Nobody changes it meanwhile.
pub(crate) trait Source: Send + Sync {
    /// Writes all of it.
    fn export<'a>(&'a self, out: &'a mut Outgoing<'_>) -> BoxFuture<'a, Result<(), MoveError>>;
}

/// A store that is moved into.
pub(crate) trait Target: Send {
    /// Makes sure that it is empty and nobody's, or that this very file was begun here; from now on gateways refuse it.
    fn begin<'a>(&'a mut self, checksum: &'a str) -> BoxFuture<'a, Result<(), MoveError>>;

    /// Takes the next piece.
    fn put(&mut self, piece: Piece) -> BoxFuture<'_, Result<(), MoveError>>;

    /// Makes all of it durable, and the store usable.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), MoveError>>;
}

/// Writes the whole store that a configuration names.
///
/// # Errors
/// See [`MoveError`]; what was written then has no trailer, and no import takes it.
pub async fn export<'a>(config: &Config, out: &'a mut (dyn Write + Send), mut progress: Progress<'a>) -> Result<Counts, MoveError> {
    let (tasks, source): (Tasks, Box<dyn Source>) = match &config.store.redis {
        Some(redis) => {
            let tasks = Tasks::new();
            let store = RedisStore::open(redis, &config.audit.stream, &tasks).await?;
            (tasks, Box::new(shared::Export::new(store)))
        }
        None => (Tasks::new(), Box::new(embedded::Export::open(&config.own_folder())?)),
    };
    progress.begin("exported");
    let mut outgoing = Outgoing::begin(out, progress, clock::wall_now())?;
    source.export(&mut outgoing).await?;
    let counts = outgoing.finish()?;
    drop(source);
    tasks.stop(Duration::ZERO).await;
    Ok(counts)
}

/// Reads a file twice, first to check it, then into the store that a configuration names.
///
/// # Errors
/// See [`MoveError`]. A file with a mistake has left nothing; after any other error the same file may be imported again.
pub async fn import<F: BufRead + Seek>(config: &Config, file: &mut F, mut progress: Progress<'_>) -> Result<Counts, MoveError> {
    progress.begin("checked");
    let mut first = Incoming::open(&mut *file)?;
    while first.next()?.is_some() {
        progress.show(first.counts());
    }
    let checked = first.checked().ok_or(MoveError::Changed)?;
    file.rewind()?;
    let tasks = Tasks::new();
    let mut target: Box<dyn Target> = match &config.store.redis {
        Some(redis) => Box::new(shared::Import::new(RedisStore::open_to_import(redis, &config.audit.stream, &tasks).await?)),
        None => Box::new(embedded::Import::open(&config.own_folder())?),
    };
    target.begin(&checked.checksum).await?;
    progress.begin("imported");
    let mut second = Incoming::open(&mut *file)?;
    while let Some(piece) = second.next()? {
        progress.show(second.counts());
        target.put(piece).await?;
    }
    if second.checked().as_ref() != Some(&checked) {
        return Err(MoveError::Changed);
    }
    if let Some(wait) = checked.newest_use.and_then(until_windows_are_free) {
        (progress.tell)(&format!("a key was used lately; waiting {} s, until no window holds a use from before", wait.as_secs() + 1));
        tokio::time::sleep(wait).await;
    }
    target.finish().await?;
    drop(target);
    tasks.stop(Duration::ZERO).await;
    Ok(checked.counts)
}

/// How long until the newest use has left its window; windows themselves are not moved. A use of the future, by the wall
/// clock of this machine, counts as of now.
fn until_windows_are_free(newest: crate::domain::Timestamp) -> Option<Duration> {
    let all = WINDOW + GRANT_LIFE_LONG;
    let age = u64::try_from(clock::wall_now().micros().saturating_sub(newest.micros())).unwrap_or(0);
    all.checked_sub(Duration::from_micros(age)).filter(|left| !left.is_zero())
}

/// A future for what is done at once.
pub(crate) fn done<'a, T: Send + 'a>(result: T) -> BoxFuture<'a, T> {
    std::future::ready(result).boxed()
}

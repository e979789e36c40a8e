//! The one thread that changes the file: takes what has queued up, writes it as one transaction, answers all of it.
//!
//! An operation looks before it writes, so one that is refused leaves nothing behind and harms no neighbour. If one
//! fails after it has begun to write, the whole group is undone and each caller hears that the store did not answer.
//! Nothing is answered, and no news is told, before the disk has it.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use redb::{AccessGuard, ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::disk::{Disk, failed};
use super::news::News;
use super::schema::{self, Definition, Raw};
use super::{activity, keys, users};
use crate::domain::{BootInstant, FirmId, KeyDigest, Sequence};
use crate::store::{AuditBatch, Creation, KnownUser, NewKey, Revocation, RevokeRequest, StoreError};
use crate::{clock, tasks};

/// Operations of one commit: one fsync serves them all, and none waits for long.
const GROUP_MAX: usize = 256;
/// Operations that may wait for the writer: four groups; whoever comes later waits outside.
const QUEUE_MAX: usize = 1024;
/// Between attempts to open the file again after an error, so that a broken disk is not hammered.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How long a caller waits for its commit; a disk that takes longer is as good as gone.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// A caller who waits for its commit.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
pub(super) enum Operation {
    Create(Box<NewKey>, Reply<Creation>),
    Revoke(Box<RevokeRequest>, Reply<Revocation>),
    NoteUser(Box<(FirmId, KnownUser)>, Reply<()>),
    Ship(AuditBatch, Reply<Sequence>),
    /// A reader found this generation of the file broken.
    Reopen(u64),
}

/// The writer as its callers see it; dropping it ends the thread after the last commit.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(disk: Arc<Disk>, news: Arc<Mutex<News>>, folder: &Path) -> Result<Self, StoreError> {
        let (queue, operations) = mpsc::channel(QUEUE_MAX);
        let worker = Worker { disk, news, broken: None, trimmer: activity::Trimmer::default() };
        let thread = tasks::thread("store-writer", move || worker.run(operations))
            .map_err(|error| StoreError::Unavailable(format!("cannot start the writer of {}: {error}", folder.display())))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands an operation over and waits until it is durable or refused.
    pub(super) async fn ask<T>(&self, operation: impl FnOnce(Reply<T>) -> Operation) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.queue.as_ref().ok_or_else(ended)?.send(operation(reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        tokio::time::timeout(ANSWER_WAIT, asked).await.unwrap_or_else(|_| Err(StoreError::Unavailable("the disk is too slow".into())))
    }

    /// A handle that does not keep the thread alive.
    pub(super) fn mender(&self) -> Mender {
        Mender(self.queue.as_ref().map(mpsc::Sender::downgrade))
    }

    /// Whether the thread still takes operations.
    pub(super) fn is_running(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.is_closed())
    }
}

impl Drop for Writer {
    /// Waits for the thread, so that the file is closed when the store is gone.
    fn drop(&mut self) {
        self.queue.take();
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has said so on standard error; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// For readers: has the file opened again that they found broken.
#[derive(Clone)]
pub(super) struct Mender(Option<mpsc::WeakSender<Operation>>);

impl Mender {
    /// Reports a failure; a full queue already holds somebody who will notice it.
    pub(super) fn report(&self, generation: u64) {
        if let Some(queue) = self.0.as_ref().and_then(mpsc::WeakSender::upgrade) {
            let _ = queue.try_send(Operation::Reopen(generation));
        }
    }
}

fn ended() -> StoreError {
    StoreError::Unavailable("the store's writer gave no answer".into())
}

/// Told when the group is on the disk, or why it is not.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

struct Worker {
    disk: Arc<Disk>,
    news: Arc<Mutex<News>>,
    /// Set after an error of the disk: when opening the file again may be tried.
    broken: Option<BootInstant>,
    trimmer: activity::Trimmer,
}

impl Worker {
    fn run(mut self, mut operations: mpsc::Receiver<Operation>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while operations.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            self.serve(&mut group);
            group.clear();
        }
    }

    fn serve(&mut self, group: &mut Vec<Operation>) {
        let mut answers = Vec::with_capacity(group.len());
        let written = self.mend().and_then(|()| self.write(group, &mut answers));
        match written {
            Ok(changes) => {
                self.news.lock().add(changes);
                answers.into_iter().for_each(|answer| answer(Ok(())));
            }
            Err(error) => {
                tracing::error!(%error, "the embedded store could not write");
                self.broken.get_or_insert_with(clock::boot_now);
                answers.into_iter().for_each(|answer| answer(Err(error.clone())));
                group.drain(..).for_each(|operation| refuse(operation, &error));
            }
        }
    }

    /// Opens the file again if it was found broken, and learns which changes reached the disk.
    fn mend(&mut self) -> Result<(), StoreError> {
        let Some(not_before) = self.broken else { return Ok(()) };
        let now = clock::boot_now();
        if now < not_before {
            return Err(StoreError::Unavailable("the disk failed; the file will be opened again soon".into()));
        }
        self.broken = Some(now.plus(REOPEN_PAUSE));
        self.disk.reopen()?;
        let epoch = current_epoch(&self.disk)?;
        self.news.lock().agree_on(epoch);
        self.broken = None;
        tracing::warn!("the embedded store was opened again after an error");
        Ok(())
    }

    fn write(&mut self, group: &mut Vec<Operation>, answers: &mut Vec<Answer>) -> Result<Vec<Option<KeyDigest>>, StoreError> {
        if group.iter().any(|operation| matches!(operation, Operation::Reopen(seen) if *seen == self.disk.generation())) {
            self.broken.get_or_insert_with(clock::boot_now);
            self.mend()?;
        }
        let transaction = self.disk.write()?;
        let writes = Cell::new(0);
        let mut change = Change::open(&transaction, &writes)?;
        for operation in group.drain(..) {
            let written_before = writes.get();
            let (answer, fault) = self.apply(operation, &mut change);
            answers.extend(answer);
            if let Some(fault) = fault.filter(|fault| writes.get() > written_before || matches!(fault, StoreError::Unavailable(_))) {
                return Err(fault);
            }
        }
        let changes = change.finish()?;
        if writes.get() > 0 {
            transaction.commit().map_err(failed)?;
        }
        Ok(changes)
    }

    fn apply(&mut self, operation: Operation, change: &mut Change<'_>) -> (Option<Answer>, Option<StoreError>) {
        match operation {
            Operation::Create(key, reply) => answer(reply, keys::create(change, *key)),
            Operation::Revoke(request, reply) => answer(reply, keys::revoke(change, *request)),
            Operation::NoteUser(noted, reply) => answer(reply, users::note(change, &noted.0, &noted.1)),
            Operation::Ship(batch, reply) => answer(reply, activity::ship(change, batch, &mut self.trimmer)),
            Operation::Reopen(_) => (None, None),
        }
    }
}

/// The epoch as the file has it.
pub(super) fn current_epoch(disk: &Disk) -> Result<u64, StoreError> {
    let meta = disk.read()?.open_table(schema::META).map_err(failed)?;
    schema::number_in(&meta, schema::META_EPOCH)
}

fn answer<T: 'static>(reply: Reply<T>, result: Result<T, StoreError>) -> (Option<Answer>, Option<StoreError>) {
    let fault = result.as_ref().err().cloned();
    let tell = move |committed: Result<(), StoreError>| {
        // A caller that went away does not want to know.
        let _ = reply.send(committed.and(result));
    };
    (Some(Box::new(tell)), fault)
}

fn refuse(operation: Operation, error: &StoreError) {
    let error = error.clone();
    match operation {
        Operation::Create(_, reply) => drop(reply.send(Err(error))),
        Operation::Revoke(_, reply) => drop(reply.send(Err(error))),
        Operation::NoteUser(_, reply) => drop(reply.send(Err(error))),
        Operation::Ship(_, reply) => drop(reply.send(Err(error))),
        Operation::Reopen(_) => {}
    }
}

/// All tables within one transaction, and what its operations have in common.
pub(super) struct Change<'txn> {
    pub(super) keys: Rows<'txn>,
    pub(super) keys_by_digest: Rows<'txn>,
    pub(super) keys_by_firm: Rows<'txn>,
    pub(super) live_by_firm: Rows<'txn>,
    pub(super) live_by_creator: Rows<'txn>,
    pub(super) idempotency: Rows<'txn>,
    pub(super) idempotency_by_time: Rows<'txn>,
    pub(super) key_uses: Rows<'txn>,
    pub(super) users: Rows<'txn>,
    pub(super) activity: Rows<'txn>,
    pub(super) activity_new: Rows<'txn>,
    pub(super) activity_by_time: Rows<'txn>,
    pub(super) activity_by_key: Rows<'txn>,
    pub(super) activity_by_change: Rows<'txn>,
    pub(super) spools: Rows<'txn>,
    pub(super) meta: Rows<'txn>,
    /// The partition's epoch, the changes of this transaction included.
    pub(super) epoch: u64,
    /// The last arrival in the log, this transaction's included.
    pub(super) arrival: u64,
    /// One for each step of the epoch: the key that was revoked, or none for a creation.
    changes: Vec<Option<KeyDigest>>,
}

impl<'txn> Change<'txn> {
    pub(super) fn open(transaction: &'txn WriteTransaction, writes: &'txn Cell<u64>) -> Result<Self, StoreError> {
        let rows = |definition: Definition| transaction.open_table(definition).map(|table| Rows { table, writes }).map_err(failed);
        let meta = rows(schema::META)?;
        Ok(Self {
            epoch: schema::number_in(&meta.table, schema::META_EPOCH)?,
            arrival: schema::number_in(&meta.table, schema::META_ARRIVAL)?,
            keys: rows(schema::KEYS)?,
            keys_by_digest: rows(schema::KEYS_BY_DIGEST)?,
            keys_by_firm: rows(schema::KEYS_BY_FIRM)?,
            live_by_firm: rows(schema::LIVE_BY_FIRM)?,
            live_by_creator: rows(schema::LIVE_BY_CREATOR)?,
            idempotency: rows(schema::IDEMPOTENCY)?,
            idempotency_by_time: rows(schema::IDEMPOTENCY_BY_TIME)?,
            key_uses: rows(schema::KEY_USES)?,
            users: rows(schema::USERS)?,
            activity: rows(schema::ACTIVITY)?,
            activity_new: rows(schema::ACTIVITY_NEW)?,
            activity_by_time: rows(schema::ACTIVITY_BY_TIME)?,
            activity_by_key: rows(schema::ACTIVITY_BY_KEY)?,
            activity_by_change: rows(schema::ACTIVITY_BY_CHANGE)?,
            spools: rows(schema::SPOOLS)?,
            meta,
            changes: Vec::new(),
        })
    }

    /// Raises the epoch by one, and leaves the key that was revoked for renewals; answers the new epoch.
    pub(super) fn raise_epoch(&mut self, revoked: Option<KeyDigest>) -> u64 {
        self.changes.push(revoked);
        self.epoch += 1;
        self.epoch
    }

    /// Writes down the numbers; answers what is to be told.
    pub(super) fn finish(mut self) -> Result<Vec<Option<KeyDigest>>, StoreError> {
        for (name, number) in [(schema::META_EPOCH, self.epoch), (schema::META_ARRIVAL, self.arrival)] {
            if schema::number_in(&self.meta.table, name)? != number {
                self.meta.put(name, &number.to_be_bytes())?;
            }
        }
        Ok(self.changes)
    }
}

/// One table of a change; counts what is written, so that the writer knows whether a failed operation left traces.
pub(super) struct Rows<'txn> {
    pub(super) table: Table<'txn, Raw, Raw>,
    writes: &'txn Cell<u64>,
}

impl Rows<'_> {
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<AccessGuard<'_, Raw>>, StoreError> {
        self.table.get(key).map_err(failed)
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.writes.set(self.writes.get() + 1);
        self.table.insert(key, value).map(drop).map_err(failed)
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.writes.set(self.writes.get() + 1);
        self.table.remove(key).map(drop).map_err(failed)
    }
}

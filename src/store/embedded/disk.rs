//! The file itself: made private, opened by one process only, opened again after an input or output error.
//!
//! A file that is gone or empty where there was one is refused, at the start as in mid-work: a store without keys would call every key wrong. That
//! there was one stands in a file beside it.
//!
//! redb refuses all work after the first failed read or write, because it no longer knows what the disk holds. So a
//! full disk that has room again would need a restart; [`Disk::reopen`] spares it: close, open, repair, go on.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use super::schema::{self, Definition};
use crate::store::StoreError;

pub(super) const FILE_NAME: &str = "store.redb";
/// Beside it: says that the store was made, so that it is not made again when it is gone.
const MADE_FILE: &str = "made";
/// Memory for pages of the file: it fills, whatever is read, and an eighth more goes for keeping it. Keys are in the gateway's own cache,
/// so this serves lists and the log's end; the rest is in the kernel's cache, a microsecond away.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Nobody but the gateway's user: the file tells who did what when.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

const TABLES: [Definition; 16] = [
    schema::KEYS,
    schema::KEYS_BY_DIGEST,
    schema::KEYS_BY_FIRM,
    schema::LIVE_BY_FIRM,
    schema::LIVE_BY_CREATOR,
    schema::IDEMPOTENCY,
    schema::IDEMPOTENCY_BY_TIME,
    schema::KEY_USES,
    schema::USERS,
    schema::ACTIVITY,
    schema::ACTIVITY_NEW,
    schema::ACTIVITY_BY_TIME,
    schema::ACTIVITY_BY_KEY,
    schema::ACTIVITY_BY_CHANGE,
    schema::SPOOLS,
    schema::META,
];

/// The open file, or none while it cannot be opened.
pub(super) struct Disk {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    /// How often it was opened again, so that a failure seen before does not open it once more.
    generation: AtomicU64,
}

impl Disk {
    /// Opens the store's file in `folder`; makes both where there never were any.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let (path, made) = (folder.join(FILE_NAME), folder.join(MADE_FILE));
        let is_there = std::fs::metadata(&path).is_ok_and(|file| file.len() > 0);
        let was_made = made.try_exists().map_err(|error| cannot("look for", &made, &error))?;
        if was_made && !is_there {
            return Err(StoreError::Corrupt(format!(
                "{} is gone or empty, and with it every key; bring it back, or remove {} to begin with a store without keys",
                path.display(),
                made.display()
            )));
        }
        let disk = Self::open_named(folder, FILE_NAME)?;
        if !was_made {
            match note_making(folder, &made) {
                // A store of an earlier version, on a disk that is full perhaps: the next start does it.
                Err(error) if is_there => tracing::warn!(file = ?made, %error, "cannot write down that there is a store"),
                noted => noted.map_err(|error| cannot("make", &made, &error))?,
            }
        }
        Ok(disk)
    }

    /// The same for a file of another name.
    pub(super) fn open_named(folder: &Path, name: &str) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(|error| cannot("make the folder", folder, &error))?;
        let path = folder.join(name);
        let mut private = OpenOptions::new();
        private.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        private.open(&path).map_err(|error| cannot("open", &path, &error))?;
        let database = open_database(&path, Database::builder().set_cache_size(CACHE_BYTES).create(&path))?;
        Ok(Self { path, database: RwLock::new(Some(database)), generation: AtomicU64::new(0) })
    }

    /// A snapshot to read from; microseconds, and never waits for a writer.
    pub(super) fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.database.read().as_ref().ok_or_else(closed)?.begin_read().map_err(failed)
    }

    /// Begins a change; waits for the change before it. Its commit returns once the disk has it.
    pub(super) fn write(&self) -> Result<WriteTransaction, StoreError> {
        let mut change = self.database.read().as_ref().ok_or_else(closed)?.begin_write().map_err(failed)?;
        // Saves the free space with each commit, so that opening after a crash does not walk the whole file.
        change.set_quick_repair(true);
        Ok(change)
    }

    /// Which opening of the file is in use.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Closes the file and opens it again. No change may be under way; reads under way fail.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database.write();
        if let Some(broken) = database.take() {
            // What it could not write then it cannot write now; what was committed is on the disk already.
            let _ = broken.close();
        }
        // Never made anew: a file that has vanished or was emptied is a failure, not a store without keys.
        *database = Some(open_database(&self.path, Database::builder().set_cache_size(CACHE_BYTES).open(&self.path))?);
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

/// Forced to disk, since it is looked at after a power cut.
fn note_making(folder: &Path, made: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(made)?;
    file.write_all(b"There is a store in this folder. Without this file a missing store is made anew, without keys.\n")?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

fn closed() -> StoreError {
    StoreError::Unavailable("the file could not be opened again after an error".into())
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot {act} {}: {error}", path.display()))
}

fn open_database(path: &Path, opened: Result<Database, redb::DatabaseError>) -> Result<Database, StoreError> {
    let database = opened.map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Unavailable(format!("another process uses {}; only one gateway may run on an embedded store", path.display()))
        }
        redb::DatabaseError::UpgradeRequired(version) => {
            StoreError::Corrupt(format!("{} has file format {version}, which this program cannot read", path.display()))
        }
        other => failed(other),
    })?;
    prepare(&database)?;
    Ok(database)
}

/// Refuses a layout that this version does not know, and makes what a new file lacks.
fn prepare(database: &Database) -> Result<(), StoreError> {
    let change = database.begin_write().map_err(failed)?;
    let present = change.list_tables().map_err(failed)?.count();
    let is_new = present == 0;
    for table in TABLES {
        // Opened before the layout is known, but undone with `change` if it is not ours.
        change.open_table(table).map_err(failed)?;
    }
    {
        let mut meta = change.open_table(schema::META).map_err(failed)?;
        match schema::number_in(&meta, schema::META_SCHEMA)? {
            schema::SCHEMA if present >= TABLES.len() => return Ok(()),
            // A file of an earlier version lacks only tables that were added since.
            schema::SCHEMA => None,
            0 if is_new => meta.insert(schema::META_SCHEMA, schema::SCHEMA.to_be_bytes().as_slice()).map_err(failed)?,
            other => {
                return Err(StoreError::Corrupt(format!("the store's layout is {other}; this program reads {} only", schema::SCHEMA)));
            }
        };
    }
    change.commit().map_err(failed)
}

/// What a failure of redb means to a caller.
pub(super) fn failed<E: Into<redb::Error>>(error: E) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Corrupt(what),
        other => StoreError::Unavailable(other.to_string()),
    }
}

//! The spool's folder: one process at a time, an identity made once, segments preallocated.
//!
//! ```text
//! spool/
//! ├── lock                        held by the process that uses the folder
//! ├── identity                    JSON: the spool's id, the replica's name
//! └── 00000000000000000001.seg    segments, numbered without gaps; zeros behind the last entry
//! ```
//!
//! The last bytes of the disk are left alone, because the store may live on it too and create and revoke must go on.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::ReplicaId;

/// Most bytes of the disk that are left to others: room for the embedded store to record creates and revokes.
const DISK_RESERVE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// On a small disk the reserve is this part of it.
const DISK_RESERVE_PART: u64 = 8;
/// Longest identity file, in bytes; ours has about a hundred.
const IDENTITY_BYTES_MAX: u64 = 4096;
const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// Why the spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The operating system said no.
    #[error("cannot use the audit spool {path}: {error}")]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Two processes on one spool would give out the same sequences.
    #[error("the audit spool {0} is in use by another process; each gateway needs an `audit.spool.path` of its own")]
    InUse(PathBuf),
    /// `audit.spool.size_max` leaves no room to work in.
    #[error("audit.spool.size_max is {0} bytes; the spool needs at least {1}")]
    TooSmall(u64, u64),
    /// The identity cannot be read, or is missing although there are segments.
    #[error("the audit spool's identity {path} {what}; restore the file, or move the folder away to begin a new spool")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An entry that had reached the disk is not what it was.
    #[error(
        "the audit spool's segment {path} is damaged at byte {offset}: {what}. Records may be lost, so the gateway does not go on as if \
         nothing had happened: check the disk, keep the folder for whoever audits, and move it away to begin a new spool"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
}

/// Who a spool is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) spool: Uuid,
    pub(super) replica: ReplicaId,
}

/// A locked folder. The lock ends with the value, or with the process.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    directory: File,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is missing and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, SpoolError> {
        let unusable = |error| SpoolError::Unusable { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(path).map_err(unusable)?;
        let directory = File::open(path).map_err(unusable)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE_FILE).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), directory, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(SpoolError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    /// Reads the identity, or makes it in a folder that has no segments yet.
    pub(super) fn identity(&self, replica: Option<&str>) -> Result<Identity, SpoolError> {
        let path = self.path.join("identity");
        let wrong = |what| SpoolError::Identity { path: path.clone(), what };
        match File::open(&path) {
            Ok(file) => {
                let mut text = Vec::new();
                file.take(IDENTITY_BYTES_MAX).read_to_end(&mut text).map_err(|error| self.unusable(&path, error))?;
                serde_json::from_slice(&text).map_err(|_| wrong("cannot be read"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.numbers()?.is_empty() {
                    return Err(wrong("is missing although there are segments"));
                }
                let identity = Identity::new(replica);
                self.keep_identity(&path, &identity).map_err(|error| self.unusable(&path, error))?;
                Ok(identity)
            }
            Err(error) => Err(self.unusable(&path, error)),
        }
    }

    fn keep_identity(&self, path: &Path, identity: &Identity) -> io::Result<()> {
        let unfinished = self.path.join("identity.new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(PRIVATE_FILE).open(&unfinished)?;
        serde_json::to_writer(&mut file, identity)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        self.directory.sync_all()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of the segments, ascending.
    pub(super) fn numbers(&self) -> Result<Vec<u64>, SpoolError> {
        let mut numbers = Vec::new();
        for file in std::fs::read_dir(&self.path).map_err(|error| self.unusable(&self.path, error))? {
            let name = file.map_err(|error| self.unusable(&self.path, error))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|number| number.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Where a segment lies.
    pub(super) fn file(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.seg"))
    }

    /// Removes replacements that were never finished.
    pub(super) fn tidy(&self, number: u64) {
        let _ = std::fs::remove_file(self.replacement(number));
    }

    /// Opens a segment that exists.
    pub(super) fn segment(&self, number: u64) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.file(number))
    }

    /// Makes a segment and takes its room from the disk.
    ///
    /// # Errors
    /// `StorageFull` when the disk has no room beyond the reserve; then nothing is left behind.
    pub(super) fn make_segment(&self, number: u64, bytes: u32) -> io::Result<File> {
        self.check_disk(bytes)?;
        self.make(&self.file(number), bytes)
    }

    /// Makes an empty file that is to take a segment's place: see [`Folder::replace_segment`].
    pub(super) fn make_replacement(&self, number: u64, bytes: u32) -> io::Result<File> {
        self.make(&self.replacement(number), bytes)
    }

    /// Gives the replacement the segment's name.
    pub(super) fn replace_segment(&self, number: u64) -> io::Result<()> {
        std::fs::rename(self.replacement(number), self.file(number))?;
        self.directory.sync_all()
    }

    /// Deletes a segment.
    pub(super) fn remove_segment(&self, number: u64) -> io::Result<()> {
        std::fs::remove_file(self.file(number))
    }

    /// The error of an operation on a file of this folder.
    pub(super) fn unusable(&self, path: &Path, error: io::Error) -> SpoolError {
        SpoolError::Unusable { path: path.to_owned(), error }
    }

    fn replacement(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.new"))
    }

    fn make(&self, path: &Path, bytes: u32) -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(PRIVATE_FILE).open(path)?;
        let made = preallocate(&file, bytes).and_then(|()| self.directory.sync_all());
        if let Err(error) = made {
            // Without its room the file is of no use; that it cannot be removed would show when it is made again.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(file)
    }

    fn check_disk(&self, bytes: u32) -> io::Result<()> {
        let disk = rustix::fs::fstatvfs(&self.directory)?;
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if has_room(size, free, bytes) { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

/// Whether the reserve is still there after `bytes` more are taken.
fn has_room(disk_size: u64, disk_free: u64, bytes: u32) -> bool {
    let reserve = (disk_size / DISK_RESERVE_PART).min(DISK_RESERVE_BYTES_MAX);
    disk_free >= reserve.saturating_add(u64::from(bytes))
}

impl Identity {
    fn new(replica: Option<&str>) -> Self {
        let spool = crate::clock::fresh_uuid();
        let made = || format!("gateway-{}", spool.simple().to_string().split_at(20).1);
        let replica = ReplicaId::new(&replica.map_or_else(made, str::to_owned));
        Self { spool, replica }
    }
}

/// Takes room from the disk: at once where the file system can, else by writing zeros.
fn preallocate(file: &File, bytes: u32) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, u64::from(bytes)) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            io::copy(&mut io::repeat(0).take(u64::from(bytes)), &mut &*file).map(drop)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_one_process_and_keeps_its_identity() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let first = Folder::open(&path).unwrap();
        let identity = first.identity(None).unwrap();
        assert!(matches!(Folder::open(&path), Err(SpoolError::InUse(_))));
        drop(first);
        let again = Folder::open(&path).unwrap();
        assert_eq!(again.identity(Some("other")).unwrap(), identity);
    }

    #[test]
    fn an_identity_is_never_made_for_segments_that_have_lost_theirs() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::open(home.path()).unwrap();
        folder.make_segment(1, 4096).unwrap();
        assert!(matches!(folder.identity(None), Err(SpoolError::Identity { .. })));
        std::fs::write(home.path().join("identity"), "{").unwrap();
        assert!(matches!(folder.identity(None), Err(SpoolError::Identity { .. })));
    }

    #[test]
    fn the_last_bytes_of_the_disk_are_left_to_others() {
        const MIB: u64 = 1024 * 1024;
        for (size, free, taken, has) in [
            (4 * MIB, 4 * MIB, 3 * MIB, true),
            (4 * MIB, 4 * MIB, 4 * MIB, false),
            (4 * MIB, MIB, MIB / 2, true),
            (4 * MIB, MIB, MIB / 2 + 1, false),
            (4096 * MIB, 32 * MIB, 16 * MIB, true),
            (4096 * MIB, 32 * MIB, 16 * MIB + 1, false),
        ] {
            assert_eq!(has_room(size, free, u32::try_from(taken).unwrap()), has, "{taken} of {free} of {size}");
        }
    }
}

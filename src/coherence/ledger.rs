//! The file of digests that are known to be revoked.
//!
//! ```text
//! entry   digest 32 bytes · CRC-32C of it, 4 bytes little-endian
//! ```
//!
//! Entries of one size need no lengths, so a torn or damaged one is left out and costs no other. What is appended is on
//! disk when the call returns. After a failure the file is written anew beside the old one and renamed into its place,
//! since a second sync of the same file would prove nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::domain::KeyDigest;

const DIGEST_BYTES: usize = 32;
const ENTRY_BYTES: usize = DIGEST_BYTES + 4;
/// Nobody but the gateway's user.
const FILE_MODE: u32 = 0o600;

/// The open file.
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Opens or makes the file; answers what it holds. An end that was torn off is cut away.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<KeyDigest>)> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let torn = bytes.len() % ENTRY_BYTES;
        if torn > 0 {
            file.set_len(u64::try_from(bytes.len() - torn).unwrap_or(u64::MAX))?;
        }
        let entries = bytes.chunks_exact(ENTRY_BYTES);
        let digests: Vec<KeyDigest> = entries.clone().filter_map(read_entry).collect();
        let damaged = entries.len() - digests.len();
        if torn > 0 || damaged > 0 {
            tracing::warn!(file = ?path, torn_bytes = torn, damaged, "left out entries of revoked keys that cannot be read; the store has them");
        }
        sync_folder(path)?;
        Ok((Self { path: path.to_owned(), file }, digests))
    }

    /// Adds digests; they are on disk when this returns.
    pub(super) fn append(&mut self, digests: &[KeyDigest]) -> io::Result<()> {
        self.file.write_all(&write_entries(digests))?;
        self.file.sync_data()
    }

    /// Replaces the file by one that holds exactly these.
    pub(super) fn rewrite(&mut self, digests: &[KeyDigest]) -> io::Result<()> {
        let unfinished = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&unfinished)?;
        file.write_all(&write_entries(digests))?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &self.path)?;
        sync_folder(&self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        Ok(())
    }

    /// Takes away the right to write, as a failing disk would.
    #[cfg(test)]
    pub(super) fn break_file(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }
}

/// A name is on disk only when its folder is.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn write_entries(digests: &[KeyDigest]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(digests.len() * ENTRY_BYTES);
    for digest in digests {
        bytes.extend(digest.as_bytes());
        bytes.extend(crc32c::crc32c(digest.as_bytes()).to_le_bytes());
    }
    bytes
}

fn read_entry(entry: &[u8]) -> Option<KeyDigest> {
    let (digest, checksum) = entry.split_first_chunk::<DIGEST_BYTES>()?;
    (checksum == crc32c::crc32c(digest).to_le_bytes()).then(|| KeyDigest::from_bytes(*digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(numbers: impl IntoIterator<Item = u8>) -> Vec<KeyDigest> {
        numbers.into_iter().map(|number| KeyDigest::from_bytes([number; 32])).collect()
    }

    #[test]
    fn torn_and_damaged_entries_cost_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/revoked");
        let (mut ledger, found) = Ledger::open(&path).unwrap();
        assert!(found.is_empty());
        ledger.append(&digests([0, 1, 2])).unwrap();
        for torn in 1..ENTRY_BYTES {
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, [&whole[..], &vec![7; torn]].concat()).unwrap();
            let (_, found) = Ledger::open(&path).unwrap();
            assert_eq!(found, digests([0, 1, 2]), "{torn}");
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[ENTRY_BYTES + 3] ^= 1;
        // A file that grew before its bytes arrived ends in zeros after a power cut.
        bytes.extend([0; ENTRY_BYTES]);
        std::fs::write(&path, bytes).unwrap();
        let (mut ledger, found) = Ledger::open(&path).unwrap();
        assert_eq!(found, digests([0, 2]));
        ledger.append(&digests([3])).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().1, digests([0, 2, 3]));
        ledger.rewrite(&digests([4])).unwrap();
        ledger.append(&digests([5])).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().1, digests([4, 5]));
    }
}

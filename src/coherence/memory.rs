//! What a gateway keeps on its own disk, within its spool, about a store elsewhere: which data set that is, and which
//! keys are revoked.
//!
//! `known-store` holds a line for each partition, its number and the data set's token; `revoked` is the ledger's. A store
//! that holds another data set at the start was emptied or is another one, and is refused with the way out.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::ledger::sync_folder;
use super::tombstones::Tombstones;
use crate::store::Partition;

/// File of the revoked keys' digests.
const REVOKED_FILE: &str = "revoked";
/// File of the data sets that are known.
const KNOWN_FILE: &str = "known-store";

/// Whether a data set that is not the known one may take its place at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strangers {
    /// It is refused.
    Refused,
    /// It is taken, as the operator said.
    Accepted,
}

/// What was found on disk; nothing where nothing is kept.
#[derive(Default)]
pub struct Memory {
    pub(super) tombstones: Tombstones,
    file: Option<PathBuf>,
    known: Mutex<HashMap<Partition, String>>,
}

impl Memory {
    /// Reads what an earlier start wrote down in `folder`.
    ///
    /// # Errors
    /// When a file cannot be read or made.
    pub fn open(folder: &Path, strangers: Strangers) -> io::Result<Self> {
        let file = folder.join(KNOWN_FILE);
        let tombstones = Tombstones::open(&folder.join(REVOKED_FILE))?;
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let mut known = HashMap::new();
        for line in text.lines() {
            let (number, token) = line.split_once(' ').ok_or_else(|| unreadable(&file))?;
            known.insert(Partition(number.parse().map_err(|_| unreadable(&file))?), token.to_owned());
        }
        if strangers == Strangers::Accepted {
            known.clear();
        }
        Ok(Self { tombstones, file: Some(file), known: Mutex::new(known) })
    }

    /// The data set that a partition must hold, if one is known.
    pub(super) fn data_set(&self, partition: Partition) -> Option<String> {
        self.known.lock().get(&partition).cloned()
    }

    /// Where that is written down.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Notes the data set of a partition.
    ///
    /// # Errors
    /// When it cannot be written down; it is known to this process all the same.
    pub(super) fn learn(&self, partition: Partition, data_set: &str) -> io::Result<()> {
        let mut known = self.known.lock();
        if known.get(&partition).is_some_and(|earlier| earlier == data_set) {
            return Ok(());
        }
        known.insert(partition, data_set.to_owned());
        let Some(file) = &self.file else { return Ok(()) };
        let mut lines: Vec<String> = known.iter().map(|(partition, token)| format!("{} {token}\n", partition.0)).collect();
        lines.sort_unstable();
        let unfinished = file.with_extension("new");
        let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        out.write_all(lines.concat().as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&unfinished, file)?;
        sync_folder(file)
    }
}

fn unreadable(file: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file:?} is not what this gateway wrote"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_known_to_the_next_start_unless_strangers_are_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let open = |strangers| Memory::open(folder.path(), strangers).unwrap();
        let memory = open(Strangers::Refused);
        assert_eq!(memory.data_set(Partition(0)), None);
        memory.learn(Partition(1), "two").unwrap();
        memory.learn(Partition(0), "one").unwrap();
        let again = open(Strangers::Refused);
        assert_eq!((again.data_set(Partition(0)), again.data_set(Partition(1))), (Some("one".into()), Some("two".into())));
        assert_eq!(open(Strangers::Accepted).data_set(Partition(0)), None);
        std::fs::write(folder.path().join(KNOWN_FILE), "garbage").unwrap();
        assert!(Memory::open(folder.path(), Strangers::Refused).is_err());
    }
}

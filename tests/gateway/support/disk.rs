//! A disk of a test's own that fills up: a small tmpfs, mounted where the gateway keeps its files.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::program;

/// Mounted until it is dropped.
pub(crate) struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None` where this user may not mount anything; says so, because the test then shows nothing.
    pub(crate) fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let size = format!("size={mebibytes}m");
        let output = program::run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()));
        if !output.status.success() {
            eprintln!("skipped: a small disk can be mounted by root only: {}", program::text(&output.stderr));
            return None;
        }
        Some(Self { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Uses up what is left, as a neighbour's log would.
    pub(crate) fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).expect("our disk");
        for size in [64 * 1024, 512, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    pub(crate) fn make_read_only(&self) {
        program::output_of(Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A process of the test may still end; the mount goes when it has.
        program::run(Command::new("umount").arg("--lazy").arg(self.folder.path()));
    }
}

//! A gateway whose clocks a test sets, with libfaketime. The clock that counts since the machine's start stays true.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{EDIT, FIRM, Gateway, USER, VIEW, program};

/// Where Debian puts libfaketime.
fn library() -> String {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH)
}

/// Which clocks are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clocks {
    /// The wall's alone.
    Wall,
    /// The one that timers run by as well: set forward, the process has slept.
    All,
}

/// A gateway whose clocks a test sets.
pub(crate) struct Clocked {
    pub(crate) gateway: Gateway,
    clocks: Clocks,
    setting: tempfile::TempDir,
}

impl Clocked {
    pub(crate) fn start(clocks: Clocks, change: impl FnOnce(&mut Value)) -> Self {
        assert!(Path::new(&library()).exists(), "libfaketime is installed; tests/run does that");
        let setting = tempfile::tempdir().expect("a folder");
        fs::write(setting.path().join("offset"), "+0").expect("our folder");
        let words: Vec<String> = ["env".to_owned()]
            .into_iter()
            .chain(environment(setting.path(), clocks).map(|(name, value)| format!("{name}={value}")))
            .collect();
        let gateway = Gateway::under(&words.iter().map(String::as_str).collect::<Vec<_>>(), change);
        Self { gateway, clocks, setting }
    }

    /// Sets the clocks to so many seconds from the true time.
    pub(crate) fn step(&self, seconds: i64) {
        let file: PathBuf = self.setting.path().join("offset");
        fs::write(file.with_extension("new"), format!("{seconds:+}")).expect("our folder");
        fs::rename(file.with_extension("new"), file).expect("our folder");
    }

    /// An editor's token of the time that the gateway has.
    pub(crate) fn editor(&self) -> String {
        let mut command = self.gateway.command(&["token", "--config"]);
        command.arg(self.gateway.config_file()).args(["--firm", FIRM, "--user", USER, "--permission", VIEW, "--permission", EDIT]);
        command.envs(environment(self.setting.path(), self.clocks));
        program::output_of(&mut command).trim().to_owned()
    }
}

fn environment(setting: &Path, clocks: Clocks) -> [(&'static str, String); 4] {
    let is_monotonic_true = if clocks == Clocks::Wall { "1" } else { "0" };
    [
        ("LD_PRELOAD", library()),
        ("FAKETIME_TIMESTAMP_FILE", setting.join("offset").display().to_string()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", is_monotonic_true.into()),
    ]
}

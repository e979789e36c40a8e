//! A real redis-server of a test's own, on a free port and in a folder that goes with it, which keeps what it
//! acknowledges (`appendonly yes`, `appendfsync always`) unless a test wants it otherwise.
//!
//! It can be killed, frozen and started again on what is on disk; every other fault is a setting that a test changes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually::eventually;
use super::{Gateway, SOON};

pub(crate) struct Redis {
    folder: TempDir,
    port: u16,
    process: Mutex<Option<Child>>,
}

impl Redis {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let redis = Self::stopped();
        redis.up();
        redis
    }

    /// An address at which there is no Redis yet.
    pub(crate) fn stopped() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
        Self { folder: tempfile::tempdir().expect("a temporary folder"), port, process: Mutex::default() }
    }

    /// Starts it on what is on disk.
    #[track_caller]
    pub(crate) fn up(&self) {
        self.spawn(&[]);
        eventually!(SOON, self.ask(&["PING"]).is_some_and(|answer| answer.starts_with("+PONG")), "redis-server answers");
    }

    /// The same with more settings, or others, and without waiting for it.
    pub(crate) fn spawn(&self, settings: &[&str]) {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--enable-debug-command",
            "yes",
        ]);
        command.args(settings).arg("--dir").arg(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        *self.process.lock().expect("no holder panics") = Some(command.spawn().expect("redis-server is installed; tests/run does that"));
    }

    /// Stops or goes on without a word to anybody: connections stay open and say nothing.
    pub(crate) fn signal(&self, signal: Signal) {
        let process = self.process.lock().expect("no holder panics");
        let id = process.as_ref().map(|process| i32::try_from(process.id()).expect("ids are small"));
        kill_process(id.and_then(Pid::from_raw).expect("it runs"), signal).expect("it is our child");
    }

    /// kill -9.
    pub(crate) fn down(&self) {
        if let Some(mut process) = self.process.lock().expect("no holder panics").take() {
            process.kill().expect("it is our child");
            process.wait().expect("it is our child");
        }
    }

    /// Ends it and answers a copy of what it has on disk.
    pub(crate) fn down_and_copied(&self) -> TempDir {
        self.down();
        let copy = tempfile::tempdir().expect("a temporary folder");
        copy_folder(self.folder.path(), copy.path());
        copy
    }

    /// Puts such a copy in the place of what it has on disk, while it is down; an empty folder loses everything.
    pub(crate) fn restore(&self, copy: &TempDir) {
        for entry in std::fs::read_dir(self.folder.path()).expect("our folder").flatten() {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("our file");
        }
        copy_folder(copy.path(), self.folder.path());
    }

    /// Sends one command that must be obeyed.
    #[track_caller]
    pub(crate) fn tell(&self, words: &[&str]) {
        let answer = self.ask(words).unwrap_or_default();
        assert!(!answer.is_empty() && !answer.starts_with('-'), "{words:?}: {answer}");
    }

    /// How often it was asked each command, scripts' own included, since the last `CONFIG RESETSTAT`.
    #[track_caller]
    pub(crate) fn calls(&self) -> HashMap<String, u64> {
        let stats = self.ask(&["INFO", "commandstats"]).expect("Redis answers");
        let line = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        stats.lines().filter_map(line).collect()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends one command and answers what came within a moment, as it came.
    pub(crate) fn ask(&self, words: &[&str]) -> Option<String> {
        self.converse(&[words])
    }

    /// The same after signing in.
    pub(crate) fn ask_as(&self, password: &str, words: &[&str]) -> Option<String> {
        self.converse(&[&["AUTH", password], words])
    }

    fn converse(&self, commands: &[&[&str]]) -> Option<String> {
        let mut socket = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        for words in commands {
            let command: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            socket.write_all(format!("*{}\r\n{command}", words.len()).as_bytes()).ok()?;
        }
        let mut answer = Vec::new();
        // Ends with the time-out, since the connection stays open.
        socket.read_to_end(&mut answer).ok();
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The values of one field in the stream for consumers, in its order.
    pub(crate) fn streamed(&self, field: &str) -> Vec<String> {
        let answer = self.ask(&["XRANGE", "assure:audit", "-", "+"]).expect("Redis answers");
        values(answer.split("\r\n").filter(|line| !line.starts_with(['*', '$'])), field)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn store(&self, lease: &str) -> Value {
        json!({ "redis": { "url": format!("redis://{}/0", self.address()), "coherence_lease": lease } })
    }

    /// So many gateways that share this Redis, and trust it.
    #[track_caller]
    pub(crate) fn gateways<const N: usize>(&self, lease: &str) -> [Gateway; N] {
        std::array::from_fn(|_| Gateway::with(|config| config["store"] = self.store(lease)))
    }
}

/// The values of one field in the lines of an answer, where each name stands before its value.
pub(crate) fn values<'a>(lines: impl Iterator<Item = &'a str>, field: &str) -> Vec<String> {
    let lines: Vec<&str> = lines.collect();
    lines.windows(2).filter(|pair| pair[0] == field).map(|pair| pair[1].to_owned()).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("our folder");
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("our file");
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.down();
    }
}

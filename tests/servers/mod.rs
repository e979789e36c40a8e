//! Real Redis servers of a test's own, on free ports, in folders that go with them: one server, a Cluster, Redis with
//! Sentinel, and one that wants TLS and a user.
//!
//! The tests of the store, inside the crate, and those of the gateway, outside, both have this as a module of theirs; how
//! the store and the gateway are told of the servers is their own business.

pub(crate) mod farms;
pub(crate) mod guarded;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

pub(crate) use self::farms::{Cluster, Trio};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    words: Vec<String>,
    pub(crate) process: Mutex<Child>,
}

impl Server {
    /// Runs on a free port in this folder. Words are parted by one space, so that two of them hold an empty word between them.
    pub(crate) fn run(folder: TempDir, words: &str) -> Self {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let port = free_port();
        let process = Mutex::new(spawn(folder.path(), port, &words));
        Self { folder, port, words, process }
    }

    /// kill -9.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock();
        process.kill().expect("it is our child");
        process.wait().expect("it is our child");
    }

    /// Up again on what is on disk.
    pub(crate) fn restart(&self) {
        *self.process.lock() = spawn(self.folder.path(), self.port, &self.words);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut process = self.process.lock();
        process.kill().ok();
        process.wait().ok();
    }
}

pub(crate) fn fresh_folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// What redis-cli prints.
pub(crate) fn ask(port: u16, words: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(words).output().expect("redis-tools is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn spawn(folder: &Path, port: u16, words: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(words).args(["--port", &port.to_string()]).arg("--dir").arg(folder);
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed; tests/run does that");
    let until = Instant::now() + START;
    while !is_up(port) {
        assert!(process.try_wait().expect("it is our child").is_none(), "redis-server ended; was its port taken?");
        if Instant::now() > until {
            process.kill().ok();
            panic!("redis-server does not listen");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}

/// Listens and has loaded what is on disk.
fn is_up(port: u16) -> bool {
    let Ok(mut socket) = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1)) else {
        return false;
    };
    let mut answer = [0; 5];
    socket.write_all(b"PING\r\n").is_ok() && socket.read_exact(&mut answer).is_ok() && [*b"+PONG", *b"-NOAU"].contains(&answer)
}

//! A real redis-server of a test's own, on a free port and in a folder that goes with it, which keeps what it
//! acknowledges (`appendonly yes`, `appendfsync always`) unless a test wants it otherwise.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

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
        ]);
        command.arg("--dir").arg(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        *self.process.lock().expect("no holder panics") = Some(command.spawn().expect("redis-server is installed; tests/run does that"));
        eventually!(SOON, self.ask(&["PING"]).is_some_and(|answer| answer.starts_with("+PONG")), "redis-server answers");
    }

    /// kill -9.
    pub(crate) fn down(&self) {
        if let Some(mut process) = self.process.lock().expect("no holder panics").take() {
            process.kill().expect("it is our child");
            process.wait().expect("it is our child");
        }
    }

    /// Sends one command and answers what came within a moment, as it came.
    pub(crate) fn ask(&self, words: &[&str]) -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        let command: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        socket.write_all(format!("*{}\r\n{command}", words.len()).as_bytes()).ok()?;
        let mut answer = Vec::new();
        // Ends with the time-out, since the connection stays open.
        socket.read_to_end(&mut answer).ok();
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The values of one field in the stream for consumers, in its order.
    pub(crate) fn streamed(&self, field: &str) -> Vec<String> {
        let answer = self.ask(&["XRANGE", "assure:audit", "-", "+"]).expect("Redis answers");
        let lines: Vec<&str> = answer.split("\r\n").filter(|line| !line.starts_with(['*', '$'])).collect();
        lines.windows(2).filter(|pair| pair[0] == field).map(|pair| pair[1].to_owned()).collect()
    }

    pub(crate) fn store(&self, lease: &str) -> Value {
        json!({ "redis": { "url": format!("redis://127.0.0.1:{}/0", self.port), "coherence_lease": lease } })
    }

    /// So many gateways that share this Redis, and trust it.
    #[track_caller]
    pub(crate) fn gateways<const N: usize>(&self, lease: &str) -> [Gateway; N] {
        std::array::from_fn(|_| Gateway::with(|config| config["store"] = self.store(lease)))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.down();
    }
}

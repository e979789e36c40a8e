//! Real servers of a test's own, on free ports, in folders that go with them: one redis-server, a Cluster, and Redis with
//! Sentinel. One of each of the latter two is shared by the tests of a process, since they take seconds to start; each
//! test then has a store of its own there, named by its stream.

mod encryption;
mod farms;
mod topologies;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

pub(in crate::store) use self::farms::{Cluster, Trio, shared_cluster, shared_trio};
use super::RedisStore;
use crate::config::{Config, Redis, parse};
use crate::store::StoreError;
use crate::tasks::Tasks;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

pub(in crate::store) struct Server {
    folder: TempDir,
    port: u16,
    words: Vec<String>,
    process: Mutex<Child>,
}

impl Server {
    /// Keeps what it acknowledges.
    pub(in crate::store) fn start() -> Arc<Self> {
        Self::with("--appendonly yes --appendfsync always")
    }

    pub(in crate::store) fn with(settings: &str) -> Arc<Self> {
        Arc::new(Self::run(free_port(), tempfile::tempdir().unwrap(), &format!("--bind 127.0.0.1 --save  {settings}")))
    }

    /// Words are parted by one space, so that two of them hold an empty word between them.
    fn run(port: u16, folder: TempDir, words: &str) -> Self {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let process = Mutex::new(spawn(folder.path(), port, &words));
        Self { folder, port, words, process }
    }

    /// kill -9, and up again on what is on disk.
    pub(in crate::store) fn crash(&self) {
        self.kill();
        self.restart();
    }

    fn kill(&self) {
        let mut process = self.process.lock();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn restart(&self) {
        *self.process.lock() = spawn(self.folder.path(), self.port, &self.words);
    }

    /// SIGSTOP and SIGCONT: it is silent, but its connections stay open.
    fn signal(&self, signal: rustix::process::Signal) {
        let process = i32::try_from(self.process.lock().id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(process).unwrap(), signal).unwrap();
    }

    pub(in crate::store) fn config(&self) -> Redis {
        configured(&format!("url: 'redis://127.0.0.1:{}'", self.port))
    }

    pub(in crate::store) async fn open(&self) -> Result<Arc<RedisStore>, StoreError> {
        RedisStore::open(&self.config(), "assure:audit", &Tasks::new()).await
    }
}

/// `store.redis` with these fields.
fn configured(fields: &str) -> Redis {
    let config: Config = parse(Path::new("test"), &format!("store: {{ redis: {{ {fields} }} }}")).unwrap();
    config.store.redis.unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
        assert!(process.try_wait().unwrap().is_none(), "redis-server ended; was its port taken?");
        if Instant::now() > until {
            process.kill().ok();
            panic!("redis-server does not listen");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}

/// What redis-cli prints.
fn ask(port: u16, words: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(words).output().expect("redis-tools is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Listens and has loaded what is on disk.
fn is_up(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut socket) = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1)) else {
        return false;
    };
    let mut answer = [0; 5];
    socket.write_all(b"PING\r\n").is_ok() && socket.read_exact(&mut answer).is_ok() && [*b"+PONG", *b"-NOAU"].contains(&answer)
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut process = self.process.lock();
        process.kill().ok();
        process.wait().ok();
    }
}

#[tokio::test]
async fn a_redis_that_may_evict_or_forget_is_refused_with_the_setting() {
    let refused = |settings: &'static str| async move {
        let server = Server::with(settings);
        match server.open().await {
            Err(StoreError::Unsafe(why)) => {
                let unsafe_config = Redis { allow_unsafe: true, ..server.config() };
                RedisStore::open(&unsafe_config, "assure:audit", &Tasks::new()).await.map(drop).expect("allow_unsafe overrides");
                why
            }
            other => panic!("{:?}", other.map(drop)),
        }
    };
    assert!(refused("--appendonly yes --maxmemory-policy allkeys-lru").await.contains("maxmemory-policy noeviction"));
    assert!(refused("--appendonly no").await.contains("appendonly yes"));
}

#[tokio::test]
async fn a_redis_that_is_away_or_wants_a_password_is_unavailable() {
    let server = Server::with("--appendonly yes --requirepass secret");
    assert!(matches!(server.open().await.map(drop), Err(StoreError::Unavailable(why)) if why.contains("NOAUTH")));
    let file = server.folder.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let config = Redis { password_file: Some(file.clone()), ..server.config() };
    let store = RedisStore::open(&config, "assure:audit", &Tasks::new()).await.unwrap();
    std::fs::write(&file, "wrong").unwrap();
    let refused = RedisStore::open(&config, "assure:audit", &Tasks::new()).await.map(drop);
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if !why.contains("wrong,") && !why.contains("secret")), "{refused:?}");
    server.process.lock().kill().unwrap();
    assert!(matches!(crate::store::Store::safeguards(&*store).await, Err(StoreError::Unavailable(_))));
}

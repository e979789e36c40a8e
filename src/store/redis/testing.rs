//! A real redis-server of a test's own: on a free port, in a folder that goes with it, with everything on disk before it
//! is acknowledged.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

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
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let words: Vec<String> = settings.split(' ').map(str::to_owned).collect();
        let process = Mutex::new(spawn(&folder, port, &words));
        Arc::new(Self { folder, port, words, process })
    }

    /// kill -9, and up again on what is on disk.
    pub(in crate::store) fn crash(&self) {
        let mut process = self.process.lock();
        process.kill().unwrap();
        process.wait().unwrap();
        *process = spawn(&self.folder, self.port, &self.words);
    }

    pub(in crate::store) fn config(&self) -> Redis {
        let text = format!("store: {{ redis: {{ url: 'redis://127.0.0.1:{}' }} }}", self.port);
        let config: Config = parse(std::path::Path::new("test"), &text).unwrap();
        config.store.redis.unwrap()
    }

    pub(in crate::store) async fn open(&self) -> Result<Arc<RedisStore>, StoreError> {
        RedisStore::open(&self.config(), "assure:audit", &Tasks::new()).await
    }
}

fn spawn(folder: &TempDir, port: u16, words: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).args(words).arg("--dir").arg(folder.path());
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
    assert!(matches!(crate::store::Store::ping(&*store).await, Err(StoreError::Unavailable(_))));
}

//! Real servers of a test's own, and how a store is opened on them: one redis-server, a Cluster, and Redis with
//! Sentinel. One of each of the latter two is shared by the tests of a process, since they take seconds to start; each
//! test then has a store of its own there, named by its stream.

mod costs;
mod encryption;
mod farms;
#[path = "../../../tests/servers/mod.rs"]
mod servers;
mod topologies;

use std::path::Path;
use std::sync::Arc;

pub(in crate::store) use self::farms::{shared_cluster, shared_trio};
use self::servers::farms::until;
pub(in crate::store) use self::servers::{Cluster, Server, Trio};
use self::servers::{ask, free_port, fresh_folder};
use super::RedisStore;
use crate::config::{Config, Redis, parse};
use crate::store::StoreError;
use crate::tasks::Tasks;

impl Server {
    /// Keeps what it acknowledges.
    pub(in crate::store) fn start() -> Arc<Self> {
        Self::with("--appendonly yes --appendfsync always")
    }

    pub(in crate::store) fn with(settings: &str) -> Arc<Self> {
        Arc::new(Self::run(fresh_folder(), &format!("--bind 127.0.0.1 --save  {settings}")))
    }

    /// kill -9, and up again on what is on disk.
    pub(in crate::store) fn crash(&self) {
        self.kill();
        self.restart();
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

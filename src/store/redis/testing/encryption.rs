//! TLS both ways, a user of its own with a password in a file, files that change, and what is told when they are wrong.

use super::servers::guarded::{Guarded, encrypted};
use super::{Server, configured, free_port, fresh_folder, until};
use crate::config::{Cluster, Redis, Sentinel, ServerAddress};
use crate::store::redis::RedisStore;
use crate::store::{Creation, Revocation, Store, StoreError};
use crate::tasks::Tasks;

impl Guarded {
    fn config(&self) -> Redis {
        let text = "url: 'rediss://gateway@127.0.0.1:PORT/0', password_file: DIR/password, ca: DIR/ca.pem, \
                    client_certificate: { certificate: DIR/client.pem, private_key: DIR/client.key }";
        configured(&text.replace("PORT", &self.port.to_string()).replace("DIR", self.folder.path().to_str().unwrap()))
    }

    /// Why a gateway that is configured so cannot start.
    async fn refused(&self, config: Redis) -> String {
        match RedisStore::open(&config, "assure:audit", &Tasks::new()).await.map(drop) {
            Err(StoreError::Unavailable(why)) => why,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_show_certificates_and_a_password_may_change_under_way() {
    let guarded = Guarded::start();
    let store = RedisStore::open(&guarded.config(), "assure:audit", &Tasks::new()).await.unwrap();
    let key = crate::store::conformance::new_key("firm-1", "ann");
    store.create(key.clone()).await.unwrap();
    let admin = |words: &[&str]| guarded.admin(words);
    let hints = store.hints();
    assert_eq!(admin(&["ACL", "SETUSER", "gateway", "resetpass", ">new-secret"]), "OK");
    std::fs::write(guarded.file("password"), "new-secret").unwrap();
    admin(&["CLIENT", "KILL", "USER", "gateway"]);
    let before = *hints.borrow();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while store.revoke(crate::store::conformance::revocation(&key.record)).await.is_err() || *hints.borrow() == before {
        assert!(std::time::Instant::now() < until, "signs in with the new password");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(admin(&["ACL", "LOG"]), "", "the user may do all that the gateway does, and tried nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_certificates_names_and_passwords_are_told_without_secrets() {
    let guarded = Guarded::start();
    let stranger = Redis { ca: Some(guarded.file("stranger.pem")), ..guarded.config() };
    let told = guarded.refused(stranger).await;
    assert!(told.contains("UnknownIssuer") || told.contains("BadSignature"), "{told}");
    let bare = Redis { client_certificate: None, ..guarded.config() };
    assert!(guarded.refused(bare).await.to_lowercase().contains("certificate"), "a server that wants one says so");
    let renamed = Redis { url: Some(format!("rediss://gateway@localhost:{}", guarded.port).as_str().into()), ..guarded.config() };
    let told = guarded.refused(renamed).await;
    assert!(told.contains("not valid for name"), "{told}");
    std::fs::write(guarded.file("password"), "sesame-1").unwrap();
    let told = guarded.refused(guarded.config()).await;
    assert!(!told.contains("sesame") && !told.contains("secret") && told.to_lowercase().contains("password"), "{told}");
    let config = guarded.config();
    std::fs::remove_file(guarded.file("password")).unwrap();
    let unreadable = RedisStore::open(&config, "assure:audit", &Tasks::new()).await.map(drop);
    assert!(matches!(&unreadable, Err(StoreError::Unsafe(why)) if why.contains("store.redis.password_file")), "{unreadable:?}");
}

async fn works(config: &Redis) {
    let store = RedisStore::open(config, "assure:audit", &Tasks::new()).await.unwrap();
    let key = crate::store::conformance::new_key("firm-1", "ann");
    assert!(matches!(store.create(key.clone()).await, Ok(Creation::Created(..))));
    assert!(matches!(store.revoke(crate::store::conformance::revocation(&key.record)).await, Ok(Revocation::Revoked { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_may_have_certificates_and_a_password_of_their_own() {
    let guarded = Guarded::start();
    let (port, folder) = (free_port(), fresh_folder());
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\nrequirepass watch-secret\ntls-replication yes\nsentinel monitor assure 127.0.0.1 {} 1\n\
         sentinel auth-user assure admin\nsentinel auth-pass assure admin\n",
        guarded.port
    );
    std::fs::write(&file, text).unwrap();
    let words = format!("{} --sentinel {}", file.to_str().unwrap(), encrypted(guarded.folder.path(), port));
    let _sentinel = Server::run(folder, &words);
    std::fs::write(guarded.file("watch"), "watch-secret").unwrap();
    let sentinel = Sentinel {
        nodes: vec![ServerAddress::parse(&format!("127.0.0.1:{port}")).unwrap()],
        master: "assure".into(),
        user: None,
        password_file: Some(guarded.file("watch")),
    };
    let config = Redis { url: Some("rediss://gateway@/0".into()), sentinel: Some(sentinel), ..guarded.config() };
    works(&config).await;
    std::fs::write(guarded.file("watch"), "sesame-1").unwrap();
    let told = guarded.refused(config).await;
    assert!(told.contains("sentinel 127.0.0.1") && !told.contains("sesame") && !told.contains("secret"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_may_have_certificates_and_users() {
    let words = format!("--cluster-enabled yes --cluster-port {} --tls-cluster yes --cluster-announce-ip 127.0.0.1", free_port());
    let guarded = Guarded::with(&words);
    assert_eq!(guarded.admin(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    until("the Cluster", || guarded.admin(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let cluster = Cluster { nodes: vec![ServerAddress::parse(&format!("127.0.0.1:{}", guarded.port)).unwrap()] };
    works(&Redis { url: Some("rediss://gateway@/".into()), cluster: Some(cluster), partitions: 3, ..guarded.config() }).await;
    assert_eq!(guarded.admin(&["ACL", "LOG"]), "");
}

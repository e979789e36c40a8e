//! A Cluster of three masters with a replica each, and a master with two replicas and three sentinels.
//!
//! Each is asked by redis-cli until its servers agree, so that a test begins with one that works. The shared ones are
//! ended by a child that waits for this process to be gone.

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Server, ask, configured, free_port};
use crate::config::Redis;

/// How long servers may take to find each other.
const MEET: Duration = Duration::from_secs(60);
/// Numbers stores, so that no test sees another's.
static STORES: AtomicUsize = AtomicUsize::new(0);

/// Six servers that share 16,384 slots.
pub(in crate::store) struct Cluster {
    pub(in crate::store) nodes: Vec<Server>,
}

impl Cluster {
    /// Started and agreed. A node that is silent for so many milliseconds is replaced.
    pub(in crate::store) fn start(node_timeout_ms: u32) -> Self {
        let nodes: Vec<Server> = (0..6).map(|_| cluster_node(node_timeout_ms)).collect();
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create", "--cluster-replicas", "1", "--cluster-yes"]);
        command.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        let made = command.stdin(Stdio::null()).output().expect("redis-tools is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        until("the Cluster to agree", || {
            nodes.iter().all(|node| {
                let replication = ask(node.port, &["INFO", "replication"]);
                ask(node.port, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
                    && ask(node.port, &["CLUSTER", "NODES"]).matches("slave").count() == 3
                    && (replication.contains("connected_slaves:1") || replication.contains("master_link_status:up"))
            })
        });
        Self { nodes }
    }

    pub(in crate::store) fn config(&self) -> Redis {
        let nodes: Vec<String> = self.nodes.iter().take(3).map(|node| format!("'127.0.0.1:{}'", node.port)).collect();
        configured(&format!("cluster: {{ nodes: [{}] }}, partitions: 3", nodes.join(", ")))
    }

    /// The master of a key's slot, as a node that is up says.
    pub(in crate::store) fn master_of(&self, key: &str, asked: &Server) -> &Server {
        let slot = self.slot_of(key, asked);
        let nodes = ask(asked.port, &["CLUSTER", "NODES"]);
        let port = nodes.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let is_master = fields.get(2)?.contains("master") && !fields.get(2)?.contains("fail");
            let has_slot = fields.iter().skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse::<u16>().is_ok_and(|first| first <= slot) && last.parse::<u16>().is_ok_and(|last| last >= slot)
            });
            let (_, port) = fields.get(1)?.split('@').next()?.rsplit_once(':')?;
            (is_master && has_slot).then(|| port.parse::<u16>().unwrap())
        });
        let port = port.unwrap_or_else(|| panic!("no master has slot {slot}: {nodes}"));
        self.nodes.iter().find(|node| node.port == port).unwrap()
    }

    pub(in crate::store) fn slot_of(&self, key: &str, asked: &Server) -> u16 {
        ask(asked.port, &["CLUSTER", "KEYSLOT", key]).trim().parse().unwrap()
    }
}

fn cluster_node(timeout_ms: u32) -> Server {
    let bus = free_port();
    let words = format!(
        "--bind 127.0.0.1 --save  --appendonly yes --cluster-enabled yes --cluster-port {bus} --cluster-node-timeout {timeout_ms} \
         --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0 --repl-ping-replica-period 1"
    );
    Server::run(free_port(), tempfile::tempdir().unwrap(), &words)
}

/// A master, two replicas and three sentinels.
pub(in crate::store) struct Trio {
    pub(in crate::store) servers: Vec<Server>,
    pub(in crate::store) sentinels: Vec<Server>,
}

impl Trio {
    pub(in crate::store) fn start() -> Self {
        let words = "--bind 127.0.0.1 --save  --appendonly yes --repl-diskless-sync-delay 0 --repl-ping-replica-period 1";
        let master = Server::run(free_port(), tempfile::tempdir().unwrap(), words);
        let replica = || {
            let words = format!("{words} --replicaof 127.0.0.1 {}", master.port);
            Server::run(free_port(), tempfile::tempdir().unwrap(), &words)
        };
        let replicas = [replica(), replica()];
        until("two replicas", || ask(master.port, &["INFO", "replication"]).matches("state=online").count() == 2);
        let sentinels: Vec<Server> = (0..3).map(|_| sentinel(master.port)).collect();
        let servers: Vec<Server> = std::iter::once(master).chain(replicas).collect();
        until("sentinels to meet", || {
            sentinels.iter().all(|sentinel| {
                let state = ask(sentinel.port, &["SENTINEL", "MASTER", "assure"]);
                let mut words = state.lines();
                let mut value = |name: &str| words.find(|word| *word == name).and(words.next()).unwrap_or_default().to_owned();
                value("num-slaves") == "2" && value("num-other-sentinels") == "2"
            })
        });
        Self { servers, sentinels }
    }

    pub(in crate::store) fn config(&self) -> Redis {
        let nodes: Vec<String> = self.sentinels.iter().map(|node| format!("'127.0.0.1:{}'", node.port)).collect();
        configured(&format!("sentinel: {{ nodes: [{}], master: assure }}", nodes.join(", ")))
    }

    /// Whom a sentinel names.
    pub(in crate::store) fn master(&self) -> &Server {
        let named = ask(self.sentinels[0].port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "assure"]);
        let port: u16 = named.lines().nth(1).unwrap().parse().unwrap();
        self.servers.iter().find(|server| server.port == port).unwrap()
    }
}

/// A sentinel writes what it learns into its own configuration, so it needs a file.
fn sentinel(master: u16) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\nsentinel monitor assure 127.0.0.1 {master} 2\nsentinel down-after-milliseconds assure 1000\n\
         sentinel failover-timeout assure 5000\nsentinel parallel-syncs assure 2\n"
    );
    std::fs::write(&file, text).unwrap();
    Server::run(free_port(), folder, &format!("{} --sentinel", file.to_str().unwrap()))
}

/// Waits, without a runtime, until something is so.
pub(super) fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + MEET;
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One for all tests of this process, and a name for a store there.
pub(in crate::store) fn shared_cluster() -> (&'static Cluster, String) {
    static SHARED: OnceLock<(Cluster, Mutex<Child>)> = OnceLock::new();
    let (cluster, _) = SHARED.get_or_init(|| {
        let cluster = Cluster::start(15_000);
        let warden = warden(cluster.nodes.iter());
        (cluster, warden)
    });
    (cluster, fresh_name())
}

/// One for all tests of this process, and a name for a store there.
pub(in crate::store) fn shared_trio() -> (&'static Trio, String) {
    static SHARED: OnceLock<(Trio, Mutex<Child>)> = OnceLock::new();
    let (trio, _) = SHARED.get_or_init(|| {
        let trio = Trio::start();
        let warden = warden(trio.sentinels.iter().chain(&trio.servers));
        (trio, warden)
    });
    (trio, fresh_name())
}

fn fresh_name() -> String {
    format!("test-{}:audit", STORES.fetch_add(1, Ordering::Relaxed))
}

/// What is shared is never dropped, so somebody must end it when this process has: whoever reads from a pipe that closes.
fn warden<'a>(servers: impl Iterator<Item = &'a Server>) -> Mutex<Child> {
    let (mut processes, mut folders) = (Vec::new(), Vec::new());
    for server in servers {
        processes.push(server.process.lock().id().to_string());
        folders.push(server.folder.path().to_owned());
    }
    let mut command = Command::new("sh");
    command.args(["-c", "read line; kill -9 $1; shift; rm -rf -- \"$@\"", "sh", &processes.join(" ")]).args(folders);
    Mutex::new(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

//! A Cluster of three masters with a replica each, and a master with two replicas and three sentinels.
//!
//! Each is asked by redis-cli until its servers agree, so that a test begins with one that works.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Server, ask, free_port, fresh_folder};

/// How long servers may take to find each other.
const MEET: Duration = Duration::from_secs(60);

/// Six servers that share 16,384 slots.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    /// Started and agreed. A node that is silent for so many milliseconds is replaced.
    pub(crate) fn start(node_timeout_ms: u32) -> Self {
        let nodes: Vec<Server> = (0..6).map(|_| cluster_node(node_timeout_ms)).collect();
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create", "--cluster-replicas", "1", "--cluster-yes"]);
        command.args(addresses(&nodes));
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

    /// Some of the nodes, by which the others are found.
    pub(crate) fn addresses(&self) -> Vec<String> {
        addresses(&self.nodes).take(3).collect()
    }

    /// The master of a key's slot, as a node that is up says.
    pub(crate) fn master_of(&self, key: &str, asked: &Server) -> &Server {
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
            (is_master && has_slot).then(|| port.parse::<u16>().expect("a port"))
        });
        let port = port.unwrap_or_else(|| panic!("no master has slot {slot}: {nodes}"));
        self.nodes.iter().find(|node| node.port == port).expect("all nodes are ours")
    }

    pub(crate) fn slot_of(&self, key: &str, asked: &Server) -> u16 {
        ask(asked.port, &["CLUSTER", "KEYSLOT", key]).trim().parse().expect("a slot")
    }
}

fn cluster_node(timeout_ms: u32) -> Server {
    let bus = free_port();
    let words = format!(
        "--bind 127.0.0.1 --save  --appendonly yes --cluster-enabled yes --cluster-port {bus} --cluster-node-timeout {timeout_ms} \
         --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0 --repl-ping-replica-period 1"
    );
    Server::run(fresh_folder(), &words)
}

fn addresses(nodes: &[Server]) -> impl Iterator<Item = String> {
    nodes.iter().map(|node| format!("127.0.0.1:{}", node.port))
}

/// A master, two replicas and three sentinels.
pub(crate) struct Trio {
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinels: Vec<Server>,
}

impl Trio {
    pub(crate) fn start() -> Self {
        let words = "--bind 127.0.0.1 --save  --appendonly yes --repl-diskless-sync-delay 0 --repl-ping-replica-period 1";
        let master = Server::run(fresh_folder(), words);
        let replica = || Server::run(fresh_folder(), &format!("{words} --replicaof 127.0.0.1 {}", master.port));
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

    /// Of the sentinels.
    pub(crate) fn addresses(&self) -> Vec<String> {
        addresses(&self.sentinels).collect()
    }

    /// Whom a sentinel names.
    pub(crate) fn master(&self) -> &Server {
        let named = ask(self.sentinels[0].port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "assure"]);
        let port: u16 = named.lines().nth(1).and_then(|port| port.parse().ok()).expect("an address");
        self.servers.iter().find(|server| server.port == port).expect("all servers are ours")
    }
}

/// A sentinel writes what it learns into its own configuration, so it needs a file.
fn sentinel(master: u16) -> Server {
    let folder = fresh_folder();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\nsentinel monitor assure 127.0.0.1 {master} 2\nsentinel down-after-milliseconds assure 1000\n\
         sentinel failover-timeout assure 5000\nsentinel parallel-syncs assure 2\n"
    );
    std::fs::write(&file, text).expect("our folder");
    Server::run(folder, &format!("{} --sentinel", file.display()))
}

/// Waits, without a runtime, until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + MEET;
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

//! How a store is told of a Cluster and of sentinels, and one of each that all tests of this process share.
//!
//! The shared ones are ended by a child that waits for this process to be gone.

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Cluster, Server, Trio, configured};
use crate::config::Redis;

/// Numbers stores, so that no test sees another's.
static STORES: AtomicUsize = AtomicUsize::new(0);

impl Cluster {
    pub(in crate::store) fn config(&self) -> Redis {
        configured(&format!("cluster: {{ nodes: {:?} }}, partitions: 3", self.addresses()))
    }
}

impl Trio {
    pub(in crate::store) fn config(&self) -> Redis {
        configured(&format!("sentinel: {{ nodes: {:?}, master: assure }}", self.addresses()))
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

//! The real binary on a folder of its own, and what an operator and an admin do with it.
//!
//! `Gateway::start()` writes a configuration, runs `assure-gateway run --config FILE` and waits until it is ready.
//! All ports are 0; the addresses come from the log lines `listening`. A test changes the configuration before the
//! start with `Gateway::with`. When a test fails, the end of the log is printed; the process dies with the value.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Request;
use super::eventually::{eventually, found};
use super::wire::Answer;
use super::{EDIT, FIRM, SOON, USER, Upstream, VIEW, program};

/// How long a start may take on a busy machine in a debug build.
const START: Duration = Duration::from_secs(30);
/// Lines of log shown when a test fails.
const LOG_TAIL_LINES: usize = 40;

/// A key as `POST /v1/keys` answered it.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) prefix: String,
}

/// Lines that the process wrote.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn collect(&self, from: impl Read + Send + 'static) {
        let lines = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                lines.0.lock().expect("no holder panics").push(program::text(&line));
            }
        });
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("no holder panics").clone()
    }
}

/// A running gateway.
pub(crate) struct Gateway {
    folder: TempDir,
    pub(crate) upstream: Upstream,
    /// What the binary is run by: `prlimit` or `env` with their words, or nothing.
    under: Vec<String>,
    process: Child,
    /// What this process wrote to standard error.
    log: Lines,
    /// What it wrote to standard output.
    printed: Lines,
    /// What earlier processes on the same folder wrote.
    earlier: Vec<String>,
    addresses: [SocketAddr; 3],
}

/// Where a routed request of a test goes unless the test says otherwise: K9's, K10's and K11's examples, then everything.
fn routes() -> Value {
    json!([
        { "path": "/v1/session/**", "deny": "API keys cannot sign in to the dashboard" },
        { "path": "/v1/users/*/password", "deny": "API keys cannot reset a password" },
        { "path": "/v1/firms/{firm}/**", "upstream": "ledger" },
        { "path": "/v1/reports/**", "firm_query": "firm", "upstream": "ledger" },
        { "path": "/v1/clients/**", "methods": ["GET", "HEAD"], "require": "View clients", "upstream": "ledger" },
        { "path": "/v1/clients/**", "require": "Edit clients", "upstream": "ledger" },
        { "path": "/**", "upstream": "ledger", "name": "everything" },
    ])
}

impl Gateway {
    /// With the configuration that most tests share.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// With the shared configuration, changed by `change`.
    #[track_caller]
    pub(crate) fn with(change: impl FnOnce(&mut Value)) -> Self {
        Self::with_upstream(Upstream::start(), change)
    }

    #[track_caller]
    pub(crate) fn with_upstream(upstream: Upstream, change: impl FnOnce(&mut Value)) -> Self {
        let mut gateway = Self::spawned(upstream, &[], change);
        gateway.become_ready();
        gateway
    }

    /// Run by another program, which replaces itself with it: `&["prlimit", "--nofile=256"]`.
    #[track_caller]
    pub(crate) fn under(words: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let mut gateway = Self::spawned(Upstream::start(), words, change);
        gateway.become_ready();
        gateway
    }

    /// One that may have to wait for its store: of its listeners only ops is there for sure.
    #[track_caller]
    pub(crate) fn waiting(change: impl FnOnce(&mut Value)) -> Self {
        let mut gateway = Self::spawned(Upstream::start(), &[], change);
        gateway.addresses[2] = found(START, "the ops listener's address in the log", || gateway.announced("ops"));
        gateway
    }

    /// One that refuses to start: its exit code and what it said.
    #[track_caller]
    pub(crate) fn refused(change: impl FnOnce(&mut Value)) -> (Option<i32>, String) {
        let mut gateway = Self::spawned(Upstream::start(), &[], change);
        let status = gateway.wait_exit(START);
        // The line is written before the process ends, and read by a thread of ours.
        eventually!(SOON, gateway.log().contains("did not start"), "it says why");
        (status.code(), gateway.log())
    }

    fn spawned(upstream: Upstream, under: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let under: Vec<String> = under.iter().map(|word| (*word).to_owned()).collect();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = json!({
            "edge": { "listen": "127.0.0.1:0", "drain_notice": "300ms" },
            "admin": { "listen": "127.0.0.1:0", "auth": { "local_issuer": true } },
            "ops": { "listen": "127.0.0.1:0" },
            "store": { "embedded": { "path": folder.path().join("store") } },
            "audit": { "spool": { "path": folder.path().join("spool"), "size_max": "64MiB" } },
            "upstreams": { "ledger": { "endpoints": [upstream.url()] } },
            "routes": routes(),
            "log": { "format": "json", "level": "info" },
        });
        change(&mut config);
        write_config(folder.path(), &config);
        let (process, log, printed) = spawn(folder.path(), &under);
        Self { folder, upstream, under, process, log, printed, earlier: Vec::new(), addresses: [SocketAddr::from(([127, 0, 0, 1], 0)); 3] }
    }

    #[track_caller]
    pub(crate) fn become_ready(&mut self) {
        let names = ["edge", "admin", "ops"];
        self.addresses = names.map(|name| found(START, &format!("the {name} listener's address in the log"), || self.announced(name)));
        eventually!(START, self.is_ready(), "readiness");
    }

    /// The address that the log says a listener has.
    fn announced(&mut self, listener: &str) -> Option<SocketAddr> {
        if let Ok(Some(status)) = self.process.try_wait() {
            panic!("the gateway ended while it started, {status}");
        }
        self.written(listener)
    }

    fn written(&self, listener: &str) -> Option<SocketAddr> {
        self.log.all().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
            let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
            let is_meant = fields["message"] == "listening" && fields["listener"] == listener;
            if is_meant { fields["address"].as_str()?.parse().ok() } else { None }
        })
    }

    /// Whether `/readyz` says so.
    pub(crate) fn is_ready(&self) -> bool {
        self.try_ops("/readyz").is_some_and(|answer| answer.status == 200)
    }

    pub(crate) fn edge(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.addresses[1]
    }

    pub(crate) fn ops(&self) -> SocketAddr {
        self.addresses[2]
    }

    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin())
    }

    pub(crate) fn edge_url(&self, target: &str) -> String {
        format!("http://{}{target}", self.edge())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    pub(crate) fn config(&self) -> Value {
        let text = fs::read_to_string(self.config_file()).expect("the configuration is there");
        serde_yaml::from_str(&text).expect("it is the YAML that we wrote")
    }

    /// Writes another configuration; the gateway notices by itself, or at the next start.
    pub(crate) fn rewrite_config(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        change(&mut config);
        write_config(self.folder(), &config);
    }

    /// Runs a subcommand on this gateway's configuration.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = binary(self.folder());
        command.args(words);
        command
    }

    /// A user's token from the local issuer.
    #[track_caller]
    pub(crate) fn token(&self, firm: &str, user: &str, permissions: &[&str]) -> String {
        let mut command = self.command(&["token", "--config"]);
        command.arg(self.config_file()).args(["--firm", firm, "--user", user]);
        for permission in permissions {
            command.args(["--permission", permission]);
        }
        program::output_of(&mut command).trim().to_owned()
    }

    /// The token of an editor of [`FIRM`].
    #[track_caller]
    pub(crate) fn editor(&self) -> String {
        self.token(FIRM, USER, &[VIEW, EDIT])
    }

    /// A live key of [`FIRM`] with no more than its editor's permissions.
    #[track_caller]
    pub(crate) fn key(&self) -> Key {
        self.create_key(&self.editor(), "MCP server")
    }

    /// A live key whose creator holds `permissions` beside those of an editor.
    #[track_caller]
    pub(crate) fn key_with(&self, firm: &str, user: &str, permissions: &[&str]) -> Key {
        let all = [&[VIEW, EDIT], permissions].concat();
        self.create_key(&self.token(firm, user, &all), "MCP server")
    }

    #[track_caller]
    pub(crate) fn create_key(&self, token: &str, name: &str) -> Key {
        let created = self.try_create(token, &json!({ "name": name })).expect(201).json();
        let text = |member: &str| created[member].as_str().unwrap_or_else(|| panic!("{member} is missing in {created}")).to_owned();
        Key { id: text("id"), secret: text("key"), prefix: text("prefix") }
    }

    #[track_caller]
    pub(crate) fn try_create(&self, token: &str, body: &Value) -> Answer {
        self.ask_admin(&Request::json("POST", "/v1/keys", body).bearer(token))
    }

    /// Revokes a key; when this returns, nobody may accept it any more (K7).
    #[track_caller]
    pub(crate) fn revoke(&self, token: &str, key: &Key) -> Value {
        let request = Request::json("POST", &format!("/v1/keys/{}/revoke", key.id), &json!({ "reason": "rotated" }));
        self.ask_admin(&request.bearer(token)).expect(200).json()
    }

    #[track_caller]
    pub(crate) fn ask_admin(&self, request: &Request) -> Answer {
        Request { host: self.admin().to_string(), ..request.clone() }.send_to(self.admin())
    }

    #[track_caller]
    pub(crate) fn admin_get(&self, token: &str, target: &str) -> Answer {
        self.ask_admin(&Request::get(target).bearer(token))
    }

    /// A request with a key on a connection of its own.
    #[track_caller]
    pub(crate) fn get(&self, key: &Key, target: &str) -> Answer {
        Request::get(target).bearer(&key.secret).send_to(self.edge())
    }

    /// The firm's whole activity log, oldest first, as NDJSON gives it.
    #[track_caller]
    pub(crate) fn activity(&self, token: &str) -> Vec<Value> {
        let answer = self.ask_admin(&Request::get("/v1/activity").bearer(token).with("Accept", "application/x-ndjson")).expect(200);
        let mut records: Vec<Value> =
            answer.text().lines().map(|line| serde_json::from_str(line).expect("each line is a record")).collect();
        records.sort_by(|one, other| one["time"].as_str().cmp(&other["time"].as_str()));
        records
    }

    /// The records of uses, once there are at least `count`.
    #[track_caller]
    pub(crate) fn uses(&self, token: &str, count: usize) -> Vec<Value> {
        found(SOON, &format!("{count} records of uses"), || {
            let uses: Vec<Value> = self.activity(token).into_iter().filter(|record| record["action"] == "key.use").collect();
            (uses.len() >= count).then_some(uses)
        })
    }

    #[track_caller]
    pub(crate) fn ops_get(&self, target: &str) -> Answer {
        self.try_ops(target).unwrap_or_else(|| panic!("no answer to {target} on ops"))
    }

    pub(crate) fn try_ops(&self, target: &str) -> Option<Answer> {
        super::Client::try_connect(self.ops()).ok()?.exchange(&Request::get(target)).ok()
    }

    /// A metric's value: of the first series whose text begins with `series`, 0 if there is none.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.ops_get("/metrics").expect(200).text();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with([' ', '{', ','])));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// What `/readyz` says of one thing: whether it is well, and the sentence.
    #[track_caller]
    pub(crate) fn readiness(&self, check: &str) -> (bool, String) {
        let page = self.ops_get("/readyz").json();
        let found = page["checks"].as_array().and_then(|checks| checks.iter().find(|known| known["name"] == check).cloned());
        let found = found.unwrap_or_else(|| panic!("{check} is missing in {page}"));
        (found["ok"] == true, found["detail"].as_str().expect("a sentence").to_owned())
    }

    /// Everything that this and earlier processes on the folder wrote to standard error and output.
    pub(crate) fn log(&self) -> String {
        [self.earlier.clone(), self.log.all(), self.printed.all()].concat().join("\n")
    }

    /// Whose memory and descriptors `/proc` tells of.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Asks it to end in order.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    #[track_caller]
    pub(crate) fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        found(deadline, "the process's end", || self.process.try_wait().expect("it is our child"))
    }

    /// Ends it without warning; nothing of it gets to run any more.
    pub(crate) fn kill9(&mut self) {
        self.process.kill().expect("the process is ours");
        self.process.wait().expect("it is our child");
    }

    /// Starts it again on the same folder, on new ports.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        if self.is_running() {
            self.terminate();
            self.wait_exit(SOON);
        }
        self.earlier.extend([self.log.all(), self.printed.all()].concat());
        (self.process, self.log, self.printed) = spawn(self.folder.path(), &self.under);
        self.become_ready();
    }

    /// Starts it again after [`Gateway::kill9`] without waiting; see [`Gateway::has_come_up`].
    pub(crate) fn spawn_again(&mut self) {
        self.earlier.extend([self.log.all(), self.printed.all()].concat());
        (self.process, self.log, self.printed) = spawn(self.folder.path(), &self.under);
    }

    /// Whether the process that was started last listens; learns its addresses.
    pub(crate) fn has_come_up(&mut self) -> bool {
        let addresses = ["edge", "admin", "ops"].map(|name| self.written(name));
        let [Some(edge), Some(admin), Some(ops)] = addresses else { return false };
        self.addresses = [edge, admin, ops];
        true
    }

    /// Shows that the gateway serves a good client at once, whatever happened before.
    #[track_caller]
    pub(crate) fn assert_alive(&mut self, key: &Key) {
        assert!(self.is_running(), "the process is alive");
        let began = Instant::now();
        self.get(key, "/live").expect(200);
        assert!(began.elapsed() < Duration::from_secs(2), "a good client is served at once");
    }

    /// Files of the store and the spool, with all that they hold.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.folder().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("our folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = fs::read(&path).expect("our file");
                    files.push((path, bytes));
                }
            }
        }
        files
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already, as the test wanted.
        self.process.kill().ok();
        self.process.wait().ok();
        if thread::panicking() {
            let lines = self.log.all();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            eprintln!("--- the gateway's log ends with ---\n{}\n---", tail.join("\n"));
            eprintln!("the upstream saw {:?}, found fault with {:?}", self.upstream.targets().len(), self.upstream.violations());
        }
    }
}

/// The binary, in a folder where it finds nothing that a test has not put there.
pub(crate) fn binary(folder: &Path) -> Command {
    binary_under(folder, &[])
}

fn binary_under(folder: &Path, under: &[String]) -> Command {
    let mut words = under.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_assure-gateway")]);
    let mut command = Command::new(words.next().expect("the binary at least"));
    command.args(words);
    command.current_dir(folder).stdin(Stdio::null());
    for name in ["ASSURE_GATEWAY_CONFIG", "ASSURE_ADMIN_TOKEN", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "1");
    command
}

fn write_config(folder: &Path, config: &Value) {
    let text = serde_yaml::to_string(config).expect("plain data");
    // Written beside and renamed, as editors and deployments do, so that nobody reads half of it.
    fs::write(folder.join("gateway.yaml.new"), text).expect("our folder");
    fs::rename(folder.join("gateway.yaml.new"), folder.join("gateway.yaml")).expect("our folder");
}

fn spawn(folder: &Path, under: &[String]) -> (Child, Lines, Lines) {
    let mut command = binary_under(folder, under);
    command.args(["run", "--config", "gateway.yaml"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("the binary starts");
    let (log, printed) = (Lines::default(), Lines::default());
    log.collect(process.stderr.take().expect("piped"));
    printed.collect(process.stdout.take().expect("piped"));
    (process, log, printed)
}

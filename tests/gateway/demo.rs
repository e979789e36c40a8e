//! The first minutes of a newcomer: one command without a configuration, a line to paste, and the whole life of a key.
//!
//! The demo's ports are fixed, as its documentation says; where something else holds one of them, only the refusal
//! to start can be tested, and is.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::eventually::found;
use crate::support::gateway::binary;
use crate::support::{EDIT, Request, VIEW, program};

const PORTS: [u16; 3] = [8080, 8081, 9090];
const ADMIN: &str = "http://127.0.0.1:8081";

/// Whoever holds it has the ports.
static TURN: Mutex<()> = Mutex::new(());

/// A running demo; ends with the value.
struct Demo {
    process: Child,
    printed: Arc<Mutex<String>>,
}

impl Demo {
    fn start(folder: &Path) -> Self {
        let mut process = binary(folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let printed = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(process.stdout.take().expect("piped")), Box::new(process.stderr.take().expect("piped"))];
        for mut stream in streams {
            let printed = Arc::clone(&printed);
            thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut piece) {
                    printed.lock().expect("no holder panics").push_str(&program::text(&piece[..count]));
                }
            });
        }
        Self { process, printed }
    }

    fn printed(&self) -> String {
        self.printed.lock().expect("no holder panics").clone()
    }

    /// The line to paste.
    #[track_caller]
    fn curl_line(&mut self) -> String {
        found(Duration::from_secs(30), "a curl line", || {
            assert!(matches!(self.process.try_wait(), Ok(None)), "the demo ended: {}", self.printed());
            let printed = self.printed();
            // Only whole lines: the last may still be growing.
            let (whole, _) = printed.rsplit_once('\n')?;
            whole.lines().map(str::trim).find(|line| line.starts_with("curl ")).map(str::to_owned)
        })
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Pastes a line into a shell; answers status and body.
#[track_caller]
fn paste(line: &str) -> (u16, String) {
    let mut shell = Command::new("sh");
    // The newcomer's own line, unchanged; the status is asked for beside it.
    shell.arg("-c").arg(format!("{line} --silent --show-error --write-out '\\n%{{http_code}}'")).env("NO_PROXY", "*").env("no_proxy", "*");
    let output = program::output_of(&mut shell);
    let (body, status) = output.trim_end().rsplit_once('\n').expect("a status after the body");
    (status.parse().expect("a status"), body.to_owned())
}

/// The first value of a member of this name, however deep.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(members) => members.get(name).or_else(|| members.values().find_map(|inner| member(inner, name))),
        Value::Array(items) => items.iter().find_map(|inner| member(inner, name)),
        _ => None,
    }
}

#[test]
fn a_newcomer_pastes_the_printed_line_sees_the_firm_revokes_and_sees_the_refusal_in_the_log() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let addresses = PORTS.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    if is_taken() {
        return refuses_to_start_where_a_port_is_taken();
    }
    let folder = tempfile::tempdir().expect("an empty folder");
    let mut demo = Demo::start(folder.path());
    let line = demo.curl_line();
    let (status, body) = paste(&line);
    assert_eq!(status, 200, "{body}");
    let told: Value = serde_json::from_str(&body).expect("the demo upstream answers in JSON");
    let firm = member(&told, "firm_id").and_then(Value::as_str).expect("the firm arrives").to_owned();
    assert!(member(&told, "permissions").is_some_and(|list| list.as_array().is_some_and(|list| !list.is_empty())), "{told}");
    for port in PORTS {
        assert!(demo.printed().contains(&port.to_string()), "the address with port {port} is printed");
    }
    // The link signs in once.
    let printed = demo.printed();
    let code = printed
        .split_once(&format!("{ADMIN}/#code="))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .expect("the sign-in link is printed");
    let sign_in = Request { host: "127.0.0.1:8081".into(), ..Request::json("POST", "/v1/session", &serde_json::json!({ "code": code })) };
    let signed_in = sign_in.send_to(addresses[1]).expect(200).json();
    assert_eq!((signed_in["firm"].as_str(), signed_in["may"]["edit"].as_bool()), (Some("demo-firm"), Some(true)));
    sign_in.send_to(addresses[1]).expect_problem(401, "unauthorized");

    let command = |words: &[&str]| {
        let mut command = binary(folder.path());
        command.args(words).args(["--admin", ADMIN]);
        command
    };
    let mut token = binary(folder.path());
    token.args(["token", "--firm", &firm, "--user", "newcomer", "--permission", VIEW, "--permission", EDIT]);
    let token = program::output_of(&mut token).trim().to_owned();
    let list = program::output_of(command(&["keys", "list", "--json"]).env("ASSURE_ADMIN_TOKEN", &token));
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let id = member(&list, "id").and_then(Value::as_str).expect("the demo key is listed").to_owned();

    program::output_of(command(&["keys", "revoke", &id, "--reason", "tour", "--yes"]).env("ASSURE_ADMIN_TOKEN", &token));
    let (status, body) = paste(&line);
    assert_eq!(status, 401, "{body}");
    let log = found(Duration::from_secs(10), "the refused use in the activity log", || {
        let log = program::output_of(command(&["activity"]).env("ASSURE_ADMIN_TOKEN", &token));
        log.contains("invalid_key").then_some(log)
    });
    for action in ["key.create", "key.use", "key.revoke"] {
        assert!(log.contains(action), "{action} is missing in\n{log}");
    }
    let table = program::output_of(command(&["keys", "list"]).env("ASSURE_ADMIN_TOKEN", &token));
    assert!(!table.contains('\u{1b}'), "no colours into a pipe");

    // A second start finds the same store and does not print the key again.
    let secret = line.split(['"', '\'', ' ']).find(|word| word.starts_with("assure_")).expect("the key is in the line").to_owned();
    drop(demo);
    let again = Demo::start(folder.path());
    found(Duration::from_secs(30), "the second start", || (Request::get("/readyz").send_if_up(addresses[2])? == 200).then_some(()));
    assert!(!again.printed().contains(&secret), "the key is shown once");
}

/// Whether something else holds one of the ports.
fn is_taken() -> bool {
    PORTS.iter().any(|port| TcpListener::bind(("127.0.0.1", *port)).is_err())
}

#[test]
fn the_five_minutes_of_the_readme_go_as_it_says() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if is_taken() {
        return refuses_to_start_where_a_port_is_taken();
    }
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README");
    let tour = readme.split_once("## Five minutes").and_then(|(_, rest)| rest.split("```").nth(1)).expect("the tour");
    let tour = tour.strip_prefix("sh\n").expect("a block for the shell");
    let folder = tempfile::tempdir().expect("an empty folder");
    let mut demo = Demo::start(folder.path());
    demo.curl_line();
    // What a person does in between: has the binary elsewhere, and copies the key.
    let (alias, create, copy) = ("alias gw=target/release/assure-gateway", "gw keys create \"MCP server\"", "export KEY=assure_…");
    assert!([alias, create, copy].iter().all(|line| tour.contains(line)), "{tour}");
    let script = tour
        .replace(alias, &format!("gw() {{ {} \"$@\"; }}", env!("CARGO_BIN_EXE_assure-gateway")))
        .replace(create, &format!("{create} > key"))
        .replace(copy, "export KEY=$(cat key)");
    let script = format!(
        "set -eu\ncurl() {{ command curl --silent --output body --write-out '%{{http_code}} ' \"$@\" >> statuses; cat body >> bodies; }}\n{script}"
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).current_dir(folder.path()).env("NO_PROXY", "*").env("no_proxy", "*");
    program::output_of(&mut shell);
    let promised: Vec<&str> =
        tour.lines().filter(|line| line.starts_with("curl ")).filter_map(|line| line.split("# ").nth(1)?.get(..3)).collect();
    let statuses = fs::read_to_string(folder.path().join("statuses")).expect("curl was run");
    assert_eq!((statuses.split_whitespace().collect::<Vec<_>>(), promised.len()), (promised, 4));
    let bodies = fs::read_to_string(folder.path().join("bodies")).expect("curl was run");
    assert!(bodies.contains("demo-firm") && bodies.contains("View clients"), "firm and permissions arrive: {bodies}");
    let setup = script.split_once(create).expect("the key is created").0;
    found(Duration::from_secs(10), "all of it in the activity log", || {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("{setup}gw activity")]).current_dir(folder.path());
        let log = program::output_of(&mut shell);
        let words = ["key.create", "key.use", "route_denied", "wrong_firm", "key.revoke", "tour", "invalid_key"];
        words.iter().all(|word| log.contains(word)).then_some(())
    });
}

/// With a port in use the demo says which and ends.
fn refuses_to_start_where_a_port_is_taken() {
    let folder = tempfile::tempdir().expect("an empty folder");
    let mut demo = Demo::start(folder.path());
    let status = found(Duration::from_secs(30), "the demo's end", || demo.process.try_wait().expect("it is our child"));
    assert!(!status.success());
    found(Duration::from_secs(5), "which port is taken", || {
        PORTS.iter().any(|port| demo.printed().contains(&port.to_string())).then_some(())
    });
}

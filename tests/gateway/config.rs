//! O01: a configuration is checked as a whole, with messages that an operator can act on, and swapped in as a whole.
//!
//! Both shipped files are valid; every mistake of a bad one is named at once; a running gateway takes a good file
//! without losing a connection and keeps what it has when the file is bad.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::eventually::eventually;
use crate::support::gateway::binary;
use crate::support::{Gateway, program};

/// How long the gateway may take to notice a changed file by itself.
const NOTICED: Duration = Duration::from_secs(15);

fn check(folder: &Path, file: &str) -> Output {
    program::run(binary(folder).args(["check", "--config", file]))
}

fn said(output: &Output) -> String {
    program::text(&output.stdout) + &program::text(&output.stderr)
}

#[test]
fn both_shipped_configurations_are_valid() {
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for file in ["config/gateway.yaml", "config/assure-pro.yaml"] {
        let output = check(&repository, file);
        assert_eq!(output.status.code(), Some(0), "{file}: {}", said(&output));
    }
}

#[test]
fn the_shipped_example_denies_sign_in_and_password_routes_and_ties_firms_to_keys() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = assure_gateway::config::load(&repository.join("config/assure-pro.yaml")).expect("it is valid");
    let routes = config.routes.clone();
    let gateway = Gateway::with(|config| {
        let ledger = config["upstreams"]["ledger"].clone();
        config["upstreams"] = json!(
            routes
                .iter()
                .filter_map(|route| route.upstream.clone())
                .map(|name| (name, ledger.clone()))
                .collect::<std::collections::BTreeMap<_, _>>()
        );
        config["routes"] = serde_json::to_value(&routes).expect("plain data");
        remove_nulls(&mut config["routes"]);
    });
    let key = gateway.key();
    let ask = |method: &str, target: &str| crate::support::Request::new(method, target).bearer(&key.secret).send_to(gateway.edge());
    assert!(routes.iter().any(|route| route.deny.is_some()) && routes.iter().any(|route| route.path.contains("{firm}")));
    for route in routes.iter().filter(|route| route.deny.is_some() && route.host.is_none()) {
        let target = route.path.replace("/**", "/x").replace('*', "x");
        let method = route.methods.as_ref().and_then(|methods| methods.first()).map_or("POST", String::as_str);
        ask(method, &target).expect_problem(403, "route_denied");
    }
    for route in routes.iter().filter(|route| route.path.contains("{firm}") && route.deny.is_none() && route.host.is_none()) {
        let target = route.path.replace("{firm}", "firm-2").replace("/**", "/x").replace('*', "x");
        let method = route.methods.as_ref().and_then(|methods| methods.first()).map_or("GET", String::as_str);
        ask(method, &target).expect_problem(403, "wrong_firm");
    }
    assert!(gateway.upstream.targets().is_empty());
}

/// Serialised options are null where the operator would have written nothing.
fn remove_nulls(value: &mut serde_json::Value) {
    for route in value.as_array_mut().into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
        route.retain(|_, member| !member.is_null());
    }
}

#[test]
fn every_mistake_is_named_at_once_with_file_line_and_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "limits:\n  requests_per_minute: many\n  request_body_max: 10 parsecs\nedge:\n  listne: 127.0.0.1:1\nroutes:\n  - { path: /a/**, upstream: nowhere }\n";
    std::fs::write(folder.path().join("bad.yaml"), text).expect("our folder");
    let output = check(folder.path(), "bad.yaml");
    assert_eq!(output.status.code(), Some(2));
    let said = said(&output);
    for (line, word) in [(2, "many"), (3, "10 parsecs"), (5, "listne"), (7, "nowhere")] {
        let is_named =
            said.lines().any(|message| message.contains("bad.yaml") && message.contains(&format!(":{line}")) || message.contains(word));
        assert!(is_named && said.contains(word) && said.contains(&format!("bad.yaml:{line}")), "line {line}, {word:?}: {said}");
    }
}

#[test]
fn files_that_cannot_mean_anything_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = "upstreams: { a: { endpoints: [\"http://127.0.0.1:1\"] } }\n";
    let rows = [
        ("no YAML", "a: [".to_owned()),
        ("a list", "- a\n".into()),
        ("an unknown field", "colour: red\n".into()),
        ("a route to nowhere and no denial", format!("{base}routes: [ {{ path: /a }} ]\n")),
        ("a route with both", format!("{base}routes: [ {{ path: /a, upstream: a, deny: x }} ]\n")),
        ("a path without a slash", format!("{base}routes: [ {{ path: a, upstream: a }} ]\n")),
        ("** in the middle", format!("{base}routes: [ {{ path: /a/**/b, upstream: a }} ]\n")),
        ("an upstream without endpoints", "upstreams: { a: { endpoints: [] } }\n".into()),
        ("an endpoint with a path", "upstreams: { a: { endpoints: [\"http://h/x\"] } }\n".into()),
        ("an endpoint of another scheme", "upstreams: { a: { endpoints: [\"ftp://h\"] } }\n".into()),
        ("an identity header that clients could send", "assertion: { header: X-Identity }\n".into()),
        ("a key prefix with an underscore", "keys: { prefix: my_keys }\n".into()),
        ("a missing variable", "assertion: { issuer: \"${SURELY_NOT_SET_ANYWHERE}\" }\n".into()),
        ("a missing file", "edge: { tls: { certificate: none.pem, private_key: none.pem } }\n".into()),
        ("an address that is none", "edge: { listen: somewhere }\n".into()),
    ];
    for (what, text) in rows {
        std::fs::write(folder.path().join("bad.yaml"), &text).expect("our folder");
        let output = check(folder.path(), "bad.yaml");
        assert_eq!(output.status.code(), Some(2), "{what}: {text}{}", said(&output));
        let run = program::run(binary(folder.path()).args(["run", "--config", "bad.yaml"]));
        assert!(!run.status.success() && said(&run).contains("bad.yaml"), "{what}: `run` refuses it too: {}", said(&run));
    }
    assert_eq!(check(folder.path(), "missing.yaml").status.code(), Some(2));
}

#[test]
fn variables_and_files_are_replaced_inside_values_and_secrets_are_not_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("issuer.txt"), "https://from-file.example: \"x\" #\n").expect("our folder");
    let text = "assertion: { issuer: \"${file:issuer.txt}\" }\nkeys: { prefix: \"${TEST_PREFIX:-fallback}\" }\nlimits: { requests_per_minute: \"${TEST_LIMIT}\" }\n";
    std::fs::write(folder.path().join("good.yaml"), text).expect("our folder");
    let output = program::run(binary(folder.path()).env("TEST_LIMIT", "77").args(["check", "--config", "good.yaml"]));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let output = program::run(binary(folder.path()).env("TEST_LIMIT", "a-secret-word").args(["check", "--config", "good.yaml"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(!said(&output).contains("a-secret-word"), "what a variable holds may be a secret: {}", said(&output));
}

#[test]
fn a_changed_file_is_swapped_in_and_connections_live_on() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut client = crate::support::Client::connect(gateway.edge());
    let request = crate::support::Request::get("/ok").bearer(&key.secret);
    client.exchange(&request).expect("an answer").expect(200);
    gateway.rewrite_config(|config| config["routes"] = json!([{ "path": "/**", "deny": "closed for today" }]));
    eventually!(NOTICED, gateway.get(&key, "/ok").status == 403, "the new routes hold without a signal");
    client.exchange(&request).expect("the same connection").expect_problem(403, "route_denied");
    assert!(gateway.metric("assure_gateway_config_reloads_total{result=\"success\"}") >= 1.0);
    assert!(gateway.metric("assure_gateway_config_last_reload_timestamp_seconds") > 1_700_000_000.0);
}

#[test]
fn a_signal_reloads_and_a_bad_file_changes_nothing_and_says_why() {
    let mut gateway = Gateway::start();
    let key = gateway.key();
    let failures = |gateway: &Gateway| gateway.metric("assure_gateway_config_reloads_total{result=\"failure\"}");
    gateway.rewrite_config(|config| config["routes"] = json!([{ "path": "/**", "upstream": "misspelt-upstream" }]));
    gateway.signal(Signal::HUP);
    eventually!(NOTICED, failures(&gateway) >= 1.0, "the failure is counted");
    gateway.get(&key, "/ok").expect(200);
    eventually!(NOTICED, gateway.log().contains("misspelt-upstream"), "the log says why");
    gateway.rewrite_config(|config| config["routes"] = json!([{ "path": "/open", "upstream": "ledger" }]));
    gateway.signal(Signal::HUP);
    eventually!(NOTICED, gateway.get(&key, "/ok").status == 404);
    gateway.get(&key, "/open").expect(200);
    assert!(gateway.is_running());
}

#[test]
fn the_schema_describes_the_shipped_configurations_sections() {
    let folder = tempfile::tempdir().expect("a folder");
    let schema: serde_json::Value = serde_json::from_str(&program::output_of(binary(folder.path()).arg("schema"))).expect("JSON");
    for section in ["edge", "admin", "ops", "store", "keys", "limits", "assertion", "audit", "upstreams", "routes", "log"] {
        assert!(schema["properties"][section].is_object(), "{section} is missing");
    }
}

#[test]
fn help_version_openapi_and_completions_answer_without_a_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let words: [&[&str]; 5] = [&["--help"], &["--version"], &["openapi"], &["completions", "bash"], &["keys", "--help"]];
    for words in words {
        assert!(!program::output_of(binary(folder.path()).args(words)).trim().is_empty(), "{words:?}");
    }
    assert!(!program::run(binary(folder.path()).arg("fly")).status.success());
    assert!(std::fs::read_dir(folder.path()).expect("our folder").next().is_none(), "nothing is left behind");
}

#[test]
fn check_refuses_files_that_run_would_refuse() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key.pem");
    std::fs::write(&key, "no key").expect("written");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    let file = folder.path().join("gateway.yaml");
    let text = format!(
        "assertion: {{ signing_keys: [{{ file: {0} }}] }}\nupstreams: {{ a: {{ endpoints: [https://localhost], ca: {0} }} }}\n",
        key.display()
    );
    std::fs::write(&file, text).expect("written");
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_assure-gateway")).arg("check").arg("--config").arg(&file).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("assertion.signing_keys[0].file") && said.contains("upstreams.a.ca"), "{said}");
}

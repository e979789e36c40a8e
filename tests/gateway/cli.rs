//! The command line's half of the contract: the same calls as the API, tables for people, JSON for programs.
//!
//! What goes to a terminal is seen through one that `script` makes: its width, its colours, and NO_COLOR.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{FIRM, Gateway, SOON, USER, eventually::found, program};

/// A subcommand that talks to the running gateway as an editor.
fn as_editor(gateway: &Gateway, token: &str, words: &[&str]) -> Command {
    let mut command = gateway.command(words);
    command.args(["--admin", &gateway.admin_url()]).env("ASSURE_ADMIN_TOKEN", token);
    command
}

#[test]
fn keys_are_created_listed_shown_and_revoked_from_the_command_line() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let run = |words: &[&str]| program::output_of(&mut as_editor(&gateway, &editor, words));
    let json = |words: &[&str]| serde_json::from_str::<Value>(&run(words)).expect("JSON for programs");

    let created = json(&["keys", "create", "MCP server", "--json"]);
    let (id, secret) = (created["id"].as_str().expect("an id"), created["key"].as_str().expect("the key"));
    gateway.get(&key(id, secret), "/ok").expect(200);
    for table in [run(&["keys", "list"]), run(&["keys", "show", id])] {
        assert!(table.contains("MCP server") && table.contains(&secret[..15]) && !table.contains(secret), "{table}");
    }
    assert!(json(&["keys", "list", "--json"]).to_string().contains(id));
    run(&["keys", "revoke", id, "--reason", "rotated", "--yes"]);
    gateway.get(&key(id, secret), "/ok").expect(401);
    let log = found(SOON, "the refused use", || Some(run(&["activity"])).filter(|log| log.contains("invalid_key")));
    assert!(["key.create", "key.use", "key.revoke"].iter().all(|action| log.contains(action)), "{log}");
    assert!(!run(&["activity", "--action", "key.create"]).contains("key.use"));
    assert!(!gateway.log().contains(secret));
}

fn key(id: &str, secret: &str) -> crate::support::Key {
    crate::support::Key { id: id.into(), secret: secret.into(), prefix: secret[..15].into() }
}

#[test]
fn a_key_on_standard_input_is_told_by_its_digest() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "leaked");
    let mut process =
        as_editor(&gateway, &editor, &["keys", "whoami"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    writeln!(process.stdin.take().expect("piped"), "{}", key.secret).expect("it reads");
    let output = process.wait_with_output().expect("it ends");
    let said = program::text(&output.stdout);
    assert!(output.status.success() && said.contains("leaked") && !said.contains(&key.secret), "{said}");
}

#[test]
fn a_failure_is_said_on_standard_error_with_a_failing_exit_code() {
    let mut gateway = Gateway::start();
    let editor = gateway.editor();
    let fails = |gateway: &Gateway, token: &str, words: &[&str]| {
        let output = program::run(&mut as_editor(gateway, token, words));
        assert!(!output.status.success() && output.stdout.is_empty() && !output.stderr.is_empty(), "{words:?}");
        program::text(&output.stderr)
    };
    fails(&gateway, &editor, &["keys", "show", "01890a5d-ac96-774b-bcce-b302099a8057"]);
    fails(&gateway, "nonsense", &["keys", "list"]);
    fails(&gateway, &gateway.token(FIRM, USER, &[]), &["keys", "create", "n"]);
    // Without --yes and without a person to ask, nothing is revoked.
    let key = gateway.create_key(&editor, "kept");
    let said = fails(&gateway, &editor, &["keys", "revoke", &key.id]);
    assert!(said.contains("It was never used.") && said.contains("Revoke “kept”? Any script using this key will stop working."), "{said}");
    gateway.get(&key, "/ok").expect(200);
    gateway.kill9();
    let said = fails(&gateway, &editor, &["keys", "list"]);
    assert!(said.contains(&gateway.admin().port().to_string()), "it names the address that it tried: {said}");
}

#[test]
fn the_store_commands_are_told_by_help_and_completions() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |words: &[&str]| program::output_of(crate::support::gateway::binary(folder.path()).args(words));
    assert!(run(&["--help"]).contains("store"));
    let help = run(&["store", "--help"]);
    assert!(help.contains("export") && help.contains("import"), "{help}");
    assert!(run(&["store", "import", "--help"]).contains("--input <FILE>"));
    for shell in ["bash", "zsh", "fish"] {
        let completions = run(&["completions", shell]);
        assert!(completions.contains("export") && completions.contains("import"), "{shell}");
    }
}

#[test]
fn a_store_that_is_not_there_is_not_exported_and_not_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = program::run(crate::support::gateway::binary(folder.path()).args(["store", "export"]));
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true));
    assert!(program::text(&output.stderr).contains("there is no store in data") && !folder.path().join("data").exists());
}

/// What a command writes on a terminal of so many columns.
fn on_a_terminal(gateway: &Gateway, token: &str, columns: u32, command: &str) -> String {
    on_a_terminal_after(&format!("stty cols {columns} rows 50"), gateway, token, command)
}

/// The same after words to the shell.
fn on_a_terminal_after(words: &str, gateway: &Gateway, token: &str, command: &str) -> String {
    let line = format!("{words}; exec {} {command} --admin {}", env!("CARGO_BIN_EXE_assure-gateway"), gateway.admin_url());
    // `script` gives it a terminal, as a person has one.
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    program::output_of(script.env("ASSURE_ADMIN_TOKEN", token).env("TERM", "xterm").env_remove("NO_COLOR"))
}

/// What is left without colours.
fn bare(text: &str) -> String {
    let mut pieces = text.split('\u{1b}');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |bare, piece| bare + piece.split_once('m').expect("a colour").1)
}

#[test]
fn tables_fit_the_terminal_and_colours_are_only_on_one() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "A key with quite a long name");
    gateway.get(&key, "/v1/session/new").expect(403);
    gateway.uses(&editor, 1);
    for columns in [60, 80, 120] {
        for command in ["keys list", "activity"] {
            let table = on_a_terminal(&gateway, &editor, columns, command);
            assert!(bare(&table).lines().all(|line| line.trim_end().chars().count() <= columns as usize), "{columns}: {table}");
            assert!(table.contains("long name") || table.contains("quite"), "{table}");
        }
    }
    let colour = |command: &str, text: &str| {
        let table = on_a_terminal(&gateway, &editor, 200, command);
        let before = table.split_once(text).unwrap_or_else(|| panic!("{text} is in {table}")).0;
        before.rsplit_once('\u{1b}').map(|(_, colour)| colour.to_owned())
    };
    assert_eq!(colour("keys list", "active").as_deref(), Some("[32m"));
    assert_eq!(colour("activity", "allowed").as_deref(), Some("[32m"));
    assert_eq!(colour("activity", "route_denied").as_deref(), Some("[31m"));
    gateway.revoke(&editor, &key);
    assert_eq!(colour("keys list --status all", "revoked").as_deref(), Some("[2m"));
    let table = on_a_terminal_after("export NO_COLOR=1", &gateway, &editor, "keys list --status all");
    assert!(table.contains("revoked") && !table.contains('\u{1b}'), "{table}");
    let run = |words: &[&str]| program::output_of(as_editor(&gateway, &editor, words).env_remove("NO_COLOR"));
    assert!(run(&["keys", "list", "--status", "all"]).contains(&key.id), "into a pipe goes all of it");
    let followed = |terminal: bool| {
        let command = format!(
            "timeout 3 {} activity --since 1h --follow --admin {}; true",
            env!("CARGO_BIN_EXE_assure-gateway"),
            gateway.admin_url()
        );
        let mut shell = Command::new(if terminal { "script" } else { "sh" });
        if terminal {
            shell.args(["--quiet", "--command", &command, "/dev/null"])
        } else {
            shell.args(["-c", &command])
        };
        program::output_of(shell.stdin(Stdio::null()).env("ASSURE_ADMIN_TOKEN", &editor).env("TERM", "xterm").env_remove("NO_COLOR"))
    };
    let (seen, piped) = (followed(true), followed(false));
    assert!(seen.contains("\u{1b}[31m") && seen.contains("route_denied"), "a refusal stands out: {seen}");
    assert!(piped.contains("route_denied") && !piped.contains('\u{1b}'), "{piped}");
}

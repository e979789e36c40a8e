//! Programs that people use against the gateway: curl, Python, Node. `tests/run` installs what they need.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a program printed, after it ended well.
///
/// # Panics
/// When it cannot be started or fails; the message carries what it said.
#[track_caller]
pub(crate) fn output_of(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs a program to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A script of `tests/clients`, under the Python that `tests/run` prepared.
#[track_caller]
pub(crate) fn python(script: &str) -> Command {
    let interpreter = prepared("ASSURE_TEST_PYTHON", "target/clients/venv/bin/python");
    with_script(interpreter, script)
}

/// The same under Node.
#[track_caller]
pub(crate) fn node(script: &str) -> Command {
    // Modules are found beside the script, so `tests/run` copies it into the folder into which npm installs.
    with_script("node", prepared("ASSURE_TEST_NODE_FOLDER", "target/clients/node").join(script))
}

/// A file of an npm package that `tests/run` installed.
#[track_caller]
pub(crate) fn node_module(path: &str) -> PathBuf {
    prepared("ASSURE_TEST_NODE_FOLDER", "target/clients/node").join("node_modules").join(path)
}

fn with_script(interpreter: impl AsRef<OsStr>, script: impl AsRef<Path>) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(clients().join(script));
    // Proxies of the machine must not stand between a client and 127.0.0.1.
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

#[track_caller]
fn prepared(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(default), PathBuf::from);
    assert!(path.exists(), "{} is missing; run tests/run, which installs the clients that tests need", path.display());
    path
}

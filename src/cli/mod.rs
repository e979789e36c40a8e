//! The command line: what can be typed, and the commands that talk to a running gateway.
//!
//! Tables and sentences for people, `--json` for programs. What people asked for goes to standard output, remarks
//! and errors to standard error. Exit codes: 0 done, 1 refused or failed, 2 not understood. `run` and `check` are
//! carried out by the program itself, see `main.rs`.

mod activity;
mod client;
mod keys;
mod span;
mod store;
mod terminal;
mod token;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::fetch::Url;
use crate::{admin, config};

pub use activity::ActivityArguments;
pub use client::Server;
pub use keys::KeysCommand;
pub use store::{StoreCommand, store};
pub use token::{TokenArguments, token};

/// API-key gateway of Assure Pro. Without a command and without a configuration it runs a demo.
#[derive(Debug, Parser)]
#[command(name = "assure-gateway", version, about, max_term_width = 100)]
pub struct Arguments {
    /// What to do; `run` by default.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    Run(ConfigArgument),
    /// Read the configuration and print every mistake in it.
    Check(ConfigArgument),
    /// Sign a user token with the local issuer's key, for the demo and for tests.
    Token(TokenArguments),
    /// Move everything from one store to another; no gateway may run on either.
    #[command(subcommand)]
    Store(StoreCommand),
    /// What a client does.
    #[command(flatten)]
    Client(ClientCommand),
}

/// A command that needs no configuration.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Create, list, show and revoke API keys.
    Keys {
        /// Which gateway.
        #[command(flatten)]
        server: Server,
        /// What to do.
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Show the firm's activity log.
    Activity {
        /// Which gateway.
        #[command(flatten)]
        server: Server,
        /// Which part of it.
        #[command(flatten)]
        arguments: ActivityArguments,
    },
    /// Ask a gateway's ops listener whether it is alive; for containers, which have no other tool.
    Healthcheck {
        /// The ops listener.
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090", value_parser = Url::parse)]
        ops: Url,
    },
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Print the OpenAPI document of the admin API.
    Openapi,
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Which configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgument {
    /// The configuration; by default $ASSURE_GATEWAY_CONFIG, then config/gateway.yaml, else the demo.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Why a command was not carried out: one sentence for the person who typed it.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure with its sentence.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // A reader such as `head` that has seen enough is no failure; see `finish`.
        if error.kind() == io::ErrorKind::BrokenPipe { Self(String::new()) } else { Self(format!("cannot read or write: {error}")) }
    }
}

/// Carries out a command that talks to a running gateway or prints a document.
///
/// # Errors
/// A sentence for the person who typed it.
pub async fn execute_client(command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::Keys { server, command } => keys::execute(&server, command).await,
        ClientCommand::Activity { server, arguments } => activity::execute(&server, &arguments).await,
        ClientCommand::Healthcheck { ops } => client::healthcheck(&ops).await,
        ClientCommand::Schema => {
            let text = serde_json::to_string_pretty(&config::schema()).expect("a schema is plain data");
            terminal::print(&format!("{text}\n"))
        }
        ClientCommand::Openapi => terminal::print(&admin::document()),
        ClientCommand::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "assure-gateway", &mut text);
            terminal::print(&String::from_utf8_lossy(&text))
        }
    }
}

/// Says what went wrong and gives the exit code: 0 done, 1 refused or failed.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(sentence)) if sentence.is_empty() => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::remark(&format!("error: {}", terminal::plain(&failure.0)));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_contracts_commands_are_understood() {
        for line in [
            "assure-gateway",
            "assure-gateway run",
            "assure-gateway run --config gateway.yaml",
            "assure-gateway check --config gateway.yaml",
            "assure-gateway keys create NAME",
            "assure-gateway keys list --status active --creator u1 --json",
            "assure-gateway keys show 0199d3a0-0000-7000-8000-000000000000",
            "assure-gateway keys revoke ID --reason rotated --yes",
            "assure-gateway keys --admin http://127.0.0.1:9 --token t list",
            "assure-gateway keys list --admin http://127.0.0.1:9 --token t",
            "assure-gateway keys whoami",
            "assure-gateway activity --key ID --action key.use --since 10m --limit 5 --follow --json",
            "assure-gateway activity --since 2026-11-23T18:30:00Z",
            "assure-gateway token --firm f --user u",
            "assure-gateway token --firm f --user u --name N --permission a --permission b --lifetime 12h --config c.yaml",
            "assure-gateway store export",
            "assure-gateway store export --config old.yaml --output moved.jsonl",
            "assure-gateway store import --config new.yaml --input moved.jsonl",
            "assure-gateway store import --input -",
            "assure-gateway schema",
            "assure-gateway openapi",
            "assure-gateway completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn what_is_not_a_command_is_a_usage_error() {
        for line in [
            "assure-gateway dance",
            "assure-gateway keys",
            "assure-gateway keys create",
            "assure-gateway keys whoami KEY",
            "assure-gateway keys list --status dead",
            "assure-gateway keys list --admin not-a-url",
            "assure-gateway activity --since yesterday",
            "assure-gateway activity --action key.dance",
            "assure-gateway activity --limit 0",
            "assure-gateway token --firm f",
            "assure-gateway token --firm f --user u --lifetime 0s",
            "assure-gateway store",
            "assure-gateway store export --input moved.jsonl",
            "assure-gateway completions cobol",
        ] {
            assert_eq!(parse(line).map_err(|error| error.exit_code()).err(), Some(2), "{line}");
        }
    }
}

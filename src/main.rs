//! `assure-gateway`: reads the command line and hands over, to `cli` or to `app`.
//!
//! Says what is wrong in plain sentences on standard error. Exit codes: 0 done, 1 refused or failed, 2 not understood
//! or a configuration with mistakes.

use std::io::IsTerminal;
use std::process::ExitCode;

use assure_gateway::cli::{self, Arguments, Command, ConfigArgument};
use assure_gateway::config::{self, Config, LogFormat, Source};
use assure_gateway::{app, tasks};
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Faster than the system's, and gives back what many connections took (loadtest/README.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MISTAKEN: u8 = 2;

fn main() -> ExitCode {
    spare_huge_pages();
    let arguments = Arguments::parse();
    match arguments.command.unwrap_or(Command::Run(ConfigArgument::default())) {
        Command::Run(which) => run(config::find(which.config.as_deref())),
        Command::Check(which) => check(&config::find(which.config.as_deref())),
        Command::Token(arguments) => match config::load_source(&config::find(arguments.configuration.config.as_deref())) {
            Ok(config) => cli::finish(cli::token(&arguments, &config)),
            Err(error) => mistaken(&error),
        },
        Command::Store(command) => match config::load_source(&config::find(command.configuration().config.as_deref())) {
            Ok(config) => cli::finish(tasks::runtime().block_on(cli::store(&command, &config))),
            Err(error) => mistaken(&error),
        },
        Command::Client(command) => cli::finish(tasks::runtime().block_on(cli::execute_client(command))),
    }
}

/// The allocator asks for pages of 2 MiB, and the kernel zeroes each as a whole when its first byte is used: an eighth of
/// the time of all requests, and a quarter of the memory under load (loadtest/README.md). Where the kernel does not know the wish, it stays so.
fn spare_huge_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn run(source: Source) -> ExitCode {
    match config::load_source(&source) {
        Ok(config) => start_logging(&config),
        Err(error) => return mistaken(&error),
    }
    match tasks::runtime().block_on(app::run(source, &program())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assure-gateway did not start: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How this program was called, so that what it prints can be pasted.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned())
}

fn check(source: &Source) -> ExitCode {
    match config::load_source(source) {
        Ok(config) => {
            config::warnings(&config).iter().for_each(|warning| eprintln!("warning: {warning}"));
            let unusable = app::unusable_files(&config);
            unusable.iter().for_each(|mistake| eprintln!("{}: {mistake}", name(source)));
            if !unusable.is_empty() {
                return ExitCode::from(MISTAKEN);
            }
            println!("{} is valid", name(source));
            ExitCode::SUCCESS
        }
        Err(error) => mistaken(&error),
    }
}

fn name(source: &Source) -> String {
    match source {
        Source::File(file) => file.display().to_string(),
        Source::Demo => "the built-in configuration".into(),
    }
}

fn mistaken(error: &config::ConfigError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(MISTAKEN)
}

/// Logs go to standard error, so that what `run` prints for people stays readable.
fn start_logging(config: &Config) {
    // rustls warns of what a stranger's hello holds, once for each: nobody may fill the log who has not even spoken HTTP.
    let level = match config.log.level.as_str() {
        level @ ("warn" | "info") => format!("{level},rustls=error"),
        level => level.to_owned(),
    };
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info,rustls=error"));
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    match config.log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

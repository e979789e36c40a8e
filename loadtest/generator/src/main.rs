//! What `loadtest/run` measures with, in one binary: a load generator, a fixed-answer upstream, a peer's sidecar.
//!
//! ```text
//!   loadgen load      --target 127.0.0.1:8080 --connections 64 --seconds 5 [--rate 20000] …   one line of JSON
//!   loadgen upstream  --listen 127.0.0.1:9000                                                 until it is ended
//!   loadgen sidecar   --listen 127.0.0.1:9001 --keys FILE --per-minute 1000000                until it is ended
//! ```
//!
//! Each is one thread over epoll: what is measured shares the machine with them, so they must cost little. They run on
//! loopback only, and `load` ends by itself.

mod arguments;
mod client;
mod histogram;
mod load;
mod plan;
mod server;
mod sidecar;
mod transport;
mod upstream;

use std::process::ExitCode;

use arguments::Arguments;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("loadgen: {problem}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), String> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let arguments = Arguments::parse(words)?;
    match command.as_str() {
        "load" => load::run(&arguments),
        "upstream" => upstream::run(&arguments),
        "sidecar" => sidecar::run(&arguments),
        other => Err(format!("{other:?} is no command; load, upstream and sidecar are")),
    }
}

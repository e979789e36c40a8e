//! Every attack at a larger scale, and a table of what was seen, for `loadtest/results`.
//!
//! `cargo test --locked --test gateway floods_at_length -- --ignored --nocapture`; `ASSURE_FLOODS_CONNECTIONS` and
//! `ASSURE_FLOODS_FRAMES` are the scale.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Outcome, Scale, gateway, http1, http2, withstand};
use crate::support::Gateway;

const MEBIBYTE: f64 = 1024.0 * 1024.0;

#[test]
#[ignore = "takes minutes; writes loadtest/results/floods.md"]
fn floods_at_length() {
    let scale = Scale { connections: wanted("ASSURE_FLOODS_CONNECTIONS", 1_000), frames: wanted("ASSURE_FLOODS_FRAMES", 100_000) };
    let slow =
        [&http1::SLOW_HEADS[..], &http1::SLOW_BODIES, &http1::SLOW_READERS, &http1::BOMBS, &http2::STALLS, &http2::UNTAKEN, &http2::FLOODS];
    let mut table = String::from(
        "# Attacks at length\n\n\
         Each on a gateway of a debug build beside a good client (127.0.0.2; a kept and a new HTTP/1.1 connection and an HTTP/2 one in turn), by\n\
         `cargo test --locked --test gateway floods_at_length -- --ignored`. Memory is the process's resident set, in MiB.\n\n\
         | attack | sent | took | how its connections ended | MiB before | at most | after | descriptors before | at most | after | good client: answers | slowest |\n\
         |---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let usual = gateway();
    let key = usual.key();
    for attack in slow.into_iter().flatten() {
        let began = Instant::now();
        write_row(&mut table, &withstand(&usual, &key, attack, scale), began.elapsed());
    }
    let capped = Gateway::with(|config| config["edge"]["connections_per_address_max"] = json!(100));
    let began = Instant::now();
    write_row(&mut table, &withstand(&capped, &capped.key(), &http1::ONE_ADDRESS, scale), began.elapsed());
    println!("{table}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtest/results");
    fs::create_dir_all(&folder).expect("our folder");
    fs::write(folder.join("floods.md"), table).expect("our file");
}

fn wanted(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn write_row(table: &mut String, outcome: &Outcome, took: Duration) {
    let Outcome { name, endings, before, peak, after, service } = outcome;
    let ways: Vec<String> = endings.ways.iter().map(|(way, count)| format!("{way}: {count}")).collect();
    let mebibytes = |bytes: u64| bytes as f64 / MEBIBYTE;
    writeln!(
        table,
        "| {name} | {} | {:.0} s | {} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} | {:.0} ms |",
        endings.sent,
        took.as_secs_f64(),
        ways.join(", "),
        mebibytes(before.memory_bytes),
        mebibytes(peak.memory_bytes),
        mebibytes(after.memory_bytes),
        before.descriptors,
        peak.descriptors,
        after.descriptors,
        service.answered,
        service.slowest.as_secs_f64() * 1000.0,
    )
    .expect("a string takes it");
}

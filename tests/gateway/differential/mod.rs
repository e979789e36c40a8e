//! Differential check: whatever the gateway forwards, four servers that others wrote understand as it does.
//!
//! Each mutant (see `mutants`) is sent to a gateway in front of nginx, HAProxy, Python's and Node's servers, and, byte for
//! byte the same, to each of the four directly. Each of them says what it understood: method, target, Host, length of the
//! body. Where the gateway forwarded, all four must agree with what it forwarded, or refuse: about which path is asked, who
//! the Host is, where a request ends and how many there are. Where they differ, the gateway must have refused. At the end,
//! what arrived through the gateway is compared with what the gateway wrote into the firm's activity log.
//!
//! `downgrade` does as much for what HTTP/1 cannot carry: mutants over HTTP/2, in front of the strict upstream of the other tests.
//! `ASSURE_MUTANTS` says how many (a few hundred without it), `ASSURE_MUTANTS_SEED` which.

mod downgrade;
mod mutants;
mod servers;
mod understanding;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::Gateway;
use crate::support::eventually::found;
use servers::Server;
use understanding::{Ended, Saw, Understanding, listen};

/// Silence after which nothing more is awaited, and what is granted when two seem to differ.
const QUIET: Duration = Duration::from_millis(60);
const PATIENT: Duration = Duration::from_millis(1_500);
/// How long the records of all of them may take.
const LOGGED: Duration = Duration::from_secs(120);
/// Mutants under way at once: most of them wait for silence.
const AT_ONCE: usize = 48;
const MUTANTS: u64 = 400;
const SEED: u64 = 20_261_129;

/// Where mutants go.
struct Bench {
    gateway: SocketAddr,
    servers: Vec<(&'static str, SocketAddr)>,
    secret: String,
    seed: u64,
}

/// What came of all mutants.
#[derive(Default)]
struct Counts {
    forwarded: AtomicU64,
    refused: AtomicU64,
    /// Direct answers that could be compared.
    compared: AtomicU64,
}

impl Bench {
    /// Why the gateway and another disagree about a mutant; `None` if they do not. Notes what was forwarded.
    async fn disagreement(&self, number: u64, quiet: Duration, counts: Option<&Counts>, forwarded: &mut Vec<Saw>) -> Option<String> {
        let bytes: Arc<[u8]> = mutants::mutant(self.seed, number, &self.secret).into();
        let all = self.servers.iter().map(|(_, address)| *address).chain([self.gateway]);
        let mut answers = futures_util::future::join_all(all.map(|address| listen(address, bytes.clone(), quiet))).await;
        let ours = answers.pop().expect("the gateway is the last");
        if let Some(counts) = counts {
            let kind = if ours.saw.is_empty() { &counts.refused } else { &counts.forwarded };
            kind.fetch_add(1, Ordering::Relaxed);
            counts.compared.fetch_add(answers.iter().filter(|theirs| !theirs.saw.is_empty()).count() as u64, Ordering::Relaxed);
        }
        let differing = self.servers.iter().zip(&answers).find_map(|((name, _), theirs)| {
            let why = difference(&ours, theirs)?;
            Some(format!("{name}: {why}\n    {}\n    gateway {ours:?}\n    {name} {theirs:?}", bytes.escape_ascii()))
        });
        forwarded.extend(ours.saw);
        differing
    }

    /// The same, looked at again in peace before it is believed: a busy machine answers late.
    async fn check(&self, number: u64, counts: &Counts, forwarded: &mut Vec<Saw>) -> Option<String> {
        self.disagreement(number, QUIET, Some(counts), forwarded).await?;
        let again = self.disagreement(number, PATIENT, None, forwarded).await?;
        Some(format!("mutant {number}: {again}"))
    }
}

/// How the two read the same bytes differently, where the gateway let them pass.
fn difference(ours: &Understanding, theirs: &Understanding) -> Option<String> {
    if let Some((mine, other)) = ours.saw.iter().zip(&theirs.saw).find(|(mine, other)| !mine.agrees_with(other)) {
        return Some(format!("{mine:?} is read as {other:?}"));
    }
    if theirs.saw.len() > ours.saw.len() && ours.ended == Ended::Silent {
        return Some("it sees a request where the gateway waits for a body".into());
    }
    if theirs.saw.len() < ours.saw.len() && theirs.ended == Ended::Silent {
        return Some("it waits for a body where the gateway sees a request".into());
    }
    None
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn what_is_forwarded_is_understood_by_four_other_servers_as_by_the_gateway() {
    let (count, seed) = (number("ASSURE_MUTANTS", MUTANTS), number("ASSURE_MUTANTS_SEED", SEED));
    let servers = Server::all();
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    let gateway = Gateway::with(|config| {
        config["limits"]["requests_per_minute"] = json!(1_000_000);
        config["upstreams"]["ledger"] = json!({ "endpoints": urls });
        config["routes"] = json!([{ "path": "/**", "upstream": "ledger" }]);
        config["audit"]["spool"]["size_max"] = json!("1GiB");
    });
    let key = gateway.key();
    let addresses = servers.iter().map(|server| (server.name, server.address)).collect();
    let bench = Arc::new(Bench { gateway: gateway.edge(), servers: addresses, secret: key.secret.clone(), seed });
    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let next = Arc::new(AtomicU64::new(0));
    let (mut differing, mut forwarded) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let workers = (0..AT_ONCE).map(|_| {
            let (bench, counts, next) = (bench.clone(), counts.clone(), next.clone());
            tokio::spawn(async move {
                let (mut differing, mut forwarded) = (Vec::new(), Vec::new());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return (differing, forwarded);
                    }
                    differing.extend(bench.check(number, &counts, &mut forwarded).await);
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            let (more, passed) = worker.await.expect("a worker ends");
            differing.extend(more);
            forwarded.extend(passed);
        }
    });
    let [passed, refused, compared] = [&counts.forwarded, &counts.refused, &counts.compared].map(|count| count.load(Ordering::Relaxed));
    println!("{count} mutants of seed {seed} in {:?}: {passed} forwarded, {refused} refused, {compared} direct readings", began.elapsed());
    let shown = differing.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(differing.is_empty(), "{} of {count} mutants of seed {seed} are read differently:\n{shown}", differing.len());
    assert!(passed > count / 20 && refused > count / 20 && compared > passed, "the mutants try both");
    assert_logged(&gateway, &forwarded);
    for server in &servers {
        let arrived = forwarded.iter().filter(|saw| saw.server == server.name).count();
        assert!(arrived > 0, "{} got its share", server.name);
    }
}

/// Everything that arrived is in the activity log once, and was there what it was here.
#[track_caller]
fn assert_logged(gateway: &Gateway, forwarded: &[Saw]) {
    let editor = gateway.editor();
    let uses = found(LOGGED, "a record of each request that arrived", || {
        let uses = gateway.uses(&editor, 0);
        let ids: HashSet<&str> = uses.iter().filter_map(|record| record["request_id"].as_str()).collect();
        forwarded.iter().all(|saw| ids.contains(saw.request_id.as_str())).then_some(uses)
    });
    let by_id: HashMap<&str, &serde_json::Value> =
        uses.iter().filter_map(|record| Some((record["request_id"].as_str()?, record))).collect();
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    for saw in forwarded {
        let record = by_id.get(saw.request_id.as_str());
        let is_alike = record.is_some_and(|record| {
            let path = percent_decoded(saw.target.split('?').next().unwrap_or_default());
            record["method"] == saw.method
                && record["path"].as_str().map(percent_decoded) == Some(path)
                && record["host"].as_str().is_some_and(|host| saw.is_for_host(host))
        });
        if !is_alike || !seen.insert(&saw.request_id) {
            wrong.push(format!("{saw:?} against {record:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} requests arrived otherwise than they are in the log:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(10)].join("\n")
    );
}

/// For comparison only.
fn percent_decoded(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match digits.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

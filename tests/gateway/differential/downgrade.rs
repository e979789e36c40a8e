//! Requests over HTTP/2 that are a little wrong, in front of an upstream that reads HTTP/1.1 strictly.
//!
//! Names, values and pseudo fields come from the dictionaries of `mutants`, with bytes that break lines put in anywhere, and a
//! body that would be a request if anybody lost count. Of one stream at most one request may arrive; each must be strict
//! HTTP/1.1 and what the firm's log says that it was.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::mutants::{BYTES, CODINGS, Dice, HOSTS, LENGTHS, METHODS, TARGETS};
use super::{LOGGED, MUTANTS, SEED, number};
use crate::support::eventually::found;
use crate::support::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, block, frame};
use crate::support::{Gateway, Request};

const BODY: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
const NAMES: &[&[u8]] = &[
    b"x",
    b"transfer-encoding",
    b"transfer_encoding",
    b"content-length",
    b"content_length",
    b"connection",
    b"host",
    b"x-assure-jwt-assertion",
    b"te",
    b"trailer",
    b"expect",
    b"upgrade",
    b":path",
    b":method",
    b"cookie",
    b"x\"y",
    b"forwarded",
    b"X-Upper",
    b"x y",
    b"x:y",
    b"",
    b"\"",
    b"via",
    b"range",
];

/// The frames of one mutant.
fn mutant(seed: u64, number: u64, secret: &str) -> Vec<u8> {
    let mut dice = Dice::new(!seed, number);
    let owned = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let mut fields = vec![
        owned(":method", ["GET", "POST", "PUT", "DELETE"][dice.below(4)]),
        owned(":scheme", "http"),
        owned(":path", &format!("/h2/{number}")),
        owned(":authority", "localhost"),
        owned("x-api-key", secret),
    ];
    for _ in 0..[0, 1, 1, 1, 2, 3][dice.below(6)] {
        let any = dice.below(fields.len());
        match dice.below(9) {
            0 => fields[0].1 = dice.pick(METHODS).to_vec(),
            1 => fields[2].1 = dice.pick(TARGETS).to_vec(),
            2 => fields[3].1 = dice.pick(HOSTS).to_vec(),
            3 => fields.push((b"content-length".to_vec(), dice.pick(LENGTHS).to_vec())),
            4 => fields.push((b"content-length".to_vec(), BODY.len().to_string().into_bytes())),
            5 => fields.push((
                dice.pick(NAMES).to_vec(),
                dice.pick::<[u8]>(&[b"v", b"", b" v", b"5", b"localhost", b"trailers", b"a, b"]).to_vec(),
            )),
            6 => fields.push((dice.pick(NAMES).to_vec(), dice.pick(CODINGS).to_vec())),
            7 => {
                let (name, value) = &mut fields[any];
                let changed = if dice.below(3) == 0 { name } else { value };
                let place = dice.below(changed.len() + 1);
                changed.insert(place, BYTES[dice.below(BYTES.len())]);
            }
            _ => {
                let twin = fields[any].clone();
                fields.push(twin);
            }
        }
    }
    let block = block(&fields);
    let end = if dice.below(3) == 0 { END_STREAM } else { 0 };
    let (first, rest) = block.split_at(dice.below(block.len()));
    let mut bytes = match dice.below(2) {
        0 => frame(HEADERS, end | END_HEADERS, 1, &block),
        _ => [frame(HEADERS, end, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)].concat(),
    };
    if end == 0 {
        let (first, rest) = BODY.split_at(dice.below(BODY.len()));
        bytes.extend_from_slice(&[frame(DATA, 0, 1, first), frame(DATA, END_STREAM, 1, rest)].concat());
    }
    bytes
}

/// Sends it on a connection of its own and waits until it is answered, reset or cut.
fn send(gateway: &Gateway, bytes: &[u8]) {
    let mut frames = Frames::connect(gateway.edge());
    frames.wait_at_most(Duration::from_secs(5));
    // A gateway that refuses early may close while we still send.
    drop(frames.raw(bytes));
    while let Ok(frame) = frames.frame() {
        if matches!(frame.kind, RST_STREAM | GOAWAY) || (matches!(frame.kind, HEADERS | DATA) && frame.has(END_STREAM)) {
            return;
        }
    }
}

#[test]
fn what_comes_by_http_2_reaches_an_upstream_as_one_strict_request_of_http_1_or_not_at_all() {
    let (count, seed) = (number("ASSURE_MUTANTS", MUTANTS), number("ASSURE_MUTANTS_SEED", SEED));
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = serde_json::json!(1_000_000));
    let (editor, key) = (gateway.editor(), gateway.key());
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    send(&gateway, &mutant(seed, number, &key.secret));
                }
            });
        }
    });
    Request::get("/last").bearer(&key.secret).send_to(gateway.edge()).expect(200);
    assert_eq!(gateway.upstream.violations(), Vec::<String>::new(), "seed {seed}");
    let seen = gateway.upstream.seen();
    println!("{count} mutants of seed {seed} over HTTP/2: {} requests arrived", seen.len());
    assert!(seen.len() as u64 <= count + 1 && seen.len() as u64 > count / 10, "{} of {count}", seen.len());
    let ids: Vec<&str> = seen.iter().map(|seen| seen.fields.one("x-request-id").expect("each has one")).collect();
    let records: HashMap<String, serde_json::Value> = found(LOGGED, "a record of each request that arrived", || {
        let uses = gateway.uses(&editor, 0);
        let records: HashMap<_, _> =
            uses.into_iter().map(|record| (record["request_id"].as_str().unwrap_or_default().to_owned(), record)).collect();
        ids.iter().all(|id| records.contains_key(*id)).then_some(records)
    });
    let mut known = HashSet::new();
    for (seen, id) in seen.iter().zip(&ids) {
        let record = &records[*id];
        let host = seen.fields.one("host").unwrap_or_default();
        assert!(known.insert(id), "one request, one id: {seen:?}");
        assert_eq!(record["method"], seen.method, "{record} against {seen:?}");
        assert_eq!(record["path"].as_str(), seen.target.split('?').next(), "{record} against {seen:?}");
        assert!(record["host"].as_str().is_some_and(|named| host.starts_with(named)), "{record} against {seen:?}");
        assert!(!seen.target.contains("smuggled") && seen.fields.all("x-assure-jwt-assertion").len() == 1, "{seen:?}");
    }
}

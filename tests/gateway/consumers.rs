//! The stream `assure:audit` as the README tells consumers to read it: a consumer group of plain Redis commands.
//!
//! Two consumers share the work; one dies before it has confirmed, the other claims what it left. Each removes repeats by
//! `event_id`. Old entries leave the stream, and the firm's log, by age.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::support::eventually::eventually;
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON};

const STREAM: &str = "assure:audit";

/// What Redis answered.
#[derive(Clone, PartialEq, Debug)]
enum Reply {
    Text(String),
    List(Vec<Reply>),
    Nothing,
}

impl Reply {
    /// Reads one answer of RESP2 and what follows it.
    fn read(text: &str) -> (Self, &str) {
        let (line, rest) = text.split_once("\r\n").expect("a whole line");
        let (kind, value) = line.split_at(1);
        match (kind, value.parse::<usize>()) {
            ("$", Ok(length)) => (Self::Text(rest[..length].to_owned()), &rest[length + 2..]),
            ("*", Ok(length)) => {
                let mut rest = rest;
                let members = (0..length).map(|_| {
                    let (member, after) = Self::read(rest);
                    rest = after;
                    member
                });
                (Self::List(members.collect()), rest)
            }
            ("$" | "*", Err(_)) => (Self::Nothing, rest),
            ("-", _) => panic!("Redis refuses: {value}"),
            _ => (Self::Text(value.to_owned()), rest),
        }
    }

    fn list(&self) -> &[Self] {
        if let Self::List(members) = self { members } else { &[] }
    }

    fn text(&self) -> &str {
        if let Self::Text(text) = self { text } else { "" }
    }
}

#[track_caller]
fn ask(redis: &Redis, words: &[&str]) -> Reply {
    Reply::read(&redis.ask(words).expect("Redis answers")).0
}

/// An entry of the stream: where it stands, and which event it is.
#[derive(Clone, PartialEq, Debug)]
struct Entry {
    id: String,
    event: String,
}

fn entries(reply: &Reply) -> Vec<Entry> {
    let entry = |entry: &Reply| {
        let [id, fields] = entry.list() else { panic!("not an entry: {entry:?}") };
        let at = fields.list().iter().position(|name| name.text() == "event_id").expect("each record has an event_id");
        Entry { id: id.text().to_owned(), event: fields.list()[at + 1].text().to_owned() }
    };
    reply.list().iter().map(entry).collect()
}

/// One member of the group, with what it has done so far.
struct Consumer<'a> {
    redis: &'a Redis,
    name: &'static str,
}

impl Consumer<'_> {
    /// What nobody of the group was given yet.
    fn read(&self, most: usize) -> Vec<Entry> {
        let most = most.to_string();
        let reply = ask(self.redis, &["XREADGROUP", "GROUP", "billing", self.name, "COUNT", &most, "STREAMS", STREAM, ">"]);
        reply.list().first().map(|stream| entries(&stream.list()[1])).unwrap_or_default()
    }

    /// What others were given and have not confirmed; as often as it takes to see all of the list.
    fn claim(&self) -> Vec<Entry> {
        let (mut claimed, mut cursor) = (Vec::new(), "0-0".to_owned());
        loop {
            let reply = ask(self.redis, &["XAUTOCLAIM", STREAM, "billing", self.name, "0", &cursor, "COUNT", "5"]);
            claimed.extend(entries(&reply.list()[1]));
            cursor = reply.list()[0].text().to_owned();
            if cursor == "0-0" {
                return claimed;
            }
        }
    }

    fn confirm(&self, entries: &[Entry]) {
        for entry in entries {
            ask(self.redis, &["XACK", STREAM, "billing", &entry.id]);
        }
    }
}

/// What the consumers' own database would hold: each event once, however often it is handed in.
#[derive(Default)]
struct Ledger {
    events: HashSet<String>,
    repeats: usize,
}

impl Ledger {
    fn book(&mut self, entries: &[Entry]) {
        for entry in entries {
            if !self.events.insert(entry.event.clone()) {
                self.repeats += 1;
            }
        }
    }
}

#[test]
fn a_consumer_group_processes_every_event_once_though_a_consumer_dies() {
    let redis = Redis::start();
    // The group may be there before the first record is.
    ask(&redis, &["XGROUP", "CREATE", STREAM, "billing", "0", "MKSTREAM"]);
    let [gateway]: [Gateway; 1] = redis.gateways("3s");
    let key = gateway.key();
    for turn in 0..40 {
        gateway.get(&key, &format!("/{turn}")).expect(200);
    }
    eventually!(SOON, redis.streamed("event_id").len() == 41);
    let (one, other) = (Consumer { redis: &redis, name: "one" }, Consumer { redis: &redis, name: "other" });
    let mut ledger = Ledger::default();

    let first = one.read(10);
    ledger.book(&first);
    one.confirm(&first);
    // It dies here: it has booked the half of what it was given, and confirmed nothing.
    let unconfirmed = one.read(12);
    assert_eq!((first.len(), unconfirmed.len()), (10, 12));
    ledger.book(&unconfirmed[..6]);

    loop {
        let given = other.read(7);
        if given.is_empty() {
            break;
        }
        ledger.book(&given);
        other.confirm(&given);
    }
    assert_eq!(ledger.events.len(), 41 - 6, "the dead consumer has the rest");
    let claimed = other.claim();
    assert_eq!(claimed, unconfirmed);
    ledger.book(&claimed);
    other.confirm(&claimed);
    assert!(other.claim().is_empty() && one.claim().is_empty(), "nothing is left to claim");
    assert_eq!(ask(&redis, &["XPENDING", STREAM, "billing"]).list()[0].text(), "0");

    let all: HashSet<String> = redis.streamed("event_id").into_iter().collect();
    assert_eq!((ledger.events, ledger.repeats), (all, 6), "each once; those that were booked before the death came twice");
}

#[test]
fn records_leave_the_stream_and_the_log_by_age() {
    const AGE: Duration = Duration::from_secs(2);
    let redis = Redis::start();
    let gateway = Gateway::with(|config| {
        config["store"] = redis.store("3s");
        config["audit"]["stream_max_age"] = "2s".into();
    });
    let (editor, key) = (gateway.editor(), gateway.key());
    // Redis trims whole nodes of a stream, which hold 100 entries.
    for turn in 0..220 {
        gateway.get(&key, &format!("/old/{turn}")).expect(200);
    }
    eventually!(SOON, redis.streamed("event_id").len() >= 200 || !redis.streamed("path").contains(&"/old/0".to_owned()));
    let old = Instant::now();
    eventually!(SOON, old.elapsed() > AGE);
    // Trimming rides on shipping: a gateway that records nothing trims nothing.
    eventually!(SOON, {
        gateway.get(&key, "/new").expect(200);
        let streamed = redis.streamed("path");
        let logged = gateway.activity(&editor);
        let is_old = |path: &str| path.starts_with("/old/");
        assert!(streamed.iter().filter(|path| *path == "/new").count() <= gateway.upstream.count("/new"));
        streamed.iter().filter(|path| is_old(path)).count() < 100
            && !logged.iter().any(|record| record["path"].as_str().is_some_and(is_old))
    });
    // The key itself lives on, and says when it was used last.
    let listed = gateway.admin_get(&editor, &format!("/v1/keys/{}", key.id)).expect(200).json();
    assert!(listed["last_used_at"].is_string(), "{listed}");
}

//! K7 for what already runs: streams and uploads end within a second of a revocation's answer, also on a replica that could
//! not hear of it, or heard only that it had missed too much. What nobody revoked survives a restart of Redis.
//!
//! Tunnels end by the same look; `upgrades` has them on a replica that hears of the revocation.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::{eventually, found};
use crate::support::link::Link;
use crate::support::redis::Redis;
use crate::support::{Client, End, Gateway, Key, Reply, Request, SOON};

/// "Within a second", and a little for a busy machine.
const CUT: Duration = Duration::from_millis(1500);
/// Long enough for a test to do something behind a replica's back before its lease ends.
const LONG_LEASE: &str = "4s";

/// A running stream, its client's end and its upstream's.
struct Stream {
    client: Client,
    feed: mpsc::Sender<Vec<u8>>,
    events: usize,
}

impl Stream {
    #[track_caller]
    fn open(gateway: &Gateway, key: &Key) -> Self {
        let (feed, reply) = Reply::events();
        gateway.upstream.answer_once("/events", reply);
        let mut client = Client::connect(gateway.edge());
        client.send(Request::get("/events").bearer(&key.secret).head()).expect("sent");
        let mut stream = Self { client, feed, events: 0 };
        stream.goes_on();
        stream
    }

    /// One more event arrives.
    #[track_caller]
    fn goes_on(&mut self) {
        self.events += 1;
        let event = format!("data: event {}.\n\n", self.events);
        self.feed.send(event.clone().into_bytes()).expect("the stream runs");
        self.client.read_until(event.trim_end()).expect("the event arrives");
    }

    #[track_caller]
    fn is_cut(&mut self) {
        assert_ne!(self.client.end_within(CUT), End::Open, "the stream is cut");
        assert!(!self.client.recorded().ends_with(b"0\r\n\r\n"), "and does not look complete");
    }
}

/// A gateway that reaches Redis through a link.
fn gateway_behind(link: &Link, redis: &Redis, change: impl FnOnce(&mut Value)) -> Gateway {
    Gateway::with(|config| {
        config["store"] = redis.store("1s");
        config["store"]["redis"]["url"] = json!(format!("redis://{}/0", link.address()));
        change(&mut config["store"]["redis"]);
    })
}

/// How the use of a key that was cut is recorded: the outcome and the reason.
#[track_caller]
fn recorded(gateway: &Gateway, editor: &str, key: &Key, path: &str) -> (String, String) {
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let wanted = |record: &Value| record["key_id"] == key.id.as_str() && record["path"] == path && record["outcome"] != "unknown";
    let record = found(SOON, "its record", || gateway.activity(editor).into_iter().find(wanted));
    (text(&record, "outcome"), text(&record, "reason"))
}

#[test]
fn what_runs_on_a_replica_that_is_cut_off_ends_within_a_second_of_the_answer() {
    for mode in ["lease", "strict"] {
        let redis = Redis::start();
        let link = Link::to(redis.address());
        let set = |settings: &mut Value| {
            if mode == "strict" {
                settings["revocation"] = json!(mode);
            }
        };
        let (cut_off, other) = (
            gateway_behind(&link, &redis, set),
            Gateway::with(|config| {
                config["store"] = redis.store("1s");
                set(&mut config["store"]["redis"]);
            }),
        );
        let editor = other.editor();
        let key = other.create_key(&editor, "stream");
        let mut stream = Stream::open(&cut_off, &key);
        let mut upload = Client::connect(cut_off.edge());
        let head = Request::new("POST", "/upload").bearer(&key.secret).with("Content-Length", "1000000").head();
        upload.send([head, vec![b'x'; 1000]].concat()).expect("sent");
        eventually!(SOON, cut_off.upstream.seen().iter().any(|seen| seen.body_bytes > 0), "the upload has begun");

        link.refuse();
        other.revoke(&editor, &key);
        let answered = Instant::now();
        stream.is_cut();
        assert_ne!(upload.end_within(CUT), End::Open, "the upload is cut");
        assert!(answered.elapsed() < CUT, "{mode}: {:?}", answered.elapsed());
        let ended = || cut_off.upstream.seen().iter().all(|seen| seen.gone_at.is_some());
        eventually!(SOON, ended(), "the upstream learns of it");
        link.heal();
        let allowed = ("allowed".to_owned(), "replica_incoherent".to_owned());
        assert_eq!(recorded(&other, &editor, &key, "/events"), allowed, "{mode}");
        let refused = ("store_unavailable".to_owned(), "replica_incoherent".to_owned());
        assert_eq!(recorded(&other, &editor, &key, "/upload"), refused, "{mode}");
        eventually!(SOON, cut_off.get(&key, "/ok").status == 401);
    }
}

#[test]
fn what_runs_on_a_replica_that_missed_too_much_is_looked_at_again() {
    let redis = Redis::start();
    let link = Link::to(redis.address());
    let [other]: [Gateway; 1] = redis.gateways(LONG_LEASE);
    let behind = gateway_behind(&link, &redis, |settings| settings["coherence_lease"] = json!(LONG_LEASE));
    let editor = other.editor();
    let (key, kept) = (other.create_key(&editor, "revoked"), other.create_key(&editor, "kept"));
    let (mut stream, mut live) = (Stream::open(&behind, &key), Stream::open(&behind, &kept));
    let epoch = || {
        let answer = redis.ask(&["GET", "assure:{assure:audit}:epoch"]).expect("Redis answers");
        answer.lines().nth(1).expect("a value").to_owned()
    };
    let before = epoch();
    link.refuse();
    thread::scope(|scope| {
        let revoked = scope.spawn(|| other.revoke(&editor, &key));
        eventually!(SOON, epoch() != before, "it is committed");
        // As after ten thousand more: the news of it has left the store.
        redis.tell(&["SET", "assure:{assure:audit}:untold", &epoch()]);
        link.heal();
        revoked.join().expect("it is answered");
    });
    stream.is_cut();
    live.goes_on();
    assert_eq!(recorded(&other, &editor, &key, "/events"), ("allowed".to_owned(), "key_revoked".to_owned()));
    other.revoke(&editor, &kept);
    live.is_cut();
}

#[test]
fn what_nobody_revoked_survives_a_restart_of_redis_within_the_lease() {
    let redis = Redis::start();
    let [gateway]: [Gateway; 1] = redis.gateways(LONG_LEASE);
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "stream");
    let mut stream = Stream::open(&gateway, &key);
    redis.down();
    redis.up();
    eventually!(SOON, gateway.log().matches("met a new incarnation").count() == 2);
    eventually!(SOON, !gateway.is_ready(), "it settles");
    stream.goes_on();
    eventually!(SOON, gateway.is_ready(), "it has settled, a term later");
    stream.goes_on();
    gateway.revoke(&editor, &key);
    stream.is_cut();
    assert_eq!(recorded(&gateway, &editor, &key, "/events"), ("allowed".to_owned(), "key_revoked".to_owned()));
}

//! Every way in which Redis can fail, and what a tool, an admin and an operator see of it: 503 with `Retry-After` and
//! never the caller's fault, a reason on `/readyz`, one line in the log, numbers in the metrics. Each mends itself.
//!
//! What was used while the lease still held is in the log exactly once afterwards.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::eventually::eventually;
use crate::support::link::Link;
use crate::support::redis::Redis;
use crate::support::{Answer, Client, Gateway, Key, Request, SOON};

/// The lease of these tests, and what is granted beyond it: 1 % and 100 ms.
const LEASE: &str = "1s";
const TERM: Duration = Duration::from_millis(1_110);
/// How long a fault may take to mend: the longest pause between attempts, a term, and the machine's slack.
const MENDED: Duration = Duration::from_secs(20);
/// How long one request may take when Redis says nothing: two look-ups of a second each, and slack.
const REFUSED_WITHIN: Duration = Duration::from_millis(3_500);
/// Lines that a fault may cost the log, however many requests it refuses.
const LINES_MAX: usize = 12;

/// What an admin can still read.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    Answered,
    Refused,
}

/// One gateway on one Redis, a key that it knows and one that it has never seen.
struct Scene {
    redis: Redis,
    gateway: Gateway,
    editor: String,
    known: Key,
    cold: Key,
    accepted: HashSet<String>,
}

impl Scene {
    fn set() -> Self {
        let redis = Redis::start();
        let [gateway]: [Gateway; 1] = redis.gateways(LEASE);
        let editor = gateway.editor();
        let (known, cold) = (gateway.create_key(&editor, "known"), gateway.create_key(&editor, "cold"));
        let mut scene = Self { redis, gateway, editor, known, cold, accepted: HashSet::new() };
        assert_eq!(scene.use_known().status, 200);
        scene
    }

    /// One request of the known key: served, or refused as nobody's fault of the caller.
    #[track_caller]
    fn use_known(&mut self) -> Answer {
        let answer = self.gateway.get(&self.known, "/ok");
        match answer.status {
            200 => drop(self.accepted.insert(answer.fields.one("x-request-id").expect("a request id").to_owned())),
            _ => refused(&answer),
        }
        answer
    }

    /// Breaks Redis, looks at it with everybody's eyes, mends it and looks again.
    #[track_caller]
    fn suffers(mut self, reads: Reads, reason: &str, fault: impl FnOnce(&Redis), mend: impl FnOnce(&Redis)) {
        fault(&self.redis);
        let began = Instant::now();
        let lines = self.gateway.log().lines().count();
        eventually!(SOON, {
            let is_over = began.elapsed() > TERM;
            let status = self.use_known().status;
            assert!(!(status == 200 && is_over), "accepted without a lease");
            is_over && status == 503
        });
        self.tools_are_told_to_come_back();
        self.admins_are_told_to_come_back(reads);
        self.operators_are_told_why(reason);
        let more = self.gateway.log().lines().count() - lines;
        assert!(more <= LINES_MAX, "{more} lines of log:\n{}", self.gateway.log());
        mend(&self.redis);
        self.ends_as_before();
    }

    fn tools_are_told_to_come_back(&mut self) {
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(self.use_known().status, 503);
            refused(&self.gateway.get(&self.cold, "/ok"));
            assert!(asked.elapsed() < 2 * REFUSED_WITHIN, "{:?}", asked.elapsed());
        }
        // What needs no store is answered as ever.
        Request::get("/ok").send_to(self.gateway.edge()).expect(401);
    }

    #[track_caller]
    fn admins_are_told_to_come_back(&self, reads: Reads) {
        let ask = |request: Request| self.gateway.ask_admin(&request.bearer(&self.editor));
        refused(&ask(Request::json("POST", "/v1/keys", &json!({ "name": "new" }))));
        refused(&ask(Request::json("POST", &format!("/v1/keys/{}/revoke", self.cold.id), &json!({}))));
        for target in ["/v1/keys", "/v1/activity"] {
            let answer = ask(Request::get(target));
            match reads {
                Reads::Answered => drop(answer.expect(200)),
                Reads::Refused => refused(&answer),
            }
        }
    }

    fn operators_are_told_why(&self, reason: &str) {
        let gateway = &self.gateway;
        gateway.ops_get("/readyz").expect(503);
        gateway.ops_get("/healthz").expect(200);
        let ((store, why), (coherence, _), (audit, _)) =
            (gateway.readiness("store"), gateway.readiness("coherence"), gateway.readiness("audit"));
        assert!(!store && !coherence && audit && why.contains(reason), "{}", gateway.ops_get("/readyz").text());
        eventually!(SOON, gateway.log().contains(reason), "{reason} in the log");
        assert!(gateway.metric("assure_gateway_store_errors_total{operation=\"renew\"}") >= 1.0);
        assert_eq!(gateway.metric("assure_gateway_coherence_lease_remaining_seconds"), 0.0);
        // Refusals of known keys are recorded too, so there is something that waits.
        eventually!(SOON, gateway.metric("assure_gateway_audit_spool_bytes") > 0.0);
        eventually!(SOON, gateway.metric("assure_gateway_audit_spool_oldest_seconds") > 0.0);
    }

    fn ends_as_before(mut self) {
        eventually!(MENDED, self.gateway.is_ready() && self.use_known().status == 200, "it mends itself");
        assert_eq!(self.gateway.readiness("store"), (true, "answers".to_owned()));
        assert!(self.gateway.metric("assure_gateway_coherence_lease_remaining_seconds") > 0.0);
        // What is less used may still pause before it connects again, and says so.
        eventually!(SOON, {
            let answer = self.gateway.get(&self.cold, "/ok");
            if answer.status != 200 {
                refused(&answer);
            }
            answer.status == 200
        });
        eventually!(SOON, {
            let revoke = Request::json("POST", &format!("/v1/keys/{}/revoke", self.cold.id), &json!({}));
            let answer = self.gateway.ask_admin(&revoke.bearer(&self.editor));
            assert!([200, 503].contains(&answer.status), "{}", answer.text());
            answer.status == 200
        });
        self.gateway.get(&self.cold, "/ok").expect_problem(401, "invalid_key");
        let mut streamed = Vec::new();
        eventually!(MENDED, {
            streamed = self.redis.streamed("request_id");
            self.accepted.iter().all(|id| streamed.contains(id))
        });
        eventually!(SOON, self.gateway.metric("assure_gateway_audit_spool_bytes") == 0.0, "everything is shipped");
        for id in &self.accepted {
            assert_eq!(streamed.iter().filter(|known| *known == id).count(), 1, "a use is recorded once");
        }
        assert_eq!(self.gateway.metric("assure_gateway_audit_dropped_total"), 0.0);
    }
}

/// 503, an honest code, and when to come back.
#[track_caller]
fn refused(answer: &Answer) {
    let text = answer.text();
    assert_eq!(answer.status, 503, "a dependency's failure is never the caller's: {text}");
    assert!(["store_unavailable", "revocation_unconfirmed"].contains(&answer.code().as_str()), "{text}");
    let seconds = answer.fields.one("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| (1..=60).contains(&seconds)), "{:?}", answer.fields);
}

#[test]
fn a_redis_that_is_killed_is_503_and_mends_itself() {
    Scene::set().suffers(Reads::Refused, "nothing listens at the address", Redis::down, Redis::up);
}

#[test]
fn uses_within_the_lease_of_a_redis_that_is_gone_are_recorded_once_when_it_is_back() {
    let redis = Redis::start();
    let [gateway]: [Gateway; 1] = redis.gateways("3s");
    let key = gateway.key();
    let mut accepted = HashSet::new();
    // A busy tool has permits at hand when Redis goes. A slow machine may have let them grow old; then once more.
    eventually!(Duration::from_secs(60), {
        eventually!(MENDED, gateway.get(&key, "/ok").status == 200);
        let mut client = Client::connect(gateway.edge());
        let mut send = || client.exchange(&Request::get("/ok").bearer(&key.secret)).expect("an answer");
        (0..150).for_each(|_| drop(send()));
        redis.down();
        for _ in 0..40 {
            let answer = send();
            if answer.status == 200 {
                accepted.insert(answer.fields.one("x-request-id").expect("a request id").to_owned());
            } else {
                refused(&answer);
            }
        }
        redis.up();
        !accepted.is_empty()
    });
    let mut streamed = Vec::new();
    eventually!(MENDED, {
        streamed = redis.streamed("request_id");
        accepted.iter().all(|id| streamed.contains(id))
    });
    assert!(accepted.iter().all(|id| streamed.iter().filter(|known| *known == id).count() == 1), "each once");
    assert_eq!(streamed.iter().collect::<HashSet<_>>().len(), streamed.len(), "and no other twice");
}

#[test]
fn a_redis_that_is_frozen_is_503_and_mends_itself() {
    Scene::set().suffers(Reads::Refused, "in time", |redis| redis.signal(Signal::STOP), |redis| redis.signal(Signal::CONT));
}

#[test]
fn a_redis_without_memory_is_503_for_what_writes_and_mends_itself() {
    Scene::set().suffers(
        Reads::Answered,
        "maxmemory",
        |redis| redis.tell(&["CONFIG", "SET", "maxmemory", "1"]),
        |redis| redis.tell(&["CONFIG", "SET", "maxmemory", "0"]),
    );
}

/// Answers a gateway that reaches Redis through a link, its editor, and how many keys Redis holds.
fn linked(redis: &Redis) -> (Link, Gateway, String) {
    let link = Link::to(redis.address());
    let gateway = Gateway::with(|config| {
        config["store"] = redis.store("3s");
        config["store"]["redis"]["url"] = json!(format!("redis://{}", link.address()));
    });
    let editor = gateway.editor();
    (link, gateway, editor)
}

fn records(redis: &Redis) -> usize {
    redis.ask(&["KEYS", "*:record:*"]).map_or(0, |answer| answer.matches(":record:").count())
}

#[test]
fn a_creation_whose_answer_was_lost_is_the_same_call_again_and_its_key_works() {
    let redis = Redis::start();
    let (link, gateway, editor) = linked(&redis);
    link.lose_answers(&[b"created\r\n"]);
    let answer = gateway.ask_admin(&Request::json("POST", "/v1/keys", &json!({ "name": "new" })).bearer(&editor));
    let key = answer.expect(201).json();
    let secret = key["key"].as_str().expect("it is shown").to_owned();
    eventually!(SOON, Request::get("/ok").bearer(&secret).send_to(gateway.edge()).status == 200);
    assert_eq!(records(&redis), 1, "made once");
}

#[test]
fn a_creation_that_stays_in_doubt_leaves_no_live_key() {
    let redis = Redis::start();
    let (link, gateway, editor) = linked(&redis);
    let create = Request::json("POST", "/v1/keys", &json!({ "name": "new" })).bearer(&editor);
    link.lose_answers(&[b"created\r\n", b"replayed\r\n"]);
    refused(&gateway.ask_admin(&create));
    assert_eq!(records(&redis), 1, "it was made");
    link.heal();
    eventually!(MENDED, redis.ask(&["KEYS", "*:live"]).is_some_and(|answer| !answer.contains(":live")), "it is revoked");
    eventually!(SOON, redis.streamed("reason").iter().any(|reason| reason.contains("nobody holds it")));
}

#[test]
fn a_user_without_rights_to_channels_is_warned_of_and_hinders_no_change() {
    let redis = Redis::start();
    redis.tell(&["ACL", "SETUSER", "default", "resetchannels"]);
    let [gateway]: [Gateway; 1] = redis.gateways(LEASE);
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "new");
    let revoke = Request::json("POST", &format!("/v1/keys/{}/revoke", key.id), &json!({}));
    gateway.ask_admin(&revoke.bearer(&editor)).expect(200);
    eventually!(SOON, ["PUBLISH", "SUBSCRIBE"].iter().all(|command| gateway.log().contains(command)));
    assert!(gateway.log().contains("&assure:*"), "{}", gateway.log());
}

#[test]
fn a_session_that_nobody_can_read_delays_a_revocation_and_hinders_none() {
    let redis = Redis::start();
    let [gateway]: [Gateway; 1] = redis.gateways(LEASE);
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "new");
    redis.tell(&["HSET", "assure:{assure:audit}:sessions", "nobody", "x y z"]);
    let revoke = Request::json("POST", &format!("/v1/keys/{}/revoke", key.id), &json!({}));
    gateway.ask_admin(&revoke.bearer(&editor)).expect(200);
    assert_eq!(gateway.log().matches("a session cannot be read").count(), 1, "said once");
}

#[test]
fn a_redis_that_was_demoted_is_503_for_what_writes_and_mends_itself() {
    // Nobody is at the primary's address, so what it holds stays what it was.
    Scene::set().suffers(
        Reads::Answered,
        "takes no writes",
        |redis| redis.tell(&["REPLICAOF", "127.0.0.1", "1"]),
        |redis| redis.tell(&["REPLICAOF", "NO", "ONE"]),
    );
}

#[test]
fn a_redis_that_cannot_write_its_disk_is_503_for_what_writes_and_mends_itself() {
    let saved = |redis: &Redis, wanted: &str| {
        eventually!(SOON, {
            redis.ask(&["BGSAVE"]);
            redis.ask(&["INFO", "persistence"]).is_some_and(|info| info.contains(&format!("rdb_last_bgsave_status:{wanted}")))
        });
    };
    Scene::set().suffers(
        Reads::Answered,
        "cannot write to its disk",
        |redis| {
            // A folder stands where the snapshot should go.
            std::fs::create_dir(redis.folder().join("dump.rdb")).expect("our folder");
            redis.tell(&["CONFIG", "SET", "save", "3600 1"]);
            saved(redis, "err");
        },
        |redis| {
            std::fs::remove_dir(redis.folder().join("dump.rdb")).expect("our folder");
            saved(redis, "ok");
        },
    );
}

#[test]
fn a_redis_with_another_password_is_503_and_mends_itself() {
    Scene::set().suffers(
        Reads::Refused,
        "wants a password",
        |redis| {
            redis.tell(&["CONFIG", "SET", "requirepass", "another"]);
            // Who is signed in stays so until the connection ends.
            redis.ask_as("another", &["CLIENT", "KILL", "TYPE", "normal"]);
        },
        |redis| drop(redis.ask_as("another", &["CONFIG", "SET", "requirepass", ""])),
    );
}

#[test]
fn a_password_that_changes_in_redis_and_in_its_file_is_taken_up_without_a_restart() {
    let redis = Redis::start();
    let file = redis.folder().join("password");
    let change = |from: &str, to: &str| {
        redis.ask_as(from, &["CONFIG", "SET", "requirepass", to]);
        redis.ask_as(to, &["CLIENT", "KILL", "TYPE", "normal"]);
    };
    change("", "first");
    std::fs::write(&file, "first\n").expect("our folder");
    let gateway = Gateway::with(|config| {
        config["store"] = redis.store(LEASE);
        config["store"]["redis"]["password_file"] = json!(file);
    });
    let key = gateway.key();
    eventually!(SOON, gateway.get(&key, "/ok").status == 200);
    change("first", "second");
    eventually!(SOON, !gateway.is_ready() && gateway.readiness("store").1.contains("password is wrong"));
    refused(&gateway.get(&key, "/ok"));
    std::fs::write(&file, "second\n").expect("our folder");
    eventually!(MENDED, gateway.is_ready() && gateway.get(&key, "/ok").status == 200);
    assert!(!gateway.log().contains("first") && !gateway.log().contains("second"), "a password is in no log");
}

#[test]
fn a_redis_whose_user_lost_a_permission_is_503_and_mends_itself() {
    Scene::set().suffers(
        Reads::Refused,
        "see its ACL",
        |redis| redis.tell(&["ACL", "SETUSER", "default", "-evalsha", "-eval"]),
        |redis| redis.tell(&["ACL", "SETUSER", "default", "+@all"]),
    );
}

#[test]
fn a_redis_that_answers_late_serves_whom_it_can_and_blames_nobody() {
    let mut scene = Scene::set();
    let began = Instant::now();
    let mut served = 0;
    while began.elapsed() < Duration::from_secs(4) {
        // Every answer waits for the end of a pause; a renewal may take a fifth of the lease.
        scene.redis.tell(&["CLIENT", "PAUSE", "120", "ALL"]);
        served += usize::from(scene.use_known().status == 200);
        let cold = scene.gateway.get(&scene.cold, "/ok");
        assert!([200, 503].contains(&cold.status), "{}", cold.text());
    }
    assert!(served > 0, "what the lease covers is served");
    scene.gateway.get(&scene.cold, "/ok");
    scene.ends_as_before();
}

#[test]
fn a_redis_that_reads_its_data_is_waited_for_later_and_at_the_start() {
    let mut scene = Scene::set();
    scene.redis.tell(&["DEBUG", "POPULATE", "9000"]);
    scene.redis.tell(&["BGREWRITEAOF"]);
    eventually!(
        SOON,
        scene
            .redis
            .ask(&["INFO", "persistence"])
            .is_some_and(|info| info.contains("aof_base_size") && info.contains("aof_rewrite_in_progress:0\r\n"))
    );
    // A millisecond for each key, and a look at its connections now and then.
    let slowly = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let loads = |redis: &Redis| {
        redis.down();
        redis.spawn(&slowly);
    };
    let store = scene.redis.store(LEASE);
    scene.redis.down();
    scene.redis.spawn(&slowly);
    let waiting = Gateway::waiting(|config| config["store"] = store);
    eventually!(SOON, waiting.readiness("store").1.contains("reading its data"), "{}", waiting.ops_get("/readyz").text());
    eventually!(MENDED, waiting.is_ready());
    drop(waiting);
    // It has met another incarnation of the store meanwhile, and knows its keys again once they are used.
    eventually!(MENDED, scene.use_known().status == 200);
    scene.suffers(Reads::Refused, "reading its data", loads, |_| {});
}

/// No RST, no FIN: what a firewall that forgot the connections, or a host that vanished, leaves behind.
#[test]
fn connections_that_went_dead_without_a_word_are_replaced_though_nobody_sends_a_request() {
    let redis = Redis::start();
    let link = Link::to(redis.address());
    let gateway = Gateway::with(|config| {
        config["store"] = json!({ "redis": { "url": format!("redis://{}", link.address()), "coherence_lease": LEASE } })
    });
    let key = gateway.key();
    gateway.get(&key, "/ok").expect(200);
    link.hold_present();
    eventually!(SOON, !gateway.is_ready(), "the lease ends");
    eventually!(MENDED, gateway.is_ready(), "renewals alone find out that nothing answers any more");
    eventually!(SOON, gateway.get(&key, "/ok").status == 200);
}

#[test]
fn five_hundred_requests_at_once_to_a_stalled_redis_are_each_refused_in_time_and_leave_nothing_behind() {
    let redis = Redis::start();
    let gateway = Gateway::with(|config| {
        config["store"] = redis.store("10s");
        config["edge"]["connections_per_address_max"] = json!(1_000);
    });
    let key = gateway.key();
    gateway.get(&key, "/ok").expect(200);
    let before = gateway.metric("process_resident_memory_bytes");
    redis.signal(Signal::STOP);
    // Each presents another key that nobody has looked up yet, while the lease still holds.
    let took: Vec<Duration> = thread::scope(|scope| {
        let calls: Vec<_> = (0..500)
            .map(|number| {
                let request = Request::get("/ok").bearer(&well_formed(number));
                let edge = gateway.edge();
                scope.spawn(move || {
                    let mut client = Client::connect(edge);
                    let asked = Instant::now();
                    refused(&client.exchange(&request).expect("an answer"));
                    asked.elapsed()
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().expect("no call panics")).collect()
    });
    let slowest = took.iter().max().expect("there are some");
    assert!(*slowest < REFUSED_WITHIN, "{slowest:?}");
    assert!(gateway.upstream.count("/ok") == 1, "nothing was forwarded");
    redis.signal(Signal::CONT);
    eventually!(MENDED, gateway.is_ready() && gateway.get(&key, "/ok").status == 200);
    // Within the lease that says nothing of look-ups, whose connections may still be on their way out of the stall.
    let stranger = Request::get("/ok").bearer(&well_formed(1));
    eventually!(MENDED, stranger.send_to(gateway.edge()).status == 401);
    stranger.send_to(gateway.edge()).expect_problem(401, "invalid_key");
    assert!(gateway.metric("assure_gateway_requests_in_flight").abs() < 0.5);
    let grown = gateway.metric("process_resident_memory_bytes") - before;
    // 500 connections and tasks of at most 128 KiB each.
    assert!(grown < 64.0 * 1024.0 * 1024.0, "{grown} bytes");
}

/// A key as a gateway would have issued it, but that none did: its CRC-32 is right.
fn well_formed(number: usize) -> String {
    let text = format!("assure_0000{number:032}");
    let mut checksum = u64::from(crc32fast::hash(text.as_bytes()));
    let mut digits = [0_u8; 6];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[usize::try_from(checksum % 62).expect("small")];
        checksum /= 62;
    }
    text + std::str::from_utf8(&digits).expect("letters and digits")
}

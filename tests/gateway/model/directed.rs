//! Schedules in which one broken rule surely breaks a promise, each run twice: with the true gateway, where the oracle finds
//! nothing, and with the mutant, where it must. `tests/model --mutants` does both.
//!
//! A mutant is named in the environment, which gateways inherit; a schedule holds a gateway up at a point of its program
//! through a file in its folder (`src/mutants.rs`), so that the race it is about is run the same way each time. Schedules
//! that need no such help are ordinary tests too.

use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::clients::{Admin, FIRMS, Tool, create};
use super::journal::{Creation, Story};
use super::oracles;
use super::schedule::{Act, REPLICAS};
use super::world::{AWAITED, OwnKey, Servers, Setup, World};
use crate::support::eventually::eventually;
use crate::support::link::Link;

/// What a renewal carries and a reservation does not.
const RENEWAL: &[u8] = b"assure:{assure:audit}:sessions";

/// A rule and how it is found out.
struct Case {
    /// What is broken; more than one where two rules each suffice.
    mutants: &'static str,
    schedule: fn() -> Story,
    oracle: oracles::Oracle,
}

const CASES: [Case; 17] = [
    Case { mutants: "SkipGeneration", schedule: a_backup_is_restored_while_one_is_away, oracle: oracles::revocation },
    Case { mutants: "SkipApplied,NoLastLook", schedule: a_renewal_lands_within_a_look_up, oracle: oracles::revocation },
    Case { mutants: "FillUntested,NoLastLook", schedule: a_fill_lands_after_the_revocation, oracle: oracles::revocation },
    Case { mutants: "LeaseFromAnswer", schedule: the_last_renewal_is_late, oracle: oracles::revocation },
    Case { mutants: "AckUnapplied", schedule: what_was_received_is_applied_later, oracle: oracles::revocation },
    Case { mutants: "NoWaitForSilent", schedule: one_cannot_renew, oracle: oracles::revocation },
    Case { mutants: "AskEarlier", schedule: one_cannot_ask, oracle: oracles::revocation },
    Case { mutants: "NoLedger", schedule: all_start_on_a_store_that_forgot, oracle: oracles::revocation },
    Case { mutants: "NoReassert", schedule: a_backup_without_the_revocation_is_restored, oracle: oracles::revocation },
    Case { mutants: "NoRecall", schedule: a_backup_without_the_last_uses_is_restored, oracle: oracles::window },
    Case { mutants: "TrustNewStore", schedule: one_starts_on_a_store_that_forgot, oracle: oracles::revocation },
    Case { mutants: "CountAtGrantStart", schedule: permits_are_used_late, oracle: oracles::window },
    Case { mutants: "ForgetOpenGrants", schedule: three_use_one_key_at_once, oracle: oracles::window },
    Case { mutants: "SkipDedupe", schedule: a_shipment_arrives_again, oracle: oracles::audit },
    Case { mutants: "NoUnknownEnd", schedule: one_is_killed_in_mid_request, oracle: oracles::audit },
    Case { mutants: "NoBegin", schedule: one_is_killed_in_mid_request, oracle: oracles::audit },
    Case { mutants: "OneKeyMore", schedule: six_keys_of_one_creator, oracle: oracles::live_keys },
];

#[test]
#[ignore = "tests/model --mutants runs it for each mutant in turn"]
fn a_schedule_finds_its_mutant_and_nothing_without_it() {
    let mutants = std::env::var("ASSURE_MODEL_CASE").expect("ASSURE_MODEL_CASE names the mutants whose schedule is run");
    let case = CASES.iter().find(|case| case.mutants == mutants).unwrap_or_else(|| panic!("no schedule finds {mutants}"));
    let is_broken = match std::env::var("ASSURE_MUTANTS").unwrap_or_default().as_str() {
        "" | "NoLastLook" => false,
        named => {
            assert_eq!(named, mutants, "one case at a time");
            true
        }
    };
    let found = (case.oracle)(&(case.schedule)());
    println!("found: {}", found.first().map_or("nothing", String::as_str));
    assert_eq!(!found.is_empty(), is_broken, "{found:?}");
}

#[test]
#[ignore = "tests/model --mutants asks which there are"]
fn the_mutants_are_listed() {
    CASES.iter().for_each(|case| println!("case: {}", case.mutants));
}

#[test]
fn a_restored_backup_revives_no_revoked_key() {
    find_nothing(&["SkipGeneration", "NoReassert", "TrustNewStore"]);
}

#[test]
fn what_is_cut_off_or_killed_or_late_breaks_no_promise() {
    find_nothing(&["NoWaitForSilent", "SkipDedupe", "NoUnknownEnd"]);
}

#[test]
fn connections_that_say_nothing_any_more_are_left_also_when_nobody_asks() {
    let stage = Stage::new("500ms", 60);
    stage.link(1).hold_present();
    eventually!(AWAITED, !stage.is_ready(1), "its lease ends");
    eventually!(AWAITED, stage.is_ready(1), "it is renewed over new connections");
}

/// Runs the schedules of these mutants side by side, without the mutants.
#[track_caller]
fn find_nothing(mutants: &[&str]) {
    let run = |case: Case| thread::spawn(move || (case.oracle)(&(case.schedule)()));
    let running: Vec<_> = CASES.into_iter().filter(|case| mutants.contains(&case.mutants)).map(run).collect();
    assert_eq!(running.len(), mutants.len());
    let broken: Vec<String> = running.into_iter().flat_map(|running| running.join().expect("it ends")).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Three gateways on one Redis, and a key that all of them have met.
struct Stage {
    world: World,
    key: OwnKey,
}

impl Stage {
    fn new(lease: &'static str, limit: u32) -> Self {
        Self::with(Setup { lease, limit, redis: Servers::One, partitions: 1, revocation: "lease" })
    }

    fn with(setup: Setup) -> Self {
        let world = World::start(&setup);
        let key = create(&world, 0, FIRMS[0], "user-0").expect("a key");
        Self { world, key }
    }

    fn met_by_all(lease: &'static str) -> Self {
        Self::new(lease, 1_000).met()
    }

    fn met(self) -> Self {
        for replica in 0..REPLICAS {
            assert_eq!(self.ask(replica), Some(200));
        }
        self
    }

    /// Asks on a connection of its own.
    fn ask(&self, replica: usize) -> Option<u16> {
        Tool::new(&self.world).ask(&self.key, replica, false)
    }

    #[track_caller]
    fn revoke(&self) {
        // Whoever has just met another store says 503 once, because it cannot prove anything.
        eventually!(AWAITED, Admin::new(&self.world, 0).revoke(&self.key, 0) == Some(200), "revoked");
    }

    fn link(&self, replica: usize) -> &Link {
        &self.world.links[replica]
    }

    /// Holds a gateway up at `point`, or no more.
    fn stall(&self, replica: usize, point: &str, ms: u64) {
        let file = self.world.gateway(replica).folder().join(format!("stall-{point}"));
        if ms == 0 { std::fs::remove_file(file) } else { std::fs::write(file, ms.to_string()) }.expect("our folder");
    }

    /// Keeps asking one replica for a while.
    fn ask_for(&self, replica: usize, span: Duration) {
        let until = self.world.journal.now() + span;
        while self.world.journal.now() < until {
            self.ask(replica);
            self.world.pause(Duration::from_millis(5));
        }
    }

    /// What Redis holds now, in a copy; it is killed for that, and everybody meets it again.
    fn backup(&self) -> TempDir {
        let copy = self.world.redis().down_and_copied();
        self.world.act(Act::RedisUp);
        for replica in 0..REPLICAS {
            let has_met = || self.world.gateway(replica).log().matches("met a new incarnation").count() > 1;
            eventually!(AWAITED, has_met() && self.is_ready(replica), "replica {replica} trusts Redis again");
        }
        copy
    }

    fn pause_ms(&self, ms: u64) {
        self.world.pause(Duration::from_millis(ms));
    }

    fn is_ready(&self, replica: usize) -> bool {
        self.world.greet();
        self.world.place(replica).is_some() && self.world.gateway(replica).is_ready()
    }
}

/// The epoch goes back, so one that was away must forget what it cached: what was revoked meanwhile it is not told.
fn a_backup_is_restored_while_one_is_away() -> Story {
    let stage = Stage::met_by_all("500ms");
    let backup = stage.backup();
    for _ in 0..3 {
        create(&stage.world, 0, FIRMS[1], "user-1").expect("a key");
    }
    stage.link(1).refuse();
    stage.world.act(Act::RedisDown);
    stage.world.redis().restore(&backup);
    stage.world.act(Act::RedisUp);
    eventually!(AWAITED, stage.is_ready(0) && stage.is_ready(2));
    stage.revoke();
    stage.link(1).heal();
    eventually!(AWAITED, stage.is_ready(1));
    stage.ask_for(1, Duration::from_millis(200));
    stage.world.tell()
}

/// A lease that has ended is renewed between the look at the tombstones and the look at the lease.
fn a_renewal_lands_within_a_look_up() -> Story {
    let stage = Stage::met_by_all("500ms");
    stage.link(1).refuse();
    stage.revoke();
    stage.stall(1, "judge", 3_000);
    thread::scope(|scope| {
        scope.spawn(|| stage.ask(1));
        stage.pause_ms(300);
        stage.stall(1, "judge", 0);
        stage.link(1).heal();
    });
    stage.world.tell()
}

/// The record was read before the revocation and reaches the cache after it.
fn a_fill_lands_after_the_revocation() -> Story {
    let stage = Stage::new("3s", 1_000);
    stage.stall(1, "fill", 1_500);
    thread::scope(|scope| {
        scope.spawn(|| stage.ask(1));
        stage.pause_ms(500);
        stage.revoke();
    });
    stage.stall(1, "fill", 0);
    stage.ask_for(1, Duration::from_millis(200));
    stage.world.tell()
}

/// Each answer to a renewal takes long to arrive, and after one of them no renewal gets through any more.
fn the_last_renewal_is_late() -> Story {
    let stage = Stage::met_by_all("2s");
    stage.stall(1, "renewal", 1_200);
    stage.ask_for(1, Duration::from_millis(2_500));
    // The one that has just been answered is the last: a lease that counts from its end is 1.2 s longer.
    let renewed = || stage.world.gateway(1).metric("assure_gateway_store_duration_seconds_count{operation=\"renew\"}");
    let before = renewed();
    eventually!(AWAITED, renewed() > before, "a renewal was answered");
    stage.link(1).reset_on(RENEWAL);
    thread::scope(|scope| {
        scope.spawn(|| stage.ask_for(1, Duration::from_millis(4_000)));
        stage.revoke();
    });
    stage.world.tell()
}

/// A change has come and is applied 0.8 s later.
fn what_was_received_is_applied_later() -> Story {
    let stage = Stage::met_by_all("2s");
    stage.stall(1, "renewal", 800);
    stage.ask_for(1, Duration::from_millis(1_000));
    stage.revoke();
    stage.ask_for(1, Duration::from_millis(1_200));
    stage.world.tell()
}

/// One trusts its cache to the end of its lease and cannot be told.
fn one_cannot_renew() -> Story {
    let stage = Stage::met_by_all("2s");
    stage.link(1).reset_on(RENEWAL);
    stage.revoke();
    stage.ask_for(1, Duration::from_millis(2_500));
    stage.world.tell()
}

/// The same in strict mode, in which nobody waits for it: it asks before each use, and what it hears it cannot apply.
fn one_cannot_ask() -> Story {
    let strict = Setup { lease: "2s", limit: 1_000, redis: Servers::One, partitions: 1, revocation: "strict" };
    let stage = Stage::with(strict).met();
    stage.link(1).reset_on(RENEWAL);
    stage.ask(1);
    stage.revoke();
    stage.ask_for(1, Duration::from_millis(2_500));
    stage.world.tell()
}

/// The store forgets a revocation, and everybody who knew it was killed and knows it from its disk.
fn all_start_on_a_store_that_forgot() -> Story {
    let stage = forgotten();
    stage.world.act(Act::Kill(0));
    stage.link(0).heal();
    stage.world.act(Act::Start(0));
    eventually!(AWAITED, stage.is_ready(0));
    stage.ask_for(0, Duration::from_millis(200));
    stage.world.tell()
}

/// The store forgets a revocation that two gateways remember; the third starts and remembers nothing.
fn a_backup_without_the_revocation_is_restored() -> Story {
    let stage = forgotten();
    stage.link(0).heal();
    stage.world.act(Act::Start(2));
    eventually!(AWAITED, stage.is_ready(0) && stage.is_ready(2));
    stage.ask_for(2, Duration::from_millis(200));
    stage.world.tell()
}

/// The same, but the gateway that remembers reaches the store a moment after the one that does not.
fn one_starts_on_a_store_that_forgot() -> Story {
    let stage = forgotten();
    stage.world.act(Act::Start(2));
    eventually!(
        AWAITED,
        {
            stage.world.greet_if(2, |_| true);
            stage.world.place(2).is_some()
        },
        "it listens, ready or not"
    );
    stage.ask_for(2, Duration::from_millis(200));
    stage.link(0).heal();
    eventually!(AWAITED, stage.is_ready(0) && stage.is_ready(2));
    stage.ask_for(2, Duration::from_millis(200));
    stage.world.tell()
}

/// The store forgets a full window that a gateway remembers.
fn a_backup_without_the_last_uses_is_restored() -> Story {
    let stage = Stage::new("1s", 60);
    let backup = stage.backup();
    for _ in 0..70 {
        stage.ask(1);
    }
    stage.world.act(Act::RedisDown);
    stage.world.redis().restore(&backup);
    stage.world.act(Act::RedisUp);
    // At another one, since the one that was refused would remember that by itself.
    eventually!(AWAITED, [Some(200), Some(429)].contains(&stage.ask(2)));
    stage.ask_for(2, Duration::from_millis(200));
    stage.world.tell()
}

/// A key was revoked, the store is one that does not know, the second and third gateway are down, the first is cut off.
fn forgotten() -> Stage {
    let stage = Stage::met_by_all("1s");
    let backup = stage.backup();
    stage.revoke();
    stage.world.act(Act::Kill(1));
    stage.world.act(Act::Kill(2));
    // It starts with an empty disk, as a new machine does; a gateway that only restarts remembers by itself.
    std::fs::remove_file(stage.world.gateway(2).folder().join("spool/revoked")).expect("its ledger");
    stage.link(0).refuse();
    stage.world.act(Act::RedisDown);
    stage.world.redis().restore(&backup);
    stage.world.act(Act::RedisUp);
    stage
}

/// Each grant's permits but the first are used at the end of its life, a minute later the window is tried again.
fn permits_are_used_late() -> Story {
    let stage = Stage::new("3s", 160);
    let mut tool = Tool::new(&stage.world);
    let mut ask = || tool.ask(&stage.key, 0, false);
    for _ in 0..15 {
        ask();
    }
    let began = stage.world.journal.now();
    for _ in 0..20 {
        ask();
        stage.pause_ms(850);
        // The rest of the grant, and it is good for no more than a few of these.
        for _ in 0..8 {
            ask();
        }
        stage.pause_ms(200);
    }
    while ask() == Some(200) {}
    let minute = Duration::from_secs(60);
    stage.world.pause((began + minute).saturating_sub(stage.world.journal.now()));
    while stage.world.journal.now() < began + minute + Duration::from_secs(2) {
        ask();
        stage.pause_ms(5);
    }
    stage.world.tell()
}

fn three_use_one_key_at_once() -> Story {
    let stage = Stage::new("3s", 60);
    thread::scope(|scope| {
        for replica in 0..REPLICAS {
            let stage = &stage;
            scope.spawn(move || {
                let mut tool = Tool::new(&stage.world);
                for _ in 0..60 {
                    tool.ask(&stage.key, replica, false);
                }
            });
        }
    });
    stage.world.tell()
}

/// A shipment is held on its way until it was given up and sent again on another connection; then it arrives after all.
fn a_shipment_arrives_again() -> Story {
    let stage = Stage::met_by_all("500ms");
    eventually!(AWAITED, stage.world.tell().records.iter().filter(|record| record.action == "key.use").count() == REPLICAS);
    stage.link(1).hold_present();
    eventually!(AWAITED, stage.ask(1) == Some(200), "on new connections");
    let is_recorded = || oracles::audit(&stage.world.tell()).is_empty();
    eventually!(AWAITED, is_recorded(), "shipped on a new connection");
    stage.link(1).heal();
    stage.pause_ms(1_500);
    stage.world.tell()
}

/// kill -9 after a request was forwarded and before it was answered.
fn one_is_killed_in_mid_request() -> Story {
    let stage = Stage::met_by_all("500ms");
    let gate = stage.world.hold_answers();
    thread::scope(|scope| {
        scope.spawn(|| stage.ask(1));
        eventually!(AWAITED, stage.world.journal.story().arrivals.len() == REPLICAS + 1, "it is forwarded");
        stage.world.act(Act::Kill(1));
        gate.open();
    });
    stage.world.act(Act::Start(1));
    stage.world.mend();
    // Time for the record to come; that it never comes is what a mutant is found by.
    for _ in 0..30 {
        if oracles::audit(&stage.world.tell()).is_empty() {
            break;
        }
        stage.pause_ms(100);
    }
    stage.world.tell()
}

fn six_keys_of_one_creator() -> Story {
    let stage = Stage::new("3s", 60);
    for _ in 0..6 {
        create(&stage.world, 1, FIRMS[0], "user-0");
    }
    let story = stage.world.tell();
    let of_one: Vec<&Creation> = story.creations.iter().filter(|creation| creation.creator == "user-0").collect();
    assert!(of_one.len() >= 5, "as many as are allowed");
    story
}

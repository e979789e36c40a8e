//! The four protocols as a whole: three gateways, a Redis and its replica, a breakable link for each gateway, clients who
//! do what clients do, and everything breaks at random. Afterwards oracles read the logs and look for a broken promise.
//!
//! `schedule` decides from a seed what breaks when, `world` is the system and breaks, `clients` use it, `journal` is what
//! they write down, `stream` reads the audit log as a foreign consumer, `oracles` are the promises. `tests/model` runs it
//! for longer; `ASSURE_MODEL_SECONDS`, `_SEED` and `_FAULTS` are how it says what.

mod clients;
mod directed;
mod journal;
mod oracles;
mod schedule;
mod stream;
mod world;

use std::thread;
use std::time::{Duration, SystemTime};

use self::clients::{Admin, FIRMS, Tool};
use self::journal::Story;
use self::schedule::{Dice, Faults, REPLICAS};
use self::world::{AWAITED, Servers, Setup, World};
use crate::support::eventually::eventually;

/// The short run: long enough for one window to roll over.
const SECONDS: u64 = 75;
const TOOLS: u64 = 6;
const ADMINS: usize = 3;

/// What a run is made of.
#[derive(Debug)]
struct Plan {
    seconds: u64,
    seed: u64,
    faults: Faults,
}

impl Plan {
    fn wanted() -> Self {
        let read = |name: &str| std::env::var(name).ok();
        let number = |name: &str| read(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Self {
            seconds: number("ASSURE_MODEL_SECONDS").unwrap_or(SECONDS),
            seed: number("ASSURE_MODEL_SEED").unwrap_or(now.as_millis() as u64 % 1_000_000),
            faults: read("ASSURE_MODEL_FAULTS").map_or(Faults::All, |name| Faults::named(&name)),
        }
    }
}

/// Tells how to repeat the run, however it fails.
impl Drop for Plan {
    fn drop(&mut self) {
        if thread::panicking() {
            let faults = format!("{:?}", self.faults).to_lowercase();
            eprintln!("the model's run is repeated with: tests/model --seconds {} --seed {} --faults {faults}", self.seconds, self.seed);
        }
    }
}

fn run(plan: &Plan) -> Story {
    let redis = match plan.faults {
        Faults::None | Faults::Kills => Servers::One,
        Faults::All => Servers::Followed,
        Faults::Lossy => Servers::Trailed(Duration::from_millis(300)),
    };
    // The seed decides this too, so that a few seeds have seen it all.
    let (partitions, revocation) = [(1, "lease"), (3, "lease"), (1, "strict"), (3, "strict")][(plan.seed % 4) as usize];
    let world = World::start(&Setup { lease: "1s", limit: 60, redis, partitions, revocation });
    let length = Duration::from_secs(plan.seconds);
    let steps = schedule::steps(plan.seed, length, plan.faults);
    thread::scope(|scope| {
        let world = &world;
        for tool in 0..TOOLS {
            scope.spawn(move || Tool::new(world).work(Dice::of(plan.seed, 10 + tool)));
        }
        for admin in 0..ADMINS {
            scope.spawn(move || Admin::new(world, admin).work(Dice::of(plan.seed, 100 + admin as u64)));
        }
        world.suffer(&steps, length);
    });
    world.mend();
    greet_all(&world, plan.faults);
    world.finish(&FIRMS)
}

/// With nothing broken any more, every replica takes every live key, unless its window is full, and no other.
fn greet_all(world: &World, faults: Faults) {
    let mut tool = Tool::new(world);
    let keys = world.keys().clone();
    for key in keys.iter().rev().take(40) {
        for replica in 0..REPLICAS {
            eventually!(
                AWAITED,
                tool.ask(key, replica, false).is_some_and(|status| match status {
                    200 | 429 => true,
                    401 => key.is_doomed || faults == Faults::Lossy,
                    _ => false,
                }),
                "replica {replica} knows the key {}",
                key.id
            );
        }
    }
}

#[test]
fn no_promise_breaks_whatever_else_does() {
    let plan = Plan::wanted();
    let story = run(&plan);
    let count =
        |status: u16| story.attempts.iter().filter(|attempt| attempt.answer.as_ref().is_some_and(|answer| answer.status == status)).count();
    let confirmed = story.revocations.iter().filter(|revocation| revocation.answered.is_some_and(|(_, status)| status == 200)).count();
    eprintln!(
        "seed {}: {} requests ({} accepted, {} over the limit, {} with a dead key, {} while something was away), {} keys, {confirmed} revocations, {} kills, {} records",
        plan.seed,
        story.attempts.len(),
        count(200),
        count(429),
        count(401),
        count(503),
        story.creations.len(),
        story.kills.len(),
        story.records.len(),
    );
    let broken = if plan.faults == Faults::Lossy { oracles::what_outlives_losses(&story) } else { oracles::all(&story) };
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // A run in which nothing happens proves nothing.
    assert!(count(200) > 100 && count(429) > 10 && count(401) > 10 && confirmed > 3, "the run was too quiet to prove anything");
}

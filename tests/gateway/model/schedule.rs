//! Which faults happen when: a pure function of the seed, so that a run can be repeated.
//!
//! Each gateway, each link and Redis itself has a lane of its own, in which one fault ends before the next begins; what
//! happens in different lanes overlaps as it may. What the operating system makes of it is not repeated.

use std::time::Duration;

use crate::support::link::{Ending, Flow, Way};

/// Gateways of every run.
pub(super) const REPLICAS: usize = 3;

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and good enough to choose with.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// Of their own for each user of a seed.
    pub(super) fn of(seed: u64, user: u64) -> Self {
        Self(seed ^ user.wrapping_mul(0xa076_1d64_78bd_642f))
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `sides`.
    pub(super) fn below(&mut self, sides: usize) -> usize {
        (self.roll() % sides.max(1) as u64) as usize
    }

    pub(super) fn one_in(&mut self, sides: usize) -> bool {
        self.below(sides) == 0
    }

    pub(super) fn between_ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.roll() % (most - least + 1))
    }
}

/// Which kinds of faults a run has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Faults {
    None,
    /// Gateways and Redis are killed and started again, all the time.
    Kills,
    /// Everything that there is but what may lose acknowledged writes.
    All,
    /// Failovers that lose acknowledged writes, with gateways that live on.
    Lossy,
}

impl Faults {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "none" => Self::None,
            "kills" => Self::Kills,
            "all" => Self::All,
            "lossy" => Self::Lossy,
            other => panic!("faults are none, kills, all or lossy, not {other:?}"),
        }
    }
}

/// What is done to the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// SIGSTOP and SIGCONT.
    Freeze(usize),
    Thaw(usize),
    /// kill -9, and a new process on the same folder.
    Kill(usize),
    Start(usize),
    Flow(usize, Way, Flow),
    Cut(usize, Ending),
    Refuse(usize),
    /// Connections that are there are half-open: nothing of them arrives until the link heals.
    HoldPresent(usize),
    Heal(usize),
    /// kill -9 of Redis, and a new one on what is on disk.
    RedisDown,
    RedisUp,
    /// kill -9 of the primary, promotion of its replica, the links follow; the old primary comes back as a replica.
    Failover,
}

/// One act and when it is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub(super) at: Duration,
    pub(super) act: Act,
}

/// The steps of a run in order; all faults are over at its end.
pub(super) fn steps(seed: u64, length: Duration, faults: Faults) -> Vec<Step> {
    let mut dice = Dice::of(seed, 1);
    let mut steps = Vec::new();
    if faults == Faults::None {
        return steps;
    }
    let (busy, calm) = if faults == Faults::Kills { (1_000, 4_000) } else { (2_500, 9_000) };
    for replica in 0..REPLICAS {
        lane(&mut steps, length, &mut dice, [busy, calm], |dice| {
            if faults == Faults::Kills || (faults == Faults::All && dice.one_in(3)) {
                (vec![Act::Kill(replica)], dice.between_ms(50, 1_500), Act::Start(replica))
            } else {
                (vec![Act::Freeze(replica)], dice.between_ms(200, 2_500), Act::Thaw(replica))
            }
        });
        if faults != Faults::Kills {
            lane(&mut steps, length, &mut dice, [1_500, 7_000], |dice| {
                (link_fault(replica, dice), dice.between_ms(100, 2_500), Act::Heal(replica))
            });
        }
    }
    let pauses = if faults == Faults::Kills { [3_000, 9_000] } else { [8_000, 16_000] };
    lane(&mut steps, length, &mut dice, pauses, |dice| {
        if faults == Faults::Lossy || (faults == Faults::All && dice.one_in(2)) {
            (Vec::new(), Duration::ZERO, Act::Failover)
        } else {
            (vec![Act::RedisDown], dice.between_ms(50, 1_500), Act::RedisUp)
        }
    });
    steps.sort_by_key(|step| step.at);
    steps
}

/// One fault after the other: what begins it, how long it lasts, what ends it.
fn lane(
    steps: &mut Vec<Step>,
    length: Duration,
    dice: &mut Dice,
    [least, most]: [u64; 2],
    mut fault: impl FnMut(&mut Dice) -> (Vec<Act>, Duration, Act),
) {
    let mut at = dice.between_ms(least, most);
    loop {
        let (begin, lasts, end) = fault(dice);
        if at + lasts >= length {
            return;
        }
        steps.extend(begin.into_iter().map(|act| Step { at, act }));
        steps.push(Step { at: at + lasts, act: end });
        at += lasts + dice.between_ms(least, most);
    }
}

fn link_fault(replica: usize, dice: &mut Dice) -> Vec<Act> {
    let late = Flow::Late(dice.between_ms(5, 900));
    match dice.below(9) {
        0 => vec![Act::Cut(replica, Ending::Reset)],
        1 => vec![Act::Cut(replica, Ending::Closed)],
        2 => vec![Act::Refuse(replica)],
        3 => vec![Act::Flow(replica, Way::Up, Flow::Held)],
        4 => vec![Act::Flow(replica, Way::Down, Flow::Held)],
        5 => vec![Act::Flow(replica, Way::Up, Flow::Held), Act::Flow(replica, Way::Down, Flow::Held)],
        6 => vec![Act::Flow(replica, Way::Down, late)],
        7 => vec![Act::Flow(replica, Way::Up, late)],
        _ => vec![Act::HoldPresent(replica)],
    }
}

#[test]
fn the_same_seed_makes_the_same_schedule_and_every_fault_ends() {
    let length = Duration::from_secs(600);
    let once = steps(7, length, Faults::All);
    assert_eq!(once, steps(7, length, Faults::All));
    assert_ne!(once, steps(8, length, Faults::All));
    let count = |wanted: Act| once.iter().filter(|step| step.act == wanted).count();
    for replica in 0..REPLICAS {
        assert!(count(Act::Kill(replica)) > 5 && count(Act::Kill(replica)) == count(Act::Start(replica)));
        assert!(count(Act::Freeze(replica)) > 5 && count(Act::Freeze(replica)) == count(Act::Thaw(replica)));
        assert!(count(Act::Heal(replica)) > 20);
    }
    assert!(count(Act::Failover) > 5 && count(Act::RedisDown) > 5 && count(Act::RedisDown) == count(Act::RedisUp));
    assert!(steps(7, length, Faults::Kills).iter().all(|step| !matches!(step.act, Act::Freeze(_) | Act::Failover | Act::Refuse(_))));
    assert!(once.iter().all(|step| step.at < length) && steps(7, length, Faults::None).is_empty());
}

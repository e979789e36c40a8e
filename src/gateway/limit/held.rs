//! What this replica holds of one key's window: the grant in use, what is still to be reported, what was denied.
//!
//! Pure: the caller brings the time and the lock. A permit can be spent while its grant lives, and that is counted
//! from the moment before the grant was asked for (protocol 2).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Standing;
use crate::domain::BootInstant;
use crate::domain::window::{GRANT_LIFE, GRANT_LIFE_LONG, GrantId, GrantReport, RecalledUse, WINDOW, Wanted, make_first_room};
use crate::store::{Partition, StoreError};

/// Permits asked for at once, at most: 16 a second need 16, and a minute's burst of 1,000 needs sixteen calls.
const WANT_MAX: u32 = 64;
/// Permits for a long life are asked for at most so many times of what the last grant served: a tool that goes away leaves
/// few behind.
const GROWTH_MAX: u32 = 4;
/// Our clock and the store's may run at rates that differ by 1 %: a use is told as so much later, and a permit is spent so
/// much earlier than its life ends.
const DRIFT_SHARE: u32 = 64;
/// How long a use is remembered for a store that may forget it: as long as it may count there, by whose clock ever.
const REMEMBERED: Duration = WINDOW.saturating_add(GRANT_LIFE);

/// One key, as this replica sees it.
#[derive(Default)]
pub(super) struct Held {
    grant: Option<Grant>,
    /// Grants that are over and of which the store has not heard; one, unless calls failed.
    reports: Vec<GrantReport>,
    /// Uses of grants that are over, oldest first; 24 bytes each, and a window holds no more of them than its limit.
    past: VecDeque<PastUse>,
    /// How often the store was told of them again: a grant from before that is nobody's any more.
    recalls: u64,
    partition: Partition,
    denied: Option<Denial>,
    seen: Option<Seen>,
    /// Boxed, because it is rare and every key has room for it.
    failure: Option<Box<(BootInstant, StoreError)>>,
    turn: Turn,
    /// What the last grant's fate suggests to ask for.
    want: Wanted,
    touched_at: BootInstant,
}

/// Whose turn it is to call the store about a key.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

/// Permits to spend.
pub(super) struct Grant {
    id: GrantId,
    left: u32,
    /// Under this limit; a reload may bring another.
    limit: u32,
    life: Duration,
    asked_at: BootInstant,
    uses: Vec<Duration>,
}

#[derive(Clone, Copy)]
struct PastUse {
    grant: GrantId,
    number: u32,
    at: BootInstant,
}

#[derive(Clone, Copy)]
struct Denial {
    until: BootInstant,
    /// Under this limit; a reload may bring another.
    limit: u32,
}

/// What the store last said of the window.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) limit: u32,
    /// Permits that nobody holds.
    pub(super) remaining: u32,
    pub(super) reset_at: BootInstant,
}

/// What can be said without the store.
pub(super) enum Local {
    /// A permit was held and is now spent.
    Taken(Standing),
    /// The window is full for so long.
    Full(Duration),
    /// The store must be asked, when the turn comes.
    Ask(Turn),
}

impl Held {
    /// Spends a permit that is held, or says what stands in the way.
    pub(super) fn take(&mut self, now: BootInstant, limit: u32) -> Local {
        self.touched_at = now;
        if self.spend(now, limit)
            && let Some(standing) = self.standing(now)
        {
            return Local::Taken(standing);
        }
        match self.denied.filter(|denial| denial.limit == limit && denial.until > now) {
            Some(denial) => Local::Full(denial.until.since(now)),
            None => Local::Ask(Arc::clone(&self.turn)),
        }
    }

    fn spend(&mut self, now: BootInstant, limit: u32) -> bool {
        let is_good = |grant: &&mut Grant| grant.left > 0 && grant.limit == limit && grant.is_alive(now);
        let Some(grant) = self.grant.as_mut().filter(is_good) else { return false };
        grant.left -= 1;
        grant.uses.push(now.since(grant.asked_at));
        true
    }

    /// How full the window was at the store's last word, counting what this replica holds as free; nothing once that
    /// is over a minute ago.
    pub(super) fn standing(&self, now: BootInstant) -> Option<Standing> {
        let seen = self.seen.filter(|_| now.since(self.touched_at) < WINDOW)?;
        let left = self.grant.as_ref().map_or(0, |grant| grant.left);
        let reset = seen.reset_at.since(now).min(WINDOW);
        Some(Standing { limit: seen.limit, remaining: seen.remaining.saturating_add(left), reset })
    }

    /// Closes the grant that is over; answers how many permits to ask for and what to report.
    pub(super) fn begin_call(&mut self, now: BootInstant) -> (Wanted, Vec<GrantReport>) {
        if let Some(grant) = self.grant.take() {
            self.want = grant.next_want(now);
            self.remember(&grant, now);
            let uses = grant.uses.iter().map(|used| *used + *used / DRIFT_SHARE).collect();
            self.reports.push(GrantReport { id: grant.id, uses });
        }
        let want = Wanted { soon: self.want.soon.clamp(1, WANT_MAX), long: self.want.long.min(WANT_MAX) };
        (want, std::mem::take(&mut self.reports))
    }

    fn remember(&mut self, grant: &Grant, now: BootInstant) {
        while self.past.front().is_some_and(|oldest| now.since(oldest.at) > REMEMBERED) {
            self.past.pop_front();
        }
        make_first_room(&mut self.past, grant.uses.len());
        self.past.extend((1..).zip(&grant.uses).map(|(number, offset)| PastUse {
            grant: grant.id,
            number,
            at: grant.asked_at.plus(*offset),
        }));
    }

    /// Which partition the key lives in.
    pub(super) fn lives_in(&mut self, partition: Partition) {
        self.partition = partition;
    }

    /// What a store that may have forgotten it must be told of the last minute. Permits that are left are given up, since
    /// such a store does not count them; those of a call under way too.
    pub(super) fn recall(&mut self, now: BootInstant, partition: Partition) -> Vec<RecalledUse> {
        if self.partition != partition {
            return Vec::new();
        }
        self.recalls += 1;
        if let Some(grant) = self.grant.take() {
            self.remember(&grant, now);
        }
        self.reports.clear();
        let recent = self.past.iter().filter(|used| now.since(used.at) <= REMEMBERED);
        recent.map(|used| RecalledUse { grant: used.grant, number: used.number, age: now.since(used.at) }).collect()
    }

    /// How often it was recalled; a grant that was asked for before the last time must not be used.
    pub(super) fn recalls(&self) -> u64 {
        self.recalls
    }

    /// Takes over a grant and what the store said with it.
    pub(super) fn granted(&mut self, grant: Grant, seen: Seen) {
        self.grant = Some(grant);
        self.seen = Some(seen);
        self.denied = None;
        self.failure = None;
    }

    /// Remembers that the window is full.
    pub(super) fn denied(&mut self, until: BootInstant, limit: u32) {
        self.denied = Some(Denial { until, limit });
        self.seen = Some(Seen { limit, remaining: 0, reset_at: until });
        self.failure = None;
    }

    /// Remembers that the store did not answer, for those who wait for the same answer.
    pub(super) fn failed(&mut self, at: BootInstant, error: StoreError) {
        self.failure = Some(Box::new((at, error)));
    }

    /// The failure of a call that ended while somebody waited.
    pub(super) fn failure_since(&self, waiting_since: BootInstant) -> Option<StoreError> {
        self.failure.as_ref().filter(|failure| failure.0 >= waiting_since).map(|failure| failure.1.clone())
    }

    /// Keeps reports of which nobody knows whether they arrived.
    pub(super) fn put_back(&mut self, mut reports: Vec<GrantReport>) {
        reports.append(&mut self.reports);
        self.reports = reports;
    }

    /// When it was last asked for a permit.
    pub(super) fn touched_at(&self) -> BootInstant {
        self.touched_at
    }
}

impl Grant {
    /// A grant of `count` permits; room for all its uses is made here, so that spending needs none.
    pub(super) fn new(id: GrantId, (count, life): (u32, Duration), limit: u32, asked_at: BootInstant) -> Self {
        let room = usize::try_from(count.min(WANT_MAX)).unwrap_or(0);
        Self { id, left: count, limit, life, asked_at, uses: Vec::with_capacity(room) }
    }

    fn is_alive(&self, now: BootInstant) -> bool {
        now.since(self.asked_at) <= self.life - self.life / DRIFT_SHARE
    }

    /// For the next second: twice as many after a grant that was too small for its own, else as many as were used in a
    /// second of its life, so that next to the limit little is left unused. For longer: as many as go on at this rate.
    fn next_want(&self, now: BootInstant) -> Wanted {
        let (used, passed) = (u32::try_from(self.uses.len()).unwrap_or(u32::MAX), now.since(self.asked_at));
        let soon =
            if self.left == 0 && passed <= GRANT_LIFE { used.saturating_mul(2) } else { scaled(used, passed.min(self.life), GRANT_LIFE) };
        Wanted { soon, long: scaled(used, passed, GRANT_LIFE_LONG).min(used.saturating_mul(GROWTH_MAX)) }
    }
}

/// What was used in the time that has passed becomes in another time, rounded up.
fn scaled(used: u32, passed: Duration, time: Duration) -> u32 {
    let grown = (u128::from(used) * time.as_nanos()).div_ceil(passed.as_nanos().max(1));
    u32::try_from(grown).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: BootInstant = BootInstant::from_nanos(1_000_000_000_000);

    fn after_ms(ms: u64) -> BootInstant {
        START.plus(Duration::from_millis(ms))
    }

    fn grant(held: &mut Held, count: u32, asked_at: BootInstant) {
        let seen = Seen { limit: 1_000, remaining: 500, reset_at: asked_at.plus(WINDOW) };
        held.granted(Grant::new(GrantId(asked_at.nanos()), (count, GRANT_LIFE), 1_000, asked_at), seen);
    }

    fn is_taken(local: &Local) -> bool {
        matches!(local, Local::Taken(_))
    }

    #[test]
    fn a_permit_can_be_spent_for_a_second_by_either_clock_from_before_the_asking() {
        let mut held = Held::default();
        grant(&mut held, 3, START);
        assert!(is_taken(&held.take(after_ms(0), 1_000)));
        assert!(is_taken(&held.take(after_ms(640), 1_000)));
        assert!(matches!(held.take(after_ms(985), 1_000), Local::Ask(_)));
        let (_, reports) = held.begin_call(after_ms(1_001));
        assert_eq!(reports, [GrantReport { id: GrantId(START.nanos()), uses: vec![Duration::ZERO, Duration::from_millis(650)] }]);
        assert!(held.begin_call(after_ms(1_002)).1.is_empty(), "a report is made once");
        held.put_back(reports.clone());
        assert_eq!(held.begin_call(after_ms(1_003)).1, reports, "unless nobody knows whether it arrived");
    }

    #[test]
    fn a_store_that_forgot_is_told_each_use_of_the_last_minute_once_and_no_permit_outlives_it() {
        let mut held = Held::default();
        held.lives_in(Partition(1));
        grant(&mut held, 2, START);
        held.take(after_ms(10), 1_000);
        held.take(after_ms(20), 1_000);
        held.begin_call(after_ms(50));
        grant(&mut held, 3, after_ms(100));
        held.take(after_ms(200), 1_000);
        assert!(held.recall(after_ms(300), Partition(0)).is_empty(), "another partition has forgotten nothing of it");
        let told = |held: &mut Held, ms| -> Vec<(u64, u32, u128)> {
            let uses = held.recall(after_ms(ms), Partition(1));
            uses.iter().map(|used| (used.grant.0 - START.nanos(), used.number, used.age.as_millis())).collect()
        };
        let second = 100_000_000;
        assert_eq!(told(&mut held, 300), [(0, 1, 290), (0, 2, 280), (second, 1, 100)]);
        assert!(matches!(held.take(after_ms(301), 1_000), Local::Ask(_)), "what was left is given up");
        assert_eq!(told(&mut held, 61_015), [(0, 2, 60_995), (second, 1, 60_815)], "what cannot count any more is not told");
        assert_eq!(held.recalls(), 2);
    }

    #[test]
    fn demand_decides_how_many_are_asked_for() {
        let mut held = Held::default();
        assert_eq!(held.begin_call(START).0.soon, 1);
        let mut wants = Vec::new();
        for call in 0..8 {
            let at = after_ms(call * 10);
            let want = held.want.soon.max(1);
            grant(&mut held, want, at);
            while is_taken(&held.take(at, 1_000)) {}
            wants.push(held.begin_call(at).0.soon);
        }
        assert_eq!(wants, [2, 4, 8, 16, 32, 64, 64, 64], "a busy tool soon takes a second's permits at once");
        grant(&mut held, 64, START);
        held.take(START, 1_000);
        assert_eq!(held.begin_call(after_ms(5_000)).0, Wanted { soon: 1, long: 4 }, "a slow one takes single permits where few are left");
        grant(&mut held, 1, START);
        held.take(START, 1_000);
        assert_eq!(held.begin_call(after_ms(5_000)).0, Wanted { soon: 1, long: 4 }, "and goes on doing so");
        let seen = Seen { limit: 1_000, remaining: 500, reset_at: START.plus(WINDOW) };
        held.granted(Grant::new(GrantId(7), (60, GRANT_LIFE_LONG), 1_000, START), seen);
        (0..20).for_each(|second| assert!(is_taken(&held.take(after_ms(second * 900), 1_000)), "a long one serves it for long"));
        assert_eq!(held.begin_call(after_ms(20_000)).0, Wanted { soon: 1, long: 20 }, "as many as it used");
        held.granted(Grant::new(GrantId(8), (1, GRANT_LIFE), 1_000, START), seen);
        held.take(START, 1_000);
        assert_eq!(held.begin_call(after_ms(60)).0, Wanted { soon: 2, long: 4 }, "and grows in steps");
    }

    #[test]
    fn a_denial_holds_until_its_end_and_for_its_limit_only() {
        let mut held = Held::default();
        held.denied(after_ms(500), 1_000);
        assert!(matches!(held.take(after_ms(499), 1_000), Local::Full(left) if left == Duration::from_millis(1)));
        assert!(matches!(held.take(after_ms(499), 2_000), Local::Ask(_)));
        assert!(matches!(held.take(after_ms(500), 1_000), Local::Ask(_)));
    }

    #[test]
    fn a_grant_is_spent_under_its_limit_only() {
        let mut held = Held::default();
        grant(&mut held, 3, START);
        assert!(is_taken(&held.take(START, 1_000)));
        assert!(matches!(held.take(START, 999), Local::Ask(_)), "another limit is the store's to judge");
    }

    #[test]
    fn a_failure_is_shared_by_those_who_waited_for_the_call() {
        let mut held = Held::default();
        held.failed(after_ms(10), StoreError::Unavailable("away".into()));
        assert!(held.failure_since(after_ms(5)).is_some());
        assert!(held.failure_since(after_ms(11)).is_none());
        grant(&mut held, 1, after_ms(12));
        assert!(held.failure_since(after_ms(5)).is_none());
    }
}

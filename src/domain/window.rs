//! The exact sliding window (protocol 2), as the store keeps it: never more than `limit` uses in any 60 seconds.
//!
//! Kept are the exact times of use and the open grants. A use at `t` counts from `t` on and its permit is
//! free again at `t + 60 s`, to the nanosecond. A grant counts wholly from the moment it is made. A report replaces it by the times of
//! its uses; without a report it counts as wholly used at the last moment at which its permits could be spent. So a
//! crash, a freeze or a lost answer only makes a permit count for longer, never for less. That holds for grants of any
//! life; far from the limit they live longer, so that the store is asked less often.
//!
//! Pure: the caller brings the time, and keeps one window per key.

use std::collections::VecDeque;
use std::time::Duration;

use super::BootInstant;

/// Length of every window.
pub const WINDOW: Duration = Duration::from_secs(60);
/// How long after it was asked for a grant's permits may be spent, where few are left.
pub const GRANT_LIFE: Duration = Duration::from_secs(1);
/// The same for a grant that leaves at least half of the limit free: one call serves a slow tool for so long.
pub const GRANT_LIFE_LONG: Duration = Duration::from_secs(20);
/// One grant takes at most this part of what is free, so that permits near exhaustion are not stranded in a replica.
pub const GRANT_SHARE: u32 = 16;

/// Names a grant of permits within its key's window.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GrantId(pub u64);

/// A grant that is over: when its permits were used, counted from the moment before the grant was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GrantReport {
    /// Which grant.
    pub id: GrantId,
    /// Each use, as time since the replica asked for the grant.
    pub uses: Vec<Duration>,
}

/// A use of which the store is told again, since it may have forgotten it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecalledUse {
    /// The grant that it was a permit of.
    pub grant: GrantId,
    /// Its place in the report of that grant, from 1.
    pub number: u32,
    /// How long ago.
    pub age: Duration,
}

/// What a window answers to a request for permits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permits {
    /// Permits to spend.
    Granted {
        /// Names the grant in a later report.
        id: GrantId,
        /// How many; at least one.
        count: u32,
        /// How long after the moment before it was asked for they may be spent.
        life: Duration,
        /// What is left of the window after this grant.
        remaining: u32,
        /// Until the oldest use leaves the window; at most 60 s.
        reset: Duration,
    },
    /// The window is full.
    Full {
        /// Until the next permit is free: one nanosecond earlier it is not.
        retry_after: Duration,
    },
}

/// How many permits a replica can use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    /// Within [`GRANT_LIFE`].
    pub soon: u32,
    /// Within [`GRANT_LIFE_LONG`]; one or none asks for no such grant.
    pub long: u32,
}

/// The window of one key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Times of use, oldest first; 8 bytes each, at most as many as were ever granted within 60 s.
    uses: VecDeque<BootInstant>,
    /// Grants without a report, those first that are over first.
    open: VecDeque<OpenGrant>,
    /// The latest moment seen, so that a caller who read the clock too early cannot turn it back.
    latest: BootInstant,
    last_grant: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct OpenGrant {
    id: GrantId,
    granted_at: BootInstant,
    life: Duration,
    count: u32,
}

impl OpenGrant {
    /// When its permits are free again if nobody reports.
    fn released_at(&self) -> BootInstant {
        self.granted_at.plus(self.life).plus(WINDOW)
    }
}

impl Window {
    /// A window that remembers uses from before, in any order.
    pub fn with_uses<I: IntoIterator<Item = BootInstant>>(uses: I) -> Self {
        let mut uses: Vec<BootInstant> = uses.into_iter().collect();
        uses.sort_unstable();
        Self { uses: uses.into(), ..Self::default() }
    }

    /// Closes the reported grants, then grants permits or says when one will be free.
    ///
    /// A report of an unknown grant changes nothing, so that reports may be repeated.
    pub fn request(&mut self, now: BootInstant, want: Wanted, reports: &[GrantReport], limit: u32) -> Permits {
        self.latest = self.latest.max(now);
        reports.iter().for_each(|report| self.close(report));
        self.expire();
        let available = u64::from(limit).saturating_sub(self.occupied());
        let Some(available) = u32::try_from(available).ok().filter(|available| *available > 0) else {
            return Permits::Full { retry_after: self.retry_after(limit) };
        };
        let most = (available / GRANT_SHARE).max(1);
        let long = want.long.min(most);
        let is_far = long > 1 && u64::from(available - long) * 2 >= u64::from(limit);
        let (count, life) = if is_far { (long, GRANT_LIFE_LONG) } else { (want.soon.clamp(1, most), GRANT_LIFE) };
        let id = self.open_grant(count, life);
        Permits::Granted { id, count, life, remaining: available - count, reset: self.reset() }
    }

    /// Whether nothing counts any more at `now`, so that the window need not be kept.
    pub fn is_idle(&mut self, now: BootInstant) -> bool {
        self.latest = self.latest.max(now);
        self.expire();
        self.uses.is_empty() && self.open.is_empty()
    }

    /// Replaces a grant by its uses. Each is counted from the store's time of the grant, which is no earlier than
    /// the replica's "before asking", so a use is never placed too early.
    fn close(&mut self, report: &GrantReport) {
        let Some(place) = self.open.iter().position(|grant| grant.id == report.id) else { return };
        let Some(grant) = self.open.remove(place) else { return };
        let most = usize::try_from(grant.count).unwrap_or(usize::MAX);
        for offset in report.uses.iter().take(most) {
            self.insert_use(grant.granted_at.plus((*offset).min(grant.life)));
        }
    }

    /// Keeps the order; a report is nearly always the newest, so this is nearly always a push.
    fn insert_use(&mut self, at: BootInstant) {
        let place = self.uses.partition_point(|known| *known <= at);
        make_first_room(&mut self.uses, 1);
        self.uses.insert(place, at);
    }

    fn expire(&mut self) {
        let now = self.latest;
        while self.uses.front().is_some_and(|oldest| oldest.plus(WINDOW) <= now) {
            self.uses.pop_front();
        }
        while self.open.front().is_some_and(|oldest| oldest.released_at() <= now) {
            self.open.pop_front();
        }
    }

    /// Permits that cannot be granted: uses within the window and all of the open grants.
    fn occupied(&self) -> u64 {
        let open: u64 = self.open.iter().map(|grant| u64::from(grant.count)).sum();
        u64::try_from(self.uses.len()).unwrap_or(u64::MAX).saturating_add(open)
    }

    /// Ids grow with time, so that a window made anew does not repeat those of its predecessor.
    fn open_grant(&mut self, count: u32, life: Duration) -> GrantId {
        self.last_grant = self.latest.nanos().max(self.last_grant.saturating_add(1));
        let id = GrantId(self.last_grant);
        let grant = OpenGrant { id, granted_at: self.latest, life, count };
        let place = self.open.partition_point(|known| known.released_at() <= grant.released_at());
        make_first_room(&mut self.open, 1);
        self.open.insert(place, grant);
        id
    }

    /// Walks the releases in the order of time until one permit more than `limit` demands is free. That is more
    /// than one release only after `limit` was lowered.
    fn retry_after(&self, limit: u32) -> Duration {
        let mut missing = (self.occupied() + 1).saturating_sub(u64::from(limit));
        let mut uses = self.uses.iter().map(|used| (used.plus(WINDOW), 1)).peekable();
        let mut open = self.open.iter().map(|grant| (grant.released_at(), u64::from(grant.count))).peekable();
        loop {
            let use_is_next = match (uses.peek(), open.peek()) {
                (Some(used), Some(grant)) => used.0 <= grant.0,
                (used, _) => used.is_some(),
            };
            let Some((at, permits)) = (if use_is_next { uses.next() } else { open.next() }) else { return WINDOW };
            if permits >= missing {
                return at.since(self.latest);
            }
            missing -= permits;
        }
    }

    fn reset(&self) -> Duration {
        let used = self.uses.front().map(|oldest| oldest.plus(WINDOW));
        let granted = self.open.front().map(OpenGrant::released_at);
        used.into_iter().chain(granted).min().map_or(WINDOW, |at| at.since(self.latest).min(WINDOW))
    }
}

/// Room for exactly so many where there is nothing yet: a queue grows by four at first, and most keys have one use and one grant.
pub fn make_first_room<T>(queue: &mut VecDeque<T>, count: usize) {
    if queue.is_empty() {
        queue.reserve_exact(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: BootInstant = BootInstant::from_nanos(1_000_000_000_000);

    fn soon(soon: u32) -> Wanted {
        Wanted { soon, long: 0 }
    }

    fn granted(decision: Permits) -> Option<(GrantId, u32)> {
        match decision {
            Permits::Granted { id, count, .. } => Some((id, count)),
            Permits::Full { .. } => None,
        }
    }

    /// The most uses in any half-open 60 s window, counted the naive way.
    fn fullest(uses: &[BootInstant]) -> usize {
        let within = |end: BootInstant| uses.iter().filter(|used| **used <= end && used.plus(WINDOW) > end).count();
        uses.iter().map(|end| within(*end)).max().unwrap_or(0)
    }

    #[test]
    fn a_thousand_in_a_row_are_granted_and_the_next_waits_for_the_first_to_leave() {
        let (mut window, mut reports, mut now, mut used) = (Window::default(), Vec::new(), START, 0);
        let retry_after = loop {
            now = now.plus(Duration::from_millis(1));
            match window.request(now, soon(64), &reports, 1_000) {
                Permits::Granted { id, count, remaining, .. } => {
                    used += count;
                    assert_eq!(remaining, 1_000 - used);
                    reports = vec![GrantReport { id, uses: vec![Duration::ZERO; count as usize] }];
                }
                Permits::Full { retry_after } => break retry_after,
            }
        };
        assert_eq!(used, 1_000);
        assert_eq!(now.plus(retry_after), START.plus(Duration::from_millis(1)).plus(WINDOW));
    }

    #[test]
    fn a_steady_sixteen_a_second_is_never_refused() {
        let (mut window, mut reports, mut want) = (Window::default(), Vec::new(), 1);
        let mut held: Option<(GrantId, u32, BootInstant, Duration, Vec<Duration>)> = None;
        for tick in 0..16 * 200_u64 {
            let now = START.plus(Duration::from_micros(62_500) * tick as u32);
            let spendable = held.as_ref().is_some_and(|grant| grant.1 > 0 && now.since(grant.2) <= grant.3);
            if !spendable {
                if let Some((id, _, _, _, uses)) = held.take() {
                    want = (uses.len() as u32 * 2).clamp(1, 64);
                    reports = vec![GrantReport { id, uses }];
                }
                let Permits::Granted { id, count, life, .. } = window.request(now, Wanted { soon: want, long: 64 }, &reports, 1_000) else {
                    panic!("a permit is free");
                };
                held = Some((id, count, now, life, Vec::new()));
            }
            let grant = held.as_mut().expect("just granted");
            grant.1 -= 1;
            grant.4.push(now.since(grant.2));
        }
    }

    #[test]
    fn a_grant_lives_long_only_where_it_leaves_half_of_the_limit_free() {
        let want = Wanted { soon: 3, long: 40 };
        let life = |used: usize| match Window::with_uses(vec![START; used]).request(START, want, &[], 1_000) {
            Permits::Granted { count, life, .. } => (count, life),
            Permits::Full { .. } => (0, Duration::ZERO),
        };
        assert_eq!([life(0), life(467), life(468)], [(40, GRANT_LIFE_LONG), (33, GRANT_LIFE_LONG), (3, GRANT_LIFE)]);
        assert_eq!([life(999), life(1_000)], [(1, GRANT_LIFE), (0, Duration::ZERO)]);
        let mut window = Window::default();
        let (id, _) = granted(window.request(START, want, &[], 1_000)).expect("the first");
        window.request(START, soon(1), &[], 1_000);
        let later = START.plus(GRANT_LIFE).plus(WINDOW);
        assert!(
            matches!(window.request(later, soon(1), &[], 1_000), Permits::Granted { remaining: 959, .. }),
            "the brief one is over first"
        );
        let used = [GrantReport { id, uses: vec![Duration::from_secs(30)] }];
        window.request(later, soon(1), &used, 1_000);
        let all = GRANT_LIFE_LONG + WINDOW;
        let left = [all - Duration::from_nanos(1), all].map(|passed| window.clone().request(START.plus(passed), soon(1), &[], 5));
        assert!(matches!(left[0], Permits::Granted { remaining: 1, .. }), "a use counts as of the end of its grant's life at the latest");
        assert!(matches!(left[1], Permits::Granted { remaining: 2, .. }));
    }

    #[test]
    fn an_unreported_grant_counts_as_used_at_the_end_of_its_life() {
        let mut window = Window::default();
        let (id, count) = granted(window.request(START, soon(1), &[], 1)).expect("the first");
        assert_eq!(count, 1);
        assert_eq!(window.request(START, soon(1), &[], 1), Permits::Full { retry_after: GRANT_LIFE + WINDOW });
        let unused = [GrantReport { id, uses: vec![] }];
        assert!(granted(window.request(START, soon(1), &unused, 1)).is_some());
    }

    #[test]
    fn a_reported_use_counts_from_its_own_time() {
        let mut window = Window::default();
        let (id, _) = granted(window.request(START, soon(1), &[], 1)).expect("the first");
        let (offset, later) = (Duration::from_millis(500), Duration::from_millis(700));
        let used = [GrantReport { id, uses: vec![offset] }];
        let retry_after = WINDOW + offset - later;
        assert_eq!(window.request(START.plus(later), soon(1), &used, 1), Permits::Full { retry_after });
    }

    #[test]
    fn a_lowered_limit_waits_until_enough_has_left() {
        let second = |n| START.plus(Duration::from_secs(n));
        let mut window = Window::with_uses((0..10).map(second));
        assert_eq!(window.request(second(10), soon(1), &[], 4), Permits::Full { retry_after: Duration::from_secs(56) });
        assert!(granted(window.request(second(66), soon(1), &[], 4)).is_some());
    }

    #[test]
    fn a_clock_read_too_early_does_not_turn_time_back() {
        let mut window = Window::with_uses([START]);
        assert!(granted(window.request(START.plus(WINDOW), soon(1), &[], 1)).is_some());
        assert!(granted(window.request(START, soon(1), &[], 1)).is_none());
    }

    #[test]
    fn a_window_is_idle_when_nothing_counts() {
        let mut window = Window::with_uses([START]);
        assert!(!window.is_idle(START.plus(WINDOW - Duration::from_nanos(1))));
        assert!(window.is_idle(START.plus(WINDOW)));
    }

    /// One replica of the simulation, as protocol 2 describes it.
    #[derive(Default)]
    struct Replica {
        asked: Option<(BootInstant, Wanted, Vec<GrantReport>)>,
        answer: Option<(BootInstant, Permits, Vec<GrantReport>)>,
        grant: Option<(GrantId, u32, BootInstant, Duration, Vec<Duration>)>,
        reports: Vec<GrantReport>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The message of the replica goes one step further: asked, taken by the store, answered.
        Message(Wanted),
        Spend,
        /// kill -9: grant, reports and messages are gone.
        Crash,
        /// The store decided, the replica never hears of it and will report again.
        LoseAnswer,
    }

    impl Replica {
        fn step(&mut self, step: Step, now: BootInstant, window: &mut Window, limit: u32, accepted: &mut Vec<BootInstant>) {
            match step {
                Step::Crash => *self = Self::default(),
                Step::LoseAnswer => {
                    if let Some((_, _, reports)) = self.answer.take() {
                        self.reports = reports;
                    }
                }
                Step::Spend => self.spend(now, accepted),
                Step::Message(want) => self.message(want, now, window, limit),
            }
        }

        fn spend(&mut self, now: BootInstant, accepted: &mut Vec<BootInstant>) {
            let Some((_, left, asked, life, uses)) = &mut self.grant else { return };
            if *left > 0 && now.since(*asked) <= *life {
                *left -= 1;
                uses.push(now.since(*asked));
                accepted.push(now);
            }
        }

        fn message(&mut self, want: Wanted, now: BootInstant, window: &mut Window, limit: u32) {
            if let Some((asked, decision, _)) = self.answer.take() {
                self.grant = match decision {
                    Permits::Granted { id, count, life, .. } => Some((id, count, asked, life, Vec::new())),
                    Permits::Full { .. } => None,
                };
            } else if let Some((asked, want, reports)) = self.asked.take() {
                self.answer = Some((asked, window.request(now, want, &reports, limit), reports));
            } else {
                self.reports.extend(self.grant.take().map(|(id, _, _, _, uses)| GrantReport { id, uses }));
                self.asked = Some((now, want, std::mem::take(&mut self.reports)));
            }
        }
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1_u32..40, 0_u32..40).prop_map(|(soon, long)| Step::Message(Wanted { soon, long })),
            16 => Just(Step::Spend),
            1 => Just(Step::Crash),
            1 => Just(Step::LoseAnswer),
        ]
    }

    /// On a grid of half seconds, so that uses and the ends of grants and windows often meet: a crowd at one moment,
    /// then half a grant's life, a long one's but for a little, or a window but for a little.
    fn pauses() -> impl Strategy<Value = Duration> {
        let halves = prop_oneof![40 => Just(0_u64), 5 => Just(1), 2 => 117_u64..=120, 1 => 38_u64..=41];
        halves.prop_map(|halves| Duration::from_millis(500 * halves))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn no_window_of_60_seconds_ever_holds_more_than_the_limit(
            limit in prop_oneof![1_u32..5, 32_u32..48],
            script in proptest::collection::vec((0_usize..3, steps(), pauses()), 1..1_500),
        ) {
            let mut window = Window::default();
            let mut replicas = [Replica::default(), Replica::default(), Replica::default()];
            let (mut now, mut accepted) = (START, Vec::new());
            for (who, step, pause) in script {
                now = now.plus(pause);
                replicas[who].step(step, now, &mut window, limit, &mut accepted);
            }
            prop_assert!(fullest(&accepted) <= limit as usize, "{} in 60 s", fullest(&accepted));
        }

        #[test]
        fn retry_after_is_exact_to_the_nanosecond(
            limit in prop_oneof![1_u32..20, 40_u32..60],
            lower in prop_oneof![1_u32..20, 40_u32..60],
            calls in proptest::collection::vec((0_u64..20_000_000_000, 1_u32..30, 0_u32..30, any::<bool>(), 0_u64..22_000_000_000), 1..80),
        ) {
            let (mut window, mut now, mut reports, one) = (Window::default(), START, Vec::new(), Wanted { soon: 1, long: 0 });
            for (pause, soon, long, is_reported, offset) in calls {
                now = now.plus(Duration::from_nanos(pause));
                let answer = granted(window.request(now, Wanted { soon, long }, &std::mem::take(&mut reports), limit));
                if let Some((id, count)) = answer.filter(|_| is_reported) {
                    reports.push(GrantReport { id, uses: vec![Duration::from_nanos(offset); count as usize / 2 + 1] });
                }
                for limit in [limit, lower] {
                    if let Permits::Full { retry_after } = window.clone().request(now, one, &[], limit) {
                        prop_assert!(retry_after > Duration::ZERO);
                        let just_before = now.plus(retry_after - Duration::from_nanos(1));
                        prop_assert!(granted(window.clone().request(just_before, one, &[], limit)).is_none());
                        prop_assert!(granted(window.clone().request(now.plus(retry_after), one, &[], limit)).is_some());
                    }
                }
            }
        }
    }
}

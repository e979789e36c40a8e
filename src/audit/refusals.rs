//! Alike refusals of one key within a second become one record with a count.
//!
//! The first is written at once. What follows within the second waits here and is written as one record when the second
//! is over, so that a tool in a loop costs one record a second and not one a request. What the full spool does not take
//! waits here too. A kill -9 loses at most the counts of that second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::spool::SpoolFull;
use crate::domain::{Action, AuditRecord, BootInstant, KeyId, Outcome};

/// How long alike refusals are counted together (contract, `count`).
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Most kinds of refusals that are counted at a time, each with a record of about a kilobyte. Beyond it refusals are written one by one.
const KINDS_MAX: usize = 8192;

/// What makes refusals alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Likeness {
    key: KeyId,
    action: Action,
    outcome: Outcome,
    reason: Option<String>,
}

#[derive(Clone, Debug)]
struct Counting {
    until: BootInstant,
    /// The first that is not written, with the number of all that are not.
    waiting: Option<AuditRecord>,
}

/// The refusals of the last second.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    kinds: HashMap<Likeness, Counting>,
}

impl Refusals {
    /// Counts a refusal, or gives it back because it is to be written now.
    pub(super) fn count(&mut self, record: AuditRecord, now: BootInstant) -> Option<AuditRecord> {
        let full = self.kinds.len() >= KINDS_MAX;
        match self.kinds.get_mut(&Likeness::of(&record)) {
            Some(counting) => {
                counting.add(record);
                None
            }
            None if full => Some(record),
            None => {
                self.kinds.insert(Likeness::of(&record), Counting { until: now.plus(WINDOW), waiting: None });
                Some(record)
            }
        }
    }

    /// Keeps a record that could not be written, if there is a place for it.
    pub(super) fn postpone(&mut self, record: AuditRecord, now: BootInstant) -> Result<(), SpoolFull> {
        let full = self.kinds.len() >= KINDS_MAX;
        match self.kinds.get_mut(&Likeness::of(&record)) {
            Some(counting) => counting.put_before(record),
            None if full => return Err(SpoolFull),
            None => {
                self.kinds.insert(Likeness::of(&record), Counting { until: now.plus(WINDOW), waiting: Some(record) });
            }
        }
        Ok(())
    }

    /// The records of the seconds that are over. A kind that was counted is counted on for another second.
    pub(super) fn due(&mut self, now: BootInstant) -> Vec<AuditRecord> {
        let mut due = Vec::new();
        self.kinds.retain(|_, counting| {
            if counting.until > now {
                return true;
            }
            counting.until = now.plus(WINDOW);
            let waiting = counting.waiting.take();
            let goes_on = waiting.is_some();
            due.extend(waiting);
            goes_on
        });
        due
    }

    /// Everything that waits, whether its second is over or not.
    pub(super) fn waiting(&mut self) -> Vec<AuditRecord> {
        self.kinds.values_mut().filter_map(|counting| counting.waiting.take()).collect()
    }

    /// Whether anything is being counted.
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

impl Likeness {
    fn of(record: &AuditRecord) -> Self {
        Self { key: record.key_id, action: record.action, outcome: record.outcome, reason: record.reason.clone() }
    }
}

impl Counting {
    fn add(&mut self, record: AuditRecord) {
        match &mut self.waiting {
            Some(first) => first.count = Some(number_of(first).saturating_add(number_of(&record).get())),
            None => self.waiting = Some(record),
        }
    }

    fn put_before(&mut self, record: AuditRecord) {
        if let Some(later) = self.waiting.replace(record) {
            self.add(later);
        }
    }
}

fn number_of(record: &AuditRecord) -> NonZeroU32 {
    record.count.unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(event: u128, reason: &str) -> AuditRecord {
        AuditRecord { outcome: Outcome::Refused("rate_limited"), reason: Some(reason.into()), ..AuditRecord::example(event) }
    }

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    fn counts(records: &[AuditRecord]) -> Vec<(u128, u32)> {
        records.iter().map(|record| (record.event_id.as_u128(), number_of(record).get())).collect()
    }

    #[test]
    fn the_first_is_written_at_once_and_the_rest_of_the_second_as_one() {
        let mut refusals = Refusals::default();
        assert!(refusals.count(refusal(1, "a"), at(0)).is_some());
        for event in 2..=5 {
            assert!(refusals.count(refusal(event, "a"), at(100)).is_none());
        }
        assert!(refusals.count(refusal(6, "b"), at(100)).is_some(), "another reason is not alike");
        assert!(refusals.due(at(999)).is_empty());
        assert_eq!(counts(&refusals.due(at(1000))), [(2, 4)]);
        assert!(refusals.count(refusal(7, "a"), at(1500)).is_none(), "a flood stays at one record a second");
        assert_eq!(counts(&refusals.due(at(2000))), [(7, 1)]);
        assert!(refusals.due(at(3000)).is_empty());
        assert!(refusals.is_empty());
    }

    #[test]
    fn what_cannot_be_written_is_kept_with_its_count() {
        let mut refusals = Refusals::default();
        let first = refusals.count(refusal(1, "a"), at(0)).unwrap();
        refusals.count(refusal(2, "a"), at(0));
        refusals.postpone(first, at(0)).unwrap();
        let due = refusals.due(at(1000));
        assert_eq!(counts(&due), [(1, 2)]);
        refusals.count(refusal(3, "a"), at(1000));
        refusals.postpone(due[0].clone(), at(1000)).unwrap();
        assert_eq!(counts(&refusals.waiting()), [(1, 3)]);
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let mut refusals = Refusals::default();
        for kind in 0..KINDS_MAX {
            assert!(refusals.count(refusal(1, &kind.to_string()), at(0)).is_some());
        }
        assert!(refusals.count(refusal(2, "one more"), at(0)).is_some());
        assert!(refusals.count(refusal(3, "one more"), at(0)).is_some(), "written one by one");
        assert!(refusals.postpone(refusal(4, "one more"), at(0)).is_err());
        assert!(refusals.postpone(refusal(5, "7"), at(0)).is_ok());
    }
}

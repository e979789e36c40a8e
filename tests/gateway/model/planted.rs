//! Each oracle finds the violation that is planted for it, and finds nothing in the same story without it.
//!
//! Also planted is what looks like a violation and is none: an oracle that cries wolf is not listened to.

use super::super::journal::{Answered, Arrival, Attempt, Creation, Kill, Record, Revocation, Story, path_of, replica_name};
use super::{Duration, Moment, all, audit, changes, live_keys, refusals, revocation, sequences, undeserved, window};

const KEY: &str = "key-1";

fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

/// A request that was answered a millisecond later.
fn attempt(marker: u64, sent: Moment, status: u16) -> Attempt {
    let answer = Answered { at: sent + ms(1), status, request_id: Some(format!("request-{marker}")) };
    Attempt { marker, key: KEY.into(), replica: 0, life: 0, sent, answer: Some(answer) }
}

fn record(marker: u64, sequence: u64, outcome: &str) -> Record {
    Record {
        event_id: format!("event-{marker}"),
        action: "key.use".into(),
        outcome: outcome.into(),
        key: KEY.into(),
        request_id: Some(format!("request-{marker}")),
        path: path_of(marker, false),
        status: (outcome == "allowed").then_some(200),
        replica: replica_name(0),
        sequence: Some(sequence),
        count: 1,
    }
}

fn change(action: &str, key: &str) -> Record {
    Record {
        event_id: format!("{action} {key}"),
        action: action.into(),
        key: key.into(),
        outcome: "allowed".into(),
        count: 1,
        ..Record::default()
    }
}

impl Story {
    /// A request that was accepted, forwarded and recorded.
    fn accept(&mut self, marker: u64, sent: Moment) {
        self.attempts.push(attempt(marker, sent, 200));
        let (at, request_id) = (sent + ms(1), format!("request-{marker}"));
        self.arrivals.push(Arrival { at, marker, request_id, key: KEY.into() });
        let sequence = 1 + self.records.iter().filter(|record| record.sequence.is_some()).count() as u64;
        self.records.push(record(marker, sequence, "allowed"));
    }

    fn refuse(&mut self, marker: u64, sent: Moment, status: u16, code: &str) {
        self.attempts.push(attempt(marker, sent, status));
        let sequence = 1 + self.records.iter().filter(|record| record.sequence.is_some()).count() as u64;
        self.records.push(record(marker, sequence, code));
    }

    fn create(&mut self, key: &str, creator: &str, answered: Moment) {
        self.creations.push(Creation { key: key.into(), firm: "firm-1".into(), creator: creator.into(), answered });
        self.records.push(change("key.create", key));
    }

    fn revoke(&mut self, key: &str, sent: Moment) {
        self.revocations.push(Revocation { key: key.into(), sent, answered: Some((sent + ms(5), 200)) });
        self.records.push(change("key.revoke", key));
    }
}

/// A key is created, used three times, revoked, refused once.
fn honest() -> Story {
    let mut story = Story { limits: [3, 10, 5], ..Story::default() };
    story.create(KEY, "user-1", ms(1));
    for marker in 1..=3 {
        story.accept(marker, ms(10 * marker));
    }
    story.refuse(4, ms(40), 429, "rate_limited");
    story.revoke(KEY, ms(100));
    story.refuse(5, ms(200), 401, "invalid_key");
    story
}

#[track_caller]
fn finds(oracle: fn(&Story) -> Vec<String>, plant: impl FnOnce(&mut Story)) {
    let mut story = honest();
    assert!(oracle(&story).is_empty(), "{:?}", oracle(&story));
    plant(&mut story);
    let found = oracle(&story);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn an_honest_story_is_believed() {
    assert_eq!(all(&honest()), Vec::<String>::new());
}

#[test]
fn a_request_that_is_accepted_after_its_revocation_was_answered_is_found() {
    finds(revocation, |story| story.accept(9, ms(105)));
    // Without an answer, at another replica, seen by the upstream only.
    finds(revocation, |story| {
        story.accept(9, ms(150));
        let last = story.attempts.last_mut().expect("just made");
        (last.answer, last.replica) = (None, 1);
    });
    // Counted and then denied by its route: admitted all the same.
    finds(revocation, |story| story.attempts.push(attempt(9, ms(150), 403)));
    let mut story = honest();
    story.accept(9, ms(104));
    assert!(revocation(&story).is_empty(), "it was sent before the answer had come");
}

#[test]
fn a_process_that_refused_a_key_and_then_takes_it_is_found() {
    let refused_early = |story: &mut Story| {
        story.revocations[0].answered = None;
        story.refuse(8, ms(110), 401, "invalid_key");
        story.accept(9, ms(120));
    };
    finds(revocation, refused_early);
    let mut story = honest();
    refused_early(&mut story);
    story.attempts.last_mut().expect("just made").replica = 1;
    assert!(revocation(&story).is_empty(), "another replica may not know yet");
}

#[test]
fn a_live_key_that_is_called_invalid_is_found() {
    finds(undeserved, |story| story.attempts.push(attempt(9, ms(50), 401)));
}

#[test]
fn a_window_with_one_too_many_is_found_also_across_its_edges() {
    finds(window, |story| story.accept(9, ms(60_000)));
    finds(window, |story| story.attempts.push(attempt(9, ms(60_000), 403)));
    let mut story = honest();
    // It may have been decided up to a millisecond later than it was sent, when the first one had left the window.
    story.accept(9, ms(60_009));
    assert!(window(&story).is_empty());
    story.accept(10, ms(60_010));
    assert_eq!(window(&story).len(), 1, "the second and third are still in it");
}

#[test]
fn lost_invented_repeated_and_untrue_records_are_found() {
    finds(refusals, |story| story.records.retain(|record| record.event_id != "event-4"));
    finds(audit, |story| {
        story.records.retain(|record| record.event_id != "event-2");
        story.attempts[1].answer = None;
    });
    finds(audit, |story| story.records.push(record(2, 9, "allowed")));
    finds(audit, |story| story.records.push(record(77, 9, "allowed")));
    finds(audit, |story| {
        story.attempts.push(Attempt { answer: None, ..attempt(9, ms(50), 0) });
        story.records.push(record(9, 9, "allowed"));
    });
    let unknown = |story: &mut Story| {
        story.attempts[1].answer = None;
        story.records.iter_mut().filter(|record| record.event_id == "event-2").for_each(|record| record.outcome = "unknown".into());
    };
    finds(audit, unknown);
    let mut story = honest();
    unknown(&mut story);
    story.kills.push(Kill { replica: 0, life: 0 });
    assert!(audit(&story).is_empty(), "its gateway was killed");
    finds(refusals, |story| story.records.iter_mut().filter(|record| record.event_id == "event-4").for_each(|record| record.count = 2));
    finds(changes, |story| story.records.retain(|record| record.action != "key.revoke"));
    finds(changes, |story| story.records.push(Record { event_id: "again".into(), ..change("key.create", KEY) }));
    finds(audit, |story| story.records[1].key = "key-2".into());
}

#[test]
fn a_gap_and_a_repeat_in_the_sequences_are_found() {
    finds(sequences, |story| story.records.retain(|record| record.sequence != Some(2)));
    finds(sequences, |story| story.records.push(record(9, 2, "allowed")));
}

#[test]
fn one_live_key_too_many_is_found_and_a_revoked_one_frees_its_place() {
    finds(live_keys, |story| (0..6).for_each(|number| story.create(&format!("k{number}"), "user-1", ms(200))));
    finds(live_keys, |story| (0..11).for_each(|number| story.create(&format!("k{number}"), &format!("user-{number}"), ms(200))));
    let mut story = honest();
    (0..5).for_each(|number| story.create(&format!("k{number}"), "user-1", ms(200)));
    assert!(live_keys(&story).is_empty());
}

//! The promises as pure functions over the story of a run: each answers what it found broken, in words.
//!
//! An oracle is sound: it reports only what no order of events within the observed intervals can excuse. A request's
//! decision lies between the moment before it was sent and the moment after its arrival or answer; a key is surely live
//! from the answer of its creation to the sending of its first revocation. The tests below plant each violation.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::journal::{Arrival, Attempt, Moment, Story, marker_in, replica_name};

/// Length of every window.
const WINDOW: Duration = Duration::from_secs(60);
/// Violations of one kind that are told; the rest is counted.
const TOLD_MAX: usize = 8;

/// Looks for what breaks one promise; answers what it found, in words.
pub(super) type Oracle = fn(&Story) -> Vec<String>;

/// Everything that is promised.
pub(super) fn all(story: &Story) -> Vec<String> {
    let oracles: [(&str, Oracle); 8] = [
        ("revocation", revocation),
        ("no refusal without a cause", undeserved),
        ("window", window),
        ("audit", audit),
        ("refusals", refusals),
        ("changes", changes),
        ("sequences", sequences),
        ("live keys", live_keys),
    ];
    told(&oracles, story)
}

/// What a store that loses acknowledged writes cannot break while gateways live: they remember what was revoked and what
/// they have recorded. Creations and permits are lost with it, and a key that nobody knows leaves no record.
pub(super) fn what_outlives_losses(story: &Story) -> Vec<String> {
    told(&[("revocation", revocation), ("audit", audit), ("sequences", sequences)], story)
}

fn told(oracles: &[(&str, Oracle)], story: &Story) -> Vec<String> {
    let tell = |(name, oracle): &(&str, Oracle)| {
        let found = oracle(story);
        let more = found.len().saturating_sub(TOLD_MAX);
        let mut told: Vec<String> = found.into_iter().take(TOLD_MAX).map(|what| format!("{name}: {what}")).collect();
        if more > 0 {
            told.push(format!("{name}: and {more} more"));
        }
        told
    };
    oracles.iter().flat_map(tell).collect()
}

/// Requests by what they carry, and the upstream's view of them.
struct Requests<'a> {
    attempts: HashMap<u64, &'a Attempt>,
    arrivals: HashMap<u64, &'a Arrival>,
}

impl<'a> Requests<'a> {
    fn of(story: &'a Story) -> Self {
        let attempts = story.attempts.iter().map(|attempt| (attempt.marker, attempt)).collect();
        Self { attempts, arrivals: story.arrivals.iter().map(|arrival| (arrival.marker, arrival)).collect() }
    }

    /// The gateway let it pass: the upstream saw it, or the answer says so.
    fn is_accepted(&self, attempt: &Attempt) -> bool {
        self.arrivals.contains_key(&attempt.marker) || status(attempt).is_some_and(|status| status == 200 || status == 403)
    }
}

fn status(attempt: &Attempt) -> Option<u16> {
    attempt.answer.as_ref().map(|answer| answer.status)
}

/// When each key's first revocation was answered 200.
fn confirmed(story: &Story) -> HashMap<&str, Moment> {
    let mut confirmed: HashMap<&str, Moment> = HashMap::new();
    for revocation in &story.revocations {
        if let Some((at, 200)) = revocation.answered {
            let first = confirmed.entry(&revocation.key).or_insert(at);
            *first = at.min(*first);
        }
    }
    confirmed
}

/// When each key's first revocation was sent.
fn requested(story: &Story) -> HashMap<&str, Moment> {
    let mut requested: HashMap<&str, Moment> = HashMap::new();
    for revocation in &story.revocations {
        let first = requested.entry(&revocation.key).or_insert(revocation.sent);
        *first = revocation.sent.min(*first);
    }
    requested
}

/// K7: nothing sent after a revocation was answered is accepted by anybody; a process that has refused goes on refusing.
pub(super) fn revocation(story: &Story) -> Vec<String> {
    let (requests, confirmed, requested) = (Requests::of(story), confirmed(story), requested(story));
    let mut refused: HashMap<(&str, usize, u32), Moment> = HashMap::new();
    for attempt in &story.attempts {
        let after = requested.get(attempt.key.as_str());
        if let Some(answer) = attempt.answer.as_ref().filter(|answer| answer.status == 401 && after.is_some_and(|sent| *sent < answer.at)) {
            let first = refused.entry((&attempt.key, attempt.replica, attempt.life)).or_insert(answer.at);
            *first = answer.at.min(*first);
        }
    }
    let mut found = Vec::new();
    for attempt in story.attempts.iter().filter(|attempt| requests.is_accepted(attempt)) {
        if let Some(at) = confirmed.get(attempt.key.as_str()).filter(|at| **at <= attempt.sent) {
            let late = attempt.sent.saturating_sub(*at);
            found.push(format!("sent {late:?} after the revocation was answered, and accepted: {attempt:?}"));
        } else if let Some(at) = refused.get(&(&*attempt.key, attempt.replica, attempt.life)).filter(|at| **at <= attempt.sent) {
            let late = attempt.sent.saturating_sub(*at);
            found.push(format!("sent {late:?} after the same process had refused the key, and accepted: {attempt:?}"));
        }
    }
    found
}

/// K1: a created key is not called invalid before anybody asked for its revocation.
pub(super) fn undeserved(story: &Story) -> Vec<String> {
    let requested = requested(story);
    let created: HashMap<&str, Moment> = story.creations.iter().map(|creation| (creation.key.as_str(), creation.answered)).collect();
    let is_undeserved = |attempt: &&Attempt| {
        let is_created = created.get(attempt.key.as_str()).is_some_and(|at| *at <= attempt.sent);
        let is_invalid = attempt.answer.as_ref().filter(|answer| answer.status == 401);
        is_created && is_invalid.is_some_and(|answer| requested.get(attempt.key.as_str()).is_none_or(|sent| *sent > answer.at))
    };
    story.attempts.iter().filter(is_undeserved).map(|attempt| format!("a live key is refused as invalid: {attempt:?}")).collect()
}

/// K13: no 60 seconds hold more than the limit. A permit that was surely taken was taken between the moment before its
/// request was sent and the moment after it arrived, or was denied by its route.
pub(super) fn window(story: &Story) -> Vec<String> {
    let [limit, ..] = story.limits;
    let requests = Requests::of(story);
    let mut taken: HashMap<&str, Vec<(Moment, Moment)>> = HashMap::new();
    for attempt in &story.attempts {
        let denied = attempt.answer.as_ref().filter(|answer| answer.status == 403).map(|answer| answer.at);
        let by = requests.arrivals.get(&attempt.marker).map(|arrival| arrival.at).or(denied);
        if let Some(by) = by {
            taken.entry(&attempt.key).or_default().push((attempt.sent, by));
        }
    }
    let mut found = Vec::new();
    for (key, mut taken) in taken {
        taken.sort_unstable();
        let within = |(place, (start, _)): (usize, &(Moment, Moment))| {
            let later = taken[place..].iter().take_while(|(sent, _)| *sent < *start + WINDOW);
            (later.filter(|(_, by)| *by < *start + WINDOW).count(), *start)
        };
        if let Some((count, start)) = taken.iter().enumerate().map(within).max().filter(|(count, _)| *count > limit) {
            found.push(format!("{count} requests of {key} were counted within the 60 s from {start:?}; {limit} are allowed"));
        }
    }
    found
}

/// K16: everything forwarded is recorded once and truthfully, nothing is invented.
pub(super) fn audit(story: &Story) -> Vec<String> {
    let requests = Requests::of(story);
    let killed: HashSet<(usize, u32)> = story.kills.iter().map(|kill| (kill.replica, kill.life)).collect();
    let mut found = Vec::new();
    let (mut events, mut uses) = (HashSet::new(), HashMap::new());
    for record in &story.records {
        if !events.insert(record.event_id.as_str()) {
            found.push(format!("recorded twice: {record:?}"));
        }
        if let Some(request) = record.request_id.as_deref().filter(|_| record.action == "key.use") {
            uses.insert(request, record);
        }
    }
    for arrival in &story.arrivals {
        match uses.get(arrival.request_id.as_str()) {
            None => found.push(format!("forwarded and not recorded: {arrival:?}")),
            Some(record) if record.key != arrival.key => found.push(format!("recorded as another key's: {arrival:?} {record:?}")),
            Some(_) => {}
        }
    }
    for record in uses.values() {
        let marker = marker_in(&record.path);
        let Some(attempt) = marker.and_then(|marker| requests.attempts.get(&marker)) else {
            found.push(format!("recorded and never asked for: {record:?}"));
            continue;
        };
        let is_forwarded = requests.arrivals.contains_key(&attempt.marker);
        if record.outcome == "allowed" && record.status == Some(200) && !is_forwarded {
            found.push(format!("recorded as allowed and never forwarded: {record:?}"));
        }
        if record.outcome == "unknown" && !killed.contains(&(attempt.replica, attempt.life)) {
            found.push(format!("recorded as unknown though its gateway was not killed: {record:?}"));
        }
        if record.replica != replica_name(attempt.replica) {
            found.push(format!("recorded by another replica: {attempt:?} {record:?}"));
        }
    }
    for attempt in &story.attempts {
        let Some(answer) = attempt.answer.as_ref().filter(|answer| answer.status == 200) else { continue };
        let record = answer.request_id.as_deref().and_then(|id| uses.get(id));
        let may_be_unknown = killed.contains(&(attempt.replica, attempt.life));
        match record.map(|record| (record.outcome.as_str(), record.status)) {
            Some(("allowed", Some(200))) => {}
            Some(("unknown", _)) if may_be_unknown => {}
            _ => found.push(format!("answered 200 and not recorded so: {attempt:?} {record:?}")),
        }
    }
    found
}

/// K16: as many refusals are recorded as there were; counts in memory may die with their process.
pub(super) fn refusals(story: &Story) -> Vec<String> {
    let killed: HashSet<(usize, u32)> = story.kills.iter().map(|kill| (kill.replica, kill.life)).collect();
    let mut told: HashMap<(&str, String, &str), [u64; 3]> = HashMap::new();
    for attempt in &story.attempts {
        for (code, status) in [("rate_limited", 429), ("invalid_key", 401)] {
            let counts = told.entry((&attempt.key, replica_name(attempt.replica), code)).or_default();
            match attempt.answer.as_ref().map(|answer| answer.status) {
                Some(known) if known == status && killed.contains(&(attempt.replica, attempt.life)) => counts[1] += 1,
                Some(known) if known == status => counts[0] += 1,
                Some(_) => {}
                None => counts[1] += 1,
            }
        }
    }
    for record in story.records.iter().filter(|record| record.action == "key.use") {
        let code = record.outcome.as_str();
        if code == "rate_limited" || code == "invalid_key" {
            told.entry((&record.key, record.replica.clone(), code)).or_default()[2] += record.count;
        }
    }
    let is_wrong = |[sure, possible, recorded]: &[u64; 3]| recorded < sure || *recorded > sure + possible;
    told.into_iter()
        .filter(|(_, counts)| is_wrong(counts))
        .map(|(what, [sure, possible, recorded])| {
            format!("{what:?} was refused {sure} times (and perhaps {possible} more), recorded {recorded}")
        })
        .collect()
}

/// K16: each creation and each revocation that was answered stands in the log once.
pub(super) fn changes(story: &Story) -> Vec<String> {
    let mut recorded: HashMap<(&str, &str), usize> = HashMap::new();
    for record in story.records.iter().filter(|record| record.action != "key.use") {
        *recorded.entry((&record.action, &record.key)).or_default() += 1;
    }
    let created = story.creations.iter().map(|creation| ("key.create", creation.key.as_str()));
    let revoked = confirmed(story).into_keys().map(|key| ("key.revoke", key));
    let missing =
        created.chain(revoked).filter(|what| !recorded.contains_key(what)).map(|what| format!("answered and not recorded: {what:?}"));
    let repeated = recorded.iter().filter(|(_, count)| **count > 1).map(|(what, count)| format!("recorded {count} times: {what:?}"));
    missing.chain(repeated).collect()
}

/// K16: within a replica, sequences are 1, 2, 3, …: a gap would be a loss.
pub(super) fn sequences(story: &Story) -> Vec<String> {
    let mut spools: HashMap<&str, Vec<u64>> = HashMap::new();
    for record in &story.records {
        if let Some(sequence) = record.sequence {
            spools.entry(&record.replica).or_default().push(sequence);
        }
    }
    let mut found = Vec::new();
    for (replica, mut all) in spools {
        all.sort_unstable();
        if let Some((place, sequence)) = (1..).zip(&all).find(|(place, sequence)| place != *sequence) {
            found.push(format!("{replica}: where {place} should be is {sequence}, of {} records", all.len()));
        }
    }
    found
}

/// K12: never more live keys of a firm and of a creator than allowed.
pub(super) fn live_keys(story: &Story) -> Vec<String> {
    let [_, firm_max, creator_max] = story.limits;
    let requested = requested(story);
    let mut sets: HashMap<(&str, Option<&str>), Vec<[Moment; 2]>> = HashMap::new();
    for creation in &story.creations {
        let until = requested.get(creation.key.as_str()).copied().unwrap_or(Moment::MAX);
        for creator in [None, Some(creation.creator.as_str())] {
            sets.entry((&creation.firm, creator)).or_default().push([creation.answered, until]);
        }
    }
    let mut found = Vec::new();
    for ((firm, creator), live) in sets {
        let max = if creator.is_some() { creator_max } else { firm_max };
        // The number only grows where a key begins to be surely live.
        let at = |moment: Moment| live.iter().filter(|[from, until]| *from <= moment && moment < *until).count();
        if let Some(count) = live.iter().map(|[from, _]| at(*from)).max().filter(|count| *count > max) {
            found.push(format!("{firm} {creator:?} had {count} live keys; {max} are allowed"));
        }
    }
    found
}

#[cfg(test)]
#[path = "planted.rs"]
mod planted;

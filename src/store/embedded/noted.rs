//! What a batch of uses tells of their keys: the last use, and each tool and network with its newest time.
//!
//! It is gathered in the texts where they lie, and only then joined with what the file knows of the key: so a key costs one
//! row for each batch, however often it was used. The same is kept as if each use had been noted by itself.

use ipnet::IpNet;

use crate::domain::Timestamp;
use crate::store::LastUse;
use crate::store::uses::{HourOfUse, KeyUses, SEEN_KEPT, SEEN_MAX, Seen, count_hour, hour_of, network_of, seen_with, tool_name};

/// One use that was allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use<'a> {
    pub(super) at: Timestamp,
    pub(super) user_agent: Option<&'a str>,
    pub(super) client_ip: Option<&'a str>,
}

/// What the uses of one key tell.
#[derive(Default)]
pub(super) struct Noted<'a> {
    last: Option<Use<'a>>,
    tools: Newest<&'a str>,
    networks: Newest<IpNet>,
    hours: Vec<HourOfUse>,
}

impl<'a> Noted<'a> {
    /// Adds a use.
    pub(super) fn note(&mut self, one: Use<'a>) {
        if self.last.is_none_or(|last| last.at <= one.at) {
            self.last = Some(one);
        }
        let hour = hour_of(one.at);
        match self.hours.last_mut().filter(|last| last.hour == hour) {
            Some(last) => last.count += 1,
            None => self.hours.push(HourOfUse { hour, count: 1 }),
        }
        self.tools.note(one.user_agent.and_then(tool_name), one.at);
        self.networks.note(one.client_ip.and_then(network_of), one.at);
    }

    /// Adds it all to what was known before.
    pub(super) fn add_to(&self, uses: &mut KeyUses) {
        if let Some(last) = self.last.filter(|last| uses.last.as_ref().is_none_or(|known| known.at <= last.at)) {
            let text = |text: Option<&str>| text.map(str::to_owned);
            uses.last = Some(LastUse { at: last.at, user_agent: text(last.user_agent), client_ip: text(last.client_ip) });
        }
        self.hours.iter().for_each(|counted| count_hour(&mut uses.hours, *counted));
        self.tools.0.iter().for_each(|(tool, at)| note_seen(&mut uses.tools, (*tool).to_owned(), *at));
        self.networks.0.iter().for_each(|(network, at)| note_seen(&mut uses.networks, network.to_string(), *at));
    }
}

/// The newest few of something, in no order: more would not be kept anyway.
struct Newest<T>(Vec<(T, Timestamp)>);

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Newest<T> {
    fn note(&mut self, what: Option<T>, at: Timestamp) {
        let Some(what) = what else { return };
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| *known == what) {
            *known = at.max(*known);
        } else if self.0.len() < SEEN_MAX {
            self.0.push((what, at));
        } else if let Some(oldest) = self.0.iter_mut().rev().min_by_key(|(_, at)| *at).filter(|(_, oldest)| *oldest < at) {
            *oldest = (what, at);
        }
    }
}

/// Keeps the newest few, newest first.
fn note_seen(seen: &mut Vec<Seen>, what: String, at: Timestamp) {
    match seen.iter_mut().find(|known| known.what == what) {
        Some(known) => known.at = known.at.max(at),
        None => seen.push(Seen { what, at }),
    }
    seen.sort_by_key(|known| std::cmp::Reverse(known.at));
    seen.truncate(SEEN_MAX);
}

/// Tools, then networks, that the key was seen with in the last 30 days.
pub(super) fn seen_lately(uses: &KeyUses, now: Timestamp) -> Vec<String> {
    let since = now.minus(SEEN_KEPT);
    let lately = |seen: &&Seen| seen.at >= since;
    let what = |seen: &'_ Seen| -> String { seen.what.clone() };
    seen_with(uses.tools.iter().filter(lately).map(what), uses.networks.iter().filter(lately).map(what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::uses::{network, tool};

    #[test]
    fn a_tool_is_the_product_and_a_network_more_than_a_machine() {
        assert_eq!(tool("claude-mcp/1.2 (linux)").as_deref(), Some("claude-mcp"));
        assert_eq!(tool("My Tool").as_deref(), Some("My"));
        assert_eq!(tool("/1.0"), None);
        assert_eq!(tool(&"é".repeat(70)), Some("é".repeat(64)));
        assert_eq!(network("203.0.113.9").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(network("::ffff:203.0.113.9").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(network("2001:db8:1:2::3").as_deref(), Some("2001:db8:1::/48"));
        assert_eq!(network("localhost"), None);
    }

    #[test]
    fn the_newest_eight_are_kept_for_thirty_days() {
        let mut uses = KeyUses::default();
        let day = |days: i64| Timestamp::from_micros(days * 86_400_000_000);
        for number in 0..20 {
            note_seen(&mut uses.tools, format!("tool-{number}"), day(number));
        }
        assert_eq!(uses.tools.len(), SEEN_MAX);
        assert_eq!(uses.tools[0].what, "tool-19");
        assert_eq!(seen_lately(&uses, day(19 + 28)).len(), 3, "19, 18 and 17 are within 30 days");
        assert_eq!(seen_lately(&uses, day(19 + 31)).len(), 0);
    }

    proptest! {
        /// Times are all different, as only then there is one order.
        #[test]
        fn a_batch_leaves_what_its_uses_would_one_by_one(tools in proptest::collection::vec(0_u8..14, 1..60), step in 1_usize..60, cut in 0_usize..60) {
            let agents: Vec<String> = tools.iter().map(|tool| format!("tool-{tool}/1")).collect();
            let count = agents.len();
            let uses_of = |place: usize| Use {
                at: Timestamp::from_micros((place * step % 61) as i64),
                user_agent: Some(&*agents[place]),
                client_ip: Some("127.0.0.1"),
            };
            let note = |batches: Vec<std::ops::Range<usize>>| {
                let mut uses = KeyUses::default();
                for batch in batches {
                    let mut noted = Noted::default();
                    batch.for_each(|place| noted.note(uses_of(place)));
                    noted.add_to(&mut uses);
                }
                uses
            };
            let cut = cut.min(count);
            prop_assert_eq!(note(vec![0..cut, cut..count]), note((0..count).map(|place| place..place + 1).collect()));
        }
    }
}

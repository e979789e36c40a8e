//! What a key's uses tell about whoever holds it: the tool and the network, in words that both stores keep.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::LastUse;
use crate::domain::Timestamp;

/// Tools and networks kept of each key: enough for a person to look through.
pub(super) const SEEN_MAX: usize = 8;
/// How long a tool or network is remembered after it was last seen.
pub(super) const SEEN_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Hours of which uses are counted: a day, the running one included.
pub(crate) const HOURS_KEPT: usize = 24;
/// Longest tool name kept; a User-Agent may be anything.
const TOOL_CHARS_MAX: usize = 64;

/// What a key's uses have told: kept apart from its record, which never changes but for its revocation.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeyUses {
    pub(crate) last: Option<LastUse>,
    pub(crate) tools: Vec<Seen>,
    pub(crate) networks: Vec<Seen>,
    /// Oldest first, at most [`HOURS_KEPT`]; hours without uses are absent.
    #[serde(default)]
    pub(crate) hours: Vec<HourOfUse>,
}

/// Something a key was used with, and when last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) what: String,
    pub(crate) at: Timestamp,
}

/// How often a key was used within one hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HourOfUse {
    /// Hours since 1970.
    pub hour: u64,
    /// Uses that were allowed.
    pub count: u64,
}

/// The hour in which a moment lies; the first for what is before 1970.
pub(crate) fn hour_of(at: Timestamp) -> u64 {
    u64::try_from(at.seconds() / 3_600).unwrap_or(0)
}

/// Adds uses to an hour, and forgets hours that are over a day older than the newest.
pub(super) fn count_hour(hours: &mut Vec<HourOfUse>, counted: HourOfUse) {
    match hours.iter_mut().find(|known| known.hour == counted.hour) {
        Some(known) => known.count = known.count.saturating_add(counted.count),
        None => hours.push(counted),
    }
    hours.sort_unstable_by_key(|known| known.hour);
    let newest = hours.last().map_or(0, |known| known.hour);
    hours.retain(|known| known.hour.saturating_add(HOURS_KEPT as u64) > newest);
}

/// The product name of a User-Agent (RFC 9110 section 10.1.5): what stands before the first `/` or space.
pub(super) fn tool_name(user_agent: &str) -> Option<&str> {
    let name = user_agent.split(['/', ' ']).next()?;
    let end = name.char_indices().nth(TOOL_CHARS_MAX).map_or(name.len(), |(end, _)| end);
    name.get(..end).filter(|name| !name.is_empty())
}

/// The /24 of an IPv4 address, the /48 of an IPv6 address: a provider or office rather than one machine.
pub(super) fn network_of(client_ip: &str) -> Option<IpNet> {
    let address = client_ip.parse::<IpAddr>().ok()?.to_canonical();
    let prefix = if address.is_ipv4() { 24 } else { 48 };
    IpNet::new(address, prefix).ok().map(|network| network.trunc())
}

/// [`tool_name`] as a text of its own.
pub(super) fn tool(user_agent: &str) -> Option<String> {
    tool_name(user_agent).map(str::to_owned)
}

/// [`network_of`] as a text.
pub(super) fn network(client_ip: &str) -> Option<String> {
    network_of(client_ip).map(|network| network.to_string())
}

/// Both in one list, each led by what it is.
pub(super) fn seen_with(tools: impl IntoIterator<Item = String>, networks: impl IntoIterator<Item = String>) -> Vec<String> {
    let tools = tools.into_iter().map(|tool| format!("tool:{tool}"));
    tools.chain(networks.into_iter().map(|network| format!("network:{network}"))).collect()
}

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
/// Longest tool name kept; a User-Agent may be anything.
const TOOL_CHARS_MAX: usize = 64;

/// What a key's uses have told: kept apart from its record, which never changes but for its revocation.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeyUses {
    pub(crate) last: Option<LastUse>,
    pub(crate) tools: Vec<Seen>,
    pub(crate) networks: Vec<Seen>,
}

/// Something a key was used with, and when last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) what: String,
    pub(crate) at: Timestamp,
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

//! Who is at the other end: the socket's peer, or whom a chain of trusted proxies vouches for.
//!
//! A proxy is believed only if its own address is in `edge.trusted_proxies`. Its `X-Forwarded-For` or `Forwarded`
//! (RFC 7239) is read from the right, one hop at a time, and only as far as each hop is trusted: what stands further
//! left is a claim of a stranger and is dropped. Whatever cannot be read ends the walk; the last address that was
//! vouched for stands. From an untrusted peer these headers say nothing.

use std::net::{IpAddr, Ipv6Addr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

/// Most hops that are followed; longer chains are a loop or an attack.
const HOPS_MAX: usize = 16;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How a connection is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Clear text.
    Clear,
    /// TLS.
    Tls,
}

/// The client of one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientAddress {
    /// The client's own address: the rate of strangers, the audit record and upstreams go by it.
    pub ip: IpAddr,
    /// How the client's own connection is protected, as far as anyone trusted has said.
    pub transport: Transport,
    /// The address as text, which upstreams and records are told several times.
    text: String,
    /// The proxies that vouch for it, nearest to the client first, ending with the socket's peer; empty without proxies.
    proxies: Vec<IpAddr>,
}

impl ClientAddress {
    /// Reads the chain behind `peer`, whose connection to us is `transport`.
    pub fn find(peer: IpAddr, transport: Transport, trusted: &[IpNet], headers: &HeaderMap) -> Self {
        let peer = peer.to_canonical();
        if !is_trusted(peer, trusted) {
            return Self::new(peer, transport, Vec::new());
        }
        let listed = walk(peer, trusted, listed_hops(headers));
        let described = walk(peer, trusted, described_hops(headers));
        match (listed, described) {
            (None, None) => Self::new(peer, listed_transport(headers, 0).unwrap_or(transport), Vec::new()),
            (Some((ip, proxies)), None) => {
                let transport = listed_transport(headers, proxies.len() - 1).unwrap_or(transport);
                Self::new(ip, transport, proxies)
            }
            (None, Some((ip, proxies))) => {
                let hop = described_transports(headers).nth(proxies.len() - 1).flatten();
                Self::new(ip, hop.unwrap_or(transport), proxies)
            }
            // A proxy that writes one of the two passes on a stranger's other one. Where they differ, neither is believed.
            (Some((ip, proxies)), Some((other, _))) if ip == other => {
                let transport = listed_transport(headers, proxies.len() - 1).unwrap_or(transport);
                Self::new(ip, transport, proxies)
            }
            (Some(_), Some(_)) => Self::new(peer, transport, Vec::new()),
        }
    }

    fn new(ip: IpAddr, transport: Transport, proxies: Vec<IpAddr>) -> Self {
        Self { ip, transport, text: text(ip), proxies }
    }

    /// The client's own address as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a trusted proxy stands between the client and us.
    pub fn is_proxied(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// The client and every proxy that vouches for it, in the order of `X-Forwarded-For`.
    pub fn chain(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.ip).chain(self.proxies.iter().copied())
    }
}

/// As the standard library writes it, whose formatting costs several times as much.
fn text(address: IpAddr) -> String {
    let IpAddr::V4(address) = address else { return address.to_string() };
    let mut text = String::with_capacity("255.255.255.255".len());
    for octet in address.octets() {
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(octet));
    }
    text
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// Follows hops from the peer leftwards: the first that is not itself trusted is the client.
fn walk(peer: IpAddr, trusted: &[IpNet], hops: impl Iterator<Item = Option<IpAddr>>) -> Option<(IpAddr, Vec<IpAddr>)> {
    let mut proxies = Vec::new();
    let mut nearest = peer;
    for hop in hops.take(HOPS_MAX) {
        let Some(hop) = hop else { break };
        proxies.push(nearest);
        nearest = hop;
        if !is_trusted(nearest, trusted) {
            break;
        }
    }
    proxies.reverse();
    (!proxies.is_empty()).then_some((nearest, proxies))
}

/// The addresses of all `X-Forwarded-For` lines, rightmost first; `None` for one that is not an address.
fn listed_hops(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    from_the_right(headers, &X_FORWARDED_FOR).map(|text| text.and_then(parse_address))
}

/// The `for` of all `Forwarded` elements, rightmost first.
fn described_hops(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    from_the_right(headers, &FORWARDED).map(|element| parameter(element?, "for").and_then(parse_address))
}

/// What the proxy at this distance from us says about its client's connection, where each adds one to the list.
/// A list of another length than the chain is a single remark of the outermost proxy.
fn listed_transport(headers: &HeaderMap, distance: usize) -> Option<Transport> {
    let remarks: Vec<_> = from_the_right(headers, &X_FORWARDED_PROTO).take(HOPS_MAX).collect();
    let remark = remarks.get(distance).or_else(|| remarks.last()).copied().flatten()?;
    parse_transport(remark)
}

fn described_transports(headers: &HeaderMap) -> impl Iterator<Item = Option<Transport>> {
    from_the_right(headers, &FORWARDED).map(|element| parameter(element?, "proto").and_then(parse_transport))
}

/// The members of a comma list over all its lines, last first; `None` for what is not text.
fn from_the_right<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = Option<&'a str>> {
    headers.get_all(name).iter().rev().flat_map(|line| {
        let text = line.to_str().ok();
        let members = text.map(|text| text.rsplit(',').map(|member| Some(member.trim_matches([' ', '\t']))));
        members.into_iter().flatten().chain(text.is_none().then_some(None))
    })
}

fn parse_transport(text: &str) -> Option<Transport> {
    match text {
        _ if text.eq_ignore_ascii_case("https") || text.eq_ignore_ascii_case("wss") => Some(Transport::Tls),
        _ if text.eq_ignore_ascii_case("http") || text.eq_ignore_ascii_case("ws") => Some(Transport::Clear),
        _ => None,
    }
}

/// A parameter of a `Forwarded` element, unquoted. Values with a comma in quotes are split by then and fail to parse.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut found = element
        .split(';')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| key.trim_matches([' ', '\t']).eq_ignore_ascii_case(name));
    let (_, value) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    let value = value.trim_matches([' ', '\t']);
    match value.strip_prefix('"') {
        Some(inside) => inside.strip_suffix('"').filter(|inside| !inside.contains(['"', '\\'])),
        None => Some(value),
    }
}

/// `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]` or `[::1]:567`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let address = if let Some(inside) = text.strip_prefix('[') {
        let (address, port) = inside.split_once(']')?;
        let is_valid = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        IpAddr::V6(is_valid.then_some(address)?.parse::<Ipv6Addr>().ok()?)
    } else if let Some((address, port)) = text.split_once(':').filter(|(_, port)| !port.contains(':')) {
        IpAddr::V4(is_port(port).then_some(address)?.parse().ok()?)
    } else {
        text.parse().ok()?
    };
    Some(address.to_canonical())
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const PROXY: &str = "10.0.0.1";

    fn find(peer: &str, headers: &[(&'static str, &str)]) -> (String, Transport, Vec<String>) {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let found = ClientAddress::find(peer.parse().unwrap(), Transport::Clear, &trusted, &map);
        assert_eq!(found.text(), found.ip.to_string());
        (found.ip.to_string(), found.transport, found.chain().map(|hop| hop.to_string()).collect())
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let headers = [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4;proto=https"), ("x-forwarded-proto", "https")];
        assert_eq!(find("9.9.9.9", &headers), ("9.9.9.9".into(), Transport::Clear, vec!["9.9.9.9".into()]));
    }

    #[test]
    fn a_chain_is_believed_from_the_right_as_far_as_it_is_trusted() {
        for (headers, client) in [
            (vec![("x-forwarded-for", "1.2.3.4")], "1.2.3.4"),
            (vec![("x-forwarded-for", "6.6.6.6, 1.2.3.4")], "1.2.3.4"),
            (vec![("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.9.9.9")], "1.2.3.4"),
            (vec![("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4:567,10.9.9.9")], "1.2.3.4"),
            (vec![("x-forwarded-for", "10.1.1.1, 10.2.2.2")], "10.1.1.1"),
            (vec![("x-forwarded-for", "1.2.3.4, junk, 10.2.2.2")], "10.2.2.2"),
            (vec![("x-forwarded-for", "1.2.3.4, junk")], PROXY),
            (vec![("x-forwarded-for", "")], PROXY),
            (vec![("x-forwarded-for", "[2001:db8::1]:80")], "2001:db8::1"),
            (vec![("x-forwarded-for", "::ffff:1.2.3.4")], "1.2.3.4"),
            (vec![("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]\";proto=https")], "2001:db8::1"),
            (vec![("forwarded", "for=_hidden")], PROXY),
            (vec![("forwarded", "for=1.2.3.4;for=5.5.5.5")], PROXY),
            (vec![("forwarded", "for=1.2.3.4"), ("x-forwarded-for", "1.2.3.4")], "1.2.3.4"),
            (vec![("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")], PROXY),
            (vec![], PROXY),
        ] {
            assert_eq!(find(PROXY, &headers).0, client, "{headers:?}");
        }
        assert_eq!(find(PROXY, &[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.9.9.9")]).2, ["1.2.3.4", "10.9.9.9", PROXY]);
    }

    #[test]
    fn the_outermost_trusted_proxy_says_how_the_client_came() {
        for (headers, transport) in [
            (vec![("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")], Transport::Tls),
            (vec![("x-forwarded-for", "1.2.3.4, 10.9.9.9"), ("x-forwarded-proto", "https, http")], Transport::Tls),
            (vec![("x-forwarded-for", "6.6.6.6, 1.2.3.4"), ("x-forwarded-proto", "https, http")], Transport::Clear),
            (vec![("forwarded", "for=1.2.3.4;proto=https")], Transport::Tls),
            (vec![("x-forwarded-proto", "gopher")], Transport::Clear),
        ] {
            assert_eq!(find(PROXY, &headers).1, transport, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(list in "[0-9a-f.:,;=\" \\[\\]]{0,60}", described in "[for=proto;,\"1.:\\[\\] ]{0,60}") {
            find(PROXY, &[("x-forwarded-for", &list), ("forwarded", &described), ("x-forwarded-proto", &list)]);
        }
    }
}

//! Which names the admin listener answers to, and which sites may send it changes.
//!
//! A hostile page can point its own DNS name at 127.0.0.1 and so reach a listener on the reader's machine with
//! the browser's help ("DNS rebinding"). What gives it away is Host, which still names the hostile site: so only
//! loopback names, the listener's own addresses and `admin.public_url` are answered. Changes that a browser sends
//! from another site are refused by Origin and Sec-Fetch-Site (Fetch standard; W3C Fetch Metadata).

use std::net::{IpAddr, SocketAddr};

use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, Uri, header};

use super::problem::Problem;

pub(super) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names this listener answers to.
#[derive(Clone, Debug)]
pub(crate) struct KnownHosts {
    own: Vec<IpAddr>,
    public: Option<String>,
}

impl KnownHosts {
    /// Knows the listener's addresses and the host of its public URL.
    pub(crate) fn new(listen: &[SocketAddr], public_url: Option<&str>) -> Self {
        let public = public_url.and_then(|url| url.parse::<Uri>().ok()).and_then(|url| url.host().map(normal));
        Self { own: listen.iter().map(SocketAddr::ip).collect(), public }
    }

    /// Checks that the request names this listener; answers the authority it named.
    ///
    /// # Errors
    /// [`Problem::Malformed`] without exactly one valid Host, [`Problem::Misdirected`] for a foreign one.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
        let authority = named_authority(uri, headers)?;
        if self.knows(&normal(authority.host())) { Ok(authority) } else { Err(Problem::Misdirected) }
    }

    fn knows(&self, host: &str) -> bool {
        if host == "localhost" || self.public.as_deref() == Some(host) {
            return true;
        }
        let Ok(address) = host.parse::<IpAddr>() else { return false };
        // An address cannot be rebound, so a listener on all addresses answers to any.
        address.to_canonical().is_loopback() || self.own.iter().any(|own| *own == address || own.is_unspecified())
    }
}

/// Refuses changes that a browser sends for another site, but for those that `dashboards` may ask for.
///
/// # Errors
/// [`Problem::CrossSite`].
pub(crate) fn check_site(
    method: &Method,
    own: &Authority,
    public_url: Option<&str>,
    dashboards: &[String],
    headers: &HeaderMap,
) -> Result<(), Problem> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_dashboards = match (origins.next(), origins.next()) {
        (Some(origin), None) => dashboards.iter().any(|known| known.as_bytes() == origin.as_bytes()),
        _ => false,
    };
    if method.is_safe() || is_dashboards {
        return Ok(());
    }
    let site_is_ours = headers.get_all(SEC_FETCH_SITE).iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    let origin_is_ours = headers.get_all(header::ORIGIN).iter().all(|origin| is_ours(origin.as_bytes(), own, public_url));
    if site_is_ours && origin_is_ours { Ok(()) } else { Err(Problem::CrossSite) }
}

/// Whether an Origin is the one the request was sent to, or the public one.
fn is_ours(origin: &[u8], own: &Authority, public_url: Option<&str>) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let named = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let is_public = public_url.is_some_and(|url| url.trim_end_matches('/').eq_ignore_ascii_case(origin));
    is_public || named.is_some_and(|named| named.eq_ignore_ascii_case(own.as_str()))
}

/// The one authority of a request: `:authority` or absolute form, else Host; if both are there they must agree.
fn named_authority(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, repeated) = (hosts.next(), hosts.next());
    if repeated.is_some() {
        return Err(Problem::Malformed("it has two Host headers".into()));
    }
    let invalid = || Problem::Malformed("its Host is not valid".into());
    let host = host.map(|host| Authority::try_from(host.as_bytes()).map_err(|_| invalid())).transpose()?;
    let authority = match (uri.authority(), host) {
        (Some(target), Some(host)) if *target != host => return Err(Problem::Malformed("its Host and its target disagree".into())),
        (Some(target), _) => target.clone(),
        (None, Some(host)) => host,
        (None, None) => return Err(Problem::Malformed("it has no Host".into())),
    };
    let port = authority.as_str().rsplit_once(':').map_or("", |(_, port)| port);
    let port_is_good = authority.port_u16().is_some() || authority.as_str().ends_with(']') || !authority.as_str().contains(':');
    if authority.as_str().contains('@') || authority.host().is_empty() || !port_is_good || port.starts_with('+') {
        return Err(invalid());
    }
    Ok(authority)
}

/// Lower case, without the brackets of IPv6 and without the dot that ends an absolute DNS name.
fn normal(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn hosts() -> KnownHosts {
        let listen = ["127.0.0.1:8081".parse().expect("an address"), "192.0.2.7:8081".parse().expect("an address")];
        KnownHosts::new(&listen, Some("https://Keys.Example.com/admin"))
    }

    fn with_host(host: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_bytes(host).expect("a header value"));
        headers
    }

    #[test]
    fn only_own_names_are_answered() {
        let rows: &[(&str, u16)] = &[
            ("localhost", 200),
            ("localhost:8081", 200),
            ("LOCALHOST:8081", 200),
            ("localhost.:8081", 200),
            ("127.0.0.1", 200),
            ("127.0.0.1:8081", 200),
            ("127.8.9.1:8081", 200),
            ("[::1]:8081", 200),
            ("[::1]", 200),
            ("[::ffff:127.0.0.1]:8081", 200),
            ("192.0.2.7:8081", 200),
            ("keys.example.com", 200),
            ("KEYS.example.com.:443", 200),
            ("attacker.test:8081", 421),
            ("attacker.test", 421),
            ("localhost.attacker.test", 421),
            ("127.0.0.1.attacker.test", 421),
            ("keys.example.com.attacker.test", 421),
            ("notlocalhost", 421),
            ("192.0.2.8:8081", 421),
            ("[2001:db8::1]:8081", 421),
            ("localhost..", 421),
            ("2130706433", 421),
            ("", 400),
            ("a b", 400),
            ("user@localhost", 400),
            ("localhost:99999", 400),
            ("localhost:", 400),
            ("localhost/x", 400),
            ("[::1", 400),
            ("localhost,localhost", 421),
        ];
        for (host, expected) in rows {
            let seen = match hosts().check(&Uri::from_static("/"), &with_host(host.as_bytes())) {
                Ok(_) => 200,
                Err(Problem::Misdirected) => 421,
                Err(_) => 400,
            };
            assert_eq!(seen, *expected, "{host}");
        }
    }

    #[test]
    fn a_request_names_one_host() {
        assert!(hosts().check(&Uri::from_static("/"), &HeaderMap::new()).is_err());
        let mut two = with_host(b"localhost");
        two.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(hosts().check(&Uri::from_static("/"), &two).is_err());
        assert!(hosts().check(&Uri::from_static("http://localhost/"), &HeaderMap::new()).is_ok());
        assert!(hosts().check(&Uri::from_static("http://localhost/"), &with_host(b"attacker.test")).is_err());
    }

    #[test]
    fn a_listener_on_all_addresses_answers_to_any_address_but_to_no_foreign_name() {
        let hosts = KnownHosts::new(&["0.0.0.0:8081".parse().expect("an address")], None);
        assert!(hosts.check(&Uri::from_static("/"), &with_host(b"192.0.2.8:8081")).is_ok());
        assert!(hosts.check(&Uri::from_static("/"), &with_host(b"attacker.test")).is_err());
    }

    #[test]
    fn changes_from_other_sites_are_refused() {
        let own = Authority::from_static("localhost:8081");
        let public = Some("https://keys.example.com");
        let rows: &[(Method, &str, &str, bool)] = &[
            (Method::POST, "", "", true),
            (Method::POST, "http://localhost:8081", "same-origin", true),
            (Method::POST, "http://localhost:8081", "", true),
            (Method::POST, "https://keys.example.com", "same-origin", true),
            (Method::POST, "", "none", true),
            (Method::POST, "http://attacker.test", "", false),
            (Method::POST, "http://attacker.test", "same-origin", false),
            (Method::POST, "http://localhost:9999", "", false),
            (Method::POST, "null", "", false),
            (Method::POST, "", "cross-site", false),
            (Method::POST, "", "same-site", false),
            (Method::DELETE, "", "cross-site", false),
            (Method::GET, "http://attacker.test", "cross-site", true),
        ];
        for (method, origin, site, expected) in rows {
            let mut headers = HeaderMap::new();
            if !origin.is_empty() {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            if !site.is_empty() {
                headers.insert(SEC_FETCH_SITE, HeaderValue::from_static(site));
            }
            assert_eq!(check_site(method, &own, public, &[], &headers).is_ok(), *expected, "{method} {origin} {site}");
        }
    }
}

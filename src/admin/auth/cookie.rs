//! The page's session: a cookie that holds the user's own token, so there is no store of sessions and every replica knows it.
//!
//! Scripts cannot read it, other sites cannot send it, and it ends no later than the token. Where people come by TLS its
//! name begins with `__Host-`, so that no other host of the domain can set it (RFC 6265bis section 4.1.3.2). It counts only
//! in requests that the page itself makes: see [`check_site`].

use http::{HeaderMap, HeaderValue, Method, header};

use crate::admin::host::SEC_FETCH_SITE;
use crate::admin::problem::Problem;
use crate::config::Admin;

/// Longest token that fits, in bytes: browsers drop a cookie of more than 4096 with its name.
pub(crate) const TOKEN_BYTES_MAX: usize = 3_900;

/// How the session's cookie is called and bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SessionCookie {
    /// People come by clear text, as on their own machine.
    Clear,
    /// People come by TLS, ours or that of a proxy before us.
    Tls,
}

impl SessionCookie {
    /// Chosen by how people reach the listener.
    pub(crate) fn of(admin: &Admin) -> Self {
        let is_https = |url: &str| url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        if admin.tls.is_some() || admin.public_url.as_deref().is_some_and(is_https) { Self::Tls } else { Self::Clear }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Clear => "assure_session",
            Self::Tls => "__Host-assure_session",
        }
    }

    fn attributes(self) -> &'static str {
        match self {
            Self::Clear => "Path=/; HttpOnly; SameSite=Strict",
            Self::Tls => "Path=/; HttpOnly; SameSite=Strict; Secure",
        }
    }

    /// The session's token. Two cookies of the name are refused, not chosen between.
    pub(crate) fn find(self, headers: &HeaderMap) -> Result<Option<&str>, Problem> {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut tokens = pairs.filter(|(name, _)| *name == self.name()).map(|(_, token)| token);
        match (tokens.next(), tokens.next()) {
            (token, None) => Ok(token.filter(|token| !token.is_empty())),
            (_, Some(_)) => Err(Problem::TokenInvalid),
        }
    }

    /// Begins a session of so many seconds.
    pub(crate) fn begin(self, token: &str, seconds: i64) -> HeaderValue {
        let text = format!("{}={token}; {}; Max-Age={seconds}", self.name(), self.attributes());
        let mut value = HeaderValue::from_str(&text).expect("a verified token is ASCII");
        value.set_sensitive(true);
        value
    }

    /// Ends the session.
    pub(crate) fn end(self) -> HeaderValue {
        HeaderValue::from_str(&format!("{}=; {}; Max-Age=0", self.name(), self.attributes())).expect("our own ASCII")
    }
}

/// Whether a request that carries the cookie comes from the page itself: browsers say so, and without their word a
/// change has no authority from a cookie. A foreign Origin was refused before (see `host`).
///
/// # Errors
/// [`Problem::CrossSite`].
pub(crate) fn check_site(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let is_ours = headers.get_all(SEC_FETCH_SITE).iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    let is_told = headers.contains_key(SEC_FETCH_SITE) || headers.contains_key(header::ORIGIN);
    if is_ours && (method.is_safe() || is_told) { Ok(()) } else { Err(Problem::CrossSite) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn with_all(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        for (name, value) in lines {
            all.append(http::HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        all
    }

    #[test]
    fn the_cookie_is_found_by_its_whole_name_and_only_once() {
        let find = |lines: &[(&'static str, &'static str)], cookie: SessionCookie| {
            cookie.find(&with_all(lines)).map(|token| token.map(str::to_owned))
        };
        let clear = SessionCookie::Clear;
        assert_eq!(find(&[("cookie", "a=b; assure_session=t.t.t; c=d")], clear), Ok(Some("t.t.t".into())));
        assert_eq!(find(&[("cookie", "a=b"), ("cookie", "assure_session=t")], clear), Ok(Some("t".into())));
        assert_eq!(find(&[("cookie", "xassure_session=t; assure_session2=t; assure_session=")], clear), Ok(None));
        assert_eq!(find(&[("cookie", "assure_session=t")], SessionCookie::Tls), Ok(None));
        assert_eq!(find(&[("cookie", "assure_session=t; assure_session=u")], clear), Err(Problem::TokenInvalid));
    }

    #[test]
    fn its_name_and_bounds_follow_the_transport() {
        let with = |public_url: Option<&str>| SessionCookie::of(&Admin { public_url: public_url.map(str::to_owned), ..Admin::default() });
        assert_eq!((with(None), with(Some("http://127.0.0.1:8081"))), (SessionCookie::Clear, SessionCookie::Clear));
        assert_eq!(with(Some("HTTPS://keys.example.com")), SessionCookie::Tls);
        assert_eq!(SessionCookie::Tls.begin("t", 60), "__Host-assure_session=t; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=60");
        assert_eq!(SessionCookie::Clear.end(), "assure_session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    }

    #[test]
    fn a_cookie_counts_only_in_what_the_page_sends() {
        for (method, lines, expected) in [
            (Method::GET, &[][..], Ok(())),
            (Method::GET, &[("sec-fetch-site", "none")], Ok(())),
            (Method::GET, &[("sec-fetch-site", "same-site")], Err(Problem::CrossSite)),
            (Method::GET, &[("sec-fetch-site", "cross-site")], Err(Problem::CrossSite)),
            (Method::POST, &[], Err(Problem::CrossSite)),
            (Method::POST, &[("origin", "http://localhost:8081")], Ok(())),
            (Method::POST, &[("sec-fetch-site", "same-origin")], Ok(())),
            (Method::DELETE, &[("sec-fetch-site", "same-site"), ("origin", "http://localhost:1")], Err(Problem::CrossSite)),
        ] {
            assert_eq!(check_site(&method, &headers(lines)), expected, "{method} {lines:?}");
        }
    }
}

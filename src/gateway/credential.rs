//! Step 1: the key that a request presents (K1).
//!
//! `Authorization: Bearer KEY` or `X-Api-Key: KEY`, on any route. The same key twice is one key; two different ones
//! are refused rather than guessed at. A key in the query string, a cookie or a list is not a key. Only the digest
//! leaves this file: the secret itself stays in the request's header block, from which it is never forwarded.

use std::fmt;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::domain::{FirmTag, KeyDigest, KeyNamespace, ParsedKey, Rejection};

/// The other header that may carry a key.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Evidence that a well-formed key arrived. Holds its digest, never its text.
#[derive(Clone, Copy)]
pub struct PresentedKey(ParsedKey);

impl PresentedKey {
    /// The name under which caches and stores know the key.
    pub fn digest(&self) -> KeyDigest {
        self.0.digest
    }

    /// The partition hint.
    pub fn tag(&self) -> FirmTag {
        self.0.tag
    }
}

impl fmt::Debug for PresentedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PresentedKey")
    }
}

/// Finds the one key that a request presents.
///
/// # Errors
/// [`Rejection::KeyMissing`], [`Rejection::KeyMalformed`] or [`Rejection::CredentialsConflict`].
pub fn parse(headers: &HeaderMap, namespace: &KeyNamespace) -> Result<PresentedKey, Rejection> {
    let bearers = headers.get_all(AUTHORIZATION).iter().filter_map(bearer);
    let plain = headers.get_all(X_API_KEY).iter().map(HeaderValue::as_bytes);
    let mut presented: Option<&[u8]> = None;
    for candidate in bearers.chain(plain).map(<[u8]>::trim_ascii).filter(|candidate| !candidate.is_empty()) {
        match presented {
            Some(known) if known != candidate => return Err(Rejection::CredentialsConflict),
            _ => presented = Some(candidate),
        }
    }
    let presented = presented.ok_or(Rejection::KeyMissing)?;
    namespace.parse_key(presented).map(PresentedKey).ok_or(Rejection::KeyMalformed)
}

/// What follows the scheme `Bearer`, in any case (RFC 9110 section 11.1); other schemes are not keys.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
    let separated = rest.is_empty() || rest.starts_with(b" ");
    (scheme.eq_ignore_ascii_case(b"bearer") && separated).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{FirmId, KeySecret};

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let pairs =
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value")));
        let mut map = HeaderMap::new();
        pairs.for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    #[test]
    fn one_key_is_found_wherever_it_stands_and_two_are_refused() {
        let namespace = KeyNamespace::parse("assure").expect("a namespace");
        let firm = FirmId::parse("firm-1").expect("a firm");
        let (one, other) = (KeySecret::generate(&namespace, &firm), KeySecret::generate(&namespace, &firm));
        let check = |lines: &[(&'static str, &str)], expected: Result<KeyDigest, Rejection>| {
            assert_eq!(parse(&headers(lines), &namespace).map(|key| key.digest()), expected, "{}", lines.len());
        };
        let bearer = |secret: &KeySecret| format!("Bearer {}", secret.reveal());
        check(&[("authorization", &bearer(&one))], Ok(one.digest()));
        check(&[("authorization", &format!("bEARER   {} ", one.reveal()))], Ok(one.digest()));
        check(&[("x-api-key", one.reveal())], Ok(one.digest()));
        check(&[("x-api-key", one.reveal()), ("authorization", &bearer(&one))], Ok(one.digest()));
        check(&[("x-api-key", other.reveal()), ("authorization", &bearer(&one))], Err(Rejection::CredentialsConflict));
        check(&[("authorization", &bearer(&one)), ("authorization", &bearer(&other))], Err(Rejection::CredentialsConflict));
        check(&[], Err(Rejection::KeyMissing));
        for empty in ["", "Bearer", "Bearer    ", "Basic dXNlcjpwYXNz", "Bearerx"] {
            check(&[("authorization", empty)], Err(Rejection::KeyMissing));
        }
        check(&[("authorization", &format!("Bearer {},{}", one.reveal(), one.reveal()))], Err(Rejection::KeyMalformed));
        check(&[("authorization", &format!("Bearer {}", "x".repeat(100_000)))], Err(Rejection::KeyMalformed));
    }
}

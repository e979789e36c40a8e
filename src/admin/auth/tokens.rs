//! Checks a user's token: a signed JWT (RFC 7519), read as RFC 8725 advises.
//!
//! The order: size, form, header, issuer, key, signature, claims. The algorithm is the key's, never the token's;
//! `kid` is only an index into the issuer's own keys; `jku`, `x5u`, `jwk` and `x5c` are not looked at; `crit` and
//! repeated members are refused. `exp`, `nbf`, `iss` and `aud` must be there. Time is the caller's to give, so
//! that the checks can be tested to the second. `jsonwebtoken` does the signature and the audience.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Validation;
use serde_json::{Map, Value};

use super::Caller;
use super::jwks::Source;
use super::key_set::{KeySet, VerificationKey};
use crate::admin::strict_json;
use crate::config;
use crate::domain::{FirmId, FrozenPermissions, Timestamp, UserId};
use crate::signing::{LOCAL_AUDIENCE, LOCAL_ISSUER, SigningKey};
use crate::tasks::Tasks;

/// Longest token, in bytes: ten times what identity providers send, and nothing to decode.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How far the issuer's clock may be from ours.
const LEEWAY: Duration = Duration::from_secs(5);
/// Most permissions of a user.
const PERMISSIONS_MAX: usize = 256;
/// Longest permission name, in bytes.
const PERMISSION_BYTES_MAX: usize = 128;
/// Longest user name, in characters.
const NAME_CHARS_MAX: usize = 200;

/// Why a token is not believed. For the log; the caller learns little.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TokenFault {
    /// Longer than 16 KiB.
    #[error("the token is too long")]
    TooLong,
    /// Not three parts of base64url that hold JSON objects without repeats.
    #[error("the token is not a JWT")]
    Malformed,
    /// `crit`, a foreign `typ`, or no `alg`.
    #[error("the token's header asks for something that is not supported")]
    Header,
    /// No configured issuer and audience.
    #[error("the token's issuer or audience is not one of the configured")]
    Issuer,
    /// No such key, or several without a `kid`.
    #[error("the token's key is not one of the issuer's")]
    Key,
    /// The algorithm is not the key's.
    #[error("the token's algorithm is not its key's")]
    Algorithm,
    /// The signature does not fit, or a required claim is missing.
    #[error("the token's signature or standard claims are wrong")]
    Signature,
    /// Past `exp`.
    #[error("the token has expired")]
    Expired,
    /// Before `nbf`.
    #[error("the token is not valid yet")]
    NotYet,
    /// Firm, user, name or permissions are missing or not of their form.
    #[error("the token's claim of {0} is missing or not of its form")]
    Claim(&'static str),
    /// The issuer's keys cannot be had.
    #[error("the issuer's keys cannot be had")]
    IssuerUnavailable,
}

/// Why the configured issuers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// The address of a key set is not one that may be asked.
    #[error("admin.auth.issuers: {0}: {1}")]
    Url(String, String),
    /// The machine's trust roots cannot be read.
    #[error("the trust roots cannot be read: {0}")]
    Roots(#[from] std::io::Error),
    /// The local issuer's key cannot be used.
    #[error("the local issuer's key cannot be used: {0}")]
    Local(String),
}

/// Believes the tokens of the configured issuers.
#[derive(Debug)]
pub struct Verifier {
    issuers: Vec<Issuer>,
    claims: config::Claims,
}

#[derive(Debug)]
struct Issuer {
    name: String,
    audience: String,
    keys: Arc<Source>,
}

impl Verifier {
    /// Believes the configured issuers, and the local one where its key is given. Key sets that `previous` holds
    /// already are kept, so that a reload asks nobody.
    ///
    /// # Errors
    /// See [`VerifierError`].
    pub fn new(auth: &config::Auth, local: Option<&SigningKey>, tasks: &Tasks, previous: Option<&Self>) -> Result<Self, VerifierError> {
        let mut issuers = Vec::with_capacity(auth.issuers.len() + 1);
        for configured in &auth.issuers {
            let known = previous.and_then(|previous| previous.issuers.iter().find(|issuer| issuer.keys.is_from(&configured.jwks)));
            let keys = match known {
                Some(issuer) => issuer.keys.clone(),
                None => Arc::new(Source::new(&configured.jwks, tasks)?),
            };
            issuers.push(Issuer { name: configured.issuer.clone(), audience: configured.audience.clone(), keys });
        }
        if let Some(key) = local {
            let set = KeySet::from_keys(&[key.jwk()]).map_err(VerifierError::Local)?;
            issuers.push(Issuer {
                name: LOCAL_ISSUER.into(),
                audience: LOCAL_AUDIENCE.into(),
                keys: Arc::new(Source::Fixed(Arc::new(set))),
            });
        }
        Ok(Self { issuers, claims: auth.claims.clone() })
    }

    /// Believes one issuer.
    #[cfg(feature = "fuzzing")]
    pub(super) fn of_one(name: &str, audience: &str, keys: Arc<Source>, claims: config::Claims) -> Self {
        Self { issuers: vec![Issuer { name: name.into(), audience: audience.into(), keys }], claims }
    }

    /// Checks a token at the moment `now`.
    pub(crate) async fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, TokenFault> {
        let unverified = Unverified::parse(token)?;
        let issuer = self.issuers.iter().find(|issuer| unverified.is_of(issuer)).ok_or(TokenFault::Issuer)?;
        let set = issuer.keys.current().await.ok_or(TokenFault::IssuerUnavailable)?;
        if let Some(key) = set.find(unverified.key_id()?) {
            return self.check(token, &unverified, issuer, key, now);
        }
        // The issuer may have begun to use a new key since its set was read.
        let fresh = issuer.keys.after_miss(&set).await.ok_or(TokenFault::Key)?;
        let key = fresh.find(unverified.key_id()?).ok_or(TokenFault::Key)?;
        self.check(token, &unverified, issuer, key, now)
    }

    fn check(
        &self,
        token: &str,
        unverified: &Unverified,
        issuer: &Issuer,
        key: &VerificationKey,
        now: Timestamp,
    ) -> Result<Caller, TokenFault> {
        if unverified.algorithm()? != key.algorithm_name() {
            return Err(TokenFault::Algorithm);
        }
        let mut validation = Validation::new(key.algorithm());
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
        validation.set_issuer(&[&issuer.name]);
        validation.set_audience(&[&issuer.audience]);
        // The moment is ours to judge, by the one clock of this crate.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let claims =
            jsonwebtoken::decode::<Map<String, Value>>(token, key.decoding(), &validation).map_err(|_| TokenFault::Signature)?.claims;
        let times = check_times(&claims, now)?;
        self.read_caller(&claims, times)
    }

    fn read_caller(&self, claims: &Map<String, Value>, times: (Timestamp, Timestamp)) -> Result<Caller, TokenFault> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let firm = text(&self.claims.firm).and_then(|text| FirmId::parse(text).ok()).ok_or(TokenFault::Claim("firm"))?;
        let user = text(&self.claims.user).and_then(|text| UserId::parse(text).ok()).ok_or(TokenFault::Claim("user"))?;
        let permissions = read_permissions(claims.get(&self.claims.permissions)).ok_or(TokenFault::Claim("permissions"))?;
        let name = match claims.get(&self.claims.name) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(read_name(name)?).filter(|name| !name.is_empty()),
            Some(_) => return Err(TokenFault::Claim("name")),
        };
        Ok(Caller::new(firm, user, name, permissions, times))
    }
}

/// A token's parts before anything of it is believed; used to choose the key, for nothing else.
struct Unverified {
    header: Map<String, Value>,
    payload: Map<String, Value>,
}

impl Unverified {
    fn parse(token: &str) -> Result<Self, TokenFault> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenFault::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenFault::Malformed);
        };
        if signature.is_empty() {
            return Err(TokenFault::Malformed);
        }
        let header: Map<String, Value> = decode_object(header)?;
        let kind = header.get("typ");
        let kind_is_known = kind
            .is_none_or(|kind| kind.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("JWT") || kind.eq_ignore_ascii_case("at+jwt")));
        if header.contains_key("crit") || header.contains_key("b64") || !kind_is_known {
            return Err(TokenFault::Header);
        }
        Ok(Self { header, payload: decode_object(payload)? })
    }

    fn is_of(&self, issuer: &Issuer) -> bool {
        let audience_is_named = match self.payload.get("aud") {
            Some(Value::String(audience)) => *audience == issuer.audience,
            Some(Value::Array(audiences)) => audiences.iter().any(|audience| audience.as_str() == Some(&issuer.audience)),
            _ => false,
        };
        audience_is_named && self.payload.get("iss").and_then(Value::as_str) == Some(&issuer.name)
    }

    fn key_id(&self) -> Result<Option<&str>, TokenFault> {
        match self.header.get("kid") {
            None => Ok(None),
            Some(Value::String(id)) => Ok(Some(id)),
            Some(_) => Err(TokenFault::Header),
        }
    }

    fn algorithm(&self) -> Result<&str, TokenFault> {
        self.header.get("alg").and_then(Value::as_str).ok_or(TokenFault::Header)
    }
}

fn decode_object(part: &str) -> Result<Map<String, Value>, TokenFault> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)?;
    strict_json::parse(&bytes).map_err(|_| TokenFault::Malformed)
}

/// Checks `exp` and `nbf` (RFC 7519 sections 4.1.4 and 4.1.5); answers when the token was issued and when it ends.
fn check_times(claims: &Map<String, Value>, now: Timestamp) -> Result<(Timestamp, Timestamp), TokenFault> {
    let expires = numeric_date(claims.get("exp")).ok_or(TokenFault::Claim("exp"))?;
    let begins = numeric_date(claims.get("nbf")).ok_or(TokenFault::Claim("nbf"))?;
    if now >= expires.plus(LEEWAY) {
        return Err(TokenFault::Expired);
    }
    if now.plus(LEEWAY) < begins {
        return Err(TokenFault::NotYet);
    }
    // `iat` is optional (RFC 7519 section 4.1.6); one of the future would be believed before all that follows.
    let issued = numeric_date(claims.get("iat")).unwrap_or(begins).min(now);
    Ok((issued, expires))
}

/// Seconds since 1970, possibly with a fraction, which is dropped (RFC 7519 section 2, NumericDate).
fn numeric_date(claim: Option<&Value>) -> Option<Timestamp> {
    let number = claim?.as_number()?;
    let seconds = number.as_i64().or_else(|| {
        let whole = number.as_f64()?.trunc();
        (whole.abs() < 1e15).then(|| format!("{whole:.0}").parse().ok()).flatten()
    })?;
    seconds.checked_mul(1_000_000).map(Timestamp::from_micros)
}

fn read_permissions(claim: Option<&Value>) -> Option<FrozenPermissions> {
    freeze_permissions(&claim?.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<&str>>>()?)
}

/// What a user may do, if there are not too many names and each can be one.
pub(crate) fn freeze_permissions(names: &[&str]) -> Option<FrozenPermissions> {
    let is_good = |name: &&str| !name.is_empty() && name.len() <= PERMISSION_BYTES_MAX && !name.chars().any(char::is_control);
    (names.len() <= PERMISSIONS_MAX && names.iter().all(is_good)).then(|| FrozenPermissions::freeze(names.iter().copied()))
}

fn read_name(name: &str) -> Result<Box<str>, TokenFault> {
    if name.chars().count() > NAME_CHARS_MAX {
        return Err(TokenFault::Claim("name"));
    }
    Ok(name.chars().filter(|character| !character.is_control()).collect::<String>().trim().into())
}

#[cfg(test)]
mod tests;

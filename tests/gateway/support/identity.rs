//! A foreign identity provider: publishes a key set, signs whatever tokens a test wants, honest and otherwise.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{EDIT, FIRM, USER, VIEW};

pub(crate) const ISSUER: &str = "https://id.example.test";
pub(crate) const AUDIENCE: &str = "assure-gateway-admin";
const KEY_ID: &str = "idp-1";

/// An issuer with one Ed25519 key.
pub(crate) struct IdentityProvider {
    pair: Ed25519KeyPair,
}

impl IdentityProvider {
    pub(crate) fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random bytes");
        Self { pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a fresh key") }
    }

    /// The key set that the gateway is configured with.
    pub(crate) fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk()] })
    }

    pub(crate) fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": KEY_ID, "use": "sig", "alg": "EdDSA" })
    }

    /// The claims of an honest editor's token; tests change what they want to be wrong.
    pub(crate) fn claims() -> Value {
        let now = now();
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "iat": now, "nbf": now - 5, "exp": now + 300,
            "sub": USER, "firm_id": FIRM, "name": "Ada", "permissions": [VIEW, EDIT],
        })
    }

    pub(crate) fn header() -> Value {
        json!({ "alg": "EdDSA", "typ": "JWT", "kid": KEY_ID })
    }

    /// A token as an honest provider signs it.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&Self::header(), claims)
    }

    /// A token with any header, signed with Ed25519 whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// The same for texts that need not be tidy JSON.
    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        let message = message(header, claims);
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(message.as_bytes()).as_ref());
        format!("{message}.{signature}")
    }

    /// A token signed with HMAC, the public key's bytes as the secret: the classic confusion.
    pub(crate) fn sign_with_public_key(&self, claims: &Value) -> String {
        let message = message(&json!({ "alg": "HS256", "typ": "JWT", "kid": KEY_ID }).to_string(), &claims.to_string());
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.pair.public_key().as_ref());
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()).as_ref());
        format!("{message}.{signature}")
    }
}

/// A token without a signature.
pub(crate) fn unsigned(algorithm: &str, claims: &Value) -> String {
    format!("{}.", message(&json!({ "alg": algorithm, "typ": "JWT", "kid": KEY_ID }).to_string(), &claims.to_string()))
}

/// The claims of a compact JWS, unverified: for assertions on what a verifier has accepted.
#[track_caller]
pub(crate) fn claims_of(token: &str) -> Value {
    part_of(token, 1)
}

#[track_caller]
pub(crate) fn header_of(token: &str) -> Value {
    part_of(token, 0)
}

#[track_caller]
fn part_of(token: &str, place: usize) -> Value {
    let part = token.split('.').nth(place).unwrap_or_else(|| panic!("not a compact JWS"));
    let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url without padding (RFC 7515 section 2)");
    serde_json::from_slice(&bytes).expect("a JSON object")
}

fn message(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

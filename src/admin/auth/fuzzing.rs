//! Fuzzing of user tokens and of issuers' key sets.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use serde_json::{Map, Value, json};

use super::jwks::Source;
use super::key_set::KeySet;
use super::tokens::Verifier;
use crate::config;
use crate::domain::Timestamp;

const NOW: Timestamp = Timestamp::from_micros(1_795_458_600_000_000);
const ISSUER: &str = "https://id.example.com";
const AUDIENCE: &str = "assure-gateway-admin";
const NOW_SECONDS: i64 = 1_795_458_600;
/// What an issuer's clock may differ from ours by.
const LEEWAY_SECONDS: i64 = 5;
/// What begins with it says when a token begins and ends.
const TIMES: u8 = 0xff;

static WORLD: LazyLock<(Ed25519KeyPair, Verifier)> = LazyLock::new(|| {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of the right length");
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encode(key.public_key().as_ref()) });
    let set = KeySet::from_keys(&[jwk]).expect("a usable key");
    let verifier = Verifier::of_one(ISSUER, AUDIENCE, Arc::new(Source::Fixed(Arc::new(set))), config::Claims::default());
    (key, verifier)
});

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A text that nobody signed is never a token. `HEADER\0PAYLOAD` is signed here first, by the issuer's true key: such a
/// token is believed only when its header is plain, it is for us, it has not ended, and names a firm. A good token is believed
/// from its beginning to its end, to the second.
pub fn token(data: &[u8]) {
    let (key, verifier) = &*WORLD;
    let is_believed = |token: &str| verifier.verify(token, NOW).now_or_never().expect("the keys are at hand").is_ok();
    let sign = |header: &[u8], payload: &[u8]| {
        let signed = format!("{}.{}", encode(header), encode(payload));
        let signature = encode(key.sign(signed.as_bytes()).as_ref());
        (signed, signature)
    };
    if let Some(&[TIMES, ref times @ ..]) = data.first_chunk::<9>() {
        let [begins, ends] = [0, 4].map(|place| times.get(place..).and_then(<[u8]>::first_chunk).copied().map_or(0, i32::from_be_bytes));
        let [begins, ends] = [begins, ends].map(i64::from);
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "nbf": NOW_SECONDS + begins, "exp": NOW_SECONDS + ends,
            "firm_id": "firm-1", "sub": "user-1", "name": "Jo", "permissions": [],
        });
        let (signed, signature) = sign(br#"{"alg":"EdDSA"}"#, claims.to_string().as_bytes());
        // Times before 1970 are none to the library.
        let is_current = (-NOW_SECONDS..=LEEWAY_SECONDS).contains(&begins) && ends > -LEEWAY_SECONDS;
        assert_eq!(is_believed(&format!("{signed}.{signature}")), is_current, "from {begins} to {ends}");
    }
    if let Ok(text) = str::from_utf8(data) {
        assert!(!is_believed(text), "nobody signed this");
    }
    let Some(cut) = data.iter().position(|byte| *byte == 0) else { return };
    let (header, payload) = (data.get(..cut).unwrap_or_default(), data.get(cut + 1..).unwrap_or_default());
    let (signed, signature) = sign(header, payload);
    let token = format!("{signed}.{signature}");
    if !is_believed(&token) {
        return;
    }
    let header: Map<String, Value> = serde_json::from_slice(header).expect("a believed header is an object");
    let claims: Map<String, Value> = serde_json::from_slice(payload).expect("believed claims are an object");
    assert_eq!(header.get("alg"), Some(&json!("EdDSA")));
    assert!(!header.contains_key("crit") && !header.contains_key("b64"));
    assert!(header.get("kid").is_none_or(|id| id == "ed"));
    assert_eq!(claims.get("iss"), Some(&json!(ISSUER)));
    let is_for_us = |audience: &Value| *audience == AUDIENCE || audience.as_array().is_some_and(|all| all.contains(&json!(AUDIENCE)));
    assert!(claims.get("aud").is_some_and(is_for_us));
    assert!(claims.get("exp").and_then(Value::as_f64).is_some_and(|end| end > (NOW_SECONDS - LEEWAY_SECONDS) as f64));
    assert!(claims.get("firm_id").and_then(Value::as_str).is_some_and(|firm| !firm.is_empty()));
    // Every altered byte of what was signed is noticed.
    let mut altered = token.into_bytes();
    let place = payload.len() % signed.len();
    if let Some(byte) = altered.get_mut(place) {
        *byte = if *byte == b'A' { b'B' } else { b'A' };
    }
    assert!(!is_believed(&String::from_utf8_lossy(&altered)));
}

/// Whatever a set holds, no key of it verifies by a shared secret, and a key is found only by its own id.
pub fn jwks(data: &[u8]) {
    let Ok(set) = KeySet::parse(data) else { return };
    let document: Value = serde_json::from_slice(data).expect("what was read strictly can be read");
    let keys = document.get("keys").and_then(Value::as_array).expect("a set has keys");
    assert!(keys.len() <= 100);
    assert!(set.find(Some("no such key, \u{0} at all")).is_none());
    let ids = keys.iter().map(|key| key.get("kid").and_then(Value::as_str));
    for found in ids.filter_map(|id| set.find(id)) {
        assert!(["EdDSA", "ES256", "ES384", "RS256", "PS256"].contains(&found.algorithm_name()));
    }
}

//! An issuer's public keys, each pinned to the one algorithm it may verify (RFC 7517, RFC 8725 section 3.1).
//!
//! Which algorithm that is, is decided here, when the key is read; what a token says of it is only compared.
//! Symmetric keys, encryption keys, RSA keys under 2048 bits and everything unknown are skipped.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

use crate::admin::strict_json;

/// Most keys of a set: ten times what identity providers publish.
const KEYS_MAX: usize = 100;
/// Smallest RSA modulus, in bits (NIST SP 800-131A).
const RSA_BITS_MIN: usize = 2048;

/// A public key, pinned to the one algorithm it may verify.
pub(super) struct VerificationKey {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl VerificationKey {
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    /// The algorithm as a token's `alg` must name it, to the letter.
    pub(super) fn algorithm_name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::EdDSA => "EdDSA",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::RS256 => "RS256",
            Algorithm::PS256 => "PS256",
            // No key is pinned to any other, see `pin`; and no token may name this.
            _ => "unsupported",
        }
    }
}

/// An issuer's usable keys.
pub(super) struct KeySet {
    keys: Vec<VerificationKey>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_list().entries(self.keys.iter().map(|key| (&key.id, key.algorithm))).finish()
    }
}

#[derive(serde::Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// Reads a JWK Set.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Document = strict_json::parse(text)?;
        Self::from_keys(&document.keys)
    }

    /// Takes the usable ones of some JWKs; the others are skipped with a line in the log.
    pub(super) fn from_keys(jwks: &[serde_json::Value]) -> Result<Self, String> {
        if jwks.len() > KEYS_MAX {
            return Err(format!("the set has {} keys, more than {KEYS_MAX}", jwks.len()));
        }
        let mut keys: Vec<VerificationKey> = Vec::new();
        for jwk in jwks {
            match pin(jwk) {
                Ok(key) if keys.iter().any(|known| known.id == key.id) => {
                    tracing::warn!(kid = ?key.id, "a key with a repeated kid is skipped")
                }
                Ok(key) => keys.push(key),
                Err(why) => tracing::info!(kid = ?jwk.get("kid").and_then(|id| id.as_str()), why, "a key of the issuer is skipped"),
            }
        }
        if keys.is_empty() { Err("the set has no usable key".into()) } else { Ok(Self { keys }) }
    }

    /// The key of this id; without an id the only key, if there is only one.
    pub(super) fn find(&self, id: Option<&str>) -> Option<&VerificationKey> {
        match (id, self.keys.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        }
    }
}

/// Decides which algorithm a key verifies: what its `alg` says, if that fits its type, else its type's usual one.
fn pin(jwk: &serde_json::Value) -> Result<VerificationKey, &'static str> {
    let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| "not a public key that is understood")?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Err("not for signatures");
    }
    if jwk.common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return Err("not for verifying");
    }
    let named = jwk.common.key_algorithm;
    let algorithm = match (&jwk.algorithm, named) {
        (AlgorithmParameters::OctetKeyPair(key), None | Some(KeyAlgorithm::EdDSA)) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        (AlgorithmParameters::EllipticCurve(key), None | Some(KeyAlgorithm::ES256)) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        (AlgorithmParameters::EllipticCurve(key), None | Some(KeyAlgorithm::ES384)) if key.curve == EllipticCurve::P384 => Algorithm::ES384,
        (AlgorithmParameters::RSA(key), _) if rsa_bits(&key.n) < RSA_BITS_MIN => return Err("an RSA key of less than 2048 bits"),
        (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
        (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::PS256)) => Algorithm::PS256,
        _ => return Err("neither Ed25519, P-256, P-384 nor RSA with RS256 or PS256"),
    };
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|_| "not well-formed")?;
    Ok(VerificationKey { id: jwk.common.key_id, algorithm, decoding })
}

fn rsa_bits(modulus: &str) -> usize {
    let bytes = URL_SAFE_NO_PAD.decode(modulus).unwrap_or_default();
    let mut significant = bytes.iter().skip_while(|byte| **byte == 0);
    significant.next().map_or(0, |first| (8 - usize::try_from(first.leading_zeros()).unwrap_or(8)) + significant.count() * 8)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::signing::SigningKey;
    use serde_json::json;

    /// A usable JWK of this id.
    pub(in crate::admin::auth) fn good_jwk(name: &str) -> serde_json::Value {
        let folder = tempfile::tempdir().expect("a folder");
        let mut jwk = SigningKey::load_or_create(&folder.path().join("key.pem")).expect("made").jwk();
        jwk["kid"] = name.into();
        jwk
    }

    fn with(mut jwk: serde_json::Value, name: &str, value: serde_json::Value) -> serde_json::Value {
        jwk[name] = value;
        jwk
    }

    #[test]
    fn only_keys_that_can_be_pinned_are_taken() {
        let modulus = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff_u8; bytes]);
        let rows = [
            (good_jwk("a"), true),
            (with(good_jwk("a"), "use", json!("enc")), false),
            (with(good_jwk("a"), "key_ops", json!(["sign"])), false),
            (with(good_jwk("a"), "key_ops", json!(["verify"])), true),
            (with(good_jwk("a"), "alg", json!("ES256")), false),
            (with(good_jwk("a"), "alg", json!("HS256")), false),
            (with(good_jwk("a"), "alg", json!("none")), false),
            (with(good_jwk("a"), "crv", json!("Ed448")), false),
            (json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }), false),
            (json!({ "kty": "oct", "k": "c2VjcmV0" }), false),
            (json!({ "kty": "RSA", "n": modulus(128), "e": "AQAB" }), false),
            (json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB" }), true),
            (json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB", "alg": "PS256" }), true),
            (json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB", "alg": "RSA-OAEP" }), false),
            (json!({ "kty": "XYZ" }), false),
            (json!("text"), false),
        ];
        for (jwk, expected) in rows {
            assert_eq!(pin(&jwk).is_ok(), expected, "{jwk}");
        }
        assert!(KeySet::from_keys(&vec![good_jwk("a"); KEYS_MAX + 1]).is_err());
        assert!(KeySet::parse(br#"{"keys":[]}"#).is_err());
    }

    #[test]
    fn a_key_is_found_by_its_id_alone() {
        let set = KeySet::from_keys(&[good_jwk("a"), json!({}), good_jwk("a"), good_jwk("b")]).expect("two keys");
        assert_eq!(set.keys.len(), 2);
        assert!(set.find(Some("a")).is_some() && set.find(Some("c")).is_none() && set.find(None).is_none());
        assert!(KeySet::from_keys(&[good_jwk("a")]).expect("one key").find(None).is_some());
    }
}

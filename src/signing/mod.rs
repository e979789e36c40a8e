//! Keys that this gateway signs with: for assertions, and for the local issuer's user tokens.
//!
//! A key is Ed25519 or P-256, PKCS#8 in PEM, on disk with mode 0600. Compact JWS (RFC 7515) is minted here by
//! hand, forty lines, because the header of a key never changes and need not be serialised again for each token;
//! verification, where mistakes are dangerous, is left to `jsonwebtoken`.

mod keys;

pub use keys::{Algorithm, KeyError, SigningKey};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

/// `iss` of the tokens that `assure-gateway token` makes.
pub const LOCAL_ISSUER: &str = "urn:assure-gateway:local";
/// `aud` of the tokens that `assure-gateway token` makes.
pub const LOCAL_AUDIENCE: &str = "assure-gateway-admin";

/// A signature of either kind in base64url: 64 bytes.
const SIGNATURE_CHARS: usize = 86;

/// The keys of one purpose: the first signs, all are published.
#[derive(Debug)]
pub struct KeyRing {
    keys: Vec<SigningKey>,
}

impl KeyRing {
    /// A ring of at least one key.
    ///
    /// # Errors
    /// [`KeyError::Empty`] without a key, [`KeyError::Repeated`] when two keys are the same.
    pub fn new(keys: Vec<SigningKey>) -> Result<Self, KeyError> {
        if keys.is_empty() {
            return Err(KeyError::Empty);
        }
        for (place, key) in keys.iter().enumerate() {
            if keys.iter().skip(place + 1).any(|other| other.id() == key.id()) {
                return Err(KeyError::Repeated(key.id().to_owned()));
            }
        }
        Ok(Self { keys })
    }

    /// The key that signs.
    pub fn current(&self) -> &SigningKey {
        self.keys.first().expect("a ring has at least one key")
    }

    /// The public halves as a JWK Set (RFC 7517 section 5).
    pub fn jwks(&self) -> serde_json::Value {
        serde_json::json!({ "keys": self.keys.iter().map(SigningKey::jwk).collect::<Vec<_>>() })
    }

    /// A compact JWS of `claims`, signed by the current key.
    pub fn sign<C: Serialize>(&self, claims: &C) -> String {
        let key = self.current();
        let payload = serde_json::to_vec(claims).expect("claims are plain data");
        // Exactly as long as it will be, because it is kept.
        let mut token = String::with_capacity(key.header().len() + (payload.len() * 4).div_ceil(3) + SIGNATURE_CHARS + 2);
        token.push_str(key.header());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&payload, &mut token);
        let signature = key.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }
}

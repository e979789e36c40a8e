//! One signing key: made or loaded, its id, its public half, its signatures.
//!
//! A key's id is the thumbprint of its public half (RFC 7638), the same on every replica. A private key that others on the
//! machine may read is refused. Key files are written whole or not at all.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
    /// The file is not a PKCS#8 private key for Ed25519 or P-256.
    #[error("{0}: not a PEM file with a PKCS#8 private key for Ed25519 or P-256")]
    Form(PathBuf),
    /// Others on this machine may read the key.
    #[error("{0}: others may read this private key; chmod 600 it")]
    Exposed(PathBuf),
    /// The same key is listed twice.
    #[error("the signing key {0} is listed twice")]
    Repeated(String),
    /// No key at all.
    #[error("at least one signing key is needed")]
    Empty,
}

/// The two algorithms of the contract (RFC 8037, RFC 7518 section 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA with P-256 and SHA-256.
    Es256,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// A private key with its published name.
pub struct SigningKey {
    pair: Pair,
    id: String,
    header: String,
}

impl SigningKey {
    /// Loads a PEM file, which nobody but its owner may read.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load(file: &Path) -> Result<Self, KeyError> {
        let mode = fs::metadata(file).map_err(|error| KeyError::File(file.into(), error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed(file.into()));
        }
        let der = PrivatePkcs8KeyDer::from_pem_file(file).map_err(|_| KeyError::Form(file.into()))?;
        Self::from_pkcs8(der.secret_pkcs8_der()).ok_or_else(|| KeyError::Form(file.into()))
    }

    /// Loads a PEM file, or makes an Ed25519 key and writes it there with mode 0600 if there is none.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load_or_create(file: &Path) -> Result<Self, KeyError> {
        if !file.exists() {
            create(file).map_err(|error| KeyError::File(file.into(), error))?;
        }
        Self::load(file)
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(Pair::Ed25519)
            .or_else(|_| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Pair::P256))
            .ok()?;
        let id = thumbprint(&pair);
        let algorithm = match pair {
            Pair::Ed25519(_) => "EdDSA",
            Pair::P256(_) => "ES256",
        };
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{algorithm}","kid":"{id}","typ":"JWT"}}"#));
        Some(Self { pair, id, header })
    }

    /// The `kid`: the key's RFC 7638 thumbprint, so that a key has the same name on every replica.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Ed25519(_) => Algorithm::EdDsa,
            Pair::P256(_) => Algorithm::Es256,
        }
    }

    /// The public half as a JWK.
    pub fn jwk(&self) -> serde_json::Value {
        let mut jwk = public_members(&self.pair);
        if let Some(members) = jwk.as_object_mut() {
            let algorithm = if self.algorithm() == Algorithm::EdDsa { "EdDSA" } else { "ES256" };
            members.extend([("kid".into(), self.id.clone().into()), ("use".into(), "sig".into()), ("alg".into(), algorithm.into())]);
        }
        jwk
    }

    /// The encoded JOSE header of every token this key signs.
    pub(super) fn header(&self) -> &str {
        &self.header
    }

    /// The signature of `message`; 64 bytes with either algorithm.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::P256(pair) => {
                pair.sign(&SystemRandom::new(), message).expect("the operating system supplies random bytes").as_ref().to_vec()
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SigningKey({})", self.id)
    }
}

/// The required members of the public JWK, in the lexicographic order that RFC 7638 section 3 hashes.
fn public_members(pair: &Pair) -> serde_json::Value {
    match pair {
        Pair::Ed25519(pair) => {
            serde_json::json!({ "crv": "Ed25519", "kty": "OKP", "x": URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()) })
        }
        Pair::P256(pair) => {
            // An uncompressed point: 0x04, then x and y of 32 bytes each (SEC 1, section 2.3.3).
            let point = pair.public_key().as_ref();
            let (x, y) = point.split_at_checked(1).map(|(_, both)| both).and_then(|both| both.split_at_checked(32)).unwrap_or_default();
            serde_json::json!({ "crv": "P-256", "kty": "EC", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
        }
    }
}

fn thumbprint(pair: &Pair) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(public_members(pair).to_string()))
}

/// Writes a fresh key beside the target and renames it into place, so that a crash leaves none or a whole one.
fn create(file: &Path) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Version 1, because OpenSSL 3 and Python's cryptography cannot read version 2 (RFC 5958).
    let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(io::Error::other)?;
    let pem = Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(document.as_ref())));
    let unfinished = file.with_extension("new");
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    out.write_all(pem.as_bytes())?;
    out.sync_all()?;
    fs::rename(&unfinished, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::KeyRing;

    #[test]
    fn a_key_is_made_once_with_mode_0600_and_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("signing.pem");
        let made = SigningKey::load_or_create(&file).expect("made");
        let found = SigningKey::load_or_create(&file).expect("found");
        assert_eq!(made.id(), found.id());
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(SigningKey::load(&file), Err(KeyError::Exposed(_))));
    }

    #[test]
    fn both_algorithms_sign_what_jsonwebtoken_verifies() {
        let folder = tempfile::tempdir().expect("a folder");
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("made");
        let keys = [
            SigningKey::load_or_create(&folder.path().join("ed25519.pem")).expect("made"),
            SigningKey::from_pkcs8(p256.as_ref()).expect("a good key"),
        ];
        for key in keys {
            let algorithm =
                if key.algorithm() == Algorithm::EdDsa { jsonwebtoken::Algorithm::EdDSA } else { jsonwebtoken::Algorithm::ES256 };
            let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(key.jwk()).expect("a JWK");
            let decoding = jsonwebtoken::DecodingKey::from_jwk(&jwk).expect("usable");
            let token = KeyRing::new(vec![key]).expect("one key").sign(&serde_json::json!({ "exp": 4_000_000_000_u64, "sub": "x" }));
            let mut validation = jsonwebtoken::Validation::new(algorithm);
            validation.validate_aud = false;
            assert!(jsonwebtoken::decode::<serde_json::Value>(&token, &decoding, &validation).is_ok());
        }
    }
}

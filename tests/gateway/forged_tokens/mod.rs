//! Tokens of the classes that Wycheproof's vectors for JSON Web Signature know, and of some more, against the admin API.
//!
//! Its vectors (C2SP/wycheproof, `json_web_signature_test.json`) sign no claims, so none of them could be told from a token that
//! is refused for its claims; here the same is done to tokens that would be believed. For each algorithm: what a token is
//! refused for is the one thing that a row changes, because the honest one is believed before and behind. `forms` are tokens
//! that are written otherwise than they should, `keys` those that are signed otherwise.

mod forms;
mod keys;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RsaEncoding,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::identity::{AUDIENCE, ISSUER, IdentityProvider};
use crate::support::{Client, Gateway, Request};

/// Each key's id is the algorithm that it is for.
const ALGORITHMS: [&str; 4] = ["EdDSA", "ES256", "RS256", "PS256"];

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn message(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
    format!("{}.{}", encode(header), encode(claims))
}

/// A provider with a key of each kind, and an admin API that believes it.
struct Bench {
    gateway: Gateway,
    _folder: tempfile::TempDir,
    ed25519: Ed25519KeyPair,
    p256: Vec<u8>,
    rsa: rsa::KeyPair,
    wrong: Vec<String>,
    rows: usize,
}

impl Bench {
    /// Believes the keys, and those of `more` that are fit for it.
    fn start(more: impl FnOnce(&rsa::KeyPair) -> Vec<Value>) -> Self {
        let ed25519 = Ed25519KeyPair::generate().expect("a key");
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key").as_ref().to_vec();
        let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("a key");
        let point = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &p256).expect("our key").public_key().as_ref().to_vec();
        let mut keys = vec![
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": encode(ed25519.public_key()) }),
            json!({ "kty": "EC", "crv": "P-256", "kid": "ES256", "x": encode(&point[1..33]), "y": encode(&point[33..]) }),
            rsa_jwk(&rsa, "RS256"),
            rsa_jwk(&rsa, "PS256"),
        ];
        keys.extend(more(&rsa));
        let folder = tempfile::tempdir().expect("a folder");
        let jwks = folder.path().join("idp.jwks.json");
        std::fs::write(&jwks, json!({ "keys": keys }).to_string()).expect("our folder");
        let gateway = Gateway::with(|config| {
            let issuer = json!({ "issuer": ISSUER, "audience": AUDIENCE, "jwks": { "file": jwks } });
            config["admin"]["auth"] = json!({ "local_issuer": false, "issuers": [issuer] });
        });
        let bench = Self { gateway, _folder: folder, ed25519, p256, rsa, wrong: Vec::new(), rows: 0 };
        bench.assert_honest_ones_are_believed();
        bench
    }

    #[track_caller]
    fn assert_honest_ones_are_believed(&self) {
        for algorithm in ALGORITHMS {
            assert_eq!(self.status(&self.honest(algorithm)), Ok(200), "{algorithm}");
        }
    }

    fn p256(&self) -> EcdsaKeyPair {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.p256).expect("our key")
    }

    fn signature(&self, algorithm: &str, message: &str) -> Vec<u8> {
        let rsa = |padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &SystemRandom::new(), message.as_bytes(), &mut signature).expect("signed");
            signature
        };
        match algorithm {
            "EdDSA" => self.ed25519.sign(message.as_bytes()).as_ref().to_vec(),
            "ES256" => self.p256().sign(&SystemRandom::new(), message.as_bytes()).expect("signed").as_ref().to_vec(),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS384" => rsa(&RSA_PKCS1_SHA384),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "PS384" => rsa(&RSA_PSS_SHA384),
            other => panic!("no key for {other}"),
        }
    }

    /// Signs any header and claims by an algorithm.
    fn sign(&self, algorithm: &str, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        let message = message(header, claims);
        format!("{message}.{}", encode(self.signature(algorithm, &message)))
    }

    fn honest(&self, algorithm: &str) -> String {
        self.sign(algorithm, header(algorithm).to_string(), IdentityProvider::claims().to_string())
    }

    fn status(&self, token: &str) -> Result<u16, String> {
        let request = Request::get("/v1/keys").bearer(token);
        let mut client = Client::connect(self.gateway.admin());
        client.exchange(&request).map(|answer| answer.status).map_err(|broken| format!("{broken:?}"))
    }

    fn refuse(&mut self, what: &str, token: &str) {
        self.check(what, token, 401);
    }

    fn check(&mut self, what: &str, token: &str, expected: u16) {
        self.rows += 1;
        let status = self.status(token);
        if status != Ok(expected) {
            self.wrong.push(format!("{what}: {status:?} instead of {expected} for {token}"));
        }
    }

    #[track_caller]
    fn finish(self) {
        assert!(self.wrong.is_empty(), "{} of {} went wrong:\n{}", self.wrong.len(), self.rows, self.wrong.join("\n"));
        self.assert_honest_ones_are_believed();
        println!("{} forged tokens", self.rows);
    }
}

fn header(algorithm: &str) -> Value {
    json!({ "alg": algorithm, "kid": algorithm, "typ": "JWT" })
}

fn rsa_jwk(pair: &rsa::KeyPair, algorithm: &str) -> Value {
    let public = pair.public_key();
    let (modulus, exponent) = (public.modulus().big_endian_without_leading_zero(), public.exponent().big_endian_without_leading_zero());
    json!({ "kty": "RSA", "kid": algorithm, "alg": algorithm, "use": "sig", "n": encode(modulus), "e": encode(exponent) })
}

/// `value` with one member set.
fn with(mut value: Value, name: &str, member: Value) -> Value {
    value[name] = member;
    value
}

/// HMAC over a good header that says so, by whatever a verifier may take for a shared secret.
fn by_shared_secret(id: &str, secret: &[u8]) -> String {
    let message = message(json!({ "alg": "HS256", "kid": id, "typ": "JWT" }).to_string(), IdentityProvider::claims().to_string());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", encode(tag))
}

//! Tokens of the classes that Wycheproof's vectors for JSON Web Signature know, and of some more, against the admin API.
//!
//! Its vectors (C2SP/wycheproof, `json_web_signature_test.json`) sign no claims, so none of them could be told from a token that
//! is refused for its claims; here the same is done to tokens that would be believed. For each algorithm: what a token is
//! refused for is the one thing that a row changes, because the honest one is believed before and behind.

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

/// The order of the group of P-256 (FIPS 186-4 appendix D.1.2.3), big-endian.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84,
    0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
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

#[test]
fn a_token_that_was_altered_taken_apart_or_put_together_otherwise_is_401() {
    let mut bench = Bench::start(|_| Vec::new());
    for algorithm in ALGORITHMS {
        let honest = bench.honest(algorithm);
        let parts: Vec<&str> = honest.split('.').collect();
        let (head, claims, signature) = (parts[0], parts[1], parts[2]);
        let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let richer = encode(with(IdentityProvider::claims(), "firm_id", json!("firm-2")).to_string());
        let other_head = encode(with(header(algorithm), "x", json!(1)).to_string());
        let mut rows = vec![
            ("modified payload", format!("{head}.{richer}.{signature}")),
            ("modified header", format!("{other_head}.{claims}.{signature}")),
            ("missing signature", format!("{head}.{claims}.")),
            ("missing signature and separator", format!("{head}.{claims}")),
            ("missing payload", format!("{head}..{signature}")),
            ("missing payload and separator", format!("{head}.{signature}")),
            ("missing header", format!(".{claims}.{signature}")),
            ("missing header and separator", format!("{claims}.{signature}")),
            ("missing header and signature", format!(".{claims}.")),
            ("payload alone", claims.to_owned()),
            ("extra empty component", format!("{honest}.")),
            ("extra component", format!("{honest}.foo")),
            ("two tokens", format!("{honest}.{honest}")),
            ("a separator before", format!(".{honest}")),
            ("parts in another order", format!("{claims}.{head}.{signature}")),
            ("signature in the place of all", format!("{signature}.{signature}.{signature}")),
            ("JSON serialization", json!({ "payload": claims, "signatures": [{ "protected": head, "signature": signature }] }).to_string()),
            ("flattened JSON serialization", json!({ "payload": claims, "protected": head, "signature": signature }).to_string()),
            ("padded signature", format!("{honest}=")),
            ("twice padded signature", format!("{honest}==")),
            ("padded header", format!("{head}=.{claims}.{signature}")),
            ("padded payload", format!("{head}.{claims}=.{signature}")),
            ("spaces before the signature", format!("{head}.{claims}.    {signature}")),
            ("spaces behind the header", format!("{head}    .{claims}.{signature}")),
            ("spaces before the payload", format!("{head}.    {claims}.{signature}")),
            ("a tab", format!("{head}.{claims}\t.{signature}")),
            ("invalid character before the signature", format!("{head}.{claims}.?{signature}")),
            ("invalid character behind the signature", format!("{honest}?")),
            ("invalid characters in the header", format!("{head}####.{claims}.{signature}")),
            ("invalid character in the payload", format!("{head}.?{claims}.{signature}")),
            ("percent-encoded separators", honest.replace('.', "%2e")),
        ];
        for place in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            rows.push(("modified signature", format!("{head}.{claims}.{}", encode(&flipped))));
        }
        for other in [
            vec![0; bytes.len()],
            vec![0xff; bytes.len()],
            bytes[1..].to_vec(),
            bytes[..bytes.len() - 1].to_vec(),
            [&bytes[..], &[0]].concat(),
            [&[0][..], &bytes].concat(),
            [&bytes[..], &bytes].concat(),
            bytes.iter().rev().copied().collect(),
            vec![0; 1],
            vec![0; 4096],
        ] {
            rows.push(("another signature", format!("{head}.{claims}.{}", encode(&other))));
        }
        let standard = STANDARD_NO_PAD.encode(&bytes);
        if standard != signature {
            rows.push(("the other alphabet of base64", format!("{head}.{claims}.{standard}")));
        }
        // Bits of the last character that no byte has (RFC 4648 section 3.5): 64 and 256 bytes leave some.
        let mut unused = signature.to_owned();
        let last = unused.pop().expect("a signature");
        let next = char::from(u8::try_from(last).expect("ASCII") + 1);
        rows.push(("unused bits in the signature", format!("{head}.{claims}.{unused}{next}")));
        for (what, token) in rows {
            bench.refuse(&format!("{algorithm}: {what}"), &token);
        }
    }
    for nothing in ["", ".", "..", "...", "null", "{}", "e30.e30.", "e30.e30.e30", "Bearer", "undefined"] {
        bench.refuse("nothing", nothing);
    }
    bench.finish();
}

#[test]
fn a_token_by_no_algorithm_another_one_or_a_key_that_it_brings_along_is_401() {
    let mut bench = Bench::start(|_| Vec::new());
    let (stranger, claims) = (Ed25519KeyPair::generate().expect("a key"), IdentityProvider::claims().to_string());
    let point = bench.p256().public_key().as_ref().to_vec();
    let modulus = bench.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let der = bench.rsa.public_key().as_ref().to_vec();
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", STANDARD_NO_PAD.encode(&der));
    let ed25519 = bench.ed25519.public_key().as_ref().to_vec();
    for (id, secret) in [
        ("ES256", point.clone()),
        ("ES256", point[1..].to_vec()),
        ("ES256", point[1..33].to_vec()),
        ("RS256", der),
        ("RS256", modulus.clone()),
        ("RS256", pem.into_bytes()),
        ("RS256", rsa_jwk(&bench.rsa, "RS256").to_string().into_bytes()),
        ("RS256", encode(&modulus).into_bytes()),
        ("EdDSA", ed25519.clone()),
        ("EdDSA", encode(&ed25519).into_bytes()),
        ("EdDSA", Vec::new()),
        ("EdDSA", b"secret".to_vec()),
    ] {
        bench.refuse(&format!("symmetry confusion by {id}"), &by_shared_secret(id, &secret));
    }
    for algorithm in ALGORITHMS {
        for none in ["none", "None", "NONE", "nOnE", "none ", "", "null", "HS256", "HS384", "HS512", "RS1", "ES256K", "EdDSA\0", "dir"] {
            let changed = with(header(algorithm), "alg", json!(none));
            bench.refuse(&format!("{algorithm}: alg {none:?} and no signature"), &format!("{}.", message(changed.to_string(), &claims)));
            bench.refuse(&format!("{algorithm}: alg {none:?}, signed"), &bench.sign(algorithm, changed.to_string(), &claims));
        }
        // The right key, and what another primitive makes with it.
        for other in ["EdDSA", "ES256", "RS256", "RS384", "RS512", "PS256", "PS384"] {
            if other != algorithm {
                bench.refuse(&format!("{algorithm}: signed as {other}"), &bench.sign(other, header(algorithm).to_string(), &claims));
                let says_so = with(header(algorithm), "alg", json!(other));
                bench.refuse(&format!("{algorithm}: signed as {other}, and says so"), &bench.sign(other, says_so.to_string(), &claims));
            }
        }
        for (name, value) in [
            ("jwk", json!({ "kty": "OKP", "crv": "Ed25519", "kid": algorithm, "x": encode(stranger.public_key()) })),
            ("jku", json!("https://attacker.test/jwks")),
            ("jku", json!("file:///dev/stdin")),
            ("x5u", json!("https://attacker.test/x.pem")),
            ("x5c", json!(["MIIB"])),
            ("x5t#S256", json!(encode([0; 32]))),
        ] {
            for alg in [algorithm, "EdDSA"] {
                let changed = with(with(header(algorithm), name, value.clone()), "alg", json!(alg));
                let message = message(changed.to_string(), &claims);
                bench.refuse(&format!("{algorithm}: {name}"), &format!("{message}.{}", encode(stranger.sign(message.as_bytes()))));
            }
            // Of no account where the issuer's own key has signed.
            bench.check(
                &format!("{algorithm}: {name}, honestly"),
                &bench.sign(algorithm, with(header(algorithm), name, value).to_string(), &claims),
                200,
            );
        }
        for id in
            [json!("none"), json!(""), json!(null), json!(0), json!(["EdDSA"]), json!({}), json!("../../dev/null"), json!("' OR 1=1 --")]
        {
            bench
                .refuse(&format!("{algorithm}: kid {id}"), &bench.sign(algorithm, with(header(algorithm), "kid", id).to_string(), &claims));
        }
    }
    bench.finish();
}

#[test]
fn a_signature_of_ecdsa_or_rsa_outside_its_numbers_is_401() {
    let mut bench = Bench::start(|_| Vec::new());
    let message = message(header("ES256").to_string(), IdentityProvider::claims().to_string());
    let signature = bench.signature("ES256", &message);
    let (r, s) = signature.split_at(32);
    let (zero, mut one) = ([0; 32], [0; 32]);
    one[31] = 1;
    let (mut less, mut more) = (ORDER, ORDER);
    less[31] -= 1;
    more[31] += 1;
    let numbers = [zero, one, less, ORDER, more, [0xff; 32]];
    for first in numbers {
        for second in numbers {
            bench.refuse("ES256: r and s at the ends", &format!("{message}.{}", encode([first, second].concat())));
        }
        bench.refuse("ES256: r at the ends", &format!("{message}.{}", encode([&first[..], s].concat())));
        bench.refuse("ES256: s at the ends", &format!("{message}.{}", encode([r, &first].concat())));
    }
    let asn1 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &bench.p256).expect("our key");
    let asn1 = asn1.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
    for (what, other) in [
        ("ASN.1", asn1.as_ref().to_vec()),
        ("too long", [&[0][..], r, &[0], s].concat()),
        ("trailing zeros", [r, &[0], s, &[0]].concat()),
        ("one too long", [&[1][..], r, &[0], s].concat()),
        ("much too long", [&[0; 300][..], r, &[0; 300], s].concat()),
        ("halves exchanged", [s, r].concat()),
        ("r alone", r.to_vec()),
    ] {
        bench.refuse(&format!("ES256: {what}"), &format!("{message}.{}", encode(other)));
    }

    let message = self::message(header("RS256").to_string(), IdentityProvider::claims().to_string());
    let modulus = bench.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let hash = digest(&SHA256, message.as_bytes());
    // What a signature would hold, unsigned (RFC 8017 section 9.2); and 0, 1 and the modulus, which are their own powers.
    let info = [&b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"[..], hash.as_ref()].concat();
    let padded = [&[0, 1][..], &vec![0xff; modulus.len() - 3 - info.len()], &[0], &info].concat();
    let mut one = vec![0; modulus.len()];
    one[modulus.len() - 1] = 1;
    for (what, other) in
        [("the padded hash", padded), ("one", one), ("the modulus", modulus.clone()), ("beyond the modulus", vec![0xff; modulus.len()])]
    {
        bench.refuse(&format!("RS256: {what}"), &format!("{message}.{}", encode(other)));
    }
    bench.finish();
}

#[test]
fn a_header_or_claims_that_two_readers_could_read_differently_are_401() {
    let mut bench = Bench::start(|_| Vec::new());
    let (good_header, good_claims) = (header("EdDSA").to_string(), IdentityProvider::claims().to_string());
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let in_front = |text: &str, member: &str| text.replacen('{', &format!("{{{member},"), 1);
    let behind = |text: &str, member: &str| format!("{},{member}}}", text.strip_suffix('}').expect("an object"));
    let headers: Vec<Vec<u8>> = [
        in_front(&good_header, r#""alg":"none""#),
        behind(&good_header, r#""alg":"none""#),
        behind(&good_header, r#""alg":"EdDSA""#),
        behind(&good_header, r#""\u0061lg":"none""#),
        behind(&good_header, r#""kid":"RS256""#),
        behind(&good_header, r#""crit":["exp"]"#),
        behind(&good_header, r#""crit":[]"#),
        behind(&good_header, r#""crit":null"#),
        behind(&good_header, r#""b64":false"#),
        behind(&good_header, r#""b64":true"#),
        format!("{good_header} x"),
        format!("{good_header}{good_header}"),
        format!("[{good_header}]"),
        format!("\u{feff}{good_header}"),
        good_header.replace("\"JWT\"", "\"JWE\""),
        good_header.replace("\"JWT\"", "[]"),
        behind(&good_header, &format!(r#""x":{}"#, nested(5_000))),
        "null".into(),
        "\"EdDSA\"".into(),
    ]
    .map(String::into_bytes)
    .into_iter()
    .chain([[good_header.as_bytes(), b"\0"].concat(), good_header.replace("JWT", "J\0T").into_bytes(), b"\xff\xfe{}".to_vec()])
    .collect();
    for changed in headers {
        bench.refuse(&format!("header {}", changed.escape_ascii()), &bench.sign("EdDSA", &changed, &good_claims));
    }
    let number = |name: &str, value: &str| {
        let mut claims = IdentityProvider::claims();
        claims.as_object_mut().expect("an object").remove(name);
        behind(&claims.to_string(), &format!(r#""{name}":{value}"#))
    };
    let mut claims: Vec<Vec<u8>> = [
        in_front(&good_claims, r#""firm_id":"firm-2""#),
        behind(&good_claims, r#""firm_id":"firm-2""#),
        behind(&good_claims, r#""firm\u005fid":"firm-2""#),
        behind(&good_claims, r#""exp":9999999999"#),
        behind(&good_claims, r#""permissions":[]"#),
        behind(&good_claims, r#""x":{"y":1,"y":2}"#),
        behind(&good_claims, &format!(r#""x":{}"#, nested(5_000))),
        format!("{good_claims}{{}}"),
        format!("\u{feff}{good_claims}"),
        good_claims.replace("firm-1", "firm-1\\u0000"),
        good_claims.replace("firm-1", "firm-1\\ud800"),
        good_claims.replace("firm-1", "firm-1\\u202e"),
        "[]".into(),
        "null".into(),
    ]
    .map(String::into_bytes)
    .into();
    for value in [
        "1e400",
        "1e308",
        "-1e308",
        "99999999999999999999999",
        "-1",
        "0",
        "null",
        "true",
        "\"9999999999\"",
        "[9999999999]",
        "{}",
        "NaN",
        "0x7fffffff",
        "1e-400",
    ] {
        claims.push(number("exp", value).into_bytes());
    }
    for value in ["1e308", "99999999999999999999999", "null", "\"0\"", "[0]", "Infinity"] {
        claims.push(number("nbf", value).into_bytes());
    }
    claims.push(good_claims.replace("firm-1", "firm-\u{e9}").chars().map(|character| character as u8).collect());
    for changed in claims {
        let shown: String = changed.escape_ascii().to_string().chars().take(400).collect();
        bench.refuse(&format!("claims {shown}"), &bench.sign("EdDSA", &good_header, &changed));
    }
    // White space is nobody's business.
    bench.check(
        "white space",
        &bench.sign(
            "EdDSA",
            good_header.replace(
                "\":", "\" :
	",
            ),
            good_claims.replace("\":", "\" : "),
        ),
        200,
    );
    bench.finish();
}

#[test]
fn a_key_of_the_issuer_that_is_not_for_signatures_or_too_weak_verifies_nothing() {
    let small = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("a key");
    let secret = [7_u8; 32];
    let mut bench = Bench::start(|rsa| {
        let named = |id: &str, changes: Value| {
            let mut key = rsa_jwk(rsa, "RS256");
            key["kid"] = json!(id);
            for (name, value) in changes.as_object().expect("an object") {
                if value.is_null() { key.as_object_mut().map(|key| key.remove(name)).map_or((), drop) } else { key[name] = value.clone() }
            }
            key
        };
        vec![
            json!({ "kty": "oct", "kid": "shared", "k": encode(secret), "alg": "HS256", "use": "sig" }),
            json!({ "kty": "oct", "kid": "unnamed", "k": encode(secret) }),
            named("for-encryption", json!({ "use": "enc" })),
            named("for-wrapping", json!({ "alg": "RSA-OAEP" })),
            named("to-encrypt", json!({ "key_ops": ["encrypt"], "use": null })),
            named("for-nothing", json!({ "key_ops": [], "use": null })),
            named("by-sha-1", json!({ "alg": "RS1" })),
            named("by-none", json!({ "alg": "none" })),
            named("exponent-one", json!({ "e": "AQ" })),
            named("no-exponent", json!({ "e": "" })),
            // A good key under the id of another, which came first.
            with(rsa_jwk(&small, "RS256"), "kid", json!("RS256")),
        ]
    });
    let claims = IdentityProvider::claims().to_string();
    for id in ["for-encryption", "for-wrapping", "to-encrypt", "for-nothing", "by-sha-1", "by-none", "no-exponent"] {
        bench.refuse(id, &bench.sign("RS256", with(header("RS256"), "kid", json!(id)).to_string(), &claims));
    }
    for id in ["shared", "unnamed"] {
        bench.refuse(id, &by_shared_secret(id, &secret));
    }
    // With an exponent of one a signature is what it signs.
    let message = message(with(header("RS256"), "kid", json!("exponent-one")).to_string(), &claims);
    let info = [
        &b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"[..],
        digest(&SHA256, message.as_bytes()).as_ref(),
    ]
    .concat();
    let padded = [&[0, 1][..], &vec![0xff; 256 - 3 - info.len()], &[0], &info].concat();
    bench.refuse("exponent-one", &format!("{message}.{}", encode(padded)));
    let signed = self::message(header("RS256").to_string(), &claims);
    let mut second = vec![0; small.public_modulus_len()];
    small.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut second).expect("signed");
    bench.refuse("a second key under one id", &format!("{signed}.{}", encode(second)));
    bench.finish();
}

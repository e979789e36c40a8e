//! The table of tokens: one good one, and what becomes of it when a single thing is changed.
//!
//! Keys are made in the test and tokens are signed by hand where a library would refuse to make them. What is accepted
//! is checked claim by claim, what is refused by the true reason, which callers never learn.

use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::json;

use super::*;
use crate::admin::auth::local;
use crate::signing::KeyRing;

const NOW: Timestamp = Timestamp::from_micros(1_795_458_600_000_000);
const ISSUER: &str = "https://id.example.com";
const AUDIENCE: &str = "assure-gateway-admin";

/// An issuer with one key of each kind.
struct World {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
    rsa: rsa::KeyPair,
    stranger: Ed25519KeyPair,
    verifier: Verifier,
}

impl World {
    fn new() -> Self {
        let p256_document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("made");
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256_document.as_ref()).expect("a key");
        let ed25519 = Ed25519KeyPair::generate().expect("made");
        let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("made");
        let point = p256.public_key().as_ref();
        let jwks = [
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encode(ed25519.public_key().as_ref()) }),
            json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "x": encode(&point[1..33]), "y": encode(&point[33..]) }),
            rsa_jwk(&rsa, "rsa", "RS256"),
            rsa_jwk(&rsa, "pss", "PS256"),
        ];
        let set = KeySet::from_keys(&jwks).expect("usable");
        let issuers = vec![Issuer { name: ISSUER.into(), audience: AUDIENCE.into(), keys: Arc::new(Source::Fixed(Arc::new(set))) }];
        let verifier = Verifier { issuers, claims: config::Claims::default() };
        Self { ed25519, p256, rsa, stranger: Ed25519KeyPair::generate().expect("made"), verifier }
    }

    fn signed(&self, header: &Value, payload: &Value) -> String {
        sign_text(&self.ed25519, &header.to_string(), &payload.to_string())
    }

    async fn verify(&self, token: &str) -> Result<Caller, TokenFault> {
        self.verifier.verify(token, NOW).await
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn rsa_jwk(pair: &rsa::KeyPair, id: &str, algorithm: &str) -> Value {
    let public = pair.public_key();
    json!({
        "kty": "RSA", "kid": id, "alg": algorithm, "use": "sig",
        "n": encode(public.modulus().big_endian_without_leading_zero()),
        "e": encode(public.exponent().big_endian_without_leading_zero()),
    })
}

fn message(header: &str, payload: &str) -> String {
    format!("{}.{}", encode(header.as_bytes()), encode(payload.as_bytes()))
}

fn sign_text(pair: &Ed25519KeyPair, header: &str, payload: &str) -> String {
    let message = message(header, payload);
    let signature = encode(pair.sign(message.as_bytes()).as_ref());
    format!("{message}.{signature}")
}

fn good_header() -> Value {
    json!({ "alg": "EdDSA", "kid": "ed", "typ": "JWT" })
}

fn good_payload() -> Value {
    let now = NOW.seconds();
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 600,
        "firm_id": "firm-1", "sub": "user-1", "name": "Ada", "permissions": ["Edit firm settings", "View clients"],
    })
}

/// The good token with one member of header or payload set, or removed by null.
fn altered(mut object: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => object.as_object_mut().expect("an object").remove(name).map_or((), drop),
        value => object[name] = value,
    }
    object
}

#[tokio::test]
async fn a_good_token_names_firm_user_and_permissions() {
    let world = World::new();
    let caller = world.verify(&world.signed(&good_header(), &good_payload())).await.expect("a good token");
    assert_eq!((caller.firm().as_str(), caller.user().as_str(), caller.name()), ("firm-1", "user-1", Some("Ada")));
    assert_eq!(caller.permissions().names().collect::<Vec<_>>(), ["Edit firm settings", "View clients"]);
    assert_eq!(caller.expires(), NOW.plus(Duration::from_secs(600)));
}

#[tokio::test]
async fn each_supported_algorithm_verifies_with_its_own_key_only() {
    let world = World::new();
    let random = SystemRandom::new();
    let sign = |id: &str, algorithm: &str| {
        let message = message(&json!({ "alg": algorithm, "kid": id }).to_string(), &good_payload().to_string());
        let signature = match algorithm {
            "EdDSA" => world.ed25519.sign(message.as_bytes()).as_ref().to_vec(),
            "ES256" => world.p256.sign(&random, message.as_bytes()).expect("signed").as_ref().to_vec(),
            rsa => {
                let mut signature = vec![0; world.rsa.public_modulus_len()];
                let padding: &'static dyn aws_lc_rs::signature::RsaEncoding =
                    if rsa == "RS256" { &aws_lc_rs::signature::RSA_PKCS1_SHA256 } else { &aws_lc_rs::signature::RSA_PSS_SHA256 };
                world.rsa.sign(padding, &random, message.as_bytes(), &mut signature).expect("signed");
                signature
            }
        };
        format!("{message}.{}", encode(&signature))
    };
    for (id, own) in [("ed", "EdDSA"), ("ec", "ES256"), ("rsa", "RS256"), ("pss", "PS256")] {
        for algorithm in ["EdDSA", "ES256", "RS256", "PS256"] {
            assert_eq!(world.verify(&sign(id, algorithm)).await.is_ok(), own == algorithm, "{algorithm} with the key {id}");
        }
    }
}

#[tokio::test]
async fn a_changed_header_is_refused() {
    let world = World::new();
    let embedded = json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(world.stranger.public_key().as_ref()) });
    let rows = [
        ("alg", json!("none"), TokenFault::Algorithm),
        ("alg", json!("None"), TokenFault::Algorithm),
        ("alg", json!("nOnE"), TokenFault::Algorithm),
        ("alg", json!("eddsa"), TokenFault::Algorithm),
        ("alg", json!("HS256"), TokenFault::Algorithm),
        ("alg", json!("ES256"), TokenFault::Algorithm),
        ("alg", json!(""), TokenFault::Algorithm),
        ("alg", json!(["EdDSA"]), TokenFault::Header),
        ("alg", Value::Null, TokenFault::Header),
        ("kid", json!("unknown"), TokenFault::Key),
        ("kid", json!("ec"), TokenFault::Algorithm),
        ("kid", json!("../../etc/passwd"), TokenFault::Key),
        ("kid", json!(7), TokenFault::Header),
        ("kid", Value::Null, TokenFault::Key),
        ("crit", json!(["exp"]), TokenFault::Header),
        ("crit", json!([]), TokenFault::Header),
        ("b64", json!(false), TokenFault::Header),
        ("typ", json!("secevent+jwt"), TokenFault::Header),
        ("typ", json!(1), TokenFault::Header),
    ];
    for (name, value, expected) in rows {
        let token = world.signed(&altered(good_header(), name, value.clone()), &good_payload());
        assert_eq!(world.verify(&token).await.err(), Some(expected), "{name} = {value}");
    }
    // What points to another key is not looked at: the issuer's own key still decides.
    for (name, value) in [
        ("jku", json!("https://attacker.test/jwks")),
        ("x5u", json!("https://attacker.test/x")),
        ("jwk", embedded),
        ("typ", json!("at+jwt")),
    ] {
        let header = altered(good_header(), name, value);
        assert!(world.verify(&world.signed(&header, &good_payload())).await.is_ok(), "{name}");
        let forged = sign_text(&world.stranger, &header.to_string(), &good_payload().to_string());
        assert_eq!(world.verify(&forged).await.err(), Some(TokenFault::Signature), "{name}");
    }
}

#[tokio::test]
async fn a_changed_payload_is_refused() {
    let world = World::new();
    let now = NOW.seconds();
    let claim = TokenFault::Claim;
    let rows = [
        ("iss", json!("https://id.example.com/"), TokenFault::Issuer),
        ("iss", json!("https://attacker.test"), TokenFault::Issuer),
        ("iss", json!([ISSUER]), TokenFault::Issuer),
        ("iss", Value::Null, TokenFault::Issuer),
        ("aud", json!("another"), TokenFault::Issuer),
        ("aud", json!([]), TokenFault::Issuer),
        ("aud", Value::Null, TokenFault::Issuer),
        ("exp", Value::Null, TokenFault::Signature),
        ("exp", json!("soon"), TokenFault::Signature),
        ("exp", json!(-1), TokenFault::Signature),
        ("exp", json!(now - 5), TokenFault::Expired),
        ("exp", json!(now - 600), TokenFault::Expired),
        ("nbf", json!(now + 6), TokenFault::NotYet),
        ("nbf", json!(now + 600), TokenFault::NotYet),
        ("nbf", Value::Null, TokenFault::Signature),
        ("firm_id", Value::Null, claim("firm")),
        ("firm_id", json!(""), claim("firm")),
        ("firm_id", json!("firm 1"), claim("firm")),
        ("firm_id", json!(1), claim("firm")),
        ("firm_id", json!(["firm-1", "firm-2"]), claim("firm")),
        ("sub", Value::Null, claim("user")),
        ("sub", json!("é"), claim("user")),
        ("name", json!("x".repeat(201)), claim("name")),
        ("name", json!({}), claim("name")),
        ("permissions", Value::Null, claim("permissions")),
        ("permissions", json!("Edit firm settings"), claim("permissions")),
        ("permissions", json!([1]), claim("permissions")),
        ("permissions", json!([""]), claim("permissions")),
        ("permissions", json!(["x".repeat(129)]), claim("permissions")),
        ("permissions", json!(vec!["x"; 257]), claim("permissions")),
    ];
    for (name, value, expected) in rows {
        let token = world.signed(&good_header(), &altered(good_payload(), name, value.clone()));
        assert_eq!(world.verify(&token).await.err(), Some(expected), "{name} = {value}");
    }
    let accepted = [
        ("aud", json!(["another", AUDIENCE])),
        ("exp", json!(now - 4)),
        ("exp", json!(1_795_458_700.5)),
        ("nbf", json!(now + 5)),
        ("nbf", json!(now - 86_400)),
        ("name", Value::Null),
        ("permissions", json!([])),
        ("permissions", json!(vec!["x"; 256])),
    ];
    for (name, value) in accepted {
        let token = world.signed(&good_header(), &altered(good_payload(), name, value.clone()));
        assert!(world.verify(&token).await.is_ok(), "{name} = {value}");
    }
}

#[tokio::test]
async fn a_token_of_another_form_is_refused() {
    let world = World::new();
    let good = world.signed(&good_header(), &good_payload());
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let (header, payload) = signed.split_once('.').expect("three parts");
    let public = world.ed25519.public_key();
    let confused = {
        let message = message(&json!({ "alg": "HS256", "kid": "ed" }).to_string(), &good_payload().to_string());
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, public.as_ref()), message.as_bytes());
        format!("{message}.{}", encode(tag.as_ref()))
    };
    let unsigned = message(r#"{"alg":"none"}"#, &good_payload().to_string());
    let richer = encode(good_payload().to_string().replace("firm-1", "firm-2").as_bytes());
    let twice_in_header = sign_text(&world.ed25519, r#"{"alg":"EdDSA","kid":"ed","alg":"none"}"#, &good_payload().to_string());
    let repeated = good_payload().to_string().replacen('{', r#"{"firm_id":"firm-2","#, 1);
    let twice_in_payload = sign_text(&world.ed25519, &good_header().to_string(), &repeated);
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    flipped[10] ^= 1;
    let long = world.signed(&good_header(), &altered(good_payload(), "padding", json!("x".repeat(TOKEN_BYTES_MAX))));
    let rows = [
        (confused, TokenFault::Algorithm),
        (format!("{unsigned}."), TokenFault::Malformed),
        (format!("{unsigned}.x"), TokenFault::Key),
        (format!("{signed}."), TokenFault::Malformed),
        (signed.to_owned(), TokenFault::Malformed),
        (format!("{good}.x"), TokenFault::Malformed),
        (format!("{header}.{richer}.{signature}"), TokenFault::Signature),
        (format!("{signed}.{}", encode(&flipped)), TokenFault::Signature),
        (format!("{signed}.{}", encode(&flipped[..63])), TokenFault::Signature),
        (format!("{signed}.{signature}="), TokenFault::Signature),
        (format!("{header}=.{payload}.{signature}"), TokenFault::Malformed),
        (sign_text(&world.stranger, &good_header().to_string(), &good_payload().to_string()), TokenFault::Signature),
        (twice_in_header, TokenFault::Malformed),
        (twice_in_payload, TokenFault::Malformed),
        (sign_text(&world.ed25519, "[]", "{}"), TokenFault::Malformed),
        (sign_text(&world.ed25519, &good_header().to_string(), "[]"), TokenFault::Malformed),
        (long, TokenFault::TooLong),
        (String::new(), TokenFault::Malformed),
        ("..".into(), TokenFault::Malformed),
        ("assure_0000abcdefghijklmnopqrstuvwxyz0123456789ABC".into(), TokenFault::Malformed),
    ];
    for (token, expected) in rows {
        assert_eq!(world.verify(&token).await.err(), Some(expected), "{token}");
    }
}

#[tokio::test]
async fn the_local_issuer_is_believed_only_where_it_is_switched_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = SigningKey::load_or_create(&folder.path().join("local-issuer.pem")).expect("made");
    let tasks = Tasks::new();
    let auth = config::Auth { claims: config::Claims { firm: "tenant".into(), ..config::Claims::default() }, ..config::Auth::default() };
    let on = Verifier::new(&auth, Some(&key), &tasks, None).expect("a verifier");
    let off = Verifier::new(&auth, None, &tasks, None).expect("a verifier");
    let user = local::LocalUser {
        firm: FirmId::parse("firm-1").expect("a good id"),
        user: UserId::parse("user-1").expect("a good id"),
        name: None,
        permissions: vec!["View clients".into()],
    };
    let token = local::sign(&KeyRing::new(vec![key]).expect("one key"), &auth.claims, &user, NOW, Duration::from_secs(60));
    let caller = on.verify(&token, NOW).await.expect("a good token");
    assert_eq!((caller.firm(), caller.user()), (&user.firm, &user.user));
    assert_eq!(off.verify(&token, NOW).await.err(), Some(TokenFault::Issuer));
    assert_eq!(on.verify(&token, NOW.plus(Duration::from_secs(65))).await.err(), Some(TokenFault::Expired));
}

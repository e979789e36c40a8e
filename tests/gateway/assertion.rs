//! K4, K5, K6, K10, K11: the signed header tells the upstream which firm and which frozen permissions are acting.
//!
//! Verified as an upstream would: by PyJWT and by the npm package jose, from the key set on the ops listener.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::eventually::eventually;
use crate::support::identity::{claims_of, header_of, now};
use crate::support::{EDIT, FIRM, Gateway, Http2, Key, Request, SOON, USER, VIEW, program};

const HEADER: &str = "X-Assure-Jwt-Assertion";

/// The assertion that arrives at the upstream with a request.
#[track_caller]
fn assertion(gateway: &Gateway, key: &Key, target: &str) -> String {
    gateway.get(key, target).expect(200);
    gateway.upstream.last(target).fields.one(HEADER).expect("one assertion arrives").to_owned()
}

/// The claims as both verifiers report them.
#[track_caller]
fn verified(gateway: &Gateway, token: &str) -> Value {
    let jwks = format!("http://{}/.well-known/jwks.json", gateway.ops());
    let words = [jwks.as_str(), token, "https://gateway.assureone.ai", "ledger"];
    let python: Value = serde_json::from_str(&program::output_of(program::python("verify.py").args(words))).expect("claims");
    let node: Value = serde_json::from_str(&program::output_of(program::node("verify.mjs").args(words))).expect("claims");
    assert_eq!(python, node, "both libraries read the same claims");
    python
}

#[test]
fn an_upstream_verifies_the_assertion_with_pyjwt_and_jose() {
    let gateway = Gateway::start();
    let key = gateway.key_with(FIRM, USER, &["View clients", "Approve payroll"]);
    let token = assertion(&gateway, &key, "/ok");
    let claims = verified(&gateway, &token);
    assert_eq!(claims["firm_id"], FIRM);
    assert_eq!(claims["sub"], key.id);
    assert_eq!(claims["creator"], USER);
    assert_eq!(claims["ver"], 1);
    assert_eq!(claims["permissions"], json!(["Approve payroll", EDIT, "View clients", VIEW]), "sorted, as frozen");
    let (issued, expires) = (claims["iat"].as_u64().expect("iat"), claims["exp"].as_u64().expect("exp"));
    assert!(expires > now() && expires - issued <= 60 && issued <= now());
    assert!(claims["jti"].as_str().is_some_and(|id| !id.is_empty()));
    let header = header_of(&token);
    assert_eq!((header["alg"].as_str(), header["typ"].as_str()), (Some("EdDSA"), Some("JWT")));
    assert!(header["kid"].is_string());
}

#[test]
fn a_changed_or_foreign_assertion_does_not_verify() {
    let gateway = Gateway::start();
    let token = assertion(&gateway, &gateway.key(), "/ok");
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let mut claims = claims_of(&token);
    claims["firm_id"] = json!("firm-2");
    parts[1] = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    let jwks = format!("http://{}/.well-known/jwks.json", gateway.ops());
    let changed = parts.join(".");
    for (token, audience) in [(changed.as_str(), "ledger"), (token.as_str(), "another-upstream")] {
        let words = [jwks.as_str(), token, "https://gateway.assureone.ai", audience];
        assert!(!program::run(program::python("verify.py").args(words)).status.success(), "PyJWT refuses it");
        assert!(!program::run(program::node("verify.mjs").args(words)).status.success(), "jose refuses it");
    }
}

#[test]
fn a_key_keeps_its_creators_permissions_whatever_becomes_of_the_creator() {
    let mut gateway = Gateway::start();
    let key = gateway.key_with(FIRM, USER, &["View clients"]);
    let before = claims_of(&assertion(&gateway, &key, "/before"))["permissions"].clone();
    // The creator comes back with more, then with nothing but the view, and makes another key.
    let more = gateway.key_with(FIRM, USER, &["View clients", "Edit clients"]);
    gateway.admin_get(&gateway.token(FIRM, USER, &[VIEW]), "/v1/keys").expect(200);
    gateway.restart();
    assert_eq!(claims_of(&assertion(&gateway, &key, "/after"))["permissions"], before);
    assert_ne!(claims_of(&assertion(&gateway, &more, "/more"))["permissions"], before);
}

#[test]
fn the_firm_comes_only_from_the_key() {
    let gateway = Gateway::start();
    let (one, two) = (gateway.key_with("firm-1", "ada", &[]), gateway.key_with("firm-2", "bob", &[]));
    for (key, firm, creator) in [(&one, "firm-1", "ada"), (&two, "firm-2", "bob")] {
        let claims = claims_of(&assertion(&gateway, key, "/ok"));
        assert_eq!((claims["firm_id"].as_str(), claims["creator"].as_str()), (Some(firm), Some(creator)));
    }
}

#[test]
fn an_identity_that_a_client_sends_never_arrives_however_it_is_spelt() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let forged = "eyJhbGciOiJub25lIn0.eyJmaXJtX2lkIjoiZmlybS0yIn0.";
    let names = [
        "X-Assure-Jwt-Assertion",
        "x-assure-jwt-assertion",
        "X_Assure_Jwt_Assertion",
        "X-Assure_Jwt-Assertion",
        "X-ASSURE-FIRM",
        "x-assure-anything",
    ];
    let mut request = Request::get("/ok").bearer(&key.secret).with("Connection", "X-Assure-Jwt-Assertion");
    for name in names {
        request = request.with(name, forged);
    }
    request.send_to(gateway.edge()).expect(200);
    let http2 = Http2::connect(gateway.edge());
    let over_http2 = Request::get("/ok").bearer(&key.secret).with("x-assure-jwt-assertion", forged).with("x-assure-firm", forged);
    assert_eq!(http2.exchange(&over_http2).map(|answer| answer.status), Ok(200));
    for seen in gateway.upstream.seen() {
        let ours: Vec<&String> = seen
            .fields
            .0
            .iter()
            .map(|(name, _)| name)
            .filter(|name| name.to_ascii_lowercase().replace('_', "-").starts_with("x-assure-"))
            .collect();
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert_eq!(claims_of(seen.fields.one(HEADER).expect("ours"))["firm_id"], FIRM);
        assert!(!String::from_utf8_lossy(&seen.raw_head).contains(forged));
    }
}

#[test]
fn an_identity_in_a_trailer_never_arrives() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut client = crate::support::Client::connect(gateway.edge());
    let head = Request::new("POST", "/ok")
        .bearer(&key.secret)
        .with("Transfer-Encoding", "chunked")
        .with("Trailer", "X-Assure-Jwt-Assertion")
        .head();
    client
        .send([&head[..], b"5\r\nhello\r\n0\r\nX-Assure-Jwt-Assertion: forged\r\nAuthorization: Bearer x\r\n\r\n"].concat())
        .expect("sent");
    client.answer().expect("an answer").expect(200);
    let trailers = gateway.upstream.last("/ok").trailers;
    assert!(trailers.all(HEADER).is_empty() && trailers.all("authorization").is_empty(), "{trailers:?}");
}

#[test]
fn a_shared_assertion_is_reused_and_one_per_request_is_bound_to_its_request() {
    let gateway = Gateway::with(|config| {
        let route = json!({ "path": "/bound/**", "upstream": "ledger", "per_request": true });
        config["routes"].as_array_mut().expect("a list").insert(0, route);
    });
    let key = gateway.key();
    assert_eq!(assertion(&gateway, &key, "/one"), assertion(&gateway, &key, "/two"), "one key, one upstream, one assertion");
    let answer = Request::new("DELETE", "/bound/7?x=1").bearer(&key.secret).send_to(gateway.edge()).expect(200);
    let token = gateway.upstream.last("/bound/7?x=1").fields.one(HEADER).expect("an assertion").to_owned();
    let claims = verified(&gateway, &token);
    assert_eq!(claims["jti"].as_str(), answer.fields.one("x-request-id"));
    assert_eq!(claims["htm"], "DELETE");
    assert!(claims["htu"].as_str().is_some_and(|target| target.contains("/bound/7")), "{claims}");
    let mut ids: Vec<String> = (0..50).map(|_| claims_of(&assertion(&gateway, &key, "/bound/8"))["jti"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50, "each request has an assertion of its own");
}

/// Writes a fresh private key as an operator would keep it.
fn write_key(file: &Path, pkcs8: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(file, format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(pkcs8)))
        .expect("our folder");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("our file");
}

#[test]
fn two_keys_in_the_file_rotate_without_a_gap() {
    let random = SystemRandom::new();
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
    let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let keys = tempfile::tempdir().expect("a folder");
    let (old, new) = (keys.path().join("old.pem"), keys.path().join("new.pem"));
    write_key(&old, ed25519.as_ref());
    write_key(&new, p256.as_ref());
    let listed = |files: [&Path; 2]| json!(files.map(|file| json!({ "file": file })));

    let mut gateway = Gateway::with(|config| config["assertion"] = json!({ "signing_keys": listed([&old, &new]) }));
    let key = gateway.key();
    let jwks = gateway.ops_get("/.well-known/jwks.json").expect(200).json();
    assert_eq!(jwks["keys"].as_array().map(Vec::len), Some(2), "the next key is published before it signs");
    let first = assertion(&gateway, &key, "/ok");
    assert_eq!(header_of(&first)["alg"], "EdDSA");

    gateway.rewrite_config(|config| config["assertion"]["signing_keys"] = listed([&new, &old]));
    gateway.restart();
    let second = assertion(&gateway, &key, "/ok");
    assert_eq!(header_of(&second)["alg"], "ES256");
    assert_ne!(header_of(&first)["kid"], header_of(&second)["kid"]);
    verified(&gateway, &second);
    verified(&gateway, &first);
}

#[test]
fn the_made_signing_key_is_kept_with_mode_0600() {
    use std::os::unix::fs::PermissionsExt;
    let mut gateway = Gateway::start();
    let before = gateway.ops_get("/.well-known/jwks.json").expect(200).json();
    assert!(!before.to_string().contains("\"d\""), "only the public half is published");
    let private: Vec<_> =
        gateway.files().into_iter().filter(|(_, bytes)| bytes.windows(11).any(|window| window == b"PRIVATE KEY")).collect();
    assert!(!private.is_empty());
    for (file, _) in private {
        let mode = std::fs::metadata(&file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    gateway.restart();
    eventually!(SOON, gateway.is_ready());
    assert_eq!(gateway.ops_get("/.well-known/jwks.json").json(), before, "a restart does not change the key");
}

//! W01, W02: only a token that a configured issuer signed for this admin API, now, with its own algorithm, is believed.
//!
//! A foreign identity provider signs honest tokens, and dishonest ones that differ in one thing each; that each
//! differs in one thing only is shown by the honest one being believed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually::eventually;
use crate::support::identity::{AUDIENCE, ISSUER, IdentityProvider, now, unsigned};
use crate::support::{FIRM, Gateway, Request, VIEW};

/// A gateway that believes one identity provider, whose key set is a file.
fn start(provider: &IdentityProvider) -> (Gateway, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let jwks = folder.path().join("idp.jwks.json");
    std::fs::write(&jwks, provider.jwks().to_string()).expect("our folder");
    let gateway = Gateway::with(|config| {
        let issuer = json!({ "issuer": ISSUER, "audience": AUDIENCE, "jwks": { "file": jwks } });
        config["admin"]["auth"] = json!({ "local_issuer": false, "issuers": [issuer] });
    });
    (gateway, folder)
}

fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.admin_get(token, "/v1/keys").status
}

#[test]
fn a_token_of_a_configured_issuer_is_believed() {
    let provider = IdentityProvider::new();
    let (gateway, _folder) = start(&provider);
    let token = provider.token(&IdentityProvider::claims());
    let key = gateway.create_key(&token, "from outside");
    gateway.get(&key, "/ok").expect(200);
    let mut several = IdentityProvider::claims();
    several["aud"] = json!(["another", AUDIENCE]);
    assert_eq!(status(&gateway, &provider.token(&several)), 200, "one audience of several is enough");
}

#[test]
fn a_token_that_is_wrong_in_one_claim_is_401() {
    let provider = IdentityProvider::new();
    let (gateway, _folder) = start(&provider);
    let changed = |name: &str, value: Value| {
        let mut claims = IdentityProvider::claims();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = IdentityProvider::claims();
        claims.as_object_mut().expect("an object").remove(name);
        claims
    };
    let rows = [
        ("expired", changed("exp", json!(now() - 300))),
        ("not yet valid", changed("nbf", json!(now() + 300))),
        ("another audience", changed("aud", json!("another"))),
        ("no audience in the list", changed("aud", json!([]))),
        ("another issuer", changed("iss", json!("https://evil.example.test"))),
        ("an issuer with a slash more", changed("iss", json!(format!("{ISSUER}/")))),
        ("without exp", without("exp")),
        ("without aud", without("aud")),
        ("without iss", without("iss")),
        ("without a firm", without("firm_id")),
        ("without a user", without("sub")),
        ("a firm that is no text", changed("firm_id", json!(7))),
        ("an empty firm", changed("firm_id", json!(""))),
        ("a firm with a line break", changed("firm_id", json!("firm-1\r\nX: y"))),
        ("exp as text", changed("exp", json!("tomorrow"))),
        ("permissions that are no list", changed("permissions", json!(VIEW))),
    ];
    for (what, claims) in rows {
        let answer = gateway.admin_get(&provider.token(&claims), "/v1/keys");
        // Permissions of another shape may also count as none.
        let is_refused = answer.status == 401 || (what.starts_with("permissions") && answer.status == 403);
        assert!(is_refused, "{what}: {}", answer.status);
        assert_eq!(answer.fields.one("content-type"), Some("application/problem+json"));
    }
    assert_eq!(status(&gateway, &provider.token(&IdentityProvider::claims())), 200, "the honest one still is believed");
}

#[test]
fn a_token_that_the_issuer_did_not_sign_is_401() {
    let (provider, stranger) = (IdentityProvider::new(), IdentityProvider::new());
    let (gateway, _folder) = start(&provider);
    let claims = IdentityProvider::claims();
    let honest = provider.token(&claims);
    let (signed, signature) = honest.rsplit_once('.').expect("three parts");
    let header = |changes: Value| {
        let mut header = IdentityProvider::header();
        changes.as_object().expect("an object").iter().for_each(|(name, value)| header[name] = value.clone());
        header
    };
    let rows = [
        ("another key under the same kid", stranger.token(&claims)),
        ("an empty signature", format!("{signed}.")),
        ("no signature part", signed.to_owned()),
        ("half a signature", format!("{signed}.{}", &signature[..40])),
        ("alg none", unsigned("none", &claims)),
        ("alg None", unsigned("None", &claims)),
        ("alg nOnE", unsigned("nOnE", &claims)),
        ("HMAC with the public key", provider.sign_with_public_key(&claims)),
        ("another algorithm in the header", provider.sign(&header(json!({ "alg": "RS256" })), &claims)),
        ("an unknown kid", provider.sign(&header(json!({ "kid": "other" })), &claims)),
        ("a key that it brings along", stranger.sign(&header(json!({ "jwk": stranger.jwk() })), &claims)),
        ("a key set that it points to", stranger.sign(&header(json!({ "jku": "https://evil.example.test/jwks" })), &claims)),
        ("a critical extension", provider.sign(&header(json!({ "crit": ["exp"] })), &claims)),
        ("four parts", format!("{honest}.x")),
        ("text", "nonsense".into()),
        ("nothing", String::new()),
        ("a megabyte", "e".repeat(60_000)),
    ];
    for (what, token) in rows {
        let status = status(&gateway, &token);
        assert!(status == 401 || (what == "a megabyte" && status == 431), "{what}: {status}");
    }
}

#[test]
fn a_token_with_a_repeated_claim_is_401() {
    let provider = IdentityProvider::new();
    let (gateway, _folder) = start(&provider);
    let claims = IdentityProvider::claims().to_string();
    let repeated = claims.replacen('{', r#"{"firm_id":"firm-2","#, 1);
    assert_eq!(status(&gateway, &provider.sign_text(&IdentityProvider::header().to_string(), &repeated)), 401);
}

#[test]
fn without_a_token_every_call_is_401() {
    let gateway = Gateway::start();
    let calls = [
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys/7"),
        ("POST", "/v1/keys/7/revoke"),
        ("GET", "/v1/activity"),
        ("GET", "/v1/whoami"),
        ("POST", "/v1/keys/lookup"),
    ];
    for (method, target) in calls {
        for request in [
            Request::new(method, target),
            Request::new(method, target).with("Authorization", "Basic YTpi"),
            Request::new(method, &format!("{target}?access_token=x")),
        ] {
            let answer = gateway.ask_admin(&request).expect(401);
            assert!(answer.fields.one("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
        }
    }
}

#[test]
fn the_local_issuer_is_refused_where_it_is_off() {
    let provider = IdentityProvider::new();
    let (gateway, _folder) = start(&provider);
    let mut command = gateway.command(&["token", "--config", "gateway.yaml", "--firm", FIRM, "--user", "ada"]);
    let output = command.output().expect("it runs and ends");
    assert!(!output.status.success() && output.stdout.is_empty(), "no token is made");
    // Nor is one believed that another gateway made.
    let other = Gateway::start();
    assert_eq!(status(&gateway, &other.editor()), 401);
}

#[test]
fn a_key_set_that_changes_is_noticed() {
    let (provider, successor) = (IdentityProvider::new(), IdentityProvider::new());
    let (gateway, folder) = start(&provider);
    let claims = IdentityProvider::claims();
    assert_eq!(status(&gateway, &provider.token(&claims)), 200);
    let jwks = folder.path().join("idp.jwks.json");
    std::fs::write(folder.path().join("new"), successor.jwks().to_string()).expect("our folder");
    std::fs::rename(folder.path().join("new"), jwks).expect("our folder");
    eventually!(Duration::from_secs(75), status(&gateway, &successor.token(&claims)) == 200, "the new key is believed");
    assert_eq!(status(&gateway, &provider.token(&claims)), 401, "the old one is not any more");
}

//! The page as people have it: over TLS, with a certificate that the browser believes, and a session that never travels in
//! clear text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::PublicKeyData;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::keys::shown_key;
use crate::support::browser::DESK;
use crate::support::eventually::eventually;
use crate::support::{Browser, Gateway, SOON};
use crate::tls::write_certificate;

/// Not localhost, to which browsers send in clear text what they keep for TLS.
const HOST: &str = "keys.example.test";

#[test]
fn over_tls_the_session_is_a_host_cookie_that_goes_nowhere_else_and_keys_are_made_and_revoked() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = write_certificate(folder.path(), &[HOST]);
    let pin = STANDARD.encode(Sha256::digest(made.signing_key.subject_public_key_info()));
    let tls = json!({ "certificate": folder.path().join("cert.pem"), "private_key": folder.path().join("key.pem") });
    let gateway = Gateway::with(|config| {
        config["admin"]["tls"] = tls;
        config["admin"]["public_url"] = json!(format!("https://{HOST}"));
    });
    let token = gateway.editor();
    let stranger = Browser::open_tls(&gateway, HOST, &STANDARD.encode([0; 32]), DESK);
    stranger.goto("/");
    stranger.wait_text("html", "ERR_CERT_AUTHORITY_INVALID");

    let browser = Browser::open_tls(&gateway, HOST, &pin, DESK);
    browser.goto("/");
    browser.wait_text("#signed-out", "You are not signed in");
    browser.click_named("I have a sign-in token");
    browser.fill("#token", &token);
    browser.click_named("Sign in");
    browser.wait_for("#empty");
    let cookies = browser.cookies();
    let [cookie] = cookies.as_slice() else { panic!("one cookie: {cookies:?}") };
    assert_eq!((&cookie["name"], &cookie["value"]), (&json!("__Host-assure_session"), &json!(token)));
    assert_eq!((&cookie["secure"], &cookie["httpOnly"], &cookie["sameSite"]), (&json!(true), &json!(true), &json!("Strict")));
    assert_eq!((&cookie["path"], &cookie["domain"]), (&json!("/"), &json!(HOST)), "of this host alone");
    assert_eq!(browser.run("return document.cookie"), "", "no script reads it");

    browser.click_named("+ New");
    browser.write("MCP server");
    browser.click_named("Create");
    let key = shown_key(&browser);
    browser.click("#copy");
    browser.wait_text("#copy-state", "Copied");
    browser.click_named("I’ve saved it");
    browser.wait_text("#key-list", &key.prefix);
    gateway.get(&key, "/ok").expect(200);
    browser.click_named("Revoke “MCP server”");
    browser.click("#revoke-confirm");
    browser.wait_text("#news", "It has stopped working everywhere.");
    gateway.get(&key, "/ok").expect_problem(401, "invalid_key");

    // A cookie does not know ports: without `Secure` it would go to whoever listens on this host in clear text.
    browser.leave_for(&format!("http://{HOST}:{}/clear", gateway.upstream.address().port()));
    eventually!(SOON, gateway.upstream.count("/clear") == 1, "the browser has asked in clear text");
    assert_eq!(gateway.upstream.last("/clear").fields.one("cookie"), None);
    browser.goto("/");
    browser.wait_for("#empty");
    browser.click_named("Sign out");
    browser.wait_text("#news", "You have signed out");
    assert!(browser.cookies().is_empty(), "{:?}", browser.cookies());
}

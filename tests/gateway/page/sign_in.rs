//! Who gets in, how long, and on whose word: the session's cookie, and what it does not let other sites do.
//!
//! Other sites are played by the headers that browsers send for them; the dashboard by a form with its Origin. What a
//! person sees of it, the sign-in form, the demo's link and the end of a session, is seen in Chromium.

use serde_json::{Value, json};

use crate::support::browser::{DESK, PHONE_AT_NIGHT};
use crate::support::eventually::{eventually, found};
use crate::support::identity::{AUDIENCE, ISSUER, IdentityProvider, now};
use crate::support::wire::Answer;
use crate::support::{Browser, EDIT, FIRM, Gateway, Reply, Request, SOON, USER, Upstream, VIEW};

fn form(body: &str) -> Request {
    Request::post("/v1/session", body.as_bytes()).with("Content-Type", "application/x-www-form-urlencoded")
}

/// The session that an answer sets: the cookie's name and value, and its attributes.
#[track_caller]
fn cookie_of(answer: &Answer) -> (String, String) {
    let (pair, attributes) = answer.fields.one("set-cookie").expect("a cookie").split_once("; ").expect("attributes");
    (pair.to_owned(), attributes.to_owned())
}

#[test]
fn a_session_is_a_cookie_that_no_script_reads_and_that_ends_with_the_token() {
    let gateway = Gateway::start();
    let token = gateway.editor();
    let answer = gateway.ask_admin(&Request::json("POST", "/v1/session", &json!({ "token": token }))).expect(200);
    assert_eq!((answer.json()["user"].as_str(), answer.json()["may"]["edit"].as_bool()), (Some(USER), Some(true)));
    let (pair, attributes) = cookie_of(&answer);
    assert!(
        pair == format!("assure_session={token}") && attributes.starts_with("Path=/; HttpOnly; SameSite=Strict; Max-Age="),
        "{attributes}"
    );
    let seconds: u64 = attributes.rsplit('=').next().and_then(|text| text.parse().ok()).expect("seconds");
    assert!((12 * 3600 - 60..=12 * 3600).contains(&seconds), "no longer than the token: {seconds}");
    assert_eq!(answer.fields.one("cache-control"), Some("no-store"));

    let redirected = gateway.ask_admin(&form(&format!("token={token}"))).expect(303);
    assert_eq!((redirected.fields.one("location"), cookie_of(&redirected).0), (Some("/"), pair.clone()));
    gateway.ask_admin(&Request::get("/v1/keys").with("Cookie", &pair)).expect(200);
    let ended = gateway.ask_admin(&Request::new("DELETE", "/v1/session").with("Cookie", &pair)).expect(204);
    assert!(cookie_of(&ended).1.ends_with("Max-Age=0"));
    for body in [json!({}), json!({ "token": token, "code": "x" }), json!({ "token": token, "more": 1 })] {
        gateway.ask_admin(&Request::json("POST", "/v1/session", &body)).expect_problem(400, "malformed_request");
    }
}

#[test]
fn a_session_of_a_token_that_is_about_to_end_is_no_longer_than_the_token() {
    let provider = IdentityProvider::new();
    let gateway = Gateway::with(|config| {
        config["admin"]["public_url"] = json!("https://keys.example.test");
        config["admin"]["auth"]["issuers"] = json!([{ "issuer": ISSUER, "audience": AUDIENCE, "jwks": { "file": "idp.json" } }]);
        config["admin"]["auth"]["issuers"][0]["jwks"]["file"] = json!(write_jwks(&provider));
    });
    let mut claims = IdentityProvider::claims();
    claims["exp"] = json!(now() + 40);
    let token = provider.token(&claims);
    let answer = gateway.ask_admin(&Request::json("POST", "/v1/session", &json!({ "token": token }))).expect(200);
    let (pair, attributes) = cookie_of(&answer);
    // People come by TLS here, by a proxy that public_url speaks of.
    assert!(
        pair.starts_with("__Host-assure_session=") && attributes.contains("Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age="),
        "{pair} {attributes}"
    );
    let seconds: u64 = attributes.rsplit('=').next().and_then(|text| text.parse().ok()).expect("seconds");
    assert!((30..=40).contains(&seconds), "{seconds}");
    gateway.ask_admin(&Request::get("/v1/whoami").with("Cookie", &pair.replace("__Host-", ""))).expect(401);
    claims["exp"] = json!(now() - 60);
    gateway
        .ask_admin(&Request::json("POST", "/v1/session", &json!({ "token": provider.token(&claims) })))
        .expect_problem(401, "unauthorized");
    claims["exp"] = json!(now() + 60);
    claims["permissions"] = json!((0..250).map(|number| format!("A permission with a long name, {number}")).collect::<Vec<_>>());
    let long = gateway.ask_admin(&Request::json("POST", "/v1/session", &json!({ "token": provider.token(&claims) })));
    assert!(long.expect_problem(400, "malformed_request").text().contains("no browser keeps"));
}

/// A key set in a file that outlives the gateway.
fn write_jwks(provider: &IdentityProvider) -> String {
    let path = tempfile::tempdir().expect("a folder").keep().join("idp.json");
    std::fs::write(&path, provider.jwks().to_string()).expect("our folder");
    path.display().to_string()
}

#[test]
fn a_key_never_signs_in() {
    let gateway = Gateway::start();
    let key = gateway.key();
    gateway.ask_admin(&Request::json("POST", "/v1/session", &json!({ "token": key.secret }))).expect_problem(401, "unauthorized");
    gateway.ask_admin(&Request::json("POST", "/v1/session", &json!({ "code": key.secret }))).expect_problem(401, "unauthorized");
    let refused = gateway.ask_admin(&form(&format!("token={}", key.secret))).expect(303);
    assert_eq!((refused.fields.one("location"), refused.fields.one("set-cookie")), (Some("/#refused"), None));
    gateway
        .ask_admin(&Request::get("/v1/keys").with("Cookie", &format!("assure_session={}", key.secret)))
        .expect_problem(401, "unauthorized");

    let browser = Browser::open(&gateway, DESK);
    browser.goto("/");
    browser.wait_text("#signed-out", "You are not signed in");
    browser.picture("signed-out");
    browser.click_named("I have a sign-in token");
    browser.fill("#token", &key.secret);
    browser.click_named("Sign in");
    browser.wait_text("#news", "an API key can never sign in");
    assert!(!browser.everything().contains(&key.secret) && !browser.shows("#keys-view"));
    assert!(!gateway.log().contains(&key.secret));
    browser.click_named("I have a sign-in token");
    browser.fill("#token", &gateway.editor());
    browser.click_named("Sign in");
    browser.wait_text("#key-list", "MCP server");
    browser.click_named("Sign out");
    browser.wait_text("#news", "You have signed out");
    browser.reload();
    browser.wait_text("#signed-out", "You are not signed in");
}

#[test]
fn the_cookie_gives_no_authority_to_what_the_page_did_not_send() {
    let gateway = Gateway::with(|config| config["admin"]["frame_ancestors"] = json!(["https://app.example.test"]));
    let token = gateway.editor();
    let pair = format!("assure_session={token}");
    let own = gateway.admin_url();
    let create = |fields: &[(&str, &str)]| {
        let request = Request::json("POST", "/v1/keys", &json!({ "name": "n" })).with("Cookie", &pair);
        gateway.ask_admin(&fields.iter().fold(request, |request, (name, value)| request.with(name, value)))
    };
    create(&[]).expect_problem(403, "cross_site");
    create(&[("Origin", "https://attacker.test")]).expect_problem(403, "cross_site");
    create(&[("Origin", "https://app.example.test")]).expect_problem(403, "cross_site");
    create(&[("Origin", "null")]).expect_problem(403, "cross_site");
    create(&[("Origin", &own), ("Sec-Fetch-Site", "same-site")]).expect_problem(403, "cross_site");
    create(&[("Origin", &own)]).expect(201);
    create(&[("Sec-Fetch-Site", "same-origin")]).expect(201);
    // Another port of the same machine is of the same site, so its pages can have the cookie sent.
    let read = |site: &str| gateway.ask_admin(&Request::get("/v1/activity").with("Cookie", &pair).with("Sec-Fetch-Site", site));
    read("same-site").expect_problem(403, "cross_site");
    read("same-origin").expect(200);
    // A rebound name still names the hostile site in Host.
    let rebound = Request { host: "attacker.test".into(), ..Request::get("/v1/keys").with("Cookie", &pair) };
    rebound.send_to(gateway.admin()).expect_problem(421, "misdirected_request");
    // A bearer that is presented counts alone: a good cookie does not mend a bad one.
    gateway.ask_admin(&Request::get("/v1/keys").bearer("nonsense").with("Cookie", &pair)).expect_problem(401, "unauthorized");
    gateway.ask_admin(&Request::get("/v1/keys").with("Cookie", &format!("{pair}; {pair}"))).expect_problem(401, "unauthorized");

    // The dashboard may sign its users in, and show the page in a frame; nobody else may.
    let from = |origin: &str| form(&format!("token={token}")).with("Origin", origin).with("Sec-Fetch-Site", "cross-site");
    assert_eq!(gateway.ask_admin(&from("https://app.example.test")).expect(303).fields.one("location"), Some("/"));
    gateway.ask_admin(&from("https://attacker.test")).expect_problem(403, "cross_site");
    let page = gateway.ask_admin(&Request::get("/")).expect(200);
    let policy = page.fields.one("content-security-policy").expect("a policy").to_owned();
    assert!(policy.ends_with("frame-ancestors https://app.example.test") && !policy.contains("unsafe"), "{policy}");
    assert_eq!((page.fields.one("x-frame-options"), page.fields.one("x-content-type-options")), (None, Some("nosniff")));
    gateway.rewrite_config(|config| config["admin"]["frame_ancestors"] = json!([]));
    let page = || gateway.ask_admin(&Request::get("/")).expect(200);
    eventually!(SOON, page().fields.one("x-frame-options") == Some("DENY"), "the file is read again");
    assert!(page().fields.one("content-security-policy").is_some_and(|policy| policy.ends_with("frame-ancestors 'none'")));
}

#[test]
fn the_demos_link_signs_in_once_and_leaves_no_trace_of_its_code() {
    let gateway = Gateway::with(|config| config["upstreams"]["ledger"]["endpoints"] = json!(["demo://"]));
    let lead = format!("{}/#code=", gateway.admin_url());
    let code = found(SOON, "the link", || Some(gateway.log().split_once(&lead)?.1.split_whitespace().next()?.to_owned()));
    let browser = Browser::open(&gateway, PHONE_AT_NIGHT);
    browser.goto(&format!("/#code={code}"));
    browser.wait_text("#key-list", "Demo key");
    assert_eq!(browser.text("#person-name"), "Demo user");
    assert!(!browser.everything().contains(&code) && browser.run("return history.length") != Value::Null);
    let other = Browser::open(&gateway, DESK);
    other.goto(&format!("/#code={code}"));
    other.wait_text("#news", "has been used already");
    assert!(other.shows("#signed-out") && !other.everything().contains(&code));
}

#[test]
fn a_session_that_ends_while_the_page_is_open_says_so_and_shows_nothing_more() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let browser = Browser::open(&gateway, DESK);
    let mut command = gateway.command(&["token", "--config"]);
    command.arg(gateway.config_file()).args([
        "--firm",
        FIRM,
        "--user",
        USER,
        "--permission",
        VIEW,
        "--permission",
        EDIT,
        "--lifetime",
        "4s",
    ]);
    let token = crate::support::program::output_of(&mut command).trim().to_owned();
    browser.sign_in(&token);
    browser.wait_text("#key-list", &key.prefix);
    found(crate::support::browser::SHOWN, "the end of the session", || browser.shows("#signed-out").then_some(()));
    assert_eq!(browser.text("#news"), "Your session has ended.");
    assert!(!browser.shows("#keys-view") && !browser.everything().contains(&key.prefix));
}

/// A site that signs somebody in by a form, in a frame of its own.
fn site(gateway: &Gateway, token: &str) -> Upstream {
    let own = gateway.admin_url();
    let page = format!(
        "<!doctype html><iframe name=keys width=900 height=700></iframe><iframe name=plain src='{own}/'></iframe>\
         <form method=post target=keys action='{own}/v1/session'><input type=hidden name=token value='{token}'></form>\
         <script>document.forms[0].submit()</script>"
    );
    let fields = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    Upstream::answering(move |_| Reply::Whole { status: 200, fields: fields.clone(), body: page.clone().into_bytes() })
}

#[test]
fn a_dashboard_signs_its_user_in_and_shows_the_page_in_a_frame_and_no_other_site_does() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let token = gateway.editor();
    let (dashboard, stranger) = (site(&gateway, &token), site(&gateway, &token));
    gateway.rewrite_config(|config| config["admin"]["frame_ancestors"] = json!([dashboard.url()]));
    eventually!(SOON, gateway.ask_admin(&Request::get("/")).fields.one("x-frame-options").is_none(), "the file is read again");
    let browser = Browser::open(&gateway, DESK);
    for frame in ["keys", "plain"] {
        browser.leave_for(&stranger.url());
        browser.enter_frame(&format!("iframe[name={frame}]"));
        found(SOON, "the refusal", || (browser.run("return document.readyState") == "complete").then_some(()));
        assert!(!browser.shows(".brand") && !browser.text("html").contains("Assure Pro"), "a stranger's frame shows nothing");
    }
    browser.goto("/");
    browser.wait_text("#signed-out", "You are not signed in");
    // The same frame of the dashboard's, so that the stranger's was empty for the right reason.
    browser.leave_for(&dashboard.url());
    browser.enter_frame("iframe[name=plain]");
    found(SOON, "the page in a frame", || browser.shows(".brand").then_some(()));
    browser.leave_for(&dashboard.url());
    browser.enter_frame("iframe[name=keys]");
    browser.wait_text("#key-list", &key.prefix);
    browser.click_named("Revoke “MCP server”");
    browser.click("#revoke-confirm");
    browser.wait_text("#news", "It has stopped working everywhere.");
    gateway.get(&key, "/ok").expect(401);
}

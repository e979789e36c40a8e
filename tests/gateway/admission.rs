//! K1: a tool with a key acts for its firm, and nobody without one gets past the edge.
//!
//! How a key may be presented, what a refusal looks like and says, and in which order refusals come.

use assure_gateway::domain::{FirmId, KeyNamespace, KeySecret};
use serde_json::{Value, json};

use crate::support::{Answer, BODY_BYTES_MAX, Client, FIRM, Gateway, Http2, Key, Request};

/// A key with the right form and checksum that nobody issued.
fn never_issued() -> String {
    let namespace = KeyNamespace::parse("assure").expect("a good namespace");
    KeySecret::generate(&namespace, &FirmId::parse(FIRM).expect("a good id")).reveal().to_owned()
}

/// The same text with another last character, so that its checksum is wrong.
fn mistyped(key: &str) -> String {
    let (kept, last) = key.split_at(key.len() - 1);
    format!("{kept}{}", if last == "0" { "1" } else { "0" })
}

#[test]
fn a_key_works_as_bearer() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let answer = Request::get("/ok").bearer(&key.secret).send_to(gateway.edge()).expect(200);
    assert_eq!(answer.text(), "ok", "the upstream's own answer");
    assert_eq!(gateway.upstream.targets(), ["/ok"]);
}

#[test]
fn a_key_works_as_x_api_key() {
    let gateway = Gateway::start();
    let key = gateway.key();
    Request::get("/ok").with("X-Api-Key", &key.secret).send_to(gateway.edge()).expect(200);
    assert_eq!(gateway.upstream.targets(), ["/ok"]);
}

#[test]
fn a_key_works_however_its_header_is_spelt_and_never_reaches_the_upstream() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let bearer = |scheme: &str| format!("{scheme}{}", key.secret);
    let rows = [
        ("authorization", bearer("bearer ")),
        ("Authorization", bearer("BEARER  ")),
        ("AUTHORIZATION", bearer("Bearer ")),
        ("x-api-key", key.secret.clone()),
        ("X-API-KEY", key.secret.clone()),
    ];
    for (name, value) in &rows {
        Request::get("/ok").with(name, value).send_to(gateway.edge()).expect(200);
    }
    let http2 = Http2::connect(gateway.edge());
    assert_eq!(http2.exchange(&Request::get("/ok").bearer(&key.secret)).map(|answer| answer.status), Ok(200));
    assert_eq!(http2.exchange(&Request::get("/ok").with("x-api-key", &key.secret)).map(|answer| answer.status), Ok(200));
    let seen = gateway.upstream.seen();
    assert_eq!(seen.len(), rows.len() + 2);
    for request in seen {
        let head = String::from_utf8_lossy(&request.raw_head).into_owned();
        assert!(!head.contains(&key.secret), "the credential is ours: {head}");
        assert!(request.fields.all("authorization").is_empty() && request.fields.all("x-api-key").is_empty(), "{head}");
    }
}

#[test]
fn the_same_key_twice_is_fine_and_two_different_ones_are_400() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let (one, other) = (gateway.create_key(&editor, "one"), gateway.create_key(&editor, "other"));
    let both = |second: &Key| Request::get("/both").bearer(&one.secret).with("X-Api-Key", &second.secret);
    let twice = |second: &Key| Request::get("/both").bearer(&one.secret).bearer(&second.secret);
    both(&one).send_to(gateway.edge()).expect(200);
    twice(&one).send_to(gateway.edge()).expect(200);
    gateway.upstream.forget();
    both(&other).send_to(gateway.edge()).expect_problem(400, "malformed_request");
    twice(&other).send_to(gateway.edge()).expect_problem(400, "malformed_request");
    assert!(gateway.upstream.targets().is_empty(), "neither is picked silently");
}

#[test]
fn no_credential_is_401_missing_key_however_it_is_left_out() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let bare = || Request::get("/x");
    let rows = [
        bare(),
        bare().with("Authorization", ""),
        bare().with("Authorization", "Bearer"),
        bare().with("Authorization", "Bearer    "),
        bare().with("X-Api-Key", ""),
        Request::get(&format!("/x?api_key={}", key.secret)),
        Request::get(&format!("/x?access_token={}", key.secret)),
        bare().with("Cookie", &format!("api_key={0}; X-Api-Key={0}", key.secret)),
    ];
    let answers: Vec<Answer> = rows.iter().map(|request| request.send_to(gateway.edge()).expect_problem(401, "missing_key")).collect();
    assert_alike(&answers);
    assert!(gateway.upstream.targets().is_empty());
    assert!(!gateway.log().contains(&key.secret), "a key in a query or a cookie is in no log");
}

#[test]
fn unknown_malformed_and_revoked_keys_get_one_and_the_same_401() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "old");
    gateway.get(&key, "/ok").expect(200);
    gateway.revoke(&editor, &key);
    gateway.upstream.forget();
    let secrets = [
        key.secret.clone(),
        never_issued(),
        mistyped(&key.secret),
        key.secret.to_uppercase(),
        "x".into(),
        "assure_".into(),
        "x".repeat(4096),
        editor,
        format!("{0},{0}", key.secret),
        key.prefix.clone(),
    ];
    let ask = |secret: &String| Request::get("/x").bearer(secret).send_to(gateway.edge()).expect_problem(401, "invalid_key");
    let answers: Vec<Answer> = secrets.iter().map(ask).collect();
    assert_alike(&answers);
    assert!(gateway.upstream.targets().is_empty());
}

/// Every answer is the first one, but for its request id and its date.
#[track_caller]
fn assert_alike(answers: &[Answer]) {
    let shape = |answer: &Answer| {
        let mut body = answer.json();
        body["request_id"] = Value::Null;
        let mut fields = answer.fields.0.clone();
        fields.retain(|(name, _)| !["date", "x-request-id"].contains(&name.to_ascii_lowercase().as_str()));
        (answer.status, fields, body)
    };
    for answer in answers {
        assert_eq!(answer.fields.one("www-authenticate"), Some(r#"Bearer realm="Assure Pro""#));
        assert_eq!(shape(answer), shape(&answers[0]));
    }
    let mut ids: Vec<_> = answers.iter().map(|answer| answer.fields.one("x-request-id").map(str::to_owned)).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), answers.len(), "each request has an id of its own");
}

#[test]
fn the_true_reason_of_a_401_is_in_the_metrics() {
    let gateway = Gateway::start();
    Request::get("/x").send_to(gateway.edge()).expect(401);
    Request::get("/x").bearer(&never_issued()).send_to(gateway.edge()).expect(401);
    Request::get("/x").bearer(&mistyped(&never_issued())).send_to(gateway.edge()).expect(401);
    for reason in ["key_missing", "key_unknown", "key_malformed"] {
        let series = format!("assure_gateway_rejections_total{{reason=\"{reason}\"}}");
        assert!((gateway.metric(&series) - 1.0).abs() < f64::EPSILON, "{reason} is counted");
    }
}

#[test]
fn an_absurdly_long_key_is_refused_and_the_gateway_lives() {
    let mut gateway = Gateway::start();
    let key = gateway.key();
    let answer = Request::get("/x").bearer(&"k".repeat(100_000)).send_to(gateway.edge());
    assert!([401, 431].contains(&answer.status), "{}", answer.status);
    gateway.assert_alive(&key);
    assert_eq!(gateway.upstream.targets(), ["/live"]);
}

#[test]
fn refusals_come_in_the_contracts_order() {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(1));
    let key = gateway.key();
    let too_large = |target: &str| {
        let length = (BODY_BYTES_MAX + 1).to_string();
        Request::new("POST", target).with("Content-Length", &length)
    };
    let check = |request: Request, status: u16, code: &str| {
        request.send_to(gateway.edge()).expect_problem(status, code);
    };
    check(too_large("/a/../b"), 400, "malformed_request"); // the target before the missing key
    check(too_large("/v1/session/x"), 401, "missing_key"); // the key before the length
    check(too_large("/v1/session/x").bearer(&key.secret), 413, "request_too_large"); // the length before the route
    check(Request::get("/v1/session/x").bearer(&key.secret), 403, "route_denied"); // spends the only permit
    check(too_large("/v1/session/x").bearer(&key.secret), 413, "request_too_large"); // the length before the window
    check(Request::get("/v1/session/x").bearer(&key.secret), 429, "rate_limited"); // the window before the route
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn every_answer_to_a_known_key_carries_its_rate_limit_and_its_request_id() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut client = Client::connect(gateway.edge());
    for (target, status) in [("/ok", 200), ("/v1/session/x", 403)] {
        let answer = client.exchange(&Request::get(target).bearer(&key.secret)).expect("an answer").expect(status);
        assert_eq!(answer.fields.one("ratelimit-policy"), Some(r#""key";q=1000;w=60"#));
        assert!(answer.fields.one("ratelimit").is_some_and(|value| value.starts_with(r#""key";r=99"#)), "{:?}", answer.fields);
        assert!(answer.fields.one("x-request-id").is_some());
    }
    let seen = gateway.upstream.last("/ok");
    assert!(seen.fields.one("x-request-id").is_some(), "the upstream can name the request too");
}

//! K9, K10, K11: what a key may reach is decided on the very path that is forwarded, before any upstream is asked.
//!
//! Denials cover every spelling of their path, a firm named in a path or a query must be the key's, and a demanded
//! permission must have been frozen into the key.

use serde_json::json;

use crate::support::eventually::found;
use crate::support::{Answer, FIRM, Gateway, Http2, Key, Request, SOON};

#[track_caller]
fn ask(gateway: &Gateway, key: &Key, method: &str, target: &str) -> Answer {
    Request::new(method, target).bearer(&key.secret).send_to(gateway.edge())
}

#[test]
fn a_key_cannot_sign_in_or_reset_a_password() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for (method, target) in
        [("POST", "/v1/session/login"), ("GET", "/v1/session"), ("GET", "/v1/session/a/b?c"), ("PUT", "/v1/users/42/password")]
    {
        ask(&gateway, &key, method, target).expect_problem(403, "route_denied");
    }
    let answer = ask(&gateway, &key, "PUT", "/v1/users/42/password");
    assert!(
        answer.json()["detail"].as_str().is_some_and(|text| text.contains("API keys cannot reset a password")),
        "in the operator's words"
    );
    let http2 = Http2::connect(gateway.edge());
    assert_eq!(http2.exchange(&Request::get("/v1/session/x").bearer(&key.secret)).map(|answer| answer.code()), Ok("route_denied".into()));
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn a_deny_covers_every_spelling_of_its_path() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut passed = Vec::new();
    for target in [
        "/v1/users/42/password/",
        "/v1/users/42/password;x=1",
        "/v1/users/42/password.json",
        "/v1/users/42/password.html;y",
        "/v1/users;a/42/password",
        "/v1/users/42;b/password",
        "/v1/users/42/%70assword",
        "/v1/users/42/passwor%64",
        "/v1/users/42/password%3bx",
        "/v1/users/42/x/../password",
        "/v1/users/42//password",
        "/v1/users/42%2fpassword",
        "/v1/sessio%6e/login",
        "/v1/session;x/login",
        "/v1/session.json",
        "/v1/session/",
        "/v1/./session/login",
    ] {
        let answer = ask(&gateway, &key, "POST", target);
        if ![400, 403].contains(&answer.status) {
            passed.push((target, answer.status));
        }
    }
    assert!(passed.is_empty(), "{passed:?}");
    assert!(gateway.upstream.targets().is_empty(), "{:?}", gateway.upstream.targets());
    ask(&gateway, &key, "GET", "/v1/users/42/passwords").expect(200);
    ask(&gateway, &key, "GET", "/v1/sessions").expect(200);
}

#[test]
fn a_path_that_names_a_firm_must_name_the_keys_firm() {
    let gateway = Gateway::start();
    let key = gateway.key();
    ask(&gateway, &key, "GET", &format!("/v1/firms/{FIRM}/clients")).expect(200);
    ask(&gateway, &key, "GET", &format!("/v1/firms/{FIRM}")).expect(200);
    gateway.upstream.forget();
    for firm in ["firm-2", "FIRM-1", "firm-1x", "firm-1%20", "firm-1;x", "firm-1.json", "%66irm-2", "*", "{firm}"] {
        let answer = ask(&gateway, &key, "GET", &format!("/v1/firms/{firm}/clients"));
        assert!([400, 403].contains(&answer.status), "{firm}: {}", answer.status);
    }
    ask(&gateway, &key, "GET", "/v1/firms/firm-2/clients").expect_problem(403, "wrong_firm");
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn a_query_that_names_a_firm_must_name_the_keys_firm_and_only_that() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for query in ["", "?firm=firm-1", "?a=b&firm=firm-1&c=d", "?firms=firm-2", "?firm=%66irm-1"] {
        ask(&gateway, &key, "GET", &format!("/v1/reports/x{query}")).expect(200);
    }
    gateway.upstream.forget();
    for query in [
        "?firm=firm-2",
        "?firm=firm-1&firm=firm-2",
        "?firm=firm-2&firm=firm-1",
        "?firm=",
        "?firm",
        "?%66irm=firm-2",
        "?firm=firm-1%00",
        "?a=b;firm=firm-2",
    ] {
        let answer = ask(&gateway, &key, "GET", &format!("/v1/reports/x{query}"));
        assert!([400, 403].contains(&answer.status), "{query}: {}", answer.status);
    }
    ask(&gateway, &key, "GET", "/v1/reports/x?firm=firm-2").expect_problem(403, "wrong_firm");
    assert!(gateway.upstream.targets().is_empty(), "{:?}", gateway.upstream.targets());
}

#[test]
fn a_route_can_demand_a_permission_that_the_key_must_have_been_given() {
    let gateway = Gateway::start();
    let (none, viewer) = (gateway.key(), gateway.key_with(FIRM, "viewer", &["View clients"]));
    let editor = gateway.key_with(FIRM, "editor", &["View clients", "Edit clients"]);
    let lookalike = gateway.key_with(FIRM, "lookalike", &["view clients", "View clients "]);
    for (key, reads, writes) in [(&none, 403, 403), (&viewer, 200, 403), (&editor, 200, 200), (&lookalike, 403, 403)] {
        for (method, status) in [("GET", reads), ("HEAD", reads), ("POST", writes), ("DELETE", writes), ("PATCH", writes)] {
            let answer = ask(&gateway, key, method, "/v1/clients/7");
            assert_eq!(answer.status, status, "{method}");
        }
    }
    let refused = ask(&gateway, &viewer, "POST", "/v1/clients/7").expect_problem(403, "permission_missing");
    assert!(refused.text().contains("Edit clients"), "the tool's author learns which permission is missing");
}

#[test]
fn a_request_that_no_route_matches_is_404() {
    let gateway = Gateway::with(|config| {
        config["routes"] =
            json!([{ "path": "/v1/*/x", "upstream": "ledger" }, { "path": "/Exact", "methods": ["GET"], "upstream": "ledger" }])
    });
    let key = gateway.key();
    for (method, target) in
        [("GET", "/"), ("GET", "/v1/x"), ("GET", "/v1/a/b/x"), ("GET", "/v1/a/x/y"), ("GET", "/exact"), ("GET", "/V1/a/x")]
    {
        ask(&gateway, &key, method, target).expect_problem(404, "no_route");
    }
    let other_method = ask(&gateway, &key, "POST", "/Exact");
    assert!([404, 405].contains(&other_method.status));
    assert!(gateway.upstream.targets().is_empty());
    ask(&gateway, &key, "GET", "/v1/a/x").expect(200);
    ask(&gateway, &key, "GET", "/Exact").expect(200);
}

#[test]
fn the_first_matching_route_wins_and_a_host_can_be_demanded() {
    let gateway = Gateway::with(|config| {
        config["routes"] = json!([
            { "host": "reports.example.com", "path": "/**", "upstream": "ledger", "strip_prefix": "/v1" },
            { "path": "/v1/open/**", "upstream": "ledger" },
            { "path": "/v1/**", "deny": "closed" },
        ]);
    });
    let key = gateway.key();
    ask(&gateway, &key, "GET", "/v1/open/x").expect(200);
    ask(&gateway, &key, "GET", "/v1/shut").expect_problem(403, "route_denied");
    for host in ["reports.example.com", "REPORTS.example.com:8080"] {
        Request { host: host.into(), ..Request::get("/v1/shut").bearer(&key.secret) }.send_to(gateway.edge()).expect(200);
    }
    assert_eq!(gateway.upstream.targets(), ["/v1/open/x", "/shut", "/shut"]);
    Request { host: "evil.reports.example.com".into(), ..Request::get("/v1/shut").bearer(&key.secret) }.send_to(gateway.edge()).expect(403);
}

#[test]
fn a_denied_use_is_in_the_activity_log() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    ask(&gateway, &key, "POST", "/v1/session/login").expect(403);
    let record = gateway.uses(&editor, 1).remove(0);
    assert_eq!((record["outcome"].as_str(), record["path"].as_str()), (Some("route_denied"), Some("/v1/session/login")));
    assert_eq!(record["key_id"], key.id);
}

#[test]
fn a_refusal_by_policy_is_recorded_with_the_route_that_decided() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let rows = [("/v1/session/new", "/v1/session/**"), ("/v1/firms/firm-2/x", "/v1/firms/{firm}/**"), ("/v1/clients/7", "/v1/clients/**")];
    for (target, route) in rows {
        gateway.get(&key, target).expect(403);
        let record = found(SOON, target, || gateway.uses(&editor, 1).into_iter().find(|record| record["path"] == target));
        assert_eq!(record["route"], route);
        let series =
            format!("assure_gateway_requests_total{{outcome=\"{}\",route=\"{route}\"", record["outcome"].as_str().expect("a word"));
        assert_eq!(gateway.metric(&series), 1.0, "{series}");
    }
}

#[test]
fn another_spelling_of_a_method_does_not_lead_around_a_rule() {
    let gateway = Gateway::with(|config| {
        config["routes"] = json!([
            { "path": "/v1/x/**", "methods": ["DELETE"], "deny": "Nothing is deleted here" },
            { "path": "/**", "upstream": "ledger" },
        ]);
    });
    let key = gateway.key();
    for (method, status) in [("DELETE", 403), ("delete", 405), ("Delete", 405), ("PURGE", 200)] {
        assert_eq!(Request::new(method, "/v1/x/1").bearer(&key.secret).send_to(gateway.edge()).status, status, "{method}");
    }
}

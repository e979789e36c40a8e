//! What keeps nobody out: no fault that axe-core knows of, in each state, scheme and size; nothing from elsewhere; little to load.

use std::fs;

use serde_json::{Value, json};

use crate::support::browser::{DESK, DESK_AT_NIGHT, PHONE, PHONE_AT_NIGHT};
use crate::support::{Browser, EDIT, FIRM, Gateway, Request, VIEW, program};

/// Most bytes of a first visit.
const WEIGHT_MAX: u64 = 100_000;

/// Fails with every fault that axe-core finds on what is shown now.
#[track_caller]
fn assert_accessible(browser: &Browser, state: &str) {
    assert_eq!(faults(browser), json!([]), "{state}");
}

#[track_caller]
fn faults(browser: &Browser) -> Value {
    let axe = fs::read_to_string(program::node_module("axe-core/axe.min.js")).expect("axe-core is installed");
    browser.run(&format!("if (!window.axe) {{ {axe} }}"));
    let script = "return axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations.map((one) => one.id + ': ' + one.nodes.map((node) => node.html + ' ' + node.failureSummary).join(' | ')))";
    browser.promised(script, &json!([]))
}

/// Whether something is wider than the window, which would have to be scrolled for each line.
fn overflow(browser: &Browser) -> Value {
    browser.run("const wide = document.documentElement; return Math.max(0, wide.scrollWidth - wide.clientWidth)")
}

#[test]
fn axe_finds_no_fault_in_any_state_scheme_or_size() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let bob = gateway.token(FIRM, "bob", &[VIEW, EDIT, "View clients"]);
    let key = gateway.create_key(&bob, "Bob’s export with quite a long name that has to wrap somewhere");
    let old = gateway.create_key(&editor, "Old script");
    gateway.revoke(&editor, &old);
    gateway.get(&key, "/v1/a/rather/long/path/that/has/to/wrap/somewhere/in/a/narrow/table").expect(200);
    gateway.ask_admin(&Request::json("PUT", "/v1/users/bob", &json!({ "status": "left" })).bearer(&editor)).expect(200);
    gateway.uses(&editor, 1);
    let browser = Browser::open(&gateway, DESK);
    browser.goto("/");
    browser.wait_for("#signed-out");
    assert_accessible(&browser, "signed out");
    // What is looked for would be found.
    browser.run("document.querySelector('.brand img').removeAttribute('alt')");
    assert!(faults(&browser).to_string().contains("image-alt"));
    drop(browser);
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    for look in [DESK, DESK_AT_NIGHT, PHONE, PHONE_AT_NIGHT] {
        // A page that stands still is judged; moving ones are half transparent on the way.
        browser.prefer(&[("prefers-color-scheme", look.scheme), ("prefers-reduced-motion", "reduce")]);
        browser.resize(look.width, look.height, 1.0);
        let see = |state: &str| {
            assert_accessible(&browser, &format!("{state}, {look:?}"));
            assert_eq!(overflow(&browser), 0, "{state}, {look:?}");
        };
        browser.goto("/#keys");
        browser.reload();
        browser.wait_text("#key-list", "Bob’s export");
        browser.click("#revoked summary");
        browser.wait_for("#revoked-list");
        see("list");
        browser.click_named("Create");
        browser.wait_text("#name-error", "Type a name");
        see("bad name");
        browser.click(".key .acts button:last-child");
        browser.wait_for("#revoke");
        assert_eq!(
            browser.run("return getComputedStyle(document.getElementById('revoke')).animationName"),
            "none",
            "nothing moves for who asked so"
        );
        see("revoke");
        browser.click_named("Cancel");
        browser.click(".key .acts button");
        browser.wait_for("#rotate");
        see("rotate");
        browser.click_named("Close");
        browser.fill("#name", "Fresh");
        browser.click_named("Create");
        browser.wait_for("#secret");
        see("new key");
        browser.click_named("I’ve saved it");
        browser.click_named("Activity");
        browser.wait_text("#records", "Created");
        see("activity");
        let fresh = gateway.admin_get(&editor, "/v1/keys?status=active").expect(200).json();
        let fresh = fresh["keys"].as_array().expect("keys").iter().find(|key| key["name"] == "Fresh").expect("just made").clone();
        let id = fresh["id"].as_str().expect("an id");
        gateway.ask_admin(&Request::json("POST", &format!("/v1/keys/{id}/revoke"), &json!({})).bearer(&editor)).expect(200);
    }
    // 200 % of a usual window, and the narrowest that WCAG asks for (1.4.10): nothing is cut off or scrolled sideways.
    for (width, scale) in [(640, 2.0), (320, 4.0)] {
        browser.resize(width, 512, scale);
        for view in ["/#keys", "/#activity"] {
            browser.goto(view);
            browser.wait_for(if view == "/#keys" { "#key-list" } else { "#records" });
            assert_eq!(overflow(&browser), 0, "{view} at {width}");
        }
    }
}

#[test]
fn the_page_loads_little_and_nothing_from_elsewhere_and_has_nothing_inline() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let browser = Browser::signed_in(&gateway, &gateway.editor(), DESK);
    browser.wait_text("#key-list", "MCP server");
    let loaded = browser.run("return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).map((one) => [one.name, one.decodedBodySize])");
    let loaded = loaded.as_array().expect("a list");
    let of = |entry: &Value| (entry[0].as_str().expect("an address").to_owned(), entry[1].as_u64().expect("bytes"));
    assert!(loaded.len() >= 12 && loaded.iter().all(|entry| of(entry).0.starts_with(&gateway.admin_url())), "{loaded:?}");
    assert!(loaded.iter().map(|entry| of(entry).1).sum::<u64>() < WEIGHT_MAX, "{loaded:?}");
    let policy = gateway.ask_admin(&Request::get("/")).expect(200).fields.one("content-security-policy").expect("a policy").to_owned();
    for rule in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(rule) && !policy.contains("unsafe"), "{rule} in {policy}");
    }
    // What the policy is for: markup made of text and inline scripts are stopped by the browser itself.
    let tried = browser.run("try { document.body.innerHTML = '<b>x</b>'; return 'made' } catch (error) { return error.name }");
    assert_eq!(tried, "TypeError");
    browser.run("const script = document.createElement('script'); try { script.textContent = 'window.inline = 1' } catch {} document.head.append(script)");
    assert_eq!(browser.run("return window.inline ?? 'stopped'"), "stopped");
    for name in ["../mod.rs", "nothing.js", "%2e%2e/keys.rs"] {
        gateway.ask_admin(&Request::get(&format!("/page/{name}"))).expect_problem(404, "not_found");
    }
    gateway.get(&key, "/ok").expect(200);
}

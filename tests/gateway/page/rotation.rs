//! Rotation as the help page has it: create "NAME v2", switch the tool, confirm that it works, revoke the old key (K8).

use crate::support::browser::{DESK, ENTER, PHONE_AT_NIGHT};
use crate::support::{Browser, Gateway, Request};

#[test]
fn the_guide_watches_until_the_new_key_is_used_and_then_revokes_the_old() {
    let gateway = Gateway::start();
    let old = gateway.key();
    let browser = Browser::signed_in(&gateway, &gateway.editor(), DESK);
    browser.click_named("Rotate “MCP server”");
    browser.wait_focus("Name");
    assert_eq!(browser.run("return document.getElementById('rotate-name').value"), "MCP server v2");
    browser.click("#rotate-form button");
    browser.wait_for("#secret");
    let secret = browser.run("return document.getElementById('secret').value").as_str().expect("a key").to_owned();
    browser.click_named("I’ve saved it");
    browser.wait_text("#rotate-created", "“MCP server v2” is ready.");
    assert!(!browser.everything().contains(&secret));
    gateway.get(&old, "/ok").expect(200);
    browser.click_named("I’ve updated it");
    browser.wait_text("#rotate-verdict", "Waiting for the first use of the new key");
    browser.picture("rotate");
    Request::get("/ok").bearer(&secret).with("User-Agent", "claude-mcp/2").send_to(gateway.edge()).expect(200);
    browser.wait_text("#rotate-verdict", "The old one was still used");
    assert!(browser.text("#new-use").contains("claude-mcp"));
    browser.click_named("Revoke the old key anyway");
    assert_eq!(browser.text("#revoke-question"), "Revoke “MCP server”? Any script using this key will stop working.");
    browser.click("#revoke-confirm");
    browser.wait_text("#news", "“MCP server v2” has taken its place");
    gateway.get(&old, "/ok").expect(401);
    Request::get("/ok").bearer(&secret).send_to(gateway.edge()).expect(200);
    assert!(browser.wait_text("#key-list", "MCP server v2").matches("MCP server").count() >= 1);
}

#[test]
fn a_rotation_that_was_left_goes_on_later_by_keyboard_alone() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let (old, new) = (gateway.create_key(&editor, "Zapier v2"), gateway.create_key(&editor, "Zapier v3"));
    let browser = Browser::signed_in(&gateway, &editor, PHONE_AT_NIGHT);
    browser.wait_text("#key-list", "Zapier v3");
    browser.tab_to("Go on rotating “Zapier v2”");
    browser.press(ENTER);
    browser.wait_focus("I’ve updated it");
    browser.press(ENTER);
    gateway.get(&new, "/ok").expect(200);
    browser.wait_text("#rotate-verdict", "The new key works, and the old one is silent.");
    browser.picture("phone-dark-rotate");
    browser.tab_to("Revoke the old key");
    browser.press(ENTER);
    browser.wait_focus("Cancel");
    browser.tab_to("Revoke");
    browser.press(ENTER);
    browser.wait_text("#news", "It has stopped working everywhere");
    gateway.get(&old, "/ok").expect(401);
    gateway.get(&new, "/ok").expect(200);
}

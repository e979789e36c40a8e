//! The help page's flows: create, copy, save, use, revoke; and what stands in the way of each.
//!
//! Each flow is gone through by mouse and by keyboard alone, at a desk and on a phone, by day and by night; after each
//! the key itself is looked for in all that a script could find on the page.

use serde_json::json;

use crate::support::browser::{DESK, DESK_AT_NIGHT, ENTER, ESCAPE, Look, PHONE, PHONE_AT_NIGHT};
use crate::support::eventually::eventually;
use crate::support::{Browser, FIRM, Gateway, Key, Request, SOON, USER, VIEW};

/// What the help page says is asked.
const QUESTION: &str = "Revoke “MCP server”? Any script using this key will stop working.";

/// The key that the dialog shows.
pub(super) fn shown_key(browser: &Browser) -> Key {
    browser.wait_for("#secret");
    let secret = browser.run("return document.getElementById('secret').value").as_str().expect("a key").to_owned();
    Key { id: String::new(), prefix: secret[..15].to_owned(), secret }
}

/// After the dialog: only the first characters are shown, and nothing else of the key is anywhere.
fn assert_gone(browser: &Browser, gateway: &Gateway, key: &Key) {
    eventually!(SOON, !browser.shows("#created"), "the dialog closes");
    browser.wait_text("#key-list", &key.prefix);
    let everything = browser.everything();
    assert!(!everything.contains(&key.secret) && !everything.contains(&key.secret[16..]), "the key is nowhere");
    browser.goto("/");
    browser.wait_text("#key-list", &key.prefix);
    assert!(!browser.everything().contains(&key.secret) && !gateway.log().contains(&key.secret));
}

fn by_mouse(look: Look, pictures: &str) {
    let gateway = Gateway::start();
    let browser = Browser::signed_in(&gateway, &gateway.editor(), look);
    browser.wait_text("#empty", "No keys yet");
    browser.picture(&format!("{pictures}-empty"));
    browser.click_named("+ New");
    assert_eq!(browser.focused(), "Name");
    browser.write("MCP server");
    browser.click_named("Create");
    let key = shown_key(&browser);
    browser.picture(&format!("{pictures}-new-key"));
    assert!(browser.text("#created").contains("This is the only time you’ll see the full key"));
    browser.click("#copy");
    browser.wait_text("#copy-state", "Copied");
    // Where the clipboard is refused, the key is selected and the keys to press are named.
    browser.run("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))");
    browser.click("#copy");
    browser.wait_text("#copy-state", "press Ctrl+C");
    assert_eq!(
        browser.run("const field = document.getElementById('secret'); return field.value.slice(field.selectionStart, field.selectionEnd)"),
        key.secret
    );
    let rim = browser.run(
        "const rim = document.getElementById('created').getBoundingClientRect(); return [Math.ceil(rim.left) + 4, Math.ceil(rim.top) + 4]",
    );
    browser.click_at(rim[0].as_u64().expect("a place"), rim[1].as_u64().expect("a place"));
    assert!(!browser.shows("#leave"), "the dialog's own rim closes nothing");
    browser.click_at(4, 4);
    browser.wait_text("#leave", "Close without saving?");
    browser.picture(&format!("{pictures}-leave"));
    browser.click_named("Go back");
    browser.click_named("I’ve saved it");
    assert_gone(&browser, &gateway, &key);
    assert!(browser.text("#counts").contains("1 of 10 keys in your firm; 1 of your 5."));

    Request::get("/ok").bearer(&key.secret).with("User-Agent", "claude-mcp/1.2 (linux)").send_to(gateway.edge()).expect(200);
    eventually!(SOON, {
        browser.reload();
        browser.wait_text("#key-list", "MCP server").contains("with claude-mcp from 127.0.0.1")
    });
    assert!(browser.text("#key-list").contains("1 use"));
    assert!(
        browser.run("return document.querySelector('#key-list time').title").as_str().is_some_and(|title| title.contains(" at ")),
        "the exact time"
    );
    browser.picture(&format!("{pictures}-list"));
    browser.click_named("Revoke “MCP server”");
    assert_eq!(browser.text("#revoke-question"), QUESTION);
    let facts = browser.wait_text("#revoke-facts", "1 request");
    assert!(facts.contains("claude-mcp, from 127.0.0.0/24") && facts.contains("Last used"), "{facts}");
    browser.picture(&format!("{pictures}-revoke"));
    browser.click_named("Cancel");
    Request::get("/ok").bearer(&key.secret).send_to(gateway.edge()).expect(200);
    browser.click_named("Revoke “MCP server”");
    browser.click("#revoke-confirm");
    browser.wait_text("#news", "It has stopped working everywhere.");
    Request::get("/ok").bearer(&key.secret).send_to(gateway.edge()).expect(401);
    browser.wait_text("#revoked", "1 revoked key");
    assert!(!browser.shows("#revoked-list"), "they are folded away");
    browser.click("#revoked summary");
    assert!(browser.wait_text("#revoked-list", "MCP server").contains(&format!("by {USER}")));
}

#[test]
fn every_flow_works_by_mouse_at_a_desk_and_on_a_phone() {
    by_mouse(DESK, "desk-light");
    by_mouse(PHONE_AT_NIGHT, "phone-dark");
}

fn by_keyboard(look: Look) {
    let gateway = Gateway::start();
    let browser = Browser::signed_in(&gateway, &gateway.editor(), look);
    browser.wait_text("#empty", "No keys yet");
    browser.tab_to("Skip to content");
    browser.tab_to("Name");
    browser.press(ENTER);
    browser.wait_text("#name-error", "Type a name");
    browser.write("MCP server");
    browser.press(ENTER);
    browser.wait_focus("Copy the key");
    let key = shown_key(&browser);
    // Closing any other way asks first, and the way back leads to the key.
    browser.press(ESCAPE);
    browser.wait_focus("Go back");
    assert!(browser.text("#leave-question").contains("can’t show or recover this key again"));
    browser.press(ENTER);
    browser.wait_focus("Copy the key");
    browser.press(ESCAPE);
    browser.wait_focus("Go back");
    browser.press(ESCAPE);
    assert!(browser.shows("#created") && shown_key(&browser).secret == key.secret, "Escape alone never loses the key");
    browser.press(ENTER);
    browser.press(ENTER);
    browser.wait_text("#copy-state", "Copied");
    browser.tab_to("I’ve saved it");
    browser.press(ENTER);
    browser.wait_focus("Name");
    assert_gone(&browser, &gateway, &key);
    Request::get("/ok").bearer(&key.secret).send_to(gateway.edge()).expect(200);
    browser.tab_to("Revoke “MCP server”");
    browser.press(ENTER);
    browser.wait_focus("Cancel");
    assert_eq!(browser.text("#revoke-question"), QUESTION);
    // The list is made anew meanwhile, as it is every 20 seconds; the focus comes back all the same.
    browser.run("document.getElementById('by').dispatchEvent(new Event('change'))");
    browser.press(ESCAPE);
    browser.wait_focus("Revoke “MCP server”");
    browser.press(ENTER);
    browser.wait_focus("Cancel");
    browser.tab_to("Revoke");
    browser.press(ENTER);
    browser.wait_text("#news", "It has stopped working everywhere.");
    Request::get("/ok").bearer(&key.secret).send_to(gateway.edge()).expect(401);
}

#[test]
fn every_flow_works_by_keyboard_alone_at_a_desk_and_on_a_phone() {
    by_keyboard(DESK_AT_NIGHT);
    by_keyboard(PHONE);
}

#[test]
fn a_revocation_that_is_not_certain_says_so_and_is_tried_again() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let browser = Browser::signed_in(&gateway, &gateway.editor(), PHONE);
    browser.click_named("Revoke “MCP server”");
    browser.wait_for("#revoke");
    // One answer as a gateway gives it that could not hear from every replica; the next is asked of the real one.
    browser.run(
        "const real = window.fetch; window.fetch = () => { window.fetch = real; return Promise.resolve(new Response(JSON.stringify({ code: \
         'revocation_unconfirmed', detail: 'It could not be confirmed that every replica refuses the key; try again until it is.' }), { status: 503 })) }",
    );
    browser.click("#revoke-confirm");
    browser.wait_text("#revoke-error", "It could not be confirmed");
    browser.wait_focus("Try again");
    assert!(browser.shows("#revoke") && browser.text("#news").is_empty(), "nothing is claimed");
    gateway.get(&key, "/ok").expect(200);
    browser.press(ENTER);
    browser.wait_text("#news", "It has stopped working everywhere.");
    gateway.get(&key, "/ok").expect(401);
}

#[test]
fn limits_and_bad_names_are_explained_beside_the_field() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    browser.wait_text("#empty", "No keys yet");
    let try_name = |name: &str, said: &str| {
        browser.run(&format!("document.getElementById('name').value = {}", json!(name)));
        browser.click_named("Create");
        browser.wait_text("#name-error", said);
        assert_eq!(browser.run("return document.activeElement.id + document.activeElement.ariaInvalid"), "nametrue");
    };
    try_name("   ", "Type a name for the key first.");
    try_name(&"x".repeat(101), "at most 100 characters, this has 101");
    try_name("a\u{7}b", "without line breaks or other control characters");
    for number in 1..=4 {
        gateway.create_key(&editor, &format!("Tool {number}"));
    }
    browser.reload();
    browser.wait_text("#counts", "4 of your 5");
    // Somebody takes the last place while this page is open.
    let last = gateway.create_key(&editor, "Tool 5");
    browser.fill("#name", "One too many");
    browser.click_named("Create");
    browser.wait_text("#name-error", "You have created 5 active keys");
    assert!(!browser.shows("#created"));
    browser.reload();
    browser.wait_text("#name-help", "You have created 5 keys, the most one person may have.");
    assert_eq!(browser.run("return document.getElementById('create-button').disabled"), true);
    browser.picture("limit");
    gateway.revoke(&editor, &last);
    let colleague = gateway.token(FIRM, "user-2", &[VIEW, crate::support::EDIT]);
    (0..5).for_each(|number| drop(gateway.create_key(&colleague, &format!("Theirs {number}"))));
    browser.reload();
    browser.wait_text("#counts", "9 of 10 keys in your firm; 4 of your 5.");
    gateway.create_key(&editor, "The tenth");
    browser.reload();
    browser.wait_text("#name-help", "Your firm has 10 keys, the most it may have.");
}

#[test]
fn a_name_is_text_wherever_it_is_shown() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let name = "<img src=x onerror=\"window.hacked=1\">";
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    browser.wait_text("#empty", "No keys yet");
    browser.fill("#name", name);
    browser.click_named("Create");
    let key = shown_key(&browser);
    assert_eq!(browser.text("#created-name"), name);
    browser.click_named("I’ve saved it");
    browser.wait_text("#key-list", name);
    Request::get("/<script>").bearer(&key.secret).with("User-Agent", "<script>window.hacked=1</script>").send_to(gateway.edge());
    Request::get("/ok").bearer(&key.secret).with("User-Agent", "<svg/onload=window.hacked=1>").send_to(gateway.edge()).expect(200);
    browser.click_named(&format!("Revoke “{name}”"));
    assert_eq!(browser.text("#revoke-question"), format!("Revoke “{name}”? Any script using this key will stop working."));
    browser.click_named("Cancel");
    browser.click_named("Activity");
    eventually!(SOON, {
        browser.reload();
        browser.wait_text("#records", name).contains("<svg")
    });
    assert_eq!(browser.run("return [window.hacked ?? 'safe', document.querySelectorAll('main img, main script').length].join()"), "safe,0");
}

#[test]
fn a_viewer_sees_everything_and_can_change_nothing() {
    let gateway = Gateway::start();
    let key = gateway.key();
    gateway.get(&key, "/ok").expect(200);
    let browser = Browser::signed_in(&gateway, &gateway.token(FIRM, "viewer", &[VIEW]), DESK);
    browser.wait_text("#key-list", "MCP server");
    assert!(browser.text("#may-not-edit").contains("needs the permission “Edit firm settings”"));
    assert!(!browser.shows("#create") && !browser.shows("#new"));
    assert_eq!(browser.run("return document.querySelectorAll('.key button').length"), 0);
    browser.picture("viewer");
    browser.click_named("Activity");
    browser.wait_text("#records", "Created");
    let nobody = Browser::signed_in(&gateway, &gateway.token(FIRM, "nobody", &[]), PHONE);
    nobody.wait_text("#may-not-edit", "Seeing API keys needs the permission “View firm settings”.");
    assert!(!nobody.everything().contains(&key.prefix));
}

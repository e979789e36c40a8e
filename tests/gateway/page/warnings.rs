//! K19: what the list points out, told by uses, by tokens and by what the dashboard says of users.

use serde_json::{Value, json};

use crate::support::browser::{DESK, DESK_AT_NIGHT};
use crate::support::eventually::eventually;
use crate::support::{Browser, EDIT, FIRM, Gateway, Request, SOON, VIEW};

fn tell(gateway: &Gateway, token: &str, user: &str, body: &Value) -> crate::support::Answer {
    gateway.ask_admin(&Request::json("PUT", &format!("/v1/users/{user}"), body).bearer(token))
}

fn warnings(gateway: &Gateway, token: &str, name: &str) -> Vec<String> {
    let list = gateway.admin_get(token, "/v1/keys").expect(200).json();
    let key = list["keys"].as_array().expect("keys").iter().find(|key| key["name"] == name).expect("the key").clone();
    key["warnings"].as_array().expect("warnings").iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
}

#[test]
fn the_list_warns_of_shared_keys_and_of_creators_who_left_or_may_less() {
    let gateway = Gateway::with(|config| config["edge"]["trusted_proxies"] = json!(["127.0.0.0/8"]));
    let (editor, bob) = (gateway.editor(), gateway.token(FIRM, "bob", &[VIEW, EDIT, "View clients"]));
    let shared = gateway.create_key(&editor, "Shared key");
    gateway.create_key(&bob, "Bob’s export");
    for (tool, address) in [("claude-mcp/1", "203.0.113.9"), ("zapier/2", "198.51.100.4")] {
        Request::get("/ok")
            .bearer(&shared.secret)
            .with("User-Agent", tool)
            .with("X-Forwarded-For", address)
            .send_to(gateway.edge())
            .expect(200);
    }
    eventually!(SOON, warnings(&gateway, &editor, "Shared key") == ["used_by_several_tools", "used_from_several_networks"]);
    assert!(warnings(&gateway, &bob, "Bob’s export").is_empty(), "Bob's own token says that he may all of it");
    let browser = Browser::signed_in(&gateway, &editor, DESK_AT_NIGHT);
    let list = browser.wait_text("#key-list", "Used by different tools: zapier and claude-mcp.");
    let list = if list.contains("203.0.113.0/24") { list } else { panic!("networks are named: {list}") };
    assert!(!list.contains("has left"));

    let lost =
        tell(&gateway, &editor, "bob", &json!({ "status": "active", "permissions": [VIEW, EDIT], "name": "Bob" })).expect(200).json();
    assert_eq!(
        (lost["keys"][0]["name"].as_str(), lost["keys"][0]["creator_lacks"].clone()),
        (Some("Bob’s export"), json!(["View clients"]))
    );
    assert_eq!(warnings(&gateway, &editor, "Bob’s export"), ["creator_lost_permissions"]);
    browser.reload();
    browser.wait_text("#key-list", "It may do more than Bob, who created it, may do today: View clients.");
    tell(&gateway, &editor, "bob", &json!({ "status": "left" })).expect(200);
    browser.reload();
    browser.wait_text("#key-list", "Bob has left your firm.");
    browser.picture("warnings");
    browser.choose("by", "Bob");
    browser.wait_text("#key-list", "Bob’s export");
    assert!(!browser.text("#key-list").contains("Shared key"), "created by Bob alone");
    gateway.get(&shared, "/ok").expect(200);
}

#[test]
fn what_is_told_of_users_is_kept_and_changes_no_key() {
    let mut gateway = Gateway::start();
    let (editor, bob) = (gateway.editor(), gateway.token(FIRM, "bob", &[VIEW, EDIT]));
    let key = gateway.create_key(&bob, "Bob’s");
    tell(&gateway, &editor, "bob", &json!({ "status": "left" })).expect(200);
    gateway.restart();
    assert_eq!(warnings(&gateway, &editor, "Bob’s"), ["creator_left"]);
    // A token from before that word does not outdo it.
    gateway.admin_get(&bob, "/v1/keys").expect(200);
    assert_eq!(warnings(&gateway, &editor, "Bob’s"), ["creator_left"]);
    gateway.get(&key, "/ok").expect(200);
    tell(&gateway, &gateway.token(FIRM, "viewer", &[VIEW]), "bob", &json!({ "status": "left" })).expect_problem(403, "permission_missing");
    tell(&gateway, &gateway.token("firm-2", "x", &[VIEW, EDIT]), "bob", &json!({ "status": "active", "permissions": [] })).expect(200);
    assert_eq!(warnings(&gateway, &editor, "Bob’s"), ["creator_left"], "another firm's word is of its own users");
    for body in [
        json!({ "status": "gone" }),
        json!({ "status": "active" }),
        json!({ "status": "left", "more": 1 }),
        json!({ "status": "left", "name": "a\nb" }),
    ] {
        tell(&gateway, &editor, "bob", &body).expect_problem(400, "malformed_request");
    }
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    browser.wait_text("#key-list", "bob has left your firm.");
}

//! K2, K3, K8, K12, K15: what admins do with keys, through the admin API, and what they may not.
//!
//! Every row of the contract's table, the limits when many creates arrive at once, the borders between firms, and
//! that the full key is nowhere but in the one answer that shows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};

use crate::support::eventually::{eventually, found};
use crate::support::{Answer, Client, EDIT, FIRM, Gateway, Key, Request, SOON, USER, VIEW};

fn listed(gateway: &Gateway, token: &str, query: &str) -> Vec<Value> {
    let list = gateway.admin_get(token, &format!("/v1/keys{query}")).expect(200).json();
    list["keys"].as_array().expect("a list").clone()
}

fn revoke_call(id: &str) -> Request {
    Request::json("POST", &format!("/v1/keys/{id}/revoke"), &json!({}))
}

#[test]
fn a_created_key_is_shown_once_with_all_that_was_frozen() {
    let gateway = Gateway::start();
    let editor = gateway.token(FIRM, USER, &[VIEW, EDIT, "View clients"]);
    let answer = gateway.try_create(&editor, &json!({ "name": "  MCP server " })).expect(201);
    assert_eq!(answer.fields.one("cache-control"), Some("no-store"));
    let created = answer.json();
    let secret = created["key"].as_str().expect("the key");
    assert!(secret.len() == 49 && secret.starts_with("assure_"));
    assert_eq!(created["prefix"], secret[..15]);
    assert_eq!(
        (created["name"].as_str(), created["firm_id"].as_str(), created["creator"].as_str()),
        (Some("MCP server"), Some(FIRM), Some(USER))
    );
    assert_eq!(created["permissions"], json!([EDIT, "View clients", VIEW]));
    assert!(created["created_at"].is_string());

    let id = created["id"].as_str().expect("the id");
    for view in [listed(&gateway, &editor, "").remove(0), gateway.admin_get(&editor, &format!("/v1/keys/{id}")).expect(200).json()] {
        assert_eq!(
            (view["id"].as_str(), view["status"].as_str(), view["prefix"].as_str()),
            (Some(id), Some("active"), Some(&secret[..15]))
        );
        assert!(view.get("key").is_none() && !view.to_string().contains(secret), "never again");
        for member in
            ["name", "creator", "permissions", "created_at", "last_used_at", "last_used_by", "revoked_at", "revoked_by", "warnings"]
        {
            assert!(view.get(member).is_some(), "{member} is missing in {view}");
        }
    }
}

#[test]
fn the_full_key_is_nowhere_but_in_its_one_answer() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let repeated = Request::json("POST", "/v1/keys", &json!({ "name": "again" })).bearer(&editor).with("Idempotency-Key", "once");
    let first = gateway.ask_admin(&repeated).expect(201).json();
    gateway.ask_admin(&repeated);
    let keys = [gateway.key().secret, first["key"].as_str().expect("the key").to_owned()];
    for key in &keys {
        Request::get("/ok").bearer(key).send_to(gateway.edge()).expect(200);
        Request::get(&format!("/ok?api_key={key}")).send_to(gateway.edge()).expect(401);
        gateway.ask_admin(&Request::json("POST", "/v1/keys/lookup", &json!({ "key": key })).bearer(&editor)).expect(200);
        gateway.ask_admin(&Request::get("/v1/keys").bearer(key)).expect(401);
    }
    gateway.uses(&editor, 2);
    let secret_part = |key: &str| key[11..43].to_owned();
    let holds = |bytes: &[u8], key: &str| bytes.windows(32).any(|window| window == secret_part(key).as_bytes());
    for key in &keys {
        for (file, bytes) in gateway.files() {
            assert!(!holds(&bytes, key), "the key is in {}", file.display());
        }
        for (what, text) in [
            ("the log", gateway.log()),
            ("the metrics", gateway.ops_get("/metrics").text()),
            ("the list", gateway.admin_get(&editor, "/v1/keys").text()),
        ] {
            assert!(!holds(text.as_bytes(), key), "the key is in {what}");
        }
        let activity: String = gateway.activity(&editor).iter().map(Value::to_string).collect();
        assert!(!holds(activity.as_bytes(), key), "the key is in the activity log");
    }
    assert!(!gateway.log().contains(&editor), "the admin's token is in no log");
}

#[test]
fn a_bad_name_is_422_and_creates_nothing() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let long = "é".repeat(101);
    for name in ["", "   ", "a\u{0}b", "a\nb", "a\u{202e}b", "\u{1b}[31m", long.as_str()] {
        gateway.try_create(&editor, &json!({ "name": name })).expect(422);
    }
    for body in [json!({}), json!({ "name": 7 }), json!({ "name": null }), json!([]), json!("name"), json!({ "name": ["a"] })] {
        let status = gateway.try_create(&editor, &body).status;
        assert!([400, 422].contains(&status), "{body}: {status}");
    }
    for text in [r#"{"name":"\ud800"}"#, r#"{"name":"a""#, "", r#"{"name":"a","name":"b"}"#] {
        let request = Request::post("/v1/keys", text).bearer(&editor).with("Content-Type", "application/json");
        let status = gateway.ask_admin(&request).status;
        assert!([400, 422].contains(&status), "{text}: {status}");
    }
    assert!(listed(&gateway, &editor, "?status=all").is_empty());
    gateway.try_create(&editor, &json!({ "name": "é".repeat(100) })).expect(201);
    gateway.try_create(&editor, &json!({ "name": "🔑 emoji" })).expect(201);
}

#[test]
fn firm_creator_and_permissions_come_only_from_the_token() {
    let gateway = Gateway::start();
    let body = json!({ "name": "x", "firm_id": "firm-2", "permissions": ["Everything"], "creator": "root", "prefix": "zzz", "id": "7" });
    let answer = gateway.try_create(&gateway.editor(), &body);
    if answer.status == 201 {
        let created = answer.json();
        assert_eq!((created["firm_id"].as_str(), created["creator"].as_str()), (Some(FIRM), Some(USER)));
        assert_eq!(created["permissions"], json!([EDIT, VIEW]));
    } else {
        assert!([400, 422].contains(&answer.status), "unknown members are refused or ignored: {}", answer.status);
    }
}

#[test]
fn the_sixth_key_of_a_creator_and_the_eleventh_of_a_firm_are_409() {
    let gateway = Gateway::start();
    let [ada, bob, eve] = ["ada", "bob", "eve"].map(|user| gateway.token(FIRM, user, &[VIEW, EDIT]));
    let keys: Vec<Key> = (0..5).map(|_| gateway.create_key(&ada, "k")).collect();
    gateway.try_create(&ada, &json!({ "name": "k" })).expect_problem(409, "creator_key_limit");
    (0..5).for_each(|_| drop(gateway.create_key(&bob, "k")));
    gateway.try_create(&eve, &json!({ "name": "k" })).expect_problem(409, "firm_key_limit");
    // Another firm has its own ten, also for a user of the same name.
    gateway.create_key(&gateway.token("firm-2", "ada", &[VIEW, EDIT]), "k");
    // A revoked key frees one slot, and only one, also when it is revoked twice.
    gateway.revoke(&eve, &keys[0]);
    gateway.revoke(&eve, &keys[0]);
    gateway.create_key(&ada, "k");
    assert!(gateway.try_create(&ada, &json!({ "name": "k" })).status == 409);
}

/// Statuses of `each` creates by every token, all at once.
fn parallel_creates(gateway: &Gateway, tokens: &[String], each: usize) -> Vec<(String, u16)> {
    let admin = gateway.admin();
    let threads: Vec<_> = tokens
        .iter()
        .flat_map(|token| (0..each).map(|_| token.clone()))
        .map(|token| {
            thread::spawn(move || {
                let mut request = Request::json("POST", "/v1/keys", &json!({ "name": "parallel" })).bearer(&token);
                request.host = admin.to_string();
                (token, request.send_to(admin).status)
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("no client panics")).collect()
}

#[test]
fn fifty_creates_at_once_by_one_creator_make_exactly_five_keys() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let statuses: Vec<u16> = parallel_creates(&gateway, std::slice::from_ref(&editor), 50).into_iter().map(|(_, status)| status).collect();
    let count = |status: u16| statuses.iter().filter(|known| **known == status).count();
    assert_eq!((count(201), count(409)), (5, 45), "{statuses:?}");
    assert_eq!(listed(&gateway, &editor, "").len(), 5);
    let creates = gateway.activity(&editor).iter().filter(|record| record["action"] == "key.create").count();
    assert_eq!(creates, 5, "each created key has one record");
}

#[test]
fn sixty_creates_at_once_by_three_creators_make_exactly_ten_keys() {
    let gateway = Gateway::start();
    let tokens = ["ada", "bob", "eve"].map(|user| gateway.token(FIRM, user, &[VIEW, EDIT]));
    let statuses = parallel_creates(&gateway, &tokens, 20);
    let made = |token: &String| statuses.iter().filter(|(by, status)| by == token && *status == 201).count();
    assert_eq!(tokens.iter().map(made).sum::<usize>(), 10);
    assert!(tokens.iter().all(|token| made(token) <= 5));
    assert_eq!(listed(&gateway, &tokens[0], "").len(), 10);
}

#[test]
fn a_repeated_create_with_the_same_idempotency_key_makes_one_key_and_shows_it_once() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let request = Request::json("POST", "/v1/keys", &json!({ "name": "retry" })).bearer(&editor).with("Idempotency-Key", "retry-7");
    let first = gateway.ask_admin(&request).expect(201).json();
    let second = gateway.ask_admin(&request);
    assert!([200, 201].contains(&second.status));
    let second = second.json();
    assert_eq!(first["id"], second["id"]);
    assert!(first["key"].is_string() && second.get("key").is_none_or(Value::is_null), "{second}");
    assert_eq!(listed(&gateway, &editor, "").len(), 1);
    // The same word of another user, or of another firm, is another call.
    for (firm, user) in [(FIRM, "bob"), ("firm-2", USER)] {
        let token = gateway.token(firm, user, &[VIEW, EDIT]);
        let other = Request::json("POST", "/v1/keys", &json!({ "name": "retry" })).bearer(&token).with("Idempotency-Key", "retry-7");
        let other = gateway.ask_admin(&other).expect(201).json();
        assert!(other["id"] != first["id"] && other["key"].is_string());
    }
}

#[test]
fn viewing_needs_view_and_changing_needs_edit() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "k");
    let [viewer, only_edit, nobody] = [&[VIEW][..], &[EDIT], &[]].map(|permissions| gateway.token(FIRM, "other", permissions));
    let status = |token: &str, request: Request| gateway.ask_admin(&request.bearer(token)).status;
    for (token, view, edit) in [(&viewer, 200, 403), (&nobody, 403, 403), (&only_edit, 403, 201)] {
        assert_eq!(status(token, Request::get("/v1/keys")), view);
        assert_eq!(status(token, Request::get(&format!("/v1/keys/{}", key.id))), view);
        assert_eq!(status(token, Request::get("/v1/activity")), view);
        assert_eq!(status(token, Request::json("POST", "/v1/keys/lookup", &json!({ "key": key.secret }))), view);
        assert_eq!(status(token, Request::json("POST", "/v1/keys", &json!({ "name": "n" }))), edit);
        assert_eq!(status(token, Request::get("/v1/whoami")), 200, "any valid token");
    }
    for token in [&viewer, &nobody] {
        assert_eq!(status(token, revoke_call(&key.id)), 403);
    }
    gateway.get(&key, "/ok").expect(200);
    // An editor may revoke any key of the firm.
    assert_eq!(status(&only_edit, revoke_call(&key.id)), 200);
    gateway.get(&key, "/ok").expect(401);
}

#[test]
fn another_firms_key_is_404_and_unchanged() {
    let gateway = Gateway::start();
    let (ours, theirs) = (gateway.editor(), gateway.token("firm-2", "bob", &[VIEW, EDIT]));
    let key = gateway.create_key(&theirs, "theirs");
    gateway.ask_admin(&Request::get(&format!("/v1/keys/{}", key.id)).bearer(&ours)).expect(404);
    gateway.ask_admin(&revoke_call(&key.id).bearer(&ours)).expect(404);
    gateway.ask_admin(&Request::json("POST", "/v1/keys/lookup", &json!({ "key": key.secret })).bearer(&ours)).expect(404);
    gateway.get(&key, "/ok").expect(200);
    gateway.uses(&theirs, 1);
    assert!(gateway.activity(&ours).iter().all(|record| record["firm_id"] == FIRM));
    let by_key = gateway.admin_get(&ours, &format!("/v1/activity?key={}", key.id));
    assert!(by_key.status == 404 || records_of(&by_key.json()).is_empty(), "{}", by_key.text());
    assert!(listed(&gateway, &ours, "?status=all").is_empty());
}

#[test]
fn an_unknown_key_is_404_and_a_malformed_id_is_no_other_firms_key() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    gateway.ask_admin(&revoke_call("01890a5d-ac96-774b-bcce-b302099a8057").bearer(&editor)).expect(404);
    for id in ["x", "../keys", "%00", "01890a5dac96774bbcceb302099a8057"] {
        let status = gateway.ask_admin(&revoke_call(id).bearer(&editor)).status;
        assert!([400, 404].contains(&status), "{id}: {status}");
    }
}

#[test]
fn a_key_may_never_call_the_admin_api() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for request in [
        Request::get("/v1/keys"),
        Request::get("/v1/whoami"),
        Request::json("POST", "/v1/keys", &json!({ "name": "n" })),
        revoke_call(&key.id),
    ] {
        gateway.ask_admin(&request.clone().bearer(&key.secret)).expect(401);
        gateway.ask_admin(&request.with("X-Api-Key", &key.secret)).expect(401);
    }
    gateway.get(&key, "/ok").expect(200);
}

#[test]
fn the_list_filters_by_status_and_creator_and_tells_the_limits() {
    let gateway = Gateway::start();
    let [ada, bob] = ["ada", "bob"].map(|user| gateway.token(FIRM, user, &[VIEW, EDIT]));
    let (old, kept, other) = (gateway.create_key(&ada, "old"), gateway.create_key(&ada, "kept"), gateway.create_key(&bob, "other"));
    gateway.revoke(&bob, &old);
    let ids = |query: &str| {
        listed(&gateway, &ada, query).iter().map(|key| key["id"].as_str().expect("an id").to_owned()).collect::<BTreeSet<_>>()
    };
    let set = |keys: &[&Key]| keys.iter().map(|key| key.id.clone()).collect::<BTreeSet<_>>();
    assert_eq!(ids("?status=all"), set(&[&old, &kept, &other]));
    assert_eq!(ids("?status=active"), set(&[&kept, &other]));
    assert_eq!(ids("?status=revoked"), set(&[&old]));
    assert_eq!(ids("?status=all&creator=bob"), set(&[&other]));
    let list = gateway.admin_get(&ada, "/v1/keys").json();
    assert!(list["limits"].is_object(), "{list}");
    let view = gateway.admin_get(&ada, &format!("/v1/keys/{}", old.id)).json();
    assert_eq!((view["status"].as_str(), view["revoked_by"].as_str()), (Some("revoked"), Some("bob")));
    assert!(view["revoked_at"].is_string());
    assert_eq!(gateway.admin_get(&ada, "/v1/keys?status=nonsense").status / 100, 4);
}

#[test]
fn rotation_shows_the_new_key_in_use_before_the_old_is_revoked() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let old = gateway.create_key(&editor, "Zapier");
    let new = gateway.create_key(&editor, "Zapier v2");
    let last_use = |key: &Key| gateway.admin_get(&editor, &format!("/v1/keys/{}", key.id)).json()["last_used_at"].clone();
    assert!(last_use(&new).is_null());
    gateway.get(&old, "/ok").expect(200);
    gateway.get(&new, "/ok").expect(200);
    eventually!(SOON, last_use(&new).is_string(), "the new key shows in use");
    gateway.revoke(&editor, &old);
    gateway.get(&old, "/ok").expect(401);
    gateway.get(&new, "/ok").expect(200);
}

#[test]
fn lookup_says_which_key_a_leaked_text_is() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "leaked");
    let lookup = |text: &str| gateway.ask_admin(&Request::json("POST", "/v1/keys/lookup", &json!({ "key": text })).bearer(&editor));
    let found = lookup(&key.secret).expect(200).json();
    assert_eq!((found["id"].as_str(), found["name"].as_str()), (Some(key.id.as_str()), Some("leaked")));
    assert!(!found.to_string().contains(&key.secret));
    gateway.revoke(&editor, &key);
    assert_eq!(lookup(&key.secret).expect(200).json()["status"], "revoked", "a revoked key is found too");
    for text in [&key.secret[..48], "x", "", &key.prefix] {
        let status = lookup(text).status;
        assert!([404, 400, 422].contains(&status), "{status}");
    }
}

#[test]
fn whoami_tells_user_firm_and_what_they_may_do() {
    let gateway = Gateway::start();
    let viewer = gateway.token(FIRM, "vera", &[VIEW]);
    let answer = gateway.admin_get(&viewer, "/v1/whoami").expect(200).text();
    assert!(answer.contains("vera") && answer.contains(FIRM) && answer.contains(VIEW), "{answer}");
}

/// The records in an answer of `GET /v1/activity`: its only list.
fn records_of(page: &Value) -> Vec<Value> {
    let lists: Vec<&Vec<Value>> = page.as_object().expect("an object").values().filter_map(Value::as_array).collect();
    assert_eq!(lists.len(), 1, "one list of records: {page}");
    lists[0].clone()
}

/// The cursor of the next page: the only text beside the list.
fn cursor_of(page: &Value) -> Option<String> {
    page.as_object()
        .expect("an object")
        .iter()
        .filter(|(name, _)| name.contains("cursor") || name.contains("next"))
        .find_map(|(_, value)| value.as_str().map(str::to_owned))
}

#[test]
fn the_activity_log_is_paged_newest_first_without_gap_or_repeat_while_it_grows() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    for turn in 0..25 {
        gateway.get(&key, &format!("/turn/{turn}")).expect(200);
    }
    gateway.uses(&editor, 25);
    let mut records = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let query = cursor.as_ref().map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let page = gateway.admin_get(&editor, &format!("/v1/activity?limit=7{query}")).expect(200).json();
        let part = records_of(&page);
        assert!(part.len() <= 7);
        records.extend(part);
        gateway.get(&key, "/meanwhile").expect(200);
        cursor = cursor_of(&page);
        if cursor.is_none() {
            break;
        }
    }
    let times: Vec<&str> = records.iter().filter_map(|record| record["time"].as_str()).collect();
    assert!(times.windows(2).all(|pair| pair[0] >= pair[1]), "newest first");
    let ids: BTreeSet<&str> = records.iter().filter_map(|record| record["event_id"].as_str()).collect();
    assert_eq!(ids.len(), records.len(), "no repeat");
    for turn in 0..25 {
        assert!(records.iter().any(|record| record["path"] == format!("/turn/{turn}")), "no gap at {turn}");
    }
}

#[test]
fn the_activity_log_filters_by_key_action_and_time_and_refuses_nonsense() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let (one, other) = (gateway.create_key(&editor, "one"), gateway.create_key(&editor, "other"));
    gateway.get(&one, "/ok").expect(200);
    gateway.get(&other, "/ok").expect(200);
    gateway.uses(&editor, 2);
    gateway.revoke(&editor, &one);
    let ask = |query: &str| records_of(&gateway.admin_get(&editor, &format!("/v1/activity?{query}")).expect(200).json());
    assert_eq!(ask(&format!("key={}", one.id)).len(), 3);
    assert_eq!(ask("action=key.create").len(), 2);
    assert_eq!(ask(&format!("key={}&action=key.use", other.id)).len(), 1);
    let middle = ask("action=key.use").iter().filter_map(|record| record["time"].as_str().map(str::to_owned)).min().expect("a time");
    assert!(ask(&format!("since={middle}")).iter().all(|record| record["time"].as_str() >= Some(&middle)));
    assert!(ask(&format!("until={middle}")).iter().all(|record| record["time"].as_str() <= Some(&middle)));
    assert_eq!(ask(&format!("since={middle}")).len() + ask(&format!("until={middle}")).len(), 5, "one end is open, the other is not");
    for query in ["limit=-1", "limit=0", "limit=1000000000", "limit=x", "cursor=tampered", "since=yesterday", "action=key.fly", "key=x"] {
        let status = gateway.admin_get(&editor, &format!("/v1/activity?{query}")).status;
        assert!([400, 404, 422].contains(&status), "{query}: {status}");
    }
}

#[test]
fn the_activity_log_can_be_followed() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let mut request = Request::get("/v1/activity").bearer(&editor).with("Accept", "text/event-stream");
    request.host = gateway.admin().to_string();
    let mut client = Client::connect(gateway.admin());
    client.send(request.head()).expect("sent");
    let (answer, _) = client.answer_head("GET").expect("a head");
    assert!(answer.status == 200 && answer.fields.one("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")));
    for turn in 0..3 {
        gateway.get(&key, &format!("/followed/{turn}")).expect(200);
        client.read_until(&format!("/followed/{turn}")).expect("the event arrives");
    }
}

#[test]
fn every_answer_of_the_admin_listener_is_safe_to_show_in_a_browser() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    for request in [
        Request::get("/v1/keys").bearer(&editor),
        Request::get("/v1/keys"),
        Request::get("/nowhere").bearer(&editor),
        Request::new("DELETE", "/v1/keys").bearer(&editor),
    ] {
        let answer = gateway.ask_admin(&request);
        assert_eq!(answer.fields.one("x-content-type-options"), Some("nosniff"), "{}", answer.status);
        if answer.status >= 400 {
            assert_eq!(answer.fields.one("content-type"), Some("application/problem+json"), "{} {}", request.target, answer.status);
        }
    }
    assert_eq!(gateway.ask_admin(&Request::new("DELETE", "/v1/keys").bearer(&editor)).status, 405);
}

#[test]
fn a_host_that_is_not_ours_is_refused_on_the_admin_listener() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let port = gateway.admin().port();
    let ask = |host: &str| Request { host: host.into(), ..Request::get("/v1/keys").bearer(&editor) }.send_to(gateway.admin()).status;
    for host in ["attacker.test".to_owned(), format!("attacker.test:{port}"), format!("localhost.attacker.test:{port}")] {
        let status = ask(&host);
        assert!([403, 421].contains(&status), "{host}: {status}");
    }
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("LOCALHOST:{port}")] {
        assert_eq!(ask(&host), 200, "{host}");
    }
}

#[test]
fn a_body_that_is_not_json_by_its_type_changes_nothing() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let request = Request::post("/v1/keys", r#"{"name":"forged"}"#).bearer(&editor).with("Content-Type", kind);
        let status = gateway.ask_admin(&request).status;
        assert!([403, 415].contains(&status), "{kind}: {status}");
    }
    let huge = Request::json("POST", "/v1/keys", &json!({ "name": "x".repeat(2 * 1024 * 1024) })).bearer(&editor);
    let status = gateway.ask_admin(&huge).status;
    assert!([413, 422].contains(&status), "{status}");
    assert!(listed(&gateway, &editor, "?status=all").is_empty());
}

#[test]
fn the_openapi_document_is_served_and_names_every_call() {
    let gateway = Gateway::start();
    let document = gateway.ask_admin(&Request::get("/openapi.json")).expect(200).json();
    for (path, method) in [
        ("/v1/keys", "post"),
        ("/v1/keys", "get"),
        ("/v1/keys/{id}", "get"),
        ("/v1/keys/{id}/revoke", "post"),
        ("/v1/activity", "get"),
        ("/v1/whoami", "get"),
        ("/v1/keys/lookup", "post"),
    ] {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
}

#[test]
fn creates_and_revokes_at_once_never_pass_the_limits() {
    let gateway = Arc::new(Gateway::start());
    let editor = gateway.editor();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, editor) = (Arc::clone(&gateway), editor.clone());
            thread::spawn(move || {
                for _ in 0..10 {
                    let made: Answer = gateway.try_create(&editor, &json!({ "name": "churn" }));
                    if made.status == 201 {
                        let id = made.json()["id"].as_str().expect("an id").to_owned();
                        gateway.ask_admin(&revoke_call(&id).bearer(&editor)).expect(200);
                    }
                }
            })
        })
        .collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        assert!(listed(&gateway, &editor, "?status=active").len() <= 5);
    }
    threads.into_iter().for_each(|thread| thread.join().expect("no client panics"));
    let left = found(SOON, "the list", || Some(listed(&gateway, &editor, "?status=active").len()));
    assert_eq!(left, 0);
}

#[test]
fn a_key_used_by_several_tools_is_warned_of() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    for tool in ["claude-mcp/1.0", "zapier/2"] {
        Request::get("/x").bearer(&key.secret).with("User-Agent", tool).send_to(gateway.edge()).expect(200);
    }
    eventually!(SOON, listed(&gateway, &editor, "")[0]["warnings"] == json!(["used_by_several_tools"]), "K19");
}

//! The admin API as its callers see it: the whole router, over the embedded store in a folder of its own.
//!
//! Requests go through the router as the accept loop would send them; tokens are the local issuer's. What needs a socket,
//! or the binary itself, is in `tests/gateway`.

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::admin::auth::local::{self, LocalUser};
use crate::clock;
use crate::config::Config;
use crate::domain::{AuditRecord, FirmId, KeyState, ReplicaId, Sequence, UserId};
use crate::signing::{KeyRing, SigningKey};
use crate::store::embedded::EmbeddedStore;
use crate::store::{AuditBatch, Found};

const VIEW: &str = "View firm settings";
const EDIT: &str = "Edit firm settings";

/// A gateway's admin side with everything real.
struct World {
    folder: tempfile::TempDir,
    state: AdminState,
    router: Router,
    config: Config,
    issuer: KeyRing,
}

/// An answer taken apart.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// The problem's code, after its form was checked.
    #[track_caller]
    fn code(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["request_id"].as_str(), self.headers["x-request-id"].to_str().ok());
        assert_eq!(
            problem["type"].as_str(),
            Some(format!("https://gateway.assureone.ai/problems#{}", problem["code"].as_str().expect("a code")).as_str())
        );
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.ends_with('.')) && problem["title"].is_string());
        problem["code"].as_str().expect("a code").to_owned()
    }
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::default();
        config.store.embedded = Some(crate::config::Embedded { path: folder.path().to_owned() });
        config.admin.auth.local_issuer = true;
        let (tasks, metrics, replica) = (Tasks::new(), Metrics::new(), ReplicaId::new("replica-1"));
        let store: Arc<dyn Store> = EmbeddedStore::open(folder.path()).expect("opened");
        let coherence = Coherence::new(store.clone(), replica.clone(), clock::fresh_uuid(), &metrics);
        coherence.join().await.expect("joined");
        let settings = Settings::new(&config, replica, &tasks, None).expect("settings");
        let issuer = KeyRing::new(vec![SigningKey::load(&local::key_file(&config)).expect("made by the settings")]).expect("one key");
        let state = AdminState {
            draining: CancellationToken::new(),
            links: Arc::default(),
            store,
            coherence,
            namespace: KeyNamespace::parse("assure").expect("a good namespace"),
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            metrics,
            tasks,
        };
        Self { folder, router: service(state.clone()), state, config, issuer }
    }

    fn token(&self, firm: &str, user: &str, permissions: &[&str]) -> String {
        let user = LocalUser {
            firm: FirmId::parse(firm).expect("a good id"),
            user: UserId::parse(user).expect("a good id"),
            name: Some("Ada".into()),
            permissions: permissions.iter().map(|name| (*name).to_owned()).collect(),
        };
        local::sign(&self.issuer, &self.config.admin.auth.claims, &user, clock::wall_now(), Duration::from_secs(600))
    }

    fn editor(&self) -> String {
        self.token("firm-1", "user-1", &[VIEW, EDIT, "View clients"])
    }

    fn request(&self, method: Method, target: &str, token: &str, body: &str) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, "localhost:8081");
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let mut request = request.body(Body::from(body.to_owned())).expect("a request");
        request.extensions_mut().insert(Peer("192.0.2.1:4711".parse().expect("an address")));
        request
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = answer(self.router.clone(), request).await;
        let (head, body) = response.into_parts();
        let text =
            body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_else(|_| "broken".into());
        for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
            assert_eq!(head.headers[name], value);
        }
        assert!(head.headers.contains_key("x-request-id") && head.headers.contains_key("content-security-policy"));
        Answer { status: head.status, headers: head.headers, text }
    }

    async fn get(&self, target: &str, token: &str) -> Answer {
        self.send(self.request(Method::GET, target, token, "")).await
    }

    async fn post(&self, target: &str, token: &str, body: &str) -> Answer {
        self.send(self.request(Method::POST, target, token, body)).await
    }

    async fn create(&self, token: &str, name: &str) -> Value {
        let created = self.post("/v1/keys", token, &json!({ "name": name }).to_string()).await;
        assert_eq!(created.status, 201, "{}", created.text);
        created.json()
    }

    async fn find(&self, key: &Value) -> Found {
        let parsed = self.state.namespace.parse_key(key["key"].as_str().expect("shown").as_bytes()).expect("well-formed");
        self.state.store.find(parsed.tag, parsed.digest).await.expect("answered")
    }

    /// Puts uses of a key into the log, as the shipper would.
    async fn ship(&self, key: &Value, count: u64) {
        let records = (1..=count).map(|place| {
            let mut record = AuditRecord::example(u128::from(place) + 1000);
            record.event_id = clock::fresh_uuid();
            record.time = clock::wall_now();
            record.key_id = key["id"].as_str().expect("an id").parse().expect("a key id");
            record.sequence = std::num::NonZeroU64::new(place);
            record
        });
        let batch = AuditBatch { spool: Uuid::from_u128(5), records: records.map(Into::into).collect(), lost_up_to: None, age_max: None };
        assert_eq!(self.state.store.ship(batch).await.expect("shipped"), Sequence(count));
    }
}

/// Looks again and again until `seen` holds, for at most ten seconds.
async fn eventually<F: Future<Output = bool>>(mut seen: impl FnMut() -> F) {
    let deadline = clock::boot_now().plus(Duration::from_secs(10));
    while !seen().await {
        assert!(clock::boot_now() < deadline, "did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_key_is_created_listed_shown_looked_up_and_revoked() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, " MCP server ").await;
    let key = created["key"].as_str().expect("shown once").to_owned();
    assert_eq!(key.len(), 49);
    assert_eq!((created["name"].as_str(), created["prefix"].as_str()), (Some("MCP server"), Some(&key[..15])));
    assert_eq!((created["firm_id"].as_str(), created["creator"].as_str()), (Some("firm-1"), Some("user-1")));
    assert_eq!(created["permissions"], json!([EDIT, "View clients", VIEW]));

    let list = world.get("/v1/keys", &token).await;
    assert!(list.status == 200 && !list.text.contains(&key[15..]));
    assert_eq!(list.json()["limits"], json!({ "per_firm_max": 10, "per_creator_max": 5, "firm_active": 1, "creator_active": 1 }));
    assert_eq!((&list.json()["keys"][0]["id"], list.json()["keys"][0]["status"].as_str()), (&created["id"], Some("active")));

    let path = format!("/v1/keys/{}", created["id"].as_str().expect("an id"));
    assert_eq!(world.get(&path, &token).await.json()["name"], "MCP server");
    let found = world.post("/v1/keys/lookup", &token, &json!({ "key": key }).to_string()).await;
    assert_eq!((found.status.as_u16(), &found.json()["id"]), (200, &created["id"]));
    assert!(!found.text.contains(&key[15..]));

    let revoked = world.post(&format!("{path}/revoke"), &token, r#"{"reason":"rotated"}"#).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text);
    let answer = revoked.json();
    assert_eq!(
        (answer["status"].as_str(), answer["revoked_by"].as_str(), answer["revoke_reason"].as_str()),
        (Some("revoked"), Some("user-1"), Some("rotated"))
    );
    assert_eq!(
        (answer["revocation"]["complete"].as_bool(), answer["revocation"]["replicas"][0]["id"].as_str()),
        (Some(true), Some("replica-1"))
    );
    let again = world.post(&format!("{path}/revoke"), &token, "").await;
    assert_eq!((again.status.as_u16(), &again.json()["revoked_at"]), (200, &answer["revoked_at"]));

    for (query, expected) in
        [("?status=active", 0), ("?status=revoked", 1), ("?status=all", 1), ("?creator=user-1", 1), ("?creator=user-2", 0)]
    {
        assert_eq!(world.get(&format!("/v1/keys{query}"), &token).await.json()["keys"].as_array().map(Vec::len), Some(expected), "{query}");
    }
    let log = world.get("/v1/activity", &token).await.json();
    let actions: Vec<_> =
        log["records"].as_array().expect("records").iter().map(|record| record["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions, ["key.revoke", "key.create"], "one record for each effective action");
    let record = &log["records"][0];
    assert_eq!(
        (record["actor"].as_str(), record["client_ip"].as_str(), record["reason"].as_str()),
        (Some("user-1"), Some("192.0.2.1"), Some("rotated"))
    );
    assert_eq!((record["key_name"].as_str(), record["host"].as_str()), (Some("MCP server"), Some("localhost:8081")));
    assert_eq!(record["request_id"].as_str(), revoked.headers["x-request-id"].to_str().ok());
}

#[tokio::test]
async fn nothing_happens_without_the_token_and_the_permission() {
    let world = World::new().await;
    let editor = world.editor();
    let created = world.create(&editor, "a").await;
    let id = created["id"].as_str().expect("an id");
    let revoke = format!("/v1/keys/{id}/revoke");
    let show = format!("/v1/keys/{id}");
    let calls = [
        (Method::GET, "/v1/keys", "", VIEW),
        (Method::GET, show.as_str(), "", VIEW),
        (Method::GET, "/v1/activity", "", VIEW),
        (Method::POST, "/v1/keys/lookup", r#"{"key":"x"}"#, VIEW),
        (Method::POST, "/v1/keys", r#"{"name":"b"}"#, EDIT),
        (Method::POST, revoke.as_str(), "", EDIT),
    ];
    for (method, target, body, needed) in calls {
        let refused = world.send(world.request(method.clone(), target, "", body)).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (401, "unauthorized"), "{target}");
        assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer realm=\"Assure Pro\"");
        for text in ["x.y.z", created["key"].as_str().expect("shown")] {
            let refused = world.send(world.request(method.clone(), target, text, body)).await;
            assert_eq!((refused.status.as_u16(), refused.code().as_str()), (401, "unauthorized"), "{target}");
            assert!(refused.headers[header::WWW_AUTHENTICATE].to_str().is_ok_and(|value| value.ends_with("error=\"invalid_token\"")));
        }
        let others: Vec<&str> = [VIEW, EDIT, "View clients"].into_iter().filter(|name| *name != needed).collect();
        let refused = world.send(world.request(method, target, &world.token("firm-1", "user-1", &others), body)).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "permission_missing"), "{target}");
        assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains(needed)));
    }
    assert!(matches!(world.find(&created).await.record.map(|record| record.state), Some(KeyState::Live)));
    assert_eq!(world.get("/v1/keys", &editor).await.json()["keys"].as_array().map(Vec::len), Some(1));
    let mut twice = world.request(Method::GET, "/v1/whoami", &editor, "");
    twice.headers_mut().append(header::AUTHORIZATION, format!("Bearer {editor}").parse().expect("a value"));
    assert_eq!(world.send(twice).await.status, 400);
}

#[tokio::test]
async fn another_firms_key_does_not_exist() {
    let world = World::new().await;
    let created = world.create(&world.editor(), "a").await;
    let id = created["id"].as_str().expect("an id");
    let stranger = world.token("firm-2", "user-1", &[VIEW, EDIT]);
    let answers = [
        world.get(&format!("/v1/keys/{id}"), &stranger).await,
        world.post(&format!("/v1/keys/{id}/revoke"), &stranger, "").await,
        world.get(&format!("/v1/activity?key={id}"), &stranger).await,
        world.post("/v1/keys/lookup", &stranger, &json!({ "key": created["key"] }).to_string()).await,
        world.get(&format!("/v1/keys/{}", Uuid::from_u128(9)), &stranger).await,
        world.post(&format!("/v1/keys/{}/revoke", Uuid::from_u128(9)), &stranger, "").await,
        world.post("/v1/keys/lookup", &stranger, r#"{"key":"assure_garbage"}"#).await,
    ];
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"));
    }
    assert_eq!(world.get("/v1/keys", &stranger).await.json()["keys"], json!([]));
    assert_eq!(world.get("/v1/activity", &stranger).await.json()["records"], json!([]));
    assert!(matches!(world.find(&created).await.record.map(|record| record.state), Some(KeyState::Live)));
    let malformed = world.get("/v1/keys/not-a-uuid", &stranger).await;
    assert_eq!((malformed.status.as_u16(), malformed.code().as_str()), (400, "malformed_request"));
}

#[tokio::test]
async fn the_limits_are_exact_also_when_fifty_arrive_at_once() {
    let world = World::new().await;
    let token = world.editor();
    let answers = join_all((0..50).map(|_| world.post("/v1/keys", &token, r#"{"name":"a"}"#))).await;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(created, 5);
    for refused in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "creator_key_limit"));
    }
    let second = world.token("firm-1", "user-2", &[VIEW, EDIT]);
    let third = world.token("firm-1", "user-3", &[VIEW, EDIT]);
    for _ in 0..5 {
        world.create(&second, "b").await;
    }
    let refused = world.post("/v1/keys", &third, r#"{"name":"c"}"#).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "firm_key_limit"));
    let list = world.get("/v1/keys", &second).await.json();
    assert_eq!((list["limits"]["firm_active"].as_u64(), list["limits"]["creator_active"].as_u64()), (Some(10), Some(5)));
    let id = list["keys"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(world.post(&format!("/v1/keys/{id}/revoke"), &third, "").await.status, 200, "an editor may revoke any key of the firm");
    world.create(&third, "c").await;
}

#[tokio::test]
async fn bodies_are_read_strictly_and_nothing_in_them_chooses_firm_or_permissions() {
    let world = World::new().await;
    let token = world.editor();
    let long = json!({ "name": "x".repeat(100_000) }).to_string();
    let rows = [
        ("", 400, "malformed_request"),
        ("{", 400, "malformed_request"),
        ("[]", 400, "malformed_request"),
        ("{}", 400, "malformed_request"),
        (r#"{"name":1}"#, 400, "malformed_request"),
        (r#"{"name":null}"#, 400, "malformed_request"),
        (r#"{"name":"a","name":"b"}"#, 400, "malformed_request"),
        (r#"{"name":"a","firm_id":"firm-2"}"#, 400, "malformed_request"),
        (r#"{"name":"a","permissions":[]}"#, 400, "malformed_request"),
        (r#"{"name":"\ud800"}"#, 400, "malformed_request"),
        (r#"{"name":"a"} x"#, 400, "malformed_request"),
        (r#"{"name":""}"#, 422, "invalid_name"),
        (r#"{"name":"  "}"#, 422, "invalid_name"),
        (r#"{"name":"a\u0000b"}"#, 422, "invalid_name"),
        (r#"{"name":"a\u202eb"}"#, 422, "invalid_name"),
        (&json!({ "name": "é".repeat(101) }).to_string(), 422, "invalid_name"),
        (&long, 413, "payload_too_large"),
    ];
    for (body, status, code) in rows {
        let refused = world.post("/v1/keys", &token, body).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (status, code), "{}", &body[..body.len().min(60)]);
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
        let mut request = world.request(Method::POST, "/v1/keys", &token, r#"{"name":"a"}"#);
        request.headers_mut().insert(header::CONTENT_TYPE, kind.parse().expect("a value"));
        let refused = world.send(request).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (415, "unsupported_media_type"), "{kind}");
    }
    assert_eq!(world.get("/v1/keys", &token).await.json()["keys"], json!([]));
    world.create(&token, "🔑 ").await;
    world.create(&token, &"é".repeat(100)).await;
}

#[tokio::test]
async fn a_repeated_idempotency_key_creates_once_and_shows_the_key_once() {
    let world = World::new().await;
    let token = world.editor();
    let with_key = |name: &str, idempotency_key: &str| {
        let mut request = world.request(Method::POST, "/v1/keys", &token, &json!({ "name": name }).to_string());
        request.headers_mut().insert("idempotency-key", idempotency_key.parse().expect("a value"));
        request
    };
    let first = world.send(with_key("a", "k1")).await;
    let again = world.send(with_key("a", "k1")).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    let mut expected = first.json();
    expected.as_object_mut().expect("an object").remove("key").expect("shown the first time");
    assert_eq!(again.json(), expected);
    let conflict = world.send(with_key("b", "k1")).await;
    assert_eq!((conflict.status.as_u16(), conflict.code().as_str()), (422, "idempotency_conflict"));
    assert_eq!(world.send(with_key("a", &"x".repeat(201))).await.status, 400);
    assert_eq!(world.send(with_key("a", "k2")).await.status, 201);
    assert_eq!(world.get("/v1/keys", &token).await.json()["keys"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn foreign_hosts_and_sites_are_refused_before_anything_else() {
    let world = World::new().await;
    let token = world.editor();
    for (name, value, status, code) in [
        ("host", "attacker.test:8081", 421, "misdirected_request"),
        ("host", "a b", 400, "malformed_request"),
        ("origin", "http://attacker.test", 403, "cross_site"),
        ("sec-fetch-site", "cross-site", 403, "cross_site"),
    ] {
        let mut request = world.request(Method::POST, "/v1/keys", &token, r#"{"name":"a"}"#);
        request.headers_mut().insert(http::HeaderName::from_static(name), value.parse().expect("a value"));
        let refused = world.send(request).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (status, code), "{name}: {value}");
    }
    let mut request = world.request(Method::GET, "/", "", "");
    request.headers_mut().insert("host", "attacker.test".parse().expect("a value"));
    assert_eq!(world.send(request).await.status, 421);
    assert_eq!(world.get("/v1/keys", &token).await.json()["keys"], json!([]));
}

#[tokio::test]
async fn refusals_of_the_router_are_problems_too() {
    let world = World::new().await;
    let token = world.editor();
    let rows = [
        (Method::GET, "/nothing", 404, "not_found"),
        (Method::GET, "/v1/keys/", 404, "not_found"),
        (Method::DELETE, "/v1/keys", 405, "method_not_allowed"),
        (Method::PUT, "/v1/whoami", 405, "method_not_allowed"),
        (Method::GET, "/v1/keys/lookup", 405, "method_not_allowed"),
        (Method::GET, "/v1/keys/%ff", 400, "malformed_request"),
        (Method::GET, "/v1/keys?status=dead", 400, "malformed_request"),
        (Method::GET, "/v1/keys?firm_id=firm-2", 400, "malformed_request"),
        (Method::GET, "/v1/keys?status=all&status=all", 400, "malformed_request"),
        (Method::GET, "/v1/keys?creator=%00", 400, "malformed_request"),
    ];
    for (method, target, status, code) in rows {
        let refused = world.send(world.request(method.clone(), target, &token, "")).await;
        let seen = (refused.status.as_u16(), refused.code());
        assert_eq!(seen, (status, code.to_owned()), "{method} {target}");
        assert_eq!(refused.headers.contains_key(header::ALLOW), status == 405);
    }
}

#[tokio::test]
async fn the_page_and_the_document_need_no_token_and_whoami_does() {
    let world = World::new().await;
    let page = world.get("/", "").await;
    assert!(page.status == 200 && page.text.contains("/page/main.js"));
    let policy = page.headers["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let document = world.get("/openapi.json", "").await;
    assert_eq!(document.json()["paths"].as_object().map(serde_json::Map::len), Some(10));
    assert_eq!(world.get("/v1/whoami", "").await.status, 401);
    let mut whoami = world.get("/v1/whoami", &world.token("firm-1", "user-1", &[VIEW])).await.json();
    assert!(whoami["expires_at"].as_str().is_some_and(|moment| moment.parse::<crate::domain::Timestamp>().is_ok()));
    whoami.as_object_mut().expect("an object").remove("expires_at");
    assert_eq!(
        whoami,
        json!({ "user": "user-1", "firm": "firm-1", "name": "Ada", "permissions": [VIEW], "may": { "view": true, "edit": false } })
    );
}

#[tokio::test]
async fn pages_of_the_log_have_no_gap_and_no_repeat_while_it_grows() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, "a").await;
    world.ship(&created, 25).await;
    let mut seen = Vec::new();
    let mut target = "/v1/activity?limit=4".to_owned();
    loop {
        let page = world.get(&target, &token).await;
        assert_eq!(page.status, 200, "{}", page.text);
        let page = page.json();
        seen.extend(
            page["records"].as_array().expect("records").iter().map(|record| record["event_id"].as_str().expect("an id").to_owned()),
        );
        world.create(&world.token("firm-1", &format!("user-{}", seen.len()), &[VIEW, EDIT]), "grows").await;
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        target = format!("/v1/activity?limit=4&cursor={cursor}");
    }
    assert_eq!(seen.len(), 26);
    let distinct: std::collections::HashSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), 26);
}

#[tokio::test]
async fn the_log_is_asked_strictly() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, "a").await;
    world.ship(&created, 5).await;
    let cursor = world.get("/v1/activity?limit=2", &token).await.json()["next_cursor"].as_str().expect("more").to_owned();
    let stranger = world.token("firm-2", "user-1", &[VIEW]);
    assert_eq!(world.get(&format!("/v1/activity?cursor={cursor}"), &stranger).await.status, 400, "a cursor does not cross firms");
    let flipped = format!("{}{}", if cursor.starts_with('A') { "B" } else { "A" }, &cursor[1..]);
    for query in [
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=1000000000",
        "limit=x",
        "limit=",
        "key=x",
        "action=key.dance",
        "since=yesterday",
        "until=x",
        "cursor=",
        "cursor=x",
        &format!("cursor={flipped}"),
        &format!("action=key.use&cursor={cursor}"),
        "firm=firm-2",
        "limit=1&limit=2",
    ] {
        let refused = world.get(&format!("/v1/activity?{query}"), &token).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (400, "malformed_request"), "{query}");
    }
    let count = async |query: &str| world.get(&format!("/v1/activity?{query}"), &token).await.json()["records"].as_array().map(Vec::len);
    assert_eq!(count("action=key.use").await, Some(5));
    assert_eq!(count("action=key.create").await, Some(1));
    assert_eq!(count(&format!("key={}", created["id"].as_str().expect("an id"))).await, Some(6));
    assert_eq!(count("since=2100-01-01T00:00:00Z").await, Some(0));
    assert_eq!(count("until=2000-01-01T00:00:00Z").await, Some(0));
}

#[tokio::test]
async fn the_whole_log_streams_as_lines() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, "a").await;
    world.ship(&created, 1500).await;
    let lines = async |target: &str| {
        let mut request = world.request(Method::GET, target, &token, "");
        request.headers_mut().insert(header::ACCEPT, "application/x-ndjson".parse().expect("a value"));
        let answer = world.send(request).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/x-ndjson");
        answer.text.lines().map(|line| serde_json::from_str::<AuditRecord>(line).expect("a record").event_id).collect::<Vec<_>>()
    };
    let all = lines("/v1/activity").await;
    assert_eq!(all.len(), 1501);
    assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 1501);
    assert_eq!(lines("/v1/activity?limit=7").await, all[..7]);
}

#[tokio::test]
async fn a_follower_sees_what_comes_until_the_listener_drains() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, "before").await;
    let mut request = world.request(Method::GET, "/v1/activity", &token, "");
    request.headers_mut().insert(header::ACCEPT, "text/event-stream".parse().expect("a value"));
    let response = answer(world.router.clone(), request).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let seen = Arc::new(parking_lot::Mutex::new(String::new()));
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (into, end) = (seen.clone(), ended.clone());
    let mut body = response.into_body();
    Tasks::new().spawn("reader", async move {
        while let Some(Ok(frame)) = body.frame().await {
            into.lock().push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        }
        end.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    eventually(|| async { seen.lock().starts_with(": following") }).await;
    let path = format!("/v1/keys/{}/revoke", created["id"].as_str().expect("an id"));
    world.post(&path, &token, "").await;
    eventually(|| async { seen.lock().contains("\"key.revoke\"") }).await;
    assert!(!seen.lock().contains("\"key.create\""), "what was before is not shown");
    let text = seen.lock().clone();
    let id = text.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();
    world.state.draining.cancel();
    eventually(|| async { ended.load(std::sync::atomic::Ordering::SeqCst) }).await;
    for bad in ["x", "-1", ""] {
        let mut request = world.request(Method::GET, "/v1/activity", &token, "");
        request.headers_mut().insert(header::ACCEPT, "text/event-stream".parse().expect("a value"));
        request.headers_mut().insert("last-event-id", bad.parse().expect("a value"));
        assert_eq!(world.send(request).await.status, 400, "{bad}");
    }
    // The listener drains, so each of these streams ends by itself; the first shows what Last-Event-ID asks for.
    for (last, expected) in [("0", true), (id.as_str(), false)] {
        let mut request = world.request(Method::GET, "/v1/activity", &token, "");
        request.headers_mut().insert(header::ACCEPT, "text/event-stream".parse().expect("a value"));
        request.headers_mut().insert("last-event-id", last.parse().expect("a value"));
        assert_eq!(world.send(request).await.text.contains("key.create"), expected, "{last}");
    }
}

#[tokio::test]
async fn a_change_is_made_whole_though_its_caller_goes_away() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, "a").await;
    let path = format!("/v1/keys/{}/revoke", created["id"].as_str().expect("an id"));
    let before = world.find(&created).await;
    // One look is enough for the handler to start the change; then the caller is gone.
    let mut call = Box::pin(answer(world.router.clone(), world.request(Method::POST, &path, &token, "")));
    for _ in 0..10 {
        if futures_util::poll!(&mut call).is_ready() {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(call);
    eventually(|| async { world.state.coherence.applied(before.partition) > before.epoch }).await;
    let after = world.find(&created).await;
    assert!(after.epoch > before.epoch && matches!(after.record.map(|record| record.state), Some(KeyState::Revoked { .. })));
}

#[tokio::test]
async fn a_reload_changes_the_limits_and_switches_the_local_issuer_off() {
    let mut world = World::new().await;
    let token = world.editor();
    world.config.keys.per_creator_max = 1;
    let reload = |world: &World| {
        let previous = world.state.settings.load_full();
        let settings = Settings::new(&world.config, ReplicaId::new("replica-1"), &world.state.tasks, Some(&previous)).expect("settings");
        world.state.settings.store(Arc::new(settings));
    };
    reload(&world);
    world.create(&token, "a").await;
    assert_eq!(world.post("/v1/keys", &token, r#"{"name":"b"}"#).await.status, 409);
    world.config.admin.auth.local_issuer = false;
    reload(&world);
    assert_eq!(world.get("/v1/keys", &token).await.status, 401);
}

#[tokio::test]
async fn a_panic_in_one_request_is_answered_with_500() {
    async fn panics() -> &'static str {
        panic!("on purpose, in a test")
    }
    let world = World::new().await;
    let shared = Shared(Arc::new(Inner { state: world.state.clone(), followers: Followers::default() }));
    let router = Router::new().route("/panic", axum::routing::get(panics)).layer(middleware::from_fn_with_state(shared, guard::guard));
    let world = World { router, ..world };
    let answer = world.get("/panic", "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (500, "internal_error"));
    assert!(!answer.text.contains("on purpose"));
}

#[tokio::test]
async fn no_secret_reaches_the_log_of_activity_or_the_storesfolder() {
    let world = World::new().await;
    let token = world.editor();
    let created = world.create(&token, "a").await;
    let secret = &created["key"].as_str().expect("shown")[15..];
    assert!(!world.get("/v1/activity", &token).await.text.contains(secret));
    for entry in std::fs::read_dir(world.folder.path()).expect("the folder") {
        let bytes = std::fs::read(entry.expect("an entry").path()).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

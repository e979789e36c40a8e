//! Everything that a credential can be part of, done once: what is meant, what is refused, and what people do by mistake.
//!
//! Every answer is kept but the one that creates a key; of that, all but the key.

use serde_json::{Value, json};

use crate::support::wire::Fields;
use crate::support::{Answer, Client, EDIT, FIRM, Gateway, Http2, Key, Reply, Request, USER, VIEW};

use super::places::Place;

/// Says all that it and its libraries can say.
pub(super) fn talkative(config: &mut Value) {
    config["log"]["level"] = json!("trace");
    config["limits"]["requests_per_minute"] = json!(150);
}

pub(super) struct Tour<'g> {
    gateway: &'g Gateway,
    http2: Http2,
    editor: String,
    answers: Vec<Place>,
    secrets: Vec<String>,
}

impl<'g> Tour<'g> {
    pub(super) fn on(gateway: &'g Gateway) -> Self {
        let editor = gateway.editor();
        Self { gateway, http2: Http2::connect(gateway.edge()), secrets: vec![editor.clone()], editor, answers: Vec::new() }
    }

    /// The answers, and all that none of them may hold.
    pub(super) fn end(self) -> (Vec<Place>, Vec<String>) {
        (self.answers, self.secrets)
    }

    fn keep(&mut self, what: &str, answer: &Answer) {
        let text = format!("{:?} {:?} {}", answer.fields, answer.trailers, answer.text());
        self.answers.push((format!("the answer to {what}"), text.into_bytes()));
    }

    /// By HTTP/1.1 and by HTTP/2.
    fn edge(&mut self, what: &str, request: &Request) {
        let answer = request.send_to(self.gateway.edge());
        self.keep(what, &answer);
        // What only HTTP/1.1 can carry is refused by the client.
        if let Ok(answer) = self.http2.exchange(request) {
            self.keep(what, &answer);
        }
    }

    fn admin(&mut self, what: &str, request: &Request) -> Answer {
        let answer = self.gateway.ask_admin(request);
        self.keep(what, &answer);
        answer
    }

    fn create(&mut self, request: &Request) -> Key {
        let answer = self.gateway.ask_admin(request).expect(201);
        let body = answer.json();
        let text = |member: &str| body[member].as_str().expect("a text").to_owned();
        let key = Key { id: text("id"), secret: text("key"), prefix: text("prefix") };
        self.secrets.push(key.secret.clone());
        let without = Answer { body: answer.text().replace(&key.secret, "").into_bytes(), ..answer };
        self.keep("a creation", &without);
        key
    }

    pub(super) fn go(&mut self) {
        let named = |name: &str| Request::json("POST", "/v1/keys", &json!({ "name": name })).bearer(&self.editor);
        let (plain, repeated) = (named("MCP server"), named("Zapier").with("Idempotency-Key", "the-same"));
        let key = self.create(&plain);
        let second = self.create(&repeated);
        let answer = self.admin("a repeated creation", &repeated).expect(201);
        assert!(answer.json().get("key").is_none(), "a repeat shows no key");
        self.uses(&key, &second);
        self.refused_uses(&key);
        self.mistakes(&key, &second);
        self.admin_calls(&key);
        self.tokens();
        self.session(&key);
        self.revocations(&key, &second);
        self.floods(&key);
        let seen = self.gateway.upstream.seen();
        let assertions: Vec<String> = seen.iter().filter_map(|seen| seen.fields.one("x-assure-jwt-assertion").map(str::to_owned)).collect();
        assert!(!assertions.is_empty(), "assertions were made");
        self.secrets.extend(assertions);
        self.secrets.sort();
        self.secrets.dedup();
    }

    fn uses(&mut self, key: &Key, second: &Key) {
        self.edge("a bearer", &Request::get("/ok").bearer(&key.secret));
        self.edge("X-Api-Key", &Request::get("/ok").with("X-Api-Key", &second.secret));
        self.edge("both headers", &Request::get("/ok").bearer(&key.secret).with("X-Api-Key", &key.secret));
        self.edge("a body", &Request::post("/ok", "hello").bearer(&key.secret).streamed());
        self.edge(
            "a sign-in that is not ours",
            &Request::get("/ok").bearer(&key.secret).with("Proxy-Authorization", &format!("Bearer {}", key.secret)),
        );
        self.gateway.upstream.answer_once("/broken", Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_vec()));
        self.edge("a broken upstream", &Request::get("/broken").bearer(&key.secret));
        let upgrade = Request::get("/ok").bearer(&key.secret).with("Connection", "Upgrade, Authorization").with("Upgrade", "websocket");
        let answer = upgrade.send_to(self.gateway.edge());
        self.keep("an upgrade", &answer);
    }

    fn refused_uses(&mut self, key: &Key) {
        let secret = &key.secret;
        let typed_wrong = format!("{}{}", &secret[..48], if secret.ends_with('0') { '1' } else { '0' });
        for (what, value) in [
            ("a typing error", format!("Bearer {typed_wrong}")),
            ("a list", format!("Bearer {secret}, Bearer {secret}")),
            ("another scheme", format!("Basic {}", super::places::base64(format!("{secret}:").as_bytes()))),
            ("the scheme forgotten", secret.clone()),
            ("quotes", format!("Bearer \"{secret}\"")),
            ("a token for a key", format!("Bearer {}", self.editor)),
        ] {
            self.edge(what, &Request::get("/ok").with("Authorization", &value));
        }
        self.edge("a forbidden route", &Request::get("/v1/session/x").bearer(secret));
        self.edge("a permission that is missing", &Request::get("/v1/clients/1").bearer(secret));
        self.edge("another firm", &Request::get("/v1/firms/firm-2/x").bearer(secret));
        self.edge("a path that is none", &Request::get("/a/../b").bearer(secret));
        // Raw bytes that never become a request.
        for head in
            ["GET /ok HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "GET /ok HTTP/1.1\r\nHost : a\r\n", "GET  /ok HTTP/1.1\r\n", "NONSENSE\r\n"]
        {
            let mut client = Client::connect(self.gateway.edge());
            client.send(format!("{head}Authorization: Bearer {secret}\r\n\r\n")).expect("sent");
            if let Ok(answer) = client.answer() {
                self.keep("what is no request", &answer);
            }
        }
    }

    /// A key where it has no business: with a good one beside it, so that the use is recorded, and without.
    fn mistakes(&mut self, key: &Key, second: &Key) {
        let secret = &second.secret;
        let rows = [
            ("a key in the query", Request::get(&format!("/ok?api_key={secret}"))),
            ("a key in the path", Request::get(&format!("/ok/{secret}/pasted"))),
            ("a key at the end of a long path", Request::get(&format!("/{}/{secret}", "x".repeat(1_000)))),
            ("a key in a cookie", Request::get("/ok").with("Cookie", &format!("key={secret}"))),
            ("a key as User-Agent", Request::get("/ok").with("User-Agent", &format!("tool/1 ({secret})"))),
            ("a key at the end of a long User-Agent", Request::get("/ok").with("User-Agent", &format!("{}{secret}", "x ".repeat(115)))),
            ("a key in an escaped User-Agent", Request::get("/ok").with("User-Agent", &format!("\\{secret}\u{e9}"))),
            ("a key as Referer", Request::get("/ok").with("Referer", &format!("https://x/?k={secret}"))),
            ("a key as Host", Request { host: secret.clone(), ..Request::get("/ok") }),
            ("a key as method", Request::new(secret, "/ok")),
            ("a key as a field's name", Request::get("/ok").with(secret, "x")),
            ("a key as traceparent", Request::get("/ok").with("traceparent", secret)),
            ("a key as X-Request-Id", Request::get("/ok").with("X-Request-Id", secret)),
            ("a key as X-Forwarded-For", Request::get("/ok").with("X-Forwarded-For", secret)),
        ];
        for (what, request) in rows {
            self.edge(what, &request);
            self.edge(what, &request.bearer(&key.secret));
        }
    }

    fn admin_calls(&mut self, key: &Key) {
        let editor = self.editor.clone();
        let secret = &key.secret;
        for target in
            ["/v1/keys", "/v1/keys?status=active", "/v1/activity", "/v1/activity?action=key.use", "/v1/whoami", "/openapi.json", "/"]
        {
            self.admin(target, &Request::get(target).bearer(&editor));
        }
        let lines = Request::get("/v1/activity").bearer(&editor).with("Accept", "application/x-ndjson");
        self.admin("the activity log as lines", &lines);
        self.admin("a key", &Request::get(&format!("/v1/keys/{}", key.id)).bearer(&editor));
        let look_up = |body: Value| Request::json("POST", "/v1/keys/lookup", &body).bearer(&editor);
        self.admin("a look-up", &look_up(json!({ "key": secret }))).expect(200);
        self.admin("a look-up of nothing", &look_up(json!({ "key": format!("{secret}x") }))).expect(404);
        let stranger = self.gateway.token("firm-2", USER, &[VIEW]);
        self.secrets.push(stranger.clone());
        self.admin("another firm's look-up", &Request::json("POST", "/v1/keys/lookup", &json!({ "key": secret })).bearer(&stranger))
            .expect(404);
        // By mistake.
        self.admin("a look-up's member", &look_up(json!({ secret: "key" }))).expect(400);
        self.admin("a look-up's type", &look_up(json!({ "key": [secret] }))).expect(400);
        self.admin("a look-up with more", &look_up(json!({ "key": "x", "also": secret })));
        self.admin("a key as an id", &Request::get(&format!("/v1/keys/{secret}")).bearer(&editor)).expect(400);
        for query in ["key=", "cursor=", "action=", "since=", "limit=", ""] {
            self.admin(query, &Request::get(&format!("/v1/activity?{query}{secret}")).bearer(&editor)).expect(400);
        }
        self.admin("a name", &Request::json("POST", "/v1/keys", &json!({ "name": format!("my {secret}") })).bearer(&editor)).expect(422);
        let repeated = Request::json("POST", "/v1/keys", &json!({ "name": "x" })).bearer(&editor).with("Idempotency-Key", secret);
        self.admin("an Idempotency-Key", &repeated).expect(400);
        self.admin("a key for a token", &Request::get("/v1/keys").bearer(secret)).expect(401);
        self.admin("an unknown page", &Request::get(&format!("/{secret}")).bearer(&editor));
    }

    fn tokens(&mut self) {
        let viewer = self.gateway.token(FIRM, "user-2", &[VIEW]);
        let broken = format!("{}x", self.editor);
        let swapped = [self.editor.rsplit_once('.').expect("a token").0, viewer.rsplit('.').next().expect("a signature")].join(".");
        for token in [&viewer, &broken, &swapped] {
            self.admin("a token", &Request::get("/v1/whoami").bearer(token));
            self.admin("a token that may not create", &Request::json("POST", "/v1/keys", &json!({ "name": "x" })).bearer(token));
        }
        let editor = self.editor.clone();
        self.admin("a token in the query", &Request::get(&format!("/v1/keys?access_token={editor}")));
        self.admin("a token in a cookie", &Request::get("/v1/keys").with("Cookie", &format!("session={editor}")));
        self.edge("a token in the path", &Request::get(&format!("/{editor}")));
        self.secrets.push(viewer);
    }

    /// The page's cookie is set by one answer, and holds what a token holds.
    fn session(&mut self, key: &Key) {
        let begin = |body: Value| Request::json("POST", "/v1/session", &body);
        let begun = self.gateway.ask_admin(&begin(json!({ "token": self.editor }))).expect(200);
        let (set, others) = begun.fields.0.iter().cloned().partition(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        let set: Vec<(String, String)> = set;
        let cookie = set[0].1.split(';').next().expect("a cookie").to_owned();
        self.secrets.push(cookie.split_once('=').expect("a name").1.to_owned());
        self.keep("a sign-in", &Answer { fields: Fields(others), ..begun });
        for target in ["/", "/v1/keys", "/v1/whoami"] {
            self.admin("a session", &Request::get(target).with("Cookie", &cookie)).expect(200);
        }
        self.admin("a key for a session", &begin(json!({ "token": key.secret }))).expect(401);
        self.admin("a key for a link's code", &begin(json!({ "code": key.secret })));
        self.admin("a key as a member", &begin(json!({ key.secret.as_str(): "x" }))).expect(400);
        let form = Request::post("/v1/session", format!("token={}", key.secret)).with("Content-Type", "application/x-www-form-urlencoded");
        self.admin("a key in a form", &form);
    }

    fn revocations(&mut self, key: &Key, second: &Key) {
        let editor = self.editor.clone();
        let third = self.gateway.token(FIRM, "user-3", &[VIEW, EDIT]);
        let leaked = self.create(&Request::json("POST", "/v1/keys", &json!({ "name": "leaked" })).bearer(&third));
        self.secrets.push(third);
        // Who revokes a leaked key pastes it as the reason.
        for (key, reason) in [(second, "rotated".to_owned()), (&leaked, format!("pasted: {}", leaked.secret))] {
            let target = format!("/v1/keys/{}/revoke", key.id);
            let request = Request::json("POST", &target, &json!({ "reason": reason })).bearer(&editor).with("User-Agent", &key.secret);
            self.admin("a revocation", &request).expect(200);
            self.edge("a revoked key", &Request::get("/ok").bearer(&key.secret));
        }
        self.admin(
            "a key in a revocation's path",
            &Request::json("POST", &format!("/v1/keys/{}/revoke", key.secret), &json!({})).bearer(&editor),
        )
        .expect(400);
        self.admin("the revoked", &Request::get("/v1/keys?status=revoked").bearer(&editor)).expect(200);
        self.admin("the log of it", &Request::get("/v1/activity").bearer(&editor)).expect(200);
    }

    /// Until the key's window is used up.
    fn floods(&mut self, key: &Key) {
        let refused = (0..256).map(|_| self.gateway.get(key, "/ok")).find(|answer| answer.status == 429);
        self.keep("one too many", &refused.expect("a limit of 150"));
    }
}

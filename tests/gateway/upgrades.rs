//! G01, G03: WebSockets pass where a route allows them, under the same key, window, log and revocation as everything else.
//!
//! Nothing else upgrades: `Upgrade: h2c` is served as plain HTTP/1.1 and never forwarded.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually::found;
use crate::support::{Client, End, Gateway, Reply, Request, SOON};

/// The example of RFC 6455 section 1.3.
const SOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const SOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A gateway with one WebSocket route, whose upstream answers 101 and then says what it hears.
fn start() -> Gateway {
    let gateway = Gateway::with(allow);
    gateway.upstream.answer(|head| if head.start.contains("/socket") { switch() } else { Reply::ok() });
    gateway
}

/// Adds the WebSocket route.
pub(crate) fn allow(config: &mut Value) {
    let route = json!({ "path": "/socket", "upstream": "ledger", "websocket": true });
    config["routes"].as_array_mut().expect("a list").insert(0, route);
}

/// What an upstream answers that agrees.
pub(crate) fn switch() -> Reply {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    Reply::Tunnel(format!("{head}Sec-WebSocket-Accept: {SOCKET_ACCEPT}\r\n\r\n").into_bytes())
}

pub(crate) fn handshake(target: &str, secret: &str) -> Vec<u8> {
    let request = Request::get(target).bearer(secret).with("Connection", "keep-alive, Upgrade").with("Upgrade", "websocket");
    request.with("Sec-WebSocket-Version", "13").with("Sec-WebSocket-Key", SOCKET_KEY).head()
}

#[test]
fn a_websocket_passes_both_ways_and_ends_with_one_record() {
    let gateway = start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let mut client = Client::connect(gateway.edge());
    client.send(handshake("/socket", &key.secret)).expect("sent");
    let (answer, _) = client.answer_head("GET").expect("an answer");
    assert_eq!((answer.status, answer.fields.one("sec-websocket-accept")), (101, Some(SOCKET_ACCEPT)));
    assert!(answer.fields.lists("connection", "upgrade") && answer.fields.lists("upgrade", "websocket"));
    for word in ["ping-one", "ping-two"] {
        client.send(word).expect("sent");
        client.read_until(word).expect("the echo comes back");
    }
    let seen = gateway.upstream.last("/socket").fields;
    assert!(seen.lists("connection", "upgrade") && seen.one("sec-websocket-key") == Some(SOCKET_KEY));
    assert!(seen.all("authorization").is_empty() && seen.one("x-assure-jwt-assertion").is_some());
    drop(client);
    let record = gateway.uses(&editor, 1).remove(0);
    assert_eq!((record["status"].as_str(), record["path"].as_str()), (Some("101"), Some("/socket")));
}

#[test]
fn a_revocation_cuts_a_websocket_within_a_second() {
    let gateway = start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "socket");
    let mut client = Client::connect(gateway.edge());
    client.send([handshake("/socket", &key.secret), b"hello".to_vec()].concat()).expect("sent");
    client.read_until("hello").expect("the echo comes back");
    gateway.revoke(&editor, &key);
    assert_ne!(client.end_within(Duration::from_millis(1500)), End::Open);
    found(SOON, "its record", || gateway.uses(&editor, 1).into_iter().find(|record| record["path"] == "/socket"));
}

#[test]
fn an_upgrade_that_no_route_allows_is_not_passed_on() {
    let gateway = start();
    let key = gateway.key();
    let mut client = Client::connect(gateway.edge());
    client.send(handshake("/ok", &key.secret)).expect("sent");
    assert_ne!(client.answer().expect("an answer").status, 101);
    for seen in gateway.upstream.seen() {
        assert!(seen.fields.all("upgrade").is_empty() && seen.fields.all("connection").is_empty(), "{:?}", seen.fields);
    }
    let h2c = Request::get("/ok")
        .bearer(&key.secret)
        .with("Connection", "Upgrade, HTTP2-Settings")
        .with("Upgrade", "h2c")
        .with("HTTP2-Settings", "AAMAAABkAAQAAP__");
    let answer = h2c.send_to(gateway.edge()).expect(200);
    assert_eq!(answer.text(), "ok");
    assert!(gateway.upstream.last("/ok").fields.all("upgrade").is_empty());
}

#[test]
fn a_refused_websocket_handshake_is_a_plain_refusal() {
    let gateway = start();
    let mut client = Client::connect(gateway.edge());
    client.send(handshake("/socket", "nonsense")).expect("sent");
    client.answer().expect("an answer").expect_problem(401, "invalid_key");
    assert!(gateway.upstream.targets().is_empty());
}

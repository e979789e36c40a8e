//! What reaches the upstream, what comes back, and what a client is told when the upstream fails.
//!
//! The head is written anew, hop-by-hop fields end here, who the client is comes from the gateway alone; bodies
//! stream both ways without waiting for their end; a broken upstream never looks like a complete answer.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::{eventually, found};
use crate::support::{Client, End, Gate, Gateway, Http2, Reply, Request, SOON, Upstream};

#[test]
fn the_upstream_gets_the_request_as_it_was_with_its_target_fields_and_body() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let target = "/a%20b/c;d=e?x=%2F&y=1&x=2";
    let request = Request::post(target, r#"{"a":1}"#)
        .bearer(&key.secret)
        .with("Content-Type", "application/json")
        .with("X-Custom", "ü kept")
        .with("Accept", "a")
        .with("Accept", "b");
    request.send_to(gateway.edge()).expect(200);
    let seen = gateway.upstream.last(target);
    assert_eq!((seen.method.as_str(), seen.body_bytes, seen.complete), ("POST", 7, true));
    assert_eq!(seen.fields.one("content-type"), Some("application/json"));
    assert_eq!(seen.fields.all("accept").join(","), "a,b");
    assert!(seen.fields.one("x-custom").is_some());
    assert_eq!(seen.fields.all("host").len(), 1);
}

#[test]
fn hop_by_hop_fields_end_at_the_gateway_those_listed_in_connection_too() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let request = Request::get("/ok")
        .bearer(&key.secret)
        .with("Connection", "keep-alive, X-Foo")
        .with("Connection", "X-Bar")
        .with("X-Foo", "1")
        .with("X-Bar", "2")
        .with("Keep-Alive", "timeout=5")
        .with("Proxy-Authorization", "Basic eA==")
        .with("Proxy-Connection", "keep-alive")
        .with("TE", "trailers, gzip")
        .with("Upgrade", "h2c")
        .with("HTTP2-Settings", "AAMAAABkAAQAAP__");
    request.send_to(gateway.edge()).expect(200);
    let seen = gateway.upstream.last("/ok").fields;
    for name in ["connection", "x-foo", "x-bar", "keep-alive", "proxy-authorization", "proxy-connection", "upgrade", "http2-settings"] {
        assert!(seen.all(name).is_empty(), "{name} arrived: {seen:?}");
    }
    assert!(!seen.lists("te", "gzip"));
}

#[test]
fn a_connection_field_cannot_remove_what_the_gateway_or_the_upstream_relies_on() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for name in ["authorization", "x-request-id", "x-forwarded-for", "host", "content-length", "x-assure-jwt-assertion", "close, host"] {
        let answer = Request::post("/ok", "hello").bearer(&key.secret).with("Connection", name).send_to(gateway.edge());
        assert!([200, 400].contains(&answer.status), "{name}: {}", answer.status);
    }
    for seen in gateway.upstream.seen() {
        assert!(seen.complete && seen.body_bytes == 5);
        for needed in ["host", "x-request-id", "x-forwarded-for", "x-assure-jwt-assertion"] {
            assert_eq!(seen.fields.all(needed).len(), 1, "{needed}: {:?}", seen.fields);
        }
    }
    assert!(gateway.upstream.violations().is_empty());
}

#[test]
fn who_the_client_is_comes_from_the_gateway_alone() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let mut request = Request::get("/ok").bearer(&key.secret).with("Forwarded", "for=1.2.3.4;proto=https").with("Via", "1.1 forged");
    for name in
        ["X-Forwarded-For", "X-Real-IP", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Uri", "X-Forwarded-Port", "True-Client-IP"]
    {
        request = request.with(name, "1.2.3.4");
    }
    request.send_to(gateway.edge()).expect(200);
    let seen = gateway.upstream.last("/ok");
    assert!(!String::from_utf8_lossy(&seen.raw_head).contains("1.2.3.4"), "{:?}", seen.fields);
    assert_eq!(seen.fields.one("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.fields.one("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.fields.one("x-forwarded-host"), Some("localhost"));
    assert!(seen.fields.one("forwarded").is_some_and(|value| value.contains("for=127.0.0.1") || value.contains("for=\"127.0.0.1")));
    assert!(seen.fields.one("via").is_some_and(|value| value.starts_with("1.1 ") && !value.contains("forged")));
    assert_eq!(gateway.uses(&editor, 1)[0]["client_ip"], "127.0.0.1");
}

#[test]
fn a_trusted_proxy_is_believed_about_the_client() {
    let gateway = Gateway::with(|config| config["edge"]["trusted_proxies"] = json!(["127.0.0.0/8"]));
    let (editor, key) = (gateway.editor(), gateway.key());
    Request::get("/ok").bearer(&key.secret).with("X-Forwarded-For", "6.6.6.6, 198.51.100.7").send_to(gateway.edge()).expect(200);
    assert_eq!(gateway.uses(&editor, 1)[0]["client_ip"], "198.51.100.7", "the last hop that is not a trusted proxy");
}

#[test]
fn method_overrides_and_rewritten_targets_never_arrive() {
    let gateway = Gateway::start();
    let key = gateway.key_with("firm-1", "user-1", &["View clients"]);
    let names = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"];
    let mut request = Request::get("/v1/clients/1").bearer(&key.secret);
    for name in names {
        request = request.with(name, if name.ends_with("URL") { "/v1/session/login" } else { "DELETE" });
    }
    request.send_to(gateway.edge()).expect(200);
    let seen = gateway.upstream.last("/v1/clients/1");
    assert_eq!(seen.method, "GET");
    assert!(names.iter().all(|name| seen.fields.all(name).is_empty()), "{:?}", seen.fields);
}

#[test]
fn the_upstreams_answer_comes_back_whole_without_its_hop_by_hop_fields() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let fields = [
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Connection", "X-Gone"),
        ("X-Gone", "1"),
        ("Keep-Alive", "timeout=1"),
        ("X-Kept", "1"),
    ];
    let fields: Vec<(String, String)> = fields.map(|(name, value)| (name.into(), value.into())).to_vec();
    gateway.upstream.answer(move |_| Reply::Whole { status: 418, fields: fields.clone(), body: b"short and stout".to_vec() });
    let http2 = Http2::connect(gateway.edge());
    let request = Request::get("/ok").bearer(&key.secret);
    for answer in [request.send_to(gateway.edge()), http2.exchange(&request).expect("an answer")] {
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (418, "short and stout", true));
        assert_eq!(answer.fields.all("set-cookie"), ["a=1", "b=2"]);
        assert_eq!(answer.fields.one("x-kept"), Some("1"));
        assert!(answer.fields.all("x-gone").is_empty() && answer.fields.all("keep-alive").is_empty());
        assert!(answer.fields.one("x-request-id").is_some());
    }
}

#[test]
fn answers_without_a_body_stay_without_one() {
    let gateway = Gateway::start();
    let key = gateway.key();
    gateway.upstream.answer(|head| match head.start.split(' ').nth(1) {
        Some("/204") => Reply::Whole { status: 204, fields: Vec::new(), body: Vec::new() },
        Some("/304") => Reply::Whole { status: 304, fields: vec![("ETag".into(), "\"x\"".into())], body: Vec::new() },
        _ => Reply::ok(),
    });
    let mut client = Client::connect(gateway.edge());
    for (method, target, status) in [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/ok", 200), ("GET", "/ok", 200)] {
        let answer = client.exchange(&Request::new(method, target).bearer(&key.secret)).expect(target).expect(status);
        assert_eq!(answer.body.is_empty(), target != "/ok" || method == "HEAD", "{method} {target}");
    }
}

#[test]
fn trailers_of_the_answer_arrive_where_the_client_can_take_them() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n";
    gateway.upstream.answer(|_| Reply::RawKept(bytes.to_vec()));
    let http2 = Http2::connect(gateway.edge());
    let request = Request::get("/ok").bearer(&key.secret).with("TE", "trailers");
    let answer = http2.exchange(&request).expect("an answer").expect(200);
    assert_eq!((answer.text().as_str(), answer.trailers.one("x-sum")), ("ok", Some("42")));
    let answer = request.with("Connection", "TE").send_to(gateway.edge()).expect(200);
    assert_eq!((answer.text().as_str(), answer.complete), ("ok", true));
}

#[test]
fn each_event_of_a_stream_arrives_at_once() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let (feed, reply) = Reply::events();
    gateway.upstream.answer_once("/events", reply);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/events").bearer(&key.secret).with("Accept", "text/event-stream").head()).expect("sent");
    let (answer, _) = client.answer_head("GET").expect("the head comes before any event");
    assert_eq!((answer.status, answer.fields.one("content-type")), (200, Some("text/event-stream")));
    for turn in 0..20 {
        let event = format!("data: {turn}\n\n");
        let sent = Instant::now();
        feed.send(event.clone().into_bytes()).expect("the stream runs");
        client.read_until(&event).expect("the event arrives before the next is sent");
        assert!(sent.elapsed() < Duration::from_millis(500), "event {turn} was held back for {:?}", sent.elapsed());
    }
    drop(feed);
    client.read_until("0\r\n\r\n").expect("the stream ends in order");
}

#[test]
fn a_request_body_streams_before_it_has_ended() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let http2 = Http2::connect(gateway.edge());
    let (feed, started) = http2.start_fed(&Request::new("POST", "/stream").bearer(&key.secret));
    for turn in 1..=5 {
        feed.blocking_send(vec![b'x'; 1000]).expect("the stream runs");
        eventually!(SOON, gateway.upstream.seen().first().is_some_and(|seen| seen.body_bytes == turn * 1000), "piece {turn} arrives");
    }
    drop(feed);
    assert_eq!(started.answer().map(|answer| answer.status), Ok(200));
    assert!(gateway.upstream.last("/stream").complete);
}

#[test]
fn a_client_that_goes_away_is_seen_by_the_upstream_within_a_second() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let (feed, reply) = Reply::events();
    gateway.upstream.answer_once("/events", reply);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/events").bearer(&key.secret).head()).expect("sent");
    feed.send(b"data: 1\n\n".to_vec()).expect("the stream runs");
    client.read_until("data: 1").expect("the event arrives");
    let left = Instant::now();
    drop(client);
    let gone = found(SOON, "the upstream learns of it", || gateway.upstream.last("/events").gone_at);
    assert!(gone < left + Duration::from_secs(1), "{:?}", gone - left);
}

#[test]
fn a_client_that_goes_away_while_waiting_frees_the_upstream() {
    let gateway = Gateway::start();
    let key = gateway.key();
    gateway.upstream.answer_once("/never", Reply::Never);
    let mut client = Client::connect(gateway.edge());
    client.send(Request::get("/never").bearer(&key.secret).head()).expect("sent");
    eventually!(SOON, gateway.upstream.count("/never") == 1);
    drop(client);
    eventually!(Duration::from_secs(2), gateway.upstream.last("/never").gone_at.is_some());
}

/// A port on which nobody listens.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

#[test]
fn an_upstream_that_cannot_be_reached_is_502() {
    let url = closed_port();
    let gateway = Gateway::with(|config| config["upstreams"]["ledger"]["endpoints"] = json!([url]));
    let key = gateway.key();
    gateway.get(&key, "/ok").expect_problem(502, "upstream_unreachable");
}

#[test]
fn an_upstream_that_does_not_answer_in_time_is_504() {
    let gateway = Gateway::with(|config| config["upstreams"]["ledger"]["timeout"] = json!({ "response_header": "500ms" }));
    let key = gateway.key();
    gateway.upstream.answer(|_| Reply::Never);
    let began = Instant::now();
    gateway.get(&key, "/ok").expect_problem(504, "upstream_timeout");
    assert!(began.elapsed() >= Duration::from_millis(500));
    eventually!(SOON, gateway.upstream.last("/ok").gone_at.is_some(), "the upstream's connection is not left hanging");
    assert_eq!(gateway.upstream.count("/ok"), 1, "a request that may have been acted on is not repeated");
}

#[test]
fn an_upstream_that_speaks_no_http_is_502_and_its_connection_is_not_used_again() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let long = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 1024 * 1024], b"\r\n\r\n".to_vec()].concat();
    let rows: [(&str, Vec<u8>); 10] = [
        ("garbage", b"garbage\r\n\r\n".to_vec()),
        ("nothing", Vec::new()),
        ("two framings", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk".to_vec()),
        ("a NUL", b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("a bare CR", b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status abc", b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("status 20", b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        ("an unasked 101", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec()),
        ("a megabyte of head", long),
    ];
    for (what, bytes) in rows {
        gateway.upstream.answer_once("/broken", Reply::RawKept(bytes.clone()));
        if bytes.is_empty() {
            gateway.upstream.answer_once("/broken", Reply::Raw(bytes));
        }
        let answer = gateway.get(&key, "/broken");
        assert_eq!((answer.status, answer.code().as_str(), answer.complete), (502, "upstream_broken", true), "{what}");
        let next = gateway.get(&key, "/next");
        assert_eq!((next.status, next.text().as_str()), (200, "ok"), "after {what}");
    }
}

#[test]
fn a_second_unasked_answer_is_never_given_to_the_next_request() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let twice = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".to_vec();
    gateway.upstream.answer_once("/twice", Reply::RawKept(twice));
    assert_eq!(gateway.get(&key, "/twice").expect(200).text(), "first");
    for _ in 0..5 {
        assert_eq!(gateway.get(&key, "/next").expect(200).text(), "ok");
    }
}

#[test]
fn an_answer_that_breaks_off_never_looks_complete() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let http2 = Http2::connect(gateway.edge());
    let request = Request::get("/cut").bearer(&key.secret);
    for bytes in
        [&b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"[..], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        gateway.upstream.answer(|_| Reply::Raw(bytes.to_vec()));
        let mut client = Client::connect(gateway.edge());
        let answer = client.exchange(&request).expect("a head").expect(200);
        assert!(!answer.complete && answer.text() == "half");
        assert_ne!(client.end(), End::Open);
        // A reset may overtake what was sent before it; what it may not do is pass for an end.
        assert!(!http2.exchange(&request).is_ok_and(|answer| answer.complete));
    }
}

#[test]
fn an_upstream_that_answers_before_it_has_read_the_body_is_heard() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let early = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly";
    gateway.upstream.answer(|_| Reply::Early(early.to_vec()));
    let http2 = Http2::connect(gateway.edge());
    let (feed, started) = http2.start_fed(&Request::new("POST", "/early").bearer(&key.secret));
    // The answer may be complete before this is sent.
    let _ = feed.blocking_send(b"piece".to_vec());
    let answer = started.answer().expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (400, "early"));
}

#[test]
fn connections_to_the_upstream_are_kept_and_not_shared_by_two_requests_at_once() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for _ in 0..20 {
        gateway.get(&key, "/ok").expect(200);
    }
    assert!(gateway.upstream.connections() <= 4, "{} connections for 20 requests in a row", gateway.upstream.connections());
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    gateway.upstream.answer(move |_| Reply::Held(Arc::clone(&held)));
    let http2 = Http2::connect(gateway.edge());
    let started: Vec<_> = (0..8).map(|_| http2.start(&Request::get("/held").bearer(&key.secret))).collect();
    eventually!(SOON, gateway.upstream.count("/held") == 8, "all eight are at the upstream at once");
    gate.open();
    started.into_iter().for_each(|started| assert_eq!(started.answer().map(|answer| answer.status), Ok(200)));
}

#[test]
fn more_than_the_upstream_may_carry_is_503_and_not_an_endless_queue() {
    let gateway = Gateway::with(|config| config["upstreams"]["ledger"]["connections_max"] = json!(1));
    let key = gateway.key();
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    gateway.upstream.answer(move |_| Reply::Held(Arc::clone(&held)));
    let connections: Vec<Http2> = (0..8).map(|_| Http2::connect(gateway.edge())).collect();
    let started: Vec<_> = (0..800).map(|turn| connections[turn % 8].start(&Request::get("/held").bearer(&key.secret))).collect();
    let refused = found(Duration::from_secs(60), "a refusal", || started.iter().position(|started| started.so_far().0 == 503));
    eventually!(SOON, gateway.upstream.count("/held") == 1, "the first has the one connection");
    // Another firm has its share, but no connection is free: it waits its turn, and not for ever.
    let other = gateway.key_with("firm-2", "olga", &[]);
    gateway.get(&other, "/held").expect_problem(503, "upstream_overloaded");
    assert_eq!(gateway.upstream.count("/held"), 1, "no second request shares the one connection");
    gate.open();
    let answer = started.into_iter().nth(refused).expect("it is there").answer().expect("an answer");
    assert_eq!(answer.code(), "upstream_overloaded");
    assert!(answer.fields.one("retry-after").is_some());
}

#[test]
fn a_request_is_balanced_over_endpoints_and_avoids_one_that_is_down() {
    let (other, down) = (Upstream::start(), closed_port());
    let url = other.url();
    let gateway = Gateway::with(|config| {
        let first = config["upstreams"]["ledger"]["endpoints"][0].clone();
        config["upstreams"]["ledger"]["endpoints"] = json!([first, url, down]);
    });
    let key = gateway.key();
    let statuses: Vec<u16> = (0..60).map(|_| gateway.get(&key, "/ok").status).collect();
    assert!(statuses.iter().all(|status| *status == 200), "what was never sent is tried elsewhere: {statuses:?}");
    assert!(gateway.upstream.count("/ok") > 5 && other.count("/ok") > 5, "{} and {}", gateway.upstream.count("/ok"), other.count("/ok"));
}

#[test]
fn a_prefix_is_stripped_only_in_front_of_the_upstream() {
    let gateway = Gateway::with(|config| config["routes"] = json!([{ "path": "/v1/**", "upstream": "ledger", "strip_prefix": "/v1" }]));
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.get(&key, "/v1/clients/1?q=2").expect(200);
    assert_eq!(gateway.upstream.targets(), ["/clients/1?q=2"]);
    assert_eq!(gateway.uses(&editor, 1)[0]["route"], "/v1/**");
}

#[test]
fn a_firm_that_holds_its_share_of_an_upstream_does_not_keep_others_from_it() {
    let gateway = Gateway::with(|config| config["upstreams"]["ledger"]["connections_max"] = json!(8));
    let (greedy, other) = (gateway.key(), gateway.key_with("firm-2", "olga", &[]));
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    gateway.upstream.answer(move |head| if head.start.contains("/held") { Reply::Held(Arc::clone(&held)) } else { Reply::ok() });
    let http2 = Http2::connect(gateway.edge());
    let started: Vec<_> = (0..6).map(|_| http2.start(&Request::get("/held").bearer(&greedy.secret))).collect();
    eventually!(SOON, gateway.upstream.count("/held") == 6);
    gateway.get(&greedy, "/more").expect_problem(503, "upstream_overloaded");
    gateway.get(&other, "/mine").expect(200);
    gate.open();
    started.into_iter().for_each(|started| assert_eq!(started.answer().map(|answer| answer.status), Ok(200)));
    eventually!(SOON, gateway.get(&greedy, "/again").status == 200, "a share comes back");
}

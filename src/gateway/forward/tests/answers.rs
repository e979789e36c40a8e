//! What upstreams answer, well or badly, and what the client sees of it.
//!
//! What the client gets of an answer: its head, its body, its end, or the truth about why there is none. Upstreams follow
//! a script; a broken one must never look like a whole answer.

use std::time::Duration;

use super::support::{Front, GET, OK, Script};

#[tokio::test]
async fn the_upstream_gets_one_clean_request_and_the_client_its_answer() {
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Script::start(move |_, mut peer| {
        let seen = seen.clone();
        async move {
            seen.send(peer.head().await).unwrap();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Assure-Y: 1\r\nX-Kept: 1\r\n\r\nok")
                .await;
            peer.rest().await;
        }
    })
    .await;
    let front = Front::start(upstream.config()).await;
    let mut client = front.client().await;
    client.send("GET http://LOCALHOST/a%7eb?x#f HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nX-Assure-Jwt-Assertion: forged\r\nConnection: x-assure-jwt-assertion\r\nUpgrade: h2c\r\nAccept: */*\r\n\r\n").await;
    let head = client.head().await.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200 ok\r\n") && head.contains("x-kept: 1\r\n") && head.contains("via: 1.1 assure-gateway\r\n"),
        "{head}"
    );
    assert!(!head.contains("x-hop") && !head.contains("x-assure"), "{head}");
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get /a~b?x http/1.1\r\n"), "{request}");
    assert_eq!(request.matches("x-assure-jwt-assertion: our-word\r\n").count(), 1, "{request}");
    assert_eq!(request.matches("host: localhost\r\n").count(), 2, "host and x-forwarded-host: {request}");
    for absent in ["secret", "forged", "upgrade", "connection", "content-length", "transfer-encoding"] {
        assert!(!request.contains(absent), "{absent}: {request}");
    }
    for present in ["x-request-id: our-id\r\n", "x-forwarded-for: 192.0.2.7\r\n", "x-forwarded-proto: http\r\n", "accept: */*\r\n"] {
        assert!(request.contains(present), "{present}: {request}");
    }
}

#[tokio::test]
async fn what_is_not_an_http_answer_is_502() {
    let huge: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(1_000_000)).into_boxed_str());
    for answer in [
        "NOPE\r\n\r\n",
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20 Odd\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 abc Odd\r\nContent-Length: 0\r\n\r\n",
        huge,
    ] {
        let upstream = Script::start(move |_, mut peer| async move {
            peer.head().await;
            peer.send(answer).await;
            if !answer.is_empty() {
                peer.rest().await;
            }
        })
        .await;
        let front = Front::start(upstream.config()).await;
        let shown = answer.get(..80).unwrap_or(answer);
        assert_eq!(front.get().await, (502, "upstream_broken".into()), "{shown:?}");
        assert_eq!(upstream.connections(), 1, "never sent twice: {shown:?}");
    }
}

#[tokio::test]
async fn informational_answers_are_passed_over() {
    let upstream = Script::saying(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    assert_eq!(Front::start(upstream.config()).await.get().await, (200, "ok".into()));
}

#[tokio::test]
async fn a_broken_off_answer_never_looks_complete() {
    for (answer, complete) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Some("0\r\n\r\n")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n", Some("0\r\n\r\n")),
    ] {
        let upstream = Script::start(move |_, mut peer| async move {
            peer.head().await;
            peer.send(answer).await;
        })
        .await;
        let mut client = Front::start(upstream.config()).await.client().await;
        client.send(GET).await;
        let got = client.rest().await;
        assert!(got.starts_with("HTTP/1.1 200 OK") && got.contains("half"), "{got}");
        assert!(complete.is_none_or(|end| !got.ends_with(end)), "{got}");
    }
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_broken_off() {
    let upstream = Script::saying("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    let mut config = upstream.config();
    config.timeout.idle = Duration::from_millis(100);
    let mut client = Front::start(config).await.client().await;
    client.send(GET).await;
    assert!(client.rest().await.ends_with("half"));
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_504() {
    let upstream = Script::saying("HTTP/1.1 200 OK\r\n").await;
    let mut config = upstream.config();
    config.timeout.response_header = Duration::from_millis(100);
    assert_eq!(Front::start(config).await.get().await, (504, "upstream_timeout".into()));
}

#[tokio::test]
async fn an_unreachable_upstream_is_502() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let front = Front::start(super::support::upstream_config(&[format!("http://{free}")])).await;
    assert_eq!(front.get().await, (502, "upstream_unreachable".into()));
    let clear = Script::saying(OK).await;
    let front = Front::start(super::support::upstream_config(&[format!("https://localhost:{}", clear.address.port())])).await;
    let (status, reason) = front.get().await;
    assert!(matches!((status, reason.as_str()), (502, "upstream_unreachable") | (504, "upstream_timeout")), "{status} {reason}");
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length_and_the_connection() {
    let upstream = Script::start(|_, mut peer| async move {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        ] {
            peer.head().await;
            peer.send(answer).await;
        }
        peer.rest().await;
    })
    .await;
    let mut client = Front::start(upstream.config()).await.client().await;
    for (method, expected, length) in [("HEAD", "200", true), ("GET", "304", false), ("GET", "204", false)] {
        client.send(&GET.replace("GET", method)).await;
        let head = client.head().await.to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {expected}")), "{head}");
        // hyper leaves the length out of a 304, as RFC 9110 section 15.4.5 allows.
        assert_eq!(head.contains("content-length: 5"), length, "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn announced_trailers_reach_the_client_and_ours_cannot_be_forged() {
    let upstream =
        Script::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Assure-Z\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nX-Assure-Z: 1\r\n\r\n").await;
    let mut client = Front::start(upstream.config()).await.client().await;
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n").await;
    let answer = client.rest().await.to_ascii_lowercase();
    assert!(answer.contains("x-sum: 7\r\n"), "{answer}");
    assert!(!answer.contains("x-assure-z"), "{answer}");
}

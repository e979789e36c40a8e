//! Request bodies: framed anew, counted, cut.
//!
//! What the upstream gets of a request body: framed once, counted, cut at the limit, never complete when it was cut, and
//! ended when the upstream has already answered.

use std::time::Duration;

use tokio::time::timeout;

use super::support::{BODY_BYTES_MAX, Front, OK, PATIENCE, Peer, Script, eventually};
use crate::gateway::forward::Fate;

/// An upstream that sends on all it receives, and answers once it has seen `end`.
async fn recorder(end: &'static str) -> (Script, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (seen, received) = tokio::sync::mpsc::unbounded_channel();
    let script = Script::start(move |_, mut peer: Peer| {
        let seen = seen.clone();
        async move {
            seen.send(peer.head().await.to_ascii_lowercase()).unwrap();
            if !end.is_empty() {
                seen.send(peer.until(end).await).unwrap();
                peer.send(OK).await;
            }
            seen.send(peer.rest().await).unwrap();
        }
    })
    .await;
    (script, received)
}

#[tokio::test]
async fn every_method_s_body_is_forwarded_with_one_framing() {
    for method in ["GET", "DELETE", "HEAD", "POST", "OPTIONS"] {
        let (upstream, mut received) = recorder("0\r\n\r\n").await;
        let mut client = Front::start(upstream.config()).await.client().await;
        client
            .send(&format!("{method} / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\n\r\n"))
            .await;
        let head = received.recv().await.unwrap();
        assert!(head.contains("transfer-encoding: chunked\r\n") && !head.contains("content-length"), "{method}: {head}");
        assert_eq!(received.recv().await.unwrap(), "5\r\nhello\r\n0\r\n\r\n", "{method}");
        assert!(client.head().await.starts_with("HTTP/1.1 200"));

        let (upstream, mut received) = recorder("hello").await;
        let mut client = Front::start(upstream.config()).await.client().await;
        client.send(&format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 005\r\n\r\nhello")).await;
        let head = received.recv().await.unwrap();
        assert!(head.contains("content-length: 5\r\n") && !head.contains("transfer-encoding"), "{method}: {head}");
        assert_eq!(received.recv().await.unwrap(), "hello", "{method}");
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn expect_is_answered_by_the_gateway_and_not_forwarded() {
    let (upstream, mut received) = recorder("hello").await;
    let mut client = Front::start(upstream.config()).await.client().await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 100"));
    client.send("hello").await;
    assert_eq!(client.answer().await, (200, "ok".into()));
    assert!(!received.recv().await.unwrap().contains("expect"));
}

#[tokio::test]
async fn request_trailers_reach_the_upstream_also_unannounced() {
    let (upstream, mut received) = recorder("\r\n\r\n").await;
    let mut client = Front::start(upstream.config()).await.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nX-Assure-Z: 1\r\n\r\n")
        .await;
    received.recv().await.unwrap();
    assert_eq!(received.recv().await.unwrap().to_ascii_lowercase(), "2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n");
    assert_eq!(client.answer().await, (200, "ok".into()));
}

#[tokio::test]
async fn announced_request_trailers_survive() {
    let (upstream, mut received) = recorder("\r\n\r\n").await;
    let mut client = Front::start(upstream.config()).await.client().await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Assure-Z\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nX-Assure-Z: 1\r\n\r\n").await;
    assert!(received.recv().await.unwrap().contains("trailer: x-sum\r\n"));
    assert_eq!(received.recv().await.unwrap().to_ascii_lowercase(), "2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n");
    assert_eq!(client.answer().await, (200, "ok".into()));
}

fn chunked(bytes: u64) -> String {
    let half = bytes / 2;
    let chunk = |length: u64| format!("{length:x}\r\n{}\r\n", "a".repeat(usize::try_from(length).unwrap()));
    format!("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{}{}0\r\n\r\n", chunk(half), chunk(bytes - half))
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_is_never_complete() {
    let (upstream, mut received) = recorder("0\r\n\r\n").await;
    let front = Front::start(upstream.config()).await;
    assert_eq!(front.ask(&chunked(BODY_BYTES_MAX)).await, (200, "ok".into()));
    received.recv().await.unwrap();
    assert_eq!(received.recv().await.unwrap().matches('a').count(), 1_000);
    assert_eq!(front.meters.lock()[0].request_bytes(), BODY_BYTES_MAX);

    let (upstream, mut received) = recorder("").await;
    let front = Front::start(upstream.config()).await;
    assert_eq!(front.ask(&chunked(BODY_BYTES_MAX + 1)).await, (413, "body_grew_too_large".into()));
    received.recv().await.unwrap();
    let rest = received.recv().await.unwrap();
    assert!(!rest.contains("0\r\n\r\n") && rest.matches('a').count() <= 1_000, "{rest}");
    assert_eq!(front.fate(0), Some(Fate::TooLarge));
}

#[tokio::test]
async fn a_declared_length_over_the_limit_never_reaches_the_upstream() {
    let upstream = Script::ok().await;
    let front = Front::start(upstream.config()).await;
    let (status, _) = front.ask("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!((status, upstream.connections()), (413, 0));
}

#[tokio::test]
async fn a_client_that_breaks_off_aborts_the_upstream_s_request() {
    let (upstream, mut received) = recorder("").await;
    let front = Front::start(upstream.config()).await;
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    received.recv().await.unwrap();
    drop(client);
    assert!(!received.recv().await.unwrap().contains("0\r\n\r\n"));
}

#[tokio::test]
async fn an_upstream_that_answers_before_it_has_read_all_is_answered_and_let_go() {
    let (closed, mut closes) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Script::start(move |index, mut peer| {
        let closed = closed.clone();
        async move {
            peer.head().await;
            peer.send(OK).await;
            closed.send((index, peer.rest().await)).unwrap();
        }
    })
    .await;
    let mut config = upstream.config();
    config.connections_max = 1;
    let front = Front::start(config).await;
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    assert_eq!(client.answer().await, (200, "ok".into()));
    let (index, rest) = timeout(PATIENCE, closes.recv()).await.unwrap().unwrap();
    assert!(index == 0 && !rest.contains("0\r\n\r\n"), "{rest}");
    eventually("the body is known to be unwanted", || front.fate(0) == Some(Fate::Unwanted)).await;
    // The only slot is free again.
    assert_eq!(front.get().await, (200, "ok".into()));
}

#[tokio::test]
async fn an_answer_may_flow_while_the_request_does() {
    let upstream = Script::start(|_, mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
        peer.until("0\r\n\r\n").await;
        peer.send("3\r\ntwo\r\n0\r\n\r\n").await;
        peer.rest().await;
    })
    .await;
    let front = Front::start(upstream.config()).await;
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    client.until("one\r\n").await;
    client.send("0\r\n\r\n").await;
    client.until("two\r\n0\r\n\r\n").await;
    assert_eq!(front.fate(0), Some(Fate::Complete));
}

#[tokio::test]
#[ignore = "takes the ten seconds that a client has"]
async fn a_body_that_stops_coming_is_408() {
    let (upstream, mut received) = recorder("").await;
    let front = Front::start(upstream.config()).await;
    let started = tokio::time::Instant::now();
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf").await;
    received.recv().await.unwrap();
    eventually("the body is cut", || front.fate(0) != Some(Fate::Open)).await;
    assert!(started.elapsed() > Duration::from_secs(9));
    assert_eq!(client.answer().await, (408, "body_too_slow".into()));
}

//! Connections to upstreams: kept, replaced, limited, spread.
//!
//! How upstream connections are shared, kept, given up and tried again: never more than configured, never reused in doubt,
//! and a request is sent twice only if not a byte of it was sent before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::support::{Front, GET, OK, PATIENCE, Script, eventually, upstream_config};
use crate::config;
use crate::gateway::forward::Forwarder;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let upstream = Script::ok().await;
    let front = Front::start(upstream.config()).await;
    for _ in 0..20 {
        assert_eq!(front.get().await, (200, "ok".into()));
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_costs_nobody_an_error() {
    let upstream = Script::start(|_, mut peer| async move {
        peer.head().await;
        peer.send(OK).await;
    })
    .await;
    let front = Front::start(upstream.config()).await;
    for _ in 0..50 {
        // Without a pause, so that the request meets the close at all stages. One that was written is not sent again.
        let (status, _) = front.ask("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").await;
        assert!(matches!(status, 200 | 502));
    }
    assert!(upstream.connections() > 25);
}

#[tokio::test]
async fn a_request_that_was_written_is_never_sent_twice() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let upstream = Script::start(move |_, mut peer| {
        let count = count.clone();
        async move {
            peer.head().await;
            count.fetch_add(1, Ordering::SeqCst);
            peer.send(OK).await;
            peer.head().await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let front = Front::start(upstream.config()).await;
    assert_eq!(front.get().await.0, 200);
    assert_eq!(front.get().await, (502, "upstream_broken".into()));
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_unasked_second_answer_is_nobody_s() {
    let upstream = Script::start(|index, mut peer| async move {
        peer.head().await;
        match index {
            0 => peer.send(&format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")).await,
            _ => peer.send(OK).await,
        }
        peer.rest().await;
    })
    .await;
    let front = Front::start(upstream.config()).await;
    assert_eq!(front.get().await, (200, "ok".into()));
    assert_eq!(front.get().await, (200, "ok".into()));
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn there_are_never_more_connections_than_configured_and_waiting_ends() {
    let upstream = Script::saying("").await;
    let mut config = upstream.config();
    config.connections_max = 2;
    let front = Front::start(config).await;
    let (mut first, mut second) = (front.client().await, front.client().await);
    first.send(GET).await;
    second.send(GET).await;
    eventually("both connections are taken", || upstream.connections() == 2).await;
    assert_eq!(front.get().await, (503, "upstream_overloaded".into()));
    assert_eq!(upstream.connections(), 2);
    // A client that goes away frees its slot.
    drop(first);
    eventually_another(&front, &upstream).await;
}

async fn eventually_another(front: &Front, upstream: &Script) {
    let mut client = front.client().await;
    client.send(GET).await;
    eventually("the slot of a client that left is used again", || upstream.connections() == 3).await;
}

#[tokio::test]
async fn waiting_requests_are_served_in_turn_over_the_same_connection() {
    let upstream = Script::ok().await;
    let mut config = upstream.config();
    config.connections_max = 1;
    let front = Front::start(config).await;
    let answers = futures_util::future::join_all((0..30).map(|_| front.get())).await;
    assert!(answers.iter().all(|answer| answer.0 == 200), "{answers:?}");
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_dead_endpoint_costs_nobody_an_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = Script::ok().await;
    let front = Front::start(upstream_config(&[format!("http://{free}"), upstream.endpoint()])).await;
    for _ in 0..20 {
        assert_eq!(front.get().await, (200, "ok".into()));
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_its_checks_gets_no_requests() {
    let answer = |status: &'static str| {
        Script::start(move |_, mut peer| async move {
            let head = peer.head().await;
            let status = if head.starts_with("GET /healthz ") { status } else { "200 OK" };
            peer.send(&format!(
                "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
                if status == "200 OK" { "ok" } else { "no" }
            ))
            .await;
        })
    };
    let (well, ill) = (answer("200 OK").await, answer("503 Ill").await);
    let mut config = upstream_config(&[ill.endpoint(), well.endpoint()]);
    config.health = Some(config::Health { path: "/healthz".into(), interval: Duration::from_millis(20) });
    let front = Front::start(config).await;
    eventually("two checks have failed", || ill.connections() >= 3).await;
    let checks = well.connections();
    for _ in 0..10 {
        assert_eq!(front.get().await.0, 200);
    }
    assert!(well.connections() >= checks + 10);
}

#[tokio::test]
async fn requests_share_an_http2_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tasks, connections) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
    let (spawner, count) = (tasks.clone(), connections.clone());
    tasks.spawn("h2 upstream", async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let executor = spawner.clone();
            spawner.spawn("h2 connection", async move {
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let seen = format!("{} {:?}", request.uri(), request.headers().get("x-assure-jwt-assertion"));
                    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(format!("{seen} {body:?}")))))
                });
                let _ = hyper::server::conn::http2::Builder::new(executor).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let front = Front::start(upstream_config(&[format!("h2c://{address}")])).await;
    let request = "POST /v1/x HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answers = futures_util::future::join_all((0..40).map(|_| front.ask(request))).await;
    for (status, body) in answers {
        assert_eq!((status, body.as_str()), (200, "http://api.example/v1/x Some(\"our-word\") b\"hello\""));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let too_long = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n", "a".repeat(1_001));
    assert_eq!(front.ask(&too_long).await, (413, "body_grew_too_large".into()));
}

#[tokio::test]
async fn unchanged_upstreams_keep_their_connections_across_a_reload() {
    let upstream = Script::ok().await;
    let (tasks, metrics) = (Tasks::new(), Metrics::new());
    let mut upstreams: std::collections::BTreeMap<_, _> = [("a".to_owned(), upstream.config()), ("b".to_owned(), upstream.config())].into();
    let first = Forwarder::new(&upstreams, &tasks, &metrics, None).unwrap();
    upstreams.get_mut("b").unwrap().connections_max = 3;
    let second = Forwarder::new(&upstreams, &tasks, &metrics, Some(&first)).unwrap();
    assert!(Arc::ptr_eq(&first.upstream("a").unwrap(), &second.upstream("a").unwrap()));
    assert!(!Arc::ptr_eq(&first.upstream("b").unwrap(), &second.upstream("b").unwrap()));
    upstreams.get_mut("b").unwrap().endpoints = vec!["ftp://x".into()];
    assert!(Forwarder::new(&upstreams, &tasks, &metrics, Some(&second)).is_err());
}

#[tokio::test]
async fn unused_connections_are_closed_when_the_process_drains() {
    let (closed, mut closes) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Script::start(move |_, mut peer| {
        let closed = closed.clone();
        async move {
            peer.head().await;
            peer.send(OK).await;
            peer.rest().await;
            closed.send(()).unwrap();
        }
    })
    .await;
    let (tasks, front) = (Tasks::new(), Front::start(upstream.config()).await);
    assert_eq!(front.get().await.0, 200);
    drop(tasks);
    front.tasks.stopping().cancel();
    timeout(PATIENCE, closes.recv()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_clients_share_few_connections_and_each_gets_its_own_answer() {
    let upstream = Script::start(|_, mut peer| async move {
        while peer.has_head().await {
            let head = peer.head().await;
            let path = head.split(' ').nth(1).unwrap().to_owned();
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())).await;
        }
    })
    .await;
    let mut config = upstream.config();
    config.connections_max = 4;
    let front = Front::start(config).await;
    let clients = (0..24).map(|client| {
        let front = front.clone();
        async move {
            let mut peer = front.client().await;
            for turn in 0..50 {
                let path = format!("/{client}/{turn}");
                peer.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                assert_eq!(peer.answer().await, (200, path));
            }
        }
    });
    timeout(PATIENCE, futures_util::future::join_all(clients)).await.unwrap();
    assert!(upstream.connections() <= 4, "{}", upstream.connections());
}

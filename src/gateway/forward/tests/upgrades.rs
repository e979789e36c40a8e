//! WebSockets through the gateway, from HTTP/1.1 and HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{Front, OK, Script, Speaks, eventually};
use crate::gateway::forward::{TunnelEnd, TunnelOutcome, Websocket};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Agrees to be upgraded, sends the request's head, then echoes five bytes at a time.
async fn echo() -> Script {
    Script::start(|_, mut peer| async move {
        let head = peer.head().await.to_ascii_lowercase();
        if !head.contains("upgrade: websocket\r\n")
            || !head.contains("connection: upgrade\r\n")
            || !head.contains("sec-websocket-key: ")
            || !head.starts_with("get /chat ")
        {
            return peer.send(OK).await;
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello")
            .await;
        let said = peer.exactly(5).await;
        peer.send(&said).await;
        peer.rest().await;
    })
    .await
}

#[tokio::test]
async fn a_websocket_flows_both_ways_and_is_counted() {
    let upstream = echo().await;
    let front = Front::start_with(upstream.config(), Websocket::Allowed, Speaks::Http1).await;
    let mut client = front.client().await;
    client.send(UPGRADE).await;
    let head = client.head().await.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101")
            && head.contains("upgrade: websocket\r\n")
            && head.contains("connection: upgrade\r\n")
            && head.contains("sec-websocket-accept: x\r\n"),
        "{head}"
    );
    assert_eq!(client.exactly(5).await, "hello");
    client.send("there").await;
    assert_eq!(client.exactly(5).await, "there");
    drop(client);
    eventually("the tunnel ends", || !front.tunnels.lock().is_empty()).await;
    assert_eq!(front.tunnels.lock()[0], TunnelEnd { bytes_up: 5, bytes_down: 10, outcome: TunnelOutcome::Closed });
}

#[tokio::test]
async fn a_websocket_is_cut_when_asked_and_when_idle() {
    let upstream = echo().await;
    let front = Front::start_with(upstream.config(), Websocket::Allowed, Speaks::Http1).await;
    let mut client = front.client().await;
    client.send(UPGRADE).await;
    client.until("hello").await;
    front.cut.cancel();
    assert_eq!(client.rest().await, "");
    eventually("the tunnel ends", || front.tunnels.lock().first().is_some_and(|end| end.outcome == TunnelOutcome::Cut)).await;

    let mut config = upstream.config();
    config.timeout.idle = Duration::from_millis(50);
    let front = Front::start_with(config, Websocket::Allowed, Speaks::Http1).await;
    let mut client = front.client().await;
    client.send(UPGRADE).await;
    assert!(client.rest().await.ends_with("hello"));
    eventually("the tunnel ends", || front.tunnels.lock().first().is_some_and(|end| end.outcome == TunnelOutcome::Idle)).await;
}

#[tokio::test]
async fn where_no_websocket_is_allowed_or_asked_for_the_request_is_plain() {
    let upstream = echo().await;
    let front = Front::start(upstream.config()).await;
    assert_eq!(front.ask(UPGRADE).await, (200, "ok".into()));
    let front = Front::start_with(upstream.config(), Websocket::Allowed, Speaks::Http1).await;
    for plain in [UPGRADE.replace("WebSocket\r\n", "h2c\r\n"), UPGRADE.replace(", Upgrade", ""), UPGRADE.replace("GET", "POST")] {
        assert_eq!(front.ask(&plain).await, (200, "ok".into()), "{plain}");
    }
}

#[tokio::test]
async fn an_upstream_that_declines_is_heard_and_one_that_lies_is_not() {
    let declines = Script::saying("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let front = Front::start_with(declines.config(), Websocket::Allowed, Speaks::Http1).await;
    assert_eq!(front.ask(UPGRADE).await, (403, "no".into()));
    let lies = Script::saying("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n").await;
    let front = Front::start_with(lies.config(), Websocket::Allowed, Speaks::Http1).await;
    assert_eq!(front.ask(UPGRADE).await, (502, "upstream_broken".into()));
}

async fn connect(front: &Front) -> hyper::Result<http::Response<hyper::body::Incoming>> {
    let stream = TokioIo::new(TcpStream::connect(front.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    eventually("the server's settings allow extended CONNECT", || connection.is_extended_connect_protocol_enabled()).await;
    front.tasks.spawn("h2 client", async move {
        let _ = connection.await;
    });
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://localhost/chat")
        .version(Version::HTTP_2)
        .header("sec-websocket-version", "13");
    let request = request.extension(hyper::ext::Protocol::from_static("websocket")).body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(request).await
}

#[tokio::test]
async fn a_websocket_over_http2_becomes_an_upgrade_upstream() {
    let upstream = echo().await;
    let front = Front::start_with(upstream.config(), Websocket::Allowed, Speaks::Http2).await;
    let answer = connect(&front).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("sec-websocket-accept") && !answer.headers().contains_key("upgrade"));
    let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut five = [0; 5];
    stream.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"hello");
    stream.write_all(b"there").await.unwrap();
    stream.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"there");
    stream.shutdown().await.unwrap();
    eventually("the tunnel ends", || front.tunnels.lock().first().is_some_and(|end| end.bytes_up == 5 && end.bytes_down == 10)).await;
}

#[tokio::test]
async fn a_websocket_over_http2_is_refused_where_the_route_has_none_and_broken_where_the_upstream_does_not_upgrade() {
    let upstream = echo().await;
    let front = Front::start_with(upstream.config(), Websocket::Refused, Speaks::Http2).await;
    assert_eq!(connect(&front).await.unwrap().status(), 405);
    let plain = Script::saying(OK).await;
    let front = Front::start_with(plain.config(), Websocket::Allowed, Speaks::Http2).await;
    assert_eq!(connect(&front).await.unwrap().status(), 502);
}

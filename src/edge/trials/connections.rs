//! How connections begin, wait and end.
//!
//! Deadlines are shortened through `Limits`, and no test waits by sleeping: each watches the socket or the counter that
//! changes. Graceful ends are seen from the client: who is answered, who is closed, and how.

use super::*;

#[tokio::test]
async fn both_versions_are_told_apart_in_clear_text() {
    let edge = Edge::with(|_| ());
    let mut stream = edge.connect().await;
    for _ in 0..3 {
        stream.write_all(GET.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "127.0.0.1 false HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let mut sender = edge.http2().await;
    let answer = sender.send_request(get("/")).await.unwrap();
    assert_eq!(text_of(answer).await, (200, "127.0.0.1 false HTTP/2.0".into()));
    assert_eq!(edge.connections(), 2);
    drop((stream, sender));
    eventually("no connection is counted", || edge.connections() == 0).await;
}

#[tokio::test]
async fn a_connection_that_rests_between_requests_serves_as_if_it_had_not() {
    let edge = Edge::with_limits(|limits| limits.rest = Duration::ZERO);
    let mut stream = edge.connect().await;
    for _ in 0..3 {
        for byte in GET.as_bytes() {
            stream.write_u8(*byte).await.unwrap();
        }
        read_until(&mut stream, "127.0.0.1 false HTTP/1.1").await;
    }
    stream.write_all(GET.repeat(2).as_bytes()).await.unwrap();
    for _ in 0..2 {
        read_until(&mut stream, "127.0.0.1 false HTTP/1.1").await;
    }
    stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    eventually("no connection is counted", || edge.connections() == 0).await;
}

#[tokio::test]
async fn a_connection_that_rests_ends_when_it_is_idle_for_too_long_when_its_client_goes_and_when_the_listener_drains() {
    let edge = Edge::with_limits(|limits| (limits.rest, limits.idle) = (Duration::ZERO, SOON));
    let mut idle = edge.connect().await;
    idle.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut idle).await.ends_with("false HTTP/1.1"));
    let edge = Edge::with_limits(|limits| limits.rest = Duration::ZERO);
    let (mut left, mut staying) = (edge.connect().await, edge.connect().await);
    for stream in [&mut left, &mut staying] {
        stream.write_all(GET.as_bytes()).await.unwrap();
        read_until(stream, "false HTTP/1.1").await;
    }
    drop(left);
    eventually("the client that went is not counted", || edge.connections() == 1).await;
    edge.drain.begin();
    assert_eq!(read_to_end(&mut staying).await, "");
}

#[tokio::test]
async fn a_preface_that_comes_byte_by_byte_is_http2_and_a_lookalike_is_not() {
    let edge = Edge::with(|_| ());
    let mut stream = edge.connect().await;
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_u8(*byte).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut frame = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[3], 4, "the first frame is SETTINGS");
    let answer = edge.exchange(b"PRI * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
}

#[tokio::test]
async fn silence_is_cut_before_the_first_byte_within_a_preface_and_within_a_head() {
    let edge = Edge::with_limits(|limits| (limits.first_byte, limits.head) = (SOON, SOON));
    for begun in ["", "PRI * HTTP/2.0\r\n", "G", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let answer = edge.exchange(begun.as_bytes()).await;
        assert_eq!(answer, "", "after {begun:?}");
    }
    assert_eq!(edge.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_although_bytes_keep_coming() {
    let edge = Edge::with_limits(|limits| limits.head = SOON);
    let mut stream = edge.connect().await;
    stream.write_all(GET.as_bytes()).await.unwrap();
    read_until(&mut stream, "false HTTP/1.1").await;
    let trickled = timeout(PATIENCE, async {
        while stream.write_all(b"G").await.is_ok() {
            tokio::time::sleep(SOON / 10).await;
        }
    });
    assert!(trickled.await.is_ok(), "a head may trickle for ever");
}

#[tokio::test]
async fn an_idle_connection_is_closed_cleanly_and_a_busy_one_is_not() {
    let edge = Edge::with_limits(|limits| limits.idle = SOON);
    let mut busy = edge.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    edge.calls_are(1).await;
    let mut idle = edge.connect().await;
    idle.write_all(GET.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut idle).await;
    assert!(answer.ends_with("false HTTP/1.1"), "{answer}");
    edge.answers.add_permits(1);
    read_until(&mut busy, "slow").await;
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let edge = Edge::with(|options| options.connections_per_address_max = 2);
    let mut first = edge.connect().await;
    let mut second = edge.connect().await;
    for stream in [&mut first, &mut second] {
        stream.write_all(GET.as_bytes()).await.unwrap();
        read_until(stream, "false HTTP/1.1").await;
    }
    assert_eq!(read_to_end(&mut edge.connect().await).await, "");
    drop(first);
    eventually("the place is free again", || edge.connections() == 1).await;
    let mut third = edge.connect().await;
    third.write_all(GET.as_bytes()).await.unwrap();
    read_until(&mut third, "false HTTP/1.1").await;
}

#[tokio::test]
async fn at_the_limit_in_all_a_connection_waits_for_its_place() {
    let edge = Edge::with(|options| options.connections_max = 1);
    let mut first = edge.connect().await;
    first.write_all(GET.as_bytes()).await.unwrap();
    read_until(&mut first, "false HTTP/1.1").await;
    let mut second = edge.connect().await;
    second.write_all(GET.as_bytes()).await.unwrap();
    assert!(timeout(SOON, second.read_u8()).await.is_err(), "a second connection was served");
    drop(first);
    read_until(&mut second, "false HTTP/1.1").await;
}

#[tokio::test]
async fn a_drain_closes_the_idle_finishes_the_busy_and_admits_nobody() {
    let edge = Edge::with(|_| ());
    let mut idle = edge.connect().await;
    idle.write_all(GET.as_bytes()).await.unwrap();
    read_until(&mut idle, "false HTTP/1.1").await;
    let mut silent = edge.connect().await;
    let mut busy = edge.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut sender = edge.http2().await;
    let streaming = sender.send_request(get("/slow"));
    edge.calls_are(2).await;
    edge.drain.begin();
    assert_eq!(read_to_end(&mut idle).await, "");
    assert_eq!(read_to_end(&mut silent).await, "");
    eventually("the listener is closed", || std::net::TcpStream::connect(edge.address).is_err()).await;
    edge.answers.add_permits(2);
    let answer = read_to_end(&mut busy).await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("slow"), "{answer}");
    assert_eq!(text_of(streaming.await.unwrap()).await, (200, "slow".into()));
    drop((busy, idle, silent));
    timeout(PATIENCE, edge.served).await.expect("the drain ends").unwrap();
    assert_eq!(edge.metrics.connections.with_label_values(&["edge"]).get(), 0);
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_tunnels_too() {
    let edge = Edge::with(|options| options.drain = SOON);
    let mut busy = edge.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut tunnel = edge.connect().await;
    tunnel.write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    let mut sender = edge.http2().await;
    let streaming = sender.send_request(get("/slow"));
    edge.calls_are(3).await;
    edge.drain.begin();
    assert_eq!(read_to_end(&mut busy).await, "");
    assert_eq!(read_to_end(&mut tunnel).await, "");
    assert!(streaming.await.is_err());
    edge.calls_are(0).await;
    timeout(PATIENCE, edge.served).await.expect("the drain ends").unwrap();
}

#[tokio::test]
async fn a_tunnel_outlives_the_idle_deadline_and_carries_what_looks_like_an_answer() {
    let edge = Edge::with_limits(|limits| (limits.idle, limits.head) = (SOON, SOON));
    let mut tunnel = edge.connect().await;
    tunnel.write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    assert!(timeout(SOON * 3, tunnel.read_u8()).await.is_err(), "the tunnel ended");
    let lookalike = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    tunnel.write_all(lookalike.as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut tunnel, "\r\n\r\n").await, lookalike);
}

#[tokio::test]
async fn websockets_come_over_http2_by_extended_connect() {
    let edge = Edge::with_limits(|limits| limits.idle = SOON);
    let mut sender = edge.http2().await;
    // The server's SETTINGS must have arrived before extended CONNECT may be used.
    text_of(sender.send_request(get("/")).await.unwrap()).await;
    let mut connect = Request::connect("http://localhost/echo").body(Empty::new()).unwrap();
    connect.extensions_mut().insert(Protocol::from_static("websocket"));
    let answer = sender.send_request(connect).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    assert!(timeout(SOON * 3, tunnel.read_u8()).await.is_err(), "the tunnel ended");
    tunnel.write_all(b"hello").await.unwrap();
    assert_eq!(read_until(&mut tunnel, "hello").await, "hello");
}

#[tokio::test]
async fn an_http2_connection_without_streams_is_closed_and_one_with_a_stream_is_not() {
    let edge = Edge::with_limits(|limits| limits.idle = SOON);
    let mut busy = edge.http2().await;
    let slow = busy.send_request(get("/slow"));
    let mut idle = edge.http2().await;
    text_of(idle.send_request(get("/")).await.unwrap()).await;
    eventually("the idle connection is closed", || idle.is_closed()).await;
    edge.answers.add_permits(1);
    assert_eq!(text_of(slow.await.unwrap()).await, (200, "slow".into()));
}

#[tokio::test]
async fn an_old_connection_is_asked_to_leave() {
    let edge = Edge::with_limits(|limits| limits.age = SOON);
    let mut sender = edge.http2().await;
    let slow = sender.send_request(get("/slow"));
    let mut stream = edge.connect().await;
    stream.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut stream).await.ends_with("false HTTP/1.1"));
    edge.answers.add_permits(1);
    assert_eq!(text_of(slow.await.unwrap()).await, (200, "slow".into()));
    eventually("the connection is closed", || sender.is_closed()).await;
}

#[tokio::test]
async fn the_proxy_protocol_is_believed_from_trusted_proxies_and_demanded_of_them() {
    let proxied = |network: &str| {
        Edge::with(|options| {
            options.proxy_protocol = ProxyProtocol::Demanded;
            options.trusted_proxies = vec![network.parse().unwrap()];
            options.limits.handshake = SOON * 4;
        })
    };
    let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let header = "PROXY TCP4 203.0.113.7 10.0.0.1 50000 443\r\n";
    let edge = proxied("127.0.0.0/8");
    assert!(edge.exchange(format!("{header}{get}").as_bytes()).await.ends_with("203.0.113.7 false HTTP/1.1"));
    let version2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\x00\x71\x08\x0a\0\0\x01\xc3\x50\x01\xbb";
    assert!(edge.exchange(&[version2, get.as_bytes()].concat()).await.ends_with("203.0.113.8 false HTTP/1.1"));
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert!(edge.exchange(&[local, get.as_bytes()].concat()).await.ends_with("127.0.0.1 false HTTP/1.1"));
    assert!(!edge.exchange(get.as_bytes()).await.contains("HTTP/1.1"), "a trusted proxy did without its header");
    assert_eq!(edge.exchange(b"PROXY TCP4 203.").await, "", "a header that does not end");
    let stranger = proxied("10.0.0.0/8");
    assert!(!stranger.exchange(format!("{header}{get}").as_bytes()).await.contains("HTTP/1.1"), "a stranger was believed");
}

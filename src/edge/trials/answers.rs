//! Answers that come early, late, not at all, or from hyper.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let edge = Edge::with(|_| ());
    for _ in 0..10 {
        upload(&mut edge.connect().await).await;
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_not_asked() {
    let edge = Edge::with(|_| ());
    let answer = edge.exchange(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\nExpect: 100-continue\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("too large"), "{answer}");
}

#[tokio::test]
async fn an_early_answer_over_http2_ends_its_stream_and_not_the_connection() {
    let edge = Edge::with(|_| ());
    let mut sender = edge.http2().await;
    let endless = Endless(Account::open(&Arc::default())).boxed_unsync();
    let early = sender.send_request(Request::post("http://localhost/early").body(endless).unwrap()).await.unwrap();
    assert_eq!(text_of(early).await, (413, "too large".into()));
    let answer = sender.send_request(get("/").map(BodyExt::boxed_unsync)).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn nothing_of_a_refused_body_is_taken_for_a_request() {
    let edge = Edge::with(|_| ());
    let answer =
        edge.exchange(format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{}", GET.repeat(20)).as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let edge = Edge::with_limits(|limits| limits.write_stall = SOON);
    let mut stream = edge.connect().await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    edge.calls_are(1).await;
    edge.calls_are(0).await;
    eventually("the connection is closed", || edge.connections() == 0).await;
}

#[tokio::test]
async fn a_stream_whose_client_opens_no_window_is_reset_and_its_neighbour_is_not() {
    let edge = Edge::with_limits(|limits| limits.write_stall = SOON);
    let mut sender = edge.http2().await;
    let stalled = sender.send_request(get("/endless")).await.unwrap();
    let neighbour = sender.send_request(get("/slow"));
    edge.calls_are(2).await;
    edge.calls_are(1).await;
    edge.answers.add_permits(1);
    assert_eq!(text_of(neighbour.await.unwrap()).await, (200, "slow".into()));
    assert!(stalled.into_body().collect().await.is_err(), "an answer that was cut looks complete");
}

#[tokio::test]
async fn a_service_is_dropped_when_its_client_goes_away() {
    let edge = Edge::with(|_| ());
    let mut stream = edge.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut sender = edge.http2().await;
    let streaming = sender.send_request(get("/slow"));
    edge.calls_are(2).await;
    drop(stream);
    drop(streaming);
    edge.calls_are(0).await;
}

#[tokio::test]
async fn what_hyper_refuses_is_answered_in_our_words() {
    let edge = Edge::with(|_| ());
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", (0..100).map(|place| format!("X-{place}: 1\r\n")).collect::<String>());
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000));
    let after_another = format!("{GET}NO GOOD\r\n\r\n");
    let rows: &[(&str, u16, OwnRefusal)] = &[
        ("NO GOOD\r\n\r\n", 400, OwnRefusal::Malformed),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, OwnRefusal::Malformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", 400, OwnRefusal::Malformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400, OwnRefusal::Malformed),
        ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, OwnRefusal::Malformed),
        ("GET / HTTP/3.7\r\n\r\n", 400, OwnRefusal::Malformed),
        (&after_another, 400, OwnRefusal::Malformed),
        (&many, 431, OwnRefusal::HeadersTooLarge),
        (&large, 431, OwnRefusal::HeadersTooLarge),
        (&long, 414, OwnRefusal::TargetTooLong),
    ];
    for (bytes, status, refusal) in rows {
        let answers = edge.exchange(bytes.as_bytes()).await;
        let answer = answers.rsplit("false HTTP/1.1").next().unwrap();
        let what = bytes.get(..60).unwrap_or(bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {answer}");
        for part in ["\r\nx-request-id: 7\r\n", "\r\nconnection: close\r\n", "\r\ndate: ", "\r\ncontent-type: application/problem+json\r\n"]
        {
            assert!(answer.contains(part), "{what:?} without {part:?}: {answer}");
        }
        let body = format!("{{\"code\":\"{refusal:?}\"}}");
        assert!(answer.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{what:?}: {answer}");
    }
}

#[tokio::test]
async fn too_many_header_fields_over_http2_are_answered_in_our_words() {
    let edge = Edge::with(|_| ());
    let mut sender = edge.http2().await;
    let mut request = get("/");
    for place in 0..101 {
        request.headers_mut().insert(http::HeaderName::try_from(format!("x-{place}")).unwrap(), "1".parse().unwrap());
    }
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "7");
    assert_eq!(text_of(answer).await, (431, "{\"code\":\"HeadersTooLarge\"}".into()));
    let answer = sender.send_request(get("/")).await.unwrap();
    assert_eq!(answer.status(), 200, "the connection goes on");
}

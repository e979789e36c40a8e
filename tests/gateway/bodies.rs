//! K14: the largest request is 10 MiB of body. One byte more is 413, and no upstream ever sees it complete.
//!
//! Both protocols, declared and undeclared lengths; a refused client always gets to read its answer; slow bodies end.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::support::client::chunk;
use crate::support::eventually::{eventually, found};
use crate::support::wire::Framing;
use crate::support::{BODY_BYTES_MAX, Broken, Client, End, Gateway, Http2, Key, Request, SOON};

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|place| (place % 251) as u8).collect()
}

/// The same upload in the four ways in which its length can be told, each with a name.
fn four_ways(key: &Key, body: &[u8]) -> [(&'static str, bool, Request); 4] {
    let upload = || Request::post("/upload", body).bearer(&key.secret);
    [
        ("HTTP/1.1 with Content-Length", false, upload()),
        ("HTTP/1.1 chunked", false, upload().streamed()),
        ("HTTP/2 with content-length", true, upload()),
        ("HTTP/2 without", true, upload().streamed()),
    ]
}

#[test]
fn a_body_of_exactly_ten_mebibytes_arrives_unchanged() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let body = bytes(BODY_BYTES_MAX);
    let http2 = Http2::connect(gateway.edge());
    for (way, is_http2, request) in four_ways(&key, &body) {
        let answer = if is_http2 { http2.exchange(&request).expect(way) } else { request.send_to(gateway.edge()) };
        assert_eq!(answer.status, 200, "{way}");
        let seen = gateway.upstream.last("/upload");
        assert!(seen.complete && seen.body_bytes == BODY_BYTES_MAX, "{way}");
        assert_eq!(seen.body_sha256, <[u8; 32]>::from(Sha256::digest(&body)), "{way}");
    }
    assert!(gateway.upstream.violations().is_empty());
}

#[test]
fn one_byte_more_is_413_and_never_complete_at_the_upstream() {
    let mut gateway = Gateway::start();
    let key = gateway.key();
    let body = bytes(BODY_BYTES_MAX + 1);
    let http2 = Http2::connect(gateway.edge());
    for (way, is_http2, request) in four_ways(&key, &body) {
        gateway.upstream.forget();
        let is_declared = matches!(request.body, crate::support::client::Body::Sized(_));
        let answer = if is_http2 { http2.exchange(&request).expect(way) } else { request.send_to(gateway.edge()) };
        assert_eq!((answer.status, answer.code().as_str()), (413, "request_too_large"), "{way}");
        if is_declared {
            assert!(gateway.upstream.targets().is_empty(), "{way}: nothing is forwarded");
        } else {
            eventually!(
                SOON,
                gateway.upstream.seen().iter().all(|seen| seen.gone_at.is_some()),
                "{way}: the upstream's request is aborted"
            );
            assert!(gateway.upstream.seen().iter().all(|seen| !seen.complete), "{way}");
        }
    }
    assert_eq!(http2.exchange(&Request::get("/after").bearer(&key.secret)).map(|answer| answer.status), Ok(200), "other streams live on");
    gateway.assert_alive(&key);
}

#[test]
fn a_413_tells_the_tool_to_shrink_the_request() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let answer = Request::new("POST", "/x").bearer(&key.secret).with("Content-Length", "10485761").send_to(gateway.edge());
    let detail = answer.expect_problem(413, "request_too_large").json()["detail"].clone();
    assert!(detail.as_str().is_some_and(|text| text.contains("shrink")), "{detail}");
}

#[test]
fn a_client_that_expects_100_continue_never_sends_a_body_that_is_too_large() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut client = Client::connect(gateway.edge());
    let head = Request::new("POST", "/x").bearer(&key.secret).with("Content-Length", "10485761").with("Expect", "100-continue").head();
    client.send(head).expect("sent");
    let answer = client.answer().expect("an answer").expect_problem(413, "request_too_large");
    assert!(answer.interim.is_empty(), "no 100 Continue was sent");
    assert_eq!(client.end(), End::Closed);
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn a_client_that_expects_100_continue_is_told_to_go_on_when_it_may() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let mut client = Client::connect(gateway.edge());
    let head = Request::new("POST", "/x").bearer(&key.secret).with("Content-Length", "5").with("Expect", "100-continue").head();
    client.send(head).expect("sent");
    let (interim, _) = client.answer_head("POST").expect("an interim answer");
    assert_eq!(interim.status, 100);
    client.send("hello").expect("sent");
    client.answer().expect("an answer").expect(200);
    let seen = gateway.upstream.last("/x");
    assert!(seen.complete && seen.body_bytes == 5);
    assert!(seen.fields.all("expect").is_empty(), "the expectation was for us");
}

#[test]
fn a_client_that_is_still_uploading_can_always_read_its_early_answer() {
    let gateway = Gateway::start();
    let key = gateway.key();
    // Far more than socket buffers hold, so that the client is in mid-write when the answer comes.
    let declared = Request::new("POST", "/x").bearer(&key.secret).with("Content-Length", "52428800");
    let stranger = Request::new("POST", "/x").with("Content-Length", "52428800");
    let piece = vec![b'x'; 256 * 1024];
    // `ASSURE_UPLOADS=1000` for a long look.
    let turns = std::env::var("ASSURE_UPLOADS").map_or(50, |text| text.parse().expect("a number"));
    for turn in 0..turns {
        let (request, status) = if turn % 2 == 0 { (&declared, 413) } else { (&stranger, 401) };
        let mut client = Client::connect(gateway.edge());
        client.send(request.head()).expect("sent");
        // Up to 4 MiB are pushed without looking at the answer, as simple clients do.
        for _ in 0..16 {
            if client.send(&piece).is_err() {
                break;
            }
        }
        let answer = client.answer().unwrap_or_else(|broken| panic!("turn {turn}: the answer is lost: {broken:?}"));
        assert_eq!(answer.status, status, "turn {turn}");
    }
    assert!(gateway.upstream.targets().is_empty());
}

#[test]
fn what_follows_a_refused_body_is_never_taken_for_a_request() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let smuggled = Request::get("/smuggled").bearer(&key.secret).head();
    let mut client = Client::connect(gateway.edge());
    let head = Request::new("POST", "/x").with("Content-Length", &(smuggled.len() * 2).to_string()).head();
    client.send([head, smuggled.clone()].concat()).expect("sent");
    client.answer().expect("an answer").expect(401);
    client.send(smuggled).ok();
    let second = client.answer();
    assert!(second.is_err(), "{second:?}");
    assert_eq!(gateway.upstream.count("/smuggled"), 0);
}

#[test]
fn a_body_that_comes_too_slowly_is_408() {
    let gateway = Gateway::with(|config| config["log"]["level"] = "debug".into());
    let key = gateway.key();
    let mut client = Client::connect(gateway.edge());
    client.send(Request::new("POST", "/slow").bearer(&key.secret).with("Content-Length", "1000").head()).expect("sent");
    client.wait_at_most(Duration::from_secs(1));
    let began = Instant::now();
    let answer = found(Duration::from_secs(60), "an end of the patience", || {
        // One byte a second, for as long as nobody objects.
        client.send("x").ok();
        match client.answer() {
            Ok(answer) => Some(answer),
            Err(Broken::Silent) => None,
            Err(broken) => panic!("the client is told why: {broken:?} after {:?}\n{}", began.elapsed(), gateway.log()),
        }
    });
    answer.expect_problem(408, "request_timeout");
    assert!(began.elapsed() > Duration::from_secs(3), "a short pause is forgiven");
    assert_eq!(client.end(), End::Closed);
    eventually!(SOON, gateway.upstream.seen().iter().all(|seen| !seen.complete && seen.gone_at.is_some()));
}

#[test]
fn a_body_is_framed_whatever_the_method() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for method in ["GET", "DELETE", "HEAD", "PATCH"] {
        let mut client = Client::connect(gateway.edge());
        let request = Request { method: method.into(), ..Request::post("/x", "hello").bearer(&key.secret) };
        let answer = client.exchange(&request).expect("an answer").expect(200);
        assert!(method != "HEAD" || answer.body.is_empty());
        client.exchange(&Request::get("/next").bearer(&key.secret)).expect("an answer").expect(200);
        let seen = gateway.upstream.last("/x");
        assert_eq!((seen.method.as_str(), seen.body_bytes, seen.complete), (method, 5, true));
        assert!(seen.framing.is_some(), "{method}");
    }
    assert!(gateway.upstream.violations().is_empty());
}

#[test]
fn an_empty_post_says_that_it_is_empty() {
    let gateway = Gateway::start();
    let key = gateway.key();
    Request::post("/x", "").bearer(&key.secret).send_to(gateway.edge()).expect(200);
    let seen = gateway.upstream.last("/x");
    assert!(matches!(seen.framing, Some(Framing::Length(0)) | Some(Framing::Chunked)), "{:?}", seen.fields);
}

#[test]
fn a_client_that_goes_away_in_mid_upload_aborts_the_upstreams_request() {
    let gateway = Gateway::start();
    let (editor, key) = (gateway.editor(), gateway.key());
    let mut client = Client::connect(gateway.edge());
    client.send(Request::new("POST", "/upload").bearer(&key.secret).with("Transfer-Encoding", "chunked").head()).expect("sent");
    client.send(chunk(&bytes(300_000))).expect("sent");
    eventually!(SOON, gateway.upstream.seen().iter().any(|seen| seen.body_bytes == 300_000), "the upload has begun");
    let left = Instant::now();
    drop(client);
    let seen = found(SOON, "the upstream learns of it", || gateway.upstream.seen().into_iter().find(|seen| seen.gone_at.is_some()));
    assert!(!seen.complete);
    assert!(seen.gone_at.is_some_and(|at| at < left + Duration::from_secs(2)));
    let record = gateway.uses(&editor, 1).remove(0);
    assert_eq!((record["reason"].as_str(), record["request_bytes"].as_str()), (Some("client_abort"), Some("300000")), "{record}");
}

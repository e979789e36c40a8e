//! K13: never more than 1,000 accepted in any 60 seconds, and all 1,000 offered are accepted.
//!
//! Counts are exact. What spends a permit and what does not, what a refused tool is told, and that neither another
//! protocol nor a crash gives a window back.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually::eventually;
use crate::support::{BODY_BYTES_MAX, Client, Gateway, Http2, Key, Request};

const WINDOW: Duration = Duration::from_secs(60);

fn limited_to(requests: u32) -> Gateway {
    Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(requests))
}

#[test]
fn a_thousand_in_a_row_are_accepted_and_the_next_is_told_truly_when_to_come_back() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let request = Request::get("/ok").bearer(&key.secret);
    let mut client = Client::connect(gateway.edge());
    let first_sent = Instant::now();
    for count in 1..=1000 {
        let answer = client.exchange(&request).expect("an answer");
        assert_eq!(answer.status, 200, "request {count}");
    }
    let refused_at = Instant::now();
    let refused = client.exchange(&request).expect("an answer").expect_problem(429, "rate_limited");
    let retry_after: u64 = refused.fields.one("retry-after").expect("Retry-After").parse().expect("whole seconds");
    assert!((1..=60).contains(&retry_after));
    assert_eq!(refused.json()["retry_after"], retry_after);
    assert!(refused.json()["detail"].as_str().is_some_and(|text| text.contains("slow down")), "the body tells the tool to slow down");
    assert!(refused.fields.one("ratelimit").is_some_and(|value| value.starts_with(r#""key";r=0;"#)));
    assert_eq!(gateway.upstream.count("/ok"), 1000, "the upstream saw exactly what was accepted");
    // Not too early, whatever is said: no sixty seconds hold 1,001.
    let promised = refused_at + Duration::from_secs(retry_after);
    assert!(promised >= first_sent + WINDOW, "Retry-After is too early");
    assert!(promised <= Instant::now() + WINDOW + Duration::from_secs(1), "Retry-After is too late");
    let mut accepted_sent = Instant::now();
    eventually!(Duration::from_secs(75), {
        // Refusals cost nothing, so asking on does not move the moment.
        accepted_sent = Instant::now();
        client = Client::connect(gateway.edge());
        client.exchange(&request).expect("an answer").status == 200
    });
    let accepted = Instant::now();
    assert!(accepted >= first_sent + WINDOW, "the window was not over");
    assert!(accepted_sent <= promised + Duration::from_secs(1), "Retry-After was true");
}

#[test]
fn fifteen_hundred_at_once_over_sixteen_connections_are_exactly_a_thousand_accepted() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let statuses = statuses_of_parallel(&gateway, &key, 16, 94);
    let count = |status: u16| statuses.iter().filter(|known| **known == status).count();
    assert_eq!((count(200), count(429)), (1000, 16 * 94 - 1000), "{statuses:?}");
    assert_eq!(gateway.upstream.count("/ok"), 1000);
}

/// Statuses of `connections` × `each` requests, as fast as they go.
fn statuses_of_parallel(gateway: &Gateway, key: &Key, connections: usize, each: usize) -> Vec<u16> {
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let (edge, request) = (gateway.edge(), Request::get("/ok").bearer(&key.secret));
            thread::spawn(move || {
                let mut client = Client::connect(edge);
                (0..each).map(|_| client.exchange(&request).expect("an answer").status).collect::<Vec<_>>()
            })
        })
        .collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("no client panics")).collect()
}

#[test]
fn both_spellings_both_protocols_and_every_method_share_one_count() {
    let gateway = limited_to(8);
    let key = gateway.key();
    let http2 = Http2::connect(gateway.edge());
    for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
        Request::new(method, "/ok").with("X-Api-Key", &key.secret).send_to(gateway.edge()).expect(200);
        assert_eq!(http2.exchange(&Request::new(method, "/ok").bearer(&key.secret)).map(|answer| answer.status), Ok(200));
    }
    gateway.get(&key, "/ok").expect(429);
    assert_eq!(http2.exchange(&Request::get("/ok").bearer(&key.secret)).map(|answer| answer.status), Ok(429));
}

#[test]
fn two_keys_of_one_firm_do_not_share_a_count() {
    let gateway = limited_to(2);
    let editor = gateway.editor();
    for name in ["one", "other"] {
        let key = gateway.create_key(&editor, name);
        let statuses = [(); 3].map(|()| gateway.get(&key, "/ok").status);
        assert_eq!(statuses, [200, 200, 429]);
    }
}

#[test]
fn what_passes_the_window_spends_a_permit_and_what_does_not_pass_it_spends_none() {
    let gateway = limited_to(3);
    let key = gateway.key();
    let too_large = Request::new("POST", "/ok").bearer(&key.secret).with("Content-Length", &(BODY_BYTES_MAX + 1).to_string());
    let free = |gateway: &Gateway| {
        too_large.send_to(gateway.edge()).expect(413);
        Request::get("/ok").send_to(gateway.edge()).expect(401);
        gateway.get(&key, "/a//b").expect(400);
    };
    free(&gateway);
    gateway.get(&key, "/v1/session/x").expect(403);
    free(&gateway);
    gateway.get(&key, "/v1/clients/1").expect(403);
    free(&gateway);
    let last = gateway.get(&key, "/ok").expect(200);
    assert!(last.fields.one("ratelimit").is_some_and(|value| value.starts_with(r#""key";r=0;"#)), "{:?}", last.fields);
    gateway.get(&key, "/ok").expect(429);
    gateway.get(&key, "/ok").expect(429);
}

#[test]
fn an_upstreams_failure_spends_a_permit_too() {
    let gateway = Gateway::with(|config| {
        config["limits"]["requests_per_minute"] = json!(1);
        config["upstreams"]["ledger"]["endpoints"] = json!(["http://127.0.0.1:1"]);
    });
    let key = gateway.key();
    gateway.get(&key, "/ok").expect(502);
    gateway.get(&key, "/ok").expect(429);
}

#[test]
fn the_rate_limit_fields_count_down() {
    let gateway = limited_to(5);
    let key = gateway.key();
    for remaining in (0..5).rev() {
        let answer = gateway.get(&key, "/ok").expect(200);
        assert_eq!(answer.fields.one("ratelimit-policy"), Some(r#""key";q=5;w=60"#));
        let value = answer.fields.one("ratelimit").expect("RateLimit");
        let seconds: u64 =
            value.strip_prefix(&format!(r#""key";r={remaining};t="#)).unwrap_or_else(|| panic!("{value}")).parse().expect("seconds");
        assert!(seconds <= 60);
    }
}

#[test]
fn kill_9_does_not_give_the_window_back() {
    let mut gateway = limited_to(20);
    let key = gateway.key();
    let mut accepted = 0;
    for _ in 0..3 {
        accepted += (0..8).filter(|_| gateway.get(&key, "/ok").status == 200).count();
        gateway.kill9();
        gateway.restart();
    }
    let statuses: Vec<u16> = (0..20).map(|_| gateway.get(&key, "/ok").status).collect();
    accepted += statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert_eq!(statuses.last(), Some(&429));
    assert!((8..=20).contains(&accepted), "{accepted} of 20 were accepted");
    assert_eq!(gateway.upstream.count("/ok"), accepted);
}

#[test]
fn a_reload_can_change_the_limit_without_forgetting_what_was_used() {
    let gateway = limited_to(2);
    let key = gateway.key();
    let statuses = [(); 3].map(|()| gateway.get(&key, "/ok").status);
    assert_eq!(statuses, [200, 200, 429]);
    gateway.rewrite_config(|config| config["limits"]["requests_per_minute"] = json!(3));
    gateway.signal(rustix::process::Signal::HUP);
    eventually!(Duration::from_secs(15), gateway.get(&key, "/ok").status == 200, "the third is accepted after the reload");
    gateway.get(&key, "/ok").expect(429);
}

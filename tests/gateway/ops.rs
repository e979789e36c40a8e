//! The third listener: what Prometheus scrapes, what orchestrators ask, where upstreams find the keys.

use crate::support::eventually::eventually;
use crate::support::{Gateway, Request, SOON};

/// The contract's metrics, without their prefix, by type.
const COUNTERS: [&str; 11] = [
    "requests_total",
    "key_cache_hits_total",
    "key_cache_misses_total",
    "rate_limit_decisions_total",
    "tombstone_write_errors_total",
    "store_clock_leaps_total",
    "rate_limit_reservations_total",
    "audit_records_total",
    "audit_shipped_total",
    "audit_dropped_total",
    "config_reloads_total",
];
const GAUGES: [&str; 8] = [
    "requests_in_flight",
    "connections",
    "key_cache_entries",
    "coherence_lease_remaining_seconds",
    "audit_spool_bytes",
    "audit_spool_oldest_seconds",
    "build_info",
    "config_last_reload_timestamp_seconds",
];
const HISTOGRAMS: [&str; 5] = [
    "request_duration_seconds",
    "added_duration_seconds",
    "upstream_duration_seconds",
    "store_duration_seconds",
    "revocation_propagation_seconds",
];

#[test]
fn every_metric_of_the_contract_is_exposed_with_its_type_and_help() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let key = gateway.create_key(&editor, "tool");
    gateway.get(&key, "/ok").expect(200);
    gateway.revoke(&editor, &key);
    gateway.get(&key, "/ok").expect(401);
    gateway.signal(rustix::process::Signal::HUP);
    eventually!(SOON, gateway.metric("assure_gateway_audit_shipped_total") >= 1.0);
    eventually!(SOON, gateway.metric("assure_gateway_config_reloads_total{result=\"success\"}") >= 1.0);

    let answer = gateway.ops_get("/metrics").expect(200);
    assert!(answer.fields.one("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let text = answer.text();
    for (names, kind) in [(&COUNTERS[..], "counter"), (&GAUGES, "gauge"), (&HISTOGRAMS, "histogram")] {
        for name in names {
            assert!(text.contains(&format!("# TYPE assure_gateway_{name} {kind}\n")), "{name} is missing");
            assert!(text.contains(&format!("# HELP assure_gateway_{name} ")), "{name} has no help");
        }
    }
    assert!(text.contains("process_resident_memory_bytes"), "the process collector's too");
    for secret in [&key.secret, &key.id, &key.prefix, &"firm-1".to_owned(), &"/ok".to_owned()] {
        assert!(!text.contains(secret.as_str()), "{secret} stands in a label");
    }
}

#[test]
fn the_request_metrics_count_what_happened() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for _ in 0..3 {
        gateway.get(&key, "/ok").expect(200);
    }
    gateway.get(&key, "/v1/session/x").expect(403);
    let allowed = |class: &str| {
        gateway.metric(&format!("assure_gateway_requests_total{{outcome=\"allowed\",route=\"everything\",status_class=\"{class}\"}}"))
    };
    eventually!(SOON, (allowed("2xx") - 3.0).abs() < 0.5, "three allowed requests: {}", gateway.ops_get("/metrics").text());
    assert!(gateway.metric("assure_gateway_rate_limit_decisions_total{outcome=\"allowed\"}") >= 4.0);
    assert!(gateway.metric("assure_gateway_requests_in_flight").abs() < 0.5, "nothing is left behind");
    assert!(gateway.metric("assure_gateway_key_cache_hits_total") >= 1.0);
}

#[test]
fn health_and_readiness_are_green_while_it_serves() {
    let gateway = Gateway::start();
    gateway.ops_get("/healthz").expect(200);
    gateway.ops_get("/readyz").expect(200);
    gateway.ops_get("/nothing").expect(404);
}

#[test]
fn the_key_set_is_published_for_upstreams_to_cache() {
    let gateway = Gateway::start();
    let answer = gateway.ops_get("/.well-known/jwks.json").expect(200);
    assert!(answer.fields.one("cache-control").is_some_and(|value| value.contains("max-age")));
    let keys = answer.json()["keys"].as_array().expect("a list").clone();
    assert!(!keys.is_empty());
    for key in keys {
        assert!(key["kid"].is_string() && key["kty"].is_string() && key["use"] == "sig" && key.get("d").is_none(), "{key}");
    }
}

#[test]
fn the_healthcheck_command_asks_a_running_gateway() {
    let mut gateway = Gateway::start();
    let url = format!("http://{}", gateway.ops());
    let check = |gateway: &Gateway| gateway.command(&["healthcheck", "--ops", &url]).status().expect("it runs and ends").success();
    assert!(check(&gateway));
    gateway.kill9();
    assert!(!check(&gateway));
}

#[test]
fn the_three_listeners_do_not_serve_each_others_paths() {
    let gateway = Gateway::start();
    let key = gateway.key();
    for target in ["/metrics", "/readyz", "/v1/keys"] {
        gateway.get(&key, target).expect(200);
        assert_eq!(gateway.upstream.count(target), 1, "on the edge {target} is the upstream's");
        Request::get(target).send_to(gateway.edge()).expect(401);
    }
    gateway.ops_get("/v1/keys").expect(404);
    gateway.ask_admin(&Request::get("/metrics")).expect(404);
}

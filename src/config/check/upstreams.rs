//! Checks of the upstreams: names, endpoints, deadlines, health.

use std::collections::BTreeMap;

use super::{At, Checks, at, check_file};
use crate::config::{DEMO_ENDPOINT, Health, Upstream};
use crate::dial::Endpoint;

/// Longest name of an upstream, in characters: it is a metric label and the assertion's audience.
const NAME_CHARS_MAX: usize = 32;

/// Most connections to one endpoint: below the ports that one address has for one destination.
const CONNECTIONS_MAX: usize = 10_000;

pub(super) fn check(upstreams: &BTreeMap<String, Upstream>, checks: &mut Checks<'_>) {
    for (name, upstream) in upstreams {
        let here = at("upstreams").field(name);
        if !is_name(name) {
            checks.refuse(&here, format!("the name of an upstream has 1 to {NAME_CHARS_MAX} of a-z, 0-9 and -"));
        }
        check_endpoints(&upstream.endpoints, &here.field("endpoints"), checks);
        check_timeouts(upstream, &here.field("timeout"), checks);
        check_health(upstream.health.as_ref(), &here.field("health"), checks);
        if !(1..=CONNECTIONS_MAX).contains(&upstream.connections_max) {
            checks.refuse(&here.field("connections_max"), format!("expected a whole number from 1 to {CONNECTIONS_MAX}"));
        }
        if let Some(ca) = &upstream.ca {
            check_file(ca, &here.field("ca"), checks);
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

fn check_endpoints(endpoints: &[String], here: &At, checks: &mut Checks<'_>) {
    if endpoints.is_empty() {
        checks.refuse(here, "this list is empty; give at least one address like http://127.0.0.1:9000");
    }
    for (number, endpoint) in endpoints.iter().enumerate() {
        match Endpoint::parse(endpoint) {
            Err(_) if endpoint == DEMO_ENDPOINT => {}
            Err(problem) => checks.refuse(&here.item(number), format!("{problem}; expected something like http://127.0.0.1:9000")),
            Ok(_) if endpoints.iter().take(number).any(|earlier| earlier == endpoint) => {
                checks.refuse(&here.item(number), "this endpoint stands here twice; keep one");
            }
            Ok(_) => {}
        }
    }
}

fn check_timeouts(upstream: &Upstream, here: &At, checks: &mut Checks<'_>) {
    let timeout = &upstream.timeout;
    for (name, span) in [("connect", timeout.connect), ("response_header", timeout.response_header), ("idle", timeout.idle)] {
        if span.is_zero() {
            checks.refuse(&here.field(name), "with 0 every request would fail; expected a span like 3s");
        }
    }
}

fn check_health(health: Option<&Health>, here: &At, checks: &mut Checks<'_>) {
    let Some(health) = health else { return };
    let is_path = health.path.starts_with('/') && health.path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !is_path {
        checks.refuse(&here.field("path"), "expected a path that begins with /, like /healthz");
    }
    if health.interval.is_zero() {
        checks.refuse(&here.field("interval"), "expected more than 0, like 5s");
    }
}

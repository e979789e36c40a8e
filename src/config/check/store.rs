//! What types cannot say about `store`: one of two, and Redis in one shape of three, TLS where it is meant, files that exist, and a name of
//! the audit stream from which the names of everything in Redis can be made.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{At, Checks, at, check_file, check_folder, check_not_empty, check_tls};
use crate::config::{COHERENCE_LEASE_MAX, Config, Redis, RedisUrl, ServerAddress};

/// Shortest and longest coherence lease: four renewals must fit into it, and a revocation waits for no longer.
const COHERENCE_LEASE: RangeInclusive<Duration> = Duration::from_millis(500)..=COHERENCE_LEASE_MAX;
/// Each partition has a lease to renew and an audit stream to read; more than this spreads no better.
const PARTITIONS: RangeInclusive<u16> = 1..=64;
/// Most nodes that are named; a Cluster tells of the others.
const NODES_MAX: usize = 64;

pub(super) fn check(config: &Config, checks: &mut Checks<'_>) {
    if let Some(embedded) = &config.store.embedded {
        check_folder(&embedded.path, &at("store.embedded.path"), checks);
    }
    let Some(redis) = &config.store.redis else { return };
    if config.store.embedded.is_some() {
        checks.refuse(&at("store"), "expected exactly one of `embedded` and `redis`; remove the other");
    }
    check_redis(redis, checks);
    check_stream(&config.audit.stream, checks);
}

fn check_redis(redis: &Redis, checks: &mut Checks<'_>) {
    let here = at("store.redis");
    check_shape(redis, &here, checks);
    check_encryption(redis, &here, checks);
    if !PARTITIONS.contains(&redis.partitions) {
        checks.refuse(&here.field("partitions"), "expected a whole number from 1 to 64");
    }
    if !COHERENCE_LEASE.contains(&redis.coherence_lease) {
        checks.refuse(&here.field("coherence_lease"), "expected a span from 500ms to 10s");
    }
    let sentinels = redis.sentinel.as_ref().and_then(|sentinel| sentinel.password_file.as_ref());
    let passwords =
        [(here.field("password_file"), redis.password_file.as_ref()), (here.field("sentinel").field("password_file"), sentinels)];
    for (field, file) in passwords {
        if let Some(file) = file {
            check_file(file, &field, checks);
        }
    }
}

/// Exactly one Redis, or Sentinel, or a Cluster.
fn check_shape(redis: &Redis, here: &At, checks: &mut Checks<'_>) {
    match (&redis.sentinel, &redis.cluster) {
        (Some(_), Some(_)) => checks.refuse(here, "expected at most one of `sentinel` and `cluster`; remove the other"),
        (Some(sentinel), None) => {
            check_nodes(&sentinel.nodes, &here.field("sentinel"), checks);
            check_not_empty(&sentinel.master, &here.field("sentinel").field("master"), checks);
        }
        (None, Some(cluster)) => check_nodes(&cluster.nodes, &here.field("cluster"), checks),
        (None, None) if redis.url.is_none() => {
            checks.refuse(here, "expected `url`, like redis://127.0.0.1:6379, or `sentinel`, or `cluster`");
        }
        (None, None) => {}
    }
    if let Some(url) = &redis.url {
        check_url(url, redis, &here.field("url"), checks);
    }
}

fn check_url(url: &RedisUrl, redis: &Redis, here: &At, checks: &mut Checks<'_>) {
    let (_, host, tail) = url.parts();
    let has_nodes = redis.sentinel.is_some() || redis.cluster.is_some();
    let placed = if host.is_empty() { ServerAddress::parse("h:1").map(|address| url.at(&address)) } else { Some(url.clone()) };
    let is_redis = placed.is_some_and(|url| {
        url.reveal().parse::<http::Uri>().is_ok_and(|uri| matches!(uri.scheme_str(), Some("redis" | "rediss")) && uri.host().is_some())
    });
    let is_port = match host.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') => port.parse::<u16>().is_ok_and(|port| port != 0),
        _ => true,
    };
    let database = tail.split(['?', '#']).next().unwrap_or_default().trim_matches('/');
    let problem = if !is_redis || (host.is_empty() && !has_nodes) {
        "expected redis:// or rediss://, a host and perhaps a port, like redis://127.0.0.1:6379"
    } else if !is_port {
        "expected a port from 1 to 65535, like redis://127.0.0.1:6379; a `/`, `?`, `#` or `@` in a password is written %2F, %3F, %23, %40"
    } else if tail.contains('#') {
        "expected no #: every rediss:// server must show a certificate that is valid for it"
    } else if !host.is_empty() && has_nodes {
        "expected no host here, since `sentinel` or `cluster` names the servers; write the rest, like rediss://USER@/0, or leave it out"
    } else if !database.bytes().all(|byte| byte.is_ascii_digit()) || !(database.is_empty() || database.parse::<i32>().is_ok()) {
        "expected a number as the database, like redis://127.0.0.1:6379/2"
    } else if redis.cluster.is_some() && !matches!(database, "" | "0") {
        "expected no database but 0: Redis Cluster has no other"
    } else {
        return;
    };
    checks.refuse(here, problem);
}

fn check_nodes(nodes: &[ServerAddress], here: &At, checks: &mut Checks<'_>) {
    let field = here.field("nodes");
    if nodes.is_empty() || nodes.len() > NODES_MAX {
        checks.refuse(&field, "expected 1 to 64 servers, like [10.0.0.7:6379]");
    }
    for (number, node) in nodes.iter().enumerate() {
        if nodes.iter().take(number).any(|earlier| earlier == node) {
            checks.refuse(&field.item(number), "this server stands here twice; keep one, since each counts");
        }
    }
}

fn check_encryption(redis: &Redis, here: &At, checks: &mut Checks<'_>) {
    let why = "this is used with rediss:// only; write the url so, or remove this";
    if let Some(file) = &redis.ca {
        if redis.is_tls() { check_file(file, &here.field("ca"), checks) } else { checks.refuse(&here.field("ca"), why) }
    }
    if redis.client_certificate.is_some() {
        let field = here.field("client_certificate");
        if redis.is_tls() { check_tls(redis.client_certificate.as_ref(), &field, checks) } else { checks.refuse(&field, why) }
    }
}

/// Everything of a partition lies under its stream's name in braces, so that a Cluster keeps it together; and two names
/// of streams must not be a partition of one another.
fn check_stream(stream: &str, checks: &mut Checks<'_>) {
    let is_numbered = stream.rsplit_once(':').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()));
    if stream.contains(['{', '}']) || is_numbered {
        checks.refuse(&at("audit.stream"), "expected a name without braces and without :NUMBER at its end, which partitions add");
    }
}

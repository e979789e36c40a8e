//! What types cannot say about a configuration: ranges, forms, files that must exist, fields that must agree.
//!
//! One function per section, all of them always, so that an operator mends a file in one round. A check keeps silent
//! where the same field, or one inside or around it, has been refused already: its value is then only a default. What
//! is odd but may be meant goes to `warnings`, never here.

mod covering;
mod routes;
mod store;
mod upstreams;
mod warnings;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::document::{Label, Node, Spot};
use super::mistakes::Finding;
use super::position::{Part, place};
use super::{Admin, Assertion, Audit, Auth, Config, Edge, Issuer, Jwks, Keys, Limits, Listen, SpoolSync, Tls};
use crate::domain::KeyNamespace;

pub use warnings::warnings;

/// Longest drain, from SIGTERM to the last request: what orchestrators give at most before they kill.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// Most requests that a key may send in a minute: the exact window keeps each of them.
const REQUESTS_PER_MINUTE_MAX: u32 = 1_000_000;

/// Shortest and longest life of an assertion: room for a hop and a clock that is a little off; too short to be worth stealing.
const ASSERTION_LIFETIME: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Least room of the spool, in bytes: two segments.
const SPOOL_BYTES_MIN: u64 = 1024 * 1024;

/// Longest name of a replica, in bytes: it stands in every record.
const REPLICA_BYTES_MAX: usize = 64;

/// What every assertion header begins with; the edge removes such headers from what clients send.
const ASSERTION_HEADER_START: &str = "x-assure-";

/// Everything that is wrong with `config`, beside what is known already.
pub(super) fn check(config: &Config, text: &str, root: &Node, known: &[Finding]) -> Vec<Finding> {
    let mut checks = Checks { text, root, known, findings: Vec::new() };
    check_listeners(config, &mut checks);
    check_edge(&config.edge, &mut checks);
    check_admin(&config.admin, &mut checks);
    store::check(config, &mut checks);
    check_keys(&config.keys, &mut checks);
    check_limits(&config.limits, &mut checks);
    check_assertion(&config.assertion, &mut checks);
    check_audit(&config.audit, &mut checks);
    upstreams::check(&config.upstreams, &mut checks);
    routes::check(config, &mut checks);
    check_log_level(&config.log.level, &mut checks);
    check_replica(config.replica.as_deref(), &mut checks);
    checks.findings
}

/// The path of a field.
#[derive(Clone)]
struct At(Vec<Label>);

/// A field whose path has no items: `edge.tls`.
fn at(path: &str) -> At {
    At(path.split('.').map(|name| Label::Field(name.to_owned())).collect())
}

impl At {
    fn field(&self, name: &str) -> Self {
        self.with(Label::Field(name.to_owned()))
    }

    fn item(&self, number: usize) -> Self {
        self.with(Label::Item(number))
    }

    fn with(&self, label: Label) -> Self {
        Self(self.0.iter().cloned().chain([label]).collect())
    }
}

/// Collects what is found.
struct Checks<'a> {
    text: &'a str,
    root: &'a Node,
    known: &'a [Finding],
    findings: Vec<Finding>,
}

impl Checks<'_> {
    fn refuse(&mut self, at: &At, problem: impl Into<String>) {
        if !self.is_refused(at) {
            self.findings.push(Finding { spot: self.spot(at), part: Part::Value, problem: problem.into() });
        }
    }

    fn spot(&self, at: &At) -> Spot {
        self.root.locate(&at.0)
    }

    /// Whether the field, or something in or around it, was refused before, so that its value says nothing.
    fn is_refused(&self, at: &At) -> bool {
        let spot = self.spot(at);
        self.root.pretends(&at.0) || self.known.iter().any(|known| known.spot.overlaps(&spot))
    }

    /// A field and its line, for sentences that point at a second place.
    fn name(&self, at: &At) -> String {
        let spot = self.spot(at);
        match place(self.text, &spot, Part::Value) {
            Some(place) if spot.is_written() => format!("{spot} (line {})", place.line),
            _ => format!("{spot} (its default)"),
        }
    }
}

fn check_listeners(config: &Config, checks: &mut Checks<'_>) {
    let sections = [("edge.listen", &config.edge.listen), ("admin.listen", &config.admin.listen), ("ops.listen", &config.ops.listen)];
    let mut taken: Vec<(At, SocketAddr)> = Vec::new();
    for (path, listen) in sections {
        if listen.addresses().is_empty() {
            checks.refuse(&at(path), "this list is empty; give at least one address like 127.0.0.1:8080");
        }
        for (number, address) in listen.addresses().iter().enumerate() {
            let here = if matches!(listen, Listen::Many(_)) { at(path).item(number) } else { at(path) };
            if let Some((other, _)) = taken.iter().find(|(_, other)| collide(*other, *address)) {
                // The operator can only mend what is written; a default just stands in the way.
                let (written, taker) = if checks.spot(&here).is_written() { (&here, other) } else { (other, &here) };
                let problem = format!("this address is taken by {}; give each listener its own", checks.name(taker));
                checks.refuse(written, problem);
            }
            taken.push((here, *address));
        }
    }
}

/// Whether the operating system would refuse the second one. Port 0 takes a free one each time.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    let same_address = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_family && same_address
}

fn check_edge(edge: &Edge, checks: &mut Checks<'_>) {
    check_tls(edge.tls.as_ref(), &at("edge.tls"), checks);
    if edge.proxy_protocol && edge.trusted_proxies.is_empty() && !checks.is_refused(&at("edge.trusted_proxies")) {
        checks.refuse(
            &at("edge.proxy_protocol"),
            "the PROXY protocol is believed only from trusted proxies; name them in edge.trusted_proxies",
        );
    }
    for (name, value) in
        [("edge.connections_max", edge.connections_max), ("edge.connections_per_address_max", edge.connections_per_address_max)]
    {
        if value == 0 {
            checks.refuse(&at(name), "with 0 nobody can connect; expected 1 or more");
        }
    }
    for (name, span) in [("edge.drain", edge.drain), ("edge.drain_notice", edge.drain_notice)] {
        if span > DRAIN_MAX {
            checks.refuse(&at(name), "expected at most 10m");
        }
    }
}

fn check_tls(tls: Option<&Tls>, here: &At, checks: &mut Checks<'_>) {
    if let Some(tls) = tls {
        check_file(&tls.certificate, &here.field("certificate"), checks);
        check_file(&tls.private_key, &here.field("private_key"), checks);
    }
}

/// Whether the gateway, as this user, could read the file now.
fn check_file(path: &Path, here: &At, checks: &mut Checks<'_>) {
    let opened = std::fs::File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => checks.refuse(here, "this is not a file"),
        Err(error) => checks.refuse(here, format!("this file cannot be read: {error}; relative paths start at the working directory")),
    }
}

fn check_folder(path: &Path, here: &At, checks: &mut Checks<'_>) {
    if path.as_os_str().is_empty() {
        checks.refuse(here, "expected the path of a folder, like data");
    } else if path.exists() && !path.is_dir() {
        checks.refuse(here, "this exists and is not a folder");
    }
}

fn check_admin(admin: &Admin, checks: &mut Checks<'_>) {
    check_tls(admin.tls.as_ref(), &at("admin.tls"), checks);
    if let Some(url) = &admin.public_url
        && !is_origin(url)
    {
        checks.refuse(
            &at("admin.public_url"),
            "expected http:// or https://, a host and perhaps a port, and nothing else, like https://keys.example.com",
        );
    }
    let is_wrong = |origin: &String| !is_origin(origin) || !is_plain(origin);
    for (number, _) in admin.frame_ancestors.iter().enumerate().filter(|(_, origin)| is_wrong(origin)) {
        let problem = "expected the origin of a dashboard, like https://app.example.com, without a path";
        checks.refuse(&at("admin.frame_ancestors").item(number), problem);
    }
    check_auth(&admin.auth, checks);
}

/// Whether an origin can stand in a header as browsers spell it: no slash at its end, nothing that parts a list.
fn is_plain(origin: &str) -> bool {
    !origin.ends_with('/') && origin.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':' | b'/' | b'[' | b']'))
}

fn is_origin(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_plain_host = uri.authority().is_some_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
    is_web && has_plain_host && uri.path() == "/" && uri.query().is_none() && !url.contains('#')
}

fn check_auth(auth: &Auth, checks: &mut Checks<'_>) {
    for (number, issuer) in auth.issuers.iter().enumerate() {
        let here = at("admin.auth.issuers").item(number);
        check_issuer(issuer, &here, checks);
        let earlier = auth.issuers.iter().take(number).position(|one| (&one.issuer, &one.audience) == (&issuer.issuer, &issuer.audience));
        if let Some(earlier) = earlier {
            let problem = format!("{} has the same issuer and audience; keep one", checks.name(&at("admin.auth.issuers").item(earlier)));
            checks.refuse(&here, problem);
        }
    }
    let claims = [
        ("admin.auth.claims.firm", &auth.claims.firm),
        ("admin.auth.claims.user", &auth.claims.user),
        ("admin.auth.claims.name", &auth.claims.name),
        ("admin.auth.claims.permissions", &auth.claims.permissions),
        ("admin.auth.permissions.view", &auth.permissions.view),
        ("admin.auth.permissions.edit", &auth.permissions.edit),
    ];
    for (path, value) in claims {
        check_not_empty(value, &at(path), checks);
    }
}

fn check_issuer(issuer: &Issuer, here: &At, checks: &mut Checks<'_>) {
    check_not_empty(&issuer.issuer, &here.field("issuer"), checks);
    if issuer.audience.trim().is_empty() {
        let problem =
            "expected the audience that tokens for this gateway carry; without one, a token for any other service would be believed";
        checks.refuse(&here.field("audience"), problem);
    }
    match &issuer.jwks {
        Jwks::File(path) => check_file(path, &here.field("jwks").field("file"), checks),
        Jwks::Url(url) if !is_safe_to_fetch(url) => {
            let problem =
                "expected an https:// address (http:// only on loopback): who can change the keys on their way can sign in as anybody";
            checks.refuse(&here.field("jwks").field("url"), problem);
        }
        Jwks::Url(_) => {}
    }
}

fn is_safe_to_fetch(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let Some(authority) = uri.authority().filter(|authority| !authority.as_str().contains('@')) else { return false };
    match uri.scheme_str() {
        Some("https") => !authority.host().is_empty(),
        Some("http") => is_loopback(authority.host()),
        _ => false,
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn check_not_empty(value: &str, here: &At, checks: &mut Checks<'_>) {
    if value.trim().is_empty() {
        checks.refuse(here, "this must not be empty");
    }
}

fn check_keys(keys: &Keys, checks: &mut Checks<'_>) {
    if KeyNamespace::parse(&keys.prefix).is_none() {
        checks.refuse(&at("keys.prefix"), "expected 1 to 16 lower-case letters and digits, beginning with a letter, like assure");
    }
    for (path, value) in [("keys.per_firm_max", keys.per_firm_max), ("keys.per_creator_max", keys.per_creator_max)] {
        if value == 0 {
            checks.refuse(&at(path), "with 0 no key could be created; expected 1 or more");
        }
    }
}

fn check_limits(limits: &Limits, checks: &mut Checks<'_>) {
    if !(1..=REQUESTS_PER_MINUTE_MAX).contains(&limits.requests_per_minute) {
        checks.refuse(&at("limits.requests_per_minute"), format!("expected a whole number from 1 to {REQUESTS_PER_MINUTE_MAX}"));
    }
    if limits.request_body_max.0 == 0 {
        checks.refuse(&at("limits.request_body_max"), "with 0 no request could have a body; expected a size like 10MiB");
    }
}

fn check_assertion(assertion: &Assertion, checks: &mut Checks<'_>) {
    let name = assertion.header.to_ascii_lowercase();
    let is_reserved = name.strip_prefix(ASSERTION_HEADER_START).is_some_and(|rest| !rest.is_empty());
    if !is_reserved || http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        let problem = "expected the name of a header that begins with X-Assure-, like X-Assure-Jwt-Assertion: only those are taken out of what clients send";
        checks.refuse(&at("assertion.header"), problem);
    }
    check_not_empty(&assertion.issuer, &at("assertion.issuer"), checks);
    if !(ASSERTION_LIFETIME.0..=ASSERTION_LIFETIME.1).contains(&assertion.lifetime) {
        checks.refuse(&at("assertion.lifetime"), "expected a span from 2s to 60s");
    }
    for (number, key) in assertion.signing_keys.iter().enumerate() {
        let here = at("assertion.signing_keys").item(number).field("file");
        check_file(&key.file, &here, checks);
        if assertion.signing_keys.iter().take(number).any(|earlier| earlier.file == key.file) {
            checks.refuse(&here, "this key stands here twice; keep one");
        }
    }
}

fn check_audit(audit: &Audit, checks: &mut Checks<'_>) {
    check_not_empty(&audit.stream, &at("audit.stream"), checks);
    if audit.stream_max_age.is_some_and(|age| age.is_zero()) {
        checks.refuse(
            &at("audit.stream_max_age"),
            "with 0 every record would be trimmed at once; expected a span like 400d, or null to keep all",
        );
    }
    check_folder(&audit.spool.path, &at("audit.spool.path"), checks);
    if audit.spool.size_max.0 < SPOOL_BYTES_MIN {
        checks.refuse(&at("audit.spool.size_max"), "expected 1MiB or more");
    }
    if matches!(audit.spool.sync, SpoolSync::Every(interval) if interval.is_zero()) {
        checks
            .refuse(&at("audit.spool.sync"), "expected more than 0; write always to force each record to disk before its request goes on");
    }
}

/// `EnvFilter` reads a misspelt level as the name of a module and lets everything through; so bare words are levels here.
fn check_log_level(level: &str, checks: &mut Checks<'_>) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_known = |directive: &str| directive.contains(['=', '[']) || LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive));
    if !level.split(',').map(str::trim).all(is_known) || EnvFilter::try_new(level).is_err() {
        checks.refuse(
            &at("log.level"),
            "expected error, warn, info, debug, trace or off, or a filter like info,assure_gateway::gateway=debug",
        );
    }
}

fn check_replica(replica: Option<&str>, checks: &mut Checks<'_>) {
    let is_name = |name: &str| !name.is_empty() && name.len() <= REPLICA_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
    if replica.is_some_and(|name| !is_name(name)) {
        checks.refuse(&at("replica"), format!("expected 1 to {REPLICA_BYTES_MAX} printable ASCII characters without spaces"));
    }
}

//! What operators get wrong, and what they are told; and that the shipped files are right.
//!
//! One table of mistakes: the line, the field and the words of each. A message is part of the product; changing one
//! changes a row.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::config::Listen;

const BASE: &str = "upstreams: { ledger: { endpoints: [http://127.0.0.1:9000] } }\n";

fn no_environment(_: &str) -> Option<String> {
    None
}

fn some_environment(name: &str) -> Option<String> {
    match name {
        "PORT_COUNT" => Some("7".into()),
        "YES" => Some("true".into()),
        "ADDRESS" => Some("127.0.0.1:7777".into()),
        "SECRET" => Some("hunter2-do-not-print".into()),
        _ => None,
    }
}

fn mistakes(text: &str) -> Vec<Mistake> {
    parse_with(Path::new("test.yaml"), text, &some_environment).0.expect_err("this text has a mistake").list
}

fn good(text: &str) -> Config {
    parse_with(Path::new("test.yaml"), text, &some_environment).0.unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A configuration, and the line, field and part of the sentence of its only mistake.
type Row = (&'static str, usize, &'static str, &'static str);

fn check(rows: &[Row], before: &str) {
    for (text, line, field, fragment) in rows {
        let found = mistakes(&format!("{before}{text}"));
        let [mistake] = found.as_slice() else { panic!("one mistake in {text:?}, not {found:#?}") };
        let line = line + before.lines().count();
        assert_eq!((mistake.line, mistake.field.as_str()), (Some(line), *field), "{text}");
        assert!(mistake.problem.contains(fragment), "{text}: {:?} in {:?}", fragment, mistake.problem);
    }
}

#[test]
fn form_mistakes_are_told_with_line_field_and_what_would_be_right() {
    check(
        &[
            ("a: [1\nb: 2\n", 2, "", "not valid YAML"),
            ("edge: {}\nlog {}\nops: {}\n", 3, "", "while scanning a simple key at line 2"),
            ("edge:\n  drain: 1s\n# end\nof story: x\n y: z\n", 5, "", "not valid YAML"),
            ("log: {}\n# end\nof \nreplica: x\n", 4, "", "while scanning a simple key at line 3"),
            ("edge: {}\n---\nlog: {}\n", 3, "", "the fields end before this line"),
            ("edge:\n\tlisten: x\n", 2, "", "not valid YAML"),
            ("edge: &a {}\nlog: *b\n", 2, "", "unknown anchor"),
            ("edge:\n  drain: 1s\n  drain: 2s\n", 3, "edge.drain", "stands here twice, first on line 2"),
            ("edge: {}\nlog: {}\nedge: {}\n", 3, "edge", "twice, first on line 1"),
            ("edgee: {}\n", 1, "edgee", "did you mean `edge`?"),
            ("edge:\n  listenAddress: x\n", 2, "edge.listenAddress", "possible here: listen, tls"),
            ("edge:\n  trusted-proxies: []\n", 2, "edge.trusted-proxies", "did you mean `trusted_proxies`?"),
            ("store:\n  redis: redis://127.0.0.1\n", 2, "store.redis", "expected { url: redis://HOST:6379 }"),
            ("store:\n  redis:\n    url: 7\n", 3, "store.redis.url", "expected text"),
            ("edge:\n  listen: 8080\n", 2, "edge.listen", "expected an address like 127.0.0.1:8080"),
            ("edge:\n  listen: localhost:8080\n", 2, "edge.listen", "expected an address like 127.0.0.1:8080"),
            ("edge:\n  proxy_protocol: yes\n", 2, "edge.proxy_protocol", "expected true or false, found text"),
            ("edge:\n  connections_max: -1\n", 2, "edge.connections_max", "expected a whole number"),
            ("edge:\n  connections_max: 1.5\n", 2, "edge.connections_max", "expected a whole number"),
            ("edge:\n  connections_max: many\n", 2, "edge.connections_max", "expected a whole number, found text"),
            ("edge:\n  drain: 30\n", 2, "edge.drain", "expected a span like 250ms, 3s, 1m, 2h or 30d"),
            ("edge:\n  drain: 30 s\n", 2, "edge.drain", "expected a span like 250ms, 3s, 1m, 2h or 30d"),
            ("edge:\n  trusted_proxies: [10.0.0.0/8,\n    10.0.0.0/33]\n", 3, "edge.trusted_proxies[1]", "expected a network like"),
            ("edge:\n  trusted_proxies: 10.0.0.0/8\n", 2, "edge.trusted_proxies", "expected a list of networks"),
            ("edge:\n  tls: cert.pem\n", 2, "edge.tls", "expected { certificate: FILE, private_key: FILE }"),
            ("limits:\n  request_body_max: 10 MB\n", 2, "limits.request_body_max", "expected a size like 10MiB, 10MB or 65536"),
            ("limits:\n  request_body_max: 99999999999GiB\n", 2, "limits.request_body_max", "this size is too large"),
            ("limits:\n  requests_per_minute: 5000000000\n", 2, "limits.requests_per_minute", "from 0 to 4294967295"),
            ("audit:\n  stream_max_age: never\n", 2, "audit.stream_max_age", "30d, or null"),
            ("audit:\n  spool: { sync: sometimes }\n", 2, "audit.spool.sync", "expected `always`, or a span"),
            ("log:\n  format: xml\n", 2, "log.format", "expected one of: text, json"),
            ("log: [info]\n", 1, "log", "expected a mapping of fields, found a list"),
            ("replica: 12\n", 1, "replica", "expected text, found a number; put it in quotes"),
            ("replica: !name x\n", 1, "replica", "tags like !this are not supported"),
            ("edge:\n  <<: { drain: 1s }\n", 2, "edge.\"<<\"", "merge keys are not supported"),
            (
                "admin: { auth: { issuers: [{ issuer: a, audience: b }] } }\n",
                1,
                "admin.auth.issuers[0].jwks",
                "`jwks` is missing here; write jwks: { file: PATH }",
            ),
            (
                "admin: { auth: { issuers: [{ issuer: a, audience: b, jwks: x.json }] } }\n",
                1,
                "admin.auth.issuers[0].jwks",
                "expected { file: PATH }",
            ),
            (
                "upstreams:\n  ledger:\n    timeout: {}\n",
                2,
                "upstreams.ledger.endpoints",
                "`endpoints` is missing here; write endpoints: a list like",
            ),
            ("upstreams:\n  ledger:\n", 2, "upstreams.ledger.endpoints", "`endpoints` is missing here"),
            ("upstreams:\n  ledger:\n    endpoints: http://127.0.0.1:9000\n", 3, "upstreams.ledger.endpoints", "expected a list like"),
            ("routes:\n  path: /\n", 1, "routes", "expected a list of routes"),
            ("routes:\n  - /v1\n", 2, "routes[0]", "expected a route like"),
            ("replica: ${NOT_SET_ANYWHERE}\n", 1, "replica", "the environment variable NOT_SET_ANYWHERE is not set"),
            ("replica: ${file:does-not-exist}\n", 1, "replica", "does-not-exist cannot be read"),
            ("replica: ${oh no\n", 1, "replica", "this reference has no end"),
            (
                "limits: { requests_per_minute: '${ADDRESS}' }\n",
                1,
                "limits.requests_per_minute",
                "expected a whole number from 0 to 4294967295, found text",
            ),
        ],
        "",
    );
}

#[test]
fn a_file_that_is_no_mapping_is_told_as_a_whole() {
    let whole = &mistakes("just a text\n")[0];
    assert_eq!((whole.line, whole.field.as_str()), (None, ""));
    assert!(whole.problem.contains("expected a mapping of fields, found text"), "{}", whole.problem);
}

#[test]
fn an_unquoted_reference_inside_braces_is_explained() {
    let problem = &mistakes("limits: { requests_per_minute: ${PORT_COUNT}, request_body_max: 1 }\n")[0].problem;
    assert!(problem.contains("put references in quotes"), "{problem}");
}

#[test]
fn field_names_with_odd_characters_are_quoted() {
    let found = mistakes("upstreams:\n  'a b': { endpoints: [http://127.0.0.1:1] }\n");
    assert_eq!(found[0].field, "upstreams.\"a b\"");
}

#[test]
fn values_that_make_no_sense_are_told_with_line_field_and_what_would_be_right() {
    check(
        &[
            ("edge: { listen: [] }\n", 1, "edge.listen", "this list is empty"),
            ("edge: { listen: 127.0.0.1:8081 }\n", 1, "edge.listen", "taken by admin.listen"),
            ("ops:\n  listen: 127.0.0.1:8080\n", 2, "ops.listen", "this address is taken by edge.listen (its default)"),
            ("edge:\n  listen:\n  - 127.0.0.1:7\n  - 0.0.0.0:7\n", 4, "edge.listen[1]", "taken by edge.listen[0] (line 3)"),
            ("edge:\n  proxy_protocol: true\n", 2, "edge.proxy_protocol", "name them in edge.trusted_proxies"),
            ("edge: { connections_max: 0 }\n", 1, "edge.connections_max", "expected 1 or more"),
            ("edge: { drain: 11m }\n", 1, "edge.drain", "expected at most 10m"),
            ("edge: { drain_notice: 11m }\n", 1, "edge.drain_notice", "expected at most 10m"),
            ("edge:\n  tls:\n    certificate: Cargo.toml\n    private_key: no/such.key\n", 4, "edge.tls.private_key", "cannot be read"),
            ("admin:\n  tls: { certificate: src, private_key: Cargo.toml }\n", 2, "admin.tls.certificate", "this is not a file"),
            ("admin: { public_url: keys.example.com }\n", 1, "admin.public_url", "expected http:// or https://"),
            ("admin: { public_url: https://keys.example.com/page }\n", 1, "admin.public_url", "and nothing else"),
            ("admin: { frame_ancestors: [https://app.example.com/] }\n", 1, "admin.frame_ancestors[0]", "without a path"),
            (
                "admin: { frame_ancestors: [\"https://*.example.com; script-src *\"] }\n",
                1,
                "admin.frame_ancestors[0]",
                "the origin of a dashboard",
            ),
            ("admin: { frame_ancestors: https://app.example.com }\n", 1, "admin.frame_ancestors", "a list of origins"),
            ("admin: { auth: { claims: { firm: '' } } }\n", 1, "admin.auth.claims.firm", "must not be empty"),
            ("admin: { auth: { permissions: { edit: ' ' } } }\n", 1, "admin.auth.permissions.edit", "must not be empty"),
            ("store: { embedded: { path: Cargo.toml } }\n", 1, "store.embedded.path", "is not a folder"),
            ("store:\n  embedded: {}\n  redis: { url: redis://127.0.0.1 }\n", 1, "store", "exactly one of `embedded` and `redis`"),
            ("store: { redis: { url: 127.0.0.1 } }\n", 1, "store.redis.url", "expected redis:// or rediss://"),
            ("store:\n  redis: {}\n", 2, "store.redis", "expected `url`"),
            ("store:\n  redis:\n    url: redis:///0\n", 3, "store.redis.url", "a host and perhaps a port"),
            ("store:\n  redis:\n    url: rediss://h#insecure\n", 3, "store.redis.url", "expected no #"),
            ("store:\n  redis:\n    url: redis://h:99999\n", 3, "store.redis.url", "a port from 1 to 65535"),
            ("store:\n  redis:\n    url: redis://u:p/w@h\n", 3, "store.redis.url", "written %2F"),
            ("store:\n  redis:\n    url: redis://h/99999999999\n", 3, "store.redis.url", "a number as the database"),
            ("store:\n  redis:\n    url: redis://h/x\n", 3, "store.redis.url", "a number as the database"),
            ("store:\n  redis:\n    cluster: { nodes: [h] }\n", 3, "store.redis.cluster.nodes[0]", "expected HOST:PORT"),
            ("store:\n  redis:\n    cluster: { nodes: [] }\n", 3, "store.redis.cluster.nodes", "expected 1 to 64 servers"),
            ("store:\n  redis:\n    cluster:\n      nodes: [a:1, a:1]\n", 4, "store.redis.cluster.nodes[1]", "stands here twice"),
            ("store:\n  redis:\n    sentinel: { nodes: [a:1] }\n", 3, "store.redis.sentinel.master", "`master` is missing"),
            ("store:\n  redis:\n    sentinel: { nodes: [a:1], master: '' }\n", 3, "store.redis.sentinel.master", "must not be empty"),
            (
                "store:\n  redis:\n    sentinel: { nodes: [a:1], master: m }\n    cluster: { nodes: [a:1] }\n",
                2,
                "store.redis",
                "at most one of `sentinel` and `cluster`",
            ),
            ("store:\n  redis:\n    url: redis://h\n    cluster: { nodes: [a:1] }\n", 3, "store.redis.url", "expected no host here"),
            ("store:\n  redis:\n    url: redis:///2\n    cluster: { nodes: [a:1] }\n", 3, "store.redis.url", "no database but 0"),
            ("store: { redis: { url: redis://h, partitions: 0 } }\n", 1, "store.redis.partitions", "from 1 to 64"),
            ("store: { redis: { url: redis://h, partitions: 65 } }\n", 1, "store.redis.partitions", "from 1 to 64"),
            ("store: { redis: { url: redis://h, coherence_lease: 11s } }\n", 1, "store.redis.coherence_lease", "from 500ms to 10s"),
            ("store: { redis: { url: rediss://h, ca: no/such } }\n", 1, "store.redis.ca", "cannot be read"),
            ("store: { redis: { url: redis://h, ca: Cargo.toml } }\n", 1, "store.redis.ca", "with rediss:// only"),
            (
                "store: { redis: { url: rediss://h, client_certificate: { certificate: Cargo.toml, private_key: no/such } } }\n",
                1,
                "store.redis.client_certificate.private_key",
                "cannot be read",
            ),
            (
                "store: { redis: { sentinel: { nodes: [a:1], master: m, password_file: no/such } } }\n",
                1,
                "store.redis.sentinel.password_file",
                "cannot be read",
            ),
            ("store: { redis: { url: redis://h } }\naudit: { stream: 'a{b}' }\n", 2, "audit.stream", "without braces"),
            ("store: { redis: { url: redis://h } }\naudit: { stream: 'a:1' }\n", 2, "audit.stream", "without :NUMBER"),
            ("keys: { prefix: Assure }\n", 1, "keys.prefix", "lower-case letters and digits"),
            ("keys: { prefix: '' }\n", 1, "keys.prefix", "lower-case letters and digits"),
            ("keys: { per_firm_max: 0 }\n", 1, "keys.per_firm_max", "expected 1 or more"),
            ("limits: { requests_per_minute: 0 }\n", 1, "limits.requests_per_minute", "from 1 to 1000000"),
            ("limits: { requests_per_minute: 1000001 }\n", 1, "limits.requests_per_minute", "from 1 to 1000000"),
            ("limits: { request_body_max: 0 }\n", 1, "limits.request_body_max", "expected a size like 10MiB"),
            ("assertion: { header: X-Identity }\n", 1, "assertion.header", "begins with X-Assure-"),
            ("assertion: { header: X-Assure- }\n", 1, "assertion.header", "begins with X-Assure-"),
            ("assertion: { header: 'X-Assure-Ä' }\n", 1, "assertion.header", "the name of a header"),
            ("assertion: { lifetime: 1s }\n", 1, "assertion.lifetime", "from 2s to 60s"),
            ("assertion: { lifetime: 61s }\n", 1, "assertion.lifetime", "from 2s to 60s"),
            ("assertion: { signing_keys: [{ file: none.pem }] }\n", 1, "assertion.signing_keys[0].file", "cannot be read"),
            ("audit: { stream_max_age: 0s }\n", 1, "audit.stream_max_age", "null to keep all"),
            ("audit: { spool: { size_max: 1MB } }\n", 1, "audit.spool.size_max", "1MiB or more"),
            ("audit: { spool: { sync: 0s } }\n", 1, "audit.spool.sync", "write always"),
            ("log: { level: inof }\n", 1, "log.level", "expected error, warn, info"),
            ("log: { level: 'info,hyper=loud' }\n", 1, "log.level", "expected error, warn, info"),
            ("replica: 'a b'\n", 1, "replica", "without spaces"),
        ],
        "",
    );
    check(
        &[
            ("{ issuer: '', audience: b, jwks: { file: Cargo.toml } }\n", 0, "admin.auth.issuers[0].issuer", "must not be empty"),
            (
                "{ issuer: a, audience: '', jwks: { file: Cargo.toml } }\n",
                0,
                "admin.auth.issuers[0].audience",
                "any other service would be believed",
            ),
            ("{ issuer: a, audience: b, jwks: { file: none.json } }\n", 0, "admin.auth.issuers[0].jwks.file", "cannot be read"),
            (
                "{ issuer: a, audience: b, jwks: { url: http://id.example.com/k } }\n",
                0,
                "admin.auth.issuers[0].jwks.url",
                "expected an https:// address",
            ),
            ("{ issuer: a, audience: b, jwks: { link: x } }\n", 0, "admin.auth.issuers[0].jwks.link", "expected one of: file, url"),
            (
                "{ issuer: a, audience: b, jwks: { file: Cargo.toml } }\n  - { audience: b, issuer: a, jwks: { url: 'http://[::1]:1/k' } }\n",
                1,
                "admin.auth.issuers[1]",
                "admin.auth.issuers[0] (line 5) has the same issuer and audience",
            ),
        ],
        "admin:\n auth:\n  # issuers\n  issuers:\n  - ",
    );
}

#[test]
fn mistakes_of_upstreams_and_routes_are_told_with_line_and_field() {
    check(
        &[
            ("upstreams: { Ledger: { endpoints: [http://127.0.0.1] } }\n", 1, "upstreams.Ledger", "a-z, 0-9 and -"),
            ("upstreams: { a: { endpoints: [] } }\n", 1, "upstreams.a.endpoints", "this list is empty"),
            (
                "upstreams:\n  a:\n    endpoints:\n    - http://127.0.0.1\n    - 127.0.0.1:9\n",
                5,
                "upstreams.a.endpoints[1]",
                "begins with http://",
            ),
            ("upstreams: { a: { endpoints: [http://h/path] } }\n", 1, "upstreams.a.endpoints[0]", "host:port and nothing else"),
            ("upstreams: { a: { endpoints: [http://h, http://h] } }\n", 1, "upstreams.a.endpoints[1]", "twice"),
            (
                "upstreams: { a: { endpoints: [http://h], timeout: { idle: 0s } } }\n",
                1,
                "upstreams.a.timeout.idle",
                "with 0 every request would fail",
            ),
            (
                "upstreams: { a: { endpoints: [http://h], timeout: { read: 1s } } }\n",
                1,
                "upstreams.a.timeout.read",
                "possible here: connect, response_header, idle",
            ),
            ("upstreams: { a: { endpoints: [http://h], health: { path: healthz } } }\n", 1, "upstreams.a.health.path", "begins with /"),
            ("upstreams: { a: { endpoints: [http://h], health: { interval: 1s } } }\n", 1, "upstreams.a.health.path", "`path` is missing"),
            (
                "upstreams: { a: { endpoints: [http://h], health: { path: /, interval: 0s } } }\n",
                1,
                "upstreams.a.health.interval",
                "more than 0",
            ),
            ("upstreams: { a: { endpoints: [http://h], connections_max: 10001 } }\n", 1, "upstreams.a.connections_max", "from 1 to 10000"),
            ("upstreams: { a: { endpoints: [http://h], ca: none.pem } }\n", 1, "upstreams.a.ca", "cannot be read"),
        ],
        "",
    );
    check(
        &[
            ("- { path: v1, upstream: ledger }\n", 1, "routes[0].path", "begins with /"),
            ("- { upstream: ledger }\n", 1, "routes[0].path", "begins with /"),
            ("- { path: /**/x, upstream: ledger }\n", 1, "routes[0].path", "** can only be the last"),
            ("- { path: '/{id}/x', upstream: ledger }\n", 1, "routes[0].path", "only {firm} can stand in braces"),
            ("- { path: /a*, upstream: ledger }\n", 1, "routes[0].path", "a * stands for a whole segment"),
            ("- { path: /a//b, upstream: ledger }\n", 1, "routes[0].path", "could never match"),
            ("- path: /a\n", 1, "routes[0]", "this one has neither"),
            ("- path: /a\n  deny: no\n  upstream: ledger\n", 1, "routes[0]", "this one has both"),
            ("- { path: /a, deny: '' }\n", 1, "routes[0].deny", "the sentence that the tool's author"),
            ("- path: /a\n  upstream: ledgr\n", 2, "routes[0].upstream", "did you mean `ledger`?"),
            ("- { path: /a, upstream: other-thing }\n", 1, "routes[0].upstream", "possible here: ledger"),
            ("- { path: /a, deny: no, require: View }\n", 1, "routes[0].require", "no effect beside deny"),
            ("- { path: /a, deny: no, websocket: true }\n", 1, "routes[0].websocket", "no effect beside deny"),
            ("- { path: /a, upstream: ledger, require: '' }\n", 1, "routes[0].require", "must not be empty"),
            ("- { path: /a, upstream: ledger, methods: [] }\n", 1, "routes[0].methods", "leave the field out for all"),
            ("- path: /a\n  upstream: ledger\n  methods:\n  - GET\n  - post\n", 5, "routes[0].methods[1]", "a method in capitals"),
            ("- { path: /a, upstream: ledger, methods: [GE T] }\n", 1, "routes[0].methods[0]", "a method in capitals"),
            ("- { path: /a, upstream: ledger, host: 'h:8080' }\n", 1, "routes[0].host", "without scheme, port or path"),
            ("- { path: /a, upstream: ledger, name: '' }\n", 1, "routes[0].name", "expected a name"),
            ("- { path: /v1/a, upstream: ledger, strip_prefix: v1 }\n", 1, "routes[0].strip_prefix", "begins with /"),
            ("- { path: /v1/a, upstream: ledger, strip_prefix: /v2 }\n", 1, "routes[0].strip_prefix", "does not begin with this"),
            ("- { path: /v1/*, upstream: ledger, strip_prefix: /v1/x }\n", 1, "routes[0].strip_prefix", "first literal segments"),
            ("- { path: /a, upstream: ledger, upstrem: x }\n", 1, "routes[0].upstrem", "did you mean `upstream`?"),
            (
                "- { path: /a, upstream: ledger }\n- { path: /b, upstream: ledger }\n- { path: /a, deny: no }\n",
                3,
                "routes[2]",
                "routes[0] (line 3) comes first",
            ),
            ("- { path: /**, upstream: ledger }\n- { path: /b, upstream: ledger, host: h }\n", 2, "routes[1]", "never reached"),
            (
                "- { path: /a, upstream: ledger, methods: [GET, PUT], host: H }\n- { path: /a, upstream: ledger, methods: [PUT], host: h }\n",
                2,
                "routes[1]",
                "never reached",
            ),
        ],
        &format!("{BASE}routes:\n"),
    );
}

#[test]
fn routes_that_an_earlier_one_leaves_something_to_are_fine() {
    let routes = "
routes:
- { path: /a, methods: [GET], upstream: ledger }
- { path: /a, upstream: ledger }
- { path: /b, host: one, upstream: ledger }
- { path: /b, host: two, upstream: ledger }
- { path: /b, upstream: ledger }
- { path: /b/**, upstream: ledger }
";
    assert_eq!(good(&format!("{BASE}{routes}")).routes.len(), 6);
}

#[test]
fn all_mistakes_of_a_file_come_at_once_in_its_order() {
    let text = "\
edge:
  listen: nowhere
  drian: 3s
  drain: 99m
admin:
  auth:
    issuers:
      - audience: ''
upstreams:
  ledger: { endpoints: [ftp://h], timeout: { connect: soon } }
  other: 5
routes:
  - { path: /a, upstream: ledger }
  - nonsense
  - { path: b, upstream: other }
  - { path: /c, upstream: none, methods: [get] }
limits:
  requests_per_minute: ${NOT_SET_ANYWHERE}
  request_body_max: much
keys: { prefix: A, prefix: b }
";
    let found = mistakes(text);
    let places: Vec<(usize, &str)> = found.iter().map(|mistake| (mistake.line.unwrap(), mistake.field.as_str())).collect();
    let wanted = [
        (2, "edge.listen"),
        (3, "edge.drian"),
        (4, "edge.drain"),
        (8, "admin.auth.issuers[0].issuer"),
        (8, "admin.auth.issuers[0].jwks"),
        (8, "admin.auth.issuers[0].audience"),
        (10, "upstreams.ledger.endpoints[0]"),
        (10, "upstreams.ledger.timeout.connect"),
        (11, "upstreams.other"),
        (14, "routes[1]"),
        (15, "routes[2].path"),
        (16, "routes[3].upstream"),
        (16, "routes[3].methods[0]"),
        (18, "limits.requests_per_minute"),
        (19, "limits.request_body_max"),
        (20, "keys.prefix"),
    ];
    let mut sorted = places.clone();
    sorted.sort_unstable();
    let mut expected = wanted.to_vec();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    assert!(places.is_sorted_by_key(|(line, _)| *line));
}

#[test]
fn the_offending_text_is_shown_as_written() {
    let rows = [
        ("limits: { request_body_max: 0x1F_ } # why\n", "0x1F_"),
        ("edge:\n  drain: 030\n", "030"),
        ("edge:\n  drain: \"3 s\"\n", "3 s"),
        ("edge:\n  lisen: x\n", "lisen"),
        ("edge:\n  tls: [1, 2]\n", "tls"),
        ("replica: ${NOT_SET_ANYWHERE}\n", "${NOT_SET_ANYWHERE}"),
    ];
    for (text, shown) in rows {
        assert_eq!(mistakes(text)[0].text, shown, "{text}");
    }
    let whole = parse_with(Path::new("a.yaml"), "log:\n  level: 'inof' # hm\n", &no_environment).0.unwrap_err().to_string();
    assert!(whole.starts_with("a.yaml:2: log.level: expected error, warn"), "{whole}");
    assert!(whole.ends_with("\n  2 |   level: 'inof' # hm\n    |          ^^^^^^"), "{whole}");
}

#[test]
fn a_substituted_value_is_never_shown() {
    let text = "
edge: { listen: '${SECRET}', drain: '${SECRET}', connections_max: '${SECRET}', proxy_protocol: '${SECRET}', trusted_proxies: ['${SECRET}'] }
edge2: ${SECRET}
admin: { public_url: '${SECRET}', tls: { certificate: '${SECRET}', private_key: 'a${SECRET}' }, auth: { issuers: [{ issuer: a, audience: b, jwks: { url: '${SECRET}' } }, '${SECRET}'] } }
keys: { prefix: '${SECRET}' }
limits: { request_body_max: '${SECRET}' }
assertion: { header: '${SECRET}', signing_keys: [{ file: '${SECRET}' }] }
audit: { stream_max_age: '${SECRET}', spool: { sync: '${SECRET}' } }
upstreams: { a: { endpoints: ['${SECRET}', 'https://${SECRET} x'], ca: '${SECRET}' } }
routes: [{ path: '${SECRET}', upstream: '${SECRET}', host: 'x y${SECRET}', methods: ['${SECRET}'] }, { path: '/{${SECRET}}', upstream: a, strip_prefix: '${SECRET}' }]
log: { format: '${SECRET}', level: '${SECRET}' }
replica: '${SECRET} x'
";
    let (result, _) = parse_with(Path::new("test.yaml"), text, &some_environment);
    let mistakes = result.unwrap_err();
    assert!(mistakes.list.len() >= 24, "{mistakes}");
    assert!(!mistakes.to_string().contains("hunter2") && !format!("{mistakes:?}").contains("hunter2"), "{mistakes}");
}

#[test]
fn references_become_what_the_field_wants() {
    let config = good("
edge: { listen: '${ADDRESS}', connections_max: '${PORT_COUNT}', trusted_proxies: [127.0.0.1/32], proxy_protocol: '${YES}', drain: '${PORT_COUNT}s' }
limits:
  requests_per_minute: ${PORT_COUNT}
  request_body_max: ${PORT_COUNT}
replica: ${PORT_COUNT}
");
    assert_eq!(config.edge.listen.addresses()[0].port(), 7777);
    assert_eq!((config.edge.connections_max, config.edge.proxy_protocol, config.edge.drain.as_secs()), (7, true, 7));
    assert_eq!((config.limits.requests_per_minute, config.limits.request_body_max.0), (7, 7));
    assert_eq!(config.replica.as_deref(), Some("7"));
}

#[test]
fn an_empty_file_and_empty_sections_have_the_defaults() {
    for text in ["", "\n# nothing\n", "---\n", "edge:\nroutes:\nupstreams:\nlimits: {}\nadmin:\n  auth:\n    claims:\n"] {
        assert_eq!(good(text), Config::default(), "{text:?}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let text = std::fs::read_to_string("config/assure-pro.yaml").unwrap();
    for config in [Config::default(), good(&text)] {
        let written = serde_json::to_string_pretty(&config).unwrap();
        assert_eq!(good(&written), config, "{written}");
    }
}

#[test]
fn listen_takes_one_address_or_several() {
    let config = good("edge: { listen: [127.0.0.1:1, '[::1]:1'] }\nadmin: { listen: '[::]:0' }\n");
    assert_eq!(config.edge.listen.addresses().len(), 2);
    assert!(matches!(config.admin.listen, Listen::One(_)));
}

#[test]
fn the_full_form_of_every_section_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["cert.pem", "key.pem", "idp.jwks.json", "signing.pem", "ca.pem"] {
        std::fs::write(folder.path().join(name), "content").unwrap();
    }
    let text = r#"
edge:
  listen: 127.0.0.1:8080
  tls: { certificate: FOLDER/cert.pem, private_key: FOLDER/key.pem }
  trusted_proxies: [10.0.0.0/8, "fd00::/8"]
  proxy_protocol: true
admin:
  listen: 127.0.0.1:8081
  tls: null
  public_url: http://127.0.0.1:8081
  auth:
    local_issuer: true
    issuers:
      - issuer: https://id.assureone.ai
        audience: assure-gateway-admin
        jwks: { file: FOLDER/idp.jwks.json }
      - { issuer: https://id.assureone.ai, audience: other, jwks: { url: "http://localhost:1/keys" } }
    claims: { firm: firm_id, user: sub, name: name, permissions: permissions }
    permissions: { view: "View firm settings", edit: "Edit firm settings" }
assertion:
  lifetime: 60s
  signing_keys:
    - { file: FOLDER/signing.pem }
audit:
  stream_max_age: null
  spool: { path: data/spool, size_max: 1GiB, sync: always }
upstreams:
  ledger:
    endpoints: [http://127.0.0.1:9000, h2c://127.0.0.1:9001, https://ledger.internal]
    timeout: { connect: 1s, response_header: 30s, idle: 60s }
    health: { path: /healthz }
    ca: FOLDER/ca.pem
routes:
  - { path: /v1/session/**,          deny: "API keys cannot sign in to the dashboard" }
  - { path: /v1/users/*/password,    deny: "API keys cannot reset a password" }
  - { path: "/v1/firms/{firm}/**",   upstream: ledger }
  - { path: /v1/clients/**, methods: [GET, HEAD], require: "View clients", upstream: ledger }
  - { path: /v1/clients/**, require: "Edit clients", upstream: ledger }
  - { host: reports.example.com, path: /**, upstream: ledger, strip_prefix: /v1 }
log: { format: json, level: "info,assure_gateway::gateway=debug" }
"#;
    let config = good(&text.replace("FOLDER", folder.path().to_str().unwrap()));
    assert_eq!(config.audit.stream_max_age, None);
    assert_eq!(config.upstreams["ledger"].health.as_ref().unwrap().interval.as_secs(), 5);
    assert_eq!(config.routes.len(), 6);
}

/// Every name that a field can have, and some that none has.
fn any_key() -> impl Strategy<Value = String> {
    let text = std::fs::read_to_string("config/gateway.schema.json").unwrap();
    let mut names: Vec<String> =
        text.split('"').filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    prop::sample::select(names)
}

fn any_document() -> impl Strategy<Value = Value> {
    let words = ["", "7", "true", "1s", "/a", "GET", "127.0.0.1:1", "${SECRET}", "${NONE}", "http://h", "always", "info", "null"];
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(words.to_vec()).prop_map(Value::from)
    ];
    scalar.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..6).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_structure_is_read_to_an_end_without_a_panic_and_without_the_secret(document in any_document()) {
        let text = serde_json::to_string_pretty(&document).unwrap();
        if let (Err(mistakes), _) = parse_with(Path::new("test.yaml"), &text, &some_environment) {
            prop_assert!(!mistakes.list.is_empty());
            prop_assert!(!mistakes.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_slip_anywhere_in_the_complete_file_is_told_with_a_line_of_that_file(place in 0..20_000_usize, slip in "[ -~\n]") {
        let mut text = std::fs::read_to_string("config/gateway.yaml").unwrap();
        let place = (place % text.len()..text.len()).find(|place| text.is_char_boundary(*place)).unwrap();
        text.insert_str(place, &slip);
        if let (Err(mistakes), _) = parse_with(Path::new("test.yaml"), &text, &some_environment) {
            for mistake in mistakes.list {
                prop_assert!(mistake.line.is_some_and(|line| (1..=text.lines().count()).contains(&line)), "{mistake:?}");
            }
        }
    }
}

#[test]
fn anchors_may_be_used() {
    let config = good("upstreams:\n  a: &plain { endpoints: [http://127.0.0.1:1] }\n  b: *plain\n");
    assert_eq!(config.upstreams["a"], config.upstreams["b"]);
}

#[test]
fn a_named_file_is_used_even_if_it_is_missing_and_the_default_only_if_it_exists() {
    let named = Path::new("no/such.yaml");
    assert_eq!(find_among(Some(named.into()), Path::new("Cargo.toml")), Source::File(named.into()));
    assert_eq!(find_among(None, Path::new("Cargo.toml")), Source::File("Cargo.toml".into()));
    assert_eq!(find_among(None, named), Source::Demo);
    assert!(matches!(load(named), Err(ConfigError::Unreadable(file, _)) if file == named));
}

#[test]
fn the_shipped_configurations_have_no_mistakes() {
    for file in ["config/gateway.yaml", "config/assure-pro.yaml"] {
        let text = std::fs::read_to_string(file).unwrap();
        let (result, _) = parse_with(Path::new(file), &text, &no_environment);
        let config = result.unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert_eq!(crate::config::warnings(&config), Vec::<String>::new(), "{file}");
    }
}

#[test]
fn the_complete_configuration_shows_the_defaults() {
    let text = std::fs::read_to_string("config/gateway.yaml").unwrap();
    let mut config = good(&text);
    assert_eq!((config.upstreams.len(), config.admin.auth.local_issuer), (1, true));
    // These are said to differ in the file's comments.
    config.upstreams.clear();
    config.routes.clear();
    config.admin.auth.local_issuer = false;
    config.admin.public_url = None;
    assert_eq!(config, Config::default());
}

#[test]
fn the_complete_configuration_mentions_every_field_of_the_schema() {
    let text = std::fs::read_to_string("config/gateway.yaml").unwrap();
    let comments: String = text.lines().filter(|line| line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let written: Value = serde_yaml::from_str(&text).unwrap();
    let schema = schema();
    let mut missing = Vec::new();
    find_missing(&schema, &schema, Some(&written), &comments, "", &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

/// Walks schema and file side by side. What the file leaves out must be written in a comment, as `name:` or, in the
/// table of a route's fields, at the beginning of a line.
fn find_missing(all: &Value, schema: &Value, written: Option<&Value>, comments: &str, path: &str, missing: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return find_missing(all, &all["$defs"][name], written, comments, path, missing);
    }
    for choice in ["anyOf", "oneOf"].iter().filter_map(|word| schema[*word].as_array()).flatten() {
        find_missing(all, choice, written, comments, path, missing);
    }
    if schema["items"].is_object() {
        let first = written.and_then(|list| list.get(0));
        find_missing(all, &schema["items"], first, comments, &format!("{path}[]"), missing);
    }
    if schema["additionalProperties"].is_object() {
        let first = written.and_then(Value::as_object).and_then(|map| map.values().next());
        find_missing(all, &schema["additionalProperties"], first, comments, &format!("{path}.*"), missing);
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let value = written.and_then(|written| written.get(name));
        let in_comment =
            |line: &str| line.contains(&format!("{name}: ")) || line.trim_start_matches(['#', ' ']).starts_with(&format!("{name} "));
        if value.is_none() && !comments.lines().any(in_comment) {
            missing.push(path.clone());
        }
        find_missing(all, inner, value, comments, &path, missing);
    }
}

#[test]
fn the_shipped_schema_is_the_one_of_the_code() {
    let shipped = std::fs::read_to_string("config/gateway.schema.json").unwrap_or_default();
    let wanted = schema();
    let is_same = serde_json::from_str::<Value>(&shipped).is_ok_and(|shipped| shipped == wanted);
    assert!(
        is_same,
        "config/gateway.schema.json is old; write it anew with: assure-gateway schema > config/gateway.schema.json\n{wanted:#}"
    );
}

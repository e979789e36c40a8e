//! Checks of the routes: patterns, what a route does with a match, and routes that an earlier one hides.
//!
//! A rule that can never match, because an earlier one takes all that it would, is a mistake and no warning: with deny
//! rules among them, an order that is not what it seems is how doors stay open.

use super::covering::Earlier;
use super::{At, Checks, at};
use crate::config::mistakes::suggestion;
use crate::config::{Config, Route};

/// Longest name of a route, in bytes: it is a metric label and stands in every record.
const NAME_BYTES_MAX: usize = 200;

pub(super) fn check(config: &Config, checks: &mut Checks<'_>) {
    let mut before = Earlier::default();
    for (number, route) in config.routes.iter().enumerate() {
        let here = at("routes").item(number);
        check_matching(route, &here, checks);
        check_outcome(route, config, &here, checks);
        check_strip_prefix(route, &here, checks);
        if let Some(earlier) = before.add(route) {
            let other = checks.name(&at("routes").item(earlier));
            let problem =
                format!("this route is never reached: {other} comes first and matches all that it matches; put the narrower one first");
            checks.refuse(&here, problem);
        }
    }
}

fn check_matching(route: &Route, here: &At, checks: &mut Checks<'_>) {
    if let Err(problem) = check_pattern(&route.path) {
        checks.refuse(&here.field("path"), problem);
    }
    if route.host.as_deref().is_some_and(|host| !is_host(host)) {
        checks.refuse(&here.field("host"), "expected a host name or address without scheme, port or path, like reports.example.com");
    }
    let is_label = |name: &str| !name.trim().is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if route.name.as_deref().is_some_and(|name| !is_label(name)) {
        checks.refuse(&here.field("name"), format!("expected a name of 1 to {NAME_BYTES_MAX} bytes on one line"));
    }
    check_methods(route.methods.as_deref(), &here.field("methods"), checks);
}

/// Every segment is a literal, `*`, `{firm}`, or `**` at the end.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let Some(rest) = pattern.strip_prefix('/') else {
        return Err("expected a path that begins with /, like /v1/clients/**".to_owned());
    };
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "*" | "{firm}" => {}
            "**" if is_last => {}
            "**" => return Err("** can only be the last segment; use * for one segment".to_owned()),
            "" if is_last => {}
            "" | "." | ".." => {
                return Err("a path with an empty, . or .. segment is always refused, so this route could never match".to_owned());
            }
            literal if literal.contains(['{', '}']) => {
                return Err("only {firm} can stand in braces, as a whole segment; use * for any one segment".to_owned());
            }
            literal if literal.contains('*') => {
                return Err("a * stands for a whole segment, ** for any number of them at the end".to_owned());
            }
            literal if literal.contains(['?', '#', '\\']) || literal.chars().any(char::is_control) => {
                return Err("a path has no query, no fragment, no \\ and no control characters".to_owned());
            }
            literal if has_escape(literal) => {
                return Err("paths are compared after percent-decoding, so this could never match; write the character itself".to_owned());
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_escape(literal: &str) -> bool {
    let is_escape = |rest: &str| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    literal.split('%').skip(1).any(is_escape)
}

fn is_host(host: &str) -> bool {
    let is_address =
        host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|bare| bare.parse::<std::net::Ipv6Addr>().is_ok());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    is_address || (!host.is_empty() && !host.ends_with('.') && host.len() <= 253 && host.bytes().all(is_plain))
}

fn check_methods(methods: Option<&[String]>, here: &At, checks: &mut Checks<'_>) {
    let Some(methods) = methods else { return };
    if methods.is_empty() {
        checks.refuse(here, "an empty list matches nothing; leave the field out for all methods");
    }
    for (number, method) in methods.iter().enumerate() {
        let is_method = http::Method::from_bytes(method.as_bytes()).is_ok() && !method.bytes().any(|byte| byte.is_ascii_lowercase());
        if !is_method {
            checks.refuse(&here.item(number), "expected a method in capitals, like GET; methods are compared exactly");
        }
    }
}

/// Exactly one of `deny` and `upstream`, and nothing beside `deny` that would have no effect.
fn check_outcome(route: &Route, config: &Config, here: &At, checks: &mut Checks<'_>) {
    match (&route.deny, &route.upstream) {
        (None, None) => checks.refuse(here, "a route needs deny: SENTENCE or upstream: NAME; this one has neither"),
        (Some(_), Some(_)) => checks.refuse(here, "a route has either deny or upstream; this one has both"),
        (Some(sentence), None) if sentence.trim().is_empty() => {
            checks.refuse(&here.field("deny"), "expected the sentence that the tool's author gets to read");
        }
        (Some(_), None) => {}
        (None, Some(name)) => check_upstream_exists(name, config, &here.field("upstream"), checks),
    }
    if route.deny.is_some() {
        let useless = [
            ("require", route.require.is_some()),
            ("firm_query", route.firm_query.is_some()),
            ("strip_prefix", route.strip_prefix.is_some()),
            ("websocket", route.websocket),
            ("per_request", route.per_request.is_some()),
        ];
        for (name, _) in useless.into_iter().filter(|(_, is_set)| *is_set) {
            checks.refuse(&here.field(name), "this has no effect beside deny, which refuses everybody; remove one of the two");
        }
    }
    for (name, value) in [("require", &route.require), ("firm_query", &route.firm_query)] {
        if value.as_deref().is_some_and(|value| value.trim().is_empty()) {
            checks.refuse(&here.field(name), "this must not be empty; leave the field out instead");
        }
    }
}

fn check_upstream_exists(name: &str, config: &Config, here: &At, checks: &mut Checks<'_>) {
    // An upstream that was refused for another reason exists all the same.
    if config.upstreams.contains_key(name) || checks.is_refused(&at("upstreams").field(name)) {
        return;
    }
    let names: Vec<&str> = config.upstreams.keys().map(String::as_str).collect();
    checks.refuse(here, format!("there is no upstream of this name; {}", suggestion(name, &names)));
}

fn check_strip_prefix(route: &Route, here: &At, checks: &mut Checks<'_>) {
    let Some(prefix) = route.strip_prefix.as_deref() else { return };
    if !prefix.starts_with('/') || prefix.ends_with('/') {
        checks.refuse(&here.field("strip_prefix"), "expected a path that begins with / and does not end with it, like /v1");
    } else if !can_begin_with(&route.path, prefix) {
        let problem = "the route's path does not begin with this, so it would never be removed; expected its first literal segments";
        checks.refuse(&here.field("strip_prefix"), problem);
    }
}

/// Whether paths of this pattern begin with these literal segments, or may (`**`).
fn can_begin_with(pattern: &str, prefix: &str) -> bool {
    let mut segments = pattern.split('/');
    prefix.split('/').all(|wanted| {
        let is_literal = !wanted.contains(['*', '{', '}']);
        let mut rest = segments.clone();
        match rest.next() {
            // `**` stays where it is: it stands for all that follows.
            Some("**") => is_literal,
            Some(segment) => {
                segments = rest;
                is_literal && segment == wanted
            }
            None => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_accepted_or_refused_with_a_sentence() {
        for pattern in [
            "/",
            "/**",
            "/*",
            "/v1/clients",
            "/v1/clients/",
            "/v1/*/x/**",
            "/v1/firms/{firm}/**",
            "/a b",
            "/ä",
            "/100%",
            "/.well-known/x",
            "/a;b",
        ] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
        for pattern in ["", "v1", "/**/x", "/a*", "/{id}", "/x{firm}", "/a//b", "/./a", "/a/..", "/a%20b", "/a?b", "/a\\b", "/***"] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_prefix_is_made_of_the_first_literal_segments() {
        let rows = [
            ("/v1/clients/**", "/v1", true),
            ("/v1/clients/**", "/v1/clients", true),
            ("/v1/clients/**", "/v1/clients/x", true),
            ("/**", "/v1", true),
            ("/v1/*", "/v1/x", false),
            ("/v1/clients", "/v", false),
            ("/v1", "/v1/x", false),
            ("/v1/{firm}/**", "/v1/{firm}", false),
        ];
        for (pattern, prefix, wanted) in rows {
            assert_eq!(can_begin_with(pattern, prefix), wanted, "{prefix} of {pattern}");
        }
    }
}

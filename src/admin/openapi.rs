//! The admin API's OpenAPI document, made from the routes and types themselves.
//!
//! `config/admin-openapi.json` is a copy of it, for reviewers and generators of clients; a test fails when the two
//! differ. Every operation gets the refusals that the guard and the extractors can give, so that no handler lists them.

use std::sync::LazyLock;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder, path::Operation};
use utoipa::{OpenApi as _, ToSchema};

use super::problem::ProblemBody;
use super::server;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Assure Pro API keys",
        description = "Creates, lists and revokes a firm's API keys and reads its activity log. The firm is always the token's.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(ProblemBody)),
    tags(
        (name = "keys", description = "The keys of the caller's firm."),
        (name = "activity", description = "What was done with them."),
        (name = "users", description = "What the dashboard tells of the firm's users."),
        (name = "session", description = "Signing in to the page."),
        (name = "whoami", description = "The caller."),
        (name = "about", description = "This listener."),
    )
)]
struct Base;

/// The document as JSON text, as it is served.
pub(super) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(document);
    &TEXT
}

/// The document as indented JSON text that ends with a line break.
pub fn document() -> String {
    let (_, generated) = server::routes().split_for_parts();
    let mut document = Base::openapi();
    document.merge(generated);
    document.info.version = env!("CARGO_PKG_VERSION").into();
    let bearer = SecurityScheme::Http(
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some("A user's token.")).build(),
    );
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", bearer);
    let cookie = ApiKeyValue::with_description(
        "assure_session",
        "The page's session, from POST /v1/session. Called __Host-assure_session where people come by TLS; counts only in what the page itself sends.",
    );
    components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    add_refusals(&mut document);
    let mut text = document.to_pretty_json().expect("a document is plain data");
    text.push('\n');
    text
}

fn add_refusals(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for operation in [&mut item.get, &mut item.post, &mut item.put, &mut item.delete].into_iter().flatten() {
            if let Some(ways) = &mut operation.security {
                ways.push(SecurityRequirement::new("session", Vec::<String>::new()));
            }
            for (status, description) in refusals(path, operation) {
                operation.responses.responses.entry(status.into()).or_insert_with(|| RefOr::T(problem(description)));
            }
        }
    }
}

fn refusals(path: &str, operation: &Operation) -> Vec<(&'static str, &'static str)> {
    let mut rows = vec![
        ("400", "The request cannot be understood: `malformed_request`."),
        ("421", "Host names another server: `misdirected_request`."),
        ("500", "A defect of the gateway: `internal_error`."),
    ];
    if operation.security.is_some() {
        rows.push(("401", "No valid token: `unauthorized`."));
        rows.push(("503", "A dependency does not answer; nothing is wrong with the request: `store_unavailable`, `issuer_unavailable`, `revocation_unconfirmed`, `too_many_followers`. Try again after Retry-After."));
    }
    if operation.security.is_some() && path != "/v1/whoami" {
        rows.push((
            "403",
            "The token lacks the permission, or a browser sent a change from another site: `permission_missing`, `cross_site`.",
        ));
    }
    if path == super::session::PATH {
        rows.push(("403", "A browser sent this from another site: `cross_site`."));
    }
    if operation.request_body.is_some() && operation.security.is_none() {
        rows.push(("401", "No valid token, or a link that is over: `unauthorized`."));
        rows.push(("503", "The identity provider does not answer: `issuer_unavailable`."));
    }
    if operation.request_body.is_some() {
        rows.push(("408", "The body does not come to its end: `request_timeout`."));
        rows.push(("413", "The body is larger than 64 KiB: `payload_too_large`."));
        rows.push(("415", "The body is not JSON: `unsupported_media_type`."));
    }
    if path.contains("{id}") || path == "/v1/keys/lookup" || path == "/v1/activity" {
        rows.push(("404", "The firm has no such key: `not_found`."));
    }
    if path == "/v1/keys" && operation.request_body.is_some() {
        rows.push(("409", "The firm or the creator has as many keys as allowed: `firm_key_limit`, `creator_key_limit`."));
        rows.push((
            "422",
            "The name cannot be a key's, or the Idempotency-Key was used for another name: `invalid_name`, `idempotency_conflict`.",
        ));
    }
    rows
}

fn problem(description: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemBody::name()))).build();
    ResponseBuilder::new().description(description).content("application/problem+json", body).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_copy_in_the_repository_is_the_document() {
        let copy = include_str!("../../config/admin-openapi.json");
        assert!(copy == document(), "run `assure-gateway openapi > config/admin-openapi.json`");
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_says_how_it_refuses() {
        let document: Value = serde_json::from_str(&document()).expect("JSON");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let responses = operation["responses"].as_object().expect("responses");
                assert!(responses.contains_key("400"), "{method} {path}");
                let takes_a_token = operation.get("security").is_some() || (path == "/v1/session" && method == "post");
                assert_eq!(responses.contains_key("401"), takes_a_token, "{method} {path}");
            }
        }
    }

    fn collect(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                into.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| collect(value, into));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
            _ => {}
        }
    }
}

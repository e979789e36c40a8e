//! What a person sees who opens the listener's address, and the API's description.

use axum::response::{Html, IntoResponse, Response};
use http::header;

/// One file, without scripts; its styles are allowed by the hash of their text.
const INDEX: &str = include_str!("page/index.html");

/// The OpenAPI document of this API.
#[utoipa::path(get, path = "/openapi.json", tag = "about", responses((status = 200, description = "This document.", content_type = "application/json", body = serde_json::Value)))]
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi::text()).into_response()
}

/// A page that says what this listener is.
#[utoipa::path(get, path = "/", tag = "about", responses((status = 200, description = "A page for people.", content_type = "text/html", body = String)))]
pub(super) async fn index() -> Response {
    let policy =
        format!("default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", style_hash());
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(INDEX)).into_response()
}

/// SHA-256 of the text between the style tags, as a Content-Security-Policy wants it (CSP Level 3 section 8.1).
fn style_hash() -> String {
    use base64::Engine;
    use sha2::Digest;
    let style = INDEX.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).map_or("", |(style, _)| style);
    base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(style))
}

//! The API keys page: a handful of files that are part of the binary, and the API's description.
//!
//! Nothing is built and nothing is fetched from elsewhere. The files hold no data; the page asks the API for it as any
//! other client does, with the session's cookie. What they may do is said by `guard`.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::header;

use super::problem::Problem;

const INDEX: &str = include_str!("page/index.html");
const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files that the page loads: name, kind, content.
const FILES: [(&str, &str, &str); 11] = [
    ("page.css", STYLE, include_str!("page/page.css")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("api.js", SCRIPT, include_str!("page/api.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("words.js", SCRIPT, include_str!("page/words.js")),
    ("keys.js", SCRIPT, include_str!("page/keys.js")),
    ("create.js", SCRIPT, include_str!("page/create.js")),
    ("revoke.js", SCRIPT, include_str!("page/revoke.js")),
    ("rotate.js", SCRIPT, include_str!("page/rotate.js")),
    ("activity.js", SCRIPT, include_str!("page/activity.js")),
];

/// The OpenAPI document of this API.
#[utoipa::path(get, path = "/openapi.json", tag = "about", responses((status = 200, description = "This document.", content_type = "application/json", body = serde_json::Value)))]
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi::text()).into_response()
}

/// The API keys page.
#[utoipa::path(get, path = "/", tag = "about", responses((status = 200, description = "The API keys page.", content_type = "text/html", body = String)))]
pub(super) async fn index() -> Response {
    ([(header::CONTENT_TYPE, HTML)], INDEX).into_response()
}

/// One of the page's files.
pub(super) async fn file(Path(name): Path<String>) -> Result<Response, Problem> {
    let (_, kind, content) = FILES.into_iter().find(|(known, ..)| *known == name).ok_or(Problem::NotFound("file"))?;
    Ok(([(header::CONTENT_TYPE, kind)], content).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a first visit may weigh, in bytes.
    const WEIGHT_MAX: usize = 100_000;

    #[test]
    fn the_page_is_light_and_names_only_files_that_it_has() {
        let weight = FILES.iter().map(|(.., content)| content.len()).sum::<usize>() + INDEX.len();
        assert!(weight < WEIGHT_MAX, "{weight} bytes");
        let texts = FILES.iter().map(|(.., content)| *content).chain([INDEX]);
        let mut named = 0;
        for (text, lead) in texts.flat_map(|text| [(text, "\"/page/"), (text, "from \"./")]) {
            for rest in text.split(lead).skip(1) {
                let name = rest.split('"').next().unwrap_or_default();
                assert!(FILES.iter().any(|(known, ..)| *known == name), "{name}");
                named += 1;
            }
        }
        assert!(named >= FILES.len(), "each file is named: {named}");
    }

    #[test]
    fn nothing_of_the_page_is_inline_or_from_elsewhere_or_made_of_text() {
        for (name, _, content) in FILES.into_iter().chain([("index.html", HTML, INDEX)]) {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "localStorage",
                "sessionStorage",
                "style=\"",
                "onclick=",
            ] {
                assert!(!content.contains(word), "{name} has {word}");
            }
            let urls = content.split("http").skip(1).filter(|rest| rest.starts_with("://") || rest.starts_with("s://"));
            let foreign: Vec<&str> = urls.filter(|rest| !rest.starts_with("://www.w3.org/2000/svg")).collect();
            assert!(foreign.is_empty(), "{name}: {foreign:?}");
        }
    }
}

//! The third listener: for Prometheus, orchestrators and upstreams.
//!
//! `/metrics`, `/healthz`, `/readyz` and `/.well-known/jwks.json`, GET and HEAD, without credentials: nothing here tells
//! of a firm or a key. What is ready, and what the verification keys are, is asked of whoever passes it in, at each
//! request. Liveness asks nothing: a process that can answer is alive, and restarting it would not mend a dependency.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;

use crate::edge::Peer;
use crate::metrics::Metrics;

/// For how long verifiers may keep the JWK Set; a new key must be published this long before it signs.
pub const JWKS_MAX_AGE_SECONDS: u32 = 300;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// The text exposition format that `Metrics::encode` writes.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const NEVER_STORED: HeaderValue = HeaderValue::from_static("no-store");

/// One thing that must work before requests are sent here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// A word: `store`, `audit`, `coherence`.
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// A sentence for the operator; nothing secret.
    pub detail: String,
}

/// What the handlers ask.
#[derive(Clone)]
pub struct OpsState {
    /// For `/metrics`.
    pub metrics: Metrics,
    /// For `/readyz`; called at each request, so it must answer from memory.
    pub checks: Arc<dyn Fn() -> Vec<Check> + Send + Sync>,
    /// Set when the drain begins: readiness turns red before connections are refused.
    pub draining: Arc<AtomicBool>,
    /// The JWK Set (RFC 7517 section 5), as JSON.
    pub jwks: Arc<dyn Fn() -> Bytes + Send + Sync>,
}

/// The listener's service.
pub fn handler(state: OpsState) -> impl Fn(Request<Incoming>, Arc<Peer>) -> Ready<Response<Full<Bytes>>> + Clone + Send + Sync + 'static {
    move |request, _peer| ready(answer(&state, request.method(), request.uri().path()))
}

fn answer(state: &OpsState, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let page: fn(&OpsState) -> Response<Bytes> = match path {
        "/metrics" => metrics,
        "/healthz" => healthz,
        "/readyz" => readyz,
        "/.well-known/jwks.json" => jwks,
        _ => return problem(StatusCode::NOT_FOUND, "not_found", "There is nothing here.").map(Full::new),
    };
    match *method {
        Method::GET => page(state).map(Full::new),
        Method::HEAD => head_of(page(state)),
        _ => {
            let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This page is read with GET or HEAD.");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            refusal.map(Full::new)
        }
    }
}

fn metrics(state: &OpsState) -> Response<Bytes> {
    page(StatusCode::OK, EXPOSITION, NEVER_STORED, state.metrics.encode().into())
}

fn healthz(_: &OpsState) -> Response<Bytes> {
    page(StatusCode::OK, TEXT, NEVER_STORED, Bytes::from_static(b"ok\n"))
}

fn readyz(state: &OpsState) -> Response<Bytes> {
    #[derive(Serialize)]
    struct Readiness {
        ready: bool,
        checks: Vec<Check>,
    }
    let mut checks = (state.checks)();
    if state.draining.load(Ordering::Relaxed) {
        checks.push(Check { name: "drain", ok: false, detail: "This gateway is shutting down.".into() });
    }
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    page(status, JSON, NEVER_STORED, json(&Readiness { ready, checks }))
}

/// Not `application/jwk-set+json`: several verifiers refuse a set that is not plain `application/json`.
fn jwks(state: &OpsState) -> Response<Bytes> {
    let lifetime = HeaderValue::try_from(format!("public, max-age={JWKS_MAX_AGE_SECONDS}")).expect("digits and letters are a header value");
    page(StatusCode::OK, JSON, lifetime, (state.jwks)())
}

fn problem(status: StatusCode, code: &'static str, detail: &'static str) -> Response<Bytes> {
    #[derive(Serialize)]
    struct Problem {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'static str,
        code: &'static str,
    }
    let title = status.canonical_reason().unwrap_or_default();
    page(status, PROBLEM, NEVER_STORED, json(&Problem { r#type: "about:blank", title, status: status.as_u16(), detail, code }))
}

fn page(status: StatusCode, kind: HeaderValue, lifetime: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut page = Response::new(body);
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, kind);
    page.headers_mut().insert(CACHE_CONTROL, lifetime);
    page
}

/// Over HTTP/2 hyper would send the body of an answer to HEAD.
fn head_of(page: Response<Bytes>) -> Response<Full<Bytes>> {
    let length = page.body().len();
    let mut head = page.map(|_| Full::default());
    head.headers_mut().insert(CONTENT_LENGTH, length.into());
    head
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("words, numbers and truth values serialize").into()
}

#[cfg(test)]
mod tests {
    use http_body::Body;
    use http_body_util::BodyExt;

    use super::*;

    fn state() -> OpsState {
        let checks = || vec![Check { name: "store", ok: true, detail: "answers".into() }];
        OpsState {
            metrics: Metrics::new(),
            checks: Arc::new(checks),
            draining: Arc::default(),
            jwks: Arc::new(|| Bytes::from_static(b"{\"keys\":[]}")),
        }
    }

    async fn check(state: &OpsState, method: Method, path: &str, status: u16, kind: &str, body: &str) {
        let answer = answer(state, &method, path);
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        assert_eq!(answer.headers()[CONTENT_TYPE], kind, "{method} {path}");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.contains(body), "{method} {path}: {text}");
    }

    #[tokio::test]
    async fn each_page_says_what_it_is() {
        let state = state();
        check(&state, Method::GET, "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "\nassure_gateway_build_info{").await;
        check(&state, Method::GET, "/healthz", 200, "text/plain; charset=utf-8", "ok").await;
        check(&state, Method::GET, "/.well-known/jwks.json", 200, "application/json", "{\"keys\":[]}").await;
        check(&state, Method::GET, "/", 404, "application/problem+json", "\"code\":\"not_found\"").await;
        check(&state, Method::POST, "/metrics", 405, "application/problem+json", "\"code\":\"method_not_allowed\"").await;
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing_and_turns_red_with_the_drain() {
        let mut state = state();
        let green = "{\"ready\":true,\"checks\":[{\"name\":\"store\",\"ok\":true,\"detail\":\"answers\"}]}";
        check(&state, Method::GET, "/readyz", 200, "application/json", green).await;
        state.draining.store(true, Ordering::Relaxed);
        check(&state, Method::GET, "/readyz", 503, "application/json", "{\"name\":\"drain\",\"ok\":false").await;
        check(&state, Method::GET, "/healthz", 200, "text/plain; charset=utf-8", "ok").await;
        state.draining.store(false, Ordering::Relaxed);
        state.checks = Arc::new(|| vec![Check { name: "store", ok: false, detail: "does not answer".into() }]);
        check(&state, Method::GET, "/readyz", 503, "application/json", "{\"ready\":false,\"checks\":[{\"name\":\"store\",\"ok\":false")
            .await;
    }

    #[test]
    fn head_has_the_length_and_not_the_body() {
        let answer = answer(&state(), &Method::HEAD, "/.well-known/jwks.json");
        assert_eq!(answer.headers()[CONTENT_LENGTH], "11");
        assert_eq!(answer.headers()[CACHE_CONTROL], "public, max-age=300");
        assert!(answer.body().is_end_stream());
    }
}

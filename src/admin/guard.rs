//! What every request on the admin listener passes first, and every answer last.
//!
//! First: a request id, the Host check, the cross-site check. Last: the problem is written out, whatever axum
//! refused by itself becomes one too, and the headers that forbid caching, sniffing and framing are added. A panic
//! in a handler ends here as 500.

use std::panic::AssertUnwindSafe;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::host::check_site;
use super::problem::Problem;
use super::server::Shared;
use crate::clock;
use crate::domain::{KeyNamespace, RequestId};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// The page loads and asks nothing but this listener, has no inline script or style, and no script may make markup of text.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
    form-action 'self'; require-trusted-types-for 'script'; trusted-types 'none'; frame-ancestors";
/// What is no page may load nothing and send nothing anywhere.
const DATA_POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors";

/// What browsers may do with answers.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    page: HeaderValue,
    data: HeaderValue,
    framing: Framing,
}

/// Who may show answers in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Framing {
    Nobody,
    Dashboards,
}

impl Policies {
    /// Lets these dashboards frame the page; the configuration has checked their form.
    pub(crate) fn new(dashboards: &[String]) -> Self {
        let framing = if dashboards.is_empty() { Framing::Nobody } else { Framing::Dashboards };
        let ancestors = if dashboards.is_empty() { "'none'".to_owned() } else { dashboards.join(" ") };
        let policy = |text: &str| HeaderValue::from_str(&format!("{text} {ancestors}")).expect("origins are checked to be ASCII");
        Self { page: policy(PAGE_POLICY), data: policy(DATA_POLICY), framing }
    }
}

/// The authority that a request named, as an extension for its record.
#[derive(Clone, Debug)]
pub(crate) struct NamedHost(pub(crate) Authority);

/// Wraps every route.
pub(crate) async fn guard(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let request_id = RequestId::new(clock::fresh_uuid());
    request.extensions_mut().insert(request_id);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = match check(&shared, &mut request) {
        Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| Problem::Internal.into_response()),
        Err(problem) => problem.into_response(),
    };
    let response = finish(response, request_id, &shared.settings().policies, &shared.state.namespace);
    let code = response.extensions().get::<Problem>().map(Problem::code);
    tracing::debug!(%request_id, %method, route, status = response.status().as_u16(), code, "admin request");
    response
}

fn check(shared: &Shared, request: &mut Request) -> Result<(), Problem> {
    let settings = shared.settings();
    let host = settings.hosts.check(request.uri(), request.headers())?;
    // A dashboard may sign its users in, and nothing else.
    let is_sign_in = request.method() == http::Method::POST && request.uri().path() == super::session::PATH;
    let dashboards: &[String] = if is_sign_in { &settings.dashboards } else { &[] };
    check_site(request.method(), &host, settings.public_url.as_deref(), dashboards, request.headers())?;
    request.extensions_mut().insert(NamedHost(host));
    Ok(())
}

fn finish(response: Response, request_id: RequestId, policies: &Policies, namespace: &KeyNamespace) -> Response {
    let mut response = match problem_of(&response) {
        None => response,
        Some(problem) => {
            let problem = problem.without_keys(namespace);
            let mut rendered = problem.render(request_id);
            if let Some(methods) = response.headers().get(header::ALLOW) {
                rendered.headers_mut().insert(header::ALLOW, methods.clone());
            }
            rendered.extensions_mut().insert(problem);
            rendered
        }
    };
    let id = HeaderValue::from_str(&request_id.to_string()).expect("a UUID is ASCII");
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    let is_page = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    headers.insert(header::CONTENT_SECURITY_POLICY, if is_page { policies.page.clone() } else { policies.data.clone() });
    // With `no-referrer` a browser would hide the page's own Origin from us when it sends its form.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static(if is_page { "same-origin" } else { "no-referrer" }));
    if policies.framing == Framing::Nobody {
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    response
}

/// The problem that a handler returned, or the one that stands for what axum refused by itself.
fn problem_of(response: &Response) -> Option<Problem> {
    if let Some(problem) = response.extensions().get::<Problem>() {
        return Some(problem.clone());
    }
    match response.status() {
        StatusCode::NOT_FOUND => Some(Problem::NotFound("path")),
        StatusCode::METHOD_NOT_ALLOWED => Some(Problem::MethodNotAllowed),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Some(Problem::UnsupportedMediaType),
        status if status.is_client_error() => Some(Problem::Malformed("it was refused".into())),
        status if status.is_server_error() => Some(Problem::Internal),
        _ => None,
    }
}

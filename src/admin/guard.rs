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
use crate::domain::RequestId;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A page of this listener may load nothing and send nothing anywhere but what its own header allows.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
    let response = finish(response, request_id);
    let code = response.extensions().get::<Problem>().map(Problem::code);
    tracing::debug!(%request_id, %method, route, status = response.status().as_u16(), code, "admin request");
    response
}

fn check(shared: &Shared, request: &mut Request) -> Result<(), Problem> {
    let settings = shared.settings();
    let host = settings.hosts.check(request.uri(), request.headers())?;
    check_site(request.method(), &host, settings.public_url.as_deref(), request.headers())?;
    request.extensions_mut().insert(NamedHost(host));
    Ok(())
}

fn finish(response: Response, request_id: RequestId) -> Response {
    let mut response = match problem_of(&response) {
        None => response,
        Some(problem) => {
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
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(CONTENT_SECURITY_POLICY));
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

//! From a rejection to an answer: `application/problem+json` (RFC 9457), and the header fields of every answer.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode};

use crate::domain::{Rejection, RequestId};

use super::limit::Standing;

/// Names the request in every answer.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"Assure Pro\"");

/// Whether bytes of the request may still be on their way when it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leftover {
    /// The request was read to its end.
    Nothing,
    /// Whatever is left belongs to an HTTP/2 stream and ends with it (RFC 9113 section 8.1); there is no `Connection`.
    Stream,
    /// The rest of an HTTP/1 body would be taken for the next request: the connection must close.
    Body,
}

/// The members of a problem.
#[derive(serde::Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// The answer to a refused request.
pub fn refuse(rejection: &Rejection, request: RequestId, leftover: Leftover) -> Response<Bytes> {
    let consequence = rejection.consequence();
    let mut response = Response::new(problem(rejection, request));
    *response.status_mut() = StatusCode::from_u16(consequence.status).expect("the table holds statuses of HTTP");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, request_id(request));
    if consequence.status == 401 {
        headers.insert(WWW_AUTHENTICATE, CHALLENGE);
    }
    if let Some(seconds) = consequence.retry_after_seconds {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    // After these nobody can be sure where the next request begins, or that the next one would be meant better.
    let is_doubtful = matches!(consequence.status, 400 | 405 | 414 | 431);
    if leftover == Leftover::Body || (is_doubtful && leftover == Leftover::Nothing) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// `X-Request-Id`.
pub fn request_id(request: RequestId) -> HeaderValue {
    let mut text = [0_u8; uuid::fmt::Hyphenated::LENGTH];
    request.uuid().as_hyphenated().encode_lower(&mut text);
    HeaderValue::from_bytes(&text).expect("a UUID is ASCII")
}

/// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), on every answer to a live key.
pub fn show_allowance(headers: &mut HeaderMap, standing: Standing) {
    headers.insert(RATE_LIMIT_POLICY, standing.policy_header());
    headers.insert(RATE_LIMIT, standing.limit_header());
}

fn problem(rejection: &Rejection, request: RequestId) -> Bytes {
    let consequence = rejection.consequence();
    let status = StatusCode::from_u16(consequence.status).expect("the table holds statuses of HTTP");
    let detail = rejection.detail();
    let problem = Problem {
        r#type: crate::domain::problem_type(consequence.code),
        title: status.canonical_reason().unwrap_or("Refused"),
        status: consequence.status,
        detail: &detail,
        code: consequence.code,
        request_id: request.to_string(),
        retry_after: consequence.retry_after_seconds,
    };
    serde_json::to_vec(&problem).expect("a problem is plain data").into()
}

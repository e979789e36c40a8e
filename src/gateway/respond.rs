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

/// Room for a problem whose detail is as long as they usually are.
const PROBLEM_BYTES_USUAL: usize = 384;
/// Room for the fields of a refusal, those of every answer included.
const FIELDS_USUAL: usize = 10;

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

/// The answer to a refused request, which `request` [names](request_id).
pub fn refuse(rejection: &Rejection, request: &HeaderValue, leftover: Leftover) -> Response<Bytes> {
    let consequence = rejection.consequence();
    let mut response = Response::new(problem(rejection, request));
    *response.status_mut() = StatusCode::from_u16(consequence.status).expect("the table holds statuses of HTTP");
    let headers = response.headers_mut();
    headers.reserve(FIELDS_USUAL);
    headers.insert(CONTENT_TYPE, PROBLEM);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, request.clone());
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
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    request.uuid().as_hyphenated().encode_lower(&mut text);
    HeaderValue::from_bytes(&text).expect("a UUID is ASCII")
}

/// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), on every answer to a live key.
pub fn show_allowance(headers: &mut HeaderMap, standing: Standing) {
    headers.insert(RATE_LIMIT_POLICY, standing.policy_header());
    headers.insert(RATE_LIMIT, standing.limit_header());
}

/// The members of a problem, in the order of RFC 9457 section 3.1. Written by hand, because a flood of refusals is to cost
/// next to nothing; of the texts only the detail can hold what JSON escapes.
fn problem(rejection: &Rejection, request: &HeaderValue) -> Bytes {
    let consequence = rejection.consequence();
    let status = StatusCode::from_u16(consequence.status).expect("the table holds statuses of HTTP");
    let detail = quoted(&rejection.detail());
    let mut json = Vec::with_capacity(PROBLEM_BYTES_USUAL);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| json.extend_from_slice(part));
    let title = status.canonical_reason().unwrap_or("Refused");
    put(&[b"{\"type\":\"", crate::domain::problem_type(consequence.code).as_bytes(), b"\",\"title\":\"", title.as_bytes()]);
    put(&[b"\",\"status\":", status.as_str().as_bytes(), b",\"detail\":", detail.as_bytes()]);
    put(&[b",\"code\":\"", consequence.code.as_bytes(), b"\",\"request_id\":\"", request.as_bytes(), b"\""]);
    if let Some(seconds) = consequence.retry_after_seconds {
        put(&[b",\"retry_after\":", itoa::Buffer::new().format(seconds).as_bytes()]);
    }
    put(&[b"}"]);
    json.into()
}

/// A text as JSON writes it (RFC 8259 section 7); most hold nothing to escape.
fn quoted(text: &str) -> String {
    let is_plain = text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
    if is_plain { ["\"", text, "\""].concat() } else { serde_json::to_string(text).expect("writing text to memory does not fail") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_json_whatever_its_detail_holds() {
        let request = RequestId::new(uuid::Uuid::from_u128(7));
        let name = request_id(request);
        for (rejection, retry_after) in [
            (Rejection::KeyUnknown, None),
            (Rejection::PermissionMissing("a \"b\" \\ \n \u{1} é".into()), None),
            (Rejection::WindowExhausted { retry_after: std::time::Duration::from_secs(17) }, Some(17)),
        ] {
            let problem: serde_json::Value = serde_json::from_slice(&problem(&rejection, &name)).unwrap();
            let consequence = rejection.consequence();
            assert_eq!(problem["detail"], *rejection.detail());
            assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(consequence.status.into()), Some(consequence.code)));
            assert_eq!(problem["request_id"], request.to_string());
            assert_eq!(problem.get("retry_after").and_then(serde_json::Value::as_u64), retry_after);
            assert_eq!(problem["type"], *crate::domain::problem_type(consequence.code));
        }
    }
}

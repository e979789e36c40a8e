//! The parts of a request, read strictly: bodies, queries, ids, and what a record wants to know of the caller.
//!
//! axum's own extractors answer in plain text when they refuse; these answer with a `Problem`.

use std::pin::pin;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::guard::NamedHost;
use super::problem::Problem;
use super::server::{Peer, Shared};
use super::strict_json;
use crate::clock;
use crate::deadline::within;
use crate::domain::{Action, AuditRecord, FirmId, KeyId, ReplicaId, RequestId, UserId, is_traceparent};

/// Longest request body, in bytes: the longest name or reason, escaped, many times over.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long a body may take.
const BODY_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest User-Agent in a record, in bytes.
const USER_AGENT_BYTES_MAX: usize = 256;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A JSON body that was read strictly; `None` where there was no body.
pub(super) struct StrictJson<T>(pub(super) Option<T>);

impl<T> StrictJson<T> {
    /// The body, which must be there.
    pub(super) fn required(self) -> Result<T, Problem> {
        self.0.ok_or_else(|| Problem::Malformed("it has no body".into()))
    }
}

impl<T: DeserializeOwned> FromRequest<Shared> for StrictJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Shared) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let text = within(BODY_WAIT_MAX, pin!(read_body(request))).await.ok_or(Problem::BodyTooSlow)??;
        if text.is_empty() {
            return Ok(Self(None));
        }
        if !is_json {
            return Err(Problem::UnsupportedMediaType);
        }
        // A body that need not be there may be said not to be there.
        if text.trim_ascii() == b"null" {
            return Ok(Self(None));
        }
        strict_json::parse(&text).map(|value| Self(Some(value))).map_err(Problem::Malformed)
    }
}

/// A body in JSON, as programs send it, or as a form, as a browser does.
pub(super) enum JsonOrForm<T> {
    Json(T),
    Form(T),
}

impl<T: DeserializeOwned> FromRequest<Shared> for JsonOrForm<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let is_form = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-www-form-urlencoded");
        if !is_form {
            return StrictJson::from_request(request, shared).await?.required().map(Self::Json);
        }
        let text = within(BODY_WAIT_MAX, pin!(read_body(request))).await.ok_or(Problem::BodyTooSlow)??;
        let malformed = || Problem::Malformed("its form is wrong".into());
        // A form is spelt as a query is (URL standard, section 5).
        let query = Zeroizing::new([b"/?", text.as_slice()].concat());
        let target = http::Uri::try_from(query.as_slice()).map_err(|_| malformed())?;
        Query::<T>::try_from_uri(&target).map(|form| Self::Form(form.0)).map_err(|_| malformed())
    }
}

/// Exactly one Content-Type, `application/json`, with UTF-8 as the only charset (RFC 8259 section 8.1).
fn is_json(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let Ok(line) = line.to_str() else { return false };
    let mut parts = line.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    is_json && parts.all(|parameter| parameter.eq_ignore_ascii_case("charset=utf-8") || parameter.eq_ignore_ascii_case("charset=\"utf-8\""))
}

/// The whole body, in memory that is wiped: a look-up's body holds a key.
async fn read_body(request: Request) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let mut body = request.into_body();
    if http_body::Body::is_end_stream(&body) {
        return Ok(Zeroizing::default());
    }
    let declared = http_body::Body::size_hint(&body).lower();
    let declared = usize::try_from(declared).unwrap_or(usize::MAX);
    if declared > BODY_BYTES_MAX {
        return Err(Problem::PayloadTooLarge(BODY_BYTES_MAX));
    }
    // Room for all of it from the start, so that growing leaves no copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(if declared > 0 { declared } else { BODY_BYTES_MAX }));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::Malformed("its body broke off".into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if text.len() + data.len() > BODY_BYTES_MAX {
            return Err(Problem::PayloadTooLarge(BODY_BYTES_MAX));
        }
        text.extend_from_slice(&data);
    }
    Ok(text)
}

/// The query, in which every parameter is known and none is repeated.
pub(super) struct StrictQuery<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for StrictQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let query = Query::<T>::try_from_uri(&parts.uri)
            .map_err(|refused| Problem::Malformed(format!("its query is wrong: {}", inner(&refused))))?;
        Ok(Self(query.0))
    }
}

/// The innermost reason, without axum's words around it.
fn inner(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), inner)
}

/// The user id in the path.
pub(super) struct UserInPath(pub(super) UserId);

impl FromRequestParts<Shared> for UserInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Problem> {
        let malformed = || Problem::Malformed("a user's id is printable, without spaces".into());
        let Path(text) = Path::<String>::from_request_parts(parts, shared).await.map_err(|_| malformed())?;
        UserId::parse(&text).map(Self).map_err(|_| malformed())
    }
}

/// The key id in the path.
pub(super) struct KeyInPath(pub(super) KeyId);

impl FromRequestParts<Shared> for KeyInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Problem> {
        let malformed = || Problem::Malformed("a key's id is a UUID with hyphens".into());
        let Path(text) = Path::<String>::from_request_parts(parts, shared).await.map_err(|_| malformed())?;
        text.parse().map(Self).map_err(|_| malformed())
    }
}

/// What a record of a create or a revoke says of the request that made it.
pub(super) struct Origin {
    request_id: RequestId,
    client_ip: Option<String>,
    user_agent: Option<String>,
    traceparent: Option<String>,
    method: String,
    host: Option<String>,
    path: String,
}

impl FromRequestParts<Shared> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Self::Rejection> {
        let namespace = &shared.state.namespace;
        let extensions = &parts.extensions;
        let request_id = extensions.get::<RequestId>().copied().unwrap_or_else(|| RequestId::new(clock::fresh_uuid()));
        Ok(Self {
            request_id,
            client_ip: extensions.get::<Peer>().map(|peer| peer.0.ip().to_canonical().to_string()),
            user_agent: parts
                .headers
                .get(header::USER_AGENT)
                .map(|value| cut(&namespace.hide_keys(&String::from_utf8_lossy(value.as_bytes())))),
            traceparent: parts
                .headers
                .get(TRACEPARENT)
                .and_then(|value| value.to_str().ok())
                .filter(|text| is_traceparent(text))
                .map(str::to_owned),
            method: parts.method.to_string(),
            host: extensions.get::<NamedHost>().map(|host| host.0.to_string()),
            path: parts.uri.path().to_owned(),
        })
    }
}

impl Origin {
    /// The request's name.
    pub(super) fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// The record of an action on a key; its time, and for a revocation the key's name, are the store's to fill in.
    pub(super) fn record(self, action: Action, firm: &FirmId, key: KeyId, actor: &UserId, replica: &ReplicaId) -> AuditRecord {
        AuditRecord {
            client_ip: self.client_ip,
            user_agent: self.user_agent,
            request_id: Some(self.request_id.to_string()),
            traceparent: self.traceparent,
            method: Some(self.method),
            host: self.host,
            path: Some(self.path),
            ..AuditRecord::bare(action, firm.clone(), key, actor.as_str(), clock::wall_now(), clock::fresh_uuid(), replica.clone())
        }
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(USER_AGENT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_json_is_json() {
        for (text, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=UTF-8", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("application/json; charset=utf-16", false),
            ("application/jsonp", false),
            ("text/plain; application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            assert_eq!(is_json(&headers), expected, "{text}");
            headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            assert!(!is_json(&headers), "two lines");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn a_user_agent_is_cut_at_a_character() {
        assert_eq!(cut("curl/8"), "curl/8");
        assert_eq!(cut(&"é".repeat(200)).len(), 256);
        assert_eq!(cut(&format!("x{}", "é".repeat(200))).len(), 255);
    }
}

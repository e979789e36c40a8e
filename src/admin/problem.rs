//! Why the admin API refused: one variant per reason, one table of what follows, one shape on the wire.
//!
//! The shape is RFC 9457 with `code` and `request_id`, the same as on the edge. A handler returns a `Problem`; the
//! outermost layer (`guard.rs`) writes it out, because only there the request id is at hand, and makes problems of
//! whatever axum refused by itself.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{KeyNameError, KeyNamespace, RequestId, problem_type};

/// `Retry-After` of a dependency's failure, in seconds.
const TRY_AGAIN_SECONDS: u64 = 1;

/// A reason to refuse a request on the admin listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Problem {
    /// No token.
    TokenMissing,
    /// A token that is not believed; why stands in the log.
    TokenInvalid,
    /// A good token of earlier.
    TokenExpired,
    /// A sign-in link that was followed before, or is over.
    LinkUsed,
    /// The caller lacks this permission.
    PermissionMissing(String),
    /// No such thing in the caller's firm.
    NotFound(&'static str),
    /// The request cannot be understood.
    Malformed(String),
    /// The name cannot be a key's.
    InvalidName(KeyNameError),
    /// The firm has as many live keys as it may (K12).
    FirmKeyLimit(u32),
    /// The creator has as many live keys as they may (K12).
    CreatorKeyLimit(u32),
    /// The Idempotency-Key was used for another name.
    IdempotencyConflict,
    /// A body that is not JSON.
    UnsupportedMediaType,
    /// A body over the limit, in bytes.
    PayloadTooLarge(usize),
    /// A body that does not come to its end.
    BodyTooSlow,
    /// The path knows other methods.
    MethodNotAllowed,
    /// Host names another server: a rebound DNS name, or a client that is lost.
    Misdirected,
    /// A browser sends a change from another site.
    CrossSite,
    /// The store did not answer.
    StoreUnavailable,
    /// The revocation may be made, but that no replica accepts the key could not be made sure.
    RevocationUnconfirmed,
    /// The identity provider's keys cannot be had.
    IssuerUnavailable,
    /// As many followers of the activity log as allowed.
    TooManyFollowers,
    /// A defect of ours, caught.
    Internal,
}

/// What follows from a problem.
struct Consequence {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    retry_after_seconds: Option<u64>,
}

/// The body of every refusal (RFC 9457).
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem, title = "Problem")]
pub(crate) struct ProblemBody {
    /// Where the code is explained.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The code in words.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What to do about it, in a sentence.
    pub(crate) detail: String,
    /// The reason, for programs.
    pub(crate) code: String,
    /// Names this request in the logs.
    pub(crate) request_id: String,
}

impl Problem {
    /// The same without a key that the caller wrote where it does not belong, such as a parameter's name.
    pub(crate) fn without_keys(self, namespace: &KeyNamespace) -> Self {
        match self {
            Self::Malformed(why) => Self::Malformed(namespace.hide_keys(&why).into_owned()),
            other => other,
        }
    }

    fn consequence(&self) -> Consequence {
        let row = |status, code, title| Consequence { status, code, title, retry_after_seconds: None };
        let later = |code, title| Consequence {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code,
            title,
            retry_after_seconds: Some(TRY_AGAIN_SECONDS),
        };
        match self {
            Self::TokenMissing | Self::TokenInvalid | Self::TokenExpired | Self::LinkUsed => {
                row(StatusCode::UNAUTHORIZED, "unauthorized", "Not signed in")
            }
            Self::PermissionMissing(_) => row(StatusCode::FORBIDDEN, "permission_missing", "Permission missing"),
            Self::NotFound(_) => row(StatusCode::NOT_FOUND, "not_found", "Not found"),
            Self::Malformed(_) => row(StatusCode::BAD_REQUEST, "malformed_request", "Malformed request"),
            Self::InvalidName(_) => row(StatusCode::UNPROCESSABLE_ENTITY, "invalid_name", "Invalid name"),
            Self::FirmKeyLimit(_) => row(StatusCode::CONFLICT, "firm_key_limit", "Too many keys in the firm"),
            Self::CreatorKeyLimit(_) => row(StatusCode::CONFLICT, "creator_key_limit", "Too many keys of one creator"),
            Self::IdempotencyConflict => row(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_conflict", "Idempotency-Key used before"),
            Self::UnsupportedMediaType => row(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Unsupported media type"),
            Self::PayloadTooLarge(_) => row(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "Payload too large"),
            Self::BodyTooSlow => row(StatusCode::REQUEST_TIMEOUT, "request_timeout", "Request too slow"),
            Self::MethodNotAllowed => row(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed"),
            Self::Misdirected => row(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", "Misdirected request"),
            Self::CrossSite => row(StatusCode::FORBIDDEN, "cross_site", "Cross-site request"),
            Self::StoreUnavailable => later("store_unavailable", "Store unavailable"),
            Self::RevocationUnconfirmed => later("revocation_unconfirmed", "Revocation not confirmed"),
            Self::IssuerUnavailable => later("issuer_unavailable", "Identity provider unavailable"),
            Self::TooManyFollowers => later("too_many_followers", "Too many followers"),
            Self::Internal => row(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal error"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::TokenMissing => "Send a user's token as Authorization: Bearer TOKEN.".into(),
            Self::TokenInvalid => "The token is not valid here; sign in again. API keys cannot be used on the admin API.".into(),
            Self::TokenExpired => "The token has expired; sign in again.".into(),
            Self::LinkUsed => "This sign-in link has been used already or is over ten minutes old; ask for a new one.".into(),
            Self::PermissionMissing(name) => format!("This needs the permission \"{name}\", which your token does not carry."),
            Self::NotFound(what) => format!("There is no such {what}."),
            Self::Malformed(why) => format!("The request cannot be understood: {why}."),
            Self::InvalidName(why) => format!("Choose another name: {why}."),
            Self::FirmKeyLimit(max) => {
                format!("Your firm has {max} active keys, which is the most it may have; revoke one that is no longer used.")
            }
            Self::CreatorKeyLimit(max) => {
                format!("You have created {max} active keys, which is the most one person may have; revoke one that is no longer used.")
            }
            Self::IdempotencyConflict => "This Idempotency-Key was used for a key with another name; use a fresh one.".into(),
            Self::UnsupportedMediaType => "Send the body as Content-Type: application/json.".into(),
            Self::PayloadTooLarge(max) => format!("The body is larger than {max} bytes."),
            Self::BodyTooSlow => "The body did not arrive in time.".into(),
            Self::MethodNotAllowed => "This path does not know the method; the Allow header names those it knows.".into(),
            Self::Misdirected => {
                "The Host of this request is not one of this listener's; add it as admin.public_url if it should be.".into()
            }
            Self::CrossSite => "A browser sent this change from another site, so it was refused.".into(),
            Self::StoreUnavailable => "The store does not answer at the moment; try again shortly.".into(),
            Self::RevocationUnconfirmed => "It could not be confirmed that every replica refuses the key; try again until it is.".into(),
            Self::IssuerUnavailable => {
                "The identity provider's keys cannot be read at the moment, so tokens cannot be checked; try again shortly.".into()
            }
            Self::TooManyFollowers => "Too many callers follow the activity log; try again shortly.".into(),
            Self::Internal => "The gateway failed to handle this request; the request id helps its operators to find out why.".into(),
        }
    }

    /// The public code, for logs.
    pub(crate) fn code(&self) -> &'static str {
        self.consequence().code
    }

    /// The whole answer.
    pub(super) fn render(&self, request_id: RequestId) -> Response {
        let consequence = self.consequence();
        let body = ProblemBody {
            kind: problem_type(consequence.code),
            title: consequence.title.into(),
            status: consequence.status.as_u16(),
            detail: self.detail(),
            code: consequence.code.into(),
            request_id: request_id.to_string(),
        };
        let text = serde_json::to_vec(&body).expect("a problem is plain data");
        let mut response = (consequence.status, [(header::CONTENT_TYPE, "application/problem+json")], text).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = consequence.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // RFC 6750 section 3: the error attribute only where a token was presented.
        match self {
            Self::TokenMissing => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"Assure Pro\""));
            }
            Self::TokenInvalid | Self::TokenExpired | Self::LinkUsed => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"Assure Pro\", error=\"invalid_token\""));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Carries the problem to the outermost layer, which renders it.
    fn into_response(self) -> Response {
        let mut response = self.consequence().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

//! Why a request was refused: one variant per reason, one table of what follows from it.
//!
//! Each variant is constructed in exactly one place, the step that checks; `tests/tidy.rs` counts. The client
//! learns the public code and a sentence; the audit record, the metric and the log get the variant's name.
//! Codes and statuses are the contract's.

use std::time::Duration;

/// The public code of a refusal, as in the contract's table.
pub type Code = &'static str;

/// A reason to refuse, with what the answer needs to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// The message cannot be framed safely (RFC 9112 section 6.3).
    FramingAmbiguous(&'static str),
    /// The request target could be read in two ways.
    TargetAmbiguous(&'static str),
    /// Host is missing, repeated, invalid or contradicted (RFC 9112 section 3.2).
    HostInvalid(&'static str),
    /// Two different keys were presented.
    CredentialsConflict,
    /// No key was presented.
    KeyMissing,
    /// What was presented is not a key: form or checksum are wrong.
    KeyMalformed,
    /// No such key was ever created.
    KeyUnknown,
    /// The key was revoked.
    KeyRevoked,
    /// A route denies this to every key, in the operator's words (K9).
    RouteDenied(Box<str>),
    /// The route demands a permission that the key does not hold (K11).
    PermissionMissing(Box<str>),
    /// The request names a firm that is not the key's (K10).
    FirmMismatch,
    /// No route matches.
    RouteUnknown,
    /// TRACE, TRACK, or CONNECT that is not an allowed WebSocket.
    MethodRefused,
    /// The body came too slowly.
    BodyTooSlow,
    /// Content-Length is over the limit; nothing was read.
    BodyDeclaredTooLarge,
    /// A body of undeclared length went over the limit.
    BodyGrewTooLarge,
    /// The request target is too long.
    TargetTooLong,
    /// The key's window is full (K13).
    WindowExhausted {
        /// After how long a permit is free; never too early.
        retry_after: Duration,
    },
    /// Too many or too large header fields.
    HeadersTooLarge,
    /// No connection to the upstream could be made.
    UpstreamUnreachable,
    /// The upstream broke off or answered with something that is not HTTP.
    UpstreamBroken,
    /// The store did not answer.
    StoreUnavailable,
    /// This replica cannot prove that its cache is current.
    ReplicaIncoherent,
    /// The use could not be written down, so it must not happen.
    AuditUnavailable,
    /// Every connection to the upstream is busy and the queue is full.
    UpstreamOverloaded,
    /// This replica is shutting down.
    Draining,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// A defect of ours, caught.
    Internal,
}

/// What follows from a rejection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consequence {
    /// The HTTP status.
    pub status: u16,
    /// The public code.
    pub code: Code,
    /// The variant's name, for records, metrics and logs.
    pub reason: &'static str,
    /// `Retry-After` in whole seconds where waiting helps.
    pub retry_after_seconds: Option<u64>,
}

const TRY_AGAIN_SECONDS: u64 = 1;

/// The `type` of a problem (RFC 9457 section 3.1.1): the README's table "Answers the gateway gives itself" explains each.
pub fn problem_type(code: Code) -> String {
    format!("https://gateway.assureone.ai/problems#{code}")
}

impl Rejection {
    /// The one table.
    pub fn consequence(&self) -> Consequence {
        let row = |status, code, reason| Consequence { status, code, reason, retry_after_seconds: None };
        let later = |code, reason| Consequence { status: 503, code, reason, retry_after_seconds: Some(TRY_AGAIN_SECONDS) };
        match self {
            Self::FramingAmbiguous(_) => row(400, "malformed_request", "framing_ambiguous"),
            Self::TargetAmbiguous(_) => row(400, "malformed_request", "target_ambiguous"),
            Self::HostInvalid(_) => row(400, "malformed_request", "host_invalid"),
            Self::CredentialsConflict => row(400, "malformed_request", "credentials_conflict"),
            Self::KeyMissing => row(401, "missing_key", "key_missing"),
            Self::KeyMalformed => row(401, "invalid_key", "key_malformed"),
            Self::KeyUnknown => row(401, "invalid_key", "key_unknown"),
            Self::KeyRevoked => row(401, "invalid_key", "key_revoked"),
            Self::RouteDenied(_) => row(403, "route_denied", "route_denied"),
            Self::PermissionMissing(_) => row(403, "permission_missing", "permission_missing"),
            Self::FirmMismatch => row(403, "wrong_firm", "firm_mismatch"),
            Self::RouteUnknown => row(404, "no_route", "route_unknown"),
            Self::MethodRefused => row(405, "method_not_allowed", "method_refused"),
            Self::BodyTooSlow => row(408, "request_timeout", "body_too_slow"),
            Self::BodyDeclaredTooLarge => row(413, "request_too_large", "body_declared_too_large"),
            Self::BodyGrewTooLarge => row(413, "request_too_large", "body_grew_too_large"),
            Self::TargetTooLong => row(414, "target_too_long", "target_too_long"),
            Self::WindowExhausted { retry_after } => Consequence {
                status: 429,
                code: "rate_limited",
                reason: "window_exhausted",
                retry_after_seconds: Some(whole_seconds_up(*retry_after)),
            },
            Self::HeadersTooLarge => row(431, "headers_too_large", "headers_too_large"),
            Self::UpstreamUnreachable => row(502, "upstream_unreachable", "upstream_unreachable"),
            Self::UpstreamBroken => row(502, "upstream_broken", "upstream_broken"),
            Self::StoreUnavailable => later("store_unavailable", "store_unavailable"),
            Self::ReplicaIncoherent => later("store_unavailable", "replica_incoherent"),
            Self::AuditUnavailable => later("audit_unavailable", "audit_unavailable"),
            Self::UpstreamOverloaded => later("upstream_overloaded", "upstream_overloaded"),
            Self::Draining => later("draining", "draining"),
            Self::UpstreamTimeout => row(504, "upstream_timeout", "upstream_timeout"),
            Self::Internal => row(500, "internal_error", "internal"),
        }
    }

    /// One sentence that the author of a tool can act on. Says nothing that tells keys apart.
    pub fn detail(&self) -> String {
        match self {
            Self::FramingAmbiguous(what) | Self::TargetAmbiguous(what) | Self::HostInvalid(what) => (*what).to_owned(),
            Self::CredentialsConflict => {
                "Two different keys were presented; send exactly one, as Authorization: Bearer KEY or as X-Api-Key: KEY.".into()
            }
            Self::KeyMissing => "Send your API key as Authorization: Bearer KEY or as X-Api-Key: KEY.".into(),
            Self::KeyMalformed | Self::KeyUnknown | Self::KeyRevoked => {
                "This API key is not valid. It may have been mistyped or revoked; ask your firm's administrator for a new one.".into()
            }
            Self::RouteDenied(message) => format!("{message}."),
            Self::PermissionMissing(name) => format!(
                "This API key does not hold the permission \"{name}\". Keys keep the permissions their creator had when they were created."
            ),
            Self::FirmMismatch => "This API key belongs to another firm than the one named in the request.".into(),
            Self::RouteUnknown => "No route of this gateway matches the request's method, host and path.".into(),
            Self::MethodRefused => "This method is not allowed here.".into(),
            Self::BodyTooSlow => "The request body arrived too slowly; send it without long pauses.".into(),
            Self::BodyDeclaredTooLarge | Self::BodyGrewTooLarge => {
                "The request body is larger than this gateway accepts; shrink it or split it into several requests.".into()
            }
            Self::TargetTooLong => "The request target is too long; move parameters into the body.".into(),
            Self::WindowExhausted { .. } => {
                "This API key has used all its requests of the last 60 seconds; slow down and try again after the time in Retry-After."
                    .into()
            }
            Self::HeadersTooLarge => "The request's header fields are too many or too large.".into(),
            Self::UpstreamUnreachable => "The service behind this gateway could not be reached.".into(),
            Self::UpstreamBroken => "The service behind this gateway broke off its answer.".into(),
            Self::StoreUnavailable => {
                "The gateway cannot look up keys at the moment; nothing is wrong with your request, try again shortly.".into()
            }
            Self::ReplicaIncoherent => "This gateway cannot confirm at the moment that its keys are current; try again shortly.".into(),
            Self::AuditUnavailable => {
                "The gateway cannot record requests at the moment, so it does not forward them; try again shortly.".into()
            }
            Self::UpstreamOverloaded => "The service behind this gateway is busy; try again shortly.".into(),
            Self::Draining => "This gateway is restarting; try again, another one will answer.".into(),
            Self::UpstreamTimeout => "The service behind this gateway did not answer in time.".into(),
            Self::Internal => "The gateway failed to handle this request; the request id helps its operators to find out why.".into(),
        }
    }

    /// Whether the refusal spends a permit of the key's window: all that come after the window step do.
    pub fn spends_permit(&self) -> bool {
        match self {
            Self::RouteDenied(_) | Self::PermissionMissing(_) | Self::FirmMismatch | Self::RouteUnknown => true,
            Self::BodyTooSlow | Self::BodyGrewTooLarge | Self::Internal => true,
            Self::UpstreamUnreachable | Self::UpstreamBroken | Self::UpstreamOverloaded | Self::UpstreamTimeout => true,
            Self::AuditUnavailable => true,
            Self::FramingAmbiguous(_) | Self::TargetAmbiguous(_) | Self::HostInvalid(_) | Self::TargetTooLong => false,
            Self::CredentialsConflict | Self::KeyMissing | Self::KeyMalformed | Self::KeyUnknown | Self::KeyRevoked => false,
            Self::MethodRefused | Self::HeadersTooLarge | Self::BodyDeclaredTooLarge => false,
            // Whoever is cut while draining has passed the window step in all likelihood; a window must never hold too little.
            Self::Draining => true,
            Self::WindowExhausted { .. } | Self::StoreUnavailable | Self::ReplicaIncoherent => false,
        }
    }
}

/// Reasons that spend no permit, as records carry them: refused before or by the window step, or instead of it.
const REASONS_WITHOUT_PERMIT: &[&str] = &[
    "framing_ambiguous",
    "target_ambiguous",
    "host_invalid",
    "target_too_long",
    "credentials_conflict",
    "key_missing",
    "key_malformed",
    "key_unknown",
    "key_revoked",
    "method_refused",
    "headers_too_large",
    "body_declared_too_large",
    "window_exhausted",
    "store_unavailable",
    "replica_incoherent",
];

/// What [`Rejection::spends_permit`] said of the refusal that a record's `reason` names. A reason that is not
/// known here may come from a later version; it counts, because a window must never hold too little.
pub fn reason_spends_permit(reason: &str) -> bool {
    !REASONS_WITHOUT_PERMIT.contains(&reason)
}

/// Rounds up, so that `Retry-After` is never too early (RFC 9110 section 10.2.3 counts whole seconds).
fn whole_seconds_up(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

/// One of each; the match below fails to compile when a variant is missing from it.
#[cfg(test)]
pub(super) fn one_of_each() -> Vec<Rejection> {
    use Rejection::*;
    let text = || "x".into();
    let all = vec![
        FramingAmbiguous("x"),
        TargetAmbiguous("x"),
        HostInvalid("x"),
        CredentialsConflict,
        KeyMissing,
        KeyMalformed,
        KeyUnknown,
        KeyRevoked,
        RouteDenied(text()),
        PermissionMissing(text()),
        FirmMismatch,
        RouteUnknown,
        MethodRefused,
        BodyTooSlow,
        BodyDeclaredTooLarge,
        BodyGrewTooLarge,
        TargetTooLong,
        WindowExhausted { retry_after: Duration::ZERO },
        HeadersTooLarge,
        UpstreamUnreachable,
        UpstreamBroken,
        StoreUnavailable,
        ReplicaIncoherent,
        AuditUnavailable,
        UpstreamOverloaded,
        Draining,
        UpstreamTimeout,
        Internal,
    ];
    let counted = all.iter().filter(|rejection| match rejection {
        FramingAmbiguous(_) | TargetAmbiguous(_) | HostInvalid(_) | CredentialsConflict | KeyMissing | KeyMalformed | KeyUnknown => true,
        KeyRevoked | RouteDenied(_) | PermissionMissing(_) | FirmMismatch | RouteUnknown | MethodRefused | BodyTooSlow => true,
        BodyDeclaredTooLarge | BodyGrewTooLarge | TargetTooLong | WindowExhausted { .. } | HeadersTooLarge => true,
        UpstreamUnreachable | UpstreamBroken | StoreUnavailable | ReplicaIncoherent | AuditUnavailable | UpstreamOverloaded => true,
        Draining | UpstreamTimeout | Internal => true,
    });
    assert_eq!(counted.count(), 28);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_read_back_spends_a_permit_exactly_when_its_rejection_did() {
        for rejection in one_of_each() {
            assert_eq!(reason_spends_permit(rejection.consequence().reason), rejection.spends_permit(), "{rejection:?}");
        }
        assert!(reason_spends_permit("a_reason_of_a_later_version"));
    }

    #[test]
    fn retry_after_is_never_too_early() {
        for (millis, seconds) in [(1, 1), (1_000, 1), (1_001, 2), (59_999, 60)] {
            let rejection = Rejection::WindowExhausted { retry_after: Duration::from_millis(millis) };
            assert_eq!(rejection.consequence().retry_after_seconds, Some(seconds));
        }
    }
}

//! The proof that a request is a user's, and what that user may do.
//!
//! `Caller` is made only from a token that was verified, whether it came as a bearer or in the page's cookie; `Viewer` and `Editor` only from a caller whose token
//! carries the permission. Handlers ask for one of them as an argument, so that none can forget the check (K15).

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;

use super::{TokenFault, cookie};
use crate::admin::Settings;
use crate::admin::problem::Problem;
use crate::admin::server::Shared;
use crate::domain::{FirmId, FrozenPermissions, Timestamp, UserId};

/// A user of a firm, as a verified token names them.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    firm: FirmId,
    user: UserId,
    name: Option<Box<str>>,
    permissions: FrozenPermissions,
    issued: Timestamp,
    expires: Timestamp,
}

/// A caller who may list keys and read the log.
pub(crate) struct Viewer(pub(crate) Caller);

/// A caller who may create and revoke keys.
pub(crate) struct Editor(pub(crate) Caller);

impl Caller {
    /// Called by the verifier alone.
    pub(super) fn new(
        firm: FirmId,
        user: UserId,
        name: Option<Box<str>>,
        permissions: FrozenPermissions,
        (issued, expires): (Timestamp, Timestamp),
    ) -> Self {
        Self { firm, user, name, permissions, issued, expires }
    }

    /// The firm whose data this caller sees, and no other's (K10).
    pub(crate) fn firm(&self) -> &FirmId {
        &self.firm
    }

    /// The user's id.
    pub(crate) fn user(&self) -> &UserId {
        &self.user
    }

    /// The user's name, where the token gives one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What the user may do, and what a key they create may do (K4).
    pub(crate) fn permissions(&self) -> &FrozenPermissions {
        &self.permissions
    }

    /// When the token was issued, and so what it says was true.
    pub(crate) fn issued(&self) -> Timestamp {
        self.issued
    }

    /// When the token ends.
    pub(crate) fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Problem> {
        let settings = shared.settings();
        // A token that is presented counts, whatever the browser adds.
        let session = if parts.headers.contains_key(header::AUTHORIZATION) { None } else { settings.session.find(&parts.headers)? };
        match session {
            None => verified(&settings, bearer(parts)?).await,
            Some(token) => {
                cookie::check_site(&parts.method, &parts.headers)?;
                verified(&settings, token).await
            }
        }
    }
}

/// The caller that a token names.
pub(crate) async fn verified(settings: &Settings, token: &str) -> Result<Caller, Problem> {
    settings.verifier.verify(token, crate::clock::wall_now()).await.map_err(|fault| {
        tracing::debug!(%fault, "a token was refused");
        match fault {
            TokenFault::Expired => Problem::TokenExpired,
            TokenFault::IssuerUnavailable => Problem::IssuerUnavailable,
            _ => Problem::TokenInvalid,
        }
    })
}

/// The token of the one Authorization header; two are refused, not chosen between.
fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let mut lines = parts.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), repeated) = (lines.next(), lines.next()) else { return Err(Problem::TokenMissing) };
    if repeated.is_some() {
        return Err(Problem::Malformed("it has two Authorization headers".into()));
    }
    let line = line.to_str().map_err(|_| Problem::TokenInvalid)?;
    let (scheme, token) = line.split_once(' ').unwrap_or((line, ""));
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Problem::TokenMissing);
    }
    Ok(token)
}

impl FromRequestParts<Shared> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, shared).await?;
        let settings = shared.settings();
        if !caller.permissions.allows(&settings.permissions.view) {
            return Err(Problem::PermissionMissing(settings.permissions.view.clone()));
        }
        Ok(Self(caller))
    }
}

impl FromRequestParts<Shared> for Editor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, shared).await?;
        let settings = shared.settings();
        if !caller.permissions.allows(&settings.permissions.edit) {
            return Err(Problem::PermissionMissing(settings.permissions.edit.clone()));
        }
        Ok(Self(caller))
    }
}

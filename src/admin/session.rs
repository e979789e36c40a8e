//! Signing in to the page and out of it.
//!
//! The dashboard sends its user here with a form that holds their token; a program sends JSON; the demo's link holds a code
//! that is exchanged once. What comes back is the page's cookie. An API key is no token, so it never begins a session (K9).

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::{Zeroize, Zeroizing};

use super::auth::{Caller, TOKEN_BYTES_MAX, verified};
use super::problem::Problem;
use super::request::JsonOrForm;
use super::server::Shared;
use super::whoami::Whoami;
use crate::clock;

/// Where sessions begin and end.
pub(super) const PATH: &str = "/v1/session";
/// Where the page says that it could not sign somebody in.
const REFUSED: HeaderValue = HeaderValue::from_static("/#refused");

/// Who wants to sign in: one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BeginSession {
    /// A user's token.
    token: Option<String>,
    /// The code of a sign-in link, which works once.
    code: Option<String>,
}

impl Drop for BeginSession {
    fn drop(&mut self) {
        self.token.zeroize();
        self.code.zeroize();
    }
}

/// Begins a session on the page: sets the cookie, which ends no later than the token. A form is answered with a redirect to the page.
#[utoipa::path(
    post, path = "/v1/session", tag = "session", request_body(content((BeginSession = "application/json"), (BeginSession = "application/x-www-form-urlencoded"))),
    responses((status = 200, description = "Signed in; who that is.", body = Whoami), (status = 303, description = "The answer to a form: on to the page."))
)]
pub(super) async fn begin(State(shared): State<Shared>, asked: JsonOrForm<BeginSession>) -> Result<Response, Problem> {
    match asked {
        JsonOrForm::Json(asked) => {
            let (caller, cookie) = begun(&shared, &asked).await?;
            Ok(([(header::SET_COOKIE, cookie)], Json(Whoami::of(&caller, &shared.settings()))).into_response())
        }
        JsonOrForm::Form(asked) => match begun(&shared, &asked).await {
            Ok((_, cookie)) => {
                let page = HeaderValue::from_static("/");
                Ok((StatusCode::SEE_OTHER, [(header::LOCATION, page), (header::SET_COOKIE, cookie)]).into_response())
            }
            // A person who is shown JSON is not helped; the page says what to do.
            Err(_) => Ok((StatusCode::SEE_OTHER, [(header::LOCATION, REFUSED)]).into_response()),
        },
    }
}

/// Ends the session on the page. The token itself lives on wherever else it is.
#[utoipa::path(delete, path = "/v1/session", tag = "session", responses((status = 204, description = "Signed out.")))]
pub(super) async fn end(State(shared): State<Shared>) -> Response {
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, shared.settings().session.end())]).into_response()
}

async fn begun(shared: &Shared, asked: &BeginSession) -> Result<(Caller, HeaderValue), Problem> {
    let token = match (&asked.token, &asked.code) {
        (Some(token), None) => Zeroizing::new(token.trim().to_owned()),
        (None, Some(code)) => shared.state.links.redeem(code).ok_or(Problem::LinkUsed)?,
        _ => return Err(Problem::Malformed("it has to hold a token or a code".into())),
    };
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Problem::Malformed(format!("its token is over {TOKEN_BYTES_MAX} bytes, which no browser keeps as a session")));
    }
    let settings = shared.settings();
    let caller = verified(&settings, &token).await?;
    let seconds = caller.expires().seconds().saturating_sub(clock::wall_now().seconds());
    if seconds < 1 {
        return Err(Problem::TokenExpired);
    }
    let cookie = settings.session.begin(&token, seconds);
    Ok((caller, cookie))
}

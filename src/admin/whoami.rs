//! Who the caller is and what they may do here: what a page needs to show or hide its buttons.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Settings;
use super::auth::Caller;
use super::server::Shared;

/// The caller.
#[derive(Serialize, ToSchema)]
pub(super) struct Whoami {
    /// The user's id.
    user: String,
    /// The user's firm.
    firm: String,
    /// The user's name, where the token gives one.
    name: Option<String>,
    /// What the user may do, and what a key they create may do.
    permissions: Vec<String>,
    /// What of it counts here.
    may: May,
    /// When the token ends, and the page's session with it.
    #[schema(format = DateTime)]
    expires_at: String,
}

impl Whoami {
    /// Describes a caller.
    pub(super) fn of(caller: &Caller, settings: &Settings) -> Self {
        let names = &settings.permissions;
        Self {
            user: caller.user().to_string(),
            firm: caller.firm().to_string(),
            name: caller.name().map(str::to_owned),
            permissions: caller.permissions().names().map(str::to_owned).collect(),
            may: May { view: caller.permissions().allows(&names.view), edit: caller.permissions().allows(&names.edit) },
            expires_at: caller.expires().to_string(),
        }
    }
}

/// The two permissions that manage keys.
#[derive(Serialize, ToSchema)]
pub(super) struct May {
    /// List keys and read the log.
    view: bool,
    /// Create and revoke keys.
    edit: bool,
}

/// Who is calling and what they may do.
#[utoipa::path(get, path = "/v1/whoami", tag = "whoami", security(("bearer" = [])), responses((status = 200, description = "The caller.", body = Whoami)))]
pub(super) async fn whoami(State(shared): State<Shared>, caller: Caller) -> Json<Whoami> {
    Json(Whoami::of(&caller, &shared.settings()))
}

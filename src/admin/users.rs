//! What the dashboard tells of a firm's users, so that the list of keys can warn (K19).
//!
//! Told here or by a token, it changes no key: a key does what its creator could do when it was created (K4 to K6). The
//! newer word counts. It is kept of people who have live keys, which are the only ones that it can matter for: who creates
//! a key later shows a token then.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, Editor, freeze_permissions};
use super::problem::Problem;
use super::request::{StrictJson, UserInPath};
use super::server::{Inner, Shared};
use super::views::{CreatorStatus, Key, Status, status};
use crate::clock;
use crate::domain::UserId;
use crate::store::{KeyView, KnownUser, Standing};

/// Longest name of a user, in characters.
const NAME_CHARS_MAX: usize = 200;

/// A user as they are now.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TellUser {
    /// Whether they are still there.
    status: CreatorStatus,
    /// What they may do now; needed where they are active.
    permissions: Option<Vec<String>>,
    /// What they are called, if that is to change: at most 200 characters, none of them a control character.
    #[schema(max_length = 200)]
    name: Option<String>,
}

/// What is known of a user, and the keys that go on working for them.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    /// The user's id.
    id: String,
    /// What they are called.
    name: Option<String>,
    /// Whether they are still there.
    status: CreatorStatus,
    /// What they may do now.
    permissions: Vec<String>,
    /// Their live keys: to be looked at when somebody leaves.
    keys: Vec<Key>,
}

/// Tells what a user of the firm may do now, or that they have left. Changes no key; the list of keys warns of theirs.
#[utoipa::path(
    put, path = "/v1/users/{id}", tag = "users", security(("bearer" = [])), params(("id" = String, Path, description = "The user's id.")),
    request_body = TellUser, responses((status = 200, description = "What is now known of the user, and their live keys.", body = User))
)]
pub(super) async fn tell(
    State(shared): State<Shared>,
    Editor(caller): Editor,
    UserInPath(user): UserInPath,
    body: StrictJson<TellUser>,
) -> Result<Json<User>, Problem> {
    let now = clock::wall_now();
    let mut told = known(user.clone(), body.required()?)?;
    let views = shared.read("keys", shared.state.store.keys(caller.firm().clone())).await?;
    let own: Vec<&KeyView> = live_keys_of(&views, &user).collect();
    if !own.is_empty() {
        if told.name.is_none() {
            let known = shared.read("users", shared.state.store.users(caller.firm().clone())).await?;
            told.name = known.into_iter().find(|known| known.user == told.user).and_then(|known| known.name);
        }
        shared.read("note_user", shared.state.store.note_user(caller.firm().clone(), told.clone())).await?;
    }
    let keys = own.iter().map(|view| Key::show(view, std::slice::from_ref(&told), now)).collect();
    let permissions = told.permissions.names().map(str::to_owned).collect();
    Ok(Json(User { id: told.user.to_string(), name: told.name, status: told.standing.into(), permissions, keys }))
}

fn known(user: UserId, told: TellUser) -> Result<KnownUser, Problem> {
    let wrong = |why: &str| Problem::Malformed(why.to_owned());
    let standing = Standing::from(told.status);
    let names = match (standing, &told.permissions) {
        (Standing::Active, None) => return Err(wrong("an active user's permissions are missing")),
        (_, permissions) => permissions.as_deref().unwrap_or_default(),
    };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let permissions =
        freeze_permissions(&names).ok_or_else(|| wrong("a permission's name is too long or no text, or there are too many"))?;
    let is_good = |name: &String| name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control);
    if told.name.as_ref().is_some_and(|name| !is_good(name)) {
        return Err(wrong("a user's name has at most 200 characters and no control characters"));
    }
    Ok(KnownUser { user, name: told.name.filter(|name| !name.is_empty()), standing, permissions, as_of: clock::wall_now() })
}

fn live_keys_of<'a>(views: &'a [KeyView], user: &'a UserId) -> impl Iterator<Item = &'a KeyView> {
    views.iter().filter(move |view| status(&view.record) == Status::Active && view.record.creator == *user)
}

impl Inner {
    /// What is known of the users of the caller's firm, with what the caller's own token tells where it is news. A store
    /// that fails here costs warnings and nothing else.
    pub(super) async fn known_users(&self, caller: &Caller, views: &[KeyView]) -> Vec<KnownUser> {
        let read = self.read("users", self.state.store.users(caller.firm().clone())).await;
        let Ok(mut users) = read else { return Vec::new() };
        let told = KnownUser {
            user: caller.user().clone(),
            name: caller.name().map(str::to_owned),
            standing: Standing::Active,
            permissions: caller.permissions().clone(),
            as_of: caller.issued(),
        };
        let is_news = match users.iter().find(|known| known.user == told.user) {
            Some(known) => known.as_of < told.as_of && KnownUser { as_of: told.as_of, ..known.clone() } != told,
            None => true,
        };
        if is_news && live_keys_of(views, &told.user).next().is_some() {
            users.retain(|known| known.user != told.user);
            users.push(told.clone());
            if self.read("note_user", self.state.store.note_user(caller.firm().clone(), told)).await.is_err() {
                tracing::debug!("what a token tells of its user was not kept");
            }
        }
        users
    }
}

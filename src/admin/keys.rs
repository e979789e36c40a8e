//! Create, list, show, revoke, look up.
//!
//! Firm, creator and permissions of a new key are the token's, never the body's (K4, K10). A change runs in a task
//! of its own, so that a caller who goes away leaves it neither half done nor unknown to this replica's cache.
//! Create answers when the key works on every replica, revoke when none accepts it (K7), or with 503. A creation whose
//! answer was lost is asked for again under the same id, which is the same call (protocol 4); what stays in doubt after
//! that, and so may be a live key that nobody holds, is revoked as soon as the store answers.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};
use zeroize::{Zeroize, Zeroizing};

use super::auth::{Editor, Viewer};
use super::problem::Problem;
use super::request::{KeyInPath, Origin, StrictJson, StrictQuery};
use super::server::{Inner, Shared};
use super::views::{CreatedKey, Key, KeyLimits, KeyList, RevocationProof, RevokedKey, Status, status};
use crate::clock;
use crate::coherence::Change;
use crate::deadline::within;
use crate::domain::{Action, FirmTag, KeyId, KeyName, KeyNameError, KeyRecord, KeySecret, KeyState, ParsedKey, UserId};
use crate::store::{Creation, KeyView, NewKey, Revocation, RevokeRequest, StoreError};

const ABANDONED: &str = "the store did not answer a creation, so there may be a live key that nobody holds: revoke it";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest Idempotency-Key, in characters: five UUIDs.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 200;
/// Longest reason of a revocation, in characters.
const REASON_CHARS_MAX: usize = 500;
/// How long a reading call waits for the store.
const READ_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a changing call waits: longer than the longest lease, which a dead replica makes a revocation wait, and than
/// a creation that is asked for twice and then settled.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(40);
/// How long after its first failure a creation is asked for again, and the pause before each time: as long as a lost
/// connection needs to be replaced.
const REPEAT_MAX: Duration = Duration::from_secs(3);
const REPEAT_PAUSE: Duration = Duration::from_millis(100);
/// First and longest pause between attempts to revoke what a creation in doubt may have left, and when that ends.
const ABANDONED_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const ABANDONED_MAX: Duration = Duration::from_secs(3_600);

/// A key to be created.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateKey {
    /// What people will call it: 1 to 100 characters, none of them a control character.
    #[schema(example = "MCP server", min_length = 1)]
    name: String,
}

/// Why a key is revoked.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeKey {
    /// For the log: at most 500 characters, none of them a control character.
    #[serde(default)]
    #[schema(example = "rotated", max_length = 500)]
    reason: String,
}

/// A key to be looked up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LookUpKey {
    /// The whole key.
    key: String,
}

impl Drop for LookUpKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Which keys to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only keys of this status; all by default.
    #[param(inline)]
    #[serde(default)]
    status: StatusFilter,
    /// Only keys that this user created.
    #[param(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    creator: Option<String>,
}

/// A status, or all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StatusFilter {
    /// Usable keys.
    Active,
    /// Revoked keys.
    Revoked,
    /// Both.
    #[default]
    All,
}

impl StatusFilter {
    fn admits(self, status: Status) -> bool {
        matches!((self, status), (Self::All, _) | (Self::Active, Status::Active) | (Self::Revoked, Status::Revoked))
    }
}

/// Creates a key with the caller's permissions. The answer is the only one that ever shows the whole key.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", security(("bearer" = [])), request_body = CreateKey,
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[ -~]+$", description = "Makes a repeated call create one key: 1 to 200 printable characters, remembered for 24 hours. A repeat answers the same without `key`.")),
    responses((status = 201, description = "The key, shown once.", body = CreatedKey))
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Editor(caller): Editor,
    origin: Origin,
    headers: HeaderMap,
    body: StrictJson<CreateKey>,
) -> Result<Response, Problem> {
    let name = KeyName::parse(&body.required()?.name).map_err(Problem::InvalidName)?;
    if shared.state.namespace.is_in(name.as_str()) {
        return Err(Problem::InvalidName(KeyNameError::Secret));
    }
    let idempotency_key = idempotency_key(&headers)?;
    // It is kept as it is.
    if idempotency_key.as_deref().is_some_and(|text| shared.state.namespace.is_in(text)) {
        return Err(Problem::Malformed("its Idempotency-Key contains an API key; use a random one, such as a UUID".into()));
    }
    let settings = shared.settings();
    let secret = KeySecret::generate(&shared.state.namespace, caller.firm());
    let id = KeyId::new(clock::fresh_uuid());
    let prefix = secret.display_prefix();
    let request_id = origin.request_id();
    let mut audit = origin.record(Action::Create, caller.firm(), id, caller.user(), &settings.replica);
    audit.key_name = name.as_str().to_owned();
    audit.key_prefix = prefix.clone();
    let record = KeyRecord {
        id,
        digest: secret.digest(),
        name,
        prefix: prefix.into(),
        firm_id: caller.firm().clone(),
        creator: caller.user().clone(),
        creator_name: caller.name().map(Into::into),
        permissions: caller.permissions().clone(),
        created_at: clock::wall_now(),
        state: KeyState::Live,
    };
    let wanted = record.name.clone();
    let new = NewKey { record, firm_max: settings.per_firm_max, creator_max: settings.per_creator_max, idempotency_key, audit };
    let change = shared.clone();
    let creation = detached(&shared, async move { change.create_and_settle(new).await }).await.ok_or(Problem::StoreUnavailable)??;
    let revealed = |record: &KeyRecord| {
        tracing::info!(%request_id, key = %record.id, "a key was created");
        Ok(created(record, Some(secret.reveal())))
    };
    match creation {
        Creation::Created(record, ..) => revealed(&record),
        Creation::Replayed(record) if record.id == id => revealed(&record),
        Creation::Replayed(record) if record.name != wanted => Err(Problem::IdempotencyConflict),
        Creation::Replayed(record) => Ok(created(&record, None)),
        Creation::FirmFull => Err(Problem::FirmKeyLimit(settings.per_firm_max)),
        Creation::CreatorFull => Err(Problem::CreatorKeyLimit(settings.per_creator_max)),
    }
}

/// Lists the firm's keys.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", security(("bearer" = [])), params(ListQuery), responses((status = 200, description = "The keys.", body = KeyList)))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Viewer(caller): Viewer,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<KeyList>, Problem> {
    let creator = query
        .creator
        .as_deref()
        .map(UserId::parse)
        .transpose()
        .map_err(|why| Problem::Malformed(format!("its creator is not a user id: {why}")))?;
    let settings = shared.settings();
    let views = shared.read("keys", shared.state.store.keys(caller.firm().clone())).await?;
    let live = || views.iter().filter(|view| status(&view.record) == Status::Active);
    let limits = KeyLimits {
        per_firm_max: settings.per_firm_max,
        per_creator_max: settings.per_creator_max,
        firm_active: live().count(),
        creator_active: live().filter(|view| view.record.creator == *caller.user()).count(),
    };
    let is_asked_for = |view: &&KeyView| {
        query.status.admits(status(&view.record)) && creator.as_ref().is_none_or(|creator| view.record.creator == *creator)
    };
    let now = clock::wall_now();
    let users = shared.known_users(&caller, &views).await;
    Ok(Json(KeyList { keys: views.iter().filter(is_asked_for).map(|view| Key::show(view, &users, now)).collect(), limits }))
}

/// Shows one key of the firm.
#[utoipa::path(
    get, path = "/v1/keys/{id}", tag = "keys", security(("bearer" = [])), params(("id" = String, Path, format = Uuid, description = "The key's id.")),
    responses((status = 200, description = "The key.", body = Key))
)]
pub(super) async fn show(State(shared): State<Shared>, Viewer(caller): Viewer, KeyInPath(id): KeyInPath) -> Result<Json<Key>, Problem> {
    let view = shared.read("key", shared.state.store.key(caller.firm().clone(), id)).await?.ok_or(Problem::NotFound("key"))?;
    let users = shared.known_users(&caller, std::slice::from_ref(&view)).await;
    Ok(Json(Key::show(&view, &users, clock::wall_now())))
}

/// Says which key of the firm this is, for "which key is this?" after a leak. The key is compared by its digest.
#[utoipa::path(
    post, path = "/v1/keys/lookup", tag = "keys", security(("bearer" = [])), request_body = LookUpKey,
    responses((status = 200, description = "The key.", body = Key))
)]
pub(super) async fn lookup(
    State(shared): State<Shared>,
    Viewer(caller): Viewer,
    body: StrictJson<LookUpKey>,
) -> Result<Json<Key>, Problem> {
    let presented = body.required()?;
    let ParsedKey { digest, tag } = shared.state.namespace.parse_key(presented.key.as_bytes()).ok_or(Problem::NotFound("key"))?;
    let found = shared.read("find", shared.state.store.find(tag, digest)).await?;
    // Another firm's key is not found, as if it did not exist (K10).
    let record = found.record.filter(|record| record.firm_id == *caller.firm()).ok_or(Problem::NotFound("key"))?;
    let view = shared.read("key", shared.state.store.key(caller.firm().clone(), record.id)).await?.ok_or(Problem::NotFound("key"))?;
    let users = shared.known_users(&caller, std::slice::from_ref(&view)).await;
    Ok(Json(Key::show(&view, &users, clock::wall_now())))
}

/// Revokes a key. When this answers 200, no replica accepts it any more. Repeating it changes nothing.
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "keys", security(("bearer" = [])), params(("id" = String, Path, format = Uuid, description = "The key's id.")),
    request_body = Option<RevokeKey>, responses((status = 200, description = "The key is dead everywhere.", body = RevokedKey))
)]
pub(super) async fn revoke(
    State(shared): State<Shared>,
    Editor(caller): Editor,
    KeyInPath(id): KeyInPath,
    origin: Origin,
    body: StrictJson<RevokeKey>,
) -> Result<Json<RevokedKey>, Problem> {
    let reason = body.0.unwrap_or_default().reason;
    check_reason(&reason)?;
    // Hidden and not refused: who revokes a leaked key and pastes it here is in a hurry.
    let reason = shared.state.namespace.hide_keys(&reason).into_owned();
    let request_id = origin.request_id();
    let settings = shared.settings();
    let mut audit = origin.record(Action::Revoke, caller.firm(), id, caller.user(), &settings.replica);
    audit.reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
    let request = RevokeRequest { firm: caller.firm().clone(), key: id, by: caller.user().clone(), reason, audit };
    let change = shared.clone();
    let (record, proof) =
        detached(&shared, async move { change.revoke_and_settle(request).await }).await.ok_or(Problem::RevocationUnconfirmed)??;
    tracing::info!(%request_id, key = %record.id, "a key was revoked");
    // The revocation is proven; what is known of the key's uses is a courtesy that may not spoil the answer.
    let view = shared.read("key", shared.state.store.key(caller.firm().clone(), id)).await.ok().flatten();
    let view = view.unwrap_or(KeyView { record, last_use: None, seen_with: Vec::new(), hours: Vec::new() });
    let users = shared.known_users(&caller, std::slice::from_ref(&view)).await;
    Ok(Json(RevokedKey { key: Key::show(&view, &users, clock::wall_now()), revocation: proof }))
}

impl Shared {
    async fn create_and_settle(self, new: NewKey) -> Result<Creation, Problem> {
        let (id, tag, digest) = (new.record.id, FirmTag::of(&new.record.firm_id), new.record.digest);
        let asked = self.state.coherence.moment();
        let creation = match self.ask("create", self.create_repeatedly(&new)).await {
            Ok(creation) => creation,
            Err(problem) => {
                let (admin, stopping) = (self.clone(), self.state.tasks.stopping());
                self.state.tasks.spawn("abandoned key", async move {
                    tokio::select! {
                        () = admin.revoke_abandoned(new) => {}
                        () = stopping.cancelled() => tracing::warn!(key = %id, "{ABANDONED}"),
                    }
                });
                return Err(problem);
            }
        };
        let committed = clock::boot_now();
        let place = match &creation {
            Creation::Created(_, partition, epoch) => Some((*partition, *epoch)),
            // Created by this very call, whose answer was lost; what is true now was true when it was made.
            Creation::Replayed(record) if record.id == id => {
                self.ask("find", self.state.store.find(tag, digest)).await.ok().map(|found| (found.partition, found.epoch))
            }
            _ => return Ok(creation),
        };
        self.state.metrics.audit_records.with_label_values(&["key.create", "allowed"]).inc();
        let is_settled = match place {
            Some((partition, epoch)) => self.state.coherence.settle_creation(Change { partition, epoch, committed, asked }).await.is_ok(),
            None => false,
        };
        // The key exists and its text is nowhere but here: to withhold it now would leave a live key that
        // nobody holds. At worst another replica refuses it for the life of a negative cache entry.
        if !is_settled {
            tracing::warn!(key = %id, "a new key may be unknown to other replicas for a moment");
        }
        Ok(creation)
    }
}

impl Inner {
    /// The same call again while its answer is in doubt.
    async fn create_repeatedly(&self, new: &NewKey) -> Result<Creation, StoreError> {
        let mut until = None;
        loop {
            match self.state.store.create(new.clone()).await {
                Err(StoreError::Unavailable(_)) if clock::boot_now() < *until.get_or_insert_with(|| clock::boot_now().plus(REPEAT_MAX)) => {
                    tokio::time::sleep(REPEAT_PAUSE).await;
                }
                decided => return decided,
            }
        }
    }

    /// Revokes what a creation in doubt may have left, once the store answers; what it never made is not found.
    async fn revoke_abandoned(&self, new: NewKey) {
        let NewKey { record: KeyRecord { id: key, firm_id: firm, creator: by, .. }, mut audit, .. } = new;
        let reason = "the answer to its creation was lost, so nobody holds it".to_owned();
        (audit.action, audit.event_id, audit.reason) = (Action::Revoke, clock::fresh_uuid(), Some(reason.clone()));
        let request = RevokeRequest { firm, key, by, reason, audit };
        let (until, mut pause) = (clock::boot_now().plus(ABANDONED_MAX), ABANDONED_PAUSE.0);
        while clock::boot_now() < until {
            tokio::time::sleep(pause).await;
            match self.revoke_and_settle(request.clone()).await {
                Ok(_) => return tracing::warn!(%key, "revoked a key that nobody holds, since the answer to its creation was lost"),
                Err(Problem::NotFound(_)) => return,
                Err(_) => pause = (pause * 2).min(ABANDONED_PAUSE.1),
            }
        }
        tracing::warn!(%key, "{ABANDONED}");
    }

    async fn revoke_and_settle(&self, request: RevokeRequest) -> Result<(KeyRecord, RevocationProof), Problem> {
        let asked = self.state.coherence.moment();
        let revocation = self.ask("revoke", self.state.store.revoke(request)).await?;
        let committed = clock::boot_now();
        let Revocation::Revoked { record, first, partition, epoch } = revocation else {
            return Err(Problem::NotFound("key"));
        };
        if first {
            self.state.metrics.audit_records.with_label_values(&["key.revoke", "allowed"]).inc();
        }
        // Also where the key was revoked before: the call that did it may have ended in doubt.
        let settled = self.state.coherence.settle_revocation(Change { partition, epoch, committed, asked }, record.digest).await;
        let confirmations = settled.map_err(|_| Problem::RevocationUnconfirmed)?;
        Ok((record, RevocationProof::of(&confirmations)))
    }

    /// Asks the store, with a deadline.
    pub(super) async fn read<T>(&self, operation: &'static str, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
        within(READ_WAIT_MAX, pin!(self.ask(operation, call))).await.ok_or(Problem::StoreUnavailable)?
    }

    async fn ask<T>(&self, operation: &'static str, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
        call.await.map_err(|error| {
            // The store's health has the log's line; one for each call would bury it.
            tracing::debug!(operation, %error, "the store failed the admin API");
            Problem::StoreUnavailable
        })
    }
}

/// Runs a change to its end whatever becomes of the caller; `None` if it takes too long or panics.
async fn detached<T: Send + 'static>(shared: &Shared, change: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    shared.state.tasks.spawn("admin change", async move {
        // Nobody listens any more when the caller has gone; the change is made all the same.
        let _ = tell.send(change.await);
    });
    within(CHANGE_WAIT_MAX, told).await?.ok()
}

fn created(record: &KeyRecord, key: Option<&str>) -> Response {
    let view = CreatedKey::show(record, key);
    // Room for the whole text from the start, so that growing leaves no copies of the key behind; wiped after use.
    let room = 1024 + 6 * (record.name.as_str().len() + record.permissions.names().map(|name| name.len() + 1).sum::<usize>());
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *text, &view).expect("a key's view is plain data");
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], Bytes::from_owner(text)).into_response()
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut lines = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (Some(line), repeated) = (lines.next(), lines.next()) else { return Ok(None) };
    let text = line
        .to_str()
        .ok()
        .filter(|text| (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    match (text, repeated) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(Problem::Malformed(format!("Idempotency-Key is one header of 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters"))),
    }
}

fn check_reason(reason: &str) -> Result<(), Problem> {
    if reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control) {
        return Err(Problem::Malformed(format!("a reason has at most {REASON_CHARS_MAX} characters and no control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn an_idempotency_key_is_one_printable_header() {
        let check = |lines: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(line).expect("a header value"));
            }
            idempotency_key(&headers)
        };
        assert_eq!(check(&[]), Ok(None));
        assert_eq!(check(&[b"a b"]), Ok(Some("a b".into())));
        assert!(check(&[&[b'x'; 200]]).is_ok());
        for lines in [&[b"".as_slice()][..], &[&[b'x'; 201]], &[b"a", b"a"], &[b"\xc3\xa9"], &[b"a\tb"]] {
            assert!(check(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn a_reason_is_short_and_plain() {
        assert!(check_reason("").is_ok() && check_reason(&"é".repeat(500)).is_ok());
        assert!(check_reason(&"x".repeat(501)).is_err() && check_reason("a\nb").is_err());
    }
}

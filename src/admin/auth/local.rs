//! The local issuer: user tokens that this gateway's own key signs, for the demo and for tests.
//!
//! Its private key lies in the store's folder, so whoever may read that folder may sign; its tokens pass through
//! the same checks as an identity provider's.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::{Claims, Config};
use crate::domain::{FirmId, Timestamp, UserId};
use crate::signing::{KeyRing, LOCAL_AUDIENCE, LOCAL_ISSUER};

/// The key's name within the store's folder.
const KEY_FILE: &str = "local-issuer.pem";

/// What a local token says.
#[derive(Clone, Debug)]
pub struct LocalUser {
    /// The user's firm.
    pub firm: FirmId,
    /// The user.
    pub user: UserId,
    /// The user's name.
    pub name: Option<String>,
    /// What the user may do.
    pub permissions: Vec<String>,
}

/// Where the local issuer's private key is kept.
pub fn key_file(config: &Config) -> PathBuf {
    config.own_folder().join(KEY_FILE)
}

/// Signs a token that is valid from `now` for `lifetime`, with claims named as the configuration names them.
pub fn sign(keys: &KeyRing, claims: &Claims, user: &LocalUser, now: Timestamp, lifetime: Duration) -> String {
    let mut payload = Map::new();
    payload.insert(claims.firm.clone(), user.firm.as_str().into());
    payload.insert(claims.user.clone(), user.user.as_str().into());
    payload.insert(claims.permissions.clone(), user.permissions.clone().into());
    if let Some(name) = &user.name {
        payload.insert(claims.name.clone(), name.clone().into());
    }
    let times = [("iat", now), ("nbf", now), ("exp", now.plus(lifetime))];
    payload.extend(times.map(|(name, time)| (name.to_owned(), Value::from(time.seconds()))));
    payload.insert("iss".into(), LOCAL_ISSUER.into());
    payload.insert("aud".into(), LOCAL_AUDIENCE.into());
    keys.sign(&payload)
}

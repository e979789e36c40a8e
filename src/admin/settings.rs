//! What of the configuration the admin listener uses, made ready: swapped as a whole when the file changes.

use std::sync::Arc;

use super::auth::{SessionCookie, Verifier, VerifierError, local};
use super::guard::Policies;
use super::host::KnownHosts;
use crate::config::{Config, ManagePermissions};
use crate::domain::ReplicaId;
use crate::signing::{KeyError, SigningKey};
use crate::tasks::Tasks;

/// The settings in force.
#[derive(Debug)]
pub struct Settings {
    pub(crate) per_firm_max: u32,
    pub(crate) per_creator_max: u32,
    pub(crate) permissions: ManagePermissions,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) hosts: KnownHosts,
    pub(crate) public_url: Option<String>,
    /// Who may frame the page and sign people in to it.
    pub(crate) dashboards: Vec<String>,
    pub(crate) policies: Policies,
    pub(crate) session: SessionCookie,
    pub(crate) replica: ReplicaId,
}

/// Why a configuration cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An issuer's keys.
    #[error(transparent)]
    Verifier(#[from] VerifierError),
    /// The local issuer's key.
    #[error("the local issuer's key: {0}")]
    LocalKey(#[from] KeyError),
}

impl Settings {
    /// Makes a configuration ready. Where the local issuer is on, its key is made in the store's folder if it is
    /// missing. `previous` lends the key sets that it has read already. Blocks on files.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn new(config: &Config, replica: ReplicaId, tasks: &Tasks, previous: Option<&Self>) -> Result<Self, SettingsError> {
        let auth = &config.admin.auth;
        let local = if auth.local_issuer { Some(SigningKey::load_or_create(&local::key_file(config))?) } else { None };
        let verifier = Verifier::new(auth, local.as_ref(), tasks, previous.map(|previous| previous.verifier.as_ref()))?;
        let public_url = config.admin.public_url.clone();
        Ok(Self {
            per_firm_max: config.keys.per_firm_max,
            per_creator_max: config.keys.per_creator_max,
            permissions: auth.permissions.clone(),
            verifier: Arc::new(verifier),
            hosts: KnownHosts::new(config.admin.listen.addresses(), public_url.as_deref()),
            public_url,
            dashboards: config.admin.frame_ancestors.clone(),
            policies: Policies::new(&config.admin.frame_ancestors),
            session: SessionCookie::of(&config.admin),
            replica,
        })
    }
}

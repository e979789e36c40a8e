//! The only place where parts are joined: a configuration in, running listeners out, and the way down again.
//!
//! `start` opens the store and the spool, ships what an earlier life left behind, learns the current epoch and only
//! then listens. `reload` swaps settings in as a whole. `drain` ends in the order that loses nothing: readiness red,
//! no new connections, requests finish, the spool is shipped, the ops listener goes last.

mod banner;
mod descriptors;
mod drain;
mod files;
mod listeners;
mod readiness;
mod reload;
mod start;

pub use files::unusable_files;
pub use start::run;

use crate::audit::SpoolError;
use crate::config::ConfigError;
use crate::edge::TlsError;
use crate::gateway::SettingsError;
use crate::signing::KeyError;
use crate::store::StoreError;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration, as a whole.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// User tokens cannot be verified as configured.
    #[error("admin.auth: {0}")]
    Admin(#[from] crate::admin::SettingsError),
    /// An address.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, #[source] std::io::Error),
}

//! `token`: a user token signed by the local issuer's key, which lies in the store's folder.

use std::time::Duration;

use clap::Args;

use super::span::parse_span;
use super::{ConfigArgument, Failure, terminal};
use crate::admin::auth::local::{self, LocalUser};
use crate::clock;
use crate::config::Config;
use crate::domain::{FirmId, UserId};
use crate::signing::{KeyRing, SigningKey};

/// Whom the token speaks for.
#[derive(Clone, Debug, Args)]
pub struct TokenArguments {
    /// Which configuration.
    #[command(flatten)]
    pub configuration: ConfigArgument,
    /// The user's firm.
    #[arg(long, value_parser = FirmId::parse)]
    firm: FirmId,
    /// The user's id.
    #[arg(long, value_parser = UserId::parse)]
    user: UserId,
    /// The user's name.
    #[arg(long)]
    name: Option<String>,
    /// A permission of the user; repeat it for several. Without any, the user may do nothing.
    #[arg(long = "permission", value_name = "PERMISSION")]
    permissions: Vec<String>,
    /// How long it is valid.
    #[arg(long, value_name = "SPAN", default_value = "12h", value_parser = parse_span)]
    lifetime: Duration,
}

/// Prints a token that the gateway with this configuration believes.
///
/// # Errors
/// A sentence: the local issuer is off, or its key cannot be read because the gateway has never run or is another
/// user's.
pub fn token(arguments: &TokenArguments, config: &Config) -> Result<(), Failure> {
    terminal::print(&format!("{}\n", sign(arguments, config)?))
}

fn sign(arguments: &TokenArguments, config: &Config) -> Result<String, Failure> {
    let auth = &config.admin.auth;
    if !auth.local_issuer {
        return Err(Failure::new(
            "the local issuer is off in this configuration (admin.auth.local_issuer); get a token from your identity provider",
        ));
    }
    let file = local::key_file(config);
    if !file.exists() {
        return Err(Failure::new(format!(
            "{} does not exist; run the gateway once, in this folder and with this configuration",
            file.display()
        )));
    }
    let key = SigningKey::load(&file).map_err(|error| Failure::new(error.to_string()))?;
    let keys = KeyRing::new(vec![key]).map_err(|error| Failure::new(error.to_string()))?;
    let user = LocalUser {
        firm: arguments.firm.clone(),
        user: arguments.user.clone(),
        name: arguments.name.clone(),
        permissions: arguments.permissions.clone(),
    };
    Ok(local::sign(&keys, &auth.claims, &user, clock::wall_now(), arguments.lifetime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_needs_the_local_issuer_and_its_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = TokenArguments {
            configuration: ConfigArgument::default(),
            firm: FirmId::parse("firm-1").expect("a good id"),
            user: UserId::parse("user-1").expect("a good id"),
            name: None,
            permissions: Vec::new(),
            lifetime: Duration::from_secs(60),
        };
        let mut config = Config::default();
        config.store.embedded = Some(crate::config::Embedded { path: folder.path().to_owned() });
        assert!(sign(&arguments, &config).is_err_and(|failure| failure.to_string().contains("local_issuer")));
        config.admin.auth.local_issuer = true;
        assert!(sign(&arguments, &config).is_err_and(|failure| failure.to_string().contains("does not exist")));
        SigningKey::load_or_create(&local::key_file(&config)).expect("made");
        assert_eq!(sign(&arguments, &config).map(|token| token.split('.').count()).ok(), Some(3));
    }
}

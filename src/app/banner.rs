//! What a newcomer needs, printed once: three addresses, a key, and a line that works when pasted.

use std::time::Duration;

use crate::admin::auth::local::{self, LocalUser};
use crate::audit::Spool;
use crate::clock;
use crate::config::Config;
use crate::demo;
use crate::domain::{Action, AuditRecord, FirmId, FrozenPermissions, KeyId, KeyName, KeyNamespace, KeyRecord, KeySecret, KeyState, UserId};
use crate::signing::{KeyRing, SigningKey};
use crate::store::{Creation, NewKey, Store, StoreError};

use super::start::Started;

/// How long the demo's user stays signed in to the page: a day at work.
const SESSION_LIFE: Duration = Duration::from_secs(12 * 3_600);

/// Prints where everything is; in the demo also how to begin.
pub(super) async fn show(started: &Started, config: &Config, program: &str) {
    let first = |addresses: &[std::net::SocketAddr]| addresses.first().map(|address| format!("http://{address}")).unwrap_or_default();
    let (edge, admin, ops) =
        (first(&started.listeners.edge.addresses), first(&started.listeners.admin.addresses), first(&started.listeners.ops.addresses));
    println!("\nAssure Pro gateway, demo: everything on this machine, state in {}\n", config.own_folder().display());
    println!("  edge   {edge}   tools send their requests here");
    println!("  admin  {admin}   keys and activity; API document at {admin}/openapi.json");
    println!("  ops    {ops}   /metrics /healthz /readyz /.well-known/jwks.json\n");
    match first_key(&*started.store, &started.spool, &started.gateway.namespace, config).await {
        Ok(Some(key)) => {
            println!("A first key, shown this once. Paste this:\n");
            println!("  curl -H 'Authorization: Bearer {}' {edge}/v1/clients\n", key.reveal());
        }
        Ok(None) => {
            println!("The demo's key was shown at the first start; make another one:\n\n  {program} keys create \"Second key\"\n")
        }
        Err(error) => println!("The demo's key could not be made: {error}\n"),
    }
    if let Some(code) = sign_in_code(started, config) {
        println!("To see keys and activity in a browser (this link works once, for ten minutes):\n");
        println!("  {admin}/#code={code}\n");
    }
    let permissions: String = demo::PERMISSIONS.iter().map(|name| format!(" --permission '{name}'")).collect();
    println!("To manage keys, in another terminal:\n");
    println!("  export ASSURE_ADMIN_TOKEN=$({program} token --firm {} --user {}{permissions})", demo::FIRM, demo::USER);
    println!("  {program} keys list\n");
}

/// What signs the demo's user in to the page, once. Without the local issuer there is nobody to sign in.
fn sign_in_code(started: &Started, config: &Config) -> Option<String> {
    if !config.admin.auth.local_issuer {
        return None;
    }
    let keys = KeyRing::new(vec![SigningKey::load(&local::key_file(config)).ok()?]).ok()?;
    let user = LocalUser {
        firm: FirmId::parse(demo::FIRM).expect("the demo's firm id is valid"),
        user: UserId::parse(demo::USER).expect("the demo's user id is valid"),
        name: Some(demo::USER_NAME.to_owned()),
        permissions: demo::PERMISSIONS.map(str::to_owned).to_vec(),
    };
    let token = local::sign(&keys, &config.admin.auth.claims, &user, clock::wall_now(), SESSION_LIFE);
    Some(started.links.issue(token))
}

/// Makes the demo firm's first key, unless it ever had one.
async fn first_key(store: &dyn Store, spool: &Spool, namespace: &KeyNamespace, config: &Config) -> Result<Option<KeySecret>, StoreError> {
    let firm = FirmId::parse(demo::FIRM).expect("the demo's firm id is valid");
    if !store.keys(firm.clone()).await?.is_empty() {
        return Ok(None);
    }
    let secret = KeySecret::generate(namespace, &firm);
    let record = record(firm, &secret);
    let mut audit = AuditRecord::of_key(Action::Create, &record, record.creator.as_str(), clock::fresh_uuid(), spool.replica().clone());
    audit.reason = Some("made by the demo at its first start".into());
    let (firm_max, creator_max) = (config.keys.per_firm_max, config.keys.per_creator_max);
    match store.create(NewKey { record, firm_max, creator_max, idempotency_key: None, audit }).await? {
        Creation::Created(..) => Ok(Some(secret)),
        Creation::Replayed(_) | Creation::FirmFull | Creation::CreatorFull => Ok(None),
    }
}

fn record(firm: FirmId, secret: &KeySecret) -> KeyRecord {
    KeyRecord {
        id: KeyId::new(clock::fresh_uuid()),
        digest: secret.digest(),
        name: KeyName::parse(demo::KEY_NAME).expect("the demo's key name is valid"),
        prefix: secret.display_prefix().into(),
        firm_id: firm,
        creator: UserId::parse(demo::USER).expect("the demo's user id is valid"),
        creator_name: Some(demo::USER_NAME.into()),
        permissions: FrozenPermissions::freeze(demo::PERMISSIONS),
        created_at: clock::wall_now(),
        state: KeyState::Live,
    }
}

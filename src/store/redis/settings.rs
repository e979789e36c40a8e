//! Whether this Redis may be trusted with what it acknowledges: its version, its layout, and the settings that would
//! let it evict or forget. `allow_unsafe` starts all the same, and says what that may cost.

use super::connection::Connections;
use super::corrupt;
use super::schema::{self, SCHEMA};
use crate::config::Redis;
use crate::store::StoreError;

/// The oldest Redis that has all the commands that the scripts use (`ZRANGE ... BYSCORE`, `XTRIM MINID`).
const VERSION_MIN: (u32, u32) = (6, 2);

pub(super) async fn check(connections: &Connections, config: &Redis) -> Result<(), StoreError> {
    check_version(connections).await?;
    let promises = [check_eviction(connections).await, check_persistence(connections).await];
    for refused in promises.into_iter().filter_map(Result::err) {
        match refused {
            StoreError::Unsafe(why) if config.allow_unsafe => tracing::warn!(%why, "the store may forget, and allow_unsafe is set"),
            other => return Err(other),
        }
    }
    check_layout(connections).await
}

async fn check_version(connections: &Connections) -> Result<(), StoreError> {
    let info: String = connections.bulk().send(redis::cmd("INFO").arg("server")).await?;
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default().trim();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < VERSION_MIN {
        return Err(StoreError::Unsafe(format!("this is Redis {version:?}; version 6.2 or later is needed")));
    }
    Ok(())
}

async fn check_eviction(connections: &Connections) -> Result<(), StoreError> {
    let policy = setting(connections, "maxmemory-policy").await?;
    if policy != "noeviction" {
        let why = format!(
            "Redis has maxmemory-policy {policy:?} and may evict keys and revocations; set maxmemory-policy noeviction, or allow_unsafe: true here"
        );
        return Err(StoreError::Unsafe(why));
    }
    Ok(())
}

async fn check_persistence(connections: &Connections) -> Result<(), StoreError> {
    let (log, snapshots) = (setting(connections, "appendonly").await?, setting(connections, "save").await?);
    if log != "yes" && snapshots.is_empty() {
        let why = "Redis keeps nothing on disk; set appendonly yes (and appendfsync always), or allow_unsafe: true here";
        return Err(StoreError::Unsafe(why.to_owned()));
    }
    let sync = setting(connections, "appendfsync").await?;
    if log != "yes" {
        tracing::warn!("Redis keeps snapshots only (appendonly no): a crash of it loses all since the last one, revocations included");
    } else if sync != "always" {
        tracing::warn!(appendfsync = ?sync, "a crash of Redis may lose the last second, revocations and audit records included; appendfsync always loses nothing");
    }
    Ok(())
}

async fn setting(connections: &Connections, name: &str) -> Result<String, StoreError> {
    let found: Vec<String> = connections.bulk().send(redis::cmd("CONFIG").arg("GET").arg(name)).await.map_err(|error| match error {
        StoreError::Unavailable(why) if why.contains("NOPERM") || why.contains("unknown command") => StoreError::Unsafe(format!(
            "CONFIG GET {name} is not allowed, so nobody can tell whether Redis keeps what it acknowledges ({why})"
        )),
        other => other,
    })?;
    Ok(found.into_iter().nth(1).unwrap_or_default())
}

async fn check_layout(connections: &Connections) -> Result<(), StoreError> {
    let name = schema::named("schema");
    connections.bulk().send::<Option<String>>(redis::cmd("SET").arg(&name).arg(SCHEMA).arg("NX")).await?;
    let found: String = connections.bulk().send(redis::cmd("GET").arg(&name)).await?;
    if found == SCHEMA { Ok(()) } else { Err(corrupt("this Redis holds another version's layout")) }
}

//! Whether this Redis may be trusted with what it acknowledges: its version, and the settings that would let it evict
//! or forget; of each server that holds data.
//!
//! What breaks a promise ends the start and names the setting; `allow_unsafe` starts all the same. What may only cost
//! something is told. The settings are looked at again while the gateway runs, since they can change under it; then
//! nothing ends, because a risk is better than an outage, but the log, a metric and `/readyz` say it.

use super::connection::Connections;
use crate::config::Redis;
use crate::store::{Risk, Safeguard, StoreError};

/// The oldest Redis that has all the commands that the scripts use (`ZRANGE ... BYSCORE`, `XTRIM MINID`).
const VERSION_MIN: (u32, u32) = (6, 2);
/// Values that a metric's label may show; anything else is shown as `other`.
const KNOWN_VALUES: [&str; 12] = [
    "noeviction",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "yes",
    "no",
    "always",
    "everysec",
];

/// What the operator said to settings that may break a promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tolerance {
    /// Nothing, so they are refused.
    None,
    /// `allow_unsafe`.
    Allowed,
}

impl Tolerance {
    pub(super) fn of(config: &Redis) -> Self {
        if config.allow_unsafe { Self::Allowed } else { Self::None }
    }

    fn applied_to(self, safeguard: Safeguard) -> Safeguard {
        match (self, safeguard.risk) {
            (Self::Allowed, Risk::Unsafe(why)) => Safeguard { risk: Risk::Loss(format!("allow_unsafe is set, but {why}")), ..safeguard },
            (_, risk) => Safeguard { risk, ..safeguard },
        }
    }
}

/// Refuses servers that could break a promise, unless that is allowed.
pub(super) async fn check(connections: &Connections, tolerance: Tolerance) -> Result<(), StoreError> {
    for server in connections.of_each_server().await? {
        let info: String = server.bulk().send(redis::cmd("INFO").arg("server")).await?;
        judge_version(&info)?;
        let refused = safeguards_of(&server, tolerance).await?.into_iter().find_map(|safeguard| match safeguard.risk {
            Risk::Unsafe(why) => Some(why),
            Risk::None | Risk::Loss(_) => None,
        });
        if let Some(why) = refused {
            return Err(StoreError::Unsafe(why));
        }
    }
    Ok(())
}

/// The settings on which promises rest, as they stand now; where servers differ, each value once.
pub(super) async fn safeguards(connections: &Connections, tolerance: Tolerance) -> Result<Vec<Safeguard>, StoreError> {
    let mut all: Vec<Safeguard> = Vec::new();
    for server in connections.of_each_server().await? {
        for safeguard in safeguards_of(&server, tolerance).await? {
            if !all.contains(&safeguard) {
                all.push(safeguard);
            }
        }
    }
    Ok(all)
}

async fn safeguards_of(server: &Connections, tolerance: Tolerance) -> Result<Vec<Safeguard>, StoreError> {
    let eviction = setting(server, "maxmemory-policy").await?;
    let (log, snapshots) = (setting(server, "appendonly").await?, setting(server, "save").await?);
    let sync = setting(server, "appendfsync").await?;
    let mut all = vec![judge_eviction(&eviction), judge_log(&log, &snapshots)];
    if all.iter().all(|safeguard| safeguard.setting != "appendonly" || safeguard.value == "yes") {
        all.push(judge_sync(&sync));
    }
    Ok(all.into_iter().map(|safeguard| tolerance.applied_to(safeguard)).collect())
}

fn judge_version(info: &str) -> Result<(), StoreError> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default().trim();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < VERSION_MIN {
        return Err(StoreError::Unsafe(format!("this is Redis {version:?}; version 6.2 or later is needed")));
    }
    Ok(())
}

/// A setting's value, or why nobody may know it.
type Known = Result<String, Forbidden>;

/// CONFIG is not allowed here.
struct Forbidden(String);

fn judge_eviction(policy: &Known) -> Safeguard {
    judged("maxmemory-policy", policy, |policy| {
        if policy == "noeviction" {
            return Risk::None;
        }
        Risk::Unsafe(format!(
            "Redis has maxmemory-policy {policy:?} and may evict keys and revocations; set maxmemory-policy noeviction in Redis, or store.redis.allow_unsafe: true here"
        ))
    })
}

fn judge_log(log: &Known, snapshots: &Known) -> Safeguard {
    judged("appendonly", log, |log| match snapshots {
        _ if log == "yes" => Risk::None,
        Ok(snapshots) if snapshots.is_empty() => Risk::Unsafe(
            "Redis has appendonly no and an empty save, so it keeps nothing on disk and a restart of it forgets every key and \
             revocation; set appendonly yes and appendfsync always in Redis, or store.redis.allow_unsafe: true here"
                .into(),
        ),
        _ => Risk::Loss(
            "Redis has appendonly no and keeps snapshots only: a crash of it loses all since the last one, revocations and audit \
             records included; set appendonly yes and appendfsync always"
                .into(),
        ),
    })
}

fn judge_sync(sync: &Known) -> Safeguard {
    judged("appendfsync", sync, |sync| {
        let lost = match sync {
            "always" => return Risk::None,
            "everysec" => "the last second",
            _ => "what the kernel had not written yet, often half a minute",
        };
        Risk::Loss(format!(
            "Redis has appendfsync {sync}: a crash of it or of its machine may lose {lost}, revocations and audit records included; appendfsync always loses nothing"
        ))
    })
}

fn judged(setting: &'static str, value: &Known, judge: impl FnOnce(&str) -> Risk) -> Safeguard {
    match value {
        Ok(value) => {
            let known = KNOWN_VALUES.into_iter().find(|known| known == value).unwrap_or("other");
            Safeguard { setting, value: known, risk: judge(value) }
        }
        Err(Forbidden(why)) => Safeguard {
            setting,
            value: "unknown",
            risk: Risk::Unsafe(format!(
                "CONFIG GET {setting} is not allowed, so nobody can tell whether Redis keeps what it acknowledges ({why}); allow it \
                 to this user (ACL +config|get), or, where a provider forbids it, make sure by its own means that eviction is off and \
                 persistence on, and set store.redis.allow_unsafe: true here"
            )),
        },
    }
}

async fn setting(server: &Connections, name: &str) -> Result<Known, StoreError> {
    let found: Result<Vec<String>, StoreError> = server.bulk().send(redis::cmd("CONFIG").arg("GET").arg(name)).await;
    match found {
        Ok(pair) => Ok(Ok(pair.into_iter().nth(1).unwrap_or_default())),
        Err(StoreError::Unavailable(why)) if why.contains("NOPERM") || why.contains("unknown command") => Ok(Err(Forbidden(why))),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_that_lacks_commands_is_refused_by_its_version() {
        let judge = |version: &str| judge_version(&format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n"));
        for version in ["6.2.0", "6.2.14", "7.0.15", "7.4", "8.0.0", "10.1.2", "255.255.255"] {
            assert!(judge(version).is_ok(), "{version}");
        }
        for version in ["6.0.16", "6.1.240", "5.0.7", "2.8.24", "", "six"] {
            let refused = judge(version).map_err(|error| error.to_string());
            assert!(matches!(&refused, Err(why) if why.contains(&format!("{version:?}; version 6.2"))), "{refused:?}");
        }
        assert!(judge_version("redis_version:7.2.4\nvalkey_version:8.0.1\n").is_ok(), "Valkey says which Redis it is like");
        assert!(judge_version("").is_err());
    }

    #[test]
    fn every_setting_is_judged_by_what_it_may_cost() {
        let known = |text: &str| -> Known { Ok(text.to_owned()) };
        let none = |safeguard: Safeguard| safeguard.risk == Risk::None;
        assert!(
            none(judge_eviction(&known("noeviction"))) && none(judge_log(&known("yes"), &known(""))) && none(judge_sync(&known("always")))
        );
        let loss = |safeguard: Safeguard| matches!(safeguard.risk, Risk::Loss(why) if why.contains("Redis has append"));
        assert!(loss(judge_log(&known("no"), &known("3600 1"))) && loss(judge_sync(&known("everysec"))) && loss(judge_sync(&known("no"))));
        let refused = |safeguard: Safeguard| matches!(safeguard.risk, Risk::Unsafe(why) if why.contains("allow_unsafe: true"));
        for policy in ["allkeys-lru", "volatile-ttl", "allkeys-something-new", ""] {
            assert!(refused(judge_eviction(&known(policy))), "{policy}");
        }
        assert!(refused(judge_log(&known("no"), &known(""))));
        let forbidden = judge_eviction(&Err(Forbidden("NOPERM".into())));
        assert_eq!(forbidden.value, "unknown");
        assert!(refused(forbidden));
        assert_eq!(judge_eviction(&known("allkeys-something-new")).value, "other", "a label shows no bytes from outside");
    }
}

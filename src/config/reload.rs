//! Watches the configuration and the files that it names, and reads everything again when their content changes.
//!
//! It polls content instead of asking the operating system for events: Kubernetes swaps a symbolic link two folders
//! up, editors rename over the file, network file systems send no events at all, and each of these has bitten watchers
//! before. A digest a second costs nothing and needs no dependency. A change counts once two looks in a row agree, so
//! that a file half written is not read; a hangup (SIGHUP) counts at once. A bad file changes nothing: the error is
//! handed out once, and the next attempt waits for the next change. What needs a restart, `restart_needed` names.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::load::{self, ConfigError, Reading};
use super::{Admin, Config, Edge};
use crate::tasks;

/// How often the files are looked at: soon enough for a person who waits, seldom enough for a network file system.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Largest part of a file that counts, in bytes; certificates, keys and configurations are far smaller.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A configuration file under watch.
#[derive(Debug)]
pub struct Watch {
    file: PathBuf,
    /// The file itself and those whose content belongs to it: certificates, signing keys, authorities, `${file:...}`.
    files: BTreeSet<PathBuf>,
    /// What they held when they were last read; absent before the first time.
    applied: Option<Fingerprint>,
    every: Duration,
}

impl Watch {
    /// Watches `file`, looking `every` so often ([`LOOK_INTERVAL`] but in tests).
    pub fn new(file: &Path, every: Duration) -> Self {
        Self { file: file.to_path_buf(), files: BTreeSet::from([file.to_path_buf()]), applied: None, every }
    }

    /// Reads the configuration and remembers what was read, so that [`Watch::change`] tells only what comes later.
    /// Blocks on files; call it once at the start.
    ///
    /// # Errors
    /// As [`load::load`].
    pub fn load(&mut self) -> Result<Config, ConfigError> {
        let look = look_and_load(&self.file, self.files.clone());
        self.adopt(look)
    }

    /// Waits for a change or a hangup and gives the new configuration, or says why it cannot be used. May be dropped at
    /// any await: what the files hold is compared with what was last handed out, so no change of theirs is lost. Without a [`Watch::load`] before it, the first look is a change.
    ///
    /// # Errors
    /// As [`load::load`]; the caller keeps what it has.
    pub async fn change(&mut self, hangups: &mut mpsc::Receiver<()>) -> Result<Config, ConfigError> {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = None;
        let mut is_hangup_possible = true;
        loop {
            tokio::select! {
                hangup = hangups.recv(), if is_hangup_possible => match hangup {
                    Some(()) => break,
                    // Nobody is left who could send one: the files alone decide.
                    None => is_hangup_possible = false,
                },
                _ = ticks.tick() => {
                    let files = self.files.clone();
                    let now = tasks::blocking(move || Fingerprint::of(&files)).await;
                    let is_settled = before.as_ref() == Some(&now);
                    if is_settled && self.applied.as_ref() != Some(&now) {
                        break;
                    }
                    before = Some(now);
                }
            }
        }
        let (file, files) = (self.file.clone(), self.files.clone());
        let look = tasks::blocking(move || look_and_load(&file, files)).await;
        self.adopt(look)
    }

    fn adopt(&mut self, look: Look) -> Result<Config, ConfigError> {
        self.files = look.files;
        self.applied = Some(look.fingerprint);
        look.result
    }
}

/// The fields that differ and take effect only after a restart; the caller logs them after a reload.
pub fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    let (old_spool, new_spool) = (&old.audit.spool, &new.audit.spool);
    let fields = [
        ("edge.listen", old.edge.listen != new.edge.listen),
        ("edge.tls", old.edge.tls.is_some() != new.edge.tls.is_some()),
        ("edge.trusted_proxies", new.edge.proxy_protocol && old.edge.trusted_proxies != new.edge.trusted_proxies),
        ("edge.proxy_protocol", old.edge.proxy_protocol != new.edge.proxy_protocol),
        ("edge.connections_max", old.edge.connections_max != new.edge.connections_max),
        ("edge.connections_per_address_max", old.edge.connections_per_address_max != new.edge.connections_per_address_max),
        ("edge.drain", old.edge.drain != new.edge.drain),
        ("edge.drain_notice", old.edge.drain_notice != new.edge.drain_notice),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("admin.tls", old.admin.tls.is_some() != new.admin.tls.is_some()),
        ("ops.listen", old.ops.listen != new.ops.listen),
        ("store", old.store != new.store),
        ("audit.stream", old.audit.stream != new.audit.stream),
        ("audit.stream_max_age", old.audit.stream_max_age != new.audit.stream_max_age),
        ("keys.prefix", old.keys.prefix != new.keys.prefix),
        ("audit.spool.path", old_spool.path != new_spool.path),
        ("audit.spool.size_max", old_spool.size_max != new_spool.size_max),
        ("audit.spool.sync", old_spool.sync != new_spool.sync),
        ("replica", old.replica != new.replica),
        ("log", old.log != new.log),
    ];
    fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// One reading, with what the files held.
struct Look {
    result: Result<Config, ConfigError>,
    files: BTreeSet<PathBuf>,
    fingerprint: Fingerprint,
}

/// Readings until the set of files stays the same: one to learn the names, one to be sure, one to spare.
const READINGS_MAX: usize = 3;

/// Takes the fingerprint before it reads: what is written in between differs from it and is found by the next look.
fn look_and_load(file: &Path, mut known: BTreeSet<PathBuf>) -> Look {
    for _ in 1..READINGS_MAX {
        let look = read_once(file, &known);
        if look.files == known {
            return look;
        }
        known = look.files;
    }
    read_once(file, &known)
}

fn read_once(file: &Path, known: &BTreeSet<PathBuf>) -> Look {
    let fingerprint = Fingerprint::of(known);
    let Reading { result, named } = load::read(file);
    let mut files = BTreeSet::from([file.to_path_buf()]);
    files.extend(named);
    match &result {
        Ok(config) => files.extend(named_files(config)),
        // The mistake may be in a file that only the last good configuration names, like a missing certificate.
        Err(_) => files.extend(known.iter().cloned()),
    }
    Look { result, files, fingerprint }
}

/// The files that are read when a configuration is applied. Key sets (`jwks`) are not among them: who uses them
/// reads them again on its own.
fn named_files(config: &Config) -> Vec<PathBuf> {
    let (Edge { tls: edge, .. }, Admin { tls: admin, .. }) = (&config.edge, &config.admin);
    let pairs = edge.iter().chain(admin).flat_map(|tls| [&tls.certificate, &tls.private_key]);
    let keys = config.assertion.signing_keys.iter().map(|key| &key.file);
    let authorities = config.upstreams.values().filter_map(|upstream| upstream.ca.as_ref());
    pairs.chain(keys).chain(authorities).cloned().collect()
}

/// SHA-256 over names and contents; keeps no secret in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(files: &BTreeSet<PathBuf>) -> Self {
        let mut digest = Sha256::new();
        for file in files {
            digest.update(file.as_os_str().as_encoded_bytes());
            // A file that cannot be read differs from an empty one: its digest is not preceded by a 1.
            match content_digest(file) {
                Ok(content) => {
                    digest.update([1]);
                    digest.update(content);
                }
                Err(_) => digest.update([0]),
            }
        }
        Self(digest.finalize().into())
    }
}

fn content_digest(file: &Path) -> std::io::Result<[u8; 32]> {
    let mut content = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(Sha256::digest(&content).into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LOOK: Duration = Duration::from_millis(5);
    const PATIENCE: Duration = Duration::from_secs(20);
    const GOOD: &str = "limits: { requests_per_minute: 7 }\n";

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yaml");
        fs::write(&file, text).unwrap();
        (folder, file)
    }

    async fn change(watch: &mut Watch, hangups: &mut mpsc::Receiver<()>) -> Result<Config, ConfigError> {
        tokio::time::timeout(PATIENCE, watch.change(hangups)).await.expect("the change is seen")
    }

    async fn is_quiet(watch: &mut Watch, hangups: &mut mpsc::Receiver<()>) -> bool {
        tokio::time::timeout(LOOK * 20, watch.change(hangups)).await.is_err()
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_a_bad_file_is_told_once() {
        let (_folder, file) = file(GOOD);
        let (_sender, mut hangups) = mpsc::channel(1);
        let mut watch = Watch::new(&file, LOOK);
        assert_eq!(watch.load().unwrap().limits.requests_per_minute, 7);
        assert!(is_quiet(&mut watch, &mut hangups).await);

        fs::write(&file, "limits: { requests_per_minute: 8 }\n").unwrap();
        assert_eq!(change(&mut watch, &mut hangups).await.unwrap().limits.requests_per_minute, 8);
        assert!(is_quiet(&mut watch, &mut hangups).await);

        fs::write(&file, "limits: { requests_per_minute: none }\n").unwrap();
        assert!(matches!(change(&mut watch, &mut hangups).await, Err(ConfigError::Mistaken(_))));
        assert!(is_quiet(&mut watch, &mut hangups).await);

        fs::remove_file(&file).unwrap();
        assert!(matches!(change(&mut watch, &mut hangups).await, Err(ConfigError::Unreadable(..))));
        fs::write(&file, GOOD).unwrap();
        assert_eq!(change(&mut watch, &mut hangups).await.unwrap().limits.requests_per_minute, 7);
    }

    #[tokio::test]
    async fn a_swapped_symbolic_link_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        for (version, limit) in [("one", 1), ("two", 2)] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("gateway.yaml"), format!("limits: {{ requests_per_minute: {limit} }}\n")).unwrap();
        }
        let link = folder.path().join("current");
        std::os::unix::fs::symlink("one", &link).unwrap();
        let (_sender, mut hangups) = mpsc::channel(1);
        let mut watch = Watch::new(&link.join("gateway.yaml"), LOOK);
        assert_eq!(watch.load().unwrap().limits.requests_per_minute, 1);
        std::os::unix::fs::symlink("two", folder.path().join("next")).unwrap();
        fs::rename(folder.path().join("next"), &link).unwrap();
        assert_eq!(change(&mut watch, &mut hangups).await.unwrap().limits.requests_per_minute, 2);
    }

    #[tokio::test]
    async fn a_renewed_certificate_or_secret_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["cert.pem", "key.pem", "name"] {
            fs::write(at(name), "old").unwrap();
        }
        let tls = format!("{{ certificate: {:?}, private_key: {:?} }}", at("cert.pem"), at("key.pem"));
        fs::write(at("gateway.yaml"), format!("edge: {{ tls: {tls} }}\nreplica: ${{file:name}}\n")).unwrap();
        let (_sender, mut hangups) = mpsc::channel(1);
        let mut watch = Watch::new(&at("gateway.yaml"), LOOK);
        assert_eq!(watch.load().unwrap().replica.as_deref(), Some("old"));
        for name in ["cert.pem", "key.pem", "name"] {
            fs::write(at(name), "new").unwrap();
            change(&mut watch, &mut hangups).await.unwrap();
        }
        assert!(is_quiet(&mut watch, &mut hangups).await);
    }

    #[tokio::test]
    async fn a_hangup_reads_again_at_once_and_a_closed_channel_does_no_harm() {
        let (_folder, file) = file(GOOD);
        let (sender, mut hangups) = mpsc::channel(1);
        let mut watch = Watch::new(&file, Duration::from_secs(3600));
        watch.load().unwrap();
        sender.send(()).await.unwrap();
        assert!(change(&mut watch, &mut hangups).await.is_ok());
        drop(sender);
        assert!(is_quiet(&mut watch, &mut hangups).await);
    }

    #[tokio::test]
    async fn what_was_written_between_the_start_and_the_first_look_is_a_change() {
        let (_folder, file) = file(GOOD);
        let mut watch = Watch::new(&file, LOOK);
        watch.load().unwrap();
        fs::write(&file, GOOD.replace('7', "8")).unwrap();
        let (_hangup, mut hangups) = mpsc::channel(1);
        assert_eq!(change(&mut watch, &mut hangups).await.unwrap().limits.requests_per_minute, 8);
        assert!(is_quiet(&mut watch, &mut hangups).await, "and only once");
    }

    #[test]
    fn fields_that_need_a_restart_are_named() {
        let old = Config::default();
        assert!(restart_needed(&old, &old).is_empty());
        let mut new = old.clone();
        new.limits.requests_per_minute = 1;
        new.edge.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(restart_needed(&old, &new).is_empty());
        new.keys.prefix = "other".into();
        new.edge.connections_max = 1;
        new.audit.spool.path = "elsewhere".into();
        new.replica = Some("a".into());
        new.log.level = "debug".into();
        let named = ["edge.connections_max", "keys.prefix", "audit.spool.path", "replica", "log"];
        assert_eq!(restart_needed(&old, &new), named);
        new.edge.proxy_protocol = true;
        assert!(restart_needed(&old, &new).contains(&"edge.trusted_proxies"), "the edge reads them once");
    }
}

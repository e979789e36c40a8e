//! The public keys of an issuer (RFC 7517): read from a file or fetched, kept, and renewed.
//!
//! Each key is pinned to one algorithm when it is read; symmetric, weak and encryption keys are skipped. A URL is
//! asked every ten minutes while tokens come, and once for an unknown `kid`, but never twice within half a minute,
//! by one caller at a time. While it cannot be reached the last set serves for a day. Nothing a token says decides
//! where keys come from.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::VerifierError;
use crate::admin::strict_json;
use crate::clock;
use crate::config;
use crate::dial::Dialer;
use crate::domain::BootInstant;
use crate::fetch::{self, ClearText, Url};
use crate::tasks::{self, Tasks};

/// Most keys of a set: ten times what identity providers publish.
const KEYS_MAX: usize = 100;
/// Longest set, in bytes.
const SET_BYTES_MAX: usize = 1024 * 1024;
/// Smallest RSA modulus, in bits (NIST SP 800-131A).
const RSA_BITS_MIN: usize = 2048;
/// How long a fetch may take.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// Age at which a fetched set is renewed, so that a key the issuer withdrew stops working.
const RENEW_AFTER: Duration = Duration::from_secs(600);
/// Least time between two fetches, so that made-up `kid`s do not become the issuer's load.
const FETCH_SPACING: Duration = Duration::from_secs(30);
/// The same while there is no set at all.
const FIRST_FETCH_SPACING: Duration = Duration::from_secs(5);
/// How long a set serves when it cannot be renewed.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a file may be looked at.
const FILE_SPACING: Duration = Duration::from_secs(1);

/// A public key, pinned to the one algorithm it may verify.
pub(super) struct VerificationKey {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl VerificationKey {
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    /// The algorithm as a token's `alg` must name it, to the letter.
    pub(super) fn algorithm_name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::EdDSA => "EdDSA",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::RS256 => "RS256",
            Algorithm::PS256 => "PS256",
            // No key is pinned to any other, see `pin`; and no token may name this.
            _ => "unsupported",
        }
    }
}

/// An issuer's usable keys.
pub(super) struct KeySet {
    keys: Vec<VerificationKey>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_list().entries(self.keys.iter().map(|key| (&key.id, key.algorithm))).finish()
    }
}

#[derive(serde::Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// Reads a JWK Set.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Document = strict_json::parse(text)?;
        Self::from_keys(&document.keys)
    }

    /// Takes the usable ones of some JWKs; the others are skipped with a line in the log.
    pub(super) fn from_keys(jwks: &[serde_json::Value]) -> Result<Self, String> {
        if jwks.len() > KEYS_MAX {
            return Err(format!("the set has {} keys, more than {KEYS_MAX}", jwks.len()));
        }
        let mut keys: Vec<VerificationKey> = Vec::new();
        for jwk in jwks {
            match pin(jwk) {
                Ok(key) if keys.iter().any(|known| known.id == key.id) => {
                    tracing::warn!(kid = ?key.id, "a key with a repeated kid is skipped")
                }
                Ok(key) => keys.push(key),
                Err(why) => tracing::info!(kid = ?jwk.get("kid").and_then(|id| id.as_str()), why, "a key of the issuer is skipped"),
            }
        }
        if keys.is_empty() { Err("the set has no usable key".into()) } else { Ok(Self { keys }) }
    }

    /// The key of this id; without an id the only key, if there is only one.
    pub(super) fn find(&self, id: Option<&str>) -> Option<&VerificationKey> {
        match (id, self.keys.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        }
    }
}

/// Decides which algorithm a key verifies: what its `alg` says, if that fits its type, else its type's usual one.
fn pin(jwk: &serde_json::Value) -> Result<VerificationKey, &'static str> {
    let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| "not a public key that is understood")?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Err("not for signatures");
    }
    if jwk.common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return Err("not for verifying");
    }
    let named = jwk.common.key_algorithm;
    let algorithm = match (&jwk.algorithm, named) {
        (AlgorithmParameters::OctetKeyPair(key), None | Some(KeyAlgorithm::EdDSA)) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        (AlgorithmParameters::EllipticCurve(key), None | Some(KeyAlgorithm::ES256)) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        (AlgorithmParameters::EllipticCurve(key), None | Some(KeyAlgorithm::ES384)) if key.curve == EllipticCurve::P384 => Algorithm::ES384,
        (AlgorithmParameters::RSA(key), _) if rsa_bits(&key.n) < RSA_BITS_MIN => return Err("an RSA key of less than 2048 bits"),
        (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
        (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::PS256)) => Algorithm::PS256,
        _ => return Err("neither Ed25519, P-256, P-384 nor RSA with RS256 or PS256"),
    };
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|_| "not well-formed")?;
    Ok(VerificationKey { id: jwk.common.key_id, algorithm, decoding })
}

fn rsa_bits(modulus: &str) -> usize {
    let bytes = URL_SAFE_NO_PAD.decode(modulus).unwrap_or_default();
    let mut significant = bytes.iter().skip_while(|byte| **byte == 0);
    significant.next().map_or(0, |first| (8 - usize::try_from(first.leading_zeros()).unwrap_or(8)) + significant.count() * 8)
}

/// Where an issuer's keys come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The local issuer's.
    Fixed(Arc<KeySet>),
    /// A file, read again when it changes.
    File(FileSource),
    /// An address.
    Url(Arc<UrlSource>),
}

impl Source {
    pub(super) fn new(place: &config::Jwks, tasks: &Tasks) -> Result<Self, VerifierError> {
        match place {
            config::Jwks::File(path) => Ok(Self::File(FileSource { path: path.clone(), state: Mutex::default() })),
            config::Jwks::Url(text) => UrlSource::new(text, tasks).map(|source| Self::Url(Arc::new(source))),
        }
    }

    pub(super) fn is_from(&self, place: &config::Jwks) -> bool {
        match (self, place) {
            (Self::File(source), config::Jwks::File(path)) => source.path == *path,
            (Self::Url(source), config::Jwks::Url(text)) => source.text == *text,
            _ => false,
        }
    }

    /// The set as it is now; `None` if there is none.
    pub(super) async fn current(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::Fixed(set) => Some(set.clone()),
            Self::File(source) => source.current().await,
            Self::Url(source) => source.current(clock::boot_now()).await,
        }
    }

    /// A newer set than `seen`, after a `kid` was not in that.
    pub(super) async fn after_miss(&self, seen: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        match self {
            Self::Fixed(_) | Self::File(_) => None,
            Self::Url(source) => source.after_miss(seen, clock::boot_now()).await,
        }
    }
}

/// A file with a JWK Set.
#[derive(Debug)]
pub(super) struct FileSource {
    path: PathBuf,
    state: Mutex<FileState>,
}

#[derive(Debug, Default)]
struct FileState {
    looked: Option<BootInstant>,
    stamp: Option<Stamp>,
    set: Option<Arc<KeySet>>,
}

/// What tells one state of a file from the next: inode, size, and time of change in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

impl FileSource {
    async fn current(&self) -> Option<Arc<KeySet>> {
        let stamp = {
            let mut state = self.state.lock();
            let now = clock::boot_now();
            let is_due = state.looked.is_none_or(|looked| now.since(looked) >= FILE_SPACING);
            if !is_due && state.set.is_some() {
                return state.set.clone();
            }
            state.looked = Some(now);
            state.stamp
        };
        let path = self.path.clone();
        let read = tasks::blocking(move || read_if_changed(&path, stamp)).await;
        let mut state = self.state.lock();
        match read {
            Ok(None) => {}
            Ok(Some((stamp, set))) => {
                state.stamp = Some(stamp);
                state.set = Some(Arc::new(set));
            }
            Err(why) => tracing::warn!(path = ?self.path, why, "the issuer's key file cannot be used; the keys read before go on"),
        }
        state.set.clone()
    }
}

fn read_if_changed(path: &Path, known: Option<Stamp>) -> Result<Option<(Stamp, KeySet)>, String> {
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    let stamp = (about.ino(), about.len(), about.mtime(), about.mtime_nsec());
    if known == Some(stamp) {
        return Ok(None);
    }
    if about.len() > u64::try_from(SET_BYTES_MAX).unwrap_or(u64::MAX) {
        return Err(format!("larger than {SET_BYTES_MAX} bytes"));
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    KeySet::parse(&text).map(|set| Some((stamp, set)))
}

/// An address with a JWK Set.
#[derive(Debug)]
pub(super) struct UrlSource {
    text: String,
    url: Url,
    dialer: Dialer,
    tasks: Tasks,
    state: Mutex<UrlState>,
    /// Moves when a fetch ends, well or not.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct UrlState {
    set: Option<Arc<KeySet>>,
    fetched: BootInstant,
    attempted: Option<BootInstant>,
    is_fetching: bool,
}

impl UrlState {
    fn usable(&self, now: BootInstant) -> Option<Arc<KeySet>> {
        self.set.clone().filter(|_| now.since(self.fetched) < STALE_MAX)
    }

    fn may_fetch(&self, now: BootInstant) -> bool {
        let spacing = if self.set.is_some() { FETCH_SPACING } else { FIRST_FETCH_SPACING };
        self.attempted.is_none_or(|attempted| now.since(attempted) >= spacing)
    }
}

impl UrlSource {
    fn new(text: &str, tasks: &Tasks) -> Result<Self, VerifierError> {
        let refuse = |why: &str| VerifierError::Url(text.to_owned(), why.to_owned());
        let url = Url::parse(text).map_err(|why| refuse(&why))?;
        if !url.is_https() && !url.is_loopback() {
            return Err(refuse("keys are fetched over https only, unless from this machine"));
        }
        let dialer = Dialer::new(None, &[b"http/1.1"])?;
        Ok(Self { text: text.to_owned(), url, dialer, tasks: tasks.clone(), state: Mutex::default(), ended: watch::Sender::new(0) })
    }

    async fn current(self: &Arc<Self>, now: BootInstant) -> Option<Arc<KeySet>> {
        let is_fresh = |state: &UrlState| state.set.is_some() && now.since(state.fetched) < RENEW_AFTER;
        self.renewed_unless(is_fresh, now).await;
        self.state.lock().usable(now)
    }

    async fn after_miss(self: &Arc<Self>, seen: &Arc<KeySet>, now: BootInstant) -> Option<Arc<KeySet>> {
        let is_newer = |state: &UrlState| state.set.as_ref().is_some_and(|set| !Arc::ptr_eq(set, seen));
        self.renewed_unless(is_newer, now).await;
        self.state.lock().usable(now).filter(|set| !Arc::ptr_eq(set, seen))
    }

    /// Starts a fetch, or waits for the one under way, unless the state is good enough or it is too early. The
    /// fetch is a task of its own: a caller that goes away must not take the others' keys along.
    async fn renewed_unless(self: &Arc<Self>, is_good: impl Fn(&UrlState) -> bool, now: BootInstant) {
        let mut ended = {
            let mut state = self.state.lock();
            if is_good(&state) || !(state.is_fetching || state.may_fetch(now)) {
                return;
            }
            let ended = self.ended.subscribe();
            if !state.is_fetching {
                state.is_fetching = true;
                state.attempted = Some(now);
                let under_way = UnderWay(self.clone());
                self.tasks.spawn("jwks", async move { under_way.run().await });
            }
            ended
        };
        let _ = tokio::time::timeout(FETCH_MAX, ended.changed()).await;
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let request = fetch::Request {
            method: Method::GET,
            url: self.url.clone(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            deadline: FETCH_MAX,
            answer_bytes_max: SET_BYTES_MAX,
            clear_text: ClearText::LoopbackOnly,
        };
        let answer = fetch::fetch(&self.dialer, request).await.map_err(|error| error.to_string())?;
        if answer.status != StatusCode::OK {
            return Err(format!("the answer's status is {}", answer.status.as_u16()));
        }
        KeySet::parse(&answer.body)
    }
}

/// A fetch under way. Dropped, however that comes about, it lets the next one begin.
struct UnderWay(Arc<UrlSource>);

impl UnderWay {
    async fn run(self) {
        match self.0.fetch().await {
            Ok(set) => {
                let mut state = self.0.state.lock();
                state.set = Some(Arc::new(set));
                state.fetched = clock::boot_now();
            }
            Err(why) => {
                tracing::warn!(url = ?self.0.text, why, "the issuer's keys cannot be fetched; those fetched before serve for a day")
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state.lock().is_fetching = false;
        self.0.ended.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::SigningKey;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn good_jwk(name: &str) -> serde_json::Value {
        let folder = tempfile::tempdir().expect("a folder");
        let mut jwk = SigningKey::load_or_create(&folder.path().join("key.pem")).expect("made").jwk();
        jwk["kid"] = name.into();
        jwk
    }

    fn with(mut jwk: serde_json::Value, name: &str, value: serde_json::Value) -> serde_json::Value {
        jwk[name] = value;
        jwk
    }

    #[test]
    fn only_keys_that_can_be_pinned_are_taken() {
        let modulus = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff_u8; bytes]);
        let rows = [
            (good_jwk("a"), true),
            (with(good_jwk("a"), "use", json!("enc")), false),
            (with(good_jwk("a"), "key_ops", json!(["sign"])), false),
            (with(good_jwk("a"), "key_ops", json!(["verify"])), true),
            (with(good_jwk("a"), "alg", json!("ES256")), false),
            (with(good_jwk("a"), "alg", json!("HS256")), false),
            (with(good_jwk("a"), "alg", json!("none")), false),
            (with(good_jwk("a"), "crv", json!("Ed448")), false),
            (json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }), false),
            (json!({ "kty": "oct", "k": "c2VjcmV0" }), false),
            (json!({ "kty": "RSA", "n": modulus(128), "e": "AQAB" }), false),
            (json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB" }), true),
            (json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB", "alg": "PS256" }), true),
            (json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB", "alg": "RSA-OAEP" }), false),
            (json!({ "kty": "XYZ" }), false),
            (json!("text"), false),
        ];
        for (jwk, expected) in rows {
            assert_eq!(pin(&jwk).is_ok(), expected, "{jwk}");
        }
        assert!(KeySet::from_keys(&vec![good_jwk("a"); KEYS_MAX + 1]).is_err());
        assert!(KeySet::parse(br#"{"keys":[]}"#).is_err());
    }

    #[test]
    fn a_key_is_found_by_its_id_alone() {
        let set = KeySet::from_keys(&[good_jwk("a"), json!({}), good_jwk("a"), good_jwk("b")]).expect("two keys");
        assert_eq!(set.keys.len(), 2);
        assert!(set.find(Some("a")).is_some() && set.find(Some("c")).is_none() && set.find(None).is_none());
        assert!(KeySet::from_keys(&[good_jwk("a")]).expect("one key").find(None).is_some());
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jwks.json");
        let source = FileSource { path: path.clone(), state: Mutex::default() };
        assert!(source.current().await.is_none());
        for (text, expected) in [
            (json!({ "keys": [good_jwk("a")] }).to_string(), "a"),
            (json!({ "keys": [good_jwk("b"), good_jwk("longer")] }).to_string(), "b"),
            ("{".to_owned(), "b"),
        ] {
            std::fs::write(&path, text).expect("written");
            source.state.lock().looked = None;
            assert!(source.current().await.expect("a set").find(Some(expected)).is_some(), "{expected}");
        }
    }

    /// A small server that answers every connection with the set at hand and counts.
    async fn serve(set: Arc<Mutex<String>>) -> (String, Arc<AtomicUsize>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/jwks", listener.local_addr().expect("bound"));
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        Tasks::new().spawn("serve", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_err() {
                        break;
                    }
                    request.extend(byte);
                }
                let body = set.lock().clone();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, count)
    }

    #[tokio::test]
    async fn a_url_is_asked_once_for_many_callers_and_seldom_for_unknown_keys() {
        let published = Arc::new(Mutex::new(json!({ "keys": [good_jwk("a")] }).to_string()));
        let (url, count) = serve(published.clone()).await;
        let source = Arc::new(UrlSource::new(&url, &Tasks::new()).expect("a source"));
        let now = clock::boot_now();
        let sets = futures_util::future::join_all((0..20).map(|_| source.current(now))).await;
        assert!(sets.iter().all(Option::is_some));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        // An unknown key within half a minute asks nobody, afterwards it asks once.
        let seen = source.current(now).await.expect("a set");
        *published.lock() = json!({ "keys": [good_jwk("b")] }).to_string();
        assert!(source.after_miss(&seen, now).await.is_none());
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let later = now.plus(FETCH_SPACING);
        let fresh = source.after_miss(&seen, later).await.expect("a newer set");
        assert!(fresh.find(Some("b")).is_some() && fresh.find(Some("a")).is_none());
        assert!(source.after_miss(&fresh, later).await.is_none());
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn an_old_set_serves_while_the_issuer_is_away_but_not_for_ever() {
        let published = Arc::new(Mutex::new(json!({ "keys": [good_jwk("a")] }).to_string()));
        let (url, count) = serve(published.clone()).await;
        let source = Arc::new(UrlSource::new(&url, &Tasks::new()).expect("a source"));
        let now = clock::boot_now();
        assert!(source.current(now).await.is_some());
        *published.lock() = "not a set".into();
        assert!(source.current(now.plus(RENEW_AFTER)).await.is_some());
        assert_eq!(count.load(Ordering::SeqCst), 2, "a set of ten minutes is renewed");
        assert!(source.current(now.plus(STALE_MAX).plus(FETCH_SPACING)).await.is_none());
    }

    #[test]
    fn keys_are_not_fetched_in_clear_text_from_elsewhere() {
        for (url, expected) in [
            ("http://id.example.com/jwks", false),
            ("ftp://127.0.0.1/jwks", false),
            ("http://127.0.0.1:1/jwks", true),
            ("http://localhost/jwks", true),
            ("https://id.example.com/jwks", true),
        ] {
            assert_eq!(UrlSource::new(url, &Tasks::new()).is_ok(), expected, "{url}");
        }
    }
}

//! Where an issuer's keys come from (RFC 7517): read from a file or fetched, kept, and renewed.
//!
//! A file is looked at once a second and read when it has changed. A URL is asked every ten minutes while tokens come, and once for an unknown `kid`, but never twice within half a minute,
//! by one caller at a time. While it cannot be reached the last set serves for a day. Nothing a token says decides
//! where keys come from.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::VerifierError;
use super::key_set::KeySet;
use crate::clock;
use crate::config;
use crate::deadline::within;
use crate::dial::Dialer;
use crate::domain::BootInstant;
use crate::fetch::{self, ClearText, Url};
use crate::tasks::{self, Tasks};

/// Longest set, in bytes.
const SET_BYTES_MAX: usize = 1024 * 1024;
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
            config::Jwks::File(path) => Ok(Self::File(FileSource::new(path))),
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
    reading: tokio::sync::Mutex<()>,
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
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), reading: tokio::sync::Mutex::default(), state: Mutex::default() }
    }

    async fn current(&self) -> Option<Arc<KeySet>> {
        // One reader at a time: whoever comes while the file is read for the first time waits for what is in it.
        let _reading = self.reading.lock().await;
        let known = {
            let mut state = self.state.lock();
            let now = clock::boot_now();
            if state.looked.is_some_and(|looked| now.since(looked) < FILE_SPACING) {
                return state.set.clone();
            }
            state.looked = Some(now);
            state.stamp
        };
        let path = self.path.clone();
        let read = tasks::blocking(move || read_if_changed(&path, known)).await;
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
                let under_way = UnderWay { source: self.clone(), asked: now };
                self.tasks.spawn("jwks", async move { under_way.run().await });
            }
            ended
        };
        let _ = within(FETCH_MAX, pin!(ended.changed())).await;
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
struct UnderWay {
    source: Arc<UrlSource>,
    asked: BootInstant,
}

impl UnderWay {
    async fn run(self) {
        match self.source.fetch().await {
            Ok(set) => {
                let mut state = self.source.state.lock();
                state.set = Some(Arc::new(set));
                // Counted from before the question, so that the set is never thought younger than it is.
                state.fetched = self.asked;
            }
            Err(why) => {
                tracing::warn!(url = ?self.source.text, why, "the issuer's keys cannot be fetched; those fetched before serve for a day")
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.source.state.lock().is_fetching = false;
        self.source.ended.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::auth::key_set::tests::good_jwk;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jwks.json");
        let source = FileSource::new(&path);
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

//! Connections to Redis: a few for the hot path, one for what may be large, each opened again by whoever needs it next.
//!
//! A connection carries many calls at once. Whatever casts doubt on it (an error of input or output, no answer in time,
//! a master that was demoted) throws it away for all; the next caller opens another, and a failed attempt makes callers
//! fail at once for a while that grows, so that an absent Redis is not hammered and nobody queues for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, IntoConnectionInfo, RedisError, Script, TlsCertificates};

use crate::clock;
use crate::config::Redis;
use crate::domain::BootInstant;
use crate::store::StoreError;

/// Connections of the hot path: Redis answers each in order, so one slow reply holds up half of the calls and not all.
const HOT: usize = 2;
/// Calls under way on one connection; more wait outside, so that a stalled Redis does not queue without bound.
const CALLS_MAX: usize = 512;
/// How long connecting may take, TLS and sign-in included.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long a call of the hot path may take: a request waits for it.
const HOT_ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long any other call may take, a wait for Redis replicas included.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// First and longest pause between attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// All connections of a store.
pub(super) struct Connections {
    client: Client,
    hot: [Line; HOT],
    next: AtomicUsize,
    bulk: Line,
}

impl Connections {
    /// Reads what the configuration names; connects only when asked something.
    pub(super) fn new(config: &Redis) -> Result<Self, StoreError> {
        let client = client(config)?;
        Ok(Self {
            hot: std::array::from_fn(|_| Line::new(client.clone(), HOT_ANSWER_MAX)),
            next: AtomicUsize::new(0),
            bulk: Line::new(client.clone(), ANSWER_MAX),
            client,
        })
    }

    /// For calls that a request waits for.
    pub(super) fn hot(&self) -> &Line {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % HOT;
        self.hot.get(turn).expect("a remainder of the number of lines is a line")
    }

    /// For calls that may be large or slow.
    pub(super) fn bulk(&self) -> &Line {
        &self.bulk
    }

    /// For a subscription, which needs a connection to itself.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }
}

/// A sentence about a setting of the store that no waiting mends.
fn unusable(what: impl std::fmt::Display) -> StoreError {
    StoreError::Unsafe(what.to_string())
}

fn client(config: &Redis) -> Result<Client, StoreError> {
    let read = |field: &str, path: &std::path::Path| {
        std::fs::read(path).map_err(|error| unusable(format!("store.redis.{field}: {} cannot be read: {error}", path.display())))
    };
    let info = config.url.reveal().into_connection_info().map_err(|_| unusable("store.redis.url is not a Redis URL"))?;
    let mut settings = info.redis_settings().clone();
    if let Some(file) = &config.password_file {
        let password = String::from_utf8(read("password_file", file)?).map_err(|_| unusable("store.redis.password_file is not text"))?;
        settings = settings.set_password(password.trim_end_matches(['\r', '\n']));
    }
    // The library's default leaves Nagle's algorithm on, which delays small calls behind others.
    let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let opened = match &config.ca {
        Some(file) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(read("ca", file)?) }),
        None => Client::open(info),
    };
    opened.map_err(|error| unusable(format!("store.redis: {}", words(&error))))
}

/// One connection that many callers share.
pub(super) struct Line {
    client: Client,
    answer_max: Duration,
    connecting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Tells a connection from its successor, so that a late failure does not throw the successor away.
    generation: u64,
    pause: Option<(BootInstant, Duration)>,
    failure: String,
}

impl Line {
    fn new(client: Client, answer_max: Duration) -> Self {
        Self { client, answer_max, connecting: tokio::sync::Mutex::default(), state: Mutex::default() }
    }

    /// Calls a script; a Redis that does not know it yet is sent it.
    pub(super) async fn call<T: FromRedisValue>(&self, script: &Script, keys: &[String], arguments: &[String]) -> Result<T, StoreError> {
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        for argument in arguments {
            invocation.arg(argument);
        }
        self.run(async |connection: &mut MultiplexedConnection| invocation.invoke_async(connection).await).await
    }

    /// Sends one command.
    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        self.run(async |connection: &mut MultiplexedConnection| command.query_async(connection).await).await
    }

    async fn run<T>(&self, call: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>) -> Result<T, StoreError> {
        let (mut connection, generation) = self.connection().await?;
        let result = tokio::time::timeout(self.answer_max, call(&mut connection)).await;
        let error = match result {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)),
        };
        if casts_doubt(&error) {
            self.discard(generation);
        }
        Err(StoreError::Unavailable(words(&error)))
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        if let Some(known) = self.known()? {
            return Ok(known);
        }
        let _only_one_connects = self.connecting.lock().await;
        if let Some(known) = self.known()? {
            return Ok(known);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(self.answer_max))
            .set_concurrency_limit(CALLS_MAX)
            .set_pipeline_buffer_size(CALLS_MAX);
        let connected = tokio::time::timeout(CONNECT_MAX, self.client.get_multiplexed_async_connection_with_config(&config)).await;
        let mut state = self.state.lock();
        match connected {
            Ok(Ok(connection)) => {
                state.generation += 1;
                state.connection = Some(connection.clone());
                state.pause = None;
                Ok((connection, state.generation))
            }
            failed => {
                let why = failed.map_or_else(
                    |_| "no connection in time".to_owned(),
                    |result| result.err().map_or_else(String::new, |error| words(&error)),
                );
                let pause = state.pause.map_or(PAUSE.0, |(_, last)| (last * 2).min(PAUSE.1));
                state.pause = Some((clock::boot_now().plus(pause), pause));
                state.failure.clone_from(&why);
                Err(StoreError::Unavailable(why))
            }
        }
    }

    /// The connection that there is; an error while it is too early to try again.
    fn known(&self) -> Result<Option<(MultiplexedConnection, u64)>, StoreError> {
        let state = self.state.lock();
        if let Some(connection) = &state.connection {
            return Ok(Some((connection.clone(), state.generation)));
        }
        match state.pause {
            Some((until, _)) if clock::boot_now() < until => Err(StoreError::Unavailable(state.failure.clone())),
            _ => Ok(None),
        }
    }

    fn discard(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.connection = None;
        }
    }
}

/// Whether another connection may do better: this one broke, is silent, or leads to a server that only reads.
fn casts_doubt(error: &RedisError) -> bool {
    let lasting = ["READONLY", "MASTERDOWN", "LOADING", "NOAUTH"];
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || error.code().is_some_and(|code| lasting.contains(&code))
}

/// The error in words that may stand in a log: a server's own words are bytes from outside.
pub(super) fn words(error: &RedisError) -> String {
    error.to_string().escape_debug().to_string()
}

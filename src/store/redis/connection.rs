//! Connections to Redis: a few for the hot path, one for what may be large, and a pool for changes, which may have to wait
//! for Redis replicas. The first two are opened again by whoever needs them next.
//!
//! A connection carries many calls at once. Whatever casts doubt on it (an error of input or output, no answer in time,
//! a master that was demoted) throws it away for all; the next caller opens another, and a failed attempt makes callers
//! fail at once for a while that grows, so that an absent Redis is not hammered and nobody queues for it. A connection to
//! a Cluster mends itself; a doubtful one is replaced beside its callers, since its other servers may be well.
//!
//! The pool is `deadpool` with an opener of our own. `deadpool-redis` brings one for each shape, but that for Sentinel
//! takes no time limits and hands out connections to demoted masters, and none takes a changing password.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, ToRedisArgs, Value};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::connector::{Connector, Opened};
use super::identity::Identity;
use super::outage::explained;
use super::script::{self, Script};
use super::sentinels::ASK_INTERVAL;
use crate::clock;
use crate::config::Redis;
use crate::domain::BootInstant;
use crate::store::StoreError;
use crate::tasks::Tasks;

/// Connections of the hot path: Redis answers each in order, so one slow reply holds up half of the calls and not all.
const HOT: usize = 2;
/// Connections for changes: each is blocked while its change reaches the Redis replicas, and admins are few.
const CHANGES: usize = 4;
/// How long a call of the hot path may take: a request waits for it.
const HOT_ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long any other call may take, a wait for Redis replicas included.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a change may take to reach the Redis replicas that it must reach.
const REPLICAS_WAIT: Duration = Duration::from_secs(2);
/// How long a change may wait for a connection.
const CHANGE_WAIT: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Shortest time between two replacements of a connection to a Cluster.
const REPLACED_FOR_MIN: Duration = Duration::from_secs(1);

/// All connections of a store.
pub(super) struct Connections {
    connector: Arc<Connector>,
    hot: [Line; HOT],
    next: AtomicUsize,
    bulk: Line,
    changes: Pool<Opener>,
    identity: Arc<Identity>,
}

impl Connections {
    /// Reads what the configuration names; connects only when asked something.
    pub(super) fn new(config: &Redis, tasks: &Tasks) -> Result<Self, StoreError> {
        let (connector, identity) = (Connector::new(config)?, Arc::<Identity>::default());
        let line = |answer_max| Line::new(connector.clone(), answer_max, identity.clone(), tasks);
        let changes = Pool::builder(Opener(connector.clone()))
            .max_size(CHANGES)
            .wait_timeout(Some(CHANGE_WAIT))
            .create_timeout(Some(ANSWER_MAX))
            .recycle_timeout(Some(HOT_ANSWER_MAX))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::Unsafe(format!("store.redis: {error}")))?;
        Ok(Self {
            hot: std::array::from_fn(|_| line(HOT_ANSWER_MAX)),
            next: AtomicUsize::new(0),
            bulk: line(ANSWER_MAX),
            changes,
            connector,
            identity,
        })
    }

    /// For calls that a request waits for.
    pub(super) fn hot(&self) -> &Line {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % HOT;
        self.hot.get(turn).expect("a remainder of the number of lines is a line")
    }

    /// Which data set is known to be there.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For calls that may be large or slow.
    pub(super) fn bulk(&self) -> &Line {
        &self.bulk
    }

    /// Others, each to one of the servers alone that hold data; for looking at their settings.
    pub(super) async fn of_each_server(&self) -> Result<Vec<Self>, StoreError> {
        let servers = self.connector.servers().await?;
        servers.iter().map(|server| Self::new(server, &self.bulk.tasks)).collect()
    }

    /// For whoever needs a connection to itself.
    pub(super) fn connector(&self) -> Arc<Connector> {
        self.connector.clone()
    }

    /// Asks the sentinels again and again, so that connections to a master that was replaced are left.
    pub(super) fn follow_master(&self, tasks: &Tasks, ended: CancellationToken) {
        let (connector, stopping) = (self.connector.clone(), tasks.stopping());
        if !connector.has_sentinels() {
            return;
        }
        tasks.spawn("store sentinels", async move {
            let asking = async {
                loop {
                    if let Err(error) = connector.ask().await {
                        tracing::debug!(%error, "no master is named");
                    }
                    tokio::time::sleep(ASK_INTERVAL).await;
                }
            };
            tokio::select! {
                () = asking => {}
                () = ended.cancelled() => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// Calls a script that changes keys, and answers when so many Redis replicas have the change.
    ///
    /// The wait is for all that its connection has written, so it goes over the same one, to the server that holds the
    /// keys; `barrier` is written there first, since a change that was made by an earlier call is waited for as well.
    pub(super) async fn change<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[impl ToRedisArgs],
        replicas: u32,
        barrier: &str,
    ) -> Result<T, StoreError> {
        let mut opened = self.changes.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            other => StoreError::Unavailable(format!("no connection for a change: {other}")),
        })?;
        let (place, known) = (keys.first().map_or("", String::as_str), self.identity.of(keys));
        let attempt = async |opened: &mut Opened, call: Cmd| {
            let mut pipeline = Pipeline::new();
            pipeline.add_command(call);
            if replicas > 0 {
                pipeline.cmd("SET").arg(barrier).arg("").cmd("WAIT").arg(replicas).arg(milliseconds(REPLICAS_WAIT));
            }
            let answers = opened.connection.send_together(&pipeline, place).await?;
            answers.into_iter().map(Value::extract_error).collect::<RedisResult<Vec<Value>>>()
        };
        let calling = async {
            match attempt(&mut opened, script.by_hash(keys, arguments, &known)).await {
                Err(error) if script::is_unknown(&error) => attempt(&mut opened, script.by_body(keys, arguments, &known)).await,
                answered => answered,
            }
        };
        let answers = tokio::time::timeout(ANSWER_MAX, calling)
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|error| StoreError::Unavailable(explained(&error)));
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                drop(Object::take(opened));
                return Err(error);
            }
        };
        let answer = answers.next().unwrap_or(Value::Nil);
        if replicas > 0 {
            let reached: u32 = answers.nth(1).and_then(|count| redis::from_redis_value(count).ok()).unwrap_or(0);
            if reached < replicas {
                return Err(StoreError::Unavailable(format!(
                    "the change reached {reached} Redis replicas; replicas_ack_min wants {replicas}"
                )));
            }
        }
        redis::from_redis_value(answer).map_err(|error| StoreError::Unavailable(explained(&error.into())))
    }
}

/// Opens and looks over the pool's connections.
struct Opener(Arc<Connector>);

impl Manager for Opener {
    type Type = Opened;
    type Error = StoreError;

    async fn create(&self) -> Result<Opened, StoreError> {
        self.0.open(ANSWER_MAX).await
    }

    /// A connection that leads elsewhere by now, or is broken, is replaced.
    async fn recycle(&self, opened: &mut Opened, _: &Metrics) -> RecycleResult<StoreError> {
        if !self.0.is_current(opened) {
            return Err(RecycleError::message("it leads to a server that is no longer named the master"));
        }
        let pong: RedisResult<Value> = redis::cmd("PING").query_async(&mut opened.connection).await;
        pong.map(drop).map_err(|error| RecycleError::Backend(StoreError::Unavailable(explained(&error))))
    }
}

/// One connection that many callers share.
pub(super) struct Line {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    connector: Arc<Connector>,
    answer_max: Duration,
    identity: Arc<Identity>,
    connecting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: Option<Opened>,
    /// Tells a connection from its successor, so that a late failure does not throw the successor away.
    generation: u64,
    /// Since when something was asked and nothing at all was answered. Callers that give up earlier than a call may take
    /// leave no error behind, and a connection whose other end is gone without a word would be asked for ever.
    unheard_since: Option<BootInstant>,
    since: BootInstant,
    is_replaced: bool,
    pause: Option<(BootInstant, Duration)>,
    failure: String,
}

impl Line {
    fn new(connector: Arc<Connector>, answer_max: Duration, identity: Arc<Identity>, tasks: &Tasks) -> Self {
        let shared = Shared { connector, answer_max, identity, connecting: tokio::sync::Mutex::default(), state: Mutex::default() };
        Self { shared: Arc::new(shared), tasks: tasks.clone() }
    }

    /// Calls a script; a server that does not know it yet is sent its body, once for each server and each restart of it.
    /// The last argument, which the script takes off first, says which data set it must find.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[impl ToRedisArgs],
    ) -> Result<T, StoreError> {
        let known = self.shared.identity.of(keys);
        self.run(async |opened: &mut Opened| match script.by_hash(keys, arguments, &known).query_async(&mut opened.connection).await {
            Err(error) if script::is_unknown(&error) => script.by_body(keys, arguments, &known).query_async(&mut opened.connection).await,
            answered => answered,
        })
        .await
    }

    /// Sends one command.
    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        self.run(async |opened: &mut Opened| command.query_async(&mut opened.connection).await).await
    }

    /// The whole call, connecting and waiting for one's turn included, takes `answer_max` at most.
    async fn run<T>(&self, call: impl AsyncFnOnce(&mut Opened) -> RedisResult<T>) -> Result<T, StoreError> {
        let until = tokio::time::Instant::now() + self.shared.answer_max;
        let opened = tokio::time::timeout_at(until, self.opened()).await;
        let (mut opened, generation) = opened.unwrap_or_else(|_| Err(StoreError::Unavailable("no connection in time".to_owned())))?;
        self.shared.state.lock().unheard_since.get_or_insert_with(clock::boot_now);
        let result = tokio::time::timeout_at(until, call(&mut opened)).await;
        let error = match result {
            Ok(Ok(answer)) => {
                self.shared.heard(generation);
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(_) => timed_out(),
        };
        if casts_doubt(&error) {
            self.doubt(generation);
        } else {
            self.shared.heard(generation);
        }
        Err(StoreError::Unavailable(explained(&error)))
    }

    /// The connection, where need be after opening it, and its generation. Who waits for it may give up; the opening goes
    /// on, since it may take longer than anybody waits.
    async fn opened(&self) -> Result<(Opened, u64), StoreError> {
        if let Some(generation) = self.shared.silent() {
            self.doubt(generation);
        }
        if let Some(known) = self.shared.known()? {
            return Ok(known);
        }
        let (tell, told) = oneshot::channel();
        let shared = self.shared.clone();
        self.tasks.spawn("store connection", async move {
            // Nobody waits any more where this cannot be told.
            let _ = tell.send(shared.connect().await);
        });
        told.await.unwrap_or_else(|_| Err(StoreError::Unavailable("no connection: the process ends".to_owned())))
    }

    fn doubt(&self, generation: u64) {
        let mut state = self.shared.state.lock();
        if state.generation != generation {
            return;
        }
        state.unheard_since = None;
        if !self.shared.connector.is_cluster() {
            state.opened = None;
        } else if !state.is_replaced && clock::boot_now().since(state.since) >= REPLACED_FOR_MIN {
            state.is_replaced = true;
            let shared = self.shared.clone();
            self.tasks.spawn("store connection", async move { shared.replace().await });
        }
    }
}

impl Shared {
    async fn connect(&self) -> Result<(Opened, u64), StoreError> {
        let _only_one_connects = self.connecting.lock().await;
        if let Some(known) = self.known()? {
            return Ok(known);
        }
        let connected = match self.kept() {
            Some((opened, generation)) => match self.connector.confirm(&opened).await {
                Ok(true) => return Ok((opened, generation)),
                Ok(false) => self.connector.open(self.answer_max).await,
                Err(error) => Err(error),
            },
            None => self.connector.open(self.answer_max).await,
        };
        let mut state = self.state.lock();
        match connected {
            Ok(opened) => Ok((opened.clone(), state.take_up(opened))),
            Err(error) => {
                let pause = state.pause.map_or(PAUSE.0, |(_, last)| (last * 2).min(PAUSE.1));
                state.pause = Some((clock::boot_now().plus(pause), pause));
                state.failure = match &error {
                    StoreError::Unavailable(why) => why.clone(),
                    other => other.to_string(),
                };
                Err(error)
            }
        }
    }

    /// The connection that there is and that leads where it should; an error while it is too early to try again.
    fn known(&self) -> Result<Option<(Opened, u64)>, StoreError> {
        if let Some((opened, generation)) = self.kept()
            && self.connector.is_current(&opened)
        {
            return Ok(Some((opened, generation)));
        }
        let state = self.state.lock();
        match state.pause {
            Some((until, _)) if clock::boot_now() < until => Err(StoreError::Unavailable(state.failure.clone())),
            _ => Ok(None),
        }
    }

    fn heard(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.unheard_since = None;
        }
    }

    /// The connection's generation, if it has been asked for as long as a call may take and has answered nobody.
    fn silent(&self) -> Option<u64> {
        let state = self.state.lock();
        let is_silent = state.unheard_since.is_some_and(|since| clock::boot_now().since(since) >= self.answer_max);
        is_silent.then_some(state.generation)
    }

    fn kept(&self) -> Option<(Opened, u64)> {
        let state = self.state.lock();
        state.opened.clone().map(|opened| (opened, state.generation))
    }

    /// Opens another connection while the present one goes on; without success it stays.
    async fn replace(&self) {
        let _only_one_connects = self.connecting.lock().await;
        let connected = self.connector.open(self.answer_max).await;
        let mut state = self.state.lock();
        match connected {
            Ok(opened) => drop(state.take_up(opened)),
            Err(_) => (state.since, state.is_replaced) = (clock::boot_now(), false),
        }
    }
}

impl State {
    fn take_up(&mut self, opened: Opened) -> u64 {
        let generation = self.generation + 1;
        *self = Self { opened: Some(opened), generation, since: clock::boot_now(), ..Self::default() };
        generation
    }
}

fn timed_out() -> RedisError {
    RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Whether another connection may do better: this one broke, is silent, or leads to a server that only reads.
fn casts_doubt(error: &RedisError) -> bool {
    let lasting = ["READONLY", "MASTERDOWN", "LOADING", "NOAUTH", "WRONGPASS", "CLUSTERDOWN"];
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || error.code().is_some_and(|code| lasting.contains(&code))
}

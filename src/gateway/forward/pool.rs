//! The connections to one endpoint: how many, how long they are kept, who waits for one.
//!
//! A lease holds a slot; there are as many slots as `connections_max` (times the streams of one, for h2c). A connection is made only while no unused one is
//! left, so there are never more connections than slots. The connection used last is used next (the others age and go);
//! unused ones are closed well before common servers would close them, because a request written into a closing
//! connection is lost. HTTP/2 connections are shared. Which endpoint is asked is `balance`'s choice.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::RequestBody;
use super::connection::{self, Connection, Opened, Shared};
use super::health::Standing;
use super::http1::{Http1, Upgraded};
use super::outgoing::Outgoing;
use super::send::Trouble;
use crate::clock;
use crate::deadline::within;
use crate::dial::{Dialer, Endpoint, Scheme};
use crate::domain::BootInstant;
use crate::tasks::Tasks;

/// How long an unused connection is kept: less than the 60 s or 75 s after which common servers close theirs.
const UNUSED_MAX: Duration = Duration::from_secs(30);
/// How old a connection may become, so that load spreads over endpoints that were added behind one name.
const AGE_MAX: Duration = Duration::from_secs(600);
/// How often connections that are too old are looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long a request waits for a slot; a client's patience is worth more than a queue.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(1);
/// How many requests wait for a slot of one endpoint.
const SLOT_QUEUE_MAX: usize = 1_024;

/// What may be spent on one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    pub(super) connections_max: usize,
    pub(super) connect: Duration,
    pub(super) response_header: Duration,
    pub(super) idle: Duration,
}

/// What the request needs of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// Any protocol.
    Any,
    /// HTTP/1.1, because it is to be upgraded.
    Http1,
}

/// Where the connection may come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Used before, if there is one.
    Any,
    /// New, because one that was used before has just turned out to be closed.
    Fresh,
}

/// The dialers of an upstream: HTTP/2 where the endpoint offers it, and HTTP/1.1 alone.
#[derive(Clone, Debug)]
pub(super) struct Dialers {
    pub(super) any: Dialer,
    pub(super) http1: Dialer,
}

/// The connections to one endpoint.
pub(super) struct Pool {
    endpoint: Endpoint,
    dialers: Dialers,
    limits: Limits,
    tasks: Tasks,
    standing: Standing,
    slots: Arc<Semaphore>,
    slots_max: usize,
    waiting: AtomicUsize,
    unused: Mutex<Vec<Kept<Box<Http1>>>>,
    shared: Mutex<Vec<Kept<Shared>>>,
    speaks_http2: AtomicBool,
    /// One permit: whoever opens an HTTP/2 connection lets the others wait and share it.
    opening: Semaphore,
}

struct Kept<T> {
    connection: T,
    opened: BootInstant,
    used: BootInstant,
}

/// One request's hold on a connection.
pub(super) struct Lease {
    pool: Arc<Pool>,
    connection: Connection,
    opened: BootInstant,
    slot: OwnedSemaphorePermit,
}

/// A place of an upstream's, free again when dropped.
pub(super) struct Slot {
    _slot: OwnedSemaphorePermit,
}

impl Lease {
    /// Gives the connection a request.
    ///
    /// # Errors
    /// As [`Connection::begin`].
    pub(super) fn begin(&mut self, request: &Outgoing<'_>, body: RequestBody) -> Result<(), Trouble> {
        self.connection.begin(request, body, &self.pool.endpoint)
    }

    /// The connection, to be driven.
    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The connection, to be asked.
    pub(super) fn state(&self) -> &Connection {
        &self.connection
    }

    /// The raw connection after a `101`, and the slot that it goes on to take.
    pub(super) fn into_upgraded(self) -> Option<(Upgraded, Slot)> {
        Some((self.connection.into_upgraded()?, Slot { _slot: self.slot }))
    }

    /// The endpoint behind it.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.pool.endpoint
    }

    /// The exchange is complete on both sides: the connection may serve the next. A lease that is dropped instead closes it.
    pub(super) fn give_back(self) {
        let Self { pool, connection, opened, slot } = self;
        if let Connection::Http1(connection) = connection {
            if connection.is_reusable() && !pool.tasks.stopping().is_cancelled() {
                pool.unused.lock().push(Kept { connection, opened, used: clock::boot_now() });
            } else {
                connection.close();
            }
        }
        // After the push, so that whoever gets the slot finds the connection.
        drop(slot);
    }
}

impl Pool {
    pub(super) fn new(endpoint: Endpoint, dialers: Dialers, limits: Limits, tasks: Tasks) -> Arc<Self> {
        let speaks_http2 = endpoint.scheme == Scheme::H2c;
        // Where only TLS will tell the protocol, a slot is a connection, as it must be for HTTP/1.1.
        let streams = if speaks_http2 { connection::STREAMS_MAX } else { 1 };
        let slots_max = limits.connections_max.saturating_mul(streams).min(Semaphore::MAX_PERMITS);
        let pool = Arc::new(Self {
            endpoint,
            dialers,
            limits,
            standing: Standing::default(),
            slots: Arc::new(Semaphore::new(slots_max)),
            slots_max,
            waiting: AtomicUsize::new(0),
            unused: Mutex::default(),
            shared: Mutex::default(),
            speaks_http2: AtomicBool::new(speaks_http2),
            opening: Semaphore::new(1),
            tasks: tasks.clone(),
        });
        tasks.spawn("upstream pool upkeep", upkeep(Arc::downgrade(&pool), tasks.clone()));
        pool
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialers.any
    }

    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Requests that hold or wait for a connection.
    pub(super) fn load(&self) -> usize {
        let held = self.slots_max.saturating_sub(self.slots.available_permits());
        held + self.waiting.load(Ordering::Relaxed)
    }

    /// A connection for one request.
    ///
    /// # Errors
    /// `Overloaded` when no slot came free in time, otherwise what opening a connection gave.
    pub(super) async fn lease(self: &Arc<Self>, wanted: Wanted, origin: Origin) -> Result<Lease, Trouble> {
        if origin == Origin::Any
            && let Ok(slot) = self.slots.clone().try_acquire_owned()
        {
            if let Some((connection, opened)) = self.reuse(wanted) {
                return Ok(Lease { pool: self.clone(), connection, opened, slot });
            }
            drop(slot);
        }
        // Boxed, because it is rare and every request has room for this future.
        Box::pin(self.lease_in_turn(wanted, origin)).await
    }

    async fn lease_in_turn(self: &Arc<Self>, wanted: Wanted, origin: Origin) -> Result<Lease, Trouble> {
        let slot = self.slot().await?;
        let (connection, opened) = match origin {
            Origin::Any => match self.reuse(wanted) {
                Some(found) => found,
                None => self.open(wanted, origin).await?,
            },
            Origin::Fresh => {
                // The new one takes the place of an unused one, so that there are never more connections than slots.
                close(self.unused.lock().pop());
                self.open(wanted, origin).await?
            }
        };
        Ok(Lease { pool: self.clone(), connection, opened, slot })
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit, Trouble> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let queue = Queue::join(&self.waiting).ok_or(Trouble::Overloaded)?;
        let slot = within(SLOT_WAIT_MAX, pin!(self.slots.clone().acquire_owned())).await;
        drop(queue);
        slot.ok_or(Trouble::Overloaded)?.map_err(|_| Trouble::Overloaded)
    }

    /// A connection that was used before and can be used now; those that cannot are let go.
    fn reuse(&self, wanted: Wanted) -> Option<(Connection, BootInstant)> {
        if wanted == Wanted::Any
            && let Some(found) = self.share()
        {
            return Some(found);
        }
        loop {
            let mut kept = self.unused.lock().pop()?;
            if !self.is_stale(&kept) && kept.connection.is_idle() {
                return Some((Connection::Http1(kept.connection), kept.opened));
            }
            close([kept]);
        }
    }

    fn share(&self) -> Option<(Connection, BootInstant)> {
        self.shared.lock().iter_mut().find_map(|kept| {
            let stream = kept.connection.stream()?;
            kept.used = clock::boot_now();
            Some((Connection::Http2(stream), kept.opened))
        })
    }

    async fn open(&self, wanted: Wanted, origin: Origin) -> Result<(Connection, BootInstant), Trouble> {
        if wanted == Wanted::Any && self.speaks_http2.load(Ordering::Relaxed) {
            // Held while connecting, which has a deadline; those who wait share what comes of it.
            let turn = within(self.limits.connect, pin!(self.opening.acquire())).await.ok_or(Trouble::Timeout)?;
            let found = if origin == Origin::Any { self.share() } else { None };
            let made = match found {
                Some(found) => Ok(found),
                None => self.connect(wanted).await,
            };
            drop(turn);
            return made;
        }
        self.connect(wanted).await
    }

    async fn connect(&self, wanted: Wanted) -> Result<(Connection, BootInstant), Trouble> {
        let dialer = match wanted {
            Wanted::Any => &self.dialers.any,
            Wanted::Http1 => &self.dialers.http1,
        };
        let opened = connection::open(dialer, &self.endpoint, self.limits.connect, &self.tasks).await;
        let now = clock::boot_now();
        match opened {
            Ok(Opened::Http1(connection)) => {
                self.standing.connected();
                Ok((Connection::Http1(connection), now))
            }
            Ok(Opened::Http2(shared)) => {
                self.standing.connected();
                self.speaks_http2.store(true, Ordering::Relaxed);
                let stream = shared.stream().ok_or(Trouble::Broken)?;
                self.shared.lock().push(Kept { connection: shared, opened: now, used: now });
                Ok((Connection::Http2(stream), now))
            }
            Err(trouble) => {
                self.standing.not_connected();
                Err(trouble)
            }
        }
    }

    fn is_stale<T>(&self, kept: &Kept<T>) -> bool {
        let now = clock::boot_now();
        now.since(kept.used) > UNUSED_MAX.min(self.limits.idle) || now.since(kept.opened) > AGE_MAX
    }

    /// Lets go of connections that are closed, too old or too long unused. Requests on shared ones go on.
    fn tidy(&self) {
        let is_over = |kept: &mut Kept<Box<Http1>>| !kept.connection.is_idle() || self.is_stale(kept);
        let over: Vec<_> = self.unused.lock().extract_if(.., is_over).collect();
        close(over);
        let now = clock::boot_now();
        self.shared.lock().retain(|kept| {
            kept.connection.is_open() && !(kept.connection.is_unused() && self.is_stale(kept)) && now.since(kept.opened) <= AGE_MAX
        });
    }

    fn clear(&self) {
        let unused = std::mem::take(&mut *self.unused.lock());
        close(unused);
        self.shared.lock().clear();
    }
}

impl Drop for Pool {
    /// The upstream was taken out of the configuration, or has another by now.
    fn drop(&mut self) {
        self.clear();
    }
}

/// Closes connections, with a farewell that takes no time.
fn close(unused: impl IntoIterator<Item = Kept<Box<Http1>>>) {
    unused.into_iter().for_each(|kept| kept.connection.close());
}

/// A place in the queue for a slot, left when dropped.
struct Queue<'a>(&'a AtomicUsize);

impl<'a> Queue<'a> {
    fn join(waiting: &'a AtomicUsize) -> Option<Self> {
        let joined = waiting.try_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < SLOT_QUEUE_MAX).then_some(count + 1));
        joined.ok().map(|_| Self(waiting))
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tidies at every interval until the pool is gone; lets go of everything unused when the process drains.
async fn upkeep(pool: Weak<Pool>, tasks: Tasks) {
    let stopping = tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => {
                if let Some(pool) = pool.upgrade() {
                    pool.clear();
                }
                return;
            }
            () = tokio::time::sleep(UPKEEP_INTERVAL) => match pool.upgrade() {
                Some(pool) => pool.tidy(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::forward::Forwarder;
    use crate::gateway::forward::tests::support::{Script, exchange_once};
    use crate::metrics::Metrics;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::either::Either;

    #[tokio::test]
    async fn a_connection_that_was_closed_while_nobody_used_it_is_let_go_and_a_fresh_one_taken() {
        let script = Script::ok().await;
        let upstreams = [("a".to_owned(), script.config())].into();
        let upstream = Forwarder::new(&upstreams, &Tasks::new(), &Metrics::new(), None).unwrap().upstream("a").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        drop(listener.accept().await.unwrap());
        ours.readable().await.unwrap();
        let now = clock::boot_now();
        let connection = Box::new(Http1::new(Either::Left(ours)));
        upstream.balance().pick(&[]).unwrap().unused.lock().push(Kept { connection, opened: now, used: now });
        exchange_once(&upstream).await;
        assert_eq!(script.connections(), 1);
    }

    #[tokio::test]
    async fn old_and_closed_connections_are_let_go() {
        let script = Script::ok().await;
        let upstreams = [("a".to_owned(), script.config())].into();
        let upstream = Forwarder::new(&upstreams, &Tasks::new(), &Metrics::new(), None).unwrap().upstream("a").unwrap();
        let pool = upstream.balance().pick(&[]).unwrap();
        exchange_once(&upstream).await;
        pool.tidy();
        assert_eq!(pool.unused.lock().len(), 1);
        pool.unused.lock()[0].used = clock::boot_now().minus(UNUSED_MAX + Duration::from_secs(1));
        exchange_once(&upstream).await;
        assert_eq!((script.connections(), pool.load()), (2, 0));
        pool.unused.lock()[0].opened = clock::boot_now().minus(AGE_MAX + Duration::from_secs(1));
        pool.tidy();
        assert_eq!(pool.unused.lock().len(), 0);
    }
}

//! The load: closed loop, open loop, or connections that only stand there; one line of JSON at the end.
//!
//! Closed loop: each connection asks again as soon as it was answered; it finds the highest throughput and says nothing
//! honest about latency. Open loop (`--rate`): requests are due at fixed moments, whatever the answers do; a request
//! that finds no idle connection waits for one, and its latency counts from the moment at which it was due. So a pause of
//! the server lengthens every request that fell into it (no coordinated omission). What is unanswered at the end counts with
//! the time it had waited. `--hold S`: after `--requests` answers the connections stay open and idle for so long.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

use crate::arguments::Arguments;
use crate::client::{Answered, Client};
use crate::histogram::Histogram;
use crate::plan::Plan;
use crate::server::wait;

const TIMER: Token = Token(usize::MAX);
/// How long after the end answers are waited for.
const DRAIN: Duration = Duration::from_secs(2);
/// How often the end is looked for when nothing happens.
const TICK: Duration = Duration::from_millis(20);
/// After so many broken connections a load says so and gives up.
const ERRORS_MAX: u64 = 10_000;
const READ_BYTES: usize = 256 * 1024;

struct Load {
    plan: Plan,
    poll: Poll,
    clients: Vec<Client>,
    /// Taken in turn, so that all connections are used.
    idle: VecDeque<usize>,
    /// Moments at which requests were due that have found no connection yet.
    waiting: VecDeque<Instant>,
    began: Instant,
    planned: u64,
    sent: u64,
    connected: usize,
    statuses: BTreeMap<u16, u64>,
    errors: u64,
    unfinished: u64,
    first_error: Option<String>,
    latency: Histogram,
    finished: Instant,
}

/// Runs the load and prints what came of it.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let hold = Duration::from_secs_f64(arguments.or("hold", 0.0)?);
    let mut load = Load::new(Plan::read(arguments)?).map_err(|error| error.to_string())?;
    load.drive().map_err(|error| error.to_string())?;
    println!("{}", load.report());
    std::thread::sleep(hold);
    Ok(())
}

impl Load {
    fn new(plan: Plan) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            plan,
            poll: Poll::new()?,
            clients: Vec::new(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            began: now,
            planned: 0,
            sent: 0,
            connected: 0,
            statuses: BTreeMap::new(),
            errors: 0,
            unfinished: 0,
            first_error: None,
            latency: Histogram::new(),
            finished: now,
        })
    }

    fn drive(&mut self) -> io::Result<()> {
        self.connect_all()?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        self.poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let (mut events, mut scratch) = (Events::with_capacity(1024), vec![0; READ_BYTES]);
        self.began = Instant::now();
        while !self.is_over() {
            self.dispatch()?;
            if let Some(span) = self.until_due() {
                timerfd_settime(&timer, TimerfdTimerFlags::empty(), &after(span))?;
            }
            wait(&mut self.poll, &mut events, Some(TICK))?;
            // An expired timer needs no reading: setting it anew clears it.
            for event in events.iter().filter(|event| event.token() != TIMER) {
                self.progress(event.token().0, &mut scratch)?;
            }
            if self.errors > ERRORS_MAX {
                break;
            }
        }
        self.finished = Instant::now();
        self.count_unfinished();
        Ok(())
    }

    fn connect_all(&mut self) -> io::Result<()> {
        for place in 0..self.plan.connections {
            let client = Client::connect(&self.plan, self.poll.registry(), Token(place), place)?;
            self.clients.push(client);
            self.idle.push_back(place);
        }
        self.connected = self.plan.connections;
        Ok(())
    }

    fn is_over(&self) -> bool {
        let elapsed = self.began.elapsed();
        let is_idle = self.waiting.is_empty() && self.idle.len() == self.clients.len();
        (is_idle && (elapsed >= self.plan.span || self.all_planned())) || elapsed >= self.plan.span + DRAIN
    }

    fn all_planned(&self) -> bool {
        self.plan.requests.is_some_and(|most| self.planned >= most)
    }

    /// Begins what is due, on idle connections.
    fn dispatch(&mut self) -> io::Result<()> {
        self.plan_due();
        while !self.idle.is_empty() {
            let Some(due) = self.waiting.pop_front() else { break };
            let Some(place) = self.idle.pop_front() else { break };
            let number = self.sent;
            self.sent += 1;
            if let Err(error) = self.clients[place].begin(&self.plan, number, due) {
                self.fail(place, &error)?;
            }
        }
        Ok(())
    }

    /// Puts the moments that have come into the queue; in a closed loop that is one for each idle connection.
    fn plan_due(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.began) >= self.plan.span {
            return self.plan_until(self.began + self.plan.span);
        }
        match self.plan.rate {
            Some(_) => self.plan_until(now),
            None => {
                for _ in 0..self.idle.len() {
                    if !self.all_planned() {
                        self.planned += 1;
                        self.waiting.push_back(now);
                    }
                }
            }
        }
    }

    fn plan_until(&mut self, end: Instant) {
        while let Some(due) = self.next_due().filter(|due| *due <= end) {
            self.planned += 1;
            self.waiting.push_back(due);
        }
    }

    /// When the next request of an open loop is due.
    fn next_due(&self) -> Option<Instant> {
        let rate = self.plan.rate.filter(|_| !self.all_planned())?;
        Some(self.began + Duration::from_secs_f64(self.planned as f64 / rate))
    }

    fn until_due(&self) -> Option<Duration> {
        self.next_due().map(|due| due.saturating_duration_since(Instant::now()))
    }

    fn progress(&mut self, place: usize, scratch: &mut [u8]) -> io::Result<()> {
        match self.clients[place].progress(scratch) {
            Ok(Some(answered)) => self.note(place, &answered),
            Ok(None) => Ok(()),
            Err(error) => self.fail(place, &error),
        }
    }

    fn note(&mut self, place: usize, answered: &Answered) -> io::Result<()> {
        self.latency.record(answered.due.elapsed());
        *self.statuses.entry(answered.status).or_default() += 1;
        let is_worn = self.plan.per_connection.is_some_and(|most| self.clients[place].answers >= most);
        if answered.closes || is_worn {
            self.replace(place)?;
        }
        self.idle.push_back(place);
        // At once, not when all events of this turn were seen: the server should never wait for this tool.
        self.dispatch()
    }

    /// A connection that broke: with a request under way that is an error, without one the server had enough of it.
    fn fail(&mut self, place: usize, error: &io::Error) -> io::Result<()> {
        if self.clients[place].is_busy() {
            self.errors += 1;
            self.first_error.get_or_insert_with(|| error.to_string());
            self.idle.push_back(place);
        }
        self.replace(place)
    }

    fn replace(&mut self, place: usize) -> io::Result<()> {
        // The old socket leaves the poll when it is closed.
        self.clients[place] = Client::connect(&self.plan, self.poll.registry(), Token(place), self.connected)?;
        self.connected += 1;
        Ok(())
    }

    fn count_unfinished(&mut self) {
        let under_way = self.clients.iter().filter_map(Client::due);
        for due in under_way.chain(self.waiting.iter().copied()) {
            self.latency.record(due.elapsed());
            self.unfinished += 1;
        }
    }

    fn report(&self) -> String {
        let statuses: Vec<String> = self.statuses.iter().map(|(status, count)| format!("\"{status}\":{count}")).collect();
        let quantile = |share| self.latency.quantile_us(share);
        format!(
            "{{\"answers\":{},\"seconds\":{:.6},\"statuses\":{{{}}},\"errors\":{},\"first_error\":{:?},\"unfinished\":{},\
             \"connections\":{},\"latency_us\":{{\"mean\":{:.1},\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}}}",
            self.statuses.values().sum::<u64>(),
            self.finished.duration_since(self.began).as_secs_f64(),
            statuses.join(","),
            self.errors,
            self.first_error.as_deref().unwrap_or(""),
            self.unfinished,
            self.connected,
            self.latency.mean_us(),
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            quantile(0.999),
            self.latency.max_us(),
        )
    }
}

fn after(wait: Duration) -> Itimerspec {
    // Zero would disarm the timer.
    let wait = wait.max(Duration::from_nanos(1));
    let value = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
    Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value }
}

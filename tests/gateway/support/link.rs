//! A TCP connection that can be broken on purpose: a proxy on a port of its own that passes bytes on, or does not.
//!
//! What a network does to Redis connections: refuse, reset, close, stop carrying bytes one way or both without telling
//! anybody (half-open), carry them late, lead to another server. Bytes are never lost inside a connection that lives, as
//! TCP never loses them: what was held is delivered when the link is released, also to a peer that has long given up.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Bytes that are taken up at once; what comes meanwhile waits in the kernel. Much, because late pieces are late one after
/// the other, and a busy connection between two Redis servers must not fall behind for that.
const PIECE_BYTES: usize = 1024 * 1024;
/// How long a connection to the server behind the link may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Which way bytes go: up to the server, or down from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Up,
    Down,
}

/// What happens to bytes that go one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Flow {
    #[default]
    Pass,
    /// Each piece is delivered so much later.
    Late(Duration),
    /// Nothing is delivered until this changes; nobody is told.
    Held,
}

/// How connections are ended from the middle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// RST, as a host that has forgotten the connection answers.
    Reset,
    /// FIN, as a process that ends in order sends.
    Closed,
}

#[derive(Default)]
struct State {
    target: Option<SocketAddr>,
    up: Flow,
    down: Flow,
    is_refusing: bool,
    is_closed: bool,
    /// A connection that carries these bytes up is reset instead.
    fatal: Option<&'static [u8]>,
    /// A connection that carries any of these down is reset instead.
    lost: &'static [&'static [u8]],
    /// Connections with a smaller number deliver nothing until this is 0 again.
    held_below: u64,
    next: u64,
    live: Vec<(u64, [TcpStream; 2])>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// The proxy; it ends with the value.
pub(crate) struct Link {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Link {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        shared.change(|state| state.target = Some(target));
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { shared, address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens from now on to bytes of all connections that go `way`.
    pub(crate) fn flow(&self, way: Way, flow: Flow) {
        self.shared.change(|state| match way {
            Way::Up => state.up = flow,
            Way::Down => state.down = flow,
        });
    }

    /// Ends every connection that there is.
    pub(crate) fn cut(&self, ending: Ending) {
        let ended = std::mem::take(&mut self.shared.state().live);
        for (_, sockets) in ended {
            end(&sockets, ending);
        }
        self.shared.changed.notify_all();
    }

    /// Ends every connection and lets no other come about.
    pub(crate) fn refuse(&self) {
        self.shared.change(|state| state.is_refusing = true);
        self.cut(Ending::Reset);
    }

    /// Connections that are there deliver nothing until [`Link::heal`]; new ones do.
    pub(crate) fn hold_present(&self) {
        self.shared.change(|state| state.held_below = state.next);
    }

    /// Resets each connection on which these bytes go up, before they arrive.
    pub(crate) fn reset_on(&self, bytes: &'static [u8]) {
        self.shared.change(|state| state.fatal = Some(bytes));
    }

    /// Resets each connection on which any of these comes down: its server has done what it was asked, and nobody hears.
    pub(crate) fn lose_answers(&self, words: &'static [&'static [u8]]) {
        self.shared.change(|state| state.lost = words);
    }

    /// Everything passes again, and what was held is delivered.
    pub(crate) fn heal(&self) {
        self.shared.change(|state| {
            let State { target, next, is_closed, .. } = *state;
            *state = State { target, next, is_closed, live: std::mem::take(&mut state.live), ..State::default() };
        });
    }

    /// Leads to another server from now on; connections to the former one end.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        self.shared.change(|state| state.target = Some(target));
        self.cut(Ending::Reset);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.change(|state| state.is_closed = true);
        self.cut(Ending::Reset);
        // Wakes the accepting thread, so that it ends and frees the port.
        TcpStream::connect(self.address).ok();
    }
}

fn end(sockets: &[TcpStream], ending: Ending) {
    for socket in sockets {
        match ending {
            Ending::Reset => {
                // With no time to linger the last handle's end sends RST; this wakes whoever holds one.
                SockRef::from(socket).set_linger(Some(Duration::ZERO)).ok();
                socket.shutdown(Shutdown::Read).ok();
            }
            Ending::Closed => drop(socket.shutdown(Shutdown::Both)),
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        let (is_closed, target) = {
            let state = shared.state();
            (state.is_closed, state.target.filter(|_| !state.is_refusing))
        };
        if is_closed {
            return;
        }
        let server = target.and_then(|target| TcpStream::connect_timeout(&target, CONNECT_MAX).ok());
        match server {
            Some(server) => drop(join(client, server, shared)),
            None => end(&[client], Ending::Reset),
        }
    }
}

/// Carries bytes between the two until either ends.
fn join(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let handles = [client.try_clone()?, server.try_clone()?];
    let (client_end, server_end) = (client.try_clone()?, server.try_clone()?);
    let mut state = shared.state();
    let number = state.next;
    state.next += 1;
    state.live.push((number, handles));
    drop(state);
    for (way, from, to) in [(Way::Up, client, server), (Way::Down, server_end, client_end)] {
        let shared = Arc::downgrade(shared);
        thread::spawn(move || {
            carry(number, way, &from, &to, &shared);
            // The peer learns that no more comes; what it still says may still be heard.
            to.shutdown(Shutdown::Write).ok();
            if way == Way::Down
                && let Some(shared) = shared.upgrade()
            {
                shared.state().live.retain(|(known, _)| *known != number);
            }
        });
    }
    Ok(())
}

fn carry(number: u64, way: Way, mut from: &TcpStream, mut to: &TcpStream, shared: &Weak<Shared>) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        let Some(shared) = shared.upgrade() else { return };
        if !is_delivered(number, way, &piece[..count], &shared) || to.write_all(&piece[..count]).is_err() {
            return;
        }
    }
}

/// Waits until a piece may be delivered; false if its connection has been ended meanwhile.
fn is_delivered(number: u64, way: Way, piece: &[u8], shared: &Shared) -> bool {
    let came = Instant::now();
    let mut state = shared.state();
    let holds = |bytes: &[u8]| piece.windows(bytes.len()).any(|window| window == bytes);
    let is_fatal = match way {
        Way::Up => state.fatal.is_some_and(holds),
        Way::Down => state.lost.iter().any(|bytes| holds(bytes)),
    };
    if is_fatal {
        let place = state.live.iter().position(|(known, _)| *known == number);
        let ended = place.map(|place| state.live.swap_remove(place));
        drop(state);
        ended.iter().for_each(|(_, sockets)| end(sockets, Ending::Reset));
        return false;
    }
    loop {
        let is_live = state.live.iter().any(|(known, _)| *known == number);
        let flow = match way {
            _ if number < state.held_below => Flow::Held,
            Way::Up => state.up,
            Way::Down => state.down,
        };
        let due = match flow {
            _ if !is_live => return false,
            Flow::Pass => return true,
            Flow::Late(delay) => (came + delay).saturating_duration_since(Instant::now()),
            Flow::Held => Duration::MAX,
        };
        if due.is_zero() {
            return true;
        }
        let wait = due.min(Duration::from_secs(1));
        state = shared.changed.wait_timeout(state, wait).expect("no holder panics").0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::eventually::eventually;
    use super::super::{Client, Request, SOON, Upstream};
    use super::*;

    fn through(link: &Link) -> Option<u16> {
        Request::get("/ok").send_if_up(link.address())
    }

    #[test]
    fn a_link_passes_refuses_cuts_and_leads_elsewhere() {
        let (one, other) = (Upstream::start(), Upstream::start());
        let link = Link::to(one.address());
        let mut client = Client::connect(link.address());
        assert_eq!(client.exchange(&Request::get("/one")).expect("an answer").status, 200);
        link.cut(Ending::Reset);
        assert!(client.exchange(&Request::get("/cut")).is_err());
        link.refuse();
        assert_eq!(through(&link), None);
        link.heal();
        link.retarget(other.address());
        assert_eq!(through(&link), Some(200));
        assert_eq!((one.targets(), other.targets()), (vec!["/one".to_owned()], vec!["/ok".to_owned()]));
    }

    #[test]
    fn what_is_held_arrives_later_also_after_its_sender_has_gone() {
        let upstream = Upstream::start();
        let link = Link::to(upstream.address());
        link.flow(Way::Up, Flow::Held);
        let mut client = Client::connect(link.address());
        client.send(Request::get("/held").head()).expect("the link takes it");
        client.wait_at_most(Duration::from_millis(100));
        assert!(client.answer().is_err());
        drop(client);
        assert!(upstream.targets().is_empty());
        link.heal();
        eventually!(SOON, upstream.targets() == ["/held"]);
    }

    #[test]
    fn present_connections_can_be_held_while_new_ones_pass_and_words_can_be_fatal() {
        let upstream = Upstream::start();
        let link = Link::to(upstream.address());
        let mut client = Client::connect(link.address());
        client.exchange(&Request::get("/before")).expect("an answer");
        link.hold_present();
        client.send(Request::get("/held").head()).expect("the link takes it");
        assert_eq!(through(&link), Some(200));
        assert_eq!(upstream.count("/held"), 0);
        link.heal();
        assert_eq!(client.answer().expect("an answer").status, 200);
        link.reset_on(b"/fatal");
        assert!(client.exchange(&Request::get("/fatal")).is_err() && through(&link) == Some(200));
        assert_eq!(upstream.count("/fatal"), 0);
    }

    #[test]
    fn late_bytes_are_late() {
        let upstream = Upstream::start();
        let link = Link::to(upstream.address());
        link.flow(Way::Down, Flow::Late(Duration::from_millis(150)));
        let began = Instant::now();
        assert_eq!(through(&link), Some(200));
        assert!(began.elapsed() >= Duration::from_millis(150));
    }
}

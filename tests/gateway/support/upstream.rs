//! The service behind the gateway, which writes down what it was sent.
//!
//! A plain socket server, one thread per connection, with the strict reader of `wire`: whatever the gateway forwards
//! must be one unambiguous HTTP/1.1 message after the other. Each request is noted when its head has come, and its
//! note is completed when its body has ended, or not. What it answers is a function of the head.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::client::chunk;
use super::wire::{Broken, Fields, Framing, Head, Wire, declared_framing};

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    number: usize,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Fields,
    pub(crate) raw_head: Vec<u8>,
    pub(crate) framing: Option<Framing>,
    pub(crate) body_bytes: usize,
    pub(crate) body_sha256: [u8; 32],
    pub(crate) trailers: Fields,
    /// Whether the body ended as its framing said.
    pub(crate) complete: bool,
    /// When the gateway closed or reset the connection while this request was unfinished or unanswered.
    pub(crate) gone_at: Option<Instant>,
}

/// What the upstream answers.
pub(crate) enum Reply {
    /// A message framed by Content-Length.
    Whole { status: u16, fields: Vec<(String, String)>, body: Vec<u8> },
    /// The same once the gate is open.
    Held(Arc<Gate>),
    /// Chunks as they are handed in; the last chunk when the sender is dropped.
    Stream { fields: Vec<(String, String)>, pieces: mpsc::Receiver<Vec<u8>> },
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// These bytes, and the connection stays.
    RawKept(Vec<u8>),
    /// These bytes one at a time, each in a packet of its own; then the connection stays.
    Trickle(Vec<u8>),
    /// These bytes as soon as the head has come, without reading the body; then the connection is closed.
    Early(Vec<u8>),
    /// These bytes, a 101 of some kind, and from then on whatever comes is sent back.
    Tunnel(Vec<u8>),
    /// Nothing, until the gateway goes away.
    Never,
}

impl Reply {
    pub(crate) fn ok() -> Self {
        Self::text(200, "ok")
    }

    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self::Whole { status, fields: vec![("Content-Type".into(), "text/plain".into())], body: body.as_bytes().to_vec() }
    }

    /// A stream of events and the hand that feeds it.
    pub(crate) fn events() -> (mpsc::Sender<Vec<u8>>, Self) {
        let (feed, pieces) = mpsc::channel();
        (feed, Self::Stream { fields: vec![("Content-Type".into(), "text/event-stream".into())], pieces })
    }
}

/// Holds answers back until a test opens it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn open(&self) {
        *self.is_open.lock().expect("no holder panics") = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.is_open.lock().expect("no holder panics");
        // A bound, so that a failed test cannot hang for ever.
        let waited = self.opened.wait_timeout_while(closed, Duration::from_secs(120), |is_open| !*is_open);
        drop(waited.expect("no holder panics"));
    }
}

type Script = Box<dyn Fn(&Head) -> Reply + Send + Sync>;

struct Shared {
    script: Mutex<Arc<Script>>,
    seen: Mutex<Vec<Seen>>,
    /// How many requests were noted, forgotten ones too.
    noted: AtomicUsize,
    violations: Mutex<Vec<String>>,
    connections: AtomicUsize,
    is_closed: AtomicBool,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().expect("no holder panics")
    }

    /// Goes on with a note, unless it was forgotten meanwhile.
    fn go_on(&self, number: usize, with: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.seen().iter_mut().find(|seen| seen.number == number) {
            with(seen);
        }
    }
}

/// A running upstream.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Upstream {
    /// Answers 200 `ok` to everything.
    pub(crate) fn start() -> Self {
        Self::answering(|_| Reply::ok())
    }

    pub(crate) fn answering(script: impl Fn(&Head) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let script: Script = Box::new(script);
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            seen: Mutex::default(),
            noted: AtomicUsize::new(0),
            violations: Mutex::default(),
            connections: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { shared, address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers differently from now on.
    pub(crate) fn answer(&self, script: impl Fn(&Head) -> Reply + Send + Sync + 'static) {
        *self.shared.script.lock().expect("no holder panics") = Arc::new(Box::new(script));
    }

    /// Answers the next request to `target` with `reply`, everything else with 200 `ok`.
    pub(crate) fn answer_once(&self, target: &str, reply: Reply) {
        let (target, reply) = (target.to_owned(), Mutex::new(Some(reply)));
        self.answer(move |head| {
            let is_meant = head.start.split(' ').nth(1) == Some(target.as_str());
            let kept = if is_meant { reply.lock().expect("no holder panics").take() } else { None };
            kept.unwrap_or_else(Reply::ok)
        });
    }

    /// Every request whose head has come, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen().clone()
    }

    /// The targets of every request whose head has come.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.shared.seen().iter().map(|seen| seen.target.clone()).collect()
    }

    /// How many requests of this target have come.
    pub(crate) fn count(&self, target: &str) -> usize {
        self.shared.seen().iter().filter(|seen| seen.target == target).count()
    }

    /// The newest request of this target.
    #[track_caller]
    pub(crate) fn last(&self, target: &str) -> Seen {
        let seen = self.seen();
        seen.into_iter()
            .rev()
            .find(|seen| seen.target == target)
            .unwrap_or_else(|| panic!("the upstream saw no {target}: {:?}", self.targets()))
    }

    pub(crate) fn forget(&self) {
        self.shared.seen().clear();
    }

    /// How many connections the gateway has opened.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// What was not strict HTTP/1.1.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.violations.lock().expect("no holder panics").clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, so that it ends and frees the port.
        TcpStream::connect(self.address).ok();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for socket in listener.incoming().flatten() {
        if shared.is_closed.load(Ordering::SeqCst) {
            return;
        }
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            if let Ok(wire) = Wire::new(socket) {
                // Longer than any test: the gateway decides how long an unused connection lives.
                wire.wait_at_most(Duration::from_secs(300));
                serve(wire, &shared);
            }
        });
    }
}

fn serve(mut wire: Wire, shared: &Arc<Shared>) {
    loop {
        let head = match wire.head() {
            Ok(head) => head,
            Err(Broken::Malformed(what)) => return shared.violations.lock().expect("no holder panics").push(what),
            Err(_) => return,
        };
        let script = Arc::clone(&shared.script.lock().expect("no holder panics"));
        let reply = script(&head);
        let Some((number, framing)) = note(&head, shared) else { return };
        if let Reply::Early(bytes) = &reply {
            wire.send(bytes).ok();
            return;
        }
        if !read_body(&mut wire, framing, number, shared) || !respond(&mut wire, reply, &head, number, shared) {
            return;
        }
    }
}

/// Notes a head and answers the note's number and the body's framing; `None` if it is not one that an upstream may be sent.
fn note(head: &Head, shared: &Shared) -> Option<(usize, Framing)> {
    let words: Vec<&str> = head.start.split(' ').collect();
    let framing = declared_framing(&head.fields);
    let is_origin = matches!(words.as_slice(), [_, target, "HTTP/1.1"] if target.starts_with('/') || *target == "*");
    if !is_origin || framing.is_err() || head.fields.all("host").len() != 1 {
        shared.violations.lock().expect("no holder panics").push(format!("{} {:?}", head.start, head.fields));
        return None;
    }
    let number = shared.noted.fetch_add(1, Ordering::SeqCst);
    let seen = Seen {
        number,
        method: words.first().copied().unwrap_or_default().into(),
        target: words.get(1).copied().unwrap_or_default().into(),
        fields: head.fields.clone(),
        raw_head: head.raw.clone(),
        framing: framing.ok().flatten(),
        body_bytes: 0,
        body_sha256: [0; 32],
        trailers: Fields::default(),
        complete: false,
        gone_at: None,
    };
    let framing = seen.framing.unwrap_or(Framing::Length(0));
    shared.seen().push(seen);
    Some((number, framing))
}

/// Reads the body into the note; says whether it came whole.
fn read_body(wire: &mut Wire, framing: Framing, number: usize, shared: &Shared) -> bool {
    let (mut hash, mut count) = (Sha256::new(), 0);
    let ended = wire.body(framing, |piece| {
        hash.update(piece);
        count += piece.len();
        shared.go_on(number, |seen| seen.body_bytes = count);
    });
    if let Err(Broken::Malformed(what)) = &ended {
        shared.violations.lock().expect("no holder panics").push(what.clone());
    }
    shared.go_on(number, |seen| {
        seen.body_sha256 = hash.finalize().into();
        seen.complete = ended.is_ok();
        seen.gone_at = ended.is_err().then(Instant::now);
        seen.trailers = ended.clone().unwrap_or_default();
    });
    ended.is_ok()
}

/// Answers; says whether the connection can carry another request.
fn respond(wire: &mut Wire, reply: Reply, head: &Head, number: usize, shared: &Arc<Shared>) -> bool {
    match reply {
        Reply::Whole { status, fields, body } => wire.send(&whole(status, &fields, &body, head)).is_ok(),
        Reply::Held(gate) => {
            watch(wire.socket(), number, shared);
            gate.pass();
            wire.send(&whole(200, &[], b"ok", head)).is_ok()
        }
        Reply::Stream { fields, pieces } => {
            watch(wire.socket(), number, shared);
            stream(wire, &fields, &pieces)
        }
        Reply::Raw(bytes) => {
            wire.send(&bytes).ok();
            false
        }
        Reply::RawKept(bytes) => wire.send(&bytes).is_ok(),
        Reply::Trickle(bytes) => {
            wire.socket().set_nodelay(true).ok();
            bytes.iter().all(|byte| wire.send(std::slice::from_ref(byte)).is_ok())
        }
        Reply::Early(_) => false,
        Reply::Tunnel(bytes) => {
            // Until either side has had enough; how it ends shows at the client.
            wire.send(&bytes).and_then(|()| wire.echo()).ok();
            gone(number, shared);
            false
        }
        Reply::Never => {
            wire.end(Duration::from_secs(120));
            gone(number, shared);
            false
        }
    }
}

fn whole(status: u16, fields: &[(String, String)], body: &[u8], head: &Head) -> Vec<u8> {
    let is_bodiless = status == 204 || status == 304;
    let length = if is_bodiless { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let body = if is_bodiless || head.start.starts_with("HEAD ") { &[][..] } else { body };
    [status_line(status, fields).as_bytes(), length.as_bytes(), b"\r\n", body].concat()
}

fn status_line(status: u16, fields: &[(String, String)]) -> String {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} Scripted\r\n{lines}")
}

fn stream(wire: &mut Wire, fields: &[(String, String)], pieces: &mpsc::Receiver<Vec<u8>>) -> bool {
    let head = format!("{}Transfer-Encoding: chunked\r\n\r\n", status_line(200, fields));
    let mut is_alive = wire.send(head.as_bytes()).is_ok();
    while let Ok(piece) = pieces.recv() {
        is_alive = is_alive && wire.send(&chunk(&piece)).is_ok();
    }
    is_alive && wire.send(b"0\r\n\r\n").is_ok()
}

/// Notes when the gateway goes away while its request is being answered.
fn watch(socket: TcpStream, number: usize, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        // Peeking leaves a next request alone and ends with the connection.
        if matches!(socket.peek(&mut [0]), Ok(0) | Err(_)) {
            gone(number, &shared);
        }
    });
}

fn gone(number: usize, shared: &Shared) {
    shared.go_on(number, |seen| seen.gone_at = Some(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::super::client::{Client, Request};
    use super::*;

    #[test]
    fn the_upstream_notes_each_request_of_a_connection_with_its_body() {
        let upstream = Upstream::start();
        let mut client = Client::connect(upstream.address());
        for target in ["/one", "/two"] {
            let answer = client.exchange(&Request::post(target, "hello").streamed()).expect("an answer");
            assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "ok", true));
        }
        assert_eq!(upstream.targets(), ["/one", "/two"]);
        let seen = upstream.last("/two");
        assert_eq!((seen.body_bytes, seen.complete), (5, true));
        assert_eq!(seen.body_sha256, <[u8; 32]>::from(Sha256::digest("hello")));
        assert_eq!(upstream.connections(), 1);
        assert!(upstream.violations().is_empty());
    }

    #[test]
    fn the_upstream_finds_fault_with_what_could_be_read_in_two_ways() {
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\nHost: a\r\n\r\n",
            b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let upstream = Upstream::start();
            let mut client = Client::connect(upstream.address());
            client.send(bytes).expect("sent");
            client.end();
            assert_eq!((upstream.violations().len(), upstream.seen().len()), (1, 0), "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn the_upstream_notes_a_body_that_breaks_off() {
        let upstream = Upstream::start();
        let mut client = Client::connect(upstream.address());
        client.send(b"POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").expect("sent");
        client.finish_sending();
        client.end();
        let seen = upstream.last("/cut");
        assert!(!seen.complete && seen.gone_at.is_some() && seen.body_bytes == 4);
    }
}

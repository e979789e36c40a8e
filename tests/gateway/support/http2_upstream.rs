//! A service behind the gateway that speaks HTTP/2 in clear text (RFC 9113 section 3.3), with frames written by hand, so that
//! it can speak it badly.
//!
//! It answers 200 `ok` to each request whose end has come, but for the next one after `answer_next`, which is answered
//! with whatever bytes a test writes for its stream.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::frames::{self, Frame, Frames, frame, settings};
use super::wire::Broken;

/// The bytes of an answer, for the stream that asked.
pub(crate) type Written = fn(u32) -> Vec<u8>;

/// What becomes of the connection behind an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    Kept,
    Closed,
    /// Kept, and the answer comes one byte in a packet.
    Trickled,
}

#[derive(Default)]
struct Shared {
    next: Mutex<Option<(Written, After)>>,
    requests: AtomicUsize,
    connections: AtomicUsize,
    resets: AtomicUsize,
    is_closed: AtomicBool,
}

pub(crate) struct Http2Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Http2Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if accepting.is_closed.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&accepting);
                thread::spawn(move || serve(socket, &shared));
            }
        });
        Self { shared, address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn answer_next(&self, written: Written, after: After) {
        *self.shared.next.lock().expect("no holder panics") = Some((written, after));
    }

    /// How many requests have come whole.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many connections the gateway has opened.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many streams the gateway has reset.
    pub(crate) fn resets(&self) -> usize {
        self.shared.resets.load(Ordering::SeqCst)
    }
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, so that it ends and frees the port.
        TcpStream::connect(self.address).ok();
    }
}

fn serve(socket: TcpStream, shared: &Shared) {
    socket.set_nodelay(true).ok();
    let Ok(mut frames) = Frames::accepted(socket) else { return };
    // Longer than any test: the gateway decides how long an unused connection lives.
    frames.wait_at_most(Duration::from_secs(300));
    if frames.raw(&settings(&[])).is_ok() {
        while frames.frame().is_ok_and(|came| respond(&mut frames, &came, shared).is_ok()) {}
    }
}

/// An error ends the connection.
fn respond(frames: &mut Frames, came: &Frame, shared: &Shared) -> Result<(), Broken> {
    match came.kind {
        frames::SETTINGS if !came.has(frames::ACK) => frames.raw(&frame(frames::SETTINGS, frames::ACK, 0, &[]))?,
        frames::PING if !came.has(frames::ACK) => frames.raw(&frame(frames::PING, frames::ACK, 0, &came.payload))?,
        frames::RST_STREAM => drop(shared.resets.fetch_add(1, Ordering::SeqCst)),
        frames::HEADERS | frames::DATA if came.has(frames::END_STREAM) => {
            shared.requests.fetch_add(1, Ordering::SeqCst);
            let next = shared.next.lock().expect("no holder panics").take();
            let (written, after) = next.unwrap_or((well, After::Kept));
            let bytes = written(came.stream);
            match after {
                After::Trickled => bytes.iter().try_for_each(|byte| frames.raw(std::slice::from_ref(byte)))?,
                After::Kept | After::Closed => frames.raw(&bytes)?,
            }
            if after == After::Closed {
                return Err(Broken::Ended);
            }
        }
        _ => {}
    }
    Ok(())
}

/// An answer as it should be.
fn well(stream: u32) -> Vec<u8> {
    let head = frame(frames::HEADERS, frames::END_HEADERS, stream, &frames::block(&[(":status", "200")]));
    [head, frame(frames::DATA, frames::END_STREAM, stream, b"ok")].concat()
}

//! Attacks by HTTP/1.1: connections that give or take a little at a time, heads that are bombs, and mere numbers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use super::{Attack, Endings, Scale, Target, connect_from};
use crate::support::eventually::found;
use crate::support::{Client, Request};

/// All that is slow is cut by now: heads after 10 s, bodies soon after 10 s, readers after 30 s, the silent after 10 s.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a slow client does something.
const BEAT: Duration = Duration::from_secs(1);
/// What a slow reader lets its kernel hold.
const RECEIVE_BYTES: usize = 2 * 1024;
/// What is taken at a beat: so little that the kernel has nothing to tell the gateway before its patience ends. It holds a status.
const TASTE_BYTES: usize = 16;

pub(super) const SLOW_HEADS: [Attack; 2] = [
    Attack { name: "slow heads", run: slow_heads, endings: &["closed"] },
    Attack { name: "connections that say nothing", run: silent, endings: &["closed"] },
];
pub(super) const SLOW_BODIES: [Attack; 1] = [Attack { name: "slow bodies", run: slow_bodies, endings: &["408"] }];
pub(super) const SLOW_READERS: [Attack; 1] = [Attack { name: "slow readers", run: slow_readers, endings: &["reset", "closed"] }];
pub(super) const BOMBS: [Attack; 1] = [Attack { name: "header bombs", run: bombs, endings: &["414", "431", "closed", "reset"] }];
pub(super) const ONE_ADDRESS: Attack =
    Attack { name: "connections from one address", run: one_address, endings: &["closed at once", "let in"] };

fn slow_heads(target: &Target, scale: Scale) -> Endings {
    let start = format!("GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nX-Slow: ", target.key.secret);
    crowd(target, scale, None, start.as_bytes(), |socket| socket.write_all(b"x"))
}

fn silent(target: &Target, scale: Scale) -> Endings {
    crowd(target, scale, None, b"", |_| Ok(()))
}

fn slow_bodies(target: &Target, scale: Scale) -> Endings {
    let head = Request::new("POST", "/x").bearer(&target.key.secret).with("Content-Length", "100000").head();
    crowd(target, scale, None, &head, |socket| socket.write_all(b"x"))
}

fn slow_readers(target: &Target, scale: Scale) -> Endings {
    let head = Request::get("/large").bearer(&target.key.secret).head();
    crowd(target, scale, Some(RECEIVE_BYTES), &head, |_| Ok(()))
}

/// Opens connections, begins on each, and then does a little on each of them at every beat, until all have ended.
fn crowd(
    target: &Target,
    scale: Scale,
    receive_bytes: Option<usize>,
    start: &[u8],
    mut beat: impl FnMut(&mut TcpStream) -> std::io::Result<()>,
) -> Endings {
    let mut endings = Endings::default();
    let mut open: Vec<TcpStream> = Vec::new();
    for place in 0..scale.connections {
        // No faster than the test's upstream, a thread for each connection, accepts: that is not what is attacked.
        if place % 10 == 9 {
            Request::get("/x").bearer(&target.key.secret).send_to(target.edge).expect(200);
        }
        let mut socket = connect_from(Ipv4Addr::LOCALHOST, target.edge, receive_bytes).expect("it is let in");
        socket.write_all(start).expect("there is room for a head");
        socket.set_nonblocking(true).expect("a socket");
        open.push(socket);
    }
    let mut last = Instant::now();
    found(PATIENCE, "the end of every slow connection", || {
        if last.elapsed() < BEAT {
            return None;
        }
        last = Instant::now();
        open.retain_mut(|socket| {
            // Whether it could be written is told by what is read.
            beat(socket).ok();
            endings.sent += 1;
            let ended = how_it_ended(socket, receive_bytes);
            if let Some(way) = &ended {
                endings.add(way);
            }
            ended.is_none()
        });
        open.is_empty().then_some(())
    });
    endings
}

/// Takes a little of what is there; says how the connection ended if it did. An answer is an end, too.
fn how_it_ended(socket: &mut TcpStream, receive_bytes: Option<usize>) -> Option<String> {
    // What a slow reader's kernel had taken before a reset can still be read, for as long as there is any.
    if receive_bytes.is_some() && socket.take_error().is_ok_and(|error| error.is_some()) {
        return Some("reset".into());
    }
    let mut bytes = [0; TASTE_BYTES];
    match socket.read(&mut bytes) {
        Ok(0) => Some("closed".into()),
        // A slow reader goes on.
        Ok(_) if receive_bytes.is_some() => None,
        Ok(count) => Some(String::from_utf8_lossy(&bytes[..count]).split(' ').nth(1).unwrap_or("garbage").to_owned()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(_) => Some("reset".into()),
    }
}

/// Heads that are too much in each way in which they can be.
fn bombs(target: &Target, scale: Scale) -> Endings {
    let head = |fields: String| format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let bombs = [
        head((0..101).map(|place| format!("X-{place}: 1\r\n")).collect()),
        head((0..100).map(|place| format!("X-{place}: {}\r\n", "x".repeat(8_000))).collect()),
        head(format!("X: {}\r\n", "x".repeat(1_000_000))),
        head(format!("{}: 1\r\n", "x".repeat(1_000_000))),
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(1_000_000)),
        format!("{} / HTTP/1.1\r\nHost: localhost\r\n\r\n", "X".repeat(1_000_000)),
    ];
    let mut endings = Endings::default();
    for bomb in bombs.iter().cycle().take(scale.connections) {
        let mut client = connect_from(Ipv4Addr::LOCALHOST, target.edge, None).and_then(Client::over).expect("it is let in");
        client.send(bomb).ok();
        endings.sent += bomb.len();
        match client.answer() {
            Ok(answer) => endings.add(answer.status.to_string()),
            Err(crate::support::Broken::Ended) => endings.add("closed"),
            Err(crate::support::Broken::Reset) => endings.add("reset"),
            Err(other) => endings.add(format!("{other:?}")),
        }
    }
    endings
}

/// More connections than one address may have, all at once; those that are let in are used.
fn one_address(target: &Target, scale: Scale) -> Endings {
    let mut endings = Endings::default();
    let mut inside = Vec::new();
    for _ in 0..scale.connections {
        let mut client = connect_from(Ipv4Addr::LOCALHOST, target.edge, None).and_then(Client::over).expect("the kernel accepts");
        match client.exchange(&Request::get("/x").bearer(&target.key.secret)) {
            Ok(answer) if answer.status == 200 => inside.push(client),
            Ok(answer) => endings.add(answer.status.to_string()),
            Err(_) => endings.add("closed at once"),
        }
        endings.sent += 1;
    }
    inside.iter().for_each(|_| endings.add("let in"));
    endings
}

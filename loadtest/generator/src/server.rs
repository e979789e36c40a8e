//! An HTTP/1.1 server that answers each request from its head alone: one thread, keep-alive, pipelining, bodies thrown away.
//!
//! It understands what proxies send to a server of their own: `Content-Length` bodies, no chunks, no `Expect`. Several processes may
//! share an address (SO_REUSEPORT).

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

const LISTENER: Token = Token(usize::MAX);
/// Bytes read at once: a 10 MiB body takes few calls.
const READ_BYTES: usize = 256 * 1024;
/// Longest head that is waited for, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const BACKLOG: i32 = 4096;

/// Writes the answer to a request head (up to and with its empty line) behind what is there.
pub trait Service {
    /// Appends one complete answer.
    fn answer(&mut self, head: &[u8], out: &mut Vec<u8>);
}

struct Connection {
    stream: TcpStream,
    /// The part of a head that has arrived.
    input: Vec<u8>,
    /// Bytes of the present request's body that are still to come.
    body_left: u64,
    output: Vec<u8>,
    written: usize,
}

/// Serves until the process is ended.
pub fn serve(address: SocketAddr, service: &mut impl Service) -> Result<(), String> {
    run(address, service).map_err(|error| format!("{address}: {error}"))
}

fn run(address: SocketAddr, service: &mut impl Service) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = listen(address)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut scratch = vec![0; READ_BYTES];
    loop {
        wait(&mut poll, &mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept_all(&listener, &poll, &mut connections)?;
                continue;
            }
            let place = &mut connections[event.token().0];
            let is_over = place.as_mut().is_some_and(|connection| connection.progress(&mut scratch, service).is_err());
            if is_over {
                *place = None;
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn accept_all(listener: &TcpListener, poll: &Poll, connections: &mut Vec<Option<Connection>>) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // A client that left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let place = connections.iter().position(Option::is_none).unwrap_or(connections.len());
        poll.registry().register(&mut stream, Token(place), Interest::READABLE | Interest::WRITABLE)?;
        let connection = Connection { stream, input: Vec::new(), body_left: 0, output: Vec::new(), written: 0 };
        if place == connections.len() {
            connections.push(Some(connection));
        } else {
            connections[place] = Some(connection);
        }
    }
}

impl Connection {
    /// Reads, answers and writes what it can; an error is also the client's orderly end.
    fn progress(&mut self, scratch: &mut [u8], service: &mut impl Service) -> io::Result<()> {
        self.write()?;
        loop {
            let count = match self.stream.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.take(&scratch[..count], service)?;
            self.write()?;
            // Events are edges: a read that was not filled has emptied the socket, and the next bytes are a new edge.
            if count < scratch.len() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, bytes: &[u8], service: &mut impl Service) -> io::Result<()> {
        let rest = self.skip_body(bytes);
        if self.input.is_empty() {
            let used = self.answer_all(rest, service)?;
            self.input.extend_from_slice(&rest[used..]);
            return Ok(());
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(rest);
        let used = self.answer_all(&input, service)?;
        input.drain(..used);
        self.input = input;
        Ok(())
    }

    /// Answers all complete heads and says how many bytes that took, bodies that have arrived included.
    fn answer_all(&mut self, bytes: &[u8], service: &mut impl Service) -> io::Result<usize> {
        let mut used = 0;
        while self.body_left == 0 {
            let rest = &bytes[used..];
            let Some(end) = head_end(rest) else {
                return if rest.len() > HEAD_BYTES_MAX { Err(io::ErrorKind::InvalidData.into()) } else { Ok(used) };
            };
            let head = &rest[..end];
            // The answer may be written before the body has come; the client reads it all the same.
            service.answer(head, &mut self.output);
            self.body_left = content_length(head);
            used = bytes.len() - self.skip_body(&rest[end..]).len();
        }
        Ok(used)
    }

    fn skip_body<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let skipped = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(bytes.len());
        self.body_left -= skipped as u64;
        &bytes[skipped..]
    }

    fn write(&mut self) -> io::Result<()> {
        // No answer overtakes the body it belongs to: proxies stop sending when they are answered early.
        while self.written < self.output.len() && self.body_left == 0 {
            match self.stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        Ok(())
    }
}

/// Waits for events; a signal that interrupts (the process was stopped and goes on) is no event and no error.
pub fn wait(poll: &mut Poll, events: &mut Events, most: Option<Duration>) -> io::Result<()> {
    match poll.poll(events, most) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            events.clear();
            Ok(())
        }
        result => result,
    }
}

/// Where the head ends, behind its empty line.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|place| place + 4)
}

/// The value of a header field; `name` in lower case.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.find_map(|line| {
        let is_it = line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name.as_bytes());
        is_it.then(|| line[name.len() + 1..].trim_ascii())
    })
}

/// The declared length of a body; 0 where none is declared.
pub fn content_length(head: &[u8]) -> u64 {
    let digits = header(head, "content-length").unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_and_read() {
        let head = b"POST / HTTP/1.1\r\nContent-length: 12\r\nX: y\r\n\r\nrest";
        assert_eq!(head_end(head), Some(head.len() - 4));
        assert_eq!(content_length(head), 12);
        assert_eq!(header(head, "x"), Some(&b"y"[..]));
        assert_eq!((header(head, "host"), head_end(b"GET /")), (None, None));
    }
}

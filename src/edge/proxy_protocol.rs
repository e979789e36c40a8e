//! The PROXY protocol, versions 1 and 2, as HAProxy's `proxy-protocol.txt` writes it down: who the client behind a proxy is.
//!
//! Strict and bounded: a header that deviates in a byte is an error, and an error closes the connection, because what
//! follows could be anybody's. Reads not one byte beyond the header. Whether the peer may speak for others is decided
//! by the caller.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The first twelve bytes of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes that any header has, whatever its version: `PROXY UNKNOWN\r\n` is the shortest.
const SHORTEST: usize = 15;
/// Longest line of version 1, in bytes, its CRLF included (section 2.1 of the protocol).
const LINE_BYTES_MAX: usize = 107;
/// Most bytes of addresses and extensions in version 2. TLVs seen in the field (unique ids, VPC endpoints, TLS facts)
/// take a few hundred bytes.
const VERSION2_BYTES_MAX: usize = 2048;

/// Whom the header names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Announced {
    /// The proxy speaks for itself (a health check), or does not know: the socket's own address stays.
    Proxy,
    /// The client behind the proxy.
    Client(SocketAddr),
}

/// Reads one header from the beginning of a connection.
///
/// # Errors
/// `InvalidData` for anything that is not a header, and what reading itself runs into.
pub(super) async fn read_header<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<Announced> {
    let mut start = [0; SHORTEST];
    stream.read_exact(&mut start).await?;
    match start.strip_prefix(&SIGNATURE) {
        Some(rest) => read_version2(stream, rest).await,
        None => read_line(stream, &start).await,
    }
}

async fn read_line<R: AsyncRead + Unpin>(stream: &mut R, start: &[u8]) -> io::Result<Announced> {
    if !start.starts_with(b"PROXY ") {
        return Err(invalid("no PROXY protocol header"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(invalid("a PROXY line longer than 107 bytes"));
        }
        line.push(stream.read_u8().await?);
    }
    parse_line(&line).ok_or_else(|| invalid("a PROXY line that cannot be read"))
}

fn parse_line(line: &[u8]) -> Option<Announced> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = text.split(' ');
    words.next().filter(|word| *word == "PROXY")?;
    let client = match words.next()? {
        "UNKNOWN" => return Some(Announced::Proxy),
        "TCP4" => client_of::<Ipv4Addr>(&mut words)?,
        "TCP6" => client_of::<Ipv6Addr>(&mut words)?,
        _ => return None,
    };
    words.next().is_none().then_some(Announced::Client(client))
}

fn client_of<'a, A: FromStr + Into<IpAddr>>(words: &mut impl Iterator<Item = &'a str>) -> Option<SocketAddr> {
    let source: A = words.next()?.parse().ok()?;
    let _destination: A = words.next()?.parse().ok()?;
    let source_port = port(words.next()?)?;
    let _destination_port = port(words.next()?)?;
    Some(SocketAddr::new(source.into(), source_port))
}

/// Digits only: Rust's own parser would take `+80` and `0080`.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

/// `rest` is what the first read took beyond the signature: command, family, and the first byte of the length.
async fn read_version2<R: AsyncRead + Unpin>(stream: &mut R, rest: &[u8]) -> io::Result<Announced> {
    let &[command, family, length_high] = rest else { return Err(invalid("a PROXY header that is cut short")) };
    let length = usize::from(u16::from_be_bytes([length_high, stream.read_u8().await?]));
    if length > VERSION2_BYTES_MAX {
        return Err(invalid("a PROXY header longer than 2 KiB"));
    }
    let mut addresses = vec![0; length];
    stream.read_exact(&mut addresses).await?;
    parse_version2(command, family, &addresses).ok_or_else(|| invalid("a PROXY header that cannot be read"))
}

fn parse_version2(command: u8, family: u8, addresses: &[u8]) -> Option<Announced> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const UNSPECIFIED: u8 = 0x00;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    match (command, family) {
        (LOCAL, _) | (PROXY, UNSPECIFIED) => Some(Announced::Proxy),
        (PROXY, TCP4) => {
            // Source, destination, source port, destination port; extensions may follow.
            let (block, _extensions) = addresses.split_first_chunk::<12>()?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *block;
            Some(Announced::Client(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low]))))
        }
        (PROXY, TCP6) => {
            let (block, _extensions) = addresses.split_first_chunk::<36>()?;
            let (source, rest) = block.split_first_chunk::<16>()?;
            let (_destination, ports) = rest.split_first_chunk::<16>()?;
            let (source_port, _) = ports.split_first_chunk::<2>()?;
            Some(Announced::Client(SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes(*source_port))))
        }
        _ => None,
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a header that is followed by a request, and checks that the request is left alone.
    async fn check(header: &[u8], expected: Option<Announced>) {
        let bytes = [header, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        let mut stream = bytes.as_slice();
        let read = read_header(&mut stream).await.ok();
        assert_eq!(read, expected, "{}", header.escape_ascii());
        if expected.is_some() {
            assert!(stream.starts_with(b"GET / "), "{} took bytes of the request", header.escape_ascii());
        }
    }

    fn client(text: &str) -> Option<Announced> {
        Some(Announced::Client(text.parse().unwrap()))
    }

    #[tokio::test]
    async fn version_1_is_read_strictly() {
        check(b"PROXY TCP4 203.0.113.7 10.0.0.1 50000 443\r\n", client("203.0.113.7:50000")).await;
        check(b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n", client("[2001:db8::7]:50000")).await;
        check(b"PROXY UNKNOWN\r\n", Some(Announced::Proxy)).await;
        check(b"PROXY UNKNOWN ffff:f::1 ffff:f::2 65535 65535\r\n", Some(Announced::Proxy)).await;
        for refused in [
            "PROXY TCP4 203.0.113.7 10.0.0.1 50000 443\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 50000 443 x\r\n",
            "PROXY TCP4  203.0.113.7 10.0.0.1 50000 443\r\n",
            "PROXY TCP4 203.0.113.07 10.0.0.1 50000 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 050000 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 +5000 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 65536 443\r\n",
            "PROXY TCP4 2001:db8::7 10.0.0.1 50000 443\r\n",
            "PROXY TCP5 203.0.113.7 10.0.0.1 50000 443\r\n",
            "proxy TCP4 203.0.113.7 10.0.0.1 50000 443\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            check(refused.as_bytes(), None).await;
        }
        check(format!("PROXY UNKNOWN {}\r\n", "x".repeat(91)).as_bytes(), Some(Announced::Proxy)).await;
        check(format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)).as_bytes(), None).await;
    }

    fn version2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    #[tokio::test]
    async fn version_2_is_read_strictly() {
        let four = [203, 0, 113, 7, 10, 0, 0, 1, 0xC3, 0x50, 1, 187];
        let with_extension = [&four[..], &[0x04, 0, 2, 0, 0]].concat();
        let six = [&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0xC3, 0x50, 1, 187]].concat();
        check(&version2(0x21, 0x11, &four), client("203.0.113.7:50000")).await;
        check(&version2(0x21, 0x11, &with_extension), client("203.0.113.7:50000")).await;
        check(&version2(0x21, 0x21, &six), client("[2001:db8::7]:50000")).await;
        check(&version2(0x20, 0x00, &[]), Some(Announced::Proxy)).await;
        check(&version2(0x20, 0x11, &four), Some(Announced::Proxy)).await;
        check(&version2(0x21, 0x00, &[]), Some(Announced::Proxy)).await;
        check(&version2(0x21, 0x11, &four[..11]), None).await;
        check(&version2(0x21, 0x21, &four), None).await;
        check(&version2(0x21, 0x12, &four), None).await;
        check(&version2(0x11, 0x11, &four), None).await;
        check(&version2(0x22, 0x11, &four), None).await;
        check(&version2(0x21, 0x11, &[0; 2049]), None).await;
    }

    #[tokio::test]
    async fn a_header_that_ends_early_is_an_error() {
        let whole = version2(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0xC3, 0x50, 1, 187]);
        for length in 0..whole.len() {
            assert!(read_header(&mut &whole[..length]).await.is_err(), "{length} bytes were taken for a header");
        }
    }
}

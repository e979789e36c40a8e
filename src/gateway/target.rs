//! The first step: is it certain what this request asks for, of whom, and where it ends?
//!
//! `check` refuses every request that two programs could read in two ways: ambiguous framing, a missing or
//! contradicted Host, a target with dot segments, double slashes, encoded slashes or half an escape. It hands
//! back a `Target`: the one reading on which routes are matched and which is forwarded, byte for byte.
//! Whether a body may be as long as it says is `forward::check_declared_length`'s question, who asks is `credential`'s.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};

use crate::domain::Rejection;

/// Longest request target in bytes; what common servers accept, and more than any link needs (RFC 9112 section 3 asks for 8,000).
pub const TARGET_BYTES_MAX: usize = 8_192;
/// Most header fields of a request; hyper's own limit for HTTP/1, here for HTTP/2 as well.
pub const HEADER_FIELDS_MAX: usize = 100;
/// Most bytes of all header names and values together, so that one request cannot hold much memory.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// The methods that routes and upstreams tell apart; any other spelling of one is refused.
const STANDARD_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
/// Longest Host in bytes: a DNS name of 253 bytes, brackets or a dot, and a port.
const HOST_BYTES_MAX: usize = 261;
/// `: ` and the line end that each field costs on the wire of HTTP/1.
const FIELD_OVERHEAD_BYTES: usize = 4;

/// What a request asks for, read in the only way there is. Made by [`check`] alone.
#[derive(Clone, Debug)]
pub struct Target {
    path_and_query: PathAndQuery,
    /// The path with every escape resolved, where it differs from the forwarded one.
    decoded_path: Option<Box<str>>,
    authority: HeaderValue,
    host: Box<str>,
}

/// One segment of the path, as routes compare it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// The segment with every escape resolved.
    pub text: &'a str,
}

/// The segments of a path that are still to come.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a>(Option<&'a str>);

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let rest = self.0?;
        let (text, rest) = rest.split_once('/').map_or((rest, None), |(text, rest)| (text, Some(rest)));
        self.0 = rest;
        Some(Segment { text })
    }
}

impl Segment<'_> {
    /// Whether an upstream may take this segment for `name`: it is `name`, or `name` with parameters or an added
    /// extension, or followed by white space, which some trim. Deny rules ask this, so that `reset;x=1`, `reset.json` and
    /// `reset%20` are as forbidden as `reset`.
    pub fn is_form_of(&self, name: &str) -> bool {
        let ends_segment = |rest: &str| rest.is_empty() || rest.starts_with(';') || rest.starts_with(char::is_whitespace);
        self.text.strip_prefix(name).is_some_and(|rest| ends_segment(rest) || rest.starts_with('.'))
    }
}

impl Target {
    /// Path and query as they are forwarded: escapes of unreserved characters resolved, all others in upper case.
    pub fn path_and_query(&self) -> &PathAndQuery {
        &self.path_and_query
    }

    /// The path with every escape resolved; begins with `/`, or is `*` (OPTIONS only).
    pub fn path(&self) -> &str {
        self.decoded_path.as_deref().unwrap_or_else(|| self.path_and_query.path())
    }

    /// The segments of [`Target::path`], without the empty one after a trailing slash. `/` and `*` have none.
    pub fn segments(&self) -> Segments<'_> {
        let rest = self.path().strip_prefix('/').unwrap_or("");
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        Segments((!rest.is_empty()).then_some(rest))
    }

    /// Whether the path ends with a slash; kept when forwarding, ignored by deny rules.
    pub fn has_trailing_slash(&self) -> bool {
        self.path().ends_with('/')
    }

    /// The host in lower case, without port and without the root's trailing dot; IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host as it is forwarded: [`Target::host`] with the client's port if it named one.
    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }

    /// Every value that an upstream may read for a query parameter. Names and values are percent-decoded with `+` as a
    /// space. `&` separates, and for those who follow HTML 4 (appendix B.2.2) `;` does too: both readings are given.
    /// What is not UTF-8 becomes U+FFFD, which equals no id.
    pub fn query_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let query = self.path_and_query.query().unwrap_or("");
        let pairs = query.split('&').chain(query.split(['&', ';']).filter(move |_| query.contains(';')));
        pairs.filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_form(key) == name).then(|| decode_form(value))
        })
    }

    /// [`Target::path_and_query`] with `prefix` cut off where the path has it as whole segments, and unchanged where not.
    pub fn without_prefix(&self, prefix: &str) -> PathAndQuery {
        let prefix = prefix.trim_end_matches('/');
        let rest =
            self.path_and_query.path().strip_prefix(prefix).filter(|rest| !prefix.is_empty() && (rest.is_empty() || rest.starts_with('/')));
        let Some(rest) = rest else { return self.path_and_query.clone() };
        let path = if rest.is_empty() { "/" } else { rest };
        let shorter = match self.path_and_query.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        PathAndQuery::from_maybe_shared(shorter).expect("the tail of a valid path that begins at a slash is a valid path")
    }
}

/// Checks method, framing, host, sizes and path, in this order.
///
/// # Errors
/// `MethodRefused`, `FramingAmbiguous`, `HostInvalid`, `TargetTooLong`, `HeadersTooLarge` or `TargetAmbiguous`; each is
/// made here only (`MethodRefused` through [`method_refused`] by the forwarder too).
pub fn check(parts: &Parts) -> Result<Target, Rejection> {
    check_method(parts)?;
    check_framing(parts)?;
    let (authority, host) = check_host(parts)?;
    check_sizes(parts)?;
    let (path_and_query, decoded_path) = check_path(&parts.method, &parts.uri)?;
    Ok(Target { path_and_query, decoded_path, authority, host })
}

/// The refusal of a method; also of a WebSocket over HTTP/2 on a route that has none.
pub fn method_refused() -> Rejection {
    Rejection::MethodRefused
}

/// The refusal of bytes that are no HTTP request.
pub fn unparsable() -> Rejection {
    framing_ambiguous("The request is not valid HTTP.")
}

/// The refusal of a target over `TARGET_BYTES_MAX`, also where its end never came.
pub fn target_too_long() -> Rejection {
    Rejection::TargetTooLong
}

/// The refusal of more than `HEADER_FIELDS_MAX` fields or `HEADER_BYTES_MAX` bytes of them.
pub fn headers_too_large() -> Rejection {
    Rejection::HeadersTooLarge
}

/// A header name as a program may see it that takes every character but letters and digits for a dash and several
/// dashes for one, as CGI-like environments do. Borrowed where nothing changes, which is nearly always.
pub(super) fn squeezed(name: &HeaderName) -> Cow<'_, str> {
    let name = name.as_str();
    if is_plain(name) {
        return Cow::Borrowed(name);
    }
    let mut squeezed = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_ascii_alphanumeric() {
            squeezed.push(character);
        } else if !squeezed.ends_with('-') {
            squeezed.push('-');
        }
    }
    Cow::Owned(squeezed)
}

/// Whether [`squeezed`] changes nothing: all is letters, digits and single dashes. Without a branch for each byte, because every
/// request has some hundred of them.
fn is_plain(name: &str) -> bool {
    let (mut doubt, mut last) = (0, 0);
    for byte in name.bytes() {
        let kind = KINDS.get(usize::from(byte)).copied().unwrap_or(ODD);
        doubt |= kind & (last | ODD);
        last = kind;
    }
    doubt == 0
}

/// In a name, a dash: two in a row are one to some.
const DASH: u8 = 1;
/// In a name, what is neither letter nor digit nor dash.
const ODD: u8 = 2;
/// What each byte of a name is: [`DASH`], [`ODD`] or neither.
const KINDS: [u8; 256] = kinds();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn kinds() -> [u8; 256] {
    let mut kinds = [ODD; 256];
    let mut byte = 0_u8;
    while byte < u8::MAX {
        if byte.is_ascii_alphanumeric() {
            kinds[byte as usize] = 0;
        }
        byte += 1;
    }
    kinds[b'-' as usize] = DASH;
    kinds
}

/// Whether a name would make an invalid field line of HTTP/1: the `http` crate lets a quotation mark through in names that
/// come by HTTP/2. Asked only of names that [`squeezed`] changes, which are few.
pub(super) fn is_no_token(name: &HeaderName) -> bool {
    name.as_str().contains('"')
}

fn check_method(parts: &Parts) -> Result<(), Rejection> {
    let method = parts.method.as_str();
    if STANDARD_METHODS.contains(&method) {
        return Ok(());
    }
    if method.eq_ignore_ascii_case("CONNECT") {
        // RFC 8441: the only CONNECT that asks for something other than a tunnel to anywhere.
        let protocol = parts.extensions.get::<hyper::ext::Protocol>();
        let is_websocket = parts.method == Method::CONNECT
            && parts.version == Version::HTTP_2
            && protocol.is_some_and(|name| name.as_str() == "websocket");
        return if is_websocket { Ok(()) } else { Err(method_refused()) };
    }
    // Methods are case-sensitive (RFC 9110 section 9.1), but not to every upstream: `delete` must not lead around a rule.
    if STANDARD_METHODS.iter().any(|name| method.eq_ignore_ascii_case(name)) {
        return Err(method_refused());
    }
    if method.eq_ignore_ascii_case("TRACE") || method.eq_ignore_ascii_case("TRACK") {
        return Err(method_refused());
    }
    Ok(())
}

fn framing_ambiguous(what: &'static str) -> Rejection {
    Rejection::FramingAmbiguous(what)
}

/// RFC 9112 section 6.1 to 6.3, without any of its leniency.
fn check_framing(parts: &Parts) -> Result<(), Rejection> {
    let headers = &parts.headers;
    if let Some(coding) = headers.get(TRANSFER_ENCODING) {
        if parts.version != Version::HTTP_11 {
            return Err(framing_ambiguous("Transfer-Encoding is for HTTP/1.1 only."));
        }
        if headers.get_all(TRANSFER_ENCODING).iter().count() > 1 || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(framing_ambiguous("Transfer-Encoding must be exactly one \"chunked\"."));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(framing_ambiguous("Content-Length and Transfer-Encoding must not come together."));
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return Err(framing_ambiguous("Content-Length must come once."));
        }
        if parse_length(length).is_none() {
            return Err(framing_ambiguous("Content-Length must be a number in decimal digits."));
        }
    }
    // HTTP/1 reads white space around a value as none; in HTTP/2 it is part of the value (RFC 9113 section 8.2.1).
    let is_padded = |value: &HeaderValue| matches!(value.as_bytes(), [b' ' | b'\t', ..] | [.., b' ' | b'\t']);
    if parts.version == Version::HTTP_2 && headers.values().any(is_padded) {
        return Err(framing_ambiguous("A header value begins or ends with white space."));
    }
    for name in headers.keys().filter(|name| !is_plain(name.as_str())) {
        if matches!(squeezed(name).as_ref(), "transfer-encoding" | "content-length") {
            return Err(framing_ambiguous("A header name resembles Transfer-Encoding or Content-Length."));
        }
        if is_no_token(name) {
            return Err(framing_ambiguous("A header name is not a token."));
        }
    }
    Ok(())
}

/// A Content-Length: 1 to 19 digits and nothing else, so that no reader overflows or truncates.
pub(super) fn parse_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() || digits.len() >= 20 {
        return None;
    }
    digits.iter().try_fold(0_u64, |length, digit| digit.is_ascii_digit().then(|| length * 10 + u64::from(digit - b'0')))
}

fn host_invalid(what: &'static str) -> Rejection {
    Rejection::HostInvalid(what)
}

/// RFC 9112 section 3.2 and RFC 9113 section 8.3.1: one host, and everything that names it agrees.
fn check_host(parts: &Parts) -> Result<(HeaderValue, Box<str>), Rejection> {
    let mut lines = parts.headers.get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(host_invalid("Host must come once."));
    }
    if line.is_none() && parts.version != Version::HTTP_2 {
        return Err(host_invalid("Host is missing."));
    }
    let default_port = match parts.uri.scheme_str() {
        Some("https") => 443,
        Some("http") | None => 80,
        Some(_) => return Err(host_invalid("Only http and https are served here.")),
    };
    let from_line = line.map(|value| parse_host(value.as_bytes())).transpose()?;
    // A target that is nothing but a name (`GET ok`) parses as an authority too; the path check refuses it.
    let from_target = parts
        .uri
        .authority()
        .filter(|_| parts.uri.scheme().is_some())
        .map(|authority| parse_host(authority.as_str().as_bytes()))
        .transpose()?;
    match (from_line, from_target) {
        (Some(line), Some(target))
            if line.host != target.host || line.port.unwrap_or(default_port) != target.port.unwrap_or(default_port) =>
        {
            Err(host_invalid("Host and the request target name different hosts."))
        }
        (Some(host), _) | (None, Some(host)) => host.finish(line),
        (None, None) => Err(host_invalid("Host is missing.")),
    }
}

struct Host<'a> {
    host: Cow<'a, str>,
    port: Option<u16>,
}

impl Host<'_> {
    fn finish(self, line: Option<&HeaderValue>) -> Result<(HeaderValue, Box<str>), Rejection> {
        let mut authority = self.host.as_ref().to_owned();
        if let Some(port) = self.port {
            authority.push(':');
            authority.push_str(itoa::Buffer::new().format(port));
        }
        let value = match line.filter(|line| line.as_bytes() == authority.as_bytes()) {
            Some(line) => line.clone(),
            None => HeaderValue::from_maybe_shared(bytes::Bytes::from(authority)).map_err(|_| host_invalid("Host is not a valid name."))?,
        };
        Ok((value, self.host.into()))
    }
}

/// `name`, `1.2.3.4` or `[::1]`, each with an optional port. Narrower than RFC 3986 section 3.2.2, whose other
/// characters only ever occur in attempts to be read as two hosts.
fn parse_host(bytes: &[u8]) -> Result<Host<'_>, Rejection> {
    let text = std::str::from_utf8(bytes).map_err(|_| host_invalid("Host is not a valid name."))?;
    if text.is_empty() || text.len() > HOST_BYTES_MAX {
        return Err(host_invalid("Host is empty or too long."));
    }
    let (name, rest) = match text.strip_prefix('[') {
        Some(inside) => {
            let (address, rest) = inside.split_once(']').ok_or_else(|| host_invalid("Host is not a valid address."))?;
            let address: Ipv6Addr = address.parse().map_err(|_| host_invalid("Host is not a valid address."))?;
            (Cow::Owned(format!("[{address}]")), rest)
        }
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            let name = name.strip_suffix('.').unwrap_or(name);
            let is_valid = !name.is_empty() && !name.starts_with('.') && !name.ends_with('.') && !name.contains("..");
            if !is_valid || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
                return Err(host_invalid("Host is not a valid name."));
            }
            let needs_lowering = name.bytes().any(|byte| byte.is_ascii_uppercase());
            (if needs_lowering { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }, rest)
        }
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some(digits) if !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| host_invalid("Host has an invalid port."))?)
        }
        _ => return Err(host_invalid("Host has an invalid port.")),
    };
    Ok(Host { host: name, port })
}

fn check_sizes(parts: &Parts) -> Result<(), Rejection> {
    let uri = &parts.uri;
    let authority_bytes =
        uri.scheme().map_or(0, |scheme| scheme.as_str().len() + 3) + uri.authority().map_or(0, |authority| authority.as_str().len());
    if authority_bytes + uri.path_and_query().map_or(0, |path| path.as_str().len()) > TARGET_BYTES_MAX {
        return Err(target_too_long());
    }
    if parts.headers.len() > HEADER_FIELDS_MAX || header_bytes(&parts.headers) > HEADER_BYTES_MAX {
        return Err(headers_too_large());
    }
    Ok(())
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD_BYTES).sum()
}

fn ambiguous(what: &'static str) -> Rejection {
    Rejection::TargetAmbiguous(what)
}

fn check_path(method: &Method, uri: &Uri) -> Result<(PathAndQuery, Option<Box<str>>), Rejection> {
    let Some(whole) = uri.path_and_query() else {
        return Err(ambiguous("The request target must begin with a slash."));
    };
    if whole.as_str() == "*" {
        return if *method == Method::OPTIONS { Ok((whole.clone(), None)) } else { Err(ambiguous("The target * is for OPTIONS only.")) };
    }
    if whole.query().is_some_and(|query| query.bytes().any(|byte| byte.is_ascii_control() || byte == b'#')) {
        return Err(ambiguous("The query contains a control byte or a fragment."));
    }
    // `path` would make a slash of a path that is not there.
    if !whole.as_str().starts_with('/') {
        return Err(ambiguous("The request target must begin with a slash."));
    }
    let path = whole.path();
    if path.bytes().any(|byte| !matches!(byte, 0x21..=0x7e) || matches!(byte, b'\\' | b'#')) {
        return Err(ambiguous("The path contains a backslash, a fragment, a control byte or a byte that must be percent-encoded."));
    }
    if !path.contains('%') {
        check_segments(path)?;
        return Ok((whole.clone(), None));
    }
    let normal = normalise(path)?;
    let decoded = decode(&normal)?;
    check_segments(&decoded)?;
    let path_and_query = if normal == path {
        whole.clone()
    } else {
        let text = match whole.query() {
            Some(query) => format!("{normal}?{query}"),
            None => normal.clone(),
        };
        PathAndQuery::from_maybe_shared(text).map_err(|_| ambiguous("The path cannot be written in one way."))?
    };
    Ok((path_and_query, (decoded != normal).then(|| decoded.into_boxed_str())))
}

/// Refuses empty and dot segments (RFC 3986 section 5.2.4), also where parameters hide them.
fn check_segments(decoded: &str) -> Result<(), Rejection> {
    let mut segments = decoded.as_bytes().split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if name == b"." || name == b".." {
            return Err(ambiguous("The path contains a dot segment."));
        }
        if name.is_empty() && !(segment.is_empty() && segments.peek().is_none()) {
            return Err(ambiguous("The path contains an empty segment."));
        }
    }
    Ok(())
}

/// RFC 3986 section 6.2.2: escapes of unreserved characters are resolved, all others are written in upper case.
fn normalise(path: &str) -> Result<String, Rejection> {
    let mut normal = String::with_capacity(path.len());
    let mut pieces = path.split('%');
    normal.push_str(pieces.next().unwrap_or(""));
    for piece in pieces {
        let (byte, rest) = unescape(piece).ok_or_else(|| ambiguous("The path contains an invalid percent-encoding."))?;
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => normal.push(char::from(byte)),
            _ => {
                normal.push('%');
                normal.extend(piece.chars().take(2).map(|digit| digit.to_ascii_uppercase()));
            }
        }
        normal.push_str(rest);
    }
    Ok(normal)
}

/// Resolves every escape of a normalised path, and refuses those that change what the path is.
fn decode(normal: &str) -> Result<String, Rejection> {
    let mut bytes = Vec::with_capacity(normal.len());
    let mut pieces = normal.split('%');
    bytes.extend_from_slice(pieces.next().unwrap_or("").as_bytes());
    for piece in pieces {
        let (byte, rest) = unescape(piece).ok_or_else(|| ambiguous("The path contains an invalid percent-encoding."))?;
        match byte {
            b'/' | b'\\' => return Err(ambiguous("The path contains an encoded slash or backslash.")),
            0..=0x1f | 0x7f => return Err(ambiguous("The path contains an encoded control byte.")),
            b'%' if hides_separator(rest) => return Err(ambiguous("The path contains a dot or a slash that is encoded twice.")),
            _ => bytes.push(byte),
        }
        bytes.extend_from_slice(rest.as_bytes());
    }
    let decoded = String::from_utf8(bytes).map_err(|_| ambiguous("The path is not UTF-8 after decoding."))?;
    // Beyond ASCII, too (U+0080 to U+009F): some readers take U+0085 for a line end.
    if decoded.contains(char::is_control) {
        return Err(ambiguous("The path contains an encoded control character."));
    }
    Ok(decoded)
}

/// Whether what follows an encoded percent sign becomes a dot, a slash, a backslash or NUL for one who decodes again.
fn hides_separator(mut rest: &str) -> bool {
    while let Some(deeper) = rest.strip_prefix("25") {
        rest = deeper;
    }
    unescape(rest).is_some_and(|(byte, _)| matches!(byte, b'.' | b'/' | b'\\' | 0))
}

/// The byte that two hexadecimal digits at the front spell, and what follows them.
fn unescape(text: &str) -> Option<(u8, &str)> {
    let (digits, rest) = text.split_at_checked(2)?;
    let is_hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten().map(|byte| (byte, rest))
}

/// Resolves the escapes of a form value; what is not an escape stands for itself (WHATWG URL section 5.1).
fn decode_form(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after = rest.get(first.len_utf8()..).unwrap_or("");
        let escape = if first == '%' { unescape(after) } else { None };
        rest = match escape {
            Some((byte, after)) => {
                bytes.push(byte);
                after
            }
            None => {
                let plain = if first == '+' { ' ' } else { first };
                bytes.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes());
                after
            }
        };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn parts(method: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn get(uri: &str) -> Result<Target, Rejection> {
        check(&parts("GET", uri, Version::HTTP_11, &[("host", "localhost")]))
    }

    fn with_headers(headers: &[(&str, &str)]) -> Result<Target, Rejection> {
        let mut all = vec![("host", "localhost")];
        all.extend_from_slice(headers);
        check(&parts("POST", "/", Version::HTTP_11, &all))
    }

    #[test]
    fn dangerous_methods_are_refused_and_only_a_websocket_may_connect() {
        for method in ["TRACE", "TRACK", "trace", "CONNECT", "connect"] {
            let uri = if method == "CONNECT" { "localhost:22" } else { "/" };
            assert_eq!(
                check(&parts(method, uri, Version::HTTP_11, &[("host", "localhost")])).unwrap_err(),
                Rejection::MethodRefused,
                "{method}"
            );
        }
        let mut connect = parts("CONNECT", "https://localhost/chat", Version::HTTP_2, &[]);
        assert_eq!(check(&connect).unwrap_err(), Rejection::MethodRefused);
        connect.extensions.insert(hyper::ext::Protocol::from_static("connect-udp"));
        assert_eq!(check(&connect).unwrap_err(), Rejection::MethodRefused);
        connect.extensions.insert(hyper::ext::Protocol::from_static("websocket"));
        assert_eq!(check(&connect).unwrap().path(), "/chat");
    }

    #[test]
    fn framing_that_two_programs_could_read_in_two_ways_is_refused() {
        let refused: &[&[(&str, &str)]] = &[
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "chunked,")],
            &[("transfer-encoding", "\"chunked\"")],
            &[("transfer-encoding", "chunked"), ("content-length", "5")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "5"), ("content-length", "6")],
            &[("content-length", "5, 5")],
            &[("content-length", "+5")],
            &[("content-length", "-1")],
            &[("content-length", "0x5")],
            &[("content-length", "5 5")],
            &[("content-length", "000000000000000000000000000005")],
            &[("content-length", "")],
            &[("content-length", "18446744073709551616")],
            &[("transfer_encoding", "chunked")],
            &[("content_length", "5")],
            &[("transfer---encoding", "chunked")],
            &[("content.length", "5")],
        ];
        for headers in refused {
            assert!(matches!(with_headers(headers), Err(Rejection::FramingAmbiguous(_))), "{headers:?}");
        }
        for headers in [
            [("transfer-encoding", "chunked")],
            [("content-length", "5")],
            [("content-length", "05")],
            [("x-content-length", "5")],
            [("content-lengths", "5")],
        ] {
            assert!(with_headers(&headers).is_ok(), "{headers:?}");
        }
        let old = parts("POST", "/", Version::HTTP_10, &[("host", "localhost"), ("transfer-encoding", "chunked")]);
        assert!(matches!(check(&old), Err(Rejection::FramingAmbiguous(_))));
    }

    #[test]
    fn a_host_is_one_valid_name_that_nothing_contradicts() {
        for host in [
            "a,b",
            "a b",
            "user@localhost",
            "localhost/x",
            "",
            "[::1",
            "[::g]",
            "[::1]x",
            "a:",
            "a:x",
            "a:99999",
            "a:123456",
            ".",
            "a..b",
            "%61",
            "a\u{e9}",
        ] {
            let request = Request::builder().uri("/").header("host", HeaderValue::from_bytes(host.as_bytes()).unwrap()).body(()).unwrap();
            assert!(matches!(check(&request.into_parts().0), Err(Rejection::HostInvalid(_))), "{host:?}");
        }
        for (host, name, authority) in [
            ("LocalHost", "localhost", "localhost"),
            ("localhost.:8080", "localhost", "localhost:8080"),
            ("[::1]:80", "[::1]", "[::1]:80"),
            ("[0:0::1]", "[::1]", "[::1]"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ] {
            let target = check(&parts("GET", "/", Version::HTTP_11, &[("host", host)])).unwrap();
            assert_eq!((target.host(), target.authority().to_str().unwrap()), (name, authority));
        }
        let refused = |parts: Parts| assert!(matches!(check(&parts), Err(Rejection::HostInvalid(_))), "{parts:?}");
        refused(parts("GET", "/", Version::HTTP_11, &[]));
        refused(parts("GET", "/", Version::HTTP_10, &[]));
        refused(parts("GET", "/", Version::HTTP_11, &[("host", "a"), ("host", "a")]));
        refused(parts("GET", "http://b/", Version::HTTP_11, &[("host", "a")]));
        refused(parts("GET", "http://a:81/", Version::HTTP_11, &[("host", "a")]));
        refused(parts("GET", "http://user@a/", Version::HTTP_11, &[("host", "a")]));
        refused(parts("GET", "https://a/", Version::HTTP_2, &[("host", "b")]));
        refused(parts("GET", "ftp://a/", Version::HTTP_2, &[]));
        assert!(check(&parts("GET", "http://a:80/", Version::HTTP_11, &[("host", "A")])).is_ok());
        assert!(check(&parts("GET", "https://a/", Version::HTTP_2, &[("host", "a:443")])).is_ok());
        assert!(check(&parts("GET", "https://a/", Version::HTTP_2, &[])).is_ok());
    }

    #[test]
    fn sizes_are_bounded_at_the_byte() {
        let path = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
        assert!(get(&path(TARGET_BYTES_MAX)).is_ok());
        assert_eq!(get(&path(TARGET_BYTES_MAX + 1)).unwrap_err(), Rejection::TargetTooLong);
        let many = |count: usize| vec![("x", "1"); count];
        assert!(with_headers(&many(HEADER_FIELDS_MAX - 1)).is_ok());
        assert_eq!(with_headers(&many(HEADER_FIELDS_MAX)).unwrap_err(), Rejection::HeadersTooLarge);
        assert_eq!(with_headers(&[("x", &"a".repeat(HEADER_BYTES_MAX))]).unwrap_err(), Rejection::HeadersTooLarge);
    }

    #[test]
    fn a_path_with_two_readings_is_refused() {
        for path in [
            "//ok",
            "/a//b",
            "/a//",
            "/\\ok",
            "/a/../b",
            "/a/..",
            "/.",
            "/./a",
            "/%2e%2e/b",
            "/%2E./b",
            "/.%2e",
            "/a/..;x/b",
            "/a/.;/b",
            "/a/%2e%2e%3bx/b",
            "/a/;x/b",
            "/a/;x",
            "/a/%3Bx",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a%00b",
            "/a%0d%0ab",
            "/a%1fb",
            "/a%7fb",
            "/a%c2%85b",
            "/a%c2%9fb",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/%c0%ae%c0%ae/b",
            "/%ff",
            "/a%252fb",
            "/a%252e%252e/b",
            "/%25%32%65/b",
            "/a%25252e/b",
            "/a%255cb",
            "/a%2500",
            "/a%u002e",
        ] {
            assert!(matches!(get(path), Err(Rejection::TargetAmbiguous(_))), "{path} gave {:?}", get(path));
        }
        assert!(matches!(get("ok"), Err(Rejection::TargetAmbiguous(_))), "a name is not a path");
        assert!(matches!(get("*"), Err(Rejection::TargetAmbiguous(_))));
        assert_eq!(check(&parts("OPTIONS", "*", Version::HTTP_11, &[("host", "a")])).unwrap().path(), "*");
    }

    #[test]
    fn what_is_matched_is_what_is_forwarded() {
        for (sent, forwarded, matched) in [
            ("/", "/", "/"),
            ("/v1/clients?x=%2F..", "/v1/clients?x=%2F..", "/v1/clients"),
            ("/v1/%63lients/", "/v1/clients/", "/v1/clients/"),
            ("/a%c3%a9", "/a%C3%A9", "/a\u{e9}"),
            ("/a%20b?q", "/a%20b?q", "/a b"),
            ("/a%3fb", "/a%3Fb", "/a?b"),
            ("/100%25", "/100%25", "/100%"),
            ("/a%7Eb/..c/d..", "/a~b/..c/d..", "/a~b/..c/d.."),
        ] {
            let target = get(sent).unwrap();
            assert_eq!((target.path_and_query().as_str(), target.path()), (forwarded, matched), "{sent}");
        }
    }

    #[test]
    fn a_segment_knows_what_an_upstream_may_take_it_for() {
        let target = get("/v1.0;a/reset.json;x=1/").unwrap();
        let segments: Vec<_> = target.segments().map(|segment| segment.text).collect();
        assert_eq!(segments, ["v1.0;a", "reset.json;x=1"]);
        assert!(target.has_trailing_slash());
        assert!(target.segments().last().unwrap().is_form_of("reset"));
        assert!(!target.segments().last().unwrap().is_form_of("res"));
        assert!(target.segments().next().unwrap().is_form_of("v1"));
        assert_eq!(get("/").unwrap().segments().count(), 0);
    }

    #[test]
    fn query_values_are_decoded_and_given_in_both_readings_of_a_semicolon() {
        let target = get("/?firm=a+b&x=1;firm=z&fir%6D=%41%zz&firm&firm=%ff").unwrap();
        let values: Vec<_> = target.query_values("firm").collect();
        assert_eq!(values, ["a b", "A%zz", "", "\u{fffd}", "a b", "z", "A%zz", "", "\u{fffd}"]);
    }

    #[test]
    fn a_prefix_is_cut_at_segments_only() {
        assert_eq!(get("/v1/a?b").unwrap().without_prefix("/v1").as_str(), "/a?b");
        assert_eq!(get("/v1?b").unwrap().without_prefix("/v1/").as_str(), "/?b");
        assert_eq!(get("/v10/a").unwrap().without_prefix("/v1").as_str(), "/v10/a");
        assert_eq!(get("/a").unwrap().without_prefix("/").as_str(), "/a");
    }

    proptest! {
        #[test]
        fn accepted_paths_are_clean_and_checking_them_again_changes_nothing(
            pieces in prop::collection::vec(prop::sample::select(vec!["/", ".", "..", "%", "%2e", "%2F", "%25", "2e", "2f", "5", ";", "a", "Z", "%41", "%c3%a9", "%5C", "\\", "%00", "%20", "?", "+", "*", "&"]), 0..14)
        ) {
            let path = format!("/{}", pieces.concat());
            if let Ok(target) = get(&path) {
                let decoded = target.path().to_owned();
                let rest = decoded.strip_prefix('/').unwrap();
                for segment in rest.strip_suffix('/').unwrap_or(rest).split('/') {
                    prop_assert!(!matches!(segment, "." | ".."));
                    prop_assert!(!segment.contains(['\\', '\0']));
                    prop_assert!(!segment.is_empty() || rest.is_empty());
                }
                let again = get(target.path_and_query().as_str()).unwrap();
                prop_assert_eq!(again.path_and_query(), target.path_and_query());
                prop_assert_eq!(again.path(), decoded);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(target in prop::collection::vec(any::<u8>(), 0..60), host in prop::collection::vec(any::<u8>(), 0..20)) {
            if let (Ok(uri), Ok(host)) = (Uri::try_from(target), HeaderValue::from_bytes(&host)) {
                let mut parts = parts("GET", "/", Version::HTTP_11, &[]);
                parts.uri = uri;
                parts.headers.insert(HOST, host);
                if let Ok(target) = check(&parts) {
                    target.segments().for_each(drop);
                    target.query_values("a").for_each(drop);
                }
            }
        }
    }
}

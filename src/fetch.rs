//! One outgoing HTTP/1.1 request: with a deadline, a cap on the answer and no redirects, over `crate::dial`.
//!
//! Used for identity providers' key sets and by the command line. Addresses of link-local networks, where clouds
//! keep their metadata services, are never asked, whatever name leads there: the address that was really reached
//! decides, before a byte of the request is sent. Connections are not kept; whoever asks often uses the pool.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::deadline::within;
use crate::dial::{DialError, Dialer, Endpoint, Scheme, Stream};

/// Longest silence of an answer that is followed: four of the admin listener's keep-alive comments.
const FOLLOW_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where a request goes: http or https, a host, a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    endpoint: Endpoint,
    authority: String,
    target: String,
}

impl Url {
    /// Reads `http://host[:port][/path[?query]]` or the same with https; a user or a fragment is an error.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('#') {
            return Err("a URL with a fragment (#) cannot be fetched".into());
        }
        let uri: http::Uri = text.parse().map_err(|_| "not a URL".to_owned())?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("a URL begins with http:// or https://".into());
        };
        let endpoint = Endpoint::parse(&format!("{scheme}://{authority}"))?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self { endpoint, authority: authority.as_str().to_owned(), target: target.to_owned() })
    }

    /// The same place with another target, such as `/v1/keys?status=all`, in place of its own path.
    pub fn with_target(&self, target: &str) -> Self {
        Self { target: target.to_owned(), ..self.clone() }
    }

    /// The path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether the host is written as a loopback name or address.
    pub fn is_loopback(&self) -> bool {
        let host = self.endpoint.host.as_str();
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Whether the connection will be encrypted.
    pub fn is_https(&self) -> bool {
        self.endpoint.scheme == Scheme::Https
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}{}", self.endpoint, self.target)
    }
}

/// Where clear text may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClearText {
    /// Wherever the person who typed the address wants it.
    Anywhere,
    /// To this machine only: whoever sits between could change the answer.
    LoopbackOnly,
}

/// Whether whoever follows an answer wants more of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Onward {
    /// The next piece, please.
    Continue,
    /// Enough; the connection is closed.
    Stop,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Where it goes.
    pub url: Url,
    /// Header fields beside Host, which is made from the URL.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// How long all of it may take; for a followed answer, until its head.
    pub deadline: Duration,
    /// Longest answer, in bytes.
    pub answer_bytes_max: usize,
    /// Where it may go unencrypted.
    pub clear_text: ClearText,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status; redirects are answers like others.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The deadline passed.
    #[error("no whole answer within the time allowed")]
    Timeout,
    /// The address is one that is never asked.
    #[error("{0} is a link-local address, or not of this machine although the connection is not encrypted")]
    Forbidden(IpAddr),
    /// The request cannot be written.
    #[error("the request is invalid: {0}")]
    Invalid(#[from] http::Error),
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// Sends a request and takes the whole answer.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch(dialer: &Dialer, request: Request) -> Result<Answer, FetchError> {
    let deadline = request.deadline;
    let answer_bytes_max = request.answer_bytes_max;
    within(deadline, pin!(exchange(dialer, request, |response| collect(response, answer_bytes_max)))).await.ok_or(FetchError::Timeout)?
}

/// Sends a request and hands on the pieces of a 200's body as they come, until either side has enough; any
/// other answer is taken whole. The answer that is handed back has the body that was not handed on.
///
/// # Errors
/// See [`FetchError`]; [`FetchError::Timeout`] also when the other side falls silent for a minute.
pub async fn follow(dialer: &Dialer, request: Request, mut piece: impl FnMut(&[u8]) -> Onward) -> Result<Answer, FetchError> {
    let deadline = request.deadline;
    let answer_bytes_max = request.answer_bytes_max;
    exchange_with_head_deadline(dialer, request, deadline, async |response: http::Response<Incoming>| {
        if response.status() != StatusCode::OK {
            return within(deadline, pin!(collect(response, answer_bytes_max))).await.ok_or(FetchError::Timeout)?;
        }
        let (head, mut body) = response.into_parts();
        while let Some(frame) = within(FOLLOW_SILENCE_MAX, body.frame()).await.ok_or(FetchError::Timeout)? {
            if let Ok(data) = frame?.into_data()
                && piece(&data) == Onward::Stop
            {
                break;
            }
        }
        Ok(Answer { status: head.status, headers: head.headers, body: Bytes::new() })
    })
    .await
}

async fn exchange<F>(dialer: &Dialer, request: Request, take: impl FnOnce(http::Response<Incoming>) -> F) -> Result<Answer, FetchError>
where
    F: Future<Output = Result<Answer, FetchError>>,
{
    let deadline = request.deadline;
    exchange_with_head_deadline(dialer, request, deadline, async |response| take(response).await).await
}

async fn exchange_with_head_deadline(
    dialer: &Dialer,
    request: Request,
    deadline: Duration,
    take: impl AsyncFnOnce(http::Response<Incoming>) -> Result<Answer, FetchError>,
) -> Result<Answer, FetchError> {
    let (stream, _) = dialer.dial(&request.url.endpoint, deadline).await?;
    check_reached(&stream, request.url.is_https(), request.clear_text)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = into_http(request)?;
    let work = async {
        let response = within(deadline, pin!(sender.send_request(request))).await.ok_or(FetchError::Timeout)??;
        take(response).await
    };
    // The connection is driven beside the work, not in a task of its own, so that nothing outlives the call.
    match select(pin!(work), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, work)) => work.await,
    }
}

fn into_http(request: Request) -> Result<http::Request<Full<Bytes>>, FetchError> {
    let mut out = http::Request::builder().method(request.method).uri(&request.url.target).body(Full::new(request.body))?;
    *out.headers_mut() = request.headers;
    let host = http::HeaderValue::from_str(&request.url.authority).map_err(http::Error::from)?;
    out.headers_mut().insert(header::HOST, host);
    out.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
    Ok(out)
}

fn check_reached(stream: &Stream, encrypted: bool, clear_text: ClearText) -> Result<(), FetchError> {
    let peer = match stream {
        Stream::Left(tcp) => tcp.peer_addr(),
        Stream::Right(tls) => tls.get_ref().0.peer_addr(),
    };
    let address = peer.as_ref().map(SocketAddr::ip).map_err(|_| FetchError::Timeout)?.to_canonical();
    let may_be_clear = encrypted || clear_text == ClearText::Anywhere || address.is_loopback();
    if is_link_local(address) || !may_be_clear {
        return Err(FetchError::Forbidden(address));
    }
    Ok(())
}

/// 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291 section 2.5.6) and the IPv6 address of AWS's metadata service.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
    }
}

async fn collect(response: http::Response<Incoming>, bytes_max: usize) -> Result<Answer, FetchError> {
    let (head, mut body) = response.into_parts();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if whole.len() + data.len() > bytes_max {
                return Err(FetchError::TooLarge(bytes_max));
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, body: whole.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers one connection with the given bytes and then closes it; hands back what was asked.
    async fn answer_once(answer: &'static [u8]) -> (String, tokio::sync::oneshot::Receiver<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (tell, asked) = tokio::sync::oneshot::channel();
        crate::tasks::Tasks::new().spawn("answer_once", async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.expect("a request");
                request.extend(byte);
            }
            let _ = stream.write_all(answer).await;
            let _ = tell.send(String::from_utf8_lossy(&request).into_owned());
        });
        (format!("http://{address}/keys?x=1"), asked)
    }

    fn ask(url: &str) -> Request {
        Request {
            method: Method::GET,
            url: Url::parse(url).expect("a URL"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            deadline: Duration::from_secs(5),
            answer_bytes_max: 10,
            clear_text: ClearText::LoopbackOnly,
        }
    }

    #[tokio::test]
    async fn a_request_names_its_host_and_target_and_takes_the_answer() {
        let dialer = Dialer::new(None, &[]).expect("a dialer");
        let (url, asked) = answer_once(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        let answer = fetch(&dialer, ask(&url)).await.expect("an answer");
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"hello"[..]));
        let asked = asked.await.expect("asked");
        assert!(asked.starts_with("GET /keys?x=1 HTTP/1.1\r\n") && asked.contains("host: 127.0.0.1:"), "{asked}");
    }

    #[tokio::test]
    async fn an_answer_over_the_limit_and_a_redirect_are_not_followed() {
        let dialer = Dialer::new(None, &[]).expect("a dialer");
        let (url, _) = answer_once(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello hello").await;
        assert!(matches!(fetch(&dialer, ask(&url)).await, Err(FetchError::TooLarge(10))));
        let (url, _) = answer_once(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(fetch(&dialer, ask(&url)).await.expect("an answer").status, StatusCode::FOUND);
        let (url, _) = answer_once(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello").await;
        assert!(matches!(fetch(&dialer, ask(&url)).await, Err(FetchError::Broken(_))));
    }

    #[test]
    fn link_local_addresses_are_never_asked() {
        for (text, refused) in [
            ("169.254.169.254", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(is_link_local(text.parse().expect("an address")), refused, "{text}");
        }
    }

    #[test]
    fn urls_are_http_or_https_without_user_and_fragment() {
        for text in ["ftp://a/", "http:///x", "https://user@host/", "http://host/#x", "host/path", ""] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        let url = Url::parse("https://id.example.com/jwks?v=1").expect("a URL");
        assert!(url.is_https() && !url.is_loopback());
        assert_eq!(url.to_string(), "https://id.example.com:443/jwks?v=1");
    }
}

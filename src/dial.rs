//! Outgoing connections: TCP, and TLS where the address says https, under one deadline.
//!
//! Used by the upstream pool and by `fetch`. TLS verifies the name that the operator wrote, never one that a
//! caller sent; the provider is aws-lc, named explicitly.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::deadline::within;

/// How an endpoint is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// HTTP/1.1 in clear text.
    Http,
    /// HTTP/1.1 or HTTP/2 over TLS, as ALPN decides.
    Https,
    /// HTTP/2 in clear text, with prior knowledge (RFC 9113 section 3.3).
    H2c,
}

/// An address to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Reads `http://host:port`, `https://host` or `h2c://host:port`; a path, query or user is an error.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, default_port, rest) = if let Some(rest) = text.strip_prefix("http://") {
            (Scheme::Http, 80, rest)
        } else if let Some(rest) = text.strip_prefix("https://") {
            (Scheme::Https, 443, rest)
        } else if let Some(rest) = text.strip_prefix("h2c://") {
            (Scheme::H2c, 80, rest)
        } else {
            return Err("an endpoint begins with http://, https:// or h2c://".into());
        };
        let authority: http::uri::Authority =
            rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| "after the scheme comes host:port and nothing else".to_owned())?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err("after the scheme comes host:port and nothing else".into());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if scheme == Scheme::Https {
            ServerName::try_from(host.as_str()).map_err(|_| "the host is not a name that TLS can verify".to_owned())?;
        }
        Ok(Self { scheme, host, port: authority.port_u16().unwrap_or(default_port) })
    }

    /// `host:port` as a Host header writes it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::H2c => "h2c",
        };
        write!(out, "{scheme}://{}", self.authority())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The deadline passed.
    #[error("no connection within the time allowed")]
    Timeout,
    /// The operating system or the other side refused.
    #[error("cannot connect: {0}")]
    Refused(#[source] io::Error),
    /// TLS could not be agreed, or the certificate is not for this name.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
}

/// What HTTP version the connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A connection: clear text on the left, TLS on the right.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Makes connections with one set of trust roots.
#[derive(Clone, Debug)]
pub struct Dialer {
    tls: Arc<ClientConfig>,
}

impl Dialer {
    /// Trusts the authorities in `ca` (PEM), or the machine's where it is absent, and offers the given ALPN protocols.
    ///
    /// # Errors
    /// When the file cannot be read or holds no certificate.
    pub fn new(ca: Option<&Path>, alpn: &[&[u8]]) -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        match ca {
            Some(file) => {
                let certificates = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
                for certificate in certificates {
                    roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
                }
                if roots.is_empty() {
                    return Err(io::Error::other(format!("{} holds no certificate", file.display())));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Connects, TLS included, within `deadline`.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, endpoint: &Endpoint, deadline: Duration) -> Result<(Stream, Version), DialError> {
        within(deadline, pin!(self.connect(endpoint))).await.ok_or(DialError::Timeout)?
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<(Stream, Version), DialError> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(DialError::Refused)?;
        tcp.set_nodelay(true).map_err(DialError::Refused)?;
        match endpoint.scheme {
            Scheme::Http => Ok((Either::Left(tcp), Version::Http1)),
            Scheme::H2c => Ok((Either::Left(tcp), Version::Http2)),
            Scheme::Https => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| DialError::Tls(io::Error::other(error)))?;
                let stream = TlsConnector::from(self.tls.clone()).connect(name, tcp).await.map_err(DialError::Tls)?;
                let version = if stream.get_ref().1.alpn_protocol() == Some(b"h2") { Version::Http2 } else { Version::Http1 };
                Ok((Either::Right(Box::new(stream)), version))
            }
        }
    }
}

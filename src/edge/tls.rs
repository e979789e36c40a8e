//! TLS of a listener: 1.2 and 1.3, ALPN for HTTP/2 and HTTP/1.1, session tickets, no client certificates.
//!
//! A certificate is taken only as a whole: chain and key are read, found to belong together and to be valid today,
//! and then swapped in; a reload that fails changes nothing. Connections keep what they began with. The provider is
//! aws-lc, named explicitly.
//!
//! All suites are strong, so the choice is one of speed, and ours: AES-128 with SHA-256 comes first, because common processors have
//! instructions for both. Most clients put AES-256 with SHA-384 first, and with that a handshake takes a sixth longer. (A client without
//! AES cannot be told from others before its hello is read, and reading that apart from the handshake costs each connection 4 KiB.)

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ProducesTickets;
use rustls::{CertificateError, CipherSuite, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::http::Version;
use super::stream::Socket;
use crate::clock;

const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// Tickets for each full handshake: one more connection can resume, and brings the next ticket. Each costs 4 us.
const TICKETS: usize = 1;

/// Why a certificate and key cannot be used. No variant holds anything of the key itself.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable or not PEM.
    #[error("{}: {what}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The leaf certificate's time is over.
    #[error("{}: the certificate has expired", .0.display())]
    Expired(PathBuf),
    /// The leaf certificate's time has not come.
    #[error("{}: the certificate is not valid yet", .0.display())]
    NotValidYet(PathBuf),
    /// Key and certificate do not belong together, or are of a kind that is not supported.
    #[error("{} and {} cannot be used together: {source}", certificate.display(), private_key.display())]
    Unusable {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
        /// What the TLS library says.
        #[source]
        source: rustls::Error,
    },
    /// The library could not be set up; no fault of the files.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

/// The certificate that a listener shows, and can be given anew; clones share it.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    /// Kept across reloads, so that sessions survive a new certificate.
    tickets: Arc<dyn ProducesTickets>,
}

impl Tls {
    /// Reads a certificate chain (leaf first) and its private key (PKCS#8, PKCS#1 or SEC1), both PEM.
    ///
    /// # Errors
    /// See [`TlsError`]; the message names the file.
    pub fn load(certificate: &Path, private_key: &Path) -> Result<Self, TlsError> {
        let tickets = aws_lc_rs::Ticketer::new().map_err(TlsError::Setup)?;
        let config = configure(certificate, private_key, tickets.clone())?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(config)), tickets })
    }

    /// Reads another certificate, to be shown once it is installed; several can be read before the first is.
    ///
    /// # Errors
    /// See [`TlsError`]; the certificate in use stays in use.
    pub fn prepare(&self, certificate: &Path, private_key: &Path) -> Result<Renewed, TlsError> {
        let config = configure(certificate, private_key, self.tickets.clone())?;
        Ok(Renewed { tls: self.clone(), config: Arc::new(config) })
    }

    pub(super) async fn accept(&self, socket: Socket) -> io::Result<Stream> {
        let stream = TlsAcceptor::from(self.current.load_full()).accept(socket).await?;
        Ok(Either::Right(Box::new(stream)))
    }
}

/// A certificate that was read and found good, and is not in use yet.
pub struct Renewed {
    tls: Tls,
    config: Arc<ServerConfig>,
}

impl Renewed {
    /// Shows it to connections that begin from now on.
    pub fn install(self) {
        self.tls.current.store(self.config);
    }
}

impl fmt::Debug for Renewed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Renewed").finish_non_exhaustive()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn configure(certificate: &Path, private_key: &Path, tickets: Arc<dyn ProducesTickets>) -> Result<ServerConfig, TlsError> {
    let mut provider = aws_lc_rs::default_provider();
    // Stable: what is as good stays in the library's order.
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    let provider = Arc::new(provider);
    let chain = read_chain(certificate)?;
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(|error| unreadable(private_key, &error))?;
    let unusable = |source| TlsError::Unusable { certificate: certificate.to_owned(), private_key: private_key.to_owned(), source };
    check_validity(certificate, &chain, provider.clone())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    config.ticketer = tickets;
    config.send_tls13_tickets = TICKETS;
    config.ignore_client_order = true;
    Ok(config)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.map_err(|error| unreadable(file, &error))?;
    if chain.is_empty() {
        return Err(unreadable(file, &rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(chain)
}

/// PEM errors quote lines of the file, and a file given by mistake may be a key: only the kind of error is passed on.
fn unreadable(file: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    use rustls::pki_types::pem::Error;
    let what = match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "holds nothing of the expected kind in PEM".to_owned(),
        _ => "is not valid PEM".to_owned(),
    };
    TlsError::File { file: file.to_owned(), what }
}

/// Asks the certificate library about the leaf's dates. It looks at them before it looks for an issuer, so every other
/// verdict (no issuer is known here, and no name was asked for) says that the dates are in order.
fn check_validity(file: &Path, chain: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> Result<(), TlsError> {
    let bad = |error: rustls::Error| TlsError::File { file: file.to_owned(), what: format!("the certificate cannot be read: {error}") };
    let (leaf, rest) = chain.split_first().expect("an empty chain was refused when it was read");
    let mut roots = RootCertStore::empty();
    roots.add(leaf.clone()).map_err(bad)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| TlsError::File { file: file.to_owned(), what: error.to_string() })?;
    let now = UnixTime::since_unix_epoch(Duration::from_micros(u64::try_from(clock::wall_now().micros()).unwrap_or(0)));
    let anyone = ServerName::try_from("localhost").expect("localhost is a DNS name");
    match verifier.verify_server_cert(leaf, rest, &anyone, &[], now) {
        Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Err(TlsError::Expired(file.to_owned()))
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            Err(TlsError::NotValidYet(file.to_owned()))
        }
        Err(error @ rustls::Error::InvalidCertificate(CertificateError::BadEncoding)) => Err(bad(error)),
        _ => Ok(()),
    }
}

/// A connection: clear text on the left, TLS on the right.
pub(super) type Stream = Either<Socket, Box<TlsStream<Socket>>>;

/// What ALPN has settled; `None` where nothing was negotiated.
pub(super) fn agreed(stream: &Stream) -> Option<Version> {
    let Either::Right(tls) = stream else { return None };
    match tls.get_ref().1.alpn_protocol()? {
        ALPN_HTTP2 => Some(Version::Http2),
        _ => Some(Version::Http1),
    }
}

/// The socket under a connection.
pub(super) fn socket_mut(stream: &mut Stream) -> &mut Socket {
    match stream {
        Either::Left(socket) => socket,
        Either::Right(tls) => tls.get_mut().0,
    }
}

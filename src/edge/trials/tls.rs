//! TLS listeners, with `dial` as the client.

use std::path::{Path, PathBuf};

use rustls::CipherSuite;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

use super::*;
use crate::dial::{Dialer, Endpoint, Scheme, Version};

/// Writes a certificate for localhost and its key; it ends so many years from now.
fn certify(folder: &Path, name: &str, ends_in_years: i32) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let year = i32::try_from(1970 + crate::clock::wall_now().seconds() / 31_557_600).unwrap();
    params.not_before = rcgen::date_time_ymd(year - 10, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + ends_in_years, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&files.0, certificate.pem()).unwrap();
    std::fs::write(&files.1, key.serialize_pem()).unwrap();
    files
}

async fn dial(edge: &Edge, ca: &Path, alpn: &[&[u8]]) -> Result<(crate::dial::Stream, Version), crate::dial::DialError> {
    let endpoint = Endpoint { scheme: Scheme::Https, host: "localhost".into(), port: edge.address.port() };
    Dialer::new(Some(ca), alpn).unwrap().dial(&endpoint, PATIENCE).await
}

#[tokio::test]
async fn tls_speaks_the_version_that_alpn_settles() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), "first", 10);
    let edge = Edge::start(Options::new("edge"), Some(Tls::load(&certificate, &key).unwrap()));
    for alpn in [&[&b"http/1.1"[..]][..], &[]] {
        let (mut stream, version) = dial(&edge, &certificate, alpn).await.unwrap();
        assert_eq!(version, Version::Http1);
        stream.write_all(GET.as_bytes()).await.unwrap();
        read_until(&mut stream, "127.0.0.1 true HTTP/1.1").await;
    }
    let (stream, version) = dial(&edge, &certificate, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(version, Version::Http2);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    edge.tasks.spawn("client", async move { drop(connection.await) });
    assert_eq!(text_of(sender.send_request(get("/")).await.unwrap()).await, (200, "127.0.0.1 true HTTP/2.0".into()));
    assert!(dial(&edge, &certificate, &[b"foo"]).await.is_err(), "an unknown protocol was agreed to");
}

/// What is settled with a client that puts these suites first, in this order.
async fn settled(edge: &Edge, ca: &Path, first: [CipherSuite; 2]) -> CipherSuite {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| first.iter().position(|wanted| *wanted == suite.suite()).unwrap_or(first.len()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let stream = connector.connect("localhost".try_into().unwrap(), edge.connect().await).await.unwrap();
    stream.get_ref().1.negotiated_cipher_suite().unwrap().suite()
}

#[tokio::test]
async fn the_fastest_suite_is_settled_whatever_the_client_puts_first() {
    use CipherSuite::{TLS13_AES_128_GCM_SHA256 as SHORT, TLS13_AES_256_GCM_SHA384 as LONG, TLS13_CHACHA20_POLY1305_SHA256 as CHACHA};
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), "first", 10);
    let edge = Edge::start(Options::new("edge"), Some(Tls::load(&certificate, &key).unwrap()));
    for first in [[SHORT, LONG], [LONG, SHORT], [LONG, CHACHA], [CHACHA, LONG]] {
        assert_eq!(settled(&edge, &certificate, first).await, SHORT, "of {first:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_reaches_a_client_that_is_still_sending_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), "first", 10);
    let edge = Edge::start(Options::new("edge"), Some(Tls::load(&certificate, &key).unwrap()));
    for _ in 0..3 {
        upload(&mut dial(&edge, &certificate, &[b"http/1.1"]).await.unwrap().0).await;
    }
}

#[tokio::test]
async fn a_tls_listener_closes_on_plain_http_and_on_a_handshake_that_stalls() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), "first", 10);
    let mut options = Options::new("edge");
    options.limits.handshake = SOON;
    let edge = Edge::start(options, Some(Tls::load(&certificate, &key).unwrap()));
    for begun in [GET.as_bytes(), b"", b"\x16\x03\x01\x02\0\x01"] {
        let mut stream = edge.connect().await;
        stream.write_all(begun).await.unwrap();
        let mut bytes = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection is closed");
        assert!(bytes.len() < 16 && !bytes.starts_with(b"HTTP"), "more than an alert came back");
    }
}

#[tokio::test]
async fn a_reload_takes_effect_only_when_all_of_it_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let (first, first_key) = certify(folder.path(), "first", 10);
    let (second, second_key) = certify(folder.path(), "second", 10);
    let (expired, expired_key) = certify(folder.path(), "expired", -1);
    let tls = Tls::load(&first, &first_key).unwrap();
    let edge = Edge::start(Options::new("edge"), Some(tls.clone()));
    let shows = async |certificate: &Path| dial(&edge, certificate, &[b"h2"]).await.is_ok();
    let refused = |certificate: &Path, key: &Path| tls.prepare(certificate, key).unwrap_err().to_string();
    assert!(shows(&first).await && !shows(&second).await);
    assert!(refused(&second, &first_key).contains("second.pem and"), "a key of another certificate");
    assert!(refused(&expired, &expired_key).ends_with("expired.pem: the certificate has expired"));
    assert!(refused(&first, &first).contains("first.pem: holds nothing"), "a certificate for a key");
    assert!(refused(&folder.path().join("none.pem"), &first_key).contains("none.pem: "));
    assert!(shows(&first).await && !shows(&second).await, "a bad reload changed something");
    let prepared = tls.prepare(&second, &second_key).unwrap();
    assert!(shows(&first).await, "read is not yet shown");
    prepared.install();
    assert!(!shows(&first).await && shows(&second).await);
}

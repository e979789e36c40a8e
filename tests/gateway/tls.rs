//! The edge with TLS: HTTP/1.1 and HTTP/2 by ALPN, nothing older than TLS 1.2.
//!
//! And certificates that change while it runs: a good one is taken without a restart, one that cannot be served changes
//! nothing. TLS towards upstreams is in `upstream_tls`.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::json;

use crate::support::eventually::{eventually, found};
use crate::support::{Client, End, Gateway, Http2, Key, Request, SOON};

/// A self-signed certificate for these names, written as the operator would keep it.
pub(crate) fn write_certificate(folder: &Path, names: &[&str]) -> CertifiedKey<KeyPair> {
    let made = rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("a certificate");
    std::fs::write(folder.join("key.new"), made.signing_key.serialize_pem()).expect("our folder");
    std::fs::write(folder.join("cert.new"), made.cert.pem()).expect("our folder");
    std::fs::rename(folder.join("key.new"), folder.join("key.pem")).expect("our folder");
    std::fs::rename(folder.join("cert.new"), folder.join("cert.pem")).expect("our folder");
    made
}

/// A client that trusts exactly this certificate and offers these protocols.
fn trusting(certificate: &CertificateDer<'static>, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A gateway with TLS, and what a client must know of it.
pub(crate) struct Bench {
    pub(crate) gateway: Gateway,
    key: Key,
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

impl Bench {
    /// A client that trusts it and offers these protocols.
    pub(crate) fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        trusting(&self.certificate, protocols)
    }
}

pub(crate) fn start() -> Bench {
    let folder = tempfile::tempdir().expect("a folder");
    let certificate = write_certificate(folder.path(), &["localhost"]).cert.der().clone();
    let tls = json!({ "certificate": folder.path().join("cert.pem"), "private_key": folder.path().join("key.pem") });
    let gateway = Gateway::with(|config| config["edge"]["tls"] = tls);
    let key = gateway.key();
    Bench { gateway, key, folder, certificate }
}

#[test]
fn http_1_1_and_http_2_are_chosen_by_alpn() {
    let bench = start();
    let request = Request::get("/ok").bearer(&bench.key.secret);
    let http2 = Http2::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, &["h2", "http/1.1"])).expect("h2");
    assert_eq!(http2.exchange(&request).map(|answer| answer.status), Ok(200));
    for protocols in [&["http/1.1"][..], &[]] {
        let mut client = Client::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, protocols)).expect("TLS");
        client.exchange(&request).expect("an answer").expect(200);
        client.exchange(&request).expect("a second on the same connection").expect(200);
    }
    assert_eq!(bench.gateway.upstream.last("/ok").fields.one("x-forwarded-proto"), Some("https"));
}

#[test]
fn a_client_that_speaks_no_tls_or_no_known_protocol_is_cut_and_harms_nobody() {
    let bench = start();
    let mut plain = Client::connect(bench.gateway.edge());
    plain.send(Request::get("/ok").bearer(&bench.key.secret).head()).expect("sent");
    assert!(plain.answer().is_err() && plain.end() != End::Open);
    let mut foreign = Client::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, &["foo"])).expect("a socket");
    assert!(foreign.exchange(&Request::get("/ok").bearer(&bench.key.secret)).is_err(), "no_application_protocol");
    let half_open: Vec<Client> = (0..50).map(|_| Client::connect(bench.gateway.edge())).collect();
    let mut good = Client::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, &["http/1.1"])).expect("TLS");
    good.exchange(&Request::get("/good").bearer(&bench.key.secret)).expect("an answer").expect(200);
    drop(half_open);
    assert_eq!(bench.gateway.upstream.targets(), ["/good"]);
}

#[test]
fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let bench = start();
    let ask = |certificate: &CertificateDer<'static>| {
        let mut client = Client::connect_tls(bench.gateway.edge(), trusting(certificate, &["http/1.1"])).ok()?;
        client.exchange(&Request::get("/ok").bearer(&bench.key.secret)).ok().map(|answer| answer.status)
    };
    assert_eq!(ask(&bench.certificate), Some(200));
    let renewed = write_certificate(bench.folder.path(), &["localhost"]).cert.der().clone();
    bench.gateway.signal(rustix::process::Signal::HUP);
    eventually!(SOON, ask(&renewed) == Some(200), "the renewed certificate is served");
    assert_eq!(ask(&bench.certificate), None, "the old one is not");
    std::fs::write(bench.folder.path().join("cert.pem"), "broken").expect("our folder");
    bench.gateway.signal(rustix::process::Signal::HUP);
    eventually!(SOON, bench.gateway.metric("assure_gateway_config_reloads_total{result=\"failure\"}") >= 1.0, "the failure is counted");
    assert_eq!(ask(&renewed), Some(200), "what worked goes on working");
}

#[test]
fn a_certificate_that_cannot_be_served_changes_nothing_is_named_and_its_successor_is_taken() {
    let bench = start();
    let (cert, key) = (bench.folder.path().join("cert.pem"), bench.folder.path().join("key.pem"));
    let good = (std::fs::read(&cert).expect("our file"), std::fs::read(&key).expect("our file"));
    let dated = |from: i32, to: i32| {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("a name");
        (parameters.not_before, parameters.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        let pair = rcgen::KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&pair).expect("a certificate");
        (certificate.pem().into_bytes(), pair.serialize_pem().into_bytes())
    };
    let other = dated(2020, 2100);
    let rows: Vec<(&str, Vec<u8>, Vec<u8>, &str)> = vec![
        ("expired", dated(2019, 2020).0, dated(2019, 2020).1, ""),
        ("not valid yet", dated(2099, 2100).0, dated(2099, 2100).1, ""),
        ("another's key", good.0.clone(), other.1.clone(), "cannot be used together"),
        ("empty", Vec::new(), good.1.clone(), "cert.pem"),
        ("an empty key", good.0.clone(), Vec::new(), "key.pem"),
        ("a key for a certificate", good.1.clone(), good.1.clone(), "cert.pem"),
        ("a certificate for a key", good.0.clone(), good.0.clone(), "key.pem"),
        ("cut in the middle", good.0[..good.0.len() / 2].to_vec(), good.1.clone(), "cert.pem"),
        ("garbage", b"\0garbage".repeat(100), good.1.clone(), "cert.pem"),
    ];
    let mut kept = Client::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, &["http/1.1"])).expect("TLS");
    let request = Request::get("/ok").bearer(&bench.key.secret);
    kept.exchange(&request).expect("an answer").expect(200);
    let failures = || bench.gateway.metric("assure_gateway_config_reloads_total{result=\"failure\"}");
    for (what, certificate, private_key, said) in rows {
        let (before, log) = (failures(), bench.gateway.log().len());
        std::fs::write(&key, private_key).expect("our folder");
        std::fs::write(&cert, certificate).expect("our folder");
        bench.gateway.signal(rustix::process::Signal::HUP);
        eventually!(SOON, failures() > before, "{what}: the failure is counted");
        let line = found(SOON, &format!("{what}: a line that names it"), || {
            let line = bench.gateway.log()[log..].to_owned();
            (line.contains("was not reloaded") && line.contains(said)).then_some(line)
        });
        assert!(!line.contains("PRIVATE KEY"), "{what}: {line}");
        let mut fresh = Client::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, &["http/1.1"])).expect("TLS");
        fresh.exchange(&request).unwrap_or_else(|broken| panic!("{what}: {broken:?}")).expect(200);
        kept.exchange(&request).expect("who is connected stays so").expect(200);
    }
    let renewed = write_certificate(bench.folder.path(), &["localhost"]).cert.der().clone();
    bench.gateway.signal(rustix::process::Signal::HUP);
    let asked = || Client::connect_tls(bench.gateway.edge(), trusting(&renewed, &["http/1.1"])).ok()?.exchange(&request).ok();
    eventually!(SOON, asked().is_some_and(|answer| answer.status == 200), "a good one is taken at once");
}

#[test]
fn a_body_of_a_cut_connection_is_not_taken_for_complete() {
    let bench = start();
    let mut client = Client::connect_tls(bench.gateway.edge(), trusting(&bench.certificate, &["http/1.1"])).expect("TLS");
    let head = Request::new("POST", "/cut").bearer(&bench.key.secret).with("Transfer-Encoding", "chunked").head();
    client.send([&head[..], b"4\r\nhalf\r\n"].concat()).expect("sent");
    eventually!(SOON, bench.gateway.upstream.seen().iter().any(|seen| seen.body_bytes == 4));
    client.socket().shutdown(std::net::Shutdown::Both).expect("our socket");
    eventually!(SOON, bench.gateway.upstream.last("/cut").gone_at.is_some());
    assert!(!bench.gateway.upstream.last("/cut").complete);
}

/// RFC 8446 section 5.1: a handshake message may come in any number of records.
#[test]
fn a_hello_in_records_of_one_byte_is_understood_and_an_old_version_is_refused() {
    use std::io::{Read, Write};
    let bench = start();
    let name = "localhost".try_into().expect("localhost is a name");
    let mut session = rustls::ClientConnection::new(bench.client(&["http/1.1"]), name).expect("a session");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("our memory");
    let mut socket = std::net::TcpStream::connect(bench.gateway.edge()).expect("the edge accepts");
    let pieces: Vec<u8> = hello[5..].iter().flat_map(|byte| [hello[0], hello[1], hello[2], 0, 1, *byte]).collect();
    socket.write_all(&pieces).expect("sent");
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream.write_all(&Request::get("/pieces").bearer(&bench.key.secret).with("Connection", "close").head()).expect("sent");
    let mut answer = Vec::new();
    // However the end comes, the answer is what counts.
    stream.read_to_end(&mut answer).ok();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    // The same hello, but of a client that knows nothing newer than TLS 1.1: no extension says otherwise.
    let random = [7; 32];
    let body = [&[3, 2][..], &random, &[0, 0, 2, 0xc0, 0x13, 1, 0]].concat();
    let length = u8::try_from(body.len()).expect("short");
    let old = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat();
    let mut socket = std::net::TcpStream::connect(bench.gateway.edge()).expect("the edge accepts");
    socket.write_all(&old).expect("sent");
    let mut alert = Vec::new();
    socket.read_to_end(&mut alert).ok();
    assert_eq!(alert.first(), Some(&21), "an alert and nothing else: {alert:02x?}");
}

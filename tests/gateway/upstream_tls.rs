//! Upstreams over TLS whose certificate is not the one that was meant, or that speak no TLS: nothing of a request is sent to
//! them, the client is told 502, the record says why, and once they are mended they are used again without a restart.
//!
//! And how connections over TLS end, as OpenSSL at the other side sees it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::support::eventually::{eventually, found};
use crate::support::{Gateway, SOON, program};

/// How the upstream receives a connection.
#[derive(Clone)]
enum Manner {
    Tls(Arc<ServerConfig>),
    /// These bytes, whatever comes.
    Says(&'static [u8]),
    /// Nothing at all.
    Silent,
    HangsUp,
}

struct TlsUpstream {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    /// What it could read of requests.
    read: Arc<Mutex<Vec<u8>>>,
}

impl TlsUpstream {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let upstream = Self { address, manner: Arc::new(Mutex::new(manner)), read: Arc::default() };
        let (manner, read) = (upstream.manner.clone(), upstream.read.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (manner, read) = (manner.lock().expect("no holder panics").clone(), read.clone());
                thread::spawn(move || serve(socket, manner, &read));
            }
        });
        upstream
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().expect("no holder panics") = manner;
    }

    fn read(&self) -> String {
        String::from_utf8_lossy(&self.read.lock().expect("no holder panics")).into_owned()
    }
}

fn serve(mut socket: TcpStream, manner: Manner, read: &Mutex<Vec<u8>>) {
    socket.set_read_timeout(Some(Duration::from_secs(60))).ok();
    match manner {
        Manner::Says(bytes) => {
            socket.write_all(bytes).ok();
            socket.read_to_end(&mut Vec::new()).ok();
        }
        Manner::Silent => {
            socket.read_to_end(&mut Vec::new()).ok();
        }
        Manner::HangsUp => {}
        Manner::Tls(config) => {
            let mut stream = StreamOwned::new(ServerConnection::new(config).expect("a session"), socket);
            let mut piece = [0; 16 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                read.lock().expect("no holder panics").extend_from_slice(&piece[..count]);
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
        }
    }
}

/// A self-signed certificate: for whom, and from which year to which.
fn certificate(name: &str, from: i32, to: i32) -> (Manner, String) {
    let mut parameters = rcgen::CertificateParams::new(vec![name.into()]).expect("a name");
    (parameters.not_before, parameters.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
    let pair = rcgen::KeyPair::generate().expect("a key");
    let made = parameters.self_signed(&pair).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS 1.2 and 1.3");
    let config = builder.with_no_client_auth().with_single_cert(vec![made.der().clone()], key).expect("they belong together");
    (Manner::Tls(Arc::new(config)), made.pem())
}

#[test]
fn an_upstream_that_cannot_prove_who_it_is_is_sent_nothing_and_is_502_until_it_can() {
    let good = certificate("localhost", 2020, 2100);
    let (expired, early) = (certificate("localhost", 2019, 2020), certificate("localhost", 2099, 2100));
    let (other, stranger) = (certificate("elsewhere.example", 2020, 2100), certificate("localhost", 2020, 2100));
    let folder = tempfile::tempdir().expect("a folder");
    let trusted = folder.path().join("ca.pem");
    // All are trusted but the stranger's, so that each is refused for its own reason.
    fs::write(&trusted, [&good.1, &expired.1, &early.1, &other.1].map(String::as_str).concat()).expect("our folder");
    let upstream = TlsUpstream::start(good.0.clone());
    let gateway = Gateway::with(|config| {
        config["upstreams"]["ledger"] = json!({
            "endpoints": [format!("https://localhost:{}", upstream.address.port())],
            "ca": trusted,
            "timeout": { "connect": "700ms", "response_header": "2s" },
        });
    });
    let (editor, key) = (gateway.editor(), gateway.key());
    gateway.get(&key, "/good").expect(200);
    let rows = [
        ("expired", expired.0, 502, "upstream_unreachable"),
        ("not valid yet", early.0, 502, "upstream_unreachable"),
        ("another's name", other.0, 502, "upstream_unreachable"),
        ("nobody's authority", stranger.0, 502, "upstream_unreachable"),
        ("clear text", Manner::Says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), 502, "upstream_unreachable"),
        ("garbage", Manner::Says(b"\x16\x03\x03\xff\xffgarbage"), 502, "upstream_unreachable"),
        ("an alert", Manner::Says(b"\x15\x03\x03\x00\x02\x02\x28"), 502, "upstream_unreachable"),
        ("the end at once", Manner::HangsUp, 502, "upstream_unreachable"),
        ("silence", Manner::Silent, 504, "upstream_timeout"),
    ];
    for (row, (what, manner, status, code)) in rows.into_iter().enumerate() {
        upstream.behave(manner);
        // Connections of before are used until their end; a new configuration of the upstream has none.
        gateway.rewrite_config(|config| config["upstreams"]["ledger"]["connections_max"] = json!(10 + row));
        let reloads = gateway.metric("assure_gateway_config_reloads_total{result=\"success\"}");
        gateway.signal(rustix::process::Signal::HUP);
        eventually!(SOON, gateway.metric("assure_gateway_config_reloads_total{result=\"success\"}") > reloads, "{what}: it is reloaded");
        let target = format!("/row/{row}");
        gateway.get(&key, &target).expect_problem(status, code);
        assert!(!upstream.read().contains(&target), "{what}: nothing is sent to who knows whom");
        let record = found(SOON, &format!("{what}: a record"), || {
            gateway.activity(&editor).into_iter().find(|record| record["path"] == target.as_str())
        });
        assert_eq!((record["outcome"].as_str(), record["status"].as_str()), (Some(code), Some(status.to_string().as_str())), "{what}");
        assert!(gateway.is_ready(), "{what}: an upstream's fault is no reason to send clients elsewhere");
        upstream.behave(good.0.clone());
        eventually!(SOON, gateway.get(&key, "/mended").status == 200, "{what}: once mended it is used again");
    }
    let unreachable = gateway.activity(&editor).iter().filter(|record: &&Value| record["outcome"] == "upstream_unreachable").count();
    assert!(unreachable >= 8, "{unreachable}");
    assert!(gateway.log().contains("certificate"), "the operator can read why");
}

/// An upstream by another library than ours, which tells how its connections end.
struct Foreign {
    process: Child,
    port: u16,
    ends: Arc<Mutex<Vec<String>>>,
}

impl Foreign {
    fn start(protocol: &str, certificate: &Path) -> Self {
        let mut command = program::python("../servers/tls_upstream.py");
        let mut process = command.arg(protocol).arg(certificate).stdout(Stdio::piped()).spawn().expect("Python starts");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let port = lines.next().expect("a first line").parse().expect("a port");
        let ends: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = ends.clone();
        thread::spawn(move || lines.for_each(|line| noted.lock().expect("no holder panics").push(line)));
        Self { process, port, ends }
    }

    fn ends(&self) -> Vec<String> {
        self.ends.lock().expect("no holder panics").clone()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Authority and server in one.
struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    fn make() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        fs::write(folder.path().join("ca.pem"), made.cert.pem()).expect("our folder");
        fs::write(folder.path().join("both.pem"), [made.cert.pem(), made.signing_key.serialize_pem()].concat()).expect("our folder");
        Self { folder }
    }

    fn trusted(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn start(&self, protocol: &str) -> Foreign {
        Foreign::start(protocol, &self.folder.path().join("both.pem"))
    }
}

#[test]
fn a_connection_over_tls_is_ended_before_it_is_closed() {
    let certificate = Certificate::make();
    for (protocol, ends_of_its_own) in [("http/1.1", 2), ("h2", 0)] {
        let upstream = certificate.start(protocol);
        let mut gateway = Gateway::with(|config| {
            let endpoint = format!("https://localhost:{}", upstream.port);
            config["upstreams"]["ledger"] = json!({ "endpoints": [endpoint], "ca": certificate.trusted(), "timeout": { "idle": "300ms" } });
        });
        let key = gateway.key();
        // One that the upstream wants closed, and one that has been unused for too long.
        gateway.get(&key, "/last").expect(200);
        gateway.get(&key, "/kept").expect(200);
        let until = Instant::now() + Duration::from_millis(400);
        eventually!(SOON, Instant::now() > until);
        gateway.get(&key, "/fresh").expect(200);
        eventually!(SOON, upstream.ends().len() >= ends_of_its_own, "{protocol}: {:?}", upstream.ends());
        // And one that is open when the gateway ends.
        gateway.terminate();
        gateway.wait_exit(SOON);
        eventually!(SOON, upstream.ends().len() > ends_of_its_own, "{protocol}: {:?}", upstream.ends());
        assert!(upstream.ends().iter().all(|end| end == "clean"), "{protocol}: {:?}", upstream.ends());
    }
}

#[test]
fn questions_of_our_own_over_tls_end_in_order_too() {
    let certificate = Certificate::make();
    let asked = certificate.start("http/1.1");
    let gateway = Gateway::with(|config| {
        let endpoint = format!("https://localhost:{}", asked.port);
        let health = json!({ "path": "/healthz", "interval": "100ms" });
        config["upstreams"]["ledger"] = json!({ "endpoints": [endpoint], "ca": certificate.trusted(), "health": health });
    });
    eventually!(SOON, asked.ends().len() >= 3, "it is asked for its health");
    assert!(asked.ends().iter().all(|end| end == "clean"), "{:?}", asked.ends());
    let admin = certificate.start("http/1.1");
    let url = format!("https://localhost:{}", admin.port);
    let mut command = gateway.command(&["keys", "list", "--token", "a.b.c", "--admin", &url]);
    program::run(command.env("SSL_CERT_FILE", certificate.trusted()));
    eventually!(SOON, !admin.ends().is_empty(), "the command line has asked");
    assert_eq!(admin.ends(), ["clean"]);
}

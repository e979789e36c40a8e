//! A server that wants TLS both ways and a user: the certificates are made here, by an authority of the test's own, and
//! the user may do only what the README says a gateway needs.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{Server, ask, free_port, fresh_folder};

/// All that a gateway's user needs, as the README says.
const RIGHTS: &str = "~assure:* &assure:* +@all -@dangerous +info +role +config|get +cluster|nodes +cluster|slots";

/// A server on 127.0.0.1 that wants TLS, a certificate of its own authority, and a user `gateway`.
pub(crate) struct Guarded {
    pub(crate) server: Server,
    /// Where it speaks TLS.
    pub(crate) port: u16,
    pub(crate) folder: TempDir,
}

impl Guarded {
    pub(crate) fn start() -> Self {
        Self::with("--appendfsync always")
    }

    pub(crate) fn with(more: &str) -> Self {
        let folder = fresh_folder();
        let ca = authority(folder.path(), "ca");
        authority(folder.path(), "stranger");
        certificate(folder.path(), "server", "127.0.0.1", &ca);
        certificate(folder.path(), "client", "gateway", &ca);
        let port = free_port();
        let words = format!(
            "--bind 127.0.0.1 --save  --appendonly yes {more} {} --user gateway on >old-secret {RIGHTS} --user admin on >admin ~* &* +@all --user default off",
            encrypted(folder.path(), port)
        );
        std::fs::write(folder.path().join("password"), "old-secret\n").expect("our folder");
        Self { server: Server::run(fresh_folder(), &words), port, folder }
    }

    /// One of `ca.pem`, `stranger.pem`, `client.pem`, `client.key` and `password`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn admin(&self, words: &[&str]) -> String {
        let signed_in = [&["--no-auth-warning", "--user", "admin", "--pass", "admin"], words].concat();
        ask(self.server.port, &signed_in).trim().to_owned()
    }
}

/// What a server is told that is to have the certificates in this folder, and to speak TLS on this port.
pub(crate) fn encrypted(folder: &Path, port: u16) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let (certificate, key, ca) = (at("server.pem"), at("server.key"), at("ca.pem"));
    format!("--tls-port {port} --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {ca} --tls-auth-clients yes")
}

fn authority(folder: &Path, name: &str) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().expect("a fresh key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let made = params.self_signed(&key).expect("a certificate");
    std::fs::write(folder.join(format!("{name}.pem")), made.pem()).expect("our folder");
    Issuer::new(params, key)
}

fn certificate(folder: &Path, file: &str, name: &str, issuer: &Issuer<'_, KeyPair>) {
    let key = KeyPair::generate().expect("a fresh key");
    let made = CertificateParams::new(vec![name.to_owned()]).and_then(|params| params.signed_by(&key, issuer)).expect("a certificate");
    std::fs::write(folder.join(format!("{file}.pem")), made.pem()).expect("our folder");
    std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).expect("our folder");
}

//! Four upstreams that other people wrote, each of which says in `X-Saw` what it understood of a request.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::SOON;
use crate::support::eventually::eventually;

/// How often a server is started that ends at once.
const STARTS_MAX: usize = 3;

/// A running server.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Server {
    /// All four.
    pub(super) fn all() -> Vec<Self> {
        let configured = |text: &'static str| move |folder: &Path, port: u16| write(folder, text, port);
        vec![
            Self::start("nginx", |folder, port| {
                let file = configured(include_str!("nginx.conf"))(folder, port);
                let mut command = Command::new("nginx");
                command.arg("-e").arg(folder.join("nginx.log")).arg("-p").arg(folder).arg("-c").arg(file);
                command
            }),
            Self::start("haproxy", |folder, port| {
                let mut command = Command::new("haproxy");
                command.args(["-q", "-db", "-f"]).arg(configured(include_str!("haproxy.cfg"))(folder, port));
                command
            }),
            Self::start("python", |folder, port| {
                fs::write(folder.join("echo.py"), include_str!("echo.py")).expect("our folder");
                let mut command = Command::new("python3");
                command.arg(folder.join("echo.py")).arg(port.to_string());
                command
            }),
            Self::start("node", |folder, port| {
                fs::write(folder.join("echo.mjs"), include_str!("echo.mjs")).expect("our folder");
                let mut command = Command::new("node");
                command.arg(folder.join("echo.mjs")).arg(port.to_string());
                command
            }),
        ]
    }

    /// A port that is free when it is asked for may be somebody's a moment later; then the server ends, and has another try.
    fn start(name: &'static str, command: impl Fn(&Path, u16) -> Command) -> Self {
        (0..STARTS_MAX).find_map(|_| Self::try_start(name, &command)).unwrap_or_else(|| panic!("{name} ends at its start"))
    }

    fn try_start(name: &'static str, command: impl Fn(&Path, u16) -> Command) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let mut command = command(folder.path(), address.port());
        // Debian keeps daemons where only root looks for programs.
        let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap_or_else(|error| panic!("{name} does not start ({error}): tests/run installs it"));
        let mut server = Self { name, address, process, _folder: folder };
        eventually!(SOON, server.has_ended() || server.listens(), "the server listens");
        (!server.has_ended()).then_some(server)
    }

    fn has_ended(&mut self) -> bool {
        self.process.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Whether it does, and not this very socket: one that asks for a port of its own range may be given that port, and meets itself.
    fn listens(&self) -> bool {
        TcpStream::connect(self.address).is_ok_and(|socket| socket.local_addr().is_ok_and(|own| own != self.address))
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn write(folder: &Path, text: &str, port: u16) -> std::path::PathBuf {
    let file = folder.join("server.conf");
    let text = text.replace("FOLDER", &folder.display().to_string()).replace("PORT", &port.to_string());
    fs::write(&file, text).expect("our folder");
    file
}

//! The program under test as a child process.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::client::Transport;
use super::process::{Directory, Process, free_ports, tail, wait_ready};
use super::server::Server;
use super::{PATIENCE, Result};

/// A running gateway.
pub struct Gateway {
    own: Own,
    process: Mutex<Process>,
    directory: Directory,
}

impl Gateway {
    /// Starts `bosphorus serve` with this configuration, to which the harness adds
    /// `listen.addresses` and `admin.address`, and waits until `/ready` says yes.
    pub fn start(toml: &str) -> Result<Self> {
        Self::start_by(toml, Process::spawn)
    }

    /// The same for a configuration that has its own `listen.addresses`, and a command that is
    /// started in some way.
    pub fn start_by(
        toml: &str,
        spawn: impl FnOnce(Command, &Directory, &str) -> Result<Process>,
    ) -> Result<Self> {
        Self::start_with(toml, None, None, spawn)
    }

    /// The same whose admin listener is on every address of the machine, not on loopback alone.
    pub fn start_open(toml: &str) -> Result<Self> {
        Self::start_with(toml, None, Some(Ipv4Addr::UNSPECIFIED), Process::spawn)
    }

    /// As [`Gateway::start`], with a TLS listener beside, which shows this certificate: the PEM of its
    /// chain and of its key.
    pub fn start_tls(toml: &str, pem: [&str; 2]) -> Result<Self> {
        Self::start_with(toml, Some(pem), None, Process::spawn)
    }

    fn start_with(
        toml: &str,
        pem: Option<[&str; 2]>,
        admin_on: Option<Ipv4Addr>,
        spawn: impl FnOnce(Command, &Directory, &str) -> Result<Process>,
    ) -> Result<Self> {
        let [listen, tls, admin] =
            free_ports()?.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let directory = Directory::new("gateway")?;
        let files = pem.map(|[chain, key]| -> Result<_> {
            Ok([directory.write("chain.pem", chain)?, directory.write("key.pem", key)?])
        });
        let own = Own { listen, tls, admin, files: files.transpose()? };
        let config = directory.write("bosphorus.toml", &own.with(toml))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
        command.arg("serve").arg("--config").arg(config);
        if let Some(address) = admin_on {
            command.arg("--admin").arg(format!("{address}:{}", admin.port()));
        }
        // Only the file counts, whatever the environment of the person who runs the tests.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BOSPHORUS_") {
                command.env_remove(name);
            }
        }
        let log = directory.join("gateway.log");
        let mut process = spawn(command, &directory, "gateway.log")?;
        wait_ready(&mut process, || {
            http_get(admin, "/ready").is_ok_and(|(status, _)| status == 200)
        })
        .with_context(|| format!("the gateway did not start:\n{}", tail(&log, 40)))?;
        Ok(Self { own, process: Mutex::new(process), directory })
    }

    /// Starts one that serves the domains of these servers at their c2s ports.
    pub fn in_front_of(servers: &[&Server]) -> Result<Self> {
        Self::in_front_of_with(servers, "")
    }

    /// The same with further configuration.
    pub fn in_front_of_with(servers: &[&Server], toml: &str) -> Result<Self> {
        let mut toml = format!("{toml}\n[log]\nfilter = \"debug\"\n");
        for server in servers {
            toml += &domain_toml(server);
        }
        Self::start(&toml)
    }

    /// Writes another configuration, with the same addresses, over the one it was started with;
    /// it is read on SIGHUP. The path of the file.
    pub fn write_config(&self, toml: &str) -> Result<PathBuf> {
        self.directory.write("bosphorus.toml", &self.own.with(toml))
    }

    /// Where WebSocket clients connect.
    pub fn ws_url(&self) -> String {
        format!("ws://{}/xmpp-websocket", self.listen())
    }

    /// Where BOSH clients connect.
    pub fn bosh_url(&self) -> String {
        format!("http://{}/http-bind", self.listen())
    }

    /// Where clients of that transport connect.
    pub fn url(&self, transport: Transport) -> String {
        match transport {
            Transport::Ws | Transport::WsLegacy => self.ws_url(),
            Transport::Bosh => self.bosh_url(),
        }
    }

    /// The listener for clients.
    pub fn listen(&self) -> SocketAddr {
        self.own.listen
    }

    /// The one with TLS, of [`Gateway::start_tls`].
    pub fn tls(&self) -> SocketAddr {
        self.own.tls
    }

    /// The listener for operators.
    pub fn admin(&self) -> SocketAddr {
        self.own.admin
    }

    /// Gets a path of the admin listener: status and body.
    pub fn admin_get(&self, path: &str) -> Result<(u16, String)> {
        http_get(self.own.admin, path)
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let (status, body) = self.admin_get("/metrics")?;
        if status != 200 {
            bail!("/metrics answered {status}");
        }
        Ok(body)
    }

    /// The value of one sample, by its name and labels as they are written, or 0 if there is none.
    pub fn metric(&self, sample: &str) -> Result<f64> {
        let metrics = self.metrics()?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?.unwrap_or(0.0))
    }

    /// The sum of all samples of a family.
    pub fn total(&self, family: &str) -> Result<f64> {
        let metrics = self.metrics()?;
        let samples = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(family).filter(|rest| rest.starts_with([' ', '{']))?;
            rest.rsplit(' ').next()
        });
        samples.map(|value| Ok(value.parse::<f64>()?)).sum()
    }

    /// Resident memory in bytes: all of it, and the part that is not shared with other processes.
    pub fn resident(&self) -> Result<Resident> {
        let id = self.process()?.id();
        let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
        let field = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
            Ok(kib.with_context(|| format!("no {name} in smaps_rollup"))?.trim().parse::<u64>()?
                * 1024)
        };
        Ok(Resident {
            all: field("Rss:")?,
            own: field("Private_Dirty:")? + field("Private_Clean:")?,
        })
    }

    /// The process id.
    pub fn id(&self) -> Result<u32> {
        Ok(self.process()?.id())
    }

    /// Sends a signal by name (`TERM`, `INT`).
    pub fn signal(&self, name: &str) -> Result {
        self.process()?.signal(name)
    }

    /// Sends SIGTERM and waits for the exit.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait(PATIENCE)
    }

    /// Waits for the exit.
    pub fn wait(&self, patience: Duration) -> Result<ExitStatus> {
        self.process()?.wait(patience)
    }

    /// Kills it (SIGKILL).
    pub fn kill(&self) -> Result {
        self.process()?.kill();
        Ok(())
    }

    /// All it logged.
    pub fn log(&self) -> String {
        tail(&self.directory.join("gateway.log"), usize::MAX)
    }

    /// The last `lines` lines it logged.
    pub fn log_tail(&self, lines: usize) -> String {
        format!("--- gateway log\n{}\n", tail(&self.directory.join("gateway.log"), lines))
    }

    /// The directory it runs in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn process(&self) -> Result<MutexGuard<'_, Process>> {
        self.process.lock().map_err(|_| anyhow!("a test panicked here"))
    }
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// `Rss` of smaps_rollup.
    pub all: u64,
    /// `Private_Dirty` and `Private_Clean` of smaps_rollup.
    pub own: u64,
}

/// The configuration of one domain: the server's c2s port on loopback.
pub fn domain_toml(server: &Server) -> String {
    format!("[domains.\"{}\"]\nservers = [\"xmpp://{}\"]\n", server.domain(), server.c2s())
}

/// What the harness adds to a configuration.
struct Own {
    listen: SocketAddr,
    tls: SocketAddr,
    admin: SocketAddr,
    /// The chain and the key that are shown at `tls`; if there are none, nothing listens there.
    files: Option<[PathBuf; 2]>,
}

impl Own {
    /// The configuration with these keys.
    fn with(&self, toml: &str) -> String {
        let mut toml = toml.to_owned();
        if !toml.contains("\naddresses = ") {
            toml = with_key(&toml, "listen", &format!("addresses = [\"{}\"]", self.listen));
        }
        if let Some([chain, key]) = &self.files {
            toml = with_key(&toml, "listen", &format!("tls_addresses = [\"{}\"]", self.tls));
            toml += &format!("\n[[tls.certificates]]\ncertificate = {chain:?}\nkey = {key:?}\n");
        }
        with_key(&toml, "admin", &format!("address = \"{}\"", self.admin))
    }
}

/// Adds a line to a table of the text, which may have the table already.
fn with_key(toml: &str, table: &str, line: &str) -> String {
    let head = format!("[{table}]\n");
    match toml.contains(&head) {
        true => toml.replacen(&head, &format!("{head}{line}\n"), 1),
        false => format!("{toml}\n{head}{line}\n"),
    }
}

/// A GET on a connection of its own: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
    if head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked") {
        return Ok((status, unchunked(body)));
    }
    Ok((status, body.to_owned()))
}

/// RFC 9112 §7.1, without trailers.
fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size.trim(), 16) else { break };
        let Some(chunk) = after.get(..size) else { break };
        body += chunk;
        rest = after.get(size + 2..).unwrap_or_default();
    }
    body
}

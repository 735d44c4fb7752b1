//! Prosody and ejabberd as Debian packages them, run as child processes of the test: a directory,
//! a configuration and loopback ports of their own; nothing of the machine's installation is used
//! or changed but the programs themselves. And the server of our own demo.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::Result;
use super::client::Transport;
use super::process::{Directory, Process, find, free_ports, tail, wait_ready};

/// The password of every account.
pub const PASSWORD: &str = "pencil & paper";

/// Accounts made beside alice, bob and carol, handed out by [`Server::account`].
const ACCOUNTS: usize = 400;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// <https://prosody.im>
    Prosody,
    /// <https://www.ejabberd.im>
    Ejabberd,
    /// The server behind `bosphorus demo`, alone; it has no endpoint but TCP.
    Demo,
}

impl Kind {
    /// Both, in the order of the tables.
    pub const ALL: [Self; 2] = [Self::Prosody, Self::Ejabberd];

    /// Those, and our own.
    pub const WITH_DEMO: [Self; 3] = [Self::Prosody, Self::Ejabberd, Self::Demo];

    /// The Debian package's name, which is also the column's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prosody => "prosody",
            Self::Ejabberd => "ejabberd",
            Self::Demo => "demo",
        }
    }

    /// The domain it serves.
    pub fn domain(self) -> &'static str {
        match self {
            Self::Prosody => "prosody.test",
            Self::Ejabberd => "ejabberd.test",
            Self::Demo => "localhost",
        }
    }

    /// Why it cannot be run here, if it cannot.
    pub fn missing(self) -> Option<String> {
        let programs: &[&str] = match self {
            Self::Prosody => &["prosody"],
            Self::Ejabberd => &["ejabberdctl", "erl"],
            Self::Demo if cfg!(feature = "demo") => &[],
            Self::Demo => return Some("built without the feature `demo`".to_owned()),
        };
        let program = programs.iter().find(|program| find(program).is_none())?;
        Some(format!("no `{program}` on this machine (Debian package `{}`)", self.name()))
    }
}

/// What a private server may have beyond the shared ones.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// With a certificate the c2s port requires STARTTLS and a second one speaks TLS directly.
    pub tls: Option<Certificate>,
    /// The c2s port wants a PROXY header before each connection; ejabberd alone.
    pub proxy_protocol: bool,
    /// Seconds after which its own BOSH ends a session that is silent; 60 or more if 0.
    pub bosh_inactivity: u32,
    /// A whole configuration instead of the one made here, of which only the accounts stay.
    pub configuration: Option<Configuration>,
}

/// A server's configuration by somebody else.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Its text, in which `DIRECTORY` stands for the directory that the server runs in.
    pub text: String,
    /// The port of its client-to-server listener on 127.0.0.1; it has no other endpoint.
    pub c2s: u16,
    /// Further files in that directory, by their names.
    pub files: Vec<(String, String)>,
}

/// PEM files of the server's certificate (chain) and its private key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The chain, the server's own certificate first.
    pub chain: PathBuf,
    /// The key, unencrypted PKCS #8.
    pub key: PathBuf,
}

/// A login.
#[derive(Clone, Debug)]
pub struct Account {
    /// The part before the `@`.
    pub name: String,
    /// The part behind it.
    pub domain: String,
    /// The password.
    pub password: String,
}

impl Account {
    /// `name@domain`.
    pub fn jid(&self) -> String {
        format!("{}@{}", self.name, self.domain)
    }
}

/// A running server.
pub struct Server {
    kind: Kind,
    c2s: SocketAddr,
    proxy_protocol: bool,
    direct_tls: Option<SocketAddr>,
    /// Where its own endpoints for web clients are, if it has any.
    http: SocketAddr,
    has_http: bool,
    process: Mutex<Option<Process>>,
    given: AtomicUsize,
    directory: Directory,
}

impl Server {
    /// The Prosody that all tests of this binary share. `Err` says why there is none.
    pub fn prosody() -> Result<Arc<Self>> {
        Self::shared(Kind::Prosody)
    }

    /// The ejabberd that all tests of this binary share. `Err` says why there is none.
    pub fn ejabberd() -> Result<Arc<Self>> {
        Self::shared(Kind::Ejabberd)
    }

    /// The shared server of that kind, started by the first who asks.
    pub fn shared(kind: Kind) -> Result<Arc<Self>> {
        static PROSODY: OnceLock<Result<Arc<Server>, String>> = OnceLock::new();
        static EJABBERD: OnceLock<Result<Arc<Server>, String>> = OnceLock::new();
        static DEMO: OnceLock<Result<Arc<Server>, String>> = OnceLock::new();
        let place = match kind {
            Kind::Prosody => &PROSODY,
            Kind::Ejabberd => &EJABBERD,
            Kind::Demo => &DEMO,
        };
        place
            .get_or_init(|| {
                Self::start(kind, &Settings::default())
                    .map(Arc::new)
                    .map_err(|error| format!("{error:#}"))
            })
            .clone()
            .map_err(|why| anyhow!(why))
    }

    /// Starts a private server: for whoever wants to kill it, or TLS.
    pub fn start(kind: Kind, settings: &Settings) -> Result<Self> {
        if let Some(why) = kind.missing() {
            bail!(why);
        }
        let [c2s, direct_tls, http] =
            free_ports()?.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let configured = settings.configuration.as_ref();
        let c2s = configured.map_or(c2s, |it| SocketAddr::from((Ipv4Addr::LOCALHOST, it.c2s)));
        let server = Self {
            kind,
            c2s,
            proxy_protocol: settings.proxy_protocol,
            direct_tls: settings.tls.is_some().then_some(direct_tls),
            http,
            has_http: configured.is_none() && kind != Kind::Demo,
            process: Mutex::new(None),
            given: AtomicUsize::new(0),
            directory: Directory::new(kind.name())?,
        };
        match kind {
            Kind::Prosody => server.configure_prosody(settings)?,
            Kind::Ejabberd => server.configure_ejabberd(settings)?,
            Kind::Demo => {}
        }
        if let Some(Configuration { text, files, .. }) = configured {
            let name = if kind == Kind::Prosody { "prosody.cfg.lua" } else { "ejabberd.yml" };
            let directory = server.directory.path().to_string_lossy().into_owned();
            server.directory.write(name, &text.replace("DIRECTORY", &directory))?;
            for (name, content) in files {
                server.directory.write(name, content)?;
            }
        }
        server.restart()?;
        Ok(server)
    }

    /// Which server it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The domain it serves.
    pub fn domain(&self) -> &'static str {
        self.kind.domain()
    }

    /// The client-to-server port: plain, or STARTTLS required if it was given a certificate.
    pub fn c2s(&self) -> SocketAddr {
        self.c2s
    }

    /// The port that speaks TLS from the first byte (XEP-0368), if it was given a certificate.
    pub fn direct_tls(&self) -> Option<SocketAddr> {
        self.direct_tls
    }

    /// Its own WebSocket endpoint, to compare with.
    pub fn websocket_url(&self) -> String {
        match self.kind {
            Kind::Prosody => format!("ws://{}/xmpp-websocket", self.http),
            Kind::Ejabberd => format!("ws://{}/ws", self.http),
            Kind::Demo => String::new(),
        }
    }

    /// Its own BOSH endpoint, to compare with.
    pub fn bosh_url(&self) -> String {
        match self.kind {
            Kind::Prosody => format!("http://{}/http-bind", self.http),
            Kind::Ejabberd => format!("http://{}/bosh", self.http),
            Kind::Demo => String::new(),
        }
    }

    /// Its own endpoint for that transport, to compare with.
    pub fn url(&self, transport: Transport) -> String {
        match transport {
            Transport::Ws | Transport::WsLegacy => self.websocket_url(),
            Transport::Bosh => self.bosh_url(),
        }
    }

    /// An account that no other test of this binary has: rosters and presence stay apart.
    pub fn account(&self) -> Account {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        assert!(number < ACCOUNTS, "the tests want more than {ACCOUNTS} accounts");
        self.named_account(&format!("user{number:03}"))
    }

    /// One of `alice`, `bob`, `carol`.
    pub fn named_account(&self, name: &str) -> Account {
        Account {
            name: name.to_owned(),
            domain: self.domain().to_owned(),
            password: if self.kind == Kind::Demo { name } else { PASSWORD }.to_owned(),
        }
    }

    /// Kills it as a crash would (SIGKILL): its sockets are closed by the kernel.
    pub fn kill(&self) {
        if let Ok(mut process) = self.process.lock() {
            *process = None;
        }
    }

    /// Stops the process without ending it (SIGSTOP): sockets stay open and nobody reads.
    pub fn freeze(&self) -> Result {
        self.signal("STOP")
    }

    /// Undoes [`Server::freeze`].
    pub fn thaw(&self) -> Result {
        self.signal("CONT")
    }

    /// Starts it (again) with the same ports and data, and waits until it answers a stream header.
    pub fn restart(&self) -> Result {
        let mut place = self.process.lock().map_err(|_| anyhow!("a test panicked here"))?;
        *place = None;
        let command = match self.kind {
            Kind::Prosody => self.prosody_command()?,
            Kind::Ejabberd => self.ejabberd_command()?,
            Kind::Demo => self.demo_command(),
        };
        let mut process = Process::spawn(command, &self.directory, "output.log")?;
        wait_ready(&mut process, || self.answers())
            .and_then(|()| self.wait_accounts(&mut process))
            .with_context(|| format!("{} did not start:\n{}", self.kind.name(), self.logs(40)))?;
        *place = Some(process);
        Ok(())
    }

    /// The last `lines` lines of what it printed and logged.
    pub fn logs(&self, lines: usize) -> String {
        format!(
            "--- {} output\n{}\n--- {} log\n{}\n",
            self.kind.name(),
            tail(&self.directory.join("output.log"), lines),
            self.kind.name(),
            tail(&self.directory.join("server.log"), lines),
        )
    }

    fn signal(&self, name: &str) -> Result {
        let process = self.process.lock().map_err(|_| anyhow!("a test panicked here"))?;
        process.as_ref().context("the server does not run")?.signal(name)
    }

    fn answers(&self) -> bool {
        // ejabberd closes connections that say UNKNOWN.
        let proxied = "PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n";
        let before = if self.proxy_protocol { proxied } else { "" };
        stream_header(self.c2s, before, self.domain())
            .is_some_and(|answer| answer.contains("<stream:"))
            && (!self.has_http
                || TcpStream::connect_timeout(&self.http, Duration::from_millis(500)).is_ok())
    }

    /// ejabberd opens its ports before the accounts are made.
    fn wait_accounts(&self, process: &mut Process) -> Result {
        match self.kind {
            Kind::Prosody | Kind::Demo => Ok(()),
            Kind::Ejabberd => wait_ready(process, || self.directory.join("accounts.done").exists()),
        }
    }

    fn account_names() -> impl Iterator<Item = String> {
        let numbered = (0..ACCOUNTS).map(|number| format!("user{number:03}"));
        ["alice", "bob", "carol"].map(String::from).into_iter().chain(numbered)
    }

    fn configure_prosody(&self, settings: &Settings) -> Result {
        let domain = self.domain();
        let data = self.directory.join("data");
        // How Prosody names directories in its internal store: everything but letters and digits
        // as %xx.
        let host = domain.replace('.', "%2e");
        for name in Self::account_names() {
            self.directory.write(
                &format!("data/{host}/accounts/{name}.dat"),
                &format!("return {{ [\"password\"] = \"{PASSWORD}\"; }};\n"),
            )?;
        }
        let (tls_module, direct_tls, certificate) = match &settings.tls {
            None => ("", String::new(), String::new()),
            Some(Certificate { chain, key }) => {
                let ssl = format!(
                    "{{ certificate = \"{}\"; key = \"{}\"; }}",
                    chain.display(),
                    key.display()
                );
                let port = self.direct_tls.map_or(0, |address| address.port());
                ("\"tls\";", port.to_string(), format!("ssl = {ssl}\nc2s_direct_tls_ssl = {ssl}"))
            }
        };
        let config = format!(
            r#"data_path = "{data}"
log = {{ debug = "{log}" }}
run_as_root = true
network_backend = "epoll"
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
c2s_direct_tls_ports = {{ {direct_tls} }}
http_ports = {{ {http} }}
http_interfaces = {{ "127.0.0.1" }}
https_ports = {{ }}
s2s_ports = {{ }}
modules_enabled = {{
    "c2s"; "saslauth"; "roster"; "presence"; "message"; "iq"; "disco"; "ping"; "smacks"; "offline";
    "carbons"; "csi"; "http"; "websocket"; "bosh"; {tls_module}
}}
modules_disabled = {{ "s2s"; }}
authentication = "internal_plain"
c2s_require_encryption = {require_encryption}
allow_unencrypted_plain_auth = {plain}
c2s_stanza_size_limit = 16 * 1024 * 1024
stanza_size_limit = 16 * 1024 * 1024
websocket_frame_buffer_limit = 32 * 1024 * 1024
smacks_max_queue_size = 100000
smacks_max_hibernated_sessions = 1000
limits = {{ }}
bosh_max_inactivity = {inactivity}
{certificate}
VirtualHost "{domain}"
"#,
            data = data.display(),
            log = self.directory.join("server.log").display(),
            c2s = self.c2s.port(),
            http = self.http.port(),
            require_encryption = settings.tls.is_some(),
            plain = settings.tls.is_none(),
            inactivity = if settings.bosh_inactivity == 0 { 60 } else { settings.bosh_inactivity },
        );
        self.directory.write("prosody.cfg.lua", &config)?;
        std::fs::create_dir_all(self.directory.join("certs"))?;
        Ok(())
    }

    fn prosody_command(&self) -> Result<Command> {
        let mut command = Command::new(find("prosody").context("no `prosody`")?);
        command.arg("--config").arg(self.directory.join("prosody.cfg.lua")).arg("-F");
        Ok(command)
    }

    fn configure_ejabberd(&self, settings: &Settings) -> Result {
        let (certfiles, c2s_tls, direct_tls) = match &settings.tls {
            None => ("[]".to_owned(), "    starttls: false\n", String::new()),
            Some(Certificate { chain, key }) => (
                format!("[\"{}\", \"{}\"]", chain.display(), key.display()),
                "    starttls: true\n    starttls_required: true\n",
                format!(
                    "  - port: {port}\n    ip: \"127.0.0.1\"\n    module: ejabberd_c2s\n    \
                     tls: true\n    shaper: none\n    max_stanza_size: infinity\n",
                    port = self.direct_tls.map_or(0, |address| address.port()),
                ),
            ),
        };
        let config = format!(
            r#"hosts: ["{domain}"]
loglevel: info
certfiles: {certfiles}
listen:
  - port: {c2s}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    shaper: none
    max_stanza_size: infinity
    use_proxy_protocol: {proxy_protocol}
{c2s_tls}{direct_tls}  - port: {http}
    ip: "127.0.0.1"
    module: ejabberd_http
    request_handlers:
      /ws: ejabberd_http_ws
      /bosh: mod_bosh
auth_method: [internal]
auth_password_format: plain
max_fsm_queue: 1000000
shaper_rules:
  max_user_offline_messages: infinity
access_rules:
  everyone:
    allow: all
modules:
  mod_bosh:
    max_inactivity: {inactivity}
  mod_carboncopy: {{}}
  mod_client_state: {{}}
  mod_disco: {{}}
  mod_offline: {{}}
  mod_ping: {{}}
  mod_roster: {{}}
  mod_stream_mgmt:
    max_ack_queue: infinity
    resend_on_timeout: if_offline
"#,
            domain = self.domain(),
            c2s = self.c2s.port(),
            proxy_protocol = settings.proxy_protocol,
            http = self.http.port(),
            inactivity = if settings.bosh_inactivity == 0 { 120 } else { settings.bosh_inactivity },
        );
        self.directory.write("ejabberd.yml", &config)?;
        self.directory.write("spool/.keep", "")?;
        self.directory.write("inetrc", "{lookup,[\"file\",\"native\"]}.\n")?;
        Ok(())
    }

    fn demo_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
        command.args(["demo-server", "--listen", &self.c2s.to_string()]);
        command
    }

    /// ejabberdctl would change to the system user `ejabberd`, its directories and its node name;
    /// this is what it runs in the end, without a node name: nothing distributed, no epmd.
    fn ejabberd_command(&self) -> Result<Command> {
        let directory = self.directory.path();
        let names: Vec<String> =
            Self::account_names().map(|name| format!("<<\"{name}\">>")).collect();
        let register = format!(
            "[ejabberd_auth:try_register(User, <<\"{domain}\">>, <<\"{PASSWORD}\">>) || \
             User <- [{names}]], file:write_file(\"{done}\", \"done\").",
            domain = self.domain(),
            names = names.join(","),
            done = directory.join("accounts.done").display(),
        );
        let mut command = Command::new(find("erl").context("no `erl`")?);
        command
            .arg("-noinput")
            // Two schedulers that do not spin: tests share the machine.
            .args(["+S", "2:2", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"])
            .args(["-mnesia", "dir"])
            .arg(format!("\"{}\"", directory.join("spool").display()))
            .args(["-s", "ejabberd", "-eval", &register])
            .env("ERL_LIBS", erlang_libraries()?)
            .env("ERL_CRASH_DUMP", directory.join("crash.dump"))
            .env("ERL_INETRC", directory.join("inetrc"))
            .env("EJABBERD_CONFIG_PATH", directory.join("ejabberd.yml"))
            .env("EJABBERD_LOG_PATH", directory.join("server.log"))
            .env("HOME", directory);
        Ok(command)
    }
}

/// Where ejabberd's Erlang libraries are: ejabberdctl knows, since it differs by architecture.
fn erlang_libraries() -> Result<String> {
    let script = find("ejabberdctl").context("no `ejabberdctl`")?;
    let text = std::fs::read_to_string(&script)?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("ERL_LIBS="));
    let path = line.map(|value| value.trim_matches(['\'', '"']).to_owned());
    path.filter(|path| Path::new(path).is_dir())
        .with_context(|| format!("{} names no ERL_LIBS", script.display()))
}

/// Opens a stream by hand and returns what came back first.
fn stream_header(address: SocketAddr, before: &str, domain: &str) -> Option<String> {
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let header = format!(
        "{before}<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='{domain}' version='1.0'>"
    );
    socket.write_all(header.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.windows(8).any(|window| window == b"<stream:") {
        match socket.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
        }
    }
    Some(String::from_utf8_lossy(&answer).into_owned())
}

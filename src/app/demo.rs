//! `bosphorus demo`: the gateway as ever, in front of an XMPP server of its own, and a page; all of
//! it on loopback.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::sockets::{Sockets, bind, bind_admin};
use super::{Extra, Gateway, Signals, raise_file_limit};
use crate::config::{self, AllowedOrigins, Config, Route, ServerAddress, TlsMode};
use crate::demo::{DOMAIN, Server, Settings, page};
use crate::proto::domain::Domain;

/// What is logged: the terminal belongs to what is printed at the start.
pub const LOG_FILTER: &str = "warn";

/// Sessions at a time. A demo has a few, and who opens thousands wants `serve`.
const SESSIONS: usize = 1000;
/// That of `listen.addresses`.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5280);
/// From Ctrl-C to the exit.
const DRAIN: Duration = Duration::from_secs(3);

/// Where to listen; without an address the default port, or a free one if that is taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The page and the transports.
    pub listen: Option<SocketAddr>,
    /// Metrics and health.
    pub admin: Option<SocketAddr>,
}

/// Runs the demo until a signal has ended it. Says on standard output where everything is, once all
/// of it listens.
///
/// # Errors
/// An address that is not loopback or was asked for and is taken; a runtime that cannot be started.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut config = config()?;
    raise_file_limit(config.limits.sessions);
    actix_rt::System::new().block_on(async {
        let mut signals = Signals::new().context("listening for signals")?;
        let mut notes = String::new();
        let public = socket(options.listen, DEFAULT_LISTEN, &mut notes, |address| {
            bind(address, config.listen.backlog)
        })?;
        let default_admin = config.admin.address.context("a default for admin.address")?;
        let admin = socket(options.admin, default_admin, &mut notes, bind_admin)?;
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 128)?;
        let settings = Settings { roster_of_everyone: true };
        let server = Server::start(listener, settings).context("starting the XMPP server")?;

        let listen = public.local_addr()?;
        keep_to_itself(&mut config, listen);
        config.admin.address = Some(admin.local_addr()?);
        route_to(&mut config, server.address())?;
        let sockets =
            Sockets { public: vec![public.into()], secure: Vec::new(), admin: Some(admin) };
        let places = page::Places {
            websocket: config.ws.paths.first().cloned().unwrap_or_default(),
            bosh: config.bosh.paths.first().cloned(),
            metrics: config.admin.address.map(|admin| format!("http://{admin}/metrics")),
        };
        let extra: Extra = Arc::new(move |app| page::configure(&places, app));
        let introduction = introduction(&config, listen, server.address(), &notes);
        let gateway = Gateway::start(config, sockets, Some(extra))?;
        say(&introduction);
        gateway.run(&mut signals, None).await;
        Ok(())
    })
}

/// Runs the XMPP server alone until a signal has ended it.
///
/// # Errors
/// An address that is not loopback or is taken; a runtime that cannot be started.
pub fn run_server(listen: SocketAddr, settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new().context("listening for signals")?;
        only_loopback(listen)?;
        let _server = Server::start(bind(listen, 1024)?, settings)?;
        signals.next().await;
        Ok(())
    })
}

/// The defaults, for one domain that goes nowhere yet.
fn config() -> anyhow::Result<Config> {
    let domain = Domain::parse(DOMAIN).context("the domain of the demo")?;
    let mut config = Config { default_domain: Some(domain), ..Config::default() };
    config.limits.sessions = SESSIONS;
    config.drain.timeout = DRAIN;
    let account = Some((format!("lab@{DOMAIN}"), "lab".to_owned()));
    config.lab = config::Lab { enabled: true, account };
    Ok(config)
}

/// Lets the pages of the demo connect and no others: whatever else the browser shows could log in
/// here, too. Programs send no `Origin`, and pass.
fn keep_to_itself(config: &mut Config, public: SocketAddr) {
    // An origin does not name the port that goes without saying.
    let port = match public.port() {
        80 => String::new(),
        port => format!(":{port}"),
    };
    let host = match public.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let origins = [host.as_str(), "localhost"].map(|host| format!("http://{host}{port}"));
    config.ws.allowed_origins = AllowedOrigins::Listed(origins.to_vec());
    config.bosh.allowed_origins = AllowedOrigins::Listed(origins.to_vec());
}

/// Serves the demo's domain by the server at this address.
fn route_to(config: &mut Config, server: SocketAddr) -> anyhow::Result<()> {
    let route = Route {
        servers: vec![config::Server::at(ServerAddress::Tcp {
            host: server.ip().to_string(),
            port: server.port(),
        })],
        tls: TlsMode::Never,
        ca_file: None,
        pin_sha256: Vec::new(),
        insecure: false,
        client: None,
        allowed_origins: None,
        public_url: None,
    };
    config.domains.named.insert(Domain::parse(DOMAIN).context("the domain of the demo")?, route);
    Ok(())
}

/// Binds what was asked for, or else the default, or else any port; says so in the last case.
fn socket(
    asked: Option<SocketAddr>,
    default: SocketAddr,
    notes: &mut String,
    bind: impl Fn(SocketAddr) -> anyhow::Result<TcpListener>,
) -> anyhow::Result<TcpListener> {
    if let Some(address) = asked {
        only_loopback(address)?;
        return bind(address);
    }
    only_loopback(default)?;
    if let Ok(listener) = bind(default) {
        return Ok(listener);
    }
    let listener = bind(SocketAddr::new(default.ip(), 0))?;
    let port = listener.local_addr()?.port();
    let _ = writeln!(notes, "Port {} is taken; {port} takes its place.", default.port());
    Ok(listener)
}

/// The passwords are no secrets: nobody else is to reach it.
fn only_loopback(address: SocketAddr) -> anyhow::Result<()> {
    anyhow::ensure!(address.ip().is_loopback(), "{address} is not a loopback address");
    Ok(())
}

fn introduction(config: &Config, public: SocketAddr, server: SocketAddr, notes: &str) -> String {
    let mut text = String::from("\nBosphorus demo: everything is on this machine.\n\n");
    let mut line = |name: &str, url: &str| {
        let _ = writeln!(text, "  {name:<12}{url}");
    };
    line("Page", &format!("http://{public}/"));
    line("Lab", &format!("http://{public}/lab"));
    if let Some(path) = config.ws.paths.first() {
        line("WebSocket", &format!("ws://{public}{path}"));
    }
    if let Some(path) = config.bosh.paths.first() {
        line("BOSH", &format!("http://{public}{path}"));
    }
    if let Some(admin) = config.admin.address {
        line("Metrics", &format!("http://{admin}/metrics"));
        line("Status", &format!("http://{admin}/status"));
    }
    line("XMPP server", &format!("{server} (c2s, domain {DOMAIN})"));
    if !notes.is_empty() {
        let _ = write!(text, "\n{notes}");
    }
    text + "\nLog in as anyone you like: the password is the user name (alice, alice).\n\
            Ctrl-C ends it.\n\n"
}

/// Whoever does not read it does without.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

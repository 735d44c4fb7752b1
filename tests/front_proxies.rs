//! The files in `conf/examples` for what stands in front of the gateway and behind it: each starts
//! the real thing, with nothing replaced but addresses, ports, names and paths, and what an example
//! says of `bosphorus.toml` is what the gateway is started with. In front are nginx, HAProxy and
//! Caddy, once with TLS of their own and, where they can, once with the gateway's; clients come from
//! an address that ejabberd behind has to have in its log. The table is printed last.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[path = "front_proxies/example.rs"]
mod example;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;
#[path = "front_proxies/servers.rs"]
mod servers;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join;
use h2::ext::Protocol;
use libtest_mimic::{Arguments, Failed, Trial};
use rustls::ClientConfig;
use tokio::time::timeout;

use common::bosh::{Body, CONTENT_TYPE, CREATION, Session, creation, first_rid};
use common::bridge::{self, Http2, Multiplexer};
use common::client::{Client, Endpoint, Transport, ns};
use common::gateway::Gateway;
use common::http::{Connection, Url};
use common::process::{Directory, Process, find, free_ports, tail, wait_ready};
use common::server::{Account, Kind, Server};
use common::socket::{frame, opcode};
use common::table::{Cell, Table};
use common::{PATIENCE, Result, block_on, eventually, in_ci};
use example::{CERTIFICATE, Example, KEY, MODULES, NAME, STREAM_MODULE, Surroundings};
use pki::{Ca, Validity};
use servers::{ejabberd, ejabberd_toml, prosody};

/// Where clients come from; the proxies connect from 127.0.0.1.
const FROM: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 77), Ipv4Addr::new(127, 0, 0, 78)];
/// What a client claims to be that is not believed.
const FORGED: &str = "192.0.2.66";
/// How long a request is held: a proxy that waits for more, or for the end, would show.
const HELD: Duration = Duration::from_secs(6);

/// What stands in front: a row of the table.
struct Front {
    /// The file in `conf/examples`.
    file: &'static str,
    title: &'static str,
    program: &'static str,
    package: &'static str,
    /// Whether it ends TLS itself.
    ends_tls: bool,
    /// Replaces what is of the operator's machine, and gives the command that starts it.
    prepare: fn(&Surroundings, Example) -> Result<Command>,
}

const FRONTS: [Front; 5] = [
    Front {
        file: "nginx.conf",
        title: "nginx, TLS there",
        program: "nginx",
        package: "nginx-light",
        ends_tls: true,
        prepare: example::nginx,
    },
    Front {
        file: "haproxy.cfg",
        title: "HAProxy, TLS there",
        program: "haproxy",
        package: "haproxy",
        ends_tls: true,
        prepare: example::haproxy,
    },
    Front {
        file: "Caddyfile",
        title: "Caddy, TLS there",
        program: "caddy",
        package: "caddy",
        ends_tls: true,
        prepare: example::caddy,
    },
    Front {
        file: "nginx-stream.conf",
        title: "nginx stream, TLS here",
        program: "nginx",
        package: "libnginx-mod-stream",
        ends_tls: false,
        prepare: example::nginx_stream,
    },
    Front {
        file: "haproxy-tcp.cfg",
        title: "HAProxy TCP, TLS here",
        program: "haproxy",
        package: "haproxy",
        ends_tls: false,
        prepare: example::haproxy_tcp,
    },
];

/// What runs in the cells of a row; gives the address that ejabberd has seen, where it looks.
type Scenario = fn(&Stand) -> Result<Cell>;

const COLUMNS: [(&str, Scenario); 6] = [
    ("WebSocket", |stand| block_on(talk(stand, Way::WebSocket))),
    ("WebSocket, HTTP/2", |stand| block_on(websocket_over_http2(stand))),
    ("BOSH, HTTP/1.1", |stand| block_on(talk(stand, Way::Http1))),
    ("BOSH, HTTP/2", |stand| block_on(talk(stand, Way::Http2))),
    ("request held 6 s", |stand| block_on(held(stand))),
    ("forged headers", |stand| block_on(forged(stand))),
];

impl Front {
    fn missing(&self) -> Option<String> {
        if let Some(why) = Kind::Ejabberd.missing() {
            return Some(why);
        }
        let is_there = find(self.program).is_some()
            && (self.package != "libnginx-mod-stream"
                || Path::new(MODULES).join(STREAM_MODULE).exists());
        (!is_there).then(|| format!("no `{}` (Debian package `{}`)", self.program, self.package))
    }

    /// Only HAProxy takes WebSockets over HTTP/2 (RFC 8441), since it makes upgrades of them.
    fn has(&self, column: &str) -> bool {
        column != "WebSocket, HTTP/2" || (self.program == "haproxy" && self.ends_tls)
    }

    /// Started by the first who asks.
    fn stand(&'static self) -> Result<&'static Stand> {
        static STANDS: [OnceLock<Result<Stand, String>>; FRONTS.len()] =
            [const { OnceLock::new() }; FRONTS.len()];
        let place = FRONTS.iter().position(|front| front.file == self.file).context("a front")?;
        STANDS[place]
            .get_or_init(|| Stand::start(self).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|why| anyhow!("{why}"))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let titles = |all: &[&str]| all.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>();
    let fronts = Arc::new(Table::new(
        "in front (ok: client's address at ejabberd)",
        titles(&FRONTS.each_ref().map(|front| front.title)),
        titles(&COLUMNS.map(|(column, _)| column)),
    ));
    let behind = Arc::new(Table::new(
        "behind, with its example",
        titles(&Kind::ALL.map(Kind::name)),
        titles(&Way::PLAIN.map(Way::name)),
    ));
    let (mut trials, mut skips) = (Vec::new(), Vec::new());
    let mut add = |table: &Arc<Table>,
                   row: &'static str,
                   column: &'static str,
                   missing: Option<String>,
                   run: Box<dyn FnOnce() -> Result<Cell> + Send>| {
        let table = Arc::clone(table);
        let skipped = missing.is_some() && !in_ci();
        if skipped {
            table.set(row, column, Cell::Skip);
        }
        skips.extend(missing.iter().map(|why| format!("not run: {row}: {why}")));
        let run = move || {
            let result = missing.map_or_else(run, |why| Err(anyhow!(why)));
            table.set(row, column, *result.as_ref().unwrap_or(&Cell::Fail));
            result.map(|_| ()).map_err(|error| Failed::from(format!("{error:#}")))
        };
        trials.push(Trial::test(format!("{row}: {column}"), run).with_ignored_flag(skipped));
    };
    for front in &FRONTS {
        for (column, scenario) in COLUMNS.into_iter().filter(|(column, _)| front.has(column)) {
            let run = move || {
                let stand = front.stand()?;
                scenario(stand).with_context(|| stand.logs())
            };
            add(&fronts, front.title, column, front.missing(), Box::new(run));
        }
    }
    for kind in Kind::ALL {
        for way in Way::PLAIN {
            let run = move || self::behind(kind, way).map(|()| Cell::Ok);
            add(&behind, kind.name(), way.name(), kind.missing(), Box::new(run));
        }
    }
    trials.push(Trial::test("the examples' times fit the gateway's", || {
        Ok(times().map_err(|error| format!("{error:#}"))?)
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    skips.sort();
    skips.dedup();
    skips.iter().for_each(|line| println!("{line}"));
    fronts.print("fronts");
    behind.print("behind");
    conclusion.exit_code()
}

/// The gateway's own times are too long to wait for: proxies have to wait longer, and to give up
/// connections that are kept sooner.
fn times() -> Result {
    let ours =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/bosphorus.toml"))?;
    let seconds = |text: &str, key: &str| -> Result<u32> {
        let start = |line: &str| line.trim_start().strip_prefix(key).map(str::to_owned);
        let value = text.lines().find_map(start).with_context(|| format!("no {key}"))?;
        let value = value.trim_matches([' ', '=', '"', ';']).strip_suffix('s');
        Ok(value.with_context(|| format!("{key} is not in seconds"))?.parse()?)
    };
    let [wait, ping, keep_alive] =
        ["wait_max", "ping_interval", "keep_alive"].map(|key| seconds(&ours, key));
    let (silence, keep_alive) = (wait?.max(ping?), keep_alive?);
    for (file, key, least) in [
        ("nginx.conf", "proxy_read_timeout", silence),
        ("nginx.conf", "proxy_send_timeout", silence),
        ("haproxy.cfg", "timeout client", silence),
        ("haproxy.cfg", "timeout server", silence),
        ("haproxy.cfg", "timeout tunnel", silence),
        ("nginx-stream.conf", "proxy_timeout", silence.max(keep_alive)),
        ("haproxy-tcp.cfg", "timeout client", silence.max(keep_alive)),
        ("haproxy-tcp.cfg", "timeout server", silence.max(keep_alive)),
    ] {
        let time = seconds(&Example::read(file)?.text, key)?;
        ensure!(time > least, "{file}: {key} is {time} s, not more than {least}");
    }
    let kept = seconds(&Example::read("Caddyfile")?.text, "keepalive")?;
    ensure!(kept < keep_alive, "Caddyfile: connections are kept for {kept} s");
    Ok(())
}

/// A proxy, the gateway behind it, ejabberd behind that.
struct Stand {
    front: &'static Front,
    address: SocketAddr,
    server: Arc<Server>,
    gateway: Gateway,
    /// Clients that trust the certificate: of HTTP/1.1, and of HTTP/2.
    clients: [Arc<ClientConfig>; 2],
    surroundings: Surroundings,
    _process: Process,
}

impl Stand {
    fn start(front: &'static Front) -> Result<Self> {
        let server = ejabberd()?;
        let ca = Ca::new();
        let identity = ca.issue(&[NAME], Validity::Now);
        let directory = Directory::new("front")?;
        let [chain, key] = identity.pem();
        for (name, text) in
            [("chain.pem", chain), ("key.pem", key), ("both.pem", &format!("{chain}{key}"))]
        {
            directory.write(name, text)?;
        }
        let clients = [&[b"http/1.1" as &[u8]], &[b"h2" as &[u8]]]
            .map(|alpn| bridge::client(&ca.file(), rustls::ALL_VERSIONS, alpn));
        let [http1, http2] = clients;

        let example = Example::read(front.file)?;
        let [port, tls] = free_ports()?;
        let mut toml = example.for_bosphorus()?;
        // The harness writes addresses of its own.
        toml = match front.ends_tls {
            true => toml.replace("addresses = [\"127.0.0.1:5281\"]\n", "")?,
            false => toml
                .replace("\naddresses = []\n", "\n")?
                .replace("127.0.0.1:5282", format!("127.0.0.1:{tls}"))?
                .replace(CERTIFICATE, directory.join("chain.pem").display())?
                .replace(KEY, directory.join("key.pem").display())?,
        };
        let log = "[log]\nfilter = \"debug\"\n";
        let gateway = Gateway::start(&format!("{}{log}{}", toml.text, ejabberd_toml(&server)?))?;
        let surroundings = Surroundings {
            directory,
            port,
            inner: match front.ends_tls {
                true => gateway.listen(),
                false => SocketAddr::from((Ipv4Addr::LOCALHOST, tls)),
            },
            admin: gateway.admin(),
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let command = (front.prepare)(&surroundings, example)?;
        let mut process = Process::spawn(command, &surroundings.directory, "front.log")?;
        wait_ready(&mut process, || TcpStream::connect(address).is_ok()).with_context(|| {
            let log = tail(&surroundings.directory.join("front.log"), 40);
            format!("{} did not start:\n{log}", front.file)
        })?;
        let clients = [http1?, http2?];
        Ok(Self { front, address, server, gateway, clients, surroundings, _process: process })
    }

    /// Where a client without TLS connects to come here from that address.
    async fn endpoint(&self, way: Way, from: Ipv4Addr) -> Result<Endpoint> {
        let [http1, _] = &self.clients;
        let (scheme, address, path, transport) = match way {
            Way::WebSocket => {
                let local = bridge::tls_from(http1, from, self.address, NAME).await?;
                ("ws", local, "xmpp-websocket", Transport::Ws)
            }
            Way::Http1 => {
                let local = bridge::tls_from(http1, from, self.address, NAME).await?;
                ("http", local, "http-bind", Transport::Bosh)
            }
            Way::Http2 => {
                let local = Multiplexer::new(self.http2(from).await?).await?.address;
                ("http", local, "http-bind", Transport::Bosh)
            }
        };
        Ok(Endpoint { url: format!("{scheme}://{address}/{path}"), transport })
    }

    async fn http2(&self, from: Ipv4Addr) -> Result<Http2> {
        Http2::over(bridge::connect_from(&self.clients[1], from, self.address, NAME).await?).await
    }

    fn logs(&self) -> String {
        format!(
            "--- {}\n{}\n{}{}",
            self.front.file,
            tail(&self.surroundings.directory.join("front.log"), 20),
            self.gateway.log_tail(30),
            self.server.logs(20)
        )
    }
}

/// How a client comes.
#[derive(Clone, Copy)]
enum Way {
    WebSocket,
    Http1,
    Http2,
}

impl Way {
    /// Those that need no TLS.
    const PLAIN: [Self; 2] = [Self::WebSocket, Self::Http1];

    fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Http1 | Self::Http2 => "BOSH",
        }
    }
}

/// Two clients log in, write to each other, and go.
async fn exchange(endpoints: [Endpoint; 2], accounts: [&Account; 2]) -> Result {
    let mut one = Client::online(&endpoints[0], accounts[0]).await.context("the first login")?;
    let mut two = Client::online(&endpoints[1], accounts[1]).await.context("the second login")?;
    let large = "0123456789".repeat(1000);
    for text in ["there", "<and> & 'back' ⛴", &large] {
        one.message(&two.jid, text).await?;
        ensure!(two.body().await? == text, "{text:?} came otherwise");
        two.message(&one.jid, text).await?;
        ensure!(one.body().await? == text, "{text:?} came back otherwise");
    }
    one.quit().await?;
    two.quit().await?;
    Ok(())
}

/// Waits for the login in ejabberd's log: it came from that address.
async fn came_from(server: &Server, account: &Account, from: Ipv4Addr) -> Result<Cell> {
    let jid = format!(" {} ", account.jid());
    let address = eventually("the login in the server's log", async || {
        let logs = server.logs(usize::MAX);
        let accepted = |line: &&str| line.contains("Accepted c2s") && line.contains(&jid);
        let line = logs.lines().find(accepted)?;
        line.rsplit_once(" from ")?.1.trim().parse::<IpAddr>().ok()
    })
    .await?;
    ensure!(address.to_canonical() == from, "ejabberd has seen {address} instead of {from}");
    Ok(Cell::Seen(address.to_canonical()))
}

/// Scenario: SEC-19, SEC-20, SEC-21: messages there and back, and the server knows where both
/// clients are.
async fn talk(stand: &Stand, way: Way) -> Result<Cell> {
    let accounts = [stand.server.account(), stand.server.account()];
    let endpoints = [stand.endpoint(way, FROM[0]).await?, stand.endpoint(way, FROM[1]).await?];
    exchange(endpoints, accounts.each_ref()).await?;
    came_from(&stand.server, &accounts[1], FROM[1]).await?;
    came_from(&stand.server, &accounts[0], FROM[0]).await
}

/// A request with nothing to say is held for as long as it takes, and answered the moment there is
/// something, over both versions of HTTP.
async fn held(stand: &Stand) -> Result<Cell> {
    let friend = stand.server.account();
    let mut friend =
        Client::online(&stand.endpoint(Way::WebSocket, FROM[0]).await?, &friend).await?;
    let (mut sessions, mut seen) = (Vec::new(), Cell::Fail);
    for way in [Way::Http1, Way::Http2] {
        let url = Url::parse(&stand.endpoint(way, FROM[0]).await?.url)?;
        let account = stand.server.account();
        let mut session = Session::create(&url, stand.server.domain()).await?;
        let jid = session.login(&account.name, &account.password).await?;
        let presence = "<presence xmlns='jabber:client'/>";
        session.until("", presence, |element| element.is("presence", ns::CLIENT)).await?;
        seen = came_from(&stand.server, &account, FROM[0]).await?;
        let request = session.next("", "").await?;
        sessions.push((session, jid, request));
    }
    let [(one, first, mut held), (two, second, mut other)] =
        <[_; 2]>::try_from(sessions).map_err(|_| anyhow!("two sessions"))?;
    try_join(held.stays_open(HELD), other.stays_open(HELD)).await?;
    for (session, jid, mut request) in [(one, first, held), (two, second, other)] {
        friend.message(&jid, "after a while").await?;
        let body = request.body().await?;
        ensure!(body.messages() == ["after a while"], "{}", body.text);
        let mut session = session;
        let end = session.ask("type='terminate'", "").await?;
        ensure!(end.attr("type") == Some("terminate"), "{}", end.text);
    }
    friend.quit().await?;
    // By now its health checks would have taken the gateway away, if they failed.
    let url = stand.endpoint(Way::Http1, FROM[0]).await?.url;
    Session::create(&Url::parse(&url)?, stand.server.domain()).await?;
    Ok(seen)
}

/// Scenario: SEC-19, BOSH-89: what a client itself says of its address and of TLS counts for nothing;
/// what the proxy says does.
async fn forged(stand: &Stand) -> Result<Cell> {
    let url = Url::parse(&stand.endpoint(Way::Http1, FROM[0]).await?.url)?;
    let account = stand.server.account();
    let headers = format!(
        "{CONTENT_TYPE}X-Forwarded-For: {FORGED}\r\nForwarded: for={FORGED}\r\n\
         X-Forwarded-Proto: http\r\n"
    );
    let rid = first_rid();
    let text = creation(rid, &format!("to='{}' {CREATION}", stand.server.domain()));
    let mut connection = Connection::open(&url.authority).await?;
    connection.send(&url.post(&headers, &text)).await?;
    let mut session = Session::of(&url, rid, Body::of(&connection.prompt_answer().await?)?)?;
    session.headers = headers;
    session.login(&account.name, &account.password).await?;
    let seen = came_from(&stand.server, &account, FROM[0]).await?;
    ensure!(!stand.server.logs(usize::MAX).contains(FORGED), "the forged address is in the log");
    if stand.front.ends_tls {
        // Past the proxy, and so without TLS.
        let inner = Url { authority: stand.gateway.listen().to_string(), path: url.path };
        let mut plain = Connection::open(&inner.authority).await?;
        plain.send(&inner.post(CONTENT_TYPE, &session.text(session.rid + 1, "", ""))).await?;
        ensure!(plain.remainder().await?.is_empty(), "the session was not known to be over TLS");
    }
    Ok(seen)
}

/// RFC 8441, as a browser opens a WebSocket to whoever offers that; RFC 7395 in it.
async fn websocket_over_http2(stand: &Stand) -> Result<Cell> {
    let connection = stand.http2(FROM[0]).await?;
    let mut requests = connection.requests.clone().ready().await?;
    let offered = async || requests.is_extended_connect_protocol_enabled().then_some(());
    eventually("the offer of WebSockets over HTTP/2", offered).await?;
    let request = http::Request::builder()
        .method("CONNECT")
        .uri(format!("https://{NAME}/xmpp-websocket"))
        .version(http::Version::HTTP_2)
        .header("sec-websocket-protocol", "xmpp")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(())?;
    let (response, mut send) = requests.send_request(request, false)?;
    let response = timeout(PATIENCE, response).await.context("no answer")??;
    ensure!(response.status() == 200, "{response:?}");
    let chosen = response.headers().get("sec-websocket-protocol");
    ensure!(chosen.is_some_and(|name| name == "xmpp"), "{response:?}");
    let domain = stand.server.domain();
    let open = format!("<open xmlns='{}' to='{domain}' version='1.0'/>", ns::FRAMING);
    let text = frame(true, opcode::TEXT, open.as_bytes(), Some([1, 2, 3, 4]));
    send.send_data(Bytes::from(text), false)?;
    let mut body = response.into_body();
    let mut came = String::new();
    while !came.contains("mechanisms") {
        let piece = timeout(PATIENCE, body.data()).await.context("nothing came")?;
        let piece = piece.with_context(|| format!("the end after {came:?}"))??;
        body.flow_control().release_capacity(piece.len())?;
        came += &String::from_utf8_lossy(&piece);
    }
    Ok(Cell::Ok)
}

/// The gateway with the server's example, and the server with its own.
fn behind(kind: Kind, way: Way) -> Result {
    static PROSODY: OnceLock<Result<(Server, String), String>> = OnceLock::new();
    let ejabberd;
    let (server, toml) = match kind {
        Kind::Ejabberd => {
            ejabberd = servers::ejabberd()?;
            (&*ejabberd, ejabberd_toml(&ejabberd)?)
        }
        Kind::Prosody => {
            let place = PROSODY.get_or_init(|| prosody().map_err(|error| format!("{error:#}")));
            let (server, toml) = place.as_ref().map_err(|why| anyhow!("{why}"))?;
            (server, toml.clone())
        }
        Kind::Demo => bail!("there is no example for it"),
    };
    let gateway = Gateway::start(&format!("{toml}[log]\nfilter = \"debug\"\n"))?;
    block_on(async {
        let transport = match way {
            Way::WebSocket => Transport::Ws,
            Way::Http1 | Way::Http2 => Transport::Bosh,
        };
        let endpoint = Endpoint { url: gateway.url(transport), transport };
        let accounts = [server.account(), server.account()];
        exchange([endpoint.clone(), endpoint], accounts.each_ref()).await
    })
    .with_context(|| format!("{}{}", gateway.log_tail(30), server.logs(20)))
}

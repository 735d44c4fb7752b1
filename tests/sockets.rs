//! Listeners that are no addresses of TCP: Unix sockets, as a proxy on the same machine uses them,
//! and sockets that the service manager passes. What runs over them, who the client is, and what
//! becomes of the files.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, anyhow, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use common::bosh::{CONTENT_TYPE, CREATION, creation, first_rid};
use common::bridge;
use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::http::{Answer, Connection, Url};
use common::process::{Directory, Process, find, tail, wait_ready};
use common::scene::DOMAIN;
use common::server::{Kind, Server};
use common::socket::Socket;
use common::{PATIENCE, Result, block_on, eventually, in_ci};
use pki::{Ca, Validity};

/// A gateway on a Unix socket.
struct Front {
    gateway: Gateway,
    path: PathBuf,
    _directory: Directory,
}

impl Front {
    /// With these lines in `[listen]`, and this behind it.
    fn start(listen: &str, toml: &str) -> Result<Self> {
        let directory = Directory::new("socket")?;
        let path = directory.join("web.sock");
        let gateway = Gateway::start(&format!("{}\n{listen}\n{toml}", section(&path)))?;
        Ok(Self { gateway, path, _directory: directory })
    }

    /// The same without a server behind, so that a session that is made soon ends.
    fn alone(listen: &str, limits: &str) -> Result<Self> {
        Self::start(listen, &format!("[limits]\n{limits}\n{}", nowhere()))
    }

    /// A proxy in front of it that says this first.
    async fn relay(&self, first: &[u8]) -> Result<SocketAddr> {
        relay(&self.path, first).await
    }
}

fn section(path: &Path) -> String {
    format!("[listen]\naddresses = [\"unix:{}\"]\n", path.display())
}

fn nowhere() -> String {
    format!(
        "[log]\nfilter = \"debug\"\n[domains.\"{DOMAIN}\"]\nservers = [\"xmpp://127.0.0.1:9\"]\n"
    )
}

/// Carries every connection over one to the Unix socket, each of which begins with `first`.
async fn relay(path: &Path, first: &[u8]) -> Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (path, first) = (path.to_owned(), first.to_owned());
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let (path, first) = (path.clone(), first.clone());
            tokio::spawn(async move {
                let mut outer = UnixStream::connect(path).await?;
                outer.write_all(&first).await?;
                tokio::io::copy_bidirectional(&mut inner, &mut outer).await?;
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

fn endpoint(address: SocketAddr, transport: Transport) -> Endpoint {
    let url = match transport {
        Transport::Bosh => format!("http://{address}/http-bind"),
        Transport::Ws | Transport::WsLegacy => format!("ws://{address}/xmpp-websocket"),
    };
    Endpoint { url, transport }
}

async fn ask(address: SocketAddr, request: &[u8]) -> Result<Answer> {
    let mut connection = Connection::open(&address.to_string()).await?;
    connection.send(request).await?;
    connection.prompt_answer().await
}

fn url(address: SocketAddr) -> Result<Url> {
    Url::parse(&endpoint(address, Transport::Bosh).url)
}

/// Two talk, on whatever is in front of the gateway; on BOSH also after a rest.
async fn talk(gateway: &Gateway, server: &Server, place: &Endpoint) -> Result {
    let mut alice = Client::online(place, &server.named_account("alice")).await?;
    let mut bob = Client::online(place, &server.named_account("bob")).await?;
    alice.message(&bob.jid.clone(), "one").await?;
    ensure!(bob.body().await? == "one");
    let jid = bob.jid.clone();
    let late = async {
        if place.transport == Transport::Bosh {
            // A request that is held leaves the HTTP machinery.
            let held = "bosphorus_http_connections{state=\"held\"}";
            eventually(held, async || (gateway.metric(held).ok()? >= 1.0).then_some(())).await?;
        }
        alice.message(&jid, "two").await
    };
    let (received, sent) = tokio::join!(bob.body(), late);
    sent?;
    ensure!(received? == "two");
    let long = "long ".repeat(10_000);
    bob.message(&alice.jid.clone(), &long).await?;
    ensure!(alice.body().await? == long);
    alice.quit().await?;
    bob.quit().await?;
    Ok(())
}

/// Logins and messages on every transport, plain and with TLS.
fn sessions_run_over_unix_sockets_of(kind: Kind) -> Result {
    if let Some(why) = kind.missing() {
        ensure!(!in_ci(), "{why}");
        println!("skipped: {why}");
        return Ok(());
    }
    block_on(async {
        let server = Server::shared(kind)?;
        let directory = Directory::new("certificates")?;
        let ca = Ca::new();
        let identity = ca.issue(&["gateway.test"], Validity::Now);
        let [certificate, key] = identity.pem();
        let certificate = directory.write("0.pem", certificate)?;
        let key = directory.write("0.key", key)?;
        let secure = directory.join("tls.sock");
        let front = Front::start(
            &format!("tls_addresses = [\"unix:{}\"]", secure.display()),
            &format!(
                "[[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n\
                 [upstream]\ninsecure = true\n{}",
                domain_toml(&server)
            ),
        )?;
        let plain = front.relay(b"").await?;
        for transport in Transport::ALL {
            talk(&front.gateway, &server, &endpoint(plain, transport))
                .await
                .with_context(|| transport.name())?;
        }
        let config = bridge::client(&ca.file(), rustls::ALL_VERSIONS, &[b"http/1.1"])?;
        let to = relay(&secure, b"").await?;
        let secure = bridge::tls(&config, to, "gateway.test").await?;
        for transport in [Transport::Ws, Transport::Bosh] {
            talk(&front.gateway, &server, &endpoint(secure, transport))
                .await
                .with_context(|| format!("{} over TLS", transport.name()))?;
        }
        ensure!(front.gateway.stop()?.success());
        ensure!(!front.path.exists());
        Ok(())
    })
}

#[test]
fn sessions_run_over_unix_sockets() -> Result {
    sessions_run_over_unix_sockets_of(Kind::Demo)
}

#[test]
fn sessions_run_over_unix_sockets_to_prosody() -> Result {
    sessions_run_over_unix_sockets_of(Kind::Prosody)
}

/// The client's address in the log, as a request that no session gets leaves it there; `-` if there
/// is none.
async fn logged(front: &Front, through: SocketAddr, headers: &str) -> Result<String> {
    let log = || plain(&front.gateway.log());
    let seen = log().matches("bosh_refused").count();
    let stray = "<body rid='5' sid='nobody' xmlns='http://jabber.org/protocol/httpbind'/>";
    ask(through, &url(through)?.post(headers, stray)).await?;
    eventually("the line in the log", async || {
        let log = log();
        let line = log.lines().filter(|line| line.contains("bosh_refused")).nth(seen)?;
        let peer = line.split("peer=").nth(1).map(|rest| rest.split(' ').next());
        Some(peer.flatten().unwrap_or("-").to_owned())
    })
    .await
}

/// Without the colours of a terminal.
fn plain(log: &str) -> String {
    let mut parts = log.split('\u{1b}');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += part.split_once('m').map_or(part, |(_, rest)| rest);
    }
    text
}

/// SEC-19: whoever comes over a Unix socket has no address, and is believed whose requests he brings
/// if `"unix"` is listed, and only then.
#[test]
fn forwarding_headers_count_if_unix_is_listed() -> Result {
    block_on(async {
        let headers = "X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n";
        let front = Front::alone("trusted_proxies = [\"127.0.0.1\"]", "")?;
        let through = front.relay(b"").await?;
        for headers in ["", headers, "Forwarded: for=192.0.2.1\r\n"] {
            ensure!(logged(&front, through, headers).await? == "-", "{headers:?}");
        }
        // Whose proxy it is wants to know, once.
        let log = plain(&front.gateway.log());
        ensure!(log.matches("forwarding_headers_ignored").count() == 1, "{log}");

        let front = Front::alone("trusted_proxies = [\"unix\", \"10.0.0.0/8\"]", "")?;
        let through = front.relay(b"").await?;
        for (headers, client) in [
            (headers, "192.0.2.1:0"),
            ("X-Forwarded-For: 192.0.2.1, 10.0.0.3\r\n", "192.0.2.1:0"),
            ("Forwarded: for=\"[2001:db8::1]:4711\"\r\n", "[2001:db8::1]:4711"),
            ("X-Forwarded-For: nonsense\r\n", "-"),
            // As nginx writes it of a client that came over a Unix socket itself.
            ("X-Forwarded-For: unix:\r\n", "-"),
            ("", "-"),
        ] {
            let found = logged(&front, through, headers).await?;
            ensure!(found == client, "{headers:?}: {found}");
        }
        Ok(())
    })
}

/// SEC-20: a Unix socket that is listed begins with a PROXY header, and with nothing else.
#[test]
fn proxy_headers_are_read_from_unix_sockets() -> Result {
    block_on(async {
        let front = Front::alone("proxy_protocol = [\"unix\"]", "")?;
        let v2 = [
            &b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"[..],
            &[192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x67, 1, 187],
        ]
        .concat();
        let local = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00";
        for (header, client) in [
            (&b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\r\n"[..], "192.0.2.1:4711"),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "[2001:db8::1]:4711"),
            (b"PROXY UNKNOWN\r\n", "-"),
            (&v2, "192.0.2.1:4711"),
            (local, "-"),
        ] {
            let through = front.relay(header).await?;
            // Nobody is trusted beyond that.
            let found = logged(&front, through, "X-Forwarded-For: 192.0.2.9\r\n").await?;
            ensure!(found == client, "{}: {found}", String::from_utf8_lossy(header));
            // The socket of a WebSocket begins with it as well.
            Socket::connect(&endpoint(through, Transport::Ws).url).await?;
        }
        let through = front.relay(b"").await?;
        let mut connection = Connection::open(&through.to_string()).await?;
        connection.send(&url(through)?.request("GET", "", "")).await?;
        ensure!(connection.remainder().await?.is_empty(), "answered without a header");
        let malformed = "bosphorus_proxy_headers_total{outcome=\"malformed\"}";
        ensure!(front.gateway.metric(malformed)? == 1.0);
        Ok(())
    })
}

/// SEC-16: the limits per address hold for clients that are named, also where everybody comes over
/// one Unix socket, and not for those that are not.
#[test]
fn limits_hold_for_clients_that_are_named() -> Result {
    block_on(async {
        let front = Front::alone("trusted_proxies = [\"unix\"]", "new_sessions_per_minute = 2")?;
        let through = front.relay(b"").await?;
        let create = async |headers: &str| -> Result<u16> {
            let text = creation(first_rid(), &format!("to='{DOMAIN}' {CREATION}"));
            let headers = format!("{CONTENT_TYPE}{headers}");
            Ok(ask(through, &url(through)?.post(&headers, &text)).await?.status)
        };
        let first = "X-Forwarded-For: 192.0.2.1\r\n";
        let mut made = 0;
        while create(first).await? == 200 {
            made += 1;
            ensure!(made < 10, "no limit holds");
        }
        ensure!(made >= 2, "{made} sessions");
        ensure!(create("X-Forwarded-For: 192.0.2.2\r\n").await? == 200);
        for _ in 0..20 {
            ensure!(create("").await? == 200, "a limit holds for nobody");
        }
        Ok(())
    })
}

/// The socket has the permissions that were asked for, is there as long as the process, and takes
/// the place of one that was left behind, but of nothing else.
#[test]
fn files_are_made_replaced_and_removed() -> Result {
    block_on(async {
        let directory = Directory::new("socket")?;
        let path = directory.join("web.sock");
        let start = |mode: &str| {
            Gateway::start(&format!("{}\nunix_mode = \"{mode}\"\n{}", section(&path), nowhere()))
        };
        let mode = || anyhow::Ok(std::fs::metadata(&path)?.permissions().mode() & 0o777);
        let serves = async || -> Result {
            let through = relay(&path, b"").await?;
            ensure!(ask(through, &url(through)?.request("GET", "", "")).await?.status == 200);
            Ok(())
        };
        let gateway = start("0600")?;
        ensure!(mode()? == 0o600);
        serves().await?;
        ensure!(gateway.stop()?.success());
        ensure!(!path.exists(), "the file stays");

        let gateway = start("0660")?;
        gateway.kill()?;
        ensure!(path.exists(), "nothing to replace");
        let second = start("0666")?;
        ensure!(mode()? == 0o666);
        serves().await?;

        // A third one finds it in use, says so with the place, and leaves it alone.
        let output = serve(&directory, &format!("\n{}\n{}", section(&path), nowhere()))?;
        let place = format!("third.toml:3: listen.addresses: listening on unix:{}", path.display());
        let said = text(&output);
        ensure!(said.contains(&format!("{place}: another process listens on it")), "{said}");
        ensure!(output.status.code() == Some(1), "{}", output.status);
        serves().await?;

        // What has taken its place by the end is not removed.
        std::fs::remove_file(&path)?;
        let other = UnixListener::bind(&path)?;
        ensure!(second.stop()?.success());
        ensure!(path.exists());
        drop(other);
        // Nor is what is no socket, ever.
        std::fs::remove_file(&path)?;
        std::fs::write(&path, "precious")?;
        let said = text(&serve(&directory, &format!("\n{}\n{}", section(&path), nowhere()))?);
        ensure!(said.contains("there is a file already, and it is no socket"), "{said}");
        ensure!(std::fs::read_to_string(&path)? == "precious");
        let missing = section(&directory.join("none/web.sock"));
        let said = text(&serve(&directory, &format!("{missing}\n{}", nowhere()))?);
        ensure!(said.contains("third.toml:2: listen.addresses: listening on unix:"), "{said}");
        Ok(())
    })
}

/// Runs a gateway that is not expected to start, by the file `third.toml`.
fn serve(directory: &Directory, toml: &str) -> Result<Output> {
    let config = directory.write("third.toml", &format!("{toml}[admin]\naddress = \"\"\n"))?;
    Ok(bosphorus(&config).output()?)
}

fn bosphorus(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
    command.arg("serve").arg("--config").arg(config);
    command
}

fn text(output: &Output) -> String {
    plain(&String::from_utf8_lossy(&output.stderr))
}

/// Starts `command` as a service manager would: with these sockets as descriptors 3 and 4, which go
/// by these names, and its own number. Its standard streams are the only ones that we may pass.
fn activated(
    command: Command,
    directory: &Directory,
    log: &str,
    [first, second]: [OwnedFd; 2],
    names: &str,
) -> Result<Process> {
    let script = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$@\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "activated"]).arg(command.get_program()).args(command.get_args());
    shell.env("LISTEN_FDNAMES", names);
    Process::spawn_on(shell, directory, log, first.into(), second.into())
}

/// Two listening sockets and where they are.
struct Sockets {
    tcp: TcpListener,
    unix: UnixListener,
    address: SocketAddr,
    path: PathBuf,
    _directory: Directory,
}

impl Sockets {
    fn new() -> Result<Self> {
        let directory = Directory::new("sockets")?;
        let path = directory.join("act.sock");
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let (address, unix) = (tcp.local_addr()?, UnixListener::bind(&path)?);
        Ok(Self { tcp, unix, address, path, _directory: directory })
    }

    /// As a service manager keeps them, too.
    fn passed(&self) -> Result<[OwnedFd; 2]> {
        Ok([self.tcp.try_clone()?.into(), self.unix.try_clone()?.into()])
    }

    fn start(&self, toml: &str, names: &str) -> Result<Gateway> {
        let passed = self.passed()?;
        Gateway::start_by(toml, |command, directory, log| {
            activated(command, directory, log, passed, names)
        })
    }
}

/// Sockets that are passed are served, by name or all that are left; they outlive the process, and
/// who comes when it has gone is served by the next one.
#[test]
fn passed_sockets_are_served() -> Result {
    block_on(async {
        let server = Server::shared(Kind::Demo)?;
        let sockets = Sockets::new()?;
        let domain = domain_toml(&server);
        for (addresses, names) in [
            ("\"systemd:\"", "web:admin"),
            ("\"systemd:\"", ""),
            ("\"systemd:web\", \"systemd:\"", "web:admin"),
            ("\"systemd:bosphorus.socket\"", "bosphorus.socket:bosphorus.socket"),
        ] {
            let toml = format!("[listen]\naddresses = [{addresses}]\n{domain}");
            let gateway = sockets.start(&toml, names).with_context(|| addresses.to_owned())?;
            let through = relay(&sockets.path, b"").await?;
            for (to, transport) in [(sockets.address, Transport::Ws), (through, Transport::Bosh)] {
                talk(&gateway, &server, &endpoint(to, transport)).await?;
            }
            // As a drain ends for the first clients of the next process: they wait.
            gateway.signal("TERM")?;
            ensure!(gateway.wait(PATIENCE)?.success());
            ensure!(sockets.path.exists(), "the file of another's socket was removed");
            let mut early = Vec::new();
            for to in [sockets.address, through] {
                let mut connection = Connection::open(&to.to_string()).await?;
                connection.send(&url(to)?.request("GET", "", "")).await?;
                early.push(connection);
            }
            let next = sockets.start(&toml, names)?;
            for mut connection in early {
                ensure!(connection.prompt_answer().await?.status == 200);
            }
            ensure!(next.stop()?.success());
        }
        Ok(())
    })
}

/// A socket of a name is not served for another one; one that nobody asked for is told.
#[test]
fn passed_sockets_have_names() -> Result {
    block_on(async {
        let sockets = Sockets::new()?;
        let toml = format!("[listen]\naddresses = [\"systemd:web\"]\n{}", nowhere());
        let gateway = sockets.start(&toml, "web:other")?;
        ensure!(
            ask(sockets.address, &url(sockets.address)?.request("GET", "", "")).await?.status
                == 200
        );
        let log = plain(&gateway.log());
        ensure!(log.contains("socket_unused") && log.contains("name=\"other\""), "{log}");
        Ok(())
    })
}

/// What is wrong with passed sockets is told, with the key and the line.
#[test]
fn passed_sockets_that_are_wrong_are_refused() -> Result {
    let sockets = Sockets::new()?;
    let (connected, _other) = StdUnixStream::pair()?;
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let good = || sockets.tcp.try_clone().map(OwnedFd::from);
    for (address, passed, fault) in [
        (
            "systemd:x",
            sockets.passed()?,
            "the service manager has passed no such socket, only: a, b",
        ),
        (
            "systemd:b",
            [good()?, connected.into()],
            "the socket \"b\" does not listen: its unit has to say Accept=no",
        ),
        (
            "systemd:b",
            [good()?, datagram.into()],
            "the socket \"b\" is neither one of TCP nor a Unix stream socket",
        ),
    ] {
        let directory = Directory::new("activated")?;
        let toml = format!(
            "[listen]\naddresses = [\"{address}\"]\n[admin]\naddress = \"\"\n{}",
            nowhere()
        );
        let config = directory.write("b.toml", &toml)?;
        let mut process = activated(bosphorus(&config), &directory, "log", passed, "a:b")?;
        let status = process.wait(PATIENCE)?;
        let log = plain(&tail(&directory.join("log"), 20));
        let fault = format!("b.toml:2: listen.addresses: {fault}");
        ensure!(status.code() == Some(1) && log.contains(&fault), "{fault}\n{status}\n{log}");
    }
    let directory = Directory::new("activated")?;
    let toml = format!("[listen]\naddresses = [\"systemd:\"]\n{}", nowhere());
    let said = text(&serve(&directory, &toml)?);
    let fault = "third.toml:2: listen.addresses: the service manager has passed no sockets";
    ensure!(said.contains(fault), "{said}");
    Ok(())
}

/// systemd's own tool passes sockets as systemd does, once somebody comes.
#[test]
fn systemd_passes_sockets() -> Result {
    let Some(tool) = find("systemd-socket-activate") else {
        ensure!(!in_ci(), "no `systemd-socket-activate` (Debian package `systemd`)");
        println!("skipped: no `systemd-socket-activate` (Debian package `systemd`)");
        return Ok(());
    };
    block_on(async {
        let server = Server::shared(Kind::Demo)?;
        let directory = Directory::new("activate")?;
        let path = directory.join("act.sock");
        let [port]: [u16; 1] = common::process::free_ports()?;
        let toml = format!(
            "[listen]\naddresses = [\"systemd:tcp\", \"systemd:unix\"]\n[admin]\naddress = \"\"\n{}",
            domain_toml(&server)
        );
        let program = bosphorus(&directory.write("b.toml", &toml)?);
        let mut command = Command::new(tool);
        command.arg(format!("--listen=127.0.0.1:{port}")).arg("--listen").arg(&path);
        command.arg("--fdname=tcp:unix").arg(program.get_program()).args(program.get_args());
        let mut process = Process::spawn(command, &directory, "log")?;
        wait_ready(&mut process, || path.exists())?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let through = relay(&path, b"").await?;
        for (to, transport) in [(through, Transport::Ws), (address, Transport::Bosh)] {
            let place = endpoint(to, transport);
            let client = Client::online(&place, &server.named_account("alice")).await;
            client
                .map_err(|error| anyhow!("{error:#}\n{}", tail(&directory.join("log"), 20)))?
                .quit()
                .await?;
        }
        process.signal("TERM")?;
        ensure!(process.wait(PATIENCE)?.success());
        Ok(())
    })
}

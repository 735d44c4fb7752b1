//! TLS towards clients, and HTTP/2 over it: which certificate is shown and when it is replaced, what
//! is refused, logins over all three ways, and what becomes of BOSH requests whose stream or
//! connection ends.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::future::{try_join_all, try_join3};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use common::bosh::{CREATION, creation, first_rid};
use common::bridge::{self, Http2, Multiplexer};
use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::http::Cut;
use common::http::Url;
use common::peer::Peer;
use common::process::{Directory, find, free_ports};
use common::scene::{Scene, message};
use common::server::{Kind, Server};
use common::{PATIENCE, Result, block_on, eventually, in_ci};
use pki::{Ca, Identity, Validity};

/// The name in the certificate of tests that need only one.
const NAME: &str = "gateway.test";
const H2: &[&[u8]] = &[b"h2"];
const H1: &[&[u8]] = &[b"http/1.1"];

/// A directory of certificates, and the gateway's TLS address.
struct Edge {
    ca: Ca,
    directory: Directory,
    address: SocketAddr,
    /// The sections `[listen]` and `[tls]`.
    toml: String,
}

impl Edge {
    /// With a certificate for each list of names, in `0.pem` and `0.key` and so on, and further
    /// lines in `[listen]`.
    fn new(names: &[&[&str]], listen: &str) -> Result<Self> {
        let ca = Ca::new();
        let directory = Directory::new("certificates")?;
        let [port] = free_ports()?;
        let mut certificates = String::new();
        for (index, names) in names.iter().enumerate() {
            write(&directory, &index.to_string(), &ca.issue(names, Validity::Now))?;
            certificates += &format!(
                "[[tls.certificates]]\ncertificate = {:?}\nkey = {:?}\n",
                directory.join(&format!("{index}.pem")),
                directory.join(&format!("{index}.key")),
            );
        }
        let toml = format!(
            "[listen]\ntls_addresses = [\"127.0.0.1:{port}\"]\n{listen}\n{certificates}\n[log]\n\
             filter = \"debug\"\n"
        );
        Ok(Self { ca, directory, address: SocketAddr::from(([127, 0, 0, 1], port)), toml })
    }

    fn one(listen: &str) -> Result<Self> {
        Self::new(&[&[NAME]], listen)
    }

    /// A gateway that nobody logs in to.
    fn gateway(&self) -> Result<Gateway> {
        let toml = &self.toml;
        Gateway::start(&format!("{toml}[domains.\"x.test\"]\nservers = [\"xmpp://127.0.0.1:9\"]\n"))
    }

    fn client(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>> {
        bridge::client(&self.ca.file(), rustls::ALL_VERSIONS, alpn)
    }

    /// The certificate that is shown to a client of that name.
    async fn shown(&self, name: &str) -> Result<Vec<u8>> {
        let stream = bridge::connect(&self.client(&[])?, self.address, name).await?;
        let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
        Ok(chain[0].to_vec())
    }

    async fn http2(&self) -> Result<Http2> {
        Http2::connect(&self.client(H2)?, self.address, NAME).await
    }
}

/// Both files, each replaced in one step as careful programs do.
fn write(directory: &Directory, stem: &str, identity: &Identity) -> Result {
    for (suffix, text) in ["pem", "key"].iter().zip(identity.pem()) {
        let new = directory.write(&format!("{stem}.{suffix}.new"), text)?;
        std::fs::rename(new, directory.join(&format!("{stem}.{suffix}")))?;
    }
    Ok(())
}

fn leaf(identity: &Identity) -> Vec<u8> {
    identity.chain[0].to_vec()
}

/// RFC 6066 §3, RFC 9525 §6.3: the name chooses, a wildcard stands for one label, and the first
/// certificate is for everybody else.
#[test]
fn the_name_chooses_the_certificate() -> Result {
    block_on(async {
        let edge = Edge::new(
            &[&["first.test", "127.0.0.1"], &["second.test", "*.wild.test"], &["own.wild.test"]],
            "",
        )?;
        let _gateway = edge.gateway()?;
        let mut shown = Vec::new();
        for name in ["first.test", "second.test", "a.wild.test", "own.wild.test", "SECOND.test"] {
            shown.push(edge.shown(name).await.context(name)?);
        }
        ensure!(shown[1] == shown[2] && shown[1] == shown[4], "one certificate, three names");
        ensure!(shown[0] != shown[1] && shown[2] != shown[3], "the exact name is preferred");
        // An address is no name to ask for (RFC 6066 §3).
        ensure!(edge.shown("127.0.0.1").await? == shown[0], "no name: the first");
        for name in ["unknown.test", "a.b.wild.test", "wild.test"] {
            let error = edge.shown(name).await.expect_err("a certificate for another name");
            let text = format!("{error:#}");
            ensure!(text.contains("first.test"), "{name}: {text}");
        }
        Ok(())
    })
}

/// SEC-24: TLS 1.1 and 1.0 are refused by a fatal alert, 1.2 and 1.3 are spoken, and 1.2 is not where the
/// configuration says so.
#[test]
fn old_versions_are_refused() -> Result {
    block_on(async {
        let edge = Edge::one("")?;
        let gateway = edge.gateway()?;
        for minor in [2, 1] {
            let mut socket = TcpStream::connect(edge.address).await?;
            socket.write_all(&client_hello(minor)).await?;
            let mut answer = Vec::new();
            timeout(PATIENCE, socket.read_to_end(&mut answer)).await??;
            // RFC 5246 §7.2: an alert (21), fatal (2): handshake_failure (40), since such a client
            // has no extensions, or protocol_version (70).
            let refused = matches!(answer[..], [21, 3, _, 0, 2, 2, 40 | 70]);
            ensure!(refused, "not such an alert: {answer:?}");
        }
        for version in [&TLS12, &TLS13] {
            let client = bridge::client(&edge.ca.file(), &[version], &[])?;
            let stream = bridge::connect(&client, edge.address, NAME).await?;
            ensure!(stream.get_ref().1.protocol_version() == Some(version.version), "version");
        }
        // To a client a handshake is over before it is to us.
        for (labels, count) in [
            ("outcome=\"ok\",version=\"1.2\"", 1.0),
            ("outcome=\"ok\",version=\"1.3\"", 1.0),
            ("outcome=\"failed\",version=\"none\"", 2.0),
        ] {
            let sample = format!("bosphorus_tls_handshakes_total{{{labels}}}");
            let is_so = async || (gateway.metric(&sample).ok()? == count).then_some(());
            eventually(&format!("{sample} {count}"), is_so).await?;
        }

        let mut edge = Edge::one("")?;
        edge.toml = edge.toml.replacen("[log]", "[tls]\nmin_version = \"1.3\"\n[log]", 1);
        let _gateway = edge.gateway()?;
        let old = bridge::client(&edge.ca.file(), &[&TLS12], &[])?;
        ensure!(bridge::connect(&old, edge.address, NAME).await.is_err(), "1.2 was spoken");
        edge.shown(NAME).await?;
        Ok(())
    })
}

/// A ClientHello of the TLS version 1.`minor - 1` (RFC 4346 §7.4.1.2), with ciphers of its time.
fn client_hello(minor: u8) -> Vec<u8> {
    let mut hello = vec![3, minor];
    hello.extend([7; 32]);
    // No session; two ciphers; no compression.
    hello.extend([0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0]);
    let mut handshake = vec![1, 0, 0, hello.len() as u8];
    handshake.extend(hello);
    let mut record = vec![22, 3, 1, 0, handshake.len() as u8];
    record.extend(handshake);
    record
}

/// A client that comes again resumes, in both versions, whichever worker it comes to (RFC 5077,
/// RFC 8446 §2.2); what it sends before the handshake's end is not taken (XEP-0388 §7).
#[test]
fn sessions_of_tls_are_resumed() -> Result {
    block_on(async {
        let edge = Edge::one("workers = 2")?;
        let _gateway = edge.gateway()?;
        for version in [&TLS12, &TLS13] {
            let client = bridge::client(&edge.ca.file(), &[version], H1)?;
            let mut kinds = Vec::new();
            for _ in 0..4 {
                let mut stream = bridge::connect(&client, edge.address, NAME).await?;
                // The tickets of TLS 1.3 come behind the handshake.
                let request = "GET /http-bind HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
                stream.write_all(request.as_bytes()).await?;
                let mut answer = String::new();
                timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
                ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                kinds.push(stream.get_ref().1.handshake_kind());
            }
            ensure!(kinds[0] == Some(HandshakeKind::Full), "{kinds:?}");
            ensure!(
                kinds[1..].iter().all(|kind| *kind == Some(HandshakeKind::Resumed)),
                "{kinds:?}"
            );
        }
        Ok(())
    })
}

/// SEC-18: a connection on which no handshake happens ends, and is counted.
#[test]
fn a_handshake_has_its_time() -> Result {
    block_on(async {
        let edge = Edge::one("handshake_timeout = \"500ms\"\nhead_timeout = \"500ms\"")?;
        let gateway = edge.gateway()?;
        for sent in [&b""[..], &[22, 3, 1]] {
            let mut socket = TcpStream::connect(edge.address).await?;
            socket.write_all(sent).await?;
            timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await??;
        }
        let timeouts = "bosphorus_tls_handshakes_total{outcome=\"timeout\",version=\"none\"}";
        let limit =
            |key| gateway.metric(&format!("bosphorus_limit_hits_total{{limit=\"listen.{key}\"}}"));
        eventually("both counted, and by their key", async || {
            let counts = [gateway.metric(timeouts).ok()?, limit("handshake_timeout").ok()?];
            (counts == [2.0, 2.0]).then_some(())
        })
        .await?;
        // One that shakes hands and then says nothing, over either protocol.
        for alpn in [H1, H2] {
            let mut stream = bridge::connect(&edge.client(alpn)?, edge.address, NAME).await?;
            let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await?;
        }
        eventually("both counted by the key", async || {
            limit("head_timeout").is_ok_and(|hits| hits == 2.0).then_some(())
        })
        .await?;
        ensure!(gateway.total("bosphorus_limit_hits_total")? == 4.0, "and by no other");
        Ok(())
    })
}

const RELOADED: &str = "bosphorus_tls_reloads_total{outcome=\"ok\"}";
const FAILED: &str = "bosphorus_tls_reloads_total{outcome=\"failed\"}";

/// A certificate that is replaced is shown to who comes next; one that cannot be used is not, and
/// the log says why; the others are not touched. The metric tells when the one in use ends.
#[test]
fn replaced_files_are_read_again() -> Result {
    block_on(async {
        let edge = Edge::new(&[&[NAME], &["other.test"]], "")?;
        let gateway = edge.gateway()?;
        let expiry = |index: usize| {
            let name = "bosphorus_tls_certificate_expiry_timestamp_seconds";
            gateway.metric(&format!("{name}{{certificate=\"{index}\"}}"))
        };
        // The first days of 2120 and 2100, in seconds since 1970.
        let (old_end, new_end) = (4_733_510_400.0, 4_102_444_800.0);
        ensure!(expiry(0)? == old_end && expiry(1)? == old_end, "{:?}", expiry(0));
        let other = edge.shown("other.test").await?;

        let new = edge.ca.issue(&[NAME], Validity::Until(2100));
        write(&edge.directory, "0", &new)?;
        eventually("the new certificate", async || {
            (edge.shown(NAME).await.ok()? == leaf(&new)).then_some(())
        })
        .await?;
        ensure!(expiry(0)? == new_end && expiry(1)? == old_end, "{:?}", expiry(0));
        ensure!(gateway.metric(RELOADED)? == 1.0 && gateway.metric(FAILED)? == 0.0, "counted once");

        // A key that is not its own; then no certificate at all; then nothing.
        let another = edge.ca.issue(&[NAME], Validity::Now);
        edge.directory.write("0.key", another.pem()[1])?;
        eventually("the first failure", async || {
            (gateway.metric(FAILED).ok()? == 1.0).then_some(())
        })
        .await?;
        edge.directory.write("0.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n")?;
        eventually("the second failure", async || {
            (gateway.metric(FAILED).ok()? == 2.0).then_some(())
        })
        .await?;
        std::fs::remove_file(edge.directory.join("0.pem"))?;
        eventually("the third failure", async || {
            (gateway.metric(FAILED).ok()? == 3.0).then_some(())
        })
        .await?;
        ensure!(edge.shown(NAME).await? == leaf(&new), "the old one is kept");
        ensure!(expiry(0)? == new_end, "and so is its end");
        let log = gateway.log();
        for reason in [
            "expected the private key of the first certificate",
            "certificates in PEM",
            "No such file",
        ] {
            let told = |line: &str| line.contains("certificate_kept") && line.contains(reason);
            ensure!(log.lines().any(told), "the log does not say {reason:?}");
        }

        write(&edge.directory, "0", &another)?;
        eventually("the next certificate", async || {
            (edge.shown(NAME).await.ok()? == leaf(&another)).then_some(())
        })
        .await?;
        ensure!(edge.shown("other.test").await? == other, "the other one is as it was");

        // SIGHUP: other certificates, and all or nothing.
        let configuration = gateway.directory().join("bosphorus.toml");
        let text = std::fs::read_to_string(&configuration)?;
        write(&edge.directory, "third", &edge.ca.issue(&["third.test"], Validity::Now))?;
        let swap = |to: &str| -> Result {
            std::fs::write(&configuration, text.replace("/1.", to))?;
            gateway.signal("HUP")
        };
        swap("/missing.")?;
        eventually("the refusal", async || {
            gateway.log().contains("config_reload_failed").then_some(())
        })
        .await?;
        ensure!(edge.shown("other.test").await? == other, "a refused reload changes nothing");
        swap("/third.")?;
        eventually("the third certificate", async || edge.shown("third.test").await.ok()).await?;
        ensure!(edge.shown("other.test").await.is_err(), "its place was taken");

        // Without any: that waits for the next start, as the end of the listener does.
        let is_of_tls = |line: &&str| {
            ["tls_addresses", "[[tls", "certificate = ", "key = "]
                .iter()
                .any(|word| line.starts_with(word))
        };
        let lines: Vec<_> = text.lines().filter(|line| !is_of_tls(line)).collect();
        std::fs::write(&configuration, lines.join("\n"))?;
        gateway.signal("HUP")?;
        eventually("the word on what waits", async || {
            let log = gateway.log();
            (log.contains("listen.tls_addresses") && log.contains("tls.certificates")).then_some(())
        })
        .await?;
        ensure!(edge.shown("third.test").await.is_ok(), "the listener has lost its certificate");
        ensure!(expiry(0)? > 0.0, "and its end is not told");
        Ok(())
    })
}

/// Symbolic links are followed: as certbot swaps the link to each file, and as Kubernetes swaps that
/// to a directory.
#[test]
fn swapped_links_are_followed() -> Result {
    block_on(async {
        let mut edge = Edge::one("")?;
        let path = |name: &str| edge.directory.join(name);
        let link = |to: &str, name: &str| -> Result {
            std::os::unix::fs::symlink(to, path("link.new"))?;
            Ok(std::fs::rename(path("link.new"), path(name))?)
        };
        let identities = [1, 2].map(|_| edge.ca.issue(&[NAME], Validity::Now));
        for (version, identity) in identities.iter().enumerate() {
            std::fs::create_dir(path(&format!("v{version}")))?;
            write(&edge.directory, &format!("v{version}/tls"), identity)?;
        }
        link("v0", "data")?;
        link("data/tls.pem", "live.pem")?;
        link("data/tls.key", "live.key")?;
        edge.toml = edge.toml.replace("/0.", "/live.");
        let _gateway = edge.gateway()?;
        ensure!(edge.shown(NAME).await? == leaf(&identities[0]), "the first version");
        link("v1", "data")?;
        eventually("the second version", async || {
            (edge.shown(NAME).await.ok()? == leaf(&identities[1])).then_some(())
        })
        .await?;
        link("v0/tls.pem", "live.pem")?;
        link("v0/tls.key", "live.key")?;
        eventually("the first version again", async || {
            (edge.shown(NAME).await.ok()? == leaf(&identities[0])).then_some(())
        })
        .await
    })
}

/// The three ways over TLS, by what a client connects to.
async fn endpoints(edge: &Edge) -> Result<Vec<(&'static str, Endpoint)>> {
    let over_h1 = bridge::tls(&edge.client(H1)?, edge.address, NAME).await?;
    let over_h2 = Multiplexer::new(edge.http2().await?).await?.address;
    Ok(vec![
        ("wss", Endpoint { url: format!("ws://{over_h1}/ws"), transport: Transport::Ws }),
        (
            "https, HTTP/1.1",
            Endpoint { url: format!("http://{over_h1}/http-bind"), transport: Transport::Bosh },
        ),
        (
            "https, HTTP/2",
            Endpoint { url: format!("http://{over_h2}/http-bind"), transport: Transport::Bosh },
        ),
    ])
}

/// Logins, messages from each way to each, and clean ends, with a real server behind.
#[test]
fn clients_log_in_over_tls() -> Result {
    if let Some(why) = Kind::Prosody.missing() {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    block_on(async {
        let server = Server::prosody()?;
        let edge = Edge::one("")?;
        let _gateway = Gateway::start(&format!("{}{}", edge.toml, domain_toml(&server)))?;
        let mut clients = Vec::new();
        for (name, endpoint) in endpoints(&edge).await? {
            let account = server.account();
            let client = Client::online(&endpoint, &account).await.context(name)?;
            clients.push((name, account.jid(), client));
        }
        for from in 0..clients.len() {
            for to in 0..clients.len() {
                let text = format!("from {} to {}", clients[from].0, clients[to].0);
                let jid = clients[to].1.clone();
                clients[from].2.message(&jid, &text).await?;
                let got = clients[to].2.body().await.with_context(|| text.clone())?;
                ensure!(got == text, "{got:?} instead of {text:?}");
            }
        }
        for (name, _, client) in clients {
            client.quit().await.context(name)?;
        }
        Ok(())
    })
}

/// A gateway with TLS in front of a server played by hand; the requests go over HTTP/2.
async fn multiplexed(edge: &Edge, bosh: &str) -> Result<(Scene, Multiplexer)> {
    let peer = Peer::new().await?;
    let toml = format!("{}[bosh]\n{bosh}\n{}", edge.toml, peer.toml());
    let gateway = Gateway::start(&toml)?;
    let bridge = Multiplexer::new(edge.http2().await?).await?;
    let url = Url::parse(&format!("http://{}/http-bind", bridge.address))?;
    Ok((Scene { gateway, peer, url }, bridge))
}

/// Requests that are waited for now.
const OPEN: &str = "bosphorus_bosh_requests_open";

/// BOSH-45, BOSH-48, BOSH-51: a held request whose stream is reset is one whose reader has gone,
/// at once; what comes from the server meanwhile is in the answer to the same `rid` on another
/// stream, and that answer can be asked for again, byte for byte.
#[test]
fn a_reset_stream_loses_nothing() -> Result {
    block_on(async {
        let edge = Edge::one("")?;
        let (scene, _bridge) = multiplexed(&edge, "").await?;
        let (mut session, mut link) = scene.bound().await?;
        let open = |count: f64| {
            let gateway = &scene.gateway;
            eventually("the number of open requests", async move || {
                (gateway.metric(OPEN).ok()? == count).then_some(())
            })
        };
        let mut held = session.next("", "").await?;
        open(1.0).await?;
        held.cut(Cut::Reset)?;
        open(0.0).await?;
        link.write(&message("while nobody listens")).await?;
        let mut again = session.repeat(&held).await?;
        let answer = again.answer().await?;
        ensure!(answer.text()?.contains("while nobody listens"), "{}", answer.text()?);
        // The answer was on its way and did not arrive, say.
        let mut repeated = session.repeat(&held).await?.answer().await?;
        ensure!(repeated.body == answer.body, "not the same bytes: {}", repeated.text()?);
        // And the same with an answer that was never taken off its stream.
        let mut next = session.next("", "").await?;
        open(1.0).await?;
        link.write(&message("to a stream that is reset")).await?;
        open(0.0).await?;
        next.cut(Cut::Reset)?;
        repeated = session.repeat(&next).await?.answer().await?;
        ensure!(repeated.text()?.contains("to a stream that is reset"), "{}", repeated.text()?);
        Ok(())
    })
}

/// The same when the whole connection is lost, with requests of several sessions on it: each is
/// gone at once, nothing of it is left, and each session goes on over the next connection.
#[test]
fn a_lost_connection_loses_nothing() -> Result {
    block_on(async {
        let edge = Edge::one("")?;
        let (scene, bridge) = multiplexed(&edge, "").await?;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(scene.bound().await?);
        }
        let open = |count: f64| {
            let gateway = &scene.gateway;
            eventually("the number of open requests", async move || {
                (gateway.metric(OPEN).ok()? == count).then_some(())
            })
        };
        for round in 0..3 {
            let mut held = Vec::new();
            for (session, _) in &mut sessions {
                held.push(session.next("", "").await?);
            }
            open(3.0).await?;
            bridge.replace(edge.http2().await?)?;
            open(0.0).await?;
            for ((session, link), request) in sessions.iter_mut().zip(&held) {
                let text = format!("in round {round}");
                link.write(&message(&text)).await?;
                session.fresh();
                let answer = session.repeat(request).await?.answer().await?;
                ensure!(answer.text()?.contains(&text), "{}", answer.text()?);
            }
        }
        let connections = "bosphorus_http_connections{state=\"active\"}";
        eventually("the lost connections to be gone", async || {
            (scene.gateway.metric(connections).ok()? <= 1.0).then_some(())
        })
        .await
    })
}

/// Requests at once and the size of heads are bounded; a body that is too large is refused without
/// the end of the connection (RFC 9113 §5.1.2, §6.5.2; BOSH-06).
#[test]
fn http2_has_limits() -> Result {
    block_on(async {
        let edge = Edge::one("http2_streams = 3")?;
        let _gateway = edge.gateway()?;
        let connection = edge.http2().await?;
        let mut requests = connection.requests.clone().ready().await?;
        let url = format!("https://{NAME}/http-bind");
        let get = || http::Request::get(&url).version(http::Version::HTTP_2);
        let (response, _) = requests.send_request(get().body(())?, true)?;
        ensure!(response.await?.status() == 200, "the page");
        ensure!(requests.current_max_send_streams() == 3, "streams");

        let large = get().header("x", "y".repeat(64 * 1024)).body(())?;
        let (response, _) = requests.ready().await?.send_request(large, true)?;
        let refused = response.await.map(|response| response.status().as_u16());
        ensure!(!matches!(refused, Ok(200)), "a large head: {refused:?}");

        let mut requests = connection.requests.clone().ready().await?;
        let post = http::Request::post(&url).header("content-length", 10_000_000).body(())?;
        let (response, mut body) = requests.send_request(post, false)?;
        body.send_data(Bytes::from_static(&[b' '; 10_000]), false)?;
        ensure!(response.await?.status() == 413, "a large body");
        let (response, _) = requests.ready().await?.send_request(get().body(())?, true)?;
        ensure!(response.await?.status() == 200, "the connection is as it was");
        Ok(())
    })
}

/// What comes of bodies over one connection is bounded for all its requests together, not for each
/// alone: the one too many may come again later (SEC-16), the others go on.
#[test]
fn bodies_on_one_http2_connection_are_bounded() -> Result {
    block_on(async {
        let limits = "[limits]\nelement_bytes = 10000\nbody_bytes = 15000";
        let edge = Edge::one(limits)?;
        let gateway = edge.gateway()?;
        let connection = edge.http2().await?;
        let post = || http::Request::post(format!("https://{NAME}/http-bind")).body(());
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut requests = connection.requests.clone().ready().await?;
            let (response, mut body) = requests.send_request(post()?, false)?;
            body.send_data(Bytes::from_static(&[b' '; 14_000]), false)?;
            open.push((response, body));
        }
        let mut requests = connection.requests.clone().ready().await?;
        let (response, mut body) = requests.send_request(post()?, false)?;
        body.send_data(Bytes::from_static(&[b' '; 14_000]), false)?;
        let refused = timeout(PATIENCE, response).await.context("it waits")??;
        ensure!(refused.status() == 503, "{refused:?}");
        let headers = refused.headers();
        let both = ["retry-after", "access-control-allow-origin"];
        ensure!(both.iter().all(|name| headers.contains_key(*name)), "{refused:?}");
        let hits = "bosphorus_limit_hits_total{limit=\"body_bytes\"}";
        ensure!(gateway.metric(hits)? == 1.0, "{}", gateway.metric(hits)?);
        for (response, mut body) in open {
            body.send_data(Bytes::from_static(b"<body/>"), true)?;
            ensure!(response.await?.status() == 200, "one that was not too many");
        }
        // There is room again.
        let (response, mut body) = requests.ready().await?.send_request(post()?, false)?;
        body.send_data(Bytes::from_static(&[b' '; 14_000]), false)?;
        body.send_data(Bytes::from_static(b"<body/>"), true)?;
        ensure!(response.await?.status() == 200, "a later one");
        Ok(())
    })
}

/// A body that is whole is none of those that are coming, though its request may be held for a minute.
#[test]
fn bodies_of_held_requests_are_not_on_their_way() -> Result {
    const REQUESTS: usize = 12;
    block_on(async {
        // The kernel takes the connections, and nobody speaks on them.
        let server = std::net::TcpListener::bind("127.0.0.1:0")?;
        let edge = Edge::one("[limits]\nelement_bytes = 10000\nbody_bytes = 15000")?;
        let gateway = Gateway::start(&format!(
            "{}[bosh]\nfirst_response_timeout = \"60s\"\n\
             [domains.\"x.test\"]\nservers = [\"xmpp://{}\"]\n",
            edge.toml,
            server.local_addr()?
        ))?;
        let connection = edge.http2().await?;
        let text = creation(first_rid(), &format!("to='x.test'{:14000}{CREATION}", ""));
        let mut held = Vec::new();
        for _ in 0..REQUESTS {
            let request = http::Request::post(format!("https://{NAME}/http-bind")).body(())?;
            let mut requests = connection.requests.clone().ready().await?;
            let (response, mut body) = requests.send_request(request, false)?;
            body.send_data(Bytes::from(text.clone()), true)?;
            held.push(response);
        }
        eventually("a session for each", async || {
            let sessions = gateway.metric("bosphorus_sessions{transport=\"bosh\"}").ok()?;
            (sessions == REQUESTS as f64).then_some(())
        })
        .await?;
        ensure!(gateway.total("bosphorus_limit_hits_total")? == 0.0, "a limit was hit");
        Ok(())
    })
}

/// SEC-17: answers that wait for windows which their client does not open are bounded for a session,
/// and are on its account. What was not given comes when they are taken, and nothing is lost.
#[test]
fn answers_that_nobody_takes_are_bounded() -> Result {
    block_on(async {
        const MESSAGES: usize = 20;
        let edge = Edge::one("[limits]\nelement_bytes = 10000\npending_bytes = 20000")?;
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&format!("{}{}", edge.toml, peer.toml()))?;
        let url = Url::parse(&gateway.bosh_url())?;
        let scene = Scene { gateway, peer, url };
        let (mut session, mut link) = scene.bound().await?;
        let connection = edge.http2().await?;
        let filler = "x".repeat(15_000);
        for n in 0..MESSAGES {
            link.write(&message(&format!("{n} {filler}"))).await?;
        }
        let (mut given, mut bodies, mut last) = (0, Vec::new(), None);
        for _ in 0..MESSAGES {
            session.rid += 1;
            let body = session.text(session.rid, "", "");
            let post = http::Request::post(format!("https://{NAME}/http-bind")).body(())?;
            let mut requests = connection.requests.clone().ready().await?;
            let (answer, mut stream) = requests.send_request(post, false)?;
            stream.send_data(body.into(), true)?;
            // Each is answered when the one behind it has come, at the latest.
            let Some(before) = last.replace(answer) else { continue };
            let answer = timeout(PATIENCE, before).await.context("it is not answered")??;
            let length = answer.headers().get("content-length").context("a length")?;
            given += length.to_str()?.parse::<usize>()?;
            bodies.push(answer.into_body());
        }
        let last = last.context("the last")?;
        // Four of the largest, one that was begun before, and what the client's window takes.
        ensure!((100_000..170_000).contains(&given), "{given} bytes were given");
        let held = scene.gateway.total("bosphorus_sessions_held_bytes")?;
        ensure!((80_000.0..250_000.0).contains(&held), "{held} bytes are held");

        let mut text = String::new();
        let take = async |body: &mut h2::RecvStream, text: &mut String| {
            while let Some(piece) = body.data().await {
                let piece = piece?;
                body.flow_control().release_capacity(piece.len())?;
                text.push_str(std::str::from_utf8(&piece)?);
            }
            anyhow::Ok(())
        };
        for mut body in bodies {
            timeout(PATIENCE, take(&mut body, &mut text)).await.context("it does not come")??;
        }
        let mut last = timeout(PATIENCE, last).await.context("the held one")??.into_body();
        take(&mut last, &mut text).await?;
        while text.matches(&filler).count() < MESSAGES {
            let body = session.ask("", "").await?;
            ensure!(!body.messages().is_empty(), "nothing came");
            text += &body.text;
        }
        let places: Vec<_> =
            (0..MESSAGES).map(|n| text.find(&format!("<body>{n} {filler}"))).collect();
        ensure!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
        Ok(())
    })
}

/// SEC-17, SEC-18: a connection over which nothing useful comes ends: one that says nothing more,
/// one that floods with frames that are no requests, and one that reads nothing.
#[test]
fn useless_http2_connections_are_given_up() -> Result {
    block_on(async {
        let edge = Edge::one("keep_alive = \"500ms\"\n[limits]\nstall_timeout = \"1s\"")?;
        let gateway = edge.gateway()?;
        let connection = edge.http2().await?;
        let mut requests = connection.requests.clone().ready().await?;
        let get = || http::Request::get(format!("https://{NAME}/http-bind")).body(());
        let (response, _) = requests.send_request(get()?, true)?;
        ensure!(response.await?.status() == 200, "the page");
        drop(requests);
        connection.ended().await.context("silent")?;
        ensure!(gateway.total("bosphorus_limit_hits_total")? == 0.0, "silence is no limit");

        // An answer for which there never is room.
        let stream = bridge::connect(&edge.client(H2)?, edge.address, NAME).await?;
        let mut narrow = h2::client::Builder::new();
        let (mut requests, connection) =
            narrow.initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await?;
        let driver = tokio::spawn(connection);
        let (response, _) = requests.send_request(get()?, true)?;
        let mut body = response.await?.into_body();
        ensure!(timeout(PATIENCE, body.data()).await?.is_none_or(|data| data.is_err()), "room");
        ensure!(gateway.metric("bosphorus_limit_hits_total{limit=\"stall_timeout\"}")? == 1.0);
        driver.abort();

        // RFC 9113 §6.7: PING; §6.5: SETTINGS; §6.9: WINDOW_UPDATE of the connection.
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[1; 8]].concat();
        let settings = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
        let update = vec![0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for (what, frame, reads) in [
            ("PING", &ping, true),
            ("SETTINGS", &settings, true),
            ("WINDOW_UPDATE", &update, true),
            ("PING, and no pong read", &ping, false),
        ] {
            let stream = bridge::connect(&edge.client(H2)?, edge.address, NAME).await?;
            let (mut reader, mut writer) = tokio::io::split(stream);
            writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
            writer.write_all(&settings).await?;
            let flood = frame.repeat(1000);
            let read = async {
                let mut buffer = [0; 4096];
                while reads && reader.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
                if !reads {
                    std::future::pending::<()>().await;
                }
            };
            let write = async { while writer.write_all(&flood).await.is_ok() {} };
            let both = async {
                tokio::select! { () = read => {} () = write => {} }
            };
            timeout(PATIENCE, both).await.with_context(|| format!("{what}: not given up"))?;
        }
        Ok(())
    })
}

/// The configuration is told where its certificates are wrong, by key and line.
#[test]
fn wrong_certificates_are_told() -> Result {
    let ca = Ca::new();
    let directory = Directory::new("certificates")?;
    write(&directory, "good", &ca.issue(&[NAME], Validity::Now))?;
    write(&directory, "other", &ca.issue(&[NAME], Validity::Now))?;
    write(&directory, "past", &ca.issue(&[NAME], Validity::Past))?;
    let domain = "[domains.\"x.test\"]\nservers = [\"127.0.0.1\"]\n";
    let check = |text: &str| -> Result<(bool, String)> {
        let file = directory.write("bosphorus.toml", &format!("{text}\n{domain}"))?;
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_bosphorus"))
            .args(["config", "check"])
            .arg(&file)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        let prefix = format!("{}:", file.display());
        Ok((output.status.success(), String::from_utf8(text)?.replace(&prefix, "")))
    };
    let path = |name: &str| directory.join(name).display().to_string();

    let (ok, text) = check("[listen]\ntls_addresses = [\"127.0.0.1:5281\"]")?;
    ensure!(
        !ok && text.starts_with("2: listen.tls_addresses: expected tls.certificates"),
        "{text}"
    );
    let (ok, text) = check(
        "[listen]\naddresses = []\ntls_addresses = [\"127.0.0.1:5281\"]\n[tls]\n\
         certificates = [{ certificate = \"good.pem\", key = \"good.key\" }]",
    )?;
    ensure!(ok && !text.contains("warning"), "{text}");
    let (ok, text) = check(
        "[listen]\ntls_addresses = [\"127.0.0.1:5281\", \"127.0.0.1:5280\"]\n[tls]\n\
         min_version = \"1.1\"\n\
         certificates = [\n  { certificate = \"good.pem\", key = \"other.key\" },\n  \
         { certificate = \"none.pem\", key = \"good.key\" },\n  \
         { certificate = \"good.key\", key = \"good.key\" },\n  \
         { certificate = \"good.pem\", key = \"good.pem\" },\n  { certificate = \"good.pem\" },\n]",
    )?;
    let expected = [
        "2: listen.tls_addresses: 127.0.0.1:5280 is in listen.addresses too".to_owned(),
        "4: tls.min_version: expected \"1.2\" or \"1.3\", found \"1.1\"".to_owned(),
        format!(
            "6: tls.certificates.key: expected the private key of the first certificate in {}, \
             found another one in {}",
            path("good.pem"),
            path("other.key")
        ),
        format!(
            "7: tls.certificates.certificate: expected a readable file, found {}: No such file or \
             directory (os error 2)",
            path("none.pem")
        ),
        format!(
            "8: tls.certificates.certificate: expected certificates in PEM \
             (-----BEGIN CERTIFICATE-----), found {}",
            path("good.key")
        ),
        format!(
            "9: tls.certificates.key: expected a private key in PEM, not encrypted, found {}",
            path("good.pem")
        ),
        "10: tls.certificates: expected a file as its key, found none".to_owned(),
    ];
    ensure!(!ok && text.lines().eq(expected.iter().map(String::as_str)), "{text}");
    let (ok, text) = check(
        "[listen]\ntls_addresses = [\"127.0.0.1:5281\"]\n[[tls.certificates]]\n\
         certificate = \"past.pem\"\nkey = \"past.key\"",
    )?;
    ensure!(ok && text.contains("4: tls.certificates.certificate: the certificate in "), "{text}");
    ensure!(text.contains(" expired on Jan  1 "), "{text}");
    let (ok, text) =
        check("[tls]\ncertificates = [{ certificate = \"good.pem\", key = \"good.key\" }]")?;
    ensure!(
        ok && text.contains("warning: ") && text.contains("listen.tls_addresses is empty"),
        "{text}"
    );
    let (ok, text) = check("[tls]\ncertificates = [{ certificat = \"good.pem\" }]")?;
    ensure!(!ok && text.contains("2: tls.certificates.certificat: unknown key"), "{text}");
    Ok(())
}

/// Sessions of each of the three ways in the test below.
const SESSIONS: usize = 20;
/// How often the certificate is swapped meanwhile.
const SWAPS: usize = 3;

/// A certificate that is swapped while sessions exchange messages, and while new connections are
/// made without a pause, ends no session, loses no message and fails no handshake.
#[test]
fn a_swap_under_load_loses_no_session() -> Result {
    if let Some(why) = Kind::Prosody.missing() {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    block_on(async {
        let server = Server::prosody()?;
        let edge = Edge::one("")?;
        let gateway = Gateway::start(&format!("{}{}", edge.toml, domain_toml(&server)))?;
        let mut clients = Vec::new();
        for (name, endpoint) in endpoints(&edge).await? {
            for _ in 0..SESSIONS {
                let account = server.account();
                let client = Client::online(&endpoint, &account).await.context(name)?;
                clients.push((name, account.jid(), client));
            }
        }
        let is_over = Cell::new(false);
        let talks = clients.iter_mut().map(async |(name, jid, client)| {
            let mut count = 0;
            while !is_over.get() {
                count += 1;
                let text = count.to_string();
                client.message(jid, &text).await.context(*name)?;
                let got = client.body().await.context(*name)?;
                ensure!(got == text, "{name}: {got:?} instead of {text:?}");
            }
            Ok(count)
        });
        let handshakes = async {
            let mut count = 0;
            while !is_over.get() {
                edge.shown(NAME).await.context("a handshake meanwhile")?;
                count += 1;
            }
            anyhow::Ok(count)
        };
        let swaps = async {
            for _ in 0..SWAPS {
                let new = edge.ca.issue(&[NAME], Validity::Now);
                write(&edge.directory, "0", &new)?;
                eventually("the new certificate", async || {
                    (edge.shown(NAME).await.ok()? == leaf(&new)).then_some(())
                })
                .await?;
            }
            is_over.set(true);
            anyhow::Ok(())
        };
        let (messages, handshakes, ()) = try_join3(try_join_all(talks), handshakes, swaps).await?;
        let messages: u64 = messages.into_iter().sum();
        let open = gateway.metric("bosphorus_sessions{transport=\"websocket\"}")?
            + gateway.metric("bosphorus_sessions{transport=\"bosh\"}")?;
        ensure!(open == clients.len() as f64, "{open} of {} sessions are left", clients.len());
        ensure!(gateway.metric(RELOADED)? == SWAPS as f64, "swaps");
        let failed = "bosphorus_tls_handshakes_total{outcome=\"failed\",version=\"none\"}";
        ensure!(gateway.metric(failed)? == 0.0, "failed handshakes");
        println!(
            "{SWAPS} swaps: {} sessions and {messages} messages, none lost; {handshakes} handshakes, \
             none failed",
            clients.len()
        );
        for (name, _, client) in clients {
            client.quit().await.context(name)?;
        }
        Ok(())
    })
}

/// `h2load`, by people other than us: thousands of BOSH requests over HTTP/2 and over HTTP/1.1.
#[test]
fn h2load_finds_nothing_amiss() -> Result {
    let Some(program) = find("h2load") else {
        let why = "no `h2load` on this machine (Debian package `nghttp2-client`)";
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    };
    let edge = Edge::one("")?;
    let _gateway = edge.gateway()?;
    // A creation for a domain that is not served is answered at once.
    let body = edge.directory.write(
        "body.xml",
        "<body xmlns='http://jabber.org/protocol/httpbind' rid='1' to='elsewhere.test' wait='60' \
         hold='1' ver='1.11'/>",
    )?;
    for (flag, protocol) in [("--h2", "h2"), ("--h1", "http/1.1")] {
        let output = std::process::Command::new(&program)
            .args(["-n", "3000", "-c", "10", "-m", "20"])
            .args((flag == "--h1").then_some(flag))
            .arg("-d")
            .arg(&body)
            .arg(format!("https://{}/http-bind", edge.address))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains(&format!("Application protocol: {protocol}")), "{text}");
        let all = "3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored";
        ensure!(text.contains(all), "{text}");
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or("");
        println!("{protocol}: {}; {}", line("finished in"), line("status codes"));
    }
    Ok(())
}

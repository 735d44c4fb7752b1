//! What connections cost and how far away clients are, against what is seen outside: the handshakes
//! that a TLS client makes, the kernel's own words (`ss`), and the client's clock.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use common::bosh::CREATION;
use common::bridge::{self, Http2, Multiplexer};
use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::peer::Peer;
use common::scene::{self, AUTH, BIND, BINDING, BOUND, DOMAIN, FEATURES, HEADER, SUCCESS, Scene};
use common::server::{Kind, Server};
use common::socket::{Received, Socket};
use common::{Result, block_on, eventually, in_ci};
use pki::{Ca, Validity};
use rustls::{ClientConfig, HandshakeKind};
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

const NAME: &str = "gateway.test";

/// A way to the gateway, and the labels of its figures.
#[derive(Clone, Copy)]
struct Way {
    transport: Transport,
    http2: bool,
}

const WAYS: [Way; 3] = [
    Way { transport: Transport::Ws, http2: false },
    Way { transport: Transport::Bosh, http2: false },
    Way { transport: Transport::Bosh, http2: true },
];

impl Way {
    fn labels(self) -> [String; 2] {
        let transport = if self.transport == Transport::Ws { "websocket" } else { "bosh" };
        let http = if self.http2 { "2" } else { "1.1" };
        [format!("http=\"{http}\""), format!("transport=\"{transport}\"")]
    }

    fn endpoint(self, front: SocketAddr) -> Endpoint {
        let url = match self.transport {
            Transport::Bosh => format!("http://{front}/http-bind"),
            _ => format!("ws://{front}/ws"),
        };
        Endpoint { url, transport: self.transport }
    }
}

/// A gateway with TLS, before the demo's server.
struct Stage {
    server: Arc<Server>,
    gateway: Gateway,
    ca: Ca,
}

impl Stage {
    fn new() -> Result<Self> {
        let server = Server::shared(Kind::Demo)?;
        let ca = Ca::new();
        let identity = ca.issue(&[NAME], Validity::Now);
        let gateway = Gateway::start_tls(&domain_toml(&server), identity.pem())?;
        Ok(Self { server, gateway, ca })
    }

    /// A TLS client for one way.
    fn config(&self, way: Way) -> Result<Arc<ClientConfig>> {
        let alpn: &[u8] = if way.http2 { b"h2" } else { b"http/1.1" };
        bridge::client(&self.ca.file(), rustls::ALL_VERSIONS, &[alpn])
    }
}

/// Handshakes that a client has made: full, and resumed.
#[derive(Default)]
struct Handshakes([AtomicU64; 2]);

impl Handshakes {
    fn saw(&self, stream: &TlsStream<TcpStream>) {
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        self.0[usize::from(resumed)].fetch_add(1, Ordering::SeqCst);
    }

    fn counts(&self) -> [u64; 2] {
        [0, 1].map(|at: usize| self.0[at].load(Ordering::SeqCst))
    }
}

/// Carries every connection over one of TLS, and looks at its handshake.
async fn observed(
    config: &Arc<ClientConfig>,
    to: SocketAddr,
    seen: &Arc<Handshakes>,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (config, seen) = (Arc::clone(config), Arc::clone(seen));
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let (config, seen) = (Arc::clone(&config), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut outer = bridge::connect(&config, to, NAME).await?;
                seen.saw(&outer);
                tokio::io::copy_bidirectional(&mut inner, &mut outer).await?;
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

/// TLS handshakes by transport are those that the client has made, full and resumed, and none is
/// missing among all.
#[test]
fn handshakes_are_those_of_the_client() -> Result {
    block_on(async {
        let stage = Stage::new()?;
        let account = stage.server.account();
        let mut all = 0;
        for way in WAYS {
            let (config, seen) = (stage.config(way)?, Arc::new(Handshakes::default()));
            for round in 0..2 {
                let before = seen.counts();
                let multiplexer;
                let front = if way.http2 {
                    let stream = bridge::connect(&config, stage.gateway.tls(), NAME).await?;
                    seen.saw(&stream);
                    multiplexer = Multiplexer::new(Http2::over(stream).await?).await?;
                    multiplexer.address
                } else {
                    observed(&config, stage.gateway.tls(), &seen).await?
                };
                let mut client = Client::online(&way.endpoint(front), &account).await?;
                let jid = client.jid.clone();
                client.message(&jid, "hello").await?;
                ensure!(client.body().await? == "hello");
                client.quit().await?;
                let [full, resumed] = seen.counts();
                if round == 0 {
                    ensure!(full > 0, "the first handshake is a full one");
                } else {
                    // What the client has read of the connections before has its tickets.
                    ensure!(full == before[0] && resumed > before[1], "{full}, {resumed}");
                }
            }
            let [http, transport] = way.labels();
            let family = "bosphorus_client_tls_handshakes_total";
            let mut last = [0; 2];
            let same = eventually("the same handshakes", async || {
                for (count, resumed) in last.iter_mut().zip(["no", "yes"]) {
                    let sample = format!("{family}{{{http},resumed=\"{resumed}\",{transport}}}");
                    *count = stage.gateway.metric(&sample).ok()? as u64;
                }
                (last == seen.counts()).then_some(())
            });
            let same = same.await;
            ensure!(same.is_ok(), "{transport}, {http}: {last:?}, not {:?}", seen.counts());
            all += seen.counts().iter().sum::<u64>();
        }
        let text = stage.gateway.metrics()?;
        let sum = |family: &str| -> f64 {
            let samples = text.lines().filter_map(|line| line.strip_prefix(family));
            samples.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        ensure!(sum("bosphorus_client_tls_handshakes_total{") == all as f64);
        ensure!(sum("bosphorus_tls_handshakes_total{outcome=\"ok\"") == all as f64);
        Ok(())
    })
}

/// Connections that are carried to the gateway, to be interfered with.
#[derive(Clone, Default)]
struct Carried(Arc<Mutex<Vec<Connection>>>);

/// The socket at the gateway, and who carries.
type Connection = (socket2::Socket, JoinHandle<()>);

impl Carried {
    async fn to(&self, to: SocketAddr) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let connections = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut gateway = TcpStream::connect(to).await?;
                gateway.set_nodelay(true)?;
                client.set_nodelay(true)?;
                let socket = SockRef::from(&gateway).try_clone()?;
                let task = tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                });
                connections.lock().unwrap().push((socket, task));
            }
            anyhow::Ok(())
        });
        Ok(address)
    }

    /// What the kernel says of the gateway's ends, once it can learn no more of them: all that was
    /// sent has arrived. `None` while that is not so. Connections that have ended by themselves are
    /// forgotten; the second is their number.
    fn known(&self, gateway: SocketAddr, ended: &mut usize) -> Option<Vec<Known>> {
        let mut connections = self.0.lock().unwrap();
        let before = connections.len();
        connections.retain(|(_, task)| !task.is_finished());
        *ended += before - connections.len();
        let ports = connections.iter().map(|(socket, _)| port(socket));
        ports.map(|port| Known::of(gateway.port(), port.ok()?).ok()?).collect()
    }

    /// Has the network swallow all that the gateway sends, or no longer.
    fn swallow(&self, all: bool) -> Result {
        for (socket, _) in self.0.lock().unwrap().iter() {
            // BPF_RET: of every packet nothing is kept.
            let drop_all = [SockFilter::new(0x06, 0, 0, 0)];
            if all { socket.attach_filter(&drop_all)? } else { socket.detach_filter()? }
        }
        Ok(())
    }

    /// Ends all of them by a reset, after which the gateway's kernel measures nothing.
    fn reset(&self) -> Result<usize> {
        let connections = std::mem::take(&mut *self.0.lock().unwrap());
        for (socket, task) in &connections {
            socket.set_linger(Some(Duration::ZERO))?;
            task.abort();
        }
        Ok(connections.len())
    }
}

/// What `ss` tells of one end.
#[derive(Clone, Copy, Debug)]
struct Known {
    rtt: f64,
    retransmits: u32,
}

impl Known {
    /// `None` while something is on its way.
    fn of(from: u16, to: u16) -> Result<Option<Self>> {
        let said = said(from, to)?;
        let field = |name: &str| said.split_whitespace().find_map(|word| word.strip_prefix(name));
        let queued = said.split_whitespace().nth(2).context("no such connection")?;
        if queued != "0" || field("unacked:").is_some() || field("notsent:").is_some() {
            return Ok(None);
        }
        let rtt = field("rtt:").and_then(|rtt| rtt.split('/').next()).context("no rtt")?;
        Ok(Some(Self { rtt: rtt.parse::<f64>()? / 1e3, retransmits: retransmits(&said)? }))
    }
}

/// The line about the end of the gateway.
fn said(from: u16, to: u16) -> Result<String> {
    let filter = format!("sport = :{from} and dport = :{to}");
    let said = Command::new("ss").args(["-tinHO", &filter]).output()?;
    Ok(String::from_utf8(said.stdout)?)
}

/// The number of segments that were sent again.
fn retransmits(said: &str) -> Result<u32> {
    let field = said.split_whitespace().find_map(|word| word.strip_prefix("retrans:"));
    Ok(field.and_then(|both| both.split_once('/')).map_or(Ok(0), |(_, total)| total.parse())?)
}

fn port(socket: &socket2::Socket) -> Result<u16> {
    Ok(socket.local_addr()?.as_socket().context("an address of TCP")?.port())
}

/// The round-trip times of connections that ended are what the kernel said of them, to the
/// microsecond, over each way, and so is what it has sent again. Of connections without a session
/// there is nothing.
#[cfg(target_os = "linux")]
#[test]
fn the_way_is_as_the_kernel_knows_it() -> Result {
    if Command::new("ss").arg("--version").output().is_err() {
        ensure!(!in_ci(), "there is no ss(8)");
        eprintln!("SKIPPED: there is no ss(8)");
        return Ok(());
    }
    block_on(async {
        let stage = Stage::new()?;
        let account = stage.server.account();
        for way in WAYS {
            let carried = Carried::default();
            let to = if way.http2 { stage.gateway.tls() } else { stage.gateway.listen() };
            let front = carried.to(to).await?;
            let multiplexer;
            let front = if way.http2 {
                let connection = Http2::connect(&stage.config(way)?, front, NAME).await?;
                multiplexer = Multiplexer::new(connection).await?;
                multiplexer.address
            } else {
                front
            };
            let mut client = Client::online(&way.endpoint(front), &account).await?;
            let jid = client.jid.clone();
            for _ in 0..20 {
                client.message(&jid, "hello").await?;
                ensure!(client.body().await? == "hello");
            }
            if way.transport == Transport::Ws {
                carried.swallow(true)?;
                client.message(&jid, "again").await?;
                let port = port(&carried.0.lock().unwrap().first().context("no connection")?.0)?;
                eventually("a segment that is sent again", async || {
                    (retransmits(&said(to.port(), port).ok()?).ok()? > 0).then_some(())
                })
                .await?;
                carried.swallow(false)?;
                ensure!(client.body().await? == "again");
            }
            let [http, transport] = way.labels();
            let labels = format!("{{{http},{transport}}}");
            let readings = || -> Result<[f64; 2]> {
                let value = |part: &str| {
                    stage.gateway.metric(&format!("bosphorus_client_rtt_seconds_{part}{labels}"))
                };
                Ok([value("count")?, value("sum")?])
            };
            let mut ended = 0;
            let (known, before) = eventually("acknowledgements of all", async || {
                let known = carried.known(to, &mut ended)?;
                let [count, sum] = readings().ok()?;
                (count == ended as f64).then_some((known, sum))
            })
            .await?;
            let connections = carried.reset()?;
            ensure!(connections > 0 && known.len() == connections, "one has come since");
            let all = (ended + connections) as f64;
            let sum = eventually("a reading of each connection", async || {
                readings().ok().filter(|[count, _]| *count == all)
            })
            .await?[1]
                - before;
            let expected: f64 = known.iter().map(|known| known.rtt).sum();
            ensure!(
                (sum - expected).abs() < 1.5e-6 * connections as f64,
                "{labels}: {sum} s, not {expected} s: {known:?}"
            );
            let again =
                stage.gateway.metric(&format!("bosphorus_client_retransmits_total{labels}"))?;
            let expected: u32 = known.iter().map(|known| known.retransmits).sum();
            // Those that ended before may have added some.
            let expected = f64::from(expected);
            let is_it = if ended == 0 { again == expected } else { again >= expected };
            ensure!(is_it, "{labels}: {again} again, not {expected}");
            if way.transport == Transport::Ws {
                ensure!(expected > 0.0, "nothing was sent again");
            }
        }
        // One without a session.
        drop(TcpStream::connect(stage.gateway.listen()).await?);
        let none = "bosphorus_client_connections_total{http=\"1.1\",transport=\"none\"}";
        eventually("its end", async || (stage.gateway.metric(none).ok()? > 0.0).then_some(()))
            .await?;
        let text = stage.gateway.metrics()?;
        let mut of_ways = text.lines().filter(|line| line.contains("_client_rtt_seconds_count"));
        ensure!(
            of_ways.all(|line| !line.contains("none")),
            "one of a connection without a session"
        );
        Ok(())
    })
}

fn first(gateway: &Gateway, transport: &str) -> Result<[f64; 2]> {
    let value = |part: &str| {
        gateway
            .metric(&format!("bosphorus_first_stanza_seconds_{part}{{transport=\"{transport}\"}}"))
    };
    Ok([value("count")?, value("sum")?])
}

/// The first stanza is the one behind the binding, and there when the client has it.
#[test]
fn the_first_stanza_is_timed_over_a_websocket() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let begun = now();
        let mut socket = Socket::connect(&gateway.ws_url()).await?;
        let connected = now();
        let open = format!(
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='{DOMAIN}' version='1.0'/>"
        );
        socket.send_text(&open).await?;
        let mut link = peer.accept().await?;
        scene::header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        expect(&mut socket, "<stream:features").await?;
        socket.send_text(AUTH).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        expect(&mut socket, "<success").await?;
        socket.send_text(&open).await?;
        scene::header(&mut link).await?;
        link.write(&format!("{HEADER}{BINDING}")).await?;
        expect(&mut socket, "<stream:features").await?;
        socket.send_text(BIND).await?;
        link.until("</iq>").await?;
        // No stanza is behind it, in whatever pieces all this comes.
        link.write(&format!("{BOUND}<r xmlns='urn:xmpp:sm:3'/>")).await?;
        expect(&mut socket, "<r ").await?;
        ensure!(first(&gateway, "websocket")? == [0.0, 0.0], "there was none");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let least = connected.elapsed();
        link.write(&scene::message("a")).await?;
        expect(&mut socket, "<body>a</body>").await?;
        let most = begun.elapsed();
        link.write(&scene::message("b")).await?;
        expect(&mut socket, "<body>b</body>").await?;
        between(&gateway, "websocket", least, most).await
    })
}

/// The same over BOSH, where it has to wait for a request.
#[test]
fn the_first_stanza_is_timed_over_bosh() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let begun = now();
        let (mut session, mut link) = scene.bound_with(CREATION).await?;
        let bound = now();
        link.write("<r xmlns='urn:xmpp:sm:3'/>").await?;
        session.ask("", "").await?;
        ensure!(first(&scene.gateway, "bosh")? == [0.0, 0.0], "there was none");
        link.write(&scene::message("a")).await?;
        let passed =
            "bosphorus_stanzas_total{direction=\"to_client\",kind=\"message\",transport=\"bosh\"}";
        eventually("the message", async || {
            (scene.gateway.metric(passed).ok()? == 1.0).then_some(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(first(&scene.gateway, "bosh")?[0] == 0.0, "it is not there yet");
        let least = bound.elapsed();
        ensure!(session.ask("", "").await?.messages() == ["a"]);
        let most = begun.elapsed();
        link.write(&scene::message("b")).await?;
        ensure!(session.ask("", "").await?.messages() == ["b"]);
        between(&scene.gateway, "bosh", least, most).await
    })
}

/// One first stanza, after a time between these.
async fn between(gateway: &Gateway, transport: &str, least: Duration, most: Duration) -> Result {
    let [count, took] = eventually("the first stanza", async || {
        first(gateway, transport).ok().filter(|[count, _]| *count > 0.0)
    })
    .await?;
    ensure!(count == 1.0, "{count} of them");
    ensure!(
        took >= least.as_secs_f64() && took <= most.as_secs_f64(),
        "{took} s, and not between {least:?} and {most:?}"
    );
    Ok(())
}

async fn expect(socket: &mut Socket, text: &str) -> Result {
    loop {
        match socket.receive().await? {
            Received::Text(received) if received.contains(text) => return Ok(()),
            Received::Text(_) => {}
            _ => bail!("the end instead of {text}"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the client's own clock")]
fn now() -> Instant {
    Instant::now()
}

//! The figures of the comparison against what an observer outside counts: a relay in front of the
//! gateway that counts bytes and connections, and the client's own clock.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[path = "truth/cpu.rs"]
mod cpu;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;
#[path = "truth/quantiles.rs"]
mod quantiles;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use common::bridge::{self, Http2, Multiplexer};
use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::scene::{Scene, message};
use common::server::{Kind, Server};
use common::socket::{Received, Socket};
use common::{Result, block_on, eventually, in_ci};
use pki::Ca;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "gateway.test";
/// Messages that a client sends itself over each way.
const MESSAGES: usize = 40;

/// What passed a relay.
#[derive(Default)]
struct Passed {
    connections: AtomicU64,
    to_gateway: AtomicU64,
    to_client: AtomicU64,
    /// Heads of POST requests, where they can be read.
    posts: AtomicU64,
}

impl Passed {
    fn counts(&self) -> [u64; 4] {
        [&self.connections, &self.to_gateway, &self.to_client, &self.posts]
            .map(|count| count.load(Ordering::SeqCst))
    }
}

/// Carries connections to the gateway and counts what passes.
async fn relay(to: SocketAddr) -> Result<(SocketAddr, Arc<Passed>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let passed = Arc::new(Passed::default());
    let counts = Arc::clone(&passed);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let gateway = TcpStream::connect(to).await?;
            counts.connections.fetch_add(1, Ordering::SeqCst);
            let (client_reads, client_writes) = client.into_split();
            let (gateway_reads, gateway_writes) = gateway.into_split();
            let (up, down) = (Arc::clone(&counts), Arc::clone(&counts));
            tokio::spawn(carry(client_reads, gateway_writes, move |bytes| {
                up.to_gateway.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                let posts = bytes.windows(6).filter(|window| *window == b"POST /").count();
                up.posts.fetch_add(posts as u64, Ordering::SeqCst);
            }));
            tokio::spawn(carry(gateway_reads, client_writes, move |bytes| {
                down.to_client.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            }));
        }
        anyhow::Ok(())
    });
    Ok((address, passed))
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    count: impl Fn(&[u8]),
) -> Result {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut chunk).await?;
        if n == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        count(&chunk[..n]);
        to.write_all(&chunk[..n]).await?;
    }
}

/// One way of a client to the gateway.
struct Way {
    transport: Transport,
    tls: bool,
    http2: bool,
}

impl Way {
    /// Every one.
    fn all() -> [Self; 7] {
        let way = |transport, tls, http2| Self { transport, tls, http2 };
        [
            way(Transport::Ws, false, false),
            way(Transport::WsLegacy, false, false),
            way(Transport::Bosh, false, false),
            way(Transport::Ws, true, false),
            way(Transport::WsLegacy, true, false),
            way(Transport::Bosh, true, false),
            way(Transport::Bosh, true, true),
        ]
    }

    /// The labels of its figures.
    fn labels(&self) -> (&'static str, &'static str) {
        let transport = match self.transport {
            Transport::Ws => "websocket",
            Transport::WsLegacy => "websocket_legacy",
            Transport::Bosh => "bosh",
        };
        (transport, if self.http2 { "2" } else { "1.1" })
    }

    fn name(&self) -> String {
        let (transport, http) = self.labels();
        format!("{transport}, HTTP/{http}{}", if self.tls { ", TLS" } else { "" })
    }
}

/// What became of one way: a row of the table.
async fn compare(way: &Way, server: &Arc<Server>, ca: &Ca) -> Result<String> {
    let (gateway, to) = quantiles::gateway(way, &domain_toml(server), ca)?;
    let (address, passed) = relay(to).await?;
    let config = |alpn: &[&[u8]]| bridge::client(&ca.file(), rustls::ALL_VERSIONS, alpn);
    let mut multiplexer = None;
    let front = if way.http2 {
        let connection = Http2::connect(&config(&[b"h2"])?, address, NAME).await?;
        multiplexer.insert(Multiplexer::new(connection).await?).address
    } else if way.tls {
        bridge::tls(&config(&[b"http/1.1"])?, address, NAME).await?
    } else {
        address
    };
    // What can be read in front of TLS and of HTTP/2.
    let (front, said) = relay(front).await?;
    let url = match way.transport {
        Transport::Bosh => format!("http://{front}/http-bind"),
        _ => format!("ws://{front}/ws"),
    };
    let endpoint = Endpoint { url, transport: way.transport };
    let account = server.account();
    let begun = now();
    let mut client = Client::online(&endpoint, &account).await?;
    let bound = format!("{{transport=\"{}\"}}", way.labels().0);
    let count = gateway.metric(&format!("bosphorus_session_bound_seconds_count{bound}"))?;
    let (took, most) = (sum(&gateway, "session_bound_seconds", &bound)?, begun.elapsed());
    ensure!(count == 1.0 && took > 0.0 && took <= most.as_secs_f64(), "{took} s of {most:?}");
    let mut round_trips = Duration::ZERO;
    let jid = client.jid.clone();
    for index in 0..MESSAGES {
        let text = "x".repeat(10 + index * index * 10);
        let begun = now();
        client.message(&jid, &text).await?;
        ensure!(client.body().await? == text);
        round_trips += begun.elapsed();
    }
    client.quit().await?;
    drop(multiplexer);

    let (transport, http) = way.labels();
    let of = |family: &str, rest: &str| {
        gateway.metric(&format!("bosphorus_{family}{{{rest}transport=\"{transport}\"}}"))
    };
    let http_label = format!("http=\"{http}\",");
    let wire = |direction: &str| {
        of("wire_bytes_total", &format!("direction=\"{direction}\",{http_label}"))
    };
    // Bytes are exact once the connections have ended, but for a close_notify of the client's that
    // came when nobody read any more.
    let late = if way.tls { 64 } else { 0 };
    let mut last = String::new();
    let bytes = eventually("equal counts of bytes", async || {
        let counts = passed.counts();
        let ours = [wire("to_server").ok()? as u64, wire("to_client").ok()? as u64];
        last = format!("the relay has {counts:?}, the gateway {ours:?}");
        let missed = counts[1].checked_sub(ours[0])?;
        (missed <= late * counts[0] && ours[1] == counts[2]).then_some(counts)
    })
    .await;
    let Ok([connections, to_gateway, to_client, _]) = bytes else {
        anyhow::bail!("{}: {last}", way.name());
    };
    let ours = of("client_connections_total", &http_label)? as u64;
    ensure!(ours == connections, "{}: {ours} connections, not {connections}", way.name());
    let requests = of("http_requests_total", &http_label)? as u64;
    let expected = match way.transport {
        Transport::Bosh => said.counts()[3],
        _ => connections,
    };
    ensure!(requests == expected, "{}: {requests} requests, not {expected}", way.name());

    let mut payload = 0.0;
    let mut seconds = 0.0;
    for direction in ["to_server", "to_client"] {
        let label = format!("direction=\"{direction}\",");
        let messages = of("stanzas_total", &format!("{label}kind=\"message\","))?;
        ensure!(messages == MESSAGES as f64, "{}: {messages} messages {direction}", way.name());
        let mut elements = 0.0;
        for kind in ["message", "presence", "iq", "nonza"] {
            elements += of("stanzas_total", &format!("{label}kind=\"{kind}\","))?;
        }
        let delivered = of("delivery_seconds_count", &label)?;
        // What the session began and ended with may have had no other side.
        ensure!(
            delivered <= elements && delivered >= MESSAGES as f64,
            "{}: {delivered} of {elements} elements arrived {direction}",
            way.name()
        );
        payload += of("payload_bytes_total", &label)?;
        seconds += of("delivery_seconds_sum", &label)? / delivered;
    }
    let round_trip = round_trips.as_secs_f64() / MESSAGES as f64;
    let overhead = (to_gateway + to_client) as f64 - payload;
    ensure!(overhead > 0.0, "{}: less on the wire than was said", way.name());
    let mut row = String::new();
    write!(
        row,
        "{:<31} {to_gateway:>9} {to_client:>9} {connections:>5} {requests:>5} {:>7.1} {:>9.0} {:>9.0}",
        way.name(),
        overhead / (2 * MESSAGES) as f64,
        seconds * 1e6,
        round_trip * 1e6,
    )?;
    Ok(row)
}

/// Bytes, connections, requests and elements are exactly what an observer in front of the gateway
/// counts, over every way.
#[test]
fn figures_are_what_an_observer_counts() -> Result {
    if let Some(why) = Kind::Prosody.missing() {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    block_on(async {
        let server = Server::prosody()?;
        let ca = Ca::new();
        let mut table = format!(
            "{:<31} {:>9} {:>9} {:>5} {:>5} {:>7} {:>9} {:>9}\n",
            "equal to an observer's",
            "bytes in",
            "bytes out",
            "conn",
            "req",
            "over/el",
            "µs both",
            "µs round"
        );
        for way in Way::all() {
            table += &compare(&way, &server, &ca).await?;
            table.push('\n');
        }
        println!("{table}");
        if let Some(tables) = std::env::var_os("BOSPHORUS_TABLES") {
            std::fs::write(Path::new(&tables).join("truth.table"), &table).unwrap();
        }
        Ok(())
    })
}

/// The sum of a histogram without labels but these.
fn sum(gateway: &Gateway, family: &str, labels: &str) -> Result<f64> {
    gateway.metric(&format!("bosphorus_{family}_sum{labels}"))
}

/// What a stanza waits for a BOSH request is told, and is part of its delivery.
#[test]
fn the_wait_for_a_request_is_told() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let to_client = "{direction=\"to_client\",transport=\"bosh\"}";
        let before = [
            sum(&scene.gateway, "bosh_wait_seconds", "")?,
            sum(&scene.gateway, "delivery_seconds", to_client)?,
        ];
        let count =
            "bosphorus_stanzas_total{direction=\"to_client\",kind=\"message\",transport=\"bosh\"}";
        let said = now();
        link.write(&message("a")).await?;
        eventually("the message", async || {
            (scene.gateway.metric(count).ok()? == 1.0).then_some(())
        })
        .await?;
        let waiting = now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = waiting.elapsed();
        let mut request = session.next("", "").await?;
        ensure!(request.body().await?.messages() == ["a"]);
        let delivered =
            "bosphorus_delivery_seconds_count{direction=\"to_client\",transport=\"bosh\"}";
        // The client may have it before the gateway has counted that.
        eventually("as many deliveries as waits", async || {
            let waits = scene.gateway.metric("bosphorus_bosh_wait_seconds_count").ok()?;
            (scene.gateway.metric(delivered).ok()? == waits).then_some(())
        })
        .await?;
        let got = said.elapsed();
        for (family, labels, before) in
            [("bosh_wait_seconds", "", before[0]), ("delivery_seconds", to_client, before[1])]
        {
            let took = sum(&scene.gateway, family, labels)? - before;
            ensure!(
                took >= asked.as_secs_f64() && took <= got.as_secs_f64(),
                "{family}: {took} s, and not between {asked:?} and {got:?}"
            );
        }
        Ok(())
    })
}

/// A delivery is over when the kernel has the last byte, not when the first was given to it.
#[test]
fn a_delivery_ends_with_the_last_byte() -> Result {
    block_on(async {
        let peer = common::peer::Peer::new().await?;
        let gateway =
            Gateway::start(&format!("[limits]\nstall_timeout = \"30s\"\n{}", peer.toml()))?;
        let mut socket = Socket::connect(&gateway.ws_url()).await?;
        let open =
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.test' version='1.0'/>";
        socket.send_text(open).await?;
        let mut link = peer.accept().await?;
        common::scene::header(&mut link).await?;
        link.write(&format!("{}{}", common::scene::HEADER, common::scene::FEATURES)).await?;
        let mut texts = 0;
        while texts < 2 {
            texts += usize::from(matches!(socket.receive().await?, Received::Text(_)));
        }
        let family = "{direction=\"to_client\",transport=\"websocket\"}";
        let count = format!("bosphorus_delivery_seconds_count{family}");
        let (before, counted) =
            (sum(&gateway, "delivery_seconds", family)?, gateway.metric(&count)?);
        // More than the buffers of a loopback connection take.
        let large = message(&"x".repeat(7_900_000));
        let said = now();
        let writing = tokio::spawn(async move {
            link.write(&large).await?;
            anyhow::Ok(link)
        });
        let passed = "bosphorus_stanzas_total{direction=\"to_client\",kind=\"message\",transport=\"websocket\"}";
        eventually("the message", async || (gateway.metric(passed).ok()? == 1.0).then_some(()))
            .await?;
        let waiting = now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(gateway.metric(&count)? == counted, "it is not there yet");
        let waited = waiting.elapsed();
        let Received::Text(text) = socket.receive().await? else { anyhow::bail!("no message") };
        ensure!(text.len() > 7_900_000);
        eventually("the delivery", async || (gateway.metric(&count).ok()? > counted).then_some(()))
            .await?;
        let got = said.elapsed();
        let took = sum(&gateway, "delivery_seconds", family)? - before;
        ensure!(
            took >= waited.as_secs_f64() && took <= got.as_secs_f64(),
            "{took} s, and not between {waited:?} and {got:?}"
        );
        drop(writing.await??);
        Ok(())
    })
}

/// How long a loss went unnoticed, and what was given up for it.
#[test]
fn a_loss_is_told() -> Result {
    block_on(async {
        let scene = Scene::new("inactivity = \"1s\"").await?;
        let gateway = &scene.gateway;
        let silence = |transport: &str| -> Result<[f64; 2]> {
            let labels = format!("{{transport=\"{transport}\"}}");
            let count =
                gateway.metric(&format!("bosphorus_client_silence_seconds_count{labels}"))?;
            Ok([count, sum(gateway, "client_silence_seconds", &labels)?])
        };
        let undelivered = |transport: &str| {
            gateway.metric(&format!("bosphorus_undelivered_total{{transport=\"{transport}\"}}"))
        };
        let (session, mut link) = scene.bound().await?;
        let asked = now();
        drop(session);
        for text in ["a", "b"] {
            link.write(&message(text)).await?;
        }
        eventually("the loss of a BOSH client", async || {
            (silence("bosh").ok()?[0] == 1.0).then_some(())
        })
        .await?;
        let [_, took] = silence("bosh")?;
        ensure!(took >= 1.0 && took <= asked.elapsed().as_secs_f64() + 1.0, "{took} s");
        eventually("what was given up", async || (undelivered("bosh").ok()? == 2.0).then_some(()))
            .await?;

        let mut socket = Socket::connect(&gateway.ws_url()).await?;
        let open =
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.test' version='1.0'/>";
        let opened = now();
        socket.send_text(open).await?;
        let link = scene.peer.accept().await?;
        drop(socket);
        eventually("the loss of a WebSocket", async || {
            (silence("websocket").ok()?[0] == 1.0).then_some(())
        })
        .await?;
        ensure!(silence("websocket")?[1] <= opened.elapsed().as_secs_f64());
        ensure!(undelivered("websocket")? == 0.0);
        // The same user once more.
        let reconnects = "bosphorus_reconnects_total{transport=\"bosh\"}";
        ensure!(gateway.metric(reconnects)? == 0.0);
        let _again = scene.bound().await?;
        eventually("the reconnect", async || {
            (gateway.metric(reconnects).ok()? == 1.0).then_some(())
        })
        .await?;
        drop(link);
        Ok(())
    })
}

#[expect(clippy::disallowed_methods, reason = "the client's own clock is what is compared with")]
fn now() -> Instant {
    Instant::now()
}

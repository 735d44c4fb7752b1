//! The quantiles of the histograms against clocks outside. What takes time is made to: a side that
//! reads nothing for a while, so that the last byte for it is late; a client that asks for nothing;
//! a server that answers late. So the values are far above what a busy machine adds to them, and lie
//! in buckets far from each other.
//!
//! The time outside begins before a relay hands the last byte to the gateway and ends after the other
//! side has got it. It contains the time inside, but for the moment after its last write in which the
//! gateway looks at the clock.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use super::common::bridge::{self, Http2, Multiplexer};
use super::common::client::{Client, Endpoint, Mechanism, Transport};
use super::common::gateway::Gateway;
use super::common::peer::{Link, Peer};
use super::common::scene::{BINDING, DOMAIN, FEATURES, HEADER, SUCCESS, header, message};
use super::common::{PATIENCE, Result, block_on};
use super::pki::{Ca, Validity};
use super::{NAME, Way, now};

/// How long, in milliseconds, an element is held up at least, one in each of so many sessions.
const HOLDS: [u64; 10] = [55, 120, 55, 55, 280, 55, 55, 120, 55, 55];
/// The same for their logins.
const LOGIN_HOLDS: [u64; 10] = [30, 30, 120, 30, 30, 30, 30, 120, 30, 30];
/// The middle of those that are held up least, and the rest.
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];
/// More than the buffers of a narrow connection take that has carried no more than a login: they
/// grow with what it carries. The gateway takes little more in one element.
const LARGE: usize = 240_000;

/// When something happened last.
#[derive(Default)]
struct Last(Mutex<Option<Instant>>);

impl Last {
    fn set(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    fn get(&self) -> Result<Instant> {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.context("it has not happened")
    }

    fn reset(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Carries connections to the gateway over narrow ones, looks at the clock, and may stop to read.
struct Relay {
    address: SocketAddr,
    times: Arc<Times>,
    hold: watch::Sender<bool>,
}

#[derive(Default)]
struct Times {
    /// The first connection since that was reset.
    accepted: Last,
    /// Before the last bytes were handed over to the gateway.
    to_gateway: Last,
    /// After the last bytes were taken from it.
    from_gateway: Last,
}

impl Relay {
    async fn new(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (hold, held) = watch::channel(false);
        let times = Arc::new(Times::default());
        let clocks = Arc::clone(&times);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let before = clocks.accepted.reset();
                clocks.accepted.set(before.unwrap_or_else(now));
                let gateway = narrow()?.connect(to).await?;
                client.set_nodelay(true)?;
                gateway.set_nodelay(true)?;
                let (client_reads, client_writes) = client.into_split();
                let (gateway_reads, gateway_writes) = gateway.into_split();
                let (up, down, held) = (Arc::clone(&clocks), Arc::clone(&clocks), held.clone());
                tokio::spawn(async move {
                    let stamp = || up.to_gateway.set(now());
                    carry(client_reads, gateway_writes, None, stamp).await
                });
                tokio::spawn(async move {
                    let stamp = || down.from_gateway.set(now());
                    carry(gateway_reads, client_writes, Some(held), stamp).await
                });
            }
            anyhow::Ok(())
        });
        Ok(Self { address, times, hold })
    }
}

/// A socket whose buffers, and those of the other end, hold little.
fn narrow() -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    // The send buffer of the other end is as large as some segments.
    SockRef::from(&socket).set_tcp_mss(536)?;
    Ok(socket)
}

async fn carry(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut held: Option<watch::Receiver<bool>>,
    stamp: impl Fn(),
) -> Result {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        from.readable().await?;
        if let Some(held) = &mut held {
            held.wait_for(|held| !held).await?;
        }
        let n = match from.try_read(&mut chunk) {
            Ok(0) => return Ok(to.shutdown().await?),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        stamp();
        to.write_all(&chunk[..n]).await?;
    }
}

/// The buckets of a histogram: upper bounds in seconds, how many values are in each, and their sum.
struct Values {
    bounds: Vec<f64>,
    counts: Vec<f64>,
    sum: f64,
}

impl Values {
    fn read(gateway: &Gateway, family: &str, labels: &str) -> Result<Self> {
        let text = gateway.metrics()?;
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("bosphorus_{family}_bucket{{{labels}{comma}le=\"");
        let (mut bounds, mut counts, mut before) = (Vec::new(), Vec::new(), 0.0);
        for line in text.lines().filter_map(|line| line.strip_prefix(&bucket)) {
            let (bound, count) = line.split_once("\"} ").context("no bucket")?;
            let count: f64 = count.parse()?;
            bounds.push(if bound == "+Inf" { f64::INFINITY } else { bound.parse()? });
            counts.push(count - before);
            before = count;
        }
        ensure!(!bounds.is_empty(), "no {bucket}");
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let sum = gateway.metric(&format!("bosphorus_{family}_sum{labels}"))?;
        Ok(Self { bounds, counts, sum })
    }

    /// Those that came since then.
    fn since(mut self, before: &Self) -> Self {
        self.counts.iter_mut().zip(&before.counts).for_each(|(now, before)| *now -= before);
        self.sum -= before.sum;
        self
    }

    /// These and those.
    fn with(mut self, others: Option<Self>) -> Self {
        if let Some(others) = others {
            self.counts.iter_mut().zip(&others.counts).for_each(|(count, other)| *count += other);
            self.sum += others.sum;
        }
        self
    }

    /// The bucket of the value with that rank, from 1 on.
    fn bucket(&self, rank: usize) -> Result<usize> {
        let mut sum = 0.0;
        let at = self.counts.iter().position(|count| {
            sum += count;
            sum >= rank as f64
        });
        at.context("so many values are not there")
    }

    fn bucket_of(&self, value: f64) -> usize {
        self.bounds.partition_point(|bound| *bound < value)
    }

    /// Fails unless they are as many as those `outside`, as long in sum as what was `held` up for
    /// certain, and each quantile is within a bucket of theirs. Rows of the table.
    fn compare(&self, what: &str, outside: &[Duration], held: &[u64]) -> Result<String> {
        let count: f64 = self.counts.iter().sum();
        ensure!(count == outside.len() as f64, "{what}: {count} of {}", outside.len());
        let held = Duration::from_millis(held.iter().sum());
        ensure!(
            self.sum >= held.as_secs_f64(),
            "{what}: {} s together, though they were held up for {held:?}",
            self.sum
        );
        let mut sorted = outside.to_vec();
        sorted.sort_unstable();
        let mut rows = String::new();
        for quantile in QUANTILES {
            let rank = (quantile * count).ceil() as usize;
            let (ours, theirs) = (self.bucket(rank)?, sorted[rank - 1].as_secs_f64());
            let lower = if ours == 0 { 0.0 } else { self.bounds[ours - 1] };
            let upper = self.bounds[ours];
            let row = format!(
                "{what:<62} {count:>3} {quantile:>5} {:>6.0} to {:>6.0} {:>9.1}",
                lower * 1e3,
                upper * 1e3,
                theirs * 1e3
            );
            ensure!(ours.abs_diff(self.bucket_of(theirs)) <= 1, "more than a bucket apart: {row}");
            writeln!(rows, "{row}")?;
        }
        Ok(rows)
    }
}

/// What a histogram has got, and how long it was outside.
type Seen = (Values, Duration);

/// What was held up as [`HOLDS`] has it.
#[derive(Default)]
struct Series {
    inside: Option<Values>,
    outside: Vec<Duration>,
}

impl Series {
    fn add(&mut self, (inside, outside): Seen) {
        self.inside = Some(inside.with(self.inside.take()));
        self.outside.push(outside);
    }

    fn compare(&self, what: &str) -> Result<String> {
        self.inside.as_ref().context("nothing was seen")?.compare(what, &self.outside, &HOLDS)
    }
}

/// Where a client that speaks neither TLS nor HTTP/2 connects, to reach the gateway at `to` in that
/// way, and what has to be kept for that.
pub(super) async fn front(
    way: &Way,
    ca: &Ca,
    to: SocketAddr,
) -> Result<(Endpoint, Option<Multiplexer>)> {
    let config = |alpn: &[&[u8]]| bridge::client(&ca.file(), rustls::ALL_VERSIONS, alpn);
    let mut multiplexer = None;
    let front = if way.http2 {
        let connection = Http2::connect(&config(&[b"h2"])?, to, NAME).await?;
        multiplexer.insert(Multiplexer::new(connection).await?).address
    } else if way.tls {
        bridge::tls(&config(&[b"http/1.1"])?, to, NAME).await?
    } else {
        to
    };
    let url = match way.transport {
        Transport::Bosh => format!("http://{front}/http-bind"),
        _ => format!("ws://{front}/ws"),
    };
    Ok((Endpoint { url, transport: way.transport }, multiplexer))
}

/// A gateway with this configuration, and its address for that way.
pub(super) fn gateway(way: &Way, toml: &str, ca: &Ca) -> Result<(Gateway, SocketAddr)> {
    let identity = ca.issue(&[NAME], Validity::Now);
    let gateway = Gateway::start_tls(toml, identity.pem())?;
    let to = if way.tls { gateway.tls() } else { gateway.listen() };
    Ok((gateway, to))
}

/// A client that is logged in, and its server, which answers its wish for a resource so late.
pub(super) async fn log_in(
    endpoint: &Endpoint,
    peer: &Peer,
    late: Duration,
) -> Result<(Client, Link)> {
    let client = async {
        let mut client = Client::connect(endpoint).await?;
        client.open(DOMAIN).await?;
        let answer = client.authenticate(Mechanism::Plain, "a", "secret").await?;
        ensure!(answer.is_ok(), "{answer:?}");
        client.open(DOMAIN).await?;
        client.bind(None).await?;
        Ok(client)
    };
    let server = async {
        let mut link = peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{BINDING}")).await?;
        let bind = link.until("</iq>").await?;
        let id =
            bind.split(" id=").nth(1).and_then(|rest| rest.get(1..)?.split(['"', '\'']).next());
        let id = id.with_context(|| format!("no id: {bind}"))?;
        tokio::time::sleep(late).await;
        link.write(&format!(
            "<iq type='result' id='{id}'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <jid>a@example.test/r</jid></bind></iq>"
        ))
        .await?;
        Ok(link)
    };
    tokio::try_join!(client, server)
}

/// A way, and what is at its ends.
struct Line<'a> {
    way: &'a Way,
    gateway: Gateway,
    relay: Relay,
    peer: Peer,
    ca: &'a Ca,
}

impl Line<'_> {
    /// A client that is logged in, and its server, which has answered so late; how long it took.
    async fn login(&self, late: Duration) -> Result<(Client, Link, Option<Multiplexer>, Duration)> {
        self.relay.times.accepted.reset();
        let (endpoint, multiplexer) = front(self.way, self.ca, self.relay.address).await?;
        let (client, link) = log_in(&endpoint, &self.peer, late).await?;
        let took = self.relay.times.accepted.get()?.elapsed();
        Ok((client, link, multiplexer, took))
    }

    fn labels(&self, direction: &str) -> String {
        format!("direction=\"{direction}\",transport=\"{}\"", self.way.labels().0)
    }

    fn values(&self, direction: &str) -> Result<Values> {
        Values::read(&self.gateway, "delivery_seconds", &self.labels(direction))
    }

    /// The number of messages that the gateway has read and of elements that have arrived.
    fn counts(&self, direction: &str) -> Result<[f64; 2]> {
        let transport = self.way.labels().0;
        let read = format!(
            "bosphorus_stanzas_total{{direction=\"{direction}\",kind=\"message\",\
             transport=\"{transport}\"}}"
        );
        let arrived = format!("bosphorus_delivery_seconds_count{{{}}}", self.labels(direction));
        Ok([self.gateway.metric(&read)?, self.gateway.metric(&arrived)?])
    }

    /// Waits until the gateway has read one message more than `before`, and then so long.
    async fn hold(&self, direction: &str, before: [f64; 2], hold: u64) -> Result {
        let reading = async {
            while self.counts(direction)?[0] == before[0] {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await.context("the message was not read")??;
        tokio::time::sleep(Duration::from_millis(hold)).await;
        let arrived = self.counts(direction)?[1];
        ensure!(arrived == before[1], "{}: it has arrived {direction}", self.way.name());
        Ok(())
    }

    fn what(&self, family: &str, direction: &str) -> String {
        format!("{:<26} {family} {direction}", self.way.name())
    }

    /// One large message of the client, which the server does not read until it has been held up so
    /// long.
    async fn up(&self, client: &mut Client, link: &mut Link, hold: u64) -> Result<Seen> {
        let (before, counts) = (self.values("to_server")?, self.counts("to_server")?);
        client.message("b@example.test/r", &"x".repeat(LARGE)).await?;
        self.hold("to_server", counts, hold).await?;
        link.until("</message>").await?;
        let outside = self.relay.times.to_gateway.get()?.elapsed();
        self.arrived("to_server", counts).await?;
        Ok((self.values("to_server")?.since(&before), outside))
    }

    /// The same of the server, which the client does not read.
    async fn down(&self, client: &mut Client, link: &mut Link, hold: u64) -> Result<Seen> {
        client.listen().await?;
        let (before, counts) = (self.values("to_client")?, self.counts("to_client")?);
        self.relay.hold.send_replace(true);
        let said = self.say(link, &"x".repeat(LARGE)).await?;
        self.hold("to_client", counts, hold).await?;
        self.relay.hold.send_replace(false);
        ensure!(client.body().await?.len() == LARGE);
        let outside = self.relay.times.from_gateway.get()? - said;
        self.arrived("to_client", counts).await?;
        Ok((self.values("to_client")?.since(&before), outside))
    }

    async fn compare(&self) -> Result<String> {
        let (mut logins, mut up, mut down) = (Vec::new(), Series::default(), Series::default());
        let mut last = None;
        for (hold, login) in HOLDS.into_iter().zip(LOGIN_HOLDS) {
            let (mut client, mut link, multiplexer, took) =
                self.login(Duration::from_millis(login)).await?;
            logins.push(took);
            up.add(self.up(&mut client, &mut link, hold).await?);
            down.add(self.down(&mut client, &mut link, hold).await?);
            last = Some((client, link, multiplexer));
        }
        let transport = format!("transport=\"{}\"", self.way.labels().0);
        let bound = Values::read(&self.gateway, "session_bound_seconds", &transport)?;
        let mut table = bound.compare(&self.what("session_bound", ""), &logins, &LOGIN_HOLDS)?;
        table += &up.compare(&self.what("delivery", "to_server"))?;
        table += &down.compare(&self.what("delivery", "to_client"))?;
        let (client, mut link, _multiplexer) = last.context("no login")?;
        if self.way.transport != Transport::Bosh {
            return Ok(table);
        }

        // Nobody asks.
        let mut outside = Vec::new();
        let mut session = client.into_session()?;
        let waits = || Values::read(&self.gateway, "bosh_wait_seconds", "");
        let before = [waits()?, self.values("to_client")?];
        for hold in HOLDS {
            let counts = self.counts("to_client")?;
            let said = self.say(&mut link, "a").await?;
            self.hold("to_client", counts, hold).await?;
            let mut request = session.next("", "").await?;
            ensure!(request.body().await?.messages() == ["a"]);
            outside.push(self.relay.times.from_gateway.get()? - said);
            session.keep(request);
            self.arrived("to_client", counts).await?;
        }
        let [waits, delivery] =
            [waits()?.since(&before[0]), self.values("to_client")?.since(&before[1])];
        table += &waits.compare(&self.what("bosh_wait", ""), &outside, &HOLDS)?;
        let what = self.what("delivery", "to_client, unasked");
        table += &delivery.compare(&what, &outside, &HOLDS)?;
        Ok(table)
    }

    /// The server says something; when, just before the end of it.
    async fn say(&self, link: &mut Link, text: &str) -> Result<Instant> {
        let message = message(text);
        let (most, end) = message.split_at(message.len() - 1);
        link.write(most).await?;
        let said = now();
        link.write(end).await?;
        Ok(said)
    }

    /// Waits until the gateway knows of one delivery more than `before`.
    async fn arrived(&self, direction: &str, before: [f64; 2]) -> Result {
        super::common::eventually("the delivery", async || {
            (self.counts(direction).ok()?[1] > before[1]).then_some(())
        })
        .await
    }
}

/// Over every way the quantiles of what is measured inside are within a bucket of what clocks outside
/// have.
#[test]
fn quantiles_are_within_a_bucket_of_an_observers() -> Result {
    block_on(async {
        let ca = Ca::new();
        let mut table = format!(
            "{:<62} {:>3} {:>5} {:>16} {:>9}\n",
            "within a bucket of an observer's", "n", "q", "ms inside", "outside"
        );
        for way in &Way::all() {
            let socket = narrow()?;
            socket.bind("127.0.0.1:0".parse()?)?;
            let listener = socket.listen(64)?;
            let address = listener.local_addr()?;
            let peer = Peer { listener, address };
            let (gateway, to) = gateway(way, &peer.toml(), &ca)?;
            let relay = Relay::new(to).await?;
            let line = Line { way, gateway, relay, peer, ca: &ca };
            table += &line.compare().await.with_context(|| way.name())?;
        }
        println!("{table}");
        if let Some(tables) = std::env::var_os("BOSPHORUS_TABLES") {
            std::fs::write(std::path::Path::new(&tables).join("quantiles.table"), &table)?;
        }
        Ok(())
    })
}

//! Attacks by many clients and by one, with honest traffic beside each: what is refused, whether any
//! honest message is lost or late, and whether the memory comes back.
//!
//! Four honest clients, two over each transport, write each other numbered messages through a real
//! Prosody all the time. Each attack is run twice. A minute after each round the live heap has to be
//! within a tenth of what it was before, and after the second the resident memory within a tenth of
//! that after the first: neither more nor less, as a high first figure would hide that it grows. The
//! table is printed at the end.
//!
//! - `BOSPHORUS_ABUSE=full`: the whole numbers of clients, and nobody may wait longer than a second;
//!   takes some twenty minutes, and wants the machine for itself. Without it fewer clients, shorter
//!   timeouts, and memory is looked at as soon as it has come to rest, so that it takes some five.
//! - `BOSPHORUS_ATTACK`: only attacks of which the name contains this.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use common::bosh::{Body, CONTENT_TYPE, CREATION, creation, first_rid};
use common::client::{Client, Endpoint, Event, Mechanism, Transport};
use common::gateway::{Gateway, domain_toml};
use common::http::{Connection, Url};
use common::server::{Account, Kind, Server};
use common::socket::{Received, Socket, frame, opcode};
use common::{PATIENCE, Result, block_on, in_ci};

/// When memory has to be back.
const RECOVERY: Duration = Duration::from_secs(60);
/// Memory that nobody uses is given back every five seconds: what was the same for longer is at rest.
const REST: Duration = Duration::from_secs(8);
/// The most an honest message may take in a full run.
const LATE: u64 = 1000;

/// SEC-16, SEC-17, SEC-18, SEC-11: no attack costs an honest client a message, nor the process
/// memory that does not come back.
#[test]
fn no_attack_harms_the_honest() {
    if let Some(why) = Kind::Prosody.missing() {
        assert!(!in_ci(), "{why}");
        println!("skipped: {why}");
        return;
    }
    block_on(run()).unwrap();
}

/// The numbers of a run.
struct Scale {
    full: bool,
    /// Of attacks that have a number.
    divisor: usize,
    /// The gateway's own.
    timeouts: &'static str,
}

impl Scale {
    fn from_environment() -> Self {
        match std::env::var("BOSPHORUS_ABUSE").is_ok_and(|value| value == "full") {
            true => Self {
                full: true,
                divisor: 1,
                timeouts: "unauthenticated_lifetime = \"20s\"\n[bosh]\ninactivity = \"20s\"\n\
                           polling_inactivity = \"20s\"\nzombie = \"10s\"\n[ws]\n",
            },
            false => Self {
                full: false,
                divisor: 10,
                timeouts: "unauthenticated_lifetime = \"3s\"\nstall_timeout = \"3s\"\n\
                           [bosh]\ninactivity = \"3s\"\npolling_inactivity = \"3s\"\n\
                           zombie = \"1s\"\nbody_timeout = \"2s\"\n\
                           [ws]\nmessage_timeout = \"2s\"\n\
                           [upstream]\nclose_grace = \"1s\"\n",
            },
        }
    }

    fn clients(&self, full: usize) -> usize {
        (full / self.divisor).max(full.min(10))
    }

    fn timeouts_of_listeners(&self) -> &'static str {
        if self.full { "" } else { "head_timeout = \"2s\"\nhandshake_timeout = \"2s\"\n" }
    }
}

/// What attacks aim at.
struct Target {
    gateway: Gateway,
    server: Arc<Server>,
    url: Url,
    domain: &'static str,
}

type Attack = (&'static str, usize, for<'a> fn(&'a Target, usize) -> Attacking<'a>);
type Attacking<'a> = std::pin::Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// The attacks, and their clients in a full run.
const ATTACKS: [Attack; 7] = [
    ("a byte a second", 2000, |target, clients| Box::pin(bytes_a_second(target, clients))),
    ("unfinished handshakes", 10_000, |target, clients| Box::pin(unfinished(target, clients))),
    ("creations of one address", 2000, |target, clients| Box::pin(creations(target, clients))),
    ("wrong passwords", 500, |target, clients| Box::pin(wrong_passwords(target, clients))),
    ("tiny frames", 200, |target, clients| Box::pin(tiny_frames(target, clients))),
    ("deep and wide documents", 400, |target, clients| Box::pin(documents(target, clients))),
    ("clients that never read", 40, |target, clients| Box::pin(deaf_clients(target, clients))),
];

async fn run() -> Result {
    let scale = Scale::from_environment();
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let server = Server::shared(Kind::Prosody)?;
    let pair = rcgen::generate_simple_self_signed(vec!["abuse.test".to_owned()])?;
    let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    // What is remembered of sessions that have ended is memory that is meant to stay: here not for
    // longer than the rest has.
    let toml = format!(
        "[listen]\n{}\n[limits]\nexempt_peers = []\nmemory = \"4 MiB\"\n{}\n[log]\n\
         filter = \"warn\"\n[recorder]\nkeep = \"30s\"\n{}",
        scale.timeouts_of_listeners(),
        scale.timeouts,
        domain_toml(&server)
    );
    let gateway = Gateway::start_tls(&toml, [&chain, &key])?;
    let url = Url::parse(&gateway.bosh_url())?;
    let domain = Kind::Prosody.domain();
    let target = Target { gateway, server, url, domain };
    let honest = Honest::start(&target)?;
    let outcome = attack_all(&target, &scale, &honest).await;
    honest.stop()?;
    outcome.with_context(|| target.gateway.log_tail(20))
}

async fn attack_all(target: &Target, scale: &Scale, honest: &Honest) -> Result {
    let only = std::env::var("BOSPHORUS_ATTACK").unwrap_or_default();
    let attacks: Vec<_> = ATTACKS.into_iter().filter(|(name, ..)| name.contains(&only)).collect();
    ensure!(!attacks.is_empty(), "no attack is called {only:?}");
    let mut rows = vec![
        [
            "attack",
            "clients",
            "honest sent/lost/latest",
            "heap before/1st/2nd",
            "rss 1st/2nd",
            "refused",
        ]
        .map(str::to_owned),
    ];
    let mut faults = Vec::new();
    for (name, clients, attack) in attacks {
        let clients = scale.clients(clients);
        let before = at_rest(target).await?;
        let counted = counters(&target.gateway.metrics()?);
        honest.begin();
        let (mut heaps, mut resident, mut said) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..2 {
            said = attack(target, clients).await.with_context(|| name.to_owned())?;
            // Some honest traffic, however short the attack.
            let enough = honest.result().0 + 40;
            while honest.result().0 < enough && honest.result().1 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let memory = afterwards(target, scale, before).await?;
            heaps.push(memory.heap);
            resident.push(memory.resident);
        }
        let (sent, lost, latest) = honest.result();
        rows.push([
            name.to_owned(),
            format!("2 x {clients}"),
            format!("{sent}/{lost}/{latest} ms"),
            format!("{:.0}/{:.0}/{:.0} KiB", before / 1024.0, heaps[0] / 1024.0, heaps[1] / 1024.0),
            format!("{:.1}/{:.1} MiB", resident[0] / 1_048_576.0, resident[1] / 1_048_576.0),
            [said, differences(&counted, &counters(&target.gateway.metrics()?))].join("; "),
        ]);
        println!("{}", rows[rows.len() - 1].join(" | "));
        let mut check = |ok: bool, what: String| {
            if !ok {
                faults.push(format!("{name}: {what}"));
            }
        };
        check(lost == 0, format!("{lost} honest messages were lost"));
        check(sent > 0, "nothing honest was sent".to_owned());
        check(!scale.full || latest <= LATE, format!("an honest message took {latest} ms"));
        for heap in heaps {
            check(near(heap, before), format!("the heap is at {heap}, and was at {before}"));
        }
        check(
            near(resident[1], resident[0]),
            format!("resident are {} bytes, and after one round {}", resident[1], resident[0]),
        );
    }
    print(&rows);
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

impl Target {
    fn heap(&self) -> Result<f64> {
        self.gateway.metric("bosphorus_heap_live_bytes")
    }
}

/// How large the heap is but for the attacks: the honest need a tenth more at one moment than at
/// another, so that it is the median of some moments.
async fn at_rest(target: &Target) -> Result<f64> {
    let mut moments = Vec::new();
    for _ in 0..21 {
        moments.push(target.heap()?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(median(moments.into_iter()))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes of a gateway.
struct Memory {
    /// Allocated: the median of some moments.
    heap: f64,
    resident: f64,
}

/// What it has [`RECOVERY`] after a round; in a smaller run, as soon as it is [at rest](REST).
async fn afterwards(target: &Target, scale: &Scale, before: f64) -> Result<Memory> {
    const STEP: Duration = Duration::from_millis(200);
    let begun = now();
    let mut moments = VecDeque::new();
    loop {
        moments.push_back((target.heap()?, target.gateway.resident()?.all as f64));
        if STEP * moments.len() as u32 > REST {
            moments.pop_front();
        }
        let heap = median(moments.iter().map(|moment| moment.0));
        let resident = moments.iter().map(|moment| moment.1);
        let (least, most) =
            (resident.clone().fold(f64::MAX, f64::min), resident.fold(0.0, f64::max));
        let rests = !scale.full
            && begun.elapsed() > REST
            && near(heap, before)
            && most - least < most / 50.0;
        if rests || begun.elapsed() > RECOVERY {
            return Ok(Memory { heap, resident: moments[moments.len() - 1].1 });
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Within a tenth.
fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= other / 10.0
}

/// Prints the table, also for `tests/run`.
fn print(rows: &[[String; 6]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let text = rows.iter().fold(String::new(), |text, row| {
        let line = (0..5).fold(String::new(), |line, column| {
            format!("{line}{:width$}  ", row[column], width = width(column))
        });
        format!("{text}{line}{}\n", row[5])
    });
    println!("\n{text}");
    if let Some(directory) = std::env::var_os("BOSPHORUS_TABLES") {
        let path = Path::new(&directory).join("abuse.table");
        if let Err(error) = std::fs::write(&path, &text) {
            println!("cannot write {}: {error}", path.display());
        }
    }
}

/// The counters that tell of refusals, by what an operator reads.
fn counters(metrics: &str) -> BTreeMap<String, f64> {
    let mut counters = BTreeMap::new();
    for line in metrics.lines() {
        let Some((sample, value)) = line.rsplit_once(' ') else { continue };
        let Some((family, labels)) = sample.split_once('{') else { continue };
        let label = |name: &str| {
            let at = labels.split(&format!("{name}=\"")).nth(1)?;
            at.split('"').next().map(str::to_owned)
        };
        let word = match family {
            "bosphorus_limit_hits_total" => label("limit"),
            "bosphorus_sessions_ended_total" => {
                label("reason").filter(|reason| reason != "closed").map(|it| format!("ended {it}"))
            }
            "bosphorus_tls_handshakes_total" => {
                label("outcome").filter(|it| it != "ok").map(|it| format!("tls {it}"))
            }
            "bosphorus_upgrades_total" => {
                label("outcome").filter(|it| it == "never_opened").map(|it| format!("ws {it}"))
            }
            _ => None,
        };
        if let (Some(word), Ok(value)) = (word, value.parse::<f64>()) {
            *counters.entry(word).or_default() += value;
        }
    }
    counters
}

fn differences(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> String {
    let changed = after.iter().filter_map(|(word, value)| {
        let change = value - before.get(word).copied().unwrap_or_default();
        (change != 0.0).then(|| format!("{word} {change}"))
    });
    changed.collect::<Vec<_>>().join(", ")
}

// ---- the honest ------------------------------------------------------------------------------

/// Traffic that nobody may notice an attack in, on a thread of its own.
struct Honest {
    tally: Arc<Tally>,
    thread: std::thread::JoinHandle<Result>,
}

#[derive(Default)]
struct Tally {
    sent: AtomicU64,
    lost: AtomicU64,
    /// Milliseconds.
    latest: AtomicU64,
    stopped: AtomicBool,
}

impl Honest {
    /// Two pairs, each with one on either side of the transports; they are logged in.
    fn start(target: &Target) -> Result<Self> {
        let tally = Arc::new(Tally::default());
        let own = Arc::clone(&tally);
        let endpoint = |transport| Endpoint { url: target.gateway.url(transport), transport };
        let pairs = [[Transport::Ws, Transport::Bosh], [Transport::Bosh, Transport::Ws]]
            .map(|pair| pair.map(|transport| (endpoint(transport), target.server.account())));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            block_on(async move {
                let mut talks = JoinSet::new();
                for [(left, one), (right, two)] in pairs {
                    let left = Client::online(&left, &one).await?;
                    let right = Client::online(&right, &two).await?;
                    talks.spawn(talk(left, right, Arc::clone(&own)));
                }
                ready.send(())?;
                while let Some(talk) = talks.join_next().await {
                    talk??;
                }
                Ok(())
            })
        });
        let started = is_ready.recv();
        let honest = Self { tally, thread };
        if started.is_err() {
            honest.stop()?;
            bail!("the honest did not log in");
        }
        Ok(honest)
    }

    fn begin(&self) {
        for counter in [&self.tally.sent, &self.tally.lost, &self.tally.latest] {
            counter.store(0, Ordering::Release);
        }
    }

    fn result(&self) -> (u64, u64, u64) {
        let Tally { sent, lost, latest, .. } = &*self.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        (read(sent), read(lost), read(latest))
    }

    fn stop(self) -> Result {
        self.tally.stopped.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the honest panicked"))?
    }
}

/// Two say numbers to each other, in turn, some twenty times a second; now and then with much text,
/// but less than what a session may be ended for.
async fn talk(mut left: Client, mut right: Client, tally: Arc<Tally>) -> Result {
    let long = "p".repeat(10_000);
    let mut number = 0_u64;
    while !tally.stopped.load(Ordering::Acquire) {
        let filler = if number % 64 < 2 { &long } else { "" };
        let text = format!("{number} {filler}");
        let (from, to) = if number.is_multiple_of(2) {
            (&mut left, &mut right)
        } else {
            (&mut right, &mut left)
        };
        let begun = now();
        tally.sent.fetch_add(1, Ordering::AcqRel);
        let said = async {
            let jid = to.jid.clone();
            from.message(&jid, &text).await?;
            let came = to.body().await?;
            ensure!(came == text, "{came:?} instead of {number}");
            Ok(())
        };
        if let Err(error) = said.await {
            tally.lost.fetch_add(1, Ordering::AcqRel);
            println!("an honest message was lost: {error:#}");
            return Err(error);
        }
        let took = u64::try_from(begun.elapsed().as_millis())?;
        tally.latest.fetch_max(took, Ordering::AcqRel);
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

// ---- the attacks -----------------------------------------------------------------------------

/// The nth address of an attack by many.
fn address(n: usize) -> Ipv4Addr {
    let [_, a, b, c] = (n as u32 + 1).to_be_bytes();
    Ipv4Addr::new(127, 16 + a, b, c)
}

/// An address that attacks alone, and has done nothing before.
fn next_attacker() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    format!("127.9.9.{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A connection from there; none if it is not taken.
async fn connect(from: Ipv4Addr, to: SocketAddr, receive: Option<u32>) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    if let Some(bytes) = receive {
        socket.set_recv_buffer_size(bytes).ok()?;
    }
    socket.bind((from, 0).into()).ok()?;
    timeout(PATIENCE, socket.connect(to)).await.ok()?.ok()
}

/// Connections that each begin with some bytes, made some hundreds at a time.
async fn open_many(
    count: usize,
    each: usize,
    at: impl Fn(usize) -> (SocketAddr, Vec<u8>),
) -> Vec<(usize, TcpStream)> {
    let mut open = Vec::new();
    for first in (0..count).step_by(250) {
        let mut batch = JoinSet::new();
        for n in first..count.min(first + 250) {
            let (to, bytes) = at(n);
            let from = address(n / each);
            batch.spawn(async move {
                let mut stream = connect(from, to, None).await?;
                stream.write_all(&bytes).await.ok()?;
                Some((n, stream))
            });
        }
        while let Some(made) = batch.join_next().await {
            open.extend(made.ok().flatten());
        }
    }
    open
}

/// Whether the other side has ended it; what it says is thrown away.
fn is_ended(stream: &TcpStream) -> bool {
    let mut some = [0; 4096];
    loop {
        match stream.try_read(&mut some) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

fn upgrade(target: &Target) -> String {
    format!(
        "GET /xmpp-websocket HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: xmpp\r\n\r\n",
        target.url.authority
    )
}

/// A head, a body or a message, a byte at a time, until the gateway has had enough of each.
async fn bytes_a_second(target: &Target, clients: usize) -> Result<String> {
    let to = target.gateway.listen();
    let body = target.url.request("POST", &format!("Content-Length: 1000\r\n{CONTENT_TYPE}"), "");
    let mut open = open_many(clients, 4, |n| {
        let begin = match n % 3 {
            0 => b"P".to_vec(),
            1 => body.clone(),
            _ => [
                upgrade(target).as_bytes(),
                &frame(true, opcode::TEXT, &[b' '; 1000], Some([0; 4]))[..8],
            ]
            .concat(),
        };
        (to, begin)
    })
    .await;
    let (opened, begun) = (open.len(), now());
    let head =
        b"OST /http-bind HTTP/1.1\r\nHost: x\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let mut at = 0;
    while !open.is_empty() && begun.elapsed() < RECOVERY {
        open.retain(|(n, stream)| {
            let byte = if n % 3 == 0 { head[at % head.len()] } else { b' ' };
            !is_ended(stream) && stream.try_write(&[byte]).is_ok()
        });
        at += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ensure!(open.is_empty(), "{} connections are still open", open.len());
    Ok(format!("{opened} closed within {} s", begun.elapsed().as_secs()))
}

/// Half of them TLS, half HTTP heads; none goes on.
async fn unfinished(target: &Target, clients: usize) -> Result<String> {
    let hello = [&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3][..], &[7; 40]].concat();
    let head = b"GET /xmpp-websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websock".to_vec();
    let mut open = open_many(clients, 5, |n| match n % 2 {
        0 => (target.gateway.tls(), hello.clone()),
        _ => (target.gateway.listen(), head.clone()),
    })
    .await;
    let (opened, begun) = (open.len(), now());
    while !open.is_empty() && begun.elapsed() < RECOVERY {
        open.retain(|(_, stream)| !is_ended(stream));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(open.is_empty(), "{} connections are still open", open.len());
    Ok(format!("{opened} closed within {} s", begun.elapsed().as_secs()))
}

/// Sessions over both transports as fast as one address can ask for them; all are left alone.
async fn creations(target: &Target, clients: usize) -> Result<String> {
    let from = next_attacker();
    let mut attackers = JoinSet::new();
    for attacker in 0..20 {
        let (url, upgrade) = (target.url.clone(), upgrade(target));
        let domain = target.domain;
        let (share, from) = (clients / 20, from.clone());
        attackers.spawn(async move {
            let (mut made, mut busy, mut closed, mut kept) = (0, 0, 0, Vec::new());
            // One is kept for further requests: the door lets a hundred connections in a second.
            let mut free = None;
            for n in 0..share {
                let is_post = (n + attacker) % 4 != 0;
                let bytes = if is_post {
                    let attributes = format!("to='{domain}' {CREATION}");
                    url.post(CONTENT_TYPE, &creation(first_rid(), &attributes))
                } else {
                    upgrade.clone().into_bytes()
                };
                let asked = async {
                    let mut connection = match free.take().filter(|_| is_post) {
                        Some(connection) => connection,
                        None => Connection::open_from(&from, &url.authority).await?,
                    };
                    connection.send(&bytes).await?;
                    let answer = connection.prompt_answer().await?;
                    anyhow::Ok((answer.status, connection))
                };
                match asked.await {
                    Ok((200 | 101, connection)) => {
                        made += 1;
                        kept.push(connection);
                    }
                    Ok((_, connection)) => {
                        busy += 1;
                        free = Some(connection);
                    }
                    Err(_) => closed += 1,
                }
            }
            [made, busy, closed]
        });
    }
    let mut sum = [0; 3];
    while let Some(counts) = attackers.join_next().await {
        sum.iter_mut().zip(counts?).for_each(|(sum, count)| *sum += count);
    }
    let [made, busy, closed] = sum;
    ensure!(made <= 60, "{made} sessions were made");
    Ok(format!("{made} made, {busy} answered 503, {closed} closed"))
}

/// One address guesses at an account's password.
async fn wrong_passwords(target: &Target, clients: usize) -> Result<String> {
    let (account, from) = (target.server.account(), next_attacker());
    let mut guessers = JoinSet::new();
    for guesser in 0..10 {
        let (url, account, from) = (target.gateway.ws_url(), account.clone(), from.clone());
        let share = (clients / 10).max(1);
        guessers.spawn(async move {
            let (mut guessed, mut refused) = (0, 0);
            for n in 0..share {
                match guess(&url, &from, &account, &format!("{guesser} {n}")).await {
                    Ok(true) => guessed += 1,
                    Ok(false) | Err(_) => refused += 1,
                }
            }
            [guessed, refused]
        });
    }
    let mut sum = [0; 2];
    while let Some(counts) = guessers.join_next().await {
        sum.iter_mut().zip(counts?).for_each(|(sum, count)| *sum += count);
    }
    let [guessed, refused] = sum;
    ensure!(guessed <= 80, "{guessed} guesses reached the server");
    Ok(format!("{guessed} guesses, {refused} refused"))
}

/// False if the gateway lets nobody guess.
async fn guess(url: &str, from: &str, account: &Account, password: &str) -> Result<bool> {
    let Ok(socket) = Socket::connect_from(from, url).await else { return Ok(false) };
    let mut client = Client::over(socket);
    client.open(&account.domain).await?;
    let result = client.authenticate(Mechanism::Plain, &account.name, password).await?;
    ensure!(result.is_err(), "the password was right");
    let _ = client.quit().await;
    Ok(true)
}

/// Blanks, pings and fragments of a byte, thousands in a packet. Every other client reads nothing.
async fn tiny_frames(target: &Target, clients: usize) -> Result<String> {
    let mut blanks = Vec::new();
    let mut pings = Vec::new();
    let mut fragments = frame(false, opcode::TEXT, b"<", Some([1, 2, 3, 4]));
    for n in 0..2000_u32 {
        let mask = Some(n.to_be_bytes());
        blanks.extend(frame(true, opcode::TEXT, b" ", mask));
        pings.extend(frame(true, opcode::PING, b"", mask));
        fragments.extend(frame(false, opcode::CONTINUATION, b"a", mask));
    }
    let packets = [blanks, pings, fragments];
    let mut attackers = JoinSet::new();
    for n in 0..clients {
        let (to, upgrade) = (target.gateway.listen(), upgrade(target));
        let packet = packets[n % 3].clone();
        attackers.spawn(async move {
            let Some(stream) = connect(address(n), to, None).await else { return false };
            let Ok(Ok(mut socket)) = Socket::request_over(stream, upgrade.as_bytes()).await else {
                return false;
            };
            let open = "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" to=\"prosody.test\" \
                        version=\"1.0\"/>";
            if socket.send_text(open).await.is_err() {
                return true;
            }
            let writes = async {
                for _ in 0..50 {
                    socket.send_raw(&packet).await?;
                    if n % 2 == 0 {
                        while let Ok(received) =
                            timeout(Duration::from_millis(1), socket.receive_patiently()).await
                        {
                            if matches!(received?, Received::Close(..) | Received::Lost(_)) {
                                bail!("ended");
                            }
                        }
                    }
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(())
            };
            writes.await.is_err()
        });
    }
    let mut ended = 0;
    while let Some(is_ended) = attackers.join_next().await {
        ended += usize::from(is_ended?);
    }
    Ok(format!("{ended} ended meanwhile"))
}

/// 30,000 levels and 10,000 attributes, over either transport.
async fn documents(target: &Target, clients: usize) -> Result<String> {
    let deep = format!("{}{}", "<a>".repeat(30_000), "</a>".repeat(30_000));
    let attributes: String = (0..10_000).map(|n| format!(" a{n}=''")).collect();
    let wide = format!("<message xmlns='jabber:client'{attributes}/>");
    let mut attackers = JoinSet::new();
    for n in 0..clients {
        let (to, url, upgrade) = (target.gateway.listen(), target.url.clone(), upgrade(target));
        let domain = target.domain;
        let document = if n % 2 == 0 { deep.clone() } else { wide.clone() };
        attackers.spawn(async move {
            if n % 4 < 2 {
                let stream = connect(address(n), to, None).await.context("not taken")?;
                let socket = Socket::request_over(stream, upgrade.as_bytes()).await?;
                let mut client = Client::over(socket.map_err(|refused| anyhow!(refused.head))?);
                client.open(domain).await?;
                client.send(&document).await?;
                let ending = client.ending().await?;
                let is_policy = ending.condition.as_deref() == Some("policy-violation");
                ensure!(is_policy, "{ending:?}");
                return Ok(());
            }
            let from = address(n).to_string();
            let mut connection = Connection::open_from(&from, &url.authority).await?;
            let rid = first_rid();
            let text = creation(rid, &format!("to='{domain}' {CREATION}"));
            connection.send(&url.post(CONTENT_TYPE, &text)).await?;
            let body = Body::of(&connection.prompt_answer().await?)?;
            let sid = body.attr("sid").with_context(|| body.text.clone())?;
            let text = format!(
                "<body rid='{}' sid='{sid}' xmlns='{}'>{document}</body>",
                rid + 1,
                common::bosh::HTTPBIND
            );
            connection.send(&url.post(CONTENT_TYPE, &text)).await?;
            let body = Body::of(&connection.prompt_answer().await?)?;
            body.expect_terminate(Some("policy-violation"))
        });
        if attackers.len() >= 50 {
            attackers.join_next().await.context("one of them")???;
        }
    }
    while let Some(done) = attackers.join_next().await {
        done??;
    }
    Ok(format!("{clients} told policy-violation"))
}

/// Clients that are logged in, a fifth over BOSH, and read nothing while one of their kind writes to
/// all of them.
async fn deaf_clients(target: &Target, clients: usize) -> Result<String> {
    let account = target.server.account();
    let mut deaf = Vec::new();
    for n in 0..clients {
        let client = match n % 5 {
            0 if n < 40 => {
                let url = target.gateway.url(Transport::Bosh);
                let endpoint = Endpoint { url, transport: Transport::Bosh };
                Client::online(&endpoint, &account).await?
            }
            _ => {
                let stream = connect(address(n), target.gateway.listen(), Some(4096)).await;
                let stream = stream.context("not taken")?;
                let socket = Socket::request_over(stream, upgrade(target).as_bytes()).await?;
                let mut client = Client::over(socket.map_err(|refused| anyhow!(refused.head))?);
                client.open(&account.domain).await?;
                let logged_in =
                    client.authenticate(Mechanism::Plain, &account.name, &account.password).await?;
                ensure!(logged_in.is_ok(), "{logged_in:?}");
                client.open(&account.domain).await?;
                client.bind(None).await?;
                client
            }
        };
        deaf.push(client);
    }
    let jids: Vec<_> = deaf.iter().map(|client| client.jid.clone()).collect();
    let stream = connect(address(60_000), target.gateway.listen(), None).await;
    let socket =
        Socket::request_over(stream.context("not taken")?, upgrade(target).as_bytes()).await?;
    let mut flooder = Client::over(socket.map_err(|refused| anyhow!(refused.head))?);
    flooder.open(&account.domain).await?;
    let logged_in =
        flooder.authenticate(Mechanism::Plain, &account.name, &account.password).await?;
    ensure!(logged_in.is_ok(), "{logged_in:?}");
    flooder.open(&account.domain).await?;
    flooder.bind(None).await?;
    let text = "f".repeat(20_000);
    let (mut bounced, mut sent) = (0, 0);
    // Four megabytes for each: more than the sockets on the way hold.
    for _ in 0..200 {
        for jid in &jids {
            flooder.message(jid, &text).await?;
            sent += 1;
            while let Ok(event) =
                timeout(Duration::from_micros(10), flooder.event_patiently()).await
            {
                match event? {
                    Event::Element(_) => bounced += 1,
                    other => bail!("{other}"),
                }
            }
        }
    }
    flooder.cut()?;
    let held = target.gateway.total("bosphorus_sessions_held_bytes")?;
    // They hang on until the gateway has had enough of them.
    let begun = now();
    while target.gateway.total("bosphorus_sessions_held_bytes")? > 64.0 * 1024.0
        && begun.elapsed() < RECOVERY
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(deaf);
    Ok(format!("{sent} messages to them, {bounced} came back, {:.1} MiB held", held / 1_048_576.0))
}

#[expect(clippy::disallowed_methods, reason = "tests are the shell of their own clock")]
fn now() -> Instant {
    Instant::now()
}

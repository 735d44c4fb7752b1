//! What a hostile peer can make one session hold: whatever is sent, or not read, the gateway's
//! memory grows by no more than its configured bounds.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::client::{Client, Endpoint, Mechanism, Transport};
use common::gateway::Gateway;
use common::socket::{Received, Socket, frame, opcode};
use common::{PATIENCE, Result, block_on, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

const DOMAIN: &str = "limits.test";
const FLOOD: usize = 100 << 20;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// `limits.pending_bytes` and `limits.element_bytes`, as the configuration below sets them.
const PENDING: u64 = 1 << 20;
const ELEMENT: u64 = 256 << 10;

/// What a session may cost at the worst: a full queue in each direction and an element in each.
/// The working buffers that the sessions of a thread share are in there, too.
const BOUND: u64 = 2 * (PENDING + ELEMENT);

/// SEC-17, WS-45: a client that never reads stops the server's flood, costs no more than the
/// bounds, and is ended as lost.
#[test]
fn a_client_that_never_reads_costs_no_more_than_the_bounds() -> Result {
    block_on(async {
        let server = Fake::start(After::Flood).await?;
        let gateway = gateway(&server, "")?;
        let client = login(&gateway).await?;
        let memory = Memory::before(&gateway)?;
        server.begin.notify_one();
        server.ended("the end of a session whose client takes nothing").await?;
        let written = server.bytes.load(Ordering::SeqCst);
        memory.report("client that never reads", &format!("server sent {} KiB", written / 1024))?;
        ensure!(written < FLOOD as u64, "the server could send all of its flood");
        ensure!(!server.footer.load(Ordering::SeqCst), "WS-37: the stream was ended cleanly");
        stalled(&gateway).await?;
        drop(client);
        Ok(())
    })
}

/// WS-40: a ping waits behind what the client is still taking, so that a slow client, whose socket
/// goes on taking bytes, is not a silent one.
#[test]
fn a_client_that_reads_slowly_is_not_silent() -> Result {
    block_on(async {
        let server = Fake::start(After::Flood).await?;
        let gateway = gateway(&server, "ping_interval = \"500ms\"\n")?;
        let mut client = login(&gateway).await?;
        server.begin.notify_one();
        for _ in 0..50 {
            for _ in 0..100 {
                client.socket().receive().await?;
            }
            ensure!(!server.gone.load(Ordering::SeqCst), "the session was ended");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    })
}

/// SEC-17: a server that never reads stops the client's flood, and costs no more than the bounds.
#[test]
fn a_server_that_never_reads_costs_no_more_than_the_bounds() -> Result {
    block_on(async {
        let server = Fake::start(After::Deafness).await?;
        let gateway = gateway(&server, "")?;
        let mut client = login(&gateway).await?;
        let memory = Memory::before(&gateway)?;
        let stanza = frame(true, opcode::TEXT, message().as_bytes(), Some(MASK));
        let sent = flood(client.socket(), &stanza.repeat(64), FLOOD).await;
        memory.report("server that never reads", &format!("client sent {} KiB", sent / 1024))?;
        ensure!(sent < FLOOD, "the client could send all of its flood");
        stalled(&gateway).await
    })
}

/// WS-41, SEC-17: pings are answered, so a client that reads no pongs is not read either.
#[test]
fn unread_pongs_cost_no_more_than_the_bounds() -> Result {
    block_on(async {
        let server = Fake::start(After::Silence).await?;
        let gateway = gateway(&server, "")?;
        let mut client = login(&gateway).await?;
        let memory = Memory::before(&gateway)?;
        let ping = frame(true, opcode::PING, &[b'x'; 125], Some(MASK));
        let sent = flood(client.socket(), &ping.repeat(500), FLOOD).await;
        memory.report("client that reads no pongs", &format!("client sent {} KiB", sent / 1024))?;
        ensure!(sent < FLOOD, "the client could send all of its flood");
        Ok(())
    })
}

/// SEC-17: a server that stops reading for a while, and the client behind it, lose nothing and go on.
#[test]
fn a_server_that_pauses_gets_everything() -> Result {
    const TOTAL: usize = 24 << 20;
    block_on(async {
        let server = Fake::start(After::Pause).await?;
        let gateway = gateway_with(&server, "", 60)?;
        let mut client = login(&gateway).await?;
        let stanzas = frame(true, opcode::TEXT, message().as_bytes(), Some(MASK)).repeat(64);
        let sent = AtomicU64::new(0);
        let sending = async {
            for _ in 0..TOTAL / stanzas.len() {
                client.socket().send_raw(&stanzas).await?;
                sent.fetch_add(1, Ordering::SeqCst);
            }
            anyhow::Ok(())
        };
        let pausing = async {
            stuck(&sent).await;
            server.begin.notify_one();
            anyhow::Ok(())
        };
        tokio::try_join!(sending, pausing)?;
        let all = (TOTAL / stanzas.len() * 64 * 1000) as u64;
        eventually("all stanzas at the server", async || {
            (server.bytes.load(Ordering::SeqCst) >= all).then_some(())
        })
        .await
    })
}

/// SEC-17: a client that stops reading for a while gets everything.
#[test]
fn a_client_that_pauses_gets_everything() -> Result {
    block_on(async {
        let server = Fake::start(After::Flood).await?;
        let gateway = gateway_with(&server, "", 60)?;
        let mut client = login(&gateway).await?;
        server.begin.notify_one();
        stuck(&server.bytes).await;
        let mut received = 0;
        while received < FLOOD / 4 {
            match client.socket().receive().await? {
                Received::Text(text) => received += text.len(),
                Received::Ping(_) | Received::Pong(_) => {}
                other => bail!("{other:?} after {received} bytes"),
            }
        }
        Ok(())
    })
}

/// Waits until the session has ended at `limits.stall_timeout`, and is counted by that alone.
async fn stalled(gateway: &Gateway) -> Result {
    let hits = "bosphorus_limit_hits_total";
    eventually("the end, counted by its key", async || {
        (gateway.metric(&format!("{hits}{{limit=\"stall_timeout\"}}")).ok()? == 1.0).then_some(())
    })
    .await?;
    ensure!(gateway.total(hits)? == 1.0, "more than one limit was counted");
    Ok(())
}

/// Waits until a count has begun and moves no more.
async fn stuck(count: &AtomicU64) {
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = count.load(Ordering::SeqCst);
        if now > 0 && now == last {
            return;
        }
        last = now;
    }
}

/// What a large message took is given back once it is gone, though the session stays.
#[test]
fn an_idle_session_gives_its_buffers_back() -> Result {
    const SESSIONS: usize = 40;
    block_on(async {
        let server = Fake::start(After::Silence).await?;
        let gateway = gateway(&server, "")?;
        let mut clients = Vec::new();
        for _ in 0..SESSIONS {
            clients.push(login(&gateway).await?);
        }
        let before = resident(&gateway, "VmRSS:")?;
        let body = "x".repeat(200_000);
        for client in &mut clients {
            client
                .send(&format!("<message xmlns=\"jabber:client\"><body>{body}</body></message>"))
                .await?;
        }
        let all = (SESSIONS * body.len()) as u64;
        eventually("all messages at the server", async || {
            (server.bytes.load(Ordering::SeqCst) >= all).then_some(())
        })
        .await?;
        // What the last of them took is given back after the server has it.
        let grown = eventually("no more memory than one session at a time needs", async || {
            let grown = resident(&gateway, "VmRSS:").ok()?.saturating_sub(before) / 1024;
            (grown <= BOUND / 1024).then_some(grown)
        })
        .await?;
        say(&format!("{SESSIONS} sessions idle after 200 kB each: memory grew by {grown} KiB"))
    })
}

/// WS-44: a frame that announces 300 MB is refused from its header.
#[test]
fn a_frame_of_300_mb_costs_nothing() -> Result {
    const DECLARED: usize = 300 << 20;
    block_on(async {
        let server = Fake::start(After::Silence).await?;
        let gateway = gateway(&server, "")?;
        let mut client = login(&gateway).await?;
        let memory = Memory::before(&gateway)?;
        let mut head = vec![0x81, 0xff];
        head.extend((DECLARED as u64).to_be_bytes());
        head.extend(MASK);
        head.resize(16 << 10, b'x');
        client.socket().send_raw(&head).await?;
        expect_too_big(client.socket()).await?;
        let sent = flood(client.socket(), &[b'x'; 64 << 10], DECLARED).await;
        memory.report("frame of 300 MB", &format!("client sent {} KiB of it", sent / 1024))?;
        ensure!(sent < DECLARED / 4, "the gateway went on reading: {sent} bytes");
        Ok(())
    })
}

/// WS-09, WS-44: a million one-byte fragments end at the limit of fragments.
#[test]
fn a_million_fragments_end_at_the_limit_of_fragments() -> Result {
    fragments("one-byte fragments", b"x", "", 100)
}

/// WS-09, WS-44: where more fragments are allowed, they end at the limit of bytes.
#[test]
fn a_million_fragments_end_at_the_limit_of_bytes() -> Result {
    fragments("one-byte fragments, no limit", b"x", "max_fragments = 2000000\n", ELEMENT as usize)
}

/// WS-09: empty fragments are fragments.
#[test]
fn a_million_empty_fragments_end_at_the_limit_of_fragments() -> Result {
    fragments("empty fragments", b"", "", 100)
}

/// `enough` fragments are refused; the client sends the rest of its million all the same.
fn fragments(what: &str, payload: &[u8], ws: &str, enough: usize) -> Result {
    const COUNT: usize = 1_000_000;
    block_on(async {
        let server = Fake::start(After::Silence).await?;
        let gateway = gateway(&server, ws)?;
        let mut client = login(&gateway).await?;
        let memory = Memory::before(&gateway)?;
        let socket = client.socket();
        socket.send_frame(false, opcode::TEXT, b"<message>").await?;
        let one = frame(false, opcode::CONTINUATION, payload, Some(MASK));
        socket.send_raw(&one.repeat(enough)).await?;
        expect_too_big(socket).await?;
        let sent = flood(socket, &one.repeat(1000), (COUNT - enough) * one.len()).await;
        let frames = enough + sent / one.len();
        memory.report(what, &format!("{frames} frames went out"))
    })
}

/// WS-44: the error of a message that is too big, then the Close with 1009.
async fn expect_too_big(socket: &mut Socket) -> Result {
    let mut said = String::new();
    loop {
        match socket.receive().await? {
            Received::Text(text) => said += &text,
            Received::Close(code, _) => {
                ensure!(code == Some(1009), "closed with {code:?}");
                ensure!(said.contains("policy-violation"), "no policy-violation in {said}");
                return Ok(());
            }
            Received::Ping(_) | Received::Pong(_) => {}
            other => bail!("{other:?} instead of a Close"),
        }
    }
}

/// Writes `bytes` over and over until `most` bytes are out, the connection ends, or nothing is
/// taken any more for a second. Returns how many went out.
async fn flood(socket: &mut Socket, bytes: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        match timeout(Duration::from_secs(1), socket.send_raw(bytes)).await {
            Ok(Ok(())) => sent += bytes.len(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    sent
}

/// A gateway that gives a socket 3 seconds to take something.
fn gateway(server: &Fake, ws: &str) -> Result<Gateway> {
    gateway_with(server, ws, 3)
}

fn gateway_with(server: &Fake, ws: &str, stall_timeout: u32) -> Result<Gateway> {
    Gateway::start(&format!(
        "[listen]\nworkers = 1\n[log]\nfilter = \"info\"\n[ws]\n{ws}\n\
         [limits]\npending_bytes = {PENDING}\nelement_bytes = {ELEMENT}\nstall_timeout = \"{stall_timeout}s\"\n\
         [domains.\"{DOMAIN}\"]\nservers = [\"xmpp://127.0.0.1:{}\"]\n",
        server.port
    ))
}

async fn login(gateway: &Gateway) -> Result<Client> {
    let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
    let mut client = Client::connect(&endpoint).await?;
    client.open(DOMAIN).await?;
    let accepted = client.authenticate(Mechanism::Plain, "user", "secret").await?;
    ensure!(accepted.is_ok(), "the fake server refused");
    client.open(DOMAIN).await?;
    client.bind(None).await?;
    Ok(client)
}

fn message() -> String {
    format!("<message xmlns=\"jabber:client\"><body>{}</body></message>", "x".repeat(1000))
}

/// The memory of a gateway around something that may cost some.
struct Memory<'a> {
    gateway: &'a Gateway,
    before: u64,
}

impl<'a> Memory<'a> {
    fn before(gateway: &'a Gateway) -> Result<Self> {
        // The kernel forgets the peak so far.
        std::fs::write(format!("/proc/{}/clear_refs", gateway.id()?), "5")?;
        let before = resident(gateway, "VmHWM:")?;
        Ok(Self { gateway, before })
    }

    /// Prints the growth of the peak, and fails if it is beyond the bound.
    fn report(&self, what: &str, how_far: &str) -> Result {
        let grown = resident(self.gateway, "VmHWM:")?.saturating_sub(self.before);
        let (grown, bound) = (grown / 1024, BOUND / 1024);
        say(&format!("{what}: {how_far}; memory grew by {grown} KiB at most (bound {bound} KiB)"))?;
        ensure!(grown <= bound, "{what}: {grown} KiB are more than {bound}");
        Ok(())
    }
}

/// Prints a line, also to where `tests/run` collects what it prints at its end.
fn say(line: &str) -> Result {
    println!("{line}");
    if let Some(directory) = std::env::var_os("BOSPHORUS_TABLES") {
        use std::io::Write as _;
        let path = std::path::Path::new(&directory).join("limits.table");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

/// A line of `/proc/PID/status`, in bytes.
fn resident(gateway: &Gateway, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", gateway.id()?))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    Ok(kib.with_context(|| format!("no {name}"))?.parse::<u64>()? * 1024)
}

/// What the server does once the client is logged in.
#[derive(Clone, Copy, PartialEq)]
enum After {
    /// Sends messages, from `begin` on, until nobody takes them.
    Flood,
    /// Reads nothing any more.
    Deafness,
    /// Reads nothing until `begin`, then all.
    Pause,
    /// Reads on and says nothing.
    Silence,
}

/// A server that accepts any login, and any number of clients.
struct Fake {
    port: u16,
    begin: Arc<Notify>,
    /// Bytes of the flood that were taken, or that were read after the login.
    bytes: Arc<AtomicU64>,
    gone: Arc<AtomicBool>,
    /// The stream was closed properly.
    footer: Arc<AtomicBool>,
}

impl Fake {
    async fn start(after: After) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let fake = Self {
            port: listener.local_addr()?.port(),
            begin: Arc::default(),
            bytes: Arc::default(),
            gone: Arc::default(),
            footer: Arc::default(),
        };
        let (begin, bytes) = (Arc::clone(&fake.begin), Arc::clone(&fake.bytes));
        let (gone, footer) = (Arc::clone(&fake.gone), Arc::clone(&fake.footer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (begin, bytes) = (Arc::clone(&begin), Arc::clone(&bytes));
                let (gone, footer) = (Arc::clone(&gone), Arc::clone(&footer));
                tokio::spawn(async move {
                    if let Ok(seen) = serve(stream, after, &begin, &bytes).await {
                        footer.store(seen, Ordering::SeqCst);
                    }
                    gone.store(true, Ordering::SeqCst);
                });
            }
        });
        Ok(fake)
    }

    async fn ended(&self, what: &str) -> Result {
        eventually(what, async || self.gone.load(Ordering::SeqCst).then_some(())).await
    }
}

/// One c2s stream to its end; whether the end was a clean one.
async fn serve(
    mut stream: TcpStream,
    after: After,
    begin: &Notify,
    bytes: &AtomicU64,
) -> Result<bool> {
    let mut read = Vec::new();
    for (start, end, answer) in [
        ("<stream:stream", ">", format!("{HEADER}{MECHANISMS}")),
        ("<auth", "</auth>", "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>".to_owned()),
        ("<stream:stream", ">", format!("{HEADER}{BIND}")),
    ] {
        until(&mut stream, &mut read, start, end).await?;
        stream.write_all(answer.as_bytes()).await?;
    }
    let request = until(&mut stream, &mut read, "<iq", "</iq>").await?;
    let id = request.split(" id=").nth(1).and_then(|rest| rest.split(['"', '\'']).nth(1));
    let id = id.context("no id in the bind request")?;
    let bind = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>u@limits.test/r</jid></bind>";
    stream.write_all(format!("<iq type='result' id='{id}'>{bind}</iq>").as_bytes()).await?;

    if after == After::Flood {
        timeout(PATIENCE, begin.notified()).await?;
        let chunk = message().repeat(16);
        while bytes.load(Ordering::SeqCst) < FLOOD as u64 {
            // Ends with an error when the gateway gives the session up.
            let Ok(taken) = stream.write(chunk.as_bytes()).await else { break };
            // A stanza cut short is continued: the flood is one well-formed stream.
            let rest = &chunk.as_bytes()[taken..];
            if stream.write_all(rest).await.is_err() {
                break;
            }
            bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
    }
    if after == After::Pause {
        timeout(PATIENCE, begin.notified()).await?;
    }
    if after == After::Deafness {
        // Not reading, but holding the connection, for as long as the test runs.
        std::future::pending::<()>().await;
    }
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        bytes.fetch_add(count as u64, Ordering::SeqCst);
        // The end is all that matters, and it may come in two reads.
        read.drain(..read.len().saturating_sub(FOOTER.len()));
        read.extend_from_slice(&buffer[..count]);
    }
    Ok(read.ends_with(FOOTER))
}

/// Reads through what begins with `start` and ends with `end`, and returns it.
async fn until(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    start: &str,
    end: &str,
) -> Result<String> {
    loop {
        let text = String::from_utf8_lossy(read);
        let from = text.find(start).unwrap_or(text.len());
        if let Some(length) = text[from..].find(end) {
            let taken = text[from..from + length + end.len()].to_owned();
            read.drain(..from + taken.len());
            return Ok(taken);
        }
        if stream.read_buf(read).await? == 0 {
            bail!("the gateway left before {end:?}");
        }
    }
}

const FOOTER: &[u8] = b"</stream:stream>";
const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='fake' from='limits.test' version='1.0'>";
const MECHANISMS: &str = "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
    <mechanism>PLAIN</mechanism></mechanisms></stream:features>";
const BIND: &str =
    "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>";

//! `bosphorus demo`: what it prints is true, nothing of it is reachable from elsewhere, it ends
//! when told; and its XMPP server does, through the gateway, what people try first.
#![cfg(feature = "demo")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use minidom::Element;

use common::client::{
    Client, Endpoint, Mechanism, Transport, bare, body_of, is_presence, ns, text_of,
};
use common::gateway::http_get;
use common::process::{Directory, Process, free_ports, tail, wait_ready};
use common::server::Account;
use common::{PATIENCE, Result, block_on};

const CARBONS: &str = "urn:xmpp:carbons:2";
const DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
const DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
const MUC: &str = "http://jabber.org/protocol/muc";
const MUC_USER: &str = "http://jabber.org/protocol/muc#user";
const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
const ROOM: &str = "room@rooms.localhost";

/// A running `bosphorus demo`.
struct Demo {
    process: Mutex<Process>,
    directory: Directory,
    /// What it printed.
    text: String,
}

impl Demo {
    /// Starts one and waits until it has printed everything.
    fn start(arguments: &[&str]) -> Result<Self> {
        let (mut process, directory) = spawn(arguments)?;
        let log = directory.join("output.log");
        wait_ready(&mut process, || tail(&log, usize::MAX).contains("Ctrl-C ends it."))
            .with_context(|| tail(&log, usize::MAX))?;
        let text = tail(&log, usize::MAX);
        Ok(Self { process: Mutex::new(process), directory, text })
    }

    /// One with ports of its own.
    fn private() -> Result<Self> {
        let [listen, admin] = free_ports()?.map(|port: u16| format!("127.0.0.1:{port}"));
        Self::start(&["--listen", &listen, "--admin", &admin])
    }

    /// The one that the tests of what the server does share.
    fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Demo, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Self::private().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|why| anyhow!("{why}"))
    }

    /// What it printed on the line that begins so.
    fn printed(&self, name: &str) -> Result<&str> {
        let lines = self.text.lines().map(str::trim);
        let found = lines.filter_map(|line| line.strip_prefix(name)).next();
        found.map(str::trim).with_context(|| format!("no line {name:?} in:\n{}", self.text))
    }

    fn endpoint(&self) -> Result<Endpoint> {
        Ok(Endpoint { url: self.printed("WebSocket")?.to_owned(), transport: Transport::Ws })
    }

    async fn online(&self, name: &str) -> Result<Client> {
        Client::online(&self.endpoint()?, &account(name)).await
    }

    fn process(&self) -> Result<MutexGuard<'_, Process>> {
        self.process.lock().map_err(|_| anyhow!("a test panicked here"))
    }
}

fn spawn(arguments: &[&str]) -> Result<(Process, Directory)> {
    let directory = Directory::new("demo")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
    command.arg("demo").args(arguments);
    let process = Process::spawn(command, &directory, "output.log")?;
    Ok((process, directory))
}

/// Runs one that is not to come up: its exit status and what it said.
fn refused(arguments: &[&str]) -> Result<(ExitStatus, String)> {
    let (mut process, directory) = spawn(arguments)?;
    let status = process.wait(PATIENCE)?;
    Ok((status, tail(&directory.join("output.log"), usize::MAX)))
}

fn account(name: &str) -> Account {
    Account { name: name.to_owned(), domain: "localhost".to_owned(), password: name.to_owned() }
}

fn get(url: &str) -> Result<(u16, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("not an http: URL: {url}"))?;
    let (authority, path) = rest.split_once('/').context("no path")?;
    http_get(authority.parse()?, &format!("/{path}"))
}

/// The passwords are no secrets, so that any page might log in: only those of the demo may.
#[test]
fn pages_from_elsewhere_are_refused() -> Result {
    use std::io::{Read, Write};
    let demo = Demo::shared()?;
    let page = demo.printed("Page")?.trim_end_matches('/');
    let address = page.strip_prefix("http://").context("no address")?;
    let port = address.rsplit(':').next().context("no port")?;
    let path = |name| -> Result<String> {
        let (_, path) = demo.printed(name)?.split_once(address).context("another address")?;
        Ok(path.to_owned())
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: xmpp\r\n\r\n";
    let body = "<body xmlns='http://jabber.org/protocol/httpbind' rid='1' to='localhost' \
                content='text/xml; charset=utf-8' hold='0' wait='0' ver='1.6'/>";
    let length = body.len();
    let post = format!("Content-Type: text/xml\r\nContent-Length: {length}\r\n\r\n{body}");
    let requests = [("GET", path("WebSocket")?, upgrade), ("POST", path("BOSH")?, post.as_str())];
    for (method, path, rest) in requests {
        for (origin, allowed) in [
            (None, true),
            (Some(page), true),
            (Some(&*format!("http://localhost:{port}")), true),
            (Some("http://elsewhere.example"), false),
            (Some("null"), false),
        ] {
            let origin = origin.map(|it| format!("Origin: {it}\r\n")).unwrap_or_default();
            let mut socket = std::net::TcpStream::connect(address)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{origin}");
            socket.write_all(format!("{head}{rest}").as_bytes())?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte)?;
                head.extend(byte);
            }
            let answer = String::from_utf8_lossy(&head).to_ascii_lowercase();
            // A browser shows a page no answer that does not name it.
            let passes = match method {
                "POST" => origin.is_empty() || answer.contains("access-control-allow-origin: http"),
                _ => answer.starts_with("http/1.1 101"),
            };
            ensure!(passes == allowed, "{method} {path} {origin}: {answer}");
        }
    }
    Ok(())
}

/// Well under a second from the command to a page that answers, so that nobody wonders whether it
/// works; the bound leaves room for a busy machine and a binary that was not optimised.
#[test]
fn what_is_printed_answers() -> Result {
    #[expect(clippy::disallowed_methods, reason = "the time of a start is what is measured")]
    let begin = Instant::now();
    let demo = Demo::private()?;
    let (status, page) = get(demo.printed("Page")?)?;
    let elapsed = begin.elapsed();
    println!("from the start to the page: {elapsed:?}");
    ensure!(elapsed < Duration::from_secs(3), "the page was there after {elapsed:?}");
    ensure!(status == 200 && !page.is_empty(), "the page answered {status}");
    let (status, metrics) = get(demo.printed("Metrics")?)?;
    ensure!(status == 200 && metrics.contains("bosphorus_"), "the metrics answered {status}");
    let server = demo.printed("XMPP server")?.split(' ').next().context("no address")?;
    std::net::TcpStream::connect(server).context("the XMPP server")?;
    block_on(async {
        let mut alice = demo.online("alice").await?;
        alice.request("get", Some("localhost"), &format!("<ping xmlns=\"{}\"/>", ns::PING)).await?;
        Ok(())
    })?;
    // A page is no reason to answer what is nowhere.
    let nowhere = demo.printed("Page")?.to_owned() + "nowhere";
    ensure!(get(&nowhere)?.0 == 404);
    let log = tail(&demo.directory.join("output.log"), usize::MAX);
    ensure!(log == demo.text, "more was printed than the introduction:\n{log}");
    Ok(())
}

/// SEC-23, and more: no socket of the process listens anywhere but on loopback.
#[test]
fn every_listener_is_on_loopback() -> Result {
    let demo = Demo::private()?;
    let id = demo.process()?.id();
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{id}/fd"))? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if let Some(inode) = target.strip_prefix("socket:[") {
            sockets.push(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut listening = 0;
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{id}/net/{table}"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, .., _] = fields[..] else { continue };
            let ours = fields.get(9).is_some_and(|inode| sockets.iter().any(|own| own == inode));
            if state == "0A" && ours {
                listening += 1;
                let loopback = ["0100007F:", "00000000000000000000000001000000:"];
                let is_loopback = loopback.iter().any(|prefix| local.starts_with(prefix));
                ensure!(is_loopback, "{table} listens on {local}");
            }
        }
    }
    ensure!(listening == 3, "{listening} listeners: the page, the metrics, the server");
    let udp = std::fs::read_to_string(format!("/proc/{id}/net/udp"))?;
    let inodes = udp.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9));
    ensure!(!inodes.into_iter().any(|inode| sockets.iter().any(|own| own == inode)), "UDP");
    Ok(())
}

/// Ctrl-C, and what a service manager sends: the sessions are told, the exit status is 0.
#[test]
fn a_signal_ends_it() -> Result {
    for signal in ["INT", "TERM"] {
        let demo = Demo::private()?;
        let status = block_on(async {
            let mut alice = demo.online("alice").await?;
            demo.process()?.signal(signal)?;
            let ending = alice.ending().await?;
            ensure!(ending.condition.as_deref() == Some("system-shutdown"), "{ending:?}");
            ensure!(ending.closed, "{ending:?}");
            demo.process()?.wait(PATIENCE)
        })?;
        ensure!(status.code() == Some(0), "SIG{signal}: {status}");
    }
    Ok(())
}

#[test]
fn other_addresses_than_loopback_are_refused() -> Result {
    for address in ["0.0.0.0:5280", "[::]:5280", "192.0.2.1:5280", "[::ffff:192.0.2.1]:0"] {
        for flag in ["--listen", "--admin"] {
            let (status, text) = refused(&[flag, address])?;
            ensure!(status.code() == Some(2), "{flag} {address}: {status}");
            ensure!(text.contains("is not a loopback address"), "{text}");
        }
    }
    let (status, _) = refused(&["--listen", "5280"])?;
    ensure!(status.code() == Some(2), "{status}");
    Ok(())
}

/// A port that was asked for is meant; a default is a proposal.
#[test]
fn a_taken_port_is_an_error_only_if_it_was_asked_for() -> Result {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = taken.local_addr()?.to_string();
    let (status, text) = refused(&["--listen", &address])?;
    ensure!(status.code() == Some(1), "{status}");
    ensure!(text.contains(&format!("listening on {address}")), "{text}");

    // Should somebody else have it, that is as good.
    let _default = TcpListener::bind((Ipv4Addr::LOCALHOST, 5280));
    let demo = Demo::start(&["--admin", "127.0.0.1:0"])?;
    ensure!(demo.text.contains("Port 5280 is taken"), "{}", demo.text);
    let page: SocketAddr =
        demo.printed("Page")?.trim_start_matches("http://").trim_end_matches('/').parse()?;
    ensure!(page.port() != 5280 && page.port() != 0, "{page}");
    ensure!(get(demo.printed("Page")?)?.0 == 200);
    Ok(())
}

#[test]
fn the_password_is_the_name() -> Result {
    block_on(async {
        let endpoint = Demo::shared()?.endpoint()?;
        for mechanism in [Mechanism::Plain, Mechanism::ScramSha1, Mechanism::ScramSha256] {
            let mut client = Client::connect(&endpoint).await?;
            client.open("localhost").await?;
            let refused = client.authenticate(mechanism, "password", "other").await?;
            ensure!(refused == Err("not-authorized".to_owned()), "{refused:?}");
            let accepted = client.authenticate(mechanism, "password", "password").await?;
            ensure!(accepted == Ok(()), "{accepted:?}");
        }
        Ok(())
    })
}

/// After five failures the stream ends (RFC 6120 §6.4.5 leaves the number to the server).
#[test]
fn failures_are_limited() -> Result {
    block_on(async {
        let mut client = Client::connect(&Demo::shared()?.endpoint()?).await?;
        client.open("localhost").await?;
        for _ in 0..5 {
            let refused = client.authenticate(Mechanism::Plain, "failing", "wrong").await?;
            ensure!(refused.is_err());
        }
        let ending = client.ending().await?;
        ensure!(ending.condition.as_deref() == Some("policy-violation"), "{ending:?}");
        Ok(())
    })
}

/// RFC 4505: a name of its own, and a session like any.
#[test]
fn the_anonymous_come_in() -> Result {
    async fn anonymous(endpoint: &Endpoint) -> Result<Client> {
        let mut client = Client::connect(endpoint).await?;
        client.open("localhost").await?;
        ensure!(client.mechanisms().iter().any(|it| it == "ANONYMOUS"));
        client
            .send(&format!("<auth xmlns=\"{}\" mechanism=\"ANONYMOUS\">=</auth>", ns::SASL))
            .await?;
        client.expect("<success/>", |element| element.is("success", ns::SASL)).await?;
        client.open("localhost").await?;
        client.bind(None).await?;
        client.available().await?;
        Ok(client)
    }
    block_on(async {
        let endpoint = Demo::shared()?.endpoint()?;
        let (mut one, mut two) = (anonymous(&endpoint).await?, anonymous(&endpoint).await?);
        ensure!(bare(&one.jid) != bare(&two.jid));
        one.message(&two.jid, "who are you?").await?;
        ensure!(two.body().await? == "who are you?");
        Ok(())
    })
}

/// RFC 6120 §7.7.2.2: the resource goes to the newcomer.
#[test]
fn a_resource_that_is_taken_changes_hands() -> Result {
    block_on(async {
        let endpoint = Demo::shared()?.endpoint()?;
        let who = account("twice");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = Client::authenticated(&endpoint, &who, Mechanism::Plain).await?;
            client.bind(Some("same")).await?;
            clients.push(client);
        }
        let ending = clients[0].ending().await?;
        ensure!(ending.condition.as_deref() == Some("conflict"), "{ending:?}");
        clients[1].message("twice@localhost/same", "still here").await?;
        ensure!(clients[1].body().await? == "still here");
        Ok(())
    })
}

/// Who logs in for the first time meets everyone who was there before, and the echo.
#[test]
fn everyone_is_everyone_s_contact() -> Result {
    block_on(async {
        let demo = Demo::private()?;
        let mut alice = demo.online("alice").await?;
        alice.expect("the echo", |it| is_presence(it, "echo@localhost", None)).await?;
        let mut bob = demo.online("bob").await?;
        let push = alice
            .expect("the push of bob", |it| {
                it.attr("type") == Some("set") && it.has_child("query", ns::ROSTER)
            })
            .await?;
        ensure!(text_of(&push).contains("bob@localhost"), "{}", text_of(&push));
        alice.expect("bob", |it| is_presence(it, "bob@localhost", None)).await?;
        bob.expect("alice", |it| is_presence(it, "alice@localhost", None)).await?;
        let query = format!("<query xmlns=\"{}\"/>", ns::ROSTER);
        let roster = bob.request("get", None, &query).await?;
        let items: Vec<&str> = roster
            .get_child("query", ns::ROSTER)
            .into_iter()
            .flat_map(Element::children)
            .filter(|item| item.attr("subscription") == Some("both"))
            .filter_map(|item| item.attr("jid"))
            .collect();
        ensure!(items == ["alice@localhost", "echo@localhost"], "{items:?}");
        Ok(())
    })
}

#[test]
fn the_echo_repeats_what_it_is_told() -> Result {
    block_on(async {
        let mut client = Demo::shared()?.online("echoing").await?;
        client.message("echo@localhost", "is <anybody> there?").await?;
        let answer = client.expect("the echo", |it| body_of(it).is_some()).await?;
        ensure!(body_of(&answer).as_deref() == Some("is <anybody> there?"));
        ensure!(answer.attr("from").map(bare) == Some("echo@localhost"), "{}", text_of(&answer));
        Ok(())
    })
}

/// XEP-0160, XEP-0203: kept in order, each once, and with the time.
#[test]
fn messages_wait_for_who_is_away() -> Result {
    block_on(async {
        let demo = Demo::shared()?;
        let mut writer = demo.online("writer").await?;
        for number in 0..3 {
            writer.message("away@localhost", &format!("letter {number}")).await?;
        }
        writer
            .request("get", Some("localhost"), &format!("<ping xmlns=\"{}\"/>", ns::PING))
            .await?;
        for round in 0..2 {
            let mut away = demo.online("away").await?;
            if round == 0 {
                for number in 0..3 {
                    let letter = away.expect("a letter", |it| body_of(it).is_some()).await?;
                    ensure!(body_of(&letter) == Some(format!("letter {number}")));
                    ensure!(letter.has_child("delay", "urn:xmpp:delay"), "{}", text_of(&letter));
                }
            }
            away.expect_none("a letter came twice", |it| body_of(it).is_some()).await?;
            away.quit().await?;
        }
        Ok(())
    })
}

/// XEP-0160, bounded: who fills the queue is told so.
#[test]
fn no_more_waits_than_there_is_room_for() -> Result {
    block_on(async {
        let mut writer = Demo::shared()?.online("flooder").await?;
        let before: u32 = writer.id().trim_start_matches('t').parse()?;
        for number in 0..101 {
            writer.message("nowhere@localhost", &format!("letter {number}")).await?;
        }
        let error = writer
            .expect("an error", |it| {
                it.is("message", ns::CLIENT) && it.attr("type") == Some("error")
            })
            .await?;
        let last = format!("t{}", before + 101);
        ensure!(error.attr("id") == Some(&last), "not the last: {}", text_of(&error));
        writer
            .expect_none("another error", |it| {
                it.is("message", ns::CLIENT) && it.attr("type") == Some("error")
            })
            .await
    })
}

/// RFC 6120 §6.4.6: after the login nothing is offered to log in with, not even an empty list.
#[test]
fn no_mechanisms_are_offered_after_the_login() -> Result {
    block_on(async {
        let client = Demo::shared()?.online("insider").await?;
        let features = client.features_text();
        ensure!(features.contains("bind") && !features.contains("mechanisms"), "{features}");
        Ok(())
    })
}

/// RFC 6120 §4.9.3.20: who is about to log in is told of the end, and does not delay it.
#[test]
fn who_is_about_to_log_in_is_told_of_the_end() -> Result {
    use std::io::{Read, Write};
    let demo = Demo::private()?;
    let server = demo.printed("XMPP server")?.split(' ').next().context("no address")?;
    let mut socket = std::net::TcpStream::connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(
        b"<stream:stream xmlns='jabber:client' to='localhost' version='1.0' \
          xmlns:stream='http://etherx.jabber.org/streams'>",
    )?;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("</stream:features>") {
        let mut piece = [0; 4096];
        let count = socket.read(&mut piece)?;
        ensure!(count > 0, "no features");
        answer.extend_from_slice(&piece[..count]);
    }
    demo.process()?.signal("TERM")?;
    let mut end = String::new();
    socket.read_to_string(&mut end)?;
    ensure!(end.contains("system-shutdown") && end.contains("</stream:stream>"), "{end}");
    drop(socket);
    let status = demo.process()?.wait(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// XEP-0280: one's other sessions see both sides of a talk, and only if they want to.
#[test]
fn carbons_show_a_talk_to_one_s_other_sessions() -> Result {
    block_on(async {
        let demo = Demo::shared()?;
        let mut one = demo.online("talker").await?;
        let mut two = demo.online("talker").await?;
        let mut deaf = demo.online("talker").await?;
        let mut friend = demo.online("friend").await?;
        let enable = format!("<enable xmlns=\"{CARBONS}\"/>");
        for client in [&mut one, &mut two] {
            client.request("set", None, &enable).await?;
        }
        one.message(&friend.jid, "hello").await?;
        ensure!(friend.body().await? == "hello");
        friend.message(&one.jid, "hello yourself").await?;
        ensure!(one.body().await? == "hello yourself");
        for (which, body) in [("sent", "hello"), ("received", "hello yourself")] {
            let copy = two.expect("a copy", |it| it.has_child(which, CARBONS)).await?;
            ensure!(copy.attr("from") == Some("talker@localhost"), "{}", text_of(&copy));
            let inner = copy
                .get_child(which, CARBONS)
                .and_then(|copy| copy.get_child("forwarded", "urn:xmpp:forward:0"))
                .and_then(|forwarded| forwarded.get_child("message", ns::CLIENT));
            ensure!(inner.and_then(body_of).as_deref() == Some(body), "{}", text_of(&copy));
        }
        let is_copy =
            |it: &Element| it.has_child("sent", CARBONS) || it.has_child("received", CARBONS);
        one.expect_none("a copy of one's own", is_copy).await?;
        two.expect_none("a copy too many", is_copy).await?;
        deaf.expect_none("an unwanted copy", is_copy).await?;
        friend.expect_none("a copy of another's", is_copy).await
    })
}

/// XEP-0045: come, talk, be renamed, go.
#[test]
fn a_room_has_occupants_and_a_memory() -> Result {
    async fn join(client: &mut Client, nick: &str) -> Result {
        client
            .send(&format!(
                "<presence xmlns=\"jabber:client\" to=\"{ROOM}/{nick}\"><x xmlns=\"{MUC}\"/></presence>"
            ))
            .await
    }
    fn status(presence: &Element, code: &str) -> bool {
        let user = presence.get_child("x", MUC_USER);
        user.is_some_and(|x| x.children().any(|child| child.attr("code") == Some(code)))
    }
    fn groupchat(body: &str) -> String {
        format!(
            "<message xmlns=\"jabber:client\" to=\"{ROOM}\" type=\"groupchat\">\
             <body>{body}</body></message>"
        )
    }
    block_on(async {
        let demo = Demo::shared()?;
        let (mut anna, mut bora) = (demo.online("anna").await?, demo.online("bora").await?);
        join(&mut anna, "Anna").await?;
        anna.expect("oneself", |it| {
            it.attr("from") == Some("room@rooms.localhost/Anna") && status(it, "110")
        })
        .await?;
        anna.expect("the subject", |it| it.has_child("subject", ns::CLIENT)).await?;
        anna.send(&groupchat("first")).await?;
        ensure!(anna.body().await? == "first", "one hears oneself");

        join(&mut bora, "Anna").await?;
        let refused = bora.expect("a refusal", |it| is_presence(it, ROOM, Some("error"))).await?;
        ensure!(text_of(&refused).contains("conflict"), "{}", text_of(&refused));
        join(&mut bora, "Bora").await?;
        bora.expect("anna", |it| it.attr("from") == Some("room@rooms.localhost/Anna")).await?;
        bora.expect("oneself", |it| status(it, "110")).await?;
        let past = bora.expect("the past", |it| body_of(it).is_some()).await?;
        ensure!(body_of(&past).as_deref() == Some("first"), "{}", text_of(&past));
        ensure!(past.has_child("delay", "urn:xmpp:delay"), "{}", text_of(&past));
        anna.expect("bora", |it| it.attr("from") == Some("room@rooms.localhost/Bora")).await?;

        bora.send(&format!("<presence xmlns=\"jabber:client\" to=\"{ROOM}/Bahar\"/>")).await?;
        anna.expect("bora's new name", |it| {
            it.attr("from") == Some("room@rooms.localhost/Bora") && status(it, "303")
        })
        .await?;
        anna.message("room@rooms.localhost/Bahar", "between us").await?;
        let secret = bora.expect("a private message", |it| body_of(it).is_some()).await?;
        ensure!(secret.attr("from") == Some("room@rooms.localhost/Anna"), "{}", text_of(&secret));
        // A lost connection leaves, too.
        bora.cut()?;
        anna.expect("bora's end", |it| {
            is_presence(it, "room@rooms.localhost/Bahar", Some("unavailable")) && !status(it, "303")
        })
        .await?;
        Ok(())
    })
}

/// XEP-0030, XEP-0092, XEP-0199: what clients ask first; and RFC 6120 §8.3 for the rest.
#[test]
fn questions_are_answered() -> Result {
    block_on(async {
        let mut client = Demo::shared()?.online("curious").await?;
        let query = |xmlns: &str| format!("<query xmlns=\"{xmlns}\"/>");
        let items = client.request("get", Some("localhost"), &query(DISCO_ITEMS)).await?;
        ensure!(text_of(&items).contains("rooms.localhost"), "{}", text_of(&items));
        let rooms = client.request("get", Some("rooms.localhost"), &query(DISCO_ITEMS)).await?;
        ensure!(text_of(&rooms).contains(ROOM), "{}", text_of(&rooms));
        for (to, feature) in [("localhost", CARBONS), (ROOM, MUC), ("echo@localhost", ns::PING)] {
            let info = client.request("get", Some(to), &query(DISCO_INFO)).await?;
            ensure!(text_of(&info).contains(feature), "{}", text_of(&info));
        }
        client.request("get", Some("localhost"), &query("jabber:iq:version")).await?;
        let session = format!("<session xmlns=\"{SESSION}\"/>");
        for to in [None, Some("localhost")] {
            client.request("set", to, &session).await?;
        }
        for (to, payload, condition) in [
            ("localhost", query("urn:example:unknown"), "service-unavailable"),
            ("nobody@localhost", query(DISCO_INFO), "service-unavailable"),
            ("example.org", query(DISCO_INFO), "remote-server-not-found"),
            ("other@rooms.localhost", query(DISCO_INFO), "item-not-found"),
            ("localhost", query("urn:a") + &query("urn:b"), "bad-request"),
            ("@localhost", query(DISCO_INFO), "jid-malformed"),
        ] {
            let error = client.request_any("get", Some(to), &payload).await?;
            let text = text_of(&error);
            ensure!(
                error.attr("type") == Some("error") && text.contains(condition),
                "{to}: {text}"
            );
        }
        Ok(())
    })
}

/// Directly, as no gateway stands between: what no gateway would pass is survived.
#[test]
fn broken_input_ends_the_stream_and_nothing_else() -> Result {
    use std::io::{Read, Write};
    let demo = Demo::shared()?;
    let server = demo.printed("XMPP server")?.split(' ').next().context("no address")?;
    let header = "<stream:stream xmlns='jabber:client' to='localhost' version='1.0' \
                  xmlns:stream='http://etherx.jabber.org/streams'>";
    let deep = "<a xmlns='urn:x'>".repeat(500);
    let large = format!("<auth xmlns='{}'>{}", ns::SASL, "A".repeat(64 * 1024));
    for (input, expected) in [
        ("<a></b>", "not-well-formed"),
        ("<!DOCTYPE a>", "not-well-formed"),
        ("text", "not-well-formed"),
        ("<iq type='get' id='1'/>", "not-authorized"),
        (&*large, "policy-violation"),
        (&*(deep.clone() + &"</a>".repeat(500)), "policy-violation"),
        ("</stream:stream>", "</stream:stream>"),
    ] {
        let mut socket = std::net::TcpStream::connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(header.as_bytes())?;
        // It may have hung up before all of it is written.
        let _ = socket.write_all(input.as_bytes());
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.contains(expected), "{input:.40}: {answer} ({read:?})");
    }
    for (header, expected) in [
        (header.replace("localhost", "example.org"), Some("host-unknown")),
        // What is no stream header gets no answer, but an end.
        ("<html/>".to_owned(), None),
        ("<stream:stream>".to_owned(), None),
    ] {
        let mut socket = std::net::TcpStream::connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(header.as_bytes())?;
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let right = match expected {
            Some(condition) => answer.contains(condition),
            None => answer.is_empty() && matches!(read, Ok(0)),
        };
        ensure!(right, "{header}: {answer} ({read:?})");
    }
    if let Some(status) = demo.process()?.try_wait()? {
        bail!("the demo ended: {status}");
    }
    // The server lives on a thread: only a login shows that it is there.
    block_on(async { demo.online("survivor").await.map(drop) })
}

//! SEC-17: one memory budget for all sessions. Clients that read nothing are flooded by a server that
//! the test plays; those that hold most are ended, and nobody beside them notices.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use common::bosh::CONTENT_TYPE;
use common::client::{Client, Endpoint, Event, Mechanism, Transport, body_of, ns, text_of};
use common::gateway::Gateway;
use common::http::{Connection, Url};
use common::peer::Peer;
use common::scene::{BINDING, DOMAIN, FEATURES, FOOTER, HEADER, SUCCESS, Scene, message};
use common::server::Account;
use common::{PATIENCE, Result, block_on, eventually};

const MIB: f64 = 1_048_576.0;
const LIMIT: f64 = MIB;
/// Messages of the honest each way while a round lasts.
const HONEST: usize = 200;

/// SEC-17: without a budget all that are flooded hold what their own limits allow. A reload sets one:
/// those that hold most end at once, though nothing moves for them, and are told why; the others go
/// on where they were, and lose nothing. The same happens when the budget is exceeded later.
#[test]
fn the_largest_are_ended_for_all() {
    block_on(async {
        let peer = Peer::new().await?;
        let domain = peer.toml();
        let toml = |memory: &str| {
            format!(
                "[limits]\nmemory = {memory}\nstall_timeout = \"60s\"\n[bosh]\nzombie = \"60s\"\n\
                 [upstream]\nclose_grace = \"20s\"\n{domain}"
            )
        };
        let gateway = Gateway::start(&toml("0"))?;
        let flood = Arc::new(Flood::default());
        let serving = tokio::spawn(serve(peer, Arc::clone(&flood)));
        let honest = [Transport::Ws, Transport::Bosh];
        let mut honest = [
            log_in(&gateway, honest[0], "honest").await?,
            log_in(&gateway, honest[1], "honest").await?,
        ];
        echo(&mut honest, 0..20).await?;
        let mut before = f64::INFINITY;
        for round in 0..2 {
            let hits = gateway.metric("bosphorus_limit_hits_total{limit=\"memory\"}")?;
            let ended_before = ended_for_memory(&gateway)?;
            flood.stopped.store(false, Ordering::Release);
            let mut flooded = Vec::new();
            // Over BOSH each may hold a megabyte, over WebSocket little more than is read at a time.
            for n in 0..48 {
                let transport = if n % 8 == 0 { Transport::Bosh } else { Transport::Ws };
                flooded.push(log_in(&gateway, transport, "flooded").await?);
            }
            if round == 0 {
                // All that their own limits allow, and nobody minds.
                held(&gateway, |held| held > 7.0 * MIB).await?;
                ensure!(gateway.metric("bosphorus_limit_hits_total{limit=\"memory\"}")? == 0.0);
                gateway.write_config(&toml("\"1 MiB\""))?;
                gateway.signal("HUP")?;
            }
            eventually("sessions that are ended", async || {
                let now = gateway.metric("bosphorus_limit_hits_total{limit=\"memory\"}").ok()?;
                (now > hits).then_some(())
            })
            .await?;
            held(&gateway, |held| held <= LIMIT).await?;
            // Beside them all goes on, and the budget is kept to within what can still be underway.
            let from = 1000 * (round + 1);
            let watched = async {
                let mut most: f64 = 0.0;
                loop {
                    most = most.max(gateway.total("bosphorus_sessions_held_bytes")?);
                    ensure!(most < LIMIT + 3.0 * MIB, "{most} bytes are held");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                done = echo(&mut honest, from..from + HONEST) => done?,
                never = watched => never?,
            }
            flood.stopped.store(true, Ordering::Release);

            let mut ends = JoinSet::new();
            for client in flooded {
                ends.spawn(read_all(client));
            }
            let (mut ended, mut survived) = (0, 0);
            while let Some(end) = ends.join_next().await {
                match end?? {
                    End::Told => ended += 1,
                    End::Whole => survived += 1,
                }
            }
            // A session is counted when its server's side has ended, too.
            let now = eventually("the count of those that were ended", async || {
                let now = ended_for_memory(&gateway).ok()?;
                (now - ended_before >= f64::from(ended)).then_some(now)
            })
            .await?;
            println!("round {round}: {ended} were ended, {survived} went on");
            ensure!(
                ended as f64 == now - ended_before,
                "{ended} of {} were told",
                now - ended_before
            );
            ensure!(ended > 0 && survived > 0, "{ended} ended, {survived} survived");
            echo(&mut honest, from + HONEST..from + HONEST + 20).await?;
            let after = back(&gateway, before * 1.1).await?;
            println!("heap: {before} before, {after} after");
            // The first round has warmed what the workers keep for good.
            before = after;
            ensure!(before > 100_000.0, "the heap is not counted: {before}");
        }
        for client in honest {
            client.quit().await?;
        }
        held(&gateway, |held| held == 0.0).await?;
        serving.abort();
        Ok(())
    })
    .unwrap();
}

/// Sessions that were ended so far. (Who was refused is a hit, too.)
fn ended_for_memory(gateway: &Gateway) -> Result<f64> {
    let ended = |transport| {
        gateway.metric(&format!(
            "bosphorus_sessions_ended_total{{blame=\"client\",reason=\"memory\",transport=\"{transport}\"}}"
        ))
    };
    Ok(ended("websocket")? + ended("bosh")?)
}

async fn held(gateway: &Gateway, is_so: impl Fn(f64) -> bool) -> Result {
    eventually("the sum of what is held", async || {
        let held = gateway.total("bosphorus_sessions_held_bytes").ok()?;
        is_so(held).then_some(())
    })
    .await
    .with_context(|| gateway.total("bosphorus_sessions_held_bytes").unwrap_or(-1.0).to_string())
}

/// Waits until the heap is that small again.
async fn back(gateway: &Gateway, most: f64) -> Result<f64> {
    let waiting = async {
        loop {
            let live = gateway.metric("bosphorus_heap_live_bytes")?;
            if live <= most {
                return Ok(live);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited: Result<Result<f64>, _> = timeout(6 * PATIENCE, waiting).await;
    waited.with_context(|| {
        let live = gateway.metric("bosphorus_heap_live_bytes").unwrap_or(-1.0);
        format!("the heap is still at {live}, not {most}")
    })?
}

/// A client who comes again when there is no place for another.
async fn log_in(gateway: &Gateway, transport: Transport, name: &str) -> Result<Client> {
    let endpoint = Endpoint { url: gateway.url(transport), transport };
    let (name, domain, password) = (name.to_owned(), DOMAIN.to_owned(), "secret".to_owned());
    let account = Account { name, domain, password };
    let mut tries = 0;
    loop {
        match Client::login_with(&endpoint, &account, Mechanism::Plain).await {
            Err(refused) if format!("{refused:#}").contains("503") && tries < 200 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done => return done,
        }
    }
}

/// Each sends these messages and gets them back, in order and none else.
async fn echo(clients: &mut [Client; 2], numbers: std::ops::Range<usize>) -> Result {
    for number in numbers {
        for client in clients.iter_mut() {
            client.message("b@example.test/r", &number.to_string()).await?;
        }
        for client in clients.iter_mut() {
            let came = client.body().await?;
            ensure!(came == number.to_string(), "{came} instead of {number}");
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A stream error said why.
    Told,
    /// All came.
    Whole,
}

/// Reads what a flooded client was sent, in order and without a gap, to its end.
async fn read_all(mut client: Client) -> Result<End> {
    let mut next = 0;
    let reading = async {
        loop {
            match client.event_patiently().await? {
                Event::Element(element) if element.is("error", ns::STREAMS) => {
                    let told = element.has_child("resource-constraint", ns::STREAM_ERRORS);
                    ensure!(told, "{}", text_of(&element));
                    return Ok(End::Told);
                }
                Event::Element(element) => {
                    let body = body_of(&element).context("a message")?;
                    if body == "last" {
                        client.quit().await?;
                        return Ok(End::Whole);
                    }
                    let number: u64 = body.split(' ').next().unwrap_or_default().parse()?;
                    ensure!(number == next, "{number} instead of {next}");
                    next += 1;
                }
                other => bail!("{other} after {next} messages"),
            }
        }
    };
    timeout(3 * PATIENCE, reading).await.context("no end")?
}

/// Whether the flood has ended.
#[derive(Default)]
struct Flood {
    stopped: AtomicBool,
}

async fn serve(peer: Peer, flood: Arc<Flood>) {
    while let Ok((stream, _)) = peer.listener.accept().await {
        let flood = Arc::clone(&flood);
        tokio::spawn(async move {
            // It ends when the gateway does not want it any more.
            let _ = attend(stream, &flood).await;
        });
    }
}

/// Logs anybody in. Who is called `flooded` gets numbered messages without end, and one that says
/// that there are no more; others get their own messages back.
async fn attend(mut stream: TcpStream, flood: &Flood) -> Result {
    let mut input = String::new();
    until(&mut stream, &mut input, "<stream:stream").await?;
    until(&mut stream, &mut input, ">").await?;
    stream.write_all(format!("{HEADER}{FEATURES}").as_bytes()).await?;
    let auth = until(&mut stream, &mut input, "</auth>").await?;
    let secret = auth.rsplit_once("</auth>").and_then(|(head, _)| head.rsplit_once('>'));
    let secret = BASE64_STANDARD.decode(secret.context("a secret")?.1)?;
    let is_flooded = secret.split(|byte| *byte == 0).any(|part| part == b"flooded");
    stream.write_all(SUCCESS.as_bytes()).await?;
    until(&mut stream, &mut input, "<stream:stream").await?;
    until(&mut stream, &mut input, ">").await?;
    stream.write_all(format!("{HEADER}{BINDING}").as_bytes()).await?;
    let bind = until(&mut stream, &mut input, "</iq>").await?;
    let id = bind.split("id=\"").nth(1).and_then(|rest| rest.split('"').next()).context("an id")?;
    let bound = format!(
        "<iq type='result' id='{id}'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
         <jid>a@example.test/r</jid></bind></iq>"
    );
    stream.write_all(bound.as_bytes()).await?;
    if is_flooded {
        let (mut reading, mut writing) = stream.split();
        let writes = async {
            let filler = "x".repeat(4000);
            let mut number = 0_u64;
            while !flood.stopped.load(Ordering::Acquire) {
                let message = format!(
                    "<message from='b@example.test/r'><body>{number} {filler}</body></message>"
                );
                writing.write_all(message.as_bytes()).await?;
                number += 1;
                tokio::task::yield_now().await;
            }
            writing.write_all(b"<message><body>last</body></message>").await?;
            Ok(())
        };
        let reads = async {
            let mut chunk = [0; 16 * 1024];
            while let Ok(1..) = reading.read(&mut chunk).await {
                if chunk.windows(FOOTER.len()).any(|some| some == FOOTER.as_bytes()) {
                    break;
                }
            }
        };
        let (written, ()): (Result, ()) = tokio::join!(writes, reads);
        written?;
        stream.write_all(FOOTER.as_bytes()).await?;
        return Ok(());
    }
    loop {
        let mut said = until(&mut stream, &mut input, "</").await?;
        said += &until(&mut stream, &mut input, ">").await?;
        if said == FOOTER {
            stream.write_all(FOOTER.as_bytes()).await?;
            return Ok(());
        }
        // A message begins with the tag behind which its body's end came first.
        stream.write_all(said.as_bytes()).await?;
    }
}

/// Reads until `text` has come, and takes everything up to its end.
async fn until(stream: &mut TcpStream, input: &mut String, text: &str) -> Result<String> {
    loop {
        if let Some(at) = input.find(text) {
            return Ok(input.drain(..at + text.len()).collect());
        }
        let mut chunk = [0; 16 * 1024];
        let n = stream.read(&mut chunk).await?;
        ensure!(n > 0, "the end");
        input.push_str(std::str::from_utf8(&chunk[..n])?);
    }
}

/// SEC-17: what a client has sent is gone when it was answered, though the HTTP server keeps heads of
/// requests for later ones.
#[test]
fn answered_requests_leave_nothing() {
    block_on(async {
        const CLIENTS: usize = 60;
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let url = Url::parse(&gateway.bosh_url())?;
        let body = format!(
            "<body rid='1' sid='unknown' xmlns='http://jabber.org/protocol/httpbind'>{}</body>",
            " ".repeat(200_000)
        );
        let request = url.post(CONTENT_TYPE, &body);
        // All at once, since one head after the other would be the same one.
        let round = async |bytes: &[u8]| {
            let (first, last) = bytes.split_at(bytes.len() - 1);
            let mut open = Vec::new();
            for _ in 0..CLIENTS {
                let mut connection = Connection::open(&url.authority).await?;
                connection.send(first).await?;
                open.push(connection);
            }
            eventually("requests that are read", async || {
                let read = gateway.metric("bosphorus_bosh_requests_open").ok()?;
                (read >= CLIENTS as f64).then_some(())
            })
            .await?;
            for connection in &mut open {
                connection.send(last).await?;
                ensure!(connection.prompt_answer().await?.status == 200);
            }
            anyhow::Ok(())
        };
        round(&url.post(CONTENT_TYPE, &body.replace("  ", ""))).await?;
        let before = gateway.metric("bosphorus_heap_live_bytes")?;
        round(&request).await?;
        // Twelve megabytes were sent.
        back(&gateway, before + 2.0 * MIB).await?;
        Ok(())
    })
    .unwrap();
}

/// SEC-17: bodies that do not end belong to no session, and to strangers. Large ones have to fit into what
/// the sessions leave of the budget: the one too many may come later, small ones are never refused.
#[test]
fn bodies_that_do_not_end_are_bounded() {
    block_on(async {
        const STRANGERS: usize = 24;
        let peer = Peer::new().await?;
        let limits = "[limits]\nmemory = \"1 MiB\"\n[bosh]\nbody_timeout = \"60s\"\n";
        let gateway = Gateway::start(&format!("{limits}{}", peer.toml()))?;
        let url = Url::parse(&gateway.bosh_url())?;
        let body = format!(
            "<body rid='1' sid='unknown' xmlns='http://jabber.org/protocol/httpbind'>{}</body>",
            " ".repeat(100_000)
        );
        let request = url.post(CONTENT_TYPE, &body);
        let (first, last) = request.split_at(request.len() - 1);
        let mut open = Vec::new();
        for _ in 0..STRANGERS {
            let mut connection = Connection::open(&url.authority).await?;
            connection.send(first).await?;
            open.push(connection);
        }
        let hits = "bosphorus_limit_hits_total{limit=\"memory\"}";
        let refused = eventually("those that are refused", async || {
            let refused = gateway.metric(hits).ok()?;
            let read = gateway.metric("bosphorus_bosh_requests_open").ok()?;
            (refused > 0.0 && refused + read == STRANGERS as f64).then_some(refused)
        })
        .await?;
        // Each of the others holds a hundred kilobytes at the least.
        ensure!(refused >= STRANGERS as f64 - 11.0, "{refused} were refused");
        let small = url.post(CONTENT_TYPE, &body.replace("  ", ""));
        let mut honest = Connection::open(&url.authority).await?;
        honest.send(&small).await?;
        ensure!(honest.prompt_answer().await?.status == 200);
        let mut taken = 0;
        for mut connection in open {
            // One that was refused may be over.
            let _ = connection.send(last).await;
            match connection.prompt_answer().await?.status {
                200 => taken += 1,
                503 => {}
                other => bail!("{other}"),
            }
        }
        ensure!(taken > 0 && taken as f64 + refused == STRANGERS as f64, "{taken} were taken");
        // There is room again.
        honest.send(&request).await?;
        ensure!(honest.prompt_answer().await?.status == 200);
        Ok(())
    })
    .unwrap();
}

/// SEC-17: answers over HTTP/1.1 that nobody takes, each on a connection of its own, are on the account of
/// their session until they are with the kernel, and it gives no more behind too many.
#[test]
fn answers_that_nobody_takes_are_held_by_their_session() {
    block_on(async {
        const ANSWERS: usize = 3;
        let scene = Scene::with("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let heap = async || scene.gateway.metric("bosphorus_heap_live_bytes");
        let before = heap().await?;
        let large = message(&"x".repeat(7_800_000));
        let writing = tokio::spawn(async move {
            for _ in 0..ANSWERS {
                link.write(&large).await?;
            }
            anyhow::Ok(link)
        });
        let mut open = Vec::new();
        for n in 0..ANSWERS {
            open.push(session.next("", "").await?);
            if n == 0 {
                // The first is on its way; each other one is answered when the next has come.
                held(&scene.gateway, |held| held > 7.0 * MIB).await?;
            } else if n > 1 {
                let mut empty = open.remove(1);
                ensure!(empty.body().await?.is_empty(), "more was given");
                session.keep(empty);
            }
        }
        let during = heap().await?;
        println!("heap: {before} before, {during} while nobody takes anything");
        ensure!(during < before + 30.0 * MIB, "{before} before, {during} after");
        // Who takes the first gets the next, and so on.
        let mut got = 0;
        while got < ANSWERS {
            if open.is_empty() {
                open.push(session.next("", "").await?);
            }
            let mut first = open.remove(0);
            got += first.body().await?.messages().len();
            session.keep(first);
        }
        drop(writing.await??);
        Ok(())
    })
    .unwrap();
}

//! Why was a session ended? What the recorder tells of it at the admin listener, over every
//! transport and for many ends, and who may ask.

mod common;

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use common::bosh::{CREATION, Session};
use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::http::{Answer, Connection, Url};
use common::peer::Link;
use common::scene::{
    AUTH, BIND, BINDING, BOUND, DOMAIN, FEATURES, FOOTER, HEADER, SUCCESS, Scene, header, message,
};
use common::server::{Kind, Server};
use common::socket::{Received, Socket};
use common::{Result, block_on, eventually, in_ci};

const OPEN: &str =
    "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.test' version='1.0'/>";
const CLOSE: &str = "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>";
const CONFLICT: &str = "<stream:error><conflict \
    xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>";
/// Ends come soon, and JSON lines are easy to read.
const SOON: &str = "[bosh]\ninactivity = \"1s\"\n[ws]\nping_interval = \"1s\"\nmissed_pongs = 1\n\
    [limits]\nunauthenticated_lifetime = \"3s\"\n[upstream]\nclose_grace = \"500ms\"\n\
    [log]\nformat = \"json\"\nfilter = \"debug\"\n";

/// A request to the admin listener, with further header lines.
async fn ask(gateway: &Gateway, method: &str, path: &str, headers: &str) -> Result<Answer> {
    let authority = gateway.admin().to_string();
    ask_host(gateway, &authority, method, path, headers).await
}

async fn ask_host(
    gateway: &Gateway,
    host: &str,
    method: &str,
    path: &str,
    headers: &str,
) -> Result<Answer> {
    let mut connection = Connection::open(&gateway.admin().to_string()).await?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    connection.send(request.as_bytes()).await?;
    connection.prompt_answer().await
}

/// The JSON of an answer that succeeds.
async fn get(gateway: &Gateway, path: &str) -> Result<Value> {
    let answer = ask(gateway, "GET", path, "").await?;
    ensure!(answer.status == 200, "{path}: {} {}", answer.head, answer.text()?);
    ensure!(answer.header("Content-Type") == Some("application/json"), "{}", answer.head);
    ensure!(answer.header("Cache-Control") == Some("no-store"), "{}", answer.head);
    Ok(serde_json::from_slice(&answer.body)?)
}

/// The status of a request; one that fails says why.
async fn status(gateway: &Gateway, method: &str, path: &str, headers: &str) -> Result<u16> {
    let answer = ask(gateway, method, path, headers).await?;
    told(&answer)?;
    Ok(answer.status)
}

/// What a refusal says.
fn told(answer: &Answer) -> Result<String> {
    let value: Value = serde_json::from_slice(&answer.body)
        .with_context(|| format!("{} {}", answer.head, answer.text().unwrap_or_default()))?;
    let text = value["error"].as_str().unwrap_or_default().to_owned();
    ensure!(answer.status < 400 || !text.is_empty(), "{}: {value}", answer.head);
    Ok(text)
}

async fn list(gateway: &Gateway, query: &str) -> Result<Vec<Value>> {
    let answer = get(gateway, &format!("/sessions{query}")).await?;
    ensure!(answer["partial"] == false, "{answer}");
    Ok(answer["sessions"].as_array().context("no list")?.clone())
}

/// The session that began last, with its events, once it is in that state.
async fn last(gateway: &Gateway, state: &str) -> Result<Value> {
    let found = eventually(&format!("a session that is {state}"), async || {
        let newest = list(gateway, "?limit=1").await.ok()?.pop()?;
        (newest["state"] == state).then_some(newest)
    })
    .await;
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let newest = list(gateway, "?limit=1000").await?;
            return Err(error.context(format!("{newest:?}\n{}", gateway.log_tail(20))));
        }
    };
    get(gateway, &format!("/sessions/{}", text(&found, "id"))).await
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The names of the events.
fn events(session: &Value) -> Vec<&str> {
    let events = session["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().map(|event| text(event, "event")).collect()
}

async fn end(gateway: &Gateway, session: &Value) -> Result {
    let path = format!("/sessions/{}", text(session, "id"));
    let answer = ask(gateway, "DELETE", &path, "").await?;
    ensure!(answer.status == 202, "{} {}", answer.head, answer.text()?);
    Ok(())
}

/// A session over WebSocket that is logged in and bound, in front of a server played by hand.
async fn websocket(scene: &Scene) -> Result<(Socket, Link)> {
    let (mut socket, mut link) = opened(scene).await?;
    socket.send_text(AUTH).await?;
    link.until("</auth>").await?;
    link.write(SUCCESS).await?;
    receive(&mut socket, "<success").await?;
    socket.send_text(OPEN).await?;
    header(&mut link).await?;
    link.write(&format!("{HEADER}{BINDING}")).await?;
    receive(&mut socket, "features").await?;
    socket.send_text(BIND).await?;
    link.until("</iq>").await?;
    link.write(BOUND).await?;
    receive(&mut socket, "<jid>").await?;
    Ok((socket, link))
}

/// One that has its features and no more.
async fn opened(scene: &Scene) -> Result<(Socket, Link)> {
    let mut socket = Socket::connect(&scene.gateway.ws_url()).await?;
    socket.send_text(OPEN).await?;
    let mut link = scene.peer.accept().await?;
    header(&mut link).await?;
    link.write(&format!("{HEADER}{FEATURES}")).await?;
    receive(&mut socket, "features").await?;
    Ok((socket, link))
}

/// Reads until a message contains that; the message.
async fn receive(socket: &mut Socket, part: &str) -> Result<String> {
    loop {
        match socket.receive().await? {
            Received::Text(text) if text.contains(part) => return Ok(text),
            Received::Text(_) | Received::Ping(_) => {}
            other => anyhow::bail!("{other:?} instead of {part}"),
        }
    }
}

/// An end: what it is called, and how the client hears of it, if it does.
struct End {
    word: &'static str,
    blame: &'static str,
}

const ENDS: &[End] = &[
    End { word: "closed", blame: "nobody" },
    End { word: "server_closed", blame: "nobody" },
    End { word: "server_error", blame: "server" },
    End { word: "server_lost", blame: "server" },
    End { word: "client_lost", blame: "client" },
    End { word: "client_left", blame: "client" },
    End { word: "client_silent", blame: "client" },
    End { word: "inactive", blame: "client" },
    End { word: "unauthenticated", blame: "client" },
    End { word: "bad_xml", blame: "client" },
    End { word: "client_error", blame: "client" },
    End { word: "bad_rid", blame: "client" },
    End { word: "admin_kick", blame: "gateway" },
];

/// Ends a session over WebSocket so; what the client was told as an error. `None` if that cannot
/// be over this transport.
async fn end_websocket(scene: &Scene, word: &str) -> Result<Option<String>> {
    if word == "unauthenticated" {
        let (mut socket, _link) = opened(scene).await?;
        return Ok(Some(receive(&mut socket, "<stream:error").await?));
    }
    let (mut socket, mut link) = websocket(scene).await?;
    let error = match word {
        "closed" => {
            socket.send_text(CLOSE).await?;
            link.until(FOOTER).await?;
            link.write(FOOTER).await?;
            receive(&mut socket, "<close").await?;
            socket.send_close(1000).await?;
            String::new()
        }
        "server_closed" => {
            link.write(FOOTER).await?;
            receive(&mut socket, "<close").await?;
            String::new()
        }
        "server_error" => {
            link.write(CONFLICT).await?;
            receive(&mut socket, "<stream:error").await?
        }
        "server_lost" => {
            drop(link);
            receive(&mut socket, "<stream:error").await?
        }
        "client_lost" => {
            socket.cut()?;
            String::new()
        }
        "client_left" => {
            socket.send_close(1001).await?;
            String::new()
        }
        "client_silent" => {
            // It sees the connection end, and answers nothing before.
            socket.answer_pings = false;
            while !matches!(socket.receive().await?, Received::Lost(_)) {}
            String::new()
        }
        "bad_xml" => {
            socket.send_text("<message><secret></message>").await?;
            receive(&mut socket, "<stream:error").await?
        }
        "client_error" => {
            socket.send_text(&format!("<stream:error xmlns:stream='{STREAMS}'/>")).await?;
            receive(&mut socket, "<close").await?;
            String::new()
        }
        "admin_kick" => {
            end(&scene.gateway, &last(&scene.gateway, "live").await?).await?;
            receive(&mut socket, "<stream:error").await?
        }
        _ => return Ok(None),
    };
    Ok(Some(error))
}

const STREAMS: &str = "http://etherx.jabber.org/streams";

/// The same over BOSH.
async fn end_bosh(scene: &Scene, word: &str) -> Result<Option<String>> {
    if word == "unauthenticated" {
        let (mut session, _link) = scene.session().await?;
        let body = session.ask("", "").await?;
        body.expect_terminate(Some("policy-violation"))?;
        return Ok(Some(body.text));
    }
    let (mut session, mut link) = scene.bound().await?;
    let error = match word {
        "closed" => {
            let mut last = session.next("type='terminate'", "").await?;
            link.until(FOOTER).await?;
            link.write(FOOTER).await?;
            last.body().await?.expect_terminate(None)?;
            String::new()
        }
        "server_closed" => {
            let mut held = session.next("", "").await?;
            link.write(FOOTER).await?;
            held.body().await?.expect_terminate(None)?;
            String::new()
        }
        "server_error" => {
            let mut held = session.next("", "").await?;
            link.write(CONFLICT).await?;
            let body = held.body().await?;
            body.expect_terminate(Some("remote-stream-error"))?;
            body.text
        }
        "server_lost" => {
            let mut held = session.next("", "").await?;
            drop(link);
            let body = held.body().await?;
            body.expect_terminate(Some("remote-connection-failed"))?;
            body.text
        }
        "inactive" => {
            link.until(FOOTER).await?;
            String::new()
        }
        "bad_xml" => {
            let body = session.ask("", "<message><secret></message>").await?;
            body.expect_terminate(Some("bad-request"))?;
            body.text
        }
        "client_error" => {
            let error = format!("<stream:error xmlns:stream='{STREAMS}'/>");
            session.ask("", &error).await?.expect_terminate(None)?;
            String::new()
        }
        "bad_rid" => {
            let mut far = session.post(session.rid + 50, "", "").await?;
            far.body().await?.expect_terminate(Some("item-not-found"))?;
            String::new()
        }
        "admin_kick" => {
            let mut held = session.next("", "").await?;
            end(&scene.gateway, &last(&scene.gateway, "live").await?).await?;
            let body = held.body().await?;
            body.expect_terminate(Some("remote-stream-error"))?;
            body.text
        }
        _ => return Ok(None),
    };
    Ok(Some(error))
}

/// One word says why a session ended: in what the client is told as an error, the log line, the metric and
/// the recorder, over both transports; and none of them says anything that was said in it.
#[test]
fn every_end_has_one_word() -> Result {
    block_on(async {
        let scene = Scene::with(SOON).await?;
        for transport in ["websocket", "bosh"] {
            for End { word, blame } in ENDS {
                one_word(&scene, transport, word, blame)
                    .await
                    .with_context(|| format!("{transport}: {word}"))?;
            }
        }
        Ok(())
    })
}

async fn one_word(scene: &Scene, transport: &str, word: &str, blame: &str) -> Result {
    let gateway = &scene.gateway;
    let sample = format!(
        "bosphorus_sessions_ended_total{{blame=\"{blame}\",reason=\"{word}\",transport=\"{transport}\"}}"
    );
    let before = gateway.metric(&sample)?;
    let error = match transport {
        "bosh" => end_bosh(scene, word).await?,
        _ => end_websocket(scene, word).await?,
    };
    let Some(error) = error else { return Ok(()) };
    // What the server says is the server's.
    let words = [format!(">{word}: "), format!(" bosphorus:reason='{word}'")];
    ensure!(
        error.is_empty() || word == "server_error" || words.iter().any(|word| error.contains(word)),
        "the client is told {error}"
    );
    let session = last(gateway, "ended").await?;
    ensure!(text(&session, "reason") == word, "{session}");
    ensure!(text(&session, "blame") == blame, "{session}");
    ensure!(text(&session, "transport") == transport, "{session}");
    ensure!(text(&session, "domain") == DOMAIN, "{session}");
    let is_user = word != "unauthenticated";
    ensure!(session["authenticated"] == is_user, "{session}");
    ensure!(!is_user || text(&session, "jid") == "a@example.test/r", "{session}");
    let told = session["events"].as_array().context("no events")?;
    let endings: Vec<_> = told.iter().filter(|event| event["event"] == "ending").collect();
    ensure!(endings.len() == 1 && endings[0]["reason"] == word, "{session}");
    ensure!(gateway.metric(&sample)? == before + 1.0, "{sample}");
    let id = text(&session, "id");
    let logged = eventually("the line in the log", async || {
        let log = gateway.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["fields"]["message"] == "session_ended" && line["span"]["id"] == id)
    })
    .await?;
    ensure!(logged["fields"]["reason"] == word, "{logged}");
    for secret in ["secret", "AGEAc2VjcmV0", "\"sid\""] {
        ensure!(!session.to_string().contains(secret), "{secret} is told: {session}");
    }
    Ok(())
}

/// The way of a session is told, and for BOSH its requests: their order, sizes and answers.
#[test]
fn the_way_of_a_session_is_told() -> Result {
    block_on(async {
        let scene = Scene::with("[bosh]\ninactivity = \"60s\"\nmaxpause = \"9s\"\n").await?;
        let gateway = &scene.gateway;
        let (_socket, _link) = websocket(&scene).await?;
        let session = last(gateway, "live").await?;
        let way = ["connected", "opening", "server_connected", "authenticated", "bound"];
        ensure!(events(&session) == way, "{session}");
        ensure!(session["reason"].is_null() && session["events_before"] == 0, "{session}");

        let (mut session, _link) = scene.bound().await?;
        let rid = session.rid;
        let mut parked = session.post(rid + 2, "", "").await?;
        eventually("the event", async || {
            let told = last(gateway, "live").await.ok()?;
            events(&told).ends_with(&["request"]).then_some(())
        })
        .await?;
        let mut first = session.post(rid + 1, "", &message("up")).await?;
        first.body().await?;
        let mut again = session.repeat(&parked).await?;
        parked.body().await?;
        session.rid = rid + 2;
        let pause = session.ask("pause='7'", "").await?;
        again.body().await?;
        ensure!(pause.is_empty(), "{}", pause.text);
        let told = last(gateway, "live").await?;
        ensure!(events(&told)[..3] == ["created", "opening", "server_connected"], "{told}");
        let all = told["events"].as_array().context("no events")?;
        let of = |rid: u64, event: &str, key: &str| -> Vec<&str> {
            let these = |it: &&Value| it["rid"] == rid && it["event"] == event;
            all.iter().filter(these).map(|it| text(it, key)).collect()
        };
        ensure!(of(rid + 2, "request", "order") == ["out_of_order", "repeat"], "{told}");
        ensure!(of(rid + 1, "request", "order") == ["next"], "{told}");
        ensure!(of(rid + 3, "request", "order") == ["pause"], "{told}");
        ensure!(of(rid + 3, "answer", "why") == ["pause"], "{told}");
        ensure!(of(rid + 2, "answer", "why")[0] == "recoverable", "{told}");
        let first = all.iter().find(|it| it["rid"] == rid + 1).context("no request")?;
        ensure!(first["elements"] == 1 && first["bytes"].as_u64() > Some(50), "{told}");
        let pause = all.iter().find(|it| it["event"] == "pause").context("no pause")?;
        ensure!(pause["seconds"] == 7.0, "{told}");
        ensure!(!told.to_string().contains(&session.sid), "SEC-14: {told}");

        // A connection that ends while its request is held is seen, too.
        let mut held = session.next("", "").await?;
        held.stays_open(Duration::from_millis(100)).await?;
        drop(held);
        eventually("the lost request", async || {
            let told = last(gateway, "live").await.ok()?;
            (*events(&told).last()? == "request_lost").then_some(())
        })
        .await
    })
}

/// Sessions are found by JID, address, domain, transport and state, in front of real servers; the
/// end that an operator gives them is one that clients understand.
#[test]
fn sessions_are_found_and_ended() -> Result {
    for kind in Kind::WITH_DEMO {
        match kind.missing() {
            Some(why) if in_ci() => anyhow::bail!(why),
            Some(why) => println!("not with {}: {why}", kind.name()),
            None => block_on(found_and_ended(kind)).context(kind.name())?,
        }
    }
    Ok(())
}

async fn found_and_ended(kind: Kind) -> Result {
    let server = Server::shared(kind)?;
    let toml = |recorder: &str| format!("[recorder]\n{recorder}\n{}", domain_toml(&server));
    let gateway = Gateway::start(&toml(""))?;
    let mut clients = Vec::new();
    for (name, transport) in
        [("alice", Transport::Ws), ("alice", Transport::Bosh), ("bob", Transport::WsLegacy)]
    {
        let endpoint = Endpoint { url: gateway.url(transport), transport };
        clients.push(Client::online(&endpoint, &server.named_account(name)).await?);
    }
    let domain = server.domain();
    for (query, count) in [
        (String::new(), 3),
        (format!("?jid=alice@{domain}"), 2),
        (format!("?jid=ALICE@{domain}&transport=bosh"), 1),
        (format!("?jid={}", clients[0].jid), 1),
        (format!("?jid={}x", clients[0].jid), 0),
        (format!("?jid=carol@{domain}"), 0),
        (format!("?domain={domain}&state=live"), 3),
        ("?domain=other.example".to_owned(), 0),
        ("?address=127.0.0.1".to_owned(), 3),
        ("?address=192.0.2.1".to_owned(), 0),
        ("?transport=websocket_legacy".to_owned(), 1),
        ("?state=ended".to_owned(), 0),
        ("?limit=2".to_owned(), 2),
    ] {
        let found = list(&gateway, &query).await?;
        ensure!(found.len() == count, "{query}: {found:?}");
        ensure!(found.iter().all(|session| session["events"].is_null()), "{found:?}");
    }
    ensure!(get(&gateway, "/sessions?limit=2").await?["matched"] == 3);
    let session = list(&gateway, &format!("?jid={}", clients[0].jid)).await?.remove(0);
    ensure!(text(&session, "jid") == clients[0].jid, "{session}");
    let address = text(&session, "address");
    ensure!(list(&gateway, &format!("?address={address}")).await?.len() == 1, "{address}");
    ensure!(session["to_server"]["elements"].as_u64() >= Some(4), "{session}");
    ensure!(session["to_client"]["bytes"].as_u64() > Some(100), "{session}");

    for (path, expected) in [
        ("/sessions/ffffffffff", 404),
        ("/sessions/%2Bff", 404),
        ("/sessions/no-number", 404),
        ("/sessions?jdi=x", 400),
        ("/sessions?limit=0", 400),
        ("/sessions?address=localhost", 400),
        ("/sessions?state=gone", 400),
    ] {
        ensure!(status(&gateway, "GET", path, "").await? == expected, "{path}");
    }
    ensure!(status(&gateway, "DELETE", "/sessions/ffffffffff", "").await? == 404);
    ensure!(status(&gateway, "DELETE", "/sessions", "").await? == 405);
    ensure!(status(&gateway, "POST", "/sessions/1", "").await? == 405);

    for client in &mut clients {
        let query = format!("?jid={}", client.jid);
        let session = list(&gateway, &query).await?.remove(0);
        end(&gateway, &session).await?;
        let ending = client.ending().await?;
        ensure!(ending.condition.as_deref() == Some("policy-violation"), "{ending:?}");
        ensure!(ending.closed, "{ending:?}");
        let ended = eventually("the end", async || {
            list(&gateway, &format!("{query}&state=ended")).await.ok()?.pop()
        })
        .await?;
        ensure!(text(&ended, "reason") == "admin_kick", "{ended}");
        ensure!(text(&ended, "id") == text(&session, "id"), "{ended}");
        let path = format!("/sessions/{}", text(&session, "id"));
        ensure!(status(&gateway, "DELETE", &path, "").await? == 409);
    }

    // What was recorded is forgotten in time, and a reload says when.
    ensure!(list(&gateway, "?state=ended").await?.len() == 3);
    gateway.write_config(&toml("keep = \"200ms\""))?;
    gateway.signal("HUP")?;
    eventually("oblivion", async || {
        list(&gateway, "").await.is_ok_and(|found| found.is_empty()).then_some(())
    })
    .await?;
    gateway.write_config(&toml("events = 0"))?;
    gateway.signal("HUP")?;
    eventually("the end of recording", async || {
        (status(&gateway, "GET", "/sessions", "").await.ok()? == 404).then_some(())
    })
    .await
}

/// A resumed session has a JID as well, though no resource is bound in it.
#[test]
fn resumed_sessions_have_a_jid() -> Result {
    for kind in Kind::ALL {
        match kind.missing() {
            Some(why) if in_ci() => anyhow::bail!(why),
            Some(why) => println!("not with {}: {why}", kind.name()),
            None => block_on(resumed(kind)).context(kind.name())?,
        }
    }
    Ok(())
}

async fn resumed(kind: Kind) -> Result {
    let server = Server::shared(kind)?;
    let gateway = Gateway::in_front_of(&[&server])?;
    let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
    let account = server.account();
    let mut client = Client::online(&endpoint, &account).await?;
    client.enable().await?;
    let (old, jid) = (client.sm.clone().context("no stream management")?, client.jid.clone());
    client.cut()?;
    let mechanism = common::client::Mechanism::ScramSha1;
    let mut client = Client::authenticated(&endpoint, &account, mechanism).await?;
    client.resume(&old, &jid).await?;
    client.message(&jid, "to myself").await?;
    client.body().await?;
    let found = eventually("the JID", async || {
        let query = format!("?state=live&jid={}", common::client::bare(&jid));
        list(&gateway, &query).await.ok()?.pop()
    })
    .await
    .with_context(|| gateway.log_tail(20))?;
    ensure!(found["resumed"] == true && found["stream_management"] == true, "{found}");
    let told = get(&gateway, &format!("/sessions/{}", text(&found, "id"))).await?;
    ensure!(events(&told).ends_with(&["authenticated", "resumed"]), "{told}");
    Ok(())
}

/// Many sessions that have ended, and many events, are no more than may be kept.
#[test]
fn what_is_kept_is_bounded() -> Result {
    block_on(async {
        let scene = Scene::with("[recorder]\nevents = 8\nended = 10\n").await?;
        let gateway = &scene.gateway;
        for _ in 0..30 {
            Socket::connect(&gateway.ws_url()).await?.cut()?;
        }
        let (mut user, _link) = scene.bound().await?;
        for _ in 0..5 {
            let mut held = user.next("", "").await?;
            held.stays_open(Duration::from_millis(20)).await?;
            drop(held);
        }
        let found = list(gateway, "?jid=a@example.test").await?;
        let path = format!("/sessions/{}", text(&found[0], "id"));
        let told = get(gateway, &path).await?;
        ensure!(events(&told).len() == 8, "{told}");
        ensure!(told["events_before"].as_u64() > Some(4), "{told}");
        user.ask("type='terminate'", "").await?;
        let ended = eventually("the end of all", async || {
            let ended = list(gateway, "?state=ended&limit=1000").await.ok()?;
            let metric = gateway.metric("bosphorus_sessions{transport=\"bosh\"}").ok()?;
            (metric == 0.0 && ended.iter().any(|it| it["authenticated"] == true)).then_some(ended)
        })
        .await?;
        ensure!(ended.len() == 10, "{} are kept", ended.len());
        for _ in 0..30 {
            Socket::connect(&gateway.ws_url()).await?.cut()?;
        }
        eventually("their ends", async || {
            let sample = "bosphorus_upgrades_total{outcome=\"never_opened\"}";
            (gateway.metric(sample).ok()? >= 60.0).then_some(())
        })
        .await?;
        let ended = list(gateway, "?state=ended&limit=1000").await?;
        let users = ended.iter().filter(|it| it["authenticated"] == true).count();
        ensure!(users == 1 && ended.len() <= 10, "strangers push users out: {ended:?}");
        Ok(())
    })
}

/// Who drains is told so, too: the word is there before the session is over.
#[test]
fn a_drain_is_told_while_it_lasts() -> Result {
    block_on(async {
        let scene = Scene::with("[upstream]\nclose_grace = \"5s\"\n").await?;
        let (mut socket, mut link) = websocket(&scene).await?;
        scene.gateway.signal("TERM")?;
        let error = receive(&mut socket, "<stream:error").await?;
        ensure!(error.contains(">drain: "), "{error}");
        link.until(FOOTER).await?;
        let session = last(&scene.gateway, "ending").await?;
        ensure!(text(&session, "reason") == "drain", "{session}");
        let path = format!("/sessions/{}", text(&session, "id"));
        ensure!(status(&scene.gateway, "DELETE", &path, "").await? == 409);
        Ok(())
    })
}

/// SEC-23: off loopback sessions are for who shows the token, on loopback for no page of a browser;
/// metrics and health are as they were.
#[test]
fn sessions_are_not_for_everyone() -> Result {
    const TOKEN: &str = "correct-horse-battery-staple";
    const RIGHT: &str = "Authorization: Bearer correct-horse-battery-staple\r\n";
    const WRONG: &str = "Authorization: Bearer correct-horse-battery-stapled\r\n";
    block_on(async {
        let served = format!("[domains.\"{DOMAIN}\"]\nservers = [\"xmpp://127.0.0.1:1\"]\n");
        // A file of one gateway is read by the others as well.
        let gateway = Gateway::start(&served)?;
        let file = gateway.directory().join("token");
        std::fs::write(&file, format!("{TOKEN}\n"))?;
        let with_token = format!("[admin]\ntoken_file = {file:?}\n{served}");

        ensure!(status(&gateway, "GET", "/sessions", "").await? == 200);
        let at = |host| ask_host(&gateway, host, "GET", "/sessions", "");
        ensure!(at("localhost").await?.status == 200 && at("[::1]:1").await?.status == 200);
        let rebound = at("evil.example").await?;
        ensure!(rebound.status == 403 && told(&rebound)?.contains("admin.token_file"));
        for page in ["Origin: https://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
            for (method, path) in [("GET", "/sessions"), ("DELETE", "/sessions/1")] {
                ensure!(status(&gateway, method, path, page).await? == 403, "{page}");
            }
        }
        // A token that comes by a reload is asked for from then on.
        gateway.write_config(&with_token)?;
        gateway.signal("HUP")?;
        eventually("the token", async || {
            (status(&gateway, "GET", "/sessions", "").await.ok()? == 401).then_some(())
        })
        .await?;

        let open = Gateway::start_open(&served)?;
        for (method, path) in [("GET", "/sessions"), ("DELETE", "/sessions/1")] {
            let answer = ask(&open, method, path, RIGHT).await?;
            ensure!(answer.status == 403 && told(&answer)?.contains("admin.token_file"));
        }
        let open = Gateway::start_open(&with_token)?;
        for gateway in [&gateway, &open] {
            for (method, path, right) in [
                ("GET", "/sessions", 200),
                ("GET", "/sessions/1", 404),
                ("DELETE", "/sessions/1", 404),
            ] {
                ensure!(status(gateway, method, path, RIGHT).await? == right, "{method} {path}");
                ensure!(status(gateway, method, path, WRONG).await? == 401, "{method} {path}");
                ensure!(status(gateway, method, path, "").await? == 401, "{method} {path}");
            }
            let refused = ask(gateway, "GET", "/sessions", WRONG).await?;
            ensure!(refused.header("WWW-Authenticate").is_some(), "{}", refused.head);
            let page = format!("{RIGHT}Origin: https://evil.example\r\n");
            ensure!(status(gateway, "GET", "/sessions", &page).await? == 403);
            for path in ["/metrics", "/health", "/ready"] {
                ensure!(ask(gateway, "GET", path, "").await?.status == 200, "{path}");
                let mut probe = Connection::open(&gateway.admin().to_string()).await?;
                probe.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
                let answer = probe.answer_to("HEAD").await?.context("no answer")?;
                ensure!(answer.status == 200, "{path}: {}", answer.head);
            }
            ensure!(!gateway.log().contains(TOKEN), "the token is logged");
        }
        Ok(())
    })
}

/// BOSH sessions that never logged in are found as well: who cannot log in wants to know why.
#[test]
fn a_session_without_a_server_says_why() -> Result {
    block_on(async {
        let served = format!("[domains.\"{DOMAIN}\"]\nservers = [\"xmpp://127.0.0.1:1\"]\n");
        let gateway = Gateway::start(&served)?;
        let url = Url::parse(&gateway.bosh_url())?;
        let made = Session::create_with(&url, &format!("to='{DOMAIN}' {CREATION}")).await;
        ensure!(made.is_err(), "a session without a server");
        let told = last(&gateway, "ended").await?;
        ensure!(text(&told, "reason") == "server_unreachable", "{told}");
        ensure!(events(&told) == ["created", "opening", "server_failed", "ending", "answer"]);
        ensure!(told["events"][2]["reason"] == "refused", "{told}");
        Ok(())
    })
}

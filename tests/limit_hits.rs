//! Each limit that ends a session or refuses a request has a key in the configuration, and a counter
//! of that name: every violation here raises its own by one, and no other.

mod common;

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use common::bosh::{CREATION, Session, creation, first_rid};
use common::gateway::Gateway;
use common::http::Connection;
use common::peer::Link;
use common::scene::{DOMAIN, FEATURES, HEADER, Scene, header};
use common::socket::{Received, Socket, opcode};
use common::{Result, block_on, eventually};

/// Small enough that each can be passed alone.
const LIMITS: &str = "[limits]\nelement_bytes = 10000\nserver_element_bytes = 20000\n\
    pending_bytes = 10000\nunauthenticated_bytes = 4096\ndepth = 8\nattributes = 20\n\
    name_bytes = 64\nnamespaces = 6\nelements = 12\nbody_elements = 5\n";

/// The counters of all limits, as they were.
struct Hits<'a> {
    gateway: &'a Gateway,
    before: BTreeMap<String, u64>,
}

impl<'a> Hits<'a> {
    fn before(gateway: &'a Gateway) -> Result<Self> {
        Ok(Self { gateway, before: all(gateway)? })
    }

    /// `key` has been counted once since then, and nothing else.
    async fn only(self, key: &str, what: &str) -> Result {
        let now =
            eventually(what, async || all(self.gateway).ok().filter(|now| *now != self.before))
                .await
                .with_context(|| format!("no hit of {key}"))?;
        let mut want = self.before;
        *want.get_mut(key).with_context(|| format!("no counter of {key}"))? += 1;
        ensure!(now == want, "{what}: {key} is not alone\n{now:?}\n{want:?}");
        Ok(())
    }

    fn none(&self, what: &str) -> Result {
        ensure!(all(self.gateway)? == self.before, "{what} is no hit");
        Ok(())
    }
}

fn all(gateway: &Gateway) -> Result<BTreeMap<String, u64>> {
    let metrics = gateway.metrics()?;
    let samples = metrics.lines().filter_map(|line| {
        let (key, hits) =
            line.strip_prefix("bosphorus_limit_hits_total{limit=\"")?.split_once("\"} ")?;
        Some(hits.parse().map(|hits| (key.to_owned(), hits)))
    });
    Ok(samples.collect::<Result<_, _>>()?)
}

/// A WebSocket whose stream is open: nobody has logged in.
async fn open(scene: &Scene) -> Result<(Socket, Link)> {
    let mut socket = Socket::connect(&scene.gateway.ws_url()).await?;
    socket
        .send_text(&format!(
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='{DOMAIN}' version='1.0'/>"
        ))
        .await?;
    let mut link = scene.peer.accept().await?;
    header(&mut link).await?;
    link.write(&format!("{HEADER}{FEATURES}")).await?;
    for what in ["<open ", "features"] {
        let said = socket.receive().await?;
        ensure!(matches!(&said, Received::Text(text) if text.contains(what)), "{said:?}");
    }
    Ok((socket, link))
}

/// Reads to the end of the connection.
async fn ended(socket: &mut Socket) -> Result {
    loop {
        if matches!(socket.receive_patiently().await?, Received::Close(..) | Received::Lost(_)) {
            return Ok(());
        }
    }
}

fn message(attributes: &str, content: &str) -> String {
    format!("<message xmlns='jabber:client'{attributes}>{content}</message>")
}

/// SEC-11, SEC-12: what one element of a client may cost, over both transports, and in a request
/// that names no session.
#[test]
fn elements_of_clients() -> Result {
    let many =
        |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<String>();
    let cases = [
        ("element_bytes", message("", &"x".repeat(10_000))),
        ("depth", message("", &format!("{}{}", "<a>".repeat(8), "</a>".repeat(8)))),
        ("attributes", message(&many(20, &|n| format!(" a{n}=''")), "")),
        ("name_bytes", message("", &format!("<{}/>", "n".repeat(65)))),
        ("name_bytes", message(&format!(" {}=''", "n".repeat(65)), "")),
        ("namespaces", message(&many(6, &|n| format!(" xmlns:p{n}='urn:x'")), "")),
        ("elements", message("", &"<a/>".repeat(12))),
    ];
    block_on(async {
        let scene = Scene::with(LIMITS).await?;
        for (key, xml) in &cases {
            let (mut socket, _link) = open(&scene).await?;
            let hits = Hits::before(&scene.gateway)?;
            socket.send_text(xml).await?;
            ended(&mut socket).await?;
            hits.only(key, "a WebSocket").await?;

            let (mut session, _link) = scene.session().await?;
            let hits = Hits::before(&scene.gateway)?;
            session.ask("", xml).await?.expect_terminate(Some("policy-violation"))?;
            hits.only(key, "a BOSH session").await?;

            let hits = Hits::before(&scene.gateway)?;
            let rid = first_rid();
            let text = creation(rid, &format!("to='{DOMAIN}' {CREATION}"));
            let text = text.replace("/>", &format!(">{xml}</body>"));
            scene.post(&text).await?;
            hits.only(key, "a creation").await?;
        }
        // In pieces it is the same limit.
        let (mut socket, _link) = open(&scene).await?;
        let hits = Hits::before(&scene.gateway)?;
        socket.send_fragments(&cases[0].1, 1000).await?;
        ended(&mut socket).await?;
        hits.only("element_bytes", "fragments").await?;
        // Before a stream was opened.
        let mut socket = Socket::connect(&scene.gateway.ws_url()).await?;
        let hits = Hits::before(&scene.gateway)?;
        socket.send_text(&cases[1].1).await?;
        ended(&mut socket).await?;
        hits.only("depth", "a WebSocket without a stream").await?;
        // What breaks another rule is no hit.
        let (mut socket, _link) = open(&scene).await?;
        let hits = Hits::before(&scene.gateway)?;
        socket.send_text("<message").await?;
        ended(&mut socket).await?;
        hits.none("broken XML")
    })
}

/// What one request of BOSH may be, and what the elements of one message may become.
#[test]
fn requests_and_messages_of_clients() -> Result {
    block_on(async {
        let scene = Scene::with(LIMITS).await?;
        let gateway = &scene.gateway;
        let (mut session, _link) = scene.session().await?;
        let hits = Hits::before(gateway)?;
        session.ask("", &message("", "").repeat(6)).await?;
        hits.only("body_elements", "six elements").await?;

        // XEP-0124 §5: refused unread, by what its head says and by what comes.
        let (session, _link) = scene.session().await?;
        let text = session.text(session.rid + 1, "", &message("", &"x".repeat(15_000)));
        let type_ = common::bosh::CONTENT_TYPE;
        for request in [scene.url.post(type_, &text), scene.url.post_chunked(type_, &text, 1000)] {
            let hits = Hits::before(gateway)?;
            let answer = scene.ask(&request).await?;
            ensure!(answer.status == 413, "HTTP {}", answer.status);
            hits.only("body_bytes", "a large body").await?;
        }

        // A declaration that is repeated on every element.
        let long = format!("xmlns:p='urn:{}'", "x".repeat(3000));
        let (mut session, _link) = scene.session().await?;
        let hits = Hits::before(gateway)?;
        let payload = message("", "<p:a/>").repeat(5);
        session.ask(&long, &payload).await?;
        hits.only("pending_bytes", "declarations of a body").await?;
        let mut socket = Socket::connect(&gateway.ws_url()).await?;
        socket
            .send_text(&format!(
                "<stream:stream xmlns='jabber:client' {long} version='1.0' to='{DOMAIN}' \
                 xmlns:stream='http://etherx.jabber.org/streams'>"
            ))
            .await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        let hits = Hits::before(gateway)?;
        socket.send_text(&payload).await?;
        ended(&mut socket).await?;
        hits.only("pending_bytes", "declarations of a stream header").await
    })
}

/// What one element of the server may be.
#[test]
fn elements_of_servers() -> Result {
    block_on(async {
        let scene = Scene::with(LIMITS).await?;
        let large = message("", &"x".repeat(20_000));
        let (mut socket, mut link) = open(&scene).await?;
        let hits = Hits::before(&scene.gateway)?;
        link.write(&large).await?;
        ended(&mut socket).await?;
        hits.only("server_element_bytes", "a WebSocket").await?;
        let (mut session, mut link) = scene.session().await?;
        let mut request = session.next("", "").await?;
        let hits = Hits::before(&scene.gateway)?;
        link.write(&large).await?;
        request.body().await?.expect_terminate(Some("remote-connection-failed"))?;
        hits.only("server_element_bytes", "a BOSH session").await?;
        // Another of its limits costs an element, and no session.
        let (mut socket, mut link) = open(&scene).await?;
        let hits = Hits::before(&scene.gateway)?;
        link.write(&message("", &format!("{}{}", "<a>".repeat(8), "</a>".repeat(8)))).await?;
        let said = socket.receive().await?;
        ensure!(matches!(said, Received::Text(_)), "{said:?}");
        hits.none("a stanza that was emptied")?;
        // Unless no client can do without it.
        let features =
            FEATURES.replace("</m", &format!("{}{}</m", "<a>".repeat(8), "</a>".repeat(8)));
        let hits = Hits::before(&scene.gateway)?;
        link.write(&features).await?;
        ended(&mut socket).await?;
        hits.only("depth", "features over WebSocket").await?;
        let (mut session, mut link) = scene.session().await?;
        let hits = Hits::before(&scene.gateway)?;
        link.write(&features).await?;
        session.ask("", "").await?.expect_terminate(Some("remote-connection-failed"))?;
        hits.only("depth", "features over BOSH").await
    })
}

/// UP-24: what a client may send before the server's stream stands, over BOSH; over WebSocket it is
/// not read until then.
#[test]
fn early_data() -> Result {
    block_on(async {
        let scene =
            Scene::with(&format!("{LIMITS}[bosh]\nfirst_response_timeout = \"1s\"\n")).await?;
        let (rid, mut connection) = scene.create(CREATION).await?;
        let _link = scene.peer.accept().await?;
        let body = common::bosh::Body::of(&connection.prompt_answer().await?)?;
        let mut session = Session::of(&scene.url, rid, body)?;
        let hits = Hits::before(&scene.gateway)?;
        session.ask("", &message("", &"x".repeat(5000))).await?;
        hits.only("unauthenticated_bytes", "early data").await
    })
}

/// UP-24: the time for a login.
#[test]
fn logins_take_too_long() -> Result {
    block_on(async {
        let scene = Scene::with("[limits]\nunauthenticated_lifetime = \"1s\"\n").await?;
        let hits = Hits::before(&scene.gateway)?;
        let (mut socket, _link) = open(&scene).await?;
        ended(&mut socket).await?;
        hits.only("unauthenticated_lifetime", "a WebSocket").await?;
        let hits = Hits::before(&scene.gateway)?;
        let (mut session, _link) = scene.session().await?;
        session.ask("", "").await?.expect_terminate(Some("policy-violation"))?;
        hits.only("unauthenticated_lifetime", "a BOSH session").await
    })
}

/// SEC-17: a server that takes nothing, over BOSH; `websocket_limits` has the others.
#[test]
fn a_server_stalls() -> Result {
    block_on(async {
        let scene = Scene::with("[limits]\nstall_timeout = \"1s\"\n").await?;
        let (mut session, _link) = scene.session().await?;
        let hits = Hits::before(&scene.gateway)?;
        let large = message("", &"x".repeat(250_000));
        let mut sent = Vec::new();
        while sent.len() < 200 && all(&scene.gateway)? == hits.before {
            sent.push(session.next("", &large).await?);
            // One that is not answered waits for the server.
            if let [.., before, _] = &mut sent[..] {
                let _ =
                    tokio::time::timeout(std::time::Duration::from_secs(2), before.answer()).await;
            }
        }
        hits.only("stall_timeout", "a server that reads nothing").await
    })
}

/// SEC-18: what comes too slowly.
#[test]
fn slow_writers() -> Result {
    block_on(async {
        let scene = Scene::with(
            "[listen]\nhead_timeout = \"1s\"\n[ws]\nmessage_timeout = \"1s\"\n\
             [bosh]\nbody_timeout = \"1s\"\n",
        )
        .await?;
        let (mut socket, _link) = open(&scene).await?;
        let hits = Hits::before(&scene.gateway)?;
        socket.send_frame(false, opcode::TEXT, b"<message").await?;
        ended(&mut socket).await?;
        hits.only("ws.message_timeout", "half a message").await?;

        let hits = Hits::before(&scene.gateway)?;
        let request = b"POST /http-bind HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n<body";
        let answer = scene.ask(request).await?;
        ensure!(answer.status == 503, "HTTP {}", answer.status);
        hits.only("bosh.body_timeout", "half a body").await?;

        // Half a head, and none at all.
        for begun in [&b"GET /http-bind HTTP/1.1\r\n"[..], b""] {
            let hits = Hits::before(&scene.gateway)?;
            let mut connection = Connection::open(&scene.url.authority).await?;
            connection.send(begun).await?;
            let rest = String::from_utf8(connection.remainder().await?)?;
            ensure!(begun.is_empty() || rest.starts_with("HTTP/1.1 408 "), "{rest}");
            hits.only("listen.head_timeout", "half a head").await?;
        }
        Ok(())
    })
}

/// BOSH-59, BOSH-63: what a client of BOSH may ask of time.
#[test]
fn pauses_and_polls() -> Result {
    block_on(async {
        let scene = Scene::new("maxpause = \"120s\"\npolling = \"5s\"").await?;
        let (mut session, _link) = scene.session().await?;
        let hits = Hits::before(&scene.gateway)?;
        session.ask("pause='121'", "").await?.expect_terminate(Some("policy-violation"))?;
        hits.only("bosh.maxpause", "a long pause").await?;
        let (mut session, _link) = scene.session().await?;
        let hits = Hits::before(&scene.gateway)?;
        session.ask("pause='0'", "").await?.expect_terminate(Some("policy-violation"))?;
        hits.none("a pause that is none")?;
        let polling = "wait='0' hold='0' ver='1.11' xmpp:version='1.0'";
        let (mut session, _link) = scene.session_with(polling).await?;
        let hits = Hits::before(&scene.gateway)?;
        session.ask("", "").await?;
        session.ask("", "").await?.expect_terminate(Some("policy-violation"))?;
        hits.only("bosh.polling", "polls").await
    })
}

/// WS-09: the frames of one message.
#[test]
fn fragments() -> Result {
    block_on(async {
        let scene = Scene::with("[ws]\nmax_fragments = 4\n").await?;
        let (mut socket, _link) = open(&scene).await?;
        let hits = Hits::before(&scene.gateway)?;
        socket.send_fragments(&message("", "12345"), 8).await?;
        ended(&mut socket).await?;
        hits.only("ws.max_fragments", "fragments").await
    })
}

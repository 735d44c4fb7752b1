//! Who uses which transport, and what keeps clients from a WebSocket, as an operator who moves them
//! sees it: every sample against requests whose every byte is known.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use common::bosh::{Body, CONTENT_TYPE, CREATION, Session, creation, first_rid};
use common::bridge::{self, Http2};
use common::gateway::Gateway;
use common::http::{Connection, Cut, Url};
use common::peer::{Link, Peer};
use common::scene::{self, DOMAIN, FEATURES, HEADER, Scene, message};
use common::socket::{Received, Socket};
use common::{Result, block_on, eventually};
use pki::{Ca, Validity};

const EDGE: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/126.0.0.0 Safari/537.36 Edg/126.0.2592.68";
const FIREFOX: &str =
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0";

/// The samples of a family, without zeros.
fn samples(gateway: &Gateway, family: &str) -> Result<BTreeMap<String, f64>> {
    let mut samples = BTreeMap::new();
    for line in gateway.metrics()?.lines() {
        let Some(sample) = line.strip_prefix(family) else { continue };
        let (labels, value) = sample.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse()?;
        if value != 0.0 {
            samples.insert(labels.trim_matches(['{', '}']).to_owned(), value);
        }
    }
    Ok(samples)
}

/// That they are exactly these, sooner or later.
async fn become_these(gateway: &Gateway, family: &str, expected: &[(&str, f64)]) -> Result {
    let wanted: BTreeMap<_, _> =
        expected.iter().map(|&(labels, value)| (labels.to_owned(), value)).collect();
    let equal =
        eventually(family, async || (samples(gateway, family).ok()? == wanted).then_some(()));
    let outcome = equal.await;
    outcome.with_context(|| format!("{:#?}, not {wanted:#?}", samples(gateway, family)))
}

const CENSUS: &str = "bosphorus_census_sessions_total";
const UPGRADES: &str = "bosphorus_upgrades_total";
const FALLBACKS: &str = "bosphorus_fallbacks_total";

/// A BOSH session of `domain` with these headers, before a login.
async fn create(scene: &Scene, domain: &str, headers: &str) -> Result<(Session, Link)> {
    let rid = first_rid();
    let text = creation(rid, &format!("to='{domain}' {CREATION}"));
    let bytes = scene.url.post(&format!("{CONTENT_TYPE}{headers}"), &text);
    let mut connection = scene.send(&bytes).await?;
    let mut link = scene.peer.accept().await?;
    scene::header(&mut link).await?;
    link.write(&format!("{HEADER}{FEATURES}")).await?;
    let body = Body::of(&connection.prompt_answer().await?)?;
    Ok((Session::of(&scene.url, rid, body)?, link))
}

/// The same until a resource is bound.
async fn bind(scene: &Scene, domain: &str, headers: &str) -> Result<(Session, Link)> {
    let (mut session, mut link) = create(scene, domain, headers).await?;
    scene.log_in(&mut session, &mut link).await?;
    Ok((session, link))
}

const OPEN: &str =
    "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.test' version='1.0'/>";

/// A stream over a WebSocket whose features have come.
async fn open(gateway: &Gateway, peer: &Peer, headers: &str) -> Result<(Socket, Link)> {
    let headers = format!("Sec-WebSocket-Protocol: xmpp\r\n{headers}");
    let Ok(mut socket) = Socket::request(&gateway.ws_url(), &headers).await? else {
        bail!("the upgrade is refused")
    };
    socket.send_text(OPEN).await?;
    let mut link = peer.accept().await?;
    scene::header(&mut link).await?;
    link.write(&format!("{HEADER}{FEATURES}")).await?;
    texts(&mut socket, 2).await?;
    Ok((socket, link))
}

async fn texts(socket: &mut Socket, count: usize) -> Result {
    let mut left = count;
    while left > 0 {
        match socket.receive().await? {
            Received::Text(_) => left -= 1,
            Received::Ping(_) => {}
            other => bail!("{other:?}"),
        }
    }
    Ok(())
}

/// SEC-15: each session is counted once, when it has bound a resource: under the domain as it is
/// configured, the origin in one form, the family of its client, and nothing else of what it says.
#[test]
fn sessions_are_counted_by_who_uses_them() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let servers = format!("servers = [\"xmpp://{}\"]", peer.address);
        let toml = format!(
            "{}[domains.\"*.tenants.test\"]\n{servers}\n[domains.\"*\"]\n{servers}\n",
            peer.toml()
        );
        let gateway = Gateway::start(&toml)?;
        let url = Url::parse(&gateway.bosh_url())?;
        let scene = Scene { gateway, peer, url };
        let gateway = &scene.gateway;

        // Whoever cannot log in is in no count, and cannot make any.
        let headers = "User-Agent: Nobody/1.0\r\nOrigin: https://nobody.test\r\n";
        let (_stranger, _link) = create(&scene, DOMAIN, headers).await?;
        let (_socket, _link) = open(gateway, &scene.peer, headers).await?;
        ensure!(samples(gateway, CENSUS)?.is_empty());

        let edge = format!("User-Agent: {EDGE}\r\nOrigin: https://Chat.Example.org:443\r\n");
        let firefox = format!("User-Agent: {FIREFOX}\r\nOrigin: http://192.0.2.1:8080\r\n");
        let odd = "User-Agent: Gajim/0.16.9\r\nOrigin: https://a b\r\n";
        let mut kept = Vec::new();
        for (domain, headers) in [
            (DOMAIN, &*edge),
            (DOMAIN, &*edge),
            ("alice.tenants.test", &*edge),
            ("bob.tenants.test", &*edge),
            ("anywhere.test", &*firefox),
            (DOMAIN, odd),
            (DOMAIN, ""),
        ] {
            kept.push(bind(&scene, domain, headers).await?);
        }
        let (mut socket, mut link) = open(gateway, &scene.peer, &firefox).await?;
        socket.send_text(scene::AUTH).await?;
        link.until("</auth>").await?;
        link.write(scene::SUCCESS).await?;
        texts(&mut socket, 1).await?;
        socket.send_text(OPEN).await?;
        scene::header(&mut link).await?;
        link.write(&format!("{HEADER}{}", scene::BINDING)).await?;
        texts(&mut socket, 2).await?;
        socket.send_text(scene::BIND).await?;
        link.until("</iq>").await?;
        link.write(scene::BOUND).await?;
        texts(&mut socket, 1).await?;
        // What comes later counts nothing.
        let (session, link) = kept.first_mut().context("no session")?;
        link.write(&message("later")).await?;
        ensure!(session.next("", "").await?.body().await?.messages() == ["later"]);

        become_these(
            gateway,
            CENSUS,
            &[
                ("client=\"edge\",domain=\"example.test\",origin=\"https://chat.example.org\",transport=\"bosh\"", 2.0),
                ("client=\"edge\",domain=\"*.tenants.test\",origin=\"https://chat.example.org\",transport=\"bosh\"", 2.0),
                ("client=\"firefox\",domain=\"*\",origin=\"address\",transport=\"bosh\"", 1.0),
                ("client=\"gajim\",domain=\"example.test\",origin=\"invalid\",transport=\"bosh\"", 1.0),
                ("client=\"none\",domain=\"example.test\",origin=\"none\",transport=\"bosh\"", 1.0),
                ("client=\"firefox\",domain=\"example.test\",origin=\"address\",transport=\"websocket\"", 1.0),
            ],
        )
        .await?;
        // As many as have bound one.
        let bound = "bosphorus_session_bound_seconds_count{transport=\"bosh\"}";
        ensure!(gateway.metric(bound)? == 7.0);

        // Other domains and origins are counted under what is configured then; who began before
        // goes on with what he began with.
        let (mut early, mut early_link) = create(&scene, "late.tenants.test", &edge).await?;
        gateway.write_config(&format!(
            "{}allowed_origins = [\"http://192.0.2.1:8080\", \"https://*.example.org\"]\n\
             [domains.\"anywhere.test\"]\n{servers}\n",
            scene.peer.toml()
        ))?;
        gateway.signal("HUP")?;
        let reloads = "bosphorus_config_reloads_total{outcome=\"ok\"}";
        eventually("the reload", async || (gateway.metric(reloads).ok()? == 1.0).then_some(()))
            .await?;
        scene.log_in(&mut early, &mut early_link).await?;
        for (domain, headers) in [(DOMAIN, &*edge), (DOMAIN, &*firefox), ("anywhere.test", odd)] {
            kept.push(bind(&scene, domain, headers).await?);
        }
        become_these(
            gateway,
            CENSUS,
            &[
                ("client=\"edge\",domain=\"example.test\",origin=\"https://chat.example.org\",transport=\"bosh\"", 3.0),
                ("client=\"edge\",domain=\"*.tenants.test\",origin=\"https://chat.example.org\",transport=\"bosh\"", 3.0),
                ("client=\"firefox\",domain=\"*\",origin=\"address\",transport=\"bosh\"", 1.0),
                ("client=\"firefox\",domain=\"example.test\",origin=\"http://192.0.2.1:8080\",transport=\"bosh\"", 1.0),
                ("client=\"gajim\",domain=\"example.test\",origin=\"invalid\",transport=\"bosh\"", 1.0),
                ("client=\"gajim\",domain=\"anywhere.test\",origin=\"invalid\",transport=\"bosh\"", 1.0),
                ("client=\"none\",domain=\"example.test\",origin=\"none\",transport=\"bosh\"", 1.0),
                ("client=\"firefox\",domain=\"example.test\",origin=\"address\",transport=\"websocket\"", 1.0),
            ],
        )
        .await
    })
}

/// An upgrade request of which one thing is another.
fn upgrade(from: &str, to: &str) -> String {
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: xmpp\r\nOrigin: https://chat.test\r\n\r\n";
    assert!(request.contains(from), "{from}");
    request.replace(from, to)
}

/// Each way in which an upgrade comes to nothing has its word, and is counted once.
#[test]
fn failed_upgrades_are_told_by_reason() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let toml = |require: &str, rest: &str| {
            format!(
                "[ws]\nallowed_origins = [\"https://chat.test\"]\n{require}\n{rest}\n\
                 [domains.\"deaf.test\"]\nservers = [\"xmpp://127.0.0.1:1\"]\n\
                 [domains.\"other.test\"]\nservers = [\"xmpp://127.0.0.1:1\"]\n\
                 allowed_origins = [\"https://other.test\"]\n{}",
                peer.toml()
            )
        };
        let gateway = Gateway::start(&toml("", ""))?;
        let authority = gateway.listen().to_string();
        let mut expected = BTreeMap::new();
        for (outcome, status, from, to) in [
            ("not_found", 404, "/ws", "/elsewhere"),
            ("method", 405, "GET", "PUT"),
            ("no_upgrade", 400, "Upgrade: websocket\r\n", ""),
            ("no_upgrade", 400, "Upgrade: websocket\r\nConnection: Upgrade", "Connection: close"),
            ("no_connection", 400, "Connection: Upgrade\r\n", ""),
            ("no_connection", 400, "Connection: Upgrade", "Connection: close"),
            ("http_1_0", 400, "HTTP/1.1", "HTTP/1.0"),
            ("version", 426, "Version: 13", "Version: 8"),
            ("key", 400, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
            ("key", 400, "dGhlIHNhbXBsZSBub25jZQ==", "short"),
            (
                "malformed",
                400,
                "Upgrade: websocket",
                "Upgrade: websocket, h2c\r\nContent-Length: 1",
            ),
            ("subprotocol", 400, "Protocol: xmpp", "Protocol: mqtt"),
            ("subprotocol", 400, "Sec-WebSocket-Protocol: xmpp\r\n", ""),
            ("origin", 403, "https://chat.test", "https://evil.test"),
        ] {
            let refused = Socket::request_raw(&authority, upgrade(from, to).as_bytes()).await?;
            let Err(refused) = refused else { bail!("{outcome}: {to} is accepted") };
            ensure!(refused.status == status, "{outcome}: {to}: {refused:?}");
            *expected.entry(outcome).or_insert(0.0) += 1.0;
        }
        // What nobody meant as an upgrade is none.
        let plain = "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n";
        let Err(answer) = Socket::request_raw(&authority, plain.as_bytes()).await? else {
            bail!("it was no upgrade")
        };
        ensure!(answer.status == 200);

        // What is accepted and of no use.
        let accepted = async |open: &str| {
            let socket = Socket::request_raw(&authority, upgrade("GET", "GET").as_bytes()).await?;
            let Ok(mut socket) = socket else { bail!("the upgrade is refused") };
            if !open.is_empty() {
                socket.send_text(open).await?;
            }
            Ok(socket)
        };
        drop(accepted("").await?);
        for domain in ["nowhere.test", "other.test", "deaf.test"] {
            let mut socket = accepted(&OPEN.replace("example.test", domain)).await?;
            while !matches!(socket.receive().await?, Received::Close(..) | Received::Lost(_)) {}
        }
        let (socket, _link) = open(&gateway, &peer, "Origin: https://chat.test\r\n").await?;
        drop(socket);
        // One that has logged in was of use.
        let (mut socket, mut link) = open(&gateway, &peer, "Origin: https://chat.test\r\n").await?;
        socket.send_text(scene::AUTH).await?;
        link.until("</auth>").await?;
        link.write(scene::SUCCESS).await?;
        texts(&mut socket, 1).await?;
        drop(socket);
        expected.extend([
            ("accepted", 6.0),
            ("never_opened", 1.0),
            ("not_served", 2.0),
            ("no_server", 1.0),
            ("no_login", 1.0),
        ]);
        let labels: Vec<_> = expected
            .iter()
            .map(|(outcome, times)| (format!("outcome=\"{outcome}\""), *times))
            .collect();
        let expected: Vec<_> = labels.iter().map(|(labels, times)| (&**labels, *times)).collect();
        become_these(&gateway, UPGRADES, &expected).await?;

        let strict = Gateway::start(&toml("require_origin = true", "[limits]\nsessions = 1"))?;
        let authority = strict.listen().to_string();
        let anonymous = upgrade("Origin: https://chat.test\r\n", "");
        let Err(refused) = Socket::request_raw(&authority, anonymous.as_bytes()).await? else {
            bail!("it has no origin")
        };
        ensure!(refused.status == 403);
        let whole = upgrade("GET", "GET");
        let Ok(_one) = Socket::request_raw(&authority, whole.as_bytes()).await? else {
            bail!("there is room for one")
        };
        let Err(refused) = Socket::request_raw(&authority, whole.as_bytes()).await? else {
            bail!("there is room for one only")
        };
        ensure!(refused.status == 503);
        let expected = [("no_origin", 1.0), ("accepted", 1.0), ("overload", 1.0)]
            .map(|(outcome, times)| (format!("outcome=\"{outcome}\""), times));
        let expected = expected.each_ref().map(|(labels, times)| (&**labels, *times));
        become_these(&strict, UPGRADES, &expected).await
    })
}

/// Whoever comes over BOSH a moment after his WebSocket had failed is counted by why it had, once;
/// others are not, and nobody is whose address may be a proxy's.
#[test]
fn who_falls_back_is_counted() -> Result {
    block_on(async {
        let of_clients = Scene::with("[limits]\nexempt_peers = []").await?;
        let of_proxies = Scene::with("").await?;
        for (scene, expected) in [
            (
                &of_clients,
                &[("outcome=\"no_upgrade\"", 1.0), ("outcome=\"never_opened\"", 1.0)][..],
            ),
            (&of_proxies, &[]),
        ] {
            let gateway = &scene.gateway;
            let mut kept = vec![bind(scene, DOMAIN, "").await?];
            let stripped = upgrade("Upgrade: websocket\r\n", "");
            let authority = gateway.listen().to_string();
            ensure!(Socket::request_raw(&authority, stripped.as_bytes()).await?.is_err());
            // A session alone is no login.
            let (mut session, mut link) = create(scene, DOMAIN, "").await?;
            ensure!(samples(gateway, FALLBACKS)?.is_empty());
            scene.log_in(&mut session, &mut link).await?;
            kept.push(bind(scene, DOMAIN, "").await?);
            drop(Socket::connect(&gateway.ws_url()).await?);
            let never = "bosphorus_upgrades_total{outcome=\"never_opened\"}";
            eventually("the end", async || (gateway.metric(never).ok()? == 1.0).then_some(()))
                .await?;
            kept.push(bind(scene, DOMAIN, "").await?);
            become_these(gateway, FALLBACKS, expected).await?;
        }
        Ok(())
    })
}

/// Each answer that a client gets is counted, by why it was sent then.
#[test]
fn every_answer_has_its_reason() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let gateway = &scene.gateway;
        let mut answers = 0.0;
        let attributes = CREATION.replace("wait='60'", "wait='1'");
        // The creation, and what a login takes.
        let (mut session, mut link) = scene.bound_with(&attributes).await?;
        answers += 4.0;
        let mut elapsed = session.next("", "").await?;
        ensure!(elapsed.body().await?.is_empty());
        session.keep(elapsed);
        let mut first = session.next("", "").await?;
        let mut second = session.next("", "").await?;
        ensure!(first.body().await?.is_empty(), "no more than one is held");
        link.write(&message("a")).await?;
        ensure!(second.body().await?.messages() == ["a"]);
        let mut again = session.repeat(&second).await?;
        ensure!(again.body().await?.messages() == ["a"]);
        let mut paused = session.next("pause='10'", "").await?;
        paused.body().await?;
        answers += 5.0;
        // A request whose client has gone has no answer.
        let mut gone = session.next("", "").await?;
        eventually("the request", async || {
            (gateway.metric("bosphorus_bosh_requests_open").ok()? == 1.0).then_some(())
        })
        .await?;
        gone.cut(Cut::Reset)?;
        eventually("its end", async || {
            (gateway.metric("bosphorus_bosh_requests_open").ok()? == 0.0).then_some(())
        })
        .await?;
        let mut ended = session.next("type='terminate'", "").await?;
        ended.body().await?;
        answers += 1.0;
        // Those that no session has got.
        let mut strangers = 0.0;
        session.sid = "nobody".to_owned();
        let unknown = session.text(session.rid + 1, "", "");
        for body in [&*unknown, "<body/>", "text"] {
            let mut connection = Connection::open(&scene.url.authority).await?;
            connection.send(&scene.url.post(CONTENT_TYPE, body)).await?;
            connection.prompt_answer().await?;
            strangers += 1.0;
        }
        let why = |text: &'static str, times: f64| (text, times);
        become_these(
            gateway,
            "bosphorus_bosh_responses_total",
            &[
                why("why=\"created\"", 1.0),
                why("why=\"payload\"", 4.0),
                why("why=\"wait_elapsed\"", 1.0),
                why("why=\"hold_exceeded\"", 1.0),
                why("why=\"replay\"", 1.0),
                why("why=\"pause\"", 1.0),
                why("why=\"terminate\"", 1.0),
            ],
        )
        .await?;
        let sum = |family: &str| -> Result<f64> { Ok(samples(gateway, family)?.values().sum()) };
        ensure!(sum("bosphorus_bosh_responses_total")? == answers);
        ensure!(sum("bosphorus_bosh_refused_total")? == strangers);
        Ok(())
    })
}

/// What a proxy sends on over HTTP/2 is told as such.
#[test]
fn an_upgrade_over_http2_is_told() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let ca = Ca::new();
        let identity = ca.issue(&["gateway.test"], Validity::Now);
        let gateway = Gateway::start_tls(&peer.toml(), identity.pem())?;
        let config = bridge::client(&ca.file(), rustls::ALL_VERSIONS, &[b"h2"])?;
        let mut http2 = Http2::connect(&config, gateway.tls(), "gateway.test").await?;
        let request = http::Request::get("https://gateway.test/ws")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "13")
            .body(())?;
        let (answer, _) = http2.requests.send_request(request, true)?;
        ensure!(answer.await?.status() == 400);
        http2.ended().await?;
        become_these(&gateway, UPGRADES, &[("outcome=\"http_2\"", 1.0)]).await
    })
}

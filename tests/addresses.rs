//! Who the client is behind proxies, and what one address may have: headers that are believed or
//! not, the PROXY protocol before HTTP, sessions bound to TLS, limits on both transports. The
//! server behind is played by the test, or not there where nothing depends on it.

mod common;

use anyhow::{Context, ensure};
use common::bosh::{Body, CONTENT_TYPE, CREATION, Session, creation, first_rid};
use common::gateway::Gateway;
use common::http::{Answer, Connection, Url};
use common::scene::{AUTH, DOMAIN, FEATURES, HEADER, SUCCESS, Scene, header, message};
use common::socket::Socket;
use common::{Result, block_on, eventually};

const HTTPBIND: &str = "http://jabber.org/protocol/httpbind";
const SIGNATURE: &[u8] = b"\r\n\r\n\x00\r\nQUIT\n";

/// A gateway with these keys whose server is not there; so a session that is made soon ends.
fn gateway(listen: &str, limits: &str) -> Result<(Gateway, Url)> {
    let gateway = Gateway::start(&format!(
        "[listen]\n{listen}\n[limits]\n{limits}\n\
         [log]\nfilter = \"debug\"\n[domains.\"{DOMAIN}\"]\nservers = [\"xmpp://127.0.0.1:9\"]\n"
    ))?;
    let url = Url::parse(&gateway.bosh_url())?;
    Ok((gateway, url))
}

/// What a request is that no session gets.
fn stray() -> String {
    format!("<body rid='5' sid='nobody' xmlns='{HTTPBIND}'/>")
}

async fn ask(url: &Url, before: &[u8], request: &[u8]) -> Result<Answer> {
    let mut connection = Connection::open(&url.authority).await?;
    connection.send(&[before, request].concat()).await?;
    connection.prompt_answer().await
}

/// The client's address in the log, as a request that no session gets leaves it there.
async fn logged(gateway: &Gateway, url: &Url, before: &[u8], headers: &str) -> Result<String> {
    let seen = gateway.log().matches("bosh_refused").count();
    ask(url, before, &url.post(headers, &stray())).await?;
    eventually("the line in the log", async || {
        let log = plain(&gateway.log());
        let line = log.lines().filter(|line| line.contains("bosh_refused")).nth(seen)?;
        let peer = line.split("peer=").nth(1).unwrap_or_default();
        Some(peer.split(' ').next().unwrap_or_default().to_owned())
    })
    .await
}

/// Without the colours of a terminal.
fn plain(log: &str) -> String {
    let mut parts = log.split('\u{1b}');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += part.split_once('m').map_or(part, |(_, rest)| rest);
    }
    text
}

/// SEC-16: what a refused client is told, whatever the transport.
fn is_busy(status: u16, header: impl Fn(&str) -> Option<String>) -> Result {
    ensure!(status == 503, "{status}");
    let wait = header("Retry-After").context("no Retry-After")?;
    ensure!(wait.parse::<u32>().is_ok_and(|wait| (5..20).contains(&wait)), "{wait}");
    ensure!(header("Access-Control-Allow-Origin").as_deref() == Some("*"), "no CORS");
    Ok(())
}

async fn create(url: &Url, headers: &str) -> Result<Answer> {
    let text = creation(first_rid(), &format!("to='{DOMAIN}' {CREATION}"));
    ask(url, b"", &url.post(&format!("{CONTENT_TYPE}{headers}"), &text)).await
}

/// Whether a session was made, which may have ended already for want of a server.
fn is_session(answer: &Answer) -> Result {
    let text = answer.text()?;
    let is_one = text.contains(" sid=") || text.contains("'remote-connection-failed'");
    ensure!(answer.status == 200 && is_one, "{}{text}", answer.head);
    Ok(())
}

/// Asks until it is refused, which `most` times it must not be; a slow machine earns further ones.
async fn until_busy(most: usize, mut ask: impl AsyncFnMut() -> Result<bool>) -> Result {
    for count in 0.. {
        if ask().await? {
            ensure!(count >= most, "refused after {count}");
            break;
        }
        ensure!(count < 10 + 3 * most, "{count} were not refused");
    }
    Ok(())
}

/// SEC-19: headers of a peer that is not listed are ignored; of a listed one, the rightmost address
/// that is no proxy's counts.
#[test]
fn forwarding_headers_count_from_trusted_peers() -> Result {
    block_on(async {
        let (gateway, url) = gateway("", "")?;
        for headers in [
            "",
            "X-Forwarded-For: 192.0.2.1\r\n",
            "Forwarded: for=192.0.2.1\r\n",
            "X-Real-IP: x\r\n",
        ] {
            let peer = logged(&gateway, &url, b"", headers).await?;
            ensure!(peer.starts_with("127.0.0.1:"), "{headers:?}: {peer}");
        }
        // Whose proxy it is wants to know, once.
        ensure!(gateway.log().matches("forwarding_headers_ignored").count() == 1);
        let (gateway, url) =
            self::gateway("trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]", "")?;
        for (headers, client) in [
            ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1:0"),
            ("X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n", "192.0.2.1:0"),
            (
                "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n",
                "192.0.2.1:0",
            ),
            ("X-Forwarded-For: [2001:db8::1]:4711\r\n", "[2001:db8::1]:4711"),
            (
                "Forwarded: for=\"[2001:db8::1]:4711\";proto=https, for=10.0.0.2\r\n",
                "[2001:db8::1]:4711",
            ),
            ("Forwarded: for=198.51.100.7\r\nX-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1:0"),
            // Malformed: the peer itself.
            ("X-Forwarded-For: 192.0.2.1, nonsense\r\n", "127.0.0.1:"),
            ("Forwarded: for=unknown\r\n", "127.0.0.1:"),
            ("", "127.0.0.1:"),
        ] {
            let peer = logged(&gateway, &url, b"", headers).await?;
            ensure!(peer.starts_with(client), "{headers:?}: {peer}");
        }
        Ok(())
    })
}

/// SEC-19: the WebSocket knows its client in the same way.
#[test]
fn a_websocket_has_its_clients_address() -> Result {
    block_on(async {
        let scene =
            Scene::with("[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n[log]\nfilter = \"debug\"\n")
                .await?;
        let headers = "Sec-WebSocket-Protocol: xmpp\r\nX-Forwarded-For: 192.0.2.1\r\n";
        let socket = Socket::request(&scene.gateway.ws_url(), headers).await?;
        let mut socket = socket.map_err(|refused| anyhow::anyhow!(refused.head))?;
        socket.send_close(1000).await?;
        eventually("the end of it in the log", async || {
            let log = plain(&scene.gateway.log());
            log.lines()
                .any(|line| {
                    line.contains("session_never_opened") && line.contains("peer=192.0.2.1:0")
                })
                .then_some(())
        })
        .await
    })
}

/// SEC-20: a listed peer begins with a header, whose client it is then; TLVs are skipped; LOCAL and
/// UNKNOWN keep the socket's address. HTTP behind a header of either version works as ever.
#[test]
fn proxy_headers_name_the_client() -> Result {
    block_on(async {
        let (gateway, url) = gateway("proxy_protocol = [\"127.0.0.0/8\"]", "")?;
        let v2 = |command: u8, family: u8, block: &[u8]| {
            let length = u16::try_from(block.len()).expect("small").to_be_bytes();
            [SIGNATURE, &[command, family], &length, block].concat()
        };
        let v4 = [192, 0, 2, 1, 127, 0, 0, 1, 0x12, 0x67, 1, 187];
        let v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("address").octets();
        let v6 = [&v6("2001:db8::1")[..], &v6("::1"), &[0x12, 0x67, 1, 187]].concat();
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 443\r\n".to_vec(), "192.0.2.1:4711"),
            (b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n".to_vec(), "[2001:db8::1]:4711"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1:"),
            (v2(0x21, 0x11, &v4), "192.0.2.1:4711"),
            (v2(0x21, 0x11, &[&v4[..], &[4, 0, 2, 0, 0, 5, 0, 1, 7]].concat()), "192.0.2.1:4711"),
            (v2(0x21, 0x21, &v6), "[2001:db8::1]:4711"),
            (v2(0x20, 0x00, &[]), "127.0.0.1:"),
        ] {
            let peer = logged(&gateway, &url, &header, "").await?;
            ensure!(peer.starts_with(client), "{:?}: {peer}", String::from_utf8_lossy(&header));
        }
        let count = |outcome| {
            gateway.metric(&format!("bosphorus_proxy_headers_total{{outcome=\"{outcome}\"}}"))
        };
        ensure!((count("proxied")?, count("local")?) == (5.0, 2.0));
        Ok(())
    })
}

/// SEC-20: what is no header, too long, or does not come ends the connection without a word; from
/// peers that are not listed a header is garbage.
#[test]
fn proxy_headers_have_to_be_there() -> Result {
    block_on(async {
        let (gateway, url) =
            gateway("proxy_protocol = [\"127.0.0.1\"]\nproxy_protocol_timeout = \"1s\"", "")?;
        let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(100));
        for (bytes, outcome) in [
            (url.post("", &stray()), "malformed"),
            (b"PROXY TCP4 192.0.2.1 127.0.0.1 4711\r\n".to_vec(), "malformed"),
            (long.into_bytes(), "too_long"),
            ([SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(), "too_long"),
            (b"PROXY TCP4 192.0.2.1".to_vec(), "late"),
            (Vec::new(), "late"),
        ] {
            let sample = format!("bosphorus_proxy_headers_total{{outcome=\"{outcome}\"}}");
            let before = gateway.metric(&sample)?;
            let mut connection = Connection::open(&url.authority).await?;
            connection.send(&bytes).await?;
            ensure!(connection.remainder().await?.is_empty(), "answered");
            ensure!(gateway.metric(&sample)? == before + 1.0, "{outcome}");
        }
        let key = "listen.proxy_protocol_timeout";
        let hits = gateway.metric(&format!("bosphorus_limit_hits_total{{limit=\"{key}\"}}"))?;
        ensure!(hits == 2.0, "those that were late by their key, too");
        let header = b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 443\r\n";
        let mut connection = Connection::open_from("127.0.0.2", &url.authority).await?;
        connection.send(&[&header[..], &url.post("", &stray())].concat()).await?;
        let answer = connection.prompt_answer().await?;
        ensure!(answer.status == 400, "{}", answer.head);
        let mut connection = Connection::open_from("127.0.0.2", &url.authority).await?;
        connection.send(&url.post("", &stray())).await?;
        ensure!(connection.prompt_answer().await?.status == 200);
        Ok(())
    })
}

/// BOSH-89: a session that was created over TLS, as a trusted proxy says, takes no request without:
/// the connection is closed, the session lives, and the rid is not used up.
#[test]
fn a_session_over_tls_stays_on_tls() -> Result {
    const TLS: &str = "X-Forwarded-Proto: https\r\nX-Forwarded-For: 192.0.2.1\r\n";
    block_on(async {
        let scene = Scene::with("[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n").await?;
        let text = creation(first_rid(), &format!("to='{DOMAIN}' {CREATION}"));
        let rid = text.split('\'').nth(1).context("a rid")?.parse()?;
        let mut connection = Connection::open(&scene.url.authority).await?;
        connection.send(&scene.url.post(&format!("{CONTENT_TYPE}{TLS}"), &text)).await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        link.write(HEADER).await?;
        link.write(FEATURES).await?;
        let body = Body::of(&connection.prompt_answer().await?)?;
        let mut session = Session::of(&scene.url, rid, body)?;

        let request = session.text(session.rid + 1, "", AUTH);
        for headers in ["", "X-Forwarded-Proto: http\r\n", "X-Forwarded-For: 192.0.2.1\r\n"] {
            let mut plain = Connection::open(&scene.url.authority).await?;
            plain.send(&scene.url.post(&format!("{CONTENT_TYPE}{headers}"), &request)).await?;
            let left = plain.remainder().await?;
            ensure!(left.is_empty(), "answered: {}", String::from_utf8_lossy(&left));
        }
        let refused = "bosphorus_bosh_refused_total{why=\"insecure\"}";
        ensure!(scene.gateway.metric(refused)? == 3.0);

        session.headers = format!("{CONTENT_TYPE}{TLS}");
        scene.log_in(&mut session, &mut link).await?;
        link.write(&message("hello")).await?;
        let body = session.ask("", "").await?;
        ensure!(body.messages() == ["hello"], "{}", body.text);

        // One that was created without takes both.
        let (mut session, mut link) = scene.session().await?;
        session.headers = format!("{CONTENT_TYPE}{TLS}");
        let mut request = session.next("", AUTH).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        request.body().await?;
        Ok(())
    })
}

/// BOSH-89, SEC-20: the PROXY header of version 2 says whether there was TLS, too.
#[test]
fn the_proxy_header_tells_of_tls() -> Result {
    block_on(async {
        let scene = Scene::with(
            "[listen]\nproxy_protocol = [\"127.0.0.1\"]\n[bosh]\nfirst_response_timeout = \"1ms\"\n",
        )
        .await?;
        let (gateway, url) = (&scene.gateway, &scene.url);
        let header = |client: u8| {
            let address = [192, 0, 2, 1, 127, 0, 0, 1, 0x12, 0x67, 1, 187];
            let block = [&address[..], &[0x20, 0, 5, client, 0, 0, 0, 0]].concat();
            let length = u16::try_from(block.len()).expect("small").to_be_bytes();
            [SIGNATURE, &[0x21, 0x11], &length, &block].concat()
        };
        let rid = first_rid();
        let text = creation(rid, &format!("to='{DOMAIN}' {CREATION}"));
        let answer = ask(url, &header(1), &url.post(CONTENT_TYPE, &text)).await?;
        let session = Session::of(url, rid, Body::of(&answer)?)?;
        let request = url.post(CONTENT_TYPE, &session.text(rid + 1, "type='terminate'", ""));
        let mut plain = Connection::open(&url.authority).await?;
        plain.send(&[header(0), request.clone()].concat()).await?;
        ensure!(plain.remainder().await?.is_empty(), "answered");
        ensure!(gateway.metric("bosphorus_bosh_refused_total{why=\"insecure\"}")? == 1.0);
        ensure!(ask(url, &header(1), &request).await?.status == 200);
        Ok(())
    })
}

/// BOSH-90: the next request may come from another address.
#[test]
fn a_session_moves_between_networks() -> Result {
    block_on(async {
        let scene = Scene::with("[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n").await?;
        let (mut session, mut link) = scene.session().await?;
        for address in ["192.0.2.1", "2001:db8::1"] {
            session.headers = format!("{CONTENT_TYPE}X-Forwarded-For: {address}\r\n");
            session.fresh();
            link.write(&message(address)).await?;
            let body = session.ask("", "").await?;
            ensure!(body.messages() == [address], "{}", body.text);
        }
        Ok(())
    })
}

/// SEC-16: the 31st session within a minute is refused on either transport, with `Retry-After` and
/// CORS headers, for its address alone; others are served.
#[test]
fn new_sessions_are_bounded() -> Result {
    block_on(async {
        let listen = "trusted_proxies = [\"127.0.0.1\"]";
        let (gateway, url) = gateway(listen, "unauthenticated_per_address = 0")?;
        let one = "X-Forwarded-For: 192.0.2.1\r\n";
        let upgrade = async |headers: &str| {
            let headers = format!("Sec-WebSocket-Protocol: xmpp\r\n{headers}");
            Socket::request(&gateway.ws_url(), &headers).await
        };
        // Both count as one.
        for _ in 0..15 {
            upgrade(one).await?.map_err(|refused| anyhow::anyhow!(refused.head))?;
        }
        let busy = async |headers: &str| -> Result<bool> {
            let answer = create(&url, headers).await?;
            if answer.status == 200 {
                return is_session(&answer).map(|()| false);
            }
            is_busy(answer.status, |name| answer.header(name).map(str::to_owned)).map(|()| true)
        };
        until_busy(15, async || busy(one).await).await?;
        until_busy(0, async || {
            let Err(refused) = upgrade(one).await? else { return Ok(false) };
            is_busy(refused.status, |name| {
                let mut lines = refused.head.lines().filter_map(|line| line.split_once(':'));
                let (_, value) = lines.find(|(left, _)| left.eq_ignore_ascii_case(name))?;
                Some(value.trim().to_owned())
            })?;
            Ok(true)
        })
        .await?;
        let hits = "bosphorus_limit_hits_total{limit=\"new_sessions_per_minute\"}";
        ensure!(gateway.metric(hits)? == 2.0);

        // Another address, a proxy as itself, and one /64 as one.
        is_session(&create(&url, "X-Forwarded-For: 192.0.2.2\r\n").await?)?;
        for _ in 0..31 {
            is_session(&create(&url, "").await?)?;
        }
        let mut n = 0;
        until_busy(30, async || {
            n += 1;
            busy(&format!("X-Forwarded-For: 2001:db8::{n}\r\n")).await
        })
        .await?;
        is_session(&create(&url, "X-Forwarded-For: 2001:db8:0:1::1\r\n").await?)
    })
}

/// SEC-16: the defaults spare peers that are likely a proxy which nobody has listed.
#[test]
fn unlisted_sidecars_are_spared() -> Result {
    block_on(async {
        let (gateway, url) = gateway("", "")?;
        for _ in 0..40 {
            is_session(&create(&url, "X-Forwarded-For: 192.0.2.1\r\n").await?)?;
        }
        let metrics = gateway.metrics()?;
        let hits = metrics.lines().filter(|line| line.starts_with("bosphorus_limit_hits_total{"));
        ensure!(hits.clone().count() > 5 && hits.clone().all(|line| line.ends_with("} 0")));
        Ok(())
    })
}

/// SEC-16: sessions that have not authenticated are few, and an authenticated one is none of them.
#[test]
fn strangers_have_few_sessions() -> Result {
    block_on(async {
        let scene = Scene::with(
            "[limits]\nexempt_peers = []\nunauthenticated_per_address = 2\nsessions_per_address = 3\n",
        )
        .await?;
        let (mut one, mut link) = scene.session().await?;
        let (_two, _link) = scene.session().await?;
        let (_, mut refused) = scene.create(CREATION).await?;
        ensure!(refused.prompt_answer().await?.status == 503);
        let hits = |limit| {
            scene.gateway.metric(&format!("bosphorus_limit_hits_total{{limit=\"{limit}\"}}"))
        };
        ensure!(hits("unauthenticated_per_address")? == 1.0);
        scene.log_in(&mut one, &mut link).await?;
        let (_three, _link) = scene.session().await?;
        let (_, mut refused) = scene.create(CREATION).await?;
        ensure!(refused.prompt_answer().await?.status == 503);
        ensure!(hits("sessions_per_address")? == 1.0);
        Ok(())
    })
}

/// SEC-16: the same over WebSocket.
#[test]
fn strangers_have_few_websockets() -> Result {
    block_on(async {
        let scene =
            Scene::with("[limits]\nexempt_peers = []\nunauthenticated_per_address = 1\n").await?;
        let upgrade = async || {
            Socket::request(&scene.gateway.ws_url(), "Sec-WebSocket-Protocol: xmpp\r\n").await
        };
        let mut one = upgrade().await?.map_err(|refused| anyhow::anyhow!(refused.head))?;
        let refused = upgrade().await?.err().context("the second stranger")?;
        ensure!(refused.status == 503, "{}", refused.head);
        one.send_text(&format!(
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='{DOMAIN}' version='1.0'/>"
        ))
        .await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        one.send_text(AUTH).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        eventually("room for another stranger", async || upgrade().await.ok()?.ok()).await?;
        Ok(())
    })
}

/// SEC-16: whose logins fail all the time gets no further session for a while.
#[test]
fn failed_logins_are_bounded() -> Result {
    block_on(async {
        let scene =
            Scene::with("[limits]\nexempt_peers = []\nauth_failures_per_minute = 2\n").await?;
        let (mut session, mut link) = scene.session().await?;
        for _ in 0..2 {
            let mut request = session.next("", AUTH).await?;
            link.until("</auth>").await?;
            link.write(
                "<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>",
            )
            .await?;
            request.body().await?;
            session.keep(request);
        }
        let (_, mut refused) = scene.create(CREATION).await?;
        ensure!(refused.prompt_answer().await?.status == 503);
        let hits = "bosphorus_limit_hits_total{limit=\"auth_failures_per_minute\"}";
        ensure!(scene.gateway.metric(hits)? == 1.0);
        Ok(())
    })
}

/// SEC-16: requests in a second, and connections, which are closed upon.
#[test]
fn requests_and_connections_are_bounded() -> Result {
    block_on(async {
        let limits = "exempt_peers = []\nrequests_per_second = 3\nconnections_per_address = 2";
        let (gateway, url) = gateway("", limits)?;
        let mut one = Connection::open(&url.authority).await?;
        until_busy(3, async || {
            one.send(&url.post("", &stray())).await?;
            let answer = one.prompt_answer().await?;
            if answer.status == 200 {
                return Ok(false);
            }
            is_busy(answer.status, |name| answer.header(name).map(str::to_owned))?;
            Ok(true)
        })
        .await?;
        ensure!(
            gateway.metric("bosphorus_limit_hits_total{limit=\"requests_per_second\"}")? == 1.0
        );
        drop(one);

        let open = async |address| -> Result<Option<Connection>> {
            let mut connection = Connection::open_from(address, &url.authority).await?;
            connection.send(&url.request("GET", "", "")).await?;
            Ok(connection.answer().await.ok().flatten().map(|_| connection))
        };
        let _two = open("127.0.0.2").await?.context("the first")?;
        let three = open("127.0.0.2").await?.context("the second")?;
        ensure!(open("127.0.0.2").await?.is_none(), "the third of one address");
        ensure!(open("127.0.0.3").await?.is_some(), "another address");
        let hits = "bosphorus_limit_hits_total{limit=\"connections_per_address\"}";
        ensure!(gateway.metric(hits)? == 1.0);
        // What becomes a WebSocket is a connection no more.
        let headers = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: xmpp\r\n\r\n";
        let mut sockets = Vec::new();
        for _ in 0..3 {
            let socket = eventually("a WebSocket", async || {
                let mut socket = Connection::open_from("127.0.0.5", &url.authority).await.ok()?;
                socket.send(headers.as_bytes()).await.ok()?;
                let answer = socket.answer().await.ok()??;
                (answer.status == 101).then_some(socket)
            });
            sockets.push(socket.await?);
        }
        drop(three);
        eventually("room for another one", async || open("127.0.0.2").await.ok().flatten()).await?;
        Ok(())
    })
}

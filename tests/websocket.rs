//! The WebSocket front over real sockets: the HTTP side of the upgrade, what reaches the wire of
//! the upstream and what does not, the end of connections, limits and shutdown. The server is a
//! scripted one, so that every byte can be seen.

mod common;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use common::gateway::Gateway;
use common::peer::{Link, Peer};
use common::socket::{Received, Socket};
use common::{PATIENCE, Result, block_on, eventually};

const OPEN: &str =
    "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.test' version='1.0'/>";
const CLOSE: &str = "<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" />";
const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='s1' from='example.test' version='1.0'>";
const FEATURES: &str = "<stream:features><mechanisms \
    xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
    </stream:features>";
const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
const BOUND: &str = "<iq type='result' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
    <jid>a@example.test/r</jid></bind></iq>";
const FOOTER: &str = "</stream:stream>";

/// A session whose features have arrived: client and server side of it.
async fn opened(gateway: &Gateway, peer: &Peer) -> Result<(Socket, Link)> {
    let mut client = Socket::connect(&gateway.ws_url()).await?;
    client.send_text(OPEN).await?;
    let mut link = peer.accept().await?;
    link.until("version='1.0'>").await?;
    link.write(&format!("{HEADER}{FEATURES}")).await?;
    expect(&mut client, "<open ").await?;
    expect(&mut client, "<stream:features ").await?;
    Ok((client, link))
}

/// A session with a bound resource; `sm` says whether the server then enables stream management.
async fn bound(gateway: &Gateway, peer: &Peer, sm: bool) -> Result<(Socket, Link)> {
    let (mut client, mut link) = opened(gateway, peer).await?;
    let auth =
        "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGEAc2VjcmV0</auth>";
    client.send_text(auth).await?;
    link.until("</auth>").await?;
    link.write(SUCCESS).await?;
    expect(&mut client, "<success ").await?;
    client.send_text(OPEN).await?;
    link.until("version='1.0'>").await?;
    link.write(&format!("{HEADER}<stream:features/>{BOUND}")).await?;
    expect(&mut client, "<open ").await?;
    expect(&mut client, "<stream:features ").await?;
    expect(&mut client, "<iq ").await?;
    if sm {
        link.write("<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true'/>").await?;
        expect(&mut client, "<enabled ").await?;
    }
    Ok((client, link))
}

/// The next text message, which has to begin so.
async fn expect(client: &mut Socket, prefix: &str) -> Result<String> {
    match client.receive().await? {
        Received::Text(text) if text.starts_with(prefix) => Ok(text),
        other => bail!("expected {prefix}, got {other:?}"),
    }
}

async fn expect_close(client: &mut Socket, code: u16) -> Result {
    match client.receive().await? {
        Received::Close(Some(got), _) if got == code => Ok(()),
        other => bail!("expected Close {code}, got {other:?}"),
    }
}

async fn http(gateway: &Gateway, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(gateway.listen()).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.context("no end of the answer")??;
    Ok(String::from_utf8(answer)?)
}

/// WS-01, WS-02, WS-06, WS-07: the answer to an upgrade, with the subprotocol once, in any list,
/// without extensions, whatever the query.
#[test]
fn the_upgrade_is_answered() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        for protocols in [
            "Sec-WebSocket-Protocol: xmpp\r\n",
            "Sec-WebSocket-Protocol: chat, xmpp\r\n",
            "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: xmpp\r\n",
        ] {
            let headers = format!("{protocols}Sec-WebSocket-Extensions: permessage-deflate\r\n");
            let url = format!("{}?room=a&token=b", gateway.ws_url());
            let Ok(socket) = Socket::request(&url, &headers).await? else { bail!("refused") };
            let head = socket.head().to_lowercase();
            ensure!(socket.header("Sec-WebSocket-Accept") == Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
            ensure!(head.matches("sec-websocket-protocol: xmpp\r\n").count() == 1, "{head}");
            ensure!(!head.contains("chat") && !head.contains("extensions"), "{head}");
        }
        Ok(())
    })
}

/// WS-03, WS-04, WSL-13: what is refused, and that no connection is made for it.
#[test]
fn bad_upgrades_are_refused() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        for headers in ["Sec-WebSocket-Protocol: mqtt\r\n", ""] {
            let Err(refused) = Socket::request(&gateway.ws_url(), headers).await? else {
                bail!("accepted")
            };
            ensure!(refused.status == 400, "{refused:?}");
        }
        let old = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: xmpp\r\n\
            Sec-WebSocket-Version: 8\r\n\r\n";
        let answer = http(&gateway, old).await?;
        ensure!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
        ensure!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
        let hixie = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5\r\nSec-WebSocket-Key2: 12998 5 Y3 1  .P00\r\n\
            Sec-WebSocket-Protocol: xmpp\r\n\r\n^n:ds[4U";
        ensure!(http(&gateway, hixie).await?.starts_with("HTTP/1.1 426 "));
        let elsewhere = old.replace("/ws ", "/elsewhere ").replace("Version: 8", "Version: 13");
        ensure!(http(&gateway, &elsewhere).await?.starts_with("HTTP/1.1 404 "));
        // A good session is the first that reaches the server.
        opened(&gateway, &peer).await?;
        for (outcome, times) in [("subprotocol", 2.0), ("version", 2.0), ("not_found", 1.0)] {
            let sample = format!("bosphorus_upgrades_total{{outcome=\"{outcome}\"}}");
            ensure!(gateway.metric(&sample)? == times, "{outcome}");
        }
        ensure!(gateway.metric("bosphorus_upstream_connects_total{outcome=\"ok\"}")? == 1.0);
        Ok(())
    })
}

/// WS-05: a plain `GET` answers with a text and CORS headers, also where the client offers an
/// upgrade that is no WebSocket; other methods are 405. SEC-23: the public port has no metrics.
#[test]
fn plain_requests_are_answered() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let get = |method: &str, path: &str, more: &str| {
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n")
        };
        let answer = http(&gateway, &get("GET", "/xmpp-websocket?token=secret", "")).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        ensure!(
            answer.to_lowercase().contains("\r\naccess-control-allow-origin: *\r\n"),
            "{answer}"
        );
        let answer = http(&gateway, &get("HEAD", "/ws/", "")).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
        let answer = http(&gateway, &get("POST", "/ws", "Content-Length: 0\r\n")).await?;
        ensure!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        let answer = http(&gateway, &get("GET", "/metrics", "")).await?;
        ensure!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let h2c = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
            Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        let answer = http(&gateway, h2c).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(())
    })
}

/// WS-05, WS-01: an upgrade may follow other requests in one segment, and every answer comes.
#[test]
fn an_upgrade_may_follow_other_requests() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let get = "GET /ws HTTP/1.1\r\nHost: x\r\n";
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: xmpp\r\n\r\n";
        let mut stream = TcpStream::connect(gateway.listen()).await?;
        stream.write_all(format!("{get}\r\n{get}\r\n{get}{upgrade}").as_bytes()).await?;
        let mut answers = String::new();
        while !answers.contains("HTTP/1.1 101 ") {
            let mut chunk = [0; 4096];
            let n = timeout(PATIENCE, stream.read(&mut chunk)).await??;
            ensure!(n > 0, "closed after {answers}");
            answers.push_str(std::str::from_utf8(&chunk[..n])?);
        }
        ensure!(answers.matches("HTTP/1.1 200 ").count() == 2, "{answers}");
        Ok(())
    })
}

/// SEC-01: an origin that is not listed is 403, a client without one passes.
#[test]
fn origins_are_checked() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let toml = format!("[ws]\nallowed_origins = [\"https://app.example\"]\n{}", peer.toml());
        let gateway = Gateway::start(&toml)?;
        let protocol = "Sec-WebSocket-Protocol: xmpp\r\n";
        for (origin, fine) in [
            ("Origin: https://app.example\r\n", true),
            ("Origin: HTTPS://APP.example\r\n", true),
            ("Origin: https://evil.example\r\n", false),
            ("Origin: null\r\n", false),
            ("", true),
        ] {
            let answer = Socket::request(&gateway.ws_url(), &format!("{protocol}{origin}")).await?;
            match answer {
                Ok(_) => ensure!(fine, "{origin}"),
                Err(refused) => ensure!(!fine && refused.status == 403, "{origin} {refused:?}"),
            }
        }
        Ok(())
    })
}

/// UP-01: each session has a connection of its own, and the end of one leaves the others.
#[test]
fn every_session_has_its_own_connection() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(bound(&gateway, &peer, false).await?);
        }
        let (client, link) = sessions.remove(1);
        drop(client);
        ensure!(link.remainder().await?.is_empty());
        for (client, link) in &mut sessions {
            client.send_text("<presence/>").await?;
            link.until("<presence/>").await?;
        }
        let open = "bosphorus_sessions{transport=\"websocket\"}";
        eventually("two sessions", async || (gateway.metric(open).ok()? == 2.0).then_some(())).await
    })
}

/// WS-19, WS-21: what is no opening, or one of a domain that is not served, makes no connection.
#[test]
fn no_connection_without_a_good_open() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        for (message, condition) in [
            ("<iq xmlns='jabber:client' type='get' id='1'/>", "bad-format"),
            (
                "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='nope.test' version='1.0'/>",
                "host-unknown",
            ),
        ] {
            let mut client = Socket::connect(&gateway.ws_url()).await?;
            client.send_text(message).await?;
            expect(&mut client, "<open ").await?;
            let error = expect(&mut client, "<stream:error ").await?;
            ensure!(error.contains(condition), "{error}");
            expect(&mut client, CLOSE).await?;
            expect_close(&mut client, 1000).await?;
        }
        opened(&gateway, &peer).await?;
        ensure!(gateway.metric("bosphorus_upstream_connects_total{outcome=\"ok\"}")? == 1.0);
        Ok(())
    })
}

/// WS-31: an unreachable server is open, error, close, Close frame, in this order.
#[test]
fn an_unreachable_server_is_told() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let toml = peer.toml();
        drop(peer);
        let gateway = Gateway::start(&toml)?;
        let mut client = Socket::connect(&gateway.ws_url()).await?;
        client.send_text(OPEN).await?;
        expect(&mut client, "<open ").await?;
        let error = expect(&mut client, "<stream:error ").await?;
        ensure!(error.contains("<remote-connection-failed "), "{error}");
        expect(&mut client, CLOSE).await?;
        expect_close(&mut client, 1000).await?;
        ensure!(gateway.log().contains("server_connect_failed"), "{}", gateway.log());
        Ok(())
    })
}

/// WS-37, SM-04: a client that is cut off ends the upstream without a stream end, and what it
/// sent before is delivered whole.
#[test]
fn a_cut_client_leaves_no_footer() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let (mut client, link) = bound(&gateway, &peer, true).await?;
        client.send_text("<message to='b@example.test'><body>last</body></message>").await?;
        client.send_raw(&[0x81, 0xfe, 0xff]).await?;
        client.shut_write().await?;
        let rest = link.remainder().await?;
        ensure!(
            rest == "<message to='b@example.test'><body>last</body></message>",
            "upstream got {rest:?}"
        );
        Ok(())
    })
}

/// WS-33, WS-44: a stanza too big ends the upstream with `</stream:stream>`; the client reads the
/// error, `<close/>` and 1009 although its own bytes were not read.
#[test]
fn an_oversized_stanza_is_a_clean_end() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let (mut client, link) = bound(&gateway, &peer, false).await?;
        let big = format!("<message><body>{}</body></message>", "x".repeat(300 * 1024));
        client.send_text(&big).await?;
        let error = expect(&mut client, "<stream:error ").await?;
        ensure!(
            error.contains("<policy-violation ") && error.contains("stanza too big"),
            "{error}"
        );
        expect(&mut client, CLOSE).await?;
        expect_close(&mut client, 1009).await?;
        ensure!(matches!(client.receive().await?, Received::Lost(false)), "not a clean end");
        drop(client);
        ensure!(link.remainder().await? == FOOTER);
        Ok(())
    })
}

/// WS-34, WS-35, UP-35: a clean close on the wire, with what the server still had to say.
#[test]
fn a_clean_close_is_clean_on_both_sides() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let (mut client, mut link) = bound(&gateway, &peer, false).await?;
        client.send_text("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>").await?;
        link.until(FOOTER).await?;
        link.write("<message><body>bye</body></message></stream:stream>").await?;
        expect(&mut client, "<message ").await?;
        expect(&mut client, CLOSE).await?;
        ensure!(link.remainder().await?.is_empty(), "nothing follows the footer");
        client.send_close(1000).await?;
        expect_close(&mut client, 1000).await?;
        let ended = "bosphorus_sessions_ended_total{blame=\"nobody\",reason=\"closed\",\
            transport=\"websocket\"}";
        eventually("the end", async || (gateway.metric(ended).ok()? == 1.0).then_some(())).await
    })
}

/// UP-34, WS-32: after the server's stream error it gets our stream end and the connection ends.
#[test]
fn a_stream_error_of_the_server_ends_both() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let (mut client, mut link) = bound(&gateway, &peer, false).await?;
        link.write(
            "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
        )
        .await?;
        expect(&mut client, "<stream:error ").await?;
        expect(&mut client, CLOSE).await?;
        expect_close(&mut client, 1000).await?;
        ensure!(link.until(FOOTER).await? == FOOTER);
        link.write(FOOTER).await?;
        link.stream.shutdown().await?;
        ensure!(link.remainder().await?.is_empty());
        Ok(())
    })
}

/// UP-21, WS-06: at the loudest level the log has neither credentials, nor payload, nor a query.
#[test]
fn the_log_keeps_secrets() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let toml = format!("[log]\nfilter = \"trace\"\nformat = \"json\"\n{}", peer.toml());
        let gateway = Gateway::start(&toml)?;
        let url = format!("{}?token=t0kens3cret", gateway.ws_url());
        let Ok(mut client) = Socket::request(&url, "Sec-WebSocket-Protocol: xmpp\r\n").await?
        else {
            bail!("refused")
        };
        client.send_text(OPEN).await?;
        let mut link = peer.accept().await?;
        link.until("version='1.0'>").await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        expect(&mut client, "<open ").await?;
        expect(&mut client, "<stream:features ").await?;
        let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>\
            AGFsaWNlAHBhc3N3b3Jk</auth>";
        client.send_text(auth).await?;
        link.until("</auth>").await?;
        link.write("<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>Y2hhbGxlbmdl</challenge>")
            .await?;
        expect(&mut client, "<challenge ").await?;
        client
            .send_text("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>cmVzcG9u</response>")
            .await?;
        link.until("</response>").await?;
        link.write(SUCCESS).await?;
        expect(&mut client, "<success ").await?;
        client.send_text(OPEN).await?;
        link.until("version='1.0'>").await?;
        link.write(&format!("{HEADER}<stream:features/>")).await?;
        expect(&mut client, "<open ").await?;
        expect(&mut client, "<stream:features ").await?;
        client.send_text("<message><body>payl0ad</body></message>").await?;
        link.until("</message>").await?;
        // A failing session, too: its end is logged.
        client.send_text("<message><body>payl0ad</wrong>").await?;
        expect(&mut client, "<stream:error ").await?;
        drop((client, link));
        eventually("the end in the log", async || {
            gateway.log().contains("session_ended").then_some(())
        })
        .await?;
        let log = gateway.log();
        for secret in ["AGFsaWNl", "Y2hhbGxl", "cmVzcG9u", "t0kens3cret", "payl0ad", "password"] {
            ensure!(!log.contains(secret), "{secret} is in the log:\n{log}");
        }
        Ok(())
    })
}

/// WS-39: on SIGTERM a session with stream management gets 1001 and the server no end, another
/// gets `system-shutdown` and the server a clean end; readiness goes red, no connection is taken,
/// and the exit status is 0.
#[test]
fn sigterm_drains() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let (mut managed, managed_link) = bound(&gateway, &peer, true).await?;
        let (mut plain, mut plain_link) = bound(&gateway, &peer, false).await?;
        gateway.signal("TERM")?;
        expect_close(&mut managed, 1001).await?;
        ensure!(managed_link.remainder().await?.is_empty(), "no stream end where SM is on");
        let error = expect(&mut plain, "<stream:error ").await?;
        ensure!(error.contains("<system-shutdown "), "{error}");
        expect(&mut plain, CLOSE).await?;
        expect_close(&mut plain, 1001).await?;
        ensure!(plain_link.until(FOOTER).await? == FOOTER);
        // The plain session waits for its server: meanwhile the process is not ready.
        let (status, _) = gateway.admin_get("/ready")?;
        ensure!(status == 503, "/ready says {status} while draining");
        ensure!(gateway.admin_get("/health")?.0 == 200);
        let refused = TcpStream::connect(gateway.listen()).await;
        ensure!(refused.is_err(), "a new connection hangs while draining");
        managed.send_close(1001).await?;
        plain.send_close(1001).await?;
        plain_link.write(FOOTER).await?;
        drop(plain_link);
        let status = gateway.wait(PATIENCE)?;
        ensure!(status.code() == Some(0), "{status}\n{}", gateway.log());
        ensure!(TcpStream::connect(gateway.listen()).await.is_err());
        Ok(())
    })
}

/// A server that never ends does not hold the shutdown up beyond `drain.timeout`.
#[test]
fn the_drain_is_bounded() -> Result {
    block_on(async {
        for window in ["0s", "200ms"] {
            let peer = Peer::new().await?;
            let toml = format!(
                "[drain]\ntimeout = \"300ms\"\nwindow = \"{window}\"\n\
                 [upstream]\nclose_grace = \"60s\"\n{}",
                peer.toml()
            );
            let gateway = Gateway::start(&toml)?;
            let _session = bound(&gateway, &peer, false).await?;
            gateway.signal("INT")?;
            let status = gateway.wait(PATIENCE)?;
            ensure!(status.code() == Some(0), "{status}\n{}", gateway.log());
        }
        Ok(())
    })
}

/// Beyond `limits.sessions` an upgrade is 503 with `Retry-After` and CORS headers, and the place
/// of a session that ends is free again.
#[test]
fn sessions_are_limited() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&format!("[limits]\nsessions = 1\n{}", peer.toml()))?;
        let protocol = "Sec-WebSocket-Protocol: xmpp\r\n";
        let first = Socket::connect(&gateway.ws_url()).await?;
        let Err(refused) = Socket::request(&gateway.ws_url(), protocol).await? else {
            bail!("accepted")
        };
        let head = refused.head.to_lowercase();
        ensure!(refused.status == 503, "{head}");
        ensure!(head.contains("\r\nretry-after: "), "{head}");
        ensure!(head.contains("\r\naccess-control-allow-origin: *\r\n"), "{head}");
        drop(first);
        eventually("a free place", async || {
            Socket::request(&gateway.ws_url(), protocol).await.ok()?.ok().map(drop)
        })
        .await
    })
}

/// The counters agree with what was sent.
#[test]
fn metrics_count_what_passed() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let (mut client, mut link) = bound(&gateway, &peer, false).await?;
        let before = gateway.metric(
            "bosphorus_payload_bytes_total{direction=\"to_server\",transport=\"websocket\"}",
        )?;
        let stanza = "<message to='b@example.test'><body>x</body></message>";
        for _ in 0..7 {
            client.send_text(stanza).await?;
            link.until("</message>").await?;
        }
        link.write("<presence/><presence/><iq type='get' id='1'/>").await?;
        for _ in 0..3 {
            client.receive().await?;
        }
        let count = |direction: &str, kind: &str| {
            gateway.metric(&format!(
                "bosphorus_stanzas_total{{direction=\"{direction}\",kind=\"{kind}\",\
                 transport=\"websocket\"}}"
            ))
        };
        ensure!(count("to_server", "message")? == 7.0);
        ensure!(count("to_client", "presence")? == 2.0);
        ensure!(count("to_client", "iq")? == 2.0, "the bind result and the request");
        let after = gateway.metric(
            "bosphorus_payload_bytes_total{direction=\"to_server\",transport=\"websocket\"}",
        )?;
        ensure!(after - before == 7.0 * stanza.len() as f64, "{before} {after}");
        ensure!(gateway.metric("bosphorus_sessions_opened_total{transport=\"websocket\"}")? == 1.0);
        Ok(())
    })
}

/// A session whose client and server are both silent survives: nothing is closed for idleness
/// alone, and pings keep it open. (The interval is short here.)
#[test]
fn pings_keep_an_idle_session() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let toml = format!("[ws]\nping_interval = \"100ms\"\n{}", peer.toml());
        let gateway = Gateway::start(&toml)?;
        let (mut client, mut link) = bound(&gateway, &peer, false).await?;
        for _ in 0..5 {
            match timeout(PATIENCE, client.receive()).await?? {
                Received::Ping(_) => {}
                other => bail!("expected a ping, got {other:?}"),
            }
        }
        client.send_text("<presence/>").await?;
        link.until("<presence/>").await?;
        Ok(())
    })
}

/// WS-40: a client that answers no ping is dropped, and the server gets no stream end.
#[test]
fn a_silent_client_is_dropped() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let toml = format!("[ws]\nping_interval = \"100ms\"\n{}", peer.toml());
        let gateway = Gateway::start(&toml)?;
        let (mut client, link) = bound(&gateway, &peer, false).await?;
        client.answer_pings = false;
        ensure!(link.remainder().await?.is_empty());
        drop(client);
        Ok(())
    })
}

/// A port that is taken is an error with the address, and exit status 1.
#[test]
fn a_taken_port_is_said() -> Result {
    block_on(async {
        let taken = TcpListener::bind("127.0.0.1:0").await?;
        let address = taken.local_addr()?.to_string();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_bosphorus"))
            .args(["serve", "--domain", "example.test", "--server", "127.0.0.1:5222"])
            .args(["--listen", &address, "--admin", "127.0.0.1:0"])
            .output()?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{} {log}", output.status);
        ensure!(log.contains(&address) && log.contains("in use"), "{log}");
        Ok(())
    })
}

/// A hundred clients that are cut off at every point of the login leave nothing behind.
#[test]
fn cut_logins_leave_nothing() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&peer.toml())?;
        let server = tokio::spawn(async move {
            let mut links = Vec::new();
            while let Ok(mut link) = peer.accept().await {
                links.push(tokio::spawn(async move {
                    let _ = link.until("version='1.0'>").await;
                    let _ = link.write(&format!("{HEADER}{FEATURES}")).await;
                    link.remainder().await
                }));
            }
        });
        for step in 0..100_u32 {
            let mut client = Socket::connect(&gateway.ws_url()).await?;
            if step % 4 > 0 {
                client.send_text(OPEN).await?;
            }
            if step % 4 > 1 {
                expect(&mut client, "<open ").await?;
            }
            if step % 2 == 0 {
                client.cut()?;
            }
        }
        let open = "bosphorus_sessions{transport=\"websocket\"}";
        eventually("no session", async || (gateway.metric(open).ok()? == 0.0).then_some(()))
            .await?;
        server.abort();
        gateway.signal("TERM")?;
        ensure!(gateway.wait(PATIENCE + Duration::from_secs(1))?.code() == Some(0));
        Ok(())
    })
}

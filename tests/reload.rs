//! SIGHUP: what a reload changes, what it leaves alone, and what becomes of a file that is wrong.

mod common;

use anyhow::{Context, ensure};

use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::http::{Connection, Url};
use common::scene::DOMAIN;
use common::server::{Kind, Server};
use common::socket::{Received, Socket};
use common::{Result, block_on, eventually};

const OPEN: &str =
    "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='localhost' version='1.0'/>";

/// A domain that the file names from now on is served, and sessions do not notice.
#[test]
fn a_new_domain_is_served_and_sessions_live_on() -> Result {
    block_on(async {
        let server = server()?;
        // The server's own domain is missing at first.
        let gateway = Gateway::start(&elsewhere())?;
        let transports = [Transport::Ws, Transport::Bosh];
        for transport in transports {
            let endpoint = Endpoint { url: gateway.url(transport), transport };
            let mut client = Client::connect(&endpoint).await?;
            let refused = client.open(server.domain()).await;
            ensure!(refused.is_err(), "a domain is served that is not in the file");
        }
        reload(&gateway, &format!("{}{}", elsewhere(), domain_toml(&server)), "ok").await?;
        let mut clients = Vec::new();
        for transport in transports {
            let endpoint = Endpoint { url: gateway.url(transport), transport };
            clients.push(Client::online(&endpoint, &server.named_account("alice")).await?);
        }
        // Gone again: for who comes, not for who is there.
        reload(&gateway, &elsewhere(), "ok").await?;
        let (first, rest) = clients.split_at_mut(1);
        let jid = rest[0].jid.clone();
        first[0].message(&jid, "still here").await?;
        ensure!(rest[0].body().await? == "still here");
        let mut stranger = Socket::connect(&gateway.ws_url()).await?;
        stranger.send_text(OPEN).await?;
        let answer = stranger.receive().await?;
        ensure!(
            matches!(&answer, Received::Text(text) if text.starts_with("<open ")),
            "{answer:?}"
        );
        let answer = stranger.receive().await?;
        let unknown = matches!(&answer, Received::Text(text) if text.contains("<host-unknown "));
        ensure!(unknown, "{answer:?}");
        let at = gateway.metric("bosphorus_config_last_reload_timestamp_seconds")?;
        ensure!(at > 1.6e9, "read at {at}");
        Ok(())
    })
}

/// A file that is wrong changes nothing, and the log says file, line and key; the next one that is
/// right is taken.
#[test]
fn a_broken_file_changes_nothing() -> Result {
    block_on(async {
        let server = server()?;
        let gateway = Gateway::start(&domain_toml(&server))?;
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        let mut alice = Client::online(&endpoint, &server.named_account("alice")).await?;
        let before = gateway.metric("bosphorus_config_last_reload_timestamp_seconds")?;
        for (text, line, fault) in [
            ("[ws]\nping_interval = \"soon\"\n", 2, "ws.ping_interval: expected a duration"),
            ("[lisen]\n", 1, "lisen: unknown key"),
            ("[ws\n", 1, "not valid TOML"),
            ("[limits]\nsessions = 0\n", 2, "limits.sessions: expected 1 to"),
        ] {
            // At the top, where the harness's own lines do not move it.
            let path = gateway.write_config(&format!("{text}{}", domain_toml(&server)))?;
            hang_up(&gateway, "failed").await?;
            let place = format!("{}:{line}: {fault}", path.display());
            ensure!(gateway.log().contains(&place), "no {place:?} in\n{}", gateway.log());
        }
        let jid = alice.jid.clone();
        alice.message(&jid, "still here").await?;
        ensure!(alice.body().await? == "still here");
        Client::online(&endpoint, &server.named_account("bob")).await?.quit().await?;
        let after = gateway.metric("bosphorus_config_last_reload_timestamp_seconds")?;
        ensure!(before == after, "what is in force was read at {before}, not at {after}");
        ensure!(gateway.admin_get("/ready")?.0 == 200);
        reload(&gateway, &domain_toml(&server), "ok").await?;
        Ok(())
    })
}

/// Limits, origins and paths are those of the new file; listeners stay, and the log says which keys
/// wait for the next start.
#[test]
fn limits_origins_and_paths_change() -> Result {
    block_on(async {
        let server = server()?;
        let gateway = Gateway::start(&domain_toml(&server))?;
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        let mut alice = Client::online(&endpoint, &server.named_account("alice")).await?;
        let changed = format!(
            "[limits]\nsessions = 1\nelement_bytes = 10000\n\
             [ws]\nallowed_origins = [\"https://chat.example\"]\n\
             [bosh]\npaths = [\"/elsewhere\"]\n\
             [listen]\nworkers = 7\nunix_mode = \"0600\"\n[upstream]\nclose_grace = \"1s\"\n\
             [log]\nfilter = \"warn\"\n{}",
            domain_toml(&server)
        );
        reload(&gateway, &changed, "ok").await?;
        let protocol = "Sec-WebSocket-Protocol: xmpp\r\n";
        let status = async |headers: &str| -> Result<u16> {
            Ok(match Socket::request(&gateway.ws_url(), headers).await? {
                Ok(_) => 101,
                Err(refused) => refused.status,
            })
        };
        ensure!(status(protocol).await? == 503, "one session is enough");
        let origin = format!("{protocol}Origin: https://other.example\r\n");
        ensure!(status(&origin).await? == 403, "the page is not welcome any more");
        ensure!(page(&gateway, "/elsewhere").await? == 200, "the new path");
        ensure!(page(&gateway, "/http-bind").await? == 404, "the old path");
        let waiting = "listen.unix_mode, listen.workers, upstream.close_grace, log.filter";
        ensure!(gateway.log().contains(waiting), "no {waiting} in\n{}", gateway.log());

        // Who was there before keeps the limits it began with.
        let jid = alice.jid.clone();
        let long = "a".repeat(20_000);
        alice.message(&jid, &long).await?;
        ensure!(alice.body().await? == long);
        alice.quit().await?;
        let origin = format!("{protocol}Origin: https://chat.example\r\n");
        eventually("a place", async || (status(&origin).await.ok()? == 101).then_some(())).await?;
        reload(&gateway, &domain_toml(&server), "ok").await?;
        let mut clients = Vec::new();
        for name in ["alice", "bob"] {
            clients.push(Client::online(&endpoint, &server.named_account(name)).await?);
        }
        Ok(())
    })
}

fn server() -> Result<std::sync::Arc<Server>> {
    Server::shared(Kind::Demo)
}

/// A domain that nobody asks for, so that the file is complete.
fn elsewhere() -> String {
    format!("[domains.\"{DOMAIN}\"]\nservers = [\"xmpp://127.0.0.1:1\"]\n")
}

async fn reload(gateway: &Gateway, toml: &str, outcome: &str) -> Result {
    gateway.write_config(toml)?;
    hang_up(gateway, outcome).await
}

/// Sends SIGHUP and waits until it was heeded.
async fn hang_up(gateway: &Gateway, outcome: &str) -> Result {
    let sample = format!("bosphorus_config_reloads_total{{outcome=\"{outcome}\"}}");
    let before = gateway.metric(&sample)?;
    gateway.signal("HUP")?;
    eventually(&sample, async || (gateway.metric(&sample).ok()? > before).then_some(()))
        .await
        .with_context(|| gateway.log_tail(20))
}

/// The status of a GET.
async fn page(gateway: &Gateway, path: &str) -> Result<u16> {
    let url = Url::parse(&format!("http://{}{path}", gateway.listen()))?;
    let mut connection = Connection::open(&url.authority).await?;
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
    Ok(connection.prompt_answer().await?.status)
}

//! BOSH over HTTP/2 in a real Chromium: headless, with Strophe in two tabs, driven by
//! `tests/npm/h2.mjs`, over the gateway's TLS to a real Prosody. Both sides are asked how it went:
//! the browser for the protocol and its connections, the gateway's metrics for theirs.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use common::gateway::{Gateway, domain_toml};
use common::npm;
use common::process::{Directory, Process, tail};
use common::server::{Kind, Server};
use common::{PATIENCE, Result, in_ci};
use pki::Identity;

/// The name in the certificate, which the browser is told to find here.
const NAME: &str = "gateway.test";
/// Sessions in each of the two tabs; over HTTP/1.1 a browser makes six connections in all, so that
/// two of these requests could not be held.
const SESSIONS: usize = 4;
/// For the whole script; it gives up on each step much earlier by itself.
const ENOUGH: Duration = Duration::from_secs(120);

/// RFC 9113: all sessions of a browser's tabs share one connection, on which a request of each is
/// held at once.
#[test]
fn tabs_of_a_browser_share_one_connection() -> Result {
    if let Some(why) = npm::missing_browser().or_else(|| Kind::Prosody.missing()) {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let server = Server::prosody()?;
    let directory = Directory::new("browser-h2")?;
    let identity = Identity::self_signed(&[NAME]);
    let toml = format!("[log]\nfilter = \"debug\"\n{}", domain_toml(&server));
    let gateway = Gateway::start_tls(&toml, identity.pem())?;
    let accounts = || {
        let account = server.account();
        json!({"name": account.name, "password": account.password})
    };
    let tabs = [0, 1].map(|_| (0..SESSIONS).map(|_| accounts()).collect::<Vec<_>>());
    let argument = json!({
        "url": format!("https://{NAME}:{}/http-bind", gateway.tls().port()),
        "metrics": format!("http://{}/metrics", gateway.admin()),
        "domain": server.domain(),
        "tabs": tabs,
        "chromium": npm::chromium().context("no Chromium")?,
        "profile": directory.join("profile"),
        "spki": BASE64_STANDARD.encode(identity.pin),
    });
    let mut command = Command::new(npm::node().context("no node")?);
    command.arg(npm::directory().join("h2.mjs")).arg(argument.to_string());
    let mut script = Process::spawn(command, &directory, "script.log")?;
    let status = script.wait(ENOUGH);
    if status.is_err() {
        // It takes the browser with it, which a kill would not.
        script.signal("TERM")?;
        let _ = script.wait(PATIENCE);
    }
    let output = tail(&directory.join("script.log"), usize::MAX);
    let logs = || format!("{output}\n{}", gateway.log_tail(40));
    let status = status.with_context(logs)?;
    ensure!(status.success(), "{status}\n{}", logs());
    let mut seen = serde_json::Map::new();
    for line in output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        seen.extend(line["seen"].as_object().cloned().unwrap_or_default());
    }
    let seen = Value::Object(seen);
    let number = |name: &str| seen[name].as_u64().with_context(|| format!("no {name}: {seen}"));

    // What the browser says.
    let protocols = seen["protocols"].as_object().context("no protocols")?;
    let over_h2 = protocols.get("h2").and_then(Value::as_u64).unwrap_or(0);
    ensure!(protocols.len() == 1 && over_h2 > 0, "not h2 alone: {seen}");
    ensure!(number("connections")? == 1 && number("others")? == 0, "{seen}");

    // What the gateway says.
    let sessions = 2 * SESSIONS as u64;
    let opened = gateway.metric("bosphorus_sessions_opened_total{transport=\"bosh\"}")?;
    // Those that make a session are counted as such.
    let requests = opened + gateway.metric("bosphorus_bosh_requests_total")?;
    let handshakes =
        gateway.metric("bosphorus_tls_handshakes_total{outcome=\"ok\",version=\"1.3\"}")?;
    ensure!(opened == sessions as f64, "{opened} sessions");
    ensure!(requests >= over_h2 as f64, "{requests} requests, {over_h2} in the browser");
    // The script has seen that all of them were held on one connection. Of two that the browser opened
    // for the first page it closes one; the sessions made it open none.
    ensure!(number("held")? == sessions, "{seen}");
    ensure!(
        handshakes == number("handshakes")? as f64 && handshakes <= 2.0,
        "{handshakes}: {seen}"
    );

    let told = format!(
        "Chromium, 2 tabs, {sessions} BOSH sessions: {over_h2} requests on 1 connection, all h2 \
         (nextHopProtocol);\nthe gateway's metrics: {requests} requests, 1 connection on which \
         {sessions} were held at once\n"
    );
    println!("{told}");
    // `tests/run` prints what it finds there at its end.
    if let Some(tables) = std::env::var_os("BOSPHORUS_TABLES") {
        std::fs::write(Path::new(&tables).join("browser-h2.table"), told)?;
    }
    Ok(())
}

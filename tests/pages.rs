//! The pages for people who run a gateway: `/status` on the admin listener, its feed and who may read
//! it; `/lab` in the demo and before a real server; and both in headless Chromium, driven by scripts in
//! `tests/npm`.
//!
//! Pictures go to the directory `BOSPHORUS_SCREENSHOTS`, if that is set.

mod common;

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use common::client::{Client, Endpoint, Transport, ns};
use common::gateway::{Gateway, http_get};
use common::npm;
use common::process::{Directory, Process, tail};
#[cfg(feature = "demo")]
use common::process::{free_ports, wait_ready};
use common::server::{Kind, Server};
use common::socket::{Received, Socket};
use common::{PATIENCE, Result, block_on, eventually, in_ci};

/// For a whole script; it gives up on each step much earlier by itself.
const ENOUGH: Duration = Duration::from_secs(180);
/// Feeds at a time.
const WATCHERS: usize = 16;

fn gateway() -> Result<Gateway> {
    Gateway::in_front_of(&[&*Server::shared(Kind::Demo)?])
}

fn feed_url(gateway: &Gateway) -> String {
    format!("ws://{}/status/feed", gateway.admin())
}

async fn watch(gateway: &Gateway) -> Result<Option<Socket>> {
    Ok(Socket::request(&feed_url(gateway), "").await?.ok())
}

/// The next snapshot.
async fn snapshot(socket: &mut Socket) -> Result<Value> {
    loop {
        match socket.receive().await? {
            Received::Text(text) => return Ok(serde_json::from_str(&text)?),
            Received::Ping(_) => {}
            other => bail!("{other:?}"),
        }
    }
}

/// The feed has the very figures of `/metrics`, again and again; `/status.json` has them too.
#[test]
fn the_feed_is_what_the_metrics_are() -> Result {
    block_on(async {
        let server = Server::shared(Kind::Demo)?;
        let gateway = gateway()?;
        let mut feed = watch(&gateway).await?.context("refused")?;
        let first = snapshot(&mut feed).await?;
        ensure!(first["families"]["bosphorus_sessions_opened_total"] == json!([]), "{first}");
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        let mut client = Client::online(&endpoint, &server.account()).await?;
        let ping = format!("<ping xmlns=\"{}\"/>", ns::PING);
        client.request("get", Some(server.domain()), &ping).await?;
        let expected = json!([{"labels": {"transport": "websocket"}, "value": 1}]);
        let mut before = first["uptime"].as_f64().context("no uptime")?;
        loop {
            let next = snapshot(&mut feed).await?;
            let uptime = next["uptime"].as_f64().context("no uptime")?;
            ensure!(uptime > before, "{uptime} after {before}");
            before = uptime;
            if next["families"]["bosphorus_sessions_opened_total"] == expected {
                break;
            }
        }
        let (status, text) = gateway.admin_get("/status.json")?;
        let asked: Value = serde_json::from_str(&text)?;
        ensure!(status == 200 && asked["draining"] == false, "{text}");
        for sample in asked["families"]["bosphorus_stanzas_total"].as_array().context("none")? {
            let label = |name: &str| sample["labels"][name].as_str().unwrap_or_default();
            let written = format!(
                "bosphorus_stanzas_total{{direction=\"{}\",kind=\"{}\",transport=\"{}\"}}",
                label("direction"),
                label("kind"),
                label("transport")
            );
            let value = sample["value"].as_f64().context("no value")?;
            ensure!(gateway.metric(&written)? == value, "{written}: {value}");
        }
        Ok(())
    })
}

/// Places are few, and come back; who takes no snapshots loses his.
#[test]
fn watchers_are_bounded() -> Result {
    block_on(async {
        let gateway = gateway()?;
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            watchers.push(watch(&gateway).await?.context("refused")?);
        }
        match Socket::request(&feed_url(&gateway), "").await? {
            Err(refused) => ensure!(refused.status == 503, "{}", refused.head),
            Ok(_) => bail!("one more was let in"),
        }
        watchers.pop();
        let mut again =
            eventually("a place", async || watch(&gateway).await.ok().flatten()).await?;
        snapshot(&mut again).await?;

        let slow = &mut watchers[0];
        slow.answer_pings = false;
        let mut texts = 0;
        loop {
            match slow.receive().await? {
                Received::Text(_) => texts += 1,
                Received::Ping(_) => {}
                Received::Lost(_) => break,
                other => bail!("{other:?}"),
            }
        }
        ensure!(texts == 1, "{texts} snapshots without an answer");
        eventually("the place of the slow one", async || watch(&gateway).await.ok().flatten())
            .await?;
        Ok(())
    })
}

/// A page from elsewhere reads nothing: neither by a WebSocket, which no policy of the browser's
/// keeps from connecting, nor by a name of its own that leads to loopback.
#[test]
fn pages_from_elsewhere_read_nothing() -> Result {
    block_on(async {
        let gateway = gateway()?;
        let admin = gateway.admin();
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
        let own = admin.to_string();
        let elsewhere = format!("rebound.example:{}", admin.port());
        for (host, origin, allowed) in [
            (own.as_str(), None, true),
            (own.as_str(), Some(format!("http://{own}")), true),
            (own.as_str(), Some("http://elsewhere.example".to_owned()), false),
            (own.as_str(), Some("null".to_owned()), false),
            (elsewhere.as_str(), None, false),
            (elsewhere.as_str(), Some(format!("http://{elsewhere}")), false),
        ] {
            let origin = origin.map(|it| format!("Origin: {it}\r\n")).unwrap_or_default();
            for path in ["/status/feed", "/status.json", "/status", "/status/status.js"] {
                let more = if path.ends_with("feed") { upgrade } else { "" };
                let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{origin}{more}\r\n");
                let status = match Socket::request_raw(&own, request.as_bytes()).await? {
                    Ok(_) => 101,
                    Err(refused) => refused.status,
                };
                let expected = match (allowed, path) {
                    (true, "/status/feed") => 101,
                    (true, _) => 200,
                    (false, _) => 403,
                };
                ensure!(status == expected, "{path} {host} {origin}: {status}");
            }
        }
        Ok(())
    })
}

/// The page shows the numbers of `/metrics`, in a browser that has nothing to complain of.
#[test]
fn the_status_page_in_chromium() -> Result {
    let Some(directory) = browser("status")? else { return Ok(()) };
    block_on(async {
        let server = Server::shared(Kind::Demo)?;
        let gateway = gateway()?;
        let mut clients = Vec::new();
        for transport in [Transport::Ws, Transport::Bosh] {
            let endpoint = Endpoint { url: gateway.url(transport), transport };
            let mut client = Client::online(&endpoint, &server.account()).await?;
            for _ in 0..20 {
                let ping = format!("<ping xmlns=\"{}\"/>", ns::PING);
                client.request("get", Some(server.domain()), &ping).await?;
            }
            clients.push(client);
        }
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        Client::online(&endpoint, &server.account()).await?.cut()?;
        ensure!(Socket::request(&gateway.ws_url(), "").await?.is_err(), "no subprotocol is needed");
        let argument = json!({ "admin": format!("http://{}", gateway.admin()) });
        run_script("status.mjs", argument, &directory, 8).with_context(|| gateway.log_tail(40))
    })
}

/// The lab of the demo, with all of its buttons.
#[cfg(feature = "demo")]
#[test]
fn the_lab_of_the_demo_in_chromium() -> Result {
    let Some(directory) = browser("lab")? else { return Ok(()) };
    let [listen, admin] = free_ports()?.map(|port: u16| format!("127.0.0.1:{port}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
    command.args(["demo", "--listen", &listen, "--admin", &admin]);
    let mut demo = Process::spawn(command, &directory, "demo.log")?;
    let address = admin.parse()?;
    wait_ready(&mut demo, || http_get(address, "/ready").is_ok_and(|(status, _)| status == 200))?;
    let argument = json!({
        "url": format!("http://{listen}/"),
        "metrics": format!("http://{admin}/metrics"),
        "account": null,
    });
    run_script("lab.mjs", argument, &directory, 12)
}

/// The lab before real servers, which asks who it is.
#[test]
fn the_lab_before_prosody_in_chromium() -> Result {
    lab_before(Kind::Prosody)
}

/// The same.
#[test]
fn the_lab_before_ejabberd_in_chromium() -> Result {
    lab_before(Kind::Ejabberd)
}

fn lab_before(kind: Kind) -> Result {
    if let Some(why) = kind.missing() {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let Some(directory) = browser("lab-serve")? else { return Ok(()) };
    let server = Server::shared(kind)?;
    let gateway = Gateway::in_front_of_with(&[&server], "[lab]\nenabled = true\n")?;
    let account = server.account();
    let argument = json!({
        "url": format!("http://{}/lab", gateway.listen()),
        "metrics": format!("http://{}/metrics", gateway.admin()),
        "account": { "jid": account.jid(), "password": account.password },
    });
    run_script("lab.mjs", argument, &directory, 12).with_context(|| gateway.log_tail(20))
}

/// Off unless configured; and then it names no server, and feeds as many as it may.
#[test]
fn the_lab_is_off_until_it_is_configured() -> Result {
    use std::io::Read;
    let off = gateway()?;
    for path in ["/lab", "/lab/config.json", "/lab/events", "/lab/lab.js"] {
        ensure!(http_get(off.listen(), path)?.0 == 404, "{path} is there");
    }
    let server = Server::shared(Kind::Demo)?;
    let on = Gateway::in_front_of_with(&[&server], "[lab]\nenabled = true\n")?;
    let (status, config) = http_get(on.listen(), "/lab/config.json")?;
    let config: Value = serde_json::from_str(&config)?;
    let expected = json!({"websocket": "/xmpp-websocket", "bosh": "/http-bind", "account": null});
    ensure!(status == 200 && config == expected, "{status} {config}");
    let watch = || -> Result<(std::net::TcpStream, String)> {
        let mut socket = std::net::TcpStream::connect(on.listen())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        write!(socket, "GET /lab/events HTTP/1.1\r\nHost: {}\r\n\r\n", on.listen())?;
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        while !text.ends_with(b"}\n\n\r\n") && !text.ends_with(b"may\n") {
            let count = socket.read(&mut piece)?;
            ensure!(count > 0, "closed: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&piece[..count]);
        }
        Ok((socket, String::from_utf8_lossy(&text).into_owned()))
    };
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let (socket, text) = watch()?;
        ensure!(text.starts_with("HTTP/1.1 200 ") && text.contains("data: {"), "{text}");
        ensure!(!text.contains("127.0.0.1"), "a server is named: {text}");
        watchers.push(socket);
    }
    ensure!(watch()?.1.starts_with("HTTP/1.1 503 "), "one more is fed");
    watchers.clear();
    block_on(async {
        eventually("a place", async || watch().ok().filter(|(_, text)| text.contains(" 200 ")))
            .await?;
        Ok(())
    })?;
    // Whoever watches does not keep it from its end.
    let _watcher = watch()?;
    ensure!(on.stop()?.success());
    Ok(())
}

/// A directory for a script, or nothing if it is to be skipped.
fn browser(name: &str) -> Result<Option<Directory>> {
    match npm::missing_browser() {
        Some(why) => {
            ensure!(!in_ci(), "{why}");
            eprintln!("SKIPPED: {why}");
            Ok(None)
        }
        None => Ok(Some(Directory::new(name)?)),
    }
}

/// Runs a script of `tests/npm`; all of its steps, at least so many, have to pass.
fn run_script(name: &str, mut argument: Value, directory: &Directory, least: usize) -> Result {
    argument["chromium"] = json!(npm::chromium().context("no Chromium")?);
    argument["profile"] = json!(directory.join("profile"));
    argument["screenshots"] = json!(std::env::var("BOSPHORUS_SCREENSHOTS").ok());
    let mut command = Command::new(npm::node().context("no node")?);
    command.arg(npm::directory().join(name)).arg(argument.to_string());
    let mut script = Process::spawn(command, directory, "script.log")?;
    let status = script.wait(ENOUGH);
    if status.is_err() {
        // It takes the browser with it, which a kill would not.
        script.signal("TERM")?;
        let _ = script.wait(PATIENCE);
    }
    let output = tail(&directory.join("script.log"), usize::MAX);
    let status = status.with_context(|| format!("the script hangs\n{output}"))?;
    let steps: Vec<Value> =
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for step in &steps {
        println!("{} {}", if step["ok"] == true { "ok    " } else { "FAILED" }, step["step"]);
        if step["ok"] != true {
            println!("{}", step["detail"].as_str().unwrap_or_default());
        }
    }
    let all = status.success() && steps.iter().all(|step| step["ok"] == true);
    ensure!(all, "{status}\n{output}");
    ensure!(steps.len() >= least, "only {} steps were reported\n{output}", steps.len());
    Ok(())
}

/// Without a page: the admin listener goes on as before.
#[test]
fn the_page_is_there_with_a_strict_policy() -> Result {
    let gateway = gateway()?;
    let (status, page) = http_get(gateway.admin(), "/status")?;
    ensure!(status == 200 && page.contains("WebSocket beside BOSH"), "{status}\n{page}");
    ensure!(http_get(gateway.admin(), "/health")?.0 == 200);
    Ok(())
}

//! Real clients: strophe.js, stanza and @xmpp/client, each logged in over WebSocket to one server,
//! exchange messages with each other. `tests/npm/exchange.mjs` drives them in node.
//!
//! `BOSPHORUS_PARITY=direct` lets them use the servers' own endpoints instead of the gateway.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

use common::gateway::Gateway;
use common::process::{Directory, Process, find, tail};
use common::server::{Kind, Server};
use common::table::{Cell, Table};
use common::{PATIENCE, Result, in_ci};

/// The parties and what each has to do: log in, reach the two others, log out.
const STEPS: usize = 3 + 3 * 2 + 3;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let direct = std::env::var("BOSPHORUS_PARITY").is_ok_and(|value| value == "direct");
    let steps = Arc::new(Mutex::new(Vec::new()));
    let trials = Kind::ALL
        .into_iter()
        .map(|kind| {
            let steps = Arc::clone(&steps);
            let missing = kind.missing().or_else(missing_tools);
            let skipped = missing.is_some() && !in_ci();
            let run = move || {
                let result =
                    missing.map_or_else(|| exchange(kind, direct, &steps), |why| Err(anyhow!(why)));
                result.map_err(|error| Failed::from(format!("{error:#}")))
            };
            Trial::test(format!("npm clients: {}", kind.name()), run).with_ignored_flag(skipped)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    for kind in Kind::ALL {
        if let Some(why) = kind.missing().or_else(missing_tools) {
            println!("not run with {}: {why}", kind.name());
        }
    }
    if let Ok(steps) = steps.lock() {
        table(&steps, direct).print("clients");
    }
    conclusion.exit_code()
}

/// One line of the script.
struct Step {
    kind: Kind,
    title: String,
    ok: bool,
}

/// Logs the three in and lets them write to each other.
fn exchange(kind: Kind, direct: bool, steps: &Mutex<Vec<Step>>) -> Result {
    let server = Server::shared(kind)?;
    let gateway = if direct { None } else { Some(Gateway::in_front_of(&[&server])?) };
    let url = gateway.as_ref().map_or_else(|| server.websocket_url(), Gateway::ws_url);
    let accounts: Vec<Value> = (0..3)
        .map(|_| server.account())
        .map(|account| json!({"name": account.name, "password": account.password}))
        .collect();
    let argument = json!({"url": url, "domain": server.domain(), "accounts": accounts});
    let directory = Directory::new("npm")?;
    let mut command = Command::new(node().context("no node")?);
    command.arg(npm().join("exchange.mjs")).arg(argument.to_string());
    let mut process = Process::spawn(command, &directory, "output.log")?;
    // The script gives up on each of its steps by itself.
    let status = process.wait(PATIENCE * STEPS as u32)?;
    let output = tail(&directory.join("output.log"), usize::MAX);
    let logs = || gateway.as_ref().map(|gateway| gateway.log_tail(40)).unwrap_or_default();
    let (mut passed, mut failed) = (0, Vec::new());
    for line in output.lines() {
        // Clients print warnings of their own between the lines.
        let Ok(step) = serde_json::from_str::<Value>(line) else { continue };
        let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
        let (who, to, ok) = (text("who"), text("to"), step["ok"] == true);
        let title = match text("step").as_str() {
            "message" => format!("{who} to {to}"),
            other => format!("{who}: {other}"),
        };
        match ok {
            true => passed += 1,
            false => failed.push(format!("{title}: {}", text("detail"))),
        }
        let mut steps = steps.lock().map_err(|_| anyhow!("a test panicked here"))?;
        steps.push(Step { kind, title, ok });
    }
    if !failed.is_empty() || !status.success() {
        bail!("{}\n({status})\n--- output\n{output}\n{}", failed.join("\n"), logs());
    }
    ensure!(passed == STEPS, "{passed} of {STEPS} steps were reported\n{output}");
    Ok(())
}

fn table(steps: &[Step], direct: bool) -> Table {
    let mut rows: Vec<String> = Vec::new();
    for step in steps {
        if !rows.contains(&step.title) {
            rows.push(step.title.clone());
        }
    }
    let title = if direct { "npm client (servers' own endpoints)" } else { "npm client" };
    let columns = Kind::ALL.map(|kind| format!("ws/{}", kind.name())).to_vec();
    let table = Table::new(title, rows, columns);
    for step in steps {
        let cell = if step.ok { Cell::Ok } else { Cell::Fail };
        table.set(&step.title, &format!("ws/{}", step.kind.name()), cell);
    }
    table
}

/// Why the script cannot run here, if so.
fn missing_tools() -> Option<String> {
    if !npm().join("node_modules").is_dir() {
        return Some("the npm packages are not installed (`npm ci` in tests/npm)".to_owned());
    }
    let Some(node) = node() else { return Some("no `node` on this machine".to_owned()) };
    let output = Command::new(node).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (20, 10) => None,
        _ => Some(format!("node {version} is older than 20.10")),
    }
}

/// The npm package `node`, if `tests/run` took one because the system's is too old; else the
/// system's.
fn node() -> Option<PathBuf> {
    let own = npm().join("node_modules/node/bin/node");
    if own.is_file() { Some(own) } else { find("node") }
}

fn npm() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm")
}

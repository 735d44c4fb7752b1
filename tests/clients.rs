//! Real clients, each logged in to one server, exchange messages with each other: over WebSocket
//! strophe.js, stanza and @xmpp/client; over BOSH two generations of Strophe and stanza, and, in
//! C++ and C, gloox and libpurple. `tests/npm/exchange.mjs` drives those from npm in node, the
//! programs in `tests/native` are compiled here.
//!
//! `BOSPHORUS_PARITY=direct` lets them use the servers' own endpoints instead of the gateway.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use minidom::Element;
use serde_json::{Value, json};

use common::client::{Client, Endpoint, Transport, body_of};
use common::gateway::Gateway;
use common::http::Url;
use common::process::{Directory, Process, find, tail};
use common::server::{Account, Kind, Server};
use common::table::{Cell, Table};
use common::{PATIENCE, Result, block_on, in_ci};

/// Clients of one run.
#[derive(Clone, Copy, Debug)]
enum Suite {
    /// Clients from npm by name and transport, each of which writes to each other.
    Npm(&'static [(&'static str, Transport)]),
    /// A program of `tests/native` and its mode, which exchanges messages with a WebSocket client.
    Native(Program, &'static str),
}

/// A program of `tests/native`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// On gloox.
    Gloox,
    /// On libpurple.
    Purple,
}

const WEBSOCKET: Suite = Suite::Npm(&[
    ("strophe.js", Transport::Ws),
    ("stanza", Transport::Ws),
    ("@xmpp/client", Transport::Ws),
]);

const BOSH: Suite = Suite::Npm(&[
    ("strophe.js", Transport::Ws),
    ("strophe.js", Transport::Bosh),
    ("strophe-1", Transport::Bosh),
    ("stanza", Transport::Bosh),
]);

/// The name of a table, what its columns begin with, and what fills it.
type Rows = (&'static str, &'static str, &'static [(&'static str, Suite)]);

/// What runs over WebSocket alone, and with BOSH.
const TABLES: [Rows; 2] = [
    ("clients", "ws", &[("npm clients", WEBSOCKET)]),
    (
        "clients-bosh",
        "bosh",
        &[
            ("npm clients over BOSH", BOSH),
            ("gloox, pipelining", Suite::Native(Program::Gloox, "pipelining")),
            ("gloox, persistent", Suite::Native(Program::Gloox, "persistent")),
            ("libpurple", Suite::Native(Program::Purple, "")),
        ],
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let direct = std::env::var("BOSPHORUS_PARITY").is_ok_and(|value| value == "direct");
    let (mut trials, mut skips, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for (_, _, suites) in TABLES {
        let steps = Arc::new(Mutex::new(Vec::new()));
        results.push(Arc::clone(&steps));
        for &(name, suite) in suites {
            for &kind in suite.kinds() {
                let steps = Arc::clone(&steps);
                let missing = kind.missing().or_else(|| suite.missing(kind, direct));
                // What a server cannot do itself is no fault of this machine.
                let skipped = missing.is_some() && (direct || !in_ci());
                if let Some(why) = &missing {
                    skips.push(format!("{name} not run with {}: {why}", kind.name()));
                }
                let run = move || {
                    let result = missing.map_or_else(
                        || suite.run(&Place { kind, direct }, &steps),
                        |why| Err(anyhow!(why)),
                    );
                    result.map_err(|error| Failed::from(format!("{error:#}")))
                };
                let name = format!("{name}: {}", kind.name());
                trials.push(Trial::test(name, run).with_ignored_flag(skipped));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    skips.iter().for_each(|line| println!("{line}"));
    for ((name, column, _), steps) in TABLES.iter().zip(results) {
        if let Ok(steps) = steps.lock() {
            table(&steps, column, direct).print(name);
        }
    }
    conclusion.exit_code()
}

/// One line of a table.
struct Step {
    kind: Kind,
    title: String,
    ok: bool,
}

/// The server, and whether the gateway stands before it.
struct Place {
    kind: Kind,
    direct: bool,
}

impl Place {
    /// The server, and the gateway with this configuration in front of it unless the server is to
    /// be used itself.
    fn start(&self, toml: &str) -> Result<(Arc<Server>, Option<Gateway>)> {
        let server = Server::shared(self.kind)?;
        let gateway = match self.direct {
            true => None,
            false => Some(Gateway::in_front_of_with(&[&server], toml)?),
        };
        Ok((server, gateway))
    }
}

/// Where clients of that transport connect.
fn url(server: &Server, gateway: Option<&Gateway>, transport: Transport) -> String {
    gateway.map_or_else(|| server.url(transport), |gateway| gateway.url(transport))
}

fn logs(gateway: Option<&Gateway>) -> String {
    gateway.map(|gateway| gateway.log_tail(40)).unwrap_or_default()
}

impl Suite {
    fn run(self, place: &Place, steps: &Mutex<Vec<Step>>) -> Result {
        match self {
            Self::Npm(parties) => exchange(parties, place, steps),
            Self::Native(program, mode) => block_on(echo(program, mode, place, steps)),
        }
    }

    /// The servers it runs with: over WebSocket alone also the demo's, which has no BOSH of its own.
    fn kinds(self) -> &'static [Kind] {
        let Self::Npm(parties) = self else { return &Kind::ALL };
        let socket = parties.iter().all(|(_, transport)| *transport == Transport::Ws);
        if socket { &Kind::WITH_DEMO } else { &Kind::ALL }
    }

    /// Why it cannot run here, if so.
    fn missing(self, kind: Kind, direct: bool) -> Option<String> {
        match self {
            Self::Npm(_) if direct && kind == Kind::Demo => {
                Some("it has no WebSocket of its own".to_owned())
            }
            Self::Npm(_) => missing_npm(),
            Self::Native(program, mode) => program
                .missing()
                .or_else(|| direct.then(|| program.departure(mode, kind)).flatten()),
        }
    }
}

/// Logs the clients in and lets each write to each other.
fn exchange(parties: &[(&str, Transport)], place: &Place, steps: &Mutex<Vec<Step>>) -> Result {
    let (server, gateway) = place.start("")?;
    let accounts: Vec<Value> = parties
        .iter()
        .map(|(client, transport)| {
            let Account { name, password, .. } = server.account();
            let url = url(&server, gateway.as_ref(), *transport);
            let transport = transport.name();
            json!({"client": client, "transport": transport, "url": url, "name": name,
                "password": password})
        })
        .collect();
    let argument = json!({"domain": server.domain(), "parties": accounts});
    let directory = Directory::new("npm")?;
    let mut command = Command::new(node().context("no node")?);
    command.arg(npm().join("exchange.mjs")).arg(argument.to_string());
    let mut process = Process::spawn(command, &directory, "output.log")?;
    // Each logs in, writes to each other, and logs out.
    let count = parties.len() * (parties.len() + 1);
    // The script gives up on each of its steps by itself.
    let status = process.wait(PATIENCE * count as u32)?;
    let output = tail(&directory.join("output.log"), usize::MAX);
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
        note(steps, Step { kind: place.kind, title, ok })?;
    }
    if !failed.is_empty() || !status.success() {
        let logs = logs(gateway.as_ref());
        bail!("{}\n({status})\n--- output\n{output}\n{logs}", failed.join("\n"));
    }
    ensure!(passed == count, "{passed} of {count} steps were reported\n{output}");
    Ok(())
}

/// What the native clients are written to, which they echo.
const TEXTS: [&str; 3] = ["merhaba", "<merhaba> & \"dünya\" 'ñ' 😀", "second\nline ]]> &amp;"];

impl Program {
    fn package(self) -> &'static str {
        match self {
            Self::Gloox => "gloox",
            Self::Purple => "purple",
        }
    }

    fn compiler(self) -> (&'static str, &'static str) {
        match self {
            Self::Gloox => ("c++", "gloox.cpp"),
            Self::Purple => ("cc", "purple.c"),
        }
    }

    /// Why it cannot be compiled here, if so.
    fn missing(self) -> Option<String> {
        let (compiler, _) = self.compiler();
        if find(compiler).is_none() || find("pkg-config").is_none() {
            return Some(format!("no `{compiler}` or no `pkg-config` on this machine"));
        }
        let known = Command::new("pkg-config").args(["--exists", self.package()]).status();
        match known.is_ok_and(|status| status.success()) {
            true => None,
            false => Some(format!("no development files of {}", self.package())),
        }
    }

    /// What the gateway is told for its sake. A request that is pipelined may wait until the one
    /// before it is answered (BOSH-05), which is not to take longer than the test's patience.
    fn configuration(self, mode: &str) -> &'static str {
        if mode == "pipelining" { "[bosh]\nwait_max = \"1s\"\n" } else { "" }
    }

    /// What keeps it from a server's own endpoint, if anything does.
    fn departure(self, mode: &str, kind: Kind) -> Option<String> {
        let why = "reads a pipelined request only when the one before is answered";
        (mode == "pipelining").then(|| format!("{} {why}", kind.name()))
    }

    /// Compiles it, once a run.
    fn compile(self, into: &Directory) -> Result<PathBuf> {
        let flags = |what: &str| -> Result<Vec<String>> {
            let output = Command::new("pkg-config").args([what, self.package()]).output()?;
            ensure!(output.status.success(), "pkg-config {what} {}", self.package());
            Ok(String::from_utf8(output.stdout)?.split_whitespace().map(str::to_owned).collect())
        };
        let (compiler, source) = self.compiler();
        let program = into.join(self.package());
        let output = Command::new(find(compiler).context("no compiler")?)
            .args(["-Wall", "-Wextra", "-o"])
            .arg(&program)
            .args(flags("--cflags")?)
            .arg(tests().join("native").join(source))
            .args(flags("--libs")?)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{source} does not compile:\n{said}");
        Ok(program)
    }

    fn title(self, mode: &str) -> Result<String> {
        let output = Command::new("pkg-config").args(["--modversion", self.package()]).output()?;
        let version = String::from_utf8(output.stdout)?;
        let mode = match mode {
            "" => String::new(),
            other => format!(", {other}"),
        };
        let library = match self {
            Self::Gloox => "gloox",
            Self::Purple => "libpurple",
        };
        Ok(format!("{library} {} (bosh{mode})", version.trim()))
    }

    fn command(
        self,
        program: &Path,
        mode: &str,
        url: &str,
        account: &Account,
        friend: &str,
    ) -> Result<Command> {
        let mut command = Command::new(program);
        let login = [&account.domain, &account.name, &account.password];
        match self {
            Self::Gloox => {
                let Url { authority, path } = Url::parse(url)?;
                let (host, port) = authority.split_once(':').context("no port")?;
                command.args([mode, host, port, &path]).args(login).arg(friend);
            }
            Self::Purple => {
                command.arg(url).args(login).arg(friend);
            }
        }
        Ok(command)
    }
}

/// Lets the program log in, write first, echo, and log out, all of it with one on a WebSocket.
async fn echo(program: Program, mode: &str, place: &Place, steps: &Mutex<Vec<Step>>) -> Result {
    let (server, gateway) = place.start(program.configuration(mode))?;
    let endpoint =
        Endpoint { url: url(&server, gateway.as_ref(), Transport::Ws), transport: Transport::Ws };
    let mut friend = Client::online(&endpoint, &server.account()).await?;
    let directory = Directory::new(program.package())?;
    let binary = program.compile(&directory)?;
    let account = server.account();
    let bosh = url(&server, gateway.as_ref(), Transport::Bosh);
    let command = program.command(&binary, mode, &bosh, &account, &friend.jid)?;
    let mut process = Process::spawn(command, &directory, "output.log")?;
    let title = program.title(mode)?;
    let step = |title: String, result: &Result| {
        note(steps, Step { kind: place.kind, title, ok: result.is_ok() })
    };
    let mut jid = String::new();
    let mut result = greeting(&mut friend).await.map(|from| jid = from);
    step(format!("{title}: login"), &result)?;
    if result.is_ok() {
        result = conversation(&mut friend, &jid).await;
    }
    step(format!("{title} and a WebSocket client"), &result)?;
    if result.is_ok() {
        friend.message(&jid, "logout").await?;
        result = process.wait(PATIENCE).and_then(|status| {
            ensure!(status.success(), "{status}");
            Ok(())
        });
    }
    step(format!("{title}: logout"), &result)?;
    result.with_context(|| {
        let output = tail(&directory.join("output.log"), 200);
        format!("{title}\n--- output\n{output}\n{}", logs(gateway.as_ref()))
    })
}

/// The full JID of the one who says that it is there. libpurple gathers what it sends for a second
/// each time, and needs many requests to log in.
async fn greeting(friend: &mut Client) -> Result<String> {
    let mut tries = 0;
    loop {
        let is_ready = |element: &Element| body_of(element).as_deref() == Some("ready");
        match friend.expect("the greeting", is_ready).await {
            Ok(greeting) => return Ok(greeting.attr("from").unwrap_or_default().to_owned()),
            Err(error) if tries == 2 => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

async fn conversation(friend: &mut Client, jid: &str) -> Result {
    for text in TEXTS {
        friend.message(jid, text).await?;
        let echoed = friend.body().await?;
        ensure!(echoed == format!("echo: {text}"), "{text:?} came back as {echoed:?}");
    }
    Ok(())
}

fn note(steps: &Mutex<Vec<Step>>, step: Step) -> Result {
    steps.lock().map_err(|_| anyhow!("a test panicked here"))?.push(step);
    Ok(())
}

fn table(steps: &[Step], column: &str, direct: bool) -> Table {
    let mut rows: Vec<String> = Vec::new();
    for step in steps {
        if !rows.contains(&step.title) {
            rows.push(step.title.clone());
        }
    }
    let title = if direct { "client (servers' own endpoints)" } else { "client" };
    let ran = |kind: &Kind| steps.iter().any(|step| step.kind == *kind);
    let columns = Kind::WITH_DEMO
        .into_iter()
        .filter(|kind| Kind::ALL.contains(kind) || ran(kind))
        .map(|kind| format!("{column}/{}", kind.name()))
        .collect();
    let table = Table::new(title, rows, columns);
    for step in steps {
        let cell = if step.ok { Cell::Ok } else { Cell::Fail };
        table.set(&step.title, &format!("{column}/{}", step.kind.name()), cell);
    }
    table
}

/// Why the script cannot run here, if so.
fn missing_npm() -> Option<String> {
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
    tests().join("npm")
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

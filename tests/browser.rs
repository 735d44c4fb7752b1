//! The demo's page in a real browser: `bosphorus demo` as a child process, and headless Chromium,
//! driven by `tests/npm/page.mjs` as two people would use it, once for each choice of transports
//! that the gateway offers.
//!
//! Pictures of the page go to the directory `BOSPHORUS_SCREENSHOTS`, or else below `target/tmp`.

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

use common::gateway::http_get;
use common::npm;
use common::process::{Directory, Process, free_ports, tail, wait_ready};
use common::table::{Cell, Table};
use common::{PATIENCE, Result, in_ci};

/// For all steps together; the script gives up on each of them much earlier by itself.
const ENOUGH: Duration = Duration::from_secs(300);
/// The least that a run without a failure reports: fewer means that the script stopped counting.
const STEPS: usize = 17;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = npm::missing_browser();
    let skipped = missing.is_some() && !in_ci();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let trial = {
        let (steps, missing) = (Arc::clone(&steps), missing.clone());
        let run = move || {
            let result = missing.map_or_else(|| drive(&steps), |why| Err(anyhow!(why)));
            result.map_err(|error| Failed::from(format!("{error:#}")))
        };
        Trial::test("the page in Chromium", run).with_ignored_flag(skipped)
    };
    let conclusion = libtest_mimic::run(&arguments, vec![trial]);
    if let Some(why) = missing {
        println!("the page was not run in a browser: {why}");
    }
    if let Ok(steps) = steps.lock() {
        table(&steps).print("browser");
    }
    conclusion.exit_code()
}

/// One line of the script.
struct Step {
    case: String,
    title: String,
    ok: bool,
}

/// Starts the demo and lets the script use it.
fn drive(steps: &Mutex<Vec<Step>>) -> Result {
    let directory = Directory::new("browser")?;
    let (mut demo, page) = start_demo(&directory)?;
    let pictures = pictures()?;
    let argument = json!({
        "url": page,
        "chromium": npm::chromium().context("no Chromium")?,
        "profile": directory.join("profile"),
        "screenshots": pictures,
    });
    let mut command = Command::new(npm::node().context("no node")?);
    command.arg(npm::directory().join("page.mjs")).arg(argument.to_string());
    let mut script = Process::spawn(command, &directory, "script.log")?;
    let status = script.wait(ENOUGH);
    if status.is_err() {
        // It takes the browser with it, which a kill would not.
        script.signal("TERM")?;
        let _ = script.wait(PATIENCE);
    }
    let output = tail(&directory.join("script.log"), usize::MAX);
    let mut failed = Vec::new();
    let mut passed = 0;
    for line in output.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        if !line["screenshot"].is_null() {
            println!("screenshot: {}", text("screenshot"));
            continue;
        }
        let (case, title, ok) = (text("case"), text("step"), line["ok"] == true);
        match ok {
            true => passed += 1,
            false => failed.push(format!("{case}: {title}: {}", text("detail"))),
        }
        let mut steps = steps.lock().map_err(|_| anyhow!("a test panicked here"))?;
        steps.push(Step { case, title, ok });
    }
    let log = || tail(&directory.join("demo.log"), 40);
    let status = status.with_context(|| format!("the script hangs\n--- output\n{output}"))?;
    if !failed.is_empty() || !status.success() {
        bail!("{}\n({status})\n--- output\n{output}\n--- demo\n{}", failed.join("\n"), log());
    }
    ensure!(passed >= STEPS, "only {passed} steps were reported\n{output}");
    ensure!(demo.try_wait()?.is_none(), "the demo has ended by itself\n{}", log());
    demo.signal("TERM")?;
    let status = demo.wait(PATIENCE)?;
    ensure!(status.success(), "the demo ended with {status}\n{}", log());
    Ok(())
}

/// Starts `bosphorus demo` on free ports; gives it and the address of the page.
fn start_demo(directory: &Directory) -> Result<(Process, String)> {
    let [listen, admin] =
        free_ports()?.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
    command.args(["demo", "--listen", &listen.to_string(), "--admin", &admin.to_string()]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BOSPHORUS_") {
            command.env_remove(name);
        }
    }
    let mut demo = Process::spawn(command, directory, "demo.log")?;
    let ready = || {
        let ready = |address, path| http_get(address, path).is_ok_and(|(status, _)| status == 200);
        ready(admin, "/ready") && ready(listen, "/")
    };
    wait_ready(&mut demo, ready).with_context(|| {
        format!("the demo did not start:\n{}", tail(&directory.join("demo.log"), 40))
    })?;
    Ok((demo, format!("http://{listen}/")))
}

fn table(steps: &[Step]) -> Table {
    let distinct = |of: fn(&Step) -> &String| {
        let mut all: Vec<String> = Vec::new();
        for step in steps {
            if !all.contains(of(step)) {
                all.push(of(step).clone());
            }
        }
        all
    };
    let rows = distinct(|step| &step.title);
    let table = Table::new("page in Chromium", rows, distinct(|step| &step.case));
    for step in steps {
        table.set(&step.title, &step.case, if step.ok { Cell::Ok } else { Cell::Fail });
    }
    table
}

/// Where the pictures go, made if it is not there.
fn pictures() -> Result<PathBuf> {
    let path = std::env::var_os("BOSPHORUS_SCREENSHOTS")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots"), PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(path);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

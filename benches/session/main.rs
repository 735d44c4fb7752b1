//! What a session costs: CPU a stanza and memory an idle session, over real sockets, beside a byte
//! relay.
//!
//! ```text
//!                    ┌─ gateway ── c2s ───────┐
//! load (WebSocket) ──┤                        ├── sink (echoes every message)
//!                    └─ relay ─── WebSocket ──┘
//! ```
//! Each box is a process of its own, so that what is read from `/proc` is the box's alone; all but
//! the gateway are this executable with a role. The load sends both targets the same bytes. The
//! relay copies them and understands nothing: it is the floor for anything that takes bytes from one
//! socket to another in tokio.
//!
//! `cargo bench --bench session -- --help` tells the flags. `BOSPHORUS_BENCH_PEERS` names further
//! targets: `name=command; name=command`. A command is run by `sh` and has to listen for
//! `/xmpp-websocket` on `127.0.0.1:$LISTEN_PORT`, in front of a c2s server on `127.0.0.1:$C2S_PORT`
//! that serves `bench.test`, or of a WebSocket server on `127.0.0.1:$WS_PORT`; what is measured is
//! the process that the command ends in (`exec`).
//!
//! With `--cost` it measures something else: the gateway beside itself without metrics, see [`cost`].

#[path = "../bosh/load.rs"]
mod bosh_load;
mod cost;
mod load;
mod orders;
mod process;
mod relay;
mod sink;
mod stats;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use process::{Load, Memory, Role, Target, TargetKind};
use stats::{Spread, spread};

/// Measures what a session costs the gateway, beside a byte relay.
#[derive(Parser)]
struct Arguments {
    /// Measure the memory of idle sessions only.
    #[arg(long)]
    idle: bool,
    /// Measure CPU a stanza only.
    #[arg(long)]
    cpu: bool,
    /// Measure only what the metrics cost: CPU and instructions a stanza, over WebSocket and BOSH,
    /// beside the same program built without them (see --pairs, --stanzas, --only, --without).
    #[arg(long, conflicts_with_all = ["idle", "cpu"])]
    cost: bool,
    /// Interleaved pairs of --cost.
    #[arg(long, default_value_t = 31)]
    pairs: usize,
    /// The program without metrics for --cost (feature no-metrics), instead of building it.
    #[arg(long, value_name = "PROGRAM")]
    without: Option<PathBuf>,
    /// Interleaved rounds of each CPU measurement.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Rounds of the memory measurement, each with fresh processes.
    #[arg(long, default_value_t = 3)]
    idle_rounds: usize,
    /// Idle sessions; each takes two open files of the target.
    #[arg(long, default_value_t = 5000)]
    sessions: usize,
    /// Stanzas of one CPU measurement.
    #[arg(long, default_value_t = 40_000)]
    stanzas: usize,
    /// Measure these targets, or with --cost transports, only; by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<RoleArguments>,
}

/// What this executable is when the benchmark runs it again.
#[derive(Subcommand)]
enum RoleArguments {
    #[command(hide = true)]
    Sink,
    #[command(hide = true)]
    Load,
    #[command(hide = true)]
    BoshLoad,
    #[command(hide = true)]
    Relay { listen: SocketAddr, server: SocketAddr },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(RoleArguments::Sink) => sink::run(),
        Some(RoleArguments::Load) => orders::run::<load::Client>(),
        Some(RoleArguments::BoshLoad) => orders::run::<bosh_load::Client>(),
        Some(RoleArguments::Relay { listen, server }) => relay::run(listen, server),
        // `cargo test` runs benchmarks, too, to see whether they start.
        None if !arguments.bench => {
            println!("nothing measured: this is for `cargo bench --bench session`");
            Ok(())
        }
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let sink = Role::start_sink()?;
    if arguments.cost {
        let Arguments { pairs, stanzas, ref without, ref only, .. } = *arguments;
        return cost::measure(
            &cost::Order { pairs, stanzas, without: without.as_deref(), only },
            &sink,
        );
    }
    let kinds: Vec<TargetKind> = targets()?
        .into_iter()
        .filter(|kind| {
            arguments.only.is_empty() || arguments.only.iter().any(|name| name == kind.name())
        })
        .collect();
    if kinds.is_empty() {
        bail!("no target of the name given with --only");
    }
    let both = arguments.idle == arguments.cpu;
    println!("{}", process::machine());
    if both || arguments.idle {
        idle(arguments, &sink, &kinds)?;
    }
    if both || arguments.cpu {
        cpu(arguments, &sink, &kinds)?;
    }
    Ok(())
}

/// All that can be measured, the relay first.
fn targets() -> anyhow::Result<Vec<TargetKind>> {
    let mut kinds = vec![TargetKind::Relay, TargetKind::Gateway];
    for peer in std::env::var("BOSPHORUS_BENCH_PEERS").unwrap_or_default().split(';') {
        if peer.trim().is_empty() {
            continue;
        }
        let (name, command) = peer
            .split_once('=')
            .with_context(|| format!("BOSPHORUS_BENCH_PEERS: no `name=command` in {peer:?}"))?;
        kinds.push(TargetKind::Peer {
            name: name.trim().to_owned(),
            command: command.trim().to_owned(),
        });
    }
    Ok(kinds)
}

/// Memory: fresh processes, all sessions opened, some traffic on each, then silence.
fn idle(arguments: &Arguments, sink: &Role, kinds: &[TargetKind]) -> anyhow::Result<()> {
    let sessions = arguments.sessions;
    let mut rows: Vec<Vec<(Memory, Memory)>> = vec![Vec::new(); kinds.len()];
    for _ in 0..arguments.idle_rounds {
        for (kind, row) in kinds.iter().zip(&mut rows) {
            let target = Target::start(kind, sink)?;
            let mut load = Load::start("load")?;
            let before = settled_memory(&target)?;
            target.explain(load.open("idle", target.address, sessions))?;
            target.explain(load.echo("idle", 1, IDLE_ECHOES, IDLE_CONCURRENCY))?;
            let after = settled_memory(&target)?;
            row.push((before, after));
        }
    }
    println!(
        "\nMemory: {sessions} idle sessions, each after {IDLE_ECHOES} echoes of a {}-byte stanza; KiB, median of {} \
         rounds (least to most)",
        orders::STANZA_BYTES,
        arguments.idle_rounds
    );
    println!(
        "{:<12} {:>14} {:>24} {:>24}",
        "", "before, Rss", "a session, Rss", "a session, Anonymous"
    );
    for (kind, row) in kinds.iter().zip(&rows) {
        let a_session = |field: fn(&Memory) -> u64| {
            spread(row.iter().map(|(before, after)| {
                field(after).saturating_sub(field(before)) as f64 / sessions as f64
            }))
        };
        let before = spread(row.iter().map(|(before, _)| before.rss as f64));
        let rss = a_session(|memory| memory.rss);
        println!(
            "{:<12} {:>14.0} {:>24} {:>24}{}",
            kind.name(),
            before.median,
            rss.show(2),
            a_session(|memory| memory.anonymous).show(2),
            verdict(kind, rss, IDLE_TARGET, "KiB a session"),
        );
    }
    Ok(())
}

/// The memory of a target that does nothing, once it has stopped changing.
fn settled_memory(target: &Target) -> anyhow::Result<Memory> {
    let mut last = target.memory()?;
    let mut alike = 0;
    for _ in 0..SETTLING {
        std::thread::sleep(Duration::from_millis(250));
        let now = target.memory()?;
        alike = if now.rss.abs_diff(last.rss) * 500 <= now.rss { alike + 1 } else { 0 };
        last = now;
        if alike == 4 {
            break;
        }
    }
    Ok(last)
}

/// CPU: all targets run all the time, with their sessions open, and take turns.
fn cpu(arguments: &Arguments, sink: &Role, kinds: &[TargetKind]) -> anyhow::Result<()> {
    let mut load = Load::start("load")?;
    let mut targets = Vec::new();
    for kind in kinds {
        let target = Target::start(kind, sink)?;
        target.explain(load.open(kind.name(), target.address, CPU_SESSIONS))?;
        targets.push(target);
    }
    println!(
        "\nCPU of the target: µs for a {}-byte stanza there and back, {CPU_SESSIONS} sessions; median of {} rounds \
         (least to most)",
        orders::STANZA_BYTES,
        arguments.rounds
    );
    for in_flight in [1, 8] {
        let bursts = (arguments.stanzas / CPU_SESSIONS / in_flight).max(1);
        let mut rows: Vec<Vec<f64>> = vec![Vec::new(); kinds.len()];
        // The first round warms up and does not count.
        for round in 0..=arguments.rounds {
            let mut order: Vec<usize> = (0..kinds.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let target = &targets[index];
                let before = target.cpu()?;
                target.explain(load.echo(kinds[index].name(), in_flight, bursts, CPU_SESSIONS))?;
                let spent = target.cpu()?.saturating_sub(before);
                if round > 0 {
                    let stanzas = (CPU_SESSIONS * bursts * in_flight) as f64;
                    rows[index].push(spent.as_nanos() as f64 / 1000.0 / stanzas);
                }
            }
        }
        println!(
            "{:<12} {:>24} {:>28}",
            format!("{in_flight} in flight"),
            "µs",
            "ratio to the relay, by pairs"
        );
        let relay = kinds.iter().position(|kind| matches!(kind, TargetKind::Relay));
        for (kind, row) in kinds.iter().zip(&rows) {
            let ratio = relay
                .map(|relay| spread(row.iter().zip(&rows[relay]).map(|(own, relay)| own / relay)));
            let (shown, verdict) = match ratio {
                Some(ratio) if in_flight == 1 => {
                    (ratio.show(2), verdict(kind, ratio, CPU_TARGET, "times the relay"))
                }
                Some(ratio) => (ratio.show(2), String::new()),
                None => (String::new(), String::new()),
            };
            println!(
                "{:<12} {:>24} {:>28}{verdict}",
                kind.name(),
                spread(row.iter().copied()).show(2),
                shown
            );
        }
    }
    Ok(())
}

/// The last column: only the gateway has targets.
fn verdict(kind: &TargetKind, spread: Spread, most: f64, unit: &str) -> String {
    if !matches!(kind, TargetKind::Gateway) {
        return String::new();
    }
    let met = if spread.median <= most { "met" } else { "MISSED" };
    format!("   target <= {most} {unit}: {met}")
}

/// The directory for the gateway's configuration and what the targets say.
fn scratch_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-session-{}", std::process::id()))
}

/// Most KiB of resident memory an idle session may cost.
const IDLE_TARGET: f64 = 6.0;
/// Most times the relay's CPU, with one stanza in flight.
const CPU_TARGET: f64 = 1.5;
const IDLE_ECHOES: usize = 10;
/// How many of the idle sessions talk at a time.
const IDLE_CONCURRENCY: usize = 100;
const CPU_SESSIONS: usize = 50;
/// Looks, a quarter of a second apart, until memory that does not settle is taken as it is.
const SETTLING: usize = 40;

//! What BOSH costs: CPU a request and a stanza, and memory a held poll, beside the same load over
//! WebSocket through the same gateway.
//!
//! ```text
//! load (BOSH) ───────┐
//!                    ├── gateway ── c2s ── sink (echoes every message)
//! load (WebSocket) ──┘
//! ```
//! Each box is a process of its own, as in `benches/session`, whose parts these are. Each session
//! comes from an address of its own of 127.0.0.0/8, so that no limit by address is met. Both loads
//! send bursts of the same stanzas and wait for all echoes: over BOSH a burst is one `<body/>`, over
//! WebSocket as many messages in one write. What goes out of the gateway towards the server, and
//! what comes back, is the same.
//!
//! `cargo bench --bench bosh -- --help` tells the flags.

mod load;
#[path = "../session/orders.rs"]
mod orders;
#[path = "../session/process.rs"]
#[expect(dead_code, reason = "the other benchmark has more targets")]
mod process;
#[path = "../session/sink.rs"]
mod sink;
#[path = "../session/stats.rs"]
mod stats;
#[path = "../session/load.rs"]
mod ws_load;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use process::{Load, Memory, Role, Target, TargetKind};
use stats::{Spread, spread};

/// Measures what BOSH costs the gateway, beside WebSocket.
#[derive(Parser)]
struct Arguments {
    /// Measure the memory of held polls only.
    #[arg(long)]
    idle: bool,
    /// Measure CPU only.
    #[arg(long)]
    cpu: bool,
    /// Interleaved rounds of each CPU measurement.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Rounds of the memory measurement, each with fresh processes.
    #[arg(long, default_value_t = 3)]
    idle_rounds: usize,
    /// Idle sessions.
    #[arg(long, default_value_t = 5000)]
    sessions: usize,
    /// Stanzas of one CPU measurement.
    #[arg(long, default_value_t = 40_000)]
    stanzas: usize,
    /// Stanzas in a body, for each a measurement.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    in_body: Vec<usize>,
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
}

/// The transports, the measure of the other first.
#[derive(Clone, Copy, PartialEq)]
enum Transport {
    WebSocket,
    Bosh,
}

impl Transport {
    const ALL: [Self; 2] = [Self::WebSocket, Self::Bosh];

    fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Bosh => "bosh",
        }
    }

    fn load(self) -> anyhow::Result<Load> {
        match self {
            Self::WebSocket => Load::start("load"),
            Self::Bosh => Load::start("bosh-load"),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(RoleArguments::Sink) => sink::run(),
        Some(RoleArguments::Load) => orders::run::<ws_load::Client>(),
        Some(RoleArguments::BoshLoad) => orders::run::<load::Client>(),
        // `cargo test` runs benchmarks, too, to see whether they start.
        None if !arguments.bench => {
            println!("nothing measured: this is for `cargo bench --bench bosh`");
            Ok(())
        }
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let sink = Role::start_sink()?;
    let both = arguments.idle == arguments.cpu;
    println!("{}", process::machine());
    if both || arguments.cpu {
        cpu(arguments, &sink)?;
    }
    if both || arguments.idle {
        idle(arguments, &sink)?;
    }
    Ok(())
}

/// What one measurement of CPU found.
struct Sample {
    a_stanza: f64,
    a_pair: f64,
    pairs_a_burst: f64,
}

/// CPU: one gateway carries the sessions of both transports, which take turns.
fn cpu(arguments: &Arguments, sink: &Role) -> anyhow::Result<()> {
    let target = Target::start(&TargetKind::Gateway, sink)?;
    let mut loads = Vec::new();
    for transport in Transport::ALL {
        let mut load = transport.load()?;
        target.explain(load.open(transport.name(), target.address, CPU_SESSIONS))?;
        loads.push(load);
    }
    println!(
        "\nCPU of the gateway: µs for a {}-byte stanza there and back, {CPU_SESSIONS} sessions, hold=1; median of {} \
         rounds (least to most)",
        orders::STANZA_BYTES,
        arguments.rounds
    );
    println!(
        "{:<24} {:>24} {:>24} {:>22} {:>26}",
        "", "µs a stanza", "µs a request/response", "requests a burst", "ratio a stanza, by pairs"
    );
    for &in_body in &arguments.in_body {
        let bursts = (arguments.stanzas / CPU_SESSIONS / in_body).max(1);
        let mut rows: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
        // The first round warms up and does not count.
        for round in 0..=arguments.rounds {
            let mut order = [0, 1];
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let name = Transport::ALL[index].name();
                let before = target.cpu()?;
                let pairs =
                    target.explain(loads[index].echo(name, in_body, bursts, CPU_SESSIONS))?;
                let spent = target.cpu()?.saturating_sub(before).as_nanos() as f64 / 1000.0;
                if round > 0 {
                    let all_bursts = (CPU_SESSIONS * bursts) as f64;
                    rows[index].push(Sample {
                        a_stanza: spent / (all_bursts * in_body as f64),
                        a_pair: spent / pairs as f64,
                        pairs_a_burst: pairs as f64 / all_bursts,
                    });
                }
            }
        }
        for (transport, row) in Transport::ALL.iter().zip(&rows) {
            let ratio =
                spread(row.iter().zip(&rows[0]).map(|(own, ws)| own.a_stanza / ws.a_stanza));
            let is_bosh = *transport == Transport::Bosh;
            let of_pairs = |field: fn(&Sample) -> f64| {
                if is_bosh { spread(row.iter().map(field)).show(2) } else { String::new() }
            };
            println!(
                "{:<24} {:>24} {:>24} {:>22} {:>26}{}",
                format!("{}, {in_body} a burst", transport.name()),
                spread(row.iter().map(|sample| sample.a_stanza)).show(2),
                of_pairs(|sample| sample.a_pair),
                of_pairs(|sample| sample.pairs_a_burst),
                ratio.show(2),
                match (is_bosh, in_body) {
                    (true, 1) => verdict(ratio, CPU_TARGET_1, "times WebSocket"),
                    (true, 16) => verdict(ratio, CPU_TARGET_16, "times WebSocket"),
                    _ => String::new(),
                }
            );
        }
    }
    Ok(())
}

/// Memory: fresh processes, all sessions opened, some traffic on each, then silence. Over BOSH each
/// session then has one held request; once with the connection beside it, which the client keeps
/// open as browsers do until it times out, and once without.
fn idle(arguments: &Arguments, sink: &Role) -> anyhow::Result<()> {
    let sessions = arguments.sessions;
    let rows = ["websocket", "bosh, one connection", "bosh, two connections"];
    let mut measured: [Vec<(Memory, Memory)>; 3] = [const { Vec::new() }; 3];
    for _ in 0..arguments.idle_rounds {
        for (row, measured) in measured.iter_mut().enumerate() {
            let transport = if row == 0 { Transport::WebSocket } else { Transport::Bosh };
            let target = Target::start(&TargetKind::Gateway, sink)?;
            let mut load = transport.load()?;
            let before = settled_memory(&target)?;
            target.explain(load.open("idle", target.address, sessions))?;
            target.explain(load.echo("idle", 1, IDLE_ECHOES, IDLE_CONCURRENCY))?;
            if row == 1 {
                target.explain(load.close_spare("idle"))?;
            }
            measured.push((before, settled_memory(&target)?));
        }
    }
    println!(
        "\nMemory: {sessions} idle sessions, each after {IDLE_ECHOES} echoes of a {}-byte stanza; KiB, median of {} \
         rounds (least to most)",
        orders::STANZA_BYTES,
        arguments.idle_rounds
    );
    println!("{:<24} {:>14} {:>24} {:>24}", "", "before, Rss", "a session, Rss", "Anonymous");
    for (row, (name, measured)) in rows.iter().zip(&measured).enumerate() {
        let a_session = |field: fn(&Memory) -> u64| {
            spread(measured.iter().map(|(before, after)| {
                field(after).saturating_sub(field(before)) as f64 / sessions as f64
            }))
        };
        let before = spread(measured.iter().map(|(before, _)| before.rss as f64));
        let rss = a_session(|memory| memory.rss);
        println!(
            "{name:<24} {:>14.0} {:>24} {:>24}{}",
            before.median,
            rss.show(2),
            a_session(|memory| memory.anonymous).show(2),
            if row == 1 { verdict(rss, IDLE_TARGET, "KiB a held poll") } else { String::new() },
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
        if alike == SETTLED {
            break;
        }
    }
    Ok(last)
}

fn verdict(spread: Spread, most: f64, unit: &str) -> String {
    let met = if spread.median <= most { "met" } else { "MISSED" };
    format!("   target <= {most} {unit}: {met}")
}

/// The directory for the gateway's configuration and what it says.
fn scratch_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-bosh-{}", std::process::id()))
}

/// Most KiB of resident memory a session with one held request may cost.
const IDLE_TARGET: f64 = 32.0;
/// Most times the CPU of a stanza over WebSocket, with one and with sixteen in a body.
const CPU_TARGET_1: f64 = 3.0;
const CPU_TARGET_16: f64 = 1.3;
const IDLE_ECHOES: usize = 10;
/// How many of the idle sessions talk at a time.
const IDLE_CONCURRENCY: usize = 100;
const CPU_SESSIONS: usize = 50;
/// Looks, a quarter of a second apart, that find the same memory: longer than a connection is kept
/// ready for another request.
const SETTLED: usize = 14;
/// Looks until memory that does not settle is taken as it is.
const SETTLING: usize = 80;

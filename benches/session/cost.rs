//! What measuring costs: the program beside itself, built with the feature `no-metrics`, in which
//! nothing of that is left on the way of a stanza.
//!
//! CPU is compared by pairs: both programs run all the time with their sessions open, and take turns
//! at the same load, each pair in the other order than the one before. Instructions are counted by
//! callgrind, which knows nothing of other processes: those of one number of stanzas are taken from
//! those of a larger one, so that start, logins and end are left out. Callgrind sees what runs in user
//! mode, and makes every look at the clock a system call, of which it sees next to nothing: what the
//! clock costs is in the pairs alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::process::{Load, Role, Target, TargetKind, machine};
use super::{CPU_SESSIONS, orders, scratch_directory};

/// Most times the cost without metrics.
const TARGET: f64 = 1.05;
/// Fewer pairs prove nothing.
const FEWEST_PAIRS: usize = 30;
/// Quartiles further apart than this are of a machine that has other things to do.
const WIDEST: f64 = 0.1;
/// Stanzas that callgrind sees at most.
const COUNTED_STANZAS: usize = 5000;

/// What is measured, and how often.
pub(crate) struct Order<'a> {
    /// Pairs of CPU measurements.
    pub(crate) pairs: usize,
    /// Stanzas of one of them; over BOSH half as many, which take as long.
    pub(crate) stanzas: usize,
    /// The program without metrics, if it is not to be built.
    pub(crate) without: Option<&'a Path>,
    /// Names of transports; none is all.
    pub(crate) only: &'a [String],
}

/// How the load talks to the program.
#[derive(Clone, Copy)]
struct Transport {
    name: &'static str,
    role: &'static str,
    /// Of [`Order::stanzas`], this part.
    share: usize,
}

const TRANSPORTS: [Transport; 2] = [
    Transport { name: "websocket", role: "load", share: 1 },
    Transport { name: "bosh", role: "bosh-load", share: 2 },
];

/// Measures, and prints what it finds.
pub(crate) fn measure(order: &Order<'_>, sink: &Role) -> anyhow::Result<()> {
    let wanted = |transport: &&Transport| {
        order.only.is_empty() || order.only.iter().any(|name| name == transport.name)
    };
    let transports: Vec<Transport> = TRANSPORTS.iter().filter(wanted).copied().collect();
    if transports.is_empty() {
        bail!("no transport of the name given with --only");
    }
    let with = PathBuf::from(env!("CARGO_BIN_EXE_bosphorus"));
    let programs = [with, order.without.map_or_else(build, |path| Ok(path.to_owned()))?];
    println!("{}", machine());
    println!(
        "\nWhat measuring costs: for a {}-byte stanza there and back, {CPU_SESSIONS} sessions, one stanza in flight, \
         with metrics and without (feature no-metrics)",
        orders::STANZA_BYTES
    );
    for transport in &transports {
        cpu(order, *transport, &programs, sink)?;
    }
    if let Err(error) = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        println!("\nINSTRUCTIONS NOT COUNTED: valgrind does not start ({error})");
        return Ok(());
    }
    for transport in &transports {
        instructions(order, *transport, &programs, sink)?;
    }
    Ok(())
}

/// The program without metrics, of the same profile as the one with them.
fn build() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("a target directory")?;
    let target = target.join("no-metrics");
    println!("building the program without metrics into {}", target.display());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--locked", "--quiet", "--profile", "bench", "--bin", "bosphorus"])
        .args(["--features", "no-metrics", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("the program without metrics cannot be built");
    }
    Ok(target.join("release/bosphorus"))
}

const NAMES: [&str; 2] = ["with", "without"];

fn cpu(
    order: &Order<'_>,
    transport: Transport,
    programs: &[PathBuf; 2],
    sink: &Role,
) -> anyhow::Result<()> {
    let mut load = Load::start(transport.role)?;
    let mut targets = Vec::new();
    for (name, program) in NAMES.into_iter().zip(programs) {
        let target = Target::start(&kind(name, vec![program.into()]), sink)?;
        target.explain(load.open(name, target.address, CPU_SESSIONS))?;
        targets.push(target);
    }
    let bursts = (order.stanzas / transport.share / CPU_SESSIONS).max(1);
    let mut micros: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    // The first pair warms up and does not count.
    for pair in 0..=order.pairs {
        let turns = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for index in turns {
            let before = targets[index].cpu()?;
            targets[index].explain(load.echo(NAMES[index], 1, bursts, CPU_SESSIONS))?;
            let spent = targets[index].cpu()?.saturating_sub(before);
            if pair > 0 {
                let stanzas = (CPU_SESSIONS * bursts) as f64;
                micros[index].push(spent.as_nanos() as f64 / 1000.0 / stanzas);
            }
        }
    }
    let ratios = Quartiles::of(micros[0].iter().zip(&micros[1]).map(|(with, out)| with / out));
    println!(
        "\n{}: CPU, {} interleaved pairs of {} stanzas each; median (interquartile range)",
        transport.name,
        order.pairs,
        CPU_SESSIONS * bursts
    );
    for (name, micros) in NAMES.into_iter().zip(micros) {
        println!("  {name:<8} {} µs a stanza", Quartiles::of(micros.into_iter()).show(2));
    }
    let within = match ratios.median_within() {
        (low, high) if low.is_finite() => format!("; median within {low:.3} to {high:.3} (95 %)"),
        _ => String::new(),
    };
    println!("  ratio    {}{within}", ratios.show(3));
    println!("  target <= {TARGET}: {}", verdict(&ratios));
    println!("  load average {}", load_average());
    Ok(())
}

/// What follows from the pairwise ratios, with the rule that it follows by.
fn verdict(ratios: &Quartiles) -> String {
    let (low, high) = ratios.median_within();
    let apart = ratios.third - ratios.first;
    if ratios.sorted.len() < FEWEST_PAIRS {
        format!("INCONCLUSIVE: fewer than {FEWEST_PAIRS} pairs")
    } else if apart > WIDEST {
        format!("INCONCLUSIVE: the quartiles are {apart:.3} apart, more than {WIDEST}")
    } else if high <= TARGET {
        "ok: the median is within the target, and so is the whole of its 95 % interval".to_owned()
    } else if low > TARGET {
        "TOO MUCH: the whole of the median's 95 % interval is above the target".to_owned()
    } else {
        "INCONCLUSIVE: the target is within the median's 95 % interval".to_owned()
    }
}

fn instructions(
    order: &Order<'_>,
    transport: Transport,
    programs: &[PathBuf; 2],
    sink: &Role,
) -> anyhow::Result<()> {
    let most = order.stanzas.min(COUNTED_STANZAS);
    let [few, many] = [most / 5, most].map(|stanzas| (stanzas / CPU_SESSIONS).max(1));
    if few == many {
        bail!("--stanzas: too few to count instructions");
    }
    let stanzas = [few, many].map(|bursts| bursts * CPU_SESSIONS);
    println!(
        "\n{}: user instructions (callgrind), those of {} stanzas less those of {}",
        transport.name, stanzas[1], stanzas[0]
    );
    let mut each = [0.0; 2];
    for ((name, program), each) in NAMES.into_iter().zip(programs).zip(&mut each) {
        let counted = [few, many].map(|bursts| counted(transport, name, program, bursts, sink));
        let [few, many] = counted;
        let (few, many) = (few?, many?);
        *each = (many as f64 - few as f64) / (stanzas[1] - stanzas[0]) as f64;
        println!("  {name:<8} {each:.0} a stanza ({many} less {few})");
    }
    println!("  ratio    {:.4}", each[0] / each[1]);
    Ok(())
}

/// The instructions of a process that is started, has that many stanzas of each session, and ends.
fn counted(
    transport: Transport,
    name: &str,
    program: &Path,
    bursts: usize,
    sink: &Role,
) -> anyhow::Result<u64> {
    let directory = scratch_directory();
    fs::create_dir_all(&directory)?;
    let out = directory.join(format!("callgrind-{}-{name}-{bursts}", transport.name));
    let mut option = OsString::from("--callgrind-out-file=");
    option.push(&out);
    let command = vec!["valgrind".into(), "--tool=callgrind".into(), option, program.into()];
    let target = Target::start(&kind(name, command), sink)?;
    let mut load = Load::start(transport.role)?;
    target.explain(load.open(name, target.address, CPU_SESSIONS))?;
    target.explain(load.echo(name, 1, bursts, CPU_SESSIONS))?;
    drop(load);
    target.end()?;
    let text = fs::read_to_string(&out).context("callgrind has written nothing")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:"));
    fs::remove_file(&out)?;
    total.context("callgrind's file has no totals")?.trim().parse().context("its totals")
}

fn kind(name: &str, command: Vec<OsString>) -> TargetKind {
    TargetKind::Program { name: name.to_owned(), command }
}

fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim_end().to_owned()
}

/// Where measured values lie.
struct Quartiles {
    first: f64,
    median: f64,
    third: f64,
    sorted: Vec<f64>,
}

impl Quartiles {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * sorted.len().saturating_sub(1) as f64;
            let value = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
            let (below, above) = (value(place.floor()), value(place.ceil()));
            below + (above - below) * place.fract()
        };
        Self { first: at(0.25), median: at(0.5), third: at(0.75), sorted }
    }

    /// Where the true median is in 95 of 100 cases, whatever the values are spread like (the order
    /// statistics that a sign test does not refute).
    fn median_within(&self) -> (f64, f64) {
        let n = self.sorted.len();
        // How likely it is that no more than `left_out` of n values are below their median.
        let mut exactly = 0.5_f64.powi(n as i32);
        let mut at_most = exactly;
        let mut left_out = 0;
        while at_most <= 0.025 {
            left_out += 1;
            exactly *= (n + 1 - left_out) as f64 / left_out as f64;
            at_most += exactly;
        }
        // `left_out` is the first that is too likely, and so the first value that stays.
        match left_out.checked_sub(1) {
            Some(left_out) => (self.sorted[left_out], self.sorted[n - 1 - left_out]),
            None => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    fn show(&self, digits: usize) -> String {
        let Self { first, median, third, .. } = self;
        format!("{median:.digits$} ({first:.digits$} to {third:.digits$})")
    }
}

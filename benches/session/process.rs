//! The processes of the benchmark: started with all the open files they may have, measured in
//! `/proc`, killed on drop.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

/// A thing to measure.
pub(crate) enum TargetKind {
    /// The byte relay in front of the sink's WebSocket port.
    Relay,
    /// Bosphorus in front of the sink's c2s port.
    Gateway,
    /// The same, as the program that this command runs.
    Program { name: String, command: Vec<OsString> },
    /// From `BOSPHORUS_BENCH_PEERS`.
    Peer { name: String, command: String },
}

impl TargetKind {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Relay => "relay",
            Self::Gateway => "gateway",
            Self::Program { name, .. } | Self::Peer { name, .. } => name,
        }
    }
}

/// A running target.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    child: Killed,
    directory: Removed,
}

impl Target {
    /// Starts a target and waits until it listens.
    pub(crate) fn start(kind: &TargetKind, sink: &Role) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let directory =
            Removed(super::scratch_directory().join(format!("{}-{}", kind.name(), address.port())));
        fs::create_dir_all(&directory.0)?;
        let [c2s, ws] = sink.ports[..] else { bail!("the sink has two ports") };
        let mut command = match kind {
            TargetKind::Relay => {
                let mut command = limitless(&std::env::current_exe()?);
                command.arg("relay").arg(address.to_string()).arg(format!("127.0.0.1:{ws}"));
                command
            }
            TargetKind::Gateway | TargetKind::Program { .. } => {
                let config = directory.0.join("bosphorus.toml");
                fs::write(&config, gateway_config(address, free_port()?, c2s))?;
                let own = [env!("CARGO_BIN_EXE_bosphorus").into()];
                let words = match kind {
                    TargetKind::Program { command, .. } => &command[..],
                    _ => &own,
                };
                let (program, arguments) = words.split_first().context("a command of no words")?;
                let mut command = limitless(Path::new(program));
                command.args(arguments).arg("serve").arg("--config").arg(config);
                command
            }
            TargetKind::Peer { command: text, .. } => {
                let mut command = limitless(Path::new("sh"));
                command.arg("-c").arg(text);
                command
            }
        };
        let log = fs::File::create(directory.0.join("log"))?;
        let child = command
            .env("LISTEN_PORT", address.port().to_string())
            .env("C2S_PORT", c2s.to_string())
            .env("WS_PORT", ws.to_string())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} does not start", kind.name()))?;
        let mut target = Self { address, child: Killed(child), directory };
        for _ in 0..PATIENCE {
            if TcpStream::connect(address).is_ok() {
                return Ok(target);
            }
            if let Some(status) = target.child.0.try_wait()? {
                return target.explain(Err(anyhow!("{} ended with {status}", kind.name())));
            }
            std::thread::sleep(TICK);
        }
        target.explain(Err(anyhow!("{} does not listen", kind.name())))
    }

    /// Memory of the process now, in KiB.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.0.id()))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("no {name} in smaps_rollup"))
        };
        Ok(Memory { rss: field("Rss:")?, anonymous: field("Anonymous:")? })
    }

    /// CPU time of all threads so far. The scheduler's own account, in nanoseconds; `stat` counts
    /// in 10 ms.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.0.id()))? {
            // A thread may have ended since; what it spent is lost, and targets keep their threads.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                sum += text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            }
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.child.0.id().to_string()).status().context("kill")?;
        for _ in 0..PATIENCE {
            if self.child.0.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(TICK);
        }
        self.explain(Err(anyhow!("it does not end")))
    }

    /// A failure, with the end of what the target said.
    pub(crate) fn explain<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.with_context(|| {
            let log = fs::read_to_string(self.directory.0.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("the target said last:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
        })
    }
}

/// Of `/proc/PID/smaps_rollup`, in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    pub(crate) anonymous: u64,
}

/// This executable in another role; it ends with its standard input.
pub(crate) struct Role {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// What it listens on.
    pub(crate) ports: Vec<u16>,
    _child: Killed,
}

impl Role {
    fn start(role: &str) -> anyhow::Result<Self> {
        let mut child = limitless(&std::env::current_exe()?)
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a role without pipes");
        };
        let stdout = BufReader::new(stdout);
        Ok(Self { stdin, stdout, ports: Vec::new(), _child: Killed(child) })
    }

    /// The server.
    pub(crate) fn start_sink() -> anyhow::Result<Self> {
        let mut role = Self::start("sink")?;
        role.ports = role.line()?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        Ok(role)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// The clients. Each order is carried out before it returns, in bounded time ([`super::orders`] sees
/// to that).
pub(crate) struct Load(Role);

impl Load {
    /// Starts this executable in a role that takes the orders.
    pub(crate) fn start(role: &str) -> anyhow::Result<Self> {
        Role::start(role).map(Self)
    }

    /// Opens that many sessions through a target and logs them in.
    pub(crate) fn open(
        &mut self,
        group: &str,
        target: SocketAddr,
        sessions: usize,
    ) -> anyhow::Result<()> {
        self.order(format!("open {group} {target} {sessions}")).map(drop)
    }

    /// Each session of the group sends `bursts` times `in_flight` stanzas and waits for their
    /// echoes; as many sessions at a time as `concurrency` says. Returns how many HTTP requests
    /// that took.
    pub(crate) fn echo(
        &mut self,
        group: &str,
        in_flight: usize,
        bursts: usize,
        concurrency: usize,
    ) -> anyhow::Result<u64> {
        self.order(format!("echo {group} {in_flight} {bursts} {concurrency}"))
    }

    /// Closes the connections that no request is open on.
    #[allow(dead_code, reason = "only BOSH has such connections")]
    pub(crate) fn close_spare(&mut self, group: &str) -> anyhow::Result<()> {
        self.order(format!("close-spare {group}")).map(drop)
    }

    /// The number behind "done", if there is one.
    fn order(&mut self, order: String) -> anyhow::Result<u64> {
        writeln!(self.0.stdin, "{order}")?;
        let answer = self.0.line()?;
        let Some(count) = answer.strip_prefix("done") else {
            bail!("the load could not `{order}`: {answer}");
        };
        Ok(count.trim().parse().unwrap_or(0))
    }
}

/// A line about where this runs.
pub(crate) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    format!("{cpus} CPUs ({model}), load average {}", read("/proc/loadavg").trim_end())
}

/// A command with the soft limit of open files raised to the hard one. `exec` keeps the process id.
fn limitless(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg("ulimit -n \"$(ulimit -Hn)\"; exec \"$0\" \"$@\"").arg(program);
    command
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn gateway_config(address: SocketAddr, admin: u16, c2s: u16) -> String {
    format!(
        "[listen]\naddresses = [\"{address}\"]\nworkers = 1\n\n[admin]\naddress = \"127.0.0.1:{admin}\"\n\n\
         [limits]\nsessions = 20000\n\n[log]\nfilter = \"warn\"\n\n\
         [domains.\"bench.test\"]\nservers = [\"xmpp://127.0.0.1:{c2s}\"]\n"
    )
}

/// A child that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that does not, either.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        if let Some(parent) = self.0.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// How long, and how often, a start is waited for: 20 seconds.
const TICK: Duration = Duration::from_millis(20);
const PATIENCE: usize = 1000;

//! Child processes that cannot outlive the test, their directories and their ports.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{PATIENCE, Result};

/// A child process, the leader of a process group of its own; the whole group is killed on drop,
/// and also when the test process itself is killed or exits without dropping anything.
pub struct Process {
    child: Child,
    watchdog: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` in `directory` with standard output and error appended to its file `log`.
    pub fn spawn(command: Command, directory: &Directory, log: &str) -> Result<Self> {
        let out = File::options().create(true).append(true).open(directory.join(log))?;
        Self::spawn_on(command, directory, log, Stdio::null(), out.into())
    }

    /// Starts it on this standard input and output; errors go to the log.
    pub fn spawn_on(
        mut command: Command,
        directory: &Directory,
        log: &str,
        input: Stdio,
        output: Stdio,
    ) -> Result<Self> {
        let errors = File::options().create(true).append(true).open(directory.join(log))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(input)
            .stdout(output)
            .stderr(errors)
            .current_dir(directory.path())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        // Statics are never dropped, and a killed test drops nothing. The watchdog's standard
        // input is a pipe whose other end only this process holds, so its end is our end.
        let watchdog = Command::new("/bin/sh")
            .args(["-c", "read -r _; kill -s KILL -- \"-$1\"; rm -rf -- \"$2\"", "watchdog"])
            .arg(child.id().to_string())
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { child, watchdog, status: None })
    }

    /// The process id, which is also that of the group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name (`TERM`, `INT`, `KILL`, `STOP`, `CONT`) to the process alone.
    pub fn signal(&self, name: &str) -> Result {
        signal(name, &self.id().to_string())
    }

    /// The exit status if it has ended, without waiting.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for the end of the process, at most `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = now() + patience;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if now() > deadline {
                bail!("process {} still runs after {patience:?}", self.id());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the whole group at once (SIGKILL) and reaps the child. Safe to call twice.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            let _ = signal("KILL", &format!("-{}", self.child.id()));
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The watchdog first: once the child is reaped its id may belong to someone else.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        self.kill();
    }
}

fn signal(name: &str, target: &str) -> Result {
    let status = Command::new("/bin/sh")
        .args(["-c", "kill -s \"$1\" -- \"$2\" 2>/dev/null", "kill", name, target])
        .status()?;
    if !status.success() {
        bail!("cannot send SIG{name} to {target}");
    }
    Ok(())
}

/// A fresh directory under the system's temporary one, removed on drop.
pub struct Directory(PathBuf);

impl Directory {
    /// Creates it; `name` is a hint for the person who looks at it.
    pub fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let leaf = format!("bosphorus-test-{}-{count}-{name}", std::process::id());
        let path = std::env::temp_dir().join(leaf);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// The path of the directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in it.
    pub fn join(&self, leaf: &str) -> PathBuf {
        self.0.join(leaf)
    }

    /// Writes a file into it, creating directories on the way.
    pub fn write(&self, leaf: &str, content: &str) -> Result<PathBuf> {
        let path = self.join(leaf);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ports of 127.0.0.1 on which nothing listens now. They lie below the range the kernel gives to
/// outgoing connections, so that no client socket of a test running beside takes one meanwhile.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().map_err(|_| anyhow::anyhow!("a test panicked here"))?;
    let given = given.get_or_insert_default();
    let mut ports = [0; N];
    // Test binaries run at the same time must not walk the same way.
    let start = std::process::id().wrapping_mul(7919) % 20_000;
    let mut candidates = (0..20_000u32).map(|step| 10_240 + ((start + step) % 20_000) as u16);
    for port in &mut ports {
        *port = candidates
            .find(|&candidate| {
                !given.contains(&candidate) && TcpListener::bind(("127.0.0.1", candidate)).is_ok()
            })
            .context("no free port on 127.0.0.1")?;
        given.insert(*port);
    }
    Ok(ports)
}

/// Finds a program in `PATH` or in the directories of system programs that a person's `PATH` lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin"].map(Into::into),
        )
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Asks `ready` until it says yes, while `process` lives; [`PATIENCE`] thrice, since a server's
/// start is the one thing here that takes seconds on a busy machine.
pub fn wait_ready(process: &mut Process, mut ready: impl FnMut() -> bool) -> Result {
    let deadline = now() + 3 * PATIENCE;
    while !ready() {
        if let Some(status) = process.try_wait()? {
            bail!("ended while starting: {status}");
        }
        if now() > deadline {
            bail!("not ready after {:?}", 3 * PATIENCE);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The last `lines` lines of a file, or why there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are the shell of their own clock")]
fn now() -> Instant {
    Instant::now()
}

//! What is installed beside the program: the unit of systemd, judged by systemd's own tools and run
//! as it would be run, with the notifications read by the test. Building and installing the Debian
//! package takes minutes and root: `tests/package.sh` does that.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use anyhow::{Context, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use common::client::{Client, Endpoint, Transport};
use common::gateway::{domain_toml, http_get};
use common::process::{Directory, Process, find, free_ports, tail};
use common::server::{Kind, Server};
use common::{PATIENCE, Result, block_on, in_ci};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/systemd/bosphorus.service");
const SOCKET: &str = "activation/bosphorus.socket";
/// In tenths, as the option wants it: what systemd calls "OK" begins at 50 and is none too good.
const EXPOSURE: u32 = 18;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("the unit is sound", &["systemd-analyze"], the_unit_is_sound),
        trial("the unit gives little away", &["systemd-analyze"], the_unit_gives_little_away),
        trial("the unit's command tells the manager", &[], the_command_tells_the_manager),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Ignored, visibly, where a tool is missing; in CI that is a failure.
fn trial(name: &str, tools: &[&'static str], test: fn() -> Result) -> Trial {
    let missing = tools.iter().find(|tool| find(tool).is_none()).copied();
    let run = move || {
        let result = match missing {
            Some(tool) => Err(anyhow!("no `{tool}` on this machine (Debian package `systemd`)")),
            None => test(),
        };
        result.map_err(|error| Failed::from(format!("{error:#}")))
    };
    Trial::test(name, run).with_ignored_flag(missing.is_some() && !in_ci())
}

/// `systemd-analyze verify` has nothing to say, of the example for socket activation neither.
fn the_unit_is_sound() -> Result {
    let directory = Directory::new("unit")?;
    let unit = unit_of_this_build(&directory)?;
    let socket = std::fs::read_to_string(Path::new(UNIT).with_file_name(SOCKET))?;
    // A group that every machine has.
    let socket = socket.replace("SocketGroup=www-data", "SocketGroup=root");
    let socket = directory.write("bosphorus.socket", &socket)?;
    let output = analyze(&["verify".as_ref(), unit.as_os_str(), socket.as_os_str()])?;
    let said = text(&output);
    ensure!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    Ok(())
}

/// `systemd-analyze security` finds little that the process could do besides its work.
fn the_unit_gives_little_away() -> Result {
    let directory = Directory::new("unit")?;
    let unit = unit_of_this_build(&directory)?;
    let threshold = format!("--threshold={EXPOSURE}");
    let output = analyze(&[
        "security".as_ref(),
        "--offline=true".as_ref(),
        threshold.as_ref(),
        unit.as_os_str(),
    ])?;
    let said = text(&output);
    ensure!(output.status.success(), "{}: {said}", output.status);
    println!("{}", said.lines().last().unwrap_or_default());
    Ok(())
}

/// The command of the unit, as a user who may do nothing: the manager hears READY, RELOADING and
/// STOPPING when they are so, and a client can log in between them.
fn the_command_tells_the_manager() -> Result {
    block_on(async {
        let server = Server::shared(Kind::Demo)?;
        let directory = Directory::new("service")?;
        let [listen, admin]: [u16; 2] = free_ports()?;
        let config = |keep_alive: &str| {
            let toml = format!(
                "[listen]\naddresses = [\"127.0.0.1:{listen}\"]\n{keep_alive}\n\
                 [admin]\naddress = \"127.0.0.1:{admin}\"\n{}",
                domain_toml(&server)
            );
            directory.write("bosphorus.toml", &toml)
        };
        let path = config("")?;
        // Whoever it is run as reads the configuration and writes to the manager.
        let readable = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        };
        readable(directory.path(), 0o755)?;
        readable(&path, 0o644)?;
        let socket = directory.join("notify");
        let manager = UnixDatagram::bind(&socket)?;
        manager.set_read_timeout(Some(PATIENCE))?;
        readable(&socket, 0o777)?;

        let mut command = as_nobody(&directory, &exec_start(&path)?)?;
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000");
        let mut process = Process::spawn(command, &directory, "gateway.log")?;
        let log = directory.join("gateway.log");
        let heard = |word: &str| hear(&manager, word).with_context(|| tail(&log, 20));
        heard("READY=1")?;
        ensure!(
            http_get(([127, 0, 0, 1], admin).into(), "/ready")?.0 == 200,
            "READY and not ready"
        );
        heard("WATCHDOG=1")?;
        let endpoint =
            Endpoint { url: format!("ws://127.0.0.1:{listen}/ws"), transport: Transport::Ws };
        let alice = Client::online(&endpoint, &server.named_account("alice")).await?;

        process.signal("HUP")?;
        let reloading = heard("RELOADING=1")?;
        ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        ensure!(heard("READY=1")?.contains("STATUS=serving"));
        config("keep_alive = 5")?;
        process.signal("HUP")?;
        heard("RELOADING=1")?;
        let refused = heard("READY=1")?;
        ensure!(refused.contains("STATUS=serving by the old configuration"), "{refused}");

        alice.quit().await?;
        process.signal("TERM")?;
        let stopping = heard("STOPPING=1")?;
        ensure!(stopping.contains("EXTEND_TIMEOUT_USEC=33000000"), "{stopping}");
        let status = process.wait(PATIENCE)?;
        ensure!(status.code() == Some(0), "{status}\n{}", tail(&log, 20));
        Ok(())
    })
}

/// The next notification that has this line; the manager hears others, too.
fn hear(manager: &UnixDatagram, word: &str) -> Result<String> {
    let mut buffer = [0; 4096];
    loop {
        let count =
            manager.recv(&mut buffer).with_context(|| format!("waited in vain for {word}"))?;
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if text.lines().any(|line| line == word) {
            return Ok(text);
        }
    }
}

/// The words of `ExecStart=`, with the program and the configuration of this test.
fn exec_start(config: &Path) -> Result<Vec<String>> {
    let unit = std::fs::read_to_string(UNIT)?;
    let line =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("a command")?;
    let words: Vec<_> = line.split(' ').collect();
    let [program, rest @ .., file] = &words[..] else { return Err(anyhow!("{line}")) };
    ensure!(*program == "/usr/bin/bosphorus" && *file == "/etc/bosphorus/bosphorus.toml", "{line}");
    let mut command = vec![env!("CARGO_BIN_EXE_bosphorus").to_owned()];
    command.extend(rest.iter().map(|&word| word.to_owned()));
    command.push(config.display().to_string());
    Ok(command)
}

/// The command as a user without rights, if we are one who may become it; the program is copied to
/// where that user can read it.
fn as_nobody(directory: &Directory, words: &[String]) -> Result<Command> {
    let program = directory.join("bosphorus");
    std::fs::copy(&words[0], &program)?;
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|it| {
        use std::os::unix::fs::MetadataExt as _;
        it.uid() == 0
    });
    let mut command = match (is_root, find("setpriv")) {
        (true, Some(setpriv)) => {
            let mut command = Command::new(setpriv);
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            command.args(["--no-new-privs", "--bounding-set=-all", "--"]).arg(program);
            command
        }
        _ => Command::new(program),
    };
    command.args(&words[1..]);
    Ok(command)
}

/// The unit with the program of this build in it, since the installed one may not be there.
fn unit_of_this_build(directory: &Directory) -> Result<PathBuf> {
    let unit = std::fs::read_to_string(UNIT)?;
    let unit = unit.replace("/usr/bin/bosphorus", env!("CARGO_BIN_EXE_bosphorus"));
    directory.write("bosphorus.service", &unit)
}

fn analyze(arguments: &[&std::ffi::OsStr]) -> Result<Output> {
    let program = find("systemd-analyze").context("no `systemd-analyze`")?;
    Ok(Command::new(program).args(arguments).output()?)
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

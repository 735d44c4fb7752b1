//! The configuration as its users meet it: layers, errors with their places, the documented
//! default file.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "config/domains.rs"]
mod domains;
#[path = "config/files.rs"]
mod files;
#[path = "config/layers.rs"]
mod layers;
#[path = "config/program.rs"]
mod program;
#[path = "config/sections.rs"]
mod sections;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bosphorus::cli::{Cli, Command as CliCommand};
use bosphorus::config::{Config, ConfigError, Server, ServerAddress};
use bosphorus::proto::domain::Domain;
use clap::Parser as _;

const DOMAIN: &str = "[domains.\"example.org\"]\n";

/// What `serve` would run with.
fn serve(
    file: Option<&Path>,
    environment: &[(&str, &str)],
    flags: &[&str],
) -> Result<Config, ConfigError> {
    let mut arguments = vec![OsString::from("bosphorus"), "serve".into()];
    if let Some(file) = file {
        arguments.extend(["--config".into(), file.into()]);
    }
    arguments.extend(flags.iter().map(OsString::from));
    let CliCommand::Serve(serve) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("not serve");
    };
    serve.load(environment.iter().map(|&(name, value)| (name.into(), value.into())))
}

fn refused(file: Option<&Path>, environment: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
    lines(serve(file, environment, flags))
}

fn faults(text: &str) -> Vec<String> {
    lines(Config::from_toml_str(text))
}

fn lines(result: Result<Config, ConfigError>) -> Vec<String> {
    result.unwrap_err().problems().iter().map(ToString::to_string).collect()
}

/// The keys of a section, which the error for an unknown one lists.
fn known_keys(section: &str) -> Vec<String> {
    let fault = faults(&format!("{section}\nunheard_of = 1\n")).remove(0);
    let (_, list) = fault.split_once("expected ").unwrap();
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

/// An entry of `servers` of which only the address is given.
fn at(priority: u16, address: ServerAddress) -> Server {
    Server { priority, ..Server::at(address) }
}

fn tcp(host: &str, port: u16) -> ServerAddress {
    ServerAddress::Tcp { host: host.to_owned(), port }
}

/// Runs the program to its end, with no `BOSPHORUS__` variables but these.
fn bosphorus(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.output().unwrap()
}

/// A directory of one test, gone at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

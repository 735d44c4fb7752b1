//! The command line: its shape, and the `config` subcommands, which need nothing but the
//! configuration.

use std::ffi::OsString;
use std::io::Write as _;
#[cfg(feature = "demo")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, DEFAULTS, Flag, FlagValue};

/// The exit status when the configuration is at fault; clap uses the same for the command line.
pub const EXIT_CONFIG: u8 = 2;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "bosphorus", version, about, arg_required_else_help = true)]
#[command(after_help = "\
Example: bring web clients, over WebSocket and BOSH, to an XMPP server on this machine
  bosphorus serve --domain example.org --server xmpp://127.0.0.1:5222")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway until SIGTERM or SIGINT; SIGHUP reads the configuration again
    Serve(ServeArgs),
    /// Try it: the gateway, an XMPP server and a page, all on this machine
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// The XMPP server of the demo alone, for tests
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoServer(DemoServerArgs),
    /// Check a configuration file, or print the defaults
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `serve`: what to run with. Flags win over the environment, the environment over the file, the
/// file over defaults.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Every key of the file can also be set by a variable, BOSPHORUS__SECTION__KEY; lists are separated by commas.
A flag wins over a variable, a variable over the file, the file over the defaults.

Examples:
  bosphorus serve --config /etc/bosphorus/bosphorus.toml
  bosphorus serve --domain example.org --server xmpp://127.0.0.1:5222
  BOSPHORUS__LISTEN__ADDRESSES=0.0.0.0:5280,[::]:5280 bosphorus serve --domain example.org")]
pub struct ServeArgs {
    /// The configuration file; none is read unless given
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients connect, such as 0.0.0.0:5280 or unix:/path (listen.addresses); repeat for more
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Where metrics and health are, or "" for nowhere (admin.address)
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Serve this XMPP domain, beside those of the file; repeat for more
    #[arg(long, value_name = "NAME")]
    pub domain: Vec<String>,
    /// The server of every --domain, such as xmpp://127.0.0.1:5222, xmpps://host:5223 or
    /// unix:/path; repeat for failover. Without it the file says, or DNS
    #[arg(long, value_name = "URL", requires = "domain")]
    pub server: Vec<String>,
    /// Lines for people or for machines: human, json (log.format)
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log, such as info or warn,bosphorus=debug (log.filter)
    #[arg(long, value_name = "FILTER")]
    pub log_filter: Option<String>,
}

impl ServeArgs {
    /// Loads the configuration from all layers; `environment` is [`std::env::vars_os`] but in
    /// tests.
    ///
    /// # Errors
    /// As [`Config::load`]; the caller exits with [`EXIT_CONFIG`].
    pub fn load(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref(), environment, self.flags())
    }

    /// The flags as the top layer.
    fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        let mut set = |name, path: &[&str], value| {
            let path = path.iter().map(|&part| part.to_owned()).collect();
            flags.push(Flag { name, path, value });
        };
        if !self.listen.is_empty() {
            set("--listen", &["listen", "addresses"], FlagValue::List(self.listen.clone()));
        }
        for (name, path, value) in [
            ("--admin", ["admin", "address"], &self.admin),
            ("--log-format", ["log", "format"], &self.log_format),
            ("--log-filter", ["log", "filter"], &self.log_filter),
        ] {
            if let Some(text) = value {
                set(name, &path, FlagValue::Text(text.clone()));
            }
        }
        for domain in &self.domain {
            set("--domain", &["domains", domain], FlagValue::Table);
            if !self.server.is_empty() {
                let servers = FlagValue::List(self.server.clone());
                set("--server", &["domains", domain, "servers"], servers);
            }
        }
        flags
    }
}

/// `demo`: no configuration is read.
#[cfg(feature = "demo")]
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Log in as anyone you like: the password is the user name.
Nothing is installed, configured or kept, and nothing listens but on loopback addresses.
A default port that is taken is replaced by a free one.")]
pub struct DemoArgs {
    /// Where the page is and clients connect [default: 127.0.0.1:5280]
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub listen: Option<SocketAddr>,
    /// Where metrics and health are [default: 127.0.0.1:9280]
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub admin: Option<SocketAddr>,
}

/// `demo-server`.
#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub struct DemoServerArgs {
    /// Where c2s streams are accepted
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub listen: SocketAddr,
    /// Make everyone who logs in everyone's contact, as in the demo
    #[arg(long)]
    pub roster_of_everyone: bool,
}

/// A socket address that nobody else can reach: the demo's passwords are no secrets.
#[cfg(feature = "demo")]
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "expected an address and a port, such as 127.0.0.1:5280")?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "{} is not a loopback address: the demo is for this machine alone, since anyone can \
             log in to it. For others use `serve`",
            address.ip()
        ))
    }
}

/// `config`: what needs no server.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file as `serve --config` would read it, the environment included
    ///
    /// Prints "FILE: ok" and any warnings, and exits with status 0; or prints every fault it finds,
    /// each with its line, and exits with status 2.
    #[command(after_help = "Example:\n  bosphorus config check /etc/bosphorus/bosphorus.toml")]
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Print the documented default configuration
    ///
    /// Every key is there, with its default and what it is for.
    #[command(after_help = "Example:\n  bosphorus config defaults > bosphorus.toml")]
    Defaults,
}

impl ConfigCommand {
    /// Does it, and gives the exit status of the process.
    pub fn run(&self) -> ExitCode {
        match self {
            Self::Check { file } => {
                match Config::load(Some(file), std::env::vars_os(), Vec::new()) {
                    Ok(config) => {
                        let mut report = format!("{}: ok\n", file.display());
                        for warning in &config.warnings {
                            report.push_str(&format!("warning: {warning}\n"));
                        }
                        print(&report)
                    }
                    Err(error) => {
                        eprintln!("{error}");
                        ExitCode::from(EXIT_CONFIG)
                    }
                }
            }
            Self::Defaults => print(DEFAULTS),
        }
    }
}

/// To standard output; a reader that went away (`| head`) is no panic.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

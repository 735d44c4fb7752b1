//! The `bosphorus` program: command line, configuration, log, then [`bosphorus::app::run`].

use std::io::IsTerminal as _;
use std::process::ExitCode;

use bosphorus::cli::{Cli, Command, EXIT_CONFIG};
use bosphorus::config::{Config, Log, LogFormat};
use clap::Parser as _;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Config(command) => command.run(),
        Command::Serve(arguments) => match arguments.load(std::env::vars_os()) {
            Ok(config) => serve(config),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(EXIT_CONFIG)
            }
        },
    }
}

fn serve(config: Config) -> ExitCode {
    start_log(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    match bosphorus::app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The log goes to standard error: standard output is nobody's stream here.
fn start_log(log: &Log) {
    // What the HTTP server says of its threads at each start is for those who ask for it.
    let filter = EnvFilter::new(format!("actix_server=warn,{}", log.filter));
    let log_to = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Human => log_to.with_target(false).init(),
        LogFormat::Json => log_to.json().init(),
    }
}

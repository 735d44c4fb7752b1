//! The `bosphorus` program: command line, configuration, log, then [`bosphorus::app`].

use std::io::IsTerminal as _;
use std::process::ExitCode;

#[cfg(feature = "demo")]
use bosphorus::app::demo;
use bosphorus::cli::{Cli, Command, EXIT_CONFIG};
#[cfg(feature = "demo")]
use bosphorus::cli::{DemoArgs, DemoServerArgs};
use bosphorus::config::{Config, Log, LogFormat};
#[cfg(feature = "demo")]
use bosphorus::demo::Settings;
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
        #[cfg(feature = "demo")]
        Command::Demo(DemoArgs { listen, admin }) => {
            start_log(&demo_log());
            exit_code(demo::run(&demo::Options { listen, admin }))
        }
        #[cfg(feature = "demo")]
        Command::DemoServer(DemoServerArgs { listen, roster_of_everyone }) => {
            start_log(&demo_log());
            exit_code(demo::run_server(listen, Settings { roster_of_everyone }))
        }
    }
}

fn serve(config: Config) -> ExitCode {
    start_log(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    exit_code(bosphorus::app::run(config))
}

#[cfg(feature = "demo")]
fn demo_log() -> Log {
    Log { format: LogFormat::Human, filter: demo::LOG_FILTER.to_owned() }
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The log goes to standard error: standard output is nobody's stream here.
fn start_log(log: &Log) {
    // What the HTTP server says of its threads at each start is for those who ask for it; the
    // demo's XMPP library would write whole stanzas, which is for nobody.
    let filter = format!("actix_server=warn,{},tokio_xmpp=warn", log.filter);
    let filter = EnvFilter::new(filter);
    let log_to = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Human => log_to.with_target(false).init(),
        LogFormat::Json => log_to.json().init(),
    }
}

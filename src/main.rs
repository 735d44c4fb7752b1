//! The `bosphorus` program.

use std::process::ExitCode;

use bosphorus::cli::{Cli, Command};
use clap::Parser as _;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Config(command) => command.run(),
        Command::Serve(arguments) => match arguments.load(std::env::vars_os()) {
            Ok(config) => {
                for warning in &config.warnings {
                    eprintln!("warning: {warning}");
                }
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(bosphorus::cli::EXIT_CONFIG)
            }
        },
    }
}

//! The `bosphorus` program: command line, configuration, log, then [`bosphorus::app`].

mod heap;

use std::fmt::Debug;
use std::io::IsTerminal as _;
use std::process::ExitCode;

#[cfg(feature = "demo")]
use bosphorus::app::demo;
use bosphorus::cli::{Cli, Command, EXIT_CONFIG, ServeArgs};
#[cfg(feature = "demo")]
use bosphorus::cli::{DemoArgs, DemoServerArgs};
use bosphorus::config::{Config, Log, LogFormat};
#[cfg(feature = "demo")]
use bosphorus::demo::Settings;
use clap::Parser as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, error, warn};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Config(command) => command.run(),
        Command::Serve(arguments) => match arguments.load(std::env::vars_os()) {
            Ok(config) => serve(config, arguments),
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

fn serve(config: Config, arguments: ServeArgs) -> ExitCode {
    start_log(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let load = move || arguments.load(std::env::vars_os());
    exit_code(bosphorus::app::run(config, Box::new(load)))
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
    // What the HTTP server says of its threads at each start is for those who ask for it; so are the
    // errors that it logs of every request that is none, since whoever connects can cause any number
    // of them. The demo's XMPP library would write whole stanzas, which is for nobody.
    let filter = format!("actix_server=warn,actix_http=off,{},tokio_xmpp=warn", log.filter);
    let log_to = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let hush = (!log.filter.contains("actix_server")).then_some(HushClosedListeners);
    match log.format {
        LogFormat::Human => log_to.with_target(false).finish().with(hush).init(),
        LogFormat::Json => log_to.json().finish().with(hush).init(),
    }
}

/// Where the HTTP server's accept loop logs.
const ACCEPT_LOOP: &str = "actix_server::accept";

/// Drops the two errors that the accept loop logs when it wakes for a listener that the gateway has
/// shut down, as it does with those it drains. A directive cannot: it would take the other errors of
/// the accept loop along, and "too many open files" is for the operator to read. Who names the HTTP
/// server in the filter gets all it says.
struct HushClosedListeners;

impl<S: Subscriber> Layer<S> for HushClosedListeners {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if event.metadata().target() != ACCEPT_LOOP {
            return true;
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        !is_of_closed_listener(&message.0)
    }
}

fn is_of_closed_listener(message: &str) -> bool {
    // EINVAL is accept(2)'s word for a socket that does not listen.
    message.starts_with("Error accepting") && message.contains("(os error 22)")
        || message.starts_with("Can not deregister")
}

/// The text of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_of_closed_listener;

    #[test]
    fn only_the_errors_of_closed_listeners_are_hushed() {
        let accepting = |code| {
            let error = std::io::Error::from_raw_os_error(code);
            is_of_closed_listener(&format!("Error accepting connection: {error}"))
        };
        assert!(accepting(22));
        assert!(!accepting(24), "too many open files");
        assert!(is_of_closed_listener(
            "Can not deregister server socket I/O source not registered"
        ));
        assert!(!is_of_closed_listener("Can not register server socket"));
    }
}

//! The signals that the program listens for.

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// The process is to end.
    Terminate,
    /// The same, from a terminal.
    Interrupt,
    /// The configuration is to be read again; where there is none, the terminal has gone.
    Hangup,
}

impl Signal {
    /// As the manual writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// All of them, from now on; none does any more what the system would do.
pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// The system does not let us.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }

    /// The name of the next one that is there to end the process, whatever else comes before it.
    pub(super) async fn end(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Signal::Hangup => tracing::info!("no reload while draining"),
                signal => return signal.name(),
            }
        }
    }
}

//! What HTTP connections cost, whatever is carried over them.

use prometheus::{IntGauge, Registry};

use super::int_gauge_vec;

/// What an HTTP connection is doing. WebSockets are none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Requests come or are answered, or were a moment ago.
    Active,
    /// A request is held, and has been for a while.
    Held,
    /// Nothing; the client may send a request.
    Resting,
}

impl Connection {
    const ALL: [Self; 3] = [Self::Active, Self::Held, Self::Resting];

    fn label(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Held => "held",
            Self::Resting => "resting",
        }
    }
}

/// The metrics of HTTP connections.
#[derive(Debug)]
pub struct HttpMetrics {
    connections: [IntGauge; 3],
}

impl HttpMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connections = int_gauge_vec(
            registry,
            "bosphorus_http_connections",
            "HTTP connections open now, WebSockets not among them, by what they are doing; \
             active ones cost the most memory",
            &["state"],
        )?;
        Ok(Self {
            connections: Connection::ALL
                .map(|state| connections.with_label_values(&[state.label()])),
        })
    }

    /// Counts a connection that rests, for as long as the guard lives.
    #[must_use]
    pub fn opened(&self) -> ConnectionGuard<'_> {
        let state = Connection::Resting;
        self.connections[state as usize].inc();
        ConnectionGuard { metrics: self, state }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct ConnectionGuard<'a> {
    metrics: &'a HttpMetrics,
    state: Connection,
}

impl ConnectionGuard<'_> {
    /// It does something else now.
    pub fn enter(&mut self, state: Connection) {
        self.metrics.connections[self.state as usize].dec();
        self.metrics.connections[state as usize].inc();
        self.state = state;
    }
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        self.metrics.connections[self.state as usize].dec();
    }
}

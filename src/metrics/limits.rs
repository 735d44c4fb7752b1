//! What is counted when a limit is reached.

use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Transport, int_counter_vec, int_gauge_vec};

/// A limit at which somebody was refused or ended; its name is its key in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// `limits.sessions`
    Sessions,
    /// `limits.sessions_per_address`
    SessionsPerAddress,
    /// `limits.unauthenticated_per_address`
    UnauthenticatedPerAddress,
    /// `limits.new_sessions_per_minute`
    NewSessionsPerMinute,
    /// `limits.auth_failures_per_minute`
    AuthFailuresPerMinute,
    /// `limits.requests_per_second`
    RequestsPerSecond,
    /// `limits.unknown_sids_per_minute`
    UnknownSidsPerMinute,
    /// `limits.connections_per_address`
    ConnectionsPerAddress,
    /// `limits.new_connections_per_second`
    NewConnectionsPerSecond,
    /// `limits.memory`
    Memory,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 10] = [
        Self::Sessions,
        Self::SessionsPerAddress,
        Self::UnauthenticatedPerAddress,
        Self::NewSessionsPerMinute,
        Self::AuthFailuresPerMinute,
        Self::RequestsPerSecond,
        Self::UnknownSidsPerMinute,
        Self::ConnectionsPerAddress,
        Self::NewConnectionsPerSecond,
        Self::Memory,
    ];

    /// The key in `[limits]`: the value of the label `limit`, and the word in the log.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::SessionsPerAddress => "sessions_per_address",
            Self::UnauthenticatedPerAddress => "unauthenticated_per_address",
            Self::NewSessionsPerMinute => "new_sessions_per_minute",
            Self::AuthFailuresPerMinute => "auth_failures_per_minute",
            Self::RequestsPerSecond => "requests_per_second",
            Self::UnknownSidsPerMinute => "unknown_sids_per_minute",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::NewConnectionsPerSecond => "new_connections_per_second",
            Self::Memory => "memory",
        }
    }
}

/// What the first bytes of a connection were that has to begin with a PROXY header (SEC-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyHeader {
    /// They tell a client's address.
    Proxied,
    /// They say that the connection is the proxy's own, or that the client is not known.
    Local,
    /// They are something else.
    Malformed,
    /// They are more than a header may have.
    TooLong,
    /// They did not come in time.
    Late,
    /// The connection ended before they were there, as that of a probe does.
    Closed,
}

impl ProxyHeader {
    const ALL: [Self; 6] =
        [Self::Proxied, Self::Local, Self::Malformed, Self::TooLong, Self::Late, Self::Closed];

    /// The value of the label `outcome`, and the word in the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Proxied => "proxied",
            Self::Local => "local",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Late => "late",
            Self::Closed => "closed",
        }
    }
}

/// The children of what is counted at the door, resolved once.
#[derive(Debug)]
pub struct LimitMetrics {
    hits: [IntCounter; Limit::ALL.len()],
    proxy_headers: [IntCounter; ProxyHeader::ALL.len()],
    /// Bytes that sessions hold, as far as they have told (see `session::budget`).
    pub held: Held,
}

/// Bytes that the sessions of each transport hold, and all together: a sum of what is read one after
/// the other may be what there never was.
#[derive(Debug)]
pub struct Held {
    all: AtomicI64,
    of: [IntGauge; Transport::ALL.len()],
}

impl Held {
    /// Sessions of that transport hold so many more, or fewer.
    pub fn add(&self, transport: Transport, bytes: i64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        self.of[transport as usize].add(bytes);
    }

    /// What all sessions hold.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.all.load(Ordering::Relaxed)
    }
}

impl LimitMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let hits = int_counter_vec(
            registry,
            "bosphorus_limit_hits_total",
            "Refusals, and sessions ended for their memory, by the limit that was reached, which is a key of [limits]",
            &["limit"],
        )?;
        let proxy_headers = int_counter_vec(
            registry,
            "bosphorus_proxy_headers_total",
            "Connections from listen.proxy_protocol by what they began with",
            &["outcome"],
        )?;
        let held = int_gauge_vec(
            registry,
            "bosphorus_sessions_held_bytes",
            "Bytes in the queues and buffers of sessions, which together limits.memory bounds",
            &["transport"],
        )?;
        Ok(Self {
            held: Held {
                all: AtomicI64::new(0),
                of: Transport::ALL.map(|of| held.with_label_values(&[of.label()])),
            },
            hits: Limit::ALL.map(|limit| hits.with_label_values(&[limit.key()])),
            proxy_headers: ProxyHeader::ALL
                .map(|outcome| proxy_headers.with_label_values(&[outcome.label()])),
        })
    }

    /// Counts one refusal, or one session ended.
    pub fn hit(&self, limit: Limit) {
        self.hits[limit as usize].inc();
    }

    /// Counts one connection that had to begin with a PROXY header.
    pub fn proxy_header(&self, outcome: ProxyHeader) {
        self.proxy_headers[outcome as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A label stands for what it says: the tables are in the order of their enums.
    #[test]
    fn labels_are_in_the_order_of_their_enums() {
        let metrics = Metrics::register().unwrap();
        for (times, limit) in Limit::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.limits.hit(limit));
        }
        for (times, outcome) in ProxyHeader::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.limits.proxy_header(outcome));
        }
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for (times, limit) in Limit::ALL.into_iter().enumerate() {
            let key = limit.key();
            let line = format!("\nbosphorus_limit_hits_total{{limit=\"{key}\"}} {times}\n");
            assert!(text.contains(&line), "{line}");
        }
        for (times, outcome) in ProxyHeader::ALL.into_iter().enumerate() {
            let label = outcome.label();
            let line = format!("\nbosphorus_proxy_headers_total{{outcome=\"{label}\"}} {times}\n");
            assert!(text.contains(&line), "{line}");
        }
    }
}

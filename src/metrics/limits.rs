//! What is counted when a limit is reached.

use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Transport, int_counter_vec, int_gauge_vec};
pub use crate::proto::limit::Limit;

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
            "Refusals, and ends of sessions and connections, by the limit that was reached: a key of [limits], or another with its table",
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

    /// Counts one refusal, or one session or connection ended.
    pub fn hit(&self, limit: Limit) {
        self.hits[limit as usize].inc();
    }

    /// Counts one connection that had to begin with a PROXY header.
    pub fn proxy_header(&self, outcome: ProxyHeader) {
        self.proxy_headers[outcome as usize].inc();
        if outcome == ProxyHeader::Late {
            self.hit(Limit::ProxyProtocolTimeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// Each is a key of the documented configuration.
    #[test]
    fn limits_are_keys_of_the_configuration() {
        let documented = include_str!("../../conf/bosphorus.toml");
        let mut seen = std::collections::HashSet::new();
        for limit in Limit::ALL {
            let key = limit.key();
            let (table, name) = key.split_once('.').unwrap_or(("limits", key));
            let (_, table) = documented.split_once(&format!("\n[{table}]\n")).unwrap();
            let table = table.split("\n[").next().unwrap();
            assert!(table.contains(&format!("\n{name} = ")), "{key}");
            assert!(seen.insert(key), "{key} is there twice");
        }
    }

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
            let late = limit == Limit::ProxyProtocolTimeout;
            let times = times + if late { ProxyHeader::Late as usize } else { 0 };
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

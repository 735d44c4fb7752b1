//! What becomes of WebSocket upgrades, by what an operator can do about it.

use prometheus::{IntCounter, Registry};

use super::int_counter_vec;
use crate::proto::fault::Fault;
use crate::proto::handshake::Refusal;

/// What became of an HTTP upgrade request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Upgrade {
    /// 101 was sent.
    Accepted,
    /// Nothing is served on its path.
    NotFound,
    /// Another method than `GET`.
    Method,
    /// Without the header `Upgrade`, which a reverse proxy has dropped.
    NoUpgrade,
    /// `Connection` does not name `Upgrade`: the same.
    NoConnection,
    /// It came as HTTP/1.0.
    Http10,
    /// It came over HTTP/2.
    Http2,
    /// Another version of WebSocket than 13.
    Version,
    /// `Sec-WebSocket-Key` is missing or none.
    Key,
    /// It has a body, or names several protocols to upgrade to.
    Malformed,
    /// The subprotocol `xmpp` is not offered, and `ws.require_subprotocol` is set.
    Subprotocol,
    /// The `Origin` is not allowed.
    Origin,
    /// There is no `Origin`, and `ws.require_origin` is set.
    NoOrigin,
    /// A limit was reached.
    Overload,
    /// The process is ending.
    Drain,
    /// 101 was sent, but the connection ended before a stream was opened.
    NeverOpened,
    /// The stream was for a domain that is not served, or not for pages of this origin.
    NotServed,
    /// The stream could not be had of the XMPP server.
    NoServer,
    /// The stream was opened, and ended before a login.
    NoLogin,
}

impl Upgrade {
    /// Every outcome.
    pub const ALL: [Self; 19] = [
        Self::Accepted,
        Self::NotFound,
        Self::Method,
        Self::NoUpgrade,
        Self::NoConnection,
        Self::Http10,
        Self::Http2,
        Self::Version,
        Self::Key,
        Self::Malformed,
        Self::Subprotocol,
        Self::Origin,
        Self::NoOrigin,
        Self::Overload,
        Self::Drain,
        Self::NeverOpened,
        Self::NotServed,
        Self::NoServer,
        Self::NoLogin,
    ];

    /// The value of the label `outcome`, and the word in the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NotFound => "not_found",
            Self::Method => "method",
            Self::NoUpgrade => "no_upgrade",
            Self::NoConnection => "no_connection",
            Self::Http10 => "http_1_0",
            Self::Http2 => "http_2",
            Self::Version => "version",
            Self::Key => "key",
            Self::Malformed => "malformed",
            Self::Subprotocol => "subprotocol",
            Self::Origin => "origin",
            Self::NoOrigin => "no_origin",
            Self::Overload => "overload",
            Self::Drain => "drain",
            Self::NeverOpened => "never_opened",
            Self::NotServed => "not_served",
            Self::NoServer => "no_server",
            Self::NoLogin => "no_login",
        }
    }

    /// What came of a WebSocket whose stream was opened and that ended for this reason before a
    /// login; nothing if that was for the gateway's sake.
    #[must_use]
    pub fn before_login(fault: Fault) -> Option<Self> {
        match fault {
            Fault::HostUnknown | Fault::ImproperAddressing | Fault::ForeignOrigin => {
                Some(Self::NotServed)
            }
            Fault::ServerUnreachable => Some(Self::NoServer),
            Fault::Drain | Fault::AdminKick | Fault::Memory | Fault::Bug => None,
            _ => Some(Self::NoLogin),
        }
    }
}

impl From<Refusal> for Upgrade {
    fn from(why: Refusal) -> Self {
        match why {
            Refusal::Method => Self::Method,
            Refusal::NoUpgrade => Self::NoUpgrade,
            Refusal::NoConnection => Self::NoConnection,
            Refusal::Http10 => Self::Http10,
            Refusal::Http2 => Self::Http2,
            Refusal::Version => Self::Version,
            Refusal::Key => Self::Key,
            Refusal::Origin => Self::Origin,
            Refusal::NoOrigin => Self::NoOrigin,
            Refusal::Subprotocol => Self::Subprotocol,
        }
    }
}

/// The children of what is counted of upgrades, resolved once.
#[derive(Debug)]
pub struct UpgradeMetrics {
    outcomes: [IntCounter; Upgrade::ALL.len()],
    fallbacks: [IntCounter; Upgrade::ALL.len()],
}

impl UpgradeMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let outcomes = int_counter_vec(
            registry,
            "bosphorus_upgrades_total",
            "WebSocket upgrade requests by outcome; never_opened, not_served, no_server and no_login \
             are counted beside accepted",
            &["outcome"],
        )?;
        let fallbacks = int_counter_vec(
            registry,
            "bosphorus_fallbacks_total",
            "Logins over BOSH from an address where within half a minute before a WebSocket had come to \
             nothing, by its outcome",
            &["outcome"],
        )?;
        Ok(Self {
            outcomes: Upgrade::ALL.map(|outcome| outcomes.with_label_values(&[outcome.label()])),
            fallbacks: Upgrade::ALL.map(|outcome| fallbacks.with_label_values(&[outcome.label()])),
        })
    }

    /// Counts one upgrade request.
    pub fn came_to(&self, outcome: Upgrade) {
        self.outcomes[outcome as usize].inc();
    }

    /// Counts one login over BOSH after an upgrade that had come to that.
    pub fn fell_back(&self, outcome: Upgrade) {
        self.fallbacks[outcome as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A label stands for what it says: the table is in the order of its enum.
    #[test]
    fn labels_are_in_the_order_of_their_enum() {
        let metrics = Metrics::register().unwrap();
        for (times, outcome) in Upgrade::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.upgrades.came_to(outcome));
            (0..=times).for_each(|_| metrics.upgrades.fell_back(outcome));
        }
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for (times, outcome) in Upgrade::ALL.into_iter().enumerate() {
            let label = outcome.label();
            for (family, times) in [("upgrades", times), ("fallbacks", times + 1)] {
                let line = format!("\nbosphorus_{family}_total{{outcome=\"{label}\"}} {times}\n");
                assert!(text.contains(&line), "{line}");
            }
        }
    }
}

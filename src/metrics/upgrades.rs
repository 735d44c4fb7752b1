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
    /// It was refused for what it says.
    Refused(Refusal),
    /// It has a body, or names several protocols to upgrade to.
    Malformed,
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
    /// All but the refusals, in the order of their slots.
    const OTHERS: [Self; 9] = [
        Self::Accepted,
        Self::NotFound,
        Self::Malformed,
        Self::Overload,
        Self::Drain,
        Self::NeverOpened,
        Self::NotServed,
        Self::NoServer,
        Self::NoLogin,
    ];
    const COUNT: usize = Self::OTHERS.len() + Refusal::ALL.len();

    /// Every outcome, in the order of their slots.
    fn all() -> [Self; Self::COUNT] {
        std::array::from_fn(|slot| match slot.checked_sub(Self::OTHERS.len()) {
            Some(at) => Self::Refused(Refusal::ALL[at]),
            None => Self::OTHERS[slot],
        })
    }

    /// Where it is in a table of all outcomes.
    fn slot(self) -> usize {
        match self {
            Self::Accepted => 0,
            Self::NotFound => 1,
            Self::Malformed => 2,
            Self::Overload => 3,
            Self::Drain => 4,
            Self::NeverOpened => 5,
            Self::NotServed => 6,
            Self::NoServer => 7,
            Self::NoLogin => 8,
            Self::Refused(why) => Self::OTHERS.len() + why as usize,
        }
    }

    /// The value of the label `outcome`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NotFound => "not_found",
            Self::Refused(why) => why.label(),
            Self::Malformed => "malformed",
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

/// The children of what is counted of upgrades, resolved once.
#[derive(Debug)]
pub struct UpgradeMetrics {
    outcomes: [IntCounter; Upgrade::COUNT],
    fallbacks: [IntCounter; Upgrade::COUNT],
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
            outcomes: Upgrade::all().map(|outcome| outcomes.with_label_values(&[outcome.label()])),
            fallbacks: Upgrade::all()
                .map(|outcome| fallbacks.with_label_values(&[outcome.label()])),
        })
    }

    /// Counts one upgrade request.
    pub fn came_to(&self, outcome: Upgrade) {
        self.outcomes[outcome.slot()].inc();
    }

    /// Counts one login over BOSH after an upgrade that had come to that.
    pub fn fell_back(&self, outcome: Upgrade) {
        self.fallbacks[outcome.slot()].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A label stands for what it says: the table is in the order of the slots.
    #[test]
    fn labels_are_in_the_order_of_their_slots() {
        let metrics = Metrics::register().unwrap();
        for (times, outcome) in Upgrade::all().into_iter().enumerate() {
            (0..times).for_each(|_| metrics.upgrades.came_to(outcome));
            (0..=times).for_each(|_| metrics.upgrades.fell_back(outcome));
        }
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for (times, outcome) in Upgrade::all().into_iter().enumerate() {
            let label = outcome.label();
            for (family, times) in [("upgrades", times), ("fallbacks", times + 1)] {
                let line = format!("\nbosphorus_{family}_total{{outcome=\"{label}\"}} {times}\n");
                assert!(text.contains(&line), "{line}");
            }
        }
    }
}

//! What is counted of BOSH alone, and not for each request: that is in [`super::Local`].

use prometheus::{IntCounter, Registry};

use super::int_counter_vec;
use crate::proto::bosh::session::Counts;
use crate::proto::bosh::{Condition, Why};

/// Why a request was refused that belongs to no session, or could not be brought to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// More than `limits.body_bytes`, compressed or not.
    TooBig,
    /// In a coding that is not read.
    Coded,
    /// The body took longer than `bosh.body_timeout` allows.
    Slow,
    /// The body ended early, or its coding is broken.
    Broken,
    /// Not one sound `<body/>`.
    Unreadable,
    /// No session of this sid.
    UnknownSid,
    /// The same, too often from one address.
    Stranger,
    /// Without TLS, for a session that was created over it (BOSH-89).
    Insecure,
    /// More requests from one address than `limits.requests_per_second`.
    Rate,
    /// The session has not taken the requests before it.
    Busy,
    /// A limit on sessions was reached.
    Overload,
    /// The process is shutting down.
    Drain,
    /// The creation was refused for what it says.
    Creation,
    /// The session ended without an answer, which is a bug.
    Dropped,
}

impl Refusal {
    const ALL: [Self; 14] = [
        Self::TooBig,
        Self::Coded,
        Self::Slow,
        Self::Broken,
        Self::Unreadable,
        Self::UnknownSid,
        Self::Stranger,
        Self::Insecure,
        Self::Rate,
        Self::Busy,
        Self::Overload,
        Self::Drain,
        Self::Creation,
        Self::Dropped,
    ];

    /// The value of the label `why`, and the word in the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooBig => "too_big",
            Self::Coded => "coded",
            Self::Slow => "slow",
            Self::Broken => "broken",
            Self::Unreadable => "unreadable",
            Self::UnknownSid => "unknown_sid",
            Self::Stranger => "stranger",
            Self::Insecure => "insecure",
            Self::Rate => "rate",
            Self::Busy => "busy",
            Self::Overload => "overload",
            Self::Drain => "drain",
            Self::Creation => "creation",
            Self::Dropped => "dropped",
        }
    }
}

/// In the order of [`Why`].
pub(super) const WHYS: [Why; 9] = [
    Why::Created,
    Why::Payload,
    Why::WaitElapsed,
    Why::HoldExceeded,
    Why::Pause,
    Why::Replay,
    Why::Report,
    Why::Recoverable,
    Why::Terminate,
];

/// In the order of [`Condition`], and last an end without one.
const CONDITIONS: [&str; 14] = [
    "bad-request",
    "host-gone",
    "host-unknown",
    "improper-addressing",
    "internal-server-error",
    "item-not-found",
    "other-request",
    "policy-violation",
    "remote-connection-failed",
    "remote-stream-error",
    "see-other-uri",
    "system-shutdown",
    "undefined-condition",
    "none",
];

/// The children of the families that only BOSH has, resolved once.
#[derive(Debug)]
pub struct BoshMetrics {
    terminations: [IntCounter; CONDITIONS.len()],
    repeats: IntCounter,
    overactive: IntCounter,
    bad_acks: IntCounter,
    restart_payloads: IntCounter,
    bounced: IntCounter,
    refused: [IntCounter; Refusal::ALL.len()],
}

impl BoshMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let terminations = int_counter_vec(
            registry,
            "bosphorus_bosh_terminations_total",
            "Sessions ended towards the client, by the condition it was told",
            &["condition"],
        )?;
        let refused = int_counter_vec(
            registry,
            "bosphorus_bosh_refused_total",
            "Requests refused before a session had them",
            &["why"],
        )?;
        Ok(Self {
            terminations: CONDITIONS.map(|condition| terminations.with_label_values(&[condition])),
            repeats: counter("bosphorus_bosh_repeats_total", "Requests whose rid had come before")?,
            overactive: counter(
                "bosphorus_bosh_overactive_total",
                "Requests that came sooner than a client may ask",
            )?,
            bad_acks: counter(
                "bosphorus_bosh_bad_acks_total",
                "Acknowledgements of what was never sent",
            )?,
            restart_payloads: counter(
                "bosphorus_bosh_restart_payloads_total",
                "Payloads of requests that restart the stream, which are not forwarded",
            )?,
            bounced: counter(
                "bosphorus_bosh_bounced_total",
                "Stanzas answered to the server in the place of a client that had gone",
            )?,
            refused: Refusal::ALL.map(|why| refused.with_label_values(&[why.label()])),
        })
    }

    /// Adds what a session has counted in one wake-up, save its requests.
    pub fn count(&self, counts: &Counts) {
        for (counter, count) in [
            (&self.repeats, counts.repeats),
            (&self.overactive, counts.overactive),
            (&self.bad_acks, counts.bad_acks),
            (&self.restart_payloads, counts.restart_payloads),
            (&self.bounced, counts.bounced),
        ] {
            if count > 0 {
                counter.inc_by(u64::from(count));
            }
        }
    }

    /// Counts the end of a session towards its client, by the condition it is told.
    pub fn terminated(&self, condition: Option<Condition>) {
        self.terminations[condition.map_or(CONDITIONS.len() - 1, |condition| condition as usize)]
            .inc();
    }

    /// Counts one refused request.
    pub fn refused(&self, why: Refusal) {
        self.refused[why as usize].inc();
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
        let (bosh, local) = (&metrics.bosh, metrics.local());
        bosh.terminated(Some(Condition::BadRequest));
        bosh.terminated(Some(Condition::ItemNotFound));
        bosh.terminated(Some(Condition::UndefinedCondition));
        bosh.terminated(None);
        for why in Refusal::ALL {
            bosh.refused(why);
        }
        bosh.count(&Counts { repeats: 2, bounced: 3, ..Counts::default() });
        let open = local.request_opened();
        assert_eq!(metrics.open_requests(), 1);
        let text = || String::from_utf8(metrics.render().unwrap()).unwrap();
        for (sample, value) in [
            ("terminations_total{condition=\"bad-request\"}", 1),
            ("terminations_total{condition=\"item-not-found\"}", 1),
            ("terminations_total{condition=\"undefined-condition\"}", 1),
            ("terminations_total{condition=\"none\"}", 1),
            ("refused_total{why=\"too_big\"}", 1),
            ("refused_total{why=\"dropped\"}", 1),
            ("repeats_total", 2),
            ("bounced_total", 3),
            ("requests_open", 1),
        ] {
            let line = format!("\nbosphorus_bosh_{sample} {value}\n");
            assert!(text().contains(&line), "{line}");
        }
        drop(open);
        assert!(text().contains("\nbosphorus_bosh_requests_open 0\n"));
    }
}

//! TLS towards clients.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use super::{int_counter_vec, int_gauge_vec};

/// How the TLS handshake of a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// TLS 1.2 is spoken.
    V1_2,
    /// TLS 1.3 is spoken.
    V1_3,
    /// One side refused the other, or the client went away.
    Failed,
    /// It took longer than `listen.handshake_timeout` (SEC-18).
    Timeout,
}

impl Handshake {
    const ALL: [Self; 4] = [Self::V1_2, Self::V1_3, Self::Failed, Self::Timeout];

    /// The values of the labels `outcome` and `version`.
    fn labels(self) -> [&'static str; 2] {
        match self {
            Self::V1_2 => ["ok", "1.2"],
            Self::V1_3 => ["ok", "1.3"],
            Self::Failed => ["failed", "none"],
            Self::Timeout => ["timeout", "none"],
        }
    }
}

/// The metrics of TLS towards clients.
#[derive(Debug)]
pub struct TlsMetrics {
    handshakes: [IntCounter; 4],
    expiry: IntGaugeVec,
    /// Changed certificates that were taken.
    pub reloaded: IntCounter,
    /// Changed certificates that are of no use, so that the old ones stay.
    pub reload_failed: IntCounter,
}

impl TlsMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let handshakes = int_counter_vec(
            registry,
            "bosphorus_tls_handshakes_total",
            "TLS handshakes of clients, by outcome and the version agreed on",
            &["outcome", "version"],
        )?;
        let reloads = int_counter_vec(
            registry,
            "bosphorus_tls_reloads_total",
            "Certificates that were read again because files changed or it was asked for",
            &["outcome"],
        )?;
        let expiry = int_gauge_vec(
            registry,
            "bosphorus_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, in seconds since 1970; the label is its place in \
             tls.certificates, from 0",
            &["certificate"],
        )?;
        Ok(Self {
            handshakes: Handshake::ALL
                .map(|outcome| handshakes.with_label_values(&outcome.labels())),
            expiry,
            reloaded: reloads.with_label_values(&["ok"]),
            reload_failed: reloads.with_label_values(&["failed"]),
        })
    }

    /// Counts one handshake.
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes[outcome as usize].inc();
    }

    /// The end of a certificate's validity, by its place in the configuration.
    #[must_use]
    pub fn expiry(&self, certificate: usize) -> IntGauge {
        self.expiry.with_label_values(&[&certificate.to_string()])
    }
}

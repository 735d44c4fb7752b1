//! Which of the configured servers are up.

use prometheus::{IntGauge, IntGaugeVec, Registry};

use super::int_gauge_vec;

/// One gauge for each server that the configuration names; those that DNS names have none, so that
/// the labels are the operator's own words (SEC-15).
#[derive(Debug)]
pub struct Servers(IntGaugeVec);

impl Servers {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self(int_gauge_vec(
            registry,
            "bosphorus_upstream_server_up",
            "1, or 0 while a configured server is left alone because it failed",
            &["server"],
        )?))
    }

    /// Forgets the servers of the configuration before.
    pub fn reset(&self) {
        self.0.reset();
    }

    /// The gauge of a server, by its address as configured.
    #[must_use]
    pub fn server(&self, address: &str) -> Up {
        Up(self.0.with_label_values(&[address]))
    }
}

/// Whether one server is up.
#[derive(Clone, Debug)]
pub struct Up(IntGauge);

impl Up {
    /// Shows it.
    pub fn set(&self, up: bool) {
        self.0.set(i64::from(up));
    }
}

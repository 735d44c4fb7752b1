//! The figures that pages show, as JSON: what `/metrics` has, gathered once for all who ask at about
//! the same time, and not at all while nobody does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::metrics::Metrics;
use crate::session::timer::clock;
use crate::session::worker::Sessions;

/// How long a snapshot is good for.
const FRESH: Duration = Duration::from_millis(100);

/// Where pages have their figures from.
#[derive(Debug)]
pub(super) struct Figures {
    metrics: Arc<Metrics>,
    sessions: Arc<Sessions>,
    wanted: fn(&str) -> bool,
    begun: Instant,
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Figures {
    /// Those of the families whose names are `wanted`; made when the process begins.
    #[must_use]
    pub(super) fn new(
        metrics: Arc<Metrics>,
        sessions: Arc<Sessions>,
        wanted: fn(&str) -> bool,
    ) -> Self {
        Self { metrics, sessions, wanted, begun: clock(), last: Mutex::default() }
    }

    /// The figures of now, or of a moment ago: `version`; `uptime` in seconds, of the moment when
    /// they were read; whether it is `draining`; and the `families` ([`Metrics::snapshot`]).
    #[must_use]
    pub(super) fn json(&self) -> Arc<str> {
        let now = clock();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*last
            && now.saturating_duration_since(*at) < FRESH
        {
            return Arc::clone(text);
        }
        let snapshot = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime": now.saturating_duration_since(self.begun).as_secs_f64(),
            "draining": self.sessions.is_draining(),
            "families": self.metrics.snapshot(self.wanted),
        });
        let text: Arc<str> = snapshot.to_string().into();
        *last = Some((now, Arc::clone(&text)));
        text
    }
}

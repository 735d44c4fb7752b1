//! What has one writer: counters, levels and histograms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::MEASURES;

/// A counter with one writer.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Only ever called on the thread that the counter belongs to.
    pub(super) fn add(&self, n: u64) {
        if MEASURES {
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, with one writer. It is kept in any case: the end of the process
/// waits for it.
#[derive(Default)]
pub(super) struct Level(AtomicU64);

impl Level {
    /// Both only ever called on the thread that it belongs to.
    pub(super) fn up(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn down(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the buckets, in microseconds: a factor of two to two and a half between
/// them, from what a core takes for a stanza to what a held request may.
pub(super) const BOUNDS: [u64; 19] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// The same for what happens once in a session, and may take minutes.
pub(super) const SLOW_BOUNDS: [u64; 16] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    900_000_000,
];

/// Durations with one writer.
pub(super) struct Histogram {
    bounds: &'static [u64],
    /// Here and not behind a pointer: they are on the cache lines of their [`super::Local`]. The one
    /// behind the bounds is for what is above all of them.
    pub(super) buckets: [Count; BOUNDS.len() + 1],
    pub(super) nanoseconds: Count,
}

const _: () = assert!(SLOW_BOUNDS.len() <= BOUNDS.len());

impl Default for Histogram {
    fn default() -> Self {
        Self::new(&BOUNDS)
    }
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, buckets: Default::default(), nanoseconds: Count::default() }
    }

    pub(super) fn observe(&self, time: Duration, times: u64) {
        if !MEASURES {
            return;
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let micros = nanoseconds.div_ceil(1000);
        let at = self.bounds.partition_point(|bound| *bound < micros);
        self.buckets[at].add(times);
        self.nanoseconds.add(nanoseconds.saturating_mul(times));
    }
}

//! The connections that a worker has, against `listen.max_connections`.

use std::cell::Cell;

use crate::metrics::{Limit, LimitMetrics};

thread_local! {
    /// Seats of this worker that are taken, by the connections of all its listeners.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// The place of one connection, until it is dropped. Actix keeps the limit by not accepting any more,
/// and tells nobody; here it is counted alike, so that an operator hears of it.
pub(super) struct Seat(());

impl Seat {
    /// Takes one of `all`; whoever takes the last has hit the limit, since others wait from then on.
    pub(super) fn take(all: usize, limits: &LimitMetrics) -> Self {
        let taken = TAKEN.get() + 1;
        TAKEN.set(taken);
        if taken == all {
            limits.hit(Limit::MaxConnections);
        }
        Self(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TAKEN.set(TAKEN.get() - 1);
    }
}

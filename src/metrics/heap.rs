//! Bytes asked of the allocator and not given back yet, as the program's allocator counts them.
//!
//! Each thread adds to a counter on cache lines of its own, as long as there are no more threads
//! than counters, and whoever scrapes sums them up. What one thread frees of another's makes its own
//! counter negative; only the sum means anything. It is exact when nothing is allocated meanwhile.

use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use super::MEASURES;

/// More than the threads of a usual process; beyond them two share one.
const SHARDS: usize = 64;

/// Two lines, since processors fetch them in pairs.
#[repr(align(128))]
struct Shard(AtomicIsize);

/// The one allocator of the process has one account.
static LIVE: Account = Account::new();

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Without a destructor, and known when the program is compiled: to use it allocates nothing.
    static OWN: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Account([Shard; SHARDS]);

impl Account {
    const fn new() -> Self {
        Self([const { Shard(AtomicIsize::new(0)) }; SHARDS])
    }

    fn add(&self, bytes: isize) {
        let own = OWN.get().unwrap_or_else(|| {
            let own = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
            OWN.set(Some(own));
            own
        });
        self.0[own].0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sum(&self) -> usize {
        let sum = self
            .0
            .iter()
            .fold(0, |sum: isize, shard| sum.wrapping_add(shard.0.load(Ordering::Relaxed)));
        // A block may be freed on a counter that is read before the one it was allocated on.
        usize::try_from(sum).unwrap_or_default()
    }
}

/// `bytes` more were handed out. Neither allocates nor panics.
#[inline]
pub fn allocated(bytes: usize) {
    // No allocation is larger than `isize::MAX`.
    if MEASURES {
        LIVE.add(bytes.cast_signed());
    }
}

/// `bytes` were given back. Neither allocates nor panics.
#[inline]
pub fn freed(bytes: usize) {
    if MEASURES {
        LIVE.add(bytes.cast_signed().wrapping_neg());
    }
}

/// Bytes that were handed out and not given back; 0 in a program whose allocator does not count.
#[must_use]
pub fn live() -> usize {
    LIVE.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// The sum is exact whichever thread frees what another has allocated, and with more threads
    /// than counters.
    #[test]
    fn the_sum_is_exact_across_threads() {
        let account = Arc::new(Account::new());
        let run = |sign: isize| {
            let threads: Vec<_> = (1..=3 * SHARDS.cast_signed())
                .map(|n| {
                    let account = Arc::clone(&account);
                    std::thread::spawn(move || (0..100).for_each(|_| account.add(sign * n)))
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        };
        run(1);
        assert_eq!(account.sum(), 100 * (3 * SHARDS) * (3 * SHARDS + 1) / 2);
        run(-1);
        assert_eq!(account.sum(), 0);
        account.add(-5);
        assert_eq!(account.sum(), 0, "never less than nothing");
    }

    #[test]
    fn counters_share_no_line() {
        assert_eq!(size_of::<Shard>(), 128);
    }
}

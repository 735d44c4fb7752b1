//! Gives back to the system what the allocator keeps for next time.

use std::cell::Cell;
use std::time::Duration;

/// How often. At rest it takes some ten microseconds.
const EVERY: Duration = Duration::from_secs(3);

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// From now on gives back what this thread has freed, as long as its runtime runs. A second call on a
/// thread does nothing.
///
/// Mimalloc tidies up while it allocates, never by the clock: what ten thousand connections needed
/// would stay with a gateway that has nothing to do after they have left.
pub(super) fn give_back() {
    if RUNS.replace(true) {
        return;
    }
    actix_rt::spawn(async {
        loop {
            tokio::time::sleep(EVERY).await;
            collect();
        }
    });
}

#[allow(unsafe_code, reason = "the mimalloc crate has no call for it")]
fn collect() {
    // SAFETY: mimalloc allows this call on any thread at any time. It frees nothing that is in use,
    // and where another allocator is the program's there is nothing to free.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

//! Gives back to the system what the allocator keeps for next time.

use std::cell::Cell;
use std::time::Duration;

/// How often. It takes some ten microseconds where nothing was freed, and ten milliseconds once where
/// a hundred megabytes were.
const EVERY: Duration = Duration::from_secs(5);

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
    // and where another allocator is the program's there is nothing to free. Forced: else what is free
    // in a segment that is still used would stay until something else happens there.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

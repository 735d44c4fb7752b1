//! Processor time by transport, estimated.
//!
//! To look at a thread's clock takes longer than many a poll's work, so only about one poll of
//! [`EVERY`] is timed, and counts for as many. Which one is drawn, so that what comes in a rhythm is
//! neither missed nor always met. Whatever is no poll of a connection or of a session is in no
//! transport's share: accepting, the event loop, timers, DNS, the admin listener.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The mean number of polls for one that is timed.
const EVERY: u32 = 64;

/// Draws the polls of one worker that are timed; written by its thread alone.
#[derive(Debug)]
pub(super) struct Draw {
    left: AtomicU32,
    state: AtomicU32,
}

impl Default for Draw {
    fn default() -> Self {
        Self { left: AtomicU32::new(EVERY / 2), state: AtomicU32::new(0x9E37_79B9) }
    }
}

impl Draw {
    /// A poll begins; `Some` if it is one that is timed.
    #[inline]
    pub(super) fn next(&self) -> Option<Stopwatch> {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            return None;
        }
        self.draw();
        Some(Stopwatch(thread_time()))
    }

    #[cold]
    fn draw(&self) {
        // Marsaglia's xorshift.
        let mut state = self.state.load(Ordering::Relaxed);
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        self.state.store(state, Ordering::Relaxed);
        // As many polls are passed over as EVERY - 1 on the average.
        self.left.store(state % (2 * EVERY - 1), Ordering::Relaxed);
    }
}

/// The beginning of a poll that is timed.
#[derive(Debug)]
pub(crate) struct Stopwatch(Duration);

impl Stopwatch {
    /// The poll is over: what it and those that it stands for took of the processor.
    pub(crate) fn stop(self) -> Duration {
        thread_time().saturating_sub(self.0) * EVERY
    }
}

/// What the calling thread has had of a processor.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One poll of so many is timed, at no fixed distance from the one before.
    #[test]
    fn polls_are_drawn() {
        let draw = Draw::default();
        let (mut at, mut gaps) = (0, Vec::new());
        for poll in 0..640_000 {
            if draw.next().is_some() {
                gaps.push(poll - at);
                at = poll;
            }
        }
        assert!((9_500..=10_500).contains(&gaps.len()), "{} of 10000", gaps.len());
        gaps.sort_unstable();
        gaps.dedup();
        assert!(gaps.len() > 100, "{gaps:?}");
    }

    /// The time is that of the thread: to sleep takes none.
    #[test]
    fn sleep_takes_no_processor() {
        let asleep = Stopwatch(thread_time());
        std::thread::sleep(Duration::from_millis(200));
        let mut awake = Stopwatch(thread_time());
        assert!(asleep.stop() / EVERY < Duration::from_millis(100));
        while awake.0 + Duration::from_millis(20) > thread_time() {
            std::hint::spin_loop();
        }
        awake.0 += Duration::from_millis(10);
        assert!(awake.stop() / EVERY >= Duration::from_millis(10));
    }
}

//! The one timer of a session, and the clock.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// Sees to it that the task is woken at `at`. `armed` is whether the timer knows whom to wake.
pub(crate) fn arm(
    sleep: &mut Pin<Box<Sleep>>,
    armed: &mut bool,
    at: Instant,
    cx: &mut Context<'_>,
) {
    // The timer is only moved when it would come too late: what a stanza puts off is found out
    // when it fires.
    if at < sleep.deadline().into_std() || sleep.is_elapsed() {
        sleep.as_mut().reset(at.into());
        *armed = false;
    }
    // A task keeps its waker, so that an armed timer need not be asked at every stanza.
    if !*armed {
        *armed = true;
        if ask(sleep.as_mut(), cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// Asks the timer, and tells it whom to wake. Outside the budget that tokio gives a task: where
/// reading has used that up, the answer would be "not yet", and nobody would be woken.
fn ask(sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(tokio::task::unconstrained(sleep)).poll(cx)
}

/// Where time enters a session.
#[expect(clippy::disallowed_methods, reason = "the shell is where the clock is read")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// WS-40: a poll that has used up its share of the thread still sets its timer.
    #[tokio::test]
    async fn a_timer_is_set_without_budget() {
        let begun = clock();
        let mut sleep = Box::pin(tokio::time::sleep(Duration::from_millis(20)));
        let mut first = true;
        let fired = std::future::poll_fn(|cx| {
            if std::mem::take(&mut first) {
                while std::pin::pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
                assert!(ask(sleep.as_mut(), cx).is_pending());
            }
            if sleep.is_elapsed() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = tokio::time::timeout(Duration::from_secs(2), fired).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "nobody was woken");
    }
}

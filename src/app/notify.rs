//! What the service manager is told (`sd_notify(3)`). Without a `NOTIFY_SOCKET` nothing of it
//! happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// Clients are served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The configuration is read again; [`reloaded`] is to follow. The time tells `Type=notify-reload`
/// which of its requests this is.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// It was read. Whether it was any good is told too: `systemctl reload` succeeds in any case, since
/// the gateway goes on.
pub(super) fn reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The process ends, which may take as long as this. The manager is asked for the time piece by
/// piece, so that it notices if we hang, and whatever `TimeoutStopSec=` of the unit is; each message
/// holds from when it comes.
pub(super) fn stopping(at_most: Duration) {
    // A second for what comes after the last session.
    let mut extensions = extensions(at_most + Duration::from_secs(1));
    let stopping = [NotifyState::Stopping, NotifyState::Status("draining")];
    tell(&stopping.into_iter().chain(extensions.next()).collect::<Vec<_>>());
    actix_rt::spawn(async move {
        for extension in extensions {
            tokio::time::sleep(PIECE / 2).await;
            tell(&[extension]);
        }
    });
}

/// The longest time that is asked for at once; half of it is left when more is asked for.
const PIECE: Duration = Duration::from_secs(60);

/// What asks for so much time, said one after the other with half a [`PIECE`] in between.
fn extensions(time: Duration) -> impl Iterator<Item = NotifyState<'static>> {
    let lefts = std::iter::successors(Some(time), |&left| (left > PIECE).then(|| left - PIECE / 2));
    lefts.map(|left| {
        let microseconds = left.min(PIECE).as_micros();
        NotifyState::ExtendTimeoutUsec(u32::try_from(microseconds).unwrap_or(u32::MAX))
    })
}

/// Shows twice in each `WatchdogSec=` of the unit, where it has one, that the thread which hears
/// signals is alive.
pub(super) fn watchdog() {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    actix_rt::spawn(async move {
        let mut tick = tokio::time::interval(timeout / 2);
        loop {
            tick.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each message holds until the next one with time to spare, the last one to the end, however
    /// long that is.
    #[test]
    fn extensions_reach_to_the_end() {
        for seconds in [0, 1, 33, 60, 61, 90, 91, 3600, 24 * 60 * 60 + 3] {
            let time = Duration::from_secs(seconds);
            let all: Vec<_> = extensions(time).collect();
            let reach = |at: usize| {
                let NotifyState::ExtendTimeoutUsec(microseconds) = all[at] else { panic!() };
                PIECE / 2 * u32::try_from(at).unwrap() + Duration::from_micros(microseconds.into())
            };
            for next in 1..all.len() {
                let said_at = PIECE / 2 * u32::try_from(next).unwrap();
                assert_eq!(reach(next - 1), said_at + PIECE / 2, "{time:?}");
            }
            assert_eq!(reach(all.len() - 1), time);
        }
    }
}

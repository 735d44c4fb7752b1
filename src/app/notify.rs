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

/// The process ends, which may take as long as this.
pub(super) fn stopping(at_most: Duration) {
    // A second for what comes after the last session.
    let microseconds = (at_most + Duration::from_secs(1)).as_micros();
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("draining"),
        NotifyState::ExtendTimeoutUsec(u32::try_from(microseconds).unwrap_or(u32::MAX)),
    ]);
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

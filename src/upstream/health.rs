//! Which servers have failed lately, so that not every session has to find that out anew.
//!
//! Passive: what is known comes from the sessions' own connections. A candidate that refused, hung
//! or closed before it said a word waits, longer each time, behind those that work; when its wait
//! is over one session tries it, while the others pass it over. Once it has spoken again it gets a
//! growing share of its sessions, lest all of them fall upon a server that has just started.
//! Nothing is ever excluded: where all are down, all are tried.
//!
//! Time and dice are arguments. The lock is held for one look-up, once or twice for a session.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::resolve::Place;
use crate::metrics::Up;

/// How long a server that failed is left alone, and how it is eased in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure; doubled by each one that follows.
    pub least: Duration,
    /// The longest.
    pub most: Duration,
    /// From its first word after a failure until it has its full share again; zero is at once.
    pub slow_start: Duration,
}

impl Default for Backoff {
    /// 1 s to 60 s; 30 s.
    fn default() -> Self {
        let [least, most, slow_start] = [1, 60, 30].map(Duration::from_secs);
        Self { least, most, slow_start }
    }
}

/// The memory of a process. Clones share it, so that it outlives a change of the configuration.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    /// Those that failed, until they have their full share again.
    records: HashMap<Place, Record>,
    gauges: Vec<(Place, Up)>,
}

struct Record {
    /// Since it last had its full share.
    failures: u32,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Left alone until then; `on_trial` while a session tries it after that.
    Down { until: Instant, on_trial: bool },
    /// Spoke again.
    Recovering { since: Instant },
}

/// Where a candidate belongs among the others of its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// In its own place.
    Well,
    /// Behind those, this time.
    Spared,
    /// Behind all.
    Down,
}

impl Health {
    /// Shows in `gauges` from now on whether each of these servers is up, and in no others.
    pub(super) fn show(&self, gauges: Vec<(Place, Up)>) {
        let mut memory = self.lock();
        for (place, gauge) in &gauges {
            let down =
                matches!(memory.records.get(place), Some(Record { phase: Phase::Down { .. }, .. }));
            gauge.set(!down);
        }
        memory.gauges = gauges;
    }

    /// Where a candidate belongs. `dice(n)` gives a number from 0 to n, both included.
    pub(super) fn standing(
        &self,
        place: &Place,
        backoff: &Backoff,
        now: Instant,
        dice: &mut dyn FnMut(u32) -> u32,
    ) -> Standing {
        let memory = self.lock();
        match memory.records.get(place).map(|record| record.phase) {
            None => Standing::Well,
            Some(Phase::Down { until, on_trial }) if on_trial || now < until => Standing::Down,
            Some(Phase::Down { .. }) => Standing::Well,
            Some(Phase::Recovering { since }) => {
                let share = share(now.duration_since(since), backoff.slow_start);
                if dice(WHOLE - 1) < share { Standing::Well } else { Standing::Spared }
            }
        }
    }

    /// Asks for the right to try a candidate; `None` while it is left alone or another session
    /// tries it.
    pub(super) fn claim(&self, place: &Place, now: Instant) -> Option<Ticket> {
        let mut memory = self.lock();
        let on_trial = match memory.records.get_mut(place).map(|record| &mut record.phase) {
            None | Some(Phase::Recovering { .. }) => false,
            Some(Phase::Down { until, on_trial }) if !*on_trial && *until <= now => {
                *on_trial = true;
                true
            }
            Some(Phase::Down { .. }) => return None,
        };
        drop(memory);
        Some(self.ticket(place, on_trial))
    }

    /// The right to try a candidate for want of a better one.
    pub(super) fn insist(&self, place: &Place) -> Ticket {
        self.ticket(place, false)
    }

    fn ticket(&self, place: &Place, on_trial: bool) -> Ticket {
        Ticket { health: self.clone(), place: place.clone(), on_trial }
    }

    /// A candidate failed without a word; `on_trial` if that was its trial.
    pub(super) fn failed(&self, place: &Place, on_trial: bool, backoff: &Backoff, now: Instant) {
        let mut memory = self.lock();
        let failures = match memory.records.get(place) {
            None => 1,
            Some(Record { failures, phase }) => match *phase {
                // Sessions that were under way when it failed have nothing new to say, however
                // many they are.
                Phase::Down { until, on_trial: other } if !on_trial && (other || now < until) => {
                    return;
                }
                _ => failures.saturating_add(1),
            },
        };
        if memory.records.len() >= MOST_RECORDS && failures == 1 {
            memory.forget_one();
        }
        let doublings = (failures - 1).min(31);
        let wait = backoff.least.saturating_mul(1 << doublings).min(backoff.most);
        let phase = Phase::Down { until: now + wait, on_trial: false };
        memory.records.insert(place.clone(), Record { failures, phase });
        memory.tell(place, false);
    }

    /// A candidate has said something.
    pub(super) fn spoke(&self, place: &Place, backoff: &Backoff, now: Instant) {
        let mut memory = self.lock();
        let Some(record) = memory.records.get_mut(place) else { return };
        let since = match record.phase {
            Phase::Down { .. } => now,
            Phase::Recovering { since } => since,
        };
        record.phase = Phase::Recovering { since };
        if now.duration_since(since) >= backoff.slow_start {
            memory.records.remove(place);
        }
        memory.tell(place, true);
    }

    fn release(&self, place: &Place) {
        if let Some(Record { phase: Phase::Down { on_trial, .. }, .. }) =
            self.lock().records.get_mut(place)
        {
            *on_trial = false;
        }
    }

    /// Nothing that can panic is done under the lock, so that what it guards is always whole.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn tell(&self, place: &Place, up: bool) {
        for (_, gauge) in self.gauges.iter().filter(|(known, _)| known == place) {
            gauge.set(up);
        }
    }

    /// Makes room: the one whose last news is oldest is the most likely to be gone from DNS.
    fn forget_one(&mut self) {
        let oldest = self.records.iter().min_by_key(|(_, record)| match record.phase {
            Phase::Down { until, .. } => until,
            Phase::Recovering { since } => since,
        });
        if let Some(place) = oldest.map(|(place, _)| place.clone()) {
            self.records.remove(&place);
            self.tell(&place, true);
        }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

/// The right to try a candidate. A session that goes before it knows gives it back.
pub(super) struct Ticket {
    health: Health,
    place: Place,
    on_trial: bool,
}

impl Ticket {
    pub(super) fn failed(mut self, backoff: &Backoff, now: Instant) {
        let on_trial = std::mem::take(&mut self.on_trial);
        self.health.failed(&self.place, on_trial, backoff, now);
    }

    pub(super) fn spoke(mut self, backoff: &Backoff, now: Instant) {
        self.on_trial = false;
        self.health.spoke(&self.place, backoff, now);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.on_trial {
            self.health.release(&self.place);
        }
    }
}

/// The share of its sessions that a server gets so long after its return, of [`WHOLE`].
fn share(since: Duration, slow_start: Duration) -> u32 {
    if since >= slow_start {
        return WHOLE;
    }
    let grown = u128::from(WHOLE) * since.as_nanos() / slow_start.as_nanos();
    u32::try_from(grown).unwrap_or(WHOLE).max(LEAST_SHARE)
}

const WHOLE: u32 = 1000;
/// A tenth: a server that came back for good is to be noticed.
const LEAST_SHARE: u32 = 100;
/// Servers remembered at a time. Only configured ones and those that DNS names for served domains
/// get here; the latter may change over the years.
const MOST_RECORDS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::resolve::Host;

    const BACKOFF: Backoff = Backoff {
        least: Duration::from_secs(1),
        most: Duration::from_secs(5),
        slow_start: Duration::from_secs(10),
    };

    fn place(port: u16) -> Place {
        Place::Host { host: Host::Ip([127, 0, 0, 1].into()), port }
    }

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn start() -> Instant {
        Instant::now()
    }

    fn standing(health: &Health, now: Instant, throw: u32) -> Standing {
        health.standing(&place(1), &BACKOFF, now, &mut |most| throw.min(most))
    }

    /// The wait doubles with each failed trial, up to its bound, and one session at a time tries.
    #[test]
    fn a_failed_server_waits_longer_each_time() {
        let (health, mut now) = (Health::default(), start());
        assert_eq!(standing(&health, now, 0), Standing::Well);
        health.claim(&place(1), now).unwrap().failed(&BACKOFF, now);
        for wait in [1.0, 2.0, 4.0, 5.0, 5.0] {
            assert_eq!(standing(&health, now + s(wait - 0.001), 0), Standing::Down, "{wait}");
            assert!(health.claim(&place(1), now + s(wait - 0.001)).is_none());
            now += s(wait);
            assert_eq!(standing(&health, now, 0), Standing::Well);
            let trial = health.claim(&place(1), now).unwrap();
            assert_eq!(standing(&health, now, 0), Standing::Down, "one at a time");
            assert!(health.claim(&place(1), now).is_none());
            trial.failed(&BACKOFF, now);
        }
        assert_eq!(standing(&health, now, 0), Standing::Down);
        assert!(health.claim(&place(2), now).is_some(), "another");
    }

    /// A thousand sessions that fail together are one failure.
    #[test]
    fn what_fails_together_counts_once() {
        let (health, now) = (Health::default(), start());
        let tickets: Vec<_> = (0..1000).map(|_| health.claim(&place(1), now).unwrap()).collect();
        for ticket in tickets {
            ticket.failed(&BACKOFF, now);
        }
        health.insist(&place(1)).failed(&BACKOFF, now + s(0.5));
        let trial = health.claim(&place(1), now + s(1.0)).unwrap();
        health.insist(&place(1)).failed(&BACKOFF, now + s(1.0));
        assert!(health.claim(&place(1), now + s(1.0)).is_none(), "the trial goes on");
        drop(trial);
    }

    /// The client of a trial may leave: the next session tries.
    #[test]
    fn an_abandoned_trial_is_given_back() {
        let (health, now) = (Health::default(), start());
        health.claim(&place(1), now).unwrap().failed(&BACKOFF, now);
        let later = now + s(1.0);
        drop(health.claim(&place(1), later).unwrap());
        let trial = health.claim(&place(1), later).unwrap();
        trial.failed(&BACKOFF, later);
        assert!(health.claim(&place(1), later + s(1.9)).is_none(), "it was the second failure");
    }

    /// From a tenth to all within `slow_start`; a failure meanwhile is one more of a row.
    #[test]
    fn a_server_that_is_back_starts_slowly() {
        let (health, now) = (Health::default(), start());
        health.claim(&place(1), now).unwrap().failed(&BACKOFF, now);
        health.claim(&place(1), now + s(1.0)).unwrap().spoke(&BACKOFF, now + s(1.0));
        let at = |after: f64, throw| standing(&health, now + s(1.0 + after), throw);
        assert_eq!((at(0.0, 99), at(0.0, 100)), (Standing::Well, Standing::Spared));
        assert_eq!((at(5.0, 499), at(5.0, 500)), (Standing::Well, Standing::Spared));
        assert_eq!((at(10.0, 999), at(9.9, 999)), (Standing::Well, Standing::Spared));
        health.claim(&place(1), now + s(3.0)).unwrap().failed(&BACKOFF, now + s(3.0));
        assert!(health.claim(&place(1), now + s(4.9)).is_none(), "two seconds");
        health.claim(&place(1), now + s(5.0)).unwrap().spoke(&BACKOFF, now + s(5.0));
        health.claim(&place(1), now + s(15.0)).unwrap().spoke(&BACKOFF, now + s(15.0));
        assert!(health.lock().records.is_empty(), "forgiven");
        let at_once = Backoff { slow_start: Duration::ZERO, ..BACKOFF };
        health.claim(&place(1), now).unwrap().failed(&at_once, now);
        health.insist(&place(1)).spoke(&at_once, now);
        assert!(health.lock().records.is_empty());
    }

    /// What DNS has named over the years takes no more memory than this.
    #[test]
    fn memory_is_bounded() {
        let (health, now) = (Health::default(), start());
        for port in 0..3000_u16 {
            health.failed(&place(port), false, &BACKOFF, now + s(f64::from(port)));
        }
        assert_eq!(health.lock().records.len(), MOST_RECORDS);
        assert!(health.claim(&place(2999), now + s(2999.0)).is_none(), "the newest is known");
        assert!(health.claim(&place(0), now).is_some(), "the oldest is not");
    }

    /// The gauge of a configured server follows it; a memory that outlives a reload shows in the
    /// new one at once.
    #[test]
    fn gauges_follow() {
        let (health, now) = (Health::default(), start());
        let metrics = Metrics::register().unwrap();
        let show = || health.show(vec![(place(1), metrics.servers.server("xmpp://a:1"))]);
        let shown = || {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            let sample = "bosphorus_upstream_server_up{server=\"xmpp://a:1\"} ";
            let value = text.lines().find_map(|line| line.strip_prefix(sample));
            value.map(str::to_owned)
        };
        show();
        assert_eq!(shown().as_deref(), Some("1"));
        health.claim(&place(1), now).unwrap().failed(&BACKOFF, now);
        health.claim(&place(2), now).unwrap().failed(&BACKOFF, now);
        assert_eq!(shown().as_deref(), Some("0"));
        metrics.servers.reset();
        assert_eq!(shown(), None);
        show();
        assert_eq!(shown().as_deref(), Some("0"));
        health.insist(&place(1)).spoke(&BACKOFF, now);
        assert_eq!(shown().as_deref(), Some("1"));
    }
}

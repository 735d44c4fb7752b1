//! How long elements took from one side's socket to the other's.

use std::time::{Duration, Instant};

use crate::metrics::MEASURES;

/// Elements for one side, of which its kernel has not taken the last byte yet. While it has not,
/// the other side is not read: so they are those of one read, or nearly.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    /// When the first of them was read.
    since: Option<Instant>,
    elements: u32,
}

/// The socket that elements were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It has taken all of them.
    All,
    /// Some still wait for it.
    Some,
    /// It takes nothing any more.
    Nothing,
}

impl Delivery {
    /// Nothing is on its way.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.elements == 0
    }

    /// After a write: `fresh` are elements that were written now for the first time, with the time
    /// at which they were read. Those that have arrived are shown to `observe`, by the time that
    /// `now` is asked for if there are any; the number of those that never will is returned.
    pub(crate) fn settle(
        &mut self,
        fresh: impl Iterator<Item = (Instant, u32)>,
        taken: Taken,
        mut now: impl FnMut() -> Instant,
        mut observe: impl FnMut(Duration, u32),
    ) -> u32 {
        if !MEASURES {
            return 0;
        }
        match taken {
            Taken::Nothing => {
                let before = std::mem::take(self).elements;
                return fresh.fold(before, |sum, (_, elements)| sum.saturating_add(elements));
            }
            Taken::Some => {
                for (read, elements) in fresh.filter(|(_, elements)| *elements > 0) {
                    self.since = Some(self.since.map_or(read, |since| since.min(read)));
                    self.elements = self.elements.saturating_add(elements);
                }
            }
            Taken::All => {
                let mut then = None;
                let mut arrived = |read, elements| {
                    let then = *then.get_or_insert_with(&mut now);
                    observe(then.saturating_duration_since(read), elements);
                };
                if let Some(since) = self.since.take() {
                    arrived(since, std::mem::take(&mut self.elements));
                }
                for (read, elements) in fresh {
                    if elements > 0 {
                        arrived(read, elements);
                    }
                }
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::timer::clock;
    use super::*;

    /// Elements arrive with the last byte, and never twice.
    #[test]
    fn elements_arrive_once() {
        let read = clock() - Duration::from_secs(5);
        let mut delivery = Delivery::default();
        let mut seen = Vec::new();
        let mut settle = |fresh: &[(Instant, u32)], taken| {
            let lost = delivery.settle(fresh.iter().copied(), taken, clock, |time, elements| {
                seen.push((time.as_secs(), elements));
            });
            if lost > 0 {
                seen.push((u64::MAX, lost));
            }
            std::mem::take(&mut seen)
        };
        assert_eq!(settle(&[(read, 0)], Taken::All), []);
        assert_eq!(settle(&[(read, 2), (clock(), 1)], Taken::All), [(5, 2), (0, 1)]);
        assert_eq!(settle(&[(clock(), 1)], Taken::Some), []);
        assert_eq!(settle(&[(read, 2)], Taken::Some), []);
        assert_eq!(settle(&[(clock(), 4)], Taken::All), [(5, 3), (0, 4)]);
        assert_eq!(settle(&[(read, 2)], Taken::Some), []);
        assert_eq!(settle(&[(read, 3)], Taken::Nothing), [(u64::MAX, 5)]);
        assert_eq!(settle(&[], Taken::All), []);
    }
}

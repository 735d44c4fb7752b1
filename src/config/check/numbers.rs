//! Durations, counts and sizes, each within its range.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Checker, DAY};
use crate::config::units::{Count, Size, Span, show};

impl Checker<'_> {
    /// Positive, at most a day: longer ones are slips, and sums with a clock stay far from its end.
    pub(super) fn duration(&mut self, path: &[&str], span: Span) -> Duration {
        self.within(path, span, Duration::from_millis(1)..=DAY)
    }

    pub(super) fn within(
        &mut self,
        path: &[&str],
        Span(span): Span,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        if !range.contains(&span) {
            let (least, most) = (show(*range.start()), show(*range.end()));
            self.expected(path, format!("{least} to {most}"), show(span));
        }
        span
    }

    fn number(
        &mut self,
        path: &[&str],
        number: u64,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> u64 {
        if !range.contains(&number) {
            let (least, most) = range.into_inner();
            self.expected(path, format!("{least} to {most}{unit}"), number);
        }
        number
    }

    pub(super) fn count(
        &mut self,
        path: &[&str],
        Count(n): Count,
        range: RangeInclusive<u64>,
    ) -> usize {
        usize::try_from(self.number(path, n, range, "")).unwrap_or(usize::MAX)
    }

    pub(super) fn count32(
        &mut self,
        path: &[&str],
        Count(n): Count,
        range: RangeInclusive<u64>,
    ) -> u32 {
        u32::try_from(self.number(path, n, range, "")).unwrap_or(u32::MAX)
    }

    pub(super) fn size(
        &mut self,
        path: &[&str],
        Size(n): Size,
        range: RangeInclusive<u64>,
    ) -> usize {
        usize::try_from(self.number(path, n, range, " bytes")).unwrap_or(usize::MAX)
    }

    pub(super) fn size32(
        &mut self,
        path: &[&str],
        Size(n): Size,
        range: RangeInclusive<u64>,
    ) -> u32 {
        u32::try_from(self.number(path, n, range, " bytes")).unwrap_or(u32::MAX)
    }
}

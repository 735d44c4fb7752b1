//! What the process takes of the machine, under the names that every program's have.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Gauge, MetricFamily};

/// The library's `process_*` families, and the time of the start where it cannot tell that: it adds
/// to the time of the machine's, which `ProcSubset=pid` of the unit for systemd hides.
#[derive(Debug)]
pub(super) struct Process {
    families: ProcessCollector,
    /// Seconds since 1970.
    started: u64,
}

impl Process {
    /// Those of this process, which has just begun.
    pub(super) fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { families: ProcessCollector::for_self(), started }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.families.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.families.collect();
        for family in &mut families {
            if family.name() == "process_start_time_seconds" {
                fill(family, self.started);
            }
        }
        families
    }
}

/// Sets a gauge that is zero.
fn fill(family: &mut MetricFamily, value: u64) {
    for sample in family.mut_metric() {
        if sample.get_gauge().get_value() == 0.0 {
            let mut gauge = Gauge::default();
            gauge.set_value(value as f64);
            sample.set_gauge(gauge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start that is known stays, one that is not is filled in.
    #[test]
    fn the_start_is_always_told() {
        let process = Process::new();
        let mut families = process.collect();
        let start = families
            .iter_mut()
            .find(|family| family.name() == "process_start_time_seconds")
            .unwrap();
        let told = start.get_metric()[0].get_gauge().get_value();
        assert!(told > 0.0);
        fill(start, 1);
        assert_eq!(start.get_metric()[0].get_gauge().get_value(), told);
        start.mut_metric()[0].set_gauge(Gauge::default());
        fill(start, 7);
        assert_eq!(start.get_metric()[0].get_gauge().get_value(), 7.0);
    }
}

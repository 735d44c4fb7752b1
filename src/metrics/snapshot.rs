//! The families as JSON, for pages: the very samples that `/metrics` shows, without the zeros.

use prometheus::proto::{Metric, MetricType};
use serde_json::{Map, Number, Value, json};

use super::Metrics;

impl Metrics {
    /// The families of the names that are `wanted`, each a list of samples: `labels` and a `value`,
    /// or `count`, `sum`, the `bounds` of the buckets in seconds and, for each of them, how many
    /// were at most that (`cumulative`).
    ///
    /// Counters and histograms of nothing are left out; gauges are not, since 0 may be news there.
    #[must_use]
    pub fn snapshot(&self, wanted: impl Fn(&str) -> bool) -> Value {
        let mut families = Map::new();
        for family in self.registry.gather() {
            if wanted(family.name()) {
                let kind = family.get_field_type();
                let samples = family.get_metric().iter().filter_map(|metric| sample(kind, metric));
                families.insert(family.name().to_owned(), samples.collect());
            }
        }
        Value::Object(families)
    }
}

fn sample(kind: MetricType, metric: &Metric) -> Option<Value> {
    let pairs = metric.get_label().iter();
    let labels: Map<_, _> =
        pairs.map(|pair| (pair.name().to_owned(), pair.value().into())).collect();
    match kind {
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            let buckets = histogram.get_bucket().iter();
            // The client library has it as any other bucket.
            let buckets = buckets.filter(|bucket| bucket.upper_bound().is_finite());
            let (bounds, cumulative): (Vec<_>, Vec<_>) =
                buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).unzip();
            let count = histogram.get_sample_count();
            let sum = histogram.get_sample_sum();
            (count > 0).then(|| {
                json!({
                    "labels": labels, "count": count, "sum": sum,
                    "bounds": bounds, "cumulative": cumulative,
                })
            })
        }
        MetricType::GAUGE => {
            Some(json!({ "labels": labels, "value": number(metric.get_gauge().get_value()) }))
        }
        _ => {
            let value = metric.get_counter().get_value();
            (value > 0.0).then(|| json!({ "labels": labels, "value": number(value) }))
        }
    }
}

/// Without a fraction where there is none.
fn number(value: f64) -> Option<Number> {
    let whole = value as i64;
    if whole as f64 == value { Some(whole.into()) } else { Number::from_f64(value) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Direction, Transport};

    #[test]
    fn samples_are_as_in_the_text() {
        let metrics = Metrics::register().unwrap();
        let local = metrics.local();
        let time = Duration::from_micros(250);
        local.delivered(Transport::Bosh, Direction::ToClient, time, 3);
        metrics.transport(Transport::Bosh).opened.inc();
        let wanted = ["bosphorus_delivery_seconds", "bosphorus_sessions_opened_total"];
        let snapshot = metrics.snapshot(|name| wanted.contains(&name));
        assert_eq!(snapshot.as_object().unwrap().len(), 2);
        assert_eq!(snapshot[wanted[1]], json!([{ "labels": { "transport": "bosh" }, "value": 1 }]));
        let [delivery] = &snapshot[wanted[0]].as_array().unwrap()[..] else { panic!("{snapshot}") };
        assert_eq!(delivery["labels"], json!({ "transport": "bosh", "direction": "to_client" }));
        assert_eq!(delivery["count"], 3);
        assert_eq!(delivery["bounds"][2], json!(0.00025));
        assert_eq!(delivery["cumulative"][1], 0);
        assert_eq!(delivery["cumulative"][2], 3);
        assert_eq!(
            delivery["bounds"].as_array().unwrap().len(),
            delivery["cumulative"].as_array().unwrap().len()
        );
    }

    /// A server that is down has the value 0.
    #[test]
    fn gauges_of_nothing_are_there() {
        let metrics = Metrics::register().unwrap();
        let snapshot = metrics.snapshot(|name| name == "bosphorus_sessions");
        assert_eq!(snapshot["bosphorus_sessions"].as_array().unwrap().len(), 3);
        assert_eq!(number(0.5), Number::from_f64(0.5));
        assert_eq!(number(f64::NAN), None);
    }
}

//! Families and samples as the library has them.

use prometheus::proto::{
    Bucket, Counter, Histogram as HistogramSample, LabelPair, Metric, MetricFamily, MetricType,
};

use super::cells::{Count, Histogram};
use super::families::Family;

pub(in crate::metrics) fn family(
    (name, help, _): Family,
    kind: MetricType,
    samples: Vec<Metric>,
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(samples);
    family
}

pub(super) fn sample(labels: &[(&str, &str)]) -> Metric {
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    let mut pairs: Vec<_> = labels.iter().map(pair).collect();
    // In the order that the other families have theirs in.
    pairs.sort_by(|one, other| one.name().cmp(other.name()));
    Metric::from_label(pairs)
}

pub(in crate::metrics) fn counter(labels: &[(&str, &str)], count: u64) -> Metric {
    real(labels, count as f64)
}

pub(super) fn seconds(labels: &[(&str, &str)], nanoseconds: u64) -> Metric {
    real(labels, nanoseconds as f64 / 1e9)
}

fn real(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut sample = sample(labels);
    let mut counter = Counter::default();
    counter.set_value(value);
    sample.set_counter(counter);
    sample
}

/// `sum` adds up what it is shown of each worker's histogram.
pub(super) fn histogram(
    labels: &[(&str, &str)],
    bounds: &[u64],
    sum: impl Fn(&dyn Fn(&Histogram) -> &Count) -> u64,
) -> Metric {
    let mut total = 0;
    let mut buckets = Vec::with_capacity(bounds.len());
    for (at, bound) in bounds.iter().enumerate() {
        total += sum(&|histogram| &histogram.buckets[at]);
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / 1e6);
        bucket.set_cumulative_count(total);
        buckets.push(bucket);
    }
    total += sum(&|histogram| &histogram.buckets[bounds.len()]);
    let mut whole = HistogramSample::default();
    whole.set_bucket(buckets);
    whole.set_sample_count(total);
    whole.set_sample_sum(sum(&|histogram| &histogram.nanoseconds) as f64 / 1e9);
    let mut sample = sample(labels);
    sample.set_histogram(whole);
    sample
}

//! Medians.

/// Where measured values lie.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn show(self, digits: usize) -> String {
        let Self { least, median, most } = self;
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

/// The spread of some values; of none, zeros.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else {
        return Spread { least: 0.0, median: 0.0, most: 0.0 };
    };
    let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
    Spread { least: *least, median, most: *most }
}

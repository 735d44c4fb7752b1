//! Who logs in over which transport: a count by transport, domain, origin and family of clients.
//!
//! Counted once in a session, when it has bound its resource, so that nobody is in it without a
//! login; and never by user. Of domain and origin there may be more than anybody wants to see, so
//! that [`ROWS`] combinations at most are shown, and what is in none of them is counted by transport
//! and family alone, with `other` for the rest.
//!
//! A combination that is not shown takes the place of the one that is seen least as soon as it was
//! seen more than twice as often lately, and more than [`FEW`] times, where lately halves with every
//! [`HALVING`] sessions: in a long tail nothing pushes anything out. Those
//! that wait are a Space-Saving list (Metwally, Agrawal, El Abbadi 2005), and of what that says of
//! them only what is certain counts. So whoever makes origins up, with a login for each time, fills
//! at most what nobody else uses, and what users come from is shown again once they do.
//!
//! A session is counted in exactly one series, one that is shown, and no count is ever taken from
//! one series to another. A series whose place was taken ends, and what nobody had scraped of it is
//! lost; if it comes back it begins anew, which is what Prometheus takes for the restart of a counter.
//! So no increase is more than there was.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::Transport;
use super::local::{Family, counter, family};
use crate::proto::agent::Agent;

/// Combinations that are shown; beside them there is one series for each transport and family.
pub(crate) const ROWS: usize = 200;
/// Combinations that wait for a place.
const WAITING: usize = 200;
/// Logins lately that are too few for a place which somebody else has.
const FEW: u32 = 8;
/// Sessions after which what was seen before counts half.
const HALVING: u32 = 4096;

const SESSIONS: Family = (
    "bosphorus_census_sessions_total",
    "Sessions that have bound a resource, by the domain as configured, the origin of the page and the \
     family of the User-Agent; other is what is not among the combinations seen most",
    &["transport", "domain", "origin", "client"],
);

/// The counts of the process.
#[derive(Clone)]
pub struct Census(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    description: Desc,
}

impl fmt::Debug for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Census")
    }
}

impl Census {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let (name, help, labels) = SESSIONS;
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        let description = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
        let census = Self(Arc::new(Inner { table: Mutex::default(), description }));
        registry.register(Box::new(census.clone()))?;
        Ok(census)
    }

    /// Counts a session that has just bound its resource. `domain` is the operator's word for it,
    /// and `origin` is bounded by whoever made it (`proto::page`).
    pub(crate) fn count(&self, transport: Transport, domain: &str, origin: &str, agent: Agent) {
        let row = Row { transport, agent, domain: domain.into(), origin: origin.into() };
        self.table().count(row);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Census {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut samples = Vec::new();
        let table = self.table();
        let mut add = |transport: Transport, domain: &str, origin: &str, agent: Agent, count| {
            let labels = [
                ("transport", transport.label()),
                ("domain", domain),
                ("origin", origin),
                ("client", agent.label()),
            ];
            samples.push(counter(&labels, count));
        };
        for (row, shown) in &table.shown {
            add(row.transport, &row.domain, &row.origin, row.agent, shown.count);
        }
        // Before that there is nothing in them, and after it no first count is missed.
        if table.is_full() {
            for transport in Transport::ALL {
                for agent in Agent::ALL {
                    let count = table.rest[transport as usize][agent as usize];
                    add(transport, "other", "other", agent, count);
                }
            }
        }
        drop(table);
        vec![family(SESSIONS, MetricType::COUNTER, samples)]
    }
}

/// A combination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    transport: Transport,
    agent: Agent,
    domain: Box<str>,
    origin: Box<str>,
}

struct Shown {
    /// Since it is shown.
    count: u64,
    /// Lately.
    weight: u32,
}

struct Waiting {
    /// Lately, and up to `error` too much.
    weight: u32,
    error: u32,
}

#[derive(Default)]
struct Table {
    shown: HashMap<Row, Shown>,
    waiting: HashMap<Row, Waiting>,
    rest: [[u64; Agent::ALL.len()]; 3],
    /// Since the last halving.
    counted: u32,
}

impl Table {
    fn is_full(&self) -> bool {
        self.shown.len() >= ROWS
    }

    fn count(&mut self, row: Row) {
        self.counted += 1;
        if self.counted >= HALVING {
            self.halve();
        }
        if let Some(shown) = self.shown.get_mut(&row) {
            shown.count += 1;
            shown.weight += 1;
        } else if !self.is_full() {
            self.shown.insert(row, Shown { count: 1, weight: 1 });
        } else if let Some(weight) = self.earns_a_place(&row) {
            self.shown.insert(row, Shown { count: 1, weight });
        } else {
            self.rest[row.transport as usize][row.agent as usize] += 1;
        }
    }

    /// Counts one that is not shown. If it is to be, there is room for it afterwards, and its weight
    /// is told.
    fn earns_a_place(&mut self, row: &Row) -> Option<u32> {
        let certain = self.wait(row);
        let least = self.shown.iter().min_by_key(|(_, shown)| shown.weight);
        let (least, weight) = least.map(|(row, shown)| (row.clone(), shown.weight))?;
        if certain <= FEW.max(2 * weight) {
            return None;
        }
        self.waiting.remove(row);
        self.shown.remove(&least);
        // It is as well known as it was, and may come back by being seen.
        self.waiting.insert(least, Waiting { weight, error: 0 });
        Some(certain)
    }

    /// Notes that a row was seen; how often that was lately, at least.
    fn wait(&mut self, row: &Row) -> u32 {
        if let Some(waiting) = self.waiting.get_mut(row) {
            waiting.weight += 1;
            return waiting.weight - waiting.error;
        }
        let mut error = 0;
        if self.waiting.len() >= WAITING {
            let least = self.waiting.iter().min_by_key(|(_, waiting)| waiting.weight);
            if let Some((least, weight)) = least.map(|(row, it)| (row.clone(), it.weight)) {
                self.waiting.remove(&least);
                error = weight;
            }
        }
        self.waiting.insert(row.clone(), Waiting { weight: error + 1, error });
        1
    }

    fn halve(&mut self) {
        self.counted = 0;
        self.shown.values_mut().for_each(|shown| shown.weight /= 2);
        self.waiting.retain(|_, waiting| {
            let certain = (waiting.weight - waiting.error) / 2;
            waiting.error /= 2;
            waiting.weight = waiting.error + certain;
            certain > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn row(origin: &str) -> Row {
        let (domain, origin) = ("example.test".into(), origin.into());
        Row { transport: Transport::Bosh, agent: Agent::Chrome, domain, origin }
    }

    fn seen(table: &mut Table, origin: &str, times: u32) {
        (0..times).for_each(|_| table.count(row(origin)));
    }

    fn total(table: &Table) -> u64 {
        let shown: u64 = table.shown.values().map(|shown| shown.count).sum();
        shown + table.rest.iter().flatten().sum::<u64>()
    }

    #[test]
    fn each_combination_is_a_series() {
        let metrics = Metrics::register().unwrap();
        let census = &metrics.census;
        census.count(Transport::Bosh, "*.a.test", "https://a.test", Agent::Firefox);
        census.count(Transport::Bosh, "*.a.test", "https://a.test", Agent::Firefox);
        census.count(Transport::Websocket, "b.test", "none", Agent::Node);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let lines: Vec<_> =
            text.lines().filter(|line| line.starts_with("bosphorus_census")).collect();
        assert_eq!(
            lines,
            [
                "bosphorus_census_sessions_total{client=\"firefox\",domain=\"*.a.test\",\
                 origin=\"https://a.test\",transport=\"bosh\"} 2",
                "bosphorus_census_sessions_total{client=\"node\",domain=\"b.test\",\
                 origin=\"none\",transport=\"websocket\"} 1",
            ]
        );
    }

    /// However many combinations there are, so many series there are at most, and each session is
    /// in one.
    #[test]
    fn series_are_bounded() {
        let census = Metrics::register().unwrap().census.clone();
        for n in 0..20_000 {
            let transport = Transport::ALL[n % 3];
            let agent = Agent::ALL[n % Agent::ALL.len()];
            census.count(transport, "a.test", &format!("https://{}.test", n % 5000), agent);
        }
        let families = census.collect();
        let most = ROWS + 3 * Agent::ALL.len();
        assert_eq!(families[0].get_metric().len(), most);
        let table = census.table();
        assert!(table.waiting.len() <= WAITING);
        // Whose place was taken has taken its count along.
        assert!(total(&table) <= 20_000);
    }

    /// Whoever makes origins up is not shown instead of what others use, and pushes it out for no
    /// longer than it is not used.
    #[test]
    fn what_is_used_is_shown() {
        let mut table = Table::default();
        seen(&mut table, "https://real.test", 100);
        for n in 0..3 * ROWS {
            seen(&mut table, &format!("https://made-up-{n}.test"), 2);
        }
        assert!(table.shown.contains_key(&row("https://real.test")));
        // There was no room for this one, and each that was made up has been seen twice.
        seen(&mut table, "https://late.test", FEW);
        assert!(table.is_full() && !table.shown.contains_key(&row("https://late.test")));
        seen(&mut table, "https://late.test", 1);
        assert_eq!(table.shown[&row("https://late.test")].count, 1);
        seen(&mut table, "https://late.test", 10);
        assert_eq!(table.shown[&row("https://late.test")].count, 11);
        assert_eq!(table.shown.len(), ROWS);
        assert_eq!(table.shown[&row("https://real.test")].count, 100);
    }

    /// A flood that is over is forgotten.
    #[test]
    fn what_was_used_gives_way() {
        let mut table = Table::default();
        for n in 0..ROWS {
            seen(&mut table, &format!("https://old-{n}.test"), 20);
        }
        seen(&mut table, "https://new.test", 10);
        assert!(!table.shown.contains_key(&row("https://new.test")));
        seen(&mut table, "https://old-0.test", 5 * HALVING);
        seen(&mut table, "https://new.test", FEW);
        assert!(!table.shown.contains_key(&row("https://new.test")), "a few are none");
        seen(&mut table, "https://new.test", 1);
        assert_eq!(table.shown[&row("https://new.test")].count, 1);
    }

    /// An increase is never more than the sessions that there were.
    #[test]
    fn nothing_is_counted_twice() {
        let mut table = Table::default();
        let mut before = 0;
        for n in 0..10_000_u32 {
            let shown: HashMap<_, _> =
                table.shown.iter().map(|(row, it)| (row.clone(), it.count)).collect();
            table.count(row(&format!("https://{}.test", n.wrapping_mul(n) % 701)));
            let increase: u64 = table
                .shown
                .iter()
                .map(|(row, it)| it.count - shown.get(row).copied().unwrap_or_default())
                .sum();
            let rest = table.rest.iter().flatten().sum::<u64>();
            assert_eq!(increase + rest - before, 1);
            before = rest;
        }
    }
}

//! The sums over all workers, when somebody asks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, MetricFamily, MetricType};

use super::Local;
use super::cells::{BOUNDS, Count, SLOW_BOUNDS};
use super::families::{
    BOSH_OPEN, BOSH_REQUESTS, BOSH_RESPONSES, BOUND, CONNECTIONS, CPU, DELIVERY, ELEMENTS,
    FAMILIES, FIRST, Family, HANDSHAKES, PAYLOAD, REQUESTS, RETRANSMITS, RETURNS, RTT, SILENCE,
    UNDELIVERED, WAITS, WIRE,
};
use super::labels::{Carried, Direction, NONE};
use super::sample::{counter, family, histogram, sample, seconds};
use crate::metrics::bosh::WHYS;
use crate::metrics::{KINDS, Transport};

/// The counters of all workers, and what they are called.
#[derive(Clone)]
pub(in crate::metrics) struct Locals(Arc<Inner>);

struct Inner {
    all: Mutex<Vec<Arc<Local>>>,
    descriptions: Vec<Desc>,
}

impl fmt::Debug for Locals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locals")
    }
}

impl Locals {
    pub(in crate::metrics) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let describe = |(name, help, labels): Family| {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
        };
        let descriptions = FAMILIES.into_iter().map(describe).collect::<Result<_, _>>()?;
        let locals = Self(Arc::new(Inner { all: Mutex::default(), descriptions }));
        registry.register(Box::new(locals.clone()))?;
        Ok(locals)
    }

    /// Those of one more worker. They count for as long as the process lives.
    pub(in crate::metrics) fn another(&self) -> Arc<Local> {
        let local = Arc::new(Local::default());
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&local));
        local
    }
}

impl Locals {
    /// HTTP requests of BOSH that are open now.
    pub(in crate::metrics) fn open_requests(&self) -> u64 {
        let all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|local| local.open.get()).fold(0, u64::wrapping_add)
    }
}

impl Collector for Locals {
    fn desc(&self) -> Vec<&Desc> {
        self.0.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let open = self.open_requests();
        let all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |count: &dyn Fn(&Local) -> &Count| -> u64 {
            all.iter().map(|local| count(local).get()).fold(0, u64::wrapping_add)
        };
        let mut elements = Vec::new();
        let mut payload = Vec::new();
        let mut delivery = Vec::new();
        let mut undelivered = Vec::new();
        let mut returns = Vec::new();
        let mut silence = Vec::new();
        let mut bound = Vec::new();
        let mut first = Vec::new();
        for transport in Transport::ALL {
            let (label, t) = ([("transport", transport.label())], transport as usize);
            returns.push(counter(&label, sum(&|local| &local.returns[t])));
            undelivered.push(counter(&label, sum(&|local| &local.undelivered[t])));
            silence.push(histogram(&label, &SLOW_BOUNDS, |count| {
                sum(&|local| count(&local.silence[t]))
            }));
            bound.push(histogram(&label, &SLOW_BOUNDS, |count| {
                sum(&|local| count(&local.bound[t]))
            }));
            first.push(histogram(&label, &SLOW_BOUNDS, |count| {
                sum(&|local| count(&local.first[t]))
            }));
            for direction in Direction::ALL {
                let labels = [("transport", transport.label()), ("direction", direction.label())];
                let (t, d) = (transport as usize, direction as usize);
                for (kind, name) in KINDS.into_iter().enumerate() {
                    let labels = [labels[0], labels[1], ("kind", name)];
                    elements.push(counter(&labels, sum(&|local| &local.elements[t][d][kind])));
                }
                payload.push(counter(&labels, sum(&|local| &local.payload[t][d])));
                delivery.push(histogram(&labels, &BOUNDS, |count| {
                    sum(&|local| count(&local.delivery[t][d]))
                }));
            }
        }
        let mut wire = Vec::new();
        let mut connections = Vec::new();
        let mut handshakes = Vec::new();
        let mut rtt = Vec::new();
        let mut retransmits = Vec::new();
        let mut requests = Vec::new();
        for carried in Carried::ALL {
            let [transport, http] = carried.labels();
            for direction in Direction::ALL {
                let labels = [transport, http, ("direction", direction.label())];
                let count = sum(&|local| &local.wire[carried as usize][direction as usize]);
                wire.push(counter(&labels, count));
            }
            let count = sum(&|local| &local.connections[carried as usize]);
            connections.push(counter(&[transport, http], count));
            for (at, resumed) in ["no", "yes"].into_iter().enumerate() {
                let labels = [transport, http, ("resumed", resumed)];
                let count = sum(&|local| &local.handshakes[carried as usize][at]);
                handshakes.push(counter(&labels, count));
            }
            if !matches!(carried, Carried::Nothing | Carried::NothingOverH2) {
                let count = sum(&|local| &local.requests[carried as usize]);
                requests.push(counter(&[transport, http], count));
                rtt.push(histogram(&[transport, http], &BOUNDS, |count| {
                    sum(&|local| count(&local.rtt[carried as usize]))
                }));
                let count = sum(&|local| &local.retransmits[carried as usize]);
                retransmits.push(counter(&[transport, http], count));
            }
        }
        let of = Transport::ALL.map(Transport::label).into_iter().chain([NONE]);
        let cpu = of.enumerate().map(|(slot, label)| {
            let nanoseconds = sum(&|local| &local.cpu[slot]);
            seconds(&[("transport", label)], nanoseconds)
        });
        let cpu = cpu.collect();
        let waits = vec![histogram(&[], &BOUNDS, |count| sum(&|local| count(&local.waits)))];
        let taken = vec![counter(&[], sum(&|local| &local.taken))];
        let responses = WHYS.map(|why| {
            counter(&[("why", why.label())], sum(&|local| &local.responses[why as usize]))
        });
        let mut open_now = Gauge::default();
        open_now.set_value(open as f64);
        let mut open = sample(&[]);
        open.set_gauge(open_now);
        let counters = MetricType::COUNTER;
        vec![
            family(ELEMENTS, counters, elements),
            family(PAYLOAD, counters, payload),
            family(WIRE, counters, wire),
            family(CONNECTIONS, counters, connections),
            family(HANDSHAKES, counters, handshakes),
            family(RTT, MetricType::HISTOGRAM, rtt),
            family(RETRANSMITS, counters, retransmits),
            family(REQUESTS, counters, requests),
            family(DELIVERY, MetricType::HISTOGRAM, delivery),
            family(WAITS, MetricType::HISTOGRAM, waits),
            family(UNDELIVERED, counters, undelivered),
            family(RETURNS, counters, returns),
            family(SILENCE, MetricType::HISTOGRAM, silence),
            family(BOUND, MetricType::HISTOGRAM, bound),
            family(BOSH_REQUESTS, counters, taken),
            family(BOSH_RESPONSES, counters, responses.into()),
            family(BOSH_OPEN, MetricType::GAUGE, vec![open]),
            family(CPU, counters, cpu),
            family(FIRST, MetricType::HISTOGRAM, first),
        ]
    }
}

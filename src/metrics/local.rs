//! What is counted for each stanza: by each worker for itself, and added up when somebody asks.
//!
//! A counter that all threads share costs each of them a cache line on its way to another core,
//! for every stanza. So a [`Local`] has one writer, the worker that it belongs to, and its counters
//! are written without a bus lock; a scrape reads them as they are at that moment.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramSample, LabelPair, Metric, MetricFamily,
    MetricType,
};

use super::bosh::WHYS;
use super::cpu::{Draw, Stopwatch};
use super::{KINDS, MEASURES, Transport};
use crate::proto::bosh::Why;
use crate::proto::stream::Flow;

/// From whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Direction {
    const ALL: [Self; 2] = [Self::ToServer, Self::ToClient];

    fn label(self) -> &'static str {
        match self {
            Self::ToServer => "to_server",
            Self::ToClient => "to_client",
        }
    }
}

/// What a client's connection carries, and over which HTTP it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Carried {
    /// Nothing that is known: probes, pages, refused requests; over HTTP/1.1.
    #[default]
    Nothing,
    /// The same over HTTP/2.
    NothingOverH2,
    /// A WebSocket with the framing of RFC 7395.
    Websocket,
    /// One with the older framing.
    WebsocketLegacy,
    /// Requests of BOSH sessions over HTTP/1.1.
    Bosh,
    /// The same over HTTP/2.
    BoshOverH2,
}

impl Carried {
    const ALL: [Self; 6] = [
        Self::Nothing,
        Self::NothingOverH2,
        Self::Websocket,
        Self::WebsocketLegacy,
        Self::Bosh,
        Self::BoshOverH2,
    ];

    /// What it is of; `None` for nothing that is known.
    pub(crate) fn transport(self) -> Option<Transport> {
        match self {
            Self::Nothing | Self::NothingOverH2 => None,
            Self::Websocket => Some(Transport::Websocket),
            Self::WebsocketLegacy => Some(Transport::WebsocketLegacy),
            Self::Bosh | Self::BoshOverH2 => Some(Transport::Bosh),
        }
    }

    /// The labels `transport` and `http`.
    fn labels(self) -> [(&'static str, &'static str); 2] {
        let http = match self {
            Self::NothingOverH2 | Self::BoshOverH2 => "2",
            _ => "1.1",
        };
        [("transport", self.transport().map_or(NONE, Transport::label)), ("http", http)]
    }
}

/// The value of the label `transport` of what is of none.
const NONE: &str = "none";

/// A counter with one writer.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    /// Only ever called on the thread that the counter belongs to.
    fn add(&self, n: u64) {
        if MEASURES {
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, with one writer. It is kept in any case: the end of the process
/// waits for it.
#[derive(Default)]
struct Level(AtomicU64);

impl Level {
    /// Both only ever called on the thread that it belongs to.
    fn up(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    fn down(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }
}

/// An open HTTP request. Not to be sent to another thread.
#[derive(Debug)]
pub struct OpenGuard(Arc<Local>, PhantomData<*const ()>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.down();
    }
}

/// The upper bounds of the buckets, in microseconds: a factor of two to two and a half between
/// them, from what a core takes for a stanza to what a held request may.
const BOUNDS: [u64; 19] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// The same for what happens once in a session, and may take minutes.
const SLOW_BOUNDS: [u64; 16] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    900_000_000,
];

/// Durations with one writer.
struct Histogram {
    bounds: &'static [u64],
    /// Here and not behind a pointer: they are on the cache lines of their [`Local`]. The one behind
    /// the bounds is for what is above all of them.
    buckets: [Count; BOUNDS.len() + 1],
    nanoseconds: Count,
}

const _: () = assert!(SLOW_BOUNDS.len() <= BOUNDS.len());

impl Default for Histogram {
    fn default() -> Self {
        Self::new(&BOUNDS)
    }
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, buckets: Default::default(), nanoseconds: Count::default() }
    }

    fn observe(&self, time: Duration, times: u64) {
        if !MEASURES {
            return;
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let micros = nanoseconds.div_ceil(1000);
        let at = self.bounds.partition_point(|bound| *bound < micros);
        self.buckets[at].add(times);
        self.nanoseconds.add(nanoseconds.saturating_mul(times));
    }
}

/// The counters of one worker.
#[repr(align(128))]
pub struct Local {
    elements: [[[Count; 4]; 2]; 3],
    payload: [[Count; 2]; 3],
    wire: [[Count; 2]; 6],
    connections: [Count; 6],
    requests: [Count; 6],
    /// Full, and resumed.
    handshakes: [[Count; 2]; 6],
    rtt: [Histogram; 6],
    retransmits: [Count; 6],
    delivery: [[Histogram; 2]; 3],
    waits: Histogram,
    undelivered: [Count; 3],
    returns: [Count; 3],
    silence: [Histogram; 3],
    bound: [Histogram; 3],
    taken: Count,
    responses: [Count; WHYS.len()],
    open: Level,
    draw: Draw,
    /// Nanoseconds of the processor; the last is of no transport.
    cpu: [Count; 4],
    first: [Histogram; 3],
}

impl Default for Local {
    fn default() -> Self {
        Self {
            elements: Default::default(),
            payload: Default::default(),
            wire: Default::default(),
            connections: Default::default(),
            requests: Default::default(),
            handshakes: Default::default(),
            rtt: Default::default(),
            retransmits: Default::default(),
            delivery: Default::default(),
            waits: Histogram::default(),
            undelivered: Default::default(),
            returns: Default::default(),
            silence: [(); 3].map(|()| Histogram::new(&SLOW_BOUNDS)),
            bound: [(); 3].map(|()| Histogram::new(&SLOW_BOUNDS)),
            taken: Count::default(),
            responses: Default::default(),
            open: Level::default(),
            draw: Draw::default(),
            cpu: Default::default(),
            first: [(); 3].map(|()| Histogram::new(&SLOW_BOUNDS)),
        }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Local")
    }
}

/// All methods are for the worker's own thread.
impl Local {
    /// Elements and their bytes that passed.
    pub(crate) fn passed(&self, transport: Transport, direction: Direction, flow: &Flow) {
        if !MEASURES || flow.bytes == 0 {
            return;
        }
        let (transport, direction) = (transport as usize, direction as usize);
        for (count, passed) in self.elements[transport][direction].iter().zip(flow.elements) {
            if passed > 0 {
                count.add(u64::from(passed));
            }
        }
        self.payload[transport][direction].add(flow.bytes);
    }

    /// `times` elements took so long from the last byte read to the last byte handed to the kernel.
    pub(crate) fn delivered(
        &self,
        transport: Transport,
        direction: Direction,
        time: Duration,
        times: u32,
    ) {
        let histogram = &self.delivery[transport as usize][direction as usize];
        histogram.observe(time, u64::from(times));
    }

    /// A payload waited so long for a BOSH request to answer.
    pub(crate) fn waited(&self, time: Duration) {
        self.waits.observe(time, 1);
    }

    /// Elements for a client that were given up at its end.
    pub(crate) fn undelivered(&self, transport: Transport, elements: u32) {
        if elements > 0 {
            self.undelivered[transport as usize].add(u64::from(elements));
        }
    }

    /// A user is back within a minute after a session of his was dropped.
    pub(crate) fn returned(&self, transport: Transport) {
        self.returns[transport as usize].add(1);
    }

    /// A resource was bound so long after the client had begun.
    pub(crate) fn bound(&self, transport: Transport, time: Duration) {
        self.bound[transport as usize].observe(time, 1);
    }

    /// The first stanza since a resource was bound was handed to the kernel so long after the client
    /// had begun.
    pub(crate) fn first(&self, transport: Transport, time: Duration) {
        self.first[transport as usize].observe(time, 1);
    }

    /// A client was noticed to be lost so long after the last sign of it.
    pub(crate) fn lost(&self, transport: Transport, silence: Duration) {
        self.silence[transport as usize].observe(silence, 1);
    }

    /// A BOSH session took so many requests in the order of their rid.
    pub(crate) fn taken_in_order(&self, requests: u32) {
        if requests > 0 {
            self.taken.add(u64::from(requests));
        }
    }

    /// A BOSH session has answered a request.
    pub(crate) fn responded(&self, why: Why) {
        self.responses[why as usize].add(1);
    }

    /// An HTTP request of BOSH is open, for as long as the guard lives.
    #[must_use]
    pub(crate) fn request_opened(self: &Arc<Self>) -> OpenGuard {
        self.open.up();
        OpenGuard(Arc::clone(self), PhantomData)
    }

    /// Bytes of client connections: read, and written.
    pub(crate) fn wire(&self, carried: Carried, read: u64, written: u64) {
        self.wire[carried as usize][Direction::ToServer as usize].add(read);
        self.wire[carried as usize][Direction::ToClient as usize].add(written);
    }

    /// A connection of which it has just become known what it carries, or that ends without.
    pub(crate) fn connection(&self, carried: Carried) {
        self.connections[carried as usize].add(1);
    }

    /// A poll of a connection or of a session begins; if it is one of those that are timed, what
    /// the stopwatch says at its end is for [`Local::spent`].
    #[inline]
    pub(crate) fn poll_begins(&self) -> Option<Stopwatch> {
        if MEASURES { self.draw.next() } else { None }
    }

    /// So much of the processor was spent on that.
    pub(crate) fn spent(&self, on: Option<Transport>, time: Duration) {
        let slot = on.map_or(self.cpu.len() - 1, |transport| transport as usize);
        self.cpu[slot].add(u64::try_from(time.as_nanos()).unwrap_or_default());
    }

    /// The TLS handshake of a connection of which it has just become known what it carries, or that
    /// ends without.
    pub(crate) fn handshake(&self, carried: Carried, resumed: bool) {
        self.handshakes[carried as usize][usize::from(resumed)].add(1);
    }

    /// The kernel takes this to be the round-trip time of a connection.
    pub(crate) fn rtt(&self, carried: Carried, rtt: Duration) {
        self.rtt[carried as usize].observe(rtt, 1);
    }

    /// Segments of a connection that the kernel has sent more than once.
    pub(crate) fn retransmits(&self, carried: Carried, segments: u32) {
        if segments > 0 {
            self.retransmits[carried as usize].add(u64::from(segments));
        }
    }

    /// A request that was for a session.
    pub(crate) fn request(&self, carried: Carried) {
        self.requests[carried as usize].add(1);
    }
}

/// The counters of all workers, and what they are called.
#[derive(Clone)]
pub(super) struct Locals(Arc<Inner>);

struct Inner {
    all: Mutex<Vec<Arc<Local>>>,
    descriptions: Vec<Desc>,
}

impl fmt::Debug for Locals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locals")
    }
}

/// Name, help, names of the labels.
pub(super) type Family = (&'static str, &'static str, &'static [&'static str]);

const ELEMENTS: Family = (
    "bosphorus_stanzas_total",
    "Top-level elements passed; kind nonza is all that is no stanza",
    &["transport", "direction", "kind"],
);
const PAYLOAD: Family = (
    "bosphorus_payload_bytes_total",
    "Bytes of the elements passed, without frame heads, TLS and TCP",
    &["transport", "direction"],
);
const WIRE: Family = (
    "bosphorus_wire_bytes_total",
    "Bytes of client connections as the kernel took and gave them: TLS, HTTP heads and frame heads \
     included, TCP and IP heads not; transport none is what carried no session",
    &["transport", "http", "direction"],
);
const CONNECTIONS: Family = (
    "bosphorus_client_connections_total",
    "Connections of clients, counted when it is known what they carry, or at their end; one that a \
     proxy uses for both transports is one of each",
    &["transport", "http"],
);
const HANDSHAKES: Family = (
    "bosphorus_client_tls_handshakes_total",
    "TLS handshakes of clients that came to their end, counted when it is known what the connection \
     carries, or at its end; one that resumes an earlier session costs no signature",
    &["transport", "http", "resumed"],
);
const RTT: Family = (
    "bosphorus_client_rtt_seconds",
    "Smoothed round-trip time of TCP as the kernel has it (Linux), of connections that carry sessions: \
     read at their end, and at most once a minute while something passes; behind a proxy that to \
     the proxy",
    &["transport", "http"],
);
const RETRANSMITS: Family = (
    "bosphorus_client_retransmits_total",
    "TCP segments that the kernel has sent to clients more than once (Linux), of connections that \
     carried sessions, counted at their end",
    &["transport", "http"],
);
const REQUESTS: Family = (
    "bosphorus_http_requests_total",
    "HTTP requests that sessions got: POSTs of BOSH, upgrades after which a stream was opened",
    &["transport", "http"],
);
const DELIVERY: Family = (
    "bosphorus_delivery_seconds",
    "Time of an element from the last byte read on one side to the last byte handed to the kernel \
     on the other; over BOSH the wait for a request is part of it. What never arrived, or only in a \
     repeated response, is not in it",
    &["transport", "direction"],
);
const WAITS: Family = (
    "bosphorus_bosh_wait_seconds",
    "Time that an element of the server waited for a BOSH request that it could answer",
    &[],
);

const UNDELIVERED: Family = (
    "bosphorus_undelivered_total",
    "Elements for clients that were given up at the end of their session",
    &["transport"],
);
const SILENCE: Family = (
    "bosphorus_client_silence_seconds",
    "Time from the last byte of a client that was lost until that was noticed",
    &["transport"],
);

const RETURNS: Family = (
    "bosphorus_reconnects_total",
    "Logins of users of whom a session had been dropped within the minute before",
    &["transport"],
);
const BOUND: Family = (
    "bosphorus_session_bound_seconds",
    "Time from the connection of a client, or from its request for a session on one that was there \
     already, until it could send stanzas",
    &["transport"],
);

const BOSH_REQUESTS: Family =
    ("bosphorus_bosh_requests_total", "Requests that sessions took in the order of their rid", &[]);
const BOSH_RESPONSES: Family = (
    "bosphorus_bosh_responses_total",
    "Responses of sessions, by why they were sent then",
    &["why"],
);
const BOSH_OPEN: Family = (
    "bosphorus_bosh_requests_open",
    "HTTP requests open now: being read, or held for an answer",
    &[],
);

const CPU: Family = (
    "bosphorus_cpu_seconds_total",
    "Processor time of the connections and sessions, estimated from one of 64 of their polls; \
     transport none is what carried no session. What is in none of them is the process's own: its \
     event loops, accepting, DNS, scrapes",
    &["transport"],
);

const FIRST: Family = (
    "bosphorus_first_stanza_seconds",
    "Time from the beginning of bosphorus_session_bound_seconds until the first stanza of the server \
     behind the binding was handed to the kernel for the client",
    &["transport"],
);

const FAMILIES: [Family; 19] = [
    ELEMENTS,
    PAYLOAD,
    WIRE,
    CONNECTIONS,
    HANDSHAKES,
    RTT,
    RETRANSMITS,
    REQUESTS,
    DELIVERY,
    WAITS,
    UNDELIVERED,
    RETURNS,
    SILENCE,
    BOUND,
    BOSH_REQUESTS,
    BOSH_RESPONSES,
    BOSH_OPEN,
    CPU,
    FIRST,
];

impl Locals {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
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
    pub(super) fn another(&self) -> Arc<Local> {
        let local = Arc::new(Local::default());
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&local));
        local
    }
}

impl Locals {
    /// HTTP requests of BOSH that are open now.
    pub(super) fn open_requests(&self) -> u64 {
        let all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|local| local.open.0.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
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

pub(super) fn family(
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

fn sample(labels: &[(&str, &str)]) -> Metric {
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

pub(super) fn counter(labels: &[(&str, &str)], count: u64) -> Metric {
    real(labels, count as f64)
}

fn seconds(labels: &[(&str, &str)], nanoseconds: u64) -> Metric {
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
fn histogram(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        let encoder = prometheus::TextEncoder::new();
        encoder.encode_to_string(&registry.gather()).unwrap()
    }

    /// A scrape shows the sum of all workers.
    #[test]
    fn workers_are_added_up() {
        let registry = Registry::new();
        let locals = Locals::register(&registry).unwrap();
        let workers = [locals.another(), locals.another()];
        for worker in &workers {
            let flow = Flow { elements: [2, 0, 0, 1], bytes: 100 };
            worker.passed(Transport::Bosh, Direction::ToServer, &flow);
            worker.wire(Carried::BoshOverH2, 10, 20);
            let time = Duration::from_micros(250);
            worker.delivered(Transport::Websocket, Direction::ToClient, time, 3);
            worker.waited(Duration::from_secs(61));
            worker.spent(Some(Transport::Bosh), time);
            worker.spent(None, time);
            worker.responded(Why::Created);
            for _ in 0..3 {
                worker.responded(Why::Terminate);
            }
        }
        let text = text(&registry);
        for line in [
            "bosphorus_stanzas_total{direction=\"to_server\",kind=\"message\",transport=\"bosh\"} 4",
            "bosphorus_stanzas_total{direction=\"to_server\",kind=\"nonza\",transport=\"bosh\"} 2",
            "bosphorus_stanzas_total{direction=\"to_client\",kind=\"iq\",transport=\"websocket\"} 0",
            "bosphorus_payload_bytes_total{direction=\"to_server\",transport=\"bosh\"} 200",
            "bosphorus_wire_bytes_total{direction=\"to_client\",http=\"2\",transport=\"bosh\"} 40",
            "bosphorus_delivery_seconds_bucket{direction=\"to_client\",transport=\"websocket\",le=\"0.00025\"} 6",
            "bosphorus_delivery_seconds_bucket{direction=\"to_client\",transport=\"websocket\",le=\"0.0001\"} 0",
            "bosphorus_delivery_seconds_sum{direction=\"to_client\",transport=\"websocket\"} 0.0015",
            "bosphorus_bosh_wait_seconds_bucket{le=\"60\"} 0",
            "bosphorus_bosh_wait_seconds_bucket{le=\"+Inf\"} 2",
            "bosphorus_bosh_wait_seconds_count 2",
            "bosphorus_cpu_seconds_total{transport=\"bosh\"} 0.0005",
            "bosphorus_cpu_seconds_total{transport=\"none\"} 0.0005",
            "bosphorus_cpu_seconds_total{transport=\"websocket\"} 0",
            "bosphorus_bosh_responses_total{why=\"created\"} 2",
            "bosphorus_bosh_responses_total{why=\"payload\"} 0",
            "bosphorus_bosh_responses_total{why=\"terminate\"} 6",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }
}

//! What is counted for each stanza: by each worker for itself, and added up when somebody asks.
//!
//! A counter that all threads share costs each of them a cache line on its way to another core,
//! for every stanza. So a [`Local`] has one writer, the worker that it belongs to, and its counters
//! are written without a bus lock; a scrape reads them as they are at that moment.

mod cells;
mod collect;
mod families;
mod labels;
mod sample;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use self::cells::{Count, Histogram, Level, SLOW_BOUNDS};
pub(super) use self::collect::Locals;
pub(super) use self::families::Family;
pub use self::labels::{Carried, Direction};
pub(super) use self::sample::{counter, family};
use super::bosh::WHYS;
use super::cpu::{Draw, Stopwatch};
use super::{MEASURES, Transport};
use crate::proto::bosh::Why;
use crate::proto::stream::Flow;

/// An open HTTP request. Not to be sent to another thread.
#[derive(Debug)]
pub struct OpenGuard(Arc<Local>, PhantomData<*const ()>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.down();
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

#[cfg(test)]
mod tests {
    use prometheus::Registry;

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

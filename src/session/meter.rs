//! What one client connection costs on the wire.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::io::Traffic;
use crate::metrics::{Carried, Direction, Local, MEASURES, Transport};

/// How often the round-trip time of a connection is read that lasts.
const RTT_INTERVAL: Duration = Duration::from_secs(60);

/// Bodies of answers that are kept until they are with the kernel.
pub(crate) const LARGE: usize = 4 * 1024;

/// What an answer on its way carries.
#[derive(Clone, Debug)]
pub enum UnderWay {
    /// An element, and when it was read from the server.
    Element(Instant),
    /// The first stanza of a session beside it, and when its client began.
    First(Instant),
    /// All of it, if it is large: its session has it on its account for as long.
    Body(Box<Bytes>),
}

/// The bytes of one connection, brought to the counters of its worker under what it carries. What
/// passes before that is known (the handshake of TLS, the first request) waits for it.
#[derive(Debug)]
pub struct Meter {
    local: Arc<Local>,
    traffic: Arc<Traffic>,
    accepted: Instant,
    over_h2: Cell<bool>,
    /// Whether its TLS handshake resumed an earlier one, until that is counted.
    resumed: Cell<Option<bool>>,
    carried: Cell<Carried>,
    /// Bytes that were counted already: read, and written.
    counted: Cell<(u64, u64)>,
    /// Nanoseconds of the processor that were spent before it was known what for.
    spent: Cell<u64>,
    /// What the answers on their way carry.
    under_way: RefCell<Vec<UnderWay>>,
    /// The intervals that had passed when the round-trip time was asked for last.
    intervals: Cell<u16>,
}

impl Meter {
    /// A connection that was accepted at `now` by the worker with these counters.
    #[must_use]
    pub fn new(local: Arc<Local>, now: Instant) -> Self {
        Self {
            local,
            traffic: Arc::default(),
            accepted: now,
            over_h2: Cell::default(),
            resumed: Cell::default(),
            carried: Cell::default(),
            counted: Cell::default(),
            spent: Cell::default(),
            under_way: RefCell::default(),
            intervals: Cell::default(),
        }
    }

    /// What the socket counts into.
    #[must_use]
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// When the client began that has sent a request by `now`: with the connection, unless this has
    /// carried something before.
    #[must_use]
    pub fn begun(&self, now: Instant) -> Instant {
        if self.carried.get() == Carried::Nothing { self.accepted } else { now }
    }

    /// Its TLS handshake has ended, if it has any, and resumed an earlier one or not.
    pub fn over_tls(&self, resumed: Option<bool>) {
        self.resumed.set(resumed);
    }

    /// It speaks HTTP/2.
    pub fn over_h2(&self) {
        self.over_h2.set(true);
    }

    /// A request has come that a BOSH session has got.
    pub fn bosh(&self) {
        self.carries(if self.over_h2.get() { Carried::BoshOverH2 } else { Carried::Bosh });
    }

    /// It has been upgraded: what has not been counted yet is the request for that, whatever the
    /// connection has carried before, as those of reverse proxies do.
    pub fn upgraded(&self) {
        self.carried.set(Carried::Nothing);
    }

    /// It is a WebSocket, of that framing.
    pub fn websocket(&self, transport: Transport) {
        self.carries(match transport {
            Transport::WebsocketLegacy => Carried::WebsocketLegacy,
            _ => Carried::Websocket,
        });
    }

    fn carries(&self, carried: Carried) {
        self.local.request(carried);
        if self.carried.get() == Carried::Nothing {
            self.carried.set(carried);
            self.began(carried);
            self.count();
            self.spent(Duration::ZERO);
        }
    }

    fn began(&self, carried: Carried) {
        self.local.connection(carried);
        if let Some(resumed) = self.resumed.take() {
            self.local.handshake(carried, resumed);
        }
    }

    /// An answer is on its way at `now`, with elements that were read from the server at these
    /// times. If the first stanza of a session is among them (`first`), the first time is that at
    /// which its client began.
    pub fn send(&self, read: Vec<Instant>, first: bool, now: Instant) {
        if !MEASURES {
            return;
        }
        let mut read = read.into_iter();
        let mut under_way = self.under_way.borrow_mut();
        if first && let Some(begun) = read.next() {
            under_way.push(UnderWay::First(begun));
        }
        for read in read {
            self.local.waited(now.saturating_duration_since(read));
            under_way.push(UnderWay::Element(read));
        }
    }

    /// An answer with this body is on its way.
    pub fn send_body(&self, body: &Bytes) {
        if body.len() >= LARGE {
            self.under_way.borrow_mut().push(UnderWay::Body(Box::new(body.clone())));
        }
    }

    /// How much is under way.
    pub fn under_way(&self) -> usize {
        self.under_way.borrow().len()
    }

    /// What came after the first so many waits for what writes it, whatever is flushed meanwhile.
    #[must_use]
    pub fn set_aside(&self, first: usize) -> Vec<UnderWay> {
        let mut under_way = self.under_way.borrow_mut();
        if first >= under_way.len() {
            return Vec::new();
        }
        if first == 0 { std::mem::take(&mut under_way) } else { under_way.split_off(first) }
    }

    /// It has been written but for a flush.
    pub fn handed_over(&self, mut answer: Vec<UnderWay>) {
        self.under_way.borrow_mut().append(&mut answer);
    }

    /// All that was to be written is with the kernel, at the time that is asked for.
    pub fn flushed(&self, now: impl FnOnce() -> Instant) {
        let mut under_way = self.under_way.borrow_mut();
        if !MEASURES {
            under_way.clear();
            return;
        }
        if !under_way.is_empty() {
            let now = now();
            for what in under_way.drain(..) {
                match what {
                    UnderWay::First(begun) => {
                        self.local.first(Transport::Bosh, now.saturating_duration_since(begun));
                    }
                    UnderWay::Element(read) => {
                        let time = now.saturating_duration_since(read);
                        self.local.delivered(Transport::Bosh, Direction::ToClient, time, 1);
                    }
                    UnderWay::Body(body) => drop(body),
                }
            }
            under_way.shrink_to(4);
        }
        self.count();
    }

    /// The counters of its worker.
    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    /// So much of the processor was spent on it.
    pub(crate) fn spent(&self, time: Duration) {
        let before = self.spent.take();
        match self.carried.get().transport() {
            None => {
                let time = u64::try_from(time.as_nanos()).unwrap_or_default();
                self.spent.set(before.saturating_add(time));
            }
            on => self.local.spent(on, Duration::from_nanos(before) + time),
        }
    }

    /// Counts what has passed since the last time, if it is known what it was.
    pub fn count(&self) {
        let carried = self.carried.get();
        if MEASURES && carried != Carried::Nothing {
            self.count_as(carried);
            if let Some(rtt) = self.traffic.take_rtt() {
                self.local.rtt(carried, rtt);
            }
        }
    }

    fn count_as(&self, carried: Carried) {
        let (read, written) = (self.traffic.read(), self.traffic.written());
        let (read_before, written_before) = self.counted.replace((read, written));
        let (read, written) = (read - read_before, written - written_before);
        if read + written > 0 {
            self.local.wire(carried, read, written);
        }
    }

    /// Something happens on the connection at `now`: from time to time the way of what is written
    /// next is looked at. It is not worth a timer.
    pub fn passing(&self, now: Instant) {
        let age = now.saturating_duration_since(self.accepted).as_secs();
        // After 45 days from the start again.
        let intervals = (age / RTT_INTERVAL.as_secs()) as u16;
        if self.intervals.replace(intervals) != intervals {
            self.traffic.want_rtt();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // The socket has ended before this.
        match self.carried.get() {
            Carried::Nothing => {
                let over_h2 = self.over_h2.get();
                let nothing = if over_h2 { Carried::NothingOverH2 } else { Carried::Nothing };
                self.began(nothing);
                self.local.spent(None, Duration::from_nanos(self.spent.get()));
                self.count_as(nothing);
            }
            carried => {
                self.count();
                self.local.retransmits(carried, self.traffic.retransmits());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::session::timer::clock;

    /// What is written later than something else of the same answer has arrived no sooner.
    #[test]
    fn elements_arrive_with_their_answer() {
        let metrics = Metrics::register().unwrap();
        let meter = Meter::new(metrics.local(), clock());
        let arrived = || {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            let sample =
                "bosphorus_delivery_seconds_count{direction=\"to_client\",transport=\"bosh\"} ";
            text.lines().find_map(|line| line.strip_prefix(sample)).unwrap().to_owned()
        };
        meter.send(vec![clock()], false, clock());
        let before = meter.under_way();
        assert!(meter.set_aside(before).is_empty());
        meter.send(vec![clock(); 2], false, clock());
        let answer = meter.set_aside(before);
        meter.flushed(clock);
        assert_eq!((answer.len(), arrived()), (2, "1".to_owned()));
        meter.handed_over(answer);
        assert_eq!(arrived(), "1");
        meter.flushed(clock);
        assert_eq!(arrived(), "3");
    }

    /// SEC-17: a large answer is on its session's account until it is with the kernel.
    #[test]
    fn large_bodies_are_kept_until_they_are_flushed() {
        let metrics = Metrics::register().unwrap();
        let meter = Meter::new(metrics.local(), clock());
        meter.send_body(&Bytes::from_static(b"<body/>"));
        assert_eq!(meter.under_way(), 0);
        let large = Bytes::from(vec![b'x'; LARGE]);
        meter.send_body(&large);
        let aside = meter.set_aside(0);
        meter.flushed(clock);
        assert!(!large.is_unique());
        meter.handed_over(aside);
        meter.flushed(clock);
        assert!(large.is_unique());
    }

    /// Processor time is of what the connection turns out to carry.
    #[test]
    fn time_is_of_what_the_connection_carries() {
        let metrics = Metrics::register().unwrap();
        let local = metrics.local();
        let has = |line: &str| {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            text.lines().any(|it| it == format!("bosphorus_cpu_seconds_total{line}"))
        };
        let second = Duration::from_secs(1);
        let meter = Meter::new(Arc::clone(&local), clock());
        meter.spent(second);
        assert!(has("{transport=\"none\"} 0"));
        meter.bosh();
        assert!(has("{transport=\"bosh\"} 1"));
        meter.spent(second);
        assert!(has("{transport=\"bosh\"} 2"));
        meter.upgraded();
        meter.spent(second);
        meter.websocket(Transport::Websocket);
        meter.spent(second);
        assert!(has("{transport=\"websocket\"} 2") && has("{transport=\"bosh\"} 2"));
        let meter = Meter::new(local, clock());
        meter.spent(second);
        drop(meter);
        assert!(has("{transport=\"none\"} 1"));
    }

    /// A handshake is counted once, whatever a proxy uses the connection for later.
    #[test]
    fn handshakes_are_of_what_the_connection_carries() {
        let metrics = Metrics::register().unwrap();
        let local = metrics.local();
        let connection = |resumed| {
            let meter = Meter::new(Arc::clone(&local), clock());
            meter.over_tls(resumed);
            meter
        };
        let used_again = connection(Some(true));
        used_again.bosh();
        used_again.bosh();
        used_again.upgraded();
        used_again.websocket(Transport::Websocket);
        connection(Some(false)).websocket(Transport::WebsocketLegacy);
        connection(None).bosh();
        connection(Some(false)).over_h2();
        drop(used_again);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let family = "bosphorus_client_tls_handshakes_total{";
        let counted: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(family)?.strip_suffix("} 1"))
            .collect();
        assert_eq!(
            counted,
            [
                "http=\"1.1\",resumed=\"no\",transport=\"websocket_legacy\"",
                "http=\"1.1\",resumed=\"yes\",transport=\"bosh\"",
                "http=\"2\",resumed=\"no\",transport=\"none\"",
            ]
        );
    }

    /// The way is looked at once a minute if something is written, and at the end.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_way_is_looked_at_now_and_then() {
        use tokio::io::AsyncWriteExt as _;
        use tokio::net::{TcpListener, TcpStream};

        use crate::io::Io;

        let metrics = Metrics::register().unwrap();
        let count = || {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            let sample = "bosphorus_client_rtt_seconds_count{http=\"1.1\",transport=\"bosh\"} ";
            text.lines().find_map(|line| line.strip_prefix(sample)?.parse::<u32>().ok()).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let now = clock();
        let meter = Meter::new(metrics.local(), now);
        let mut io = Io::from(socket).counted(Arc::clone(meter.traffic()));
        for (seconds, looks) in [(0, 0), (59, 0), (60, 1), (61, 1), (119, 1), (500, 2)] {
            meter.bosh();
            meter.passing(now + Duration::from_secs(seconds));
            meter.count();
            io.write_all(b"x").await.unwrap();
            meter.count();
            assert_eq!(count(), looks, "{seconds}");
        }
        drop(io);
        drop(meter);
        assert_eq!(count(), 3);
    }

    /// What came before it was known what for is counted as that; what never is, as nothing.
    #[test]
    fn bytes_are_of_what_the_connection_carries() {
        let metrics = Metrics::register().unwrap();
        let local = metrics.local();
        let value = |sample: &str| {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(sample)).map(str::trim);
            line.and_then(|value| value.parse::<u64>().ok()).unwrap_or_else(|| panic!("{sample}"))
        };
        let wire = |transport: &str, http: &str, direction: &str| {
            value(&format!(
                "bosphorus_wire_bytes_total{{direction=\"{direction}\",http=\"{http}\",\
                 transport=\"{transport}\"}}"
            ))
        };
        let meter = Meter::new(Arc::clone(&local), clock());
        meter.traffic().add(100, 50);
        meter.count();
        assert_eq!(wire("bosh", "1.1", "to_server"), 0);
        meter.bosh();
        assert_eq!(wire("bosh", "1.1", "to_server"), 100);
        meter.bosh();
        meter.traffic().add(1, 2);
        meter.flushed(clock);
        assert_eq!((wire("bosh", "1.1", "to_server"), wire("bosh", "1.1", "to_client")), (101, 52));
        meter.traffic().add(1, 1);
        drop(meter);
        assert_eq!((wire("bosh", "1.1", "to_server"), wire("bosh", "1.1", "to_client")), (102, 53));
        let requests = "bosphorus_http_requests_total{http=\"1.1\",transport=\"bosh\"}";
        assert_eq!(value(requests), 2);

        // A proxy's connection, used again for an upgrade.
        let meter = Meter::new(Arc::clone(&local), clock());
        meter.traffic().add(5, 5);
        meter.bosh();
        meter.traffic().add(10, 20);
        meter.upgraded();
        meter.count();
        meter.websocket(Transport::Websocket);
        meter.traffic().add(1, 1);
        drop(meter);
        let websocket = |direction| wire("websocket", "1.1", direction);
        assert_eq!((websocket("to_server"), websocket("to_client")), (11, 21));
        assert_eq!((wire("bosh", "1.1", "to_server"), wire("bosh", "1.1", "to_client")), (107, 58));
        let requests = "bosphorus_http_requests_total{http=\"1.1\",transport=\"websocket\"}";
        assert_eq!(value(requests), 1);

        let meter = Meter::new(local, clock());
        meter.over_h2();
        meter.traffic().add(7, 8);
        drop(meter);
        assert_eq!((wire("none", "2", "to_server"), wire("none", "2", "to_client")), (7, 8));
        assert_eq!(value("bosphorus_client_connections_total{http=\"2\",transport=\"none\"}"), 1);
    }
}

//! What one client connection costs on the wire.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::Traffic;
use crate::metrics::{Carried, Direction, Local, Transport};

/// How often the round-trip time of a connection is read that lasts.
const RTT_INTERVAL: Duration = Duration::from_secs(60);

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
    /// When elements were read from servers that answers on their way carry. Before those, when the
    /// clients began whose first stanzas are among them.
    under_way: RefCell<Vec<Instant>>,
    /// The number of these.
    firsts: Cell<u16>,
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
            under_way: RefCell::default(),
            firsts: Cell::default(),
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
    pub fn send(&self, mut read: Vec<Instant>, first: bool, now: Instant) {
        if first && !read.is_empty() {
            let before = self.firsts.replace(self.firsts.get().saturating_add(1));
            self.under_way.borrow_mut().insert(usize::from(before), read.remove(0));
        }
        for read in &read {
            self.local.waited(now.saturating_duration_since(*read));
        }
        self.under_way.borrow_mut().append(&mut read);
    }

    /// All that was to be written is with the kernel, at the time that is asked for.
    pub fn flushed(&self, now: impl FnOnce() -> Instant) {
        let mut under_way = self.under_way.borrow_mut();
        if !under_way.is_empty() {
            let now = now();
            for begun in under_way.drain(..usize::from(self.firsts.take())) {
                self.local.first(Transport::Bosh, now.saturating_duration_since(begun));
            }
            for read in under_way.drain(..) {
                let time = now.saturating_duration_since(read);
                self.local.delivered(Transport::Bosh, Direction::ToClient, time, 1);
            }
            under_way.shrink_to(4);
        }
        self.count();
    }

    /// Counts what has passed since the last time, if it is known what it was.
    pub fn count(&self) {
        let carried = self.carried.get();
        if carried != Carried::Nothing {
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

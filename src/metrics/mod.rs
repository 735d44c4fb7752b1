//! Every metric of the process: one struct, one [`Metrics::register`], the only place with names.
//!
//! The transport is a label, never part of a name: comparing is the product. Labels come from
//! enums, so their number is known when the program is compiled; no sid, JID, address, domain or
//! free text of a client's is ever one (SEC-15). Only servers and domains are labels as the
//! configuration has them, and, bounded, the origins of the pages that users log in from
//! ([`Census`]).

mod bosh;
mod census;
mod cpu;
pub mod heap;
mod http;
mod limits;
mod local;
mod process;
mod snapshot;
mod tls;
mod upgrades;
mod upstream;

use std::sync::Arc;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use bosh::{BoshMetrics, Refusal};
pub use census::Census;
pub use http::{Connection, ConnectionGuard, HttpMetrics};
pub use limits::{Limit, LimitMetrics, ProxyHeader};
pub use local::{Carried, Direction, Local, OpenGuard};
pub use tls::{Handshake, TlsMetrics};
pub use upgrades::{Upgrade, UpgradeMetrics};
pub use upstream::{Servers, Up};

use self::local::Locals;
use self::process::Process;
use crate::proto::fault::Fault;

/// Whether what passes is measured: the counters of [`Local`], the bytes of client connections, the
/// times of deliveries and the clock that is read for them, the account of the heap. Not so with the
/// feature `no-metrics`, beside which a benchmark holds the program to see what that costs. The
/// counters that workers share (sessions, their ends, upgrades, the census) count in any case, and the
/// recorder records.
pub const MEASURES: bool = !cfg!(feature = "no-metrics");

/// How a client reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 7395.
    Websocket,
    /// draft-moffitt-xmpp-over-websocket.
    WebsocketLegacy,
    /// XEP-0124.
    Bosh,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Self; 3] = [Self::Websocket, Self::WebsocketLegacy, Self::Bosh];

    /// The value of the label `transport`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::WebsocketLegacy => "websocket_legacy",
            Self::Bosh => "bosh",
        }
    }
}

const KINDS: [&str; 4] = ["message", "presence", "iq", "nonza"];

/// The children of one transport, resolved once.
#[derive(Debug)]
pub struct TransportMetrics {
    /// Sessions open now.
    pub sessions: IntGauge,
    /// Sessions ever opened.
    pub opened: IntCounter,
    ended: IntCounterVec,
    label: &'static str,
}

impl TransportMetrics {
    /// Counts the end of a session.
    pub fn ended(&self, fault: Fault) {
        self.sessions.dec();
        self.ended.with_label_values(&[self.label, fault.label(), fault.blame().label()]).inc();
    }
}

/// All metrics. Built once, passed down; two gateways in one process do not share any.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What only BOSH has.
    pub bosh: BoshMetrics,
    /// Who logs in, and how.
    pub census: Census,
    /// What HTTP connections do.
    pub http: HttpMetrics,
    /// What is counted when a limit is reached, and at the door.
    pub limits: LimitMetrics,
    /// TLS towards clients.
    pub tls: TlsMetrics,
    locals: Locals,
    transports: [TransportMetrics; 3],
    /// What becomes of WebSocket upgrades.
    pub upgrades: UpgradeMetrics,
    upstream_connects: IntCounterVec,
    /// Seconds from the client's opening to a negotiated upstream stream, failures included.
    pub upstream_connect_seconds: Histogram,
    /// Stanzas of the server that were repaired (UP-36).
    pub repaired: IntCounter,
    /// Stanzas of the server that were emptied (UP-36).
    pub emptied: IntCounter,
    /// Nonzas of the server that were broken beyond repair and dropped (UP-36).
    pub dropped: IntCounter,
    /// Empty or whitespace-only client messages that were dropped (WS-12).
    pub blank_messages: IntCounter,
    /// Logins that chose a `-PLUS` mechanism and failed (UP-27).
    pub channel_binding_plus: IntCounter,
    /// Logins whose GS2 header asked for or hinted at channel binding and failed (UP-27).
    pub channel_binding_gs2: IntCounter,
    /// Which of the configured servers are up.
    pub servers: Servers,
    /// Routes whose server certificates are not checked (UP-14).
    pub unverified_routes: IntGauge,
    reloads: [IntCounter; 2],
    /// Seconds since 1970 at which the configuration in force was read.
    pub last_reload: Gauge,
    /// Set when it is asked for.
    heap_live: IntGauge,
}

impl Metrics {
    /// Registers every family with a new registry. Fails only if two families share a name.
    pub fn register() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let sessions = int_gauge_vec(
            &registry,
            "bosphorus_sessions",
            "Sessions open now (a stream was opened by the client)",
            &["transport"],
        )?;
        let opened = int_counter_vec(
            &registry,
            "bosphorus_sessions_opened_total",
            "Sessions opened by a client",
            &["transport"],
        )?;
        let ended = int_counter_vec(
            &registry,
            "bosphorus_sessions_ended_total",
            "Sessions ended, by reason and by who is to blame",
            &["transport", "reason", "blame"],
        )?;
        let upstream_connects = int_counter_vec(
            &registry,
            "bosphorus_upstream_connects_total",
            "Attempts to open a stream to the XMPP server, by outcome",
            &["outcome"],
        )?;
        let upstream_connect_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "bosphorus_upstream_connect_seconds",
                "Seconds to a negotiated upstream stream: DNS, TCP, TLS, stream header, features",
            )
            .buckets(vec![
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
        )?;
        registry.register(Box::new(upstream_connect_seconds.clone()))?;
        let repairs = int_counter_vec(
            &registry,
            "bosphorus_server_stanzas_mended_total",
            "Stanzas of the XMPP server that broke a rule of XML: repaired, emptied, or (nonzas) dropped",
            &["how"],
        )?;
        let blank_messages = IntCounter::new(
            "bosphorus_blank_messages_total",
            "Empty or whitespace-only messages of clients, dropped",
        )?;
        registry.register(Box::new(blank_messages.clone()))?;
        let binding = int_counter_vec(
            &registry,
            "bosphorus_channel_binding_failures_total",
            "Failed logins that asked for channel binding, which cannot pass a gateway",
            &["sign"],
        )?;
        let unverified_routes = IntGauge::new(
            "bosphorus_unverified_routes",
            "Routes configured to accept any certificate of the XMPP server",
        )?;
        registry.register(Box::new(unverified_routes.clone()))?;
        let reloads = int_counter_vec(
            &registry,
            "bosphorus_config_reloads_total",
            "Reloads of the configuration asked for, by outcome; one that failed changed nothing",
            &["outcome"],
        )?;
        let last_reload = Gauge::new(
            "bosphorus_config_last_reload_timestamp_seconds",
            "When the configuration in force was read, in seconds since 1970",
        )?;
        registry.register(Box::new(last_reload.clone()))?;
        registry.register(Box::new(Process::new()))?;
        let heap_live = IntGauge::new(
            "bosphorus_heap_live_bytes",
            "Bytes asked of the allocator and not freed; what it keeps beyond them is resident, too",
        )?;
        registry.register(Box::new(heap_live.clone()))?;
        let build = int_gauge_vec(
            &registry,
            "bosphorus_build_info",
            "Always 1; the version is the label",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        // Every child of a fixed label set is made now, so that a scrape shows zeros instead of
        // gaps and the hot path never looks one up.
        let transports = Transport::ALL.map(|transport| {
            for fault in Fault::ALL {
                let _ = ended.with_label_values(&[
                    transport.label(),
                    fault.label(),
                    fault.blame().label(),
                ]);
            }
            TransportMetrics {
                sessions: sessions.with_label_values(&[transport.label()]),
                opened: opened.with_label_values(&[transport.label()]),
                ended: ended.clone(),
                label: transport.label(),
            }
        });
        let bosh = BoshMetrics::register(&registry)?;
        let tls = TlsMetrics::register(&registry)?;
        let locals = Locals::register(&registry)?;
        let servers = Servers::register(&registry)?;
        let http = HttpMetrics::register(&registry)?;
        let limits = LimitMetrics::register(&registry)?;
        let upgrades = UpgradeMetrics::register(&registry)?;
        let census = Census::register(&registry)?;
        Ok(Arc::new(Self {
            bosh,
            census,
            tls,
            locals,
            http,
            limits,
            transports,
            upgrades,
            upstream_connects,
            upstream_connect_seconds,
            repaired: repairs.with_label_values(&["repaired"]),
            emptied: repairs.with_label_values(&["emptied"]),
            dropped: repairs.with_label_values(&["dropped"]),
            blank_messages,
            channel_binding_plus: binding.with_label_values(&["plus_mechanism"]),
            channel_binding_gs2: binding.with_label_values(&["gs2_header"]),
            servers,
            unverified_routes,
            reloads: ["ok", "failed"].map(|outcome| reloads.with_label_values(&[outcome])),
            last_reload,
            heap_live,
            registry,
        }))
    }

    /// The children of one transport.
    #[must_use]
    pub fn transport(&self, transport: Transport) -> &TransportMetrics {
        &self.transports[transport as usize]
    }

    /// The counters of one more worker, for its thread alone.
    #[must_use]
    pub fn local(&self) -> Arc<Local> {
        self.locals.another()
    }

    /// HTTP requests of BOSH that are open now.
    #[must_use]
    pub fn open_requests(&self) -> u64 {
        self.locals.open_requests()
    }

    /// Counts one reload of the configuration.
    pub fn reload(&self, succeeded: bool) {
        self.reloads[usize::from(!succeeded)].inc();
    }

    /// Counts one attempt to open an upstream stream; `outcome` is `ok` or the label of an
    /// `upstream::ConnectFault`.
    pub fn upstream_connect(&self, outcome: &'static str) {
        self.upstream_connects.with_label_values(&[outcome]).inc();
    }

    /// The text exposition of every family (Prometheus format 0.0.4).
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        self.heap_live.set(i64::try_from(heap::live()).unwrap_or(i64::MAX));
        let mut out = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }
}

fn int_counter_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn int_gauge_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two gateways fit in one process: nothing is global.
    #[test]
    fn two_registries_share_nothing() {
        let (one, two) = (Metrics::register().unwrap(), Metrics::register().unwrap());
        one.transport(Transport::Websocket).opened.inc();
        let text = |metrics: &Metrics| String::from_utf8(metrics.render().unwrap()).unwrap();
        let line = "bosphorus_sessions_opened_total{transport=\"websocket\"}";
        assert!(text(&one).contains(&format!("{line} 1")));
        assert!(text(&two).contains(&format!("{line} 0")));
    }
}

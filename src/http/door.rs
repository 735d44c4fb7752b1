//! What a connection goes through before its first byte is read as HTTP or TLS: the PROXY header
//! that it has to begin with if it comes from a listed peer (SEC-20), and the limits on connections
//! of one address (SEC-16).
//!
//! Who is refused here is closed upon without a word: nothing was asked yet, and a client does about
//! that what it does about a 503.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpMessage as _, HttpRequest};
use tracing::debug;

use super::caller::{Arrival, Source, Trust};
use super::proxy_protocol;
use crate::io::Io;
use crate::metrics::{Local, Metrics, ProxyHeader};
use crate::proto::forwarded::Networks;
use crate::session::addresses::{Addresses, ConnectionPlace};
use crate::session::meter::Meter;
use crate::session::timer::clock;

/// What the door needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Peers whose connections begin with a PROXY header.
    pub proxies: Networks,
    /// So do those of peers on Unix sockets.
    pub unix_proxies: bool,
    /// The time they have for it.
    pub patience: Duration,
    /// Whom the limits hold for.
    pub trust: Arc<Trust>,
}

/// The door of one listener.
#[derive(Clone, Debug)]
pub struct Door {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// What each address has.
    pub addresses: Arc<Addresses>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Those of the worker.
    pub local: Arc<Local>,
}

/// A connection that was let in, for as long as it is one of HTTP.
#[derive(Debug)]
pub struct Entered {
    /// How it came.
    pub arrival: Arrival,
    /// What it costs on the wire.
    pub meter: Rc<Meter>,
    _place: Option<ConnectionPlace>,
}

/// How the connection of a request came in. A request over HTTP/1.1 has it from its connection, one
/// of many over HTTP/2 carries it itself.
#[must_use]
pub fn arrival(request: &HttpRequest) -> Arrival {
    let arrival = entered(request).map(|entered| entered.arrival);
    arrival.unwrap_or_else(|| Arrival::plain(request.peer_addr()))
}

/// The connection of a request.
#[must_use]
pub fn entered(request: &HttpRequest) -> Option<Rc<Entered>> {
    let own = request.extensions().get::<Rc<Entered>>().map(Rc::clone);
    own.or_else(|| request.conn_data::<Rc<Entered>>().map(Rc::clone))
}

impl Door {
    /// Lets a connection in, and takes its PROXY header off it; `None` if it is to be closed.
    pub async fn enter(&self, socket: &mut Io) -> Option<Entered> {
        let arrival = self.arrival(socket).await?;
        let limited = self.settings.trust.limited(&arrival);
        match self.addresses.connection(limited, clock()) {
            Ok(place) => {
                let meter = Rc::new(Meter::new(Arc::clone(&self.local), clock()));
                Some(Entered { arrival, meter, _place: place })
            }
            Err(limit) => {
                self.metrics.limits.hit(limit);
                let peer = arrival.client.map(tracing::field::display);
                debug!(peer, limit = limit.key(), "connection_refused");
                None
            }
        }
    }

    async fn arrival(&self, socket: &mut Io) -> Option<Arrival> {
        let peer = socket.peer_addr();
        let unix = matches!(socket, Io::Unix(_));
        let is_proxy = match peer {
            Some(peer) => self.settings.proxies.contains(peer.ip()),
            None => unix && self.settings.unix_proxies,
        };
        if !is_proxy {
            return Some(Arrival { unix, local: socket.local_addr(), ..Arrival::plain(peer) });
        }
        let outcome = proxy_protocol::read(socket, self.settings.patience).await;
        self.metrics.limits.proxy_header(match &outcome {
            Ok(header) if header.client.is_some() => ProxyHeader::Proxied,
            Ok(_) => ProxyHeader::Local,
            Err(outcome) => *outcome,
        });
        match outcome {
            Ok(header) => Some(Arrival {
                client: header.client.or(peer),
                local: header.destination.or_else(|| socket.local_addr()),
                unix,
                secure: header.secure.unwrap_or_default(),
                source: if header.client.is_some() { Source::Header } else { Source::Proxy },
            }),
            Err(outcome) => {
                let peer = peer.map(tracing::field::display);
                debug!(peer, reason = outcome.label(), "proxy_header_refused");
                None
            }
        }
    }
}

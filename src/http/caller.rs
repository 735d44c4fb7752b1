//! Who asks, through whatever proxies, and whether the limits per address hold for him.
//!
//! The address of the socket's peer is the client's only where no proxy is in between; the peer of a
//! Unix socket has none, and is a proxy or as good as nobody. One before
//! TCP says who it is by a PROXY header ([`super::door`]), one before HTTP by headers of the request
//! (`proto::forwarded`), and both may be there. Found out once for each request, and used for
//! admission, limits and the log.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use actix_http::header::{self, HeaderMap};
use tracing::warn;

use crate::proto::forwarded::{self, Networks};
use crate::upstream;

/// Whom to believe, and whom the limits per address spare.
#[derive(Debug, Default)]
pub struct Trust {
    proxies: Networks,
    unix: bool,
    exempt: Networks,
    /// Somebody was told that a proxy may be missing from the list.
    warned: AtomicBool,
}

/// How a connection came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The client as far as the connection tells: the socket's peer, or whom a PROXY header names.
    pub client: Option<SocketAddr>,
    /// The client's own connection is TLS.
    pub secure: bool,
    /// The socket is a Unix socket: `client` is not its peer.
    pub unix: bool,
    /// What is known of where `client` comes from.
    pub source: Source,
    /// The address that the client connected to, as far as the connection tells.
    pub local: Option<SocketAddr>,
}

impl Arrival {
    /// On a socket of this peer, without TLS.
    #[must_use]
    pub fn plain(peer: Option<SocketAddr>) -> Self {
        Self { client: peer, ..Self::default() }
    }
}

/// Where the address of an [`Arrival`] comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The socket.
    #[default]
    Socket,
    /// The socket of a proxy that has a connection of its own, or does not know its client (SEC-20).
    Proxy,
    /// A proxy's header (SEC-20).
    Header,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// His address; port 0 if that is not known.
    pub address: Option<SocketAddr>,
    /// His own connection is TLS (BOSH-89).
    pub secure: bool,
    /// His address where the limits per address hold for him (SEC-16).
    pub limited: Option<IpAddr>,
    /// The address that he connected to, if it is known.
    pub local: Option<SocketAddr>,
}

impl Caller {
    /// The sender of a request with these headers.
    #[must_use]
    pub fn of(arrival: &Arrival, headers: &HeaderMap, trust: &Trust) -> Self {
        let all = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let told = match arrival.client {
            Some(peer) if trust.proxies.contains(peer.ip()) => {
                forwarded::read(peer.ip(), &trust.proxies, all)
            }
            None if arrival.unix && trust.unix => forwarded::told(&trust.proxies, all),
            _ => {
                trust.look_for_unlisted(arrival, headers);
                forwarded::Told::default()
            }
        };
        let secure = told.secure.unwrap_or(arrival.secure);
        let local = arrival.local;
        match told.address {
            Some(address) => {
                let told =
                    Arrival { client: Some(address), secure, source: Source::Header, ..*arrival };
                Self { address: Some(address), secure, limited: trust.limited(&told), local }
            }
            None => {
                Self { address: arrival.client, secure, limited: trust.limited(arrival), local }
            }
        }
    }
}

impl Caller {
    /// Whom a server is told that the session is of; its number is still to be given.
    #[must_use]
    pub fn client(&self) -> upstream::Client {
        upstream::Client { address: self.address, local: self.local, secure: self.secure, id: 0 }
    }
}

impl Trust {
    /// Believes `proxies` (SEC-19), and if `unix` all that come over Unix sockets. Peers that are `exempt` are not held to the limits per address,
    /// unless a proxy has named the client: as likely as not they are a proxy that nobody has
    /// listed, and all clients at once.
    #[must_use]
    pub fn new(proxies: Networks, unix: bool, exempt: Networks) -> Self {
        Self { proxies, unix, exempt, warned: AtomicBool::new(false) }
    }

    /// Says once what the operator of a proxy wants to know; strangers on the net, who may write
    /// what they like, are no reason to.
    fn look_for_unlisted(&self, arrival: &Arrival, headers: &HeaderMap) {
        let is_likely_proxy = || match arrival.client {
            Some(peer) => self.exempt.contains(peer.ip()),
            None => arrival.unix,
        };
        let is_forwarded = || {
            headers.contains_key(header::X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED)
        };
        if arrival.source == Source::Socket
            && !self.warned.load(Ordering::Relaxed)
            && is_likely_proxy()
            && is_forwarded()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            let peer = arrival.client.map_or_else(|| "unix".to_owned(), |it| it.ip().to_string());
            warn!(
                peer,
                "forwarding_headers_ignored: to believe them, list their sender in \
                 listen.trusted_proxies"
            );
        }
    }

    /// The address under which the limits hold, if they do.
    ///
    /// Trusted proxies are exempt as themselves (SEC-16), whoever named them. An address that was
    /// named is a client's, also where it is a private one; one that was not is not taken for a
    /// client's where a proxy usually is.
    #[must_use]
    pub fn limited(&self, arrival: &Arrival) -> Option<IpAddr> {
        let address = arrival.client?.ip().to_canonical();
        let is_limited = match arrival.source {
            Source::Header => true,
            Source::Socket => !self.exempt.contains(address),
            Source::Proxy => false,
        };
        (is_limited && !self.proxies.contains(address)).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_http::header::{HeaderName, HeaderValue};

    fn networks(list: &[&str]) -> Networks {
        let list: Vec<_> = list.iter().map(|text| text.parse().unwrap()).collect();
        Networks::new(&list)
    }

    fn trust() -> Trust {
        Trust::new(networks(&["10.0.0.0/8"]), false, networks(&["127.0.0.0/8", "::1/128"]))
    }

    /// The caller behind `peer`: address, whether secure, under which address limited.
    fn caller(peer: &str, source: Source, headers: &[(&str, &str)]) -> (String, bool, String) {
        let client = peer.parse().ok();
        let arrival = Arrival { client, source, unix: peer == "unix", ..Arrival::default() };
        caller_by(&trust(), &arrival, headers)
    }

    fn caller_by(
        trust: &Trust,
        arrival: &Arrival,
        headers: &[(&str, &str)],
    ) -> (String, bool, String) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let Caller { address, secure, limited, .. } = Caller::of(arrival, &map, trust);
        let text = |it: Option<String>| it.unwrap_or_else(|| "-".to_owned());
        (text(address.map(|it| it.to_string())), secure, text(limited.map(|it| it.to_string())))
    }

    /// SEC-16, SEC-19: whose address it is, and whether limits hold for it.
    #[test]
    fn a_caller_is_who_is_believed() {
        const XFF: &str = "x-forwarded-for";
        const XFP: &str = "x-forwarded-proto";
        let (client, private) = ("192.0.2.1", "127.0.0.9");
        for (peer, source, headers, address, secure, limited) in [
            // A stranger is himself, whatever he says.
            (
                "192.0.2.7:1",
                Source::Socket,
                &[(XFF, client), (XFP, "https")][..],
                "192.0.2.7:1",
                false,
                "192.0.2.7",
            ),
            // A likely proxy that is not listed says nothing, and is not limited.
            ("127.0.0.1:1", Source::Socket, &[(XFF, client)], "127.0.0.1:1", false, "-"),
            ("[::ffff:127.0.0.1]:1", Source::Socket, &[], "[::ffff:127.0.0.1]:1", false, "-"),
            // A listed one names the client, also a private one, and is exempt as itself.
            (
                "10.0.0.1:1",
                Source::Socket,
                &[(XFF, client), (XFP, "https")],
                "192.0.2.1:0",
                true,
                "192.0.2.1",
            ),
            ("10.0.0.1:1", Source::Socket, &[(XFF, private)], "127.0.0.9:0", false, "127.0.0.9"),
            ("10.0.0.1:1", Source::Socket, &[(XFF, "10.0.0.2")], "10.0.0.2:0", false, "-"),
            ("10.0.0.1:1", Source::Socket, &[(XFF, "x")], "10.0.0.1:1", false, "-"),
            ("10.0.0.1:1", Source::Socket, &[], "10.0.0.1:1", false, "-"),
            // So does one before TCP, which may be behind or before the other one.
            ("127.0.0.9:1", Source::Header, &[], "127.0.0.9:1", false, "127.0.0.9"),
            ("127.0.0.9:1", Source::Proxy, &[], "127.0.0.9:1", false, "-"),
            ("192.0.2.7:1", Source::Proxy, &[], "192.0.2.7:1", false, "-"),
            ("10.0.0.1:1", Source::Header, &[(XFF, client)], "192.0.2.1:0", false, "192.0.2.1"),
            ("192.0.2.7:1", Source::Header, &[(XFF, client)], "192.0.2.7:1", false, "192.0.2.7"),
            ("unknown", Source::Socket, &[(XFF, client)], "-", false, "-"),
            // A Unix socket tells nothing, and is not believed unless it is listed.
            ("unix", Source::Socket, &[(XFF, client), (XFP, "https")], "-", false, "-"),
        ] {
            let expected = (address.to_owned(), secure, limited.to_owned());
            assert_eq!(caller(peer, source, headers), expected, "{peer} {source:?} {headers:?}");
        }
    }

    /// SEC-19, SEC-20: whoever comes over a Unix socket that is listed names the client; a TCP peer
    /// whose address is not known is not taken for one of these.
    #[test]
    fn a_listed_unix_socket_names_the_client() {
        let trust = Trust::new(networks(&["10.0.0.0/8"]), true, Networks::default());
        let unix = Arrival { unix: true, ..Arrival::default() };
        let named = Arrival { client: "192.0.2.7:1".parse().ok(), source: Source::Header, ..unix };
        let [xff, proto] = ["x-forwarded-for", "x-forwarded-proto"];
        for (arrival, headers, address, secure, limited) in [
            (unix, &[(xff, "192.0.2.1"), (proto, "https")][..], "192.0.2.1:0", true, "192.0.2.1"),
            (unix, &[(xff, "192.0.2.1, 10.0.0.2")], "192.0.2.1:0", false, "192.0.2.1"),
            (unix, &[(xff, "x")], "-", false, "-"),
            (unix, &[], "-", false, "-"),
            (
                Arrival { source: Source::Proxy, ..unix },
                &[(xff, "192.0.2.1")],
                "192.0.2.1:0",
                false,
                "192.0.2.1",
            ),
            (named, &[(xff, "192.0.2.1")], "192.0.2.7:1", false, "192.0.2.7"),
            (Arrival::default(), &[(xff, "192.0.2.1")], "-", false, "-"),
        ] {
            let expected = (address.to_owned(), secure, limited.to_owned());
            assert_eq!(caller_by(&trust, &arrival, headers), expected, "{arrival:?} {headers:?}");
        }
    }
}

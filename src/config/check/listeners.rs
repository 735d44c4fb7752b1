//! `[listen]`: the addresses, what their Unix sockets are like, and what a connection there may do;
//! checked.

use super::endpoint::unix_path;
use super::{Checker, MANY, quoted, without_index};
use crate::config::model::{Listen, ListenAddress, Listener};
use crate::config::raw;

const LISTENER: &str = "an IP address (not a name) and a port, such as \"127.0.0.1:5280\" or \
                        \"[::1]:5280\", \"unix:/path\" or \"systemd:NAME\"";

impl Checker<'_> {
    pub(super) fn listen(&mut self, raw: &raw::Listen) -> Listen {
        let (addresses, tls_addresses) = self.listeners(raw);
        let workers = self.count(&["listen", "workers"], raw.workers, 0..=1024);
        Listen {
            addresses,
            tls_addresses,
            unix_mode: self.unix_mode(&raw.unix_mode),
            workers: (workers != 0).then_some(workers),
            backlog: self.count32(&["listen", "backlog"], raw.backlog, 1..=65_535),
            max_connections: self.count(
                &["listen", "max_connections"],
                raw.max_connections,
                1..=MANY,
            ),
            keep_alive: self.duration(&["listen", "keep_alive"], raw.keep_alive),
            head_timeout: self.duration(&["listen", "head_timeout"], raw.head_timeout),
            trusted_proxies: self.proxies(&["listen", "trusted_proxies"], &raw.trusted_proxies),
            proxy_protocol: self.proxies(&["listen", "proxy_protocol"], &raw.proxy_protocol),
            proxy_protocol_timeout: self
                .duration(&["listen", "proxy_protocol_timeout"], raw.proxy_protocol_timeout),
            handshake_timeout: self
                .duration(&["listen", "handshake_timeout"], raw.handshake_timeout),
            http2_streams: self.count32(
                &["listen", "http2_streams"],
                raw.http2_streams,
                1..=10_000,
            ),
        }
    }

    /// The listeners without and with TLS; one at least, and none twice.
    fn listeners(&mut self, raw: &raw::Listen) -> (Vec<Listener>, Vec<Listener>) {
        let plain = self.list("addresses", &raw.addresses, &[]);
        let secure = self.list("tls_addresses", &raw.tls_addresses, &plain);
        if raw.addresses.is_empty() && raw.tls_addresses.is_empty() {
            self.expected(&["listen", "addresses"], "at least one address", "an empty list");
        }
        let is_believed =
            [&raw.trusted_proxies, &raw.proxy_protocol].iter().any(|list| list.iter().any(is_unix));
        let mut all = plain.iter().chain(&secure);
        if let Some(listener) = all.find(|listener| is_unix_socket(&listener.address))
            && !is_believed
        {
            self.warnings.push(format!(
                "{}: nobody who comes over {listener} has an address, so that no limit per \
                 address holds for him; add \"unix\" to listen.trusted_proxies or \
                 listen.proxy_protocol if a proxy there says who its clients are",
                listener.place
            ));
        }
        (plain, secure)
    }

    fn list(&mut self, key: &str, raw: &[String], plain: &[Listener]) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = Vec::new();
        for (index, text) in raw.iter().enumerate() {
            let index = index.to_string();
            let path = ["listen", key, &index];
            let address = match listen_address(text) {
                Ok(address) => address,
                Err(why) => {
                    let colon = if why.is_empty() { "" } else { ": " };
                    let found = quoted(text);
                    self.problem(&path, format!("expected {LISTENER}, found {found}{colon}{why}"));
                    continue;
                }
            };
            let place = self.origins.problem(&path, &without_index(&path), String::new());
            let place = [place.place, place.key].join(": ");
            let place = place.trim_start_matches(": ").to_owned();
            let listener = Listener { address, place };
            if !is_any_port(&listener.address) {
                if listeners.contains(&listener) {
                    self.problem(&["listen", key], format!("{} is there twice", quoted(text)));
                }
                if plain.contains(&listener) {
                    self.problem(&path, format!("{listener} is in listen.addresses too"));
                }
            }
            listeners.push(listener);
        }
        listeners
    }

    /// Permissions in octal, as chmod(1) has them.
    fn unix_mode(&mut self, text: &str) -> u32 {
        let is_octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if is_octal && mode <= 0o777 => mode,
            _ => {
                let path = &["listen", "unix_mode"];
                self.expected(path, "permissions such as \"0660\" or \"0666\"", quoted(text));
                0
            }
        }
    }
}

/// Why it is none, where more is to be said than what it might be.
fn listen_address(text: &str) -> Result<ListenAddress, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(ListenAddress::Unix);
    }
    if let Some(name) = text.strip_prefix("systemd:") {
        if name.contains(':') {
            return Err("a socket's name has no colon");
        }
        return Ok(ListenAddress::Systemd((!name.is_empty()).then(|| name.to_owned())));
    }
    text.parse().map(ListenAddress::Tcp).map_err(|_| "")
}

fn is_any_port(address: &ListenAddress) -> bool {
    matches!(address, ListenAddress::Tcp(address) if address.port() == 0)
}

fn is_unix_socket(address: &ListenAddress) -> bool {
    matches!(address, ListenAddress::Unix(_))
}

fn is_unix(text: &String) -> bool {
    text == super::addresses::UNIX
}

//! `servers` of a domain: who they are, in which order, and what they are told.

use super::endpoint::parse_server;
use super::{Checker, quoted};
use crate::config::model::{ProxyProtocol, Server};
use crate::config::raw;
use crate::config::units::Count;

impl Checker<'_> {
    /// The list of the domain called `name`. An entry without a `priority` has its place in the list
    /// for one, so that plain addresses are tried in their order.
    pub(super) fn servers(&mut self, name: &str, raw: &[raw::Server]) -> Vec<Server> {
        let mut servers = Vec::new();
        for (index, raw) in raw.iter().enumerate() {
            let shown = index.to_string();
            let entry = ["domains", name, "servers", &shown];
            let key = |key| ["domains", name, "servers", &shown, key];
            let Some(text) = &raw.address else {
                self.problem(&entry, "expected `address` in the table");
                continue;
            };
            let priority = Count(index as u64);
            let priority = self.number16(&key("priority"), raw.priority.unwrap_or(priority));
            let weight = self.number16(&key("weight"), raw.weight.unwrap_or(Count(1)));
            let proxy_protocol = match raw.proxy_protocol.as_deref() {
                None | Some("off") => ProxyProtocol::Off,
                Some("v1") => ProxyProtocol::V1,
                Some("v2") => ProxyProtocol::V2,
                Some(other) => {
                    let versions = "\"off\", \"v1\" or \"v2\"";
                    self.expected(&key("proxy_protocol"), versions, quoted(other));
                    ProxyProtocol::Off
                }
            };
            match parse_server(text) {
                Ok(address) => servers.push(Server { address, priority, weight, proxy_protocol }),
                Err(why) => {
                    let found = quoted(text);
                    self.problem(&entry, format!("expected {SERVER}, found {found}: {why}"));
                }
            }
        }
        servers
    }

    /// Priorities and weights are those of RFC 2782.
    fn number16(&mut self, path: &[&str], count: Count) -> u16 {
        let most = u16::MAX;
        u16::try_from(self.count(path, count, 0..=most.into())).unwrap_or(most)
    }
}

const SERVER: &str = "\"xmpp://host:port\", \"xmpps://host:port\", \"host:port\" or \"unix:/path\"";

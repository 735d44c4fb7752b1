//! Networks, and the limits per address, checked.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Checker, MANY, quoted};
use crate::config::model::Peers;
use crate::config::units::Count;

const NETWORK: &str = "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an IP address";

impl Checker<'_> {
    /// A limit of `[limits]` that 0 switches off.
    pub(super) fn bound(&mut self, key: &str, count: Count) -> Option<u32> {
        let most = self.count32(&["limits", key], count, 0..=MANY);
        (most != 0).then_some(most)
    }

    /// Networks in CIDR notation; an address alone is a network of one.
    pub(super) fn networks(&mut self, path: &[&str], list: &[String]) -> Vec<IpNet> {
        self.network_list(path, list, |_| false)
    }

    fn network_list(
        &mut self,
        path: &[&str],
        list: &[String],
        is_word: impl Fn(&str) -> bool,
    ) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for (index, text) in list.iter().enumerate().filter(|(_, text)| !is_word(text)) {
            let index = index.to_string();
            let element = [path, &[&index]].concat();
            match text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
                // Peers are compared as IPv4 where an IPv6 address only maps one.
                Ok(IpNet::V6(network)) if network.addr().to_ipv4_mapped().is_some() => {
                    self.expected(&element, "an IPv4 network, without ::ffff:", quoted(text));
                }
                Ok(network) if network.trunc() != network => {
                    let meant = network.trunc();
                    self.expected(
                        &element,
                        format!("a network without bits behind its prefix, such as \"{meant}\""),
                        quoted(text),
                    );
                }
                Ok(network) => networks.push(network),
                Err(_) => self.expected(&element, NETWORK, quoted(text)),
            }
        }
        networks
    }

    /// The same for peers that are believed who their clients are.
    pub(super) fn proxies(&mut self, path: &[&str], list: &[String]) -> Peers {
        let unix = list.iter().any(|text| text == UNIX);
        let networks = self.network_list(path, list, |text| text == UNIX);
        if networks.iter().any(|network| network.prefix_len() == 0) {
            self.warning(
                path,
                "every peer is believed: whoever connects can pose as any address, and no limit \
                 per address holds for him",
            );
        }
        Peers { networks, unix }
    }
}

/// The peers that have no address.
pub(super) const UNIX: &str = "unix";

//! From a domain to places to connect to: configured servers, or SRV records, or the domain itself.
//!
//! The order of SRV records is a pure function with the dice injected. Caching by TTL is the
//! resolver's. SEC-22 is held here too: every target says how far inside it may lead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};

use super::fault::Reason;
use super::{Member, ProxyProtocol, Server, Settings, SettingsError, TlsUse};
use crate::proto::domain::Domain;

/// One place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) place: Place,
    /// TLS from the first byte.
    pub(super) direct_tls: bool,
    /// The innermost address that [`Place::Host`] may lead to.
    pub(super) innermost: Reach,
    /// What to say before everything else.
    pub(super) proxy_protocol: ProxyProtocol,
}

impl Target {
    /// The target of a configured server. The operator named it, so it may be anywhere.
    fn configured(member: &Member) -> Self {
        let direct_tls = matches!(member.server, Server::Tcp { direct_tls: true, .. });
        Self {
            place: Place::of(&member.server),
            direct_tls,
            innermost: Reach::Special,
            proxy_protocol: member.proxy_protocol,
        }
    }

    /// A target that a server sent us on to (UP-09). TLS and the PROXY header are there as they are
    /// here; RFC 6120 §4.9.3.19 knows no other way to say.
    pub(super) fn redirected(
        host: &Domain,
        port: Option<u16>,
        from: &Self,
        innermost: Reach,
    ) -> Self {
        let direct_tls = from.direct_tls;
        let default = if direct_tls { DIRECT_TLS_PORT } else { CLIENT_PORT };
        let host = match host.ip() {
            Some(ip) => Host::Ip(ip),
            None => Host::Name(absolute(&host.ascii())),
        };
        let place = Place::Host { host, port: port.unwrap_or(default) };
        Self { place, direct_tls, innermost, proxy_protocol: from.proxy_protocol }
    }
}

/// Where that is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Unix(PathBuf),
    Host { host: Host, port: u16 },
}

impl Place {
    /// Where a configured server is.
    pub(super) fn of(server: &Server) -> Self {
        match server {
            Server::Unix(path) => Self::Unix(path.clone()),
            Server::Tcp { host, port, .. } => {
                let host = match host.parse() {
                    Ok(ip) => Host::Ip(ip),
                    Err(_) => Host::Name(host.as_str().into()),
                };
                Self::Host { host, port: *port }
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Host {
    Ip(IpAddr),
    /// For DNS. A trailing dot keeps the system's search list away from it.
    Name(Box<str>),
}

/// How far inside an address lies, from outside to inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// The Internet.
    Public,
    /// Private networks.
    Private,
    /// This machine.
    Loopback,
    /// Link-local (with the clouds' metadata services), multicast, unspecified, reserved.
    Special,
}

impl Reach {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        let octets = ip.octets();
        match octets {
            _ if ip.is_loopback() => Self::Loopback,
            _ if ip.is_private() => Self::Private,
            [100, 64..=127, ..] => Self::Private, // RFC 6598: carrier-grade NAT
            [0 | 224.., ..] | [169, 254, ..] | [192, 0, 0, _] => Self::Special,
            [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Special, // RFC 5737
            [198, 18 | 19, ..] => Self::Special,                                    // RFC 2544
            _ => Self::Public,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        let s = ip.segments();
        let tail = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match s {
            _ if ip.is_loopback() => Self::Loopback,
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low] if s != [0; 8] => tail(high, low),
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => tail(high, low), // RFC 6052: NAT64
            [0x2002, high, low, ..] => tail(high, low),               // RFC 3056: 6to4
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Self::Private,
            [0x2001, 0xdb8, ..] => Self::Special, // RFC 3849
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Special,
        }
    }
}

/// SEC-22: the innermost address that DNS may lead to.
pub(super) fn innermost(settings: &Settings) -> Reach {
    if settings.allow_private { Reach::Special } else { Reach::Public }
}

/// The configured servers, in the order to try.
pub(super) fn configured(servers: &[Member]) -> Vec<Target> {
    let members = order(servers.iter().collect(), |member| member.rank(), &mut exact(throw));
    members.into_iter().map(Target::configured).collect()
}

/// Asks DNS, and remembers answers for their TTL.
pub(super) struct Resolver {
    inner: TokioResolver,
    innermost: Reach,
}

impl Resolver {
    /// Reads the system's settings unless DNS servers are configured.
    pub(super) fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let failed = |error: NetError| SettingsError::Dns(error.to_string());
        let mut builder = if settings.dns.is_empty() {
            TokioResolver::builder_tokio().map_err(failed)?
        } else {
            let servers = settings.dns.iter().map(|address| {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for connection in &mut connections {
                    connection.port = address.port();
                }
                NameServerConfig::new(address.ip(), true, connections)
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // A dead DNS server must leave time for the next one and for connecting.
        options.timeout = options.timeout.min(settings.connect_timeout / 4).max(SHORTEST_TIMEOUT);
        Ok(Self { inner: builder.build().map_err(failed)?, innermost: innermost(settings) })
    }

    /// UP-06, UP-07: the targets of a domain that has no servers configured, in the order to try.
    pub(super) async fn targets(
        &self,
        domain: &Domain,
        tls_use: TlsUse,
    ) -> Result<Vec<Target>, Reason> {
        if let Some(ip) = domain.ip() {
            // An address has no SRV records, and the operator wrote this one down.
            let place = Place::Host { host: Host::Ip(ip), port: CLIENT_PORT };
            return Ok(vec![dns(place, false, Reach::Special)]);
        }
        let (direct, starttls) = tokio::join!(
            async {
                match tls_use {
                    TlsUse::Never => Ok(None),
                    _ => self.service("_xmpps-client", domain, true).await,
                }
            },
            self.service("_xmpp-client", domain, false),
        );
        let records = match (direct, starttls) {
            (Ok(None), Ok(None)) => {
                let place =
                    Place::Host { host: Host::Name(absolute(&domain.ascii())), port: CLIENT_PORT };
                return Ok(vec![dns(place, false, self.innermost)]);
            }
            // A set that could not be fetched may exist, which rules the fallback out.
            (Err(error), Ok(None)) | (Ok(None) | Err(_), Err(error)) => return Err(error),
            (Ok(Some(records)), Ok(None) | Err(_)) | (Ok(None) | Err(_), Ok(Some(records))) => {
                records
            }
            (Ok(Some(mut records)), Ok(Some(more))) => {
                records.extend(more);
                records
            }
        };
        if records.is_empty() {
            return Err(Reason::Dns("its SRV records say that there is no such service".into()));
        }
        let targets = order(records, Srv::rank, &mut throw).into_iter().take(MOST_TARGETS);
        Ok(targets
            .map(|record| {
                let host = Host::Name(record.target);
                let place = Place::Host { host, port: record.port };
                dns(place, record.direct_tls, self.innermost)
            })
            .collect())
    }

    /// A and AAAA records of a name, at most [`MOST_ADDRESSES`].
    pub(super) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Reason> {
        match self.inner.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().take(MOST_ADDRESSES).collect()),
            Err(error) if error.is_no_records_found() => {
                Err(Reason::Dns("it has no address in DNS".into()))
            }
            Err(error) => Err(Reason::Dns(format!("address lookup failed: {error}"))),
        }
    }

    /// One SRV set; `None` if there is none, empty if it says "no such service" (RFC 2782: `.`).
    async fn service(
        &self,
        service: &str,
        domain: &Domain,
        direct_tls: bool,
    ) -> Result<Option<Vec<Srv>>, Reason> {
        let name = format!("{service}._tcp.{}", absolute(&domain.ascii()));
        let Ok(name) = Name::from_ascii(&name) else {
            return Err(Reason::Dns("it is not a name that DNS can carry".into()));
        };
        let found = match self.inner.srv_lookup(name).await {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() => return Ok(None),
            Err(error) => return Err(Reason::Dns(format!("{service} lookup failed: {error}"))),
        };
        let mut exists = false;
        let mut records = Vec::new();
        for record in found.answers() {
            let RData::SRV(srv) = &record.data else {
                continue;
            };
            exists = true;
            if !srv.target.is_root() {
                records.push(Srv {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: srv.target.to_ascii().into(),
                    direct_tls,
                });
            }
        }
        Ok(exists.then_some(records))
    }
}

/// One SRV record, and of which service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Srv {
    priority: u16,
    weight: u16,
    port: u16,
    target: Box<str>,
    direct_tls: bool,
}

impl Srv {
    fn rank(&self) -> (u16, u16) {
        (self.priority, self.weight)
    }
}

/// A target that no table of the configuration tells more about.
fn dns(place: Place, direct_tls: bool, innermost: Reach) -> Target {
    Target { place, direct_tls, innermost, proxy_protocol: ProxyProtocol::Off }
}

/// RFC 2782's order: by priority; among equals at random, by weight, those of weight 0 having a
/// small chance. `rank` is priority and weight; `dice(n)` gives a number from 0 to n, both included.
pub(super) fn order<T>(
    mut records: Vec<T>,
    rank: impl Fn(&T) -> (u16, u16),
    dice: &mut dyn FnMut(u32) -> u32,
) -> Vec<T> {
    let priority = |record: &T| rank(record).0;
    let weight = |record: &T| u32::from(rank(record).1);
    records.sort_by_key(|record| (priority(record), weight(record) != 0));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(first) = records.first().map(priority) {
        let equals = records.iter().take_while(|record| priority(record) == first).count();
        let chosen = if equals == 1 {
            0
        } else {
            let thrown = dice(records[..equals].iter().map(weight).sum());
            let mut running = 0;
            let chosen = records[..equals].iter().position(|record| {
                running += weight(record);
                running >= thrown
            });
            chosen.unwrap_or(equals - 1)
        };
        ordered.push(records.remove(chosen));
    }
    ordered
}

/// A number from 0 to `most`. Without randomness the order is merely not spread.
pub(super) fn throw(most: u32) -> u32 {
    let random = u64::from(getrandom::u32().unwrap_or(0));
    u32::try_from((random * (u64::from(most) + 1)) >> 32).unwrap_or(most)
}

/// Dice that never show 0 unless there is nothing else: then the shares of [`order`] are those of
/// the weights to the last one. RFC 2782's own are only nearly so, and far from it where weights
/// are small, as people write them.
fn exact(mut dice: impl FnMut(u32) -> u32) -> impl FnMut(u32) -> u32 {
    move |most| if most == 0 { 0 } else { 1 + dice(most - 1) }
}

fn absolute(name: &str) -> Box<str> {
    format!("{name}.").into()
}

/// RFC 6120 §14.7.
const CLIENT_PORT: u16 = 5222;
/// What servers use for direct TLS by custom; no standard assigns it.
const DIRECT_TLS_PORT: u16 = 5223;
const MOST_TARGETS: usize = 16;
const MOST_ADDRESSES: usize = 8;
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn srv(target: &str, priority: u16, weight: u16) -> Srv {
        Srv { priority, weight, port: 5222, target: target.into(), direct_tls: false }
    }

    fn ordered(records: &[Srv], throws: &[u32]) -> String {
        let mut throws = throws.iter();
        let mut dice = |most: u32| *throws.next().unwrap_or(&0).min(&most);
        order(records.to_vec(), Srv::rank, &mut dice).iter().map(|record| &*record.target).collect()
    }

    /// UP-06, RFC 2782: a lower priority goes first, whatever its weight and its service.
    #[test]
    fn priority_goes_before_weight() {
        let mut records = [srv("a", 10, 60_000), srv("b", 5, 0), srv("c", 20, 1)];
        records[0].direct_tls = true;
        assert_eq!(ordered(&records, &[0, 0, 0]), "bac");
        assert_eq!(ordered(&records, &[u32::MAX, u32::MAX, u32::MAX]), "bac");
    }

    /// UP-06, RFC 2782: the first record whose running sum reaches the number thrown.
    #[test]
    fn weight_decides_by_running_sum() {
        let records = [srv("a", 1, 10), srv("b", 1, 20), srv("c", 1, 30)];
        assert_eq!(ordered(&records, &[0, 0]), "abc");
        assert_eq!(ordered(&records, &[10, 20]), "abc");
        assert_eq!(ordered(&records, &[11, 11]), "bca");
        assert_eq!(ordered(&records, &[31, 10]), "cab");
        assert_eq!(ordered(&records, &[60, 30]), "cba");
    }

    /// UP-06, RFC 2782: weight 0 stands in front, so only a 0 chooses it while others have weight.
    #[test]
    fn weight_zero_has_a_small_chance() {
        let records = [srv("a", 1, 1), srv("z", 1, 0), srv("b", 1, 1)];
        assert_eq!(ordered(&records, &[0, 0, 0]), "zab");
        assert_eq!(ordered(&records, &[1, 0, 0]), "azb");
        assert_eq!(ordered(&records, &[2, 1, 0]), "baz");
        assert_eq!(ordered(&[srv("y", 1, 0), srv("z", 1, 0)], &[0, 0]), "yz");
    }

    /// UP-06: over many throws the shares are those of the weights.
    #[test]
    fn shares_follow_the_weights() {
        let records = [srv("a", 1, 1), srv("b", 1, 3)];
        let first_b = (0..4_000)
            .filter(|_| &*order(records.to_vec(), Srv::rank, &mut throw)[0].target == "b")
            .count();
        // Numbers 0 and 1 of 0..=4 choose `a`: RFC 2782's own small bias.
        assert!((2_200..2_600).contains(&first_b), "{first_b}");
    }

    /// Configured servers get what their weights say, however small these are, and one of weight 0
    /// gets nothing while another has some.
    #[test]
    fn shares_of_configured_servers_are_exact() {
        let shares = |weights: &[u16]| -> Vec<u32> {
            let records: Vec<_> = weights.iter().map(|&weight| srv("x", 1, weight)).collect();
            let sum = u32::from(weights.iter().sum::<u16>()).max(1);
            let mut firsts = vec![0; weights.len()];
            for thrown in 0..sum {
                let all = records.iter().enumerate().collect();
                let rank = |(_, record): &(usize, &Srv)| record.rank();
                let mut throws = [thrown].into_iter();
                let dice = |most: u32| throws.next().unwrap_or(0).min(most);
                firsts[order(all, rank, &mut exact(dice))[0].0] += 1;
            }
            firsts
        };
        assert_eq!(shares(&[1, 1]), [1, 1]);
        assert_eq!(shares(&[1, 3]), [1, 3]);
        assert_eq!(shares(&[0, 1]), [0, 1]);
        assert_eq!(shares(&[2, 0, 5]), [2, 0, 5]);
        assert_eq!(shares(&[0, 0]).iter().sum::<u32>(), 1);
    }

    /// SEC-22: which addresses a name from DNS may not lead to.
    #[test]
    fn addresses_inside_are_known() {
        for (text, reach) in [
            ("8.8.8.8", Reach::Public),
            ("100.128.0.1", Reach::Public),
            ("2a00:1450::1", Reach::Public),
            ("10.1.2.3", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("192.168.0.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd00::1", Reach::Private),
            ("fec0::1", Reach::Private),
            ("::ffff:10.0.0.1", Reach::Private),
            ("64:ff9b::a00:1", Reach::Private),
            ("2002:a00:1::1", Reach::Private),
            ("127.9.9.9", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("169.254.169.254", Reach::Special),
            ("::ffff:169.254.169.254", Reach::Special),
            ("0.0.0.0", Reach::Special),
            ("::", Reach::Special),
            ("224.0.0.1", Reach::Special),
            ("255.255.255.255", Reach::Special),
            ("198.18.0.1", Reach::Special),
            ("fe80::1", Reach::Special),
            ("ff02::1", Reach::Special),
        ] {
            assert_eq!(Reach::of(text.parse().unwrap()), reach, "{text}");
        }
    }
}

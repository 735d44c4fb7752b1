//! SEC-21: the PROXY header that tells a server whose connection it has before it.
//!
//! The words are those of HAProxy's `proxy-protocol.txt`; the crate `proxy-header` writes them. Here
//! is only what to say, and the checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_header::{ProxiedAddress, ProxyHeader, SslInfo, Tlv};

use crate::proto::domain::Domain;

/// The header's version, if there is one; for one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// No header.
    #[default]
    Off,
    /// One line of text: the addresses and no more.
    V1,
    /// Binary: the XMPP domain, whether the client has TLS, and the session's number as well.
    V2,
}

/// Whose connection to the server it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The client's address, as far as it can be trusted (SEC-19, SEC-20).
    pub address: Option<SocketAddr>,
    /// The address that the client connected to; if it is not known, the server's own is told.
    pub local: Option<SocketAddr>,
    /// The client has TLS towards us, or towards the proxy before us.
    pub secure: bool,
    /// The number that the session has in the log.
    pub id: u64,
}

/// No address, of the same family.
fn unspecified(address: SocketAddr) -> SocketAddr {
    let none = if address.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    SocketAddr::new(none, 0)
}

impl ProxyProtocol {
    /// The bytes before everything else on a connection to `server`, the address of a TCP server.
    pub(super) fn header(
        self,
        client: &Client,
        domain: &Domain,
        server: Option<SocketAddr>,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Between two Unix sockets nobody has another address than the client.
        let destination = client.local.or(server).or_else(|| client.address.map(unspecified));
        let addresses = client.address.zip(destination).map(|(source, destination)| {
            let (source, destination) = one_family(source, destination);
            ProxiedAddress::stream(source, destination)
        });
        let written = match (self, addresses) {
            (Self::Off, _) => Ok(()),
            // UNKNOWN, and LOCAL: the connection is taken for ours.
            (Self::V1, None) => ProxyHeader::with_local().encode_v1(&mut bytes),
            (Self::V2, None) => ProxyHeader::with_local().encode_v2(&mut bytes),
            (Self::V1, Some(addresses)) => {
                ProxyHeader::with_address(addresses).encode_v1(&mut bytes)
            }
            (Self::V2, Some(addresses)) => {
                let mut header = ProxyHeader::with_address(addresses);
                header.append_tlv(Tlv::Authority(domain.as_str().into()));
                header.append_tlv(Tlv::UniqueId(format!("{:012x}", client.id).into_bytes().into()));
                if client.secure {
                    // It has shown no certificate, so none was verified: not zero.
                    header.append_tlv(Tlv::Ssl(SslInfo::new(true, false, false, 1)));
                }
                // The last one, for `seal`.
                header.append_tlv(Tlv::Crc32c(0));
                header.encode_v2(&mut bytes).map(|()| seal(&mut bytes))
            }
        };
        debug_assert!(written.is_ok(), "addresses of one family, a domain of 1023 bytes at most");
        bytes
    }
}

/// Both addresses in the family of one header: IPv4 only if both are that, and else as IPv6, an
/// IPv4 address mapped (RFC 4291 §2.5.5.2).
fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mapped = |address: SocketAddr| {
        let ip: Ipv6Addr = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        SocketAddr::new(ip.into(), address.port())
    };
    match (canonical(source), canonical(destination)) {
        (source, destination) if source.is_ipv4() == destination.is_ipv4() => (source, destination),
        (source, destination) => (mapped(source), mapped(destination)),
    }
}

/// Writes the checksum into the four last bytes, which have to be zero.
fn seal(header: &mut [u8]) {
    let sum = crc32c(header).to_be_bytes();
    if let Some(place) = header.last_chunk_mut() {
        *place = sum;
    }
}

/// RFC 4960 Appendix B. A header is short and there is one for a session: bit by bit will do.
fn crc32c(bytes: &[u8]) -> u32 {
    /// The polynomial of Castagnoli, its bits reversed.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (POLYNOMIAL * (sum & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_header::ParseConfig;

    fn client(address: &str, local: &str) -> Client {
        Client {
            address: address.parse().ok(),
            local: local.parse().ok(),
            secure: true,
            id: 0x0100_0000_002a,
        }
    }

    fn header(version: ProxyProtocol, client: &Client) -> Vec<u8> {
        let domain = Domain::parse("bücher.example").unwrap();
        version.header(client, &domain, "192.0.2.9:5222".parse().ok())
    }

    fn line(client: &Client) -> String {
        String::from_utf8(header(ProxyProtocol::V1, client)).unwrap()
    }

    /// SEC-21: one line; families are not mixed, and an IPv4 client of a socket that speaks both is
    /// one of IPv4.
    #[test]
    fn version_1_is_a_line() {
        for (address, local, expected) in [
            ("198.51.100.7:1234", "192.0.2.1:443", "TCP4 198.51.100.7 192.0.2.1 1234 443"),
            ("[2001:db8::7]:1234", "[2001:db8::1]:443", "TCP6 2001:db8::7 2001:db8::1 1234 443"),
            ("[2001:db8::7]:1", "192.0.2.1:443", "TCP6 2001:db8::7 ::ffff:192.0.2.1 1 443"),
            ("198.51.100.7:1", "[2001:db8::1]:443", "TCP6 ::ffff:198.51.100.7 2001:db8::1 1 443"),
            ("[::ffff:198.51.100.7]:1", "[::ffff:192.0.2.1]:2", "TCP4 198.51.100.7 192.0.2.1 1 2"),
            ("[2001:db8::7]:1", "", "TCP6 2001:db8::7 ::ffff:192.0.2.9 1 5222"),
            ("198.51.100.7:1", "", "TCP4 198.51.100.7 192.0.2.9 1 5222"),
            ("", "192.0.2.1:443", "UNKNOWN"),
        ] {
            assert_eq!(line(&client(address, local)), format!("PROXY {expected}\r\n"));
        }
        assert!(header(ProxyProtocol::Off, &client("198.51.100.7:1", "")).is_empty());
    }

    /// SEC-21: authority, TLS, a unique number and a checksum that holds.
    #[test]
    fn version_2_says_more() {
        let bytes = header(ProxyProtocol::V2, &client("198.51.100.7:1234", "192.0.2.1:443"));
        let (read, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
        assert_eq!(length, bytes.len());
        let addresses = read.proxied_address().unwrap();
        assert_eq!(addresses.source, "198.51.100.7:1234".parse().unwrap());
        assert_eq!(addresses.destination, "192.0.2.1:443".parse().unwrap());
        assert_eq!(read.authority(), Some("bücher.example"));
        assert_eq!(read.unique_id(), Some(&b"01000000002a"[..]));
        assert!(read.ssl().unwrap().client_ssl());
        let (sealed, sum) = bytes.split_at(bytes.len() - 4);
        assert_eq!(sum, crc32c(&[sealed, &[0; 4]].concat()).to_be_bytes());

        let plain = Client { secure: false, ..client("[2001:db8::7]:1", "192.0.2.1:443") };
        let bytes = header(ProxyProtocol::V2, &plain);
        let (read, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
        assert_eq!(read.ssl(), None);
        assert_eq!(
            read.proxied_address().unwrap().destination,
            "[::ffff:192.0.2.1]:443".parse().unwrap()
        );
    }

    /// SEC-21: without a client the connection is ours. The bytes are the specification's.
    #[test]
    fn version_2_without_a_client_is_local() {
        let expected = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
        assert_eq!(header(ProxyProtocol::V2, &client("", "192.0.2.1:443")), expected);
    }

    /// RFC 3720 Appendix B.4, and the check value of the catalogues.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}

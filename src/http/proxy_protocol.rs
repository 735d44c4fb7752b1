//! The PROXY protocol, read: who the client of a load balancer is that works below HTTP (SEC-20;
//! HAProxy's `proxy-protocol.txt`, versions 1 and 2).
//!
//! The header is the beginning of the connection, before TLS and HTTP, and not a byte behind it is
//! read: what follows belongs to whoever reads next. So a header of version 2 is read by its length,
//! and one of version 1 is looked at before it is taken. Parsing is `proxy-header`'s.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use proxy_header::{ParseConfig, Protocol, ProxiedAddress};
use tokio::io::AsyncReadExt as _;

use crate::io::Io;
use crate::metrics::ProxyHeader as Outcome;

/// The beginning of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\x00\r\nQUIT\n";
/// The beginning of version 1.
const PREFIX: &[u8; 6] = b"PROXY ";
/// Version 1 with its line end: "a 108-byte buffer is always enough" with the zero behind it.
const LINE: usize = 107;
/// Bytes behind the signature of version 2: version and command, family and protocol, length.
const FIXED: usize = 4;
/// Bytes behind those that are read: addresses and TLVs. Two paths of Unix sockets are 216, the names
/// of a client's certificate some hundreds more.
const BLOCK: usize = 4096;

/// What a header says. Only as trustworthy as who sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proxied {
    /// Who connected to the proxy; `None` if that is not known or the connection is the proxy's own
    /// (UNKNOWN, LOCAL).
    pub client: Option<SocketAddr>,
    /// The proxy's address that it connected to; there if `client` is.
    pub destination: Option<SocketAddr>,
    /// Whether by TLS, which only version 2 may tell.
    pub secure: Option<bool>,
}

/// Reads the header at the beginning of `socket`, within `patience`.
///
/// # Errors
/// What it is instead; the connection is then of no use.
pub async fn read(socket: &mut Io, patience: Duration) -> Result<Proxied, Outcome> {
    tokio::time::timeout(patience, header(socket)).await.unwrap_or(Err(Outcome::Late))
}

async fn header(socket: &mut Io) -> Result<Proxied, Outcome> {
    // Both versions are longer than this.
    let mut start = [0; SIGNATURE.len()];
    let mut filled = 0;
    while filled < start.len() {
        let count = socket.read(&mut start[filled..]).await.map_err(ended)?;
        filled += count;
        let so_far = &start[..filled];
        let is_line = PREFIX.starts_with(so_far) || so_far.starts_with(PREFIX);
        if !is_line && !SIGNATURE.starts_with(so_far) {
            return Err(Outcome::Malformed);
        }
        if count == 0 {
            return Err(Outcome::Closed);
        }
    }
    if start == *SIGNATURE { binary(socket).await } else { line(socket, &start).await }
}

/// Version 2.
async fn binary(socket: &mut Io) -> Result<Proxied, Outcome> {
    let mut header = Vec::from(SIGNATURE);
    let mut fixed = [0; FIXED];
    socket.read_exact(&mut fixed).await.map_err(ended)?;
    let [command, _, high, low] = fixed;
    // LOCAL and PROXY; others "must be dropped".
    if !matches!(command, 0x20 | 0x21) {
        return Err(Outcome::Malformed);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > BLOCK {
        return Err(Outcome::TooLong);
    }
    header.extend(fixed);
    header.resize(SIGNATURE.len() + FIXED + length, 0);
    let block = &mut header[SIGNATURE.len() + FIXED..];
    socket.read_exact(block).await.map_err(ended)?;
    if command == 0x20 {
        // "The receiver must […] discard the protocol block including the family".
        return Ok(Proxied::default());
    }
    parse(&header)
}

/// Version 1, of which `start` has been read.
async fn line(socket: &mut Io, start: &[u8]) -> Result<Proxied, Outcome> {
    let mut header = Vec::from(start);
    let mut ahead = [0; LINE];
    loop {
        let room = &mut ahead[..LINE - header.len()];
        if room.is_empty() {
            return Err(Outcome::TooLong);
        }
        let own = match socket {
            Io::Tcp(socket) => {
                let seen = socket.peek(room).await.map_err(ended)?;
                if seen == 0 {
                    return Err(Outcome::Closed);
                }
                let end = room[..seen].iter().position(|byte| *byte == b'\n');
                // They are there, so that they are all taken at once.
                &mut room[..end.map_or(seen, |end| end + 1)]
            }
            // Nobody lets us look ahead in a Unix socket; it is one line a connection.
            Io::Unix(_) | Io::Counted(_) | Io::Tls(_) => &mut room[..1],
        };
        socket.read_exact(own).await.map_err(ended)?;
        header.extend_from_slice(own);
        if own.ends_with(b"\n") {
            return parse(&header);
        }
    }
}

/// A whole header and nothing behind it.
fn parse(header: &[u8]) -> Result<Proxied, Outcome> {
    let config = ParseConfig { include_tlvs: true, ..ParseConfig::default() };
    let (parsed, length) =
        proxy_header::ProxyHeader::parse(header, config).map_err(|_| Outcome::Malformed)?;
    if length != header.len() {
        return Err(Outcome::Malformed);
    }
    let secure = parsed.ssl().map(|ssl| ssl.client_ssl());
    Ok(match parsed.proxied_address() {
        Some(&ProxiedAddress { protocol: Protocol::Stream, source, destination }) => Proxied {
            client: Some(canonical(source)),
            destination: Some(canonical(destination)),
            secure,
        },
        // UNKNOWN, Unix sockets, and what came as a datagram, which this connection did not.
        _ => Proxied { secure, ..Proxied::default() },
    })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn ended(_: io::Error) -> Outcome {
    Outcome::Closed
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// What is read of these pieces, each sent when the one before has left, and what is left over;
    /// it is the same over TCP and over a Unix socket.
    async fn read_of(pieces: &[&[u8]], patience: Duration) -> (Result<Proxied, Outcome>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let over_tcp = read_between(client, Io::Tcp(server), pieces, patience).await;
        let (client, server) = UnixStream::pair().unwrap();
        let over_unix = read_between(client, Io::Unix(server), pieces, patience).await;
        assert_eq!(over_tcp, over_unix);
        over_tcp
    }

    async fn read_between(
        mut client: impl AsyncRead + AsyncWrite + Unpin,
        mut socket: Io,
        pieces: &[&[u8]],
        patience: Duration,
    ) -> (Result<Proxied, Outcome>, Vec<u8>) {
        let sending = async {
            for piece in pieces {
                // What is refused may be reset.
                let _ = client.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            client
        };
        let reading = async {
            let result = read(&mut socket, patience).await;
            (result, socket)
        };
        let (mut client, (result, mut socket)) = tokio::join!(sending, reading);
        let mut rest = Vec::new();
        if result.is_ok() {
            client.shutdown().await.unwrap();
            socket.read_to_end(&mut rest).await.unwrap();
        }
        (result, rest)
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, block].concat()
    }

    fn proxied(client: &str, destination: &str, secure: Option<bool>) -> Proxied {
        Proxied {
            client: Some(client.parse().unwrap()),
            destination: Some(destination.parse().unwrap()),
            secure,
        }
    }

    const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x67, 1, 187];

    fn v6() -> Vec<u8> {
        let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        [&octets("2001:db8::1")[..], &octets("2001:db8::2"), &[0x12, 0x67, 1, 187]].concat()
    }

    /// PP2_TYPE_SSL with these flags of the client and the name of a version.
    fn ssl(client: u8) -> Vec<u8> {
        let value = [&[client, 0, 0, 0, 0, 0x21, 0, 7][..], b"TLSv1.3"].concat();
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[0x20][..], &length, &value].concat()
    }

    /// SEC-20: both versions and families; LOCAL and UNKNOWN tell nothing; TLVs are skipped but for
    /// whether there is TLS. Not a byte behind is read, however it is cut.
    #[actix_rt::test]
    async fn headers_are_read_and_nothing_behind_them() {
        let both = proxied("192.0.2.1:4711", "198.51.100.7:443", None);
        let both6 = proxied("[2001:db8::1]:4711", "[2001:db8::2]:443", None);
        let none = Proxied::default();
        let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE - 16));
        assert_eq!(long.len(), LINE);
        let tlvs = [V4, &[4, 0, 3, 0, 0, 0, 5, 0, 2, 1, 2], &ssl(1)].concat();
        let plain = [V4, &ssl(0)].concat();
        let many = [V4, &[4, 0x0f, 0], &[0; 0xf00]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\r\n".to_vec(), both),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n".to_vec(), both6),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.7 4711 443\r\n".to_vec(), both),
            (b"PROXY UNKNOWN\r\n".to_vec(), none),
            (b"PROXY UNKNOWN a b c d e f g\r\n".to_vec(), none),
            (long.into_bytes(), none),
            (v2(0x21, 0x11, V4), both),
            (v2(0x21, 0x21, &v6()), both6),
            (v2(0x21, 0x11, &tlvs), Proxied { secure: Some(true), ..both }),
            (v2(0x21, 0x11, &plain), Proxied { secure: Some(false), ..both }),
            (v2(0x21, 0x11, &many), both),
            (v2(0x20, 0x00, &[]), none),
            (v2(0x20, 0x11, &[1, 2, 3]), none),
            (v2(0x21, 0x00, &[]), none),
            (v2(0x21, 0x00, &[1, 2, 3, 4]), none),
            (v2(0x21, 0x12, V4), none),
            (v2(0x21, 0x31, &[0; 216]), none),
        ] {
            let whole = [&header[..], b"\r\nGET"].concat();
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            let (left, right) = whole.split_at(14);
            for pieces in [&[&whole[..]][..], &bytes, &[left, right], &[&header, b"\r\nGET"]] {
                let (result, rest) = read_of(pieces, PATIENCE).await;
                assert_eq!(result, Ok(expected), "{:?}", String::from_utf8_lossy(&header));
                assert_eq!(rest, b"\r\nGET", "{:?}", String::from_utf8_lossy(&header));
            }
        }
    }

    /// SEC-20: what is no header, or too long, ends the connection as soon as that is certain.
    #[actix_rt::test]
    async fn other_beginnings_are_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE - 15));
        assert_eq!(long.len(), LINE + 1);
        for (bytes, expected) in [
            (b"G".to_vec(), Outcome::Malformed),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Outcome::Malformed),
            (b"PROXY\tTCP4 192.0.2.1 198.51.100.7 4711 443\r\n".to_vec(), Outcome::Malformed),
            (b"\r\n\r\n\x00\r\nQUIX".to_vec(), Outcome::Malformed),
            (b"\x16\x03\x01".to_vec(), Outcome::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 4711\r\n".to_vec(), Outcome::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 65536\r\n".to_vec(), Outcome::Malformed),
            (b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(), Outcome::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 1 2\n".to_vec(), Outcome::Malformed),
            (b"PROXY UDP4 192.0.2.1 198.51.100.7 1 2\r\n".to_vec(), Outcome::Malformed),
            (b"PROXY UNKNOWN\n....\r\n".to_vec(), Outcome::Malformed),
            (long.into_bytes(), Outcome::TooLong),
            (format!("PROXY TCP4 {}", "1".repeat(200)).into_bytes(), Outcome::TooLong),
            (v2(0x11, 0x11, V4), Outcome::Malformed),
            (v2(0x22, 0x11, V4), Outcome::Malformed),
            (v2(0x21, 0x41, V4), Outcome::Malformed),
            (v2(0x21, 0x13, V4), Outcome::Malformed),
            (v2(0x21, 0x11, &V4[..11]), Outcome::Malformed),
            (v2(0x21, 0x21, V4), Outcome::Malformed),
            (v2(0x21, 0x11, &[0; BLOCK + 1]), Outcome::TooLong),
        ] {
            let (result, _) = read_of(&[&bytes], PATIENCE).await;
            assert_eq!(result, Err(expected), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    /// SEC-20: the time holds for the whole header, and an early end is one.
    #[actix_rt::test]
    async fn headers_have_their_time() {
        let soon = Duration::from_millis(20);
        for half in [&b""[..], b"PROXY TCP4 192", &v2(0x21, 0x11, V4)[..20]] {
            let (result, _) = read_of(&[half], soon).await;
            assert_eq!(result, Err(Outcome::Late), "{half:?}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for half in [&b""[..], b"PROXY TCP4 192", &v2(0x21, 0x11, V4)[..20]] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(half).await.unwrap();
            drop(client);
            let (socket, _) = listener.accept().await.unwrap();
            assert_eq!(
                read(&mut Io::Tcp(socket), PATIENCE).await,
                Err(Outcome::Closed),
                "{half:?}"
            );
        }
    }
}

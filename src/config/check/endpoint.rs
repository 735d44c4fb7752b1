//! How servers, sockets and hosts are written.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::{Checker, quoted};
use crate::config::model::ServerAddress;
use crate::proto::domain::Domain;

impl Checker<'_> {
    pub(super) fn socket_address(&mut self, path: &[&str], text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.expected(
                path,
                "an IP address (not a name) and a port, such as \"127.0.0.1:5280\" or \"[::1]:5280\"",
                quoted(text),
            );
        }
        address
    }
}

/// `xmpp://host:port`, `xmpps://host:port`, `host:port`, `unix:/path`. The port may be left out.
pub(super) fn parse_server(text: &str) -> Result<ServerAddress, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(ServerAddress::Unix);
    }
    match text.split_once("://") {
        None | Some(("xmpp", _)) => {
            let (host, port) = host_port(text.strip_prefix("xmpp://").unwrap_or(text), 5222)?;
            Ok(ServerAddress::Tcp { host, port })
        }
        Some(("xmpps", rest)) => {
            let (host, port) = host_port(rest, 5223)?;
            Ok(ServerAddress::DirectTls { host, port })
        }
        Some(_) => Err("the scheme is not one of these"),
    }
}

/// The path of a Unix socket.
pub(super) fn unix_path(path: &str) -> Result<PathBuf, &'static str> {
    // sockaddr_un has room for 108 bytes, the last one 0.
    match path.len() {
        _ if !path.starts_with('/') => Err("the path must be absolute"),
        108.. => Err("the path is longer than a socket's may be"),
        _ => Ok(PathBuf::from(path)),
    }
}

pub(super) fn host_port(text: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
        let host: Ipv6Addr = host.parse().map_err(|_| "the brackets hold no IPv6 address")?;
        (host.to_string(), port)
    } else {
        let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        if text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) {
            return Err("an IPv6 address is written in brackets");
        }
        let domain = Domain::parse(host).map_err(|_| "the host is not a name or an address")?;
        (domain.ascii().into_owned(), port)
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| "the port is not a number from 1 to 65535")?,
        None if port.is_empty() => default,
        None => return Err("something other than a port follows the host"),
    };
    if port == 0 {
        return Err("the port is not a number from 1 to 65535");
    }
    Ok((host, port))
}

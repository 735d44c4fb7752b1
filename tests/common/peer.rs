//! An XMPP server that a test plays by hand, so that every byte can be seen and sent when it is
//! time.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{PATIENCE, Result};

/// The server of `example.test`.
pub struct Peer {
    /// Where it listens.
    pub listener: TcpListener,
    /// The address of that.
    pub address: SocketAddr,
}

impl Peer {
    /// Listens on a port of loopback.
    pub async fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The configuration of its domain.
    pub fn toml(&self) -> String {
        format!("[domains.\"example.test\"]\nservers = [\"xmpp://{}\"]\n", self.address)
    }

    /// The next connection of the gateway.
    pub async fn accept(&self) -> Result<Link> {
        let accepted = timeout(PATIENCE, self.listener.accept()).await;
        let (stream, _) = accepted.context("no upstream connection came")??;
        Ok(Link { stream, read: String::new() })
    }
}

/// One upstream connection.
pub struct Link {
    /// The socket.
    pub stream: TcpStream,
    read: String,
}

impl Link {
    /// Sends.
    pub async fn write(&mut self, xml: &str) -> Result {
        self.stream.write_all(xml.as_bytes()).await?;
        Ok(())
    }

    /// Reads until `text` has come, and takes everything up to its end.
    pub async fn until(&mut self, text: &str) -> Result<String> {
        loop {
            if let Some(at) = self.read.find(text) {
                return Ok(self.read.drain(..at + text.len()).collect());
            }
            let mut chunk = [0; 16 * 1024];
            let n =
                timeout(PATIENCE, self.stream.read(&mut chunk)).await.with_context(|| {
                    format!("waited in vain for {text}; there is {:?}", self.read)
                })??;
            ensure!(n > 0, "end of file while waiting for {text}; there is {:?}", self.read);
            self.read.push_str(std::str::from_utf8(&chunk[..n])?);
        }
    }

    /// What comes until the end of the connection.
    pub async fn remainder(mut self) -> Result<String> {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest))
            .await
            .context("the upstream connection was not closed")??;
        Ok(self.read + std::str::from_utf8(&rest)?)
    }
}

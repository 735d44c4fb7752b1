//! TLS for clients that speak none: listeners which carry what comes to the gateway over TLS, as it
//! is or as requests of one HTTP/2 connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{PATIENCE, Result};

/// A TLS client that trusts the authority in this PEM file.
pub fn client(
    ca: &Path,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).map_err(|error| anyhow!("{error}"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A connection after its handshake.
pub async fn connect(
    config: &Arc<ClientConfig>,
    to: SocketAddr,
    name: &str,
) -> Result<TlsStream<TcpStream>> {
    connect_from(config, Ipv4Addr::UNSPECIFIED, to, name).await
}

/// The same from a loopback address of one's own choice.
pub async fn connect_from(
    config: &Arc<ClientConfig>,
    from: Ipv4Addr,
    to: SocketAddr,
    name: &str,
) -> Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    if !from.is_unspecified() {
        socket.bind(SocketAddr::from((from, 0)))?;
    }
    let socket = socket.connect(to).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned())?;
    let handshake = TlsConnector::from(Arc::clone(config)).connect(name, socket);
    Ok(timeout(PATIENCE, handshake).await.context("the handshake did not end")??)
}

/// Carries every connection over one of TLS.
pub async fn tls(config: &Arc<ClientConfig>, to: SocketAddr, name: &str) -> Result<SocketAddr> {
    tls_from(config, Ipv4Addr::UNSPECIFIED, to, name).await
}

/// The same from a loopback address of one's own choice.
pub async fn tls_from(
    config: &Arc<ClientConfig>,
    from: Ipv4Addr,
    to: SocketAddr,
    name: &str,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (config, name) = (Arc::clone(config), name.to_owned());
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let (config, name) = (Arc::clone(&config), name.clone());
            tokio::spawn(async move {
                let mut outer = connect_from(&config, from, to, &name).await?;
                tokio::io::copy_bidirectional(&mut inner, &mut outer).await?;
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

/// One HTTP/2 connection.
pub struct Http2 {
    /// To send requests; to be cloned.
    pub requests: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    /// Connects, with the client's own settings as they are.
    pub async fn connect(config: &Arc<ClientConfig>, to: SocketAddr, name: &str) -> Result<Self> {
        Self::over(connect(config, to, name).await?).await
    }

    /// Over a connection that stands.
    pub async fn over(stream: TlsStream<TcpStream>) -> Result<Self> {
        ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "h2 was not chosen");
        let (requests, connection) = h2::client::handshake(stream).await?;
        Ok(Self { requests, driver: tokio::spawn(connection) })
    }

    /// Waits for the end of the connection.
    pub async fn ended(self) -> Result {
        drop(self.requests);
        timeout(PATIENCE, self.driver).await.context("the connection did not end")??.ok();
        Ok(())
    }

    /// Ends it without a word, whatever is open.
    pub fn lose(self) {
        self.driver.abort();
    }
}

/// Carries the requests of every connection over one HTTP/2 connection. A connection that ends while
/// a request is open resets that stream.
pub struct Multiplexer {
    /// Where clients connect.
    pub address: SocketAddr,
    current: Arc<Mutex<Http2>>,
}

impl Multiplexer {
    /// Connects and listens.
    pub async fn new(connection: Http2) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let current = Arc::new(Mutex::new(connection));
        let shared = Arc::clone(&current);
        tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                tokio::spawn(carry(inner, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, current })
    }

    /// Carries what comes from now on over this connection; the one until now is lost.
    pub fn replace(&self, connection: Http2) -> Result {
        let mut current = self.current.lock().map_err(|_| anyhow!("a test panicked here"))?;
        std::mem::replace(&mut *current, connection).lose();
        Ok(())
    }
}

async fn carry(mut inner: TcpStream, connection: Arc<Mutex<Http2>>) -> Result {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|window: &[u8]| window == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(inner.read_buf(&mut read).await? > 0, "over");
        };
        let head = String::from_utf8(read[..end].to_vec())?;
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let method = words.next().context("no method")?;
        let path = words.next().context("no path")?;
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("https://gateway.test{path}"))
            .version(http::Version::HTTP_2);
        let mut length = 0;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse()?;
            }
            if !name.eq_ignore_ascii_case("host") {
                request = request.header(name, value);
            }
        }
        while read.len() < end + length {
            ensure!(inner.read_buf(&mut read).await? > 0, "over");
        }
        let body = Bytes::copy_from_slice(&read[end..end + length]);
        read.drain(..end + length);
        let requests = connection.lock().map_err(|_| anyhow!("a test panicked"))?.requests.clone();
        let (response, mut stream) =
            requests.ready().await?.send_request(request.body(())?, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        let answer = async {
            let (head, mut body) = response.await?.into_parts();
            let mut bytes = Vec::new();
            while let Some(piece) = body.data().await {
                let piece = piece?;
                body.flow_control().release_capacity(piece.len())?;
                bytes.extend_from_slice(&piece);
            }
            anyhow::Ok((head, bytes))
        };
        let (head, body) = tokio::select! {
            answer = answer => answer?,
            _ = inner.read_buf(&mut read) => {
                stream.send_reset(h2::Reason::CANCEL);
                return Ok(());
            }
        };
        let mut text = format!("HTTP/1.1 {} Over HTTP/2\r\n", head.status.as_u16());
        for (name, value) in &head.headers {
            text += &format!("{name}: {}\r\n", value.to_str()?);
        }
        inner.write_all(&[text.as_bytes(), b"\r\n", &body].concat()).await?;
    }
}

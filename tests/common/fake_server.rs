//! An XMPP server that does what a script says, on loopback TCP or a Unix socket, and writes down
//! what it hears.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::Notify;
use tokio_rustls::LazyConfigAcceptor;

/// One thing the server does.
#[derive(Clone)]
pub(crate) enum Do {
    /// Reads until this text has come, counted from the last text that was awaited.
    Await(&'static str),
    /// Writes.
    Say(String),
    /// Reads to the end of a line and no further.
    Line,
    /// Takes the connection into TLS.
    Tls(Arc<ServerConfig>),
    /// Closes the connection.
    Close,
    /// Reads on and says nothing.
    Listen,
}

/// What one connection did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// Every byte before TLS.
    pub(crate) clear: String,
    /// The same, where it is not text.
    pub(crate) bytes: Vec<u8>,
    /// Every byte within TLS.
    pub(crate) secret: String,
    /// The ClientHello's server name.
    pub(crate) sni: Option<String>,
    /// The ClientHello's ALPN names.
    pub(crate) alpn: Vec<String>,
    /// The client showed a certificate.
    pub(crate) client_certificate: bool,
    /// The handshake failed, as the TLS library puts it.
    pub(crate) handshake_error: Option<String>,
    /// The client has closed its side.
    pub(crate) closed: bool,
}

/// A running server.
pub(crate) struct FakeServer {
    /// Where it listens; unspecified for a Unix socket.
    pub(crate) address: SocketAddr,
    book: Arc<Book>,
    _reserved: Option<TcpSocket>,
}

impl FakeServer {
    /// Plays the scripts to the connections in turn, the last one to all that follow.
    pub(crate) async fn start(scripts: Vec<Vec<Do>>) -> Self {
        Self::start_at("127.0.0.1:0", scripts).await
    }

    /// The same on another loopback address.
    pub(crate) async fn start_at(address: &str, scripts: Vec<Vec<Do>>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let book = Arc::new(Book::default());
        let log = Arc::clone(&book);
        tokio::spawn(async move {
            let mut scripts = Scripts::new(scripts);
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(play(stream, scripts.next(), Log::new(&log)));
            }
        });
        Self { address, book, _reserved: None }
    }

    pub(crate) async fn start_unix(path: &Path, scripts: Vec<Vec<Do>>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let book = Arc::new(Book::default());
        let log = Arc::clone(&book);
        tokio::spawn(async move {
            let mut scripts = Scripts::new(scripts);
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(play(stream, scripts.next(), Log::new(&log)));
            }
        });
        Self { address: ([0, 0, 0, 0], 0).into(), book, _reserved: None }
    }

    /// An address where nobody listens, nor will while this lives.
    pub(crate) fn absent() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        Self { address, book: Arc::default(), _reserved: Some(socket) }
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.book.pages.lock().unwrap().len()
    }

    /// What connection `n` did so far.
    pub(crate) fn heard(&self, n: usize) -> Heard {
        self.book.pages.lock().unwrap()[n].clone()
    }

    /// Waits until `condition` holds for connection `n`.
    pub(crate) async fn until(&self, n: usize, condition: impl Fn(&Heard) -> bool) -> Heard {
        let wait = async {
            loop {
                let changed = self.book.changed.notified();
                let heard = self.book.pages.lock().unwrap().get(n).cloned();
                match heard {
                    Some(heard) if condition(&heard) => return heard,
                    _ => changed.await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(heard) => heard,
            Err(_) => panic!("waited in vain; heard {:?}", self.book.pages.lock().unwrap()),
        }
    }
}

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A server's stream header.
pub(crate) fn header() -> String {
    "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
     xmlns:stream='http://etherx.jabber.org/streams' id='s1' from='example.org' version='1.0' \
     xml:lang='en'>"
        .to_owned()
}

/// Features that offer STARTTLS before anything else.
pub(crate) fn features_with_starttls() -> String {
    "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>"
        .to_owned()
}

/// Features that offer a login.
pub(crate) fn features_with_login() -> String {
    "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
     <mechanism>PLAIN</mechanism></mechanisms></stream:features>"
        .to_owned()
}

/// A stream error and the end of the stream; `condition` is the whole element.
pub(crate) fn stream_error(condition: &str) -> String {
    format!("<stream:error>{condition}</stream:error></stream:stream>")
}

/// A redirection to `to`.
pub(crate) fn see_other_host(to: impl std::fmt::Display) -> Vec<Do> {
    let condition = format!(
        "<see-other-host xmlns='urn:ietf:params:xml:ns:xmpp-streams'>{to}</see-other-host>"
    );
    vec![Do::Await("version='1.0'"), Do::Say(header() + &stream_error(&condition)), Do::Listen]
}

pub(crate) const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
pub(crate) const FAILURE: &str = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

/// A server without TLS.
pub(crate) fn plain() -> Vec<Do> {
    vec![Do::Await("version='1.0'"), Do::Say(header() + &features_with_login()), Do::Listen]
}

/// A server with STARTTLS that offers a login after it.
pub(crate) fn starttls(config: Arc<ServerConfig>) -> Vec<Do> {
    let mut script = vec![
        Do::Await("version='1.0'"),
        Do::Say(header() + &features_with_starttls()),
        Do::Await("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
        Do::Say(PROCEED.to_owned()),
        Do::Tls(config),
    ];
    script.extend(plain());
    script
}

/// A server with TLS from the first byte.
pub(crate) fn direct_tls(config: Arc<ServerConfig>) -> Vec<Do> {
    let mut script = vec![Do::Tls(config)];
    script.extend(plain());
    script
}

struct Scripts {
    scripts: Vec<Vec<Do>>,
    next: usize,
}

impl Scripts {
    fn new(scripts: Vec<Vec<Do>>) -> Self {
        Self { scripts, next: 0 }
    }

    fn next(&mut self) -> Vec<Do> {
        let script = self.scripts[self.next.min(self.scripts.len() - 1)].clone();
        self.next += 1;
        script
    }
}

/// What all connections did.
#[derive(Default)]
struct Book {
    pages: Mutex<Vec<Heard>>,
    changed: Notify,
}

/// One connection's page in the server's book.
#[derive(Clone)]
struct Log {
    book: Arc<Book>,
    page: usize,
}

impl Log {
    fn new(book: &Arc<Book>) -> Self {
        let mut pages = book.pages.lock().unwrap();
        pages.push(Heard::default());
        book.changed.notify_waiters();
        Self { book: Arc::clone(book), page: pages.len() - 1 }
    }

    fn note(&self, write: impl FnOnce(&mut Heard)) {
        write(&mut self.book.pages.lock().unwrap()[self.page]);
        self.book.changed.notify_waiters();
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn play(stream: impl Stream + 'static, script: Vec<Do>, log: Log) {
    let mut stream: Box<dyn Stream> = Box::new(stream);
    let mut secure = false;
    let mut pending = String::new();
    for step in script {
        match step {
            Do::Await(text) => {
                let end = loop {
                    if let Some(at) = pending.find(text) {
                        break at + text.len();
                    }
                    if !hear(&mut stream, secure, &mut pending, &log).await {
                        return;
                    }
                };
                pending.drain(..end);
            }
            Do::Line => loop {
                let Ok(byte) = stream.read_u8().await else { return };
                log.note(|heard| {
                    heard.bytes.push(byte);
                    heard.clear.push(byte.into());
                });
                if byte == b'\n' {
                    break;
                }
            },
            Do::Say(text) => {
                if stream.write_all(text.as_bytes()).await.is_err() || stream.flush().await.is_err()
                {
                    return;
                }
            }
            Do::Tls(config) => match shake_hands(stream, config, &log).await {
                Some(inner) => {
                    (stream, secure) = (inner, true);
                    pending.clear();
                }
                None => return,
            },
            Do::Close => {
                let _ = stream.shutdown().await;
                return;
            }
            Do::Listen => while hear(&mut stream, secure, &mut pending, &log).await {},
        }
    }
}

/// `false` at the end.
async fn hear(stream: &mut Box<dyn Stream>, secure: bool, pending: &mut String, log: &Log) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer).await {
        Ok(0) | Err(_) => {
            log.note(|heard| heard.closed = true);
            false
        }
        Ok(read) => {
            let text = String::from_utf8_lossy(&buffer[..read]);
            pending.push_str(&text);
            log.note(|heard| {
                if !secure {
                    heard.bytes.extend_from_slice(&buffer[..read]);
                }
                let kept = if secure { &mut heard.secret } else { &mut heard.clear };
                kept.push_str(&text);
            });
            true
        }
    }
}

async fn shake_hands(
    stream: Box<dyn Stream>,
    config: Arc<ServerConfig>,
    log: &Log,
) -> Option<Box<dyn Stream>> {
    let failed = |error: std::io::Error| {
        log.note(|heard| {
            heard.handshake_error = Some(error.to_string());
            heard.closed = true;
        });
    };
    let start = match LazyConfigAcceptor::new(Default::default(), stream).await {
        Ok(start) => start,
        Err(error) => {
            failed(error);
            return None;
        }
    };
    let hello = start.client_hello();
    let sni = hello.server_name().map(str::to_owned);
    let alpn = hello
        .alpn()
        .map(|names| names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
        .unwrap_or_default();
    log.note(|heard| (heard.sni, heard.alpn) = (sni, alpn));
    match start.into_stream(config).await {
        Ok(stream) => {
            let shown = stream.get_ref().1.peer_certificates().is_some();
            log.note(|heard| heard.client_certificate = shown);
            Some(Box::new(stream))
        }
        Err(error) => {
            failed(error);
            None
        }
    }
}

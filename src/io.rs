//! The byte stream below a client's or a server's connection: TCP, a Unix socket, or TLS over
//! either.
//!
//! One enum instead of a boxed trait object, so that a plain connection costs no allocation and no
//! indirect call. What runs over it is none of its business, nor which end of it we are.

pub mod tcp_info;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// A connection to a peer. After writing over TLS, flush: records may wait in its buffer.
pub enum Io {
    /// Plain TCP, TCP_NODELAY set.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// One of these two, whose bytes are counted.
    Counted(Counted),
    /// TLS over one of the others. Boxed: its state is a hundred times their size.
    Tls(Box<TlsStream<Self>>),
}

/// A socket whose bytes are counted.
pub struct Counted {
    socket: Socket,
    traffic: Arc<Traffic>,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The bytes of one socket, and the way that they go. Only the thread that has the socket writes
/// any of it.
#[derive(Debug, Default)]
pub struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
    /// The round-trip time in microseconds that was read last, until somebody takes it; 0 if there
    /// is none, [`WANTED`] if there is to be one.
    rtt: AtomicU32,
    /// Of the whole connection, once that has ended.
    retransmits: AtomicU32,
}

/// No round-trip time: it would be one of more than an hour.
const WANTED: u32 = u32::MAX;

impl Traffic {
    /// Bytes that the kernel gave us.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that the kernel took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Has the round-trip time read when something is written next. At the end of the connection it
    /// is read anyway.
    pub(crate) fn want_rtt(&self) {
        self.rtt.store(WANTED, Ordering::Relaxed);
    }

    fn is_rtt_wanted(&self) -> bool {
        self.rtt.load(Ordering::Relaxed) == WANTED
    }

    /// The round-trip time that was read and not taken yet, as the kernel has smoothed it.
    pub(crate) fn take_rtt(&self) -> Option<Duration> {
        let rtt = self.rtt.load(Ordering::Relaxed);
        if rtt == 0 || rtt == WANTED {
            return None;
        }
        self.rtt.store(0, Ordering::Relaxed);
        Some(Duration::from_micros(rtt.into()))
    }

    /// Segments that the kernel has sent more than once, if the connection has ended.
    pub(crate) fn retransmits(&self) -> u32 {
        self.retransmits.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn add(&self, read: usize, written: usize) {
        let add = |count: &AtomicU64, bytes: usize| {
            count.store(count.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
        };
        add(&self.read, read);
        add(&self.written, written);
    }
}

impl Io {
    /// The same socket, whose bytes are counted into `traffic` from now on; with the feature
    /// `no-metrics` they are not.
    #[must_use]
    pub fn counted(self, traffic: Arc<Traffic>) -> Self {
        match self {
            same if cfg!(feature = "no-metrics") => same,
            Self::Tcp(socket) => Self::Counted(Counted { socket: Socket::Tcp(socket), traffic }),
            Self::Unix(socket) => Self::Counted(Counted { socket: Socket::Unix(socket), traffic }),
            other => other,
        }
    }

    /// Whether the bytes are encrypted.
    pub fn is_secure(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether the TLS handshake resumed an earlier session (RFC 8446 §2.2), if there was one.
    pub fn is_resumed(&self) -> Option<bool> {
        match self {
            Self::Tls(stream) => {
                Some(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed))
            }
            _ => None,
        }
    }

    /// The address of the other end, if it is one of TCP that is still there.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.peer_addr().ok(),
            Self::Counted(Counted { socket: Socket::Tcp(socket), .. }) => socket.peer_addr().ok(),
            Self::Unix(_) | Self::Counted(_) => None,
            Self::Tls(stream) => stream.get_ref().0.peer_addr(),
        }
    }

    /// The address of our end, if it is one of TCP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Counted(Counted { socket: Socket::Tcp(socket), .. }) => socket.local_addr().ok(),
            Self::Unix(_) | Self::Counted(_) => None,
            Self::Tls(stream) => stream.get_ref().0.local_addr(),
        }
    }

    /// Has small writes leave at once; a Unix socket does that anyway.
    pub(crate) fn set_nodelay(&self) {
        if let Self::Tcp(socket) | Self::Counted(Counted { socket: Socket::Tcp(socket), .. }) = self
        {
            let _ = socket.set_nodelay(true);
        }
    }
}

impl From<TcpStream> for Io {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(socket)
    }
}

impl From<UnixStream> for Io {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket)
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Io::Tcp",
            Self::Unix(_) => "Io::Unix",
            Self::Counted(_) => "Io::Counted",
            Self::Tls(_) => "Io::Tls",
        })
    }
}

macro_rules! each {
    ($io:expr, $method:ident, $($argument:expr),*) => {
        match $io.get_mut() {
            Io::Tcp(inner) => Pin::new(inner).$method($($argument),*),
            Io::Unix(inner) => Pin::new(inner).$method($($argument),*),
            Io::Counted(inner) => Pin::new(inner).$method($($argument),*),
            Io::Tls(inner) => Pin::new(inner.as_mut()).$method($($argument),*),
        }
    };
}

macro_rules! socket {
    ($counted:expr, $method:ident, $($argument:expr),*) => {
        match &mut $counted.socket {
            Socket::Tcp(inner) => Pin::new(inner).$method($($argument),*),
            Socket::Unix(inner) => Pin::new(inner).$method($($argument),*),
        }
    };
}

impl Counted {
    /// Something was written.
    fn wrote(&self, bytes: usize) {
        self.traffic.add(0, bytes);
        if self.traffic.is_rtt_wanted() {
            self.look();
        }
    }

    /// Reads what the kernel knows of the way; a Unix socket has none.
    fn look(&self) -> Option<tcp_info::TcpInfo> {
        let info = match &self.socket {
            Socket::Tcp(socket) => tcp_info::read(socket),
            Socket::Unix(_) => None,
        };
        self.traffic.rtt.store(info.map_or(0, |info| info.rtt), Ordering::Relaxed);
        info
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(info) = self.look() {
            self.traffic.retransmits.store(info.retransmits, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = socket!(self, poll_read, cx, buf);
        self.traffic.add(buf.filled().len() - before, 0);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = socket!(self, poll_write, cx, buf);
        if let Poll::Ready(Ok(n)) = written {
            self.wrote(n);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = socket!(self, poll_write_vectored, cx, bufs);
        if let Poll::Ready(Ok(n)) = written {
            self.wrote(n);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        socket!(self, poll_flush, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        socket!(self, poll_shutdown, cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, poll_write, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, poll_write_vectored, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(inner) => inner.is_write_vectored(),
            Self::Unix(inner) => inner.is_write_vectored(),
            Self::Counted(inner) => inner.is_write_vectored(),
            Self::Tls(inner) => inner.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, poll_shutdown, cx)
    }
}

//! The socket below actix's HTTP dispatcher, watched for clients that would cost without end.
//!
//! The dispatcher times the first head of a connection and nothing else: later heads, bodies that
//! nobody reads, answers that nobody takes. It also keeps polling, without a pause, while it has
//! read more than it may and something else holds it up. So the socket itself gives up:
//!
//! - when a request takes longer to come than a head and a body may (SEC-18), or is larger;
//! - when answers find no taker for `limits.stall_timeout` (SEC-17), or are offered in vain too
//!   often;
//! - when more than a little is sent behind a request that is held.
//!
//! One timer a connection, which is not moved for each request: what a request puts off is found
//! out when it fires.

use std::cell::Cell;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::door::Entered;
use crate::session::timer::clock;

/// Bytes that may be sent behind a request that is held.
const BEHIND_A_HELD_ONE: usize = 64 * 1024;
/// Bytes of a request beside its body, and of one that is refused and thrown away (WS-44).
const BESIDE_THE_BODY: usize = 1024 * 1024;
/// How often the dispatcher looks after a connection on which nothing moves. Each time something
/// has woken it: when it comes to thousands, it was the dispatcher itself.
const IN_VAIN: u32 = 10_000;
/// Each KiB that has come gives its sender another second.
const BYTES_PER_SECOND: u64 = 1024;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte of a request to its last, and a second more for each KiB.
    pub arrival: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// How long the client may take no byte of an answer.
    pub stall: Duration,
}

/// What is known of the requests of one connection; shared with whoever answers them.
#[derive(Debug, Default)]
pub struct Watch {
    /// When the first byte came of what is not answered yet.
    begun: Cell<Option<Instant>>,
    /// How many bytes since then, or since it is held.
    received: Cell<usize>,
    held: Cell<bool>,
}

impl Watch {
    /// The request has come whole, and its answer may take a while: that is not the client's doing.
    pub fn hold(&self) {
        self.held.set(true);
        self.received.set(0);
    }

    fn received(&self, bytes: usize, now: Instant) {
        self.received.set(self.received.get().saturating_add(bytes));
        if self.begun.get().is_none() {
            self.begun.set(Some(now));
        }
    }

    fn answered(&self) {
        self.begun.set(None);
        self.received.set(0);
        self.held.set(false);
    }

    fn is_too_much(&self, limits: &Limits) -> bool {
        let most =
            if self.held.get() { BEHIND_A_HELD_ONE } else { limits.body_bytes + BESIDE_THE_BODY };
        self.received.get() > most
    }

    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let begun = self.begun.get().filter(|_| !self.held.get())?;
        let earned = Duration::from_secs(self.received.get() as u64 / BYTES_PER_SECOND);
        Some(begun + limits.arrival + earned)
    }
}

/// A client's socket.
#[derive(Debug)]
pub struct Guarded {
    io: TcpStream,
    limits: Limits,
    watch: Rc<Watch>,
    entered: Rc<Entered>,
    /// Since when the socket takes nothing.
    blocked: Option<Instant>,
    /// Something was written and may not have been all.
    wrote: bool,
    /// How often nothing could be done.
    in_vain: u32,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    /// A socket under these limits, which came in as it says.
    #[must_use]
    pub fn new(io: TcpStream, limits: Limits, entered: Rc<Entered>) -> Self {
        let watch = Rc::default();
        Self { io, limits, watch, entered, blocked: None, wrote: false, in_vain: 0, sleep: None }
    }

    /// What is known of its requests.
    #[must_use]
    pub fn watch(&self) -> Rc<Watch> {
        Rc::clone(&self.watch)
    }

    /// How it came in.
    #[must_use]
    pub fn entered(&self) -> Rc<Entered> {
        Rc::clone(&self.entered)
    }

    /// The socket itself, for one who watches it better.
    #[must_use]
    pub fn into_inner(self) -> TcpStream {
        self.io
    }

    fn count_in_vain(&mut self) -> io::Result<()> {
        self.in_vain += 1;
        if self.in_vain > IN_VAIN { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn deadline(&self) -> Option<Instant> {
        let blocked = self.blocked.map(|since| since + self.limits.stall);
        self.watch.deadline(&self.limits).into_iter().chain(blocked).min()
    }

    /// An error once a deadline has passed; the timer is left running for the next one.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let Some(sleep) = &mut self.sleep else {
                let Some(at) = self.deadline() else { return Ok(()) };
                self.sleep = Some(Box::pin(tokio::time::sleep_until(at.into())));
                continue;
            };
            if sleep.as_mut().poll(cx).is_pending() {
                // A deadline that comes sooner than the timer is that much later noticed, which
                // is less than another `arrival` or `stall`.
                return Ok(());
            }
            self.sleep = None;
            if self.deadline().is_some_and(|at| at <= clock()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 {
            this.in_vain = 0;
            this.watch.received(bytes, clock());
            if this.watch.is_too_much(&this.limits) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        if let Err(error) = this.in_time(cx) {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        if written.is_pending() {
            this.blocked.get_or_insert_with(clock);
            this.count_in_vain()?;
            if let Err(error) = this.in_time(cx) {
                return Poll::Ready(Err(error));
            }
        } else {
            this.blocked = None;
            this.wrote = true;
            this.in_vain = 0;
        }
        written
    }

    /// The dispatcher flushes whenever it has looked after the connection, and all it had to say was
    /// written: if that was something, nothing is owed any more.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if std::mem::take(&mut self.wrote) {
            self.watch.answered();
        } else if self.watch.held.get() {
            self.count_in_vain()?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

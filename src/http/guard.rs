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
//!
//! The dispatcher also keeps two 8-KiB buffers and itself for as long as it has the connection. So
//! a connection that has been at rest for a moment leaves it (`REST`): the dispatcher is told that
//! the client has gone, and the socket stays behind in the [`Watch`] for
//! [`connection`](super::connection), together with the answer that is due if a request is held.
//! That is done only where the dispatcher has nothing else that came from the client: the length
//! of each request is known to the byte here, or the connection stays where it is.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use memchr::{memchr_iter, memmem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::connection::Answering;
use super::door::Entered;
use crate::io::Io;
use crate::metrics::Limit;
use crate::session::timer::clock;

/// Bytes that may be sent behind a request that is held.
pub(super) const BEHIND_A_HELD_ONE: usize = 64 * 1024;
/// How long nothing happens before a connection leaves the dispatcher: long enough that a client
/// which is busy does not pay for a new one with each request.
const REST: Duration = Duration::from_secs(2);
/// Bytes of a request beside its body, and of one that is refused and thrown away (WS-44).
const BESIDE_THE_BODY: usize = 1024 * 1024;
/// How often the dispatcher looks after a connection on which nothing moves. Each time something
/// has woken it: when it comes to thousands, it was the dispatcher itself.
const IN_VAIN: u32 = 10_000;
/// How the dispatcher answers the first head that it has waited for too long; nobody else says that.
const TIMED_OUT: &[u8] = b"HTTP/1.1 408 ";
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
    /// The lengths of the requests did not add up to what came, so that it cannot be told any more
    /// where one begins.
    astray: Cell<bool>,
    /// The length of the head of the request that comes, where it is known for certain.
    head: Cell<Option<usize>>,
    /// The length of its body, likewise.
    body: Cell<Option<usize>>,
    /// Since when the connection could leave the dispatcher.
    resting: Cell<Option<Instant>>,
    leaving: Cell<bool>,
    /// Why the connection was given up.
    limit: Cell<Option<Limit>>,
    left: RefCell<Left>,
}

/// What a connection that left the dispatcher consists of.
#[derive(Debug, Default)]
pub struct Left {
    /// The socket; without one the connection is over.
    pub socket: Option<Io>,
    /// The answer that is due, if a request is held.
    pub answering: Option<Answering>,
}

impl Watch {
    /// The request has come whole, and its answer may take a while: that is not the client's doing.
    /// `body` is the number of bytes of its body on the wire, where it says so itself and the
    /// connection is to stay open behind it; only then the answer may be given elsewhere.
    pub fn hold(&self, body: Option<usize>) {
        self.body.set(body);
        self.rest();
        self.held.set(true);
        self.received.set(0);
    }

    /// The request that has come has no body.
    pub fn bodyless(&self) {
        self.body.set(Some(0));
    }

    /// Whether the connection is leaving the dispatcher: whoever holds a request gives its answer
    /// to [`Watch::keep`] instead.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Takes what is due.
    pub fn keep(&self, answering: Answering) {
        self.left.borrow_mut().answering = Some(answering);
    }

    /// The limit at which the connection was given up; told once.
    #[must_use]
    pub fn take_limit(&self) -> Option<Limit> {
        self.limit.take()
    }

    /// What has left the dispatcher; to be asked when that is gone.
    #[must_use]
    pub fn take_left(&self) -> Left {
        self.left.take()
    }

    /// The connection could leave from now on, if nothing is behind the request that has come.
    fn rest(&self) {
        let length = self.head.get().zip(self.body.get()).map(|(head, body)| head + body);
        if length == Some(self.received.get()) && !self.astray.get() {
            self.resting.set(Some(clock()));
        }
    }

    fn received(&self, bytes: &[u8], now: Instant) {
        self.received.set(self.received.get().saturating_add(bytes.len()));
        self.resting.set(None);
        if self.held.get() {
            // The beginning of another request, which the dispatcher has.
            self.astray.set(true);
        }
        if self.begun.get().is_none() {
            self.begun.set(Some(now));
            self.body.set(None);
            self.head.set(head_length(bytes));
        }
    }

    fn answered(&self) {
        if self.resting.get().is_some() {
            // It was held, and nothing has come meanwhile.
            self.resting.set(Some(clock()));
        } else {
            self.rest();
        }
        self.astray.set(self.astray.get() || self.resting.get().is_none());
        self.begun.set(None);
        self.received.set(0);
        self.held.set(false);
    }

    fn is_too_much(&self, limits: &Limits) -> bool {
        let most =
            if self.held.get() { BEHIND_A_HELD_ONE } else { limits.body_bytes + BESIDE_THE_BODY };
        self.received.get() > most
    }

    fn rested(&self) -> Option<Instant> {
        self.resting.get().map(|since| since + REST)
    }

    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let begun = self.begun.get().filter(|_| !self.held.get())?;
        let earned = Duration::from_secs(self.received.get() as u64 / BYTES_PER_SECOND);
        Some(begun + limits.arrival + earned)
    }
}

/// The length of a request's head, if `bytes` begin with one that is whole and whose lines end as
/// RFC 9112 §2.2 has it. A head that is understood in other ways, too, has no length here.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let length = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let mut feeds = memchr_iter(b'\n', &bytes[..length]);
    feeds.all(|at| at > 0 && bytes[at - 1] == b'\r').then_some(length)
}

/// A client's socket.
#[derive(Debug)]
pub struct Guarded {
    /// There until this is dropped.
    io: Option<Io>,
    /// What was read of it before, and is given out first.
    early: Bytes,
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
    /// A socket under these limits, which came in as it says; `early` was read from it already.
    #[must_use]
    pub fn new(io: Io, early: Bytes, limits: Limits, entered: Rc<Entered>) -> Self {
        Self {
            io: Some(io),
            early,
            limits,
            watch: Rc::default(),
            entered,
            blocked: None,
            wrote: false,
            in_vain: 0,
            sleep: None,
        }
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

    /// The socket itself, for one who watches it better, and what was read of it and not given
    /// out. `None` once it has left.
    #[must_use]
    pub fn into_inner(mut self) -> Option<(Io, Bytes)> {
        self.watch.leaving.set(false);
        self.io.take().map(|io| (io, std::mem::take(&mut self.early)))
    }

    fn count_in_vain(&mut self) -> io::Result<()> {
        self.in_vain += 1;
        if self.in_vain > IN_VAIN { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn deadline(&self) -> Option<Instant> {
        let blocked = self.blocked.map(|since| since + self.limits.stall);
        self.watch.deadline(&self.limits).into_iter().chain(blocked).chain(self.rested()).min()
    }

    /// When it leaves; not in the middle of an answer.
    fn rested(&self) -> Option<Instant> {
        if self.blocked.is_some() { None } else { self.watch.rested() }
    }

    /// What is still in TLS's buffer has its time, too: of a write it is not known whether the
    /// socket has taken it.
    fn in_progress(
        &mut self,
        done: Poll<io::Result<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if done.is_pending() {
            self.blocked.get_or_insert_with(clock);
            self.in_time(cx)?;
        } else {
            self.blocked = None;
        }
        done
    }

    /// An error once a deadline has passed; the timer is left running for the next one.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let rested = self.rested();
            let Some(sleep) = &mut self.sleep else {
                let Some(at) = self.deadline() else { return Ok(()) };
                self.sleep = Some(Box::pin(tokio::time::sleep_until(at.into())));
                continue;
            };
            if sleep.as_mut().poll(cx).is_pending() {
                // The others would only be noticed that much later, which is less than another
                // `arrival` or `stall`.
                let Some(at) = rested.filter(|&at| at < sleep.deadline().into_std()) else {
                    return Ok(());
                };
                sleep.as_mut().reset(at.into());
                if sleep.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
            }
            self.sleep = None;
            let now = clock();
            let late = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let reached = if late(self.watch.deadline(&self.limits)) {
                // A body has its own time as well, but is not told from a head here.
                Some(Limit::HeadTimeout)
            } else if late(self.blocked.map(|since| since + self.limits.stall)) {
                Some(Limit::StallTimeout)
            } else {
                None
            };
            if reached.is_some() {
                self.watch.limit.set(reached);
                return Err(io::ErrorKind::TimedOut.into());
            }
            if late(rested) {
                self.watch.leaving.set(true);
                return Ok(());
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.watch.leaving.get() {
            self.watch.left.borrow_mut().socket = self.io.take();
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
        if this.watch.leaving.get() {
            // To the dispatcher the client has gone.
            return Poll::Ready(Ok(()));
        }
        let Some(io) = &mut this.io else { return Poll::Ready(Ok(())) };
        let before = buf.filled().len();
        let read = if this.early.is_empty() {
            Pin::new(io).poll_read(cx, buf)
        } else {
            let bytes = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..bytes]);
            this.early.advance(bytes);
            Poll::Ready(Ok(()))
        };
        let bytes = &buf.filled()[before..];
        if !bytes.is_empty() {
            this.in_vain = 0;
            this.watch.received(bytes, clock());
            if this.watch.is_too_much(&this.limits) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        if let Err(error) = this.in_time(cx) {
            return Poll::Ready(Err(error));
        }
        if this.watch.leaving.get() && read.is_pending() {
            return Poll::Ready(Ok(()));
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
        let Some(io) = &mut this.io else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if bytes.starts_with(TIMED_OUT) {
            this.watch.limit.set(Some(Limit::HeadTimeout));
        }
        let written = Pin::new(io).poll_write(cx, bytes);
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
        if let Some(io) = &mut self.io {
            let flushed = Pin::new(io).poll_flush(cx);
            ready!(self.in_progress(flushed, cx))?;
        }
        if std::mem::take(&mut self.wrote) {
            self.watch.answered();
            self.entered.meter.flushed(clock);
        } else if self.watch.held.get() {
            self.count_in_vain()?;
        }
        // What has changed since the dispatcher read may be due sooner.
        if self.watch.resting.get().is_some() && !self.watch.leaving.get() {
            self.in_time(cx)?;
            if self.watch.leaving.get() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match &mut this.io {
            Some(io) if !this.watch.leaving.get() => {
                let shut = Pin::new(io).poll_shutdown(cx);
                this.in_progress(shut, cx)
            }
            // It lives on elsewhere.
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";

    /// RFC 9112 §2.2: a head that ends in one way only.
    #[test]
    fn heads_have_a_length_only_when_it_is_certain() {
        assert_eq!(head_length(GET), Some(GET.len()));
        assert_eq!(head_length(POST), Some(POST.len() - 3));
        for uncertain in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n"[..],
            b"GET / HTTP/1.1\nHost: x\n\n",
            b"POST / HTTP/1.1\nContent-Length: 9\n\nabc\r\n\r\n",
            b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"",
        ] {
            assert_eq!(head_length(uncertain), None, "{:?}", String::from_utf8_lossy(uncertain));
        }
    }

    fn watch(parts: &[&[u8]]) -> Watch {
        let watch = Watch::default();
        parts.iter().for_each(|part| watch.received(part, clock()));
        watch
    }

    /// A request with nothing behind it is a rest when it is held, and when it was answered.
    #[test]
    fn whole_requests_are_a_rest() {
        let held = watch(&[POST]);
        assert!(held.rested().is_none());
        held.hold(Some(3));
        assert!(held.rested().is_some());
        held.answered();
        assert!(held.rested().is_some() && !held.astray.get());
        held.received(GET, clock());
        assert!(held.rested().is_none(), "there is a request");
        held.bodyless();
        held.answered();
        assert!(held.rested().is_some());
        let (first, second) = POST.split_at(POST.len() - 2);
        let pieces = watch(&[first, second]);
        pieces.hold(Some(3));
        assert!(pieces.rested().is_some());
    }

    /// Where it is not certain that nothing is behind a request, a connection never leaves: also
    /// when a later request would be.
    #[test]
    fn uncertain_requests_are_no_rest() {
        let behind = [POST, b"P"].concat();
        // More than the body, less than the body, a body of unknown length, a head in pieces.
        for (parts, body) in [
            (&[&behind[..]][..], Some(3)),
            (&[POST], Some(4)),
            (&[POST], None),
            (&[&POST[..20], &POST[20..]], Some(3)),
        ] {
            let watch = watch(parts);
            watch.hold(body);
            assert!(watch.rested().is_none(), "{parts:?}");
            watch.answered();
            watch.received(POST, clock());
            watch.hold(Some(3));
            watch.answered();
            assert!(watch.rested().is_none(), "{parts:?}");
        }
        // A later request came while it was held.
        let overtaken = watch(&[POST]);
        overtaken.hold(Some(3));
        overtaken.received(GET, clock());
        assert!(overtaken.rested().is_none());
        overtaken.answered();
        assert!(overtaken.rested().is_none());
        // So many bytes of it as the held one has itself.
        let alike = watch(&[POST]);
        alike.hold(Some(3));
        alike.received(&POST[..20], clock());
        alike.received(&POST[20..], clock());
        alike.answered();
        assert!(alike.rested().is_none());
        // The client was told to go on: its body is still to come (RFC 9110 §10.1.1).
        let expecting = watch(&[&POST[..POST.len() - 3]]);
        expecting.answered();
        assert!(expecting.rested().is_none());
        // The answer came before the body.
        let refused = watch(&[&POST[..POST.len() - 3]]);
        refused.answered();
        refused.received(b"abc", clock());
        refused.answered();
        assert!(refused.rested().is_none());
    }
}

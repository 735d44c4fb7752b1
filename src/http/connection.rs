//! One connection of an HTTP client, from its first byte to its end.
//!
//! While something happens on it, actix's dispatcher has it, with two 8-KiB buffers and a future
//! of 3 KiB. A connection on which nothing happens is kept here, where it costs a tenth of that:
//! before its first byte, between two requests (`parked`), and while a request is held and its
//! client waits (`held`). [`super::guard`] decides when it leaves the dispatcher; with the next
//! byte it gets a new one. So the memory of an idle BOSH session is not that of its connections.
//!
//! What is answered here is answered as the dispatcher would: the same head, in the same order
//! behind what came before. A held request whose client goes is noticed at once (BOSH-51).

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_http::Protocol;
use actix_http::error::DispatchError;
use actix_service::Service;
use actix_web::HttpResponse;
use actix_web::body::{BoxBody, MessageBody as _};
use actix_web::http::header::{self, HttpDate};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::door::Entered;
use super::guard::{self, BEHIND_A_HELD_ONE, Guarded, Watch};
use crate::io::Io;
use crate::metrics::{Connection, Limit, LimitMetrics, Metrics};
use crate::session::link::read_some;
use crate::session::meter::Meter;
use crate::session::timer::clock;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection to the first byte of its first request (SEC-18).
    pub first_byte: Duration,
    /// From an answer to the first byte of the next request.
    pub keep_alive: Duration,
    /// While there are requests.
    pub guard: guard::Limits,
}

/// A read of this size is enough for most requests; the dispatcher reads what is longer.
const FIRST_READ: usize = 4096;

/// An answer that is waited for, wherever its connection is.
pub struct Answering(Pin<Box<dyn Future<Output = HttpResponse>>>);

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answering")
    }
}

/// Waits for an answer in the dispatcher; if the connection leaves that, the answer goes with it.
pub(super) struct Held<F: Future<Output = HttpResponse> + Unpin + 'static> {
    answer: Option<F>,
    watch: Option<Rc<Watch>>,
}

impl<F: Future<Output = HttpResponse> + Unpin + 'static> Held<F> {
    /// Waits for `answer`, on a connection with that watch.
    pub(super) fn new(answer: F, watch: Option<Rc<Watch>>) -> Self {
        Self { answer: Some(answer), watch }
    }

    fn is_leaving(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_leaving())
    }
}

impl<F: Future<Output = HttpResponse> + Unpin + 'static> Future for Held<F> {
    type Output = HttpResponse;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResponse> {
        if self.is_leaving() {
            // The dispatcher would take the answer for the last one.
            return Poll::Pending;
        }
        match &mut self.answer {
            Some(answer) => Pin::new(answer).poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<F: Future<Output = HttpResponse> + Unpin + 'static> Drop for Held<F> {
    fn drop(&mut self) {
        if let (true, Some(watch), Some(answer)) =
            (self.is_leaving(), &self.watch, self.answer.take())
        {
            watch.keep(Answering(Box::pin(answer)));
        }
    }
}

/// Serves a connection over HTTP/1.1 until its end; it came in as `entered` says.
///
/// # Errors
/// What the dispatcher says of the connection; it is over.
pub async fn serve<S>(
    io: Io,
    entered: Rc<Entered>,
    http: Rc<S>,
    limits: Limits,
    metrics: &Metrics,
) -> Result<(), DispatchError>
where
    S: Service<(Guarded, Protocol, Option<SocketAddr>), Response = (), Error = DispatchError>,
{
    // A local, so that it ends before `entered` does, whose meter counts what it has found out.
    let mut io = io;
    let mut state = metrics.http.opened();
    let mut early = Bytes::new();
    let mut patience = limits.first_byte;
    let mut was_used = false;
    loop {
        if early.is_empty() {
            early = match timeout(patience, parked(&mut io)).await {
                Ok(Ok(bytes)) if !bytes.is_empty() => bytes,
                Err(_) if !was_used => {
                    metrics.limits.hit(Limit::HeadTimeout);
                    return Ok(());
                }
                _ => return Ok(()),
            };
        }
        state.enter(Connection::Active);
        patience = limits.keep_alive;
        was_used = true;
        let first = std::mem::take(&mut early);
        let guarded = Guarded::new(io, first, limits.guard, Rc::clone(&entered));
        let watch = guarded.watch();
        // Boxed, so that nothing of it is left while the connection rests.
        let served = Box::pin(http.call((guarded, Protocol::Http1, entered.arrival.client))).await;
        watch.take_limit().into_iter().for_each(|limit| metrics.limits.hit(limit));
        served?;
        let left = watch.take_left();
        let Some(socket) = left.socket else { return Ok(()) };
        io = socket;
        if let Some(answering) = left.answering {
            state.enter(Connection::Held);
            match held(&mut io, answering, &entered.meter, limits.guard.stall, &metrics.limits)
                .await
            {
                Some(behind) => early = behind,
                None => return Ok(()),
            }
        }
        state.enter(Connection::Resting);
    }
}

/// Waits for bytes; none is the end of the connection.
async fn parked(io: &mut Io) -> io::Result<Bytes> {
    poll_fn(|cx| {
        // On the stack, for the length of a poll.
        let mut buffer = [0; FIRST_READ];
        read_some(io, &mut buffer, cx).map_ok(|n| Bytes::copy_from_slice(&buffer[..n]))
    })
    .await
}

/// Waits for an answer and writes it: what the client sent meanwhile, or `None` if the connection
/// is over. If it was the client that went, the answer's sender finds that out (BOSH-48).
async fn held(
    io: &mut Io,
    Answering(mut answer): Answering,
    meter: &Meter,
    stall: Duration,
    metrics: &LimitMetrics,
) -> Option<Bytes> {
    let mut behind = Vec::new();
    let response = poll_fn(|cx| {
        if let Poll::Ready(response) = answer.as_mut().poll(cx) {
            return Poll::Ready(Some(response));
        }
        let mut buffer = [0; FIRST_READ];
        loop {
            match read_some(io, &mut buffer, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(n)) if behind.len() + n > BEHIND_A_HELD_ONE => {
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(n)) => behind.extend_from_slice(&buffer[..n]),
            }
        }
    })
    .await?;
    drop(answer);
    let (bytes, stays) = to_http1(response)?;
    write(io, &bytes, stall, metrics).await.ok()?;
    meter.flushed(clock);
    if stays {
        return Some(behind.into());
    }
    let _ = timeout(stall, io.shutdown()).await;
    None
}

/// Writes all of it, as long as the client takes some of it every `stall`.
async fn write(
    io: &mut Io,
    mut bytes: &[u8],
    stall: Duration,
    metrics: &LimitMetrics,
) -> io::Result<()> {
    let stalled = |_| {
        metrics.hit(Limit::StallTimeout);
        io::ErrorKind::TimedOut
    };
    while !bytes.is_empty() {
        match timeout(stall, io.write(bytes)).await.map_err(stalled)?? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    timeout(stall, io.flush()).await.map_err(stalled)?
}

/// A response in HTTP/1.1 (RFC 9112), and whether the connection stays open behind it. `None` for
/// one whose body is not there yet, which is none of ours.
fn to_http1(response: HttpResponse) -> Option<(Vec<u8>, bool)> {
    let stays = response.head().keep_alive();
    let (head, body): (_, BoxBody) = response.into_parts();
    let body = body.try_into_bytes().ok()?;
    let mut bytes = Vec::with_capacity(512 + body.len());
    let status = head.status();
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    let mut line = |name: &[u8], value: &[u8]| {
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
    };
    line(b"content-length", body.len().to_string().as_bytes());
    if !stays {
        line(b"connection", b"close");
    }
    for (name, value) in head.headers() {
        line(name.as_str().as_bytes(), value.as_bytes());
    }
    let date = HttpDate::from(std::time::SystemTime::now()).to_string();
    line(header::DATE.as_str().as_bytes(), date.as_bytes());
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes.extend_from_slice(&body);
    Some((bytes, stays))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actix_service::fn_service;

    use super::super::caller::Trust;
    use super::super::door::{Door, Settings};
    use super::*;
    use crate::proto::forwarded::Networks;
    use crate::session::addresses::{self, Addresses};

    /// SEC-17: a client that takes nothing of an answer is given up in the dispatcher and outside of
    /// it, and counted by the key of that limit.
    #[actix_rt::test]
    async fn stalls_are_counted() {
        let metrics = Metrics::register().unwrap();
        let trust = Trust::new(Networks::new(&[]), false, Networks::new(&[]));
        let second = Duration::from_secs(1);
        let door = Door {
            settings: Arc::new(Settings {
                proxies: Networks::new(&[]),
                unix_proxies: false,
                patience: second,
                trust: Arc::new(trust),
            }),
            addresses: Arc::new(Addresses::new(addresses::Limits::default())),
            metrics: Arc::clone(&metrics),
            local: metrics.local(),
        };
        let stall = Duration::from_millis(50);
        let guard = super::super::guard::Limits { arrival: second, body_bytes: 1, stall };
        let limits = Limits { first_byte: second, keep_alive: second, guard };
        let http =
            fn_service(|(mut socket, ..): (Guarded, Protocol, Option<SocketAddr>)| async move {
                loop {
                    socket.write_all(&[b'x'; 4096]).await.map_err(DispatchError::Io)?;
                }
            });
        let hits = |times: u32| {
            let line = format!("\nbosphorus_limit_hits_total{{limit=\"stall_timeout\"}} {times}\n");
            String::from_utf8(metrics.render().unwrap()).unwrap().contains(&line)
        };

        let (io, mut client) = tokio::net::UnixStream::pair().unwrap();
        client.write_all(b"GET").await.unwrap();
        let mut io = Io::from(io);
        let entered = Rc::new(door.enter(&mut io).await.unwrap());
        assert!(serve(io, entered, Rc::new(http), limits, &metrics).await.is_err());
        assert!(hits(1));

        let (io, _client) = tokio::net::UnixStream::pair().unwrap();
        assert!(write(&mut io.into(), &[b'x'; 1 << 22], stall, &metrics.limits).await.is_err());
        assert!(hits(2));
    }
}

//! HTTP/2 (RFC 9113): a client's connection on which many requests are open at once.
//!
//! The crate `h2` speaks the protocol, actix's `App` answers the requests; here is what lies
//! between, because actix's own HTTP/2 has no limit on streams or heads and leaves a handler alone
//! when its stream is reset or its connection lost. Here a handler lives in its connection's task
//! and is dropped with its stream, so that a BOSH session learns at once that the reader of an
//! answer has gone (BOSH-48, BOSH-51), exactly as over HTTP/1.1. An answer that was handed to `h2`
//! counts as given, whether the client gets it or not: what it did not get it asks for again by its
//! `rid`, which is why the session keeps it (BOSH-45).
//!
//! What a client can cost is bounded: requests at once and bytes of their heads; bytes of bodies
//! that nobody reads yet, by the windows; bytes of answers that it does not take, which wait for
//! its windows outside of `h2`; the time in which it takes none (SEC-17); the bytes of frames that
//! are no requests, however cheap each is to answer (PING, SETTINGS, RST_STREAM); and the time
//! without any request. A WebSocket is none of this: it is opened over HTTP/1.1, since RFC 8441 is
//! not offered.

use std::cell::Cell;
use std::error::Error;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_http::error::PayloadError;
use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_http::{HttpMessage as _, Payload, Request, Response, Uri};
use actix_service::Service;
use actix_web::http::header::HttpDate;
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, timeout};

use super::door::Entered;
use crate::io::Io;
use crate::metrics::{Connection, Limit, LimitMetrics, Metrics};
use crate::session::timer::clock;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that are open at once.
    pub streams: u32,
    /// From the handshake to the first request (SEC-18).
    pub first_request: Duration,
    /// From the last answer to the next request.
    pub keep_alive: Duration,
    /// How long the client may take no byte, and an answer no window (SEC-17).
    pub stall: Duration,
    /// Bytes of all bodies together that have come and are not whole.
    pub bodies: usize,
}

/// How many of the largest bodies may come at once over one connection. Each is read into memory, and
/// of small ones this is any number.
pub const BODIES: usize = 4;
/// What a body fails with when it would be more.
pub const CROWDED: io::ErrorKind = io::ErrorKind::QuotaExceeded;
/// Bytes of a request's head, names and values uncompressed (RFC 9113 §6.5.2).
const HEAD_BYTES: u32 = 32 * 1024;
/// Bytes of all bodies that were not read yet.
const UNREAD_BYTES: u32 = 256 * 1024;
/// Bytes that may come without a request, a piece of a body or an answer between them: frames that
/// are answered or ignored.
const IDLE_BYTES: usize = 512 * 1024;
/// Bytes of one answer that `h2` may hold.
const SEND_BYTES: usize = 64 * 1024;
/// Bytes of an answer in one frame.
const CHUNK: usize = 16 * 1024;

/// Serves a connection until its end.
///
/// # Errors
/// What ended it, if it was not the client's wish or its silence.
pub async fn serve<S, B>(
    io: Io,
    entered: Rc<Entered>,
    app: Rc<S>,
    limits: Limits,
    is_draining: impl Fn() -> bool,
    metrics: &Metrics,
) -> Result<(), h2::Error>
where
    S: Service<Request>,
    S::Response: Into<Response<B>>,
    S::Error: Into<Response<BoxBody>>,
    B: MessageBody,
{
    let mut state = metrics.http.opened();
    state.enter(Connection::Active);
    let seen = Rc::new(Seen::default());
    entered.meter.over_h2();
    let io = Watched { io, stall: limits.stall, blocked: None, seen: Rc::clone(&seen) };
    let handshake = Builder::new()
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(HEAD_BYTES)
        .initial_connection_window_size(UNREAD_BYTES)
        .max_send_buffer_size(SEND_BYTES)
        .handshake::<_, Bytes>(io);
    let Ok(handshake) = timeout(limits.first_request, handshake).await else {
        metrics.limits.hit(Limit::HeadTimeout);
        return Ok(());
    };
    let mut connection = handshake?;
    let mut answers = FuturesUnordered::new();
    let mut silence = pin!(tokio::time::sleep(limits.first_request));
    let (mut is_closing, mut was_used) = (false, false);
    let served = poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some(())) = answers.poll_next_unpin(cx) {
                seen.idle.set(0);
                if answers.is_empty() {
                    state.enter(Connection::Resting);
                    silence.as_mut().reset((clock() + limits.keep_alive).into());
                }
                if is_draining() && !is_closing {
                    is_closing = true;
                    connection.graceful_shutdown();
                }
            }
            let accepted = connection.poll_accept(cx);
            // Not with each flush: `h2` has one after every frame, with others behind it.
            if seen.written.get() == Written::Flushed {
                seen.written.set(Written::Nothing);
                entered.meter.flushed(clock);
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    seen.idle.set(0);
                    was_used = true;
                    if answers.is_empty() {
                        state.enter(Connection::Active);
                    }
                    let (head, body) = request.into_parts();
                    let (seen, most) = (Rc::clone(&seen), limits.bodies);
                    let body = Body { stream: body, seen, most, read: 0 };
                    let (app, entered) = (Rc::clone(&app), Rc::clone(&entered));
                    let taking = Taking { stall: limits.stall, metrics: &metrics.limits };
                    answers.push(answer(app, head, body, respond, entered, taking));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            if !answers.is_empty() {
                return Poll::Pending;
            }
            ready!(silence.as_mut().poll(cx));
            if is_closing {
                return Poll::Ready(Ok(()));
            }
            if !was_used {
                metrics.limits.hit(Limit::HeadTimeout);
            }
            // It is told, so that a request which is on its way now is sent elsewhere.
            is_closing = true;
            connection.graceful_shutdown();
            silence.as_mut().reset((clock() + limits.stall).into());
        }
    })
    .await;
    if seen.stalled.get() {
        metrics.limits.hit(Limit::StallTimeout);
    }
    served
}

/// How long a client may take nothing of an answer, and where it is counted that it did.
#[derive(Clone, Copy)]
struct Taking<'a> {
    stall: Duration,
    metrics: &'a LimitMetrics,
}

/// Answers one request, or is dropped when the client does not want that any more.
async fn answer<S, B>(
    app: Rc<S>,
    head: http::request::Parts,
    body: Body,
    mut respond: SendResponse<Bytes>,
    entered: Rc<Entered>,
    taking: Taking<'_>,
) where
    S: Service<Request>,
    S::Response: Into<Response<B>>,
    S::Error: Into<Response<BoxBody>>,
    B: MessageBody,
{
    let head_only = head.method == http::Method::HEAD;
    let meter = Rc::clone(&entered.meter);
    let Some(request) = request(head, body, entered) else {
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return;
    };
    // Boxed: it is gone when the answer is there, which may take a minute to leave.
    let mut call = Box::pin(app.call(request));
    let called = poll_fn(|cx| {
        let before = meter.under_way();
        if let Poll::Ready(called) = call.as_mut().poll(cx) {
            // Not under way yet: the head goes first, the body as the windows open.
            return Poll::Ready(Some((called, meter.set_aside(before))));
        }
        // By the client, or because the connection has ended.
        respond.poll_reset(cx).map(|_| None)
    })
    .await;
    drop(call);
    // An error is a stream or a connection that has ended.
    let Some((called, read)) = called else { return };
    let sent = match called {
        Ok(response) => send(response.into(), respond, head_only, taking).await,
        Err(error) => send(error.into(), respond, head_only, taking).await,
    };
    if sent.is_ok_and(|whole| whole) {
        meter.handed_over(read);
    }
}

/// A request as actix knows it.
fn request(head: http::request::Parts, body: Body, entered: Rc<Entered>) -> Option<Request> {
    let body: Pin<Box<dyn Stream<Item = _>>> = Box::pin(body);
    let mut request = Request::with_payload(Payload::Stream { payload: body });
    let to = request.head_mut();
    to.method = actix_http::Method::from_bytes(head.method.as_str().as_bytes()).ok()?;
    to.uri = Uri::try_from(head.uri.to_string()).ok()?;
    to.version = actix_http::Version::HTTP_2;
    to.peer_addr = entered.arrival.client;
    for (name, value) in &head.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        to.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    // Where `door::arrival` finds it.
    request.extensions_mut().insert(entered);
    Some(request)
}

/// The head of an answer as `h2` knows it; `None` if it is not one of HTTP.
fn response(status: u16, headers: &HeaderMap, size: BodySize) -> Option<http::Response<()>> {
    let mut response = http::Response::builder().status(status).version(http::Version::HTTP_2);
    for (name, value) in headers {
        // RFC 9113 §8.2.2: these speak of a connection that is not here.
        let is_of_http1 = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE]
            .contains(name)
            || *name == header::CONTENT_LENGTH;
        if !is_of_http1 {
            response = response.header(name.as_str(), value.as_bytes());
        }
    }
    if let BodySize::Sized(bytes) = size {
        response = response.header("content-length", bytes);
    }
    if !headers.contains_key(header::DATE) {
        let now = HttpDate::from(std::time::SystemTime::now());
        response = response.header("date", now.to_string());
    }
    response.body(()).ok()
}

/// Hands an answer to `h2`, as the client takes it; false if it was not handed over whole.
async fn send<B: MessageBody>(
    answer: Response<B>,
    mut respond: SendResponse<Bytes>,
    head_only: bool,
    taking: Taking<'_>,
) -> Result<bool, h2::Error> {
    let (head, body) = answer.into_parts();
    let size = body.size();
    let Some(response) = response(head.status().as_u16(), head.headers(), size) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(false);
    };
    let is_over = head_only || size.is_eof();
    let mut stream = respond.send_response(response, is_over)?;
    if is_over {
        return Ok(true);
    }
    let body = match body.try_into_bytes() {
        Ok(whole) => return send_bytes(&mut stream, whole, true, taking).await,
        Err(body) => body,
    };
    let mut body = pin!(body);
    while let Some(piece) = poll_fn(|cx| body.as_mut().poll_next(cx)).await {
        let Ok(bytes) = piece.map_err(Into::<Box<dyn Error>>::into) else {
            stream.send_reset(Reason::INTERNAL_ERROR);
            return Ok(false);
        };
        if !send_bytes(&mut stream, bytes, false, taking).await? {
            return Ok(false);
        }
    }
    stream.send_data(Bytes::new(), true).map(|()| true)
}

/// Sends all of it as the client's windows open; false if they do not.
async fn send_bytes(
    stream: &mut SendStream<Bytes>,
    mut bytes: Bytes,
    is_last: bool,
    taking: Taking<'_>,
) -> Result<bool, h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len().min(CHUNK));
        match timeout(taking.stall, poll_fn(|cx| stream.poll_capacity(cx))).await {
            Ok(Some(Ok(0))) => {}
            Ok(Some(Ok(room))) => {
                let piece = bytes.split_to(room.min(bytes.len()));
                stream.send_data(piece, is_last && bytes.is_empty())?;
            }
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => return Ok(false),
            Err(_) => {
                taking.metrics.hit(Limit::StallTimeout);
                stream.send_reset(Reason::CANCEL);
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The body of a request: the window opens again as it is read.
struct Body {
    stream: RecvStream,
    seen: Rc<Seen>,
    /// Bytes that all bodies of the connection may have.
    most: usize,
    /// Bytes of it that were read.
    read: usize,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.seen.bodies.set(self.seen.bodies.get() - self.read);
    }
}

impl Stream for Body {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(piece) = ready!(this.stream.poll_data(cx)) else { return Poll::Ready(None) };
        let incomplete = |_| PayloadError::Incomplete(None);
        Poll::Ready(Some(piece.map_err(incomplete).and_then(|bytes| {
            // An empty frame is no progress.
            if !bytes.is_empty() {
                this.seen.idle.set(0);
            }
            this.stream.flow_control().release_capacity(bytes.len()).map_err(incomplete)?;
            this.read += bytes.len();
            this.seen.bodies.set(this.seen.bodies.get() + bytes.len());
            if this.seen.bodies.get() > this.most {
                return Err(PayloadError::Io(CROWDED.into()));
            }
            Ok(bytes)
        })))
    }
}

/// What has become of what was written last.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Written {
    /// There was nothing.
    #[default]
    Nothing,
    /// The kernel has not got all of it.
    Waits,
    /// The kernel has it.
    Flushed,
}

/// What is seen of a connection at its socket.
#[derive(Default)]
struct Seen {
    /// How many bytes came since the last one of use.
    idle: Cell<usize>,
    /// It was given up since the client took nothing.
    stalled: Cell<bool>,
    /// Bytes that were read of bodies which are still coming.
    bodies: Cell<usize>,
    written: Cell<Written>,
}

/// The socket below `h2`, which gives up a client that takes nothing or sends nothing of use.
struct Watched {
    io: Io,
    stall: Duration,
    /// There while the socket takes nothing.
    blocked: Option<Pin<Box<Sleep>>>,
    seen: Rc<Seen>,
}

impl Watched {
    fn taken<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let stall = self.stall;
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(blocked.as_mut().poll(cx));
        self.seen.stalled.set(true);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.seen.idle.set(self.seen.idle.get() + buf.filled().len() - before);
        if self.seen.idle.get() > IDLE_BYTES {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.seen.written.set(Written::Waits);
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.taken(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if self.seen.written.get() == Written::Waits && matches!(flushed, Poll::Ready(Ok(()))) {
            self.seen.written.set(Written::Flushed);
        }
        self.taken(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.taken(shut, cx)
    }
}

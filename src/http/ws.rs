//! The WebSocket upgrade, which takes the socket out of actix's HTTP dispatcher.
//!
//! A connection that stays in the dispatcher costs two 8-KiB buffers for life; one that leaves it
//! costs what the session keeps, which is next to nothing while it is idle. So the handler does
//! not answer through the framework: it judges the request by the route table, writes 101 or the
//! refusal itself, and hands the bare socket to a task of the same worker. Not here: what the
//! bytes of a session mean (`proto::ws`), and the loop that moves them (`session::run`).

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_codec::Framed;
use actix_http::{HttpMessage as _, Request, h1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::{debug, info_span, warn};

use super::caller::{Arrival, Caller};
use super::door::Entered;
use super::guard::Guarded;
use super::{Current, Judged, version};
use crate::io::Io;
use crate::metrics::Upgrade;
use crate::proto::handshake::{self, Verdict};
use crate::session::meter::Meter;
use crate::session::newcomer::Newcomer;
use crate::session::run::Run;
use crate::session::timed::Timed;
use crate::session::timer::clock;
use crate::session::worker::{self, NoPlace, Worker};
use crate::upstream;

/// How long a refused client may take to read the refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);
/// Input of a refused client that is thrown away so that the refusal is not lost to a reset.
const REFUSAL_DISCARD: usize = 64 * 1024;
/// Seconds after which a client that was one too many may come back; jittered.
const RETRY_AFTER: std::ops::Range<u64> = 5..20;

/// Everything the hook needs on one worker.
#[derive(Debug)]
pub struct Hook {
    /// The worker's sessions.
    pub worker: Rc<Worker>,
    /// What it shares with the `App`: the routes, and what sessions are made with.
    pub current: Arc<Current>,
}

impl Hook {
    /// Takes over one upgrade request and its connection. The answer is written and the session
    /// started when this returns; an error ends the connection.
    pub async fn upgrade(
        self: Rc<Self>,
        mut request: Request,
        framed: Framed<Guarded, h1::Codec>,
    ) -> Result<(), actix_http::Error> {
        let live = self.current.load();
        let caller = {
            let arrival = request.conn_data::<Rc<Entered>>().map(|entered| entered.arrival);
            Caller::of(
                &arrival.unwrap_or_else(|| Arrival::plain(request.peer_addr())),
                request.headers(),
                &live.trust,
            )
        };
        let peer = caller.address;
        let head_only = request.method() == actix_http::Method::HEAD;
        let judged = {
            let headers =
                request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            let version = version(request.version());
            live.routes.judge(request.path(), request.method().as_str(), version, headers)
        };
        let origin = super::bosh::origin(request.headers());
        let newcomer = matches!(judged, Judged::WebSocket(Verdict::Accept { .. }))
            .then(|| super::newcomer(request.headers(), &caller, &self.worker));
        super::let_go_of_head(request.head_mut());
        drop(request);
        let parts = framed.into_parts();
        let mut early = parts.read_buf.to_vec();
        // Answers to requests that were pipelined before this one, if the socket was full.
        let mut answer = parts.write_buf.to_vec();
        let meter = Rc::clone(&parts.io.entered().meter);
        let Some((socket, behind)) = parts.io.into_inner() else { return Ok(()) };
        early.extend_from_slice(&behind);
        // The session must not keep the dispatcher's buffers alive.
        drop((parts.codec, parts.read_buf, parts.write_buf));

        let metrics = &self.worker.shared.metrics;
        let refused = |outcome| super::upgrade_refused(&self.worker, &caller, outcome);
        let refusal = match judged {
            Judged::WebSocket(Verdict::Accept { accept_key, protocol }) => {
                let sessions = &self.worker.shared.sessions;
                let now = clock();
                let admit = |()| {
                    if live.sessions.settings.see_other_uri.is_some() {
                        sessions.admit_to_redirect(caller.limited, now)
                    } else {
                        sessions.admit(caller.limited, now)
                    }
                };
                let allowed = sessions.addresses().request(caller.limited, now);
                match allowed.map_err(NoPlace::Limit).and_then(admit) {
                    Ok(permit) => {
                        metrics.upgrades.came_to(Upgrade::Accepted);
                        let begun = meter.begun(now);
                        meter.upgraded();
                        answer.extend(handshake::switching_protocols(&accept_key, protocol));
                        let live = Arc::clone(&live.sessions);
                        return self
                            .start(
                                (socket, meter, begun),
                                &answer,
                                early,
                                live,
                                permit,
                                (caller.client(), origin, newcomer),
                            )
                            .await;
                    }
                    Err(NoPlace::Draining) => refused(Upgrade::Drain),
                    Err(NoPlace::Limit(limit)) => {
                        metrics.limits.hit(limit);
                        refused(Upgrade::Overload);
                        if let Some(held_back) = self.worker.overload_warnings.admit(now) {
                            let (sessions, why) = (sessions.open(), limit.key());
                            warn!(
                                sessions,
                                why, held_back, "upgrade_refused: no place for another session"
                            );
                        }
                    }
                }
                let id = self.worker.next_id();
                let wait = RETRY_AFTER.start + id % (RETRY_AFTER.end - RETRY_AFTER.start);
                let wait = u32::try_from(wait).unwrap_or(u32::MAX);
                handshake::overload(wait, live.routes.origins(), origin.as_deref())
            }
            Judged::WebSocket(Verdict::Refuse(why, answer)) => {
                refused(Upgrade::Refused(why));
                answer
            }
            Judged::NotFound(answer) => {
                refused(Upgrade::NotFound);
                answer
            }
            Judged::WebSocket(Verdict::Plain(answer)) => answer,
        };
        debug!(
            peer = peer.map(tracing::field::display),
            status = refusal.status,
            "upgrade_refused"
        );
        answer.extend(refusal.to_http1(head_only));
        // Off the dispatcher's connection limit, and never longer than the patience.
        actix_rt::spawn(async move {
            let _ = tokio::time::timeout(REFUSAL_PATIENCE, refuse(socket, answer)).await;
            // The socket has counted into it to its end.
            drop(meter);
        });
        Ok(())
    }

    async fn start(
        &self,
        (mut socket, meter, begun): (Io, Rc<Meter>, Instant),
        answer: &[u8],
        early: Vec<u8>,
        live: Arc<worker::Live>,
        permit: worker::Permit,
        (who, origin, newcomer): (upstream::Client, Option<String>, Option<Box<Newcomer>>),
    ) -> Result<(), actix_http::Error> {
        // Ninety-odd bytes into an empty socket buffer: this does not wait.
        if tokio::time::timeout(REFUSAL_PATIENCE, tell(&mut socket, answer)).await.is_err() {
            return Ok(());
        }
        let id = self.worker.next_id();
        let who = upstream::Client { id, ..who };
        let origin = live.websocket_origins.of_interest(origin.as_deref());
        let span = info_span!(
            parent: None,
            "session",
            id = format_args!("{id:012x}"),
            peer = who.address.map(tracing::field::display),
            transport = tracing::field::Empty,
            domain = tracing::field::Empty,
        );
        let worker = Rc::clone(&self.worker);
        let connection = Rc::clone(&meter);
        let run = Run::new(
            worker,
            live,
            socket,
            early,
            permit,
            span,
            (who, origin, newcomer),
            (meter, begun),
            clock(),
        );
        actix_rt::spawn(Timed::new(run, connection));
        Ok(())
    }
}

/// Writes it, through TLS's buffers too.
async fn tell(socket: &mut Io, text: &[u8]) -> io::Result<()> {
    socket.write_all(text).await?;
    socket.flush().await
}

/// Writes a refusal and waits for the client to read it.
async fn refuse(mut socket: Io, answer: Vec<u8>) -> io::Result<()> {
    socket.write_all(&answer).await?;
    socket.shutdown().await?;
    // Closing with unread input would reset the connection before the answer is read.
    let mut discarded = 0;
    let mut buffer = [0; 2048];
    while discarded < REFUSAL_DISCARD {
        match socket.read(&mut buffer).await? {
            0 => break,
            n => discarded += n,
        }
    }
    Ok(())
}

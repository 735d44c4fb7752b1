//! The face of BOSH: `POST`, CORS, and whatever else a browser asks of the path (XEP-0124 §5).
//!
//! A request's body is read within its limits (`intake`), understood by `proto::bosh::body`, and
//! brought to its session through the registry; the handler then waits for the answer. If the
//! client goes away meanwhile, actix drops the handler, and with it the receiving end, which is
//! how the session learns of it (BOSH-48, BOSH-51).
//!
//! Statuses are chosen by what clients do about them: a 4xx ends the session in Strophe and JSJaC,
//! a 5xx makes them try again. So whatever trying again would cure is a 503 with `Retry-After`, or
//! an ordinary answer with a condition; every answer has CORS headers, since a page cannot even see
//! the status without them. A creation is known as such only by its body, so that it is refused for
//! want of room after that was read, which is bounded and cheap; requests of sessions that exist
//! are never refused to make room.

mod intake;
mod strangers;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix_http::ConnectionType;
use actix_web::body::MessageBody;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode, Version};
use actix_web::{HttpResponse, HttpResponseBuilder, web};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tracing::{debug, warn};

use self::intake::{Coding, Failure};
pub use self::strangers::Strangers;
use super::caller::{Caller, Trust};
use super::connection::Held;
use super::door;
use super::guard::Watch;
use super::{Asked, Live};
use crate::metrics::{Limit, MEASURES, OpenGuard, Refusal};
use crate::proto::bosh::body::{self, Body, Unreadable};
use crate::proto::bosh::{Content, Reply, response};
use crate::proto::fault::Fault;
use crate::proto::origins::Origins;
use crate::session::bosh::create;
use crate::session::meter::Meter;
use crate::session::newcomer::Newcomer;
use crate::session::registry::{Exchange, Refused};
use crate::session::timer::clock;
use crate::session::worker::{self, NoPlace, Worker};

/// What the face of BOSH needs of the configuration.
#[derive(Debug)]
pub struct Settings {
    /// The pages that may read the answers (SEC-02): those of all domains together.
    pub origins: Origins,
    /// It matters where a page is from: not all are welcome everywhere.
    pub origins_matter: bool,
    /// They may send cookies, which load balancers go by.
    pub allow_credentials: bool,
    /// Request headers that pages may send besides `Content-Type`.
    pub allowed_headers: Vec<Box<str>>,
    /// The time for a request's body, besides a second for each KiB that came (SEC-18).
    pub body_timeout: Duration,
    /// Coded requests are read, and large responses compressed (BOSH-08, BOSH-09).
    pub gzip: bool,
    /// Where the mode of a session is unknown, refusals are HTTP codes (BOSH-79).
    pub legacy_unknown: bool,
    /// Who asks for sessions that are not there (BOSH-91).
    pub strangers: Option<Strangers>,
    /// Whom to believe who the client is.
    pub trust: Arc<Trust>,
}

/// The face, for one request.
#[derive(Debug)]
pub struct Face {
    /// The worker whose task the sessions are made on.
    worker: Rc<Worker>,
    settings: Arc<Settings>,
    /// What sessions are made with.
    live: Arc<worker::Live>,
}

/// Responses of this size and less are not worth compressing.
const COMPRESS_ABOVE: usize = 1024;
/// Seconds after which a client that was one too many may come back; jittered.
const RETRY_AFTER: std::ops::Range<u64> = 5..20;
/// SEC-02: the longest that browsers remember.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("86400");
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS, POST");
const PAGE: &str =
    "This is a BOSH endpoint (XEP-0124): XMPP clients send their requests here by POST.\n";

/// What has to be known of a request once its head is gone.
struct Client {
    caller: Caller,
    origin: Option<String>,
    takes_gzip: bool,
    /// What its connection costs.
    meter: Option<Rc<Meter>>,
    /// It is told to close the connection and look for another process.
    close: bool,
}

/// What a request says of the client, should it make a session.
struct Said {
    agent: Option<Box<[u8]>>,
    origin: Option<Box<[u8]>>,
}

impl Said {
    /// More of a value is not looked at.
    const MOST: usize = 512;

    /// Copies, which do not keep what the head was read into while the body comes.
    fn of(headers: &HeaderMap) -> Self {
        let value = |name| {
            let value = headers.get(name)?.as_bytes();
            Some(value.get(..Self::MOST).unwrap_or(value).into())
        };
        Self { agent: value(header::USER_AGENT), origin: value(header::ORIGIN) }
    }
}

/// A request that its session has.
struct Waiting {
    face: Face,
    client: Client,
    answer: oneshot::Receiver<Reply>,
    _open: OpenGuard,
}

impl Future for Waiting {
    type Output = HttpResponse;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResponse> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(self.face.answered(&self.client, answer))
    }
}

/// Whether the connection stays open behind this request, and its body is as long on the wire as it
/// was read: then the answer may be given outside the dispatcher.
fn may_leave(asked: &Asked) -> bool {
    asked.request.version() == Version::HTTP_11
        && asked.request.head().connection_type() == ConnectionType::KeepAlive
        && !asked.headers().contains_key(header::TRANSFER_ENCODING)
}

impl Face {
    /// The face that answers one request on `worker`.
    #[must_use]
    pub fn new(worker: Rc<Worker>, live: &Live) -> Self {
        Self { worker, settings: Arc::clone(&live.face), live: Arc::clone(&live.sessions) }
    }

    /// Answers a request for one of the paths of BOSH.
    pub(super) async fn answer(self, asked: Asked, mut payload: web::Payload) -> HttpResponse {
        let settings = &self.settings;
        let (request, headers) = (&asked.request, asked.headers());
        let client = Client {
            caller: Caller::of(&door::arrival(request), headers, &settings.trust),
            origin: if settings.origins_matter { origin(headers) } else { None },
            takes_gzip: settings.gzip && takes_gzip(headers),
            meter: door::entered(request).map(|entered| Rc::clone(&entered.meter)),
            close: self.worker.shared.sessions.is_draining(),
        };
        match *request.method() {
            Method::POST => {}
            Method::OPTIONS => return self.preflight(&client),
            Method::GET | Method::HEAD => {
                return self.response(&client, StatusCode::OK, TEXT).body(PAGE);
            }
            _ => {
                let mut response = self.response(&client, StatusCode::METHOD_NOT_ALLOWED, TEXT);
                response.insert_header((header::ALLOW, ALLOW));
                return response.body("XMPP clients send their requests here by POST.\n");
            }
        }

        // Only these cost more to answer than to refuse.
        let addresses = self.worker.shared.sessions.addresses();
        let mut received = clock();
        if let Err(limit) = addresses.request(client.caller.limited, received) {
            self.worker.shared.metrics.limits.hit(limit);
            self.count(&client, Refusal::Rate);
            return close(self.later(&client), LATER, payload);
        }
        let open = self.worker.local.request_opened();
        let said = Said::of(headers);
        let limit = self.live.bosh.body_bytes;
        let mut watch = None;
        let read = match Coding::of(headers, settings.gzip) {
            None => Err(Failure::Coded),
            Some(_) if intake::announced(headers).is_some_and(|bytes| bytes > limit as u64) => {
                Err(Failure::TooBig)
            }
            Some(coding) => {
                // The head is of no use any more, and the request may be held for a minute.
                watch = request.conn_data::<Rc<Watch>>().map(Rc::clone);
                let may_leave = may_leave(&asked);
                drop(asked);
                let timeout = settings.body_timeout;
                let arriving = self.worker.shared.sessions.budget().arriving();
                match intake::read(&mut payload, limit, timeout, received, arriving).await {
                    Ok(body) => {
                        if MEASURES {
                            received = clock();
                        }
                        // Now, since the answer may take a minute.
                        client.meter.iter().for_each(|meter| meter.count());
                        let length = may_leave.then_some(body.len());
                        watch.iter().for_each(|watch| watch.hold(length));
                        coding.decode(body, limit)
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        let request = match read {
            Ok(bytes) => {
                drop(payload);
                let mut buffers = self.worker.buffers.borrow_mut();
                body::read(&mut buffers.scratch, &self.live.bosh, &bytes)
            }
            Err(failure) => return self.unread(&client, failure, payload),
        };
        let brought = self.bring(request, &client, &said, received);
        drop(said);
        match brought {
            Ok(answer) => {
                if let Some(meter) = &client.meter {
                    meter.bosh();
                    meter.passing(received);
                }
                Held::new(Waiting { face: self, client, answer, _open: open }, watch).await
            }
            Err((why, instead)) => {
                self.count(&client, why);
                match instead {
                    Instead::Reply(reply) => self.reply(&client, reply),
                    Instead::Later => self.later(&client).body(LATER),
                    Instead::Nothing => nothing(),
                }
            }
        }
    }

    /// The answer to a request that its session had.
    fn answered(&self, client: &Client, answer: Result<Reply, RecvError>) -> HttpResponse {
        match answer {
            Ok(mut reply) => {
                if let Some(meter) = &client.meter {
                    meter.send_body(&reply.body);
                }
                let read = std::mem::take(&mut reply.read);
                if let (false, Some(meter)) = (read.is_empty(), &client.meter) {
                    meter.send(read, reply.first, clock());
                }
                self.reply(client, reply)
            }
            Err(_) => {
                self.count(client, Refusal::Dropped);
                self.reply(client, refusal(Fault::Bug))
            }
        }
    }

    /// Brings a request to its session, or makes that. The error is what it gets instead.
    fn bring(
        &self,
        request: Result<Body, Unreadable>,
        Client { caller, origin, meter, .. }: &Client,
        said: &Said,
        received: Instant,
    ) -> Result<oneshot::Receiver<Reply>, (Refusal, Instead)> {
        let shared = &self.worker.shared;
        let sid = match &request {
            Ok(body) => body.sid,
            Err(unreadable) => unreadable.sid,
        };
        if let Some(sid) = sid {
            let (reply, answer) = oneshot::channel();
            return match shared.registry.send(
                &sid,
                caller.secure,
                Exchange { request, received, reply },
            ) {
                Ok(()) => Ok(answer),
                Err(Refused::Unknown) => Err(self.stranger(caller)),
                // An answer would tell whoever listens on the way that the sid is one.
                Err(Refused::Insecure) => Err((Refusal::Insecure, Instead::Nothing)),
                Err(Refused::Full) => Err((Refusal::Busy, Instead::Later)),
            };
        }
        let body = match request {
            Ok(body) if body.has_foreign_sid() => return Err(self.stranger(caller)),
            Ok(body) => body,
            Err(unreadable) => {
                unreadable.limit.into_iter().for_each(|limit| shared.metrics.limits.hit(limit));
                let reply = self.unknown(Fault::BadBody);
                return Err((Refusal::Unreadable, Instead::Reply(reply)));
            }
        };
        let now = clock();
        let permit = shared.sessions.admit(caller.limited, now).map_err(|why| {
            let NoPlace::Limit(limit) = why else {
                // BOSH-74: the client has to find another place, not to wait for this one.
                return (Refusal::Drain, Instead::Reply(refusal(Fault::Drain)));
            };
            shared.metrics.limits.hit(limit);
            if let Some(held_back) = self.worker.overload_warnings.admit(now) {
                let (sessions, why) = (shared.sessions.open(), limit.key());
                warn!(sessions, why, held_back, "creation_refused: no place for another session");
            }
            (Refusal::Overload, Instead::Later)
        })?;
        let begun = meter.as_ref().map_or(received, |meter| meter.begun(received));
        let [agent, page] = [&said.agent, &said.origin].map(|value| value.as_deref());
        let newcomer = Newcomer::new(agent, page, caller.limited, &shared.sessions);
        let client = (caller.client(), begun, newcomer);
        create(&self.worker, &self.live, body, permit, client, origin.as_deref())
            .map_err(|reply| (Refusal::Creation, Instead::Reply(reply)))
    }

    /// BOSH-70, BOSH-91: the answer to a request for a session that is not there.
    ///
    /// Too many of them are told so only when they are known to be such: to refuse an address
    /// unread would cut off the sessions of everybody behind it.
    fn stranger(&self, caller: &Caller) -> (Refusal, Instead) {
        let too_many = match (&self.settings.strangers, caller.limited) {
            (Some(strangers), Some(address)) => !strangers.admit(address, clock()),
            _ => false,
        };
        if too_many {
            self.worker.shared.metrics.limits.hit(Limit::UnknownSidsPerMinute);
            (Refusal::Stranger, Instead::Later)
        } else {
            (Refusal::UnknownSid, Instead::Reply(self.unknown(Fault::UnknownSid)))
        }
    }

    /// BOSH-79: a refusal where the mode is not known, by what `bosh.legacy_unknown` says.
    fn unknown(&self, fault: Fault) -> Reply {
        response::refusal(fault, self.settings.legacy_unknown, Content::default())
    }

    /// The answer to a request whose body was not read to its end. The session it belongs to, if
    /// any, does not learn of it (BOSH-06).
    fn unread(&self, client: &Client, failure: Failure, payload: web::Payload) -> HttpResponse {
        let limits = &self.worker.shared.metrics.limits;
        let (why, response, text) = match failure {
            Failure::TooBig => {
                limits.hit(Limit::BodyBytes);
                (
                    Refusal::TooBig,
                    self.response(client, StatusCode::PAYLOAD_TOO_LARGE, TEXT),
                    "The request is larger than this server takes.\n",
                )
            }
            Failure::Coded => {
                let mut response = self.response(client, StatusCode::UNSUPPORTED_MEDIA_TYPE, TEXT);
                // RFC 9110 §15.5.16.
                let codings = if self.settings.gzip { "gzip, deflate" } else { "identity" };
                response.insert_header((header::ACCEPT_ENCODING, codings));
                (Refusal::Coded, response, "The request is in a coding that is not read here.\n")
            }
            // Not 408, which ends sessions: the network may be better the next time.
            Failure::Slow => {
                limits.hit(Limit::BodyTimeout);
                (Refusal::Slow, self.later(client), LATER)
            }
            Failure::Crowded => {
                limits.hit(Limit::BodyBytes);
                (Refusal::Overload, self.later(client), LATER)
            }
            Failure::Full => {
                limits.hit(Limit::Memory);
                (Refusal::Overload, self.later(client), LATER)
            }
            Failure::Broken => (
                Refusal::Broken,
                self.response(client, StatusCode::BAD_REQUEST, TEXT),
                "The request's body is not what its head says.\n",
            ),
        };
        self.count(client, why);
        close(response, text, payload)
    }

    /// The answer of a session, or one in its style.
    fn reply(&self, client: &Client, reply: Reply) -> HttpResponse {
        let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
        let content = HeaderValue::from_static(match reply.content {
            Content::TextXml => "text/xml; charset=utf-8",
            Content::ApplicationXml => "application/xml; charset=utf-8",
            Content::TextPlain => "text/plain; charset=utf-8",
        });
        let mut response = self.response(client, status, content);
        if reply.compressible && client.takes_gzip && reply.body.len() > COMPRESS_ABOVE {
            response.insert_header((header::CONTENT_ENCODING, HeaderValue::from_static("gzip")));
            return response.body(intake::compress(&reply.body));
        }
        response.body(reply.body)
    }

    /// 503: the same request may succeed later (SEC-16).
    fn later(&self, client: &Client) -> HttpResponseBuilder {
        let id = self.worker.next_id();
        let wait = RETRY_AFTER.start + id % (RETRY_AFTER.end - RETRY_AFTER.start);
        let mut response = self.response(client, StatusCode::SERVICE_UNAVAILABLE, TEXT);
        response.insert_header((header::RETRY_AFTER, wait));
        response
    }

    /// SEC-02: what a browser asks before it lets a page send a request.
    fn preflight(&self, client: &Client) -> HttpResponse {
        let settings = &self.settings;
        let mut response = HttpResponse::build(StatusCode::NO_CONTENT);
        self.cors(client, &mut response);
        let is_allowed = |origin: &String| settings.origins.allows(origin);
        if settings.origins == Origins::Any || client.origin.as_ref().is_some_and(is_allowed) {
            let mut names = "content-type".to_owned();
            for name in &settings.allowed_headers {
                names.push_str(", ");
                names.push_str(name);
            }
            response
                .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "POST"))
                .insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, names))
                .insert_header((header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS));
        }
        response.finish()
    }

    /// An answer with the headers that every one has (BOSH-07, SEC-02).
    fn response(
        &self,
        client: &Client,
        status: StatusCode,
        content: HeaderValue,
    ) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(status);
        response
            .insert_header((header::CONTENT_TYPE, content))
            .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
        self.cors(client, &mut response);
        if client.close {
            response.force_close();
        }
        response
    }

    /// Adds what lets a page see the answer.
    fn cors(&self, client: &Client, response: &mut HttpResponseBuilder) {
        let (origins, origin) = (&self.settings.origins, client.origin.as_deref());
        for header in origins.cors(origin, self.settings.allow_credentials) {
            response.insert_header(header);
        }
    }

    fn count(&self, client: &Client, why: Refusal) {
        self.worker.shared.metrics.bosh.refused(why);
        let peer = client.caller.address.map(tracing::field::display);
        debug!(peer, why = why.label(), "bosh_refused");
    }
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const LATER: &str = "There is no room now: please try again later.\n";

/// What a request gets that no session has got.
enum Instead {
    Reply(Reply),
    /// A 503.
    Later,
    /// The end of its connection.
    Nothing,
}

/// An answer to a request whose body is not read to its end, so that no other request can follow.
fn close(
    mut response: HttpResponseBuilder,
    text: &'static str,
    payload: web::Payload,
) -> HttpResponse {
    boxed(response.force_close().message_body(intake::Unread::new(text, payload)))
}

/// BOSH-89: no answer; the connection is closed.
fn nothing() -> HttpResponse {
    boxed(HttpResponse::Ok().message_body(intake::Cut))
}

fn boxed<B: MessageBody + 'static>(
    response: Result<HttpResponse<B>, actix_web::Error>,
) -> HttpResponse {
    response.map_or_else(
        |_| HttpResponse::InternalServerError().finish(),
        HttpResponse::map_into_boxed_body,
    )
}

/// The end of what is no session, or of one that has failed (BOSH-70).
fn refusal(fault: Fault) -> Reply {
    response::refusal(fault, false, Content::default())
}

/// The page that a request comes from, if a page sent it.
pub(super) fn origin(headers: &HeaderMap) -> Option<String> {
    // What is not ASCII is no origin, and so none that is listed.
    headers.get(header::ORIGIN).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// RFC 9110 §12.5.3: whether the client takes gzip. One that says nothing is not asked to.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut star = false;
    for line in headers.get_all(header::ACCEPT_ENCODING) {
        for item in line.to_str().unwrap_or_default().split(',') {
            let (coding, weight) = item.split_once(';').unwrap_or((item, ""));
            let weight = weight.trim().strip_prefix("q=").unwrap_or("1").trim();
            let is_welcome = weight.parse::<f32>().is_ok_and(|weight| weight > 0.0);
            match coding.trim() {
                name if name.eq_ignore_ascii_case("gzip") => return is_welcome,
                "*" => star = is_welcome,
                _ => {}
            }
        }
    }
    star
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BOSH-08: compressed only for who asks for it.
    #[test]
    fn gzip_is_for_who_takes_it() {
        let takes = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(line));
            }
            takes_gzip(&headers)
        };
        for yes in [&["gzip"][..], &["br, GZIP;q=0.5"], &["br", "gzip"], &["*"], &["*;q=0, gzip"]] {
            assert!(takes(yes), "{yes:?}");
        }
        for no in [&[][..], &["br"], &["gzip;q=0"], &["identity", "gzip; q=0.0, *"], &["gzip;q=x"]]
        {
            assert!(!takes(no), "{no:?}");
        }
    }
}

//! The face towards clients: every path of the public listener, in one place.
//!
//! A listener that carries WebSocket sessions has actix's upgrade hook set, and then *every*
//! upgrade on it, on any path, goes to the hook and the `App` never sees it (see [`ws`]). So both
//! answer from the same [`Routes`].
//!
//! A connection comes in through the [`door`], which knows load balancers and limits connections;
//! who has sent a request, through whatever proxies, is found out by [`caller`].

pub mod admin;
mod assets;
pub mod bosh;
pub mod caller;
pub mod connection;
pub mod door;
mod figures;
pub mod guard;
pub mod h1;
pub mod h2;
mod host_meta;
pub mod lab;
pub mod proxy_protocol;
pub mod tls;
pub mod ws;

use std::rc::Rc;
use std::sync::Arc;

use actix_http::{ConnectionType, Request};
use actix_web::dev::{RequestHead, Service, ServiceRequest, ServiceResponse, Url};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Uri};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};
use arc_swap::ArcSwap;

use self::caller::Caller;
use self::guard::Watch;
use crate::metrics::Upgrade;
use crate::proto::handshake::{self, Answer, Verdict, Version};
use crate::proto::host_meta::Discovery;
use crate::proto::origins::Origins;
use crate::session::newcomer::Newcomer;
use crate::session::timer::clock;
use crate::session::worker::{self, Worker};

/// What requests are judged by and sessions are made with. A reload of the configuration puts
/// another in its place, all of it at once: who has begun with one goes on with that one.
#[derive(Debug)]
pub struct Live {
    /// Paths, and who may connect over WebSocket.
    pub routes: Routes,
    /// BOSH towards browsers.
    pub face: Arc<bosh::Settings>,
    /// How clients of which domain find the endpoints.
    pub discovery: Discovery,
    /// Whom to believe who the client is.
    pub trust: Arc<caller::Trust>,
    /// What a connection goes through at first.
    pub door: Arc<door::Settings>,
    /// What a connection may cost.
    pub connection: connection::Limits,
    /// What sessions are made with.
    pub sessions: Arc<worker::Live>,
}

/// The [`Live`] of this moment. Read once for a connection, a request or a session, and never for a
/// stanza.
#[derive(Debug)]
pub struct Current(ArcSwap<Live>);

impl Current {
    /// The first one.
    #[must_use]
    pub fn new(live: Live) -> Self {
        Self(ArcSwap::from_pointee(live))
    }

    /// The one in force.
    #[must_use]
    pub fn load(&self) -> Arc<Live> {
        self.0.load_full()
    }

    /// Puts another in its place.
    pub fn replace(&self, live: Live) {
        self.0.store(Arc::new(live));
    }
}

/// What is served where on the public listener.
#[derive(Clone, Debug)]
pub struct Routes {
    websocket: Arc<[Box<str>]>,
    bosh: Arc<[Box<str>]>,
    handshake: Arc<handshake::Settings>,
}

/// The judgement of one request.
#[derive(Debug)]
pub enum Judged {
    /// Nothing is served on this path.
    NotFound(Answer),
    /// A path of the WebSocket.
    WebSocket(Verdict),
}

impl Routes {
    /// The paths of the WebSocket and of BOSH, which may share some, and what an upgrade needs.
    #[must_use]
    pub fn new(websocket: &[String], bosh: &[String], handshake: handshake::Settings) -> Self {
        let boxed = |paths: &[String]| paths.iter().map(|path| path.as_str().into()).collect();
        Self { websocket: boxed(websocket), bosh: boxed(bosh), handshake: Arc::new(handshake) }
    }

    /// Whether a request that is no upgrade is one for BOSH. On a path that the WebSocket has too,
    /// only the methods that nothing but BOSH has: its page says more.
    #[must_use]
    pub fn is_bosh(&self, path: &str, method: &str) -> bool {
        let has = |paths: &[Box<str>]| paths.iter().any(|known| &**known == path);
        has(&self.bosh) && (matches!(method, "POST" | "OPTIONS") || !has(&self.websocket))
    }

    /// What becomes of a request; the query string takes no part in it (WS-06).
    pub fn judge<'a>(
        &self,
        path: &str,
        method: &str,
        version: Version,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Judged {
        if self.websocket.iter().any(|known| &**known == path) {
            Judged::WebSocket(handshake::judge(method, version, headers, &self.handshake))
        } else {
            Judged::NotFound(handshake::not_found())
        }
    }

    /// The first path of the WebSocket and of BOSH, by which they are known.
    #[must_use]
    pub fn first(&self) -> (Option<&str>, Option<&str>) {
        (self.websocket.first().map(|path| &**path), self.bosh.first().map(|path| &**path))
    }

    /// Who may connect.
    #[must_use]
    pub fn origins(&self) -> &Origins {
        &self.handshake.origins
    }
}

/// Registers the routes with actix's `App`: all that is no upgrade.
pub fn configure(
    current: Arc<Current>,
    worker: Rc<Worker>,
) -> impl FnOnce(&mut web::ServiceConfig) {
    move |app| {
        app.default_service(web::to(move |request: HttpRequest, payload: web::Payload| {
            let (live, worker) = (current.load(), Rc::clone(&worker));
            let asked = Asked::new(request);
            let request = &asked.request;
            if is_bodyless(asked.headers()) {
                request.conn_data::<Rc<Watch>>().into_iter().for_each(|watch| watch.bodyless());
            }
            let is_draining = worker.shared.sessions.is_draining();
            let document = host_meta::answer(&live, request, is_draining);
            let is_bosh = live.routes.is_bosh(request.path(), request.method().as_str());
            async move {
                if let Some(document) = document {
                    document
                } else if is_bosh {
                    bosh::Face::new(worker, &live).answer(asked, payload).await
                } else {
                    plain(&live, &worker, &asked)
                }
            }
        }));
    }
}

/// What a `POST` came with, until its handler has taken it.
#[derive(Debug)]
struct Headers(HeaderMap);

/// Takes the headers out of a request that may last, for its handler to find, and gives it a URI of
/// its own. Both are parts of the buffer that they were read into; and what is left of the request
/// actix keeps for later ones, as it is: with a table of headers larger than many a session.
pub fn take_headers(request: &mut ServiceRequest) {
    let head = request.head_mut();
    let headers = std::mem::replace(&mut head.headers, HeaderMap::new());
    if let Ok(uri) = head.uri.to_string().parse::<Uri>() {
        head.uri = uri.clone();
        request.match_info_mut().set(Url::new(uri));
    }
    request.extensions_mut().insert(Headers(headers));
}

/// A request and its headers, wherever they are.
struct Asked {
    request: HttpRequest,
    /// Those of a `POST`.
    taken: Option<HeaderMap>,
}

impl Asked {
    fn new(request: HttpRequest) -> Self {
        let taken = request.extensions_mut().remove::<Headers>().map(|Headers(headers)| headers);
        Self { request, taken }
    }

    fn headers(&self) -> &HeaderMap {
        self.taken.as_ref().unwrap_or_else(|| self.request.headers())
    }
}

/// Lets go of what the client sent, once it was answered. Actix keeps some hundred requests for
/// later ones, as they are; their values are parts of the buffer they were read into, and so each
/// would keep all of that, body included.
///
/// Whoever asked for another protocol is told that the connection ends.
#[must_use]
pub fn let_go<B>(response: ServiceResponse<B>) -> ServiceResponse<B> {
    let (request, mut response) = response.into_parts();
    if request.head().connection_type() == ConnectionType::Upgrade {
        // Not changed to what it asked for (h2c, say), after which actix keeps no connection; nor
        // would it say so (RFC 9112 §9.6), and the client's next request would be lost on it.
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    let mut request = ServiceRequest::from_request(request);
    let_go_of_head(request.head_mut());
    request.match_info_mut().set(Url::default());
    ServiceResponse::new(request.into_parts().0, response)
}

fn let_go_of_head(head: &mut RequestHead) {
    head.headers = HeaderMap::new();
    head.uri = Uri::default();
}

/// Requests that an `App` keeps for later ones, and heads that a thread does.
const POOLED: usize = 128;

/// Fills the pools of actix, so that from the start a worker has all that it keeps of the requests
/// of a crowd. Nothing of a request is done but that it is made and dropped again.
pub fn fill_pool<S: Service<Request>>(app: &S) {
    let request = || {
        let mut request = Request::new();
        let_go_of_head(request.head_mut());
        // Its headers are taken out of it: nothing else has more done to it before it is kept.
        request.head_mut().method = Method::POST;
        request
    };
    let of_app: Vec<_> = (0..POOLED).map(|_| app.call(request())).collect();
    let of_thread: Vec<_> = (0..POOLED).map(|_| request()).collect();
    drop((of_app, of_thread));
}

/// Whether a request is over with its head (RFC 9112 §6.3).
fn is_bodyless(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
}

fn plain(live: &Live, worker: &Worker, asked: &Asked) -> HttpResponse {
    let request = &asked.request;
    let headers = asked.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let version = version(request.version());
    let refused = |outcome| {
        let caller = Caller::of(&door::arrival(request), asked.headers(), &live.trust);
        upgrade_refused(worker, &caller, outcome);
    };
    match live.routes.judge(request.path(), request.method().as_str(), version, headers) {
        Judged::NotFound(answer) | Judged::WebSocket(Verdict::Plain(answer)) => respond(&answer),
        // What made it an upgrade for the hook was lost on its way.
        Judged::WebSocket(Verdict::Refuse(why, answer)) => {
            refused(Upgrade::Refused(why));
            respond(&answer)
        }
        // An acceptable upgrade is taken by the hook before it comes here, unless it has a body or
        // names several protocols, which no WebSocket client does.
        Judged::WebSocket(Verdict::Accept { .. }) => {
            refused(Upgrade::Malformed);
            respond(&handshake::not_plain())
        }
    }
}

/// An upgrade request of `caller` is refused.
fn upgrade_refused(worker: &Worker, caller: &Caller, outcome: Upgrade) {
    worker.shared.metrics.upgrades.came_to(outcome);
    if let Some(address) = caller.limited {
        let fallbacks = worker.shared.sessions.fallbacks();
        fallbacks.failed(fallbacks.address(address), outcome, clock());
    }
}

/// What is known of a client that begins a session.
fn newcomer(
    headers: &actix_http::header::HeaderMap,
    caller: &Caller,
    worker: &Worker,
) -> Box<Newcomer> {
    let value = |name| headers.get(name).map(HeaderValue::as_bytes);
    let (agent, origin) = (value(header::USER_AGENT), value(header::ORIGIN));
    Newcomer::new(agent, origin, caller.limited, &worker.shared.sessions)
}

fn respond(answer: &Answer) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(*name), HeaderValue::try_from(value.as_str()))
        {
            response.insert_header((name, value));
        }
    }
    response.body(answer.text)
}

fn version(version: actix_web::http::Version) -> Version {
    use actix_web::http::Version as Http;
    if version == Http::HTTP_11 {
        Version::Http11
    } else if version == Http::HTTP_2 || version == Http::HTTP_3 {
        Version::Http2
    } else {
        Version::Http10
    }
}

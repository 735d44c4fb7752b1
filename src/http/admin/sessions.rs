//! `/sessions`: what is known of each session, and an end for one of them, as JSON.

use std::net::{IpAddr, SocketAddr};

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::Admin;
use super::access::Denied;
use crate::metrics::Transport;
use crate::proto::domain::Domain;
use crate::session::recorder::event::{Event, What};
use crate::session::recorder::record::Passed;
use crate::session::recorder::{Filter, Kicked, Record, State};
use crate::session::timer::clock;

/// Sessions in one answer, unless more or fewer are asked for.
const LIMIT: usize = 100;
/// The most that can be asked for.
const LIMIT_MAX: usize = 1000;

/// `GET /sessions`: the newest ones that fit.
pub(super) async fn all(request: HttpRequest, admin: web::Data<Admin>) -> HttpResponse {
    if let Some(refusal) = refusal(&request, &admin, &[Method::GET]) {
        return refusal;
    }
    let asked = match web::Query::<Asked>::from_query(request.query_string()) {
        Ok(asked) => asked.into_inner(),
        // It says which parameter it is, and of its value what was expected.
        Err(fault) => return error(StatusCode::BAD_REQUEST, &fault.to_string()),
    };
    let (filter, limit) = match asked.understood() {
        Ok(understood) => understood,
        Err(text) => return error(StatusCode::BAD_REQUEST, text),
    };
    let found = admin.recorder.list(filter, limit).await;
    let now = clock();
    let list = List {
        sessions: found.records.iter().map(|record| Session::of(record, now, false)).collect(),
        matched: found.matched,
        partial: found.partial,
    };
    json(StatusCode::OK, &list)
}

/// `GET /sessions/{id}`: one of them with its events; `DELETE`: its end.
pub(super) async fn one(
    request: HttpRequest,
    admin: web::Data<Admin>,
    path: web::Path<String>,
) -> HttpResponse {
    if let Some(refusal) = refusal(&request, &admin, &[Method::GET, Method::DELETE]) {
        return refusal;
    }
    const UNKNOWN: &str = "no session of this number is known";
    // As the log has it.
    let digits = path.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some(id) = u64::from_str_radix(&path, 16).ok().filter(|_| digits) else {
        return error(StatusCode::NOT_FOUND, UNKNOWN);
    };
    const UNHEARD: &str = "the session's thread did not answer in time: try again";
    if request.method() == Method::GET {
        return match admin.recorder.find(id).await {
            (Some(record), _) => json(StatusCode::OK, &Session::of(&record, clock(), true)),
            (None, true) => error(StatusCode::SERVICE_UNAVAILABLE, UNHEARD),
            (None, false) => error(StatusCode::NOT_FOUND, UNKNOWN),
        };
    }
    let kicked = admin.recorder.kick(id).await;
    let peer = request.peer_addr().map(tracing::field::display);
    info!(id = format_args!("{id:012x}"), peer, outcome = ?kicked, "session_kick_requested");
    match kicked {
        Kicked::Done => json(StatusCode::ACCEPTED, &Accepted { state: State::Ending.label() }),
        Kicked::Late => error(StatusCode::CONFLICT, "the session ends already, or has ended"),
        Kicked::Unknown => error(StatusCode::NOT_FOUND, UNKNOWN),
        Kicked::Unheard => error(StatusCode::SERVICE_UNAVAILABLE, UNHEARD),
    }
}

/// What the request gets instead of an answer, if it is not to have one.
fn refusal(request: &HttpRequest, admin: &Admin, methods: &[Method]) -> Option<HttpResponse> {
    if let Err(denied) = admin.access.judge(request.headers(), admin.is_loopback) {
        let status = match denied {
            Denied::Token => StatusCode::UNAUTHORIZED,
            Denied::NoToken | Denied::Page | Denied::Host => StatusCode::FORBIDDEN,
        };
        return Some(error(status, denied.text()));
    }
    if !methods.contains(request.method()) {
        let allow: Vec<_> = methods.iter().map(Method::as_str).collect();
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED);
        response.insert_header((header::ALLOW, allow.join(", ")));
        return Some(body(response, &Refused { error: "this method is not for this path" }));
    }
    if admin.recorder.events() == 0 {
        let text = "nothing is recorded: recorder.events is 0";
        return Some(error(StatusCode::NOT_FOUND, text));
    }
    None
}

/// The query of `/sessions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    jid: Option<String>,
    address: Option<String>,
    domain: Option<String>,
    transport: Option<String>,
    state: Option<String>,
    limit: Option<usize>,
}

impl Asked {
    fn understood(self) -> Result<(Filter, usize), &'static str> {
        let limit = self.limit.unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err("limit: expected 1 to 1000");
        }
        let (address, port) = match self.address.as_deref().map(address) {
            Some(None) => return Err("address: expected an IP address, with a port or without"),
            Some(Some((address, port))) => (Some(address), port),
            None => (None, None),
        };
        let domain = self.domain.as_deref().map(Domain::parse).transpose();
        let domain = domain.map_err(|_| "domain: expected the name of a domain")?;
        let transport = self.transport.as_deref().map(|word| {
            Transport::ALL
                .into_iter()
                .find(|transport| transport.label() == word)
                .ok_or("transport: expected websocket, websocket_legacy or bosh")
        });
        let state = self.state.as_deref().map(|word| {
            [State::Live, State::Ending, State::Ended]
                .into_iter()
                .find(|state| state.label() == word)
                .ok_or("state: expected live, ending or ended")
        });
        let (transport, state) = (transport.transpose()?, state.transpose()?);
        Ok((Filter { jid: self.jid, address, port, domain, transport, state }, limit))
    }
}

fn address(text: &str) -> Option<(IpAddr, Option<u16>)> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some((address, None)),
        Err(_) => {
            let address: SocketAddr = text.parse().ok()?;
            Some((address.ip(), Some(address.port())))
        }
    }
}

#[derive(Serialize)]
struct List<'a> {
    sessions: Vec<Session<'a>>,
    /// How many there are, also where fewer are told.
    matched: usize,
    /// Not every thread has answered in time.
    partial: bool,
}

#[derive(Serialize)]
struct Accepted {
    state: &'static str,
}

#[derive(Serialize)]
struct Refused<'a> {
    error: &'a str,
}

/// One session.
#[derive(Serialize)]
struct Session<'a> {
    /// Its number in the log.
    id: String,
    state: &'static str,
    reason: Option<&'static str>,
    blame: Option<&'static str>,
    transport: Option<&'static str>,
    domain: Option<&'a str>,
    jid: Option<&'a str>,
    address: Option<String>,
    /// The client has TLS.
    secure: bool,
    authenticated: bool,
    /// XEP-0198.
    stream_management: bool,
    resumed: bool,
    /// RFC 3339, in UTC.
    begun: String,
    /// How long it lasted, or has lasted.
    seconds: f64,
    to_server: Traffic,
    to_client: Traffic,
    /// Seconds since it began at which each was heard last.
    client_heard: f64,
    server_heard: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events_before: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Told>>,
}

#[derive(Serialize)]
struct Traffic {
    elements: u32,
    bytes: u64,
}

impl From<Passed> for Traffic {
    fn from(Passed { elements, bytes }: Passed) -> Self {
        Self { elements, bytes }
    }
}

impl<'a> Session<'a> {
    fn of(record: &'a Record, now: std::time::Instant, with_events: bool) -> Self {
        Self {
            id: format!("{:012x}", record.id),
            state: record.state().label(),
            reason: record.fault.map(|fault| fault.label()),
            blame: record.fault.map(|fault| fault.blame().label()),
            transport: record.transport.map(Transport::label),
            domain: record.domain.as_ref().map(Domain::as_str),
            jid: record.jid.as_deref(),
            address: record.address.map(shown),
            secure: record.secure,
            authenticated: record.stage.authenticated,
            stream_management: record.stage.managed,
            resumed: record.stage.resumed,
            begun: rfc3339(record.begun),
            seconds: seconds(record.lasted(now)),
            to_server: record.to_server.into(),
            to_client: record.to_client.into(),
            client_heard: seconds(record.client_heard),
            server_heard: record.server_heard.map(|ms| seconds(ms.get())),
            events_before: with_events.then(|| record.events.overwritten()),
            events: with_events
                .then(|| record.events.iter().map(|event| Told::of(event, record)).collect()),
        }
    }
}

/// The address; a port of 0 says that a proxy did not tell.
fn shown(address: SocketAddr) -> String {
    let ip = address.ip().to_canonical();
    match address.port() {
        0 => ip.to_string(),
        port => SocketAddr::new(ip, port).to_string(),
    }
}

/// One event.
#[derive(Default, Serialize)]
struct Told {
    /// Seconds since the session began.
    at: f64,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    side: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elements: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secure: Option<bool>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    /// How long the client had not been heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    silent: Option<f64>,
}

impl Told {
    fn of(event: &Event, record: &Record) -> Self {
        let told = |event| Self { event, ..Self::default() };
        let told = match event.what {
            What::Connected => told("connected"),
            What::Created => Self { rid: Some(record.first_rid), ..told("created") },
            What::Opening => told("opening"),
            What::ServerConnected { ms, secure } => Self {
                seconds: Some(seconds(ms)),
                secure: Some(secure),
                ..told("server_connected")
            },
            What::ServerFailed { ms, why } => Self {
                seconds: Some(seconds(ms)),
                reason: Some(why.label()),
                ..told("server_failed")
            },
            What::Authenticated => told("authenticated"),
            What::LoginFailed(count) => Self { count: Some(count), ..told("login_failed") },
            What::Bound => told("bound"),
            What::Managed => told("stream_management"),
            What::Resumed => told("resumed"),
            What::Request { rid, bytes, elements, order } => Self {
                rid: record.rid(rid),
                order: Some(order.label()),
                bytes: Some(bytes),
                elements: Some(elements),
                ..told("request")
            },
            What::Pause(length) => Self { seconds: Some(length.into()), ..told("pause") },
            What::Unreadable { rid, fault } => Self {
                rid: record.rid(rid),
                reason: Some(fault.label()),
                ..told("unreadable_request")
            },
            What::Answer { rid, bytes, why } => Self {
                rid: record.rid(rid),
                why: Some(why.label()),
                bytes: Some(bytes),
                ..told("answer")
            },
            What::Unanswered { rid } => Self { rid: record.rid(rid), ..told("request_lost") },
            What::Stalled { side, ms } => {
                Self { side: Some(side.label()), seconds: Some(seconds(ms)), ..told("stalled") }
            }
            What::Ending { fault, silent } => Self {
                reason: Some(fault.label()),
                silent: Some(seconds(silent)),
                ..told("ending")
            },
        };
        Self { at: seconds(event.at), ..told }
    }
}

fn seconds(ms: u32) -> f64 {
    f64::from(ms) / 1000.0
}

/// Milliseconds since 1970 as RFC 3339 writes a moment.
fn rfc3339(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Days since 1 March of the year 0, in whose order leap days come last; 719,468 are to 1970.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    let (hour, minute) = (rest / 3_600_000, rest / 60_000 % 60);
    let (second, ms) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

fn error(status: StatusCode, text: &str) -> HttpResponse {
    let mut response = response(status);
    if status == StatusCode::UNAUTHORIZED {
        response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"bosphorus\""));
    }
    body(response, &Refused { error: text })
}

fn json(status: StatusCode, value: &impl Serialize) -> HttpResponse {
    body(response(status), value)
}

fn response(status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header(("Cross-Origin-Resource-Policy", "same-origin"));
    response
}

fn body(mut response: HttpResponseBuilder, value: &impl Serialize) -> HttpResponse {
    match serde_json::to_string(value) {
        Ok(text) => response.body(text + "\n"),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_in_the_log() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_251_200_001, "2024-03-01T00:00:00.001Z"),
            (1_798_761_599_000, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn queries_are_understood() {
        let ask = |query| {
            web::Query::<Asked>::from_query(query)
                .map_err(|fault| fault.to_string())
                .and_then(|asked| asked.into_inner().understood().map_err(str::to_owned))
        };
        let (filter, limit) = ask("").unwrap();
        assert_eq!((filter.jid, filter.state, limit), (None, None, LIMIT));
        let (filter, limit) =
            ask("jid=a%2Bb@example.org/x%20y&address=[::1]:5000&domain=Example.org&transport=bosh\
             &state=ended&limit=7")
            .unwrap();
        assert_eq!(filter.jid.as_deref(), Some("a+b@example.org/x y"));
        assert_eq!((filter.address, filter.port), ("::1".parse().ok(), Some(5000)));
        assert_eq!(filter.domain, Domain::parse("example.org").ok());
        assert_eq!((filter.transport, filter.state), (Some(Transport::Bosh), Some(State::Ended)));
        assert_eq!(limit, 7);
        for (query, key) in [
            ("address=localhost", "address"),
            ("domain=a@b", "domain"),
            ("transport=tcp", "transport"),
            ("state=dead", "state"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("jdi=x", "jdi"),
        ] {
            let fault = ask(query).unwrap_err();
            assert!(fault.contains(key), "{query}: {fault}");
        }
    }
}

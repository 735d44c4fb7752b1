//! `/status`: the comparison of the transports for the whole process, live, for a person who has no
//! Grafana at hand.
//!
//! The page has its figures over a WebSocket (`/status/feed`), or asks for `/status.json`. On the
//! admin listener nothing takes the upgrades away, so that actix-ws is enough here.
//!
//! Nobody logs in on this listener, so what a browser may be made to do counts: a page from
//! elsewhere must not read the feed (its `Origin` has to be the `Host`), and on loopback, where a
//! foreign name leads only by DNS rebinding, `Host` has to be an address or `localhost`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix_web::http::header::{self, HeaderName, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{Message, MessageStream, Session};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Admin;
use crate::http::assets::{self, Asset, CSS, HTML, PICTURE, SCRIPT};
use crate::http::figures::Figures;
use crate::session::timer::clock;

/// Feeds at a time.
const WATCHERS: usize = 16;
/// Between two snapshots.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a watcher may take for one snapshot.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a frame of a watcher, which has nothing to say.
const FRAME_BYTES: usize = 1024;

const ASSETS: &[Asset] = &[
    Asset { path: "/status", media_type: HTML, text: include_str!("status/index.html") },
    Asset { path: "/status/base.css", media_type: CSS, text: include_str!("../web/base.css") },
    Asset { path: "/status/status.css", media_type: CSS, text: include_str!("status/status.css") },
    Asset {
        path: "/status/figures.js",
        media_type: SCRIPT,
        text: include_str!("../web/figures.js"),
    },
    Asset { path: "/status/plot.js", media_type: SCRIPT, text: include_str!("../web/plot.js") },
    Asset { path: "/status/icon.svg", media_type: PICTURE, text: include_str!("../web/icon.svg") },
    Asset { path: "/status/status.js", media_type: SCRIPT, text: include_str!("status/status.js") },
];

/// What the page is fed from.
#[derive(Clone, Debug)]
pub(super) struct Status {
    figures: Arc<Figures>,
    watchers: Arc<AtomicUsize>,
}

impl Status {
    pub(super) fn new(admin: &Admin) -> Self {
        let (metrics, sessions) = (Arc::clone(&admin.metrics), Arc::clone(&admin.sessions));
        Self {
            figures: Arc::new(Figures::new(metrics, sessions, |_| true)),
            watchers: Arc::default(),
        }
    }
}

/// Registers the page and its feeds.
pub(super) fn configure(status: Status, app: &mut web::ServiceConfig) {
    assets::serve(ASSETS, admits, false, app);
    app.app_data(web::Data::new(status))
        .service(web::resource("/status.json").route(assets::read().to(snapshot)))
        .service(web::resource("/status/feed").route(web::get().to(feed)));
}

async fn snapshot(request: HttpRequest, status: web::Data<Status>) -> HttpResponse {
    match admits(&request) {
        Ok(()) => assets::json(&*status.figures.json(), false),
        Err(why) => assets::forbidden(why),
    }
}

async fn feed(
    request: HttpRequest,
    payload: web::Payload,
    status: web::Data<Status>,
) -> Result<HttpResponse, actix_web::Error> {
    if let Err(why) = admits(&request) {
        return Ok(assets::forbidden(why));
    }
    let Some(place) = Place::take(&status.watchers) else {
        return Ok(HttpResponse::ServiceUnavailable()
            .insert_header((RETRY_AFTER, "10"))
            .content_type("text/plain; charset=utf-8")
            .body("as many watch as may; /status.json can be asked\n"));
    };
    let (response, session, messages) = actix_ws::handle(&request, payload)?;
    let figures = Arc::clone(&status.figures);
    actix_rt::spawn(watch(place, figures, session, messages.max_frame_size(FRAME_BYTES)));
    Ok(response)
}

/// One of the places for watchers, until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let next = |count| (count < WATCHERS).then_some(count + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends snapshots until the watcher has enough or falls behind.
///
/// A ping follows each, and the next waits for its pong: so one at most is on its way, however slow
/// the watcher, and nothing piles up for it.
async fn watch(
    _place: Place,
    figures: Arc<Figures>,
    mut session: Session,
    mut messages: MessageStream,
) {
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered: Option<Instant> = None;
    loop {
        let sent = tokio::select! {
            message = messages.recv() => match message {
                Some(Ok(Message::Pong(_))) => {
                    unanswered = None;
                    continue;
                }
                Some(Ok(Message::Ping(data))) => timeout(PATIENCE, session.pong(&data)).await,
                Some(Ok(Message::Close(_))) => {
                    let _ = timeout(PATIENCE, session.close(None)).await;
                    return;
                }
                _ => return,
            },
            _ = tick.tick() => match unanswered {
                Some(since) if clock().saturating_duration_since(since) > PATIENCE => return,
                Some(_) => continue,
                None => {
                    unanswered = Some(clock());
                    let text = figures.json();
                    timeout(PATIENCE, async {
                        session.text(&*text).await?;
                        session.ping(b"").await
                    })
                    .await
                }
            },
        };
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// Whether a browser may have been made to ask by somebody else's page.
fn admits(request: &HttpRequest) -> Result<(), &'static str> {
    let header = |name: HeaderName| match request.headers().get(name) {
        Some(value) => value.to_str().map(Some),
        None => Ok(None),
    };
    let (Ok(Some(host)), Ok(origin)) = (header(header::HOST), header(header::ORIGIN)) else {
        return Err("Host or Origin cannot be understood\n");
    };
    if request.app_config().local_addr().ip().is_loopback() && !is_local(host) {
        return Err("on loopback, Host has to be an address or localhost\n");
    }
    match origin {
        Some(origin) if !is_same(origin, host) => Err("for pages of this host only\n"),
        _ => Ok(()),
    }
}

/// Whether nobody's DNS takes part in it.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whether the page is from there. Both leave the same default ports out.
fn is_same(origin: &str, host: &str) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_sound() {
        assets::check(ASSETS);
    }

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in
            ["127.0.0.1:9280", "127.0.0.1", "localhost:9280", "LocalHost", "[::1]:9280", "[::1]"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["evil.example:9280", "localhost.evil.example", "", ":9280", "127.0.0.1.evil.example"]
        {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_the_host_or_another() {
        assert!(is_same("http://127.0.0.1:9280", "127.0.0.1:9280"));
        assert!(is_same("https://Admin.example", "admin.example"));
        for origin in
            ["null", "", "http://127.0.0.1:9281", "127.0.0.1:9280", "ftp://127.0.0.1:9280"]
        {
            assert!(!is_same(origin, "127.0.0.1:9280"), "{origin}");
        }
    }

    #[test]
    fn places_come_back() {
        let taken = Arc::default();
        let places: Vec<_> = (0..WATCHERS).map(|_| Place::take(&taken).unwrap()).collect();
        assert!(Place::take(&taken).is_none());
        drop(places);
        assert!(Place::take(&taken).is_some());
    }
}

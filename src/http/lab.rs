//! `/lab`: one WebSocket session and one BOSH session side by side in a browser, the same done with
//! both, and what it took. Off unless configured; the demo has it.
//!
//! The page logs in with what it is told, through the endpoints that every client uses, and runs on
//! scripts that it shares with the demo's page. Of the gateway it gets the process's own totals by
//! transport and nothing of any session: `is_shown` names the families.
//!
//! The upgrade hook takes every upgrade on this listener, so that the figures come as server-sent
//! events. What a connection carries is counted as a whole: so all files close theirs, and the
//! events have one of their own, lest they be counted as BOSH, also by browsers that do not keep
//! requests without credentials apart. (Over HTTP/2 there is but one; the page says so.)

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Current;
use super::assets::{self, Asset, CSS, HTML, PICTURE, SCRIPT};
use super::figures::Figures;
use crate::metrics::Metrics;
use crate::session::worker::Sessions;

/// Pages that are fed at a time.
const WATCHERS: usize = 16;
/// Between two snapshots.
const PERIOD: Duration = Duration::from_millis(500);

/// Declares the file `$file`, served at `/lab/$file`, from the folder `$folder`.
macro_rules! asset {
    ($folder:literal, $file:literal, $media_type:expr) => {
        Asset {
            path: concat!("/lab/", $file),
            media_type: $media_type,
            text: include_str!(concat!($folder, "/", $file)),
        }
    };
}

const ASSETS: &[Asset] = &[
    Asset { path: "/lab", media_type: HTML, text: include_str!("lab/index.html") },
    asset!("lab", "lab.css", CSS),
    asset!("lab", "lab.js", SCRIPT),
    asset!("lab", "line.js", SCRIPT),
    asset!("lab", "results.js", SCRIPT),
    asset!("web", "base.css", CSS),
    asset!("web", "figures.js", SCRIPT),
    asset!("web", "plot.js", SCRIPT),
    asset!("web", "icon.svg", PICTURE),
    // What speaks XMPP is the demo's: it is read from there, whether or not the demo is built.
    asset!("../demo/page", "bosh.js", SCRIPT),
    asset!("../demo/page", "frames.js", SCRIPT),
    asset!("../demo/page", "login.js", SCRIPT),
    asset!("../demo/page", "scram.js", SCRIPT),
    asset!("../demo/page", "websocket.js", SCRIPT),
    asset!("../demo/page", "words.js", SCRIPT),
    asset!("../demo/page", "xml.js", SCRIPT),
];

/// Whether strangers may see a family: what passed, added up over all sessions; no server's name.
fn is_shown(family: &str) -> bool {
    [
        "bosphorus_sessions",
        "bosphorus_sessions_opened_total",
        "bosphorus_stanzas_total",
        "bosphorus_payload_bytes_total",
        "bosphorus_wire_bytes_total",
        "bosphorus_client_connections_total",
        "bosphorus_http_requests_total",
        "bosphorus_http_connections",
        "bosphorus_delivery_seconds",
        "bosphorus_bosh_wait_seconds",
    ]
    .contains(&family)
}

/// The page and what it is fed from.
#[derive(Clone, Debug)]
pub struct Lab {
    current: Arc<Current>,
    sessions: Arc<Sessions>,
    figures: Arc<Figures>,
    watchers: Arc<AtomicUsize>,
    account: Option<(String, String)>,
}

impl Lab {
    /// One for all workers. `account`: the JID and the password to log in with; without it the
    /// page asks.
    #[must_use]
    pub fn new(
        current: Arc<Current>,
        metrics: Arc<Metrics>,
        sessions: Arc<Sessions>,
        account: Option<(String, String)>,
    ) -> Self {
        let figures = Arc::new(Figures::new(metrics, Arc::clone(&sessions), is_shown));
        Self { current, sessions, figures, watchers: Arc::default(), account }
    }

    /// Registers the page with actix's `App`.
    pub fn configure(&self, app: &mut web::ServiceConfig) {
        assets::serve(ASSETS, |_: &HttpRequest| Ok(()), true, app);
        let (settings, events) = (self.clone(), self.clone());
        app.service(web::resource("/lab/config.json").route(assets::read().to(move || {
            let answer = settings.settings();
            async move { answer }
        })));
        app.service(web::resource("/lab/events").route(web::get().to(move || {
            let answer = events.events();
            async move { answer }
        })));
    }

    /// Where to connect (`null`: not offered), and as whom (`null`: ask).
    fn settings(&self) -> HttpResponse {
        let live = self.current.load();
        let (websocket, bosh) = live.routes.first();
        let account = self.account.as_ref();
        let account = account.map(|(jid, password)| json!({ "jid": jid, "password": password }));
        let settings = json!({ "websocket": websocket, "bosh": bosh, "account": account });
        assets::json(settings.to_string(), true)
    }

    /// Snapshots without an end, but that of the process.
    fn events(&self) -> HttpResponse {
        let next = |taken| (taken < WATCHERS).then_some(taken + 1);
        if self.watchers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_err() {
            return HttpResponse::ServiceUnavailable()
                .insert_header((RETRY_AFTER, "10"))
                .content_type("text/plain; charset=utf-8")
                .body("as many watch as may\n");
        }
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher = Watcher { lab: self.clone(), tick };
        // The client is asked for more when it has taken what was there: nothing piles up.
        let events = stream::unfold(watcher, |mut watcher| async move {
            watcher.tick.tick().await;
            if watcher.lab.sessions.is_draining() {
                return None;
            }
            let event = format!("data: {}\n\n", watcher.lab.figures.json());
            Some((Ok::<_, Infallible>(Bytes::from(event)), watcher))
        });
        HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .force_close()
            .content_type("text/event-stream")
            .streaming(events)
    }
}

/// One that is fed, until it is dropped.
struct Watcher {
    lab: Lab,
    tick: Interval,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.lab.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_sound() {
        assets::check(ASSETS);
    }

    /// A module that is imported is there.
    #[test]
    fn every_module_is_served() {
        let mut named = 0;
        for asset in ASSETS.iter().filter(|asset| asset.media_type == SCRIPT) {
            for file in asset.text.split(" from \"./").skip(1).filter_map(|it| it.split('"').next())
            {
                named += 1;
                let path = format!("/lab/{file}");
                assert!(ASSETS.iter().any(|it| it.path == path), "{} names {file}", asset.path);
            }
        }
        assert!(named > 10, "the imports were not found");
    }

    #[test]
    fn no_server_is_named() {
        let metrics = Metrics::register().unwrap();
        let shown = metrics.snapshot(is_shown);
        assert_eq!(shown.as_object().unwrap().len(), 10);
        assert!(is_shown("bosphorus_sessions") && !is_shown("bosphorus_upstream_server_up"));
    }
}

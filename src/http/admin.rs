//! The admin listener: `/metrics`, `/health`, `/ready`, the sessions, and the page `status`. Its own
//! port, loopback by default (SEC-23).
//!
//! Who may ask about sessions, and end them, is judged by `access`; what they are told is written
//! by `sessions`.

mod access;
mod sessions;
mod status;

use std::sync::Arc;

use actix_web::{HttpResponse, web};

pub use self::access::Access;
use crate::metrics::Metrics;
use crate::session::recorder::Recorder;
use crate::session::worker::Sessions;

/// What the admin listener answers from.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The sessions, for readiness.
    pub sessions: Arc<Sessions>,
    /// What happened to each of them.
    pub recorder: Arc<Recorder>,
    /// Who may ask about that.
    pub access: Arc<Access>,
    /// The listener's address is loopback.
    pub is_loopback: bool,
}

/// Registers the admin routes with actix's `App`.
pub fn configure(admin: Admin) -> impl FnOnce(&mut web::ServiceConfig) {
    move |app| {
        status::configure(status::Status::new(&admin), app);
        app.app_data(web::Data::new(admin))
            .route("/metrics", web::get().to(metrics))
            .route("/health", web::get().to(health))
            .route("/ready", web::get().to(ready))
            // RFC 9110 §9.1; probes ask so (wget --spider).
            .route("/metrics", web::head().to(metrics))
            .route("/health", web::head().to(health))
            .route("/ready", web::head().to(ready))
            .service(web::resource("/sessions").to(sessions::all))
            .service(web::resource("/sessions/{id}").to(sessions::one));
    }
}

async fn metrics(admin: web::Data<Admin>) -> HttpResponse {
    match admin.metrics.render() {
        Ok(text) => {
            HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text)
        }
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

/// The process answers: restart it when this fails.
async fn health() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n")
}

/// New sessions are welcome: send none when this fails.
async fn ready(admin: web::Data<Admin>) -> HttpResponse {
    if admin.sessions.is_draining() {
        HttpResponse::ServiceUnavailable()
            .content_type("text/plain; charset=utf-8")
            .body("draining\n")
    } else {
        HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ready\n")
    }
}

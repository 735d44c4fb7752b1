//! The page of the demo.

use actix_web::web;

/// Registers `GET /` with actix's `App`.
pub fn configure(app: &mut web::ServiceConfig) {
    app.route("/", web::get().to(async || "Bosphorus demo\n"));
}

//! `/.well-known/host-meta`: how web clients find the endpoints of a domain (XEP-0156).

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};

use super::Live;
use super::caller::Caller;
use super::door;
use crate::proto::host_meta::Form;

const NOT_SECURE: &str = "This is published over https only. A reverse proxy that has the certificate must \
    be one of listen.trusted_proxies, and say X-Forwarded-Proto: https.\n";
const UNKNOWN: &str = "Nothing is published of the domain that this request was sent to.\n";
const TEXT: &str = "text/plain; charset=utf-8";
/// DISC-07.
const CACHE: &str = "public, max-age=3600";

/// The answer to a request for one of the two documents, if any domain has one.
pub(super) fn answer(
    live: &Live,
    request: &HttpRequest,
    is_draining: bool,
) -> Option<HttpResponse> {
    let form = Form::of(request.path()).filter(|_| !live.discovery.is_empty())?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = HttpResponse::MethodNotAllowed();
        response.insert_header((header::ALLOW, "GET, HEAD"));
        return Some(respond(response.content_type(TEXT), "A document is read with GET.\n"));
    }
    let caller = Caller::of(&door::arrival(request), request.headers(), &live.trust);
    if !caller.secure {
        // DISC-06: whoever sits between could send the client anywhere.
        return Some(respond(HttpResponse::NotFound().content_type(TEXT), NOT_SECURE));
    }
    let Some(published) = host(request).and_then(|host| live.discovery.of_host(host)) else {
        return Some(respond(HttpResponse::NotFound().content_type(TEXT), UNKNOWN));
    };
    let document = if is_draining { &published.draining } else { &published.open }.form(form);
    let if_none_match = request.headers().get(header::IF_NONE_MATCH);
    let is_known = if_none_match
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| document.is_known(value));
    let status = if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut response = HttpResponse::build(status);
    response
        // What holds for the length of a drain must not be remembered for an hour.
        .insert_header((header::CACHE_CONTROL, if is_draining { "no-store" } else { CACHE }))
        .insert_header((header::ETAG, &*document.etag));
    if is_known {
        return Some(respond(&mut response, ""));
    }
    Some(respond(response.content_type(form.content_type()), &document.body))
}

/// An answer that every page may read (DISC-05). The body of one to `HEAD` is left out by actix.
fn respond(response: &mut actix_web::HttpResponseBuilder, body: &str) -> HttpResponse {
    response
        .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        .body(body.to_owned())
}

/// The host that the request was sent to. A proxy that has another name for us is expected to pass
/// the client's on.
fn host(request: &HttpRequest) -> Option<&str> {
    let of_header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().map(|authority| authority.as_str()).or(of_header)
}

//! The files of the pages that the program has in itself: plain HTML, CSS and JavaScript modules,
//! without a build step, and nothing from elsewhere.

use actix_web::http::Method;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, EntityTag, Header as _, IfNoneMatch,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, Route, guard, web};
use sha2::{Digest as _, Sha256};

/// `'self'` covers WebSocket connections to where the page came from (CSP 3).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) const HTML: &str = "text/html; charset=utf-8";
pub(super) const CSS: &str = "text/css; charset=utf-8";
pub(super) const SCRIPT: &str = "text/javascript; charset=utf-8";
pub(super) const PICTURE: &str = "image/svg+xml";

/// A file of a page, by the path it is served at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asset {
    pub(super) path: &'static str,
    pub(super) media_type: &'static str,
    pub(super) text: &'static str,
}

/// Serves the files to `GET` and `HEAD`, whoever `admits`. `alone`: no other request follows on their
/// connections.
pub(super) fn serve(
    assets: &'static [Asset],
    admits: fn(&HttpRequest) -> Result<(), &'static str>,
    alone: bool,
    config: &mut web::ServiceConfig,
) {
    for asset in assets {
        let digest = Sha256::digest(asset.text);
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let tag = EntityTag::new_strong(digest);
        let answer = move |request: HttpRequest| {
            let answer = match admits(&request) {
                Ok(()) => respond(asset, &tag, alone, &request),
                Err(why) => forbidden(why),
            };
            async move { answer }
        };
        config.service(web::resource(asset.path).route(read().to(answer)));
    }
}

/// For requests that read.
pub(super) fn read() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn respond(asset: &Asset, tag: &EntityTag, alone: bool, request: &HttpRequest) -> HttpResponse {
    let known = match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => request.method() == Method::GET,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    };
    let builder = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    let mut answer = headed(builder, "no-cache", alone);
    answer.insert_header((ETAG, tag.to_string()));
    if known {
        return answer.finish();
    }
    answer.content_type(asset.media_type).body(asset.text)
}

/// The answer to whom somebody else's page may have made ask.
pub(super) fn forbidden(why: &'static str) -> HttpResponse {
    headed(HttpResponse::Forbidden(), "no-store", false)
        .content_type("text/plain; charset=utf-8")
        .body(why)
}

/// JSON that nobody keeps.
pub(super) fn json(text: impl Into<String>, alone: bool) -> HttpResponse {
    headed(HttpResponse::Ok(), "no-store", alone).content_type("application/json").body(text.into())
}

/// With the headers that every answer has.
fn headed(
    mut answer: HttpResponseBuilder,
    cache: &'static str,
    alone: bool,
) -> HttpResponseBuilder {
    if alone {
        answer.force_close();
    }
    answer
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((CACHE_CONTROL, cache));
    answer
}

/// What the tests of every page check of its files.
#[cfg(test)]
pub(super) fn check(assets: &[Asset]) {
    // Names of XML namespaces, which nobody fetches.
    let names = ["http://www.w3.org/", "http://jabber.org/", "http://etherx.jabber.org/"];
    for Asset { path, media_type, text } in assets {
        for piece in text.split(['"', '\'', '(', ')', '`']).filter(|piece| piece.contains("://")) {
            let is_name = piece.contains([' ', '\n', '$'])
                || names.iter().any(|name| piece.starts_with(name));
            assert!(is_name, "{path} names {piece}");
        }
        // The policy forbids both; a browser would only say so on its console.
        if *media_type == HTML {
            for tag in text.split('<').skip(1).filter_map(|tag| tag.split('>').next()) {
                assert!(!tag.starts_with("style"), "<{tag}>");
                assert!(!tag.starts_with("script") || tag.contains("src="), "<{tag}>");
                let attributes = tag.split_ascii_whitespace().filter_map(|one| one.split_once('='));
                for (name, _) in attributes {
                    assert!(!name.starts_with("on") && name != "style", "<{tag}>");
                }
            }
        }
        if *media_type == SCRIPT {
            for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(way), "{path} uses {way}");
            }
        }
    }
}

//! The page of the demo: two users of the embedded server, side by side in one browser window.
//!
//! Everything is in the binary and nothing comes from elsewhere: plain HTML, CSS and JavaScript
//! modules, without a build step. What the page has to know of the gateway it asks for at
//! `/demo/config.json`. Not here: the endpoints that the page connects to, which are the gateway's.

use actix_web::http::Method;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, EntityTag, Header as _, IfNoneMatch,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, guard, web};
use sha2::{Digest as _, Sha256};

use super::{DOMAIN, ECHO, ROOM};

/// Where the page finds what it connects to, each a path on its own listener or a whole URL.
#[derive(Clone, Debug)]
pub struct Places {
    /// Where WebSocket clients connect.
    pub websocket: String,
    /// Where BOSH clients connect, if they can.
    pub bosh: Option<String>,
    /// Where the metrics are.
    pub metrics: Option<String>,
}

/// `'self'` covers WebSocket connections to where the page came from: CSP 3 says so ("Does url match
/// expression in origin with redirect count?"), and Chromium since 71, Safari since 16 and Firefox
/// for longer do so. Naming the host would mean to believe a request's `Host`; naming the scheme
/// would allow every host.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// A file of the page, by the path it is served at.
#[derive(Clone, Copy, Debug)]
struct Asset {
    path: &'static str,
    media_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// Declares the file `$file` of the folder `page`, served at `/demo/$file`.
macro_rules! asset {
    ($file:literal, $media_type:expr) => {
        Asset {
            path: concat!("/demo/", $file),
            media_type: $media_type,
            text: include_str!(concat!("page/", $file)),
        }
    };
}

const ASSETS: &[Asset] = &[
    Asset { path: "/", media_type: HTML, text: include_str!("page/index.html") },
    asset!("page.css", CSS),
    asset!("bosh.js", SCRIPT),
    asset!("frames.js", SCRIPT),
    asset!("login.js", SCRIPT),
    asset!("page.js", SCRIPT),
    asset!("pane.js", SCRIPT),
    asset!("scram.js", SCRIPT),
    asset!("websocket.js", SCRIPT),
    asset!("words.js", SCRIPT),
    asset!("xml.js", SCRIPT),
    asset!("xmpp.js", SCRIPT),
    asset!("bridge.svg", PICTURE),
    asset!("ferry.svg", PICTURE),
    asset!("icon.svg", PICTURE),
    asset!("shore-left.svg", PICTURE),
    asset!("shore-right.svg", PICTURE),
    asset!("waves.svg", PICTURE),
];

/// Registers `/` and what it needs below `/demo/` with actix's `App`, for `GET` and `HEAD`.
pub fn configure(places: &Places, config: &mut web::ServiceConfig) {
    for &asset in ASSETS {
        let tag = EntityTag::new_strong(fingerprint(asset.text));
        let serve = move |request: HttpRequest| {
            let answer = respond(asset, &tag, &request);
            async move { answer }
        };
        config.service(web::resource(asset.path).route(read().to(serve)));
    }
    let settings = settings(places);
    config.service(web::resource("/demo/config.json").route(read().to(move || {
        let answer =
            headed(HttpResponse::Ok()).content_type("application/json").body(settings.clone());
        async move { answer }
    })));
}

fn read() -> actix_web::Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// What the page has to know, as JSON: the domain, where to connect (`null`: not offered), and
/// whom to offer as contacts.
fn settings(places: &Places) -> String {
    // Paths of the configuration and URLs of ours: nothing in them that JSON escapes.
    let quoted = |text: &Option<String>| match text {
        Some(text) => format!("\"{text}\""),
        None => "null".to_owned(),
    };
    let Places { websocket, bosh, metrics } = places;
    let (bosh, metrics) = (quoted(bosh), quoted(metrics));
    format!(
        "{{\"domain\":\"{DOMAIN}\",\"websocket\":\"{websocket}\",\"bosh\":{bosh},\
         \"metrics\":{metrics},\"echo\":\"{ECHO}\",\"room\":\"{ROOM}\"}}"
    )
}

fn respond(asset: Asset, tag: &EntityTag, request: &HttpRequest) -> HttpResponse {
    let known = match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => request.method() == Method::GET,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    };
    let builder = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    let mut answer = headed(builder);
    answer.insert_header((ETAG, tag.to_string()));
    if known {
        return answer.finish();
    }
    answer.content_type(asset.media_type).body(asset.text)
}

/// With the headers that every answer has.
fn headed(mut answer: HttpResponseBuilder) -> HttpResponseBuilder {
    answer
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((CACHE_CONTROL, "no-cache"));
    answer
}

/// 16 hexadecimal digits that change with the text.
fn fingerprint(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use actix_web::App;
    use actix_web::http::StatusCode;
    use actix_web::test::{TestRequest, call_service, init_service, read_body};

    use super::*;

    fn places() -> Places {
        Places {
            websocket: "/xmpp-websocket".to_owned(),
            bosh: Some("/http-bind".to_owned()),
            metrics: None,
        }
    }

    async fn get(request: TestRequest) -> (StatusCode, Vec<(String, String)>, String) {
        let app = init_service(App::new().configure(|config| configure(&places(), config))).await;
        let response = call_service(&app, request.to_request()).await;
        let status = response.status();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()))
            .collect();
        let body = read_body(response).await;
        (status, headers, String::from_utf8(body.to_vec()).expect("UTF-8"))
    }

    fn header<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
        headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// Everything in quotes or in `url(…)` that looks like a path or an address.
    fn references(text: &str) -> impl Iterator<Item = &str> {
        text.split(['"', '\'', '(', ')', '`'])
            .filter(|piece| piece.starts_with(['/', '.']) || piece.contains("://"))
            .filter(|piece| !piece.contains([' ', '\n', '$']))
    }

    fn html() -> &'static str {
        ASSETS[0].text
    }

    #[actix_web::test]
    async fn every_file_that_is_named_is_served() {
        let mut named = 0;
        for asset in ASSETS {
            for reference in references(asset.text) {
                let path = match reference.strip_prefix("./") {
                    Some(module) => format!("/demo/{module}"),
                    None => reference.to_owned(),
                };
                if !path.starts_with("/demo/") {
                    continue;
                }
                named += 1;
                let (status, ..) = get(TestRequest::get().uri(&path)).await;
                assert_eq!(status, StatusCode::OK, "{} names {path}", asset.path);
            }
        }
        assert!(named > 15, "the references were not found");
    }

    #[actix_web::test]
    async fn every_file_of_the_folder_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/page");
        for entry in std::fs::read_dir(folder).expect("the folder of the page") {
            let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
            let path = if name == "index.html" { "/".to_owned() } else { format!("/demo/{name}") };
            assert!(ASSETS.iter().any(|asset| asset.path == path), "{name} is not served");
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        // Names of XML namespaces, which nobody fetches.
        let names = ["http://www.w3.org/", "http://jabber.org/", "http://etherx.jabber.org/"];
        for asset in ASSETS {
            for reference in references(asset.text).filter(|reference| reference.contains("//")) {
                let name = names.iter().any(|name| reference.starts_with(name));
                assert!(name, "{} names {reference}", asset.path);
            }
        }
    }

    /// The policy forbids both; a browser would only say so on its console.
    #[test]
    fn no_script_or_style_is_inline() {
        let tags = || html().split('<').skip(1).map(|tag| tag.split('>').next().unwrap_or(""));
        assert!(tags().count() > 40, "the tags were not found");
        for tag in tags() {
            assert!(!tag.starts_with("style"), "<{tag}>");
            assert!(!tag.starts_with("script") || tag.contains("src="), "<{tag}>");
            let attributes = tag.split_ascii_whitespace().filter_map(|one| one.split_once('='));
            for (name, _) in attributes {
                assert!(!name.starts_with("on") && name != "style", "<{tag}>");
            }
        }
        for asset in ASSETS.iter().filter(|asset| asset.media_type == SCRIPT) {
            for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!asset.text.contains(way), "{} uses {way}", asset.path);
            }
        }
        for asset in ASSETS.iter().filter(|asset| asset.media_type == PICTURE) {
            for way in ["<style", "style=", "<script"] {
                assert!(!asset.text.contains(way), "{} has {way}", asset.path);
            }
        }
    }

    #[actix_web::test]
    async fn answers_have_a_strict_policy() {
        for path in ["/", "/demo/page.js", "/demo/config.json"] {
            let (status, headers, body) = get(TestRequest::get().uri(path)).await;
            assert_eq!(status, StatusCode::OK);
            assert!(!body.is_empty());
            let policy = header(&headers, "content-security-policy");
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
            for loose in ["unsafe", "*", "http:", "https:", "ws:"] {
                assert!(!policy.contains(loose), "{policy}");
            }
            assert_eq!(header(&headers, "x-content-type-options"), "nosniff");
            assert_eq!(header(&headers, "referrer-policy"), "no-referrer");
            assert_eq!(header(&headers, "cache-control"), "no-cache");
        }
    }

    #[actix_web::test]
    async fn what_the_browser_has_is_not_sent_again() {
        let (_, headers, body) = get(TestRequest::get().uri("/")).await;
        assert_eq!(body, html());
        let tag = header(&headers, "etag").to_owned();
        let again = TestRequest::get().uri("/").insert_header(("If-None-Match", tag.clone()));
        let (status, headers, body) = get(again).await;
        assert_eq!((status, body.as_str()), (StatusCode::NOT_MODIFIED, ""));
        assert_eq!(header(&headers, "etag"), tag);
        let other = TestRequest::get().uri("/").insert_header(("If-None-Match", "\"other\""));
        assert_eq!(get(other).await.0, StatusCode::OK);
    }

    #[actix_web::test]
    async fn only_reading_is_served() {
        let (status, headers, _) = get(TestRequest::default().method(Method::HEAD).uri("/")).await;
        assert_eq!((status, header(&headers, "content-type")), (StatusCode::OK, HTML));
        let (status, ..) = get(TestRequest::post().uri("/")).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        let (status, ..) = get(TestRequest::get().uri("/demo/")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[actix_web::test]
    async fn the_settings_are_json() {
        let (_, _, body) = get(TestRequest::get().uri("/demo/config.json")).await;
        let settings: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(settings["domain"], "localhost");
        assert_eq!(settings["websocket"], "/xmpp-websocket");
        for name in ["bosh", "metrics"] {
            assert!(settings[name].is_null() || settings[name].is_string(), "{name}");
        }
    }
}

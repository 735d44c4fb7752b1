//! How web clients find the endpoints of a domain (`/.well-known/host-meta`), and which pages may
//! open streams of which domain.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use bytes::Bytes;
use common::bosh::{Body, CONTENT_TYPE, creation, first_rid};
use common::bridge::{self, Http2};
use common::gateway::Gateway;
use common::http::{Answer, Connection, Url};
use common::peer::Peer;
use common::process::{Directory, free_ports};
use common::scene::Scene;
use common::socket::{Received, Socket};
use common::{PATIENCE, Result, block_on, eventually};
use minidom::Element;
use pki::{Ca, Validity};
use tokio::time::timeout;

const XRD: &str = "/.well-known/host-meta";
const JRD: &str = "/.well-known/host-meta.json";
const WEBSOCKET: &str = "urn:xmpp:alt-connections:websocket";
const BOSH: &str = "urn:xmpp:alt-connections:xbosh";
/// Requests from the machine itself are as secure as the header says.
const TRUST: &str = "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n";
const SECURE: &str = "X-Forwarded-Proto: https\r\nX-Forwarded-For: 192.0.2.1\r\n";
const PUBLIC: &str = "[discovery]\npublic_url = \"https://chat.example.test:8443/x\"\n";

fn unserved(name: &str) -> String {
    format!("[domains.{name:?}]\nservers = [\"xmpp://127.0.0.1:9\"]\n")
}

/// One request on a connection of its own.
async fn ask(
    to: SocketAddr,
    method: &str,
    path: &str,
    host: &str,
    headers: &str,
) -> Result<Answer> {
    let mut connection = Connection::open(&to.to_string()).await?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    connection.send(head.as_bytes()).await?;
    timeout(PATIENCE, connection.answer_to(method)).await??.context("no answer")
}

async fn get(to: SocketAddr, path: &str, host: &str) -> Result<Answer> {
    ask(to, "GET", path, host, SECURE).await
}

/// The relations and URLs of a document.
fn links(answer: &Answer) -> Result<Vec<(String, String)>> {
    ensure!(answer.status == 200, "{}", answer.head);
    let text = answer.text()?;
    if answer.header("Content-Type") == Some("application/json") {
        let json: serde_json::Value = serde_json::from_str(text)?;
        let list = json["links"].as_array().context("no links")?;
        let value = |link: &serde_json::Value, name: &str| -> Result<String> {
            Ok(link[name].as_str().context("not a string")?.to_owned())
        };
        return list.iter().map(|link| Ok((value(link, "rel")?, value(link, "href")?))).collect();
    }
    ensure!(answer.header("Content-Type") == Some("application/xrd+xml; charset=utf-8"));
    let root: Element = text.parse()?;
    ensure!(root.is("XRD", "http://docs.oasis-open.org/ns/xri/xrd-1.0"), "{text}");
    let value = |link: &Element, name: &str| -> Result<String> {
        Ok(link.attr(name).context("missing")?.to_owned())
    };
    root.children().map(|link| Ok((value(link, "rel")?, value(link, "href")?))).collect()
}

fn pair(rel: &str, href: &str) -> (String, String) {
    (rel.to_owned(), href.to_owned())
}

/// DISC-01, DISC-02, DISC-04, DISC-05: both documents have both endpoints of a domain that is served, for
/// any page; others have none.
#[test]
fn documents_have_the_endpoints_of_the_domain() -> Result {
    block_on(async {
        let toml = format!(
            "{TRUST}{PUBLIC}links = [{{ rel = \"urn:example\", href = \"https://example.test/?a&b\" }}]\n\
             {}{}public_url = \"https://other.test\"\n{}public_url = \"\"\n{}",
            unserved("example.test"),
            unserved("b.test"),
            unserved("hidden.test"),
            unserved("*.wild.test"),
        );
        let gateway = Gateway::start(&toml)?;
        let to = gateway.listen();
        let besides = pair("urn:example", "https://example.test/?a&b");
        let expected = [
            pair(WEBSOCKET, "wss://chat.example.test:8443/x/xmpp-websocket"),
            pair(BOSH, "https://chat.example.test:8443/x/http-bind"),
            besides.clone(),
        ];
        for path in [XRD, JRD] {
            for host in ["example.test", "EXAMPLE.Test:8443", "a.b.wild.test"] {
                let answer = get(to, path, host).await?;
                ensure!(links(&answer)? == expected, "{host}: {}", answer.text()?);
                ensure!(answer.header("Access-Control-Allow-Origin") == Some("*"), "no grant");
                let credentials = answer.header("Access-Control-Allow-Credentials");
                ensure!(credentials.is_none(), "{credentials:?}");
            }
            let own = [
                pair(WEBSOCKET, "wss://other.test/xmpp-websocket"),
                pair(BOSH, "https://other.test/http-bind"),
                besides.clone(),
            ];
            ensure!(links(&get(to, path, "b.test").await?)? == own);
            for host in ["hidden.test", "wild.test", "elsewhere.test", "127.0.0.1:5280"] {
                let answer = get(to, path, host).await?;
                ensure!(answer.status == 404, "{host}: {}", answer.head);
            }
        }
        // DISC-05: nowhere else.
        let url = Url { authority: gateway.listen().to_string(), path: "/nowhere".to_owned() };
        let mut other = Connection::open(&url.authority).await?;
        other.send(&url.request("GET", SECURE, "")).await?;
        ensure!(other.prompt_answer().await?.header("Access-Control-Allow-Origin").is_none());
        ensure!(gateway.admin_get(XRD)?.0 == 404);
        Ok(())
    })
}

/// DISC-06: nothing is said to whom somebody in between could have lied to; DISC-07: caches and
/// HEAD.
#[test]
fn documents_are_for_https_and_for_caches() -> Result {
    block_on(async {
        let gateway = Gateway::start(&format!("{TRUST}{PUBLIC}{}", unserved("example.test")))?;
        let (to, host) = (gateway.listen(), "example.test");
        for path in [XRD, JRD] {
            let plain = ask(to, "GET", path, host, "").await?;
            ensure!(plain.status == 404 && plain.text()?.contains("trusted_proxies"));
            ensure!(!plain.text()?.contains("wss:"));

            let whole = get(to, path, host).await?;
            ensure!(
                whole.header("Cache-Control") == Some("public, max-age=3600"),
                "{}",
                whole.head
            );
            let tag = whole.header("ETag").context("no tag")?;
            let head = ask(to, "HEAD", path, host, SECURE).await?;
            ensure!(head.status == 200 && head.body.is_empty());
            let length = whole.body.len().to_string();
            ensure!(head.header("Content-Length") == Some(&length), "{}", head.head);
            ensure!(head.header("ETag") == Some(tag));
            for (known, status) in [(tag, 304), ("\"other\"", 200), ("*", 304)] {
                let headers = format!("{SECURE}If-None-Match: {known}\r\n");
                let answer = ask(to, "GET", path, host, &headers).await?;
                ensure!(answer.status == status, "{known}: {}", answer.head);
                ensure!(answer.header("ETag") == Some(tag));
                ensure!(answer.header("Access-Control-Allow-Origin") == Some("*"));
            }
            let post =
                ask(to, "POST", path, host, &format!("{SECURE}Content-Length: 0\r\n")).await?;
            ensure!(
                post.status == 405 && post.header("Allow") == Some("GET, HEAD"),
                "{}",
                post.head
            );
        }
        Ok(())
    })
}

/// DISC-01: over our own TLS, HTTP/1.1 and HTTP/2; what is published is there.
#[test]
fn documents_are_served_over_tls() -> Result {
    block_on(async {
        let ca = Ca::new();
        let directory = Directory::new("certificates")?;
        let [port] = free_ports()?;
        let identity = ca.issue(&["example.test"], Validity::Now);
        let [chain, key] = identity.pem();
        let (chain, key) = (directory.write("c.pem", chain)?, directory.write("k.pem", key)?);
        let peer = Peer::new().await?;
        let _gateway = Gateway::start(&format!(
            "[listen]\ntls_addresses = [\"127.0.0.1:{port}\"]\n[[tls.certificates]]\n\
             certificate = {chain:?}\nkey = {key:?}\n[discovery]\n\
             public_url = \"https://example.test:{port}\"\n{}",
            peer.toml()
        ))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let client = |alpn: &[&[u8]]| bridge::client(&ca.file(), rustls::ALL_VERSIONS, alpn);
        let h1 = bridge::tls(&client(&[b"http/1.1"])?, address, "example.test").await?;
        let host = format!("example.test:{port}");
        let answer = ask(h1, "GET", JRD, &host, "").await?;
        let published = links(&answer)?;
        ensure!(published.len() == 2, "{published:?}");
        for (rel, href) in published {
            let scheme = if rel == WEBSOCKET { "wss" } else { "https" };
            let path = href.strip_prefix(&format!("{scheme}://{host}")).context(href.clone())?;
            let answer = ask(h1, "GET", path, &host, "").await?;
            ensure!(answer.status == 200, "{href}: {}", answer.head);
        }

        let http2 = Http2::connect(&client(&[b"h2"])?, address, "example.test").await?;
        for (name, expected) in [(host.as_str(), 200), ("other.test", 404)] {
            let request = http::Request::get(format!("https://{name}{JRD}")).body(())?;
            let mut requests = http2.requests.clone().ready().await?;
            let (response, _) = requests.send_request(request, true)?;
            let response = timeout(PATIENCE, response).await??;
            ensure!(response.status() == expected, "{name}: {response:?}");
            let mut body = response.into_body();
            let mut text = Vec::new();
            while let Some(chunk) = body.data().await {
                let chunk: Bytes = chunk?;
                text.extend_from_slice(&chunk);
            }
            let same = text == answer.body;
            ensure!(same == (expected == 200), "{}", String::from_utf8_lossy(&text));
        }
        Ok(())
    })
}

/// DISC-03: what is not secure is not published; DISC-08: nor what is not there, or about to go.
#[test]
fn only_what_can_be_used_is_published() -> Result {
    block_on(async {
        let domain = unserved("example.test");
        let off = Gateway::start(&format!("{TRUST}{domain}"))?;
        ensure!(
            get(off.listen(), XRD, "example.test").await?.status == 404,
            "nothing was asked for"
        );

        let http = "[discovery]\npublic_url = \"http://chat.test\"\n";
        let plain = Gateway::start(&format!("{TRUST}{http}{domain}"))?;
        ensure!(links(&get(plain.listen(), XRD, "example.test").await?)?.is_empty());
        ensure!(links(&get(plain.listen(), JRD, "example.test").await?)?.is_empty());
        ensure!(plain.log().contains("discovery.public_url: nothing is published"), "no warning");

        let scene = Scene::with(&format!(
            "{TRUST}{PUBLIC}links = [{{ rel = \"x\", href = \"https://x.test\" }}]\n\
             [drain]\nwindow = \"60s\"\ntimeout = \"70s\"\n[bosh]\npaths = [\"/b\", \"/http-bind\"]\n"
        ))
        .await?;
        let to = scene.gateway.listen();
        let rels = async || -> Result<Vec<String>> {
            let answer = get(to, JRD, "example.test").await?;
            Ok(links(&answer)?.into_iter().map(|(rel, _)| rel).collect())
        };
        ensure!(rels().await? == [WEBSOCKET, BOSH, "x"]);
        let without = format!("{TRUST}{PUBLIC}[bosh]\npaths = []\n{}", scene.peer.toml());
        let _session = scene.bound().await?;
        scene.gateway.write_config(&without)?;
        scene.gateway.signal("HUP")?;
        eventually("the new document", async || (rels().await.ok()? == [WEBSOCKET]).then_some(()))
            .await?;
        let with = "links = [{ rel = \"x\", href = \"https://x.test\" }]\n[drain]\nwindow = \"60s\"\n\
                    timeout = \"70s\"\n";
        scene.gateway.write_config(&format!("{TRUST}{PUBLIC}{with}{}", scene.peer.toml()))?;
        scene.gateway.signal("HUP")?;
        eventually("all again", async || {
            (rels().await.ok()? == [WEBSOCKET, BOSH, "x"]).then_some(())
        })
        .await?;
        scene.gateway.signal("TERM")?;
        eventually("the drain", async || (rels().await.ok()? == ["x"]).then_some(())).await?;
        let answer = get(to, JRD, "example.test").await?;
        ensure!(answer.header("Cache-Control") == Some("no-store"), "{}", answer.head);
        Ok(())
    })
}

/// DISC-09: the record that XEP-0156 had before is not spoken of.
#[test]
fn no_txt_record_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    let mut directories = ["src", "conf", "grafana"].map(|name| root.join(name)).to_vec();
    let mut files = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    for file in files {
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).to_lowercase();
        assert!(!text.contains(&format!("_{}", "xmppconnect")), "{}", file.display());
        seen += 1;
    }
    assert!(seen > 50, "{seen} files");
}

/// SEC-01, SEC-02: a page that is welcome at one domain is not at another, over either transport;
/// programs that are no pages are not asked.
#[test]
fn pages_are_welcome_by_domain() -> Result {
    block_on(async {
        let peer = Peer::new().await?;
        let servers = format!("servers = [\"xmpp://{}\"]\n", peer.address);
        let toml = format!(
            "[ws]\nallowed_origins = [\"https://general.test\"]\n\
             [bosh]\nallowed_origins = [\"https://general.test\"]\n\
             [domains.\"a.test\"]\n{servers}allowed_origins = [\"https://*.a.test\"]\n\
             [domains.\"b.test\"]\n{servers}"
        );
        let gateway = Gateway::start(&toml)?;
        for (domain, origin, welcome) in [
            ("a.test", "https://x.a.test", true),
            ("a.test", "https://general.test", false),
            ("b.test", "https://general.test", true),
            ("b.test", "https://x.a.test", false),
            ("a.test", "", true),
            ("b.test", "", true),
        ] {
            let what = format!("{domain} from {origin:?}");
            let line =
                if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
            let headers = format!("Sec-WebSocket-Protocol: xmpp\r\n{line}");
            let mut socket = Socket::request(&gateway.ws_url(), &headers)
                .await?
                .map_err(|refused| anyhow::anyhow!("{what}: {}", refused.head))?;
            let open = format!(
                "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='{domain}' version='1.0'/>"
            );
            socket.send_text(&open).await?;
            if welcome {
                drop(peer.accept().await.context(what.clone())?);
            }
            let mut said = String::new();
            while let Received::Text(text) = socket.receive().await? {
                said += &text;
            }
            ensure!(said.contains("<policy-violation") != welcome, "{what}: {said}");

            let url = Url::parse(&gateway.bosh_url())?;
            let mut connection = Connection::open(&url.authority).await?;
            let body =
                creation(first_rid(), &format!("to='{domain}' wait='5' hold='1' ver='1.11'"));
            connection.send(&url.post(&format!("{CONTENT_TYPE}{line}"), &body)).await?;
            if welcome {
                drop(peer.accept().await.context(what.clone())?);
            }
            let answer = connection.prompt_answer().await?;
            let allowed = answer.header("Access-Control-Allow-Origin");
            ensure!(allowed == (!origin.is_empty()).then_some(origin), "{what}: {}", answer.head);
            let condition = if welcome { "remote-connection-failed" } else { "policy-violation" };
            Body::of(&answer)?.expect_terminate(Some(condition)).context(what)?;
        }
        let ended = |transport| {
            let sample = format!(
                "bosphorus_sessions_ended_total{{blame=\"client\",reason=\"foreign_origin\",\
                 transport=\"{transport}\"}}"
            );
            gateway.metric(&sample)
        };
        ensure!(ended("websocket")? == 2.0 && ended("bosh")? == 2.0);

        // A page of no domain at all is refused before.
        let headers = "Sec-WebSocket-Protocol: xmpp\r\nOrigin: https://elsewhere.test\r\n";
        let refused = Socket::request(&gateway.ws_url(), headers).await?;
        ensure!(refused.is_err_and(|refused| refused.status == 403));
        Ok(())
    })
}

/// SEC-02: cookies only where they are asked for, and only for pages that are listed.
#[test]
fn cookies_are_allowed_to_pages_that_are_listed() -> Result {
    block_on(async {
        let scene = Scene::new(
            "allowed_origins = [\"https://a.test\"]\nallow_credentials = true\nbody_timeout = \"5s\"",
        )
        .await?;
        for (origin, allowed) in [("https://a.test", true), ("https://b.test", false)] {
            let preflight = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
            let line = format!("{CONTENT_TYPE}Origin: {origin}\r\n");
            let too_big = scene.url.post(&line, &"x".repeat(400_000));
            for request in [
                scene.url.request("OPTIONS", &preflight, ""),
                scene.url.post(&line, "<body/>"),
                too_big,
            ] {
                let answer = scene.ask(&request).await?;
                let credentials = answer.header("Access-Control-Allow-Credentials");
                ensure!(credentials == allowed.then_some("true"), "{origin}: {}", answer.head);
                let echoed = answer.header("Access-Control-Allow-Origin");
                ensure!(echoed == allowed.then_some(origin), "{origin}: {}", answer.head);
            }
        }
        Ok(())
    })
}

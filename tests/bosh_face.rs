//! The HTTP face of BOSH, byte by byte: methods, CORS, sizes, codings, slow clients, connections.
//! No server is needed: nothing here gets as far as a session.

mod common;

use std::io::Write as _;

use anyhow::{Context, ensure};
use common::gateway::Gateway;
use common::http::{Answer, Connection, Url};
use common::{Result, block_on};

const HTTPBIND: &str = "http://jabber.org/protocol/httpbind";

/// What a request is answered whose session is not there.
const UNKNOWN: &str = "<body type='terminate' condition='item-not-found' \
                       xmlns='http://jabber.org/protocol/httpbind'/>";
/// What one is answered that is no `<body/>`.
const BAD: &str = "<body type='terminate' condition='bad-request' \
                   xmlns='http://jabber.org/protocol/httpbind'/>";

/// A gateway with these keys in `[bosh]` and `[limits]`; its server is never asked for.
fn gateway(bosh: &str, limits: &str) -> Result<(Gateway, Url)> {
    let gateway = Gateway::start(&format!(
        "[bosh]\n{bosh}\n[limits]\n{limits}\n[domains.\"face.test\"]\n\
         servers = [\"xmpp://127.0.0.1:9\"]\n"
    ))?;
    let url = Url::parse(&format!("http://{}/http-bind", gateway.listen()))?;
    Ok((gateway, url))
}

/// A request of a session that no gateway has.
fn stranger(payload: &str) -> String {
    format!("<body rid='5' sid='nobody' xmlns='{HTTPBIND}'>{payload}</body>")
}

async fn ask(url: &Url, request: &[u8]) -> Result<Answer> {
    let mut connection = Connection::open(&url.authority).await?;
    connection.send(request).await?;
    connection.prompt_answer().await
}

/// BOSH-03, BOSH-07, SEC-02: what every answer has.
#[track_caller]
fn is_sound(answer: &Answer) {
    let header = |name: &str| answer.header(name);
    let head = &answer.head;
    assert_eq!(header("Access-Control-Allow-Origin"), Some("*"), "{head}");
    assert_eq!(header("Access-Control-Allow-Credentials"), None, "{head}");
    assert_eq!(header("Transfer-Encoding"), None, "{head}");
    if answer.status != 204 {
        assert_eq!(header("Content-Length"), Some(&*answer.body.len().to_string()), "{head}");
        assert_eq!(header("Cache-Control"), Some("no-store"), "{head}");
        assert_eq!(header("X-Content-Type-Options"), Some("nosniff"), "{head}");
    }
}

#[track_caller]
fn is_body(answer: &Answer, body: &str) {
    is_sound(answer);
    assert_eq!((answer.status, answer.text().unwrap_or_default()), (200, body), "{}", answer.head);
    assert_eq!(answer.header("Content-Type"), Some("text/xml; charset=utf-8"));
}

/// BOSH-01: POST, OPTIONS, GET and HEAD on each of the paths, and nothing else.
#[test]
fn methods_and_paths() -> Result {
    block_on(async {
        let (gateway, url) = gateway("", "")?;
        for path in ["/http-bind", "/http-bind/", "/bosh", "/bosh/", "/bosh?a=b"] {
            let url = Url { path: path.to_owned(), ..url.clone() };
            is_body(&ask(&url, &url.post("", &stranger(""))).await?, UNKNOWN);
            let page = ask(&url, &url.request("GET", "", "")).await?;
            is_sound(&page);
            assert_eq!(page.status, 200);
            assert!(page.text()?.contains("BOSH"), "{page:?}");
        }
        let mut connection = Connection::open(&url.authority).await?;
        connection.send(&url.request("HEAD", "", "")).await?;
        let head = connection.answer_to("HEAD").await?.context("no answer")?;
        assert_eq!((head.status, connection.unread().len()), (200, 0));
        for method in ["PUT", "DELETE", "PATCH", "TRACE", "FROB"] {
            let answer = ask(&url, &url.request(method, "", "")).await?;
            is_sound(&answer);
            assert_eq!(answer.status, 405, "{method}");
            assert_eq!(answer.header("Allow"), Some("GET, HEAD, OPTIONS, POST"));
        }
        let elsewhere = Url { path: "/http-bind/x".to_owned(), ..url.clone() };
        assert_eq!(ask(&elsewhere, &elsewhere.post("", &stranger(""))).await?.status, 404);
        assert!(gateway.metric("bosphorus_bosh_refused_total{why=\"unknown_sid\"}")? >= 5.0);
        assert!(gateway.metric("bosphorus_bosh_requests_open")? < 0.5);
        Ok(())
    })
}

/// BOSH-01: without paths there is no BOSH; a path may be shared with the WebSocket, whose page
/// tells a browser more.
#[test]
fn paths_can_be_none_and_shared() -> Result {
    block_on(async {
        let (_off, url) = gateway("paths = []", "")?;
        assert_eq!(ask(&url, &url.post("", &stranger(""))).await?.status, 404);
        let (_shared, url) = gateway("paths = [\"/ws\"]", "")?;
        let url = Url { path: "/ws".to_owned(), ..url };
        is_body(&ask(&url, &url.post("", &stranger(""))).await?, UNKNOWN);
        assert!(ask(&url, &url.request("GET", "", "")).await?.text()?.contains("WebSocket"));
        assert_eq!(ask(&url, &url.request("OPTIONS", "", "")).await?.status, 204);
        Ok(())
    })
}

/// BOSH-02: neither the content type nor any other header makes a difference.
#[test]
fn content_types_are_ignored() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "")?;
        for headers in [
            "",
            "Content-Type: text/xml; charset=utf-8\r\n",
            "Content-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: text/plain\r\nX-Anything: \"\r\nAccept: image/png\r\n",
            "Content-Type: \r\n",
        ] {
            is_body(&ask(&url, &url.post(headers, &stranger(""))).await?, UNKNOWN);
        }
        is_body(&ask(&url, &url.post_chunked("", &stranger("<iq/>"), 7)).await?, UNKNOWN);
        Ok(())
    })
}

/// BOSH-04: HTTP/1.1 stays open, HTTP/1.0 does only if it asks to.
#[test]
fn connections_stay_open_as_their_version_says() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "")?;
        let mut connection = Connection::open(&url.authority).await?;
        for _ in 0..3 {
            connection.send(&url.post("", &stranger(""))).await?;
            is_body(&connection.prompt_answer().await?, UNKNOWN);
        }
        let old = |headers| {
            let post = String::from_utf8(url.post(headers, &stranger(""))).expect("UTF-8");
            post.replace("HTTP/1.1", "HTTP/1.0").into_bytes()
        };
        let mut connection = Connection::open(&url.authority).await?;
        for _ in 0..2 {
            connection.send(&old("Connection: keep-alive\r\n")).await?;
            is_body(&connection.prompt_answer().await?, UNKNOWN);
        }
        connection.send(&old("")).await?;
        let answer = connection.prompt_answer().await?;
        is_body(&answer, UNKNOWN);
        ensure!(answer.head.starts_with("HTTP/1.0 200"), "{}", answer.head);
        assert_eq!(connection.remainder().await?, b"");
        Ok(())
    })
}

/// BOSH-04: a client that asks for another protocol by the way, as the JDK's does for HTTP/2, is
/// answered in this one, and told that its connection ends (RFC 9112 §9.6).
#[test]
fn offers_of_other_protocols_are_not_taken() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "")?;
        for headers in [
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            "Connection: upgrade\r\n",
        ] {
            let mut connection = Connection::open(&url.authority).await?;
            connection.send(&url.post(headers, &stranger(""))).await?;
            let answer = connection.prompt_answer().await?;
            is_body(&answer, UNKNOWN);
            assert_eq!(answer.header("Connection"), Some("close"), "{}", answer.head);
            assert_eq!(connection.remainder().await?, b"");
        }
        Ok(())
    })
}

/// BOSH-05: requests that come together are answered in their order.
#[test]
fn pipelined_requests_are_answered_in_order() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "")?;
        let mut connection = Connection::open(&url.authority).await?;
        let all = [&*stranger(""), "<body/>", &*stranger("<iq/>"), "hello"];
        let requests: Vec<u8> = all.iter().flat_map(|body| url.post("", body)).collect();
        connection.send(&requests).await?;
        for body in [UNKNOWN, BAD, UNKNOWN, BAD] {
            is_body(&connection.prompt_answer().await?, body);
        }
        Ok(())
    })
}

/// BOSH-06, SEC-12: what is too large is refused by its announcement or while it comes, the
/// connection is closed, and the answer arrives although more is being sent.
#[test]
fn large_bodies_are_cut_off() -> Result {
    block_on(async {
        let (gateway, url) = gateway("", "element_bytes = 10000")?;
        let sized = |bytes: usize| {
            let empty = stranger("").len();
            stranger(&" ".repeat(bytes - empty))
        };
        is_body(&ask(&url, &url.post("", &sized(14_096))).await?, UNKNOWN);
        let large = sized(1 << 20);
        for request in [
            url.post("", &sized(14_097)),
            url.post("", &large),
            url.post_chunked("", &large, 1 << 16),
            // Announced, and never sent.
            url.request("POST", "Content-Length: 99999999999\r\n", ""),
            // Beyond any number.
            url.request("POST", "Transfer-Encoding: chunked\r\n", &format!("4000\r\n{large}")),
        ] {
            let mut connection = Connection::open(&url.authority).await?;
            connection.send(&request).await?;
            let answer = connection.prompt_answer().await?;
            is_sound(&answer);
            assert_eq!(answer.status, 413, "{}", answer.head);
            assert_eq!(answer.header("Connection"), Some("close"), "{}", answer.head);
            connection.shut().await?;
            assert_eq!(connection.remainder().await?, b"");
        }
        ensure!(gateway.metric("bosphorus_bosh_refused_total{why=\"too_big\"}")? == 5.0);
        Ok(())
    })
}

/// BOSH-06: who goes on sending after a refusal is not listened to for longer than the grace, by
/// whatever means the body is framed.
#[test]
fn a_refused_client_is_not_listened_to_for_ever() -> Result {
    block_on(async {
        let limits = "element_bytes = 10000\n[upstream]\nclose_grace = \"200ms\"";
        let (_gateway, url) = gateway("", limits)?;
        let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
        for request in [
            url.request("POST", "Transfer-Encoding: chunked\r\n", &chunk),
            url.request("POST", "Content-Length: 99999999\r\n", &chunk),
        ] {
            let mut connection = Connection::open(&url.authority).await?;
            connection.send(&request).await?;
            assert_eq!(connection.prompt_answer().await?.status, 413);
            let refused = async {
                while connection.send(chunk.as_bytes()).await.is_ok() {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            };
            let reset = tokio::time::timeout(common::PATIENCE, refused).await;
            reset.context("it is still listened to")?;
        }
        Ok(())
    })
}

/// BOSH-08, BOSH-09, SEC-13: coded requests are refused, or read with their inflated size limited.
#[test]
fn coded_requests() -> Result {
    block_on(async {
        let gzip = |text: &str| -> Result<Vec<u8>> {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(text.as_bytes())?;
            Ok(encoder.finish()?)
        };
        let coded = |url: &Url, coding: &str, body: &[u8]| {
            let headers =
                format!("Content-Encoding: {coding}\r\nContent-Length: {}\r\n", body.len());
            [url.request("POST", &headers, ""), body.to_vec()].concat()
        };
        let small = gzip(&stranger("<iq/>"))?;
        let (_off, url) = gateway("", "")?;
        let refused = ask(&url, &coded(&url, "gzip", &small)).await?;
        is_sound(&refused);
        assert_eq!((refused.status, refused.header("Accept-Encoding")), (415, Some("identity")));
        is_body(&ask(&url, &coded(&url, "identity", stranger("").as_bytes())).await?, UNKNOWN);

        let (_on, url) = gateway("gzip = true", "")?;
        is_body(&ask(&url, &coded(&url, "gzip", &small)).await?, UNKNOWN);
        let bomb = gzip(&stranger(&" ".repeat(100 << 20)))?;
        ensure!(bomb.len() < 200_000, "not much of a bomb");
        let refused = ask(&url, &coded(&url, "gzip", &bomb)).await?;
        is_sound(&refused);
        assert_eq!(refused.status, 413);
        let broken = ask(&url, &coded(&url, "gzip", b"<body/>")).await?;
        is_sound(&broken);
        assert_eq!(broken.status, 400);
        let unknown = ask(&url, &coded(&url, "br", &small)).await?;
        assert_eq!(unknown.header("Accept-Encoding"), Some("gzip, deflate"));
        Ok(())
    })
}

/// BOSH-10, BOSH-66, BOSH-70, BOSH-79: refusals are bodies, always the same; or status codes if so
/// configured.
#[test]
fn refusals_are_bodies_or_codes() -> Result {
    let broken = [
        String::new(),
        "hello".to_owned(),
        "<message/>".to_owned(),
        format!("<body rid='1' to='face.test' xmlns='{HTTPBIND}'>"),
        "<body rid='1' to='face.test'/>".to_owned(),
        format!("<body to='face.test' xmlns='{HTTPBIND}'/>"),
    ];
    let foreign = [
        stranger(""),
        stranger("").replace("nobody", ""),
        // One that a gateway could have given out.
        stranger("").replace("nobody", "AAAAAQICAgICAgICAgICAgICAgICAgIC"),
        stranger("<iq").replace("nobody", "AAAAAQICAgICAgICAgICAgICAgICAgIC"),
    ];
    block_on(async {
        let (_bodies, url) = gateway("", "")?;
        let (_codes, coded) = gateway("legacy_unknown = \"http\"", "")?;
        for (texts, body, status) in [(&broken[..], BAD, 400), (&foreign[..], UNKNOWN, 404)] {
            for text in texts {
                is_body(&ask(&url, &url.post("", text)).await?, body);
                let answer = ask(&coded, &coded.post("", text)).await?;
                is_sound(&answer);
                assert_eq!((answer.status, answer.body.len()), (status, 0), "{text}");
            }
        }
        Ok(())
    })
}

/// BOSH-91: the 21st request in a minute for a session that is not there is told to come later.
#[test]
fn strangers_are_slowed_down() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "unknown_sids_per_minute = 20\nexempt_peers = []")?;
        let mut connection = Connection::open_from("127.0.0.2", &url.authority).await?;
        for _ in 0..20 {
            connection.send(&url.post("", &stranger(""))).await?;
            is_body(&connection.prompt_answer().await?, UNKNOWN);
        }
        connection.send(&url.post("", &stranger(""))).await?;
        let answer = connection.prompt_answer().await?;
        is_sound(&answer);
        assert_eq!(answer.status, 503);
        let wait: u32 = answer.header("Retry-After").context("no Retry-After")?.parse()?;
        assert!((5..20).contains(&wait));
        // Its address alone, and what is no session's is another matter.
        connection.send(&url.post("", "<body/>")).await?;
        is_body(&connection.prompt_answer().await?, BAD);
        is_body(&ask(&url, &url.post("", &stranger(""))).await?, UNKNOWN);
        Ok(())
    })
}

/// SEC-02: the preflight, for all pages and for listed ones.
#[test]
fn preflights() -> Result {
    block_on(async {
        let ask_from = async |url: &Url, method: &str, origin: &str| {
            let origin =
                if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
            let body = if method == "POST" { stranger("") } else { String::new() };
            let headers = format!("{origin}Content-Length: {}\r\n", body.len());
            ask(url, &url.request(method, &headers, &body)).await
        };
        let (_any, url) = gateway("allowed_headers = [\"X-Token\"]", "")?;
        let answer = ask_from(&url, "OPTIONS", "https://chat.example").await?;
        is_sound(&answer);
        assert_eq!(answer.status, 204);
        for (name, value) in [
            ("Access-Control-Allow-Methods", "POST"),
            ("Access-Control-Allow-Headers", "content-type, x-token"),
            ("Access-Control-Max-Age", "86400"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{}", answer.head);
        }

        let (_listed, url) = gateway("allowed_origins = [\"https://chat.example\"]", "")?;
        for method in ["OPTIONS", "POST", "GET", "PUT"] {
            for (origin, allowed) in [
                ("https://chat.example", true),
                ("https://CHAT.example:443", true),
                ("http://chat.example", false),
                ("null", false),
                ("", false),
            ] {
                let answer = ask_from(&url, method, origin).await?;
                assert_eq!(answer.header("Vary"), Some("Origin"), "{}", answer.head);
                let echoed = answer.header("Access-Control-Allow-Origin");
                assert_eq!(echoed, allowed.then_some(origin), "{method} {origin}");
                let methods = answer.header("Access-Control-Allow-Methods");
                assert_eq!(methods.is_some(), allowed && method == "OPTIONS");
            }
        }
        Ok(())
    })
}

/// SEC-18: a body that does not come is not waited for; the answer is one that clients survive.
#[test]
fn slow_bodies_are_cut_off() -> Result {
    block_on(async {
        let (gateway, url) = gateway("body_timeout = \"200ms\"", "")?;
        let body = stranger("");
        let whole = url.post("", &body);
        let chunked = url.post_chunked("", &body, 5);
        for request in [
            &whole[..whole.len() - 1],
            &whole[..whole.len() - body.len()],
            &chunked[..chunked.len() - 9],
        ] {
            let mut connection = Connection::open(&url.authority).await?;
            connection.send(request).await?;
            let answer = connection.prompt_answer().await?;
            is_sound(&answer);
            assert_eq!((answer.status, answer.header("Connection")), (503, Some("close")));
            assert!(answer.header("Retry-After").is_some());
            connection.shut().await?;
            assert_eq!(connection.remainder().await?, b"");
        }
        ensure!(gateway.metric("bosphorus_bosh_refused_total{why=\"slow\"}")? == 3.0);
        Ok(())
    })
}

/// A client that asks first whether its body is welcome (RFC 9110 §10.1.1) is told to go on.
#[test]
fn expectations_are_met() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "")?;
        let mut connection = Connection::open(&url.authority).await?;
        let body = stranger("");
        let whole = url.post("Expect: 100-continue\r\n", &body);
        let (head, body) = whole.split_at(whole.len() - body.len());
        connection.send(head).await?;
        assert_eq!(connection.prompt_answer().await?.status, 100);
        connection.send(body).await?;
        is_body(&connection.prompt_answer().await?, UNKNOWN);
        Ok(())
    })
}

/// A body that comes in pieces, cut anywhere, is one body.
#[test]
fn pieces_make_a_whole() -> Result {
    block_on(async {
        let (_gateway, url) = gateway("", "")?;
        let mut connection = Connection::open(&url.authority).await?;
        for size in [1, 7, 100] {
            for piece in url.post("", &stranger("<iq/>")).chunks(size) {
                connection.send(piece).await?;
                tokio::task::yield_now().await;
            }
            is_body(&connection.prompt_answer().await?, UNKNOWN);
        }
        Ok(())
    })
}

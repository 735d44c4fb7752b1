//! The HTTP side of BOSH: methods, versions, bodies in every coding, cross-origin headers, and what
//! one client can take. The server is played by hand.

mod common;

use anyhow::{Context, ensure};
use tokio::time::timeout;

use common::bosh::{Body, CONTENT_TYPE, CREATION, XBOSH};
use common::http::{Answer, Connection, Url};
use common::scene::{AUTH, DOMAIN, FEATURES, HEADER, Scene, header, message};
use common::{PATIENCE, Result, block_on};

const HTTPBIND: &str = "xmlns='http://jabber.org/protocol/httpbind'";

/// A page that may or may not talk to the gateway.
const PAGE: &str = "https://app.example.test";

/// A request that a browser sends from that page.
fn origin(page: &str) -> String {
    format!("{CONTENT_TYPE}Origin: {page}\r\n")
}

/// A body that belongs to no session.
fn stray() -> String {
    format!("<body rid='5' sid='nobody' {HTTPBIND}/>")
}

/// BOSH-01: POST with and without a trailing slash, a text for those who look, and nothing else.
#[test]
fn only_post_carries_sessions() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let slash = Url { path: format!("{}/", scene.url.path), ..scene.url.clone() };
        for url in [&scene.url, &slash] {
            let answer = scene.ask(&url.post(CONTENT_TYPE, &stray())).await?;
            Body::of(&answer)?.expect_terminate(Some("item-not-found"))?;
        }
        for method in ["PUT", "DELETE", "PATCH"] {
            let request =
                scene.url.request(method, &format!("{}Content-Length: 0\r\n", origin(PAGE)), "");
            let answer = scene.ask(&request).await?;
            ensure!(answer.status == 405, "{method}: {}", answer.head);
            let allow = answer.header("Allow").context("no Allow")?;
            ensure!(allow.contains("POST") && allow.contains("OPTIONS"), "{method}: {allow}");
            ensure_cors(&answer, "*")?;
        }
        let get = scene.ask(&scene.url.request("GET", &origin(PAGE), "")).await?;
        ensure!(get.status == 200 && !get.body.is_empty(), "GET: {}", get.head);
        ensure_cors(&get, "*")?;
        let mut connection = scene.send(&scene.url.request("HEAD", &origin(PAGE), "")).await?;
        let head = timeout(PATIENCE, connection.answer_to("HEAD")).await??.context("no answer")?;
        ensure!(head.status == 200 && connection.unread().is_empty(), "HEAD: {}", head.head);
        ensure_cors(&head, "*")
    })
}

/// BOSH-02: what a request says its content is does not matter.
#[test]
fn any_content_type_is_taken() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        for header in [
            "Content-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: text/plain\r\n",
            "Content-Type: nonsense\r\nX-Unknown: yes\r\nCookie: a=b\r\n",
            "",
        ] {
            let (mut session, mut link) = scene.session().await?;
            session.headers = header.to_owned();
            let _held = session.next("", AUTH).await?;
            link.until("</auth>").await.with_context(|| header.to_owned())?;
        }
        Ok(())
    })
}

/// BOSH-03, BOSH-07, BOSH-22, BOSH-23: each answer has a length, no coding, one type whatever was
/// asked for, and is for nobody's cache.
#[test]
fn answers_are_plain_and_complete() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        for content in ["text/html", "text/xml; charset=utf-8&#13;&#10;X-Evil: 1", "image/svg+xml"]
        {
            let (_, mut connection) =
                scene.create(&format!("{CREATION} content='{content}'")).await?;
            let mut link = scene.peer.accept().await?;
            header(&mut link).await?;
            link.write(&format!("{HEADER}{FEATURES}")).await?;
            let answer = connection.prompt_answer().await?;
            let kind = answer.header("Content-Type");
            ensure!(kind == Some("text/xml; charset=utf-8"), "BOSH-22: {content}: {kind:?}");
            ensure!(answer.header("X-Evil").is_none(), "BOSH-22: {}", answer.head);
            let body = Body::of(&answer)?;
            ensure!(body.attr("charsets").is_none(), "BOSH-23: {}", body.text);
            ensure!(body.attr("accept").is_none(), "BOSH-09: {}", body.text);
            for answer in [answer, scene.ask(&scene.url.post("", &stray())).await?] {
                let length = answer.header("Content-Length").context("BOSH-03: no length")?;
                ensure!(length == answer.body.len().to_string(), "BOSH-03: {}", answer.head);
                ensure!(answer.header("Transfer-Encoding").is_none(), "BOSH-03: {}", answer.head);
                let cache = answer.header("Cache-Control");
                ensure!(cache == Some("no-store"), "BOSH-07: {}", answer.head);
                let sniff = answer.header("X-Content-Type-Options");
                ensure!(sniff == Some("nosniff"), "BOSH-07: {}", answer.head);
            }
        }
        let (_, mut connection) = scene.create(&format!("{CREATION} content='text/plain'")).await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        let answer = connection.prompt_answer().await?;
        let kind = answer.header("Content-Type").unwrap_or_default();
        ensure!(kind.starts_with("text/plain"), "BOSH-22: {kind}");
        Ok(())
    })
}

/// BOSH-04, BOSH-90: HTTP/1.0 is answered and closed; HTTP/1.1 stays open, for any session, from any
/// address.
#[test]
fn connections_belong_to_no_session() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let Url { authority, path } = &scene.url;
        let old = format!(
            "POST {path} HTTP/1.0\r\nHost: {authority}\r\nContent-Length: {}\r\n\r\n{}",
            stray().len(),
            stray()
        );
        let mut connection = scene.send(old.as_bytes()).await?;
        let answer = connection.prompt_answer().await?;
        Body::of(&answer)?.expect_terminate(Some("item-not-found"))?;
        ensure!(answer.header("Content-Length").is_some(), "BOSH-03: {}", answer.head);
        let rest = connection.remainder().await.context("BOSH-04")?;
        ensure!(rest.is_empty(), "BOSH-04: {} bytes behind the answer", rest.len());

        let (one, mut link_of_one) = scene.bound().await?;
        let (other, mut link_of_other) = scene.bound().await?;
        let mut shared = Connection::open_from("127.0.0.2", authority).await?;
        for (session, link) in [(&one, &mut link_of_one), (&other, &mut link_of_other)] {
            let text = session.text(session.rid + 1, "", &message("from elsewhere"));
            shared.send(&scene.url.post("", &text)).await?;
            link.until("from elsewhere").await?;
            link.write(&message("hello")).await?;
            let body = Body::of(&shared.prompt_answer().await?)?;
            ensure!(body.messages() == ["hello"], "{}", body.text);
        }
        Ok(())
    })
}

/// BOSH-05: requests behind each other on one connection are answered in order, the second no later
/// than the first may be held.
#[test]
fn pipelined_requests_are_answered_in_order() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (session, mut link) = scene.bound_with("wait='1' hold='1' ver='1.11'").await?;
        let request = |rid, payload: &str| session.url.post("", &session.text(rid, "", payload));
        let mut both = request(session.rid + 1, "");
        both.extend(request(session.rid + 2, &message("behind")));
        let mut connection = scene.send(&both).await?;
        let first = Body::of(&connection.prompt_answer().await?)?;
        ensure!(first.is_empty(), "{}", first.text);
        link.until("behind").await?;
        link.write(&message("answer")).await?;
        let second = Body::of(&connection.prompt_answer().await?)?;
        ensure!(second.messages() == ["answer"], "{}", second.text);
        Ok(())
    })
}

/// BOSH-06, SEC-12, SEC-02: a body over the limit is refused before it was read whole, and the
/// session knows nothing of it; the page that sent it can read the refusal.
#[test]
fn a_body_over_the_limit_leaves_the_session_alone() -> Result {
    block_on(async {
        let scene = Scene::with("[limits]\nbody_bytes = 300000\n").await?;
        let (mut session, mut link) = scene.bound().await?;
        let rid = session.rid + 1;
        let large = session.text(rid, "", &message(&"x".repeat(1 << 20)));
        let announced = format!("{}Content-Length: {}\r\n", origin(PAGE), large.len());
        for request in [
            session.url.post(&origin(PAGE), &large),
            session.url.post_chunked(&origin(PAGE), &large, 10_000),
            // Nothing but the announcement.
            session.url.request("POST", &announced, ""),
        ] {
            let mut connection = Connection::open(&session.url.authority).await?;
            // It may be refused while it is being sent.
            let _ = connection.send(&request).await;
            let answer = connection.prompt_answer().await?;
            ensure!(answer.status == 413, "{}", answer.head);
            let close = answer.header("Connection").unwrap_or_default();
            ensure!(close.eq_ignore_ascii_case("close"), "BOSH-06: {}", answer.head);
            ensure_cors(&answer, "*")?;
        }
        let _held = session.next("", &message("alive")).await?;
        let heard = link.until("alive").await?;
        ensure!(!heard.contains("xxx"), "some of it was forwarded");
        Ok(())
    })
}

/// BOSH-02, BOSH-10, BOSH-12: bodies in chunks and behind `Expect` are bodies like others, whatever
/// attributes they have.
#[test]
fn bodies_come_in_every_coding() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let attributes = format!(
            "{CREATION} ua='x/1' window='5' secure='false' inactivity='30' newthing='1' \
             xmlns:q='urn:q' q:a='b' route='xmpp:example.test:5222' ack='0' hold='2'"
        )
        .replacen("hold='1' ", "", 1);
        let (mut session, mut link) = scene.session_with(&attributes).await?;
        session.rid += 1;
        let text = session.text(session.rid, "", AUTH);
        let mut chunked = scene.send(&session.url.post_chunked("", &text, 7)).await?;
        link.until("</auth>").await.context("in chunks")?;
        session.rid += 1;
        let text = session.text(session.rid, "", "");
        let whole = session.url.post("Expect: 100-continue\r\n", &text);
        let at = whole.len() - text.len();
        let mut patient = scene.send(&whole[..at]).await?;
        let go_on = patient.prompt_answer().await?;
        ensure!(go_on.status == 100, "{}", go_on.head);
        patient.send(&whole[at..]).await?;
        // It has arrived: the one before is free.
        ensure!(Body::of(&chunked.prompt_answer().await?)?.is_empty(), "BOSH-37");
        link.write("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><aborted/></failure>")
            .await?;
        let body = Body::of(&patient.prompt_answer().await?)?;
        ensure!(body.text.contains("failure"), "{}", body.text);
        Ok(())
    })
}

/// BOSH-08, BOSH-09, SEC-13: nothing is coded unless that is switched on, then large answers are, and
/// never the one with the secrets; what comes coded is refused, what only says so (libpurple) is not.
#[test]
fn compression_is_a_choice() -> Result {
    block_on(async {
        let accepting = format!("{CONTENT_TYPE}Accept-Encoding: gzip, deflate\r\n");
        for (toml, coded) in [("", false), ("gzip = true", true)] {
            let scene = Scene::new(toml).await?;
            let (mut session, mut link) = scene.bound().await?;
            session.headers = accepting.clone();
            let mut held = session.next("", "").await?;
            link.write(&message(&"same ".repeat(1000))).await?;
            let answer = held.answer().await?;
            let coding = answer.header("Content-Encoding");
            ensure!(coding == coded.then_some("gzip"), "BOSH-08: {toml:?}: {}", answer.head);
            let length = answer.header("Content-Length").context("BOSH-03")?;
            ensure!(length == answer.body.len().to_string(), "BOSH-08: {}", answer.head);
            ensure!(!coded || answer.body.starts_with(&[0x1f, 0x8b]), "BOSH-08: not gzip");

            let text = common::bosh::creation(7, &format!("to='{DOMAIN}' {CREATION}"));
            let mut connection = scene.send(&scene.url.post(&accepting, &text)).await?;
            let mut link = scene.peer.accept().await?;
            header(&mut link).await?;
            link.write(&format!("{HEADER}{FEATURES}")).await?;
            let answer = connection.prompt_answer().await?;
            ensure!(answer.header("Content-Encoding").is_none(), "SEC-13: {}", answer.head);
        }
        let scene = Scene::new("").await?;
        let request = scene.url.post("Content-Encoding: gzip\r\n", &stray());
        let answer = scene.ask(&request).await?;
        ensure!(answer.status == 415, "BOSH-09: {}", answer.head);
        // What libpurple says of every request, and means as its type.
        for plain in ["identity", "text/xml; charset=utf-8"] {
            let request = scene.url.post(&format!("Content-Encoding: {plain}\r\n"), &stray());
            let body = Body::of(&scene.ask(&request).await?).with_context(|| plain.to_owned())?;
            body.expect_terminate(Some("item-not-found"))?;
        }
        Ok(())
    })
}

/// BOSH-10, BOSH-11, BOSH-14, BOSH-23, BOSH-68: what is not one `<body/>` in its namespace, in plain
/// XML and UTF-8, is a bad request.
#[test]
fn bodies_that_are_none_are_bad_requests() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let good = format!("rid='1' to='{DOMAIN}' {CREATION} xmlns:xmpp='{XBOSH}' {HTTPBIND}");
        for broken in [
            String::new(),
            " \n ".to_owned(),
            "<body".to_owned(),
            format!("<stream {good}/>"),
            format!("<body {good}>"),
            format!("<body {good}/><body {good}/>"),
            format!("<body {good}/>x"),
            format!("<body {good}>x</body>"),
            format!("<body {good}>&amp;</body>"),
            format!("<!DOCTYPE body><body {good}/>"),
            format!("<body {good}><!-- x --></body>"),
            format!("<body {good}><?x y?></body>"),
            format!("<?xml version='1.0' encoding='ISO-8859-1'?><body {good}/>"),
            format!("<body {}/>", good.replace("jabber.org/protocol/httpbind", "jabber.org/other")),
            format!("<body {}/>", good.replace(HTTPBIND, "")),
            format!("<body undeclared:a='1' {good}/>"),
        ] {
            let body = scene.post(&broken).await.with_context(|| broken.clone())?;
            body.expect_terminate(Some("bad-request")).with_context(|| broken)?;
        }
        let mut latin: Vec<u8> = scene.url.post("", &format!("<body {good}>xx</body>"));
        let at = latin.len() - "xx</body>".len();
        latin[at] = 0xff;
        Body::of(&scene.ask(&latin).await?)?.expect_terminate(Some("bad-request"))
    })
}

/// The cross-origin headers of an answer to any page.
fn ensure_cors(answer: &Answer, allowed: &str) -> Result {
    let found = answer.header("Access-Control-Allow-Origin");
    ensure!(found == Some(allowed), "SEC-02: {found:?}\n{}", answer.head);
    let credentials = answer.header("Access-Control-Allow-Credentials");
    ensure!(credentials.is_none(), "SEC-02: {credentials:?}");
    Ok(())
}

/// A preflight as a browser sends it.
fn preflight(url: &Url, page: &str) -> Vec<u8> {
    let headers = format!(
        "Origin: {page}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: content-type\r\n"
    );
    url.request("OPTIONS", &headers, "")
}

/// SEC-02: any page by default, only those listed otherwise, which is told to caches; a preflight
/// says what may be sent; errors carry the headers, too.
#[test]
fn pages_may_read_answers_as_configured() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let answer = scene.ask(&preflight(&scene.url, PAGE)).await?;
        ensure!(matches!(answer.status, 200 | 204), "{}", answer.head);
        ensure_cors(&answer, "*")?;
        let header = |name: &str| answer.header(name).unwrap_or_default().to_ascii_lowercase();
        ensure!(header("Access-Control-Allow-Methods").contains("post"), "{}", answer.head);
        ensure!(header("Access-Control-Allow-Headers").contains("content-type"), "{}", answer.head);
        ensure!(header("Access-Control-Max-Age") == "86400", "{}", answer.head);
        for body in [stray(), "broken".to_owned()] {
            let answer = scene.ask(&scene.url.post(&origin(PAGE), &body)).await?;
            ensure_cors(&answer, "*")?;
        }

        let scene = Scene::new(&format!("allowed_origins = [\"{PAGE}\"]")).await?;
        for request in [preflight(&scene.url, PAGE), scene.url.post(&origin(PAGE), &stray())] {
            let answer = scene.ask(&request).await?;
            ensure_cors(&answer, PAGE)?;
            let vary = answer.header("Vary").unwrap_or_default().to_ascii_lowercase();
            ensure!(vary.contains("origin"), "SEC-02: {}", answer.head);
        }
        for page in ["https://evil.test", "null", "https://app.example.test.evil.test"] {
            let answer = scene.ask(&preflight(&scene.url, page)).await?;
            let allowed = answer.header("Access-Control-Allow-Origin");
            ensure!(
                allowed.is_none_or(|it| it != page && it != "*"),
                "SEC-02: {page}: {allowed:?}"
            );
        }
        Ok(())
    })
}

/// SEC-18: a body that does not come is not waited for, and its session knows nothing of it.
#[test]
fn a_body_that_does_not_come_is_not_waited_for() -> Result {
    block_on(async {
        let scene = Scene::new("body_timeout = \"1s\"").await?;
        let (mut session, mut link) = scene.bound().await?;
        let whole = session.url.post("", &session.text(session.rid + 1, "", &message("slow")));
        let connection = scene.send(&whole[..whole.len() - 20]).await?;
        let said = connection.remainder().await.context("SEC-18")?;
        let said = String::from_utf8_lossy(&said);
        // Not 408: a client takes that for the end of its session.
        ensure!(said.is_empty() || said.starts_with("HTTP/1.1 503"), "{said}");
        let _held = session.next("", &message("prompt")).await?;
        let heard = link.until("prompt").await?;
        ensure!(!heard.contains("slow"), "half a body was forwarded: {heard}");
        Ok(())
    })
}

/// SEC-16: over the number of sessions the answer is 503, which clients try again, with the time and
/// the cross-origin headers; an old session goes on.
#[test]
fn a_session_too_many_is_told_to_wait() -> Result {
    block_on(async {
        let scene = Scene::with("[limits]\nsessions = 1\n").await?;
        let (mut session, mut link) = scene.bound().await?;
        let text = common::bosh::creation(7, &format!("to='{DOMAIN}' {CREATION}"));
        let answer = scene.ask(&scene.url.post(&origin(PAGE), &text)).await?;
        ensure_busy(&answer)?;
        let _held = session.next("", &message("still here")).await?;
        link.until("still here").await?;
        Ok(())
    })
}

fn ensure_busy(answer: &Answer) -> Result {
    ensure!(answer.status == 503, "{}", answer.head);
    let after = answer.header("Retry-After").context("no Retry-After")?;
    ensure!(after.parse::<u32>().is_ok_and(|after| after > 0), "Retry-After: {after}");
    ensure_cors(answer, "*")
}

/// BOSH-91: who guesses at sids is slowed down, where that is configured: behind a proxy all clients
/// have one address.
#[test]
fn guessing_sids_is_slowed_down() -> Result {
    block_on(async {
        let scene =
            Scene::with("[limits]\nunknown_sids_per_minute = 20\nexempt_peers = []\n").await?;
        for number in 1..=20 {
            let body = scene.post(&stray()).await.with_context(|| format!("guess {number}"))?;
            body.expect_terminate(Some("item-not-found"))?;
        }
        ensure_busy(&scene.ask(&scene.url.post(&origin(PAGE), &stray())).await?)
    })
}

/// BOSH-15, SEC-14: sids are long, differ, and are not in the log.
#[test]
fn sids_are_secrets() -> Result {
    block_on(async {
        let scene = Scene::with("[log]\nfilter = \"trace\"\n").await?;
        let (one, _link) = scene.session().await?;
        let (other, _other_link) = scene.session().await?;
        ensure!(one.sid != other.sid && one.sid.len() >= 22, "{} {}", one.sid, other.sid);
        let safe =
            |sid: &str| sid.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.~".contains(&it));
        ensure!(safe(&one.sid), "not URL-safe: {}", one.sid);
        ensure!(!one.sid.contains("s1"), "made of the stream id: {}", one.sid);
        let log = scene.gateway.log();
        ensure!(!log.contains(&one.sid), "a sid is in the log");
        Ok(())
    })
}

/// BOSH-04: what is no HTTP at all ends its connection and nothing else.
#[test]
fn nonsense_ends_its_connection_only() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let Url { authority, path } = &scene.url;
        for headers in [
            "Content-Length: -5\r\n".to_owned(),
            "Content-Length: 5\r\nContent-Length: 6\r\n".to_owned(),
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n".to_owned(),
            "Transfer-Encoding: chunked, identity\r\n".to_owned(),
        ] {
            let request =
                format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\n{headers}\r\nhello");
            let said = scene.send(request.as_bytes()).await?.remainder().await?;
            let said = String::from_utf8_lossy(&said);
            ensure!(!said.starts_with("HTTP/1.1 200"), "{headers}: {said}");
        }
        let _held = session.next("", &message("alive")).await?;
        link.until("alive").await?;
        Ok(())
    })
}

//! BOSH sessions (XEP-0124, XEP-0206) over real sockets, where the very bytes and moments matter:
//! what reaches the server's wire and in which order, when a request is answered and with what.
//! The server is played by hand.

mod common;

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{sleep, timeout};

use common::bosh::{Body, CONTENT_TYPE, CREATION, Pending, Session, XBOSH, creation};
use common::client::ns;
use common::http::Cut;
use common::peer::Link;
use common::scene::{
    AUTH, BIND, BINDING, DOMAIN, FEATURES, FOOTER, HEADER, SUCCESS, Scene, header, message,
};
use common::{Result, block_on};

/// How long a request is watched that has to stay open.
const A_WHILE: Duration = Duration::from_millis(200);

fn ensure_empty(body: &Body) -> Result {
    ensure!(body.is_empty(), "not an empty body: {}", body.text);
    Ok(())
}

/// The messages in the answer of this request.
async fn messages(request: &mut Pending) -> Result<Vec<String>> {
    Ok(request.body().await?.messages())
}

/// The server hears exactly these messages next, in this order.
async fn hears(link: &mut Link, bodies: &[&str]) -> Result {
    for body in bodies {
        let heard = link.until("</message>").await?;
        ensure!(heard.contains(&format!("<body>{body}</body>")), "{heard} instead of {body:?}");
        ensure!(heard.matches("<message").count() == 1, "more than {body:?}: {heard}");
    }
    Ok(())
}

/// BOSH-13, BOSH-14, BOSH-16, BOSH-19, BOSH-31, BOSH-68, BOSH-69: a creation request that is wrong is
/// refused by its condition, and no server hears of it.
#[test]
fn wrong_creation_requests_are_refused_without_a_server() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let to = format!("to='{DOMAIN}'");
        let body = |attributes: String, payload: &str| {
            format!(
                "<body {attributes} xmlns='http://jabber.org/protocol/httpbind' \
                 xmlns:xmpp='{XBOSH}'>{payload}</body>"
            )
        };
        let mut cases = vec![
            (body(format!("rid='1' {CREATION}"), ""), "improper-addressing"),
            (body(format!("rid='1' to='nope.test' {CREATION}"), ""), "host-unknown"),
            (body(format!("{to} {CREATION}"), ""), "bad-request"),
            (body(format!("rid='1' {to} {CREATION}"), BIND), "bad-request"),
        ];
        for rid in ["0", "-1", "1e3", " 5", "", "9007199254740992", "00000000000000001"] {
            cases.push((body(format!("rid='{rid}' {to} {CREATION}"), ""), "bad-request"));
        }
        for wrong in ["wait='-1'", "wait='x'", "hold='-1'", "hold='one'", "ver='x'"] {
            cases.push((body(format!("rid='1' {to} {wrong}"), ""), "bad-request"));
        }
        for (request, condition) in cases {
            let answer = scene.post(&request).await?;
            answer.expect_terminate(Some(condition)).with_context(|| request)?;
            ensure!(answer.attr("sid").is_none(), "a session: {}", answer.text);
        }
        // The highest rid there is: the session lives, and the server hears of that one alone.
        let highest = (1u64 << 53) - 1;
        let text = creation(highest, &format!("{to} {CREATION}"));
        let mut connection = scene.send(&scene.url.post(CONTENT_TYPE, &text)).await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        let answer = Body::of(&connection.prompt_answer().await?)?;
        ensure!(answer.attr("sid").is_some(), "BOSH-14: {}", answer.text);
        Ok(())
    })
}

/// BOSH-24, BOSH-25, BOSH-26, XB-03: what the client says about its stream reaches the server's
/// header, so far as it may; where the server is, it does not say.
#[test]
fn the_upstream_header_is_the_clients_so_far_as_it_may() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let elsewhere = "route='xmpp:10.0.0.1:22'";
        for (attributes, has, has_not) in [
            ("xml:lang='tr' from='a@example.test'", vec!["xml:lang='tr'"], vec![]),
            ("from='x@elsewhere.test'", vec![], vec!["elsewhere", "xml:lang"]),
            (elsewhere, vec!["to='example.test'", "version='1.0'"], vec!["10.0.0.1"]),
        ] {
            let (_, connection) =
                scene.create(&format!("wait='60' hold='1' ver='1.11' {attributes}")).await?;
            let mut link = scene.peer.accept().await?;
            let header = header(&mut link).await?;
            for part in has {
                ensure!(header.contains(part), "{attributes}: no {part} in {header}");
            }
            for part in has_not {
                ensure!(!header.contains(part), "{attributes}: {part} in {header}");
            }
            drop(connection);
        }
        Ok(())
    })
}

/// BOSH-29, XB-07, BOSH-20: the first answer waits for the features, but not for ever; later ones go
/// with the next answer. What describes the session stands in the first answer alone, however late
/// the features are.
#[test]
fn the_first_answer_waits_for_the_features_for_a_while() -> Result {
    block_on(async {
        let scene = Scene::new("first_response_timeout = \"500ms\"").await?;
        let (rid, mut connection) = scene.create(CREATION).await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        let early = timeout(A_WHILE, connection.answer()).await;
        ensure!(early.is_err(), "BOSH-29: answered before the features came: {early:?}");
        let first = Body::of(&connection.prompt_answer().await?)?;
        ensure!(first.payloads().is_empty(), "XB-07: {}", first.text);
        let mut session = Session::of(&scene.url, rid, first)?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        let second = held.body().await?;
        ensure!(second.element.has_child("features", ns::STREAMS), "XB-07: {}", second.text);
        ensure!(second.attr("authid") == Some("s1"), "XB-04: {}", second.text);
        ensure!(second.xbosh("version") == Some("1.0"), "XB-04: {}", second.text);
        for name in "sid wait requests ver polling inactivity hold maxpause accept".split(' ') {
            ensure!(second.attr(name).is_none(), "BOSH-20: `{name}` in {}", second.text);
        }
        Ok(())
    })
}

/// BOSH-37: the older request is answered within 50 ms of the arrival of another, and the newer one
/// is held. The fastest of several counts: this machine may have other things to do.
#[test]
fn a_request_too_many_frees_the_oldest() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, _link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        let mut in_time = 0;
        for _ in 0..10 {
            let newer = session.next("", "").await?;
            let connection = held.connection.as_mut().context("not cut")?;
            if timeout(Duration::from_millis(50), connection.taste(1)).await.is_ok() {
                in_time += 1;
            }
            ensure_empty(&held.body().await?)?;
            session.keep(held);
            held = newer;
        }
        held.stays_open(A_WHILE).await?;
        ensure!(in_time > 0, "none of ten was answered within 50 ms");
        Ok(())
    })
}

/// BOSH-38: a held request is answered when `wait` has passed, not before, and with nothing in it.
#[test]
fn a_held_request_is_answered_after_wait() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, _link) = scene.bound_with("wait='1' hold='1' ver='1.11'").await?;
        ensure!(session.creation.attr("wait") == Some("1"), "BOSH-16: {}", session.creation.text);
        let mut held = session.next("", "").await?;
        held.stays_open(Duration::from_millis(900)).await?;
        let answer = timeout(Duration::from_millis(1100), held.body()).await;
        ensure_empty(&answer.context("later than wait + 1 s")??)
    })
}

/// BOSH-39, BOSH-40, BOSH-41: what is there goes out at once and together, on the oldest request or
/// the next one, at most 256 payloads at a time.
#[test]
fn data_goes_out_at_once_and_in_order() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let many = |range: std::ops::Range<usize>| -> Vec<String> {
            range.map(|number| number.to_string()).collect()
        };
        let xml = |bodies: &[String]| bodies.iter().map(|body| message(body)).collect::<String>();
        let five = many(0..5);
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        link.write(&xml(&five)).await?;
        ensure!(messages(&mut held).await? == five, "BOSH-39");

        let lot = many(0..300);
        link.write(&xml(&lot)).await?;
        let mut came = Vec::new();
        while came.len() < lot.len() {
            let mut request = session.next("", "").await?;
            let body = request.body().await?;
            let count = body.payloads().len();
            ensure!((1..=256).contains(&count), "BOSH-41: {count} payloads");
            came.extend(body.messages());
            session.keep(request);
        }
        ensure!(came == lot, "BOSH-40: other than was sent: {came:?}");
        Ok(())
    })
}

/// BOSH-32, BOSH-33, BOSH-42: payloads reach the server in the order of rids, at once when theirs has
/// come; a terminate may be one further ahead than any other.
#[test]
fn payloads_reach_the_server_in_rid_order() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let last = session.rid;
        let mut second = session.post(last + 2, "", &message("second")).await?;
        second.stays_open(A_WHILE).await?;
        let mut end = session.post(last + 3, "type='terminate'", &message("third")).await?;
        end.stays_open(A_WHILE).await?;
        let mut first = session.post(last + 1, "", &message("first")).await?;
        hears(&mut link, &["first", "second", "third"]).await?;
        link.until(FOOTER).await?;
        link.write(FOOTER).await?;
        for request in [&mut first, &mut second, &mut end] {
            request.body().await?;
        }

        let (mut session, mut link) = scene.bound().await?;
        let mut held = session.next("", &message("held")).await?;
        hears(&mut link, &["held"]).await.context("BOSH-42")?;
        held.stays_open(A_WHILE).await
    })
}

/// BOSH-43, BOSH-44, BOSH-47: an answered rid has its answer again, and what comes with it this time
/// is not looked at; one that is no longer kept ends the session.
#[test]
fn an_answered_rid_has_its_answer_again() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut requests = Vec::new();
        for number in ["1", "2", "3", "4"] {
            let mut request = session.next("", &message(number)).await?;
            hears(&mut link, &[number]).await?;
            link.write(&message(number)).await?;
            let answer = request.body().await?;
            requests.push((request.rid, answer.text));
        }
        for (rid, text) in &requests[2..] {
            for payload in [message("something else"), String::new()] {
                let again = session.post(*rid, "", &payload).await?.body().await?;
                ensure!(again.text == *text, "BOSH-44: {} instead of {text}", again.text);
            }
        }
        let _held = session.next("", &message("next")).await?;
        hears(&mut link, &["next"]).await.context("BOSH-44: something was forwarded again")?;
        let (oldest, _) = requests[0];
        let old = session.post(oldest, "", "").await?.body().await?;
        old.expect_terminate(Some("item-not-found")).context("BOSH-47")
    })
}

/// BOSH-45: an open rid that comes again moves to the newer connection, and forwards nothing.
#[test]
fn an_open_rid_moves_to_the_newer_connection() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut older = session.next("", &message("once")).await?;
        hears(&mut link, &["once"]).await?;
        let mut newer = session.repeat(&older).await?;
        let told = older.body().await?;
        ensure!(told.attr("type") == Some("error"), "{}", told.text);
        link.write(&message("to the newer")).await?;
        ensure!(messages(&mut newer).await? == ["to the newer"]);
        let _held = session.next("", &message("next")).await?;
        hears(&mut link, &["next"]).await
    })
}

/// BOSH-46, BOSH-71: no rid is repeated for ever.
#[test]
fn a_rid_is_not_repeated_for_ever() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut request = session.next("", "").await?;
        link.write(&message("kept")).await?;
        request.body().await?;
        for number in 1..=11 {
            let body = session.repeat(&request).await?.body().await?;
            match number {
                11 => body.expect_terminate(Some("policy-violation"))?,
                _ => ensure!(body.messages() == ["kept"], "repeat {number}: {}", body.text),
            }
        }
        Ok(())
    })
}

/// BOSH-48, BOSH-49, BOSH-51, SM-20: a request whose connection has gone gets nothing: that goes with
/// the next rid, or with the same one if it comes again first. However the connection went.
#[test]
fn a_lost_request_gets_nothing() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        for cut in [Cut::Fin, Cut::Reset] {
            let mut lost = session.next("", "").await?;
            lost.stays_open(A_WHILE).await?;
            lost.cut(cut)?;
            // The gateway hears of it while another client comes and goes.
            scene.post("<body/>").await?;
            link.write(&message("next rid")).await?;
            let mut next = session.next("", "").await?;
            ensure!(messages(&mut next).await? == ["next rid"], "BOSH-48: {cut:?}");
            ensure_empty(&session.repeat(&lost).await?.body().await?).context("BOSH-48")?;

            let mut lost = session.next("", "").await?;
            lost.stays_open(A_WHILE).await?;
            lost.cut(cut)?;
            scene.post("<body/>").await?;
            let mut again = session.repeat(&lost).await?;
            again.stays_open(A_WHILE).await?;
            link.write(&message("same rid")).await?;
            ensure!(messages(&mut again).await? == ["same rid"], "BOSH-49: {cut:?}");
        }
        Ok(())
    })
}

/// BOSH-37, BOSH-49: the request that makes one too many may be lost and come again at any moment; the
/// older one is answered at once all the same.
#[test]
fn a_lost_request_frees_the_oldest_when_it_comes_again() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, _link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        for pause in [0, 1, 3, 9, 30] {
            for cut in [Cut::Fin, Cut::Reset] {
                let mut newer = session.next("", &message("x")).await?;
                newer.cut(cut)?;
                sleep(Duration::from_millis(pause)).await;
                let again = session.repeat(&newer).await?;
                let answer = timeout(Duration::from_secs(2), held.body()).await;
                let answer = answer.with_context(|| format!("{cut:?}, {pause} ms later"))??;
                ensure_empty(&answer)?;
                held = again;
            }
        }
        Ok(())
    })
}

/// BOSH-50: an answer that was begun belongs to its rid, and comes again there alone.
#[test]
fn an_answer_that_was_cut_belongs_to_its_rid() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut request = session.next("", "").await?;
        request.stays_open(A_WHILE).await?;
        link.write(&message(&"long".repeat(1000))).await?;
        request.connection.as_mut().context("not cut")?.taste(30).await?;
        request.cut(Cut::Reset)?;
        let mut next = session.next("", "").await?;
        next.stays_open(A_WHILE).await?;
        ensure!(messages(&mut session.repeat(&request).await?).await? == ["long".repeat(1000)]);
        link.write(&message("other")).await?;
        ensure!(messages(&mut next).await? == ["other"]);
        Ok(())
    })
}

/// BOSH-85, BOSH-12: attributes that mean something elsewhere make no second stream.
#[test]
fn later_requests_with_to_are_ordinary() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let attributes = "to='example.test' route='xmpp:x:1' from='a@example.test' xml:lang='tr' \
            stream='other' ua='x' window='5' secure='true' inactivity='1'";
        let mut held = session.next(attributes, &message("ordinary")).await?;
        hears(&mut link, &["ordinary"]).await?;
        link.write(&message("answer")).await?;
        let answer = held.body().await?;
        ensure!(answer.messages() == ["answer"], "{}", answer.text);
        ensure!(answer.attr("stream").is_none(), "BOSH-85: {}", answer.text);
        Ok(())
    })
}

/// XB-08, XB-09, XB-10, XB-11, WS-27: a restart is a new header on the same connection, with the
/// language it names; what it carries besides is not forwarded; where there is nothing to restart it
/// ends the session.
#[test]
fn a_restart_is_a_new_header_on_the_same_connection() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.session().await?;
        let mut request = session.next("", AUTH).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        request.body().await?;
        let restart = format!("xmlns:xmpp='{XBOSH}' xmpp:restart='true'");
        let mut request =
            session.next(&format!("{restart} xml:lang='tr'"), &message("too early")).await?;
        let heard = header(&mut link).await?;
        ensure!(heard.contains("xml:lang='tr'"), "XB-09: {heard}");
        link.write(&format!("{HEADER}{BINDING}")).await?;
        let features = request.body().await?;
        ensure!(features.element.has_child("features", ns::STREAMS), "XB-08: {}", features.text);
        let _held = session.next("", BIND).await?;
        let heard = link.until("</iq>").await?;
        ensure!(!heard.contains("too early") && !heard.contains(FOOTER), "XB-10: {heard}");

        let (mut session, mut link) = scene.session().await?;
        session.ask(&restart, "").await?.expect_terminate(Some("bad-request")).context("XB-11")?;
        let heard = link.until(FOOTER).await?;
        ensure!(!heard.contains("<stream:stream"), "XB-11: {heard}");
        Ok(())
    })
}

/// XB-12: who is too old to ask for a restart gets one.
#[test]
fn old_sessions_may_be_restarted_unasked() -> Result {
    block_on(async {
        let scene = Scene::new("auto_restart = true").await?;
        let (rid, mut connection) = scene.create("wait='60' hold='1'").await?;
        let mut link = scene.peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        let first = Body::of(&connection.prompt_answer().await?)?;
        let mut session = Session::of(&scene.url, rid, first)?;
        let mut request = session.next("", AUTH).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        let answer = request.body().await?;
        ensure!(answer.element.has_child("success", ns::SASL), "{}", answer.text);
        header(&mut link).await.context("XB-12: no restart")?;
        link.write(&format!("{HEADER}{BINDING}")).await?;
        let features = session.ask("", "").await?;
        ensure!(features.element.has_child("features", ns::STREAMS), "XB-12: {}", features.text);
        Ok(())
    })
}

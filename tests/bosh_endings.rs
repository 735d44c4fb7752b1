//! How BOSH sessions end (XEP-0124 §10, §13, §17), over real sockets: what each open request is told,
//! what the server hears, and what is kept for a client that comes late. The server is played by hand.

mod common;

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{sleep, timeout};

use common::bosh::{Body, CONTENT_TYPE, CREATION, Pending, creation, first_rid};
use common::client::ns;
use common::gateway::Gateway;
use common::http::Url;
use common::peer::Link;
use common::scene::{AUTH, DOMAIN, FOOTER, Scene, message};
use common::{PATIENCE, Result, block_on};

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

/// BOSH-30, BOSH-72: where no server listens the creation request hears so, and there is no session.
#[test]
fn a_server_that_is_not_there_is_told_at_creation() -> Result {
    block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let address = socket.local_addr()?;
        let gateway =
            Gateway::start(&format!("[domains.\"{DOMAIN}\"]\nservers = [\"xmpp://{address}\"]\n"))?;
        let url = Url::parse(&gateway.bosh_url())?;
        let text = creation(first_rid(), &format!("to='{DOMAIN}' {CREATION}"));
        let mut connection = common::http::Connection::open(&url.authority).await?;
        connection.send(&url.post(CONTENT_TYPE, &text)).await?;
        let answer = Body::of(&connection.prompt_answer().await?)?;
        answer.expect_terminate(Some("remote-connection-failed"))?;
        ensure!(answer.attr("sid").is_none(), "BOSH-30: {}", answer.text);
        Ok(())
    })
}

/// BOSH-57, XB-15, XB-16, BOSH-66: after `inactivity` without a request the stream ends cleanly; who
/// waits for an answer to what could not be delivered gets it, and nobody else.
#[test]
fn a_silent_session_ends_and_says_what_it_could_not_deliver() -> Result {
    block_on(async {
        let scene = Scene::new("inactivity = \"1s\"").await?;
        let (mut session, mut link) = scene.bound().await?;
        let from = "from='b@example.test/r' to='a@example.test/r'";
        link.write(&format!(
            "<message {from} type='chat' id='m1'><body>lost</body></message>\
             <iq {from} type='get' id='i1'><ping xmlns='urn:xmpp:ping'/></iq>\
             <presence {from}/>\
             <message {from} type='groupchat' id='m2'><body>x</body></message>\
             <message {from} type='headline' id='m3'><body>x</body></message>\
             <message {from} type='error' id='m4'><body>x</body></message>\
             <iq {from} type='result' id='i2'/>\
             <message {from} type='chat' id='m5'><sent xmlns='urn:xmpp:carbons:2'/></message>"
        ))
        .await?;
        let said = link.until(FOOTER).await?;
        let errors = said.matches("<error").count();
        ensure!(errors == 2, "XB-15: {errors} errors: {said}");
        for part in ["recipient-unavailable", "service-unavailable", "m1", "i1"] {
            ensure!(said.contains(part), "XB-15: no {part}: {said}");
        }
        session.ask("", "").await?.expect_terminate(Some("item-not-found")).context("BOSH-66")
    })
}

/// BOSH-58, BOSH-59: a pause answers what is open, keeps the session longer than `inactivity`, and
/// the next request is an ordinary one again.
#[test]
fn a_pause_outlives_inactivity() -> Result {
    block_on(async {
        let scene = Scene::new("inactivity = \"1s\"\nmaxpause = \"30s\"").await?;
        let (mut session, mut link) = scene.bound().await?;
        ensure!(session.creation.attr("maxpause") == Some("30"), "{}", session.creation.text);
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        let mut pause = session.next("pause='20'", &message("away")).await?;
        hears(&mut link, &["away"]).await?;
        ensure_empty(&held.body().await?)?;
        ensure_empty(&pause.body().await?)?;
        link.write(&message("meanwhile")).await?;
        // Longer than `inactivity`.
        sleep(Duration::from_secs(2)).await;
        let mut next = session.next("", "").await?;
        ensure!(messages(&mut next).await? == ["meanwhile"], "BOSH-58");
        // Normal again: the stream ends without another word.
        link.until(FOOTER).await.context("BOSH-58: the pause goes on")?;

        let (mut session, _link) = scene.bound().await?;
        let body = session.ask("pause='31'", "").await?;
        body.expect_terminate(Some("policy-violation")).context("BOSH-59")
    })
}

/// BOSH-62: with `overactivity = "strict"` an empty request too many is a violation, one with a payload
/// is not.
#[test]
fn strict_sessions_refuse_empty_requests_in_a_hurry() -> Result {
    block_on(async {
        let scene = Scene::new("overactivity = \"strict\"").await?;
        let (mut session, _link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        let mut second = session.next("", &message("has a reason")).await?;
        ensure_empty(&held.body().await?)?;
        let mut third = session.next("", "").await?;
        third.body().await?.expect_terminate(Some("policy-violation"))?;
        second.body().await?;

        let scene = Scene::new("overactivity = \"lenient\"").await?;
        let (mut session, _link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        for _ in 0..5 {
            let newer = session.next("", "").await?;
            ensure_empty(&held.body().await?)?;
            held = newer;
        }
        Ok(())
    })
}

/// BOSH-64, BOSH-65: the end of a session takes its payloads to the server and the server's last
/// words to the client: before the end while another request is open, since there are clients that
/// take none with it, and else with it.
#[test]
fn terminate_takes_payloads_along() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        let gone = "<presence xmlns='jabber:client' type='unavailable'/>";
        let mut last = session.next("type='terminate'", gone).await?;
        let heard = link.until(FOOTER).await?;
        let at = heard.find("<presence").context("BOSH-64: no presence")?;
        ensure!(heard[at..].ends_with(FOOTER), "BOSH-64: {heard}");
        link.write(&format!("{}{FOOTER}", message("farewell"))).await?;
        let first = held.body().await?;
        ensure!(first.messages() == ["farewell"], "BOSH-65: {}", first.text);
        ensure!(first.attr("type").is_none(), "BOSH-65: {}", first.text);
        let end = last.body().await?;
        end.expect_terminate(None).context("BOSH-64")?;
        ensure!(end.payloads().is_empty(), "BOSH-65: {}", end.text);
        let after = session.ask("", "").await?;
        after.expect_terminate(Some("item-not-found")).context("BOSH-66")?;

        let (mut session, mut link) = scene.bound().await?;
        let mut last = session.next("type='terminate'", "").await?;
        link.until(FOOTER).await?;
        link.write(&format!("{}{FOOTER}", message("farewell"))).await?;
        let end = last.body().await?;
        ensure!(end.messages() == ["farewell"], "BOSH-65: {}", end.text);
        end.expect_terminate(None).context("BOSH-64")
    })
}

/// BOSH-72: a server that goes without a word is told at once, behind what it said before.
#[test]
fn a_server_that_goes_is_told_at_once() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        link.write("").await?;
        drop(link);
        let answer =
            timeout(Duration::from_secs(1), held.body()).await.context("later than 1 s")??;
        answer.expect_terminate(Some("remote-connection-failed"))?;

        let (mut session, mut link) = scene.bound().await?;
        link.write(&message("last words")).await?;
        drop(link);
        let mut answer = session.ask("", "").await?;
        ensure!(answer.messages() == ["last words"], "pending stanzas are lost: {}", answer.text);
        if answer.attr("type").is_none() {
            answer = session.ask("", "").await?;
        }
        answer.expect_terminate(Some("remote-connection-failed"))
    })
}

/// BOSH-73, XB-14, BOSH-76: example 9.8. A stream error comes whole, behind what was said before it;
/// other open requests hear `other-request`. The plain end of a stream is the plain end of a session.
#[test]
fn a_stream_error_is_passed_on_whole() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        let mut parked = session.post(session.rid + 2, "", "").await?;
        parked.stays_open(A_WHILE).await?;
        link.write(&format!(
            "{}<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>Replaced</text>\
             <own xmlns='urn:own'/></stream:error>{FOOTER}",
            message("last words")
        ))
        .await?;
        let mut answer = held.body().await?;
        if answer.attr("type").is_none() {
            // The message went alone, if it was there first.
            ensure!(answer.messages() == ["last words"], "{}", answer.text);
            answer = parked.body().await?;
        } else {
            parked.body().await?.expect_terminate(Some("other-request")).context("BOSH-76")?;
        }
        answer.expect_terminate(Some("remote-stream-error"))?;
        let error = answer.element.get_child("error", ns::STREAMS).context("XB-14: no error")?;
        ensure!(error.has_child("conflict", ns::STREAM_ERRORS), "XB-14: {}", answer.text);
        ensure!(error.has_child("text", ns::STREAM_ERRORS), "XB-14: {}", answer.text);
        ensure!(error.has_child("own", "urn:own"), "XB-14: {}", answer.text);

        let (mut session, mut link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        link.write(FOOTER).await?;
        held.body().await?.expect_terminate(None).context("BOSH-73")
    })
}

/// BOSH-74: when the gateway stops, every open request says so, and the server hears a clean end.
#[test]
fn a_stop_is_told_to_open_requests() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut one, mut link_of_one) = scene.bound().await?;
        let (mut other, mut link_of_other) = scene.session().await?;
        let (mut first, mut second) = (one.next("", "").await?, other.next("", "").await?);
        first.stays_open(A_WHILE).await?;
        second.stays_open(A_WHILE).await?;
        scene.gateway.signal("TERM")?;
        first.body().await?.expect_terminate(Some("system-shutdown"))?;
        second.body().await?.expect_terminate(Some("system-shutdown"))?;
        for link in [&mut link_of_one, &mut link_of_other] {
            link.until(FOOTER).await?;
            link.write(FOOTER).await?;
        }
        let status = scene.gateway.wait(PATIENCE)?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
}

/// BOSH-77: a condition for which no request was open is kept for the next, once, and for one that
/// knows the rid.
#[test]
fn a_condition_waits_for_the_next_request() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, link) = scene.bound().await?;
        drop(link);
        let answer = session.ask("", "").await?;
        answer.expect_terminate(Some("remote-connection-failed"))?;
        session.ask("", "").await?.expect_terminate(Some("item-not-found")).context("once")?;

        let (mut session, mut link) = scene.bound().await?;
        link.write("<stream:error><reset xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>").await?;
        link.write(&format!("</stream:error>{FOOTER}")).await?;
        // The gateway ends its side, too: it has heard.
        link.until(FOOTER).await?;
        let stranger = session.post(session.rid + 50, "", "").await?.body().await?;
        stranger.expect_terminate(Some("item-not-found")).context("a rid out of the blue")
    })
}

/// BOSH-79: what an unknown session is told is a matter of taste.
#[test]
fn unknown_sessions_are_told_by_code_if_wanted() -> Result {
    block_on(async {
        let scene = Scene::new("legacy_unknown = \"http\"").await?;
        let ns = "xmlns='http://jabber.org/protocol/httpbind'";
        for (body, status) in [(format!("<body rid='1' sid='x' {ns}/>"), 404), ("<".into(), 400)] {
            let answer = scene.ask(&scene.url.post(CONTENT_TYPE, &body)).await?;
            ensure!(answer.status == status && answer.body.is_empty(), "{body}: {}", answer.head);
        }
        Ok(())
    })
}

/// BOSH-80, BOSH-81: nothing of a request with a wrong key reaches the server.
#[test]
fn nothing_behind_a_wrong_key_is_forwarded() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        // SHA-1 of `abc`, the first test vector of FIPS 180.
        let newkey = "newkey='a9993e364706816aba3e25717850c26c9cd0d89d'";
        let (mut session, mut link) = scene.session_with(&format!("{CREATION} {newkey}")).await?;
        let wrong = "key='93c81f9001ac4d3aea60e3fe622c88f858e8d0b3'";
        let body = session.ask(wrong, AUTH).await?;
        body.expect_terminate(Some("item-not-found"))?;
        let heard = link.until(FOOTER).await?;
        ensure!(!heard.contains("auth"), "BOSH-81: {heard}");
        Ok(())
    })
}

/// BOSH-10, BOSH-11, BOSH-68, SEC-05: a body that is not one `<body/>` of plain XML ends the session
/// whose it is, and nothing of it is forwarded, not even what stands before the fault.
#[test]
fn broken_bodies_end_their_session_and_forward_nothing() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let good = message("before the fault");
        for broken in [
            "text",
            "<!-- comment -->",
            "<?pi?>",
            "&unknown;",
            "<unclosed>",
            "<q:undeclared/>",
            "<a b='1' b='2'/>",
        ] {
            let (mut session, mut link) = scene.bound().await?;
            let body = session.ask("", &format!("{good}{broken}")).await?;
            body.expect_terminate(Some("bad-request")).with_context(|| broken.to_owned())?;
            let heard = link.until(FOOTER).await?;
            ensure!(!heard.contains("before the fault"), "{broken}: {heard}");
        }
        Ok(())
    })
}

//! HTTP connections at rest, which the gateway keeps outside its HTTP dispatcher: what comes over
//! them and how it is answered is the same. The scripts wait for the gauge that says where the
//! connections are.

mod common;

use anyhow::{Context, ensure};
use tokio::time::timeout;

use common::bosh::{Body, CONTENT_TYPE, CREATION};
use common::http::{Answer, Connection, Cut};
use common::scene::{Scene, message};
use common::{PATIENCE, Result, block_on, eventually};

/// Waits until that many connections are in this state.
async fn connections(scene: &Scene, state: &str, count: usize) -> Result {
    let sample = format!("bosphorus_http_connections{{state=\"{state}\"}}");
    metric(scene, &sample, count).await
}

/// Waits until a sample has this value.
async fn metric(scene: &Scene, sample: &str, value: usize) -> Result {
    let what = format!("{sample} {value}");
    let is_so = || scene.gateway.metric(sample).is_ok_and(|found| found == value as f64);
    eventually(&what, async || is_so().then_some(())).await
}

fn names(answer: &Answer) -> Vec<String> {
    let lines = answer.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut names: Vec<_> = lines.map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    names
}

/// BOSH-03, BOSH-07: the answer to a request that was held for long has the same head as one that
/// was not, and the connection goes on behind it: for a request at once, and for one after a rest.
#[test]
fn a_held_request_is_answered_outside_the_dispatcher() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut prompt = session.next("", "").await?;
        link.write(&message("prompt")).await?;
        let prompt = prompt.answer().await?;
        let mut late = session.next("", "").await?;
        connections(&scene, "held", 1).await?;
        link.write(&message("late")).await?;
        let answer = late.answer().await?;
        ensure!(answer.status == 200, "{}", answer.head);
        ensure!(names(&answer) == names(&prompt), "{} is not {}", answer.head, prompt.head);
        ensure!(Body::of(&answer)?.messages() == ["late"], "{:?}", answer.text());
        session.keep(late);
        // The same connection, at once.
        let mut next = session.next("", "").await?;
        link.write(&message("next")).await?;
        ensure!(next.body().await?.messages() == ["next"]);
        session.keep(next);
        connections(&scene, "active", 0).await?;
        // And after a rest.
        let mut rested = session.next("", "").await?;
        connections(&scene, "held", 1).await?;
        link.write(&message("rested")).await?;
        ensure!(rested.body().await?.messages() == ["rested"]);
        ensure!(scene.gateway.metric("bosphorus_bosh_requests_open")? == 0.0);
        Ok(())
    })
}

/// BOSH-48, BOSH-51: a client that goes while its request is held is noticed at once, and what it
/// did not get comes with the next request.
#[test]
fn a_held_request_whose_client_goes_gets_nothing() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        for cut in [Cut::Fin, Cut::Reset] {
            let mut held = session.next("", "").await?;
            connections(&scene, "held", 1).await?;
            held.cut(cut)?;
            metric(&scene, "bosphorus_bosh_requests_open", 0).await?;
            link.write(&message("kept")).await?;
            let mut again = session.repeat(&held).await?;
            ensure!(again.body().await?.messages() == ["kept"]);
            session.keep(again);
        }
        Ok(())
    })
}

/// BOSH-05: what is sent behind a request that is held waits for its answer and is then answered
/// in order, whenever it came.
#[test]
fn requests_behind_a_held_one_wait_for_it() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (session, mut link) = scene.bound().await?;
        let request = |rid: u64| scene.url.post(CONTENT_TYPE, &session.text(rid, "", ""));
        for behind_at_once in [true, false] {
            let rid = session.rid + 1 + if behind_at_once { 0 } else { 2 };
            let (first, second) = (request(rid), request(rid + 1));
            let mut connection = Connection::open(&scene.url.authority).await?;
            connection.send(&first).await?;
            if !behind_at_once {
                connections(&scene, "held", 1).await?;
            }
            connection.send(&second).await?;
            link.write(&message("one")).await?;
            let one = Body::of(&connection.prompt_answer().await?)?;
            ensure!(one.messages() == ["one"], "{}", one.text);
            link.write(&message("two")).await?;
            let two = Body::of(&connection.prompt_answer().await?)?;
            ensure!(two.messages() == ["two"], "{}", two.text);
        }
        Ok(())
    })
}

/// A request whose body lets itself be waited for is no rest: neither where the client was told to
/// go on, nor where it just takes its time, nor where the answer is there before the body.
#[test]
fn a_request_that_has_not_come_whole_is_no_rest() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let idle = Connection::open(&scene.url.authority).await?;
        let body = common::bosh::creation(5, &format!("to='elsewhere.test' {CREATION}"));
        let head = |more: &str| {
            let length = format!("Content-Length: {}\r\n{more}", body.len());
            let text =
                String::from_utf8(scene.url.request("POST", &length, "")).unwrap_or_default();
            text.into_bytes()
        };
        let (expects, slow) = (head("Expect: 100-continue\r\n"), head(""));
        let mut expecting = scene.send(&expects).await?;
        let mut dripping = scene.send(&slow).await?;
        let early = scene.url.request("PUT", &format!("Content-Length: {}\r\n", body.len()), "");
        let mut early = scene.send(&early).await?;
        let refused = early.prompt_answer().await?;
        ensure!(refused.status == 405, "{}", refused.head);
        // One that came later rests by now.
        drop(idle);
        let mut resting = scene.send(&scene.url.request("GET", "", "")).await?;
        ensure!(resting.prompt_answer().await?.status == 200);
        connections(&scene, "resting", 1).await?;
        ensure!(scene.gateway.metric("bosphorus_http_connections{state=\"active\"}")? >= 2.0);
        for connection in [&mut expecting, &mut dripping] {
            connection.send(body.as_bytes()).await?;
        }
        ensure!(expecting.prompt_answer().await?.status == 100);
        for connection in [&mut expecting, &mut dripping] {
            let answer = connection.prompt_answer().await?;
            Body::of(&answer)?.expect_terminate(Some("host-unknown"))?;
        }
        // The body of the refused one is nobody's request.
        let _ = early.send(body.as_bytes()).await;
        let rest = timeout(PATIENCE, early.remainder()).await??;
        ensure!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        Ok(())
    })
}

/// SEC-17: an answer that its reader takes slowly is no rest, and comes whole.
#[test]
fn a_slowly_taken_answer_is_no_rest() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        // More than the sockets between hold.
        let long = "x".repeat(7 << 20);
        let mut slow = session.next("", "").await?;
        link.write(&message(&long)).await?;
        slow.connection.as_mut().context("a connection")?.taste(1).await?;
        // A connection that rests by now came later.
        let mut other = scene.send(&scene.url.request("GET", "", "")).await?;
        ensure!(other.prompt_answer().await?.status == 200);
        connections(&scene, "resting", 1).await?;
        ensure!(slow.body().await?.messages() == [long]);
        Ok(())
    })
}

/// WS-01: a connection that has rested can become a WebSocket.
#[test]
fn a_rested_connection_is_upgraded() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let mut connection = scene.send(&scene.url.request("GET", "", "")).await?;
        ensure!(connection.prompt_answer().await?.status == 200);
        connections(&scene, "resting", 1).await?;
        let upgrade = "GET /xmpp-websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: xmpp\r\n\r\n";
        connection.send(upgrade.as_bytes()).await?;
        let answer = connection.answer_to("HEAD").await?.context("no answer")?;
        ensure!(answer.status == 101, "{}", answer.head);
        connections(&scene, "resting", 0).await
    })
}

/// BOSH-74: what ends the sessions of a gateway that stops reaches requests that are held outside.
#[test]
fn a_drain_answers_who_is_held() -> Result {
    block_on(async {
        let scene = Scene::new("").await?;
        let (mut session, mut link) = scene.bound().await?;
        let mut held = session.next("", "").await?;
        connections(&scene, "held", 1).await?;
        scene.gateway.signal("TERM")?;
        link.until("</stream:stream>").await?;
        link.write("</stream:stream>").await?;
        held.body().await?.expect_terminate(Some("system-shutdown"))
    })
}

//! SIGTERM while many are busy: sessions over every transport talk through a real server when the
//! gateway in front of them is told to stop. All end within `drain.window`, one after the other and
//! for the standard reason; who comes meanwhile is sent elsewhere; and nothing is lost that was
//! acknowledged to anybody.
//!
//! - `BOSPHORUS_SESSIONS`: sessions (150; a full run is 1,000)

mod common;

use std::cell::{Cell, RefCell};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout_at};

use common::bosh::{Body, CONTENT_TYPE, CREATION, creation, first_rid};
use common::client::{
    Client, Counters, Ending, Endpoint, Event, Mechanism, Transport, body_of, escape, ns,
};
use common::gateway::{Gateway, domain_toml};
use common::http::{Connection, Url};
use common::server::{Account, Kind, Server};
use common::socket::{Received, Socket};
use common::{PATIENCE, Result, block_on, eventually, in_ci};

/// Over which the sessions end.
const WINDOW: Duration = Duration::from_secs(5);
/// How long after its turn a session may take to say goodbye on a busy machine.
const GOODBYE: Duration = Duration::from_secs(5);
/// Between two messages of one session; more where there are many.
const PACE: Duration = Duration::from_millis(400);
/// One session of so many has stream management.
const MANAGED: usize = 4;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let sessions = std::env::var("BOSPHORUS_SESSIONS").map_or(Ok(150), |text| text.parse());
    let Ok(sessions) = sessions else {
        println!("BOSPHORUS_SESSIONS is not a number");
        return ExitCode::FAILURE;
    };
    // A session is several sockets here, and the servers inherit the limit.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        println!("the limit of open files could not be raised: {error}");
    }
    let trials = Kind::WITH_DEMO
        .into_iter()
        .map(|kind| {
            let missing = kind.missing();
            let skipped = missing.is_some() && !in_ci();
            let run = move || {
                let result = missing.map_or_else(
                    || block_on(async { LocalSet::new().run_until(drain(kind, sessions)).await }),
                    |why| Err(anyhow!(why)),
                );
                result.map_err(|error| Failed::from(format!("{error:#}")))
            };
            Trial::test(format!("drain: {}", kind.name()), run).with_ignored_flag(skipped)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Scenario: WS-38, WS-39 and BOSH-74 with many sessions at once and messages in flight.
async fn drain(kind: Kind, count: usize) -> Result {
    let server = Server::shared(kind)?;
    let next = Gateway::in_front_of(&[&server])?;
    let gateway = Gateway::start(&format!(
        "[drain]\nwindow = \"{}s\"\ntimeout = \"30s\"\nsee_other_uri = \"{}\"\n{}",
        WINDOW.as_secs(),
        next.ws_url(),
        domain_toml(&server)
    ))?;
    let [collecting, telling] = [server.named_account("alice"), server.named_account("bob")];
    let place = Endpoint { url: next.ws_url(), transport: Transport::Ws };
    let collector = Client::online(&place, &collecting).await?;

    let begun = Rc::new(Cell::new(None));
    let pace = PACE.max(Duration::from_millis(2) * u32::try_from(count)?);
    let accounts: Vec<Account> = (0..count.min(100)).map(|_| server.account()).collect();
    let collector_jid = collector.jid.clone();
    let heard = Rc::new(RefCell::new(vec![0; count]));
    let collecting = tokio::task::spawn_local(collect(collector, Rc::clone(&heard)));
    let has_heard = async |index: usize, count: usize| {
        let waiting =
            eventually("a message", async || (heard.borrow()[index] >= count).then_some(()));
        ensure!(!collecting.is_finished(), "the messages of {index} are not collected any more");
        waiting.await.with_context(|| {
            format!("{count} of {index}, of which there are {}", heard.borrow()[index])
        })
    };
    let tasks: Vec<_> = stream::iter(0..count)
        .map(|index| {
            let account = &accounts[index % accounts.len()];
            let transport = Transport::ALL[index % 3];
            let (begun, to) = (Rc::clone(&begun), collector_jid.clone());
            let endpoint = Endpoint { url: gateway.url(transport), transport };
            async move {
                let mut client = Client::login(&endpoint, account).await?;
                if index % MANAGED == 0 {
                    client.enable().await?;
                }
                let jid = client.jid.clone();
                let talk = talk(client, index, (transport, pace), to, begun);
                let task = tokio::task::spawn_local(talk);
                anyhow::Ok((index, account.clone(), transport, jid, task))
            }
        })
        .buffer_unordered(8)
        .try_collect()
        .await
        .with_context(|| gateway.log_tail(20))?;
    let sessions = gateway_sessions(&gateway)?;
    ensure!(sessions == count as f64, "{sessions} sessions instead of {count}");

    // What they say is heard, so the messages are in flight.
    for index in 0..count {
        has_heard(index, 1).await?;
    }
    let managed: Vec<_> =
        tasks.iter().filter(|task| task.0 % MANAGED == 0).map(|task| task.3.clone()).collect();
    // It reads nothing, not even pings, and so must not be there for long.
    let mut teller = Client::online(&place, &telling).await?;
    begun.set(Some(now()));
    gateway.signal("TERM")?;
    let told = Rc::new(Cell::new(0));
    let (telling, stop) = (Rc::clone(&told), Rc::new(Cell::new(false)));
    let stopping = Rc::clone(&stop);
    let teller = tokio::task::spawn_local(async move {
        while !stopping.get() {
            for jid in &managed {
                teller.message(jid, &format!("told {}", telling.get())).await?;
            }
            telling.set(telling.get() + 1);
            sleep(pace).await;
        }
        teller.request("get", None, &format!("<query xmlns=\"{}\"/>", ns::ROSTER)).await?;
        anyhow::Ok(teller)
    });
    eventually("readiness to go red", async || {
        gateway.admin_get("/ready").is_ok_and(|(status, _)| status == 503).then_some(())
    })
    .await?;
    newcomers(&gateway, &next, server.domain()).await?;

    let mut ends = Vec::new();
    let mut resumable = Vec::new();
    for (index, account, transport, jid, task) in tasks {
        let outcome = task.await?.with_context(|| format!("session {index}"))?;
        outcome.check(transport).with_context(|| format!("session {index}: {outcome:?}"))?;
        ends.push(outcome.after);
        has_heard(index, outcome.acknowledged).await.context("acknowledged and lost")?;
        if let Some(counters) = outcome.counters {
            resumable.push((index, account, transport, jid, counters, outcome.told));
        }
    }
    let status = gateway.wait(WINDOW + GOODBYE + PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}\n{}", gateway.log_tail(20));
    ensure!(!gateway.log().contains("cut off"), "{}", gateway.log_tail(20));
    ends.sort();
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    ensure!(last < WINDOW + GOODBYE, "the last session ended after {last:?}");
    let early = ends.iter().filter(|after| **after < WINDOW / 2).count();
    ensure!(early * 4 >= count && early * 4 <= count * 3, "{early} of {count} in the first half");
    println!("{}: {count} sessions ended {first:?} to {last:?} after SIGTERM", kind.name());

    stop.set(true);
    let _teller = teller.await??;
    for (index, account, transport, jid, counters, mut received) in resumable {
        let endpoint = Endpoint { url: next.url(transport), transport };
        let mut client = Client::authenticated(&endpoint, &account, Mechanism::ScramSha1).await?;
        client.resume(&counters, &jid).await.with_context(|| format!("session {index}"))?;
        while received.len() < told.get() {
            let body = client.body().await.with_context(|| format!("{index}: {received:?}"))?;
            received.push(body);
        }
        let expected: Vec<_> = (0..told.get()).map(|number| format!("told {number}")).collect();
        ensure!(received == expected, "session {index} was told {received:?}");
    }
    Ok(())
}

/// Who comes within the window: a stream over WebSocket is sent to the next gateway, a BOSH session
/// is refused with a condition.
async fn newcomers(gateway: &Gateway, next: &Gateway, domain: &str) -> Result {
    let mut socket = Socket::connect(&gateway.ws_url()).await?;
    let open = format!("<open xmlns=\"{}\" to=\"{domain}\" version=\"1.0\"/>", ns::FRAMING);
    socket.send_text(&open).await?;
    let close = format!("<close xmlns=\"{}\" see-other-uri=\"{}\" />", ns::FRAMING, next.ws_url());
    match socket.receive().await? {
        Received::Text(text) if text == close => {}
        other => return Err(anyhow!("WS-38: expected {close}, got {other:?}")),
    }
    let url = Url::parse(&gateway.bosh_url())?;
    let text = creation(first_rid(), &format!("to='{domain}' {CREATION}"));
    let mut connection = Connection::open(&url.authority).await?;
    connection.send(&url.post(CONTENT_TYPE, &text)).await?;
    Body::of(&connection.prompt_answer().await?)?.expect_terminate(Some("system-shutdown"))?;
    Ok(())
}

/// What one session has seen of the drain.
#[derive(Debug, Default)]
struct Outcome {
    ending: Ending,
    /// How many of its messages the server has acknowledged.
    acknowledged: usize,
    /// What it was told.
    told: Vec<String>,
    counters: Option<Counters>,
    /// When it ended.
    after: Duration,
}

impl Outcome {
    fn check(&self, transport: Transport) -> Result {
        let (condition, code) = match (transport, &self.counters) {
            (Transport::Bosh, _) => (Some("system-shutdown"), None),
            (_, Some(_)) => (None, Some(1001)),
            (_, None) => (Some("system-shutdown"), Some(1001)),
        };
        ensure!(self.ending.condition.as_deref() == condition, "the condition");
        ensure!(self.ending.code == code, "the code");
        Ok(())
    }
}

/// Says one thing after the other, each when the server has answered what was behind the one before,
/// until the end.
async fn talk(
    mut client: Client,
    index: usize,
    (transport, pace): (Transport, Duration),
    to: String,
    begun: Rc<Cell<Option<Instant>>>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut due = Some(now());
    let mut faults = 0;
    loop {
        if due.is_some_and(|due| due <= now()) {
            due = None;
            let number = outcome.acknowledged;
            let ping = format!(
                "<iq xmlns=\"jabber:client\" type=\"get\" id=\"ack{number}\">\
                 <ping xmlns=\"{}\"/></iq>",
                ns::PING
            );
            let message = format!(
                "<message xmlns=\"jabber:client\" type=\"chat\" to=\"{}\">\
                 <body>{index} {number}</body></message>",
                escape(&to)
            );
            // Whether it still can is seen by what comes.
            if transport == Transport::Bosh {
                let _ = client.send(&(message + &ping)).await;
            } else {
                let _ = client.send(&message).await;
                let _ = client.send(&ping).await;
            }
        }
        // A client listens all the time: over BOSH this is what keeps a request open.
        let event = match due {
            None => client.event_patiently().await,
            Some(due) => match timeout_at(due, client.event_patiently()).await {
                Ok(event) => event,
                Err(_) => continue,
            },
        };
        let event = match event {
            Ok(event) => event,
            // An answer to `<r/>` that found the session ended; that it has is the next event.
            Err(_) if faults == 0 => {
                faults += 1;
                continue;
            }
            Err(fault) => return Err(fault),
        };
        match event {
            Event::Element(element) if element.is("error", ns::STREAMS) => {
                let mut children = element.children();
                let condition = children.find(|it| it.has_ns(ns::STREAM_ERRORS));
                outcome.ending.condition = condition.map(|it| it.name().to_owned());
            }
            Event::Element(element) if element.is("iq", ns::CLIENT) => {
                if element.attr("id") == Some(&format!("ack{}", outcome.acknowledged)) {
                    outcome.acknowledged += 1;
                    due = Some(now() + pace);
                }
            }
            Event::Element(element) => outcome.told.extend(body_of(&element)),
            Event::Close => outcome.ending.closed = true,
            Event::Closed(code) => {
                outcome.ending.code = code;
                let _ = client.socket().send_close(code.unwrap_or(1000)).await;
                break;
            }
            Event::Terminated(condition) => {
                outcome.ending.condition = outcome.ending.condition.or(condition);
                break;
            }
            Event::Lost => break,
            Event::Open(_) => {}
        }
    }
    outcome.after = begun.get().context("it ended before the signal")?.elapsed();
    outcome.counters = client.sm.take();
    Ok(outcome)
}

/// Counts the messages of each session, which have to come in order, each once.
async fn collect(mut client: Client, heard: Rc<RefCell<Vec<usize>>>) -> Result {
    loop {
        let Event::Element(element) = client.event_patiently().await? else {
            return Err(anyhow!("the end of the collector: {}", client.transcript()));
        };
        let Some(body) = body_of(&element) else { continue };
        let (index, number) = body.split_once(' ').context("a message of somebody else")?;
        let mut heard = heard.borrow_mut();
        let count = heard.get_mut(index.parse::<usize>()?).context("a session that is none")?;
        ensure!(number.parse() == Ok(*count), "{body:?} came after {count} messages");
        *count += 1;
    }
}

fn gateway_sessions(gateway: &Gateway) -> Result<f64> {
    ["websocket", "websocket_legacy", "bosh"].iter().try_fold(0.0, |sum, transport| {
        let sample = format!("bosphorus_sessions{{transport=\"{transport}\"}}");
        Ok(sum + gateway.metric(&sample)?)
    })
}

#[expect(clippy::disallowed_methods, reason = "tests are the shell of their own clock")]
fn now() -> Instant {
    Instant::now()
}

//! The laws of the loop, kept with a machine that does what a script says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::metrics::Metrics;
use crate::proto::bosh;
use crate::proto::bosh::Why;
use crate::proto::bosh::body::Payload;
use crate::proto::domain::{ByDomain, Domain};
use crate::proto::frame::FrameLimits;
use crate::proto::seam::FeatureRules;
use crate::proto::stream::Served;
use crate::proto::ws;
use crate::proto::xml::Limits;
use crate::session::addresses::{self, Addresses};
use crate::session::budget::Budget;
use crate::session::recorder::{self, Recorder};
use crate::session::registry::{Refused, Registry};
use crate::session::worker::{Drain, Live, Sessions, Shared};
use crate::upstream::{
    self, Backoff, Connector, Health, Member, ProxyProtocol, Route, Server, Settings, TlsUse, Trust,
};

/// What a session that panics leaves in the worker's buffers.
const LEFTOVER: &[u8] = b"left over";

/// What a request makes the script's machine do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Do {
    /// Hold it.
    Hold = 1,
    /// Have something to say, to whoever is the oldest open request at the next flush.
    Say,
    /// Answer the oldest before anything else is looked at; its reader goes away meanwhile.
    Push,
    /// End, and answer all that is open.
    End,
    /// End with a condition for the next request.
    Die,
    /// Break a rule of our own.
    Panic,
    /// Open the server's stream.
    Open,
    /// Send its payload to the server.
    Send,
    /// Say that so much is held as its payload is long.
    Weigh,
}

/// What happened to the script's machine, in words.
#[derive(Debug, Default)]
struct Notes {
    events: Vec<String>,
    /// The readers of answers, which a test may drop in the middle of a poll.
    readers: Vec<(u64, oneshot::Receiver<Reply>)>,
    /// At the next flush this reader goes away.
    leaves: Option<u64>,
}

struct Script {
    notes: Rc<RefCell<Notes>>,
    held: VecDeque<RequestId>,
    to_say: VecDeque<&'static str>,
    given: Vec<(RequestId, &'static str)>,
    request: Option<Box<OpenRequest>>,
    server: ServerSide,
    deadline: Option<Instant>,
    ended: Option<Fault>,
    zombie: bool,
    /// Bytes that it says it holds.
    weight: usize,
}

impl Script {
    fn answer(&mut self, out: &mut Out, id: RequestId, text: &'static str) {
        self.given.push((id, text));
        let body = bytes::Bytes::from_static(text.as_bytes());
        let content = Content::TextXml;
        let read = Vec::new();
        let reply = Reply { status: 200, content, body, compressible: true, read, first: false };
        out.responses.push(Respond { id, reply, why: Why::Payload });
    }

    fn end(&mut self, out: &mut Out) {
        self.ended = Some(Fault::Closed);
        self.server = ServerSide::Gone;
        while let Some(id) = self.held.pop_front() {
            self.answer(out, id, "over");
        }
    }
}

impl Machine for Script {
    type Out = Out;

    fn server(&self) -> ServerSide {
        self.server
    }

    fn wants_server(&self) -> bool {
        self.server == ServerSide::Open
    }

    fn connected(&mut self, _: &Established, _: &mut Out, _: Instant) {
        self.server = ServerSide::Open;
        self.notes.borrow_mut().events.push("connected".to_owned());
    }

    fn connect_failed(&mut self, _: Fault, out: &mut Out, _: Instant) {
        self.end(out);
    }

    fn server_bytes(&mut self, _: &mut Scratch, input: &mut &[u8], _: &mut Out, _: Instant) {
        *input = &[];
    }

    fn server_gone(&mut self, out: &mut Out, _: Instant) {
        self.notes.borrow_mut().events.push("server gone".to_owned());
        self.end(out);
    }

    fn server_stalled(&mut self, out: &mut Out, _: Instant) {
        self.notes.borrow_mut().events.push("server stalled".to_owned());
        self.end(out);
    }
}

impl Driven for Script {
    fn handle(&mut self, event: Event<'_>, out: &mut Out, _: Instant) {
        match event {
            Event::Request { id, body } => {
                assert!(!out.server.starts_with(LEFTOVER), "another session left this");
                self.held.push_back(id);
                let what = body.rid;
                if what == Do::Say as u64 {
                    self.to_say.push_back("word");
                } else if what == Do::Push as u64 {
                    let oldest = self.held.pop_front().unwrap_or(id);
                    self.answer(out, oldest, "word");
                    self.notes.borrow_mut().readers.retain(|(id, _)| *id != oldest.0);
                } else if what == Do::End as u64 {
                    self.end(out);
                } else if what == Do::Die as u64 {
                    self.end(out);
                    self.zombie = true;
                } else if what == Do::Panic as u64 {
                    out.server.extend_from_slice(LEFTOVER);
                    panic!("as the script says");
                } else if what == Do::Open as u64 {
                    self.server = ServerSide::Connecting;
                    let domain = Domain::parse("localhost").expect("a domain");
                    self.request = Some(Box::new(OpenRequest { domain, from: None, lang: None }));
                } else if what == Do::Weigh as u64 {
                    self.weight = body.payload.bytes.len();
                } else if what == Do::Send as u64 {
                    out.server.extend_from_slice(&body.payload.bytes);
                }
            }
            Event::Gone { id } => {
                self.held.retain(|held| *held != id);
                if let Some(at) = self.given.iter().position(|(given, _)| *given == id) {
                    self.to_say.push_front(self.given.remove(at).1);
                }
                self.notes.borrow_mut().events.push(format!("gone {}", id.0));
            }
            Event::Flush => {
                while !self.held.is_empty()
                    && let Some(text) = self.to_say.pop_front()
                    && let Some(id) = self.held.pop_front()
                {
                    self.answer(out, id, text);
                }
                let mut notes = self.notes.borrow_mut();
                if let Some(leaves) = notes.leaves.take() {
                    notes.readers.retain(|(id, _)| *id != leaves);
                }
            }
            Event::Deadline => {
                self.deadline = None;
                self.notes.borrow_mut().events.push("deadline".to_owned());
                self.end(out);
                self.zombie = false;
            }
            Event::Overloaded { server_waits } => {
                let event = format!("overloaded {server_waits}");
                self.notes.borrow_mut().events.push(event);
                self.weight = 0;
                self.end(out);
            }
            Event::Drain => {
                self.notes.borrow_mut().events.push("drain".to_owned());
                self.end(out);
            }
            other => self.notes.borrow_mut().events.push(format!("{other:?}")),
        }
    }

    fn take_request(&mut self) -> Option<Box<OpenRequest>> {
        self.request.take()
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn ended(&self) -> Option<Fault> {
        self.ended
    }

    fn limit(&self) -> Option<Limit> {
        None
    }

    fn is_zombie(&self) -> bool {
        self.zombie
    }

    fn stage(&self) -> Stage {
        Stage::default()
    }

    fn take_jid(&mut self) -> Option<Box<str>> {
        None
    }

    fn is_authenticated(&self) -> bool {
        false
    }

    fn is_over(&self) -> bool {
        self.ended.is_some() && !self.zombie
    }

    fn held_bytes(&self) -> usize {
        self.weight
    }

    fn untaken(&mut self, _: usize) {}
}

/// A worker on this thread whose servers of `localhost` are at `server`.
fn worker(server: Option<SocketAddr>) -> (Rc<Worker>, Arc<Live>) {
    let limits = Limits::CLIENT;
    let served = Served::default();
    let settings = ws::Settings {
        served: served.clone(),
        client_xml: limits,
        server_xml: limits,
        frames: FrameLimits { message_bytes: 1000, fragments: 10 },
        pending_bytes: 1000,
        pending_stanzas: 10,
        unauthenticated_bytes: 1000,
        unauthenticated_lifetime: Duration::from_secs(60),
        legacy_framing: true,
        ping_interval: Duration::from_secs(60),
        missed_pongs: 2,
        message_timeout: Duration::from_secs(60),
        close_grace: Duration::from_secs(5),
        whitespace_keepalive: Duration::ZERO,
        stamp_lang: false,
        see_other_uri: None,
        features: FeatureRules::default(),
    };
    let bosh = bosh::Settings {
        served,
        client_xml: limits,
        server_xml: limits,
        body_bytes: 1000,
        body_elements: 10,
        wait_max: Duration::from_secs(55),
        wait_default: Duration::from_secs(55),
        hold_max: 1,
        inactivity: Duration::from_secs(75),
        polling_inactivity: Duration::from_secs(120),
        polling: Duration::from_secs(5),
        maxpause: Duration::from_secs(120),
        first_response_timeout: Duration::from_secs(10),
        linger: Duration::from_millis(10),
        strict_overactivity: false,
        zombie: Duration::from_secs(75),
        replay_responses: 32,
        replay_bytes: 1000,
        response_elements: 10,
        pending_bytes: 1000,
        pending_stanzas: 10,
        unauthenticated_bytes: 1000,
        unauthenticated_lifetime: Duration::from_secs(60),
        close_grace: Duration::from_secs(5),
        whitespace_keepalive: Duration::ZERO,
        features: FeatureRules::default(),
        route_allow: Vec::new(),
        auto_restart: false,
        accept_gzip: false,
    };
    let servers = server.map(|at| Member {
        server: Server::Tcp { host: at.ip().to_string(), port: at.port(), direct_tls: false },
        priority: 0,
        weight: 1,
        proxy_protocol: ProxyProtocol::Off,
    });
    let route = Route {
        servers: servers.into_iter().collect(),
        tls: TlsUse::Never,
        trust: Trust::System,
        client_certificate: None,
    };
    let domain = Domain::parse("localhost").expect("a domain");
    let connector = Connector::new(
        Settings {
            routes: ByDomain {
                named: server.iter().map(|_| (domain.clone(), route.clone())).collect(),
                ..ByDomain::default()
            },
            dns: Vec::new(),
            allow_private: true,
            connect_timeout: Duration::from_secs(5),
            negotiation_timeout: Duration::from_secs(5),
            backoff: Backoff::default(),
            limits,
        },
        Health::default(),
    )
    .expect("no files and no DNS");
    let addresses = Arc::new(Addresses::new(addresses::Limits::default()));
    let metrics = Metrics::register().expect("distinct names");
    let budget = Budget::new(0, Arc::clone(&metrics));
    let shared = Shared {
        metrics,
        registry: Arc::new(Registry::new(1).expect("randomness")),
        sessions: Arc::new(Sessions::new(10, addresses, budget)),
        recorder: Arc::new(Recorder::new(recorder::Settings {
            events: 8,
            keep: Duration::from_secs(60),
            ended: 10,
        })),
    };
    let live = Live {
        connector,
        settings: Arc::new(settings),
        bosh: Arc::new(bosh),
        websocket_origins: Default::default(),
        bosh_origins: Default::default(),
        stall_timeout: Duration::from_millis(300),
    };
    (Worker::start(shared, 1), Arc::new(live))
}

/// A session under the script, and what its clients see.
struct Client {
    worker: Rc<Worker>,
    sid: crate::proto::bosh::sid::Sid,
    notes: Rc<RefCell<Notes>>,
    task: actix_rt::task::JoinHandle<()>,
}

/// A session that begins with an open request which is held.
fn start((worker, live): &(Rc<Worker>, Arc<Live>), deadline: Option<Duration>) -> Client {
    let notes = Rc::new(RefCell::new(Notes::default()));
    let sid = worker.shared.registry.new_sid().expect("randomness");
    let place = worker.shared.registry.insert(sid, false).expect("free");
    let machine = Script {
        notes: Rc::clone(&notes),
        held: VecDeque::from([FIRST]),
        to_say: VecDeque::new(),
        given: Vec::new(),
        request: None,
        server: ServerSide::Absent,
        deadline: deadline.map(|after| clock() + after),
        ended: None,
        zombie: false,
        weight: 0,
    };
    let permit = worker.shared.sessions.admit(None, clock()).expect("room");
    let newcomer = Newcomer::new(None, None, None, &worker.shared.sessions);
    let (run, answer) = Run::new(
        (Rc::clone(worker), Arc::clone(live)),
        machine,
        place,
        permit,
        (upstream::Client::default(), None, newcomer, clock()),
        clock(),
    );
    notes.borrow_mut().readers.push((FIRST.0, answer));
    Client { worker: Rc::clone(worker), sid, notes, task: actix_rt::spawn(run) }
}

impl Client {
    fn post(&self, what: Do, payload: &[u8]) -> Result<oneshot::Receiver<Reply>, Refused> {
        let (reply, answer) = oneshot::channel();
        let body = Body {
            rid: what as u64,
            creation: None,
            sid: Some(self.sid),
            ack: None,
            pause: None,
            keys: None,
            terminate: false,
            restart: None,
            payload: Payload { bytes: payload.to_vec(), parts: Vec::new() },
        };
        self.worker.shared.registry.send(
            &self.sid,
            false,
            Exchange { request: Ok(body), received: clock(), reply },
        )?;
        Ok(answer)
    }

    fn send(&self, what: Do) -> oneshot::Receiver<Reply> {
        self.post(what, b"").expect("a session")
    }

    /// Takes the reader of the request `id` out of the notes.
    fn reader(&self, id: u64) -> oneshot::Receiver<Reply> {
        let mut notes = self.notes.borrow_mut();
        let at = notes.readers.iter().position(|(reader, _)| *reader == id).expect("a reader");
        notes.readers.swap_remove(at).1
    }

    fn events(&self) -> Vec<String> {
        self.notes.borrow().events.clone()
    }

    /// Waits until the machine has noted `event`.
    async fn noted(&self, event: &str) {
        let seen = async {
            while !self.events().iter().any(|seen| seen == event) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let patience = Duration::from_secs(5);
        assert!(
            tokio::time::timeout(patience, seen).await.is_ok(),
            "no {event}: {:?}",
            self.events()
        );
    }
}

async fn text(answer: oneshot::Receiver<Reply>) -> String {
    let reply = tokio::time::timeout(Duration::from_secs(5), answer).await;
    let reply = reply.expect("an answer in time").expect("an answer, not a bare end");
    String::from_utf8(reply.body.to_vec()).expect("UTF-8")
}

fn on_a_worker(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

/// BOSH-48: a connection that ends during the hold is told, and what comes then goes to another.
#[test]
fn nothing_is_given_to_a_request_that_is_gone() {
    on_a_worker(async {
        let client = start(&worker(None), None);
        drop(client.reader(0));
        client.noted("gone 0").await;
        assert_eq!(text(client.send(Do::Say)).await, "word");
        assert_eq!(client.events(), ["gone 0"]);
    });
}

/// BOSH-50: an answer whose reader goes away before it is handed over was never given.
#[test]
fn an_answer_without_a_reader_is_given_to_the_next() {
    on_a_worker(async {
        let client = start(&worker(None), None);
        client.notes.borrow_mut().leaves = Some(0);
        assert_eq!(text(client.send(Do::Say)).await, "word");
        assert_eq!(client.events(), ["gone 0"]);
    });
}

/// The same if that is seen before anything is handed over.
#[test]
fn an_answer_is_taken_back_if_its_reader_is_gone_before() {
    on_a_worker(async {
        let client = start(&worker(None), None);
        assert_eq!(text(client.send(Do::Push)).await, "word");
        assert_eq!(client.events(), ["gone 0"]);
    });
}

/// BOSH-66: what reaches the mailbox behind the end is answered, and then the sid is unknown.
#[test]
fn no_request_hangs_when_the_session_ends() {
    on_a_worker(async {
        let client = start(&worker(None), None);
        let answers = [Do::Hold, Do::End, Do::Hold, Do::Say].map(|what| client.send(what));
        let first = client.reader(0);
        let [one, end, late, later] = answers;
        for answer in [first, one, end] {
            assert_eq!(text(answer).await, "over");
        }
        for answer in [late, later] {
            assert!(text(answer).await.contains("item-not-found"));
        }
        client.task.await.expect("an ordinary end");
        let (registry, sessions) = (&client.worker.shared.registry, &client.worker.shared.sessions);
        assert!(registry.is_empty());
        assert_eq!(sessions.open(), 0);
    });
}

/// BOSH-74: a fault of ours is that session's alone, and its requests are told.
#[test]
fn a_panic_ends_one_session() {
    on_a_worker(async {
        let worker = worker(None);
        let (broken, sound) = (start(&worker, None), start(&worker, None));
        // Polled next on the same thread.
        let _held = sound.send(Do::Say);
        let (held, cause) = (broken.send(Do::Hold), broken.send(Do::Panic));
        for answer in [held, cause, broken.reader(0)] {
            assert!(text(answer).await.contains("internal-server-error"));
        }
        assert!(broken.task.await.expect_err("a panic").is_panic());
        assert_eq!(text(sound.reader(0)).await, "word");
        let metrics = worker.0.shared.metrics.render().expect("text");
        let metrics = String::from_utf8(metrics).expect("text");
        let ended = |line: &str| line.contains("reason=\"bug\"") && line.contains("\"bosh\"");
        assert!(metrics.lines().any(|line| ended(line) && line.ends_with(" 1")), "{metrics}");
        assert_eq!(worker.0.shared.sessions.open(), 1);
        assert_eq!(worker.0.shared.registry.len(), 1);
    });
}

/// BOSH-77: the dead give their place back but can be asked; above the bound they are forgotten.
#[test]
fn the_dead_are_kept_for_a_while_but_not_too_many() {
    on_a_worker(async {
        let worker = worker(None);
        let one = start(&worker, Some(Duration::from_millis(200)));
        assert_eq!(text(one.send(Do::Die)).await, "over");
        assert_eq!(worker.0.shared.sessions.open(), 0);
        assert_eq!(worker.0.shared.metrics.transport(Transport::Bosh).sessions.get(), 0);
        assert_eq!(worker.0.shared.registry.len(), 1);
        let two = start(&worker, None);
        assert_eq!(text(two.send(Do::Die)).await, "over");
        two.task.await.expect("an end");
        assert_eq!(two.worker.shared.registry.len(), 1, "one too many");
        one.noted("deadline").await;
        one.task.await.expect("an end");
        assert!(worker.0.shared.registry.is_empty());
    });
}

/// Idle sessions learn of the drain, and the process need not wait for them any longer.
#[test]
fn a_drain_reaches_idle_sessions() {
    on_a_worker(async {
        let worker = worker(None);
        let client = start(&worker, None);
        tokio::task::yield_now().await;
        worker.0.shared.sessions.drain(Drain { begun: clock(), window: Duration::ZERO });
        assert_eq!(text(client.reader(0)).await, "over");
        client.task.await.expect("an end");
        assert_eq!(client.worker.shared.sessions.open(), 0);
    });
}

/// A session whose server reads its header and no more.
async fn behind_a_deaf_server() -> (Client, TcpStream, oneshot::Receiver<Reply>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let worker = worker(Some(listener.local_addr().expect("a port")));
    let client = start(&worker, None);
    let open = client.send(Do::Open);
    let (mut server, _) = listener.accept().await.expect("the gateway");
    let mut header = [0; 16];
    server.read_exact(&mut header).await.expect("a header");
    server
        .write_all(
            b"<stream:stream xmlns='jabber:client' version='1.0' id='1' \
              xmlns:stream='http://etherx.jabber.org/streams'><stream:features/>",
        )
        .await
        .expect("written");
    client.noted("connected").await;
    (client, server, open)
}

/// A client that sends on while the server takes nothing is bounded by its mailbox, and the server
/// by `limits.stall_timeout`.
#[test]
fn requests_wait_while_the_server_takes_nothing() {
    on_a_worker(async {
        let (client, _server, _open) = behind_a_deaf_server().await;
        let big = vec![b' '; 8 * 1024 * 1024];
        let mut kept = vec![client.post(Do::Send, &big).expect("room")];
        let refused = loop {
            match client.post(Do::Send, b"") {
                Ok(answer) => kept.push(answer),
                Err(refused) => break refused,
            }
            tokio::task::yield_now().await;
            assert!(kept.len() < 100, "nothing holds the client back");
        };
        assert_eq!(refused, Refused::Full);
        client.noted("server stalled").await;
        for answer in kept {
            let answer = text(answer).await;
            assert!(answer == "over" || answer.contains("item-not-found"), "{answer}");
        }
    });
}

/// SEC-17: the session that holds most is woken and ended when all together hold too much, though
/// nothing moves for it; who holds less goes on.
#[test]
fn who_holds_most_is_ended() {
    on_a_worker(async {
        let worker = worker(None);
        worker.0.shared.sessions.budget().limit(2 << 20);
        let (large, small) = (start(&worker, None), start(&worker, None));
        let megabyte = vec![b' '; 1 << 20];
        let _one = large.post(Do::Weigh, &[&megabyte[..], b"more"].concat()).expect("a session");
        let _two = small.post(Do::Weigh, &megabyte).expect("a session");
        large.noted("overloaded false").await;
        large.task.await.expect("its end");
        let _say = small.send(Do::Say);
        assert_eq!(text(small.reader(0)).await, "word");
        assert!(!small.events().iter().any(|event| event.contains("overloaded")));
        let metrics = worker.0.shared.metrics.render().expect("text");
        let metrics = String::from_utf8(metrics).expect("UTF-8");
        assert!(metrics.contains("bosphorus_limit_hits_total{limit=\"memory\"} 1\n"));
        assert!(
            metrics.contains("bosphorus_sessions_held_bytes{transport=\"bosh\"} 1048576\n"),
            "{metrics}"
        );
        drop(small.send(Do::End));
        small.task.await.expect("its end");
        assert_eq!(worker.0.shared.metrics.limits.held.get(), 0);
    });
}

/// SEC-17: what waits in a mailbox counts, also while the session takes nothing out of it.
#[test]
fn queued_requests_are_held() {
    on_a_worker(async {
        let (client, _server, _open) = behind_a_deaf_server().await;
        let sessions = &client.worker.shared.sessions;
        let held = || client.worker.shared.metrics.limits.held.get();
        let big = vec![b' '; 8 * 1024 * 1024];
        let _big = client.post(Do::Send, &big).expect("room");
        while held() < 1 << 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Until the socket's buffers are full.
        let mut before = 0;
        while std::mem::replace(&mut before, held()) != held() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sessions.budget().limit(usize::try_from(held()).expect("a length") + (1 << 20));
        let kept: Vec<_> =
            (0..14).map(|_| client.post(Do::Hold, &big[..100 * 1024]).expect("room")).collect();
        client.noted("overloaded true").await;
        for answer in kept {
            let answer = text(answer).await;
            assert!(answer == "over" || answer.contains("item-not-found"), "{answer}");
        }
    });
}

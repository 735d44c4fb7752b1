//! The rules of XEP-0124 and XEP-0206 on the machine alone: requests, the server's bytes and time
//! in, responses and bytes for the server out.

mod adversary;
mod create;
mod ending;
mod order;
mod replay;
mod timing;
mod xmpp;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::c2s::OpenRequest;
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::item::{Item, StreamHeader};
use super::super::limit::Limit;
use super::super::seam::FeatureRules;
use super::super::stream::{Note, Served, ServerSide, Tally};
use super::super::xml::{self, ItemReader, Limits, Message, Policy, Scope, Scratch};
use super::body::{Ack, Body, Creation, NotANumber, Part, Payload, Restart};
use super::session::{Counts, Event, Out, Session};
use super::sid::Sid;
use super::{RequestId, Settings, Why};

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='q7' from='example.org' version='1.0' \
    xml:lang='en'>";
const FEATURES: &str = "<stream:features><mechanisms \
    xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
    </stream:features>";
const FEATURES_SEEN: &str = "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\">\
    <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
    </stream:features>";
const BOUND: &str = "<iq xmlns='jabber:client' type='result' id='b'>\
    <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
const FOOTER: &str = "</stream:stream>";
const EMPTY: &str = "<body xmlns='http://jabber.org/protocol/httpbind'/>";
const NOT_FOUND: &str = "<body type='terminate' condition='item-not-found' \
    xmlns='http://jabber.org/protocol/httpbind'/>";
const OTHER_REQUEST: &str = "<body type='terminate' condition='other-request' \
    xmlns='http://jabber.org/protocol/httpbind'/>";

/// The rid of the creation request of a [`Rig`].
const FIRST: u64 = 100;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn settings() -> Settings {
    Settings {
        served: Served {
            domains: [Domain::parse("example.org").unwrap()].into(),
            ..Served::default()
        },
        client_xml: Limits::CLIENT,
        server_xml: Limits::SERVER,
        body_bytes: 262_144 + 4096,
        body_elements: 256,
        wait_max: s(55),
        wait_default: s(55),
        hold_max: 1,
        inactivity: s(75),
        polling_inactivity: s(120),
        polling: s(5),
        maxpause: s(120),
        first_response_timeout: s(10),
        linger: ms(10),
        strict_overactivity: false,
        zombie: s(75),
        replay_responses: 32,
        replay_bytes: 1 << 20,
        response_elements: 256,
        pending_bytes: 1 << 20,
        pending_stanzas: 1000,
        unauthenticated_bytes: 65_536,
        unauthenticated_lifetime: s(60),
        close_grace: s(5),
        whitespace_keepalive: Duration::ZERO,
        features: FeatureRules::default(),
        route_allow: Vec::new(),
        auto_restart: false,
        accept_gzip: false,
    }
}

/// A request to be changed by the functions below.
fn body(rid: u64) -> Body {
    Body {
        rid,
        creation: None,
        sid: Some(Sid::new(7, [7; 20])),
        ack: None,
        pause: None,
        keys: None,
        terminate: false,
        restart: None,
        payload: Payload::default(),
    }
}

impl Body {
    /// Adds elements, proven as a reader would.
    fn say(mut self, elements: &str) -> Self {
        let mut scratch = Scratch::new();
        let scope = Scope::client();
        let mut messages =
            xml::messages(&mut scratch, &Limits::CLIENT, &scope, elements.as_bytes()).unwrap();
        while let Some(message) = messages.next(&mut scratch).unwrap() {
            let Message::Element(element) = message else { panic!("no element: {elements}") };
            self.payload.bytes.extend_from_slice(element.bytes());
            self.payload.parts.push(Part {
                kind: element.kind(),
                len: u32::try_from(element.bytes().len()).unwrap(),
                note: Note::of(&element, element.kind()),
            });
        }
        self
    }

    fn ack(mut self, rid: u64) -> Self {
        self.ack = Some(Ack::Rid(rid));
        self
    }

    fn pause(mut self, seconds: u32) -> Self {
        self.pause = Some(Ok(seconds));
        self
    }

    fn key(mut self, key: &str) -> Self {
        self.keys.get_or_insert_default().key = Some(key.into());
        self
    }

    fn newkey(mut self, newkey: &str) -> Self {
        self.keys.get_or_insert_default().newkey = Some(newkey.into());
        self
    }

    fn terminate(mut self) -> Self {
        self.terminate = true;
        self
    }

    fn restart(mut self) -> Self {
        self.restart = Some(Box::default());
        self
    }
}

/// `wait='60' hold='1' ver='1.6' to='example.org' xml:lang='tr' xmpp:version='1.0'`, changed.
fn creation(change: impl FnOnce(&mut Creation)) -> Body {
    let mut creation = Creation {
        to: Some("example.org".into()),
        lang: Some("tr".into()),
        ver: Some((1, 6)),
        wait: Some(60),
        hold: Some(1),
        version: Some("1.0".into()),
        ..Creation::default()
    };
    change(&mut creation);
    Body { creation: Some(Box::new(creation)), sid: None, ..body(FIRST) }
}

/// What a client was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    id: u64,
    why: Why,
    status: u16,
    /// Without the reason.
    body: String,
    /// The word that is ours in a body that ends the session.
    reason: Option<String>,
}

/// A session, its clock, and what its server and its clients got.
struct Rig {
    session: Session,
    scratch: Scratch,
    out: Out,
    start: Instant,
    now: Instant,
    /// Requests whose answer is due.
    open: Vec<u64>,
    upstream: String,
    tally: Tally,
    counts: Counts,
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
fn first_instant() -> Instant {
    Instant::now()
}

/// The environment variable that chooses the one seed a property test runs.
fn seed_from_outside() -> Option<u64> {
    std::env::var("BOSPHORUS_SEED")
        .ok()
        .map(|seed| seed.parse().expect("BOSPHORUS_SEED is a number"))
}

impl Rig {
    /// A session that was created by request 0 and whose server is being connected.
    fn create(settings: Settings, body: Body) -> Self {
        let start = first_instant();
        let session =
            Session::create(Arc::new(settings), Sid::new(7, [7; 20]), RequestId(0), body, start);
        Self {
            session: session.expect("a session"),
            scratch: Scratch::new(),
            out: Out::default(),
            start,
            now: start,
            open: vec![0],
            upstream: String::new(),
            tally: Tally::default(),
            counts: Counts::default(),
        }
    }

    /// A session that was created, connected, and whose features were delivered.
    fn with(change: impl FnOnce(&mut Settings), body: Body) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let mut rig = Self::create(settings, body);
        assert_eq!(rig.connect(HEADER), []);
        let [created] = &rig.server(FEATURES)[..] else { panic!("no creation response") };
        assert_eq!((created.id, created.why), (0, Why::Created));
        rig
    }

    fn new() -> Self {
        Self::with(|_| {}, creation(|_| {}))
    }

    /// The same, logged in.
    fn bound() -> Self {
        Self::bound_with(|_| {}, creation(|_| {}))
    }

    /// The same; the next rid is 101 too.
    fn bound_with(change: impl FnOnce(&mut Settings), body: Body) -> Self {
        let mut rig = Self::with(change, Body { rid: FIRST - 1, ..body });
        rig.step(Event::Request { id: RequestId(FIRST), body: super::tests::body(FIRST) });
        let got = rig.server(BOUND);
        assert_eq!(got.iter().map(|got| got.id).collect::<Vec<_>>(), [FIRST]);
        rig.counts = Counts::default();
        rig.tally = Tally::default();
        rig
    }

    /// Goes to `time` after the creation, stopping at each deadline.
    fn until(&mut self, time: Duration) -> Vec<Got> {
        let mut got = Vec::new();
        let end = self.start + time;
        for _ in 0..1000 {
            match self.session.deadline() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    got.extend(self.handle(Event::Deadline));
                }
                _ => {
                    self.now = end;
                    return got;
                }
            }
        }
        panic!("the deadline does not move");
    }

    /// Milliseconds since the creation.
    fn at(&self) -> u128 {
        self.now.duration_since(self.start).as_millis()
    }

    /// One event and the end of the wake-up.
    fn handle(&mut self, event: Event<'_>) -> Vec<Got> {
        self.step(event);
        self.flush()
    }

    fn step(&mut self, event: Event<'_>) {
        if let Event::Request { id, .. } | Event::Unreadable { id, .. } = &event {
            self.open.push(id.0);
        }
        if let Event::Gone { id } = &event {
            self.open.retain(|open| *open != id.0);
        }
        self.session.handle(event, &mut self.out, self.now);
    }

    fn flush(&mut self) -> Vec<Got> {
        self.session.handle(Event::Flush, &mut self.out, self.now);
        let out = std::mem::take(&mut self.out);
        self.upstream += std::str::from_utf8(&out.server).unwrap();
        self.count(&out);
        let mut got = Vec::new();
        for respond in out.responses {
            let id = respond.id.0;
            let at = self.open.iter().position(|open| *open == id);
            self.open.remove(at.unwrap_or_else(|| panic!("{id} was answered twice")));
            let body = String::from_utf8(respond.reply.body.to_vec()).unwrap();
            let (body, reason) = without_reason(&body);
            got.push(Got { id, why: respond.why, status: respond.reply.status, body, reason });
        }
        got
    }

    fn count(&mut self, out: &Out) {
        for (all, new) in [
            (&mut self.counts.requests, out.counts.requests),
            (&mut self.counts.repeats, out.counts.repeats),
            (&mut self.counts.overactive, out.counts.overactive),
            (&mut self.counts.bad_acks, out.counts.bad_acks),
            (&mut self.counts.restart_payloads, out.counts.restart_payloads),
            (&mut self.counts.bounced, out.counts.bounced),
            (&mut self.counts.undelivered, out.counts.undelivered),
            (&mut self.tally.repaired, out.tally.repaired),
            (&mut self.tally.binding_plus, out.tally.binding_plus),
        ] {
            *all += new;
        }
        for slot in 0..4 {
            self.tally.to_server.elements[slot] += out.tally.to_server.elements[slot];
            self.tally.to_client.elements[slot] += out.tally.to_client.elements[slot];
        }
    }

    /// One request; its id is its rid, unless that is taken.
    fn ask(&mut self, id: u64, body: Body) -> Vec<Got> {
        self.handle(Event::Request { id: RequestId(id), body })
    }

    /// The same for a rid that is too old: its connection might be about to end (BOSH-47).
    fn ask_late(&mut self, id: u64, body: Body) -> Vec<Got> {
        assert_eq!(self.ask(id, body), []);
        let time = self.now.duration_since(self.start) + ms(250);
        self.until(time)
    }

    fn gone(&mut self, id: u64) -> Vec<Got> {
        self.handle(Event::Gone { id: RequestId(id) })
    }

    fn connect(&mut self, header: &str) -> Vec<Got> {
        let header = parse_header(header);
        self.handle(Event::Connected { header: &header, secure: true, identified: false })
    }

    /// Bytes of the server, and the end of the wake-up.
    fn server(&mut self, text: &str) -> Vec<Got> {
        self.feed(text);
        self.flush()
    }

    fn feed(&mut self, text: &str) {
        let mut input = text.as_bytes();
        self.session.server_bytes(&mut self.scratch, &mut input, &mut self.out, self.now);
        assert!(input.is_empty(), "the machine took only a part");
    }

    /// What the server got since the last look.
    fn upstream(&mut self) -> String {
        std::mem::take(&mut self.upstream)
    }
}

fn parse_header(text: &str) -> StreamHeader {
    let mut reader = ItemReader::new(Limits::SERVER, Policy::Tolerant);
    let mut scratch = Scratch::new();
    let item = reader.next(&mut scratch, &mut text.as_bytes());
    let Ok(Some(Item::Header(header))) = item else { panic!("no header: {text}") };
    header
}

/// Checks an answer: the request, why, and the bytes.
#[track_caller]
fn told(got: &[Got], expected: &[(u64, Why, &str)]) {
    let got: Vec<_> = got.iter().map(|got| (got.id, got.why, &*got.body)).collect();
    assert_eq!(got, expected);
}

/// The body without its reason, and that.
fn without_reason(body: &str) -> (String, Option<String>) {
    let start = " xmlns:bosphorus='urn:bosphorus:reason' bosphorus:reason='";
    let Some((before, rest)) = body.split_once(start) else { return (body.to_owned(), None) };
    let (reason, after) = rest.split_once('\'').expect("the end of the value");
    (format!("{before}{after}"), Some(reason.to_owned()))
}

/// `<body xmlns='…'>payload</body>`
fn with(payload: &str) -> String {
    format!("<body xmlns='http://jabber.org/protocol/httpbind'>{payload}</body>")
}

fn acked(ack: u64, payload: &str) -> String {
    let start = format!("<body ack='{ack}' xmlns='http://jabber.org/protocol/httpbind'");
    if payload.is_empty() { start + "/>" } else { format!("{start}>{payload}</body>") }
}

/// `term(condition)` of the catalogue.
fn term(condition: &str) -> String {
    format!(
        "<body type='terminate' condition='{condition}' \
         xmlns='http://jabber.org/protocol/httpbind'/>"
    )
}

/// A message of the server or of the client that needs no completion.
fn message(text: &str) -> String {
    format!("<message xmlns='jabber:client'><body>{text}</body></message>")
}

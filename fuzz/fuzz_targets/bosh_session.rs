//! The BOSH machine on hostile events: requests in any order and of any content, a server that says
//! anything, connections that end, a clock that jumps.
//!
//! Whatever comes, a request is answered once and only while it is there, all of a session's
//! requests are answered by its end, payloads go up once and in rid order, nothing follows the
//! stream's end, and what is kept stays bounded.
//!
//! Input: a few bytes that choose the session, then one event after the other.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosphorus::proto::bosh::body::{Ack, Body, Creation, Keys, NotANumber, Part, Payload, Restart};
use bosphorus::proto::bosh::session::{Event, Out, Session};
use bosphorus::proto::bosh::sid::Sid;
use bosphorus::proto::bosh::{RequestId, Settings, Why};
use bosphorus::proto::domain::Domain;
use bosphorus::proto::fault::Fault;
use bosphorus::proto::item::{Item, Kind, StreamHeader};
use bosphorus::proto::seam::FeatureRules;
use bosphorus::proto::stream::{Served, ServerSide};
use bosphorus::proto::xml::{ItemReader, Limits, Policy, Scratch};
use libfuzzer_sys::fuzz_target;

const BASE: u64 = 1000;
const FOOTER: &str = "</stream:stream>";
const HEADER: &str = "<stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='q' from='example.org' version='1.0'>";
/// What a server may say.
const SAID: [&str; 16] = [
    "<message xmlns='jabber:client'><body>x</body></message>",
    "<iq type='get' id='1' from='a@b'><q xmlns='q'/></iq>",
    "<presence/>",
    "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
    "<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
    "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>",
    "<iq type='result' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
    "<enabled xmlns='urn:xmpp:sm:3' resume='true'/>",
    "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
    FOOTER,
    HEADER,
    "<message><p:x/></message>",
    "<message><!-- x --></message>",
    "<mess",
    "age/>",
    "</oops>",
];
/// K(4) to K(1) of the catalogue's example 9.7.
const KEYS: [&str; 4] = [
    "3d3e77fc2e73912de6215365bd7ff8e6ec560d23",
    "a932def6e5d361adc571134e2dee5e78cd53d771",
    "01fd4dc44bbee522ded8987ee4fde07e35c9daf4",
    "93c81f9001ac4d3aea60e3fe622c88f858e8d0b3",
];

fuzz_target!(|data: &[u8]| {
    let Some((head, mut rest)) = data.split_at_checked(4) else { return };
    let mut world = World::new(head);
    while let Some((event, more)) = rest.split_at_checked(3) {
        rest = more;
        world.event(event);
        if event[0] & 0x80 == 0 {
            world.wake_up();
        }
    }
    world.bury();
});

struct World {
    session: Session,
    scratch: Scratch,
    out: Out,
    header: StreamHeader,
    now: Instant,
    next_id: u64,
    /// Requests that wait for an answer, and all that were answered.
    waiting: BTreeSet<u64>,
    answered: BTreeSet<u64>,
    /// The payload of each rid as it came first.
    first: BTreeMap<u64, Vec<u8>>,
    upstream: Vec<u8>,
    footer: bool,
}

fn settings(head: &[u8]) -> Settings {
    let s = Duration::from_secs;
    Settings {
        served: Served {
            domains: Domain::parse("example.org").into_iter().collect(),
            ..Served::default()
        },
        client_xml: Limits::CLIENT,
        server_xml: Limits::SERVER,
        body_bytes: 4096,
        body_elements: 16,
        wait_max: s(55),
        wait_default: s(55),
        hold_max: 3,
        inactivity: s(75),
        polling_inactivity: s(120),
        polling: s(5),
        maxpause: s(120),
        first_response_timeout: s(10),
        linger: Duration::from_millis(10),
        strict_overactivity: head[0] & 1 != 0,
        zombie: s(75),
        replay_responses: 4,
        replay_bytes: 1500,
        response_elements: 3,
        pending_bytes: 1000,
        pending_stanzas: 8,
        unauthenticated_bytes: 500,
        unauthenticated_lifetime: s(600),
        close_grace: s(5),
        whitespace_keepalive: s(u64::from(head[0] >> 4)),
        features: FeatureRules::default(),
        route_allow: Vec::new(),
        auto_restart: head[0] & 2 != 0,
        accept_gzip: false,
    }
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn new(head: &[u8]) -> Self {
        let creation = Creation {
            to: Some("example.org".into()),
            ver: (head[0] & 4 == 0).then_some((1, 6)),
            wait: Some(u32::from(head[1] & 63)),
            hold: Some(u32::from(head[1] >> 6)),
            ..Creation::default()
        };
        let keys = Keys { key: None, newkey: Some(KEYS[0].into()) };
        let body = Body {
            creation: Some(Box::new(creation)),
            sid: None,
            ack: (head[2] & 1 != 0).then_some(Ack::Rid(1)),
            keys: (head[2] & 2 != 0).then(|| Box::new(keys)),
            ..body(BASE)
        };
        let mut scratch = Scratch::new();
        let mut reader = ItemReader::new(Limits::SERVER, Policy::Tolerant);
        let item = reader.next(&mut scratch, &mut HEADER.as_bytes());
        let Ok(Some(Item::Header(header))) = item else { panic!("no header") };
        let now = Instant::now();
        let settings = Arc::new(settings(head));
        let made = Session::create(settings, Sid::new(1, [1; 20]), RequestId(0), body, now);
        let Ok(session) = made else { panic!("no session") };
        Self {
            session,
            scratch: Scratch::new(),
            out: Out::default(),
            header,
            now,
            next_id: 1,
            waiting: [0].into(),
            answered: BTreeSet::new(),
            first: BTreeMap::new(),
            upstream: Vec::new(),
            footer: false,
        }
    }

    fn event(&mut self, event: &[u8]) {
        let (kind, a, b) = (event[0] & 15, event[1], event[2]);
        match kind {
            0..=5 => self.request(a, b),
            6 | 7 => self.said(SAID[usize::from(a & 15)]),
            8 => self.said(&SAID[0].repeat(usize::from(a & 15))),
            9 => {
                // Also of requests that were answered: the answer could not be handed over.
                let id = u64::from(a) % self.next_id;
                self.waiting.remove(&id);
                self.answered.insert(id);
                self.out.responses.retain(|respond| respond.id.0 != id);
                self.handle(Event::Gone { id: RequestId(id) });
            }
            10 => self.advance(Duration::from_millis(u64::from(a))),
            11 => self.advance(Duration::from_secs(u64::from(a))),
            12 if a & 3 != 0 => {
                let header = self.header.clone();
                let identified = a & 4 != 0;
                self.handle(Event::Connected { header: &header, secure: true, identified });
            }
            12 => self.handle(Event::ConnectFailed { fault: Fault::ServerUnreachable }),
            13 => match a & 7 {
                0 => self.handle(Event::ServerGone),
                1 => self.handle(Event::ServerStalled),
                2 => self.handle(Event::ServerBroken),
                3 => self.handle(Event::Drain),
                4 => {
                    let id = self.open();
                    self.handle(Event::Unreadable { id, rid: None, fault: Fault::BadXml, limit: None });
                }
                _ => self.wake_up(),
            },
            _ => self.handle(Event::Deadline),
        }
    }

    fn open(&mut self) -> RequestId {
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.insert(id);
        RequestId(id)
    }

    fn request(&mut self, a: u8, b: u8) {
        let rid = match a {
            255 => u64::MAX,
            254 => (1 << 53) - 1,
            _ => BASE + u64::from(a & 31),
        };
        let mut body = body(rid);
        let text = match b & 7 {
            0..=2 => String::new(),
            _ => format!("<message id='{rid}.{b}'/>"),
        };
        if !text.is_empty() {
            let kind = if b == 0xFF { Kind::Compress } else { Kind::Message };
            body.payload.parts.push(Part::new(kind, text.len() as u32));
            if kind == Kind::Message {
                self.first.entry(rid).or_insert_with(|| text.clone().into_bytes());
            }
            body.payload.bytes = text.into_bytes();
        }
        self.first.entry(rid).or_default();
        body.ack = match a >> 5 {
            0..=3 => None,
            4 => Some(Ack::Nonsense),
            lag => Some(Ack::Rid(rid.saturating_sub(u64::from(lag) - 4))),
        };
        match b >> 3 {
            0 => body.terminate = true,
            1 => body.pause = Some(Ok(60)),
            2 => body.pause = Some(Err(NotANumber)),
            3 => body.restart = Some(Box::<Restart>::default()),
            n @ 4..=7 => {
                let key = Some(KEYS[usize::from(n - 4)].into());
                body.keys = Some(Box::new(Keys { key, newkey: None }));
            }
            8..=15 => {
                let at = usize::try_from(rid.saturating_sub(BASE)).unwrap_or(9);
                let key = KEYS.get(at).map(|key| (*key).into());
                body.keys = Some(Box::new(Keys { key, newkey: None }));
            }
            _ => {}
        }
        let id = self.open();
        self.handle(Event::Request { id, body });
    }

    fn said(&mut self, text: &str) {
        let mut input = text.as_bytes();
        self.session.server_bytes(&mut self.scratch, &mut input, &mut self.out, self.now);
        assert!(self.session.held_bytes() < 40_000, "{}", self.session.held_bytes());
    }

    fn handle(&mut self, event: Event<'_>) {
        self.session.handle(event, &mut self.out, self.now);
    }

    fn advance(&mut self, time: Duration) {
        self.wake_up();
        self.now += time;
        for _ in 0..8 {
            if self.session.deadline().is_none_or(|at| at > self.now) {
                return;
            }
            self.handle(Event::Deadline);
            self.wake_up();
        }
        panic!("the deadline does not move");
    }

    fn wake_up(&mut self) {
        self.handle(Event::Flush);
        let out = std::mem::take(&mut self.out);
        for respond in out.responses {
            let id = respond.id.0;
            assert!(self.waiting.remove(&id), "{id} was answered although it did not wait");
            assert!(self.answered.insert(id), "{id} was answered twice");
            let text = std::str::from_utf8(&respond.reply.body).expect("UTF-8");
            let is_code = respond.reply.status != 200;
            assert!(is_code && text.is_empty() || text.starts_with("<body "));
            assert!(respond.why != Why::Terminate || self.session.ended().is_some());
        }
        let is_blank = out.server.iter().all(u8::is_ascii_whitespace);
        assert!(!self.footer || is_blank, "something followed the stream's end");
        self.upstream.extend(out.server);
        self.footer |= memmem(&self.upstream, FOOTER);
        self.payloads_are_in_order();
        if self.session.ended().is_some_and(|fault| fault != Fault::Closed) {
            assert!(self.waiting.is_empty(), "left behind: {:?}", self.waiting);
        }
        if self.session.is_over() {
            assert!(self.session.deadline().is_none());
        } else if self.session.server() != ServerSide::Absent {
            assert!(self.session.deadline().is_some());
        }
    }

    /// What is upstream of the client's messages is a beginning of what came, by rid.
    fn payloads_are_in_order(&self) {
        let text = String::from_utf8_lossy(&self.upstream);
        let mut last = 0;
        for rest in text.split("<message id='").skip(1) {
            let Some((id, _)) = rest.split_once('\'') else { continue };
            let Some((rid, _)) = id.split_once('.') else { continue };
            let rid: u64 = rid.parse().expect("a rid");
            assert!(rid > last, "{rid} behind {last}");
            last = rid;
            let whole = format!("<message id='{id}'/>");
            assert_eq!(self.first[&rid], whole.as_bytes(), "the first that came counts");
        }
    }

    fn bury(&mut self) {
        for _ in 0..4 {
            self.advance(Duration::from_secs(700));
        }
        assert!(self.session.is_over() || self.session.server() == ServerSide::Connecting);
        assert!(self.waiting.is_empty(), "never answered: {:?}", self.waiting);
    }
}

fn memmem(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn body(rid: u64) -> Body {
    Body {
        rid,
        creation: None,
        sid: Some(Sid::new(1, [1; 20])),
        ack: None,
        pause: None,
        keys: None,
        terminate: false,
        restart: None,
        payload: Payload::default(),
    }
}

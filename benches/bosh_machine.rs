//! What the BOSH machine costs per request on a body that is read already, beside reading that body.
//!
//! `cargo bench --bench bosh_machine`. Orientation: 1 µs per request, and less than `body::read`
//! of the same bytes in the same run.
//!
//! - `read`: the scanner over the whole `<body/>`.
//! - `request`: the machine takes the body in its turn, forwards its stanzas, and answers the
//!   request before it.
//! - `pair`: the same, and as many stanzas of the server leave in that answer. Scanning them is not
//!   counted, writing them for the client is.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosphorus::proto::bosh::body::{self, Body, Creation, Payload};
use bosphorus::proto::bosh::session::{Event, Out, Session};
use bosphorus::proto::bosh::sid::Sid;
use bosphorus::proto::bosh::{RequestId, Settings};
use bosphorus::proto::domain::Domain;
use bosphorus::proto::item::{Item, StreamHeader};
use bosphorus::proto::seam::FeatureRules;
use bosphorus::proto::stream::Served;
use bosphorus::proto::xml::{ItemReader, Limits, Policy, Scratch};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const HEADER: &str = "<stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='q7' from='example.org' version='1.0'>";
const BOUND: &str = "<stream:features/><iq type='result' id='b'>\
    <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
/// The rid of the creation request.
const FIRST: u64 = 1_000_000;

criterion_group!(benches, bosh);
criterion_main!(benches);

fn bosh(criterion: &mut Criterion) {
    let settings = Arc::new(settings());
    let sid = Sid::new(7, [7; 20]);
    let mut group = criterion.benchmark_group("bosh");
    for stanzas in [1_usize, 4, 16] {
        let text = request(&sid, stanzas);
        group.throughput(Throughput::Bytes(text.len() as u64));

        let mut scratch = Scratch::new();
        group.bench_function(BenchmarkId::new("read", stanzas), |bencher| {
            bencher.iter(|| body::read(&mut scratch, &settings, black_box(text.as_bytes())));
        });

        let read = body::read(&mut scratch, &settings, text.as_bytes()).expect("a readable body");
        for said in [0, stanzas] {
            let name = if said == 0 { "request" } else { "pair" };
            group.bench_function(BenchmarkId::new(name, stanzas), |bencher| {
                let mut bench = Bench::new(&settings, sid);
                let mut reader = reader();
                let mut scratch = Scratch::new();
                let stanza = stanza(0);
                let mut input = stanza.as_bytes();
                let item = reader.next(&mut scratch, &mut input).expect("a stanza");
                let Some(Item::Element(element)) = item else { panic!("no element") };
                let mut rid = FIRST;
                bencher.iter_batched(
                    || {
                        rid += 1;
                        Body { rid, ..read.clone() }
                    },
                    |body| {
                        bench.handle(Event::Request { id: RequestId(body.rid), body });
                        for _ in 0..said {
                            bench.handle(Event::Server(Item::Element(element)));
                        }
                        bench.flush();
                    },
                    BatchSize::SmallInput,
                );
                assert_eq!(bench.session.ended(), None);
            });
        }
    }
    group.finish();
}

/// A session whose client is bound and holds a request whenever it can.
struct Bench {
    session: Session,
    out: Out,
    now: Instant,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn new(settings: &Arc<Settings>, sid: Sid) -> Self {
        let creation = Creation {
            to: Some("example.org".into()),
            ver: Some((1, 11)),
            version: Some("1.0".into()),
            ..Creation::default()
        };
        let body = Body {
            rid: FIRST,
            creation: Some(Box::new(creation)),
            sid: None,
            ack: None,
            pause: None,
            keys: None,
            terminate: false,
            restart: None,
            payload: Payload::default(),
        };
        let now = Instant::now();
        let session = Session::create(Arc::clone(settings), sid, RequestId(0), body, now);
        let mut bench = Self { session: session.expect("a session"), out: Out::default(), now };
        let header = header();
        bench.handle(Event::Connected { header: &header, secure: true, identified: false });
        let mut input = BOUND.as_bytes();
        let mut scratch = Scratch::new();
        bench.session.server_bytes(&mut scratch, &mut input, &mut bench.out, now);
        bench.flush();
        bench
    }

    fn handle(&mut self, event: Event<'_>) {
        self.session.handle(event, &mut self.out, self.now);
    }

    /// The end of a wake-up: what was said is taken by the shell.
    fn flush(&mut self) {
        self.handle(Event::Flush);
        black_box(&self.out);
        self.out.server.clear();
        self.out.responses.clear();
    }
}

fn reader() -> ItemReader {
    ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, header().scope)
}

fn header() -> StreamHeader {
    let mut scratch = Scratch::new();
    let mut reader = ItemReader::new(Limits::SERVER, Policy::Tolerant);
    let item = reader.next(&mut scratch, &mut HEADER.as_bytes());
    let Ok(Some(Item::Header(header))) = item else { panic!("no header") };
    header
}

/// 250 bytes.
fn stanza(n: usize) -> String {
    let start = format!(
        "<message xmlns='jabber:client' to='romeo@montague.example/balcony' id='{n:08x}' \
         type='chat'><body>"
    );
    let end = "</body><request xmlns='urn:xmpp:receipts'/></message>";
    let text = "Art thou not Romeo, and a Montague? ".repeat(8);
    start.clone() + &text[..250 - start.len() - end.len()] + end
}

fn request(sid: &Sid, stanzas: usize) -> String {
    let payload: String = (0..stanzas).map(stanza).collect();
    format!(
        "<body rid='{}' sid='{}' xmlns='http://jabber.org/protocol/httpbind'>{payload}</body>",
        FIRST + 1,
        sid.expose()
    )
}

fn settings() -> Settings {
    let s = Duration::from_secs;
    Settings {
        served: Served {
            domains: Domain::parse("example.org").into_iter().collect(),
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
        linger: Duration::ZERO,
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

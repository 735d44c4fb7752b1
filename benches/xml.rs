//! What the XML core costs per stanza, beside parsers that judge less and one that copies only.
//!
//! `cargo bench --bench xml`. All subjects run in turn in every round, so that what else the
//! machine does falls on all of them; the table shows the median over the rounds in nanoseconds
//! per stanza, and the median of the ratios to quick-xml's slice reader within each round.
//!
//! The target: strict scanning plus the seam costs at most what quick-xml's plain, unchecked
//! slice reader costs (ratio 1.0).

use std::hint::black_box;
use std::time::{Duration, Instant};

use bosphorus::proto::item::Item;
use bosphorus::proto::seam;
use bosphorus::proto::xml::{ItemReader, Limits, Message, Policy, Scope, Scratch, message};
use rxml::Parse as _;

const ROUNDS: usize = 301;
const ROUND: Duration = Duration::from_micros(400);

fn chat(n: usize, xmlns: &str) -> String {
    format!(
        "<message{xmlns} to='romeo{n}@montague.example/balcony' from='juliet@capulet.example/ch' \
         id='{n:08x}' type='chat'><body>Art thou not Romeo, &amp; a Montague?</body><active \
         xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/>\
         </message>"
    )
}

fn roster(n: usize, xmlns: &str) -> String {
    let mut text = format!(
        "<iq{xmlns} to='juliet@capulet.example/chamber' id='roster-{n:04}' type='result'>\
         <query xmlns='jabber:iq:roster' ver='ver{n}'>"
    );
    for k in 0.. {
        if text.len() > 4000 {
            break;
        }
        text.push_str(&format!(
            "<item jid='person{k}@montague.example' name='Person {k}' subscription='both'>\
             <group>Friends &amp; foes</group></item>"
        ));
    }
    text + "</query></iq>"
}

fn photo(n: usize, xmlns: &str) -> String {
    let data = "iVBORw0KGgoAAAANSUhEUgAAABQAAAAUCAYAAACNiR0NAAAABHNCSVQICAgIfAhkiA".repeat(56);
    format!(
        "<iq{xmlns} to='juliet@capulet.example/chamber' id='vcard-{n:04}' type='result'>\
         <vCard xmlns='vcard-temp'><FN>Romeo</FN><PHOTO><TYPE>image/png</TYPE><BINVAL>{data}\
         </BINVAL></PHOTO></vCard></iq>"
    )
}

fn cyrillic(n: usize, xmlns: &str) -> String {
    let line = "Две равно уважаемых семьи в Вероне, где встречают нас событья. ";
    format!(
        "<message{xmlns} to='romeo{n}@montague.example' from='juliet@capulet.example' \
         id='{n:08x}' type='chat'><body>{}</body></message>",
        line.repeat(36)
    )
}

/// One way of handling all of `stanzas` once; returns something that depends on all of it.
type Subject<'a> = (&'static str, Box<dyn FnMut() -> usize + 'a>);

fn subjects<'a>(stanzas: &'a [String], stream: &'a [u8], to_server: bool) -> Vec<Subject<'a>> {
    let mut all: Vec<Subject<'a>> = Vec::new();
    all.push((
        "quick-xml",
        Box::new(move || {
            let mut events = 0;
            for stanza in stanzas {
                let mut reader = quick_xml::Reader::from_str(stanza);
                let config = reader.config_mut();
                config.check_end_names = false;
                while !matches!(
                    black_box(reader.read_event()).expect("a good stanza"),
                    quick_xml::events::Event::Eof
                ) {
                    events += 1;
                }
            }
            events
        }),
    ));
    let mut scratch = Scratch::new();
    let mut out = Vec::with_capacity(16 * 1024);
    if to_server {
        let scope = Scope::client();
        all.push((
            "bosphorus",
            Box::new(move || {
                let mut bytes = 0;
                for stanza in stanzas {
                    out.clear();
                    match message(&mut scratch, &Limits::CLIENT, &scope, stanza.as_bytes()) {
                        Ok(Message::Element(element)) => seam::to_server(&element, &mut out),
                        other => panic!("{other:?}"),
                    }
                    bytes += black_box(&out).len();
                }
                bytes
            }),
        ));
    } else {
        all.push((
            "bosphorus",
            Box::new(move || {
                let mut scope = Scope::client();
                scope.bind("stream", bosphorus::proto::ns::STREAMS).expect("room for one");
                let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, scope);
                let mut bytes = 0;
                let mut input = stream;
                while let Some(item) = reader.next(&mut scratch, &mut input).expect("good items") {
                    let Item::Element(element) = item else { panic!("{item:?}") };
                    out.clear();
                    seam::to_client(&element, &mut out);
                    bytes += black_box(&out).len();
                }
                bytes
            }),
        ));
    }
    let mut copy = Vec::with_capacity(16 * 1024);
    all.push((
        "memcpy",
        Box::new(move || {
            let mut bytes = 0;
            for stanza in stanzas {
                copy.clear();
                copy.extend_from_slice(black_box(stanza.as_bytes()));
                bytes += black_box(&copy).len();
            }
            bytes
        }),
    ));
    all.push((
        "quick-xml, end names",
        Box::new(move || {
            let mut events = 0;
            for stanza in stanzas {
                let mut reader = quick_xml::Reader::from_str(stanza);
                while !matches!(
                    black_box(reader.read_event()).expect("a good stanza"),
                    quick_xml::events::Event::Eof
                ) {
                    events += 1;
                }
            }
            events
        }),
    ));
    all.push((
        "rxml",
        Box::new(move || {
            let mut events = 0;
            for stanza in stanzas {
                let mut parser = rxml::Parser::default();
                let mut input = stanza.as_bytes();
                while let Some(event) = parser.parse(&mut input, true).expect("a good stanza") {
                    black_box(event);
                    events += 1;
                }
            }
            events
        }),
    ));
    all
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quartiles(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 4], values[values.len() * 3 / 4])
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    println!(
        "{ROUNDS} interleaved rounds; ns per stanza (median), ratio to quick-xml (median, quartiles)"
    );
    type Make = fn(usize, &str) -> String;
    let kinds: [(&str, Make); 4] = [
        ("chat, 250 B", chat),
        ("roster, 4 KiB", roster),
        ("photo, 4 KiB", photo),
        ("cyrillic, 4 KiB", cyrillic),
    ];
    for (name, make) in kinds {
        for to_server in [true, false] {
            let xmlns = if to_server { " xmlns='jabber:client'" } else { "" };
            let stanzas: Vec<String> = (0..16).map(|n| make(n, xmlns)).collect();
            let stream = stanzas.concat();
            let size = stream.len() / stanzas.len();
            let direction = if to_server { "to server" } else { "to client" };
            println!("\n{name} ({size} bytes), {direction}");
            let mut subjects = subjects(&stanzas, stream.as_bytes(), to_server);
            let repeats: Vec<u32> = subjects
                .iter_mut()
                .map(|(_, run)| {
                    let start = now();
                    for _ in 0..8 {
                        black_box(run());
                    }
                    let one = start.elapsed() / 8;
                    (ROUND.as_nanos() / one.as_nanos().max(1)).clamp(1, 100_000) as u32
                })
                .collect();
            let mut times = vec![Vec::with_capacity(ROUNDS); subjects.len()];
            for _ in 0..ROUNDS {
                for ((_, run), (repeat, times)) in
                    subjects.iter_mut().zip(repeats.iter().zip(&mut times))
                {
                    let start = now();
                    for _ in 0..*repeat {
                        black_box(run());
                    }
                    let nanos = start.elapsed().as_nanos() as f64;
                    times.push(nanos / f64::from(*repeat) / stanzas.len() as f64);
                }
            }
            for (index, (subject, _)) in subjects.iter().enumerate() {
                let mut ratios: Vec<f64> =
                    times[index].iter().zip(&times[0]).map(|(own, base)| own / base).collect();
                let ratio = median(&mut ratios);
                let (low, high) = quartiles(&mut ratios);
                let nanos = median(&mut times[index].clone());
                println!(
                    "  {subject:<22} {nanos:>10.0} ns  {:>6.2} ns/B  x {ratio:>5.2}  ({low:.2} to {high:.2})",
                    nanos / size as f64
                );
            }
        }
    }
}

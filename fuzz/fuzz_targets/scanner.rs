//! SEC-04: what the strict scanner accepts, another strict parser accepts too, as one element
//! that ends where the scanner said; and what the seam writes of it is accepted again.
#![no_main]

use bosphorus::proto::seam;
use bosphorus::proto::xml::{Limits, Message, Scope, Scratch, message};
use libfuzzer_sys::fuzz_target;
use rxml::Parse as _;

fuzz_target!(|text: &[u8]| {
    let scope = Scope::empty();
    let mut scratch = Scratch::new();
    let Ok(Message::Element(element)) = message(&mut scratch, &Limits::CLIENT, &scope, text) else {
        return;
    };
    let bytes = element.bytes().to_vec();
    let _ = (element.kind(), element.attribute("id"), element.lang(), element.to_dom());
    let children = element.children();
    assert!(children.iter().all(|child| child.range.end <= bytes.len()));

    let mut up = Vec::new();
    seam::to_server(&element, &mut up);
    let mut down = Vec::new();
    seam::to_client(&element, &mut down);
    judge(&bytes);
    for written in [up, down] {
        let again = message(&mut scratch, &RELAXED, &scope, &written);
        // A closed `stream` is read as the header it would be in a legacy message.
        assert!(matches!(again, Ok(Message::Element(_) | Message::StreamOpen(_))), "{again:?}");
    }
});

/// What the seam inserts may pass a limit that the input just kept.
const RELAXED: Limits =
    Limits { element_bytes: usize::MAX, attributes: 1000, namespaces: 500, ..Limits::CLIENT };

/// rxml accepts it, as a document that ends with its last byte. Its own faults: it refuses a
/// bare CR in attribute values, although XML 1.0 section 2.11 makes that a line end; it lacks
/// U+FDF0 to U+FFFD among the characters of names (production 4); and it bounds tokens at 8 KiB.
fn judge(bytes: &[u8]) {
    let has_last_range = bytes.windows(2).any(|pair| pair[0] == 0xEF && pair[1] >= 0xB7);
    if bytes.contains(&b'\r') || has_last_range || bytes.len() > 8000 {
        return;
    }
    let mut parser = rxml::Parser::default();
    let mut input = bytes;
    loop {
        match parser.parse(&mut input, true) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(e) => panic!("rxml: {e:?} in {}", String::from_utf8_lossy(bytes)),
        }
    }
    assert!(input.is_empty());
}

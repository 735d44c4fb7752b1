//! UP-28, UP-36: the reader gives the same items for any chunking, under both policies, and
//! whatever it accepts leaves the seam as something the strict scanner accepts.
//!
//! The first bytes of the input steer: the policy, whether a header precedes, the chunk sizes.
#![no_main]

use bosphorus::proto::item::{Item, Kind};
use bosphorus::proto::seam::{self, FeatureRules, Rewrite};
use bosphorus::proto::xml::{ItemReader, Limits, Message, Policy, Scope, Scratch, message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((steer, bytes)) = data.split_at_checked(4) else { return };
    let policy = if steer[0] & 1 == 0 { Policy::Tolerant } else { Policy::Strict };
    let limits = if steer[0] & 2 == 0 { Limits::SERVER } else { SMALL };
    let with_header = steer[0] & 4 != 0;
    let new = || {
        if with_header {
            return ItemReader::new(limits, policy);
        }
        let mut scope = Scope::client();
        for (prefix, namespace) in
            [("stream", "http://etherx.jabber.org/streams"), ("db", "urn:db"), ("q", "urn:\"")]
        {
            scope.bind(prefix, namespace).expect("room for three");
        }
        ItemReader::with_scope(limits, policy, scope)
    };
    let whole = transcript(new(), std::iter::once(bytes));
    let sizes = [steer[1], steer[2], steer[3]].map(|size| usize::from(size).max(1));
    let mut rest = bytes;
    let chunks = sizes.iter().cycle().map_while(|size| {
        if rest.is_empty() {
            return None;
        }
        let (chunk, behind) = rest.split_at(rest.len().min(*size));
        rest = behind;
        Some(chunk)
    });
    assert_eq!(transcript(new(), chunks), whole);
    let bytewise = transcript(new(), bytes.chunks(1));
    assert_eq!(bytewise, whole);
});

const SMALL: Limits = Limits {
    element_bytes: 200,
    depth: 4,
    attributes: 3,
    name_bytes: 10,
    namespaces: 2,
    elements: 6,
};

/// What the seam inserts may pass a limit that the input just kept.
const RELAXED: Limits = Limits {
    element_bytes: usize::MAX,
    depth: 10_000,
    attributes: 10_000,
    name_bytes: 100_000,
    namespaces: 1000,
    elements: u32::MAX,
};

fn transcript<'i>(mut reader: ItemReader, chunks: impl Iterator<Item = &'i [u8]>) -> Vec<String> {
    let mut scratch = Scratch::new();
    let mut seen = Vec::new();
    for chunk in chunks {
        let mut input = chunk;
        loop {
            match reader.next(&mut scratch, &mut input) {
                Ok(Some(Item::Element(element))) => {
                    let mut out = Vec::new();
                    let rewrite = seam::to_client(&element, &mut out);
                    if rewrite == Rewrite::Dropped {
                        assert!(out.is_empty() && !element.kind().is_stanza());
                    } else {
                        accepted(&out, element.kind());
                    }
                    if element.kind() == Kind::Features && element.broken().is_none() {
                        let mut out = Vec::new();
                        let rules = FeatureRules {
                            strip_channel_binding: true,
                            strip_external: true,
                            strip_sm: true,
                        };
                        seam::features_to_client(&element, &rules, &mut out);
                        accepted(&out, element.kind());
                    }
                    seen.push(format!(
                        "{:?} {:?} {:?} {:?}",
                        element.kind(),
                        String::from_utf8_lossy(element.bytes()),
                        element.broken(),
                        String::from_utf8_lossy(&out),
                    ));
                }
                Ok(Some(other)) => seen.push(format!("{other:?}")),
                Ok(None) => {
                    assert!(input.is_empty());
                    break;
                }
                Err(violation) => {
                    seen.push(violation.to_string());
                    return seen;
                }
            }
        }
    }
    seen
}

/// The strict scanner reads `out` as one element of the same kind.
fn accepted(out: &[u8], kind: Kind) {
    let scope = Scope::empty();
    let mut scratch = Scratch::new();
    match message(&mut scratch, &RELAXED, &scope, out) {
        Ok(Message::Element(element)) => assert_eq!(element.kind(), kind),
        other => panic!("{other:?} for {}", String::from_utf8_lossy(out)),
    }
}

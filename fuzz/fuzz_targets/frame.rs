//! The frame reader on hostile input: it judges alike in any chunking, hands out only what it may,
//! and keeps no more than its limit.
//!
//! Input: one byte that sets the sizes of the pieces, then the bytes of a connection.
#![no_main]

use bosphorus::proto::frame::{FrameError, FrameEvent, FrameLimits, FrameReader};
use libfuzzer_sys::fuzz_target;

const LIMITS: FrameLimits = FrameLimits { message_bytes: 600, fragments: 6 };

fuzz_target!(|data: &[u8]| {
    let Some((seed, bytes)) = data.split_first() else {
        return;
    };
    let whole = read(bytes, usize::MAX..=usize::MAX);
    let least = usize::from(seed & 15) + 1;
    let pieces = read(bytes, least..=least + usize::from(seed >> 4));
    assert_eq!(whole, pieces, "in pieces of {least} or more");
});

#[derive(Debug, PartialEq)]
enum Owned {
    Text(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
    Error(FrameError),
}

fn read(bytes: &[u8], sizes: std::ops::RangeInclusive<usize>) -> Vec<Owned> {
    let mut reader = FrameReader::new(LIMITS);
    let mut said = Vec::new();
    let mut rest = bytes;
    let mut size = *sizes.start();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(size.min(rest.len()));
        rest = later;
        size = if size < *sizes.end() { size + 1 } else { *sizes.start() };
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            match reader.next(&mut input) {
                Ok(Some(event)) => said.push(owned(event)),
                Ok(None) => break,
                Err(error) => said.push(Owned::Error(error)),
            }
        }
        assert!(input.is_empty(), "all of the input was read");
        assert!(reader.held_bytes() <= LIMITS.message_bytes + 125, "more was kept than may be");
        assert!(reader.is_mid_message() || reader.held_bytes() == 0, "memory was kept while idle");
    }
    said
}

fn owned(event: FrameEvent<'_>) -> Owned {
    match event {
        FrameEvent::Text(text) => {
            assert!(text.len() <= LIMITS.message_bytes);
            assert!(std::str::from_utf8(text).is_ok());
            Owned::Text(text.to_vec())
        }
        FrameEvent::Ping(payload) => {
            assert!(payload.len() <= 125);
            Owned::Ping(payload.to_vec())
        }
        FrameEvent::Pong(payload) => {
            assert!(payload.len() <= 125);
            Owned::Pong(payload.to_vec())
        }
        FrameEvent::Close { code, reason } => {
            assert!(code.is_none_or(|code| (1000..5000).contains(&code)));
            assert!(std::str::from_utf8(reason).is_ok());
            Owned::Close(code, reason.to_vec())
        }
    }
}

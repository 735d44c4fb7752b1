use super::*;
use proptest::prelude::*;

const LIMITS: FrameLimits = FrameLimits { message_bytes: 1000, fragments: 8 };
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A client's frame: `first` is the byte of FIN and opcode.
fn frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

fn close_frame(payload: &[u8]) -> Vec<u8> {
    frame(0x88, payload, KEY)
}

#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Text(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
}

impl From<FrameEvent<'_>> for Owned {
    fn from(event: FrameEvent<'_>) -> Self {
        match event {
            FrameEvent::Text(text) => Self::Text(text.to_vec()),
            FrameEvent::Ping(payload) => Self::Ping(payload.to_vec()),
            FrameEvent::Pong(payload) => Self::Pong(payload.to_vec()),
            FrameEvent::Close { code, reason } => Self::Close(code, reason.to_vec()),
        }
    }
}

/// All that a reader says of `bytes` when they come in pieces of the given sizes (the last one
/// repeats).
fn read_with(
    reader: &mut FrameReader,
    bytes: &[u8],
    pieces: &[usize],
) -> (Vec<Owned>, Option<FrameError>) {
    let mut events = Vec::new();
    let mut rest = bytes;
    let mut sizes = pieces.iter();
    let mut size = usize::MAX;
    while !rest.is_empty() {
        size = sizes.next().copied().unwrap_or(size).max(1);
        let (piece, later) = rest.split_at(size.min(rest.len()));
        rest = later;
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            match reader.next(&mut input) {
                Ok(Some(event)) => events.push(event.into()),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(input.is_empty(), "all of the input was read");
    }
    (events, None)
}

fn read(bytes: &[u8]) -> (Vec<Owned>, Option<FrameError>) {
    read_with(&mut FrameReader::new(LIMITS), bytes, &[])
}

#[track_caller]
fn assert_refused(bytes: &[u8], error: FrameError) {
    for pieces in [&[][..], &[1], &[2], &[3]] {
        let said = read_with(&mut FrameReader::new(LIMITS), bytes, pieces);
        assert_eq!(said, (Vec::new(), Some(error)), "in pieces of {pieces:?}");
    }
}

#[track_caller]
fn assert_read(bytes: &[u8], events: &[Owned]) {
    for pieces in [&[][..], &[1], &[2], &[3], &[7]] {
        let mut reader = FrameReader::new(LIMITS);
        let said = read_with(&mut reader, bytes, pieces);
        assert_eq!(said, (events.to_vec(), None), "in pieces of {pieces:?}");
        assert!(!reader.is_mid_message());
        assert_eq!(reader.held_bytes(), 0, "nothing is owned between messages");
    }
}

/// RFC 6455 §5.7: the masked "Hello".
#[test]
fn a_masked_text_message_is_read() {
    let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_read(&bytes, &[Owned::Text(b"Hello".to_vec())]);
}

/// RFC 6455 §5.2: each of the three length forms, at its edges.
#[test]
fn every_length_form_is_read() {
    for length in [0, 1, 125, 126, 127, 1000, 65535, 65536, 70000] {
        let limits = FrameLimits { message_bytes: 70000, fragments: 1 };
        let text = vec![b'x'; length];
        let mut reader = FrameReader::new(limits);
        let said = read_with(&mut reader, &frame(0x81, &text, KEY), &[]);
        assert_eq!(said, (vec![Owned::Text(text)], None));
    }
}

/// A whole message is handed out where it lies.
#[test]
fn a_whole_message_is_not_copied() {
    let mut bytes = frame(0x81, b"<presence/>", KEY);
    bytes.extend(frame(0x89, b"ping", KEY));
    let range = bytes.as_ptr_range();
    let mut reader = FrameReader::new(LIMITS);
    let mut input = bytes.as_mut_slice();
    for _ in 0..2 {
        let Ok(Some(FrameEvent::Text(payload) | FrameEvent::Ping(payload))) =
            reader.next(&mut input)
        else {
            panic!("an event");
        };
        assert!(range.contains(&payload.as_ptr()));
    }
    assert_eq!(reader.held_bytes(), 0);
}

/// WS-09: a fragmented message is one message, and control frames may come between.
#[test]
fn a_fragmented_message_is_reassembled_around_control_frames() {
    let mut bytes = frame(0x01, b"<mess", KEY);
    bytes.extend(frame(0x89, b"are you there", [9, 8, 7, 6]));
    bytes.extend(frame(0x00, b"", KEY));
    bytes.extend(frame(0x8a, b"", KEY));
    bytes.extend(frame(0x80, b"age/>", [0; 4]));
    bytes.extend(frame(0x81, b"<iq/>", KEY));
    assert_read(
        &bytes,
        &[
            Owned::Ping(b"are you there".to_vec()),
            Owned::Pong(Vec::new()),
            Owned::Text(b"<message/>".to_vec()),
            Owned::Text(b"<iq/>".to_vec()),
        ],
    );
}

/// WS-08: a binary message is refused with 1003.
#[test]
fn a_binary_message_is_refused() {
    assert_refused(&frame(0x82, b"<iq/>", KEY), FrameError::Binary);
    assert_eq!(FrameError::Binary.close_code(), 1003);
}

/// WS-10: text that is not UTF-8 is refused with 1007, wherever it is cut.
#[test]
fn text_that_is_not_utf8_is_refused() {
    // Overlong, a surrogate, above U+10FFFF, a lone continuation, a lead byte alone.
    let bad: [&[u8]; 5] =
        [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80", b"a\xe2\x82"];
    for text in bad {
        assert_refused(&frame(0x81, text, KEY), FrameError::BadUtf8);
        for cut in 0..text.len() {
            let mut bytes = frame(0x01, &text[..cut], KEY);
            bytes.extend(frame(0x80, &text[cut..], KEY));
            assert_refused(&bytes, FrameError::BadUtf8);
        }
    }
    assert_eq!(FrameError::BadUtf8.close_code(), 1007);
}

/// WS-10: fragments may end inside a character (RFC 6455 §5.6), the message may not.
#[test]
fn a_character_may_be_cut_by_fragments() {
    let text = "aé€😀".as_bytes();
    let limits = FrameLimits { fragments: 100, ..LIMITS };
    let mut bytes = frame(0x01, b"", KEY);
    for byte in text {
        bytes.extend(frame(0x00, &[*byte], KEY));
        bytes.extend(frame(0x89, b"\xff", KEY));
    }
    bytes.extend(frame(0x80, b"", KEY));
    let (events, error) = read_with(&mut FrameReader::new(limits), &bytes, &[]);
    assert_eq!(error, None);
    assert_eq!(events.last(), Some(&Owned::Text(text.to_vec())));
}

/// WS-10: what is already wrong is refused at the end of its fragment, not of its message.
#[test]
fn invalid_text_is_refused_at_the_end_of_its_fragment() {
    assert_refused(&frame(0x01, b"ok \xff", KEY), FrameError::BadUtf8);
}

/// WS-44: what is too long is refused from the header, before any payload is kept.
#[test]
fn a_message_announced_too_long_is_refused_from_its_header() {
    let mut header = vec![0x81, 0xff];
    header.extend((300_u64 << 20).to_be_bytes());
    header.extend(KEY);
    assert_refused(&header, FrameError::TooBig);
    assert_refused(&frame(0x81, &[b'x'; 1001], KEY)[..8], FrameError::TooBig);
    let mut huge = vec![0x81, 0xff, 0x7f];
    huge.extend([0xff; 7]);
    huge.extend(KEY);
    assert_refused(&huge, FrameError::TooBig);
    assert_eq!(FrameError::TooBig.close_code(), 1009);
}

/// WS-09: the limit holds for the sum of the fragments, while it grows.
#[test]
fn fragments_that_sum_up_too_long_are_refused() {
    let mut bytes = frame(0x01, &[b'x'; 600], KEY);
    bytes.extend(frame(0x00, &[b'x'; 400], KEY));
    let (events, error) = read(&bytes);
    assert_eq!((events, error), (Vec::new(), None), "1000 bytes are within the limit");
    bytes.extend(&frame(0x00, b"y", KEY)[..6]);
    assert_refused(&bytes, FrameError::TooBig);
}

/// WS-09: fragments are counted, empty ones too.
#[test]
fn too_many_fragments_are_refused() {
    let mut bytes = frame(0x01, b"", KEY);
    for _ in 1..LIMITS.fragments {
        bytes.extend(frame(0x00, b"", KEY));
        bytes.extend(frame(0x89, b"", KEY));
    }
    assert_eq!(read(&bytes).1, None);
    bytes.extend(frame(0x80, b"", KEY));
    assert_eq!(read(&bytes).1, Some(FrameError::TooManyFragments));
    assert_eq!(FrameError::TooManyFragments.close_code(), 1009);
}

/// WS-09: fragments of one message do not count against the next.
#[test]
fn the_fragment_count_starts_anew_with_each_message() {
    let mut bytes = Vec::new();
    for _ in 0..20 {
        bytes.extend(frame(0x01, b"a", KEY));
        bytes.extend(frame(0x80, b"b", KEY));
    }
    assert_read(&bytes, &vec![Owned::Text(b"ab".to_vec()); 20]);
}

/// RFC 6455 §5.1: an unmasked frame fails the connection, and is not waited for.
#[test]
fn an_unmasked_frame_is_refused() {
    assert_refused(&[0x81, 0x05], FrameError::Protocol("a client frame without a mask"));
}

/// RFC 6455 §5.2: reserved bits (no extension is negotiated, WS-07) and opcodes.
#[test]
fn reserved_bits_and_opcodes_are_refused() {
    for bit in [0x40, 0x20, 0x10] {
        assert_refused(&frame(0x81 | bit, b"", KEY), FrameError::Protocol("a reserved bit is set"));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_refused(&frame(0x80 | opcode, b"", KEY), FrameError::Protocol("a reserved opcode"));
    }
}

/// RFC 6455 §5.4: messages do not interleave, and a continuation continues something.
#[test]
fn fragments_out_of_order_are_refused() {
    assert_refused(&frame(0x80, b"x", KEY), FrameError::Protocol("a continuation of no message"));
    let mut bytes = frame(0x01, b"x", KEY);
    bytes.extend(frame(0x81, b"x", KEY));
    assert_refused(&bytes, FrameError::Protocol("a new message inside a fragmented one"));
}

/// RFC 6455 §5.2: the shortest length form, and 63 bits at most.
#[test]
fn odd_lengths_are_refused() {
    let mut short = vec![0x81, 0x80 | 126, 0, 125];
    short.extend(KEY);
    assert_refused(&short, FrameError::Protocol("a length not in its shortest form"));
    let mut middle = vec![0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    middle.extend(KEY);
    assert_refused(&middle, FrameError::Protocol("a length not in its shortest form"));
    let mut top = vec![0x81, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
    top.extend(KEY);
    assert_refused(&top, FrameError::Protocol("a length with the top bit set"));
}

/// RFC 6455 §5.5: control frames are whole and short.
#[test]
fn fragmented_or_long_control_frames_are_refused() {
    for opcode in [8, 9, 10] {
        assert_refused(
            &frame(opcode, b"", KEY),
            FrameError::Protocol("a fragmented control frame"),
        );
        let long = frame(0x80 | opcode, &[b'x'; 126], KEY);
        assert_refused(&long, FrameError::Protocol("a control frame over 125 bytes"));
    }
    assert_read(&frame(0x89, &[0xff; 125], KEY), &[Owned::Ping(vec![0xff; 125])]);
}

/// RFC 6455 §5.5.1: empty, or a code with a reason.
#[test]
fn a_close_is_read() {
    assert_read(&close_frame(b""), &[Owned::Close(None, Vec::new())]);
    for code in [1000_u16, 1001, 1003, 1007, 1011, 1014, 3000, 4999] {
        let mut payload = code.to_be_bytes().to_vec();
        assert_read(&close_frame(&payload), &[Owned::Close(Some(code), Vec::new())]);
        payload.extend("fin €".as_bytes());
        assert_read(&close_frame(&payload), &[Owned::Close(Some(code), "fin €".into())]);
    }
}

/// RFC 6455 §5.5.1, §7.4: half a code, a code that may not travel, a reason that is not text.
#[test]
fn a_wrong_close_is_refused() {
    assert_refused(&close_frame(b"\x03"), FrameError::Protocol("a close frame of one byte"));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        assert_refused(
            &close_frame(&code.to_be_bytes()),
            FrameError::Protocol("a close code that may not be sent"),
        );
    }
    assert_refused(&close_frame(b"\x03\xe8\xff"), FrameError::BadUtf8);
    assert_eq!(FrameError::Protocol("").close_code(), 1002);
}

/// RFC 6455 §1.4: what follows a Close, or an error, is discarded.
#[test]
fn nothing_is_read_after_the_end() {
    let mut bytes = frame(0x01, b"half of", KEY);
    bytes.extend(close_frame(b"\x03\xe8"));
    bytes.extend(frame(0x81, b"<iq/>", KEY));
    let mut reader = FrameReader::new(LIMITS);
    let (events, error) = read_with(&mut reader, &bytes, &[1]);
    assert_eq!((events, error), (vec![Owned::Close(Some(1000), Vec::new())], None));
    assert!(!reader.is_mid_message());
    assert_eq!(reader.held_bytes(), 0);

    let mut reader = FrameReader::new(LIMITS);
    assert!(read_with(&mut reader, &frame(0x82, b"", KEY), &[]).1.is_some());
    assert_eq!(read_with(&mut reader, &frame(0x81, b"<iq/>", KEY), &[]), (Vec::new(), None));
}

/// SEC-18: the caller can tell that the rest of something is owed.
#[test]
fn an_unfinished_message_is_visible() {
    let mut reader = FrameReader::new(LIMITS);
    assert!(!reader.is_mid_message());
    let bytes = frame(0x01, b"abc", KEY);
    let mut said = |piece: &[u8]| {
        let events = read_with(&mut reader, piece, &[]).0;
        (events.len(), reader.is_mid_message())
    };
    assert_eq!(said(&bytes[..1]), (0, true), "inside a header");
    assert_eq!(said(&bytes[1..7]), (0, true), "inside a payload");
    assert_eq!(said(&bytes[7..]), (0, true), "between fragments");
    assert_eq!(said(&frame(0x89, b"", KEY)), (1, true), "a ping does not finish it");
    assert_eq!(said(&frame(0x80, b"d", KEY)), (1, false));
}

/// WS-44: memory follows what arrived, never what was announced, and ends at the
/// limit.
#[test]
fn memory_is_bounded_by_what_arrived_and_by_the_limit() {
    let limits = FrameLimits { message_bytes: 100_000, fragments: 200_000 };
    let mut reader = FrameReader::new(limits);
    let bytes = frame(0x81, &[b'x'; 100_000], KEY);
    read_with(&mut reader, &bytes[..1014], &[]);
    assert!(reader.held_bytes() <= 2000, "{}", reader.held_bytes());
    read_with(&mut reader, &bytes[1014..bytes.len() - 1], &[100]);
    assert!(reader.held_bytes() <= 100_000, "{}", reader.held_bytes());

    let mut reader = FrameReader::new(limits);
    read_with(&mut reader, &frame(0x01, b"x", KEY), &[]);
    let one = frame(0x00, b"x", KEY);
    for _ in 1..100_000 {
        assert_eq!(read_with(&mut reader, &one, &[]).1, None);
    }
    assert!(reader.held_bytes() <= 100_000, "{}", reader.held_bytes());
    assert_eq!(read_with(&mut reader, &one, &[]).1, Some(FrameError::TooBig));
    assert_eq!(reader.held_bytes(), 0);
}

/// A message's memory goes when the caller says so, that of an unfinished one stays.
#[test]
fn delivered_memory_can_be_released() {
    let mut bytes = frame(0x81, &[b'x'; 500], KEY);
    let (first, last) = bytes.split_at_mut(300);
    let mut reader = FrameReader::new(LIMITS);
    assert_eq!(reader.next(&mut &mut *first), Ok(None));
    reader.release();
    assert!(reader.held_bytes() >= 292);
    assert_eq!(reader.next(&mut &mut *last), Ok(Some(FrameEvent::Text(&[b'x'; 500]))));
    assert!(reader.held_bytes() >= 500);
    reader.release();
    assert_eq!(reader.held_bytes(), 0);
}

/// The reader is part of what every idle session costs.
#[test]
fn the_reader_is_small() {
    assert!(size_of::<FrameReader>() < 96, "{}", size_of::<FrameReader>());
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = b"before".to_vec();
    write(&mut out);
    out.split_off(6)
}

fn text_written(length: usize) -> Vec<u8> {
    written(|out| {
        let mark = begin_text(out);
        out.extend((0..length).map(|i| i as u8));
        end_text(out, mark);
    })
}

/// RFC 6455 §5.2: the header that fits, unmasked, with the payload right behind it.
#[test]
fn text_is_written_with_the_shortest_header() {
    for (length, head) in [
        (1, &[0x81, 1][..]),
        (125, &[0x81, 125]),
        (126, &[0x81, 126, 0, 126]),
        (65535, &[0x81, 126, 0xff, 0xff]),
        (65536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        (70000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
    ] {
        let bytes = text_written(length);
        assert_eq!(&bytes[..head.len()], head);
        assert_eq!(bytes.len(), head.len() + length);
        assert!(bytes[head.len()..].iter().enumerate().all(|(i, byte)| *byte == i as u8));
    }
}

/// WS-14: no message is empty.
#[test]
fn nothing_written_is_nothing_sent() {
    assert_eq!(text_written(0), b"");
}

/// WS-41: a pong carries the ping's bytes.
#[test]
fn control_frames_are_written() {
    assert_eq!(written(|out| ping(out, b"")), [0x89, 0]);
    assert_eq!(written(|out| pong(out, b"\xff\x00")), [0x8a, 2, 0xff, 0]);
    assert_eq!(written(|out| close(out, 1000, "")), [0x88, 2, 3, 0xe8]);
    assert_eq!(written(|out| close(out, 1005, "none")), [0x88, 0]);
}

/// RFC 6455 §5.5: a long reason is cut to what a control frame holds, between characters.
#[test]
fn a_long_close_reason_is_cut_between_characters() {
    let bytes = written(|out| close(out, 1011, &"€".repeat(50)));
    assert_eq!(bytes[1], 2 + 123);
    let bytes = written(|out| close(out, 1011, &format!("a{}", "€".repeat(50))));
    assert_eq!(bytes[1], 2 + 121);
    assert!(std::str::from_utf8(&bytes[4..]).is_ok());
}

/// One thing a well-behaved client sends.
#[derive(Debug, Clone)]
enum Sent {
    /// A message, where it is cut, and the control frames that go into the cuts.
    Text(String, Vec<(prop::sample::Index, Vec<Control>)>),
    Control(Control),
}

#[derive(Debug, Clone)]
struct Control {
    ping: bool,
    payload: Vec<u8>,
}

fn control_frame() -> impl Strategy<Value = Control> {
    (any::<bool>(), prop::collection::vec(any::<u8>(), 0..126))
        .prop_map(|(ping, payload)| Control { ping, payload })
}

fn sent() -> impl Strategy<Value = Sent> {
    let text = prop_oneof!["[ -~]{0,40}", "\\PC{0,300}", "[é€😀]{0,60}"];
    let cuts = prop::collection::vec(
        (any::<prop::sample::Index>(), prop::collection::vec(control_frame(), 0..2)),
        0..6,
    );
    prop_oneof![
        (text, cuts).prop_map(|(text, cuts)| Sent::Text(text, cuts)),
        control_frame().prop_map(Sent::Control),
    ]
}

impl Control {
    fn send(&self, key: [u8; 4], bytes: &mut Vec<u8>, events: &mut Vec<Owned>) {
        let (first, event) = if self.ping {
            (0x89, Owned::Ping(self.payload.clone()))
        } else {
            (0x8a, Owned::Pong(self.payload.clone()))
        };
        bytes.extend(frame(first, &self.payload, key));
        events.push(event);
    }
}

impl Sent {
    fn send(&self, key: [u8; 4], bytes: &mut Vec<u8>, events: &mut Vec<Owned>) {
        let (text, cuts) = match self {
            Self::Control(control) => return control.send(key, bytes, events),
            Self::Text(text, cuts) => (text.as_bytes(), cuts),
        };
        let mut cuts: Vec<_> =
            cuts.iter().map(|(at, between)| (at.index(text.len() + 1), between)).collect();
        cuts.sort_by_key(|(at, _)| *at);
        let mut start = 0;
        let mut opcode = 1;
        for (at, between) in cuts {
            bytes.extend(frame(opcode, &text[start..at], key));
            for control in between {
                control.send(key, bytes, events);
            }
            start = at;
            opcode = 0;
        }
        bytes.extend(frame(0x80 | opcode, &text[start..], key));
        events.push(Owned::Text(text.to_vec()));
    }
}

fn key() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![Just([0; 4]), any::<[u8; 4]>()]
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..16_usize, 1..400_usize], 0..40)
}

const WIDE: FrameLimits = FrameLimits { message_bytes: 5000, fragments: 20 };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// WS-09: any chunking, any fragmentation, any control frames in between, any mask: the same
    /// messages.
    #[test]
    fn what_is_sent_is_what_is_read(things in prop::collection::vec((sent(), key()), 0..8), pieces in pieces()) {
        let (mut bytes, mut events) = (Vec::new(), Vec::new());
        for (thing, key) in &things {
            thing.send(*key, &mut bytes, &mut events);
        }
        let mut reader = FrameReader::new(WIDE);
        let said = read_with(&mut reader, &bytes, &pieces);
        prop_assert_eq!(said, (events, None));
        prop_assert!(!reader.is_mid_message());
        prop_assert_eq!(reader.held_bytes(), 0);
    }

    /// WS-09, WS-44: damaged input is judged alike in any chunking, and never costs more than the
    /// limit.
    #[test]
    fn damaged_input_is_judged_alike_in_any_chunking(
        things in prop::collection::vec((sent(), key()), 1..5),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        pieces in pieces(),
    ) {
        let (mut bytes, mut events) = (Vec::new(), Vec::new());
        for (thing, key) in &things {
            thing.send(*key, &mut bytes, &mut events);
        }
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut reader = FrameReader::new(WIDE);
        let said = read_with(&mut reader, &bytes, &pieces);
        prop_assert!(reader.held_bytes() <= WIDE.message_bytes + CONTROL_MAX);
        prop_assert_eq!(said, read_with(&mut FrameReader::new(WIDE), &bytes, &[]));
    }

    /// What the server writes is read back by a client that masks nothing.
    #[test]
    fn written_text_is_framed_whole(text in "\\PC{1,300}") {
        let bytes = written(|out| {
            let mark = begin_text(out);
            out.extend_from_slice(text.as_bytes());
            end_text(out, mark);
        });
        let head = if text.len() > 125 { 4 } else { 2 };
        prop_assert_eq!(&bytes[head..], text.as_bytes());
    }
}

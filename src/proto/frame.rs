//! WebSocket frames (RFC 6455 §5), the server's side: reading masked client frames and writing
//! unmasked ones.
//!
//! The reader is given whatever bytes arrived and hands back whole messages and control frames. A
//! message that lies in the given bytes in one frame is unmasked and judged where it is; anything
//! else is kept, and only its payload, and never more of it than the limit: what is too long is
//! refused from the header that announces it. Between messages the reader owns no heap, since most
//! sessions are idle most of the time.
//!
//! Not here: the upgrade ([`super::handshake`]), XML, time limits (the caller watches
//! [`FrameReader::is_mid_message`]).

use std::mem;
use std::ops::Range;

/// What one client message may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// The largest message in bytes of payload, all its fragments together.
    pub message_bytes: usize,
    /// The largest number of frames a message may be cut into, empty ones included.
    pub fragments: u32,
}

/// One thing the client has said, complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// A whole text message, reassembled; valid UTF-8, possibly empty.
    Text(&'a [u8]),
    /// A ping with its payload (at most 125 bytes), to be answered by [`pong`] with the same bytes.
    Ping(&'a [u8]),
    /// A pong with its payload (at most 125 bytes), asked for or not.
    Pong(&'a [u8]),
    /// The client closes. What it sends afterwards is discarded unread (RFC 6455 §1.4).
    Close {
        /// The status code, one that may appear on the wire; `None` if the frame was empty.
        code: Option<u16>,
        /// The reason, valid UTF-8, at most 123 bytes.
        reason: &'a [u8],
    },
}

/// Why the client's frames cannot be read on. The connection fails (RFC 6455 §7.1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A binary message: XMPP travels in text messages only (RFC 7395 §3.2).
    #[error("a binary message")]
    Binary,
    /// The framing itself is wrong; the text says how.
    #[error("a framing error: {0}")]
    Protocol(&'static str),
    /// A text message or a close reason is not UTF-8 (RFC 6455 §8.1).
    #[error("text that is not UTF-8")]
    BadUtf8,
    /// A message is announced, or grows, beyond [`FrameLimits::message_bytes`].
    #[error("a message over the size limit")]
    TooBig,
    /// A message comes in more than [`FrameLimits::fragments`] frames.
    #[error("a message in too many fragments")]
    TooManyFragments,
}

impl FrameError {
    /// The status code of the Close frame that tells the client (RFC 6455 §7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::Binary => 1003,
            Self::Protocol(_) => 1002,
            Self::BadUtf8 => 1007,
            Self::TooBig | Self::TooManyFragments => 1009,
        }
    }
}

/// Reads a client's frames from bytes in any chunking.
///
/// After an error or a Close there is nothing more to read: all further input is discarded.
#[derive(Debug)]
pub struct FrameReader {
    limits: FrameLimits,
    /// Unmasked payload: first that of the message under way, then that of a control frame under
    /// way.
    held: Vec<u8>,
    /// How many bytes at the start of `held` are known to be UTF-8.
    checked: usize,
    /// Payload bytes of the current frame still to come.
    missing: usize,
    /// Frames of the current message so far.
    fragments: u32,
    /// A frame header that is not complete yet.
    head: [u8; HEAD_MAX],
    head_len: u8,
    /// The mask, turned so that its first byte is for the next payload byte.
    mask: [u8; 4],
    /// How many bytes at the end of `held` belong to a control frame (at most 125).
    control_len: u8,
    state: State,
    /// The current frame's kind and whether it ends its message; meaningful inside a frame.
    opcode: Opcode,
    fin: bool,
    /// A text message has begun and its last frame has not ended.
    in_message: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or inside a frame header.
    Header,
    /// Inside a payload of which some is kept in `held`.
    Payload,
    /// An event that borrows from `held` was handed out; the next call gives the bytes back.
    Delivered,
    /// An error or a Close was handed out.
    Over,
}

impl FrameReader {
    /// A reader at the start of a connection. It owns no heap until a message arrives in pieces.
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            held: Vec::new(),
            checked: 0,
            missing: 0,
            fragments: 0,
            head: [0; HEAD_MAX],
            head_len: 0,
            mask: [0; 4],
            control_len: 0,
            state: State::Header,
            opcode: Opcode::Text,
            fin: false,
            in_message: false,
        }
    }

    /// The next event in `input`, which is advanced past what was read; `None` when all of it was
    /// read and more is needed. Payload is unmasked in place, so `input` is scratch space
    /// afterwards.
    ///
    /// Call it until it returns `None`: that last call is also what gives a delivered message's
    /// memory back.
    ///
    /// # Errors
    /// [`FrameError`], with its Close code; nothing of a refused message was or will be handed out.
    pub fn next<'e, 'i: 'e>(
        &'e mut self,
        input: &mut &'i mut [u8],
    ) -> Result<Option<FrameEvent<'e>>, FrameError> {
        self.release();
        let found = match self.read(input) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.end();
                return Err(error);
            }
        };
        Ok(Some(match found {
            Found::InInput(opcode, payload) => event(opcode, payload),
            Found::InHeld(opcode, range) => event(opcode, &self.held[range]),
        }))
    }

    /// Heap bytes owned now: 0 between messages.
    pub fn held_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// Whether the client owes the rest of something it began: a frame, or a message whose last
    /// fragment has not come.
    ///
    /// SEC-18: a message must be complete within its time from the first fragment on. The caller's
    /// clock starts when this becomes true and starts anew with each [`FrameEvent::Text`]; control
    /// frames in between do not stop it.
    pub fn is_mid_message(&self) -> bool {
        match self.state {
            State::Payload => true,
            State::Header | State::Delivered => self.in_message || self.head_len > 0,
            State::Over => false,
        }
    }

    /// Reads on to the next complete message or control frame, all of it judged.
    fn read<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Found<'i>>, FrameError> {
        loop {
            match self.state {
                State::Header => {
                    let Some(header) = self.header(input)? else {
                        return Ok(None);
                    };
                    let length = self.admit(&header)?;
                    let alone = header.opcode.is_control() || header.fin && !self.in_message;
                    if alone && length <= input.len() {
                        let payload = take(input, length);
                        unmask(payload, header.mask);
                        self.judge_alone(header.opcode, payload)?;
                        return Ok(Some(Found::InInput(header.opcode, payload)));
                    }
                    if !header.opcode.is_control() {
                        self.in_message = true;
                        self.fragments += 1;
                    }
                    self.opcode = header.opcode;
                    self.fin = header.fin;
                    self.mask = header.mask;
                    self.missing = length;
                    self.state = State::Payload;
                }
                State::Payload => {
                    self.keep(input);
                    if self.missing > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    if let Some(found) = self.frame_ended()? {
                        return Ok(Some(found));
                    }
                }
                State::Delivered | State::Over => {
                    *input = &mut [];
                    return Ok(None);
                }
            }
        }
    }

    /// Judges the payload of a control frame, or of a message of one frame.
    fn judge_alone(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), FrameError> {
        match opcode {
            Opcode::Text | Opcode::Continuation => {
                simdutf8::basic::from_utf8(payload).map_err(|_| FrameError::BadUtf8)?;
            }
            Opcode::Close => {
                judge_close(payload)?;
                self.state = State::Over;
            }
            Opcode::Ping | Opcode::Pong => {}
        }
        Ok(())
    }

    /// Takes a frame header off `input`, or puts what there is of one aside.
    fn header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, FrameError> {
        if self.head_len == 0
            && let Some(header) = Header::parse(input)?
        {
            take(input, header.size);
            return Ok(Some(header));
        }
        // Byte by byte, so that a header is judged as early, and in the same order, in any
        // chunking.
        while !input.is_empty() {
            self.head[usize::from(self.head_len)] = take(input, 1)[0];
            self.head_len += 1;
            if let Some(header) = Header::parse(&self.head[..usize::from(self.head_len)])? {
                self.head_len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Judges a frame by its header, before any of its payload is kept, and returns the payload's
    /// length.
    fn admit(&self, header: &Header) -> Result<usize, FrameError> {
        match header.opcode {
            Opcode::Text if self.in_message => {
                return Err(FrameError::Protocol("a new message inside a fragmented one"));
            }
            Opcode::Continuation if !self.in_message => {
                return Err(FrameError::Protocol("a continuation of no message"));
            }
            // Their length was judged with the header; they count for no message.
            Opcode::Close | Opcode::Ping | Opcode::Pong => return Ok(header.length as usize),
            Opcode::Text | Opcode::Continuation => {}
        }
        if self.fragments >= self.limits.fragments {
            return Err(FrameError::TooManyFragments);
        }
        let room = self.limits.message_bytes.saturating_sub(self.held.len());
        match usize::try_from(header.length) {
            Ok(length) if length <= room => Ok(length),
            _ => Err(FrameError::TooBig),
        }
    }

    /// Moves what there is of the current frame's payload from `input` to `held`.
    fn keep(&mut self, input: &mut &mut [u8]) {
        let here = self.missing.min(input.len());
        if here == 0 {
            return;
        }
        let old = self.held.len();
        // Doubling, so that many small fragments are not copied over and over, but never beyond
        // what may come: the limit bounds the capacity, too, and a header alone reserves nothing.
        let whole = self.fin && self.fragments <= 1 || self.opcode.is_control();
        let bound = if whole { old + self.missing } else { self.limits.message_bytes };
        if old + here > self.held.capacity() {
            let wanted = bound.min(2 * self.held.capacity()).max(old + here);
            self.held.reserve_exact(wanted - old);
        }
        self.held.extend_from_slice(take(input, here));
        unmask(&mut self.held[old..], self.mask);
        self.mask.rotate_left(here % 4);
        self.missing -= here;
        if self.opcode.is_control() {
            // At most 125: judged with the header.
            self.control_len += here as u8;
        }
    }

    /// The current frame is complete; perhaps so is a message.
    fn frame_ended(&mut self) -> Result<Option<Found<'static>>, FrameError> {
        let end = self.held.len();
        if self.opcode.is_control() {
            let start = end - usize::from(self.control_len);
            self.state = State::Delivered;
            let payload = mem::take(&mut self.held);
            let judged = self.judge_alone(self.opcode, &payload[start..]);
            self.held = payload;
            return judged.map(|()| Some(Found::InHeld(self.opcode, start..end)));
        }
        self.check_utf8()?;
        if !self.fin {
            return Ok(None);
        }
        self.in_message = false;
        self.fragments = 0;
        self.state = State::Delivered;
        Ok(Some(Found::InHeld(Opcode::Text, 0..end)))
    }

    /// Judges what `held` has gained. A fragment may end inside a character, the message may not.
    fn check_utf8(&mut self) -> Result<(), FrameError> {
        let new = &self.held[self.checked..];
        if simdutf8::basic::from_utf8(new).is_ok() {
            self.checked = self.held.len();
            return Ok(());
        }
        match simdutf8::compat::from_utf8(new) {
            Err(error) if error.error_len().is_none() && !self.fin => {
                self.checked += error.valid_up_to();
                Ok(())
            }
            _ => Err(FrameError::BadUtf8),
        }
    }

    /// Gives back the memory that the last event borrowed, as the next [`FrameReader::next`] does:
    /// for a caller that may not come to that before the client is idle. What belongs to an
    /// unfinished message stays.
    pub fn release(&mut self) {
        match self.state {
            State::Header | State::Payload => {}
            State::Delivered if self.in_message => {
                self.held.truncate(self.held.len() - usize::from(self.control_len));
                self.control_len = 0;
                self.state = State::Header;
            }
            State::Delivered => {
                self.held = Vec::new();
                self.checked = 0;
                self.control_len = 0;
                self.state = State::Header;
            }
            State::Over => self.end(),
        }
    }

    fn end(&mut self) {
        *self = Self { state: State::Over, ..Self::new(self.limits) };
    }
}

/// A complete message or control frame, and where its payload lies.
enum Found<'i> {
    InInput(Opcode, &'i mut [u8]),
    InHeld(Opcode, Range<usize>),
}

/// A payload that was judged, as what it is.
fn event(opcode: Opcode, payload: &[u8]) -> FrameEvent<'_> {
    match opcode {
        Opcode::Text | Opcode::Continuation => FrameEvent::Text(payload),
        Opcode::Ping => FrameEvent::Ping(payload),
        Opcode::Pong => FrameEvent::Pong(payload),
        Opcode::Close => match payload {
            [high, low, reason @ ..] => {
                FrameEvent::Close { code: Some(u16::from_be_bytes([*high, *low])), reason }
            }
            _ => FrameEvent::Close { code: None, reason: &[] },
        },
    }
}

/// RFC 6455 §5.5.1: empty, or a code and a reason in UTF-8.
fn judge_close(payload: &[u8]) -> Result<(), FrameError> {
    let [high, low, reason @ ..] = payload else {
        return if payload.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Protocol("a close frame of one byte"))
        };
    };
    // RFC 6455 §7.4: 1004 is reserved, 1005, 1006 and 1015 never travel; 1012 to 1014 came by
    // registration.
    match u16::from_be_bytes([*high, *low]) {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(FrameError::Protocol("a close code that may not be sent")),
    }
    match simdutf8::basic::from_utf8(reason) {
        Ok(_) => Ok(()),
        Err(_) => Err(FrameError::BadUtf8),
    }
}

/// The kinds of frame a client may send; a binary one is refused before it gets this far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A client frame's header (RFC 6455 §5.2), right in itself.
struct Header {
    fin: bool,
    opcode: Opcode,
    length: u64,
    mask: [u8; 4],
    /// Bytes of the header itself.
    size: usize,
}

impl Header {
    /// The header that `bytes` begin with, `None` if they end inside it. It is judged as soon as
    /// its first two bytes are there, so that nonsense is not waited for.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(FrameError::Protocol("a reserved bit is set"));
        }
        let fin = first & 0x80 != 0;
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => return Err(FrameError::Binary),
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(FrameError::Protocol("a reserved opcode")),
        };
        if second & 0x80 == 0 {
            return Err(FrameError::Protocol("a client frame without a mask"));
        }
        let length = second & 0x7f;
        if opcode.is_control() && !fin {
            return Err(FrameError::Protocol("a fragmented control frame"));
        }
        if opcode.is_control() && length > CONTROL_MAX as u8 {
            return Err(FrameError::Protocol("a control frame over 125 bytes"));
        }
        let (length, least, rest) = match (length, rest) {
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 126, rest),
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 0x1_0000, rest)
            }
            (126 | 127, _) => return Ok(None),
            (short, rest) => (u64::from(short), 0, rest),
        };
        if length < least {
            return Err(FrameError::Protocol("a length not in its shortest form"));
        }
        if length >> 63 != 0 {
            return Err(FrameError::Protocol("a length with the top bit set"));
        }
        let [a, b, c, d, rest @ ..] = rest else {
            return Ok(None);
        };
        let mask = [*a, *b, *c, *d];
        Ok(Some(Self { fin, opcode, length, mask, size: bytes.len() - rest.len() }))
    }
}

/// Splits the first `count` bytes off `input`, which must have them.
fn take<'i>(input: &mut &'i mut [u8], count: usize) -> &'i mut [u8] {
    let (taken, rest) = mem::take(input).split_at_mut(count);
    *input = rest;
    taken
}

/// RFC 6455 §5.3, eight bytes at a time. `mask` begins with the byte for `payload`'s first.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask == [0; 4] {
        return;
    }
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Where a text frame begins that [`begin_text`] left open.
#[derive(Debug)]
#[must_use = "a frame that is not ended has no header"]
pub struct Mark(usize);

/// Begins a text frame at the end of `out`: what is appended until [`end_text`] is its payload.
pub fn begin_text(out: &mut Vec<u8>) -> Mark {
    let mark = Mark(out.len());
    out.extend_from_slice(&[0; TEXT_HEAD]);
    mark
}

/// Ends the text frame begun at `mark`, which must be the last one begun. The payload must be
/// whole, valid UTF-8. Nothing written means nothing sent (WS-14: no message is empty).
pub fn end_text(out: &mut Vec<u8>, mark: Mark) {
    let start = mark.0;
    let payload = start + TEXT_HEAD;
    let length = out.len() - payload;
    // The payload lies behind room for the middle-sized header; it moves if it got the small or the
    // big one.
    match length {
        0 => out.truncate(start),
        1..=CONTROL_MAX => {
            out.copy_within(payload.., start + 2);
            out.truncate(start + 2 + length);
            out[start..start + 2].copy_from_slice(&[FIN | TEXT, length as u8]);
        }
        126..=0xffff => {
            let [a, b] = (length as u16).to_be_bytes();
            out[start..payload].copy_from_slice(&[FIN | TEXT, 126, a, b]);
        }
        _ => {
            out.extend_from_slice(&[0; 6]);
            out.copy_within(payload..payload + length, start + 10);
            out[start..start + 2].copy_from_slice(&[FIN | TEXT, 127]);
            out[start + 2..start + 10].copy_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a ping. `payload` is at most 125 bytes; what is over is left out.
pub fn ping(out: &mut Vec<u8>, payload: &[u8]) {
    control(out, PING, payload);
}

/// Appends a pong, which answers a ping with its own bytes (WS-41). `payload` is at most 125 bytes;
/// what is over is left out.
pub fn pong(out: &mut Vec<u8>, payload: &[u8]) {
    control(out, PONG, payload);
}

/// Appends a Close with `code` and a `reason`, which is cut to the 123 bytes there is room for. The
/// code 1005 means "no code" and never travels: it gives an empty Close.
pub fn close(out: &mut Vec<u8>, code: u16, reason: &str) {
    if code == 1005 {
        return control(out, CLOSE, &[]);
    }
    let mut end = reason.len().min(CONTROL_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &reason[..end];
    out.extend_from_slice(&[FIN | CLOSE, 2 + reason.len() as u8]);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

fn control(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= CONTROL_MAX, "a control frame over 125 bytes");
    let payload = &payload[..payload.len().min(CONTROL_MAX)];
    out.extend_from_slice(&[FIN | opcode, payload.len() as u8]);
    out.extend_from_slice(payload);
}

/// The frame into which `at` falls, of whole frames as they are written here; where one ends and the
/// next begins, there is nothing in between.
pub fn around(frames: &[u8], at: usize) -> Range<usize> {
    let mut start = 0;
    while start < at {
        let end = start.saturating_add(length(&frames[start..])).min(frames.len());
        if end > at {
            return start..end;
        }
        start = end;
    }
    at..at
}

/// Bytes of the frame, without a mask, that `bytes` begin with.
fn length(bytes: &[u8]) -> usize {
    match bytes {
        [_, 126, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            let payload = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            usize::try_from(payload).unwrap_or(usize::MAX).saturating_add(10)
        }
        [_, short, ..] => 2 + usize::from(*short),
        _ => 2,
    }
}

const FIN: u8 = 0x80;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The longest client header: two bytes, a 64-bit length, a mask.
const HEAD_MAX: usize = 14;
/// The longest payload of a control frame (RFC 6455 §5.5), and the longest that a two-byte header
/// can tell.
const CONTROL_MAX: usize = 125;
/// Room for the header of a text frame of 126 to 65535 bytes, the common stanza.
const TEXT_HEAD: usize = 4;

#[cfg(test)]
mod tests;

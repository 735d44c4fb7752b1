//! The bytes of one XML stream, in any chunking, as stream items.

use super::message::{self, header_of};
use super::scan::{Context, Goal, Scratch, Work, scan_bounded};
use super::{Limits, Policy, Scope, Violation, trim_start};
use crate::proto::item::{Element, Item, StreamHeader};

/// Bytes of one XML stream in any chunking → items.
///
/// Between elements it owns no heap beyond the scope. An element that lies whole in what
/// [`ItemReader::next`] is given is proven and lent where it lies; only one that comes in pieces
/// is copied. After an error the stream cannot be read on.
#[derive(Debug)]
pub struct ItemReader {
    limits: Limits,
    policy: Policy,
    stage: Stage,
    scope: Scope,
    partial: Option<Box<Partial>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing yet: an XML declaration or a header.
    Start,
    /// The declaration was read.
    Declared,
    /// Children of the stream.
    Open,
    /// The header was an empty-element tag: its end is still to be told.
    Closing,
    /// Nothing more is looked at.
    Ended,
}

/// A unit (declaration, header, element, end tag) that came in part.
#[derive(Debug)]
struct Partial {
    work: Work,
    bytes: Vec<u8>,
}

/// What has become complete.
enum Unit {
    Declaration,
    // In a box, so that elements do not travel in its size.
    Header(Box<StreamHeader>),
    Element,
    End,
}

/// A complete unit, and its bytes if they lie in the input.
type Lent<'i> = (Unit, Option<&'i [u8]>);

impl ItemReader {
    /// Expects a stream header first.
    pub fn new(limits: Limits, policy: Policy) -> Self {
        Self { limits, policy, stage: Stage::Start, scope: Scope::client(), partial: None }
    }

    /// Expects the children of a stream that is already open and whose header made `scope`.
    pub fn with_scope(limits: Limits, policy: Policy, scope: Scope) -> Self {
        Self { limits, policy, stage: Stage::Open, scope, partial: None }
    }

    /// The next item, if `input` completes one; `input` is moved behind what was used. `None`
    /// means that all of it was used and more is needed (or that the stream has ended). White
    /// space between elements is swallowed (UP-28, WS-18).
    ///
    /// # Errors
    /// The first violation under [`Policy::Strict`]; under [`Policy::Tolerant`] only what leaves
    /// no provable end of the element (UP-36).
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        scratch: &'a mut Scratch,
        input: &mut &'i [u8],
    ) -> Result<Option<Item<'a>>, Violation> {
        if scratch.buffer.capacity() > 0 {
            scratch.buffer = Vec::new();
        }
        loop {
            match self.stage {
                Stage::Closing => {
                    self.stage = Stage::Ended;
                    return Ok(Some(Item::End));
                }
                Stage::Ended => {
                    *input = &[];
                    return Ok(None);
                }
                Stage::Start | Stage::Declared | Stage::Open => {}
            }
            let Some((unit, lent)) = self.unit(scratch, input)? else { return Ok(None) };
            match unit {
                Unit::Declaration => {
                    self.stage = Stage::Declared;
                    // Nobody looks at its bytes.
                    scratch.buffer = Vec::new();
                }
                Unit::Header(header) => {
                    self.stage = if header.closed { Stage::Closing } else { Stage::Open };
                    self.scope = header.scope.clone();
                    scratch.buffer = Vec::new();
                    return Ok(Some(Item::Header(*header)));
                }
                Unit::End => {
                    self.stage = Stage::Ended;
                    return Ok(Some(Item::End));
                }
                Unit::Element => {
                    let Scratch { work, buffer } = scratch;
                    let bytes: &'a [u8] = lent.unwrap_or(&buffer[..]);
                    let element = Element::new(
                        bytes,
                        &self.scope,
                        &work.found,
                        &work.undeclared,
                        self.policy,
                    );
                    return Ok(Some(Item::Element(element)));
                }
            }
        }
    }

    /// A new header is expected: the stream is restarted (RFC 6120 section 4.3.3). What was held
    /// of an incomplete element is dropped.
    pub fn reset(&mut self) {
        self.stage = Stage::Start;
        self.scope = Scope::client();
        self.partial = None;
    }

    /// The names in scope for elements.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Heap bytes held for this stream now.
    pub fn held_bytes(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, |partial| {
            size_of::<Partial>() + partial.bytes.capacity() + partial.work.held_bytes()
        });
        partial + self.scope.held_bytes()
    }

    /// Whether nothing of an element is held.
    pub fn is_between_elements(&self) -> bool {
        self.partial.is_none()
    }

    /// Completes a unit: what it is, and its bytes if they lie in `input` (else they are in
    /// `scratch.buffer`).
    fn unit<'i>(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &'i [u8],
    ) -> Result<Option<Lent<'i>>, Violation> {
        let Some(mut partial) = self.partial.take() else {
            let bytes = trim_start(input);
            *input = bytes;
            match bytes.first() {
                None => return Ok(None),
                Some(b'<') => {}
                Some(_) => return Err(Violation::NotWellFormed("text between elements")),
            }
            scratch.work.reset();
            if let Some((end, unit)) = self.attempt(&mut scratch.work, bytes)? {
                *input = &bytes[end..];
                return Ok(Some((unit, Some(&bytes[..end]))));
            }
            let mut work = std::mem::take(&mut scratch.work);
            work.shrink();
            self.partial = Some(Box::new(Partial { work, bytes: bytes.to_vec() }));
            *input = &[];
            return Ok(None);
        };
        // What comes is taken over in small portions, so that the element's end does not drag a
        // whole read buffer into the copy.
        const PORTION: usize = 4096;
        while !input.is_empty() {
            let held = partial.bytes.len();
            let portion = input.len().min(PORTION.max(held / 4));
            partial.bytes.extend_from_slice(&input[..portion]);
            if let Some((end, unit)) = self.attempt(&mut partial.work, &partial.bytes)? {
                *input = &input[end - held..];
                partial.bytes.truncate(end);
                scratch.work = partial.work;
                scratch.buffer = partial.bytes;
                return Ok(Some((unit, None)));
            }
            *input = &input[portion..];
        }
        self.partial = Some(partial);
        Ok(None)
    }

    /// Tries to complete the unit at the start of `bytes`, whose state so far is in `work`.
    fn attempt(&self, work: &mut Work, bytes: &[u8]) -> Result<Option<(usize, Unit)>, Violation> {
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let empty = Scope::empty();
        let mut context = Context {
            limits: &self.limits,
            policy: self.policy,
            scope: &self.scope,
            goal: Goal::Element,
        };
        if self.stage == Stage::Open {
            if second == b'/' {
                let end = message::stream_end(bytes, &self.scope)?;
                return Ok(end.map(|end| (end, Unit::End)));
            }
            let end = scan_bounded(work, bytes, &context)?;
            return Ok(end.map(|end| (end, Unit::Element)));
        }
        if second == b'?' && self.stage == Stage::Start {
            let end = message::declaration(bytes)?;
            return Ok(end.map(|end| (end, Unit::Declaration)));
        }
        context.scope = &empty;
        context.goal = Goal::Header;
        // A header is judged strictly whoever sends it: no stanza can break it.
        context.policy = Policy::Strict;
        match scan_bounded(work, bytes, &context)? {
            Some(end) => Ok(Some((end, Unit::Header(Box::new(header_of(work, &bytes[..end])?))))),
            None => Ok(None),
        }
    }
}

//! What waits for the client: whole payloads in one buffer, with the length and the kind of each.
//!
//! One buffer, so that a payload costs no allocation; it is given back when nothing is left.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::item::Kind;

/// One payload in the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) len: u32,
    pub(super) kind: Kind,
    /// When the server said it; what is ours was not said by it.
    pub(super) read: Option<Instant>,
    /// It is the first stanza since a resource was bound.
    pub(super) first: bool,
}

/// Payloads in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    /// Bytes at the front that have been taken.
    gone: usize,
    parts: VecDeque<Waiting>,
}

/// The payloads of one response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) parts: usize,
    pub(super) bytes: usize,
    /// One of them has the prefix `stream`.
    pub(super) stream: bool,
    /// One of them is features.
    pub(super) features: bool,
}

/// What one response may carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub(super) parts: usize,
    pub(super) bytes: usize,
    /// The first payload may be larger than `bytes` (BOSH-41: a single larger element).
    pub(super) at_least_one: bool,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len() - self.gone
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.parts.capacity() * size_of::<Waiting>()
    }

    /// What the server has said of it.
    pub(super) fn elements(&self) -> u32 {
        let elements = self.parts.iter().filter(|part| part.read.is_some()).count();
        u32::try_from(elements).unwrap_or(u32::MAX)
    }

    /// Appends what `write` writes, as one payload that was `read` then; nothing if it writes nothing.
    pub(super) fn push<T>(
        &mut self,
        kind: Kind,
        read: Option<Instant>,
        write: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> (T, usize) {
        let before = self.bytes.len();
        let said = write(&mut self.bytes);
        let len = self.bytes.len() - before;
        // A payload is bounded by `xml::Limits::element_bytes`, which counts as 4 GiB at most.
        if let Ok(len @ 1..) = u32::try_from(len) {
            self.parts.push_back(Waiting { len, kind, read, first: false });
        } else {
            self.bytes.truncate(before);
        }
        (said, len)
    }

    /// The payload that was appended last is the first stanza since a resource was bound.
    pub(super) fn is_first(&mut self) {
        self.parts.back_mut().into_iter().for_each(|part| part.first = true);
    }

    /// How much of it goes into a response (BOSH-41). Features begin one, save that no stanza may
    /// have come before them (XB-06).
    pub(super) fn plan(&self, allowance: Allowance) -> Load {
        let mut load = Load::default();
        let mut has_stanza = false;
        for part in self.parts.iter().take(allowance.parts) {
            let len = part.len as usize;
            let is_first = load.parts == 0;
            if load.bytes + len > allowance.bytes && !(is_first && allowance.at_least_one) {
                break;
            }
            if part.kind == Kind::Features && has_stanza {
                break;
            }
            has_stanza |= part.kind.is_stanza();
            load.features |= part.kind == Kind::Features;
            load.stream |= matches!(part.kind, Kind::Features | Kind::StreamError);
            load.parts += 1;
            load.bytes += len;
        }
        load
    }

    /// All of it, however much.
    pub(super) fn everything(&self) -> Load {
        let is = |kind| self.parts.iter().any(|part| part.kind == kind);
        let features = is(Kind::Features);
        Load {
            parts: self.parts.len(),
            bytes: self.bytes(),
            stream: features || is(Kind::StreamError),
            features,
        }
    }

    /// Moves a planned load into `out`, and what it is made of into `taken`.
    pub(super) fn take(&mut self, load: Load, out: &mut Vec<u8>, taken: &mut VecDeque<Waiting>) {
        out.extend_from_slice(&self.bytes[self.gone..self.gone + load.bytes]);
        taken.clear();
        // A burst leaves no memory behind.
        taken.shrink_to(load.parts.max(16));
        taken.extend(self.parts.drain(..load.parts));
        if self.parts.is_empty() {
            self.parts.shrink_to(16);
            self.bytes = Vec::new();
            self.gone = 0;
            return;
        }
        self.gone += load.bytes;
        if self.gone > self.bytes.len() / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }

    /// Puts payloads that were taken back to the front.
    pub(super) fn put_back(&mut self, bytes: &[u8], parts: &VecDeque<Waiting>) {
        debug_assert_eq!(parts.iter().map(|part| part.len as usize).sum::<usize>(), bytes.len());
        let gone = std::mem::take(&mut self.gone);
        self.bytes.splice(..gone, bytes.iter().copied());
        for part in parts.iter().rev() {
            self.parts.push_front(*part);
        }
    }

    /// The payloads that wait, with their kinds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Kind, &[u8])> {
        let mut at = self.gone;
        self.parts.iter().map(move |part| {
            let from = at;
            at += part.len as usize;
            (part.kind, &self.bytes[from..at])
        })
    }

    /// Forgets everything and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(payloads: &[(&str, Kind)]) -> Queue {
        let mut queue = Queue::default();
        for (text, kind) in payloads {
            queue.push(*kind, None, |bytes| bytes.extend_from_slice(text.as_bytes()));
        }
        queue
    }

    fn take(queue: &mut Queue, parts: usize, bytes: usize) -> String {
        let mut out = Vec::new();
        let load = queue.plan(Allowance { parts, bytes, at_least_one: true });
        queue.take(load, &mut out, &mut VecDeque::new());
        String::from_utf8(out).unwrap()
    }

    const SIX: [(&str, Kind); 6] = [
        ("<a/>", Kind::Message),
        ("<bb/>", Kind::Message),
        ("<ccc/>", Kind::Message),
        ("<d/>", Kind::Message),
        ("<e/>", Kind::Message),
        ("<f/>", Kind::Message),
    ];

    /// BOSH-41: whole payloads, at most so many, at most so many bytes, but never none.
    #[test]
    fn a_load_is_bounded_and_whole() {
        let mut queue = queue(&SIX);
        assert_eq!(take(&mut queue, 2, 100), "<a/><bb/>");
        assert_eq!(take(&mut queue, 9, 12), "<ccc/><d/>");
        assert_eq!(take(&mut queue, 9, 1), "<e/>");
        assert_eq!(queue.iter().collect::<Vec<_>>(), [(Kind::Message, &b"<f/>"[..])]);
        assert_eq!(take(&mut queue, 9, 9), "<f/>");
        assert!(queue.is_empty() && queue.bytes() == 0);
    }

    /// XB-06: no stanza stands before features in a body; nonzas may.
    #[test]
    fn features_begin_a_body() {
        let mut stanza = queue(&[("<m/>", Kind::Message), ("<f/>", Kind::Features)]);
        assert_eq!(take(&mut stanza, 9, 99), "<m/>");
        assert_eq!(take(&mut stanza, 9, 99), "<f/>");
        let mut nonza = queue(&[("<s/>", Kind::Sasl2), ("<f/>", Kind::Features)]);
        assert_eq!(take(&mut nonza, 9, 99), "<s/><f/>");
    }

    /// What could not be handed over is the first again, before what came since.
    #[test]
    fn what_is_put_back_comes_first() {
        let mut queue = queue(&SIX);
        let (mut out, mut taken) = (Vec::new(), VecDeque::new());
        let load = queue.plan(Allowance { parts: 2, bytes: 99, at_least_one: true });
        queue.take(load, &mut out, &mut taken);
        queue.put_back(&out, &taken);
        assert_eq!((queue.len(), queue.bytes()), (6, 27));
        assert_eq!(take(&mut queue, 9, 99), "<a/><bb/><ccc/><d/><e/><f/>");
    }
}

//! The rids of a session: which come next, which wait for their turn, which are open, which were
//! answered and with what (XEP-0124 §14.2, §14.3).
//!
//! There is a slot for every rid from the lowest that is kept to the highest that came, whether or
//! not a living connection belongs to it: a client may repeat a rid whose connection died, even
//! after a later one came.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::RequestId;
use super::body::{Body, Keys};

/// The highest rid there is (BOSH-14).
pub(super) const RID_MAX: u64 = (1 << 53) - 1;
/// Repeats of one rid after which a session ends (BOSH-46).
const REPEATS: u8 = 10;

/// All slots, in rid order.
#[derive(Debug)]
pub(super) struct Window {
    /// The rid of the first slot.
    base: u64,
    slots: VecDeque<Slot>,
    /// The highest rid without gaps.
    last: u64,
    /// How many slots at the front are answered.
    done: usize,
    /// Bytes of kept responses.
    kept_bytes: usize,
    requests: u32,
}

/// What is known of one rid.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    /// What a repeat has to show (BOSH-83).
    pub(super) keys: Option<Box<Keys>>,
    repeats: u8,
}

#[derive(Debug)]
pub(super) enum State {
    /// It has not come, one behind it has.
    Missing,
    /// It came before its turn (BOSH-33).
    Parked(Box<Parked>),
    /// It was taken and waits for its answer.
    Open(Open),
    /// Its connection died before there was an answer (BOSH-48).
    Dead,
    /// It was answered.
    Answered(Answered),
}

#[derive(Debug)]
pub(super) struct Parked {
    /// Its HTTP request, unless that is gone; the body counts all the same.
    pub(super) id: Option<RequestId>,
    pub(super) body: Body,
    /// When the rid came first (BOSH-36).
    pub(super) first: Instant,
    /// When `id` came.
    pub(super) arrived: Instant,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) id: RequestId,
    /// When it has to be answered.
    pub(super) due: Instant,
    pub(super) role: Role,
}

/// What a request is, as far as its answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It created the session.
    Creation,
    Ordinary,
    /// It asks for a pause: no payload in its answer (BOSH-58).
    Pause,
    /// Its answer says which response is missed, and since how many milliseconds (BOSH-55).
    Report(u64, u64),
}

#[derive(Debug)]
pub(super) struct Answered {
    /// Of the request that got it, as long as it could come back.
    pub(super) body: Bytes,
    pub(super) sent: Instant,
    pub(super) compressible: bool,
    pub(super) has_payload: bool,
    /// It does not count among the kept ones (BOSH-43).
    pub(super) is_pause: bool,
}

/// Where a rid falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The next in order.
    Next,
    /// One that has to wait.
    Early,
    /// One that came before.
    Repeat,
    /// Too high or too old: nobody is told which (BOSH-34, BOSH-47).
    Outside,
}

impl Slot {
    fn missing() -> Self {
        Self { state: State::Missing, keys: None, repeats: 0 }
    }

    /// The HTTP request that waits for an answer to it.
    pub(super) fn id(&self) -> Option<RequestId> {
        match &self.state {
            State::Open(open) => Some(open.id),
            State::Parked(parked) => parked.id,
            State::Missing | State::Dead | State::Answered(_) => None,
        }
    }

    /// Counts a repeat; false if it is one too many (BOSH-46).
    pub(super) fn repeat(&mut self) -> bool {
        self.repeats = self.repeats.saturating_add(1);
        self.repeats <= REPEATS
    }
}

impl Window {
    /// A window whose first rid is the open creation request.
    pub(super) fn new(rid: u64, requests: u32, open: Open, keys: Option<Box<Keys>>) -> Self {
        let first = Slot { state: State::Open(open), keys, repeats: 0 };
        Self { base: rid, slots: [first].into(), last: rid, done: 0, kept_bytes: 0, requests }
    }

    /// The highest rid without gaps (BOSH-53).
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The highest rid that was answered together with all below it (BOSH-55, BOSH-56).
    pub(super) fn answered(&self) -> u64 {
        // `base` is at least 1, so this is 0 at the least.
        self.base + self.done as u64 - 1
    }

    /// How many responses are kept.
    pub(super) fn kept(&self) -> usize {
        self.done
    }

    /// Bytes of the kept responses.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    pub(super) fn held_bytes(&self) -> usize {
        let parked = self.slots.iter().map(|slot| match &slot.state {
            State::Parked(parked) => size_of::<Parked>() + parked.body.held_bytes(),
            _ => 0,
        });
        let parked: usize = parked.sum();
        parked + self.kept_bytes + self.slots.capacity() * size_of::<Slot>()
    }

    /// Where `rid` falls; `extra` for a request that pauses or terminates (BOSH-33).
    pub(super) fn place(&self, rid: u64, extra: bool) -> Place {
        let room = u64::from(self.requests) + u64::from(extra);
        let highest = self.last.saturating_add(room).min(RID_MAX);
        if rid < self.base || rid > highest {
            return Place::Outside;
        }
        match self.slot(rid).map(|slot| &slot.state) {
            None | Some(State::Missing) if rid == self.last + 1 => Place::Next,
            None | Some(State::Missing) => Place::Early,
            Some(_) => Place::Repeat,
        }
    }

    fn index(&self, rid: u64) -> Option<usize> {
        let index = usize::try_from(rid.checked_sub(self.base)?).ok()?;
        (index < self.slots.len()).then_some(index)
    }

    pub(super) fn slot(&self, rid: u64) -> Option<&Slot> {
        self.slots.get(self.index(rid)?)
    }

    pub(super) fn slot_mut(&mut self, rid: u64) -> Option<&mut Slot> {
        let index = self.index(rid)?;
        self.slots.get_mut(index)
    }

    /// The slot of a rid inside the window, made if need be.
    fn make(&mut self, rid: u64) -> &mut Slot {
        let index = usize::try_from(rid - self.base).unwrap_or(usize::MAX);
        while self.slots.len() <= index {
            self.slots.push_back(Slot::missing());
        }
        &mut self.slots[index]
    }

    /// Keeps a request for its turn.
    pub(super) fn park(&mut self, rid: u64, parked: Box<Parked>) {
        debug_assert_eq!(self.place(rid, true), Place::Early);
        self.make(rid).state = State::Parked(parked);
    }

    /// The next rid has come: `last` moves over it and over what was parked behind it.
    pub(super) fn advance(&mut self) {
        let rid = self.last + 1;
        self.make(rid);
        self.last = rid;
        while matches!(self.slot(self.last + 1).map(|slot| &slot.state), Some(State::Parked(_))) {
            self.last += 1;
        }
    }

    /// Takes the parked request `rid`, if it is one.
    pub(super) fn unpark(&mut self, rid: u64) -> Option<Box<Parked>> {
        let slot = self.slot_mut(rid)?;
        match std::mem::replace(&mut slot.state, State::Missing) {
            State::Parked(parked) => Some(parked),
            other => {
                slot.state = other;
                None
            }
        }
    }

    /// The request was taken; it is open, or dead already.
    pub(super) fn open(&mut self, rid: u64, open: Option<Open>, keys: Option<Box<Keys>>) {
        let slot = self.make(rid);
        slot.state = open.map_or(State::Dead, State::Open);
        slot.keys = keys;
    }

    /// The open requests, from the lowest rid.
    pub(super) fn opened(&self) -> impl Iterator<Item = (u64, &Open)> {
        let from = self.base + self.done as u64;
        (from..).zip(self.slots.range(self.done..)).filter_map(|(rid, slot)| match &slot.state {
            State::Open(open) => Some((rid, open)),
            _ => None,
        })
    }

    /// The parked requests, from the lowest rid.
    pub(super) fn parked(&self) -> impl Iterator<Item = &Parked> {
        self.slots.range(self.done..).filter_map(|slot| match &slot.state {
            State::Parked(parked) => Some(&**parked),
            _ => None,
        })
    }

    /// Whether an HTTP request waits for an answer (BOSH-57).
    pub(super) fn is_live(&self) -> bool {
        self.slots.range(self.done..).any(|slot| slot.id().is_some())
    }

    /// The HTTP requests that wait, from the lowest rid; none waits afterwards.
    pub(super) fn drain_live(&mut self) -> Vec<(u64, RequestId)> {
        let mut live = Vec::new();
        for (rid, slot) in (self.base..).zip(&mut self.slots) {
            if let Some(id) = slot.id() {
                live.push((rid, id));
                slot.state = State::Dead;
            }
        }
        live
    }

    /// The request `id` is gone; false if it does not wait here.
    pub(super) fn lose(&mut self, id: RequestId) -> bool {
        let Some(slot) = self.slots.range_mut(self.done..).find(|slot| slot.id() == Some(id))
        else {
            return false;
        };
        match &mut slot.state {
            State::Parked(parked) => parked.id = None,
            state => *state = State::Dead,
        }
        true
    }

    /// Answers `rid`.
    pub(super) fn answer(&mut self, rid: u64, answered: Answered) {
        let Some(slot) = self.slot_mut(rid) else {
            debug_assert!(false, "an answer to a rid without a slot");
            return;
        };
        debug_assert!(matches!(slot.state, State::Open(_) | State::Dead));
        self.kept_bytes += answered.body.len();
        if let Some(slot) = self.slot_mut(rid) {
            slot.state = State::Answered(answered);
        }
        self.count_done();
    }

    /// The answer to `rid` did not leave: the rid is dead (BOSH-48).
    pub(super) fn take_back(&mut self, rid: u64) -> Option<Answered> {
        let index = self.index(rid)?;
        let slot = self.slots.get_mut(index)?;
        match std::mem::replace(&mut slot.state, State::Dead) {
            State::Answered(answered) => {
                self.kept_bytes -= answered.body.len();
                self.done = self.done.min(index);
                Some(answered)
            }
            other => {
                slot.state = other;
                None
            }
        }
    }

    /// The dead rids that a later one has overtaken (BOSH-48).
    pub(super) fn overtaken(&self) -> Option<u64> {
        let from = self.base + self.done as u64;
        let mut rids = (from..self.last).zip(self.slots.range(self.done..));
        rids.find(|(_, slot)| matches!(slot.state, State::Dead)).map(|(rid, _)| rid)
    }

    fn count_done(&mut self) {
        let answered = |slot: &&Slot| matches!(slot.state, State::Answered(_));
        self.done += self.slots.range(self.done..).take_while(answered).count();
    }

    /// Forgets answered rids beyond the number that is kept without acknowledgements (BOSH-43).
    /// Answers to pauses are not counted among them, but are bounded too.
    pub(super) fn prune(&mut self) {
        let keep = self.requests.max(2) as usize;
        loop {
            let pause = |slot: &&Slot| matches!(&slot.state, State::Answered(a) if a.is_pause);
            let pauses = self.slots.range(..self.done).filter(pause).count();
            // A window of pauses is one wider.
            if self.done - pauses <= keep && pauses <= keep + 1 {
                return;
            }
            self.forget();
        }
    }

    /// Forgets the answered rids up to `rid` (BOSH-52).
    pub(super) fn confirm(&mut self, rid: u64) {
        while self.done > 0 && self.base <= rid {
            self.forget();
        }
    }

    /// Forgets the lowest rid, which is answered.
    fn forget(&mut self) {
        if let Some(Slot { state: State::Answered(answered), .. }) = self.slots.pop_front() {
            self.kept_bytes -= answered.body.len();
        }
        self.done -= 1;
        self.base += 1;
    }

    /// The session is over and only remembers why: the bodies that wait are dropped, and kept
    /// responses too if they are more than `bytes` (BOSH-77).
    pub(super) fn shrink(&mut self, bytes: usize) {
        if self.kept_bytes > bytes {
            self.confirm(u64::MAX);
        }
        for slot in self.slots.range_mut(self.done..) {
            if matches!(slot.state, State::Parked(_)) {
                slot.state = State::Dead;
            }
        }
        self.slots.shrink_to_fit();
    }
}

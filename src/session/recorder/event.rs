//! What happened to a session, sixteen bytes each, and the ring that keeps the last of it.

use std::time::{Duration, Instant};

use crate::proto::bosh::Why;
use crate::proto::fault::Fault;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since the session began; no more than fit.
    pub at: u32,
    /// What it was.
    pub what: What,
}

const _: () = assert!(size_of::<Event>() == 16, "a session keeps dozens");

/// One more than a rid is behind the session's first; `None` if it cannot be one of its own.
pub type Rid = Option<std::num::NonZeroU32>;

/// What happened. Sizes and numbers, never what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A WebSocket: the upgrade was answered.
    Connected,
    /// BOSH: the request came that makes a session.
    Created,
    /// The client's opening was understood, and the server is looked for.
    Opening,
    /// The server's stream stands.
    ServerConnected {
        /// How long that took.
        ms: u32,
        /// It goes over TLS.
        secure: bool,
    },
    /// The server's stream cannot be had.
    ServerFailed {
        /// How long it was tried.
        ms: u32,
        /// Why.
        why: ConnectFailure,
    },
    /// The server has accepted the client's credentials.
    Authenticated,
    /// The server has refused so many logins.
    LoginFailed(u32),
    /// A resource is bound.
    Bound,
    /// Stream management (XEP-0198) is on.
    Managed,
    /// An older stream was resumed (XEP-0198).
    Resumed,
    /// A BOSH request came.
    Request {
        /// Its rid.
        rid: Rid,
        /// Bytes of its payload.
        bytes: u32,
        /// Elements of its payload.
        elements: u16,
        /// What it was taken for.
        order: Order,
    },
    /// The session may be without a request for so many seconds.
    Pause(u32),
    /// A BOSH request came that cannot be understood.
    Unreadable {
        /// Its rid, if it could be read.
        rid: Rid,
        /// What is wrong.
        fault: Fault,
    },
    /// A BOSH request was answered.
    Answer {
        /// Its rid.
        rid: Rid,
        /// Bytes of the body.
        bytes: u32,
        /// Why then.
        why: Why,
    },
    /// The connection of a BOSH request ended before its answer was handed over.
    Unanswered {
        /// Its rid.
        rid: Rid,
    },
    /// A peer has taken the bytes that waited for it after so long.
    Stalled {
        /// Who.
        side: Side,
        /// How long some waited.
        ms: u32,
    },
    /// The session ends: what comes now is how both sides are told.
    Ending {
        /// Why.
        fault: Fault,
        /// How long nothing had been heard of the client.
        silent: u32,
    },
}

/// What a BOSH request was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The next one.
    Next,
    /// The next one, which asks for a pause.
    Pause,
    /// The next one, which restarts the stream.
    Restart,
    /// The next one, which ends the session.
    Terminate,
    /// It came before its turn, or so late that it may be forgiven.
    OutOfOrder,
    /// A rid that came before.
    Repeat,
    /// It breaks a rule, and so ends the session.
    Refused,
}

impl Order {
    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Pause => "pause",
            Self::Restart => "restart",
            Self::Terminate => "terminate",
            Self::OutOfOrder => "out_of_order",
            Self::Repeat => "repeat",
            Self::Refused => "refused",
        }
    }
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The web client.
    Client,
    /// The XMPP server.
    Server,
}

impl Side {
    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Why no stream could be had: a label of `upstream::ConnectFault` in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectFailure(u8);

/// Those labels.
const CONNECT_FAILURES: [&str; 19] = [
    "host_not_served",
    "dns",
    "address_forbidden",
    "refused",
    "unreachable",
    "connect_timeout",
    "silent",
    "negotiation_timeout",
    "closed",
    "tls_certificate",
    "tls_handshake",
    "tls_unusable",
    "tls_required",
    "tls_refused",
    "injected",
    "protocol",
    "stream_error",
    "see_other_host_loop",
    "see_other_host_bad",
];

impl ConnectFailure {
    pub(crate) fn of(label: &str) -> Self {
        let place = CONNECT_FAILURES.iter().position(|known| *known == label);
        Self(place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX))
    }

    /// The label.
    #[must_use]
    pub fn label(self) -> &'static str {
        CONNECT_FAILURES.get(usize::from(self.0)).copied().unwrap_or("unknown")
    }
}

/// Room for events that is made first.
const FIRST: usize = 6;

/// The last events of a session, as many as it may keep.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    events: Vec<Event>,
    limit: u16,
    /// Where the oldest is once there are as many as may be.
    oldest: u16,
    overwritten: u32,
}

impl Ring {
    /// Keeps the last `limit` events.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit: u16::try_from(limit).unwrap_or(u16::MAX), ..Self::default() }
    }

    /// Adds one in the place of the oldest, if there is no other place.
    pub(crate) fn push(&mut self, event: Event) {
        let limit = usize::from(self.limit);
        if self.events.len() < limit {
            if self.events.len() == self.events.capacity() {
                // Most sessions that are idle have fewer than this.
                let more = self.events.len().max(FIRST).min(limit - self.events.len());
                self.events.reserve_exact(more);
            }
            self.events.push(event);
        } else if let Some(oldest) = self.events.get_mut(usize::from(self.oldest)) {
            *oldest = event;
            self.oldest = (self.oldest + 1) % self.limit;
            self.overwritten = self.overwritten.saturating_add(1);
        }
    }

    /// The events, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        let (newer, older) = self.events.split_at(usize::from(self.oldest));
        older.iter().chain(newer)
    }

    /// How many there were before these.
    #[must_use]
    pub fn overwritten(&self) -> u32 {
        self.overwritten
    }

    /// Gives back the memory in which nothing is.
    pub(crate) fn shrink(&mut self) {
        self.events.shrink_to_fit();
    }
}

/// The milliseconds from one to the other, as many as fit.
pub(crate) fn millis(from: Instant, to: Instant) -> u32 {
    in_millis(to.saturating_duration_since(from))
}

/// The same of a duration.
pub(crate) fn in_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring keeps the last ones in order, says how many there were, and is no larger than it may.
    #[test]
    fn a_ring_is_bounded() {
        for limit in [1, 3, 8, 9, 32] {
            let mut ring = Ring::new(limit);
            for at in 0..100 {
                ring.push(Event { at, what: What::Bound });
                let kept: Vec<_> = ring.iter().map(|event| event.at).collect();
                let from = (at + 1).saturating_sub(u32::try_from(limit).unwrap());
                assert_eq!(kept, (from..=at).collect::<Vec<_>>());
                assert_eq!(ring.overwritten(), from);
                assert!(ring.events.capacity() <= limit);
            }
        }
        let mut none = Ring::new(0);
        none.push(Event { at: 1, what: What::Bound });
        assert_eq!((none.iter().count(), none.events.capacity()), (0, 0));
    }

    /// What a ring costs is what was put into it.
    #[test]
    fn a_ring_grows_as_it_has_to() {
        let mut ring = Ring::new(32);
        assert_eq!(ring.events.capacity(), 0);
        for (count, capacity) in [(1, 6), (6, 6), (7, 12), (13, 24), (25, 32), (100, 32)] {
            while ring.iter().count() + (ring.overwritten() as usize) < count {
                ring.push(Event { at: 0, what: What::Created });
            }
            assert_eq!(ring.events.capacity(), capacity, "{count}");
        }
    }

    #[test]
    fn labels_of_failures_come_back() {
        for label in CONNECT_FAILURES {
            assert_eq!(ConnectFailure::of(label).label(), label);
        }
        assert_eq!(ConnectFailure::of("new").label(), "unknown");
    }
}

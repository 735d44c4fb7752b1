//! The embedded XMPP server behind `bosphorus demo`, and the page it serves ([`page`]).
//!
//! It is a peer, not a mode: it listens on loopback TCP like any server, and the gateway has no
//! path that knows it. It runs on a thread of its own ([`Server`]); all its state is one
//! [`router::Router`] on that thread, so that nothing is shared and nothing locked. Nothing is
//! written to disk: what it knows ends with the process.
//!
//! # Who lives there
//!
//! The domain is [`DOMAIN`]. Any user name may log in, with the password equal to the name, or
//! ANONYMOUS. `echo@localhost` answers each message with its body; `room@rooms.localhost` is the
//! one room. With [`Settings::roster_of_everyone`] whoever logs in for the first time and everyone
//! who did before (but not the anonymous) become each other's contacts, and the echo everyone's;
//! without it a fresh roster is empty, as RFC 6121 has it and as the tests of the gateway want it.
//!
//! # What is whose
//!
//! XML, stream headers and restarts come from tokio-xmpp's `xmlstream`, stanzas from
//! xmpp-parsers, SCRAM and PLAIN from sasl. What these crates lack is made up for here:
//!
//! - `xmlstream` has no bound on an element's size or depth: `wire` adds both. Left as they are:
//!   a malformed stream *header* gets no answer, its own has no `xml:lang`, and an attribute of
//!   more than 8 KiB is not well-formed to it.
//! - Stanzas are routed as DOM elements and parsed into types only by who interprets them, since
//!   the types of messages and presence drop what they do not know.
//! - sasl's ANONYMOUS makes names that are no JIDs and refuses trace data: `auth` has its own.
//!
//! Here: a stand-in for trying things out. Not here: persistence, TLS, s2s, anything for strangers.

mod auth;
mod connection;
mod iq;
mod message;
mod muc;
pub mod page;
mod presence;
mod roster;
mod router;
mod server;
mod session;
mod stanza;
mod wire;

pub use server::Server;

/// The one domain it serves.
pub const DOMAIN: &str = "localhost";
/// The domain of the rooms.
const ROOMS: &str = "rooms.localhost";
/// The one room.
const ROOM: &str = "room@rooms.localhost";
/// The contact that answers each message with its body.
const ECHO: &str = "echo@localhost";

/// How the server behaves where the page and RFC 6121 want different things.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Whoever logs in for the first time becomes the contact of everyone seen before; otherwise
    /// rosters begin empty.
    pub roster_of_everyone: bool,
}

/// What anyone can make the server hold.
mod limits {
    use std::time::Duration;

    /// Connections at a time, those in negotiation among them.
    pub(super) const CONNECTIONS: usize = 1024;
    /// Accounts, each made by the first login or the first stanza to it.
    pub(super) const ACCOUNTS: usize = 1000;
    /// Sessions of one account, those waiting to be resumed among them.
    pub(super) const RESOURCES: usize = 32;
    /// Bytes of one element.
    pub(super) const ELEMENT_BYTES: usize = 512 * 1024;
    /// The same before the login.
    pub(super) const LOGIN_BYTES: usize = 16 * 1024;
    /// Nesting within one element.
    pub(super) const DEPTH: usize = 128;
    /// Stanzas that wait for one session's socket or acknowledgement.
    pub(super) const QUEUE_STANZAS: usize = 5_000;
    /// The same in bytes, roughly.
    pub(super) const QUEUE_BYTES: usize = 4 * 1024 * 1024;
    /// Messages kept for an account that has no session.
    pub(super) const OFFLINE_STANZAS: usize = 100;
    /// The same in bytes, roughly.
    pub(super) const OFFLINE_BYTES: usize = 1024 * 1024;
    /// The same for all accounts together.
    pub(super) const OFFLINE_BYTES_ALL: usize = 32 * 1024 * 1024;
    /// Contacts in one roster, and subscription requests waiting for an answer.
    pub(super) const ROSTER_ITEMS: usize = 500;
    /// Contacts that a roster of everyone gets by itself.
    pub(super) const EVERYONE: usize = 200;
    /// Groups of one contact.
    pub(super) const ROSTER_GROUPS: usize = 16;
    /// Bytes of a contact's name, and of each group's.
    pub(super) const ROSTER_NAME: usize = 1024;
    /// Addresses that one session has sent presence to directly.
    pub(super) const DIRECTED: usize = 64;
    /// Occupants of the room.
    pub(super) const OCCUPANTS: usize = 200;
    /// Messages of the room that who joins is shown.
    pub(super) const HISTORY: usize = 20;
    /// Failed logins on one connection.
    pub(super) const LOGIN_FAILURES: u32 = 5;
    /// From the connection to the end of the login and the choice of a resource.
    pub(super) const LOGIN_TIME: Duration = Duration::from_secs(30);
    /// How long a client may take no bytes at all.
    pub(super) const WRITE_TIME: Duration = Duration::from_secs(60);
    /// How long a lost stream can be resumed (XEP-0198 §5), in seconds.
    pub(super) const RESUME_SECONDS: u32 = 300;
}

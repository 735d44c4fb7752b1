//! The core: no IO, no clock, no randomness, no waiting.
//!
//! Everything here is bytes and time in, bytes and decisions out, so that any failure can be
//! replayed from its input. Words are those of the standards: *stream*, *stanza* (message,
//! presence, iq), *nonza* (any other top-level element), *server* for the XMPP server and
//! *upstream* for our side of the link to it.

pub mod agent;
pub mod bosh;
pub mod c2s;
pub mod domain;
pub mod fault;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod host_meta;
pub mod item;
pub mod limit;
pub mod ns;
pub mod origins;
pub mod page;
pub mod seam;
pub mod stream;
pub mod ws;
pub mod xml;

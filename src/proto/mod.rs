//! The protocol core: XML, framing and the machines, as plain data and plain functions.
//!
//! Nothing in here does IO, reads a clock, draws randomness or awaits. Bytes come in as slices,
//! time comes in as an argument, so every failure replays.
//!
//! Words as the standards use them: a *stream* is the XML stream of RFC 6120 section 4; an
//! *element* is a first-level child of it; a *stanza* is a `message`, `presence` or `iq` only;
//! a *nonza* is any other element; the *server* is the XMPP server, the *client* the peer behind
//! the WebSocket or BOSH session.

pub mod c2s;
pub mod domain;
pub mod item;
pub mod ns;
pub mod seam;
pub mod xml;

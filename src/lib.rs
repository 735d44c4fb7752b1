//! Bosphorus: an XMPP connection manager for WebSocket and BOSH clients.

pub mod proto;
pub mod upstream;

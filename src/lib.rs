//! Bosphorus: an XMPP connection manager for WebSocket and BOSH clients.

pub mod cli;
pub mod config;
pub mod proto;

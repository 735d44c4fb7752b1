//! The core: no IO, no clock, no randomness.

pub mod frame;
pub mod handshake;

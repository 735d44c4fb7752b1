//! The core: no IO, no clock, no randomness, no waiting.

pub mod domain;

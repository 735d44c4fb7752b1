//! The shell: one task per session, and what the sessions of a worker share.
//!
//! [`run`] drives the machine of `proto::ws` over two sockets; [`mod@bosh`] drives that of
//! `proto::bosh` over one and over the requests that [`registry`] brings it. The server's side is
//! the same for both. [`worker`] holds the scratch memory that keeps an idle session small, and
//! wakes every session of its thread when the process drains; [`budget`] bounds what all sessions
//! hold together; [`addresses`] counts what each client address has, and [`recorder`] what happened
//! to each session last. Which connections and requests are
//! accepted at all is `http`; how the server is reached is `upstream`.

pub mod addresses;
pub mod bosh;
pub mod budget;
pub(crate) mod delivery;
pub mod fallbacks;
pub(crate) mod link;
pub mod meter;
pub mod newcomer;
mod pending;
pub mod recorder;
pub mod registry;
pub mod returns;
pub mod run;
pub(crate) mod timed;
pub(crate) mod timer;
mod untaken;
pub mod worker;

//! The shell: one task per session, and what the sessions of a worker share.
//!
//! [`run`] drives the machine of `proto::ws` over two sockets. [`worker`] holds the scratch memory
//! that keeps an idle session small, and wakes every session of its thread when the process drains.
//! Which connections are accepted at all is `http::ws`; how the server is reached is `upstream`.

mod link;
mod pending;
pub mod registry;
pub mod run;
pub(crate) mod timer;
pub mod worker;

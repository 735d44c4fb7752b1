//! Bosphorus: an XMPP connection manager.
//!
//! Web clients speak XMPP to it over WebSocket (RFC 7395, and the older draft-moffitt framing) or
//! over BOSH (XEP-0124, XEP-0206); it carries each session over one ordinary c2s TCP stream to an
//! existing XMPP server, and counts what passes with the transport as a label. The program is
//! `bosphorus`; this library exists so that tests and benchmarks reach its parts.
//!
//! # The way of a byte
//!
//! ```text
//!    browser (Strophe, Converse, …)                     ejabberd · Prosody · Openfire
//!         │ WebSocket      │ POST <body/>                         ▲ one c2s TCP stream per session:
//!         ▼                ▼                                      ▼ plain · STARTTLS · direct TLS
//!  ┌───────────────────────────────────────────────────────────────────────────────┐
//!  │ http::ws         http::bosh reads a body,         upstream  finds, connects,  │ EDGES
//!  │ takes the socket waits for its answer                       verifies, opens   │
//!  │ out of actix     │ session::registry                                          │
//!  ├─────────┬────────┴───────────────────────────────────────────────▲────────────┤
//!  │         ▼    session::{run, bosh}: one task per session          ▼            │ SHELL
//!  ├───────────────────────────────────────────────────────────────────────────────┤
//!  │ proto::frame → proto::xml → proto::ws::session   ⇄ proto::seam                │ CORE
//!  │ proto::bosh::body → proto::bosh::session         ⇄ proto::seam                │
//!  └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A *session* is one client and its one c2s stream. Over WebSocket, to the server: [`proto::frame`]
//! makes messages of bytes, [`proto::xml`] proves that a message is exactly one well-formed element,
//! [`proto::ws::session`] decides what it means, [`proto::seam`] writes it. To the client the same
//! backwards. Bytes are borrowed all the way: from the buffer they were read into to the buffer
//! they are written from, both of which belong to the worker thread, not to the session.
//!
//! Over BOSH a request is a document of its own: [`proto::bosh::body`] proves it payload by payload
//! and writes those for the server; the registry finds the session by the `sid`, whichever thread
//! the request came to; [`proto::bosh::session`] orders requests by `rid`, holds them, and answers
//! them with what the server has said.
//!
//! Before either, a connection comes in through [`http::door`] (PROXY header, limits per address)
//! and [`http::tls`]; [`http::connection`] serves it over HTTP/1.1, [`http::h2`] over HTTP/2, and
//! [`http::caller`] says who the client is. Towards the server, [`upstream`] chooses among the
//! servers of a domain by priority, weight and what it remembers of their failures. What begins now
//! is made with one value that a reload replaces whole ([`http::Live`]).
//!
//! Read in this order: [`session::run`] (the loop), [`proto::ws::session`] (the machine),
//! [`proto::xml`] (the judge), [`upstream`] (the way to the server); [`mod@session::bosh`] and
//! [`proto::bosh`] for the other transport; `tests/parity.rs` (what holds against every server).
//!
//! # Four promises
//!
//! 1. **The core is pure.** Nothing under [`proto`] does IO, reads a clock, draws randomness or
//!    awaits. Time is an argument. `tests/house.rs` checks it.
//! 2. **One task owns a session.** There is no shared session to lock. The WebSocket machine takes
//!    bytes and gives bytes, so its task is a single future that polls two sockets: no channel, no
//!    second task, no copy between them. A BOSH session is reached through its bounded mailbox, and
//!    answers through a channel for one value.
//! 3. **Everything is bounded.** While bytes for one side wait for its socket, the other side is
//!    not read. What a session may hold is one read chunk, one element, and what a chunk turns
//!    into; over BOSH also the requests of its window and the responses that may be asked for again.
//!    Each has a number in the configuration ([`config::Limits`]), and so has what all sessions hold
//!    together ([`session::budget`]).
//! 4. **The seam is thin.** What is rewritten is listed in [`proto::seam`]; all else passes byte
//!    for byte, after it was proven. What cannot be proven does not pass.
//!
//! # Who may import whom
//!
//! Downward only: `main → cli → app → http → session → upstream → proto`. [`config`], [`io`] and
//! [`metrics`] are leaves that all but `proto` may import. `app` turns the configuration into plain
//! numbers for each part.
//!
//! `demo` (a feature, on by default) is a peer, not a mode: a small XMPP server on loopback TCP and
//! a page, which `app` starts for `bosphorus demo`. What carries its sessions is the same code, and
//! no other module knows that it is there.
//!
//! The pages for people, `/status` on the admin listener ([`http::admin`]) and `/lab` ([`http::lab`]), show
//! what [`metrics`] counts; no session knows of them.
//!
//! # Reload and drain
//!
//! What requests are judged by and sessions are made with is one immutable value, [`http::Live`],
//! which is read when one begins and never for a stanza. SIGHUP replaces it whole (`app::reload`);
//! nothing that has begun notices. SIGTERM is told to the sessions as a [`session::worker::Drain`],
//! from which each knows its own turn to end.
//!
//! # The comparison
//!
//! What is counted for each stanza is counted by each worker for itself and added up at a scrape
//! ([`metrics::Local`]); what that costs is measured beside a build without it ([`metrics::MEASURES`],
//! `benches/session`). The bytes of a client's connection are counted below TLS ([`io::Traffic`]),
//! and are those of the transport that it turns out to carry ([`session::meter`]); an element is
//! delivered when the last byte of it is with the kernel. What the kernel knows of the way to a client
//! ([`io::tcp_info`]) is asked of it at the end of the connection, and at most once a minute before.
//! `tests/truth.rs` and `tests/truth_kernel.rs` hold all that equal to what an observer in front counts,
//! and within a bucket of what clocks there show. Who logs in is counted once in a session
//! ([`metrics::Census`]). Processor time is an estimate: of the polls of connections and sessions one
//! of 64 is timed (`session::timed`).
//!
//! # Why a session ended
//!
//! One enum says it, [`proto::fault`], and its word is in the client's error, the log, the metrics and
//! the record of the session ([`session::recorder`]): events of sixteen bytes in a ring that belongs to
//! the session's thread, which the admin listener asks for ([`http::admin`]).
//!
//! # Memory
//!
//! The idle session is the unit of cost. A connection that stays in actix's HTTP dispatcher keeps
//! two 8-KiB buffers for life, so [`http::ws`] takes the socket out of it. Idle, a session is the
//! machine, two sockets and a timer entry; buffers exist while something is incomplete, and
//! negotiation with the server leaves nothing behind. An HTTP connection at rest, a held BOSH
//! request included, leaves the dispatcher too ([`http::connection`]), and comes back to it with
//! its next byte.

pub mod app;
pub mod cli;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod http;
pub mod io;
pub mod metrics;
pub mod proto;
pub mod session;
pub mod upstream;

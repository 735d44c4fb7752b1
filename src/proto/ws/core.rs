//! What a session remembers, and how much of either side's input there is room for.
//!
//! The rules are in three rooms: [`super::client`], [`super::server`], [`super::ending`].

use std::sync::Arc;
use std::time::Instant;

use super::super::c2s::OpenRequest;
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::frame;
use super::super::limit::Limit;
use super::super::seam::FeatureRules;
use super::super::stream::{Phase, ServerSide};
use super::super::xml::Scope;
use super::session::{ClientSide, Out};
use super::{Framing, Settings};

/// Bytes of a client that are thrown away while its close is awaited (WS-44).
const DISCARD_LIMIT: usize = 1024 * 1024;

/// Everything but the two parsers, so that an element may be borrowed from one of them while the
/// rest changes.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: Arc<Settings>,
    pub(super) framing: Option<Framing>,
    pub(super) client: ClientSide,
    pub(super) server: ServerSide,
    /// The first reason; later ones are consequences.
    pub(super) ended: Option<Fault>,
    /// The limit that was reached, where `ended` alone does not say.
    pub(super) limit: Option<Limit>,
    pub(super) domain: Option<Domain>,
    pub(super) request: Option<Box<OpenRequest>>,
    /// The legacy header's names, in scope of all later messages (WSL-06).
    pub(super) scope: Option<Box<Scope>>,
    /// `xml:lang` of the server's header, when it is stamped (UP-30).
    pub(super) lang: Option<Box<str>>,
    /// For the `id` of an `<open/>` of our own.
    pub(super) id: u64,
    pub(super) flags: Flags,
    pub(super) phase: Phase,
    pub(super) features: FeatureRules,
    pub(super) created: Instant,
    pub(super) last_frame: Instant,
    pub(super) next_ping: Instant,
    pub(super) last_upstream: Instant,
    pub(super) mid_message_since: Option<Instant>,
    pub(super) discarded: usize,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flags {
    /// An `<open/>` of ours is on its way to the client.
    pub(super) opened: bool,
    /// The client sent `<close/>`.
    pub(super) client_closed: bool,
    /// Input of the client can no longer be framed.
    pub(super) deaf: bool,
    /// No stream is opened any more: the process drains.
    pub(super) redirected: bool,
}

impl Core {
    pub(super) fn has_room_to_server(&self, out: &Out) -> bool {
        out.server.len() < self.room()
            && out.tally.to_server.total() < self.settings.pending_stanzas
    }

    pub(super) fn has_room_to_client(&self, out: &Out) -> bool {
        out.client.len() < self.room()
            && out.tally.to_client.total() < self.settings.pending_stanzas
    }

    pub(super) fn room(&self) -> usize {
        if self.phase.authenticated {
            self.settings.pending_bytes
        } else {
            self.settings.unauthenticated_bytes
        }
    }

    /// Whether the client would not take another element.
    pub(super) fn client_is_deaf(&self) -> bool {
        self.client != ClientSide::Open
    }

    pub(super) fn discard(&mut self, bytes: usize) {
        self.discarded += bytes;
        if self.discarded > DISCARD_LIMIT {
            self.client = ClientSide::Gone;
        }
    }
}

/// Puts one text message in a frame of its own.
pub(super) fn text(out: &mut Out, write: impl FnOnce(&mut Vec<u8>)) {
    let mark = frame::begin_text(&mut out.client);
    write(&mut out.client);
    frame::end_text(&mut out.client, mark);
}

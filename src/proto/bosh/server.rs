//! What the server's elements mean: what waits for the client of them, and what they tell about the
//! state of the stream.

use std::time::Instant;

use super::super::c2s;
use super::super::fault::Fault;
use super::super::item::{Element, Item, Kind, StreamHeader};
use super::super::seam::{self, FeatureRules, Rewrite};
use super::super::stream::ServerSide;
use super::super::xml::Violation;
use super::core::{ClientSide, Core};
use super::response::Words;
use super::session::Out;

impl Core {
    /// The upstream stream stands.
    pub(super) fn connected(
        &mut self,
        header: &StreamHeader,
        secure: bool,
        identified: bool,
        out: &mut Out,
        now: Instant,
    ) {
        self.server = ServerSide::Open;
        self.last_upstream = now;
        self.phase.secure = secure;
        self.features = FeatureRules { strip_external: identified, ..self.settings.features };
        self.words = Some(Box::new(Words {
            id: header.id.clone(),
            from: header.from.clone(),
            version: header.version.clone(),
        }));
        out.server.append(&mut std::mem::take(&mut self.early));
    }

    pub(super) fn server_item(&mut self, item: Item<'_>, out: &mut Out, now: Instant) {
        match item {
            Item::Header(_) => self.restarted(out, now),
            Item::Element(element) => self.server_element(&element, out, now),
            Item::End => self.server_closed(out, now),
        }
    }

    /// The header that answers our restart. The client is told nothing of it (XB-04).
    fn restarted(&mut self, out: &mut Out, now: Instant) {
        if self.phase.header_due {
            self.phase.header_due = false;
        } else {
            self.server_broken(out, now);
        }
    }

    fn server_element(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) {
        let kind = element.kind();
        match kind {
            Kind::StreamError => {
                // XB-14, UP-34: given whole to the client, then both streams are closed.
                self.queue.push(kind, None, |bytes| seam::to_client(element, bytes));
                self.server_failed(out, now);
                return;
            }
            // Nothing of these may reach a client: it would take them for ours, and TLS is settled
            // before it sees anything (WS-43).
            Kind::StreamOther
            | Kind::FramingOpen
            | Kind::FramingClose
            | Kind::FramingOther
            | Kind::Tls
            | Kind::Compress => {
                self.server_broken(out, now);
                return;
            }
            Kind::Features
            | Kind::Message
            | Kind::Presence
            | Kind::Iq
            | Kind::Sasl
            | Kind::Sasl2
            | Kind::Sm
            | Kind::Other => {
                let rules = &self.features;
                let (rewrite, bytes) = self.queue.push(kind, Some(now), |bytes| match kind {
                    Kind::Features => seam::features_to_client(element, rules, bytes),
                    _ => seam::to_client(element, bytes),
                });
                self.phase.settled |= kind == Kind::Features && self.phase.authenticated;
                match rewrite {
                    Rewrite::AsIs | Rewrite::Completed => {}
                    Rewrite::Repaired => out.tally.repaired += 1,
                    Rewrite::Emptied => out.tally.emptied += 1,
                    Rewrite::Dropped => out.tally.dropped += 1,
                }
                if rewrite == Rewrite::Dropped {
                    // Without features no client can go on; any other nonza it can do without.
                    if kind == Kind::Features {
                        self.reached(element.broken().and_then(Violation::server_limit));
                        self.server_broken(out, now);
                    }
                    return;
                }
                out.tally.to_client.count(kind, bytes);
                if self.phase.is_first_stanza(kind) {
                    self.queue.is_first();
                }
            }
        }
        self.phase.server_sent(element, kind, &mut out.tally);
        if self.phase.restart_due && self.terms.auto_restart && self.is_open() {
            let kept = self.address.take().unwrap_or_default();
            self.restart(kept.from.as_deref(), kept.lang.as_deref(), out, now);
        }
        if self.phase.bound {
            self.address = None;
        }
    }

    /// `</stream:stream>` of the server, or its end of file after ours.
    pub(super) fn server_closed(&mut self, out: &mut Out, now: Instant) {
        let until = now + self.settings.close_grace;
        match self.server {
            ServerSide::Open => {
                // RFC 6120 §4.4: the other stream is closed too.
                out.server.extend_from_slice(c2s::FOOTER);
                self.server = ServerSide::Finishing(until);
                self.fail(Fault::ServerClosed, None, out, now);
            }
            ServerSide::Closing(_) => self.server = ServerSide::Finishing(until),
            _ => {}
        }
        if matches!(self.client, ClientSide::Terminating(_)) {
            self.terminated(out, now);
        }
    }

    /// The server's stream error, which waits for the client.
    fn server_failed(&mut self, out: &mut Out, now: Instant) {
        if matches!(self.client, ClientSide::Terminating(_)) {
            self.terminated(out, now);
        } else {
            self.fail(Fault::ServerError, None, out, now);
        }
    }

    /// XML that proves nothing (UP-36), or none at all (UP-25).
    pub(super) fn server_broken(&mut self, out: &mut Out, now: Instant) {
        let fault = if self.phase.restart_due || self.phase.header_due {
            Fault::ServerSecurityLayer
        } else {
            Fault::ServerBadXml
        };
        let until = now + self.settings.close_grace;
        if matches!(self.client, ClientSide::Terminating(_)) {
            self.terminated(out, now);
        } else {
            self.fail(fault, None, out, now);
        }
        // Its stream cannot be read any further, so its end cannot be awaited in it.
        if let ServerSide::Closing(_) = self.server {
            self.server = ServerSide::Finishing(until);
        }
    }

    /// The server's connection ended, with or without a socket error.
    pub(super) fn server_gone(&mut self, out: &mut Out, now: Instant) {
        match self.server {
            ServerSide::Open => {
                self.server = ServerSide::Gone;
                self.fail(Fault::ServerLost, None, out, now);
            }
            ServerSide::Closing(_) => self.server_closed(out, now),
            _ => {}
        }
        if self.server != ServerSide::Absent {
            self.server = ServerSide::Gone;
        }
    }

    /// The server took no byte for `limits.stall_timeout`.
    pub(super) fn server_stalled(&mut self, out: &mut Out, now: Instant) {
        if matches!(self.server, ServerSide::Absent | ServerSide::Connecting) {
            return;
        }
        // Its socket buffer is full: no footer could reach it.
        self.server = ServerSide::Gone;
        if matches!(self.client, ClientSide::Terminating(_)) {
            self.terminated(out, now);
        } else {
            self.fail(Fault::ServerStalled, None, out, now);
        }
    }
}

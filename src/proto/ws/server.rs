//! What the server's elements mean: how they are written for the client, and what they tell about
//! the state of the stream.

use std::time::Instant;

use super::super::c2s;
use super::super::fault::Fault;
use super::super::frame;
use super::super::item::{Element, Kind, StreamHeader};
use super::super::seam::{self, Rewrite};
use super::super::stream::ServerSide;
use super::super::xml::Violation;
use super::Framing;
use super::core::{Core, text};
use super::session::{ClientSide, Out};

impl Core {
    pub(super) fn server_header(&mut self, header: &StreamHeader, out: &mut Out) {
        if self.settings.stamp_lang {
            self.lang.clone_from(&header.lang);
        }
        if self.client != ClientSide::Open {
            return;
        }
        let framing = self.framing.unwrap_or(Framing::Rfc7395);
        text(out, |bytes| framing.write_open(header, bytes));
        self.flags.opened = true;
    }

    /// The header that answers our restart.
    pub(super) fn restarted(&mut self, header: &StreamHeader, out: &mut Out, now: Instant) {
        if !self.phase.header_due {
            self.server_garbage(out, now);
            return;
        }
        self.phase.header_due = false;
        self.server_header(header, out);
    }

    pub(super) fn server_element(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) {
        let kind = element.kind();
        match kind {
            Kind::StreamError => {
                // WS-32, UP-34: forwarded whole, then both streams are closed.
                text(out, |bytes| {
                    seam::to_client(element, bytes);
                });
                self.end(Fault::ServerError);
                self.close_server(out, now);
                self.finish_client_close(out, now);
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
                self.server_garbage(out, now);
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
                let mark = frame::begin_text(&mut out.client);
                let start = out.client.len();
                let rewrite = self.write(element, kind, &mut out.client);
                let bytes = out.client.len() - start;
                frame::end_text(&mut out.client, mark);
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
                        self.server_garbage(out, now);
                    }
                    return;
                }
                out.tally.to_client.count(kind, bytes);
                out.tally.first |= self.phase.is_first_stanza(kind);
            }
        }
        self.phase.server_sent(element, kind, &mut out.tally);
    }

    /// Writes one element for the client, without the frame around it.
    fn write(&mut self, element: &Element<'_>, kind: Kind, out: &mut Vec<u8>) -> Rewrite {
        if kind == Kind::Features {
            self.phase.settled |= self.phase.authenticated;
            return seam::features_to_client(element, &self.features, out);
        }
        let start = out.len();
        let rewrite = seam::to_client(element, out);
        if let Some(lang) = &self.lang
            && kind.is_stanza()
            && element.lang().is_none()
        {
            stamp_lang(out, start, lang);
        }
        rewrite
    }

    /// `</stream:stream>` of the server, or its end of file after ours.
    pub(super) fn server_closed(&mut self, out: &mut Out, now: Instant) {
        let until = now + self.settings.close_grace;
        match self.server {
            ServerSide::Open => {
                self.end(Fault::ServerClosed);
                // RFC 6120 §4.4: the other stream is closed too.
                out.server.extend_from_slice(c2s::FOOTER);
                self.server = ServerSide::Finishing(until);
            }
            ServerSide::Closing(_) => self.server = ServerSide::Finishing(until),
            _ => {}
        }
        self.finish_client_close(out, now);
    }

    /// XML that proves nothing (UP-36), or none at all (UP-25).
    pub(super) fn server_garbage(&mut self, out: &mut Out, now: Instant) {
        let fault = if self.phase.restart_due || self.phase.header_due {
            Fault::ServerSecurityLayer
        } else {
            Fault::ServerBadXml
        };
        if matches!(self.server, ServerSide::Closing(_)) {
            // Ours is closed already: what follows cannot matter to the client any more.
            self.server = ServerSide::Finishing(now + self.settings.close_grace);
            self.finish_client_close(out, now);
            return;
        }
        self.fail(fault, out, now);
        // Its stream cannot be read any further, so its end cannot be awaited in it.
        if let ServerSide::Closing(until) = self.server {
            self.server = ServerSide::Finishing(until);
        }
    }
}

/// UP-30: puts the stream's language on the element that begins at `at`, behind its name.
fn stamp_lang(out: &mut Vec<u8>, at: usize, lang: &str) {
    let name = out[at..]
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'/' | b'>'));
    let Some(name) = name else { return };
    let mut attribute = b" xml:lang=\"".to_vec();
    seam::escape_attribute(lang, &mut attribute);
    attribute.push(b'"');
    out.splice(at + name..at + name, attribute);
}

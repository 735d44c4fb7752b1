//! How a session ends, towards either side, and everything that time brings about.

use std::time::{Duration, Instant};

use super::super::c2s;
use super::super::fault::Fault;
use super::super::frame;
use super::super::item::StreamHeader;
use super::super::limit::Limit;
use super::super::stream::ServerSide;
use super::super::xml::{Scope, Violation};
use super::core::{Core, text};
use super::session::{ClientSide, Out};
use super::{Framing, write_see_other};

impl Core {
    /// The client's `<close/>` (WS-34).
    pub(super) fn client_close(&mut self, out: &mut Out, now: Instant) {
        if self.flags.client_closed {
            return;
        }
        self.flags.client_closed = true;
        self.end(Fault::Closed);
        match self.server {
            ServerSide::Open => self.close_server(out, now),
            ServerSide::Closing(_) | ServerSide::Finishing(_) => {}
            ServerSide::Absent | ServerSide::Connecting | ServerSide::Gone => {
                self.server = ServerSide::Gone;
                self.finish_client_close(out, now);
            }
        }
    }

    /// A clean end towards the server: the footer, then its grace (UP-35).
    pub(super) fn close_server(&mut self, out: &mut Out, now: Instant) {
        if self.server == ServerSide::Open {
            out.server.extend_from_slice(c2s::FOOTER);
            self.server = ServerSide::Closing(now + self.settings.close_grace);
        }
    }

    /// The server ended its half: answers the client's `<close/>` or closes it (WS-34, WS-36).
    pub(super) fn finish_client_close(&mut self, out: &mut Out, now: Instant) {
        if self.client != ClientSide::Open {
            return;
        }
        let framing = self.framing.unwrap_or(Framing::Rfc7395);
        let until = now + self.settings.close_grace;
        text(out, |bytes| bytes.extend_from_slice(framing.close().as_bytes()));
        if self.flags.client_closed {
            self.client = ClientSide::AwaitingClose(until);
        } else {
            frame::close(&mut out.client, 1000, "");
            self.client = ClientSide::Closing { until, shut: false };
        }
    }

    pub(super) fn client_error(&mut self, out: &mut Out, now: Instant) {
        self.fail(Fault::ClientError, out, now);
    }

    /// Records the reason; the first one stands.
    pub(super) fn end(&mut self, fault: Fault) {
        self.ended.get_or_insert(fault);
    }

    /// Remembers the limit that is about to end the session, if it has not ended yet.
    pub(super) fn reached(&mut self, limit: Option<Limit>) {
        if self.ended.is_none() {
            self.limit = limit;
        }
    }

    /// Ends the session for what the client has sent.
    pub(super) fn violated(&mut self, violation: Violation, out: &mut Out, now: Instant) {
        self.reached(violation.limit());
        self.fail(violation.into(), out, now);
    }

    /// Ends the session towards both sides (WS-31, WS-33, WSL-09).
    pub(super) fn fail(&mut self, fault: Fault, out: &mut Out, now: Instant) {
        self.end(fault);
        if self.client == ClientSide::Open {
            self.tell(fault, out);
            frame::close(&mut out.client, fault.close_code(), "");
            // What the client still sends cannot be understood after a frame error, and closing
            // with unread input would reset the connection before the error arrives (WS-44).
            let shut = self.flags.deaf;
            self.client = ClientSide::Closing { until: now + self.settings.close_grace, shut };
        }
        match self.server {
            ServerSide::Open => self.close_server(out, now),
            ServerSide::Connecting => {
                self.server = ServerSide::Absent;
                self.request = None;
            }
            ServerSide::Absent
            | ServerSide::Closing(_)
            | ServerSide::Finishing(_)
            | ServerSide::Gone => {}
        }
    }

    /// The stream error and the stream end, behind an `<open/>` of our own if there was none.
    pub(super) fn tell(&mut self, fault: Fault, out: &mut Out) {
        let framing = self.framing.unwrap_or(Framing::Rfc7395);
        let header = (!self.flags.opened).then(|| StreamHeader {
            from: self.domain.as_ref().map(|domain| domain.as_str().into()),
            id: Some(format!("{:016x}", self.id).into_boxed_str()),
            to: None,
            version: None,
            lang: None,
            scope: Scope::client(),
            closed: false,
        });
        self.flags.opened = true;
        match framing {
            Framing::Rfc7395 => {
                if let Some(header) = header {
                    text(out, |bytes| framing.write_open(&header, bytes));
                }
                if let Some(error) = fault.stream_error() {
                    text(out, |bytes| error.write(bytes));
                }
                text(out, |bytes| bytes.extend_from_slice(framing.close().as_bytes()));
            }
            Framing::Legacy { .. } => match (header, fault.stream_error()) {
                (Some(header), error) => text(out, |bytes| {
                    Framing::Legacy { closed: false }.write_open(&header, bytes);
                    if let Some(error) = error {
                        error.write(bytes);
                    }
                    bytes.extend_from_slice(framing.close().as_bytes());
                }),
                (None, error) => {
                    if let Some(error) = error {
                        text(out, |bytes| error.write(bytes));
                    }
                    text(out, |bytes| bytes.extend_from_slice(framing.close().as_bytes()));
                }
            },
        }
    }

    /// The client is lost without a `<close/>`: no stream end to the server (WS-37, SM-04).
    pub(super) fn lose_client(&mut self, fault: Fault, now: Instant) {
        if !self.flags.client_closed {
            self.end(fault);
        }
        match self.server {
            ServerSide::Open => {
                self.server = ServerSide::Finishing(now + self.settings.close_grace);
            }
            ServerSide::Connecting => {
                self.server = ServerSide::Absent;
                self.request = None;
            }
            ServerSide::Absent
            | ServerSide::Closing(_)
            | ServerSide::Finishing(_)
            | ServerSide::Gone => {}
        }
    }

    pub(super) fn silent_at(&self) -> Instant {
        let interval = self.settings.ping_interval;
        // Half an interval beyond the last ping that counts, so that it can be answered.
        self.last_frame + interval * self.settings.missed_pongs + interval / 2
    }

    pub(super) fn keepalive_at(&self) -> Option<Instant> {
        let interval = self.settings.whitespace_keepalive;
        let due = !interval.is_zero()
            && self.server == ServerSide::Open
            && self.phase.settled
            && !self.phase.header_due;
        due.then(|| self.last_upstream + interval)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let client = match self.client {
            ClientSide::Open => {
                let mut at = self.next_ping.min(self.silent_at());
                if !self.phase.authenticated && !self.flags.client_closed {
                    at = at.min(self.created + self.settings.unauthenticated_lifetime);
                }
                if let Some(since) = self.mid_message_since {
                    at = at.min(since + self.settings.message_timeout);
                }
                Some(at)
            }
            ClientSide::AwaitingClose(until)
            | ClientSide::Closing { until, .. }
            | ClientSide::Finishing(until) => Some(until),
            ClientSide::Gone => None,
        };
        let server = match self.server {
            ServerSide::Closing(until) | ServerSide::Finishing(until) => Some(until),
            ServerSide::Open => self.keepalive_at(),
            ServerSide::Absent | ServerSide::Connecting | ServerSide::Gone => None,
        };
        match (client, server) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(super) fn tick(&mut self, out: &mut Out, now: Instant) {
        if self.client == ClientSide::Open {
            self.tick_open(out, now);
        }
        match self.client {
            ClientSide::AwaitingClose(until) if until <= now => {
                frame::close(&mut out.client, 1000, "");
                let until = now + self.settings.close_grace;
                self.client = ClientSide::Closing { until, shut: false };
            }
            ClientSide::Closing { until, .. } | ClientSide::Finishing(until) if until <= now => {
                self.client = ClientSide::Gone;
            }
            _ => {}
        }
        match self.server {
            ServerSide::Closing(until) if until <= now => {
                self.server = ServerSide::Gone;
                self.finish_client_close(out, now);
            }
            ServerSide::Finishing(until) if until <= now => self.server = ServerSide::Gone,
            _ => {}
        }
        if self.keepalive_at().is_some_and(|at| at <= now) {
            out.server.push(b' ');
            self.last_upstream = now;
        }
    }

    pub(super) fn tick_open(&mut self, out: &mut Out, now: Instant) {
        if !self.phase.authenticated
            && !self.flags.client_closed
            && self.created + self.settings.unauthenticated_lifetime <= now
        {
            self.fail(Fault::Unauthenticated, out, now);
        } else if self
            .mid_message_since
            .is_some_and(|since| since + self.settings.message_timeout <= now)
        {
            self.flags.deaf = true;
            self.fail(Fault::SlowMessage, out, now);
        } else if self.silent_at() <= now {
            self.lose_client(Fault::ClientSilent, now);
            self.client = ClientSide::Gone;
        } else if self.next_ping <= now {
            frame::ping(&mut out.client, b"");
            self.next_ping = now + self.settings.ping_interval.max(Duration::from_millis(1));
        }
    }

    /// WS-38: instead of the `<open/>`, which is when clients look for it.
    pub(super) fn see_other(&mut self, uri: &str, out: &mut Out, now: Instant) {
        self.end(Fault::Drain);
        text(out, |bytes| write_see_other(uri, bytes));
        frame::close(&mut out.client, Fault::Drain.close_code(), "");
        let until = now + self.settings.close_grace;
        self.client = ClientSide::Closing { until, shut: false };
    }

    /// An operator wants the session to end. Unlike a drain it ends for the server as well, so that
    /// nobody resumes it.
    pub(super) fn kick(&mut self, out: &mut Out, now: Instant) {
        if self.client == ClientSide::Open && !self.flags.client_closed {
            self.fail(Fault::AdminKick, out, now);
        }
    }

    pub(super) fn drain(&mut self, out: &mut Out, now: Instant) {
        if self.client != ClientSide::Open || self.flags.client_closed {
            return;
        }
        if self.phase.sm {
            // WS-39: it resumes elsewhere, so neither side gets a stream end.
            self.lose_client(Fault::Drain, now);
            frame::close(&mut out.client, Fault::Drain.close_code(), "");
            let until = now + self.settings.close_grace;
            self.client = ClientSide::Closing { until, shut: false };
        } else {
            self.fail(Fault::Drain, out, now);
        }
    }
}

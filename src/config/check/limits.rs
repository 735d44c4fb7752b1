//! `[limits]`, checked.

use super::{Checker, MANY};
use crate::config::model::Limits;
use crate::config::raw;
use crate::config::units::Size;

impl Checker<'_> {
    pub(super) fn limits(&mut self, raw: &raw::Limits) -> Limits {
        // RFC 6120 §13.12: a server's limit on stanzas "MUST NOT be smaller than 10000 bytes".
        let element_bytes =
            self.size(&["limits", "element_bytes"], raw.element_bytes, 10_000..=LARGE);
        let server_element_bytes = self.size(
            &["limits", "server_element_bytes"],
            raw.server_element_bytes,
            10_000..=LARGE,
        );
        let pending_bytes =
            self.size(&["limits", "pending_bytes"], raw.pending_bytes, 10_000..=LARGE);
        for (key, bytes, why) in [
            (
                "server_element_bytes",
                server_element_bytes,
                "what one client may send another must pass",
            ),
            ("pending_bytes", pending_bytes, "an element that is allowed must fit the queue"),
        ] {
            if bytes < element_bytes {
                let own = ["limits", key];
                let other = ["limits", "element_bytes"];
                // Whoever moved one of the two below or above the other's default is to blame.
                if self.origins.is_set(&own) || !self.origins.is_set(&other) {
                    self.expected(
                        &own,
                        format!("at least limits.element_bytes ({element_bytes}), since {why}"),
                        bytes,
                    );
                } else {
                    self.expected(
                        &other,
                        format!("at most limits.{key} ({bytes}), since {why}"),
                        element_bytes,
                    );
                }
            }
        }
        let body_bytes = match raw.body_bytes {
            Size(0) => element_bytes + BODY_TAGS,
            bytes => self.size(&["limits", "body_bytes"], bytes, 10_000..=2 * LARGE),
        };
        if body_bytes < element_bytes + BODY_TAGS {
            self.expected(
                &["limits", "body_bytes"],
                format!(
                    "0, or at least limits.element_bytes and {BODY_TAGS} ({}), since an element \
                     that is allowed must fit",
                    element_bytes + BODY_TAGS
                ),
                body_bytes,
            );
        }
        Limits {
            element_bytes,
            server_element_bytes,
            depth: self.count32(&["limits", "depth"], raw.depth, 2..=10_000),
            attributes: self.count32(&["limits", "attributes"], raw.attributes, 1..=10_000),
            name_bytes: self.size32(&["limits", "name_bytes"], raw.name_bytes, 16..=65_535),
            namespaces: self.count32(&["limits", "namespaces"], raw.namespaces, 1..=10_000),
            elements: self.count32(&["limits", "elements"], raw.elements, 1..=MANY),
            body_bytes,
            body_elements: self.count32(&["limits", "body_elements"], raw.body_elements, 1..=MANY),
            pending_bytes,
            pending_stanzas: self.count(
                &["limits", "pending_stanzas"],
                raw.pending_stanzas,
                1..=MANY,
            ),
            unauthenticated_bytes: self.size(
                &["limits", "unauthenticated_bytes"],
                raw.unauthenticated_bytes,
                4096..=LARGE,
            ),
            unauthenticated_lifetime: self
                .duration(&["limits", "unauthenticated_lifetime"], raw.unauthenticated_lifetime),
            stall_timeout: self.duration(&["limits", "stall_timeout"], raw.stall_timeout),
            sessions: self.count(&["limits", "sessions"], raw.sessions, 1..=MANY),
            memory: match raw.memory {
                Size(0) => 0,
                bytes => self.size(&["limits", "memory"], bytes, 1 << 20..=1 << 40),
            },
            sessions_per_address: self
                .bound("sessions_per_address", raw.sessions_per_address)
                .map(|most| most as usize),
            unauthenticated_per_address: self
                .bound("unauthenticated_per_address", raw.unauthenticated_per_address)
                .map(|most| most as usize),
            new_sessions_per_minute: self
                .bound("new_sessions_per_minute", raw.new_sessions_per_minute),
            auth_failures_per_minute: self
                .bound("auth_failures_per_minute", raw.auth_failures_per_minute),
            requests_per_second: self.bound("requests_per_second", raw.requests_per_second),
            connections_per_address: self
                .bound("connections_per_address", raw.connections_per_address)
                .map(|most| most as usize),
            new_connections_per_second: self
                .bound("new_connections_per_second", raw.new_connections_per_second),
            unknown_sids_per_minute: self
                .bound("unknown_sids_per_minute", raw.unknown_sids_per_minute),
            exempt_peers: self.networks(&["limits", "exempt_peers"], &raw.exempt_peers),
        }
    }
}

/// What `<body/>` itself may take beside the largest element (BOSH-06).
const BODY_TAGS: usize = 4096;
/// 1 GiB.
const LARGE: u64 = 1 << 30;

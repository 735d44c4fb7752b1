//! `[drain]`, checked.

use std::time::Duration;

use super::endpoint::host_port;
use super::{Checker, DAY, quoted};
use crate::config::model::Drain;
use crate::config::raw;
use crate::config::units::show;

impl Checker<'_> {
    pub(super) fn drain(&mut self, raw: &raw::Drain) -> Drain {
        let timeout = self.duration(&["drain", "timeout"], raw.timeout);
        let path = &["drain", "window"];
        let window = self.within(path, raw.window, Duration::ZERO..=DAY);
        if window >= timeout {
            // The sessions that end last need time to say so.
            self.expected(
                path,
                format!("less than drain.timeout ({})", show(timeout)),
                show(window),
            );
        }
        let see_other_uri = self.see_other_uri(raw, window);
        Drain { timeout, window, see_other_uri }
    }

    fn see_other_uri(&mut self, raw: &raw::Drain, window: Duration) -> Option<String> {
        let text = raw.see_other_uri.as_deref()?;
        let path = &["drain", "see_other_uri"];
        if !is_websocket_url(text) {
            self.expected(
                path,
                "the URL of a WebSocket, such as \"wss://b.example.org/xmpp-websocket\"",
                quoted(text),
            );
            return None;
        }
        if !text.starts_with("wss:") {
            self.warning(
                path,
                "clients that came over TLS must not be sent to a place without (RFC 7395 §3.6.1)",
            );
        }
        if window.is_zero() {
            self.warning(path, "nobody is sent there while drain.window is \"0s\"");
        }
        Some(text.to_owned())
    }
}

/// RFC 6455 §3: `ws` or `wss`, an authority, no fragment.
fn is_websocket_url(text: &str) -> bool {
    let rest = text.strip_prefix("wss://").or_else(|| text.strip_prefix("ws://"));
    let Some(rest) = rest else { return false };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    host_port(authority, 443).is_ok()
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"#\"<>\\".contains(&byte))
}

//! `[ws]` and the paths of both transports, checked.

use super::{Checker, MANY, quoted};
use crate::config::model::Ws;
use crate::config::raw;

impl Checker<'_> {
    pub(super) fn ws(&mut self, raw: &raw::Ws) -> Ws {
        let path = &["ws", "paths"];
        self.paths(path, &raw.paths, "/ws");
        if raw.paths.is_empty() {
            self.expected(path, "at least one path", "an empty list");
        }
        Ws {
            paths: raw.paths.clone(),
            require_subprotocol: raw.require_subprotocol,
            legacy_framing: raw.legacy_framing,
            ping_interval: self.duration(&["ws", "ping_interval"], raw.ping_interval),
            missed_pongs: self.count32(&["ws", "missed_pongs"], raw.missed_pongs, 1..=1000),
            max_fragments: self.count32(&["ws", "max_fragments"], raw.max_fragments, 1..=MANY),
            message_timeout: self.duration(&["ws", "message_timeout"], raw.message_timeout),
            allowed_origins: self.origins_list(&["ws", "allowed_origins"], &raw.allowed_origins),
            require_origin: raw.require_origin,
            stamp_lang: raw.stamp_lang,
        }
    }

    pub(super) fn paths(&mut self, path: &[&str], raw: &[String], example: &str) {
        for (index, text) in raw.iter().enumerate() {
            let visible = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
            let index_text = index.to_string();
            let element = [path, &[&index_text]].concat();
            if !(text.starts_with('/') && visible) {
                self.expected(&element, format!("a path such as {example:?}"), quoted(text));
            } else if raw[..index].contains(text) {
                self.problem(&element, format!("{} is there twice", quoted(text)));
            }
        }
    }
}

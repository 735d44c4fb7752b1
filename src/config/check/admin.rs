//! The token of `[admin]`, and `[recorder]`, checked.

use std::time::Duration;

use super::{Checker, DAY};
use crate::config::model::{Recorder, Token};
use crate::config::raw;

/// A shorter token could be guessed.
const TOKEN_BYTES: usize = 16;

impl Checker<'_> {
    pub(super) fn token(&mut self, raw: &raw::Admin) -> Option<Token> {
        let path = &["admin", "token_file"];
        let file = self.origins.resolve(path, raw.token_file.as_deref()?);
        let bytes = self.read(path, &file)?;
        let token = bytes.trim_ascii();
        if token.len() < TOKEN_BYTES || !token.iter().all(u8::is_ascii_graphic) {
            // What is in it is not for a log.
            self.expected(
                path,
                format!("a file with one line of {TOKEN_BYTES} or more visible ASCII characters"),
                file.display(),
            );
            return None;
        }
        Some(Token::of(token))
    }

    pub(super) fn recorder(&mut self, raw: &raw::Recorder) -> Recorder {
        Recorder {
            events: self.count(&["recorder", "events"], raw.events, 0..=1000),
            keep: self.within(&["recorder", "keep"], raw.keep, Duration::ZERO..=DAY),
            ended: self.count(&["recorder", "ended"], raw.ended, 0..=100_000),
        }
    }
}

//! `[admin]` and `[recorder]`, checked.

use std::time::Duration;

use super::{Checker, DAY};
use crate::config::model::{Admin, Listen, ListenAddress, Listener, Recorder, Token};
use crate::config::raw;

/// A shorter token could be guessed.
const TOKEN_BYTES: usize = 16;

impl Checker<'_> {
    pub(super) fn admin(&mut self, raw: &raw::Admin, listen: &Listen) -> Admin {
        let path = &["admin", "address"];
        if raw.address.is_empty() {
            return Admin { address: None, token: None };
        }
        let address = self.socket_address(path, &raw.address);
        if let Some(address) = address {
            let is_it = |listener: &Listener| listener.address == ListenAddress::Tcp(address);
            if address.port() != 0 && listen.addresses.iter().any(is_it) {
                self.problem(path, format!("{address} is one of listen.addresses too"));
            }
            if !address.ip().is_loopback() {
                self.warning(
                    path,
                    format!("{address} is not loopback: whoever reaches it can read the metrics"),
                );
            }
        }
        Admin { address, token: self.token(raw) }
    }

    fn token(&mut self, raw: &raw::Admin) -> Option<Token> {
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

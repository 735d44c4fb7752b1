//! `[upstream]`, and what `[domains."…"]` says over it, checked.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Checker, DAY, quoted};
use crate::config::model::{ClientIdentity, Route, ServerAddress, SpkiPin, TlsMode, Upstream};
use crate::config::raw;
use crate::config::units::show;

/// The part of `[upstream]` that a domain may override.
#[derive(Clone)]
pub(super) struct Security {
    tls: TlsMode,
    ca_file: Option<PathBuf>,
    pin_sha256: Vec<SpkiPin>,
    insecure: bool,
    client: Option<ClientIdentity>,
}

impl Checker<'_> {
    pub(super) fn upstream(&mut self, raw: &raw::Upstream) -> (Upstream, Security) {
        let mut dns = Vec::new();
        for (index, text) in raw.dns.iter().enumerate() {
            dns.extend(self.socket_address(&["upstream", "dns", &index.to_string()], text));
        }
        let keepalive = self.within(
            &["upstream", "whitespace_keepalive"],
            raw.whitespace_keepalive,
            Duration::ZERO..=DAY,
        );
        let backoff_min = self.duration(&["upstream", "backoff_min"], raw.backoff_min);
        let backoff_max = self.duration(&["upstream", "backoff_max"], raw.backoff_max);
        if backoff_max < backoff_min {
            self.expected(
                &["upstream", "backoff_max"],
                format!("at least upstream.backoff_min ({})", show(backoff_min)),
                show(backoff_max),
            );
        }
        if raw.insecure {
            self.warn_insecure(&["upstream", "insecure"], "any server");
        }
        let security = Security {
            tls: self.tls(&["upstream", "tls"], &raw.tls),
            ca_file: raw
                .ca_file
                .as_deref()
                .map(|text| self.certificates(&["upstream", "ca_file"], text)),
            pin_sha256: self.pins(&["upstream", "pin_sha256"], &raw.pin_sha256),
            insecure: raw.insecure,
            client: self.client(&["upstream"], &raw.client_certificate, &raw.client_key),
        };
        let upstream = Upstream {
            connect_timeout: self.duration(&["upstream", "connect_timeout"], raw.connect_timeout),
            negotiation_timeout: self
                .duration(&["upstream", "negotiation_timeout"], raw.negotiation_timeout),
            close_grace: self.duration(&["upstream", "close_grace"], raw.close_grace),
            whitespace_keepalive: (!keepalive.is_zero()).then_some(keepalive),
            backoff_min,
            backoff_max,
            slow_start: self.within(
                &["upstream", "slow_start"],
                raw.slow_start,
                Duration::ZERO..=DAY,
            ),
            dns,
            allow_private: raw.allow_private,
        };
        (upstream, security)
    }

    /// One `[domains."…"]` table over what `[upstream]` says.
    pub(super) fn route(&mut self, name: &str, raw: &raw::Domain, upstream: &Security) -> Route {
        let table = ["domains", name];
        let key = |key| ["domains", name, key];
        let servers = self.servers(name, &raw.servers);
        let mut security = upstream.clone();
        if let Some(text) = &raw.tls {
            security.tls = self.tls(&key("tls"), text);
        }
        if let Some(text) = &raw.ca_file {
            security.ca_file = Some(self.certificates(&key("ca_file"), text));
        }
        if let Some(list) = &raw.pin_sha256 {
            security.pin_sha256 = self.pins(&key("pin_sha256"), list);
        }
        if let Some(insecure) = raw.insecure {
            security.insecure = insecure;
            if insecure {
                self.warn_insecure(&key("insecure"), "the server of this domain");
            }
        }
        if raw.client_certificate.is_some() || raw.client_key.is_some() {
            security.client = self.client(&table, &raw.client_certificate, &raw.client_key);
        }
        if security.tls == TlsMode::Never {
            let path: &[&str] = if raw.tls.is_some() { &key("tls") } else { &["upstream", "tls"] };
            let remote = servers
                .iter()
                .map(|server| &server.address)
                .find(|to| !to.is_loopback() && matches!(to, ServerAddress::Tcp { .. }));
            let how = "in the clear";
            if raw.servers.is_empty() && !name.starts_with('*') {
                let whose = format!("the server that DNS names for {name}");
                self.warning(path, format!("passwords and messages go to {whose} {how}"));
            } else if let Some(server) = remote {
                self.warning(path, format!("passwords and messages go to {server} {how}"));
            }
        }
        let Security { tls, ca_file, pin_sha256, insecure, client } = security;
        let allowed_origins = raw
            .allowed_origins
            .as_ref()
            .map(|list| self.origins_list(&key("allowed_origins"), list));
        Route {
            servers,
            tls,
            ca_file,
            pin_sha256,
            insecure,
            client,
            allowed_origins,
            public_url: None,
        }
    }

    fn tls(&mut self, path: &[&str], text: &str) -> TlsMode {
        match text {
            "auto" => TlsMode::Auto,
            "required" => TlsMode::Required,
            "if-offered" => TlsMode::IfOffered,
            "never" => TlsMode::Never,
            other => {
                let modes = "\"auto\", \"required\", \"if-offered\" or \"never\"";
                self.expected(path, modes, quoted(other));
                TlsMode::Required
            }
        }
    }

    fn pins(&mut self, path: &[&str], list: &[String]) -> Vec<SpkiPin> {
        let mut pins = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match STANDARD.decode(text).map(<[u8; 32]>::try_from) {
                Ok(Ok(hash)) => pins.push(SpkiPin(hash)),
                _ => {
                    let mut path = path.to_vec();
                    let index = index.to_string();
                    path.push(&index);
                    self.expected(
                        &path,
                        "the SHA-256 of a public key in base64 (44 characters)",
                        quoted(text),
                    );
                }
            }
        }
        pins
    }

    fn client(
        &mut self,
        table: &[&str],
        certificate: &Option<String>,
        key: &Option<String>,
    ) -> Option<ClientIdentity> {
        let path = |key| {
            let mut path = table.to_vec();
            path.push(key);
            path
        };
        match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientIdentity {
                certificate: self.certificates(&path("client_certificate"), certificate),
                key: self.private_key(&path("client_key"), key),
            }),
            (Some(_), None) => {
                self.problem(&path("client_certificate"), "expected client_key beside it");
                None
            }
            (None, Some(_)) => {
                self.problem(&path("client_key"), "expected client_certificate beside it");
                None
            }
        }
    }

    fn warn_insecure(&mut self, path: &[&str], whom: &str) {
        self.warning(
            path,
            format!(
                "certificates are NOT verified: whoever sits between can pose as {whom} and read \
                 every password and message; use pin_sha256 or ca_file instead"
            ),
        );
    }
}

//! `[tls]` and what of `[listen]` depends on it, checked.

use super::{Checker, quoted};
use crate::config::identity::{Identity, Unusable};
use crate::config::model::{ServerIdentity, Tls, TlsVersion};
use crate::config::raw;

impl Checker<'_> {
    pub(super) fn tls_towards_clients(&mut self, raw: &raw::Tls, listen: &raw::Listen) -> Tls {
        let mut certificates = Vec::new();
        for (index, pair) in raw.certificates.iter().enumerate() {
            certificates.extend(self.server_identity(&index.to_string(), pair));
        }
        let min_version = match raw.min_version.as_str() {
            "1.2" => TlsVersion::V1_2,
            "1.3" => TlsVersion::V1_3,
            other => {
                let path = &["tls", "min_version"];
                self.expected(path, "\"1.2\" or \"1.3\"", quoted(other));
                TlsVersion::V1_2
            }
        };
        if !listen.tls_addresses.is_empty() && raw.certificates.is_empty() {
            self.problem(
                &["listen", "tls_addresses"],
                "expected tls.certificates beside it, such as \
                 certificates = [{ certificate = \"fullchain.pem\", key = \"privkey.pem\" }]",
            );
        }
        if listen.tls_addresses.is_empty() && !raw.certificates.is_empty() {
            self.warning(
                &["tls", "certificates"],
                "nothing is served with them, since listen.tls_addresses is empty",
            );
        }
        Tls { certificates, min_version }
    }

    /// Both files, as they will be read again when they have changed.
    fn server_identity(&mut self, index: &str, raw: &raw::Certificate) -> Option<ServerIdentity> {
        let element = ["tls", "certificates", index];
        let mut missing = None;
        for (name, value) in [("certificate", &raw.certificate), ("key", &raw.key)] {
            if value.is_empty() {
                missing = Some(name);
                self.problem(&element, format!("expected a file as its {name}, found none"));
            }
        }
        if missing.is_some() {
            return None;
        }
        let certificate = self.origins.resolve(&element, &raw.certificate);
        let key = self.origins.resolve(&element, &raw.key);
        let report = |name: &str, text: String| {
            // The place is that of the element: its index says nothing to a reader.
            let path = ["tls", "certificates", index, name];
            let key = ["tls", "certificates", name];
            self.origins.problem(&path, &key, text)
        };
        match Identity::read(&certificate, &key) {
            Err(Unusable::Certificate(text)) => {
                let problem = report("certificate", text);
                self.problems.push(problem);
            }
            Err(Unusable::Key(text)) => {
                let problem = report("key", text);
                self.problems.push(problem);
            }
            Ok(Identity { concern: Some(text), .. }) => {
                let warning = report("certificate", format!("{text}: clients will refuse it"));
                self.warnings.push(warning.to_string());
            }
            Ok(_) => {}
        }
        Some(ServerIdentity { certificate, key })
    }
}

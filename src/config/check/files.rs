//! Files that keys name: they can be read, and hold what they should.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Checker;

impl Checker<'_> {
    /// A readable file with at least one certificate in PEM.
    pub(super) fn certificates(&mut self, path: &[&str], text: &str) -> PathBuf {
        let file = self.origins.resolve(path, text);
        if let Some(bytes) = self.read(path, &file) {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            let sound = all.is_ok_and(|all| {
                !all.is_empty()
                    && all.iter().all(|der| x509_parser::parse_x509_certificate(der).is_ok())
            });
            if !sound {
                self.expected(
                    path,
                    "certificates in PEM (-----BEGIN CERTIFICATE-----)",
                    file.display(),
                );
            }
        }
        file
    }

    /// A readable file with a private key in PEM.
    pub(super) fn private_key(&mut self, path: &[&str], text: &str) -> PathBuf {
        let file = self.origins.resolve(path, text);
        if let Some(bytes) = self.read(path, &file)
            && PrivateKeyDer::from_pem_slice(&bytes).is_err()
        {
            self.expected(path, "a private key in PEM, not encrypted", file.display());
        }
        file
    }

    pub(super) fn read(&mut self, path: &[&str], file: &Path) -> Option<Vec<u8>> {
        std::fs::read(file)
            .map_err(|error| {
                self.problem(
                    path,
                    format!("expected a readable file, found {}: {error}", file.display()),
                );
            })
            .ok()
    }
}

//! The client's half of SCRAM (RFC 5802, RFC 7677) without channel binding, and nothing more:
//! passwords are taken as they are, since those of the tests are ASCII.

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Result;

/// SHA-1 and SHA-256 both work on blocks of this size (RFC 2104 calls it B).
const BLOCK: usize = 64;

/// A SASL mechanism the test client can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616
    Plain,
    /// RFC 5802
    ScramSha1,
    /// RFC 7677
    ScramSha256,
}

impl Mechanism {
    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::ScramSha256 => "SCRAM-SHA-256",
        }
    }

    fn hash(self, parts: &[&[u8]]) -> Vec<u8> {
        fn with<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        match self {
            Self::ScramSha256 => with::<Sha256>(parts),
            Self::ScramSha1 | Self::Plain => with::<Sha1>(parts),
        }
    }

    /// HMAC (RFC 2104); `key` must be at most a block long.
    fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        let (mut inner, mut outer) = ([0x36; BLOCK], [0x5c; BLOCK]);
        for (at, byte) in key.iter().enumerate() {
            inner[at] ^= byte;
            outer[at] ^= byte;
        }
        self.hash(&[&outer, &self.hash(&[&inner, message])])
    }

    /// Hi(str, salt, i) of RFC 5802 §2.2.
    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut last = self.hmac(password, &[salt, &1u32.to_be_bytes()].concat());
        let mut sum = last.clone();
        for _ in 1..iterations {
            last = self.hmac(password, &last);
            sum.iter_mut().zip(&last).for_each(|(sum, byte)| *sum ^= byte);
        }
        sum
    }
}

/// One SCRAM exchange.
pub struct Scram {
    mechanism: Mechanism,
    password: String,
    first_bare: String,
    nonce: String,
    server_signature: Vec<u8>,
}

impl Scram {
    /// Begins one with a fresh nonce.
    pub fn new(mechanism: Mechanism, name: &str, password: &str) -> Result<Self> {
        let mut random = [0; 18];
        getrandom::fill(&mut random).context("no randomness")?;
        let nonce = BASE64_STANDARD.encode(random);
        Ok(Self::with_nonce(mechanism, name, password, nonce))
    }

    fn with_nonce(mechanism: Mechanism, name: &str, password: &str, nonce: String) -> Self {
        let name = name.replace('=', "=3D").replace(',', "=2C");
        Self {
            mechanism,
            password: password.to_owned(),
            first_bare: format!("n={name},r={nonce}"),
            nonce,
            server_signature: Vec::new(),
        }
    }

    /// The client-first-message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The client-final-message that answers the server-first-message.
    pub fn answer(&mut self, server_first: &str) -> Result<String> {
        let attribute = |name: char| {
            server_first
                .split(',')
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
                .with_context(|| format!("no `{name}` in the challenge"))
        };
        let nonce = attribute('r')?;
        if !nonce.starts_with(&self.nonce) {
            bail!("the server's nonce does not begin with ours");
        }
        let salt = BASE64_STANDARD.decode(attribute('s')?)?;
        let salted =
            self.mechanism.salted(self.password.as_bytes(), &salt, attribute('i')?.parse()?);
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.first_bare);
        let client_key = self.mechanism.hmac(&salted, b"Client Key");
        let stored_key = self.mechanism.hash(&[&client_key]);
        let signature = self.mechanism.hmac(&stored_key, message.as_bytes());
        let proof: Vec<u8> =
            client_key.iter().zip(&signature).map(|(key, sig)| key ^ sig).collect();
        let server_key = self.mechanism.hmac(&salted, b"Server Key");
        self.server_signature = self.mechanism.hmac(&server_key, message.as_bytes());
        Ok(format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)))
    }

    /// Checks the server-final-message: the server knows the password, too.
    pub fn verify(&self, server_final: &str) -> Result {
        let expected = format!("v={}", BASE64_STANDARD.encode(&self.server_signature));
        if server_final != expected {
            bail!("the server's signature is wrong");
        }
        Ok(())
    }

    /// RFC 5802 §5, the exchange printed there.
    pub fn self_test() -> Result {
        let nonce = "fyko+d2lbbFgONRv9qkxdawL".to_owned();
        let mut scram = Self::with_nonce(Mechanism::ScramSha1, "user", "pencil", nonce);
        let answer = scram
            .answer("r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096")?;
        if !answer.ends_with(",p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=") {
            bail!("not the proof of RFC 5802 §5: {answer}");
        }
        scram.verify("v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")
    }
}

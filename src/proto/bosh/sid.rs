//! The names of sessions (BOSH-15).
//!
//! Who knows a sid owns the session, so it is a secret: 160 random bits, and a tag of the process
//! that keeps the session. It prints redacted; [`Sid::expose`] is for the wire.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Bytes of a sid: the owner's tag, then the secret.
const BYTES: usize = 4 + 20;

/// The name of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sid([u8; BYTES]);

impl Sid {
    /// The sid of a session that `owner` keeps; `secret` comes from a CSPRNG.
    #[must_use]
    pub fn new(owner: u32, secret: [u8; 20]) -> Self {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&owner.to_be_bytes());
        bytes[4..].copy_from_slice(&secret);
        Self(bytes)
    }

    /// A sid as it is written on the wire; `None` for what no gateway has given out.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == BYTES).then_some(Self(bytes))
    }

    /// The tag of the process that keeps the session.
    #[must_use]
    pub fn owner(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// The secret part, which is as good as random: a table may use it as its own hash.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.0[4..]
    }

    /// The text on the wire: 32 characters of the URL-safe alphabet. Never for a log.
    #[must_use]
    pub fn expose(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// Redacted (SEC-14): the owner's tag, which is no secret.
impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", self.owner())
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sid({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BOSH-15: 160 bits and a tag, URL-safe; BOSH-15 and SEC-14: no log can hold it.
    #[test]
    fn a_sid_is_read_back_and_prints_redacted() {
        let sid = Sid::new(0x0102_0304, [0xA5; 20]);
        let text = sid.expose();
        assert_eq!(text.len(), 32);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert_eq!(Sid::parse(&text), Some(sid));
        assert_eq!(sid.owner(), 0x0102_0304);
        assert_eq!(format!("{sid} {sid:?}"), "01020304… Sid(01020304…)");
        for wrong in ["", "x", &text[1..], &format!("{text}A"), "%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%"]
        {
            assert_eq!(Sid::parse(wrong), None, "{wrong}");
        }
    }
}

//! Key sequences (XEP-0124 §15): each request shows the value whose SHA-1 the last one showed.

use sha1::{Digest as _, Sha1};

use super::body::Keys;

/// The value that the next request's `key` has to hash to.
///
/// What a client announced that is no SHA-1 in hexadecimal can never be met, so nothing is kept of
/// it: the next request fails, as it must.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain(Option<[u8; 20]>);

impl Chain {
    /// The sequence that `newkey` of the creation request begins (BOSH-80).
    pub(super) fn new(newkey: &str) -> Self {
        Self(unhex(newkey))
    }

    /// Takes the keys of the next request; false if they are wrong or missing (BOSH-81).
    ///
    /// Hashed is the text exactly as it was sent (BOSH-82); compared are the digests, so the case
    /// of what announced them does not matter, and in constant time (BOSH-80).
    pub(super) fn advance(&mut self, keys: Option<&Keys>) -> bool {
        let Some((keys, key)) = keys.and_then(|keys| Some((keys, keys.key.as_deref()?))) else {
            return false;
        };
        let digest: [u8; 20] = Sha1::digest(key.as_bytes()).into();
        if !self.0.is_some_and(|expected| is_same(&expected, &digest)) {
            return false;
        }
        *self = Self::new(keys.newkey.as_deref().unwrap_or(key));
        true
    }

    /// Whether the next request may carry these keys; nothing moves.
    pub(super) fn accepts(mut self, keys: Option<&Keys>) -> bool {
        self.advance(keys)
    }
}

/// Whether a repeated request shows what it showed the first time (BOSH-83).
pub(super) fn are_same(first: Option<&Keys>, again: Option<&Keys>) -> bool {
    let text = |value: Option<&Box<str>>, other: Option<&Box<str>>| match (value, other) {
        (Some(a), Some(b)) => is_same(a.as_bytes(), b.as_bytes()),
        (None, None) => true,
        _ => false,
    };
    let none = Keys::default();
    let (first, again) = (first.unwrap_or(&none), again.unwrap_or(&none));
    text(first.key.as_ref(), again.key.as_ref())
        & text(first.newkey.as_ref(), again.newkey.as_ref())
}

/// Compares without telling by its time where the difference is.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

fn unhex(text: &str) -> Option<[u8; 20]> {
    let digits: &[u8; 40] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 20];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: [&str; 4] = [
        "93c81f9001ac4d3aea60e3fe622c88f858e8d0b3",
        "01fd4dc44bbee522ded8987ee4fde07e35c9daf4",
        "a932def6e5d361adc571134e2dee5e78cd53d771",
        "3d3e77fc2e73912de6215365bd7ff8e6ec560d23",
    ];

    fn keys(key: Option<&str>, newkey: Option<&str>) -> Option<Keys> {
        Some(Keys { key: key.map(Into::into), newkey: newkey.map(Into::into) })
    }

    /// BOSH-80: SHA-1 of what is shown is what was shown before; `newkey` begins anew.
    #[test]
    fn each_key_hashes_to_the_one_before() {
        let mut chain = Chain::new(K[3]);
        assert!(!chain.advance(keys(Some(K[1]), None).as_ref()));
        assert!(!chain.advance(None) && !chain.advance(keys(None, Some(K[1])).as_ref()));
        assert!(chain.advance(keys(Some(K[2]), None).as_ref()));
        assert!(chain.accepts(keys(Some(K[1]), None).as_ref()));
        let m3 = "513e28785e616d84f227475485d18c8f77e7a02b";
        assert!(chain.advance(keys(Some(K[1]), Some(&m3.to_uppercase())).as_ref()));
        assert!(
            chain.advance(keys(Some("dde49264d302d1ce4dc03e2e471a107cdb2b9275"), None).as_ref())
        );
    }

    /// BOSH-80: what announces a key is compared without regard to case, what is hashed is not.
    #[test]
    fn announcements_may_be_in_upper_case() {
        let mut chain = Chain::new(&K[3].to_uppercase());
        assert!(!chain.accepts(keys(Some(&K[2].to_uppercase()), None).as_ref()));
        assert!(chain.advance(keys(Some(K[2]), Some(&K[2].to_uppercase())).as_ref()));
        assert!(chain.advance(keys(Some(K[1]), None).as_ref()));
    }

    /// BOSH-84: an announcement that is no SHA-1 is never met.
    #[test]
    fn what_is_no_digest_is_never_met() {
        for newkey in ["", "ab", &K[3][1..], "3d3e77fc2e73912de6215365bd7ff8e6ec560dgg"] {
            assert!(!Chain::new(newkey).advance(keys(Some(K[2]), None).as_ref()), "{newkey}");
        }
    }

    /// BOSH-83.
    #[test]
    fn repeats_show_the_same() {
        let one = keys(Some("a"), None);
        assert!(are_same(one.as_ref(), one.as_ref()) && are_same(None, Some(&Keys::default())));
        for other in
            [None, keys(Some("b"), None), keys(Some("a"), Some("a")), keys(None, Some("a"))]
        {
            assert!(!are_same(one.as_ref(), other.as_ref()), "{other:?}");
        }
    }
}

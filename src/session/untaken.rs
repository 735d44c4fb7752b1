//! Answers that were given, and that the connections which carry them have not taken whole.
//!
//! A client may leave each of them on a connection of its own, or a hundred in windows of one that it
//! does not open, and each is as large as all that a session may queue, or as an element of the
//! server. So a session that has given so much gives no more until some of it was taken, and its
//! account has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;

// Smaller answers are not counted: a connection has buffers of that size anyway.
use super::meter::LARGE;

/// What one session has given.
#[derive(Debug)]
pub(crate) struct Untaken {
    bytes: AtomicUsize,
    /// The session's task, which may give more.
    waker: Waker,
}

/// An answer that counts for as long as there is something of it.
struct Given {
    body: Bytes,
    of: Arc<Untaken>,
}

impl Untaken {
    /// Nothing yet, of the session whose task is that.
    pub(crate) fn new(waker: Waker) -> Self {
        Self { bytes: AtomicUsize::new(0), waker }
    }

    /// How many bytes were given and not taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// The bytes of an answer, counted until the last piece of them is dropped.
    pub(crate) fn give(this: &mut Option<Arc<Self>>, body: Bytes, waker: &Waker) -> Bytes {
        if body.len() < LARGE {
            return body;
        }
        let of = Arc::clone(this.get_or_insert_with(|| Arc::new(Self::new(waker.clone()))));
        of.bytes.fetch_add(body.len(), Ordering::AcqRel);
        Bytes::from_owner(Given { body, of })
    }
}

impl AsRef<[u8]> for Given {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.body.len(), Ordering::AcqRel);
        self.of.waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer counts until its last piece is gone; a small one does not, and costs nothing.
    #[test]
    fn answers_count_until_they_are_gone() {
        let (mut untaken, waker) = (None, Waker::noop());
        drop(Untaken::give(&mut untaken, Bytes::from_static(b"<body/>"), waker));
        assert!(untaken.is_none());
        let large = Bytes::from(vec![b'x'; 2 * LARGE]);
        let mut given = Untaken::give(&mut untaken, large.clone(), waker);
        let again = Untaken::give(&mut untaken, large.clone(), waker);
        assert!(given == large && again == large);
        let bytes = || untaken.as_ref().unwrap().bytes();
        assert_eq!(bytes(), 4 * LARGE);
        drop(given.split_to(LARGE));
        drop(again);
        assert_eq!(bytes(), 2 * LARGE);
        drop(given);
        assert_eq!(bytes(), 0);
    }
}

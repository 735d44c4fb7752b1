//! Bytes that wait for a slow socket.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;

/// Room made for what comes behind bytes that wait already, which are then not moved: small pieces
/// share it, and what the peer has taken of it is given back.
const SEGMENT: usize = 16 * 1024;

/// Bytes a socket did not take yet, and whether its write side was ended.
#[derive(Default)]
pub(crate) struct Pending {
    /// None is empty.
    segments: VecDeque<Vec<u8>>,
    /// How much of the first was taken.
    at: usize,
    len: usize,
    /// Since when not one byte was taken.
    pub(crate) since: Option<Instant>,
    /// The transport holds bytes of its own (TLS).
    unflushed: bool,
    shut: bool,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0 && !self.unflushed
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes what waits, then `fresh`; what is left of both waits. An error is the peer's end.
    pub(crate) fn write<W: AsyncWrite + Unpin>(
        &mut self,
        io: &mut W,
        fresh: &mut Vec<u8>,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        while let Some(first) = self.segments.front() {
            let taken = write_some(io, &first[self.at..], cx)?;
            let is_gone = self.at + taken == first.len();
            self.len -= taken;
            self.at += taken;
            self.took(taken, now);
            if !is_gone {
                break;
            }
            self.segments.pop_front();
            self.at = 0;
        }
        // All gone is the common case: nothing is copied and nothing kept.
        let taken = if self.len == 0 { write_some(io, fresh, cx)? } else { 0 };
        self.took(taken, now);
        self.push(&fresh[taken..]);
        fresh.clear();
        if self.unflushed {
            match Pin::new(io).poll_flush(cx) {
                Poll::Ready(result) => {
                    result?;
                    self.unflushed = false;
                }
                Poll::Pending => {}
            }
        }
        self.since = if self.is_empty() { None } else { self.since.or(Some(now)) };
        Ok(())
    }

    fn took(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.since = Some(now);
            self.unflushed = true;
        }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        if let Some(last) = self.segments.back_mut() {
            let (fits, rest) = bytes.split_at(bytes.len().min(last.capacity() - last.len()));
            last.extend_from_slice(fits);
            bytes = rest;
        }
        if bytes.is_empty() {
            // What nothing waits in shall cost nothing.
            if self.segments.is_empty() {
                self.segments = VecDeque::new();
            }
            return;
        }
        let least = if self.segments.is_empty() { 0 } else { SEGMENT };
        let mut segment = Vec::with_capacity(bytes.len().max(least));
        segment.extend_from_slice(bytes);
        self.segments.push_back(segment);
    }

    /// Ends the write side, once; true when that is done. Nothing may wait.
    pub(crate) fn shut<W: AsyncWrite + Unpin>(&mut self, io: &mut W, cx: &mut Context<'_>) -> bool {
        if !self.shut && Pin::new(io).poll_shutdown(cx).is_ready() {
            self.shut = true;
        }
        self.shut
    }

    pub(crate) fn clear(&mut self) {
        *self = Self { shut: self.shut, ..Self::default() };
    }
}

fn write_some<W: AsyncWrite + Unpin>(
    io: &mut W,
    bytes: &[u8],
    cx: &mut Context<'_>,
) -> io::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match Pin::new(&mut *io).poll_write(cx, &bytes[taken..]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(n)) => taken += n,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::super::timer::clock;
    use super::*;

    /// Takes three bytes at a time, and none at every other call.
    struct Reluctant(Vec<u8>, bool);

    impl AsyncWrite for Reluctant {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1 = !self.1;
            if self.1 {
                return Poll::Pending;
            }
            let taken = bytes.len().min(3);
            self.0.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What a socket takes in pieces stays in order, whatever comes behind it.
    #[test]
    fn what_waits_stays_in_order() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut io, mut pending) = (Reluctant(Vec::new(), false), Pending::default());
        let all = (0..=255).collect::<Vec<u8>>();
        for chunk in all.chunks(16) {
            pending.write(&mut io, &mut chunk.to_vec(), clock(), &mut cx).unwrap();
            pending.write(&mut io, &mut Vec::new(), clock(), &mut cx).unwrap();
            assert_eq!(io.0.len() + pending.len(), usize::from(chunk[15]) + 1);
            let kept: usize = pending.segments.iter().map(Vec::capacity).sum();
            assert!(kept <= pending.len() + SEGMENT + 16, "what was taken is let go");
        }
        while !pending.is_empty() {
            pending.write(&mut io, &mut Vec::new(), clock(), &mut cx).unwrap();
        }
        assert_eq!(io.0, all);
        assert_eq!(pending.since, None);
        assert_eq!(pending.segments.capacity(), 0, "empty, it holds nothing");
    }
}

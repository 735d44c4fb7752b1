//! Bytes that wait for a slow socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;

/// Bytes a socket did not take yet, and whether its write side was ended.
#[derive(Default)]
pub(crate) struct Pending {
    bytes: Vec<u8>,
    at: usize,
    /// Since when not one byte was taken.
    pub(crate) since: Option<Instant>,
    /// The transport holds bytes of its own (TLS).
    unflushed: bool,
    shut: bool,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len() && !self.unflushed
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Writes what waits, then `fresh`; what is left of both waits. An error is the peer's end.
    pub(crate) fn write<W: AsyncWrite + Unpin>(
        &mut self,
        io: &mut W,
        fresh: &mut Vec<u8>,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        if self.at < self.bytes.len() {
            let taken = write_some(io, &self.bytes[self.at..], cx)?;
            self.at += taken;
            if taken > 0 {
                self.since = Some(now);
                self.unflushed = true;
            }
        }
        if self.at == self.bytes.len() {
            let taken = write_some(io, fresh, cx)?;
            if taken > 0 {
                self.since = Some(now);
                self.unflushed = true;
            }
            // All gone is the common case: nothing is copied and nothing kept.
            self.bytes = fresh[taken..].to_vec();
            self.at = 0;
        } else {
            // Not at every write: a client that takes little at a time would have all of it moved.
            if self.at >= self.bytes.len() / 2 {
                self.bytes.drain(..self.at);
                self.at = 0;
            }
            self.bytes.extend_from_slice(fresh);
        }
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
            assert!(pending.bytes.len() <= 2 * pending.len() + 16, "what was taken is let go");
        }
        while !pending.is_empty() {
            pending.write(&mut io, &mut Vec::new(), clock(), &mut cx).unwrap();
        }
        assert_eq!(io.0, all);
        assert_eq!(pending.since, None);
    }
}

//! Bytes that wait for a slow socket.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;

use crate::proto::frame;

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
    /// What is written are whole WebSocket frames: then each segment begins with one.
    framed: bool,
}

impl Pending {
    /// For a peer that gets WebSocket frames, whole ones with each write.
    pub(crate) fn framed() -> Self {
        Self { framed: true, ..Self::default() }
    }

    /// Memory in use, for the account.
    pub(crate) fn held_bytes(&self) -> usize {
        self.segments.iter().map(Vec::capacity).sum()
    }

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
        // A frame that is cut here stays whole, so that its end can be found.
        let is_cut = self.framed && 0 < taken && taken < fresh.len();
        let from = if is_cut { frame::around(fresh, taken).start } else { taken };
        self.push(&fresh[from..]);
        if from < taken {
            self.at = taken - from;
            self.len -= self.at;
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

    fn took(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.since = Some(now);
            self.unflushed = true;
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        if bytes.is_empty() {
            // What nothing waits in shall cost nothing.
            if self.segments.is_empty() {
                self.segments = VecDeque::new();
            }
            return;
        }
        // In one piece: what comes behind bytes that wait is small, as a pong is.
        if let Some(last) = self.segments.back_mut()
            && last.capacity() - last.len() >= bytes.len()
        {
            last.extend_from_slice(bytes);
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
        *self = Self { shut: self.shut, framed: self.framed, ..Self::default() };
    }

    /// Gives up what waits, but for the rest of a frame of which the peer has a part already. False
    /// if that is more than `most`: then nothing is kept, and the peer can be told nothing more.
    pub(crate) fn cut(&mut self, most: usize) -> bool {
        let Some(mut first) = self.segments.pop_front() else { return true };
        let rest = self.at..frame::around(&first, self.at).end;
        if rest.len() > most {
            self.clear();
            return false;
        }
        first.truncate(rest.end);
        first.drain(..rest.start);
        first.shrink_to_fit();
        self.at = 0;
        self.len = first.len();
        self.segments = VecDeque::new();
        if !first.is_empty() {
            self.segments.push_back(first);
        }
        true
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

    /// Takes so many bytes.
    struct Limited(Vec<u8>, usize);

    impl AsyncWrite for Limited {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let room = self.1 - self.0.len();
            if room == 0 {
                return Poll::Pending;
            }
            let taken = bytes.len().min(room);
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

    /// SEC-17: whatever the peer has taken so far, it has whole frames when what waits was given up
    /// and what comes behind was written.
    #[test]
    fn a_cut_is_between_frames() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let text = |length: usize| {
            let mut frame = Vec::new();
            let mark = frame::begin_text(&mut frame);
            frame.resize(frame.len() + length, b'x');
            frame::end_text(&mut frame, mark);
            frame
        };
        let frames = [text(1), text(125), text(126), text(300), text(70_000), text(2), text(20)];
        let ends: Vec<_> = frames
            .iter()
            .scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            })
            .collect();
        let all = frames.concat();
        let taken = (0..900).chain((ends[3]..all.len()).step_by(997)).chain(ends[4] - 2..all.len());
        for taken in taken {
            let mut pending = Pending::framed();
            let mut io = Limited(Vec::new(), taken);
            // Some behind the others, as a pong is.
            for fresh in [&all[..ends[4]], &all[ends[4]..]] {
                pending.write(&mut io, &mut fresh.to_vec(), clock(), &mut cx).unwrap();
            }
            assert_eq!((io.0.len(), pending.len()), (taken, all.len() - taken));
            let end = ends.iter().copied().find(|end| *end >= taken).unwrap_or(0);
            let end = if taken == 0 { 0 } else { end };
            let told = pending.cut(65_536);
            assert_eq!(told, end - taken <= 65_536, "{taken}");
            let expected = if told { end - taken } else { 0 };
            assert_eq!((pending.len(), pending.held_bytes()), (expected, expected), "{taken}");
            io.1 = usize::MAX;
            pending.write(&mut io, &mut b"behind".to_vec(), clock(), &mut cx).unwrap();
            if told {
                assert_eq!(io.0, [&all[..end], b"behind"].concat(), "{taken}");
            }
            assert!(pending.is_empty());
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

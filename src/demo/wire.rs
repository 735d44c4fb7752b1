//! What keeps input bounded below and inside tokio-xmpp's `xmlstream`, which bounds only its
//! tokens: the bytes of an element are counted where they are read, its depth where it is built.
//! And what `xmlstream` writes too much of: features without mechanisms.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use minidom::Element;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use xso::error::{Error, FromEventsError};
use xso::exports::rxml::{AttrMap, Event, QName};
use xso::minidom_compat::ElementFromEvents;
use xso::{FromEventsBuilder, FromXml};

use super::limits;

/// What is known about the bytes of a connection; shared with whoever reads its elements.
#[derive(Debug)]
pub(super) struct Meter {
    used: Cell<usize>,
    limit: Cell<usize>,
    ended: Cell<bool>,
    no_mechanisms: Cell<bool>,
}

impl Meter {
    /// One that allows what a login needs.
    pub(super) fn new() -> Self {
        Self {
            used: Cell::new(0),
            limit: Cell::new(limits::LOGIN_BYTES),
            ended: Cell::new(false),
            no_mechanisms: Cell::new(false),
        }
    }

    /// Allows what a session needs.
    pub(super) fn trust(&self) {
        self.limit.set(limits::ELEMENT_BYTES);
    }

    /// Whether the features that are written now are to have no list of mechanisms (RFC 6120
    /// §6.4.6: none after the login): `StreamFeatures` always writes one, and clients take an empty
    /// one for an offer that they cannot meet.
    pub(super) fn without_mechanisms(&self, without: bool) {
        self.no_mechanisms.set(without);
    }

    /// An element is complete: the next one counts from nothing.
    pub(super) fn element(&self) {
        self.used.set(0);
    }

    /// Whether an element became too large.
    pub(super) fn exceeded(&self) -> bool {
        self.used.get() > self.limit.get()
    }

    /// Whether the client's side of the connection has ended.
    pub(super) fn ended(&self) -> bool {
        self.ended.get()
    }
}

/// A connection whose input is counted.
#[derive(Debug)]
pub(super) struct Metered {
    io: BufReader<TcpStream>,
    meter: Rc<Meter>,
    /// Output that waits for the flush, to be written without mechanisms.
    held: Vec<u8>,
}

impl Metered {
    /// Counts the input of `socket` on `meter`.
    pub(super) fn new(socket: TcpStream, meter: Rc<Meter>) -> Self {
        Self { io: BufReader::with_capacity(4096, socket), meter, held: Vec::new() }
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes the empty list of mechanisms out of features, however it is written.
fn strip_mechanisms(bytes: &mut Vec<u8>) {
    let find = |from: usize, what: &[u8]| {
        let rest = bytes.get(from..)?;
        Some(from + rest.windows(what.len()).position(|window| window == what)?)
    };
    let Some(start) = find(0, b"<mechanisms") else { return };
    let Some(tag) = find(start, b">") else { return };
    const END: &[u8] = b"</mechanisms>";
    let end = match bytes[tag - 1] {
        b'/' => tag + 1,
        _ if bytes[tag + 1..].starts_with(END) => tag + 1 + END.len(),
        _ => return,
    };
    bytes.drain(start..end);
}

impl AsyncBufRead for Metered {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.meter.exceeded() {
            return Poll::Ready(Err(io::Error::other("the element is too large")));
        }
        let filled = Pin::new(&mut this.io).poll_fill_buf(cx);
        if matches!(filled, Poll::Ready(Ok([]) | Err(_))) {
            this.meter.ended.set(true);
        }
        filled
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.meter.used.set(this.meter.used.get().saturating_add(amount));
        Pin::new(&mut this.io).consume(amount);
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = ready!(self.as_mut().poll_fill_buf(cx))?;
        let length = filled.len().min(buffer.remaining());
        buffer.put_slice(&filled[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.meter.no_mechanisms.get() {
            this.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    /// Elements are flushed whole.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.no_mechanisms.get() {
            strip_mechanisms(&mut this.held);
        }
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// A first-level element, not deeper than [`limits::DEPTH`]: building, writing and dropping a DOM
/// recurse.
#[derive(Debug)]
pub(super) struct Incoming(pub(super) Element);

impl FromXml for Incoming {
    type Builder = Builder;

    fn from_events(
        name: QName,
        attributes: AttrMap,
        _: &xso::Context<'_>,
    ) -> Result<Builder, FromEventsError> {
        Ok(Builder { element: ElementFromEvents::new(name, attributes), depth: 1 })
    }
}

/// Builds an [`Incoming`].
pub(super) struct Builder {
    element: ElementFromEvents,
    depth: usize,
}

impl FromEventsBuilder for Builder {
    type Output = Incoming;

    fn feed(&mut self, event: Event, cx: &xso::Context<'_>) -> Result<Option<Incoming>, Error> {
        match event {
            Event::StartElement(..) if self.depth == limits::DEPTH => {
                return Err(Error::Other("nested too deeply"));
            }
            Event::StartElement(..) => self.depth += 1,
            Event::EndElement(_) => self.depth -= 1,
            Event::Text(..) | Event::XmlDeclaration(..) => {}
        }
        Ok(self.element.feed(event, cx)?.map(Incoming))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        "<a xmlns='urn:x'>".repeat(depth) + &"</a>".repeat(depth)
    }

    #[test]
    fn an_element_deeper_than_the_limit_is_refused() {
        let read = |text: &str| xso::from_bytes::<Incoming>(text.as_bytes());
        assert!(read(&nested(limits::DEPTH)).is_ok());
        assert!(read(&nested(limits::DEPTH + 1)).is_err());
    }

    #[test]
    fn an_empty_list_of_mechanisms_is_taken_out() {
        for list in ["<mechanisms xmlns='urn:x'/>", "<mechanisms xmlns='urn:x'></mechanisms>"] {
            let mut bytes = format!("<features>{list}<bind/></features>").into_bytes();
            strip_mechanisms(&mut bytes);
            assert_eq!(bytes, b"<features><bind/></features>", "{list}");
        }
        for other in ["<bind/>", "<mechanisms", "<mechanisms><mechanism/></mechanisms>"] {
            let mut bytes = other.as_bytes().to_vec();
            strip_mechanisms(&mut bytes);
            assert_eq!(bytes, other.as_bytes());
        }
    }

    #[test]
    fn the_meter_counts_each_element_anew() {
        let meter = Meter::new();
        meter.used.set(limits::LOGIN_BYTES);
        assert!(!meter.exceeded());
        meter.used.set(limits::LOGIN_BYTES + 1);
        assert!(meter.exceeded());
        meter.element();
        assert!(!meter.exceeded());
    }
}

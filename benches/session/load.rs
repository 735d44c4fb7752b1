//! The clients: XMPP over WebSocket (RFC 7395) as a browser's library would speak it, in as few
//! instructions as that takes.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::orders::{self, AUTH, BIND, ID, id, stanza};

pub(crate) struct Client {
    stream: TcpStream,
    /// Bytes from the server, from `read` on not looked at.
    input: Vec<u8>,
    read: usize,
    out: Vec<u8>,
    /// How many stanzas were sent.
    sent: usize,
}

impl orders::Client for Client {
    async fn open(target: SocketAddr, number: u32) -> anyhow::Result<Self> {
        let stream = orders::connect(target, number).await?;
        let mut client = Self { stream, input: Vec::new(), read: 0, out: Vec::new(), sent: 0 };
        client.upgrade().await.context("upgrade")?;
        client.log_in().await.context("login")?;
        client.input = Vec::new();
        client.out = Vec::new();
        client.read = 0;
        Ok(client)
    }

    async fn echo(mut self, in_flight: usize, bursts: usize) -> anyhow::Result<(Self, u64)> {
        let mut stanza = stanza();
        for _ in 0..bursts {
            let first = self.sent;
            for _ in 0..in_flight {
                stanza[ID].copy_from_slice(&id(self.sent));
                push_text(&mut self.out, &stanza);
                self.sent += 1;
            }
            self.flush().await?;
            for number in first..self.sent {
                let text = self.text().await?;
                let echo = &self.input[text];
                if !echo.starts_with(b"<message") || memmem::find(echo, &id(number)).is_none() {
                    bail!("not echo {number} but {}", String::from_utf8_lossy(echo));
                }
            }
        }
        Ok((self, 0))
    }
}

impl Client {
    async fn upgrade(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(UPGRADE).await?;
        let end = loop {
            if let Some(at) = memmem::find(&self.input, b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        if !self.input.starts_with(b"HTTP/1.1 101 ") {
            bail!("refused: {}", String::from_utf8_lossy(&self.input));
        }
        self.read = end;
        Ok(())
    }

    async fn log_in(&mut self) -> anyhow::Result<()> {
        self.ask(OPEN, &["<open", "PLAIN"]).await?;
        self.ask(AUTH, &["<success"]).await?;
        self.ask(OPEN, &["<open", "urn:ietf:params:xml:ns:xmpp-bind"]).await?;
        self.ask(BIND, &["<jid>"]).await
    }

    /// Sends a message and expects others, each with something in it.
    async fn ask(&mut self, text: &str, expected: &[&str]) -> anyhow::Result<()> {
        push_text(&mut self.out, text.as_bytes());
        self.flush().await?;
        for expected in expected {
            let answer = self.text().await?;
            let answer = &self.input[answer];
            if memmem::find(answer, expected.as_bytes()).is_none() {
                bail!("not {expected:?} but {}", String::from_utf8_lossy(answer));
            }
        }
        Ok(())
    }

    /// The next text message, as a range of `input`. Pings are answered on the way.
    async fn text(&mut self) -> anyhow::Result<Range<usize>> {
        loop {
            let Some((first, payload)) = server_frame(&self.input[self.read..]) else {
                self.more().await?;
                continue;
            };
            let payload = self.read + payload.start..self.read + payload.end;
            self.read = payload.end;
            match first {
                0x81 => return Ok(payload),
                0x89 => {
                    push_frame(&mut self.out, 0x8a, &self.input[payload]);
                    self.flush().await?;
                }
                0x8a => {}
                0x88 => bail!("closed: {}", String::from_utf8_lossy(&self.input[payload])),
                other => bail!("a frame beginning with {other:#x}"),
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        self.input.drain(..self.read);
        self.read = 0;
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the connection ended");
        }
        Ok(())
    }
}

/// The frame that `bytes` begin with: its first byte, and where its payload is.
fn server_frame(bytes: &[u8]) -> Option<(u8, Range<usize>)> {
    let (start, length) = match *bytes {
        [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize)
        }
        [_, length @ 0..=125, ..] => (2, usize::from(length)),
        _ => return None,
    };
    let end = start + length;
    (bytes.len() >= end).then(|| (bytes[0], start..end))
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    push_frame(out, 0x81, text);
}

/// A masked frame of up to 65535 bytes.
fn push_frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    if payload.len() < 126 {
        out.push(0x80 | payload.len() as u8);
    } else {
        out.push(0x80 | 126);
        out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const UPGRADE: &[u8] = b"GET /xmpp-websocket HTTP/1.1\r\nHost: bench.test\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: xmpp\r\n\r\n";
const OPEN: &str =
    "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" to=\"bench.test\" version=\"1.0\" />";

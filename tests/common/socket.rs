//! A WebSocket (RFC 6455) seen from the client, small enough to do what a library forbids: frames
//! in pieces, without a mask, with wrong bits; the raw bytes; an end without any closing.

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{PATIENCE, Result};

/// Opcodes of RFC 6455 §5.2.
pub mod opcode {
    /// A further fragment of the message begun before.
    pub const CONTINUATION: u8 = 0;
    /// Text.
    pub const TEXT: u8 = 1;
    /// Binary.
    pub const BINARY: u8 = 2;
    /// Close.
    pub const CLOSE: u8 = 8;
    /// Ping.
    pub const PING: u8 = 9;
    /// Pong.
    pub const PONG: u8 = 10;
}

/// What the server sent, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A whole text message.
    Text(String),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping; [`Socket::receive`] has answered it unless told not to.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame: code (`None`: empty payload) and reason.
    Close(Option<u16>, String),
    /// The TCP connection ended; `true` if by a reset.
    Lost(bool),
}

/// An HTTP answer other than 101.
#[derive(Debug)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// Status line and header lines.
    pub head: String,
}

/// An open WebSocket.
pub struct Socket {
    stream: TcpStream,
    read: Vec<u8>,
    message: Vec<u8>,
    message_opcode: u8,
    mask: u32,
    head: String,
    /// Answer pings by themselves (on by default).
    pub answer_pings: bool,
}

impl Socket {
    /// Opens `url` (`ws://address:port/path`) offering the subprotocol `xmpp`.
    pub async fn connect(url: &str) -> Result<Self> {
        match Self::request(url, "Sec-WebSocket-Protocol: xmpp\r\n").await? {
            Ok(socket) => Ok(socket),
            Err(refused) => bail!("{url} refused the upgrade:\n{}", refused.head),
        }
    }

    /// Sends an upgrade request with `headers` (lines that end in CR LF) beside the necessary ones.
    pub async fn request(url: &str, headers: &str) -> Result<Result<Self, Refused>> {
        let (authority, request) = upgrade(url, headers)?;
        Self::request_raw(authority, request.as_bytes()).await
    }

    /// Opens `url` from a loopback address of one's own choice.
    pub async fn connect_from(address: &str, url: &str) -> Result<Self> {
        let (authority, request) = upgrade(url, "Sec-WebSocket-Protocol: xmpp\r\n")?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{address}:0").parse()?)?;
        let stream = timeout(PATIENCE, socket.connect(authority.parse()?)).await??;
        match Self::request_over(stream, request.as_bytes()).await? {
            Ok(socket) => Ok(socket),
            Err(refused) => bail!("{url} refused the upgrade:\n{}", refused.head),
        }
    }

    /// Sends `request` as it is to `authority` (`address:port`); 101 makes a socket.
    pub async fn request_raw(authority: &str, request: &[u8]) -> Result<Result<Self, Refused>> {
        let stream = timeout(PATIENCE, TcpStream::connect(authority)).await??;
        Self::request_over(stream, request).await
    }

    /// The same over a connection that stands.
    pub async fn request_over(
        mut stream: TcpStream,
        request: &[u8],
    ) -> Result<Result<Self, Refused>> {
        stream.set_nodelay(true)?;
        stream.write_all(request).await?;
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if timeout(PATIENCE, stream.read_buf(&mut read)).await?? == 0 {
                bail!("closed in the HTTP answer: {:?}", String::from_utf8_lossy(&read));
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        read.drain(..end);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("not an HTTP answer: {head}"))?;
        if status != 101 {
            return Ok(Err(Refused { status, head }));
        }
        Ok(Ok(Self {
            stream,
            read,
            message: Vec::new(),
            message_opcode: 0,
            mask: 0x9E37_79B9,
            head,
            answer_pings: true,
        }))
    }

    /// Status line and header lines of the 101.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The value of a header of the 101.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (left, right) = line.split_once(':')?;
            left.eq_ignore_ascii_case(name).then(|| right.trim())
        })
    }

    /// Sends a text message in one frame.
    pub async fn send_text(&mut self, text: &str) -> Result {
        self.send_frame(true, opcode::TEXT, text.as_bytes()).await
    }

    /// Sends a text message in frames of `size` bytes.
    pub async fn send_fragments(&mut self, text: &str, size: usize) -> Result {
        let mut chunks = text.as_bytes().chunks(size).peekable();
        let mut code = opcode::TEXT;
        while let Some(chunk) = chunks.next() {
            self.send_frame(chunks.peek().is_none(), code, chunk).await?;
            code = opcode::CONTINUATION;
        }
        Ok(())
    }

    /// Sends a close frame.
    pub async fn send_close(&mut self, code: u16) -> Result {
        self.send_frame(true, opcode::CLOSE, &code.to_be_bytes()).await
    }

    /// Sends one masked frame.
    pub async fn send_frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) -> Result {
        self.mask = self.mask.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let frame = frame(fin, opcode, payload, Some(self.mask.to_be_bytes()));
        self.send_raw(&frame).await
    }

    /// Sends bytes that may be no frame at all.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result {
        timeout(PATIENCE, self.stream.write_all(bytes))
            .await
            .context("the socket took nothing")??;
        Ok(())
    }

    /// The next message, control frame, or end; waits [`PATIENCE`].
    pub async fn receive(&mut self) -> Result<Received> {
        let patience = timeout(PATIENCE, self.receive_patiently());
        patience.await.with_context(|| format!("nothing came for {PATIENCE:?}"))?
    }

    /// [`Socket::receive`] without an end to the waiting. Loses nothing if it is cancelled.
    pub async fn receive_patiently(&mut self) -> Result<Received> {
        loop {
            let Some((fin, code, payload)) = self.take_frame()? else {
                match self.stream.read_buf(&mut self.read).await {
                    Ok(0) => return Ok(Received::Lost(false)),
                    Ok(_) => continue,
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                        return Ok(Received::Lost(true));
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            match code {
                opcode::PING => {
                    if self.answer_pings {
                        self.send_frame(true, opcode::PONG, &payload).await?;
                    }
                    return Ok(Received::Ping(payload));
                }
                opcode::PONG => return Ok(Received::Pong(payload)),
                opcode::CLOSE => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    let reason = payload.get(2..).unwrap_or_default();
                    return Ok(Received::Close(code, String::from_utf8(reason.to_vec())?));
                }
                opcode::CONTINUATION if self.message_opcode == 0 => bail!("a stray continuation"),
                opcode::CONTINUATION => {}
                opcode::TEXT | opcode::BINARY if self.message_opcode == 0 => {
                    self.message_opcode = code;
                }
                _ => bail!("unexpected opcode {code}"),
            }
            self.message.extend_from_slice(&payload);
            if fin {
                let message = std::mem::take(&mut self.message);
                return Ok(match std::mem::take(&mut self.message_opcode) {
                    opcode::TEXT => Received::Text(String::from_utf8(message)?),
                    _ => Received::Binary(message),
                });
            }
        }
    }

    /// Shuts the write side (TCP FIN) without a close frame; reading goes on.
    pub async fn shut_write(&mut self) -> Result {
        Ok(self.stream.shutdown().await?)
    }

    /// Ends the TCP connection by a reset, as a network that went away looks in the end.
    pub fn cut(self) -> Result {
        Ok(self.stream.set_zero_linger()?)
    }

    /// Takes one whole frame off what was read.
    fn take_frame(&mut self) -> Result<Option<(bool, u8, Vec<u8>)>> {
        let Some(&[first, second]) = self.read.first_chunk() else { return Ok(None) };
        if first & 0x70 != 0 {
            bail!("the server set a reserved bit");
        }
        if second & 0x80 != 0 {
            bail!("the server masked a frame (RFC 6455 §5.1)");
        }
        let rest = &self.read[2..];
        let (length, head) = match second {
            126 => match rest.first_chunk() {
                Some(bytes) => (usize::from(u16::from_be_bytes(*bytes)), 4),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(bytes) => (usize::try_from(u64::from_be_bytes(*bytes))?, 10),
                None => return Ok(None),
            },
            short => (usize::from(short), 2),
        };
        if self.read.len() < head + length {
            return Ok(None);
        }
        let payload = self.read[head..head + length].to_vec();
        self.read.drain(..head + length);
        Ok(Some((first & 0x80 != 0, first & 0x0f, payload)))
    }
}

/// The bytes of one frame; `mask` as a client must, `None` as a client must not.
pub fn frame(fin: bool, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = vec![u8::from(fin) << 7 | opcode];
    let masked = u8::from(mask.is_some()) << 7;
    match payload.len() {
        length @ 0..=125 => out.push(masked | length as u8),
        length @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    match mask {
        None => out.extend_from_slice(payload),
        Some(mask) => {
            out.extend_from_slice(&mask);
            out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
    }
    out
}

/// The authority of a URL `ws://address:port/path`, and the upgrade request for it.
fn upgrade<'a>(url: &'a str, headers: &str) -> Result<(&'a str, String)> {
    let rest = url.strip_prefix("ws://").with_context(|| format!("not a ws: URL: {url}"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{headers}\r\n"
    );
    Ok((authority, request))
}

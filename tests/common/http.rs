//! HTTP/1.1 (RFC 9112) seen from the client, small enough to do what a library forbids: requests in
//! pieces, two at a time, cut at any byte; answers read by the byte.

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{PATIENCE, Result};

/// `http://authority/path`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `address:port`
    pub authority: String,
    /// With its leading slash.
    pub path: String,
}

impl Url {
    /// Takes an `http:` URL apart.
    pub fn parse(url: &str) -> Result<Self> {
        let rest =
            url.strip_prefix("http://").with_context(|| format!("not an http: URL: {url}"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self { authority: authority.to_owned(), path: format!("/{path}") })
    }

    /// A POST of HTTP/1.1 with that body and further header lines, each of which ends in CR LF.
    pub fn post(&self, headers: &str, body: &str) -> Vec<u8> {
        self.request("POST", &format!("Content-Length: {}\r\n{headers}", body.len()), body)
    }

    /// A POST whose body comes in chunks of that many bytes (RFC 9112 §7.1).
    pub fn post_chunked(&self, headers: &str, body: &str, size: usize) -> Vec<u8> {
        let mut chunked = String::new();
        for chunk in body.as_bytes().chunks(size) {
            chunked += &format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
        }
        chunked += "0\r\n\r\n";
        self.request("POST", &format!("Transfer-Encoding: chunked\r\n{headers}"), &chunked)
    }

    /// Any request, with exactly these header lines beside `Host`.
    pub fn request(&self, method: &str, headers: &str, body: &str) -> Vec<u8> {
        let Self { authority, path } = self;
        format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{headers}\r\n{body}").into_bytes()
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and header lines.
    pub head: String,
    /// The content, without its transfer coding.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The content as text.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body).context("an answer that is not UTF-8")
    }
}

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// By a TCP reset: what the other side has not read yet is gone.
    Reset,
    /// By the end of both directions (FIN): what was sent can still be read.
    Fin,
}

/// One TCP connection to an HTTP server.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Connects to `address:port`.
    pub async fn open(authority: &str) -> Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(authority)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// The same from a loopback address of one's own choice.
    pub async fn open_from(address: &str, authority: &str) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{address}:0").parse()?)?;
        let stream = timeout(PATIENCE, socket.connect(authority.parse()?)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Sends bytes that may be half a request, or two.
    pub async fn send(&mut self, bytes: &[u8]) -> Result {
        let sending = timeout(PATIENCE, self.stream.write_all(bytes)).await;
        sending.context("the socket took nothing")??;
        Ok(())
    }

    /// The next answer (1xx ones too); `None` at the end of the connection, wherever in an answer
    /// that is. Waits without end and loses nothing if it is cancelled.
    pub async fn answer(&mut self) -> Result<Option<Answer>> {
        self.answer_to("POST").await
    }

    /// The next answer, at most [`PATIENCE`] away.
    pub async fn prompt_answer(&mut self) -> Result<Answer> {
        let answer = timeout(PATIENCE, self.answer()).await;
        answer
            .with_context(|| format!("no answer for {PATIENCE:?}; so far {:?}", self.unread()))??
            .with_context(|| format!("no answer but the end; so far {:?}", self.unread()))
    }

    /// The next answer to a request of this method: one to HEAD has no content, whatever it says.
    pub async fn answer_to(&mut self, method: &str) -> Result<Option<Answer>> {
        loop {
            if let Some((answer, length)) = parse(&self.read, method, false)? {
                self.read.drain(..length);
                return Ok(Some(answer));
            }
            if !self.more().await? {
                let last = parse(&self.read, method, true)?;
                return Ok(last.map(|(answer, length)| {
                    self.read.drain(..length);
                    answer
                }));
            }
        }
    }

    /// Reads until `count` bytes are there, or a whole answer, or the end.
    pub async fn taste(&mut self, count: usize) -> Result {
        while self.read.len() < count && parse(&self.read, "POST", false)?.is_none() {
            if !self.more().await? {
                break;
            }
        }
        Ok(())
    }

    /// Reads to the end of the connection, at most [`PATIENCE`]; what came and was not taken.
    pub async fn remainder(mut self) -> Result<Vec<u8>> {
        let reading = async {
            while self.more().await? {}
            anyhow::Ok(())
        };
        timeout(PATIENCE, reading).await.context("the connection was not closed")??;
        Ok(self.read)
    }

    /// What came and was not taken.
    pub fn unread(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Ends the connection.
    pub fn cut(self, cut: Cut) -> Result {
        match cut {
            Cut::Reset => Ok(self.stream.set_zero_linger()?),
            Cut::Fin => Ok(()),
        }
    }

    /// Ends the sending direction only.
    pub async fn shut(&mut self) -> Result {
        Ok(self.stream.shutdown().await?)
    }

    /// `false` at the end; a reset is one.
    async fn more(&mut self) -> Result<bool> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The first answer in `bytes` and its length; `ended` says that nothing will follow.
fn parse(bytes: &[u8], method: &str, ended: bool) -> Result<Option<(Answer, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let start = end + 4;
    let head = String::from_utf8(bytes[..start].to_vec())?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u16 = status.with_context(|| format!("not an HTTP answer: {head}"))?;
    let whole =
        |body: Vec<u8>, length| Ok(Some((Answer { status, head: head.clone(), body }, length)));
    if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
        return whole(Vec::new(), start);
    }
    if header(&head, "Transfer-Encoding").is_some() {
        return match unchunked(&bytes[start..])? {
            Some((body, length)) => whole(body, start + length),
            None => Ok(None),
        };
    }
    match header(&head, "Content-Length") {
        Some(length) => {
            let length: usize = length.parse().with_context(|| format!("bad length: {head}"))?;
            match bytes.get(start..start + length) {
                Some(body) => whole(body.to_vec(), start + length),
                None => Ok(None),
            }
        }
        None if ended => whole(bytes[start..].to_vec(), bytes.len()),
        None => Ok(None),
    }
}

/// RFC 9112 §7.1 without trailers: the content and how many bytes it took.
fn unchunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = bytes[at..].windows(2).position(|window| window == b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&bytes[at..at + line])?;
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { bail!("bad chunk: {size:?}") };
        at += line + 2;
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (left, right) = line.split_once(':')?;
        left.eq_ignore_ascii_case(name).then(|| right.trim())
    })
}

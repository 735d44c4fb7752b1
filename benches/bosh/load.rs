//! The clients: XMPP over BOSH (XEP-0124, XEP-0206) as a browser's library would speak it, in as
//! few instructions as that takes. Two keep-alive connections; whenever a session is idle one
//! request is held.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::orders::{self, AUTH, BIND, ID, id, stanza};

pub(crate) struct Client {
    target: SocketAddr,
    number: u32,
    connections: [Option<Connection>; 2],
    /// Connections with an open request, the oldest first. Answers come in that order.
    open: Vec<usize>,
    sid: String,
    rid: u64,
    out: Vec<u8>,
    /// How many stanzas were sent, and how many HTTP requests.
    sent: usize,
    requests: u64,
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
}

impl orders::Client for Client {
    async fn open(target: SocketAddr, number: u32) -> anyhow::Result<Self> {
        let mut client = Self {
            target,
            number,
            connections: [None, None],
            open: Vec::new(),
            sid: String::new(),
            rid: FIRST_RID,
            out: Vec::new(),
            sent: 0,
            requests: 0,
        };
        client.log_in().await.context("login")?;
        // From here on one request is held whenever the session is idle, so that what it says goes
        // over the other connection.
        client.send("", b"").await?;
        Ok(client)
    }

    async fn echo(mut self, in_flight: usize, bursts: usize) -> anyhow::Result<(Self, u64)> {
        let before = self.requests;
        let mut stanza = stanza();
        let mut payload = Vec::with_capacity(in_flight * stanza.len());
        for _ in 0..bursts {
            let first = self.sent;
            payload.clear();
            for _ in 0..in_flight {
                stanza[ID].copy_from_slice(&id(self.sent));
                payload.extend_from_slice(&stanza);
                self.sent += 1;
            }
            self.send("", &payload).await?;
            let mut next = first;
            while next < self.sent {
                if self.open.is_empty() {
                    // All answered, and echoes are still due: a client polls.
                    self.send("", b"").await?;
                }
                let answer = self.answer().await?;
                let mut rest = &answer[..];
                while let Some(at) = memmem::find(rest, b"<message") {
                    rest = &rest[at + 8..];
                    let end = memmem::find(rest, b"<body>").context("a message without a body")?;
                    if memmem::find(&rest[..end], &id(next)).is_none() {
                        bail!("not echo {next} but {}", String::from_utf8_lossy(rest));
                    }
                    next += 1;
                }
            }
        }
        if self.open.is_empty() {
            self.send("", b"").await?;
        }
        let requests = self.requests - before;
        self.out = Vec::new();
        Ok((self, requests))
    }

    fn close_spare(&mut self) {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            if !self.open.contains(&index) {
                *connection = None;
            }
        }
    }
}

impl Client {
    async fn log_in(&mut self) -> anyhow::Result<()> {
        let answer = self.ask(CREATE, "", "PLAIN").await?;
        let at = memmem::find(&answer, b" sid='").context("no sid")? + 6;
        let length = memchr::memchr(b'\'', &answer[at..]).context("a sid without end")?;
        self.sid = String::from_utf8(answer[at..at + length].to_vec())?;
        self.ask("", AUTH, "<success").await?;
        self.ask(RESTART, "", "urn:ietf:params:xml:ns:xmpp-bind").await?;
        self.ask("", BIND, "<jid>").await?;
        Ok(())
    }

    /// Sends a request and takes answers until one has something in it.
    async fn ask(
        &mut self,
        attributes: &str,
        payload: &str,
        expected: &str,
    ) -> anyhow::Result<Vec<u8>> {
        self.send(attributes, payload.as_bytes()).await?;
        for _ in 0..3 {
            if self.open.is_empty() {
                self.send("", b"").await?;
            }
            let answer = self.answer().await?;
            if memmem::find(&answer, expected.as_bytes()).is_some() {
                return Ok(answer);
            }
        }
        bail!("no {expected:?}");
    }

    /// Sends a request on a connection that is free.
    async fn send(&mut self, attributes: &str, payload: &[u8]) -> anyhow::Result<()> {
        let index = (0..2).find(|index| !self.open.contains(index));
        let index = index.context("two requests are open already")?;
        let mut body = Vec::with_capacity(payload.len() + 256);
        body.extend_from_slice(b"<body xmlns='http://jabber.org/protocol/httpbind' rid='");
        body.extend_from_slice(self.rid.to_string().as_bytes());
        body.push(b'\'');
        if !self.sid.is_empty() {
            body.extend_from_slice(b" sid='");
            body.extend_from_slice(self.sid.as_bytes());
            body.push(b'\'');
        }
        body.extend_from_slice(attributes.as_bytes());
        body.push(b'>');
        body.extend_from_slice(payload);
        body.extend_from_slice(b"</body>");
        self.out.clear();
        self.out.extend_from_slice(HEAD.as_bytes());
        self.out.extend_from_slice(body.len().to_string().as_bytes());
        self.out.extend_from_slice(b"\r\n\r\n");
        self.out.extend_from_slice(&body);
        if self.connections[index].is_none() {
            let stream = orders::connect(self.target, self.number).await?;
            self.connections[index] = Some(Connection { stream, input: Vec::new() });
        }
        let connection = self.connections[index].as_mut().context("connected above")?;
        connection.stream.write_all(&self.out).await?;
        self.open.push(index);
        self.rid += 1;
        self.requests += 1;
        Ok(())
    }

    /// The answer to the oldest open request.
    async fn answer(&mut self) -> anyhow::Result<Vec<u8>> {
        if self.open.is_empty() {
            bail!("no request is open");
        }
        let index = self.open.remove(0);
        let connection = self.connections[index].as_mut().context("an open request")?;
        let answer = connection.answer().await?;
        if memmem::find(&answer[..answer.len().min(300)], b"type='terminate'").is_some() {
            bail!("the session ended: {}", String::from_utf8_lossy(&answer));
        }
        Ok(answer)
    }
}

impl Connection {
    /// The body of one HTTP response.
    async fn answer(&mut self) -> anyhow::Result<Vec<u8>> {
        let head = loop {
            if let Some(at) = memmem::find(&self.input, b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let text = String::from_utf8_lossy(&self.input[..head]).to_ascii_lowercase();
        if !text.starts_with("http/1.1 200 ") {
            bail!("refused: {}", String::from_utf8_lossy(&self.input));
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("no Content-Length")?.trim().parse()?;
        while self.input.len() < head + length {
            self.more().await?;
        }
        let body = self.input[head..head + length].to_vec();
        self.input.drain(..head + length);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(body)
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the connection ended");
        }
        Ok(())
    }
}

const FIRST_RID: u64 = 1_573_741_820;
const HEAD: &str = "POST /http-bind HTTP/1.1\r\nHost: bench.test\r\nContent-Type: text/xml; charset=utf-8\r\n\
    Content-Length: ";
const CREATE: &str = " to='bench.test' wait='55' hold='1' ver='1.11' xml:lang='en' xmpp:version='1.0' \
    xmlns:xmpp='urn:xmpp:xbosh'";
const RESTART: &str = " to='bench.test' xmpp:restart='true' xmlns:xmpp='urn:xmpp:xbosh'";

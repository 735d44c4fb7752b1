//! The server: just enough XMPP for a login, then every message comes back. It speaks c2s for the
//! gateway and WebSocket for the relay, and writes all echoes of one read at once.

use std::io;
use std::io::Read as _;
use std::ops::Range;

use bosphorus::proto::frame::{self, FrameEvent, FrameLimits, FrameReader};
use bosphorus::proto::handshake::{self, Settings, Verdict, Version};
use bosphorus::proto::origins::Origins;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Prints its two ports, c2s and WebSocket, and serves until standard input ends.
pub(crate) fn run() -> anyhow::Result<()> {
    end_with_stdin();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let c2s = TcpListener::bind("127.0.0.1:0").await?;
        let ws = TcpListener::bind("127.0.0.1:0").await?;
        println!("{} {}", c2s.local_addr()?.port(), ws.local_addr()?.port());
        loop {
            tokio::select! {
                accepted = c2s.accept() => tokio::spawn(serve_c2s(accepted?.0)),
                accepted = ws.accept() => tokio::spawn(serve_ws(accepted?.0)),
            };
        }
    })
}

/// Ends the process when whoever started it is gone.
pub(crate) fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Opening,
    Authenticating,
    Reopening,
    Binding,
    Echoing,
}

async fn serve_c2s(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stage = Stage::Opening;
    let mut input = Vec::with_capacity(4096);
    let mut out = Vec::new();
    while stream.read_buf(&mut input).await? > 0 {
        let mut used = 0;
        let mut ended = false;
        while let Some(taken) = c2s_item(&input[used..], &mut stage, &mut out, &mut ended) {
            used += taken;
        }
        input.drain(..used);
        stream.write_all(&out).await?;
        out.clear();
        if ended {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

/// Answers the first thing in `input` and returns how many bytes it was; `None` if it is not all
/// there.
fn c2s_item(input: &[u8], stage: &mut Stage, out: &mut Vec<u8>, ended: &mut bool) -> Option<usize> {
    // An XML declaration, blanks.
    let start = memchr::memchr(b'<', input)?;
    let input_here = &input[start..];
    let through = |end: &[u8]| memmem::find(input_here, end).map(|at| at + end.len());
    if input_here.starts_with(b"</stream:stream>") {
        *ended = true;
        out.extend_from_slice(b"</stream:stream>");
        return Some(start + 16);
    }
    if input_here.starts_with(b"<?") {
        return Some(start + through(b"?>")?);
    }
    let taken = match stage {
        Stage::Opening | Stage::Reopening => {
            let taken = through(b">")?;
            out.extend_from_slice(HEADER);
            out.extend_from_slice(features(*stage).as_bytes());
            taken
        }
        Stage::Authenticating => {
            let taken = through(b"</auth>")?;
            out.extend_from_slice(SUCCESS.as_bytes());
            taken
        }
        Stage::Binding => {
            let taken = through(b"</iq>")?;
            out.extend_from_slice(bound(&input_here[..taken]).as_bytes());
            taken
        }
        Stage::Echoing => {
            let taken = through(b"</message>")?;
            // As servers write stanzas, with their stream's default namespace. It is for the
            // gateway to make them whole again (WS-15).
            let message = &input_here[..taken];
            match memmem::find(&message[..taken.min(200)], DEFAULT_NAMESPACE) {
                Some(at) => {
                    out.extend_from_slice(&message[..at]);
                    out.extend_from_slice(&message[at + DEFAULT_NAMESPACE.len()..]);
                }
                None => out.extend_from_slice(message),
            }
            taken
        }
    };
    *stage = stage.next();
    Some(start + taken)
}

impl Stage {
    fn next(self) -> Self {
        match self {
            Self::Opening => Self::Authenticating,
            Self::Authenticating => Self::Reopening,
            Self::Reopening => Self::Binding,
            Self::Binding | Self::Echoing => Self::Echoing,
        }
    }
}

async fn serve_ws(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::with_capacity(4096);
    let head = loop {
        if let Some(at) = memmem::find(&input, b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    };
    let mut out = upgraded(&input[..head])?;
    input.drain(..head);

    let mut reader = FrameReader::new(FrameLimits { message_bytes: 1 << 18, fragments: 64 });
    let mut stage = Stage::Opening;
    loop {
        let mut bytes = input.as_mut_slice();
        let mut ended = false;
        while let Some(event) = reader.next(&mut bytes).map_err(io::Error::other)? {
            match event {
                FrameEvent::Text(text) => ws_item(text, &mut stage, &mut out),
                FrameEvent::Ping(payload) => frame::pong(&mut out, payload),
                FrameEvent::Pong(_) => {}
                FrameEvent::Close { .. } => {
                    frame::close(&mut out, 1000, "");
                    ended = true;
                }
            }
        }
        input.clear();
        stream.write_all(&out).await?;
        out.clear();
        if ended || stream.read_buf(&mut input).await? == 0 {
            return stream.shutdown().await;
        }
    }
}

fn upgraded(head: &[u8]) -> io::Result<Vec<u8>> {
    let head = String::from_utf8_lossy(head);
    let headers = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name, value.as_bytes()));
    let settings =
        Settings { require_subprotocol: true, require_origin: false, origins: Origins::Any };
    match handshake::judge("GET", Version::Http11, headers, &settings) {
        Verdict::Accept { accept_key, protocol } => {
            Ok(handshake::switching_protocols(&accept_key, protocol))
        }
        Verdict::Refuse(_, answer) | Verdict::Plain(answer) => Err(io::Error::other(answer.text)),
    }
}

fn ws_item(text: &[u8], stage: &mut Stage, out: &mut Vec<u8>) {
    if text.starts_with(b"<close") {
        return send(out, &[CLOSE]);
    }
    match stage {
        Stage::Opening | Stage::Reopening => {
            send(out, &[OPEN]);
            let features = features(*stage).replace("<stream:features", STREAM_FEATURES);
            send(out, &[features.as_bytes()]);
        }
        Stage::Authenticating => send(out, &[SUCCESS.as_bytes()]),
        Stage::Binding => send(out, &[bound(text).as_bytes()]),
        Stage::Echoing => send(out, &[text]),
    }
    *stage = stage.next();
}

fn send(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let mark = frame::begin_text(out);
    for part in parts {
        out.extend_from_slice(part);
    }
    frame::end_text(out, mark);
}

fn features(stage: Stage) -> &'static str {
    if stage == Stage::Opening {
        "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
         <mechanism>PLAIN</mechanism></mechanisms></stream:features>"
    } else {
        "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>"
    }
}

fn bound(request: &[u8]) -> String {
    let id = attribute(request, b" id=").map_or(&b""[..], |range| &request[range]);
    format!(
        "<iq xmlns='jabber:client' type='result' id='{}'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
         <jid>bench@bench.test/load</jid></bind></iq>",
        String::from_utf8_lossy(id)
    )
}

/// Where an attribute's value is; `name` with blank and equals sign.
fn attribute(element: &[u8], name: &[u8]) -> Option<Range<usize>> {
    let start = memmem::find(element, name)? + name.len();
    let quote = *element.get(start)?;
    let length = memchr::memchr(quote, &element[start + 1..])?;
    Some(start + 1..start + 1 + length)
}

const DEFAULT_NAMESPACE: &[u8] = b" xmlns=\"jabber:client\"";
const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='bench' from='bench.test' version='1.0'>";
const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
const OPEN: &[u8] = b"<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" id=\"bench\" from=\"bench.test\" version=\"1.0\" />";
const CLOSE: &[u8] = b"<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" />";
const STREAM_FEATURES: &str = "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\"";

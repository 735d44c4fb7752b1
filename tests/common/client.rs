//! An XMPP client for tests: one stream over any transport of the table, SASL, resource binding,
//! and XEP-0198 by hand, so that a scenario decides what is acknowledged. It reads only when asked.

use std::collections::VecDeque;
use std::fmt;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use minidom::Element;
use tokio::time::timeout;

use super::bosh::{Bosh, Cuts, Session};
use super::http::Cut;
use super::scram::Scram;
use super::server::Account;
use super::socket::{Received, Socket};
use super::{PATIENCE, Result};

pub use super::scram::Mechanism;

/// XML namespaces.
pub mod ns {
    /// RFC 6120
    pub const CLIENT: &str = "jabber:client";
    /// RFC 6120
    pub const STREAMS: &str = "http://etherx.jabber.org/streams";
    /// RFC 6120
    pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
    /// RFC 6120
    pub const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
    /// RFC 6120
    pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
    /// RFC 6120
    pub const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
    /// RFC 3921
    pub const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
    /// RFC 7395
    pub const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
    /// RFC 6121
    pub const ROSTER: &str = "jabber:iq:roster";
    /// XEP-0198
    pub const SM: &str = "urn:xmpp:sm:3";
    /// XEP-0199
    pub const PING: &str = "urn:xmpp:ping";
}

/// How a stream travels: a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 7395
    Ws,
    /// draft-moffitt-xmpp-over-websocket
    WsLegacy,
    /// XEP-0124, XEP-0206
    Bosh,
}

impl Transport {
    /// All, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Ws, Self::WsLegacy, Self::Bosh];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::WsLegacy => "ws-legacy",
            Self::Bosh => "bosh",
        }
    }
}

/// Where a client connects.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `ws://address:port/path`, for BOSH `http://address:port/path`
    pub url: String,
    /// How to speak there.
    pub transport: Transport,
}

/// How a client may go without having closed its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A TCP reset.
    Reset,
    /// The end of the TCP connection, and nothing before it.
    Fin,
    /// A WebSocket Close frame, as from a browser whose page is left.
    CloseFrame,
}

/// What may come next on a stream.
#[derive(Clone, Debug)]
pub enum Event {
    /// The other side's stream header; in RFC 7395 framing the `<open/>`.
    Open(Element),
    /// A first-level element.
    Element(Element),
    /// The other side closed its stream.
    Close,
    /// The WebSocket was closed with this code.
    Closed(Option<u16>),
    /// The BOSH session was ended, with this condition unless it was a clean end.
    Terminated(Option<String>),
    /// The connection is gone.
    Lost,
}

/// How a stream ended, as the client saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The condition of a `<stream:error/>`, if one came; else that of a BOSH session's end.
    pub condition: Option<String>,
    /// Whether the other side closed its stream (`<close/>`, `</stream:stream>`, `terminate`).
    pub closed: bool,
    /// The WebSocket close code; `None` if the connection was only gone, and over BOSH.
    pub code: Option<u16>,
}

/// The client's counters of XEP-0198.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// `id` of `<enabled/>`.
    pub id: String,
    /// Stanzas sent since `<enable/>`.
    pub sent: u32,
    /// Stanzas received since `<enabled/>`.
    pub handled: u32,
    /// The highest `h` of the server.
    pub acknowledged: u32,
}

/// What carries a stream.
enum Carrier {
    WebSocket(Socket),
    Bosh(Box<Bosh>),
}

/// One client.
pub struct Client {
    carrier: Carrier,
    transport: Transport,
    /// The last `<stream:features/>`.
    pub features: Element,
    /// The full JID, once bound.
    pub jid: String,
    /// Stream management, once enabled.
    pub sm: Option<Counters>,
    /// Whether `<r/>` is answered by itself (on by default).
    pub answer_requests: bool,
    domain: String,
    events: VecDeque<Event>,
    seen: VecDeque<Element>,
    transcript: VecDeque<String>,
    next_id: u32,
}

impl Client {
    /// Connects the transport; nothing of XMPP yet.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let carrier = match endpoint.transport {
            Transport::Bosh => Carrier::Bosh(Box::new(Bosh::new(&endpoint.url)?)),
            Transport::Ws | Transport::WsLegacy => {
                let socket = Socket::connect(&endpoint.url).await?;
                if socket.header("Sec-WebSocket-Protocol") != Some("xmpp") {
                    bail!("WS-02: the subprotocol is not `xmpp`:\n{}", socket.head());
                }
                Carrier::WebSocket(socket)
            }
        };
        Ok(Self::of(carrier, endpoint.transport))
    }

    /// A client over a WebSocket that stands, in the framing of RFC 7395.
    pub fn over(socket: Socket) -> Self {
        Self::of(Carrier::WebSocket(socket), Transport::Ws)
    }

    fn of(carrier: Carrier, transport: Transport) -> Self {
        Self {
            carrier,
            transport,
            features: Element::bare("features", ns::STREAMS),
            jid: String::new(),
            sm: None,
            answer_requests: true,
            domain: String::new(),
            events: VecDeque::new(),
            seen: VecDeque::new(),
            transcript: VecDeque::new(),
            next_id: 0,
        }
    }

    /// Connects, logs in with SCRAM-SHA-1, binds a resource.
    pub async fn login(endpoint: &Endpoint, account: &Account) -> Result<Self> {
        Self::login_with(endpoint, account, Mechanism::ScramSha1).await
    }

    /// Connects, logs in, binds a resource.
    pub async fn login_with(
        endpoint: &Endpoint,
        account: &Account,
        mechanism: Mechanism,
    ) -> Result<Self> {
        let mut client = Self::authenticated(endpoint, account, mechanism).await?;
        client.bind(None).await?;
        Ok(client)
    }

    /// Connects and logs in; the stream is restarted and nothing is bound, as a resume wants it.
    pub async fn authenticated(
        endpoint: &Endpoint,
        account: &Account,
        mechanism: Mechanism,
    ) -> Result<Self> {
        let mut client = Self::connect(endpoint).await?;
        client.open(&account.domain).await?;
        client
            .authenticate(mechanism, &account.name, &account.password)
            .await?
            .map_err(|condition| anyhow!("{} failed: {condition}", mechanism.name()))?;
        client.open(&account.domain).await?;
        Ok(client)
    }

    /// [`Client::login`], and available: its own presence has come back. As RFC 6121 §2.2 advises
    /// it asks for the roster first, without which it is told of no subscriptions.
    pub async fn online(endpoint: &Endpoint, account: &Account) -> Result<Self> {
        let mut client = Self::login(endpoint, account).await?;
        client.request("get", None, &format!("<query xmlns=\"{}\"/>", ns::ROSTER)).await?;
        client.available().await?;
        Ok(client)
    }

    /// Opens (or restarts) the stream and waits for its header and features.
    pub async fn open(&mut self, domain: &str) -> Result {
        self.send_open(domain).await?;
        match self.event().await? {
            Event::Open(header) => {
                // WS-23, WSL-14: what a client relies on in the answering header.
                for attribute in ["id", "from", "version"] {
                    header
                        .attr(attribute)
                        .with_context(|| format!("no `{attribute}` in the header"))?;
                }
            }
            other => return Err(self.unexpected("the stream header", &other)),
        }
        self.features =
            self.expect("features", |element| element.is("features", ns::STREAMS)).await?;
        Ok(())
    }

    /// Sends a stream header without waiting for anything; over BOSH the creation of a session, or
    /// a restart.
    pub async fn send_open(&mut self, domain: &str) -> Result {
        self.domain = domain.to_owned();
        self.make_room().await?;
        if let Carrier::Bosh(bosh) = &mut self.carrier {
            let header = bosh.send_open(domain).await?;
            self.events.extend(header);
            self.note(">", "(open)");
            return Ok(());
        }
        let header = match self.transport {
            Transport::Ws => format!(
                "<open xmlns=\"{}\" to=\"{domain}\" version=\"1.0\" xml:lang=\"en\"/>",
                ns::FRAMING
            ),
            _ => format!(
                "<stream:stream xmlns=\"jabber:client\" xmlns:stream=\"{}\" to=\"{domain}\" \
                 version=\"1.0\" xml:lang=\"en\">",
                ns::STREAMS
            ),
        };
        self.send(&header).await
    }

    /// SASL; `Ok(Err(condition))` is the server's refusal, after which the stream goes on.
    pub async fn authenticate(
        &mut self,
        mechanism: Mechanism,
        name: &str,
        password: &str,
    ) -> Result<Result<(), String>> {
        let offered = self.mechanisms();
        if !offered.iter().any(|offer| offer == mechanism.name()) {
            bail!("{} is not offered, only {offered:?}", mechanism.name());
        }
        let mut scram = match mechanism {
            Mechanism::Plain => None,
            _ => Some(Scram::new(mechanism, name, password)?),
        };
        let initial = match &scram {
            None => format!("\0{name}\0{password}"),
            Some(scram) => scram.first(),
        };
        let auth = format!(
            "<auth xmlns=\"{}\" mechanism=\"{}\">{}</auth>",
            ns::SASL,
            mechanism.name(),
            BASE64_STANDARD.encode(initial)
        );
        self.send(&auth).await?;
        loop {
            let answer = self.expect("a SASL answer", |element| element.has_ns(ns::SASL)).await?;
            let data = String::from_utf8(BASE64_STANDARD.decode(answer.text().trim())?)?;
            match answer.name() {
                "challenge" => {
                    let scram = scram.as_mut().context("PLAIN has no challenges")?;
                    let response = match data.starts_with("v=") {
                        // Some servers send the signature as a challenge.
                        true => scram.verify(&data).map(|()| String::new())?,
                        false => BASE64_STANDARD.encode(scram.answer(&data)?),
                    };
                    let xmlns = ns::SASL;
                    self.send(&format!("<response xmlns=\"{xmlns}\">{response}</response>"))
                        .await?;
                }
                "success" => {
                    if let Some(scram) = scram.filter(|_| !data.is_empty()) {
                        scram.verify(&data)?;
                    }
                    return Ok(Ok(()));
                }
                "failure" => {
                    let condition = answer.children().find(|child| child.name() != "text");
                    return Ok(Err(condition.map_or_else(String::new, |it| it.name().to_owned())));
                }
                other => bail!("unexpected <{other}/> in SASL"),
            }
        }
    }

    /// The last features as text.
    pub fn features_text(&self) -> String {
        text_of(&self.features)
    }

    /// SASL mechanisms of the last features.
    pub fn mechanisms(&self) -> Vec<String> {
        let list = self.features.get_child("mechanisms", ns::SASL);
        list.map(|list| list.children().map(Element::text).collect()).unwrap_or_default()
    }

    /// Binds a resource (the server's choice if `None`), and opens the session of RFC 3921 where
    /// the server offers it.
    pub async fn bind(&mut self, resource: Option<&str>) -> Result {
        self.features.get_child("bind", ns::BIND).context("no <bind/> offered")?;
        let inner = match resource {
            Some(resource) => format!("<resource>{resource}</resource>"),
            None => String::new(),
        };
        let bind = format!("<bind xmlns=\"{}\">{inner}</bind>", ns::BIND);
        let result = self.request("set", None, &bind).await?;
        let jid =
            result.get_child("bind", ns::BIND).and_then(|bind| bind.get_child("jid", ns::BIND));
        self.jid = jid.context("no <jid/> in the bind result")?.text();
        if self.features.has_child("session", ns::SESSION) {
            self.request("set", None, &format!("<session xmlns=\"{}\"/>", ns::SESSION)).await?;
        }
        Ok(())
    }

    /// Sends initial presence and waits until the server has reflected it.
    pub async fn available(&mut self) -> Result {
        self.send("<presence xmlns=\"jabber:client\"/>").await?;
        let jid = self.jid.clone();
        self.expect("the own presence", |element| {
            element.is("presence", ns::CLIENT) && element.attr("from") == Some(&jid)
        })
        .await?;
        Ok(())
    }

    /// Sends an iq and waits for its result; an error answer is an `Err`.
    pub async fn request(
        &mut self,
        kind: &str,
        to: Option<&str>,
        payload: &str,
    ) -> Result<Element> {
        let answer = self.request_any(kind, to, payload).await?;
        if answer.attr("type") != Some("result") {
            bail!("the iq was refused: {}", text_of(&answer));
        }
        Ok(answer)
    }

    /// Sends an iq and waits for its answer, result or error.
    pub async fn request_any(
        &mut self,
        kind: &str,
        to: Option<&str>,
        payload: &str,
    ) -> Result<Element> {
        let id = self.id();
        let to = to.map(|to| format!(" to=\"{}\"", escape(to))).unwrap_or_default();
        self.send(&format!(
            "<iq xmlns=\"jabber:client\" type=\"{kind}\" id=\"{id}\"{to}>{payload}</iq>"
        ))
        .await?;
        self.expect("the answer to an iq", |element| {
            element.is("iq", ns::CLIENT)
                && element.attr("id") == Some(&id)
                && matches!(element.attr("type"), Some("result" | "error"))
        })
        .await
    }

    /// Sends a chat message with that text.
    pub async fn message(&mut self, to: &str, body: &str) -> Result {
        let (id, to, body) = (self.id(), escape(to), escape(body));
        self.send(&format!(
            "<message xmlns=\"jabber:client\" type=\"chat\" id=\"{id}\" to=\"{to}\">\
             <body>{body}</body></message>"
        ))
        .await
    }

    /// Waits for a message with a body and returns the body; messages without one are passed over.
    pub async fn body(&mut self) -> Result<String> {
        let message = self.expect("a message with a body", |element| body_of(element).is_some());
        body_of(&message.await?).context("a body was seen")
    }

    /// An id that this client has not used.
    pub fn id(&mut self) -> String {
        self.next_id += 1;
        format!("t{}", self.next_id)
    }

    /// Sends one message of the transport, or one BOSH payload, as it is.
    pub async fn send(&mut self, xml: &str) -> Result {
        self.note(">", xml);
        let is_stanza = ["<message", "<presence", "<iq"].iter().any(|start| xml.starts_with(start));
        if let Some(sm) = self.sm.as_mut().filter(|_| is_stanza) {
            sm.sent = sm.sent.wrapping_add(1);
        }
        self.make_room().await?;
        match &mut self.carrier {
            Carrier::WebSocket(socket) => socket.send_text(xml).await,
            Carrier::Bosh(bosh) => {
                let posted = bosh.post("", xml).await;
                posted.with_context(|| self.transcript())
            }
        }
    }

    /// BOSH: takes answers until another request may be sent. What they bring is kept.
    async fn make_room(&mut self) -> Result {
        let taking = async {
            loop {
                match &mut self.carrier {
                    Carrier::Bosh(bosh) if bosh.open() > 0 && !bosh.has_room() => {}
                    _ => return anyhow::Ok(()),
                }
                self.receive().await?;
            }
        };
        let taken = timeout(PATIENCE, taking).await;
        taken.with_context(|| {
            format!("BOSH-37: no answer for {PATIENCE:?}\n{}", self.transcript())
        })?
    }

    /// BOSH: sends again at once what was cut, for whoever does not read next.
    pub async fn repeat_lost(&mut self) -> Result {
        if let Carrier::Bosh(bosh) = &mut self.carrier
            && !bosh.repeat_lost().await?
        {
            bail!("nobody listens\n{}", self.transcript());
        }
        Ok(())
    }

    /// BOSH: makes sure that a request is open and has arrived at the other side, so that it can
    /// say something; nothing to do over WebSocket.
    pub async fn listen(&mut self) -> Result {
        self.make_room().await?;
        let Carrier::Bosh(bosh) = &mut self.carrier else { return Ok(()) };
        let held = timeout(PATIENCE, bosh.hold()).await;
        let (text, events) = held.context("BOSH-37: no request was answered")??;
        self.note("<", &text);
        self.events.extend(events);
        Ok(())
    }

    /// Reads until an element passes `test`; those that do not are kept for later calls. A stream
    /// error or the end of the stream is an `Err` with the transcript.
    pub async fn expect(&mut self, what: &str, test: impl Fn(&Element) -> bool) -> Result<Element> {
        if let Some(at) = self.seen.iter().position(&test) {
            return self.seen.remove(at).context("the position was just found");
        }
        let reading = async {
            loop {
                match self.event_patiently().await? {
                    Event::Element(element) if test(&element) => return Ok(element),
                    Event::Element(element) if !element.is("error", ns::STREAMS) => {
                        self.seen.push_back(element);
                    }
                    other => return Err(self.unexpected(what, &other)),
                }
            }
        };
        match timeout(PATIENCE, reading).await {
            Ok(result) => result,
            Err(_) => Err(anyhow!("waited {PATIENCE:?} in vain for {what}\n{}", self.transcript())),
        }
    }

    /// Fails if an element that passes `test` was kept, or comes before the server has answered a
    /// ping: whatever it had for us before is here by then.
    pub async fn expect_none(&mut self, what: &str, test: impl Fn(&Element) -> bool) -> Result {
        let domain = self.domain.clone();
        self.request_any("get", Some(&domain), &format!("<ping xmlns=\"{}\"/>", ns::PING)).await?;
        match self.seen.iter().find(|element| test(element)) {
            None => Ok(()),
            Some(element) => bail!("{what}: {}", text_of(element)),
        }
    }

    /// The next event, at most [`PATIENCE`] away.
    pub async fn event(&mut self) -> Result<Event> {
        match timeout(PATIENCE, self.event_patiently()).await {
            Ok(event) => event,
            Err(_) => Err(anyhow!("nothing came for {PATIENCE:?}\n{}", self.transcript())),
        }
    }

    pub async fn event_patiently(&mut self) -> Result<Event> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Event::Element(element) = &event
                    && self.count(element).await?
                {
                    continue;
                }
                return Ok(event);
            }
            self.receive().await?;
        }
    }

    /// Takes what the transport brings next into `events`.
    async fn receive(&mut self) -> Result {
        let (text, events) = match &mut self.carrier {
            Carrier::Bosh(bosh) => bosh.receive_patiently().await?,
            Carrier::WebSocket(socket) => match socket.receive_patiently().await? {
                Received::Text(text) => {
                    let events = self.decode(&text);
                    let events = events.with_context(|| format!("cannot read {text:?}"))?;
                    (text, events)
                }
                Received::Binary(_) => bail!("WS-08: a binary message"),
                Received::Ping(_) | Received::Pong(_) => return Ok(()),
                Received::Close(code, reason) => {
                    (format!("(close {code:?} {reason})"), vec![Event::Closed(code)])
                }
                Received::Lost(reset) => {
                    let text = if reset { "(reset)" } else { "(end)" };
                    (text.to_owned(), vec![Event::Lost])
                }
            },
        };
        self.note("<", &text);
        self.events.extend(events);
        Ok(())
    }

    /// What one message says; several things only in legacy framing.
    fn decode(&self, text: &str) -> Result<Vec<Event>> {
        if text.trim().is_empty() {
            bail!("WS-18: a message of whitespace only");
        }
        let header = match self.transport {
            Transport::Ws | Transport::Bosh => {
                // WS-14, WS-15: a document by itself, with nothing in scope from before.
                let element: Element = text.parse()?;
                return Ok(vec![match element.name() {
                    "open" if element.has_ns(ns::FRAMING) => Event::Open(element),
                    "close" if element.has_ns(ns::FRAMING) => Event::Close,
                    _ => Event::Element(element),
                }]);
            }
            Transport::WsLegacy if text == "</stream:stream>" => return Ok(vec![Event::Close]),
            Transport::WsLegacy => text.starts_with("<stream:stream "),
        };
        if header && !text.ends_with("</stream:stream>") {
            // WSL-04: unclosed, as ours was.
            return Ok(vec![Event::Open(format!("{text}</stream:stream>").parse()?)]);
        }
        if header {
            // WSL-09: a refusal, all of it in one message.
            let document: Element = text.parse()?;
            let children = document.children().cloned().map(Event::Element).collect::<Vec<_>>();
            return Ok([vec![Event::Open(document)], children, vec![Event::Close]].concat());
        }
        // WSL-07: complete by itself, as in RFC 7395 framing.
        Ok(vec![Event::Element(text.parse()?)])
    }

    /// Keeps the counters; `true` if the element was stream management's own business.
    async fn count(&mut self, element: &Element) -> Result<bool> {
        let Some(sm) = self.sm.as_mut() else { return Ok(false) };
        if element.has_ns(ns::CLIENT) {
            sm.handled = sm.handled.wrapping_add(1);
            return Ok(false);
        }
        if element.is("r", ns::SM) {
            if self.answer_requests {
                self.acknowledge().await?;
            }
            return Ok(true);
        }
        if element.is("a", ns::SM) {
            sm.acknowledged = height(element)?;
        }
        Ok(false)
    }

    /// XEP-0198 §3: enables stream management with resumption.
    pub async fn enable(&mut self) -> Result {
        if !self.features.has_child("sm", ns::SM) {
            bail!("stream management is not offered");
        }
        self.send(&format!("<enable xmlns=\"{}\" resume=\"true\"/>", ns::SM)).await?;
        let answer = self
            .expect("<enabled/>", |element| element.has_ns(ns::SM) && element.name() != "r")
            .await?;
        if !answer.is("enabled", ns::SM) || !matches!(answer.attr("resume"), Some("true" | "1")) {
            bail!("not enabled with resumption: {}", text_of(&answer));
        }
        let id = answer.attr("id").context("no id in <enabled/>")?.to_owned();
        self.sm = Some(Counters { id, ..Counters::default() });
        Ok(())
    }

    /// Sends `<a/>` with what was received.
    pub async fn acknowledge(&mut self) -> Result {
        let handled = self.sm.as_ref().context("stream management is not enabled")?.handled;
        self.send(&format!("<a xmlns=\"{}\" h=\"{handled}\"/>", ns::SM)).await
    }

    /// Asks with `<r/>` and returns the `h` of the answer.
    pub async fn request_acknowledgement(&mut self) -> Result<u32> {
        self.send(&format!("<r xmlns=\"{}\"/>", ns::SM)).await?;
        // Servers also acknowledge unasked; the answer is the one that counts all that was sent.
        let sent = self.sm.as_ref().context("stream management is not enabled")?.sent;
        let answer = self
            .expect("<a/>", |element| {
                element.is("a", ns::SM) && height(element).is_ok_and(|height| height >= sent)
            })
            .await?;
        height(&answer)
    }

    /// XEP-0198 §5 on a stream that is authenticated and has nothing bound; `old` are the counters
    /// of the lost one. Returns the server's `h`.
    pub async fn resume(&mut self, old: &Counters, jid: &str) -> Result<u32> {
        self.send(&format!(
            "<resume xmlns=\"{}\" previd=\"{}\" h=\"{}\"/>",
            ns::SM,
            escape(&old.id),
            old.handled
        ))
        .await?;
        let answer = match self.event().await? {
            Event::Element(element) => element,
            other => return Err(self.unexpected("<resumed/>", &other)),
        };
        if !answer.is("resumed", ns::SM) || answer.attr("previd") != Some(&old.id) {
            bail!("not resumed: {}\n{}", text_of(&answer), self.transcript());
        }
        self.jid = jid.to_owned();
        self.sm = Some(old.clone());
        height(&answer)
    }

    /// Closes the stream and waits for the other side's close and the WebSocket's.
    pub async fn quit(mut self) -> Result<Ending> {
        self.close().await?;
        let reading = async {
            let mut ending = Ending::default();
            loop {
                match self.event_patiently().await? {
                    Event::Close => {
                        ending.closed = true;
                        self.close_socket(1000).await?;
                    }
                    Event::Terminated(None) => return Ok(Ending { closed: true, ..ending }),
                    Event::Terminated(Some(condition)) => bail!("{condition} at the end"),
                    Event::Closed(code) => {
                        ending.code = code;
                        return Ok(ending);
                    }
                    Event::Lost => return Ok(ending),
                    Event::Element(element) if element.is("error", ns::STREAMS) => {
                        bail!("a stream error at the end: {}", text_of(&element))
                    }
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, reading).await.context("the close was not answered")?
    }

    /// Reads to the end, without closing anything first, and says what the end was.
    pub async fn ending(&mut self) -> Result<Ending> {
        let mut ending = Ending::default();
        let reading = async {
            loop {
                match self.event_patiently().await? {
                    Event::Element(element) if element.is("error", ns::STREAMS) => {
                        let condition = element.children().find(|child| {
                            child.has_ns(ns::STREAM_ERRORS) && child.name() != "text"
                        });
                        ending.condition = condition.map(|child| child.name().to_owned());
                    }
                    Event::Close => {
                        ending.closed = true;
                        // WS-36: a client answers; whether it is still read does not matter.
                        let _ = self.close().await;
                    }
                    Event::Closed(code) => {
                        ending.code = code;
                        let _ = self.close_socket(code.unwrap_or(1000)).await;
                        return Ok(());
                    }
                    Event::Terminated(condition) => {
                        ending.closed = true;
                        // XEP-0206 §6: the stream error says more than `remote-stream-error`.
                        ending.condition = ending.condition.take().or(condition);
                        return Ok(());
                    }
                    Event::Lost => return Ok(()),
                    _ => {}
                }
            }
        };
        let read: Result<Result, _> = timeout(PATIENCE, reading).await;
        match read {
            Ok(read) => read.map(|()| ending),
            Err(_) => {
                bail!("the stream did not end; so far {ending:?}\n{}", self.transcript())
            }
        }
    }

    /// Closes the stream, whatever is to be read yet.
    async fn close(&mut self) -> Result {
        match self.transport {
            Transport::Ws => {
                self.send("<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\"/>").await
            }
            Transport::WsLegacy => self.send("</stream:stream>").await,
            Transport::Bosh => {
                self.make_room().await?;
                self.note(">", "(terminate)");
                match &mut self.carrier {
                    Carrier::Bosh(bosh) => bosh.terminate().await,
                    Carrier::WebSocket(_) => Ok(()),
                }
            }
        }
    }

    async fn close_socket(&mut self, code: u16) -> Result {
        match &mut self.carrier {
            Carrier::WebSocket(socket) => socket.send_close(code).await,
            Carrier::Bosh(_) => Ok(()),
        }
    }

    /// Ends the connection by a TCP reset: nothing is closed, nothing said. Over BOSH every
    /// connection, and none comes after them.
    pub fn cut(self) -> Result {
        match self.carrier {
            Carrier::WebSocket(socket) => socket.cut(),
            Carrier::Bosh(bosh) => bosh.lose(Cut::Reset),
        }
    }

    /// Ends the connection in that way; the XMPP stream is not closed.
    pub async fn lose(self, loss: Loss) -> Result {
        match (self.carrier, loss) {
            (Carrier::WebSocket(socket), Loss::Reset) => socket.cut(),
            (Carrier::WebSocket(_), Loss::Fin) => Ok(()),
            (Carrier::WebSocket(mut socket), Loss::CloseFrame) => socket.send_close(1001).await,
            (Carrier::Bosh(bosh), Loss::Reset) => bosh.lose(Cut::Reset),
            (Carrier::Bosh(bosh), Loss::Fin) => bosh.lose(Cut::Fin),
            (Carrier::Bosh(_), Loss::CloseFrame) => bail!("BOSH has no Close frame"),
        }
    }

    /// The WebSocket below, for whoever wants to break the rules.
    pub fn socket(&mut self) -> &mut Socket {
        match &mut self.carrier {
            Carrier::WebSocket(socket) => socket,
            Carrier::Bosh(_) => panic!("a BOSH client has no WebSocket"),
        }
    }

    /// BOSH: from now on some of its connections are cut. The cuts so far otherwise.
    pub fn cuts(&mut self) -> Option<&mut Option<Cuts>> {
        match &mut self.carrier {
            Carrier::WebSocket(_) => None,
            Carrier::Bosh(bosh) => Some(&mut bosh.cuts),
        }
    }

    /// BOSH: the session below, once nothing is open, for whoever writes each request.
    pub fn into_session(self) -> Result<Session> {
        match self.carrier {
            Carrier::WebSocket(_) => bail!("no BOSH client"),
            Carrier::Bosh(bosh) => bosh.into_session(),
        }
    }

    /// The last messages of both sides, `>` ours, `<` theirs.
    pub fn transcript(&self) -> String {
        self.transcript.iter().fold(String::from("transcript:"), |all, line| all + "\n  " + line)
    }

    fn note(&mut self, direction: &str, text: &str) {
        const LINES: usize = 40;
        const WIDTH: usize = 400;
        if self.transcript.len() == LINES {
            self.transcript.pop_front();
        }
        let mut line: String = text.chars().take(WIDTH).collect();
        if line.len() < text.len() {
            line += &format!("… ({} bytes)", text.len());
        }
        self.transcript.push_back(format!("{direction} {line}"));
    }

    fn unexpected(&self, what: &str, event: &Event) -> anyhow::Error {
        anyhow!("{event} instead of {what}\n{}", self.transcript())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(_) => out.write_str("a stream header"),
            Self::Element(element) => out.write_str(&text_of(element)),
            Self::Close => out.write_str("the end of the stream"),
            Self::Terminated(condition) => write!(out, "terminate {condition:?}"),
            Self::Closed(code) => write!(out, "WebSocket close {code:?}"),
            Self::Lost => out.write_str("the end of the connection"),
        }
    }
}

/// The body of a message, if it is one.
pub fn body_of(element: &Element) -> Option<String> {
    let message = element.is("message", ns::CLIENT).then_some(element)?;
    message.get_child("body", ns::CLIENT).map(Element::text)
}

/// Whether it is a presence from `jid` of that type (`None`: available).
pub fn is_presence(element: &Element, from: &str, kind: Option<&str>) -> bool {
    element.is("presence", ns::CLIENT)
        && element.attr("type") == kind
        && element.attr("from").is_some_and(|jid| jid == from || bare(jid) == from)
}

/// The JID without its resource.
pub fn bare(jid: &str) -> &str {
    jid.split_once('/').map_or(jid, |(bare, _)| bare)
}

/// Text for an attribute or for content.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&apos;",
            other => out.push(other),
        }
    }
    out
}

/// An element as text, for messages to people.
pub fn text_of(element: &Element) -> String {
    String::from(element)
}

fn height(element: &Element) -> Result<u32> {
    Ok(element.attr("h").context("no `h`")?.parse()?)
}

//! BOSH (XEP-0124, XEP-0206) seen from the client. [`Session`] and [`Pending`] are single requests
//! with a rid of the test's choice; [`Bosh`] is a client above them that keeps the rules, holds a
//! request open while it reads, and survives connections that break, be it by its own hand.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use minidom::Element;
use tokio::time::timeout;

use super::client::{Event, escape, ns, text_of};
use super::http::{Answer, Connection, Cut, Url};
use super::random::Random;
use super::{PATIENCE, Result};

/// XML namespaces.
pub const HTTPBIND: &str = "http://jabber.org/protocol/httpbind";
/// XML namespace of XEP-0206's attributes.
pub const XBOSH: &str = "urn:xmpp:xbosh";

/// Attributes with which a session that can do all of it is created, but for `to`.
pub const CREATION: &str = "wait='60' hold='1' ver='1.11' xml:lang='en' xmpp:version='1.0'";

/// The `<body/>` of an answer.
#[derive(Clone, Debug)]
pub struct Body {
    /// The element.
    pub element: Element,
    /// As it was written.
    pub text: String,
}

impl Body {
    /// BOSH-03, BOSH-10: the body of an answer with status 200.
    pub fn of(answer: &Answer) -> Result<Self> {
        ensure!(answer.status == 200, "HTTP {}\n{}", answer.status, answer.head);
        let text = answer.text()?.to_owned();
        let element: Element = text.parse().with_context(|| format!("cannot read {text:?}"))?;
        ensure!(element.is("body", HTTPBIND), "no <body/>: {text}");
        Ok(Self { element, text })
    }

    /// An attribute without a namespace.
    pub fn attr<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.element.attr(name)
    }

    /// An attribute that is a number.
    pub fn number(&self, name: &str) -> Result<u64> {
        let value = self.attr(name).with_context(|| format!("no `{name}`: {}", self.text))?;
        value.parse().with_context(|| format!("`{name}` is no number: {}", self.text))
    }

    /// An attribute of XEP-0206.
    pub fn xbosh(&self, name: &str) -> Option<&str> {
        self.element.attr_ns(XBOSH, name)
    }

    /// The payloads.
    pub fn payloads(&self) -> Vec<Element> {
        self.element.children().cloned().collect()
    }

    /// The bodies of the messages in it.
    pub fn messages(&self) -> Vec<String> {
        self.element.children().filter_map(super::client::body_of).collect()
    }

    /// Whether it has no payload and does not end anything.
    pub fn is_empty(&self) -> bool {
        self.element.children().next().is_none() && self.attr("type").is_none()
    }

    /// `type='terminate'`: `Some` of the condition, which a clean end has not.
    pub fn terminate(&self) -> Option<Option<&str>> {
        (self.attr("type") == Some("terminate")).then(|| self.attr("condition"))
    }

    /// Fails unless it ends the session with that condition (`None`: without one).
    pub fn expect_terminate(&self, condition: Option<&str>) -> Result {
        ensure!(self.terminate() == Some(condition), "not terminate {condition:?}: {}", self.text);
        Ok(())
    }
}

/// A request whose answer has not been taken.
pub struct Pending {
    /// Its rid.
    pub rid: u64,
    /// Its bytes, to send it again.
    pub bytes: Vec<u8>,
    /// Where it was sent; `None` once that was cut.
    pub connection: Option<Connection>,
    /// To cut the connection when so many bytes of the answer have come.
    cut_answer: Option<usize>,
    /// The answer, when it came before that to an older request was taken.
    answer: Option<Answer>,
}

impl Pending {
    fn new(rid: u64, bytes: Vec<u8>, connection: Option<Connection>) -> Self {
        Self { rid, bytes, connection, cut_answer: None, answer: None }
    }

    /// The HTTP answer, at most [`PATIENCE`] away.
    pub async fn answer(&mut self) -> Result<Answer> {
        let rid = self.rid;
        let connection = self.connection.as_mut().context("the connection was cut")?;
        connection.prompt_answer().await.with_context(|| format!("rid {rid}"))
    }

    /// The answer's `<body/>`.
    pub async fn body(&mut self) -> Result<Body> {
        let answer = self.answer().await?;
        Body::of(&answer).with_context(|| format!("rid {}", self.rid))
    }

    /// Fails if it is answered within that time. For what has to stay open, where no other
    /// condition tells.
    pub async fn stays_open(&mut self, time: Duration) -> Result {
        let connection = self.connection.as_mut().context("the connection was cut")?;
        match timeout(time, connection.answer()).await {
            Err(_) => Ok(()),
            Ok(answer) => bail!("rid {} was answered: {:?}", self.rid, answer?),
        }
    }

    /// Ends its connection.
    pub fn cut(&mut self, cut: Cut) -> Result {
        self.connection.take().map_or(Ok(()), |connection| connection.cut(cut))
    }
}

/// A session whose requests the test writes itself.
pub struct Session {
    /// Where.
    pub url: Url,
    /// Which.
    pub sid: String,
    /// The last rid that was used.
    pub rid: u64,
    /// The answer to the creation request.
    pub creation: Body,
    /// Further headers of every request.
    pub headers: String,
    idle: Vec<Connection>,
}

impl Session {
    /// Creates one; an answer that is not a session is an `Err`.
    pub async fn create(url: &Url, to: &str) -> Result<Self> {
        Self::create_with(url, &format!("to='{to}' {CREATION}")).await
    }

    /// The same with all attributes but `rid` and the namespaces given.
    pub async fn create_with(url: &Url, attributes: &str) -> Result<Self> {
        Self::create_at(url, first_rid(), attributes).await
    }

    /// The same with a rid to begin with.
    pub async fn create_at(url: &Url, rid: u64, attributes: &str) -> Result<Self> {
        let mut connection = Connection::open(&url.authority).await?;
        connection.send(&url.post(CONTENT_TYPE, &creation(rid, attributes))).await?;
        let body = Body::of(&connection.prompt_answer().await?)?;
        let mut session = Self::of(url, rid, body)?;
        session.idle.push(connection);
        Ok(session)
    }

    /// The session that this answer created.
    pub fn of(url: &Url, rid: u64, creation: Body) -> Result<Self> {
        let sid = creation.attr("sid").with_context(|| format!("no session: {}", creation.text))?;
        let (sid, url) = (sid.to_owned(), url.clone());
        Ok(Self { url, sid, rid, creation, headers: CONTENT_TYPE.to_owned(), idle: Vec::new() })
    }

    /// The text of a body of this session.
    pub fn text(&self, rid: u64, attributes: &str, payload: &str) -> String {
        format!(
            "<body rid='{rid}' sid='{sid}' xmlns='{HTTPBIND}' {attributes}>{payload}</body>",
            sid = escape(&self.sid)
        )
    }

    /// Sends the next rid.
    pub async fn next(&mut self, attributes: &str, payload: &str) -> Result<Pending> {
        self.rid += 1;
        self.post(self.rid, attributes, payload).await
    }

    /// Sends the next rid and waits for its answer.
    pub async fn ask(&mut self, attributes: &str, payload: &str) -> Result<Body> {
        let mut pending = self.next(attributes, payload).await?;
        let body = pending.body().await?;
        self.keep(pending);
        Ok(body)
    }

    /// Sends any rid on a connection of its own, or one that is free.
    pub async fn post(&mut self, rid: u64, attributes: &str, payload: &str) -> Result<Pending> {
        let bytes = self.url.post(&self.headers, &self.text(rid, attributes, payload));
        self.send(rid, bytes).await
    }

    /// Sends a request's bytes.
    pub async fn send(&mut self, rid: u64, bytes: Vec<u8>) -> Result<Pending> {
        let mut connection = match self.idle.pop() {
            Some(connection) => connection,
            None => Connection::open(&self.url.authority).await?,
        };
        connection.send(&bytes).await?;
        Ok(Pending::new(rid, bytes, Some(connection)))
    }

    /// Sends the same bytes again, on another connection.
    pub async fn repeat(&mut self, pending: &Pending) -> Result<Pending> {
        self.send(pending.rid, pending.bytes.clone()).await
    }

    /// Keeps the connection of an answered request for the next one.
    pub fn keep(&mut self, pending: Pending) {
        self.idle.extend(pending.connection);
    }

    /// Forgets the connections that wait for a next request.
    pub fn fresh(&mut self) {
        self.idle.clear();
    }

    /// Logs in with PLAIN and binds a resource; nothing is open afterwards. The full JID.
    pub async fn login(&mut self, name: &str, password: &str) -> Result<String> {
        use base64::Engine;
        let secret = base64::prelude::BASE64_STANDARD.encode(format!("\0{name}\0{password}"));
        let auth = format!("<auth xmlns='{}' mechanism='PLAIN'>{secret}</auth>", ns::SASL);
        self.until("", &auth, |element| element.is("success", ns::SASL)).await?;
        let restart = format!("xmlns:xmpp='{XBOSH}' xmpp:restart='true'");
        self.until(&restart, "", |element| element.is("features", ns::STREAMS)).await?;
        let bind = format!(
            "<iq xmlns='jabber:client' type='set' id='b'><bind xmlns='{}'/></iq>",
            ns::BIND
        );
        let bound = self.until("", &bind, |element| element.attr("id") == Some("b")).await?;
        let jid = bound.get_child("bind", ns::BIND).and_then(|it| it.get_child("jid", ns::BIND));
        Ok(jid.with_context(|| format!("not bound: {}", text_of(&bound)))?.text())
    }

    /// Sends a request, then empty ones, until an answer has such a payload.
    pub async fn until(
        &mut self,
        attributes: &str,
        payload: &str,
        test: impl Fn(&Element) -> bool,
    ) -> Result<Element> {
        let asking = async {
            let mut body = self.ask(attributes, payload).await?;
            loop {
                if let Some(found) = body.payloads().into_iter().find(&test) {
                    return Ok(found);
                }
                ensure!(body.attr("type").is_none(), "the end came first: {}", body.text);
                body = self.ask("", "").await?;
            }
        };
        timeout(PATIENCE, asking).await.context("the payload did not come")?
    }
}

/// The body of a creation request.
pub fn creation(rid: u64, attributes: &str) -> String {
    format!("<body rid='{rid}' {attributes} xmlns='{HTTPBIND}' xmlns:xmpp='{XBOSH}'/>")
}

/// A rid to begin with, in the range that browsers' clients use.
pub fn first_rid() -> u64 {
    let mut bytes = [0; 4];
    // A fixed one would do as well.
    let _ = getrandom::fill(&mut bytes);
    1_000_000 + u64::from(u32::from_be_bytes(bytes))
}

/// What Strophe sends.
pub const CONTENT_TYPE: &str = "Content-Type: text/xml; charset=utf-8\r\n";

/// Cuts some of the connections.
#[derive(Clone, Debug)]
pub struct Cuts {
    random: Random,
    every: usize,
    /// How many were cut while sending the request, after it, and in the answer.
    pub done: [usize; 3],
    /// How many requests were repeated only after a later one.
    pub late: usize,
}

impl Cuts {
    /// One connection of `every`.
    pub fn new(seed: u64, every: usize) -> Self {
        Self { random: Random::new(seed), every, done: [0; 3], late: 0 }
    }

    /// Itself, if the next connection is to be cut.
    fn next(&mut self) -> Option<&mut Self> {
        self.random.once_in(self.every).then_some(self)
    }
}

/// A client's BOSH session that keeps the rules.
pub struct Bosh {
    url: Url,
    session: Option<Session>,
    /// The request that creates the session, until that is there.
    creating: bool,
    open: VecDeque<Pending>,
    requests: usize,
    rid: u64,
    /// Cuts its own connections.
    pub cuts: Option<Cuts>,
}

impl Bosh {
    /// Nothing is connected before the first request.
    pub fn new(url: &str) -> Result<Self> {
        Ok(Self {
            url: Url::parse(url)?,
            session: None,
            creating: false,
            open: VecDeque::new(),
            requests: 1,
            rid: first_rid(),
            cuts: None,
        })
    }

    /// Creates the session, or restarts its stream; returns the header that this stands for.
    pub async fn send_open(&mut self, domain: &str) -> Result<Option<Event>> {
        if self.session.is_none() {
            let attributes = format!("to='{}' {CREATION}", escape(domain));
            let bytes = self.url.post(CONTENT_TYPE, &creation(self.rid, &attributes));
            let mut connection = Connection::open(&self.url.authority).await?;
            connection.send(&bytes).await?;
            self.creating = true;
            self.open.push_back(Pending::new(self.rid, bytes, Some(connection)));
            return Ok(None);
        }
        let attributes = format!(
            "to='{}' xml:lang='en' xmpp:restart='true' xmlns:xmpp='{XBOSH}'",
            escape(domain)
        );
        self.post(&attributes, "").await?;
        // XEP-0206 §5: there is no header in the answer, so the first one's holds.
        let creation = self.session.as_ref().map(|session| &session.creation);
        creation.map(header_event).transpose()
    }

    /// Ends the session (XEP-0124 §13).
    pub async fn terminate(&mut self) -> Result {
        self.post("type='terminate'", "").await
    }

    /// Sends payloads. Only when there is no room for another request ([`Bosh::has_room`]) is this
    /// against the rules.
    pub async fn post(&mut self, attributes: &str, payload: &str) -> Result {
        self.rid += 1;
        let session = self.session.as_mut().context("no session")?;
        session.rid = self.rid;
        let bytes =
            session.url.post(&session.headers, &session.text(self.rid, attributes, payload));
        let mut pending = Pending::new(self.rid, bytes, None);
        self.transmit(&mut pending).await?;
        self.open.push_back(pending);
        Ok(())
    }

    /// Whether the window has room for another request (XEP-0124 §11).
    pub fn has_room(&self) -> bool {
        self.session.is_some() && self.open.len() < self.requests
    }

    /// Requests without an answer.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Sends the bytes, and may cut the connection as it does.
    async fn transmit(&mut self, pending: &mut Pending) -> Result {
        loop {
            let session = self.session.as_mut().context("no session")?;
            let cut = self.cuts.as_mut().and_then(Cuts::next);
            let Some(cuts) = cut else {
                pending.connection =
                    session.send(pending.rid, pending.bytes.clone()).await?.connection;
                return Ok(());
            };
            let how = if cuts.random.once_in(2) { Cut::Reset } else { Cut::Fin };
            let place = cuts.random.below(3);
            cuts.done[place] += 1;
            let late = cuts.random.once_in(3);
            if place == 2 {
                pending.cut_answer = Some(1 + cuts.random.below(500));
                pending.connection =
                    session.send(pending.rid, pending.bytes.clone()).await?.connection;
                return Ok(());
            }
            let length = match place {
                0 => cuts.random.below(pending.bytes.len()),
                _ => pending.bytes.len(),
            };
            let mut connection = Connection::open(&session.url.authority).await?;
            connection.send(&pending.bytes[..length]).await?;
            connection.cut(how)?;
            if length == pending.bytes.len() {
                overtaken(&session.url).await?;
            }
            if late {
                // Repeated when an answer is wanted; another rid may go first.
                cuts.late += 1;
                return Ok(());
            }
        }
    }

    /// Waits for the next answer and says what it brings. With nothing open it opens a request
    /// first, as a client must that wants to hear anything.
    pub async fn receive_patiently(&mut self) -> Result<(String, Vec<Event>)> {
        if self.open.is_empty() {
            if self.session.is_none() {
                return Ok(("(no session)".to_owned(), vec![Event::Lost]));
            }
            self.post("", "").await?;
        }
        let Some(answer) = self.oldest().await? else {
            self.session = None;
            self.open.clear();
            return Ok(("(gone)".to_owned(), vec![Event::Lost]));
        };
        if answer.status != 200 {
            self.end();
            let text = format!("(HTTP {})", answer.status);
            return Ok((text.clone(), vec![Event::Terminated(Some(text))]));
        }
        let body = Body::of(&answer)?;
        let text = body.text.clone();
        let mut events = Vec::new();
        if let (true, Some(_)) = (std::mem::take(&mut self.creating), body.attr("sid")) {
            self.requests = body.number("requests")? as usize;
            events.push(header_event(&body)?);
            self.session = Some(Session::of(&self.url, self.rid, body.clone())?);
        }
        events.extend(body.payloads().into_iter().map(Event::Element));
        if let Some(condition) = body.terminate() {
            self.end();
            events.push(Event::Terminated(condition.map(str::to_owned)));
        }
        Ok((text, events))
    }

    /// The answer to the oldest request; `None` when nobody listens any more. All open connections
    /// are watched meanwhile: a request whose connection breaks, or that is answered by a recoverable
    /// error (XEP-0124 §17.3: another connection brought the same rid later), is repeated.
    async fn oldest(&mut self) -> Result<Option<Answer>> {
        loop {
            if self.open.front().is_none_or(|oldest| oldest.answer.is_some()) {
                return Ok(self.open.pop_front().and_then(|pending| pending.answer));
            }
            if !self.repeat_lost().await? {
                return Ok(None);
            }
            let watched = self.open.iter_mut().enumerate().filter_map(|(at, pending)| {
                let connection = pending.connection.as_mut()?;
                let cut = pending.cut_answer;
                Some(Box::pin(async move {
                    let answer = match cut {
                        Some(count) => connection.taste(count).await.map(|()| None),
                        None => connection.answer().await,
                    };
                    (at, answer)
                }))
            });
            let ((at, answer), ..) = futures_util::future::select_all(watched).await;
            let (answer, pending) = (answer?, &mut self.open[at]);
            match answer {
                Some(answer) if !is_recoverable(&answer) => {
                    let connection = pending.connection.take();
                    pending.answer = Some(answer);
                    if let Some(session) = self.session.as_mut() {
                        session.idle.extend(connection);
                    }
                }
                _ => {
                    pending.cut_answer = None;
                    pending.cut(Cut::Reset)?;
                }
            }
        }
    }

    /// Sends every request again whose connection was cut; `false` if nobody listens.
    pub async fn repeat_lost(&mut self) -> Result<bool> {
        let lost = |it: &Pending| it.connection.is_none() && it.answer.is_none();
        while let Some(at) = self.open.iter().position(lost) {
            if !self.repeat(at).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends one of the open requests again; `false` if nobody listens.
    async fn repeat(&mut self, at: usize) -> Result<bool> {
        let (Some(mut pending), Some(session)) = (self.open.remove(at), self.session.as_mut())
        else {
            return Ok(false);
        };
        // On a connection of its own: an old one may be as dead as the last.
        session.fresh();
        let sent = self.transmit(&mut pending).await;
        self.open.insert(at, pending);
        Ok(sent.is_ok())
    }

    /// Makes sure that exactly one request is open and has arrived: a second one made the first
    /// be answered (BOSH-37).
    pub async fn hold(&mut self) -> Result<(String, Vec<Event>)> {
        while self.open.len() < self.requests {
            self.post("", "").await?;
        }
        self.receive_patiently().await
    }

    /// Cuts every connection and goes silent.
    pub fn lose(mut self, cut: Cut) -> Result {
        self.open.iter_mut().try_for_each(|pending| pending.cut(cut))
    }

    /// The session for a test to go on with by hand, once nothing is open.
    pub fn into_session(self) -> Result<Session> {
        ensure!(self.open.is_empty(), "{} requests are open", self.open.len());
        self.session.context("no session")
    }

    fn end(&mut self) {
        self.session = None;
        self.open.clear();
    }
}

/// Waits until a request whose connection was cut behind it has been read. On a busy machine it could
/// lie there until later rids are through, and then be one that is too old (BOSH-47), which ends the
/// session; a network does not let a new connection overtake an old one by so much. Each worker of
/// the other side answers one request after it.
async fn overtaken(url: &Url) -> Result {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for _ in 0..workers {
        let mut connection = Connection::open(&url.authority).await?;
        connection.send(&url.request("GET", "", "")).await?;
        connection.prompt_answer().await?;
    }
    Ok(())
}

/// XEP-0124 §17.3.
fn is_recoverable(answer: &Answer) -> bool {
    Body::of(answer).is_ok_and(|body| body.attr("type") == Some("error"))
}

/// The stream header that a creation response stands for (XEP-0206 §4).
fn header_event(creation: &Body) -> Result<Event> {
    let id = creation.attr("authid").or(creation.attr("sid")).unwrap_or_default();
    let from = creation.attr("from").unwrap_or_default();
    let version = creation.xbosh("version").unwrap_or("1.0");
    let header = format!(
        "<open xmlns=\"{}\" id=\"{}\" from=\"{}\" version=\"{}\"/>",
        ns::FRAMING,
        escape(id),
        escape(from),
        escape(version)
    );
    Ok(Event::Open(header.parse()?))
}

//! One connection: its stream opened, the login, the stream opened again, a resource bound or a
//! session resumed; then stanzas both ways until one side has enough.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use futures_util::{Sink, SinkExt as _, StreamExt as _};
use minidom::Element;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_xmpp::xmlstream::{
    AcceptedStream, ReadError, StreamHeader, Timeouts, XmlStream, accept_stream,
};
use xmpp_parsers::bind::{BindFeature, BindQuery, BindResponse};
use xmpp_parsers::jid::BareJid;
use xmpp_parsers::ns;
use xmpp_parsers::sasl;
use xmpp_parsers::sm::{self, HandledCountTooHigh, StreamManagement};
use xmpp_parsers::stanza_error::DefinedCondition as StanzaCondition;
use xmpp_parsers::stream_error::{DefinedCondition, StreamError};
use xmpp_parsers::stream_features::StreamFeatures;
use xso::AsXml;

use super::auth::{Login, MECHANISMS, Step};
use super::iq::SESSION;
use super::router::{Resume, Router, SessionId};
use super::session::{End, Link};
use super::wire::{Incoming, Meter, Metered};
use super::{DOMAIN, limits, stanza};

type Stream = XmlStream<Metered, Incoming>;

/// How long the client may take to end its side once we have ended ours.
const GOODBYE: Duration = Duration::from_secs(1);

/// Stanzas written before the client is listened to again.
const BATCH: usize = 64;

/// Serves one connection to its end. Who is not logged in after [`limits::LOGIN_TIME`] is cut off.
pub(super) async fn run(socket: TcpStream, router: Rc<RefCell<Router>>) {
    let _ = socket.set_nodelay(true);
    let meter = Rc::new(Meter::new());
    let mut connection = Connection { router, meter, link: Rc::default(), account: None };
    connection.router.borrow_mut().enter(&connection.link);
    // Who has not even begun a stream is not told.
    let negotiation = timeout(limits::LOGIN_TIME + GOODBYE, connection.negotiate(socket)).await;
    connection.router.borrow_mut().entered(&connection.link);
    let Ok(Some((mut stream, session))) = negotiation else {
        // The time may have run out when a session had just been made.
        connection.router.borrow_mut().abandon(connection.account.as_ref(), &connection.link);
        return;
    };
    let ending = connection.carry(&mut stream, session).await;
    match ending {
        Ending::Lost => connection.router.borrow_mut().lost(session, &connection.link),
        Ending::Closed => {
            connection.router.borrow_mut().close(session, &connection.link);
            finish(stream, None).await;
        }
        Ending::Fault(error) => {
            connection.router.borrow_mut().close(session, &connection.link);
            finish(stream, Some(error)).await;
        }
    }
}

/// What comes next from the client.
enum Next {
    Element(Element),
    End(Ending),
}

/// How a stream ends.
enum Ending {
    /// Without a word.
    Lost,
    /// By the client.
    Closed,
    /// By us.
    Fault(StreamError),
}

impl Ending {
    fn fault(condition: DefinedCondition) -> Self {
        Self::Fault(fault(condition))
    }
}

/// XEP-0198 §4: one question at a time, and none unless something was sent since the last.
#[derive(Default)]
struct Asking {
    asked: bool,
    due: bool,
}

struct Connection {
    router: Rc<RefCell<Router>>,
    meter: Rc<Meter>,
    link: Rc<Link>,
    /// Who has logged in.
    account: Option<BareJid>,
}

impl Connection {
    /// RFC 6120 §4.3, §6, §7 and XEP-0198 §5. `None` if it came to nothing; the client was told.
    async fn negotiate(&mut self, socket: TcpStream) -> Option<(Stream, SessionId)> {
        let mut late = pin!(sleep(limits::LOGIN_TIME));
        let io = Metered::new(socket, Rc::clone(&self.meter));
        let accepted = accept_stream(io, ns::JABBER_CLIENT, timeouts()).await.ok()?;
        let offer = StreamFeatures {
            sasl_mechanisms: MECHANISMS.map(str::to_owned).into(),
            ..StreamFeatures::default()
        };
        let mut stream = open(accepted, &offer).await?;
        let mut login = Login::default();
        let mut failures = 0;
        let (account, data) = loop {
            let element = match self.next_before(late.as_mut(), &mut stream).await {
                Next::Element(element) if element.has_ns(ns::SASL) => element,
                Next::Element(_) => return refuse(stream, DefinedCondition::NotAuthorized).await,
                Next::End(ending) => return end(stream, ending).await,
            };
            let mut step = login.step(&element);
            if let Step::Success { account, temporary, .. } = &step
                && !self.router.borrow_mut().login(account, *temporary)
            {
                step = Step::Failure(sasl::DefinedCondition::TemporaryAuthFailure);
            }
            match step {
                Step::Challenge(data) => send(&mut stream, &sasl::Challenge { data }).await?,
                Step::Success { account, data, .. } => {
                    self.account = Some(account.clone());
                    break (account, data);
                }
                Step::Failure(defined_condition) => {
                    let failure = sasl::Failure { defined_condition, texts: Default::default() };
                    send(&mut stream, &failure).await?;
                    failures += 1;
                    if failures == limits::LOGIN_FAILURES {
                        return refuse(stream, DefinedCondition::PolicyViolation).await;
                    }
                }
            }
        };
        let accepted = stream.accept_reset(&sasl::Success { data }).await.ok()?;
        self.meter.element();
        self.meter.trust();
        self.meter.without_mechanisms(true);
        let mut stream = open(accepted, &session_features()).await?;
        self.meter.without_mechanisms(false);
        loop {
            let element = match self.next_before(late.as_mut(), &mut stream).await {
                Next::Element(element) => element,
                Next::End(ending) => return end(stream, ending).await,
            };
            let bound = if element.is("iq", ns::JABBER_CLIENT) {
                self.bind(&mut stream, &account, &element).await?
            } else if element.has_ns(ns::SM) {
                match self.resume(&mut stream, &account, element).await? {
                    Ok(session) => session,
                    Err(error) => return end(stream, Ending::Fault(error)).await,
                }
            } else {
                return refuse(stream, DefinedCondition::NotAuthorized).await;
            };
            if let Some(session) = bound {
                return Some((stream, session));
            }
        }
    }

    /// RFC 6120 §7.6, §7.7. `Some(None)` if the client may try again.
    async fn bind(
        &self,
        stream: &mut Stream,
        account: &BareJid,
        iq: &Element,
    ) -> Option<Option<SessionId>> {
        let query = iq.get_child("bind", ns::BIND).filter(|_| iq.attr("type") == Some("set"));
        let bound = match query.cloned().map(BindQuery::try_from) {
            Some(Ok(query)) => {
                let link = Rc::clone(&self.link);
                self.router.borrow_mut().bind(account, query.resource.as_deref(), link)
            }
            Some(Err(_)) => Err(StanzaCondition::BadRequest),
            None => Err(StanzaCondition::NotAllowed),
        };
        match bound {
            Ok((session, jid)) => {
                let answer = stanza::result(iq, Some(BindResponse { jid }.into()));
                send(stream, &answer).await?;
                Some(Some(session))
            }
            Err(condition) => {
                if let Some(answer) = stanza::error(iq, condition) {
                    send(stream, &answer).await?;
                }
                Some(None)
            }
        }
    }

    /// XEP-0198 §5. `Some(Ok(None))` if the client may bind instead.
    async fn resume(
        &self,
        stream: &mut Stream,
        account: &BareJid,
        element: Element,
    ) -> Option<Result<Option<SessionId>, StreamError>> {
        let Ok(sm::Resume { h, previd }) = sm::Resume::try_from(element) else {
            send(stream, &failed(StanzaCondition::UnexpectedRequest)).await?;
            return Some(Ok(None));
        };
        let resumed = self.router.borrow_mut().resume(account, &previd.0, h, &self.link);
        match resumed {
            Ok((session, h)) => {
                send(stream, &sm::Resumed { h, previd }).await?;
                Some(Ok(Some(session)))
            }
            Err(Resume::NotFound) => {
                send(stream, &failed(StanzaCondition::ItemNotFound)).await?;
                Some(Ok(None))
            }
            Err(Resume::TooHigh(error)) => Some(Err(error.into())),
        }
    }

    /// Stanzas both ways.
    async fn carry(&self, stream: &mut Stream, session: SessionId) -> Ending {
        let mut asking = Asking::default();
        loop {
            let Some(more) = self.flush(stream, session, &mut asking).await else {
                return Ending::Lost;
            };
            if let Some(end) = self.link.end() {
                return Ending::fault(end.condition());
            }
            let element = tokio::select! {
                next = self.next(stream) => match next {
                    Next::Element(element) => element,
                    Next::End(ending) => return ending,
                },
                () = self.link.woken() => continue,
                () = std::future::ready(()), if more => continue,
            };
            let handled = match &*element.ns() {
                ns::JABBER_CLIENT if ["message", "presence", "iq"].contains(&element.name()) => {
                    self.router.borrow_mut().stanza(session, element);
                    Some(Ok(()))
                }
                ns::SM => self.management(stream, session, element, &mut asking).await,
                ns::STREAM if element.name() == "error" => return Ending::Closed,
                _ => Some(Err(fault(DefinedCondition::UnsupportedStanzaType))),
            };
            match handled {
                Some(Ok(())) => {}
                Some(Err(error)) => return Ending::Fault(error),
                None => return Ending::Lost,
            }
        }
    }

    /// Writes what waits, but no more than a batch; whether more waits. `None` if the client takes
    /// nothing any more.
    async fn flush(
        &self,
        stream: &mut Stream,
        session: SessionId,
        asking: &mut Asking,
    ) -> Option<bool> {
        let mut written = 0;
        while written < BATCH {
            let next = self.router.borrow_mut().pop(session, &self.link);
            let Some(element) = next else { break };
            timeout(limits::WRITE_TIME, stream.feed(&element)).await.ok()?.ok()?;
            written += 1;
        }
        asking.due |= written > 0;
        if asking.due && !asking.asked && self.router.borrow().wants_acknowledgement(session) {
            *asking = Asking { asked: true, due: false };
            timeout(limits::WRITE_TIME, stream.feed(&sm::R)).await.ok()?.ok()?;
        }
        let flushed = Sink::<&Element>::poll_flush;
        let mut pinned = Pin::new(stream);
        let writing = std::future::poll_fn(|cx| flushed(pinned.as_mut(), cx));
        timeout(limits::WRITE_TIME, writing).await.ok()?.ok()?;
        Some(written == BATCH)
    }

    /// XEP-0198 §3, §4. `None` if the client takes nothing any more.
    async fn management(
        &self,
        stream: &mut Stream,
        session: SessionId,
        element: Element,
        asking: &mut Asking,
    ) -> Option<Result<(), StreamError>> {
        match sm::Nonza::try_from(element) {
            Ok(sm::Nonza::Req(sm::R)) => {
                let height = self.router.borrow().height(session);
                match height {
                    Some(h) => send(stream, &sm::A { h }).await?,
                    None => return Some(Err(fault(DefinedCondition::UnsupportedStanzaType))),
                }
            }
            Ok(sm::Nonza::Ack(sm::A { h })) => {
                asking.asked = false;
                let acknowledged = self.router.borrow_mut().acknowledge(session, h);
                return Some(acknowledged.map_err(HandledCountTooHigh::into));
            }
            Ok(sm::Nonza::Enable(sm::Enable { resume, .. })) => {
                // What waits was sent before, and does not count.
                while self.flush(stream, session, asking).await? {}
                let enabled = self.router.borrow_mut().enable(session, resume);
                match enabled {
                    Ok(id) => {
                        let enabled = sm::Enabled {
                            resume: id.is_some(),
                            max: id.is_some().then_some(limits::RESUME_SECONDS),
                            id: id.map(sm::StreamId),
                            location: None,
                        };
                        send(stream, &enabled).await?;
                    }
                    Err(condition) => send(stream, &failed(condition)).await?,
                }
            }
            _ => send(stream, &failed(StanzaCondition::UnexpectedRequest)).await?,
        }
        Some(Ok(()))
    }

    /// The next element before there is a session.
    async fn next_before(&self, late: Pin<&mut Sleep>, stream: &mut Stream) -> Next {
        tokio::select! {
            next = self.next(stream) => next,
            () = self.link.woken() => {
                let end = self.link.end().unwrap_or(End::Shutdown);
                Next::End(Ending::fault(end.condition()))
            }
            () = late => {
                Next::End(Ending::fault(DefinedCondition::ConnectionTimeout))
            }
        }
    }

    /// The next element. Cancelling loses nothing.
    async fn next(&self, stream: &mut Stream) -> Next {
        loop {
            return match stream.next().await {
                Some(Ok(Incoming(element))) => {
                    self.meter.element();
                    Next::Element(element)
                }
                Some(Err(ReadError::SoftTimeout)) => continue,
                Some(Err(ReadError::StreamFooterReceived)) => Next::End(Ending::Closed),
                Some(Err(ReadError::ParseError(_))) => {
                    Next::End(Ending::fault(DefinedCondition::PolicyViolation))
                }
                Some(Err(ReadError::HardError(_))) if self.meter.exceeded() => {
                    Next::End(Ending::fault(DefinedCondition::PolicyViolation))
                }
                Some(Err(ReadError::HardError(_))) if !self.meter.ended() => {
                    Next::End(Ending::fault(DefinedCondition::NotWellFormed))
                }
                Some(Err(ReadError::HardError(_))) | None => Next::End(Ending::Lost),
            };
        }
    }
}

/// Answers a stream header (RFC 6120 §4.7) and offers features. `None` if it was for another
/// domain.
async fn open(mut accepted: AcceptedStream<Metered>, features: &StreamFeatures) -> Option<Stream> {
    let client = accepted.take_header();
    let ours = client.to.as_deref() == Some(DOMAIN);
    let header = StreamHeader {
        from: if ours { Some(DOMAIN.into()) } else { client.to },
        to: client.from,
        id: Some(stanza::token()?.into()),
    };
    let pending = accepted.send_header(header).await.ok()?;
    if ours {
        pending.send_features(features).await.ok()
    } else {
        pending.send_error(&fault(DefinedCondition::HostUnknown)).await.ok()?;
        None
    }
}

/// What is offered after the login.
fn session_features() -> StreamFeatures {
    let mut session = Element::bare("session", SESSION);
    session.append_child(Element::bare("optional", SESSION));
    StreamFeatures {
        bind: Some(BindFeature { required: false }),
        stream_management: Some(StreamManagement { optional: false }),
        others: vec![session],
        ..StreamFeatures::default()
    }
}

/// `None` if the client takes nothing any more.
async fn send(stream: &mut Stream, element: &impl AsXml) -> Option<()> {
    timeout(limits::WRITE_TIME, stream.send(element)).await.ok()?.ok()
}

async fn refuse<T>(stream: Stream, condition: DefinedCondition) -> Option<T> {
    end(stream, Ending::fault(condition)).await
}

async fn end<T>(stream: Stream, ending: Ending) -> Option<T> {
    match ending {
        Ending::Lost => {}
        Ending::Closed => finish(stream, None).await,
        Ending::Fault(error) => finish(stream, Some(error)).await,
    }
    None
}

/// The last words, and the end of our side; then the client has a moment to end its own, since
/// closing with unread input would reset the connection before it has read ours.
async fn finish(mut stream: Stream, error: Option<StreamError>) {
    let ending = async {
        if let Some(error) = &error {
            stream.send(error).await.ok()?;
        }
        stream.shutdown().await.ok()?;
        while let Some(Ok(_) | Err(ReadError::SoftTimeout | ReadError::ParseError(_))) =
            stream.next().await
        {}
        Some(())
    };
    let _ = timeout(GOODBYE, ending).await;
}

fn fault(condition: DefinedCondition) -> StreamError {
    StreamError { condition, texts: Default::default(), application_specific: Vec::new() }
}

fn failed(condition: StanzaCondition) -> sm::Failed {
    sm::Failed { h: None, error: Some(condition) }
}

/// Silence is no fault here: a session may idle for days, and loopback loses no connections.
fn timeouts() -> Timeouts {
    let year = Duration::from_secs(365 * 24 * 3600);
    Timeouts { read_timeout: year, response_timeout: year }
}

//! What the gateway knows of a client's c2s stream, whatever the transport.
//!
//! Whose domains it serves, what it counted, what becomes of the server's connection, and the phase
//! of the stream, which follows what the *server* says (UP-23). What the transports make of it is
//! theirs: [`super::ws`], [`super::bosh`].

use std::collections::BTreeSet;
use std::time::Instant;

use super::domain::Domain;
use super::item::{Element, Kind};
use super::ns;

/// The domains that clients may open a stream to.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Those served by name.
    pub domains: BTreeSet<Domain>,
    /// Domains below which all are served.
    pub suffixes: BTreeSet<Domain>,
    /// Whether any other is served too.
    pub any: bool,
    /// The one of a client that names none.
    pub default: Option<Domain>,
}

impl Served {
    /// Whether clients of `domain` are served here.
    #[must_use]
    pub fn serves(&self, domain: &Domain) -> bool {
        self.any
            || self.domains.contains(domain)
            || domain.parents().any(|parent| self.suffixes.contains(parent))
    }

    /// The domain that `to` means, if it names one: the default without it.
    #[must_use]
    pub fn addressed(&self, to: Option<&str>) -> Option<Domain> {
        match to {
            Some(to) => Domain::parse(to).ok(),
            None => self.default.clone(),
        }
    }
}

/// Counts of what passed in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// `message`, `presence`, `iq`, and all other top-level elements.
    pub elements: [u32; 4],
    /// Bytes of those elements as they left the gateway, without frame heads.
    pub bytes: u64,
}

impl Flow {
    pub(crate) fn count(&mut self, kind: Kind, bytes: usize) {
        let slot = match kind {
            Kind::Message => 0,
            Kind::Presence => 1,
            Kind::Iq => 2,
            _ => 3,
        };
        self.elements[slot] += 1;
        self.bytes += bytes as u64;
    }

    /// Elements of all kinds.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.elements.iter().sum()
    }
}

/// What happened in one wake-up, for the shell to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Elements passed to the server.
    pub to_server: Flow,
    /// Elements passed to the client.
    pub to_client: Flow,
    /// Among those is the first stanza since a resource was bound; over BOSH, where it may wait for
    /// a request, the response says that.
    pub first: bool,
    /// Stanzas repaired (UP-36).
    pub repaired: u32,
    /// Stanzas emptied (UP-36).
    pub emptied: u32,
    /// Broken nonzas dropped (UP-36).
    pub dropped: u32,
    /// Blank messages dropped (WS-12).
    pub blank: u32,
    /// Logins that the server refused (SEC-16).
    pub failures: u32,
    /// Failed logins with a `-PLUS` mechanism (UP-27).
    pub binding_plus: u32,
    /// Failed logins whose GS2 header begins `p` or `y` (UP-27).
    pub binding_gs2: u32,
}

impl Tally {
    /// Nothing happened. Asked at every turn of every session, so without a branch for each number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { to_server, to_client, .. } = self;
        let Self { repaired, emptied, dropped, blank, failures, .. } = self;
        let Self { binding_plus, binding_gs2, .. } = self;
        // Of no kind is there an element without bytes.
        to_server.bytes | to_client.bytes == 0
            && repaired | emptied | dropped | blank | failures | binding_plus | binding_gs2 == 0
    }
}

/// What the shell has to do with the server's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerSide {
    /// There is none.
    Absent,
    /// Being opened.
    Connecting,
    /// Read and write.
    Open,
    /// `</stream:stream>` was written; the server's end is awaited until the time.
    Closing(Instant),
    /// Flush, end the write side, read to the end, until the time.
    Finishing(Instant),
    /// Drop it.
    Gone,
}

/// How far a stream has come, for whoever looks on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// The server accepted the client's credentials.
    pub authenticated: bool,
    /// A resource is bound.
    pub bound: bool,
    /// The client uses XEP-0198.
    pub managed: bool,
    /// It resumed an older stream.
    pub resumed: bool,
}

/// A JID can be no longer (RFC 7622 §3.1).
const JID_BYTES: usize = 3071;

/// How far a stream has come, by what the server said; a client can claim nothing.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    /// The server accepted the client's credentials.
    pub(crate) authenticated: bool,
    /// A SASL1 success passed; only a restart may follow (WS-29, XB-11).
    pub(crate) restart_due: bool,
    /// Our new header is on its way, the server's is awaited.
    pub(crate) header_due: bool,
    /// A resource is bound: no restart any more.
    pub(crate) bound: bool,
    /// The client uses XEP-0198 (SM-02).
    pub(crate) sm: bool,
    /// The features that end the negotiation after authentication have passed.
    pub(crate) settled: bool,
    /// Upstream goes over TLS (UP-05).
    pub(crate) secure: bool,
    /// It is an older stream's that was resumed.
    resumed: bool,
    /// A stanza has gone to the client since a resource was bound.
    greeted: bool,
    /// What the server calls the client, until somebody takes it.
    pub(crate) jid: Option<Box<str>>,
    /// The server has bound a resource without naming it: the next stanza will.
    jid_due: bool,
    binding: Option<Binding>,
    /// The `id` of a login without SASL (XEP-0078), until it is answered.
    login: Option<Box<str>>,
}

/// Where channel binding was asked for (UP-27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// The mechanism's name ends with `-PLUS`.
    Plus,
    /// The GS2 header begins `y` or `p`.
    Gs2,
}

/// What an element of a client that is logging in has to be remembered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// UP-27: a login, and whether it asks for channel binding; never what it says.
    Login(Option<Binding>),
    /// UP-32: a login without SASL, by the `id` of its answer.
    Legacy(Option<Box<str>>),
}

impl Note {
    /// What is to be remembered of `element`, if anything.
    pub(crate) fn of(element: &Element<'_>, kind: Kind) -> Option<Self> {
        match kind {
            Kind::Sasl | Kind::Sasl2 => login(element).map(Self::Login),
            Kind::Iq => {
                // Looked for as text first: of a thousand iq none is a login.
                memchr::memmem::find(element.bytes(), ns::IQ_AUTH.as_bytes())?;
                let is_login = element.attribute("type").as_deref() == Some("set")
                    && element.children().iter().any(|child| child.namespace == ns::IQ_AUTH);
                let id = || element.attribute("id").map(|id| id.into_owned().into_boxed_str());
                is_login.then(|| Self::Legacy(id()))
            }
            _ => None,
        }
    }
}

fn login(element: &Element<'_>) -> Option<Option<Binding>> {
    if !matches!(element.local(), "auth" | "authenticate") {
        return None;
    }
    if element.attribute("mechanism").is_some_and(|mechanism| mechanism.ends_with("-PLUS")) {
        return Some(Some(Binding::Plus));
    }
    // Base64 of "y," and of "p=": the first characters of a GS2 header (RFC 5802 §7).
    let asks = |text: &str| text.starts_with("eSw") || text.starts_with("cD0");
    Some(element.to_dom().ok().and_then(|dom| {
        let inner = dom.get_child("initial-response", ns::SASL2).map(|child| child.text());
        asks(inner.unwrap_or_else(|| dom.text()).trim()).then_some(Binding::Gs2)
    }))
}

impl Phase {
    /// An element of the client goes to the server.
    pub(crate) fn client_sent(&mut self, element: &Element<'_>, kind: Kind) {
        if !self.authenticated
            && let Some(note) = Note::of(element, kind)
        {
            self.note(note);
        }
    }

    /// The same for an element that was looked at before.
    pub(crate) fn note(&mut self, note: Note) {
        if self.authenticated {
            return;
        }
        match note {
            Note::Login(binding) => self.binding = binding,
            Note::Legacy(id) => self.login = id,
        }
    }

    /// Whether an element of that kind, which goes to the client and was not noted yet, is the first
    /// stanza since a resource was bound: the one behind that by which the client learned of it.
    pub(crate) fn is_first_stanza(&mut self, kind: Kind) -> bool {
        kind.is_stanza() && self.bound && !std::mem::replace(&mut self.greeted, true)
    }

    /// An element of the server goes to the client (UP-23, SM-02).
    pub(crate) fn server_sent(&mut self, element: &Element<'_>, kind: Kind, tally: &mut Tally) {
        if self.jid_due && kind.is_stanza() {
            self.addressed(element);
        }
        if self.bound && self.authenticated && self.sm {
            return;
        }
        match (kind, element.local()) {
            (Kind::Sasl, "success") if !self.authenticated => {
                self.authenticated = true;
                self.restart_due = true;
            }
            (Kind::Sasl | Kind::Sasl2, "failure") => {
                tally.failures += 1;
                match self.binding.take() {
                    Some(Binding::Plus) => tally.binding_plus += 1,
                    Some(Binding::Gs2) => tally.binding_gs2 += 1,
                    None => {}
                }
            }
            (Kind::Sasl2, "success") => {
                self.authenticated = true;
                if let Ok(success) = element.to_dom() {
                    self.sasl2(&success);
                }
            }
            (Kind::Sm, "enabled") => self.sm = true,
            (Kind::Sm, "resumed") => {
                self.sm = true;
                self.resumed();
            }
            (Kind::Iq, _) if !self.bound => {
                if element.attribute("type").as_deref() != Some("result") {
                    return;
                }
                let children = element.children();
                // XEP-0078 §3.1: the answer to a login is empty; one with a query asks for it.
                let is_login = children.is_empty()
                    && self.login.is_some()
                    && self.login.as_deref() == element.attribute("id").as_deref();
                let is_bind = children.iter().any(|child| child.namespace == ns::BIND);
                if is_login || is_bind {
                    self.jid = element.to_dom().ok().and_then(|iq| {
                        let jid = iq.get_child("bind", ns::BIND)?.get_child("jid", ns::BIND)?;
                        jid_of(&jid.text())
                    });
                    self.jid_due = self.jid.is_none();
                    self.login = None;
                    self.bound = true;
                    // Not every server sends a success.
                    self.authenticated = true;
                }
            }
            _ => {}
        }
    }

    /// How far it is.
    pub(crate) fn stage(&self) -> Stage {
        let Self { authenticated, bound, sm, resumed, .. } = *self;
        Stage { authenticated, bound, managed: sm, resumed }
    }

    fn resumed(&mut self) {
        self.bound = true;
        self.resumed = true;
        self.jid_due = true;
    }

    /// RFC 6120 §8.1.1: what a server delivers is addressed to the client.
    fn addressed(&mut self, element: &Element<'_>) {
        if let Some(to) = element.attribute("to") {
            self.jid = jid_of(&to);
            self.jid_due = false;
        }
    }

    fn sasl2(&mut self, success: &minidom::Element) {
        for child in success.children() {
            match (child.name(), child.ns().as_str()) {
                ("authorization-identifier", ns::SASL2) => {
                    let jid = child.text();
                    self.bound |= jid.contains('/');
                    self.jid = jid_of(&jid);
                }
                ("resumed", ns::SM3) => {
                    self.sm = true;
                    self.resumed();
                }
                ("bound", ns::BIND2 | ns::BIND2_DRAFT) => {
                    self.bound = true;
                    if child.get_child("enabled", ns::SM3).is_some() {
                        self.sm = true;
                    }
                }
                _ => {}
            }
        }
    }
}

fn jid_of(text: &str) -> Option<Box<str>> {
    let text = text.trim();
    (1..=JID_BYTES).contains(&text.len()).then(|| text.into())
}

/// WS-26, XB-03: absent is 1.0; any minor version of 1 is spoken with.
pub(crate) fn is_version_1(version: Option<&str>) -> bool {
    version.is_none_or(|version| version.split('.').next() == Some("1"))
}

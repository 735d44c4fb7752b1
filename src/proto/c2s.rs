//! Our side of opening a c2s stream (RFC 6120 §4, §5): what we write, and what each answer means.
//!
//! The negotiation ends when the client's part begins: TLS is settled, and the final header and the
//! element behind it (features, or a stream error) are there. SASL and what follows is the client's.

use super::domain::Domain;
use super::item::{Element, Item, Kind, StreamHeader};
use super::ns;
use super::seam::escape_attribute;

/// The end of our stream (RFC 6120 §4.4).
pub const FOOTER: &[u8] = b"</stream:stream>";

/// RFC 6120 §5.4.2.1.
pub const START_TLS: &[u8] = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

/// Writes our stream header (UP-03). `lang` and `from` are left out where they break UP-04 or UP-05;
/// whether `from` may be told at all yet is [`Negotiation::tells_from`]'s to say.
pub fn write_header(out: &mut Vec<u8>, to: &Domain, from: Option<&str>, lang: Option<&str>) {
    out.extend_from_slice(
        b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
          xmlns:stream='http://etherx.jabber.org/streams' to='",
    );
    escape_attribute(to.as_str(), out);
    out.extend_from_slice(b"' version='1.0'");
    if let Some(lang) = lang.filter(|lang| is_language_tag(lang)) {
        out.extend_from_slice(b" xml:lang='");
        escape_attribute(lang, out);
        out.push(b'\'');
    }
    if let Some(from) = from.filter(|from| is_bare_jid_of(from, to)) {
        out.extend_from_slice(b" from='");
        escape_attribute(from, out);
        out.push(b'\'');
    }
    out.push(b'>');
}

/// What stream to open.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The XMPP domain, for `to`, for SNI and for the certificate.
    pub domain: Domain,
    /// The client's own JID, if it told (UP-05). Left out if it is not a bare JID of `domain`.
    pub from: Option<Box<str>>,
    /// The client's language (UP-04). Left out if it is none.
    pub lang: Option<Box<str>>,
}

/// The most bytes of a bare JID (RFC 7622 §3.2, §3.3), and more than enough for a language tag.
const TOLD_BYTES: usize = 1023 + 1 + 1023;

/// Whether what a client said of itself (`from`, `xml:lang`) is short enough to be told to a server. What
/// is not is not worth keeping until that is reached: it may be as large as an element.
pub fn may_be_told(text: &str) -> bool {
    text.len() <= TOLD_BYTES
}

/// UP-04: the shape of a language tag (RFC 5646, loosely).
pub fn is_language_tag(text: &str) -> bool {
    let fits = |part: &str| (1..=8).contains(&part.len());
    text.split('-').enumerate().all(|(n, part)| match n {
        0 => fits(part) && part.bytes().all(|b| b.is_ascii_alphabetic()),
        _ => fits(part) && part.bytes().all(|b| b.is_ascii_alphanumeric()),
    })
}

/// UP-05: `localpart@domainpart` with this domain and no resource. The localpart is held to RFC 7622
/// §3.3.1's forbidden characters; the rest of its preparation is the server's to judge.
pub fn is_bare_jid_of(jid: &str, domain: &Domain) -> bool {
    let Some((local, host)) = jid.split_once('@') else {
        return false;
    };
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || "\"&'/:<>@".contains(c);
    (1..=1023).contains(&local.len())
        && !local.contains(forbidden)
        && Domain::parse(host).is_ok_and(|host| host == *domain)
}

/// What is asked of TLS on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// STARTTLS is not used, offered or not.
    Never,
    /// STARTTLS is used if it is offered.
    IfOffered,
    /// STARTTLS must be offered and work; nothing before it reaches the client.
    Required,
    /// TLS was there before the first byte (XEP-0368); STARTTLS is not tried within it.
    Direct,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Nothing until more arrives.
    Wait,
    /// Write [`START_TLS`].
    SendStartTls,
    /// Do the handshake, call [`Negotiation::secured`], and send a new header to a fresh reader. Any
    /// byte already read behind this element is UP-12's failure.
    Handshake,
    /// Done: the final header, and the bytes of the element behind it.
    Ready(StreamHeader, Vec<u8>),
    /// Connect there instead (RFC 6120 §4.9.3.19): an unchecked `host[:port]`.
    SeeOtherHost(Box<str>),
    /// Give up.
    Fail(Refusal),
}

/// Why a negotiation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// UP-13: TLS is required and the features do not offer it.
    NotOffered,
    /// `<failure/>` in answer to `<starttls/>`.
    Refused,
    /// The stream ended.
    Closed,
    /// The rules were broken; which.
    Protocol(&'static str),
    /// A stream error before TLS was settled; its condition.
    StreamError(Box<str>),
}

/// The state of one connection. Feed it what an item reader finds; it owns no buffer.
#[derive(Debug)]
pub struct Negotiation {
    mode: TlsMode,
    secure: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Header,
    Features(StreamHeader),
    Proceed,
    Over,
}

impl Negotiation {
    /// Before our first header.
    pub fn new(mode: TlsMode) -> Self {
        Self { mode, secure: mode == TlsMode::Direct, state: State::Header }
    }

    /// UP-05: whether the header about to be sent may name the client. `local` is a connection that
    /// does not leave this machine. A header that TLS may follow never does.
    pub fn tells_from(&self, local: bool) -> bool {
        self.secure || (local && self.mode == TlsMode::Never)
    }

    /// What a whole negotiation is waiting for, as words behind "while".
    pub fn awaits(&self) -> &'static str {
        match self.state {
            State::Header if self.secure => "we waited for the stream header inside TLS",
            State::Header => "we waited for the stream header",
            State::Features(_) => "we waited for stream features",
            State::Proceed => "we waited for the answer to <starttls/>",
            State::Over => "we were done",
        }
    }

    /// The handshake is done; a new header goes out.
    pub fn secured(&mut self) {
        self.secure = true;
        self.state = State::Header;
    }

    /// Takes the next item of the server's stream.
    pub fn handle(&mut self, item: Item<'_>) -> Step {
        match (std::mem::replace(&mut self.state, State::Over), item) {
            (_, Item::End) => Step::Fail(Refusal::Closed),
            (State::Header, Item::Header(header)) => self.header(header),
            (State::Features(header), Item::Element(element)) => self.first(header, &element),
            (State::Proceed, Item::Element(element)) => Self::answer(&element),
            (State::Header, Item::Element(_)) => fail("an element before the stream header"),
            (State::Features(_) | State::Proceed, Item::Header(_)) => {
                fail("a second stream header")
            }
            (State::Over, _) => fail("more after the end"),
        }
    }

    fn header(&mut self, header: StreamHeader) -> Step {
        if header.closed {
            return Step::Fail(Refusal::Closed);
        }
        // RFC 6120 §4.7.5: without a version there are no features, so nothing would ever follow.
        if !header.version.as_deref().is_some_and(is_version_1) {
            return fail("a stream header without version='1.0'");
        }
        self.state = State::Features(header);
        Step::Wait
    }

    fn first(&mut self, header: StreamHeader, element: &Element<'_>) -> Step {
        match element.kind() {
            Kind::StreamError => self.stream_error(header, element),
            Kind::Features if self.secure || self.mode == TlsMode::Never => ready(header, element),
            Kind::Features if offers_starttls(element) => {
                self.state = State::Proceed;
                Step::SendStartTls
            }
            Kind::Features if self.mode == TlsMode::Required => Step::Fail(Refusal::NotOffered),
            Kind::Features => ready(header, element),
            _ => fail("another element where features must be"),
        }
    }

    /// Before required TLS nothing proves who speaks, so the client is told nothing of it.
    fn stream_error(&self, header: StreamHeader, element: &Element<'_>) -> Step {
        let error = StreamError::of(element);
        if let Some(target) = error.see_other_host {
            return Step::SeeOtherHost(target);
        }
        if self.mode == TlsMode::Required && !self.secure {
            return Step::Fail(Refusal::StreamError(error.condition));
        }
        ready(header, element)
    }

    fn answer(element: &Element<'_>) -> Step {
        match (element.kind(), element.local()) {
            _ if element.broken().is_some() => fail("an answer to <starttls/> that is broken"),
            (Kind::Tls, "proceed") => Step::Handshake,
            (Kind::Tls, "failure") => Step::Fail(Refusal::Refused),
            (Kind::StreamError, _) => {
                Step::Fail(Refusal::StreamError(StreamError::of(element).condition))
            }
            _ => fail("another element in answer to <starttls/>"),
        }
    }
}

fn ready(header: StreamHeader, element: &Element<'_>) -> Step {
    Step::Ready(header, element.bytes().to_vec())
}

fn fail(rule: &'static str) -> Step {
    Step::Fail(Refusal::Protocol(rule))
}

/// Major version 1 or later (RFC 6120 §4.7.5 compares numerically).
fn is_version_1(version: &str) -> bool {
    let major = version.split('.').next().unwrap_or_default();
    major.parse::<u32>().is_ok_and(|major| major >= 1)
}

fn offers_starttls(features: &Element<'_>) -> bool {
    features.children().iter().any(|child| child.namespace == ns::TLS && child.local == "starttls")
}

/// What a stream error says, as far as the negotiation cares.
struct StreamError {
    condition: Box<str>,
    see_other_host: Option<Box<str>>,
}

impl StreamError {
    fn of(element: &Element<'_>) -> Self {
        let unknown = || Self { condition: "undefined-condition".into(), see_other_host: None };
        let Ok(dom) = element.to_dom() else {
            return unknown();
        };
        let mut conditions = dom.children().filter(|child| child.ns() == ns::STREAM_ERRORS);
        let Some(condition) = conditions.find(|child| child.name() != "text") else {
            return unknown();
        };
        let see_other_host =
            (condition.name() == "see-other-host").then(|| condition.text().trim().into());
        Self { condition: condition.name().into(), see_other_host }
    }
}

/// Splits RFC 6120 §4.9.3.19's `host[:port]`, where an IPv6 address stands in brackets. `None` if it
/// is neither a name nor an address, or the port is none.
pub fn host_and_port(text: &str) -> Option<(Domain, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(_) => return None,
    };
    Some((Domain::parse(host).ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::xml::{ItemReader, Limits, Policy, Scratch};

    fn header(from: Option<&str>, lang: Option<&str>) -> String {
        let mut out = Vec::new();
        write_header(&mut out, &Domain::parse("Example.org").unwrap(), from, lang);
        String::from_utf8(out).unwrap()
    }

    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0'";

    /// UP-03: the bytes of our header.
    #[test]
    fn the_header_is_as_stated() {
        assert_eq!(header(None, None), format!("{HEADER}>"));
        assert_eq!(
            header(Some("ayşe@example.org"), Some("tr")),
            format!("{HEADER} xml:lang='tr' from='ayşe@example.org'>")
        );
    }

    /// UP-04: what is not shaped like a language tag is left out.
    #[test]
    fn only_languages_are_languages() {
        for lang in ["tr", "en-GB", "zh-Hant-TW", "de-1996", "x-private1"] {
            assert_eq!(header(None, Some(lang)), format!("{HEADER} xml:lang='{lang}'>"));
        }
        for lang in ["", "a'b", "en_GB", "en-", "-en", "toolongtag", "e1", "en-türk", "en '"] {
            assert_eq!(header(None, Some(lang)), format!("{HEADER}>"), "{lang}");
        }
    }

    /// UP-05: `from` is a bare JID of this domain, or it is left out.
    #[test]
    fn only_a_bare_jid_of_the_domain_is_told() {
        let told = |from| header(Some(from), None) != format!("{HEADER}>");
        for from in ["a@example.org", "A.b-c@EXAMPLE.org", "çiğdem@example.org", "a;b@example.org"]
        {
            assert!(told(from), "{from}");
        }
        for from in [
            "example.org",
            "@example.org",
            "a@example.net",
            "a@example.org/r",
            "a@b@example.org",
            "a b@example.org",
            "a'@example.org",
            "a&b@example.org",
            "a<@example.org",
            "a@",
            "",
            "a\n@example.org",
            "a:b@example.org",
            "a\"@example.org",
        ] {
            assert!(!told(from), "{from}");
        }
        assert!(!told(&format!("{}@example.org", "a".repeat(1024))));
    }

    /// Runs a negotiation over what a server says; STARTTLS "succeeds" at once.
    fn run(mode: TlsMode, said: &[&str]) -> Vec<String> {
        let mut negotiation = Negotiation::new(mode);
        let mut steps = Vec::new();
        let mut scratch = Scratch::default();
        for said in said {
            let mut reader = ItemReader::new(Limits::SERVER, Policy::Tolerant);
            let mut input = said.as_bytes();
            while let Some(item) = reader.next(&mut scratch, &mut input).unwrap() {
                match negotiation.handle(item) {
                    Step::Wait => {}
                    Step::Handshake => {
                        steps.push("Handshake".to_owned());
                        negotiation.secured();
                    }
                    Step::Ready(header, first) => {
                        let first = String::from_utf8(first).unwrap();
                        steps.push(format!("Ready {} {first}", header.id.unwrap_or_default()));
                    }
                    Step::Fail(refusal) => steps.push(format!("{refusal:?}")),
                    other => steps.push(format!("{other:?}")),
                }
            }
        }
        steps
    }

    const OPEN: &str = "<stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";
    const OFFER: &str =
        "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>";
    const LOGIN: &str = "<stream:features><mechanisms xmlns='m'/></stream:features>";
    const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

    /// UP-11, UP-15: each mode, by what the server offers.
    #[test]
    fn features_are_taken_by_mode() {
        let offer = format!("{OPEN}{OFFER}");
        let login = format!("{OPEN}{LOGIN}");
        let ready = |features: &str| vec![format!("Ready 1 {features}")];
        for mode in [TlsMode::Never, TlsMode::Direct] {
            assert_eq!(run(mode, &[&offer]), ready(OFFER));
            assert_eq!(run(mode, &[&login]), ready(LOGIN));
        }
        for mode in [TlsMode::IfOffered, TlsMode::Required] {
            assert_eq!(run(mode, &[&offer]), ["SendStartTls"]);
            let negotiated = run(mode, &[&format!("{offer}{PROCEED}"), &login]);
            assert_eq!(negotiated, ["SendStartTls", "Handshake", &format!("Ready 1 {LOGIN}")]);
            // Offered again inside TLS, it is not taken again.
            let negotiated = run(mode, &[&format!("{offer}{PROCEED}"), &offer]);
            assert_eq!(negotiated[2], format!("Ready 1 {OFFER}"));
        }
        assert_eq!(run(TlsMode::IfOffered, &[&login]), ready(LOGIN));
        assert_eq!(run(TlsMode::Required, &[&login]), ["NotOffered"]);
    }

    /// UP-13: only `<proceed/>` in its namespace goes on.
    #[test]
    fn nothing_but_proceed_proceeds() {
        let answered = |answer: &str| {
            run(TlsMode::IfOffered, &[&format!("{OPEN}{OFFER}{answer}")]).pop().unwrap()
        };
        assert_eq!(answered("<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"), "Refused");
        assert!(answered("<proceed/>").starts_with("Protocol"));
        assert!(answered(LOGIN).starts_with("Protocol"));
        assert_eq!(answered("</stream:stream>"), "Closed");
        let error =
            "<stream:error><reset xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
        assert_eq!(answered(error), "StreamError(\"reset\")");
    }

    /// UP-05: a header that TLS may follow does not name the client.
    #[test]
    fn from_waits_for_tls() {
        for (mode, local, told) in [
            (TlsMode::Never, true, true),
            (TlsMode::Never, false, false),
            (TlsMode::IfOffered, true, false),
            (TlsMode::Required, true, false),
            (TlsMode::Direct, false, true),
        ] {
            let mut negotiation = Negotiation::new(mode);
            assert_eq!(negotiation.tells_from(local), told, "{mode:?}");
            negotiation.secured();
            assert!(negotiation.tells_from(local));
        }
    }

    /// UP-09: a redirection is found, before TLS too; other errors wait for required TLS.
    #[test]
    fn stream_errors_are_told_apart() {
        let error = |condition: &str| {
            format!(
                "{OPEN}<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
                 </stream:error>"
            )
        };
        let other = format!(
            "{OPEN}<stream:error><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>x</text>\
             <see-other-host xmlns='urn:ietf:params:xml:ns:xmpp-streams'> b.example:5223\
             </see-other-host></stream:error>"
        );
        for mode in [TlsMode::Never, TlsMode::Required, TlsMode::Direct] {
            assert_eq!(run(mode, &[&other]), ["SeeOtherHost(\"b.example:5223\")"]);
        }
        let gone = error("host-unknown");
        assert_eq!(run(TlsMode::Required, &[&gone]), ["StreamError(\"host-unknown\")"]);
        assert!(run(TlsMode::IfOffered, &[&gone])[0].starts_with("Ready 1 <stream:error>"));
        // In another namespace it redirects nobody.
        let fake = format!(
            "{OPEN}<stream:error><see-other-host xmlns='x'>y</see-other-host></stream:error>"
        );
        assert!(run(TlsMode::Never, &[&fake])[0].starts_with("Ready"));
    }

    /// RFC 6120 §4: what cannot open a stream ends the negotiation.
    #[test]
    fn a_stream_that_does_not_open_is_refused() {
        let said = |text: &str| run(TlsMode::Never, &[text]).pop().unwrap();
        assert!(said(&OPEN.replace(" version='1.0'", "")).starts_with("Protocol"));
        assert!(said(&OPEN.replace("'1.0'", "'0.9'")).starts_with("Protocol"));
        assert!(said(&format!("{OPEN}<message/>")).starts_with("Protocol"));
        assert_eq!(said(&format!("{OPEN}</stream:stream>")), "Closed");
        assert!(said(&format!("{}{LOGIN}", OPEN.replace("'1.0'", "'1.12'"))).starts_with("Ready"));
    }

    /// UP-09, SEC-22: names, addresses and ports; nothing else.
    #[test]
    fn a_see_other_host_is_a_host() {
        let parsed =
            |text| host_and_port(text).map(|(host, port)| (host.as_str().to_owned(), port));
        let some = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(parsed("b.example"), some("b.example", None));
        assert_eq!(parsed("b.example:5223"), some("b.example", Some(5223)));
        assert_eq!(parsed("192.0.2.1:80"), some("192.0.2.1", Some(80)));
        assert_eq!(parsed("[2001:db8::1]:9222"), some("[2001:db8::1]", Some(9222)));
        assert_eq!(parsed("[2001:db8::1]"), some("[2001:db8::1]", None));
        for text in
            ["", ":5222", "b:0", "b:65536", "b:x", "2001:db8::1", "a@b", "b/c", "[::1", "b:"]
        {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}

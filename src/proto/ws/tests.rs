//! The rules of RFC 7395, draft-moffitt and of the upstream stream, on the machine alone: bytes
//! and time in, bytes out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::frame::FrameLimits;
use super::super::item::{Item, StreamHeader};
use super::super::seam::FeatureRules;
use super::super::xml::{ItemReader, Limits, Policy, Scratch};
use super::session::{ClientSide, Loss, Out, Session};
use super::{CLOSE, Settings};
use crate::proto::stream::{Served, ServerSide, Tally};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='q7' from='example.org' version='1.0' \
    xml:lang='en'>";
const OPEN: &str = "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" to=\"example.org\" \
    version=\"1.0\" xml:lang=\"tr\"/>";
const OPENED: &str = "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" id=\"q7\" \
    from=\"example.org\" version=\"1.0\" xml:lang=\"en\"/>";
const LEGACY: &str = "<stream:stream to='example.org' xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
const LEGACY_OPENED: &str = "<stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='q7' from='example.org' version='1.0' \
    xml:lang='en'>";
const FOOTER: &str = "</stream:stream>";
const FEATURES: &str = "<stream:features><mechanisms \
    xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
    </stream:features>";

/// A frame the client got.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Got {
    Text(String),
    Ping,
    Pong(Vec<u8>),
    Close(u16),
}

fn text(text: impl Into<String>) -> Got {
    Got::Text(text.into())
}

struct Rig {
    session: Session,
    scratch: Scratch,
    out: Out,
    now: Instant,
}

fn settings() -> Settings {
    let xml = Limits {
        element_bytes: 262_144,
        depth: 64,
        attributes: 128,
        name_bytes: 1024,
        namespaces: 64,
        elements: 10_000,
    };
    Settings {
        served: Served {
            domains: [Domain::parse("example.org").unwrap()].into(),
            ..Served::default()
        },
        client_xml: xml,
        server_xml: Limits { element_bytes: 1 << 20, ..xml },
        frames: FrameLimits { message_bytes: 262_144, fragments: 64 },
        pending_bytes: 1 << 20,
        pending_stanzas: 1000,
        unauthenticated_bytes: 65_536,
        unauthenticated_lifetime: Duration::from_secs(60),
        legacy_framing: true,
        ping_interval: Duration::from_secs(30),
        missed_pongs: 2,
        message_timeout: Duration::from_secs(30),
        close_grace: Duration::from_secs(5),
        whitespace_keepalive: Duration::ZERO,
        stamp_lang: false,
        see_other_uri: None,
        features: FeatureRules::default(),
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let now = Instant::now();
        Self {
            session: Session::new(Arc::new(settings), 0x5f1c, now),
            scratch: Scratch::default(),
            out: Out::default(),
            now,
        }
    }

    /// A session whose features have arrived.
    fn opened() -> Self {
        Self::new().open()
    }

    fn open(mut self) -> Self {
        assert_eq!(self.say(OPEN), []);
        assert_eq!(self.connect(HEADER), [text(OPENED)]);
        self.server(FEATURES);
        self.upstream();
        self
    }

    fn legacy() -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.say(LEGACY), []);
        assert_eq!(rig.connect(HEADER), [text(LEGACY_OPENED)]);
        rig.server(FEATURES);
        rig.upstream();
        rig
    }

    /// A session whose resource is bound.
    fn bound() -> Self {
        let mut rig = Self::opened();
        rig.log_in();
        rig.say(OPEN);
        rig.server(&format!("{HEADER}<stream:features/>"));
        rig.server(
            "<iq type='result' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <jid>a@example.org/r</jid></bind></iq>",
        );
        rig.upstream();
        rig
    }

    fn log_in(&mut self) {
        self.say(&format!("<auth xmlns='{SASL}' mechanism='PLAIN'>AGEAYg==</auth>"));
        self.server(&format!("<success xmlns='{SASL}'/>"));
        self.upstream();
    }

    /// The client sends one text message.
    fn say(&mut self, message: &str) -> Vec<Got> {
        self.send(&frame(0x81, message.as_bytes()))
    }

    fn send(&mut self, bytes: &[u8]) -> Vec<Got> {
        let mut bytes = bytes.to_vec();
        let mut input = bytes.as_mut_slice();
        self.session.from_client(&mut self.scratch, &mut input, &mut self.out, self.now);
        self.got()
    }

    fn connect(&mut self, header: &str) -> Vec<Got> {
        assert!(self.session.take_request().is_some(), "no upstream was asked for");
        let header = header_of(header);
        self.session.connected(&header, true, false, &mut self.out, self.now);
        self.got()
    }

    /// The server sends.
    fn server(&mut self, xml: &str) -> Vec<Got> {
        self.server_bytes(xml.as_bytes())
    }

    fn server_bytes(&mut self, xml: &[u8]) -> Vec<Got> {
        let mut input = xml;
        self.session.from_server(&mut self.scratch, &mut input, &mut self.out, self.now);
        self.got()
    }

    /// What was written to the server since the last call.
    fn upstream(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.out.server)).unwrap()
    }

    fn wait(&mut self, seconds: u64) -> Vec<Got> {
        self.now += Duration::from_secs(seconds);
        self.session.tick(&mut self.out, self.now);
        self.got()
    }

    /// Runs every deadline that comes within `seconds`.
    fn pass(&mut self, seconds: u64) -> Vec<Got> {
        let end = self.now + Duration::from_secs(seconds);
        let mut all = Vec::new();
        while let Some(at) = self.session.deadline().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.session.tick(&mut self.out, self.now);
            all.extend(self.got());
        }
        self.now = end;
        all
    }

    fn got(&mut self) -> Vec<Got> {
        let bytes = std::mem::take(&mut self.out.client);
        let mut rest = bytes.as_slice();
        let mut all = Vec::new();
        while let [first, second, tail @ ..] = rest {
            assert_eq!(second & 0x80, 0, "a server does not mask");
            assert_eq!(first & 0xf0, 0x80, "one whole frame a message");
            let (length, tail) = match second & 0x7f {
                126 => (u16::from_be_bytes([tail[0], tail[1]]) as usize, &tail[2..]),
                127 => (u64::from_be_bytes(tail[..8].try_into().unwrap()) as usize, &tail[8..]),
                length => (length as usize, tail),
            };
            let (payload, tail) = tail.split_at(length);
            all.push(match first & 0x0f {
                1 => {
                    assert!(!payload.trim_ascii().is_empty(), "WS-14, WS-18: an empty message");
                    Got::Text(String::from_utf8(payload.to_vec()).unwrap())
                }
                8 => Got::Close(u16::from_be_bytes([payload[0], payload[1]])),
                9 => Got::Ping,
                10 => Got::Pong(payload.to_vec()),
                other => panic!("opcode {other}"),
            });
            rest = tail;
        }
        all
    }

    /// The stream error of `condition`, the stream end and the Close frame, whatever came before.
    #[track_caller]
    fn expect_error(got: &[Got], condition: &str, code: u16) {
        let [.., Got::Text(error), close, Got::Close(sent)] = got else {
            panic!("not an error and a close: {got:?}");
        };
        assert!(error.contains(&format!("<{condition} xmlns=")), "{error}");
        assert!(
            error.starts_with("<stream:error xmlns:stream=\"http://etherx.jabber.org/streams\">"),
            "{error}"
        );
        assert_eq!((close, *sent), (&text(CLOSE), code));
    }
}

fn header_of(xml: &str) -> StreamHeader {
    let mut reader = ItemReader::new(settings().server_xml, Policy::Tolerant);
    let mut input = xml.as_bytes();
    match reader.next(&mut Scratch::default(), &mut input) {
        Ok(Some(Item::Header(header))) => header,
        other => panic!("no header: {other:?}"),
    }
}

/// A masked frame of a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [0x1d, 0x32, 0x57, 0x9c];
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A Close frame of a client.
fn close_frame(code: u16) -> Vec<u8> {
    frame(0x88, &code.to_be_bytes())
}

// ---- framing -----------------------------------------------------------------------------

/// WS-08: a binary message closes with 1003, and the server's stream ends as in WS-33.
#[test]
fn binary_messages_close_with_1003() {
    let mut rig = Rig::opened();
    let got = rig.send(&frame(0x82, b"<presence/>"));
    assert_eq!(got.last(), Some(&Got::Close(1003)));
    assert_eq!(rig.upstream(), FOOTER);
}

/// WS-09, WS-41: fragments make one message, with a ping between them answered at once.
#[test]
fn fragments_are_one_message_and_pings_may_come_between() {
    let mut rig = Rig::opened();
    let mut bytes = frame(0x01, b"<pre");
    bytes.extend(frame(0x89, b"abc"));
    bytes.extend(frame(0x80, b"sence xmlns=\"jabber:client\"/>"));
    assert_eq!(rig.send(&bytes), [Got::Pong(b"abc".to_vec())]);
    assert_eq!(rig.upstream(), "<presence xmlns=\"jabber:client\"/>");
}

/// WS-41: an unsolicited pong is ignored.
#[test]
fn unsolicited_pongs_are_ignored() {
    let mut rig = Rig::opened();
    assert_eq!(rig.send(&frame(0x8a, b"xyz")), []);
    assert_eq!(rig.session.client(), ClientSide::Open);
}

/// WS-10, SEC-06: text that is no UTF-8 closes with 1007 and forwards nothing.
#[test]
fn bad_utf8_closes_with_1007() {
    let mut rig = Rig::opened();
    let got = rig.send(&frame(0x81, &[0x3c, 0x61, 0xc0, 0x80, 0x2f, 0x3e]));
    assert_eq!(got.last(), Some(&Got::Close(1007)));
    assert_eq!(rig.upstream(), FOOTER);
}

/// WS-11, SEC-04: a message that is not exactly one element ends the session, and nothing of it
/// is forwarded; WS-33: the server's stream is closed, so that it cannot be resumed and replayed.
#[test]
fn a_message_is_exactly_one_element() {
    for message in [
        "<presence/><presence/>",
        "<presence/>x",
        "<presence>",
        "<presence></iq>",
        "<a/><!-- -->",
        "</presence>",
        "<presence/></stream:stream>",
    ] {
        let mut rig = Rig::opened();
        let got = rig.say(message);
        assert!(matches!(got.last(), Some(Got::Close(1000))), "{message}: {got:?}");
        assert_eq!(rig.upstream(), FOOTER, "{message}");
    }
    let mut rig = Rig::opened();
    Rig::expect_error(&rig.say("<presence/><presence/>"), "not-well-formed", 1000);
}

/// WS-12: the first character is `<`; what is empty or only white space is dropped and counted.
#[test]
fn messages_begin_with_an_element() {
    let mut rig = Rig::opened();
    assert_eq!(rig.say(" \r\n\t"), []);
    assert_eq!(rig.say(""), []);
    assert_eq!(rig.out.tally.blank, 2);
    assert_eq!(rig.session.client(), ClientSide::Open);
    for message in ["hello", " <presence/>"] {
        let mut rig = Rig::opened();
        Rig::expect_error(&rig.say(message), "bad-format", 1000);
        assert_eq!(rig.upstream(), FOOTER);
    }
}

/// WS-13: a declaration at the very start is accepted and dropped, in any message; none is sent.
#[test]
fn declarations_are_dropped() {
    let mut rig = Rig::new();
    assert_eq!(rig.say(&format!("<?xml version='1.0'?>{OPEN}")), []);
    assert_eq!(rig.connect(HEADER), [text(OPENED)]);
    rig.say("<?xml version='1.0' encoding='utf-8'?><presence/>");
    assert_eq!(rig.upstream(), "<presence/>");
    Rig::expect_error(
        &rig.say("<?xml version='1.0' encoding='latin1'?><presence/>"),
        "unsupported-encoding",
        1000,
    );
}

/// WS-11, WS-13, SEC-04: what stands behind a declaration begins with `<`, too.
#[test]
fn a_declaration_hides_nothing() {
    for message in [
        "<?xml version='1.0'?>xa/>",
        "<?xml version='1.0'?> \u{1c}a></a>",
        "<?xml version='1.0'?>>a/>",
        "<?xml version='1.0'?>x/stream:stream>",
        "<?xml version='1.0'?>&lt;a/>",
    ] {
        for mut rig in [Rig::opened(), Rig::legacy()] {
            let got = rig.say(message);
            assert!(matches!(got.last(), Some(Got::Close(1000))), "{message}: {got:?}");
            assert_eq!(rig.upstream(), FOOTER, "{message}");
        }
    }
}

/// WS-14, UP-28: every element of the server is a message of its own, however it arrives.
#[test]
fn elements_of_the_server_are_messages() {
    let stream = format!("{FEATURES}<message><body>hi</body></message> \n<presence/>");
    let whole = Rig::new();
    let mut whole = {
        let mut rig = whole;
        rig.say(OPEN);
        rig.connect(HEADER);
        rig
    };
    let expected = whole.server(&stream);
    assert_eq!(expected.len(), 3);
    assert_eq!(expected[1], text("<message xmlns=\"jabber:client\"><body>hi</body></message>"));
    let mut dribble = Rig::new();
    dribble.say(OPEN);
    dribble.connect(HEADER);
    let got: Vec<_> =
        stream.as_bytes().chunks(1).flat_map(|chunk| dribble.server_bytes(chunk)).collect();
    assert_eq!(got, expected);
}

/// WS-15, UP-29: every message to the client is complete in itself.
#[test]
fn messages_to_the_client_stand_alone() {
    let mut rig = Rig::new();
    rig.say(OPEN);
    rig.connect(&HEADER.replace("id='q7'", "id='q7' xmlns:x='urn:x'"));
    let got = rig.server("<message><x:y/></message>");
    assert_eq!(got, [text("<message xmlns=\"jabber:client\" xmlns:x=\"urn:x\"><x:y/></message>")]);
    let got = rig.server("<message xmlns='jabber:client'><deep><x:y/></deep></message>");
    assert_eq!(
        got,
        [text("<message xmlns:x=\"urn:x\" xmlns='jabber:client'><deep><x:y/></deep></message>")]
    );
}

/// WS-16, UP-17, WS-43: features carry the literal prefix and its declaration; STARTTLS and
/// compression are gone, the rest keeps its order. UP-18: and its bytes.
#[test]
fn features_carry_the_stream_prefix() {
    let mut rig = Rig::new();
    rig.say(OPEN);
    rig.connect(HEADER);
    let got = rig.server(
        "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
         <compression xmlns='http://jabber.org/features/compress'><method>zlib</method>\
         </compression><csi xmlns='urn:xmpp:csi:0'/><odd  xmlns='urn:odd' a = \"1\" >&#x41;</odd>\
         </stream:features>",
    );
    assert_eq!(
        got,
        [text(
            "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\">\
             <csi xmlns='urn:xmpp:csi:0'/><odd  xmlns='urn:odd' a = \"1\" >&#x41;</odd>\
             </stream:features>"
        )]
    );
}

/// UP-19: mechanism lists and channel-binding lists pass unedited, order kept.
#[test]
fn mechanisms_pass_unedited() {
    let mechanisms = "<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
        <mechanism>SCRAM-SHA-256-PLUS</mechanism><mechanism>EXTERNAL</mechanism>\
        <mechanism>PLAIN</mechanism></mechanisms><sasl-channel-binding \
        xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-exporter'/></sasl-channel-binding>";
    let mut rig = Rig::new();
    rig.say(OPEN);
    rig.connect(HEADER);
    let got = rig.server(&format!("<stream:features>{mechanisms}</stream:features>"));
    let [Got::Text(features)] = got.as_slice() else { panic!("{got:?}") };
    assert!(features.contains(mechanisms), "{features}");
}

/// UP-16: where we authenticate ourselves by certificate, EXTERNAL would be us, not the client.
#[test]
fn external_is_removed_where_a_certificate_is_shown() {
    let mut rig = Rig::new();
    rig.say(OPEN);
    rig.session.take_request();
    rig.session.connected(&header_of(HEADER), true, true, &mut rig.out, rig.now);
    rig.got();
    let got = rig.server(
        "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
         <mechanism>EXTERNAL</mechanism><mechanism>PLAIN</mechanism></mechanisms>\
         </stream:features>",
    );
    let [Got::Text(features)] = got.as_slice() else { panic!("{got:?}") };
    assert!(!features.contains("EXTERNAL") && features.contains("PLAIN"), "{features}");
}

/// WS-17: a stanza without a namespace is taken as `jabber:client`, its children with it.
#[test]
fn stanzas_without_namespace_are_jabber_client() {
    let mut rig = Rig::opened();
    rig.say("<message to='a@b'><body>x</body></message>");
    assert_eq!(rig.upstream(), "<message to='a@b'><body>x</body></message>");
    rig.say("<message xmlns='' to='a@b'><body>x</body></message>");
    let sent = rig.upstream();
    assert!(!sent.contains("xmlns=''"), "{sent}");
    assert_eq!(rig.out.tally.to_server.elements[0], 2);
}

/// WS-18: white space between the server's elements is swallowed.
#[test]
fn white_space_of_the_server_is_swallowed() {
    let mut rig = Rig::opened();
    assert_eq!(rig.server("\n \n"), []);
    assert_eq!(rig.session.server(), ServerSide::Open);
}

// ---- opening -------------------------------------------------------------------------------

/// WS-19: before `<open/>` nothing is forwarded and no connection is made.
#[test]
fn nothing_happens_before_open() {
    let mut rig = Rig::new();
    let got = rig.say("<iq xmlns='jabber:client' type='get' id='1'/>");
    assert!(matches!(&got[0], Got::Text(open) if open.starts_with("<open ")), "{got:?}");
    Rig::expect_error(&got, "bad-format", 1000);
    assert!(rig.session.take_request().is_none());
    assert_eq!(rig.session.server(), ServerSide::Absent);
}

/// WS-20: `<open/>` in another namespace.
#[test]
fn open_in_another_namespace_is_refused() {
    for open in ["<open xmlns='jabber:client' to='example.org'/>", "<open to='example.org'/>"] {
        let mut rig = Rig::new();
        Rig::expect_error(&rig.say(open), "invalid-namespace", 1000);
        assert!(rig.session.take_request().is_none());
    }
}

/// WS-21: `to` is prepared and chooses the domain; unknown and missing ones are refused without
/// any lookup, and the error comes from the domain that was asked for.
#[test]
fn to_selects_the_domain() {
    let open =
        |to: &str| format!("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' version='1.0'{to}/>");
    let mut rig = Rig::new();
    rig.say(&open(" to='EXAMPLE.org'"));
    assert_eq!(rig.session.take_request().unwrap().domain.as_str(), "example.org");
    for to in [" to='nope.example'", "", " to='a@example.org'", " to=''"] {
        let mut rig = Rig::new();
        let got = rig.say(&open(to));
        Rig::expect_error(&got, "host-unknown", 1000);
        assert_eq!(got.len(), 4, "{got:?}");
        assert!(rig.session.take_request().is_none(), "{to}");
    }
    let mut rig = Rig::with(|settings| settings.served.default = Domain::parse("example.org").ok());
    rig.say(&open(""));
    assert!(rig.session.take_request().is_some());
}

/// WS-22: of the client's `<open/>` only `to`, `from`, `xml:lang` and `version` go on.
#[test]
fn only_four_attributes_of_open_go_on() {
    let mut rig = Rig::new();
    rig.say(
        "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' id='evil' foo='1' xmlns:q='urn:q' \
         to='example.org' from='ayse@example.org' version='1.0' xml:lang='tr'/>",
    );
    let request = rig.session.take_request().unwrap();
    assert_eq!(request.domain.as_str(), "example.org");
    assert_eq!(request.from.as_deref(), Some("ayse@example.org"));
    assert_eq!(request.lang.as_deref(), Some("tr"));
}

/// WS-23: the answer copies the final header and comes exactly once.
#[test]
fn open_is_answered_once_with_the_servers_attributes() {
    let mut rig = Rig::new();
    assert_eq!(rig.say(OPEN), [], "no answer before the server's header");
    let got = rig.connect(&HEADER.replace("id='q7'", "id='b&lt;1'"));
    assert_eq!(got, [text(OPENED.replace("\"q7\"", "\"b&lt;1\""))]);
}

/// WS-24: byte for byte what clients compare as strings.
#[test]
fn open_and_close_are_byte_exact() {
    let mut rig = Rig::opened();
    let got = rig.server(FOOTER);
    assert_eq!(got[0], text("<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" />"));
}

/// WS-25, WS-28: a second `<open/>` where no restart is due.
#[test]
fn a_second_open_is_refused() {
    for mut rig in [Rig::opened(), Rig::bound()] {
        Rig::expect_error(&rig.say(OPEN), "bad-format", 1000);
        assert_eq!(rig.upstream(), FOOTER, "no nested header");
    }
}

/// WS-26: no version is 1.0; another major part is refused.
#[test]
fn only_version_1_is_spoken() {
    for (version, fine) in [("", true), (" version='1.9'", true), (" version='2.0'", false)] {
        let mut rig = Rig::new();
        let got = rig.say(&format!(
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.org'{version}/>"
        ));
        if fine {
            assert!(rig.session.take_request().is_some());
        } else {
            Rig::expect_error(&got, "unsupported-version", 1000);
        }
    }
}

// ---- restart -------------------------------------------------------------------------------

/// WS-27, WS-23: after `<success/>` an `<open/>` makes a new header on the same connection, with
/// no end in either direction, and the new header is answered by a second `<open/>`.
#[test]
fn success_and_open_restart_the_stream() {
    let mut rig = Rig::opened();
    rig.log_in();
    assert_eq!(rig.say(OPEN), []);
    assert_eq!(
        rig.upstream(),
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0' \
         xml:lang='tr'>"
    );
    let got = rig.server(&format!("{}<stream:features/>", HEADER.replace("q7", "q8")));
    assert_eq!(got[0], text(OPENED.replace("q7", "q8")));
    assert_eq!(got.len(), 2);
    rig.say("<presence/>");
    assert_eq!(rig.upstream(), "<presence/>");
}

/// WS-29: between the success and the `<open/>` nothing else is forwarded; after the `<open/>`
/// even a hasty bind is.
#[test]
fn only_open_may_follow_a_success() {
    let mut rig = Rig::opened();
    rig.log_in();
    Rig::expect_error(&rig.say("<iq type='get' id='1'/>"), "bad-format", 1000);
    assert_eq!(rig.upstream(), FOOTER);

    let mut rig = Rig::opened();
    rig.log_in();
    rig.say(OPEN);
    rig.upstream();
    rig.say("<iq type='set' id='b'/>");
    assert_eq!(rig.upstream(), "<iq type='set' id='b'/>");
}

/// WS-30: a SASL2 success is no restart point.
#[test]
fn sasl2_success_is_no_restart() {
    let mut rig = Rig::opened();
    rig.server(
        "<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>a@example.org\
         </authorization-identifier></success>",
    );
    let got = rig.server("<stream:features/>");
    assert_eq!(got.len(), 1, "features follow on the running stream");
    rig.say("<presence/>");
    assert_eq!(rig.upstream(), "<presence/>");
    Rig::expect_error(&rig.say(OPEN), "bad-format", 1000);
}

/// UP-23: a client's own `<success/>` changes nothing.
#[test]
fn a_forged_success_changes_no_phase() {
    let mut rig = Rig::opened();
    rig.say(&format!("<success xmlns='{SASL}'/>"));
    rig.upstream();
    Rig::expect_error(&rig.say(OPEN), "bad-format", 1000);
}

/// UP-24, UP-32: a login of XEP-0078 is one; its fields alone, or another answer, are none.
#[test]
fn a_login_without_sasl_is_a_login() {
    let login = "<iq type='set' id='l'><query xmlns='jabber:iq:auth'><username>a</username>\
        <password>b</password><resource>r</resource></query></iq>";
    let logs_in = |answers: &[&str]| {
        let mut rig = Rig::opened();
        rig.say(&login.replace("'set'", "'get'"));
        rig.say(login);
        for answer in answers {
            rig.server(answer);
        }
        rig.send(&frame(0x8a, b""));
        rig.wait(59);
        rig.send(&frame(0x8a, b""));
        rig.pass(10);
        rig.session.client() == ClientSide::Open
    };
    let fields = "<iq type='result' id='l'><query xmlns='jabber:iq:auth'><username/></query></iq>";
    assert!(!logs_in(&[fields, "<iq type='error' id='l'/>", "<iq type='result' id='x'/>"]));
    assert!(logs_in(&[fields, "<iq type='result' id='l'/>"]));
}

// ---- errors and closing --------------------------------------------------------------------

/// WS-31: an error before `<open/>` is open, error, close, Close, in this order, with an id of
/// our own and the domain asked for.
#[test]
fn an_early_error_is_framed_by_an_open() {
    let mut rig = Rig::new();
    rig.say(OPEN);
    rig.session.connect_failed(Fault::ServerUnreachable, &mut rig.out, rig.now);
    let got = rig.got();
    assert_eq!(
        got[0],
        text(
            "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" id=\"0000000000005f1c\" \
             from=\"example.org\" version=\"1.0\"/>"
        )
    );
    Rig::expect_error(&got, "remote-connection-failed", 1000);
    assert_eq!(got.len(), 4);
    // Afterwards the same without the first.
    let mut rig = Rig::opened();
    let got = rig.say("<a>");
    Rig::expect_error(&got, "not-well-formed", 1000);
    assert_eq!(got.len(), 3);
}

/// WS-32, WS-16, UP-34: the server's stream error arrives whole, then close and Close 1000; the
/// server gets our stream end.
#[test]
fn the_servers_error_is_forwarded_whole() {
    let mut rig = Rig::bound();
    let got = rig.server(
        "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
         <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>Replaced</text>\
         <app xmlns='urn:app'/></stream:error></stream:stream>",
    );
    let [Got::Text(error), close, Got::Close(1000)] = got.as_slice() else { panic!("{got:?}") };
    assert_eq!(close, &text(CLOSE));
    for part in ["<stream:error ", "<conflict xmlns=", "Replaced", "<app xmlns="] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(rig.upstream(), FOOTER);
    assert_eq!(rig.session.ended(), Some(Fault::ServerError));
}

/// WS-34, UP-35: after the client's `<close/>` the server gets its stream end, what it still
/// sends is delivered, and its end is answered.
#[test]
fn close_delivers_what_the_server_still_sends() {
    let mut rig = Rig::bound();
    assert_eq!(rig.say("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>"), []);
    assert_eq!(rig.upstream(), FOOTER);
    let got = rig.server("<message><body>last</body></message>");
    assert_eq!(got.len(), 1);
    assert_eq!(rig.server(FOOTER), [text(CLOSE)]);
    assert_eq!(rig.send(&close_frame(1000)), [Got::Close(1000)]);
    rig.session.client_flushed();
    rig.session.server_gone(&mut rig.out, rig.now);
    assert!(rig.session.is_over());
    assert_eq!(rig.session.ended(), Some(Fault::Closed));
}

/// WS-34: a server that does not answer is not waited for longer than the grace.
#[test]
fn close_is_answered_after_the_grace() {
    let mut rig = Rig::bound();
    rig.say("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>");
    assert_eq!(rig.wait(4), []);
    assert_eq!(rig.wait(1), [text(CLOSE)]);
    assert_eq!(rig.session.server(), ServerSide::Gone);
}

/// WS-34: Strophe closes the socket right behind its `<close/>`; that is a clean end.
#[test]
fn a_close_frame_after_close_is_clean() {
    let mut rig = Rig::bound();
    rig.say("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>");
    assert_eq!(rig.send(&close_frame(1000)), [Got::Close(1000)]);
    assert_eq!(rig.upstream(), FOOTER);
    assert_eq!(rig.session.ended(), Some(Fault::Closed));
}

/// WS-35: a client that stays silent after both closes is closed with 1000, then dropped, within
/// twice the grace.
#[test]
fn a_silent_client_is_closed_after_the_grace() {
    let mut rig = Rig::bound();
    rig.say("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>");
    rig.server(FOOTER);
    assert_eq!(rig.pass(5), [Got::Close(1000)]);
    rig.pass(5);
    assert_eq!(rig.session.client(), ClientSide::Gone);
}

/// WS-36: the server's end becomes close and Close 1000, without waiting for the client.
#[test]
fn the_servers_end_closes_the_client() {
    let mut rig = Rig::bound();
    assert_eq!(rig.server(FOOTER), [text(CLOSE), Got::Close(1000)]);
    assert_eq!(rig.upstream(), FOOTER);
    rig.pass(5);
    assert_eq!(rig.session.client(), ClientSide::Gone);
    assert_eq!(rig.session.ended(), Some(Fault::ServerClosed));
}

/// WS-37, SM-04: a client that is lost or leaves without `<close/>` ends the upstream without a
/// stream end.
#[test]
fn a_lost_client_gives_no_stream_end() {
    let mut rig = Rig::bound();
    rig.session.client_gone(Loss::Lost, rig.now);
    assert_eq!(rig.upstream(), "");
    assert!(matches!(rig.session.server(), ServerSide::Finishing(_)));
    assert_eq!(rig.session.ended(), Some(Fault::ClientLost));

    let mut rig = Rig::bound();
    assert_eq!(rig.send(&close_frame(1001)), [Got::Close(1001)]);
    assert_eq!(rig.upstream(), "");
    assert!(matches!(rig.session.server(), ServerSide::Finishing(_)));
    assert_eq!(rig.session.ended(), Some(Fault::ClientLeft));
}

/// WS-39: on shutdown a client with SM gets Close 1001 and the server no end; another gets
/// `system-shutdown` and the server a clean end.
#[test]
fn a_drain_lets_sm_sessions_resume() {
    let mut rig = Rig::bound();
    rig.server("<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true'/>");
    rig.session.drain(&mut rig.out, rig.now);
    assert_eq!(rig.got(), [Got::Close(1001)]);
    assert_eq!(rig.upstream(), "");

    let mut rig = Rig::bound();
    rig.session.drain(&mut rig.out, rig.now);
    Rig::expect_error(&rig.got(), "system-shutdown", 1001);
    assert_eq!(rig.upstream(), FOOTER);
}

/// An operator's kick is told by a stream error with its reason, and leaves nothing to resume.
#[test]
fn a_kick_ends_both_streams() {
    let mut rig = Rig::bound();
    rig.server("<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true'/>");
    rig.session.kick(&mut rig.out, rig.now);
    let got = rig.got();
    Rig::expect_error(&got, "policy-violation", 1000);
    assert!(format!("{got:?}").contains(">admin_kick: "), "{got:?}");
    assert_eq!(rig.upstream(), FOOTER);
    assert_eq!(rig.session.ended(), Some(Fault::AdminKick));
    // The first reason stands.
    let mut rig = Rig::bound();
    rig.session.client_gone(Loss::Lost, rig.now);
    rig.session.kick(&mut rig.out, rig.now);
    assert_eq!((rig.got().len(), rig.session.ended()), (0, Some(Fault::ClientLost)));
}

/// The JID is what the server says it is: of a bound resource, of a SASL2 login, of a resumption.
#[test]
fn the_jid_is_learnt_from_the_server() {
    let mut rig = Rig::bound();
    let bound = rig.session.stage();
    assert!(bound.authenticated && bound.bound && !bound.managed && !bound.resumed);
    let jid = rig.session.take_jid();
    assert!(jid.as_deref().is_some_and(|jid| jid.contains('@') && jid.contains('/')), "{jid:?}");
    rig.server("<message to='other@example.org/x'/>");
    assert_eq!(rig.session.take_jid(), None, "nothing is learnt from stanzas afterwards");

    let mut rig = Rig::opened();
    rig.server(
        "<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>a&amp;b@example.org\
         </authorization-identifier></success>",
    );
    assert_eq!(rig.session.take_jid().as_deref(), Some("a&b@example.org"));
    rig.server("<resumed xmlns='urn:xmpp:sm:3' h='0' previd='x'/>");
    assert!(rig.session.stage().resumed && rig.session.stage().managed);
    rig.server("<presence from='c@example.org'/><message to='a&amp;b@example.org/r'/>");
    assert_eq!(rig.session.take_jid().as_deref(), Some("a&b@example.org/r"));
    rig.server("<message to='else@example.org/r'/>");
    assert_eq!(rig.session.take_jid(), None);
}

/// WS-38: who opens a stream while the process drains is sent elsewhere, in the byte form of WS-24
/// plus the attribute; the older framing has no word for it, and a stream that is open goes on.
#[test]
fn a_stream_opened_while_draining_is_sent_elsewhere() {
    let uri = "wss://b.example/ws?a=1&b";
    let change = |settings: &mut Settings| settings.see_other_uri = Some(uri.into());
    let mut rig = Rig::with(change);
    rig.session.redirect();
    let close = "<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" \
                 see-other-uri=\"wss://b.example/ws?a=1&amp;b\" />";
    assert_eq!(rig.say(OPEN), [text(close), Got::Close(1001)]);
    assert!(rig.session.take_request().is_none(), "no server is asked");
    assert_eq!(rig.session.ended(), Some(Fault::Drain));

    let mut rig = Rig::with(change);
    rig.session.redirect();
    let got = rig.say(LEGACY);
    assert!(
        matches!(&got[..], [Got::Text(all), Got::Close(1001)] if all.contains("system-shutdown"))
    );

    let mut rig = Rig::bound();
    rig.session.redirect();
    assert_eq!(rig.session.ended(), None);
}

/// SM-02: where the server says that SM is on, inline in SASL2 and bind2 too.
#[test]
fn sm_is_noted_when_the_server_says_so() {
    for (noted, xml) in [
        (true, "<enabled xmlns='urn:xmpp:sm:3'/>".to_owned()),
        (true, "<resumed xmlns='urn:xmpp:sm:3' h='1' previd='x'/>".to_owned()),
        (
            true,
            "<success xmlns='urn:xmpp:sasl:2'><bound xmlns='urn:xmpp:bind:0'>\
             <enabled xmlns='urn:xmpp:sm:3'/></bound></success>"
                .to_owned(),
        ),
        (
            true,
            "<success xmlns='urn:xmpp:sasl:2'><bound xmlns='urn:xmpp:bind2:1'>\
             <enabled xmlns='urn:xmpp:sm:3'/></bound></success>"
                .to_owned(),
        ),
        (
            true,
            "<success xmlns='urn:xmpp:sasl:2'><resumed xmlns='urn:xmpp:sm:3' h='1' previd='x'/>\
             </success>"
                .to_owned(),
        ),
        (false, "<message><enabled xmlns='urn:xmpp:sm:3'/></message>".to_owned()),
    ] {
        let mut rig = Rig::opened();
        rig.server(&xml);
        rig.session.drain(&mut rig.out, rig.now);
        let resumable = rig.got() == [Got::Close(1001)];
        assert_eq!(resumable, noted, "{xml}");
    }
}

/// SM-01, SM-05: SM elements and features pass unchanged, `location` included.
#[test]
fn sm_elements_pass_unchanged() {
    let mut rig = Rig::opened();
    for element in [
        "<enable xmlns='urn:xmpp:sm:3' resume='true'/>",
        "<r xmlns='urn:xmpp:sm:3'/>",
        "<a xmlns='urn:xmpp:sm:3' h='4'/>",
        "<resume xmlns='urn:xmpp:sm:3' h='4' previd='x'/>",
    ] {
        rig.say(element);
        assert_eq!(rig.upstream(), element);
    }
    for element in [
        "<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true' location='[2001:db8::1]:5222'/>",
        "<r xmlns='urn:xmpp:sm:3'/>",
        "<resumed xmlns='urn:xmpp:sm:3' h='4' previd='x'/>",
    ] {
        assert_eq!(rig.server(element), [text(element)]);
    }
    let features = "<sm xmlns='urn:xmpp:sm:3'/><sm xmlns='urn:xmpp:sm:2'/>";
    let got = rig.server(&format!("<stream:features>{features}</stream:features>"));
    assert!(matches!(&got[0], Got::Text(text) if text.contains(features)), "{got:?}");
}

// ---- liveness and size ---------------------------------------------------------------------

/// WS-40: pings at the interval; two intervals without any frame end the session as WS-37.
#[test]
fn pings_are_sent_and_silence_ends_the_session() {
    let mut rig = Rig::bound();
    assert_eq!(rig.pass(30), [Got::Ping]);
    rig.send(&frame(0x8a, b""));
    assert_eq!(rig.pass(59), [Got::Ping]);
    assert_eq!(rig.session.client(), ClientSide::Open);
    rig.pass(31);
    assert_eq!(rig.session.client(), ClientSide::Gone);
    assert_eq!(rig.upstream(), "", "no stream end");
    assert_eq!(rig.session.ended(), Some(Fault::ClientSilent));
}

/// WS-42: XEP-0199 pings pass and are not answered here.
#[test]
fn xmpp_pings_pass_through() {
    let ping = "<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>";
    let mut rig = Rig::bound();
    assert_eq!(rig.say(ping), []);
    assert_eq!(rig.upstream(), ping);
    assert_eq!(rig.server(ping).len(), 1);
    assert_eq!(rig.upstream(), "");
}

/// WS-43, UP-20: TLS negotiation of a client is refused and ends the session; compression is
/// refused. Neither is forwarded.
#[test]
fn tls_and_compression_of_a_client_are_refused() {
    let mut rig = Rig::opened();
    let got = rig.say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    assert_eq!(
        got,
        [
            text("<failure xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"/>"),
            text(CLOSE),
            Got::Close(1000)
        ]
    );
    assert_eq!(rig.upstream(), FOOTER);

    let mut rig = Rig::opened();
    let got = rig.say(
        "<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method></compress>",
    );
    assert_eq!(
        got,
        [text(
            "<failure xmlns=\"http://jabber.org/protocol/compress\"><unsupported-method/></failure>"
        )]
    );
    assert_eq!(rig.upstream(), "");
    assert_eq!(rig.session.client(), ClientSide::Open);
}

/// WS-43: a server that talks of TLS on a running stream is not believed.
#[test]
fn tls_elements_of_the_server_do_not_reach_the_client() {
    let mut rig = Rig::bound();
    let got = rig.server("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    Rig::expect_error(&got, "internal-server-error", 1000);
    assert!(!format!("{got:?}").contains("proceed"));
}

/// WS-44, WS-33: a frame that announces too much is refused unread with 1009; the write side is
/// shut, the rest is discarded, but no more than a mebibyte of it.
#[test]
fn oversized_frames_are_refused_unread() {
    let mut rig = Rig::opened();
    let mut head = vec![0x81, 0x80 | 127];
    head.extend(300_000_000_u64.to_be_bytes());
    head.extend([0; 4]);
    let got = rig.send(&head);
    Rig::expect_error(&got, "policy-violation", 1009);
    assert!(matches!(&got[0], Got::Text(error) if error.contains("stanza too big")));
    assert_eq!(rig.upstream(), FOOTER);
    assert!(matches!(rig.session.client(), ClientSide::Closing { shut: true, .. }));
    let chunk = vec![0; 65_536];
    for _ in 0..16 {
        rig.send(&chunk);
    }
    assert!(matches!(rig.session.client(), ClientSide::Closing { .. }));
    rig.send(&chunk);
    assert_eq!(rig.session.client(), ClientSide::Gone);
    assert_eq!(rig.session.held_bytes(), 0);
}

/// WS-44: the grace bounds the discarding in time.
#[test]
fn discarding_ends_with_the_grace() {
    let mut rig = Rig::opened();
    let mut head = vec![0x81, 0x80 | 127];
    head.extend(300_000_000_u64.to_be_bytes());
    head.extend([0; 4]);
    rig.send(&head);
    rig.wait(5);
    assert_eq!(rig.session.client(), ClientSide::Gone);
}

/// WS-45, SEC-17: what is not taken of the server's input stays there: no more is turned into
/// messages than the bounds allow.
#[test]
fn output_to_the_client_is_bounded() {
    let stanza = "<message><body>x</body></message>";
    for (change, bound) in [(1000_u32, 1 << 20), (1 << 30, 10_000_usize)] {
        let mut rig = Rig::with(|settings| {
            settings.pending_stanzas = change;
            settings.pending_bytes = bound;
        })
        .open();
        rig.log_in();
        rig.out.tally = Tally::default();
        let flood = stanza.repeat(20_000);
        let mut input = flood.as_bytes();
        rig.session.from_server(&mut rig.scratch, &mut input, &mut rig.out, rig.now);
        assert!(!input.is_empty(), "the rest waits");
        assert!(rig.out.tally.to_client.total() <= change);
        assert!(rig.out.client.len() <= bound + 200, "{}", rig.out.client.len());
    }
}

/// UP-24: an unauthenticated session lives a minute and queues 64 KiB a direction.
#[test]
fn unauthenticated_sessions_are_short_and_small() {
    let mut rig = Rig::opened();
    let got = rig.pass(60);
    Rig::expect_error(&got, "policy-violation", 1000);
    assert_eq!(rig.upstream(), FOOTER);

    let mut rig = Rig::bound();
    rig.send(&frame(0x8a, b""));
    rig.pass(60);
    assert_eq!(rig.session.client(), ClientSide::Open, "not when authenticated");

    // Over while the stream is being closed, the minute is no reason to be woken at once, for ever.
    let mut rig = Rig::opened();
    rig.wait(29);
    rig.send(&frame(0x8a, b""));
    rig.wait(29);
    rig.say(CLOSE);
    rig.wait(3);
    assert!(rig.session.deadline().is_some_and(|at| at > rig.now));

    let mut rig = Rig::opened();
    let flood = "<message><body>x</body></message>".repeat(20_000);
    let mut input = flood.as_bytes();
    rig.session.from_server(&mut rig.scratch, &mut input, &mut rig.out, rig.now);
    assert!(rig.out.client.len() <= 65_536 + 200);
}

/// A message that dribbles in for too long ends the session; so does one that never ends while
/// pings keep the connection alive (SEC-18).
#[test]
fn slow_messages_end_the_session() {
    let mut rig = Rig::bound();
    rig.send(&frame(0x01, b"<mess"));
    let got = rig.pass(30);
    Rig::expect_error(&got, "policy-violation", 1000);
}

/// UP-10: a blank for the server only after the features that follow authentication.
#[test]
fn keepalives_wait_for_the_negotiation_to_end() {
    let mut rig =
        Rig::with(|settings| settings.whitespace_keepalive = Duration::from_secs(10)).open();
    rig.say(&format!("<auth xmlns='{SASL}' mechanism='SCRAM-SHA-1'>AA==</auth>"));
    rig.upstream();
    rig.pass(25);
    assert_eq!(rig.upstream(), "", "not while SASL is in progress");
    rig.server(&format!("<success xmlns='{SASL}'/>"));
    rig.say(OPEN);
    rig.server(&format!("{HEADER}<stream:features/>"));
    rig.upstream();
    rig.pass(10);
    assert_eq!(rig.upstream(), " ");
    rig.server(FOOTER);
    rig.upstream();
    rig.pass(4);
    assert_eq!(rig.upstream(), "", "not after the stream end");
}

/// UP-25: bytes after a success that are no XML are a SASL security layer.
#[test]
fn a_security_layer_ends_the_session() {
    let mut rig = Rig::opened();
    rig.log_in();
    let got = rig.server_bytes(&[0, 0, 0, 12, 0x9f, 0x3c, 1, 2]);
    Rig::expect_error(&got, "remote-connection-failed", 1000);
}

/// UP-27: a failed login that asked for channel binding is counted.
#[test]
fn failed_channel_binding_is_counted() {
    let login = |rig: &mut Rig, mechanism: &str, initial: &str| {
        rig.say(&format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>{initial}</auth>"));
        rig.server(&format!("<failure xmlns='{SASL}'><not-authorized/></failure>"));
    };
    let mut rig = Rig::opened();
    // "p=tls-exporter,,n=a,r=b", "y,,n=a,r=b", "n,,n=a,r=b"
    login(&mut rig, "SCRAM-SHA-1-PLUS", "cD10bHMtZXhwb3J0ZXIsLG49YSxyPWI=");
    login(&mut rig, "SCRAM-SHA-1", "eSwsbj1hLHI9Yg==");
    login(&mut rig, "SCRAM-SHA-1", "biwsbj1hLHI9Yg==");
    assert_eq!((rig.out.tally.binding_plus, rig.out.tally.binding_gs2), (1, 1));
}

// ---- streaming -----------------------------------------------------------------------------

/// UP-30: the server's language is in `<open/>` and stamped on stanzas only if asked.
#[test]
fn lang_is_stamped_only_if_asked() {
    let mut rig = Rig::bound();
    assert_eq!(rig.server("<message/>"), [text("<message xmlns=\"jabber:client\"/>")]);
    let mut rig = Rig::with(|settings| settings.stamp_lang = true).open();
    let got = rig.server("<message/>");
    assert_eq!(got, [text("<message xml:lang=\"en\" xmlns=\"jabber:client\"/>")]);
    let own = rig.server("<message xml:lang='tr'/>");
    assert_eq!(own, [text("<message xmlns=\"jabber:client\" xml:lang='tr'/>")]);
}

/// UP-31: elements of namespaces that mean nothing here pass in both directions.
#[test]
fn unknown_nonzas_pass() {
    let mut rig = Rig::bound();
    rig.say("<inactive xmlns='urn:xmpp:csi:0'/>");
    assert_eq!(rig.upstream(), "<inactive xmlns='urn:xmpp:csi:0'/>");
    assert_eq!(rig.server("<odd xmlns='urn:odd'/>"), [text("<odd xmlns='urn:odd'/>")]);
}

/// UP-32: what may come before authentication is for the server to judge.
#[test]
fn stanzas_before_authentication_are_forwarded() {
    let register = "<iq type='get' id='r'><query xmlns='jabber:iq:register'/></iq>";
    let mut rig = Rig::opened();
    rig.say(register);
    assert_eq!(rig.upstream(), register);
    assert_eq!(rig.server("<iq type='result' id='r'/>").len(), 1);
}

/// UP-33, SM-03: order, number and form of 10,000 stanzas are kept in each direction.
#[test]
fn order_and_number_are_kept() {
    let mut rig = Rig::bound();
    let (mut sent, mut delivered) = (String::new(), 0);
    for number in 0..10_000 {
        let stanza = format!("<message id='{number}'><body>&amp; {number}</body></message>");
        assert_eq!(rig.say(&stanza), []);
        sent.push_str(&stanza);
        rig.out.tally = Tally::default();
        let got = rig.server(&stanza);
        let expected = stanza.replace("<message", "<message xmlns=\"jabber:client\"");
        assert_eq!(got, [text(expected)]);
        delivered += got.len();
        if rig.out.server.len() > 500_000 {
            assert_eq!(rig.upstream(), sent);
            sent.clear();
        }
    }
    assert_eq!(rig.upstream(), sent);
    assert_eq!(delivered, 10_000);
}

/// UP-36: XML whose end cannot be proven ends the session.
#[test]
fn unprovable_xml_of_the_server_ends_the_session() {
    for xml in ["<message></presence>", "<message><body>\u{fffd}</message>", "x", "<!DOCTYPE a>"] {
        let mut rig = Rig::bound();
        Rig::expect_error(&rig.server(xml), "internal-server-error", 1000);
    }
}

/// UP-36, SM-03: what breaks a rule but ends provably is mended; the session lives and the count
/// holds.
#[test]
fn broken_stanzas_of_the_server_are_mended() {
    let mut rig = Rig::bound();
    rig.out.tally = Tally::default();
    let got = rig.server(
        "<message from='m@x/r'><p:y/></message>\
         <message from='m@x/r' to='a@example.org' id='1' type='chat'><!-- no --><body/></message>\
         <message><body>fine</body></message>",
    );
    let [Got::Text(repaired), Got::Text(emptied), Got::Text(fine)] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert!(repaired.contains("xmlns:p=\"urn:bosphorus:undeclared\""), "{repaired}");
    for part in ["<message xmlns=\"jabber:client\"", "from=\"m@x/r\"", "id=\"1\"", "type=\"chat\""]
    {
        assert!(emptied.contains(part), "{emptied}");
    }
    assert!(!emptied.contains("no") && !emptied.contains("body"), "{emptied}");
    assert!(fine.contains("fine"));
    assert_eq!((rig.out.tally.repaired, rig.out.tally.emptied), (1, 1));
    assert_eq!(rig.out.tally.to_client.elements[0], 3);
    assert_eq!(rig.session.client(), ClientSide::Open);
}

/// The server dies: the client is told, and the reason is not its own.
#[test]
fn a_lost_server_is_told() {
    let mut rig = Rig::bound();
    rig.session.server_gone(&mut rig.out, rig.now);
    Rig::expect_error(&rig.got(), "remote-connection-failed", 1000);
    assert_eq!(rig.session.ended(), Some(Fault::ServerLost));
}

// ---- security ------------------------------------------------------------------------------

/// SEC-09: elements of the stream and framing namespaces are refused, whatever their prefix; a
/// stream error of the client ends the session cleanly.
#[test]
fn smuggled_stream_elements_are_refused() {
    for element in [
        "<x:stream xmlns:x='http://etherx.jabber.org/streams'/>",
        "<features xmlns='http://etherx.jabber.org/streams'/>",
        "<x:other xmlns:x='urn:ietf:params:xml:ns:xmpp-framing'/>",
        "<stream:stream xmlns:stream='http://etherx.jabber.org/streams' to='example.org'>",
    ] {
        let mut rig = Rig::bound();
        Rig::expect_error(&rig.say(element), "bad-format", 1000);
        assert_eq!(rig.upstream(), FOOTER, "{element}");
    }
    let mut rig = Rig::bound();
    let got = rig.say(
        "<e:error xmlns:e='http://etherx.jabber.org/streams'><conflict \
         xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></e:error>",
    );
    assert_eq!(got, [text(CLOSE), Got::Close(1000)]);
    assert_eq!(rig.upstream(), FOOTER);
}

/// SEC-10: names are compared by namespace, never by text.
#[test]
fn text_that_looks_like_framing_is_unharmed() {
    let mut rig = Rig::bound();
    let stanza = "<message to='a@b'><body>&lt;/stream:stream&gt; &lt;open \
        xmlns='urn:ietf:params:xml:ns:xmpp-framing'/&gt;</body></message>";
    rig.say(stanza);
    assert_eq!(rig.upstream(), stanza);
    // A prefixed stanza is a stanza.
    let prefixed = "<c:message xmlns:c='jabber:client' to='a@b'/>";
    rig.say(prefixed);
    assert_eq!(rig.upstream(), prefixed);
    assert_eq!(rig.out.tally.to_server.elements[0], 2);
    // And a prefixed open is an open.
    let mut rig = Rig::new();
    rig.say("<f:open xmlns:f='urn:ietf:params:xml:ns:xmpp-framing' to='example.org'/>");
    assert!(rig.session.take_request().is_some());
}

/// SEC-05: restricted XML of a client.
#[test]
fn restricted_xml_of_a_client_is_refused() {
    for (message, condition) in [
        ("<message><!-- --></message>", "restricted-xml"),
        ("<message><?php ?></message>", "restricted-xml"),
        ("<!DOCTYPE a><message/>", "restricted-xml"),
        ("<message>&nbsp;</message>", "restricted-xml"),
    ] {
        let mut rig = Rig::bound();
        Rig::expect_error(&rig.say(message), condition, 1000);
        assert_eq!(rig.upstream(), FOOTER, "{message}");
    }
}

/// SEC-11: depth 65 is a policy violation.
#[test]
fn deep_elements_are_refused() {
    let mut rig = Rig::bound();
    let deep = format!("{}{}", "<a xmlns='urn:a'>".repeat(65), "</a>".repeat(65));
    Rig::expect_error(&rig.say(&deep), "policy-violation", 1000);
}

// ---- the legacy framing --------------------------------------------------------------------

/// WSL-01, WSL-03, WSL-04, WSL-14: every spelling of the opening is accepted and answered in kind,
/// on one line, without a declaration.
#[test]
fn legacy_openings_are_mirrored() {
    let unclosed = LEGACY.to_owned();
    let self_closed = LEGACY.replace("'1.0'>", "'1.0'/>");
    let closed = format!("{LEGACY}</stream:stream>");
    let declared = format!("<?xml version='1.0'?>{LEGACY}");
    let spaced = format!("  {LEGACY}");
    let declared_and_spaced = format!("<?xml version='1.0'?>\n{LEGACY}");
    for (opening, ends) in [
        (unclosed, "'>"),
        (self_closed, "'/>"),
        (closed, "'/>"),
        (declared, "'>"),
        (spaced, "'>"),
        (declared_and_spaced, "'>"),
    ] {
        let mut rig = Rig::new();
        assert_eq!(rig.say(&opening), [], "{opening}");
        let got = rig.connect(HEADER);
        let [Got::Text(header)] = got.as_slice() else { panic!("{got:?}") };
        assert!(header.ends_with(ends), "{opening} -> {header}");
        assert!(header.starts_with("<stream:stream "), "{header}");
        assert!(!header.contains('\n'));
        for part in ["xmlns='jabber:client'", "xmlns:stream=", "version=", "id=", "from="] {
            assert!(header.contains(part), "{header}");
        }
    }
    // The declaration in a message of its own.
    let mut rig = Rig::new();
    assert_eq!(rig.say("<?xml version='1.0'?>"), []);
    assert_eq!(rig.say(LEGACY), []);
    assert_eq!(rig.connect(HEADER), [text(LEGACY_OPENED)]);
}

/// WSL-02: the first message decides for the connection.
#[test]
fn framings_are_not_mixed() {
    let mut rig = Rig::legacy();
    rig.log_in();
    let got = rig.say(OPEN);
    let [Got::Text(error), Got::Text(end), Got::Close(1000)] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert!(error.contains("<bad-format "), "{error}");
    assert_eq!(end, FOOTER);
    let mut rig = Rig::opened();
    rig.log_in();
    Rig::expect_error(&rig.say(LEGACY), "bad-format", 1000);
}

/// WSL-05: the header is checked as an `<open/>` is.
#[test]
fn legacy_headers_are_checked() {
    let wrong = |from: &str, to: &str, condition: &str| {
        let mut rig = Rig::new();
        let got = rig.say(&LEGACY.replace(from, to));
        let [Got::Text(message), Got::Close(1000)] = got.as_slice() else { panic!("{got:?}") };
        assert!(message.contains(&format!("<{condition} ")), "{message}");
        assert!(rig.session.take_request().is_none());
    };
    wrong("http://etherx.jabber.org/streams", "urn:x", "invalid-namespace");
    wrong("'jabber:client'", "'jabber:server'", "invalid-namespace");
    wrong("'1.0'", "'2.0'", "unsupported-version");
    wrong("example.org", "nope.example", "host-unknown");
}

/// WSL-06: what the client's header declared is in scope of its messages.
#[test]
fn legacy_messages_inherit_the_headers_names() {
    let mut rig = Rig::new();
    rig.say(&LEGACY.replace("version", "xmlns:q='urn:q' version"));
    rig.connect(HEADER);
    rig.upstream();
    rig.say("<message><q:a/></message>");
    assert_eq!(rig.upstream(), "<message xmlns:q=\"urn:q\"><q:a/></message>");
}

/// WSL-07: outgoing elements are complete in themselves in this framing too.
#[test]
fn legacy_messages_to_the_client_stand_alone() {
    let mut rig = Rig::new();
    rig.say(LEGACY);
    rig.connect(HEADER);
    let got = rig.server(&format!("{FEATURES}<presence/>"));
    let [Got::Text(features), presence] = got.as_slice() else { panic!("{got:?}") };
    assert!(features.starts_with("<stream:features xmlns:stream="), "{features}");
    assert_eq!(presence, &text("<presence xmlns=\"jabber:client\"/>"));
}

/// WSL-08, WSL-14: `</stream:stream>` closes in either direction; a Close frame behind it is a
/// clean end.
#[test]
fn legacy_streams_close_with_the_end_tag() {
    let mut rig = Rig::legacy();
    assert_eq!(rig.say(FOOTER), []);
    assert_eq!(rig.upstream(), FOOTER);
    assert_eq!(rig.send(&close_frame(1000)), [Got::Close(1000)]);
    assert_eq!(rig.session.ended(), Some(Fault::Closed));

    let mut rig = Rig::legacy();
    rig.say(FOOTER);
    assert_eq!(rig.server(FOOTER), [text(FOOTER)]);

    let mut rig = Rig::legacy();
    assert_eq!(rig.server(FOOTER), [text(FOOTER), Got::Close(1000)]);
}

/// WSL-09: an error before the header is one message; later ones are two.
#[test]
fn legacy_errors_are_framed_by_header_and_end() {
    let mut rig = Rig::new();
    let got = rig.say(&LEGACY.replace("example.org", "nope.example"));
    let [Got::Text(message), Got::Close(1000)] = got.as_slice() else { panic!("{got:?}") };
    assert!(message.starts_with("<stream:stream xmlns='jabber:client'"), "{message}");
    assert!(message.contains("from='nope.example'"), "{message}");
    assert!(message.contains("><stream:error "), "{message}");
    assert!(message.ends_with("</stream:error></stream:stream>"), "{message}");

    let mut rig = Rig::legacy();
    let got = rig.say("<a>");
    assert_eq!(got.len(), 3);
    assert_eq!(got[1..], [text(FOOTER), Got::Close(1000)]);
}

/// WSL-10: a new header after the success restarts the stream.
#[test]
fn legacy_streams_restart() {
    let mut rig = Rig::legacy();
    rig.log_in();
    assert_eq!(rig.say(LEGACY), []);
    assert!(rig.upstream().starts_with("<?xml version='1.0'?><stream:stream "));
    let got = rig.server(&format!("{HEADER}<stream:features/>"));
    assert_eq!(got[0], text(LEGACY_OPENED));
    assert_eq!(got.len(), 2);
    rig.say("<presence/>");
    assert_eq!(rig.upstream(), "<presence/>");
}

/// WSL-11: several whole elements in one message are taken in order; part of one never is, and
/// then none is.
#[test]
fn legacy_messages_may_hold_several_elements() {
    let mut rig = Rig::legacy();
    rig.say("<message id='1'/> <message id='2'/>");
    assert_eq!(rig.upstream(), "<message id='1'/><message id='2'/>");
    let got = rig.say("<message id='3'/><message>");
    assert!(matches!(&got[0], Got::Text(error) if error.contains("<not-well-formed ")));
    assert_eq!(rig.upstream(), FOOTER);
}

/// SEC-17, WSL-06: a small message whose elements all inherit a long name from the header does not
/// become gigabytes.
#[test]
fn inherited_names_do_not_multiply_a_legacy_message() {
    let mut rig = Rig::new();
    rig.say(&LEGACY.replace("version", &format!("xmlns:q='{}' version", "u".repeat(100_000))));
    rig.connect(HEADER);
    rig.upstream();
    let got = rig.say(&"<q:a/>".repeat(2_000));
    assert!(matches!(&got[0], Got::Text(error) if error.contains("<policy-violation ")), "{got:?}");
    let written = rig.upstream().len();
    assert!(written < (1 << 20) + 200_000, "{written} bytes");
    assert_eq!(rig.session.ended(), Some(Fault::XmlLimit));

    let mut rig = Rig::legacy();
    rig.say(&"<a/>".repeat(65_536));
    assert_eq!(rig.upstream().len(), 262_144, "what is not multiplied passes whole");
}

/// WSL-12: switched off, the opening is answered in the style of the RFC.
#[test]
fn legacy_framing_can_be_switched_off() {
    let mut rig = Rig::with(|settings| settings.legacy_framing = false);
    let got = rig.say(LEGACY);
    assert!(matches!(&got[0], Got::Text(open) if open.starts_with("<open ")), "{got:?}");
    Rig::expect_error(&got, "bad-format", 1000);
}

/// SEC-17: a session that holds too much gives up all of it, is told why, and ends the server's
/// stream, unless half an element waits for that.
#[test]
fn too_much_memory_is_told_and_given_back() {
    for server_waits in [false, true] {
        let mut rig = Rig::bound();
        let half = frame(0x81, &[b'x'; 100_000]);
        assert_eq!(rig.send(&half[..90_000]), []);
        rig.server(&format!("<message><body>{}", "x".repeat(100_000)));
        assert!(rig.session.held_bytes() > 190_000);
        rig.session.overloaded(server_waits, &mut rig.out, rig.now);
        assert_eq!(rig.session.held_bytes(), 0);
        let got = rig.got();
        Rig::expect_error(&got, "resource-constraint", 1000);
        assert_eq!(rig.session.ended(), Some(Fault::Memory));
        assert!(matches!(rig.session.client(), ClientSide::Closing { shut: true, .. }));
        if server_waits {
            assert_eq!((rig.upstream(), rig.session.server()), (String::new(), ServerSide::Gone));
        } else {
            assert_eq!(rig.upstream(), FOOTER);
            // What is left of either side's input is not kept any more.
            assert_eq!(rig.server("</body></message>"), []);
        }
        assert_eq!(rig.send(&half[90_000..]), []);
        assert_eq!(rig.session.held_bytes(), 0);
        rig.wait(5);
        assert!(rig.session.is_over());
    }
}

/// SEC-17: what a client says of itself is not kept if it is too long to be told to the server, and the
/// names that a legacy header declares are held for the session's life.
#[test]
fn long_headers_are_not_kept_or_are_counted() {
    let long = "x".repeat(100_000);
    let open = format!(
        "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.org' version='1.0' \
         from='{long}' xml:lang='{long}'/>"
    );
    let mut rig = Rig::new();
    assert_eq!(rig.say(&open), []);
    let request = rig.session.take_request().unwrap();
    assert_eq!((request.from, request.lang, rig.session.held_bytes()), (None, None, 0));
    let legacy = LEGACY.replacen("<stream:stream ", &format!("<stream:stream from='{long}' "), 1);
    let mut rig = Rig::new();
    assert_eq!(rig.say(&legacy), []);
    assert_eq!(rig.session.take_request().unwrap().from, None);
    let legacy =
        LEGACY.replacen("<stream:stream ", &format!("<stream:stream xmlns:q='{long}' "), 1);
    let mut rig = Rig::new();
    assert_eq!(rig.say(&legacy), []);
    assert!(rig.session.take_request().is_some() && rig.session.held_bytes() > 100_000);
}

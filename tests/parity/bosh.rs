//! What only BOSH can show, through the real servers: the rows of the second table. Whoever is
//! written to or writes meanwhile (`friend`) is on a WebSocket.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::sleep;

use crate::common::bosh::{Body, CREATION, Pending, Session};
use crate::common::client::{
    Client, Endpoint, Transport, body_of, escape, is_presence, ns, text_of,
};
use crate::common::gateway::Gateway;
use crate::common::http::{Connection, Cut, Url};
use crate::common::server::{Kind, Server};
use crate::common::{PATIENCE, Result};
use crate::{Place, SHORT_INACTIVITY, ping, scenarios};

scenarios! {
    "features in the first answer" => features_first,
    "restart" => restart,
    "payload namespaces" => payload_namespaces,
    "out of order" => out_of_order,
    "rid outside the window" => outside_the_window,
    "replay after a cut answer" => replay,
    "held request cut" => held_request_cut,
    "acknowledgements" => acknowledgements,
    "pause" => pause,
    "inactivity" => inactivity,
    "polling session" => polling_session,
    "terminate" => terminate,
    "key sequence" => key_sequence,
    "legacy: HTTP codes" => legacy_codes,
}

/// Cells that cannot pass at a server's own endpoint, and what the server does instead.
pub(crate) const DIRECT_DEPARTURES: &[(&str, Kind, &str)] = &[
    ("unknown host", Kind::Prosody, "says improper-addressing"),
    ("unknown host", Kind::Ejabberd, "says internal-server-error"),
    ("stream management: resume", Kind::Prosody, "answers no <resume/> over BOSH"),
    ("client socket cut", Kind::Prosody, "answers no <resume/> over BOSH"),
    ("features in the first answer", Kind::Ejabberd, "always says ver='1.11'"),
    ("restart", Kind::Prosody, "leaves one of the requests without an answer"),
    ("restart", Kind::Ejabberd, "knows the prefix `xmpp` only"),
    ("payload namespaces", Kind::Prosody, "leaves the children in the namespace of <body/>"),
    ("payload namespaces", Kind::Ejabberd, "drops the declaration of a prefix"),
    ("out of order", Kind::Ejabberd, "forwards an early rid only when the one before is answered"),
    ("rid outside the window", Kind::Prosody, "lets the session live"),
    ("rid outside the window", Kind::Ejabberd, "holds a rid that is too old for ever"),
    ("held request cut", Kind::Prosody, "has no answer for the rid that was lost"),
    ("held request cut", Kind::Ejabberd, "has no answer for the rid that was lost"),
    ("acknowledgements", Kind::Prosody, "has none"),
    ("acknowledgements", Kind::Ejabberd, "has none"),
    ("pause", Kind::Prosody, "has none"),
    ("pause", Kind::Ejabberd, "does not answer one"),
    ("polling session", Kind::Prosody, "has none"),
    ("polling session", Kind::Ejabberd, "has an interval of its own"),
    ("terminate", Kind::Prosody, "answers each request with the end"),
    ("terminate", Kind::Ejabberd, "says other-request"),
    ("key sequence", Kind::Prosody, "has none"),
    ("key sequence", Kind::Ejabberd, "does not answer a repeated rid as asked"),
    ("legacy: HTTP codes", Kind::Prosody, "always says ver='1.6'"),
    ("legacy: HTTP codes", Kind::Ejabberd, "always says ver='1.11'"),
];

/// XML namespace of the attributes of XEP-0206, declared.
const XMPP: &str = "xmlns:xmpp='urn:xmpp:xbosh'";

/// How long a request is watched that has to stay open. Nothing else tells that it does.
const A_WHILE: Duration = Duration::from_millis(300);

/// One who is on BOSH with every request in the test's hands, none of them open, and a friend.
struct Two {
    session: Session,
    jid: String,
    friend: Client,
    /// In direct mode the server may be this cell's own.
    _server: Arc<Server>,
    _gateway: Option<Gateway>,
}

impl Two {
    async fn new(place: &Place) -> Result<Self> {
        Self::with(place, "").await
    }

    /// With further attributes in the creation request.
    async fn with(place: &Place, attributes: &str) -> Result<Self> {
        let (server, endpoint) = place.shared()?;
        Self::at(place, server, &endpoint, attributes, None).await
    }

    /// With a short time of inactivity.
    async fn impatient(place: &Place) -> Result<Self> {
        let (server, gateway, endpoint) = place.impatient()?;
        Self::at(place, server, &endpoint, "", gateway).await
    }

    async fn at(
        place: &Place,
        server: Arc<Server>,
        endpoint: &Endpoint,
        attributes: &str,
        gateway: Option<Gateway>,
    ) -> Result<Self> {
        let url = Url::parse(&endpoint.url)?;
        let creation = format!("to='{}' {CREATION} {attributes}", server.domain());
        let mut session = Session::create_with(&url, &creation).await?;
        let account = server.account();
        let jid = session.login(&account.name, &account.password).await?;
        let present = "<presence xmlns='jabber:client'/>";
        session.until("", present, |element| is_presence(element, &jid, None)).await?;
        let websocket = match (&gateway, place.direct) {
            (Some(gateway), _) => gateway.ws_url(),
            (None, true) => server.websocket_url(),
            (None, false) => place.shared_websocket(&server)?.url,
        };
        let websocket = Endpoint { url: websocket, transport: Transport::Ws };
        let friend = Client::online(&websocket, &server.account()).await?;
        Ok(Self { session, jid, friend, _server: server, _gateway: gateway })
    }

    /// A message to the friend.
    fn to_friend(&self, body: &str) -> String {
        format!(
            "<message xmlns='jabber:client' type='chat' to='{}'><body>{}</body></message>",
            escape(&self.friend.jid),
            escape(body)
        )
    }

    /// The friend writes.
    async fn friend_says(&mut self, body: &str) -> Result {
        let jid = self.jid.clone();
        self.friend.message(&jid, body).await
    }

    /// The friend's server has handled all that the friend has sent, and all that reached it before
    /// has been handled, too.
    async fn settle(&mut self) -> Result {
        let domain = self.session.creation.attr("from").unwrap_or_default().to_owned();
        self.friend.request("get", Some(&domain), &ping()).await?;
        Ok(())
    }
}

/// A request that is answered at once, because the server answers it.
fn asked(id: &str) -> String {
    format!("<iq xmlns='jabber:client' type='get' id='{id}'>{}</iq>", ping())
}

/// The answer to [`asked`] and no other payload.
fn ensure_answered(body: &Body, id: &str) -> Result {
    let payloads = body.payloads();
    let right = matches!(&payloads[..], [iq] if iq.attr("id") == Some(id));
    ensure!(right, "not the answer to the ping alone: {}", body.text);
    Ok(())
}

fn ensure_empty(body: &Body) -> Result {
    ensure!(body.is_empty(), "not an empty body: {}", body.text);
    Ok(())
}

/// Scenario: the creation response says all that BOSH-16 to BOSH-18 (`wait`, `hold`, `requests`,
/// `polling`, `inactivity`, `maxpause`), BOSH-19 (`ver`), BOSH-15 (`sid`), BOSH-21 (`from`), BOSH-28
/// (`ack`), XB-01 and XB-04 (`authid`, `version`) ask for, with the features in it (BOSH-29, XB-05);
/// no later one says any of it (BOSH-20).
async fn features_first(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let url = Url::parse(&endpoint.url)?;
    let create = |attributes: &str| {
        let attributes = format!("to='{}' xmpp:version='1.0' {attributes}", server.domain());
        let url = url.clone();
        async move { Session::create_with(&url, &attributes).await }
    };
    let mut session = create("wait='300' hold='2' ver='1.6' xml:lang='en'").await?;
    let first = session.creation.clone();
    let features = first.element.get_child("features", ns::STREAMS).context("no features")?;
    ensure!(features.has_child("mechanisms", ns::SASL), "BOSH-29: {}", first.text);
    ensure!(first.attr("from") == Some(server.domain()), "BOSH-21: {}", first.text);
    ensure!(first.number("wait")? <= 300 && first.number("wait")? > 0, "BOSH-16: {}", first.text);
    ensure!(first.attr("hold") == Some("1"), "BOSH-17: {}", first.text);
    ensure!(first.attr("requests") == Some("2"), "BOSH-17: {}", first.text);
    for name in ["polling", "inactivity"] {
        ensure!(first.number(name)? > 0, "BOSH-18: {}", first.text);
    }
    ensure!(first.attr("ver") == Some("1.6"), "BOSH-19: {}", first.text);
    ensure!(first.xbosh("version") == Some("1.0"), "XB-04: {}", first.text);
    if !place.direct {
        ensure!(first.number("wait")? == 55, "BOSH-16: {}", first.text);
        ensure!(first.number("maxpause")? > 0, "BOSH-18: {}", first.text);
        ensure!(first.xbosh("restartlogic") == Some("true"), "XB-01: {}", first.text);
        ensure!(first.number("ack")? == session.rid, "BOSH-28: {}", first.text);
        let id = first.attr("authid").context("XB-04: no authid")?;
        ensure!(!id.is_empty() && !session.sid.contains(id), "BOSH-15: {}", first.text);
        let bad = format!("<auth xmlns='{}' mechanism='PLAIN'>AHgAeQ==</auth>", ns::SASL);
        let later = session.ask("", &bad).await?;
        ensure!(later.element.has_child("failure", ns::SASL), "no answer: {}", later.text);
        for name in "sid wait requests ver polling inactivity hold maxpause accept".split(' ') {
            ensure!(later.attr(name).is_none(), "BOSH-20: `{name}` in {}", later.text);
        }
        for (asked, answered) in [("1.10", "1.10"), ("2.0", "1.11"), ("1.11", "1.11")] {
            let session = create(&format!("wait='10' hold='0' ver='{asked}'")).await?;
            let first = &session.creation;
            ensure!(first.attr("ver") == Some(answered), "BOSH-19: {asked}: {}", first.text);
            ensure!(first.number("wait")? == 10, "BOSH-16: {}", first.text);
            let window = (first.attr("hold"), first.attr("requests"));
            ensure!(window == (Some("0"), Some("1")), "BOSH-17: {}", first.text);
            ensure!(first.number("inactivity")? == 120, "BOSH-18: {}", first.text);
        }
    }
    Ok(())
}

/// Scenario: the attribute is known by its namespace whatever its prefix, `1` is true (XB-02), and
/// `to` may be missing (XB-09); the answer has the features (XB-08). Sent again it is a repeat like
/// any other, and no second restart (XB-11, BOSH-44). A restart once bound, or to elsewhere, ends
/// the session with `bad-request` (XB-11, XB-09).
async fn restart(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let url = Url::parse(&endpoint.url)?;
    let authenticated = || async {
        use base64::Engine;
        let mut session = Session::create(&url, server.domain()).await?;
        let account = server.account();
        let secret = format!("\0{}\0{}", account.name, account.password);
        let secret = base64::prelude::BASE64_STANDARD.encode(secret);
        let auth = format!("<auth xmlns='{}' mechanism='PLAIN'>{secret}</auth>", ns::SASL);
        session.until("", &auth, |element| element.is("success", ns::SASL)).await?;
        anyhow::Ok(session)
    };
    let mut session = authenticated().await?;
    let mut request = session.next("xmlns:b='urn:xmpp:xbosh' b:restart='1'", "").await?;
    let answer = request.body().await?;
    let features = answer.element.get_child("features", ns::STREAMS);
    let features = features.with_context(|| format!("XB-08: {}", answer.text))?;
    ensure!(features.has_child("bind", ns::BIND), "XB-08: {}", answer.text);
    let again = session.repeat(&request).await?.body().await?;
    ensure!(again.text == answer.text, "XB-11: {}\ninstead of\n{}", again.text, answer.text);
    let bind = format!("<bind xmlns='{}'/>", ns::BIND);
    let bind = format!("<iq xmlns='jabber:client' type='set' id='b'>{bind}</iq>");
    session.until("", &bind, |element| element.attr("id") == Some("b")).await?;
    let restart = format!("{XMPP} xmpp:restart='true'");
    session.ask(&restart, "").await?.expect_terminate(Some("bad-request"))?;

    let mut session = authenticated().await?;
    let elsewhere = session.ask(&format!("{restart} to='elsewhere.test'"), "").await?;
    elsewhere.expect_terminate(Some("bad-request"))
}

/// Scenario: a payload without a namespace, or in that of `<body/>`, is of `jabber:client` with all
/// that is in it, unless it says otherwise (BOSH-86); it takes the prefixes of `<body/>` along
/// (BOSH-87). What comes back carries its namespace itself (BOSH-88).
async fn payload_namespaces(place: Place) -> Result {
    let mut two = Two::new(&place).await?;
    let to = escape(&two.friend.jid);
    let payloads = format!(
        "<message to='{to}' type='chat'><body>inherited</body><q:x n='1'/></message>\
         <message xmlns='' to='{to}' type='chat'><body>none</body><q:x n='2'/></message>\
         <message xmlns='jabber:client' to='{to}' type='chat'><body>own</body>\
         <x xmlns='urn:q' n='3'/></message>"
    );
    let mut held = two.session.next("xmlns:q='urn:q'", &payloads).await?;
    for (number, text) in [("1", "inherited"), ("2", "none"), ("3", "own")] {
        let message = two.friend.expect(text, |element| body_of(element).is_some()).await?;
        ensure!(body_of(&message).as_deref() == Some(text), "{text}: {}", text_of(&message));
        let child = message.get_child("x", "urn:q").and_then(|x| x.attr("n"));
        ensure!(child == Some(number), "BOSH-87: {text}: {}", text_of(&message));
    }
    two.friend_says("back").await?;
    let body = held.body().await?;
    ensure!(body.messages() == ["back"], "{}", body.text);
    let literal = ["<message xmlns='jabber:client'", "<message xmlns=\"jabber:client\""];
    let starts = literal.iter().any(|start| body.text.contains(start));
    ensure!(place.direct || starts, "BOSH-88: {}", body.text);
    Ok(())
}

/// Scenario: example 9.3. What a request carries waits for the one before it (BOSH-32, BOSH-33);
/// answers leave in the order of rids (BOSH-35), the older one as soon as another may be held
/// (BOSH-37), and say which rids have come (BOSH-53). Data goes out on the oldest request that is
/// held (BOSH-39).
async fn out_of_order(place: Place) -> Result {
    let mut two = Two::new(&place).await?;
    let last = two.session.rid;
    let second = two.to_friend("second");
    let mut second = two.session.post(last + 2, "", &second).await?;
    second.stays_open(A_WHILE).await?;
    let first = two.to_friend("first");
    let mut first = two.session.post(last + 1, "", &first).await?;
    for expected in ["first", "second"] {
        let body = two.friend.body().await?;
        ensure!(body == expected, "BOSH-32: {body:?} instead of {expected:?}");
    }
    let body = first.body().await?;
    ensure_empty(&body)?;
    ensure!(place.direct || body.number("ack")? == last + 2, "BOSH-53: {}", body.text);
    second.stays_open(A_WHILE).await?;
    two.friend_says("back").await?;
    let body = second.body().await?;
    ensure!(body.messages() == ["back"], "BOSH-39: {}", body.text);
    ensure!(body.attr("ack").is_none(), "BOSH-53: {}", body.text);
    Ok(())
}

/// Scenario: a rid above the window (BOSH-34) or below what is kept (BOSH-47) ends the session like
/// any unknown one, with the same bytes (BOSH-70, BOSH-66); what is open besides is told
/// `other-request` (BOSH-76).
async fn outside_the_window(place: Place) -> Result {
    let mut two = Two::new(&place).await?;
    let mut held = two.session.next("", "").await?;
    let above = two.session.rid + 3;
    let mut high = two.session.post(above, "", "").await?;
    let too_high = high.body().await?;
    too_high.expect_terminate(Some("item-not-found")).context("BOSH-34")?;
    held.body().await?.expect_terminate(Some("other-request")).context("BOSH-76")?;
    let ended = two.session.ask("", "").await?;

    let mut two = Two::new(&place).await?;
    let mut answers = vec![two.session.next("", &asked("p0")).await?];
    for number in 1..=4 {
        let request = two.session.next("", &asked(&format!("p{number}"))).await?;
        // What the server says to both may ride on the older one (BOSH-37).
        answers[number - 1].body().await?;
        answers.push(request);
    }
    let too_old = two.session.repeat(&answers[0]).await?.body().await?;
    let after = two.session.ask("", "").await?;

    two.session.sid = "x".repeat(two.session.sid.len());
    let unknown = two.session.ask("", "").await?;
    for (what, body) in
        [("ended", ended), ("too old", too_old), ("after", after), ("unknown", unknown)]
    {
        ensure!(body.text == too_high.text, "BOSH-70: {what}: {} {}", body.text, too_high.text);
    }
    Ok(())
}

/// Scenario: an answer that was cut comes again, the same to the byte, as often as its rid does
/// (BOSH-43, BOSH-44); what the repeats carry is not looked at. It comes nowhere else (BOSH-50).
async fn replay(place: Place) -> Result {
    let mut two = Two::new(&place).await?;
    let payload = two.to_friend("once");
    let mut request = two.session.next("", &payload).await?;
    ensure!(two.friend.body().await? == "once");
    two.friend_says("one").await?;
    let connection = request.connection.as_mut().context("not cut yet")?;
    connection.taste(60).await?;
    request.cut(Cut::Reset)?;
    let first = two.session.repeat(&request).await?.body().await?;
    ensure!(first.messages() == ["one"], "BOSH-44: {}", first.text);
    let (rid, other) = (request.rid, two.to_friend("twice"));
    let again = two.session.post(rid, "", &other).await?.body().await?;
    ensure!(again.text == first.text, "BOSH-44: {}\ninstead of\n{}", again.text, first.text);
    two.friend_says("two").await?;
    let next = two.session.ask("", "").await?;
    ensure!(next.messages() == ["two"], "BOSH-50: {}", next.text);
    two.friend.expect_none("BOSH-44: a repeat was forwarded", |it| body_of(it).is_some()).await
}

/// Scenario: nothing is put into an answer for which nobody waits: it comes with the next rid, and
/// the lost one has an empty answer (BOSH-48), or on the lost rid itself if that is repeated first
/// (BOSH-49). Repeated while it is held it moves to the new connection, and the old one hears of it
/// (BOSH-45).
async fn held_request_cut(place: Place) -> Result {
    let mut two = Two::new(&place).await?;
    let mut lost = two.session.next("", "").await?;
    lost.stays_open(A_WHILE).await?;
    lost.cut(Cut::Fin)?;
    // Nothing tells that it was noticed; until then an answer would be on its way (BOSH-50).
    sleep(A_WHILE).await;
    two.friend_says("one").await?;
    two.settle().await?;
    let next = two.session.ask("", "").await.context("BOSH-48")?;
    ensure!(next.messages() == ["one"], "BOSH-48: {}", next.text);
    ensure_empty(&two.session.repeat(&lost).await?.body().await?).context("BOSH-48")?;

    let mut lost = two.session.next("", "").await?;
    lost.stays_open(A_WHILE).await?;
    lost.cut(Cut::Reset)?;
    sleep(A_WHILE).await;
    let mut again = two.session.repeat(&lost).await?;
    again.stays_open(A_WHILE).await?;
    let mut newest = two.session.repeat(&lost).await?;
    let body = again.body().await?;
    ensure!(body.attr("type") == Some("error"), "BOSH-45: {}", body.text);
    two.friend_says("two").await?;
    let body = newest.body().await?;
    ensure!(body.messages() == ["two"], "BOSH-49: {}", body.text);
    Ok(())
}

/// Scenario: who asks for it (BOSH-27) is told which answer seems lost (BOSH-55), and what it has
/// confirmed, in words (BOSH-52) or by saying nothing (BOSH-54), cannot be had again. An `ack` out of
/// the blue is ignored (BOSH-56).
async fn acknowledgements(place: Place) -> Result {
    let mut two = Two::with(&place, "ack='1'").await?;
    let rid = two.session.rid;
    let ack = |rid: u64| format!("ack='{rid}'");
    let body = two.session.ask(&ack(rid), &asked("a")).await?;
    ensure_answered(&body, "a")?;
    // The report is about time, so time has to pass (BOSH-55).
    sleep(Duration::from_millis(1200)).await;
    let report = two.session.ask(&ack(rid), "").await?;
    ensure!(report.number("report")? == rid + 1, "BOSH-55: {}", report.text);
    let time = report.number("time")?;
    ensure!((1000..10_000).contains(&time), "BOSH-55: {}", report.text);

    // Not confirmed: rid + 1 is still kept, however many come after it. They may be answered with
    // another report, and what they asked for comes later.
    for id in ["b", "c", "d"] {
        let mut body = two.session.ask(&ack(rid), &asked(id)).await?;
        while body.payloads().is_empty() {
            ensure!(body.attr("report").is_some(), "neither report nor answer: {}", body.text);
            body = two.session.ask(&ack(rid), "").await?;
        }
        ensure_answered(&body, id)?;
    }
    let mut kept = two.session.post(rid + 1, &ack(rid), &asked("a")).await?;
    ensure_answered(&kept.body().await?, "a").context("BOSH-43")?;

    let mut two = Two::with(&place, "ack='1'").await?;
    let rid = two.session.rid;
    let body = two.session.ask("ack='99999999999'", &asked("e")).await?;
    ensure_answered(&body, "e").context("BOSH-56")?;
    let confirmed = two.session.rid;
    let body = two.session.ask(&ack(confirmed), &asked("f")).await?;
    ensure_answered(&body, "f")?;
    let mut gone = two.session.post(confirmed, &ack(rid), &asked("e")).await?;
    gone.body().await?.expect_terminate(Some("item-not-found")).context("BOSH-52")?;

    let mut two = Two::with(&place, "ack='1'").await?;
    let body = two.session.ask("", &asked("a")).await?;
    ensure_answered(&body, "a")?;
    let below = two.session.rid;
    ensure_answered(&two.session.ask("", &asked("b")).await?, "b")?;
    let mut gone = two.session.post(below, "", &asked("a")).await?;
    gone.body().await?.expect_terminate(Some("item-not-found")).context("BOSH-54")?;

    let mut two = Two::with(&place, "ack='0'").await?;
    let old = two.session.rid - 1;
    let body = two.session.ask(&ack(old), &asked("a")).await?;
    ensure!(body.attr("report").is_none(), "BOSH-27: {}", body.text);
    ensure_answered(&body, "a")
}

/// Scenario: example 9.6. A pause answers all that is open, itself without payloads, forwards what
/// it carries, and lets the session live past `inactivity` (BOSH-58); what came meanwhile comes with
/// the next request (BOSH-40). Longer than `maxpause`, or none at all, is a violation (BOSH-59).
async fn pause(place: Place) -> Result {
    let mut two = Two::impatient(&place).await?;
    let mut held = two.session.next("", "").await?;
    held.stays_open(A_WHILE).await?;
    let payload = two.to_friend("away for a while");
    let mut paused = two.session.next("pause='60'", &payload).await?;
    let body = held.body().await?;
    ensure_empty(&body)?;
    ensure!(body.number("ack")? == two.session.rid, "BOSH-53: {}", body.text);
    ensure_empty(&paused.body().await?)?;
    ensure!(two.friend.body().await? == "away for a while", "BOSH-58: not forwarded");
    two.friend_says("welcome back").await?;
    // Longer than `inactivity`, which is what a pause is for.
    sleep(Duration::from_secs(u64::from(SHORT_INACTIVITY) + 2)).await;
    let body = two.session.ask("", "").await?;
    ensure!(body.messages() == ["welcome back"], "BOSH-58: {}", body.text);

    let too_long = two.session.creation.number("maxpause")? + 1;
    for wrong in [too_long.to_string(), "0".to_owned(), "soon".to_owned()] {
        let mut two = Two::new(&place).await?;
        let body = two.session.ask(&format!("pause='{wrong}'"), "").await?;
        body.expect_terminate(Some("policy-violation")).context("BOSH-59")?;
    }
    Ok(())
}

/// Scenario: a session lives while a request of it is open, and dies `inactivity` seconds after the
/// last answer (BOSH-57): the server ends it for all to see (XB-16), and its sid is forgotten
/// (BOSH-66).
async fn inactivity(place: Place) -> Result {
    let mut two = Two::impatient(&place).await?;
    let directed = format!("<presence xmlns='jabber:client' to='{}'/>", escape(&two.friend.jid));
    let mut held = two.session.next("", &directed).await?;
    let jid = two.jid.clone();
    two.friend.expect("the presence", |element| is_presence(element, &jid, None)).await?;
    held.stays_open(Duration::from_secs(u64::from(SHORT_INACTIVITY) + 1)).await?;
    two.friend_says("still there?").await?;
    ensure!(held.body().await?.messages() == ["still there?"], "BOSH-57");
    two.friend
        .expect("the end", |element| is_presence(element, &jid, Some("unavailable")))
        .await
        .context("BOSH-57")?;
    two.session.ask("", "").await?.expect_terminate(Some("item-not-found")).context("BOSH-66")
}

/// Scenario: with `hold='0'` nothing is held (BOSH-60), one request at a time (BOSH-17) and not too
/// often (BOSH-63).
async fn polling_session(place: Place) -> Result {
    let server = Server::shared(place.kind)?;
    let gateway = Gateway::in_front_of_with(&[&server], "[bosh]\npolling = \"1s\"\n")?;
    let url = Url::parse(&gateway.bosh_url())?;
    let creation =
        format!("to='{}' wait='0' hold='0' ver='1.11' xmpp:version='1.0'", server.domain());
    let mut session = Session::create_with(&url, &creation).await?;
    let first = &session.creation;
    ensure!(first.attr("requests") == Some("1"), "BOSH-17: {}", first.text);
    ensure!(first.attr("polling") == Some("1"), "BOSH-18: {}", first.text);
    ensure!(first.element.has_child("features", ns::STREAMS), "BOSH-29: {}", first.text);
    // The rule is about time, so time has to pass.
    let interval = || sleep(Duration::from_secs(1));
    for _ in 0..2 {
        interval().await;
        ensure_empty(&session.ask("", "").await?).context("BOSH-60")?;
    }
    // Not empty, and so at any time; the refusal comes with it or with the next.
    let bad = format!("<auth xmlns='{}' mechanism='PLAIN'>AHgAeQ==</auth>", ns::SASL);
    let answer = session.ask("", &bad).await?;
    if answer.is_empty() {
        interval().await;
        let answer = session.ask("", "").await?;
        ensure!(answer.element.has_child("failure", ns::SASL), "BOSH-40: {}", answer.text);
    }
    interval().await;
    ensure_empty(&session.ask("", "").await?).context("BOSH-60")?;
    session.ask("", "").await?.expect_terminate(Some("policy-violation")).context("BOSH-63")
}

/// Scenario: example 9.5. A clean end takes its payloads along and answers everything that is open
/// (BOSH-64); afterwards there is no session (BOSH-66). `terminal`, as gloox spells it, is the same
/// (BOSH-67).
async fn terminate(place: Place) -> Result {
    for spelling in ["terminate", "terminal"] {
        let mut two = Two::new(&place).await?;
        let mut held = two.session.next("", "").await?;
        held.stays_open(A_WHILE).await?;
        let payload = two.to_friend("farewell");
        let mut last = two.session.next(&format!("type='{spelling}'"), &payload).await?;
        held.body().await?.expect_terminate(None).context(spelling)?;
        ensure_empty(&last.body().await?).context(spelling)?;
        ensure!(two.friend.body().await? == "farewell", "BOSH-64: {spelling}");
        let after = two.session.ask("", "").await?;
        after.expect_terminate(Some("item-not-found")).context("BOSH-66")?;
    }
    Ok(())
}

/// K(1) to K(4) and M(2), M(3) of example 9.7.
const K: [&str; 4] = [
    "93c81f9001ac4d3aea60e3fe622c88f858e8d0b3",
    "01fd4dc44bbee522ded8987ee4fde07e35c9daf4",
    "a932def6e5d361adc571134e2dee5e78cd53d771",
    "3d3e77fc2e73912de6215365bd7ff8e6ec560d23",
];
const M2: &str = "dde49264d302d1ce4dc03e2e471a107cdb2b9275";
const M3: &str = "513e28785e616d84f227475485d18c8f77e7a02b";

/// Scenario: example 9.7. Each key is checked against the last (BOSH-80), in the order of rids
/// (BOSH-82), whatever the case of the stored one; the chain may be changed; a repeat shows the key it
/// had (BOSH-83). A missing, wrong or unexpected one is an unknown rid (BOSH-81), one that is no key
/// at all a bad request (BOSH-84).
async fn key_sequence(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let url = Url::parse(&endpoint.url)?;
    let keyed = |newkey: String| {
        let creation = format!("to='{}' {CREATION} newkey='{newkey}'", server.domain());
        let url = url.clone();
        async move { Session::create_with(&url, &creation).await }
    };
    let key = |key: &str| format!("key='{key}'");
    for newkey in [K[3].to_owned(), K[3].to_ascii_uppercase()] {
        let mut session = keyed(newkey).await?;
        let rid = session.rid;
        // 72 before 71, as two connections may bring them.
        let mut second = session.post(rid + 2, &key(K[1]), "").await?;
        let mut first = session.post(rid + 1, &key(K[2]), "").await?;
        ensure_empty(&first.body().await?).context("BOSH-82")?;
        session.rid = rid + 2;
        let change = format!("{} newkey='{M3}'", key(K[0]));
        let mut third = session.next(&change, "").await?;
        ensure_empty(&second.body().await?).context("BOSH-80")?;
        let mut fourth = session.next(&key(M2), "").await?;
        ensure_empty(&third.body().await?).context("BOSH-80")?;
        // Answered and repeated: the chain has moved on, and does not move again.
        ensure_empty(&session.repeat(&third).await?.body().await?).context("BOSH-83")?;
        let mut again = session.repeat(&fourth).await?;
        let body = fourth.body().await?;
        ensure!(body.attr("type") == Some("error"), "BOSH-45: {}", body.text);
        let mut keyless = session.next("", "").await?;
        keyless.body().await?.expect_terminate(Some("item-not-found")).context("BOSH-81")?;
        again.body().await?.expect_terminate(Some("other-request")).context("BOSH-76")?;
    }
    for (attributes, condition) in [
        (key(K[1]), "item-not-found"),
        (key(&format!("{}0", K[2])), "bad-request"),
        (key(&K[2].replace('a', "g")), "bad-request"),
    ] {
        let mut session = keyed(K[3].to_owned()).await?;
        let body = session.ask(&attributes, "").await?;
        body.expect_terminate(Some(condition)).with_context(|| attributes)?;
    }
    let mut session = keyed(K[3].to_owned()).await?;
    let mut first = session.next(&key(K[2]), "").await?;
    let mut held = session.next(&key(K[1]), "").await?;
    // So the second is held, and the forged one comes after it.
    ensure_empty(&first.body().await?).context("BOSH-37")?;
    let mut forged = session.post(held.rid, &key(K[2]), "").await?;
    forged.body().await?.expect_terminate(Some("item-not-found")).context("BOSH-83")?;
    held.body().await?.expect_terminate(Some("other-request")).context("BOSH-76")?;
    let mut plain = Session::create(&url, server.domain()).await?;
    let body = plain.ask(&key(K[2]), "").await?;
    body.expect_terminate(Some("item-not-found")).context("BOSH-81: unexpected")
}

/// Scenario: a session created without `ver` is answered without it (BOSH-19) and hears of its
/// faults by HTTP codes, with nothing in the body (BOSH-79); with `ver`, and where nobody knows the
/// session, by a body.
async fn legacy_codes(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let url = Url::parse(&endpoint.url)?;
    let legacy = || async {
        let creation = format!("to='{}' wait='60' hold='1' xmpp:version='1.0'", server.domain());
        let session = Session::create_with(&url, &creation).await?;
        let first = &session.creation;
        ensure!(first.attr("ver").is_none(), "BOSH-19: {}", first.text);
        Ok(session)
    };
    async fn expect(mut request: Pending, status: u16) -> Result {
        let answer = request.answer().await?;
        let right = answer.status == status && answer.body.is_empty();
        ensure!(right, "{}{}", answer.head, String::from_utf8_lossy(&answer.body));
        Ok(())
    }
    let mut session = legacy().await?;
    let rid = session.rid;
    expect(session.post(rid + 9, "", "").await?, 404).await.context("BOSH-79: rid")?;
    let mut session = legacy().await?;
    expect(session.next("pause='9999'", "").await?, 403).await.context("BOSH-79: pause")?;
    let mut session = legacy().await?;
    expect(session.next("", "text").await?, 400).await.context("BOSH-79: text")?;
    // Elsewhere the mode is not known.
    session.sid = "x".repeat(session.sid.len());
    session.ask("", "").await?.expect_terminate(Some("item-not-found"))?;
    let mut connection = Connection::open(&url.authority).await?;
    connection.send(&url.post("", "<body")).await?;
    let answer = tokio::time::timeout(PATIENCE, connection.prompt_answer()).await??;
    Body::of(&answer)?.expect_terminate(Some("bad-request"))
}

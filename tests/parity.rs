//! What must hold over every transport and in front of every server: each scenario is written
//! once and run in every cell of the table that is printed last. A second table has what only BOSH
//! can show.
//!
//! `BOSPHORUS_PARITY=direct` runs the same scenarios against the servers' own endpoints instead of
//! the gateway: what fails there, too, is the server's doing or the scenario's.

mod common;
#[path = "parity/bosh.rs"]
mod over_bosh;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use common::client::{
    Client, Ending, Endpoint, Event, Loss, Mechanism, Transport, bare, body_of, escape,
    is_presence, ns, text_of,
};
use common::gateway::Gateway;
use common::scram::Scram;
use common::server::{Account, Kind, Server, Settings};
use common::table::{Cell, Table};
use common::{PATIENCE, Result, in_ci};

/// A row of a table: its title and what runs in its cells.
type Row = (&'static str, fn(Place) -> Result);

/// The rows of a table.
macro_rules! scenarios {
    ($($title:literal => $function:ident,)*) => {
        pub(crate) const SCENARIOS: &[crate::Row] =
            &[$(($title, |place| crate::common::block_on($function(place)))),*];
    };
}
pub(crate) use scenarios;

scenarios! {
    "SCRAM login" => scram_login,
    "PLAIN login" => plain_login,
    "roster" => roster,
    "presence" => presence,
    "messages both ways" => messages,
    "60-kB stanza" => large_stanza,
    "unicode" => unicode,
    "stream management: enable" => stream_management,
    "stream management: resume" => resumption,
    "clean close" => clean_close,
    "wrong password" => wrong_password,
    "unknown host" => unknown_host,
    "server killed mid-session" => server_killed,
    "client socket cut" => client_cut,
    "gateway stopped (SIGTERM)" => gateway_stopped,
}

/// Rows that say nothing about a server's own endpoint.
const GATEWAY_ONLY: &[&str] = &["gateway stopped (SIGTERM)"];

/// Seconds until a BOSH session counts as lost, where a scenario loses one.
const SHORT_INACTIVITY: u32 = 2;

/// A cell's surroundings.
#[derive(Clone)]
struct Place {
    transport: Transport,
    kind: Kind,
    direct: bool,
}

impl Place {
    fn column(&self) -> String {
        format!("{}/{}", self.transport.name(), self.kind.name())
    }

    /// Why this cell cannot be run, if so.
    fn missing(&self, title: &str) -> Option<String> {
        if self.direct && GATEWAY_ONLY.contains(&title) {
            return Some(format!("\"{title}\" needs a gateway"));
        }
        if self.direct && self.transport == Transport::WsLegacy {
            return Some("the servers' own endpoints have no legacy framing".to_owned());
        }
        if self.direct && self.kind == Kind::Demo {
            return Some("the demo's server has no endpoint of its own but TCP".to_owned());
        }
        if self.direct && self.transport == Transport::Bosh {
            let unlike = over_bosh::DIRECT_DEPARTURES.iter();
            let mut unlike = unlike.filter(|(row, kind, _)| (*row, *kind) == (title, self.kind));
            if let Some((_, kind, why)) = unlike.next() {
                return Some(format!("\"{title}\": {} {why}", kind.name()));
            }
        }
        self.kind.missing()
    }

    /// The shared server and where clients of this column connect to reach it.
    fn shared(&self) -> Result<(Arc<Server>, Endpoint)> {
        let server = Server::shared(self.kind)?;
        let url = match self.gateway()? {
            Some(gateway) => gateway.url(self.transport),
            None => server.url(self.transport),
        };
        Ok((server, self.endpoint(url)))
    }

    /// The gateway in front of the shared server.
    fn gateway(&self) -> Result<Option<&'static Gateway>> {
        static GATEWAYS: [OnceLock<Result<Gateway, String>>; 3] = [const { OnceLock::new() }; 3];
        if self.direct {
            return Ok(None);
        }
        let server = Server::shared(self.kind)?;
        GATEWAYS[self.kind as usize]
            .get_or_init(|| Gateway::in_front_of(&[&server]).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map(Some)
            .map_err(|why| anyhow!("{why}"))
    }

    /// How many sessions of this transport the gateway has opened.
    fn sessions_opened(&self) -> Result<f64> {
        let Some(gateway) = self.gateway()? else { return Ok(f64::NAN) };
        let label = match self.transport {
            Transport::Ws => "websocket",
            Transport::WsLegacy => "websocket_legacy",
            Transport::Bosh => "bosh",
        };
        gateway.metric(&format!("bosphorus_sessions_opened_total{{transport=\"{label}\"}}"))
    }

    /// A server of this cell's own, and a gateway in front of it.
    fn private(&self) -> Result<(Server, Option<Gateway>, Endpoint)> {
        let server = Server::start(self.kind, &Settings::default())?;
        if self.direct {
            let url = server.url(self.transport);
            return Ok((server, None, self.endpoint(url)));
        }
        let gateway = Gateway::in_front_of(&[&server])?;
        let url = gateway.url(self.transport);
        Ok((server, Some(gateway), self.endpoint(url)))
    }

    /// Where a client that goes silent is soon taken for lost: over WebSocket everywhere, over BOSH
    /// ([`SHORT_INACTIVITY`]) at a gateway, or in direct mode at a server, of this cell's own.
    fn impatient(&self) -> Result<(Arc<Server>, Option<Gateway>, Endpoint)> {
        if self.transport != Transport::Bosh {
            let (server, endpoint) = self.shared()?;
            return Ok((server, None, endpoint));
        }
        if self.direct {
            let settings = Settings { bosh_inactivity: SHORT_INACTIVITY, ..Settings::default() };
            let server = Arc::new(Server::start(self.kind, &settings)?);
            let url = server.url(self.transport);
            return Ok((server, None, self.endpoint(url)));
        }
        let server = Server::shared(self.kind)?;
        let toml = format!("[bosh]\ninactivity = \"{SHORT_INACTIVITY}s\"\n");
        let gateway = Gateway::in_front_of_with(&[&server], &toml)?;
        let url = gateway.url(self.transport);
        Ok((server, Some(gateway), self.endpoint(url)))
    }

    /// Where a WebSocket client connects to meet those of a BOSH column.
    fn shared_websocket(&self, server: &Server) -> Result<Endpoint> {
        let url = match self.gateway()? {
            Some(gateway) => gateway.ws_url(),
            None => server.websocket_url(),
        };
        Ok(Endpoint { url, transport: Transport::Ws })
    }

    /// Whether a stream that ended properly ended so as its transport says: WebSocket has a close
    /// code, BOSH has not.
    fn closed_as(&self, ending: &Ending, code: Option<u16>) -> bool {
        match self.transport {
            Transport::Ws | Transport::WsLegacy => match code {
                Some(_) => ending.code == code,
                None => ending.code.is_some(),
            },
            Transport::Bosh => ending.code.is_none(),
        }
    }

    fn endpoint(&self, url: String) -> Endpoint {
        Endpoint { url, transport: self.transport }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let direct = std::env::var("BOSPHORUS_PARITY").is_ok_and(|value| value == "direct");
    let places: Vec<Place> = Transport::ALL
        .into_iter()
        .flat_map(|transport| Kind::WITH_DEMO.map(|kind| Place { transport, kind, direct }))
        .collect();
    let head = |name: &str| match direct {
        true => format!("{name} (servers' own endpoints)"),
        false => name.to_owned(),
    };
    let bosh: Vec<Place> =
        places.iter().filter(|place| place.transport == Transport::Bosh).cloned().collect();
    let mut trials = Vec::new();
    let mut skips = BTreeSet::new();
    let tables = [
        table(head("scenario"), SCENARIOS, &places, &mut trials, &mut skips),
        table(head("BOSH scenario"), over_bosh::SCENARIOS, &bosh, &mut trials, &mut skips),
    ];
    trials.push(Trial::test("the client's SCRAM", || {
        Ok(Scram::self_test().map_err(|e| format!("{e:#}"))?)
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    skips.iter().for_each(|line| println!("{line}"));
    for (table, name) in tables.iter().zip(["parity", "parity-bosh"]) {
        table.print(name);
    }
    conclusion.exit_code()
}

/// A table and the trials that fill it; why cells are not run goes to `skips`.
fn table(
    title: String,
    rows: &'static [Row],
    places: &[Place],
    trials: &mut Vec<Trial>,
    skips: &mut BTreeSet<String>,
) -> Arc<Table> {
    let titles = rows.iter().map(|(title, _)| (*title).to_owned()).collect();
    let columns = places.iter().map(Place::column).collect();
    let table = Arc::new(Table::new(title, titles, columns));
    for place in places {
        for (title, scenario) in rows {
            let (filled, place) = (Arc::clone(&table), place.clone());
            let column = place.column();
            let name = format!("{column}: {title}");
            let missing = place.missing(title);
            // A person who lacks a server sees `ignored`; in CI the cell fails and says why.
            let skipped = missing.is_some() && (place.direct || !in_ci());
            if let Some(why) = &missing {
                if skipped {
                    table.set(title, &column, Cell::Skip);
                }
                skips.insert(format!("not run in {column}: {why}"));
            }
            let run = move || {
                let result = missing.map_or_else(|| scenario(place), |why| Err(anyhow!(why)));
                filled.set(title, &column, Cell::of(&result));
                result.map_err(|error| Failed::from(format!("{error:#}")))
            };
            trials.push(Trial::test(name, run).with_ignored_flag(skipped));
        }
    }
    table
}

/// A client of a fresh account, logged in and available.
async fn someone(server: &Server, endpoint: &Endpoint) -> Result<Client> {
    Client::online(endpoint, &server.account()).await
}

/// RFC 7677, RFC 5802: both hashes, the server's signature checked; then the session is usable. It
/// was the gateway that carried it: it counted the sessions under this transport.
async fn scram_login(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let before = place.sessions_opened()?;
    for mechanism in [Mechanism::ScramSha1, Mechanism::ScramSha256] {
        let mut client = Client::login_with(&endpoint, &server.account(), mechanism).await?;
        client.request("get", Some(server.domain()), &ping()).await?;
    }
    let opened = place.sessions_opened()? - before;
    ensure!(place.direct || opened >= 2.0, "the gateway counted {opened} sessions, not 2");
    Ok(())
}

/// RFC 4616: the list of mechanisms arrives unedited (UP-19), and PLAIN works over loopback.
async fn plain_login(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let mut client = Client::login_with(&endpoint, &server.account(), Mechanism::Plain).await?;
    client.request("get", Some(server.domain()), &ping()).await?;
    Ok(())
}

/// RFC 6121 §2: get, set, push to every resource that asked, remove.
async fn roster(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let account = server.account();
    let mut one = Client::online(&endpoint, &account).await?;
    let mut two = Client::online(&endpoint, &account).await?;
    let query = format!("<query xmlns=\"{}\"/>", ns::ROSTER);
    for client in [&mut one, &mut two] {
        let roster = client.request("get", None, &query).await?;
        let items =
            roster.get_child("query", ns::ROSTER).map_or(0, |query| query.children().count());
        ensure!(items == 0, "a fresh roster has {items} items");
    }
    let contact = format!("contact@{}", server.domain());
    let item = |inner: &str| format!("<query xmlns=\"{}\">{inner}</query>", ns::ROSTER);
    let set = item(&format!(
        "<item jid=\"{contact}\" name=\"Ünal &amp; Söhne\"><group>Boğaziçi</group></item>"
    ));
    one.request("set", None, &set).await?;
    for client in [&mut one, &mut two] {
        let push = client.expect("the roster push", is_push).await?;
        let item = push.get_child("query", ns::ROSTER).and_then(|query| query.children().next());
        let item = item.context("an empty push")?;
        ensure!(item.attr("jid") == Some(&contact), "the wrong contact: {}", text_of(item));
        ensure!(item.attr("name") == Some("Ünal & Söhne"), "the wrong name: {}", text_of(item));
        let group = item.get_child("group", ns::ROSTER).map(minidom::Element::text);
        ensure!(group.as_deref() == Some("Boğaziçi"), "the wrong group: {}", text_of(item));
        let id = push.attr("id").context("a push without an id")?;
        client.send(&format!("<iq xmlns=\"jabber:client\" type=\"result\" id=\"{id}\"/>")).await?;
    }
    let remove = item(&format!("<item jid=\"{contact}\" subscription=\"remove\"/>"));
    two.request("set", None, &remove).await?;
    one.expect("the push of the removal", is_push).await?;
    let roster = one.request("get", None, &query).await?;
    ensure!(!text_of(&roster).contains(&contact), "the contact is still there");
    Ok(())
}

fn is_push(element: &minidom::Element) -> bool {
    element.is("iq", ns::CLIENT)
        && element.attr("type") == Some("set")
        && element.has_child("query", ns::ROSTER)
}

/// RFC 6121 §3, §4: a mutual subscription, then presence and its end reach the other.
async fn presence(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = someone(&server, &endpoint).await?;
    subscribe(&mut alice, &mut bob).await?;
    subscribe(&mut bob, &mut alice).await?;
    bob.send(
        "<presence xmlns=\"jabber:client\"><show>dnd</show><status>boğazda</status></presence>",
    )
    .await?;
    let busy = alice
        .expect("bob's new presence", |element| {
            is_presence(element, &bob.jid, None) && element.has_child("show", ns::CLIENT)
        })
        .await?;
    let status = busy.get_child("status", ns::CLIENT).map(minidom::Element::text);
    ensure!(status.as_deref() == Some("boğazda"), "the wrong status: {}", text_of(&busy));
    let jid = bob.jid.clone();
    let ending = bob.quit().await?;
    ensure!(ending.closed, "the close was not answered: {ending:?}");
    alice.expect("bob's end", |element| is_presence(element, &jid, Some("unavailable"))).await?;
    Ok(())
}

/// `one` asks to see `other`, who agrees; `one` then sees `other`.
async fn subscribe(one: &mut Client, other: &mut Client) -> Result {
    let (one_jid, other_jid) = (bare(&one.jid).to_owned(), bare(&other.jid).to_owned());
    let presence = |kind: &str, to: &str| {
        format!("<presence xmlns=\"jabber:client\" type=\"{kind}\" to=\"{to}\"/>")
    };
    one.send(&presence("subscribe", &other_jid)).await?;
    other
        .expect("the request", |element| is_presence(element, &one_jid, Some("subscribe")))
        .await?;
    other.send(&presence("subscribed", &one_jid)).await?;
    one.expect("the approval", |element| is_presence(element, &other_jid, Some("subscribed")))
        .await?;
    one.expect("the contact's presence", |element| is_presence(element, &other_jid, None)).await?;
    Ok(())
}

/// RFC 6121 §5: single messages and bursts in both directions, each once and in order (UP-33), and
/// an error for what cannot be delivered.
async fn messages(place: Place) -> Result {
    const BURST: usize = 100;
    let (server, endpoint) = place.shared()?;
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = someone(&server, &endpoint).await?;
    let (alice_jid, bob_jid) = (alice.jid.clone(), bob.jid.clone());
    alice.message(&bob_jid, "merhaba").await?;
    ensure!(bob.body().await? == "merhaba");
    bob.message(&alice_jid, "<merhaba> & \"selam\" 'sana'").await?;
    ensure!(alice.body().await? == "<merhaba> & \"selam\" 'sana'");
    for number in 0..BURST {
        alice.message(&bob_jid, &format!("a{number}")).await?;
        bob.message(&alice_jid, &format!("b{number}")).await?;
    }
    for number in 0..BURST {
        let (to_bob, to_alice) = (bob.body().await?, alice.body().await?);
        ensure!(to_bob == format!("a{number}"), "{to_bob} instead of a{number}");
        ensure!(to_alice == format!("b{number}"), "{to_alice} instead of b{number}");
    }
    let nobody = format!("nobody@{}/nowhere", server.domain());
    let refused = alice.request_any("get", Some(&nobody), &ping()).await?;
    ensure!(refused.attr("type") == Some("error"), "no error: {}", text_of(&refused));
    Ok(())
}

/// Both directions; the body arrives to the byte.
async fn large_stanza(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = someone(&server, &endpoint).await?;
    let body = mixed_text(60 * 1024);
    let (alice_jid, bob_jid) = (alice.jid.clone(), bob.jid.clone());
    alice.message(&bob_jid, &body).await?;
    ensure!(bob.body().await? == body, "alice's 60 kB arrived changed");
    bob.message(&alice_jid, &body).await?;
    ensure!(alice.body().await? == body, "bob's 60 kB arrived changed");
    // The same as many small elements and attributes, which a scanner sees differently.
    let items: String = (0..1500)
        .map(|number| format!("<item xmlns=\"urn:example:big\" n=\"{number}\">x&amp;y</item>"))
        .collect();
    alice
        .send(&format!(
            "<message xmlns=\"jabber:client\" to=\"{bob_jid}\" id=\"many\">{items}</message>"
        ))
        .await?;
    let many = bob
        .expect("the message of many elements", |element| element.attr("id") == Some("many"))
        .await?;
    let count = many
        .children()
        .enumerate()
        .filter(|(at, item)| {
            item.is("item", "urn:example:big")
                && item.attr("n") == Some(at.to_string().as_str())
                && item.text() == "x&y"
        })
        .count();
    ensure!(count == 1500, "only {count} of 1500 elements arrived as they were");
    Ok(())
}

/// Text of about `length` bytes in which every length of UTF-8 and every escape occurs, at ever
/// different offsets.
fn mixed_text(length: usize) -> String {
    let mut text = String::with_capacity(length + 64);
    while text.len() < length {
        text += &format!("{:x} <ğ> & 水 \"😀\" ]]&gt; 'é'\n", text.len());
    }
    text
}

/// RFC 6120 §11.6: everything XML allows, in text, in attributes, and however it is written.
async fn unicode(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = someone(&server, &endpoint).await?;
    let cases = [
        // as written, as read
        ("😀𝄞𐍈\u{10FFFD}\u{1F468}\u{200D}\u{1F469}", "😀𝄞𐍈\u{10FFFD}\u{1F468}\u{200D}\u{1F469}"),
        ("e\u{301} ñ n\u{303} Å \u{212B} \u{3099}", "e\u{301} ñ n\u{303} Å \u{212B} \u{3099}"),
        ("\u{202E}שלום\u{202C} مرحبا \u{200F}", "\u{202E}שלום\u{202C} مرحبا \u{200F}"),
        ("İıŞşĞğ ﬁ ẞ \u{00A0}\u{2028}", "İıŞşĞğ ﬁ ẞ \u{00A0}\u{2028}"),
        ("<![CDATA[<b>&amp; ]] > ]]>&#x5D;]&gt;<![CDATA[]]>", "<b>&amp; ]] > ]]>"),
        ("&#128512;&#x1F600;&#x9;&#10;&quot;&apos;&lt;&gt;&amp;", "😀😀\t\n\"'<>&"),
        ("\u{FFFD}\u{E000}\u{D7FF}\u{85}\u{7F}", "\u{FFFD}\u{E000}\u{D7FF}\u{85}\u{7F}"),
    ];
    let bob_jid = bob.jid.clone();
    for (written, read) in cases {
        // Prosody writes a tab or a line feed in an attribute as it is, which the reader must take
        // for a blank (XML 1.0 §3.3.3).
        let value = read.replace(['\n', '\t'], "");
        alice
            .send(&format!(
                "<message xmlns=\"jabber:client\" to=\"{bob_jid}\" type=\"chat\"><body>{written}</body>\
                 <x xmlns=\"urn:example:ü\" värde=\"{}\"/></message>",
                escape(&value),
            ))
            .await?;
        let message = bob.expect("a message", |element| body_of(element).is_some()).await?;
        let body = body_of(&message).context("a body was seen")?;
        ensure!(body == read, "{written:?} arrived as {body:?}");
        let attribute = message.get_child("x", "urn:example:ü").and_then(|x| x.attr("värde"));
        ensure!(attribute == Some(&value), "the attribute {value:?} arrived as {attribute:?}");
    }
    Ok(())
}

/// XEP-0198 §4: both sides count the same (SM-01, SM-03).
async fn stream_management(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = someone(&server, &endpoint).await?;
    bob.enable().await?;
    let (alice_jid, bob_jid) = (alice.jid.clone(), bob.jid.clone());
    for number in 0..5 {
        alice.message(&bob_jid, &format!("to bob {number}")).await?;
        bob.message(&alice_jid, &format!("to alice {number}")).await?;
    }
    for number in 0..5 {
        ensure!(bob.body().await? == format!("to bob {number}"));
        ensure!(alice.body().await? == format!("to alice {number}"));
    }
    let height = bob.request_acknowledgement().await?;
    ensure!(height == 5, "bob sent 5 stanzas, the server counted {height}");
    // The server's own request is answered with what bob has seen; a wrong count would end the
    // stream (`undefined-condition`, handled-count-too-high).
    bob.acknowledge().await?;
    bob.request("get", Some(server.domain()), &ping()).await?;
    let height = bob.request_acknowledgement().await?;
    ensure!(height == 6, "bob sent 6 stanzas, the server counted {height}");
    Ok(())
}

/// XEP-0198 §5 through a socket that was cut (SM-04, WS-37): what was not acknowledged comes again,
/// what was sent meanwhile comes too, each once and in order, and the server's count is right.
async fn resumption(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let account = server.account();
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = Client::online(&endpoint, &account).await?;
    bob.enable().await?;
    bob.answer_requests = false;
    let (alice_jid, bob_jid) = (alice.jid.clone(), bob.jid.clone());
    for number in 0..3 {
        bob.message(&alice_jid, &format!("to alice {number}")).await?;
        ensure!(alice.body().await? == format!("to alice {number}"));
    }
    for number in 0..4 {
        alice.message(&bob_jid, &format!("to bob {number}")).await?;
    }
    // Bob handles two of the four before his network goes.
    for number in 0..2 {
        ensure!(bob.body().await? == format!("to bob {number}"));
    }
    let mut counters = bob.sm.clone().context("stream management is enabled")?;
    ensure!(counters.handled == 2, "bob counted {} stanzas, not 2", counters.handled);
    bob.cut()?;
    for number in 4..6 {
        alice.message(&bob_jid, &format!("to bob {number}")).await?;
    }
    let mut bob = Client::authenticated(&endpoint, &account, Mechanism::ScramSha1).await?;
    let height = bob.resume(&counters, &bob_jid).await?;
    ensure!(height == 3, "bob had sent 3 stanzas, the server's h is {height}");
    for number in 2..6 {
        let body = bob.body().await?;
        ensure!(body == format!("to bob {number}"), "{body:?} instead of the message {number}");
    }
    // The resumed stream goes on counting where the old one stopped.
    counters.sent += 1;
    bob.message(&alice_jid, "back again").await?;
    ensure!(alice.body().await? == "back again");
    let height = bob.request_acknowledgement().await?;
    ensure!(height == counters.sent, "h is {height}, not {}", counters.sent);
    bob.acknowledge().await?;
    bob.expect_none("a message came twice", |element| body_of(element).is_some()).await
}

/// Scenario: a client's close is answered (WS-34, WSL-08, BOSH-64), and the socket closes with
/// 1000 (WS-35).
async fn clean_close(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let client = someone(&server, &endpoint).await?;
    let ending = client.quit().await?;
    ensure!(ending.closed, "the close was not answered: {ending:?}");
    let proper = place.closed_as(&ending, Some(1000));
    ensure!(place.direct || proper, "the close code is {:?}", ending.code);
    Ok(())
}

/// RFC 6120 §6.4.6: the server's refusal arrives, and the stream is good for another try.
async fn wrong_password(place: Place) -> Result {
    let (server, endpoint) = place.shared()?;
    let account = server.account();
    for mechanism in [Mechanism::Plain, Mechanism::ScramSha1] {
        let mut client = Client::connect(&endpoint).await?;
        client.open(&account.domain).await?;
        match client.authenticate(mechanism, &account.name, "wrong").await? {
            Err(condition) if condition == "not-authorized" => {}
            other => bail!("{other:?} instead of not-authorized"),
        }
        client
            .authenticate(mechanism, &account.name, &account.password)
            .await?
            .map_err(|condition| anyhow!("the second attempt failed: {condition}"))?;
        client.open(&account.domain).await?;
        client.bind(Some("second")).await?;
        ensure!(client.jid == format!("{}/second", account.jid()), "bound {}", client.jid);
    }
    Ok(())
}

/// Scenario: header, `host-unknown`, close (WS-21, WS-31, WSL-09); over BOSH the condition alone
/// (BOSH-13, BOSH-69).
async fn unknown_host(place: Place) -> Result {
    let (_server, endpoint) = place.shared()?;
    let mut client = Client::connect(&endpoint).await?;
    client.send_open("unknown.test").await?;
    if !place.direct && place.transport != Transport::Bosh {
        match client.event().await? {
            Event::Open(open) => {
                ensure!(open.attr("from") == Some("unknown.test"), "WS-31: {}", text_of(&open));
                ensure!(open.attr("id").is_some_and(|id| !id.is_empty()), "WS-31: no id");
            }
            other => bail!("WS-31: {other} instead of a header"),
        }
    }
    let ending = client.ending().await?;
    ensure!(ending.condition.as_deref() == Some("host-unknown"), "{ending:?}");
    let proper = ending.closed && place.closed_as(&ending, Some(1000));
    ensure!(place.direct || proper, "{ending:?}");
    Ok(())
}

/// Scenario: the stream is lost, the client hears `remote-connection-failed` (BOSH-72, BOSH-30),
/// then a proper close; when the server is back, so is the service.
async fn server_killed(place: Place) -> Result {
    let (server, gateway, endpoint) = place.private()?;
    let account = server.account();
    let mut client = Client::online(&endpoint, &account).await?;
    server.kill();
    let ending = client.ending().await?;
    if gateway.is_some() {
        ensure!(ending.condition.as_deref() == Some("remote-connection-failed"), "{ending:?}");
        ensure!(ending.closed && place.closed_as(&ending, None), "{ending:?}");
        // Nobody there: the same condition before a session.
        let mut refused = Client::connect(&endpoint).await?;
        refused.send_open(server.domain()).await?;
        let ending = refused.ending().await?;
        ensure!(ending.condition.as_deref() == Some("remote-connection-failed"), "{ending:?}");
        ensure!(ending.closed && place.closed_as(&ending, None), "{ending:?}");
    }
    server.restart()?;
    Client::online(&endpoint, &account).await?;
    Ok(())
}

/// Scenario: however the socket goes (WS-37), or whatever connections a BOSH session has and no
/// other comes for `inactivity` seconds (BOSH-57, XB-16), without stream management the server ends
/// the session, and others see it; with it (SM-04) the session stays, nobody sees anything, and it
/// can be resumed.
async fn client_cut(place: Place) -> Result {
    let (server, _gateway, endpoint) = place.impatient()?;
    // The one who stays and watches, over BOSH too, is soon silent for too long: not this one.
    let watching = match place.transport {
        Transport::Bosh => place.shared_websocket(&server)?,
        Transport::Ws | Transport::WsLegacy => endpoint.clone(),
    };
    let mut alice = someone(&server, &watching).await?;
    // ejabberd's own endpoint does not end the session on a Close frame.
    let losses: &[Loss] = match place.direct || place.transport == Transport::Bosh {
        true => &[Loss::Reset, Loss::Fin],
        false => &[Loss::Reset, Loss::Fin, Loss::CloseFrame],
    };
    for &loss in losses {
        let mut bob = someone(&server, &endpoint).await?;
        subscribe(&mut alice, &mut bob).await?;
        let jid = bob.jid.clone();
        bob.lose(loss).await?;
        alice
            .expect("bob's end", |element| is_presence(element, &jid, Some("unavailable")))
            .await
            .with_context(|| format!("{loss:?}"))?;

        let account: Account = server.account();
        let mut carol = Client::online(&endpoint, &account).await?;
        subscribe(&mut alice, &mut carol).await?;
        carol.enable().await?;
        let (jid, counters) = (carol.jid.clone(), carol.sm.clone().context("enabled")?);
        carol.lose(loss).await?;
        alice.message(&jid, "are you there?").await?;
        let mut carol = Client::authenticated(&endpoint, &account, Mechanism::ScramSha1).await?;
        carol.resume(&counters, &jid).await.with_context(|| format!("{loss:?}"))?;
        ensure!(carol.body().await? == "are you there?");
        alice
            .expect_none("carol was seen leaving", |element| {
                is_presence(element, &jid, Some("unavailable"))
            })
            .await?;
    }
    Ok(())
}

/// Scenario: whoever has stream management gets Close 1001 (WS-39), over BOSH `system-shutdown`
/// (BOSH-74), and resumes through the next gateway, where what was underway arrives; the others get
/// `system-shutdown` and a clean end. The exit status is 0.
async fn gateway_stopped(place: Place) -> Result {
    let server = Server::shared(place.kind)?;
    let gateway = Gateway::in_front_of(&[&server])?;
    let endpoint = place.endpoint(gateway.url(place.transport));
    let account = server.account();
    let mut alice = someone(&server, &endpoint).await?;
    let mut bob = Client::online(&endpoint, &account).await?;
    subscribe(&mut bob, &mut alice).await?;
    bob.enable().await?;
    bob.answer_requests = false;
    let (alice_jid, bob_jid) = (alice.jid.clone(), bob.jid.clone());
    alice.message(&bob_jid, "before").await?;
    ensure!(bob.body().await? == "before");
    let counters = bob.sm.clone().context("stream management is enabled")?;
    alice.message(&bob_jid, "underway").await?;
    bob.message(&alice_jid, "to alice").await?;
    ensure!(alice.body().await? == "to alice");
    alice.listen().await?;
    bob.listen().await?;
    gateway.signal("TERM")?;
    let (alice_end, bob_end) = (alice.ending().await?, bob.ending().await?);
    ensure!(alice_end.condition.as_deref() == Some("system-shutdown"), "alice: {alice_end:?}");
    ensure!(alice_end.closed && place.closed_as(&alice_end, None), "alice: {alice_end:?}");
    let expected = match place.transport {
        Transport::Ws | Transport::WsLegacy => (None, Some(1001)),
        Transport::Bosh => (Some("system-shutdown"), None),
    };
    ensure!((bob_end.condition.as_deref(), bob_end.code) == expected, "bob: {bob_end:?}");
    let status = gateway.wait(PATIENCE)?;
    ensure!(status.success(), "{status}\n{}", gateway.log_tail(20));

    let next = Gateway::in_front_of(&[&server])?;
    let endpoint = place.endpoint(next.url(place.transport));
    let mut bob = Client::authenticated(&endpoint, &account, Mechanism::ScramSha1).await?;
    let height = bob.resume(&counters, &bob_jid).await?;
    ensure!(height == 1, "bob had sent 1 stanza, the server's h is {height}");
    ensure!(bob.body().await? == "underway");
    bob.expect("alice's end", |element| is_presence(element, &alice_jid, Some("unavailable")))
        .await?;
    Ok(())
}

pub(crate) fn ping() -> String {
    format!("<ping xmlns=\"{}\"/>", ns::PING)
}

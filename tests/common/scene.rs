//! A gateway in front of a server that the test plays by hand, and BOSH sessions between them.

use anyhow::{Context, ensure};

use super::Result;
use super::bosh::{Body, CONTENT_TYPE, CREATION, Session, XBOSH, creation, first_rid};
use super::client::ns;
use super::gateway::Gateway;
use super::http::{Answer, Connection, Url};
use super::peer::{Link, Peer};

/// The domain that is served.
pub const DOMAIN: &str = "example.test";

/// The server's header.
pub const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='s1' from='example.test' version='1.0'>";
/// What it offers before a login.
pub const FEATURES: &str = "<stream:features><mechanisms \
    xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
    </stream:features>";
/// The login has worked.
pub const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
/// A login.
pub const AUTH: &str =
    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGEAc2VjcmV0</auth>";
/// What it offers after a login.
pub const BINDING: &str =
    "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>";
/// The wish for a resource.
pub const BIND: &str = "<iq xmlns='jabber:client' type='set' id='b'>\
    <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
/// That fulfilment.
pub const BOUND: &str = "<iq type='result' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
    <jid>a@example.test/r</jid></bind></iq>";
/// The end of a stream.
pub const FOOTER: &str = "</stream:stream>";

/// A message with that body, as a client or a server writes it.
pub fn message(body: &str) -> String {
    format!("<message xmlns='jabber:client' from='b@example.test/r'><body>{body}</body></message>")
}

/// The gateway and its server.
pub struct Scene {
    /// The gateway.
    pub gateway: Gateway,
    /// The server.
    pub peer: Peer,
    /// Where BOSH is.
    pub url: Url,
}

impl Scene {
    /// With these lines in the section `[bosh]`.
    pub async fn new(bosh: &str) -> Result<Self> {
        Self::with(&format!("[bosh]\n{bosh}\n")).await
    }

    /// With this configuration beside the domain.
    pub async fn with(toml: &str) -> Result<Self> {
        let peer = Peer::new().await?;
        let gateway = Gateway::start(&format!("{toml}\n{}", peer.toml()))?;
        let url = Url::parse(&gateway.bosh_url())?;
        Ok(Self { gateway, peer, url })
    }

    /// A session that has its features.
    pub async fn session(&self) -> Result<(Session, Link)> {
        self.session_with(CREATION).await
    }

    /// The same with these attributes beside `to`.
    pub async fn session_with(&self, attributes: &str) -> Result<(Session, Link)> {
        let (rid, mut connection) = self.create(attributes).await?;
        let mut link = self.peer.accept().await?;
        header(&mut link).await?;
        link.write(&format!("{HEADER}{FEATURES}")).await?;
        let body = Body::of(&connection.prompt_answer().await?)?;
        ensure!(body.element.has_child("features", ns::STREAMS), "no features: {}", body.text);
        Ok((Session::of(&self.url, rid, body)?, link))
    }

    /// A session that is logged in and has a resource; no request is open.
    pub async fn bound(&self) -> Result<(Session, Link)> {
        self.bound_with(CREATION).await
    }

    /// The same with these attributes beside `to`.
    pub async fn bound_with(&self, attributes: &str) -> Result<(Session, Link)> {
        let (mut session, mut link) = self.session_with(attributes).await?;
        self.log_in(&mut session, &mut link).await?;
        Ok((session, link))
    }

    /// Logs a session in and binds a resource.
    pub async fn log_in(&self, session: &mut Session, link: &mut Link) -> Result {
        let mut request = session.next("", AUTH).await?;
        link.until("</auth>").await?;
        link.write(SUCCESS).await?;
        expect_child(&request.body().await?, "success", ns::SASL)?;
        session.keep(request);
        let restart = format!("xmlns:xmpp='{XBOSH}' xmpp:restart='true'");
        let mut request = session.next(&restart, "").await?;
        header(link).await?;
        link.write(&format!("{HEADER}{BINDING}")).await?;
        expect_child(&request.body().await?, "features", ns::STREAMS)?;
        session.keep(request);
        let mut request = session.next("", BIND).await?;
        link.until("</iq>").await?;
        link.write(BOUND).await?;
        expect_child(&request.body().await?, "iq", ns::CLIENT)?;
        session.keep(request);
        Ok(())
    }

    /// Sends a creation request: its rid, and where the answer will come.
    pub async fn create(&self, attributes: &str) -> Result<(u64, Connection)> {
        let rid = first_rid();
        let text = creation(rid, &format!("to='{DOMAIN}' {attributes}"));
        Ok((rid, self.send(&self.url.post(CONTENT_TYPE, &text)).await?))
    }

    /// Sends bytes on a connection of their own.
    pub async fn send(&self, bytes: &[u8]) -> Result<Connection> {
        let mut connection = Connection::open(&self.url.authority).await?;
        connection.send(bytes).await?;
        Ok(connection)
    }

    /// Sends a whole request on a connection of its own and takes the answer.
    pub async fn ask(&self, bytes: &[u8]) -> Result<Answer> {
        self.send(bytes).await?.prompt_answer().await
    }

    /// Posts a body on a connection of its own and takes the answer's.
    pub async fn post(&self, body: &str) -> Result<Body> {
        Body::of(&self.ask(&self.url.post(CONTENT_TYPE, body)).await?)
    }
}

/// Takes the gateway's stream header off the link, whole.
pub async fn header(link: &mut Link) -> Result<String> {
    link.until("<stream:stream").await?;
    link.until(">").await
}

fn expect_child(body: &Body, name: &str, namespace: &str) -> Result {
    let child = body.element.get_child(name, namespace);
    child.map(|_| ()).with_context(|| format!("no <{name}/>: {}", body.text))
}

//! The load that the dashboards are looked at under, and what goes wrong after it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::common::bosh::{CREATION, Session};
use crate::common::bridge::{self, Http2, Multiplexer};
use crate::common::client::{Client, Endpoint, Transport};
use crate::common::gateway::{Gateway, domain_toml};
use crate::common::http::Url;
use crate::common::scram::Mechanism;
use crate::common::server::{Account, Server};
use crate::common::socket::Socket;
use crate::common::{Result, eventually};
use crate::pki::{Ca, Validity};
use crate::prometheus::{Prometheus, Rule};

/// The name in the gateway's certificate.
const NAME: &str = "gateway.test";
/// Loopback is no proxy here, so that whoever falls back to BOSH is known; nor is it limited.
const LIMITS: &str = "[limits]\nexempt_peers = []\nsessions_per_address = 0\n\
    unauthenticated_per_address = 0\nnew_sessions_per_minute = 0\nauth_failures_per_minute = 0\n\
    requests_per_second = 0\nconnections_per_address = 0\nnew_connections_per_second = 0\n\
    unknown_sids_per_minute = 0\n";
/// How many scrapes of the load there are before anything is asked.
const SCRAPES: f64 = 24.0;
/// Who uses the gateway.
pub(crate) struct Load {
    server: Arc<Server>,
    /// What is measured.
    pub(crate) gateway: Gateway,
    toml: String,
    /// Whoever comes and goes.
    visitor: Account,
    /// Where requests go on over HTTP/2.
    over_h2: Multiplexer,
}

impl Load {
    /// A gateway before Prosody, with TLS.
    pub(crate) async fn new() -> Result<Self> {
        let server = Server::prosody()?;
        let ca = Ca::new();
        let identity = ca.issue(&[NAME], Validity::Now);
        let toml = format!("{LIMITS}{}", domain_toml(&server));
        let gateway = Gateway::start_tls(&toml, identity.pem())?;
        let config = bridge::client(&ca.file(), rustls::ALL_VERSIONS, &[b"h2"])?;
        let http2 = Http2::connect(&config, gateway.tls(), NAME).await?;
        let over_h2 = Multiplexer::new(http2).await?;
        let visitor = server.account();
        Ok(Self { server, gateway, toml, visitor, over_h2 })
    }

    fn endpoint(&self, transport: Transport) -> Endpoint {
        Endpoint { url: self.gateway.url(transport), transport }
    }

    /// Clients over all transports talk, others come and go or fail, until there are enough
    /// scrapes. Those that are still there.
    pub(crate) async fn run(&self, prometheus: &Prometheus) -> Result<Vec<Client>> {
        let mut endpoints: Vec<_> = [Transport::Ws, Transport::Ws, Transport::WsLegacy]
            .into_iter()
            .chain([Transport::Bosh])
            .map(|transport| self.endpoint(transport))
            .collect();
        let url = format!("http://{}/http-bind", self.over_h2.address);
        endpoints.push(Endpoint { url, transport: Transport::Bosh });
        let mut clients = Vec::new();
        for endpoint in &endpoints {
            clients.push(Client::online(endpoint, &self.server.account()).await?);
        }
        // One that says nothing.
        let url = Url::parse(&self.gateway.bosh_url())?;
        let attributes = format!("to='{}' {CREATION}", self.server.domain());
        let attributes = attributes.replace("wait='60'", "wait='1'");
        let mut silent = Session::create_with(&url, &attributes).await?;
        let account = self.server.account();
        silent.login(&account.name, &account.password).await?;
        let mut idle = silent.next("", "").await?;

        let begun = prometheus.scrapes()?;
        let (mut round, mut reloaded) = (0, false);
        loop {
            let scrapes = prometheus.scrapes()? - begun;
            if scrapes >= SCRAPES {
                break;
            }
            if scrapes > SCRAPES / 3.0 && !reloaded {
                self.reload(&self.toml, "ok").await?;
                reloaded = true;
            }
            for client in &mut clients {
                let (jid, text) = (client.jid.clone(), format!("{round} {}", "x".repeat(200)));
                client.message(&jid, &text).await?;
                ensure!(client.body().await? == text);
            }
            match round % 8 {
                0 => self.visit().await?,
                1 => self.fail_to_log_in().await?,
                2 => self.lose().await?,
                3 => self.ask_for_nothing(&url).await?,
                _ => {}
            }
            if round % 40 == 30 {
                // The first answer comes when its wait is over.
                idle.body().await?;
                silent.keep(idle);
                idle = silent.next("", "").await?;
            }
            round += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(clients)
    }

    /// Sessions with a beginning and an end.
    async fn visit(&self) -> Result {
        for transport in Transport::ALL {
            Client::online(&self.endpoint(transport), &self.visitor).await?.quit().await?;
        }
        Ok(())
    }

    /// Wrong passwords.
    async fn fail_to_log_in(&self) -> Result {
        let account = &self.visitor;
        for transport in [Transport::Ws, Transport::Bosh] {
            let mut client = Client::connect(&self.endpoint(transport)).await?;
            client.open(&account.domain).await?;
            let answer = client.authenticate(Mechanism::ScramSha1, &account.name, "wrong").await?;
            ensure!(answer.is_err(), "a wrong password was taken");
            client.quit().await?;
        }
        Ok(())
    }

    /// Lines that are cut, a rid that is none, a domain that is not served.
    async fn lose(&self) -> Result {
        for transport in [Transport::Ws, Transport::WsLegacy] {
            Client::online(&self.endpoint(transport), &self.visitor).await?.cut()?;
        }
        let url = Url::parse(&self.gateway.bosh_url())?;
        let mut session = Session::create(&url, self.server.domain()).await?;
        let mut pending = session.post(session.rid + 1000, "", "").await?;
        ensure!(pending.body().await?.terminate().is_some(), "a rid too high was taken");
        let mut stranger = Client::connect(&self.endpoint(Transport::Ws)).await?;
        ensure!(stranger.open("elsewhere.test").await.is_err(), "any domain is served");
        Ok(())
    }

    /// An upgrade without the subprotocol, a request of no session.
    async fn ask_for_nothing(&self, url: &Url) -> Result {
        let headers = "Sec-WebSocket-Protocol: chat\r\n";
        let refused = Socket::request(&self.gateway.ws_url(), headers).await?;
        ensure!(refused.is_err(), "another subprotocol was taken");
        let mut session = Session::create(url, self.server.domain()).await?;
        let sid = std::mem::replace(&mut session.sid, "nobody".to_owned());
        let body = session.ask("", "").await?;
        ensure!(body.terminate().is_some(), "a sid that is none was taken");
        // That rid was none of the session's.
        session.sid = sid;
        session.rid -= 1;
        session.ask("type='terminate'", "").await?;
        Ok(())
    }

    /// Has a configuration read.
    async fn reload(&self, toml: &str, outcome: &str) -> Result {
        self.gateway.write_config(toml)?;
        self.gateway.signal("HUP")?;
        let reloads = format!("bosphorus_config_reloads_total{{outcome=\"{outcome}\"}}");
        eventually("the reload", async || (self.gateway.metric(&reloads).ok()? > 0.0).then_some(()))
            .await
    }

    /// The server is gone, a configuration is refused, and then the gateway is gone as well: alerts
    /// whose expressions say so, besides those that the cases of the rules have.
    pub(crate) async fn go_wrong(&self, prometheus: &Prometheus, rules: &[Rule]) -> Result {
        let wrong = async |alerts: &[&str]| {
            for alert in alerts {
                let rule = rules.iter().find(|rule| rule.name == *alert);
                let rule = rule.with_context(|| format!("no alert {alert}"))?;
                eventually(alert, async || {
                    let found = prometheus.instant(&rule.expression).ok()?;
                    (!found.is_empty()).then_some(())
                })
                .await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        self.server.kill();
        for _ in 0..20 {
            let mut client = Client::connect(&self.endpoint(Transport::Ws)).await?;
            ensure!(client.open(self.server.domain()).await.is_err(), "the server lives");
        }
        self.reload("[limits]\nsessions = 0\n", "failed").await?;
        wrong(&[
            "BosphorusServerDown",
            "BosphorusNoServer",
            "BosphorusSessionsFindNoServer",
            "BosphorusReloadFailed",
        ])
        .await?;
        self.gateway.kill()?;
        wrong(&["BosphorusDown"]).await
    }
}

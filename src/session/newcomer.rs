//! What is known of a client until its session has bound a resource, and what it is then counted
//! by; thereafter nothing of it is kept.

use std::net::IpAddr;
use std::time::Instant;

use super::fallbacks::Address;
use super::worker::{Sessions, Worker};
use crate::metrics::{Transport, Upgrade};
use crate::proto::agent::Agent;
use crate::proto::domain::Domain;
use crate::proto::origins::ByDomain;
use crate::proto::page::Page;

/// A client that cannot send stanzas yet.
#[derive(Debug)]
pub struct Newcomer {
    agent: Agent,
    page: Page,
    domain: Option<Domain>,
    address: Option<Address>,
}

impl Newcomer {
    /// The sender of a request with these values of `User-Agent` and `Origin`; `address` is given
    /// where it is a client's for certain.
    #[must_use]
    pub fn new(
        agent: Option<&[u8]>,
        origin: Option<&[u8]>,
        address: Option<IpAddr>,
        sessions: &Sessions,
    ) -> Box<Self> {
        Box::new(Self {
            agent: Agent::of(agent),
            page: Page::of(origin),
            domain: None,
            address: address.map(|address| sessions.fallbacks().address(address)),
        })
    }

    /// It asks for this domain.
    pub(crate) fn opens(&mut self, domain: &Domain) {
        self.domain = Some(domain.clone());
    }

    /// It has bound a resource, where pages of `origins` may.
    pub(crate) fn bound(
        self,
        transport: Transport,
        origins: &ByDomain,
        worker: &Worker,
        now: Instant,
    ) {
        let metrics = &worker.shared.metrics;
        let domain = self.domain.as_ref();
        let pattern = domain.and_then(|domain| origins.pattern(domain));
        let origin = self.page.shown(domain.and_then(|domain| origins.get(domain)));
        metrics.census.count(transport, pattern.as_deref().unwrap_or("other"), &origin, self.agent);
        if let (Transport::Bosh, Some(address)) = (transport, self.address)
            && let Some(outcome) = worker.shared.sessions.fallbacks().came(address, now)
        {
            metrics.upgrades.fell_back(outcome);
        }
    }

    /// Its WebSocket has come to nothing, though it was accepted.
    pub(crate) fn failed(&self, outcome: Upgrade, worker: &Worker, now: Instant) {
        if let Some(address) = self.address {
            worker.shared.sessions.fallbacks().failed(address, outcome, now);
        }
    }
}

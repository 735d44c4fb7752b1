//! The request that makes a session (XEP-0124 §7.1, XEP-0206 §3): what it may ask, and what it gets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::c2s::OpenRequest;
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::seam::FeatureRules;
use super::super::stream::{self, Phase, ServerSide};
use super::body::{Ack, Body, Creation};
use super::core::{Address, Assigned, ClientSide, Core, Negotiated, Previous};
use super::keys::Chain;
use super::queue::Queue;
use super::response;
use super::sid::Sid;
use super::window::{Open, Role, Window};
use super::{Reply, RequestId, Settings};

/// The version that is spoken (BOSH-19).
const VERSION: (u32, u32) = (1, 11);

impl Core {
    pub(super) fn create(
        settings: Arc<Settings>,
        sid: Sid,
        id: RequestId,
        mut body: Body,
        now: Instant,
    ) -> Result<Self, (Fault, Reply)> {
        let creation = body.creation.take().unwrap_or_default();
        let refuse = |fault| {
            let reply = response::refusal(fault, creation.ver.is_none(), creation.content);
            (fault, reply)
        };
        let domain = judge(&settings, &body, &creation).map_err(refuse)?;
        let terms = negotiate(&settings, &body, &creation);
        // BOSH-29: even a session that polls waits here, since it depends on the features.
        let patience = if terms.wait.is_zero() {
            settings.first_response_timeout
        } else {
            terms.wait.min(settings.first_response_timeout)
        };
        let keys = body.keys.as_ref().and_then(|keys| keys.newkey.as_deref()).map(Chain::new);
        let Creation { from, lang, .. } = *creation;
        let address = Address { from: from.clone(), lang: lang.clone() };
        let open = Open { id, due: now + patience, role: Role::Creation };
        Ok(Self {
            sid,
            client: ClientSide::Open,
            server: ServerSide::Connecting,
            ended: None,
            limit: None,
            request: Some(Box::new(OpenRequest { domain: domain.clone(), from, lang })),
            domain,
            address: Some(Box::new(address)),
            words: None,
            creation: Some(id),
            early: Vec::new(),
            features: FeatureRules { ..settings.features },
            phase: Phase::default(),
            reader_due: false,
            window: Window::new(body.rid, terms.hold.saturating_add(1), open, body.keys),
            keys,
            queue: Queue::default(),
            untaken: 0,
            assigned: Assigned::default(),
            reported: 0,
            previous: Previous { rid: body.rid, arrived: now, is_empty: false },
            created: now,
            last_upstream: now,
            idle_since: None,
            pause: None,
            forced_since: None,
            straggler: None,
            terms,
            settings,
        })
    }
}

/// Whether a session is made, and for which domain.
fn judge(settings: &Settings, body: &Body, creation: &Creation) -> Result<Domain, Fault> {
    // BOSH-31: nothing promises the delivery of what comes before the stream stands.
    if !body.payload.parts.is_empty() {
        return Err(Fault::BadBody);
    }
    // XB-03.
    if !stream::is_version_1(creation.version.as_deref()) {
        return Err(Fault::UnsupportedVersion);
    }
    // BOSH-13, BOSH-69: an empty value is none (XEP-0124 §17.2).
    let to = creation.to.as_deref().filter(|to| !to.is_empty());
    let domain = match (settings.served.addressed(to), to) {
        (Some(domain), _) if settings.served.serves(&domain) => domain,
        (None, None) => return Err(Fault::ImproperAddressing),
        _ => return Err(Fault::HostUnknown),
    };
    // BOSH-25: compared, never resolved.
    if let (Some(route), [_, ..]) = (&creation.route, &*settings.route_allow) {
        let target = route.strip_prefix("xmpp:").unwrap_or(route);
        if !settings.route_allow.iter().any(|allowed| **allowed == *target) {
            return Err(Fault::HostUnknown);
        }
    }
    Ok(domain)
}

/// BOSH-16 to BOSH-19, BOSH-27.
fn negotiate(settings: &Settings, body: &Body, creation: &Creation) -> Negotiated {
    let wait = creation.wait.map_or(settings.wait_default, |wait| Duration::from_secs(wait.into()));
    let wait = wait.min(settings.wait_max);
    let hold = creation.hold.unwrap_or(1).min(settings.hold_max);
    let polling = wait.is_zero() || hold == 0;
    Negotiated {
        wait,
        hold,
        inactivity: if polling { settings.polling_inactivity } else { settings.inactivity },
        ver: creation.ver.map(|ver| ver.min(VERSION)),
        content: creation.content,
        polling,
        acks: body.ack == Some(Ack::Rid(1)),
        auto_restart: settings.auto_restart && creation.ver.is_none() && creation.version.is_none(),
    }
}

//! SIGHUP: the configuration is read again, and either all of it that can be changed is in force for
//! whatever begins from then on, or nothing has changed and the log says why.
//!
//! Sessions and requests that have begun go on with what they began with. Listeners stay as they
//! are, so that no connection is lost; which keys that concerns is in [`fixed`].

use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use super::{Gateway, Load, convert, live, notify, raise_file_limit};
use crate::config::{Admin, Config, Listen, Tls, Upstream};
use crate::http::Live;
use crate::http::tls::Loaded;
use crate::metrics::Metrics;

impl Gateway {
    /// Reads the configuration again and puts it in force, or keeps the old one and says why.
    pub(super) fn reload(&mut self, load: &Load) {
        notify::reloading();
        let succeeded = self.try_reload(load);
        self.metrics.reload(succeeded);
        notify::reloaded(if succeeded {
            "serving"
        } else {
            "serving by the old configuration: the new one was refused, see the log"
        });
    }

    fn try_reload(&mut self, load: &Load) -> bool {
        let requested = match load() {
            Ok(requested) => requested,
            Err(error) => {
                for problem in error.problems() {
                    error!(%problem, "config_reload_failed");
                }
                return false;
            }
        };
        let keys = fixed(&self.config, &requested);
        let config = in_force(&self.config, requested);
        // All that may still fail belongs here, before the first thing is changed.
        let live = match live(&config, &self.health) {
            Ok(live) => live,
            Err(problem) => {
                error!(problem = format_args!("{problem:#}"), "config_reload_failed");
                return false;
            }
        };
        // Those that wait for the end of their listener are kept as they are: their files may be gone.
        let tls = self.tls.as_ref().filter(|_| !keys.contains(&"tls.certificates"));
        let certificates = match tls.map(|_| Loaded::read(&convert::tls(&config))) {
            Some(Err(problem)) => {
                error!(%problem, "config_reload_failed");
                return false;
            }
            Some(Ok(loaded)) => Some(loaded),
            None => None,
        };
        for warning in &config.warnings {
            warn!("{warning}");
        }
        if !keys.is_empty() {
            let keys = keys.join(", ");
            warn!(keys, "config_restart_needed: what changed here waits for the next start");
        }
        let limits = &config.limits;
        if limits.sessions > self.config.limits.sessions {
            raise_file_limit(limits.sessions);
        }
        self.sessions.limit(limits.sessions);
        self.registry.limit(limits.sessions);
        self.sessions.budget().limit(limits.memory);
        self.sessions.addresses().limit(convert::addresses(&config));
        self.recorder.set(convert::recorder(&config));
        self.access.replace(convert::token(&config));
        note(&self.metrics, &live);
        self.current.replace(live);
        if let (Some(tls), Some(certificates)) = (&self.tls, certificates) {
            tls.replace(certificates);
        }
        info!(domains = config.domains.named.len(), "config_reloaded");
        self.config = config;
        true
    }
}

/// Shows in the metrics what is in force from now on.
pub(super) fn note(metrics: &Metrics, live: &Live) {
    let unverified = live.sessions.connector.unverified_routes();
    metrics.unverified_routes.set(i64::try_from(unverified).unwrap_or(i64::MAX));
    live.sessions.connector.show(&metrics.servers);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics.last_reload.set(now.as_secs_f64());
}

/// What was asked for, but for what waits for the next start: that is as it was, also when it is
/// compared with what is asked for next.
fn in_force(old: &Config, new: Config) -> Config {
    let Listen { trusted_proxies, proxy_protocol, proxy_protocol_timeout, .. } = new.listen;
    let listen =
        Listen { trusted_proxies, proxy_protocol, proxy_protocol_timeout, ..old.listen.clone() };
    let mut tls = Tls { min_version: old.tls.min_version, ..new.tls };
    if is_left_without_certificates(old, &tls) {
        tls = old.tls.clone();
    }
    // Half of it, towards clients, cannot be changed, and all of a key is in force or nothing.
    let upstream = Upstream { close_grace: old.upstream.close_grace, ..new.upstream };
    let admin = Admin { address: old.admin.address, ..new.admin };
    let (lab, log) = (old.lab.clone(), old.log.clone());
    Config { listen, tls, upstream, admin, lab, log, ..new }
}

/// A listener that is there has to show something until it can go.
fn is_left_without_certificates(old: &Config, new: &Tls) -> bool {
    let is_shown = !old.listen.tls_addresses.is_empty() && !old.tls.certificates.is_empty();
    is_shown && new.certificates.is_empty()
}

/// The keys of which the new values wait for the next start.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let (was, is) = (&old.listen, &new.listen);
    [
        ("listen.addresses", was.addresses != is.addresses),
        ("listen.tls_addresses", was.tls_addresses != is.tls_addresses),
        ("listen.unix_mode", was.unix_mode != is.unix_mode),
        ("listen.handshake_timeout", was.handshake_timeout != is.handshake_timeout),
        ("listen.http2_streams", was.http2_streams != is.http2_streams),
        ("tls.certificates", is_left_without_certificates(old, &new.tls)),
        ("tls.min_version", old.tls.min_version != new.tls.min_version),
        ("listen.workers", was.workers != is.workers),
        ("listen.backlog", was.backlog != is.backlog),
        ("listen.max_connections", was.max_connections != is.max_connections),
        ("listen.keep_alive", was.keep_alive != is.keep_alive),
        ("listen.head_timeout", was.head_timeout != is.head_timeout),
        ("upstream.close_grace", old.upstream.close_grace != new.upstream.close_grace),
        ("admin.address", old.admin.address != new.admin.address),
        ("lab.enabled", old.lab.enabled != new.lab.enabled),
        ("log.format", old.log.format != new.log.format),
        ("log.filter", old.log.filter != new.log.filter),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

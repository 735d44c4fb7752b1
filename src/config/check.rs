//! Raw → checked: everything that a type alone cannot say.
//!
//! All faults are collected, each with the place that set the offending key. What is legal but
//! dangerous, or pointless, becomes a warning.

mod addresses;
mod admin;
mod allowed_origins;
mod bosh;
mod discovery;
mod drain;
mod endpoint;
mod files;
mod limits;
mod listeners;
mod numbers;
mod servers;
mod tls;
mod upstream;
mod ws;

use std::fmt::Display;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::Problem;
use super::layers::Origins;
use super::model::{ChannelBinding, Config, Lab, Log, LogFormat, Sasl};
use super::raw::{self, Raw};
use crate::proto::domain::{ByDomain, Domain};

/// Checks the merged configuration. `problems` are those found while reading; with any, there is no
/// `Config`.
pub(super) fn check(
    raw: Raw,
    origins: &Origins,
    problems: Vec<Problem>,
) -> Result<Config, Vec<Problem>> {
    let mut checker = Checker { origins, problems, warnings: Vec::new() };
    let mut config = checker.config(&raw);
    // With other faults about, the domain may be there and only be wrong.
    let serves = config.domains.values().next().is_some();
    if !serves && checker.problems.is_empty() {
        checker.problem(
            &["domains"],
            "no domain is served; add a table [domains.\"example.org\"] with your XMPP domain, \
             or give --domain example.org",
        );
    }
    config.warnings = checker.warnings;
    if checker.problems.is_empty() { Ok(config) } else { Err(checker.problems) }
}

/// The defaults, checked, serving nothing.
pub(super) fn defaults() -> Config {
    let origins = Origins::default();
    Checker { origins: &origins, problems: Vec::new(), warnings: Vec::new() }
        .config(&Raw::default())
}

struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn config(&mut self, raw: &Raw) -> Config {
        let listen = self.listen(&raw.listen);
        let tls = self.tls_towards_clients(&raw.tls, &raw.listen);
        let admin = self.admin(&raw.admin, &listen);
        let ws = self.ws(&raw.ws);
        let bosh = self.bosh(&raw.bosh);
        let limits = self.limits(&raw.limits);
        let (upstream, security) = self.upstream(&raw.upstream);
        let discovery = self.discovery(&raw.discovery);
        let mut domains = ByDomain::default();
        for (name, domain) in &raw.domains {
            let mut route = self.route(name, domain, &security);
            route.public_url = match domain.public_url.as_deref() {
                None => discovery.public_url.clone(),
                Some("") => None,
                Some(text) => self.public_url(&["domains", name, "public_url"], text),
            };
            if name.starts_with('*') && domain.servers.is_empty() {
                let what = if name == "*" { "host on the net" } else { "host below it" };
                self.problem(
                    &["domains", name, "servers"],
                    format!(
                        "expected at least one server: without it a client could name any {what} \
                         as its domain"
                    ),
                );
            }
            if name == "*" {
                domains.any = Some(route);
            } else if let Some(below) = name.strip_prefix("*.") {
                domains.suffixes.extend(Domain::parse(below).ok().map(|below| (below, route)));
            } else if let Ok(domain) = Domain::parse(name) {
                // Names were prepared, and the wrong ones reported, when the layers were read.
                domains.named.insert(domain, route);
            }
        }
        let mut config = Config {
            default_domain: None,
            listen,
            tls,
            admin,
            recorder: self.recorder(&raw.recorder),
            ws,
            bosh,
            limits,
            upstream,
            domains,
            sasl: self.sasl(&raw.sasl),
            discovery,
            lab: Lab { enabled: raw.lab.enabled, account: None },
            drain: self.drain(&raw.drain),
            log: self.log(&raw.log),
            warnings: Vec::new(),
        };
        config.default_domain = self.default_domain(raw, &config);
        self.credentials(&config);
        config
    }

    fn default_domain(&mut self, raw: &Raw, config: &Config) -> Option<Domain> {
        let path = &["default_domain"];
        let text = raw.default_domain.as_deref()?;
        match Domain::parse(text) {
            Ok(domain) if config.route(&domain).is_some() => return Some(domain),
            Ok(_) => self.expected(path, "one of the domains under [domains]", quoted(text)),
            Err(bad) => self.problem(path, format!("expected a domain name: {bad}")),
        }
        None
    }

    fn sasl(&mut self, raw: &raw::Sasl) -> Sasl {
        let path = &["sasl", "channel_binding"];
        let channel_binding = match raw.channel_binding.as_str() {
            "passthrough" => ChannelBinding::Passthrough,
            "strip" => {
                self.warning(
                    path,
                    "\"strip\" makes clients that check the offer (XEP-0474, SCRAM's \"y\" flag) \
                     refuse to log in",
                );
                ChannelBinding::Strip
            }
            other => {
                self.expected(path, "\"passthrough\" or \"strip\"", quoted(other));
                ChannelBinding::Passthrough
            }
        };
        Sasl { channel_binding }
    }

    fn log(&mut self, raw: &raw::Log) -> Log {
        let format = match raw.format.as_str() {
            "human" => LogFormat::Human,
            "json" => LogFormat::Json,
            other => {
                self.expected(&["log", "format"], "\"human\" or \"json\"", quoted(other));
                LogFormat::Human
            }
        };
        if let Err(error) = EnvFilter::builder().parse(&raw.filter) {
            self.expected(
                &["log", "filter"],
                "a filter such as \"info\" or \"warn,bosphorus=debug\"",
                format!("{} ({error})", quoted(&raw.filter)),
            );
        }
        Log { format, filter: raw.filter.clone() }
    }

    fn expected(&mut self, path: &[&str], expected: impl Display, found: impl Display) {
        self.problem(path, format!("expected {expected}, found {found}"));
    }

    fn problem(&mut self, path: &[&str], text: impl Into<String>) {
        self.problems.push(self.origins.problem(path, &without_index(path), text.into()));
    }

    fn warning(&mut self, path: &[&str], text: impl Into<String>) {
        let problem = self.origins.problem(path, &without_index(path), text.into());
        self.warnings.push(problem.to_string());
    }
}

/// `["listen", "addresses", "1"]` is the key `listen.addresses`; the place already tells the
/// element.
fn without_index<'b>(path: &[&'b str]) -> Vec<&'b str> {
    // A domain may be called "10"; there is no list above the third level.
    let is_index = |(at, part): (usize, &str)| at >= 2 && part.bytes().all(|b| b.is_ascii_digit());
    let parts = path.iter().copied().enumerate();
    parts.filter(|&part| !is_index(part)).map(|(_, part)| part).collect()
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// More than one process can hold; keeps slips and arithmetic apart.
const MANY: u64 = 10_000_000;

//! `[bosh]`, checked.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::endpoint::host_port;
use super::{Checker, DAY, quoted};
use crate::config::model::{Bosh, LegacyUnknown, Overactivity};
use crate::config::raw;
use crate::config::units::{Span, show};

const SECOND: Duration = Duration::from_secs(1);

impl Checker<'_> {
    pub(super) fn bosh(&mut self, raw: &raw::Bosh) -> Bosh {
        self.paths(&["bosh", "paths"], &raw.paths, "/http-bind");
        let wait_max = self.seconds(&["bosh", "wait_max"], raw.wait_max, SECOND..=DAY);
        let wait_default = self.seconds(&["bosh", "wait_default"], raw.wait_default, SECOND..=DAY);
        if wait_default > wait_max && self.origins.is_set(&["bosh", "wait_default"]) {
            self.expected(
                &["bosh", "wait_default"],
                format!("at most bosh.wait_max ({})", show(wait_max)),
                show(wait_default),
            );
        }
        let overactivity = match raw.overactivity.as_str() {
            "lenient" => Overactivity::Lenient,
            "strict" => Overactivity::Strict,
            other => {
                let path = &["bosh", "overactivity"];
                self.expected(path, "\"lenient\" or \"strict\"", quoted(other));
                Overactivity::Lenient
            }
        };
        let legacy_unknown = match raw.legacy_unknown.as_str() {
            "body" => LegacyUnknown::Body,
            "http" => LegacyUnknown::Http,
            other => {
                let path = &["bosh", "legacy_unknown"];
                self.expected(path, "\"body\" or \"http\"", quoted(other));
                LegacyUnknown::Body
            }
        };
        Bosh {
            paths: raw.paths.clone(),
            wait_max,
            wait_default: wait_default.min(wait_max),
            hold_max: self.count32(&["bosh", "hold_max"], raw.hold_max, 1..=5),
            inactivity: self.seconds(&["bosh", "inactivity"], raw.inactivity, SECOND..=DAY),
            polling_inactivity: self.seconds(
                &["bosh", "polling_inactivity"],
                raw.polling_inactivity,
                SECOND..=DAY,
            ),
            polling: self.seconds(&["bosh", "polling"], raw.polling, Duration::ZERO..=DAY),
            maxpause: self.seconds(&["bosh", "maxpause"], raw.maxpause, Duration::ZERO..=DAY),
            first_response_timeout: self
                .duration(&["bosh", "first_response_timeout"], raw.first_response_timeout),
            linger: self.within(
                &["bosh", "linger"],
                raw.linger,
                Duration::ZERO..=Duration::from_millis(50),
            ),
            overactivity,
            zombie: self.within(&["bosh", "zombie"], raw.zombie, Duration::ZERO..=DAY),
            gzip: raw.gzip,
            auto_restart: raw.auto_restart,
            legacy_unknown,
            allowed_origins: self.origins_list(&["bosh", "allowed_origins"], &raw.allowed_origins),
            allowed_headers: self.headers(&raw.allowed_headers),
            allow_credentials: raw.allow_credentials,
            body_timeout: self.duration(&["bosh", "body_timeout"], raw.body_timeout),
            route_allow: self.routes(&raw.route_allow),
        }
    }

    /// What is told to clients, in the protocol's only unit.
    fn seconds(&mut self, path: &[&str], span: Span, range: RangeInclusive<Duration>) -> Duration {
        let value = self.within(path, span, range);
        if value.subsec_nanos() != 0 {
            self.expected(path, "whole seconds, as clients are told them", show(value));
        }
        value
    }

    fn headers(&mut self, list: &[String]) -> Vec<String> {
        for (index, text) in list.iter().enumerate() {
            // RFC 9110 §5.6.2: token.
            let is_token = !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
            if !is_token {
                self.expected(
                    &["bosh", "allowed_headers", &index.to_string()],
                    "the name of a header such as \"X-Requested-With\"",
                    quoted(text),
                );
            }
        }
        list.iter().map(|text| text.to_ascii_lowercase()).collect()
    }

    fn routes(&mut self, list: &[String]) -> Vec<String> {
        let mut routes = Vec::new();
        for (index, text) in list.iter().enumerate() {
            // Port 0 is refused, so it stands for none.
            match host_port(text, 0) {
                Ok((host, port)) if host.contains(':') => routes.push(format!("[{host}]:{port}")),
                Ok((host, port)) => routes.push(format!("{host}:{port}")),
                Err(why) => {
                    let found = quoted(text);
                    self.problem(
                        &["bosh", "route_allow", &index.to_string()],
                        format!("expected \"host:port\", found {found}: {why}"),
                    );
                }
            }
        }
        routes
    }
}

//! rows
use crate::common::Result;
use crate::common::server::Kind;
use crate::{Place, scenarios};

pub(crate) const DIRECT_DEPARTURES: &[(&str, Kind, &str)] = &[
    ("unknown host", Kind::Prosody, "says improper-addressing"),
    ("unknown host", Kind::Ejabberd, "says internal-server-error"),
    ("stream management: resume", Kind::Prosody, "answers no <resume/> over BOSH"),
    ("client socket cut", Kind::Prosody, "answers no <resume/> over BOSH"),
];

scenarios! {}

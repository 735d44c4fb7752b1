//! Why no stream to the server came about: for the operator's log, for metrics, and no more.
//!
//! Clients see one condition for all of it (`remote-connection-failed`); the session picks that.

use std::fmt;
use std::net::IpAddr;

use super::tls::CertificateFault;

/// One candidate after the other, and why each was of no use. Display names them all.
#[derive(Debug)]
pub struct ConnectFault {
    attempts: Vec<Attempt>,
}

/// Who can do something about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client asked for what is not served here.
    Client,
    /// The XMPP server, its DNS records, its certificate, or the network before it.
    Server,
    /// The configuration of this gateway.
    Gateway,
}

impl ConnectFault {
    /// A fault from what was tried, in order. `attempts` must not be empty.
    pub(crate) fn new(attempts: Vec<Attempt>) -> Self {
        debug_assert!(!attempts.is_empty(), "a failure has a reason");
        Self { attempts }
    }

    /// The reason of the last candidate, which is the one that ended the search.
    pub fn reason(&self) -> Option<&Reason> {
        self.attempts.last().map(|attempt| &attempt.reason)
    }

    /// Every candidate with its reason, in the order they were tried.
    pub fn attempts(&self) -> impl Iterator<Item = (&str, &Reason)> {
        self.attempts.iter().map(|attempt| (&*attempt.candidate, &attempt.reason))
    }

    /// Metric label of [`reason`](Self::reason).
    pub fn label(&self) -> &'static str {
        self.reason().map_or("unknown", Reason::label)
    }

    /// Whom [`reason`](Self::reason) points at.
    pub fn blame(&self) -> Blame {
        self.reason().map_or(Blame::Gateway, Reason::blame)
    }
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, attempt) in self.attempts.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", attempt.candidate, attempt.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectFault {}

/// One candidate that was of no use.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) candidate: Box<str>,
    pub(crate) reason: Reason,
}

/// Why one candidate was of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The domain is not configured (SEC-22).
    #[error("this domain is not served here")]
    NotServed,
    /// A lookup failed, or gave nothing to connect to.
    #[error("{0}")]
    Dns(String),
    /// SEC-22: an address which DNS, or a see-other-host, may not lead to.
    #[error("it leads to {0}, which is not a public address (upstream.allow_private is off)")]
    PrivateAddress(IpAddr),
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// Any other failure of the socket.
    #[error("{0}")]
    Io(std::io::Error),
    /// No TCP connection in time.
    #[error("no connection within connect_timeout")]
    ConnectTimeout,
    /// It took the connection and said nothing while others could be tried.
    #[error("no answer within its share of connect_timeout")]
    Silent,
    /// The whole of it took too long.
    #[error("no stream features within negotiation_timeout ({0})")]
    NegotiationTimeout(&'static str),
    /// The server closed the connection or the stream.
    #[error("the server closed the connection while {0}")]
    Closed(&'static str),
    /// UP-14: whose certificate, and what is wrong with it.
    #[error("{0}")]
    Certificate(Box<CertificateFault>),
    /// Any other failure of the TLS handshake.
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
    /// There is nothing to check a certificate against, or the domain cannot be checked.
    #[error("TLS is not possible: {0}")]
    TlsUnusable(&'static str),
    /// UP-13, UP-22: TLS was required and there was none to be had.
    #[error("TLS is required, but {0}")]
    TlsRequired(&'static str),
    /// The server offered TLS and then answered `<failure/>`.
    #[error("the server offered TLS and then refused it with <failure/>")]
    TlsRefused,
    /// UP-12: bytes in clear text where only TLS may follow.
    #[error("{0} bytes in clear text behind <proceed/> (an injection, or a broken server)")]
    Injected(usize),
    /// The server does not speak XMPP as it should.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// A stream error before TLS was settled; its condition.
    #[error("the server answered with the stream error {0}")]
    StreamError(Box<str>),
    /// UP-09: sent on for the third time.
    #[error("see-other-host for the third time, to {0}")]
    SeeOtherHostLoop(Box<str>),
    /// UP-09: a see-other-host which names no host.
    #[error("see-other-host without a usable address")]
    BadSeeOtherHost,
}

impl Reason {
    /// Metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotServed => "host_not_served",
            Self::Dns(_) => "dns",
            Self::PrivateAddress(_) => "address_forbidden",
            Self::Refused => "refused",
            Self::Io(_) => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::Silent => "silent",
            Self::NegotiationTimeout(_) => "negotiation_timeout",
            Self::Closed(_) => "closed",
            Self::Certificate(_) => "tls_certificate",
            Self::Handshake(_) => "tls_handshake",
            Self::TlsUnusable(_) => "tls_unusable",
            Self::TlsRequired(_) => "tls_required",
            Self::TlsRefused => "tls_refused",
            Self::Injected(_) => "injected",
            Self::Protocol(_) => "protocol",
            Self::StreamError(_) => "stream_error",
            Self::SeeOtherHostLoop(_) => "see_other_host_loop",
            Self::BadSeeOtherHost => "see_other_host_bad",
        }
    }

    /// Whom it points at.
    pub fn blame(&self) -> Blame {
        match self {
            Self::NotServed => Blame::Client,
            Self::TlsUnusable(_) => Blame::Gateway,
            Self::Dns(_)
            | Self::PrivateAddress(_)
            | Self::Refused
            | Self::Io(_)
            | Self::ConnectTimeout
            | Self::Silent
            | Self::NegotiationTimeout(_)
            | Self::Closed(_)
            | Self::Certificate(_)
            | Self::Handshake(_)
            | Self::TlsRequired(_)
            | Self::TlsRefused
            | Self::Injected(_)
            | Self::Protocol(_)
            | Self::StreamError(_)
            | Self::SeeOtherHostLoop(_)
            | Self::BadSeeOtherHost => Blame::Server,
        }
    }
}

impl From<std::io::Error> for Reason {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Self::Refused,
            _ => Self::Io(error),
        }
    }
}

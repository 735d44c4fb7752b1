//! Candidates in turn: connect, negotiate, and remember why each one failed.
//!
//! Two clocks run: `connect_timeout` over lookups and connects, so that a candidate which drops
//! packets cannot use up the time of those behind it, and `negotiation_timeout` over everything.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::fault::{Attempt, ConnectFault, Reason};
use super::resolve::{Host, Place, Reach, Target, configured};
use super::{Inner, OpenRequest, TlsUse, Way};
use crate::io::Io;
use crate::proto::c2s::{self, Negotiation, Refusal, Step, TlsMode};
use crate::proto::domain::Domain;
use crate::proto::item::StreamHeader;
use crate::proto::xml::{ItemReader, Policy, Scratch};

/// Idle time after which TCP asks whether the server's host is still there.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// And how long it waits between unanswered questions, of which the kernel allows a handful.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// A stream whose TLS is settled and whose final header and first element have arrived.
#[derive(Debug)]
pub struct Established {
    /// The connection; nothing of ours is waiting in it.
    pub io: Io,
    /// The server's last header.
    pub header: StreamHeader,
    /// What was read behind the header: it begins with one whole element (features, or a stream
    /// error), which stands in the header's scope.
    pub unread: Vec<u8>,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// UP-16: we may have shown a certificate, so `EXTERNAL` would be a login as ourselves.
    pub identified: bool,
}

impl Inner {
    pub(super) async fn open(&self, request: &OpenRequest) -> Result<Established, ConnectFault> {
        let mut journal = Journal::new(&request.domain);
        let Some(way) = self.way(&request.domain) else {
            journal.failed(Reason::NotServed);
            return Err(journal.fault());
        };
        let search = Search { inner: self, way, request };
        match timeout(self.negotiation_timeout, search.run(&mut journal)).await {
            Ok(Some(established)) => return Ok(established),
            Ok(None) => {}
            Err(_) => journal.failed(Reason::NegotiationTimeout(journal.stage)),
        }
        Err(journal.fault())
    }
}

/// What was tried, kept outside the future that a timeout drops.
struct Journal {
    attempts: Vec<Attempt>,
    /// What is being tried, for people.
    candidate: Box<str>,
    /// What it is waiting for.
    stage: &'static str,
}

impl Journal {
    fn new(domain: &Domain) -> Self {
        Self { attempts: Vec::new(), candidate: domain.as_str().into(), stage: "we asked DNS" }
    }

    fn failed(&mut self, reason: Reason) {
        tracing::debug!(candidate = &*self.candidate, %reason, "server_candidate_failed");
        self.attempts.push(Attempt { candidate: self.candidate.clone(), reason });
    }

    fn fault(self) -> ConnectFault {
        ConnectFault::new(self.attempts)
    }
}

/// One `open`.
struct Search<'a> {
    inner: &'a Inner,
    way: &'a Way,
    request: &'a OpenRequest,
}

/// An address of a target.
#[derive(Clone, Copy)]
enum Address<'a> {
    Tcp(SocketAddr),
    Unix(&'a std::path::Path),
}

impl Address<'_> {
    fn reach(self) -> Reach {
        match self {
            Self::Tcp(address) => Reach::of(address.ip()),
            Self::Unix(_) => Reach::Loopback,
        }
    }
}

/// How one connection ended.
enum Outcome {
    Ready(Established),
    SeeOtherHost(Box<str>),
    /// It failed; the next candidate may be tried if this one never said a word (UP-08).
    Failed {
        reason: Reason,
        answered: bool,
    },
}

impl Search<'_> {
    /// `None` once the journal says why.
    async fn run(&self, journal: &mut Journal) -> Option<Established> {
        let mut started = now();
        let mut redirects = 0;
        let mut targets = self.targets(journal).await?;
        'targets: while let Some(target) = targets.pop_front() {
            let addresses = match self.addresses(&target, started, journal).await {
                Ok(addresses) => addresses,
                Err(reason) => {
                    journal.failed(reason);
                    continue;
                }
            };
            for (n, &address) in addresses.iter().enumerate() {
                describe(&target, address, journal);
                let share = addresses.len() - n + targets.len();
                let Some(left) = self.connect_time_left(started) else {
                    journal.failed(Reason::ConnectTimeout);
                    return None;
                };
                journal.stage = "we connected";
                let within = left / u32::try_from(share).unwrap_or(1);
                // UP-08: a process that is stopped still accepts. Its word is waited for as long
                // as its connection, if there is another to try.
                let silence = (share > 1).then_some(within);
                let io = match connect(address, within).await {
                    Ok(io) => io,
                    Err(reason) => {
                        journal.failed(reason);
                        continue;
                    }
                };
                match self.negotiate(io, target.direct_tls, address, silence, journal).await {
                    Outcome::Ready(established) => return Some(established),
                    Outcome::Failed { reason, answered } => {
                        journal.failed(reason);
                        if answered {
                            return None;
                        }
                    }
                    Outcome::SeeOtherHost(to) => {
                        redirects += 1;
                        match self.redirect(&to, redirects, target.direct_tls, address.reach()) {
                            Ok(next) => {
                                tracing::debug!(candidate = &*journal.candidate, "see_other_host");
                                targets = VecDeque::from([next]);
                                started = now();
                                continue 'targets;
                            }
                            Err(reason) => {
                                journal.failed(reason);
                                return None;
                            }
                        }
                    }
                }
            }
        }
        None
    }

    async fn targets(&self, journal: &mut Journal) -> Option<VecDeque<Target>> {
        if !self.way.servers.is_empty() {
            return Some(configured(&self.way.servers).into());
        }
        let resolved = match &self.inner.resolver {
            None => Err(no_resolver()),
            Some(resolver) => {
                let lookup = resolver.targets(&self.request.domain, self.way.tls_use);
                match timeout(self.inner.connect_timeout, lookup).await {
                    Ok(resolved) => resolved,
                    Err(_) => Err(Reason::Dns("no answer within connect_timeout".into())),
                }
            }
        };
        match resolved {
            Ok(targets) => Some(targets.into()),
            Err(reason) => {
                journal.failed(reason);
                None
            }
        }
    }

    /// The addresses of a target that may be used (SEC-22). Never empty.
    async fn addresses<'t>(
        &self,
        target: &'t Target,
        started: Instant,
        journal: &mut Journal,
    ) -> Result<Vec<Address<'t>>, Reason> {
        let (host, port) = match &target.place {
            Place::Unix(path) => return Ok(vec![Address::Unix(path)]),
            Place::Host { host, port } => (host, *port),
        };
        let ips = match host {
            Host::Ip(ip) => {
                journal.candidate = SocketAddr::new(*ip, port).to_string().into();
                vec![*ip]
            }
            Host::Name(name) => {
                journal.candidate = format!("{}:{port}", shown(name)).into();
                journal.stage = "we asked DNS";
                let resolver = self.inner.resolver.as_ref().ok_or_else(no_resolver)?;
                let left = self.connect_time_left(started).ok_or(Reason::ConnectTimeout)?;
                match timeout(left, resolver.addresses(name)).await {
                    Ok(found) => found?,
                    Err(_) => return Err(Reason::Dns("no answer within connect_timeout".into())),
                }
            }
        };
        let (allowed, forbidden): (Vec<_>, Vec<_>) =
            ips.into_iter().partition(|ip| Reach::of(*ip) <= target.innermost);
        match (&*allowed, forbidden.first()) {
            ([], Some(ip)) => Err(Reason::PrivateAddress(*ip)),
            ([], None) => Err(Reason::Dns("it has no address in DNS".into())),
            _ => Ok(allowed.iter().map(|ip| Address::Tcp((*ip, port).into())).collect()),
        }
    }

    /// UP-09: twice at most, and never farther inside than the server that sends us.
    fn redirect(
        &self,
        to: &str,
        count: u32,
        direct_tls: bool,
        from: Reach,
    ) -> Result<Target, Reason> {
        if count > MOST_REDIRECTS {
            let shown: String = to.chars().take(100).flat_map(char::escape_debug).collect();
            return Err(Reason::SeeOtherHostLoop(shown.into()));
        }
        let (host, port) = c2s::host_and_port(to).ok_or(Reason::BadSeeOtherHost)?;
        let innermost = self.inner.innermost.max(from.min(Reach::Loopback));
        Ok(Target::redirected(&host, port, direct_tls, innermost))
    }

    fn connect_time_left(&self, started: Instant) -> Option<Duration> {
        let left = self.inner.connect_timeout.checked_sub(now().duration_since(started))?;
        (!left.is_zero()).then_some(left)
    }

    async fn negotiate(
        &self,
        io: Io,
        direct_tls: bool,
        address: Address<'_>,
        silence: Option<Duration>,
        journal: &mut Journal,
    ) -> Outcome {
        let local = address.reach() == Reach::Loopback;
        let mode = mode(direct_tls, self.way.tls_use, local);
        let mut answered = false;
        match self.converse(io, mode, local, silence, &mut answered, journal).await {
            Ok(outcome) => outcome,
            Err(reason) => Outcome::Failed { reason, answered },
        }
    }

    async fn converse(
        &self,
        mut io: Io,
        mode: TlsMode,
        local: bool,
        silence: Option<Duration>,
        answered: &mut bool,
        journal: &mut Journal,
    ) -> Result<Outcome, Reason> {
        let mut negotiation = Negotiation::new(mode);
        if mode == TlsMode::Direct {
            journal.stage = HANDSHAKE;
            io = spoken(silence, self.handshake(io, true, answered)).await?;
        }
        self.send_header(&mut io, &negotiation, local).await?;
        let mut reader = ItemReader::new(self.inner.limits, Policy::Tolerant);
        let mut scratch = Scratch::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            journal.stage = negotiation.awaits();
            let silence = silence.filter(|_| !*answered);
            let reading = async { Ok(io.read(&mut buffer).await?) };
            let read = match spoken(silence, reading).await? {
                0 => return Err(Reason::Closed(journal.stage)),
                read => read,
            };
            *answered = true;
            let mut input = &buffer[..read];
            loop {
                let mut rest = input;
                let step = match reader.next(&mut scratch, &mut rest) {
                    Ok(Some(item)) => negotiation.handle(item),
                    Ok(None) => break,
                    Err(violation) => return Err(Reason::Protocol(violation.to_string())),
                };
                input = &input[input.len() - rest.len()..];
                match step {
                    Step::Wait => {}
                    Step::SendStartTls => send(&mut io, c2s::START_TLS).await?,
                    Step::Handshake if !input.is_empty() => {
                        return Err(Reason::Injected(input.len()));
                    }
                    Step::Handshake => {
                        journal.stage = HANDSHAKE;
                        io = self.handshake(io, false, answered).await?;
                        reader = ItemReader::new(self.inner.limits, Policy::Tolerant);
                        negotiation.secured();
                        self.send_header(&mut io, &negotiation, local).await?;
                        break;
                    }
                    Step::Ready(header, mut unread) => {
                        unread.extend_from_slice(input);
                        let secure = io.is_secure();
                        let identified = secure && self.way.identified;
                        let established = Established { io, header, unread, secure, identified };
                        return Ok(Outcome::Ready(established));
                    }
                    Step::SeeOtherHost(to) => return Ok(Outcome::SeeOtherHost(to)),
                    Step::Fail(refusal) => return Err(reason(refusal, journal.stage)),
                }
            }
        }
    }

    async fn handshake(&self, io: Io, direct: bool, answered: &mut bool) -> Result<Io, Reason> {
        let Some(tls) = &self.way.tls else {
            return Err(Reason::TlsUnusable("no root certificates were found on this system"));
        };
        let secured = tls.connect(io, &self.request.domain, direct).await;
        // A connection that broke before TLS said anything is a dead candidate, not an answer.
        *answered |= !matches!(secured, Err(Reason::Closed(_) | Reason::Io(_)));
        secured
    }

    async fn send_header(
        &self,
        io: &mut Io,
        negotiation: &Negotiation,
        local: bool,
    ) -> Result<(), Reason> {
        let OpenRequest { domain, from, lang } = self.request;
        let from = from.as_deref().filter(|_| negotiation.tells_from(local));
        let mut header = Vec::with_capacity(256);
        c2s::write_header(&mut header, domain, from, lang.as_deref());
        send(io, &header).await
    }
}

/// What is asked of TLS on a connection that leaves this machine, or (`local`) does not.
fn mode(direct_tls: bool, tls_use: TlsUse, local: bool) -> TlsMode {
    match (direct_tls, tls_use) {
        (true, _) => TlsMode::Direct,
        (false, TlsUse::Never) => TlsMode::Never,
        (false, TlsUse::Required) => TlsMode::Required,
        (false, TlsUse::Auto | TlsUse::IfOffered) if local => TlsMode::IfOffered,
        // UP-22: off this machine, clear text is for those alone who said `never`.
        (false, TlsUse::Auto | TlsUse::IfOffered) => TlsMode::Required,
    }
}

/// A first word, within the time for it, if there is any limit.
async fn spoken<T>(
    within: Option<Duration>,
    work: impl Future<Output = Result<T, Reason>>,
) -> Result<T, Reason> {
    match within {
        Some(within) => timeout(within, work).await.unwrap_or(Err(Reason::Silent)),
        None => work.await,
    }
}

async fn connect(address: Address<'_>, within: Duration) -> Result<Io, Reason> {
    let connected = async {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(Io::Unix),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                // A server's host that vanishes says nothing, and an idle session would last for
                // ever: the kernel asks it, without a byte in the stream.
                let keepalive =
                    TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok(Io::Tcp(stream))
            }
        }
    };
    match timeout(within, connected).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(Reason::ConnectTimeout),
    }
}

async fn send(io: &mut Io, bytes: &[u8]) -> Result<(), Reason> {
    io.write_all(bytes).await?;
    io.flush().await?;
    Ok(())
}

fn reason(refusal: Refusal, stage: &'static str) -> Reason {
    match refusal {
        Refusal::NotOffered => Reason::TlsRequired("the server does not offer STARTTLS"),
        Refusal::Refused => Reason::TlsRefused,
        Refusal::Closed => Reason::Closed(stage),
        Refusal::Protocol(rule) => Reason::Protocol(rule.to_owned()),
        Refusal::StreamError(condition) => Reason::StreamError(condition),
    }
}

/// Names the candidate for the journal: what was asked for, and the address it led to.
fn describe(target: &Target, address: Address<'_>, journal: &mut Journal) {
    journal.candidate = match (address, &target.place) {
        (Address::Unix(path), _) => format!("unix:{}", path.display()),
        (Address::Tcp(address), Place::Host { host: Host::Name(name), port }) => {
            format!("{}:{port} ({})", shown(name), address.ip())
        }
        (Address::Tcp(address), _) => address.to_string(),
    }
    .into();
}

fn shown(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn no_resolver() -> Reason {
    Reason::Dns("this system names no DNS servers".into())
}

#[expect(clippy::disallowed_methods, reason = "this is the shell: connecting takes real time")]
fn now() -> Instant {
    Instant::now()
}

/// UP-09.
const MOST_REDIRECTS: u32 = 2;
/// Features fit into one read; a stream that is still being opened needs no more.
const READ_BYTES: usize = 4096;
const HANDSHAKE: &str = "we negotiated TLS";

#[cfg(test)]
mod tests {
    use super::*;

    /// UP-13, UP-22: off this machine TLS is a must unless `never` was said for the target.
    #[test]
    fn only_never_lets_clear_text_out() {
        for tls_use in [TlsUse::Auto, TlsUse::IfOffered, TlsUse::Required] {
            assert_eq!(mode(false, tls_use, false), TlsMode::Required, "{tls_use:?}");
        }
        assert_eq!(mode(false, TlsUse::Never, false), TlsMode::Never);
        assert_eq!(mode(false, TlsUse::Auto, true), TlsMode::IfOffered);
        assert_eq!(mode(false, TlsUse::IfOffered, true), TlsMode::IfOffered);
        assert_eq!(mode(false, TlsUse::Required, true), TlsMode::Required);
        assert_eq!(mode(true, TlsUse::Never, false), TlsMode::Direct);
    }
}

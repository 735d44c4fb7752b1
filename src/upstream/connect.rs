//! Candidates in turn: connect, negotiate, and remember why each one failed.
//!
//! Who failed lately goes last (`health`). Two clocks run: `connect_timeout` over lookups and connects, so that a candidate which drops
//! packets cannot use up the time of those behind it, and `negotiation_timeout` over everything.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::fault::{Attempt, Blame, ConnectFault, Reason};
use super::health::{Standing, Ticket};
use super::resolve::{Host, Place, Reach, Target, configured, throw};
use super::{Client, Inner, OpenRequest, TlsUse, Way};
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
    pub(super) async fn open(
        &self,
        request: &OpenRequest,
        client: &Client,
    ) -> Result<Established, ConnectFault> {
        let mut journal = Journal::new(&request.domain);
        let Some(way) = self.ways.get(&request.domain) else {
            journal.failed(Reason::NotServed);
            return Err(journal.fault());
        };
        let search = Search { inner: self, way, request, client };
        match timeout(self.negotiation_timeout, search.run(&mut journal)).await {
            Ok(Some(established)) => return Ok(established),
            Ok(None) => {}
            Err(_) => {
                search.judge(&mut journal);
                search.judge_name(&mut journal);
                journal.failed(Reason::NegotiationTimeout(journal.stage));
            }
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
    /// It has said something.
    answered: bool,
    /// For what that means to sessions to come. `None` if the candidate is not remembered.
    ticket: Option<Ticket>,
    /// The name that the candidate is an address of, if that is remembered.
    name: Option<Place>,
}

impl Journal {
    fn new(domain: &Domain) -> Self {
        Self {
            attempts: Vec::new(),
            candidate: domain.as_str().into(),
            stage: "we asked DNS",
            answered: false,
            ticket: None,
            name: None,
        }
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
    client: &'a Client,
}

/// A target that is still to be tried.
struct Candidate {
    target: Target,
    /// The name it is an address of; a place in [`Names`].
    name: Option<usize>,
    /// It was passed over already: the last resort.
    deferred: bool,
    /// No server that sent us on chose it.
    remembered: bool,
}

impl Candidate {
    fn new(target: Target, remembered: bool) -> Self {
        Self { target, name: None, deferred: false, remembered }
    }
}

/// The names that have become addresses, and how many of those are left to try.
type Names = Vec<(Target, usize)>;

/// An address of a target.
#[derive(Clone, Copy)]
enum Address<'a> {
    Tcp(SocketAddr),
    Unix(&'a std::path::Path),
}

impl<'a> Address<'a> {
    /// `None` for a name.
    fn of(place: &'a Place) -> Option<Self> {
        match place {
            Place::Unix(path) => Some(Self::Unix(path)),
            Place::Host { host: Host::Ip(ip), port } => Some(Self::Tcp((*ip, *port).into())),
            Place::Host { host: Host::Name(_), .. } => None,
        }
    }

    fn tcp(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix(_) => None,
        }
    }

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
    Failed(Reason),
}

impl Search<'_> {
    /// `None` once the journal says why.
    async fn run(&self, journal: &mut Journal) -> Option<Established> {
        let mut started = now();
        let mut redirects = 0;
        let mut names = Names::new();
        let mut queue = self.queue(self.targets(journal).await?);
        while let Some(mut candidate) = queue.pop_front() {
            let Some(address) = Address::of(&candidate.target.place) else {
                // A name: its addresses take its place.
                match self.addresses(&candidate.target, started, journal).await {
                    Ok(ips) => self.expand(candidate, &ips, &mut names, &mut queue),
                    Err(reason) => {
                        journal.failed(reason);
                        if candidate.remembered {
                            let place = &candidate.target.place;
                            self.inner.health.failed(place, false, &self.inner.backoff, now());
                        }
                    }
                }
                continue;
            };
            describe(&candidate, address, &names, journal);
            if address.reach() > candidate.target.innermost
                && let Address::Tcp(address) = address
            {
                journal.failed(Reason::PrivateAddress(address.ip()));
                continue;
            }
            if candidate.remembered {
                let place = &candidate.target.place;
                journal.ticket = self.inner.health.claim(place, now());
                if journal.ticket.is_none() {
                    if !candidate.deferred && queue.iter().any(|other| !other.deferred) {
                        candidate.deferred = true;
                        queue.push_back(candidate);
                        continue;
                    }
                    journal.ticket = Some(self.inner.health.insist(place));
                }
            }
            let share = 1 + queue.len();
            let Some(left) = self.connect_time_left(started) else {
                journal.failed(Reason::ConnectTimeout);
                return None;
            };
            let within = left / u32::try_from(share).unwrap_or(1);
            // UP-08: a process that is stopped still accepts. Its word is waited for as long
            // as its connection, if there is another to try.
            let silence = (share > 1).then_some(within);
            journal.answered = false;
            let name = candidate.name.filter(|_| candidate.remembered);
            journal.name =
                name.and_then(|name| names.get(name)).map(|(target, _)| target.place.clone());
            journal.stage = "we connected";
            let outcome = match connect(address, within).await {
                Ok(io) => self.negotiate(io, &candidate.target, address, silence, journal).await,
                Err(reason) => Outcome::Failed(reason),
            };
            match &outcome {
                // It says nothing about the server.
                Outcome::Failed(reason) if is_ours(reason) => journal.ticket = None,
                _ => {
                    self.judge(journal);
                    self.note(&candidate, journal.answered, &mut names);
                }
            }
            journal.name = None;
            match outcome {
                Outcome::Ready(established) => return Some(established),
                Outcome::Failed(reason) => {
                    journal.failed(reason);
                    if journal.answered {
                        return None;
                    }
                }
                Outcome::SeeOtherHost(to) => {
                    redirects += 1;
                    match self.redirect(&to, redirects, &candidate.target, address.reach()) {
                        Ok(target) => {
                            tracing::debug!(candidate = &*journal.candidate, "see_other_host");
                            queue = VecDeque::from([Candidate::new(target, false)]);
                            started = now();
                        }
                        Err(reason) => {
                            journal.failed(reason);
                            return None;
                        }
                    }
                }
            }
        }
        None
    }

    /// Puts those that failed lately behind the others.
    fn queue(&self, targets: Vec<Target>) -> VecDeque<Candidate> {
        let mut candidates: Vec<_> = targets
            .into_iter()
            .map(|target| {
                let inner = self.inner;
                let standing =
                    inner.health.standing(&target.place, &inner.backoff, now(), &mut throw);
                (standing, Candidate::new(target, true))
            })
            .collect();
        candidates.sort_by_key(|(standing, _)| *standing);
        candidates
            .into_iter()
            .map(|(standing, mut candidate)| {
                candidate.deferred = standing == Standing::Down;
                candidate
            })
            .collect()
    }

    /// Puts the addresses of a name where the name was.
    fn expand(
        &self,
        candidate: Candidate,
        ips: &[IpAddr],
        names: &mut Names,
        queue: &mut VecDeque<Candidate>,
    ) {
        let Candidate { target, deferred, remembered, .. } = candidate;
        let Place::Host { port, .. } = target.place else { return };
        let name = Some(names.len());
        for &ip in ips.iter().rev() {
            let place = Place::Host { host: Host::Ip(ip), port };
            let target = Target { place, ..target.clone() };
            queue.push_front(Candidate { target, name, deferred, remembered });
        }
        names.push((target, ips.len()));
    }

    /// Remembers what was learned of the candidate that the journal has the ticket of.
    fn judge(&self, journal: &mut Journal) {
        let backoff = &self.inner.backoff;
        match journal.ticket.take() {
            Some(ticket) if journal.answered => ticket.spoke(backoff, now()),
            Some(ticket) => ticket.failed(backoff, now()),
            None => {}
        }
    }

    /// The same for its name when all of the time is up: no other address of it will be tried.
    fn judge_name(&self, journal: &mut Journal) {
        let (health, backoff) = (&self.inner.health, &self.inner.backoff);
        match journal.name.take() {
            Some(name) if journal.answered => health.spoke(&name, backoff, now()),
            Some(name) => health.failed(&name, false, backoff, now()),
            None => {}
        }
    }

    /// Remembers what that means to the name that the candidate is an address of: it has failed
    /// when the last of them has.
    fn note(&self, candidate: &Candidate, answered: bool, names: &mut Names) {
        let (health, backoff) = (&self.inner.health, &self.inner.backoff);
        let Some((target, left)) = candidate.name.and_then(|name| names.get_mut(name)) else {
            return;
        };
        *left = left.saturating_sub(1);
        if !candidate.remembered {
        } else if answered {
            health.spoke(&target.place, backoff, now());
        } else if *left == 0 {
            health.failed(&target.place, false, backoff, now());
        }
    }

    async fn targets(&self, journal: &mut Journal) -> Option<Vec<Target>> {
        if !self.way.servers.is_empty() {
            return Some(configured(&self.way.servers));
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
            Ok(targets) => Some(targets),
            Err(reason) => {
                journal.failed(reason);
                None
            }
        }
    }

    /// The addresses of a name that may be used (SEC-22). Never empty.
    async fn addresses(
        &self,
        target: &Target,
        started: Instant,
        journal: &mut Journal,
    ) -> Result<Vec<IpAddr>, Reason> {
        let Place::Host { host: Host::Name(name), port } = &target.place else {
            return Ok(Vec::new());
        };
        journal.candidate = format!("{}:{port}", shown(name)).into();
        journal.stage = "we asked DNS";
        let resolver = self.inner.resolver.as_ref().ok_or_else(no_resolver)?;
        let left = self.connect_time_left(started).ok_or(Reason::ConnectTimeout)?;
        let ips = match timeout(left, resolver.addresses(name)).await {
            Ok(found) => found?,
            Err(_) => return Err(Reason::Dns("no answer within connect_timeout".into())),
        };
        let (allowed, forbidden): (Vec<_>, Vec<_>) =
            ips.into_iter().partition(|ip| Reach::of(*ip) <= target.innermost);
        match (&*allowed, forbidden.first()) {
            ([], Some(ip)) => Err(Reason::PrivateAddress(*ip)),
            ([], None) => Err(Reason::Dns("it has no address in DNS".into())),
            _ => Ok(allowed),
        }
    }

    /// UP-09: twice at most, and never farther inside than the server that sends us.
    fn redirect(
        &self,
        to: &str,
        count: u32,
        sender: &Target,
        from: Reach,
    ) -> Result<Target, Reason> {
        if count > MOST_REDIRECTS {
            let shown: String = to.chars().take(100).flat_map(char::escape_debug).collect();
            return Err(Reason::SeeOtherHostLoop(shown.into()));
        }
        let (host, port) = c2s::host_and_port(to).ok_or(Reason::BadSeeOtherHost)?;
        let innermost = self.inner.innermost.max(from.min(Reach::Loopback));
        Ok(Target::redirected(&host, port, sender, innermost))
    }

    fn connect_time_left(&self, started: Instant) -> Option<Duration> {
        let left = self.inner.connect_timeout.checked_sub(now().duration_since(started))?;
        (!left.is_zero()).then_some(left)
    }

    async fn negotiate(
        &self,
        mut io: Io,
        target: &Target,
        address: Address<'_>,
        silence: Option<Duration>,
        journal: &mut Journal,
    ) -> Outcome {
        let local = address.reach() == Reach::Loopback;
        let mode = mode(target.direct_tls, self.way.tls_use, local);
        let conversation = async {
            let domain = &self.request.domain;
            let header = target.proxy_protocol.header(self.client, domain, address.tcp());
            if !header.is_empty() {
                send(&mut io, &header).await?;
            }
            self.converse(io, mode, local, silence, journal).await
        };
        conversation.await.unwrap_or_else(Outcome::Failed)
    }

    async fn converse(
        &self,
        mut io: Io,
        mode: TlsMode,
        local: bool,
        silence: Option<Duration>,
        journal: &mut Journal,
    ) -> Result<Outcome, Reason> {
        let mut negotiation = Negotiation::new(mode);
        if mode == TlsMode::Direct {
            journal.stage = HANDSHAKE;
            io = spoken(silence, self.handshake(io, true, &mut journal.answered)).await?;
        }
        self.send_header(&mut io, &negotiation, local).await?;
        let mut reader = ItemReader::new(self.inner.limits, Policy::Tolerant);
        let mut scratch = Scratch::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            journal.stage = negotiation.awaits();
            let silence = silence.filter(|_| !journal.answered);
            let reading = async { Ok(io.read(&mut buffer).await?) };
            let read = match spoken(silence, reading).await? {
                0 => return Err(Reason::Closed(journal.stage)),
                read => read,
            };
            journal.answered = true;
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
                        io = self.handshake(io, false, &mut journal.answered).await?;
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

/// Whether it is this machine that has failed, and would have at any server.
fn is_ours(reason: &Reason) -> bool {
    /// No room for another open file, in the system or in the process.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match reason {
        Reason::Io(error) => {
            matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
                || matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::OutOfMemory)
        }
        reason => reason.blame() == Blame::Gateway,
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
fn describe(candidate: &Candidate, address: Address<'_>, names: &Names, journal: &mut Journal) {
    let name = candidate.name.and_then(|name| names.get(name)).map(|(target, _)| &target.place);
    journal.candidate = match (address, name) {
        (Address::Unix(path), _) => format!("unix:{}", path.display()),
        (Address::Tcp(address), Some(Place::Host { host: Host::Name(name), port })) => {
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

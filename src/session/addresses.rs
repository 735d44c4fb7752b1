//! What each client address holds and how often it asks, bounded (SEC-16).
//!
//! One table of the process, in shards, each behind a lock that is held for one look-up and never
//! across an await. Rates are counted by one time for each (the generic cell rate algorithm: a token
//! bucket that holds what its period allows, without a timer that fills it).
//!
//! The table is bounded. An address that holds something has its entry, and what can be held is
//! bounded elsewhere (`limits.sessions`, `listen.max_connections`). Of those that hold nothing only
//! so many are kept: an entry whose rates have recovered says nothing and goes first; when there are
//! too many of the others, they are all forgotten, which forgives an address a minute of its past
//! and nobody else anything. Limits that are off cost no look-up.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::worker::network;
use crate::metrics::Limit;

/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 64;
/// Entries of a shard that are kept before it is looked through for those that say nothing: 64
/// shards of these are some 10 MiB.
const ENTRIES: usize = 1024;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What one address may have and do; `None` is no limit. Each is a key of `[limits]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `limits.sessions_per_address`
    pub sessions: Option<usize>,
    /// `limits.unauthenticated_per_address`
    pub unauthenticated: Option<usize>,
    /// `limits.connections_per_address`
    pub connections: Option<usize>,
    /// `limits.new_sessions_per_minute`
    pub new_sessions: Option<u32>,
    /// `limits.new_connections_per_second`
    pub new_connections: Option<u32>,
    /// `limits.requests_per_second`
    pub requests: Option<u32>,
    /// `limits.auth_failures_per_minute`
    pub auth_failures: Option<u32>,
}

/// The counts of all addresses.
#[derive(Debug)]
pub struct Addresses {
    limits: ArcSwap<Limits>,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug)]
struct Shard {
    entries: HashMap<IpAddr, Entry>,
    /// How many entries there may be before it is swept.
    sweep_at: usize,
}

/// One address.
#[derive(Debug, Default)]
struct Entry {
    sessions: usize,
    unauthenticated: usize,
    connections: usize,
    new_sessions: Bucket,
    new_connections: Bucket,
    requests: Bucket,
    auth_failures: Bucket,
}

impl Entry {
    fn holds_something(&self) -> bool {
        self.sessions + self.unauthenticated + self.connections > 0
    }

    fn says_something(&self, now: Instant) -> bool {
        let rates =
            [&self.new_sessions, &self.new_connections, &self.requests, &self.auth_failures];
        self.holds_something() || rates.iter().any(|bucket| bucket.is_used(now))
    }
}

/// A token bucket that holds what one period allows and is full at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    /// When it will be full again.
    full: Option<Instant>,
}

impl Bucket {
    /// Takes one of `count` per `period`; false, and nothing taken, if there is none.
    fn take(&mut self, count: u32, period: Duration, now: Instant) -> bool {
        let has_one = self.has_one(count, period, now);
        if has_one {
            self.spend(count, period, now);
        }
        has_one
    }

    fn has_one(&self, count: u32, period: Duration, now: Instant) -> bool {
        let Some(full) = self.full else { return true };
        full + period / count.max(1) <= now + period
    }

    /// Takes one that may not be there: never more than two periods go by until it is full again.
    fn spend(&mut self, count: u32, period: Duration, now: Instant) {
        let full = self.full.map_or(now, |full| full.max(now)) + period / count.max(1);
        self.full = Some(full.min(now + 2 * period));
    }

    fn is_used(&self, now: Instant) -> bool {
        self.full.is_some_and(|full| full > now)
    }
}

impl Addresses {
    /// None yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let shard = || Mutex::new(Shard { entries: HashMap::new(), sweep_at: ENTRIES });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Self { limits: ArcSwap::from_pointee(limits), hasher: RandomState::new(), shards }
    }

    /// Other limits from now on. Who has more than they allow keeps it; where there was none before,
    /// what an address already has does not count.
    pub fn limit(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// Counts one request of `address`. Without an address there is no limit.
    ///
    /// # Errors
    /// The limit that it is over.
    pub fn request(&self, address: Option<IpAddr>, now: Instant) -> Result<(), Limit> {
        let (Some(most), Some(address)) = (self.limits.load().requests, address) else {
            return Ok(());
        };
        let ok = self.with(network(address), now, |entry| entry.requests.take(most, SECOND, now));
        if ok { Ok(()) } else { Err(Limit::RequestsPerSecond) }
    }

    /// A place for one more connection of `address`; given back when it is dropped.
    ///
    /// # Errors
    /// The limit that it is over.
    pub fn connection(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<Option<ConnectionPlace>, Limit> {
        let Limits { connections, new_connections, .. } = **self.limits.load();
        if connections.is_none() && new_connections.is_none() {
            return Ok(None);
        }
        let Some(address) = address.map(network) else { return Ok(None) };
        self.with(address, now, |entry| {
            if connections.is_some_and(|most| entry.connections >= most) {
                return Err(Limit::ConnectionsPerAddress);
            }
            if !new_connections.is_none_or(|most| entry.new_connections.take(most, SECOND, now)) {
                return Err(Limit::NewConnectionsPerSecond);
            }
            entry.connections += 1;
            Ok(())
        })?;
        Ok(Some(ConnectionPlace { addresses: Arc::clone(self), address }))
    }

    /// A place for one more session of `address`, which has not authenticated; given back when it
    /// is dropped.
    ///
    /// # Errors
    /// The limit that it is over. What is refused is not counted as a new session: who tries
    /// again all the time gets what its rate allows.
    pub fn session(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<Option<SessionPlace>, Limit> {
        let Limits { sessions, unauthenticated, new_sessions, auth_failures, .. } =
            **self.limits.load();
        let is_off = sessions.is_none() && unauthenticated.is_none();
        if is_off && new_sessions.is_none() && auth_failures.is_none() {
            return Ok(None);
        }
        let Some(address) = address.map(network) else { return Ok(None) };
        self.with(address, now, |entry| {
            if sessions.is_some_and(|most| entry.sessions >= most) {
                return Err(Limit::SessionsPerAddress);
            }
            if unauthenticated.is_some_and(|most| entry.unauthenticated >= most) {
                return Err(Limit::UnauthenticatedPerAddress);
            }
            if auth_failures.is_some_and(|most| !entry.auth_failures.has_one(most, MINUTE, now)) {
                return Err(Limit::AuthFailuresPerMinute);
            }
            if !new_sessions.is_none_or(|most| entry.new_sessions.take(most, MINUTE, now)) {
                return Err(Limit::NewSessionsPerMinute);
            }
            entry.sessions += 1;
            entry.unauthenticated += 1;
            Ok(())
        })?;
        Ok(Some(SessionPlace { addresses: Arc::clone(self), address, is_authenticated: false }))
    }

    /// Forgets whoever holds nothing and whose rates have recovered, so that the memory of a crowd
    /// that has left comes back. To be called now and then.
    pub fn forget(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.entries.retain(|_, entry| entry.says_something(now));
            let left = shard.entries.len();
            shard.sweep_at = ENTRIES.max(2 * left);
            if shard.entries.capacity() > 64 && left * 4 < shard.entries.capacity() || left == 0 {
                shard.entries.shrink_to_fit();
            }
        }
    }

    /// Does something with the entry of an address, which is made if there is none.
    fn with<T>(&self, address: IpAddr, now: Instant, act: impl FnOnce(&mut Entry) -> T) -> T {
        let mut shard = self.shard(address);
        if shard.entries.len() >= shard.sweep_at && !shard.entries.contains_key(&address) {
            shard.sweep(now);
        }
        act(shard.entries.entry(address).or_default())
    }

    /// The same where there has to be one, since something is held.
    fn with_held(&self, address: IpAddr, act: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.shard(address).entries.get_mut(&address) {
            act(entry);
        }
    }

    fn shard(&self, address: IpAddr) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(address);
        let index = usize::try_from(hash % SHARDS as u64).unwrap_or_default();
        // Nothing that can panic is done under the lock, so that what it guards is always whole.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Makes room. What has to stay may be much, so that the next time is only when there is as
    /// much again: looking through costs each newcomer next to nothing.
    fn sweep(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.says_something(now));
        if self.entries.len() >= ENTRIES / 2 {
            self.entries.retain(|_, entry| entry.holds_something());
        }
        self.sweep_at = ENTRIES.max(2 * self.entries.len());
        self.entries.shrink_to(self.sweep_at);
    }
}

/// The right of an address to one of its connections.
#[derive(Debug)]
pub struct ConnectionPlace {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.addresses.with_held(self.address, |entry| {
            entry.connections = entry.connections.saturating_sub(1);
        });
    }
}

/// The right of an address to one of its sessions.
#[derive(Debug)]
pub struct SessionPlace {
    addresses: Arc<Addresses>,
    address: IpAddr,
    is_authenticated: bool,
}

impl SessionPlace {
    /// It counts no more as one that has not authenticated.
    pub(crate) fn authenticated(&mut self) {
        if !std::mem::replace(&mut self.is_authenticated, true) {
            self.addresses.with_held(self.address, |entry| {
                entry.unauthenticated = entry.unauthenticated.saturating_sub(1);
            });
        }
    }

    /// The server has refused so many logins of it.
    pub(crate) fn failed(&self, logins: u32, now: Instant) {
        let Some(most) = self.addresses.limits.load().auth_failures else { return };
        self.addresses.with_held(self.address, |entry| {
            // The machine counts one element at a time, so that these are few.
            for _ in 0..logins.min(most) {
                entry.auth_failures.spend(most, MINUTE, now);
            }
        });
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let unauthenticated = usize::from(!self.is_authenticated);
        self.addresses.with_held(self.address, |entry| {
            entry.sessions = entry.sessions.saturating_sub(1);
            entry.unauthenticated = entry.unauthenticated.saturating_sub(unauthenticated);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::timer::clock;

    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    fn addresses(limits: Limits) -> Arc<Addresses> {
        Arc::new(Addresses::new(limits))
    }

    fn entries(addresses: &Addresses) -> usize {
        addresses.shards.iter().map(|shard| shard.lock().unwrap().entries.len()).sum()
    }

    /// SEC-16: the bucket holds what a period allows, and fills evenly.
    #[test]
    fn a_bucket_lets_its_rate_through() {
        let (mut bucket, now) = (Bucket::default(), clock());
        for _ in 0..30 {
            assert!(bucket.take(30, MINUTE, now));
        }
        assert!(!bucket.take(30, MINUTE, now));
        assert!(!bucket.take(30, MINUTE, now + Duration::from_millis(1999)));
        assert!(bucket.take(30, MINUTE, now + 2 * SECOND));
        assert!(!bucket.take(30, MINUTE, now + 2 * SECOND));
        assert!(bucket.is_used(now + 61 * SECOND));
        assert!(!bucket.is_used(now + 62 * SECOND));
        for _ in 0..30 {
            assert!(bucket.take(30, MINUTE, now + 100 * SECOND));
        }
        assert!(!bucket.take(30, MINUTE, now + 100 * SECOND));
        // What is spent without leave is paid back within bounds.
        for _ in 0..1000 {
            bucket.spend(30, MINUTE, now);
        }
        assert!(bucket.has_one(30, MINUTE, now + 200 * SECOND));
    }

    /// SEC-16: the 31st creation within a minute is one too many, for its address (a /64 in IPv6)
    /// alone.
    #[test]
    fn new_sessions_are_bounded_by_address() {
        let (all, now) =
            (addresses(Limits { new_sessions: Some(30), ..Limits::default() }), clock());
        for (ours, same, other) in [
            ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ] {
            for _ in 0..30 {
                assert!(all.session(address(ours), now).is_ok());
            }
            assert_eq!(all.session(address(ours), now).err(), Some(Limit::NewSessionsPerMinute));
            assert!(all.session(address(same), now).is_err());
            assert!(all.session(address(other), now).is_ok());
            assert!(all.session(address(ours), now + MINUTE).is_ok());
        }
        // Who has no address that counts.
        for _ in 0..100 {
            assert!(all.session(None, now).is_ok_and(|place| place.is_none()));
        }
    }

    /// SEC-16: open sessions, and those of them that have not authenticated.
    #[test]
    fn open_sessions_are_bounded_by_address() {
        let limits = Limits { sessions: Some(3), unauthenticated: Some(2), ..Limits::default() };
        let (all, now, client) = (addresses(limits), clock(), address("192.0.2.1"));
        let session = || all.session(client, now);
        let mut one = session().unwrap().unwrap();
        let two = session().unwrap();
        assert_eq!(session().err(), Some(Limit::UnauthenticatedPerAddress));
        one.authenticated();
        one.authenticated();
        let three = session().unwrap();
        assert_eq!(session().err(), Some(Limit::SessionsPerAddress));
        drop(two);
        let four = session().unwrap();
        drop((one, three));
        // Of two places one is free, since the fourth has not authenticated.
        let five = session().unwrap();
        assert_eq!(session().err(), Some(Limit::UnauthenticatedPerAddress));
        drop((four, five));
        assert!(session().is_ok());
    }

    /// SEC-16: requests and connections.
    #[test]
    fn requests_and_connections_are_bounded_by_address() {
        let limits = Limits {
            requests: Some(100),
            connections: Some(2),
            new_connections: Some(3),
            ..Limits::default()
        };
        let (all, now, client) = (addresses(limits), clock(), address("2001:db8::1"));
        for _ in 0..100 {
            assert!(all.request(client, now).is_ok());
        }
        assert_eq!(all.request(client, now), Err(Limit::RequestsPerSecond));
        assert!(all.request(address("2001:db8:0:1::1"), now).is_ok());
        assert!(all.request(client, now + SECOND / 100).is_ok());
        let connect = |now| all.connection(client, now);
        let (one, _two) = (connect(now).unwrap(), connect(now).unwrap());
        assert_eq!(connect(now).err(), Some(Limit::ConnectionsPerAddress));
        drop(one);
        let three = connect(now).unwrap();
        drop(three);
        assert_eq!(connect(now).err(), Some(Limit::NewConnectionsPerSecond));
        assert!(connect(now + SECOND).is_ok());
    }

    /// SEC-16: who guesses at passwords gets no further session for a while.
    #[test]
    fn failed_logins_are_bounded_by_address() {
        let (all, now) =
            (addresses(Limits { auth_failures: Some(5), ..Limits::default() }), clock());
        let session = |now| all.session(address("192.0.2.1"), now);
        let place = session(now).unwrap().unwrap();
        place.failed(4, now);
        assert!(session(now).is_ok());
        place.failed(1, now);
        assert_eq!(session(now).err(), Some(Limit::AuthFailuresPerMinute));
        assert!(all.session(address("192.0.2.2"), now).is_ok());
        assert!(session(now + MINUTE / 5).is_ok());
        place.failed(u32::MAX, now);
        assert!(session(now + 2 * MINUTE).is_ok());
    }

    /// Everything is bounded: addresses without end take the room of those that hold nothing, and
    /// the counts of those that hold something stay right.
    #[test]
    fn the_table_is_bounded() {
        let limits = Limits { sessions: Some(1), requests: Some(1), ..Limits::default() };
        let (all, now) = (addresses(limits), clock());
        let nth = |n: u32| Some(IpAddr::from(n.to_be_bytes()));
        let held: Vec<_> = (0..1000).map(|n| all.session(nth(n), now).unwrap()).collect();
        for n in 0..300_000 {
            assert!(all.request(nth(1_000_000 + n), now).is_ok());
        }
        assert!(entries(&all) <= SHARDS * ENTRIES, "{}", entries(&all));
        for n in 0..1000 {
            assert!(all.session(nth(n), now).is_err(), "it is still there");
        }
        drop(held);
        assert!(all.session(nth(7), now).is_ok());
        // Those who have recovered make room for the next ones.
        for n in 0..100_000 {
            assert!(all.request(nth(5_000_000 + n), now + SECOND).is_ok());
        }
        assert!(entries(&all) <= SHARDS * ENTRIES);
        // And nothing is left of those who do not come back.
        let one = all.session(nth(1), now + SECOND).unwrap();
        all.forget(now + MINUTE);
        assert_eq!(entries(&all), 1);
        assert!(all.session(nth(1), now + MINUTE).is_err(), "it is still there");
        drop(one);
        all.forget(now + MINUTE);
        let room = |shard: &Mutex<Shard>| shard.lock().unwrap().entries.capacity();
        assert_eq!((entries(&all), all.shards.iter().map(room).sum::<usize>()), (0, 0));
        // Without limits there is no table.
        let off = addresses(Limits::default());
        assert!(off.request(nth(1), now).is_ok());
        assert!(off.connection(nth(1), now).is_ok_and(|place| place.is_none()));
        assert!(off.session(nth(1), now).is_ok_and(|place| place.is_none()));
        assert_eq!(entries(&off), 0);
    }

    /// Everything is bounded: where nearly all hold something, the shard is not looked through for
    /// each newcomer.
    #[test]
    fn what_is_held_may_outgrow_the_table() {
        let limits = Limits { sessions: Some(1), ..Limits::default() };
        let (all, now) = (addresses(limits), clock());
        let nth = |n: u32| Some(IpAddr::from(n.to_be_bytes()));
        let most = 3 * (SHARDS * ENTRIES) as u32;
        let held: Vec<_> = (0..most).map(|n| all.session(nth(n), now).unwrap()).collect();
        assert_eq!(entries(&all), held.len());
        drop(held);
        for n in 0..most {
            drop(all.session(nth(n), now).unwrap());
        }
    }
}

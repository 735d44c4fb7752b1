//! Addresses where a WebSocket has come to nothing within the last half minute: whoever logs in over BOSH
//! from there has most likely tried it first.
//!
//! Of an address a hash is kept, keyed by this process, for half a minute or until somebody has come, and
//! of so many at most. Behind one address there may be many users, so that this is a hint and no
//! count of them; where the address may be a proxy's (`limits.exempt_peers`) there is none at all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::worker::network;
use crate::metrics::Upgrade;

/// Clients that have a second way try it at once, or after some seconds.
const SOON: Duration = Duration::from_secs(30);
/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 16;
/// Between two looks for room in a full shard.
const SWEEP: Duration = Duration::from_secs(1);
/// Addresses in one shard, of 32 bytes or so each.
const ADDRESSES: usize = 1024;

/// An address, as far as it has to be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(NonZeroU64);

/// What came to nothing where.
#[derive(Debug, Default)]
pub struct Fallbacks {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    failed: HashMap<Address, (Instant, Upgrade)>,
    /// When it was full, and those that are forgotten by then were taken out.
    swept: Option<Instant>,
}

impl Shard {
    fn forget(&mut self, now: Instant) {
        self.failed.retain(|_, (failed, _)| *failed + SOON > now);
        self.swept = Some(now);
    }
}

impl Fallbacks {
    /// The address of a client; all of a /64 in IPv6 are one.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Address {
        let hash = self.hasher.hash_one(network(address));
        Address(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// A WebSocket from there has come to nothing at `now`.
    pub fn failed(&self, address: Address, outcome: Upgrade, now: Instant) {
        let mut shard = self.shard(address);
        // Not each time: all of them are looked at.
        let is_due = shard.swept.is_none_or(|swept| swept + SWEEP <= now);
        if shard.failed.len() >= ADDRESSES && is_due {
            shard.forget(now);
        }
        // Above that so many fail that it does not matter how many exactly.
        if shard.failed.len() < ADDRESSES || shard.failed.contains_key(&address) {
            shard.failed.insert(address, (now, outcome));
        }
    }

    /// Gives back the memory of those whose time is over. To be called now and then.
    pub fn forget(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.forget(now);
            if shard.failed.len() * 4 < shard.failed.capacity() {
                shard.failed.shrink_to_fit();
            }
        }
    }

    /// Somebody from there has logged in over BOSH; what had come to nothing just before.
    pub fn came(&self, address: Address, now: Instant) -> Option<Upgrade> {
        let mut shard = self.shard(address);
        let Entry::Occupied(entry) = shard.failed.entry(address) else { return None };
        let (failed, outcome) = entry.remove();
        (failed + SOON > now).then_some(outcome)
    }

    fn shard(&self, address: Address) -> MutexGuard<'_, Shard> {
        let index = (address.0.get() % SHARDS as u64) as usize;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::timer::clock;
    use super::*;
    use crate::proto::handshake::Refusal;

    const NO_UPGRADE: Upgrade = Upgrade::Refused(Refusal::NoUpgrade);
    const ORIGIN: Upgrade = Upgrade::Refused(Refusal::Origin);
    const KEY: Upgrade = Upgrade::Refused(Refusal::Key);

    fn address(fallbacks: &Fallbacks, text: &str) -> Address {
        fallbacks.address(text.parse().unwrap())
    }

    #[test]
    fn who_comes_soon_after_is_told_once() {
        let (fallbacks, now) = (Fallbacks::default(), clock());
        let one = address(&fallbacks, "192.0.2.1");
        assert_eq!(fallbacks.came(one, now), None);
        fallbacks.failed(one, NO_UPGRADE, now);
        fallbacks.failed(one, Upgrade::NeverOpened, now);
        assert_eq!(fallbacks.came(address(&fallbacks, "192.0.2.2"), now), None);
        assert_eq!(
            fallbacks.came(address(&fallbacks, "::ffff:192.0.2.1"), now + SOON / 2),
            Some(Upgrade::NeverOpened)
        );
        assert_eq!(fallbacks.came(one, now), None);
        fallbacks.failed(one, ORIGIN, now);
        assert_eq!(fallbacks.came(one, now + SOON), None);
        fallbacks.failed(address(&fallbacks, "2001:db8::1"), KEY, now);
        assert_eq!(fallbacks.came(address(&fallbacks, "2001:db8::2"), now), Some(KEY));
    }

    #[test]
    fn no_more_are_remembered_than_fit() {
        let (fallbacks, now) = (Fallbacks::default(), clock());
        let all = |fallbacks: &Fallbacks| -> usize {
            fallbacks.shards.iter().map(|shard| shard.lock().unwrap().failed.len()).sum()
        };
        for n in 0..(2 * ADDRESSES * SHARDS) as u32 {
            fallbacks.failed(fallbacks.address(n.to_be_bytes().into()), ORIGIN, now);
        }
        assert!(all(&fallbacks) <= ADDRESSES * SHARDS);
        for n in 0..4096_u32 {
            let address = fallbacks.address((!n).to_be_bytes().into());
            fallbacks.failed(address, ORIGIN, now + SOON);
        }
        assert!(all(&fallbacks) < ADDRESSES * SHARDS);
        // Who is there already fails anew, however full it is.
        fallbacks.forget(now + SOON * 2);
        assert_eq!(all(&fallbacks), 0);
        let shards = fallbacks.shards.iter().map(|shard| shard.lock().unwrap());
        assert!(shards.into_iter().all(|shard| shard.failed.capacity() == 0));
    }
}

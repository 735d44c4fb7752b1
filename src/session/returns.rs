//! Users who come back within a minute after a session of theirs was dropped.
//!
//! Of a user a hash is kept, keyed by this process, until he is back or room is needed, and of so
//! many at most.
//! Touched when a session binds its resource and when it ends, never in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 16;
/// Users in one shard, of 24 bytes or so each.
const USERS: usize = 4096;

/// A user, as far as he has to be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct User(NonZeroU64);

/// Users whose sessions were dropped a moment ago.
#[derive(Debug)]
pub struct Returns {
    hasher: RandomState,
    shards: [Mutex<HashMap<User, Instant>>; SHARDS],
}

impl Default for Returns {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: Default::default() }
    }
}

impl Returns {
    /// The user of a JID, with a resource or without.
    #[must_use]
    pub fn user(&self, jid: &str) -> User {
        let bare = jid.split_once('/').map_or(jid, |(bare, _)| bare);
        let hash = self.hasher.hash_one(bare);
        User(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// A session of his was dropped at `now`.
    pub fn dropped(&self, user: User, now: Instant) {
        let mut shard = self.shard(user).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= USERS {
            shard.retain(|_, dropped| *dropped + SOON > now);
        }
        // Above that so many come back that it does not matter how many exactly.
        if shard.len() < USERS {
            shard.insert(user, now);
        }
    }

    /// He is there again; whether that is soon after.
    pub fn is_back(&self, user: User, now: Instant) -> bool {
        let mut shard = self.shard(user).lock().unwrap_or_else(PoisonError::into_inner);
        match shard.entry(user) {
            Entry::Occupied(dropped) => dropped.remove() + SOON > now,
            Entry::Vacant(_) => false,
        }
    }

    fn shard(&self, User(hash): User) -> &Mutex<HashMap<User, Instant>> {
        &self.shards[(hash.get() % SHARDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::timer::clock;
    use super::*;

    #[test]
    fn who_comes_back_soon_is_counted_once() {
        let (returns, now) = (Returns::default(), clock());
        let user = returns.user("a@example.test/phone");
        assert!(!returns.is_back(user, now));
        returns.dropped(user, now);
        assert!(!returns.is_back(returns.user("b@example.test"), now));
        assert!(returns.is_back(returns.user("a@example.test"), now + SOON / 2));
        assert!(!returns.is_back(user, now + SOON / 2));
        returns.dropped(user, now);
        assert!(!returns.is_back(user, now + SOON));
    }

    #[test]
    fn no_more_are_remembered_than_fit() {
        let (returns, now) = (Returns::default(), clock());
        let all = |returns: &Returns| -> usize {
            returns.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
        };
        for n in 0..2 * USERS * SHARDS {
            returns.dropped(returns.user(&format!("{n}@example.test")), now);
        }
        assert!(all(&returns) <= USERS * SHARDS);
        for n in 0..2 * SHARDS * 16 {
            returns.dropped(returns.user(&format!("{n}@other.test")), now + SOON);
        }
        assert!(all(&returns) < USERS * SHARDS);
    }
}

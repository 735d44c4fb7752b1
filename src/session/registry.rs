//! Where a request finds its BOSH session: from the sid to the mailbox of the session's task.
//!
//! Requests of one session come over any connection to any worker thread, the session stays on the
//! one that made it. So the mailboxes are in a table of the process, in shards, each behind a lock
//! that is held for one look-up and never across an await. What is in a mailbox is bounded; who
//! finds it full is told so.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::budget::Queued;

use crate::proto::bosh::Reply;
use crate::proto::bosh::body::{Body, Unreadable};
use crate::proto::bosh::sid::Sid;

/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 64;

/// Requests that a mailbox holds. A client may have `hold` + 2 of them open, so that only one
/// which breaks that rule, or whose server takes nothing, ever fills it.
const MAILBOX: usize = 16;

/// One request and the way back to whoever sent it.
#[derive(Debug)]
pub struct Exchange {
    /// What it says, or why that is not known.
    pub request: Result<Body, Unreadable>,
    /// When its last byte was read.
    pub received: Instant,
    /// Where the answer goes; closed as soon as nobody waits for it any more (BOSH-48).
    pub reply: oneshot::Sender<Reply>,
}

impl Exchange {
    /// Bytes of the request, for the account.
    pub(crate) fn held_bytes(&self) -> usize {
        self.request.as_ref().map_or(0, Body::held_bytes)
    }
}

/// Why a request did not reach its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No session has this sid, or none any more (BOSH-66).
    Unknown,
    /// It was created over TLS, and the request came without (BOSH-89).
    Insecure,
    /// Its mailbox is full.
    Full,
}

/// The receiving end. Boxed: tokio allots room for 32 messages at a time.
pub(crate) type Mailbox = mpsc::Receiver<Box<Exchange>>;

/// A session, as far as requests have to know it.
#[derive(Clone, Debug)]
struct Entry {
    mailbox: mpsc::Sender<Box<Exchange>>,
    /// BOSH-89: it was created over TLS.
    secure: bool,
    /// What is in the mailbox.
    queued: Arc<Queued>,
}

type Shard = HashMap<Sid, Entry>;

/// The BOSH sessions of a process, by sid.
pub struct Registry {
    /// The tag in every sid that is given out here.
    owner: u32,
    shards: Box<[Mutex<Shard>]>,
    zombies: AtomicUsize,
    zombie_limit: AtomicUsize,
}

impl Registry {
    /// An empty registry with an owner's tag of its own, which keeps the conditions of at most
    /// `zombies` dead sessions (BOSH-77).
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new(zombies: usize) -> Result<Self, getrandom::Error> {
        let mut owner = [0; 4];
        getrandom::fill(&mut owner)?;
        Ok(Self {
            owner: u32::from_be_bytes(owner),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            zombies: AtomicUsize::new(0),
            zombie_limit: AtomicUsize::new(zombies),
        })
    }

    /// Keeps the conditions of that many from now on; those that are kept stay, though they be too
    /// many now.
    pub fn limit(&self, zombies: usize) {
        self.zombie_limit.store(zombies, Ordering::Release);
    }

    /// A sid that nobody has (BOSH-15).
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new_sid(&self) -> Result<Sid, getrandom::Error> {
        let mut secret = [0; 20];
        getrandom::fill(&mut secret)?;
        Ok(Sid::new(self.owner, secret))
    }

    /// Hands a request to the session that is called `sid`; `secure` is whether it came over TLS.
    ///
    /// # Errors
    /// [`Refused`]; the exchange is dropped, and so its sender's receiver learns nothing more.
    pub fn send(&self, sid: &Sid, secure: bool, exchange: Exchange) -> Result<(), Refused> {
        let entry = self.find(sid).ok_or(Refused::Unknown)?;
        if entry.secure && !secure {
            return Err(Refused::Insecure);
        }
        // Before it is sent, lest it be taken before it was counted.
        let bytes = exchange.held_bytes();
        entry.queued.add(bytes);
        entry.mailbox.try_send(Box::new(exchange)).map_err(|error| {
            entry.queued.remove(bytes);
            match error {
                TrySendError::Full(_) => Refused::Full,
                TrySendError::Closed(_) => Refused::Unknown,
            }
        })
    }

    /// Sessions that can be found, dead ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a session known, as long as the guard lives; one that is `secure` takes requests over
    /// TLS only (BOSH-89). `None` for a sid that is taken or was not drawn here.
    pub(crate) fn insert(
        self: &Arc<Self>,
        sid: Sid,
        secure: bool,
    ) -> Option<(Registered, Mailbox)> {
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        if sid.owner() != self.owner {
            return None;
        }
        let queued = Arc::<Queued>::default();
        match lock(self.shard(&sid)).entry(sid) {
            Place::Occupied(_) => return None,
            Place::Vacant(place) => {
                place.insert(Entry { mailbox: sender, secure, queued: Arc::clone(&queued) })
            }
        };
        Some((Registered { registry: Arc::clone(self), sid, queued, is_zombie: false }, mailbox))
    }

    fn find(&self, sid: &Sid) -> Option<Entry> {
        if sid.owner() != self.owner {
            return None;
        }
        lock(self.shard(sid)).get(sid).cloned()
    }

    fn shard(&self, sid: &Sid) -> &Mutex<Shard> {
        // Random in every sid of ours; what a stranger makes of his is no matter to a look-up.
        let first = sid.secret().first().copied().unwrap_or_default();
        &self.shards[usize::from(first) % SHARDS]
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// Nothing that can panic is done under the lock, so that what it guards is always whole.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session's place in the table, which it keeps until this is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Arc<Registry>,
    sid: Sid,
    queued: Arc<Queued>,
    is_zombie: bool,
}

impl Registered {
    /// What waits in its mailbox.
    pub(crate) fn queued(&self) -> &Queued {
        &self.queued
    }

    /// The session is dead and stays only to say why (BOSH-77); false if there are enough of those.
    #[must_use]
    pub(crate) fn die(&mut self) -> bool {
        let limit = self.registry.zombie_limit.load(Ordering::Acquire);
        if !self.is_zombie {
            self.is_zombie = self
                .registry
                .zombies
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                    (count < limit).then_some(count + 1)
                })
                .is_ok();
        }
        self.is_zombie
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut shard = lock(self.registry.shard(&self.sid));
        shard.remove(&self.sid);
        if shard.capacity() > 64 && shard.len() * 4 < shard.capacity() {
            shard.shrink_to_fit();
        }
        drop(shard);
        if self.is_zombie {
            self.registry.zombies.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fault::Fault;

    fn exchange(rid: u64) -> (Exchange, oneshot::Receiver<Reply>) {
        let (reply, answer) = oneshot::channel();
        let request =
            Err(Unreadable { sid: None, rid: Some(rid), fault: Fault::BadXml, limit: None });
        (Exchange { request, received: super::super::timer::clock(), reply }, answer)
    }

    fn rid(exchange: &Exchange) -> Option<u64> {
        exchange.request.as_ref().err().and_then(|unreadable| unreadable.rid)
    }

    /// BOSH-66: a sid is known from the insertion to the guard's end, and no other is.
    #[test]
    fn a_session_is_known_as_long_as_its_guard_lives() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let sid = registry.new_sid().unwrap();
        assert_eq!(registry.send(&sid, false, exchange(1).0), Err(Refused::Unknown));
        let (guard, mut mailbox) = registry.insert(sid, false).unwrap();
        assert!(registry.insert(sid, false).is_none(), "taken");
        let (request, mut answer) = exchange(2);
        assert_eq!(registry.send(&sid, false, request), Ok(()));
        assert_eq!(
            registry.send(&registry.new_sid().unwrap(), false, exchange(3).0),
            Err(Refused::Unknown)
        );
        assert_eq!(rid(&mailbox.try_recv().unwrap()), Some(2));
        assert!(answer.try_recv().is_err());
        drop(guard);
        assert_eq!(registry.send(&sid, false, exchange(4).0), Err(Refused::Unknown));
        assert!(registry.is_empty());
    }

    /// BOSH-89: what was created over TLS takes nothing without, and loses nothing by it.
    #[test]
    fn a_secure_session_takes_secure_requests_only() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let send = |sid, secure| registry.send(sid, secure, exchange(1).0);
        let (secure, plain) = (registry.new_sid().unwrap(), registry.new_sid().unwrap());
        let (_place, mut mailbox) = registry.insert(secure, true).unwrap();
        let (_plain_place, _plain_mailbox) = registry.insert(plain, false).unwrap();
        assert_eq!(send(&secure, false), Err(Refused::Insecure));
        assert!(mailbox.try_recv().is_err());
        assert_eq!(send(&secure, true), Ok(()));
        assert_eq!((send(&plain, false), send(&plain, true)), (Ok(()), Ok(())));
    }

    /// A mailbox whose owner has closed it is as good as none.
    #[test]
    fn a_closed_mailbox_is_unknown() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let sid = registry.new_sid().unwrap();
        let (_guard, mut mailbox) = registry.insert(sid, false).unwrap();
        mailbox.close();
        assert_eq!(registry.send(&sid, false, exchange(1).0), Err(Refused::Unknown));
    }

    /// A sid of another process is unknown, even if its secret is one of ours.
    #[test]
    fn a_foreign_owner_is_unknown() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let sid = registry.new_sid().unwrap();
        let _place = registry.insert(sid, false).unwrap();
        let secret = <[u8; 20]>::try_from(sid.secret()).unwrap();
        let foreign = Sid::new(sid.owner() ^ 1, secret);
        assert_eq!(registry.send(&foreign, false, exchange(1).0), Err(Refused::Unknown));
        assert!(registry.insert(foreign, false).is_none());
    }

    /// Everything is bounded: the request that has no room is refused, and those before it stay.
    #[test]
    fn a_full_mailbox_refuses() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let sid = registry.new_sid().unwrap();
        let (_guard, mut mailbox) = registry.insert(sid, false).unwrap();
        for n in 0..MAILBOX as u64 {
            assert_eq!(registry.send(&sid, false, exchange(n).0), Ok(()));
        }
        assert_eq!(registry.send(&sid, false, exchange(99).0), Err(Refused::Full));
        for n in 0..MAILBOX as u64 {
            assert_eq!(rid(&mailbox.try_recv().unwrap()), Some(n));
        }
        assert!(mailbox.try_recv().is_err());
        assert_eq!(registry.send(&sid, false, exchange(100).0), Ok(()));
    }

    /// BOSH-77: the dead are counted, and their places are free again when they are gone.
    #[test]
    fn zombies_are_bounded() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let place = || registry.insert(registry.new_sid().unwrap(), false).unwrap().0;
        let (mut one, mut two) = (place(), place());
        assert!(one.die());
        assert!(one.die(), "it is one already");
        assert!(!two.die());
        drop(one);
        assert!(two.die());
        registry.limit(2);
        let mut three = place();
        assert!(three.die());
        drop((two, three));
        assert_eq!(registry.zombies.load(Ordering::Acquire), 0);
    }

    /// BOSH-15: many threads at once draw, insert, send and remove, and none meets another's.
    #[test]
    fn many_threads_do_not_meet() {
        let registry = Arc::new(Registry::new(1).unwrap());
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let registry = Arc::clone(&registry);
                std::thread::spawn(move || {
                    let mut kept = Vec::new();
                    for n in 0..500 {
                        let sid = registry.new_sid().unwrap();
                        let place = registry.insert(sid, false).unwrap();
                        assert_eq!(registry.send(&sid, false, exchange(n).0), Ok(()));
                        kept.push((n, sid, place));
                        if n % 3 == 0 {
                            let (_, sid, _) = kept.swap_remove(kept.len() / 2);
                            assert_eq!(
                                registry.send(&sid, false, exchange(0).0),
                                Err(Refused::Unknown)
                            );
                        }
                    }
                    for (n, _, (_, mailbox)) in &mut kept {
                        assert_eq!(rid(&mailbox.try_recv().unwrap()), Some(*n));
                        assert!(mailbox.try_recv().is_err());
                    }
                    kept.len()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 333);
        }
        assert!(registry.is_empty());
    }
}

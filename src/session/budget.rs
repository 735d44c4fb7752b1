//! One memory budget for all sessions (`limits.memory`), and who is ended when it is exceeded.
//!
//! Each session adds up what it holds in queues and buffers whenever it has been polled, and tells
//! the budget only what has changed by `GRAIN` or more: so no stanza writes what threads share,
//! and what a session holds below that is not counted. Who holds `HEAVY` or more is in a table
//! besides, whose lock is taken when that limit is crossed, and when the budget is exceeded. Then
//! the sessions of the table are ended that hold most, the oldest of those that hold the same,
//! until what the others hold is within the budget. One that holds less is never ended for it, so
//! that what is held at the most is the budget and `HEAVY` for each session; while the budget is
//! exceeded no session is begun.
//!
//! What comes of a request's body belongs to no session before that is whole, and its sender may be
//! anybody: where it is `HEAVY` it is counted apart, ends no session, and has to fit into what they
//! leave.
//!
//! A session that is to be ended finds a mark at its entry, and is woken to find it even when none
//! of its sockets moves.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use crate::metrics::{Metrics, Transport};

/// Bytes that what a session holds has to change by before anybody is told.
const GRAIN: usize = 4 * 1024;
/// Bytes at which a session may be ended for what it holds.
const HEAVY: usize = 16 * 1024;

/// What all sessions of a process hold together, and how much they may.
#[derive(Debug)]
pub struct Budget {
    /// Bytes; 0 is no limit.
    limit: AtomicUsize,
    /// Bytes of sessions that are marked and have not gone yet.
    leaving: AtomicUsize,
    heavy: Mutex<HashMap<u64, Arc<Heavy>>>,
    /// Bytes of large bodies that are not whole.
    arriving: AtomicUsize,
    /// Has the sum, which is a metric.
    metrics: Arc<Metrics>,
}

/// A session that holds much.
#[derive(Debug)]
struct Heavy {
    born: Instant,
    held: AtomicUsize,
    /// What it held when it was marked to be ended; 0 is not marked.
    marked: AtomicUsize,
    waker: Waker,
}

/// Whose account it is, and how to wake them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// The session's number.
    pub(crate) id: u64,
    /// When it began.
    pub(crate) born: Instant,
    /// What it is carried by.
    pub(crate) transport: Transport,
    /// Its task.
    pub(crate) waker: &'a Waker,
}

/// What one session has told the budget.
#[derive(Debug, Default)]
pub(crate) struct Account {
    published: usize,
    /// Under which transport; one may turn out to be another's.
    of: Option<Transport>,
    /// Its entry in the table.
    heavy: Option<Arc<Heavy>>,
    /// It ends already: what it still holds goes by itself.
    ending: bool,
}

impl Budget {
    /// `limit` bytes for all sessions, 0 for as much as they like.
    #[must_use]
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            leaving: AtomicUsize::new(0),
            heavy: Mutex::default(),
            arriving: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Another limit from now on; if more is held already, as if it had just been exceeded.
    pub fn limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
        self.relieve();
    }

    /// Whether the sessions hold more than they may.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        let limit = self.limit.load(Ordering::Acquire);
        limit != 0 && self.held() > limit
    }

    /// A body of which nothing has come.
    #[must_use]
    pub fn arriving(&self) -> Arriving<'_> {
        Arriving { budget: self, counted: 0 }
    }

    fn held(&self) -> usize {
        usize::try_from(self.metrics.limits.held.get()).unwrap_or_default()
    }

    /// What is held too much by sessions that are not about to end.
    fn excess(&self) -> usize {
        match self.limit.load(Ordering::Acquire) {
            0 => 0,
            limit => {
                let leaving = self.leaving.load(Ordering::Acquire);
                self.held().saturating_sub(leaving).saturating_sub(limit)
            }
        }
    }

    /// Marks and wakes those who hold most, until the others hold no more than they may.
    fn relieve(&self) {
        if self.excess() == 0 {
            return;
        }
        let table = lock(&self.heavy);
        // Another thread may have done it.
        let mut excess = self.excess();
        if excess == 0 {
            return;
        }
        let mut candidates: Vec<_> = table
            .values()
            .filter(|heavy| heavy.marked.load(Ordering::Relaxed) == 0)
            .map(|heavy| (heavy.held.load(Ordering::Relaxed), heavy))
            .collect();
        candidates.sort_unstable_by_key(|(held, heavy)| (Reverse(*held), heavy.born));
        let mut victims = Vec::new();
        for (held, heavy) in candidates {
            if excess == 0 {
                break;
            }
            heavy.marked.store(held, Ordering::Release);
            self.leaving.fetch_add(held, Ordering::AcqRel);
            excess = excess.saturating_sub(held);
            victims.push(Arc::clone(heavy));
        }
        drop(table);
        for victim in victims {
            victim.waker.wake_by_ref();
        }
    }

    fn enter(&self, held: usize, owner: &Owner<'_>) -> Arc<Heavy> {
        let heavy = Arc::new(Heavy {
            born: owner.born,
            held: AtomicUsize::new(held),
            marked: AtomicUsize::new(0),
            waker: owner.waker.clone(),
        });
        lock(&self.heavy).insert(owner.id, Arc::clone(&heavy));
        heavy
    }

    fn leave(&self, id: u64) {
        let mut table = lock(&self.heavy);
        if let Some(heavy) = table.remove(&id) {
            // Under the lock, as marks are made.
            let marked = heavy.marked.load(Ordering::Acquire);
            self.leaving.fetch_sub(marked, Ordering::AcqRel);
        }
        if table.capacity() > 64 && table.len() * 4 < table.capacity() {
            table.shrink_to_fit();
        }
    }
}

/// Nothing that can panic is done under the lock, so that what it guards is always whole.
fn lock(table: &Mutex<HashMap<u64, Arc<Heavy>>>) -> MutexGuard<'_, HashMap<u64, Arc<Heavy>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's body that is not whole; it counts until this is dropped.
#[derive(Debug)]
pub struct Arriving<'a> {
    budget: &'a Budget,
    counted: usize,
}

impl Arriving<'_> {
    /// It takes `bytes` of memory now, more than before. False if it is large and there is no room for
    /// it: then it is to be given up.
    pub fn has_room(&mut self, bytes: usize) -> bool {
        if bytes < HEAVY {
            return true;
        }
        let more = bytes.saturating_sub(self.counted);
        self.counted += more;
        let arriving = self.budget.arriving.fetch_add(more, Ordering::AcqRel) + more;
        let limit = self.budget.limit.load(Ordering::Acquire);
        limit == 0 || self.budget.held().saturating_add(arriving) <= limit
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if self.counted > 0 {
            self.budget.arriving.fetch_sub(self.counted, Ordering::AcqRel);
        }
    }
}

impl Account {
    /// The session holds `held` bytes now.
    pub(crate) fn publish(&mut self, budget: &Budget, held: usize, owner: &Owner<'_>) {
        let before = self.published;
        // What it has not given up at its end is not about to go any more.
        let has_ended = self.ending && self.heavy.is_some();
        let is_news = held >= before + GRAIN
            || held + GRAIN <= before
            || before != 0 && held < GRAIN / 2
            || has_ended;
        if !is_news {
            return;
        }
        let held = if held < GRAIN { 0 } else { held };
        self.published = held;
        let of = *self.of.get_or_insert(owner.transport);
        let change =
            i64::try_from(held).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
        // Whoever sees the sum has to see whose it is, or another would go for it.
        if change < 0 {
            budget.metrics.limits.held.add(of, change);
        }
        match &self.heavy {
            Some(_) if held < HEAVY / 2 || has_ended => self.forget(budget, owner.id),
            Some(heavy) => heavy.held.store(held, Ordering::Relaxed),
            None if held >= HEAVY && !self.ending => {
                self.heavy = Some(budget.enter(held, owner));
            }
            None => {}
        }
        if change > 0 {
            budget.metrics.limits.held.add(of, change);
        }
        if held == 0 {
            self.of = None;
        }
        if held > before || has_ended {
            budget.relieve();
        }
    }

    /// Whether the session was chosen to end, and does not do so yet.
    pub(crate) fn is_marked(&self) -> bool {
        let is_marked = |heavy: &Arc<Heavy>| heavy.marked.load(Ordering::Acquire) != 0;
        !self.ending && self.heavy.as_ref().is_some_and(is_marked)
    }

    /// Whether the session, which is called `id` and holds `held` bytes, has to end: true once. One
    /// that has got rid of what it held since it was chosen is let off.
    pub(crate) fn is_due(&mut self, budget: &Budget, held: usize, id: u64) -> bool {
        if !self.is_marked() {
            return false;
        }
        if held < HEAVY {
            self.forget(budget, id);
            return false;
        }
        self.ending = true;
        true
    }

    /// The session called `id` holds nothing any more.
    pub(crate) fn close(&mut self, budget: &Budget, id: u64) {
        let before = std::mem::take(&mut self.published);
        if let Some(of) = self.of.take() {
            budget.metrics.limits.held.add(of, -i64::try_from(before).unwrap_or(i64::MAX));
        }
        if self.heavy.is_some() {
            self.forget(budget, id);
        }
    }

    fn forget(&mut self, budget: &Budget, id: u64) {
        self.heavy = None;
        budget.leave(id);
    }
}

/// The bytes of requests that wait for their session to take them. Other threads put them there,
/// and a session that takes none for want of room would not learn of it.
#[derive(Debug, Default)]
pub(crate) struct Queued {
    bytes: AtomicUsize,
    waker: OnceLock<Waker>,
}

impl Queued {
    /// The session's task, which is woken from now on by what adds up to something.
    pub(crate) fn wakes(&self, waker: &Waker) {
        let _ = self.waker.set(waker.clone());
    }

    /// So many more wait.
    pub(crate) fn add(&self, bytes: usize) {
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if before / GRAIN != (before + bytes) / GRAIN
            && let Some(waker) = self.waker.get()
        {
            waker.wake_by_ref();
        }
    }

    /// So many wait no longer.
    pub(crate) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// How many wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;
    use std::time::Duration;

    use super::super::timer::clock;
    use super::*;

    const MIB: usize = 1 << 20;

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    struct Holder {
        id: u64,
        born: Instant,
        held: usize,
        account: Account,
        bell: Arc<Bell>,
    }

    impl Holder {
        fn new(id: u64, born: Instant) -> Self {
            Self { id, born, held: 0, account: Account::default(), bell: Arc::default() }
        }

        fn hold(&mut self, budget: &Budget, held: usize) {
            self.held = held;
            let waker = Arc::clone(&self.bell).into();
            let transport = Transport::ALL[self.id as usize % Transport::ALL.len()];
            let owner = Owner { id: self.id, born: self.born, transport, waker: &waker };
            self.account.publish(budget, held, &owner);
        }

        fn is_due(&mut self, budget: &Budget) -> bool {
            self.account.is_due(budget, self.held, self.id)
        }

        fn rings(&self) -> u32 {
            self.bell.0.load(Ordering::Acquire)
        }
    }

    fn budget(limit: usize) -> Budget {
        Budget::new(limit, Metrics::register().unwrap())
    }

    fn holders<const N: usize>() -> [Holder; N] {
        let born = clock();
        std::array::from_fn(|n| Holder::new(n as u64 + 1, born + Duration::from_millis(n as u64)))
    }

    /// SEC-17: those who hold most are ended, the oldest of equals, no more of them than it takes,
    /// and each once; who holds little never is.
    #[test]
    fn the_largest_are_ended() {
        let budget = budget(4 * MIB);
        let [mut a, mut b, mut c, mut d, mut small] = holders();
        a.hold(&budget, MIB);
        b.hold(&budget, 2 * MIB);
        c.hold(&budget, MIB - 1);
        assert!(!budget.is_exceeded() && !a.is_due(&budget) && !b.is_due(&budget));
        small.hold(&budget, HEAVY - 1);
        assert!(budget.is_exceeded() && !small.is_due(&budget), "small, though it was the last");
        assert_eq!([&a, &b, &c, &d, &small].map(Holder::rings), [0, 1, 0, 0, 0]);
        assert!(b.is_due(&budget) && !b.is_due(&budget), "once");
        // It has not gone yet, but nobody else has to.
        d.hold(&budget, MIB - HEAVY);
        assert!(budget.is_exceeded());
        assert_eq!([&a, &b, &c, &d, &small].map(Holder::rings), [0, 1, 0, 0, 0]);
        b.account.close(&budget, b.id);
        assert!(!budget.is_exceeded());
        d.hold(&budget, MIB);
        a.hold(&budget, 2 * MIB + 5 * 1024);
        assert!(a.is_due(&budget) && !c.is_due(&budget) && !d.is_due(&budget));
        a.account.close(&budget, a.id);
        c.hold(&budget, MIB);
        c.hold(&budget, 2 * MIB);
        d.hold(&budget, 2 * MIB);
        // Of two that hold the same, the older.
        assert!(c.is_due(&budget) && !d.is_due(&budget));
        for mut holder in [a, b, c, d, small] {
            holder.account.close(&budget, holder.id);
        }
        assert_eq!((budget.held(), budget.leaving.load(Ordering::Acquire)), (0, 0));
        assert!(lock(&budget.heavy).is_empty());
    }

    /// Bodies that come have to fit into what sessions leave, small ones always do, and they end nobody.
    #[test]
    fn bodies_have_to_fit() {
        let budget = budget(MIB);
        let [mut session] = holders();
        session.hold(&budget, MIB / 2);
        let (mut one, mut two) = (budget.arriving(), budget.arriving());
        assert!(one.has_room(HEAVY - 1) && one.has_room(MIB / 4) && one.has_room(MIB / 2));
        assert!(!two.has_room(HEAVY) && budget.arriving().has_room(HEAVY - 1));
        assert!(!budget.is_exceeded() && session.rings() == 0);
        drop(one);
        assert!(two.has_room(MIB / 2) && !two.has_room(MIB / 2 + 1));
        budget.limit(0);
        assert!(two.has_room(9 * MIB));
        drop(two);
        assert_eq!(budget.arriving.load(Ordering::Acquire), 0);
        session.account.close(&budget, session.id);
    }

    /// Who holds little says nothing, and small changes are nobody's business.
    #[test]
    fn small_change_is_not_told() {
        let budget = budget(0);
        let [mut one] = holders();
        one.hold(&budget, GRAIN - 1);
        assert_eq!((budget.held(), one.account.heavy.is_some()), (0, false));
        one.hold(&budget, 3 * GRAIN);
        one.hold(&budget, 3 * GRAIN + 100);
        one.hold(&budget, 2 * GRAIN + 1);
        assert_eq!((budget.held(), one.account.heavy.is_some()), (3 * GRAIN, false));
        one.hold(&budget, HEAVY);
        assert_eq!((budget.held(), one.account.heavy.is_some()), (HEAVY, true));
        one.hold(&budget, 1);
        assert_eq!((budget.held(), one.account.heavy.is_some()), (0, false));
        assert!(lock(&budget.heavy).is_empty());
    }

    /// One that is marked and then gets rid of what it held goes on.
    #[test]
    fn who_holds_little_again_is_let_off() {
        let budget = budget(MIB);
        let [mut one, mut two] = holders();
        one.hold(&budget, 2 * MIB);
        assert_eq!(one.rings(), 1);
        one.held = 100;
        assert!(!one.is_due(&budget));
        assert_eq!(budget.leaving.load(Ordering::Acquire), 0);
        one.hold(&budget, 100);
        two.hold(&budget, MIB);
        assert!(!budget.is_exceeded() && !two.is_due(&budget));
        one.hold(&budget, 2 * MIB);
        assert!(one.is_due(&budget), "another time");
    }

    /// A lower limit holds at once, and 0 is none.
    #[test]
    fn a_limit_can_be_lowered() {
        let budget = budget(0);
        let mut all: [Holder; 4] = holders();
        for holder in &mut all {
            holder.hold(&budget, holder.id as usize * MIB);
        }
        assert!(!budget.is_exceeded());
        budget.limit(3 * MIB);
        assert!(budget.is_exceeded());
        let due: Vec<_> = all.iter_mut().map(|holder| holder.is_due(&budget)).collect();
        assert_eq!(due, [false, false, true, true]);
        // One that ends is no heavy session any more, whatever it still holds.
        all[3].hold(&budget, 0);
        all[3].hold(&budget, MIB);
        assert!(all[3].account.heavy.is_none());
    }

    /// A queue that nobody looks into is told of when it has grown by something.
    #[test]
    fn a_full_queue_wakes() {
        let (queued, bell) = (Queued::default(), Arc::new(Bell::default()));
        queued.wakes(&Arc::clone(&bell).into());
        (0..9).for_each(|_| queued.add(GRAIN / 4));
        assert_eq!((queued.bytes(), bell.0.load(Ordering::Acquire)), (9 * GRAIN / 4, 2));
        queued.remove(9 * GRAIN / 4);
        assert_eq!(queued.bytes(), 0);
    }

    /// The accounts of many threads add up.
    #[test]
    fn accounts_add_up() {
        let budget = budget(8 * MIB);
        let born = clock();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut all: Vec<_> =
                        (0..20).map(|n| Holder::new(thread * 100 + n, born)).collect();
                    for round in 0..50_usize {
                        for (n, holder) in all.iter_mut().enumerate() {
                            holder.hold(budget, round * n * 1021 % (MIB / 2));
                            if holder.is_due(budget) {
                                holder.account.close(budget, holder.id);
                                *holder = Holder::new(holder.id, born);
                            }
                        }
                    }
                    all.iter_mut().for_each(|holder| holder.account.close(budget, holder.id));
                });
            }
        });
        assert_eq!((budget.held(), budget.leaving.load(Ordering::Acquire)), (0, 0));
        assert!(lock(&budget.heavy).is_empty());
    }
}

//! What the sessions of one worker thread share.
//!
//! A session is only ever polled on the thread that accepted it, and never while another one is:
//! so one set of buffers serves them all, and a session owns memory only for what is incomplete.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use crate::metrics::Metrics;
use crate::proto::ws;
use crate::proto::ws::session::Out;
use crate::proto::xml::Scratch;
use crate::upstream::Connector;

/// Bytes read from a socket at a time.
pub const READ_CHUNK: usize = 64 * 1024;

/// Buffers above this are given back after use; a burst must not stay in the resident set.
const KEEP: usize = 256 * 1024;

/// What a process has once; cheap to clone into every worker.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The way to the servers.
    pub connector: Connector,
    /// The machine's numbers.
    pub settings: Arc<ws::Settings>,
    /// How long a socket may take no byte while there are some for it.
    pub stall_timeout: Duration,
    /// Sessions of the process, all listeners together.
    pub sessions: Arc<Sessions>,
}

/// The number of sessions, bounded.
#[derive(Debug)]
pub struct Sessions {
    open: AtomicUsize,
    limit: usize,
    draining: tokio::sync::watch::Sender<bool>,
}

impl Sessions {
    /// None yet, and never more than `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { open: AtomicUsize::new(0), limit, draining: tokio::sync::watch::Sender::new(false) }
    }

    /// A place for one more session; given back when the permit is dropped. `None` at the limit
    /// and while draining.
    #[must_use]
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        if self.is_draining() {
            return None;
        }
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.limit).then_some(open + 1)
            })
            .ok()
            .map(|_| Permit(Arc::clone(self)))
    }

    /// Sessions open now, those that are closing included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Whether [`Sessions::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// No further session is admitted, and every worker ends its own.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }
}

/// The right to be a session.
#[derive(Debug)]
pub struct Permit(Arc<Sessions>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The buffers of one thread.
#[derive(Debug)]
pub struct Buffers {
    /// What was read last.
    pub read: Vec<u8>,
    /// What is to be written.
    pub out: Out,
    /// The scanner's working memory.
    pub scratch: Scratch,
}

impl Buffers {
    fn new() -> Self {
        Self { read: vec![0; READ_CHUNK], out: Out::default(), scratch: Scratch::default() }
    }

    /// Gives back what one large burst made grow.
    pub fn trim(&mut self) {
        for buffer in [&mut self.out.client, &mut self.out.server] {
            buffer.clear();
            if buffer.capacity() > KEEP {
                buffer.shrink_to(KEEP);
            }
        }
    }
}

/// One worker thread.
#[derive(Debug)]
pub struct Worker {
    /// What the process has once.
    pub shared: Shared,
    /// Borrowed for the length of one poll of one session.
    pub buffers: RefCell<Buffers>,
    wakers: RefCell<HashMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Worker {
    /// A worker, with a task on the current thread that wakes its sessions when the drain begins.
    #[must_use]
    pub fn start(shared: Shared, first_id: u64) -> Rc<Self> {
        let worker = Rc::new(Self {
            buffers: RefCell::new(Buffers::new()),
            wakers: RefCell::new(HashMap::new()),
            next: Cell::new(first_id),
            shared,
        });
        let mut draining = worker.shared.sessions.draining.subscribe();
        let weak = Rc::downgrade(&worker);
        actix_rt::spawn(async move {
            if draining.wait_for(|begun| *begun).await.is_ok()
                && let Some(worker) = weak.upgrade()
            {
                for waker in worker.wakers.borrow().values() {
                    waker.wake_by_ref();
                }
            }
        });
        worker
    }

    /// A number for the log, unlike any other of this process.
    pub fn next_id(&self) -> u64 {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        id
    }

    /// Registers a session for the drain.
    pub fn register(&self, id: u64, waker: Waker) {
        self.wakers.borrow_mut().insert(id, waker);
    }

    /// Forgets a session.
    pub fn unregister(&self, id: u64) {
        let mut wakers = self.wakers.borrow_mut();
        wakers.remove(&id);
        if wakers.capacity() > 64 && wakers.len() * 4 < wakers.capacity() {
            wakers.shrink_to_fit();
        }
    }
}

//! Why was a session ended? The last protocol events of each, while it lives and for some time
//! after.
//!
//! An event is sixteen bytes in a ring that belongs to the session's own thread ([`event`]), and what
//! is written is when, how large, and why: no payload, no credential, no sid. Stanzas are no
//! events; they are counted once for each read. What is known beside that is in a [`Record`], which
//! is found by the session's number, its JID or its client's address.
//!
//! Live sessions are asked on their own thread: a question is sent to every worker and answered
//! between two of its tasks, so that no lock is taken for what a session writes. At its end a record
//! goes into an archive of the process, where it is kept for `recorder.keep`. Sessions that never
//! logged in are at most a quarter of those: strangers cannot push out what happened to users.

pub mod event;
pub mod record;

use std::cmp::Reverse;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

pub use self::record::{Filter, Record, State};

use super::timer::clock;
use super::worker::Worker;

/// Questions that wait for one worker at a time.
const QUESTIONS: usize = 16;
/// How long a worker has to answer one. It takes a busy one milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest that a record may outlive its time.
const TIDY: Duration = Duration::from_secs(10);

/// What is asked of a worker.
pub(crate) type Question = Box<dyn FnOnce(&Worker) + Send>;

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Events of one session; with 0 nothing is recorded.
    pub events: usize,
    /// How long a session is known after its end.
    pub keep: Duration,
    /// How many that have ended are known at most.
    pub ended: usize,
}

/// What a process has recorded.
pub struct Recorder {
    events: AtomicUsize,
    keep: AtomicU64,
    ended: AtomicUsize,
    archive: Mutex<Archive>,
    workers: Mutex<Vec<mpsc::Sender<Question>>>,
}

/// Sessions that have ended, the oldest end first.
#[derive(Debug, Default)]
struct Archive {
    users: VecDeque<(Instant, Record)>,
    /// Those who never logged in.
    strangers: VecDeque<(Instant, Record)>,
}

/// Sessions that were found.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest of them.
    pub records: Vec<Record>,
    /// How many there are.
    pub matched: usize,
    /// A worker did not answer in time, so that there may be more.
    pub partial: bool,
}

/// What becomes of the wish to end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicked {
    /// It is being ended.
    Done,
    /// It ends already, or has ended.
    Late,
    /// There is none of that number.
    Unknown,
    /// Its worker did not answer in time.
    Unheard,
}

impl Recorder {
    /// Nothing is recorded yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let recorder = Self {
            events: AtomicUsize::new(0),
            keep: AtomicU64::new(0),
            ended: AtomicUsize::new(0),
            archive: Mutex::default(),
            workers: Mutex::default(),
        };
        recorder.set(settings);
        recorder
    }

    /// Other settings from now on; a session that was begun keeps as many events as it could.
    pub fn set(&self, settings: Settings) {
        let keep = u64::try_from(settings.keep.as_millis()).unwrap_or(u64::MAX);
        self.events.store(settings.events, Ordering::Relaxed);
        self.keep.store(keep, Ordering::Relaxed);
        self.ended.store(settings.ended, Ordering::Relaxed);
        self.tidy(clock());
    }

    /// Events that a session keeps which begins now; with 0 nothing is recorded.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    fn keep(&self) -> Duration {
        Duration::from_millis(self.keep.load(Ordering::Relaxed))
    }

    /// Forgets in time what was kept long enough; to be run beside everything else.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let pause = (self.keep() / 4).clamp(Duration::from_secs(1), TIDY);
            tokio::time::sleep(pause).await;
            self.tidy(clock());
        }
    }

    fn tidy(&self, now: Instant) {
        lock(&self.archive).tidy(self.most(), self.keep(), now);
    }

    /// How many that have ended may be known.
    fn most(&self) -> usize {
        if self.events() == 0 { 0 } else { self.ended.load(Ordering::Relaxed) }
    }

    /// Keeps the record of a session that has ended.
    pub(crate) fn archive(&self, record: Record, now: Instant) {
        let mut archive = lock(&self.archive);
        let place =
            if record.stage.authenticated { &mut archive.users } else { &mut archive.strangers };
        place.push_back((now, record));
        archive.tidy(self.most(), self.keep(), now);
    }

    /// A worker begins: what it is asked comes out of the receiver.
    pub(crate) fn enlist(&self) -> mpsc::Receiver<Question> {
        let (sender, questions) = mpsc::channel(QUESTIONS);
        lock(&self.workers).push(sender);
        questions
    }

    /// The newest `limit` sessions that are meant, without their events.
    pub async fn list(&self, filter: Filter, limit: usize) -> Found {
        let filter = Arc::new(filter);
        let on_worker = Arc::clone(&filter);
        let (answers, partial) = self
            .ask(move |worker| {
                let mut found = Found::default();
                worker.records(|record| {
                    if on_worker.fits(record) {
                        found.add(record, limit);
                    }
                });
                found
            })
            .await;
        let mut all = Found { partial, ..Found::default() };
        for mut found in answers {
            all.matched += found.matched;
            all.records.append(&mut found.records);
        }
        // Afterwards, so that none is missed that ended meanwhile; it may be there twice then.
        let now = clock();
        let live = std::mem::take(&mut all.records);
        let mut ended = HashSet::new();
        let mut archive = lock(&self.archive);
        archive.tidy(self.most(), self.keep(), now);
        for record in archive.records().filter(|record| filter.fits(record)) {
            ended.insert(record.id);
            all.add(record, limit);
        }
        drop(archive);
        let before = live.len();
        let live: Vec<_> = live.into_iter().filter(|known| !ended.contains(&known.id)).collect();
        all.matched -= before - live.len();
        all.records.extend(live);
        all.cut(limit);
        all
    }

    /// The session of this number with its events; whether a worker did not answer, which may
    /// be the one that has it.
    pub async fn find(&self, id: u64) -> (Option<Record>, bool) {
        let (answers, partial) = self.ask(move |worker| worker.record_of(id)).await;
        let live = answers.into_iter().flatten().next();
        let ended = || {
            let mut archive = lock(&self.archive);
            archive.tidy(self.most(), self.keep(), clock());
            archive.records().find(|record| record.id == id).cloned()
        };
        (live.or_else(ended), partial)
    }

    /// Ends the session of this number.
    pub async fn kick(&self, id: u64) -> Kicked {
        let (answers, partial) = self.ask(move |worker| worker.kick(id)).await;
        match answers.into_iter().flatten().next() {
            Some(true) => Kicked::Done,
            Some(false) => Kicked::Late,
            None if lock(&self.archive).records().any(|record| record.id == id) => Kicked::Late,
            None if partial => Kicked::Unheard,
            None => Kicked::Unknown,
        }
    }

    /// Asks every worker; whether one of them did not answer in time.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&Worker) -> T + Clone + Send + 'static,
    ) -> (Vec<T>, bool) {
        let mut waiting = Vec::new();
        let mut partial = false;
        lock(&self.workers).retain(|worker| {
            let (reply, answer) = oneshot::channel();
            let question = question.clone();
            let asked = worker.try_send(Box::new(move |worker: &Worker| {
                let _ = reply.send(question(worker));
            }));
            match asked {
                Ok(()) => waiting.push(answer),
                Err(TrySendError::Full(_)) => partial = true,
                Err(TrySendError::Closed(_)) => return false,
            }
            true
        });
        let deadline = tokio::time::Instant::from_std(clock() + PATIENCE);
        let mut answers = Vec::with_capacity(waiting.len());
        for answer in waiting {
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(_)) | Err(_) => partial = true,
            }
        }
        (answers, partial)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("events", &self.events).finish_non_exhaustive()
    }
}

impl Found {
    fn add(&mut self, record: &Record, limit: usize) {
        self.matched += 1;
        self.records.push(record.summary());
        // Now and then, so that there are never many more than wanted.
        if self.records.len() >= 2 * limit.max(64) {
            self.cut(limit);
        }
    }

    /// The newest come first.
    fn cut(&mut self, limit: usize) {
        self.records.sort_by_key(|record| Reverse((record.begun, record.id)));
        self.records.truncate(limit);
    }
}

impl Archive {
    fn records(&self) -> impl Iterator<Item = &Record> {
        self.strangers.iter().chain(&self.users).map(|(_, record)| record)
    }

    /// No more than `ended`, and nothing that ended longer ago than `keep`.
    fn tidy(&mut self, ended: usize, keep: Duration, now: Instant) {
        for list in [&mut self.users, &mut self.strangers] {
            while list.front().is_some_and(|(since, _)| *since + keep <= now) {
                list.pop_front();
            }
        }
        while self.users.len() + self.strangers.len() > ended {
            let strangers = self.strangers.len() > ended / 4 || self.users.is_empty();
            let list = if strangers { &mut self.strangers } else { &mut self.users };
            list.pop_front();
        }
        for list in [&mut self.users, &mut self.strangers] {
            if list.capacity() > 64 && list.len() * 4 < list.capacity() {
                list.shrink_to_fit();
            }
        }
    }
}

/// Nothing that can panic is done under a lock, so that what it guards is always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::record::Recording;
    use super::*;
    use crate::proto::fault::Fault;
    use crate::proto::stream::Stage;
    use crate::upstream::Client;

    const KEEP: Duration = Duration::from_secs(60);

    fn end(recorder: &Recorder, id: u64, authenticated: bool, now: Instant) {
        let record = Record::new(&Client { id, ..Client::default() }, None, 8, now);
        let mut recording = Recording::new(record);
        recording.stage(Stage { authenticated, ..Stage::default() }, now);
        recorder.archive(recording.finish(Fault::Closed, now).unwrap(), now);
    }

    fn ids(recorder: &Recorder) -> Vec<u64> {
        let mut ids: Vec<_> = lock(&recorder.archive).records().map(|record| record.id).collect();
        ids.sort_unstable();
        ids
    }

    /// As many as may be, the last ones; of strangers no more than a quarter once users need the
    /// room.
    #[test]
    fn the_archive_is_bounded() {
        let now = clock();
        let recorder = Recorder::new(Settings { events: 8, keep: KEEP, ended: 8 });
        for id in 0..20 {
            end(&recorder, id, false, now);
        }
        assert_eq!(ids(&recorder), (12..20).collect::<Vec<_>>());
        for id in 100..110 {
            end(&recorder, id, true, now);
        }
        assert_eq!(ids(&recorder), [18, 19, 104, 105, 106, 107, 108, 109]);
        for id in 20..30 {
            end(&recorder, id, false, now);
        }
        assert_eq!(ids(&recorder), [28, 29, 104, 105, 106, 107, 108, 109]);
        recorder.set(Settings { events: 8, keep: KEEP, ended: 4 });
        assert_eq!(ids(&recorder), [29, 107, 108, 109]);
        recorder.set(Settings { events: 0, keep: KEEP, ended: 4 });
        assert!(ids(&recorder).is_empty(), "nothing is recorded any more");
        end(&recorder, 30, true, now);
        assert!(ids(&recorder).is_empty(), "nor of what began before");
    }

    #[test]
    fn the_archive_forgets() {
        let now = clock();
        let recorder = Recorder::new(Settings { events: 8, keep: KEEP, ended: 8 });
        end(&recorder, 1, true, now);
        end(&recorder, 2, false, now + KEEP / 2);
        recorder.tidy(now + KEEP - Duration::from_millis(1));
        assert_eq!(ids(&recorder), [1, 2]);
        recorder.tidy(now + KEEP);
        assert_eq!(ids(&recorder), [2]);
        recorder.tidy(now + KEEP * 2);
        assert!(ids(&recorder).is_empty());
    }

    /// Of many that fit the newest are told, and how many there are.
    #[tokio::test]
    async fn a_list_is_bounded() {
        let now = clock();
        let recorder = Recorder::new(Settings { events: 8, keep: KEEP, ended: 1000 });
        for id in 0..500 {
            end(&recorder, id, true, now);
        }
        let found = recorder.list(Filter::default(), 10).await;
        assert_eq!((found.matched, found.records.len(), found.partial), (500, 10, false));
        assert!(found.records.iter().all(|record| record.events.iter().next().is_none()));
        assert!(found.records.is_sorted_by_key(|record| Reverse(record.begun)));
        assert_eq!(recorder.kick(3).await, Kicked::Late);
        assert_eq!(recorder.kick(1000).await, Kicked::Unknown);
        let (record, partial) = recorder.find(3).await;
        assert!(record.is_some_and(|record| record.events.iter().count() == 2) && !partial);
    }
}

//! The machine against a seeded adversary that has the network, the clock and now and then a
//! client or a server of its own.
//!
//! A client that keeps to XEP-0124 talks to a server through the machine; the adversary reorders,
//! repeats, drops, delays, cuts, and moves the clock. After every wake-up the machine is held
//! against a model that knows nothing of how it works:
//!
//! - payloads are upstream exactly once, in rid order, as soon as their turn has come;
//! - an HTTP request is answered once, and only while it is there; a dead one gets nothing;
//! - answers leave in rid order, repeats get the very bytes of the first answer;
//! - no more than `hold` requests are held beyond `linger`, and none beyond `wait`;
//! - what the server said reaches the client once and in order, whatever was lost on the way, and
//!   nothing is forgotten before it was acknowledged;
//! - a session ends only for a reason, and then nothing is left of it.
//!
//! `BOSPHORUS_SEED=n cargo test --lib adversary` runs the one schedule `n`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use sha1::{Digest as _, Sha1};

use super::*;
use crate::proto::item::Kind;

const SCHEDULES: u64 = 10_000;
const EVENTS: usize = 200;
/// The first rid of a schedule.
const BASE: u64 = 1000;

/// BOSH-32, BOSH-35, BOSH-37, BOSH-38, BOSH-42 to BOSH-45, BOSH-48 to BOSH-50, BOSH-52 to BOSH-54,
/// BOSH-57, BOSH-76, BOSH-83, BOSH-88: the invariants above hold in every schedule.
#[test]
fn no_schedule_breaks_an_invariant() {
    if let Some(seed) = seed_from_outside() {
        World::new(seed, true).run();
        return;
    }
    let mut seen = BTreeSet::new();
    std::thread::scope(|scope| {
        let runs = [0, 1].map(|part| {
            scope.spawn(move || {
                let seeds = (part..SCHEDULES).step_by(2);
                seeds.flat_map(|seed| World::new(seed, false).run()).collect::<BTreeSet<_>>()
            })
        });
        for run in runs {
            seen.extend(run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    // The adversary has been everywhere.
    for corner in [
        "Payload",
        "WaitElapsed",
        "HoldExceeded",
        "Pause",
        "Replay",
        "Report",
        "Recoverable",
        "Terminate",
        "parked",
        "parked and dead",
        "dead and back",
        "taken back",
        "zombie",
        "Inactive",
        "Gap",
        "Closed",
        "Drain",
        "straggler",
        "ServerLost",
        "ServerClosed",
        "ServerBadXml",
        "BadRid",
        "BadKey",
        "BadPause",
        "BadFormat",
        "BadXml",
    ] {
        assert!(seen.contains(corner), "no schedule came to: {corner}");
    }
}

/// `SplitMix64`: small, seeded, and the same for ever.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T>(&mut self, from: &mut Vec<T>) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        let at = usize::try_from(self.below(from.len() as u64)).unwrap();
        Some(from.swap_remove(at))
    }
}

/// What a client asked for when it made its session.
#[derive(Clone, Copy, Debug)]
struct Profile {
    hold: u64,
    wait: u64,
    acks: bool,
    keys: bool,
    sm: bool,
}

impl Profile {
    fn requests(self) -> u64 {
        self.hold + 1
    }

    fn polls(self) -> bool {
        self.hold == 0 || self.wait == 0
    }

    fn held_at_most(self) -> usize {
        if self.polls() { 0 } else { usize::try_from(self.hold).unwrap() }
    }

    /// How long a request may stay open.
    fn patience(self) -> Duration {
        if self.polls() { LINGER } else { s(self.wait) }
    }
}

const LINGER: Duration = ms(10);
const INACTIVITY: Duration = s(75);
const PAUSE: u64 = 40;

/// A request as the client made it, and what became of it.
struct Sent {
    body: Body,
    repeats: u32,
    /// A copy of it has reached the machine.
    delivered: bool,
    /// The client has its response, or does not care for it any more.
    done: bool,
    abandoned: bool,
}

/// An HTTP request at the machine.
#[derive(Clone, Copy)]
struct Waiting {
    rid: u64,
    arrived: Instant,
}

struct World {
    seed: u64,
    verbose: bool,
    log: String,
    seen: BTreeSet<String>,
    dice: Dice,
    profile: Profile,
    keys: Vec<String>,
    session: Session,
    scratch: Scratch,
    out: Out,
    start: Instant,
    now: Instant,
    next_id: u64,

    // The client.
    sent: BTreeMap<u64, Sent>,
    next_rid: u64,
    next_up: u32,
    got: BTreeMap<u64, Vec<u32>>,

    // The network.
    rids: BTreeMap<u64, u64>,
    wires: Vec<(u64, Body)>,
    /// Copies of requests whose rid was answered to the client by way of another connection.
    stragglers: Vec<(u64, Body)>,
    responses: Vec<(u64, String)>,
    /// Connections that have ended, of which the machine has not heard.
    fins: BTreeSet<u64>,

    // What the machine was given, and what it gave.
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
    /// The same at the end of the last wake-up.
    last_before: u64,
    arrived: BTreeSet<u64>,
    upstream: Vec<u32>,
    said: u32,
    given: BTreeMap<u64, String>,
    next_down: u32,
    highest_answered: u64,
    taken_back: BTreeSet<u64>,
    assigned: Option<(u64, u64)>,
    confirmed: u64,
    over_since: Option<Instant>,
    idle_since: Option<Instant>,
    gap_since: BTreeMap<u64, Instant>,
    paused: bool,
    footer: bool,
    /// A rule was broken on purpose: how the session has to end.
    provoked: Option<Fault>,
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut dice = Dice(seed);
        let hold = [1, 1, 1, 2, 3, 0][usize::try_from(dice.below(6)).unwrap()];
        let wait = [55, 20, 5, 0][usize::try_from(dice.below(10)).unwrap().min(3)];
        let profile = Profile {
            hold,
            wait: if dice.chance(80) { wait.max(5) } else { wait },
            acks: dice.chance(50),
            keys: dice.chance(20),
            sm: dice.chance(20),
        };
        let keys = if profile.keys { chain(seed, EVENTS + 100) } else { Vec::new() };
        let settings = Settings {
            hold_max: 3,
            polling: Duration::ZERO,
            linger: LINGER,
            inactivity: INACTIVITY,
            polling_inactivity: INACTIVITY,
            response_elements: 5,
            ..settings()
        };
        let mut body = creation(|creation| {
            creation.hold = Some(u32::try_from(profile.hold).unwrap());
            creation.wait = Some(u32::try_from(profile.wait).unwrap());
        });
        body.rid = BASE;
        body.ack = profile.acks.then_some(Ack::Rid(1));
        if let Some(key) = keys.last() {
            body = body.newkey(key);
        }
        let now = first_instant();
        let sid = Sid::new(7, [7; 20]);
        let session = Session::create(Arc::new(settings), sid, RequestId(0), body, now).unwrap();
        let mut world = Self {
            seed,
            verbose,
            log: String::new(),
            seen: BTreeSet::new(),
            dice,
            profile,
            keys,
            session,
            scratch: Scratch::new(),
            out: Out::default(),
            start: now,
            now,
            next_id: 1,
            sent: BTreeMap::new(),
            next_rid: BASE + 1,
            next_up: 0,
            got: BTreeMap::new(),
            rids: [(0, BASE)].into(),
            wires: Vec::new(),
            stragglers: Vec::new(),
            responses: Vec::new(),
            fins: BTreeSet::new(),
            waiting: BTreeMap::new(),
            last: BASE,
            last_before: BASE,
            arrived: BTreeSet::new(),
            upstream: Vec::new(),
            said: 0,
            given: BTreeMap::new(),
            next_down: 0,
            highest_answered: BASE,
            taken_back: BTreeSet::new(),
            assigned: None,
            confirmed: BASE - 1,
            over_since: None,
            idle_since: Some(now),
            gap_since: BTreeMap::new(),
            paused: false,
            footer: false,
            provoked: None,
        };
        world.log_in();
        world
    }

    /// The creation is answered, and the server takes the client for one that is bound.
    fn log_in(&mut self) {
        let header = parse_header(HEADER);
        self.session.handle(
            Event::Connected { header: &header, secure: true, identified: false },
            &mut self.out,
            self.now,
        );
        let sm = "<enabled xmlns='urn:xmpp:sm:3' resume='true'/>";
        let login = format!("{FEATURES}{BOUND}{}", if self.profile.sm { sm } else { "" });
        let mut input = login.as_bytes();
        self.session.server_bytes(&mut self.scratch, &mut input, &mut self.out, self.now);
        self.session.handle(Event::Flush, &mut self.out, self.now);
        assert_eq!(self.out.responses.len(), 1);
        self.out = Out::default();
    }

    fn note(&mut self, what: &str) {
        let at = self.now.duration_since(self.start).as_millis();
        let _ = writeln!(self.log, "{at:>8} ms  {what}");
        if self.verbose {
            eprintln!("{at:>8} ms  {what}");
        }
    }

    #[track_caller]
    fn check(&self, holds: bool, rule: &str) {
        if !holds {
            let log: Vec<_> = self.log.lines().collect();
            let tail = log[log.len().saturating_sub(25)..].join("\n");
            panic!(
                "{rule}\n{:?}\nagain with: BOSPHORUS_SEED={} cargo test --lib adversary\n{tail}",
                self.profile, self.seed
            );
        }
    }

    /// Runs the schedule; what came to pass in it.
    fn run(mut self) -> BTreeSet<String> {
        let provocation = self.dice.chance(40).then(|| 20 + self.dice.below(EVENTS as u64 - 20));
        for n in 0..EVENTS as u64 {
            if provocation == Some(n) && self.session.ended().is_none() {
                self.provoke();
            } else {
                self.step();
            }
            if self.dice.chance(80) {
                self.wake_up();
            }
        }
        self.wake_up();
        if self.session.ended().is_none() {
            self.heal();
        }
        self.bury();
        self.seen
    }

    fn saw(&mut self, what: &str) {
        if !self.seen.contains(what) {
            self.seen.insert(what.to_owned());
        }
    }

    // ---- what may happen -------------------------------------------------------------------

    fn step(&mut self) {
        match self.dice.below(100) {
            0..=24 => self.client_sends(),
            25..=49 => self.deliver_request(),
            50..=61 => self.server_says(),
            62..=75 => self.deliver_response(),
            76..=80 => self.client_repeats(),
            81..=83 => self.drop_request(),
            84..=86 => self.lose_response(),
            87..=89 => self.cut(),
            90..=91 => self.deliver_fin(),
            92 => self.deliver_straggler(),
            93..=97 => {
                let time = match self.dice.below(20) {
                    0..=9 => ms(self.dice.below(20)),
                    10..=15 => ms(self.dice.below(3000)),
                    16..=18 => s(self.dice.below(15)),
                    _ => s(self.dice.below(60)),
                };
                self.advance(time);
            }
            98 => self.reload(),
            _ => {
                let deadline = self.session.deadline();
                if let Some(at) = deadline.filter(|at| *at > self.now) {
                    self.advance(at - self.now);
                }
            }
        }
    }

    fn lowest_missing(&self) -> u64 {
        let missing = self.sent.iter().find(|(_, sent)| !sent.done);
        missing.map_or(self.next_rid, |(rid, _)| *rid)
    }

    /// The client sends what it may: no more than `requests` beyond the last response it has.
    fn client_sends(&mut self) {
        let missing = self.lowest_missing();
        let rid = self.next_rid;
        let pauses = self.dice.chance(2);
        if rid >= missing + self.profile.requests() + u64::from(pauses) {
            return;
        }
        let mut body = body(rid);
        let parts = [0, 0, 1, 1, 2, 3][usize::try_from(self.dice.below(6)).unwrap()];
        for _ in 0..parts {
            let payload = format!("<message id='c{}'/>", self.next_up);
            self.next_up += 1;
            body.payload.bytes.extend_from_slice(payload.as_bytes());
            let len = u32::try_from(payload.len()).unwrap();
            body.payload.parts.push(Part { kind: Kind::Message, len, note: None });
        }
        if pauses {
            body.pause = Some(Ok(u32::try_from(PAUSE).unwrap()));
        }
        // XEP-0124 §9.2: no `ack` if all responses have come.
        if self.profile.acks && (missing < rid || self.dice.chance(50)) {
            body.ack = Some(Ack::Rid(missing - 1));
        }
        if let Some(key) = self.key(rid) {
            body = body.key(&key);
        }
        self.note(&format!(
            "client: rid {rid}, {parts} payloads, ack {:?}, pause {:?}",
            body.ack, body.pause
        ));
        self.next_rid += 1;
        let sent = Sent {
            body: body.clone(),
            repeats: 0,
            delivered: false,
            done: false,
            abandoned: false,
        };
        self.sent.insert(rid, sent);
        self.post(body);
    }

    fn key(&self, rid: u64) -> Option<String> {
        let used = usize::try_from(rid - BASE).unwrap() + 1;
        self.keys.len().checked_sub(used).map(|at| self.keys[at].clone())
    }

    fn post(&mut self, body: Body) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.rids.insert(id, body.rid);
        self.wires.push((id, body));
        id
    }

    /// A rid without a response, of a connection that is known to be dead or of one that is only
    /// slow.
    fn client_repeats(&mut self) {
        let missing = self.sent.iter().filter(|(_, sent)| !sent.done && sent.repeats < 8);
        let mut missing: Vec<_> = missing.map(|(rid, _)| *rid).collect();
        if let Some(rid) = self.dice.pick(&mut missing) {
            self.repeat(rid);
        }
    }

    fn repeat(&mut self, rid: u64) {
        let Some(sent) = self.sent.get_mut(&rid) else { return };
        sent.repeats += 1;
        let body = sent.body.clone();
        self.note(&format!("client: rid {rid} again"));
        self.post(body);
    }

    fn deliver_request(&mut self) {
        if let Some((id, body)) = self.dice.pick(&mut self.wires) {
            self.arrive(id, body);
        }
    }

    fn drop_request(&mut self) {
        if let Some((id, body)) = self.dice.pick(&mut self.wires) {
            self.note(&format!("network: request {id} (rid {}) is lost", body.rid));
        }
    }

    /// A connection ends; the machine hears of it later.
    fn cut(&mut self) {
        let mut open: Vec<_> = self.waiting.keys().copied().collect();
        if let Some(id) = self.dice.pick(&mut open) {
            self.note(&format!("network: connection {id} is cut"));
            self.fins.insert(id);
        }
    }

    fn deliver_fin(&mut self) {
        // What was answered meanwhile is not waiting any more.
        self.wake_up();
        let mut fins: Vec<_> = self.fins.iter().copied().collect();
        if let Some(id) = self.dice.pick(&mut fins) {
            self.gone(id);
        }
    }

    /// A copy is read at last, and behind it the end of its connection.
    fn deliver_straggler(&mut self) {
        self.wake_up();
        let keep = 2 * self.profile.requests().max(2);
        let forgotten = match self.profile.acks {
            true => self.confirmed,
            false => self.highest_answered.saturating_sub(keep),
        };
        let at = self.stragglers.iter().position(|(_, body)| body.rid <= forgotten);
        let Some(at) = at.filter(|_| self.session.ended().is_none()) else { return };
        let (id, body) = self.stragglers.swap_remove(at);
        self.note(&format!("machine: request {id} (rid {}), long answered", body.rid));
        let id = RequestId(id);
        self.session.handle(Event::Request { id, body }, &mut self.out, self.now);
        self.session.handle(Event::Gone { id }, &mut self.out, self.now);
        let told = self.out.responses.iter().any(|respond| respond.id == id);
        self.check(!told, "a dead request was given an answer");
        self.check(self.session.ended().is_none(), "a copy that came late ended the session");
        self.saw("straggler");
    }

    fn gone(&mut self, id: u64) {
        if !self.waiting.contains_key(&id) && self.rids[&id] < self.last.saturating_sub(1) {
            // A response that cannot be handed over is noticed soon, or not at all.
            self.fins.remove(&id);
            return;
        }
        self.note(&format!("machine: connection {id} is gone"));
        self.fins.remove(&id);
        if self.waiting.remove(&id).is_some_and(|waiting| waiting.rid > self.last) {
            self.saw("parked and dead");
        }
        self.session.handle(Event::Gone { id: RequestId(id) }, &mut self.out, self.now);
        if let Some((assigned, rid)) = self.assigned
            && assigned == id
            && self.session.ended().is_none()
        {
            // It never left, so its payloads may go with another.
            let numbers = numbers(self.given.remove(&rid).as_deref().unwrap_or_default());
            self.next_down -= u32::try_from(numbers.len()).unwrap();
            self.taken_back.insert(rid);
            self.assigned = None;
            self.saw("taken back");
        }
    }

    /// The page is loaded anew: nothing that the machine has got is asked for again.
    fn reload(&mut self) {
        self.note("client: reload");
        for sent in self.sent.values_mut().filter(|sent| !sent.done && sent.delivered) {
            sent.done = true;
            sent.abandoned = true;
        }
        self.fins.extend(self.waiting.keys());
        self.wires.retain(|(_, body)| self.sent.get(&body.rid).is_some_and(|sent| !sent.done));
        self.responses.clear();
    }

    fn server_says(&mut self) {
        if self.session.ended().is_some() {
            return;
        }
        let count = 1 + self.dice.below(4) as u32;
        let mut text = String::new();
        for n in self.said..self.said + count {
            let _ = write!(text, "<message xmlns='jabber:client' id='s{n}'/>");
        }
        self.said += count;
        self.note(&format!("server: up to s{}", self.said - 1));
        let mut input = text.as_bytes();
        self.session.server_bytes(&mut self.scratch, &mut input, &mut self.out, self.now);
        self.check(input.is_empty(), "SEC-17: the server was not read although there was room");
    }

    fn lose_response(&mut self) {
        if let Some((id, _)) = self.dice.pick(&mut self.responses) {
            self.note(&format!("network: the response to {id} is lost"));
        }
    }

    fn deliver_response(&mut self) {
        let Some((id, text)) = self.dice.pick(&mut self.responses) else { return };
        let rid = self.rids[&id];
        self.note(&format!("client: has {id} (rid {rid})"));
        let Some(sent) = self.sent.get_mut(&rid) else { return };
        if text.contains("type='") || sent.abandoned {
            return;
        }
        sent.done = true;
        // What is under way of it is given up. That may be read all the same, when its rid has long
        // been forgotten (BOSH-47).
        let (late, wires) = self.wires.drain(..).partition(|(_, body)| body.rid == rid);
        self.wires = wires;
        self.stragglers.extend::<Vec<_>>(late);
        let numbers = numbers(&text);
        if let Some(before) = self.got.insert(rid, numbers.clone()) {
            self.check(before == numbers, "BOSH-44: a repeat got something else");
        }
    }

    // ---- the clock -------------------------------------------------------------------------

    fn advance(&mut self, time: Duration) {
        self.wake_up();
        let end = self.now + time;
        loop {
            let next = self.session.deadline().filter(|at| *at <= end);
            // Now and then a wake-up comes late.
            let late = self.dice.chance(10);
            self.now = next.filter(|_| !late).unwrap_or(end).max(self.now);
            for n in 0.. {
                self.check(n < 6, "the deadline does not move");
                if self.session.deadline().is_none_or(|at| at > self.now) {
                    break;
                }
                self.session.handle(Event::Deadline, &mut self.out, self.now);
                self.wake_up();
            }
            if self.now == end {
                return;
            }
        }
    }

    // ---- the machine and its model -----------------------------------------------------------

    /// A request reaches the machine.
    fn arrive(&mut self, id: u64, body: Body) {
        let rid = body.rid;
        self.note(&format!("machine: request {id} (rid {rid})"));
        let alive = self.session.ended().is_none();
        let is_answered = |id: u64| self.out.responses.iter().any(|respond| respond.id.0 == id);
        let older =
            self.waiting.iter().find(|(id, waiting)| waiting.rid == rid && !is_answered(**id));
        let older = older.map(|(id, _)| *id);
        let is_repeat = rid <= self.last || self.arrived.contains(&rid);
        let kept = self.given.get(&rid).cloned();
        let is_overtaken = rid < self.last;
        let is_pause = body.pause.is_some();
        let ack = body.ack;
        if let Some(sent) = self.sent.get_mut(&rid) {
            sent.delivered = true;
        }
        self.waiting.insert(id, Waiting { rid, arrived: self.now });
        let before = self.out.responses.len();
        self.session.handle(Event::Request { id: RequestId(id), body }, &mut self.out, self.now);
        if !alive {
            return;
        }
        if is_repeat {
            self.check(self.session.ended().is_none(), "BOSH-44: a repeat ended the session");
            let new = &self.out.responses[before..];
            let told = new.iter().map(|respond| (respond.id.0, respond.why)).collect::<Vec<_>>();
            if let Some(older) = older {
                self.check(told == [(older, Why::Recoverable)], "BOSH-45: the older one is told");
            } else if kept.is_some() || is_overtaken {
                self.check(told == [(id, Why::Replay)], "BOSH-44: a kept response is given again");
            } else {
                self.saw("dead and back");
            }
            return;
        }
        self.gap_since.entry(rid).or_insert(self.now);
        self.arrived.insert(rid);
        while self.arrived.contains(&(self.last + 1)) {
            self.last += 1;
            self.gap_since.remove(&self.last);
        }
        if rid <= self.last && self.profile.acks {
            // What this request, and those that waited for it, confirm.
            for rid in rid..=self.last {
                let own = self.sent.get(&rid).map_or(ack, |sent| sent.body.ack);
                let confirmed = match own {
                    Some(Ack::Rid(confirmed)) => confirmed,
                    _ => rid - 1,
                };
                self.confirmed = self.confirmed.max(confirmed.min(self.highest_answered));
            }
            if self.assigned.is_some_and(|(_, rid)| rid <= self.confirmed) {
                self.assigned = None;
            }
        }
        if rid > self.last {
            self.saw("parked");
        }
        self.paused |= is_pause;
    }

    /// The end of a wake-up: everything the machine said is looked at.
    fn wake_up(&mut self) {
        // A response that cannot be handed over is told at once, and may bring forth another.
        for _ in 0..100 {
            self.session.handle(Event::Flush, &mut self.out, self.now);
            let out = std::mem::take(&mut self.out);
            self.look_upstream(&out.server);
            let failed: Vec<u64> =
                out.responses.into_iter().filter_map(|respond| self.look_at(respond)).collect();
            if failed.is_empty() {
                break;
            }
            for id in failed {
                self.gone(id);
            }
        }
        self.last_before = self.last;
        self.look_around();
    }

    /// One response; its id if it cannot be handed over.
    fn look_at(&mut self, respond: super::super::session::Respond) -> Option<u64> {
        let id = respond.id.0;
        let text = String::from_utf8(respond.reply.body.to_vec()).unwrap();
        self.note(&format!("machine: answers {id}: {:?} {:?}", respond.why, numbers(&text)));
        let waiting = self.waiting.remove(&id);
        self.check(waiting.is_some(), "a request that was not waiting was answered");
        self.saw(&format!("{:?}", respond.why));
        let rid = waiting?.rid;
        match respond.why {
            Why::Replay => {
                if let Some(first) = self.given.insert(rid, text.clone()) {
                    self.check(first == text, "BOSH-44: the kept bytes have changed");
                } else {
                    self.check(numbers(&text).is_empty(), "BOSH-48: the dead were given something");
                }
                if self.assigned.is_some_and(|(_, assigned)| assigned == rid) {
                    self.assigned = None;
                }
            }
            Why::Recoverable => {
                self.check(text.contains("type='error'"), "BOSH-45: a recoverable error");
            }
            Why::Terminate => {
                self.check(self.session.ended().is_some(), "the end of what has not ended");
                self.look_at_numbers(&text);
            }
            Why::Created
            | Why::Payload
            | Why::WaitElapsed
            | Why::HoldExceeded
            | Why::Pause
            | Why::Report => {
                self.check(rid <= self.last, "BOSH-35: a parked request was answered");
                let is_back = self.taken_back.remove(&rid);
                self.check(
                    rid > self.highest_answered || is_back,
                    "BOSH-35: answers leave in rid order",
                );
                // It may have been written before the last of this wake-up came.
                let possible = self.last_before.max(rid)..=self.last;
                let fits = match ack(&text) {
                    Some(ack) => ack != rid && possible.contains(&ack),
                    None => rid == *possible.start(),
                };
                self.check(fits, "BOSH-53: ack is the highest rid without gaps, unless it is this");
                let carries = self.look_at_numbers(&text);
                self.check(
                    carries <= 5 && (respond.why != Why::Pause || carries == 0),
                    "BOSH-41, BOSH-58: too much in a body",
                );
                let twice = self.given.insert(rid, text.clone()).is_some();
                self.check(!twice, "a rid was answered twice");
                self.highest_answered = self.highest_answered.max(rid);
                // The next to be forced out has its own `linger`.
                self.over_since = None;
                if carries > 0 {
                    self.assigned = Some((id, rid));
                }
            }
        }
        if self.fins.contains(&id) {
            // It is written into a connection that has ended. Whether that is noticed, and when, is
            // the network's to say.
            match self.dice.below(4) {
                0 => return Some(id),
                1 => {}
                _ => {
                    self.fins.remove(&id);
                }
            }
            return None;
        }
        self.responses.push((id, text));
        None
    }

    /// What the server said, in a response that was not given before.
    fn look_at_numbers(&mut self, text: &str) -> usize {
        let numbers = numbers(text);
        for number in &numbers {
            self.check(
                *number == self.next_down,
                "what the server said is given once, in order, with nothing left out",
            );
            self.next_down += 1;
        }
        numbers.len()
    }

    fn look_upstream(&mut self, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).unwrap();
        self.check(!text.contains("hostile"), "something of a refused request went up");
        self.check(!self.footer || text.is_empty(), "something followed the stream's end");
        self.footer |= text.contains(FOOTER);
        let ups = text.split("<message id='c").skip(1);
        let ups: Vec<u32> =
            ups.map(|rest| rest[..rest.find('\'').unwrap()].parse().unwrap()).collect();
        self.upstream.extend(ups);
    }

    /// What has to hold whenever a wake-up is over.
    fn look_around(&mut self) {
        let expected: Vec<u32> = (BASE + 1..=self.last)
            .filter_map(|rid| self.sent.get(&rid))
            .flat_map(|sent| payloads(&sent.body))
            .collect();
        let is_alive = self.session.ended().is_none();
        self.check(
            if is_alive { self.upstream == expected } else { expected.starts_with(&self.upstream) },
            "BOSH-32, BOSH-42: payloads go up once, in rid order, when their turn comes",
        );
        self.check(self.session.held_bytes() < 65_536, "the session grows");
        if !is_alive {
            self.look_at_end();
            return;
        }
        self.check(self.provoked.is_none(), "a broken rule did not end the session");
        let opened = self.waiting.values().filter(|waiting| waiting.rid <= self.last);
        let patience = self.profile.patience();
        self.check(
            opened.clone().all(|waiting| self.now < waiting.arrived + patience),
            "BOSH-38: a request is held beyond wait",
        );
        let excess = opened.count().saturating_sub(self.profile.held_at_most());
        self.check(excess <= 1, "BOSH-37: more than one too many are held");
        if excess == 0 {
            self.over_since = None;
        } else if !self.profile.polls() {
            let since = *self.over_since.get_or_insert(self.now);
            self.check(self.now < since + LINGER, "BOSH-37: too many are held beyond linger");
        }
        // BOSH-40: what waits leaves with the next request.
        let can_carry = self.waiting.values().any(|waiting| waiting.rid <= self.last);
        self.check(
            !can_carry || self.next_down == self.said,
            "BOSH-39, BOSH-40: data waits although a request is open",
        );
        if self.waiting.is_empty() {
            self.idle_since.get_or_insert(self.now);
        } else {
            self.idle_since = None;
        }
        let at = self.session.deadline();
        self.check(at.is_some_and(|at| at > self.now), "a living session has a deadline");
    }

    /// A session ends for a reason, and everybody is told.
    fn look_at_end(&mut self) {
        let fault = self.session.ended().unwrap();
        if fault != Fault::Closed {
            self.check(self.waiting.is_empty(), "BOSH-76: a request was left behind");
        }
        let since = |at: Option<Instant>| at.map(|at| self.now.duration_since(at));
        let fits = match (self.provoked, fault) {
            (Some(provoked), fault) => fault == provoked,
            (None, Fault::Inactive) => {
                let least = if self.paused { s(PAUSE) } else { INACTIVITY };
                since(self.idle_since).is_some_and(|time| time >= least)
            }
            (None, Fault::Gap) => {
                let gap = since(self.gap_since.values().min().copied());
                gap.is_some_and(|time| time >= s(self.profile.wait) + s(30))
            }
            (None, _) => false,
        };
        self.check(fits, &format!("{fault:?} is no reason to end (provoked: {:?})", self.provoked));
        if self.profile.sm && matches!(fault, Fault::Inactive | Fault::Drain) {
            self.check(!self.footer, "SM-04: a stream end although the client uses SM");
        }
        self.provoked = Some(fault);
        self.saw(&format!("{fault:?}"));
        if self.session.is_zombie() {
            self.saw("zombie");
        }
    }

    // ---- rules broken on purpose -------------------------------------------------------------

    fn provoke(&mut self) {
        self.wake_up();
        if self.session.ended().is_some() {
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let next = self.last + 1;
        let kind = self.dice.below(14);
        let proper = |body: Body| match self.key(body.rid) {
            Some(key) => body.key(&key),
            None => body,
        };
        let hostile = |body: Body| body.say("<message id='hostile'/>");
        let (fault, request) = match kind {
            0 => (Fault::BadRid, hostile(body(self.last + self.profile.requests() + 1))),
            1 => (Fault::BadRid, hostile(body(BASE - 1))),
            2 => (Fault::BadKey, hostile(body(next).key("0"))),
            3 => (Fault::BadPause, hostile(proper(body(next).pause(100_000)))),
            4 => (Fault::BadFormat, hostile(proper(body(next).restart()))),
            5 => (
                Fault::BadFormat,
                hostile(proper(body(next)))
                    .say("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>"),
            ),
            6 => (Fault::Closed, proper(body(next).terminate())),
            7 => {
                let event = Event::Unreadable {
                    id: RequestId(id),
                    rid: None,
                    fault: Fault::BadXml,
                    limit: None,
                };
                self.waiting.insert(id, Waiting { rid: u64::MAX, arrived: self.now });
                self.rids.insert(id, u64::MAX);
                self.provoked = Some(Fault::BadXml);
                self.session.handle(event, &mut self.out, self.now);
                return;
            }
            8 | 9 => {
                // Another payload under a rid that was taken.
                let rid = self.last;
                if self.arrived.contains(&rid) && self.sent[&rid].repeats < 9 {
                    let mut body = hostile(proper(body(rid)));
                    body.pause = self.sent[&rid].body.pause;
                    self.sent.get_mut(&rid).unwrap().repeats += 1;
                    self.note("adversary: another payload under the same rid");
                    self.rids.insert(id, rid);
                    self.arrive(id, body);
                }
                return;
            }
            10 => {
                self.provoked = Some(Fault::Drain);
                self.session.handle(Event::Drain, &mut self.out, self.now);
                return;
            }
            11 => {
                self.provoked = Some(Fault::ServerLost);
                self.session.handle(Event::ServerGone, &mut self.out, self.now);
                return;
            }
            12 => {
                self.provoked = Some(Fault::ServerClosed);
                let mut input = FOOTER.as_bytes();
                self.session.server_bytes(&mut self.scratch, &mut input, &mut self.out, self.now);
                return;
            }
            _ => {
                self.provoked = Some(Fault::ServerBadXml);
                let mut input = &b"</message>"[..];
                self.session.server_bytes(&mut self.scratch, &mut input, &mut self.out, self.now);
                return;
            }
        };
        self.note(&format!("adversary: {fault:?} by rid {}", request.rid));
        self.provoked = Some(fault);
        self.rids.insert(id, request.rid);
        self.waiting.insert(id, Waiting { rid: request.rid, arrived: self.now });
        if fault == Fault::Closed {
            self.last = next;
        }
        let event = Event::Request { id: RequestId(id), body: request };
        self.session.handle(event, &mut self.out, self.now);
        if fault == Fault::Closed {
            return;
        }
        if kind == 1 {
            // It is not known at once whether anybody waits for this answer.
            let until = self.now + ms(250);
            let late = self.session.deadline().is_some_and(|at| at <= until);
            self.check(late && self.out.responses.is_empty(), "BOSH-47: too old for ever");
            self.now = until;
            self.session.handle(Event::Deadline, &mut self.out, self.now);
        }
        let told: Vec<_> = self.out.responses.iter().filter(|r| r.id.0 == id).collect();
        let condition = term(fault.condition().unwrap().name());
        self.check(
            told.len() == 1 && {
                let body = std::str::from_utf8(&told[0].reply.body).unwrap();
                without_reason(body).0 == condition
            },
            "BOSH-76: the culprit is told its condition",
        );
    }

    // ---- the end -----------------------------------------------------------------------------

    /// The network is repaired: the client gets everything that it has not, and nothing twice.
    fn heal(&mut self) {
        self.note("network: repaired");
        for _ in 0..60 {
            while let Some(id) = self.fins.first().copied() {
                self.gone(id);
            }
            while !self.wires.is_empty() {
                self.deliver_request();
            }
            self.wake_up();
            while !self.responses.is_empty() {
                self.deliver_response();
            }
            let answered = |sent: &Sent| sent.done;
            if self.next_down == self.said && self.sent.values().all(answered) {
                break;
            }
            if self.session.ended().is_some() {
                return;
            }
            let waits = |rid: u64| self.waiting.values().any(|waiting| waiting.rid == rid);
            let lost = self.sent.iter().find(|(rid, sent)| !sent.done && !waits(**rid));
            if let Some((&rid, sent)) = lost {
                if sent.repeats >= 10 {
                    // BOSH-46 stands in the way.
                    return;
                }
                self.repeat(rid);
            } else {
                self.client_sends();
                self.advance(ms(20));
                if self.next_rid >= self.lowest_missing() + self.profile.requests() {
                    self.advance(self.profile.patience());
                }
            }
        }
        if self.session.ended().is_some() {
            return;
        }
        let all = self.sent.iter().flat_map(|(rid, sent)| {
            let text = if sent.abandoned {
                self.given.get(rid).map(|text| numbers(text))
            } else {
                self.got.get(rid).cloned()
            };
            text.unwrap_or_default()
        });
        let all: Vec<u32> = all.collect();
        self.check(
            all == (0..self.said).collect::<Vec<_>>(),
            &format!("the client has {all:?} of 0..{}", self.said),
        );
    }

    /// The client is gone: so is the session, after its time.
    fn bury(&mut self) {
        self.wires.clear();
        while let Some(id) = self.fins.first().copied() {
            self.gone(id);
        }
        // Each of answer, inactivity and the server's grace may be noticed late.
        for _ in 0..4 {
            self.advance(s(300));
        }
        self.check(self.session.is_over(), "the session outlives its client");
        self.check(self.waiting.is_empty(), "a request was never answered");
        self.check(self.session.deadline().is_none(), "a deadline of nothing");
        self.check(self.session.held_bytes() < 1024, "the dead hold memory");
    }
}

/// The numbers of the server's messages in a body.
fn numbers(text: &str) -> Vec<u32> {
    let rest = text.split("<message xmlns='jabber:client' id='s").skip(1);
    rest.map(|rest| rest[..rest.find('\'').unwrap()].parse().unwrap()).collect()
}

/// The value of `ack`.
fn ack(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(" ack='")?;
    Some(rest[..rest.find('\'').unwrap()].parse().unwrap())
}

/// The numbers of a client's messages in a request.
fn payloads(body: &Body) -> Vec<u32> {
    let text = std::str::from_utf8(&body.payload.bytes).unwrap();
    let rest = text.split("<message id='c").skip(1);
    rest.map(|rest| rest[..rest.find('\'').unwrap()].parse().unwrap()).collect()
}

/// XEP-0124 §15.3: a sequence of keys; the last is the first `newkey`.
fn chain(seed: u64, length: usize) -> Vec<String> {
    let mut keys = Vec::with_capacity(length);
    let mut key = seed.to_string();
    for _ in 0..length {
        let digest: [u8; 20] = Sha1::digest(key.as_bytes()).into();
        key.clear();
        for byte in digest {
            let _ = write!(key, "{byte:02x}");
        }
        keys.push(key.clone());
    }
    keys
}

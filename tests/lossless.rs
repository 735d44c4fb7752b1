//! Nothing lost, nothing doubled, nothing reordered: two users write each other thousands of
//! numbered messages through a real server. One is on BOSH, and every tenth of its HTTP connections
//! is cut at a random byte of the request, behind it, or in the answer, whereupon the same rid is
//! sent again, at once or behind a later one; the other is on a WebSocket.
//!
//! - `BOSPHORUS_MESSAGES`: messages each way (2,000; a full run is 10,000)
//! - `BOSPHORUS_SEED`: of all that is random; printed
//! - `BOSPHORUS_CUTS`: one connection of so many is cut (10); 0 cuts none
//! - `BOSPHORUS_PARITY=direct`: Prosody's own endpoint, which is not up to cuts: there are none

mod common;

use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use common::bosh::Cuts;
use common::client::{Client, Endpoint, Transport, body_of, escape};
use common::gateway::Gateway;
use common::random::Random;
use common::server::{Kind, Server};
use common::{Result, block_on, in_ci};

/// How many messages one may be ahead of what the other has read. Enough that some are always
/// underway, few enough that no queue of anybody fills.
const AHEAD: usize = 60;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let plan = match Plan::from_environment() {
        Ok(plan) => plan,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("BOSPHORUS_SEED={} {plan:?}", plan.seed);
    let trials = Kind::ALL
        .into_iter()
        .map(|kind| {
            // Two requests that overtake each other on their way wait for each other there.
            let stuck = (plan.direct && kind == Kind::Ejabberd)
                .then(|| "ejabberd's own endpoint gets stuck on overtaken requests".to_owned());
            let missing = kind.missing().or(stuck);
            let skipped = missing.is_some() && (plan.direct || !in_ci());
            let run = move || {
                let result =
                    missing.map_or_else(|| block_on(lossless(kind, plan)), |why| Err(anyhow!(why)));
                result.map_err(|error| Failed::from(format!("seed {}: {error:#}", plan.seed)))
            };
            Trial::test(format!("lossless: {}", kind.name()), run).with_ignored_flag(skipped)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What is run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    messages: usize,
    cuts: usize,
    direct: bool,
}

impl Plan {
    fn from_environment() -> Result<Self> {
        fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
            let Ok(text) = std::env::var(name) else { return Ok(default) };
            text.parse().map_err(|_| anyhow!("{name} is not a number: {text}"))
        }
        let direct = std::env::var("BOSPHORUS_PARITY").is_ok_and(|value| value == "direct");
        Ok(Self {
            seed: number("BOSPHORUS_SEED", 1)?,
            messages: number("BOSPHORUS_MESSAGES", 2000)?,
            cuts: number("BOSPHORUS_CUTS", if direct { 0 } else { 10 })?,
            direct,
        })
    }
}

/// Scenario: BOSH-32, BOSH-43, BOSH-44, BOSH-48, BOSH-49 and BOSH-50 together, so that UP-33 holds
/// for a client whose connections break.
async fn lossless(kind: Kind, plan: Plan) -> Result {
    let server = Server::shared(kind)?;
    let gateway = if plan.direct { None } else { Some(Gateway::in_front_of(&[&server])?) };
    let endpoint = |transport| Endpoint {
        url: gateway
            .as_ref()
            .map_or_else(|| server.url(transport), |gateway| gateway.url(transport)),
        transport,
    };
    let alice = Client::online(&endpoint(Transport::Bosh), &server.account()).await?;
    let bob = Client::online(&endpoint(Transport::Ws), &server.account()).await?;
    let mut random = Random::new(plan.seed);
    let (mut alice, mut bob) = (
        Side { client: alice, name: "alice", sent: 0, read: 0 },
        Side { client: bob, name: "bob", sent: 0, read: 0 },
    );
    if plan.cuts > 0 {
        let cuts = alice.client.cuts().context("alice is on BOSH")?;
        *cuts = Some(Cuts::new(random.next(), plan.cuts));
    }
    let exchanged = exchange(&mut alice, &mut bob, &mut random, plan).await;
    exchanged.with_context(|| {
        let progress =
            |side: &Side| format!("{}: {} sent, {} read", side.name, side.sent, side.read);
        let log = gateway.as_ref().map(|gateway| gateway.log_tail(40)).unwrap_or_default();
        format!("{}; {}\n{log}", progress(&alice), progress(&bob))
    })?;
    if let Some(Some(cuts)) = alice.client.cuts() {
        let Cuts { done, late, .. } = cuts;
        println!(
            "{}: cut {} connections in the request, {} behind it, {} in the answer; {late} repeated \
             behind a later rid",
            kind.name(),
            done[0],
            done[1],
            done[2]
        );
        // A test without cuts would say nothing.
        let enough = plan.messages < 500 || done.iter().all(|&count| count > 5) && *late > 5;
        ensure!(enough, "too few connections were cut");
    }
    Ok(())
}

/// One of the two.
struct Side {
    client: Client,
    name: &'static str,
    sent: usize,
    /// How many of the other's messages it has read.
    read: usize,
}

impl Side {
    /// Writes the next `count` messages, in one BOSH body or in one WebSocket message each.
    async fn write(&mut self, to: &str, count: usize, together: bool, seed: u64) -> Result {
        let mut xml = Vec::new();
        for number in self.sent..self.sent + count {
            xml.push(format!(
                "<message xmlns=\"jabber:client\" type=\"chat\" to=\"{}\"><body>{}</body></message>",
                escape(to),
                body(seed, self.name, number)
            ));
        }
        self.sent += count;
        if together {
            return self.client.send(&xml.concat()).await;
        }
        for message in xml {
            self.client.send(&message).await?;
        }
        Ok(())
    }

    /// Reads that many of the other's messages, each of which has to be the next one.
    async fn take(&mut self, from: &str, count: usize, seed: u64) -> Result {
        for _ in 0..count {
            let came = self.client.body().await?;
            let expected = body(seed, from, self.read);
            ensure!(came == expected, "{} read {came:?} instead of {expected:?}", self.name);
            self.read += 1;
        }
        Ok(())
    }
}

async fn exchange(alice: &mut Side, bob: &mut Side, random: &mut Random, plan: Plan) -> Result {
    let (alice_jid, bob_jid) = (alice.client.jid.clone(), bob.client.jid.clone());
    while alice.read < plan.messages || bob.read < plan.messages {
        let some =
            |random: &mut Random, side: &Side| (1 + random.below(8)).min(plan.messages - side.sent);
        let count = some(random, alice);
        if count > 0 && alice.sent - bob.read < AHEAD {
            let together = random.once_in(2);
            alice.write(&bob_jid, count, together, plan.seed).await?;
        }
        let count = some(random, bob);
        if count > 0 && bob.sent - alice.read < AHEAD {
            bob.write(&alice_jid, count, false, plan.seed).await?;
        }
        let some = |random: &mut Random, underway: usize, written: bool| match written {
            true => underway,
            false => random.below(underway + 1),
        };
        let count = some(random, alice.sent - bob.read, alice.sent == plan.messages);
        alice.client.repeat_lost().await?;
        bob.take("alice", count, plan.seed).await?;
        let count = some(random, bob.sent - alice.read, bob.sent == plan.messages);
        alice.take("bob", count, plan.seed).await?;
    }
    for side in [alice, bob] {
        side.client.expect_none("a message came twice", |it| body_of(it).is_some()).await?;
    }
    Ok(())
}

/// The text of a message: who, which, a number that belongs to it alone, and more or less else.
fn body(seed: u64, name: &str, number: usize) -> String {
    let own = name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
    let mut random = Random::new(own ^ (number as u64) << 20);
    let check = random.next();
    format!("{name} {number} {check:016x} {}", "ğüş".repeat(random.below(40)))
}

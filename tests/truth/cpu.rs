//! The processor time of each transport, which is estimated, against what the kernel says that the
//! whole process has taken.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::Way;
use super::common::client::Transport;
use super::common::gateway::Gateway;
use super::common::peer::Peer;
use super::common::scene::message;
use super::common::{Result, block_on};
use super::pki::Ca;
use super::quantiles::{front, gateway, log_in};

/// Messages each way, one after the other.
const MESSAGES: usize = 8000;
/// The share of the process's time that is told by transport. Less than all of it, since the event
/// loops are nobody's; more, perhaps, since it is estimated.
const EXPLAINED: std::ops::RangeInclusive<f64> = 0.5..=1.15;

/// Seconds of a processor that the process has taken, in user and kernel mode.
fn taken(gateway: &Gateway) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/stat", gateway.id()?))?;
    let (_, fields) = text.rsplit_once(") ").context("no name")?;
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>()?;
    // The kernel shows hundredths to every program.
    Ok(ticks as f64 / 100.0)
}

/// What the gateway says, by transport.
fn told(gateway: &Gateway) -> Result<[f64; 4]> {
    let mut told = [0.0; 4];
    let transports = ["websocket", "websocket_legacy", "bosh", "none"];
    for (told, transport) in told.iter_mut().zip(transports) {
        let sample = format!("bosphorus_cpu_seconds_total{{transport=\"{transport}\"}}");
        *told = gateway.metric(&sample)?;
    }
    Ok(told)
}

/// Under load the transports together explain what the process takes, each one what is done over it,
/// and BOSH takes more than a WebSocket for the same.
#[test]
fn processor_time_is_told_by_transport() -> Result {
    block_on(async {
        let ca = Ca::new();
        let mut table = format!(
            "{:<31} {:>8} {:>9} {:>9} {:>9} {:>9}\n",
            "processor time", "elements", "ms told", "ms taken", "explained", "µs each"
        );
        let mut times = Vec::new();
        for way in Way::all().iter().filter(|way| way.transport != Transport::WsLegacy) {
            let peer = Peer::new().await?;
            let (gateway, to) = gateway(way, &peer.toml(), &ca)?;
            let (endpoint, _multiplexer) = front(way, &ca, to).await?;
            let slot = if way.transport == Transport::Bosh { 2 } else { 0 };
            let (mut client, mut link) = log_in(&endpoint, &peer, Duration::ZERO).await?;
            let (told_before, taken_before) = (told(&gateway)?, taken(&gateway)?);
            for _ in 0..MESSAGES {
                client.message("b@example.test/r", "up").await?;
                link.until("</message>").await?;
                link.write(&message("down")).await?;
                ensure!(client.body().await? == "down");
            }
            let (told_after, taken) = (told(&gateway)?, taken(&gateway)? - taken_before);
            let mut time = told_after;
            time.iter_mut().zip(told_before).for_each(|(after, before)| *after -= before);
            let all: f64 = time.iter().sum();
            let explained = all / taken;
            let name = way.name();
            table += &format!(
                "{name:<31} {:>8} {:>9.0} {:>9.0} {:>8.0}% {:>9.1}\n",
                2 * MESSAGES,
                time[slot] * 1e3,
                taken * 1e3,
                explained * 100.0,
                time[slot] * 1e6 / (2 * MESSAGES) as f64
            );
            ensure!(EXPLAINED.contains(&explained), "{all} s are told, {taken} s taken\n{table}");
            // Nothing is done over the others.
            ensure!(time[slot] > 0.9 * all, "{name}: {time:?}");
            times.push((way.tls, slot, time[slot]));
        }
        println!("{table}");
        for (secure, slot, bosh) in &times {
            let websocket = times.iter().find(|(tls, slot, _)| tls == secure && *slot == 0);
            let websocket = websocket.map(|(.., time)| *time).context("no WebSocket")?;
            ensure!(*slot == 0 || *bosh > websocket, "BOSH takes less: {bosh} s, {websocket} s");
        }
        Ok(())
    })
}

//! Who asks for sessions that are not there, and how often (BOSH-91).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::session::worker::network;

const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted at a time. When there are more, the new ones go uncounted: a limit
/// that can be filled up is better than memory that can.
const ADDRESSES: usize = 4096;

/// Requests for unknown sessions by address, in windows of a minute.
#[derive(Debug)]
pub struct Strangers {
    per_minute: u32,
    counts: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl Strangers {
    /// Lets `per_minute` of them through from each address.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, counts: Mutex::default() }
    }

    /// Counts one of `address` at `now`; whether it is one of those let through.
    pub(super) fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let network = network(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= ADDRESSES && !counts.contains_key(&network) {
            counts.retain(|_, (since, _)| *since + WINDOW > now);
            if counts.len() >= ADDRESSES {
                return true;
            }
        }
        let (since, count) = counts.entry(network).or_insert((now, 0));
        if *since + WINDOW <= now {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.per_minute
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::timer::clock;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// BOSH-91: the 21st within a minute is one too many, for its address (a /64 in IPv6) alone.
    #[test]
    fn the_one_too_many_is_refused() {
        let (strangers, now) = (Strangers::new(20), clock());
        for _ in 0..20 {
            assert!(strangers.admit(address("192.0.2.1"), now));
        }
        assert!(!strangers.admit(address("192.0.2.1"), now + Duration::from_secs(59)));
        assert!(strangers.admit(address("192.0.2.2"), now));
        assert!(strangers.admit(address("192.0.2.1"), now + WINDOW));
        for n in 0..20 {
            assert!(strangers.admit(address(&format!("2001:db8::{n}")), now));
        }
        assert!(!strangers.admit(address("2001:db8::99"), now));
        assert!(strangers.admit(address("2001:db8:0:1::1"), now));
    }

    /// Everything is bounded: more addresses than are counted are let through, until there is room.
    #[test]
    fn the_table_is_bounded() {
        let (strangers, now) = (Strangers::new(1), clock());
        for n in 0..ADDRESSES as u32 {
            assert!(strangers.admit(IpAddr::from(n.to_be_bytes()), now));
        }
        let late = address("192.0.2.1");
        for _ in 0..3 {
            assert!(strangers.admit(late, now));
        }
        assert_eq!(strangers.counts.lock().unwrap().len(), ADDRESSES);
        assert!(!strangers.admit(address("0.0.0.1"), now), "those in it are still counted");
        assert!(strangers.admit(late, now + WINDOW));
        assert!(!strangers.admit(late, now + WINDOW));
        assert_eq!(strangers.counts.lock().unwrap().len(), 1);
    }
}

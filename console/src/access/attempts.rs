//! Slows down whoever tries tokens. Each address may fail a few times at once, and then once every ten seconds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many failures an address may have at once.
const AT_ONCE: u32 = 5;
/// How long it takes until one is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// The most addresses that are told apart. All further ones count as one.
const MOST: usize = 10_000;

/// The failures that count now, by address.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<HashMap<Option<IpAddr>, Failures>>);

/// When the failures of an address are all forgotten.
struct Failures {
    until: Instant,
}

impl Attempts {
    /// How long the address must wait before it may try again. `None`: it may try now, and the attempt counts as a
    /// failure until [`succeeded`](Self::succeeded) says otherwise, so that attempts at the same time count too.
    pub(crate) fn begin(&self, from: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.retain(|_, failures| failures.until > now);
        }
        let from =
            from.map(network).filter(|from| all.len() < MOST || all.contains_key(&Some(*from)));
        let failures = all.entry(from).or_insert(Failures { until: now });
        let limit = now + FORGOTTEN_AFTER * (AT_ONCE - 1);
        if failures.until > limit {
            return Some(failures.until - limit);
        }
        failures.until = failures.until.max(now) + FORGOTTEN_AFTER;
        None
    }

    /// The address has shown a right token: nothing counts against it.
    pub(crate) fn succeeded(&self, from: Option<IpAddr>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&from.map(network));
    }
}

/// Whoever has one address of an IPv6 network has all of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_must_wait_and_others_need_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let [one, other]: [Option<IpAddr>; 2] =
            ["10.0.0.1", "10.0.0.2"].map(|address| Some(address.parse().unwrap()));
        for _ in 0..5 {
            assert_eq!(attempts.begin(one, now), None);
        }
        assert_eq!(attempts.begin(one, now), Some(Duration::from_secs(10)));
        assert_eq!(attempts.begin(other, now), None);
        assert_eq!(attempts.begin(one, at(9)), Some(Duration::from_secs(1)));
        assert_eq!(attempts.begin(one, at(10)), None);
        assert!(attempts.begin(one, at(10)).is_some(), "one for ten seconds");
        attempts.succeeded(one);
        assert_eq!(attempts.begin(one, at(10)), None);
    }

    #[test]
    fn many_addresses_take_bounded_memory_and_gain_nothing() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let mut let_in = 0;
        for number in 0..12_000_u32 {
            let from = Some(IpAddr::V4(number.into()));
            let_in += u32::from(attempts.begin(from, now).is_none());
        }
        assert_eq!(let_in, 10_000 + 5);
        let [one, same]: [IpAddr; 2] =
            ["2001:db8::1", "2001:db8::ffff:1"].map(|it| it.parse().unwrap());
        assert_eq!(network(one), network(same));
    }
}

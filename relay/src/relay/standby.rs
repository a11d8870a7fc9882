//! Decides when a standby asks for the lease. Without I/O.
//!
//! ```text
//!            ┌──────────────── another process holds the lease ◄───────────┐
//!            ▼                                                             │
//!          wait ── it is free ──► ask for it ── another was faster ────────┘
//!            ▲                      ▲
//!            │                      │ after a second, or as soon as this process is the less busy one
//!            └── leave it to others ┘
//!                  - this process leads more outboxes than another one that reaches the broker
//!                  - this process does not reach the broker and another one does (for as long as that lasts)
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// How long a busier process leaves a free lease to less busy ones.
const COURTESY: Duration = Duration::from_secs(1);

/// What a standby sees when it looks at the lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Whether another process holds the lease.
    pub(super) is_held: bool,
    /// The fewest outboxes that any other process leads that reaches the broker. `None`: there is no such process.
    pub(super) least_led: Option<i32>,
    /// How many outboxes this process leads.
    pub(super) leads: i32,
    pub(super) reaches_broker: bool,
}

/// What a standby does about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The lease is held: look again when it may have expired.
    Wait,
    /// The lease is free, and another process should take it: look again soon.
    LeaveToOthers,
    /// The lease is free: ask for it.
    Ask,
}

/// A standby, from one look at the lease to the next.
#[derive(Debug, Default)]
pub(super) struct Standby {
    /// Since when the lease has been free and left to less busy processes.
    left_since: Option<Instant>,
}

impl Standby {
    pub(super) fn decide(&mut self, look: Look, now: Instant) -> Decision {
        let busier = look.least_led.is_some_and(|least| least < look.leads);
        if look.is_held || !busier || !look.reaches_broker {
            self.left_since = None;
        }
        if look.is_held {
            return Decision::Wait;
        }
        if look.least_led.is_some() && !look.reaches_broker {
            return Decision::LeaveToOthers;
        }
        if busier && now.duration_since(*self.left_since.get_or_insert(now)) < COURTESY {
            return Decision::LeaveToOthers;
        }
        Decision::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Look = Look { is_held: false, least_led: None, leads: 0, reaches_broker: true };

    #[test]
    fn a_free_lease_is_asked_for_and_a_held_one_is_waited_for() {
        let (mut standby, now) = (Standby::default(), Instant::now());
        assert_eq!(standby.decide(Look { is_held: true, ..FREE }, now), Decision::Wait);
        assert_eq!(standby.decide(FREE, now), Decision::Ask);
        let alone = Look { reaches_broker: false, leads: 3, ..FREE };
        assert_eq!(standby.decide(alone, now), Decision::Ask, "there is nobody to leave it to");
        let even = Look { least_led: Some(2), leads: 2, ..FREE };
        assert_eq!(standby.decide(even, now), Decision::Ask);
    }

    #[test]
    fn a_busier_process_leaves_a_free_lease_to_others_for_a_moment() {
        let (mut standby, start) = (Standby::default(), Instant::now());
        let busier = Look { least_led: Some(0), leads: 1, ..FREE };
        assert_eq!(standby.decide(busier, start), Decision::LeaveToOthers);
        assert_eq!(standby.decide(busier, start + COURTESY / 2), Decision::LeaveToOthers);
        assert_eq!(standby.decide(busier, start + COURTESY), Decision::Ask);
        let held = Look { is_held: true, ..busier };
        assert_eq!(standby.decide(held, start + COURTESY), Decision::Wait);
        let again = standby.decide(busier, start + 2 * COURTESY);
        assert_eq!(again, Decision::LeaveToOthers, "it was held in between");
    }

    #[test]
    fn a_process_that_does_not_reach_the_broker_leaves_a_free_lease_to_those_that_do() {
        let (mut standby, start) = (Standby::default(), Instant::now());
        let cut_off = Look { least_led: Some(5), reaches_broker: false, ..FREE };
        assert_eq!(standby.decide(cut_off, start), Decision::LeaveToOthers);
        assert_eq!(standby.decide(cut_off, start + 60 * COURTESY), Decision::LeaveToOthers);
        let back = Look { reaches_broker: true, ..cut_off };
        assert_eq!(standby.decide(back, start + 60 * COURTESY), Decision::Ask);
    }
}

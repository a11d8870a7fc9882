//! Shares outboxes among processes, so that each leads about as many as the others.
//!
//! Outboxes may be in different databases, so no single place could hold a plan, and none is needed. Every process
//! writes into each outbox, in `pillarbox.relay_member`, how many outboxes it leads. The leader of an outbox sees there
//! what the others lead, and follows two rules:
//!
//! - A leader that leads at least two more than the least busy process hands the outbox over: it stops as in a clean
//!   shutdown, and does not take the outbox back at once. It hands over one outbox at a time, and the next one only
//!   after the others have had time to report what they now lead.
//! - A standby that leads more than another process waits for a moment before it takes a free lease.
//!
//! Only processes that reach the broker count as others. A process that does not reach the broker lets others ship: if
//! a leader has lost its connection for the length of its lease, it hands over to any of them, and takes no free lease
//! while there is one.
//!
//! So the difference between any two processes that serve the same outboxes becomes at most one, and then nothing
//! moves.
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::lease::Presence;

/// What the relays of one process share.
#[derive(Debug)]
pub(crate) struct Process {
    /// The name of this run of the process, for operators: host, process id, and a random part.
    pub(crate) holder: String,
    leads: AtomicI32,
    handed_over: Mutex<Option<Instant>>,
    pub(crate) notice: Notice,
}

/// A problem of the process in which relays run, although they ship. Cheap to clone; all clones share one state.
///
/// Each relay reports it to its database with its next sign of life, after at most a third of the lease.
/// [`RelayStatus::notices`](crate::RelayStatus::notices) and `pillarbox doctor` show it.
#[derive(Clone, Debug, Default)]
pub struct Notice(Arc<Mutex<Option<String>>>);

impl Notice {
    /// Sets the problem, and replaces the one before. `None`: there is no problem. The text must contain no secret.
    pub fn set(&self, text: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn text(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Process {
    pub(crate) fn new() -> Arc<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let run = uuid::Uuid::new_v4().simple().to_string();
        let holder = format!("{host}/{}/{}", std::process::id(), &run[..8]);
        Arc::new(Self {
            holder,
            leads: AtomicI32::new(0),
            handed_over: Mutex::new(None),
            notice: Notice::default(),
        })
    }

    pub(crate) fn presence(&self, reaches_broker: bool) -> Presence {
        Presence { leads: self.leads(), reaches_broker, notice: self.notice.text() }
    }

    /// How many outboxes this process leads.
    pub(crate) fn leads(&self) -> i32 {
        self.leads.load(Ordering::Relaxed)
    }

    /// Counts one more outbox, until the guard is dropped.
    pub(crate) fn lead(self: &Arc<Self>) -> Leading {
        self.leads.fetch_add(1, Ordering::Relaxed);
        Leading(self.clone())
    }

    /// Whether to hand over an outbox, if the least busy other process leads `least`. Returns `true` at most once in
    /// `pause`.
    pub(crate) fn hands_over(&self, least: Option<i32>, pause: Duration) -> bool {
        if least.is_none_or(|least| least + 2 > self.leads()) {
            return false;
        }
        let mut last = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.is_some_and(|last| now - last < pause) {
            return false;
        }
        *last = Some(now);
        true
    }
}

/// Counts as one outbox led.
#[derive(Debug)]
pub(crate) struct Leading(Arc<Process>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.leads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For how long a leader has not reached the broker.
#[derive(Debug, Default)]
pub(crate) struct CutOff(Option<Instant>);

impl CutOff {
    /// Records whether the leader reaches the broker now. Returns whether it has not for at least `patience`.
    pub(crate) fn look(&mut self, reaches_broker: bool, patience: Duration, now: Instant) -> bool {
        if reaches_broker {
            self.0 = None;
            return false;
        }
        now.duration_since(*self.0.get_or_insert(now)) >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outbox_is_handed_over_for_a_difference_of_two_and_not_twice_at_once() {
        let process = Process::new();
        let pause = Duration::from_secs(1);
        let first = process.lead();
        assert!(!process.hands_over(Some(0), pause), "one and none is even enough");
        let _second = process.lead();
        assert!(!process.hands_over(None, pause) && !process.hands_over(Some(1), pause));
        assert!(process.hands_over(Some(0), pause));
        assert!(
            !process.hands_over(Some(0), pause),
            "the other has not said yet that it leads more"
        );
        tokio::time::advance(pause).await;
        assert!(process.hands_over(Some(0), pause));
        drop(first);
        assert_eq!(process.leads(), 1);
    }

    #[test]
    fn a_leader_is_cut_off_when_it_has_not_reached_the_broker_for_long_enough() {
        let (mut cut_off, start) = (CutOff::default(), Instant::now());
        let mut look = |reaches, seconds| {
            let now = start + Duration::from_secs(seconds);
            cut_off.look(reaches, Duration::from_secs(10), now)
        };
        assert!(!look(true, 0) && !look(false, 3) && !look(false, 12));
        assert!(look(false, 13));
        assert!(!look(true, 14), "it reaches it again");
        assert!(!look(false, 15) && look(false, 25));
    }
}

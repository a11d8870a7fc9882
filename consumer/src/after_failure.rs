//! Decides what follows from a failed attempt at an event. It does no I/O: the worker records what must be recorded,
//! and does what follows.
//!
//! | whose failure it is | what is recorded | what follows |
//! |---|---|---|
//! | the event's | an attempt | another attempt, or, after `max_attempts`, a dead letter |
//! | the event's, for good | | a dead letter |
//! | perhaps the event's | an uncounted failure | another attempt soon; after so many it counts as an attempt |
//! | of something that this event needs | an outage | another attempt; after `max_outage` it counts as an attempt |
//! | everybody's, as a handler says | an outage | a pause; after `max_outage` it counts as an attempt |
//! | everybody's | | a pause |

use std::time::Duration;

use pillarbox_inbox::MAX_RETRY_AFTER;
use pillarbox_inbox::source::Blame;

/// The longest wait between failures that are not counted.
const LONGEST_UNCOUNTED_WAIT: Duration = Duration::from_secs(1);

/// An outage counts as an attempt only if the event has met it more often than this. So the event was tried all that
/// time, and not only at the beginning and the end.
const FEWEST_OUTAGES: u32 = 10;

/// A failure, as it is recorded in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Attempt,
    /// `most`: how many failures of this kind in a row do not count.
    Uncounted {
        most: u32,
    },
    /// `everybodys`: the handler says that no event can be handled.
    Outage {
        everybodys: bool,
    },
}

/// What the database knows of an event's failures after one more was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// This many attempts have failed.
    Attempts(u32),
    /// This many failures in a row were not counted, and at most `most` may stay uncounted.
    Uncounted { times: u32, most: u32 },
    /// The event has met an outage this many times, and the outage has lasted this long.
    Outage { times: u32, lasted: Duration, everybodys: bool },
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// Record this, and see what [follows then](Patience::after).
    Record(Record),
    /// Another attempt, after this long. `is_news`: whether operators should hear of it.
    Retry { wait: Duration, is_news: bool, after: Recorded },
    /// The event failed for good, and becomes a dead letter.
    LetterForGood,
    /// The event has failed this many times, and becomes a dead letter.
    LetterAfter(u32),
    /// Nothing can be handled now.
    Pause,
}

/// How long a consumer keeps trying.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) max_attempts: u32,
    /// A handler that asks for a shorter wait gets the backoff. A wait of next to nothing would make a loop of an
    /// outage, in which no attempt is counted.
    pub(super) shortest_wait: Duration,
    pub(super) max_outage: Duration,
}

/// What follows at once. `is_said`: the handler itself says that no event can be handled.
pub(super) fn at_once(blame: Blame, is_said: bool) -> Follows {
    match blame {
        Blame::Event => Follows::Record(Record::Attempt),
        Blame::EventForGood => Follows::LetterForGood,
        Blame::Elsewhere => Follows::Record(Record::Outage { everybodys: false }),
        Blame::Excused(most) => Follows::Record(Record::Uncounted { most }),
        // A handler is believed for as long as one that reports an outage of its own.
        Blame::Everybody if is_said => Follows::Record(Record::Outage { everybodys: true }),
        Blame::Everybody => Follows::Pause,
    }
}

impl Patience {
    /// What follows once the failure is recorded. `retry_after`: the wait that the handler asks for. `backoff`: the
    /// wait after so many failures.
    pub(super) fn after(
        self,
        recorded: Recorded,
        retry_after: Option<Duration>,
        backoff: impl Fn(u32) -> Duration,
    ) -> Follows {
        let retry = |wait: Duration, is_news| Follows::Retry { wait, is_news, after: recorded };
        let retry_after = retry_after.filter(|wait| *wait >= self.shortest_wait);
        let wait =
            |times| retry_after.map_or_else(|| backoff(times), |wait| wait.min(MAX_RETRY_AFTER));
        match recorded {
            Recorded::Attempts(attempts) if attempts >= self.max_attempts => {
                Follows::LetterAfter(attempts)
            }
            Recorded::Attempts(attempts) => retry(wait(attempts), attempts <= 1),
            Recorded::Uncounted { times, most } if times > most => Follows::Record(Record::Attempt),
            Recorded::Uncounted { times, most } => {
                retry(backoff(times).min(LONGEST_UNCOUNTED_WAIT), times == most.div_ceil(2))
            }
            Recorded::Outage { times, lasted, .. }
                if times > FEWEST_OUTAGES && lasted > self.max_outage =>
            {
                Follows::Record(Record::Attempt)
            }
            Recorded::Outage { everybodys: true, .. } => Follows::Pause,
            Recorded::Outage { times, .. } => retry(wait(times), times <= 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        max_attempts: 3,
        shortest_wait: Duration::from_millis(100),
        max_outage: Duration::from_secs(100),
    };

    /// With a backoff of as many seconds as failures.
    fn after(recorded: Recorded) -> Follows {
        PATIENCE.after(recorded, None, |times| Duration::from_secs(times.into()))
    }

    /// Whether the event is tried again after this many seconds, and whether that is news.
    fn retries(recorded: Recorded, seconds: u64, is_news: bool) -> bool {
        let wait = Duration::from_secs(seconds);
        after(recorded) == Follows::Retry { wait, is_news, after: recorded }
    }

    fn outage(times: u32, seconds: u64, everybodys: bool) -> Recorded {
        Recorded::Outage { times, lasted: Duration::from_secs(seconds), everybodys }
    }

    const COUNTS: Follows = Follows::Record(Record::Attempt);

    #[test]
    fn the_last_attempt_makes_a_dead_letter_and_the_first_is_news() {
        assert!(retries(Recorded::Attempts(1), 1, true));
        assert!(retries(Recorded::Attempts(2), 2, false));
        assert_eq!(after(Recorded::Attempts(3)), Follows::LetterAfter(3));
        assert_eq!(after(Recorded::Attempts(7)), Follows::LetterAfter(7), "it was lowered");
    }

    #[test]
    fn an_uncounted_failure_is_tried_again_soon_until_there_are_too_many() {
        let uncounted = |times| Recorded::Uncounted { times, most: 5 };
        assert!(retries(uncounted(1), 1, false));
        assert!(retries(uncounted(3), 1, true), "half of them are used up");
        assert!(retries(uncounted(5), 1, false));
        assert_eq!(after(uncounted(6)), COUNTS);
    }

    #[test]
    fn an_outage_counts_once_it_was_met_often_and_has_lasted_long() {
        assert!(retries(outage(1, 0, false), 1, true));
        assert!(retries(outage(10, 101, false), 10, false), "not often");
        assert!(retries(outage(99, 100, false), 99, false), "not long");
        assert_eq!(after(outage(11, 101, false)), COUNTS);
    }

    #[test]
    fn a_handler_that_says_that_no_event_can_be_handled_is_believed_as_long() {
        assert_eq!(at_once(Blame::Everybody, false), Follows::Pause);
        let said = Follows::Record(Record::Outage { everybodys: true });
        assert_eq!(at_once(Blame::Everybody, true), said);
        assert_eq!(after(outage(1, 0, true)), Follows::Pause);
        assert_eq!(after(outage(11, 101, true)), COUNTS);
    }

    #[test]
    fn a_handler_may_ask_for_a_wait_but_neither_for_ever_nor_for_none() {
        let waits = |wanted| {
            let recorded = Recorded::Attempts(1);
            match PATIENCE.after(recorded, Some(wanted), |_| Duration::from_secs(1)) {
                Follows::Retry { wait, .. } => wait,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(waits(Duration::from_secs(30)), Duration::from_secs(30));
        assert_eq!(waits(2 * MAX_RETRY_AFTER), MAX_RETRY_AFTER);
        assert_eq!(waits(Duration::from_millis(100)), Duration::from_millis(100));
        assert_eq!(waits(Duration::from_millis(99)), Duration::from_secs(1), "the backoff");
    }

    #[test]
    fn only_a_failure_of_the_event_itself_counts_at_once() {
        for is_said in [false, true] {
            assert_eq!(at_once(Blame::Event, is_said), COUNTS);
            assert_eq!(at_once(Blame::EventForGood, is_said), Follows::LetterForGood);
            let uncounted = Follows::Record(Record::Uncounted { most: 2 });
            assert_eq!(at_once(Blame::Excused(2), is_said), uncounted);
            let outage = Follows::Record(Record::Outage { everybodys: false });
            assert_eq!(at_once(Blame::Elsewhere, is_said), outage);
        }
    }
}

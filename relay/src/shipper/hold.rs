//! Decides what follows when the broker does not store what it is given. Without I/O.
//!
//! ```text
//!             a message is not stored                       it is stored
//!   flowing ──────────────────────────► held, tries it alone ────────────► flowing
//!                                         │            ▲
//!                     tried often enough  │            │ no proof: it may be the broker's fault
//!                                         ▼            │
//!                              asks for proof: does the broker store another message?
//!                                         │
//!                                         └── it does: this message is set aside
//! ```
//!
//! While held, only the first message that is not stored is tried. What lies behind it was stored before as often
//! as not, and a stream forgets message ids after its duplicate window, so sending that again would repeat it.
//!
//! Only progress resets the backoff: a message stored that had not been stored before. The log has one line for
//! each reason between the beginning and the end of an outage. The end is told when messages have been stored for a
//! while without a failure; that while doubles with each relapse, so that trouble which comes and goes is one trouble.

use std::collections::HashSet;
use std::time::Duration;

use pillarbox_store::Backoff;
use tokio::time::Instant;

use crate::sink::SinkError;

/// How often a message is tried alone before the broker is asked for proof.
const TRIES: u32 = 5;
/// A refusal that was proven to be a message's fault condemns the next one sooner, if the broker stored something
/// within this time.
const FRESH: Duration = Duration::from_secs(30);
/// A message without a stream that a subscriber may have received is sent again after this long at the earliest.
const SEND_AGAIN: Duration = Duration::from_secs(60);
/// How long messages must be stored without a failure before an outage is called over.
const CALM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// At most this many different reasons are kept in mind.
const REASONS: usize = 32;

/// What to do about an event that was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Wait and try it again, alone.
    Wait,
    /// It was tried alone often enough. If the broker stores another message, it is this one's fault.
    AskForProof,
    /// The same refusal was proven to be a message's fault a moment ago.
    Proven,
}

pub(super) struct Hold {
    backoff: Backoff,
    alone: bool,
    suspect: Option<Suspect>,
    /// The refusals that were proven to be a message's fault.
    proven: HashSet<u64>,
    stored_at: Option<Instant>,
    reasons: HashSet<String>,
    /// How many events were stored for the first time since the log last said that they are not.
    progress: u64,
    calm: Duration,
    over_at: Option<Instant>,
    /// Events that go out again on purpose: until they have, storing them is no progress.
    owed: u64,
}

/// So many events stored between two times of trouble make the second one news.
const MUCH: u64 = 100;

/// The event that is not stored.
struct Suspect {
    position: i64,
    /// How often it was tried alone, without success and without another explanation.
    tries: u32,
    /// When it was sent to somebody who is no stream.
    heard_at: Option<Instant>,
}

impl Hold {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::default(),
            alone: false,
            suspect: None,
            proven: HashSet::new(),
            stored_at: None,
            reasons: HashSet::new(),
            progress: 0,
            calm: CALM.0,
            over_at: None,
            owed: 0,
        }
    }

    /// Whether the next message is to be stored alone.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether to ask for a stream before this event is sent again: a subscriber would receive it each time.
    pub(super) fn asks_first(&self, position: i64) -> bool {
        self.suspect.as_ref().is_some_and(|suspect| {
            suspect.position == position
                && suspect.heard_at.is_some_and(|heard_at| heard_at.elapsed() < SEND_AGAIN)
        })
    }

    /// Whether one more failure of this event calls for proof.
    pub(super) fn needs_proof(&self, position: i64) -> bool {
        self.suspect
            .as_ref()
            .is_some_and(|suspect| suspect.position == position && suspect.tries + 1 >= TRIES)
    }

    /// Takes note of messages that were stored.
    pub(super) fn stored(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        self.alone = false;
        self.suspect = None;
        self.stored_at = Some(Instant::now());
        if count > self.owed {
            self.backoff = Backoff::default();
            self.progress += count - self.owed;
        }
        self.owed = self.owed.saturating_sub(count);
    }

    /// Takes note that an event was set aside: that is progress.
    pub(super) fn set_aside(&mut self) {
        self.alone = false;
        self.suspect = None;
        self.backoff = Backoff::default();
    }

    /// Takes note that about this many events are shipped again, because a stream has lost them.
    pub(super) fn goes_back(&mut self, events: u64) {
        self.owed = self.owed.max(events);
    }

    /// Takes note of a failure, and says what to do about it.
    pub(super) fn failed(&mut self, error: &SinkError) -> NextStep {
        let was_alone = std::mem::replace(&mut self.alone, true);
        let Some(position) = error.position() else {
            return NextStep::Wait;
        };
        let suspect = match &mut self.suspect {
            Some(suspect) if suspect.position == position => suspect,
            other => other.insert(Suspect { position, tries: 0, heard_at: None }),
        };
        match error {
            SinkError::NotStored { refusal, .. } => {
                suspect.tries += u32::from(was_alone);
                let fresh = self.stored_at.is_some_and(|at| at.elapsed() < FRESH);
                let known = refusal.is_some_and(|code| self.proven.contains(&code));
                match suspect.tries {
                    1.. if known && fresh => NextStep::Proven,
                    TRIES.. => NextStep::AskForProof,
                    _ => NextStep::Wait,
                }
            }
            SinkError::NoStream { heard: true, .. } => {
                let again = suspect.heard_at.is_none_or(|at| at.elapsed() >= SEND_AGAIN);
                suspect.heard_at = if again { Some(Instant::now()) } else { suspect.heard_at };
                NextStep::Wait
            }
            _ => NextStep::Wait,
        }
    }

    /// Takes note that a refusal was proven to be a message's fault.
    pub(super) fn proves(&mut self, refusal: Option<u64>) {
        self.stored_at = Some(Instant::now());
        self.proven.extend(refusal);
    }

    /// Takes note of why messages are not stored. `true` if the log is to say it.
    pub(super) fn holds(&mut self, reason: &str) -> bool {
        if self.progress >= MUCH {
            // Between two times of trouble the broker took many events: that is a change, and is said again.
            self.reasons.clear();
        }
        self.progress = 0;
        if self.reasons.is_empty() {
            let relapse = self.over_at.is_some_and(|over_at| over_at.elapsed() < 10 * self.calm);
            self.calm = if relapse { (self.calm * 2).min(CALM.1) } else { CALM.0 };
        }
        self.reasons.len() < REASONS && self.reasons.insert(reason.to_owned())
    }

    /// Messages have been stored for this long without a failure. `true` if that ends an outage.
    pub(super) fn is_over(&mut self, calm: Duration) -> bool {
        if self.reasons.is_empty() || calm < self.calm {
            return false;
        }
        self.reasons.clear();
        self.over_at = Some(Instant::now());
        true
    }

    /// How long to wait before the next try.
    pub(super) fn wait(&mut self) -> Duration {
        self.backoff.wait()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use uuid::Uuid;

    use super::*;

    fn refused(position: i64, refusal: Option<u64>) -> SinkError {
        SinkError::NotStored { position, event_id: Uuid::nil(), refusal, error: "no".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_condemned_only_after_it_was_tried_alone_several_times() {
        let mut hold = Hold::new();
        assert!(!hold.is_alone());
        // The first failure was among others, and does not count.
        for _ in 0..TRIES {
            assert_eq!(hold.failed(&refused(7, Some(10097))), NextStep::Wait);
            assert!(hold.is_alone());
        }
        assert_eq!(hold.failed(&refused(7, Some(10097))), NextStep::AskForProof);
        // Another event starts from the beginning.
        assert_eq!(hold.failed(&refused(8, Some(10097))), NextStep::Wait);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_in_between_does_not_count_against_the_message() {
        let mut hold = Hold::new();
        hold.failed(&refused(7, None));
        for _ in 0..20 {
            assert_eq!(hold.failed(&SinkError::Unavailable("down".into())), NextStep::Wait);
        }
        assert_eq!(hold.failed(&refused(7, None)), NextStep::Wait);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_refusal_condemns_the_next_message_after_one_try_alone() {
        let mut hold = Hold::new();
        hold.proves(Some(10097));
        hold.set_aside();
        assert_eq!(hold.failed(&refused(8, Some(10097))), NextStep::Wait);
        assert_eq!(hold.failed(&refused(8, Some(10097))), NextStep::Proven);
        assert_eq!(hold.failed(&refused(9, Some(10098))), NextStep::Wait, "another refusal");
        advance(FRESH).await;
        hold.failed(&refused(10, Some(10097)));
        assert_eq!(hold.failed(&refused(10, Some(10097))), NextStep::Wait, "too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn only_progress_resets_the_backoff() {
        let mut hold = Hold::new();
        for _ in 0..20 {
            hold.wait();
        }
        hold.goes_back(500);
        hold.stored(500);
        assert!(hold.wait() > Duration::from_secs(2), "those had been stored before");
        hold.stored(1);
        assert!(hold.wait() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_that_comes_and_goes_is_told_once() {
        let mut hold = Hold::new();
        let mut told = 0;
        for _ in 0..50 {
            told += u32::from(hold.holds("full"));
            advance(Duration::from_secs(2)).await;
            told += u32::from(hold.is_over(Duration::from_secs(2)));
        }
        assert!(told <= 6, "{told} lines");
        assert!(!hold.holds("full") && hold.is_over(CALM.1), "and in the end it is over");
        advance(10 * CALM.1).await;
        assert!(hold.holds("full") && hold.is_over(CALM.0), "a new one is another");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_without_a_stream_that_a_subscriber_received_is_asked_for_before_it_is_sent() {
        let mut hold = Hold::new();
        let none = |heard| SinkError::NoStream {
            position: 7,
            event_id: Uuid::nil(),
            subject: "a".into(),
            heard,
        };
        hold.failed(&none(false));
        assert!(!hold.asks_first(7), "nobody received it");
        hold.failed(&none(true));
        assert!(hold.asks_first(7) && !hold.asks_first(8));
        advance(SEND_AGAIN / 2).await;
        // Asked for, and not sent.
        hold.failed(&none(true));
        advance(SEND_AGAIN / 2).await;
        assert!(!hold.asks_first(7), "a mapping may take it now, which no question tells");
    }
}

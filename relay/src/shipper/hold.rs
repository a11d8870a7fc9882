//! Decides what to do when the broker does not store a message. Without I/O.
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
//! While held, only the first message that is not stored is tried. The messages after it were often stored already. A
//! stream forgets message ids after its duplicate window, so sending them again would repeat them.
//!
//! Only progress resets the backoff: a message stored that had not been stored before. The log has one line for each
//! reason between the beginning and the end of an outage. An outage ends when messages have been stored for a while
//! without a failure. This while doubles with each relapse, so that trouble that comes and goes is reported as one
//! outage.
use std::collections::HashSet;
use std::time::Duration;

use pillarbox_store::Backoff;
use tokio::time::Instant;

use crate::sink::SinkError;

/// How often a message is tried alone before another message is sent as proof.
const TRIES: u32 = 5;
/// If a refusal was proven to be a message's fault, the next message with the same refusal is condemned sooner,
/// provided the broker stored something within this time.
const FRESH: Duration = Duration::from_secs(30);
/// A message without a stream that a subscriber may have received is not sent again sooner than this.
const SEND_AGAIN: Duration = Duration::from_secs(60);
/// How long messages must be stored without a failure before an outage is over: at first, and at most.
const CALM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// At most this many different reasons are remembered.
const REASONS: usize = 32;

/// What to do about a message that was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Wait, and try the message again, alone.
    Wait,
    /// The message was tried alone often enough. If the broker stores another message, the failure is this message's
    /// fault.
    AskForProof,
    /// The same refusal was recently proven to be a message's fault.
    Proven,
}

pub(super) struct Hold {
    backoff: Backoff,
    alone: bool,
    suspect: Option<HeldSuspect>,
    /// The refusals that were proven to be a message's fault.
    proven: HashSet<u64>,
    stored_at: Option<Instant>,
    /// Whether an outage is going on.
    held: bool,
    /// The reasons that the log has reported of it.
    reasons: HashSet<String>,
    /// How many events were stored for the first time since the log last reported that events are not stored.
    progress: u64,
    calm: Duration,
    over_at: Option<Instant>,
    /// How many events are still to be shipped a second time, after going back. Storing these is no progress.
    owed: u64,
}

/// If this many events were stored between two failures, the second failure is logged even if its reason was.
const MUCH: u64 = 100;

/// The event that is not stored.
struct HeldSuspect {
    position: i64,
    /// How often the event was tried alone and not stored, without another explanation.
    tries: u32,
    /// When a subscriber that is no stream last received it.
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
            held: false,
            reasons: HashSet::new(),
            progress: 0,
            calm: CALM.0,
            over_at: None,
            owed: 0,
        }
    }

    /// Whether the next message is sent alone.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether to ask for a stream before this event is sent again, because a subscriber would receive it each time.
    pub(super) fn asks_first(&self, position: i64) -> bool {
        self.suspect.as_ref().is_some_and(|suspect| {
            suspect.position == position
                && suspect.heard_at.is_some_and(|heard_at| heard_at.elapsed() < SEND_AGAIN)
        })
    }

    /// Whether proof is needed if this event fails once more.
    pub(super) fn needs_proof(&self, position: i64) -> bool {
        self.suspect
            .as_ref()
            .is_some_and(|suspect| suspect.position == position && suspect.tries + 1 >= TRIES)
    }

    /// Records that messages were stored.
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

    /// Records that an event was set aside, which is progress.
    pub(super) fn set_aside(&mut self) {
        self.alone = false;
        self.suspect = None;
        self.backoff = Backoff::default();
    }

    /// Records that about this many events are shipped again, because a stream has lost them.
    pub(super) fn goes_back(&mut self, events: u64) {
        self.owed = self.owed.max(events);
    }

    /// Records a failure, and returns what to do about it.
    pub(super) fn failed(&mut self, error: &SinkError) -> NextStep {
        let was_alone = std::mem::replace(&mut self.alone, true);
        let Some(position) = error.position() else {
            return NextStep::Wait;
        };
        let suspect = match &mut self.suspect {
            Some(suspect) if suspect.position == position => suspect,
            other => other.insert(HeldSuspect { position, tries: 0, heard_at: None }),
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

    /// Records that a refusal was proven to be a message's fault.
    pub(super) fn proves(&mut self, refusal: Option<u64>) {
        self.stored_at = Some(Instant::now());
        self.proven.extend(refusal);
    }

    /// Records why messages are not stored. Returns `true` if the log should report it.
    pub(super) fn holds(&mut self, reason: &str) -> bool {
        self.held = true;
        if self.progress >= MUCH {
            // The broker took many events between two failures. That is a change, so the reason is logged again.
            self.reasons.clear();
        }
        self.progress = 0;
        if self.reasons.is_empty() {
            let relapse = self.over_at.is_some_and(|over_at| over_at.elapsed() < 10 * self.calm);
            self.calm = if relapse { (self.calm * 2).min(CALM.1) } else { CALM.0 };
        }
        self.reasons.len() < REASONS && self.reasons.insert(reason.to_owned())
    }

    /// Records that something is held which the log does not report now. It reports the reason if it lasts.
    pub(super) fn holds_unreported(&mut self) {
        self.held = true;
    }

    /// Records that messages have been stored for this long without a failure. Returns `true` if that ends an outage.
    pub(super) fn is_over(&mut self, calm: Duration) -> bool {
        if !self.held || calm < self.calm {
            return false;
        }
        self.held = false;
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
    async fn what_was_not_reported_is_reported_if_it_lasts_and_ends_like_the_rest() {
        let mut hold = Hold::new();
        assert!(!hold.is_over(CALM.1), "nothing was held");
        hold.holds_unreported();
        assert!(hold.holds("no letters"), "the log has not said it yet");
        hold.holds_unreported();
        assert!(!hold.holds("no letters"), "it has");
        assert!(hold.is_over(CALM.1) && !hold.is_over(CALM.1), "it ends once");
        hold.holds_unreported();
        assert!(hold.is_over(CALM.1), "it ends although the log said nothing");
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

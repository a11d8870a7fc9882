//! Decides whose failure it is, and asks the database if necessary.
//!
//! The class of an error is a guess ([`Sign`]). An event that raises a SQLSTATE of class 08, binds too many values, or
//! ends its own connection looks like an outage, and would pause the consumer for ever. So before the failure of one
//! event counts as a failure of everything, the database is asked over a new connection:
//!
//! | it looks like | the database works | it does not |
//! |---|---|---|
//! | a database was not reached | it was another database: an outage for this event | everybody's |
//! | a connection broke | excused twice, then the event's | everybody's |
//! | a server has run out of something | excused 20 times, then the event's | everybody's |
//! | the inbox waited too long for a row | the event is in progress elsewhere: an outage for this event | everybody's |
//! | the handler took too long | the event's | everybody's |
//!
//! Without asking, a conflict is excused 20 times, and a transaction that was left idle twice. An outage that a handler
//! reports is excused for `max_outage`.
//!
//! After an event has crashed the server, the database does not work for a moment, and other events lose their
//! connections too. So an event that was in progress twice when that happened runs [alone](Judge). If the connection
//! breaks then, the database is given time. If it is back soon, and its server was not restarted, the event is to
//! blame.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_event::Identity;
use tokio::time::{Instant, sleep};

use crate::error::InboxError;
use crate::fault::{Fault, Sign};
use crate::store::{ServerRun, Store};
use crate::timeout::TookTooLong;

/// How many conflicts of an event in a row are excused, and how many failures because a server ran out of something.
const CONFLICTS: u32 = 20;

/// How many broken connections and idle transactions are excused.
const BREAKS: u32 = 2;

/// How often an event must be in progress when the database goes away before it runs alone.
const HITS: u32 = 2;

/// How long a server may take to come back after a crash that is blamed on an event.
const RECOVERY: Duration = Duration::from_secs(10);

/// At most this many events that were in progress then are remembered. Forgetting one costs another crash of the
/// server.
const MOST: usize = 10_000;

/// Whose failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The event's. The attempt counts.
    Event,
    /// The event's, and it can never be handled.
    EventForGood,
    /// Another party's that this event needs. Does not count for `max_outage`.
    Elsewhere,
    /// Perhaps the event's. Does not count the first this many times.
    Excused(u32),
    /// Everybody's. Nothing can be handled now.
    Everybody,
}

impl Blame {
    /// The fault for the metrics. `None`: the fault that the error looks like.
    pub fn fault(self) -> Option<Fault> {
        match self {
            Self::Event => Some(Fault::Transient),
            Self::EventForGood => Some(Fault::Permanent),
            Self::Elsewhere => Some(Fault::Outage),
            Self::Everybody => Some(Fault::Environment),
            Self::Excused(_) => None,
        }
    }
}

/// What the inbox knows of an event's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// The handler or a statement failed with an error of this kind.
    Failed(Sign),
    /// The inbox itself waited too long for the database.
    SlowDatabase,
    /// The handler took too long.
    SlowHandler,
}

impl Finding {
    /// What an error shows.
    fn of(error: &InboxError) -> Self {
        match error {
            InboxError::Slow { .. } => Self::SlowDatabase,
            error if error.is_caused_by::<TookTooLong>() => Self::SlowHandler,
            error => Self::Failed(error.sign()),
        }
    }

    /// Whether only the database can tell.
    fn takes_asking(self) -> bool {
        !matches!(self, Self::Failed(Sign::Sure(_) | Sign::Idle))
    }

    /// Whether the event's connection is gone, or may be gone.
    fn lost_its_connection(self) -> bool {
        matches!(self, Self::Failed(Sign::Broken | Sign::Unreached))
    }

    /// Whose failure it is. `well`: whether the database works, if that [matters](Self::takes_asking).
    fn blame(self, well: bool) -> Blame {
        match self {
            Self::Failed(Sign::Sure(fault)) => match fault {
                Fault::Transient => Blame::Event,
                Fault::Permanent => Blame::EventForGood,
                Fault::Outage => Blame::Elsewhere,
                Fault::Environment => Blame::Everybody,
                Fault::Conflict => Blame::Excused(CONFLICTS),
            },
            Self::Failed(Sign::Idle) => Blame::Excused(BREAKS),
            _ if !well => Blame::Everybody,
            // If the database works, another transaction is handling the event.
            Self::Failed(Sign::Unreached) | Self::SlowDatabase => Blame::Elsewhere,
            Self::Failed(Sign::Broken) => Blame::Excused(BREAKS),
            Self::Failed(Sign::Exhausted) => Blame::Excused(CONFLICTS),
            Self::SlowHandler => Blame::Event,
        }
    }
}

/// Decides whose failure an event's failure is.
///
/// It remembers which events were in progress when the database went away, because one of them may have crashed it. All
/// clones share this.
#[derive(Clone, Debug)]
pub struct Judge {
    store: Store,
    hits: Arc<Mutex<HashMap<Identity, u32>>>,
    /// The run of the server when an event last started alone.
    run: Arc<Mutex<Option<ServerRun>>>,
}

impl Judge {
    /// Knows of no event yet.
    pub fn new(store: Store) -> Self {
        Self { store, hits: Arc::default(), run: Arc::default() }
    }

    /// Whether the event must run with no other event beside it.
    pub fn is_suspect(&self, event: &Identity) -> bool {
        lock(&self.hits).get(event).is_some_and(|hits| *hits >= HITS)
    }

    /// Records that a suspect is about to run alone.
    pub async fn begin_alone(&self) {
        let run = self.store.well().await;
        *lock(&self.run) = run;
    }

    /// Records that the event has ended without such a failure.
    pub fn clear(&self, event: &Identity) {
        lock(&self.hits).remove(event);
    }

    /// Whose failure it is. Asks the database if only the database can tell.
    pub async fn blame(&self, event: &Identity, error: &InboxError, alone: bool) -> Blame {
        let finding = Finding::of(error);
        if !finding.takes_asking() {
            return finding.blame(true);
        }
        if self.store.well().await.is_some() {
            return finding.blame(true);
        }
        if !finding.lost_its_connection() {
            return Blame::Everybody;
        }
        if alone && self.is_suspect(event) && self.crashed().await {
            return Blame::Event;
        }
        let mut hits = lock(&self.hits);
        if hits.len() >= MOST {
            hits.clear();
        }
        *hits.entry(event.clone()).or_default() += 1;
        Blame::Everybody
    }

    /// Whether the failure of many events at once is everybody's, so that none of them must run now. Asks the database
    /// if only the database can tell.
    pub async fn is_everybodys(&self, error: &InboxError) -> bool {
        let finding = Finding::of(error);
        let well = !finding.takes_asking() || self.store.well().await.is_some();
        finding.blame(well) == Blame::Everybody
    }

    /// Whether the server is back soon, and was not restarted.
    async fn crashed(&self) -> bool {
        let Some(before) = lock(&self.run).clone() else {
            return false;
        };
        let until = Instant::now() + RECOVERY;
        while Instant::now() < until {
            match self.store.well().await {
                Some(now) => return now == before,
                None => sleep(Duration::from_millis(200)).await,
            }
        }
        false
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINDINGS: [Finding; 11] = [
        Finding::Failed(Sign::Sure(Fault::Transient)),
        Finding::Failed(Sign::Sure(Fault::Permanent)),
        Finding::Failed(Sign::Sure(Fault::Outage)),
        Finding::Failed(Sign::Sure(Fault::Environment)),
        Finding::Failed(Sign::Sure(Fault::Conflict)),
        Finding::Failed(Sign::Unreached),
        Finding::Failed(Sign::Broken),
        Finding::Failed(Sign::Exhausted),
        Finding::Failed(Sign::Idle),
        Finding::SlowDatabase,
        Finding::SlowHandler,
    ];

    #[test]
    fn only_what_a_handler_says_is_everybodys_while_the_database_is_well() {
        let everybodys = FINDINGS.into_iter().filter(|found| found.blame(true) == Blame::Everybody);
        let said = Finding::Failed(Sign::Sure(Fault::Environment));
        assert_eq!(everybodys.collect::<Vec<_>>(), [said]);
    }

    #[test]
    fn nothing_that_may_be_an_outage_counts_while_the_database_is_away() {
        for finding in FINDINGS {
            if finding.takes_asking() {
                assert_eq!(finding.blame(false), Blame::Everybody, "{finding:?}");
            } else {
                assert_eq!(finding.blame(false), finding.blame(true), "{finding:?}");
            }
        }
    }
}

//! What becomes of an event that was taken from its lane.

use std::time::Duration;

use pillarbox_event::Partition;

/// How long an event waits in this process while the table is full.
pub(crate) const FULL_WAIT: Duration = Duration::from_secs(1);

/// What becomes of an event that was taken from its lane: it leaves the consumer, or comes back.
#[derive(Clone, Debug)]
pub(crate) enum Disposition {
    /// Handled. It leaves.
    Done,
    /// It had been handled before. It leaves.
    Skipped,
    /// It waits among the dead letters now. It leaves.
    Parked,
    /// Given up: it is a dead letter, and must never be delivered again. It leaves.
    Dead,
    /// The attempt failed: try again after this long.
    Retry(Duration),
    /// Not run, because it must run with nothing beside it.
    Alone,
    /// Not run, because this event or another suspect may kill the process: ask again after this long.
    HeldBack(Duration),
    /// Something that all events need failed, with this error. Nothing can be handled now.
    Environment(String),
    /// Not run, because an event before it in its lane failed: it comes back behind that one.
    Behind,
    /// Not run: it waits on, for this long.
    Waits(Duration),
    /// Not run, because its type is paused. The table, from which it was taken, knows when to look at it again.
    Paused,
    /// Not run, because it was taken from the dead letters too long ago.
    Late,
    /// Its whole batch was rolled back: it runs again at once, outside a batch.
    ByItself,
    /// Its sender uses another number of partitions, so other events of its key are elsewhere. It waits until somebody
    /// corrects the number, or the event turns out to be handled.
    Misfit(Partition),
}

impl Disposition {
    /// Whether the event leaves the consumer for good.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Skipped | Self::Parked | Self::Dead)
    }
}

/// What became of events that were to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parking {
    Done,
    /// No event of their key waits in the table.
    NotBehind,
    /// The table holds as many waiting events as it may.
    Full,
    Failed,
}

impl Parking {
    /// What becomes of each of these events of a key. `wait`: how long the first of them, which has failed, still waits
    /// for its next attempt. `None` if it has not run.
    pub(crate) fn dispositions(self, wait: Option<Duration>, events: usize) -> Vec<Disposition> {
        let (first, others) = match (self, wait) {
            (Self::Done, _) => (Disposition::Parked, Disposition::Parked),
            (_, Some(wait)) => (Disposition::Waits(wait), Disposition::Behind),
            (Self::Full, None) => (Disposition::Waits(FULL_WAIT), Disposition::Behind),
            // It runs as any other event. If the database has a problem, that shows then.
            (Self::NotBehind | Self::Failed, None) => (Disposition::Behind, Disposition::Behind),
        };
        let mut all = vec![others; events];
        if let Some(place) = all.first_mut() {
            *place = first;
        }
        all
    }
}

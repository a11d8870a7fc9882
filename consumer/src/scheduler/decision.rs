//! What goes into the scheduler, and what comes out.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_event::Partition;

use super::content::Content;
use super::crowding::Table;
use super::deliveries::Acknowledgement;
use super::disposition::{Disposition, Parking};
use super::held::Held;
use super::lanes::Lane;
use crate::place::Place;

/// A message that was delivered.
#[derive(Debug)]
pub(crate) struct Delivered<A> {
    pub(crate) place: Place,
    /// The partition that it was read from; 0 without partitions.
    pub(crate) partition: u32,
    /// Whether it was delivered before.
    pub(crate) again: bool,
    /// The partition that its sender put it in, if that is not the one that it was read from.
    pub(crate) misfit: Option<Partition>,
    /// Whether its handler takes events in batches.
    pub(crate) in_batches: bool,
    pub(crate) content: Arc<Content>,
    pub(crate) acker: A,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Run this, and tell the scheduler [what became of it](super::Scheduler::ran).
    Run(Work),
    /// Look for parked events, and take at most this many pages. Answer with [`super::Scheduler::found`].
    LookForParked(usize),
    /// Ask whether the database is reachable: something waits for it, and nothing has ended for a while. Answer with
    /// [`super::Scheduler::asked`].
    AskDatabase,
    /// Ask whether what all events need is back. Answer with [`super::Scheduler::probed`].
    Probe,
    /// Let other processes take these dead letters, which were not begun; each with whether it may have been begun
    /// before.
    GiveBack(Vec<(i64, bool)>),
    /// Tell the server what is in progress, if it can be reached: [`super::Scheduler::report_progress`].
    ReportProgress,
    /// Look for connections that are kept and that nobody needs, and for failures that were not logged one by one.
    Tidy,
    /// Take a piece of the consumer's rate, for this many events. Answer with [`super::Scheduler::granted`].
    TakeRate(u32),
    /// Report this in metrics, status and log.
    Tell(News),
}

/// What operators are told.
#[derive(Debug)]
pub(crate) enum News {
    /// The message at this place is not held any more.
    Released(Place),
    /// An attempt failed, and another follows.
    Retries,
    /// The database is unreachable.
    NoDatabase(String),
    /// Nothing starts until what all events need is back. It failed with this error.
    Paused { error: String, begins: bool },
    /// The pause is over, and has lasted this long.
    Resumed(Duration),
    /// The sender of this event put it in this partition, because it uses another number of partitions.
    Misfit(Arc<Content>, Partition),
    /// The table of dead letters takes no more waiting events, or takes them again.
    Table(Table),
}

/// What a worker is to do.
#[derive(Debug)]
pub(crate) enum Work {
    One {
        lane: Lane,
        event: Held,
    },
    /// The next events of each lane.
    Batch(Vec<(Lane, Vec<Held>)>),
    /// Ask which of these events are handled already. They are the next events of each lane.
    LookUp(Vec<(Lane, Vec<Held>)>),
    /// Move these events of a lane into the table. `wait`: how long the first of them, which has failed, still waits.
    /// `None` if it has not run, so that all of them are to stand behind others of their key. `paused`: the first of
    /// them has not failed, but its type is paused.
    Park {
        lane: Lane,
        events: Vec<Held>,
        wait: Option<Duration>,
        paused: bool,
    },
    /// Let this event, which was taken from the table, wait there for this long, because its type is paused.
    Postpone {
        lane: Lane,
        event: Held,
        wait: Duration,
    },
}

/// What became of what ran.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The events of each lane, in their order.
    pub(crate) lanes: Vec<(Lane, Vec<(Held, Disposition)>)>,
    /// `None` unless they were to be parked.
    pub(crate) parking: Option<Parking>,
    /// Whether they were only looked up: each has left as skipped, or is behind.
    pub(crate) looked_up: bool,
}

/// What a scheduler leaves when it ends.
#[derive(Debug)]
pub(crate) struct Leftover<A> {
    /// Dead letters to give back; each with whether it may have been begun before.
    pub(crate) letters: Vec<(i64, bool)>,
    /// The acknowledgements that are due.
    pub(crate) acknowledgements: Vec<(A, Acknowledgement)>,
    /// How to acknowledge what is still held.
    pub(crate) held: Vec<A>,
}

//! The flow of an order through all services: which event caused which, who handled each of them and when, and what is
//! missing.
//!
//! A flow is told from the trail, which knows what went through the streams, and from the tables of each service: what
//! its consumers have handled, are still trying, or have given up, what waits in its outbox or for its time, and what
//! its sagas did. [`read`] collects all that, within bounds, and [`Flow`] is the result, from which text and pictures
//! are made.
//!
//! | module | concept |
//! |---|---|
//! | `gather` | which rows are asked for, and the bounds |
//! | `service` | the tables of one service |
//! | `join` | puts the rows together: pure |
//! | [`drawing`] | a flow as a picture |
//! | [`text`] | a flow as a tree of lines |

pub mod drawing;
mod gather;
mod join;
mod service;
pub mod text;
mod times;

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use pillarbox_store::Schema;

pub use gather::read;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// The flow of the event with this id.
    Event(String),
    /// The flows of the events with this key.
    Key(String),
    /// The events with this correlation id.
    Correlation(String),
}

impl Asked {
    /// The id or key.
    pub fn text(&self) -> &str {
        match self {
            Self::Event(text) | Self::Key(text) | Self::Correlation(text) => text,
        }
    }
}

/// A database to look into. The first one that has the trail's tables tells what went through the streams; each of them
/// may have an outbox, an inbox and sagas.
#[derive(Debug)]
pub struct Part<'c> {
    /// How it is called in the flow, for example the database's name.
    pub name: String,
    /// Where its tables are.
    pub schema: Schema,
    /// A connection of its own. After an error it must not be used again.
    pub connection: &'c mut PgConnection,
}

/// How much is told at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most events, and the most rows of each kind. Default: 500.
    pub events: usize,
    /// The most steps from cause to effect that are followed. Default: 64.
    pub depth: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { events: 500, depth: 64 }
    }
}

/// Why a flow cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// None of the databases has the trail's tables.
    #[error(
        "none of the databases has the trail's tables: run `pillarbox migrate trail` in one of them and `pillarbox trail`, \
         and name that database"
    )]
    NoTrail,
    /// A database failed.
    #[error("the database {part} cannot be read")]
    Database {
        /// The part's name.
        part: String,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
}

/// A flow: its events in the order of time, each after its cause.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Flow {
    /// What was asked for.
    pub asked: Asked,
    /// The events.
    pub events: Vec<FlowEvent>,
    /// Whether there is more than the bounds let through.
    pub truncated: bool,
    /// What could not be looked at, and why.
    pub notes: Vec<String>,
    /// The time of the trail's database.
    #[serde(with = "time::serde::rfc3339")]
    pub now: OffsetDateTime,
}

/// One event of a flow.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FlowEvent {
    /// Its id.
    pub id: String,
    /// Its type. `None`: only others name it.
    pub event_type: Option<String>,
    /// Its source.
    pub source: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// The id that all events of its flow share. `None`: it began one, or nobody set it.
    pub correlation: Option<String>,
    /// The id of the event whose handling produced it.
    pub causation: Option<String>,
    /// When its service wrote it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub written: Option<OffsetDateTime>,
    /// Where the streams hold it, the first place first. More than one: it was sent again.
    pub stored: Vec<Stored>,
    /// Where it waits. `None`: it does not, as far as is known.
    pub waits: Option<Waits>,
    /// The timer of a saga that it was set as.
    pub timer: Option<String>,
    /// Whether a saga published it to undo something.
    pub compensates: bool,
    /// What consumers did with it, and which did nothing yet.
    pub handled: Vec<Handled>,
    /// Which steps of sagas it caused.
    pub sagas: Vec<SagaStep>,
    /// Its cause among the events, by number. `None`: it has none, or its cause is not known.
    pub parent: Option<usize>,
    /// The number of events between it and the first one of its tree.
    pub depth: usize,
}

/// A place in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stored {
    /// The stream.
    pub stream: String,
    /// When this life of the stream began.
    #[serde(with = "time::serde::rfc3339")]
    pub life: OffsetDateTime,
    /// The sequence.
    pub sequence: u64,
    /// When the stream stored it.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The payload's size in bytes.
    pub size: u64,
}

/// Where an event waits that is in no stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "in", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Waits {
    /// In an outbox: committed, and not in the trail yet.
    Outbox {
        /// The part whose outbox it is.
        part: String,
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
    /// For its time.
    Scheduled {
        /// The part whose table it is.
        part: String,
        /// When it leaves.
        #[serde(with = "time::serde::rfc3339")]
        due: OffsetDateTime,
        /// Why it could not leave when it was due.
        error: Option<String>,
    },
    /// It could not be shipped.
    DeadLetter {
        /// The part whose outbox it is.
        part: String,
        /// The relay that gave it up.
        relay: String,
        /// `dead`, `parked`, `retried` or `discarded`.
        state: String,
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// Why, in a word.
        reason: String,
        /// The error.
        error: String,
    },
}

impl Waits {
    /// Whether somebody or something has still to act.
    pub fn is_open(&self) -> bool {
        match self {
            Self::DeadLetter { state, .. } => state == "dead" || state == "parked",
            Self::Outbox { .. } | Self::Scheduled { .. } => true,
        }
    }
}

/// What a consumer did with an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Handled {
    /// The part whose inbox it is.
    pub part: String,
    /// The consumer.
    pub consumer: String,
    /// What it did.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of an event at a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It was handled.
    Done {
        /// When the handler's transaction recorded it.
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
    /// It failed and will be tried again.
    Retrying {
        /// Since when it fails.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// When it was last tried.
        #[serde(with = "time::serde::rfc3339")]
        last: OffsetDateTime,
        /// How many attempts count.
        attempts: i32,
        /// How often a provider was away.
        outages: i32,
        /// The last error.
        error: String,
    },
    /// It was given up.
    Dead {
        /// `dead`, `parked` or `discarded`.
        state: String,
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// Why, in a word.
        reason: String,
        /// The error.
        error: String,
    },
    /// It was not handled yet. The consumer has handled others of its type.
    Missing {
        /// Since when it could have been.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
}

impl Outcome {
    /// Whether somebody or something has still to act.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Done { .. } => false,
            Self::Dead { state, .. } => state == "dead" || state == "parked",
            Self::Retrying { .. } | Self::Missing { .. } => true,
        }
    }
}

/// A step of a saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaStep {
    /// The part whose saga it is.
    pub part: String,
    /// The saga.
    pub saga: String,
    /// The instance.
    pub id: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The step before.
    pub before: String,
    /// The step after.
    pub after: String,
    /// The status after: `running`, `compensating`, `completed` or `failed`.
    pub status: String,
    /// The ids of the events that it published.
    pub published: Vec<String>,
    /// The timers that it set: name and event id.
    pub timers_set: Vec<(String, String)>,
    /// The names of the timers that it cancelled.
    pub timers_cancelled: Vec<String>,
    /// What was noted.
    pub note: Option<String>,
}

impl FlowEvent {
    /// An event of which nothing but the id is known.
    pub(crate) fn named(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            event_type: None,
            source: None,
            topic: None,
            key: None,
            correlation: None,
            causation: None,
            written: None,
            stored: Vec::new(),
            waits: None,
            timer: None,
            compensates: false,
            handled: Vec::new(),
            sagas: Vec::new(),
            parent: None,
            depth: 0,
        }
    }

    /// When it appeared: when its service wrote it, or else when a stream stored it first.
    pub fn began(&self) -> Option<OffsetDateTime> {
        let waits = match &self.waits {
            Some(Waits::Outbox { since, .. } | Waits::DeadLetter { since, .. }) => Some(*since),
            Some(Waits::Scheduled { due, .. }) => Some(*due),
            None => None,
        };
        let stored = self.stored.first().map(|stored| stored.at);
        match (self.written, stored) {
            // A clock that is wrong, or a time that somebody else set, must not turn the order around.
            (Some(written), Some(stored)) => Some(written.min(stored)),
            (written, stored) => written.or(stored).or(waits),
        }
    }

    /// Whether somebody or something has still to act on it.
    pub fn is_open(&self) -> bool {
        let waits = self.waits.as_ref().is_some_and(Waits::is_open);
        waits || self.handled.iter().any(|handled| handled.outcome.is_open())
    }
}

impl Flow {
    /// The numbers of the events without a known cause, in the order of time.
    pub fn roots(&self) -> impl Iterator<Item = usize> {
        let without = |(at, event): (usize, &FlowEvent)| event.parent.is_none().then_some(at);
        self.events.iter().enumerate().filter_map(without)
    }

    /// The numbers of the events that this one caused, in the order of time.
    pub fn children(&self, of: usize) -> impl Iterator<Item = usize> {
        let caused =
            move |(at, event): (usize, &FlowEvent)| (event.parent == Some(of)).then_some(at);
        self.events.iter().enumerate().filter_map(caused)
    }

    /// The numbers of the events on which somebody or something has still to act.
    pub fn open(&self) -> impl Iterator<Item = usize> {
        let open = |(at, event): (usize, &FlowEvent)| event.is_open().then_some(at);
        self.events.iter().enumerate().filter_map(open)
    }
}

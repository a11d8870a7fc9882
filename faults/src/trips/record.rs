//! What the database has of trips at the end of a run.

use serde::Deserialize;
use sqlx::{PgPool, Row};

use crate::journal::At;

/// All that is known of trips.
#[derive(Clone, Debug, Default)]
pub struct Trips {
    /// The rows of the outbox that belong to trips, in the order of their positions.
    pub events: Vec<TripEvent>,
    /// The instances of the saga.
    pub instances: Vec<Instance>,
    /// What the services did.
    pub effects: Vec<TripEffect>,
    /// What was given up: the event, by whom, and why.
    pub dead: Vec<(String, String, String)>,
}

/// An event of a trip, in the outbox.
#[derive(Clone, Debug)]
pub struct TripEvent {
    /// Its id.
    pub id: String,
    /// Its type.
    pub event_type: String,
    /// The trip.
    pub trip: String,
    /// The service, if it is a command to one or comes from one.
    pub service: Option<String>,
}

/// An instance of the saga, with its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The trip.
    pub trip: String,
    /// Its status.
    pub status: String,
    /// How often it was written.
    pub version: i64,
    /// Why it failed.
    pub failure: Option<String>,
    /// Its state.
    pub state: State,
    /// How many timers it has.
    pub timers: i64,
    /// Its history.
    pub entries: Vec<Entry>,
}

/// The state of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct State {
    /// The services that were asked, in order.
    pub asked: Vec<String>,
    /// Those that have booked.
    pub booked: Vec<String>,
    /// Those that have cancelled.
    pub cancelled: Vec<String>,
}

/// An entry of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: At,
    /// The event.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Where the instance was before.
    pub before: String,
    /// Where it was afterwards.
    pub after: String,
    /// Its status afterwards.
    pub status: String,
    /// The ids of what was published.
    pub published: Vec<String>,
    /// The ids of the timers that were set.
    pub timers_set: Vec<String>,
    /// The ids of the timers that were cancelled.
    pub timers_cancelled: Vec<String>,
    /// What the history says beside that.
    pub note: Option<String>,
}

impl Entry {
    /// Whether the event was only noted.
    pub fn is_ignored(&self) -> bool {
        self.note.as_deref().is_some_and(|note| note.starts_with("ignored: "))
    }
}

/// A row that a service wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TripEffect {
    /// Its place in the order of writing.
    pub seq: i64,
    /// When.
    pub at: At,
    /// The service.
    pub service: String,
    /// The trip.
    pub trip: String,
    /// What it did.
    pub what: String,
    /// The command.
    pub event_id: String,
}

const EVENTS: &str = "select event_id::text, event_type, coalesce(key, ''),
    case when event_type like 'service.%' then split_part(topic, '.', 3) end
from pillarbox.outbox where event_type like 'service.%' or event_type like 'trip.%' order by position";

const INSTANCES: &str =
    "select id, status, version, failure, state::text, jsonb_array_length(timers)::bigint
from pillarbox.saga where saga = $1 order by started_at, id";

const ENTRIES: &str =
    "select id, seq, (extract(epoch from at) * 1000000)::bigint, event_id, event_type, step_before,
    step_after, status,
    array(select value ->> 'id' from jsonb_array_elements(published)),
    array(select value ->> 'event_id' from jsonb_array_elements(timers_set)),
    array(select value ->> 'event_id' from jsonb_array_elements(timers_cancelled)),
    note
from pillarbox.saga_history where saga = $1 order by id, seq";

const EFFECTS: &str =
    "select seq, (extract(epoch from at) * 1000000)::bigint, service, trip, what, event_id
from trip_effect order by seq";

const DEAD: &str =
    "select event_id, consumer, reason || ': ' || error from pillarbox.inbox_dead_letter
union all
select event_id::text, 'the relay', reason || ': ' || error from pillarbox.outbox_dead_letter
where event_type like 'service.%' or event_type like 'trip.%'";

impl Trips {
    /// Reads it.
    pub(crate) async fn read(database: &PgPool) -> anyhow::Result<Self> {
        let mut trips = Self::default();
        for row in sqlx::query(EVENTS).fetch_all(database).await? {
            trips.events.push(TripEvent {
                id: row.try_get(0)?,
                event_type: row.try_get(1)?,
                trip: row.try_get(2)?,
                service: row.try_get(3)?,
            });
        }
        for row in sqlx::query(INSTANCES).bind(super::SAGA).fetch_all(database).await? {
            trips.instances.push(Instance {
                trip: row.try_get(0)?,
                status: row.try_get(1)?,
                version: row.try_get(2)?,
                failure: row.try_get(3)?,
                state: serde_json::from_str(row.try_get(4)?)?,
                timers: row.try_get(5)?,
                entries: Vec::new(),
            });
        }
        for row in sqlx::query(ENTRIES).bind(super::SAGA).fetch_all(database).await? {
            let trip: &str = row.try_get(0)?;
            // The table refers to the instances.
            if let Some(instance) = trips.instances.iter_mut().find(|one| one.trip == trip) {
                instance.entries.push(Entry {
                    seq: row.try_get(1)?,
                    at: row.try_get(2)?,
                    event_id: row.try_get(3)?,
                    event_type: row.try_get(4)?,
                    before: row.try_get(5)?,
                    after: row.try_get(6)?,
                    status: row.try_get(7)?,
                    published: row.try_get(8)?,
                    timers_set: row.try_get(9)?,
                    timers_cancelled: row.try_get(10)?,
                    note: row.try_get(11)?,
                });
            }
        }
        for row in sqlx::query(EFFECTS).fetch_all(database).await? {
            trips.effects.push(TripEffect {
                seq: row.try_get(0)?,
                at: row.try_get(1)?,
                service: row.try_get(2)?,
                trip: row.try_get(3)?,
                what: row.try_get(4)?,
                event_id: row.try_get(5)?,
            });
        }
        trips.dead = sqlx::query_as(DEAD).fetch_all(database).await?;
        Ok(trips)
    }
}

//! How all parts of a place stand, read in one go.
//!
//! Everything but the backlog is counted up to a bound, so that a look takes no longer the more dead letters there are.

use pillarbox_relay::{RelayStatus, status};
use pillarbox_store::Schema;
use pillarbox_store::consumers::SILENT_AFTER_S;
use sqlx::{PgConnection, Row};

use crate::place::{Place, Unanswered};

/// What is counted is counted up to this many.
pub(crate) const COUNTED: i64 = 10_000;

/// How the parts of a place stand.
#[derive(Debug, Default)]
pub(crate) struct Stand {
    pub(crate) has_outbox: bool,
    pub(crate) has_inbox: bool,
    pub(crate) relays: Vec<RelayStatus>,
    /// Dead letters of relays.
    pub(crate) outbox_letters: Vec<Letters>,
    /// Dead letters of consumers.
    pub(crate) inbox_letters: Vec<Letters>,
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) sagas: Vec<Saga>,
}

/// The unresolved dead letters of a relay or a consumer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Letters {
    pub(crate) owner: String,
    pub(crate) dead: i64,
    pub(crate) parked: i64,
}

/// A consumer, as its database shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Consumer {
    pub(crate) name: String,
    /// Events that have failed and will be tried again.
    pub(crate) failing: i64,
    /// Those of them that wait for a provider.
    pub(crate) away: i64,
    /// How long the oldest of them has been failing, in seconds.
    pub(crate) failing_seconds: Option<f64>,
    /// The processes that were seen within [`SILENT_AFTER_S`] seconds.
    pub(crate) processes: i64,
}

/// The instances of a saga.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Saga {
    pub(crate) name: String,
    pub(crate) open: i64,
    pub(crate) overdue: i64,
    pub(crate) failed: i64,
    /// How long the oldest open one has been running, in seconds.
    pub(crate) oldest_seconds: Option<f64>,
}

impl Stand {
    /// Reads how a place stands.
    pub(crate) async fn read(place: &Place) -> Result<Self, Unanswered> {
        let (schema, relays) = (place.schema().clone(), place.relays().to_vec());
        let read = place.ask(|connection| {
            Box::pin(async move { Self::read_with(&schema, relays, connection).await })
        });
        read.await
    }

    async fn read_with(
        schema: &Schema,
        relays: Vec<String>,
        connection: &mut PgConnection,
    ) -> Result<Self, sqlx::Error> {
        let (has_outbox, has_inbox) =
            sqlx::query_as::<_, (bool, bool)>(include_str!("sql/tables.sql"))
                .bind(schema.as_str())
                .fetch_one(&mut *connection)
                .await?;
        let mut stand = Self { has_outbox, has_inbox, ..Self::default() };
        if has_outbox {
            let mut names = status::names(connection, schema.as_str()).await?;
            if names.is_empty() {
                names = relays;
            }
            for name in names {
                stand.relays.push(RelayStatus::read(connection, schema.as_str(), &name).await?);
            }
            stand.outbox_letters =
                letters(schema, connection, "relay", "outbox_dead_letter").await?;
        }
        if has_inbox {
            stand.inbox_letters =
                letters(schema, connection, "consumer", "inbox_dead_letter").await?;
            stand.consumers = consumers(schema, connection).await?;
            stand.sagas = sagas(schema, connection).await?;
        }
        Ok(stand)
    }
}

async fn letters(
    schema: &Schema,
    connection: &mut PgConnection,
    owner: &str,
    table: &str,
) -> Result<Vec<Letters>, sqlx::Error> {
    let text = format!(include_str!("sql/letters.sql"), owner = owner, table = table);
    let rows = sqlx::query(schema.statement(&text)).bind(COUNTED + 1).fetch_all(connection).await?;
    let letters = rows.iter().map(|row| {
        Ok(Letters { owner: row.try_get(0)?, dead: row.try_get(1)?, parked: row.try_get(2)? })
    });
    letters.collect()
}

async fn consumers(
    schema: &Schema,
    connection: &mut PgConnection,
) -> Result<Vec<Consumer>, sqlx::Error> {
    let rows = sqlx::query(schema.statement(include_str!("sql/consumers.sql")))
        .bind(COUNTED + 1)
        .bind(SILENT_AFTER_S)
        .fetch_all(connection)
        .await?;
    let consumers = rows.iter().map(|row| {
        Ok(Consumer {
            name: row.try_get(0)?,
            failing: row.try_get(1)?,
            away: row.try_get(2)?,
            failing_seconds: row.try_get(3)?,
            processes: row.try_get(4)?,
        })
    });
    consumers.collect()
}

async fn sagas(schema: &Schema, connection: &mut PgConnection) -> Result<Vec<Saga>, sqlx::Error> {
    let rows = sqlx::query(schema.statement(include_str!("sql/sagas.sql")))
        .bind(COUNTED + 1)
        .fetch_all(connection)
        .await?;
    let sagas = rows.iter().map(|row| {
        Ok(Saga {
            name: row.try_get(0)?,
            open: row.try_get(1)?,
            overdue: row.try_get(2)?,
            failed: row.try_get(3)?,
            oldest_seconds: row.try_get(4)?,
        })
    });
    sagas.collect()
}

//! What an operator needs to know about a relay, read from its database.

use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::cursor::Cursor;
use crate::scheduled::{Scheduled, count};
use crate::source::visibility::spliced;
use crate::table;
use pillarbox_store::schema::in_schema;

/// A relay's status. The backlog is as of the saved cursor, which lags behind shipping by a moment.
#[derive(Clone, Debug, Serialize)]
pub struct RelayStatus {
    /// The relay's name.
    pub relay: String,
    /// Committed events not yet shipped.
    pub backlog_events: i64,
    /// The age of the oldest of them, in seconds; 0 without a backlog.
    pub oldest_age_seconds: f64,
    /// The process that holds the lease, as host/process/run. `None`: no process ships.
    pub holder: Option<String>,
    /// Whether the lease is in force.
    pub leading: bool,
    /// How often the lease has changed hands. `None`: this relay has never run.
    pub epoch: Option<i64>,
    /// The age of the holder's last sign of life, in seconds.
    pub heartbeat_age_seconds: Option<f64>,
    /// Events that were set aside because they can never be stored, and that are not resolved yet.
    pub dead_letters: i64,
    /// Events that can never be shipped and whose dead letters the table does not take, because of a trigger, a rule or
    /// a constraint that somebody added to it.
    pub held_events: i64,
    /// The scheduled events. `None`: the role may not count them.
    pub scheduled: Option<Scheduled>,
    /// The streams that acknowledged events and that the JetStream API did not show at the newest checkpoint: they
    /// were deleted, or are in another domain or account. If one of them loses events, that may go unnoticed.
    pub unwatched_streams: Vec<String>,
    /// The table that was the outbox before another one took its name, as long as it exists. Events there that had not
    /// been shipped are not shipped.
    pub left_table: Option<String>,
    /// The problems that leading and standing-by processes report about themselves, although events are shipped.
    pub notices: Vec<ProcessNotice>,
    /// The relay's saved cursor. `None`: it has none yet.
    pub cursor: Option<Cursor>,
}

/// A problem that a process reports about itself; see [`Notice`](crate::Notice).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProcessNotice {
    /// The process, as host/process/run.
    pub holder: String,
    /// What is wrong.
    pub notice: String,
}

const SETTINGS: &str = "set local search_path = pg_catalog, pg_temp; set local row_security = off";

impl RelayStatus {
    /// Reads the status of the relay with this name. `schema` is the outbox's schema. It must be a plain identifier, as
    /// [`RelayConfig::validate`](crate::RelayConfig::validate) checks it.
    ///
    /// Counting a backlog takes time in proportion to its size.
    ///
    /// The connection may be any, and may be in a transaction. Names are looked up only in `pg_catalog`, whatever the
    /// session's `search_path` is, and the session's settings are unchanged afterwards.
    ///
    /// # Errors
    /// The error of sqlx. A cursor that cannot be read is a decoding error. If a policy would hide rows, Postgres
    /// refuses.
    pub async fn read(
        connection: &mut PgConnection,
        schema: &str,
        relay: &str,
    ) -> Result<Self, sqlx::Error> {
        let status = in_schema(&spliced(include_str!("status.sql")), schema);
        let query = sqlx::query(status).bind(relay);
        // The rollback also undoes the settings. Within a transaction of the caller, this is a savepoint.
        let mut transaction = connection.begin().await?;
        transaction.execute(SETTINGS).await?;
        let read = async {
            let row = query.fetch_one(&mut *transaction).await?;
            Ok::<_, sqlx::Error>((row, count(&mut transaction, schema).await?))
        };
        let read = read.await;
        transaction.rollback().await?;
        let (row, scheduled) = read?;
        let undecodable = |error| sqlx::Error::Decode(Box::new(error));
        let cursor: Option<String> = row.try_get("cursor")?;
        let cursor =
            cursor.map(|text| serde_json::from_str(&text)).transpose().map_err(undecodable)?;
        let notices: String = row.try_get("notices")?;
        let notices = serde_json::from_str(&notices).map_err(undecodable)?;
        Ok(Self {
            relay: relay.to_owned(),
            backlog_events: row.try_get("events")?,
            oldest_age_seconds: row.try_get::<Option<f64>, _>("oldest_age")?.unwrap_or(0.0),
            holder: row.try_get("holder")?,
            leading: row.try_get::<Option<bool>, _>("alive")?.unwrap_or(false),
            epoch: row.try_get("epoch")?,
            heartbeat_age_seconds: row.try_get("heartbeat_age")?,
            dead_letters: row.try_get("dead_letters")?,
            held_events: row.try_get("held_events")?,
            scheduled,
            unwatched_streams: row.try_get("unwatched_streams")?,
            left_table: row.try_get("left_table")?,
            notices,
            cursor,
        })
    }
}

/// The name of the sequence that gives out the outbox's positions, with its schema and quoted as a statement needs it.
/// `None`: no sequence does. Names are looked up with the session's `search_path`, which must be `pg_catalog, pg_temp`.
///
/// # Errors
/// The error of sqlx, also if the outbox does not exist.
pub async fn sequence_name(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Option<String>, sqlx::Error> {
    let sequence = table::named(connection, schema).await?.sequence;
    Ok(sequence)
}

/// The names of the relays that have run on the outbox in this schema, at most twenty.
///
/// # Errors
/// The error of sqlx.
pub async fn names(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let names = in_schema("select name from pillarbox.relay order by name limit 20", schema);
    sqlx::query_scalar(names).fetch_all(connection).await
}

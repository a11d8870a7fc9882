//! Removing what the database knows of a relay that is gone.

use pillarbox_store::actions::{Deed, record};
use pillarbox_store::{Operator, Schema};
use sqlx::{Connection, PgConnection};

/// A process of a relay that was not seen for this long does not count as running, in seconds.
const SILENT_AFTER_S: i64 = 30;

/// Why a relay was not removed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemovalError {
    /// No relay of this name has run.
    #[error("no relay {relay:?} has run on this outbox; those that have: {}", known.join(", "))]
    Unknown {
        /// The name.
        relay: String,
        /// The relays that have run, at most 20.
        known: Vec<String>,
    },
    /// A process holds its lease, or was seen lately.
    #[error(
        "relay {relay:?} is not gone: a process was seen within the last {SILENT_AFTER_S} s; stop it first"
    )]
    Running {
        /// The name.
        relay: String,
    },
    /// It has dead letters that nobody has resolved.
    #[error(
        "relay {relay:?} has {letters} unresolved dead letters; resolve them first, or remove it with its letters"
    )]
    Unresolved {
        /// The name.
        relay: String,
        /// How many.
        letters: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Removes all that the database knows of a relay that is gone, in one transaction: its cursor, its checkpoints, its
/// processes and its dead letters. The events in the outbox stay. A relay that is started under this name begins at the
/// front of the outbox, and ships again what is still there; the inboxes skip what they have handled.
///
/// The role must be allowed to remove rows, as the tables' owner is.
///
/// # Errors
/// [`RemovalError`]: unknown, running, or with unresolved dead letters unless `with_letters`.
pub async fn remove(
    connection: &mut PgConnection,
    schema: &Schema,
    relay: &str,
    with_letters: bool,
    operator: &Operator,
) -> Result<(), RemovalError> {
    let name = || relay.to_owned();
    let mut tx = connection.begin().await?;
    // A process that wants to lead waits for this lock, and then finds no row.
    let alive: Option<bool> = sqlx::query_scalar(schema.statement(
        "select coalesce(expires_at > clock_timestamp(), false) or exists (select from pillarbox.relay_member as member \
         where member.relay = $1 and member.seen_at > clock_timestamp() - $2::float8 * interval '1 second') \
         from pillarbox.relay where name = $1 for update",
    ))
    .bind(relay)
    .bind(SILENT_AFTER_S)
    .fetch_optional(&mut *tx)
    .await?;
    match alive {
        None => {
            let known = crate::status::names(&mut tx, schema.as_str()).await?;
            return Err(RemovalError::Unknown { relay: name(), known });
        }
        Some(true) => return Err(RemovalError::Running { relay: name() }),
        Some(false) => {}
    }
    let letters: i64 = sqlx::query_scalar(schema.statement(
        "select count(*) from pillarbox.outbox_dead_letter where relay = $1 and state in ('dead', 'parked')",
    ))
    .bind(relay)
    .fetch_one(&mut *tx)
    .await?;
    if letters > 0 && !with_letters {
        return Err(RemovalError::Unresolved { relay: name(), letters });
    }
    for (table, column) in [
        ("outbox_dead_letter", "relay"),
        ("relay_checkpoint", "relay"),
        ("relay_member", "relay"),
        ("relay", "name"),
    ] {
        let sql = format!("delete from pillarbox.{table} where {column} = $1");
        sqlx::query(schema.statement(&sql)).bind(relay).execute(&mut *tx).await?;
    }
    let deed = Deed { what: "relays.remove", target: relay, count: 1, letters: &[] };
    record(&mut tx, schema, operator, &deed).await?;
    tx.commit().await?;
    Ok(())
}

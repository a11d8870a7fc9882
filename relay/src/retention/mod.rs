//! Removes rows that were shipped longer ago than the retention, dead letters that were resolved longer ago, and
//! operators' actions of more than a year ago, in bounded batches, on a connection of its own.
//!
//! Reading starts at the cursor, so old rows cost the relay nothing but space. They are kept for a while for operators
//! to look at, and to be shipped again if the broker loses them.

use std::time::Duration;

use pillarbox_store::actions::{KEPT_FOR, REMOVE_OLD};
use pillarbox_store::limit::limited;
use pillarbox_store::{full_text, retention};
use sqlx::{PgConnection, Row, SqlStr};
use tokio::time::sleep;

use crate::config::RelayConfig;
use crate::health::Observer;
use crate::session::Database;
use crate::source::visibility::spliced;
use pillarbox_store::schema::in_schema;

const BATCH_ROWS: i64 = 2000;
/// The time limit for one batch. A batch does a bounded amount of work whatever it finds.
const LIMIT: Duration = Duration::from_secs(60);
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

/// Removes old rows for as long as it is polled. Failures are logged and tried again.
pub(crate) async fn remove_old_rows(config: RelayConfig, database: Database, observer: Observer) {
    let kept_for = config.retention;
    let seconds = retention::seconds(kept_for);
    let sql = |text| in_schema(&spliced(text), &config.schema);
    let statements = Statements {
        rows: sql(include_str!("delete.sql")),
        letters: sql(include_str!("letters.sql")),
        actions: in_schema(REMOVE_OLD, &config.schema),
    };
    let interval = retention::interval(kept_for, LONGEST_INTERVAL);
    loop {
        sleep(interval).await;
        match run(&database, &statements, &config.name, seconds, &observer).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(
                relay = config.name,
                rows,
                "removed shipped rows past their retention"
            ),
            Err(error) => {
                let error = full_text(&error);
                tracing::debug!(
                    relay = config.name,
                    error,
                    "old rows were not removed; they will be later"
                );
            }
        }
    }
}

struct Statements {
    rows: SqlStr,
    letters: SqlStr,
    actions: SqlStr,
}

/// Removes what can be removed now, and returns how many rows of the outbox it removed.
async fn run(
    database: &Database,
    statements: &Statements,
    relay: &str,
    seconds: i64,
    observer: &Observer,
) -> Result<i64, sqlx::Error> {
    let mut connection = database.connect().await?;
    let removed = async {
        let removed = remove(&mut connection, &statements.rows, seconds, observer).await?;
        remove_letters(&mut connection, &statements.letters, relay, seconds).await?;
        remove_actions(&mut connection, &statements.actions).await?;
        Ok(removed)
    };
    let removed = removed.await;
    limited(LIMIT, sqlx::Connection::close(connection)).await?;
    removed
}

async fn remove_letters(
    connection: &mut PgConnection,
    sql: &SqlStr,
    relay: &str,
    seconds: i64,
) -> Result<(), sqlx::Error> {
    let batch = || sqlx::query(sql.clone()).bind(relay).bind(seconds);
    while limited(LIMIT, batch().execute(&mut *connection)).await?.rows_affected() > 0 {
        retention::pause().await;
    }
    Ok(())
}

async fn remove_actions(connection: &mut PgConnection, sql: &SqlStr) -> Result<(), sqlx::Error> {
    let batch = || sqlx::query(sql.clone()).bind(retention::seconds(KEPT_FOR));
    while limited(LIMIT, batch().execute(&mut *connection)).await?.rows_affected() > 0 {
        retention::pause().await;
    }
    Ok(())
}

async fn remove(
    connection: &mut PgConnection,
    sql: &SqlStr,
    seconds: i64,
    observer: &Observer,
) -> Result<i64, sqlx::Error> {
    let (mut behind, mut removed) = (0_i64, 0_i64);
    loop {
        let batch = sqlx::query(sql.clone()).bind(behind).bind(seconds).bind(BATCH_ROWS);
        let row = limited(LIMIT, batch.fetch_one(&mut *connection)).await?;
        let (rows, looked_at, last): (i64, i64, Option<i64>) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        removed += rows;
        observer.meter.removed(rows);
        match last {
            // This skips the rows that were just removed. Their dead versions may stay until a vacuum.
            Some(last) if rows > 0 && looked_at == BATCH_ROWS => behind = last,
            _ => return Ok(removed),
        }
        retention::pause().await;
    }
}

//! Removes rows that have been shipped and kept long enough, and dead letters that were resolved so long ago, in
//! bounded batches, on a connection of its own.
//!
//! Reading starts at the cursor, so old rows cost the relay nothing; they cost space. They are kept for a while
//! to be looked at, and to be shipped again if the broker should have lost them.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::full_text;
use pillarbox_store::limit::limited;
use sqlx::{AssertSqlSafe, PgConnection, Row, SqlSafeStr, SqlStr};
use tokio::time::sleep;

use crate::config::RelayConfig;
use crate::health::Observer;
use crate::schema::in_schema;
use crate::session::Database;
use crate::source::visibility::spliced;

const BATCH_ROWS: i64 = 2000;
/// A batch takes a bounded time whatever it finds.
const LIMIT: Duration = Duration::from_secs(60);
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

/// Leaves the disk to others in between.
const BREATH: Duration = Duration::from_millis(10);

/// Removes old rows for as long as it is polled. Failures are logged and tried again.
pub(crate) async fn remove_old_rows(config: RelayConfig, database: Database, observer: Observer) {
    let Ok(seconds) = i64::try_from(config.retention_s) else {
        return;
    };
    let sql = |text| {
        AssertSqlSafe(Arc::<str>::from(in_schema(&spliced(text), &config.schema))).into_sql_str()
    };
    let statements = Statements {
        rows: sql(include_str!("delete.sql")),
        letters: sql(include_str!("letters.sql")),
    };
    let interval = (Duration::from_secs(config.retention_s) / 4)
        .clamp(Duration::from_millis(250), LONGEST_INTERVAL);
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
}

/// Removes what can be removed now, and returns how many rows of the outbox that was.
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
    loop {
        let batch = sqlx::query(sql.clone()).bind(relay).bind(seconds);
        if limited(LIMIT, batch.execute(&mut *connection)).await?.rows_affected() == 0 {
            return Ok(());
        }
        sleep(BREATH).await;
    }
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
            // What was just removed is stepped over, though its remains may lie there until a vacuum.
            Some(last) if rows > 0 && looked_at == BATCH_ROWS => behind = last,
            _ => return Ok(removed),
        }
        sleep(BREATH).await;
    }
}

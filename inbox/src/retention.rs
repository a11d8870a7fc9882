//! Removes what was handled long ago, and dead letters that were resolved long ago, in bounded pieces.
//!
//! The row of an event is needed for as long as the event may come again: as long as the stream keeps it, or its
//! retries last. The JetStream consumer therefore refuses a shorter retention.

use std::time::Duration;

use sqlx::Row;
use tokio::time::sleep;

use crate::store::Store;

/// The greatest age that is asked for: a century. Beyond some, Postgres has no such interval.
pub const LONGEST_AGE: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How much of the table one statement looks at: a few thousand rows.
const BLOCKS: i64 = 64;

/// Leaves the disk to others in between.
const BREATH: Duration = Duration::from_millis(10);

const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

/// Removes what is older, walking the whole table once, and returns how many rows that was.
pub(crate) async fn remove_old(store: &Store, retention: Duration) -> Result<u64, sqlx::Error> {
    let seconds = retention.min(LONGEST_AGE).as_secs().cast_signed();
    let (remove, others) = store.remove_old();
    let (mut first, mut removed) = (0_i64, 0_u64);
    loop {
        let remove = sqlx::query(remove.clone())
            .bind(&*store.consumer)
            .bind(seconds)
            .bind(first)
            .bind(first + BLOCKS);
        let row = store.lend().await?.fetch_one(remove).await?;
        let (mine, rows, blocks): (bool, i64, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        removed += rows.unsigned_abs();
        first += BLOCKS;
        if !mine || first >= blocks {
            break;
        }
        sleep(BREATH).await;
    }
    for others in others {
        loop {
            let batch = sqlx::query(others.clone()).bind(&*store.consumer).bind(seconds);
            if store.lend().await?.execute(batch).await?.rows_affected() == 0 {
                break;
            }
            sleep(BREATH).await;
        }
    }
    Ok(removed)
}

/// Removes for as long as it is polled. Failures are logged and tried again.
pub async fn keep_removing(store: Store, retention: Duration) -> std::convert::Infallible {
    let interval = (retention / 4).clamp(Duration::from_millis(250), LONGEST_INTERVAL);
    loop {
        sleep(interval).await;
        match remove_old(&store, retention).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(consumer = &*store.consumer, rows, "removed old rows"),
            Err(error) => {
                let error = pillarbox_store::full_text(&error);
                tracing::debug!(
                    consumer = &*store.consumer,
                    error,
                    "old rows were not removed; they will be later"
                );
            }
        }
    }
}

//! Removes the rows of events that were handled long ago, of dead letters that were resolved long ago, and of
//! operators' actions of more than a year ago, in bounded parts.
//!
//! The row of an event is needed as long as the event may come again, that is as long as the stream keeps it or it is
//! retried. So the JetStream consumer refuses a shorter retention.

use std::time::Duration;

use pillarbox_store::actions::KEPT_FOR;
use pillarbox_store::{full_text, retention};
use sqlx::Row;
use tokio::time::sleep;

use crate::store::Store;

/// How many blocks of the table one statement reads: a few thousand rows.
const BLOCKS: i64 = 64;

const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

/// Walks through the whole table once and removes rows older than this. Returns how many rows it removed.
pub(crate) async fn remove_old(store: &Store, kept_for: Duration) -> Result<u64, sqlx::Error> {
    let seconds = retention::seconds(kept_for);
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
        retention::pause().await;
    }
    for others in others {
        let batch = || sqlx::query(others.clone()).bind(&*store.consumer).bind(seconds);
        while store.lend().await?.execute(batch()).await?.rows_affected() > 0 {
            retention::pause().await;
        }
    }
    let (actions, year) = (store.remove_actions(), retention::seconds(KEPT_FOR));
    let batch = || sqlx::query(actions.clone()).bind(year);
    while store.lend().await?.execute(batch()).await?.rows_affected() > 0 {
        retention::pause().await;
    }
    Ok(removed)
}

/// Removes old rows for as long as it is polled. Failures are logged and tried again.
pub async fn keep_removing(store: Store, kept_for: Duration) -> std::convert::Infallible {
    let interval = retention::interval(kept_for, LONGEST_INTERVAL);
    loop {
        sleep(interval).await;
        match remove_old(&store, kept_for).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(consumer = &*store.consumer, rows, "removed old rows"),
            Err(error) => {
                let error = full_text(&error);
                tracing::debug!(
                    consumer = &*store.consumer,
                    error,
                    "old rows were not removed; they will be later"
                );
            }
        }
    }
}

//! Generations: building a projection again from the event log while the old one stays in use.
//!
//! ```text
//!   totals      ──────────────── in use ─────────────────┐ retired
//!   totals-g2                  rebuilding ── caught up ──┴─ in use ──────
//! ```
//!
//! The inbox remembers handled events per consumer name, and a new durable consumer starts at the beginning of the
//! stream. So the same handler under another generation gets every event again, while the old one keeps running. The
//! new generation writes to its own tables:
//!
//! 1. Run a consumer with [`ConsumerConfig::generation`] and a handler that writes to the new tables.
//! 2. Wait for [`ConsumerStatus::is_caught_up`](crate::ConsumerStatus::is_caught_up). The [`Lag`](crate::Lag) shows the
//!    progress.
//! 3. Compare the tables, switch readers to the new ones (change a view in one transaction), and stop the old consumer.
//! 4. [`retire`] the old generation.
//!
//! A handler that runs again like this must have no other effects: it writes its projection, and neither publishes
//! events nor calls other services. `examples/replay.rs` shows all of these steps.

use async_nats::jetstream;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use pillarbox_inbox::InboxError;
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;
use sqlx::PgPool;

use crate::config::ConsumerConfig;
use crate::durable::Durable;

/// How many rows are removed in one transaction.
const BATCH: i64 = 5_000;

impl ConsumerConfig {
    /// The same settings for another generation, numbered from 2, which gets every event of the stream again. Its name
    /// is `NAME-gN`, so it has another durable consumer, and nothing is recorded for it in the inbox. Generation 1 is
    /// the plain name.
    #[must_use]
    pub fn generation(mut self, generation: u32) -> Self {
        if generation > 1 {
            self.name = format!("{}-g{generation}", self.name);
        }
        self
    }
}

/// What [`retire`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retired {
    /// Whether a durable consumer existed.
    pub consumer: bool,
    /// Rows about handled events.
    pub inbox_rows: u64,
    /// Rows about failed attempts.
    pub failures: u64,
    /// Dead letters, resolved or not. The new generation has handled their events, or has its own dead letters for
    /// them.
    pub dead_letters: u64,
}

/// Why a generation was not removed, or only in part. [`retire`] can be called again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetireError {
    /// A process still reads with this consumer. Nothing was removed.
    #[error(
        "consumer {name} of stream {stream} is in use: stop every process that runs it, and try again"
    )]
    InUse {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
    },
    /// The broker did not remove the durable consumer. No row was removed.
    #[error(
        "the broker did not remove durable consumer {name} of stream {stream}; try again: {reason}"
    )]
    Broker {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// The schema's name is refused.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The database failed. Some rows may be left.
    #[error("not all rows of a retired consumer were removed; try again")]
    Database(#[from] sqlx::Error),
}

/// Removes an old generation: its durable consumer, and its rows in the inbox, in batches. The service itself must drop
/// the tables of the old projection.
///
/// Safe to cancel and to repeat. The broker takes a killed process for a reader for some seconds.
///
/// # Errors
/// [`RetireError`].
pub async fn retire(
    jetstream: &jetstream::Context,
    pool: &PgPool,
    config: &ConsumerConfig,
) -> Result<Retired, RetireError> {
    let store = Store::new(pool.clone(), &config.name, &config.schema, None)?;
    store.check_sessions().await?;
    let consumer = remove_consumer(jetstream, config).await?;
    let remove = async |table: &str| -> Result<u64, sqlx::Error> {
        let old = store.statement(&format!(
            "delete from pillarbox.{table} \
             where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any \
             (select event_id from pillarbox.{table} where consumer operator(pg_catalog.=) $1 limit $2)"
        ));
        let mut removed = 0;
        loop {
            let batch = store.query(&old).bind(BATCH).execute(pool).await?;
            removed += batch.rows_affected();
            if batch.rows_affected() == 0 {
                return Ok(removed);
            }
        }
    };
    let retired = Retired {
        consumer,
        inbox_rows: remove("inbox").await?,
        failures: remove("inbox_failure").await?,
        dead_letters: remove("inbox_dead_letter").await?,
    };
    // A consumer of this name now starts as a new one, which has forgotten nothing.
    for table in ["inbox_forgotten", "inbox_own_death"] {
        let new = store.statement(&format!(
            "delete from pillarbox.{table} where consumer operator(pg_catalog.=) $1"
        ));
        store.query(&new).execute(pool).await?;
    }
    Ok(retired)
}

/// Removes the durable consumer, and says whether it existed.
async fn remove_consumer(
    jetstream: &jetstream::Context,
    config: &ConsumerConfig,
) -> Result<bool, RetireError> {
    let failed = |reason: String| RetireError::Broker {
        stream: config.stream.clone(),
        name: config.name.clone(),
        reason,
    };
    let stream = jetstream.get_stream_no_info(&config.stream).await;
    let stream = stream.map_err(|error| failed(full_text(&error)))?;
    let mut there = Vec::new();
    for Durable { name, .. } in Durable::all(config) {
        match stream.consumer_info(&name).await {
            Ok(info) if info.num_waiting > 0 => {
                return Err(RetireError::InUse { stream: config.stream.clone(), name });
            }
            Ok(_) => there.push(name),
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => {}
                _ => return Err(failed(full_text(&error))),
            },
        }
    }
    for name in &there {
        stream.delete_consumer(name).await.map_err(|error| failed(full_text(&error)))?;
    }
    Ok(!there.is_empty())
}

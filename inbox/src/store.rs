//! The inbox's statements, for one consumer in one schema.

use std::sync::Arc;

use pillarbox_event::RawEvent;
use sqlx::{AssertSqlSafe, PgExecutor, PgPool, Row, SqlSafeStr, SqlStr};

use crate::error::InboxError;
use crate::migrations::check_schema;

/// Where a consumer keeps what it has handled. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) pool: PgPool,
    pub(crate) consumer: Arc<str>,
    statements: Arc<Statements>,
}

#[derive(Debug)]
struct Statements {
    claim: SqlStr,
    record_failure: SqlStr,
    bury: SqlStr,
}

/// What is written about an event that is given up.
#[derive(Debug)]
pub(crate) struct Burial<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) event: Result<&'a RawEvent, Undecodable<'a>>,
    pub(crate) reason: &'a str,
    pub(crate) error: &'a str,
    pub(crate) attempts: u32,
}

/// A message that is no event.
#[derive(Clone, Debug)]
pub(crate) struct Undecodable<'a> {
    pub(crate) topic: &'a str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: &'a [u8],
}

impl Store {
    pub(crate) fn new(pool: PgPool, consumer: &str, schema: &str) -> Result<Self, InboxError> {
        check_schema(schema)?;
        let sql = |text: &str| {
            let text = text.replace("pillarbox.", &format!("{schema}."));
            AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
        };
        let statements = Statements {
            claim: sql(include_str!("claim.sql")),
            record_failure: sql(
                "insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, last_error) \
                 values ($1, $2, 1, $3) \
                 on conflict (consumer, event_id) do update set attempts = failure.attempts + 1, \
                 last_error = excluded.last_error, last_failed_at = clock_timestamp() \
                 returning attempts",
            ),
            bury: sql(include_str!("bury.sql")),
        };
        Ok(Self { pool, consumer: consumer.into(), statements: Arc::new(statements) })
    }

    /// Records the event as handled, and returns how many attempts failed before. `None` if it was handled
    /// already. Waits for another transaction that is handling it.
    pub(crate) async fn claim(
        &self,
        executor: impl PgExecutor<'_>,
        event_id: &str,
    ) -> Result<Option<u32>, sqlx::Error> {
        let row = sqlx::query(self.statements.claim.clone())
            .bind(&*self.consumer)
            .bind(event_id)
            .fetch_one(executor)
            .await?;
        let (claimed, failed): (bool, i32) = (row.try_get(0)?, row.try_get(1)?);
        Ok(claimed.then_some(failed.unsigned_abs()))
    }

    /// Counts a failed attempt, and returns how many there were.
    pub(crate) async fn record_failure(
        &self,
        event_id: &str,
        error: &str,
    ) -> Result<u32, sqlx::Error> {
        let attempts: i32 = sqlx::query(self.statements.record_failure.clone())
            .bind(&*self.consumer)
            .bind(event_id)
            .bind(without_nul(error))
            .fetch_one(&self.pool)
            .await?
            .try_get(0)?;
        Ok(attempts.unsigned_abs())
    }

    /// Gives the event up: a dead letter, and the event counts as handled. `false` if it had been handled.
    pub(crate) async fn bury(&self, burial: Burial<'_>) -> Result<bool, sqlx::Error> {
        let (event_type, topic, key, headers, payload) = match &burial.event {
            Ok(event) => (
                Some(event.event_type()),
                event.topic(),
                event.key(),
                serde_json::to_string(event.headers()),
                &event.payload()[..],
            ),
            Err(message) => {
                let headers: std::collections::BTreeMap<_, _> =
                    message.headers.iter().cloned().collect();
                (None, message.topic, None, serde_json::to_string(&headers), message.payload)
            }
        };
        let headers = headers.map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let row = sqlx::query(self.statements.bury.clone())
            .bind(&*self.consumer)
            .bind(burial.event_id)
            .bind(event_type)
            .bind(topic)
            .bind(key)
            // Postgres text holds no NUL, which JSON writes as an escape.
            .bind(headers.replace("\\u0000", "\u{fffd}"))
            .bind(payload)
            .bind(burial.reason)
            .bind(without_nul(burial.error))
            .bind(i32::try_from(burial.attempts).unwrap_or(i32::MAX))
            .fetch_one(&self.pool)
            .await?;
        row.try_get(0)
    }
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

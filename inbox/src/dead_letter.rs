//! What was given up, and how to get at it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pillarbox_event::{EventId, RawEvent};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgExecutor, PgPool, Row, SqlSafeStr, SqlStr};
use time::OffsetDateTime;

use crate::delivery::Delivery;
use crate::error::InboxError;
use crate::migrations::{DEFAULT_SCHEMA, check_schema};

/// An event that a consumer gave up. `Debug` shows neither payload nor header values.
#[derive(Clone)]
pub struct DeadLetter {
    /// The consumer that gave it up.
    pub consumer: String,
    /// The event's id; `stream:sequence` for a message without one.
    pub event_id: String,
    /// The event's type, if the message was an event.
    pub event_type: Option<String>,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// The headers, by name.
    pub headers: BTreeMap<String, String>,
    /// The payload.
    pub payload: Bytes,
    /// `dead`: given up. `parked`: waits for the consumer to handle it, because it was retried, or stands behind
    /// a dead event of its key ([`Order::Strict`](crate::Order::Strict)). `retried` and `discarded`: resolved.
    pub state: String,
    /// Why, in a word: `undecodable`, `permanent`, `attempts`, `kills`, `parked`.
    pub reason: String,
    /// The last error, with its sources.
    pub error: String,
    /// How many attempts failed.
    pub attempts: i32,
    /// When the first attempt failed.
    pub first_failed_at: OffsetDateTime,
    /// When it was given up.
    pub dead_at: OffsetDateTime,
    #[cfg_attr(not(feature = "jetstream"), allow(dead_code))]
    pub(crate) position: i64,
}

impl std::fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetter")
            .field("consumer", &self.consumer)
            .field("event_id", &self.event_id)
            .field("event_type", &self.event_type)
            .field("topic", &self.topic)
            .field("state", &self.state)
            .field("reason", &self.reason)
            .field("error", &self.error)
            .field("attempts", &self.attempts)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl DeadLetter {
    /// The event, if the message was one.
    pub fn event(&self) -> Option<RawEvent> {
        let id = EventId::parse(self.event_id.clone()).ok()?;
        let (event_type, key) = (self.event_type.clone()?, self.key.clone());
        RawEvent::from_parts(
            id,
            event_type,
            self.topic.clone(),
            key,
            self.headers.clone(),
            self.payload.clone(),
        )
        .ok()
    }

    /// The event, to be handled after all: hand it to a service under an [`InboxLayer`](crate::InboxLayer) of
    /// the same consumer. Its success, and that it is a dead letter no more, commit together; its failure
    /// leaves it what it is. `None` if the message was no event.
    ///
    /// ```no_run
    /// use pillarbox_inbox::{DeadLetters, InboxLayer, Router};
    /// use tower::{Layer, ServiceExt};
    ///
    /// # async fn example(pool: sqlx::PgPool, router: Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let service = InboxLayer::new(pool.clone(), "payments")?.layer(router);
    /// for letter in DeadLetters::new(pool)?.list("payments", 100).await? {
    ///     if let Some(delivery) = letter.delivery() {
    ///         service.clone().oneshot(delivery).await?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn delivery(&self) -> Option<Delivery> {
        self.event().map(|event| Delivery { event: Arc::new(event), dead_letter: true })
    }
}

/// The dead letters of one database.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    pool: PgPool,
    list: SqlStr,
    show: SqlStr,
    release: SqlStr,
    retry: SqlStr,
    discard: SqlStr,
}

impl DeadLetters {
    /// Those in schema `pillarbox`.
    ///
    /// # Errors
    /// None with this schema.
    pub fn new(pool: PgPool) -> Result<Self, InboxError> {
        Self::in_schema(pool, DEFAULT_SCHEMA)
    }

    /// Those in another schema.
    ///
    /// # Errors
    /// [`InboxError::Schema`].
    pub fn in_schema(pool: PgPool, schema: &str) -> Result<Self, InboxError> {
        check_schema(schema)?;
        let sql = |text: &str| {
            let text = text.replace("pillarbox.", &format!("{schema}."));
            AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
        };
        Ok(Self {
            pool,
            list: sql(
                "select * from pillarbox.inbox_dead_letter where consumer = $1 and state in ('dead', 'parked') \
                 order by position limit $2",
            ),
            show: sql(
                "select * from pillarbox.inbox_dead_letter where consumer = $1 and event_id = $2",
            ),
            release: sql(include_str!("release.sql")),
            discard: sql(
                "update pillarbox.inbox_dead_letter set state = 'discarded', resolved_at = clock_timestamp() \
                 where consumer = $1 and event_id = $2 and state in ('dead', 'parked')",
            ),
            retry: sql("update pillarbox.inbox_dead_letter set state = 'parked' \
                 where consumer = $1 and event_id = $2 and state = 'dead' and event_type is not null"),
        })
    }

    /// The unresolved ones of a consumer, dead and parked, in the order in which they came, `limit` at the most.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn list(&self, consumer: &str, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let rows =
            sqlx::query(self.list.clone()).bind(consumer).bind(limit).fetch_all(&self.pool).await?;
        rows.iter().map(read).collect()
    }

    /// One, resolved or not.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn show(
        &self,
        consumer: &str,
        event_id: &str,
    ) -> Result<Option<DeadLetter>, sqlx::Error> {
        let row = sqlx::query(self.show.clone())
            .bind(consumer)
            .bind(event_id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Leaves it to the [`Consumer`](crate::Consumer), which handles it within about a second, through the same
    /// handler and in a transaction as for any other event; nothing is published again. Its attempts start anew,
    /// and if they fail it is dead again. With [`Order::Strict`](crate::Order::Strict) what is parked behind it
    /// follows in order. `false` if it is not dead, or was no event.
    ///
    /// Without a [`Consumer`](crate::Consumer) nobody would: use [`DeadLetter::delivery`] there.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn retry(&self, consumer: &str, event_id: &str) -> Result<bool, sqlx::Error> {
        let retry = sqlx::query(self.retry.clone()).bind(consumer).bind(event_id);
        Ok(retry.execute(&self.pool).await?.rows_affected() == 1)
    }

    /// Lets the consumer handle the event again when it next comes: it no longer counts as handled, and its
    /// attempts start anew. `false` if it is not an unresolved dead letter, or an earlier one of its key is
    /// parked. [`retry`](Self::retry) needs no broker and keeps the order of the key; this is for consumers of
    /// one's own making.
    ///
    /// It comes when it is published again; the broker drops a repeat of a message id that it has seen of
    /// late, so give it a new `Nats-Msg-Id`. Publish it before the commit of the transaction that this runs in,
    /// and nothing is lost whichever fails: a consumer that gets it early waits for the commit. Where the
    /// handler is at hand, use [`DeadLetter::delivery`], which needs no broker.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn release(
        &self,
        executor: impl PgExecutor<'_>,
        consumer: &str,
        event_id: &str,
    ) -> Result<bool, sqlx::Error> {
        sqlx::query(self.release.clone())
            .bind(consumer)
            .bind(event_id)
            .bind(false)
            .fetch_one(executor)
            .await?
            .try_get(0)
    }

    /// Marks it as not to be handled. What is parked behind it follows then. `false` if it is not an unresolved dead letter.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn discard(&self, consumer: &str, event_id: &str) -> Result<bool, sqlx::Error> {
        let done = sqlx::query(self.discard.clone())
            .bind(consumer)
            .bind(event_id)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}

pub(crate) fn read(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    let sqlx::types::Json(headers) = row.try_get("headers")?;
    Ok(DeadLetter {
        consumer: row.try_get("consumer")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        topic: row.try_get("topic")?,
        key: row.try_get("key")?,
        headers,
        payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        attempts: row.try_get("attempts")?,
        first_failed_at: row.try_get("first_failed_at")?,
        dead_at: row.try_get("dead_at")?,
        position: row.try_get("position")?,
    })
}

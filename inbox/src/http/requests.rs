//! The stored requests with their answers, and their statements.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::Schema;
use pillarbox_store::limit::limited;
use pillarbox_store::retention;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgPool, Row, SqlSafeStr, SqlStr};

use crate::error::InboxError;
use crate::http::fingerprint;
use crate::pooler::PoolCheck;
use crate::store::session::Sessions;
use crate::store::{BEGIN_TIMEOUT, Begun, Lent};
use crate::tx::Tx;

/// How many rows are removed at a time.
const BATCH: i64 = 1_000;

/// Returns the transaction's id and its backend.
const WHO: &str =
    "select pg_catalog.pg_current_xact_id()::pg_catalog.text, pg_catalog.pg_backend_pid()";

/// The stored requests of a schema, which [`IdempotencyLayer`](crate::http::IdempotencyLayer) writes. Cheap to clone.
///
/// A key is remembered until its row is removed. The draft requires that the API's documentation says how long that is;
/// a day is usual. Nothing removes rows unless you call this regularly:
///
/// ```no_run
/// use std::time::Duration;
/// use pillarbox_inbox::http::StoredRequests;
///
/// # async fn example(pool: sqlx::PgPool) -> Result<(), pillarbox_inbox::InboxError> {
/// let removed = StoredRequests::new(pool).remove_older_than(Duration::from_secs(24 * 3600)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StoredRequests {
    pool: PgPool,
    schema: Arc<str>,
    sessions: Arc<Sessions>,
    pool_check: PoolCheck,
    statements: Arc<Statements>,
}

#[derive(Debug)]
struct Statements {
    find: SqlStr,
    save: SqlStr,
    remove: SqlStr,
}

/// A request, as the table identifies it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) scope: String,
    pub(crate) key: Arc<str>,
    pub(crate) fingerprint: [u8; 32],
}

/// An answer, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

/// What is known of a key.
#[derive(Debug)]
pub(crate) enum Known {
    /// Nothing. The transaction now holds the key's lock, and has set a savepoint.
    New,
    /// Another transaction holds the lock.
    InProgress,
    /// The request was answered.
    Answered(Answer),
    /// Another request with this key was answered.
    Reused,
}

impl StoredRequests {
    /// The stored requests in schema `pillarbox`.
    pub fn new(pool: PgPool) -> Self {
        Self::with(pool, &Schema::default())
    }

    /// The stored requests in another schema.
    ///
    /// # Errors
    /// [`InboxError::Schema`].
    pub fn in_schema(pool: PgPool, schema: &str) -> Result<Self, InboxError> {
        Ok(Self::with(pool, &Schema::parse(schema)?))
    }

    fn with(pool: PgPool, schema: &Schema) -> Self {
        let statements = Statements {
            find: schema.statement(include_str!("find.sql")),
            save: schema.statement(include_str!("save.sql")),
            remove: schema.statement(include_str!("remove.sql")),
        };
        Self {
            pool,
            schema: schema.as_str().into(),
            sessions: Arc::default(),
            pool_check: PoolCheck::new(schema.as_str(), &["inbox_request"]),
            statements: Arc::new(statements),
        }
    }

    /// Removes requests that were answered longer ago than `age`, and returns how many. If such a request is repeated
    /// later, it runs as a new request. Rows are removed in batches of 1,000, each in a transaction of its own. New
    /// requests do not wait for this, and several processes may do it at once. If the future is dropped, removed rows
    /// stay removed.
    ///
    /// # Errors
    /// [`InboxError::Database`], and [`InboxError::Pooled`] behind a pooler in transaction mode.
    pub async fn remove_older_than(&self, age: Duration) -> Result<u64, InboxError> {
        let own = self.pool_check.are_own(&self.pool).await;
        own.map_err(InboxError::database("remove old requests"))?;
        let mut all = 0;
        loop {
            let remove = sqlx::query(self.statements.remove.clone())
                .bind(age.min(retention::LONGEST_AGE).as_secs_f64())
                .bind(BATCH);
            let removed = async { Lent::from(&self.pool).await?.execute(remove).await };
            let removed =
                removed.await.map_err(InboxError::database("remove old requests"))?.rows_affected();
            all += removed;
            if removed < BATCH.unsigned_abs() {
                return Ok(all);
            }
        }
    }

    /// Opens a transaction that the database ends if it is idle for too long. If a machine is lost, the keys of its
    /// requests stay locked until then.
    pub(crate) async fn begin(&self, longest_idle: Duration) -> Result<Begun, sqlx::Error> {
        let longest = longest_idle.as_millis().clamp(1, i32::MAX as u128);
        let begin = format!("begin; set local idle_in_transaction_session_timeout = {longest}");
        self.pool_check.are_own(&self.pool).await?;
        let begin = AssertSqlSafe(begin).into_sql_str();
        let tx = limited(BEGIN_TIMEOUT, Tx::begin(&self.pool, begin)).await?;
        Ok(Begun::new(tx))
    }

    /// Takes the lock of the key without waiting, and then looks up what is known of the key.
    pub(crate) async fn look(
        &self,
        begun: &mut Begun,
        of: &Identity,
    ) -> Result<Known, sqlx::Error> {
        let key = fingerprint::lock_of(&self.schema, &of.scope, &of.key);
        // The savepoint comes after the lock, so that rolling back to it keeps the lock. It is one round trip.
        let lock = format!(
            "{WHO}, pg_catalog.pg_try_advisory_xact_lock('{key}'::bigint); savepoint pillarbox_request"
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(lock)).fetch_all(&mut *begun.tx).await?;
        let row = self.mark_by(begun, &rows, Some(key)).await?;
        let locked: bool = row.try_get(2)?;
        // Also without the lock, because another repeat of the request may hold it at this same point.
        let find = sqlx::query(self.statements.find.clone()).bind(&of.scope).bind(&*of.key);
        let Some(row) = find.fetch_optional(&mut *begun.tx).await? else {
            return Ok(if locked { Known::New } else { Known::InProgress });
        };
        if row.try_get::<&[u8], _>(0)? != of.fingerprint {
            return Ok(Known::Reused);
        }
        let status: i32 = row.try_get(1)?;
        let (names, values): (Vec<String>, Vec<Vec<u8>>) = (row.try_get(2)?, row.try_get(3)?);
        Ok(Known::Answered(Answer {
            status: u16::try_from(status).map_err(|error| sqlx::Error::Decode(error.into()))?,
            headers: names.into_iter().zip(values).collect(),
            body: row.try_get(4)?,
        }))
    }

    /// Remembers the transaction of a request without a key.
    pub(crate) async fn mark(&self, begun: &mut Begun) -> Result<(), sqlx::Error> {
        let rows = sqlx::raw_sql(WHO).fetch_all(&mut *begun.tx).await?;
        self.mark_by(begun, &rows, None).await.map(drop)
    }

    /// Remembers the transaction by what [`WHO`] returned, which is the first row.
    async fn mark_by<'a>(
        &self,
        begun: &mut Begun,
        rows: &'a [PgRow],
        own_lock: Option<i64>,
    ) -> Result<&'a PgRow, sqlx::Error> {
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        begun.mark(&self.sessions, row.try_get(0)?, row.try_get(1)?, own_lock).await?;
        Ok(row)
    }

    /// Stores an answer.
    pub(crate) async fn save(
        &self,
        tx: &mut Tx,
        of: &Identity,
        answer: &Answer,
    ) -> Result<(), sqlx::Error> {
        let (names, values): (Vec<&str>, Vec<&[u8]>) =
            answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).unzip();
        sqlx::query(self.statements.save.clone())
            .bind(&of.scope)
            .bind(&*of.key)
            .bind(&of.fingerprint[..])
            .bind(i32::from(answer.status))
            .bind(names)
            .bind(values)
            .bind(&answer.body)
            .execute(&mut **tx)
            .await
            .map(drop)
    }
}

//! What a consumer has handled, and what is known of its failures: the statements.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use pillarbox_event::{Identity, RawEvent};
use pillarbox_store::Schema;
use pillarbox_store::dead_letters::of_inbox;
use pillarbox_store::limit::limited;
use pillarbox_store::literal::hex_text;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgExecutor, PgPool, Row, SqlSafeStr, SqlStr};

use crate::error::InboxError;
use crate::fault::is_of_data;
use crate::pooler::PoolCheck;
use crate::store::begin_and_claim::BeginAndClaim;
use crate::store::kept_connections::KeptConnections;
use crate::store::lent::{LONGEST, Lent};
use crate::store::session::Sessions;
use crate::store::text::{in_ascii, storable, without_comments};

/// How long a database that is well may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Sets how long a statement may take, to $1 milliseconds at the most, and says what it is then.
const LIMIT: &str = include_str!("limit.sql");

const FORGET: &str = "delete from pillarbox.inbox_failure \
     where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2";

/// The tables in which "no row" has to mean that there is none.
pub(crate) const TABLES: [&str; 5] =
    ["inbox", "inbox_forgotten", "inbox_failure", "inbox_dead_letter", "inbox_process"];

/// Where a consumer keeps what it has handled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// Behind [`pool`](Self::pool), which looks first.
    pub(super) pool: PgPool,
    pub(crate) consumer: Arc<str>,
    schema: Schema,
    pub(super) statements: Arc<Statements>,
    /// `None` where nothing is kept.
    pub(super) begin_and_claim: Option<Arc<BeginAndClaim>>,
    pub(super) kept: Option<Arc<KeptConnections>>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) pool_check: PoolCheck,
    /// Whether events of a key are handled in their order.
    pub(super) keeps_keys: bool,
    /// Whether a key waits behind its dead letter.
    pub(crate) strict: bool,
    /// The stream that it reads, if it does.
    pub(crate) stream: Option<Arc<str>>,
}

#[derive(Debug)]
pub(super) struct Statements {
    pub(super) begin: SqlStr,
    pub(super) claim: SqlStr,
    pub(super) recorded: SqlStr,
    pub(super) forget: SqlStr,
    pub(super) forget_skipped: SqlStr,
    pub(super) release: SqlStr,
    pub(super) fail: SqlStr,
    pub(super) outage: SqlStr,
    pub(super) excuse: SqlStr,
    pub(super) well: SqlStr,
    pub(super) mark: SqlStr,
    pub(super) unmark: SqlStr,
    pub(super) bury: SqlStr,
    pub(super) blocked: SqlStr,
    pub(super) park: SqlStr,
    pub(super) park_all: SqlStr,
    pub(super) give_back: SqlStr,
    pub(super) claim_all: SqlStr,
    pub(super) unclaim: SqlStr,
    pub(super) forget_all: SqlStr,
    pub(super) due: SqlStr,
    pub(super) rest: SqlStr,
    pub(super) set_aside: SqlStr,
    pub(super) spoil: SqlStr,
    pub(super) letters: SqlStr,
    pub(super) find: SqlStr,
    pub(super) retry: SqlStr,
    pub(super) discard: SqlStr,
    pub(super) forgotten: SqlStr,
    pub(super) remove_old: SqlStr,
    pub(super) forget_old: SqlStr,
    pub(super) remove_resolved: SqlStr,
    pub(super) is_handled: SqlStr,
}

/// What was known of an event when it was marked as begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It is handled already, and was not marked.
    Handled,
    /// How far it was under suspicion, and for how long it had been so far.
    Started {
        /// See `mark.sql`.
        step: u32,
        /// For how long it had been in work.
        lasted: Duration,
        /// Whether a process of the consumer died for reasons of its own of late.
        own_deaths: bool,
    },
}

impl Store {
    /// `longest` is how long a transaction may be idle, and a statement may take, before the database ends it: a
    /// process that hangs, or whose machine is gone, and a statement whose handler was dropped, hold their events'
    /// rows until then. A lower statement_timeout that the connection has stays.
    pub fn new(
        pool: PgPool,
        consumer: &str,
        schema: &str,
        longest: Option<Duration>,
    ) -> Result<Self, InboxError> {
        let schema = Schema::parse(schema)?;
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(schema.statement(text))).into_sql_str();
        let claim = sql(include_str!("claim.sql"));
        let release = sql(include_str!("release.sql"));
        let mut begin = "begin".to_owned();
        let mut begin_and_claim = None;
        if let Some(longest) = longest {
            let longest = longest.as_millis().min(i32::MAX as u128);
            let idle = format!("begin; set local idle_in_transaction_session_timeout = {longest};");
            begin = format!("{idle} {}", LIMIT.replace("$1", &longest.to_string()));
            let known = format!("{idle} set local statement_timeout =");
            let (claim, release) = (claim.as_str(), release.as_str());
            let both = BeginAndClaim::new(begin.clone(), known, claim, release, consumer);
            begin_and_claim = Some(Arc::new(both));
        }
        let statements = Statements {
            begin: sql(&begin),
            claim,
            recorded: sql(include_str!("recorded.sql")),
            forget: sql(FORGET),
            forget_skipped: sql(include_str!("forget_skipped.sql")),
            release,
            fail: sql(include_str!("fail.sql")),
            outage: sql(include_str!("outage.sql")),
            excuse: sql(include_str!("excuse.sql")),
            well: sql(&without_comments(include_str!("well.sql"))),
            mark: sql(include_str!("mark.sql")),
            unmark: sql(include_str!("unmark.sql")),
            bury: sql(include_str!("bury.sql")),
            blocked: sql(include_str!("blocked.sql")),
            park: sql(include_str!("park.sql")),
            park_all: sql(include_str!("park_all.sql")),
            give_back: sql(include_str!("give_back.sql")),
            claim_all: sql(include_str!("claim_all.sql")),
            unclaim: sql("delete from pillarbox.inbox \
                 where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2)"),
            forget_all: sql("delete from pillarbox.inbox_failure \
                 where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2)"),
            due: sql(include_str!("due.sql")),
            rest: sql("update pillarbox.inbox_dead_letter \
                 set due_at = pg_catalog.clock_timestamp() operator(pg_catalog.+) \
                 ($3::bigint::double precision operator(pg_catalog.*) interval '1 millisecond') \
                 where consumer operator(pg_catalog.=) $1 and coalesce(identity, event_id) operator(pg_catalog.=) $2 \
                 and event_type is not null and state operator(pg_catalog.=) 'parked'"),
            set_aside: sql(include_str!("set_aside.sql")),
            spoil: sql("update pillarbox.inbox_dead_letter \
                 set state = 'dead', reason = 'undecodable', error = $3, dead_at = pg_catalog.clock_timestamp(), due_at = null \
                 where consumer operator(pg_catalog.=) $1 and position operator(pg_catalog.=) $2 \
                 and state operator(pg_catalog.=) 'parked'"),
            letters: sql(of_inbox::LIST),
            find: sql(of_inbox::FIND),
            retry: sql(of_inbox::RETRY),
            discard: sql(of_inbox::DISCARD),
            forgotten: sql("select (select handled_at from pillarbox.inbox_forgotten \
                 where consumer operator(pg_catalog.=) $1)"),
            remove_old: sql(include_str!("remove_old.sql")),
            forget_old: sql(include_str!("forget_old.sql")),
            remove_resolved: sql(include_str!("remove_resolved.sql")),
            is_handled: sql("select exists (select from pillarbox.inbox \
                 where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2)"),
        };
        let statements = Arc::new(statements);
        Ok(Self {
            pool,
            consumer: consumer.into(),
            statements,
            begin_and_claim,
            kept: None,
            sessions: Arc::default(),
            pool_check: PoolCheck::new(schema.as_str(), &TABLES),
            schema,
            keeps_keys: false,
            strict: false,
            stream: None,
        })
    }

    /// For what reads this stream: its dead letters are that stream's.
    pub fn of_stream(mut self, stream: &str) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// Keeps the order of each key; `strict`: also behind a dead letter of it.
    pub fn keeping_keys(mut self, keeps_keys: bool, strict: bool) -> Self {
        (self.keeps_keys, self.strict) = (keeps_keys, strict);
        self
    }

    /// Keeps connections from one event to the next. Whoever asks for it also calls
    /// [`give_back`](Self::give_back), about once a second and at the end.
    pub fn keeping(mut self) -> Self {
        self.kept = Some(Arc::default());
        self
    }

    /// Gives connections back to the pool that were [kept](Self::keeping) for long; all of them if `all`.
    pub async fn give_back(&self, all: bool) {
        if let Some(kept) = &self.kept {
            kept.give_back(all).await;
        }
    }

    /// The consumer's name.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Fails unless the pool's sessions are its own, and see all rows. Asks until all is well.
    ///
    /// # Errors
    /// [`InboxError::Pooled`], [`InboxError::Hidden`]; others where the database could not be asked.
    pub async fn check_sessions(&self) -> Result<(), InboxError> {
        let own = self.has_own_sessions().await;
        own.map_err(InboxError::database("ask the database for its sessions"))
    }

    /// The pool, once it is known that its sessions are its own: behind a pooler in transaction mode a statement may run
    /// that nobody sent.
    pub async fn pool(&self) -> Result<&PgPool, sqlx::Error> {
        self.has_own_sessions().await?;
        Ok(&self.pool)
    }

    /// A connection of the pool, once it is known that its sessions are its own.
    pub async fn lend(&self) -> Result<Lent, sqlx::Error> {
        Lent::from(self.pool().await?).await
    }

    /// Removes what is known of failed attempts at an event that was skipped as handled, unless it is parked.
    pub async fn forget_skipped(&self, event_id: &str) -> Result<(), sqlx::Error> {
        let forget = sqlx::query(self.statements.forget_skipped.clone());
        let forget = forget.bind(&*self.consumer).bind(event_id);
        self.lend().await?.execute(forget).await.map(drop)
    }

    /// Events that this transaction recorded are not handled after all.
    pub(crate) async fn unclaim(
        &self,
        executor: impl PgExecutor<'_>,
        event_ids: &[&str],
    ) -> Result<(), sqlx::Error> {
        let unclaim = sqlx::query(self.statements.unclaim.clone());
        unclaim.bind(&*self.consumer).bind(event_ids).execute(executor).await.map(drop)
    }

    /// Events that were recorded are not handled after all, in a transaction of its own.
    pub(crate) async fn unclaim_now(&self, event_ids: &[&str]) -> Result<(), sqlx::Error> {
        let mut lent = self.lend().await?;
        let unclaimed = limited(LONGEST, self.unclaim(&mut *lent, event_ids)).await;
        lent.give_back(unclaimed)
    }

    /// Removes what is known of failed attempts at an event, as the text of a simple query.
    pub(super) fn forget_text(&self, event_id: &str) -> String {
        let text = self.statements.forget.as_str();
        let text = text.replace("$1", &hex_text(&self.consumer));
        format!("{}; ", text.replace("$2", &hex_text(event_id)))
    }

    /// Removes what is known of failed attempts at many events.
    pub(crate) async fn forget_all(
        &self,
        executor: impl PgExecutor<'_>,
        event_ids: &[&str],
    ) -> Result<(), sqlx::Error> {
        let forget = sqlx::query(self.statements.forget_all.clone());
        forget.bind(&*self.consumer).bind(event_ids).execute(executor).await.map(drop)
    }

    /// The statement that removes old rows, and those that remove old failures and old resolved dead letters.
    pub(crate) fn remove_old(&self) -> (SqlStr, [SqlStr; 2]) {
        let Statements { remove_old, forget_old, remove_resolved, .. } = &*self.statements;
        (remove_old.clone(), [forget_old.clone(), remove_resolved.clone()])
    }

    /// Until when something was handled that is forgotten. `None` if nothing is.
    pub async fn forgotten_until(&self) -> Result<Option<SystemTime>, sqlx::Error> {
        let forgotten = sqlx::query(self.statements.forgotten.clone()).bind(&*self.consumer);
        use sqlx::{ConnectOptions as _, Connection as _};
        // Handlers may have every connection of the pool in use.
        let asked = async {
            let mut connection = self.pool.connect_options().connect().await?;
            let row = forgotten.fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(row)
        };
        let late = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let row = tokio::time::timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| late())??;
        let handled_at: Option<time::OffsetDateTime> = row.try_get(0)?;
        Ok(handled_at.map(SystemTime::from))
    }

    /// Whether the event is handled, or given up.
    pub async fn is_handled(&self, event_id: &str) -> Result<bool, sqlx::Error> {
        let handled = sqlx::query(self.statements.is_handled.clone());
        let handled = handled.bind(&*self.consumer).bind(event_id);
        self.lend().await?.fetch_one(handled).await?.try_get(0)
    }

    /// A statement of the source's own, whose tables are named in schema `pillarbox`, for this inbox's schema.
    pub fn statement(&self, sql: &str) -> SqlStr {
        AssertSqlSafe(Arc::<str>::from(self.schema.statement(sql))).into_sql_str()
    }

    /// Marks an event that was delivered before as begun. `parked`: it was taken from the dead letters.
    pub async fn mark(
        &self,
        event: &RawEvent,
        alone: bool,
        parked: bool,
    ) -> Result<Marked, sqlx::Error> {
        let identity = event.identity();
        let (id, source) = in_clear(event, &identity);
        let mark = sqlx::query(self.statements.mark.clone())
            .bind(&*self.consumer)
            .bind(identity.as_str())
            .bind(alone)
            .bind(id)
            .bind(source)
            .bind(parked);
        let row = self.lend().await?.fetch_one(mark).await?;
        if row.try_get(0)? {
            return Ok(Marked::Handled);
        }
        let (step, seconds): (i32, f64) = (row.try_get(1)?, row.try_get(2)?);
        Ok(Marked::Started {
            step: step.unsigned_abs(),
            lasted: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            own_deaths: row.try_get(3)?,
        })
    }

    /// Marked events have ended, without a failure to be counted.
    pub async fn unmark(&self, event_ids: &[String]) -> Result<(), sqlx::Error> {
        let unmark = sqlx::query(self.statements.unmark.clone());
        let unmark = unmark.bind(&*self.consumer).bind(event_ids);
        self.lend().await?.execute(unmark).await.map(drop)
    }

    /// Whether the database answers, before long.
    pub async fn answers(&self) -> bool {
        let asked = async { self.lend().await?.execute(sqlx::query("select 1")).await };
        matches!(tokio::time::timeout(ANSWER_TIMEOUT, asked).await, Ok(Ok(_)))
    }

    /// Counts a failed attempt, and returns how many there were.
    pub async fn record_failure(&self, event: &RawEvent, error: &str) -> Result<u32, sqlx::Error> {
        self.record(&self.statements.fail, event, error).await?.try_get(0).map(i32::unsigned_abs)
    }

    /// Notes a failure that is not counted as an attempt, and returns how many there were.
    pub async fn record_uncounted(
        &self,
        event: &RawEvent,
        error: &str,
    ) -> Result<u32, sqlx::Error> {
        self.record(&self.statements.excuse, event, error).await?.try_get(0).map(i32::unsigned_abs)
    }

    /// Notes that somebody was away whom the event needs, and returns how often that was, and how long it has lasted.
    /// No attempt is counted.
    pub async fn record_outage(
        &self,
        event: &RawEvent,
        error: &str,
    ) -> Result<(u32, Duration), sqlx::Error> {
        let row = self.record(&self.statements.outage, event, error).await?;
        let (times, seconds): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
        Ok((times.unsigned_abs(), Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }

    async fn record(
        &self,
        statement: &SqlStr,
        event: &RawEvent,
        error: &str,
    ) -> Result<PgRow, sqlx::Error> {
        let identity = event.identity();
        let (id, source) = in_clear(event, &identity);
        let record = async |error: &str, id: Option<Cow<'_, str>>, source: Option<Cow<'_, str>>| {
            let record = sqlx::query(statement.clone()).bind(&*self.consumer);
            let record = record.bind(identity.as_str()).bind(error).bind(id).bind(source);
            self.lend().await?.fetch_one(record).await
        };
        let error = storable(error);
        match record(&error, id.map(Cow::from), source.map(Cow::from)).await {
            // The texts may be what the database's encoding has no characters for.
            Err(refused) if is_of_data(&refused) => {
                record(&in_ascii(&error), id.map(in_ascii), source.map(in_ascii)).await
            }
            recorded => recorded,
        }
    }
}

/// An event's id and source, where its identity shows neither.
fn in_clear<'a>(event: &'a RawEvent, identity: &Identity) -> (Option<&'a str>, Option<&'a str>) {
    let id = event.id().as_str();
    if identity.as_str() == id { (None, None) } else { (Some(id), event.source()) }
}

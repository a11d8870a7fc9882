//! The statements about what a consumer has handled, and about its failures.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use pillarbox_event::{Identity, RawEvent};
use pillarbox_store::Schema;
use pillarbox_store::dead_letters::of_inbox;
use pillarbox_store::literal::hex_text;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{PgExecutor, PgPool, Row, SqlStr};

use crate::error::InboxError;
use crate::pooler::PoolCheck;
use crate::store::begin_and_claim::BeginAndClaim;
use crate::store::begun::unexpected;
use crate::store::kept_connections::KeptConnections;
use crate::store::lent::Lent;
use crate::store::session::Sessions;
use crate::store::text::{in_ascii, storable, without_comments};
use pillarbox_store::bad_data::is_refused_value;

/// The time limit for an answer of a database that works.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Limits how long a statement may take, to at most $1 milliseconds, and returns the limit.
const LIMIT: &str = include_str!("limit.sql");

const FORGET: &str = "delete from pillarbox.inbox_failure \
     where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2";

/// The tables in which "no row" must mean that there is none, so that no policy may hide rows.
pub(crate) const TABLES: [&str; 7] = [
    "inbox",
    "inbox_forgotten",
    "inbox_failure",
    "inbox_dead_letter",
    "inbox_process",
    "inbox_pause",
    "inbox_rate",
];

/// The place where a consumer records what it has handled. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct Store {
    /// Use [`pool`](Self::pool), which checks it first.
    pub(super) pool: PgPool,
    pub(crate) consumer: Arc<str>,
    pub(super) schema: Schema,
    pub(super) statements: Arc<Statements>,
    /// `None`: transactions have no time limit, so nothing is sent in one trip.
    pub(super) begin_and_claim: Option<Arc<BeginAndClaim>>,
    pub(super) kept: Option<Arc<KeptConnections>>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) pool_check: PoolCheck,
    /// Whether events of a key are handled in their order.
    pub(super) keeps_keys: bool,
    /// Whether a key waits behind its dead letters.
    pub(crate) strict: bool,
    /// The stream that the consumer reads, if it reads one.
    pub(crate) stream: Option<Arc<str>>,
}

/// What was known of an event when it was marked as begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It was handled before, and is not marked.
    Handled,
    /// It is marked.
    Started {
        /// The step of suspicion; `mark.sql` explains it.
        step: u32,
        /// How long it had been in progress.
        lasted: Duration,
        /// Whether a process of the consumer recently died for reasons of its own.
        own_deaths: bool,
    },
}

/// Declares the statements that are made for a schema, each as `name = text;`.
macro_rules! statements {
    ($($name:ident = $text:expr;)+) => {
        #[derive(Debug)]
        pub(super) struct Statements {
            pub(super) begin: SqlStr,
            $(pub(super) $name: SqlStr,)+
        }

        impl Statements {
            /// The statements for the tables in this schema. `begin` begins a transaction.
            fn new(schema: &Schema, begin: &str) -> Self {
                Self { begin: schema.statement(begin), $($name: schema.statement($text),)+ }
            }
        }
    };
}

statements! {
    claim = include_str!("claim.sql");
    recorded = include_str!("recorded.sql");
    handled = include_str!("handled.sql");
    forget = FORGET;
    forget_skipped = include_str!("forget_skipped.sql");
    release = include_str!("release.sql");
    release_all = include_str!("release_all.sql");
    park_again = "update pillarbox.inbox_dead_letter set state = 'parked', resolved_at = null \
         where consumer operator(pg_catalog.=) $1 and coalesce(identity, event_id) operator(pg_catalog.=) any ($2) \
         and event_type is not null and state operator(pg_catalog.=) 'retried'";
    fail = include_str!("fail.sql");
    outage = include_str!("outage.sql");
    excuse = include_str!("excuse.sql");
    well = &without_comments(include_str!("well.sql"));
    mark = include_str!("mark.sql");
    unmark = include_str!("unmark.sql");
    bury = include_str!("bury.sql");
    blocked = include_str!("blocked.sql");
    park = include_str!("park.sql");
    park_all = include_str!("park_all.sql");
    give_back = include_str!("give_back.sql");
    claim_all = include_str!("claim_all.sql");
    unclaim = "delete from pillarbox.inbox \
         where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2)";
    forget_all = "delete from pillarbox.inbox_failure \
         where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2)";
    due = include_str!("due.sql");
    rest = "update pillarbox.inbox_dead_letter \
         set due_at = pg_catalog.clock_timestamp() operator(pg_catalog.+) \
         ($3::bigint::double precision operator(pg_catalog.*) interval '1 millisecond') \
         where consumer operator(pg_catalog.=) $1 and coalesce(identity, event_id) operator(pg_catalog.=) $2 \
         and event_type is not null and state operator(pg_catalog.=) 'parked'";
    rest_paused = "update pillarbox.inbox_dead_letter \
         set due_at = pg_catalog.clock_timestamp() operator(pg_catalog.+) \
         ($3::bigint::double precision operator(pg_catalog.*) interval '1 millisecond'), \
         error = 'events of its type are paused' \
         where consumer operator(pg_catalog.=) $1 and coalesce(identity, event_id) operator(pg_catalog.=) $2 \
         and event_type is not null and state operator(pg_catalog.=) 'parked'";
    end_pauses = "update pillarbox.inbox_dead_letter set due_at = null \
         where consumer operator(pg_catalog.=) $1 and state operator(pg_catalog.=) 'parked' \
         and error operator(pg_catalog.=) 'events of its type are paused' \
         and event_type operator(pg_catalog.<>) all ($2) \
         and due_at operator(pg_catalog.>) (pg_catalog.clock_timestamp() operator(pg_catalog.+) \
         ($3::bigint::double precision operator(pg_catalog.*) interval '1 millisecond'))";
    beat = include_str!("beat.sql");
    take_rate = include_str!("take_rate.sql");
    leave = "delete from pillarbox.inbox_member \
         where consumer operator(pg_catalog.=) $1 and process operator(pg_catalog.=) $2";
    set_aside = include_str!("set_aside.sql");
    spoil = "update pillarbox.inbox_dead_letter \
         set state = 'dead', reason = 'undecodable', error = $3, dead_at = pg_catalog.clock_timestamp(), due_at = null \
         where consumer operator(pg_catalog.=) $1 and position operator(pg_catalog.=) $2 \
         and state operator(pg_catalog.=) 'parked'";
    letters = of_inbox::LIST;
    find = of_inbox::FIND;
    retry = of_inbox::RETRY;
    discard = of_inbox::DISCARD;
    forgotten = "select (select handled_at from pillarbox.inbox_forgotten \
         where consumer operator(pg_catalog.=) $1)";
    remove_old = include_str!("remove_old.sql");
    forget_old = include_str!("forget_old.sql");
    remove_resolved = include_str!("remove_resolved.sql");
    is_handled = "select exists (select from pillarbox.inbox \
         where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2)";
}

impl Store {
    /// `longest` is how long a transaction may be idle, and how long a statement may take, before the database ends it.
    /// If a process hangs, its machine is lost, or its handler was dropped, the rows of its events stay locked until
    /// then. If the connection has a lower statement_timeout, that one stays.
    pub fn new(
        pool: PgPool,
        consumer: &str,
        schema: &str,
        longest: Option<Duration>,
    ) -> Result<Self, InboxError> {
        let schema = Schema::parse(schema)?;
        let longest = longest.map(|longest| longest.as_millis().min(i32::MAX as u128));
        let idle = longest.map(|longest| {
            format!("begin; set local idle_in_transaction_session_timeout = {longest};")
        });
        let begin = match (&idle, longest) {
            (Some(idle), Some(longest)) => {
                format!("{idle} {}", LIMIT.replace("$1", &longest.to_string()))
            }
            _ => "begin".to_owned(),
        };
        let statements = Statements::new(&schema, &begin);
        let begin_and_claim = idle.map(|idle| {
            let known = format!("{idle} set local statement_timeout =");
            let (claim, release) = (statements.claim.as_str(), statements.release.as_str());
            Arc::new(BeginAndClaim::new(begin, known, claim, release, consumer))
        });
        Ok(Self {
            pool,
            consumer: consumer.into(),
            statements: Arc::new(statements),
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

    /// For a consumer that reads this stream. Its dead letters then belong to that stream.
    pub fn of_stream(mut self, stream: &str) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// Keeps the order of each key. `strict`: a key also waits behind its dead letters.
    pub fn keeping_keys(mut self, keeps_keys: bool, strict: bool) -> Self {
        (self.keeps_keys, self.strict) = (keeps_keys, strict);
        self
    }

    /// Keeps connections from one event to the next. The caller must call [`give_back`](Self::give_back) about once a
    /// second, and at the end.
    pub fn keeping(mut self) -> Self {
        self.kept = Some(Arc::default());
        self
    }

    /// Gives connections that were [kept](Self::keeping) for long back to the pool; all of them if `all`.
    pub async fn give_back(&self, all: bool) {
        if let Some(kept) = &self.kept {
            kept.give_back(all).await;
        }
    }

    /// The consumer's name.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Fails unless the pool's sessions are its own and see all rows. Checks until both are certain.
    ///
    /// # Errors
    /// [`InboxError::Pooled`] and [`InboxError::Hidden`]. Other errors if the database could not be asked.
    pub async fn check_sessions(&self) -> Result<(), InboxError> {
        let own = self.has_own_sessions().await;
        own.map_err(InboxError::database("ask the database for its sessions"))
    }

    /// The pool, once it is certain that its sessions are its own. Behind a pooler in transaction mode, a statement
    /// that nobody sent may run.
    pub async fn pool(&self) -> Result<&PgPool, sqlx::Error> {
        self.has_own_sessions().await?;
        Ok(&self.pool)
    }

    /// A connection of the pool, once it is certain that its sessions are its own.
    pub async fn lend(&self) -> Result<Lent, sqlx::Error> {
        Lent::from(self.pool().await?).await
    }

    /// A statement, with the consumer's name as its first parameter.
    pub fn query(&self, statement: &SqlStr) -> Query<'_, Postgres, PgArguments> {
        sqlx::query(statement.clone()).bind(&*self.consumer)
    }

    /// Removes what is known of failed attempts at an event that was skipped as handled, unless the event is parked.
    pub async fn forget_skipped(&self, event_id: &str) -> Result<(), sqlx::Error> {
        let forget = self.query(&self.statements.forget_skipped).bind(event_id);
        self.lend().await?.execute(forget).await.map(drop)
    }

    /// Deletes the records of events that this transaction made, because they are not handled after all.
    pub(crate) async fn unclaim(
        &self,
        executor: impl PgExecutor<'_>,
        event_ids: &[&str],
    ) -> Result<(), sqlx::Error> {
        self.query(&self.statements.unclaim).bind(event_ids).execute(executor).await.map(drop)
    }

    /// The text of a simple query that removes what is known of failed attempts at an event.
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
        self.query(&self.statements.forget_all).bind(event_ids).execute(executor).await.map(drop)
    }

    /// The statement that removes old rows, and the two that remove old failures and old resolved dead letters.
    pub(crate) fn remove_old(&self) -> (SqlStr, [SqlStr; 2]) {
        let Statements { remove_old, forget_old, remove_resolved, .. } = &*self.statements;
        (remove_old.clone(), [forget_old.clone(), remove_resolved.clone()])
    }

    /// The statement that removes operators' actions that are older than $1 seconds.
    pub(crate) fn remove_actions(&self) -> SqlStr {
        self.schema.statement(pillarbox_store::actions::REMOVE_OLD)
    }

    /// The latest time at which an event was handled whose row has been removed. `None`: no row has been removed.
    pub async fn forgotten_until(&self) -> Result<Option<SystemTime>, sqlx::Error> {
        let forgotten = self.query(&self.statements.forgotten);
        use sqlx::{ConnectOptions as _, Connection as _};
        // Handlers may use every connection of the pool, so this opens its own.
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

    /// Whether the event was handled or given up.
    pub async fn is_handled(&self, event_id: &str) -> Result<bool, sqlx::Error> {
        let handled = self.query(&self.statements.is_handled).bind(event_id);
        self.lend().await?.fetch_one(handled).await?.try_get(0)
    }

    /// Which of these events have their row in the inbox, by one statement outside of any transaction: they were
    /// handled, given up or parked, and all of them leave the stream. Each with whether a failure of it is still known,
    /// for [`forget_skipped`](Self::forget_skipped). About the others nothing is known; they may be handled at this
    /// moment.
    pub async fn which_are_handled(
        &self,
        event_ids: &[&str],
    ) -> Result<HashMap<String, bool>, sqlx::Error> {
        let handled = self.query(&self.statements.handled).bind(event_ids);
        let rows = self.lend().await?.fetch_all(handled).await?;
        let handled = rows.iter().map(|row| match row.try_get::<&str, _>(0)? == &*self.consumer {
            true => Ok((row.try_get(1)?, row.try_get(2)?)),
            false => Err(unexpected("that an event of another consumer is handled")),
        });
        handled.collect()
    }

    /// A statement of the event source, for this inbox's schema. In `sql`, the tables are named in schema `pillarbox`.
    pub fn statement(&self, sql: &str) -> SqlStr {
        self.schema.statement(sql)
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
        let mark = self
            .query(&self.statements.mark)
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

    /// Removes the marks of events that have ended without a failure that counts.
    pub async fn unmark(&self, event_ids: &[String]) -> Result<(), sqlx::Error> {
        let unmark = self.query(&self.statements.unmark).bind(event_ids);
        self.lend().await?.execute(unmark).await.map(drop)
    }

    /// Whether the database answers within three seconds.
    pub async fn answers(&self) -> bool {
        let asked = async { self.lend().await?.execute(sqlx::query("select 1")).await };
        matches!(tokio::time::timeout(ANSWER_TIMEOUT, asked).await, Ok(Ok(_)))
    }

    /// Counts a failed attempt, and returns how many there were.
    pub async fn record_failure(&self, event: &RawEvent, error: &str) -> Result<u32, sqlx::Error> {
        self.record(&self.statements.fail, event, error).await?.try_get(0).map(i32::unsigned_abs)
    }

    /// Records a failure that does not count as an attempt, and returns how many there were.
    pub async fn record_uncounted(
        &self,
        event: &RawEvent,
        error: &str,
    ) -> Result<u32, sqlx::Error> {
        self.record(&self.statements.excuse, event, error).await?.try_get(0).map(i32::unsigned_abs)
    }

    /// Records an outage of another party that the event needs, and returns how often that happened and how long it has
    /// lasted. Counts no attempt.
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
            // The texts may contain characters that the database's encoding does not have.
            Err(refused) if is_refused_value(&refused) => {
                record(&in_ascii(&error), id.map(in_ascii), source.map(in_ascii)).await
            }
            recorded => recorded,
        }
    }
}

/// An event's id and source, if its identity is not simply the id.
fn in_clear<'a>(event: &'a RawEvent, identity: &Identity) -> (Option<&'a str>, Option<&'a str>) {
    let id = event.id().as_str();
    if identity.as_str() == id { (None, None) } else { (Some(id), event.source()) }
}

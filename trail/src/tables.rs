//! The trail's tables, as the process that fills them uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pillarbox_relay::Database;
use pillarbox_store::limit::limited;
use pillarbox_store::{Schema, bad_data};
use sqlx::types::time::Date;
use sqlx::{Connection, PgConnection, Row as _};
use time::OffsetDateTime;

use crate::place::{Place, microseconds};
use crate::row::Row;

/// How long the database may take for one statement.
const ANSWER: Duration = Duration::from_secs(60);
/// How far ahead of this machine's clock a message's time may be.
const AHEAD: time::Duration = time::Duration::days(1);

/// A connection to the trail's tables. After an error it must not be used again.
pub(crate) struct Tables {
    connection: PgConnection,
    schema: Schema,
    /// The days whose partitions are there.
    days: BTreeSet<Date>,
    retention: Duration,
    /// Somebody else kept the tables the last time that days were to be made or dropped.
    in_use: bool,
}

/// What became of a batch of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) recorded: usize,
    pub(crate) foreign: usize,
    pub(crate) skipped: usize,
}

impl Tables {
    /// Connects. `None`: another process has the trail.
    pub(crate) async fn open(
        database: &Database,
        schema: &Schema,
        retention: Duration,
    ) -> Result<Option<Self>, sqlx::Error> {
        let mut connection = database.one_direct().await?;
        let lock = sqlx::query(
            "select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('pillarbox trail ' || $1, 0))",
        );
        let locked = lock.bind(schema.as_str()).fetch_one(&mut connection);
        if !limited(ANSWER, locked).await?.try_get::<bool, _>(0)? {
            let _ = limited(ANSWER, connection.close()).await;
            return Ok(None);
        }
        // What a crash of the database takes away with the rows is their place, so they are read again.
        let set = sqlx::query("set synchronous_commit = off").execute(&mut connection);
        limited(ANSWER, set).await?;
        let schema = schema.clone();
        Ok(Some(Self { connection, schema, days: BTreeSet::new(), retention, in_use: false }))
    }

    /// The place in the newest life of each stream that was read.
    pub(crate) async fn places(&mut self) -> Result<BTreeMap<String, Place>, sqlx::Error> {
        let sql = self.schema.statement(
            "select distinct on (stream) stream, life, sequence, stored_at from pillarbox.trail_stream \
             where stored_at is not null order by stream, read_at desc nulls last, life desc",
        );
        let read = sqlx::query_as::<_, (String, OffsetDateTime, i64, OffsetDateTime)>(sql);
        let rows = limited(ANSWER, read.fetch_all(&mut self.connection)).await?;
        let place = |(stream, life, sequence, stored): (_, _, i64, _)| {
            (stream, Place { life, sequence: sequence.cast_unsigned(), stored })
        };
        Ok(rows.into_iter().map(place).collect())
    }

    /// The time from which rows are kept.
    pub(crate) fn since(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() - self.retention
    }

    /// Writes the rows of one life of a stream and the place after them, in one transaction. Rows that are there
    /// already stay as they are. Rows outside the time that is kept are skipped.
    pub(crate) async fn write(
        &mut self,
        stream: &str,
        place: Place,
        rows: &[Row],
    ) -> Result<Written, sqlx::Error> {
        let (since, until) = (self.since(), OffsetDateTime::now_utc() + AHEAD);
        let kept: Vec<&Row> =
            rows.iter().filter(|row| (since..until).contains(&row.stored)).collect();
        self.make_days(&kept).await?;
        let recorded = match self.write_all(stream, place, &kept).await {
            Err(error) if bad_data::is_refused_value(&error) => {
                // Perhaps somebody dropped a partition.
                self.days.clear();
                self.make_days(&kept).await?;
                self.write_each(stream, place, &kept).await?
            }
            written => written.map(|()| kept.len())?,
        };
        let foreign = kept.iter().filter(|row| row.event.is_none()).count();
        Ok(Written { recorded, foreign, skipped: rows.len() - recorded })
    }

    async fn write_all(
        &mut self,
        stream: &str,
        place: Place,
        rows: &[&Row],
    ) -> Result<(), sqlx::Error> {
        let columns = Columns::of(rows);
        let insert = self.schema.statement(include_str!("insert.sql"));
        let moved = self.schema.statement(MOVE);
        let connection = &mut self.connection;
        limited(ANSWER, async {
            let mut transaction = connection.begin().await?;
            if !rows.is_empty() {
                columns.bind(sqlx::query(insert), stream, place).execute(&mut *transaction).await?;
            }
            sqlx::query(moved)
                .bind(stream)
                .bind(place.life)
                .bind(place.sequence.cast_signed())
                .bind(place.stored)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        })
        .await
    }

    /// Writes row by row, so that one that the database does not take keeps no other back.
    async fn write_each(
        &mut self,
        stream: &str,
        place: Place,
        rows: &[&Row],
    ) -> Result<usize, sqlx::Error> {
        let mut written = 0;
        for row in rows {
            let here = Place::after(place.life, row.sequence, row.stored);
            match self.write_all(stream, here, &[row]).await {
                Ok(()) => written += 1,
                Err(error) if bad_data::is_refused_value(&error) => {
                    let (sequence, error) = (row.sequence, pillarbox_store::full_text(&error));
                    tracing::error!(
                        stream,
                        sequence,
                        error,
                        "the trail's table does not take this message"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        self.write_all(stream, place, &[]).await?;
        Ok(written)
    }

    async fn make_days(&mut self, rows: &[&Row]) -> Result<(), sqlx::Error> {
        let day = |row: &&Row| row.stored.to_offset(time::UtcOffset::UTC).date();
        let days: BTreeSet<Date> = rows.iter().map(day).collect();
        let missing: Vec<Date> = days.difference(&self.days).copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let sql = self.schema.statement("select pillarbox.trail_days($1)");
        let made = sqlx::query(sql).bind(&missing).execute(&mut self.connection);
        limited(ANSWER, made).await?;
        self.days.extend(missing);
        Ok(())
    }

    /// Writes how far a stream is, and why it cannot be read.
    pub(crate) async fn looked(
        &mut self,
        stream: &str,
        life: OffsetDateTime,
        last_sequence: u64,
        problem: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        let problem = problem.map(|text| text.replace('\0', ""));
        let written = sqlx::query(self.schema.statement(LOOKED))
            .bind(stream)
            .bind(microseconds(life))
            .bind(last_sequence.cast_signed())
            .bind(problem);
        limited(ANSWER, written.execute(&mut self.connection)).await.map(drop)
    }

    /// Makes the day of tomorrow, and drops the days that are too old or too much. Returns the names of what was
    /// dropped. Both need the tables for themselves for a moment. While somebody else uses them for long, for example
    /// to dump the database, nothing is done, and it is tried again with the next call.
    pub(crate) async fn forget(&mut self, most_bytes: u64) -> Result<Vec<String>, sqlx::Error> {
        let days = self.schema.statement(TOMORROW);
        let forget = self.schema.statement("select pillarbox.trail_forget($1, $2)");
        let seconds = self.retention.as_secs().cast_signed();
        let connection = &mut self.connection;
        let done = limited(ANSWER, async {
            let mut transaction = connection.begin().await?;
            let done = async {
                sqlx::query(LOCK_TIMEOUT).execute(&mut *transaction).await?;
                sqlx::query(days).execute(&mut *transaction).await?;
                let forgotten = sqlx::query_scalar::<_, String>(forget)
                    .bind(seconds)
                    .bind(most_bytes.cast_signed());
                forgotten.fetch_all(&mut *transaction).await
            };
            match done.await {
                Ok(dropped) => transaction.commit().await.map(|()| Some(dropped)),
                Err(error) if is_locked(&error) => transaction.rollback().await.map(|()| None),
                Err(error) => Err(error),
            }
        });
        let dropped = done.await?;
        if dropped.is_none() && !self.in_use {
            tracing::warn!(
                "somebody uses the trail's tables: no day is made or dropped until that is over"
            );
        }
        self.in_use = dropped.is_none();
        let dropped = dropped.unwrap_or_default();
        if !dropped.is_empty() {
            self.days.clear();
        }
        Ok(dropped)
    }

    pub(crate) async fn close(self) {
        let _ = limited(ANSWER, self.connection.close()).await;
    }
}

/// How long to wait for a lock. Whoever wants to use the tables waits behind it.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '2s'";

/// Made ahead, because making it at midnight would wait for whoever uses the tables then.
const TOMORROW: &str =
    "select pillarbox.trail_days(array[(clock_timestamp() at time zone 'UTC')::date + 1])";

fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("55P03")
}

const MOVE: &str = "insert into pillarbox.trail_stream \
    (stream, life, sequence, stored_at, last_sequence, read_at) \
    values ($1, $2, $3, $4, $3, pg_catalog.clock_timestamp()) \
    on conflict (stream, life) do update set sequence = excluded.sequence, stored_at = excluded.stored_at, \
    last_sequence = greatest(trail_stream.last_sequence, excluded.sequence), read_at = excluded.read_at, problem = null";

const LOOKED: &str = "insert into pillarbox.trail_stream (stream, life, last_sequence, problem) \
    values ($1, $2, $3, $4) \
    on conflict (stream, life) do update set last_sequence = excluded.last_sequence, problem = excluded.problem, \
    looked_at = pg_catalog.clock_timestamp()";

/// Rows, column by column.
#[derive(Default)]
struct Columns<'r> {
    stored: Vec<OffsetDateTime>,
    sequence: Vec<i64>,
    texts: [Vec<Option<&'r str>>; 8],
    topic: Vec<&'r str>,
    time: Vec<Option<OffsetDateTime>>,
    size: Vec<i64>,
}

impl<'r> Columns<'r> {
    fn of(rows: &[&'r Row]) -> Self {
        let mut columns = Self::default();
        for row in rows {
            columns.stored.push(microseconds(row.stored));
            columns.sequence.push(row.sequence.cast_signed());
            columns.topic.push(&row.topic);
            columns.size.push(row.size.cast_signed());
            let event = row.event.as_ref();
            columns.time.push(event.and_then(|event| event.time));
            let texts = [
                event.map(|event| event.id.as_str()),
                event.and_then(|event| event.identity.as_deref()),
                event.and_then(|event| event.source.as_deref()),
                event.map(|event| event.event_type.as_str()),
                event.and_then(|event| event.key.as_deref()),
                event.and_then(|event| event.correlation.as_deref()),
                event.and_then(|event| event.causation.as_deref()),
                row.problem.as_deref(),
            ];
            for (column, text) in columns.texts.iter_mut().zip(texts) {
                column.push(text);
            }
        }
        columns
    }

    fn bind<'q>(
        &'q self,
        query: sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
        stream: &'q str,
        place: Place,
    ) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
        let [id, identity, source, event_type, key, correlation, causation, problem] = &self.texts;
        query
            .bind(stream)
            .bind(place.life)
            .bind(&self.stored)
            .bind(&self.sequence)
            .bind(id)
            .bind(identity)
            .bind(source)
            .bind(event_type)
            .bind(&self.topic)
            .bind(key)
            .bind(correlation)
            .bind(causation)
            .bind(&self.time)
            .bind(&self.size)
            .bind(problem)
    }
}

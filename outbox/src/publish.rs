//! Writing events.

use std::sync::Arc;

use pillarbox_event::{EventId, IntoEvent, RawEvent, header};
use pillarbox_store::literal::{hex_bytes, hex_text, keeps_statements};
use pillarbox_store::{InTransaction, Schema, Tx};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqlStr};
use uuid::Uuid;

use crate::error::OutboxError;
use crate::row::OutboxRow;

/// Writes an event to the outbox in schema `pillarbox`, in one round trip, and returns its id.
///
/// The event is delivered if, and only if, `tx` commits. Inside a handler of the inbox, the event gets the causation,
/// correlation and trace of the handled event by itself.
///
/// If you drop the future before it is done, roll the transaction back.
///
/// # Errors
/// [`OutboxError`]. Nothing has been written then.
pub async fn publish(
    tx: &mut impl InTransaction,
    event: impl IntoEvent,
) -> Result<EventId, OutboxError> {
    Outbox::new().publish(tx, event).await
}

/// Writes an event to the outbox in schema `pillarbox` together with the commit, and returns its id. The transaction
/// then takes no round trip more than without the event.
///
/// This needs a [`Tx`]: what a handler gets, or what a service began by `Tx::open` and ends by
/// `Tx::commit`. In a transaction of sqlx the event is written at once, as by [`publish`].
///
/// It differs from [`publish`] as follows:
///
/// - What the event itself makes impossible is an error here. What the database refuses fails the commit.
/// - Until the commit, a query does not find the row; [`testing::published`](crate::testing::published) does.
/// - Events leave in the order of the calls, including later calls of [`publish`] and [`publish_all`] with the same
///   `Tx`. Only those that are published in a transaction that sqlx began inside of it come before the ones that were
///   collected.
/// - A savepoint that is rolled back takes its events with it if it is one of `Tx::savepoint`. One that is set by SQL
///   does not.
/// - More than a mebibyte is not collected, but sent at once.
///
/// Roll the transaction back if the future is dropped. If that happened while collected events were sent, the commit
/// fails.
///
/// # Errors
/// [`OutboxError`]. Nothing has been written then.
pub async fn publish_with_commit(
    tx: &mut impl InTransaction,
    event: impl IntoEvent,
) -> Result<EventId, OutboxError> {
    Outbox::new().publish_with_commit(tx, event).await
}

/// Writes many events, in the given order, in one statement and one round trip, and returns their ids. Either all of
/// them are written, or none.
///
/// # Errors
/// As for [`publish`].
pub async fn publish_all<E: IntoEvent>(
    tx: &mut impl InTransaction,
    events: impl IntoIterator<Item = E>,
) -> Result<Vec<EventId>, OutboxError> {
    Outbox::new().publish_all(tx, events).await
}

/// An outbox in a schema of your choice, or with a default `ce-source`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outbox {
    schema: Schema,
    source: Option<Arc<str>>,
    insert: SqlStr,
    insert_all: SqlStr,
}

const INSERT: &str = "insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload) \
                      values ($1, $2, $3, $4, $5::pg_catalog.jsonb, $6) returning $1 as event_id";
/// The most bytes of statements that wait for a commit.
const MOST_COLLECTED: usize = 1 << 20;

const INSERT_ALL: &str = include_str!("publish.sql");

impl Outbox {
    /// The outbox in schema `pillarbox`.
    pub fn new() -> Self {
        Self {
            schema: Schema::default(),
            source: None,
            insert: SqlStr::from_static(INSERT),
            insert_all: SqlStr::from_static(INSERT_ALL),
        }
    }

    /// The same outbox in another schema.
    ///
    /// # Errors
    /// [`OutboxError::Schema`] if Postgres would not take the name without quotes.
    pub fn schema(self, schema: &str) -> Result<Self, OutboxError> {
        let outbox = Self { schema: Schema::parse(schema)?, ..self };
        Ok(Self {
            insert: outbox.statement(INSERT),
            insert_all: outbox.statement(INSERT_ALL),
            ..outbox
        })
    }

    /// The same outbox with a `ce-source` for events that set none: a URI reference such as `/shop/orders`.
    ///
    /// # Errors
    /// [`OutboxError::Event`] if it cannot be a header's value.
    pub fn source(self, source: &str) -> Result<Self, OutboxError> {
        header::validate(header::SOURCE, source)?;
        Ok(Self { source: Some(source.into()), ..self })
    }

    /// The schema that the tables are in.
    pub fn schema_of_tables(&self) -> &Schema {
        &self.schema
    }

    /// A statement for this outbox's schema.
    pub(crate) fn statement(&self, text: &'static str) -> SqlStr {
        if self.schema == Schema::default() {
            return SqlStr::from_static(text);
        }
        self.schema.statement(text)
    }

    /// Writes an event, like the function [`publish`].
    ///
    /// # Errors
    /// [`OutboxError`]; nothing has been written then.
    pub async fn publish(
        &self,
        tx: &mut impl InTransaction,
        event: impl IntoEvent,
    ) -> Result<EventId, OutboxError> {
        let row = self.row(event)?;
        if let Some(tx) = collecting(tx) {
            return self.collect(tx, &row).await;
        }
        self.write(tx.connection(), row).await
    }

    /// Writes an event together with the commit, like the function [`publish_with_commit`].
    ///
    /// # Errors
    /// [`OutboxError`]; nothing has been written then.
    pub async fn publish_with_commit(
        &self,
        tx: &mut impl InTransaction,
        event: impl IntoEvent,
    ) -> Result<EventId, OutboxError> {
        let row = self.row(event)?;
        match tx.collects() {
            Some(tx) => self.collect(tx, &row).await,
            None => self.write(tx.connection(), row).await,
        }
    }

    /// Lets a row travel with the commit.
    async fn collect(&self, tx: &mut Tx, row: &OutboxRow) -> Result<EventId, OutboxError> {
        tx.send_with_commit(&with_values(self.insert.as_str(), &literals(row)).0);
        if tx.collected_bytes() > MOST_COLLECTED {
            tx.send_collected().await.map_err(|source| not_written(&row.event, source))?;
        }
        Ok(row.event.id().clone())
    }

    /// Writes a row at once.
    async fn write(
        &self,
        connection: &mut PgConnection,
        row: OutboxRow,
    ) -> Result<EventId, OutboxError> {
        let written = if keeps_statements(connection) {
            sqlx::query_scalar(self.insert.clone())
                .bind(row.id)
                .bind(row.event.event_type())
                .bind(row.event.topic())
                .bind(row.event.key())
                .bind(row.headers)
                .bind(&row.event.payload()[..])
                .fetch_all(&mut *connection)
                .await
        } else {
            ask(connection, self.insert.as_str(), &literals(&row)).await
        };
        let written: Vec<Uuid> = written.map_err(|source| not_written(&row.event, source))?;
        if written != [row.id] {
            return Err(not_written(&row.event, another_statement()));
        }
        Ok(row.event.id().clone())
    }

    /// Writes many events, like the function [`publish_all`].
    ///
    /// # Errors
    /// [`OutboxError`]; nothing has been written then.
    pub async fn publish_all<E: IntoEvent>(
        &self,
        tx: &mut impl InTransaction,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Vec<EventId>, OutboxError> {
        let rows =
            events.into_iter().map(|event| self.row(event)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        if let Some(tx) = collecting(tx) {
            // They come after what was collected.
            tx.send_collected().await.map_err(|source| not_written(&first.event, source))?;
        }
        let connection = tx.connection();
        let column = |read: fn(&OutboxRow) -> &str| {
            rows.iter().map(|row| read(row).to_owned()).collect::<Vec<_>>()
        };
        let written = if keeps_statements(connection) {
            sqlx::query_scalar(self.insert_all.clone())
                .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
                .bind(column(|row| row.event.event_type()))
                .bind(column(|row| row.event.topic()))
                .bind(rows.iter().map(|row| row.event.key().map(str::to_owned)).collect::<Vec<_>>())
                .bind(column(|row| &row.headers))
                .bind(rows.iter().map(|row| row.event.payload().to_vec()).collect::<Vec<_>>())
                .fetch_all(&mut *connection)
                .await
        } else {
            let array = |literal: &dyn Fn(&OutboxRow) -> String| {
                format!("(array[{}])", rows.iter().map(literal).collect::<Vec<_>>().join(","))
            };
            let values = [
                array(&|row| uuid_literal(row.id)),
                array(&|row| hex_text(row.event.event_type())),
                array(&|row| hex_text(row.event.topic())),
                array(&|row| row.event.key().map_or_else(|| "null".to_owned(), hex_text)),
                array(&|row| hex_text(&row.headers)),
                array(&|row| hex_bytes(row.event.payload())),
            ];
            ask(connection, self.insert_all.as_str(), &values).await
        };
        let written: Vec<Uuid> = written.map_err(|source| not_written(&first.event, source))?;
        if written.len() != rows.len() || written.iter().any(|id| *id != first.id) {
            return Err(not_written(&first.event, another_statement()));
        }
        Ok(rows.iter().map(|row| row.event.id().clone()).collect())
    }

    /// The row of an event, for a client other than sqlx: run [`insert_statement`](Self::insert_statement) with its
    /// values in your transaction. Nothing is written yet.
    ///
    /// # Errors
    /// [`OutboxError::Event`] and [`OutboxError::Id`].
    pub fn row(&self, event: impl IntoEvent) -> Result<OutboxRow, OutboxError> {
        let mut event = event.into_event()?.caused_by_current();
        if let Some(source) = &self.source
            && event.source().is_none()
        {
            event = event.with_header(header::SOURCE, &**source)?;
        }
        OutboxRow::of(event)
    }

    /// The statement that writes an [`OutboxRow`], with six parameters. It returns one row with one column, the event's
    /// id. Check it: behind a pooler in transaction mode, another statement may have run instead.
    pub fn insert_statement(&self) -> &str {
        self.insert.as_str()
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// The transaction, if events were collected that must leave before the next one.
fn collecting(tx: &mut impl InTransaction) -> Option<&mut Tx> {
    tx.collects().filter(|tx| tx.collected_bytes() > 0)
}

/// A row's values as expressions of SQL.
fn literals(row: &OutboxRow) -> [String; 6] {
    [
        uuid_literal(row.id),
        hex_text(row.event.event_type()),
        hex_text(row.event.topic()),
        row.event.key().map_or_else(|| "null".to_owned(), hex_text),
        hex_text(&row.headers),
        hex_bytes(row.event.payload()),
    ]
}

/// Runs a statement as a simple query, with these values as its parameters. This takes one round trip and prepares no
/// statement under a name.
pub(crate) async fn ask(
    connection: &mut PgConnection,
    statement: &str,
    values: &[String],
) -> Result<Vec<Uuid>, sqlx::Error> {
    let rows = sqlx::raw_sql(with_values(statement, values)).fetch_all(connection).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// The statement as a simple query, with these values as its parameters.
pub(crate) fn with_values(statement: &str, values: &[String]) -> AssertSqlSafe<String> {
    let mut text =
        String::with_capacity(statement.len() + values.iter().map(String::len).sum::<usize>());
    let statement: String = statement
        .lines()
        .filter(|line| !line.starts_with("--"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut rest = &*statement;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = after.split_at(digits);
        let value =
            number.parse::<usize>().ok().and_then(|number| values.get(number.checked_sub(1)?));
        text.push_str(value.map_or("null", |value| value));
        rest = behind;
    }
    text.push_str(rest);
    AssertSqlSafe(text)
}

pub(crate) fn uuid_literal(id: Uuid) -> String {
    format!("'{id}'::pg_catalog.uuid")
}

/// The error when the answer does not belong to the statement that was sent.
pub(crate) fn another_statement() -> sqlx::Error {
    sqlx::Error::Protocol(
        "another statement ran instead of this one, because the connection goes through a pooler in transaction mode; roll \
         the transaction back, and open connections with statement_cache_capacity(0) (docs/poolers.md)"
            .into(),
    )
}

pub(crate) fn not_written(event: &RawEvent, source: sqlx::Error) -> OutboxError {
    OutboxError::Database {
        id: event.id().to_string(),
        event_type: event.event_type().to_owned(),
        source,
    }
}

//! Writing events.

use std::collections::BTreeMap;
use std::sync::Arc;

use pillarbox_event::{EventId, IntoEvent, RawEvent, header};
use pillarbox_store::Schema;
use pillarbox_store::literal::{hex_bytes, hex_text};
use sqlx::{AssertSqlSafe, Connection, Postgres, Row as _, SqlSafeStr, SqlStr, Transaction};
use uuid::Uuid;

use crate::error::OutboxError;

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
    tx: &mut Transaction<'_, Postgres>,
    event: impl IntoEvent,
) -> Result<EventId, OutboxError> {
    Outbox::new().publish(tx, event).await
}

/// Writes many events, in the given order, in one statement and one round trip, and returns their ids. Either all of
/// them are written, or none.
///
/// # Errors
/// As for [`publish`].
pub async fn publish_all<E: IntoEvent>(
    tx: &mut Transaction<'_, Postgres>,
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
                      values ($1, $2, $3, $4, $5::pg_catalog.jsonb, $6) returning $1";
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
        let schema = Schema::parse(schema)?;
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(schema.statement(text))).into_sql_str();
        Ok(Self { insert: sql(INSERT), insert_all: sql(INSERT_ALL), source: self.source, schema })
    }

    /// The same outbox with a `ce-source` for events that set none: a URI reference such as `/shop/orders`.
    ///
    /// # Errors
    /// [`OutboxError::Event`] if it cannot be a header's value.
    pub fn source(self, source: &str) -> Result<Self, OutboxError> {
        header::validate(header::SOURCE, source)?;
        Ok(Self { source: Some(source.into()), ..self })
    }

    /// The schema's name.
    pub fn schema_name(&self) -> &str {
        self.schema.as_str()
    }

    pub(crate) fn schema_checked(&self) -> &Schema {
        &self.schema
    }

    /// Writes an event, like the function [`publish`].
    ///
    /// # Errors
    /// [`OutboxError`]; nothing has been written then.
    pub async fn publish(
        &self,
        tx: &mut Transaction<'_, Postgres>,
        event: impl IntoEvent,
    ) -> Result<EventId, OutboxError> {
        let row = self.row(event)?;
        let written = if keeps_statements(tx) {
            sqlx::query_scalar(self.insert.clone())
                .bind(row.id)
                .bind(row.event.event_type())
                .bind(row.event.topic())
                .bind(row.event.key())
                .bind(row.headers)
                .bind(&row.event.payload()[..])
                .fetch_all(&mut **tx)
                .await
        } else {
            let values = [
                uuid_literal(&row),
                hex_text(row.event.event_type()),
                hex_text(row.event.topic()),
                row.event.key().map_or_else(|| "null".to_owned(), hex_text),
                hex_text(&row.headers),
                hex_bytes(row.event.payload()),
            ];
            ask(tx, self.insert.as_str(), &values).await
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
        tx: &mut Transaction<'_, Postgres>,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Vec<EventId>, OutboxError> {
        let rows =
            events.into_iter().map(|event| self.row(event)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let column = |read: fn(&Row) -> &str| {
            rows.iter().map(|row| read(row).to_owned()).collect::<Vec<_>>()
        };
        let written = if keeps_statements(tx) {
            sqlx::query_scalar(self.insert_all.clone())
                .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
                .bind(column(|row| row.event.event_type()))
                .bind(column(|row| row.event.topic()))
                .bind(rows.iter().map(|row| row.event.key().map(str::to_owned)).collect::<Vec<_>>())
                .bind(column(|row| &row.headers))
                .bind(rows.iter().map(|row| row.event.payload().to_vec()).collect::<Vec<_>>())
                .fetch_all(&mut **tx)
                .await
        } else {
            let array = |literal: &dyn Fn(&Row) -> String| {
                format!("(array[{}])", rows.iter().map(literal).collect::<Vec<_>>().join(","))
            };
            let values = [
                array(&uuid_literal),
                array(&|row| hex_text(row.event.event_type())),
                array(&|row| hex_text(row.event.topic())),
                array(&|row| row.event.key().map_or_else(|| "null".to_owned(), hex_text)),
                array(&|row| hex_text(&row.headers)),
                array(&|row| hex_bytes(row.event.payload())),
            ];
            ask(tx, self.insert_all.as_str(), &values).await
        };
        let written: Vec<Uuid> = written.map_err(|source| not_written(&first.event, source))?;
        if written.len() != rows.len() || written.iter().any(|id| *id != first.id) {
            return Err(not_written(&first.event, another_statement()));
        }
        Ok(rows.iter().map(|row| row.event.id().clone()).collect())
    }

    fn row(&self, event: impl IntoEvent) -> Result<Row, OutboxError> {
        let mut event = event.into_event()?.caused_by_current();
        if let Some(source) = &self.source
            && event.source().is_none()
        {
            event = event.with_header(header::SOURCE, &**source)?;
        }
        let id =
            event.id().as_uuid().ok_or_else(|| OutboxError::Id { id: event.id().to_string() })?;
        Ok(Row { id, headers: headers(&event)?, event })
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

struct Row {
    id: Uuid,
    headers: String,
    event: RawEvent,
}

/// The value of the headers column: all headers except those that have their default.
fn headers(event: &RawEvent) -> Result<String, OutboxError> {
    let said: BTreeMap<&str, &str> = event
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|said| *said != (header::CONTENT_TYPE, header::JSON))
        .collect();
    serde_json::to_string(&said)
        .map_err(|error| not_written(event, sqlx::Error::Encode(Box::new(error))))
}

/// Runs a statement as a simple query, with these values as its parameters. This takes one round trip and prepares no
/// statement under a name.
async fn ask(
    tx: &mut Transaction<'_, Postgres>,
    statement: &str,
    values: &[String],
) -> Result<Vec<Uuid>, sqlx::Error> {
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
    let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut **tx).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

fn uuid_literal(row: &Row) -> String {
    format!("'{}'::pg_catalog.uuid", row.id)
}

/// Whether this connection has prepared statements in its cache. A connection without a cache
/// (`statement_cache_capacity(0)`) is meant for a pooler in transaction mode, where several clients share the names of
/// statements. A connection that has prepared nothing yet looks the same.
fn keeps_statements(tx: &Transaction<'_, Postgres>) -> bool {
    tx.cached_statements_size() > 0
}

/// The error when the answer does not belong to the statement that was sent.
fn another_statement() -> sqlx::Error {
    sqlx::Error::Protocol(
        "another statement ran instead of this one, because the connection goes through a pooler in transaction mode; roll \
         the transaction back, and open connections with statement_cache_capacity(0) (docs/poolers.md)"
            .into(),
    )
}

fn not_written(event: &RawEvent, source: sqlx::Error) -> OutboxError {
    OutboxError::Database {
        id: event.id().to_string(),
        event_type: event.event_type().to_owned(),
        source,
    }
}

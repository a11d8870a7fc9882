//! Builds the statements that read rows.

use sqlx::{PgConnection, Row as _};

use super::Reading;
use pillarbox_store::schema::in_schema;

/// The table that rows are read from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Table {
    Outbox,
    Letters,
}

/// How to find out whether a column is compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compression {
    /// The database has a function for it (from version 14 on).
    Told,
    /// The database has no such function. pglz compresses at most 90 bytes into one, so headers that are small as
    /// stored are small.
    Guessed,
}

impl Compression {
    pub(crate) async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let text = "select pg_catalog.to_regproc('pg_catalog.pg_column_compression') is not null";
        let told: bool = sqlx::query(text).fetch_one(connection).await?.try_get(0)?;
        Ok(if told { Self::Told } else { Self::Guessed })
    }

    fn plain(self) -> &'static str {
        match self {
            Self::Told => {
                "pg_column_compression(headers) is null and pg_column_size(headers) <= 131072"
            }
            Self::Guessed => "pg_column_size(headers) <= 1400",
        }
    }
}

/// The placeholders in a statement that reads a page.
///
/// ```sql
/// select {columns}
/// from (
///     select *, {bytes} as bytes
///     from (
///         select {read}
///         from pillarbox.outbox
///         where … order by position limit $2
///     ) as read
///     offset 0
/// ) as row
/// ```
///
/// | | |
/// |---|---|
/// | `{read}` | the columns, with headers as text: null if they may be large after decompression, empty for `{}` |
/// | `{bytes}` | the size of the row; null if a column is null that must not be |
/// | `{columns}` | the columns of a row whose size is at most the parameter `{most}`, and nulls for a larger row |
///
/// If `{most}` is below 0, no column is read. `offset 0` prevents the planner from computing the size again for each
/// column.
pub(crate) struct Select;

impl Select {
    pub(crate) fn text(sql: &str, table: Table, compression: Compression, most: &str) -> String {
        let most = format!("{most}::bigint");
        let (place, more) = match table {
            Table::Outbox => ("position", ""),
            Table::Letters => ("letter", ", attempts"),
        };
        let column = |name: &str| format!("case when bytes <= {most} then {name} end as {name}");
        let columns = ["event_id", "event_type", "topic", "key"].map(column).join(", ");
        let columns = format!(
            "position, {columns}, case when bytes <= {most} then nullif(headers, '') end as headers, \
             {}, created_at, bytes, place{more}",
            column("payload")
        );
        let bytes = "octet_length(event_type)::bigint + octet_length(topic) + coalesce(octet_length(key), 0) \
                     + octet_length(headers) + octet_length(payload)";
        let read = format!(
            "position, event_id, event_type, topic, key, \
             case when {most} >= 0 then case when {} then coalesce(nullif(headers, '{{}}'::jsonb)::text, '') end end as headers, \
             payload, created_at, {place} as place{more}",
            compression.plain()
        );
        sql.replace("{columns}", &columns).replace("{bytes}", bytes).replace("{read}", &read)
    }
}

impl Reading {
    pub(crate) fn new(
        schema: &str,
        table: Table,
        compression: Compression,
        largest: usize,
    ) -> Self {
        let (name, place) = match table {
            Table::Outbox => ("outbox", "position"),
            Table::Letters => ("outbox_dead_letter", "letter"),
        };
        let sql = |text: &str| in_schema(text, schema);
        let group = format!(
            "select {{columns}} from (select *, {{bytes}} as bytes from (\
             select {{read}} from pillarbox.{name} where {place} = any ($1)) as read offset 0) as row"
        );
        let of_one =
            |what: &str| sql(&format!("select {what} from pillarbox.{name} where {place} = $1"));
        let column = |name: &'static str| (name, of_one(name));
        Self {
            group: sql(&Select::text(&group, table, compression, "$2")),
            sizes: of_one(
                "position, event_id, octet_length(event_type), octet_length(topic), octet_length(key), \
                 octet_length(payload), pg_column_size(headers), created_at",
            ),
            headers_size: of_one("octet_length(headers::text)"),
            columns: [
                column("event_type"),
                column("topic"),
                column("key"),
                ("headers", of_one("nullif(headers, '{}'::jsonb)::text")),
                column("payload"),
            ],
            largest,
        }
    }
}

//! The text of the statements that read rows.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqlSafeStr};

use super::Reading;
use crate::schema::in_schema;

/// The table that rows are read from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Table {
    Outbox,
    Letters,
}

/// How to find out whether a column is compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compression {
    /// The database tells (from version 14 on).
    Told,
    /// It does not. pglz makes at most 90 bytes of one, so what is small as stored is small.
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

/// What stands for the columns in a statement that reads a page.
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
/// | `{read}` | the columns, headers as text; null where they may be large once unpacked, empty for `{}` |
/// | `{bytes}` | what the row weighs; null if a column is null that must not be |
/// | `{columns}` | the columns of a row that weighs at most as much as the parameter `{most}` says, and nulls otherwise |
///
/// With a `{most}` below 0 no column is touched. `offset 0` keeps the planner from weighing each row again for each
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
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(in_schema(text, schema))).into_sql_str();
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

//! Which table is the outbox, and which sequence gives out its positions.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::cursor::TableId;
use pillarbox_store::schema::in_schema;

/// The statement that tells. It may be part of another one.
const IDENTITY: &str = include_str!("table.sql");

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: TableId,
    /// What identifies the definition of the column `position`, as long as nobody changes it.
    defined: String,
    /// The sequence's name, with its schema and quoted as it must be. `None`: no sequence gives out the positions.
    pub(crate) sequence: Option<String>,
    /// How far the sequence is.
    pub(crate) reached: Option<i64>,
}

/// Looks for the outbox of this schema.
pub(crate) async fn find(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Found, sqlx::Error> {
    let mut found = named(connection, schema).await?;
    let text = format!("select {}", reached(found.sequence.as_deref()));
    let row = sqlx::query(AssertSqlSafe(Arc::<str>::from(text))).fetch_one(connection).await?;
    found.reached = row.try_get(0)?;
    Ok(found)
}

/// The same without the sequence's state. Takes no right on table and sequence.
pub(crate) async fn named(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Found, sqlx::Error> {
    let text = format!(
        "select found.*, found.sequence::oid::regclass::text as name from ({IDENTITY}) as found"
    );
    let row = sqlx::query(in_schema(&text, schema)).fetch_one(connection).await?;
    let defined: Option<String> = row.try_get("defined")?;
    Ok(Found {
        id: identity(&row)?,
        defined: defined.unwrap_or_default(),
        sequence: row.try_get("name")?,
        reached: None,
    })
}

/// The part of a statement that says whether the outbox is still the table that was found. It has the columns that
/// [`identity`] reads.
pub(crate) fn still(found: &Found) -> String {
    let sequence = found.id.sequence.map_or_else(|| "null".to_owned(), |oid| oid.to_string());
    include_str!("table_still.sql")
        .replace("{sequence}", &sequence)
        .replace("{defined}", &found.defined)
}

/// The identity in a row.
pub(crate) fn identity(row: &PgRow) -> Result<TableId, sqlx::Error> {
    Ok(TableId {
        relation: row.try_get("relation")?,
        sequence: row.try_get("sequence")?,
        file: row.try_get("file")?,
    })
}

/// How far a sequence is, as part of a statement. One that was told where to restart and has given nothing out since
/// stands behind the position before.
pub(crate) fn reached(sequence: Option<&str>) -> String {
    match sequence {
        Some(name) => format!(
            "(select case when is_called then last_value else last_value - 1::bigint end from {name})"
        ),
        None => "null::bigint".to_owned(),
    }
}

//! The inbox's tables.
//!
//! Plain SQL, recorded in `<schema>.inbox_migration`, a table of their own: a service's own migrations are
//! neither seen nor disturbed. Safe to run again, and from several processes at once.

use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, PgPool, SqlSafeStr};

use crate::InboxError;

pub(crate) const DEFAULT_SCHEMA: &str = "pillarbox";

const FILES: [(i64, &str, &str); 2] = [
    (1, "0001_inbox.sql", include_str!("../migrations/0001_inbox.sql")),
    (2, "0002_inbox_process.sql", include_str!("../migrations/0002_inbox_process.sql")),
];

/// Creates or updates the tables in schema `pillarbox`.
///
/// # Errors
/// What sqlx says. Nothing is half done: each migration is one transaction.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    migrate_schema(pool, DEFAULT_SCHEMA).await
}

/// Creates or updates the tables in another schema.
///
/// # Errors
/// As [`migrate`]; a schema that is not a plain lower-case identifier is a source error.
pub async fn migrate_schema(pool: &PgPool, schema: &str) -> Result<(), MigrateError> {
    check_schema(schema).map_err(|error| MigrateError::Source(Box::new(error)))?;
    let migrations = FILES
        .iter()
        .map(|(version, name, sql)| {
            let sql = AssertSqlSafe(Arc::<str>::from(in_schema(sql, schema))).into_sql_str();
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.dangerous_set_table_name(format!("{schema}.inbox_migration"));
    migrator.create_schema(schema.to_owned());
    // An older program beside a newer one finds migrations that it does not know.
    migrator.set_ignore_missing(true);
    migrator.run(pool).await
}

/// The migrations for a schema, in order: name and SQL, for any other tool.
///
/// # Errors
/// [`InboxError::Schema`] if the schema is not a plain lower-case identifier.
pub fn migrations(schema: &str) -> Result<Vec<(String, String)>, InboxError> {
    check_schema(schema)?;
    Ok(FILES.iter().map(|(_, name, sql)| ((*name).to_owned(), in_schema(sql, schema))).collect())
}

fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace(DEFAULT_SCHEMA, schema)
}

pub(crate) fn check_schema(name: &str) -> Result<(), InboxError> {
    let mut bytes = name.bytes();
    let plain = name.len() <= 63
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain { Ok(()) } else { Err(InboxError::Schema { name: name.chars().take(80).collect() }) }
}

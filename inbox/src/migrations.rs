//! The inbox's tables.
//!
//! Plain SQL, recorded in `<schema>.inbox_migration`, a table of their own: a service's own migrations are
//! neither seen nor disturbed. Safe to run again, and from several processes at once.

use pillarbox_store::{Migrated, Migrations, Schema};
use sqlx::PgPool;
use sqlx::migrate::MigrateError;

use crate::error::InboxError;

pub(crate) const DEFAULT_SCHEMA: &str = pillarbox_store::schema::DEFAULT;

const MIGRATIONS: Migrations = Migrations {
    table: "inbox_migration",
    files: &[
        (1, "0001_inbox.sql", include_str!("../migrations/0001_inbox.sql")),
        (2, "0002_inbox_process.sql", include_str!("../migrations/0002_inbox_process.sql")),
    ],
};

/// Creates or updates the tables in schema `pillarbox`, and says what it did.
///
/// Where nothing is missing it needs no right to create anything.
///
/// # Errors
/// What sqlx says. Nothing is half done: each migration is one transaction.
pub async fn migrate(pool: &PgPool) -> Result<Migrated, MigrateError> {
    migrate_schema(pool, DEFAULT_SCHEMA).await
}

/// Creates or updates the tables in another schema, and says what it did.
///
/// # Errors
/// As [`migrate`]; a schema whose name Postgres would not take without quotes is a source error.
pub async fn migrate_schema(pool: &PgPool, schema: &str) -> Result<Migrated, MigrateError> {
    let schema = Schema::parse(schema).map_err(|error| MigrateError::Source(Box::new(error)))?;
    MIGRATIONS.apply(pool, &schema).await
}

/// The migrations for a schema, in order: name and SQL, for any other tool.
///
/// # Errors
/// [`InboxError::Schema`] if Postgres would not take the schema's name without quotes.
pub fn migrations(schema: &str) -> Result<Vec<(String, String)>, InboxError> {
    Ok(MIGRATIONS.sql(&Schema::parse(schema)?))
}

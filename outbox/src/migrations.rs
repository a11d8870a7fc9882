//! The outbox's tables.
//!
//! The migrations are plain SQL. They are recorded in `<schema>.outbox_migration`, a table of their own, so they do
//! not interfere with the service's migrations. It is safe to run them again, and from several processes at once.

use pillarbox_store::{Migrated, Migrations, Schema};
use sqlx::PgPool;
use sqlx::migrate::MigrateError;

use crate::error::OutboxError;
use crate::publish::Outbox;

const MIGRATIONS: Migrations = Migrations {
    table: "outbox_migration",
    files: &[(1, "0001_outbox.sql", include_str!("../migrations/0001_outbox.sql"))],
};

/// Creates or updates the tables in schema `pillarbox`, and says what it did.
///
/// If nothing is missing, it needs no right to create anything.
///
/// # Errors
/// The error of sqlx. No migration is applied in part, because each is one transaction.
pub async fn migrate(pool: &PgPool) -> Result<Migrated, MigrateError> {
    Outbox::new().migrate(pool).await
}

impl Outbox {
    /// Creates or updates the tables in this outbox's schema, and says what it did.
    ///
    /// # Errors
    /// As for the function [`migrate`].
    pub async fn migrate(&self, pool: &PgPool) -> Result<Migrated, MigrateError> {
        MIGRATIONS.apply(pool, self.schema_checked()).await
    }
}

/// The migrations for a schema, in order, as name and SQL. Use them with any other tool.
///
/// # Errors
/// [`OutboxError::Schema`] if Postgres would not take the schema's name without quotes.
pub fn migrations(schema: &str) -> Result<Vec<(String, String)>, OutboxError> {
    Ok(MIGRATIONS.sql(&Schema::parse(schema)?))
}

//! The outbox's tables.
//!
//! Plain SQL, recorded in `<schema>.outbox_migration`, a table of their own: a service's own migrations are
//! neither seen nor disturbed. Safe to run again, and from several processes at once.

use pillarbox_store::{Migrated, Migrations, Schema};
use sqlx::PgPool;
use sqlx::migrate::MigrateError;

use crate::{Outbox, OutboxError};

const MIGRATIONS: Migrations = Migrations {
    table: "outbox_migration",
    files: &[(1, "0001_outbox.sql", include_str!("../migrations/0001_outbox.sql"))],
};

/// Creates or updates the tables in schema `pillarbox`, and says what it did.
///
/// Where nothing is missing it needs no right to create anything.
///
/// # Errors
/// What sqlx says. Nothing is half done: each migration is one transaction.
pub async fn migrate(pool: &PgPool) -> Result<Migrated, MigrateError> {
    Outbox::new().migrate(pool).await
}

impl Outbox {
    /// Creates or updates the tables in this outbox's schema, and says what it did.
    ///
    /// # Errors
    /// As the function [`migrate`].
    pub async fn migrate(&self, pool: &PgPool) -> Result<Migrated, MigrateError> {
        MIGRATIONS.apply(pool, self.schema_checked()).await
    }
}

/// The migrations for a schema, in order: name and SQL, for any other tool.
///
/// # Errors
/// [`OutboxError::Schema`] if Postgres would not take the schema's name without quotes.
pub fn migrations(schema: &str) -> Result<Vec<(String, String)>, OutboxError> {
    Ok(MIGRATIONS.sql(&Schema::parse(schema)?))
}

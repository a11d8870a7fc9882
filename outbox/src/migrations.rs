//! The outbox's tables.
//!
//! The migrations are plain SQL. They are recorded in `<schema>.outbox_migration`, a table of their own, so they do
//! not interfere with the service's migrations. It is safe to run them again, and from several processes at once.

use pillarbox_store::Migrated;
use sqlx::PgPool;
use sqlx::migrate::MigrateError;

use crate::error::OutboxError;
use crate::publish::Outbox;

pillarbox_store::migrations!("outbox_migration", [1 "0001_outbox.sql"], OutboxError);

impl Outbox {
    /// Creates or updates the tables in this outbox's schema, and says what it did.
    ///
    /// # Errors
    /// As for the function [`migrate`].
    pub async fn migrate(&self, pool: &PgPool) -> Result<Migrated, MigrateError> {
        MIGRATIONS.apply(pool, self.schema_of_tables()).await
    }
}

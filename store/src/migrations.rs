//! Creating and updating the tables.
//!
//! The migrations are plain SQL. A table of their own records what was applied, so they do not interfere with a
//! service's migrations. It is safe to run them again, and from several processes at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row, SqlSafeStr, SqlStr};

use crate::schema::{self, Schema};

/// The migrations of one side.
#[derive(Clone, Copy, Debug)]
pub struct Migrations {
    /// The table that records which of them were applied.
    pub table: &'static str,
    /// Version, file name and SQL of each, in order.
    pub files: &'static [(i64, &'static str, &'static str)],
}

/// Declares the public functions with which a service creates the tables of one side: `migrate`, `migrate_schema` and
/// `migrations`. It takes the table that records the applied files, the version and name of each file in the calling
/// crate's `migrations/`, and that crate's error, which converts from a [`SchemaError`](crate::SchemaError).
#[macro_export]
macro_rules! migrations {
    ($table:literal, [$($version:literal $file:literal),+], $error:ty) => {
        pub(crate) const MIGRATIONS: $crate::Migrations = $crate::Migrations {
            table: $table,
            files: &[$(($version, $file, include_str!(concat!("../migrations/", $file)))),+],
        };

        /// Creates or updates the tables in schema `pillarbox`, and says what it did.
        ///
        /// If nothing is missing, it needs no right to create anything.
        ///
        /// # Errors
        /// The error of sqlx. No migration is applied in part, because each is one transaction.
        pub async fn migrate(
            pool: &::sqlx::PgPool,
        ) -> Result<$crate::Migrated, ::sqlx::migrate::MigrateError> {
            migrate_schema(pool, $crate::schema::DEFAULT).await
        }

        /// Creates or updates the tables in another schema, and says what it did.
        ///
        /// # Errors
        /// As for [`migrate`]. If Postgres would not take the schema's name without quotes, `MigrateError::Source`.
        pub async fn migrate_schema(
            pool: &::sqlx::PgPool,
            schema: &str,
        ) -> Result<$crate::Migrated, ::sqlx::migrate::MigrateError> {
            let schema = $crate::Schema::parse(schema)
                .map_err(|error| ::sqlx::migrate::MigrateError::Source(Box::new(error)))?;
            MIGRATIONS.apply(pool, &schema).await
        }

        /// The migrations for a schema, in order, as name and SQL. Use them with any other tool.
        ///
        /// # Errors
        /// If Postgres would not take the schema's name without quotes.
        pub fn migrations(schema: &str) -> Result<Vec<(String, String)>, $error> {
            Ok(MIGRATIONS.sql(&$crate::Schema::parse(schema)?))
        }
    };
}

/// Lets processes that migrate at the same time take turns.
const ONE_AT_A_TIME: &str = "set local search_path = pg_catalog, pg_temp; \
                             select pg_advisory_xact_lock(hashtextextended('pillarbox migrate', 0))";

/// What a run of migrations found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// The files that this run applied, in order. Empty: the tables were up to date.
    pub applied: Vec<String>,
    /// Versions that the database has and that this program does not know. A newer program applied them.
    pub newer: Vec<i64>,
}

impl Migrations {
    /// The file names and the SQL for a schema, in order. Use them with any other tool.
    pub fn sql(&self, schema: &Schema) -> Vec<(String, String)> {
        let text = |sql: &str| sql.replace(schema::DEFAULT, schema.as_str());
        self.files.iter().map(|(_, name, sql)| ((*name).to_owned(), text(sql))).collect()
    }

    /// Applies the migrations that are missing, in one transaction.
    ///
    /// Within the transaction, names are looked up only in `pg_catalog`. Another schema may contain an operator or a
    /// function of somebody else, which would run with the rights of the role that migrates. Settings and locks end
    /// with the transaction.
    ///
    /// If nothing is missing, it needs only the right to read the table that records what was applied.
    ///
    /// # Errors
    /// The error of sqlx. Then nothing was applied.
    pub async fn apply(&self, pool: &PgPool, schema: &Schema) -> Result<Migrated, MigrateError> {
        let mut transaction = pool.begin().await?;
        sqlx::raw_sql(ONE_AT_A_TIME).execute(&mut *transaction).await?;
        let before = self.recorded(&mut transaction, schema).await?;
        let known: BTreeSet<i64> = self.files.iter().map(|(version, ..)| *version).collect();
        let done: BTreeSet<i64> = before.iter().map(|(version, _)| *version).collect();
        let newer = done.difference(&known).copied().collect();
        let migrations = self.migrations(schema);
        // If every migration was applied with the same text, nothing is created, so no right to create is needed.
        let same = migrations.iter().all(|migration| {
            before.iter().any(|(version, checksum)| {
                *version == migration.version && *checksum == *migration.checksum
            })
        });
        if same {
            return Ok(Migrated { applied: Vec::new(), newer });
        }
        create_schema(&mut transaction, schema).await?;
        let mut migrator = Migrator::with_migrations(migrations);
        migrator.dangerous_set_table_name(format!("{}.{}", schema.as_str(), self.table));
        // An older program that runs beside a newer one finds migrations that it does not know.
        migrator.set_ignore_missing(true);
        // sqlx would release its own lock before the transaction ends.
        migrator.set_locking(false);
        migrator.run_direct(None, &mut *transaction, false).await?;
        let after = self.recorded(&mut transaction, schema).await?;
        let after: BTreeSet<i64> = after.iter().map(|(version, _)| *version).collect();
        transaction.commit().await?;
        let files = self.files.iter();
        let applied = files
            .filter(|(version, ..)| after.contains(version) && !done.contains(version))
            .map(|(_, name, _)| (*name).to_owned());
        Ok(Migrated { applied: applied.collect(), newer })
    }

    fn migrations(&self, schema: &Schema) -> Vec<Migration> {
        let texts = self.sql(schema).into_iter().zip(self.files);
        texts
            .map(|((name, text), (version, ..))| {
                Migration::new(*version, name.into(), MigrationType::Simple, safe(text), false)
            })
            .collect()
    }

    /// The version and checksum of each applied migration. Empty if the table does not exist.
    async fn recorded(
        &self,
        connection: &mut PgConnection,
        schema: &Schema,
    ) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
        let table = format!("{}.{}", schema.as_str(), self.table);
        let there: bool = sqlx::query("select pg_catalog.to_regclass($1) is not null")
            .bind(&table)
            .fetch_one(&mut *connection)
            .await?
            .try_get(0)?;
        if !there {
            return Ok(Vec::new());
        }
        let text = format!("select version, checksum from {table} where success");
        let rows = sqlx::query(safe(text)).fetch_all(&mut *connection).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

/// Creates the schema if it is missing. `create schema if not exists` would need the right to create schemas even if
/// the schema exists.
async fn create_schema(connection: &mut PgConnection, schema: &Schema) -> Result<(), sqlx::Error> {
    let there: bool = sqlx::query("select pg_catalog.to_regnamespace($1) is not null")
        .bind(schema.as_str())
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if there {
        return Ok(());
    }
    sqlx::query(safe(format!("create schema {}", schema.as_str()))).execute(connection).await?;
    Ok(())
}

/// Safe, because the text is a constant of this program with a checked schema name in it.
fn safe(text: String) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

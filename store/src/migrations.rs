//! Creating and updating the tables.
//!
//! Plain SQL, recorded in a table of its own beside the tables, so that a service's own migrations are neither
//! seen nor disturbed. Safe to run again, and from several processes at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row, SqlSafeStr, SqlStr};

use crate::schema::{self, Schema};

/// The migrations of one side.
#[derive(Clone, Copy, Debug)]
pub struct Migrations {
    /// The table that records what was applied.
    pub table: &'static str,
    /// Version, file name and SQL of each, in order.
    pub files: &'static [(i64, &'static str, &'static str)],
}

/// Processes that migrate take turns.
const ONE_AT_A_TIME: &str = "set local search_path = pg_catalog, pg_temp; \
                             select pg_advisory_xact_lock(hashtextextended('pillarbox migrate', 0))";

/// What a run of migrations found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// The files that this run applied, in order. Empty if the tables were up to date.
    pub applied: Vec<String>,
    /// Versions that the database has and this program does not know: a newer program made them.
    pub newer: Vec<i64>,
}

impl Migrations {
    /// The SQL for a schema, in order: name and text, for any other tool.
    pub fn sql(&self, schema: &Schema) -> Vec<(String, String)> {
        let text = |sql: &str| sql.replace(schema::DEFAULT, schema.as_str());
        self.files.iter().map(|(_, name, sql)| ((*name).to_owned(), text(sql))).collect()
    }

    /// Applies what is missing, in one transaction.
    ///
    /// In it, names are looked up in `pg_catalog` alone: in a schema that others may write to there may be an operator
    /// or a function that would run with the rights of whoever migrates. Nothing is set, and nothing locked, beyond the
    /// transaction.
    ///
    /// Needs no right on the database or the schema where nothing is missing, beside that of reading the table
    /// that records what was applied.
    ///
    /// # Errors
    /// What sqlx says. Nothing is half done.
    pub async fn apply(&self, pool: &PgPool, schema: &Schema) -> Result<Migrated, MigrateError> {
        let mut transaction = pool.begin().await?;
        sqlx::raw_sql(ONE_AT_A_TIME).execute(&mut *transaction).await?;
        let before = self.recorded(&mut transaction, schema).await?;
        let known: BTreeSet<i64> = self.files.iter().map(|(version, ..)| *version).collect();
        let done: BTreeSet<i64> = before.iter().map(|(version, _)| *version).collect();
        let newer = done.difference(&known).copied().collect();
        let migrations = self.migrations(schema);
        // Everything is there as this program has it: nothing is to be created, so no right to create is needed.
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
        // An older program beside a newer one finds migrations that it does not know.
        migrator.set_ignore_missing(true);
        // sqlx's own lock would be let go of before the transaction ends.
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

    /// Version and checksum of what was applied with success; nothing if the table is not there.
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

/// Creates the schema if it is missing. `create schema if not exists` asks for the right to create schemas in the
/// database also where the schema is there.
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

/// The texts are those of this program, with a checked schema in them.
fn safe(text: String) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

//! Tables whose rows a policy may hide.
//!
//! With row-level security in force, a role reads a table without the rows that its policies leave out, and nothing
//! says so. Then "no row" does not mean that there is none: an event that waits would not be shipped, and one that was
//! handled would be handled again. So whoever rests on it asks first, and refuses.

use sqlx::postgres::PgDatabaseError;
use sqlx::{PgConnection, Row};

/// Rows may be hidden from a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "row-level security may hide rows of {} from the database role {role:?}, so that nothing is known for certain: {}",
    self.tables.join(", "),
    self.remedy()
)]
pub struct HiddenRows {
    role: String,
    /// With their schema.
    tables: Vec<String>,
}

impl HiddenRows {
    /// Looks among these tables in this schema, for the session's role if no other is named. Tables that do not exist
    /// hide nothing.
    ///
    /// # Errors
    /// What sqlx says, as when there is no such role.
    pub async fn find(
        connection: &mut PgConnection,
        schema: &str,
        tables: &[&str],
        role: Option<&str>,
    ) -> Result<Option<Self>, sqlx::Error> {
        let rows = sqlx::query(include_str!("hidden.sql"))
            .persistent(false)
            .bind(schema)
            .bind(tables)
            .bind(role)
            .fetch_all(connection)
            .await?;
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let role = first.try_get("role")?;
        let name =
            |row| Row::try_get::<&str, _>(row, "name").map(|name| format!("{schema}.{name}"));
        let tables = rows.iter().map(name).collect::<Result<_, _>>()?;
        Ok(Some(Self { role, tables }))
    }

    /// What is found, without what to do about it.
    pub fn finding(&self) -> String {
        format!(
            "row-level security may hide rows of {} from role {}",
            self.tables.join(", "),
            self.role
        )
    }

    /// The statements of which either mends it.
    pub fn remedy(&self) -> String {
        let disable: Vec<String> = self
            .tables
            .iter()
            .map(|table| format!("alter table {table} disable row level security;"))
            .collect();
        format!(
            "have a superuser run: alter role \"{}\" bypassrls; or the tables' owner: {}",
            self.role.replace('"', "\"\""),
            disable.join(" ")
        )
    }
}

/// What to do where Postgres refused a statement because policies would hide rows from it, which it does with
/// `row_security = off`.
pub const REMEDY: &str = "row-level security is in force for this database role: let a superuser give it bypassrls \
                          (alter role … bypassrls), or the table's owner disable row-level security on the table";

/// Whether Postgres refused a statement for that.
pub fn is_refusal(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    // The code is that of any missing right, and the text is in the server's language.
    error
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .and_then(PgDatabaseError::routine)
        .is_some_and(|routine| routine == "check_enable_rls")
}

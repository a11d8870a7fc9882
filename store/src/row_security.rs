//! Tables whose rows a policy may hide.
//!
//! Under row-level security, a role does not see the rows that its policies hide, and nothing tells it so. Then "no
//! row" does not mean that there is none: a waiting event would not be shipped, and a handled event would be handled
//! again. So the relay and the inbox ask first, and refuse to run under such policies.

use sqlx::postgres::PgDatabaseError;
use sqlx::{PgConnection, Row};

/// Tables whose rows may be hidden from a role.
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
    /// Finds such tables among these of this schema. `role` is the role to ask about; `None`: the session's role.
    /// Tables that do not exist hide nothing.
    ///
    /// # Errors
    /// The error of sqlx, for example if the role does not exist.
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

    /// What was found, without what to do about it.
    pub fn finding(&self) -> String {
        format!(
            "row-level security may hide rows of {} from role {}",
            self.tables.join(", "),
            self.role
        )
    }

    /// What to do about it: either of these statements is enough.
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

/// What to do if Postgres refused a statement because policies would hide rows from it. With `row_security = off`,
/// Postgres refuses such statements.
pub const REMEDY: &str = "row-level security is in force for this database role: let a superuser give it bypassrls \
                          (alter role … bypassrls), or the table's owner disable row-level security on the table";

/// Whether Postgres refused a statement because policies would hide rows from it.
pub fn is_refusal(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    // The code is the one for any missing right, and the text is in the server's language.
    error
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .and_then(PgDatabaseError::routine)
        .is_some_and(|routine| routine == "check_enable_rls")
}

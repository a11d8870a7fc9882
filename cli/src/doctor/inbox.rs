//! The inbox's tables.

use pillarbox_store::dead_letters::Side;
use pillarbox_store::grants::Tables;
use sqlx::PgConnection;

use super::tables::{dead_letters, migrations};
use super::{Doctor, Report};

/// Those that a consumer cannot do without.
pub(super) const TABLES: [&str; 3] = ["inbox", "inbox_failure", "inbox_dead_letter"];

/// Checks the tables of a database that has no outbox. The consumers check their own rights.
pub(super) async fn examine(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    report.ok("inbox.tables", format!("the tables are in schema {}", doctor.config.schema));
    row_security(doctor, connection, report).await;
    migrations(doctor, connection, report, Tables::Inbox).await;
    dead_letters(doctor, connection, report, Side::Inbox).await;
}

/// Warns of policies that may hide rows. The consumers' roles are not known here.
pub(super) async fn row_security(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
) {
    const CHECK: &str = "inbox.row_security";
    let schema = &doctor.config.schema;
    let tables = sqlx::query_scalar::<_, String>(
        "select relname::text from pg_class join pg_namespace on pg_namespace.oid = relnamespace \
         where nspname = $1 and (starts_with(relname::text, 'inbox') or relname in ('saga', 'saga_history')) and relkind = 'r' and relrowsecurity order by 1",
    )
    .bind(schema)
    .fetch_all(&mut *connection);
    if let Some(tables) = report.got(CHECK, tables).await
        && let Some(first) = tables.first()
    {
        report.warn(
            CHECK,
            format!("row-level security is enabled on {}", tables.join(", ")),
            format!(
                "a consumer refuses to run unless its role sees all rows; if its role does not: \
                 alter table {schema}.{first} disable row level security; for each table, or alter role … bypassrls"
            ),
        );
    }
}

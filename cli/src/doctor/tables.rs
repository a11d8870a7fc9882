//! What is checked in the same way of each set of tables.

use pillarbox_store::Schema;
use pillarbox_store::dead_letters::Side;
use pillarbox_store::grants::Tables;
use sqlx::{PgConnection, SqlStr};

use super::{Doctor, Report};

/// A statement in the outbox's schema.
pub(super) fn sql(doctor: &Doctor, text: &str) -> SqlStr {
    // The schema was checked before the first statement.
    let schema = Schema::parse(&doctor.config.schema).unwrap_or_default();
    schema.statement(text)
}

/// Which of these tables the schema does not have.
pub(super) async fn missing(
    doctor: &Doctor,
    connection: &mut PgConnection,
    tables: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    // Not with to_regclass, which also fails if the role lacks rights.
    sqlx::query_scalar(
        "select wanted from unnest($2::text[]) as wanted \
         where not exists (select from pg_class where relname = wanted and relnamespace = \
         (select oid from pg_namespace where nspname = $1))",
    )
    .bind(&doctor.config.schema)
    .bind(tables)
    .fetch_all(connection)
    .await
}

/// Whether the tables are those that this program knows.
pub(super) async fn migrations(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
    tables: Tables,
) {
    let (check, name) = match tables {
        Tables::Outbox => ("outbox.migrations", "outbox"),
        Tables::Inbox => ("inbox.migrations", "inbox"),
        Tables::Trail => ("trail.migrations", "trail"),
    };
    let recorded = sqlx::query_scalar(
        "select exists (select from pg_class where relname = $2 || '_migration' \
         and relnamespace = (select oid from pg_namespace where nspname = $1))",
    )
    .bind(&doctor.config.schema)
    .bind(name)
    .fetch_one(&mut *connection);
    match report.got(check, recorded).await {
        None => return,
        Some(false) => {
            report.ok(
                check,
                "another tool applied the migrations: there is no record to compare with",
            );
            return;
        }
        Some(true) => {}
    }
    let applied =
        format!("select version, success from pillarbox.{name}_migration order by version");
    let applied = sqlx::query_as::<_, (i64, bool)>(sql(doctor, &applied)).fetch_all(connection);
    let Some(applied) = report.got(check, applied).await else {
        return;
    };
    let known = known_migrations(tables, &doctor.config.schema);
    let newest = known.iter().max().copied().unwrap_or_default();
    let missing: Vec<String> = known
        .iter()
        .filter(|version| !applied.contains(&(**version, true)))
        .map(ToString::to_string)
        .collect();
    let newer =
        applied.iter().map(|(version, _)| *version).filter(|version| *version > newest).max();
    if !missing.is_empty() {
        report.fail(
            check,
            format!(
                "the tables are older than this program: they lack migrations {}",
                missing.join(", ")
            ),
            format!("run `pillarbox migrate {name}` as the tables' owner"),
        );
    } else if let Some(newer) = newer {
        report.warn(
            check,
            format!(
                "the tables are newer than this program: they are at migration {newer}, and it knows {newest}"
            ),
            format!("install a newer pillarbox than {}", env!("CARGO_PKG_VERSION")),
        );
    } else {
        report.ok(check, format!("all migrations up to {newest} are applied"));
    }
}

fn known_migrations(tables: Tables, schema: &str) -> Vec<i64> {
    let known = match tables {
        Tables::Outbox => pillarbox_outbox::migrations(schema).unwrap_or_default(),
        Tables::Inbox => pillarbox_inbox::migrations(schema).unwrap_or_default(),
        Tables::Trail => pillarbox_trail::migrations(schema).unwrap_or_default(),
    };
    known.iter().filter_map(|(name, _)| name.split('_').next()?.parse().ok()).collect()
}

/// How many dead letters wait for somebody, if the role may see them: the relay's has no rights on the inbox.
pub(super) async fn dead_letters(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
    side: Side,
) {
    let (check, table, flag) = match side {
        Side::Outbox => ("outbox.dead_letters", "outbox_dead_letter", "--outbox"),
        Side::Inbox => ("inbox.dead_letters", "inbox_dead_letter", "--inbox"),
    };
    let readable = sqlx::query_scalar(
        "select coalesce(bool_or(has_table_privilege(oid, 'select')), false) from pg_class \
         where relname = $2 and relnamespace = (select oid from pg_namespace where nspname = $1)",
    )
    .bind(&doctor.config.schema)
    .bind(table)
    .fetch_one(&mut *connection);
    if report.got(check, readable).await != Some(true) {
        return;
    }
    let reasons = format!(
        "select reason, count(*) from pillarbox.{table} where state in ('dead', 'parked') \
         group by reason order by 2 desc, 1"
    );
    let reasons =
        sqlx::query_as::<_, (String, i64)>(sql(doctor, &reasons)).fetch_all(&mut *connection);
    match report.got(check, reasons).await.as_deref() {
        None => {}
        Some([]) => report.ok(check, "no dead letter is unresolved"),
        Some(reasons) => {
            let total: i64 = reasons.iter().map(|(_, count)| count).sum();
            let reasons: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            report.warn(
                check,
                format!("{total} unresolved: {}", reasons.join(", ")),
                format!(
                    "list them with `pillarbox dead-letters list {flag}`, then retry or discard them"
                ),
            );
        }
    }
}

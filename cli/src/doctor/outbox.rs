//! The outbox's tables, and the relay's place in them.

use std::sync::Arc;

use pillarbox_relay::status::{self, Status};
use pillarbox_relay::{Marks, Relay};
use pillarbox_store::{HiddenRows, Schema};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row, SqlSafeStr, SqlStr};

use super::{Doctor, Report, privileges, said};

/// A backlog whose oldest event is older than this is reported, in seconds.
const OLD_BACKLOG: f64 = 60.0;

/// What the tables say about the broker.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The topics of waiting events and of the newest events.
    pub(super) topics: Vec<String>,
    /// What the streams have acknowledged, as of the newest checkpoint.
    pub(super) marks: Marks,
}

/// Checks the tables.
pub(super) async fn examine(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Found {
    if !tables(doctor, connection, report).await {
        return Found::default();
    }
    privileges::examine(doctor, connection, report).await;
    row_security(doctor, connection, report).await;
    migrations(doctor, connection, report).await;
    sequence(doctor, connection, report).await;
    cursor(doctor, connection, report).await;
    lease(doctor, connection, report).await;
    others(doctor, connection, report).await;
    vacuum(doctor, connection, report).await;
    dead_letters(doctor, connection, report).await;
    Found {
        topics: topics(doctor, connection, report).await,
        marks: marks(doctor, connection, report).await,
    }
}

fn sql(doctor: &Doctor, text: &str) -> SqlStr {
    // The schema was checked before the first statement.
    let schema = Schema::parse(&doctor.config.schema).unwrap_or_default();
    AssertSqlSafe(Arc::<str>::from(schema.statement(text))).into_sql_str()
}

/// Whether the tables exist.
async fn tables(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) -> bool {
    const CHECK: &str = "outbox.tables";
    let schema = &doctor.config.schema;
    // Not with to_regclass, which also fails if the role lacks rights.
    let missing = sqlx::query_scalar::<_, String>(
        "select wanted from unnest($2::text[]) as wanted \
         where not exists (select from pg_class where relname = wanted and relnamespace = \
         (select oid from pg_namespace where nspname = $1))",
    )
    .bind(schema)
    .bind(&Relay::TABLES[..])
    .fetch_all(connection);
    match report.got(CHECK, missing).await.as_deref() {
        None => false,
        Some([]) => {
            report.ok(CHECK, format!("the tables are in schema {schema}"));
            true
        }
        Some(missing) => {
            report.fail(
                CHECK,
                format!("schema {schema} of this database has no table {}", missing.join(", ")),
                "run `pillarbox migrate outbox` as the tables' owner, or give the right database or --schema",
            );
            false
        }
    }
}

async fn migrations(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.migrations";
    let recorded = sqlx::query_scalar(
        "select exists (select from pg_class where relname = 'outbox_migration' \
         and relnamespace = (select oid from pg_namespace where nspname = $1))",
    )
    .bind(&doctor.config.schema)
    .fetch_one(&mut *connection);
    match report.got(CHECK, recorded).await {
        None => return,
        Some(false) => {
            report.ok(
                CHECK,
                "another tool applied the migrations: there is no record to compare with",
            );
            return;
        }
        Some(true) => {}
    }
    let applied = sqlx::query_as::<_, (i64, bool)>(sql(
        doctor,
        "select version, success from pillarbox.outbox_migration order by version",
    ))
    .fetch_all(connection);
    let Some(applied) = report.got(CHECK, applied).await else {
        return;
    };
    let known = known_migrations(&doctor.config.schema);
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
            CHECK,
            format!(
                "the tables are older than this program: they lack migrations {}",
                missing.join(", ")
            ),
            "run `pillarbox migrate outbox` as the tables' owner",
        );
    } else if let Some(newer) = newer {
        report.warn(
            CHECK,
            format!(
                "the tables are newer than this program: they are at migration {newer}, and it knows {newest}"
            ),
            format!("install a newer pillarbox than {}", env!("CARGO_PKG_VERSION")),
        );
    } else {
        report.ok(CHECK, format!("all migrations up to {newest} are applied"));
    }
}

fn known_migrations(schema: &str) -> Vec<i64> {
    pillarbox_outbox::migrations(schema)
        .unwrap_or_default()
        .iter()
        .filter_map(|(name, _)| name.split('_').next()?.parse().ok())
        .collect()
}

/// New positions must be greater than all that were ever given out: the relay does not look at lower ones.
async fn sequence(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.sequence";
    let row = sqlx::query(sql(doctor, include_str!("sequence.sql")))
        .bind(&doctor.config.schema)
        .fetch_one(connection);
    let read = |row: PgRow| -> Result<_, sqlx::Error> {
        let shape: Option<bool> = row.try_get("shape")?;
        Ok((shape, row.try_get::<i64, _>("next")?, row.try_get::<i64, _>("used")?))
    };
    let Some((shape, next, used)) = report.got(CHECK, async { row.await.and_then(read) }).await
    else {
        return;
    };
    let schema = &doctor.config.schema;
    if shape != Some(true) {
        report.fail(
            CHECK,
            "the sequence of `position` has a cache, counts down or cycles, or the column `position` comes before `txid`",
            format!(
                "make the table as `pillarbox migrate outbox --print` shows it; for the sequence: alter sequence {schema}.outbox_position_seq cache 1 increment 1 no cycle;"
            ),
        );
    } else if next <= used {
        report.fail(
            CHECK,
            format!(
                "the next event gets position {next}, but {used} was given out already: new events fail, or the relay never \
                 sees them (logical replication, for example, does not copy sequences)"
            ),
            format!("alter sequence {schema}.outbox_position_seq restart with {};", used + 1),
        );
    } else {
        report.ok(CHECK, format!("the next position is {next}"));
    }
}

/// A policy hides rows silently. A program that relies on "no row" refuses to run then.
async fn row_security(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.row_security";
    let (schema, role) = (&doctor.config.schema, doctor.role.as_deref());
    let hidden = HiddenRows::find(&mut *connection, schema, &Relay::TABLES, role);
    match report.got(CHECK, hidden).await {
        None => {}
        Some(None) => report.ok(CHECK, "no policy hides rows of the outbox's tables"),
        Some(Some(hidden)) => report.fail(CHECK, hidden.finding(), hidden.remedy()),
    }
    // The consumers' roles are not known here.
    const INBOX: &str = "inbox.row_security";
    let tables = sqlx::query_scalar::<_, String>(
        "select relname::text from pg_class join pg_namespace on pg_namespace.oid = relnamespace \
         where nspname = $1 and starts_with(relname::text, 'inbox') and relkind = 'r' and relrowsecurity order by 1",
    )
    .bind(schema)
    .fetch_all(&mut *connection);
    if let Some(tables) = report.got(INBOX, tables).await
        && let Some(first) = tables.first()
    {
        report.warn(
            INBOX,
            format!("row-level security is enabled on {}", tables.join(", ")),
            format!(
                "a consumer refuses to run unless its role sees all rows; if its role does not: \
                 alter table {schema}.{first} disable row level security; for each table, or alter role … bypassrls"
            ),
        );
    }
}

/// A cursor is valid only on the database cluster where it was made.
async fn cursor(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.cursor";
    let row = sqlx::query_as::<_, (Option<String>, String)>(sql(
        doctor,
        "select relay.cursor ->> 'system_identifier'::text, (select system_identifier::text from pg_control_system()) \
         from pillarbox.relay where name = $1",
    ))
    .bind(&doctor.config.name)
    .fetch_optional(connection);
    match report.got(CHECK, row).await {
        None => {}
        Some(None) => report.ok(CHECK, "there is no cursor yet"),
        Some(Some((Some(cursor), server))) if cursor == server => {
            report.ok(CHECK, "the cursor was made on this database cluster");
        }
        Some(Some((cursor, server))) => report.warn(
            CHECK,
            format!(
                "the cursor was made on another database cluster ({}; this one is {server}): the tables were restored from a dump, or replicated logically",
                cursor.as_deref().unwrap_or("unknown")
            ),
            "make sure that no relay runs on the old cluster, and start the relay: it reads the outbox from the start and \
             skips what was shipped already",
        ),
    }
}

async fn lease(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.lease";
    let (name, schema) = (&doctor.config.name, &doctor.config.schema);
    let status = Status::read(&mut *connection, schema, name);
    let Some(status) = report.got(CHECK, status).await else {
        return;
    };
    let waiting = match status.backlog_events {
        0 => "nothing waits".to_owned(),
        1 => format!("one event waits, for {}", said(status.oldest_age_seconds)),
        events => {
            format!("{events} events wait, the oldest for {}", said(status.oldest_age_seconds))
        }
    };
    let seen = status.heartbeat_age_seconds.map(said);
    let trouble = match (&status.holder, status.leading, status.epoch) {
        (Some(holder), true, _) => {
            report.ok(CHECK, format!("{holder} leads relay {name}"));
            None
        }
        (_, _, None) => {
            let others = report.got(CHECK, status::names(connection, schema)).await;
            let others = others.unwrap_or_default().join(", ");
            Some(match others.as_str() {
                "" => format!("relay {name} has never run on this outbox"),
                others => {
                    format!("relay {name} has never run on this outbox, but {others} (--name)")
                }
            })
        }
        (Some(holder), false, _) => Some(format!(
            "nobody leads relay {name}: {holder} did not renew its lease, and was last seen {} ago",
            seen.as_deref().unwrap_or("long")
        )),
        (None, ..) => Some(format!(
            "nobody leads relay {name}: the last one stopped {} ago",
            seen.as_deref().unwrap_or("long")
        )),
    };
    if let Some(trouble) = trouble {
        let remedy = "start `pillarbox relay` with this database and this --name; if it runs already, read its log";
        report.fail(CHECK, format!("{trouble}; {waiting}"), remedy);
    } else if status.oldest_age_seconds > OLD_BACKLOG {
        report.warn(
            "outbox.backlog",
            waiting,
            "read in the relay's log whether it waits for the broker; if it ships, find out what writes so many events or slows the broker",
        );
    } else {
        report.ok("outbox.backlog", waiting);
    }
    processes(&status, report);
}

/// What the relay's processes report about themselves.
fn processes(status: &Status, report: &mut Report) {
    const CHECK: &str = "outbox.processes";
    if status.notices.is_empty() {
        report.ok(CHECK, "no process of the relay reports a problem");
        return;
    }
    let notices: Vec<String> =
        status.notices.iter().map(|said| format!("{}: {}", said.holder, said.notice)).collect();
    report.warn(
        CHECK,
        format!("events are shipped, but {}", notices.join("; ")),
        "correct this on the host that is named; the process tries again by itself",
    );
}

/// Rows stay until every relay has shipped them, even a relay that will never run again.
async fn others(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.retention";
    let gone = sqlx::query_as::<_, (String, f64)>(sql(
        doctor,
        "select name, extract(epoch from clock_timestamp() - heartbeat)::float8 from pillarbox.relay \
         where name <> $1 and heartbeat < clock_timestamp() - greatest($2, 60)::float8 * interval '1 second' order by heartbeat",
    ))
    .bind(&doctor.config.name)
    .bind(i64::try_from(doctor.config.retention_s).unwrap_or(i64::MAX))
    .fetch_all(connection);
    match report.got(CHECK, gone).await.as_deref() {
        None => {}
        Some([]) => report.ok(CHECK, "no stopped relay keeps old rows from being removed"),
        Some([(name, age), ..]) => report.warn(
            CHECK,
            format!(
                "relay {name:?} was last seen {} ago: rows that it has not shipped are never removed, and the outbox grows",
                said(*age)
            ),
            format!(
                "start it, or, if it is retired: delete from {}.relay where name = '{}';",
                doctor.config.schema,
                name.replace('\'', "''")
            ),
        ),
    }
}

async fn vacuum(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.vacuum";
    let off = sqlx::query_scalar(
        "select current_setting('autovacuum') = 'off' or current_setting('track_counts') = 'off' \
         or coalesce('autovacuum_enabled=false' = any (reloptions) or 'autovacuum_enabled=off' = any (reloptions), false) \
         from pg_class where relname = 'outbox' and relnamespace = (select oid from pg_namespace where nspname = $1)",
    )
    .bind(&doctor.config.schema)
    .fetch_one(connection);
    match report.got(CHECK, off).await {
        None => {}
        Some(false) => report.ok(CHECK, "autovacuum is on for the outbox"),
        Some(true) => report.warn(
            CHECK,
            "autovacuum is off for the outbox: rows past their retention are removed, but their space is not reused",
            format!(
                "switch autovacuum and track_counts on, and alter table {}.outbox reset (autovacuum_enabled);",
                doctor.config.schema
            ),
        ),
    }
}

async fn dead_letters(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    for (check, table, side) in [
        ("outbox.dead_letters", "outbox_dead_letter", "--outbox"),
        ("inbox.dead_letters", "inbox_dead_letter", "--inbox"),
    ] {
        // The relay's role has no rights on the inbox; the operator's has.
        let readable = sqlx::query_scalar(
            "select coalesce(bool_or(has_table_privilege(oid, 'select')), false) from pg_class \
             where relname = $2 and relnamespace = (select oid from pg_namespace where nspname = $1)",
        )
        .bind(&doctor.config.schema)
        .bind(table)
        .fetch_one(&mut *connection);
        if report.got(check, readable).await != Some(true) {
            continue;
        }
        let reasons = sqlx::query_as::<_, (String, i64)>(sql(
            doctor,
            &format!(
                "select reason, count(*) from pillarbox.{table} where state in ('dead', 'parked') \
                 group by reason order by 2 desc, 1"
            ),
        ))
        .fetch_all(&mut *connection);
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
                    format!("list them with `pillarbox dead-letters list {side}`, then retry or discard them"),
                );
            }
        }
    }
}

async fn topics(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Vec<String> {
    let topics = sqlx::query_scalar(sql(doctor, include_str!("topics.sql")))
        .bind(&doctor.config.name)
        .fetch_all(connection);
    report.got("outbox.topics", topics).await.unwrap_or_default()
}

/// What the relay knew of the streams at its newest checkpoint.
async fn marks(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) -> Marks {
    let newest = sqlx::query_scalar::<_, String>(sql(
        doctor,
        "select streams::text from pillarbox.relay_checkpoint where relay = $1 order by taken_at desc limit 1",
    ))
    .bind(&doctor.config.name)
    .fetch_optional(connection);
    let newest = report.got("broker.watched", newest).await.flatten();
    newest.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

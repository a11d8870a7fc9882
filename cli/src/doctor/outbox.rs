//! The outbox's tables, and the relay's place in them.

use pillarbox_relay::status::{self, RelayStatus};
use pillarbox_relay::{Relay, StreamMarks};
use pillarbox_store::dead_letters::Side;
use pillarbox_store::{HiddenRows, grants};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::tables::{dead_letters, migrations, missing, sql};
use super::{Doctor, Report, inbox, privileges, said, trail};

/// A backlog whose oldest event is older than this is reported, in seconds.
const OLD_BACKLOG: f64 = 60.0;

/// What the tables say about the broker.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The topics of waiting events and of the newest events.
    pub(super) topics: Vec<String>,
    /// What the streams have acknowledged, as of the newest checkpoint.
    pub(super) marks: StreamMarks,
}

/// What a database is for, by its tables.
#[derive(Debug)]
pub(super) enum Purpose {
    /// It has an outbox, or should have one.
    Outbox(Found),
    /// It has an inbox and no outbox.
    Inbox,
    /// It has a trail and nothing else.
    Trail,
}

/// Checks the tables of the outbox, or of the inbox if there is no outbox and none is needed.
pub(super) async fn examine(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Purpose {
    match tables(doctor, connection, report).await {
        Tables::There => {}
        Tables::Missing => return Purpose::Outbox(Found::default()),
        Tables::InboxAlone => {
            inbox::examine(doctor, connection, report).await;
            return Purpose::Inbox;
        }
        Tables::TrailAlone => return Purpose::Trail,
    }
    privileges::examine(doctor, connection, report, privileges::RELAY).await;
    row_security(doctor, connection, report).await;
    inbox::row_security(doctor, connection, report).await;
    migrations(doctor, connection, report, grants::Tables::Outbox).await;
    sequence(doctor, connection, report).await;
    triggers(doctor, connection, report).await;
    cursor(doctor, connection, report).await;
    lease(doctor, connection, report).await;
    others(doctor, connection, report).await;
    vacuum(doctor, connection, report).await;
    dead_letters(doctor, connection, report, Side::Outbox).await;
    dead_letters(doctor, connection, report, Side::Inbox).await;
    Purpose::Outbox(Found {
        topics: topics(doctor, connection, report).await,
        marks: marks(doctor, connection, report).await,
    })
}

/// What there is of the outbox's tables.
enum Tables {
    There,
    /// Some or all are missing, or nobody knows.
    Missing,
    /// All are missing, and the inbox's are there.
    InboxAlone,
    /// All are missing, and so are the inbox's, and there is a trail.
    TrailAlone,
}

async fn tables(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) -> Tables {
    const CHECK: &str = "outbox.tables";
    let schema = &doctor.config.schema;
    let absent = missing(doctor, connection, &Relay::TABLES);
    let Some(absent) = report.got(CHECK, absent).await else {
        return Tables::Missing;
    };
    if absent.is_empty() {
        report.ok(CHECK, format!("the tables are in schema {schema}"));
        return Tables::There;
    }
    if absent.len() == Relay::TABLES.len() {
        let others = async {
            let inbox = missing(doctor, connection, &inbox::TABLES).await?;
            Ok((inbox, missing(doctor, connection, &trail::TABLES).await?))
        };
        let Some((of_inbox, of_trail)) = report.got(CHECK, others).await else {
            return Tables::Missing;
        };
        if of_inbox.is_empty() {
            report.ok(
                CHECK,
                format!(
                    "schema {schema} of this database has an inbox and no outbox: it only consumes, and needs no relay"
                ),
            );
            return Tables::InboxAlone;
        }
        if of_inbox.len() == inbox::TABLES.len() && of_trail.len() < trail::TABLES.len() {
            report.ok(
                CHECK,
                format!(
                    "schema {schema} of this database has a trail and no outbox, and needs no relay"
                ),
            );
            return Tables::TrailAlone;
        }
    }
    report.fail(
        CHECK,
        format!("schema {schema} of this database has no table {}", absent.join(", ")),
        "run `pillarbox migrate outbox` as the tables' owner (`pillarbox migrate inbox` if the service only consumes), \
         or give the right database or --schema",
    );
    Tables::Missing
}

/// New positions must be greater than all that were ever given out: the relay does not look at lower ones.
async fn sequence(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.sequence";
    let schema = &doctor.config.schema;
    let name = status::sequence_name(&mut *connection, schema);
    let Some(name) = report.got(CHECK, name).await else {
        return;
    };
    let Some(name) = name else {
        report.fail(
            CHECK,
            "no sequence gives out the positions: the relay looks through more and more of the table with each page",
            format!("make the table {schema}.outbox as `pillarbox migrate outbox --print` shows it"),
        );
        return;
    };
    let text = include_str!("sequence.sql").replace("{sequence}", &name);
    let row = sqlx::query(sql(doctor, &text)).fetch_one(connection);
    let read = |row: PgRow| -> Result<_, sqlx::Error> {
        let shape: Option<bool> = row.try_get("shape")?;
        Ok((shape, row.try_get::<i64, _>("next")?, row.try_get::<i64, _>("used")?))
    };
    let Some((shape, next, used)) = report.got(CHECK, async { row.await.and_then(read) }).await
    else {
        return;
    };
    if shape != Some(true) {
        report.fail(
            CHECK,
            "the sequence of `position` has a cache, counts down or cycles, or the column `position` comes before `txid`",
            format!(
                "make the table as `pillarbox migrate outbox --print` shows it; for the sequence: alter sequence {name} cache 1 increment 1 no cycle;"
            ),
        );
    } else if next <= used {
        report.fail(
            CHECK,
            format!(
                "the next event gets position {next}, but {used} was given out already: new events fail, or the relay never \
                 sees them (logical replication, for example, does not copy sequences)"
            ),
            format!("alter sequence {name} restart with {};", used + 1),
        );
    } else {
        report.ok(CHECK, format!("the next position is {next}"));
    }
}

/// A copy of the table, made to be swapped in, has no triggers: `like … including all` leaves them out.
async fn triggers(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "outbox.triggers";
    let schema = &doctor.config.schema;
    let missing = sqlx::query_as::<_, (String, String)>(sql(
        doctor,
        "select wanted.name, wanted.event \
         from (values ('outbox_replicated', 'insert'), ('outbox_kept', 'update or delete')) as wanted (name, event) \
         where not exists (select from pg_trigger where tgrelid = 'pillarbox.outbox'::regclass \
         and tgname = wanted.name and tgenabled in ('R', 'A'))",
    ))
    .fetch_all(connection);
    match report.got(CHECK, missing).await.as_deref() {
        None => {}
        Some([]) => report.ok(CHECK, "the table has its triggers for logical replication"),
        Some(missing) => {
            let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
            let remedy: Vec<String> = missing
                .iter()
                .map(|(name, event)| {
                    format!(
                        "drop trigger if exists {name} on {schema}.outbox; create trigger {name} before {event} on \
                         {schema}.outbox for each row execute function {schema}.{name}(); alter table {schema}.outbox \
                         enable replica trigger {name};"
                    )
                })
                .collect();
            report.warn(
                CHECK,
                format!(
                    "the table outbox lacks {}: rows that a subscription brings keep the publisher's transaction ids and \
                     positions, and its deletions remove rows here (`create table … (like … including all)` copies no \
                     triggers and no grants)",
                    names.join(" and ")
                ),
                remedy.join(" "),
            );
        }
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
    let status = RelayStatus::read(&mut *connection, schema, name);
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
    if status.held_events > 0 {
        report.fail(
            "outbox.held",
            format!(
                "the table {schema}.outbox_dead_letter does not take the dead letters of {} events that can never be shipped",
                status.held_events
            ),
            "drop the trigger, rule or constraint on that table that refuses or drops rows; the relay's log and /readyz \
             name it, and the relay then writes the letters by itself",
        );
    }
    if let Some(table) = &status.left_table {
        report.warn(
            "outbox.table",
            format!("{table} was the outbox until another table took its name: its events are not shipped any more"),
            format!(
                "copy the events that had not been shipped: insert into {schema}.outbox (event_id, event_type, topic, key, \
                 headers, payload, created_at) select event_id, event_type, topic, key, headers, payload, created_at from \
                 {table} where … order by position; then drop table {table};"
            ),
        );
    }
    processes(&status, report);
}

/// What the relay's processes report about themselves.
fn processes(status: &RelayStatus, report: &mut Report) {
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
    .bind(i64::try_from(doctor.config.retention.as_secs()).unwrap_or(i64::MAX))
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
async fn marks(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) -> StreamMarks {
    let newest = sqlx::query_scalar::<_, String>(sql(
        doctor,
        "select streams::text from pillarbox.relay_checkpoint where relay = $1 order by taken_at desc limit 1",
    ))
    .bind(&doctor.config.name)
    .fetch_optional(connection);
    let newest = report.got("broker.watched", newest).await.flatten();
    newest.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

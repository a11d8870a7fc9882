//! The database server.

use std::time::SystemTime;

use pillarbox_relay::config::without_secrets;
use pillarbox_relay::{Database, SessionError};
use pillarbox_store::full_text;
use pillarbox_store::limit::within;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::{Doctor, Report, is_silence, said};

/// Events of hosts whose clocks differ by this much are shown with wrong ages.
const SKEW: f64 = 2.0;

/// Checks the server, and returns a connection to it if it is one that an outbox can be on.
pub(super) async fn examine(doctor: &Doctor, report: &mut Report) -> Option<PgConnection> {
    let mut connection = connect(doctor, report).await?;
    if !primary(&mut connection, report).await? {
        return None;
    }
    clock(&mut connection, report).await;
    durability(&mut connection, report).await;
    transactions(doctor, &mut connection, report).await;
    public(&mut connection, report).await;
    Some(connection)
}

/// What must hold before anything else is asked.
const POOLER: &str = "database.pooler";

async fn connect(doctor: &Doctor, report: &mut Report) -> Option<PgConnection> {
    const CHECK: &str = "database.reachable";
    let url = without_secrets(&doctor.config.database_url);
    let connected = match Database::new(&doctor.config.database_url, "pillarbox doctor") {
        Ok(database) => {
            let database = database.statement_timeout(doctor.limit);
            match within(doctor.limit, "the database", database.one_direct()).await {
                Ok(connected) => connected,
                Err(late) => Err(SessionError::Connect { url: url.clone(), source: late.into() }),
            }
        }
        Err(error) => Err(error),
    };
    let error = match connected {
        Ok(connection) => {
            report.ok(CHECK, format!("connected to {url}"));
            report.ok(POOLER, "the connection stays with its client");
            return Some(connection);
        }
        Err(SessionError::Connect { source, .. }) => source,
        // It was let in, and then heard no more.
        Err(SessionError::Settings { source, .. }) if is_silence(&source) => source,
        Err(error @ SessionError::Pooled { .. }) => {
            report.ok(CHECK, format!("connected to {url}"));
            report.fail(
                POOLER,
                "a connection pooler in transaction mode gives each transaction another server connection",
                format!("{error} (docs/poolers.md)"),
            );
            return None;
        }
        Err(error @ SessionError::Url(_)) => {
            report.fail(
                CHECK,
                full_text(&error),
                "write it as postgres://user:password@host:port/database",
            );
            return None;
        }
        Err(error) => {
            report.fail(
                "database.session",
                full_text(&error),
                "give the role the right to set it, or reset it: alter role … reset …",
            );
            return None;
        }
    };
    let code =
        error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    let remedy = match code.as_deref() {
        Some("28P01" | "28000") => {
            "check user and password, that the role may log in, and pg_hba.conf on the server"
        }
        Some("3D000") => "check the database's name at the end of the URL, or create the database",
        Some("42501") => "grant connect on the database to the role",
        Some("53300") => {
            "the server has no connection left: find who holds them, or raise max_connections"
        }
        Some("57P03") => "the server is starting or stopping: try again in a moment",
        _ => "check host and port, that the server runs and listens there, and the network between",
    };
    report.fail(CHECK, format!("no connection to {url}: {}", full_text(&error)), remedy);
    None
}

/// Whether it is a primary of a version that will do. `None`: it did not answer.
async fn primary(connection: &mut PgConnection, report: &mut Report) -> Option<bool> {
    let row = sqlx::query(
        "select pg_is_in_recovery(), current_setting('server_version_num')::integer, current_setting('server_version')",
    )
    .fetch_one(connection);
    let read = |row: PgRow| -> Result<(bool, i32, String), sqlx::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let (in_recovery, number, version) =
        report.got("database.primary", async { row.await.and_then(read) }).await?;
    if number < 130_000 {
        report.fail(
            "database.version",
            format!("PostgreSQL {version}"),
            "use PostgreSQL 13 or newer: older ones have no 64-bit transaction ids",
        );
        return Some(false);
    }
    report.ok("database.version", format!("PostgreSQL {version}"));
    if in_recovery {
        report.fail(
            "database.primary",
            "the server is a hot standby: its snapshots say nothing of the primary's transactions",
            "give the primary's address; with several hosts in the URL, one that follows the primary",
        );
        return Some(false);
    }
    report.ok("database.primary", "the server is a primary");
    Some(true)
}

async fn clock(connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "database.clock";
    let before = SystemTime::now();
    let answer = sqlx::query_scalar("select extract(epoch from clock_timestamp())::float8")
        .fetch_one(connection);
    let Some(theirs) = report.got(CHECK, answer).await else {
        return;
    };
    let after = SystemTime::now();
    let (before, after) = (seconds(before), seconds(after));
    match skew(before, theirs, after) {
        skew if skew < SKEW => report.ok(CHECK, format!("the clocks differ by {} at the most", said(skew.max(after - before)))),
        skew => report.warn(
            CHECK,
            format!("this host's clock and the database's differ by {}", said(skew)),
            "have both follow NTP: nothing is lost by it, for leases go by one clock each, but ages and latencies are wrong",
        ),
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// By how much two clocks differ at least, when one said `theirs` between `before` and `after` of the other.
fn skew(before: f64, theirs: f64, after: f64) -> f64 {
    (before - theirs).max(theirs - after).max(0.0)
}

async fn durability(connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "database.durability";
    let off = sqlx::query_scalar::<_, String>(
        "select name from pg_settings where name in ('fsync', 'full_page_writes') and setting = 'off'",
    )
    .fetch_all(connection);
    match report.got(CHECK, off).await.as_deref() {
        None => {}
        Some([]) => report.ok(CHECK, "commits survive a power cut"),
        Some(off) => report.warn(
            CHECK,
            format!(
                "{} is off: a power cut can lose commits, and events with them",
                off.join(" and ")
            ),
            "switch it on unless the data may be lost",
        ),
    }
}

/// Whoever may create something in `public` can put an operator there that the statements of others find.
async fn public(connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "database.public_schema";
    let open = sqlx::query_scalar::<_, bool>(include_str!("public.sql")).fetch_one(connection);
    match report.got(CHECK, open).await {
        None => {}
        Some(false) => report.ok(CHECK, "not everybody may create something in schema public"),
        Some(true) => report.warn(
            CHECK,
            "every role may create operators and functions in schema public: statements of other roles that have \
             `public` in their search_path find them, and run them with those roles' rights (the relay and these \
             commands do not look there)",
            "revoke create on schema public from public; (the default since PostgreSQL 15; \
             `pillarbox migrate --print-grants` does it too)",
        ),
    }
}

async fn transactions(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "database.transactions";
    let row = sqlx::query(include_str!("transactions.sql")).fetch_one(connection);
    let read = |row: PgRow| -> Result<(i64, Option<f64>, PgRow), sqlx::Error> {
        Ok((row.try_get("hidden")?, row.try_get("age")?, row))
    };
    let Some((hidden, age, row)) = report.got(CHECK, async { row.await.and_then(read) }).await
    else {
        return;
    };
    let text =
        |column: &str| row.try_get::<Option<String>, _>(column).ok().flatten().unwrap_or_default();
    let pid = row.try_get::<Option<i32>, _>("pid").ok().flatten();
    let blind = match hidden {
        0 => String::new(),
        hidden => format!(
            " ({hidden} sessions of other roles do not show theirs; members of pg_read_all_stats see them)"
        ),
    };
    match age {
        Some(age) if age >= doctor.old_transaction.as_secs_f64() => {
            let (who, end) = match pid {
                Some(pid) => (
                    format!(
                        "session {pid} (role {}, {:?}, {})",
                        text("role"),
                        text("application"),
                        text("state")
                    ),
                    format!("select pg_terminate_backend({pid});"),
                ),
                None => (
                    format!("the prepared transaction {:?} of {}", text("gid"), text("role")),
                    format!("rollback prepared '{}';", text("gid").replace('\'', "''")),
                ),
            };
            report.warn(
                CHECK,
                format!(
                    "{who} has had a transaction open for {}: vacuum cannot clear what was removed since, \
                     and the events in it wait (others do not){blind}",
                    said(age)
                ),
                format!(
                    "find out what it does, or end it: {end} \
                     idle_in_transaction_session_timeout keeps it from coming back"
                ),
            );
        }
        Some(age) => report.ok(CHECK, format!("the oldest is {} old{blind}", said(age))),
        None => report.ok(CHECK, format!("none is open{blind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_differs_only_by_what_the_round_trip_does_not_explain() {
        assert_eq!(skew(10.0, 10.5, 11.0), 0.0);
        assert_eq!(skew(10.0, 7.0, 11.0), 3.0);
        assert_eq!(skew(10.0, 15.0, 11.0), 4.0);
    }
}

//! The database server.

use std::time::SystemTime;

use pillarbox_relay::config::without_secrets;
use pillarbox_relay::{Database, SessionError};
use pillarbox_store::full_text;
use pillarbox_store::limit::within;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::{Doctor, Report, is_silence, said};

/// A difference of clocks that is reported, in seconds: ages and latencies are then wrong by as much.
const SKEW: f64 = 2.0;

/// Checks the server, and returns a connection to it if it is fit for an outbox.
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

/// The check for a pooler. It must pass before anything else is asked.
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
            report.ok(POOLER, "the server connection stays with its client");
            return Some(connection);
        }
        Err(SessionError::Connect { source, .. }) => source,
        // The server let the connection in and then stopped answering.
        Err(SessionError::Settings { source, .. }) if is_silence(&source) => source,
        Err(error @ SessionError::Pooled { .. }) => {
            report.ok(CHECK, format!("connected to {url}"));
            report.fail(
                POOLER,
                "a connection pooler in transaction mode gives each transaction a different server connection",
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
                "give the role the right to set this parameter, or reset it: alter role … reset …",
            );
            return None;
        }
    };
    let code =
        error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    let remedy = match code.as_deref() {
        Some("28P01" | "28000") => {
            "check the user and the password, that the role may log in, and pg_hba.conf on the server"
        }
        Some("3D000") => "check the database's name at the end of the URL, or create the database",
        Some("42501") => "grant connect on the database to the role",
        Some("53300") => {
            "the server has no connection left: find out who holds them, or raise max_connections"
        }
        Some("57P03") => "the server is starting or stopping: try again in a moment",
        _ => {
            "check the host and the port, that the server runs and listens there, and the network in between"
        }
    };
    report.fail(CHECK, format!("no connection to {url}: {}", full_text(&error)), remedy);
    None
}

/// Whether the server is a primary of a supported version. `None`: it did not answer.
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
            "the server is a hot standby: its snapshots say nothing about the primary's transactions",
            "give the primary's address, or list all hosts in the URL",
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
        skew if skew < SKEW => report.ok(CHECK, format!("the clocks differ by at most {}", said(skew.max(after - before)))),
        skew => report.warn(
            CHECK,
            format!("this host's clock and the database's differ by {}", said(skew)),
            "synchronise both with NTP: no event is lost, since each lease uses only one clock, but ages and latencies are wrong",
        ),
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The least by which two clocks differ if one said `theirs` between `before` and `after` on the other.
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
            "switch it on, unless the data may be lost",
        ),
    }
}

/// A role that may create objects in `public` can put an operator there that other roles' statements find.
async fn public(connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "database.public_schema";
    let open = sqlx::query_scalar::<_, bool>(include_str!("public.sql")).fetch_one(connection);
    match report.got(CHECK, open).await {
        None => {}
        Some(false) => report.ok(CHECK, "not every role may create objects in schema public"),
        Some(true) => report.warn(
            CHECK,
            "every role may create operators and functions in schema public: statements of other roles that have \
             `public` in their search_path find them, and run them with those roles' rights (the relay and these \
             commands do not search there)",
            "revoke create on schema public from public; (the default since PostgreSQL 15; the SQL of \
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
            " ({hidden} sessions of other roles hide theirs; members of pg_read_all_stats see them)"
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
                    "{who} has had a transaction open for {}: vacuum cannot remove rows deleted since then, \
                     and the events of this transaction wait (others do not){blind}",
                    said(age)
                ),
                format!(
                    "find out what it does, or end it: {end} \
                     Set idle_in_transaction_session_timeout to prevent idle transactions"
                ),
            );
        }
        Some(age) => {
            report.ok(CHECK, format!("the oldest open transaction is {} old{blind}", said(age)))
        }
        None => report.ok(CHECK, format!("no transaction is open{blind}")),
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

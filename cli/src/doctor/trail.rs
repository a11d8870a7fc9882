//! The trail, where there is one.

use pillarbox_store::full_text;
use pillarbox_store::grants::{Duty, Tables};
use pillarbox_trail::status::{StatusError, StreamStatus};
use sqlx::PgConnection;

use super::privileges::Whose;
use super::tables::{migrations, missing};
use super::{Doctor, Report, privileges, said};

/// The trail's tables, and the functions that make and drop their partitions.
pub(super) const TABLES: [&str; 2] = ["trail", "trail_stream"];
const FUNCTIONS: [&str; 2] = ["trail_days", "trail_forget"];

/// A running trail looks at each stream every few seconds.
const STALE: f64 = 60.0;
/// A trail that is further behind than this is reported. It reads some 20,000 messages in a second.
const BEHIND: u64 = 100_000;

/// Says whether the trail keeps up. Where there is no trail, or the role may not see it, nothing is said. `alone`: the
/// database holds nothing else, so whoever runs doctor here looks after the trail.
pub(super) async fn examine(
    doctor: &Doctor,
    connection: &mut PgConnection,
    report: &mut Report,
    alone: bool,
) {
    if !tables(doctor, connection, report).await {
        return;
    }
    if alone {
        migrations(doctor, connection, report, Tables::Trail).await;
    }
    let is_read = streams(doctor, connection, report).await;
    // Whoever writes them has the rights.
    if alone && !is_read {
        let whose = Whose { check: "trail.privileges", duty: Duty::Trail, tables: "trail" };
        privileges::examine(doctor, connection, report, whose).await;
    }
}

/// Whether there is a trail, and all of it.
async fn tables(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) -> bool {
    const CHECK: &str = "trail.tables";
    let schema = &doctor.config.schema;
    let absent = async {
        let mut absent = missing(doctor, connection, &TABLES).await?;
        if absent.len() < TABLES.len() {
            let functions = sqlx::query_scalar::<_, String>(include_str!("functions.sql"));
            absent.extend(functions.bind(schema).bind(&FUNCTIONS[..]).fetch_all(connection).await?);
        }
        Ok(absent)
    };
    match report.got(CHECK, absent).await {
        Some(absent) if absent.is_empty() => {
            report.ok(CHECK, format!("the trail's tables are in schema {schema}"));
            true
        }
        // There is none.
        Some(absent) if absent == TABLES => false,
        Some(absent) => {
            report.fail(
                CHECK,
                format!("the trail in schema {schema} lacks {}", absent.join(", ")),
                "run `pillarbox migrate trail` as the tables' owner; if that says that nothing is to be done, apply what \
                 `pillarbox migrate trail --print` prints",
            );
            false
        }
        None => false,
    }
}

/// Says how far the trail is with each stream. Returns whether somebody reads one of them.
async fn streams(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) -> bool {
    const CHECK: &str = "trail.streams";
    let asked = async {
        match StreamStatus::all(connection, &doctor.config.schema).await {
            Ok(found) => Ok(found),
            Err(StatusError::Database(error)) => Err(error),
            Err(error) => Err(sqlx::Error::Protocol(full_text(&error))),
        }
    };
    let Some(Some(streams)) = report.got(CHECK, asked).await else { return false };
    let mut well = true;
    for stream in &streams {
        let name = &stream.stream;
        if stream.looked_seconds > STALE {
            well = false;
            report.warn(
                CHECK,
                format!("nobody has looked at stream {name} for {}", said(stream.looked_seconds)),
                "start `pillarbox trail`; if it runs, its log and /readyz say what keeps it; if the stream is gone, \
                 its entry goes when the trail's retention is over",
            );
        } else if let Some(problem) = &stream.problem {
            well = false;
            report.warn(
                CHECK,
                format!("stream {name} cannot be read: {problem}"),
                "correct what it says; the trail tries again by itself",
            );
        } else if stream.lag() > BEHIND {
            well = false;
            report.warn(
                CHECK,
                format!("stream {name} is {} messages ahead of the trail", stream.lag()),
                "wait if the trail was started lately; otherwise see whether its database or the network is slow",
            );
        }
    }
    match (well, streams.len()) {
        (false, _) => {}
        (true, 0) => report.warn(
            CHECK,
            "the trail has its tables and has read nothing yet",
            "start `pillarbox trail`",
        ),
        (true, count) => report.ok(CHECK, format!("the trail keeps up with {count} streams")),
    }
    streams.iter().any(|stream| stream.looked_seconds <= STALE)
}

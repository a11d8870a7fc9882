//! The trail, where there is one.

use pillarbox_store::full_text;
use pillarbox_trail::status::{StatusError, StreamStatus};
use sqlx::PgConnection;

use super::{Doctor, Report, said};

/// A running trail looks at each stream every few seconds.
const STALE: f64 = 60.0;
/// A trail that is further behind than this is reported. It reads some 20,000 messages in a second.
const BEHIND: u64 = 100_000;

/// Says whether the trail keeps up. Where there is no trail, or the role may not see it, nothing is said.
pub(super) async fn examine(doctor: &Doctor, connection: &mut PgConnection, report: &mut Report) {
    const CHECK: &str = "trail.streams";
    let asked = async {
        match StreamStatus::all(connection, &doctor.config.schema).await {
            Ok(found) => Ok(found),
            Err(StatusError::Database(error)) => Err(error),
            Err(error) => Err(sqlx::Error::Protocol(full_text(&error))),
        }
    };
    let Some(Some(streams)) = report.got(CHECK, asked).await else { return };
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
}

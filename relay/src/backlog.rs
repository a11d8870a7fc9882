//! Measures the backlog and the dead letters from time to time, on a connection of its own, beside shipping.
//!
//! Standbys measure too, because the backlog matters most when no process leads.

use std::collections::BTreeSet;
use std::time::Duration;

use pillarbox_store::full_text;
use pillarbox_store::row_security;
use sqlx::{PgConnection, Row};
use tokio::time::{Instant, sleep, timeout};

use crate::config::RelayConfig;
use crate::health::{Observer, Role};
use crate::refused::Reason;
use crate::scheduled::Scheduled;
use crate::session::{Database, Patience};
use crate::status::RelayStatus;
use pillarbox_store::schema::in_schema;

/// The pause between two measurements.
const INTERVAL: Duration = Duration::from_secs(2);
/// If counting a long backlog takes a while, the pause is this many times as long.
const REST: u32 = 20;

/// How long measuring waits for a relay that connects. If the role may open only a few connections, shipping comes
/// before measuring.
const COURTESY: Duration = Duration::from_secs(5);

/// Measures for as long as it is polled, and reports when that fails.
pub(crate) async fn measure(config: RelayConfig, database: Database, observer: Observer) {
    let patience = Patience::default();
    let mut connection = None;
    let mut reasons = Reason::ALL.iter().map(Reason::to_string).collect();
    let mut state = observer.state();
    let mut stall = Stall::default();
    let _ = timeout(COURTESY, state.wait_for(|state| state.role != Role::Connecting)).await;
    loop {
        let asked = Instant::now();
        let once = once(&config, &database, &observer, connection.take(), &mut reasons);
        let rest = match patience.wait(once).await {
            Ok((open, events)) => {
                let waits = events > 0 && observer.leads_well();
                let stalled = stall.look(waits, observer.moves(), Instant::now());
                observer.stalled(stalled.then(|| {
                    format!(
                        "{events} events wait, and for {} s none of them has been stored or set aside, though nothing \
                         is known to be wrong; `pillarbox doctor` may say more",
                        STALLED.as_secs()
                    )
                }));
                // A relay that connects may need the connection more.
                connection = (!observer.is_connecting()).then_some(open);
                observer.measured(None);
                asked.elapsed() * REST
            }
            Err(error) => {
                let error = match row_security::is_refusal(&error) {
                    true => format!("{}: {}", full_text(&error), row_security::REMEDY),
                    false => full_text(&error),
                };
                tracing::debug!(relay = config.name, error, "the backlog was not measured");
                observer.measured(Some(error));
                Duration::ZERO
            }
        };
        sleep(INTERVAL.max(rest)).await;
    }
}

async fn once(
    config: &RelayConfig,
    database: &Database,
    observer: &Observer,
    connection: Option<PgConnection>,
    reasons: &mut BTreeSet<String>,
) -> Result<(PgConnection, i64), sqlx::Error> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => connect(database).await?,
    };
    let status = RelayStatus::read(&mut connection, &config.schema, &config.name).await?;
    observer.meter.backlog(status.backlog_events, status.oldest_age_seconds);
    if let Some(scheduled) = &status.scheduled {
        let Scheduled { pending, held, overdue_seconds } = *scheduled;
        observer.meter.scheduled(pending, held, overdue_seconds);
    }
    let sql = in_schema(
        "select reason, count(*) from pillarbox.outbox_dead_letter \
         where relay = $1 and state in ('dead', 'parked') group by reason",
        &config.schema,
    );
    let rows = sqlx::query(sql).bind(&config.name).fetch_all(&mut connection).await?;
    // The gauge of a reason without unresolved letters goes back to 0.
    let mut gone = reasons.clone();
    for row in rows {
        let (reason, events): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        observer.meter.unresolved(&reason, events);
        gone.remove(&reason);
        reasons.insert(reason);
    }
    for reason in gone {
        observer.meter.unresolved(&reason, 0);
    }
    Ok((connection, status.backlog_events))
}

/// A backlog that has not moved for this long under a leader is reported.
const STALLED: Duration = Duration::from_secs(20);

/// Notices a backlog that does not move, whatever the cause is.
#[derive(Debug, Default)]
struct Stall {
    since: Option<Instant>,
    moves: u64,
}

impl Stall {
    /// Records whether events wait, and how often events have moved so far. Returns whether the backlog stalls.
    fn look(&mut self, waits: bool, moves: u64, now: Instant) -> bool {
        if !waits || moves != self.moves {
            (self.since, self.moves) = (None, moves);
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= STALLED
    }
}

async fn connect(database: &Database) -> Result<PgConnection, sqlx::Error> {
    let mut connection = database.connect().await?;
    // One core is enough for measuring.
    sqlx::raw_sql("set max_parallel_workers_per_gather = 0").execute(&mut connection).await?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_stalls_when_it_has_not_moved_for_a_while_and_no_longer_when_it_moves() {
        let (mut stall, start) = (Stall::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!stall.look(true, 0, at(0)));
        assert!(!stall.look(true, 0, at(19)));
        assert!(stall.look(true, 0, at(20)));
        assert!(!stall.look(true, 1, at(22)), "something was stored");
        assert!(!stall.look(true, 1, at(23)));
        assert!(stall.look(true, 1, at(43)));
        assert!(!stall.look(false, 1, at(44)), "nothing waits, or another process leads");
        assert!(!stall.look(true, 1, at(45)));
        assert!(!stall.look(true, 1, at(64)));
        assert!(stall.look(true, 1, at(65)));
    }
}

//! Waits until everything has come to rest after the last fault.

use std::time::Duration;

use pillarbox_relay::RelayStatus;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::{Instant, sleep};

use crate::world::World;

/// How long everything must have been at rest.
const STAYS: Duration = Duration::from_millis(1_500);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Waits until nothing waits any more, and returns what still waits when the time is over.
pub(crate) async fn until_at_rest(world: &World, patience: Duration) -> Vec<(String, i64)> {
    let until = Instant::now() + patience;
    let mut since: Option<Instant> = None;
    loop {
        let left = match tokio::time::timeout(ANSWER, left(world)).await {
            Ok(Ok(left)) => left,
            Ok(Err(error)) => vec![(format!("an answer ({error:#})"), 1)],
            Err(_) => vec![("an answer in time".to_owned(), 1)],
        };
        if left.is_empty() {
            if since.get_or_insert_with(Instant::now).elapsed() >= STAYS {
                return left;
            }
        } else {
            since = None;
            if Instant::now() > until {
                return left;
            }
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// What waits, and how much of it.
async fn left(world: &World) -> anyhow::Result<Vec<(String, i64)>> {
    let mut left = Vec::new();
    let mut note = |what: String, count: i64| {
        if count > 0 {
            left.push((what, count));
        }
    };
    if world.strict {
        // Plays the operator, who discards the dead letters so that their keys continue.
        for (pool, table) in
            [(&world.outbox, "outbox_dead_letter"), (&world.inbox, "inbox_dead_letter")]
        {
            let discard = format!(
                "update pillarbox.{table} set state = 'discarded', resolved_at = clock_timestamp() \
                 where state = 'dead' and dead_at < clock_timestamp() - interval '2 seconds'"
            );
            sqlx::query(AssertSqlSafe(discard)).execute(pool).await?;
        }
    }
    let mut connection = world.outbox.acquire().await?;
    let status = RelayStatus::read(&mut connection, "pillarbox", "default").await?;
    anyhow::ensure!(status.epoch.is_some(), "no relay has led");
    note("events in the outbox".into(), status.backlog_events);
    // They are due within seconds.
    let scheduled = "select count(*) from pillarbox.outbox_scheduled";
    note("scheduled events".into(), count(&world.outbox, scheduled).await?);
    let parked = "select count(*) from pillarbox.outbox_dead_letter where state = 'parked'";
    note("parked events of the outbox".into(), count(&world.outbox, parked).await?);
    for (name, info) in world.durables().await? {
        note(format!("undelivered events of {name}"), i64::try_from(info.num_pending)?);
        let unacknowledged = i64::try_from(info.num_ack_pending)?;
        note(format!("unacknowledged events of {name}"), unacknowledged);
    }
    // An event that is identified by a UUID came from the outbox. A foreign event may have been lost with the stream
    // between two tries.
    let tried = "select count(*) from pillarbox.inbox_failure where event_id ~ '^[0-9a-f-]{36}$'";
    note("events that are still being tried".into(), count(&world.inbox, tried).await?);
    let parked = "select count(*) from pillarbox.inbox_dead_letter where state = 'parked'";
    note("parked events of the consumers".into(), count(&world.inbox, parked).await?);
    if world.saga {
        for (what, sql) in [
            ("open trips", "select count(*) from pillarbox.saga where ended_at is null"),
            (
                "events of trips that are still being tried",
                "select count(*) from pillarbox.inbox_failure",
            ),
            (
                "parked events of trips",
                "select count(*) from pillarbox.inbox_dead_letter where state = 'parked'",
            ),
        ] {
            note(what.into(), count(&world.outbox, sql).await?);
        }
    }
    Ok(left)
}

async fn count(pool: &PgPool, sql: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await
}

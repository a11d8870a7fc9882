//! A lease that is stolen, and a lease whose clock jumps.

use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use crate::world::World;

/// Takes the lease as a relay does, and then lets it expire.
pub(super) async fn steal(world: &World, held: Duration) -> anyhow::Result<String> {
    let held_ms = i64::try_from(held.as_millis())?;
    let from: Option<String> = sqlx::query_scalar(
        "with before as (select holder from pillarbox.relay) \
         update pillarbox.relay set holder = 'thief', epoch = epoch + 1, heartbeat = clock_timestamp(), \
         expires_at = clock_timestamp() + $1 * interval '1 millisecond' \
         returning (select holder from before)",
    )
    .bind(held_ms)
    .fetch_optional(&world.outbox)
    .await?
    .context("no relay has led yet")?;
    sleep(held).await;
    Ok(format!("from {}", from.as_deref().unwrap_or("nobody")))
}

/// Moves the end of the lease. If it moves forward, standbys wait longer. If it moves back, a standby takes over while
/// the leader does not know it.
pub(super) async fn skew(world: &World, by: i64) -> anyhow::Result<String> {
    let moved: Option<String> = sqlx::query_scalar(
        "update pillarbox.relay set expires_at = expires_at + $1 * interval '1 millisecond' returning holder",
    )
    .bind(by)
    .fetch_optional(&world.outbox)
    .await?
    .context("no relay has led yet")?;
    Ok(format!("of {}", moved.as_deref().unwrap_or("nobody")))
}

//! How fast an existing backlog drains.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::audit::Audit;
use crate::contestant::Contestant;
use crate::event::KEYS;
use crate::measures::{Values, values};
use crate::site::Site;

/// Events that one transaction of the backlog writes.
const CHUNK: i64 = 10_000;
/// A contestant that has shipped nothing for this long is given up.
const STALL: Duration = Duration::from_secs(5);

/// Writes a backlog of `events` events, which must be a multiple of the number of keys.
pub async fn write_backlog(contestant: &dyn Contestant, site: &Site, events: i64) -> Result<()> {
    for first in (0..events).step_by(usize::try_from(CHUNK)?) {
        sqlx::query(contestant.backlog())
            .bind(first)
            .bind((first + CHUNK).min(events))
            .bind(KEYS)
            .bind(site.topic())
            .execute(&site.pool)
            .await?;
        contestant.attend(site).await?;
    }
    sqlx::query("update account set n = n + $1 where key < $2")
        .bind(events / i64::from(KEYS))
        .bind(KEYS)
        .execute(&site.pool)
        .await?;
    site.settle().await
}

/// Measures from the start of shipping, including connecting, to the last event in the stream, or to the limit.
pub async fn measure(
    contestant: &dyn Contestant,
    site: &Site,
    events: i64,
    limit: Duration,
) -> Result<Values> {
    let before = site.commits().await?;
    write_backlog(contestant, site, events).await.context("writing the backlog")?;
    let after = site.commits().await?;
    let start = Instant::now();
    let mut running = contestant.ship(site).await?;
    let stored = site.until_stored(&mut running, events, limit, STALL).await?;
    let seconds = start.elapsed().as_secs_f64();
    running.stop().await?;
    let messages = site.stored().await?;
    let audit = Audit::of(site, messages).await?;
    let mut values = values([
        ("rate", stored as f64 / seconds),
        ("seconds", seconds),
        ("messages", messages as f64),
        ("out_of_order", audit.out_of_order as f64),
        ("repeated", audit.repeated as f64),
    ]);
    if messages >= events {
        values.insert("lost".to_owned(), audit.lost(&before, &after) as f64);
    }
    Ok(values)
}

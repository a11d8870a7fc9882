//! Writers that write as fast as they can.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;

use crate::contestant::Contestant;
use crate::event::KEYS;
use crate::measures::{Values, values};
use crate::site::Site;

/// Connections that write.
const WRITERS: usize = 8;

/// Writes with random keys for a time, and returns how many transactions committed per second.
pub async fn write_for(
    contestant: &dyn Contestant,
    site: &Site,
    duration: Duration,
) -> Result<f64> {
    let committed = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    try_join_all((0..WRITERS).map(async |_| {
        while start.elapsed() < duration {
            let key = rand::random_range(0..KEYS);
            contestant.write(site, key, 0).await?.commit().await?;
            committed.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    }))
    .await?;
    Ok(committed.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

/// Measures what writing an event costs the business transaction, while nothing ships.
pub async fn measure(
    contestant: &dyn Contestant,
    site: &Site,
    duration: Duration,
) -> Result<Values> {
    // Prepare connections and statements first.
    write_for(contestant, site, duration / 4).await?;
    let rate = write_for(contestant, site, duration).await?;
    Ok(values([("transactions_rate", rate)]))
}

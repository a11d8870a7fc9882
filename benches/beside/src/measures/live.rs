//! Shipping while others write: whether the events are in order, and whether all of them arrive.

use std::time::Duration;

use anyhow::Result;

use crate::audit::Audit;
use crate::contestant::Contestant;
use crate::event::HELD_KEY;
use crate::measures::writers::write_for;
use crate::measures::{Values, values};
use crate::site::Site;

/// How long events that are behind may take to arrive.
const LIMIT: Duration = Duration::from_secs(30);
/// A contestant that has shipped nothing for this long is given up.
const STALL: Duration = Duration::from_secs(6);

/// Eight writers write as fast as they can while events are shipped. A transaction that was begun first commits last,
/// and its event must arrive too.
pub async fn measure(
    contestant: &dyn Contestant,
    site: &Site,
    duration: Duration,
) -> Result<Values> {
    let before = site.commits().await?;
    let held = contestant.write(site, HELD_KEY, 0).await?;
    let mut running = contestant.ship(site).await?;
    let rate = write_for(contestant, site, duration).await?;
    held.commit().await?;
    let after = site.commits().await?;
    let events: i64 = after.iter().sum::<i64>() - before.iter().sum::<i64>();
    let behind = events - site.stored().await?;
    site.until_stored(&mut running, events, LIMIT, STALL).await?;
    running.stop().await?;
    let messages = site.stored().await?;
    let audit = Audit::of(site, messages).await?;
    Ok(values([
        ("transactions_rate", rate),
        ("behind", behind as f64),
        ("messages", messages as f64),
        ("out_of_order", audit.out_of_order as f64),
        ("repeated", audit.repeated as f64),
        ("lost", audit.lost(&before, &after) as f64),
    ]))
}

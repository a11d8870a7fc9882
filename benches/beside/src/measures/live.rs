//! Shipping while others write: are the events in order, and are they all there?

use std::time::Duration;

use anyhow::Result;

use crate::audit::Audit;
use crate::contestant::Contestant;
use crate::event::HELD_KEY;
use crate::measures::writers::write_for;
use crate::measures::{Values, values};
use crate::site::Site;

/// How long what is behind may take to follow.
const LIMIT: Duration = Duration::from_secs(30);
/// Who has shipped nothing for so long will not.
const STALL: Duration = Duration::from_secs(6);

/// Writes for so long, as fast as eight writers can, while events are shipped; and commits last a transaction that
/// was begun first. Its event must arrive as well.
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

//! What goes wrong halfway through the day.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::children::Children;
use crate::process::Process;
use crate::progress::{Progress, finished};
use crate::redelivery::{self, Redelivery};
use crate::screen::Screen;
use crate::service::Service;
use crate::shop::Shop;

/// How long killed processes stay dead.
const DOWN: Duration = Duration::from_millis(1_000);

/// Kills the relays, then payments, then delivers old events again.
pub async fn make(
    shop: &Shop,
    children: &mut Children,
    screen: &Screen,
    mut progress: watch::Receiver<Progress>,
    orders: i64,
    sabotage: bool,
) -> anyhow::Result<Redelivery> {
    finished(&mut progress, orders / 4).await?;
    kill_and_restart(&mut children.relays, "the relays", screen).await?;

    finished(&mut progress, orders / 2).await?;
    kill_and_restart(children.service(Service::Payments)?, "payments", screen).await?;

    finished(&mut progress, orders * 3 / 4).await?;
    let handled = redelivery::take_handled(shop, u64::try_from(orders)? / 10).await?;
    if sabotage {
        for service in Service::ALL {
            sqlx::raw_sql("delete from pillarbox.inbox").execute(shop.pool(service)).await?;
        }
        screen.say("SABOTAGE: the inboxes have forgotten what was handled");
    }
    let redelivery = redelivery::deliver_again(shop, handled).await?;
    screen.say(&format!(
        "REDELIVERED {} events that all their services had handled",
        redelivery.events.len()
    ));
    Ok(redelivery)
}

async fn kill_and_restart(
    process: &mut Process,
    name: &str,
    screen: &Screen,
) -> anyhow::Result<()> {
    let pid = process.pid();
    process.kill().await?;
    screen.say(&format!("KILLED {name} (kill -9 {pid})"));
    sleep(DOWN).await;
    process.restart()?;
    screen.say(&format!("RESTARTED {name} (process {})", process.pid()));
    Ok(())
}

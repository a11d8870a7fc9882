//! The progress of the day, read from the services' tables, as an operator would do it.

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::screen::Screen;
use crate::service::Service;
use crate::shop::Shop;

/// How often the tables are read.
const INTERVAL: Duration = Duration::from_millis(50);
/// If nothing changes for this long, something is wrong.
const STALLED_AFTER: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub placed: i64,
    pub completed: i64,
    pub failed: i64,
    /// Events handled, by all services.
    pub handled: i64,
}

impl Progress {
    pub fn finished(&self) -> i64 {
        self.completed + self.failed
    }

    pub async fn read(shop: &Shop) -> sqlx::Result<Self> {
        let (placed, completed, failed) = sqlx::query_as(
            "select count(*), count(*) filter (where state = 'completed'), \
             count(*) filter (where state = 'failed') from orders",
        )
        .fetch_one(shop.pool(Service::Orders))
        .await?;
        let mut handled = 0;
        for service in Service::ALL {
            let events: i64 = sqlx::query_scalar("select count(*) from pillarbox.inbox")
                .fetch_one(shop.pool(service))
                .await?;
            handled += events;
        }
        Ok(Self { placed, completed, failed, handled })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { placed, completed, failed, handled } = self;
        let in_flight = placed - self.finished();
        write!(
            f,
            "placed {placed:5} | completed {completed:5} | failed {failed:4} | in flight {in_flight:4} | \
             events handled {handled:6}"
        )
    }
}

/// Waits until this many orders are completed or failed.
pub async fn finished(
    progress: &mut watch::Receiver<Progress>,
    orders: i64,
) -> anyhow::Result<Progress> {
    Ok(*progress.wait_for(|progress| progress.finished() >= orders).await?)
}

/// Shows the progress, and passes it to those who wait for it. Ends with an error if nothing changes any more.
pub async fn watch(
    shop: &Shop,
    screen: &Screen,
    told: &watch::Sender<Progress>,
) -> anyhow::Result<()> {
    let mut moved = Instant::now();
    while moved.elapsed() < STALLED_AFTER {
        let now = Progress::read(shop).await?;
        if told.send_replace(now) != now {
            moved = Instant::now();
        }
        screen.update(&now.to_string());
        sleep(INTERVAL).await;
    }
    anyhow::bail!("nothing has moved for {STALLED_AFTER:?}")
}

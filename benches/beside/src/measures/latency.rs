//! The latency at a steady rate, from the intended time of writing to the stream and to a consumer.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt;
use futures::future::try_join_all;
use pillarbox_benches::statistics::percentile;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use crate::audit::Audit;
use crate::contestant::Contestant;
use crate::event::KEYS;
use crate::measures::{Values, values};
use crate::site::Site;

/// Connections that write the events that are due.
const WRITERS: usize = 16;
/// The first events do not count, because connections and statements are prepared meanwhile.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a consumer waits after the last event was due.
const PATIENCE: Duration = Duration::from_secs(5);

fn micros_now() -> Result<i64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_micros())?)
}

/// Writes `rate` events a second, each when it is due, whether or not earlier ones are done. A consumer reads along. An
/// event that has not arrived in time counts with the time that has passed until then.
pub async fn measure(
    contestant: &dyn Contestant,
    site: &Site,
    rate: u32,
    duration: Duration,
) -> Result<Values> {
    let before = site.commits().await?;
    let mut running = contestant.ship(site).await?;
    let messages = site.messages().await?;
    let events = rate * u32::try_from((WARM_UP + duration).as_secs())?;
    let interval = Duration::from_secs(1) / rate;
    let (start, epoch) = (Instant::now() + Duration::from_millis(200), micros_now()? + 200_000);
    let due = |number: u32| epoch + i64::from(number) * 1_000_000 / i64::from(rate);

    let (work, queue) = mpsc::unbounded_channel::<i64>();
    let queue = Arc::new(Mutex::new(queue));
    let clock = async move {
        for number in 0..events {
            sleep_until(start + number * interval).await;
            work.send(due(number))?;
        }
        anyhow::Ok(())
    };
    let writers = try_join_all((0..WRITERS).map(|_| {
        let queue = queue.clone();
        async move {
            loop {
                let due = queue.lock().await.recv().await;
                let Some(due) = due else { return anyhow::Ok(()) };
                let key = rand::random_range(0..KEYS);
                contestant.write(site, key, due).await?.commit().await?;
            }
        }
    }));
    let counted = due(rate * u32::try_from(WARM_UP.as_secs())?);
    let end = start + events * interval + PATIENCE;
    let consumer = async {
        let (mut audit, mut stream, mut consumer) = (Audit::default(), Vec::new(), Vec::new());
        let mut messages = pin!(messages);
        for _ in 0..events {
            let Ok(message) =
                timeout(end.saturating_duration_since(Instant::now()), messages.next()).await
            else {
                break;
            };
            let (message, now) = (message.context("the stream has ended")??, micros_now()?);
            audit.observe(&message.placed)?;
            if message.placed.due >= counted {
                let milliseconds = |at: i64| (at - message.placed.due) as f64 / 1000.0;
                stream.push(milliseconds(message.stored_at));
                consumer.push(milliseconds(now));
            }
        }
        Ok((audit, stream, consumer))
    };
    let ((), _, (audit, mut stream, mut consumer)) = tokio::try_join!(clock, writers, consumer)?;
    running.check()?;
    running.stop().await?;
    let missing = audit.lost(&before, &site.commits().await?);
    for times in [&mut stream, &mut consumer] {
        times.extend((0..missing).map(|_| PATIENCE.as_secs_f64() * 1000.0));
        times.sort_unstable_by(f64::total_cmp);
    }
    ensure!(!stream.is_empty(), "nothing was written");
    Ok(values([
        ("events", stream.len() as f64),
        ("missing", missing as f64),
        ("out_of_order", audit.out_of_order as f64),
        ("repeated", audit.repeated as f64),
        ("stream_p50", percentile(&stream, 0.50)),
        ("stream_p99", percentile(&stream, 0.99)),
        ("stream_max", percentile(&stream, 1.0)),
        ("consumer_p50", percentile(&consumer, 0.50)),
        ("consumer_p99", percentile(&consumer, 0.99)),
        ("consumer_max", percentile(&consumer, 1.0)),
    ]))
}

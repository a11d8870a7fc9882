//! Connections that are cut, stalled or slowed down, also between a commit and its answer.

use std::time::Duration;

use pillarbox_testkit::Proxy;
use tokio::time::{Instant, sleep};

use super::{Side, Target};
use crate::process::Process;
use crate::world::World;

/// A text that a relay sends only on the connection on which it writes its cursor.
const SAVE: &str = "set cursor = $3::text::jsonb where name = $1 and epoch = $2";

/// How long to wait for a commit.
const NO_COMMIT: Duration = Duration::from_millis(1_500);

fn proxy(process: &Process, side: Side) -> &Proxy {
    match side {
        Side::Database => &process.database,
        Side::Broker => &process.broker,
    }
}

pub(super) async fn cut(
    world: &World,
    target: Target,
    side: Side,
    closed: Duration,
) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    let proxy = proxy(process, side);
    proxy.refuse();
    proxy.cut();
    sleep(closed).await;
    proxy.accept();
    Ok(process.name.clone())
}

pub(super) async fn cut_commit(world: &World, target: Target) -> anyhow::Result<String> {
    // A consumer that stands by commits nothing. Then try the next one.
    for _ in 0..3 {
        let process = world.pick(target).await;
        let proxy = &process.database;
        let before = proxy.cuts_at_reply();
        match target {
            // Its statement is prepared once for each connection. The next answer on that connection is cut off.
            Target::Relay => proxy.cut_at_next_reply_where_said(SAVE),
            Target::Consumer => proxy.cut_at_reply_to("commit"),
            Target::Writer => proxy.cut_at_reply_to("COMMIT"),
        }
        let until = Instant::now() + NO_COMMIT;
        while Instant::now() < until {
            if proxy.cuts_at_reply() > before {
                return Ok(process.name.clone());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
    anyhow::bail!("no process commits anything")
}

pub(super) async fn stall(
    world: &World,
    target: Target,
    side: Side,
    still: Duration,
) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    let proxy = proxy(process, side);
    proxy.stall();
    sleep(still).await;
    proxy.flow();
    Ok(process.name.clone())
}

/// The connections stay like this: whoever waits on one must give it up.
pub(super) async fn swallow(world: &World, target: Target, side: Side) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    proxy(process, side).swallow();
    Ok(process.name.clone())
}

pub(super) async fn slow(
    world: &World,
    target: Target,
    side: Side,
    each: Duration,
    last: Duration,
) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    let proxy = proxy(process, side);
    proxy.delay(each);
    sleep(last).await;
    proxy.delay(Duration::ZERO);
    Ok(process.name.clone())
}

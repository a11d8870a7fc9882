//! Relays, consumers and writers that are killed, paused and restarted.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use super::Target;
use crate::world::World;

pub(super) async fn kill(world: &World, target: Target, down: Duration) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    let mut life = process.life().await;
    life.kill().await?;
    sleep(down).await;
    process.start_as(&mut life)?;
    Ok(process.name.clone())
}

pub(super) async fn pause(
    world: &World,
    target: Target,
    still: Duration,
) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    let life = process.life().await;
    life.signal(Signal::STOP)?;
    sleep(still).await;
    life.signal(Signal::CONT)?;
    Ok(process.name.clone())
}

pub(super) async fn restart(world: &World, target: Target) -> anyhow::Result<String> {
    let process = world.pick(target).await;
    let mut life = process.life().await;
    // A process may be unable to stop cleanly because its servers are away. It is then ended after a while, and that
    // does not count as a failure.
    let stopped = life.stop(&process.name).await;
    process.start_as(&mut life)?;
    Ok(match stopped {
        Ok(()) => process.name.clone(),
        Err(error) => error.to_string(),
    })
}

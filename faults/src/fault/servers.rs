//! Servers that are killed, paused and restarted.

use std::time::Duration;

use tokio::time::sleep;

use super::Server;
use crate::world::World;

pub(super) async fn kill(world: &World, server: Server, down: Duration) -> anyhow::Result<String> {
    match server {
        Server::Postgres => {
            let mut postgres = world.postgres.lock().await;
            postgres.kill()?;
            sleep(down).await;
            postgres.restart().await?;
        }
        Server::Nats => {
            let mut nats = world.nats.lock().await;
            nats.choose().await;
            nats.server().kill()?;
            sleep(down).await;
            nats.restart().await?;
        }
    }
    Ok(server.to_string())
}

pub(super) async fn pause(
    world: &World,
    server: Server,
    still: Duration,
) -> anyhow::Result<String> {
    match server {
        Server::Postgres => {
            let postgres = world.postgres.lock().await;
            postgres.pause()?;
            sleep(still).await;
            postgres.resume()?;
        }
        Server::Nats => {
            let mut nats = world.nats.lock().await;
            nats.choose().await;
            nats.server().pause()?;
            sleep(still).await;
            nats.server().resume()?;
        }
    }
    Ok(server.to_string())
}

pub(super) async fn restart(
    world: &World,
    server: Server,
    down: Duration,
) -> anyhow::Result<String> {
    match server {
        Server::Postgres => {
            let mut postgres = world.postgres.lock().await;
            postgres.stop().await?;
            sleep(down).await;
            postgres.restart().await?;
        }
        Server::Nats => {
            let mut nats = world.nats.lock().await;
            nats.choose().await;
            nats.server().stop().await?;
            sleep(down).await;
            nats.restart().await?;
        }
    }
    Ok(server.to_string())
}

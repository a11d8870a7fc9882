//! A broker that loses messages that it had acknowledged, and a stream that is full.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use pillarbox_testkit::eventually;
use tokio::time::sleep;

use crate::foreign::is_name;
use crate::history::Loss;
use crate::journal::now;
use crate::world::{STREAM, World};

/// How long the relay may take to notice a loss.
const NOTICE: Duration = Duration::from_secs(60);
/// How long the relay gets to notice a loss that it need not notice.
const MAY_NOTICE: Duration = Duration::from_secs(12);
/// How long a leader may take until it has looked at the streams.
const LOOK: Duration = Duration::from_secs(30);

/// Deletes the stream and creates it again.
pub(super) async fn wipe(world: &World) -> anyhow::Result<String> {
    until_watched(world).await?;
    world.keep_what_is_stored().await?;
    let began = now();
    let jetstream = world.jetstream().await?;
    jetstream.delete_stream(STREAM).await?;
    world.create_stream().await?;
    noticed(world, began, "wiped").await
}

/// Restores an older state of the broker's store.
pub(super) async fn put_back(world: &World, age: Duration) -> anyhow::Result<String> {
    // A copy of a full stream would be full for ever.
    let limits = world.limits.lock().await;
    let backup = {
        let mut nats = world.nats.lock().await;
        let (store, backup) = nats.store()?;
        nats.server().stop().await?;
        let _ = std::fs::remove_dir_all(&backup);
        copy(&store, &backup)?;
        nats.restart().await?;
        backup
    };
    sleep(age).await;
    until_watched(world).await?;
    let look = world.keep_what_is_stored().await?;
    let began = now();
    {
        let mut nats = world.nats.lock().await;
        let (store, _) = nats.store()?;
        nats.server().stop().await?;
        std::fs::remove_dir_all(&store)?;
        copy(&backup, &store)?;
        nats.restart().await?;
    }
    drop(limits);
    // The time counts too, because a foreign message may be at its sequence by now.
    let held = world.places().await?;
    let shipped = world.record().stored.iter().any(|stored| {
        let lost = stored.look == look && !held.contains(&(stored.sequence, stored.at));
        lost && !is_name(&stored.id)
    });
    if shipped {
        return noticed(world, began, "put back").await;
    }
    // The relay need not miss messages that it did not ship. But it may have shipped some since the last look at the
    // stream.
    let discovered = went_back(world, began, MAY_NOTICE).await.unwrap_or_else(now);
    let how = "put back, without a message of the relay among what was lost".to_owned();
    world.record().losses.push(Loss { began, discovered: Some(discovered), how });
    Ok("nothing that the relay had shipped".into())
}

/// Makes the stream full for a while, and then removes the messages that every consumer has read.
pub(super) async fn fill(world: &World, full: Duration) -> anyhow::Result<String> {
    // Of two at a time, the second would take the first one's limit for the stream's own, and put it back.
    let _limits = world.limits.lock().await;
    let jetstream = world.jetstream().await?;
    let stream = jetstream.get_stream(STREAM).await?;
    let info = stream.cached_info();
    let held = i64::try_from(info.state.messages)?.max(1);
    let room = Config { max_messages: held, discard: DiscardPolicy::New, ..info.config.clone() };
    let before = info.config.clone();
    // If only the answer is lost, the limit is there all the same.
    let limited = jetstream.update_stream(&room).await;
    sleep(full).await;
    // Whatever happens to the broker meanwhile, the limit must be removed.
    let lifted = eventually("the stream to take more", Duration::from_secs(30), async || {
        let jetstream = world.jetstream().await?;
        // The run must have seen a message before it is removed. Otherwise nobody would know when it was stored.
        if let Ok(read) = read_by_all(world).await
            && world.keep_what_is_stored().await.is_ok()
        {
            let stream = jetstream.get_stream(STREAM).await?;
            stream.purge().sequence(read + 1).await?;
        }
        jetstream.update_stream(&before).await?;
        anyhow::Ok(Some(()))
    });
    lifted.await?;
    limited?;
    Ok(format!("at {held} messages"))
}

/// The sequence up to which every consumer has read.
async fn read_by_all(world: &World) -> anyhow::Result<u64> {
    let mut least = u64::MAX;
    for (_, info) in world.durables().await? {
        least = least.min(info.ack_floor.stream_sequence);
    }
    Ok(least)
}

/// Waits until the leader has looked at the stream. Nothing is promised about events that were acknowledged to a leader
/// which died before the broker lost them. So a run makes a loss only under a leader that lives and has looked.
async fn until_watched(world: &World) -> anyhow::Result<()> {
    let watched = "select exists (
        select from pillarbox.relay_checkpoint
        where taken_at > (select max(at) from cursor_write where took)
    ) and (select expires_at > clock_timestamp() and holder <> 'thief' from pillarbox.relay)";
    eventually("a leader that has looked at the stream", LOOK, async || {
        let row: bool = sqlx::query_scalar(watched).fetch_one(&world.outbox).await?;
        Ok::<_, sqlx::Error>(row.then_some(()))
    })
    .await?;
    Ok(())
}

/// Waits until the relay has gone back, and records the loss.
async fn noticed(world: &World, began: i64, how: &'static str) -> anyhow::Result<String> {
    let discovered = went_back(world, began, NOTICE).await;
    world.record().losses.push(Loss { began, discovered, how: how.into() });
    let after = discovered.map(|at| (at - began) / 1000);
    Ok(after.map_or_else(|| "unnoticed".into(), |ms| format!("noticed after {ms} ms")))
}

/// When the relay went back, if it did within this time.
async fn went_back(world: &World, began: i64, within: Duration) -> Option<i64> {
    // If the cursor is already where it would go back to, it does not move.
    let back = "select (extract(epoch from coalesce(
        (select min(at) from cursor_write where back and at > began),
        (select min(at) from checkpoint_forgotten where at > began)
    )) * 1000000)::bigint
    from to_timestamp($1::float8 / 1000000) as began";
    let noticed = eventually("the relay to go back", within, async || {
        sqlx::query_scalar::<_, Option<i64>>(back).bind(began).fetch_one(&world.outbox).await
    });
    noticed.await.ok()
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)
                .with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

//! What a dump and a restore leave behind: rows with transaction ids of another cluster, and such a cursor.

use std::time::Duration;

use pillarbox_testkit::eventually;
use sqlx::Connection;
use sqlx::PgConnection;

use super::transactions::{Written, new_key};
use crate::event::Kind;
use crate::history::Loss;
use crate::journal::now;
use crate::world::World;

/// How long a relay may take to make the cursor its own.
const REBASE: Duration = Duration::from_secs(60);

/// Rows that somebody has loaded: this cluster put them here, and their `txid` is of another one.
pub(super) async fn foreign_rows(world: &World, ahead: i64) -> anyhow::Result<String> {
    let key = new_key(world).await?;
    let mut connection = PgConnection::connect(world.outbox_url()).await?;
    let mut written = Written::begin(world, &mut connection).await?;
    let drawn = written.draw(&key, &[Kind::Plain; 4]).await?;
    let ids: Vec<String> = drawn.into_iter().map(|drawn| drawn.id).collect();
    sqlx::query(
        "update pillarbox.outbox \
         set txid = greatest(3, pg_current_xact_id()::text::bigint + $2)::text::xid8 \
         where event_id = any ($1::text[]::uuid[])",
    )
    .bind(ids)
    .bind(ahead)
    .execute(&mut *written.tx)
    .await?;
    written.commit().await?;
    Ok(format!("four events of {key}"))
}

/// The cursor is one that another cluster has left, and nobody holds the lease.
///
/// The relay cannot know what of the outbox its snapshot has seen and ships again what it must: that is a movement
/// back with a reason, like that after a loss.
pub(super) async fn change(world: &World) -> anyhow::Result<String> {
    world.keep_what_is_stored().await?;
    let began = now();
    let changed = sqlx::query(
        "update pillarbox.relay set cursor = jsonb_set(cursor, '{system_identifier}', '\"1\"'), \
         holder = null, epoch = epoch + 1, expires_at = null",
    )
    .execute(&world.outbox)
    .await?;
    anyhow::ensure!(changed.rows_affected() == 1, "no relay has led yet");
    let own = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint from pillarbox.relay \
               where cursor ->> 'system_identifier' <> '1'";
    let made_its_own = eventually("a relay to make the cursor its own", REBASE, async || {
        sqlx::query_scalar::<_, i64>(own).fetch_optional(&world.outbox).await
    });
    let discovered = made_its_own.await.ok();
    world.record().losses.push(Loss { began, discovered, how: "cursor of another cluster".into() });
    let after = discovered.map(|at| (at - began) / 1000);
    Ok(after.map_or_else(|| "not noticed".into(), |ms| format!("its own after {ms} ms")))
}

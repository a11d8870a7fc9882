//! The state after a dump and a restore: rows and a cursor with transaction ids of another cluster.

use std::time::Duration;

use anyhow::Context;
use pillarbox_testkit::eventually;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use super::transactions::{Written, new_key};
use crate::event::Kind;
use crate::history::Loss;
use crate::journal::now;
use crate::world::World;

/// How long a relay may take to rebase the cursor onto its own cluster.
const REBASE: Duration = Duration::from_secs(60);

/// Rows that somebody has loaded: this cluster wrote them, but their `txid` comes from another one.
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

/// Makes the state after a dump and a restore, while writers are at work: the existing rows and the cursor carry ids
/// that this cluster did not give, and nobody holds the lease.
///
/// The relay starts again in this cluster. This is a movement back with a reason, as after a loss. It need not ship
/// again what had been shipped.
pub(super) async fn change(world: &World, ahead: i64) -> anyhow::Result<String> {
    world.keep_what_is_stored().await?;
    let began = now();
    let mut tx = world.outbox.begin().await?;
    let cursor = "select cursor::text from pillarbox.relay for update";
    let cursor: Option<String> = sqlx::query_scalar(cursor).fetch_optional(&mut *tx).await?;
    let mut cursor: Value = serde_json::from_str(&cursor.context("no relay has led yet")?)?;
    cursor["system_identifier"] = "1".into();
    shift(&mut cursor, ahead)?;
    let moved = sqlx::query(
        "update pillarbox.outbox set txid = greatest(3, txid::text::bigint + $1)::text::xid8",
    )
    .bind(ahead)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    sqlx::query(
        "update pillarbox.relay set cursor = $1::text::jsonb, holder = null, epoch = epoch + 1, expires_at = null",
    )
    .bind(cursor.to_string())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    let own = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint from pillarbox.relay \
               where cursor ->> 'system_identifier' <> '1'";
    let made_its_own = eventually("a relay to make the cursor its own", REBASE, async || {
        sqlx::query_scalar::<_, i64>(own).fetch_optional(&world.outbox).await
    });
    let discovered = made_its_own.await.ok();
    world.record().losses.push(Loss { began, discovered, how: "moved to another cluster".into() });
    let after = discovered.map(|at| (at - began) / 1000);
    Ok(after.map_or_else(
        || format!("{moved} rows, not noticed"),
        |ms| format!("{moved} rows, the cursor its own after {ms} ms"),
    ))
}

/// Changes every transaction id in a cursor's snapshots.
fn shift(cursor: &mut Value, ahead: i64) -> anyhow::Result<()> {
    let mut snapshots = vec!["/snapshot".to_owned(), "/window/snapshot".to_owned()];
    let before = cursor.pointer("/before/shipped").and_then(Value::as_array).map_or(0, Vec::len);
    snapshots.extend((0..before).map(|place| format!("/before/shipped/{place}/0")));
    for place in snapshots {
        let Some(snapshot) = cursor.pointer_mut(&place) else {
            continue;
        };
        let text = snapshot.as_str().context("a snapshot is not a text")?;
        let ids = text.split([':', ',']).filter(|id| !id.is_empty());
        let ids = ids.map(str::parse).collect::<Result<Vec<i64>, _>>()?;
        let [xmin, xmax, in_progress @ ..] = &ids[..] else {
            anyhow::bail!("not a snapshot: {text}");
        };
        // A snapshot that sees nothing must still see nothing.
        if *xmax > 1 {
            let list: Vec<String> = in_progress.iter().map(|id| (id + ahead).to_string()).collect();
            *snapshot = format!("{}:{}:{}", xmin + ahead, xmax + ahead, list.join(",")).into();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_snapshot_of_what_was_shipped_is_moved() {
        let mut cursor = serde_json::json!({
            "snapshot": "700:705:701,703",
            "window": { "snapshot": "800:800:", "position": 5 },
            "before": { "found": "9:9:", "shipped": [["1:1:", 0], ["900:901:900", 7]] },
        });
        shift(&mut cursor, -500).unwrap();
        assert_eq!(
            cursor,
            serde_json::json!({
                "snapshot": "200:205:201,203",
                "window": { "snapshot": "300:300:", "position": 5 },
                "before": { "found": "9:9:", "shipped": [["1:1:", 0], ["400:401:400", 7]] },
            })
        );
        let mut start = serde_json::json!({ "snapshot": "1:1:" });
        shift(&mut start, 1_000_000).unwrap();
        assert_eq!(start, serde_json::json!({ "snapshot": "1:1:" }));
    }
}

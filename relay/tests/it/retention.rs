//! Shipped rows go when they are old enough, and no others.

use std::time::Duration;

use crate::support::{DEADLINE, Shop};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::eventually;

async fn until_rows(shop: &Shop, wanted: i64) {
    eventually(&format!("{wanted} rows"), DEADLINE, async || {
        match shop.number("select count(*) from pillarbox.outbox").await {
            rows if rows == wanted => Ok(Some(())),
            rows => Err(format!("{rows} rows")),
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn shipped_rows_are_removed_when_they_are_old_and_unshipped_ones_stay() {
    let shop = Shop::open().await;
    shop.insert_many(10_000).await;
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, payload) values ('t', $1, 'held')",
    )
    .bind(format!("nobody{}.takes", shop.scope.prefix()))
    .execute(shop.pool())
    .await
    .unwrap();
    // Its window is not over, so all of it stays.
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(1), ..shop.config() });
    shop.until_messages(10_000).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 10_001);

    let config = async_nats::jetstream::stream::Config {
        name: format!("{}NOBODY", shop.stream),
        subjects: vec![format!("nobody{}.>", shop.scope.prefix())],
        ..Default::default()
    };
    shop.jetstream().await.create_stream(config).await.unwrap();
    // An open writer neither waits nor is waited for.
    let mut open = shop.pool().begin().await.unwrap();
    shop.insert(&mut open, "1", "late").await;
    until_rows(&shop, 0).await;
    open.commit().await.unwrap();
    shop.until_messages(10_001).await;
    until_rows(&shop, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_row_that_another_relay_has_not_shipped_stays() {
    let shop = Shop::open().await;
    let other = shop.start(RelayConfig { name: "other".into(), ..shop.config() });
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    other.stop().await;
    shop.insert_many(10).await;
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(1), ..shop.config() });
    shop.until_messages(20).await;
    until_rows(&shop, 10).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 10);
    relay.stop().await;
}

#[tokio::test]
async fn rows_are_kept_for_their_retention() {
    let shop = Shop::open().await;
    shop.insert_many(10).await;
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(3), ..shop.config() });
    shop.until_messages(10).await;
    shop.shipped().await;
    let age = "select count(*) from pillarbox.outbox where created_at > clock_timestamp() - interval '3 s'";
    assert_eq!(shop.number(age).await, 10);
    until_rows(&shop, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn resolved_dead_letters_go_in_time_unless_the_outbox_still_has_the_event() {
    let shop = Shop::open().await;
    // Keeps its rows in the outbox.
    let other = shop.start(RelayConfig { name: "other".into(), ..shop.config() });
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    other.stop().await;
    shop.insert_many(1).await;
    sqlx::raw_sql(
        "insert into pillarbox.outbox_dead_letter \
             (position, relay, event_id, event_type, topic, headers, payload, created_at, reason, error, attempts, \
             state, resolved_at) \
         select position, 'default', gen_random_uuid(), 't', 't', '{}'::jsonb, ''::bytea, now(), 'too_large', '', 1, state, \
             case when state in ('retried', 'discarded') then now() - interval '2 hours' end \
         from ( \
             select n as position, (array['dead', 'retried', 'discarded'])[1 + n % 3] as state \
             from generate_series(1000000, 1000599) as n \
         ) as made \
         union all \
         select max(position), 'default', gen_random_uuid(), 't', 't', '{}'::jsonb, ''::bytea, now(), 'too_large', '', 1, \
             'discarded', now() - interval '2 hours' from pillarbox.outbox",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let letters = "select count(*) from pillarbox.outbox_dead_letter";
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(1), ..shop.config() });
    eventually("the resolved ones to go", DEADLINE, async || {
        let resolved = format!("{letters} where state in ('retried', 'discarded')");
        Ok::<_, String>((shop.number(&resolved).await == 1).then_some(()))
    })
    .await
    .unwrap();
    let kept = format!("{letters} where position in (select position from pillarbox.outbox)");
    assert_eq!(shop.number(&kept).await, 1, "the outbox still has it");
    assert_eq!(shop.number(&format!("{letters} where state = 'dead'")).await, 200);
    relay.stop().await;
}

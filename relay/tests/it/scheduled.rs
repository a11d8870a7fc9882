//! Scheduled events leave when they are due, once, whatever happens to relay, broker and database.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{DEADLINE, Shop};
use pillarbox_event::{EventId, RawEvent};
use pillarbox_outbox::{cancel, publish_in};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Nats, Proxy, Scope, eventually, servers};
use sqlx::{AssertSqlSafe, Row};

async fn schedule(shop: &Shop, payload: &str, ahead: Duration) -> EventId {
    let event = RawEvent::builder("payment.overdue", shop.topic())
        .key("k")
        .payload(payload.to_owned())
        .build()
        .unwrap();
    let mut tx = shop.pool().begin().await.unwrap();
    let id = publish_in(&mut tx, event, ahead).await.unwrap();
    tx.commit().await.unwrap();
    id
}

/// Plain SQL: events that are due one after the other, from so many milliseconds on.
async fn schedule_many(shop: &Shop, count: i64, from: i64) {
    sqlx::query(
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, key, payload) \
         select clock_timestamp() + ($3 + i) * interval '1 ms', 't', $1, (i % 10)::text, convert_to(i::text, 'utf8') \
         from generate_series(1, $2) i",
    )
    .bind(shop.topic())
    .bind(count)
    .bind(from)
    .execute(shop.pool())
    .await
    .unwrap();
}

async fn run(shop: &Shop, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
}

async fn until(shop: &Shop, sql: &str, wanted: i64) {
    eventually(&format!("{sql} = {wanted}"), DEADLINE, async || match shop.number(sql).await {
        found if found == wanted => Ok(Some(())),
        found => Err(format!("it is {found}")),
    })
    .await
    .unwrap();
}

async fn remember_due_times(shop: &Shop) {
    run(shop, "create table due as select event_id, due_at from pillarbox.outbox_scheduled").await;
}

/// Each of the remembered events is in the stream once, and none came before it was due.
async fn assert_each_once_and_none_too_early(shop: &Shop, count: usize) {
    let stored = shop.stored().await;
    let ids: BTreeSet<&str> = stored.iter().map(|stored| &*stored.id).collect();
    assert_eq!((stored.len(), ids.len()), (count, count));
    let early = "select count(*) from due join pillarbox.outbox using (event_id) where outbox.created_at < due.due_at";
    assert_eq!(shop.number(early).await, 0);
    let found = "select count(*) from due join pillarbox.outbox using (event_id)";
    assert_eq!(shop.number(found).await, i64::try_from(count).unwrap());
}

#[tokio::test]
async fn an_event_leaves_when_it_is_due_and_not_before_and_a_cancelled_one_never() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    shop.insert_one("k", "direct").await;
    shop.until_messages(1).await;
    let late = schedule(&shop, "late", Duration::from_secs(3600)).await;
    let gone = schedule(&shop, "gone", Duration::from_millis(700)).await;
    let mut ids = Vec::new();
    for ahead in [900, 300, 600] {
        ids.push(schedule(&shop, &ahead.to_string(), Duration::from_millis(ahead)).await);
    }
    remember_due_times(&shop).await;
    let mut tx = shop.pool().begin().await.unwrap();
    assert!(cancel(&mut tx, &gone).await.unwrap());
    tx.commit().await.unwrap();
    shop.until_messages(4).await;
    let payloads: Vec<String> = shop.stored().await.into_iter().map(|m| m.payload).collect();
    assert_eq!(payloads, ["direct", "300", "600", "900"]);
    let found = "select count(*) from due join pillarbox.outbox using (event_id) where outbox.created_at >= due.due_at";
    assert_eq!(shop.number(found).await, 3);
    let mut tx = shop.pool().begin().await.unwrap();
    assert!(!cancel(&mut tx, &ids[0]).await.unwrap(), "it has left");
    tx.commit().await.unwrap();
    // The database's clock reaches another time.
    run(&shop, &format!("update pillarbox.outbox_scheduled set due_at = clock_timestamp() where event_id = '{late}'")).await;
    shop.until_messages(5).await;
    let status = shop.status().await.scheduled.unwrap();
    assert_eq!((status.pending, status.held), (0, 0));
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_with_nothing_due_stays_idle_and_is_at_once_there_when_something_is() {
    let shop = Shop::open().await;
    run(&shop, &format!("alter database {} set track_functions = 'pl'", shop.scope.prefix())).await;
    let config = RelayConfig { lease: Duration::from_secs(60), ..shop.config() };
    let relay = shop.start(config);
    shop.insert_one("k", "one").await;
    shop.until_messages(1).await;
    schedule(&shop, "late", Duration::from_secs(3600)).await;
    let calls = "select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions where funcname = 'release_scheduled'";
    // The statistics come with a delay of about a second.
    eventually("statistics", DEADLINE, async || {
        Ok::<_, String>((shop.number(calls).await > 40).then_some(()))
    })
    .await
    .unwrap();
    let written = "select tup_inserted + tup_updated + tup_deleted from pg_stat_database where datname = current_database()";
    let before = (shop.number(calls).await, shop.number(written).await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = (shop.number(calls).await, shop.number(written).await);
    // 60 calls at the idle interval of 50 ms. The statistics come with a delay of up to a second.
    assert!((20..=100).contains(&(after.0 - before.0)), "{before:?}, {after:?}");
    assert!(after.1 - before.1 < 30, "it writes nothing: {before:?}, {after:?}");

    // While a long transaction is open, too: it keeps all that has left from being removed.
    let mut open = shop.pool().begin().await.unwrap();
    sqlx::query("select pg_current_xact_id()").execute(&mut *open).await.unwrap();
    let mut lateness = Vec::new();
    for number in 0..20 {
        schedule(&shop, &number.to_string(), Duration::from_millis(60)).await;
        shop.until_messages(number + 2).await;
        let sql =
            "select (extract(epoch from max(created_at)) * 1000000)::bigint from pillarbox.outbox";
        let left = shop.number(sql).await;
        let now =
            shop.number("select (extract(epoch from clock_timestamp()) * 1000000)::bigint").await;
        lateness.push(now - left);
    }
    lateness.sort_unstable();
    println!("from the outbox to seen in the stream, microseconds: {lateness:?}");
    assert!(lateness[10] < 1_000_000, "{lateness:?}");
    relay.stop().await;
}

#[tokio::test]
async fn takeovers_and_kills_neither_lose_nor_repeat_a_release() {
    let shop = Shop::open().await;
    schedule_many(&shop, 3_000, 0).await;
    remember_due_times(&shop).await;
    for _ in 0..4 {
        let relay = shop.start(shop.config());
        let before = shop.messages().await;
        shop.until_messages((before + 200).min(3_000)).await;
        // In the middle of whatever it does.
        relay.running.abort();
    }
    let relay = shop.start(shop.config());
    shop.until_messages(3_000).await;
    until(&shop, "select count(*) from pillarbox.outbox_scheduled", 0).await;
    shop.shipped().await;
    relay.stop().await;
    assert_each_once_and_none_too_early(&shop, 3_000).await;
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn two_relays_of_one_name_and_one_of_another_release_each_event_once() {
    let shop = Shop::open().await;
    schedule_many(&shop, 2_000, 300).await;
    remember_due_times(&shop).await;
    let one = shop.start(shop.config());
    let standby = shop.start(shop.config());
    let other = shop.start(RelayConfig { name: "other".into(), ..shop.config() });
    until(&shop, "select count(*) from pillarbox.outbox_scheduled", 0).await;
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 2_000);
    let in_order = "select count(*) from (select due_at < lag(due_at) over (order by position) as turned \
                    from pillarbox.outbox join due using (event_id)) as pairs where turned";
    assert_eq!(shop.number(in_order).await, 0);
    for relay in [one, standby, other] {
        relay.stop().await;
    }
}

#[tokio::test]
async fn what_is_due_comes_into_the_outbox_while_the_broker_is_away() {
    let servers = servers().await.unwrap();
    let nats = Nats::start().await.unwrap();
    let shop = Shop::on(Scope::on(&servers.postgres, &nats.url()).await.unwrap()).await;
    let relay = shop.start(shop.config());
    shop.insert_one("k", "one").await;
    shop.until_messages(1).await;
    nats.pause().unwrap();
    // Far enough ahead to be remembered before they leave.
    schedule_many(&shop, 100, 3_000).await;
    remember_due_times(&shop).await;
    until(&shop, "select count(*) from pillarbox.outbox", 101).await;
    nats.resume().unwrap();
    shop.until_messages(101).await;
    shop.shipped().await;
    relay.stop().await;
    assert_eq!(
        shop.number("select count(*) from due join pillarbox.outbox using (event_id)").await,
        100
    );
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn a_connection_cut_before_the_answer_of_a_release_neither_loses_nor_repeats() {
    let servers = servers().await.unwrap();
    let shop = Shop::open().await;
    let proxy = Proxy::to_port(servers.postgres.port()).await.unwrap();
    let database_url = shop
        .scope
        .database_url()
        .replace(&format!(":{}/", servers.postgres.port()), &format!(":{}/", proxy.port()));
    let relay = shop.start(RelayConfig { database_url, ..shop.config() });
    shop.insert_one("k", "one").await;
    shop.until_messages(1).await;
    schedule_many(&shop, 500, 0).await;
    remember_due_times(&shop).await;
    for _ in 0..5 {
        proxy.cut_at_next_reply_where_said("release_scheduled");
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.cut();
        schedule_many(&shop, 1, 0).await;
    }
    until(&shop, "select count(*) from pillarbox.outbox_scheduled", 0).await;
    shop.until_messages(506).await;
    shop.shipped().await;
    relay.stop().await;
    assert_eq!(shop.stored().await.len(), 506);
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn a_release_that_cannot_be_done_is_told_and_holds_nothing_but_itself() {
    let shop = Shop::open().await;
    run(&shop, "alter table pillarbox.outbox add constraint odd check (payload <> '3')").await;
    let relay = shop.start(shop.config());
    schedule_many(&shop, 5, 0).await;
    shop.until_messages(4).await;
    let status = shop.status().await.scheduled.unwrap();
    assert_eq!((status.pending, status.held), (1, 1));
    // The service mends it, and a minute passes.
    run(
        &shop,
        "alter table pillarbox.outbox drop constraint odd; \
                update pillarbox.outbox_scheduled set tried_at = tried_at - interval '1 hour'",
    )
    .await;
    shop.until_messages(5).await;
    relay.stop().await;

    // Somebody has taken the right away: other events go on, and the state says what is wrong.
    let name = format!("relay_{}", shop.scope.prefix());
    run(&shop, &format!(
        "create role {name} login; grant all on schema pillarbox to {name}; \
         grant all on all tables in schema pillarbox to {name}; grant all on all sequences in schema pillarbox to {name}"
    )).await;
    let database_url = shop.scope.database_url().replace("postgres@", &format!("{name}@"));
    let relay = pillarbox_relay::Relay::new(RelayConfig { database_url, ..shop.config() }).unwrap();
    let mut state = relay.state();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(relay.run(shutdown.clone()));
    schedule(&shop, "waits", Duration::ZERO).await;
    let wait = state.wait_for(|state| state.unreleased.is_some());
    let said = tokio::time::timeout(DEADLINE, wait).await.unwrap().unwrap().not_ready().unwrap();
    assert!(
        said.contains("scheduled events are not released") && said.contains("permission denied"),
        "{said}"
    );
    shop.insert_one("k", "goes").await;
    shop.until_messages(6).await;
    run(&shop, &format!(
        "grant execute on function pillarbox.release_scheduled(text, bigint, integer, boolean, timestamptz) to {name}"
    )).await;
    shop.until_messages(7).await;
    let wait = state.wait_for(|state| state.unreleased.is_none());
    drop(tokio::time::timeout(DEADLINE, wait).await.unwrap().unwrap());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let payloads: Vec<String> = shop.stored().await.into_iter().map(|m| m.payload).collect();
    assert_eq!(payloads[5..], ["goes".to_owned(), "waits".to_owned()]);
}

#[tokio::test]
async fn a_leader_that_is_none_any_more_releases_nothing() {
    let shop = Shop::open().await;
    let relay = shop.start(RelayConfig { lease: Duration::from_secs(600), ..shop.config() });
    shop.insert_one("k", "one").await;
    shop.until_messages(1).await;
    run(&shop, "update pillarbox.relay set epoch = epoch + 1, holder = 'another', expires_at = clock_timestamp() + interval '1 hour'").await;
    schedule(&shop, "due", Duration::ZERO).await;
    let row = sqlx::query("select pg_sleep(1), count(*) from pillarbox.outbox_scheduled")
        .fetch_one(shop.pool())
        .await
        .unwrap();
    assert_eq!(row.get::<i64, _>(1), 1);
    relay.running.abort();
}

//! What is shipped: everything committed, once, in order, whatever stops in between.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{DEADLINE, Process, Shop};
use pillarbox_event::Partition;
use pillarbox_relay::{RelayConfig, SinkChoice};
use pillarbox_testkit::{Nats, Postgres, Proxy, Scope, Servers, eventually, servers};
use rustix::process::Signal;
use sqlx::Connection;

#[tokio::test]
async fn a_rolled_back_event_is_never_shipped_and_a_committed_one_is() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    let mut tx = shop.pool().begin().await.unwrap();
    shop.insert(&mut tx, "1", "rolled back").await;
    tx.rollback().await.unwrap();
    shop.insert_one("1", "committed").await;
    shop.until_messages(1).await;
    shop.shipped().await;
    relay.stop().await;
    let stored = shop.stored().await;
    assert_eq!(
        stored.iter().map(|stored| stored.payload.as_str()).collect::<Vec<_>>(),
        ["committed"]
    );
}

#[tokio::test]
async fn what_was_committed_while_no_relay_ran_is_shipped_later() {
    let shop = Shop::open().await;
    shop.insert_many(5_000).await;
    let relay = shop.start(shop.config());
    shop.until_messages(5_000).await;
    relay.stop().await;
    shop.assert_each_once_in_order().await;
    // And the next run starts behind it.
    shop.insert_many(10).await;
    let relay = shop.start(shop.config());
    shop.until_messages(5_010).await;
    shop.shipped().await;
    relay.stop().await;
    assert_eq!(shop.messages().await, 5_010);
}

#[tokio::test]
async fn a_relay_killed_in_mid_batch_loses_and_repeats_nothing() {
    let shop = Shop::open().await;
    shop.insert_many(60_000).await;
    for kill_at in [1_000, 15_000, 30_000, 45_000] {
        let mut relay = Process::relay(&shop, &[]);
        shop.until_messages(kill_at).await;
        relay.kill();
    }
    let _relay = Process::relay(&shop, &[]);
    shop.until_messages(60_000).await;
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn with_partitions_a_key_keeps_to_one_subject_and_its_order_and_without_subjects_are_topics()
{
    let shop = Shop::open().await;
    shop.insert_many(20_000).await;
    let mut relay = Process::relay(&shop, &["--partitions", "4"]);
    shop.until_messages(5_000).await;
    relay.kill();
    let _relay = Process::relay(&shop, &["--partitions", "4"]);
    shop.until_messages(20_000).await;
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
    let mut subjects = BTreeMap::new();
    for stored in shop.stored().await {
        let key = stored.key.unwrap();
        let partition = Partition::of_key(&key, 4);
        assert_eq!(stored.subject, partition.subject(&shop.topic()), "key {key}");
        subjects.entry(stored.subject).or_insert_with(BTreeSet::new).insert(key);
    }
    assert_eq!(subjects.len(), 4, "ten keys in four partitions: {subjects:?}");

    let shop = Shop::open().await;
    shop.insert_many(100).await;
    let relay = shop.start(RelayConfig { partitions: 1, ..shop.config() });
    shop.until_messages(100).await;
    relay.stop().await;
    assert!(shop.stored().await.iter().all(|stored| stored.subject == shop.topic()));
}

#[tokio::test]
async fn the_keyed_window_does_the_same() {
    let shop = Shop::open().await;
    shop.insert_many(10_000).await;
    let mut relay = Process::relay(&shop, &["--keyed-window"]);
    shop.until_messages(3_000).await;
    relay.kill();
    let _relay = Process::relay(&shop, &["--keyed-window"]);
    shop.until_messages(10_000).await;
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn cut_connections_lose_and_turn_around_nothing() {
    for sink in [SinkChoice::Auto, SinkChoice::KeyedWindow] {
        let shop = Shop::open().await;
        let servers = pillarbox_testkit::servers().await.unwrap();
        let (nats, postgres) = (
            Proxy::to_port(servers.nats.port()).await.unwrap(),
            Proxy::to_port(servers.postgres.port()).await.unwrap(),
        );
        let config = RelayConfig {
            nats_url: format!("nats://127.0.0.1:{}", nats.port()),
            database_url: shop
                .scope
                .database_url()
                .replace(&servers.postgres.port().to_string(), &postgres.port().to_string()),
            sink,
            ..shop.config()
        };
        shop.insert_many(30_000).await;
        let relay = shop.start(config);
        for cut_at in [2_000, 8_000, 14_000, 20_000] {
            shop.until_messages(cut_at).await;
            nats.cut();
            shop.until_messages(cut_at + 2_000).await;
            postgres.cut();
        }
        shop.until_messages(30_000).await;
        shop.shipped().await;
        relay.stop().await;
        shop.assert_each_once_in_order().await;
    }
}

#[tokio::test]
async fn a_broker_that_is_down_costs_time_and_no_event() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { postgres: _postgres, mut nats } = servers;
    let relay = Process::relay(&shop, &[]);
    shop.insert_many(100).await;
    shop.until_messages(100).await;
    nats.kill().unwrap();
    shop.insert_many(20_000).await;
    relay.until_said("holding: events wait in the outbox").await;
    nats.restart().await.unwrap();
    shop.until_messages(20_100).await;
    relay.until_said("the broker stores messages again").await;
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
    assert_eq!(relay.said("holding"), 1, "said once: {:#?}", relay.lines.lock().unwrap());
}

#[tokio::test]
async fn a_database_that_is_down_costs_time_and_no_event() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { mut postgres, nats: _nats } = servers;
    let relay = Process::relay(&shop, &[]);
    shop.insert_many(20_000).await;
    shop.until_messages(5_000).await;
    postgres.kill().unwrap();
    relay.until_said("waiting: events stay in the outbox").await;
    postgres.restart().await.unwrap();
    eventually("the pool to connect again", DEADLINE, async || {
        sqlx::query("select 1").execute(shop.pool()).await.map(|_| Some(()))
    })
    .await
    .unwrap();
    shop.insert_many(100).await;
    shop.until_messages(20_100).await;
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way_and_saves_the_cursor() {
    for signal in [Signal::TERM, Signal::INT] {
        let shop = Shop::open().await;
        shop.insert_many(40_000).await;
        let mut relay = Process::relay(&shop, &[]);
        shop.until_messages(5_000).await;
        relay.signal(signal);
        assert_eq!(relay.ended().await, 0);
        let status = shop.status().await;
        assert_eq!(status.holder, None, "the lease is released");
        // Nothing is in the stream that the cursor does not know of.
        assert_eq!(status.backlog_events, 40_000 - i64::try_from(shop.messages().await).unwrap());
    }
}

#[tokio::test]
async fn an_event_larger_than_the_broker_takes_is_set_aside_and_the_others_go_on() {
    for (sink, limit) in [
        (SinkChoice::Auto, 2 * 1024 * 1024),
        (SinkChoice::KeyedWindow, 2 * 1024 * 1024),
        (SinkChoice::Auto, 10_000),
    ] {
        let shop = Shop::open().await;
        if limit < 1024 * 1024 {
            shop.create_stream(|config| async_nats::jetstream::stream::Config {
                max_message_size: 5_000,
                ..config
            })
            .await;
        }
        shop.insert_many(50).await;
        shop.insert_one("1", &"x".repeat(limit)).await;
        shop.insert_many(50).await;
        sqlx::query("insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', 'a topic with spaces', '1', '')")
            .execute(shop.pool())
            .await
            .unwrap();
        shop.insert_many(50).await;
        let relay = shop.start(RelayConfig { sink, ..shop.config() });
        shop.until_messages(150).await;
        shop.shipped().await;
        relay.stop().await;
        assert_eq!(shop.messages().await, 150);
        let kept = "select count(*) from pillarbox.outbox_dead_letter join pillarbox.outbox using (position, event_id, payload)";
        assert_eq!(shop.number(kept).await, 2, "the whole event is kept");
        for reason in ["too_large", "invalid"] {
            let sql = format!(
                "select count(*) from pillarbox.outbox_dead_letter where reason = '{reason}' and error <> ''"
            );
            assert_eq!(shop.number(&sql).await, 1, "{reason}");
        }
    }
}

/// A server closes the connection of whoever sends one byte more than it takes.
#[tokio::test]
async fn events_of_every_size_around_the_brokers_limit_are_stored_or_set_aside() {
    let nats = Nats::options().config("max_payload: 4096").start().await.unwrap();
    for more in [&[][..], &["--sink", "keyed-window"]] {
        let scope = Scope::on(&servers().await.unwrap().postgres, &nats.url()).await.unwrap();
        let shop = Shop::on(scope).await;
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload) \
             select 't', $1, 'k', case when size % 2 = 0 then '{}' else '{\"x-a\": \"ä\"}' end::jsonb, \
                    convert_to(repeat('x', size), 'utf8') \
             from (select 0 as size union all select generate_series(3400, 4200)) as sizes order by size",
        )
        .bind(shop.topic())
        .execute(shop.pool())
        .await
        .unwrap();
        let relay = Process::relay(&shop, more);
        shop.shipped().await;
        assert_eq!(relay.said("WARN"), 0, "{:#?}", relay.lines.lock().unwrap());
        let letters =
            "select count(*) from pillarbox.outbox_dead_letter where reason = 'too_large'";
        let letters = u64::try_from(shop.number(letters).await).unwrap();
        let stored = shop.messages().await;
        assert!(stored > 1 && letters > 100, "{stored} stored, {letters} set aside");
        assert_eq!(stored + letters, 802);
        // Among those with the same headers, what is stored is smaller than what is set aside.
        let smallest = "select coalesce(min(octet_length(payload)), 0)::bigint from pillarbox.outbox_dead_letter \
                       where octet_length(payload) % 2 = 0";
        let smallest_aside = shop.number(smallest).await;
        let stored = shop.stored().await;
        let sizes = stored.iter().map(|stored| stored.payload.len()).filter(|size| size % 2 == 0);
        assert_eq!(i64::try_from(sizes.max().unwrap()).unwrap() + 2, smallest_aside);
    }
}

#[tokio::test]
async fn a_topic_without_a_stream_holds_until_there_is_one() {
    let shop = Shop::open().await;
    let other = format!("other{}.placed", shop.scope.prefix());
    shop.insert_many(5).await;
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', $1, '1', 'x')",
    )
    .bind(&other)
    .execute(shop.pool())
    .await
    .unwrap();
    shop.insert_many(5).await;
    let relay = Process::relay(&shop, &[]);
    relay.until_said(&other).await;
    assert_eq!(shop.messages().await, 5, "what comes before is shipped");
    let config = async_nats::jetstream::stream::Config {
        name: format!("{}OTHER", shop.stream),
        subjects: vec![other],
        ..Default::default()
    };
    shop.jetstream().await.create_stream(config).await.unwrap();
    shop.until_messages(10).await;
    shop.shipped().await;
}

#[tokio::test]
async fn an_outbox_in_another_schema_is_shipped_as_well() {
    let shop = Shop::open().await;
    let outbox = pillarbox_outbox::Outbox::new().schema("shop_events").unwrap();
    outbox.migrate(shop.pool()).await.unwrap();
    let mut tx = shop.pool().begin().await.unwrap();
    let event = pillarbox_event::RawEvent::builder("order.placed", shop.topic())
        .payload("elsewhere")
        .build()
        .unwrap();
    outbox.publish(&mut tx, event).await.unwrap();
    tx.commit().await.unwrap();
    shop.insert_one("1", "not here").await;
    let relay = shop.start(RelayConfig { schema: "shop_events".into(), ..shop.config() });
    shop.until_messages(1).await;
    relay.stop().await;
    assert_eq!(shop.stored().await[0].payload, "elsewhere");
    assert_eq!(shop.messages().await, 1);
}

#[tokio::test]
async fn a_full_stream_holds_until_there_is_room() {
    let shop = Shop::open().await;
    shop.create_stream(|config| async_nats::jetstream::stream::Config {
        max_messages: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..config
    })
    .await;
    shop.insert_many(250).await;
    let relay = Process::relay(&shop, &[]);
    relay.until_said("holding").await;
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    assert_eq!(shop.messages().await, 100);
    assert_eq!(shop.number("select count(*) from pillarbox.outbox_dead_letter").await, 0);
    for _ in 0..2 {
        shop.until_messages(50).await;
        stream.purge().await.unwrap();
    }
    shop.shipped().await;
}

#[tokio::test]
async fn an_event_whose_commit_is_not_on_disk_yet_is_not_shipped() {
    // The log writer sleeps as long as it can, so that nothing but the relay sees to the log.
    let postgres = Postgres::options().setting("wal_writer_delay", "10s").start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let relay = shop.start(shop.config());
    for round in 1..=3 {
        let mut writer = eventually("a connection", DEADLINE, async || {
            sqlx::PgConnection::connect(shop.scope.database_url()).await.map(Some)
        })
        .await
        .unwrap();
        sqlx::raw_sql("set synchronous_commit = off").execute(&mut writer).await.unwrap();
        for number in 0..20 {
            shop.insert(&mut writer, "1", &format!("{round}/{number}")).await;
        }
        let before = shop.messages().await;
        shop.until_messages(before + 1).await;
        // A crash: what was committed and not written out is gone.
        servers.postgres.kill().unwrap();
        servers.postgres.restart().await.unwrap();
        let stored = shop.stored().await;
        for stored in stored {
            let there = eventually("an answer of the outbox", DEADLINE, async || {
                sqlx::query("select from pillarbox.outbox where event_id = $1::text::uuid")
                    .bind(&stored.id)
                    .fetch_optional(shop.pool())
                    .await
                    .map(|row| Some(row.is_some()))
            });
            assert!(
                there.await.unwrap(),
                "{} was shipped, and then lost by its writer",
                stored.payload
            );
        }
    }
    relay.shutdown.cancel();
}

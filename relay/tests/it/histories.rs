//! The snapshot cursor against concurrent writers: early ids, late commits, rollbacks, open transactions.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::Shop;
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Nats, Postgres, Servers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{PgConnection, PgPool, Row};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Locks the row that a key stands for, as a writer does that changes it, and takes the key's next number.
async fn lock(connection: &mut PgConnection, key: i64) -> i64 {
    sqlx::query("update counters set next = next + 1 where key = $1 returning next")
        .bind(key)
        .fetch_one(connection)
        .await
        .unwrap()
        .get(0)
}

async fn counters(shop: &Shop, keys: i64) {
    sqlx::raw_sql("create table counters (key bigint primary key, next bigint not null default 0)")
        .execute(shop.pool())
        .await
        .unwrap();
    sqlx::query("insert into counters (key) select generate_series(0, $1)")
        .bind(keys - 1)
        .execute(shop.pool())
        .await
        .unwrap();
}

async fn take_id(connection: &mut PgConnection) {
    sqlx::query("select pg_current_xact_id()::text").fetch_one(connection).await.unwrap();
}

#[tokio::test]
async fn a_transaction_with_an_early_id_does_not_turn_a_key_around() {
    let shop = Shop::open().await;
    counters(&shop, 1).await;
    let relay = shop.start(shop.config());
    // A takes its id first; B inserts for the key and commits; then A inserts for it and commits.
    let mut a = shop.pool().begin().await.unwrap();
    take_id(&mut a).await;
    let mut b = shop.pool().begin().await.unwrap();
    lock(&mut b, 0).await;
    shop.insert(&mut b, "K", "B").await;
    b.commit().await.unwrap();
    lock(&mut a, 0).await;
    shop.insert(&mut a, "K", "A").await;
    // Both with B shipped already and with both new at once.
    shop.until_messages(1).await;
    a.commit().await.unwrap();
    shop.until_messages(2).await;
    relay.stop().await;

    let mut a = shop.pool().begin().await.unwrap();
    take_id(&mut a).await;
    let mut b = shop.pool().begin().await.unwrap();
    shop.insert(&mut b, "K", "D").await;
    b.commit().await.unwrap();
    shop.insert(&mut a, "K", "C").await;
    a.commit().await.unwrap();
    let relay = shop.start(shop.config());
    shop.until_messages(4).await;
    relay.stop().await;
    let payloads: Vec<_> = shop.stored().await.into_iter().map(|stored| stored.payload).collect();
    assert_eq!(payloads, ["B", "A", "D", "C"]);
}

/// The case that the floor's lag is for. X runs, with a row at a low position, and the snapshot of the window in
/// which Y's higher position is shipped does not list it, because no transaction behind it has completed.
#[tokio::test]
async fn a_running_transaction_that_no_snapshot_lists_is_not_lost() {
    // A server of its own, and a long lease: nobody else may complete a transaction in between.
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let relay = shop.start(RelayConfig {
        lease: Duration::from_secs(600),
        idle_interval: Duration::from_millis(2),
        ..shop.config()
    });
    for round in 0..20_u64 {
        shop.insert_one("0", "before").await;
        shop.until_messages(round * 3 + 1).await;
        shop.shipped().await;
        // Everything the relay writes of its own accord is written by now.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut y = shop.pool().begin().await.unwrap();
        take_id(&mut y).await;
        let mut x = shop.pool().begin().await.unwrap();
        shop.insert(&mut x, "X", "low position, late commit").await;
        shop.insert(&mut y, "Y", "high position, early commit").await;
        y.commit().await.unwrap();
        shop.until_messages(round * 3 + 2).await;
        x.commit().await.unwrap();
        shop.until_messages(round * 3 + 3).await;
    }
    relay.stop().await;
    assert_eq!(shop.messages().await, 60);
}

#[tokio::test]
async fn an_open_transaction_delays_nothing_but_itself() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    let mut open = shop.pool().begin().await.unwrap();
    shop.insert(&mut open, "open", "late").await;
    for round in 1..=5 {
        shop.insert_many(100).await;
        shop.until_messages(round * 100).await;
    }
    assert!(shop.stored().await.iter().all(|stored| stored.payload != "late"));
    open.commit().await.unwrap();
    shop.until_messages(501).await;
    shop.shipped().await;
    relay.stop().await;
    assert_eq!(shop.stored().await.last().unwrap().payload, "late");
    shop.assert_each_once_in_order().await;
}

/// Twelve writers and one who loads rows, seeded. The seed of a failure is in its message.
#[tokio::test]
async fn random_histories_are_shipped_whole_once_and_in_the_order_of_commits() {
    let seed = match std::env::var("PILLARBOX_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random::<u64>(),
    };
    println!("seed {seed}: PILLARBOX_SEED={seed} runs it again");
    let shop = Shop::open().await;
    counters(&shop, 6).await;
    // Positions that the sequence gives nobody: a load may use them.
    sqlx::query("select setval('pillarbox.outbox_position_seq', 1000)")
        .execute(shop.pool())
        .await
        .unwrap();
    // Small pages and a short poll make many windows; a restart in between resumes inside one.
    let config =
        RelayConfig { page_rows: 17, idle_interval: Duration::from_millis(2), ..shop.config() };
    let mut relay = shop.start(config.clone());
    let mut open = shop.pool().begin().await.unwrap();
    take_id(&mut open).await;

    let until = Instant::now() + Duration::from_secs(6);
    let mut writers = JoinSet::new();
    for writer in 0..12_u64 {
        let (pool, topic) = (shop.pool().clone(), shop.topic());
        writers.spawn(write(pool, topic, StdRng::seed_from_u64(seed.wrapping_add(writer)), until));
    }
    let loader = StdRng::seed_from_u64(seed.wrapping_add(12));
    let loader = tokio::spawn(load(shop.pool().clone(), shop.topic(), loader, until));
    while Instant::now() + Duration::from_secs(2) < until {
        tokio::time::sleep(Duration::from_millis(700)).await;
        relay.stop().await;
        relay = shop.start(config.clone());
    }
    let committed: u64 = writers.join_all().await.into_iter().sum();
    shop.insert(&mut open, "open", "open/1").await;
    open.commit().await.unwrap();
    let loaded = loader.await.unwrap();
    let committed = committed + 1 + loaded;
    shop.until_messages(committed).await;
    shop.shipped().await;
    relay.stop().await;

    let stored = shop.stored().await;
    assert_eq!(stored.len() as u64, committed, "seed {seed}: each committed event once");
    let mut last: HashMap<String, i64> = HashMap::new();
    // Of what is loaded, the order is not promised.
    for stored in stored.iter().filter(|stored| stored.key.as_deref() != Some("loaded")) {
        let number: i64 = stored.payload.rsplit('/').next().unwrap().parse().unwrap();
        let key = stored.key.clone().unwrap();
        let before = last.insert(key.clone(), number).unwrap_or(0);
        assert_eq!(number, before + 1, "seed {seed}: key {key} after number {before}");
    }
    println!("{committed} events, {loaded} of them loaded, {} keys", last.len());
}

/// Commits or rolls back transactions of one to four events, and returns how many events it committed.
async fn write(pool: PgPool, topic: String, mut random: StdRng, until: Instant) -> u64 {
    let mut committed = 0;
    while Instant::now() < until {
        let mut tx = pool.begin().await.unwrap();
        if random.random_bool(0.3) {
            take_id(&mut tx).await;
            pause(&mut random).await;
        }
        let events = random.random_range(1..=4);
        let key = random.random_range(0..6);
        for _ in 0..events {
            let number = lock(&mut tx, key).await;
            sqlx::query("insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', $1, $2, convert_to($3, 'utf8'))")
                .bind(&topic)
                .bind(key.to_string())
                .bind(format!("{key}/{number}"))
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        pause(&mut random).await;
        if random.random_bool(0.2) {
            tx.rollback().await.unwrap();
        } else {
            tx.commit().await.unwrap();
            committed += events;
        }
    }
    committed
}

/// Loads rows with another cluster's ids or its own, at the next position or at one that the relay has passed, and
/// returns how many it committed.
async fn load(pool: PgPool, topic: String, mut random: StdRng, until: Instant) -> u64 {
    let mut low = (1..=999).rev();
    let mut committed = 0;
    while Instant::now() < until {
        let mut tx = pool.begin().await.unwrap();
        let savepoint = random.random_bool(0.3);
        if savepoint {
            sqlx::raw_sql("savepoint a").execute(&mut *tx).await.unwrap();
        }
        let rows = random.random_range(1..=3);
        for row in 0..rows {
            let txid = match random.random_range(0..3) {
                0 => Some(random.random_range(3..100)),
                1 => Some(random.random_range(1_000_000_000..2_000_000_000_i64)),
                _ => None,
            };
            // A loaded row under a savepoint, below all that is read: see `visibility.rs`.
            let position = low.next().filter(|_| !savepoint && random.random_bool(0.5));
            sqlx::query(
                "insert into pillarbox.outbox (txid, position, event_type, topic, key, payload) \
                 overriding system value values (coalesce($1::text::xid8, pg_current_xact_id()), \
                 coalesce($2, nextval('pillarbox.outbox_position_seq')), 't', $3, 'loaded', convert_to($4, 'utf8'))",
            )
            .bind(txid.map(|txid| txid.to_string()))
            .bind(position)
            .bind(&topic)
            .bind(format!("loaded/{}", committed + row))
            .execute(&mut *tx)
            .await
            .unwrap();
        }
        // Some stay open over many windows.
        let open = if random.random_bool(0.1) { 600 } else { random.random_range(0..60) };
        tokio::time::sleep(Duration::from_millis(open)).await;
        if random.random_bool(0.2) {
            tx.rollback().await.unwrap();
        } else {
            tx.commit().await.unwrap();
            committed += rows;
        }
    }
    committed
}

async fn pause(random: &mut StdRng) {
    if random.random_bool(0.3) {
        tokio::time::sleep(Duration::from_micros(random.random_range(0..3_000))).await;
    }
}

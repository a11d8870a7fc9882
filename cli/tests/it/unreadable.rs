//! Rows that cannot be read, in whatever column: each is set aside by itself, and the others are shipped.

use std::process::Command;
use std::time::Duration;

use crate::support::{DEADLINE, Process, Shop};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{eventually, servers};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool, Row};

const UNBOUND: &str = "alter table pillarbox.outbox \
    alter event_id drop not null, alter event_type drop not null, alter topic drop not null, \
    alter headers drop not null, alter payload drop not null, alter created_at drop not null";

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap().get(0)
}

async fn until(pool: &PgPool, what: &str, sql: &str, wanted: i64) {
    eventually(what, DEADLINE, async || match number(pool, sql).await {
        found if found == wanted => Ok(Some(())),
        found => Err(format!("{found}")),
    })
    .await
    .unwrap();
}

fn pillarbox(url: &str, shop: &Shop, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(arguments)
        .env("DATABASE_URL", url)
        .env("NATS_URL", shop.scope.nats_url())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

/// Inserts a good event, then this one, then a good one.
async fn insert_between(pool: &PgPool, topic: &str, columns: &str, values: &str) {
    let good = format!(
        "insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', '{topic}', 'k', 'good');"
    );
    run(
        pool,
        &format!("{good} insert into pillarbox.outbox ({columns}) values ({values}); {good}"),
    )
    .await;
}

const ALL: &str = "event_type, topic, key, headers, payload, created_at";

#[tokio::test]
async fn a_row_that_cannot_be_read_is_set_aside_by_its_position_and_the_rest_is_shipped() {
    let shop = Shop::open().await;
    let (pool, topic) = (shop.pool(), shop.topic());
    run(pool, UNBOUND).await;
    let rows = [
        format!("'t', '{topic}', 'k', '{{}}', 'bad', 'infinity'"),
        format!("'t', '{topic}', 'k', '{{}}', 'bad', '-infinity'"),
        format!("'t', '{topic}', 'k', '{{}}', 'bad', '20000-01-01'"),
        format!("'t', '{topic}', 'k', '{{}}', 'bad', '294276-12-31'"),
        format!("null, '{topic}', 'k', '{{}}', 'bad', now()"),
        "'t', null, 'k', '{}', 'bad', now()".to_owned(),
        format!("'t', '{topic}', 'k', null, 'bad', now()"),
        format!("'t', '{topic}', 'k', '{{}}', null, now()"),
        format!("'t', '{topic}', 'k', '{{}}', 'bad', null"),
    ];
    for values in &rows {
        insert_between(pool, &topic, ALL, values).await;
    }
    insert_between(
        pool,
        &topic,
        "event_id, event_type, topic, payload",
        &format!("null, 't', '{topic}', 'bad'"),
    )
    .await;
    let bad = i64::try_from(rows.len()).unwrap() + 1;
    let relay = Process::relay(&shop, &[]);
    shop.until_messages(2 * u64::try_from(bad).unwrap()).await;
    until(pool, "the letters", "select count(*) from pillarbox.outbox_dead_letter where reason = 'unreadable' and state = 'dead'", bad).await;
    shop.shipped().await;
    assert_eq!(shop.messages().await, 2 * u64::try_from(bad).unwrap());
    let named = "select count(*) from pillarbox.outbox_dead_letter join pillarbox.outbox using (position) where coalesce(outbox.payload, '') <> 'good'";
    assert_eq!(number(pool, named).await, bad, "each by its position");
    let kept = "select count(*) from pillarbox.outbox_dead_letter where payload = 'bad' and key = 'k' and event_type = 't'";
    assert_eq!(number(pool, kept).await, 7, "what can be saved is kept");
    assert_eq!(relay.said("panicked"), 0);
    relay.until_said("position=2").await;

    // The commands read all of it.
    let url = shop.scope.database_url();
    let (code, listed) = pillarbox(url, &shop, &["dead-letters", "list", "--outbox"]);
    assert!(code == 0 && listed.matches("unreadable").count() == rows.len() + 1, "{listed}");
    let (code, listed) = pillarbox(url, &shop, &["dead-letters", "list", "--outbox", "--json"]);
    assert!(code == 0 && listed.lines().count() == rows.len() + 1, "{listed}");
    let row = sqlx::query(
        "select event_id::text from pillarbox.outbox_dead_letter where created_at = 'infinity'",
    );
    let id: String = row.fetch_one(pool).await.unwrap().get(0);
    let (code, shown) = pillarbox(url, &shop, &["dead-letters", "show", "--outbox", &id]);
    assert!(code == 0 && shown.contains("created_at"), "{shown}");
    let (code, status) = pillarbox(url, &shop, &["status", "--json"]);
    assert!(code == 0 && status.contains("\"backlog_events\": 0"), "{status}");
    // A retry brings it back, until somebody mends the letter.
    assert_eq!(pillarbox(url, &shop, &["dead-letters", "retry", "--outbox", &id]).0, 0);
    until(pool, "a second attempt", "select count(*) from pillarbox.outbox_dead_letter where attempts = 2 and state = 'dead' and created_at = 'infinity'", 1).await;
    run(
        pool,
        "update pillarbox.outbox_dead_letter set created_at = now() where created_at = 'infinity'",
    )
    .await;
    assert_eq!(pillarbox(url, &shop, &["dead-letters", "retry", "--outbox", &id]).0, 0);
    shop.until_messages(2 * u64::try_from(bad).unwrap() + 1).await;
    // A replay passes over what it cannot read.
    run(pool, "delete from pillarbox.outbox_dead_letter").await;
    let (code, replayed) = pillarbox(url, &shop, &["replay", "--from-position", "1", "--yes"]);
    assert!(code == 0 && !replayed.contains("panicked"), "{replayed}");
}

#[tokio::test]
async fn a_row_without_a_transaction_id_is_shipped_like_any_other_and_not_removed_before() {
    let shop = Shop::open().await;
    let (pool, topic) = (shop.pool(), shop.topic());
    run(pool, "alter table pillarbox.outbox alter txid drop not null").await;
    let columns = "txid, event_type, topic, payload";
    let without = format!("null, 't', '{topic}', 'without'");
    // Under a savepoint, whose id no snapshot lists, of a transaction that ends long after others have been shipped.
    let mut open = pool.begin().await.unwrap();
    let sql = format!(
        "select pg_current_xact_id(); savepoint a; insert into pillarbox.outbox ({columns}) values ({without}); release a"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *open).await.unwrap();
    insert_between(pool, &topic, columns, &without).await;
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(1), ..shop.config() });
    shop.until_messages(3).await;
    insert_between(pool, &topic, columns, &without).await;
    shop.until_messages(6).await;
    let old = "select count(*) from pillarbox.relay_checkpoint where taken_at < now() - interval '2 seconds'";
    eventually("a checkpoint past the retention", DEADLINE, async || {
        Ok::<_, String>((number(pool, old).await > 0).then_some(()))
    })
    .await
    .unwrap();
    open.commit().await.unwrap();
    shop.until_messages(7).await;
    until(pool, "shipped rows to go", "select count(*) from pillarbox.outbox", 0).await;
    relay.stop().await;
    assert_eq!(shop.messages().await, 7);
}

#[tokio::test]
async fn times_before_christ_and_far_ahead_are_times() {
    let shop = Shop::open().await;
    let (pool, topic) = (shop.pool(), shop.topic());
    let times = ["4713-01-01 BC", "0001-01-01 BC", "0001-01-01", "9999-12-31 23:59:59.999999"];
    for time in times {
        let values = format!("'t', '{topic}', 'k', '{{}}', 'good', '{time}+00'");
        let values = values.replace(" BC+00", "+00 BC");
        insert_between(pool, &topic, ALL, &values).await;
    }
    let relay = shop.start(shop.config());
    shop.until_messages(12).await;
    shop.shipped().await;
    relay.stop().await;
    assert_eq!(number(pool, "select count(*) from pillarbox.outbox_dead_letter").await, 0);
}

#[tokio::test]
async fn a_backlog_whose_oldest_time_is_infinite_has_a_status() {
    let shop = Shop::open().await;
    for time in ["-infinity", "infinity"] {
        let sql = "insert into pillarbox.outbox (event_type, topic, payload, created_at) values ('t', 't', '', $1::text::timestamptz)";
        sqlx::query(sql).bind(time).execute(shop.pool()).await.unwrap();
        let (code, status) = pillarbox(shop.scope.database_url(), &shop, &["status", "--json"]);
        assert!(code != 2 && status.contains("backlog_events"), "{time}: {status}");
        assert!(shop.status().await.backlog_events > 0);
    }
}

/// A database in this encoding with an outbox.
async fn database(shop: &Shop, encoding: &str) -> (String, PgPool) {
    let name = format!("{}_{}", shop.scope.prefix(), encoding.to_lowercase());
    run(
        shop.pool(),
        &format!("create database {name} encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'"),
    )
    .await;
    let url = servers().await.unwrap().postgres.url(&name);
    let pool = PgPoolOptions::new().max_connections(5).connect(&url).await.unwrap();
    pillarbox_outbox::migrate(&pool).await.unwrap();
    (url, pool)
}

#[tokio::test]
async fn bytes_that_are_no_text_in_utf8_stop_nothing_in_any_encoding_of_the_database() {
    for (encoding, byte) in [("SQL_ASCII", "ff"), ("WIN1252", "81"), ("EUC_JP", "8fa2a1")] {
        let shop = Shop::open().await;
        let (url, pool) = database(&shop, encoding).await;
        let topic = shop.topic();
        let odd = format!("convert_from('\\x61{byte}', '{encoding}')");
        for (at, values) in [
            format!("{odd}, '{topic}', 'k', '{{}}', 'bad', now()"),
            format!("'t', '{topic}.' || {odd}, 'k', '{{}}', 'bad', now()"),
            format!("'t', '{topic}', {odd}, '{{}}', 'bad', now()"),
            format!("'t', '{topic}', 'k', jsonb_build_object('x', {odd}), 'bad', now()"),
        ]
        .iter()
        .enumerate()
        {
            insert_between(&pool, &topic, ALL, values).await;
            assert!(at < 4);
        }
        let relay = Process::run(
            &["relay", "--lease-ms", "2000"],
            &[("DATABASE_URL", &url), ("NATS_URL", shop.scope.nats_url())],
        );
        shop.until_messages(8).await;
        until(&pool, encoding, "select count(*) from pillarbox.outbox_dead_letter where reason = 'unreadable' and payload = 'bad'", 4).await;
        assert_eq!(shop.messages().await, 8, "{encoding}");
        let (code, listed) = pillarbox(&url, &shop, &["dead-letters", "list", "--outbox"]);
        assert!(code == 0 && listed.matches("unreadable").count() == 4, "{encoding}: {listed}");
        let ids = sqlx::query("select event_id::text from pillarbox.outbox_dead_letter");
        for row in ids.fetch_all(&pool).await.unwrap() {
            let id: String = row.get(0);
            let (code, shown) = pillarbox(&url, &shop, &["dead-letters", "show", "--outbox", &id]);
            assert!(code == 0 && shown.contains("unreadable"), "{encoding}: {shown}");
            let retried = pillarbox(&url, &shop, &["dead-letters", "retry", "--outbox", &id]);
            assert_eq!(retried.0, 0, "{encoding}: {}", retried.1);
        }
        until(&pool, encoding, "select count(*) from pillarbox.outbox_dead_letter where state = 'dead' and attempts = 2", 4).await;
        run(&pool, "delete from pillarbox.outbox_dead_letter").await;
        let (code, replayed) = pillarbox(&url, &shop, &["replay", "--from-position", "1", "--yes"]);
        assert!(code == 0, "{encoding}: {replayed}");
        shop.until_messages(16).await;
        assert_eq!(relay.said("panicked"), 0);
    }
}

#[tokio::test]
async fn letters_of_another_encoding_are_shipped_as_text() {
    let shop = Shop::open().await;
    let (url, pool) = database(&shop, "LATIN1").await;
    let topic = shop.topic();
    run(
        &pool,
        &format!(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload) values \
             (convert_from('\\xe4', 'LATIN1'), '{topic}', convert_from('\\xf6', 'LATIN1'), \
              jsonb_build_object('x', convert_from('\\xfc', 'LATIN1')), 'good')"
        ),
    )
    .await;
    let relay = Process::run(
        &["relay", "--lease-ms", "2000"],
        &[("DATABASE_URL", &url), ("NATS_URL", shop.scope.nats_url())],
    );
    shop.until_messages(1).await;
    assert_eq!(shop.stored().await[0].key.as_deref(), Some("%C3%B6"), "ö as CloudEvents writes it");
    drop(relay);
}

/// Removes chunks of large values from where Postgres keeps them.
async fn lose_chunks(pool: &PgPool, which: &str) {
    let damage = format!(
        "create extension pg_surgery; \
         do $$ declare kept regclass := (select reltoastrelid from pg_class where oid = 'pillarbox.outbox'::regclass); \
                       places tid[]; \
         begin \
           execute format('select array_agg(ctid) from %s {which}', kept) into places; \
           perform heap_force_kill(kept, places); \
         end $$"
    );
    run(pool, &damage).await;
}

#[tokio::test]
async fn a_row_whose_storage_is_damaged_is_set_aside_with_what_is_left_of_it() {
    let shop = Shop::open().await;
    let (pool, topic) = (shop.pool(), shop.topic());
    let large = "(select string_agg(md5(i::text), '') from generate_series(1, 400) i)";
    for values in [
        format!("'t', '{topic}', 'k', '{{}}', convert_to({large}, 'utf8'), now()"),
        format!("'t', '{topic}', 'k', jsonb_build_object('x', left({large}, 8000)), 'bad', now()"),
    ] {
        insert_between(pool, &topic, ALL, &values).await;
    }
    lose_chunks(pool, "where chunk_seq = 0").await;
    let relay = Process::relay(&shop, &[]);
    shop.until_messages(4).await;
    until(pool, "two letters", "select count(*) from pillarbox.outbox_dead_letter where reason = 'unreadable' and error like '%toast%'", 2).await;
    let saved = "select count(*) from pillarbox.outbox_dead_letter where not whole and topic = $1 and key = 'k'";
    let saved: i64 = sqlx::query(saved).bind(&topic).fetch_one(pool).await.unwrap().get(0);
    assert_eq!(saved, 2, "the rest of them is kept, and marked as not whole");
    let (_, said) = pillarbox(
        shop.scope.database_url(),
        &shop,
        &["dead-letters", "retry", "--outbox", "--all"],
    );
    assert!(said.contains("cannot be retried"), "{said}");
    assert_eq!(relay.said("panicked"), 0);
}

#[tokio::test]
async fn a_row_of_which_only_a_part_is_kept_stays_in_the_outbox_until_its_letter_is_resolved() {
    let shop = Shop::open().await;
    let (pool, topic) = (shop.pool(), shop.topic());
    insert_between(
        pool,
        &topic,
        ALL,
        &format!("'t', '{topic}', 'k', '{{}}', decode(repeat('00', 9000), 'hex'), now()"),
    )
    .await;
    lose_chunks(pool, "").await;
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(1), ..shop.config() });
    until(pool, "the sound rows to go", "select count(*) from pillarbox.outbox", 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = "select count(*) from pillarbox.outbox join pillarbox.outbox_dead_letter using (position) where not whole";
    assert_eq!(number(pool, left).await, 1);
    run(pool, "update pillarbox.outbox_dead_letter set state = 'discarded', resolved_at = now()")
        .await;
    until(pool, "the damaged row to go", "select count(*) from pillarbox.outbox", 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_cannot_be_read_do_not_slow_the_others_down_for_long() {
    let shop = Shop::open().await;
    run(
        shop.pool(),
        &format!(
            "insert into pillarbox.outbox (event_type, topic, key, payload, created_at) \
             select 't', '{}', 'k' || i % 7, 'x', case when i % 3 = 0 then 'infinity' else now() end from generate_series(1, 6000) i",
            shop.topic()
        ),
    )
    .await;
    let started = std::time::Instant::now();
    let relay = shop.start(shop.config());
    shop.until_messages(4_000).await;
    until(shop.pool(), "the letters", "select count(*) from pillarbox.outbox_dead_letter", 2_000)
        .await;
    println!("2000 unreadable of 6000 took {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(20));
    relay.stop().await;
}
